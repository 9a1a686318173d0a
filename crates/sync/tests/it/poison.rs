//! The poison broadcast.

use crate::task::block_on;
use replikit_sync::Poison;
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn one_of_many_errors_wins_and_all_waiters_get_it() {
    let poison = Arc::new(Poison::<usize>::new());
    assert!(poison.poisoned().is_none());
    let start = Arc::new(Barrier::new(12));
    let waiters: Vec<_> = (0..8)
        .map(|kind| {
            let (poison, start) = (Arc::clone(&poison), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                if kind % 2 == 0 { *poison.wait().cause() } else { *block_on(poison.until_poisoned()).cause() }
            })
        })
        .collect();
    let setters: Vec<_> = (0..4)
        .map(|error| {
            let (poison, start) = (Arc::clone(&poison), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                poison.set(error)
            })
        })
        .collect();
    let won: Vec<_> = setters.into_iter().map(|setter| setter.join().unwrap()).collect();
    let winner = won.iter().position(|won| *won).unwrap();
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), winner);
    }
    assert_eq!(*poison.wait().cause(), winner, "a waiter that comes later");
    assert_eq!(poison.waiting(), 0);
}

/// okaywal 0.3.1 left its waiters blocked for ever after a failed fsync.
#[test]
fn waiters_blocked_before_the_error_are_released() {
    let poison = Arc::new(Poison::<&'static str>::new());
    let waiters: Vec<_> = (0..16)
        .map(|_| {
            let poison = Arc::clone(&poison);
            thread::spawn(move || *poison.wait().into_cause())
        })
        .collect();
    while poison.waiting() < 16 {
        thread::yield_now();
    }
    assert!(poison.set("fsync failed"));
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), "fsync failed");
    }
}
