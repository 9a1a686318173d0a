//! The balancer: one pure function from what is to a plan of moves.
//!
//! Invariants: the same input gives the same plan; a plan never puts two replicas of a group on one node, never takes a replica away
//! before its successor is there, never lowers the number of failure domains that a group is on for the sake of evenness, and
//! keeps to its budget in every round. What is planned again after a plan was carried out to its end is nothing.
//!
//! What is moved are groups: the partitions of a group move together. Where groups stay on their nodes, [`shifts`] says which partitions
//! should go to which other group. Lost copies come first, then drains, then groups whose
//! copies share a failure domain, then evenness. Sources: research on FoundationDB's data distributor (priorities, limits
//! per node, move only what is below half of the gap), CockroachDB's rebalancing regressions (a minimum benefit), Slicer.

mod rounds;
mod shifts;
mod state;

#[cfg(test)]
mod tests;

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::{GroupId, NodeId};

use crate::id::PartitionId;
use crate::load::Load;
use crate::map::PartitionMap;
use crate::split::Advice;
use crate::topology::Topology;
pub use shifts::{Shift, Shifts, shifts};
use state::State;

/// What is to be even, in proportion to the capacities of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The number of replicas.
    Count,
    /// Bytes, operations and processor time: whichever of them is worst on a node counts.
    Load,
}

/// How many partitions there are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// As many as there are (DDIA: fixed number of partitions).
    Fixed,
    /// What sizes and loads call for (DDIA: dynamic partitioning); the advice of [`Trends`](crate::split::Trends).
    Dynamic(Advice),
    /// At least so many for each serving node (DDIA: partitioning proportionally to nodes): the largest ones are split. Never merged,
    /// so that nodes that come and go change nothing.
    Proportional {
        /// Partitions for each node.
        per_node: u32,
    },
}

/// How much may be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Moves under way at once in the cluster, at least 1. Default 100.
    pub moves_at_once: usize,
    /// Copies read from one node at once, at least 1. Default 2 (FoundationDB).
    pub out_at_once: usize,
    /// Copies written to one node at once, at least 1. Default 10 (FoundationDB).
    pub in_at_once: usize,
    /// Moves of one plan for evenness. Repairs and drains are not limited. Default: as many as needed.
    pub moves_max: usize,
    /// What a node may use to copy, for the prediction of time. Default 100 MB/s.
    pub bytes_per_second: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            moves_at_once: 100,
            out_at_once: 2,
            in_at_once: 10,
            moves_max: usize::MAX,
            bytes_per_second: 100_000_000,
        }
    }
}

/// What the balancer goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Replicas that every group is to have.
    pub copies: usize,
    /// What is to be even.
    pub objective: Objective,
    /// How many partitions there are to be.
    pub sizing: Sizing,
    /// How much may be done at once.
    pub budget: Budget,
}

impl Settings {
    /// A fixed number of partitions, even by count, with the default budget.
    pub fn even(copies: usize) -> Self {
        Self { copies, objective: Objective::Count, sizing: Sizing::Fixed, budget: Budget::default() }
    }
}

/// With [`Objective::Load`], a node has to be so many percent above or below its part before anything is moved for evenness.
pub const START_PERCENT: u64 = 5;

/// With [`Objective::Load`], moving stops at so many percent above and below the part.
pub const STOP_PERCENT: u64 = 1;

/// With [`Objective::Load`], a plan for evenness that would bring the most and the least pressed node nearer to each other by less
/// than so many percent of the mean is not worth its copies (CockroachDB: 2 percent for replicas).
pub const GAIN_PERCENT_MIN: u64 = 2;

/// Why a replica is moved; what comes first is done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A copy is lost or missing.
    Repair,
    /// Its node is to be emptied.
    Drain,
    /// Two copies share a failure domain.
    Spread,
    /// For evenness.
    Evenness,
}

/// A replica that gets another node: the new one is added, caught up, and only then the old one removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub group: GroupId,
    /// The node that gives its replica up; none where a copy was missing.
    pub from: Option<NodeId>,
    /// The node that takes it.
    pub to: NodeId,
    /// A node with a living copy, from which it is read.
    pub source: NodeId,
    /// Bytes to copy.
    pub bytes: u64,
    /// What for.
    pub why: Why,
}

/// What stays undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// No copy of the group lives: it has to be restored from elsewhere.
    #[error("group {0} has lost all its copies")]
    NoCopy(GroupId),
    /// No serving node is left that has no copy yet.
    #[error("no node is left for another copy of group {0}")]
    NoNode(GroupId),
}

/// How even the serving nodes are: the worst one over what would be its part by capacity; 1 is perfect, and so is nothing at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evenness {
    /// Replicas.
    pub count: f64,
    /// Bytes.
    pub bytes: f64,
    /// Operations.
    pub ops: f64,
    /// Processor time.
    pub cpu: f64,
}

/// What to do, and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Moves that may be under way together, round after round.
    pub rounds: Vec<Vec<Move>>,
    /// Partitions to be split.
    pub splits: Vec<PartitionId>,
    /// Neighbours to be joined.
    pub merges: Vec<(PartitionId, PartitionId)>,
    /// What stays undone.
    pub stuck: Vec<Stuck>,
    /// How even it is now.
    pub before: Evenness,
    /// How even it will be after the moves.
    pub after: Evenness,
    /// Replicas and load of each node after the moves.
    pub nodes: Vec<(NodeId, u64, Load)>,
    /// Bytes to copy in all.
    pub bytes: u64,
    /// How long copying takes with the budget's rate, one round after the other.
    pub duration: Duration,
}

impl Plan {
    /// All moves in the order of their rounds.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.rounds.iter().flatten()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rounds.is_empty() && self.splits.is_empty() && self.merges.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moves = self.moves().count();
        let minutes = self.duration.as_secs_f64() / 60.0;
        writeln!(f, "{moves} moves in {} rounds, {} bytes, {minutes:.1} minutes", self.rounds.len(), self.bytes)?;
        writeln!(f, "{} splits, {} merges, {} stuck", self.splits.len(), self.merges.len(), self.stuck.len())?;
        let row = |it: &Evenness| {
            format!(
                "replicas {:.3}, bytes {:.3}, operations {:.3}, processor {:.3}",
                it.count, it.bytes, it.ops, it.cpu
            )
        };
        writeln!(f, "worst node over its part now:   {}", row(&self.before))?;
        write!(f, "worst node over its part after: {}", row(&self.after))
    }
}

/// Plans. `loads` says what one replica of each partition takes; those that it does not name take nothing. Groups with an open
/// handoff are left where they are. Nodes that the topology does not know are taken for lost.
pub fn plan(map: &PartitionMap, loads: &BTreeMap<PartitionId, Load>, topology: &Topology, settings: &Settings) -> Plan {
    let mut state = State::new(map, loads, topology, settings);
    let before = state.evenness();
    state.repair();
    state.drain();
    state.spread();
    state.even_out();
    let (splits, merges) = sized(map, loads, topology, &settings.sizing);
    let after = state.evenness();
    let nodes = state.node_loads();
    let (moves, stuck) = state.into_moves();
    let bytes = moves.iter().map(|it| it.bytes).sum();
    let rounds = rounds::scheduled(moves, topology, &settings.budget);
    let duration = rounds::duration(&rounds, &settings.budget);
    Plan { rounds, splits, merges, stuck, before, after, nodes, bytes, duration }
}

type Sized = (Vec<PartitionId>, Vec<(PartitionId, PartitionId)>);

fn sized(map: &PartitionMap, loads: &BTreeMap<PartitionId, Load>, topology: &Topology, sizing: &Sizing) -> Sized {
    match sizing {
        Sizing::Fixed => (Vec::new(), Vec::new()),
        Sizing::Dynamic(advice) => (advice.splits.clone(), advice.merges.clone()),
        Sizing::Proportional { per_node } => {
            let wanted = *per_node as usize * topology.serving().count();
            let missing = wanted.saturating_sub(map.len()).min(map.len());
            let bytes = |id: &PartitionId| loads.get(id).map_or(0, |load| load.bytes);
            let mut largest: Vec<_> = map.partitions().map(|partition| partition.id).collect();
            largest.sort_by_key(|id| (core::cmp::Reverse(bytes(id)), *id));
            largest.truncate(missing);
            (largest, Vec::new())
        }
    }
}
