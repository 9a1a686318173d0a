//! Loom models of the mailbox.

use super::{Mailbox, mailbox};
use crate::exploration::{Bound, block_on, explore, poll_once};
use crate::primitives::Parker;
use loom::thread;
use std::future::{Future, poll_fn};

fn drain<'a>(mailbox: &'a mut Mailbox<u64>, items: &'a mut Vec<u64>) -> impl Future<Output = bool> + Unpin + 'a {
    poll_fn(|context| mailbox.poll_drain(context, items))
}

#[test]
fn loop_drains_what_two_producers_pushed() {
    explore(Bound::Exhaustive, || {
        let (sender, mut mailbox) = mailbox::<u64>(4);
        let senders = [(1, sender.clone()), (10, sender)].map(|(item, sender)| {
            thread::spawn(move || {
                sender.try_push(item).expect("there is room for both");
                // Kept alive, so that no end of the mailbox can make up for a lost wake-up.
                sender
            })
        });
        let mut items = Vec::new();
        while items.len() < 2 {
            assert!(block_on(drain(&mut mailbox, &mut items)), "the mailbox is still open");
        }
        assert_eq!(items.iter().sum::<u64>(), 11, "an item was lost or doubled");
        for sender in senders {
            drop(sender.join().expect("the sender ends"));
        }
        assert!(!block_on(drain(&mut mailbox, &mut items)), "the mailbox has ended");
    });
}

#[test]
fn task_that_polled_last_is_the_one_woken() {
    explore(Bound::Exhaustive, || {
        let (sender, mut mailbox) = mailbox::<u64>(4);
        let other = sender.clone();
        let sender = thread::spawn(move || sender.try_push(1).expect("there is room"));
        let mut items = Vec::new();
        let former_task = Parker::new();
        if poll_once(&mut drain(&mut mailbox, &mut items), &former_task).is_pending() {
            assert!(block_on(drain(&mut mailbox, &mut items)), "the mailbox is still open");
        }
        assert_eq!(items, [1]);
        sender.join().expect("the sender ends");
        drop(other);
    });
}

#[test]
fn full_mailbox_returns_the_item_and_loses_none() {
    explore(Bound::Preemptions(5), || {
        let (sender, mut mailbox) = mailbox::<u64>(1);
        let senders = [(1, sender.clone()), (10, sender)].map(|(item, sender)| {
            thread::spawn(move || match sender.try_push(item) {
                Ok(()) => item,
                Err(refused) => {
                    assert_eq!(refused, crate::PushError::Full(item));
                    0
                }
            })
        });
        let mut drained = 0;
        let mut items = Vec::new();
        while block_on(drain(&mut mailbox, &mut items)) {
            assert_eq!(items.len(), 1, "more waited than the limit allows");
            drained += items.drain(..).sum::<u64>();
        }
        let accepted = senders.map(|sender| sender.join().expect("the sender ends")).iter().sum::<u64>();
        assert!(accepted > 0, "an empty mailbox refused an item");
        assert_eq!(drained, accepted, "what was accepted is not what was drained");
    });
}
