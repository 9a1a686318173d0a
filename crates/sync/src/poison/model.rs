//! Loom models of the poison broadcast.

use super::Poison;
use crate::exploration::{Bound, block_on, explore};
use loom::thread;
use std::sync::Arc;

#[test]
fn first_error_wins_and_reaches_every_waiter() {
    explore(Bound::Exhaustive, || {
        let poison = Arc::new(Poison::<u32>::new());
        let other = {
            let poison = Arc::clone(&poison);
            thread::spawn(move || poison.set(2))
        };
        let waiter = {
            let poison = Arc::clone(&poison);
            thread::spawn(move || *poison.wait().cause())
        };
        let won = poison.set(1);
        let seen = *poison.wait().cause();
        assert_eq!(seen == 1, won, "the cause is not the winner's");
        assert_eq!(other.join().expect("the other setter ends"), !won, "not exactly one error won");
        assert_eq!(waiter.join().expect("the waiter ends"), seen, "two waiters were told different errors");
        assert_eq!(poison.waiting(), 0);
    });
}

#[test]
fn waiting_task_is_woken_by_the_error() {
    explore(Bound::Exhaustive, || {
        let poison = Arc::new(Poison::<u32>::new());
        assert!(poison.poisoned().is_none());
        let task = {
            let poison = Arc::clone(&poison);
            thread::spawn(move || assert_eq!(*block_on(poison.until_poisoned()).cause(), 1))
        };
        assert!(poison.set(1));
        assert!(poison.poisoned().is_some());
        task.join().expect("the task ends");
        assert_eq!(poison.waiting(), 0);
    });
}
