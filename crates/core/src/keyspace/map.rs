//! The sorted map that images share with the live state: keys in order, values in shards that are found by hash.
//!
//! Invariant: the sorted index holds exactly the keys of the shards. An image shares both with the map (copy on write), so
//! taking one costs one reference count a shard and leaf. A shard that no image holds is written to without any atomic
//! operation. There are twice as many shards when keys are many for those there are, so that an empty map is small: a node may
//! hold ten thousand.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::sorted::{Key, Place, SortedKeys};

const SHARDS_MAX: usize = 1 << 10;
/// Keys for each shard at which there become twice as many shards, so that few keys are ever moved at once.
const SHARD_KEYS: usize = 16;

type Table<V> = HashMap<Key, V, RandomState>;

const INDEX_HOLDS: &str = "the index holds exactly the keys of the shards";

/// Which of so many shards has a key; a power of two.
fn shard_of(hasher: &RandomState, key: &[u8], shards: usize) -> usize {
    // The upper bits: the shard's own table uses the lower ones.
    (hasher.hash_one(key) >> 40) as usize & (shards - 1)
}

/// A part of the values. Nobody looks at an own one but the map, so writing to it takes no atomic operation.
#[derive(Debug)]
enum Shard<V> {
    Own(Table<V>),
    Shared(Arc<Table<V>>),
}

impl<V> Shard<V> {
    fn table(&self) -> &Table<V> {
        match self {
            Self::Own(table) => table,
            Self::Shared(table) => table,
        }
    }

    /// The table for an image, which the map goes on to read.
    fn share(&mut self) -> Arc<Table<V>> {
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

impl<V: Clone> Shard<V> {
    /// The table, to take it apart; a copy of it if an image still holds it.
    fn into_table(self) -> Table<V> {
        match self {
            Self::Own(table) => table,
            Self::Shared(shared) => Arc::unwrap_or_clone(shared),
        }
    }

    /// The table to write to; a copy of it if an image still holds it.
    #[inline]
    fn own(&mut self) -> &mut Table<V> {
        if let Self::Shared(shared) = self {
            let empty = Table::with_hasher(shared.hasher().clone());
            *self = Self::Own(std::mem::replace(Arc::make_mut(shared), empty));
        }
        match self {
            Self::Own(table) => table,
            Self::Shared(_) => unreachable!("made its own just now"),
        }
    }
}

/// Keys in order, each with a value, and cheap images of a moment: what a replica of key-value data keeps.
///
/// A write to a key that is there walks no tree. The order of the keys never depends on hashes.
#[derive(Debug)]
pub struct Map<V> {
    hasher: RandomState,
    /// Locked by who reads or takes an image; who writes has it for itself.
    shards: Mutex<Vec<Shard<V>>>,
    keys: SortedKeys,
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Map<V> {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        let hasher = RandomState::default();
        let only = Shard::Own(Table::with_hasher(hasher.clone()));
        Self { hasher, shards: Mutex::new(vec![only]), keys: SortedKeys::default() }
    }

    /// Number of keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(&self) -> MutexGuard<'_, Vec<Shard<V>>> {
        // No code that can panic leaves a shard half written.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn shard(&mut self, key: &[u8]) -> &mut Shard<V> {
        let shards = self.shards.get_mut().unwrap_or_else(PoisonError::into_inner);
        let at = shard_of(&self.hasher, key, shards.len());
        &mut shards[at]
    }

    /// A copy of the value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<V>
    where
        V: Clone,
    {
        let shards = self.read();
        shards[shard_of(&self.hasher, key, shards.len())].table().get(key).cloned()
    }

    /// The value of a key, borrowed, for who may also write.
    #[must_use]
    pub fn peek(&mut self, key: &[u8]) -> Option<&V> {
        self.shard(key).table().get(key)
    }

    /// Calls `visit` for the keys from a bound on, ascending, until it breaks. The map is locked meanwhile: `visit` must not
    /// use it.
    pub fn for_each_from(&self, from: Bound<&[u8]>, mut visit: impl FnMut(&[u8], &V) -> ControlFlow<()>) {
        let shards = self.read();
        for key in self.keys.from(from) {
            let key = key.as_slice();
            let value = shards[shard_of(&self.hasher, key, shards.len())].table().get(key).expect(INDEX_HOLDS);
            if visit(key, value).is_break() {
                return;
            }
        }
    }

    /// The map as it is now; later writes do not change the image.
    #[must_use]
    pub fn image(&self) -> MapImage<V> {
        let shards = self.read().iter_mut().map(Shard::share).collect();
        MapImage { hasher: self.hasher.clone(), shards, keys: self.keys.clone(), place: Place::default() }
    }
}

impl<V: Clone> Map<V> {
    /// Sets the value of a key.
    pub fn insert(&mut self, key: &[u8], value: V) {
        let table = self.shard(key).own();
        match table.get_mut(key) {
            Some(slot) => *slot = value,
            None => self.add(key, value),
        }
    }

    /// Changes the value of a key in its place; an absent key is added with the default value first.
    pub fn update<R>(&mut self, key: &[u8], change: impl FnOnce(&mut V) -> R) -> R
    where
        V: Default,
    {
        let table = self.shard(key).own();
        if let Some(slot) = table.get_mut(key) {
            return change(slot);
        }
        let mut value = V::default();
        let result = change(&mut value);
        self.add(key, value);
        result
    }

    /// Removes a key; returns whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let shard = self.shard(key);
        // Looked up first: removing an absent key must not copy a shard that an image shares.
        let found = shard.table().contains_key(key);
        if found {
            shard.own().remove(key);
            self.keys.remove(key);
        }
        found
    }

    /// Adds a key that is not there.
    fn add(&mut self, key: &[u8], value: V) {
        let key = Key::new(key);
        self.shard(key.as_slice()).own().insert(key.clone(), value);
        self.keys.insert(key);
        let keys = self.keys.len();
        let shards = self.shards.get_mut().unwrap_or_else(PoisonError::into_inner);
        if keys > shards.len() * SHARD_KEYS && shards.len() < SHARDS_MAX {
            *shards = spread(&self.hasher, core::mem::take(shards));
        }
    }
}

/// Twice as many shards with the same keys.
fn spread<V: Clone>(hasher: &RandomState, shards: Vec<Shard<V>>) -> Vec<Shard<V>> {
    let count = shards.len() * 2;
    let mut tables: Vec<Table<V>> = (0..count).map(|_| Table::with_hasher(hasher.clone())).collect();
    for (key, value) in shards.into_iter().flat_map(Shard::into_table) {
        tables[shard_of(hasher, key.as_slice(), count)].insert(key, value);
    }
    tables.into_iter().map(Shard::Own).collect()
}

impl Map<Bytes> {
    /// Sets the value of a key; one of the same length that nobody else holds is written over in its place.
    pub fn overwrite(&mut self, key: &[u8], value: &[u8]) {
        let table = self.shard(key).own();
        if let Some(slot) = table.get_mut(key) {
            return overwrite(slot, value);
        }
        self.add(key, Bytes::copy_from_slice(value));
    }
}

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

/// A [`Map`] as it was at one moment, and a walk over it in key order.
pub struct MapImage<V> {
    hasher: RandomState,
    shards: Vec<Arc<Table<V>>>,
    keys: SortedKeys,
    place: Place,
}

impl<V> MapImage<V> {
    /// Number of keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key of the walk and its value, borrowed; `None` at the end, and from then on.
    pub fn advance(&mut self) -> Option<(&[u8], &V)> {
        let key = self.keys.next(&mut self.place)?.as_slice();
        Some((key, self.value(key)))
    }

    /// Lets the walk go on behind a key, or from the beginning.
    pub fn seek(&mut self, after: Option<&[u8]>) {
        self.place = self.keys.place(after.map_or(Bound::Unbounded, Bound::Excluded));
    }

    /// The first key behind another one, or the first of all, with its value. Does not move the walk.
    #[must_use]
    pub fn next_after(&self, after: Option<&[u8]>) -> Option<(Bytes, V)>
    where
        V: Clone,
    {
        let mut place = self.keys.place(after.map_or(Bound::Unbounded, Bound::Excluded));
        let key = self.keys.next(&mut place)?;
        Some((key.to_bytes(), self.value(key.as_slice()).clone()))
    }

    fn value(&self, key: &[u8]) -> &V {
        self.shards[shard_of(&self.hasher, key, self.shards.len())].get(key).expect(INDEX_HOLDS)
    }
}

impl<V: Clone> Iterator for MapImage<V> {
    type Item = (Bytes, V);

    fn next(&mut self) -> Option<(Bytes, V)> {
        let key = self.keys.next(&mut self.place)?;
        Some((key.to_bytes(), self.value(key.as_slice()).clone()))
    }
}

impl<V> fmt::Debug for MapImage<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapImage").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Insert(u32),
        Double,
        Remove,
        Image,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => any::<u32>().prop_map(Act::Insert),
            3 => Just(Act::Double),
            3 => Just(Act::Remove),
            1 => Just(Act::Image),
        ]
    }

    fn all(map: &Map<u32>, from: Bound<&[u8]>, count: usize) -> Vec<(Bytes, u32)> {
        let mut found = Vec::new();
        map.for_each_from(from, |key, value| {
            if found.len() == count {
                return ControlFlow::Break(());
            }
            found.push((Bytes::copy_from_slice(key), *value));
            ControlFlow::Continue(())
        });
        found
    }

    #[test]
    fn an_empty_map_has_one_shard_and_one_with_many_keys_has_as_many_as_there_can_be() {
        let mut map = Map::new();
        assert_eq!(map.read().len(), 1);
        for key in 0..(SHARDS_MAX * SHARD_KEYS * 2) as u32 {
            map.insert(&key.to_le_bytes(), key);
            let shards = map.read().len();
            assert!(shards == SHARDS_MAX || map.len() <= shards * SHARD_KEYS);
        }
        assert_eq!(map.read().len(), SHARDS_MAX);
        assert!((0..map.len() as u32).all(|key| map.get(&key.to_le_bytes()) == Some(key)));
    }

    proptest! {
        #[test]
        fn the_map_is_an_ordered_map_and_its_images_stay_as_they_were(
            acts in proptest::collection::vec((proptest::collection::vec(0..4_u8, 1..30), act()), 0..80),
            middle in proptest::collection::vec(0..4_u8, 0..4),
            count in 0..10_usize,
        ) {
            let (mut map, mut model) = (Map::new(), BTreeMap::new());
            let mut images = Vec::new();
            for (key, act) in acts {
                match act {
                    Act::Insert(value) => {
                        map.insert(&key, value);
                        model.insert(Bytes::from(key), value);
                    }
                    Act::Double => {
                        let now = map.update(&key, |value| { *value = value.wrapping_mul(2).wrapping_add(1); *value });
                        let value = model.entry(Bytes::from(key)).or_insert(0);
                        *value = value.wrapping_mul(2).wrapping_add(1);
                        prop_assert_eq!(now, *value);
                    }
                    Act::Remove => prop_assert_eq!(map.remove(&key), model.remove(&key[..]).is_some()),
                    Act::Image => images.push((map.image(), model.clone())),
                }
            }
            images.push((map.image(), model.clone()));
            prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            let some = |from| model.range::<[u8], _>((from, Bound::Unbounded)).take(count);
            for from in [Bound::Unbounded, Bound::Included(&middle[..]), Bound::Excluded(&middle[..])] {
                prop_assert!(all(&map, from, count).into_iter().eq(some(from).map(|(key, value)| (key.clone(), *value))));
            }
            prop_assert_eq!(map.get(&middle), model.get(&middle[..]).copied());
            prop_assert_eq!(map.peek(&middle), model.get(&middle[..]));
            for (mut image, model) in images {
                let behind = model.range::<[u8], _>((Bound::Excluded(&middle[..]), Bound::Unbounded)).next();
                prop_assert_eq!(image.next_after(Some(&middle)), behind.map(|(key, value)| (key.clone(), *value)));
                let first = model.iter().next().map(|(key, value)| (key.clone(), *value));
                prop_assert_eq!(image.next_after(None), first);
                prop_assert!(image.by_ref().eq(model.clone()));
                prop_assert_eq!(image.advance(), None);
                image.seek(Some(&middle));
                prop_assert_eq!(image.next().map(|(key, _)| key), behind.map(|(key, _)| key.clone()));
            }
        }
    }
}
