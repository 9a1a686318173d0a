//! The audit log: every value that was acknowledged and lost to another one.
//!
//! Invariant: a version that the policy does not show, and that is not contained in what it shows, is in here, or is counted as
//! dropped. Always on, limited in bytes; the oldest entries go first. The entries are part of the replica's state: they
//! survive a restart through log and snapshot like the data. Source: what other systems leave out is listed in
//! `docs/multi-leader.md`.

use core::ops::{Bound, ControlFlow};
use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Conflict, ConflictPage, Map};
use crate::policy::Overwritten;

/// The overwritten values of one replica, numbered from 1 in the order in which this replica learned of them.
#[derive(Debug)]
pub struct Audit {
    entries: Map<Conflict>,
    /// The number of the oldest entry.
    first: u64,
    next: u64,
    bytes: usize,
    bytes_max: usize,
    dropped: u64,
}

fn bytes_of(conflict: &Conflict) -> usize {
    128 + conflict.key.len() + conflict.overwritten.version.value.as_ref().map_or(0, Bytes::len)
}

impl Audit {
    /// Nothing yet; at most about so many bytes are kept.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: Map::new(), first: 1, next: 1, bytes: 0, bytes_max, dropped: 0 }
    }

    /// A value was overwritten.
    pub fn add(&mut self, key: &[u8], overwritten: Overwritten) {
        let conflict = Conflict { number: self.next, key: Bytes::copy_from_slice(key), overwritten };
        self.next += 1;
        self.bytes += bytes_of(&conflict);
        self.entries.insert(&conflict.number.to_be_bytes(), conflict);
        while self.bytes > self.bytes_max && self.first < self.next {
            let oldest = self.first.to_be_bytes();
            self.first += 1;
            if let Some(conflict) = self.entries.get(&oldest) {
                self.bytes -= bytes_of(&conflict);
                self.entries.remove(&oldest);
                self.dropped += 1;
            }
        }
    }

    /// Values were overwritten, by key: adds those that it does not have yet.
    pub fn add_new(&mut self, overwritten: impl IntoIterator<Item = (Bytes, Overwritten)>) {
        let mut overwritten = overwritten.into_iter().peekable();
        if overwritten.peek().is_none() {
            return;
        }
        let mut known = BTreeSet::new();
        self.entries.for_each_from(Bound::Unbounded, |_, conflict| {
            known.insert(conflict.overwritten.version.stamp.dot);
            ControlFlow::Continue(())
        });
        for (key, overwritten) in overwritten {
            if known.insert(overwritten.version.stamp.dot) {
                self.add(&key, overwritten);
            }
        }
    }

    /// Another replica, whose state was joined, has dropped so many.
    pub fn drop_elsewhere(&mut self, dropped: u64) {
        self.dropped = self.dropped.max(dropped);
    }

    /// How many entries were dropped for the limit.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many values were overwritten so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.next - 1
    }

    /// The entries by number, as big-endian keys.
    #[must_use]
    pub const fn entries(&self) -> &Map<Conflict> {
        &self.entries
    }

    /// The entries behind a number, at most `limit` of them and about `bytes_max` bytes.
    #[must_use]
    pub fn page(&self, after: u64, limit: u32, bytes_max: usize) -> ConflictPage {
        let mut page = ConflictPage { conflicts: Vec::new(), next: None, dropped: self.dropped };
        let mut bytes = 0;
        for number in after.saturating_add(1).max(self.first)..self.next {
            let Some(conflict) = self.entries.get(&number.to_be_bytes()) else { continue };
            bytes += bytes_of(&conflict);
            let full = page.conflicts.len() >= limit.max(1) as usize || bytes > bytes_max;
            if full && !page.conflicts.is_empty() {
                page.next = page.conflicts.last().map(|last: &Conflict| last.number);
                break;
            }
            page.conflicts.push(conflict);
        }
        page
    }
}
