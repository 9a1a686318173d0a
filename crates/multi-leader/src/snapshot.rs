//! A replica's state as a stream of bytes: on its disk, and on its way to a peer.
//!
//! Records, each behind its length in four bytes: one header with what has been applied, then every key in order, then the
//! audit. Invariant: a state joined with a snapshot is what it would be had it applied all writes of both.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes, BytesMut};
use replikit_core::crdt::{CrdtKind, CrdtState};
use replikit_core::keyspace::{Conflict, MapImage};
use replikit_core::{Dot, OriginId, RestoreError, SnapshotSource, VALUE_BYTES_MAX, VersionVector};
use serde::{Deserialize, Serialize};

use crate::record::as_bytes;
use crate::state::{Content, Merging, Slot, State};
use crate::versions::Versions;

const VERSION: u8 = 3;
/// Largest record: a key in conflict, with as many values as there may be origins in a large group.
const RECORD_BYTES_MAX: usize = 256 * VALUE_BYTES_MAX;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    version: u8,
    /// What had been applied.
    pub(crate) applied: VersionVector,
    /// Digest of the newest applied batch of each origin.
    pub(crate) digests: BTreeMap<OriginId, u64>,
    /// Overwritten values that the audit had dropped.
    pub(crate) audit_dropped: u64,
}

#[derive(Debug, Deserialize)]
enum Stored {
    Versions(Versions),
    Merging(CrdtKind, Bytes, Option<Dot>),
}

#[derive(Debug, Deserialize)]
enum Record {
    Header(Header),
    Key { key: Bytes, content: Stored },
    Overwritten(Conflict),
}

/// [`Stored`] as it is written: nothing is copied on the way.
#[derive(Serialize)]
enum StoredRef<'a> {
    Versions(&'a Versions),
    Merging(CrdtKind, Bytes, Option<Dot>),
}

/// [`Record`] as it is written.
#[derive(Serialize)]
enum RecordRef<'a> {
    Header(&'a Header),
    Key {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
        content: StoredRef<'a>,
    },
    Overwritten(&'a Conflict),
}

/// The state of one moment, on its way out.
#[derive(Debug)]
pub(crate) struct Image {
    buffer: Vec<u8>,
    keys: MapImage<Slot>,
    audit: MapImage<Conflict>,
}

impl Image {
    pub(crate) fn of(state: &State) -> Self {
        let header = Header {
            version: VERSION,
            applied: state.applied().clone(),
            digests: state.digests().clone(),
            audit_dropped: state.audit.dropped(),
        };
        let mut buffer = Vec::new();
        put(&mut buffer, &RecordRef::Header(&header));
        Self { buffer, keys: state.map().image(), audit: state.audit.entries().image() }
    }

    /// Whether there was another record.
    fn put_next(&mut self) -> bool {
        if let Some((key, slot)) = self.keys.advance() {
            let content = match &slot.content {
                Content::Versions(versions) => StoredRef::Versions(versions),
                Content::Merging(merging) => {
                    StoredRef::Merging(merging.state.kind(), merging.state.encode(), merging.own)
                }
            };
            put(&mut self.buffer, &RecordRef::Key { key, content });
        } else if let Some((_, conflict)) = self.audit.advance() {
            put(&mut self.buffer, &RecordRef::Overwritten(conflict));
        } else {
            return false;
        }
        true
    }
}

/// Encodes a record behind its length.
fn put(buffer: &mut Vec<u8>, record: &RecordRef<'_>) {
    let at = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    *buffer = postcard::to_extend(record, core::mem::take(buffer)).expect("a state always encodes into memory");
    let length = (buffer.len() - at - 4) as u32;
    buffer[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes_max = bytes_max.max(1);
        while self.buffer.len() < bytes_max && self.put_next() {}
        let take = self.buffer.len().min(bytes_max);
        let rest = self.buffer.split_off(take);
        (take > 0).then(|| core::mem::replace(&mut self.buffer, rest).into())
    }
}

/// A snapshot on its way in: read piece by piece, joined as a whole.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    buffer: BytesMut,
    header: Option<Header>,
    keys: Vec<(Bytes, Content)>,
    audit: Vec<Conflict>,
}

impl Incoming {
    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), RestoreError> {
        self.buffer.extend_from_slice(piece);
        while let Some(length) = self.buffer.first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > RECORD_BYTES_MAX {
                return Err(RestoreError { what: "a record is larger than a key can be" });
            }
            if self.buffer.len() < 4 + length {
                break;
            }
            self.buffer.advance(4);
            let record = self.buffer.split_to(length);
            match postcard::take_from_bytes(&record) {
                Ok((record, [])) => self.take(record)?,
                _ => return Err(RestoreError { what: "a record is malformed" }),
            }
        }
        Ok(())
    }

    fn take(&mut self, record: Record) -> Result<(), RestoreError> {
        match record {
            Record::Header(header) if self.header.is_none() => {
                if header.version != VERSION || !header.applied.is_contiguous() {
                    return Err(RestoreError { what: "the header is of another version" });
                }
                self.header = Some(header);
            }
            Record::Header(_) => return Err(RestoreError { what: "there are two headers" }),
            _ if self.header.is_none() => return Err(RestoreError { what: "there is no header" }),
            Record::Key { key, content } => {
                if self.keys.last().is_some_and(|(last, _)| *last >= key) {
                    return Err(RestoreError { what: "keys do not ascend" });
                }
                let content = match content {
                    Stored::Versions(versions) => Content::Versions(versions),
                    Stored::Merging(kind, bytes, own) => {
                        let state = CrdtState::decode(kind, &bytes);
                        let state = state.map_err(|_| RestoreError { what: "a value is malformed" })?;
                        Content::Merging(Box::new(Merging { state, own }))
                    }
                };
                self.keys.push((key, content));
            }
            Record::Overwritten(conflict) => self.audit.push(conflict),
        }
        Ok(())
    }

    /// Joins the state with the whole snapshot; returns its header.
    pub(crate) fn join(self, state: &mut State) -> Result<Header, RestoreError> {
        let Some(header) = self.header else { return Err(RestoreError { what: "it is empty" }) };
        if !self.buffer.is_empty() {
            return Err(RestoreError { what: "the last record is cut short" });
        }
        let keys: BTreeSet<Bytes> = self.keys.iter().map(|(key, _)| key.clone()).collect();
        state.join_absent(&keys, &header.applied);
        for (key, content) in self.keys {
            state.join_key(&key, content, &header.applied);
        }
        state.audit.drop_elsewhere(header.audit_dropped);
        state.joined(&header.applied, &header.digests, self.audit);
        Ok(header)
    }
}
