//! Many replica groups in one node, as one [`Replica`](replikit_core::Replica): [`Groups`].
//!
//! | promise | how |
//! |---|---|
//! | one fsync serves all groups | storage actions of all groups go into one sequence, answered by one watermark |
//! | one frame per peer and round | what all groups say to a peer in a round travels together |
//! | idle groups cost nothing | a group runs only when something came in for it or its deadline is reached |
//!
//! # What it does not do yet
//!
//! Routing of keys to groups, moving groups between nodes, groups of different strategies in one container, liveness of node
//! pairs in place of heartbeats of groups.
//!
//! # Fault model
//!
//! That of the groups inside; the container adds no state that a crash could lose.
//!
//! # The driving loop
//!
//! That of any replica. See [`Groups`] for an example.
#![forbid(unsafe_code)]

pub mod balance;
mod deadlines;
mod frames;
mod groups;
pub mod handoff;
mod id;
mod load;
mod map;
mod partitioner;
pub mod placement;
mod span;
pub mod split;
mod topology;
mod writes;

pub use frames::{FRAME_BATCH_BYTES_MAX, FRAME_PARTS_MAX, GroupsHead, Part};
pub use groups::Groups;
pub use id::{Birth, BoundsVersion, DomainId, HandoffId, PartitionId, PlacementVersion};
pub use load::Load;
pub use map::{
    After, Catchup, Change, DELTAS_MAX, Decision, Delta, DeltaError, DeltaLog, Fit, Handoff, MapError, Misrouted,
    PARTITIONS_MAX, Partition, PartitionMap, Refused, Route, STALE_ENTRIES_MAX, StaleRoute,
};
pub use partitioner::{
    BoundError, HashSlots, HashThenRange, HashedPrefix, KeyOrder, Partitioner, Position, SLOTS, Scheme, Slot, SlotHash,
};
pub use span::Span;
pub use topology::{CAPACITY_MAX, CAPACITY_USUAL, Node, Standing, Topology, TopologyError};
