//! The single-leader cluster: three nodes, driven through the client over TCP.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, NodeId, Role, Store, WriteLevel, WriteRequest};
use replikit_runtime::{Client, ClientConfig, ClientTarget, KvClient, NodeStatus};
use replikit_single_leader::guarantees;

use super::nodes::Nodes;
use super::{Counted, Engine};
use crate::error::BenchError;
use crate::load::{Reads, Target};

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
}

impl SingleLeader {
    /// Starts three nodes with their data below `folder`, and waits until they serve.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path) -> Result<Self, BenchError> {
        let nodes = Nodes::start("single-leader", folder, &[], &[])?;
        let mut this = Self { nodes, clients: Vec::new(), replicas: Vec::new() };
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
        this.wait_ready().await?;
        for node in Nodes::ids() {
            let config = config.clone().reads(ClientTarget::Node(node));
            let client = Client::connect(config).await.map_err(|error| this.nodes.failed(error.to_string()))?;
            this.replicas.push(KvClient::new(client).promising(guarantees));
        }
        Ok(this)
    }

    /// Waits until every node answers and a quorum write is acknowledged.
    ///
    /// # Errors
    /// When that takes longer than a start may.
    pub async fn wait_ready(&mut self) -> Result<(), BenchError> {
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

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        self.nodes.statuses(self.clients[0].endpoint()).await
    }

    /// Its processes.
    pub const fn nodes(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    /// Who leads.
    ///
    /// # Errors
    /// When a node does not answer, or nobody leads.
    pub async fn leader(&self) -> Result<NodeId, BenchError> {
        let statuses = self.statuses().await?;
        // A leader that lost its place without knowing it has an older term.
        let leading = statuses.iter().filter(|status| status.replica.role == Role::Leader);
        let leader = leading.max_by_key(|status| status.replica.term);
        leader.map(|status| status.node).ok_or_else(|| self.nodes.failed("nobody leads"))
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

    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        Ok(self.statuses().await?.iter().map(|status| Counted::from(&status.counters)).collect())
    }

    fn processes(&self) -> Vec<u32> {
        self.nodes.processes()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        self.nodes.configuration()
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.nodes.check()
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop((self.clients, self.replicas));
        self.nodes.stop()
    }
}
