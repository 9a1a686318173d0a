//! What every replica must show: computed from all writes that ever were, without any of the replica's shortcuts.
//!
//! Invariant: nothing here is incremental, compacted or collected. A key shows the values that no write known at the replica
//! had seen and that no delete beside them takes away, as the keyspace's policy decides. Slow, and easy to believe.

use std::collections::BTreeSet;

use bytes::Bytes;
use replikit_core::crdt::CrdtState;
use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::{Batch, Dot, Origin, Stamp, VersionVector};
use replikit_multi_leader::{Keyspace, Keyspaces, LoggedWrite};

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
        let older = |decided: Stamp| Stamp { time: other.time, dot: other.dot } < decided;
        match &self.replaces {
            None => is_before(other.dot, self),
            Some(dots) => dots.contains(&other.dot) || self.decided.is_some_and(older) && is_before(other.dot, self),
        }
    }
}

impl Model {
    /// The writes that took its place; of a delete, the later ones too that stand for it.
    pub(crate) fn replaced_by(&self, dot: Dot) -> Vec<Dot> {
        let mut others = self.replaced_by.get(&dot).cloned().unwrap_or_default();
        if let Some(delete) = self.writes.get(&dot).filter(|write| write.value.is_none()) {
            let all = self.by_key[&delete.key].iter().filter(|other| self.writes[other].value.is_none());
            others.extend(all.filter(|other| is_before(dot, &self.writes[other])));
        }
        others
    }

    /// The write that was made in place of this one, after its node was evicted and had come back, among those that are seen.
    pub(crate) fn is_made_again(&self, dot: Dot, seen: &VersionVector) -> bool {
        self.writes.values().any(|write| write.again == Some(dot) && seen.contains(write.dot))
    }

    /// Whether a delete holds although no member has it any more: nothing of the key that it had seen is there. Once every
    /// member has a delete it is collected, and who is evicted after that has nothing left to make again.
    pub(crate) fn is_gone(&self, dot: Dot, seen: &VersionVector) -> bool {
        let Some(delete) = self.writes.get(&dot).filter(|write| write.value.is_none()) else { return false };
        let mut before = self.by_key[&delete.key].iter().filter(|other| is_before(**other, delete));
        before.all(|other| !seen.contains(*other) && !self.is_made_again(*other, seen))
    }

    /// A write that was made again and is there all the same, or was made again twice.
    pub(crate) fn counts_twice(&self, seen: &VersionVector) -> Option<Dot> {
        let mut made = BTreeSet::new();
        let again = self.writes.values().filter(|write| seen.contains(write.dot)).filter_map(|write| write.again);
        again.into_iter().find(|dot| seen.contains(*dot) || !made.insert(*dot))
    }

    /// Whether some write of a key was made again.
    pub(crate) fn has_returned(&self, key: &Bytes) -> bool {
        self.by_key.get(key).into_iter().flatten().any(|dot| self.writes[dot].again.is_some())
    }

    /// Whether a value that merges shows what this write did, or what it and the others of its node did: as themselves, or
    /// within others. (A write that changes nothing, as one that adds nothing to a counter, is not made again.) Or whether it
    /// shows all that its node had applied, this write too, when one of these lives of it ended: what that node had
    /// seen removed by others is part of what it puts away.
    pub(crate) fn is_merged(
        &self,
        keyspaces: &Keyspaces,
        dot: Dot,
        seen: &VersionVector,
        lives: &[VersionVector],
    ) -> bool {
        let Some(write) = self.writes.get(&dot) else { return false };
        if !matches!(keyspaces.of(&write.key).conflicts, ConflictPolicy::Crdt(_)) {
            return false;
        }
        let node = |dot: Dot| Origin::of(dot.origin).map(|origin| origin.node);
        let mut alone = seen.clone();
        alone.insert(dot);
        let mut whole = seen.clone();
        for other in self.by_key[&write.key].iter().filter(|other| node(**other) == node(dot)) {
            whole.insert(*other);
        }
        let shown = self.view(keyspaces, &write.key, seen);
        let with = |more: &VersionVector| {
            let mut all = seen.clone();
            all.join(more);
            shown == self.view(keyspaces, &write.key, &all)
        };
        with(&alone) || with(&whole) || lives.iter().any(|life| life.contains(dot) && with(life))
    }

    /// All writes of a key, for a human.
    pub(crate) fn story(&self, key: &Bytes) -> String {
        let tell = |dot: &Dot| {
            let LoggedWrite { time, past, value, replaces, again, .. } = &self.writes[dot];
            let past: Vec<(u32, u64)> = past.iter().map(|(origin, held)| (origin.0, held.base())).collect();
            format!(
                "({}, {}) at {} after {past:?}: {value:?} {replaces:?} {again:?}",
                dot.origin.0, dot.sequence, time.0
            )
        };
        self.by_key[key].iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    /// The values that a key shows to a replica that has applied `seen`, and their stamps, ascending by dot.
    pub(crate) fn view(&self, keyspaces: &Keyspaces, key: &Bytes, seen: &VersionVector) -> (Vec<Bytes>, Vec<Stamp>) {
        let keyspace = keyspaces.of(key);
        let mut dots: Vec<Dot> =
            self.by_key.get(key).into_iter().flatten().copied().filter(|dot| seen.contains(*dot)).collect();
        dots.sort_unstable();
        if let ConflictPolicy::Crdt(kind) = keyspace.conflicts {
            let mut state = CrdtState::new(kind);
            for dot in dots {
                let delta = self.writes[&dot].value.as_ref().expect("a delta has bytes");
                state.join_delta(&VersionVector::new(), delta).expect("deltas are well formed");
            }
            let values = if state.is_bottom() { Vec::new() } else { state.values() };
            return (values, Vec::new());
        }
        let mut values: Vec<(Stamp, Bytes)> = Vec::new();
        let deletes: Vec<&LoggedWrite> =
            dots.iter().map(|dot| &self.writes[dot]).filter(|write| write.value.is_none()).collect();
        for dot in &dots {
            let write = &self.writes[dot];
            let Some(value) = &write.value else { continue };
            if !self.is_superseded(*dot, seen) && !deletes.iter().any(|delete| takes_away(keyspace, delete, write)) {
                values.push((Stamp { time: write.time, dot: *dot }, value.clone()));
            }
        }
        let all = |values: &[(Stamp, Bytes)]| values.iter().map(|(stamp, _)| *stamp).collect::<Vec<Stamp>>();
        match &keyspace.conflicts {
            ConflictPolicy::Lww => {
                let newest = values.into_iter().max_by_key(|(stamp, _)| *stamp);
                newest.map_or((Vec::new(), Vec::new()), |(stamp, value)| (vec![value], vec![stamp]))
            }
            ConflictPolicy::Merge(merge) => {
                let stamps = all(&values);
                let merged = values.into_iter().map(|(_, value)| value).reduce(|left, right| merge(&left, &right));
                (merged.into_iter().collect(), stamps)
            }
            _ => {
                let stamps = all(&values);
                (values.into_iter().map(|(_, value)| value).collect(), stamps)
            }
        }
    }

    /// Whether some write that is among `seen` took its place, having read it as far as its client said.
    fn is_replaced_knowingly(&self, dot: Dot, seen: &VersionVector) -> bool {
        let knew = |other: &Dot| self.writes[other].read.as_ref().is_none_or(|read| read.contains(&dot));
        self.replaced_by.get(&dot).is_some_and(|others| others.iter().any(|other| seen.contains(*other) && knew(other)))
    }

    /// The values of a key that are neither replaced by a write that had seen them nor shown: those that the audit must have.
    pub(crate) fn lost(&self, keyspaces: &Keyspaces, key: &Bytes, seen: &VersionVector) -> Vec<Dot> {
        if matches!(keyspaces.of(key).conflicts, ConflictPolicy::Crdt(_)) {
            return Vec::new();
        }
        let (values, shown) = self.view(keyspaces, key, seen);
        let shown = |dot: Dot, value: &Bytes| shown.iter().any(|stamp| stamp.dot == dot) && values.contains(value);
        let dots = self.by_key[key].iter().copied().filter(|dot| seen.contains(*dot));
        dots.filter(|dot| {
            let write = &self.writes[dot];
            write.value.as_ref().is_some_and(|value| !self.is_replaced_knowingly(*dot, seen) && !shown(*dot, value))
        })
        .collect()
    }

    /// Those of the lost values that no write had seen at all: they were written beside each other.
    pub(crate) fn beside(&self, keyspaces: &Keyspaces, key: &Bytes, seen: &VersionVector) -> Vec<Dot> {
        let mut lost = self.lost(keyspaces, key, seen);
        lost.retain(|dot| !self.is_superseded(*dot, seen));
        lost
    }
}

/// Whether the first write had been applied at the origin of the second one before that was made.
fn is_before(first: Dot, second: &LoggedWrite) -> bool {
    if first.origin == second.dot.origin { first.sequence < second.dot.sequence } else { second.past.contains(first) }
}

/// Whether a delete takes away a value that was written beside it.
fn takes_away(keyspace: &Keyspace, delete: &LoggedWrite, value: &LoggedWrite) -> bool {
    let wins = match keyspace.deletes {
        DeletePolicy::DeleteWins => true,
        DeletePolicy::NewerWins => (delete.time, delete.dot) > (value.time, value.dot),
        _ => false,
    };
    wins && !is_before(delete.dot, value)
}
