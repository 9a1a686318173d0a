//! Disk operations: the small closed set that the log emits and a driver carries out.
//!
//! Invariant: the log knows no file system. All it assumes of a disk is written on [`DiskOp`] and [`Lane`]; real files
//! ([`FileDisk`](crate::FileDisk)), an in-memory disk ([`MemDisk`](crate::MemDisk)) and a simulator's faulty disk carry
//! out the same operations.

use core::fmt;

use bytes::Bytes;

/// Name of a file in the log's flat directory: ASCII letters, digits, `-` and `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Box<str>);

impl FileName {
    /// A name.
    ///
    /// # Panics
    /// When it is empty or holds any other character, such as a path separator.
    #[must_use]
    pub fn new(name: &str) -> Self {
        assert!(
            !name.is_empty()
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
            "{name:?} is not a name in a flat directory"
        );
        Self(name.into())
    }

    /// A name found in a directory; `None` when the log cannot have written it.
    #[must_use]
    pub fn found(name: &str) -> Option<Self> {
        let plain = !name.is_empty()
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        plain.then(|| Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An open file. Chosen by who opens it, unique among the files opened through one disk since the log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// Which operations must stay in order: those of one lane are carried out in the order in which they were handed out, those
/// of different lanes in any order or at once. A driver with one thread may treat all lanes as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The write and the sync of a group: what clients wait for. At most one write and one sync at a time.
    Commit,
    /// Segment preparation, sealing, snapshots, lost suffixes. At most one operation at a time.
    Background,
    /// Reads of old log entries and snapshots; in no order. At most
    /// [`READS_IN_FLIGHT_MAX`](crate::READS_IN_FLIGHT_MAX) at a time.
    Read,
}

/// Matches a disk operation with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId {
    /// Unique since the log was opened.
    pub number: u64,
    /// What it must stay in order with.
    pub lane: Lane,
}

/// A disk operation on a flat directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Create a file, empty, and open it for reading and writing. Fails with [`DiskError::Exists`] when there is one.
    Create {
        /// What it is called from now on.
        file: FileId,
        /// Its name.
        name: FileName,
    },
    /// Open a file that exists, for reading and writing. Answered by [`DiskAnswer::Opened`].
    Open {
        /// What it is called from now on.
        file: FileId,
        /// Its name.
        name: FileName,
    },
    /// Write all buffers one behind the other, extending the file where they pass its end. A crash before a later
    /// [`DiskOp::Sync`] of the file returned may keep any subset of the sectors. Answered by [`DiskAnswer::Written`].
    Write {
        /// Which file.
        file: FileId,
        /// Where the first byte goes.
        offset: u64,
        /// What to write.
        buffers: Vec<Bytes>,
    },
    /// Make all completed writes to this file survive a crash, and its length. Not its name: see [`DiskOp::SyncDir`].
    Sync {
        /// Which file.
        file: FileId,
    },
    /// Read exactly this many bytes, or fewer where the file ends. Answered by [`DiskAnswer::Read`].
    Read {
        /// Which file.
        file: FileId,
        /// Where the first byte stands.
        offset: u64,
        /// How many.
        bytes: usize,
    },
    /// Forget an open file.
    Close {
        /// Which file.
        file: FileId,
    },
    /// Give a file another name, in place of a file that may have that name. Open files stay open.
    Rename {
        /// Its name so far.
        from: FileName,
        /// Its name from now on.
        to: FileName,
    },
    /// Remove a file. Open files stay open until closed.
    Remove {
        /// Its name.
        name: FileName,
    },
    /// Make all completed creations, renames and removals survive a crash.
    SyncDir,
    /// List all files. Answered by [`DiskAnswer::Listed`].
    List,
}

/// What a disk operation that succeeded has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAnswer {
    /// It was carried out.
    Done,
    /// All bytes were written. The vector of the operation comes back, emptied, so that the log can use it again.
    Written {
        /// Empty; its capacity is what counts.
        buffers: Vec<Bytes>,
    },
    /// The file is open.
    Opened {
        /// Its length.
        bytes: u64,
    },
    /// The bytes; fewer than asked for only at the end of the file.
    Read(Bytes),
    /// Names and lengths of all files, ascending by name.
    Listed(Vec<(FileName, u64)>),
}

/// Why a disk operation failed. Blame: the disk or its owner, unless said otherwise. The log never retries a write or a
/// sync that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// There is no file of this name. At run time: somebody else removed it.
    #[error("no such file")]
    NotFound,
    /// There is a file of this name already.
    #[error("the file exists already")]
    Exists,
    /// The file system is full or a quota is reached.
    #[error("no space left on the disk")]
    NoSpace,
    /// The file system is mounted read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// The process may not do that.
    #[error("permission denied")]
    Denied,
    /// Another process uses the directory.
    #[error("another process uses this directory")]
    Locked,
    /// The device or the file system reports an error.
    #[error("input/output error (os error {code})")]
    Io {
        /// The operating system's error number; 0 when there is none.
        code: i32,
    },
}

/// Carries out disk operations one at a time. Whoever drives a log implements it, or maps it onto threads.
pub trait Disk {
    /// Carries out one operation; may block.
    ///
    /// # Errors
    /// [`DiskError`] says why it was not carried out, or not known to be.
    fn execute(&mut self, op: DiskOp) -> Result<DiskAnswer, DiskError>;
}
