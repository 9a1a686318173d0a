//! The ready-made key-value state machine: ordered keys, so that scans work; values found by hash, so that writes to
//! existing keys do not walk a tree.
//!
//! Invariants: the sorted index holds exactly the keys of the hash shards; replies depend on nothing but the log, never on
//! the order of a hash map. A snapshot shares the shards and the leaves of the index with the live state (copy on write), so
//! taking one costs one reference count a shard and leaf. A shard that no snapshot holds is written to without any atomic
//! operation, and a value of the same length in its old place: with more keys than fit the cache, a write costs the cache
//! lines that it touches and little else.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::{
    KEY_BYTES_MAX, LogIndex, Page, RestoreError, ScanRequest, SnapshotSource, StateMachine, VALUE_BYTES_MAX,
    WriteEffect, WriteOp, WriteRequest,
};

const SHARDS: usize = 1 << 10;

type Table = HashMap<Key, Bytes, RandomState>;

/// A command to the keyspace, as it is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Command<'a> {
    Put { key: &'a [u8], value: &'a [u8] },
    Delete { key: &'a [u8] },
    CompareAndSet { key: &'a [u8], expected: Option<&'a [u8]>, new: Option<&'a [u8]> },
    Add { key: &'a [u8], delta: i64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Query<'a> {
    Get { key: &'a [u8] },
    Scan { from: &'a [u8], to: Option<&'a [u8]>, limit: u32 },
}

/// Why the keyspace cannot carry out a request. Blame: the caller; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// The key is empty or longer than [`KEY_BYTES_MAX`].
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {bytes}")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The value is longer than [`VALUE_BYTES_MAX`].
    #[error("a value has at most {VALUE_BYTES_MAX} bytes, this one has {bytes}")]
    Value {
        /// Its length.
        bytes: usize,
    },
    /// The answer would be larger than the caller takes.
    #[error("the answer is larger than the {bytes_max} bytes asked for")]
    AnswerTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes are no command, query or answer of the keyspace.
    #[error("not a request or answer of the keyspace")]
    Malformed,
}

/// Encodes a write as the command that is replicated.
///
/// # Errors
/// [`KeyspaceError::Key`] and [`KeyspaceError::Value`] for sizes out of range.
pub fn encode_write(write: &WriteRequest) -> Result<Bytes, KeyspaceError> {
    check_key(&write.key)?;
    let key = &write.key[..];
    let command = match &write.op {
        WriteOp::Put { value } => Command::Put { key, value: check_value(value)? },
        WriteOp::Delete => Command::Delete { key },
        WriteOp::CompareAndSet { expected, new } => Command::CompareAndSet {
            key,
            expected: expected.as_deref(),
            new: new.as_deref().map(check_value).transpose()?,
        },
        WriteOp::Add { delta } => Command::Add { key, delta: *delta },
    };
    Ok(encode(&command))
}

/// Reads a command that [`encode_write`] made: the key, and what to do to it.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such command.
pub fn decode_write(command: &[u8]) -> Result<(Bytes, WriteOp), KeyspaceError> {
    let owned = Bytes::copy_from_slice;
    Ok(match postcard::from_bytes(command).map_err(|_| KeyspaceError::Malformed)? {
        Command::Put { key, value } => (owned(key), WriteOp::Put { value: owned(value) }),
        Command::Delete { key } => (owned(key), WriteOp::Delete),
        Command::CompareAndSet { key, expected, new } => {
            (owned(key), WriteOp::CompareAndSet { expected: expected.map(owned), new: new.map(owned) })
        }
        Command::Add { key, delta } => (owned(key), WriteOp::Add { delta }),
    })
}

/// Encodes the question for one key's value.
///
/// # Errors
/// [`KeyspaceError::Key`] for a size out of range.
pub fn encode_get(key: &[u8]) -> Result<Bytes, KeyspaceError> {
    check_key(key)?;
    Ok(encode(&Query::Get { key }))
}

/// Encodes the question for a page of keys.
#[must_use]
pub fn encode_scan(scan: &ScanRequest) -> Bytes {
    encode(&Query::Scan { from: &scan.from, to: scan.to.as_deref(), limit: scan.limit.max(1) })
}

/// Reads the reply to a write.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such reply.
pub fn decode_effect(reply: &[u8]) -> Result<WriteEffect, KeyspaceError> {
    postcard::from_bytes(reply).map_err(|_| KeyspaceError::Malformed)
}

/// Reads the answer to [`encode_get`] without copying the value.
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_value(answer: &Bytes) -> Result<Option<Bytes>, KeyspaceError> {
    match answer.split_first() {
        Some((&ANSWER_NONE, [])) => Ok(None),
        Some((&ANSWER_VALUE, _)) => Ok(Some(answer.slice(1..))),
        Some((&ANSWER_TOO_LARGE, rest)) => Err(too_large(rest)),
        _ => Err(KeyspaceError::Malformed),
    }
}

/// Reads the answer to [`encode_scan`].
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_page(answer: &[u8]) -> Result<Page, KeyspaceError> {
    match answer.split_first() {
        Some((&ANSWER_PAGE, page)) => postcard::from_bytes(page).map_err(|_| KeyspaceError::Malformed),
        Some((&ANSWER_TOO_LARGE, rest)) => Err(too_large(rest)),
        _ => Err(KeyspaceError::Malformed),
    }
}

const ANSWER_NONE: u8 = 0;
const ANSWER_VALUE: u8 = 1;
const ANSWER_PAGE: u8 = 2;
const ANSWER_TOO_LARGE: u8 = 3;
const ANSWER_MALFORMED: u8 = 4;

fn too_large(limit: &[u8]) -> KeyspaceError {
    limit.try_into().map_or(KeyspaceError::Malformed, |bytes| KeyspaceError::AnswerTooLarge {
        bytes_max: u64::from_le_bytes(bytes) as usize,
    })
}

fn encode(value: &impl Serialize) -> Bytes {
    postcard::to_stdvec(value).expect("requests of the keyspace always encode").into()
}

fn check_key(key: &[u8]) -> Result<(), KeyspaceError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX { Err(KeyspaceError::Key { bytes: key.len() }) } else { Ok(()) }
}

fn check_value(value: &[u8]) -> Result<&[u8], KeyspaceError> {
    if value.len() > VALUE_BYTES_MAX { Err(KeyspaceError::Value { bytes: value.len() }) } else { Ok(value) }
}

/// The key-value state machine: put, delete, compare-and-set and counters; get and scan.
#[derive(Debug)]
pub struct Keyspace {
    map: Map,
    incoming: BytesMut,
    restoring: Option<Map>,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyspace {
    /// An empty keyspace.
    #[must_use]
    pub fn new() -> Self {
        Self { map: Map::new(), incoming: BytesMut::new(), restoring: None }
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.keys.len
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key)
    }
}

/// A key. Short ones need no allocation, and comparing them no visit to another cache line.
#[derive(Clone)]
enum Key {
    Short { len: u8, bytes: [u8; Self::SHORT_BYTES_MAX] },
    Long(Bytes),
}

impl Key {
    /// As much as fits beside what [`Bytes`] takes anyway.
    const SHORT_BYTES_MAX: usize = 23;

    fn new(key: &[u8]) -> Self {
        if key.len() > Self::SHORT_BYTES_MAX {
            return Self::Long(Bytes::copy_from_slice(key));
        }
        let mut bytes = [0; Self::SHORT_BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Self::Short { len: key.len() as u8, bytes }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }

    fn to_bytes(&self) -> Bytes {
        match self {
            Self::Short { .. } => Bytes::copy_from_slice(self.as_slice()),
            Self::Long(bytes) => bytes.clone(),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Key {}

impl Hash for Key {
    // As its bytes do, for it is found by them.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// A part of the values. Nobody looks at an own one but the keyspace, so writing to it takes no atomic operation.
#[derive(Debug)]
enum Shard {
    Own(Table),
    Shared(Arc<Table>),
}

impl Shard {
    fn table(&self) -> &Table {
        match self {
            Self::Own(table) => table,
            Self::Shared(table) => table,
        }
    }

    /// The table to write to; a copy of it if an image still holds it.
    #[inline]
    fn own(&mut self) -> &mut Table {
        if let Self::Shared(shared) = self {
            let empty = Table::with_hasher(shared.hasher().clone());
            *self = Self::Own(std::mem::replace(Arc::make_mut(shared), empty));
        }
        match self {
            Self::Own(table) => table,
            Self::Shared(_) => unreachable!("made its own just now"),
        }
    }

    /// The table for an image, which the keyspace goes on to read.
    fn share(&mut self) -> Arc<Table> {
        if let Self::Own(table) = self {
            let empty = Table::with_hasher(table.hasher().clone());
            *self = Self::Shared(Arc::new(std::mem::replace(table, empty)));
        }
        match self {
            Self::Shared(table) => Arc::clone(table),
            Self::Own(_) => unreachable!("shared just now"),
        }
    }
}

#[derive(Debug)]
struct Map {
    hasher: RandomState,
    /// Locked by who reads or takes an image; who writes has it for itself.
    shards: Mutex<Vec<Shard>>,
    keys: SortedKeys,
}

fn shard_of(hasher: &RandomState, key: &[u8]) -> usize {
    // The upper bits: the shard's own table uses the lower ones.
    (hasher.hash_one(key) >> 40) as usize % SHARDS
}

/// Sets a value, in the place of the old one where nobody else holds that.
fn overwrite(slot: &mut Bytes, value: &[u8]) {
    if slot.len() == value.len() && !value.is_empty() {
        match std::mem::take(slot).try_into_mut() {
            Ok(mut old) => {
                old.copy_from_slice(value);
                *slot = old.freeze();
                return;
            }
            Err(old) => drop(old),
        }
    }
    *slot = Bytes::copy_from_slice(value);
}

impl Map {
    fn new() -> Self {
        let hasher = RandomState::default();
        let empty = Arc::new(Table::with_hasher(hasher.clone()));
        let shards = (0..SHARDS).map(|_| Shard::Shared(Arc::clone(&empty))).collect();
        Self { hasher, shards: Mutex::new(shards), keys: SortedKeys::default() }
    }

    fn read(&self) -> MutexGuard<'_, Vec<Shard>> {
        // No code that can panic leaves a shard half written.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn shard(&mut self, key: &[u8]) -> &mut Shard {
        let at = shard_of(&self.hasher, key);
        &mut self.shards.get_mut().unwrap_or_else(PoisonError::into_inner)[at]
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.read()[shard_of(&self.hasher, key)].table().get(key).cloned()
    }

    /// The value of a key, borrowed, for who may also write.
    fn get_mut(&mut self, key: &[u8]) -> Option<&Bytes> {
        self.shard(key).table().get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let table = self.shard(key).own();
        if let Some(slot) = table.get_mut(key) {
            return overwrite(slot, value);
        }
        let key = Key::new(key);
        table.insert(key.clone(), Bytes::copy_from_slice(value));
        self.keys.insert(key);
    }

    fn delete(&mut self, key: &[u8]) {
        let shard = self.shard(key);
        // Looked up first: a delete of an absent key must not copy a shard that an image shares.
        if shard.table().contains_key(key) {
            shard.own().remove(key);
            self.keys.remove(key);
        }
    }

    fn image(&self) -> Image {
        let shards = self.read().iter_mut().map(Shard::share).collect();
        Image { hasher: self.hasher.clone(), shards, keys: self.keys.clone(), after: None }
    }
}

/// Sorted keys in leaves that are copied on write. Invariant: leaves are ascending, none is empty, and none holds more than
/// [`SortedKeys::LEAF_KEYS_MAX`] keys.
#[derive(Clone, Debug, Default)]
struct SortedKeys {
    leaves: Vec<Arc<Vec<Key>>>,
    len: usize,
}

impl SortedKeys {
    const LEAF_KEYS_MAX: usize = 512;

    /// The leaf that holds the key, or would.
    fn leaf_of(&self, key: &[u8]) -> usize {
        self.leaves.partition_point(|leaf| leaf[0].as_slice() <= key).saturating_sub(1)
    }

    /// Adds a key that is not there.
    fn insert(&mut self, key: Key) {
        self.len += 1;
        if self.leaves.is_empty() {
            return self.leaves.push(Arc::new(vec![key]));
        }
        let at = self.leaf_of(key.as_slice());
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let slot = leaf.partition_point(|other| other.as_slice() < key.as_slice());
        leaf.insert(slot, key);
        if leaf.len() > Self::LEAF_KEYS_MAX {
            let upper = leaf.split_off(Self::LEAF_KEYS_MAX / 2);
            self.leaves.insert(at + 1, Arc::new(upper));
        }
    }

    /// Removes a key that is there.
    fn remove(&mut self, key: &[u8]) {
        let at = self.leaf_of(key);
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let slot = leaf.partition_point(|other| other.as_slice() < key);
        leaf.remove(slot);
        self.len -= 1;
        if leaf.is_empty() {
            self.leaves.remove(at);
        }
    }

    fn from<'a>(&'a self, from: Bound<&'a [u8]>) -> impl Iterator<Item = &'a Key> {
        let start = match from {
            Bound::Included(key) | Bound::Excluded(key) => self.leaf_of(key),
            Bound::Unbounded => 0,
        };
        let before = move |key: &&Key| match from {
            Bound::Included(from) => key.as_slice() < from,
            Bound::Excluded(from) => key.as_slice() <= from,
            Bound::Unbounded => false,
        };
        self.leaves[start.min(self.leaves.len())..].iter().flat_map(|leaf| leaf.iter()).skip_while(before)
    }
}

/// A counter's value, if these bytes are one.
fn counter(value: Option<&Bytes>) -> Option<i64> {
    value.map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse().ok())
}

impl StateMachine for Keyspace {
    fn apply(&mut self, _at: LogIndex, command: &[u8]) -> Bytes {
        // A command that is no command changes nothing, at every replica alike, and its reply decodes as malformed.
        let Ok(command) = postcard::from_bytes(command) else { return Bytes::new() };
        let effect = match command {
            Command::Put { key, value } => {
                self.map.put(key, value);
                WriteEffect::Done
            }
            Command::Delete { key } => {
                self.map.delete(key);
                WriteEffect::Done
            }
            Command::CompareAndSet { key, expected, new } => {
                let found = self.map.get_mut(key);
                if found.map(|value| &value[..]) == expected {
                    match new {
                        Some(value) => self.map.put(key, value),
                        None => self.map.delete(key),
                    }
                    WriteEffect::Done
                } else {
                    WriteEffect::Mismatch { found: found.cloned() }
                }
            }
            Command::Add { key, delta } => {
                match counter(self.map.get_mut(key)).and_then(|value| value.checked_add(delta)) {
                    Some(value) => {
                        self.map.put(key, value.to_string().as_bytes());
                        WriteEffect::Counter { value }
                    }
                    None => WriteEffect::NotACounter,
                }
            }
        };
        // The common answer is a constant: no allocation for it.
        match effect {
            WriteEffect::Done => Bytes::from_static(&[0]),
            other => encode(&other),
        }
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        let too_large = || {
            let mut answer = vec![ANSWER_TOO_LARGE];
            answer.put_u64_le(bytes_max as u64);
            Bytes::from(answer)
        };
        match postcard::from_bytes(query) {
            Ok(Query::Get { key }) => match self.map.get(key) {
                None => Bytes::from_static(&[ANSWER_NONE]),
                Some(value) if value.len() >= bytes_max => too_large(),
                Some(value) => {
                    let mut answer = Vec::with_capacity(value.len() + 1);
                    answer.push(ANSWER_VALUE);
                    answer.extend_from_slice(&value);
                    answer.into()
                }
            },
            Ok(Query::Scan { from, to, limit }) => {
                let mut page = Page::default();
                // What the encoding adds: lengths, counts and the cursor.
                let mut bytes = 64 + KEY_BYTES_MAX;
                let shards = self.map.read();
                for key in self.map.keys.from(Bound::Included(from)) {
                    if to.is_some_and(|to| key.as_slice() >= to) {
                        break;
                    }
                    let table = shards[shard_of(&self.map.hasher, key.as_slice())].table();
                    let value = table.get(key).expect("the index holds exactly the keys of the shards");
                    bytes += key.as_slice().len() + value.len() + 16;
                    if page.items.len() == limit.max(1) as usize || bytes > bytes_max {
                        page.next = Some(key.to_bytes());
                        break;
                    }
                    page.items.push((key.to_bytes(), value.clone()));
                }
                if page.items.is_empty() && page.next.is_some() {
                    return too_large();
                }
                let mut answer = vec![ANSWER_PAGE];
                answer.extend_from_slice(&postcard::to_stdvec(&page).expect("a page always encodes"));
                answer.into()
            }
            Err(_) => Bytes::from_static(&[ANSWER_MALFORMED]),
        }
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(self.map.image())
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        let map = self.restoring.get_or_insert_with(Map::new);
        self.incoming.extend_from_slice(chunk);
        while let Some((key, value)) = take_record(&mut self.incoming)? {
            map.put(&key, &value);
        }
        if last {
            let whole = self.incoming.is_empty();
            self.incoming = BytesMut::new();
            self.map = self.restoring.take().expect("set above");
            if !whole {
                return Err(RestoreError { what: "the last record is cut short" });
            }
        }
        Ok(())
    }
}

const RECORD_HEADER_BYTES: usize = 8;

fn take_record(buffer: &mut BytesMut) -> Result<Option<(BytesMut, BytesMut)>, RestoreError> {
    let Some(header) = buffer.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
    let (key_bytes, value_bytes) = header.split_at(4);
    let length = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize;
    let (key_bytes, value_bytes) = (length(key_bytes), length(value_bytes));
    if key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
        return Err(RestoreError { what: "a record is larger than a keyspace allows" });
    }
    if buffer.len() < RECORD_HEADER_BYTES + key_bytes + value_bytes {
        return Ok(None);
    }
    buffer.advance(RECORD_HEADER_BYTES);
    Ok(Some((buffer.split_to(key_bytes), buffer.split_to(value_bytes))))
}

/// A point-in-time image of a keyspace: records in key order, each `u32` key length, `u32` value length, key, value.
struct Image {
    hasher: RandomState,
    shards: Vec<Arc<Table>>,
    keys: SortedKeys,
    /// The last key that a piece was begun with, and what of its record did not fit.
    after: Option<(Bytes, Bytes)>,
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes_max = bytes_max.max(1);
        let mut piece = BytesMut::new();
        // What did not fit into the piece before comes first; the key stays, for the walk goes on behind it.
        if let Some((_, rest)) = &mut self.after {
            piece.put_slice(&rest.split_to(rest.len().min(bytes_max)));
        }
        if piece.len() < bytes_max {
            let from = self.after.take();
            let start = from.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(&key[..]));
            let mut reached = from.as_ref().map(|(key, _)| (key.clone(), Bytes::new()));
            for key in self.keys.from(start) {
                let table = &self.shards[shard_of(&self.hasher, key.as_slice())];
                let value = table.get(key).expect("the index holds exactly the keys of the shards");
                let key = key.as_slice();
                let mut record = BytesMut::with_capacity(RECORD_HEADER_BYTES + key.len() + value.len());
                record.put_u32_le(key.len() as u32);
                record.put_u32_le(value.len() as u32);
                record.put_slice(key);
                record.put_slice(value);
                let fits = record.len().min(bytes_max - piece.len());
                piece.put_slice(&record.split_to(fits));
                reached = Some((Bytes::copy_from_slice(key), record.freeze()));
                if piece.len() == bytes_max {
                    break;
                }
            }
            self.after = reached;
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ReadLevel;

    fn write(keyspace: &mut Keyspace, write: &WriteRequest) -> WriteEffect {
        decode_effect(&keyspace.apply(LogIndex(1), &encode_write(write).unwrap())).unwrap()
    }

    fn scan_all(keyspace: &Keyspace, limit: u32) -> Vec<(Bytes, Bytes)> {
        let (mut from, mut all) = (Bytes::new(), Vec::new());
        loop {
            let scan = ScanRequest { from, to: None, limit, level: ReadLevel::Local };
            let page = decode_page(&keyspace.query(&encode_scan(&scan), 1 << 20)).unwrap();
            all.extend(page.items);
            match page.next {
                Some(next) => from = next,
                None => return all,
            }
        }
    }

    fn copy(keyspace: &Keyspace, piece_bytes: usize) -> Keyspace {
        let mut source = keyspace.snapshot();
        let mut other = Keyspace::new();
        while let Some(piece) = source.next(piece_bytes) {
            assert!(!piece.is_empty() && piece.len() <= piece_bytes);
            other.restore(&piece, false).unwrap();
        }
        assert_eq!(source.next(piece_bytes), None, "the end stays the end");
        other.restore(&[], true).unwrap();
        other
    }

    fn request() -> impl Strategy<Value = WriteRequest> {
        let key = proptest::collection::vec(0..3_u8, 1..4).prop_map(Bytes::from);
        let value = || proptest::collection::vec(any::<u8>(), 0..5).prop_map(Bytes::from);
        let number = (-5_i64..5).prop_map(|n| Bytes::from(n.to_string()));
        let op = prop_oneof![
            value().prop_map(|value| WriteOp::Put { value }),
            number.prop_map(|value| WriteOp::Put { value }),
            Just(WriteOp::Delete),
            (proptest::option::of(value()), proptest::option::of(value()))
                .prop_map(|(expected, new)| WriteOp::CompareAndSet { expected, new }),
            any::<i64>().prop_map(|delta| WriteOp::Add { delta }),
        ];
        (key, op).prop_map(|(key, op)| WriteRequest::new_for_test(key, op))
    }

    impl WriteRequest {
        fn new_for_test(key: Bytes, op: WriteOp) -> Self {
            let mut write = Self::delete(key);
            write.op = op;
            write
        }
    }

    proptest! {
        #[test]
        fn the_keyspace_behaves_like_an_ordered_map(writes in proptest::collection::vec(request(), 0..80), limit in 1..5_u32) {
            let mut keyspace = Keyspace::new();
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            for request in &writes {
                let found = model.get(&request.key).cloned();
                let expected = match &request.op {
                    WriteOp::Put { value } => { model.insert(request.key.clone(), value.clone()); WriteEffect::Done }
                    WriteOp::Delete => { model.remove(&request.key); WriteEffect::Done }
                    WriteOp::CompareAndSet { expected, new } => {
                        if *expected == found {
                            match new {
                                Some(new) => { model.insert(request.key.clone(), new.clone()); }
                                None => { model.remove(&request.key); }
                            }
                            WriteEffect::Done
                        } else {
                            WriteEffect::Mismatch { found }
                        }
                    }
                    WriteOp::Add { delta } => {
                        let old = match &found {
                            None => Some(0),
                            Some(value) => String::from_utf8(value.to_vec()).ok().and_then(|v| v.parse::<i64>().ok()),
                        };
                        match old.and_then(|old| old.checked_add(*delta)) {
                            Some(value) => {
                                model.insert(request.key.clone(), value.to_string().into());
                                WriteEffect::Counter { value }
                            }
                            None => WriteEffect::NotACounter,
                        }
                    }
                };
                prop_assert_eq!(write(&mut keyspace, request), expected);
            }
            let all: Vec<(Bytes, Bytes)> = model.into_iter().collect();
            prop_assert_eq!(scan_all(&keyspace, limit), all.clone());
            for piece_bytes in [1, 7, 1000] {
                prop_assert_eq!(scan_all(&copy(&keyspace, piece_bytes), 3), all.clone());
            }
        }

        #[test]
        fn arbitrary_commands_queries_and_snapshots_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut keyspace = Keyspace::new();
            keyspace.apply(LogIndex(1), &bytes);
            keyspace.query(&bytes, 100);
            let _ = keyspace.restore(&bytes, true);
        }
    }

    #[test]
    fn an_image_keeps_what_was_there_while_values_are_written_in_their_old_place() {
        let mut keyspace = Keyspace::new();
        let long = |n: u32| format!("a key that is too long to be kept in line {n}");
        for n in 0..2_000_u32 {
            write(&mut keyspace, &WriteRequest::put(n.to_string(), "one"));
            write(&mut keyspace, &WriteRequest::put(long(n), "one"));
        }
        let mut image = keyspace.snapshot();
        let held = keyspace.get(b"7");
        for n in 0..2_000_u32 {
            write(&mut keyspace, &WriteRequest::put(n.to_string(), "two"));
            write(&mut keyspace, &WriteRequest::put(long(n), "three"));
        }
        assert_eq!(held, Some("one".into()), "a value that somebody holds is not written to");
        let mut then = Keyspace::new();
        while let Some(piece) = image.next(1000) {
            then.restore(&piece, false).unwrap();
        }
        then.restore(&[], true).unwrap();
        let all = |keyspace: &Keyspace, expected: &[&str]| {
            let found = scan_all(keyspace, 100);
            found.len() == 4_000
                && found.iter().all(|(_, value)| expected.iter().any(|other| value == other.as_bytes()))
        };
        assert!(all(&then, &["one"]));
        assert!(all(&keyspace, &["two", "three"]));
    }

    #[test]
    fn leaves_split_and_vanish_and_the_order_stays() {
        let mut keys = SortedKeys::default();
        let key = |n: u32| Bytes::from((n.wrapping_mul(2_654_435_761)).to_be_bytes().to_vec());
        let mut model = std::collections::BTreeSet::new();
        for n in 0..5_000 {
            keys.insert(Key::new(&key(n)));
            model.insert(key(n));
        }
        assert!(keys.leaves.len() > 5_000 / SortedKeys::LEAF_KEYS_MAX);
        assert!(keys.from(Bound::Unbounded).map(Key::as_slice).eq(model.iter()));
        for n in (0..5_000).filter(|n| n % 7 != 0) {
            keys.remove(&key(n));
            model.remove(&key(n));
        }
        assert!(keys.from(Bound::Unbounded).map(Key::as_slice).eq(model.iter()));
        let middle = key(7 * 300);
        assert!(
            keys.from(Bound::Excluded(&middle))
                .map(Key::as_slice)
                .eq(model.range((Bound::Excluded(middle.clone()), Bound::Unbounded)))
        );
        for n in (0..5_000).step_by(7) {
            keys.remove(&key(n));
        }
        assert_eq!((keys.leaves.len(), keys.len), (0, 0));
    }

    #[test]
    fn a_snapshot_shows_the_moment_it_was_taken() {
        let mut keyspace = Keyspace::new();
        write(&mut keyspace, &WriteRequest::put("a", "old"));
        let mut source = keyspace.snapshot();
        write(&mut keyspace, &WriteRequest::put("a", "new"));
        write(&mut keyspace, &WriteRequest::put("b", "later"));
        let mut other = Keyspace::new();
        other.restore(&source.next(100).unwrap(), true).unwrap();
        assert_eq!(scan_all(&other, 9), vec![(Bytes::from("a"), Bytes::from("old"))]);
    }

    #[test]
    fn pages_stop_at_the_bytes_asked_for_and_go_on_behind() {
        let mut keyspace = Keyspace::new();
        for i in 0..10_u8 {
            write(&mut keyspace, &WriteRequest::put(vec![i], vec![i; 2000]));
        }
        let scan = ScanRequest { from: Bytes::new(), to: None, limit: 100, level: ReadLevel::Local };
        let page = decode_page(&keyspace.query(&encode_scan(&scan), 10_000)).unwrap();
        assert!(!page.items.is_empty() && page.items.len() < 10);
        assert_eq!(page.next, Some(Bytes::from(vec![page.items.len() as u8])));
    }

    #[test]
    fn sizes_out_of_range_are_refused_before_anything_is_replicated() {
        assert_eq!(encode_write(&WriteRequest::put("", "v")), Err(KeyspaceError::Key { bytes: 0 }));
        assert_eq!(
            encode_write(&WriteRequest::put("k", vec![0; VALUE_BYTES_MAX + 1])),
            Err(KeyspaceError::Value { bytes: VALUE_BYTES_MAX + 1 })
        );
    }
}
