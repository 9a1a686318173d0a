//! Causal contexts: what the writer of a version, or the reader of a key, has seen.
//!
//! Invariant: a [`CausalContext`] is an exact set of dots. It is never widened to "everything up to the largest": shipped to
//! a replica that holds the key's writes sparsely, a widened context would drop a sibling that nobody has seen. What a node
//! claims for a key is therefore its own base vector, together with what the key has seen above it ([`Seen`]); at rest the
//! second part is empty. Source: Almeida et al. 2014; stripping by the node's clock: Gonçalves et al., SRDS 2017.

use serde::{Deserialize, Serialize};

use crate::{Dot, DotRange, SequenceSet, VersionVector};

/// An exact set of dots that somebody has seen. Clients carry it from a read to the next write of the same key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct CausalContext(VersionVector);

impl CausalContext {
    /// Largest token that [`CausalContext::from_token`] looks at, in bytes.
    pub const TOKEN_BYTES_MAX: usize = 64 << 10;

    /// Nothing seen.
    #[must_use]
    pub const fn new() -> Self {
        Self(VersionVector::new())
    }

    /// Adds a dot; returns whether it is new. See [`VersionVector::insert`].
    pub fn insert(&mut self, dot: Dot) -> bool {
        self.0.insert(dot)
    }

    /// Adds a run of dots; of one that does not begin at or below its end, or that begins at 0, its last dot.
    pub(crate) fn insert_run(&mut self, run: DotRange) {
        if run.first == 0 || run.first >= run.last || run.last > Dot::SEQUENCE_MAX {
            self.insert(Dot { origin: run.origin, sequence: run.last });
            return;
        }
        let mut held = SequenceSet::new();
        held.insert_run(run.sequences());
        self.0.insert_all(run.origin, &held);
    }

    /// Whether the dot has been seen.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.0.contains(dot)
    }

    /// Whether everything seen there has been seen here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.covers(&other.0)
    }

    /// Adds everything seen there.
    pub fn join(&mut self, other: &Self) {
        self.0.join(&other.0);
    }

    /// Adds a node's vector: what goes into the context that a client gets, and on the wire.
    pub fn fill(&mut self, base: &VersionVector) {
        self.0.join(base);
    }

    /// Drops what a node's vector says anyway: what is kept at rest.
    pub fn strip(&mut self, base: &VersionVector) {
        if !self.0.is_empty() {
            self.0 = self.0.beyond(base);
        }
    }

    /// Whether nothing has been seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The dots as a vector.
    #[must_use]
    pub const fn vector(&self) -> &VersionVector {
        &self.0
    }

    /// The context as bytes for a client, which need not understand them.
    #[must_use]
    pub fn to_token(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.0).expect("a vector always encodes into memory")
    }

    /// The inverse of [`CausalContext::to_token`].
    ///
    /// # Errors
    /// [`ContextError`]; the token comes from a client and may be anything.
    pub fn from_token(token: &[u8]) -> Result<Self, ContextError> {
        if token.len() > Self::TOKEN_BYTES_MAX {
            return Err(ContextError::TooLarge { bytes: token.len() });
        }
        match postcard::take_from_bytes(token) {
            Ok((vector, [])) => Ok(Self(vector)),
            _ => Err(ContextError::Malformed),
        }
    }
}

impl From<VersionVector> for CausalContext {
    fn from(dots: VersionVector) -> Self {
        Self(dots)
    }
}

impl FromIterator<Dot> for CausalContext {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        Self(dots.into_iter().collect())
    }
}

/// Why bytes are no causal context. Blame: who sent them; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// More than [`CausalContext::TOKEN_BYTES_MAX`].
    #[error("a context token of {bytes} bytes is larger than {}", CausalContext::TOKEN_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not an encoded context.
    #[error("not a causal context")]
    Malformed,
}

/// What one side of a join has seen: a node's base vector and, above it, what the object itself has seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What the node holds of all keys, applied to them; empty for an object that carries its whole context itself.
    pub base: &'a VersionVector,
    /// What the object has seen besides.
    pub above: &'a CausalContext,
}

impl<'a> Seen<'a> {
    /// The object carries its whole context itself.
    #[must_use]
    pub const fn only(above: &'a CausalContext) -> Self {
        static NOTHING: VersionVector = VersionVector::new();
        Self { base: &NOTHING, above }
    }

    /// Whether this side has seen the dot.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.base.contains(dot) || self.above.contains(dot)
    }
}
