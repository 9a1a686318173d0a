//! Partitioners: from a key to its position in the space that partitions cut.
//!
//! Invariant: every partitioner orders its positions as byte strings, so bounds are byte strings and one directory serves all
//! of them. A position is a key's own bytes ([`KeyOrder`]), its slot ([`HashSlots`]), or the slot of its prefix followed by the key
//! ([`HashThenRange`]). Source: DDIA chapter 6, "Partitioning of Key-Value Data"; Redis Cluster's 16,384 slots.

mod hash;

use core::cmp::Ordering;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::span::{Span, behind_prefix};

pub use hash::{SLOTS, Slot, SlotHash};

/// Where a key stands in the space that partitions cut: up to two bytes of a slot, then bytes of the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'k> {
    slot: Option<Slot>,
    rest: &'k [u8],
}

impl Position<'_> {
    /// Orders it against a bound.
    pub fn cmp_bound(&self, bound: &[u8]) -> Ordering {
        let Some(slot) = self.slot else { return self.rest.cmp(bound) };
        let head = slot.to_bytes();
        match bound.split_at_checked(head.len()) {
            Some((bound_head, bound_rest)) => head[..].cmp(bound_head).then_with(|| self.rest.cmp(bound_rest)),
            // A bound that is shorter than a slot stands before everything that begins with it.
            None => head[..].cmp(bound).then(Ordering::Greater),
        }
    }

    /// Its slot, where there is one.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// As a byte string.
    pub fn to_bytes(&self) -> Bytes {
        match self.slot {
            Some(slot) => Bytes::from([&slot.to_bytes(), self.rest].concat()),
            None => Bytes::copy_from_slice(self.rest),
        }
    }

    /// What is behind `prefix`, if it begins with it; else how it stands to everything that does. Only a position without a slot has
    /// anything to strip.
    #[inline]
    pub(crate) fn strip(&self, prefix: &[u8]) -> Result<Self, Ordering> {
        if prefix.is_empty() {
            return Ok(*self);
        }
        match self.rest.strip_prefix(prefix) {
            Some(rest) => Ok(Self { slot: self.slot, rest }),
            None => Err(self.rest.cmp(prefix)),
        }
    }

    /// Its first eight bytes as a number of the same order, filled up with zeroes.
    #[inline]
    pub(crate) fn head(&self) -> u64 {
        match self.slot {
            None => head(self.rest),
            Some(slot) => (u64::from(slot.get()) << 48) | (head(self.rest) >> 16),
        }
    }
}

/// The first eight bytes as a number of the same order, filled up with zeroes.
#[inline]
pub(crate) fn head(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    // Two overlapping halves, or three bytes: no loop and no call.
    let place = |value: u64, end: usize| value << (8 * (8 - end));
    match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), Some(last)) => {
            place(u64::from(u32::from_be_bytes(*first)), 4) | place(u64::from(u32::from_be_bytes(*last)), bytes.len())
        }
        _ => [0, bytes.len() / 2, bytes.len().saturating_sub(1)]
            .iter()
            .fold(0, |head, &at| bytes.get(at).map_or(head, |byte| head | place(u64::from(*byte), at + 1))),
    }
}

/// Why a byte string cannot be a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// Bounds between hash slots are slots: two bytes, from 1 to below [`SLOTS`]. The caller's mistake; nothing has changed.
    #[error("a bound between hash slots is a slot of two bytes from 1 to below {SLOTS}")]
    NoSlot,
    /// Bounds of hash-then-range begin with a slot. The caller's mistake; nothing has changed.
    #[error("a bound of hash-then-range begins with a slot of two bytes below {SLOTS}")]
    NoSlotInFront,
}

/// From keys to positions.
pub trait Partitioner {
    /// Where a key stands. Called for each request, on any thread; must not block. The same for the same key, always.
    fn position<'k>(&self, key: &'k [u8]) -> Position<'k>;

    /// Whether a key of `keys` may stand in `positions`. May say yes when none does, never no when one does.
    fn meets(&self, keys: &Span, positions: &Span) -> bool;

    /// One stretch of positions in which all keys of `keys` stand, as short as can be told; [`Span::ALL`] if nothing shorter can.
    fn reach(&self, keys: &Span) -> Span;

    /// Whether a byte string may be a bound between partitions. The empty one, before everything, always may.
    ///
    /// # Errors
    /// Why it may not.
    fn check_bound(&self, bound: &[u8]) -> Result<(), BoundError>;

    /// The first bound behind a position: a cut there leaves the position, and nothing that follows it, on the left.
    fn bound_behind(&self, position: &[u8]) -> Bytes {
        Bytes::from([position, &[0]].concat())
    }
}

/// A key's position is the key: neighbours stay together, and sequential writes meet one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOrder;

impl Partitioner for KeyOrder {
    #[inline]
    fn position<'k>(&self, key: &'k [u8]) -> Position<'k> {
        Position { slot: None, rest: key }
    }

    fn meets(&self, keys: &Span, positions: &Span) -> bool {
        keys.meets(positions)
    }

    fn reach(&self, keys: &Span) -> Span {
        keys.clone()
    }

    fn check_bound(&self, _: &[u8]) -> Result<(), BoundError> {
        Ok(())
    }
}

/// A key's position is its slot: load spreads, and a scan meets every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashSlots {
    /// From keys to slots.
    pub hash: SlotHash,
}

impl HashSlots {
    /// Bounds that cut the slots into this many stretches as equal as can be, without the empty one in front.
    ///
    /// `partitions` is taken to be at least 1 and at most [`SLOTS`].
    pub fn even_bounds(partitions: u16) -> impl Iterator<Item = Bytes> {
        let partitions = u32::from(partitions.clamp(1, SLOTS));
        (1..partitions).map(move |nth| {
            let slot = u32::from(SLOTS) * nth / partitions;
            Bytes::copy_from_slice(&(slot as u16).to_be_bytes())
        })
    }
}

impl Partitioner for HashSlots {
    fn position<'k>(&self, key: &'k [u8]) -> Position<'k> {
        Position { slot: Some(self.hash.slot(key)), rest: &[] }
    }

    fn meets(&self, keys: &Span, positions: &Span) -> bool {
        !keys.is_empty() && (!keys.is_one() || self.reach(keys).meets(positions))
    }

    fn reach(&self, keys: &Span) -> Span {
        if keys.is_one() { Span::one(&self.hash.slot(&keys.start).to_bytes()) } else { Span::ALL }
    }

    fn check_bound(&self, bound: &[u8]) -> Result<(), BoundError> {
        match bound {
            [] => Ok(()),
            // Nothing stands in front of the first slot, so it bounds nothing.
            [0, 0] => Err(BoundError::NoSlot),
            [high, low] if Slot::new(u16::from_be_bytes([*high, *low])).is_some() => Ok(()),
            _ => Err(BoundError::NoSlot),
        }
    }

    /// The next slot; behind the last one a bound that no partition can have.
    fn bound_behind(&self, position: &[u8]) -> Bytes {
        let slot = position.first_chunk::<2>().map_or(0, |slot| u16::from_be_bytes(*slot));
        Bytes::copy_from_slice(&slot.saturating_add(1).to_be_bytes())
    }
}

/// Which part of a key is hashed by [`HashThenRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashedPrefix {
    /// Up to and with the first such byte; the whole key if it has none.
    Until(u8),
    /// So many bytes; the whole key if it is shorter.
    Bytes(u16),
}

impl HashedPrefix {
    fn of(self, key: &[u8]) -> &[u8] {
        let length = match self {
            Self::Until(byte) => key.iter().position(|it| *it == byte).map_or(key.len(), |at| at + 1),
            Self::Bytes(length) => usize::from(length).min(key.len()),
        };
        &key[..length]
    }

    /// The prefix that all keys of the range have, if it decides their slot.
    fn shared(self, keys: &Span) -> Option<&[u8]> {
        if keys.is_one() {
            return Some(self.of(&keys.start));
        }
        let prefix = self.of(&keys.start);
        let complete = match self {
            Self::Until(byte) => prefix.last() == Some(&byte),
            Self::Bytes(length) => prefix.len() == usize::from(length),
        };
        let within = match (keys.end.as_deref(), behind_prefix(prefix)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(end), Some(behind)) => *end <= *behind,
        };
        (complete && within).then_some(prefix)
    }
}

/// A key's position is the slot of its prefix, then the key: what shares a prefix stays together and in order, and the prefixes
/// spread (Cassandra's partition key and clustering columns, in DDIA's words a compromise between both).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashThenRange {
    /// From prefixes to slots.
    pub hash: SlotHash,
    /// Which part of a key is hashed.
    pub prefix: HashedPrefix,
}

impl HashThenRange {
    fn at(slot: [u8; 2], keys: &Span) -> Span {
        let behind_slot = || behind_prefix(&slot);
        let end = keys.end.as_ref().map(|end| Bytes::from([&slot[..], end].concat())).or_else(behind_slot);
        Span::new([&slot[..], &keys.start].concat(), end)
    }
}

impl Partitioner for HashThenRange {
    fn position<'k>(&self, key: &'k [u8]) -> Position<'k> {
        Position { slot: Some(self.hash.slot(self.prefix.of(key))), rest: key }
    }

    fn meets(&self, keys: &Span, positions: &Span) -> bool {
        if keys.is_empty() || positions.is_empty() {
            return false;
        }
        if let Some(prefix) = self.prefix.shared(keys) {
            return Self::at(self.hash.slot(prefix).to_bytes(), keys).meets(positions);
        }
        // Some slot's part of the range: the first slot's and the last one's are looked at, those between are whole.
        let slot_of = |bound: &[u8]| bound.first_chunk::<2>().map_or(0, |slot| u16::from_be_bytes(*slot));
        let first = slot_of(&positions.start);
        let last = positions.end.as_deref().map_or(SLOTS - 1, slot_of).min(SLOTS - 1);
        last > first + 1 || [first, last].iter().any(|slot| Self::at(slot.to_be_bytes(), keys).meets(positions))
    }

    fn reach(&self, keys: &Span) -> Span {
        match self.prefix.shared(keys) {
            Some(prefix) => Self::at(self.hash.slot(prefix).to_bytes(), keys),
            None => Span::ALL,
        }
    }

    fn check_bound(&self, bound: &[u8]) -> Result<(), BoundError> {
        match bound {
            [] => Ok(()),
            [high, low, ..] if Slot::new(u16::from_be_bytes([*high, *low])).is_some() => Ok(()),
            _ => Err(BoundError::NoSlotInFront),
        }
    }
}

/// The partitioner of a map, as it is written down in it: which one, with its hash function and seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// By key range.
    KeyOrder(KeyOrder),
    /// By hash slot.
    HashSlots(HashSlots),
    /// By the hash of a prefix, then by key range.
    HashThenRange(HashThenRange),
}

impl Scheme {
    /// By key range.
    pub const KEY_ORDER: Self = Self::KeyOrder(KeyOrder);

    /// By hash slot, with XXH3 and this seed.
    pub const fn hash_slots(seed: u64) -> Self {
        Self::HashSlots(HashSlots { hash: SlotHash::Xxh3 { seed } })
    }

    fn inner(&self) -> &dyn Partitioner {
        match self {
            Self::KeyOrder(it) => it,
            Self::HashSlots(it) => it,
            Self::HashThenRange(it) => it,
        }
    }
}

impl Partitioner for Scheme {
    #[inline]
    fn position<'k>(&self, key: &'k [u8]) -> Position<'k> {
        match self {
            Self::KeyOrder(it) => it.position(key),
            Self::HashSlots(it) => it.position(key),
            Self::HashThenRange(it) => it.position(key),
        }
    }

    fn meets(&self, keys: &Span, positions: &Span) -> bool {
        self.inner().meets(keys, positions)
    }

    fn reach(&self, keys: &Span) -> Span {
        self.inner().reach(keys)
    }

    fn check_bound(&self, bound: &[u8]) -> Result<(), BoundError> {
        self.inner().check_bound(bound)
    }

    fn bound_behind(&self, position: &[u8]) -> Bytes {
        self.inner().bound_behind(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: SlotHash = SlotHash::Xxh3 { seed: 5 };

    fn schemes() -> impl Strategy<Value = Scheme> {
        prop_oneof![
            Just(Scheme::KEY_ORDER),
            Just(Scheme::HashSlots(HashSlots { hash: HASH })),
            Just(Scheme::HashSlots(HashSlots { hash: SlotHash::RedisCrc16 })),
            Just(Scheme::HashThenRange(HashThenRange { hash: HASH, prefix: HashedPrefix::Until(b':') })),
            (0_u16..4).prop_map(|length| {
                Scheme::HashThenRange(HashThenRange { hash: HASH, prefix: HashedPrefix::Bytes(length) })
            }),
        ]
    }

    // Few letters, so that keys share prefixes and ranges hold keys.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0), Just(b':'), Just(b'a'), Just(255)], 0..6)
    }

    fn bound(scheme: Scheme, key: &[u8], cut: usize) -> Bytes {
        let bytes = scheme.position(key).to_bytes();
        match scheme {
            Scheme::KeyOrder(_) => bytes.slice(..cut.min(bytes.len())),
            _ => bytes.slice(..(cut + 2).min(bytes.len())),
        }
    }

    proptest! {
        #[test]
        fn a_position_orders_as_its_bytes(scheme in schemes(), a in key(), b in key(), cut in 0_usize..6) {
            let bound = bound(scheme, &b, cut);
            prop_assert_eq!(scheme.position(&a).cmp_bound(&bound), scheme.position(&a).to_bytes().cmp(&bound));
            prop_assert_eq!(scheme.position(&a).head(), head(&scheme.position(&a).to_bytes()));
            let bounds_nothing = matches!(scheme, Scheme::HashSlots(_)) && *bound == [0, 0];
            prop_assert_eq!(scheme.check_bound(&bound).is_err(), bounds_nothing);
        }

        #[test]
        fn no_key_of_a_range_stands_where_the_range_is_said_not_to_reach(
            scheme in schemes(), keys in (key(), proptest::option::of(key())), found in key(), cuts in (key(), key(), 0_usize..6)
        ) {
            let keys = Span::new(keys.0, keys.1.map(Bytes::from));
            prop_assume!(keys.contains(&found));
            let position = scheme.position(&found).to_bytes();
            prop_assert!(scheme.reach(&keys).contains(&position), "{:?} of {:?} is not in {:?}", position, keys, scheme.reach(&keys));
            let positions = Span::new(bound(scheme, &cuts.0, cuts.2), Some(bound(scheme, &cuts.1, cuts.2)));
            prop_assert!(!positions.contains(&position) || scheme.meets(&keys, &positions));
        }
    }

    #[test]
    fn a_range_within_one_prefix_reaches_one_slot_only() {
        let scheme = HashThenRange { hash: HASH, prefix: HashedPrefix::Until(b':') };
        let reach = scheme.reach(&Span::prefixed(b"user1:"));
        assert_eq!(reach.start.len(), 2 + 6);
        assert!(reach.contains(&scheme.position(b"user1:mail").to_bytes()));
        assert_eq!(scheme.reach(&Span::prefixed(b"user")), Span::ALL);
        assert_eq!(scheme.reach(&Span::one(b"user")).start.len(), 2 + 4);
    }

    #[test]
    fn a_range_over_prefixes_leaves_out_what_no_slot_has() {
        let scheme = HashThenRange { hash: HASH, prefix: HashedPrefix::Until(b':') };
        let within_slot_7 = Span::new(&[0, 7, b'm'][..], Some(Bytes::from_static(&[0, 7, b'p'])));
        assert!(scheme.meets(&Span::new("n", Some("o".into())), &within_slot_7));
        assert!(!scheme.meets(&Span::new("q", Some("r".into())), &within_slot_7));
        assert!(scheme.meets(
            &Span::new("q", Some("r".into())),
            &Span::new(&[0, 7, b'm'][..], Some(Bytes::from_static(&[0, 8])))
        ));
    }

    #[test]
    fn bounds_that_are_no_slots_are_refused() {
        let slots = HashSlots { hash: HASH };
        assert_eq!(slots.check_bound(&[0x40, 0]), Err(BoundError::NoSlot));
        assert_eq!(slots.check_bound(&[0, 0]), Err(BoundError::NoSlot));
        assert_eq!(slots.check_bound(&[1]), Err(BoundError::NoSlot));
        assert_eq!(slots.check_bound(&[1, 2, 3]), Err(BoundError::NoSlot));
        let compound = HashThenRange { hash: HASH, prefix: HashedPrefix::Bytes(2) };
        assert_eq!(compound.check_bound(&[0x40, 0, 1]), Err(BoundError::NoSlotInFront));
        assert_eq!(compound.check_bound(&[0x3f, 255, 1]), Ok(()));
    }

    #[test]
    fn even_bounds_cut_slots_into_equal_stretches() {
        let cuts: Vec<_> = HashSlots::even_bounds(3).map(|bound| u16::from_be_bytes([bound[0], bound[1]])).collect();
        assert_eq!(cuts, [5461, 10922]);
        assert_eq!(HashSlots::even_bounds(SLOTS).count(), usize::from(SLOTS) - 1);
        assert_eq!(HashSlots::even_bounds(1).count(), 0);
    }
}
