//! What a disk holds once the storage actions so far are carried out: the meaning of `Persist`, without bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{
    Batch, Batches, GroupId, LogAnswer, LogIndex, Persist, Position, REGISTER_BYTES_MAX, SnapshotAnswer, StreamId,
};

use super::{Boots, Recovery, RecoveryItem};

#[derive(Clone, Debug)]
struct Stream {
    next: LogIndex,
    // What a damaged disk left is a state of the past; which one, only the next append tells.
    unsure: bool,
    // With their place in the order of all appends of the node.
    batches: Vec<(u64, Batch)>,
    // Replaced batches are pushed at recovery too, before those that replaced them: a log is read in append order.
    replaced: Vec<(u64, Batch)>,
}

impl Default for Stream {
    fn default() -> Self {
        Self { next: LogIndex(1), unsure: false, batches: Vec::new(), replaced: Vec::new() }
    }
}

/// A snapshot that is still being received.
#[derive(Clone, Debug)]
struct Incoming {
    at: Position,
    bytes: Vec<u8>,
}

/// The content of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    registers: BTreeMap<GroupId, Bytes>,
    snapshots: BTreeMap<GroupId, (Position, Bytes)>,
    incoming: BTreeMap<GroupId, Incoming>,
    streams: BTreeMap<StreamId, Stream>,
    appended: u64,
}

impl Image {
    /// Carries out an action. `Persist::Snapshot` is carried out by [`Image::put_snapshot`] and `Persist::Release`, which is
    /// only checked here, by [`Image::release`], each when it takes effect.
    ///
    /// Errors are sentences: a rule of the contract that the replica broke.
    pub(super) fn apply(&mut self, op: &Persist) -> Result<(), String> {
        match op {
            Persist::Append { batch, replace } => self.append(batch, *replace),
            Persist::Register { group, bytes } => {
                if bytes.len() > REGISTER_BYTES_MAX {
                    return Err(format!("a register of {} bytes is larger than {REGISTER_BYTES_MAX}", bytes.len()));
                }
                self.registers.insert(*group, bytes.clone());
                Ok(())
            }
            Persist::Snapshot { .. } => Ok(()),
            Persist::SnapshotChunk { at, offset, chunk, last } => self.snapshot_chunk(*at, *offset, chunk, *last),
            Persist::Reset { stream, next } => {
                self.streams.insert(*stream, Stream { next: *next, ..Stream::default() });
                Ok(())
            }
            Persist::Release { stream, before } => {
                let known = self.streams.get(stream);
                let next = known.map_or(LogIndex(1), |stream| stream.next);
                if *before > next && !known.is_some_and(|stream| stream.unsure) {
                    return Err(format!("{stream} was released before {before}, but its next index is {next}"));
                }
                Ok(())
            }
        }
    }

    /// Drops what is no longer needed.
    pub(super) fn release(&mut self, op: &Persist) {
        let Persist::Release { stream, before } = op else { return };
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.batches.retain(|(_, batch)| batch.last().index >= *before);
            stream.replaced.retain(|(_, batch)| batch.last().index >= *before);
        }
    }

    fn append(&mut self, batch: &Batch, replace: bool) -> Result<(), String> {
        let stream = self.streams.entry(batch.stream()).or_default();
        let base = batch.base();
        if core::mem::take(&mut stream.unsure) && stream.batches.last().is_none_or(|(_, last)| last.last().index < base)
        {
            stream.next = base;
        }
        if base > stream.next || base < stream.next && !replace {
            return Err(format!(
                "{batch:?} was appended with replace = {replace} to a stream whose next index is {:?}",
                stream.next
            ));
        }
        while stream.batches.last().is_some_and(|(_, last)| last.last().index >= base) {
            let dropped = stream.batches.pop().expect("there is a last one");
            if dropped.1.base() < base {
                return Err(format!("{batch:?} would cut {:?} in two", dropped.1));
            }
            stream.replaced.push(dropped);
        }
        if let Some((_, last)) = stream.batches.last()
            && last.digest() != batch.prev_digest()
        {
            return Err(format!("{batch:?} does not continue the chain of {last:?}"));
        }
        self.appended += 1;
        stream.batches.push((self.appended, batch.clone()));
        stream.next = batch.last().index.next();
        Ok(())
    }

    fn snapshot_chunk(&mut self, at: Position, offset: u64, chunk: &Bytes, last: bool) -> Result<(), String> {
        let group = at.stream.group;
        if offset == 0 {
            self.incoming.insert(group, Incoming { at, bytes: Vec::new() });
        }
        let Some(incoming) = self.incoming.get_mut(&group).filter(|incoming| incoming.at == at) else {
            return Err(format!("a piece at offset {offset} of a snapshot at {at:?} that was not begun"));
        };
        if incoming.bytes.len() as u64 != offset {
            return Err(format!("a piece at offset {offset} where {} was due", incoming.bytes.len()));
        }
        incoming.bytes.extend_from_slice(chunk);
        if last {
            let whole = self.incoming.remove(&group).expect("looked up above");
            self.put_snapshot(at, whole.bytes.into());
        }
        Ok(())
    }

    /// A whole snapshot takes the place of the older one.
    pub(super) fn put_snapshot(&mut self, at: Position, bytes: Bytes) {
        self.snapshots.insert(at.stream.group, (at, bytes));
    }

    pub(super) fn read_log(&self, stream: StreamId, from: LogIndex, bytes_max: u32) -> LogAnswer {
        let Some(stream) = self.streams.get(&stream) else { return LogAnswer::Batches(Batches::None) };
        if from >= stream.next {
            return LogAnswer::Batches(Batches::None);
        }
        let first = stream.batches.first().map_or(stream.next, |(_, batch)| batch.base());
        if from < first {
            return LogAnswer::Compacted { first };
        }
        let begin = stream.batches.partition_point(|(_, batch)| batch.last().index < from);
        let (mut batches, mut bytes) = (Batches::None, 0);
        for (_, batch) in &stream.batches[begin..] {
            bytes += batch.bytes();
            if !batches.is_empty() && bytes > bytes_max as usize {
                break;
            }
            batches.push(batch.clone());
        }
        LogAnswer::Batches(batches)
    }

    pub(super) fn read_snapshot(
        &self,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
    ) -> SnapshotAnswer {
        match self.snapshots.get(&group) {
            Some((found, bytes)) if at.is_none_or(|at| at == *found) && offset <= bytes.len() as u64 => {
                let begin = offset as usize;
                let end = bytes.len().min(begin + bytes_max.max(1) as usize);
                let chunk = bytes.slice(begin..end);
                SnapshotAnswer::Chunk { at: *found, offset, chunk, last: end == bytes.len() }
            }
            _ => SnapshotAnswer::Gone,
        }
    }

    /// What a start finds; `chunk_bytes_max` is the size of the pieces of snapshots.
    pub(super) fn recovery(&self, incarnation: u32, chunk_bytes_max: usize) -> Recovery {
        let mut boots = Boots { incarnation, ..Boots::default() };
        let groups = self.registers.keys().chain(self.snapshots.keys()).copied();
        for group in groups.chain(self.streams.keys().map(|stream| stream.group)) {
            let boot = boots.groups.entry(group).or_default();
            boot.incarnation = incarnation;
            boot.register = self.registers.get(&group).cloned().unwrap_or_default();
            boot.snapshot = self.snapshots.get(&group).map(|(at, _)| *at);
        }
        let mut items = Vec::new();
        for (at, bytes) in self.snapshots.values() {
            let mut rest = bytes.clone();
            loop {
                let chunk = rest.split_to(rest.len().min(chunk_bytes_max));
                let last = rest.is_empty();
                items.push(RecoveryItem::SnapshotChunk { at: *at, chunk, last });
                if last {
                    break;
                }
            }
        }
        let mut appended: Vec<&(u64, Batch)> =
            self.streams.values().flat_map(|stream| stream.replaced.iter().chain(&stream.batches)).collect();
        appended.sort_unstable_by_key(|(order, _)| *order);
        items.extend(appended.into_iter().map(|(_, batch)| RecoveryItem::Batch(batch.clone())));
        Recovery { boots, items }
    }

    /// The registers of all groups.
    pub(super) fn registers(&self) -> impl Iterator<Item = (GroupId, &Bytes)> {
        self.registers.iter().map(|(group, bytes)| (*group, bytes))
    }

    /// The batches of all streams that are not released.
    pub(super) fn batches(&self) -> impl Iterator<Item = (StreamId, impl Iterator<Item = &Batch>)> {
        self.streams.iter().map(|(id, stream)| (*id, stream.batches.iter().map(|(_, batch)| batch)))
    }

    /// A stream's next index, and the batch that holds an index.
    pub(super) fn end(&self, stream: StreamId, index: LogIndex) -> (LogIndex, Option<&Batch>) {
        let Some(stream) = self.streams.get(&stream) else { return (LogIndex(1), None) };
        let held = stream.batches.iter().map(|(_, batch)| batch).find(|batch| batch.range().contains(&index));
        (stream.next, held)
    }

    /// Takes what a damaged disk left for what there is.
    pub(super) fn adopt(&mut self, recovery: &Recovery) {
        self.registers = recovery.boots.groups.iter().map(|(group, boot)| (*group, boot.register.clone())).collect();
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            self.streams.insert(stream, Stream { unsure: true, ..Stream::default() });
        }
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item {
                let stream = self.streams.entry(batch.stream()).or_insert(Stream { unsure: true, ..Stream::default() });
                self.appended += 1;
                stream.batches.push((self.appended, batch.clone()));
                stream.next = batch.last().index.next();
            }
        }
    }

    /// Pieces of unfinished snapshots are gone after a restart.
    pub(super) fn forget_incoming(&mut self) {
        self.incoming.clear();
    }
}
