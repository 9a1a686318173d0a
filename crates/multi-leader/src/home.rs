//! Homes: where a key is to be written, so that conflicts do not arise.
//!
//! Invariant of `Require`: within one epoch a key is written at one replica only, so its writes never conflict. A home moves by
//! epoch alone, never because a replica seems to be gone.
//! Source: DDIA chapter 5, "Conflict avoidance".

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{Membership, NodeId};

/// Says which member a key is to be written at; `None` leaves it to the client. Depends on nothing but its arguments.
pub type HomeFn = Arc<dyn Fn(&[u8], &Membership) -> Option<NodeId> + Send + Sync>;

/// Where the keys of a keyspace are to be written.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Home {
    /// Anywhere. The default.
    #[default]
    Anywhere,
    /// At its home as long as that seems reachable: other replicas send clients there. Otherwise anywhere.
    Prefer(HomeFn),
    /// At its home only: no conflicts, and no writes while the home cannot be reached.
    Require(HomeFn),
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anywhere => "Anywhere",
            Self::Prefer(_) => "Prefer(..)",
            Self::Require(_) => "Require(..)",
        })
    }
}

/// Homes by prefix of the key: the longest that fits. A home that is no member hands its keys to [`spread`].
#[must_use]
pub fn by_prefix(mut homes: Vec<(Bytes, NodeId)>) -> HomeFn {
    homes.sort_by_key(|(prefix, _)| core::cmp::Reverse(prefix.len()));
    let rest = spread();
    Arc::new(move |key, membership| {
        let (_, home) = homes.iter().find(|(prefix, _)| key.starts_with(prefix))?;
        if membership.nodes.iter().any(|node| node.id == *home) { Some(*home) } else { rest(key, membership) }
    })
}

/// Spreads keys evenly over the members; a member that leaves hands its own keys to the others and moves no other key.
/// Source: Thaler and Ravishankar 1998, highest random weight.
#[must_use]
pub fn spread() -> HomeFn {
    Arc::new(|key, membership| {
        let weight = |node: NodeId| (xxhash_rust::xxh3::xxh3_64_with_seed(key, u64::from(node.0)), node);
        membership.nodes.iter().map(|node| node.id).max_by_key(|node| weight(*node))
    })
}

#[cfg(test)]
mod tests {
    use replikit_core::{Epoch, NodeInfo};

    use super::*;

    fn membership(epoch: u64, nodes: impl IntoIterator<Item = u32>) -> Membership {
        let info = |id| NodeInfo { id: NodeId(id), address: String::new(), region: String::new(), zone: String::new() };
        let founded = Membership::founding(nodes.into_iter().map(info).collect());
        Membership { epoch: Epoch(epoch), ..founded }
    }

    #[test]
    fn a_member_that_leaves_moves_its_own_keys_only() {
        let (spread, before, after) = (spread(), membership(1, 1..=5), membership(2, [1, 2, 4, 5]));
        let mut moved = 0;
        for key in 0..2_000_u32 {
            let key = key.to_le_bytes();
            let (old, new) = (spread(&key, &before), spread(&key, &after));
            if old == Some(NodeId(3)) {
                moved += 1;
            } else {
                assert_eq!(old, new);
            }
        }
        assert!((300..500).contains(&moved), "a fifth of the keys, and not {moved}");
    }

    #[test]
    fn the_longest_prefix_decides_and_keys_without_one_have_no_home() {
        let homes = by_prefix(vec![("eu/".into(), NodeId(1)), ("eu/de/".into(), NodeId(2))]);
        let all = membership(1, 1..=3);
        assert_eq!(homes(b"eu/fr/x", &all), Some(NodeId(1)));
        assert_eq!(homes(b"eu/de/x", &all), Some(NodeId(2)));
        assert_eq!(homes(b"us/x", &all), None);
        let moved = homes(b"eu/de/x", &membership(2, [1, 3]));
        assert!(moved.is_some_and(|home| home != NodeId(2)), "a home that has left hands its keys on");
    }
}
