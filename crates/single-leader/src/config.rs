//! Settings of one replica: membership and timeouts are arguments, limits have defaults with their trade-offs.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use replikit_core::{BATCH_BYTES_MAX, ClusterId, GroupId, NodeId, Quorum};

/// How long to wait for what. All at least 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A follower that hears nothing for this long, up to twice as long by chance, asks for an election. Shorter means a
    /// shorter gap after a leader froze, longer means fewer needless elections on a busy machine. Default 150 ms.
    pub election: Duration,
    /// A leader says something to each follower at least this often. At most a third of `election`. Default 30 ms.
    pub heartbeat: Duration,
    /// How long a new commit index may wait for an append to ride on before followers are told by a message of its own.
    /// Zero tells them at once: fresher followers for one more message each. Default zero.
    pub commit_notice: Duration,
    /// How long a read may wait for its index to be confirmed and applied before it is refused. Default 1 s.
    pub read: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            election: Duration::from_millis(150),
            heartbeat: Duration::from_millis(30),
            commit_notice: Duration::ZERO,
            read: Duration::from_secs(1),
        }
    }
}

/// How much of what at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest command, in bytes; larger ones are rejected. Default 2 MiB.
    pub command_bytes_max: usize,
    /// A batch is closed when its commands reach this, in bytes. Default 256 KiB.
    pub batch_bytes_max: usize,
    /// Commands that a leader takes before they are committed, in bytes; beyond it, commands are rejected as busy. Default
    /// 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Batches in one message, in bytes. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Batches under way to one follower, in bytes: the adaptive window grows up to this. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Applied batches kept in memory for followers that are a little behind, in bytes. Default 32 MiB.
    pub cache_bytes_max: usize,
    /// Reads waiting at one replica; beyond it, reads are rejected as busy. Default 65,536.
    pub reads_max: usize,
    /// A snapshot is taken when this much log was applied since the last one, in bytes. Default 256 MiB.
    pub snapshot_log_bytes: u64,
    /// Piece of a snapshot in one message, in bytes. Default 256 KiB.
    pub snapshot_piece_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_bytes_max: 2 << 20,
            batch_bytes_max: 256 << 10,
            uncommitted_bytes_max: 64 << 20,
            message_bytes_max: 1 << 20,
            inflight_bytes_max: 8 << 20,
            cache_bytes_max: 32 << 20,
            reads_max: 1 << 16,
            snapshot_log_bytes: 256 << 20,
            snapshot_piece_bytes: 256 << 10,
        }
    }
}

/// What a replica is told when it is built.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster, which seeds all checksums.
    pub cluster: ClusterId,
    /// The group that this is a replica of.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// The members, this node included. At most 255.
    pub voters: Vec<NodeId>,
    /// Seeds the election timeouts and request ids. Must differ from start to start.
    pub seed: u64,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How much of what.
    pub limits: Limits,
    /// After so long with nothing to do the group sleeps: no messages, no timers, until something happens. At least 1 ms. `None`, the
    /// default: never. Only for a replica whose driver tells it which nodes are gone and back, by [`Input::Peer`](replikit_core::Input::Peer),
    /// and never forgets to: a sleeping follower has no other way to learn that its leader died.
    pub hibernate_after: Option<Duration>,
}

/// Why a configuration was refused. Blame: caller; nothing was built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// This node is not among the members.
    #[error("node {node} is not among the members {voters:?}")]
    NotAMember {
        /// This node.
        node: NodeId,
        /// The members.
        voters: Vec<NodeId>,
    },
    /// More members than replicas can be counted.
    #[error("{voters} members are more than 255")]
    TooManyMembers {
        /// How many.
        voters: usize,
    },
    /// A timeout is out of range.
    #[error("{name} is {value:?}, which must be at least {min:?} and at most {max:?}")]
    Timeout {
        /// Which.
        name: &'static str,
        /// Its value.
        value: Duration,
        /// The smallest allowed.
        min: Duration,
        /// The largest allowed.
        max: Duration,
    },
    /// A limit is out of range.
    #[error("{name} is {value}, which must be at least 1 and at most {max}")]
    Limit {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The largest allowed.
        max: u64,
    },
    /// The durable record of this group cannot be read: it was written by another version, or is damaged.
    #[error("the vote record of group {group} cannot be read")]
    Register {
        /// Which group.
        group: GroupId,
    },
}

impl Config {
    /// A configuration with default timeouts and limits.
    #[must_use]
    pub fn new(cluster: ClusterId, group: GroupId, node: NodeId, voters: Vec<NodeId>, seed: u64) -> Self {
        let (timeouts, limits) = (Timeouts::default(), Limits::default());
        Self { cluster, group, node, voters, seed, timeouts, limits, hibernate_after: None }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !self.voters.contains(&self.node) {
            return Err(ConfigError::NotAMember { node: self.node, voters: self.voters.clone() });
        }
        if self.voters.len() > usize::from(u8::MAX) {
            return Err(ConfigError::TooManyMembers { voters: self.voters.len() });
        }
        let (ms, day) = (Duration::from_millis(1), Duration::from_secs(86_400));
        let timeouts = &self.timeouts;
        for (name, value, min, max) in [
            ("the election timeout", timeouts.election, ms * 3, day),
            ("the heartbeat interval", timeouts.heartbeat, ms, timeouts.election / 3),
            ("the commit notice delay", timeouts.commit_notice, Duration::ZERO, timeouts.heartbeat),
            ("the read timeout", timeouts.read, ms, day),
            ("the time until a group sleeps", self.hibernate_after.unwrap_or(day), ms, day),
        ] {
            if value < min || value > max {
                return Err(ConfigError::Timeout { name, value, min, max });
            }
        }
        let limits = &self.limits;
        let most = BATCH_BYTES_MAX as u64 / 2;
        for (name, value, max) in [
            ("command_bytes_max", limits.command_bytes_max as u64, most),
            ("batch_bytes_max", limits.batch_bytes_max as u64, most / 2),
            ("uncommitted_bytes_max", limits.uncommitted_bytes_max as u64, u64::MAX),
            ("message_bytes_max", limits.message_bytes_max as u64, most),
            ("inflight_bytes_max", limits.inflight_bytes_max as u64, u64::MAX),
            ("reads_max", limits.reads_max as u64, u64::MAX),
            ("snapshot_log_bytes", limits.snapshot_log_bytes, u64::MAX),
            ("snapshot_piece_bytes", u64::from(limits.snapshot_piece_bytes), most),
        ] {
            if value == 0 || value > max {
                return Err(ConfigError::Limit { name, value, max });
            }
        }
        Ok(())
    }
}

/// What a replica is told, but for what is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Common {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    pub(crate) hibernate_after: Option<Duration>,
}

/// The members of a group, as one of them sees them.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    pub(crate) quorum: Arc<Quorum>,
    /// The others, ascending.
    pub(crate) peers: Arc<[NodeId]>,
}

/// What the replicas of a node have in common, kept in memory once: their settings, and the members of those that have the same.
#[derive(Debug, Default)]
pub struct Sharing {
    settings: Option<Arc<Common>>,
    members: BTreeMap<(NodeId, Vec<NodeId>), Members>,
}

impl Sharing {
    pub(crate) fn of(&mut self, config: &Config) -> (Arc<Common>, Members) {
        let &Config { cluster, node, timeouts, limits, hibernate_after, .. } = config;
        let settings = Common { cluster, node, timeouts, limits, hibernate_after };
        let settings = match &self.settings {
            Some(known) if **known == settings => Arc::clone(known),
            _ => Arc::clone(self.settings.insert(Arc::new(settings))),
        };
        let members = self.members.entry((node, config.voters.clone())).or_insert_with(|| {
            let quorum = Quorum::majority(config.voters.clone()).expect("this node is a voter, so there is one");
            let peers = quorum.voters().into_iter().filter(|&voter| voter != node).collect();
            Members { quorum: Arc::new(quorum), peers }
        });
        (settings, members.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(ClusterId::from_name("test"), GroupId(0), NodeId(1), vec![NodeId(1), NodeId(2)], 1)
    }

    #[test]
    fn defaults_are_in_range() {
        assert_eq!(config().check(), Ok(()));
    }

    #[test]
    fn a_heartbeat_that_cannot_keep_followers_quiet_is_refused() {
        let mut config = config();
        config.timeouts.heartbeat = config.timeouts.election / 2;
        let error = config.check().unwrap_err().to_string();
        assert!(error.starts_with("the heartbeat interval is 75ms"), "{error}");
    }

    #[test]
    fn what_groups_have_in_common_is_kept_once_and_no_more_than_that() {
        let mut sharing = Sharing::default();
        let (one, members) = sharing.of(&config());
        let (same, same_members) = sharing.of(&Config { group: GroupId(7), seed: 9, ..config() });
        assert!(Arc::ptr_eq(&one, &same) && Arc::ptr_eq(&members.peers, &same_members.peers));
        let (_, more) = sharing.of(&Config { voters: vec![NodeId(1), NodeId(2), NodeId(3)], ..config() });
        assert_eq!((&*members.peers, &*more.peers), (&[NodeId(2)][..], &[NodeId(2), NodeId(3)][..]));
        let (other, _) = sharing.of(&Config { hibernate_after: Some(Duration::from_secs(1)), ..config() });
        assert_eq!((one.hibernate_after, other.hibernate_after), (None, Some(Duration::from_secs(1))));
        let (_, elsewhere) = sharing.of(&Config { node: NodeId(2), ..config() });
        assert_eq!(&*elsewhere.peers, [NodeId(1)]);
    }

    #[test]
    fn a_node_outside_the_group_is_refused() {
        let mut config = config();
        config.node = NodeId(9);
        assert!(matches!(config.check(), Err(ConfigError::NotAMember { node: NodeId(9), .. })));
    }
}
