//! Settings of a register, and why one cannot be made.

use core::time::Duration;

use replikit_core::{ClusterId, GroupId, NodeId};

use super::Register;

/// Settings of a [`Register`].
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// Seeds the checksums of batches.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// This node; at most [`Register::NODE_MAX`].
    pub node: NodeId,
    /// All nodes of the group, this one included.
    pub members: Vec<NodeId>,
    /// Nodes that have not answered are asked again after this.
    pub retry_after: Duration,
    /// An operation without a majority ends after this.
    pub give_up_after: Duration,
    /// Most operations that this node coordinates at a time; more are rejected as busy.
    pub operations_max: usize,
    /// A snapshot is taken after so many accepted records.
    pub snapshot_every: u32,
}

impl RegisterConfig {
    /// Defaults for a node of a group.
    #[must_use]
    pub const fn new(cluster: ClusterId, group: GroupId, node: NodeId, members: Vec<NodeId>) -> Self {
        Self {
            cluster,
            group,
            node,
            members,
            retry_after: Duration::from_millis(40),
            give_up_after: Duration::from_millis(500),
            operations_max: 1024,
            snapshot_every: 4096,
        }
    }
}

/// Why a register cannot be made. Blame: the caller, or a disk of something else. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The node's id does not fit into the ids of its streams.
    #[error("node {node} is above {}", Register::NODE_MAX)]
    Node {
        /// The id.
        node: NodeId,
    },
    /// The node is not among the members, or there are none.
    #[error("node {node} is not a member of its group")]
    NotAMember {
        /// The id.
        node: NodeId,
    },
    /// The disk's register is none of ours.
    #[error("the disk holds a register of another kind")]
    Foreign,
    /// The process has started more often than stream ids allow.
    #[error("no more than {} starts", Register::START_MAX)]
    Starts,
}
