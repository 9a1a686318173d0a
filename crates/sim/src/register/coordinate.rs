//! Coordinating: one operation asks a majority, has a majority store, and ends.
//!
//! Invariant: an operation ends exactly once, and an answer counts for the round that it answers only.

use bytes::Bytes;
use replikit_core::{
    Batch, Batches, KEY_BYTES_MAX, NodeId, Now, Outcome, Queue, Reached, ReadLevel, ReadRequest, Rejection, Token,
    VALUE_BYTES_MAX, WriteId, WriteLevel, WriteOp, WriteRequest,
};

use super::Register;
use super::message::{OperationId, RegisterMessage};
use super::operation::{Operation, Round, Wish};
use super::record::{Accepted, Record, Stamp};
use super::replica::AfterDurable;

impl Register {
    pub(super) fn begin(&mut self, now: Now, token: Token, key: Bytes, wish: Wish) {
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
    pub(super) fn query(&mut self, sequence: u64) {
        let Some(operation) = self.operations.get(&sequence) else { return };
        let own = self.records.get(&operation.key).map(|held| (held.stamp, held.batch.clone()));
        self.ask_again(sequence);
        self.handle_told(self.config.node, sequence, own);
    }

    /// Sends the round's question to every other node that has not answered it.
    pub(super) fn ask_again(&mut self, sequence: u64) {
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

    pub(super) fn handle_told(&mut self, from: NodeId, sequence: u64, told: Option<(Stamp, Batch)>) {
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
    pub(super) fn store(&mut self, sequence: u64) {
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

    pub(super) fn handle_stored(&mut self, from: NodeId, sequence: u64) {
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

    pub(super) fn end_read(&mut self, sequence: u64, value: Option<Bytes>) {
        let operation = self.operations.remove(&sequence).expect("its majority has just answered");
        let values = value.into_iter().collect();
        self.done(operation.token, Outcome::Value { values, seen: None, strict: true, staleness: None });
    }

    pub(super) fn handle_timer(&mut self, now: Now) {
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

    pub(super) fn give_up(&mut self, sequence: u64) {
        if let Some(operation) = self.operations.remove(&sequence) {
            self.done(operation.token, Outcome::Indeterminate { reached: operation.reached() });
        }
    }

    pub(super) fn handle_write(&mut self, now: Now, token: Token, write: WriteRequest) {
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

    pub(super) fn handle_read(&mut self, now: Now, token: Token, read: ReadRequest) {
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
