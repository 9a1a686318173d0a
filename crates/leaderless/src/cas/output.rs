//! What a member wants done, and what it tells.

use replikit_core::{NodeId, Token};

use super::ballot::Ballot;
use super::change::Effect;
use super::message::Message;
use super::record::{Record, RecordNumber};

/// What the driver of a [`Cas`](super::Cas) has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutput {
    /// Append the record to the local stream, then call [`Cas::handle_durable`](super::Cas::handle_durable).
    Persist {
        /// Its number.
        number: RecordNumber,
        /// The record.
        record: Record,
    },
    /// Send a message. It may be lost, doubled and overtaken.
    Send {
        /// To whom; never this node.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// A request has ended.
    Ended {
        /// Which.
        token: Token,
        /// How.
        end: End,
    },
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It took effect.
    Done {
        /// What it found and did.
        effect: Effect,
        /// The ballot of the value that it made or saw.
        ballot: Ballot,
        /// How many members are known to have that value on disk.
        reached: u8,
    },
    /// No quorum answered in time. It had no effect and never will.
    TimedOut,
    /// No quorum answered in time, or too much has happened since. It may have taken effect, or may yet.
    Indeterminate,
}

/// Why a request was not taken in. It has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CasRefusal {
    /// Too much is under way. Blame: load. Retry later.
    #[error("{requests_max} requests are under way")]
    Busy {
        /// The limit: of this node, or of the key.
        requests_max: usize,
    },
    /// The key or a value is larger than a keyspace takes, or the key is empty. Blame: caller.
    #[error("{bytes} bytes are not within 1 to {bytes_max}")]
    Size {
        /// Bytes of the part that is at fault.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// How a member begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As a founding member of a group in which nothing was ever promised, or with all that its disk ever held: whether it
    /// answers at once depends on what it recovered.
    Whole,
    /// Its disk may have forgotten something, or it is new in a group that has begun: it joins first.
    Forgetful,
}

/// Counts since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CasStats {
    /// Questions to all members: round trips.
    pub rounds: u64,
    /// Proposals that needed no first phase.
    pub one_trip: u64,
    /// Reads, or batches of them, that a query answered.
    pub query_reads: u64,
    /// Proposals refused by too many.
    pub conflicts: u64,
    /// Questions asked again.
    pub resends: u64,
    /// Messages dropped: damaged, of another epoch, or above a limit.
    pub dropped: u64,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CasSizes {
    /// Requests under way at this node.
    pub requests: usize,
    /// Keys of which the acceptor has promised or accepted something.
    pub keys: usize,
    /// Keys whose next proposal takes one round trip.
    pub leases: usize,
    /// Bytes of those.
    pub lease_bytes: usize,
    /// Messages that wait for the disk.
    pub held: usize,
}
