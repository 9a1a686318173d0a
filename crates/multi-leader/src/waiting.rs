//! The causal buffer: batches that are held, and wait for what their writers had seen.
//!
//! Invariants: the batches of an origin wait in order and without a gap, so only the first of each can be the next to apply;
//! one that is ready is applied at once. Source: Birman, Schiper, Stephenson 1991 (causal delivery).

use std::collections::{BTreeMap, VecDeque};

use replikit_core::{OriginId, VersionVector};

use crate::record::Writes;
use crate::replica::MultiLeader;

/// Held, but not applied: something that they had seen has not been applied.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    origins: BTreeMap<OriginId, VecDeque<Writes>>,
    bytes: usize,
}

impl Waiting {
    /// Bytes of the batches.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether batches of an origin wait.
    pub(crate) fn has(&self, origin: OriginId) -> bool {
        self.origins.contains_key(&origin)
    }

    /// The next batch of its origin waits.
    pub(crate) fn push(&mut self, writes: Writes) {
        self.bytes += writes.batch.bytes();
        self.origins.entry(writes.origin()).or_default().push_back(writes);
    }

    /// Takes the first batch of an origin if `ready` says so.
    fn pop_if(&mut self, origin: OriginId, ready: impl Fn(&Writes) -> bool) -> Option<Writes> {
        let waiting = self.origins.get_mut(&origin)?;
        let writes = waiting.pop_front_if(|first| ready(first))?;
        if waiting.is_empty() {
            self.origins.remove(&origin);
        }
        self.bytes -= writes.batch.bytes();
        Some(writes)
    }

    /// The origins of which batches wait, ascending.
    fn origins(&self) -> Vec<OriginId> {
        self.origins.keys().copied().collect()
    }

    /// The first batch of each origin.
    fn fronts(&self) -> impl Iterator<Item = &Writes> {
        self.origins.values().filter_map(|waiting| waiting.front())
    }

    /// A snapshot has brought this: batches that are in it wait no longer.
    pub(crate) fn is_applied(&mut self, applied: &VersionVector) {
        self.origins.retain(|origin, waiting| {
            let base = applied.base(*origin);
            waiting.retain(|writes| writes.last() > base);
            !waiting.is_empty()
        });
        self.bytes = self.origins.values().flatten().map(|writes| writes.batch.bytes()).sum();
    }
}

impl MultiLeader {
    /// Applies writes that are held, now or as soon as they are ready.
    pub(crate) fn take_in(&mut self, writes: Writes) {
        if self.waiting.has(writes.origin()) || !self.state.is_ready(&writes) {
            return self.waiting.push(writes);
        }
        self.state.apply(&writes);
        self.drain_waiting();
    }

    /// Applies whatever has become ready.
    pub(crate) fn drain_waiting(&mut self) {
        loop {
            let mut progress = false;
            for origin in self.waiting.origins() {
                while let Some(writes) = self.waiting.pop_if(origin, |first| self.state.is_ready(first)) {
                    self.state.apply(&writes);
                    progress = true;
                }
            }
            if !progress && !self.apply_without_lost() {
                return;
            }
        }
    }

    /// Applies the first batch that waits for writes that nobody has any more, if there is one.
    fn apply_without_lost(&mut self) -> bool {
        let found = self.waiting.fronts().find(|first| self.is_ready_without_lost(first));
        let Some(origin) = found.map(Writes::origin) else { return false };
        self.close_batch();
        let writes = self.waiting.pop_if(origin, |_| true).expect("found just now");
        self.state.apply_next(&writes);
        // After a restart the log alone would have it wait again, and what was written after it as well.
        self.unfounded = true;
        true
    }

    pub(crate) fn after_applying(&mut self) {
        if core::mem::take(&mut self.unfounded) {
            self.save();
        }
        self.release_reads();
        self.try_standing();
        self.try_settling();
    }
}
