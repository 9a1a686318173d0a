//! Dot stores, and the join that all causal types share.
//!
//! Invariant of the join: a dot of one side stays exactly if the other side has it too or has not seen it.
//! Source: Almeida, Shoker, Baquero 2018, figure 10.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{CausalContext, Dot, Seen, VersionVector};

/// Live dots and what they say.
pub trait DotStore: Clone + Default {
    /// Whether no dot is live: what a map drops.
    fn is_bottom(&self) -> bool;

    /// Calls `found` for every live dot, in any order.
    fn visit(&self, found: &mut dyn FnMut(Dot));

    /// Keeps what both sides have, and of either side what the other has not seen.
    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>);

    /// Tells two stores apart whose live writes are not the same, in constant time where the store can: equal for equal live
    /// dots, whatever was folded.
    fn mark(&self) -> u64 {
        let mut mark = 0_u64;
        self.visit(&mut |dot| mark = mark.wrapping_add(mark_of(dot)));
        mark
    }

    /// Adds every live dot to a context, with all that was folded into it: what a removal of this store has seen.
    fn collect_into(&self, context: &mut CausalContext) {
        self.visit(&mut |dot| {
            context.insert(dot);
        });
    }
}

/// What a live dot adds to [`DotStore::mark`]: the same on every machine and in every version.
pub(super) fn mark_of(dot: Dot) -> u64 {
    xxh3_64_with_seed(&dot.sequence.to_le_bytes(), dot.origin.0.into())
}

/// A dot store with the context of all dots that it has seen: a state, or a delta.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Causal<S> {
    /// What is live.
    pub store: S,
    /// What has been seen, live or not; above the node's base vector where one is given.
    pub context: CausalContext,
}

/// Why a peer's value cannot be taken. Blame: the peer; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CausalError {
    /// A live dot is not in the context: the value claims a write that it has not seen.
    #[error("sequence {} of origin {} is live but not seen", dot.sequence, dot.origin)]
    Unseen {
        /// The dot.
        dot: Dot,
    },
    /// The bytes are no value of the type.
    #[error("not a value of this type")]
    Malformed,
}

impl<S: DotStore> Causal<S> {
    /// Nothing seen, nothing live.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a state or a delta that carries its whole context.
    pub fn join(&mut self, other: &Self) {
        static NOTHING: VersionVector = VersionVector::new();
        self.join_at(&NOTHING, other, &NOTHING);
    }

    /// Takes in a state or a delta; both sides are stripped of what their node's base vector says.
    pub fn join_at(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) {
        let (seen, other_seen) =
            (Seen { base, above: &self.context }, Seen { base: other_base, above: &other.context });
        self.store.join(seen, &other.store, other_seen);
        self.context.join(&other.context);
        self.context.fill(other_base);
    }

    /// Makes a delta from the present state, joins it, and returns it for the others.
    pub fn mutate(&mut self, mutator: impl FnOnce(&S) -> Self) -> Self {
        let delta = mutator(&self.store);
        self.join(&delta);
        delta
    }

    /// Checks what came from a peer: every live dot must have been seen, in the context or in its base.
    ///
    /// # Errors
    /// [`CausalError::Unseen`].
    pub fn verify(&self, base: &VersionVector) -> Result<(), CausalError> {
        let seen = Seen { base, above: &self.context };
        let mut unseen = None;
        self.store.visit(&mut |dot| {
            if !seen.contains(dot) {
                unseen = Some(dot);
            }
        });
        unseen.map_or(Ok(()), |dot| Err(CausalError::Unseen { dot }))
    }
}

/// Dots that say nothing but that they are live.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DotSet(BTreeSet<Dot>);

impl DotSet {
    /// One dot.
    #[must_use]
    pub fn of(dot: Dot) -> Self {
        Self(BTreeSet::from([dot]))
    }
}

impl DotStore for DotSet {
    fn is_bottom(&self) -> bool {
        self.0.is_empty()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.0.iter().copied().for_each(found);
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let new: Vec<Dot> =
            other.0.iter().copied().filter(|dot| !self.0.contains(dot) && !seen.contains(*dot)).collect();
        self.0.retain(|dot| other.0.contains(dot) || !other_seen.contains(*dot));
        self.0.extend(new);
    }
}

/// Dots that each say one value. One dot says the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DotFun<V>(BTreeMap<Dot, V>);

impl<V> Default for DotFun<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> DotFun<V> {
    /// One dot.
    #[must_use]
    pub fn of(dot: Dot, value: V) -> Self {
        Self(BTreeMap::from([(dot, value)]))
    }

    /// Adds a dot; replaces what it said.
    pub fn insert(&mut self, dot: Dot, value: V) {
        self.0.insert(dot, value);
    }

    /// What a dot says, if it is live.
    #[must_use]
    pub fn get(&self, dot: Dot) -> Option<&V> {
        self.0.get(&dot)
    }

    /// Takes out what a context has seen, ascending by dot.
    pub fn discard(&mut self, seen: &CausalContext) -> Vec<(Dot, V)> {
        self.0.extract_if(.., |dot, _| seen.contains(*dot)).collect()
    }

    /// What is live, ascending by dot.
    pub fn iter(&self) -> impl Iterator<Item = (Dot, &V)> {
        self.0.iter().map(|(&dot, value)| (dot, value))
    }

    /// How many dots are live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no dot is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<V: Clone> DotStore for DotFun<V> {
    fn is_bottom(&self) -> bool {
        self.0.is_empty()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.0.keys().copied().for_each(found);
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let new: Vec<(Dot, V)> = other
            .iter()
            .filter(|(dot, _)| !self.0.contains_key(dot) && !seen.contains(*dot))
            .map(|(dot, value)| (dot, value.clone()))
            .collect();
        self.0.retain(|dot, _| other.0.contains_key(dot) || !other_seen.contains(*dot));
        self.0.extend(new);
    }
}

/// Dot stores by key; a key whose store has no live dot is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Ord + Deserialize<'de>, S: Deserialize<'de>"))]
pub struct DotMap<K, S>(BTreeMap<K, S>);

impl<K, S> Default for DotMap<K, S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, S> DotMap<K, S> {
    /// One key.
    #[must_use]
    pub fn of(key: K, store: S) -> Self {
        Self(BTreeMap::from([(key, store)]))
    }

    /// The store of a key, if it is present.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&S> {
        self.0.get(key)
    }

    /// The keys present, with their stores, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &S)> {
        self.0.iter()
    }

    /// The stores of all keys. A change must leave each with a live dot.
    pub(super) fn stores_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.0.values_mut()
    }

    /// The keys from `first` on, with their stores, ascending.
    pub fn iter_from(&self, first: &K) -> impl Iterator<Item = (&K, &S)> {
        self.0.range(first..)
    }

    /// How many keys are present.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no key is present.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Ord + Clone, S: DotStore> DotStore for DotMap<K, S> {
    fn is_bottom(&self) -> bool {
        self.0.values().all(DotStore::is_bottom)
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.0.values().for_each(|store| store.visit(found));
    }

    fn mark(&self) -> u64 {
        self.0.values().fold(0, |mark, store| mark.wrapping_add(store.mark()))
    }

    fn collect_into(&self, context: &mut CausalContext) {
        self.0.values().for_each(|store| store.collect_into(context));
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let mut left = gone(other, other_seen);
        self.join_present(seen, other, other_seen, &mut left);
        if left > 0 {
            self.join_absent(seen, other, other_seen);
        }
    }
}

/// How many dots one side of a join has seen and does not have. More than there are where it is known only that it may be many:
/// of a delta the dots are few, and counted.
pub(super) fn gone<S: DotStore>(store: &S, seen: Seen<'_>) -> u64 {
    if !seen.base.is_empty() {
        return u64::MAX;
    }
    let mut live = 0;
    store.visit(&mut |_| live += 1);
    seen.above.vector().len().saturating_sub(live)
}

impl<K: Ord + Clone, S: DotStore> DotMap<K, S> {
    /// The part of a join that is about the other side's keys. A dot is live at one key only, so those that are taken away here
    /// are counted off `left`: once that is 0, the other side has nothing to say of the keys that it does not have.
    pub(super) fn join_present(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>, left: &mut u64) {
        for (key, theirs) in &other.0 {
            let Some(mine) = self.0.get_mut(key) else {
                let mut mine = S::default();
                mine.join(seen, theirs, other_seen);
                if !mine.is_bottom() {
                    self.0.insert(key.clone(), mine);
                }
                continue;
            };
            if *left > 0 && *left < u64::MAX {
                let mut kept = BTreeSet::new();
                theirs.visit(&mut |dot| {
                    kept.insert(dot);
                });
                mine.visit(&mut |dot| {
                    *left -= u64::from(*left > 0 && other_seen.contains(dot) && !kept.contains(&dot));
                });
            }
            mine.join(seen, theirs, other_seen);
            if mine.is_bottom() {
                self.0.remove(key);
            }
        }
    }

    /// The part of a join that is about the keys that the other side does not have.
    pub(super) fn join_absent(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let bottom = S::default();
        self.0.retain(|key, mine| {
            if !other.0.contains_key(key) {
                mine.join(seen, &bottom, other_seen);
            }
            !mine.is_bottom()
        });
    }
}
