//! The storage actions of all groups in one sequence.
//!
//! Invariant: the container's n-th action is the n-th that was handed out, whichever group it came from; the actions under
//! way are remembered in that order, so one watermark for the node becomes one for each group that it touches.

use std::collections::VecDeque;

use replikit_core::WriteId;

/// Place of a group in its container.
pub(crate) type SlotId = u32;

/// Renumbers storage actions.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    handed_out: WriteId,
    under_way: VecDeque<(SlotId, WriteId)>,
}

impl Writes {
    /// The container's number for a group's next action.
    pub(crate) fn renumber(&mut self, slot: SlotId, id: WriteId) -> WriteId {
        self.under_way.push_back((slot, id));
        self.handed_out = self.handed_out.next();
        self.handed_out
    }

    /// How many are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The oldest action under way, if it is durable by now: whose it is, and its number there.
    pub(crate) fn durable(&mut self, up_to: WriteId) -> Option<(SlotId, WriteId)> {
        let oldest = self.handed_out.0 + 1 - self.under_way.len() as u64;
        if oldest > up_to.0 { None } else { self.under_way.pop_front() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_without_gaps_and_come_back_in_order() {
        let mut writes = Writes::default();
        assert_eq!(writes.durable(WriteId(9)), None);
        assert_eq!(writes.renumber(4, WriteId(1)), WriteId(1));
        assert_eq!(writes.renumber(2, WriteId(1)), WriteId(2));
        assert_eq!(writes.renumber(4, WriteId(2)), WriteId(3));
        assert_eq!(writes.durable(WriteId(2)), Some((4, WriteId(1))));
        assert_eq!(writes.durable(WriteId(2)), Some((2, WriteId(1))));
        assert_eq!(writes.durable(WriteId(2)), None);
        assert_eq!(writes.renumber(2, WriteId(2)), WriteId(4));
        assert_eq!(writes.durable(WriteId(99)), Some((4, WriteId(2))));
        assert_eq!(writes.durable(WriteId(99)), Some((2, WriteId(2))));
        assert_eq!(writes.durable(WriteId(99)), None, "more than was handed out cannot be durable");
    }
}
