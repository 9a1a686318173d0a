//! The same for groups that stay on their nodes: which partitions should go to which other group.
//!
//! Invariants: the same input gives the same plan; each shift for evenness leaves the more pressed of the nodes that it touches less
//! pressed than the most pressed of them was, so a plan ends, and what is planned again after it was carried out is nothing.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use replikit_core::{GroupId, NodeId};

use super::{Evenness, Objective, START_PERCENT, Why};
use crate::id::PartitionId;
use crate::load::Load;
use crate::map::{Decision, PartitionMap};
use crate::topology::{Standing, Topology};

/// A partition that is handed to another group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Which partition.
    pub partition: PartitionId,
    /// The group that has it.
    pub from: GroupId,
    /// The group that is to have it.
    pub to: GroupId,
    /// The nodes of that group.
    pub replicas: Vec<NodeId>,
    /// Bytes to copy, on all of these nodes together.
    pub bytes: u64,
    /// What for: [`Why::Drain`] or [`Why::Evenness`].
    pub why: Why,
}

/// What to do, and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shifts {
    /// One after the other.
    pub shifts: Vec<Shift>,
    /// Partitions that have to leave a node, and find no group without it.
    pub stuck: Vec<PartitionId>,
    /// How even it is now.
    pub before: Evenness,
    /// How even it will be.
    pub after: Evenness,
}

impl Shifts {
    /// Bytes to copy in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shifts.iter().map(|shift| shift.bytes).sum()
    }
}

impl fmt::Display for Shifts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} partitions to hand over, {} bytes, {} stuck",
            self.shifts.len(),
            self.bytes(),
            self.stuck.len()
        )?;
        let row = |it: &Evenness| format!("replicas {:.3}, bytes {:.3}", it.count, it.bytes);
        writeln!(f, "worst node over its part now:   {}", row(&self.before))?;
        write!(f, "worst node over its part after: {}", row(&self.after))
    }
}

/// Plans, between the groups that have a partition by this map. `loads` says what one replica of each partition takes; those that it
/// does not name take nothing. Partitions with a handoff that is not forgotten stay where they are. At most `shifts_max` are
/// for evenness; nodes that are to be emptied are emptied whatever it takes.
#[must_use]
pub fn shifts(
    map: &PartitionMap,
    loads: &BTreeMap<PartitionId, Load>,
    topology: &Topology,
    objective: Objective,
    shifts_max: usize,
) -> Shifts {
    let mut nodes = Nodes::new(map, loads, topology, objective);
    let before = nodes.evenness();
    nodes.drain();
    nodes.even_out(shifts_max);
    let after = nodes.evenness();
    Shifts { shifts: nodes.planned.into_values().collect(), stuck: nodes.stuck, before, after }
}

/// What a node has over what would be its part, in millionths.
type Pressure = u64;
const PART: Pressure = 1_000_000;

struct Piece {
    id: PartitionId,
    group: GroupId,
    load: Load,
    is_held: bool,
}

struct Nodes<'t> {
    topology: &'t Topology,
    objective: Objective,
    groups: BTreeMap<GroupId, Vec<NodeId>>,
    pieces: Vec<Piece>,
    have: BTreeMap<NodeId, (u64, Load)>,
    count: u64,
    load: Load,
    capacity: u64,
    // By partition: each is handed over once, to where it is to be in the end.
    planned: BTreeMap<PartitionId, Shift>,
    stuck: Vec<PartitionId>,
}

impl<'t> Nodes<'t> {
    fn new(
        map: &PartitionMap,
        loads: &BTreeMap<PartitionId, Load>,
        topology: &'t Topology,
        objective: Objective,
    ) -> Self {
        let busy: BTreeSet<PartitionId> = map.handoffs().map(|handoff| handoff.partition).collect();
        let open = map.handoffs().filter(|handoff| handoff.decision == Decision::Open);
        let busy_groups: BTreeSet<GroupId> = open.map(|handoff| handoff.target).collect();
        let mut nodes = Self {
            topology,
            objective,
            groups: map.partitions().map(|it| (it.group, it.replicas.clone())).collect(),
            pieces: Vec::new(),
            have: topology.nodes().iter().map(|node| (node.id, (0, Load::NONE))).collect(),
            count: 0,
            load: Load::NONE,
            capacity: topology.serving().map(|node| u64::from(node.capacity)).sum(),
            planned: BTreeMap::new(),
            stuck: Vec::new(),
        };
        for partition in map.partitions() {
            let load = loads.get(&partition.id).copied().unwrap_or_default();
            let is_held = busy.contains(&partition.id) || busy_groups.contains(&partition.group);
            nodes.pieces.push(Piece { id: partition.id, group: partition.group, load, is_held });
            for &replica in &partition.replicas {
                nodes.count += 1;
                nodes.load += load;
                let have = nodes.have.entry(replica).or_insert((0, Load::NONE));
                have.0 += 1;
                have.1 += load;
            }
        }
        nodes
    }

    fn over_part(&self, node: NodeId, have: u64, all: u64) -> Pressure {
        let Some(at) = self.topology.index(node) else { return Pressure::MAX };
        let part = u128::from(all) * u128::from(self.topology.nodes()[at].capacity);
        let over = u128::from(have) * u128::from(self.capacity) * u128::from(PART);
        u64::try_from(over.checked_div(part).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    fn serves(&self, node: NodeId) -> bool {
        self.topology.index(node).is_some_and(|at| self.topology.nodes()[at].standing == Standing::Serving)
    }

    fn pressure_of(&self, node: NodeId, (count, load): (u64, Load)) -> Pressure {
        match self.objective {
            Objective::Count => self.over_part(node, count, self.count),
            Objective::Load => {
                let bytes = self.over_part(node, load.bytes, self.load.bytes);
                let ops = self.over_part(node, load.ops, self.load.ops);
                bytes.max(ops).max(self.over_part(node, load.cpu, self.load.cpu))
            }
        }
    }

    fn pressure(&self, node: NodeId) -> Pressure {
        self.pressure_of(node, self.have[&node])
    }

    /// The most pressed of the nodes that a shift touches, before and after it; none where it touches none.
    fn touched(&self, piece: &Piece, to: GroupId) -> Option<(Pressure, Pressure)> {
        let (old, new) = (&self.groups[&piece.group], &self.groups[&to]);
        let leaves = old.iter().filter(|node| !new.contains(node)).map(|&node| {
            let (count, mut load) = self.have[&node];
            load -= piece.load;
            (node, (count - 1, load))
        });
        let comes = new.iter().filter(|node| !old.contains(node)).map(|&node| {
            let (count, load) = self.have[&node];
            (node, (count + 1, load + piece.load))
        });
        let both = leaves.chain(comes).map(|(node, have)| (self.pressure(node), self.pressure_of(node, have)));
        both.reduce(|(before, after), (b, a)| (before.max(b), after.max(a)))
    }

    fn shift(&mut self, at: usize, to: GroupId, why: Why) {
        let Piece { id, group: from, load, .. } = self.pieces[at];
        let replicas = self.groups[&to].clone();
        for (nodes, is_new) in [(self.groups[&from].clone(), false), (replicas.clone(), true)] {
            for node in nodes {
                let have = self.have.get_mut(&node).expect("all nodes of groups are counted");
                if is_new {
                    have.0 += 1;
                    have.1 += load;
                } else {
                    have.0 -= 1;
                    have.1 -= load;
                }
            }
        }
        self.pieces[at].group = to;
        let bytes = load.bytes * replicas.len() as u64;
        let new = Shift { partition: id, from, to, replicas, bytes, why };
        let from = self.planned.get(&id).map_or(from, |first| first.from);
        if from == to {
            self.planned.remove(&id);
        } else {
            let why = self.planned.get(&id).map_or(why, |first| first.why);
            self.planned.insert(id, Shift { from, why, ..new });
        }
    }

    /// Nodes that do not serve any more give all partitions away.
    fn drain(&mut self) {
        for at in 0..self.pieces.len() {
            let piece = &self.pieces[at];
            let is_served = |nodes: &[NodeId]| nodes.iter().all(|node| self.serves(*node));
            if is_served(&self.groups[&piece.group]) {
                continue;
            }
            let free = self.groups.iter().filter(|(_, nodes)| is_served(nodes)).map(|(group, _)| *group);
            let best = free.min_by_key(|to| (self.touched(piece, *to).map(|(_, after)| after), self.held_by(*to), *to));
            match best.filter(|_| !piece.is_held) {
                Some(to) => self.shift(at, to, Why::Drain),
                None => self.stuck.push(piece.id),
            }
        }
    }

    fn held_by(&self, group: GroupId) -> usize {
        self.pieces.iter().filter(|piece| piece.group == group).count()
    }

    /// From the most pressed node to where it helps most, as long as it helps.
    fn even_out(&mut self, shifts_max: usize) {
        let serving: Vec<NodeId> = self.topology.serving().map(|node| node.id).collect();
        let start = match self.objective {
            Objective::Count => 0,
            Objective::Load => PART / 100 * START_PERCENT,
        };
        let drained = self.planned.len();
        let worst = serving.iter().map(|node| self.pressure(*node)).max();
        if worst.is_none_or(|worst| worst <= PART + start) {
            return;
        }
        // A partition that comes back, or goes on, does not count twice; so the steps are limited too.
        for _ in 0..4 * self.pieces.len() {
            if self.planned.len() - drained.min(self.planned.len()) >= shifts_max || !self.relieve(&serving) {
                break;
            }
        }
    }

    fn relieve(&mut self, serving: &[NodeId]) -> bool {
        let mut by_pressure = serving.to_vec();
        by_pressure.sort_by_key(|node| (core::cmp::Reverse(self.pressure(*node)), *node));
        for node in by_pressure {
            let pressure = self.pressure(node);
            if pressure <= PART {
                return false;
            }
            let mut best: Option<(Pressure, usize, GroupId)> = None;
            for (at, piece) in self.pieces.iter().enumerate() {
                if piece.is_held || !self.groups[&piece.group].contains(&node) {
                    continue;
                }
                for (&to, nodes) in &self.groups {
                    if nodes.contains(&node) || !nodes.iter().all(|node| self.serves(*node)) {
                        continue;
                    }
                    let Some((before, after)) = self.touched(piece, to) else { continue };
                    if after < before && best.is_none_or(|(least, ..)| after < least) {
                        best = Some((after, at, to));
                    }
                }
            }
            if let Some((_, at, to)) = best {
                self.shift(at, to, Why::Evenness);
                return true;
            }
        }
        false
    }

    fn evenness(&self) -> Evenness {
        let worst = |have: &dyn Fn(&(u64, Load)) -> u64, all: u64| {
            let over =
                self.topology.serving().map(|node| self.over_part(node.id, have(&self.have[&node.id]), all)).max();
            if all == 0 { 1.0 } else { over.unwrap_or(PART) as f64 / PART as f64 }
        };
        Evenness {
            count: worst(&|have| have.0, self.count),
            bytes: worst(&|have| have.1.bytes, self.load.bytes),
            ops: worst(&|have| have.1.ops, self.load.ops),
            cpu: worst(&|have| have.1.cpu, self.load.cpu),
        }
    }
}
