//! What became of a request: typed, no guessing.
//!
//! Invariant: every request ends in exactly one [`Outcome`]. [`Outcome::Rejected`] means that the request had no effect
//! and never will; [`Outcome::Indeterminate`] says that it may take effect later.

use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Epoch, LogIndex, NodeId, Position, Term, WriteLevel};

/// How far a write got, in replicas, the one that answers counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Reached {
    /// Replicas known to have received it.
    pub received: u8,
    /// Replicas known to have it on disk.
    pub durable: u8,
    /// Replicas known to have applied it.
    pub applied: u8,
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A write is acknowledged at the level it asked for.
    Acked {
        /// Where it stands in the log.
        at: Position,
        /// How far it had got at that moment.
        reached: Reached,
        /// Whether a true quorum of owners holds it (false for sloppy quorums and for levels below `Quorum`).
        strict: bool,
        /// The state machine's answer; empty for levels that are acknowledged before the write is applied.
        reply: Bytes,
    },
    /// A read's answer.
    Value {
        /// One value, several siblings, or none.
        values: Vec<Bytes>,
        /// What the answer has seen; pass it to the next request.
        seen: Option<Position>,
        /// Whether a true quorum of owners answered.
        strict: bool,
        /// Upper bound of the answer's age; `None` when the replica cannot tell.
        staleness: Option<Duration>,
    },
    /// It may have taken effect, or may take effect later. Retry under the same session id to learn which.
    Indeterminate {
        /// How far it is known to have got.
        reached: Reached,
    },
    /// It had no effect and never will.
    Rejected(Rejection),
}

/// Why a request had no effect. These are expected answers of the protocol, not errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// This replica does not lead. Retry at the hinted one.
    #[error("not the leader{}", hint(.leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// A queue is at its limit. Retry later; the limit is a setting.
    #[error("busy: {queue} is at its limit of {limit}")]
    Busy {
        /// Which queue.
        queue: Queue,
        /// Its limit, in the queue's unit.
        limit: u64,
    },
    /// The request is larger than the group accepts.
    #[error("request of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The level cannot be met by this group, for example more copies than it has replicas.
    #[error("level {level:?} cannot be met by a group of {replicas} replicas")]
    Unreachable {
        /// The level asked for.
        level: WriteLevel,
        /// Replicas of the group.
        replicas: u8,
    },
    /// The session is unknown or too old: its earlier requests can no longer be told from new ones. Open a new session;
    /// requests of the old one that are still in doubt stay in doubt.
    #[error("the session has expired")]
    SessionExpired,
    /// A write that the session token has seen was lost: it had been acknowledged below `Quorum` by a leader that is gone.
    #[error("a write at index {index} of term {term} that this session has seen was lost with its leader")]
    LostWrites {
        /// Term of the lost write.
        term: Term,
        /// Index of the lost write.
        index: LogIndex,
    },
    /// The replica cannot prove that it is fresh enough.
    #[error("this replica cannot bound its staleness by {bound:?}")]
    TooStale {
        /// The bound asked for.
        bound: Duration,
    },
    /// The routing information is of another epoch.
    #[error("the route is stale: epoch {current} is in force")]
    StaleRoute {
        /// The epoch in force here.
        current: Epoch,
    },
    /// This replica's storage failed; it acknowledges nothing any more.
    #[error("this replica's storage failed")]
    StorageFailed,
    /// This kind of request does not exist in this strategy.
    #[error("this strategy does not support the request")]
    Unsupported,
    /// The state machine or keyspace does not understand the request.
    #[error("the request is malformed")]
    Malformed,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// This replica may have forgotten what it wrote, and finds out from the others before it takes writes. Retry at another
    /// one, or later.
    #[error("this replica has to catch up with the others before it takes writes")]
    CatchingUp,
    /// Too few replicas answered in time, and none was asked to keep anything of the request. Retry later, or at another one.
    #[error("too few replicas answered in time")]
    NoQuorum,
    /// A page at several owners would have to hold keys that are compared and set, which no page shows as they are read alone. Ask
    /// for ranges without them, or for a page of one owner, which leaves them out.
    #[error("keys of this range are compared and set: ask for a range without them, or at level local")]
    MixedRange,
}

fn hint(leader: &Option<NodeId>) -> String {
    leader.map_or_else(String::new, |leader| format!("; node {leader} is"))
}

/// The queues whose limits can reject a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Queue {
    /// Bytes of commands not yet committed.
    UncommittedBytes,
    /// Requests waiting in the node's inbox.
    Inbox,
    /// Reads waiting for their index.
    Reads,
    /// Requests of one session in flight.
    SessionWindow,
    /// Subscribers of one node.
    Subscriptions,
    /// Writes waiting for other replicas.
    Acknowledgements,
    /// Versions of one key beside each other.
    Siblings,
}

impl core::fmt::Display for Queue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::UncommittedBytes => "uncommitted bytes",
            Self::Inbox => "inbox",
            Self::Reads => "waiting reads",
            Self::SessionWindow => "session window",
            Self::Subscriptions => "subscriptions",
            Self::Acknowledgements => "writes waiting for other replicas",
            Self::Siblings => "siblings of one key",
        })
    }
}
