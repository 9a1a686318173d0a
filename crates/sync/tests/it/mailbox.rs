//! The mailbox.

use crate::task::{WakeCount, block_on};
use replikit_sync::{Closed, PushError, Taken, mailbox};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::thread;

#[test]
fn loop_is_woken_only_when_it_sleeps() {
    let (sender, mut mailbox) = mailbox(8);
    let (count, waker) = WakeCount::new();
    let mut context = Context::from_waker(&waker);
    let mut items = Vec::new();
    sender.try_push(1).unwrap();
    assert_eq!(count.get(), 0, "the loop has not gone to sleep yet");
    assert_eq!(mailbox.poll_drain(&mut context, &mut items), Poll::Ready(true));
    assert_eq!(mailbox.poll_drain(&mut context, &mut items), Poll::Pending);
    sender.try_push(2).unwrap();
    sender.push_all(&mut vec![3, 4]).unwrap();
    assert_eq!(count.get(), 1, "one wake-up for all that comes during one sleep");
    assert_eq!(mailbox.poll_drain(&mut context, &mut items), Poll::Ready(true));
    sender.try_push(5).unwrap();
    assert_eq!(count.get(), 1, "the loop is awake");
    assert_eq!(mailbox.try_drain(&mut items), Taken::Items(5..6));
    assert_eq!(items, [1, 2, 3, 4, 5]);
}

#[test]
fn full_mailbox_gives_the_item_back() {
    let (sender, mut mailbox) = mailbox(2);
    let mut more = vec![1, 2, 3];
    assert_eq!(sender.push_all(&mut more), Ok(2));
    assert_eq!(more, [3]);
    assert_eq!(sender.try_push(4), Err(PushError::Full(4)));
    let mut items = Vec::new();
    assert_eq!(mailbox.try_drain(&mut items), Taken::Items(1..3));
    assert_eq!(sender.try_push(4), Ok(()));
}

#[test]
fn dropped_mailbox_refuses_items_and_drops_what_was_left() {
    let (sender, mailbox) = mailbox(2);
    let item = std::sync::Arc::new(());
    sender.try_push(std::sync::Arc::clone(&item)).unwrap();
    drop(mailbox);
    assert_eq!(std::sync::Arc::strong_count(&item), 1);
    assert!(sender.is_closed());
    assert_eq!(sender.try_push(std::sync::Arc::clone(&item)), Err(PushError::Closed(item.clone())));
    assert_eq!(sender.push_all(&mut vec![item]), Err(Closed(())));
}

#[test]
fn sleeping_loop_is_woken_by_the_end() {
    let (sender, mut mailbox) = mailbox::<u8>(2);
    let (count, waker) = WakeCount::new();
    let mut context = Context::from_waker(&waker);
    assert_eq!(mailbox.poll_drain(&mut context, &mut Vec::new()), Poll::Pending);
    drop(sender);
    assert_eq!(count.get(), 1);
    assert_eq!(mailbox.poll_drain(&mut context, &mut Vec::new()), Poll::Ready(false));
}

#[test]
fn every_item_of_eight_threads_arrives_once_and_in_order() {
    const ITEMS: usize = 2000;
    let (sender, mut mailbox) = mailbox::<(usize, usize)>(64);
    let senders: Vec<_> = (0..8)
        .map(|thread| {
            let sender = sender.clone();
            thread::spawn(move || {
                for item in 0..ITEMS {
                    while let Err(refused) = sender.try_push((thread, item)) {
                        assert_eq!(refused, PushError::Full((thread, item)));
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    drop(sender);
    let mut next = [0; 8];
    let mut items = Vec::new();
    while block_on(poll_fn(|context| mailbox.poll_drain(context, &mut items))) {
        assert!(items.len() <= 64);
        for (thread, item) in items.drain(..) {
            assert_eq!(next[thread], item);
            next[thread] += 1;
        }
    }
    assert_eq!(next, [ITEMS; 8]);
    for sender in senders {
        sender.join().unwrap();
    }
}
