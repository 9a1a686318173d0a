//! Which replica sends its writes to which: a directed graph over the members.
//!
//! Invariant: every member reaches every other one, directly or by forwarding; a topology for which that is not so is refused.
//! What a single failure does to it is not hidden: [`Graph::report`]. Source: DDIA chapter 5, "Multi-leader replication
//! topologies"; low-link articulation is not needed for graphs of this size, every failure is simply tried.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replikit_core::NodeId;

/// The shape of a group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Topology {
    /// Everybody sends to everybody. The default: no single failure splits it, at the price of one message per member and write.
    #[default]
    AllToAll,
    /// Everybody sends to the hub, which forwards. The hub's failure splits it.
    Star {
        /// The one in the middle.
        hub: NodeId,
    },
    /// Each sends to the next in ascending order of ids, which forwards. Any failure splits it.
    Ring,
    /// These links, each from its first node to its second.
    Custom(Vec<(NodeId, NodeId)>),
}

/// Why a topology does not fit the members. Blame: the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A hub or link names a node that is no member.
    #[error("the topology names node {node}, which is not a member")]
    NotAMember {
        /// The node.
        node: NodeId,
    },
    /// Writes of one member never get to another one.
    #[error("in this topology nothing that node {from} writes ever reaches node {to}")]
    Unreached {
        /// Who writes.
        from: NodeId,
        /// Who never hears of it.
        to: NodeId,
    },
}

/// What one failure does to a topology without bypass edges, and how far writes travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyReport {
    /// Most links that a write travels.
    pub diameter: usize,
    /// Nodes whose failure keeps some of the others from hearing of each other's writes, ascending.
    pub split_by_node: Vec<NodeId>,
    /// Links whose failure does, ascending.
    pub split_by_link: Vec<(NodeId, NodeId)>,
}

impl core::fmt::Display for TopologyReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a write travels at most {} links; ", self.diameter)?;
        if self.split_by_node.is_empty() && self.split_by_link.is_empty() {
            return f.write_str("no single failure splits it");
        }
        let nodes: Vec<String> = self.split_by_node.iter().map(ToString::to_string).collect();
        let links: Vec<String> = self.split_by_link.iter().map(|(from, to)| format!("{from} to {to}")).collect();
        write!(f, "split by the failure of node [{}] or of link [{}]", nodes.join(", "), links.join(", "))
    }
}

/// A topology laid over members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    // Every member, with those it sends to, ascending.
    links: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Topology {
    /// Lays the topology over the members.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn graph(&self, members: &[NodeId]) -> Result<Graph, TopologyError> {
        let graph = self.lay(members)?;
        match graph.unreached(&BTreeSet::new(), None) {
            Some((from, to)) => Err(TopologyError::Unreached { from, to }),
            None => Ok(graph),
        }
    }

    /// Lays the topology over the members of any epoch. What it names and is no member is passed by, with the links that would
    /// lead round it if it were silent; where even that does not reach everybody, everybody sends to everybody.
    #[must_use]
    pub fn over(&self, members: &[NodeId]) -> Graph {
        if let Ok(graph) = self.graph(members) {
            return graph;
        }
        let mut named: BTreeSet<NodeId> = members.iter().copied().collect();
        match self {
            Self::Star { hub } => {
                named.insert(*hub);
            }
            Self::Custom(links) => named.extend(links.iter().flat_map(|(from, to)| [*from, *to])),
            Self::AllToAll | Self::Ring => {}
        }
        let gone: BTreeSet<NodeId> = named.iter().copied().filter(|node| !members.contains(node)).collect();
        let named: Vec<NodeId> = named.into_iter().collect();
        let whole = self.lay(&named).expect("it names nobody else");
        let mut rest = whole.with(&whole.bypass(&gone));
        rest.links.retain(|node, _| !gone.contains(node));
        rest.links.values_mut().for_each(|sends| sends.retain(|node| !gone.contains(node)));
        match rest.unreached(&BTreeSet::new(), None) {
            None => rest,
            Some(_) => Self::AllToAll.lay(members).expect("it names nobody"),
        }
    }

    fn lay(&self, members: &[NodeId]) -> Result<Graph, TopologyError> {
        let members: BTreeSet<NodeId> = members.iter().copied().collect();
        let mut links: BTreeMap<NodeId, BTreeSet<NodeId>> =
            members.iter().map(|member| (*member, BTreeSet::new())).collect();
        let mut link = |from: NodeId, to: NodeId| {
            if !members.contains(&to) {
                return Err(TopologyError::NotAMember { node: to });
            }
            let sends = links.get_mut(&from).ok_or(TopologyError::NotAMember { node: from })?;
            if from != to {
                sends.insert(to);
            }
            Ok(())
        };
        match self {
            Self::AllToAll => {
                for &from in &members {
                    members.iter().try_for_each(|&to| link(from, to))?;
                }
            }
            Self::Star { hub } => {
                for &member in &members {
                    link(member, *hub)?;
                    link(*hub, member)?;
                }
            }
            Self::Ring => {
                let next = members.iter().skip(1).chain(members.first());
                members.iter().zip(next).try_for_each(|(&from, &to)| link(from, to))?;
            }
            Self::Custom(list) => list.iter().try_for_each(|&(from, to)| link(from, to))?,
        }
        Ok(Graph { links })
    }
}

impl Graph {
    /// Those that a member sends to, ascending.
    pub fn receivers(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.links.get(&node).into_iter().flatten().copied()
    }

    /// Whether a member sends to another one.
    #[must_use]
    pub fn has(&self, from: NodeId, to: NodeId) -> bool {
        self.links.get(&from).is_some_and(|receivers| receivers.contains(&to))
    }

    /// Whether one of two members sends to the other.
    #[must_use]
    pub fn links(&self, one: NodeId, other: NodeId) -> bool {
        self.has(one, other) || self.has(other, one)
    }

    /// The members, ascending.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.links.keys().copied()
    }

    /// What single failures do to it.
    #[must_use]
    pub fn report(&self) -> TopologyReport {
        let nodes = self.members().filter(|&node| self.unreached(&BTreeSet::from([node]), None).is_some());
        let links = self.links.iter().flat_map(|(&from, sends)| sends.iter().map(move |&to| (from, to)));
        let split_by_link = links.filter(|&link| self.unreached(&BTreeSet::new(), Some(link)).is_some()).collect();
        let depth = |from| self.distances(from, &BTreeSet::new(), None).into_values().max().unwrap_or(0);
        TopologyReport {
            diameter: self.members().map(depth).max().unwrap_or(0),
            split_by_node: nodes.collect(),
            split_by_link,
        }
    }

    /// The links to add while some nodes are suspected: each node that sends to a suspected one sends to those instead that
    /// this one sends to, as far as it goes. Nothing is added while the others reach each other anyway.
    #[must_use]
    pub fn bypass(&self, suspected: &BTreeSet<NodeId>) -> Vec<(NodeId, NodeId)> {
        if self.unreached(suspected, None).is_none() {
            return Vec::new();
        }
        let mut added = BTreeSet::new();
        for (&from, sends) in self.links.iter().filter(|(from, _)| !suspected.contains(from)) {
            let mut behind: Vec<NodeId> = sends.iter().filter(|to| suspected.contains(to)).copied().collect();
            let mut passed: BTreeSet<NodeId> = BTreeSet::new();
            while let Some(node) = behind.pop() {
                if !passed.insert(node) {
                    continue;
                }
                for to in self.receivers(node).filter(|&to| to != from) {
                    if suspected.contains(&to) {
                        behind.push(to);
                    } else if !sends.contains(&to) {
                        added.insert((from, to));
                    }
                }
            }
        }
        added.into_iter().collect()
    }

    /// The same graph with more links.
    #[must_use]
    pub fn with(&self, links: &[(NodeId, NodeId)]) -> Self {
        let mut graph = self.clone();
        for (from, to) in links {
            graph.links.entry(*from).or_default().insert(*to);
        }
        graph
    }

    /// Two members of which the first never reaches the second without these nodes and this link.
    fn unreached(&self, without: &BTreeSet<NodeId>, cut: Option<(NodeId, NodeId)>) -> Option<(NodeId, NodeId)> {
        let alive = || self.members().filter(|node| !without.contains(node));
        alive().find_map(|from| {
            let reached = self.distances(from, without, cut);
            alive().find(|to| !reached.contains_key(to)).map(|to| (from, to))
        })
    }

    fn distances(
        &self,
        from: NodeId,
        without: &BTreeSet<NodeId>,
        cut: Option<(NodeId, NodeId)>,
    ) -> BTreeMap<NodeId, usize> {
        let mut reached = BTreeMap::from([(from, 0)]);
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            let next = reached[&node] + 1;
            for to in self.receivers(node).filter(|to| !without.contains(to) && cut != Some((node, *to))) {
                reached.entry(to).or_insert_with(|| {
                    queue.push_back(to);
                    next
                });
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u32) -> Vec<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    #[test]
    fn nothing_splits_all_to_all() {
        let report = Topology::AllToAll.graph(&nodes(4)).unwrap().report();
        assert_eq!(report, TopologyReport { diameter: 1, split_by_node: vec![], split_by_link: vec![] });
        assert_eq!(report.to_string(), "a write travels at most 1 links; no single failure splits it");
    }

    #[test]
    fn a_star_is_split_by_its_hub_and_each_of_its_links() {
        let report = Topology::Star { hub: NodeId(2) }.graph(&nodes(4)).unwrap().report();
        assert_eq!((report.diameter, report.split_by_node), (2, vec![NodeId(2)]));
        assert_eq!(report.split_by_link.len(), 6);
    }

    #[test]
    fn a_ring_is_split_by_anything() {
        let report = Topology::Ring.graph(&nodes(4)).unwrap().report();
        assert_eq!((report.diameter, report.split_by_node), (3, nodes(4)));
        assert_eq!(report.split_by_link.len(), 4);
    }

    #[test]
    fn a_topology_that_does_not_reach_everybody_is_refused() {
        let one_way = Topology::Custom(vec![(NodeId(1), NodeId(2))]);
        let missing = TopologyError::Unreached { from: NodeId(2), to: NodeId(1) };
        assert_eq!(one_way.graph(&nodes(2)), Err(missing));
        let foreign = Topology::Star { hub: NodeId(9) };
        assert_eq!(foreign.graph(&nodes(2)), Err(TopologyError::NotAMember { node: NodeId(9) }));
    }

    #[test]
    fn a_topology_that_names_nodes_which_have_left_still_reaches_everybody() {
        let custom = Topology::Custom((1..=5).map(|node| (NodeId(node), NodeId(node % 5 + 1))).collect());
        let half = Topology::Custom(vec![(NodeId(1), NodeId(2)), (NodeId(2), NodeId(1)), (NodeId(2), NodeId(3))]);
        for topology in [Topology::Ring, Topology::Star { hub: NodeId(3) }, Topology::AllToAll, custom, half] {
            for members in 1_u32..64 {
                let members: Vec<NodeId> =
                    nodes(6).into_iter().filter(|node| members >> (node.0 - 1) & 1 == 1).collect();
                let graph = topology.over(&members);
                assert_eq!(graph.unreached(&BTreeSet::new(), None), None, "{topology:?} over {members:?}");
                assert!(graph.members().eq(members.iter().copied()));
            }
        }
    }

    #[test]
    fn a_bypass_reaches_everybody_around_any_suspects() {
        let custom = Topology::Custom(vec![
            (NodeId(1), NodeId(2)),
            (NodeId(2), NodeId(3)),
            (NodeId(3), NodeId(4)),
            (NodeId(4), NodeId(5)),
            (NodeId(5), NodeId(1)),
            (NodeId(2), NodeId(4)),
        ]);
        for topology in [Topology::Ring, Topology::Star { hub: NodeId(3) }, Topology::AllToAll, custom] {
            let graph = topology.graph(&nodes(5)).unwrap();
            assert!(graph.bypass(&BTreeSet::new()).is_empty(), "nothing is added to a whole graph");
            for suspects in 1_u32..31 {
                let suspected: BTreeSet<NodeId> =
                    nodes(5).into_iter().filter(|node| suspects >> (node.0 - 1) & 1 == 1).collect();
                let whole = graph.with(&graph.bypass(&suspected));
                assert_eq!(whole.unreached(&suspected, None), None, "{topology:?} without {suspected:?}");
            }
        }
    }
}
