//! Which write a read saw, told by its unique value.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use replikit_core::Time;

use super::history::{History, OperationId, What};

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The key was absent from the beginning.
    Start,
    /// This operation wrote it.
    Write(OperationId),
    /// It cannot be told: a key that was removed some time is absent, or the key is a counter.
    Untold,
    /// Nobody wrote it, or only operations that had no effect.
    Nobody,
}

/// The writes of a history by what they wrote.
#[derive(Debug)]
pub(super) struct Versions<'a> {
    by_value: HashMap<(&'a Bytes, &'a Bytes), OperationId>,
    first_removal: HashMap<&'a Bytes, Time>,
    counters: HashSet<&'a Bytes>,
}

impl<'a> Versions<'a> {
    pub(super) fn new(history: &'a History) -> Self {
        let mut versions = Self { by_value: HashMap::new(), first_removal: HashMap::new(), counters: HashSet::new() };
        for (at, operation) in history.operations().iter().enumerate() {
            if matches!(operation.what, What::Add(_)) {
                versions.counters.insert(&operation.key);
            }
            match operation.writes() {
                Some(Some(value)) => {
                    versions.by_value.insert((&operation.key, value), OperationId::new(at));
                }
                Some(None) => {
                    let first = versions.first_removal.entry(&operation.key).or_insert(Time::NEVER);
                    *first = (*first).min(operation.began);
                }
                None => {}
            }
        }
        versions
    }

    /// Where a value came from that was read before `by`.
    pub(super) fn source(&self, key: &Bytes, value: Option<&Bytes>, by: Time) -> Source {
        if self.counters.contains(key) {
            return Source::Untold;
        }
        match value {
            Some(value) => self.by_value.get(&(key, value)).map_or(Source::Nobody, |&id| Source::Write(id)),
            None if self.first_removal.get(key).is_some_and(|&first| first <= by) => Source::Untold,
            None => Source::Start,
        }
    }
}
