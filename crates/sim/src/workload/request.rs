//! One request, from its beginning to its acknowledgement.
//!
//! Invariant: a request keeps the time of its first attempt; all attempts under a session are one request.

use bytes::Bytes;
use replikit_core::{NodeId, Position, Time, Token, WriteLevel};

use super::dialect::{WantedRead, WantedWrite};
use crate::check::OperationId;

/// What a client waits for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A new session.
    Session,
    /// A read.
    Read {
        /// Which.
        read: WantedRead,
        /// Its place in the history, if it has one.
        operation: Option<OperationId>,
    },
    /// A write.
    Write {
        /// Which.
        write: WantedWrite,
        /// Its place in the history, if it has one.
        operation: Option<OperationId>,
        /// How often it was asked for.
        attempts: u32,
    },
    /// Something whose end is of no interest.
    Odd,
}

/// A request under way.
#[derive(Clone, Debug)]
pub struct Request {
    /// When the client first asked.
    pub began: Time,
    /// The node asked last.
    pub node: NodeId,
    /// What for.
    pub asked: Asked,
    pub(super) token: Token,
    // A second copy under way.
    pub(super) twin: Option<Token>,
}

impl Request {
    /// Whether a second copy is under way.
    #[must_use]
    pub const fn has_twin(&self) -> bool {
        self.twin.is_some()
    }
}

/// An acknowledged write and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckedWrite {
    /// What was written.
    pub write: WantedWrite,
    /// Where it stands.
    pub at: Position,
    /// Who acknowledged it.
    pub by: NodeId,
    /// When.
    pub when: Time,
    /// The answer.
    pub reply: Bytes,
}

/// Whether an acknowledgement at this level means that the write is never lost.
#[must_use]
pub const fn is_lasting(level: WriteLevel) -> bool {
    matches!(level, WriteLevel::Quorum | WriteLevel::Applied(_))
}
