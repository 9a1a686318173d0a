//! The product: replicated key-value data embedded in the user's process, as one node of a cluster over TCP, or as a whole
//! cluster in one process. A handle speaks to one node, for there is no leader to follow.

use std::net::SocketAddr;
use std::sync::Arc;

use replikit_core::keyspace::Keyspace as Marker;
use replikit_core::{ClusterId, EpochSource, GroupId, NodeId};
use replikit_runtime::{KvHandle, LocalCluster, LocalConfig, NodeConfig, OpenError};

use crate::config::{Config, Founding, Keyspaces, Limits, Timing};
use crate::guarantees::guarantees;
use crate::replica::MultiLeader;
use crate::topology::{Topology, TopologyError, TopologyReport};

/// Settings of the replica, beside those of the node that runs it. All nodes of a cluster have the same topology and
/// keyspaces.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who sends to whom.
    pub topology: Topology,
    /// How keys are treated.
    pub keyspaces: Keyspaces,
    /// How much of what.
    pub limits: Limits,
    /// How long to wait for what.
    pub timing: Timing,
    /// What an empty disk means.
    pub founding: Founding,
    /// Where the members of each epoch come from; without it they are the node and its peers, for ever.
    pub epochs: Option<SharedEpochs>,
}

/// A source of membership epochs, shared: for example [`Announcements`](replikit_core::Announcements) that the process makes
/// when it reads of them in the register that the nodes agree on.
#[derive(Clone)]
pub struct SharedEpochs(pub Arc<dyn EpochSource + Sync>);

impl core::fmt::Debug for SharedEpochs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("SharedEpochs").field(self.0.current()).finish()
    }
}

impl Settings {
    /// Defaults, with these keyspaces.
    #[must_use]
    pub fn new(keyspaces: Keyspaces) -> Self {
        Self { keyspaces, ..Self::default() }
    }

    /// The same, with this topology.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// The same, with members that change: those of the newest epoch that this source tells of. All nodes that may ever be
    /// members are peers of the node, for it must know their addresses.
    #[must_use]
    pub fn epochs(mut self, source: Arc<dyn EpochSource + Sync>) -> Self {
        self.epochs = Some(SharedEpochs(source));
        self
    }

    /// What single failures do to the topology when it is laid over these members.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn report(&self, members: &[NodeId]) -> Result<TopologyReport, TopologyError> {
        Ok(self.topology.graph(members)?.report())
    }

    /// The configuration of the replica of a group at one of its nodes, for whoever runs several groups in a node. `members` are those
    /// of the group, unless [`Settings::epochs`] tells of them.
    #[must_use]
    pub fn config(&self, cluster: ClusterId, group: GroupId, node: NodeId, members: Vec<NodeId>) -> Config {
        let mut config = Config::new(cluster, group, node, members);
        config.topology = self.topology.clone();
        config.keyspaces = self.keyspaces.clone();
        config.limits = self.limits;
        config.timing = self.timing;
        config.founding = self.founding;
        if let Some(SharedEpochs(source)) = &self.epochs {
            config.epochs = Box::new(source.clone());
        }
        config
    }
}

fn configuration(error: impl core::fmt::Display) -> OpenError {
    OpenError::Configuration { what: error.to_string() }
}

/// One node of a multi-leader cluster: a replica of all keys, its log, its listener. Dropping it shuts it down cleanly.
#[derive(Debug)]
pub struct Node {
    node: replikit_runtime::Node<Marker>,
}

impl Node {
    /// Opens a node; the members are it and its peers, or those that [`Settings::epochs`] tells of. Blocks until its log is recovered.
    ///
    /// A node whose disk is empty takes writes once it has heard from all others, unless [`Settings::founding`] says that it
    /// is new; until then it answers [`Rejection::CatchingUp`](replikit_core::Rejection::CatchingUp).
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running and nothing was overwritten.
    pub fn open(mut config: NodeConfig, settings: Settings) -> Result<Self, OpenError> {
        let mut members: Vec<NodeId> = config.peers.iter().map(|&(id, _)| id).collect();
        members.push(config.id);
        members.sort_unstable();
        members.dedup();
        let (cluster, group) = (ClusterId::from_name(&config.cluster), config.group);
        let replica = settings.config(cluster, group, config.id, members);
        replica.check().map_err(configuration)?;
        config.promise.get_or_insert(guarantees);
        let node = replikit_runtime::Node::open(config, move |boots| {
            MultiLeader::new(replica, &boots.of(group)).map_err(configuration)
        })?;
        Ok(Self { node })
    }

    /// The in-process way to its keys.
    #[must_use]
    pub fn handle(&self) -> KvHandle {
        KvHandle::new(self.node.handle())
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
pub struct Cluster {
    cluster: LocalCluster<Marker>,
}

impl Cluster {
    /// Starts nodes 1 to `nodes`. They are new, and their logs outlive their [stops](Cluster::stop), so
    /// [`Settings::founding`] does not matter here: all take writes at once.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for settings that are out of range or do not fit so many nodes.
    pub fn open(nodes: u32, mut settings: Settings) -> Result<Self, OpenError> {
        settings.founding = Founding::New;
        let mut local = LocalConfig::new(nodes);
        local.promise = Some(guarantees);
        let (group, members) = (local.group, local.nodes.clone());
        let configure = move |node| settings.config(ClusterId::from_name("local"), group, node, members.clone());
        configure(NodeId(1)).check().map_err(configuration)?;
        let cluster = LocalCluster::open(local, move |node, boots| {
            MultiLeader::new(configure(node), &boots.of(group))
                .expect("checked above, and this log writes its own registers")
        });
        Ok(Self { cluster })
    }

    /// The way to the keys, at one node.
    #[must_use]
    pub fn handle_at(&self, node: NodeId) -> KvHandle {
        KvHandle::new(self.cluster.handle_at(node))
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
