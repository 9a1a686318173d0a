//! The product: replicated key-value data embedded in the user's process, as one node of a cluster over TCP, or as a whole
//! cluster in one process. A handle speaks to one node, which coordinates: every node owns every key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use replikit_core::keyspace::Keyspace as Marker;
use replikit_core::{ClusterId, EpochSource, GroupId, NodeId, NodeInfo, StaticMembership};
use replikit_liveness::{Detector, Settings as Detection, Watched};
use replikit_runtime::{KvHandle, LocalCluster, LocalConfig, NodeConfig, OpenError};

use crate::config::{Config, Counting, Fallbacks, Founding, Keyspaces, Limits, Quorums, ReadRepair, Timing};
use crate::guarantees::guarantees;
use crate::participant::Participant;

/// Settings of the replica, beside those of the node that runs it. All nodes of a cluster have the same quorums, keyspaces and
/// regions.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// R, W and D.
    pub quorums: Quorums,
    /// What becomes of owners that know less.
    pub repair: ReadRepair,
    /// How keys are treated.
    pub keyspaces: Keyspaces,
    /// In which region each node is, for the levels that ask for one; those that are not here are in one more region together.
    pub regions: BTreeMap<NodeId, String>,
    /// How much of what.
    pub limits: Limits,
    /// How long to wait for what.
    pub timing: Timing,
    /// What an empty disk means.
    pub founding: Founding,
    /// How fast a node that hangs is found to be down; a cluster in one process has no need of it.
    pub detection: Detection,
    /// Where the owners of each epoch come from; without it they are the node and its peers, but for the fallback nodes, for
    /// ever.
    pub epochs: Option<SharedEpochs>,
    /// Which nodes of the cluster own nothing and keep hints for those that do, and whether they count.
    pub fallbacks: Fallbacks,
}

/// A source of epochs, shared: for example [`Announcements`](replikit_core::Announcements) that the process makes when it reads
/// of them in the register that the nodes agree on.
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

    /// The same, with these quorums.
    #[must_use]
    pub const fn quorums(mut self, quorums: Quorums) -> Self {
        self.quorums = quorums;
        self
    }

    /// The same, with this read repair.
    #[must_use]
    pub const fn repair(mut self, repair: ReadRepair) -> Self {
        self.repair = repair;
        self
    }

    /// The same, with hanging nodes found as fast as this says.
    #[must_use]
    pub const fn detection(mut self, detection: Detection) -> Self {
        self.detection = detection;
        self
    }

    /// The same, with nodes of the cluster that stand in for owners.
    #[must_use]
    pub fn fallbacks(mut self, nodes: impl IntoIterator<Item = NodeId>, counting: Counting) -> Self {
        self.fallbacks = Fallbacks { nodes: nodes.into_iter().collect(), counting };
        self
    }

    /// The same, with owners that change: those of the newest epoch that this source tells of. All nodes that may ever be owners
    /// are peers of the node, for it must know their addresses; their regions are those that the source tells.
    #[must_use]
    pub fn epochs(mut self, source: Arc<dyn EpochSource + Sync>) -> Self {
        self.epochs = Some(SharedEpochs(source));
        self
    }

    /// The same, with this node in this region.
    #[must_use]
    pub fn region(mut self, node: NodeId, region: impl Into<String>) -> Self {
        self.regions.insert(node, region.into());
        self
    }

    /// The configuration of the replica of a group at one of its nodes, for whoever runs several groups in a node. `owners` are those
    /// of the group, unless [`Settings::epochs`] tells of them.
    #[must_use]
    pub fn config(&self, cluster: ClusterId, group: GroupId, node: NodeId, mut owners: Vec<NodeId>) -> Config {
        owners.retain(|node| !self.fallbacks.nodes.contains(node));
        let region = |id: &NodeId| self.regions.get(id).cloned().unwrap_or_default();
        let info = |id| NodeInfo { region: region(&id), id, address: String::new(), zone: String::new() };
        let named = owners.iter().copied().map(info).collect();
        let mut config = Config::new(cluster, group, node, owners);
        config.epochs = match &self.epochs {
            Some(SharedEpochs(source)) => Box::new(source.clone()),
            None => Box::new(StaticMembership::new(named)),
        };
        config.quorums = self.quorums;
        config.repair = self.repair;
        config.keyspaces = self.keyspaces.clone();
        config.limits = self.limits;
        config.timing = self.timing;
        config.founding = self.founding;
        config.fallbacks = self.fallbacks.clone();
        config
    }
}

fn configuration(error: impl core::fmt::Display) -> OpenError {
    OpenError::Configuration { what: error.to_string() }
}

/// One node of a leaderless cluster: a replica of all keys, its log, its listener. Dropping it shuts it down cleanly.
#[derive(Debug)]
pub struct Node {
    node: replikit_runtime::Node<Marker>,
}

impl Node {
    /// Opens a node; the owners are it and its peers, but for the fallback nodes. Blocks until its log is recovered.
    ///
    /// A node whose disk is empty takes part once it has heard from all others and has caught up, unless
    /// [`Settings::founding`] says that it is new; until then it answers
    /// [`Rejection::CatchingUp`](replikit_core::Rejection::CatchingUp), and is counted in no quorum.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running and nothing was overwritten.
    pub fn open(mut config: NodeConfig, settings: Settings) -> Result<Self, OpenError> {
        let mut owners: Vec<NodeId> = config.peers.iter().map(|&(id, _)| id).collect();
        owners.push(config.id);
        owners.sort_unstable();
        owners.dedup();
        let (cluster, group) = (ClusterId::from_name(&config.cluster), config.group);
        let replica = settings.config(cluster, group, config.id, owners);
        replica.check().map_err(configuration)?;
        // Later lives get larger numbers, unless the clock goes back: then it takes some round trips more to be seen again.
        let generation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let nodes: Vec<NodeId> = config.peers.iter().map(|&(id, _)| id).collect();
        let detector = Detector::new(config.id, &nodes, generation, settings.detection).map_err(configuration)?;
        config.promise.get_or_insert(guarantees);
        let node = replikit_runtime::Node::open(config, move |boots| {
            let participant = Participant::new(replica, &boots.of(group)).map_err(configuration)?;
            Ok(Watched::new(participant, detector))
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
    /// [`Settings::founding`] does not matter here: all take part at once.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for settings that are out of range or do not fit so many nodes.
    pub fn open(nodes: u32, mut settings: Settings) -> Result<Self, OpenError> {
        settings.founding = Founding::New;
        let mut local = LocalConfig::new(nodes);
        local.promise = Some(guarantees);
        let (group, owners) = (local.group, local.nodes.clone());
        let configure = move |node| settings.config(ClusterId::from_name("local"), group, node, owners.clone());
        configure(NodeId(1)).check().map_err(configuration)?;
        let cluster = LocalCluster::open(local, move |node, boots| {
            Participant::new(configure(node), &boots.of(group))
                .expect("checked above, and this log writes its own registers")
        });
        Ok(Self { cluster })
    }

    /// The way to the keys, with this node as the coordinator.
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
