//! Who places groups on other nodes, at random.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{Input, NodeId, WriteLevel};
use replikit_partitioning::{Change, MetaCommand, PartitionMap};
use replikit_sim::Clients;

use super::{Layout, MAPS};

/// An operator.
#[derive(Debug)]
pub(crate) struct Operator {
    every: Duration,
    stopped: bool,
}

impl Operator {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { every: Duration::from_millis(rng.u64(20..400)), stopped: false }
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    /// Another place for a group: most often one node less and one more, sometimes all others.
    fn wanted(map: &PartitionMap, nodes: u32, rng: &mut Rng) -> Change {
        let partitions: Vec<_> = map.partitions().collect();
        let partition = partitions[rng.usize(0..partitions.len())];
        let mut others: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        others.retain(|node| !partition.replicas.contains(node));
        rng.shuffle(&mut others);
        let mut replicas = partition.replicas.clone();
        rng.shuffle(&mut replicas);
        match rng.u8(0..8) {
            0 if others.len() >= 2 => replicas = others,
            1 if replicas.len() > 2 => _ = replicas.pop(),
            2 => replicas.extend(others.pop()),
            _ => {
                replicas.extend(others.pop());
                if replicas.len() > 3 {
                    replicas.remove(0);
                }
            }
        }
        Change::Place { group: partition.group, replicas }
    }

    /// Asks for a change, and comes again.
    pub(crate) fn on_alarm<H>(&self, client: u32, map: &PartitionMap, layout: &Layout, hands: &mut Clients<H>) {
        if self.stopped {
            return;
        }
        let change = Self::wanted(map, layout.nodes, &mut hands.rng);
        let command = MetaCommand::Change { at: map.epoch(), change };
        // Whoever leads the log of maps takes it.
        for node in layout.map_nodes() {
            let (level, body) = (WriteLevel::Quorum, command.encode());
            hands.request(node, |token| Input::Command { token, group: MAPS, level, session: None, body });
        }
        let after = Duration::from_nanos(hands.rng.u64(0..=2 * self.every.as_nanos() as u64));
        hands.alarm(client, after);
    }
}
