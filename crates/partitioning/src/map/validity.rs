//! What makes a map: each of its promises, checked before it exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replikit_core::{GroupId, NodeId};

use super::{Decision, Handoff, PARTITIONS_MAX, Partition, Replication};
use crate::id::{HandoffId, PartitionId, PlacementVersion};
use crate::partitioner::{BoundError, Partitioner, Scheme};
use crate::span::{Span, cmp_end};

/// Why partitions make no map. Whoever put them together is to blame; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There are none.
    #[error("no partition covers anything: {} is without an owner", Span::ALL)]
    Empty,
    /// More than [`PARTITIONS_MAX`].
    #[error("{0} partitions are too many, {PARTITIONS_MAX} are possible")]
    TooMany(usize),
    /// Positions without a partition.
    #[error("gap: {gap} belongs to no partition, after {after}")]
    Gap {
        /// What is not covered.
        gap: Span,
        /// The last partition in front of it, if there is one.
        after: After,
    },
    /// Positions with two partitions.
    #[error("overlap: {overlap} belongs to partition {first} and to partition {second}")]
    Overlap {
        /// What is covered twice.
        overlap: Span,
        /// The partition that begins first.
        first: PartitionId,
        /// The one that begins within it.
        second: PartitionId,
    },
    /// A partition that covers nothing.
    #[error("partition {id} covers nothing: {span}")]
    EmptySpan {
        /// Which one.
        id: PartitionId,
        /// What it says to cover.
        span: Span,
    },
    /// A bound that the partitioner does not have.
    #[error("partition {id} has a bound that cannot be: {error}")]
    Bound {
        /// Which one.
        id: PartitionId,
        /// Why it cannot be.
        error: BoundError,
    },
    /// An id that is given twice.
    #[error("partition {0} is given twice")]
    IdTwice(PartitionId),
    /// An id that has not been given out yet.
    #[error("partition {id} is not known yet: the next one to be made is {next}")]
    IdAhead {
        /// Which one.
        id: PartitionId,
        /// The first id that is free.
        next: PartitionId,
    },
    /// No node holds it, or the same node twice.
    #[error("partition {id} is on nodes {replicas:?}: at least one, and none twice, must hold it")]
    Replicas {
        /// Which one.
        id: PartitionId,
        /// What it names.
        replicas: Vec<NodeId>,
    },
    /// A node has joined it that is none of its replicas, or with a placement that there is not yet.
    #[error(
        "partition {id} at placement {placement} names who has joined that is no replica, or when it cannot have been"
    )]
    Joined {
        /// Which one.
        id: PartitionId,
        /// Its placement.
        placement: PlacementVersion,
    },
    /// Nodes come or go that are none of its replicas, or all go, or its strategy does not change members in two steps.
    #[error("partition {id} is changing its nodes in a way that cannot be")]
    Changing {
        /// Which one.
        id: PartitionId,
    },
    /// A group without one log, with two partitions.
    #[error("partitions {first} and {second} are both of group {group}, which has no one log and can have one only")]
    GroupShared {
        /// Their group.
        group: GroupId,
        /// The one with the lower bounds.
        first: PartitionId,
        /// The other one.
        second: PartitionId,
    },
    /// Two partitions of one group on different nodes, or with different placement versions.
    #[error("partitions {first} and {second} are both of group {group}, but not placed alike")]
    GroupApart {
        /// Their group.
        group: GroupId,
        /// The one with the lower bounds.
        first: PartitionId,
        /// The other one.
        second: PartitionId,
    },
    /// A handoff that fits no partition, or a second one of a partition.
    #[error("handoff {0} is open, but not of a partition as it is, or not the only one of it")]
    Handoff(HandoffId),
    /// Fewer groups than pieces that the bounds make.
    #[error("{groups} groups for {pieces} partitions")]
    TooFewGroups {
        /// Pieces.
        pieces: usize,
        /// Groups.
        groups: usize,
    },
}

/// What lies in front of a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing does.
    Beginning,
    /// This partition.
    Partition(PartitionId),
}

impl core::fmt::Display for After {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Beginning => f.write_str("the beginning"),
            Self::Partition(id) => write!(f, "partition {id}"),
        }
    }
}

/// Checks partitions that are sorted by their start; returns where each id is.
pub(super) fn check(
    scheme: &Scheme,
    next_id: PartitionId,
    partitions: &[Arc<Partition>],
    handoffs: &BTreeMap<HandoffId, Handoff>,
) -> Result<Vec<(PartitionId, u32)>, MapError> {
    if partitions.len() > PARTITIONS_MAX {
        return Err(MapError::TooMany(partitions.len()));
    }
    covers_once(partitions)?;
    let mut groups: BTreeMap<GroupId, &Partition> = BTreeMap::new();
    for partition in partitions {
        each(scheme, next_id, partition)?;
        let other = *groups.entry(partition.group).or_insert(partition);
        let (group, first, second) = (partition.group, other.id, partition.id);
        if !other.is_placed_as(partition) {
            return Err(MapError::GroupApart { group, first, second });
        }
        if first != second && !partition.replication.has_one_log() {
            return Err(MapError::GroupShared { group, first, second });
        }
    }
    let mut by_id: Vec<_> = partitions.iter().zip(0..).map(|(partition, index)| (partition.id, index)).collect();
    by_id.sort_unstable();
    if let Some(pair) = by_id.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(MapError::IdTwice(pair[0].0));
    }
    let mut open = BTreeSet::new();
    for (&id, handoff) in handoffs.iter().filter(|(_, handoff)| handoff.decision == Decision::Open) {
        let at = by_id.binary_search_by_key(&handoff.partition, |(id, _)| *id);
        let partition = at.map(|at| &partitions[by_id[at].1 as usize]);
        let fits = partition.is_ok_and(|it| {
            (it.birth, it.bounds, it.group, &it.span) == (handoff.birth, handoff.bounds, handoff.source, &handoff.span)
        });
        if !fits || id != handoff.id || handoff.target == handoff.source || !open.insert(handoff.partition) {
            return Err(MapError::Handoff(id));
        }
    }
    Ok(by_id)
}

/// Every position is in exactly one span.
fn covers_once(partitions: &[Arc<Partition>]) -> Result<(), MapError> {
    let Some(first) = partitions.first() else { return Err(MapError::Empty) };
    if let Some(partition) = partitions.iter().find(|partition| partition.span.is_empty()) {
        return Err(MapError::EmptySpan { id: partition.id, span: partition.span.clone() });
    }
    if !first.span.start.is_empty() {
        let gap = Span { start: Span::ALL.start, end: Some(first.span.start.clone()) };
        return Err(MapError::Gap { gap, after: After::Beginning });
    }
    for pair in partitions.windows(2) {
        let [one, two] = [&pair[0], &pair[1]];
        match cmp_end(one.span.end.as_deref(), Some(&two.span.start)) {
            core::cmp::Ordering::Equal => {}
            core::cmp::Ordering::Less => {
                let gap = Span::new(one.span.end.clone().unwrap_or_default(), Some(two.span.start.clone()));
                return Err(MapError::Gap { gap, after: After::Partition(one.id) });
            }
            core::cmp::Ordering::Greater => {
                let shorter = if one.span.covers(&two.span) { two } else { one };
                let overlap = Span { start: two.span.start.clone(), end: shorter.span.end.clone() };
                return Err(MapError::Overlap { overlap, first: one.id, second: two.id });
            }
        }
    }
    match partitions.last().map(|last| &**last) {
        Some(Partition { id, span: Span { end: Some(end), .. }, .. }) => {
            Err(MapError::Gap { gap: Span { start: end.clone(), end: None }, after: After::Partition(*id) })
        }
        _ => Ok(()),
    }
}

/// What a partition promises by itself.
fn each(scheme: &Scheme, next_id: PartitionId, partition: &Partition) -> Result<(), MapError> {
    let id = partition.id;
    if id >= next_id {
        return Err(MapError::IdAhead { id, next: next_id });
    }
    scheme.check_bound(&partition.span.start).map_err(|error| MapError::Bound { id, error })?;
    if !are_replicas(&partition.replicas) {
        return Err(MapError::Replicas { id, replicas: partition.replicas.clone() });
    }
    let since = |(node, placement): (&NodeId, &PlacementVersion)| {
        partition.replicas.contains(node) && (2..=partition.placement.0).contains(&placement.0)
    };
    if !partition.joined.iter().all(since) {
        return Err(MapError::Joined { id, placement: partition.placement });
    }
    let moves = partition.turnover.joining.iter().chain(&partition.turnover.leaving);
    let are_replicas = moves.copied().all(|node| partition.replicas.contains(&node));
    let may_change = are_replicas && partition.replication == Replication::MultiLeader;
    if partition.stays().next().is_none() || partition.turnover.is_open() && !may_change {
        return Err(MapError::Changing { id });
    }
    Ok(())
}

/// Most nodes of a group, those included that come and those that go.
pub(super) const REPLICAS_MAX: usize = 64;

/// At least one node, none twice, not too many.
pub(super) fn are_replicas(nodes: &[NodeId]) -> bool {
    (1..=REPLICAS_MAX).contains(&nodes.len())
        && nodes.iter().enumerate().all(|(nth, node)| !nodes[..nth].contains(node))
}
