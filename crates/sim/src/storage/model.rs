//! A storage without bytes: the meaning of the contract and nothing else, so that a failing seed is a protocol's fault.
//!
//! Two images: what the running process sees, and what is durable. A sync covers what was queued when it began. A snapshot
//! is written beside the log: its action counts as durable before it is, and a release of its group that comes after it
//! takes effect only once it is, as `replikit_log::Storage` has it.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use replikit_core::{
    ClusterId, GroupId, LogIndex, NodeId, Persist, Position, StorageEvent, StreamId, Ticket, Time, WriteId,
};

use super::image::Image;
use super::{Recovery, SimStorage, StartError, StorageContext, StorageOutput};
use crate::fault::Fault;
use crate::settings::around;

/// The storage actions' meaning, kept in memory.
#[derive(Debug, Default)]
pub struct ModelStorage {
    seen: Image,
    durable: Image,
    unsynced: VecDeque<(WriteId, Persist)>,
    sync: Option<Sync>,
    stalled_until: Time,
    failed: bool,
    incarnation: u32,
    started: bool,
    // Snapshots that are still being written.
    writing: BTreeMap<GroupId, Writing>,
    // What has an end, by time and order.
    answers: BTreeMap<(Time, u64), StorageOutput>,
    answered: u64,
}

#[derive(Debug)]
struct Writing {
    at: Position,
    bytes: Bytes,
    due: Time,
    releases: Vec<Persist>,
}

#[derive(Clone, Copy, Debug)]
struct Sync {
    up_to: WriteId,
    due: Time,
}

fn pull(source: &mut dyn replikit_core::SnapshotSource, bytes_max: usize) -> Bytes {
    let mut whole = BytesMut::new();
    while let Some(piece) = source.next(bytes_max) {
        whole.extend_from_slice(&piece);
    }
    whole.freeze()
}

impl ModelStorage {
    fn answer_at(&mut self, at: Time, output: StorageOutput) {
        self.answered += 1;
        self.answers.insert((at, self.answered), output);
    }

    fn make_durable(&mut self, op: Persist, chunk_bytes_max: usize, snapshot_due: Time) {
        match op {
            Persist::Snapshot { at, mut source } => {
                let bytes = pull(&mut *source, chunk_bytes_max);
                let older = self.writing.remove(&at.stream.group);
                let releases = older.map_or_else(Vec::new, |older| older.releases);
                self.writing.insert(at.stream.group, Writing { at, bytes, due: snapshot_due, releases });
            }
            Persist::Release { stream, .. } => match self.writing.get_mut(&stream.group) {
                Some(writing) => writing.releases.push(op),
                None => self.release(&op),
            },
            op => {
                // A later snapshot is whole before an earlier one: the earlier one must not take its place.
                if let Persist::SnapshotChunk { at, last: true, .. } = &op
                    && let Some(older) = self.writing.remove(&at.stream.group)
                {
                    older.releases.iter().for_each(|op| self.release(op));
                }
                self.durable.apply(&op).expect("the image that the process sees took the same action");
            }
        }
    }

    fn release(&mut self, op: &Persist) {
        self.seen.release(op);
        self.durable.release(op);
    }

    fn end_snapshots(&mut self, now: Time) {
        let ended = |writing: &Writing| writing.due <= now;
        let groups: Vec<GroupId> =
            self.writing.iter().filter(|(_, writing)| ended(writing)).map(|(group, _)| *group).collect();
        for group in groups {
            let Writing { at, bytes, releases, .. } = self.writing.remove(&group).expect("listed above");
            self.durable.put_snapshot(at, bytes);
            for op in &releases {
                self.release(op);
            }
        }
    }
}

impl SimStorage for ModelStorage {
    fn new(_: ClusterId, _: NodeId, _: &mut StorageContext<'_>) -> Self {
        Self::default()
    }

    fn start(&mut self, context: &mut StorageContext<'_>) -> Result<Recovery, StartError> {
        if core::mem::replace(&mut self.started, true) {
            self.incarnation += 1;
        }
        self.durable.forget_incoming();
        self.seen = self.durable.clone();
        Ok(self.durable.recovery(self.incarnation, 1 << context.rng.u32(0..12)))
    }

    fn persist(&mut self, id: WriteId, op: Persist) -> Result<(), String> {
        self.seen.apply(&op)?;
        self.unsynced.push_back((id, op));
        Ok(())
    }

    fn read_log(
        &mut self,
        ticket: Ticket,
        stream: StreamId,
        from: LogIndex,
        bytes_max: u32,
        context: &mut StorageContext<'_>,
    ) {
        let answer = self.seen.read_log(stream, from, bytes_max);
        let at = context.now + around(context.rng, context.settings.sync / 4, context.settings.heavy_tail);
        self.answer_at(at.max(self.stalled_until), StorageOutput::LogRead { ticket, stream, answer });
    }

    fn read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
        context: &mut StorageContext<'_>,
    ) {
        // A disk may give less than was asked for.
        let bytes_max = context.rng.u32(1..=bytes_max.max(1));
        let answer = self.durable.read_snapshot(group, at, offset, bytes_max);
        let end = context.now + around(context.rng, context.settings.sync / 4, context.settings.heavy_tail);
        self.answer_at(end.max(self.stalled_until), StorageOutput::SnapshotRead { ticket, answer });
    }

    fn pump(&mut self, context: &mut StorageContext<'_>) {
        if self.sync.is_some() || self.failed {
            return;
        }
        let Some(&(up_to, _)) = self.unsynced.back() else { return };
        let takes = around(context.rng, context.settings.sync, context.settings.heavy_tail);
        let due = (context.now + takes).max(self.stalled_until);
        let slow_at = context.now + context.settings.slow_after;
        if due > slow_at {
            self.answer_at(slow_at, StorageOutput::Event(StorageEvent::Slow));
        }
        self.sync = Some(Sync { up_to, due });
    }

    fn due(&self) -> Option<Time> {
        let answer = self.answers.first_key_value().map(|((at, _), _)| *at);
        let snapshot = self.writing.values().map(|writing| writing.due).min();
        self.sync.map(|sync| sync.due).into_iter().chain(answer).chain(snapshot).min()
    }

    fn poll(&mut self, context: &mut StorageContext<'_>) -> Option<StorageOutput> {
        self.end_snapshots(context.now);
        if let Some(Sync { up_to, due }) = self.sync
            && due <= context.now
        {
            self.sync = None;
            if context.rng.u32(0..100_000) < u32::from(context.settings.fail_per_100k) {
                context.counts[Fault::SyncFailed] += 1;
                self.failed = true;
                return Some(StorageOutput::Event(StorageEvent::Failed));
            }
            let chunk_bytes_max = 1 << context.rng.u32(0..12);
            let takes = around(context.rng, context.settings.sync * 4, context.settings.heavy_tail);
            let snapshot_due = (context.now + takes).max(self.stalled_until);
            while self.unsynced.front().is_some_and(|(id, _)| *id <= up_to) {
                let (_, op) = self.unsynced.pop_front().expect("there is a front");
                self.make_durable(op, chunk_bytes_max, snapshot_due);
            }
            self.pump(context);
            return Some(StorageOutput::Durable(up_to));
        }
        let first = self.answers.first_entry()?;
        (first.key().0 <= context.now).then(|| first.remove())
    }

    fn stall(&mut self, until: Time) {
        self.stalled_until = self.stalled_until.max(until);
        if let Some(sync) = &mut self.sync {
            sync.due = sync.due.max(until);
        }
    }

    fn resume(&mut self, now: Time) {
        self.stalled_until = self.stalled_until.min(now);
        if let Some(sync) = &mut self.sync {
            sync.due = sync.due.min(now);
        }
        for writing in self.writing.values_mut() {
            writing.due = writing.due.min(now);
        }
        let answers = core::mem::take(&mut self.answers);
        self.answers = answers.into_iter().map(|((at, order), answer)| ((at.min(now), order), answer)).collect();
    }

    fn crash(&mut self, context: &mut StorageContext<'_>) {
        let all = self.unsynced.len();
        let kept = if context.settings.lose_unsynced { context.rng.usize(0..=all) } else { all };
        if kept < all {
            context.counts[Fault::UnsyncedLost] += 1;
            if kept > 0 {
                context.counts[Fault::UnsyncedTorn] += 1;
            }
        }
        let mut unsynced = core::mem::take(&mut self.unsynced);
        for (_, op) in unsynced.drain(..kept) {
            // Of a snapshot that is not whole nothing is left.
            self.make_durable(op, 1 << 12, Time::NEVER);
        }
        self.writing.clear();
        self.sync = None;
        self.failed = false;
        self.stalled_until = Time::ZERO;
        self.answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use replikit_core::{BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp, LogIndex, Term};

    use super::*;
    use crate::fault::FaultCounts;
    use crate::settings::Settings;
    use crate::storage::RecoveryItem;
    use replikit_core::Batch;

    fn batch(index: u64, prev_digest: u64) -> Batch {
        let meta = BatchMeta {
            cluster: ClusterId::from_name("test"),
            stream: StreamId::consensus(GroupId(1)),
            base: LogIndex(index),
            term: Term(1),
            prev_digest,
            time: HybridTimestamp(0),
            kind: BatchKind::Commands,
        };
        Batch::build(&meta, core::iter::once((&b"x"[..], None)))
    }

    #[test]
    fn a_crash_keeps_what_was_durable_and_a_prefix_of_the_rest() {
        let settings = Settings::calm(1);
        for seed in 0..200 {
            let (mut rng, mut counts) = (Rng::with_seed(seed), FaultCounts::default());
            let mut context =
                StorageContext { now: Time(0), rng: &mut rng, settings: &settings.storage, counts: &mut counts };
            let mut storage = ModelStorage::default();
            storage.start(&mut context).expect("an empty disk is fine");
            let (mut digest, mut durable) = (0, 0);
            for index in 1..=20 {
                let batch = batch(index, digest);
                digest = batch.digest();
                storage.persist(WriteId(index), Persist::Append { batch, replace: false }).expect("in order");
                storage.pump(&mut context);
                context.now.0 += context.rng.u64(0..400_000);
                while let Some(StorageOutput::Durable(WriteId(up_to))) = storage.poll(&mut context) {
                    assert!(up_to > durable && up_to <= index);
                    durable = up_to;
                }
            }
            storage.crash(&mut context);
            let found: Vec<u64> = storage
                .start(&mut context)
                .expect("an honest disk")
                .items
                .iter()
                .map(|item| match item {
                    RecoveryItem::Batch(batch) => batch.base().0,
                    RecoveryItem::SnapshotChunk { .. } => panic!("no snapshot was written"),
                })
                .collect();
            assert!(found.len() as u64 >= durable, "seed {seed}: {durable} were durable, {} were found", found.len());
            assert!(found.iter().copied().eq(1..=found.len() as u64), "seed {seed}: not a prefix: {found:?}");
        }
    }

    #[test]
    fn an_append_with_a_gap_is_refused() {
        let mut storage = ModelStorage::default();
        assert!(storage.persist(WriteId(1), Persist::Append { batch: batch(2, 0), replace: true }).is_err());
    }
}
