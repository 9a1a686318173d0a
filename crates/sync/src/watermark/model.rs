//! Loom models of the watermark.

use super::Watermark;
use crate::exploration::{Bound, block_on, explore, poll_once};
use crate::primitives::{AtomicU64, Ordering, Parker};
use loom::thread;
use std::sync::Arc;

type Failure = &'static str;

#[test]
fn publish_reaches_blocked_waiters_with_all_that_came_before() {
    explore(Bound::Preemptions(4), || {
        let watermark = Arc::new(Watermark::<Failure>::new(0));
        let written = Arc::new(AtomicU64::new(0));
        let waiters = [1, 2].map(|position| {
            let (watermark, written) = (Arc::clone(&watermark), Arc::clone(&written));
            thread::spawn(move || {
                let seen = watermark.wait(position).expect("nobody poisons it");
                assert!(seen >= position, "the wait ended early");
                assert!(written.load(Ordering::Relaxed) >= seen, "the position came before what it stands for");
            })
        });
        for position in [1, 2] {
            written.store(position, Ordering::Relaxed);
            watermark.publish(position);
        }
        for waiter in waiters {
            waiter.join().expect("the waiter ends");
        }
        assert_eq!(watermark.waiting(), 0);
    });
}

#[test]
fn publish_reaches_a_task_that_registers_meanwhile() {
    explore(Bound::Exhaustive, || {
        let watermark = Arc::new(Watermark::<Failure>::new(0));
        let task = {
            let reached = watermark.reached_owned(1);
            thread::spawn(move || assert_eq!(block_on(reached).expect("nobody poisons it"), 1))
        };
        watermark.publish(1);
        watermark.publish(0);
        assert_eq!(watermark.load(), 1);
        task.join().expect("the task ends");
    });
}

#[test]
fn task_that_polled_last_is_the_one_woken() {
    explore(Bound::Exhaustive, || {
        let watermark = Arc::new(Watermark::<Failure>::new(0));
        let publisher = {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || watermark.publish(1))
        };
        let mut reached = watermark.reached(1);
        let former_task = Parker::new();
        if poll_once(&mut reached, &former_task).is_pending() {
            assert_eq!(block_on(reached).expect("nobody poisons it"), 1);
        }
        publisher.join().expect("the publisher ends");
    });
}

#[test]
fn cancelled_waiter_leaves_nothing_behind_and_takes_no_wake_up_away() {
    explore(Bound::Preemptions(5), || {
        let watermark = Arc::new(Watermark::<Failure>::new(0));
        let cancelled = {
            let mut reached = watermark.reached_owned(1);
            thread::spawn(move || {
                let task = Parker::new();
                let _ = poll_once(&mut reached, &task);
                reached.rearm(2);
                assert!(poll_once(&mut reached, &task).is_pending(), "nobody publishes 2");
            })
        };
        let waiter = {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || watermark.wait(1).expect("nobody poisons it"))
        };
        watermark.publish(1);
        cancelled.join().expect("the cancelled wait ends");
        waiter.join().expect("the waiter ends");
        assert_eq!(watermark.waiting(), 0, "a cancelled wait is still registered");
    });
}

#[test]
fn poison_ends_every_wait_but_no_ack_already_given() {
    explore(Bound::Preemptions(4), || {
        let watermark = Arc::new(Watermark::<Failure>::new(0));
        let acked = {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || assert_eq!(watermark.wait(1).expect("1 was reached before the poison"), 1))
        };
        let lost = {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || assert_eq!(*watermark.wait(2).expect_err("2 is never reached").cause(), "fsync"))
        };
        watermark.publish(1);
        assert!(watermark.poison("fsync"));
        watermark.publish(2);
        assert_eq!(watermark.load(), 1, "a poisoned watermark moved");
        acked.join().expect("the acked waiter ends");
        lost.join().expect("the lost waiter ends");
        assert_eq!(watermark.waiting(), 0);
    });
}
