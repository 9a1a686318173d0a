//! Who belongs to the group, and when which node hears of it.
//!
//! Invariant: memberships follow each other as a register would have them; each node hears of them in order, some late, some
//! only of the last one, and one that was evicted perhaps only once it is named again.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use replikit_core::{Announcements, Epoch, EpochSource, Membership, NodeId, NodeInfo};

/// Alarms from this one on are for nodes that hear of an epoch.
pub(crate) const FIRST_ALARM: u32 = 1 << 20;

/// A change of the members.
#[derive(Debug)]
struct Change {
    at: Duration,
    membership: Membership,
    /// How much later each node hears of it.
    delays: BTreeMap<NodeId, Duration>,
}

/// The memberships of a run.
#[derive(Debug)]
pub(crate) struct Census {
    sources: BTreeMap<NodeId, Arc<Announcements>>,
    changes: Vec<Change>,
    founding: Membership,
    newest: Membership,
    /// Nodes that were no member at some time.
    outside: BTreeSet<NodeId>,
}

fn info(node: NodeId) -> NodeInfo {
    NodeInfo { id: node, address: String::new(), region: String::new(), zone: String::new() }
}

impl Census {
    /// All nodes for ever, or changes within some time.
    pub(crate) fn draw(rng: &mut Rng, nodes: u32, lasts: Duration, changes: bool) -> Self {
        let all: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let mut members: BTreeSet<NodeId> = all.iter().copied().collect();
        let changes = if changes && nodes >= 3 && rng.u8(0..3) > 0 { rng.u32(1..=4) } else { 0 };
        if changes > 0 && rng.u8(0..3) == 0 {
            members.remove(&NodeId(rng.u32(1..=nodes)));
        }
        let mut membership = Membership::founding(members.iter().copied().map(info).collect());
        let founding = membership.clone();
        let sources = all.iter().map(|node| (*node, Arc::new(Announcements::new(membership.clone())))).collect();
        let mut outside: BTreeSet<NodeId> = all.iter().copied().filter(|node| !members.contains(node)).collect();
        let micros = lasts.as_micros() as u64;
        let mut times: Vec<u64> = (0..changes).map(|_| rng.u64(micros / 10..=micros)).collect();
        times.sort_unstable();
        let mut planned = Vec::new();
        for at in times {
            let absent: Vec<NodeId> = all.iter().copied().filter(|node| !members.contains(node)).collect();
            let joins = !absent.is_empty() && rng.bool();
            if joins {
                members.insert(absent[rng.usize(0..absent.len())]);
            }
            if members.len() > 2 && (!joins || rng.u8(0..4) == 0) {
                let leaver = all[rng.usize(0..all.len())];
                members.remove(&leaver);
                outside.insert(leaver);
            }
            membership = membership.next(members.iter().copied().map(info).collect());
            let slow = rng.u8(0..3) == 0;
            let delays = all.iter().map(|node| {
                let most = if slow && rng.bool() { micros } else { 50_000 };
                (*node, Duration::from_micros(rng.u64(0..=most)))
            });
            let delays = delays.collect();
            planned.push(Change { at: Duration::from_micros(at), membership: membership.clone(), delays });
        }
        Self { sources, changes: planned, founding, newest: membership, outside }
    }

    /// Where a node learns of its memberships.
    pub(crate) fn source(&self, node: NodeId) -> Arc<Announcements> {
        self.sources[&node].clone()
    }

    /// Whether the members change.
    pub(crate) fn changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The alarms to set at the beginning: which, and when.
    pub(crate) fn alarms(&self) -> Vec<(u32, Duration)> {
        let nodes = self.sources.len() as u32;
        let mut alarms = Vec::new();
        for (number, change) in self.changes.iter().enumerate() {
            for (node, delay) in &change.delays {
                alarms.push((FIRST_ALARM + number as u32 * nodes + node.0 - 1, change.at + *delay));
            }
        }
        alarms
    }

    /// Takes an alarm, if it is one of these.
    pub(crate) fn on_alarm(&self, alarm: u32) -> bool {
        let Some(alarm) = alarm.checked_sub(FIRST_ALARM) else { return false };
        let nodes = self.sources.len() as u32;
        let (number, node) = (alarm / nodes, NodeId(alarm % nodes + 1));
        self.sources[&node].announce(self.changes[number as usize].membership.clone());
        true
    }

    /// Everybody hears of the last epoch; if members have changed at all, it is one without those who stay dead.
    pub(crate) fn finish(&mut self, dead: &[NodeId]) {
        if !self.changes() {
            return;
        }
        if self.newest.ids().any(|node| dead.contains(&node)) {
            let left: Vec<NodeId> = self.newest.ids().filter(|node| !dead.contains(node)).collect();
            // Somebody has to be left.
            let all = self.sources.keys().copied().filter(|node| !dead.contains(node));
            let left: Vec<NodeId> = if left.is_empty() { all.collect() } else { left };
            self.newest = self.newest.next(left.into_iter().map(info).collect());
            self.outside.extend(dead);
        }
        for source in self.sources.values() {
            source.announce(self.newest.clone());
        }
    }

    /// The members in the end.
    pub(crate) fn members(&self) -> Vec<NodeId> {
        self.newest.ids().collect()
    }

    /// The newest epoch that a node can learn of now, and its members.
    pub(crate) fn known_at(&self, node: NodeId) -> (Epoch, Vec<NodeId>) {
        let membership = self.sources[&node].current();
        (membership.epoch, membership.ids().collect())
    }

    /// How many members there are in each of the memberships, all of them.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = u8> + '_ {
        let all = core::iter::once(&self.founding).chain(self.changes.iter().map(|change| &change.membership));
        all.chain([&self.newest]).map(|membership| membership.nodes.len() as u8)
    }

    /// The fewest members that there are at some time.
    pub(crate) fn fewest(&self) -> u8 {
        self.sizes().min().unwrap_or(0)
    }

    /// Whether more than half of each membership is left without these nodes.
    pub(crate) fn outlives(&self, dead: &[NodeId]) -> bool {
        let all = core::iter::once(&self.founding).chain(self.changes.iter().map(|change| &change.membership));
        let mut all = all.chain([&self.newest]);
        all.all(|membership| {
            let gone = membership.ids().filter(|node| dead.contains(node)).count();
            gone * 2 < membership.nodes.len()
        })
    }

    /// Whether a node was no member at some time, or will be none.
    pub(crate) fn is_ever_outside(&self, node: NodeId) -> bool {
        self.outside.contains(&node)
    }
}
