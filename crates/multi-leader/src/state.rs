//! The data of a replica: what has been applied, and what the keys show.
//!
//! Invariants: batches of writes are applied in causal order, each once; so the applied writes of every origin have no gap, and
//! equal vectors mean that the same writes have been applied. What a key shows depends on the applied writes only: replicas
//! with equal vectors show the same.

use core::ops::{Bound, ControlFlow};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtState};
use replikit_core::keyspace::{Audit, Conflict, Map};
use replikit_core::policy::{ConflictPolicy, Live, Version};
use replikit_core::{CausalContext, Dot, NodeId, Origin, OriginId, SequenceSet, Stamp, VersionVector, WriteId};
use xxhash_rust::xxh3::Xxh3;

use crate::config::Keyspaces;
use crate::record::{Change, Past, Provenance, Record, Writes};
use crate::versions::{Sibling, Versions};

/// What is kept of a key.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Versions(Versions),
    Merging(Box<Merging>),
}

/// A value that merges.
#[derive(Clone, Debug)]
pub(crate) struct Merging {
    pub(crate) state: CrdtState,
    /// The newest write that this node made to it. Until every member has it, it is kept that there was one, also if it left
    /// nothing of the value: what it has removed may still be with others, and this node may be the only one that knows.
    pub(crate) own: Option<Dot>,
}

impl Merging {
    pub(crate) fn new(kind: CrdtKind) -> Self {
        Self { state: CrdtState::new(kind), own: None }
    }

    /// Whether nothing is left of it but that it was written to here.
    fn is_removed(&self) -> bool {
        self.own.is_some() && self.state.is_bottom()
    }
}

/// A key's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) content: Content,
    /// The newest own write of the key that may not be durable: a reader waits for it.
    pub(crate) pending: WriteId,
}

/// Whether a key's place is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Taken,
    /// Nothing is there, but a reader has to wait until that is on disk.
    Awaited,
    Free,
}

impl Slot {
    fn place(&self) -> Place {
        match (self.content.is_empty(), self.pending) {
            (false, _) => Place::Taken,
            (true, WriteId(0)) => Place::Free,
            (true, _) => Place::Awaited,
        }
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::Versions(Versions::None)
    }
}

impl Content {
    /// A place where nothing was ever is that of a value that merges from now on.
    fn merge_from(&mut self, kind: CrdtKind) {
        if matches!(self, Self::Versions(Versions::None)) {
            *self = Self::Merging(Box::new(Merging::new(kind)));
        }
    }

    /// Folds counters, and returns whether nothing is left to fold.
    fn fold(&mut self, stable: &VersionVector) -> bool {
        let Self::Merging(merging) = self else { return true };
        merging.state.fold(stable);
        merging.state.is_folded()
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Versions(versions) => matches!(versions, Versions::None),
            // What it has seen above the replica's vector was brought by a value that was made again: it stays away.
            Self::Merging(merging) => {
                merging.own.is_none() && merging.state.is_bottom() && merging.state.above().is_empty()
            }
        }
    }
}

/// What a reader of a key finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) values: Vec<Bytes>,
    /// The versions behind the values; none for a value that merges.
    pub(crate) stamps: Vec<Stamp>,
    pub(crate) pending: WriteId,
}

/// The data of a replica.
#[derive(Debug)]
pub(crate) struct State {
    node: NodeId,
    pub(crate) keyspaces: Keyspaces,
    map: Map<Slot>,
    applied: VersionVector,
    /// Digest of the newest applied batch of each origin.
    digests: BTreeMap<OriginId, u64>,
    /// Keys with something to decide, or to collect.
    unsettled: BTreeSet<Bytes>,
    pub(crate) audit: Audit,
    bytes: usize,
    conflicts: u64,
    /// Values whose counters were folded, each time.
    folded: u64,
}

impl State {
    pub(crate) fn new(node: NodeId, keyspaces: Keyspaces, audit_bytes_max: usize) -> Self {
        Self {
            node,
            keyspaces,
            map: Map::new(),
            applied: VersionVector::new(),
            digests: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            audit: Audit::new(audit_bytes_max),
            bytes: 0,
            conflicts: 0,
            folded: 0,
        }
    }

    /// What has been applied.
    pub(crate) const fn applied(&self) -> &VersionVector {
        &self.applied
    }

    /// Digest of the newest applied batch of an origin; 0 if there is none.
    pub(crate) fn digest(&self, origin: OriginId) -> u64 {
        self.digests.get(&origin).copied().unwrap_or(0)
    }

    /// Bytes of the keys and their versions, about.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn keys(&self) -> usize {
        self.map.len()
    }

    /// Values whose counters were folded, each time.
    pub(crate) const fn folded(&self) -> u64 {
        self.folded
    }

    /// Writes that met another one that neither had seen.
    pub(crate) const fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// Keys with more than one version, or with a delete that is not yet known everywhere.
    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Whether the writes can be applied: what they had seen has been.
    pub(crate) fn is_ready(&self, writes: &Writes) -> bool {
        self.applied.base(writes.origin()) + 1 == writes.first() && self.applied.covers(&writes.past)
    }

    /// Applies a batch that is ready.
    pub(crate) fn apply(&mut self, writes: &Writes) {
        debug_assert!(self.is_ready(writes), "writes are applied in causal order");
        self.apply_next(writes);
    }

    /// Applies the next batch of its origin, also if something that it had seen is lost for good.
    pub(crate) fn apply_next(&mut self, writes: &Writes) {
        debug_assert_eq!(self.applied.base(writes.origin()) + 1, writes.first(), "an origin's writes have no gap");
        let mut applied = core::mem::take(&mut self.applied);
        for (dot, record) in writes.iter() {
            let past = Past { others: &writes.past, dot };
            self.apply_record(&applied, &past, Stamp { time: writes.time, dot }, &record, WriteId(0));
            applied.insert(dot);
        }
        self.applied = applied;
        self.digests.insert(writes.origin(), writes.batch.digest());
    }

    /// Applies an own write whose batch is still open: it has seen all that has been applied.
    pub(crate) fn apply_own(&mut self, stamp: Stamp, record: &Record<'_>, pending: WriteId) {
        let mut applied = core::mem::take(&mut self.applied);
        self.apply_record(&applied, &Past { others: &applied, dot: stamp.dot }, stamp, record, pending);
        applied.insert(stamp.dot);
        self.applied = applied;
    }

    /// The batch of the newest own writes is closed.
    pub(crate) fn close_own(&mut self, origin: OriginId, digest: u64) {
        self.digests.insert(origin, digest);
    }

    fn apply_record(
        &mut self,
        applied: &VersionVector,
        past: &Past<'_>,
        stamp: Stamp,
        record: &Record<'_>,
        pending: WriteId,
    ) {
        let keyspace = self.keyspaces.of(record.key);
        let own = is_of(self.node, stamp.dot).then_some(stamp.dot);
        // One that is made again keeps its time.
        let stamp = match &record.provenance {
            Provenance::Again { time, .. } => Stamp { time: *time, ..stamp },
            _ => stamp,
        };
        let mut decide = false;
        let (mut overwritten, mut conflict) = (Vec::new(), false);
        let (before, after, place) = self.map.update(record.key, |slot| {
            slot.pending = slot.pending.max(pending);
            match (record.change, &keyspace.conflicts) {
                (Change::Merge(delta), ConflictPolicy::Crdt(kind)) => {
                    slot.content.merge_from(*kind);
                    let Content::Merging(merging) = &mut slot.content else { return (0, 0, Place::Taken) };
                    merging.own = own.or(merging.own);
                    let state = &mut merging.state;
                    // Checked where it entered; another replica's cannot be of another type, for keyspaces are the same.
                    let joined = state.join_delta(applied, delta);
                    debug_assert!(joined.is_ok(), "a delta is checked before it is applied");
                    if state.is_bottom() {
                        let mut seen = applied.clone();
                        seen.insert(stamp.dot);
                        state.strip(&seen);
                        decide = merging.own.is_some();
                    }
                    decide |= !merging.state.is_folded();
                    (0, delta.len(), slot.place())
                }
                (Change::Put(_) | Change::Delete, policy) if !matches!(policy, ConflictPolicy::Crdt(_)) => {
                    let Content::Versions(versions) = &mut slot.content else {
                        return (0, 0, Place::Taken);
                    };
                    let before = versions.bytes();
                    let value = if let Change::Put(value) = record.change { Some(value) } else { None };
                    overwritten = versions.unread(past, &record.provenance, stamp);
                    decide = versions.update(past, &record.provenance, stamp, value);
                    if decide && versions.as_slice().len() > 1 {
                        conflict = versions
                            .as_slice()
                            .iter()
                            .any(|other| !past.contains(other.dot()) && other.dot() != stamp.dot);
                        overwritten.extend(versions.audit(keyspace));
                    }
                    (before, versions.bytes(), slot.place())
                }
                // A write that its keyspace does not have: replicas with other keyspaces are not listened to.
                _ => (0, 0, slot.place()),
            }
        });
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.conflicts += u64::from(conflict);
        for lost in overwritten {
            self.audit.add(record.key, lost);
        }
        if decide || place == Place::Awaited {
            self.unsettled.insert(Bytes::copy_from_slice(record.key));
        } else if place == Place::Free {
            self.map.remove(record.key);
        }
    }

    /// Looks at a value that merges, to make a delta of it.
    pub(crate) fn merging(&mut self, key: &[u8]) -> Option<&CrdtState> {
        match self.map.peek(key).map(|slot| &slot.content) {
            Some(Content::Merging(merging)) => Some(&merging.state),
            _ => None,
        }
    }

    /// What a reader finds.
    pub(crate) fn find(&mut self, key: &[u8]) -> Found {
        let keyspace = self.keyspaces.of(key);
        let Some(slot) = self.map.peek(key) else { return Found::default() };
        Found { pending: slot.pending, ..shown(&slot.content, keyspace) }
    }

    /// The versions of a key, shown or not, that a context has.
    pub(crate) fn seen_of(&mut self, key: &[u8], context: &CausalContext) -> Vec<Dot> {
        match self.map.peek(key).map(|slot| &slot.content) {
            Some(Content::Versions(versions)) => {
                versions.as_slice().iter().map(Sibling::dot).filter(|dot| context.contains(*dot)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What a key shows.
    pub(crate) fn values(&self, key: &[u8]) -> Vec<Bytes> {
        self.map.get(key).map_or_else(Vec::new, |slot| shown(&slot.content, self.keyspaces.of(key)).values)
    }

    /// Calls `visit` for each key from `from` on that shows something, ascending, until it breaks.
    pub(crate) fn scan(&self, from: &[u8], mut visit: impl FnMut(&[u8], Found) -> ControlFlow<()>) {
        self.map.for_each_from(Bound::Included(from), |key, slot| {
            let found = Found { pending: slot.pending, ..shown(&slot.content, self.keyspaces.of(key)) };
            if found.values.is_empty() { ControlFlow::Continue(()) } else { visit(key, found) }
        });
    }

    /// Drops what can decide nothing any more. `stable` has been applied by every member, and everything that any member had
    /// applied then has been applied here: so no write is on its way that was made without having seen it.
    /// Source: Baquero, Almeida, Shoker 2014 (causal stability).
    ///
    /// Counters are folded unless somebody that was evicted may come back, with a reset that has seen some of the additions only.
    pub(crate) fn collect(&mut self, stable: &VersionVector, folds: bool, durable: WriteId) {
        let keys: Vec<Bytes> = self.unsettled.iter().cloned().collect();
        for key in keys {
            let keyspace = self.keyspaces.of(&key);
            let Some(slot) = self.map.peek(&key) else {
                self.unsettled.remove(&key);
                continue;
            };
            if slot.content.is_empty() {
                // Nothing is left of it, but a reader has to wait until that is on disk.
                if slot.pending <= durable {
                    self.unsettled.remove(&key);
                    self.map.remove(&key);
                }
                continue;
            }
            let versions = match &slot.content {
                Content::Versions(versions) => versions,
                Content::Merging(merging) if merging.is_removed() => {
                    if merging.own.is_some_and(|own| stable.contains(own)) && slot.pending <= durable {
                        self.unsettled.remove(&key);
                        self.forget_own(&key);
                    }
                    continue;
                }
                Content::Merging(merging) => {
                    let mut is_folded = merging.state.is_folded();
                    if folds && merging.state.folds(stable) {
                        is_folded = self.map.update(&key, |slot| slot.content.fold(stable));
                        self.folded += 1;
                    }
                    if is_folded || !folds {
                        self.unsettled.remove(&key);
                    }
                    continue;
                }
            };
            // Looked at first: a shard that an image shares is copied by a change.
            let mut collected = versions.clone();
            let more = collected.collect(keyspace, stable);
            if collected != *versions {
                self.bytes = (self.bytes + collected.bytes()).saturating_sub(versions.bytes());
                if matches!(collected, Versions::None) {
                    self.map.remove(&key);
                } else {
                    self.map.update(&key, |slot| slot.content = Content::Versions(collected));
                }
            }
            if !more {
                self.unsettled.remove(&key);
            }
        }
    }

    /// Every member has what was written to a value that merges, and of which nothing is left.
    fn forget_own(&mut self, key: &[u8]) {
        let place = self.map.update(key, |slot| {
            slot.pending = WriteId(0);
            if let Content::Merging(merging) = &mut slot.content {
                merging.own = None;
            }
            slot.place()
        });
        if place == Place::Free {
            self.map.remove(key);
        }
    }

    /// Equal at replicas that have applied the same writes, whatever of them has been collected.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.map.for_each_from(Bound::Unbounded, |key, slot| {
            let found = shown(&slot.content, self.keyspaces.of(key));
            if !found.values.is_empty() {
                hash.write(key);
                for value in &found.values {
                    hash.write_usize(value.len());
                    hash.write(value);
                }
                for stamp in &found.stamps {
                    hash.write_u32(stamp.dot.origin.0);
                    hash.write_u64(stamp.dot.sequence);
                }
            }
            ControlFlow::Continue(())
        });
        hash.finish()
    }

    /// The content, for a snapshot.
    pub(crate) const fn map(&self) -> &Map<Slot> {
        &self.map
    }

    /// The versions of a key, shown or not.
    pub(crate) fn versions(&self, key: &[u8]) -> Versions {
        match self.map.get(key).map(|slot| slot.content.clone()) {
            Some(Content::Versions(versions)) => versions,
            _ => Versions::None,
        }
    }

    /// The digests, for a snapshot.
    pub(crate) const fn digests(&self) -> &BTreeMap<OriginId, u64> {
        &self.digests
    }

    /// Takes in another replica's state, key by key; [`State::joined`] ends it.
    pub(crate) fn join_key(&mut self, key: &[u8], theirs: Content, their_applied: &VersionVector) {
        let keyspace = self.keyspaces.of(key);
        let (node, applied) = (self.node, &self.applied);
        let mut overwritten = Vec::new();
        let (before, after, settled, place) = self.map.update(key, |slot| {
            let bytes =
                |content: &Content| if let Content::Versions(versions) = content { versions.bytes() } else { 0 };
            let before = bytes(&slot.content);
            if let Content::Merging(theirs) = &theirs {
                // Nothing may be there, but it may have been: what this replica has seen removed stays away.
                slot.content.merge_from(theirs.state.kind());
            }
            match (&mut slot.content, theirs) {
                (Content::Versions(mine), Content::Versions(theirs)) => {
                    mine.join(applied, &theirs, their_applied);
                    overwritten = mine.audit(keyspace);
                }
                (Content::Merging(mine), Content::Merging(theirs)) => {
                    let joined = mine.state.join(applied, &theirs.state, their_applied);
                    debug_assert!(joined.is_ok(), "keyspaces have one type of value");
                    if mine.state.is_bottom() {
                        let mut seen = applied.clone();
                        seen.join(their_applied);
                        mine.state.strip(&seen);
                    }
                    // From its own disk: what others have written is theirs to remember.
                    mine.own = mine.own.max(theirs.own.filter(|own| is_of(node, *own)));
                }
                _ => {}
            }
            let settled = match &slot.content {
                Content::Versions(versions) => versions.is_settled(),
                Content::Merging(merging) => !merging.is_removed() && merging.state.is_folded(),
            };
            (before, bytes(&slot.content), settled, slot.place())
        });
        self.bytes = (self.bytes + after).saturating_sub(before);
        for lost in overwritten {
            self.audit.add(key, lost);
        }
        if !settled || place == Place::Awaited {
            self.unsettled.insert(Bytes::copy_from_slice(key));
        } else if place == Place::Free {
            self.map.remove(key);
        }
    }

    /// The keys that the other replica does not have: what it has seen of them is gone.
    pub(crate) fn join_absent(&mut self, theirs: &BTreeSet<Bytes>, their_applied: &VersionVector) {
        let mut absent = Vec::new();
        self.map.for_each_from(Bound::Unbounded, |key, slot| {
            if !theirs.contains(key) {
                let content = match &slot.content {
                    Content::Versions(_) => Content::Versions(Versions::None),
                    Content::Merging(merging) => Content::Merging(Box::new(Merging::new(merging.state.kind()))),
                };
                absent.push((Bytes::copy_from_slice(key), content));
            }
            ControlFlow::Continue(())
        });
        for (key, nothing) in absent {
            self.join_key(&key, nothing, their_applied);
        }
    }

    /// All keys of the other replica have been joined: what it had applied has been applied.
    pub(crate) fn joined(
        &mut self,
        their_applied: &VersionVector,
        digests: &BTreeMap<OriginId, u64>,
        audit: Vec<Conflict>,
    ) {
        for (origin, held) in their_applied.iter() {
            if held.base() > self.applied.base(origin) {
                self.applied.insert_all(origin, &SequenceSet::up_to(held.base()));
                self.digests.insert(origin, digests.get(&origin).copied().unwrap_or(0));
            }
        }
        self.audit.add_new(audit.into_iter().map(|conflict| (conflict.key, conflict.overwritten)));
    }
}

fn is_of(node: NodeId, dot: Dot) -> bool {
    Origin::of(dot.origin).is_some_and(|origin| origin.node == node)
}

fn shown(content: &Content, keyspace: &crate::Keyspace) -> Found {
    let versions = match content {
        Content::Merging(merging) if merging.state.is_bottom() => return Found::default(),
        Content::Merging(merging) => return Found { values: merging.state.values(), ..Found::default() },
        Content::Versions(versions) => versions,
    };
    if let Versions::One(sibling) = versions {
        let Version { stamp, value } = &sibling.version;
        return Found { values: value.iter().cloned().collect(), stamps: vec![*stamp], pending: WriteId(0) };
    }
    let (values, stamps) = match versions.resolve(keyspace).0 {
        Live::Absent | Live::Deleted(_) => (Vec::new(), Vec::new()),
        Live::One(version) => (version.value.into_iter().collect(), vec![version.stamp]),
        Live::Siblings(versions) => {
            let stamps = versions.iter().map(|version| version.stamp).collect();
            (versions.into_iter().filter_map(|version| version.value).collect(), stamps)
        }
        Live::Merged { value, from } => (vec![value], from),
    };
    Found { values, stamps, pending: WriteId(0) }
}

#[cfg(test)]
mod tests {
    use replikit_core::crdt::{CrdtKind, CrdtOp};
    use replikit_core::{HybridTimestamp, Incarnation};

    use super::*;
    use crate::config::Keyspace;
    use crate::record::Provenance;

    /// Seed 3218 of the simulator: a reader was shown that a flag is off before the write that had switched it off was on disk.
    #[test]
    fn what_a_reader_waits_for_stays_when_another_replicas_state_is_joined() {
        let origin = Origin { node: NodeId(1), incarnation: Incarnation(1) }.id().expect("in range");
        let keyspaces = Keyspaces::all(Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Flag)));
        let mut state = State::new(NodeId(1), keyspaces, 1 << 10);
        let switch = |state: &mut State, sequence, op| {
            let stamp = Stamp { time: HybridTimestamp(sequence), dot: Dot { origin, sequence } };
            let nothing = CrdtState::new(CrdtKind::Flag);
            let delta = state.merging(b"k").unwrap_or(&nothing).delta(stamp, &op).expect("of the type");
            let record = Record { key: b"k", change: Change::Merge(&delta), provenance: Provenance::All };
            state.apply_own(stamp, &record, WriteId(sequence));
        };
        switch(&mut state, 1, CrdtOp::Enable);
        switch(&mut state, 2, CrdtOp::Disable);
        assert_eq!((state.find(b"k").values, state.find(b"k").pending), (Vec::new(), WriteId(2)));
        let theirs = VersionVector::new();
        state.join_absent(&BTreeSet::new(), &theirs);
        state.joined(&theirs, &BTreeMap::new(), Vec::new());
        assert_eq!(state.find(b"k").pending, WriteId(2), "the reader still has to wait");
        state.collect(&theirs, true, WriteId(2));
        assert_eq!(state.keys(), 1, "this node is the only one that knows that it was switched off");
        let stable = state.applied().clone();
        state.collect(&stable, true, WriteId(1));
        assert_eq!(state.find(b"k").pending, WriteId(2), "the reader still has to wait");
        state.collect(&stable, true, WriteId(2));
        assert_eq!((state.find(b"k").pending, state.keys()), (WriteId(0), 0), "it is on disk, everywhere");
    }
}
