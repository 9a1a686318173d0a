//! What a store is founded with: its groups, the nodes of each, and the first map.
//!
//! Invariant: computed from the same founding it is the same at every node and every start. A store's nodes must all be given the
//! same founding: they refuse each other if they were not, and a node refuses to start in a folder that was founded otherwise.

use bytes::Bytes;
use replikit_core::{GroupId, NodeId};

use super::FIRST_GROUP;
use crate::id::DomainId;
use crate::map::{MapError, Partition, PartitionMap, Replication};
use crate::partitioner::{HashSlots, SLOTS, Scheme};
use crate::placement::{self, Method, PlacementError};
use crate::topology::{Node, Topology, TopologyError};

/// Most partitions that a store begins with: one for each hash slot; splits in key order make more.
pub const PARTITIONS_FIRST_MAX: u16 = SLOTS;

/// Most nodes of the group that keeps the map.
const META_COPIES_MAX: usize = 5;

/// What a store is founded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// All nodes, also those that hold nothing at first.
    pub nodes: Vec<NodeId>,
    /// Partitions at first: 1 to [`PARTITIONS_FIRST_MAX`].
    pub partitions: u16,
    /// Groups that hold partitions; those beyond the partitions are empty at first, and take some when they are handed one. At least
    /// as many as partitions.
    pub groups: u16,
    /// Replicas of each group.
    pub copies: u8,
    /// How keys become positions.
    pub scheme: Scheme,
    /// How the groups that hold partitions replicate. Those without one log have a partition each, for ever: as many groups as partitions.
    pub replication: Replication,
    /// Where the space is cut at first; without it, in equal parts: of the hash slots, or, in key order, of what keys of digits and
    /// letters begin with.
    pub bounds: Option<Vec<Bytes>>,
}

impl Founding {
    /// So many partitions by hash, each a group of its own with three replicas, or one for each node if there are fewer.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = NodeId>, partitions: u16) -> Self {
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        let copies = nodes.len().min(3) as u8;
        Self {
            nodes,
            partitions,
            groups: partitions,
            copies,
            scheme: Scheme::hash_slots(0),
            replication: Replication::SingleLeader,
            bounds: None,
        }
    }

    /// The same store of groups that replicate like this.
    #[must_use]
    pub const fn replication(mut self, replication: Replication) -> Self {
        self.replication = replication;
        self
    }

    /// The same store by another scheme.
    #[must_use]
    pub const fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// The same store with this many groups.
    #[must_use]
    pub const fn groups(mut self, groups: u16) -> Self {
        self.groups = groups;
        self
    }

    /// The same store with this many replicas of each group.
    #[must_use]
    pub const fn copies(mut self, copies: u8) -> Self {
        self.copies = copies;
        self
    }

    /// The same store, cut at these positions.
    #[must_use]
    pub fn bounds(mut self, bounds: impl IntoIterator<Item = Bytes>) -> Self {
        self.bounds = Some(bounds.into_iter().collect());
        self
    }
}

/// Why a store cannot be founded like that. Blame: the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too few or too many partitions, or fewer groups.
    #[error(
        "{partitions} partitions in {groups} groups: give 1 to {PARTITIONS_FIRST_MAX} partitions, and at least as many groups"
    )]
    Partitions {
        /// How many partitions.
        partitions: u16,
        /// How many groups.
        groups: u16,
    },
    /// Groups beyond the partitions, of which nothing can become.
    #[error("{partitions} partitions in {groups} groups: groups without one log have one partition each, for ever")]
    Spare {
        /// How many partitions.
        partitions: u16,
        /// How many groups.
        groups: u16,
    },
    /// The nodes are no topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The replicas find no place.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The bounds make no map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Which groups there are, on which nodes, and the first map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    nodes: Vec<NodeId>,
    meta: Vec<NodeId>,
    groups: Vec<(GroupId, Vec<NodeId>)>,
    first: PartitionMap,
}

impl Layout {
    /// The layout of a founding: replicas dealt out in turn ([`Method::Table`]).
    ///
    /// # Errors
    /// Why there is none.
    pub fn new(founding: &Founding) -> Result<Self, LayoutError> {
        let &Founding { partitions, groups, copies, scheme, replication, .. } = founding;
        if partitions == 0 || partitions > PARTITIONS_FIRST_MAX || groups < partitions {
            return Err(LayoutError::Partitions { partitions, groups });
        }
        if !replication.has_one_log() && groups != partitions {
            return Err(LayoutError::Spare { partitions, groups });
        }
        let topology = Topology::new(founding.nodes.iter().map(|&id| Node::usual(id, DomainId(id.0))))?;
        let copies = usize::from(copies);
        let placed = placement::assign(Method::Table, &topology, usize::from(groups), copies)?.replicas;
        let groups: Vec<(GroupId, Vec<NodeId>)> = (FIRST_GROUP.0..).map(GroupId).zip(placed).collect();
        let bounds = founding.bounds.clone().unwrap_or_else(|| even_bounds(scheme, partitions));
        let first = PartitionMap::first_of(replication, scheme, bounds, groups.iter().cloned())?;
        let nodes: Vec<NodeId> = topology.nodes().iter().map(|node| node.id).collect();
        let meta = nodes.iter().copied().take(copies.min(META_COPIES_MAX)).collect();
        Ok(Self { nodes, meta, groups, first })
    }

    /// What must be the same at every node and every start, as a line: what a reader may compare, and a digest of all of it.
    #[must_use]
    pub fn founding(&self) -> String {
        let copies = self.groups.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(0);
        let (partitions, groups, nodes) = (self.first.partitions().count(), self.groups.len(), self.nodes.len());
        let scheme = if matches!(self.first.scheme(), Scheme::KeyOrder(_)) { "key order" } else { "hash" };
        let digest = self.digest();
        let kind = match self.replication() {
            Replication::SingleLeader => "",
            Replication::Leaderless => " leaderless",
            Replication::MultiLeader => " multi-leader",
        };
        format!(
            "{partitions} partitions by {scheme}, {groups}{kind} groups, {copies} replicas each, {nodes} nodes; {digest:016x}"
        )
    }

    /// A digest of what must be the same at every node and every start.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let partitions: Vec<&Partition> = self.first.partitions().collect();
        let whole = (&self.nodes, &self.meta, &self.groups, self.first.scheme(), partitions);
        xxhash_rust::xxh3::xxh3_64(&postcard::to_stdvec(&whole).expect("it encodes into memory"))
    }

    /// How its groups replicate, but for that of the map.
    #[must_use]
    pub fn replication(&self) -> Replication {
        self.first.partitions().next().map_or_else(Replication::default, |partition| partition.replication)
    }

    /// All nodes, ascending.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The nodes of the group that keeps the map.
    #[must_use]
    pub fn meta(&self) -> &[NodeId] {
        &self.meta
    }

    /// The groups that hold partitions, ascending, each with its nodes.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &[NodeId])> {
        self.groups.iter().map(|(group, nodes)| (*group, &nodes[..]))
    }

    /// The map that the store begins with.
    #[must_use]
    pub const fn first(&self) -> &PartitionMap {
        &self.first
    }
}

/// Bounds that cut the space in equal parts.
fn even_bounds(scheme: Scheme, partitions: u16) -> Vec<Bytes> {
    match scheme {
        Scheme::KeyOrder(_) => {
            // Keys of digits and letters, by their first two bytes.
            let (first, space) = (u32::from(b'0') << 8, u32::from(b'{' - b'0') << 8);
            let bound = |nth: u32| first + space * nth / u32::from(partitions);
            (1..u32::from(partitions)).map(|nth| Bytes::copy_from_slice(&(bound(nth) as u16).to_be_bytes())).collect()
        }
        Scheme::HashSlots(_) | Scheme::HashThenRange(_) => HashSlots::even_bounds(partitions).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_partitions_on_five_nodes_are_three_replicas_each_and_even() {
        let layout = Layout::new(&Founding::new((1..=5).map(NodeId), 16)).unwrap();
        assert_eq!((layout.first().len(), layout.groups().count(), layout.meta().len()), (16, 16, 3));
        let held = |node| layout.groups().filter(|(_, nodes)| nodes.contains(&node)).count();
        for node in layout.nodes() {
            assert!((9..=10).contains(&held(*node)), "node {node} holds {}", held(*node));
        }
    }

    #[test]
    fn key_order_is_cut_where_keys_are() {
        let founding = Founding::new((1..=3).map(NodeId), PARTITIONS_FIRST_MAX).scheme(Scheme::KEY_ORDER);
        let layout = Layout::new(&founding).unwrap();
        let distinct = |keys: &[&str]| {
            let mut found: Vec<_> = keys.iter().map(|key| layout.first().route(key.as_bytes()).partition).collect();
            found.dedup();
            found.len()
        };
        assert_eq!(distinct(&["0", "a", "k", "z"]), 4);
    }

    #[test]
    fn what_cannot_be_founded_is_refused() {
        let nodes = || (1..=3).map(NodeId);
        assert!(matches!(Layout::new(&Founding::new(nodes(), 0)), Err(LayoutError::Partitions { .. })));
        assert!(matches!(Layout::new(&Founding::new(nodes(), 4).groups(3)), Err(LayoutError::Partitions { .. })));
        assert!(matches!(Layout::new(&Founding::new(nodes(), 4).copies(4)), Err(LayoutError::Placement(_))));
        let spare = Founding::new(nodes(), 3).replication(Replication::Leaderless).groups(4);
        assert!(matches!(Layout::new(&spare), Err(LayoutError::Spare { .. })));
        let unordered = Founding::new(nodes(), 3).scheme(Scheme::KEY_ORDER).bounds(["b".into(), "a".into()]);
        assert!(matches!(Layout::new(&unordered), Err(LayoutError::Map(_))));
    }
}
