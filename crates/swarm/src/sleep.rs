//! Groups in one container that sleep when nothing happens: what was seen of it, and what must hold once all is quiet.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use replikit_core::{GroupId, NodeId, Position, Role, StateMachine, Term};
use replikit_partitioning::NodeHeartbeats;
use replikit_single_leader::{Raft, Timeouts};

use crate::plan::Plan;
use crate::probe::{Probe, Probes};

/// Every invariant of sleeping groups by the name with which a violation begins, and its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("idle_groups_sleep", "When all is quiet, every replica of every group sleeps, also after a node came back."),
    ("sleeping_groups_are_silent", "A group that sleeps sends nothing until something happens."),
    ("leaders_of_the_dead_are_replaced", "A sleeping group whose leader's node dies has another leader soon."),
    (
        "nobody_sleeps_behind",
        "A follower that sleeps under a sleeping leader has its log, if the leader takes its node for there.",
    ),
    (
        "sleeping_replicas_agree",
        "When all replicas of a group sleep, they hold the same log and have applied all of it.",
    ),
];

/// After so long a seed's groups sleep; one seed out of eight has groups that never do.
pub(crate) fn hibernate_after(plan: &Plan, timeouts: &Timeouts) -> Option<Duration> {
    let mut rng = plan.rng(5);
    let heartbeats = rng.u32(1..6);
    (rng.u8(0..8) > 0).then(|| timeouts.heartbeat * heartbeats)
}

/// How the nodes watch each other; `life` differs at each start.
pub(crate) const fn heartbeats(timeouts: &Timeouts, life: u64) -> NodeHeartbeats {
    NodeHeartbeats { every: timeouts.heartbeat, patience: timeouts.election, life }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    is_asleep: bool,
    role: Role,
    term: Term,
    last: Position,
    gone: Vec<NodeId>,
}

impl Seen {
    fn sleeps_as_leader(&self) -> bool {
        self.is_asleep && self.role == Role::Leader
    }

    /// Whether it sleeps under a leader that knows it to be there, and does not have its log.
    fn is_behind(&self, node: NodeId, leader: &Self) -> bool {
        let is_under = self.is_asleep && self.role == Role::Follower && self.term == leader.term;
        leader.sleeps_as_leader() && is_under && self.last != leader.last && !leader.gone.contains(&node)
    }
}

/// What was seen of each replica when it ran last.
#[derive(Debug, Default)]
pub(crate) struct Sleepers {
    seen: BTreeMap<(GroupId, NodeId), Seen>,
    down: BTreeSet<NodeId>,
    pub(crate) probes: Probes,
}

impl Sleepers {
    pub(crate) fn started(&mut self, node: NodeId) {
        self.down.remove(&node);
    }

    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.down.insert(node);
        if self.seen.iter().any(|((_, of), seen)| *of == node && seen.sleeps_as_leader()) {
            self.probes.hit(Probe::SleepingLeaderDied);
        }
        self.seen.retain(|(_, of), _| *of != node);
    }

    /// A replica has run.
    pub(crate) fn ran<M: StateMachine>(&mut self, group: GroupId, node: NodeId, raft: &Raft<M>) -> Result<(), String> {
        let (is_asleep, gone) = (raft.is_asleep(), raft.gone().to_vec());
        let seen = Seen { is_asleep, role: raft.role(), term: raft.term(), last: raft.last(), gone };
        let before = self.seen.insert((group, node), seen.clone());
        if before.as_ref() == Some(&seen) {
            return Ok(());
        }
        self.probe(group, before.as_ref(), &seen);
        let of_group = || self.seen.range((group, NodeId(0))..=(group, NodeId(u32::MAX)));
        for (_, leader) in of_group() {
            if let Some(((_, node), behind)) = of_group().find(|((_, node), it)| it.is_behind(*node, leader)) {
                return Err(format!(
                    "nobody_sleeps_behind: in group {group} node {node} at {behind:?} under {leader:?}"
                ));
            }
        }
        Ok(())
    }

    fn probe(&mut self, group: GroupId, before: Option<&Seen>, seen: &Seen) {
        let was_asleep = before.is_some_and(|before| before.is_asleep);
        if seen.role != Role::Leader {
            if was_asleep && !seen.is_asleep && before.is_some_and(|before| before.role == seen.role) {
                self.probes.hit(Probe::FollowerWoke);
            }
            return;
        }
        match (was_asleep, seen.is_asleep) {
            (false, true) => {
                self.probes.hit(Probe::GroupSlept);
                if !self.down.is_empty() {
                    self.probes.hit(Probe::GroupSleptWithoutSome);
                }
            }
            (true, false) => self.probes.hit(Probe::LeaderWoke),
            _ => {}
        }
        let of_group = self.seen.range((group, NodeId(0))..=(group, NodeId(u32::MAX)));
        let is_old = |other: &Seen| other.sleeps_as_leader() && other.term < seen.term;
        if of_group.into_iter().any(|(_, other)| is_old(other)) {
            self.probes.hit(Probe::SleepingLeaderReplaced);
        }
    }
}

/// Replicas of a group that all sleep are equal.
pub(crate) fn agree<'a, M: StateMachine + 'a>(
    group: GroupId,
    mut replicas: impl Iterator<Item = &'a Raft<M>>,
) -> Result<(), String> {
    let held = |raft: &Raft<M>| (raft.last(), raft.applied(), raft.commit_index());
    let Some(first) = replicas.next().map(held) else { return Ok(()) };
    if first.0 != first.1 {
        return Err(format!("sleeping_replicas_agree: group {group} sleeps at {first:?}"));
    }
    match replicas.map(held).find(|other| *other != first) {
        Some(other) => Err(format!("sleeping_replicas_agree: group {group} sleeps at {first:?} and at {other:?}")),
        None => Ok(()),
    }
}
