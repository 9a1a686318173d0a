//! Who holds what, as it will be after the moves planned so far.
//!
//! Invariant: a group's replicas are on different nodes after each move; pressures are whole numbers, so that plans are the same
//! on every machine.

use std::collections::{BTreeMap, BTreeSet};

use replikit_core::{GroupId, NodeId};

use super::{Evenness, GAIN_PERCENT_MIN, Move, Objective, START_PERCENT, STOP_PERCENT, Settings, Stuck, Why};
use crate::id::{DomainId, PartitionId};
use crate::load::Load;
use crate::map::{Decision, PartitionMap};
use crate::topology::{Node, Standing, Topology};

/// What a node has over what would be its part, in millionths; the worst of what is to be even.
type Pressure = u64;
const PART: Pressure = 1_000_000;
const PERCENT: Pressure = PART / 100;

type NodeIndex = usize;
type UnitIndex = usize;

/// What moves as one: a group, with the load of one of its replicas.
struct Unit {
    group: GroupId,
    load: Load,
    nodes: Vec<NodeIndex>,
    // An open handoff holds it where it is.
    held: bool,
    // The newest of its moves.
    last_move: Option<usize>,
}

struct Place {
    node: Node,
    count: u64,
    load: Load,
    units: Vec<UnitIndex>,
}

pub(super) struct State<'s> {
    settings: &'s Settings,
    places: Vec<Place>,
    units: Vec<Unit>,
    // Serving nodes by pressure.
    order: BTreeSet<(Pressure, NodeIndex)>,
    // Of all replicas: what the parts are parts of.
    capacity: u64,
    count: u64,
    load: Load,
    domains: usize,
    // None where a later one has brought the replica back.
    moves: Vec<Option<Move>>,
    stuck: Vec<Stuck>,
}

impl<'s> State<'s> {
    pub(super) fn new(
        map: &PartitionMap,
        loads: &BTreeMap<PartitionId, Load>,
        topology: &Topology,
        settings: &'s Settings,
    ) -> Self {
        let place = |node: Node| Place { node, count: 0, load: Load::NONE, units: Vec::new() };
        let mut places: Vec<Place> = topology.nodes().iter().map(|node| place(*node)).collect();
        let mut unknown: BTreeMap<NodeId, NodeIndex> = BTreeMap::new();
        let mut by_group: BTreeMap<GroupId, UnitIndex> = BTreeMap::new();
        let mut units: Vec<Unit> = Vec::new();
        for partition in map.partitions() {
            let load = loads.get(&partition.id).copied().unwrap_or_default();
            if let Some(&unit) = by_group.get(&partition.group) {
                units[unit].load += load;
                continue;
            }
            by_group.insert(partition.group, units.len());
            let mut index = |id: &NodeId| {
                topology.index(*id).unwrap_or_else(|| {
                    *unknown.entry(*id).or_insert_with(|| {
                        let node = Node::usual(*id, DomainId(u32::MAX));
                        places.push(place(Node { standing: Standing::Lost, ..node }));
                        places.len() - 1
                    })
                })
            };
            // Who is to leave a group counts no more, and a group that is on its way is left alone.
            let nodes = partition.stays().map(|node| index(&node)).collect();
            let held = partition.turnover.is_open();
            units.push(Unit { group: partition.group, load, nodes, held, last_move: None });
        }
        for handoff in map.handoffs().filter(|handoff| handoff.decision == Decision::Open) {
            for group in [handoff.source, handoff.target] {
                if let Some(&unit) = by_group.get(&group) {
                    units[unit].held = true;
                }
            }
        }
        let (mut count, mut load) = (0, Load::NONE);
        for (unit, index) in units.iter().zip(0..) {
            for &node in &unit.nodes {
                let place = &mut places[node];
                place.units.push(index);
                place.count += 1;
                place.load += unit.load;
                count += 1;
                load += unit.load;
            }
        }
        let capacity = topology.serving().map(|node| u64::from(node.capacity)).sum();
        let mut state = Self {
            settings,
            places,
            units,
            order: BTreeSet::new(),
            capacity,
            count,
            load,
            domains: topology.domains(),
            moves: Vec::new(),
            stuck: Vec::new(),
        };
        let serving = (0..state.places.len()).filter(|&node| state.serves(node));
        state.order = serving.map(|node| (state.pressure(node), node)).collect();
        state
    }

    fn serves(&self, node: NodeIndex) -> bool {
        self.places[node].node.standing == Standing::Serving
    }

    fn lives(&self, node: NodeIndex) -> bool {
        self.places[node].node.standing != Standing::Lost
    }

    fn domain(&self, node: NodeIndex) -> DomainId {
        self.places[node].node.domain
    }

    /// `have` of `all` over the part that a node of this capacity should have.
    fn over_part(&self, node: NodeIndex, have: u64, all: u64) -> Pressure {
        let part = u128::from(all) * u128::from(self.places[node].node.capacity);
        let over = u128::from(have) * u128::from(self.capacity) * u128::from(PART);
        u64::try_from(over.checked_div(part).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    fn pressure_of(&self, node: NodeIndex, count: u64, load: &Load) -> Pressure {
        match self.settings.objective {
            Objective::Count => self.over_part(node, count, self.count),
            Objective::Load => {
                let bytes = self.over_part(node, load.bytes, self.load.bytes);
                let ops = self.over_part(node, load.ops, self.load.ops);
                bytes.max(ops).max(self.over_part(node, load.cpu, self.load.cpu))
            }
        }
    }

    fn pressure(&self, node: NodeIndex) -> Pressure {
        self.pressure_of(node, self.places[node].count, &self.places[node].load)
    }

    /// Its pressure once it has one replica of the unit less.
    fn without(&self, node: NodeIndex, unit: &Unit) -> Pressure {
        let place = &self.places[node];
        let mut load = place.load;
        load -= unit.load;
        self.pressure_of(node, place.count - 1, &load)
    }

    /// Its pressure once it has one replica of the unit more.
    fn with(&self, node: NodeIndex, unit: &Unit) -> Pressure {
        let place = &self.places[node];
        self.pressure_of(node, place.count + 1, &(place.load + unit.load))
    }

    /// On how many failure domains the unit would be with these replicas, of nodes that live.
    fn spread_of(&self, nodes: impl Iterator<Item = NodeIndex>) -> usize {
        let mut domains: Vec<_> = nodes.filter(|&node| self.lives(node)).map(|node| self.domain(node)).collect();
        domains.sort_unstable();
        domains.dedup();
        domains.len()
    }

    fn spread_now(&self, unit: &Unit) -> usize {
        self.spread_of(unit.nodes.iter().copied())
    }

    fn spread_after(&self, unit: &Unit, from: Option<NodeIndex>, to: NodeIndex) -> usize {
        let rest = unit.nodes.iter().copied().filter(|&node| Some(node) != from);
        self.spread_of(rest.chain(std::iter::once(to)))
    }

    /// The least pressed serving node for a copy of the unit: one that brings the most failure domains.
    fn best_place(&self, unit: UnitIndex, from: Option<NodeIndex>) -> Option<NodeIndex> {
        let unit = &self.units[unit];
        let staying = self.spread_of(unit.nodes.iter().copied().filter(|&node| Some(node) != from));
        let mut second = None;
        for &(_, node) in self.order.iter().filter(|(_, node)| !unit.nodes.contains(node)) {
            if staying == self.domains || self.spread_after(unit, from, node) > staying {
                return Some(node);
            }
            second = second.or(Some(node));
        }
        second
    }

    fn shift(&mut self, unit: UnitIndex, from: Option<NodeIndex>, to: NodeIndex, why: Why) {
        for node in from.into_iter().chain([to]) {
            // Nodes that do not serve are not in it.
            self.order.remove(&(self.pressure(node), node));
        }
        let load = self.units[unit].load;
        let alive = |node: &&NodeIndex| self.lives(**node) && Some(**node) != from;
        let source = from.filter(|&node| self.lives(node)).or(self.units[unit].nodes.iter().find(alive).copied());
        let source = source.expect("a unit without a living copy is not moved");
        match from {
            Some(from) => {
                let place = &mut self.places[from];
                place.count -= 1;
                place.load -= load;
                let at = place.units.iter().position(|it| *it == unit).expect("it is there");
                place.units.swap_remove(at);
                let replica = self.units[unit].nodes.iter_mut().find(|node| **node == from);
                *replica.expect("the node has a replica of it") = to;
            }
            None => {
                self.units[unit].nodes.push(to);
                self.count += 1;
                self.load += load;
            }
        }
        let place = &mut self.places[to];
        place.count += 1;
        place.load += load;
        place.units.push(unit);
        if from.is_none() {
            // The parts of all nodes have changed.
            let order = core::mem::take(&mut self.order);
            self.order = order.into_iter().map(|(_, node)| (self.pressure(node), node)).collect();
        }
        for node in from.into_iter().chain([to]) {
            if self.serves(node) {
                self.order.insert((self.pressure(node), node));
            }
        }
        let id = |node: NodeIndex| self.places[node].node.id;
        // What was just to come here goes on at once to where it is to be.
        let last = self.units[unit].last_move.and_then(|last| Some((last, self.moves[last]?)));
        if let Some((last, before)) = last.filter(|(_, before)| Some(before.to) == from.map(id)) {
            let onward = Move { to: id(to), ..before };
            self.moves[last] = (onward.from != Some(onward.to)).then_some(onward);
            return;
        }
        let (from, to, source) = (from.map(id), id(to), id(source));
        self.units[unit].last_move = Some(self.moves.len());
        let group = self.units[unit].group;
        self.moves.push(Some(Move { group, from, to, source, bytes: load.bytes, why }));
    }

    /// Lost copies get a new node, missing ones too.
    pub(super) fn repair(&mut self) {
        for unit in 0..self.units.len() {
            let group = self.units[unit].group;
            if self.units[unit].held {
                continue;
            }
            if !self.units[unit].nodes.iter().any(|&node| self.lives(node)) {
                self.stuck.push(Stuck::NoCopy(group));
                continue;
            }
            loop {
                let lost = self.units[unit].nodes.iter().copied().find(|&node| !self.lives(node));
                if lost.is_none() && self.units[unit].nodes.len() >= self.settings.copies {
                    break;
                }
                let Some(to) = self.best_place(unit, lost) else {
                    self.stuck.push(Stuck::NoNode(group));
                    break;
                };
                self.shift(unit, lost, to, Why::Repair);
            }
        }
    }

    /// Nodes that are to be emptied give everything away.
    pub(super) fn drain(&mut self) {
        for from in 0..self.places.len() {
            if self.places[from].node.standing != Standing::Draining {
                continue;
            }
            let mut units = self.places[from].units.clone();
            units.sort_unstable();
            for unit in units.into_iter().filter(|&unit| !self.units[unit].held).collect::<Vec<_>>() {
                match self.best_place(unit, Some(from)) {
                    Some(to) => self.shift(unit, Some(from), to, Why::Drain),
                    None => self.stuck.push(Stuck::NoNode(self.units[unit].group)),
                }
            }
        }
    }

    /// Copies that share a failure domain part, as far as there are domains.
    pub(super) fn spread(&mut self) {
        for unit in 0..self.units.len() {
            if self.units[unit].held {
                continue;
            }
            loop {
                let it = &self.units[unit];
                let spread = self.spread_now(it);
                if spread >= self.domains.min(it.nodes.len()) {
                    break;
                }
                let shared = |&&node: &&NodeIndex| {
                    self.lives(node)
                        && it.nodes.iter().any(|&other| other != node && self.domain(other) == self.domain(node))
                };
                // Of the copies that share, the one on the most pressed node goes.
                let from = it.nodes.iter().filter(shared).max_by_key(|&&node| (self.pressure(node), node)).copied();
                let place = from.and_then(|from| Some((from, self.best_place(unit, Some(from))?)));
                match place.filter(|&(from, to)| self.spread_after(it, Some(from), to) > spread) {
                    Some((from, to)) => self.shift(unit, Some(from), to, Why::Spread),
                    None => break,
                }
            }
        }
    }

    /// From the most to the least pressed, as long as it helps.
    pub(super) fn even_out(&mut self) {
        let (start, stop) = match self.settings.objective {
            Objective::Count => (0, 0),
            Objective::Load => (START_PERCENT * PERCENT, STOP_PERCENT * PERCENT),
        };
        let Some((least, worst)) = self.extremes().filter(|it| it.1 > PART + start || it.0 + start < PART) else {
            return;
        };
        let planned = self.moves.len();
        let undo = (self.settings.objective == Objective::Load).then(|| self.undo_point());
        while self.moves.len() - planned < self.settings.budget.moves_max && self.pass(stop, planned) {}
        let gap = self.extremes().map_or(0, |(least, worst)| worst - least);
        if let Some(undo) = undo.filter(|_| gap + GAIN_PERCENT_MIN * PERCENT > worst - least) {
            self.undo(undo);
        }
    }

    /// The least and the most pressed node.
    fn extremes(&self) -> Option<(Pressure, Pressure)> {
        Some((self.order.first()?.0, self.order.last()?.0))
    }

    /// Relieves the most pressed nodes first, as far as it goes. Whether anything was moved.
    fn pass(&mut self, stop: Pressure, planned: usize) -> bool {
        let mut shifted = false;
        // These have nothing more to give in this pass.
        let mut given: BTreeSet<NodeIndex> = BTreeSet::new();
        while self.moves.len() - planned < self.settings.budget.moves_max {
            let open = |(_, node): &&(Pressure, NodeIndex)| !given.contains(node);
            let Some(&(pressure, from)) = self.order.iter().rev().find(open) else { break };
            // Who is hardly above its part gives only to those who are well below theirs: to nodes that have just come.
            let low_max = if pressure > PART + stop { pressure } else { PART.saturating_sub(stop) };
            if pressure <= PART {
                break;
            }
            match self.best_shift(from, pressure, low_max) {
                Some((unit, to)) => {
                    self.shift(unit, Some(from), to, Why::Evenness);
                    shifted = true;
                }
                None => {
                    given.insert(from);
                }
            }
        }
        shifted
    }

    /// What the node should give to the least pressed one that can take something.
    fn best_shift(&self, from: NodeIndex, pressure: Pressure, low_max: Pressure) -> Option<(UnitIndex, NodeIndex)> {
        for &(low, to) in self.order.iter().take_while(|(low, _)| *low < low_max) {
            let mut best: Option<(u128, core::cmp::Reverse<UnitIndex>)> = None;
            for &index in &self.places[from].units {
                let unit = &self.units[index];
                if unit.held || unit.nodes.contains(&to) {
                    continue;
                }
                let (rest, more) = (self.without(from, unit), self.with(to, unit));
                // At most half of the gap: who takes is not above who gave.
                if more > rest.max(low) || rest >= pressure || more >= pressure {
                    continue;
                }
                if self.spread_after(unit, Some(from), to) < self.spread_now(unit) {
                    continue;
                }
                best = best.max(Some((self.worth(unit, pressure - rest.max(more)), core::cmp::Reverse(index))));
            }
            if let Some((_, core::cmp::Reverse(unit))) = best {
                return Some((unit, to));
            }
        }
        None
    }

    /// By load, the most relief for the bytes, where a move also costs as if it had a quarter of the usual bytes, so that not only the
    /// smallest are moved. By count all relieve the same: what is nearest to the usual in everything is moved, and never more
    /// than the usual bytes while there is a choice, so that the loads do not come apart either.
    fn worth(&self, unit: &Unit, relief: Pressure) -> u128 {
        let count = self.count.max(1);
        let usual = Load { bytes: self.load.bytes / count, ops: self.load.ops / count, cpu: self.load.cpu / count };
        match self.settings.objective {
            Objective::Load => {
                (u128::from(relief) << 40) / u128::from(unit.load.bytes.saturating_add(usual.bytes / 4 + 1))
            }
            Objective::Count => {
                let off = |it: u64, usual: u64| (u128::from(it.abs_diff(usual)) << 20) / u128::from(usual.max(1));
                let off =
                    off(unit.load.bytes, usual.bytes) + off(unit.load.ops, usual.ops) + off(unit.load.cpu, usual.cpu);
                let large = u128::from(unit.load.bytes > usual.bytes) << 100;
                u128::MAX - off - large
            }
        }
    }

    fn undo_point(&self) -> UndoPoint {
        UndoPoint { moves: self.moves.clone(), nodes: self.units.iter().map(|unit| unit.nodes.clone()).collect() }
    }

    /// As it was at the point: a plan for evenness that is not worth it is not made at all.
    fn undo(&mut self, point: UndoPoint) {
        self.moves = point.moves;
        for place in &mut self.places {
            (place.count, place.load) = (0, Load::NONE);
            place.units.clear();
        }
        for (index, nodes) in point.nodes.into_iter().enumerate() {
            for &node in &nodes {
                let place = &mut self.places[node];
                place.count += 1;
                place.load += self.units[index].load;
                place.units.push(index);
            }
            self.units[index].nodes = nodes;
        }
    }

    pub(super) fn evenness(&self) -> Evenness {
        let serving = || (0..self.places.len()).filter(|&node| self.serves(node));
        let worst = |have: &dyn Fn(&Place) -> u64, all: u64| {
            let worst = serving().map(|node| self.over_part(node, have(&self.places[node]), all)).max();
            if all == 0 { 1.0 } else { worst.unwrap_or(PART) as f64 / PART as f64 }
        };
        Evenness {
            count: worst(&|place| place.count, self.count),
            bytes: worst(&|place| place.load.bytes, self.load.bytes),
            ops: worst(&|place| place.load.ops, self.load.ops),
            cpu: worst(&|place| place.load.cpu, self.load.cpu),
        }
    }

    pub(super) fn node_loads(&self) -> Vec<(NodeId, u64, Load)> {
        self.places.iter().map(|place| (place.node.id, place.count, place.load)).collect()
    }

    pub(super) fn into_moves(self) -> (Vec<Move>, Vec<Stuck>) {
        (self.moves.into_iter().flatten().collect(), self.stuck)
    }
}

struct UndoPoint {
    moves: Vec<Option<Move>>,
    nodes: Vec<Vec<NodeIndex>>,
}
