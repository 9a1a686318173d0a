//! What a member must have on disk.
//!
//! Invariant: records say what is at least so: applying one twice, or an older one after a newer one of the same key, changes
//! nothing. So replay needs no order between a snapshot and the log behind it.

use bytes::Bytes;
use replikit_core::{KEY_BYTES_MAX, NodeId};
use serde::{Deserialize, Serialize};

use super::ballot::Ballot;
use super::message::Life;
use super::register::Register;

/// The n-th [`Record`] since the process began, from 1, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RecordNumber(pub u64);

/// The state of one key at one acceptor.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Nothing below this ballot is accepted any more.
    pub promised: Ballot,
    /// The ballot of the value; [`Ballot::ZERO`] for a key of which nothing was accepted yet.
    pub accepted: Ballot,
    /// The value.
    pub register: Register,
    /// The record that this state depends on, of this process.
    #[serde(skip)]
    pub(super) recorded: RecordNumber,
}

impl Entry {
    /// Takes the higher promise and the later value of two entries; whether that changed anything.
    pub fn join(&mut self, other: &Self) -> bool {
        let mut changed = self.promise(other.promised);
        if other.accepted > self.accepted {
            (self.accepted, self.register) = (other.accepted, other.register.clone());
            changed = true;
        }
        changed
    }

    /// Without what it waits for here, which is nobody else's concern.
    pub(super) fn settled(self) -> Self {
        Self { recorded: RecordNumber::default(), ..self }
    }

    pub(super) fn promise(&mut self, ballot: Ballot) -> bool {
        let higher = ballot > self.promised;
        if higher {
            self.promised = ballot;
        }
        higher
    }
}

/// One thing to be kept in the replica's local stream, and in its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The proposer has begun for the n-th time.
    Started {
        /// n, from 1.
        start: u32,
    },
    /// The acceptor has forgotten what it had promised, answers nothing, and gathers it from the others.
    Joining {
        /// The life that begins.
        life: Life,
    },
    /// The acceptor answers.
    Serving {
        /// In this life.
        life: Life,
    },
    /// Another member had its state from this one, for a new life.
    Admitted {
        /// Who.
        node: NodeId,
        /// Which life.
        life: Life,
    },
    /// Nothing below this ballot is accepted any more.
    Promised {
        /// Which key.
        key: Bytes,
        /// Which ballot.
        ballot: Ballot,
    },
    /// The state of a key.
    Entry {
        /// Which key.
        key: Bytes,
        /// What is promised and accepted.
        entry: Entry,
    },
}

impl Record {
    /// Whether a member may take it over from another one.
    pub(super) fn is_given(&self) -> bool {
        match self {
            Self::Started { .. } | Self::Joining { .. } | Self::Serving { .. } => false,
            Self::Admitted { .. } => true,
            Self::Promised { key, ballot } => is_key(key) && ballot.round <= Ballot::ROUND_MAX,
            Self::Entry { key, entry } => {
                let rounds = [entry.promised.round, entry.accepted.round];
                is_key(key) && rounds.iter().all(|&round| round <= Ballot::ROUND_MAX) && entry.register.is_bounded()
            }
        }
    }
}

fn is_key(key: &Bytes) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
}
