//! A record: one value of one key with its stamp. It lives in a batch of one entry, on the wire and on disk.

use bytes::Bytes;
use replikit_core::{Batch, NodeId};
use serde::{Deserialize, Serialize};

/// Orders the writes of a key. Two writes never have the same stamp: a coordinator gives each counter away once per start
/// and key, and a crash in between begins a new start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// One more than the largest that a majority had heard of.
    pub counter: u64,
    /// The coordinator.
    pub node: NodeId,
    /// How often its process had started.
    pub start: u32,
}

/// One value of one key, as it is stored: borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record<'a> {
    pub(super) stamp: Stamp,
    pub(super) key: &'a [u8],
    /// `None` after a delete: what was deleted must not come back, so the stamp stays.
    pub(super) value: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("records always encode")
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// The record of a batch that has exactly one.
    pub(super) fn of(batch: &'a Batch) -> Option<Self> {
        let mut entries = batch.entries();
        let entry = entries.next().filter(|_| batch.count() == 1)?;
        Self::decode(entry.payload)
    }
}

/// A record that this replica holds: the batch that was built when it was accepted here, and where its parts lie.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) stamp: Stamp,
    pub(super) batch: Batch,
}

impl Accepted {
    /// The value, sharing the batch's bytes.
    pub(super) fn value(&self) -> Option<Bytes> {
        let record = Record::of(&self.batch).expect("only batches that hold a record are accepted");
        record.value.map(|value| self.batch.as_bytes().slice_ref(value))
    }
}
