//! The baselines that a cluster must justify itself against, behind the same client hop and with the same operations:
//! *single-thread*, one thread, one ordered map, one append file; *shared-memory*, one process that uses all cores on one
//! concurrent map; *shared-disk*, several processes over one locked file.
//!
//! Source: DDIA, part II: "Scaling to Higher Load", and McSherry, Isard and Murray, "Scalability! But at what COST?", 2015.

mod client;
mod journal;
mod server;
mod shared_memory;
mod wire;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, ReadGuarantee, Store, Survival, WriteLevel};

use self::client::Client;
use super::{Counted, Engine, Sync};
use crate::child::{Process, free_ports};
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::play::Home;

/// Connections that the load is spread over; with several processes each gets the same share.
const CONNECTIONS: usize = 9;
/// Processes over the one file: as many as a cluster has nodes.
const SHARED_DISK_PROCESSES: usize = 3;
const START_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(5);

/// How a plain machine is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// One thread.
    SingleThread,
    /// One process, all cores.
    SharedMemory,
    /// Several processes over one locked file.
    SharedDisk,
}

impl Architecture {
    /// The name that `--engine` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleThread => "single-thread",
            Self::SharedMemory => "shared-memory",
            Self::SharedDisk => "shared-disk",
        }
    }

    /// How many processes it consists of.
    #[must_use]
    pub const fn processes(self) -> usize {
        match self {
            Self::SingleThread | Self::SharedMemory => 1,
            Self::SharedDisk => SHARED_DISK_PROCESSES,
        }
    }
}

/// Serves until the process is killed.
///
/// # Errors
/// When the address cannot be bound, or the journal cannot be opened, written or synced.
pub fn serve(architecture: Architecture, listen: SocketAddr, folder: &Path, sync: Sync) -> std::io::Result<()> {
    match architecture {
        Architecture::SingleThread => server::serve(listen, folder, sync, server::File::Own),
        Architecture::SharedMemory => shared_memory::serve(listen, folder, sync),
        Architecture::SharedDisk => server::serve(listen, folder, sync, server::File::Locked),
    }
}

/// A running baseline.
pub struct Baseline {
    architecture: Architecture,
    sync: Sync,
    processes: Vec<Process>,
    /// Each process in turn.
    clients: Vec<Arc<Client>>,
}

/// What one copy promises; `LeaderDisk` stands for a sync before each acknowledgement.
fn guarantees(architecture: Architecture, level: WriteLevel) -> Guarantees {
    let durable = level != WriteLevel::Memory;
    let memory = match architecture {
        Architecture::SingleThread | Architecture::SharedMemory => "in the one process",
        Architecture::SharedDisk => "in the one kernel's cache",
    };
    Guarantees {
        strategy: architecture.name().to_owned(),
        mode: if durable { "fdatasync" } else { "no sync" }.to_owned(),
        acknowledged: if durable { "on the one disk" } else { memory }.to_owned(),
        survives: if durable { Survival::PowerLoss } else { Survival::Nothing },
        reads: ReadGuarantee::Linearizable,
        ordering: "one order of all writes".to_owned(),
        needs: match architecture {
            Architecture::SingleThread | Architecture::SharedMemory => "the one process",
            Architecture::SharedDisk => "the one disk, and that no process keeps the lock",
        }
        .to_owned(),
        checked_by: vec!["read-back of every bench case".to_owned()],
    }
}

impl Baseline {
    /// Starts this very program as the baseline's servers.
    ///
    /// # Errors
    /// When one does not serve within its time limit.
    pub async fn start(folder: &Path, architecture: Architecture, sync: Sync) -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::io("looking for the bench program"))?;
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the data folder"))?;
        let ports = free_ports(architecture.processes()).map_err(BenchError::io("looking for a free port"))?;
        let addresses: Vec<_> = ports.into_iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
        let mut this = Self { architecture, sync, processes: Vec::new(), clients: Vec::new() };
        for (number, address) in addresses.iter().enumerate() {
            let mut command = Command::new(&program);
            command.args(["serve-baseline", architecture.name(), "--listen", &address.to_string(), "--sync"]);
            command.arg(if sync == Sync::Group { "group" } else { "never" });
            command.arg("--data").arg(folder.join("data"));
            let output = match number {
                0 => format!("{}.log", architecture.name()),
                _ => format!("{}-{}.log", architecture.name(), number + 1),
            };
            let process = Process::start(architecture.name(), &mut command, &folder.join(output));
            this.processes.push(process.map_err(BenchError::io("starting the baseline"))?);
        }
        let begun = Instant::now();
        while this.clients.len() < CONNECTIONS {
            this.check()?;
            match Client::connect(addresses[this.clients.len() % addresses.len()], architecture).await {
                Ok(client) => this.clients.push(Arc::new(client)),
                Err(error) if begun.elapsed() > START_MAX => {
                    return Err(BenchError::io("connecting to the baseline")(error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        Ok(this)
    }
}

#[async_trait(?Send)]
impl Engine for Baseline {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let stores: Vec<Arc<dyn Store>> = self.clients.iter().map(|client| client.clone() as Arc<dyn Store>).collect();
        Target { replicas: stores[..1].to_vec(), leader: stores, write_level, reads }
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        guarantees(self.architecture, write_level)
    }

    fn homes(&self) -> Vec<Home> {
        let own = self.clients[..self.processes.len()].iter().map(|client| client.clone() as Arc<dyn Store>);
        own.map(|store| Home { writes: store.clone(), reads: store }).collect()
    }

    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        let mut all = Vec::new();
        for client in &self.clients[..self.processes.len()] {
            let engine = || self.architecture.name().to_owned();
            let counted = client.counted().await;
            let (fsyncs, disk_bytes) = counted.map_err(|what| BenchError::Engine { engine: engine(), what })?;
            let disk_bytes = Some(disk_bytes);
            all.push(Counted { fsyncs, disk_bytes, bytes_sent: None, messages_sent: None });
        }
        Ok(all)
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        let sync = match self.sync {
            Sync::Group => "one fdatasync for all writes at hand, before any of them is acknowledged",
            Sync::Never => "none",
        };
        let threads = match self.architecture {
            Architecture::SingleThread => "1".to_owned(),
            Architecture::SharedMemory => shared_memory::threads().to_string(),
            Architecture::SharedDisk => format!("1 in each of {SHARED_DISK_PROCESSES} processes"),
        };
        let settings = [
            ("program", format!("replikit-bench serve-baseline {}", self.architecture.name())),
            ("threads", threads),
            ("sync", sync.to_owned()),
            ("connections of the load", CONNECTIONS.to_string()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.processes.iter_mut().try_for_each(Process::check).map_err(BenchError::io("the baseline"))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop(self.clients);
        for process in self.processes {
            process.stop(STOP_MAX).map_err(BenchError::io("stopping the baseline"))?;
        }
        Ok(())
    }
}
