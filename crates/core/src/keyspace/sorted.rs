//! Keys in order: leaves that are copied on write, and keys that need no allocation while they are short.
//!
//! Invariant: leaves are ascending, none is empty, and none holds more than [`SortedKeys::LEAF_KEYS_MAX`] keys.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

/// A key. Short ones need no allocation, and comparing them no visit to another cache line.
#[derive(Clone)]
pub(super) enum Key {
    Short { len: u8, bytes: [u8; Self::SHORT_BYTES_MAX] },
    Long(Bytes),
}

impl Key {
    /// As much as fits beside what [`Bytes`] takes anyway.
    const SHORT_BYTES_MAX: usize = 23;

    pub(super) fn new(key: &[u8]) -> Self {
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

/// Where a walk over the keys stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    leaf: usize,
    slot: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SortedKeys {
    leaves: Vec<Arc<Vec<Key>>>,
    len: usize,
}

impl SortedKeys {
    const LEAF_KEYS_MAX: usize = 512;

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The leaf that holds the key, or would.
    fn leaf_of(&self, key: &[u8]) -> usize {
        self.leaves.partition_point(|leaf| leaf[0].as_slice() <= key).saturating_sub(1)
    }

    /// Adds a key that is not there.
    pub(super) fn insert(&mut self, key: Key) {
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
    pub(super) fn remove(&mut self, key: &[u8]) {
        let at = self.leaf_of(key);
        let leaf = Arc::make_mut(&mut self.leaves[at]);
        let slot = leaf.partition_point(|other| other.as_slice() < key);
        leaf.remove(slot);
        self.len -= 1;
        if leaf.is_empty() {
            self.leaves.remove(at);
        }
    }

    /// Where a walk begins.
    pub(super) fn place(&self, from: Bound<&[u8]>) -> Place {
        let (Bound::Included(key) | Bound::Excluded(key)) = from else { return Place::default() };
        let leaf = self.leaf_of(key);
        let before = |other: &Key| match from {
            Bound::Excluded(key) => other.as_slice() <= key,
            _ => other.as_slice() < key,
        };
        let slot = self.leaves.get(leaf).map_or(0, |keys| keys.partition_point(before));
        Place { leaf, slot }
    }

    /// The key at a place, or the next one; the walk goes on behind it.
    pub(super) fn next(&self, place: &mut Place) -> Option<&Key> {
        loop {
            let leaf = self.leaves.get(place.leaf)?;
            if let Some(key) = leaf.get(place.slot) {
                place.slot += 1;
                return Some(key);
            }
            *place = Place { leaf: place.leaf + 1, slot: 0 };
        }
    }

    pub(super) fn from(&self, from: Bound<&[u8]>) -> impl Iterator<Item = &Key> {
        let Place { leaf, slot } = self.place(from);
        self.leaves[leaf.min(self.leaves.len())..].iter().flat_map(|leaf| leaf.iter()).skip(slot)
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
        for n in 0..5_000 {
            let middle = key(n);
            let behind = model.range((Bound::Excluded(middle.clone()), Bound::Unbounded)).next();
            let at_or_behind = model.range(middle.clone()..).next();
            assert_eq!(
                keys.next(&mut keys.place(Bound::Excluded(&middle))).map(Key::as_slice),
                behind.map(|key| &key[..])
            );
            assert_eq!(keys.from(Bound::Included(&middle)).next().map(Key::as_slice), at_or_behind.map(|key| &key[..]));
        }
        for n in (0..5_000).step_by(7) {
            keys.remove(&key(n));
        }
        assert_eq!((keys.leaves.len(), keys.len), (0, 0));
    }
}
