//! What the log knows of each stream: its live batches and where they stand.
//!
//! Invariant: the batches of a stream are ascending in index and in append order, and do not overlap. Recovery and running
//! call the same functions, so that what is recovered is what was there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{Batch, GroupId, LogIndex, StreamId, Term};

use crate::format::Small;

/// A live batch.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) base: LogIndex,
    pub(crate) term: Term,
    /// Number of its append over all streams; a copy further forward keeps it.
    pub(crate) order: u64,
    /// Number of its group since this process opened the log: the segment knows the offset.
    pub(crate) place: u64,
    /// Where it begins in its group.
    pub(crate) at: u32,
    pub(crate) bytes: u32,
    pub(crate) count: u32,
    /// The batch itself, while it is not durable or recent.
    pub(crate) cached: Option<Batch>,
}

impl Entry {
    pub(crate) const fn last(&self) -> LogIndex {
        LogIndex(self.base.0 + self.count as u64 - 1)
    }

    pub(crate) fn of(batch: &Batch, order: u64, place: u64, at: u32) -> Self {
        Self {
            base: batch.base(),
            term: batch.term(),
            order,
            place,
            at,
            bytes: batch.bytes() as u32,
            count: batch.count(),
            cached: None,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// Below this, entries were released.
    pub(crate) first: LogIndex,
    pub(crate) next: LogIndex,
    /// What the replica released; more than `first` while something holds it back.
    pub(crate) released: LogIndex,
    pub(crate) entries: VecDeque<Entry>,
}

impl Stream {
    /// Place in `entries` of the batch that holds an index, or of the first behind it.
    pub(crate) fn find(&self, index: LogIndex) -> usize {
        let (Some(front), Some(back)) = (self.entries.front(), self.entries.back()) else { return 0 };
        if back.last() < index {
            return self.entries.len();
        }
        if front.last() >= index {
            return 0;
        }
        // Batches of a stream tend to be alike: a guess by proportion, then steps of doubling length away from it.
        let below = |at: usize| self.entries[at].last() < index;
        let span = u128::from(back.last().0 - front.base.0 + 1);
        let guess = (u128::from(index.0 - front.base.0) * self.entries.len() as u128 / span) as usize;
        let (mut low, mut high) = (0, self.entries.len() - 1);
        let (mut at, mut step) = (guess.min(high), 1);
        if below(at) {
            while below(at) {
                low = at + 1;
                at = (at + step).min(high);
                step *= 2;
            }
            high = at;
        } else {
            while at > 0 && !below(at) {
                high = at;
                at = at.saturating_sub(step);
                step *= 2;
            }
            low = if at == 0 && !below(0) { 0 } else { at + 1 };
        }
        while low < high {
            let middle = low.midpoint(high);
            if below(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub(crate) fn at_base(&self, base: LogIndex) -> Option<&Entry> {
        self.entries.get(self.find(base)).filter(|entry| entry.base == base)
    }

    pub(crate) fn at_base_mut(&mut self, base: LogIndex) -> Option<&mut Entry> {
        let at = self.find(base);
        self.entries.get_mut(at).filter(|entry| entry.base == base)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) registers: BTreeMap<GroupId, Bytes>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Streams whose tail was cut, until their group writes a register.
    pub(crate) cuts: BTreeSet<StreamId>,
    /// Number of the snapshot that each group cannot do without.
    pub(crate) snapshots: BTreeMap<GroupId, u64>,
    /// Number of the last append over all streams.
    pub(crate) order: u64,
}

impl State {
    pub(crate) fn register(&mut self, group: GroupId, bytes: Bytes) {
        self.registers.insert(group, bytes);
        self.cuts.retain(|stream| stream.group != group);
    }

    pub(crate) fn need_snapshot(&mut self, group: GroupId, number: u64) {
        let needed = self.snapshots.entry(group).or_default();
        *needed = number.max(*needed);
    }

    pub(crate) fn append(&mut self, stream: StreamId, entry: Entry) {
        let stream = self.streams.entry(stream).or_default();
        stream.next = LogIndex(entry.last().0 + 1);
        stream.entries.push_back(entry);
    }

    /// Drops every batch at and above an index and returns them. A batch that only reaches above it goes as well: logs
    /// diverge at batch boundaries, so that is a bug of the caller, who is stopped before this.
    pub(crate) fn truncate(&mut self, stream: StreamId, from: LogIndex) -> Vec<Entry> {
        let stream = self.streams.entry(stream).or_default();
        let keep = stream.find(from);
        stream.next = stream.next.min(from);
        stream.entries.drain(keep..).collect()
    }

    /// Makes a stream void and returns what it held.
    pub(crate) fn reset(&mut self, stream: StreamId, next: LogIndex) -> Vec<Entry> {
        let stream = self.streams.entry(stream).or_default();
        (stream.first, stream.next, stream.released) = (next, next, next);
        stream.entries.drain(..).collect()
    }

    /// Drops batches wholly below an index.
    pub(crate) fn release(&mut self, stream: StreamId, before: LogIndex, mut dropped: impl FnMut(&Entry)) {
        let stream = self.streams.entry(stream).or_default();
        while stream.entries.front().is_some_and(|entry| entry.last() < before) {
            dropped(&stream.entries.pop_front().expect("there is a front"));
        }
        let left = stream.entries.front().map_or(before, |entry| entry.base.min(before));
        stream.first = stream.first.max(left);
        stream.released = stream.released.max(before);
        stream.next = stream.next.max(stream.first);
    }

    /// A batch that stood further back stands here now.
    fn forward(&mut self, stream: StreamId, entry: Entry) {
        let stream = self.streams.entry(stream).or_default();
        let at = stream.find(entry.base);
        match stream.entries.get_mut(at) {
            Some(found) if found.base == entry.base => *found = entry,
            _ => {
                stream.next = stream.next.max(LogIndex(entry.last().0 + 1));
                stream.entries.insert(at, entry);
            }
        }
    }

    /// Carries out a small record that was found on disk. What a truncation dropped goes to `lost`.
    pub(crate) fn replay(&mut self, small: &Small, lost: &mut Vec<(StreamId, Vec<Entry>)>) {
        match small {
            Small::Register { group, bytes } => self.register(*group, bytes.clone()),
            Small::Cut { stream } => {
                self.cuts.insert(*stream);
            }
            Small::Snapshot { group, number } => self.need_snapshot(*group, *number),
            Small::Truncate { stream, from } => {
                let dropped = self.truncate(*stream, *from);
                if !dropped.is_empty() {
                    lost.push((*stream, dropped));
                }
            }
            Small::Reset { stream, next } => {
                let dropped = beyond(self.reset(*stream, *next), *next);
                if !dropped.is_empty() {
                    lost.push((*stream, dropped));
                }
            }
            Small::Release { stream, before } => self.release(*stream, *before, |_| {}),
            Small::Stream { stream, first, next } => {
                let stream = self.streams.entry(*stream).or_default();
                stream.first = stream.first.max(*first);
                stream.released = stream.released.max(*first);
                stream.next = stream.next.max(*next);
            }
            Small::Link(_) | Small::Forward { .. } | Small::Oldest { .. } | Small::Close => {}
        }
    }

    /// Takes in a batch that was found on disk; `forwarded` is the number of its append when it is a copy.
    pub(crate) fn replay_batch(&mut self, batch: &Batch, forwarded: Option<u64>, place: u64, at: u32) {
        match forwarded {
            Some(order) => self.forward(batch.stream(), Entry::of(batch, order, place, at)),
            None => {
                self.order += 1;
                self.append(batch.stream(), Entry::of(batch, self.order, place, at));
            }
        }
    }
}

/// Of what a reset dropped, the batches that reach to or above the stream's new start: no snapshot holds those.
pub(crate) fn beyond(mut dropped: Vec<Entry>, next: LogIndex) -> Vec<Entry> {
    dropped.retain(|entry| entry.last() >= next);
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(base: u64, count: u32) -> Entry {
        Entry { base: LogIndex(base), term: Term(1), order: 0, place: 0, at: 0, bytes: 0, count, cached: None }
    }

    #[test]
    fn every_index_finds_the_batch_that_holds_it_or_the_one_behind() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            let mut stream = Stream::default();
            let mut base = rng.u64(1..5000);
            for _ in 0..rng.usize(0..60) {
                let count = if rng.bool() { 1 } else { rng.u32(1..300) };
                stream.entries.push_back(entry(base, count));
                // Indices may be sparse.
                base += u64::from(count) + if rng.u32(..4) == 0 { rng.u64(0..900) } else { 0 };
            }
            for _ in 0..200 {
                let index = LogIndex(rng.u64(..base + 10));
                let expected = stream.entries.partition_point(|entry| entry.last() < index);
                assert_eq!(stream.find(index), expected, "{index:?} in {:?}", stream.entries);
            }
        }
    }
}
