//! Which group must be woken when.
//!
//! Invariant: at most one deadline a group; the earliest is known without a search.

use std::collections::BTreeSet;

use replikit_core::Time;

use crate::writes::SlotId;

/// The deadlines of all groups.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    order: BTreeSet<(Time, SlotId)>,
    earliest: Option<Time>,
}

impl Deadlines {
    /// A group's deadline changed.
    pub(crate) fn replace(&mut self, slot: SlotId, old: Option<Time>, new: Option<Time>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.order.remove(&(old, slot));
        }
        if let Some(new) = new {
            self.order.insert((new, slot));
        }
        self.earliest = self.order.first().map(|&(at, _)| at);
    }

    /// The earliest deadline.
    pub(crate) const fn earliest(&self) -> Option<Time> {
        self.earliest
    }

    /// A group whose deadline has come; it leaves the order until its next deadline is known.
    pub(crate) fn due(&mut self, now: Time) -> Option<SlotId> {
        if self.earliest.is_none_or(|at| at > now) {
            return None;
        }
        let (_, slot) = self.order.pop_first().expect("there is an earliest one");
        self.earliest = self.order.first().map(|&(at, _)| at);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_woken_in_the_order_of_their_deadlines() {
        let mut deadlines = Deadlines::default();
        deadlines.replace(1, None, Some(Time(30)));
        deadlines.replace(2, None, Some(Time(10)));
        deadlines.replace(3, None, Some(Time(20)));
        deadlines.replace(2, Some(Time(10)), Some(Time(40)));
        deadlines.replace(1, Some(Time(30)), None);
        assert_eq!(deadlines.earliest(), Some(Time(20)));
        assert_eq!(deadlines.due(Time(19)), None);
        assert_eq!(deadlines.due(Time(40)), Some(3));
        assert_eq!(deadlines.due(Time(40)), Some(2));
        assert_eq!((deadlines.due(Time(99)), deadlines.earliest()), (None, None));
    }
}
