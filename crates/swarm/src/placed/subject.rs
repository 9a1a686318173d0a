//! The store under watch: its clients, its operator, and what nodes know of the map.

use std::sync::Arc;

use core::marker::PhantomData;
use core::time::Duration;
use replikit_core::{Event, GroupId, NodeId, Outcome, Token};
use replikit_partitioning::PartitionMap;
use replikit_sim::{Clients, Replicas, Subject};

use super::clients::PlacedClients;
use super::operator::Operator;
use super::{Head, Kind, Layout, Node};
use crate::plan::Plan;
use crate::probe::{Probe, Probes};

/// The store with all that watches it.
pub(crate) struct PlacedSubject<K> {
    layout: Layout,
    pub(crate) clients: PlacedClients,
    operator: Operator,
    pub(crate) probes: Probes,
    bounded: bool,
    moves: bool,
    // The newest map that anybody has.
    map: Arc<PartitionMap>,
    kind: PhantomData<K>,
}

impl<K: Kind> PlacedSubject<K> {
    pub(crate) fn new(plan: &Plan, layout: Layout, bounded: bool, moves: bool) -> Self {
        let workload = &plan.workload;
        let map = Arc::new(layout.first.clone());
        Self {
            clients: PlacedClients::new(
                Arc::clone(&map),
                K::STYLE,
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
            kind: PhantomData,
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

    /// Whether the nodes of every group are those that the map names, and everybody has that map.
    pub(crate) fn is_at_rest(&self, replicas: &impl Replicas<Node<K>>) -> bool {
        self.map.partitions().all(|partition| {
            let mut owners = partition.replicas.clone();
            owners.sort_unstable();
            let here = |node: &NodeId| {
                let host = replicas.replica(*node).filter(|host| host.map().epoch() == self.map.epoch());
                host.and_then(|host| host.groups().replica(partition.group)).and_then(|group| group.as_other())
            };
            let here: Option<Vec<&K::Replica>> = owners.iter().map(here).collect();
            !partition.turnover.is_open() && here.is_some_and(|here| K::is_at_rest(&here, &owners))
        })
    }

    /// Whether the replicas of each group agree in the end.
    ///
    /// # Errors
    /// Which ones do not.
    pub(crate) fn check_agreed(&self, replicas: &impl Replicas<Node<K>>) -> Result<(), String> {
        self.map.partitions().try_for_each(|partition| {
            let here = |node: &NodeId| replicas.replica(*node)?.groups().replica(partition.group)?.as_other();
            let hashes: Vec<Option<u64>> = partition.replicas.iter().map(|node| here(node).and_then(K::hash)).collect();
            match hashes.windows(2).all(|pair| pair[0] == pair[1]) {
                true => Ok(()),
                false => Err(format!(
                    "placed_leaders_agree: nodes {:?} of group {}: {hashes:?}",
                    partition.replicas, partition.group
                )),
            }
        })
    }
}

impl<K: Kind> Subject<Node<K>> for PlacedSubject<K> {
    fn on_alarm(&mut self, client: u32, hands: &mut Clients<Head<K>>) {
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

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        hands: &mut Clients<Head<K>>,
    ) -> Result<(), String> {
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

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Node<K>>) -> Result<(), String> {
        let Some(host) = replicas.replica(node) else { return Ok(()) };
        if host.map().epoch() > self.map.epoch() {
            self.map = Arc::clone(host.map());
        }
        Ok(())
    }
}
