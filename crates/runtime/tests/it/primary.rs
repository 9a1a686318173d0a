//! A toy replica for tests of its driver: the lowest node that is up leads, and a write is acknowledged once a majority has
//! it on disk. It has no terms and no catch-up: it is not safe, but it uses every part of the contract.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use replikit_core::keyspace::Keyspace;
use replikit_core::{
    Action, Admin, Batch, BatchKind, BatchMeta, Batches, ClusterId, Event, GroupId, HybridTimestamp, Input, Link,
    LogAnswer, LogId, LogIndex, Message, NodeId, Now, Outcome, Persist, Position, Reached, ReadLevel, Rejection,
    Replica, Role, SessionSeq, StateMachine, Status, StorageEvent, StreamId, Term, Time, Token, WriteId, WriteLevel,
};
use replikit_core::{SnapshotAnswer, Ticket};
use replikit_runtime::DEFAULT_GROUP;
use serde::{Deserialize, Serialize};

const STREAM: StreamId = StreamId::consensus(DEFAULT_GROUP);
/// A query that is never answered, for tests of what is open.
pub(crate) const NEVER: &[u8] = b"never";
/// A query that the replica panics on, as a state machine with a bug would.
pub(crate) const PANIC: &[u8] = b"panic";
/// A query that is answered after a deadline of 5 ms.
pub(crate) const LATER: &[u8] = b"later";
/// A query that reads the whole log from the storage and is answered with its last index.
pub(crate) const LOG: &[u8] = b"log";
/// A query that reads the newest snapshot from the storage and is answered with it.
pub(crate) const SNAPSHOT: &[u8] = b"snapshot";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Head {
    Append,
    Durable { up_to: LogIndex },
}

struct Open {
    token: Token,
    session: Option<SessionSeq>,
    level: WriteLevel,
    body: Bytes,
}

pub(crate) struct Primary {
    id: NodeId,
    nodes: Vec<NodeId>,
    cluster: ClusterId,
    up: BTreeSet<NodeId>,
    led: Option<NodeId>,
    /// How often the leader changed here.
    changes: Term,
    machine: Keyspace,
    last: LogIndex,
    digest: u64,
    applied: LogIndex,
    /// Written and not yet applied, from `applied + 1` on.
    tail: VecDeque<Open>,
    /// Not yet in a batch.
    fresh: Vec<Open>,
    replies: BTreeMap<(u64, u64), Bytes>,
    writes: WriteId,
    /// Own writes: which index is durable with which.
    own: VecDeque<(WriteId, LogIndex, Option<NodeId>)>,
    durable: BTreeMap<NodeId, LogIndex>,
    actions: VecDeque<Action<Head>>,
    recovered: bool,
    timer: Option<(Time, Token)>,
    restoring: Option<Position>,
    storage_failed: bool,
}

impl Primary {
    pub(crate) fn new(id: NodeId, nodes: Vec<NodeId>, cluster: ClusterId) -> Self {
        Self {
            id,
            nodes,
            cluster,
            up: BTreeSet::from([id]),
            led: None,
            changes: Term(0),
            machine: Keyspace::new(),
            last: LogIndex::ZERO,
            digest: 0,
            applied: LogIndex::ZERO,
            tail: VecDeque::new(),
            fresh: Vec::new(),
            replies: BTreeMap::new(),
            writes: WriteId(0),
            own: VecDeque::new(),
            durable: BTreeMap::new(),
            actions: VecDeque::new(),
            recovered: false,
            timer: None,
            restoring: None,
            storage_failed: false,
        }
    }

    fn leader(&self) -> NodeId {
        *self.up.first().expect("a node counts itself as up")
    }

    fn done(&mut self, token: Token, outcome: Outcome) {
        self.actions.push_back(Action::Done { token, outcome });
    }

    fn not_leader(&mut self, token: Token) {
        let leader = Some(self.leader());
        self.done(token, Outcome::Rejected(Rejection::NotLeader { leader }));
    }

    fn position(&self, index: LogIndex) -> Position {
        Position { stream: STREAM, id: LogId { term: Term(1), index }, digest: 0 }
    }

    fn append(&mut self, batch: Batch, for_leader: Option<NodeId>) {
        self.last = batch.last().index;
        self.digest = batch.digest();
        self.writes = self.writes.next();
        self.own.push_back((self.writes, self.last, for_leader));
        self.actions.push_back(Action::Persist { id: self.writes, op: Persist::Append { batch, replace: true } });
    }

    fn commit(&mut self) {
        let mut held: Vec<LogIndex> =
            self.nodes.iter().map(|node| self.durable.get(node).copied().unwrap_or_default()).collect();
        held.sort_unstable();
        let committed = held[(held.len() - 1) / 2];
        while self.applied < committed && !self.tail.is_empty() {
            let open = self.tail.pop_front().expect("looked at just now");
            self.applied = self.applied.next();
            let reply = match open.session.map(|at| (at.session.0, at.sequence)) {
                Some(key) => match self.replies.get(&key) {
                    Some(reply) => reply.clone(),
                    None => {
                        let reply = self.machine.apply(self.applied, &open.body);
                        self.replies.insert(key, reply.clone());
                        reply
                    }
                },
                None => self.machine.apply(self.applied, &open.body),
            };
            if open.level != WriteLevel::Memory {
                let reached = Reached { received: 2, durable: 2, applied: 1 };
                let at = self.position(self.applied);
                self.done(open.token, Outcome::Acked { at, reached, strict: true, reply });
            }
        }
    }

    fn query(&mut self, now: Now, token: Token, level: &ReadLevel, body: &[u8], bytes_max: usize) {
        let group = DEFAULT_GROUP;
        let ticket = Ticket(token.0);
        match body {
            NEVER => return,
            PANIC => panic!("as asked for"),
            LATER => {
                self.timer = Some((now.mono + Duration::from_millis(5), token));
                return;
            }
            LOG => {
                let action = Action::ReadLog { ticket, stream: STREAM, from: LogIndex(1), bytes_max: u32::MAX };
                return self.actions.push_back(action);
            }
            SNAPSHOT => {
                let action = Action::ReadSnapshot { ticket, at: None, group, offset: 0, bytes_max: u32::MAX };
                return self.actions.push_back(action);
            }
            _ => {}
        }
        if *level != ReadLevel::Local && self.leader() != self.id {
            return self.not_leader(token);
        }
        let value = self.machine.query(body, bytes_max);
        self.value(token, value);
    }

    fn value(&mut self, token: Token, value: Bytes) {
        let seen = Some(self.position(self.applied));
        let staleness = Some(Duration::ZERO);
        self.done(token, Outcome::Value { values: vec![value], seen, strict: true, staleness });
    }

    fn take_snapshot(&mut self, token: Token) {
        let at = self.position(self.applied);
        let before = self.applied.next();
        let source = self.machine.snapshot();
        for op in [Persist::Snapshot { at, source }, Persist::Release { stream: STREAM, before }] {
            self.writes = self.writes.next();
            self.actions.push_back(Action::Persist { id: self.writes, op });
        }
        self.value(token, Bytes::new());
    }

    fn status(&self) -> Status {
        Status {
            group: DEFAULT_GROUP,
            role: if self.leader() == self.id { Role::Leader } else { Role::Follower },
            term: Term(1),
            leader: Some(self.leader()),
            last: self.position(self.last),
            commit_index: self.applied,
            applied_index: self.applied,
            first_index: LogIndex(1),
            epoch: replikit_core::Epoch(1),
            snapshot: None,
            followers: Vec::new(),
            suspected: Vec::new(),
            figures: Vec::new(),
        }
    }

    fn announce(&mut self) {
        let leader = Some(self.leader());
        if self.recovered && self.led != leader {
            self.led = leader;
            self.changes.0 += 1;
            let term = self.changes;
            let event = Event::LeaderChanged { leader, term };
            self.actions.push_back(Action::Event { group: DEFAULT_GROUP, event });
        }
    }
}

impl Replica for Primary {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        assert!(
            self.recovered || matches!(input, Input::RecoverSnapshot { .. } | Input::Recover { .. } | Input::Recovered),
            "recovery comes first"
        );
        match input {
            Input::Recover { batch } => {
                self.last = batch.last().index;
                self.digest = batch.digest();
                for entry in batch.entries() {
                    self.machine.apply(entry.index, entry.payload);
                }
                self.applied = self.last;
            }
            Input::RecoverSnapshot { at, chunk, last } => {
                assert!(self.restoring.is_none_or(|restoring| restoring == at), "one snapshot after the other");
                self.restoring = (!last).then_some(at);
                self.machine.restore(&chunk, last).expect("the snapshot is this machine's own");
                (self.last, self.applied) = (at.id.index, at.id.index);
            }
            Input::Recovered => self.recovered = true,
            Input::Timer => {
                let (at, token) = self.timer.take().expect("a timer was not asked for");
                assert!(at <= now.mono, "a timer came early");
                self.value(token, Bytes::from_static(LATER));
            }
            Input::Peer { node, link: Link::Up } => drop(self.up.insert(node)),
            Input::Peer { node, link: Link::Reset | Link::Down } => drop(self.up.remove(&node)),
            Input::Message { from, message: Message { head: Head::Append, batches } } => {
                for batch in batches {
                    self.append(batch, Some(from));
                }
            }
            Input::Message { from, message: Message { head: Head::Durable { up_to }, .. } } => {
                self.durable.insert(from, up_to);
                self.commit();
            }
            Input::Command { token, level, session, body, .. } => {
                if self.storage_failed {
                    self.done(token, Outcome::Rejected(Rejection::StorageFailed));
                } else if self.leader() == self.id {
                    self.fresh.push(Open { token, session, level, body });
                } else {
                    self.not_leader(token);
                }
            }
            Input::OpenSession { token, .. } => {
                if self.leader() == self.id {
                    let reply = Bytes::copy_from_slice(&(self.last.0 + 1).to_le_bytes());
                    let at = self.position(self.last);
                    self.done(token, Outcome::Acked { at, reached: Reached::default(), strict: true, reply });
                } else {
                    self.not_leader(token);
                }
            }
            Input::Query { token, level, body, bytes_max, .. } => self.query(now, token, &level, &body, bytes_max),
            Input::Durable { up_to } => {
                let mut told = None;
                while let Some((_, index, leader)) = self.own.pop_front_if(|(id, ..)| *id <= up_to) {
                    self.durable.insert(self.id, index);
                    told = leader.map(|leader| (leader, index)).or(told);
                }
                if let Some((to, up_to)) = told {
                    let message = Message { head: Head::Durable { up_to }, batches: Batches::None };
                    self.actions.push_back(Action::Send { to, message });
                }
                self.commit();
            }
            Input::Admin { token, command: Admin::Status, .. } => {
                let values = vec![self.status().encode()];
                self.done(token, Outcome::Value { values, seen: None, strict: true, staleness: None });
            }
            Input::Admin { token, command: Admin::Snapshot, .. } => self.take_snapshot(token),
            Input::LogRead { ticket, answer, .. } => {
                let last = match answer {
                    LogAnswer::Batches(batches) => batches.as_slice().last().map_or(LogIndex(0), |b| b.last().index),
                    LogAnswer::Compacted { first } => first,
                    LogAnswer::Faulty(_) => panic!("the log is damaged"),
                };
                self.value(Token(ticket.0), Bytes::copy_from_slice(&last.0.to_le_bytes()));
            }
            Input::SnapshotRead { ticket, answer } => match answer {
                SnapshotAnswer::Chunk { chunk, last: true, .. } => self.value(Token(ticket.0), chunk),
                SnapshotAnswer::Chunk { .. } => panic!("snapshots of these tests are short"),
                SnapshotAnswer::Gone => self.value(Token(ticket.0), Bytes::new()),
            },
            Input::Storage { event: StorageEvent::Failed } => self.storage_failed = true,
            Input::Storage { event: StorageEvent::Slow } => {
                self.actions.push_back(Action::Event { group: DEFAULT_GROUP, event: Event::StorageSlow });
            }
            other => panic!("unexpected {other:?}"),
        }
        self.announce();
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        if !self.fresh.is_empty() {
            let meta = BatchMeta {
                cluster: self.cluster,
                stream: STREAM,
                base: self.last.next(),
                term: Term(1),
                prev_digest: self.digest,
                time: HybridTimestamp(0),
                kind: BatchKind::Commands,
            };
            let batch = Batch::build(&meta, self.fresh.iter().map(|open| (&open.body[..], open.session)));
            self.append(batch.clone(), None);
            for to in self.nodes.clone().into_iter().filter(|to| *to != self.id) {
                let message = Message { head: Head::Append, batches: Batches::One(batch.clone()) };
                self.actions.push_back(Action::Send { to, message });
            }
            let mut index = batch.base();
            for open in std::mem::take(&mut self.fresh) {
                if open.level == WriteLevel::Memory {
                    let (at, reached) = (self.position(index), Reached { received: 1, ..Reached::default() });
                    self.done(open.token, Outcome::Acked { at, reached, strict: false, reply: Bytes::new() });
                }
                index = index.next();
                self.tail.push_back(open);
            }
        }
        self.actions.pop_front()
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        (group == DEFAULT_GROUP).then_some(self.applied)
    }

    fn deadline(&self) -> Option<Time> {
        self.timer.map(|(at, _)| at)
    }
}

/// The group that the toy replica serves.
pub(crate) const GROUP: GroupId = DEFAULT_GROUP;
