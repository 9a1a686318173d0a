//! Why a log cannot be opened.

use core::fmt;
use core::ops::{Range, RangeInclusive};

use replikit_core::{ClusterId, LogIndex, NodeId, StreamId};

use crate::{ConfigError, DiskError, FileName};

/// Why a log cannot be opened. Nothing on disk was changed, and nothing is overwritten by trying again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A setting cannot work. Blame: the caller.
    #[error("the log cannot be opened with these settings: {0}")]
    Config(ConfigError),
    /// The directory holds the log of another cluster. Blame: who chose the directory or the cluster name.
    #[error(
        "the directory belongs to cluster {found:?}, not {expected:?}: give the right cluster name or another directory"
    )]
    WrongCluster {
        /// The cluster whose log it is.
        found: ClusterId,
        /// The cluster asked for.
        expected: ClusterId,
    },
    /// The directory holds the log of another node. Blame: who chose the directory or the node id.
    #[error("the directory belongs to node {found}, not {expected}: give the right node id or another directory")]
    WrongNode {
        /// The node whose log it is.
        found: NodeId,
        /// The node asked for.
        expected: NodeId,
    },
    /// A file was written by a newer version of this program. Blame: who went back to an older version.
    #[error("{file} has format version {found}, this program reads up to {supported}: use the newer program")]
    NewerVersion {
        /// The file.
        file: FileName,
        /// Its version.
        found: u8,
        /// The newest version that this code reads.
        supported: u8,
    },
    /// Bytes that were durable are damaged: entries that may have been acknowledged would be lost. Blame: the disk.
    #[error("{0}: restore the file, or remove the whole directory and let the node catch up from its peers")]
    Corrupt(Damage),
    /// The disk reports an error. Blame: the disk, its space or its permissions.
    #[error("cannot {operation} {file}: {error}")]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// On which file; the directory is called `directory`.
        file: FileName,
        /// How it failed.
        error: DiskError,
    },
}

/// Where durable bytes are damaged, and what they held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: FileName,
    /// The damaged bytes, as narrow as can be told.
    pub bytes: Range<u64>,
    /// What does not hold.
    pub what: &'static str,
    /// The entries that stood there, where the neighbourhood or the segment's footer tells.
    pub entries: Vec<(StreamId, RangeInclusive<LogIndex>)>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged at bytes {}..{} ({}", self.file, self.bytes.start, self.bytes.end, self.what)?;
        for (stream, range) in &self.entries {
            write!(f, "; stream {stream} entries {}..={}", range.start(), range.end())?;
        }
        f.write_str(")")
    }
}
