//! The watermark.

use crate::task::{WakeCount, block_on};
use replikit_sync::Watermark;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

#[test]
fn position_never_falls() {
    let watermark = Watermark::<io::Error>::new(5);
    watermark.publish(3);
    assert_eq!(watermark.load(), 5);
    watermark.publish(9);
    watermark.publish(9);
    assert_eq!(watermark.load(), 9);
    assert_eq!(watermark.wait(7).unwrap(), 9);
}

#[test]
fn thousand_publishes_reach_threads_and_tasks() {
    const POSITIONS: u64 = 1000;
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    let written = Arc::new(AtomicU64::new(0));
    let waiters: Vec<_> = (0..8)
        .map(|kind| {
            let (watermark, written) = (Arc::clone(&watermark), Arc::clone(&written));
            thread::spawn(move || {
                for position in 1..=POSITIONS {
                    let seen = if kind % 2 == 0 {
                        watermark.wait(position).unwrap()
                    } else {
                        block_on(watermark.reached(position)).unwrap()
                    };
                    assert!(seen >= position);
                    assert!(written.load(Ordering::Relaxed) >= seen);
                }
            })
        })
        .collect();
    for position in 1..=POSITIONS {
        written.store(position, Ordering::Relaxed);
        watermark.publish(position);
        thread::yield_now();
    }
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert_eq!(watermark.waiting(), 0);
}

#[test]
fn publish_wakes_only_who_waited_for_at_most_that() {
    let watermark = Watermark::<io::Error>::new(0);
    // Registered out of order, and more than fit one batch of wake-ups.
    let mut waits: Vec<_> = (1..=200)
        .rev()
        .map(|position| {
            let (count, waker) = WakeCount::new();
            let mut reached = watermark.reached(position);
            assert!(Pin::new(&mut reached).poll(&mut Context::from_waker(&waker)).is_pending());
            (position, reached, count, waker)
        })
        .collect();
    assert_eq!(watermark.waiting(), 200);
    watermark.publish(150);
    assert_eq!(watermark.waiting(), 50);
    for (position, reached, count, waker) in &mut waits {
        assert_eq!(count.get(), usize::from(*position <= 150), "the waiter for {position}");
        let polled = Pin::new(reached).poll(&mut Context::from_waker(waker));
        assert_eq!(polled.is_ready(), *position <= 150, "the waiter for {position}");
    }
}

#[test]
fn cancelled_and_rearmed_waits_leave_no_registration() {
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    let (count, waker) = WakeCount::new();
    let mut context = Context::from_waker(&waker);
    let mut reached = watermark.reached_owned(1);
    assert!(Pin::new(&mut reached).poll(&mut context).is_pending());
    assert!(Pin::new(&mut reached).poll(&mut context).is_pending());
    assert_eq!(watermark.waiting(), 1);
    reached.rearm(3);
    assert_eq!(watermark.waiting(), 0);
    assert!(Pin::new(&mut reached).poll(&mut context).is_pending());
    watermark.publish(2);
    assert_eq!(count.get(), 0);
    drop(reached);
    assert_eq!(watermark.waiting(), 0);
    watermark.publish(3);
    assert_eq!(count.get(), 0);
}

#[test]
fn dropping_a_waker_may_cancel_another_wait_on_the_same_watermark() {
    /// A task that owns a wait, kept alive by nothing but its waker.
    struct Owner(
        #[expect(dead_code, reason = "held for its drop")] replikit_sync::Reached<io::Error, Arc<Watermark<io::Error>>>,
    );
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    let (_, waker) = WakeCount::new();
    let mut inner = watermark.reached_owned(5);
    assert!(Pin::new(&mut inner).poll(&mut Context::from_waker(&waker)).is_pending());
    let owner = Waker::from(Arc::new(Owner(inner)));
    let mut outer = watermark.reached(1);
    assert!(Pin::new(&mut outer).poll(&mut Context::from_waker(&owner)).is_pending());
    drop(owner);
    assert_eq!(watermark.waiting(), 2);
    // The registration holds the last reference: dropping it drops the inner wait, which locks the list again.
    drop(outer);
    assert_eq!(watermark.waiting(), 0);
}

#[test]
fn poison_keeps_what_was_reached_and_ends_the_rest() {
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    watermark.publish(4);
    let blocked: Vec<_> = (5..13)
        .map(|position| {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || watermark.wait(position).unwrap_err().cause().kind())
        })
        .collect();
    let mut task = watermark.reached(5);
    let (count, waker) = WakeCount::new();
    assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    while watermark.waiting() < 9 {
        thread::yield_now();
    }
    assert!(watermark.poison(io::Error::from(io::ErrorKind::StorageFull)));
    assert!(!watermark.poison(io::Error::from(io::ErrorKind::Other)));
    watermark.publish(100);
    for blocked in blocked {
        assert_eq!(blocked.join().unwrap(), io::ErrorKind::StorageFull);
    }
    assert_eq!(count.get(), 1);
    assert!(matches!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)), Poll::Ready(Err(_))));
    assert_eq!(watermark.load(), 4);
    assert_eq!(watermark.wait(4).unwrap(), 4);
    assert_eq!(watermark.wait(5).unwrap_err().to_string(), "stopped by an earlier error: no storage space");
    assert_eq!(watermark.poisoned().unwrap().cause().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn publisher_that_panics_releases_its_waiters() {
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    let publisher = {
        let watermark = Arc::clone(&watermark);
        thread::spawn(move || {
            let _guard = watermark.poison_on_drop(io::Error::other("the publisher is gone"));
            while watermark.waiting() == 0 {
                thread::yield_now();
            }
            watermark.publish(1);
            std::panic::resume_unwind(Box::new("the publisher's bug"));
        })
    };
    assert_eq!(watermark.wait(2).unwrap_err().cause().to_string(), "the publisher is gone");
    assert!(publisher.join().is_err());
    assert_eq!(watermark.load(), 1);
}

#[test]
fn disarmed_guard_leaves_the_watermark_alone() {
    let watermark = Arc::new(Watermark::<io::Error>::new(0));
    watermark.poison_on_drop(io::Error::other("unused")).disarm();
    watermark.publish(1);
    assert_eq!(watermark.wait(1).unwrap(), 1);
    assert!(watermark.poisoned().is_none());
}
