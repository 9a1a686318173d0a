//! What a driver needs of a log, whatever is behind it.

use replikit_core::{
    Batch, Boot, GroupId, Input, LogAnswer, LogIndex, Persist, Position, SnapshotAnswer, StorageEvent, StreamId,
    Ticket, WriteId,
};

use bytes::Bytes;

use crate::{LogEvent, SubscriptionId, Tail};

/// What a log says to its driver.
#[derive(Debug)]
pub enum LogOutput {
    /// All storage actions up to this one are durable, in the sense of [`Storage::persist`].
    Durable {
        /// The newest of them.
        up_to: WriteId,
    },
    /// Answer to [`Storage::read_log`].
    LogRead {
        /// Which read.
        ticket: Ticket,
        /// Its stream.
        stream: StreamId,
        /// What was found.
        answer: LogAnswer,
    },
    /// Answer to [`Storage::read_snapshot`].
    SnapshotRead {
        /// Which read.
        ticket: Ticket,
        /// What was found.
        answer: SnapshotAnswer,
    },
    /// Answer to [`Log::tail`](crate::Log::tail).
    Tail {
        /// Whose cursor moved.
        subscription: SubscriptionId,
        /// What it passed.
        tail: Tail,
    },
    /// Goes to the replica as [`Input::Storage`].
    Storage(StorageEvent),
    /// For the operator.
    Event(LogEvent),
}

impl LogOutput {
    /// The input that it becomes, if the replica is concerned: what the log says to the operator and to subscribers is not.
    #[must_use]
    pub fn into_input<H>(self) -> Option<Input<H>> {
        match self {
            Self::Durable { up_to } => Some(Input::Durable { up_to }),
            Self::LogRead { ticket, stream, answer } => Some(Input::LogRead { ticket, stream, answer }),
            Self::SnapshotRead { ticket, answer } => Some(Input::SnapshotRead { ticket, answer }),
            Self::Storage(event) => Some(Input::Storage { event }),
            Self::Tail { .. } | Self::Event(_) => None,
        }
    }
}

/// The driver's side of a log. Implemented by [`Log`](crate::Log), whose disk operations the driver carries out as well, and
/// by [`MemoryLog`](crate::MemoryLog), which has no disk.
pub trait Storage {
    /// Takes a storage action. Called in the order of their ids, which count from 1 without gaps since the log was opened.
    /// Never blocks. Answered by one [`LogOutput::Durable`] watermark, in FIFO order.
    ///
    /// Two actions count as durable before they are on disk, because nothing that is acknowledged depends on them, and a
    /// group commit must not wait for them: [`Persist::Snapshot`] (a [`Persist::Release`] of its group that comes after it
    /// takes effect only once the snapshot is durable) and every [`Persist::SnapshotChunk`] but the last (an unfinished
    /// snapshot is dropped at a restart). From the last chunk on, nothing becomes durable before the whole snapshot is.
    ///
    /// After a crash the log holds a prefix of the actions that includes all durable ones, but for one thing: a register of the
    /// write that was under way may be there although the batches before it are not.
    fn persist(&mut self, id: WriteId, op: Persist);

    /// Reads whole batches from the one that holds `from` (or the first behind it) on, at least one, at most `bytes_max`
    /// bytes if more than one. Answered by [`LogOutput::LogRead`], possibly out of order.
    fn read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32);

    /// Reads a piece of the newest durable snapshot of a group, which must be the one at `at` if that is given. Answered by
    /// [`LogOutput::SnapshotRead`], possibly out of order.
    fn read_snapshot(&mut self, ticket: Ticket, group: GroupId, at: Option<Position>, offset: u64, bytes_max: u32);

    /// The next thing to hand on; drain until `None`.
    fn poll(&mut self) -> Option<LogOutput>;
}

/// What recovery pushes into a replica before anything else, in this order: the chunks of each snapshot, then the batches in
/// append order over all streams.
#[derive(Clone, Debug)]
pub enum RecoveryItem {
    /// A chunk of the newest durable snapshot of a group.
    SnapshotChunk {
        /// The last entry that the snapshot holds.
        at: Position,
        /// The next bytes of it.
        chunk: Bytes,
        /// Whether they are the last.
        last: bool,
    },
    /// A batch.
    Batch(Batch),
}

impl RecoveryItem {
    /// The input that pushes it.
    #[must_use]
    pub fn into_input<H>(self) -> Input<H> {
        match self {
            Self::SnapshotChunk { at, chunk, last } => Input::RecoverSnapshot { at, chunk, last },
            Self::Batch(batch) => Input::Recover { batch },
        }
    }
}

/// What a log says about each group before recovery is pushed.
#[derive(Clone, Debug, Default)]
pub struct Boots {
    pub(crate) incarnation: u32,
    pub(crate) groups: std::collections::BTreeMap<GroupId, Boot>,
}

impl Boots {
    /// How many unclean starts the log has seen.
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// What is known of a group; of one that never wrote anything, only the incarnation.
    #[must_use]
    pub fn of(&self, group: GroupId) -> Boot {
        self.groups.get(&group).cloned().unwrap_or(Boot { incarnation: self.incarnation, ..Boot::default() })
    }

    /// The groups that have left something in the log, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &Boot)> {
        self.groups.iter().map(|(group, boot)| (*group, boot))
    }
}
