//! What every read must show: computed from all writes that ever were, without any of the replicas' shortcuts.
//!
//! Invariant: nothing here is incremental, compacted or collected. A key shows the values that no known write had seen, as the
//! keyspace's policy decides. Slow, and easy to believe.

use bytes::Bytes;
use replikit_core::crdt::CrdtState;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{Batch, Dot, Stamp, VersionVector};
use replikit_leaderless::{Keyspaces, LoggedWrite, Merges};

use crate::writes::{Logged, Writes};

/// All writes of a run.
pub(crate) type Model = Writes<LoggedWrite>;

impl Logged for LoggedWrite {
    fn read(batch: &Batch) -> Result<Vec<Self>, &'static str> {
        Self::read(batch)
    }

    fn dot(&self) -> Dot {
        self.dot
    }

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn replaces(&self, other: &Self) -> bool {
        self.had_seen(other.dot)
    }
}

impl Model {
    /// All writes of a key, for a human.
    pub(crate) fn story(&self, key: &Bytes) -> String {
        let tell = |dot: &Dot| {
            let LoggedWrite { time, past, value, keeps, beyond, .. } = &self.writes[dot];
            let past: Vec<(u32, u64)> = past.iter().map(|(origin, held)| (origin.0, held.base())).collect();
            let dot = (dot.origin.0, dot.sequence);
            format!("{dot:?} at {} after {past:?}: {value:?} beside {keeps:?} {beyond:?}", time.0)
        };
        self.by_key[key].iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    /// The writes of a key among `seen` that nothing among `seen` had seen, ascending.
    fn standing(&self, key: &Bytes, seen: &VersionVector) -> Vec<Dot> {
        let dots = self.by_key.get(key).into_iter().flatten().copied();
        let mut dots: Vec<Dot> = dots.filter(|dot| seen.contains(*dot) && !self.is_superseded(*dot, seen)).collect();
        dots.sort_unstable();
        dots
    }

    /// The values that a key shows to somebody who has seen `seen`, and their stamps, ascending by dot.
    pub(crate) fn view(&self, keyspaces: &Keyspaces, key: &Bytes, seen: &VersionVector) -> (Vec<Bytes>, Vec<Stamp>) {
        let conflicts = &keyspaces.of(key).conflicts;
        if let ConflictPolicy::Crdt(kind) = conflicts {
            let mut state = CrdtState::new(*kind);
            for dot in self.by_key.get(key).into_iter().flatten().filter(|dot| seen.contains(**dot)) {
                let write = &self.writes[dot];
                let value = write.value.as_ref().expect("a value that merges has bytes");
                if write.merges == Some(Merges::Delta) {
                    state.join_delta(&VersionVector::new(), value).expect("deltas are well formed");
                    continue;
                }
                let theirs = CrdtState::decode(*kind, value).expect("values are well formed");
                let mut base = write.past.clone();
                base.insert_all(dot.origin, &replikit_core::SequenceSet::up_to(dot.sequence - 1));
                state.join(&VersionVector::new(), &theirs, &base).expect("values have seen what they hold");
            }
            return (if state.is_bottom() { Vec::new() } else { state.values() }, Vec::new());
        }
        let standing = self.standing(key, seen).into_iter().map(|dot| {
            let write = &self.writes[&dot];
            (Stamp { time: write.time, dot }, write.value.clone())
        });
        let mut standing: Vec<(Stamp, Option<Bytes>)> = standing.collect();
        if matches!(conflicts, ConflictPolicy::Lww) {
            let newest = standing.iter().map(|(stamp, _)| *stamp).max();
            standing.retain(|(stamp, _)| Some(*stamp) == newest);
        }
        standing.retain(|(_, value)| value.is_some());
        let stamps: Vec<Stamp> = standing.iter().map(|(stamp, _)| *stamp).collect();
        let values = standing.into_iter().filter_map(|(_, value)| value);
        match conflicts {
            ConflictPolicy::Merge(merge) => {
                (values.reduce(|left, right| merge(&left, &right)).into_iter().collect(), stamps)
            }
            _ => (values.collect(), stamps),
        }
    }

    /// The values of a key that no write had seen and that are not shown: those that the audit must have.
    pub(crate) fn lost(&self, keyspaces: &Keyspaces, key: &Bytes, seen: &VersionVector) -> Vec<Dot> {
        if matches!(keyspaces.of(key).conflicts, ConflictPolicy::Crdt(_)) {
            return Vec::new();
        }
        let (values, shown) = self.view(keyspaces, key, seen);
        let is_shown = |dot: Dot, value: &Bytes| shown.iter().any(|stamp| stamp.dot == dot) && values.contains(value);
        let mut standing = self.standing(key, seen);
        standing.retain(|dot| self.writes[dot].value.as_ref().is_some_and(|value| !is_shown(*dot, value)));
        standing
    }

    /// Whether the second of two writes of a key that come one after the other wins over the first.
    pub(crate) fn comes_after(&self, second: Dot, first: Dot) -> bool {
        match (self.write(second), self.write(first)) {
            (Some(second), Some(first)) => {
                second.had_seen(first.dot)
                    || (second.time, second.dot) > (first.time, first.dot)
                    || self.replaced_by.get(&first.dot).into_iter().flatten().any(|other| {
                        *other == second.dot || self.writes[other].had_seen(first.dot) && second.had_seen(*other)
                    })
            }
            _ => false,
        }
    }
}
