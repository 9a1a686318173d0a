//! Reads of old batches and snapshots, and change data capture cursors.

use core::ops::RangeInclusive;

use bytes::Bytes;
use replikit_core::{
    Batch, Batches, GroupId, LogAnswer, LogIndex, Position, SnapshotAnswer, StorageEvent, StreamId, Ticket,
};

use super::{Log, Subscription};
use crate::snapshot::{PAYLOAD_BYTES, PIECE_BYTES, piece_offset};
use crate::{DiskAnswer, DiskError, DiskOp, FileId, Lane, LogOutput, OpId, READS_IN_FLIGHT_MAX, SubscriptionId, Tail};

/// A batch within what is read.
#[derive(Clone, Copy, Debug)]
struct Item {
    /// From the start of the read.
    start: usize,
    bytes: usize,
    base: LogIndex,
    last: LogIndex,
    order: u64,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Log { ticket: Ticket },
    Tail { subscription: SubscriptionId },
    Snapshot { ticket: Ticket, group: GroupId, at: Position, piece: u64, offset: u64, bytes_max: u32 },
}

/// A read of a file.
#[derive(Debug)]
pub(super) struct Read {
    asked: Asked,
    stream: StreamId,
    file: FileId,
    offset: u64,
    bytes: usize,
    items: Vec<Item>,
}

/// What is in memory, or where to read.
enum Gathered {
    Compacted(LogIndex),
    Cached(Batches),
    OnDisk { file: FileId, offset: u64, bytes: usize, items: Vec<Item> },
}

impl Log {
    /// Batches from an index on, up to and including `until`, of groups below `place`.
    fn gather(&self, stream: StreamId, from: LogIndex, until: LogIndex, place: u64, bytes_max: u32) -> Gathered {
        let Some(known) = self.state.streams.get(&stream) else {
            return Gathered::Cached(Batches::None);
        };
        if from < known.first {
            return Gathered::Compacted(known.first);
        }
        let mut entries =
            known.entries.range(known.find(from)..).take_while(|entry| entry.last() <= until && entry.place < place);
        let Some(first) = entries.next() else {
            return Gathered::Cached(Batches::None);
        };
        let mut bytes = first.bytes as usize;
        if let Some(batch) = &first.cached {
            let mut batches = Batches::One(batch.clone());
            for entry in entries {
                bytes += entry.bytes as usize;
                match &entry.cached {
                    Some(batch) if bytes <= bytes_max as usize => batches.push(batch.clone()),
                    _ => break,
                }
            }
            return Gathered::Cached(batches);
        }
        let (file, group) = self.segments.locate(first.place).expect("what is not cached was written");
        let offset = group + u64::from(first.at);
        let item = |start: u64, entry: &crate::state::Entry| Item {
            start: (start - offset) as usize,
            bytes: entry.bytes as usize,
            base: entry.base,
            last: entry.last(),
            order: entry.order,
        };
        let mut items = vec![item(offset, first)];
        let mut end = offset + u64::from(first.bytes);
        for entry in entries {
            bytes += entry.bytes as usize;
            let Some((same, group)) = self.segments.locate(entry.place) else { break };
            let start = group + u64::from(entry.at);
            // One read for batches that stand close together; what lies between belongs to other streams.
            let near = same == file && start >= end && start - end <= u64::from(bytes_max);
            // A batch that was moved forward may lie before its neighbour: it is not near, so the span does not matter.
            let span = (start + u64::from(entry.bytes)).saturating_sub(offset);
            if bytes > bytes_max as usize || entry.cached.is_some() || !near || span > 2 * u64::from(bytes_max) {
                break;
            }
            items.push(item(start, entry));
            end = start + u64::from(entry.bytes);
        }
        Gathered::OnDisk { file, offset, bytes: (end - offset) as usize, items }
    }

    pub(super) fn take_read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32) {
        let answer = match self.gather(stream, from, LogIndex(u64::MAX), u64::MAX, bytes_max) {
            Gathered::Compacted(first) => LogAnswer::Compacted { first },
            Gathered::Cached(batches) => LogAnswer::Batches(batches),
            Gathered::OnDisk { file, offset, bytes, items } => {
                let asked = Asked::Log { ticket };
                self.reads_waiting.push_back(Read { asked, stream, file, offset, bytes, items });
                return;
            }
        };
        self.outputs.push_back(LogOutput::LogRead { ticket, stream, answer });
    }

    pub(super) fn take_read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
    ) {
        let known = self.snapshots.get(&group).filter(|known| at.is_none_or(|at| at == known.header.at));
        let answer = match known {
            Some(known) if offset < known.snapshot_bytes => {
                let piece = offset / PAYLOAD_BYTES as u64;
                let (at, file) = (known.header.at, known.file);
                let asked = Asked::Snapshot { ticket, group, at, piece, offset, bytes_max };
                self.reads_waiting.push_back(Read {
                    asked,
                    stream: at.stream,
                    file,
                    offset: piece_offset(piece),
                    bytes: PIECE_BYTES,
                    items: Vec::new(),
                });
                return;
            }
            Some(known) if offset == known.snapshot_bytes => {
                SnapshotAnswer::Chunk { at: known.header.at, offset, chunk: Bytes::new(), last: true }
            }
            _ => SnapshotAnswer::Gone,
        };
        self.outputs.push_back(LogOutput::SnapshotRead { ticket, answer });
    }

    /// Whether a read of this file is under way or waits.
    pub(super) fn is_read(&self, file: FileId) -> bool {
        self.reads.values().chain(&self.reads_waiting).any(|read| read.file == file)
    }

    pub(super) fn start_reads(&mut self) {
        while self.reads.len() < READS_IN_FLIGHT_MAX
            && let Some(read) = self.reads_waiting.pop_front()
        {
            let op = DiskOp::Read { file: read.file, offset: read.offset, bytes: read.bytes };
            let id = self.emit(Lane::Read, op);
            self.reads.insert(id.number, read);
        }
    }

    pub(super) fn complete_read(&mut self, op: OpId, result: Result<DiskAnswer, DiskError>) {
        let Some(read) = self.reads.remove(&op.number) else { return };
        let bytes = match result {
            Ok(DiskAnswer::Read(bytes)) => Some(bytes),
            _ => None,
        };
        match read.asked {
            Asked::Log { ticket } => {
                let answer = match self.check(&read, bytes.as_ref()) {
                    Ok(batches) => LogAnswer::Batches(batches),
                    Err(range) => LogAnswer::Faulty(range),
                };
                self.outputs.push_back(LogOutput::LogRead { ticket, stream: read.stream, answer });
            }
            Asked::Tail { subscription } => {
                let tail = match self.check(&read, bytes.as_ref()) {
                    Ok(batches) => Tail::Batches(batches),
                    Err(range) => Tail::Faulty(range),
                };
                self.tailed(subscription, tail);
            }
            Asked::Snapshot { ticket, group, at, piece, offset, bytes_max } => {
                let answer = self.check_snapshot(group, at, piece, offset, bytes_max, bytes.as_ref());
                self.outputs.push_back(LogOutput::SnapshotRead { ticket, answer });
            }
        }
    }

    /// The batches that a read found, up to the first that cannot be read; if that is the very first, its indices.
    fn check(&mut self, read: &Read, bytes: Option<&Bytes>) -> Result<Batches, RangeInclusive<LogIndex>> {
        let mut batches = Batches::None;
        for item in &read.items {
            // What was dropped while the disk was reading is not handed out any more.
            let live = self.state.streams.get(&read.stream).and_then(|stream| stream.at_base(item.base));
            if live.is_none_or(|entry| entry.order != item.order) {
                break;
            }
            let found = bytes
                .filter(|bytes| bytes.len() >= item.start + item.bytes)
                .map(|bytes| bytes.slice(item.start..item.start + item.bytes))
                .and_then(|bytes| Batch::verify(bytes, self.config.cluster).ok())
                .filter(|batch| batch.stream() == read.stream && batch.base() == item.base);
            match found {
                Some(batch) => batches.push(batch),
                None => {
                    let range = item.base..=item.last;
                    let event = StorageEvent::Faulty { stream: read.stream, range: range.clone() };
                    self.outputs.push_back(LogOutput::Storage(event));
                    return if batches.is_empty() { Err(range) } else { Ok(batches) };
                }
            }
        }
        Ok(batches)
    }

    fn check_snapshot(
        &mut self,
        group: GroupId,
        at: Position,
        piece: u64,
        offset: u64,
        bytes_max: u32,
        bytes: Option<&Bytes>,
    ) -> SnapshotAnswer {
        let Some(known) = self.snapshots.get(&group).filter(|known| known.header.at == at) else {
            return SnapshotAnswer::Gone;
        };
        let Some(payload) = bytes.and_then(|bytes| known.check(piece, bytes)) else {
            let event = StorageEvent::Faulty { stream: at.stream, range: LogIndex(1)..=at.id.index };
            self.outputs.push_back(LogOutput::Storage(event));
            return SnapshotAnswer::Gone;
        };
        let start = (offset - piece * PAYLOAD_BYTES as u64) as usize;
        let end = payload.len().min(start.saturating_add(bytes_max as usize));
        let chunk = payload.slice(start.min(end)..end);
        let last = offset + chunk.len() as u64 == known.snapshot_bytes;
        SnapshotAnswer::Chunk { at, offset, chunk, last }
    }

    /// Begins a change data capture cursor over a stream, at an index. It holds back compaction of what it has not passed, up
    /// to [`LogConfig::retained_bytes_max`](crate::LogConfig::retained_bytes_max); it does not outlive the process.
    pub fn subscribe(&mut self, stream: StreamId, from: LogIndex) -> SubscriptionId {
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription += 1;
        self.subscriptions.insert(id, Subscription { stream, cursor: from, busy: false });
        id
    }

    /// Ends a cursor.
    pub fn unsubscribe(&mut self, subscription: SubscriptionId) {
        if let Some(ended) = self.subscriptions.remove(&subscription) {
            self.release_passed(ended.stream);
        }
    }

    /// Asks for what lies at a cursor: whole batches that are durable here and, as the caller knows, committed up to and
    /// including `committed`; at least one if there is any, at most `bytes_max` bytes if more than one. Answered by one
    /// [`LogOutput::Tail`], by which the cursor moves; until then, and for a cursor that has ended, further calls do nothing.
    pub fn tail(&mut self, subscription: SubscriptionId, committed: LogIndex, bytes_max: u32) {
        let Some(found) = self.subscriptions.get_mut(&subscription).filter(|found| !found.busy) else { return };
        found.busy = true;
        let Subscription { stream, cursor, .. } = *found;
        match self.gather(stream, cursor, committed, self.durable_place, bytes_max) {
            Gathered::Compacted(first) => self.tailed(subscription, Tail::Lagged { first }),
            Gathered::Cached(batches) => self.tailed(subscription, Tail::Batches(batches)),
            Gathered::OnDisk { file, offset, bytes, items } => {
                let asked = Asked::Tail { subscription };
                self.reads_waiting.push_back(Read { asked, stream, file, offset, bytes, items });
            }
        }
    }

    fn tailed(&mut self, subscription: SubscriptionId, tail: Tail) {
        let Some(found) = self.subscriptions.get_mut(&subscription) else { return };
        found.busy = false;
        let stream = found.stream;
        match &tail {
            Tail::Batches(batches) => {
                if let Some(last) = batches.as_slice().last() {
                    found.cursor = last.last().index.next();
                }
            }
            Tail::Lagged { first } => found.cursor = *first,
            Tail::Faulty(_) => {}
        }
        self.outputs.push_back(LogOutput::Tail { subscription, tail });
        self.release_passed(stream);
    }

    /// Releases what a cursor held back and has passed.
    fn release_passed(&mut self, stream: StreamId) {
        if let Some(known) = self.state.streams.get(&stream)
            && known.released > known.first
        {
            let released = known.released;
            self.release_now(stream, released);
        }
    }

    /// How far a release goes while cursors hold it back.
    pub(super) fn held_back(&self, stream: StreamId, before: LogIndex) -> LogIndex {
        let cursors = self.subscriptions.values().filter(|found| found.stream == stream);
        let Some(cursor) = cursors.map(|found| found.cursor).min().filter(|cursor| *cursor < before) else {
            return before;
        };
        let Some(known) = self.state.streams.get(&stream) else { return before };
        let held = known.entries.range(known.find(cursor)..known.find(before).max(known.find(cursor)));
        let mut bytes: u64 = held.clone().map(|entry| u64::from(entry.bytes)).sum();
        let mut until = cursor;
        for entry in held {
            if bytes <= self.config.retained_bytes_max {
                break;
            }
            bytes -= u64::from(entry.bytes);
            until = entry.last().next();
        }
        until.min(before)
    }
}
