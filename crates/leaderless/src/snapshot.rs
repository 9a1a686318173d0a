//! A replica's state as a stream of bytes: on its disk, and on its way to a peer.
//!
//! Records, each behind its length in four bytes: one header with what has been applied, then every key in order, then the
//! audit; on the own disk also what this node has promised and accepted of the keys that are compared and set, which is no
//! peer's. Invariant: a state joined with a snapshot is what it would be had it applied all writes of both.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use replikit_core::keyspace::{Conflict, MapImage};
use replikit_core::{OriginId, RestoreError, SnapshotSource, VALUE_BYTES_MAX, VersionVector};
use serde::{Deserialize, Serialize};

use crate::cas::{self, CasImage};
use crate::comeback::Stash;
use crate::content::{Content, KeyCopy, Stored};
use crate::epoch::Owning;
use crate::state::{Slot, State};

const VERSION: u8 = 1;
/// Largest record: a key in conflict, with as many values as there may be origins in a large group.
const RECORD_BYTES_MAX: usize = 256 * VALUE_BYTES_MAX;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    version: u8,
    /// What had been applied.
    pub(crate) applied: VersionVector,
    /// Digest of the newest applied batch of each origin.
    pub(crate) digests: BTreeMap<OriginId, u64>,
    /// The last own record that is in it: index and digest of the stream of them at the replica that wrote it.
    pub(crate) local: (u64, u64),
    /// Overwritten values that the audit had dropped.
    pub(crate) audit_dropped: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Header(Header),
    Key { key: Bytes, content: Stored },
    Overwritten(Conflict),
    Cas(cas::Record),
    Owning(Box<Owning>),
    Stashed { key: Bytes, copy: KeyCopy },
}

/// What is in a snapshot that is no peer's: what this node has promised and accepted, which epochs it counts in, and what it
/// has put away.
#[derive(Debug, Default)]
pub(crate) struct Own<C> {
    pub(crate) cas: C,
    pub(crate) owning: Option<Owning>,
    pub(crate) stash: Stash,
}

/// The state of one moment, on its way out.
#[derive(Debug)]
pub(crate) struct Image {
    buffer: BytesMut,
    keys: MapImage<Slot>,
    audit: MapImage<Conflict>,
    own: Option<Own<CasImage>>,
}

impl Image {
    pub(crate) fn of(state: &State, local: (u64, u64), own: Option<Own<CasImage>>) -> Self {
        let header = Header {
            version: VERSION,
            applied: state.base().clone(),
            digests: state.digests().clone(),
            local,
            audit_dropped: state.audit.dropped(),
        };
        let (keys, audit) = (state.map().image(), state.audit.entries().image());
        let mut image = Self { buffer: BytesMut::new(), keys, audit, own };
        image.put(&Record::Header(header));
        image
    }

    fn put(&mut self, record: &Record) {
        let encoded = postcard::to_stdvec(record).expect("a state always encodes into memory");
        self.buffer.put_u32_le(encoded.len() as u32);
        self.buffer.put_slice(&encoded);
    }

    fn next_record(&mut self) -> Option<Record> {
        if let Some((key, slot)) = self.keys.next() {
            return Some(Record::Key { key, content: Stored::of(&slot.content) });
        }
        if let Some((_, conflict)) = self.audit.next() {
            return Some(Record::Overwritten(conflict));
        }
        let own = self.own.as_mut()?;
        if let Some(owning) = own.owning.take() {
            return Some(Record::Owning(Box::new(owning)));
        }
        if let Some((key, copy)) = own.stash.take_first() {
            return Some(Record::Stashed { key, copy });
        }
        own.cas.next().map(Record::Cas)
    }
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes_max = bytes_max.max(1);
        while self.buffer.len() < bytes_max {
            let Some(record) = self.next_record() else { break };
            self.put(&record);
        }
        let take = self.buffer.len().min(bytes_max);
        (take > 0).then(|| self.buffer.split_to(take).freeze())
    }
}

/// A snapshot on its way in: read piece by piece, joined as a whole.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    buffer: BytesMut,
    header: Option<Header>,
    keys: Vec<(Bytes, Content)>,
    audit: Vec<Conflict>,
    own: Own<Vec<cas::Record>>,
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
                let content = content.content().ok_or(RestoreError { what: "a value is malformed" })?;
                self.keys.push((key, content));
            }
            Record::Overwritten(conflict) => self.audit.push(conflict),
            Record::Cas(record) => self.own.cas.push(record),
            Record::Owning(owning) => self.own.owning = Some(*owning),
            Record::Stashed { key, copy } => self.own.stash.put(key, copy),
        }
        Ok(())
    }

    /// Joins the state with the whole snapshot; returns its header, and what is only of the node that wrote it.
    pub(crate) fn join(self, state: &mut State) -> Result<(Header, Own<Vec<cas::Record>>), RestoreError> {
        let Some(header) = self.header else { return Err(RestoreError { what: "it is empty" }) };
        if !self.buffer.is_empty() {
            return Err(RestoreError { what: "the last record is cut short" });
        }
        let keys: BTreeSet<Bytes> = self.keys.iter().map(|(key, _)| key.clone()).collect();
        let both = state.base_with(&header.applied);
        state.join_absent(&keys, &header.applied, &both);
        for (key, content) in self.keys {
            state.join_key(&key, &content, &header.applied, &both);
        }
        state.audit.drop_elsewhere(header.audit_dropped);
        state.joined(&header.applied, &header.digests, self.audit);
        Ok((header, self.own))
    }
}
