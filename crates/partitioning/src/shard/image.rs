//! A partitioned group's snapshot: a head with holdings and answers, then the machines, each in chunks with their lengths.
//!
//! Layout: version, `u32` length of the head, the head (postcard); then for the main machine and for each staged one, in the order of
//! their handoffs, chunks of `u32` length and bytes, ended by a length of 0. Pieces may be cut anywhere.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use replikit_core::{RestoreError, SnapshotSource};
use serde::{Deserialize, Serialize};

use super::answers::Answers;
use super::contents::{Contents, Portion};
use super::wire::SHARD_VERSION;
use super::{Keyed, Scheme};
use crate::handoff::Holdings;
use crate::id::HandoffId;

const CHUNK_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;
/// Larger than any head or chunk is.
const PART_BYTES_MAX: usize = 1 << 30;

#[derive(Serialize, Deserialize)]
struct Head {
    holdings: Holdings,
    answers: Answers,
    staged: Vec<(HandoffId, Answers)>,
}

/// The group's state as it was at one moment.
pub(super) struct Image {
    ready: BytesMut,
    machines: std::vec::IntoIter<Box<dyn SnapshotSource>>,
    now: Option<Box<dyn SnapshotSource>>,
}

impl Image {
    pub(super) fn new<M: Keyed>(holdings: &Holdings, contents: &Contents<M>) -> Self {
        let staged = contents.staged.iter().map(|(id, portion)| (*id, portion.answers.clone())).collect();
        let head = Head { holdings: holdings.clone(), answers: contents.main.answers.clone(), staged };
        let head = postcard::to_stdvec(&head).expect("the head always encodes");
        let mut ready = BytesMut::with_capacity(1 + LENGTH_BYTES + head.len());
        ready.put_u8(SHARD_VERSION);
        ready.put_u32_le(head.len() as u32);
        ready.put_slice(&head);
        let portions = core::iter::once(&contents.main).chain(contents.staged.values());
        let machines: Vec<_> = portions.map(|portion| portion.machine.snapshot()).collect();
        let mut machines = machines.into_iter();
        Self { ready, now: machines.next(), machines }
    }
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        while self.ready.is_empty() {
            let chunk = self.now.as_mut()?.next(CHUNK_BYTES);
            self.ready.put_u32_le(chunk.as_ref().map_or(0, Bytes::len) as u32);
            match chunk {
                Some(chunk) => self.ready.put_slice(&chunk),
                None => self.now = self.machines.next(),
            }
        }
        let take = self.ready.len().min(bytes_max.max(1));
        Some(self.ready.split_to(take).freeze())
    }
}

#[derive(Debug)]
struct Reading<M> {
    holdings: Holdings,
    whole: Vec<Portion<M>>,
    // Whose machine's turn it is, and whose answers are left, the next one last.
    now: Option<Portion<M>>,
    left: Vec<Answers>,
    handoffs: Vec<HandoffId>,
}

/// Reads a snapshot back, piece by piece.
#[derive(Debug)]
pub(super) struct Restorer<M> {
    incoming: BytesMut,
    reading: Option<Reading<M>>,
}

impl<M> Default for Restorer<M> {
    fn default() -> Self {
        Self { incoming: BytesMut::new(), reading: None }
    }
}

impl<M: Keyed> Restorer<M> {
    /// Takes the next piece; with `last`, returns the state.
    pub(super) fn restore(
        &mut self,
        scheme: Scheme,
        piece: &[u8],
        last: bool,
    ) -> Result<Option<(Holdings, Contents<M>)>, RestoreError> {
        let read = self.read(piece);
        if !last && read.is_ok() {
            return Ok(None);
        }
        let Self { incoming, reading } = core::mem::take(self);
        read?;
        let whole = reading.filter(|it| it.now.is_none() && incoming.is_empty());
        let Reading { holdings, mut whole, handoffs, .. } =
            whole.ok_or(RestoreError { what: "the snapshot of a group is cut short" })?;
        let staged: BTreeMap<_, _> = handoffs.into_iter().zip(whole.drain(1..).collect::<Vec<_>>()).collect();
        let main = whole.pop().ok_or(RestoreError { what: "a group without a machine" })?;
        Ok(Some((holdings, Contents::of(scheme, main, staged))))
    }

    fn read(&mut self, piece: &[u8]) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(piece);
        if self.reading.is_none() {
            let [version, length @ ..] =
                self.incoming.first_chunk::<{ 1 + LENGTH_BYTES }>().copied().unwrap_or_default();
            let length = u32::from_le_bytes(length) as usize;
            if self.incoming.len() <= LENGTH_BYTES {
                return Ok(());
            }
            if version != SHARD_VERSION || length > PART_BYTES_MAX {
                return Err(RestoreError { what: "not a snapshot of a partitioned group" });
            }
            if self.incoming.len() < 1 + LENGTH_BYTES + length {
                return Ok(());
            }
            self.incoming.advance(1 + LENGTH_BYTES);
            let head: Head = postcard::from_bytes(&self.incoming.split_to(length))
                .map_err(|_| RestoreError { what: "the head of a group's snapshot cannot be decoded" })?;
            let (handoffs, mut left): (Vec<_>, Vec<_>) = head.staged.into_iter().unzip();
            left.reverse();
            let now = Some(Portion::of(M::default(), head.answers));
            self.reading = Some(Reading { holdings: head.holdings, whole: Vec::new(), now, left, handoffs });
        }
        let reading = self.reading.as_mut().expect("set above");
        while let Some(length) = self.incoming.first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > PART_BYTES_MAX {
                return Err(RestoreError { what: "a chunk is longer than any can be" });
            }
            if self.incoming.len() < LENGTH_BYTES + length {
                break;
            }
            let Some(mut portion) = reading.now.take() else {
                return Err(RestoreError { what: "more machines than the head says" });
            };
            self.incoming.advance(LENGTH_BYTES);
            portion.machine.restore(&self.incoming.split_to(length), length == 0)?;
            if length > 0 {
                reading.now = Some(portion);
            } else {
                reading.whole.push(portion);
                reading.now = reading.left.pop().map(|answers| Portion::of(M::default(), answers));
            }
        }
        Ok(())
    }
}
