//! The store under watch: its clients, its operator, and what nodes know of the map.

use std::sync::Arc;

use core::time::Duration;
use replikit_core::{Event, GroupId, NodeId, Outcome, Token};
use replikit_partitioning::PartitionMap;
use replikit_sim::{Clients, Replicas, Subject};

use super::clients::PlacedClients;
use super::operator::Operator;
use super::{Head, Layout, Node};
use crate::plan::Plan;
use crate::probe::{Probe, Probes};

/// The store with all that watches it.
pub(crate) struct PlacedSubject {
    layout: Layout,
    pub(crate) clients: PlacedClients,
    operator: Operator,
    pub(crate) probes: Probes,
    bounded: bool,
    moves: bool,
    // The newest map that anybody has.
    map: Arc<PartitionMap>,
}

impl PlacedSubject {
    pub(crate) fn new(plan: &Plan, layout: Layout, bounded: bool, moves: bool) -> Self {
        let workload = &plan.workload;
        let map = Arc::new(layout.first.clone());
        Self {
            clients: PlacedClients::new(
                Arc::clone(&map),
                workload.clients.max(2),
                workload.think_max,
                workload.timeout,
            ),
            operator: Operator::new(&mut plan.rng(2)),
            probes: Probes::default(),
            bounded,
            moves,
            map,
            layout,
        }
    }

    /// Nobody places anything any more.
    pub(crate) const fn heal(&mut self) {
        self.operator.stop();
    }

    pub(crate) fn describe(&self) -> String {
        let placed: Vec<_> = self.map.partitions().map(|it| (it.group, it.placement, &it.replicas)).collect();
        format!("{}; the map at {} has {placed:?}", self.clients.describe(), self.map.epoch())
    }

    /// Whether the owners of every group are those that the map names, and everybody has that map.
    pub(crate) fn is_at_rest(&self, replicas: &impl Replicas<Node>) -> bool {
        self.map.partitions().all(|partition| {
            let mut owners = partition.replicas.clone();
            owners.sort_unstable();
            owners.iter().all(|node| {
                let host = replicas.replica(*node).filter(|host| host.map().epoch() == self.map.epoch());
                let group = host.and_then(|host| host.groups().replica(partition.group));
                group.and_then(|group| group.as_other()).is_some_and(|replica| replica.is_serving(&owners))
            })
        })
    }
}

impl Subject<Node> for PlacedSubject {
    fn on_alarm(&mut self, client: u32, hands: &mut Clients<Head>) {
        let operator = self.clients.count() + 1;
        if client == 0 {
            self.clients.start(hands);
            if self.moves {
                hands.alarm(operator, Duration::from_millis(20));
            }
        } else if client == operator {
            self.operator.on_alarm(client, &self.map, &self.layout, hands);
        } else {
            self.clients.on_alarm(client, &self.map, hands, &mut self.probes);
        }
    }

    fn on_done(&mut self, _: NodeId, token: Token, outcome: Outcome, hands: &mut Clients<Head>) -> Result<(), String> {
        let kept = self.clients.on_done(token, &outcome, &self.map, hands, &mut self.probes);
        if self.bounded { kept } else { Ok(()) }
    }

    fn on_event(&mut self, _: NodeId, _: GroupId, event: &Event) -> Result<(), String> {
        match event {
            Event::EpochBegun { .. } => self.probes.hit(Probe::PlacementBegun),
            Event::Evicted { .. } => self.probes.hit(Probe::PlacedElsewhere),
            Event::Retired { .. } => self.probes.hit(Probe::PlacedDropped),
            Event::BeganAnew { .. } => self.probes.hit(Probe::PlacedHereAgain),
            _ => {}
        }
        Ok(())
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Node>) -> Result<(), String> {
        let Some(host) = replicas.replica(node) else { return Ok(()) };
        if host.map().epoch() > self.map.epoch() {
            self.map = Arc::clone(host.map());
        }
        Ok(())
    }
}
