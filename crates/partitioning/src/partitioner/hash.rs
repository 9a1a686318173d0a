//! Which of the 16,384 slots a key falls into.
//!
//! Invariant: the function and its seed are part of the map; the same key has the same slot on every machine and in every
//! version of this crate, whatever it is compiled for.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Slots of the hash space, as in Redis Cluster. A power of two, so that a slot is the upper bits of a hash.
pub const SLOTS: u16 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;

/// A slot of the hash space, below [`SLOTS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of this number; none from [`SLOTS`] on.
    pub const fn new(slot: u16) -> Option<Self> {
        if slot < SLOTS { Some(Self(slot)) } else { None }
    }

    /// Its number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Its number as a bound: two bytes, the higher one first.
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }
}

/// From a key, or a part of it, to its slot. Kept in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotHash {
    /// XXH3 with 64 bits: the upper 14 bits are the slot.
    Xxh3 {
        /// Keeps others from choosing keys that all fall into one slot; drawn once for a map.
        seed: u64,
    },
    /// CRC16 modulo 16,384 of the hash tag, or of the key if it has none. A tag is what stands between the first `{` and the
    /// next `}`, if anything does. Clients of Redis Cluster compute the same. Source: Redis Cluster specification, "Hash tags".
    RedisCrc16,
}

impl SlotHash {
    /// The slot of a key.
    #[inline]
    pub fn slot(self, key: &[u8]) -> Slot {
        match self {
            // The hash of short keys is put in place, that of long ones is called.
            Self::Xxh3 { seed } if key.len() <= 16 => upper_bits(xxh3_64_with_seed(key, seed)),
            Self::Xxh3 { seed } => upper_bits(long(key, seed)),
            Self::RedisCrc16 => redis_slot(key),
        }
    }
}

#[inline]
fn upper_bits(hash: u64) -> Slot {
    Slot((hash >> (u64::BITS - SLOT_BITS)) as u16)
}

#[inline(never)]
fn long(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

#[inline(never)]
fn redis_slot(key: &[u8]) -> Slot {
    Slot(crc16(hash_tag(key)) & (SLOTS - 1))
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(length) => &key[open + 1..open + 1 + length],
    }
}

/// CRC-16/XMODEM: polynomial 0x1021, starting with 0.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_redis_computes() {
        // Redis Cluster specification, appendix A: CRC16 of "123456789" is 0x31C3; and `CLUSTER KEYSLOT` of three keys.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        let slot = |key: &[u8]| SlotHash::RedisCrc16.slot(key).get();
        assert_eq!([slot(b"foo"), slot(b"bar"), slot(b"hello")], [12182, 5061, 866]);
    }

    #[test]
    fn a_hash_tag_decides_alone_unless_it_is_empty() {
        assert_eq!(hash_tag(b"{user1000}.following"), b"user1000");
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hash_tag(b"foo{bar"), b"foo{bar");
    }

    #[test]
    fn slots_by_xxh3_are_frozen() {
        let slot = |seed, key: &[u8]| SlotHash::Xxh3 { seed }.slot(key).get();
        // The first two by the published test vectors 0x2d06800538d394c2 and 0xab6e5f64077e7d8a.
        assert_eq!([slot(0, b""), slot(0, b"foo")], [0x2d06 >> 2, 0xab6e >> 2]);
        assert_eq!([slot(1, b"foo"), slot(7, &[9; 300])], [5397, 1927]);
    }

    #[test]
    fn keys_spread_over_all_slots() {
        let mut keys = vec![0_u32; usize::from(SLOTS)];
        for key in 0..64 * u64::from(SLOTS) {
            keys[usize::from(SlotHash::Xxh3 { seed: 3 }.slot(&key.to_le_bytes()).get())] += 1;
        }
        let most = keys.iter().max().expect("there are slots");
        let least = keys.iter().min().expect("there are slots");
        assert!(*least >= 25 && *most <= 110, "{least} to {most} keys in a slot, 64 expected");
    }
}
