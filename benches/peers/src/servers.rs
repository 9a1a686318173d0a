//! Servers: processes of another system on loopback, and the clients that the load is put on. What is a system's own is how its
//! servers are started, and its [`PutGet`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use replikit_benches::child::Process;
use replikit_benches::engine::Engine;
use replikit_benches::error::BenchError;
use replikit_benches::load::{Reads, Target};
use replikit_benches::play::Home;
use replikit_core::{
    Changes, Cursor, Guarantees, LogId, Page, Position, Reached, ReadError, ReadLevel, ReadRequest, ReadResult,
    Rejection, ScanRequest, Store, StreamId, SubscribeError, WriteEffect, WriteError, WriteLevel, WriteOp,
    WriteRequest, Written,
};

/// Servers must serve within this time; some copy a whole data folder first.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(20);
/// Between two questions whether they serve yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a request has no effect that anybody can rely on; in the words of the server, or of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server refused it. State unchanged.
    Refused(String),
    /// It may have taken effect.
    InDoubt(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::InDoubt(why)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::InDoubt(why)) = self;
        f.write_str(why)
    }
}

/// A client of a system that holds values under keys.
#[async_trait]
pub trait PutGet: Send + Sync + 'static {
    /// How far a write has got when it is acknowledged.
    const REACHED: Reached;
    /// Whether that is so far that no read misses it, whoever fails.
    const STRICT: bool;

    /// What the system promises, as it is set up.
    fn guarantees() -> Guarantees;

    /// Sets a key.
    ///
    /// # Errors
    /// When it may not be set.
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure>;

    /// Adds to a counter, where the system has some.
    ///
    /// # Errors
    /// When it may not be added.
    async fn add(&self, _key: Bytes, _delta: i64) -> Result<(), Failure> {
        Err(Failure::Refused("it has no counters here".to_owned()))
    }

    /// The value of a key, of a counter in decimal digits; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read; in words.
    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, String>;
}

/// Such a client as a store.
struct Client<C>(C);

#[async_trait]
impl<C: PutGet> Store for Client<C> {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        let written = match write.op {
            WriteOp::Put { value } => self.0.put(write.key, value).await,
            WriteOp::Add { delta } => self.0.add(write.key, delta).await,
            _ => return Err(Rejection::Unsupported.into()),
        };
        match written {
            Ok(()) => {
                let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
                Ok(Written { at, reached: C::REACHED, strict: C::STRICT, effect: Some(WriteEffect::Done) })
            }
            Err(Failure::Refused(why)) => Err(WriteError::Refused { why }),
            Err(Failure::InDoubt(_)) => Err(WriteError::Indeterminate { reached: Reached::default() }),
        }
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        match self.0.get(read.key).await {
            Ok(value) => {
                let values = value.into_iter().collect();
                Ok(ReadResult { values, seen: None, strict: C::STRICT, staleness: None, context: None })
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
        C::guarantees()
    }
}

/// Running servers. Dropping them kills them.
pub struct Servers<C> {
    system: &'static str,
    processes: Vec<Process>,
    clients: Vec<Arc<Client<C>>>,
    configuration: BTreeMap<String, String>,
}

impl<C: PutGet> Servers<C> {
    /// None yet, of the system of this name.
    #[must_use]
    pub const fn new(system: &'static str) -> Self {
        Self { system, processes: Vec::new(), clients: Vec::new(), configuration: BTreeMap::new() }
    }

    /// An error of this system.
    pub fn failed(&self, what: impl Into<String>) -> BenchError {
        BenchError::Engine { engine: self.system.to_owned(), what: what.into() }
    }

    /// Starts one more server in a folder of its own, which must exist.
    ///
    /// # Errors
    /// When it does not start.
    pub fn launch(&mut self, mut command: Command, folder: &Path) -> Result<(), BenchError> {
        let name = format!("{} {}", self.system, self.processes.len());
        let process = Process::start(&name, command.current_dir(folder), &folder.join("output"));
        self.processes.push(process.map_err(BenchError::io(format!("starting {}", self.system)))?);
        Ok(())
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// When there is none within the time limit; with the last words of a server that ended.
    pub async fn within_limit<T>(&mut self, ask: impl AsyncFn() -> Result<T, String>) -> Result<T, BenchError> {
        let begun = Instant::now();
        loop {
            self.check()?;
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(last) if begun.elapsed() > START_MAX => {
                    return Err(self.failed(format!("it does not serve in time: {last}")));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Puts these clients in front of it, and says how it is set up: names and values.
    #[must_use]
    pub fn serving<const N: usize>(mut self, clients: Vec<C>, configuration: [(&str, String); N]) -> Self {
        self.clients = clients.into_iter().map(|client| Arc::new(Client(client))).collect();
        let connections = ("connections of the load", self.clients.len().to_string());
        let settings = configuration.into_iter().chain([connections]);
        self.configuration = settings.map(|(name, value)| (name.to_owned(), value)).collect();
        self
    }
}

#[async_trait(?Send)]
impl<C: PutGet> Engine for Servers<C> {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let stores: Vec<Arc<dyn Store>> = self.clients.iter().map(|client| client.clone() as Arc<dyn Store>).collect();
        Target { replicas: stores.clone(), leader: stores, write_level, reads }
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        C::guarantees()
    }

    fn homes(&self) -> Vec<Home> {
        let first = self.clients.iter().take(1).map(|client| client.clone() as Arc<dyn Store>);
        first.map(|store| Home { writes: store.clone(), reads: store }).collect()
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        None
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        self.configuration.clone()
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.processes.iter_mut().try_for_each(Process::check).map_err(BenchError::io(self.system))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop(self.clients);
        for process in self.processes {
            process.stop(STOP_MAX).map_err(BenchError::io(format!("stopping {}", self.system)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refusing;

    #[async_trait]
    impl PutGet for Refusing {
        const REACHED: Reached = Reached { received: 1, durable: 1, applied: 1 };
        const STRICT: bool = false;

        fn guarantees() -> Guarantees {
            unreachable!("nothing asks for it")
        }

        async fn put(&self, _: Bytes, _: Bytes) -> Result<(), Failure> {
            Err(Failure::Refused("ERROR 1213: Deadlock".to_owned()))
        }

        async fn get(&self, _: Bytes) -> Result<Option<Bytes>, String> {
            Ok(None)
        }
    }

    /// It was told as "no node of the cluster can be reached: ERROR 1213: Deadlock".
    #[test]
    fn a_system_that_refuses_is_quoted_and_not_taken_for_one_that_is_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let refused = runtime.block_on(Client(Refusing).write(WriteRequest::put("k", "v")));
        assert_eq!(refused.expect_err("it refuses").to_string(), "ERROR 1213: Deadlock");
    }
}
