//! Which owners have to take part in a request, by the level that it asks for.
//!
//! Invariant: owners are counted by node, never by message: a set of them is a word with one bit for each.

use std::sync::Arc;

use replikit_core::{Membership, NodeId, Owners as Named, ReadLevel, WriteLevel, quorum};

use crate::config::Quorums;

/// A set of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Set(u64);

impl Set {
    pub(crate) fn insert(&mut self, index: u32) {
        self.0 |= 1 << index;
    }

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    pub(crate) const fn contains(self, index: u32) -> bool {
        self.0 & (1 << index) != 0
    }
}

/// What a set of owners has to meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// So many of all.
    Count(u8),
    /// So many of each of these sets.
    Each(Arc<[(Set, u8)]>),
}

impl Need {
    pub(crate) fn is_met(&self, by: Set) -> bool {
        match self {
            Self::Count(count) => by.len() >= *count,
            Self::Each(parts) => parts.iter().all(|(set, count)| Set(set.0 & by.0).len() >= *count),
        }
    }

    /// Whether one more owner is of use when these have answered or been asked.
    pub(crate) fn wants(&self, index: u32, by: Set) -> bool {
        match self {
            Self::Count(count) => by.len() < *count,
            Self::Each(parts) => {
                let lacks = |(set, count): &(Set, u8)| set.contains(index) && Set(set.0 & by.0).len() < *count;
                !by.contains(index) && parts.iter().any(lacks)
            }
        }
    }
}

/// What a write needs before it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteNeed {
    /// Owners that have applied it and found nothing newer.
    pub(crate) applied: Need,
    /// Owners that have it on disk.
    pub(crate) durable: Need,
    /// Whether fallback nodes count in the place of owners.
    pub(crate) hints_count: bool,
}

/// The owners of the group, and its quorums.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    nodes: Vec<NodeId>,
    me: u32,
    read: u8,
    write: u8,
    durable: u8,
    /// Those in this node's region, and a majority of them.
    local: (Set, u8),
    regions: Arc<[(Set, u8)]>,
}

impl Owners {
    /// `me` is among them, and the quorums are possible: checked with the configuration.
    pub(crate) fn new(membership: &Membership, me: NodeId, quorums: Quorums) -> Self {
        let nodes: Vec<NodeId> = membership.nodes.iter().map(|node| node.id).collect();
        let index = nodes.iter().position(|node| *node == me).expect("checked with the configuration") as u32;
        let mut regions: Vec<(&str, Set)> = Vec::new();
        for (at, node) in membership.nodes.iter().enumerate() {
            match regions.iter_mut().find(|(region, _)| *region == node.region) {
                Some((_, set)) => set.insert(at as u32),
                None => regions.push((&node.region, Set(1 << at))),
            }
        }
        let half = |set: Set| (set, quorum::majority(set.len().into()) as u8);
        let local = regions.iter().map(|(_, set)| *set).find(|set| set.contains(index)).expect("it is in some region");
        let n = nodes.len() as u8;
        Self {
            me: index,
            read: quorums.read.of(n),
            write: quorums.write.of(n),
            durable: quorums.durable.of(n),
            local: half(local),
            regions: regions.iter().map(|(_, set)| half(*set)).collect(),
            nodes,
        }
    }

    /// All of them, ascending.
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// N.
    pub(crate) fn len(&self) -> u8 {
        self.nodes.len() as u8
    }

    /// This node.
    pub(crate) const fn me(&self) -> u32 {
        self.me
    }

    pub(crate) fn index(&self, node: NodeId) -> Option<u32> {
        self.nodes.binary_search(&node).ok().map(|at| at as u32)
    }

    pub(crate) fn node(&self, index: u32) -> NodeId {
        self.nodes[index as usize]
    }

    /// All but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        let me = self.nodes[self.me as usize];
        self.nodes.iter().copied().filter(move |node| *node != me)
    }

    /// All but those of which this is true.
    pub(crate) fn without(&self, gone: impl Fn(NodeId) -> bool) -> Set {
        let mut set = Set::default();
        let here = self.nodes.iter().enumerate().filter(|(_, node)| !gone(**node));
        here.for_each(|(index, _)| set.insert(index as u32));
        set
    }

    /// So many copies that no read of the same size can miss all of them.
    pub(crate) const fn unmissable(&self, read: u8) -> u8 {
        self.nodes.len() as u8 + 1 - read
    }

    /// So many owners that every write quorum has one of them.
    pub(crate) const fn compared(&self) -> u8 {
        self.nodes.len() as u8 + 1 - self.write
    }

    /// Whether so many owners are enough for every read of the set quorum to meet one of them.
    pub(crate) const fn is_strict_write(&self, applied: Set, durable: Set) -> bool {
        applied.len() >= self.write && durable.len() >= self.durable
    }

    /// Whether a read of so many owners meets every write of the set quorum.
    pub(crate) const fn is_strict_read(&self, read: u8) -> bool {
        read as usize + self.write as usize > self.nodes.len()
    }

    fn named(&self, owners: Named) -> Option<Need> {
        let count = match owners {
            Named::One | Named::Any => 1,
            Named::Two => 2,
            Named::Three => 3,
            Named::All => self.len(),
            Named::LocalOne => return Some(Need::Each([(self.local.0, 1)].into())),
            Named::LocalQuorum => return Some(Need::Each([self.local].into())),
            Named::EachQuorum => return Some(Need::Each(self.regions.clone())),
            _ => return None,
        };
        (count <= self.len()).then_some(Need::Count(count))
    }

    /// Whether a write that a majority of all owners has on disk is enough for a level.
    pub(crate) fn is_majority_enough(&self, level: WriteLevel) -> bool {
        let (n, majority) = (self.len(), quorum::majority(self.len().into()) as u8);
        let need = match level {
            WriteLevel::Quorum | WriteLevel::Owners(Named::Quorum) => return true,
            WriteLevel::Applied(copies) => self.write_need(WriteLevel::Durable(copies)),
            level => self.write_need(level),
        };
        need.is_some_and(|need| match need.applied {
            Need::Count(count) => count <= majority,
            // Of a set, a majority of all may miss as many as it leaves out.
            Need::Each(parts) => parts.iter().all(|(set, count)| set.len() + majority >= n + count),
        })
    }

    /// What a write at this level needs; `None` when the group cannot meet it.
    pub(crate) fn write_need(&self, level: WriteLevel) -> Option<WriteNeed> {
        let both = |need: Need| WriteNeed { applied: need.clone(), durable: need, hints_count: false };
        let counts = |applied, durable| WriteNeed {
            applied: Need::Count(applied),
            durable: Need::Count(durable),
            hints_count: false,
        };
        let possible = |copies: u8| (1..=self.len()).contains(&copies);
        match level {
            WriteLevel::Memory => Some(counts(1, 0)),
            WriteLevel::LeaderDisk => Some(counts(1, 1)),
            WriteLevel::Received(copies) => possible(copies).then(|| counts(copies, 0)),
            WriteLevel::Durable(copies) => possible(copies).then(|| counts(copies, copies)),
            WriteLevel::Quorum | WriteLevel::Owners(Named::Quorum) => Some(counts(self.write, self.durable)),
            WriteLevel::Applied(copies) => {
                possible(copies).then(|| counts(copies.max(self.write), copies.max(self.durable)))
            }
            WriteLevel::Owners(owners) => self.named(owners).map(both),
        }
    }

    /// What a read at this level needs; `None` when the group cannot meet it, or the level is not one of owners.
    pub(crate) fn read_need(&self, level: &ReadLevel) -> Option<Need> {
        match *level {
            ReadLevel::Local => Some(Need::Count(1)),
            ReadLevel::Replicas(copies) => (1..=self.len()).contains(&copies).then_some(Need::Count(copies)),
            ReadLevel::Owners(Named::Quorum) => Some(Need::Count(self.read)),
            ReadLevel::Owners(Named::Any) => None,
            ReadLevel::Owners(owners) => self.named(owners),
            _ => None,
        }
    }

    /// W, as it is set up.
    pub(crate) const fn write_size(&self) -> u8 {
        self.write
    }

    /// R, as it is set up.
    pub(crate) const fn read_size(&self) -> u8 {
        self.read
    }
}
