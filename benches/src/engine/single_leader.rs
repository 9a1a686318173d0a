//! The single-leader cluster: three processes of the node program on loopback, each with its log on disk, driven through the
//! client over TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, NodeId, Role, Store, WriteLevel, WriteRequest};
use replikit_runtime::{Client, ClientConfig, KvClient, NodeStatus, ReadTarget};
use replikit_single_leader::guarantees;

use super::Engine;
use crate::child::{Process, free_ports};
use crate::error::BenchError;
use crate::load::{Reads, Target};

const NODES: u32 = 3;
/// Clients over TCP, each with its own connections and session, that the load is spread over.
const CONNECTIONS: usize = 8;
/// A cluster must serve its first write within this time.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(5);

/// A running cluster.
pub struct SingleLeader {
    program: PathBuf,
    folder: PathBuf,
    cluster: String,
    ports: Vec<u16>,
    /// By node, in the order of their ids; `None` while killed.
    nodes: Vec<Option<Process>>,
    /// Follow the leader.
    clients: Vec<KvClient>,
    /// Ask one node each, for reads at any replica.
    replicas: Vec<KvClient>,
}

fn failed(what: impl Into<String>) -> BenchError {
    BenchError::Engine { engine: "single-leader".to_owned(), what: what.into() }
}

/// The node program lies beside this one: `cargo xtask bench` builds both.
fn program() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("looking for the bench program"))?;
    let program = own.with_file_name("replikit");
    if program.is_file() {
        return Ok(program);
    }
    Err(failed(format!("{} is not there; `cargo xtask bench` builds it", program.display())))
}

impl SingleLeader {
    /// Starts three nodes with their data below `folder`, and waits until they serve.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path) -> Result<Self, BenchError> {
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the data folder"))?;
        let mut this = Self {
            program: program()?,
            folder: folder.to_owned(),
            cluster: format!("bench-{}", std::process::id()),
            ports: free_ports(NODES as usize).map_err(BenchError::io("looking for free ports"))?,
            nodes: (0..NODES).map(|_| None).collect(),
            clients: Vec::new(),
            replicas: Vec::new(),
        };
        for node in 1..=NODES {
            this.restart(NodeId(node))?;
        }
        let begun = Instant::now();
        let addresses: Vec<String> = (1..=NODES).map(|node| this.address(NodeId(node)).to_string()).collect();
        while this.clients.len() < CONNECTIONS {
            this.check()?;
            match Client::connect(ClientConfig::new(&this.cluster, addresses.clone())).await {
                Ok(client) => this.clients.push(KvClient::new(client).promising(guarantees)),
                Err(error) if begun.elapsed() > START_MAX => return Err(failed(format!("no node answers: {error}"))),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        this.wait_ready().await?;
        for node in 1..=NODES {
            let reads = ReadTarget::Node(NodeId(node));
            let config = ClientConfig::new(&this.cluster, addresses.clone()).reads(reads);
            let client = Client::connect(config).await.map_err(|error| failed(error.to_string()))?;
            this.replicas.push(KvClient::new(client).promising(guarantees));
        }
        Ok(this)
    }

    fn address(&self, node: NodeId) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[index(node)]))
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
                return Err(failed(format!("the cluster does not serve: {last}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        let mut statuses = Vec::new();
        for node in 1..=NODES {
            let status = self.clients[0].endpoint().status(NodeId(node)).await;
            statuses.push(status.map_err(|error| failed(format!("node {node} tells no status: {error}")))?);
        }
        Ok(statuses)
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
        leader.map(|status| status.node).ok_or_else(|| failed("nobody leads"))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn kill(&mut self, node: NodeId) -> Result<(), BenchError> {
        let mut process = self.nodes[index(node)].take().ok_or_else(|| failed(format!("node {node} does not run")))?;
        process.kill().map_err(BenchError::io(format!("killing node {node}")))
    }

    /// Starts a node that does not run, on the data that it left.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn restart(&mut self, node: NodeId) -> Result<(), BenchError> {
        let mut command = Command::new(&self.program);
        command.args(["node", "--cluster", &self.cluster, "--id", &node.to_string()]);
        command.args(["--listen", &self.address(node).to_string()]);
        for peer in (1..=NODES).map(NodeId).filter(|peer| *peer != node) {
            command.args(["--peer", &format!("{peer}={}", self.address(peer))]);
        }
        command.arg("--data").arg(self.folder.join(format!("node-{node}")));
        let output = self.folder.join(format!("node-{node}.log"));
        let process = Process::start(&format!("node {node}"), &mut command, &output);
        self.nodes[index(node)] = Some(process.map_err(BenchError::io(format!("starting node {node}")))?);
        Ok(())
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn freeze(&mut self, node: NodeId) -> Result<(), BenchError> {
        self.process(node)?.freeze().map_err(BenchError::io(format!("freezing node {node}")))
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn thaw(&mut self, node: NodeId) -> Result<(), BenchError> {
        self.process(node)?.thaw().map_err(BenchError::io(format!("thawing node {node}")))
    }

    fn process(&self, node: NodeId) -> Result<&Process, BenchError> {
        self.nodes[index(node)].as_ref().ok_or_else(|| failed(format!("node {node} does not run")))
    }
}

/// Nodes are numbered from 1.
fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

fn shared(clients: &[KvClient]) -> Vec<Arc<dyn Store>> {
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

    async fn fsyncs(&self) -> Result<Vec<u64>, BenchError> {
        Ok(self.statuses().await?.iter().map(|status| status.counters.fsyncs).collect())
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.nodes.iter_mut().flatten().try_for_each(Process::check).map_err(BenchError::io("the cluster"))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop((self.clients, self.replicas));
        for process in self.nodes.into_iter().flatten() {
            process.stop(STOP_MAX).map_err(BenchError::io("stopping the cluster"))?;
        }
        Ok(())
    }
}
