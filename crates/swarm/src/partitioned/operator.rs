//! Who splits, merges, hands off and aborts, at random: all that a person or a balancer could ask for, at any moment.

use core::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{Input, WriteLevel};
use replikit_partitioning::host::HostHead;
use replikit_partitioning::{Change, Decision, MetaCommand, PartitionMap};
use replikit_sim::Clients;
use replikit_single_leader::Head;

use super::{KEYS, Layout, MAPS};

/// An operator.
#[derive(Debug)]
pub(crate) struct Operator {
    every: Duration,
    stopped: bool,
}

impl Operator {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { every: Duration::from_millis(rng.u64(10..120)), stopped: false }
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    fn wanted(map: &PartitionMap, layout: &Layout, rng: &mut Rng) -> Change {
        let partitions: Vec<_> = map.partitions().collect();
        let nth = rng.usize(0..partitions.len());
        let partition = partitions[nth];
        let open = map.handoffs().find(|it| it.decision == Decision::Open);
        match (rng.u8(0..10), open) {
            (0, Some(handoff)) => Change::AbortHandoff(handoff.id),
            (1..=3, _) => {
                let family = ["a", "a+", "key", "key+"][rng.usize(0..4)];
                let at = Bytes::from(format!("{family}{}", rng.u32(0..KEYS)));
                Change::Split { partition: map.partition_of(&at).id, at }
            }
            (4 | 5, _) if nth > 0 => Change::Merge { left: partitions[nth - 1].id, right: partition.id },
            _ => {
                let groups: Vec<_> = Layout::data_groups().filter(|group| *group != partition.group).collect();
                let target = groups[rng.usize(0..groups.len())];
                Change::PlanHandoff { partition: partition.id, target, replicas: layout.members(target) }
            }
        }
    }

    /// Asks for a change, and comes again.
    pub(crate) fn on_alarm(
        &self,
        client: u32,
        map: &PartitionMap,
        layout: &Layout,
        hands: &mut Clients<HostHead<Head>>,
    ) {
        if self.stopped {
            return;
        }
        let change = Self::wanted(map, layout, &mut hands.rng);
        let command = MetaCommand::Change { at: map.epoch(), change };
        // Whoever leads it takes it.
        for node in layout.members(MAPS) {
            let (level, body) = (WriteLevel::Quorum, command.encode());
            hands.request(node, |token| Input::Command { token, group: MAPS, level, session: None, body });
        }
        let after = Duration::from_nanos(hands.rng.u64(0..=2 * self.every.as_nanos() as u64));
        hands.alarm(client, after);
    }
}
