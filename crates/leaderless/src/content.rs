//! What is kept of one key: its concurrent versions, and what the key has seen.
//!
//! Invariants: a version is here exactly if its write is known here and no known write had seen it. What the key has seen is the
//! vector of its replica, and above that what `above` lists: writes that a version had seen, or a repair has brought, before
//! the log of their origin came. At rest `above` is empty and a key without conflict is one pair of dot and value. Writes of
//! different origins arrive in any order; whatever the order, replicas that know the same writes have the same versions.
//! This is a [`Dvvs`](replikit_core::Dvvs) with the common cases stored flat. Source: Almeida et al. 2014; node-wide dots and
//! contexts stripped by the node's vector: Gonçalves et al., SRDS 2017.

use std::hash::Hasher;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtState};
use replikit_core::policy::{Cause, ConflictPolicy, Live, Overwritten, Version, resolve};
use replikit_core::{CausalContext, Dot, Stamp, VersionVector, WriteId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use crate::config::Keyspace;
use crate::record::Saw;

/// One of the versions of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sibling {
    pub(crate) version: Version,
    /// Whether the audit has it.
    audited: bool,
}

impl Sibling {
    pub(crate) const fn dot(&self) -> Dot {
        self.version.stamp.dot
    }

    const fn is_delete(&self) -> bool {
        self.version.value.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
enum List {
    #[default]
    None,
    One(Sibling),
    Many(Vec<Sibling>),
}

/// The versions of one key, ascending by dot, and what the key has seen above the vector of its replica.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Versions {
    list: List,
    above: Option<Box<CausalContext>>,
}

impl Versions {
    pub(crate) fn as_slice(&self) -> &[Sibling] {
        match &self.list {
            List::None => &[],
            List::One(sibling) => core::slice::from_ref(sibling),
            List::Many(siblings) => siblings,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Sibling] {
        match &mut self.list {
            List::None => &mut [],
            List::One(sibling) => core::slice::from_mut(sibling),
            List::Many(siblings) => siblings,
        }
    }

    fn take(&mut self) -> Vec<Sibling> {
        match core::mem::take(&mut self.list) {
            List::None => Vec::new(),
            List::One(sibling) => vec![sibling],
            List::Many(siblings) => siblings,
        }
    }

    fn set(&mut self, mut siblings: Vec<Sibling>) {
        self.list = match siblings.len() {
            0 => List::None,
            1 => List::One(siblings.remove(0)),
            _ => {
                siblings.sort_by_key(Sibling::dot);
                List::Many(siblings)
            }
        };
    }

    #[cfg(test)]
    pub(crate) fn flip_a_bit(&mut self) {
        let value = self.as_mut_slice()[0].version.value.as_mut().expect("a value");
        let mut bytes = value.to_vec();
        bytes[0] ^= 1;
        *value = bytes.into();
    }

    /// What the key has seen above the vector of its replica.
    pub(crate) fn above(&self) -> Option<&CausalContext> {
        self.above.as_deref()
    }

    fn has_seen(&self, base: &VersionVector, dot: Dot) -> bool {
        base.contains(dot) || self.above.as_ref().is_some_and(|above| above.contains(dot))
    }

    fn see(&mut self, more: CausalContext) {
        if !more.is_empty() {
            self.above.get_or_insert_default().join(&more);
        }
    }

    /// Drops from what the key has seen what the vector says anyway.
    pub(crate) fn strip(&mut self, base: &VersionVector) {
        if let Some(above) = &mut self.above {
            above.strip(base);
            if above.is_empty() {
                self.above = None;
            }
        }
    }

    /// Applies a write, in any order with those of other origins: it replaces the versions that its writer had seen and stands
    /// beside the rest. `base` is the replica's vector without this write. A delete stands beside values only where the last
    /// write wins.
    pub(crate) fn update(&mut self, base: &VersionVector, saw: &Saw<'_>, version: Version, keyspace: &Keyspace) {
        let dot = version.stamp.dot;
        let known = self.has_seen(base, dot) || version.value.is_none() && !keyspace.is_lww();
        self.see(saw.beyond(base));
        let new = Sibling { version, audited: false };
        match &mut self.list {
            List::None if !known => self.list = List::One(new),
            List::One(old) if !known && saw.contains(old.dot()) => *old = new,
            List::None => {}
            _ => {
                let mut siblings = self.take();
                siblings.retain(|old| !saw.contains(old.dot()));
                if !known {
                    siblings.push(new);
                }
                self.set(siblings);
            }
        }
    }

    /// Takes in another copy of the key: a version stays if both have it, or if the other side has not seen it. Returns
    /// whether anything changed.
    pub(crate) fn join(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) -> bool {
        let before = self.clone();
        let siblings = self.take();
        let mut joined: Vec<Sibling> = Vec::with_capacity(siblings.len());
        for mut mine in siblings {
            match other.as_slice().iter().find(|theirs| theirs.dot() == mine.dot()) {
                Some(theirs) => {
                    mine.audited |= theirs.audited;
                    joined.push(mine);
                }
                None if other.has_seen(other_base, mine.dot()) => {}
                None => joined.push(mine),
            }
        }
        let new = other.as_slice().iter().filter(|theirs| !before.has_seen(base, theirs.dot()));
        let new: Vec<Sibling> =
            new.filter(|theirs| joined.iter().all(|mine| mine.dot() != theirs.dot())).cloned().collect();
        joined.extend(new);
        self.set(joined);
        if let Some(above) = &other.above {
            self.see(CausalContext::clone(above));
        }
        if !base.covers(other_base) {
            self.see(other_base.beyond(base).into());
        }
        self.strip(base);
        *self != before
    }

    fn versions(&self) -> Vec<Version> {
        self.as_slice().iter().map(|sibling| sibling.version.clone()).collect()
    }

    /// The newest one, which may be a delete.
    pub(crate) fn last(&self) -> Option<&Version> {
        self.as_slice().iter().map(|sibling| &sibling.version).max_by_key(|version| version.stamp)
    }

    /// The newest stamp, of a delete too.
    pub(crate) fn newest(&self) -> Option<Stamp> {
        self.last().map(|version| version.stamp)
    }

    /// What is not shown and was not told to the audit yet; it counts as told from now on.
    pub(crate) fn audit(&mut self, keyspace: &Keyspace) -> Vec<Overwritten> {
        if self.as_slice().len() < 2 {
            return Vec::new();
        }
        let mut overwritten = resolve(&keyspace.conflicts, keyspace.deletes(), &self.versions()).overwritten;
        overwritten.retain(|lost| {
            let mut siblings = self.as_mut_slice().iter_mut();
            let sibling = siblings.find(|sibling| sibling.version.stamp == lost.version.stamp);
            sibling.is_some_and(|sibling| !core::mem::replace(&mut sibling.audited, true))
        });
        overwritten
    }

    /// Drops what can decide nothing any more: `stable` is what every owner has applied, and no write that has not been
    /// applied here was made without having seen it. Every write that is still to come has seen all of it, so a delete that is
    /// stable takes what is older along, and of values that are all stable the newest is enough.
    pub(crate) fn collect(&mut self, keyspace: &Keyspace, stable: &VersionVector) {
        if !keyspace.is_lww() {
            return;
        }
        let mut siblings = self.take();
        let over = siblings.iter().filter(|sibling| sibling.is_delete() && stable.contains(sibling.dot()));
        let over = over.map(|sibling| sibling.version.stamp).max();
        siblings.retain(|sibling| over.is_none_or(|delete| sibling.version.stamp > delete));
        if siblings.iter().all(|sibling| stable.contains(sibling.dot())) {
            let newest = siblings.iter().map(|sibling| sibling.version.stamp).max();
            siblings.retain(|sibling| Some(sibling.version.stamp) == newest);
        }
        self.set(siblings);
    }

    /// Whether there is nothing to decide and nothing to strip: no version, or one value.
    fn is_settled(&self) -> bool {
        self.above.is_none()
            && match &self.list {
                List::None => true,
                List::One(sibling) => !sibling.is_delete(),
                List::Many(_) => false,
            }
    }

    fn is_void(&self) -> bool {
        self.above.is_none() && matches!(self.list, List::None)
    }
}

/// What is kept of a key.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Versions(Versions),
    Merging(Box<CrdtState>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Versions(Versions::default())
    }
}

/// Whether counters may be folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folding {
    /// An owner that was evicted may come back with a reset that has seen some of the additions only.
    Never,
    Later,
    Now,
}

/// What a reader of a key finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) values: Vec<Bytes>,
    /// The versions behind the values; none for a value that merges.
    pub(crate) stamps: Vec<Stamp>,
    /// The newest storage action that changed the key here.
    pub(crate) pending: WriteId,
}

impl Content {
    /// A place where nothing was ever, in a keyspace of values that merge.
    pub(crate) fn merging(kind: CrdtKind) -> Self {
        Self::Merging(Box::new(CrdtState::new(kind)))
    }

    /// An empty place takes the shape that the keyspace has.
    pub(crate) fn shape(&mut self, keyspace: &Keyspace) {
        if let (Self::Versions(versions), ConflictPolicy::Crdt(kind)) = (&*self, &keyspace.conflicts)
            && versions.is_void()
        {
            *self = Self::merging(*kind);
        }
    }

    /// Takes in another copy of the key; returns whether anything changed. Of another shape, nothing is.
    pub(crate) fn join(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) -> bool {
        match (self, other) {
            (Self::Versions(mine), Self::Versions(theirs)) => mine.join(base, theirs, other_base),
            (Self::Merging(mine), Self::Merging(theirs)) => {
                let before = mine.clone();
                mine.join(base, theirs, other_base).is_ok() && *mine != before
            }
            _ => false,
        }
    }

    pub(crate) fn strip(&mut self, base: &VersionVector) {
        match self {
            Self::Versions(versions) => versions.strip(base),
            Self::Merging(state) => state.strip(base),
        }
    }

    /// Calls `found` for each write that is live.
    pub(crate) fn visit(&self, found: &mut dyn FnMut(Dot)) {
        match self {
            Self::Versions(versions) => versions.as_slice().iter().for_each(|sibling| found(sibling.dot())),
            Self::Merging(state) => state.visit(found),
        }
    }

    /// Whether nothing has to be remembered of the key.
    pub(crate) fn is_void(&self) -> bool {
        match self {
            Self::Versions(versions) => versions.is_void(),
            Self::Merging(state) => state.is_bottom() && state.above().is_empty(),
        }
    }

    /// Whether there is nothing to decide, to collect, to fold or to strip.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Versions(versions) => versions.is_settled(),
            Self::Merging(state) => state.above().is_empty() && state.is_folded(),
        }
    }

    /// Whether only folding is left to do.
    pub(crate) fn is_unfolded(&self) -> bool {
        matches!(self, Self::Merging(state) if state.above().is_empty() && !state.is_folded())
    }

    /// Whether a fold now would make it smaller.
    pub(crate) fn folds(&self, stable: &VersionVector) -> bool {
        matches!(self, Self::Merging(state) if state.folds(stable))
    }

    /// Folds counters: see [`Counter::fold`](replikit_core::crdt::Counter::fold).
    pub(crate) fn fold(&mut self, stable: &VersionVector) {
        if let Self::Merging(state) = self {
            state.fold(stable);
        }
    }

    /// The oldest version here that another copy of the key does not have; of values that merge, nothing is known.
    pub(crate) fn missed_by(&self, other: &Self) -> Option<Stamp> {
        let (Self::Versions(mine), Self::Versions(theirs)) = (self, other) else { return None };
        let known = |dot| theirs.as_slice().iter().any(|sibling| sibling.dot() == dot);
        let missed = mine.as_slice().iter().filter(|sibling| !known(sibling.dot()));
        missed.map(|sibling| sibling.version.stamp).min()
    }

    /// What it has seen above the vector; `None` when nothing.
    pub(crate) fn above(&self) -> Option<&CausalContext> {
        match self {
            Self::Versions(versions) => versions.above(),
            Self::Merging(state) => Some(state.above()).filter(|above| !above.is_empty()),
        }
    }

    /// Whether all that is left to do is to wait for the logs.
    pub(crate) fn is_ahead(&self, base: &VersionVector) -> bool {
        let is_one = match self {
            Self::Versions(versions) => matches!(&versions.list, List::One(one) if !one.is_delete()),
            Self::Merging(state) => state.is_folded(),
        };
        is_one && self.above().is_some_and(|above| !base.covers(above.vector()))
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Versions(versions) => {
                versions.as_slice().iter().map(|one| 48 + one.version.value.as_ref().map_or(0, Bytes::len)).sum()
            }
            Self::Merging(_) => 64,
        }
    }

    /// What it takes on its way, in bytes, about.
    pub(crate) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Versions(_) => self.bytes(),
            Self::Merging(state) => state.encode().len(),
        }
    }

    /// What the key shows.
    pub(crate) fn found(&self, keyspace: &Keyspace) -> Found {
        let versions = match self {
            Self::Merging(state) if state.is_bottom() => return Found::default(),
            Self::Merging(state) => return Found { values: state.values(), ..Found::default() },
            Self::Versions(versions) => versions,
        };
        if let List::One(sibling) = &versions.list {
            let Version { stamp, value } = &sibling.version;
            return Found { values: value.iter().cloned().collect(), stamps: vec![*stamp], pending: WriteId(0) };
        }
        let (values, stamps) = match resolve(&keyspace.conflicts, keyspace.deletes(), &versions.versions()).live {
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

    /// What every owner that has applied the same writes has of the key as well: the last write where that wins, all versions
    /// elsewhere, with dots, times and values.
    pub(crate) fn decided(&self, key: &[u8], keyspace: &Keyspace) -> Decided {
        if self.above().is_some() {
            return Decided::Open;
        }
        // One piece behind the other, each seeded with those before: several times as fast as one stream of them.
        let mut hash = xxh3_64(key);
        let mut value = |value: &[u8], [first, second, third]: [u64; 3]| {
            let mut before = [0; 32];
            for (place, word) in before.chunks_exact_mut(8).zip([hash, first, second, third]) {
                place.copy_from_slice(&word.to_le_bytes());
            }
            hash = xxh3_64_with_seed(value, xxh3_64(&before));
        };
        match self {
            Self::Versions(versions) => {
                // Losers and deletes are dropped once everybody has them, which each owner learns at its own time.
                let last = versions.last().filter(|_| keyspace.is_lww());
                let kept = versions.as_slice().iter().map(|sibling| &sibling.version);
                let kept = kept.filter(|version| last.is_none_or(|last| last.stamp == version.stamp));
                let mut is_empty = true;
                for Version { stamp, value: kept } in kept {
                    let Some(kept) = kept else { continue };
                    is_empty = false;
                    value(kept, [stamp.time.0, u64::from(stamp.dot.origin.0), stamp.dot.sequence]);
                }
                if is_empty {
                    return Decided::Nothing;
                }
            }
            Self::Merging(state) if state.is_bottom() => return Decided::Nothing,
            Self::Merging(state) => {
                value(&[], [0, 0, state.mark()]);
                state.values().iter().for_each(|kept| value(kept, [0; 3]));
            }
        }
        Decided::Record(hash.max(1))
    }

    /// The values of this copy that another one does not have: lost, if that takes its place.
    pub(crate) fn lost_to(&self, other: &Self) -> Vec<Overwritten> {
        let (Self::Versions(mine), Self::Versions(theirs)) = (self, other) else { return Vec::new() };
        let newest = theirs.newest();
        let kept = |version: &Version| theirs.as_slice().iter().any(|other| other.version == *version);
        let lost = mine.as_slice().iter().map(|sibling| &sibling.version);
        let lost = lost.filter(|version| version.value.is_some() && !kept(version));
        let overwritten = |version: &Version| Overwritten {
            by: newest.unwrap_or(version.stamp),
            version: version.clone(),
            cause: Cause::Outvoted,
        };
        lost.map(overwritten).collect()
    }

    /// Equal for copies with the same versions, whatever else they have seen.
    pub(crate) fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        match self {
            Self::Versions(versions) => {
                for sibling in versions.as_slice() {
                    hash.write_u32(sibling.dot().origin.0);
                    hash.write_u64(sibling.dot().sequence);
                }
            }
            Self::Merging(state) => {
                hash.write_u64(state.mark());
                for value in state.values() {
                    hash.write_usize(value.len());
                    hash.write(&value);
                }
            }
        }
        hash.finish()
    }
}

/// What all owners that have applied the same writes make of a key, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Decided {
    /// Whatever has been applied: the key knows more than the logs have brought here, so nobody else need have the same.
    Open,
    /// Nothing: such a key may be absent. What is still kept of it, each owner drops at its own time.
    Nothing,
    /// A record with this hash, which is never 0.
    Record(u64),
}

impl Decided {
    /// What stands in the tree.
    pub(crate) const fn hash(self) -> u64 {
        match self {
            Self::Record(hash) => hash,
            Self::Open | Self::Nothing => 0,
        }
    }
}

/// A key's content as it travels and is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stored {
    Versions(Versions),
    Merging(CrdtKind, Bytes),
}

impl Stored {
    pub(crate) fn of(content: &Content) -> Self {
        match content {
            Content::Versions(versions) => Self::Versions(versions.clone()),
            Content::Merging(state) => Self::Merging(state.kind(), state.encode()),
        }
    }

    /// The same for another replica, whose audit is its own.
    pub(crate) fn for_others(content: &Content) -> Self {
        let mut stored = Self::of(content);
        if let Self::Versions(versions) = &mut stored {
            for sibling in versions.as_mut_slice() {
                sibling.audited = false;
            }
        }
        stored
    }

    /// The inverse; `None` for bytes that are no such value, or versions that do not ascend.
    pub(crate) fn content(self) -> Option<Content> {
        match self {
            Self::Versions(versions) => {
                let ascends = versions.as_slice().is_sorted_by(|one, other| one.dot() < other.dot());
                ascends.then_some(Content::Versions(versions))
            }
            Self::Merging(kind, bytes) => {
                CrdtState::decode(kind, &bytes).ok().map(|state| Content::Merging(Box::new(state)))
            }
        }
    }
}

/// A copy of a key on its way: the content, and the vector of the replica that it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCopy {
    pub(crate) base: VersionVector,
    pub(crate) stored: Stored,
}

impl KeyCopy {
    /// What it says, and the vector beside that; `None` when it is malformed, or no content of the keyspace.
    pub(crate) fn check(self, keyspace: &Keyspace) -> Option<(Content, VersionVector)> {
        let Self { base, stored } = self;
        let mut content = stored.content()?;
        content.shape(keyspace);
        let fits = match (&content, &keyspace.conflicts) {
            (Content::Merging(state), ConflictPolicy::Crdt(kind)) => {
                state.kind() == *kind && state.verify(&base).is_ok()
            }
            (Content::Versions(_), policy) => !matches!(policy, ConflictPolicy::Crdt(_)),
            (Content::Merging(_), _) => false,
        };
        fits.then_some((content, base))
    }
}

/// What a coordinator knows of a key, from all copies that it has heard of.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) base: VersionVector,
    pub(crate) content: Content,
}

impl Known {
    /// Nothing is known yet.
    pub(crate) fn nothing() -> Self {
        Self { base: VersionVector::new(), content: Content::default() }
    }

    /// Takes in another copy; `None` when it is malformed or of another shape.
    pub(crate) fn join(&mut self, copy: KeyCopy, keyspace: &Keyspace) -> Option<Content> {
        let (content, base) = copy.check(keyspace)?;
        self.content.shape(keyspace);
        self.agree(&content, &base);
        Some(content)
    }

    /// Another replica has the versions of `content`, and has seen this much of the key.
    pub(crate) fn agree(&mut self, content: &Content, seen: &VersionVector) {
        self.content.join(&self.base, content, seen);
        self.base.join(seen);
        self.content.strip(&self.base);
    }

    pub(crate) fn copy(&self) -> KeyCopy {
        KeyCopy { base: self.base.clone(), stored: Stored::for_others(&self.content) }
    }

    /// What a reader has seen.
    pub(crate) fn context(&self) -> CausalContext {
        let mut context = self.content.above().cloned().unwrap_or_default();
        context.fill(&self.base);
        context
    }
}
