//! What a user brings to single-leader replication: a deterministic state machine.
//!
//! Invariant that the user keeps: `apply` depends on nothing but the state and the command, so that every replica that
//! applied the same log holds the same state. Source: Schneider 1990, state machine approach.

use core::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{LogIndex, SnapshotSource};

/// A snapshot could not be read. Blame: the peer or disk it came from, or a machine of another version; the machine's state
/// is void until a whole snapshot was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot cannot be read: {what}")]
pub struct RestoreError {
    /// What is wrong with it.
    pub what: &'static str,
}

/// A deterministic state machine. The replica owns it and applies committed commands inline, in log order.
pub trait StateMachine: Send + 'static {
    /// Applies a committed command and returns the reply to its client. Called once per entry, in index order. Must not
    /// panic on any command: it came from a client. Must not block.
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes;

    /// Answers a query without changing anything; the answer is at most `bytes_max` bytes. Must not panic on any query.
    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes;

    /// A cheap handle on the state as it is now: no copy of the whole state here, for this runs between two commands.
    fn snapshot(&self) -> Box<dyn SnapshotSource>;

    /// Takes the next piece of a snapshot; the first piece after creation or after a `last` one begins anew.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not a snapshot of this machine.
    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError>;
}

/// A snapshot that lies in memory already.
#[derive(Debug)]
pub struct BytesSource(Bytes);

impl BytesSource {
    /// A source that hands out these bytes.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl SnapshotSource for BytesSource {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let take = self.0.len().min(bytes_max.max(1));
        (take > 0).then(|| self.0.split_to(take))
    }
}

/// A state machine from a value and two functions, for small states: the snapshot is the whole value, encoded at once.
///
/// ```
/// use replikit_core::{LogIndex, Small, StateMachine};
///
/// let mut counter = Small::new(0_u64, |count, by: &[u8]| { *count += by.len() as u64; Vec::new() }, |count, _| count.to_le_bytes().to_vec());
/// counter.apply(LogIndex(1), b"xyz");
/// assert_eq!(counter.query(b"", 8)[..], 3_u64.to_le_bytes());
/// ```
#[derive(Debug)]
pub struct Small<S, A, Q> {
    state: S,
    apply: A,
    query: Q,
    incoming: Vec<u8>,
    marker: PhantomData<S>,
}

impl<S, A, Q> Small<S, A, Q>
where
    S: Serialize + DeserializeOwned + Send + 'static,
    A: FnMut(&mut S, &[u8]) -> Vec<u8> + Send + 'static,
    Q: Fn(&S, &[u8]) -> Vec<u8> + Send + 'static,
{
    /// A machine with this initial state, the same at every replica.
    pub const fn new(state: S, apply: A, query: Q) -> Self {
        Self { state, apply, query, incoming: Vec::new(), marker: PhantomData }
    }
}

impl<S, A, Q> StateMachine for Small<S, A, Q>
where
    S: Serialize + DeserializeOwned + Send + 'static,
    A: FnMut(&mut S, &[u8]) -> Vec<u8> + Send + 'static,
    Q: Fn(&S, &[u8]) -> Vec<u8> + Send + 'static,
{
    fn apply(&mut self, _at: LogIndex, command: &[u8]) -> Bytes {
        (self.apply)(&mut self.state, command).into()
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        let mut answer = (self.query)(&self.state, query);
        answer.truncate(bytes_max);
        answer.into()
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        let bytes = postcard::to_stdvec(&self.state).expect("the state of a small machine encodes");
        Box::new(BytesSource::new(bytes.into()))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if last {
            let whole = core::mem::take(&mut self.incoming);
            self.state =
                postcard::from_bytes(&whole).map_err(|_| RestoreError { what: "not a snapshot of this state" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum() -> impl StateMachine {
        Small::new(
            Vec::<u64>::new(),
            |state, command| {
                state.push(command.len() as u64);
                Vec::new()
            },
            |state, _| state.iter().sum::<u64>().to_le_bytes().to_vec(),
        )
    }

    #[test]
    fn a_small_machine_survives_its_snapshot_in_pieces_of_one_byte() {
        let mut one = sum();
        for (i, command) in [&b"a"[..], b"bcd", b""].into_iter().enumerate() {
            one.apply(LogIndex(i as u64 + 1), command);
        }
        let (mut other, mut source) = (sum(), one.snapshot());
        let mut pieces = Vec::new();
        while let Some(piece) = source.next(1) {
            pieces.push(piece);
        }
        for (i, piece) in pieces.iter().enumerate() {
            other.restore(piece, i + 1 == pieces.len()).unwrap();
        }
        assert_eq!(other.query(b"", 8), one.query(b"", 8));
    }

    #[test]
    fn a_foreign_snapshot_is_an_error_and_not_a_panic() {
        assert!(sum().restore(&[0xff; 3], true).is_err());
    }
}
