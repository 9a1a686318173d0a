//! The multi-leader cluster: three nodes that all take writes; the load is spread over them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::keyspace::Conflict;
use replikit_core::{Dot, Guarantees, NodeId, ReadLevel, ReadRequest, Store, WriteLevel, WriteRequest};
use replikit_multi_leader::guarantees;
use replikit_runtime::{Client, ClientConfig, ClientTarget, KvClient, NodeStatus, Promise};

use super::nodes::Nodes;
use super::single_leader::shared;
use super::{Audited, Engine};
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::network::Network;
use crate::play::Home;

/// Clients over TCP to each node, each with its own connection.
const CONNECTIONS_PER_NODE: usize = 3;
/// A cluster must serve its first writes, and converge, within this time.
const READY_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);
const AUDIT_PAGE: u32 = 1_000;

/// Keys whose concurrent values all stay until a client has seen them.
pub const SIBLINGS: &str = "note/";
/// Keys of which the newest value is shown, as of all keys for which nothing else was said.
pub const NEWEST: &str = "newest/";
/// Counters that merge.
pub const COUNTERS: &str = "count/";
const KEYSPACES: [&str; 8] = [
    "--strategy",
    "multi-leader",
    "--keyspace",
    "note/=siblings",
    "--keyspace",
    "count/=counter",
    "--keyspace",
    "set/=set",
];

/// A running cluster.
pub struct MultiLeader {
    /// Its processes.
    pub nodes: Nodes,
    /// Each node in turn, so that clients which are numbered from 0 are spread over the nodes.
    clients: Vec<KvClient>,
    /// Of each node, the last conflict that was looked at, and how many it had dropped by then.
    looked_at: Vec<(u64, u64)>,
    marks: u64,
}

impl MultiLeader {
    /// Starts nodes with their data below `folder`, three of them without a network, and waits until all take writes and see
    /// those of the others.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, network: Option<&Network>) -> Result<Self, BenchError> {
        Self::start_as("multi-leader", folder, network, &KEYSPACES, guarantees).await
    }

    /// The same for nodes of another family whose nodes are equal.
    pub(super) async fn start_as(
        engine: &'static str,
        folder: &Path,
        network: Option<&Network>,
        arguments: &[&str],
        guarantees: Promise,
    ) -> Result<Self, BenchError> {
        let mut nodes = Nodes::start(engine, folder, network, arguments, &["--new"])?;
        let count = nodes.ids().count();
        let begun = Instant::now();
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS_PER_NODE * count {
            let node = NodeId((number % count) as u32 + 1);
            let config = config_at(&nodes, node, ClientTarget::Node(node));
            loop {
                nodes.check()?;
                match Client::connect(config.clone()).await {
                    Ok(client) => break clients.push(KvClient::new(client).promising(guarantees)),
                    Err(error) if begun.elapsed() > READY_MAX => {
                        return Err(nodes.failed(format!("node {node} does not answer: {error}")));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        }
        let mut this = Self { nodes, clients, looked_at: vec![(0, 0); count], marks: 0 };
        this.converge().await?;
        Ok(this)
    }

    /// Clients that begin at each node in turn, and ask whichever answers soonest.
    ///
    /// # Errors
    /// When one does not answer.
    pub(super) async fn ranking_clients(&self) -> Result<Vec<KvClient>, BenchError> {
        let mut clients = Vec::new();
        for node in self.nodes.ids() {
            let client = Client::connect(config_at(&self.nodes, node, ClientTarget::Fastest)).await;
            let refused = |error| self.nodes.failed(format!("node {node} does not answer: {error}"));
            clients.push(KvClient::new(client.map_err(refused)?));
        }
        Ok(clients)
    }

    /// A client of one node.
    #[must_use]
    pub fn at(&self, node: NodeId) -> &KvClient {
        &self.clients[node.0 as usize - 1]
    }

    /// All clients, each node in turn.
    #[must_use]
    pub fn clients(&self) -> &[KvClient] {
        &self.clients
    }

    /// Waits until every node shows all that the others had acknowledged by now: each is given a mark to write, which is
    /// delivered behind all earlier writes of its node. How long that took.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn converge(&mut self) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        self.marks += 1;
        let number = self.marks.to_string();
        for writer in self.nodes.ids() {
            let mark = WriteRequest::put(format!("mark/{writer}"), number.clone()).at(WriteLevel::LeaderDisk);
            loop {
                self.nodes.check()?;
                match self.at(writer).write(mark.clone()).await {
                    Ok(_) => break,
                    // A node that was restarted finds out first what it had written.
                    Err(_) if begun.elapsed() < READY_MAX => tokio::time::sleep(POLL).await,
                    Err(error) => return Err(self.nodes.failed(format!("node {writer} takes no writes: {error}"))),
                }
            }
        }
        for reader in self.nodes.ids() {
            for writer in self.nodes.ids() {
                let read = ReadRequest::new(format!("mark/{writer}")).at(ReadLevel::Local);
                loop {
                    let shown = self.at(reader).read(read.clone()).await;
                    if shown.is_ok_and(|found| found.values.first().is_some_and(|value| *value == number)) {
                        break;
                    }
                    if begun.elapsed() > READY_MAX {
                        let what = format!("node {reader} does not see what node {writer} wrote {READY_MAX:?} ago");
                        return Err(self.nodes.failed(what));
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        Ok(begun.elapsed())
    }

    /// All its nodes.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        self.nodes.ids()
    }
}

fn config_at(nodes: &Nodes, node: NodeId, target: ClientTarget) -> ClientConfig {
    let config = ClientConfig::new(nodes.cluster(), [nodes.address(node).to_string()]).without_leader();
    config.reads(target).writes(target)
}

/// Nodes that clients live beside, as these clients ask them.
pub(super) fn homes_of(clients: &[KvClient]) -> Vec<Home> {
    shared(clients).into_iter().map(|store| Home { writes: store.clone(), reads: store }).collect()
}

/// What the audit logs of these nodes have, each behind where it was read to last time and what it had dropped by then.
///
/// # Errors
/// When a node does not answer.
pub(super) async fn audit_of<'n>(
    nodes: impl IntoIterator<Item = (&'n KvClient, &'n mut (u64, u64))>,
) -> Result<Audited, BenchError> {
    // What was overwritten at one node only is in the audit log of that one.
    let mut conflicts: BTreeMap<Dot, Conflict> = BTreeMap::new();
    let mut dropped = 0;
    for (client, looked_at) in nodes {
        let (mut after, dropped_before) = *looked_at;
        loop {
            let page = client.conflicts(after, AUDIT_PAGE).await?;
            after = page.conflicts.last().map_or(after, |last| last.number);
            let known = page.conflicts.into_iter().map(|one| (one.overwritten.version.stamp.dot, one));
            conflicts.extend(known);
            if page.next.is_none() {
                *looked_at = (after, page.dropped);
                dropped = dropped.max(page.dropped - dropped_before);
                break;
            }
        }
    }
    Ok(Audited { conflicts: conflicts.into_values().collect(), dropped })
}

#[async_trait(?Send)]
impl Engine for MultiLeader {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let clients: Vec<Arc<dyn Store>> = shared(&self.clients);
        let replicas = clients[..self.nodes.ids().count()].to_vec();
        Target { leader: clients, replicas, write_level, reads }
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        guarantees(write_level)
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        Some(ReadLevel::Local)
    }

    fn homes(&self) -> Vec<Home> {
        homes_of(&self.clients[..self.nodes.ids().count()])
    }

    fn nodes(&self) -> Option<&Nodes> {
        Some(&self.nodes)
    }

    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        Some(&mut self.nodes)
    }

    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        self.converge().await.map(drop)
    }

    async fn settle(&mut self) -> Result<(), BenchError> {
        self.converge().await.map(drop)
    }

    async fn audited(&mut self) -> Result<Option<Audited>, BenchError> {
        audit_of(self.clients.iter().zip(&mut self.looked_at)).await.map(Some)
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        let mut statuses = Vec::new();
        for node in self.nodes.ids() {
            let status = self.at(node).endpoint().status(node).await;
            statuses.push(status.map_err(|error| self.nodes.failed(format!("node {node} tells no status: {error}")))?);
        }
        Ok(statuses)
    }

    async fn remarks(&self) -> Result<Vec<String>, BenchError> {
        let line = |status: &NodeStatus| {
            let figures = status.replica.figures.iter().filter(|figure| figure.count > 0);
            let figures: Vec<String> = figures.map(|figure| format!("{} {}", figure.count, figure.of)).collect();
            format!("node {}: {}", status.node, figures.join(", "))
        };
        Ok(self.statuses().await?.iter().map(line).collect())
    }
}
