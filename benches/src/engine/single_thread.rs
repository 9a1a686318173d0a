//! The one-process baseline that a cluster must justify itself against: one thread, one ordered map, one append file, behind
//! the same client hop. DDIA's "simple single-threaded program".

mod client;
mod journal;
mod server;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use replikit_core::{Guarantees, ReadGuarantee, Store, Survival, WriteLevel};

use self::client::Client;
pub use self::server::serve;
use super::{Engine, Sync};
use crate::child::{Process, free_ports};
use crate::error::BenchError;
use crate::load::{Reads, Target};

/// Connections that the load is spread over.
const CONNECTIONS: usize = 8;
const START_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(5);

/// A running baseline.
pub struct SingleThread {
    process: Process,
    clients: Vec<Arc<Client>>,
}

/// What one process with one copy promises; `LeaderDisk` stands for a sync before each acknowledgement.
fn guarantees(level: WriteLevel) -> Guarantees {
    let durable = level != WriteLevel::Memory;
    Guarantees {
        strategy: "single-thread".to_owned(),
        mode: if durable { "fdatasync" } else { "no sync" }.to_owned(),
        acknowledged: if durable { "on the one disk" } else { "in the one process" }.to_owned(),
        survives: if durable { Survival::PowerLoss } else { Survival::Nothing },
        reads: ReadGuarantee::Linearizable,
        ordering: "one order of all writes".to_owned(),
        needs: "the one process".to_owned(),
        checked_by: vec!["read-back of every bench case".to_owned()],
    }
}

impl SingleThread {
    /// Starts this very program as the baseline's server.
    ///
    /// # Errors
    /// When it does not serve within its time limit.
    pub async fn start(folder: &Path, sync: Sync) -> Result<Self, BenchError> {
        let port = free_ports(1).map_err(BenchError::io("looking for a free port"))?[0];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let program = std::env::current_exe().map_err(BenchError::io("looking for the bench program"))?;
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the data folder"))?;
        let mut command = Command::new(program);
        command.args(["serve-single-thread", "--listen", &address.to_string(), "--sync"]);
        command.arg(if sync == Sync::Group { "group" } else { "never" });
        command.arg("--data").arg(folder.join("data"));
        let mut process = Process::start("single-thread", &mut command, &folder.join("single-thread.log"))
            .map_err(BenchError::io("starting the baseline"))?;
        let begun = Instant::now();
        let first = loop {
            process.check().map_err(BenchError::io("starting the baseline"))?;
            match Client::connect(address).await {
                Ok(client) => break client,
                Err(error) if begun.elapsed() > START_MAX => {
                    return Err(BenchError::io("connecting to the baseline")(error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut clients = vec![Arc::new(first)];
        while clients.len() < CONNECTIONS {
            let client = Client::connect(address).await.map_err(BenchError::io("connecting to the baseline"))?;
            clients.push(Arc::new(client));
        }
        Ok(Self { process, clients })
    }
}

#[async_trait(?Send)]
impl Engine for SingleThread {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let stores: Vec<Arc<dyn Store>> = self.clients.iter().map(|client| client.clone() as Arc<dyn Store>).collect();
        Target { replicas: stores[..1].to_vec(), leader: stores, write_level, reads }
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        guarantees(write_level)
    }

    async fn fsyncs(&self) -> Result<Vec<u64>, BenchError> {
        let count = self.clients[0].fsyncs().await;
        Ok(vec![count.map_err(|what| BenchError::Engine { engine: "single-thread".to_owned(), what })?])
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.process.check().map_err(BenchError::io("the baseline"))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop(self.clients);
        self.process.stop(STOP_MAX).map_err(BenchError::io("stopping the baseline"))?;
        Ok(())
    }
}
