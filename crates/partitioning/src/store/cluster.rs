//! A partitioned store in one process: its nodes with a thread each, over loopback. For tests, examples and measuring.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use replikit_core::NodeId;
use replikit_runtime::{ConnectError, NodeConfig, OpenError};
use replikit_single_leader::Settings;

use super::client::{StoreClient, StoreClientConfig};
use super::layout::{Founding, Layout};
use super::node::StoreNode;
#[cfg(any(feature = "leaderless", feature = "multi-leader"))]
use super::placed::PlacedStoreNode;
#[cfg(any(feature = "leaderless", feature = "multi-leader"))]
use crate::map::Replication;

/// The name of the cluster.
const CLUSTER: &str = "local";

/// The nodes of a store, all in this process.
#[derive(Debug)]
pub struct StoreCluster {
    layout: Layout,
    settings: Settings,
    #[cfg(feature = "leaderless")]
    leaderless: replikit_leaderless::Settings,
    #[cfg(feature = "multi-leader")]
    multi_leader: replikit_multi_leader::Settings,
    dir: Option<PathBuf>,
    addresses: Vec<(NodeId, String)>,
    nodes: BTreeMap<NodeId, Running>,
}

/// A node of any kind.
#[derive(Debug)]
enum Running {
    SingleLeader(StoreNode),
    #[cfg(any(feature = "leaderless", feature = "multi-leader"))]
    Placed(PlacedStoreNode),
}

impl StoreCluster {
    /// Starts the nodes of a founding with default timeouts and limits and their logs in memory.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running.
    pub fn open(founding: &Founding) -> Result<Self, OpenError> {
        Self::open_with(founding, Settings::default(), None)
    }

    /// Starts them with these settings, and with their logs in a folder of each in `dir`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running.
    pub fn open_with(founding: &Founding, settings: Settings, dir: Option<&Path>) -> Result<Self, OpenError> {
        let mut cluster = Self::prepared(founding, settings, dir)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts the nodes of a founding of leaderless groups with these settings, and with their logs in a folder of each in `dir`. All are
    /// new; a node that is started again may have lost what it had, unless it has a folder.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running.
    #[cfg(feature = "leaderless")]
    pub fn open_leaderless(
        founding: &Founding,
        leaderless: replikit_leaderless::Settings,
        dir: Option<&Path>,
    ) -> Result<Self, OpenError> {
        let founding = founding.clone().replication(Replication::Leaderless);
        let mut cluster = Self::prepared(&founding, Settings::default(), dir)?;
        cluster.leaderless =
            replikit_leaderless::Settings { founding: replikit_leaderless::Founding::New, ..leaderless };
        cluster.start_all()?;
        cluster.leaderless.founding = replikit_leaderless::Founding::Ask;
        Ok(cluster)
    }

    /// The same of multi-leader groups.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running.
    #[cfg(feature = "multi-leader")]
    pub fn open_multi_leader(
        founding: &Founding,
        multi_leader: replikit_multi_leader::Settings,
        dir: Option<&Path>,
    ) -> Result<Self, OpenError> {
        use replikit_multi_leader::Founding as Disks;
        let founding = founding.clone().replication(Replication::MultiLeader);
        let mut cluster = Self::prepared(&founding, Settings::default(), dir)?;
        cluster.multi_leader = replikit_multi_leader::Settings { founding: Disks::New, ..multi_leader };
        cluster.start_all()?;
        cluster.multi_leader.founding = Disks::Ask;
        Ok(cluster)
    }

    fn prepared(founding: &Founding, settings: Settings, dir: Option<&Path>) -> Result<Self, OpenError> {
        let layout = Layout::new(founding).map_err(|error| OpenError::Configuration { what: error.to_string() })?;
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|it| Ok((it.local_addr()?.to_string(), it)));
        let listen = |source| OpenError::Listen { address: "127.0.0.1".to_owned(), source };
        // All are held until all are known, so that no two are the same.
        let held: Vec<_> = layout.nodes().iter().map(|_| free()).collect::<Result<_, _>>().map_err(listen)?;
        let addresses = layout.nodes().iter().copied().zip(held.iter().map(|(address, _)| address.clone())).collect();
        drop(held);
        Ok(Self {
            layout,
            settings,
            #[cfg(feature = "leaderless")]
            leaderless: replikit_leaderless::Settings::default(),
            #[cfg(feature = "multi-leader")]
            multi_leader: replikit_multi_leader::Settings::default(),
            dir: dir.map(Path::to_owned),
            addresses,
            nodes: BTreeMap::new(),
        })
    }

    fn start_all(&mut self) -> Result<(), OpenError> {
        self.layout.nodes().to_vec().into_iter().try_for_each(|node| self.start(node))
    }

    /// What the store was founded with.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where its nodes listen.
    #[must_use]
    pub fn addresses(&self) -> &[(NodeId, String)] {
        &self.addresses
    }

    /// The settings of a client of it.
    #[must_use]
    pub fn client_config(&self) -> StoreClientConfig {
        StoreClientConfig::new(CLUSTER, self.addresses.iter().map(|(_, address)| address.clone()))
    }

    /// A client that knows where keys are.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn client(&self) -> Result<StoreClient, ConnectError> {
        StoreClient::connect(self.client_config()).await
    }

    /// A node with groups that have leaders, if it runs.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&StoreNode> {
        match self.nodes.get(&node)? {
            Running::SingleLeader(node) => Some(node),
            #[cfg(any(feature = "leaderless", feature = "multi-leader"))]
            Running::Placed(_) => None,
        }
    }

    /// Stops a node; with its log in memory, what it had is gone.
    pub fn stop(&mut self, node: NodeId) {
        match self.nodes.remove(&node) {
            Some(Running::SingleLeader(node)) => node.shutdown(),
            #[cfg(any(feature = "leaderless", feature = "multi-leader"))]
            Some(Running::Placed(node)) => node.shutdown(),
            None => {}
        }
    }

    /// Starts a node that does not run, from its log.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn start(&mut self, node: NodeId) -> Result<(), OpenError> {
        let listen = self.addresses.iter().find(|(id, _)| *id == node).map(|(_, address)| address.clone());
        let listen = listen.ok_or_else(|| OpenError::Configuration { what: format!("there is no node {node}") })?;
        if self.nodes.contains_key(&node) {
            return Ok(());
        }
        let mut config = NodeConfig::new(node, CLUSTER, listen).peers(self.addresses.clone());
        config.dir = self.dir.as_ref().map(|dir| dir.join(node.to_string()));
        let started = match self.layout.replication() {
            #[cfg(feature = "leaderless")]
            Replication::Leaderless => {
                let settings = self.leaderless.clone();
                Running::Placed(PlacedStoreNode::open(config, &self.layout, self.settings, settings)?)
            }
            #[cfg(feature = "multi-leader")]
            Replication::MultiLeader => {
                let settings = self.multi_leader.clone();
                Running::Placed(PlacedStoreNode::open(config, &self.layout, self.settings, settings)?)
            }
            // Without that feature it is refused there.
            _ => Running::SingleLeader(StoreNode::open(config, &self.layout, self.settings)?),
        };
        self.nodes.insert(node, started);
        Ok(())
    }
}
