//! A tree of hashes over a replica's records: what tells whether two owners that have applied the same writes hold the same.
//!
//! Invariants: a leaf is the exclusive or of the hashes of the records whose keys fall into it, so a change of a record changes
//! the tree in two operations, and nothing is ever computed anew for it. Two levels are enough: the root is a hash of the leaves.
//! Source: the mergeable trees of Riak's active anti-entropy; Merkle 1987.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Leaves of a tree.
pub(crate) const LEAVES: usize = 1 << 10;

/// Which leaf a key falls into.
pub(crate) fn leaf_of(key: &[u8]) -> usize {
    (xxh3_64(key) >> (u64::BITS - LEAVES.trailing_zeros())) as usize
}

/// The exclusive or of the hashes of all records, by leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree(Box<[u64; LEAVES]>);

impl Default for Tree {
    fn default() -> Self {
        Self(Box::new([0; LEAVES]))
    }
}

impl Tree {
    /// A record with one hash has taken the place of one with another; 0 where there is none.
    pub(crate) fn replace(&mut self, leaf: usize, before: u64, after: u64) {
        self.0[leaf] ^= before ^ after;
    }

    /// Equal for equal trees.
    pub(crate) fn root(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.0.iter().for_each(|leaf| hash.write_u64(*leaf));
        hash.finish()
    }

    pub(crate) fn leaves(&self) -> &[u64] {
        &self.0[..]
    }

    /// The leaves that differ from these; all of them if these are not as many.
    pub(crate) fn differing(&self, others: &[u64]) -> Leaves {
        let mut differing = Leaves::default();
        for (at, mine) in self.0.iter().enumerate() {
            if others.get(at) != Some(mine) {
                differing.insert(at);
            }
        }
        differing
    }
}

/// A set of leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaves(Vec<u64>);

impl Default for Leaves {
    fn default() -> Self {
        Self(vec![0; LEAVES / 64])
    }
}

impl Leaves {
    pub(crate) fn insert(&mut self, leaf: usize) {
        self.0[leaf / 64] |= 1 << (leaf % 64);
    }

    /// A set that came from a peer may have any length.
    pub(crate) fn contains(&self, leaf: usize) -> bool {
        self.0.get(leaf / 64).is_some_and(|word| word & (1 << (leaf % 64)) != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn join(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    pub(crate) fn remove_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, theirs)| *mine &= !theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_tells_which_leaves_differ_and_forgets_what_was_taken_back() {
        let (mut one, mut other) = (Tree::default(), Tree::default());
        assert_eq!((one.root(), one.differing(other.leaves())), (other.root(), Leaves::default()));
        for (leaf, hash) in [(0, 7), (LEAVES - 1, 9), (0, 5)] {
            one.replace(leaf, 0, hash);
        }
        let differing = one.differing(other.leaves());
        let found: Vec<usize> = (0..LEAVES).filter(|leaf| differing.contains(*leaf)).collect();
        assert_eq!(found, [0, LEAVES - 1]);
        assert_ne!(one.root(), other.root());
        one.replace(0, 7, 0);
        other.replace(0, 0, 5);
        other.replace(LEAVES - 1, 0, 9);
        assert_eq!(one, other, "in whatever order");
        assert!(!one.differing(&[]).is_empty(), "a peer that sends too few agrees in none");
    }

    #[test]
    fn keys_fall_into_all_leaves() {
        let mut met = Leaves::default();
        (0..20 * LEAVES).for_each(|n| met.insert(leaf_of(n.to_string().as_bytes())));
        assert!((0..LEAVES).all(|leaf| met.contains(leaf)));
    }
}
