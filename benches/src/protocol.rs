//! The protocol alone: three replicas in one thread, logs in memory, messages handed over as they are. A closed round
//! submits a number of commands to the leader and runs until all three replicas have applied them.
//!
//! Invariant: storage actions reach the log in order and their durability comes back as an input, as with any driver; only
//! encoding, sockets, disks and threads are left out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::keyspace::{Keyspace, encode_write};
use replikit_core::{
    Action, BytesSource, ClusterId, Event, GroupId, Input, LogIndex, NodeId, Now, Outcome, Replica, RestoreError, Role,
    SnapshotSource, StateMachine, Time, Token, WallTime, WriteLevel, WriteRequest,
};
use replikit_log::{MemoryLog, Storage};
use replikit_single_leader::{Config, Raft};

use crate::allocations::allocations;
use crate::figure::{Better, Figure, Subject};
use crate::workload::key_bytes;

const NODES: u32 = 3;
const GROUP: GroupId = GroupId(1);
/// Entries over which allocations are counted.
pub const ENTRIES: u64 = 1_000_000;

/// One replica and its log.
struct Member<R: Replica> {
    node: NodeId,
    replica: R,
    log: MemoryLog,
}

/// A group in one thread, in virtual time.
pub struct Group<R: Replica> {
    members: Vec<Member<R>>,
    /// What each member is to handle next, beside it so that messages can be delivered while their sender is polled.
    inputs: Vec<VecDeque<Input<R::Head>>>,
    now: Now,
    leader: Option<usize>,
    acked: u64,
    refused: u64,
    token: u64,
}

impl<R: Replica> Group<R> {
    /// A group of new replicas, each with an empty log, run until one of them leads.
    ///
    /// # Panics
    /// When none does within a virtual minute: the protocol is broken.
    pub fn elect(replicas: impl IntoIterator<Item = (NodeId, R)>) -> Self {
        let members = replicas.into_iter().map(|(node, replica)| Member { node, replica, log: MemoryLog::new() });
        let members: Vec<_> = members.collect();
        let inputs = members.iter().map(|_| VecDeque::from([Input::Recovered])).collect();
        let now = Now { mono: Time(1), wall: WallTime(1) };
        let mut group = Self { members, inputs, now, leader: None, acked: 0, refused: 0, token: 0 };
        group.settle();
        while group.leader.is_none() {
            assert!(group.now.mono < Time::ZERO + Duration::from_secs(60), "a leader is elected within a minute");
            group.advance(Duration::from_millis(1));
        }
        // The new leader's own first entry is not one of a round.
        group.advance(Duration::from_millis(50));
        group
    }

    /// Lets virtual time pass.
    pub fn advance(&mut self, by: Duration) {
        self.now.mono = self.now.mono + by;
        self.now.wall.0 += by.as_nanos() as u64;
        for (member, inputs) in self.members.iter().zip(&mut self.inputs) {
            if member.replica.deadline().is_some_and(|deadline| deadline <= self.now.mono) {
                inputs.push_back(Input::Timer);
            }
        }
        self.settle();
    }

    /// Submits commands to the leader and runs until nothing is left to do.
    pub fn round(&mut self, commands: impl IntoIterator<Item = Bytes>) {
        let leader = self.leader.expect("a leader was elected");
        for body in commands {
            self.token += 1;
            let token = Token(self.token);
            let level = WriteLevel::Quorum;
            self.inputs[leader].push_back(Input::Command { token, group: GROUP, level, session: None, body });
        }
        // A round takes a virtual microsecond, so that heartbeats have their part.
        self.advance(Duration::from_micros(1));
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Commands that ended in any other way.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    fn settle(&mut self) {
        let (mut quiet, mut at) = (0, 0);
        while quiet < self.members.len() {
            quiet = if self.turn(at) { 0 } else { quiet + 1 };
            at = if at + 1 == self.members.len() { 0 } else { at + 1 };
        }
    }

    /// Runs one member until it has nothing to do; whether it had anything.
    fn turn(&mut self, at: usize) -> bool {
        let Self { members, inputs, now, leader, acked, refused, .. } = self;
        let (now, Member { node, replica, log }) = (*now, &mut members[at]);
        if inputs[at].is_empty() {
            return false;
        }
        while let Some(input) = inputs[at].pop_front() {
            replica.handle(now, input);
        }
        loop {
            while let Some(action) = replica.poll() {
                match action {
                    Action::Persist { id, op } => log.persist(id, op),
                    Action::ReadLog { ticket, stream, from, bytes_max } => {
                        log.read_log(ticket, stream, from, bytes_max);
                    }
                    Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
                        log.read_snapshot(ticket, group, at, offset, bytes_max);
                    }
                    Action::Send { to, message } => {
                        // Nodes are numbered from 1, in the order of the members.
                        if let Some(peer) = inputs.get_mut(to.0 as usize - 1) {
                            peer.push_back(Input::Message { from: *node, message });
                        }
                    }
                    Action::Done { outcome: Outcome::Acked { .. }, .. } => *acked += 1,
                    Action::Done { .. } => *refused += 1,
                    Action::Event { event: Event::RoleChanged { role: Role::Leader, .. }, .. } => *leader = Some(at),
                    Action::Event { .. } => {}
                }
            }
            let mut answered = false;
            while let Some(output) = log.poll() {
                if let Some(input) = output.into_input() {
                    answered = true;
                    replica.handle(now, input);
                }
            }
            if !answered {
                return true;
            }
        }
    }
}

/// A state machine that counts what another one applies.
pub struct Counting<M> {
    machine: M,
    applied: Arc<AtomicU64>,
}

impl<M: StateMachine> StateMachine for Counting<M> {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        // One thread writes it: no atomic addition needed.
        self.applied.store(self.applied.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.machine.apply(at, command)
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        self.machine.query(query, bytes_max)
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        self.machine.snapshot()
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.machine.restore(chunk, last)
    }
}

/// The state machine that does nothing: what is left is the protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _at: LogIndex, _command: &[u8]) -> Bytes {
        Bytes::new()
    }

    fn query(&self, _query: &[u8], _bytes_max: usize) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(BytesSource::new(Bytes::from_static(b"nothing")))
    }

    fn restore(&mut self, _chunk: &[u8], _last: bool) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// A group of Raft replicas with machines of this kind, and their counters.
pub fn raft<M: StateMachine>(machine: impl Fn() -> M) -> (Group<Raft<Counting<M>>>, Vec<Arc<AtomicU64>>) {
    let nodes: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
    let counters: Vec<Arc<AtomicU64>> = nodes.iter().map(|_| Arc::default()).collect();
    let replicas = nodes.iter().zip(&counters).map(|(&node, applied)| {
        let config = Config::new(ClusterId::from_name("bench"), GROUP, node, nodes.clone(), u64::from(node.0));
        let machine = Counting { machine: machine(), applied: applied.clone() };
        let raft = Raft::new(config, &MemoryLog::new().boots().of(GROUP), machine);
        (node, raft.expect("the default configuration is in range"))
    });
    (Group::elect(replicas), counters)
}

/// What one case of the protocol bench found.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// What was done.
    pub workload: String,
    /// Commands in one round.
    pub batch: usize,
    /// Entries applied at all replicas, a second: the best of the repetitions, since everything else on the machine can only
    /// make it slower.
    pub entries_per_second: f64,
    /// Allocations per entry, over [`ENTRIES`] entries.
    pub allocations_per_entry: f64,
}

impl Rounds {
    /// The figures.
    #[must_use]
    pub fn figures(&self) -> [Figure; 2] {
        let mut subject = Subject {
            engine: "single-leader".to_owned(),
            workload: format!("protocol: {}", self.workload),
            clients: self.batch as u32,
            ..Subject::default()
        };
        subject.settings.insert("log".to_owned(), "memory".to_owned());
        subject.settings.insert("replicas".to_owned(), format!("{NODES} in one thread"));
        [
            subject.figure("throughput", self.entries_per_second, "1/s", Better::Higher),
            subject.figure("allocations per entry", self.allocations_per_entry, "1", Better::Lower),
        ]
    }
}

/// Runs closed rounds until [`ENTRIES`] entries are applied at all replicas, `repetitions` times on new groups.
///
/// # Panics
/// When an entry is refused or not applied everywhere at the end of its round: the figure would be one of something else.
pub fn drive<M: StateMachine>(
    workload: &str,
    commands: &[Bytes],
    batch: usize,
    repetitions: u32,
    machine: impl Fn() -> M,
) -> Rounds {
    let mut best =
        Rounds { workload: workload.to_owned(), batch, entries_per_second: 0.0, allocations_per_entry: f64::INFINITY };
    for _ in 0..repetitions {
        let (mut group, applied) = raft(&machine);
        let mut next = commands.iter().cycle().cloned();
        // Warm-up: queues and arenas get their size.
        let warm_up = ENTRIES / 20;
        let mut done = 0;
        let mut run = |until: u64| {
            while done < until {
                group.round(next.by_ref().take(batch));
                done += batch as u64;
                assert!(
                    applied.iter().all(|applied| applied.load(Ordering::Relaxed) == done),
                    "a round ends when all replicas have applied it"
                );
            }
            done
        };
        let before = run(warm_up);
        let (start, allocated) = (Instant::now(), allocations());
        let entries = run(warm_up + ENTRIES) - before;
        let (took, allocated) = (start.elapsed(), allocations() - allocated);
        assert_eq!((group.acked(), group.refused()), (before + entries, 0), "every command is acknowledged");
        best.entries_per_second = best.entries_per_second.max(entries as f64 / took.as_secs_f64());
        best.allocations_per_entry = best.allocations_per_entry.min(allocated as f64 / entries as f64);
    }
    best
}

/// The cases of the protocol bench, one after the other.
pub fn cases(repetitions: u32, mut told: impl FnMut(&Rounds)) {
    for (bytes, batch) in [(8, 1), (8, 64), (256, 1), (256, 64)] {
        let commands = [Bytes::from(vec![7; bytes])];
        told(&drive(&format!("{bytes} B, counting"), &commands, batch, repetitions, || Nothing));
    }
    let mut rng = fastrand::Rng::with_seed(1);
    let commands: Vec<Bytes> = (0..100_000)
        .map(|_| {
            let write = WriteRequest::put(key_bytes(rng.u32(..100_000)), vec![7; 256]);
            encode_write(&write).expect("the sizes are in range")
        })
        .collect();
    for batch in [1, 64] {
        told(&drive("256 B, keyspace, random keys", &commands, batch, repetitions, Keyspace::new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_with_every_entry_applied_everywhere() {
        let (mut group, applied) = raft(|| Nothing);
        group.round(vec![Bytes::from_static(b"command"); 10]);
        assert_eq!((group.acked(), group.refused()), (10, 0));
        assert!(applied.iter().all(|applied| applied.load(Ordering::Relaxed) == 10));
    }

    #[test]
    fn a_long_idle_time_does_not_cost_the_leader_its_place() {
        let (mut group, _) = raft(|| Nothing);
        let leader = group.leader;
        for _ in 0..2_000 {
            group.advance(Duration::from_millis(1));
        }
        assert_eq!(group.leader, leader);
    }
}
