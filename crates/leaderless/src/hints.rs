//! What owners could not be told, kept for them: one copy of each key for each owner that misses it.
//!
//! Invariant: what was confirmed stays until its owner has confirmed it in turn, over crashes as well. Hints of one key join,
//! so their number is bounded by the keys, and their bytes by a limit: what is above it is refused, never dropped.
//! Source: hinted handoff, Dynamo (DeCandia et al., SOSP 2007).

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use replikit_core::{NodeId, RestoreError, SnapshotSource};
use serde::{Deserialize, Serialize};

use crate::config::Keyspace;
use crate::content::{KeyCopy, Known};

/// A record of the log of a fallback node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kept {
    /// An owner has to be told that a key is this.
    Hint { owner: NodeId, key: Bytes, copy: KeyCopy },
    /// It was told all that was kept for it of this key.
    Delivered { owner: NodeId, key: Bytes },
}

impl Kept {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a record always encodes into memory")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((record, [])) => Some(record),
            _ => None,
        }
    }
}

/// What an owner has to be told of a key.
#[derive(Clone, Debug)]
pub(crate) struct Hint {
    pub(crate) copy: KeyCopy,
    /// Changes with the copy: what is confirmed is a number.
    pub(crate) number: u64,
    bytes: usize,
}

/// What a hint counts for in the limit.
fn bytes_of(key: &Bytes, known: &Known) -> usize {
    key.len() + known.content.bytes() + 64
}

/// All hints of a fallback node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    kept: BTreeMap<(NodeId, Bytes), Hint>,
    /// Whose hint of which key bears a number.
    numbers: BTreeMap<u64, (NodeId, Bytes)>,
    bytes: usize,
}

impl Hints {
    /// A copy joined with what is kept for the owner of the key already; `None` when it is none that its keyspace can have.
    pub(crate) fn joined(&self, owner: NodeId, key: &Bytes, copy: KeyCopy, keyspace: &Keyspace) -> Option<Known> {
        let mut known = Known::nothing();
        if let Some(before) = self.kept.get(&(owner, key.clone())) {
            known.join(before.copy.clone(), keyspace)?;
        }
        known.join(copy, keyspace)?;
        Some(known)
    }

    /// Whether it takes the place of what is kept without that all together becomes more than a limit.
    pub(crate) fn has_room(&self, owner: NodeId, key: &Bytes, known: &Known, bytes_max: usize) -> bool {
        let before = self.kept.get(&(owner, key.clone())).map_or(0, |hint| hint.bytes);
        self.bytes - before + bytes_of(key, known) <= bytes_max
    }

    /// Keeps this in place of what was kept for the owner of the key.
    pub(crate) fn put(&mut self, owner: NodeId, key: Bytes, known: &Known, number: u64) {
        self.forget(owner, &key);
        let bytes = bytes_of(&key, known);
        self.bytes += bytes;
        self.numbers.insert(number, (owner, key.clone()));
        self.kept.insert((owner, key), Hint { copy: known.copy(), number, bytes });
    }

    /// The owner has what bears this number; returns the key if nothing newer is kept of it.
    pub(crate) fn confirm(&mut self, owner: NodeId, number: u64) -> Option<Bytes> {
        let (_, key) = self.numbers.get(&number).filter(|(of, _)| *of == owner)?;
        let key = key.clone();
        self.forget(owner, &key);
        Some(key)
    }

    pub(crate) fn forget(&mut self, owner: NodeId, key: &Bytes) {
        if let Some(hint) = self.kept.remove(&(owner, key.clone())) {
            self.numbers.remove(&hint.number);
            self.bytes -= hint.bytes;
        }
    }

    /// What is kept for an owner, ascending by key.
    pub(crate) fn of(&self, owner: NodeId) -> impl Iterator<Item = (&Bytes, &Hint)> {
        let from = (owner, Bytes::new());
        self.kept.range(from..).take_while(move |((of, _), _)| *of == owner).map(|((_, key), hint)| (key, hint))
    }

    /// For whom something is kept.
    pub(crate) fn owners(&self) -> Vec<NodeId> {
        let mut owners: Vec<NodeId> = self.kept.keys().map(|(owner, _)| *owner).collect();
        owners.dedup();
        owners
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The hints of one moment, on their way to the disk: the end of the log first, then each behind its length in four bytes.
#[derive(Debug)]
pub(crate) struct HintsImage {
    buffer: BytesMut,
    rest: std::collections::btree_map::IntoIter<(NodeId, Bytes), Hint>,
}

impl HintsImage {
    pub(crate) fn of(hints: &Hints, (last, digest): (u64, u64)) -> Self {
        let mut buffer = BytesMut::new();
        buffer.put_u64_le(last);
        buffer.put_u64_le(digest);
        Self { buffer, rest: hints.kept.clone().into_iter() }
    }

    /// Reads a whole image: where the log ended, and the records.
    pub(crate) fn read(mut bytes: &[u8]) -> Result<((u64, u64), Vec<Kept>), RestoreError> {
        let cut = || RestoreError { what: "the hints are cut short" };
        let last = bytes.try_get_u64_le().map_err(|_| cut())?;
        let digest = bytes.try_get_u64_le().map_err(|_| cut())?;
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = bytes.try_get_u32_le().map_err(|_| cut())? as usize;
            let record = bytes.split_off(..length).ok_or_else(cut)?;
            records.push(Kept::decode(record).ok_or(RestoreError { what: "a hint is malformed" })?);
        }
        Ok(((last, digest), records))
    }
}

impl SnapshotSource for HintsImage {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes_max = bytes_max.max(1);
        while self.buffer.len() < bytes_max {
            let Some(((owner, key), hint)) = self.rest.next() else { break };
            let record = Kept::Hint { owner, key, copy: hint.copy }.encode();
            self.buffer.put_u32_le(record.len() as u32);
            self.buffer.put_slice(&record);
        }
        let take = self.buffer.len().min(bytes_max);
        (take > 0).then(|| self.buffer.split_to(take).freeze())
    }
}
