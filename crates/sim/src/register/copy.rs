//! The replica's own copy: what it holds in memory, what of it is on disk, and what waits until it is.
//!
//! Invariant: of each key the newest record that was ever seen is held; an answer that claims durability waits for it.

use bytes::Bytes;
use replikit_core::{
    Action, Batch, BatchKind, BatchMeta, Batches, Event, HybridTimestamp, LogId, Persist, Position, StorageEvent, Term,
    WriteId,
};

use super::Register;
use super::message::RegisterMessage;
use super::record::{Accepted, Record, Stamp};
use super::replica::AfterDurable;
use super::snapshot::Image;

impl Register {
    /// Takes a record unless a newer one of its key is held.
    pub(super) fn accept(&mut self, record: &Record<'_>) {
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

    pub(super) fn keep(&mut self, stamp: Stamp, key: &[u8], batch: Batch) {
        match self.records.get_mut(key) {
            Some(held) if held.stamp >= stamp => {}
            Some(held) => *held = Accepted { stamp, batch },
            None => {
                self.records.insert(Bytes::copy_from_slice(key), Accepted { stamp, batch });
            }
        }
    }

    /// Where the newest record of this start stands.
    pub(super) fn position(&self) -> Position {
        let id = LogId { term: Term(u64::from(self.start)), index: self.next.prev() };
        Position { stream: self.stream, id, digest: self.digest }
    }

    pub(super) fn take_snapshot(&mut self) {
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

    pub(super) fn handle_snapshot(&mut self, at: Position, chunk: &[u8], last: bool) {
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

    pub(super) fn handle_recovered_batch(&mut self, batch: Batch) {
        let end = batch.last().index.next();
        let former = self.former.entry(batch.stream()).or_default();
        *former = end.max(*former);
        if let Some(record) = Record::of(&batch) {
            self.keep(record.stamp, record.key, batch.clone());
        }
    }

    pub(super) fn handle_recovered(&mut self) {
        self.recovered = true;
        let bytes = Bytes::copy_from_slice(&self.start.to_le_bytes());
        self.persist(Persist::Register { group: self.config.group, bytes });
    }

    pub(super) fn handle_durable(&mut self, up_to: WriteId) {
        self.durable = self.durable.max(up_to);
        while let Some(sequence) = self.early.release(self.durable) {
            self.query(sequence);
        }
        self.release();
    }

    pub(super) fn release(&mut self) {
        while let Some(due) = self.held.release(self.durable) {
            match due {
                AfterDurable::Answer { to, operation } => {
                    self.send(to, RegisterMessage::Stored { operation }, Batches::None);
                }
                AfterDurable::Count { sequence } => self.handle_stored(self.config.node, sequence),
            }
        }
    }

    pub(super) fn handle_storage(&mut self, event: StorageEvent) {
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
}
