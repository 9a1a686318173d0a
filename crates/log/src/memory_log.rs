//! A log without a disk: everything is durable at once, and nothing outlives the value.
//!
//! Invariant: what was handed to [`Storage::persist`] is what [`MemoryLog::recovery`] pushes, in append order. For protocol
//! benches, examples and tests. No allocation per entry in steady state.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use replikit_core::{
    Batch, Batches, GroupId, LogAnswer, LogIndex, Persist, Position, SnapshotAnswer, StreamId, Ticket, WriteId,
};

use crate::{Boots, LogOutput, RecoveryItem, Storage, Tail};

const SNAPSHOT_PIECE_BYTES: usize = 256 << 10;

#[derive(Debug, Default)]
struct Stream {
    /// With the append's number over all streams; ascending in both.
    batches: VecDeque<(u64, Batch)>,
    first: LogIndex,
}

impl Stream {
    /// Whole batches from the one that holds an index on, up to and including `until`.
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u32) -> Batches {
        let start = self.batches.partition_point(|(_, batch)| batch.last().index < from);
        let (mut batches, mut bytes) = (Batches::None, 0);
        for (_, batch) in self.batches.range(start..).take_while(|(_, batch)| batch.last().index <= until) {
            bytes += batch.bytes();
            if !batches.is_empty() && bytes > bytes_max as usize {
                break;
            }
            batches.push(batch.clone());
        }
        batches
    }
}

#[derive(Debug)]
struct Snapshot {
    at: Position,
    bytes: Bytes,
}

/// A log in memory: see the module.
#[derive(Debug, Default)]
pub struct MemoryLog {
    streams: BTreeMap<StreamId, Stream>,
    registers: BTreeMap<GroupId, Bytes>,
    snapshots: BTreeMap<GroupId, Snapshot>,
    staged: BTreeMap<GroupId, (Position, BytesMut)>,
    appends: u64,
    starts_unclean: u32,
    durable: WriteId,
    told: WriteId,
    outputs: VecDeque<LogOutput>,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plays an unclean restart of the process: ids count from 1 again, what was not polled is gone, the incarnation grows.
    pub fn restart(&mut self) {
        self.starts_unclean += 1;
        (self.durable, self.told) = (WriteId(0), WriteId(0));
        self.outputs.clear();
        self.staged.clear();
    }

    /// What is known of each group before recovery is pushed.
    #[must_use]
    pub fn boots(&self) -> Boots {
        let mut boots = Boots { incarnation: self.starts_unclean, ..Boots::default() };
        let groups = self.registers.keys().chain(self.snapshots.keys()).copied();
        for group in groups.chain(self.streams.keys().map(|stream| stream.group)) {
            let mut boot = boots.of(group);
            boot.register = self.registers.get(&group).cloned().unwrap_or_default();
            boot.snapshot = self.snapshots.get(&group).map(|snapshot| snapshot.at);
            boots.groups.insert(group, boot);
        }
        boots
    }

    /// What to push into a replica, in order.
    pub fn recovery(&self) -> impl Iterator<Item = RecoveryItem> {
        let chunks = self.snapshots.values().flat_map(|snapshot| {
            let mut left = Some(snapshot.bytes.clone());
            core::iter::from_fn(move || {
                let mut rest = left.take()?;
                let chunk = rest.split_to(rest.len().min(SNAPSHOT_PIECE_BYTES));
                let last = rest.is_empty();
                left = (!last).then_some(rest);
                Some(RecoveryItem::SnapshotChunk { at: snapshot.at, chunk, last })
            })
        });
        let mut batches: Vec<(u64, Batch)> =
            self.streams.values().flat_map(|stream| stream.batches.iter().cloned()).collect();
        batches.sort_by_key(|(append, _)| *append);
        chunks.chain(batches.into_iter().map(|(_, batch)| RecoveryItem::Batch(batch)))
    }

    /// Batches of a stream that are still there.
    #[must_use]
    pub fn batches(&self, stream: StreamId) -> usize {
        self.streams.get(&stream).map_or(0, |stream| stream.batches.len())
    }

    /// What lies at a change data capture cursor: see [`Log::tail`](crate::Log::tail). Here the caller keeps the cursor, and
    /// nothing is held back for it.
    #[must_use]
    pub fn tail(&self, stream: StreamId, from: LogIndex, committed: LogIndex, bytes_max: u32) -> Tail {
        let Some(found) = self.streams.get(&stream) else { return Tail::Batches(Batches::None) };
        if from < found.first {
            return Tail::Lagged { first: found.first };
        }
        Tail::Batches(found.read(from, committed, bytes_max))
    }

    fn append(&mut self, batch: Batch, replace: bool) {
        let stream = self.streams.entry(batch.stream()).or_default();
        if replace {
            let base = batch.base();
            while stream.batches.back().is_some_and(|(_, last)| last.base() >= base) {
                stream.batches.pop_back();
            }
        }
        if let Some((_, last)) = stream.batches.back() {
            assert!(last.last().index < batch.base(), "{batch:?} overlaps {last:?}, and is not to replace it");
        }
        self.appends += 1;
        stream.batches.push_back((self.appends, batch));
    }
}

impl Storage for MemoryLog {
    fn persist(&mut self, id: WriteId, op: Persist) {
        assert_eq!(id, self.durable.next(), "write ids count from 1 without gaps");
        self.durable = id;
        match op {
            Persist::Append { batch, replace } => self.append(batch, replace),
            Persist::Register { group, bytes } => {
                self.registers.insert(group, bytes);
            }
            Persist::Snapshot { at, mut source } => {
                let mut bytes = BytesMut::new();
                while let Some(piece) = source.next(SNAPSHOT_PIECE_BYTES) {
                    bytes.extend_from_slice(&piece);
                }
                self.snapshots.insert(at.stream.group, Snapshot { at, bytes: bytes.freeze() });
            }
            Persist::SnapshotChunk { at, offset, chunk, last } => {
                let (staged_at, staged) = self.staged.entry(at.stream.group).or_default();
                if *staged_at != at || offset == 0 {
                    *staged_at = at;
                    staged.clear();
                }
                assert_eq!(staged.len() as u64, offset, "the chunks of a snapshot come in order");
                staged.extend_from_slice(&chunk);
                if last {
                    let (at, bytes) = self.staged.remove(&at.stream.group).expect("the last chunk was just staged");
                    self.snapshots.insert(at.stream.group, Snapshot { at, bytes: bytes.freeze() });
                }
            }
            Persist::Reset { stream, next } => {
                let stream = self.streams.entry(stream).or_default();
                stream.batches.clear();
                stream.first = next;
            }
            Persist::Release { stream, before } => {
                let stream = self.streams.entry(stream).or_default();
                while stream.batches.front().is_some_and(|(_, first)| first.last().index < before) {
                    stream.batches.pop_front();
                }
                let left = stream.batches.front().map_or(before, |(_, first)| first.base().min(before));
                stream.first = stream.first.max(left);
            }
        }
    }

    fn read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32) {
        let answer = match self.streams.get(&stream) {
            Some(found) if from < found.first => LogAnswer::Compacted { first: found.first },
            Some(found) => LogAnswer::Batches(found.read(from, LogIndex(u64::MAX), bytes_max)),
            None => LogAnswer::Batches(Batches::None),
        };
        self.outputs.push_back(LogOutput::LogRead { ticket, stream, answer });
    }

    fn read_snapshot(&mut self, ticket: Ticket, group: GroupId, at: Option<Position>, offset: u64, bytes_max: u32) {
        let found = self.snapshots.get(&group).filter(|snapshot| at.is_none_or(|at| at == snapshot.at));
        let answer = match found {
            Some(snapshot) if offset <= snapshot.bytes.len() as u64 => {
                let start = offset as usize;
                let end = snapshot.bytes.len().min(start.saturating_add(bytes_max as usize));
                let chunk = snapshot.bytes.slice(start..end);
                SnapshotAnswer::Chunk { at: snapshot.at, offset, chunk, last: end == snapshot.bytes.len() }
            }
            _ => SnapshotAnswer::Gone,
        };
        self.outputs.push_back(LogOutput::SnapshotRead { ticket, answer });
    }

    fn poll(&mut self) -> Option<LogOutput> {
        if self.told < self.durable {
            self.told = self.durable;
            return Some(LogOutput::Durable { up_to: self.durable });
        }
        self.outputs.pop_front()
    }
}
