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

    pub(crate) fn remove(&mut self, index: u32) {
        self.0 &= !(1 << index);
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

    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The word: the order of its bits is that of the owners.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn of_bits(bits: u64) -> Self {
        Self(bits)
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

/// The owners of one epoch, and their quorums.
#[derive(Clone, Debug)]
pub(crate) struct Voters {
    set: Set,
    read: u8,
    write: u8,
    durable: u8,
    /// Those in this node's region, and a majority of them; `None` if there is none.
    local: Option<(Set, u8)>,
    regions: Arc<[(Set, u8)]>,
}

impl Voters {
    /// All of them.
    pub(crate) const fn set(&self) -> Set {
        self.set
    }

    const fn n(&self) -> u8 {
        self.set.len()
    }

    /// So many of them that no quorum of theirs is without one.
    pub(crate) fn blocking(&self) -> u8 {
        let majority = quorum::majority(self.n().into()) as u8;
        majority.max(self.n() + 1 - self.write).max(self.n() + 1 - self.read)
    }

    /// So many of them that every quorum of theirs has one, and that are disks enough.
    pub(crate) fn carriers(&self) -> u8 {
        self.blocking().max(self.durable)
    }

    /// So many of them that every request can be answered.
    pub(crate) fn serving(&self) -> u8 {
        self.carriers().max(self.read).max(self.write)
    }
}

/// The owners of the group, and its quorums: of one epoch, or of several while they change, of each of which a quorum is needed.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    nodes: Vec<NodeId>,
    node: NodeId,
    me: u32,
    /// By epoch, ascending; empty while nothing is known of them.
    voters: Vec<Voters>,
}

impl Owners {
    /// The owners of these epochs, as `node` sees them: it is one of them most of the time.
    pub(crate) fn new<'a>(
        memberships: impl Iterator<Item = &'a Membership> + Clone,
        node: NodeId,
        quorums: Quorums,
    ) -> Self {
        let mut nodes: Vec<NodeId> = memberships.clone().flat_map(Membership::ids).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let index = |id: NodeId| nodes.binary_search(&id).expect("all are listed") as u32;
        let half = |set: Set| (set, quorum::majority(set.len().into()) as u8);
        let here = memberships.clone().flat_map(|membership| &membership.nodes).filter(|info| info.id == node).last();
        let voters = memberships.clone().map(|membership| {
            let mut regions: Vec<(&str, Set)> = Vec::new();
            let mut all = Set::default();
            for info in &membership.nodes {
                let at = index(info.id);
                all.insert(at);
                match regions.iter_mut().find(|(region, _)| *region == info.region) {
                    Some((_, set)) => set.insert(at),
                    None => regions.push((&info.region, Set(1 << at))),
                }
            }
            let n = all.len();
            let local = regions.iter().find(|(region, _)| here.is_some_and(|here| here.region == *region));
            Voters {
                set: all,
                // Where the number of owners changes, a fixed size may be more than there are.
                read: quorums.read.of(n).min(n),
                write: quorums.write.of(n).min(n),
                durable: quorums.durable.of(n).min(n),
                local: local.map(|(_, set)| half(*set)),
                regions: regions.iter().map(|(_, set)| half(*set)).collect(),
            }
        });
        let voters = voters.collect();
        let me = nodes.binary_search(&node).unwrap_or(nodes.len()) as u32;
        Self { me, node, voters, nodes }
    }

    /// All of them, ascending.
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// N; of several epochs together.
    pub(crate) fn len(&self) -> u8 {
        self.nodes.len() as u8
    }

    /// This node.
    pub(crate) const fn me(&self) -> u32 {
        self.me
    }

    /// Whether this node is an owner.
    pub(crate) const fn is_owner(&self) -> bool {
        (self.me as usize) < self.nodes.len()
    }

    /// Whether it stays one: of the newest epoch.
    pub(crate) fn stays(&self) -> bool {
        self.is_owner() && self.newest().is_some_and(|newest| newest.set.contains(self.me))
    }

    /// The epochs whose quorums are needed, ascending.
    pub(crate) fn voters(&self) -> &[Voters] {
        &self.voters
    }

    /// The owners from which nobody has left yet.
    pub(crate) fn settled(&self) -> Option<&Voters> {
        self.voters.first()
    }

    /// Those that there will be.
    pub(crate) fn newest(&self) -> Option<&Voters> {
        self.voters.last()
    }

    pub(crate) fn index(&self, node: NodeId) -> Option<u32> {
        self.nodes.binary_search(&node).ok().map(|at| at as u32)
    }

    pub(crate) fn node(&self, index: u32) -> NodeId {
        self.nodes[index as usize]
    }

    /// All but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().copied().filter(|node| *node != self.node)
    }

    /// All but those of which this is true.
    pub(crate) fn without(&self, gone: impl Fn(NodeId) -> bool) -> Set {
        let mut set = Set::default();
        let here = self.nodes.iter().enumerate().filter(|(_, node)| !gone(**node));
        here.for_each(|(index, _)| set.insert(index as u32));
        set
    }

    /// A need of every epoch; `None` when it has none of some.
    fn each(&self, part: impl Fn(&Voters) -> Option<u8>) -> Option<Need> {
        match &self.voters[..] {
            [one] => part(one).map(Need::Count),
            several => {
                several.iter().map(|voters| Some((voters.set, part(voters)?))).collect::<Option<_>>().map(Need::Each)
            }
        }
    }

    /// So many copies that no read of a quorum can miss all of them; of those who take part at most.
    pub(crate) fn unmissable(&self, participants: Set) -> Need {
        let copies =
            |voters: &Voters| Some((voters.n() + 1 - voters.read).min(voters.set.intersection(participants).len()));
        self.each(copies).unwrap_or(Need::Count(0))
    }

    /// Whether so many owners have compared a write that every write quorum has one of them. Where write quorums need not meet,
    /// a later write may miss it in any case, and nobody is waited for.
    pub(crate) fn is_compared(&self, applied: Set) -> bool {
        let meets = |voters: &Voters| voters.set.intersection(applied).len() + voters.write > voters.n();
        self.voters.iter().all(|voters| 2 * voters.write <= voters.n() || meets(voters))
    }

    /// Whether so many owners are enough for every read of the set quorum to meet one of them.
    pub(crate) fn is_strict_write(&self, applied: Set, durable: Set) -> bool {
        self.voters.iter().all(|voters| {
            voters.set.intersection(applied).len() >= voters.write
                && voters.set.intersection(durable).len() >= voters.durable
        })
    }

    /// Whether a read of these owners meets every write of the set quorum.
    pub(crate) fn is_strict_read(&self, read: Set) -> bool {
        let strict = |voters: &Voters| voters.set.intersection(read).len() + voters.write > voters.n();
        !self.voters.is_empty() && self.voters.iter().all(strict)
    }

    fn named(&self, owners: Named) -> Option<Need> {
        let count = match owners {
            Named::One | Named::Any => 1,
            Named::Two => 2,
            Named::Three => 3,
            Named::All => return self.each(|voters| Some(voters.n())),
            Named::LocalOne => return self.regional(|voters| voters.local.map(|(set, _)| vec![(set, 1)])),
            Named::LocalQuorum => return self.regional(|voters| voters.local.map(|local| vec![local])),
            Named::EachQuorum => return self.regional(|voters| Some(voters.regions.to_vec())),
            _ => return None,
        };
        self.copies(count)
    }

    fn regional(&self, parts: impl Fn(&Voters) -> Option<Vec<(Set, u8)>>) -> Option<Need> {
        let all: Vec<(Set, u8)> = self.voters.iter().filter_map(parts).flatten().collect();
        (!all.is_empty()).then(|| Need::Each(all.into()))
    }

    /// Whoever it is: enough to be read from. Not to be written to, as the copy may be one of the epoch before alone, whose owners
    /// leave with what they have.
    fn any_one(&self) -> Option<Need> {
        (!self.voters.is_empty()).then_some(Need::Count(1))
    }

    /// So many owners of each epoch; all, of one that has fewer than the newest.
    fn copies(&self, copies: u8) -> Option<Need> {
        let possible = self.newest().is_some_and(|newest| (1..=newest.n()).contains(&copies));
        possible.then(|| self.each(|voters| Some(copies.min(voters.n())))).flatten()
    }

    /// Whether a write that a majority of all owners has on disk is enough for a level.
    pub(crate) fn is_majority_enough(&self, level: WriteLevel) -> bool {
        let need = match level {
            WriteLevel::Quorum | WriteLevel::Owners(Named::Quorum) => return true,
            WriteLevel::Applied(copies) => self.write_need(WriteLevel::Durable(copies)),
            level => self.write_need(level),
        };
        let Some(need) = need else { return false };
        self.voters.iter().all(|voters| {
            let (n, majority) = (voters.n(), quorum::majority(voters.n().into()) as u8);
            match &need.applied {
                Need::Count(count) => *count <= majority,
                // Of a set, a majority of all may miss as many as it leaves out.
                Need::Each(parts) => parts.iter().all(|(set, count)| {
                    let among = voters.set.intersection(*set).len();
                    among < set.len() || among + majority >= n + count
                }),
            }
        })
    }

    /// What a write at this level needs; `None` when the group cannot meet it.
    pub(crate) fn write_need(&self, level: WriteLevel) -> Option<WriteNeed> {
        let both = |need: Need| WriteNeed { applied: need.clone(), durable: need, hints_count: false };
        let counts = |applied, durable| WriteNeed { applied, durable, hints_count: false };
        match level {
            WriteLevel::Memory => Some(counts(self.copies(1)?, Need::Count(0))),
            WriteLevel::LeaderDisk => self.copies(1).map(both),
            WriteLevel::Received(copies) => Some(counts(self.copies(copies)?, Need::Count(0))),
            WriteLevel::Durable(copies) => self.copies(copies).map(both),
            WriteLevel::Quorum | WriteLevel::Owners(Named::Quorum) => {
                Some(counts(self.each(|voters| Some(voters.write))?, self.each(|voters| Some(voters.durable))?))
            }
            WriteLevel::Applied(copies) => {
                self.copies(copies)?;
                let most = |voters: &Voters, size: u8| Some(copies.min(voters.n()).max(size));
                let applied = self.each(|voters| most(voters, voters.write))?;
                Some(counts(applied, self.each(|voters| most(voters, voters.durable))?))
            }
            WriteLevel::Owners(owners) => self.named(owners).map(both),
        }
    }

    /// What a read at this level needs; `None` when the group cannot meet it, or the level is not one of owners.
    pub(crate) fn read_need(&self, level: &ReadLevel) -> Option<Need> {
        match *level {
            ReadLevel::Local | ReadLevel::Replicas(1) | ReadLevel::Owners(Named::One) => self.any_one(),
            ReadLevel::Replicas(copies) => self.copies(copies),
            ReadLevel::Owners(Named::Quorum) => self.each(|voters| Some(voters.read)),
            ReadLevel::Owners(Named::Any) => None,
            ReadLevel::Owners(owners) => self.named(owners),
            _ => None,
        }
    }

    /// W, as it is set up.
    pub(crate) fn write_size(&self) -> u8 {
        self.newest().map_or(1, |newest| newest.write)
    }
}
