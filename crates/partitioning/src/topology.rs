//! The nodes that can hold replicas: where they stand, what they can take, whether they serve.
//!
//! Invariant: each node is named once, and nodes are in the order of their ids, so that what is computed from a topology does
//! not depend on how it was put together.

use replikit_core::NodeId;
use serde::{Deserialize, Serialize};

use crate::id::DomainId;

/// Capacity of a usual node: others are given in percent of it.
pub const CAPACITY_USUAL: u32 = 100;

/// Largest capacity of a node, in percent of a usual one.
pub const CAPACITY_MAX: u32 = 100_000;

/// Whether a node may hold replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It holds replicas and takes new ones.
    Serving,
    /// It holds replicas, and is to give them away without haste; takes no new ones.
    Draining,
    /// It will not come back: what it held is to be made anew from other copies.
    Lost,
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Which one.
    pub id: NodeId,
    /// What fails together with it.
    pub domain: DomainId,
    /// What it can take, in percent of a usual node: 1 to [`CAPACITY_MAX`].
    pub capacity: u32,
    /// Whether it may hold replicas.
    pub standing: Standing,
}

impl Node {
    /// A serving node of usual capacity.
    pub const fn usual(id: NodeId, domain: DomainId) -> Self {
        Self { id, domain, capacity: CAPACITY_USUAL, standing: Standing::Serving }
    }
}

/// Why nodes make no topology. The caller's mistake; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The same node was given twice.
    #[error("node {0} is given twice")]
    NodeTwice(NodeId),
    /// A capacity of 0, or above [`CAPACITY_MAX`].
    #[error("node {node} has a capacity of {capacity} percent; 1 to {CAPACITY_MAX} are possible")]
    Capacity {
        /// Which node.
        node: NodeId,
        /// What was given.
        capacity: u32,
    },
}

/// All nodes of a cluster, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: Vec<Node>,
}

impl Topology {
    /// A topology of these nodes.
    ///
    /// # Errors
    /// When a node is given twice, or with an impossible capacity.
    pub fn new(nodes: impl IntoIterator<Item = Node>) -> Result<Self, TopologyError> {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_key(|node| node.id);
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(TopologyError::NodeTwice(pair[0].id));
        }
        if let Some(node) = nodes.iter().find(|node| node.capacity == 0 || node.capacity > CAPACITY_MAX) {
            return Err(TopologyError::Capacity { node: node.id, capacity: node.capacity });
        }
        Ok(Self { nodes })
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.index(id).map(|index| &self.nodes[index])
    }

    pub(crate) fn index(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    /// Those that take new replicas.
    pub fn serving(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.standing == Standing::Serving)
    }

    /// How many failure domains have a serving node.
    pub fn domains(&self) -> usize {
        let mut domains: Vec<_> = self.serving().map(|node| node.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        domains.len()
    }
}

/// Shares of `total` whole things by weight, none above `share_max`; they add up to `total`, or to as much as the limit lets them.
/// Largest remainders take what is left over, the first of equal ones first.
pub(crate) fn shares(total: u64, weights: &[u64], share_max: u64) -> Vec<u64> {
    let mut shares = vec![0; weights.len()];
    let mut open: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
    let mut left = total;
    // Those that would get more than the limit get the limit; the others then share more.
    loop {
        let weight: u128 = open.iter().map(|&index| u128::from(weights[index])).sum();
        if weight == 0 {
            return shares;
        }
        let over = |index: usize| u128::from(left) * u128::from(weights[index]) > u128::from(share_max) * weight;
        let (full, rest): (Vec<_>, Vec<_>) = open.iter().partition(|&&index| over(index));
        if full.is_empty() {
            let mut remainders = Vec::with_capacity(open.len());
            let mut given = 0;
            for &index in &open {
                let exact = u128::from(left) * u128::from(weights[index]);
                shares[index] = (exact / weight) as u64;
                given += shares[index];
                remainders.push((core::cmp::Reverse(exact % weight), index));
            }
            remainders.sort_unstable();
            for &(_, index) in remainders.iter().take((left - given) as usize) {
                shares[index] += 1;
            }
            return shares;
        }
        for &index in &full {
            shares[index] = share_max;
            left -= share_max;
        }
        open = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nodes_given_twice_or_without_capacity_are_refused() {
        let node = Node::usual(NodeId(1), DomainId(1));
        assert_eq!(Topology::new([node, node]), Err(TopologyError::NodeTwice(NodeId(1))));
        let none = Node { capacity: 0, ..node };
        assert_eq!(Topology::new([none]), Err(TopologyError::Capacity { node: NodeId(1), capacity: 0 }));
    }

    proptest! {
        #[test]
        fn shares_add_up_and_keep_to_their_weights(
            total in 0_u64..5_000, weights in proptest::collection::vec(1_u64..500, 1..30), limit in 1_u64..500
        ) {
            let free = shares(total, &weights, u64::MAX);
            prop_assert_eq!(free.iter().sum::<u64>(), total);
            let weight: u64 = weights.iter().sum();
            for (share, it) in free.iter().zip(&weights) {
                prop_assert!((*share as f64 - (total * it) as f64 / weight as f64).abs() < 1.0);
            }
            let limited = shares(total, &weights, limit);
            prop_assert_eq!(limited.iter().sum::<u64>(), total.min(limit * weights.len() as u64));
            prop_assert!(limited.iter().all(|share| *share <= limit));
        }
    }
}
