//! The client's side of key-value data: the one trait that every strategy's handle, the TCP client and the partition router
//! implement, and the only thing that the bench harness knows.

use core::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::crdt::CrdtOp;
use crate::{CausalContext, Guarantees, LogIndex, Position, Reached, ReadLevel, Rejection, SessionSeq, WriteLevel};

/// What to do to one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WriteOp {
    /// Set the value.
    Put {
        /// The new value.
        value: Bytes,
    },
    /// Remove the key. Removing an absent key is no error.
    Delete,
    /// Replace the value if it is the expected one; `None` stands for an absent key, on either side.
    CompareAndSet {
        /// What must be there.
        expected: Option<Bytes>,
        /// What shall be there.
        new: Option<Bytes>,
    },
    /// Add to a counter, which is a decimal integer of 64 bits; an absent key counts as 0.
    Add {
        /// How much; may be negative.
        delta: i64,
    },
    /// Change a value of a type that merges without loss, in strategies and keyspaces that have such values.
    Crdt {
        /// How.
        op: CrdtOp,
    },
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// Which key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// What to do.
    pub op: WriteOp,
    /// When it counts as done.
    pub level: WriteLevel,
    /// For exactly-once retries; filled in by the client library.
    pub session: Option<SessionSeq>,
    /// What the client had read of this key: see [`ReadResult::context`]. The write replaces what is in it and stands beside
    /// the rest. For strategies with concurrent versions, at puts and deletes; ignored where one leader orders all writes.
    pub context: Option<CausalContext>,
}

/// Largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

impl WriteRequest {
    /// Sets a key at level `Quorum`.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::new(key.into(), WriteOp::Put { value: value.into() })
    }

    /// Removes a key at level `Quorum`.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::new(key.into(), WriteOp::Delete)
    }

    /// Replaces a value at level `Quorum` if it is the expected one.
    pub fn compare_and_set(key: impl Into<Bytes>, expected: Option<Bytes>, new: Option<Bytes>) -> Self {
        Self::new(key.into(), WriteOp::CompareAndSet { expected, new })
    }

    /// Adds to a counter at level `Quorum`.
    pub fn add(key: impl Into<Bytes>, delta: i64) -> Self {
        Self::new(key.into(), WriteOp::Add { delta })
    }

    /// Changes a value of a mergeable type at level `Quorum`.
    pub fn crdt(key: impl Into<Bytes>, op: CrdtOp) -> Self {
        Self::new(key.into(), WriteOp::Crdt { op })
    }

    /// The same write, made by somebody who had read this much of the key: [`WriteRequest::context`].
    #[must_use]
    pub fn over(mut self, context: CausalContext) -> Self {
        self.context = Some(context);
        self
    }

    /// The same write at another level.
    #[must_use]
    pub const fn at(mut self, level: WriteLevel) -> Self {
        self.level = level;
        self
    }

    const fn new(key: Bytes, op: WriteOp) -> Self {
        Self { key, op, level: WriteLevel::Quorum, session: None, context: None }
    }
}

/// One read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Which key.
    pub key: Bytes,
    /// How fresh.
    pub level: ReadLevel,
}

impl ReadRequest {
    /// Reads a key, linearizably.
    pub fn new(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), level: ReadLevel::Linearizable }
    }

    /// The same read at another level.
    #[must_use]
    pub fn at(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }
}

/// A scan over a range of keys, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The first key wanted.
    pub from: Bytes,
    /// The first key no longer wanted; `None` means to the end.
    pub to: Option<Bytes>,
    /// Most keys in one page, at least 1.
    pub limit: u32,
    /// How fresh.
    pub level: ReadLevel,
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it stands; pass it on in a session token.
    pub at: Position,
    /// How far it had got when it was acknowledged.
    pub reached: Reached,
    /// Whether a true quorum of owners holds it.
    pub strict: bool,
    /// What the operation found; `None` when the level is acknowledged before the write is applied.
    pub effect: Option<WriteEffect>,
}

/// What an applied write found and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteEffect {
    /// The operation was carried out.
    Done,
    /// A compare-and-set found another value, which is this; nothing was changed.
    Mismatch {
        /// What was there.
        found: Option<Bytes>,
    },
    /// The counter's new value.
    Counter {
        /// The sum.
        value: i64,
    },
    /// An addition to a value that is not a decimal integer, or whose sum does not fit; nothing was changed.
    NotACounter,
    /// This keyspace does not have the operation; nothing was changed.
    Unsupported,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadResult {
    /// One value, several siblings, or none.
    pub values: Vec<Bytes>,
    /// What the answer has seen.
    pub seen: Option<Position>,
    /// Whether a true quorum of owners answered.
    pub strict: bool,
    /// Upper bound of the answer's age, where known.
    pub staleness: Option<Duration>,
    /// What the answer has seen of this key, to be carried to the next write of it with [`WriteRequest::over`]: that write
    /// then replaces these values. `None` in strategies without concurrent versions.
    pub context: Option<CausalContext>,
}

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Page {
    /// Keys and values, ascending by key.
    pub items: Vec<(Bytes, Bytes)>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Bytes>,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cursor {
    /// The oldest change that is still kept.
    Oldest,
    /// After this index of the group's log.
    After(LogIndex),
    /// Only what is committed from now on, as the replica that is asked knows it.
    Newest,
}

/// One committed command, as it stands in the log. Commands that change nothing stand there as well: a compare-and-set that
/// found another value, and a retry of a request whose first attempt had been logged already, which carries the same
/// [`Change::session`] as that one and was not applied again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where it stands; [`Change::cursor`] resumes behind it.
    pub at: Position,
    /// Whose request it is, when the client has a session.
    pub session: Option<SessionSeq>,
    /// The command, as it was replicated; [`decode_write`](crate::keyspace::decode_write) reads one of the keyspace.
    pub command: Bytes,
}

impl Change {
    /// Where a later subscription goes on, at any replica.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        Cursor::After(self.at.id.index)
    }
}

/// A running subscription.
#[async_trait]
pub trait Changes: Send {
    /// The next committed change, in log order, each once; waits for it. A call that is dropped before it ends loses nothing.
    ///
    /// # Errors
    /// [`SubscribeError`]; the subscription has ended, and every later call says so again.
    async fn next(&mut self) -> Result<Change, SubscribeError>;
}

/// Why a write did not end in an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// It had no effect and never will. State unchanged.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It may have taken effect or may do so later. Blame: peers or network. Retry under the same session to learn which.
    #[error("the write may or may not have taken effect")]
    Indeterminate {
        /// How far it is known to have got.
        reached: Reached,
    },
    /// A system that is reached through this trait refused, and says why in words of its own. State unchanged.
    #[error("{why}")]
    Refused {
        /// Its words.
        why: String,
    },
    /// No node could be reached within the time; the request was never sent. State unchanged.
    #[error("no node of the cluster can be reached: {last}")]
    Unreachable {
        /// What the last attempt ended with.
        last: String,
    },
}

/// Why a read has no answer. A read never changes state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The replica refused, and says why.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No answer came in time. Blame: peers or network.
    #[error("no answer in time")]
    TimedOut,
    /// No node could be reached within the time.
    #[error("no node of the cluster can be reached: {last}")]
    Unreachable {
        /// What the last attempt ended with.
        last: String,
    },
}

/// Why a subscription ended. Nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The changes asked for are no longer kept: the reader was slower than the retention allows. Begin again from a snapshot.
    #[error("changes before index {first} are no longer kept")]
    Lagged {
        /// The oldest change that is kept.
        first: LogIndex,
    },
    /// The replica refused, and says why.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The node is gone.
    #[error("the node has stopped")]
    Closed,
    /// The disk of this replica cannot read the changes any more. Blame: storage. Another replica has them: go on there.
    #[error("entries {first} to {last} cannot be read at this replica any more")]
    Faulty {
        /// The first of them.
        first: LogIndex,
        /// The last of them.
        last: LogIndex,
    },
    /// No node could be reached within the time. Go on later behind the last change.
    #[error("no node of the cluster can be reached: {last}")]
    Unreachable {
        /// What the last attempt ended with.
        last: String,
    },
}

/// Replicated key-value data, whatever the strategy behind it.
#[async_trait]
pub trait Store: Send + Sync {
    /// Writes one key.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::Indeterminate`] leaves the effect open.
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError>;

    /// Reads one key.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError>;

    /// Reads a range of keys, one page.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn scan(&self, scan: ScanRequest) -> Result<Page, ReadError>;

    /// Follows committed changes, at the replica that is asked: as far as it has committed and applied them, never an entry
    /// that may still be lost. A subscriber that is slower than the log is written holds back its compaction, up to the
    /// log's retention; beyond that it lags.
    ///
    /// # Errors
    /// [`SubscribeError`].
    async fn subscribe(&self, from: Cursor) -> Result<Box<dyn Changes>, SubscribeError>;

    /// What this store promises as it is set up, for writes at the given level.
    fn guarantees(&self, level: WriteLevel) -> Guarantees;
}
