//! A client's request, whichever way it came in, and the two shapes of a good end.

use std::time::Duration;

use bytes::Bytes;
use replikit_core::{
    Admin, GroupId, Input, Outcome, Position, Reached, ReadError, ReadLevel, SessionSeq, Token, WriteError, WriteLevel,
};

use crate::slot::Ending;

/// A request on its way to a replica.
#[derive(Debug)]
pub(crate) enum Call {
    Command { group: GroupId, level: WriteLevel, session: Option<SessionSeq>, body: Bytes },
    OpenSession { group: GroupId },
    Query { group: GroupId, level: ReadLevel, body: Bytes, bytes_max: usize },
    Admin { group: GroupId, command: Admin },
}

impl Call {
    pub(crate) const fn group(&self) -> GroupId {
        match *self {
            Self::Command { group, .. }
            | Self::OpenSession { group }
            | Self::Query { group, .. }
            | Self::Admin { group, .. } => group,
        }
    }

    pub(crate) fn into_input<H>(self, token: Token) -> Input<H> {
        match self {
            Self::Command { group, level, session, body } => Input::Command { token, group, level, session, body },
            Self::OpenSession { group } => Input::OpenSession { token, group },
            Self::Query { group, level, body, bytes_max } => Input::Query { token, group, level, body, bytes_max },
            Self::Admin { group, command } => Input::Admin { token, group, command },
        }
    }
}

impl Ending for Outcome {
    fn abandoned() -> Self {
        Self::Indeterminate { reached: Reached::default() }
    }
}

/// An acknowledged command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Where it stands in the log; pass it on in a session token.
    pub at: Position,
    /// How far it had got when it was acknowledged.
    pub reached: Reached,
    /// Whether a true quorum of owners holds it.
    pub strict: bool,
    /// The state machine's reply; empty for levels that are acknowledged before the command is applied.
    pub reply: Bytes,
}

/// An answered query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the state machine answered; empty if it answered nothing.
    pub value: Bytes,
    /// What the answer has seen; pass it on in a session token.
    pub seen: Option<Position>,
    /// Whether a true quorum of owners answered.
    pub strict: bool,
    /// Upper bound of the answer's age, where known.
    pub staleness: Option<Duration>,
}

/// Reads the end of a write. An outcome of another kind of request cannot come from a sound replica and leaves open what
/// happened.
pub(crate) fn acked(outcome: Outcome) -> Result<Acked, WriteError> {
    match outcome {
        Outcome::Acked { at, reached, strict, reply } => Ok(Acked { at, reached, strict, reply }),
        Outcome::Rejected(rejection) => Err(rejection.into()),
        Outcome::Indeterminate { reached } => Err(WriteError::Indeterminate { reached }),
        Outcome::Value { .. } => Err(WriteError::Indeterminate { reached: Reached::default() }),
    }
}

/// Reads the end of a query.
pub(crate) fn answered(outcome: Outcome) -> Result<Answer, ReadError> {
    match outcome {
        Outcome::Value { mut values, seen, strict, staleness } => {
            let value = if values.is_empty() { Bytes::new() } else { values.swap_remove(0) };
            Ok(Answer { value, seen, strict, staleness })
        }
        Outcome::Rejected(rejection) => Err(rejection.into()),
        Outcome::Indeterminate { .. } | Outcome::Acked { .. } => Err(ReadError::TimedOut),
    }
}

/// Reads the reply to the opening of a session: its id in 8 bytes, little endian.
pub(crate) fn session_id(reply: &[u8]) -> Option<replikit_core::SessionId> {
    Some(replikit_core::SessionId(u64::from_le_bytes(reply.try_into().ok()?)))
}
