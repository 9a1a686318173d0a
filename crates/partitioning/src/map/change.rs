//! Changes of the map: each a pure function from a map to the next one, or to the reason why not.
//!
//! Invariant: a change that is not refused gives a valid map of the next epoch; one that is refused changes nothing. The log of
//! maps runs every change through here, so that the order of that log decides between two that do not go together.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{Epoch, GroupId, NodeId};
use serde::{Deserialize, Serialize};

use super::validity::are_replicas;
use super::{Decision, Delta, Handoff, PARTITIONS_MAX, Partition, PartitionMap, Replication, infos};
use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId, PlacementVersion};
use crate::partitioner::{BoundError, Partitioner};
use crate::span::Span;

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Cuts a partition in two, both in its group: nothing is copied.
    Split {
        /// Which one.
        partition: PartitionId,
        /// The first position of the new, right part.
        at: Bytes,
    },
    /// Joins two neighbours of one group; the left one goes on.
    Merge {
        /// The one that goes on.
        left: PartitionId,
        /// The one that ends.
        right: PartitionId,
    },
    /// The replica set of a group has changed, by its own membership change; the group stays. Of a multi-leader group this is the first
    /// of two steps: its nodes are these and those that it has, until the others have handed over everything.
    Place {
        /// Which group.
        group: GroupId,
        /// Its nodes now.
        replicas: Vec<NodeId>,
    },
    /// The second step: those who stay have everything.
    CompletePlacement {
        /// Which group.
        group: GroupId,
        /// Which placement is complete; a later one is not.
        placement: PlacementVersion,
    },
    /// A node that is to leave a group, and cannot be reached, is not waited for any more. What it alone has acknowledged is missing until
    /// it is named again.
    GiveUp {
        /// Which group.
        group: GroupId,
        /// Which node.
        node: NodeId,
    },
    /// Opens a handoff of a partition to another group. Its id is the epoch of the map that this makes.
    PlanHandoff {
        /// Which partition.
        partition: PartitionId,
        /// The group that is to have it.
        target: GroupId,
        /// The nodes of that group.
        replicas: Vec<NodeId>,
    },
    /// Decides an open handoff: the target owns the partition from this epoch on.
    CommitHandoff(
        /// Which one.
        HandoffId,
    ),
    /// Decides an open handoff: the source goes on.
    AbortHandoff(
        /// Which one.
        HandoffId,
    ),
    /// Takes a decided handoff out of the map, once both sides have acted on it.
    ForgetHandoff(
        /// Which one.
        HandoffId,
    ),
    /// The data was restored from a copy: everything is born anew, and no route from before fits.
    Restore,
}

/// Why something is not done to a partition. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such partition: it has ended or was never made.
    #[error("there is no partition {0}")]
    UnknownPartition(PartitionId),
    /// No partition is of this group.
    #[error("no partition is of group {0}")]
    UnknownGroup(GroupId),
    /// No such handoff: it is forgotten or was never planned.
    #[error("there is no handoff {0}")]
    UnknownHandoff(HandoffId),
    /// The cut is not within the partition, or at its very start.
    #[error("a cut at \"{}\" is not within {span}", .at.escape_ascii())]
    NotWithin {
        /// Where the cut was to be.
        at: Bytes,
        /// What the partition covers.
        span: Span,
    },
    /// The cut is none that the partitioner has.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// There are [`PARTITIONS_MAX`] already.
    #[error("there are {PARTITIONS_MAX} partitions already")]
    Full,
    /// The two are not neighbours in this order.
    #[error("partition {right} does not begin where partition {left} ends")]
    NotAdjacent {
        /// The left one.
        left: PartitionId,
        /// The right one.
        right: PartitionId,
    },
    /// They are of different groups on different nodes: move one of them first.
    #[error("replicas on {left:?} and on {right:?} are not aligned: move one of the partitions first")]
    UnalignedReplicas {
        /// Nodes of the left one.
        left: Vec<NodeId>,
        /// Nodes of the right one.
        right: Vec<NodeId>,
    },
    /// They are of different groups, though on the same nodes: hand one off first, which copies nothing over the network.
    #[error("groups {left} and {right} are on the same nodes, but have a log each: hand one off first")]
    ApartGroups {
        /// Group of the left one.
        left: GroupId,
        /// Group of the right one.
        right: GroupId,
    },
    /// Its group has no log in which a cut or a handoff could stand.
    #[error(
        "partition {0} is of a group without one log, leaderless or multi-leader: it is not cut, joined or handed on, and goes \
         elsewhere with its group"
    )]
    NoLog(PartitionId),
    /// The group has no placement that is to be completed, or a later one.
    #[error("group {group} is not on its way by placement {placement}")]
    NotChanging {
        /// Which group.
        group: GroupId,
        /// Which placement was to be completed.
        placement: PlacementVersion,
    },
    /// The node is not about to leave the group: place the group without it first.
    #[error("node {node} is not about to leave group {group}: place the group without it first")]
    NotLeaving {
        /// Which group.
        group: GroupId,
        /// Which node.
        node: NodeId,
    },
    /// A handoff of the partition is open.
    #[error("partition {partition} is under handoff {handoff}")]
    UnderHandoff {
        /// Which partition.
        partition: PartitionId,
        /// The open handoff.
        handoff: HandoffId,
    },
    /// The handoff's target is the group that has the partition.
    #[error("group {0} has the partition already")]
    SameGroup(GroupId),
    /// The group is placed otherwise than the handoff says.
    #[error("group {0} is on other nodes")]
    PlacedOtherwise(GroupId),
    /// No node, one twice, or too many: of a placement that is not complete, all who come and go count.
    #[error("replicas {0:?}: at least one node, at most 64, and none twice")]
    Replicas(Vec<NodeId>),
    /// It has been decided already, and stays so.
    #[error("handoff {handoff} is decided: {decision:?}")]
    Decided {
        /// Which one.
        handoff: HandoffId,
        /// What was decided.
        decision: Decision,
    },
    /// An earlier handoff of some of the same positions is decided, but not cleaned by both sides yet: ask again soon.
    #[error("handoff {0} is decided, but not cleaned yet")]
    NotForgotten(HandoffId),
    /// It is open: decide it first.
    #[error("handoff {0} is still open")]
    StillOpen(HandoffId),
    /// Nearly all of the load is on one key: a cut does not part it.
    #[error("one key has {percent} percent of the load: no cut parts it")]
    SingleKey {
        /// Its part of the load.
        percent: u8,
    },
    /// The writes follow each other in key order: each cut leaves the whole load on one side.
    #[error("{percent} percent of the writes go to the end of the partition: a cut leaves all of them on one side")]
    Sequential {
        /// Part of the writes beyond all that came before.
        percent: u8,
    },
    /// Most requests are for more than one key and would span every good cut.
    #[error("{percent} percent of the requests would span the best cut")]
    Spanning {
        /// Part of the requests that would span it.
        percent: u8,
    },
    /// Too little is known of the partition's keys.
    #[error("{samples} samples are too few to choose a cut, {needed} are needed")]
    TooFewSamples {
        /// What is known.
        samples: usize,
        /// What is needed.
        needed: usize,
    },
    /// No cut leaves a fair part on both sides.
    #[error("the best cut leaves {percent} percent on one side")]
    Uneven {
        /// Of the larger side.
        percent: u8,
    },
}

impl PartitionMap {
    /// The map after a change, and the delta that makes it out of this one.
    ///
    /// # Errors
    /// Why the change is refused.
    pub fn changed(&self, change: &Change) -> Result<(Self, Delta), Refused> {
        let delta = self.delta(change)?;
        let map = self.caught_up([&delta]).expect("what a change makes of a valid map is a valid map");
        Ok((map, delta))
    }

    /// The delta of a change, without the map that it makes.
    ///
    /// # Errors
    /// Why the change is refused.
    pub fn delta(&self, change: &Change) -> Result<Delta, Refused> {
        match change {
            Change::Split { partition, at } => self.split(*partition, at),
            Change::Merge { left, right } => self.merge(*left, *right),
            Change::Place { group, replicas } => self.place(*group, replicas),
            Change::CompletePlacement { group, placement } => self.complete(*group, *placement),
            Change::GiveUp { group, node } => self.give_up(*group, *node),
            Change::PlanHandoff { partition, target, replicas } => self.plan_handoff(*partition, *target, replicas),
            Change::CommitHandoff(id) => self.commit_handoff(*id),
            Change::AbortHandoff(id) => {
                let open = self.undecided(*id)?;
                Ok(Delta {
                    handoffs: vec![Handoff { decision: Decision::Aborted, ..open.clone() }],
                    ..self.unchanged()
                })
            }
            Change::ForgetHandoff(id) => match self.handoff(*id) {
                None => Err(Refused::UnknownHandoff(*id)),
                Some(handoff) if handoff.decision == Decision::Open => Err(Refused::StillOpen(*id)),
                Some(_) => Ok(Delta { forgotten: vec![*id], ..self.unchanged() }),
            },
            Change::Restore => self.restore(),
        }
    }

    fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.0 + 1)
    }

    fn unchanged(&self) -> Delta {
        Delta {
            from: self.epoch,
            next_id: self.next_id,
            ended: Vec::new(),
            changed: Vec::new(),
            handoffs: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    /// The partition, if it can change without its group, and nothing else is about to change it.
    fn free(&self, id: PartitionId) -> Result<&Partition, Refused> {
        let partition = self.partition(id).ok_or(Refused::UnknownPartition(id))?;
        if !partition.replication.has_one_log() {
            return Err(Refused::NoLog(id));
        }
        match self.open_handoff(id) {
            Some(handoff) => Err(Refused::UnderHandoff { partition: id, handoff: handoff.id }),
            None => Ok(partition),
        }
    }

    fn split(&self, id: PartitionId, at: &Bytes) -> Result<Delta, Refused> {
        let whole = self.free(id)?;
        self.scheme.check_bound(at)?;
        if *at <= whole.span.start || !whole.span.contains(at) {
            return Err(Refused::NotWithin { at: at.clone(), span: whole.span.clone() });
        }
        if self.len() == PARTITIONS_MAX {
            return Err(Refused::Full);
        }
        let left = Partition {
            span: Span { start: whole.span.start.clone(), end: Some(at.clone()) },
            bounds: whole.bounds.next(),
            ..whole.clone()
        };
        let right = Partition {
            id: self.next_id,
            birth: Birth(self.next_epoch().0),
            span: Span { start: at.clone(), end: whole.span.end.clone() },
            bounds: BoundsVersion(1),
            ..whole.clone()
        };
        Ok(Delta { next_id: PartitionId(self.next_id.0 + 1), changed: vec![left, right], ..self.unchanged() })
    }

    fn merge(&self, left: PartitionId, right: PartitionId) -> Result<Delta, Refused> {
        let (one, two) = (self.free(left)?, self.free(right)?);
        if one.span.end.as_ref() != Some(&two.span.start) {
            return Err(Refused::NotAdjacent { left, right });
        }
        aligned(one, two)?;
        let whole = Partition {
            span: Span { start: one.span.start.clone(), end: two.span.end.clone() },
            bounds: one.bounds.next(),
            ..one.clone()
        };
        Ok(Delta { ended: vec![right], changed: vec![whole], ..self.unchanged() })
    }

    fn place(&self, group: GroupId, replicas: &[NodeId]) -> Result<Delta, Refused> {
        if !are_replicas(replicas) {
            return Err(Refused::Replicas(replicas.to_vec()));
        }
        let placed = |it: &Partition| {
            if it.replication == Replication::MultiLeader {
                return it.with_membership(it.membership().towards(infos(replicas)));
            }
            let placement = it.placement.next();
            let since = |node: &NodeId| match it.replicas.contains(node) {
                true => it.joined.get(node).copied(),
                false => Some(placement),
            };
            let joined = replicas.iter().filter_map(|node| Some((*node, since(node)?))).collect();
            Partition { replicas: replicas.to_vec(), placement, joined, ..it.clone() }
        };
        let changed: Vec<_> = self.of_group(group).map(placed).collect();
        if changed.is_empty() {
            return Err(Refused::UnknownGroup(group));
        }
        if let Some(joint) = changed.iter().find(|it| !are_replicas(&it.replicas)) {
            return Err(Refused::Replicas(joint.replicas.clone()));
        }
        Ok(Delta { changed, ..self.unchanged() })
    }

    fn complete(&self, group: GroupId, placement: PlacementVersion) -> Result<Delta, Refused> {
        let partition = self.of_group(group).next().ok_or(Refused::UnknownGroup(group))?;
        if !partition.turnover.is_open() || partition.placement != placement {
            return Err(Refused::NotChanging { group, placement });
        }
        let changed = vec![partition.with_membership(partition.membership().completed())];
        Ok(Delta { changed, ..self.unchanged() })
    }

    fn give_up(&self, group: GroupId, node: NodeId) -> Result<Delta, Refused> {
        let partition = self.of_group(group).next().ok_or(Refused::UnknownGroup(group))?;
        if !partition.turnover.leaving.contains(&node) {
            return Err(Refused::NotLeaving { group, node });
        }
        let changed = vec![partition.with_membership(partition.membership().without(node))];
        Ok(Delta { changed, ..self.unchanged() })
    }

    fn plan_handoff(&self, id: PartitionId, target: GroupId, replicas: &[NodeId]) -> Result<Delta, Refused> {
        let partition = self.free(id)?;
        if partition.group == target {
            return Err(Refused::SameGroup(target));
        }
        if let Some(whole) = self.of_group(target).find(|it| it.replication != partition.replication) {
            return Err(Refused::NoLog(whole.id));
        }
        if !are_replicas(replicas) {
            return Err(Refused::Replicas(replicas.to_vec()));
        }
        let open = self.handoffs().find(|it| it.target == target && it.decision == Decision::Open);
        // Where an earlier one has not been cleaned, a group may still hold something of it.
        if let Some(earlier) = self.handoffs().find(|it| it.span.meets(&partition.span)) {
            return Err(Refused::NotForgotten(earlier.id));
        }
        let known = open.map(|it| &it.replicas).or(self.of_group(target).next().map(|it| &it.replicas));
        if known.is_some_and(|known| known != replicas) {
            return Err(Refused::PlacedOtherwise(target));
        }
        let handoff = Handoff {
            id: HandoffId(self.next_epoch().0),
            partition: id,
            birth: partition.birth,
            bounds: partition.bounds,
            span: partition.span.clone(),
            source: partition.group,
            target,
            replicas: replicas.to_vec(),
            source_replicas: partition.replicas.clone(),
            decision: Decision::Open,
        };
        Ok(Delta { handoffs: vec![handoff], ..self.unchanged() })
    }

    fn undecided(&self, id: HandoffId) -> Result<&Handoff, Refused> {
        let handoff = self.handoff(id).ok_or(Refused::UnknownHandoff(id))?;
        match handoff.decision {
            Decision::Open => Ok(handoff),
            decision => Err(Refused::Decided { handoff: id, decision }),
        }
    }

    fn commit_handoff(&self, id: HandoffId) -> Result<Delta, Refused> {
        let handoff = self.undecided(id)?;
        let partition = self.partition(handoff.partition).ok_or(Refused::UnknownPartition(handoff.partition))?;
        // The group may have changed its replicas since the plan.
        let (placement, replicas, joined) = match self.of_group(handoff.target).next() {
            Some(other) => (other.placement, other.replicas.clone(), other.joined.clone()),
            None => (PlacementVersion(1), handoff.replicas.clone(), BTreeMap::new()),
        };
        let moved = Partition {
            bounds: partition.bounds.next(),
            group: handoff.target,
            placement,
            replicas,
            joined,
            ..partition.clone()
        };
        let decided = Handoff { decision: Decision::Committed, ..handoff.clone() };
        Ok(Delta { changed: vec![moved], handoffs: vec![decided], ..self.unchanged() })
    }

    fn restore(&self) -> Result<Delta, Refused> {
        if let Some(open) = self.handoffs().find(|handoff| handoff.decision == Decision::Open) {
            return Err(Refused::StillOpen(open.id));
        }
        let anew = |it: &Partition| Partition { birth: Birth(self.next_epoch().0), ..it.clone() };
        Ok(Delta { changed: self.partitions().map(anew).collect(), ..self.unchanged() })
    }
}

/// Whether two partitions can be merged as they are placed.
pub(crate) fn aligned(left: &Partition, right: &Partition) -> Result<(), Refused> {
    if left.group == right.group {
        return Ok(());
    }
    let sorted = |partition: &Partition| {
        let mut nodes = partition.replicas.clone();
        nodes.sort_unstable();
        nodes
    };
    if sorted(left) == sorted(right) {
        return Err(Refused::ApartGroups { left: left.group, right: right.group });
    }
    Err(Refused::UnalignedReplicas { left: left.replicas.clone(), right: right.replicas.clone() })
}
