//! The concurrent versions of one key.
//!
//! Invariants: a value is here exactly if its write has been applied and no applied write had seen it. Writes are applied in
//! causal order and each once, so what the key has seen is always what its replica has applied: this is a
//! [`Dvvs`](replikit_core::Dvvs) whose context is the replica's vector, without the context, and one value where there is no
//! conflict. A delete stays until it is causally stable, whatever was written after it: it still decides about values that were
//! written beside it and have not arrived. Until then each value remembers the deletes that it came after, which do not
//! concern it; so in whatever order the writes arrive, and whoever has collected the delete already, the same values are shown.

use bytes::Bytes;
use replikit_core::policy::{Cause, ConflictPolicy, DeletePolicy, Live, Overwritten, Version, resolve};
use replikit_core::{Dot, Stamp, VersionVector};
use serde::{Deserialize, Serialize};

use crate::config::Keyspace;
use crate::record::{Past, Provenance};

/// One of the versions of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sibling {
    pub(crate) version: Version,
    /// Deletes of this key that its writer had seen, as far as they are still here.
    after: Vec<Dot>,
    /// Whether the audit has it.
    audited: bool,
    /// What its client was told, when its writer was evicted before anybody had it and has made it again.
    again: Option<Dot>,
}

/// The versions of one key, ascending by dot.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Versions {
    #[default]
    None,
    One(Sibling),
    Many(Vec<Sibling>),
}

impl Sibling {
    pub(crate) const fn dot(&self) -> Dot {
        self.version.stamp.dot
    }

    /// What its client was told.
    pub(crate) fn identity(&self) -> Dot {
        self.again.unwrap_or(self.dot())
    }

    const fn is_delete(&self) -> bool {
        self.version.value.is_none()
    }

    /// Whether a delete takes this value away.
    fn falls_to(&self, delete: &Self, policy: DeletePolicy) -> bool {
        let wins = match policy {
            DeletePolicy::DeleteWins => true,
            DeletePolicy::NewerWins => delete.version.stamp > self.version.stamp,
            _ => false,
        };
        wins && !self.after.contains(&delete.dot())
    }
}

/// A copy of a value, in the place of one that is given up, when that is as long and nobody else holds it.
fn written_over(place: Bytes, value: &[u8]) -> Bytes {
    if place.len() == value.len()
        && !value.is_empty()
        && let Ok(mut place) = place.try_into_mut()
    {
        place.copy_from_slice(value);
        return place.freeze();
    }
    Bytes::copy_from_slice(value)
}

impl Versions {
    pub(crate) fn as_slice(&self) -> &[Sibling] {
        match self {
            Self::None => &[],
            Self::One(sibling) => core::slice::from_ref(sibling),
            Self::Many(siblings) => siblings,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Sibling] {
        match self {
            Self::None => &mut [],
            Self::One(sibling) => core::slice::from_mut(sibling),
            Self::Many(siblings) => siblings,
        }
    }

    fn take(&mut self) -> Vec<Sibling> {
        match core::mem::take(self) {
            Self::None => Vec::new(),
            Self::One(sibling) => vec![sibling],
            Self::Many(siblings) => siblings,
        }
    }

    fn set(&mut self, mut siblings: Vec<Sibling>) {
        *self = match siblings.len() {
            0 => Self::None,
            1 => Self::One(siblings.remove(0)),
            _ => {
                siblings.sort_by_key(Sibling::dot);
                Self::Many(siblings)
            }
        };
    }

    /// Applies a write: it replaces the values that it had seen and stands beside the rest. Returns whether there is something
    /// to decide.
    pub(crate) fn update(
        &mut self,
        past: &Past<'_>,
        provenance: &Provenance,
        stamp: Stamp,
        value: Option<&[u8]>,
    ) -> bool {
        let is_delete = value.is_none();
        let stays = |old: &Sibling| {
            let seen = past.contains(old.dot());
            if old.is_delete() {
                // What a later delete was made after, and what it takes away as well, it stands for.
                return !(is_delete && seen && old.version.stamp < stamp);
            }
            match provenance {
                Provenance::All | Provenance::Over(_) => !seen,
                Provenance::These(dots) => !dots.contains(&old.dot()),
                Provenance::Again { replaces, decided, .. } => {
                    !Provenance::is_replaced_again(replaces, *decided, past, old.version.stamp)
                }
            }
        };
        let again = if let Provenance::Again { dot, .. } = provenance { Some(*dot) } else { None };
        match self {
            // The common cases first: nothing there, or one value that is replaced.
            Self::None => {
                let version = Version { stamp, value: value.map(Bytes::copy_from_slice) };
                *self = Self::One(Sibling { version, after: Vec::new(), audited: false, again });
                return is_delete;
            }
            Self::One(old) if !stays(old) => {
                let place = old.version.value.take();
                let value = value.map(|value| written_over(place.unwrap_or_default(), value));
                *old = Sibling { version: Version { stamp, value }, after: Vec::new(), audited: false, again };
                return is_delete;
            }
            _ => {}
        }
        let version = Version { stamp, value: value.map(Bytes::copy_from_slice) };
        let mut siblings = self.take();
        siblings.retain(|old| stays(old));
        let after =
            siblings.iter().filter(|old| old.is_delete() && past.contains(old.dot())).map(Sibling::dot).collect();
        siblings.push(Sibling { version, after, audited: false, again });
        self.set(siblings);
        true
    }

    /// The values that a write is about to replace although its writer had not read them, as far as the audit has them not.
    pub(crate) fn unread(&self, past: &Past<'_>, provenance: &Provenance, by: Stamp) -> Vec<Overwritten> {
        let replaced = |old: Stamp| match provenance {
            Provenance::Over(read) => past.contains(old.dot) && !read.contains(&old.dot),
            Provenance::Again { replaces, decided, .. } => Provenance::is_replaced_again(replaces, *decided, past, old),
            Provenance::All | Provenance::These(_) => false,
        };
        if matches!(provenance, Provenance::All | Provenance::These(_)) {
            return Vec::new();
        }
        let unread =
            self.as_slice().iter().filter(|old| !old.is_delete() && !old.audited && replaced(old.version.stamp));
        let lost = |old: &Sibling| Overwritten { version: old.version.clone(), by, cause: Cause::Newer };
        unread.map(lost).collect()
    }

    /// Takes in another replica's versions of the key: a version stays if both have it, or if the other side has not seen it.
    pub(crate) fn join(&mut self, seen: &VersionVector, other: &Self, other_seen: &VersionVector) {
        let mut joined = Vec::new();
        for mut mine in self.take() {
            match other.as_slice().iter().find(|theirs| theirs.dot() == mine.dot()) {
                Some(theirs) => {
                    mine.after.extend(
                        theirs.after.iter().filter(|dot| !mine.after.contains(dot)).copied().collect::<Vec<_>>(),
                    );
                    joined.push(mine);
                }
                None if other_seen.contains(mine.dot()) => {}
                None => joined.push(mine),
            }
        }
        let new = other.as_slice().iter().filter(|theirs| !seen.contains(theirs.dot()));
        let new: Vec<Sibling> =
            new.filter(|theirs| joined.iter().all(|mine| mine.dot() != theirs.dot())).cloned().collect();
        joined.extend(new);
        self.set(joined);
    }

    /// What the key shows, and what it does not.
    pub(crate) fn resolve(&self, keyspace: &Keyspace) -> (Live, Vec<Overwritten>) {
        let (deletes, values): (Vec<&Sibling>, Vec<&Sibling>) =
            self.as_slice().iter().partition(|sibling| sibling.is_delete());
        let mut overwritten = Vec::new();
        let mut surviving = Vec::with_capacity(values.len());
        for value in &values {
            let fatal = deletes.iter().filter(|delete| value.falls_to(delete, keyspace.deletes));
            match fatal.map(|delete| delete.version.stamp).max() {
                Some(by) => overwritten.push(Overwritten { version: value.version.clone(), by, cause: Cause::Deleted }),
                None => surviving.push(value.version.clone()),
            }
        }
        let newest = surviving.iter().map(|version| version.stamp).max();
        if let Some(by) = newest {
            let stands_beside = |delete: &Sibling| {
                let shown = |value: &&&Sibling| surviving.iter().any(|version| version.stamp == value.version.stamp);
                values.iter().filter(shown).any(|value| !value.after.contains(&delete.dot()))
            };
            let lost = deletes.iter().filter(|delete| stands_beside(delete));
            overwritten.extend(lost.map(|delete| Overwritten {
                version: delete.version.clone(),
                by,
                cause: Cause::DeleteLost,
            }));
        }
        let resolution = resolve(&keyspace.conflicts, DeletePolicy::AddWins, &surviving);
        overwritten.extend(resolution.overwritten);
        let last_delete = deletes.iter().map(|delete| delete.version.stamp).max();
        let live = match (resolution.live, last_delete) {
            (Live::Absent, Some(delete)) => Live::Deleted(delete),
            (live, _) => live,
        };
        (live, overwritten)
    }

    /// What is not shown and was not told to the audit yet; it counts as told from now on.
    pub(crate) fn audit(&mut self, keyspace: &Keyspace) -> Vec<Overwritten> {
        let (_, mut overwritten) = self.resolve(keyspace);
        overwritten.retain(|lost| {
            let mut siblings = self.as_mut_slice().iter_mut();
            let sibling = siblings.find(|sibling| sibling.version.stamp == lost.version.stamp);
            sibling.is_some_and(|sibling| !core::mem::replace(&mut sibling.audited, true))
        });
        overwritten
    }

    /// Drops what can decide nothing any more: `stable` is what every replica has applied, and no write that has not been
    /// applied here was made without having seen it. Returns whether anything is left to decide.
    pub(crate) fn collect(&mut self, keyspace: &Keyspace, stable: &VersionVector) -> bool {
        let mut siblings = self.take();
        let over: Vec<Sibling> =
            siblings.iter().filter(|sibling| sibling.is_delete() && stable.contains(sibling.dot())).cloned().collect();
        siblings.retain(|sibling| {
            let gone =
                over.iter().any(|delete| delete.dot() == sibling.dot() || sibling.falls_to(delete, keyspace.deletes));
            !gone || sibling.is_delete() && !stable.contains(sibling.dot())
        });
        for sibling in &mut siblings {
            sibling.after.retain(|dot| !over.iter().any(|delete| delete.dot() == *dot));
        }
        let all_stable = siblings.iter().all(|sibling| stable.contains(sibling.dot()));
        if all_stable && matches!(keyspace.conflicts, ConflictPolicy::Lww) {
            let newest = siblings.iter().map(|sibling| sibling.version.stamp).max();
            siblings.retain(|sibling| Some(sibling.version.stamp) == newest);
        }
        self.set(siblings);
        !all_stable
    }

    /// Whether there is nothing to decide: no version, or one value.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::None => true,
            Self::One(sibling) => !sibling.is_delete(),
            Self::Many(_) => false,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.as_slice().iter().map(|sibling| 48 + sibling.version.value.as_ref().map_or(0, Bytes::len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use replikit_core::{HybridTimestamp, Incarnation, NodeId, Origin, OriginId, SequenceSet};

    use super::*;

    fn origin(node: u32, incarnation: u32) -> OriginId {
        Origin { node: NodeId(node), incarnation: Incarnation(incarnation) }.id().expect("in range")
    }

    fn stamp(node: u32, incarnation: u32, time: u64) -> Stamp {
        Stamp { time: HybridTimestamp(time), dot: Dot { origin: origin(node, incarnation), sequence: 1 } }
    }

    fn shown(versions: &Versions, keyspace: &Keyspace) -> Option<Bytes> {
        match versions.resolve(keyspace).0 {
            Live::One(version) => version.value,
            other => panic!("the newest wins: {other:?}"),
        }
    }

    /// Seed 79764 of multi-leader: a value that had won by a clock ahead was replaced by one that was made again, which had
    /// seen it and not what had lost to it. Who had given up the loser showed something else than who had not.
    #[test]
    fn what_had_lost_to_a_value_that_is_replaced_again_stays_away_wherever_it_still_is() {
        let keyspace = Keyspace::new(ConflictPolicy::Lww);
        let (won, lost, again) = (stamp(2, 1, 700), stamp(3, 1, 650), stamp(1, 2, 600));
        let mut seen = VersionVector::new();
        for stamp in [won, lost] {
            seen.insert_all(stamp.dot.origin, &SequenceSet::up_to(1));
        }
        let nothing = VersionVector::new();
        let mut whole = Versions::None;
        for (stamp, value) in [(won, "won"), (lost, "lost")] {
            let past = Past { others: &nothing, dot: stamp.dot };
            whole.update(&past, &Provenance::All, stamp, Some(value.as_bytes()));
        }
        assert_eq!(shown(&whole, &keyspace).as_deref(), Some(&b"won"[..]));
        let mut collected = whole.clone();
        assert!(!collected.collect(&keyspace, &seen), "nothing is left to decide");
        assert_eq!(collected.as_slice().len(), 1);
        let provenance = Provenance::Again {
            dot: stamp(1, 1, 600).dot,
            time: again.time,
            replaces: vec![won.dot],
            decided: Some(won),
        };
        for versions in [&mut whole, &mut collected] {
            let past = Past { others: &seen, dot: again.dot };
            let told = versions.unread(&past, &provenance, again);
            versions.update(&past, &provenance, again, Some(b"again"));
            assert_eq!(shown(versions, &keyspace).as_deref(), Some(&b"again"[..]), "{told:?}");
        }
        assert_eq!(whole, collected);
    }
}
