//! The partition map: which partition covers which keys, and who holds it.
//!
//! Invariants:
//!
//! - A map covers the space of positions exactly once, at every epoch: one that does not is never made (invariant I1).
//! - A map is immutable. The next one is made from it by a [`Delta`] and has the next epoch; whoever holds a map can only go
//!   forward (invariant I5). One is published to many readers as a `replikit_sync::Swap`.
//! - Partition ids are never given twice. Bounds version and placement version of a partition only grow within one birth.
//! - At most one handoff of a partition is open, and nothing else changes a partition under an open handoff.
//!
//! Sources: Cassandra's TCM (a linear log of transformations, an epoch each, deltas from any peer), MongoDB's and TiKV's versions.

mod change;
mod check;
mod delta;
mod directory;
mod encoding;
mod validity;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{Epoch, GroupId, Membership, NodeId, NodeInfo, Turnover};
use serde::{Deserialize, Serialize};

use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId, PlacementVersion};
use crate::partitioner::{Partitioner, Scheme};
use crate::span::Span;
use directory::Directory;

pub(crate) use change::aligned;
pub use change::{Change, Refused};
pub use check::{Fit, Misrouted, STALE_ENTRIES_MAX, StaleRoute};
pub use delta::{Catchup, DELTAS_MAX, Delta, DeltaError, DeltaLog};
pub use validity::{After, MapError};

/// Most partitions of a map.
pub const PARTITIONS_MAX: usize = 1 << 20;

/// How a group replicates: what can become of its partitions follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Replication {
    /// One log orders the writes: its partitions are split, merged and handed to other groups.
    #[default]
    SingleLeader,
    /// Nobody orders them: its one partition stays with it, and the group is placed on other nodes.
    Leaderless,
    /// Every replica takes them: as with leaderless groups, but that a placement takes two steps, the second once those who are to leave
    /// have handed over everything.
    MultiLeader,
}

impl Replication {
    /// Whether one log orders the writes of a group: only there cuts and handoffs can stand.
    #[must_use]
    pub const fn has_one_log(self) -> bool {
        matches!(self, Self::SingleLeader)
    }
}

/// One partition, as the map has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Which one.
    pub id: PartitionId,
    /// Which life of it.
    pub birth: Birth,
    /// The positions that it covers.
    pub span: Span,
    /// Grows when its bounds or its group change.
    pub bounds: BoundsVersion,
    /// The group that orders its writes.
    pub group: GroupId,
    /// How that group does it.
    pub replication: Replication,
    /// Grows when its group's replica set changes.
    pub placement: PlacementVersion,
    /// The nodes that hold its group's replicas. The same for all partitions of the group.
    pub replicas: Vec<NodeId>,
    /// Those of them that have become replicas after the first placement: with which one they last did.
    pub joined: BTreeMap<NodeId, PlacementVersion>,
    /// Who comes and goes, by a placement of a multi-leader group that is not complete yet; its epochs are placements.
    pub turnover: Turnover,
}

impl Partition {
    /// Its group's members, for strategies that change them by epochs: each placement is one.
    pub fn membership(&self) -> Membership {
        let epoch = |placement: PlacementVersion| Epoch(placement.0.into());
        Membership {
            epoch: epoch(self.placement),
            joined: self.joined.iter().map(|(node, placement)| (*node, epoch(*placement))).collect(),
            turnover: self.turnover.clone(),
            ..Membership::founding(infos(&self.replicas))
        }
    }

    /// The same with the next members of its group.
    fn with_membership(&self, members: Membership) -> Self {
        let placement = |epoch: Epoch| PlacementVersion(epoch.0 as u32);
        Self {
            placement: placement(members.epoch),
            replicas: members.ids().collect(),
            joined: members.joined.into_iter().map(|(node, epoch)| (node, placement(epoch))).collect(),
            turnover: members.turnover,
            ..self.clone()
        }
    }

    /// The nodes that are to hold its group in the end.
    pub fn stays(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas.iter().copied().filter(|node| !self.turnover.leaving.contains(node))
    }

    /// Whether both are on the same nodes, by the same placement: as all partitions of a group are.
    fn is_placed_as(&self, other: &Self) -> bool {
        let placed = |it: &Self| (it.replication, it.placement);
        placed(self) == placed(other)
            && (&self.replicas, &self.joined, &self.turnover) == (&other.replicas, &other.joined, &other.turnover)
    }

    /// What a request for it carries.
    pub fn route(&self) -> Route {
        Route {
            partition: self.id,
            birth: self.birth,
            bounds: self.bounds,
            placement: self.placement,
            group: self.group,
        }
    }
}

fn infos(nodes: &[NodeId]) -> Vec<NodeInfo> {
    let info = |&id: &NodeId| NodeInfo { id, address: String::new(), region: String::new(), zone: String::new() };
    nodes.iter().map(info).collect()
}

/// What a request carries about the partition that it is for. Who leads the group is no part of it: a new leader makes no route
/// stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Which partition.
    pub partition: PartitionId,
    /// Which life of it.
    pub birth: Birth,
    /// Under which bounds and group.
    pub bounds: BoundsVersion,
    /// Under which replica set.
    pub placement: PlacementVersion,
    /// The group that orders its writes.
    pub group: GroupId,
}

/// What has become of a handoff. Decided once, in the log of the map (research: TCM's in-progress sequences).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Nothing yet: the source owns the partition.
    Open,
    /// The target owns it.
    Committed,
    /// The source owns it and goes on.
    Aborted,
}

/// A handoff of a partition from its group to another one, as the map has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// Which one.
    pub id: HandoffId,
    /// What is handed off.
    pub partition: PartitionId,
    /// Which life of it.
    pub birth: Birth,
    /// Under which bounds it was planned.
    pub bounds: BoundsVersion,
    /// The positions handed off.
    pub span: Span,
    /// The group that has it.
    pub source: GroupId,
    /// The group that is to have it.
    pub target: GroupId,
    /// The nodes of the target.
    pub replicas: Vec<NodeId>,
    /// The nodes of the source, as they were when it was planned: a group without a partition is nowhere else in the map.
    pub source_replicas: Vec<NodeId>,
    /// What has become of it.
    pub decision: Decision,
}

/// An immutable map at one epoch.
///
/// ```
/// use std::sync::Arc;
/// use replikit_core::{GroupId, NodeId};
/// use replikit_partitioning::{Change, PartitionMap, Scheme, Fit};
/// use replikit_sync::Swap;
///
/// let three = vec![NodeId(1), NodeId(2), NodeId(3)];
/// let map = PartitionMap::first(Scheme::KEY_ORDER, ["m".into()], [(GroupId(1), three.clone()), (GroupId(2), three)])?;
/// let published = Arc::new(Swap::new(Arc::new(map)));
/// let mut reader = published.cached();
///
/// let route = reader.get().route(b"apple");
/// let (next, _) = published.load().changed(&Change::Split { partition: route.partition, at: "b".into() })?;
/// published.store(Arc::new(next));
///
/// // The bounds have changed: where the write is ordered, the old route is refused, with the entries that mend it.
/// assert!(reader.get().check(&route, b"apple").is_err());
/// let route = reader.get().route(b"apple");
/// assert_eq!(reader.get().check(&route, b"apple"), Ok(Fit::Exact));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct PartitionMap {
    epoch: Epoch,
    scheme: Scheme,
    // The id that the next partition will get.
    next_id: PartitionId,
    // In the order of their spans, which cover everything exactly once.
    partitions: Vec<Arc<Partition>>,
    handoffs: BTreeMap<HandoffId, Handoff>,
    // What follows is computed from the above. Routes lie side by side, one for each partition.
    routes: Vec<Route>,
    directory: Directory,
    by_id: Vec<(PartitionId, u32)>,
    // Of each group in the order of spans.
    by_group: Vec<(GroupId, u32)>,
}

impl PartitionMap {
    /// The first map, at epoch 1: the space cut at `bounds` (without the empty one in front), each piece a partition of its own,
    /// held by the groups in their order. Groups beyond the last piece are left over.
    ///
    /// # Errors
    /// When bounds do not rise or are not the scheme's, there are fewer groups than pieces, or a replica set is empty or names a
    /// node twice.
    pub fn first(
        scheme: Scheme,
        bounds: impl IntoIterator<Item = Bytes>,
        groups: impl IntoIterator<Item = (GroupId, Vec<NodeId>)>,
    ) -> Result<Self, MapError> {
        Self::first_of(Replication::SingleLeader, scheme, bounds, groups)
    }

    /// The same of groups that replicate like this.
    ///
    /// # Errors
    /// As for [`PartitionMap::first`].
    pub fn first_of(
        replication: Replication,
        scheme: Scheme,
        bounds: impl IntoIterator<Item = Bytes>,
        groups: impl IntoIterator<Item = (GroupId, Vec<NodeId>)>,
    ) -> Result<Self, MapError> {
        let starts: Vec<Bytes> = std::iter::once(Bytes::new()).chain(bounds).collect();
        let mut groups = groups.into_iter();
        let mut partitions = Vec::with_capacity(starts.len());
        for (nth, start) in starts.iter().enumerate() {
            let (group, replicas) =
                groups.next().ok_or(MapError::TooFewGroups { pieces: starts.len(), groups: nth })?;
            partitions.push(Arc::new(Partition {
                id: PartitionId(nth as u64 + 1),
                birth: Birth(1),
                span: Span::new(start.clone(), starts.get(nth + 1).cloned()),
                bounds: BoundsVersion(1),
                group,
                replication,
                placement: PlacementVersion(1),
                replicas,
                joined: BTreeMap::new(),
                turnover: Turnover::default(),
            }));
        }
        let next_id = PartitionId(starts.len() as u64 + 1);
        Self::build(Epoch(1), scheme, next_id, partitions, BTreeMap::new())
    }

    /// Checks everything that a map promises, then makes it. Partitions may come in any order.
    fn build(
        epoch: Epoch,
        scheme: Scheme,
        next_id: PartitionId,
        mut partitions: Vec<Arc<Partition>>,
        handoffs: BTreeMap<HandoffId, Handoff>,
    ) -> Result<Self, MapError> {
        if !partitions.is_sorted_by(|a, b| a.span.start <= b.span.start) {
            partitions.sort_by(|a, b| a.span.start.cmp(&b.span.start));
        }
        let by_id = validity::check(&scheme, next_id, &partitions, &handoffs)?;
        let routes = partitions.iter().map(|partition| partition.route()).collect();
        let directory = Directory::new(&scheme, &partitions);
        let mut by_group: Vec<_> =
            partitions.iter().zip(0..).map(|(partition, index)| (partition.group, index)).collect();
        by_group.sort_unstable();
        Ok(Self { epoch, scheme, next_id, partitions, handoffs, routes, directory, by_id, by_group })
    }

    /// Which map this is: the position of the change that made it in the log of maps.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How keys become positions.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// All partitions in the order of their spans.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = &Partition> + DoubleEndedIterator {
        self.partitions.iter().map(|partition| &**partition)
    }

    /// How many partitions there are; at least one.
    #[allow(clippy::len_without_is_empty, reason = "a map is never empty")]
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// The route of the partition that a key belongs to.
    #[inline]
    pub fn route(&self, key: &[u8]) -> Route {
        self.routes[self.index(key)]
    }

    /// The partition that a key belongs to.
    #[inline]
    pub fn partition_of(&self, key: &[u8]) -> &Partition {
        &self.partitions[self.index(key)]
    }

    #[inline]
    fn index(&self, key: &[u8]) -> usize {
        match &self.directory {
            Directory::Slots(slots) => slots.index(key),
            Directory::Ordered(ordered) => ordered.index(&self.scheme, key),
        }
    }

    /// The partition of this id.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.index_of(id).map(|index| &*self.partitions[index])
    }

    fn index_of(&self, id: PartitionId) -> Option<usize> {
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[at].1 as usize)
    }

    /// The partitions that may hold keys of a range, in the order of their spans. With hash slots that is all of them, unless the
    /// range is one key.
    pub fn meeting<'m>(&'m self, keys: &'m Span) -> impl Iterator<Item = &'m Partition> {
        let reach = self.scheme.reach(keys);
        let first = self.partitions.partition_point(|partition| partition.span.start <= reach.start) - 1;
        let within = move |partition: &&Partition| reach.end.as_ref().is_none_or(|end| partition.span.start < *end);
        let meets = |partition: &&Partition| self.scheme.meets(keys, &partition.span);
        self.partitions[first..].iter().map(|partition| &**partition).take_while(within).filter(meets)
    }

    /// Open handoffs, and decided ones that are not forgotten yet.
    pub fn handoffs(&self) -> impl Iterator<Item = &Handoff> {
        self.handoffs.values()
    }

    /// The handoff of this id; none once it is forgotten, or if it was never planned.
    pub fn handoff(&self, id: HandoffId) -> Option<&Handoff> {
        self.handoffs.get(&id)
    }

    /// The open handoff of a partition, if there is one.
    pub fn open_handoff(&self, partition: PartitionId) -> Option<&Handoff> {
        self.handoffs().find(|handoff| handoff.partition == partition && handoff.decision == Decision::Open)
    }

    /// The partitions of a group, in the order of their spans.
    pub fn of_group(&self, group: GroupId) -> impl Iterator<Item = &Partition> {
        let first = self.by_group.partition_point(|(of, _)| *of < group);
        let own = self.by_group[first..].iter().take_while(move |(of, _)| *of == group);
        own.map(|(_, index)| &*self.partitions[*index as usize])
    }
}

impl PartialEq for PartitionMap {
    fn eq(&self, other: &Self) -> bool {
        (self.epoch, &self.scheme, self.next_id) == (other.epoch, &other.scheme, other.next_id)
            && self.partitions == other.partitions
            && self.handoffs == other.handoffs
    }
}

impl Eq for PartitionMap {}

impl core::fmt::Debug for PartitionMap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PartitionMap")
            .field("epoch", &self.epoch)
            .field("scheme", &self.scheme)
            .field("next_id", &self.next_id)
            .field("partitions", &self.partitions)
            .field("handoffs", &self.handoffs)
            .finish_non_exhaustive()
    }
}
