//! Handoff: a partition goes from the group that orders its writes to another one, while clients go on.
//!
//! The protocol (research section 4.2; the parts are those of Valkey's atomic slot migration, MongoDB's move-chunk and Cassandra's
//! TCM), with a source, a target, and the log of maps that alone decides:
//!
//! | step | who | durable when it is done |
//! |---|---|---|
//! | plan | anybody | [`Change::PlanHandoff`] in the log of maps |
//! | copy | target asks, source reads | [`Record::Stage`] and [`Record::Tail`] in the target's log: not visible yet |
//! | seal | target asks once little is left | [`Record::Seal`] in the source's log: writes before it are in, after it none is taken |
//! | prepare | target has everything up to the seal, and the digests are equal | [`Record::Prepared`] in the target's log |
//! | grant | target asks, source serves no more reads | nothing: a source that was started anew has granted |
//! | decide | target | [`Change::CommitHandoff`], if nobody's [`Change::AbortHandoff`] came first |
//! | clean | target opens, source drops; or source unseals, target discards | [`Record::Open`], [`Record::Drop`]; [`Record::Unseal`], [`Record::Discard`] |
//! | forget | target, once both have cleaned | [`Change::ForgetHandoff`] |
//!
//! Invariants:
//!
//! - Whether a group takes a write is decided by [`Holdings`], a fold over its own log, where the write is ordered: at every moment at
//!   most one group takes writes for a key (I2).
//! - The copied state includes the answers given to clients' requests: a retry at the target is known there (I4).
//! - The decision is one compare-and-set in the log of maps; no timer decides anything. Anybody may abort at any time before it.
//! - Everything that must survive is a [`Record`]; the drivers [`Source`] and [`Target`] remember hints only, may be thrown away
//!   at any time, and take up again from holdings and map. Every message may be lost, doubled, delayed or reordered.
//! - A handoff that is over for a group is fenced there: no late message makes it seal or stage again.
//!
//! Between seal and open neither takes writes: a gap, never an overlap. Its length is the seal's append, half a round trip
//! for the rest of the tail, the slower of prepare's append and grant's round trip, the decision, and half a round trip for the
//! notice: 4 round trips.
//!
//! The groups are abstract here: [`SourceStore`] and [`TargetStore`] are what a group's state machine has to offer.

mod holdings;
mod source;
mod target;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use replikit_core::{GroupId, LogIndex};
use serde::{Deserialize, Serialize};

use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId};
use crate::map::{Change, Handoff};
use crate::span::Span;

pub use holdings::{Held, Holdings, NotHere, Phase, Staged};
pub use source::Source;
pub use target::Target;

/// A target asks for the seal once so few entries of the source's log are left to copy.
pub const BACKLOG_ENTRIES_MAX: u64 = 64;

/// Most entries in one answer with a tail.
pub const TAIL_ENTRIES_MAX: usize = 1_024;

/// What a group writes into its own log for handoffs. Applied in order by every replica: see [`Holdings::apply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Source: no write behind this one is taken for the partition.
    Seal {
        /// Which handoff.
        handoff: HandoffId,
        /// What is sealed: under which bounds it was planned.
        partition: PartitionId,
        /// Which life of it.
        birth: Birth,
        /// Under which bounds.
        bounds: BoundsVersion,
    },
    /// Source: the handoff was aborted; writes are taken again, and the handoff can never seal again.
    Unseal {
        /// Which handoff.
        handoff: HandoffId,
        /// Of which partition.
        partition: PartitionId,
    },
    /// Source: the handoff was committed; the data goes.
    Drop {
        /// Which handoff.
        handoff: HandoffId,
        /// Of which partition.
        partition: PartitionId,
    },
    /// Target: everything of the span as it was at the source behind `at`. Takes the place of what was staged before, unless that
    /// is newer.
    Stage {
        /// Which handoff.
        handoff: HandoffId,
        /// Of which partition.
        partition: PartitionId,
        /// Which life of it.
        birth: Birth,
        /// The bounds version that it has at the source.
        bounds: BoundsVersion,
        /// What it covers.
        span: Span,
        /// The source's log index up to which the snapshot goes.
        at: LogIndex,
        /// Data, answers to clients, open intents: what [`SourceStore::snapshot`] gave.
        snapshot: Bytes,
    },
    /// Target: what followed at the source, behind `after` up to and with `to`.
    Tail {
        /// Which handoff.
        handoff: HandoffId,
        /// Where it goes on. A tail that does not fit there does nothing.
        after: LogIndex,
        /// Up to where it goes.
        to: LogIndex,
        /// The span's entries in it.
        entries: Vec<Bytes>,
    },
    /// Target: everything up to the source's seal is here.
    Prepared {
        /// Which handoff.
        handoff: HandoffId,
        /// The seal's index in the source's log.
        sealed: LogIndex,
    },
    /// Target: the handoff was committed; what was staged is visible and takes requests.
    Open {
        /// Which handoff.
        handoff: HandoffId,
    },
    /// Target: the handoff was aborted; what was staged goes, and the handoff can never stage again.
    Discard {
        /// Which handoff.
        handoff: HandoffId,
        /// Of which partition.
        partition: PartitionId,
    },
}

/// From the target to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// For everything.
    Snapshot,
    /// For what follows an index of the source's log.
    Tail {
        /// Which.
        after: LogIndex,
    },
    /// To take no more writes.
    Seal,
    /// To serve no more reads.
    Grant,
    /// Whether it has cleaned.
    Cleaned,
}

/// From the source to the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Everything as it was behind an index of the source's log.
    Snapshot {
        /// The index.
        at: LogIndex,
        /// The bytes.
        snapshot: Bytes,
    },
    /// What followed.
    Tail {
        /// Where it goes on.
        after: LogIndex,
        /// Up to where it goes: the seal's index, if nothing is left behind it.
        to: LogIndex,
        /// The span's entries in it.
        entries: Vec<Bytes>,
        /// Entries of the log that are left behind it.
        left: u64,
        /// The seal, if there is one.
        seal: Option<Seal>,
    },
    /// The log behind the asked index is compacted: a snapshot is needed.
    Compacted,
    /// No more reads are served.
    Granted,
    /// The source has cleaned.
    Cleaned,
}

/// A seal in the source's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its index.
    pub at: LogIndex,
    /// The digest of everything in the span at it.
    pub digest: u64,
}

/// A question or an answer about a handoff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter<T> {
    /// Which handoff.
    pub handoff: HandoffId,
    /// The question or answer.
    pub body: T,
}

/// What a driver wants done. Each may be lost, and is asked for again when the driver is polled again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<T> {
    /// Append a record to this group's own log.
    Propose(Record),
    /// Send to the other group's driver.
    Send(GroupId, Letter<T>),
    /// Ask the log of maps for a change; a refusal needs no answer.
    Decide(Change),
}

/// What a group that gives a partition away has to offer: reads only, answered from what it has applied.
pub trait SourceStore {
    /// Everything of the span as applied: data, the answers given to clients' requests, open intents.
    fn snapshot(&self, span: &Span) -> Bytes;

    /// Entries of the span in the group's log behind `after` and at most `to`, the oldest first, at most `entries_max`, each with
    /// its index; none when the log behind `after` is compacted. Only entries that were admitted when they were applied: one that was
    /// refused under an earlier seal must not be carried out at the target.
    fn tail(&self, span: &Span, after: LogIndex, to: LogIndex, entries_max: usize) -> Option<Vec<(LogIndex, Bytes)>>;

    /// A digest of all that [`Self::snapshot`] holds.
    fn digest(&self, span: &Span) -> u64;
}

/// What a group's state machine does when it applies handoff records: deterministic, called on every replica.
pub trait TargetStore: SourceStore {
    /// Keeps a snapshot apart, not visible, in place of what was staged for this handoff.
    fn stage(&mut self, handoff: HandoffId, snapshot: &[u8]);

    /// Applies an entry of the source's log to what is staged, by the rules by which the source applied it.
    fn stage_entry(&mut self, handoff: HandoffId, entry: &[u8]);

    /// The digest of what is staged; that of the source at the same index if nothing was lost.
    fn staged_digest(&self, handoff: HandoffId) -> u64;

    /// Makes what is staged visible.
    fn publish(&mut self, handoff: HandoffId);

    /// Throws what is staged away.
    fn discard(&mut self, handoff: HandoffId);

    /// Removes everything in the span.
    fn remove(&mut self, span: &Span);
}

/// What a map says about a handoff that a group takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The map is older than the handoff, or it is not decided.
    Open,
    Committed,
    Aborted,
}

fn verdict(handoff: &Handoff) -> Verdict {
    match handoff.decision {
        crate::map::Decision::Open => Verdict::Open,
        crate::map::Decision::Committed => Verdict::Committed,
        crate::map::Decision::Aborted => Verdict::Aborted,
    }
}
