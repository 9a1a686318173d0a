//! Hints: what owners that cannot be reached miss is handed to nodes that stand in for them.
//!
//! Invariants: of one write, a fallback node counts for one owner at most, so each counts for a disk of its own; an owner that
//! has the write itself is not counted a second time; what was acknowledged with the help of a fallback is never called strict.
//! Source: Dynamo (DeCandia et al., SOSP 2007), section 4.6.

use bytes::Bytes;
use replikit_core::{Batches, NodeId, OriginId};

use crate::levels::{Owners, Set};
use crate::message::{Head, Hint};
use crate::replica::Leaderless;

/// Writes that are handed over again in one exchange.
pub(crate) const AGAIN_MAX: usize = 256;

/// The fallback nodes that have a write on their disks, and for which owner each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hinted(Vec<(NodeId, u32)>);

impl Hinted {
    /// A fallback node has it on disk for this owner.
    pub(crate) fn insert(&mut self, by: NodeId, owner: u32) {
        if self.0.iter().all(|(other, of)| *other != by && *of != owner) {
            self.0.push((by, owner));
        }
    }

    /// Owners in whose place a fallback has it.
    pub(crate) fn owners(&self) -> Set {
        let mut set = Set::default();
        self.0.iter().for_each(|(_, owner)| set.insert(*owner));
        set
    }
}

impl Leaderless {
    /// Owners that are known not to be reachable.
    fn unreachable(&self) -> Vec<u32> {
        self.owners.others().filter(|node| self.is_away(*node)).filter_map(|node| self.owners.index(node)).collect()
    }

    /// Hands over what this write makes of its key, for every owner that cannot be reached and has not answered.
    pub(crate) fn hint(&mut self, origin: OriginId, sequence: u64, key: &Bytes, has: Set) {
        if self.incarnated > self.durable {
            return;
        }
        let mut fallbacks: Vec<NodeId> =
            self.config.fallbacks.nodes.iter().copied().filter(|node| !self.down.contains(node)).collect();
        if fallbacks.is_empty() {
            return;
        }
        // Another one each time: the first choice may be full.
        let turn = self.hint_turn % fallbacks.len();
        fallbacks.rotate_left(turn);
        let owners = self.unreachable().into_iter().filter(|index| !has.contains(*index));
        let pairs: Vec<(u32, NodeId)> = owners.zip(fallbacks).collect();
        for (index, to) in pairs {
            let owner = self.owners.node(index);
            let copy = self.state.copy(key);
            let hint = Hint { epoch: self.epoch, origin, sequence, owner, key: key.clone(), copy };
            self.hints_sent += 1;
            self.send(to, Head::Hint(Box::new(hint)), Batches::None);
        }
    }

    /// At every exchange: what still waits for owners is handed over once more.
    pub(crate) fn hint_again(&mut self) {
        if self.config.fallbacks.nodes.is_empty() {
            return;
        }
        let Some(origin) = self.origin() else { return };
        self.hint_turn = self.hint_turn.wrapping_add(1);
        // That their links are down is hearsay: they are tried again.
        self.down.retain(|node| !self.config.fallbacks.nodes.contains(node));
        for (sequence, key, has) in self.writing.unfinished(AGAIN_MAX) {
            self.hint(origin, sequence, &key, has);
        }
    }

    /// A fallback node keeps an own write for an owner.
    pub(crate) fn handle_hinted(&mut self, from: NodeId, origin: OriginId, sequence: u64, owner: NodeId) {
        let Some(index) = self.owners.index(owner).filter(|index| *index != self.owners.me()) else {
            if !self.config.epochs.changes() {
                self.misbehaved(from, "a hint for who is no owner");
            }
            return;
        };
        if self.origin() == Some(origin) {
            self.writing.hinted(sequence, from, index);
            self.try_acknowledge(sequence);
        }
    }
}

impl Owners {
    /// Whether hints can help at this level: explicit numbers of owners mean owners.
    pub(crate) const fn takes_hints(level: replikit_core::WriteLevel) -> bool {
        use replikit_core::{Owners as Named, WriteLevel};
        matches!(level, WriteLevel::Quorum | WriteLevel::Owners(Named::Quorum | Named::Any))
    }
}
