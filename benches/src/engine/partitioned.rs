//! The partitioned store: three nodes with a group for each partition, driven by clients that know the map.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, NodeId, Owners, ReadLevel, Store, WriteLevel, WriteRequest};
use replikit_partitioning::Replication;
use replikit_partitioning::store::{
    StoreClient, StoreClientConfig, guarantees, guarantees_leaderless, guarantees_multi_leader,
};
use replikit_runtime::{Client, ClientConfig, KvClient, NodeStatus};
use tokio::task::JoinSet;

use super::multi_leader::audit_of;
use super::nodes::Nodes;
use super::{Audited, Engine, Partitions, Placed};
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::network::Network;
use crate::play::Home;

/// Clients over TCP, each with its own connections and map, that the load is spread over.
const CONNECTIONS: usize = 8;
/// Groups that are written to at once to see whether they serve.
const WRITES_AT_ONCE: usize = 64;
/// Until replicas of a multi-leader group show the same.
const CONVERGENCE: Duration = Duration::from_secs(1);
/// A cluster must serve its first write within this time.
const START_MAX: Duration = Duration::from_secs(20);

/// A running cluster.
pub struct Partitioned {
    nodes: Nodes,
    replication: Replication,
    /// Know the map.
    clients: Vec<StoreClient>,
    /// The same, each connected by way of another node.
    residents: Vec<StoreClient>,
    /// Asks nodes how they are.
    asker: Client,
    /// How far each node's audit log was read, and what it had dropped by then.
    looked_at: Vec<(u64, u64)>,
}

impl Partitioned {
    /// Starts nodes with their data below `folder`, three of them without a network, and waits until every partition serves.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, network: Option<&Network>, partitions: Partitions) -> Result<Self, BenchError> {
        Self::start_with(folder, network, partitions.count(), &[]).await
    }

    /// The same with any number of partitions, and more arguments for the nodes.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn start_with(
        folder: &Path,
        network: Option<&Network>,
        partitions: u16,
        more: &[&str],
    ) -> Result<Self, BenchError> {
        Self::founded(folder, network, partitions, more).await?.with_clients().await
    }

    /// So many nodes with groups of this kind, of three nodes each, one for each partition.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn start_placed(
        placed: Placed,
        folder: &Path,
        network: Option<&Network>,
        nodes: usize,
        partitions: u16,
    ) -> Result<Self, BenchError> {
        let partitions = partitions.to_string();
        let (strategy, replication) = match placed {
            Placed::MultiLeader => ("multi-leader", Replication::MultiLeader),
            Placed::Leaderless => ("leaderless", Replication::Leaderless),
        };
        let mut arguments = vec!["--strategy", strategy, "--partitions", partitions.as_str()];
        arguments.extend(["--keyspace", "count/=counter", "--keyspace", "set/=set"]);
        let nodes = Nodes::start_many(nodes, placed.name(), folder, network, &arguments, &["--new"])?;
        Self::of(nodes, replication).await?.with_clients().await
    }

    /// Waits until it serves, and connects all clients.
    async fn with_clients(mut self) -> Result<Self, BenchError> {
        self.serves().await?;
        let addresses = self.nodes.addresses();
        while self.clients.len() < CONNECTIONS {
            let client = Self::connect(&mut self.nodes, addresses.clone()).await?;
            self.clients.push(client);
        }
        for address in addresses {
            let resident = Self::connect(&mut self.nodes, vec![address]).await?;
            self.residents.push(resident);
        }
        Ok(self)
    }

    /// The same, but waits only until a client knows the map.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn founded(
        folder: &Path,
        network: Option<&Network>,
        partitions: u16,
        more: &[&str],
    ) -> Result<Self, BenchError> {
        let timeout = network.map(|network| network.election_timeout().as_millis().to_string());
        let partitions = partitions.to_string();
        let mut arguments = vec!["--partitions", partitions.as_str()];
        arguments.extend(timeout.iter().flat_map(|timeout| ["--election-timeout-ms", timeout.as_str()]));
        arguments.extend(more);
        Self::of(Nodes::start("partitioned", folder, network, &arguments, &[])?, Replication::SingleLeader).await
    }

    async fn of(mut nodes: Nodes, replication: Replication) -> Result<Self, BenchError> {
        let addresses = nodes.addresses();
        let first = Self::connect(&mut nodes, addresses.clone()).await?;
        let asker = Client::connect(ClientConfig::new(nodes.cluster(), addresses.clone())).await;
        let asker = asker.map_err(|error| nodes.failed(error.to_string()))?;
        Ok(Self { nodes, replication, clients: vec![first], residents: Vec::new(), asker, looked_at: Vec::new() })
    }

    /// Its nodes, to do something to them.
    pub const fn own_nodes(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    /// How many groups a node leads.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn groups_led(&self, node: NodeId) -> Result<u64, BenchError> {
        let status = self.asker.status(node).await.map_err(|error| self.failed(error.to_string()))?;
        let led = status.replica.figures.iter().find(|figure| figure.of == "groups led");
        led.map(|figure| figure.count).ok_or_else(|| self.failed(format!("node {node} does not say what it leads")))
    }

    async fn connect(nodes: &mut Nodes, addresses: Vec<String>) -> Result<StoreClient, BenchError> {
        let config = StoreClientConfig::new(nodes.cluster(), addresses);
        let begun = Instant::now();
        loop {
            nodes.check()?;
            match StoreClient::connect(config.clone()).await {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > START_MAX => {
                    return Err(nodes.failed(format!("no node answers: {error}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A client that knows the map.
    #[must_use]
    pub fn client(&self) -> &StoreClient {
        &self.clients[0]
    }

    /// All of those, each with its own connections and map.
    #[must_use]
    pub fn clients(&self) -> &[StoreClient] {
        &self.clients
    }

    /// The name of the cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        self.nodes.cluster()
    }

    /// Where its nodes listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.addresses()
    }

    /// An error of this engine.
    pub fn failed(&self, what: impl Into<String>) -> BenchError {
        self.nodes.failed(what)
    }

    /// Waits until every group of a partition has carried out a write, and every node answers.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn serves(&mut self) -> Result<(), BenchError> {
        let begun = Instant::now();
        let client = self.clients[0].clone();
        let mut last;
        loop {
            self.check()?;
            last = match self.written_everywhere(&client).await {
                Ok(()) => match self.statuses().await {
                    Ok(_) => return Ok(()),
                    Err(error) => error.to_string(),
                },
                Err(what) => what,
            };
            if begun.elapsed() > START_MAX {
                return Err(self.nodes.failed(format!("the cluster does not serve: {last}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A write to each partition, many at a time; keys are tried until each has had one.
    async fn written_everywhere(&self, client: &StoreClient) -> Result<(), String> {
        let map = client.map().await.map_err(|error| error.to_string())?;
        let mut missing: BTreeSet<_> = map.partitions().map(|partition| partition.id).collect();
        let mut keys = (0_u32..).map(|number| format!("ready{number}"));
        let mut writes = JoinSet::new();
        while !missing.is_empty() || !writes.is_empty() {
            while writes.len() < WRITES_AT_ONCE && !missing.is_empty() {
                let key = keys.next().expect("there is no end of them");
                if missing.remove(&map.partition_of(key.as_bytes()).id) {
                    let client = client.clone();
                    writes.spawn(async move { client.write(WriteRequest::put(key, "")).await });
                }
            }
            if let Some(written) = writes.join_next().await {
                written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

fn shared(clients: &[StoreClient]) -> Vec<Arc<dyn Store>> {
    clients.iter().map(|client| Arc::new(client.clone()) as Arc<dyn Store>).collect()
}

#[async_trait(?Send)]
impl Engine for Partitioned {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        Target { leader: shared(&self.clients), replicas: shared(&self.residents), write_level, reads }
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        match self.replication {
            Replication::SingleLeader => guarantees(write_level),
            Replication::Leaderless => guarantees_leaderless(write_level),
            Replication::MultiLeader => guarantees_multi_leader(write_level),
        }
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        Some(match self.replication {
            Replication::SingleLeader => ReadLevel::Linearizable,
            Replication::Leaderless => ReadLevel::Owners(Owners::Quorum),
            Replication::MultiLeader => ReadLevel::Local,
        })
    }

    async fn settle(&mut self) -> Result<(), BenchError> {
        if self.replication == Replication::MultiLeader {
            // Replicas tell each other what they have, ten times a second.
            tokio::time::sleep(CONVERGENCE).await;
        }
        Ok(())
    }

    async fn audited(&mut self) -> Result<Option<Audited>, BenchError> {
        if self.replication.has_one_log() {
            return Ok(None);
        }
        let nodes: Vec<KvClient> = self.nodes.ids().map(|node| KvClient::new(self.asker.at_node(node))).collect();
        self.looked_at.resize(nodes.len(), (0, 0));
        audit_of(nodes.iter().zip(&mut self.looked_at)).await.map(Some)
    }

    fn homes(&self) -> Vec<Home> {
        let resident = |store: Arc<dyn Store>| Home { writes: Arc::clone(&store), reads: store };
        shared(&self.residents).into_iter().map(resident).collect()
    }

    fn nodes(&self) -> Option<&Nodes> {
        Some(&self.nodes)
    }

    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        Some(&mut self.nodes)
    }

    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        self.serves().await
    }

    async fn migrate(&mut self, time: Duration) -> Result<usize, BenchError> {
        let (client, begun) = (self.clients[0].clone(), Instant::now());
        let mut moved = 0;
        while begun.elapsed() < time {
            let map = client.map().await.map_err(|error| self.failed(error.to_string()))?;
            let partitions: Vec<_> = map.partitions().cloned().collect();
            let partition = &partitions[moved % partitions.len()];
            let after = partitions.iter().cycle().skip(moved % partitions.len() + 1).take(partitions.len());
            let target = after.into_iter().find(|other| other.group != partition.group);
            let target = target.ok_or_else(|| self.failed("all partitions are in one group"))?;
            let (group, replicas) = (target.group, target.replicas.clone());
            let handed = client.hand_off(partition.id, group, replicas, START_MAX).await;
            handed.map_err(|error| self.failed(error.to_string()))?;
            moved += 1;
        }
        Ok(moved)
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        self.nodes.statuses(&self.asker).await
    }
}
