//! Where membership epochs come from, so that no strategy depends on another one to learn its membership.
//!
//! Invariants: epochs never go back, and one epoch names one membership for ever. A membership says since which epoch each of
//! its nodes has been a member without a break: so who has missed epochs still learns from the newest one who was evicted in
//! between, himself included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId, NodeInfo};

/// The members of a group in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Version.
    pub epoch: Epoch,
    /// Who belongs to it, ascending by node.
    pub nodes: Vec<NodeInfo>,
    /// The first epoch of the group.
    pub founded: Epoch,
    /// Nodes that have joined, or come back, after that: in which epoch they last did.
    pub joined: BTreeMap<NodeId, Epoch>,
    /// Who comes and goes, for strategies that change members in two steps.
    pub turnover: Turnover,
}

/// A change of members in two steps: first those who come are members beside those who go, and then, once the others have everything,
/// those who go are none any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turnover {
    /// Members that come with a change that is not complete yet: nobody counts what they have before they have caught up.
    pub joining: BTreeSet<NodeId>,
    /// Members that go with it: they are members until the others have everything that they have.
    pub leaving: BTreeSet<NodeId>,
    /// Nodes that have gone so, and were not named since: in which epoch the others had everything.
    pub left: BTreeMap<NodeId, Epoch>,
}

impl Turnover {
    /// Whether a change is under way.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.joining.is_empty() || !self.leaving.is_empty()
    }

    /// Whether this member comes or goes with it.
    #[must_use]
    pub fn moves(&self, node: NodeId) -> bool {
        self.joining.contains(&node) || self.leaving.contains(&node)
    }
}

impl Membership {
    /// The first membership of a group, as epoch 1.
    #[must_use]
    pub fn founding(mut nodes: Vec<NodeInfo>) -> Self {
        nodes.sort_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        Self { epoch: Epoch(1), nodes, founded: Epoch(1), joined: BTreeMap::new(), turnover: Turnover::default() }
    }

    /// The membership of the next epoch: those who stay keep their time, the others join with it.
    #[must_use]
    pub fn next(&self, mut nodes: Vec<NodeInfo>) -> Self {
        nodes.sort_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        let epoch = Epoch(self.epoch.0 + 1);
        let since = |node: &NodeInfo| (node.id, self.since(node.id).unwrap_or(epoch));
        let joined = nodes.iter().map(since).filter(|(_, since)| *since > self.founded).collect();
        Self { epoch, nodes, founded: self.founded, joined, turnover: Turnover::default() }
    }

    /// The first of two steps to these members: they join those who are there, and those who are not among them are to leave.
    #[must_use]
    pub fn towards(&self, nodes: Vec<NodeInfo>) -> Self {
        let wanted: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        let stay = self.nodes.iter().filter(|node| !wanted.contains(&node.id)).cloned();
        let mut next = self.next(nodes.into_iter().chain(stay).collect());
        let is_new = |node: &NodeId| !self.contains(*node) || self.turnover.joining.contains(node);
        let mut left = self.turnover.left.clone();
        left.retain(|node, _| !wanted.contains(node));
        next.turnover = Turnover {
            joining: next.ids().filter(is_new).collect(),
            leaving: self.ids().filter(|node| !wanted.contains(node)).collect(),
            left,
        };
        next
    }

    /// The second step: those who are to leave are gone, for the others have everything.
    #[must_use]
    pub fn completed(&self) -> Self {
        let Turnover { leaving, left, .. } = &self.turnover;
        let stay = self.nodes.iter().filter(|node| !leaving.contains(&node.id)).cloned().collect();
        let left = left.clone().into_iter().chain(leaving.iter().map(|node| (*node, self.epoch))).collect();
        Self { turnover: Turnover { left, ..Turnover::default() }, ..self.next(stay) }
    }

    /// One that is to leave is given up: what it has acknowledged by itself only is not waited for.
    #[must_use]
    pub fn without(&self, node: NodeId) -> Self {
        let mut turnover = self.turnover.clone();
        turnover.joining.remove(&node);
        turnover.leaving.remove(&node);
        let stay = self.nodes.iter().filter(|it| it.id != node).cloned().collect();
        Self { turnover, ..self.next(stay) }
    }

    /// The epoch since which a node has been a member without a break; `None` when it is none.
    #[must_use]
    pub fn since(&self, node: NodeId) -> Option<Epoch> {
        self.nodes
            .iter()
            .any(|member| member.id == node)
            .then(|| self.joined.get(&node).copied().unwrap_or(self.founded))
    }

    /// Whether a node belongs to it.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.since(node).is_some()
    }

    /// Whether nothing has changed since the group was founded.
    #[must_use]
    pub fn is_founding(&self) -> bool {
        self.epoch == self.founded
    }

    /// The members, ascending.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().map(|node| node.id)
    }
}

/// What a replica calls, among its [figures](crate::Figure), the newest epoch whose members have everything that was acknowledged before
/// it: those of earlier ones are needed for nothing any more.
pub const SETTLED_EPOCH: &str = "epoch whose owners have everything";

/// Tells a strategy which membership is in force. Implemented by [`StaticMembership`] and [`Announcements`]; a node may plug in
/// a replicated one.
///
/// What it tells never goes back, also not over a restart of its node: it was told before, or is read from where it lasts.
pub trait EpochSource: Send {
    /// The newest membership known. Never blocks; asked before every input.
    fn current(&self) -> &Membership;

    /// Whether a newer one may ever come.
    fn changes(&self) -> bool {
        true
    }
}

impl<E: EpochSource + Sync + ?Sized> EpochSource for Arc<E> {
    fn current(&self) -> &Membership {
        (**self).current()
    }

    fn changes(&self) -> bool {
        (**self).changes()
    }
}

/// A membership that never changes.
#[derive(Clone, Debug)]
pub struct StaticMembership(Membership);

impl StaticMembership {
    /// These nodes, for ever, as epoch 1.
    #[must_use]
    pub fn new(nodes: Vec<NodeInfo>) -> Self {
        Self(Membership::founding(nodes))
    }
}

impl EpochSource for StaticMembership {
    fn current(&self) -> &Membership {
        &self.0
    }

    fn changes(&self) -> bool {
        false
    }
}

/// Memberships that somebody announces, from any thread: whoever reads the replicated register that they come from. Shared in
/// an [`Arc`].
///
/// All that were announced are kept, a few hundred bytes each: a reader may hold on to any of them.
#[derive(Debug)]
pub struct Announcements {
    membership: Membership,
    next: OnceLock<Box<Self>>,
}

impl Announcements {
    /// Begins with this one.
    #[must_use]
    pub const fn new(membership: Membership) -> Self {
        Self { membership, next: OnceLock::new() }
    }

    fn newest(&self) -> &Self {
        let mut newest = self;
        while let Some(next) = newest.next.get() {
            newest = next;
        }
        newest
    }

    /// A newer membership is in force; one that is not newer than the newest changes nothing. Returns whether it is newer.
    pub fn announce(&self, membership: Membership) -> bool {
        let mut announced = Box::new(Self::new(membership));
        loop {
            let newest = self.newest();
            if announced.membership.epoch <= newest.membership.epoch {
                return false;
            }
            match newest.next.set(announced) {
                Ok(()) => return true,
                // Somebody was faster.
                Err(back) => announced = back,
            }
        }
    }
}

impl EpochSource for Announcements {
    fn current(&self) -> &Membership {
        &self.newest().membership
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: impl IntoIterator<Item = u32>) -> Vec<NodeInfo> {
        let info = |id| NodeInfo { id: NodeId(id), address: String::new(), region: String::new(), zone: String::new() };
        ids.into_iter().map(info).collect()
    }

    #[test]
    fn who_missed_epochs_learns_from_the_newest_one_who_was_evicted_in_between() {
        let first = Membership::founding(nodes([3, 1, 2]));
        assert!(first.is_founding() && first.ids().eq([1, 2, 3].map(NodeId)));
        let without = first.next(nodes([1, 2]));
        assert_eq!((without.since(NodeId(3)), without.since(NodeId(1))), (None, Some(Epoch(1))));
        let again = without.next(nodes([1, 2, 3, 4]));
        let since: Vec<Option<Epoch>> = (1..=4).map(|node| again.since(NodeId(node))).collect();
        assert_eq!(since, [1, 1, 3, 3].map(|epoch| Some(Epoch(epoch))));
        assert_eq!(again.next(nodes([3, 4])).since(NodeId(3)), Some(Epoch(3)), "who stays keeps the time");
    }

    #[test]
    fn a_change_in_two_steps_keeps_everybody_until_the_second() {
        let ids = |ids: &[u32]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let all = |membership: &Membership| membership.ids().collect::<BTreeSet<_>>();
        let first = Membership::founding(nodes([1, 2, 3]));
        let both = first.towards(nodes([3, 4]));
        assert_eq!(
            (all(&both), both.turnover.joining.clone(), both.turnover.leaving.clone()),
            (ids(&[1, 2, 3, 4]), ids(&[4]), ids(&[1, 2]))
        );
        assert!(both.turnover.is_open() && both.epoch == Epoch(2) && both.since(NodeId(1)) == Some(Epoch(1)));
        // Another plan before that one is complete: who has not caught up yet still has not, whether it stays or goes.
        let other = both.towards(nodes([1, 5]));
        let (come, go) = (ids(&[4, 5]), ids(&[2, 3, 4]));
        assert_eq!(
            (all(&other), other.turnover.joining.clone(), other.turnover.leaving.clone()),
            (ids(&[1, 2, 3, 4, 5]), come, go)
        );
        let without = other.without(NodeId(2));
        assert_eq!((all(&without), without.turnover.leaving.clone()), (ids(&[1, 3, 4, 5]), ids(&[3, 4])));
        let done = without.completed();
        assert_eq!((all(&done), done.turnover.is_open(), done.epoch), (ids(&[1, 5]), false, Epoch(5)));
        assert_eq!(
            done.turnover.left,
            [(NodeId(3), Epoch(4)), (NodeId(4), Epoch(4))].into(),
            "node 2 is not known to have left all"
        );
        assert_eq!(done.since(NodeId(5)), Some(Epoch(3)));
        assert_eq!(done.towards(nodes([1, 3])).turnover.left, [(NodeId(4), Epoch(4))].into());
    }

    #[test]
    fn announcements_never_go_back() {
        let first = Membership::founding(nodes([1, 2]));
        let (second, third) = (first.next(nodes([1])), first.next(nodes([1])).next(nodes([1, 2])));
        let source = Announcements::new(first);
        assert!(source.announce(third.clone()));
        assert!(!source.announce(second) && !source.announce(third.clone()));
        assert_eq!(source.current(), &third);
    }
}
