//! Dotted version vector sets: the concurrent versions of one key, and what the key has seen.
//!
//! Invariant: a version is present exactly if its write is known and no known write or delete had seen it; neither a false
//! conflict nor a lost sibling. Dots are node-wide, so a key that was collected and written again never takes an old write
//! for a new one. At rest (everything below the node's base vector) a key without conflict is one pair of dot and value.
//! Source: Almeida, Baquero, Gonçalves, Preguiça, Fonte 2014; node-wide dots and strip/fill: Gonçalves et al., SRDS 2017.

use serde::{Deserialize, Serialize};

use crate::crdt::{DotFun, DotStore};
use crate::{CausalContext, Dot, Seen, VersionVector};

/// The concurrent versions of one key.
///
/// `base` in the methods is the vector of the node that keeps this copy: it must say only what has been applied to the keys,
/// gaps included. A copy on its way to another node travels with its sender's base, or is [filled](Dvvs::fill) with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dvvs<V> {
    context: CausalContext,
    versions: DotFun<V>,
}

impl<V> Default for Dvvs<V> {
    fn default() -> Self {
        Self { context: CausalContext::new(), versions: DotFun::default() }
    }
}

impl<V: Clone> Dvvs<V> {
    /// A key that nobody has written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A write: `value` replaces every version that `seen` contains and stands beside the others. Applies local writes, and
    /// those of others in any order and any number of times: a dot that is known already changes nothing but what the context
    /// covers. Returns the versions that were replaced, ascending by dot. Comes before the dot is added to the base.
    ///
    /// `seen` is the context that the writer got when it read this key (empty for a blind write); never the context of
    /// another key.
    pub fn update(&mut self, base: &VersionVector, dot: Dot, seen: &CausalContext, value: V) -> Vec<(Dot, V)> {
        let known = Seen { base, above: &self.context }.contains(dot);
        let replaced = self.discard(seen);
        if !known {
            self.context.insert(dot);
            self.versions.insert(dot, value);
        }
        replaced
    }

    /// A delete, or any other way to say that what was seen is gone. Returns the versions that went, ascending by dot. A
    /// delete is a write too: its own dot is added to the context with [`Dvvs::mark`].
    pub fn discard(&mut self, seen: &CausalContext) -> Vec<(Dot, V)> {
        let gone = self.versions.discard(seen);
        self.context.join(seen);
        gone
    }

    /// Takes note of a dot without a value.
    pub fn mark(&mut self, dot: Dot) {
        self.context.insert(dot);
    }

    /// Takes in another copy of the key, with its sender's base. Commutative, associative and idempotent. Returns the own
    /// versions that the other side had seen replaced, ascending by dot.
    pub fn join(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) -> Vec<(Dot, V)> {
        let other_seen = Seen { base: other_base, above: &other.context };
        let replaced = self
            .versions
            .iter()
            .filter(|(dot, _)| other_seen.contains(*dot) && other.versions.get(*dot).is_none())
            .map(|(dot, value)| (dot, value.clone()))
            .collect();
        self.versions.join(Seen { base, above: &self.context }, &other.versions, other_seen);
        self.context.join(&other.context);
        self.context.fill(other_base);
        replaced
    }

    /// Drops from the context what the node's base says anyway. Call it when the base has grown past the key's writes.
    pub fn strip(&mut self, base: &VersionVector) {
        self.context.strip(base);
    }

    /// The inverse of [`Dvvs::strip`] before the key leaves the node without its base.
    pub fn fill(&mut self, base: &VersionVector) {
        self.context.fill(base);
    }

    /// What a reader of this copy has seen: hand it out with the versions, and take it back with the next write.
    #[must_use]
    pub fn context(&self, base: &VersionVector) -> CausalContext {
        let mut context = self.context.clone();
        context.fill(base);
        context
    }

    /// What the key has seen above the node's base; empty at rest.
    #[must_use]
    pub const fn above(&self) -> &CausalContext {
        &self.context
    }

    /// The concurrent versions, ascending by dot.
    pub fn versions(&self) -> impl Iterator<Item = (Dot, &V)> {
        self.versions.iter()
    }

    /// How many versions there are: 0 when absent, 1 without conflict.
    #[must_use]
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether the key has no version.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions.len() == 0
    }

    /// Whether the entry says nothing any more and may be dropped: no version, and no context above the base.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.is_empty() && self.context.is_empty()
    }
}
