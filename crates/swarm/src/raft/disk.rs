//! What each node's disk holds of one group's log, as its storage actions and their completions tell: the ground on which
//! promises are checked.
//!
//! Invariant: `durable` is what would survive a crash now; `seen` is what the running process believes to have written.

use std::collections::VecDeque;

use replikit_core::{Batch, GroupId, LogIndex, NodeId, Persist, StreamId, Term, WriteId};
use replikit_sim::{Recovery, RecoveryItem};

/// A batch: its indices and its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: LogIndex,
    last: LogIndex,
    term: Term,
    digest: u64,
}

/// One image of a log.
#[derive(Clone, Debug, Default)]
struct Image {
    floor: LogIndex,
    runs: Vec<Run>,
}

impl Image {
    fn append(&mut self, run: Run) {
        while self.runs.last().is_some_and(|last| last.first >= run.first) {
            self.runs.pop();
        }
        self.runs.push(run);
    }

    fn reset(&mut self, next: LogIndex) {
        self.runs.clear();
        self.floor = next.prev();
    }

    fn last(&self) -> LogIndex {
        self.runs.last().map_or(self.floor, |run| run.last)
    }

    fn holding(&self, index: LogIndex) -> Option<&Run> {
        // Asked for the newest nearly always.
        let at = match self.runs.last() {
            Some(newest) if newest.first <= index => self.runs.len(),
            _ => self.runs.partition_point(|run| run.first <= index),
        };
        self.runs[..at].last().filter(|run| run.last >= index)
    }

    /// Whether the entry of this term stands at this index, or a snapshot covers it.
    fn holds(&self, index: LogIndex, term: Term) -> bool {
        index <= self.floor || self.holding(index).is_some_and(|run| run.term == term)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(Run),
    Reset(LogIndex),
    Ballot(Term, Option<NodeId>),
    Snapshot(LogIndex),
}

/// One node's disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    seen: Image,
    durable: Image,
    // What it held before a tail was cut that it had confirmed: the node says that it remembers no more.
    cut: Vec<Image>,
    ballot: (Term, Option<NodeId>),
    unsynced: VecDeque<(WriteId, Op)>,
    /// The newest snapshot that was begun or taken in.
    pub(crate) snapshot: LogIndex,
    /// The log below was released.
    pub(crate) purged: LogIndex,
}

fn run(batch: &Batch) -> Run {
    Run { first: batch.base(), last: batch.last().index, term: batch.term(), digest: batch.digest() }
}

/// The ballot in a register of the group, as its codec has it: version, term, vote.
fn ballot(bytes: &[u8]) -> (Term, Option<NodeId>) {
    let (_, ballot): (u8, (Term, Option<NodeId>)) = postcard::from_bytes(bytes).unwrap_or_default();
    ballot
}

impl Disk {
    /// A process begins on this.
    pub(crate) fn start(&mut self, group: GroupId, recovery: &Recovery) {
        let boot = recovery.boots.of(group);
        let floor = boot.snapshot.map_or(LogIndex::ZERO, |at| at.id.index);
        let mut image = Image { floor, runs: Vec::new() };
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item
                && batch.stream() == StreamId::consensus(group)
            {
                image.append(run(batch));
            }
        }
        let mut cut = core::mem::take(&mut self.cut);
        if boot.tail_cut.contains(&StreamId::consensus(group)) && image.last() < self.durable.last() {
            cut.push(core::mem::take(&mut self.durable));
        }
        *self = Self {
            cut,
            seen: image.clone(),
            durable: image,
            ballot: ballot(&boot.register),
            unsynced: VecDeque::new(),
            snapshot: floor,
            purged: LogIndex::ZERO,
        };
    }

    /// From where on a storage action of this group voids what stands in the log.
    pub(crate) fn drops_from(group: GroupId, op: &Persist) -> Option<LogIndex> {
        match op {
            Persist::Append { batch, .. } if batch.stream() == StreamId::consensus(group) => Some(batch.base()),
            Persist::Reset { stream, next } if *stream == StreamId::consensus(group) => Some(*next),
            _ => None,
        }
    }

    /// Whether the process has the entry of this term at this index in its log.
    pub(crate) fn sees(&self, index: LogIndex, term: Term) -> bool {
        self.seen.holding(index).is_some_and(|run| run.term == term)
    }

    /// A storage action of this group is wanted. Returns the appended batch's last index, term and digest.
    pub(crate) fn persist(&mut self, group: GroupId, id: WriteId, op: &Persist) -> Option<(LogIndex, Term, u64)> {
        let op = match op {
            Persist::Append { batch, .. } if batch.stream() == StreamId::consensus(group) => {
                let run = run(batch);
                self.seen.append(run);
                Op::Append(run)
            }
            Persist::Reset { stream, next } if stream.group == group => {
                self.seen.reset(*next);
                self.snapshot = self.snapshot.max(next.prev());
                Op::Reset(*next)
            }
            Persist::Register { group: of, bytes } if *of == group => {
                let (term, vote) = ballot(bytes);
                Op::Ballot(term, vote)
            }
            Persist::Snapshot { at, .. } if at.stream.group == group => Op::Snapshot(at.id.index),
            Persist::Release { stream, before } if stream.group == group => {
                self.purged = self.purged.max(before.prev());
                return None;
            }
            _ => return None,
        };
        let appended = if let Op::Append(run) = &op { Some((run.last, run.term, run.digest)) } else { None };
        if let Op::Snapshot(at) = &op {
            self.snapshot = self.snapshot.max(*at);
        }
        self.unsynced.push_back((id, op));
        appended
    }

    /// All up to this action is durable.
    pub(crate) fn durable(&mut self, up_to: WriteId) {
        while self.unsynced.front().is_some_and(|(id, _)| *id <= up_to) {
            match self.unsynced.pop_front().expect("there is a front").1 {
                Op::Append(run) => self.durable.append(run),
                Op::Reset(next) => self.durable.reset(next),
                Op::Ballot(term, vote) => self.ballot = (term, vote),
                Op::Snapshot(_) => {}
            }
        }
    }

    /// The process ended: what was not durable may be gone.
    pub(crate) fn crash(&mut self) {
        self.unsynced.clear();
        self.seen = self.durable.clone();
    }

    /// Whether a crash now would leave the entry of this term at this index, or it was cut after it had been confirmed.
    pub(crate) fn holds(&self, index: LogIndex, term: Term) -> bool {
        self.durable.holds(index, term) || self.cut.iter().any(|cut| cut.holds(index, term))
    }

    /// Whether the disk has, at this index, what the process wrote there last.
    pub(crate) fn agrees(&self, index: LogIndex) -> bool {
        // A snapshot on its way in has voided the log for the process, not yet on the disk.
        let same = index <= self.seen.floor || self.seen.holding(index) == self.durable.holding(index);
        index <= self.durable.floor || (same && index <= self.durable.last())
    }

    /// The term and vote on disk.
    pub(crate) const fn ballot(&self) -> (Term, Option<NodeId>) {
        self.ballot
    }
}
