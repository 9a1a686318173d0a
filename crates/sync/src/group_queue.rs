//! The group-commit queue: while the consumer syncs group k, the producers fill group k + 1.
//!
//! The consumer takes whatever is there, however much, with one swap; there is no timer and no batch size to choose: the
//! slower the sync, the larger the group. Producers learn of the sync through a [`Watermark`](crate::Watermark): they
//! wait until it reaches their item's sequence.
//!
//! Invariants: see the double buffer: sequences from 1 without gaps, first in first out, each item taken once, at most
//! `capacity_items` waiting (plus the group in the consumer's hands). One consumer, by type.
//!
//! Source: DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984, section 5.2 (group commit).

#[cfg(all(test, replikit_loom))]
mod model;

use crate::double_buffer::{Closed, DoubleBuffer, PushError, Taken};
use crate::primitives::Parker;
use crate::waiters::Wakeup;
use std::ops::Range;
use std::sync::Arc;

/// A queue for at most `capacity_items` waiting items (at least 1), as its two ends.
///
/// A larger limit absorbs longer syncs; a smaller one makes producers feel a slow disk sooner.
pub fn group_queue<T>(capacity_items: usize) -> (GroupProducer<T>, GroupConsumer<T>) {
    let buffer = Arc::new(DoubleBuffer::new(capacity_items));
    (GroupProducer { buffer: Arc::clone(&buffer) }, GroupConsumer { buffer })
}

/// The filling end; clone it for every producer. When the last one is dropped, the queue closes.
#[derive(Debug)]
pub struct GroupProducer<T> {
    buffer: Arc<DoubleBuffer<T>>,
}

impl<T> GroupProducer<T> {
    /// Adds an item and returns its sequence. Blocks while the queue is at its limit: not for an async task.
    ///
    /// # Errors
    ///
    /// [`Closed`] with the item, also if the queue closes while this blocks.
    pub fn push(&self, item: T) -> Result<u64, Closed<T>> {
        self.buffer.push(item)
    }

    /// Adds an item and returns its sequence. Never waits for space.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] at the limit, [`PushError::Closed`] after the end; the item comes back.
    pub fn try_push(&self, item: T) -> Result<u64, PushError<T>> {
        self.buffer.try_push(item)
    }

    /// Moves as many items as there is space for, from the front, under one lock, and returns their sequences. What
    /// remains in `items` did not fit; an empty range means that the queue is at its limit. Never waits for space.
    ///
    /// # Errors
    ///
    /// [`Closed`] after the end; `items` is as before.
    pub fn push_all(&self, items: &mut Vec<T>) -> Result<Range<u64>, Closed<()>> {
        self.buffer.push_all(items)
    }

    /// Ends the queue for all producers. What was pushed can still be taken.
    pub fn close(&self) {
        self.buffer.close();
    }

    /// Whether pushes fail with `Closed`.
    pub fn is_closed(&self) -> bool {
        self.buffer.is_closed()
    }

    /// Items waiting, without the group in the consumer's hands. For metrics.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The limit.
    pub fn capacity_items(&self) -> usize {
        self.buffer.capacity_items()
    }
}

impl<T> Clone for GroupProducer<T> {
    fn clone(&self) -> Self {
        self.buffer.add_producer();
        Self { buffer: Arc::clone(&self.buffer) }
    }
}

impl<T> Drop for GroupProducer<T> {
    fn drop(&mut self) {
        self.buffer.remove_producer();
    }
}

/// The taking end. Dropping it closes the queue and drops what was not taken, so a consumer that dies leaves no producer
/// blocked in [`GroupProducer::push`]. Those who wait for a watermark must be told by poisoning it.
#[derive(Debug)]
pub struct GroupConsumer<T> {
    buffer: Arc<DoubleBuffer<T>>,
}

impl<T> GroupConsumer<T> {
    /// Takes the next group, blocking while there is none, and returns its sequences. `None` once the queue is closed and
    /// drained.
    ///
    /// An empty `group` is swapped with the full buffer, so hand the same vector in again and nothing is allocated; to
    /// one that is not empty the items are appended.
    pub fn take(&mut self, group: &mut Vec<T>) -> Option<Range<u64>> {
        let parker = Parker::new();
        loop {
            match self.buffer.take_or_sleep(group, Wakeup::Thread(parker.unparker())) {
                Taken::Items(sequences) => return Some(sequences),
                Taken::Closed => return None,
                Taken::Empty => parker.park(),
            }
        }
    }

    /// Like [`Self::take`], without blocking.
    pub fn try_take(&mut self, group: &mut Vec<T>) -> Taken {
        self.buffer.try_take(group)
    }

    /// Ends the queue for all producers; what was pushed can still be taken.
    pub fn close(&mut self) {
        self.buffer.close();
    }
}

impl<T> Drop for GroupConsumer<T> {
    fn drop(&mut self) {
        self.buffer.abandon();
    }
}
