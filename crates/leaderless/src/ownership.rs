//! Which owners count, by epoch: the memberships of which each request needs a quorum, and the one that is to come.
//!
//! Invariants: what a replica knows of epochs only grows, and two that know different ones come to know the same by joining
//! what they know. A replica answers only requests that are counted in exactly the epochs that it counts in itself. Source:
//! joint quorums as in Ongaro's thesis section 4.3; configurations that are joined, not ordered: Jehl, Vitenberg, Meling 2015.

use replikit_core::{Epoch, Membership, NodeId, Origin};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::OWNERS_MAX;

/// The epochs that a node knows of.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ownership {
    /// The newest epoch whose owners have everything that was acknowledged before it; `None` while it is not known.
    pub settled: Option<Membership>,
    /// Later ones whose quorums are needed as well, ascending.
    pub joint: Vec<Membership>,
    /// The newest one that was announced, if it is later than these: its owners are getting ready.
    pub announced: Option<Membership>,
}

impl Ownership {
    /// The owners of one epoch, from whom nothing has to be carried over.
    #[must_use]
    pub const fn founding(membership: Membership) -> Self {
        Self { settled: Some(membership), joint: Vec::new(), announced: None }
    }

    /// An epoch was announced, and nothing else is known.
    #[must_use]
    pub const fn announced(membership: Membership) -> Self {
        Self { settled: None, joint: Vec::new(), announced: Some(membership) }
    }

    /// The same, with quorums of the owners of one more epoch.
    pub(crate) fn with(&self, membership: Membership) -> Self {
        let mut more = self.clone();
        more.merge(&Self { settled: None, joint: vec![membership], announced: None });
        more
    }

    /// Whether the owners are those that the group began with, and nobody has ever been evicted.
    pub(crate) fn is_founding(&self) -> bool {
        self.joint.is_empty() && self.settled.as_ref().is_some_and(Membership::is_founding)
    }

    /// The memberships whose quorums are needed, ascending by epoch.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = &Membership> + Clone {
        self.settled.iter().chain(self.settled.iter().flat_map(|_| &self.joint))
    }

    /// The newest epoch in force; 0 when none is known.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.in_force().last().map_or(Epoch(0), |membership| membership.epoch)
    }

    /// The newest epoch known.
    pub(crate) fn newest(&self) -> Epoch {
        self.announced.as_ref().map_or(Epoch(0), |announced| announced.epoch).max(self.epoch())
    }

    /// Whether quorums of more than one epoch are needed.
    pub(crate) const fn is_joint(&self) -> bool {
        self.settled.is_some() && !self.joint.is_empty()
    }

    /// Names the epochs in force: equal only for the same ones. That of a settled epoch is its own number.
    pub(crate) fn number(&self) -> Epoch {
        if !self.is_joint() {
            return self.epoch();
        }
        let epochs: Vec<u8> = self.in_force().flat_map(|membership| membership.epoch.0.to_le_bytes()).collect();
        Epoch(xxh3_64(&epochs) | 1 << 63)
    }

    /// Whether a node owns something in an epoch in force.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.in_force().any(|membership| membership.contains(node))
    }

    /// Whether a node is to become an owner.
    pub(crate) fn announces(&self, node: NodeId) -> bool {
        self.announced.as_ref().is_some_and(|announced| announced.contains(node))
    }

    /// Takes in what another node knows; returns whether anything was new.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        let before = self.clone();
        let epoch_of = |membership: &Option<Membership>| membership.as_ref().map(|membership| membership.epoch);
        if epoch_of(&other.settled) > epoch_of(&self.settled) {
            self.settled.clone_from(&other.settled);
        }
        self.joint.extend(other.joint.iter().cloned());
        let settled = epoch_of(&self.settled);
        self.joint.retain(|membership| Some(membership.epoch) > settled);
        self.joint.sort_by_key(|membership| membership.epoch);
        self.joint.dedup_by_key(|membership| membership.epoch);
        if epoch_of(&other.announced) > epoch_of(&self.announced) {
            self.announced.clone_from(&other.announced);
        }
        let in_force = self.joint.last().map(|membership| membership.epoch).or(settled);
        self.announced.take_if(|announced| Some(announced.epoch) <= in_force);
        *self != before
    }

    /// Whether a replica can count in it: a peer may say anything.
    pub(crate) fn is_sound(&self) -> bool {
        let all = || self.settled.iter().chain(&self.joint).chain(&self.announced);
        let mut nodes: Vec<NodeId> = all().flat_map(Membership::ids).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len() <= OWNERS_MAX
            && nodes.iter().all(|node| *node <= Origin::NODE_MAX)
            && all().all(|membership| !membership.nodes.is_empty() && membership.ids().is_sorted_by(|a, b| a < b))
    }

    /// Whether a node that owned something in `before` has owned it without a break since: otherwise others have closed what
    /// they have of its writes. That happens as an epoch without it is settled: of those that are joint nothing is over yet.
    pub(crate) fn continues(&self, before: &Self, node: NodeId) -> bool {
        let Some(settled) = &self.settled else { return false };
        let owned =
            before.in_force().filter(|membership| membership.contains(node) && membership.epoch <= settled.epoch);
        let last = owned.map(|membership| membership.epoch).max();
        last.is_none_or(|last| settled.since(node).is_some_and(|since| since <= last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikit_core::NodeInfo;

    fn nodes(ids: impl IntoIterator<Item = u32>) -> Vec<NodeInfo> {
        let info = |id| NodeInfo { id: NodeId(id), address: String::new(), region: String::new(), zone: String::new() };
        ids.into_iter().map(info).collect()
    }

    #[test]
    fn what_is_known_of_epochs_joins_in_any_order() {
        let first = Membership::founding(nodes(1..=3));
        let (second, third) = (first.next(nodes(2..=4)), first.next(nodes(2..=4)).next(nodes(3..=5)));
        let base = Ownership::founding(first);
        let parts = [
            base.with(second.clone()),
            base.with(third.clone()),
            Ownership::founding(second),
            Ownership::announced(third.clone()),
        ];
        let mut all = base.clone();
        for part in &parts {
            all.merge(part);
        }
        for turn in 0..24 {
            let mut order = parts.clone();
            order.rotate_left(turn % 4);
            order.swap(turn / 4 % 4, turn / 8);
            let mut other = base.clone();
            for part in &order {
                other.merge(part);
            }
            assert_eq!(other, all);
        }
        assert_eq!(all.settled.as_ref().map(|settled| settled.epoch), Some(Epoch(2)));
        assert_eq!((all.joint.clone(), all.announced.clone()), (vec![third], None));
        assert!(!all.merge(&base), "what is older says nothing new");
    }

    #[test]
    fn different_epochs_in_force_have_different_numbers() {
        let first = Membership::founding(nodes(1..=3));
        let (second, third) = (first.next(nodes(2..=4)), first.next(nodes(2..=4)).next(nodes(3..=5)));
        let base = Ownership::founding(first);
        let views = [
            Ownership::default(),
            base.clone(),
            base.with(second.clone()),
            base.with(third.clone()),
            base.with(second.clone()).with(third.clone()),
            Ownership::founding(second.clone()),
            Ownership::founding(second).with(third.clone()),
            Ownership::founding(third),
        ];
        let numbers: std::collections::BTreeSet<Epoch> = views.iter().map(Ownership::number).collect();
        assert_eq!(numbers.len(), views.len());
        assert_eq!(views[1].number(), Epoch(1), "of one epoch its own");
    }

    #[test]
    fn who_was_evicted_while_it_was_away_has_not_continued() {
        let first = Membership::founding(nodes(1..=3));
        let without = first.next(nodes(1..=2));
        let back = without.next(nodes(1..=3));
        let base = Ownership::founding(first);
        let (three, two) = (NodeId(3), NodeId(2));
        assert!(Ownership::founding(back.clone()).continues(&base, two));
        assert!(!Ownership::founding(back.clone()).continues(&base, three), "evicted in between");
        assert!(Ownership::founding(back.clone()).continues(&base.with(back), three), "it has counted in that epoch");
        assert!(!Ownership::founding(without).continues(&base, three));
    }

    #[test]
    fn who_owns_in_a_joint_epoch_only_continues_while_more_of_them_join() {
        let first = Membership::founding(nodes(1..=3));
        let second = first.next(nodes(4..=6));
        let (third, gone) = (second.next(nodes([4, 5, 7])), second.next(nodes([7, 8])));
        let joint = Ownership::founding(first).with(second);
        let four = NodeId(4);
        assert!(joint.with(third.clone()).continues(&joint, four), "nothing is settled without it");
        assert!(Ownership::founding(third).continues(&joint, four));
        assert!(joint.with(gone.clone()).continues(&joint, four), "it is still needed");
        let back = gone.next(nodes([4, 7, 8]));
        assert!(!Ownership::founding(gone).with(back.clone()).continues(&joint, four), "evicted in between");
        assert!(!Ownership::founding(back).continues(&joint, four));
    }
}
