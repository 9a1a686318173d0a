//! etcd with three nodes, reached over its gRPC interface. A write is acknowledged when a majority has it on disk.
//!
//! Invariant: requests go to the leader, so that none is sent on within the cluster, as replikit's own client has it.

pub mod rpc;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_benches::child::{Process, free_ports};
use replikit_benches::engine::{Counted, Engine};
use replikit_benches::error::BenchError;
use replikit_benches::load::{Reads, Target};
use replikit_benches::play::Home;
use replikit_core::{
    Changes, Cursor, Guarantees, LogId, Page, Position, Reached, ReadError, ReadGuarantee, ReadLevel, ReadRequest,
    ReadResult, Rejection, ScanRequest, Store, StreamId, SubscribeError, Survival, WriteEffect, WriteError, WriteLevel,
    WriteOp, WriteRequest, Written,
};

use self::rpc::Connection;

/// The server's program.
pub const PROGRAM: &str = "etcd";
const NODES: usize = 3;
/// A leader must be there within this time.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(5);

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

/// A running cluster. Dropping it kills its nodes.
pub struct Etcd {
    processes: Vec<Process>,
    arguments: Vec<String>,
    clients: Vec<Arc<Client>>,
}

fn failed(what: impl Into<String>) -> BenchError {
    BenchError::Engine { engine: "etcd".to_owned(), what: what.into() }
}

impl Etcd {
    /// Starts it with its data below `folder`, and so many connections to its leader.
    ///
    /// # Errors
    /// When it does not serve within its time limit; with the last words of a node that ended.
    pub async fn start(folder: &Path, connections: usize) -> Result<Self, BenchError> {
        // All at once, so that no port is given twice.
        let mut ports = free_ports(2 * NODES).map_err(BenchError::io("looking for free ports"))?;
        let peers = ports.split_off(NODES);
        let mut this = Self { processes: Vec::new(), arguments: arguments(0, &ports, &peers), clients: Vec::new() };
        for node in 0..NODES {
            let folder = folder.join(format!("etcd-{node}"));
            std::fs::create_dir_all(&folder).map_err(BenchError::io("creating the data folder"))?;
            let mut command = Command::new(PROGRAM);
            // The folder of its data is named relative to the one that it runs in.
            command.args(arguments(node, &ports, &peers)).current_dir(&folder);
            let process = Process::start(&format!("etcd {node}"), &mut command, &folder.join("output"));
            this.processes.push(process.map_err(BenchError::io("starting etcd"))?);
        }
        let begun = Instant::now();
        let leader = loop {
            this.check()?;
            match leader(&ports).await {
                Ok(port) => break port,
                Err(last) if begun.elapsed() > START_MAX => {
                    return Err(failed(format!("it has no leader in time: {last}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        for _ in 0..connections {
            let connection = Connection::open(leader).await.map_err(failed)?;
            this.clients.push(Arc::new(Client(connection)));
        }
        Ok(this)
    }
}

/// The port of the node that leads, which must take a write.
async fn leader(ports: &[u16]) -> Result<u16, String> {
    for port in ports {
        let connection = Connection::open(*port).await?;
        if connection.leads().await? {
            connection.put("ready".into(), "1".into()).await?;
            return Ok(*port);
        }
    }
    Err("no node leads".to_owned())
}

#[async_trait(?Send)]
impl Engine for Etcd {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let stores: Vec<Arc<dyn Store>> = self.clients.iter().map(|client| client.clone() as Arc<dyn Store>).collect();
        Target { replicas: stores.clone(), leader: stores, write_level, reads }
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        guarantees()
    }

    fn homes(&self) -> Vec<Home> {
        let first = self.clients.iter().take(1).map(|client| client.clone() as Arc<dyn Store>);
        first.map(|store| Home { writes: store.clone(), reads: store }).collect()
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        None
    }

    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        // What etcd counts is not asked for: nothing in a contest needs it.
        Ok(Vec::new())
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        let settings = [
            ("nodes", NODES.to_string()),
            ("arguments of the first", self.arguments.join(" ")),
            ("requests", "Put over gRPC, to the leader".to_owned()),
            ("connections of the load", self.clients.len().to_string()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.processes.iter_mut().try_for_each(Process::check).map_err(BenchError::io("etcd"))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop(self.clients);
        for process in self.processes {
            process.stop(STOP_MAX).map_err(BenchError::io("stopping etcd"))?;
        }
        Ok(())
    }
}

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

/// A connection to the leader as a store.
struct Client(Connection);

#[async_trait]
impl Store for Client {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        let WriteOp::Put { value } = &write.op else { return Err(Rejection::Unsupported.into()) };
        match self.0.put(write.key.clone(), value.clone()).await {
            Ok(()) => {
                let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
                let reached = Reached { received: 2, durable: 2, applied: 1 };
                Ok(Written { at, reached, strict: true, effect: Some(WriteEffect::Done) })
            }
            Err(_) => Err(WriteError::Indeterminate { reached: Reached::default() }),
        }
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        match self.0.get(read.key).await {
            Ok(value) => {
                let values = value.into_iter().collect();
                Ok(ReadResult { values, seen: None, strict: true, staleness: None, context: None })
            }
            Err(last) => Err(ReadError::Unreachable { last }),
        }
    }

    async fn scan(&self, _: ScanRequest) -> Result<Page, ReadError> {
        Err(Rejection::Unsupported.into())
    }

    async fn subscribe(&self, _: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Err(Rejection::Unsupported.into())
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        guarantees()
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
