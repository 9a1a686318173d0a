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
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
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

/// The next frame of a connection: its kind, and its body.
fn frame(mut stream: &TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 1];
    stream.read_exact(&mut body).unwrap();
    (header[4], body)
}

/// Takes the whole greeting of a client and welcomes it as node 9, which knows these nodes and claims to lead, or that nobody does.
fn welcome(mut stream: &TcpStream, leads: bool, known: &[(u32, String)]) {
    frame(stream);
    let mut body = if leads { vec![1, 9, 1, 9] } else { vec![1, 9, 0] };
    body.push(known.len() as u8);
    for (id, address) in known {
        body.extend_from_slice(&[*id as u8, address.len() as u8]);
        body.extend_from_slice(address.as_bytes());
    }
    stream.write_all(&(body.len() as u32 + 1).to_le_bytes()).unwrap();
    stream.write_all(&[2]).unwrap();
    stream.write_all(&body).unwrap();
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
