//! What clients want, and how a strategy family is asked for it.
//!
//! Invariant: a want says nothing of a family; what a family has no word for, its dialect does not say.

use bytes::Bytes;
use replikit_core::{Input, ReadLevel, Replica, SessionSeq, Token, WriteLevel, WriteOp};

/// One write, as a client wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedWrite {
    /// Which key.
    pub key: Bytes,
    /// What to do to it. Values that are put and amounts that are added are unique in the run.
    pub op: WriteOp,
    /// When it counts as done.
    pub level: WriteLevel,
    /// For clients that ask again.
    pub session: Option<SessionSeq>,
}

/// One read, as a client wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedRead {
    /// Which key.
    pub key: Bytes,
    /// How fresh.
    pub level: ReadLevel,
}

/// How a strategy family is asked to write and read a key.
pub trait Dialect<R: Replica> {
    /// A write of a key.
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<R::Head>;

    /// A read of a key.
    fn read(&mut self, token: Token, read: &WantedRead) -> Input<R::Head>;

    /// What a read found, from the values of its outcome.
    ///
    /// # Errors
    /// A sentence, when the answer is none.
    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String>;

    /// Opens a session; `None` in families without sessions.
    fn open_session(&mut self, token: Token) -> Option<Input<R::Head>> {
        let _ = token;
        None
    }

    /// The same write sent where nobody serves its key; `None` in families without routes.
    fn misroute(&mut self, token: Token, write: &WantedWrite) -> Option<Input<R::Head>> {
        let _ = (token, write);
        None
    }

    /// A request of these bytes, which mean nothing; `None` in families whose requests are typed.
    fn garbage(&mut self, token: Token, bytes: Bytes) -> Option<Input<R::Head>> {
        let _ = (token, bytes);
        None
    }

    /// Has a node take a snapshot now; `None` in families without it.
    fn snapshot(&mut self, token: Token) -> Option<Input<R::Head>> {
        let _ = token;
        None
    }
}
