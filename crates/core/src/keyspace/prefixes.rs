//! How the keys below each prefix are treated.
//!
//! Invariant: a key belongs to one keyspace, whatever the order in which they were named.

use core::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// The keyspaces of a group, each with the prefix that its keys share; `K` says how the keys of one are treated. A key belongs
/// to the longest prefix that it begins with, and to the default keyspace if there is none.
///
/// All replicas of a group must have the same ones: they tell each other a digest of them, and a replica whose digest differs
/// is reported and not listened to.
#[derive(Clone, Debug, Default)]
pub struct Keyspaces<K> {
    default: Arc<K>,
    // Longest prefix first.
    prefixed: Vec<(Bytes, Arc<K>)>,
}

impl<K> Keyspaces<K> {
    /// Every key in one keyspace.
    #[must_use]
    pub fn all(keyspace: K) -> Self {
        Self { default: Arc::new(keyspace), prefixed: Vec::new() }
    }

    /// The same, with another keyspace for the keys that begin with `prefix`; an earlier one of the same prefix is replaced.
    #[must_use]
    pub fn with(mut self, prefix: impl Into<Bytes>, keyspace: K) -> Self {
        let prefix = prefix.into();
        self.prefixed.retain(|(other, _)| *other != prefix);
        self.prefixed.push((prefix, Arc::new(keyspace)));
        self.prefixed.sort_by_key(|(prefix, _)| core::cmp::Reverse(prefix.len()));
        self
    }

    /// The keyspace that a key belongs to.
    #[must_use]
    pub fn of(&self, key: &[u8]) -> &K {
        let prefixed = self.prefixed.iter().find(|(prefix, _)| key.starts_with(prefix));
        prefixed.map_or(&self.default, |(_, keyspace)| keyspace)
    }

    /// The keys at which keyspaces begin, in no order: between one and the next, all keys belong to the same.
    pub fn bounds(&self) -> impl Iterator<Item = Bytes> + '_ {
        let behind = |prefix: &Bytes| {
            // Behind the keys with a prefix comes the next larger text that is not longer; behind those of 255s alone nothing.
            let kept = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
            let mut next = prefix[..=kept].to_vec();
            next[kept] += 1;
            Some(Bytes::from(next))
        };
        let prefixes = self.prefixed.iter().map(|(prefix, _)| prefix);
        core::iter::once(Bytes::new())
            .chain(prefixes.flat_map(move |prefix| [Some(prefix.clone()), behind(prefix)]).flatten())
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        core::iter::once(&*self.default).chain(self.prefixed.iter().map(|(_, keyspace)| &**keyspace))
    }
}

impl<K: Debug> Keyspaces<K> {
    /// Equal for equal keyspaces, as far as policies have names: two different merge functions look alike.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut prefixed: Vec<String> =
            self.prefixed.iter().map(|(prefix, keyspace)| format!("{prefix:?} {keyspace:?}")).collect();
        prefixed.sort();
        xxh3_64(format!("{:?} {prefixed:?}", self.default).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_the_longest_prefix_that_it_begins_with() {
        let keyspaces = Keyspaces::all(0).with("a", 9).with("ab", 2).with("a", 1);
        let of = ["x", "a", "ax", "ab", "abc"].map(|key| *keyspaces.of(key.as_bytes()));
        assert_eq!(of, [0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_digest_tells_keyspaces_apart_and_not_the_order_in_which_they_were_named() {
        let keyspaces = Keyspaces::all(0).with("a", 1).with("b", 2);
        assert_eq!(keyspaces.digest(), Keyspaces::all(0).with("b", 2).with("a", 1).digest());
        let others = [Keyspaces::all(1), Keyspaces::all(0).with("a", 1), Keyspaces::all(0).with("a", 2).with("b", 1)];
        assert!(others.iter().all(|other| other.digest() != keyspaces.digest()));
    }

    #[test]
    fn between_two_bounds_all_keys_are_of_one_keyspace() {
        let keyspaces = Keyspaces::all(0).with("b", 1).with("bc", 2).with(&[u8::MAX][..], 3).with(&[7, u8::MAX][..], 4);
        let mut bounds: Vec<Bytes> = keyspaces.bounds().collect();
        bounds.sort_unstable();
        let letters = [0, 7, 8, b'a', b'b', b'c', b'd', u8::MAX];
        let pairs = letters.iter().flat_map(|one| letters.iter().map(|other| vec![*one, *other, 1]));
        for key in pairs.chain(letters.iter().map(|one| vec![*one])) {
            let bound = bounds.iter().rfind(|bound| ***bound <= key[..]).expect("the empty key is one");
            assert_eq!(keyspaces.of(&key), keyspaces.of(bound), "{key:?}");
        }
    }
}
