//! A majority-quorum register per key: the smallest useful [`Replica`] that has no leader, kept as an example of how to
//! write one.
//!
//! # The algorithm
//!
//! Every node may coordinate. A write asks a majority for the newest stamp of the key, takes a larger one, and has a
//! majority make the record durable. A read asks a majority for the newest record and has a majority hold it before it
//! answers. Two majorities meet in a node, so a read sees every write that ended before it began: each key is linearizable,
//! for writes and deletes. Source: Attiya, Bar-Noy and Dolev, JACM 42(1), 1995; for many writers Lynch and Shvartsman,
//! FTCS 1997.
//!
//! # How it keeps the contract of a replica
//!
//! 1. *What `poll` hands out may be carried out at once.* The answer to `Store` claims durability, so it waits in [`Held`]
//!    until the write that it depends on is durable. It does so also when nothing had to be written, for the record may be
//!    in memory only, behind a write that is still under way. The answer to `Ask` claims nothing and leaves at once.
//! 2. *No clock, no randomness.* Stamps are counters; time only limits how long an operation waits.
//! 3. *Memory does not survive.* A stamp or an operation id that was sent may be forgotten in a crash and would be given
//!    away twice. Both carry the number of this start, which is made durable as the group's register before any of
//!    them leaves.
//! 4. *The log does not grow for ever.* Each start writes a stream of its own; from time to time the records are written as
//!    a snapshot and the streams are released. Recovery merges snapshot and batches by stamp, in whatever order.
//! 5. *Nothing a peer says is a panic*, and every queue has a limit.
//!
//! It is not fast: one batch for each record, and an ordered map of operations.

mod message;
mod operation;
mod record;
mod snapshot;
mod workload;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::{
    Action, Batch, BatchKind, BatchMeta, Batches, Boot, ClusterId, Event, GroupId, Held, HybridTimestamp, Input,
    KEY_BYTES_MAX, LogId, LogIndex, Message, NodeId, Now, OriginId, Outcome, Persist, Position, Queue, Reached,
    ReadLevel, ReadRequest, Rejection, Replica, StorageEvent, StreamId, Term, Time, Token, VALUE_BYTES_MAX, WriteId,
    WriteLevel, WriteOp, WriteRequest, quorum,
};

pub use message::{OperationId, RegisterMessage};
use operation::{Operation, Round, Wish};
pub use record::Stamp;
use record::{Accepted, Record};
use snapshot::{Image, Incoming};
pub use workload::{RegisterDialect, RegisterWorkload};

/// Settings of a [`Register`].
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// Seeds the checksums of batches.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// This node; at most [`Register::NODE_MAX`].
    pub node: NodeId,
    /// All nodes of the group, this one included.
    pub members: Vec<NodeId>,
    /// Nodes that have not answered are asked again after this.
    pub retry_after: Duration,
    /// An operation without a majority ends after this.
    pub give_up_after: Duration,
    /// Most operations that this node coordinates at a time; more are rejected as busy.
    pub operations_max: usize,
    /// A snapshot is taken after so many accepted records.
    pub snapshot_every: u32,
}

impl RegisterConfig {
    /// Defaults for a node of a group.
    #[must_use]
    pub const fn new(cluster: ClusterId, group: GroupId, node: NodeId, members: Vec<NodeId>) -> Self {
        Self {
            cluster,
            group,
            node,
            members,
            retry_after: Duration::from_millis(40),
            give_up_after: Duration::from_millis(500),
            operations_max: 1024,
            snapshot_every: 4096,
        }
    }
}

/// Why a register cannot be made. Blame: the caller, or a disk of something else. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The node's id does not fit into the ids of its streams.
    #[error("node {node} is above {}", Register::NODE_MAX)]
    Node {
        /// The id.
        node: NodeId,
    },
    /// The node is not among the members, or there are none.
    #[error("node {node} is not a member of its group")]
    NotAMember {
        /// The id.
        node: NodeId,
    },
    /// The disk's register is none of ours.
    #[error("the disk holds a register of another kind")]
    Foreign,
    /// The process has started more often than stream ids allow.
    #[error("no more than {} starts", Register::START_MAX)]
    Starts,
}

/// What waits until this replica's own storage has caught up.
#[derive(Debug)]
enum AfterDurable {
    /// Tell a coordinator that its record is safe here.
    Answer { to: NodeId, operation: OperationId },
    /// The same, to ourselves.
    Count { sequence: u64 },
}

/// A replica of a group of registers.
#[derive(Debug)]
pub struct Register {
    config: RegisterConfig,
    start: u32,
    stream: StreamId,
    next: LogIndex,
    digest: u64,
    last_write: WriteId,
    durable: WriteId,
    failed: bool,
    recovered: bool,
    records: BTreeMap<Bytes, Accepted>,
    // Streams of former starts, with what they hold; released with the next snapshot.
    former: BTreeMap<StreamId, LogIndex>,
    since_snapshot: u32,
    restoring: Incoming,
    operations: BTreeMap<u64, Operation>,
    next_operation: u64,
    // All waits are equally long, so the deadlines are in order; those of operations that have ended are left in.
    retries: VecDeque<(Time, u64)>,
    held: Held<AfterDurable>,
    // Operations that came before this start's number was durable.
    early: Held<u64>,
    actions: VecDeque<Action<RegisterMessage>>,
}

impl Register {
    /// Largest node id.
    pub const NODE_MAX: u32 = (1 << 12) - 2;
    /// Most starts of one node.
    pub const START_MAX: u32 = (1 << 20) - 1;

    /// A replica on a disk that says `boot`; recovery is pushed next.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn new(config: RegisterConfig, boot: &Boot) -> Result<Self, RegisterError> {
        if config.node.0 > Self::NODE_MAX {
            return Err(RegisterError::Node { node: config.node });
        }
        if !config.members.contains(&config.node) {
            return Err(RegisterError::NotAMember { node: config.node });
        }
        let start = match boot.register[..] {
            [] => 1,
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).saturating_add(1),
            _ => return Err(RegisterError::Foreign),
        };
        if start > Self::START_MAX {
            return Err(RegisterError::Starts);
        }
        // One origin for each start of each node: no stream has two writers, and no index is given away twice.
        let origin = OriginId((config.node.0 + 1) << 20 | start);
        let stream = StreamId { group: config.group, origin };
        Ok(Self {
            config,
            start,
            stream,
            next: LogIndex(1),
            digest: 0,
            last_write: WriteId(0),
            durable: WriteId(0),
            failed: false,
            recovered: false,
            records: BTreeMap::new(),
            former: BTreeMap::new(),
            since_snapshot: 0,
            restoring: Incoming::default(),
            operations: BTreeMap::new(),
            next_operation: 1,
            retries: VecDeque::new(),
            held: Held::new(),
            early: Held::new(),
            actions: VecDeque::new(),
        })
    }

    /// The newest record of each key that this replica holds, keys ascending: for checks of convergence.
    pub fn records(&self) -> impl Iterator<Item = (&Bytes, Stamp)> {
        self.records.iter().map(|(key, accepted)| (key, accepted.stamp))
    }

    /// Operations that this node coordinates at the moment.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    fn majority(&self) -> usize {
        quorum::majority(self.config.members.len())
    }

    fn done(&mut self, token: Token, outcome: Outcome) {
        self.actions.push_back(Action::Done { token, outcome });
    }

    fn reject(&mut self, token: Token, rejection: Rejection) {
        self.done(token, Outcome::Rejected(rejection));
    }

    fn misbehaved(&mut self, node: NodeId, what: &'static str) {
        let event = Event::PeerMisbehaved { node, what };
        self.actions.push_back(Action::Event { group: self.config.group, event });
    }

    fn send(&mut self, to: NodeId, head: RegisterMessage, batches: Batches) {
        self.actions.push_back(Action::Send { to, message: Message { head, batches } });
    }

    fn persist(&mut self, op: Persist) -> WriteId {
        self.last_write = self.last_write.next();
        self.actions.push_back(Action::Persist { id: self.last_write, op });
        self.last_write
    }

    // ---- the replica's own copy

    /// Takes a record unless a newer one of its key is held.
    fn accept(&mut self, record: &Record<'_>) {
        if self.records.get(record.key).is_some_and(|held| held.stamp >= record.stamp) {
            return;
        }
        let meta = BatchMeta {
            cluster: self.config.cluster,
            stream: self.stream,
            base: self.next,
            term: Term(u64::from(self.start)),
            prev_digest: self.digest,
            time: HybridTimestamp(0),
            kind: BatchKind::Commands,
        };
        let batch = Batch::build(&meta, core::iter::once((&record.encode()[..], None)));
        self.next = self.next.next();
        self.digest = batch.digest();
        self.keep(record.stamp, record.key, batch.clone());
        self.persist(Persist::Append { batch, replace: false });
        self.since_snapshot += 1;
        if self.since_snapshot >= self.config.snapshot_every {
            self.take_snapshot();
        }
    }

    fn keep(&mut self, stamp: Stamp, key: &[u8], batch: Batch) {
        match self.records.get_mut(key) {
            Some(held) if held.stamp >= stamp => {}
            Some(held) => *held = Accepted { stamp, batch },
            None => {
                self.records.insert(Bytes::copy_from_slice(key), Accepted { stamp, batch });
            }
        }
    }

    /// Where the newest record of this start stands.
    fn position(&self) -> Position {
        let id = LogId { term: Term(u64::from(self.start)), index: self.next.prev() };
        Position { stream: self.stream, id, digest: self.digest }
    }

    fn take_snapshot(&mut self) {
        let at = self.position();
        let source = Box::new(Image::of(&self.records));
        self.persist(Persist::Snapshot { at, source });
        self.since_snapshot = 0;
        for (stream, before) in core::mem::take(&mut self.former) {
            self.persist(Persist::Release { stream, before });
        }
        self.persist(Persist::Release { stream: self.stream, before: self.next });
        self.actions.push_back(Action::Event { group: self.config.group, event: Event::SnapshotTaken { at } });
    }

    fn handle_snapshot(&mut self, at: Position, chunk: &[u8], last: bool) {
        let mut restoring = core::mem::take(&mut self.restoring);
        let pushed = restoring.push(chunk, last, self.config.cluster, |batch| {
            if let Some(record) = Record::of(&batch) {
                self.keep(record.stamp, record.key, batch.clone());
            }
        });
        self.restoring = restoring;
        if pushed.is_err() {
            // What was acknowledged may be missing: this replica must not answer any more.
            self.failed = true;
            let event = Event::SnapshotUnreadable { at };
            self.actions.push_back(Action::Event { group: self.config.group, event });
        }
    }

    fn handle_recovered_batch(&mut self, batch: Batch) {
        let end = batch.last().index.next();
        let former = self.former.entry(batch.stream()).or_default();
        *former = end.max(*former);
        if let Some(record) = Record::of(&batch) {
            self.keep(record.stamp, record.key, batch.clone());
        }
    }

    fn handle_recovered(&mut self) {
        self.recovered = true;
        let bytes = Bytes::copy_from_slice(&self.start.to_le_bytes());
        self.persist(Persist::Register { group: self.config.group, bytes });
    }

    // ---- coordinating

    fn begin(&mut self, now: Now, token: Token, key: Bytes, wish: Wish) {
        if self.failed {
            return self.reject(token, Rejection::StorageFailed);
        }
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return self.reject(token, Rejection::Malformed);
        }
        if self.operations.len() >= self.config.operations_max {
            let limit = self.config.operations_max as u64;
            return self.reject(token, Rejection::Busy { queue: Queue::Inbox, limit });
        }
        let sequence = self.next_operation;
        self.next_operation += 1;
        let give_up_at = now.mono + self.config.give_up_after;
        self.operations.insert(sequence, Operation::new(token, key, wish, give_up_at));
        self.retries.push_back((now.mono + self.config.retry_after, sequence));
        if self.durable < WriteId(1) {
            self.early.hold(WriteId(1), sequence);
        } else {
            self.query(sequence);
        }
    }

    /// Begins the first round: this node's own answer counts at once, for it claims nothing about durability.
    fn query(&mut self, sequence: u64) {
        let Some(operation) = self.operations.get(&sequence) else { return };
        let own = self.records.get(&operation.key).map(|held| (held.stamp, held.batch.clone()));
        self.ask_again(sequence);
        self.handle_told(self.config.node, sequence, own);
    }

    /// Sends the round's question to every other node that has not answered it.
    fn ask_again(&mut self, sequence: u64) {
        let Some(operation) = self.operations.get(&sequence) else { return };
        let id = OperationId { node: self.config.node, start: self.start, sequence };
        let (head, batches) = match &operation.round {
            Round::Query { .. } => (RegisterMessage::Ask { operation: id, key: operation.key.clone() }, Batches::None),
            Round::Store { batch, .. } => (RegisterMessage::Store { operation: id }, Batches::One(batch.clone())),
        };
        let silent = |node: &&NodeId| **node != self.config.node && !operation.has_answered(**node);
        let silent: Vec<NodeId> = self.config.members.iter().filter(silent).copied().collect();
        for to in silent {
            self.send(to, head.clone(), batches.clone());
        }
    }

    fn handle_told(&mut self, from: NodeId, sequence: u64, told: Option<(Stamp, Batch)>) {
        let majority = self.majority();
        let Some(operation) = self.operations.get_mut(&sequence) else { return };
        let Round::Query { newest } = &mut operation.round else { return };
        if let Some((stamp, batch)) = told
            && newest.as_ref().is_none_or(|(newest, _)| *newest < stamp)
        {
            *newest = Some((stamp, batch));
        }
        if operation.count(from) >= majority {
            self.store(sequence);
        }
    }

    /// A majority has told what it holds: the second round.
    fn store(&mut self, sequence: u64) {
        let operation = self.operations.get_mut(&sequence).expect("a majority has just answered it");
        let Round::Query { newest } = &mut operation.round else { unreachable!("called at the end of a query") };
        let newest = newest.take();
        let (key, wish) = (operation.key.clone(), operation.wish.clone());
        match (wish, &newest) {
            (Wish::Read, None) => {
                // Nothing to write back: no write of this key has ended, so none is missed.
                return self.end_read(sequence, None);
            }
            (Wish::Read, Some((_, batch))) => {
                let record = Record::of(batch).expect("only records are told");
                self.accept(&record);
            }
            (Wish::Write(value), newest) => {
                // Larger than the majority's and than everything that this start has given away for the key: what was
                // given away was accepted here first.
                let newest = newest.as_ref().map(|(stamp, _)| stamp.counter);
                let own = self.records.get(&key).map(|held| held.stamp.counter);
                let counter = newest.max(own).unwrap_or(0) + 1;
                let stamp = Stamp { counter, node: self.config.node, start: self.start };
                self.accept(&Record { stamp, key: &key, value: value.as_deref() });
            }
        }
        // What was just accepted, or something newer that has come in meanwhile: for a read as good.
        let held = self.records.get(&key).expect("accepted above");
        let (batch, value) = (held.batch.clone(), held.value());
        let at = self.position();
        let operation = self.operations.get_mut(&sequence).expect("looked up above");
        operation.store(batch, value, at);
        self.held.hold(self.last_write, AfterDurable::Count { sequence });
        self.ask_again(sequence);
        self.release();
    }

    fn handle_stored(&mut self, from: NodeId, sequence: u64) {
        let majority = self.majority();
        let Some(operation) = self.operations.get_mut(&sequence) else { return };
        let Round::Store { value, at, .. } = &operation.round else { return };
        let (value, at) = (value.clone(), *at);
        if operation.count(from) < majority {
            return;
        }
        match operation.wish {
            Wish::Read => self.end_read(sequence, value),
            Wish::Write(_) => {
                let reached = operation.reached();
                let operation = self.operations.remove(&sequence).expect("looked up above");
                self.done(operation.token, Outcome::Acked { at, reached, strict: true, reply: Bytes::new() });
            }
        }
    }

    fn end_read(&mut self, sequence: u64, value: Option<Bytes>) {
        let operation = self.operations.remove(&sequence).expect("its majority has just answered");
        let values = value.into_iter().collect();
        self.done(operation.token, Outcome::Value { values, seen: None, strict: true, staleness: None });
    }

    fn handle_timer(&mut self, now: Now) {
        while let Some(&(at, sequence)) = self.retries.front() {
            let open = self.operations.get(&sequence).map(|operation| operation.give_up_at);
            if at > now.mono && open.is_some() {
                break;
            }
            self.retries.pop_front();
            match open {
                None => {}
                Some(give_up_at) if give_up_at <= now.mono => self.give_up(sequence),
                Some(_) => {
                    self.retries.push_back((now.mono + self.config.retry_after, sequence));
                    // Before this start's number is durable nothing may carry it.
                    if self.durable >= WriteId(1) {
                        self.ask_again(sequence);
                    }
                }
            }
        }
    }

    fn give_up(&mut self, sequence: u64) {
        if let Some(operation) = self.operations.remove(&sequence) {
            self.done(operation.token, Outcome::Indeterminate { reached: operation.reached() });
        }
    }

    // ---- answering other coordinators

    fn handle_message(&mut self, from: NodeId, message: Message<RegisterMessage>) {
        if from == self.config.node || !self.config.members.contains(&from) {
            return self.misbehaved(from, "not a member of the group");
        }
        let records = message.batches.as_slice();
        if records.len() > 1 || records.iter().any(|batch| Record::of(batch).is_none()) {
            return self.misbehaved(from, "a message carries at most one record");
        }
        let mine = |operation: OperationId| operation.node == self.config.node && operation.start == self.start;
        match message.head {
            RegisterMessage::Ask { operation, key } if !self.failed => {
                let held = self.records.get(&key).map(|held| held.batch.clone());
                self.send(from, RegisterMessage::Told { operation }, held.map_or(Batches::None, Batches::One));
            }
            RegisterMessage::Told { operation } if mine(operation) => {
                let told = records.first().cloned().map(|batch| {
                    let stamp = Record::of(&batch).expect("checked above").stamp;
                    (stamp, batch)
                });
                let asked = self.operations.get(&operation.sequence).map(|operation| &operation.key[..]);
                if let (Some((_, batch)), Some(key)) = (&told, asked)
                    && Record::of(batch).is_none_or(|record| record.key != key)
                {
                    return self.misbehaved(from, "told of another key than it was asked for");
                }
                self.handle_told(from, operation.sequence, told);
            }
            RegisterMessage::Store { operation } => {
                let Some(batch) = records.first() else {
                    return self.misbehaved(from, "nothing to store");
                };
                if self.failed {
                    return;
                }
                let record = Record::of(batch).expect("checked above");
                self.accept(&record);
                // Also when nothing was written: the newer record may be in memory only.
                self.held.hold(self.last_write, AfterDurable::Answer { to: from, operation });
                self.release();
            }
            RegisterMessage::Stored { operation } if mine(operation) => self.handle_stored(from, operation.sequence),
            // Answers to a former incarnation of this node; or this replica answers nobody any more.
            RegisterMessage::Told { .. } | RegisterMessage::Stored { .. } | RegisterMessage::Ask { .. } => {}
        }
    }

    // ---- storage

    fn handle_durable(&mut self, up_to: WriteId) {
        self.durable = self.durable.max(up_to);
        while let Some(sequence) = self.early.release(self.durable) {
            self.query(sequence);
        }
        self.release();
    }

    fn release(&mut self) {
        while let Some(due) = self.held.release(self.durable) {
            match due {
                AfterDurable::Answer { to, operation } => {
                    self.send(to, RegisterMessage::Stored { operation }, Batches::None);
                }
                AfterDurable::Count { sequence } => self.handle_stored(self.config.node, sequence),
            }
        }
    }

    fn handle_storage(&mut self, event: StorageEvent) {
        let group = self.config.group;
        match event {
            StorageEvent::Failed => {
                self.failed = true;
                self.held.drain().for_each(drop);
                self.early.drain().for_each(drop);
                while let Some(&sequence) = self.operations.keys().next() {
                    self.give_up(sequence);
                }
                self.actions.push_back(Action::Event { group, event: Event::StorageFailed });
            }
            // Others answer in its place; there is no leadership to hand away.
            StorageEvent::Slow => self.actions.push_back(Action::Event { group, event: Event::StorageSlow }),
            StorageEvent::Faulty { stream, range } => {
                // The records are in memory: written anew with the next snapshot.
                let event = Event::StorageFaulty { stream, range };
                self.actions.push_back(Action::Event { group, event });
                if !self.failed && self.recovered {
                    self.take_snapshot();
                }
            }
        }
    }

    fn handle_write(&mut self, now: Now, token: Token, write: WriteRequest) {
        let value = match write.op {
            WriteOp::Put { value } if value.len() > VALUE_BYTES_MAX => {
                let (bytes, bytes_max) = (value.len() as u64, VALUE_BYTES_MAX as u64);
                return self.reject(token, Rejection::TooLarge { bytes, bytes_max });
            }
            WriteOp::Put { value } => Some(value),
            WriteOp::Delete => None,
            // A register has no consensus number above one: compare-and-set is beyond it (Herlihy 1991).
            _ => return self.reject(token, Rejection::Unsupported),
        };
        if write.level != WriteLevel::Quorum || write.session.is_some() {
            return self.reject(token, Rejection::Unsupported);
        }
        self.begin(now, token, write.key, Wish::Write(value));
    }

    fn handle_read(&mut self, now: Now, token: Token, read: ReadRequest) {
        match read.level {
            ReadLevel::Linearizable => self.begin(now, token, read.key, Wish::Read),
            ReadLevel::Local => {
                let values = self.records.get(&read.key).and_then(Accepted::value).into_iter().collect();
                self.done(token, Outcome::Value { values, seen: None, strict: false, staleness: None });
            }
            _ => self.reject(token, Rejection::Unsupported),
        }
    }
}

impl Operation {
    fn reached(&self) -> Reached {
        let durable = if matches!(self.round, Round::Store { .. }) { self.answers() as u8 } else { 0 };
        Reached { received: durable, durable, applied: durable }
    }
}

impl Replica for Register {
    type Head = RegisterMessage;

    fn handle(&mut self, now: Now, input: Input<RegisterMessage>) {
        match input {
            Input::RecoverSnapshot { at, chunk, last } => self.handle_snapshot(at, &chunk, last),
            Input::Recover { batch } => self.handle_recovered_batch(batch),
            Input::Recovered => self.handle_recovered(),
            Input::Timer => self.handle_timer(now),
            Input::Message { from, message } => self.handle_message(from, message),
            // Every round asks every node anyway.
            Input::Peer { .. } => {}
            Input::Write { token, write, .. } => self.handle_write(now, token, *write),
            Input::Read { token, read, .. } => self.handle_read(now, token, *read),
            Input::Durable { up_to } => self.handle_durable(up_to),
            Input::Storage { event } => self.handle_storage(event),
            // It never asks for either.
            Input::LogRead { .. } | Input::SnapshotRead { .. } => {}
            Input::Command { token, .. }
            | Input::OpenSession { token, .. }
            | Input::Query { token, .. }
            | Input::Admin { token, .. } => self.reject(token, Rejection::Unsupported),
        }
    }

    fn poll(&mut self) -> Option<Action<RegisterMessage>> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        self.retries.front().map(|(at, _)| *at)
    }
}
