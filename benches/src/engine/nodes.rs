//! Processes of the node program on loopback, each with its log on disk, and the network between them: what the replicated
//! engines have in common.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use replikit_core::NodeId;
use replikit_runtime::{Client, NodeStatus};

use crate::child::{Process, free_ports};
use crate::error::BenchError;
use crate::network::Network;
use crate::network::proxy::Proxy;

/// How many, unless a network says otherwise.
pub const NODES: u32 = 3;
const STOP_MAX: Duration = Duration::from_secs(5);
/// Jitter and losses are the same in every run.
const PROXY_SEED: u64 = 1;

/// Running nodes. Dropping them kills them.
pub struct Nodes {
    engine: &'static str,
    program: PathBuf,
    folder: PathBuf,
    cluster: String,
    ports: Vec<u16>,
    /// Carries what they send to each other; `None` where loopback does.
    proxy: Option<Proxy>,
    /// What each node is told beside the usual.
    arguments: Vec<String>,
    /// By node, in the order of their ids; `None` while killed.
    processes: Vec<Option<Process>>,
}

/// The node program lies beside this one: `cargo xtask bench` builds both.
fn program(engine: &'static str) -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("looking for the bench program"))?;
    let program = own.with_file_name("replikit");
    if program.is_file() {
        return Ok(program);
    }
    let what = format!("{} is not there; `cargo xtask bench` builds it", program.display());
    Err(BenchError::Engine { engine: engine.to_owned(), what })
}

impl Nodes {
    /// Starts the nodes with their data below `folder`, as many as the network has. Each is told `arguments`, and `first` at
    /// this start only.
    ///
    /// # Errors
    /// When the program is not there, or does not start.
    pub fn start(
        engine: &'static str,
        folder: &Path,
        network: Option<&Network>,
        arguments: &[&str],
        first: &[&str],
    ) -> Result<Self, BenchError> {
        let count = network.map_or(NODES as usize, |network| network.nodes.len());
        Self::start_many(count, engine, folder, network, arguments, first)
    }

    /// The same, so many; as many as the network has, if there is one.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn start_many(
        count: usize,
        engine: &'static str,
        folder: &Path,
        network: Option<&Network>,
        arguments: &[&str],
        first: &[&str],
    ) -> Result<Self, BenchError> {
        let links = network.map_or(0, |_| Proxy::ports(count));
        // All at once, so that no port is given twice.
        let mut ports = free_ports(count + links).map_err(BenchError::io("looking for free ports"))?;
        let link_ports = ports.split_off(count);
        let targets: Vec<SocketAddr> =
            ports.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).collect();
        let proxy = network.map(|network| Proxy::start(network, &targets, &link_ports, PROXY_SEED)).transpose();
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the data folder"))?;
        let mut this = Self {
            engine,
            program: program(engine)?,
            folder: folder.to_owned(),
            cluster: format!("bench-{}", std::process::id()),
            ports,
            proxy: proxy.map_err(BenchError::io("starting the proxy"))?,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            processes: (0..count).map(|_| None).collect(),
        };
        this.ids().try_for_each(|node| this.launch(node, first))?;
        Ok(this)
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.ports.len() as u32).map(NodeId)
    }

    /// What carries between them, where it is not loopback.
    #[must_use]
    pub const fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// What processors have done for all of them so far.
    ///
    /// # Errors
    /// When one has ended, or the system does not tell.
    pub fn processor_time(&self) -> Result<Duration, BenchError> {
        let times = self.processes.iter().flatten().map(Process::processor_time);
        times.sum::<std::io::Result<Duration>>().map_err(BenchError::io("asking what the nodes have done"))
    }

    /// Whether a node was not killed.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.processes[index(node)].is_some()
    }

    /// The name of their cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Where a node listens.
    #[must_use]
    pub fn address(&self, node: NodeId) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[index(node)]))
    }

    /// Where all of them listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.ids().map(|node| self.address(node).to_string()).collect()
    }

    /// The processes that run.
    pub fn processes(&self) -> Vec<u32> {
        self.processes.iter().flatten().map(Process::id).collect()
    }

    /// How they were started.
    pub fn configuration(&self) -> BTreeMap<String, String> {
        let arguments = match self.arguments.as_slice() {
            [] => "none beyond cluster, id, addresses and data".to_owned(),
            arguments => arguments.join(" "),
        };
        let settings = [
            ("program", "replikit node".to_owned()),
            ("nodes", self.ports.len().to_string()),
            ("arguments", arguments),
            ("sync", "one fdatasync for all that is at hand; who waits for it is the write level".to_owned()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Starts a node that does not run, on the data that it left.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn restart(&mut self, node: NodeId) -> Result<(), BenchError> {
        self.launch(node, &[])
    }

    fn launch(&mut self, node: NodeId, more: &[&str]) -> Result<(), BenchError> {
        let mut command = Command::new(&self.program);
        command.args(["node", "--cluster", &self.cluster, "--id", &node.to_string()]);
        command.args(["--listen", &self.address(node).to_string()]);
        for peer in self.ids().filter(|peer| *peer != node) {
            let address = self.proxy.as_ref().map_or_else(|| self.address(peer), |proxy| proxy.address(node, peer));
            command.args(["--peer", &format!("{peer}={address}")]);
        }
        command.arg("--data").arg(self.folder.join(format!("node-{node}")));
        command.args(&self.arguments).args(more);
        let output = self.folder.join(format!("node-{node}.log"));
        let process = Process::start(&format!("node {node}"), &mut command, &output);
        self.processes[index(node)] = Some(process.map_err(BenchError::io(format!("starting node {node}")))?);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn kill(&mut self, node: NodeId) -> Result<(), BenchError> {
        let process = self.processes[index(node)].take();
        let mut process = process.ok_or_else(|| self.failed(format!("node {node} does not run")))?;
        process.kill().map_err(BenchError::io(format!("killing node {node}")))
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

    /// How every node describes itself.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn statuses(&self, client: &Client) -> Result<Vec<NodeStatus>, BenchError> {
        let mut statuses = Vec::new();
        for node in self.ids() {
            let status = client.status(node).await;
            statuses.push(status.map_err(|error| self.failed(format!("node {node} tells no status: {error}")))?);
        }
        Ok(statuses)
    }

    /// Whether all that were not killed still run.
    ///
    /// # Errors
    /// When one has ended by itself; with its last words.
    pub fn check(&mut self) -> Result<(), BenchError> {
        self.processes.iter_mut().flatten().try_for_each(Process::check).map_err(BenchError::io("the cluster"))
    }

    /// SIGTERM, and waits for a clean end; it can be restarted.
    ///
    /// # Errors
    /// When it does not run, or does not end when it is asked to.
    pub fn quit(&mut self, node: NodeId) -> Result<(), BenchError> {
        let process = self.processes[index(node)].take();
        let process = process.ok_or_else(|| self.failed(format!("node {node} does not run")))?;
        process.stop(STOP_MAX).map(drop).map_err(BenchError::io(format!("stopping node {node}")))
    }

    /// Ends them cleanly.
    ///
    /// # Errors
    /// When one does not end when it is asked to.
    pub fn stop(&mut self) -> Result<(), BenchError> {
        for process in self.processes.iter_mut().filter_map(Option::take) {
            process.stop(STOP_MAX).map_err(BenchError::io("stopping the cluster"))?;
        }
        Ok(())
    }

    /// An error of this engine.
    pub fn failed(&self, what: impl Into<String>) -> BenchError {
        BenchError::Engine { engine: self.engine.to_owned(), what: what.into() }
    }

    fn process(&self, node: NodeId) -> Result<&Process, BenchError> {
        self.processes[index(node)].as_ref().ok_or_else(|| self.failed(format!("node {node} does not run")))
    }
}

/// Nodes are numbered from 1.
fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}
