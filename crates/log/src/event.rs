//! What the log tells an operator.

use core::ops::{Range, RangeInclusive};

use replikit_core::{Batches, LogIndex, Position, StreamId, Term};

use crate::{DiskError, FileName};

/// Something about the log that an operator wants to know. Nothing here needs to be handled for safety.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogEvent {
    /// At this start the last group was torn, which nothing proves to have been durable, and was cut.
    TailCut {
        /// The segment.
        file: FileName,
        /// Where the cut group began, in bytes; the end is the last byte that is not zero.
        bytes: Range<u64>,
        /// The streams that may have lost their last batches.
        streams: Vec<StreamId>,
    },
    /// One of two copies was damaged; the other was good.
    CopyDamaged {
        /// The file.
        file: FileName,
        /// Where the damaged copy begins, in bytes.
        offset: u64,
    },
    /// A dropped suffix of a stream was kept beside the log.
    LostKept {
        /// Its stream.
        stream: StreamId,
        /// Its indices.
        range: RangeInclusive<LogIndex>,
        /// Term of the first of them.
        term: Term,
        /// Where it is kept.
        file: FileName,
    },
    /// The next segment could not be prepared for lack of space. Writes go on while the current one has room.
    NoSpace {
        /// Bytes that were needed.
        segment_bytes: u64,
    },
    /// A snapshot is durable and has taken the place of the older one of its group.
    SnapshotDurable {
        /// The last entry that it holds.
        at: Position,
        /// Its size.
        snapshot_bytes: u64,
    },
    /// A disk operation failed; the log accepts and confirms nothing any more.
    Failed {
        /// What failed.
        operation: &'static str,
        /// How.
        error: DiskError,
    },
}

/// One change data capture cursor over a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u64);

/// What a change data capture cursor passed.
#[derive(Clone, Debug)]
pub enum Tail {
    /// Whole batches in order, durable here and committed; none when there is nothing new.
    Batches(Batches),
    /// The subscriber fell further behind than the log retains. The cursor stands at the first index that is left; what
    /// lay before it must come from a snapshot or a read of the state.
    Lagged {
        /// First index that can be read.
        first: LogIndex,
    },
    /// The entries at the cursor cannot be read any more; the cursor stays.
    Faulty(RangeInclusive<LogIndex>),
}
