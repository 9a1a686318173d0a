//! Who waits for which position: threads and tasks in one list, ordered by position.
//!
//! A plain structure that lives under its owner's lock. Invariant: sorted by (position, arrival), each waiter once, so
//! that all waiters of a reached position are a prefix. Nothing here calls foreign code: wakers are cloned before the
//! lock is taken, and woken and dropped after it was released, because a waker may drop a task whose future then cancels
//! another wait on the same list.

use crate::primitives::Unparker;
use std::collections::VecDeque;
use std::task::Waker;

/// How to wake one waiter.
#[derive(Debug)]
pub(crate) enum Wakeup {
    Thread(Unparker),
    Task(Waker),
}

impl Wakeup {
    pub(crate) fn wake(self) {
        match self {
            Self::Thread(unparker) => unparker.unpark(),
            Self::Task(waker) => waker.wake(),
        }
    }
}

/// Names one registration. Ordered like the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterKey {
    at_least: u64,
    arrival: u64,
}

#[derive(Debug)]
struct Waiter {
    key: WaiterKey,
    wakeup: Wakeup,
}

/// The list. As long as there are blocked threads and live futures; it has no limit of its own.
#[derive(Debug)]
pub(crate) struct Waiters {
    queue: VecDeque<Waiter>,
    arrivals: u64,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), arrivals: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Most waiters come in the order of their positions: then this is a push at the end.
    pub(crate) fn insert(&mut self, at_least: u64, wakeup: Wakeup) -> WaiterKey {
        self.arrivals += 1;
        let key = WaiterKey { at_least, arrival: self.arrivals };
        match self.queue.back() {
            Some(last) if last.key > key => {
                let at = self.queue.partition_point(|waiter| waiter.key < key);
                self.queue.insert(at, Waiter { key, wakeup });
            }
            _ => self.queue.push_back(Waiter { key, wakeup }),
        }
        key
    }

    /// Gives back the old wake-up, or the new one if the waiter is no longer in the list.
    pub(crate) fn replace(&mut self, key: WaiterKey, wakeup: Wakeup) -> Result<Wakeup, Wakeup> {
        match self.queue.binary_search_by_key(&key, |waiter| waiter.key) {
            Ok(at) => Ok(std::mem::replace(&mut self.queue[at].wakeup, wakeup)),
            Err(_) => Err(wakeup),
        }
    }

    /// `None` if the waiter was taken already.
    pub(crate) fn remove(&mut self, key: WaiterKey) -> Option<Wakeup> {
        let at = self.queue.binary_search_by_key(&key, |waiter| waiter.key).ok()?;
        self.queue.remove(at).map(|waiter| waiter.wakeup)
    }

    /// Moves waiters for positions up to `position` into `batch`; true if it filled up before they ended.
    pub(crate) fn take_reached(&mut self, position: u64, batch: &mut WakeBatch) -> bool {
        while self.queue.front().is_some_and(|waiter| waiter.key.at_least <= position) {
            if batch.is_full() {
                return true;
            }
            let waiter = self.queue.pop_front().expect("the front was just looked at");
            batch.push(waiter.wakeup);
        }
        false
    }
}

/// Wake-ups carried out of the lock, without an allocation.
pub(crate) struct WakeBatch {
    wakeups: [Option<Wakeup>; Self::WAKEUPS_MAX],
    len: usize,
}

impl WakeBatch {
    const WAKEUPS_MAX: usize = 64;

    pub(crate) fn new() -> Self {
        Self { wakeups: [const { None }; Self::WAKEUPS_MAX], len: 0 }
    }

    fn is_full(&self) -> bool {
        self.len == Self::WAKEUPS_MAX
    }

    fn push(&mut self, wakeup: Wakeup) {
        self.wakeups[self.len] = Some(wakeup);
        self.len += 1;
    }

    /// Call with no lock held.
    pub(crate) fn wake_all(self) {
        for wakeup in self.wakeups.into_iter().take(self.len).flatten() {
            wakeup.wake();
        }
    }
}
