//! The double buffer: producers fill one vector while the consumer works on the other; a swap exchanges them.
//!
//! The core under [`mod@crate::group_queue`] (a consumer that blocks) and [`mod@crate::mailbox`] (a consumer that is polled).
//!
//! Invariants:
//!
//! - Sequences start at 1 and have no gaps; items leave in the order of their sequences, each once.
//! - At most `capacity_items` lie in the buffer being filled.
//! - `sleeper` is set only while the consumer sleeps or is about to, and only when the buffer is empty: so a producer
//!   wakes it at most once per sleep, and not at all while it works.
//! - The lock is held for moving items only: wake-ups, wakers and dropped items are outside.

use crate::primitives::{Condvar, Mutex, MutexGuard};
use crate::waiters::Wakeup;
use crate::weakening::{Weakening, planted};
use std::fmt;
use std::ops::Range;

/// Nobody takes any more: the queue was closed, or its consumer is gone. The item comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed<T>(pub T);

impl<T> fmt::Display for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is closed")
    }
}

impl<T: fmt::Debug> std::error::Error for Closed<T> {}

/// Why an item was not taken in. It comes back, and the queue is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// `capacity_items` items wait already: the consumer is behind. Shed load or try again later.
    Full(T),
    /// Closed, or the consumer is gone. Final.
    Closed(T),
}

impl<T> fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the queue is at its limit",
            Self::Closed(_) => "the queue is closed",
        })
    }
}

impl<T: fmt::Debug> std::error::Error for PushError<T> {}

/// What a look into the queue found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The items with these sequences are in the caller's vector.
    Items(Range<u64>),
    /// Nothing at the moment.
    Empty,
    /// Nothing, and nothing will come: closed and drained.
    Closed,
}

#[derive(Debug)]
pub(crate) struct DoubleBuffer<T> {
    capacity_items: usize,
    state: Mutex<State<T>>,
    /// Producers that wait for space.
    space: Condvar,
}

#[derive(Debug)]
struct State<T> {
    filling: Vec<T>,
    /// The sequence of the next item; `filling` holds the ones just below.
    next_sequence: u64,
    closed: bool,
    producers: usize,
    /// How many of them wait on `space`.
    producers_blocked: usize,
    sleeper: Option<Wakeup>,
}

impl<T> DoubleBuffer<T> {
    /// Most vectors start with room for this many items and grow from there.
    const INITIAL_ITEMS_MAX: usize = 1024;

    /// With one producer counted.
    pub(crate) fn new(capacity_items: usize) -> Self {
        assert!(capacity_items > 0, "a queue without room for an item can never pass one on");
        Self {
            capacity_items,
            state: Mutex::new(State {
                filling: Vec::with_capacity(capacity_items.min(Self::INITIAL_ITEMS_MAX)),
                next_sequence: 1,
                closed: false,
                producers: 1,
                producers_blocked: 0,
                sleeper: None,
            }),
            space: Condvar::new(),
        }
    }

    pub(crate) fn capacity_items(&self) -> usize {
        self.capacity_items
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().filling.len()
    }

    pub(crate) fn push(&self, item: T) -> Result<u64, Closed<T>> {
        self.wake_early_if_planted();
        let mut state = self.state.lock();
        while !state.closed && state.filling.len() >= self.capacity_items {
            state.producers_blocked += 1;
            state = self.space.wait(state);
            state.producers_blocked -= 1;
        }
        if state.closed {
            return Err(Closed(item));
        }
        state.filling.push(item);
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        Self::unlock_and_wake(state);
        Ok(sequence)
    }

    pub(crate) fn try_push(&self, item: T) -> Result<u64, PushError<T>> {
        self.wake_early_if_planted();
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed(item));
        }
        if state.filling.len() >= self.capacity_items {
            return Err(PushError::Full(item));
        }
        state.filling.push(item);
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        Self::unlock_and_wake(state);
        Ok(sequence)
    }

    pub(crate) fn push_all(&self, items: &mut Vec<T>) -> Result<Range<u64>, Closed<()>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed(()));
        }
        let first = state.next_sequence;
        let count = items.len().min(self.capacity_items.saturating_sub(state.filling.len()));
        if count == 0 {
            return Ok(first..first);
        }
        if count == items.len() {
            state.filling.append(items);
        } else {
            state.filling.extend(items.drain(..count));
        }
        state.next_sequence += count as u64;
        Self::unlock_and_wake(state);
        Ok(first..first + count as u64)
    }

    pub(crate) fn try_take(&self, out: &mut Vec<T>) -> Taken {
        self.take_from(self.state.lock(), out).1
    }

    /// Like [`Self::try_take`]; if there is nothing, `wakeup` is used as soon as there is.
    pub(crate) fn take_or_sleep(&self, out: &mut Vec<T>, wakeup: Wakeup) -> Taken {
        let (state, taken) = self.take_from(self.state.lock(), out);
        let Some(mut state) = state else { return taken };
        if planted(Weakening::QueueSleepWithoutRecheck) {
            drop(state);
            state = self.state.lock();
        }
        if planted(Weakening::MailboxStaleWaker) && state.sleeper.is_some() {
            return taken;
        }
        let former = state.sleeper.replace(wakeup);
        drop(state);
        drop(former);
        taken
    }

    /// Takes what is there. The lock comes back only with [`Taken::Empty`].
    fn take_from<'a>(
        &self,
        mut state: MutexGuard<'a, State<T>>,
        out: &mut Vec<T>,
    ) -> (Option<MutexGuard<'a, State<T>>>, Taken) {
        let count = state.filling.len();
        if count == 0 {
            return if state.closed { (None, Taken::Closed) } else { (Some(state), Taken::Empty) };
        }
        if out.is_empty() {
            std::mem::swap(&mut state.filling, out);
        } else {
            out.append(&mut state.filling);
        }
        let sequences = state.next_sequence - count as u64..state.next_sequence;
        let blocked = state.producers_blocked > 0 && !planted(Weakening::QueueTakeWithoutSpaceNotice);
        drop(state);
        if blocked {
            self.space.notify_all();
        }
        (None, Taken::Items(sequences))
    }

    /// What was pushed can still be taken.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let blocked = state.producers_blocked > 0;
        if planted(Weakening::QueueCloseWithoutWake) {
            drop(state);
        } else {
            Self::unlock_and_wake(state);
        }
        if blocked {
            self.space.notify_all();
        }
    }

    /// The consumer goes away: closes, and drops what was not taken.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let items = std::mem::take(&mut state.filling);
        let sleeper = state.sleeper.take();
        let blocked = state.producers_blocked > 0 && !planted(Weakening::QueueAbandonWithoutSpaceNotice);
        drop(state);
        if blocked {
            self.space.notify_all();
        }
        drop(sleeper);
        drop(items);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(crate) fn add_producer(&self) {
        self.state.lock().producers += 1;
    }

    /// The last one closes the queue.
    pub(crate) fn remove_producer(&self) {
        let mut state = self.state.lock();
        state.producers -= 1;
        if state.producers == 0 {
            drop(state);
            self.close();
        }
    }

    fn unlock_and_wake(mut state: MutexGuard<'_, State<T>>) {
        let sleeper =
            if planted(Weakening::QueueWakeBeforePush) && !state.closed { None } else { state.sleeper.take() };
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// The other half of [`Weakening::QueueWakeBeforePush`].
    #[inline(always)]
    fn wake_early_if_planted(&self) {
        if planted(Weakening::QueueWakeBeforePush) {
            let sleeper = self.state.lock().sleeper.take();
            if let Some(sleeper) = sleeper {
                sleeper.wake();
            }
        }
    }
}
