//! The sorted map that images share with the live state: keys in copied leaves, values in shards found by hash.
//!
//! Invariant: the sorted index holds exactly the keys of the shards.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::Image;

const SHARDS: usize = 1 << 10;

pub(super) type Table = HashMap<Key, Bytes, RandomState>;

/// A key. Short ones need no allocation, and comparing them no visit to another cache line.
#[derive(Clone)]
pub(super) enum Key {
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
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
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
pub(super) enum Shard {
    Own(Table),
    Shared(Arc<Table>),
}

impl Shard {
    pub(super) fn table(&self) -> &Table {
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
pub(super) struct Map {
    pub(super) hasher: RandomState,
    /// Locked by who reads or takes an image; who writes has it for itself.
    shards: Mutex<Vec<Shard>>,
    pub(super) keys: SortedKeys,
}

pub(super) fn shard_of(hasher: &RandomState, key: &[u8]) -> usize {
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
    pub(super) fn new() -> Self {
        let hasher = RandomState::default();
        let empty = Arc::new(Table::with_hasher(hasher.clone()));
        let shards = (0..SHARDS).map(|_| Shard::Shared(Arc::clone(&empty))).collect();
        Self { hasher, shards: Mutex::new(shards), keys: SortedKeys::default() }
    }

    pub(super) fn read(&self) -> MutexGuard<'_, Vec<Shard>> {
        // No code that can panic leaves a shard half written.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn shard(&mut self, key: &[u8]) -> &mut Shard {
        let at = shard_of(&self.hasher, key);
        &mut self.shards.get_mut().unwrap_or_else(PoisonError::into_inner)[at]
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.read()[shard_of(&self.hasher, key)].table().get(key).cloned()
    }

    /// The value of a key, borrowed, for who may also write.
    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&Bytes> {
        self.shard(key).table().get(key)
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        let table = self.shard(key).own();
        if let Some(slot) = table.get_mut(key) {
            return overwrite(slot, value);
        }
        let key = Key::new(key);
        table.insert(key.clone(), Bytes::copy_from_slice(value));
        self.keys.insert(key);
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        let shard = self.shard(key);
        // Looked up first: a delete of an absent key must not copy a shard that an image shares.
        if shard.table().contains_key(key) {
            shard.own().remove(key);
            self.keys.remove(key);
        }
    }

    pub(super) fn image(&self) -> Image {
        let shards = self.read().iter_mut().map(Shard::share).collect();
        Image { hasher: self.hasher.clone(), shards, keys: self.keys.clone(), after: None }
    }
}

/// Sorted keys in leaves that are copied on write. Invariant: leaves are ascending, none is empty, and none holds more than
/// [`SortedKeys::LEAF_KEYS_MAX`] keys.
#[derive(Clone, Debug, Default)]
pub(super) struct SortedKeys {
    leaves: Vec<Arc<Vec<Key>>>,
    pub(super) len: usize,
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

    pub(super) fn from<'a>(&'a self, from: Bound<&'a [u8]>) -> impl Iterator<Item = &'a Key> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
