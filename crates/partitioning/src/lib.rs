//! The data cut in partitions: which keys belong where, who holds them, how that changes while clients go on, and many groups in
//! one node.
//!
//! | part | what it is | what always holds |
//! |---|---|---|
//! | [`Groups`] | many replica groups in one node, as one [`Replica`](replikit_core::Replica) | one fsync serves all groups, one frame each peer and round |
//! | [`NodeHeartbeats`] | node pairs watch each other, so that groups in which nothing happens need no messages of their own | failure detection only: nothing is promised because of it |
//! | [`Either`] | a replica of one kind or of another: groups of different strategies in one container | none hears words of the other kind |
//! | [`Partitioner`], [`Scheme`] | from keys to positions: key order, 16,384 hash slots, the hash of a prefix then key order | positions and bounds are byte strings; function and seed are kept in the map |
//! | [`PartitionMap`] | which partition covers which positions, at one epoch | every position belongs to exactly one partition; a map that says otherwise is never made |
//! | [`Change`], [`Delta`] | split, merge, new replicas, handoff: from a map to the next one, or to the reason why not | an epoch never comes again, an id never, a version only grows; any peer can serve a delta |
//! | [`Route`], [`StaleRoute`] | what a request carries, and what mends it | checked where the write is ordered |
//! | [`placement`] | the first replicas: table, two choices, jump, rendezvous, ring | copies on different nodes, and on different failure domains when there are enough |
//! | [`split`] | when and where to cut or to join | a cut leaves a fair part on both sides, or the reason is said; splits and merges never alternate |
//! | [`mod@balance`] | one pure function to a plan of moves in rounds | never fewer copies, never two on a node, within the budget; nothing is left to plan behind a plan |
//! | [`handoff`] | a partition goes from one group to another | at every moment at most one group takes writes for a key; one compare-and-set decides |
//! | [`shard`] | any state machine with keys as a partition's group | whether a write is carried out is decided by the group's own log, where it is applied |
//! | [`host`] | a node: groups, map, the drivers of its leaders, and the groups that the map places | nothing of it must survive; a new leader's driver goes on from the log |
//!
//! All of it is without I/O, clock and randomness of its own: the same input gives the same output on every machine.
//!
//! # What it does not do yet
//!
//! Partitions go from group to group where each has one ordered log. A group without a leader has one partition, and goes from nodes to
//! nodes itself ([`host::Placing`]), by joint quorums of its own; it is not split. Forwarding for groups with many leaders is not there. Reads of a partition are refused from the seal on, as writes are, though the source could
//! serve them until it grants. A group has one machine for all its partitions: where it has several, opening and dropping one takes time for
//! each key. The balancer moves no leaders, and places by failure domain, not by copysets.
//!
//! # Fault model
//!
//! That of the groups inside; the container adds no state that a crash could lose. In a handoff every message may be lost, doubled,
//! delayed and reordered, and the leaders of both groups may crash at any time; what a group's log has confirmed stays.
//!
//! # The driving loop
//!
//! That of any replica. See [`Groups`] for an example, [`PartitionMap`] for one of maps and routes.
//!
//! # Sources
//!
//! Kleppmann's *Designing Data-Intensive Applications* chapter 6 for the words and the three ways of rebalancing; Cassandra's TCM,
//! MongoDB's and TiKV's versions for the map; Valkey's atomic slot migration for the handoff; the rest is named on each module.
#![forbid(unsafe_code)]

pub mod balance;
mod convert;
mod deadlines;
mod either;
mod frames;
mod groups;
pub mod handoff;
mod heartbeats;
pub mod host;
mod id;
mod load;
mod machine;
mod map;
mod map_store;
mod meta;
mod mix;
mod news;
mod partitioner;
pub mod placement;
pub mod shard;
mod span;
pub mod split;
#[cfg(feature = "runtime")]
pub mod store;
mod topology;
mod writes;

pub use either::{Either, EitherHead};
pub use frames::{FRAME_BATCH_BYTES_MAX, FRAME_PARTS_MAX, GroupsHead, Part};
pub use groups::Groups;
pub use heartbeats::NodeHeartbeats;
pub use id::{Birth, BoundsVersion, DomainId, HandoffId, PartitionId, PlacementVersion};
pub use load::Load;
pub use machine::GroupMachine;
pub use map::{
    After, Catchup, Change, DELTAS_MAX, Decision, Delta, DeltaError, DeltaLog, Fit, Handoff, MapError, Misrouted,
    PARTITIONS_MAX, Partition, PartitionMap, Refused, Replication, Route, STALE_ENTRIES_MAX, StaleRoute,
};
pub use map_store::{Expected, MapLog, MapStore, StoreRefused};
pub use meta::{
    META_DELTAS_MAX, META_VERSION, MetaAnswer, MetaCommand, MetaMachine, MetaMalformed, MetaQuery, MetaReply,
};
pub use partitioner::{
    BoundError, HashSlots, HashThenRange, HashedPrefix, KeyOrder, Partitioner, Position, SLOTS, Scheme, Slot, SlotHash,
};
pub use span::Span;
pub use topology::{CAPACITY_MAX, CAPACITY_USUAL, Node, Standing, Topology, TopologyError};
