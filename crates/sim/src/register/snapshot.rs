//! All records as a stream of bytes: batch after batch, the length of each before it in 4 bytes.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use replikit_core::{BATCH_BYTES_MAX, Batch, ClusterId, RestoreError, SnapshotSource};

use super::record::Accepted;

/// Records on their way into a snapshot: handles on the batches, no copies.
#[derive(Debug)]
pub(super) struct Image {
    left: VecDeque<Bytes>,
}

impl Image {
    pub(super) fn of(records: &BTreeMap<Bytes, Accepted>) -> Self {
        let mut left = VecDeque::with_capacity(records.len() * 2);
        for accepted in records.values() {
            left.push_back(Bytes::copy_from_slice(&(accepted.batch.bytes() as u32).to_le_bytes()));
            left.push_back(accepted.batch.as_bytes().clone());
        }
        Self { left }
    }
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let front = self.left.front_mut()?;
        let piece = front.split_to(front.len().min(bytes_max.max(1)));
        if front.is_empty() {
            self.left.pop_front();
        }
        Some(piece)
    }
}

/// Records on their way out of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    // Bytes of a record that is not whole yet.
    partial: BytesMut,
}

impl Incoming {
    /// Takes the next piece; hands each whole record's batch to `keep`.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        last: bool,
        cluster: ClusterId,
        mut keep: impl FnMut(Batch),
    ) -> Result<(), RestoreError> {
        self.partial.extend_from_slice(chunk);
        while let Some((length, rest)) = self.partial.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > BATCH_BYTES_MAX {
                return Err(RestoreError { what: "a record is larger than a batch" });
            }
            if rest.len() < length {
                break;
            }
            let bytes = self.partial.split_to(4 + length).freeze().slice(4..);
            keep(Batch::verify(bytes, cluster).map_err(|_| RestoreError { what: "a record is damaged" })?);
        }
        if last && !core::mem::take(&mut self.partial).is_empty() {
            return Err(RestoreError { what: "the last record is cut short" });
        }
        Ok(())
    }
}
