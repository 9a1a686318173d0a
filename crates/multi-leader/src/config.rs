//! What a replica is told before it begins, checked as a whole.

use core::fmt;
use core::time::Duration;

use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::{ClusterId, EpochSource, GroupId, NodeId, NodeInfo, Origin, StaticMembership};

use crate::home::Home;
use crate::topology::{Topology, TopologyError};

/// How the keys below a prefix are treated. The same at every replica: see [`Keyspaces`].
#[derive(Clone, Debug, Default)]
pub struct Keyspace {
    /// What becomes of writes that have not seen each other.
    pub conflicts: ConflictPolicy,
    /// What becomes of a delete and a value that have not seen each other.
    pub deletes: DeletePolicy,
    /// Where keys are to be written, to avoid conflicts.
    pub home: Home,
}

impl Keyspace {
    /// A keyspace with this conflict policy; deletes lose to values that they have not seen, and keys have no home.
    #[must_use]
    pub fn new(conflicts: ConflictPolicy) -> Self {
        Self { conflicts, ..Self::default() }
    }
}

/// The keyspaces of a group, by the prefix of their keys.
pub type Keyspaces = replikit_core::keyspace::Keyspaces<Keyspace>;

/// Sizes. Each is a named limit, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A batch is closed once its entries have this size. Default 256 KiB.
    pub batch_bytes_max: usize,
    /// Entries of one message, unless one batch is larger. Default 1 MiB.
    pub message_bytes_max: usize,
    /// What is sent to one peer ahead of its confirmation. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Newest batches of all origins that are kept in memory for peers; older ones are read from the log. Default 16 MiB.
    pub cache_bytes_max: usize,
    /// Batches that wait for the writes that their writers had seen. Beyond it such batches are not taken in, and asked for
    /// again later; one that can be applied is never refused. Default 16 MiB.
    pub causal_buffer_bytes_max: usize,
    /// Own writes that are not durable yet; beyond it writes are refused as busy. Default 16 MiB.
    pub uncommitted_bytes_max: usize,
    /// Writes that wait for other replicas, and reads that wait for writes, each. Default 65,536.
    pub waiting_max: usize,
    /// The log grows by this much between two snapshots. Default 256 MiB: each writes the whole state again.
    pub snapshot_log_bytes: u64,
    /// Log that is kept for members that do not have it yet; beyond it they get a snapshot. Default 1 GiB.
    pub retained_bytes_max: u64,
    /// A piece of a snapshot on its way to a peer. Default 256 KiB.
    pub snapshot_piece_bytes: usize,
    /// A snapshot from a peer is gathered in memory before it is joined; a larger one is refused. Default 8 GiB.
    pub snapshot_bytes_max: u64,
    /// Overwritten values that are kept for the audit; beyond it the oldest are dropped, and counted. Default 64 MiB.
    pub audit_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_bytes_max: 256 << 10,
            message_bytes_max: 1 << 20,
            inflight_bytes_max: 8 << 20,
            cache_bytes_max: 16 << 20,
            causal_buffer_bytes_max: 16 << 20,
            uncommitted_bytes_max: 16 << 20,
            waiting_max: 1 << 16,
            snapshot_log_bytes: 256 << 20,
            retained_bytes_max: 1 << 30,
            snapshot_piece_bytes: 256 << 10,
            snapshot_bytes_max: 8 << 30,
            audit_bytes_max: 64 << 20,
        }
    }
}

/// Times, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a replica tells its peers what it holds, so that what was lost is sent again. Default 100 ms.
    pub exchange: Duration,
    /// A peer that has said nothing for this long is suspected: others are reached around it. Default 1 s.
    pub suspect_after: Duration,
    /// A write that waits for other replicas ends as indeterminate after this time; it stays committed here. Default 5 s.
    pub write: Duration,
    /// A read that waits for writes ends after this time. Default 5 s.
    pub read: Duration,
    /// A peer's timestamp further ahead of the own wall clock than this is reported, and does not drag the own clock along.
    /// Default 500 ms.
    pub drift_max: Duration,
    /// Writes of others are stored together with the next thing that somebody waits for, and at the latest after this time;
    /// at once where their writer waits for this replica. Until then a loss of power here costs them this copy only: who
    /// wrote them has them on its disk. Zero: each at once. Default 5 ms.
    pub sync_delay_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            exchange: Duration::from_millis(100),
            suspect_after: Duration::from_secs(1),
            write: Duration::from_secs(5),
            read: Duration::from_secs(5),
            drift_max: Duration::from_millis(500),
            sync_delay_max: Duration::from_millis(5),
        }
    }
}

/// What an empty disk means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Founding {
    /// This node may have been a member before: it asks the others which of its incarnations they know before it writes, and
    /// waits until all have answered. The default.
    #[default]
    Ask,
    /// The operator says that this node never was a member: it begins at once, if the group was founded with it. Who joins
    /// later catches up first. Saying so of a node that lost its disk breaks
    /// everything: dots would be given away twice.
    New,
}

/// Everything that a replica is told.
pub struct Config {
    /// Which cluster: seeds the checksums.
    pub cluster: ClusterId,
    /// Which group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// Who belongs to the group: asked before every input.
    pub epochs: Box<dyn EpochSource>,
    /// Who sends to whom.
    pub topology: Topology,
    /// How keys are treated.
    pub keyspaces: Keyspaces,
    /// Sizes.
    pub limits: Limits,
    /// Times.
    pub timing: Timing,
    /// What an empty disk means.
    pub founding: Founding,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("group", &self.group).field("node", &self.node).finish_non_exhaustive()
    }
}

impl Config {
    /// Defaults, for a membership that never changes.
    #[must_use]
    pub fn new(cluster: ClusterId, group: GroupId, node: NodeId, members: Vec<NodeId>) -> Self {
        let info = |id| NodeInfo { id, address: String::new(), region: String::new(), zone: String::new() };
        Self {
            cluster,
            group,
            node,
            epochs: Box::new(StaticMembership::new(members.into_iter().map(info).collect())),
            topology: Topology::default(),
            keyspaces: Keyspaces::default(),
            limits: Limits::default(),
            timing: Timing::default(),
            founding: Founding::default(),
        }
    }

    /// Whether a replica can begin with it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let members: Vec<NodeId> = self.epochs.current().nodes.iter().map(|node| node.id).collect();
        if let Some(&node) = members.iter().chain([&self.node]).find(|node| **node > Origin::NODE_MAX) {
            return Err(ConfigError::NodeTooLarge { node });
        }
        if !self.epochs.changes() {
            if !members.contains(&self.node) {
                return Err(ConfigError::NotAMember { node: self.node });
            }
            self.topology.graph(&members)?;
        }
        let positive = [
            ("exchange", self.timing.exchange),
            ("suspect_after", self.timing.suspect_after),
            ("write", self.timing.write),
            ("read", self.timing.read),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, time)| time.is_zero()) {
            return Err(ConfigError::Zero { name });
        }
        let limits = &self.limits;
        let sizes = [
            ("batch_bytes_max", limits.batch_bytes_max),
            ("message_bytes_max", limits.message_bytes_max),
            ("inflight_bytes_max", limits.inflight_bytes_max),
            ("uncommitted_bytes_max", limits.uncommitted_bytes_max),
            ("waiting_max", limits.waiting_max),
            ("snapshot_piece_bytes", limits.snapshot_piece_bytes),
            ("snapshot_log_bytes", limits.snapshot_log_bytes as usize),
        ];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(ConfigError::Zero { name }),
            None => Ok(()),
        }
    }
}

/// Why a replica cannot begin. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A node's id is too large to be an origin. Blame: the operator.
    #[error("node {node} has an id above {}", Origin::NODE_MAX)]
    NodeTooLarge {
        /// The node.
        node: NodeId,
    },
    /// This node is not a member of its own group, and never will be. Blame: the operator.
    #[error("node {node} is not among the members")]
    NotAMember {
        /// The node.
        node: NodeId,
    },
    /// The topology does not fit the members.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A time or size that must not be zero is.
    #[error("{name} must not be zero")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// The group's register on this disk was not written by this strategy. Blame: the operator, who gave the wrong directory.
    #[error("the data directory belongs to another strategy")]
    Foreign,
    /// The node has started unclean too often: it needs a new id.
    #[error("node {node} has used up its incarnations")]
    Incarnations {
        /// The node.
        node: NodeId,
    },
}
