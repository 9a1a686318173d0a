//! What a node is told when it is opened, and every limit by name.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use replikit_core::{Event, GroupId, Guarantees, NodeId, Rejection, SessionSeq, WriteLevel};
use replikit_core::{Queue, ReadLevel};

use crate::gateway::GatewayAt;

/// The group that a handle or client speaks to unless told otherwise.
pub const DEFAULT_GROUP: GroupId = GroupId(1);

/// What [`NodeConfig::log_retained_bytes_max`] may be: from 0, which holds nothing back, to 1 TiB.
pub const LOG_RETAINED_BYTES: RangeInclusive<u64> = 0..=1 << 40;

/// What [`Limits::subscription_bytes_max`] may be: from 4 KiB to 16 MiB, so that a client takes what is sent at once.
pub const SUBSCRIPTION_BYTES: RangeInclusive<usize> = 4 << 10..=16 << 20;

/// Largest answer to a query unless the caller says otherwise, in bytes.
pub const ANSWER_BYTES_MAX: usize = 2 << 20;

/// Called for every event of a replica, on the node's loop: must not block.
pub type EventHook = Arc<dyn Fn(NodeId, GroupId, &Event) + Send + Sync>;

/// What a strategy promises for writes at a level, as a function, because the runtime knows no strategy.
pub type Promise = fn(WriteLevel) -> Guarantees;

/// The name of the strategy that promises this; empty without a promise.
pub(crate) fn strategy(promise: Option<Promise>) -> String {
    promise.map_or_else(String::new, |promise| promise(WriteLevel::default()).strategy)
}

/// Settings of one node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Who this node is; unique in the cluster, never reused with another data directory.
    pub id: NodeId,
    /// Name of the cluster: bytes and connections of another cluster are refused.
    pub cluster: String,
    /// Where to listen, as `host:port`; port 0 takes a free one.
    pub listen: String,
    /// The other nodes and where they listen, as `host:port`. An entry for this node itself says where
    /// the others and clients reach it, if that is not where it listens.
    pub peers: Vec<(NodeId, String)>,
    /// Data directory; `None` keeps the log in memory: nothing survives the process.
    pub dir: Option<PathBuf>,
    /// Group that [`Node::handle`](crate::Node::handle) speaks to.
    pub group: GroupId,
    /// Queues, frames, connections.
    pub limits: Limits,
    /// Times of the transport and of the storage watchdog.
    pub timing: Timing,
    /// Bytes of the log that subscribers may hold back from compaction, beyond what the replica itself still needs; one that
    /// is further behind is told that it lags. [`LOG_RETAINED_BYTES`] says what is accepted. Default 1 GiB.
    pub log_retained_bytes_max: u64,
    /// Receives every event.
    pub events: Option<EventHook>,
    /// What the strategy promises; used by [`Store::guarantees`](replikit_core::Store::guarantees) of the handle.
    pub promise: Option<Promise>,
    /// Answers requests for groups that the replica does not have.
    pub gateway: Option<GatewayAt>,
    /// A digest of what all nodes must have been given alike, beside the name of the cluster; 0, the default, without such.
    /// Nodes refuse each other when theirs differ.
    pub founding: u64,
}

impl NodeConfig {
    /// A node with default settings and its log in memory.
    pub fn new(id: NodeId, cluster: impl Into<String>, listen: impl Into<String>) -> Self {
        Self {
            id,
            cluster: cluster.into(),
            listen: listen.into(),
            peers: Vec::new(),
            dir: None,
            group: DEFAULT_GROUP,
            founding: 0,
            limits: Limits::default(),
            timing: Timing::default(),
            log_retained_bytes_max: 1 << 30,
            events: None,
            promise: None,
            gateway: None,
        }
    }

    /// The same node with these peers.
    #[must_use]
    pub fn peers(mut self, peers: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// The same node with its log on disk.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig")
            .field("id", &self.id)
            .field("cluster", &self.cluster)
            .field("listen", &self.listen)
            .field("peers", &self.peers)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Every queue of a node and what happens at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame from a peer, in bytes; a longer one closes the connection before anything is allocated for it. Must
    /// exceed the largest batch.
    pub peer_frame_bytes_max: usize,
    /// Largest frame from a client, in bytes; a longer one closes the connection before anything is allocated for it.
    pub client_frame_bytes_max: usize,
    /// Bytes waiting for one peer; beyond it messages are dropped and counted.
    pub peer_queue_bytes_max: usize,
    /// Bytes of answers waiting for one client; beyond it no more of its requests are read.
    pub client_queue_bytes_max: usize,
    /// Requests of one connection without an answer; beyond it no more are read.
    pub requests_per_connection_max: usize,
    /// Requests waiting in the loop's inbox; beyond it they are answered [`Rejection::Busy`].
    pub inbox_requests_max: usize,
    /// Connections accepted at a time; beyond it they are refused.
    pub connections_max: usize,
    /// Storage operations handed to the log thread and not yet taken by it; beyond it they wait in the loop, which bounds
    /// them by what its replica keeps open.
    pub storage_operations_max: usize,
    /// Subscribers of the node's changes at a time; beyond it they are refused as [`Rejection::Busy`].
    pub subscriptions_max: usize,
    /// Bytes of changes waiting for one subscriber, or one batch if that is larger; beyond it no more are read from the log
    /// for it. [`SUBSCRIPTION_BYTES`] says what is accepted.
    pub subscription_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peer_frame_bytes_max: 24 << 20,
            client_frame_bytes_max: 4 << 20,
            peer_queue_bytes_max: 64 << 20,
            client_queue_bytes_max: 16 << 20,
            requests_per_connection_max: 4096,
            inbox_requests_max: 1 << 16,
            connections_max: 4096,
            storage_operations_max: 1 << 14,
            subscriptions_max: 1024,
            subscription_bytes_max: 1 << 20,
        }
    }
}

impl Limits {
    pub(crate) fn busy(&self) -> Rejection {
        Rejection::Busy { queue: Queue::Inbox, limit: self.inbox_requests_max as u64 }
    }
}

/// Times of the transport and of the storage watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A storage operation under way for longer than this is reported to the replica as slow. Half the election timeout
    /// is a good value.
    pub storage_slow_after: Duration,
    /// A connection must be made and greeted within this time.
    pub connect_time_max: Duration,
    /// First pause before a lost peer is dialled again; doubles up to `reconnect_pause_max`, with jitter.
    pub reconnect_pause_min: Duration,
    /// Longest pause between two attempts to dial a peer.
    pub reconnect_pause_max: Duration,
    /// Unacknowledged bytes older than this end a connection (`TCP_USER_TIMEOUT`).
    pub unacknowledged_time_max: Duration,
    /// A clean shutdown waits this long for requests under way and for the disk.
    pub shutdown_time_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            storage_slow_after: Duration::from_millis(100),
            connect_time_max: Duration::from_secs(1),
            reconnect_pause_min: Duration::from_millis(10),
            reconnect_pause_max: Duration::from_secs(1),
            unacknowledged_time_max: Duration::from_secs(5),
            shutdown_time_max: Duration::from_secs(2),
        }
    }
}

/// How a write is to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// When it counts as done; default `Quorum`.
    pub level: WriteLevel,
    /// For exactly-once retries by the caller; [`Client`](crate::Client) fills it in by itself.
    pub session: Option<SessionSeq>,
}

impl WriteOptions {
    /// Options with this level and no session.
    #[must_use]
    pub const fn at(level: WriteLevel) -> Self {
        Self { level, session: None }
    }
}

/// How a query is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// How fresh; default `Linearizable`.
    pub level: ReadLevel,
    /// Largest answer, in bytes; default [`ANSWER_BYTES_MAX`].
    pub answer_bytes_max: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { level: ReadLevel::Linearizable, answer_bytes_max: ANSWER_BYTES_MAX }
    }
}

impl ReadOptions {
    /// Options with this level.
    #[must_use]
    pub fn at(level: ReadLevel) -> Self {
        Self { level, ..Self::default() }
    }
}
