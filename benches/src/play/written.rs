//! What was acknowledged besides records, by name: elements of lists, sets and logs, and additions to counters.
//!
//! Invariant: an element exists once in a run, so that it is found, or known to be missing, wherever it went.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// An element as a value.
#[must_use]
pub fn element_bytes(element: u32) -> Bytes {
    Bytes::copy_from_slice(&element.to_le_bytes())
}

/// The elements in some values: each is a row of them, or, of a log, begins with one.
#[must_use]
pub fn elements(values: &[Bytes]) -> BTreeSet<u32> {
    let numbers = values.iter().flat_map(|value| value.chunks_exact(4));
    numbers.map(|number| u32::from_le_bytes(number.try_into().expect("chunks of four"))).collect()
}

/// What tells a record's value from all others: its first bytes.
#[must_use]
pub fn identity(value: &Bytes) -> Bytes {
    value.slice(..value.len().min(crate::workload::VALUE_BYTES_MIN))
}

/// Additions to one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// Acknowledged.
    pub acked: u64,
    /// Those that may count or not.
    pub in_doubt: u64,
}

/// What must be there after a play.
#[derive(Debug, Default)]
pub struct Updated {
    next_element: u32,
    generations: BTreeMap<u32, u32>,
    /// Acknowledged elements of lists and sets, by key.
    pub elements: BTreeMap<Bytes, Vec<u32>>,
    /// Acknowledged entries of logs, by key.
    pub logs: BTreeMap<Bytes, u32>,
    /// Additions to counters, by key.
    pub counters: BTreeMap<Bytes, Additions>,
}

impl Updated {
    /// An element that nobody had before.
    pub(crate) const fn next_element(&mut self) -> u32 {
        self.next_element += 1;
        self.next_element
    }

    /// Which of the lists of this number is written to: those before are full.
    pub(crate) fn generation(&self, number: u32) -> u32 {
        self.generations.get(&number).copied().unwrap_or(0)
    }

    pub(crate) fn full(&mut self, number: u32, generation: u32) {
        let known = self.generations.entry(number).or_default();
        *known = (*known).max(generation + 1);
    }

    pub(crate) fn element(&mut self, key: Bytes, element: u32) {
        self.elements.entry(key).or_default().push(element);
    }

    pub(crate) fn appended(&mut self, key: Bytes, element: u32) {
        self.logs.insert(key, element);
    }

    /// An addition begins: until its end is known, it may count or not.
    pub(crate) fn adding(&mut self, key: Bytes) {
        self.counters.entry(key).or_default().in_doubt += 1;
    }

    /// One that had begun was acknowledged.
    pub(crate) fn added(&mut self, key: &Bytes) {
        let counter = self.counters.entry(key.clone()).or_default();
        counter.in_doubt -= 1;
        counter.acked += 1;
    }

    /// One that had begun had no effect.
    pub(crate) fn not_added(&mut self, key: &Bytes) {
        self.counters.entry(key.clone()).or_default().in_doubt -= 1;
    }

    /// Acknowledged updates of all kinds.
    #[must_use]
    pub fn acked(&self) -> u64 {
        let elements: u64 = self.elements.values().map(|elements| elements.len() as u64).sum();
        let added: u64 = self.counters.values().map(|counter| counter.acked).sum();
        elements + added + self.logs.len() as u64
    }
}
