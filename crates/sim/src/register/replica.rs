//! The replica: its state, and which part of it an input is for.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::{
    Action, Batches, Boot, Event, Held, Input, LogIndex, Message, NodeId, Now, OriginId, Outcome, Persist, Rejection,
    Replica, StreamId, Time, Token, WriteId, quorum,
};

use super::config::{RegisterConfig, RegisterError};
use super::message::{OperationId, RegisterMessage};
use super::operation::Operation;
use super::record::{Accepted, Record, Stamp};
use super::snapshot::Incoming;

/// What waits until this replica's own storage has caught up.
#[derive(Debug)]
pub(super) enum AfterDurable {
    /// Tell a coordinator that its record is safe here.
    Answer { to: NodeId, operation: OperationId },
    /// The same, to ourselves.
    Count { sequence: u64 },
}

/// A replica of a group of registers.
#[derive(Debug)]
pub struct Register {
    pub(super) config: RegisterConfig,
    pub(super) start: u32,
    pub(super) stream: StreamId,
    pub(super) next: LogIndex,
    pub(super) digest: u64,
    pub(super) last_write: WriteId,
    pub(super) durable: WriteId,
    pub(super) failed: bool,
    pub(super) recovered: bool,
    pub(super) records: BTreeMap<Bytes, Accepted>,
    // Streams of former starts, with what they hold; released with the next snapshot.
    pub(super) former: BTreeMap<StreamId, LogIndex>,
    pub(super) since_snapshot: u32,
    pub(super) restoring: Incoming,
    pub(super) operations: BTreeMap<u64, Operation>,
    pub(super) next_operation: u64,
    // All waits are equally long, so the deadlines are in order; those of operations that have ended are left in.
    pub(super) retries: VecDeque<(Time, u64)>,
    pub(super) held: Held<AfterDurable>,
    // Operations that came before this start's number was durable.
    pub(super) early: Held<u64>,
    pub(super) actions: VecDeque<Action<RegisterMessage>>,
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

    pub(super) fn majority(&self) -> usize {
        quorum::majority(self.config.members.len())
    }

    pub(super) fn done(&mut self, token: Token, outcome: Outcome) {
        self.actions.push_back(Action::Done { token, outcome });
    }

    pub(super) fn reject(&mut self, token: Token, rejection: Rejection) {
        self.done(token, Outcome::Rejected(rejection));
    }

    pub(super) fn misbehaved(&mut self, node: NodeId, what: &'static str) {
        let event = Event::PeerMisbehaved { node, what };
        self.actions.push_back(Action::Event { group: self.config.group, event });
    }

    pub(super) fn send(&mut self, to: NodeId, head: RegisterMessage, batches: Batches) {
        self.actions.push_back(Action::Send { to, message: Message { head, batches } });
    }

    pub(super) fn persist(&mut self, op: Persist) -> WriteId {
        self.last_write = self.last_write.next();
        self.actions.push_back(Action::Persist { id: self.last_write, op });
        self.last_write
    }

    pub(super) fn handle_message(&mut self, from: NodeId, message: Message<RegisterMessage>) {
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
