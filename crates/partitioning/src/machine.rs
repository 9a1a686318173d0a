//! What a group of a partitioned store replicates: the log of maps in one group, data in all others.
//!
//! Invariant: which of the two a group is never changes. Groups of one container have one type; an enum rather than a box, so that
//! a write costs no indirect call, and the two kinds stay known to who asks.

use bytes::Bytes;
use replikit_core::{LogIndex, RestoreError, SnapshotSource, StateMachine};

use crate::meta::MetaMachine;
use crate::shard::{Keyed, Shard};

/// The state machine of any group of a partitioned store.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one log of maps in a store")]
pub enum GroupMachine<M> {
    /// The log of maps.
    Maps(MetaMachine),
    /// Data.
    Data(Shard<M>),
}

impl<M> GroupMachine<M> {
    /// The log of maps, if it is that.
    pub const fn maps(&self) -> Option<&MetaMachine> {
        match self {
            Self::Maps(maps) => Some(maps),
            Self::Data(_) => None,
        }
    }

    /// The data, if it is that.
    pub const fn data(&self) -> Option<&Shard<M>> {
        match self {
            Self::Maps(_) => None,
            Self::Data(shard) => Some(shard),
        }
    }
}

impl<M: Keyed> StateMachine for GroupMachine<M> {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        match self {
            Self::Maps(maps) => maps.apply(at, command),
            Self::Data(shard) => shard.apply(at, command),
        }
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        match self {
            Self::Maps(maps) => maps.query(query, bytes_max),
            Self::Data(shard) => shard.query(query, bytes_max),
        }
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        match self {
            Self::Maps(maps) => maps.snapshot(),
            Self::Data(shard) => shard.snapshot(),
        }
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        match self {
            Self::Maps(maps) => maps.restore(chunk, last),
            Self::Data(shard) => shard.restore(chunk, last),
        }
    }
}
