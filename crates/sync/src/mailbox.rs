//! The mailbox: what threads and tasks leave for a loop, which takes all of it at once and is woken only when asleep.
//!
//! Invariants: see the double buffer: first in first out, each item once, at most `capacity_items` waiting, no wake-up
//! lost and none given to a loop that is awake. One loop, by type.

#[cfg(all(test, replikit_loom))]
mod model;

use crate::double_buffer::{Closed, DoubleBuffer, PushError, Taken};
use crate::waiters::Wakeup;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A mailbox for at most `capacity_items` waiting items (at least 1), as its two ends.
pub fn mailbox<T>(capacity_items: usize) -> (MailboxSender<T>, Mailbox<T>) {
    let buffer = Arc::new(DoubleBuffer::new(capacity_items));
    (MailboxSender { buffer: Arc::clone(&buffer) }, Mailbox { buffer })
}

/// The filling end; clone it for every sender. When the last one is dropped, the mailbox closes. No method waits for
/// space, so all are fit for async tasks.
#[derive(Debug)]
pub struct MailboxSender<T> {
    buffer: Arc<DoubleBuffer<T>>,
}

impl<T> MailboxSender<T> {
    /// Leaves an item.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] at the limit, [`PushError::Closed`] after the end; the item comes back.
    pub fn try_push(&self, item: T) -> Result<(), PushError<T>> {
        self.buffer.try_push(item).map(|_sequence| ())
    }

    /// Leaves as many items as there is space for, from the front, under one lock, and returns how many. What remains in
    /// `items` did not fit.
    ///
    /// # Errors
    ///
    /// [`Closed`] after the end; `items` is as before.
    pub fn push_all(&self, items: &mut Vec<T>) -> Result<usize, Closed<()>> {
        let before = items.len();
        self.buffer.push_all(items).map(|_sequences| before - items.len())
    }

    /// Whether pushes fail with `Closed`.
    pub fn is_closed(&self) -> bool {
        self.buffer.is_closed()
    }

    /// Items waiting. For metrics.
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

impl<T> Clone for MailboxSender<T> {
    fn clone(&self) -> Self {
        self.buffer.add_producer();
        Self { buffer: Arc::clone(&self.buffer) }
    }
}

impl<T> Drop for MailboxSender<T> {
    fn drop(&mut self) {
        self.buffer.remove_producer();
    }
}

/// The loop's end. Dropping it closes the mailbox and drops what was not taken.
#[derive(Debug)]
pub struct Mailbox<T> {
    buffer: Arc<DoubleBuffer<T>>,
}

impl<T> Mailbox<T> {
    /// Takes everything. Ready with `true` if there was something, with `false` once the mailbox is closed and drained;
    /// pending while it is empty, and then the context's task is woken by the next item or by the end.
    ///
    /// An empty `items` is swapped with the full buffer, so hand the same vector in again and nothing is allocated; to
    /// one that is not empty the items are appended.
    pub fn poll_drain(&mut self, context: &mut Context<'_>, items: &mut Vec<T>) -> Poll<bool> {
        let taken = match self.buffer.try_take(items) {
            Taken::Empty => self.buffer.take_or_sleep(items, Wakeup::Task(context.waker().clone())),
            taken => taken,
        };
        match taken {
            Taken::Items(_) => Poll::Ready(true),
            Taken::Closed => Poll::Ready(false),
            Taken::Empty => Poll::Pending,
        }
    }

    /// Like [`Self::poll_drain`], without asking to be woken.
    pub fn try_drain(&mut self, items: &mut Vec<T>) -> Taken {
        self.buffer.try_take(items)
    }

    /// Ends the mailbox for all senders; what was left in it can still be drained.
    pub fn close(&mut self) {
        self.buffer.close();
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.buffer.abandon();
    }
}
