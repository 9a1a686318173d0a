//! Nodes, clients and clusters of the runtime, driving a toy replica over loopback.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod changes;
mod client;
mod disk;
mod equal;
mod gateway;
mod hostile;
mod local;
mod node;
mod primary;

use std::future::Future;
use std::net::TcpListener;
use std::time::Duration;

use replikit_core::NodeId;
use replikit_core::keyspace::Keyspace;
use replikit_runtime::{Client, ClientConfig, Node, NodeConfig};

use primary::Primary;

/// Everything here ends within this time on any machine, or hangs.
const TEST_TIME_MAX: Duration = Duration::from_secs(60);

/// Runs a test with time to end but none to hang.
fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TEST_TIME_MAX, test).await.expect("the test hangs") })
}

/// Addresses that nobody listens on at the moment.
fn free_addresses(count: u32) -> Vec<(NodeId, String)> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    (1..).map(NodeId).zip(listeners.iter().map(|l| l.local_addr().unwrap().to_string())).collect()
}

fn config(nodes: &[(NodeId, String)], id: NodeId) -> NodeConfig {
    let listen = nodes.iter().find(|(node, _)| *node == id).unwrap().1.clone();
    NodeConfig::new(id, "test", listen).peers(nodes.to_vec())
}

fn open(config: NodeConfig) -> Node<Keyspace> {
    try_open(config).unwrap()
}

fn try_open(config: NodeConfig) -> Result<Node<Keyspace>, replikit_runtime::OpenError> {
    let ids: Vec<NodeId> = config.peers.iter().map(|(id, _)| *id).collect();
    let (id, cluster) = (config.id, replikit_core::ClusterId::from_name(&config.cluster));
    Node::open(config, move |_boots| Ok(Primary::new(id, ids, cluster)))
}

/// A cluster of nodes on loopback, logs in memory, and a client.
async fn cluster(count: u32) -> (Vec<Node<Keyspace>>, Client) {
    let addresses = free_addresses(count);
    let nodes: Vec<_> = addresses.iter().map(|(id, _)| open(config(&addresses, *id))).collect();
    linked(&nodes).await;
    (nodes, connect(&addresses).await)
}

/// Waits until all nodes have links to each other: the toy replica sends nothing twice.
async fn linked(nodes: &[Node<Keyspace>]) {
    for node in nodes {
        while node.handle().counters().peer_connects + 1 < nodes.len() as u64 {
            tokio::task::yield_now().await;
        }
    }
}

async fn connect(addresses: &[(NodeId, String)]) -> Client {
    let addresses = addresses.iter().map(|(_, address)| address.clone());
    Client::connect(ClientConfig::new("test", addresses)).await.unwrap()
}
