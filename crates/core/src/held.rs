//! What waits for durability.
//!
//! Invariant: items leave in the order in which they were held, and only once the storage action that they depend on is
//! durable. This is the one place where "do not send before it is on disk" is kept, for every strategy.

use std::collections::VecDeque;

use crate::WriteId;

/// Items that must not leave before a [`WriteId`] is durable, first in first out.
#[derive(Debug)]
pub struct Held<T> {
    items: VecDeque<(WriteId, T)>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { items: VecDeque::new() }
    }
}

impl<T> Held<T> {
    /// Nothing held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds an item until `until` is durable. Items must come with non-decreasing write ids.
    ///
    /// # Panics
    /// When `until` is below that of the item before: an item could otherwise wait behind one it does not depend on, which
    /// only a bug of the replica can cause.
    pub fn hold(&mut self, until: WriteId, item: T) {
        assert!(
            self.items.back().is_none_or(|(last, _)| *last <= until),
            "items are held in the order of their writes"
        );
        self.items.push_back((until, item));
    }

    /// The next item whose write is covered by `durable`.
    pub fn release(&mut self, durable: WriteId) -> Option<T> {
        match self.items.front() {
            Some((until, _)) if *until <= durable => self.items.pop_front().map(|(_, item)| item),
            _ => None,
        }
    }

    /// Drops everything that is still held, oldest first: the storage failed, or the role that wanted it ended.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.items.drain(..).map(|(_, item)| item)
    }

    /// Keeps only the items for which the predicate holds; the order stays.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.items.retain(|(_, item)| keep(item));
    }

    /// Gives back memory that the items held do not need.
    pub fn shrink_to_fit(&mut self) {
        self.items.shrink_to_fit();
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Number of items held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_in_order_and_never_early() {
        let mut held = Held::new();
        held.hold(WriteId(1), 'a');
        held.hold(WriteId(1), 'b');
        held.hold(WriteId(3), 'c');
        assert_eq!(held.release(WriteId(0)), None);
        assert_eq!(held.release(WriteId(2)), Some('a'));
        assert_eq!(held.release(WriteId(2)), Some('b'));
        assert_eq!(held.release(WriteId(2)), None);
        assert_eq!(held.release(WriteId(3)), Some('c'));
        assert!(held.is_empty());
    }
}
