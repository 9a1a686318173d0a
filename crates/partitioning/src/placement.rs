//! Placement: which nodes hold the replicas of each partition at first.
//!
//! Invariants: replicas of a partition are on different nodes, always; on different failure domains whenever there are as many
//! domains with serving nodes as copies, and what does not hold is said ([`Assignment::crowded`]). The same input gives the
//! same assignment on every machine: no clock, no randomness but from the seed, no mathematical library.
//!
//! The map's explicit table is what counts afterwards: these functions fill it; moves keep it even with
//! as few moves as can be.
//!
//! | method | evenness by count | node added | capacity | source |
//! |---|---|---|---|---|
//! | [`Method::Table`] | exact | the balancer's to say: exactly the ideal | exact | Redis Cluster, Citus |
//! | [`Method::TwoChoices`] | within a few of the mean | as the table | yes | Azar, Broder, Karlin, Upfal, STOC'94 |
//! | [`Method::Jump`] | multinomial | minimal, at the end only | no | Lamping and Veach, arXiv 1406.2294 |
//! | [`Method::Rendezvous`] | multinomial | minimal | yes | Thaler and Ravishankar '96; weights as CRUSH's straw2 |
//! | [`Method::Ring`] | worse, by one over the root of points | about the ideal, scattered | yes | Karger et al., STOC'97; Dynamo section 4.2 |

mod hashed;
mod table;

use replikit_core::NodeId;

use crate::id::DomainId;
use crate::mix::{self, STEP};
use crate::topology::{Node, Topology};

/// Most copies of a partition.
pub const COPIES_MAX: usize = 15;

/// How partitions are placed at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Dealt out in turn, by capacity: as even as whole numbers let it be.
    Table,
    /// Each copy to the less loaded of two nodes drawn at random.
    TwoChoices {
        /// Of the draws.
        seed: u64,
    },
    /// Jump consistent hash over the nodes in the order of their ids. Capacities are not heeded.
    Jump {
        /// Of the hash.
        seed: u64,
    },
    /// The nodes that score highest with the partition.
    Rendezvous {
        /// Of the hash.
        seed: u64,
    },
    /// The next nodes on a ring on which every node has many points.
    Ring {
        /// Of the hash.
        seed: u64,
        /// Points of a node of usual capacity (virtual nodes), at least 1.
        points: u16,
    },
}

/// Why there is no placement. The caller's mistake, or that of whoever lost the nodes; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Two copies of a partition never share a node.
    #[error("{copies} copies need {copies} serving nodes, there are {nodes}")]
    TooFewNodes {
        /// Nodes that serve.
        nodes: usize,
        /// Copies wanted.
        copies: usize,
    },
    /// No copies at all, or more than [`COPIES_MAX`].
    #[error("{0} copies: 1 to {COPIES_MAX} are possible")]
    Copies(usize),
}

/// Which nodes hold each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Of each partition its nodes, in order of preference.
    pub replicas: Vec<Vec<NodeId>>,
    /// Partitions whose copies are not all in different failure domains.
    pub crowded: Vec<usize>,
}

impl Assignment {
    fn new(replicas: Vec<Vec<NodeId>>, topology: &Topology) -> Self {
        let domain = |id: &NodeId| topology.node(*id).map(|node| node.domain);
        let is_crowded = |nodes: &Vec<NodeId>| {
            let mut domains: Vec<_> = nodes.iter().map(domain).collect();
            domains.sort_unstable();
            domains.windows(2).any(|pair| pair[0] == pair[1])
        };
        let crowded = (0..replicas.len()).filter(|&nth| is_crowded(&replicas[nth])).collect();
        Self { replicas, crowded }
    }

    /// How many replicas each node of the topology holds, in its order.
    pub fn counts(&self, topology: &Topology) -> Vec<u64> {
        let mut counts = vec![0; topology.nodes().len()];
        for index in self.replicas.iter().flatten().filter_map(|id| topology.index(*id)) {
            counts[index] += 1;
        }
        counts
    }

    /// Replicas of the fullest serving node over what would be its part by capacity; 1 is perfect.
    pub fn imbalance(&self, topology: &Topology) -> f64 {
        let serving = || topology.nodes().iter().zip(self.counts(topology)).filter(|(node, _)| is_serving(node));
        let capacity: f64 = serving().map(|(node, _)| f64::from(node.capacity)).sum();
        let total: f64 = serving().map(|(_, count)| count as f64).sum();
        let filled = |(node, count): (&Node, u64)| count as f64 * capacity / (f64::from(node.capacity) * total);
        serving().map(filled).fold(0.0, f64::max)
    }

    /// Replicas that are on a node that did not hold their partition before: what has to be copied.
    pub fn moved_since(&self, before: &Self) -> usize {
        let moved = |(now, then): (&Vec<NodeId>, &Vec<NodeId>)| now.iter().filter(|node| !then.contains(node)).count();
        self.replicas.iter().zip(&before.replicas).map(moved).sum()
    }
}

fn is_serving(node: &Node) -> bool {
    node.standing == crate::topology::Standing::Serving
}

/// Places `copies` replicas of each of `partitions` partitions.
///
/// # Errors
/// When there are fewer serving nodes than copies.
pub fn assign(
    method: Method,
    topology: &Topology,
    partitions: usize,
    copies: usize,
) -> Result<Assignment, PlacementError> {
    if copies == 0 || copies > COPIES_MAX {
        return Err(PlacementError::Copies(copies));
    }
    let nodes: Vec<Node> = topology.serving().copied().collect();
    if nodes.len() < copies {
        return Err(PlacementError::TooFewNodes { nodes: nodes.len(), copies });
    }
    let replicas = match method {
        Method::Table => table::dealt(&nodes, partitions, copies),
        Method::TwoChoices { seed } => table::two_choices(&nodes, partitions, copies, seed),
        Method::Jump { seed } => hashed::jump(&nodes, partitions, copies, seed),
        Method::Rendezvous { seed } => hashed::rendezvous(&nodes, partitions, copies, seed),
        Method::Ring { seed, points } => hashed::ring(&nodes, partitions, copies, seed, points.max(1)),
    };
    Ok(Assignment::new(replicas, topology))
}

/// The copies of one partition while they are chosen: new nodes only, and new domains while there are any.
struct Choice<'n> {
    nodes: &'n [Node],
    domains: usize,
    copies: usize,
    chosen: Vec<usize>,
}

impl<'n> Choice<'n> {
    fn new(nodes: &'n [Node], domains: usize, copies: usize) -> Self {
        Self { nodes, domains, copies, chosen: Vec::with_capacity(copies) }
    }

    fn is_complete(&self) -> bool {
        self.chosen.len() == self.copies
    }

    fn used_domains(&self) -> usize {
        let first = |&nth: &usize| {
            !self.chosen[..nth].iter().any(|&before| self.domain(before) == self.domain(self.chosen[nth]))
        };
        (0..self.chosen.len()).filter(first).count()
    }

    fn domain(&self, index: usize) -> DomainId {
        self.nodes[index].domain
    }

    /// Whether the node may hold the next copy.
    fn admits(&self, index: usize) -> bool {
        let fresh = !self.chosen.iter().any(|&other| self.domain(other) == self.domain(index));
        fresh || (self.used_domains() == self.domains && !self.chosen.contains(&index))
    }

    /// Takes the node if it may hold the next copy.
    fn offer(&mut self, index: usize) {
        if !self.is_complete() && self.admits(index) {
            self.chosen.push(index);
        }
    }

    fn into_ids(self) -> Vec<NodeId> {
        self.chosen.iter().map(|&index| self.nodes[index].id).collect()
    }
}

fn domains(nodes: &[Node]) -> usize {
    let mut domains: Vec<_> = nodes.iter().map(|node| node.domain).collect();
    domains.sort_unstable();
    domains.dedup();
    domains.len()
}

/// A number that depends on all bits of both.
fn mixed(a: u64, b: u64) -> u64 {
    mix::mixed(a.wrapping_mul(STEP).rotate_left(29).wrapping_add(b).wrapping_add(STEP))
}

#[cfg(test)]
mod tests;
