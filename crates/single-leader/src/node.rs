//! The product: a replicated state machine embedded in the user's process, as one node of a cluster over TCP, or as a whole
//! cluster in one process.

use std::net::SocketAddr;

use replikit_core::{ClusterId, NodeId, StateMachine};
use replikit_runtime::{Handle, LocalCluster, LocalConfig, NodeConfig, OpenError};

use crate::config::{Config, Limits, Timeouts};
use crate::guarantees::guarantees;
use crate::replica::Raft;

/// Timeouts and limits of the replica, beside the settings of the node that runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How much of what.
    pub limits: Limits,
}

/// One node of a single-leader cluster: a replica of the user's state machine, its log, its listener. Dropping it shuts it
/// down cleanly.
#[derive(Debug)]
pub struct Node<M> {
    node: replikit_runtime::Node<M>,
}

impl<M: StateMachine> Node<M> {
    /// Opens a node with default timeouts and limits. Blocks until its log is recovered.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running and nothing was overwritten.
    pub fn open(config: NodeConfig, machine: M) -> Result<Self, OpenError> {
        Self::open_with(config, Settings::default(), machine)
    }

    /// Opens a node.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running and nothing was overwritten.
    pub fn open_with(mut config: NodeConfig, settings: Settings, machine: M) -> Result<Self, OpenError> {
        let mut voters: Vec<NodeId> = config.peers.iter().map(|&(id, _)| id).collect();
        voters.push(config.id);
        voters.sort_unstable();
        voters.dedup();
        let cluster = ClusterId::from_name(&config.cluster);
        let mut raft = Config::new(cluster, config.group, config.id, voters, fastrand::u64(..));
        raft.timeouts = settings.timeouts;
        raft.limits = settings.limits;
        raft.check().map_err(|error| OpenError::Configuration { what: error.to_string() })?;
        config.promise.get_or_insert(guarantees);
        // A disk that is slower than this makes followers doubt their leader.
        config.timing.storage_slow_after = config.timing.storage_slow_after.max(settings.timeouts.election / 2);
        let node = replikit_runtime::Node::open(config, move |boots| {
            let boot = boots.of(raft.group);
            Raft::new(raft, &boot, machine).map_err(|error| OpenError::Configuration { what: error.to_string() })
        })?;
        Ok(Self { node })
    }

    /// The in-process way to the group.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        self.node.handle()
    }

    /// Where the node listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.node.local_address()
    }

    /// Shuts down cleanly: requests under way are answered, the log is flushed. Blocks until that is done.
    pub fn shutdown(self) {
        self.node.shutdown();
    }
}

/// A whole cluster in one process, with logs in memory: for tests and examples. Its replicas run in one loop.
#[derive(Debug)]
pub struct Cluster<M> {
    cluster: LocalCluster<M>,
}

impl<M: StateMachine> Cluster<M> {
    /// Starts nodes 1 to `nodes`; `machine` makes the initial state of each, again after a restart.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for a number of nodes that is no cluster.
    pub fn open(nodes: u32, machine: impl Fn() -> M + Send + 'static) -> Result<Self, OpenError> {
        Self::open_with(nodes, Settings::default(), machine)
    }

    /// Starts nodes 1 to `nodes` with these settings.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for a number of nodes that is no cluster, or settings out of range.
    pub fn open_with(
        nodes: u32,
        settings: Settings,
        machine: impl Fn() -> M + Send + 'static,
    ) -> Result<Self, OpenError> {
        let mut local = LocalConfig::new(nodes);
        local.promise = Some(guarantees);
        let (group, voters) = (local.group, local.nodes.clone());
        let configure = move |node| {
            let cluster = ClusterId::from_name("local");
            let mut config = Config::new(cluster, group, node, voters.clone(), fastrand::u64(..));
            config.timeouts = settings.timeouts;
            config.limits = settings.limits;
            config
        };
        configure(NodeId(1)).check().map_err(|error| OpenError::Configuration { what: error.to_string() })?;
        let cluster = LocalCluster::open(local, move |node, boots| {
            let boot = boots.of(group);
            Raft::new(configure(node), &boot, machine()).expect("checked above, and this log writes its own registers")
        });
        Ok(Self { cluster })
    }

    /// A handle that follows the leader.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        self.cluster.handle()
    }

    /// A handle on one node.
    #[must_use]
    pub fn handle_at(&self, node: NodeId) -> Handle<M> {
        self.cluster.handle_at(node)
    }

    /// Who leads; waits until somebody does. `None` once the cluster has ended.
    pub async fn leader(&self) -> Option<NodeId> {
        self.cluster.leader().await
    }

    /// Ends a node as if its process had died; its log stays.
    pub async fn stop(&self, node: NodeId) {
        self.cluster.stop(node).await;
    }

    /// Starts a stopped node from its log.
    pub async fn start(&self, node: NodeId) {
        self.cluster.start(node).await;
    }
}
