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
use replikit_core::{Epoch, GroupId, LogIndex};
use serde::{Deserialize, Serialize};

use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId};
use crate::map::{Change, Handoff, Partition};
use crate::span::Span;

pub use holdings::{Copied, DEPARTED_MAX, Held, Holdings, NotHere, Phase, Refusal, Staged};
pub use source::Source;
pub use target::Target;

/// A target asks for the seal once so few entries of the source's log are left to copy.
pub const BACKLOG_ENTRIES_MAX: u64 = 64;

/// About so many bytes are in one piece of a copy.
pub const PIECE_BYTES: usize = 64 << 10;

/// Pieces that a source sends for one question: while they are written into the target's log, no time is lost for the next question.
pub const PIECES_WINDOW: usize = 4;

/// Most entries in one answer with a tail.
pub const TAIL_ENTRIES_MAX: usize = 1_024;

/// About so many bytes are in one answer with a tail: more than in a piece, for one follows the other only once it is in the target's
/// log, and tails have to come faster than writes.
pub const TAIL_BYTES: usize = 512 << 10;

/// After every so many tails the target asks for the seal with twice as much left to copy: the writes come as fast as it copies them,
/// and a longer gap is better than no end.
pub const TAILS_PATIENT: u32 = 32;

/// What a group writes into its own log for handoffs. Applied in order by every replica: see [`Holdings::apply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Splits, merges and placements of a map: these entries take the place of what the group holds of the same positions. A stretch
    /// that does not cover exactly what some partitions cover that take writes here changes nothing.
    Recut {
        /// The map. Older than one whose splits and merges are in the log already: nothing changes.
        epoch: Epoch,
        /// In the order of their spans.
        entries: Vec<Partition>,
    },
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
        /// The map that says so.
        epoch: Epoch,
        /// Where what was handed off is by that map, for those who still ask here.
        now: Vec<Partition>,
    },
    /// Target: a piece of what there is in the span, in the order of keys. The first piece takes the place of what was staged
    /// before, unless that is newer; every other one has to fit behind the piece before it.
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
        /// The source's log index when the first piece was read. Later pieces may show later writes, which the tail repeats.
        at: LogIndex,
        /// The last key of the piece before; none for the first.
        after: Option<Bytes>,
        /// What [`SourceStore::piece`] gave.
        piece: Piece,
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
        /// The partition as the decision has made it.
        entry: Partition,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// For pieces of everything.
    Piece {
        /// Behind this key; from the first on if there is none.
        after: Option<Bytes>,
    },
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
    /// A piece of everything.
    Piece {
        /// The source's log index when it was read.
        at: LogIndex,
        /// The last key of the piece before.
        after: Option<Bytes>,
        /// The piece.
        piece: Piece,
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
    /// What was written behind the asked index is not known any more: the copy has to begin anew.
    Compacted,
    /// No more reads are served.
    Granted,
    /// The source has cleaned.
    Cleaned,
}

/// A seal in the source's log, as its leader tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its index.
    pub at: LogIndex,
    /// The digest of everything in the span at it.
    pub digest: u64,
}

/// Some of what there is in a span, in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// In the encoding of the group's state machine.
    pub items: Bytes,
    /// The last key in it, if there may be more behind it.
    pub through: Option<Bytes>,
}

/// What was written in a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// In the encoding of the group's state machine, at most [`TAIL_ENTRIES_MAX`].
    pub entries: Vec<Bytes>,
    /// Everything up to this index is in it.
    pub to: LogIndex,
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
    /// The first of what there is in the span behind a key, as applied: data and the answers given to clients' requests, about
    /// `bytes_max` bytes of it, at least one key.
    fn piece(&self, span: &Span, after: Option<&[u8]>, bytes_max: usize) -> Piece;

    /// What was written in the span behind `after` and up to `to`, the oldest first, as far as one answer takes; none when that is
    /// not known any more. Only writes that were admitted when they were applied: one that was refused under an
    /// earlier seal must not be carried out at the target. An entry may show later writes of its key already.
    fn tail(&self, span: &Span, after: LogIndex, to: LogIndex) -> Option<Tail>;

    /// A digest of the data in the span. Of a span that was read in pieces from its beginning it should be at hand: it is asked for
    /// while nobody can write.
    fn digest(&self, span: &Span) -> u64;
}

/// What a group's state machine does when it applies handoff records: deterministic, called on every replica.
pub trait TargetStore: SourceStore {
    /// Begins to stage, apart and not visible; what was staged for this handoff before goes.
    fn stage_anew(&mut self, handoff: HandoffId);

    /// Takes a piece's items, or an entry of a tail, into what is staged.
    fn stage_entry(&mut self, handoff: HandoffId, entry: &[u8]);

    /// The digest of what is staged; that of the source at the same index if nothing was lost. To be at hand too.
    fn staged_digest(&self, handoff: HandoffId) -> u64;

    /// Makes what is staged visible.
    fn publish(&mut self, handoff: HandoffId);

    /// Throws what is staged away.
    fn discard(&mut self, handoff: HandoffId);

    /// Removes everything in the span.
    fn remove(&mut self, span: &Span);

    /// Removes everything that is visible: the group holds nothing any more. As soon as a write would be, whatever there was.
    fn clear(&mut self);
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
