//! A replica's view of its own log: the newest batches in memory, and the term of every index.
//!
//! Invariants: cached batches are contiguous and end at `last`; the history of terms covers every index from `floor` to
//! `last`; a batch leaves the cache only once it is applied. Logs diverge at batch boundaries only, because a batch is
//! created once, by one leader, and never cut.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use replikit_core::{Batch, LogId, LogIndex, Position, StreamId, Term};

/// Runs of equal terms: (first index, term), ascending in both.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct TermHistory {
    runs: VecDeque<(LogIndex, Term)>,
}

impl TermHistory {
    /// Changes of leader that are remembered for session tokens; one is 16 bytes.
    const RUNS_MAX: usize = 1 << 14;

    fn append(&mut self, at: LogIndex, term: Term) {
        if self.runs.back().is_none_or(|&(_, last)| last != term) {
            self.runs.push_back((at, term));
            if self.runs.len() > Self::RUNS_MAX {
                self.runs.pop_front();
            }
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        while self.runs.back().is_some_and(|&(start, _)| start >= from) {
            self.runs.pop_back();
        }
    }

    fn find(&self, index: LogIndex) -> Option<(LogIndex, Term)> {
        // Asked for the newest run nearly always.
        match self.runs.back() {
            Some(&(start, term)) if start <= index => Some((start, term)),
            _ => {
                let after = self.runs.partition_point(|&(start, _)| start <= index);
                after.checked_sub(1).map(|at| self.runs[at])
            }
        }
    }

    /// The first index at which a term larger than this one begins.
    fn after(&self, term: Term) -> Option<LogIndex> {
        let at = self.runs.partition_point(|&(_, run)| run <= term);
        self.runs.get(at).map(|&(start, _)| start)
    }

    /// A hostile snapshot could claim anything.
    pub(crate) fn is_ascending(&self) -> bool {
        self.runs.iter().zip(self.runs.iter().skip(1)).all(|(a, b)| a.0 < b.0 && a.1 < b.1)
    }
}

/// A batch in memory with what is asked of it all the time.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    pub(crate) batch: Batch,
    pub(crate) first: LogIndex,
    pub(crate) last: LogIndex,
    pub(crate) term: Term,
    pub(crate) digest: u64,
}

#[derive(Debug)]
pub(crate) struct LogView {
    stream: StreamId,
    batches: VecDeque<Cached>,
    cached_bytes: usize,
    last: LogId,
    last_digest: u64,
    /// What stands before the first batch in memory, and its digest.
    edge: (LogId, u64),
    terms: TermHistory,
    /// Nothing is known of entries at and below it but what the term history says.
    floor: Position,
}

impl LogView {
    pub(crate) fn new(stream: StreamId) -> Self {
        Self {
            stream,
            batches: VecDeque::new(),
            cached_bytes: 0,
            last: LogId::ZERO,
            last_digest: 0,
            edge: (LogId::ZERO, 0),
            terms: TermHistory::default(),
            floor: Position { stream, ..Position::default() },
        }
    }

    pub(crate) const fn last(&self) -> LogId {
        self.last
    }

    pub(crate) const fn last_digest(&self) -> u64 {
        self.last_digest
    }

    pub(crate) const fn floor(&self) -> Position {
        self.floor
    }

    /// The history of terms up to an index, for a snapshot.
    pub(crate) fn terms_to(&self, index: LogIndex) -> TermHistory {
        let mut terms = self.terms.clone();
        terms.truncate(index.next());
        terms
    }

    /// The term of an entry; `None` past the end, and below what is remembered.
    #[inline]
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.last.index {
            return Some(self.last.term);
        }
        if index == LogIndex::ZERO {
            return Some(Term(0));
        }
        if index > self.last.index {
            return None;
        }
        self.terms.find(index).map(|(_, term)| term)
    }

    /// First index of the run of equal terms that holds this index.
    pub(crate) fn run_start(&self, index: LogIndex) -> LogIndex {
        self.terms.find(index).map_or(index, |(start, _)| start)
    }

    /// Whether a write is known to be gone: another term's entry stands in its place, or a later term began before it.
    pub(crate) fn is_lost(&self, id: LogId, committed: LogIndex) -> bool {
        let replaced = id.index <= committed && self.term_at(id.index).is_some_and(|term| term != id.term);
        let overtaken = self.terms.after(id.term).is_some_and(|start| start <= id.index && start <= committed);
        replaced || overtaken
    }

    fn slot(&self, index: LogIndex) -> Option<usize> {
        let first = self.batches.front()?.first;
        if index < first || index > self.last.index {
            return None;
        }
        // The newest batch is asked for nearly always.
        let newest = self.batches.len() - 1;
        if self.batches[newest].first <= index {
            return Some(newest);
        }
        Some(self.batches.partition_point(|cached| cached.first <= index) - 1)
    }

    /// The cached batch that holds this index.
    #[inline]
    pub(crate) fn holding(&self, index: LogIndex) -> Option<&Cached> {
        self.slot(index).map(|slot| &self.batches[slot])
    }

    /// Cached batches from the one that holds this index on.
    pub(crate) fn from(&self, index: LogIndex) -> Option<impl Iterator<Item = &Cached>> {
        self.slot(index).map(|slot| self.batches.range(slot..))
    }

    /// Digest of the batch that ends at this index, if it is still known.
    pub(crate) fn digest_ending(&self, index: LogIndex) -> Option<u64> {
        if index == self.last.index {
            return Some(self.last_digest);
        }
        if index == self.floor.id.index {
            return Some(self.floor.digest);
        }
        self.holding(index).filter(|cached| cached.last == index).map(|cached| cached.digest)
    }

    /// Appends a batch whose base is the next index.
    ///
    /// # Panics
    /// When it is not: whoever appends checks first.
    #[inline]
    pub(crate) fn append(&mut self, batch: Batch) -> &Cached {
        let (first, last, digest) = (batch.base(), batch.last(), batch.digest());
        assert!(first == self.last.index.next(), "batches are appended without gaps");
        self.cached_bytes += batch.bytes();
        self.terms.append(first, last.term);
        self.last = last;
        self.last_digest = digest;
        self.batches.push_back(Cached { batch, first, last: last.index, term: last.term, digest });
        self.batches.back().expect("just pushed")
    }

    /// Drops everything at and above this index, which is the base of a batch.
    ///
    /// # Panics
    /// When the batch before is neither in memory nor the last that left it: only unapplied batches are ever dropped, and those
    /// are in memory.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        while self.batches.back().is_some_and(|cached| cached.first >= from) {
            let dropped = self.batches.pop_back().expect("just seen");
            self.cached_bytes -= dropped.batch.bytes();
        }
        self.terms.truncate(from);
        if let Some(cached) = self.batches.back() {
            assert!(cached.last < from, "a batch is never cut");
            self.last = LogId { term: cached.term, index: cached.last };
            self.last_digest = cached.digest;
        } else {
            assert!(self.edge.0.index.next() == from, "only batches in memory are dropped");
            (self.last, self.last_digest) = self.edge;
        }
    }

    /// Begins anew behind a snapshot.
    pub(crate) fn reset(&mut self, at: Position, terms: TermHistory) {
        let edge = (at.id, at.digest);
        *self = Self { last: at.id, last_digest: at.digest, edge, floor: at, terms, ..Self::new(self.stream) };
        self.terms.append(at.id.index, at.id.term);
    }

    /// Drops applied batches from memory until at most `bytes_max` are left. The batch that holds `applied` stays: followers that
    /// are a little behind want it next.
    pub(crate) fn evict(&mut self, applied: LogIndex, bytes_max: usize) {
        while self.cached_bytes > bytes_max && self.batches.front().is_some_and(|front| front.last < applied) {
            self.drop_front();
        }
    }

    /// Drops all applied batches from memory: nobody has asked for one for long.
    pub(crate) fn shrink(&mut self, applied: LogIndex) {
        while self.batches.front().is_some_and(|front| front.last <= applied) {
            self.drop_front();
        }
        self.batches.shrink_to_fit();
        self.terms.runs.shrink_to_fit();
    }

    fn drop_front(&mut self) {
        let dropped = self.batches.pop_front().expect("there is a first one");
        self.cached_bytes -= dropped.batch.bytes();
        self.edge = (LogId { term: dropped.term, index: dropped.last }, dropped.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikit_core::{BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp};

    fn view(batches: &[(u64, u64)]) -> LogView {
        let mut view = LogView::new(StreamId::consensus(GroupId(1)));
        for &(term, count) in batches {
            view.append(batch(&view, term, count));
        }
        view
    }

    fn batch(view: &LogView, term: u64, count: u64) -> Batch {
        let meta = BatchMeta {
            cluster: ClusterId::from_name("test"),
            stream: StreamId::consensus(GroupId(1)),
            base: view.last().index.next(),
            term: Term(term),
            prev_digest: view.last_digest(),
            time: HybridTimestamp(0),
            kind: BatchKind::Commands,
        };
        Batch::build(&meta, (0..count).map(|_| (&b"x"[..], None)))
    }

    #[test]
    fn every_index_has_its_term_and_its_batch() {
        let view = view(&[(1, 3), (1, 2), (4, 1)]);
        let terms: Vec<_> = (0..=7).map(|index| view.term_at(LogIndex(index)).map(|term| term.0)).collect();
        assert_eq!(terms, [Some(0), Some(1), Some(1), Some(1), Some(1), Some(1), Some(4), None]);
        let first: Vec<_> = (1..=6).map(|index| view.holding(LogIndex(index)).unwrap().first.0).collect();
        assert_eq!(first, [1, 1, 1, 4, 4, 6]);
    }

    #[test]
    fn truncation_goes_back_to_the_batch_before() {
        let mut view = view(&[(1, 3), (2, 2), (3, 1)]);
        view.truncate(LogIndex(4));
        assert_eq!(view.last(), LogId { term: Term(1), index: LogIndex(3) });
        view.append(batch(&view, 5, 1));
        assert_eq!(view.term_at(LogIndex(4)), Some(Term(5)));
    }

    #[test]
    fn eviction_keeps_what_is_not_applied() {
        let mut view = view(&[(1, 1), (1, 1), (1, 1)]);
        view.evict(LogIndex(2), 0);
        assert!(view.holding(LogIndex(1)).is_none());
        assert!(view.holding(LogIndex(2)).is_some());
        assert_eq!(view.term_at(LogIndex(1)), Some(Term(1)), "terms are remembered");
    }

    #[test]
    fn a_conflict_behind_batches_that_have_all_left_memory_is_cut() {
        let mut view = view(&[(1, 2), (1, 2)]);
        view.shrink(LogIndex(4));
        assert!(view.holding(LogIndex(4)).is_none());
        let digest = view.last_digest();
        view.append(batch(&view, 2, 1));
        view.truncate(LogIndex(5));
        assert_eq!((view.last(), view.last_digest()), (LogId { term: Term(1), index: LogIndex(4) }, digest));
        view.append(batch(&view, 3, 1));
        assert_eq!(view.term_at(LogIndex(5)), Some(Term(3)));
    }

    #[test]
    fn a_write_is_lost_once_a_later_term_stands_in_its_place_or_before_it() {
        let view = view(&[(1, 2), (3, 1)]);
        let id = |term, index| LogId { term: Term(term), index: LogIndex(index) };
        assert!(!view.is_lost(id(1, 2), LogIndex(3)));
        assert!(view.is_lost(id(1, 3), LogIndex(3)), "replaced");
        assert!(view.is_lost(id(2, 9), LogIndex(3)), "overtaken: term 3 began at index 3");
        assert!(!view.is_lost(id(3, 9), LogIndex(3)), "still on its way");
        assert!(!view.is_lost(id(1, 3), LogIndex(2)), "not yet decided");
    }

    #[test]
    fn a_reset_view_goes_on_behind_the_snapshot() {
        let mut view = view(&[(1, 2)]);
        let at = Position {
            stream: StreamId::consensus(GroupId(1)),
            id: LogId { term: Term(4), index: LogIndex(9) },
            digest: 5,
        };
        let mut terms = TermHistory::default();
        terms.append(LogIndex(1), Term(2));
        view.reset(at, terms);
        assert_eq!(view.last(), at.id);
        assert_eq!(view.term_at(LogIndex(5)), Some(Term(2)));
        assert_eq!(view.term_at(LogIndex(9)), Some(Term(4)));
        view.append(batch(&view, 4, 1));
        assert_eq!(view.digest_ending(LogIndex(9)), Some(5));
    }
}
