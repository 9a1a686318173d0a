//! etcd with three nodes, reached over its gRPC interface. A write is acknowledged when a majority has it on disk.
//!
//! Invariant: requests go to the leader, so that none is sent on within the cluster, as replikit's own client has it.

pub mod rpc;

use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bytes::Bytes;
use replikit_benches::child::free_ports;
use replikit_benches::error::BenchError;
use replikit_core::{Guarantees, Reached, ReadGuarantee, Survival};

use self::rpc::{Connection, PutRequest, PutResponse, RangeRequest, RangeResponse};
use crate::servers::{Failure, PutGet, Servers};

/// The server's program.
pub const PROGRAM: &str = "etcd";
const NODES: usize = 3;

/// The arguments of one of the nodes with these ports, for clients and for each other: what its documentation shows for a
/// cluster on one machine. Every other setting is its default, the write-ahead log synced before an acknowledgement among them.
#[must_use]
pub fn arguments(node: usize, clients: &[u16], peers: &[u16]) -> Vec<String> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster = peers.iter().enumerate().map(|(node, port)| format!("node-{node}={}", url(*port)));
    [
        ("--name", format!("node-{node}")),
        ("--data-dir", "data".to_owned()),
        ("--listen-client-urls", url(clients[node])),
        ("--advertise-client-urls", url(clients[node])),
        ("--listen-peer-urls", url(peers[node])),
        ("--initial-advertise-peer-urls", url(peers[node])),
        ("--initial-cluster", cluster.collect::<Vec<_>>().join(",")),
        ("--initial-cluster-state", "new".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

/// The version in what `etcd --version` prints.
#[must_use]
pub fn version_in(printed: &str) -> Option<&str> {
    printed.lines().find_map(|line| line.strip_prefix("etcd Version: "))
}

/// Starts it with its data below `folder`, and so many connections to its leader.
///
/// # Errors
/// When it does not serve within its time limit; with the last words of a node that ended.
pub async fn start(folder: &Path, connections: usize) -> Result<Servers<Connection>, BenchError> {
    // All at once, so that no port is given twice.
    let mut ports = free_ports(2 * NODES).map_err(BenchError::io("looking for free ports"))?;
    let peers = ports.split_off(NODES);
    let mut servers = Servers::new("etcd");
    for node in 0..NODES {
        let folder = folder.join(format!("etcd-{node}"));
        std::fs::create_dir_all(&folder).map_err(BenchError::io("creating the data folder"))?;
        let mut command = Command::new(PROGRAM);
        // The folder of its data is named relative to the one that it runs in.
        command.args(arguments(node, &ports, &peers));
        servers.launch(command, &folder)?;
    }
    let leader = servers.within_limit(async || leader(&ports).await).await?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Connection::open(leader).await.map_err(|error| servers.failed(error))?);
    }
    let configuration = [
        ("nodes", NODES.to_string()),
        ("arguments of the first", arguments(0, &ports, &peers).join(" ")),
        ("requests", "Put and linearizable Range over gRPC, to the leader".to_owned()),
    ];
    Ok(servers.serving(clients, configuration))
}

/// The port of the node that leads, which must take a write.
async fn leader(ports: &[u16]) -> Result<u16, String> {
    for port in ports {
        let connection = Connection::open(*port).await?;
        if connection.leads().await? {
            connection.put("ready".into(), "1".into()).await.map_err(|error| error.to_string())?;
            return Ok(*port);
        }
    }
    Err("no node leads".to_owned())
}

#[async_trait]
impl PutGet for Connection {
    const REACHED: Reached = Reached { received: 2, durable: 2, applied: 1 };
    const STRICT: bool = true;

    fn guarantees() -> Guarantees {
        Guarantees {
            strategy: "etcd".to_owned(),
            mode: "defaults".to_owned(),
            acknowledged: "on the disks of a majority, never undone".to_owned(),
            survives: Survival::Minority,
            reads: ReadGuarantee::Linearizable,
            ordering: "one order of all writes".to_owned(),
            needs: "a majority of the nodes".to_owned(),
            checked_by: vec!["read-back of every bench case".to_owned()],
        }
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let answer: PutResponse = self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        answer.header.map(drop).ok_or_else(|| "an answer without a header".to_owned().into())
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, String> {
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        Ok(answer.kvs.into_iter().next().map(|found| found.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_all_others_and_listens_on_loopback() {
        let (clients, peers) = ([21_301, 21_302, 21_303], [21_304, 21_305, 21_306]);
        for node in 0..NODES {
            let text = arguments(node, &clients, &peers).join(" ");
            for port in peers {
                assert!(text.contains(&format!("=http://127.0.0.1:{port}")), "{text}");
            }
            assert!(text.contains(&format!("--listen-client-urls http://127.0.0.1:{} ", clients[node])), "{text}");
            assert!(text.contains(&format!("--listen-peer-urls http://127.0.0.1:{} ", peers[node])), "{text}");
            assert!(!text.contains("unsafe") && !text.contains("0.0.0.0"), "{text}");
        }
    }

    #[test]
    fn the_version_is_found_in_what_the_program_prints() {
        let printed = "etcd Version: 3.4.23\nGit SHA: Not provided\nGo Version: go1.19.8\n";
        assert_eq!(version_in(printed), Some("3.4.23"));
        assert_eq!(version_in("etcd 3.4.23"), None);
    }
}
