//! Identities and positions: newtypes, never bare integers, so that swapped arguments do not compile.
//!
//! Invariant: a [`LogIndex`] counts from 1 within its [`StreamId`]; 0 stands before the first entry and is never the index
//! of one. A [`Term`] never goes back on one replica. Source: Raft (Ongaro and Ousterhout, ATC'14) section 5.1 and 5.3.

use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! integer_newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

integer_newtype!(
    /// One node of a cluster: a process that holds copies of data. Chosen by the operator, unique in the cluster.
    NodeId(u32), "n"
);
integer_newtype!(
    /// One replication group: the set of replicas that hold the same data.
    GroupId(u32), "g"
);
integer_newtype!(
    /// Who writes a stream of a group: see [`StreamId`].
    OriginId(u32), "o"
);
integer_newtype!(
    /// Election number; the logical clock of leaders. Source: Raft section 5.1.
    Term(u64), "t"
);
integer_newtype!(
    /// Position of an entry in its stream, from 1. In a dotted stream the log index is the dot's sequence.
    LogIndex(u64), "i"
);
integer_newtype!(
    /// Version of a membership or of a partition's ownership.
    Epoch(u64), "e"
);
integer_newtype!(
    /// Matches a client's request with its outcome; chosen by the driver, unique among its open requests.
    Token(u64), "k"
);
integer_newtype!(
    /// Matches a log or snapshot read with its answer; chosen by the replica.
    Ticket(u64), "r"
);
integer_newtype!(
    /// The n-th [`Persist`](crate::Persist) of this replica since it was opened, from 1, without gaps.
    WriteId(u64), "w"
);
integer_newtype!(
    /// One client session, for exactly-once retries. Assigned by the group: the log index of its registration.
    SessionId(u64), "s"
);

impl OriginId {
    /// The group's own log, ordered by consensus.
    pub const CONSENSUS: Self = Self(0);
    /// What this node has put away for itself for a while, never replicated.
    pub const STASH: Self = Self(1);
    /// This node's own records, never replicated.
    pub const LOCAL: Self = Self(u32::MAX);
}

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; [`LogIndex::ZERO`] stays.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// This index advanced by a number of entries.
    #[must_use]
    pub const fn plus(self, entries: u64) -> Self {
        Self(self.0 + entries)
    }
}

impl Term {
    /// The term after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl WriteId {
    /// The write after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One stream of entries in the shared log: a group's consensus log ([`OriginId::CONSENSUS`]), a node's own records
/// ([`OriginId::LOCAL`], [`OriginId::STASH`]), or the writes of one origin (an index into the group's table of node incarnations).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct StreamId {
    /// The group that the stream belongs to.
    pub group: GroupId,
    /// Who writes it.
    pub origin: OriginId,
}

impl StreamId {
    /// The consensus log of a group.
    #[must_use]
    pub const fn consensus(group: GroupId) -> Self {
        Self { group, origin: OriginId::CONSENSUS }
    }

    /// The stream as one integer, as it stands in a batch header: group in the upper 32 bits.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        (self.group.0 as u64) << 32 | self.origin.0 as u64
    }

    /// The inverse of [`StreamId::to_u64`].
    #[must_use]
    pub const fn from_u64(packed: u64) -> Self {
        Self { group: GroupId((packed >> 32) as u32), origin: OriginId(packed as u32) }
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            OriginId::CONSENSUS => write!(f, "{}/consensus", self.group),
            OriginId::STASH => write!(f, "{}/stash", self.group),
            OriginId::LOCAL => write!(f, "{}/local", self.group),
            OriginId(origin) => write!(f, "{}/{origin}", self.group),
        }
    }
}

/// An entry's identity in a consensus log: two logs that agree on a `LogId` agree on everything before it (Raft 5.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogId {
    /// The term in which the entry was created.
    pub term: Term,
    /// Where it stands.
    pub index: LogIndex,
}

impl LogId {
    /// Before the first entry.
    pub const ZERO: Self = Self { term: Term(0), index: LogIndex::ZERO };
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term.0, self.index.0)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Where an acknowledged write stands. The term is in it, and the digest of the batch that holds the entry, so that a
/// holder of the position can tell later whether that very write is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The stream that holds the entry.
    pub stream: StreamId,
    /// The entry.
    pub id: LogId,
    /// [`Batch::digest`](crate::Batch::digest) of the batch that holds the entry: equal digests, equal prefix.
    pub digest: u64,
}

/// Identity of a cluster: seeds every checksum, so that bytes of another cluster never verify.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(u64);

impl ClusterId {
    /// The identity that belongs to a cluster's name.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
    }

    /// The identity as an integer, as it stands in file headers and handshakes.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`ClusterId::to_u64`].
    #[must_use]
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a cluster knows of one of its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Who.
    pub id: NodeId,
    /// Where peers and clients reach it, as `host:port`.
    pub address: String,
    /// Failure domain of the first order, for example a data centre. Empty when there is only one.
    pub region: String,
    /// Failure domain within the region, for example a rack. Empty when there is only one.
    pub zone: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_survive_packing() {
        for stream in [
            StreamId::default(),
            StreamId { group: GroupId(7), origin: OriginId::LOCAL },
            StreamId { group: GroupId(u32::MAX), origin: OriginId(3) },
        ] {
            assert_eq!(StreamId::from_u64(stream.to_u64()), stream);
        }
    }

    #[test]
    fn log_ids_order_by_term_before_index() {
        let long_old = LogId { term: Term(1), index: LogIndex(9) };
        let short_new = LogId { term: Term(2), index: LogIndex(1) };
        assert!(short_new > long_old, "the up-to-date check of Raft 5.4.1 compares terms first");
    }
}
