//! The single-leader cluster: three nodes, driven through the client over TCP.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, NodeId, Role, Store, WriteLevel, WriteRequest};
use replikit_runtime::{Client, ClientConfig, ClientTarget, KvClient, NodeStatus};
use replikit_single_leader::guarantees;

use super::Engine;
use super::nodes::Nodes;
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::network::Network;
use crate::play::Home;

/// Clients over TCP, each with its own connections and session, that the load is spread over.
const CONNECTIONS: usize = 8;
/// A cluster must serve its first write within this time.
const START_MAX: Duration = Duration::from_secs(20);

/// A running cluster.
pub struct SingleLeader {
    nodes: Nodes,
    /// Follow the leader.
    clients: Vec<KvClient>,
    /// Ask one node each, for reads at any replica.
    replicas: Vec<KvClient>,
    /// Live beside one node each, and know the others from it.
    residents: Vec<KvClient>,
}

impl SingleLeader {
    /// Starts nodes with their data below `folder`, three of them without a network, and waits until they serve.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, network: Option<&Network>) -> Result<Self, BenchError> {
        let timeout = network.map(|network| network.election_timeout().as_millis().to_string());
        let arguments: Vec<&str> =
            timeout.iter().flat_map(|timeout| ["--election-timeout-ms", timeout.as_str()]).collect();
        let nodes = Nodes::start("single-leader", folder, network, &arguments, &[])?;
        let mut this = Self { nodes, clients: Vec::new(), replicas: Vec::new(), residents: Vec::new() };
        let begun = Instant::now();
        let config = ClientConfig::new(this.nodes.cluster(), this.nodes.addresses());
        while this.clients.len() < CONNECTIONS {
            this.check()?;
            match Client::connect(config.clone()).await {
                Ok(client) => this.clients.push(KvClient::new(client).promising(guarantees)),
                Err(error) if begun.elapsed() > START_MAX => {
                    return Err(this.nodes.failed(format!("no node answers: {error}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        this.serves().await?;
        for node in this.nodes.ids() {
            let connect = async |config| {
                let client = Client::connect(config).await.map_err(|error| this.nodes.failed(error.to_string()))?;
                Ok::<_, BenchError>(KvClient::new(client).promising(guarantees))
            };
            let replica = connect(config.clone().reads(ClientTarget::Node(node))).await?;
            let beside = [this.nodes.address(node).to_string()];
            let resident = connect(ClientConfig::new(this.nodes.cluster(), beside)).await?;
            this.replicas.push(replica);
            this.residents.push(resident);
        }
        Ok(this)
    }

    /// Waits until every node answers and a quorum write is acknowledged.
    ///
    /// # Errors
    /// When that takes longer than a start may.
    async fn serves(&mut self) -> Result<(), BenchError> {
        let begun = Instant::now();
        loop {
            self.check()?;
            let last = match self.clients[0].write(WriteRequest::put("ready", "")).await {
                Ok(_) => match self.statuses().await {
                    Ok(_) => return Ok(()),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > START_MAX {
                return Err(self.nodes.failed(format!("the cluster does not serve: {last}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Who leads, as far as the nodes that answer know. Under load there may be nobody for a moment.
    async fn leading(&self) -> Result<NodeId, BenchError> {
        let begun = Instant::now();
        loop {
            let mut statuses = Vec::new();
            for node in self.nodes.ids().filter(|node| self.nodes.is_up(*node)) {
                statuses.extend(self.clients[0].endpoint().status(node).await);
            }
            // A leader that lost its place without knowing it has an older term.
            let leading = statuses.iter().filter(|status| status.replica.role == Role::Leader);
            if let Some(leader) = leading.max_by_key(|status| status.replica.term) {
                return Ok(leader.node);
            }
            if begun.elapsed() > START_MAX {
                return Err(self.nodes.failed("nobody leads"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(super) fn shared(clients: &[KvClient]) -> Vec<Arc<dyn Store>> {
    clients.iter().map(|client| Arc::new(client.clone()) as Arc<dyn Store>).collect()
}

#[async_trait(?Send)]
impl Engine for SingleLeader {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        Target { leader: shared(&self.clients), replicas: shared(&self.replicas), write_level, reads }
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        self.clients[0].guarantees(write_level)
    }

    fn homes(&self) -> Vec<Home> {
        let both = shared(&self.residents).into_iter().zip(shared(&self.replicas));
        both.map(|(writes, reads)| Home { writes, reads }).collect()
    }

    fn nodes(&self) -> Option<&Nodes> {
        Some(&self.nodes)
    }

    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        Some(&mut self.nodes)
    }

    async fn leader(&self) -> Result<Option<NodeId>, BenchError> {
        self.leading().await.map(Some)
    }

    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        self.serves().await
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        self.nodes.statuses(self.clients[0].endpoint()).await
    }
}
