//! Equal logs make equal states: whoever has applied the same entries holds the same state.
//!
//! Source: Schneider 1990, *Implementing Fault-Tolerant Services Using the State Machine Approach*.

use core::fmt;
use std::collections::BTreeMap;

use replikit_core::{LogIndex, NodeId, StateMachine};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A fingerprint of a state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StateHash(pub u64);

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl StateHash {
    /// Of these bytes.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }

    /// Of a state machine: of the bytes of its snapshot, however they are cut into pieces.
    pub fn of_machine(machine: &impl StateMachine) -> Self {
        let (mut hash, mut source) = (Xxh3::new(), machine.snapshot());
        while let Some(piece) = source.next(1 << 20) {
            hash.update(&piece);
        }
        Self(hash.digest())
    }
}

/// Two replicas with the same applied index and different states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at applied index {index}, node {other} has state {found:?} where node {first} had {expected:?}")]
pub struct Diverged {
    /// Up to which entry both have applied.
    pub index: LogIndex,
    /// Who was there first.
    pub first: NodeId,
    /// Its state.
    pub expected: StateHash,
    /// Who came later; the same node, if it came by again after a restart.
    pub other: NodeId,
    /// Its state.
    pub found: StateHash,
}

/// What states were seen at which applied index. An eventually consistent family may use any number that names a set of
/// applied writes in the index's place.
#[derive(Clone, Debug, Default)]
pub struct Convergence {
    seen: BTreeMap<LogIndex, (StateHash, NodeId)>,
}

impl Convergence {
    /// A replica has applied everything up to `index` and holds this state.
    ///
    /// # Errors
    /// [`Diverged`] when somebody held another one there.
    pub fn observe(&mut self, node: NodeId, index: LogIndex, state: StateHash) -> Result<(), Diverged> {
        let (expected, first) = *self.seen.entry(index).or_insert((state, node));
        if expected == state { Ok(()) } else { Err(Diverged { index, first, expected, other: node, found: state }) }
    }

    /// How many indices were seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}
