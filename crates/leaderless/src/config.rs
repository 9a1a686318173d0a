//! What a replica is told before it begins, checked as a whole.

use core::fmt;
use core::time::Duration;

use bytes::Bytes;
use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::{ClusterId, EpochSource, GroupId, NodeId, NodeInfo, Origin, StaticMembership, quorum};

/// Which requests the keys of a keyspace take. They cannot be mixed, so a key has the same kind for ever: what it held as
/// the other one would not be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// Writes and reads at any level, which quorums of owners answer; what becomes of concurrent ones, the conflict policy says.
    /// Compare-and-set is refused. The default.
    #[default]
    Plain,
    /// Compare-and-set: every change is applied to the latest value, agreed on by a majority of the owners, whatever R and W are;
    /// every read sees it. Linearizable at every level; the conflict policy does not matter. Source: [`cas`](crate::cas).
    Cas,
}

/// How the keys below a prefix are treated. The same at every replica: see [`Keyspaces`].
#[derive(Clone, Debug, Default)]
pub struct Keyspace {
    /// Which requests its keys take.
    pub kind: Kind,
    /// What becomes of writes that have not seen each other. Where the last write wins, a delete is a write like others;
    /// elsewhere it takes away exactly what it has seen. (Deletes that win over what they have not seen would need writes to
    /// arrive in causal order, and owners that wait for it.)
    pub conflicts: ConflictPolicy,
}

impl Keyspace {
    /// A keyspace of plain keys with this conflict policy.
    #[must_use]
    pub const fn new(conflicts: ConflictPolicy) -> Self {
        Self { kind: Kind::Plain, conflicts }
    }

    /// A keyspace whose keys are compared and set.
    #[must_use]
    pub const fn cas() -> Self {
        Self { kind: Kind::Cas, conflicts: ConflictPolicy::Lww }
    }

    pub(crate) const fn is_cas(&self) -> bool {
        matches!(self.kind, Kind::Cas)
    }

    /// Whether the newest write of a key wins.
    pub(crate) const fn is_lww(&self) -> bool {
        matches!(self.conflicts, ConflictPolicy::Lww)
    }

    pub(crate) const fn deletes(&self) -> DeletePolicy {
        if self.is_lww() { DeletePolicy::NewerWins } else { DeletePolicy::AddWins }
    }
}

/// The keyspaces of a group, by the prefix of their keys.
pub type Keyspaces = replikit_core::keyspace::Keyspaces<Keyspace>;

/// How many owners a quorum has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Size {
    /// More than half of them. The default.
    #[default]
    Majority,
    /// So many, from 1 to N.
    Exactly(u8),
}

impl Size {
    pub(crate) fn of(self, owners: u8) -> u8 {
        match self {
            Self::Majority => quorum::majority(owners.into()) as u8,
            Self::Exactly(size) => size,
        }
    }
}

/// R, W and D: what the level `Quorum` means. N is the number of owners.
///
/// With R + W > N a read sees every write that was acknowledged before it began; with W + W > N the later of two writes wins
/// whatever the clocks say; with D copies on disk the loss of any D - 1 disks loses nothing. Where D < W, a crash may take a
/// write from the memory of owners that were counted for it: it stays on D disks, and a quorum may miss it until it is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Quorums {
    /// R: owners whose copies a read joins.
    pub read: Size,
    /// W: owners that have applied a write.
    pub write: Size,
    /// D: owners that have it on disk.
    pub durable: Size,
}

/// What becomes of an owner that a read found to know less than another one. Always the whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadRepair {
    /// It is told, and the read waits until so many owners know what it returns that no later read can miss it: with 2R > N
    /// reads never go back. The default.
    #[default]
    Blocking,
    /// It is told, and the read does not wait.
    Async,
    /// It is not told; the exchange of logs will.
    Off,
}

/// Whether a node that stands in for an owner counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Counting {
    /// Never: hints are one more way for an owner to get what it missed. The default.
    #[default]
    Never,
    /// For writes at the levels `Quorum` and `Any`, in the place of an owner that cannot be reached: a sloppy quorum. Such a
    /// write is durable on as many disks, but a quorum of owners may not have it yet: it is never reported as strict.
    TowardsQuorums,
}

/// Nodes outside the group that keep hints for owners that cannot be reached; none by default.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fallbacks {
    /// These; each keeps what one owner misses of a write, so there should be as many as owners may be away at once.
    pub nodes: Vec<NodeId>,
    /// Whether they count.
    pub counting: Counting,
}

/// Sizes. Each is a named limit, in bytes unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A batch is closed once its entries have this size. Default 256 KiB.
    pub batch_bytes_max: usize,
    /// Entries of one message, unless one batch is larger. Default 1 MiB.
    pub message_bytes_max: usize,
    /// What is sent to one owner ahead of its confirmation. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Newest batches of all origins that are kept in memory for other owners; older ones are read from the log. Default 16 MiB.
    pub cache_bytes_max: usize,
    /// Own writes that are not settled yet; beyond it writes are refused as busy. Default 16 MiB.
    pub uncommitted_bytes_max: usize,
    /// Writes that wait for owners, and reads that do, each; beyond it they are refused as busy. Default 65,536.
    pub waiting_max: usize,
    /// Versions of one key that stand beside each other; beyond it writes that do not replace one are refused. Default 64.
    pub siblings_max: usize,
    /// The log grows by this much between two snapshots. Default 64 MiB.
    pub snapshot_log_bytes: u64,
    /// Log that is kept for owners that do not have it yet; beyond it they get a snapshot. Default 1 GiB.
    pub retained_bytes_max: u64,
    /// A piece of a snapshot on its way to an owner. Default 256 KiB.
    pub snapshot_piece_bytes: usize,
    /// Hints that a fallback node keeps; beyond it they are refused, and not counted. Default 256 MiB.
    pub hints_bytes_max: usize,
    /// A snapshot from another owner is gathered in memory before it is joined; a larger one is refused. Default 8 GiB.
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
            uncommitted_bytes_max: 16 << 20,
            waiting_max: 1 << 16,
            siblings_max: 64,
            snapshot_log_bytes: 64 << 20,
            retained_bytes_max: 1 << 30,
            snapshot_piece_bytes: 256 << 10,
            snapshot_bytes_max: 8 << 30,
            audit_bytes_max: 64 << 20,
            hints_bytes_max: 256 << 20,
        }
    }
}

/// Times, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often an owner tells the others what it holds, so that what was lost is sent again. Default 100 ms.
    pub exchange: Duration,
    /// An owner that has said nothing for this long is suspected: others pass on what it wrote. Default 1 s.
    pub suspect_after: Duration,
    /// A write that waits for owners ends as indeterminate after this time. Default 5 s.
    pub write: Duration,
    /// A read that waits for owners ends after this time. Default 5 s.
    pub read: Duration,
    /// A read asks one owner more when one has not answered for as long as it answers 99 of 100 times, at most for this
    /// long. Default 10 ms.
    pub hedge_max: Duration,
    /// A timestamp further ahead of the own wall clock than this is reported. Default 500 ms.
    pub drift_max: Duration,
    /// How often an owner compares its records with those of the others; `None` leaves that to nobody, and the walk over its own
    /// records too. Default 10 s.
    pub scrub: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            exchange: Duration::from_millis(100),
            suspect_after: Duration::from_secs(1),
            write: Duration::from_secs(5),
            read: Duration::from_secs(5),
            hedge_max: Duration::from_millis(10),
            drift_max: Duration::from_millis(500),
            scrub: Some(Duration::from_secs(10)),
        }
    }
}

/// What an empty disk means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Founding {
    /// This node may have been an owner before: it asks the others what they know of it before it takes part, and waits until
    /// all have answered. The default.
    #[default]
    Ask,
    /// The operator says that this node never was an owner: it begins at once. Saying so of a node that lost its disk breaks
    /// everything: dots would be given away twice, and acknowledged writes missed.
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
    /// Who owns the group's keys: all of them, each. Asked once, when the replica is made.
    pub epochs: Box<dyn EpochSource>,
    /// R, W and D.
    pub quorums: Quorums,
    /// What becomes of owners that know less.
    pub repair: ReadRepair,
    /// How keys are treated.
    pub keyspaces: Keyspaces,
    /// Sizes.
    pub limits: Limits,
    /// Times.
    pub timing: Timing,
    /// What an empty disk means.
    pub founding: Founding,
    /// Who stands in for owners.
    pub fallbacks: Fallbacks,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("group", &self.group).field("node", &self.node).finish_non_exhaustive()
    }
}

/// Whether some key from `from` on, and before `to`, may be compared and set.
pub(crate) fn meets_cas(keyspaces: &Keyspaces, from: &[u8], to: Option<&[u8]>) -> bool {
    keyspaces.bounds().any(|bound| {
        // How keys are treated changes only where a prefix begins or ends.
        let key = bound.max(Bytes::copy_from_slice(from));
        to.is_none_or(|to| key < to) && keyspaces.of(&key).is_cas()
    })
}

/// Most owners of a group: they are counted in one machine word.
pub const OWNERS_MAX: usize = 64;

impl Config {
    /// Defaults, for owners that never change.
    #[must_use]
    pub fn new(cluster: ClusterId, group: GroupId, node: NodeId, owners: Vec<NodeId>) -> Self {
        let info = |id| NodeInfo { id, address: String::new(), region: String::new(), zone: String::new() };
        Self {
            cluster,
            group,
            node,
            epochs: Box::new(StaticMembership::new(owners.into_iter().map(info).collect())),
            quorums: Quorums::default(),
            repair: ReadRepair::default(),
            keyspaces: Keyspaces::default(),
            limits: Limits::default(),
            timing: Timing::default(),
            founding: Founding::default(),
            fallbacks: Fallbacks::default(),
        }
    }

    /// Whether a replica can be made of it.
    ///
    /// # Errors
    /// [`ConfigError`] of the first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let owners: Vec<NodeId> = self.epochs.current().nodes.iter().map(|node| node.id).collect();
        if let Some(&node) = owners.iter().chain([&self.node]).find(|node| **node > Origin::NODE_MAX) {
            return Err(ConfigError::NodeTooLarge { node });
        }
        if let Some(&node) = self.fallbacks.nodes.iter().find(|node| owners.contains(node)) {
            return Err(ConfigError::OwnerAsFallback { node });
        }
        let may_be = owners.contains(&self.node) || self.epochs.changes();
        if !may_be && !self.fallbacks.nodes.contains(&self.node) {
            return Err(ConfigError::NotAnOwner { node: self.node });
        }
        if owners.len() > OWNERS_MAX {
            return Err(ConfigError::TooManyOwners { owners: owners.len() });
        }
        let n = owners.len() as u8;
        let Quorums { read, write, durable } = self.quorums;
        for (name, size) in [("read", read), ("write", write), ("durable", durable)] {
            let size = size.of(n);
            if size == 0 || size > n && !self.epochs.changes() {
                return Err(ConfigError::QuorumSize { name, size, owners: n });
            }
        }
        let positive = [
            ("exchange", self.timing.exchange),
            ("suspect_after", self.timing.suspect_after),
            ("write", self.timing.write),
            ("read", self.timing.read),
            ("hedge_max", self.timing.hedge_max),
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
            ("siblings_max", limits.siblings_max),
            ("snapshot_piece_bytes", limits.snapshot_piece_bytes),
            ("snapshot_log_bytes", limits.snapshot_log_bytes as usize),
            ("snapshot_bytes_max", limits.snapshot_bytes_max as usize),
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
    /// This node does not own the keys of its own group. Blame: the operator.
    #[error("node {node} is neither among the owners nor among the fallback nodes")]
    NotAnOwner {
        /// The node.
        node: NodeId,
    },
    /// An owner cannot stand in for others: it has everything that it could keep for them. Blame: the operator.
    #[error("node {node} is an owner and cannot be a fallback as well")]
    OwnerAsFallback {
        /// The node.
        node: NodeId,
    },
    /// More owners than can be counted. Blame: the operator.
    #[error("{owners} owners are more than {OWNERS_MAX}")]
    TooManyOwners {
        /// How many.
        owners: usize,
    },
    /// A quorum that no group of this size has. Blame: the operator.
    #[error("a {name} quorum of {size} cannot be had among {owners} owners")]
    QuorumSize {
        /// Of what.
        name: &'static str,
        /// How many.
        size: u8,
        /// Of how many.
        owners: u8,
    },
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
