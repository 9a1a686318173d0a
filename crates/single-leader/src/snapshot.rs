//! A replica's snapshot: the group's own state (sessions, history of terms) before the user's machine.
//!
//! Layout: u32 length of the group state, the group state (postcard), the machine's own bytes. The pieces are cut anywhere.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use replikit_core::{BytesSource, RestoreError, SnapshotSource, StateMachine};

use crate::sessions::Sessions;
use crate::view::TermHistory;

/// What a snapshot holds beside the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupState {
    pub(crate) sessions: Sessions,
    pub(crate) terms: TermHistory,
}

/// Largest group state that is read, in bytes: all sessions with full windows of small replies.
const GROUP_STATE_BYTES_MAX: usize = 1 << 30;
const LENGTH_BYTES: usize = 4;

/// Hands out the group state, then the machine.
pub(crate) struct Source {
    group: BytesSource,
    machine: Box<dyn SnapshotSource>,
}

impl Source {
    pub(crate) fn new(group: &GroupState, machine: Box<dyn SnapshotSource>) -> Self {
        let state = postcard::to_stdvec(group).expect("the group state always encodes");
        let mut bytes = BytesMut::with_capacity(LENGTH_BYTES + state.len());
        bytes.put_u32_le(u32::try_from(state.len()).expect("bounded by the limits on sessions"));
        bytes.put_slice(&state);
        Self { group: BytesSource::new(bytes.freeze()), machine }
    }
}

impl SnapshotSource for Source {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        self.group.next(bytes_max).or_else(|| self.machine.next(bytes_max))
    }
}

/// Reads a snapshot back, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Restorer {
    head: BytesMut,
    group: Option<GroupState>,
}

impl Restorer {
    /// Takes the next piece; with `last`, returns the group state, and the machine is whole.
    pub(crate) fn restore<M: StateMachine>(
        &mut self,
        machine: &mut M,
        piece: &[u8],
        end: End,
    ) -> Result<Option<GroupState>, RestoreError> {
        let mut rest = piece;
        if self.group.is_none() {
            self.head.extend_from_slice(piece);
            rest = &[];
            if let Some(length) = self.head.first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_le_bytes(*length) as usize;
                if length > GROUP_STATE_BYTES_MAX {
                    return Err(RestoreError { what: "the group state is longer than any can be" });
                }
                if self.head.len() >= LENGTH_BYTES + length {
                    let mut head = core::mem::take(&mut self.head).freeze();
                    let state = head.split_to(LENGTH_BYTES + length);
                    let group: GroupState = postcard::from_bytes(&state[LENGTH_BYTES..])
                        .map_err(|_| RestoreError { what: "the group state cannot be decoded" })?;
                    if !group.terms.is_ascending() {
                        return Err(RestoreError { what: "the history of terms is not ascending" });
                    }
                    self.group = Some(group);
                    if !head.is_empty() || end == End::Last {
                        machine.restore(&head, end == End::Last)?;
                    }
                    return Ok(self.finish(end));
                }
            }
        }
        match (&self.group, end) {
            (None, End::More) => Ok(None),
            (None, End::Last) => Err(RestoreError { what: "the group state is cut short" }),
            (Some(_), _) => {
                machine.restore(rest, end == End::Last)?;
                Ok(self.finish(end))
            }
        }
    }

    fn finish(&mut self, end: End) -> Option<GroupState> {
        match end {
            End::More => None,
            End::Last => self.group.take(),
        }
    }
}

/// Whether a piece is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    More,
    Last,
}

impl From<bool> for End {
    fn from(last: bool) -> Self {
        if last { Self::Last } else { Self::More }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikit_core::{LogIndex, keyspace};

    #[test]
    fn a_snapshot_in_pieces_of_any_size_restores_sessions_and_machine() {
        let mut machine = keyspace::Keyspace::new();
        for i in 0..5_u8 {
            let write = replikit_core::WriteRequest::put(vec![b'k', i], vec![i; 9]);
            machine.apply(LogIndex(1), &keyspace::encode_write(&write).unwrap());
        }
        let mut group = GroupState::default();
        group.sessions.open(LogIndex(3));
        for piece_bytes in [1, 5, 1 << 20] {
            let mut source = Source::new(&group, machine.snapshot());
            let (mut restorer, mut other) = (Restorer::default(), keyspace::Keyspace::new());
            while let Some(piece) = source.next(piece_bytes) {
                assert_eq!(restorer.restore(&mut other, &piece, End::More).unwrap(), None);
            }
            assert_eq!(restorer.restore(&mut other, &[], End::Last).unwrap(), Some(group.clone()));
            assert_eq!(other.get(&[b'k', 4]), machine.get(&[b'k', 4]));
            assert_eq!(other.len(), 5);
        }
    }

    #[test]
    fn hostile_snapshots_are_errors() {
        let mut machine = keyspace::Keyspace::new();
        for bytes in [&b""[..], b"abc", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\xff\xff"] {
            assert!(Restorer::default().restore(&mut machine, bytes, End::Last).is_err(), "{bytes:?}");
        }
    }
}
