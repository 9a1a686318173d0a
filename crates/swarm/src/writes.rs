//! All writes of a run, and which of them took the place of which: what the models of the families without a leader stand on.
//!
//! Invariant: a dot names one write for ever, unless that was lost before anybody could know of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikit_core::{Batch, Dot, VersionVector};

/// One write as it stands in the log of its origin.
pub(crate) trait Logged: Sized {
    /// The writes of a batch; the error is the rule that it breaks.
    fn read(batch: &Batch) -> Result<Vec<Self>, &'static str>;
    fn dot(&self) -> Dot;
    fn key(&self) -> &Bytes;
    /// Whether it took the place of another write of the same key: its writer had seen that.
    fn replaces(&self, other: &Self) -> bool;
}

/// All writes of a run.
#[derive(Debug)]
pub(crate) struct Writes<W> {
    pub(crate) writes: BTreeMap<Dot, W>,
    pub(crate) by_key: BTreeMap<Bytes, Vec<Dot>>,
    /// The writes that had seen a write of the same key, and took its place.
    pub(crate) replaced_by: BTreeMap<Dot, Vec<Dot>>,
    /// Digest of each batch by its first write: a dot never says two things.
    batches: BTreeMap<Dot, u64>,
}

impl<W> Default for Writes<W> {
    fn default() -> Self {
        Self {
            writes: BTreeMap::new(),
            by_key: BTreeMap::new(),
            replaced_by: BTreeMap::new(),
            batches: BTreeMap::new(),
        }
    }
}

impl<W: Logged> Writes<W> {
    /// Takes note of a batch that somebody stores.
    pub(crate) fn learn(&mut self, batch: &Batch) -> Result<(), String> {
        let first = Dot { origin: batch.stream().origin, sequence: batch.base().0 };
        match self.batches.get(&first) {
            Some(digest) if *digest == batch.digest() => return Ok(()),
            Some(_) => return Err(format!("dots_are_unique: two batches begin with {first:?}")),
            None => {}
        }
        for write in W::read(batch).map_err(|what| format!("dots_are_unique: {batch:?}: {what}"))? {
            let dot = write.dot();
            let others = self.by_key.entry(write.key().clone()).or_default();
            // Writes are learned in any order: what one had seen may be stored later.
            for other in others.iter() {
                if write.replaces(&self.writes[other]) {
                    self.replaced_by.entry(*other).or_default().push(dot);
                }
                if self.writes[other].replaces(&write) {
                    self.replaced_by.entry(dot).or_default().push(*other);
                }
            }
            others.push(dot);
            if self.writes.insert(dot, write).is_some() {
                return Err(format!("dots_are_unique: {dot:?} is in two batches"));
            }
        }
        self.batches.insert(first, batch.digest());
        Ok(())
    }

    /// The writes that are known under the dots of a batch, and behind them, if they are others than those in it.
    pub(crate) fn others_than(&self, batch: &Batch) -> BTreeSet<Dot> {
        let first = Dot { origin: batch.stream().origin, sequence: batch.base().0 };
        if self.batches.get(&first).is_none_or(|digest| *digest == batch.digest()) {
            return BTreeSet::new();
        }
        let last = Dot { sequence: u64::MAX, ..first };
        self.writes.range(first..=last).map(|(dot, _)| *dot).collect()
    }

    /// These writes were lost before anybody could know of them: their dots may name others.
    pub(crate) fn forget(&mut self, lost: &BTreeSet<Dot>) {
        self.writes.retain(|dot, _| !lost.contains(dot));
        self.batches.retain(|first, _| !lost.contains(first));
        self.replaced_by.retain(|dot, _| !lost.contains(dot));
        for dots in self.by_key.values_mut().chain(self.replaced_by.values_mut()) {
            dots.retain(|dot| !lost.contains(dot));
        }
    }

    /// How many batches there are.
    pub(crate) fn batches(&self) -> u64 {
        self.batches.len() as u64
    }

    pub(crate) fn write(&self, dot: Dot) -> Option<&W> {
        self.writes.get(&dot)
    }

    /// The keys that were written.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.by_key.keys()
    }

    /// Whether some write that is among `seen` had seen this one and took its place.
    pub(crate) fn is_superseded(&self, dot: Dot, seen: &VersionVector) -> bool {
        self.replaced_by.get(&dot).is_some_and(|others| others.iter().any(|other| seen.contains(*other)))
    }
}
