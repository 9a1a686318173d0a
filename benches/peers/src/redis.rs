//! Redis with two replicas: every write is on the primary's disk and in the memory of one replica before it is acknowledged.
//!
//! Invariant: a connection has one command under way, for `WAIT` holds back everything behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use replikit_benches::child::{Process, free_ports};
use replikit_benches::engine::Engine;
use replikit_benches::error::BenchError;
use replikit_benches::load::{Reads, Target};
use replikit_benches::play::Home;
use replikit_core::{
    Changes, Cursor, Guarantees, LogId, Page, Position, Reached, ReadError, ReadGuarantee, ReadLevel, ReadRequest,
    ReadResult, Rejection, ScanRequest, Store, StreamId, SubscribeError, Survival, WriteEffect, WriteError, WriteLevel,
    WriteOp, WriteRequest, Written,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// How it is set up, in its own words. It syncs before it acknowledges on the primary; a replica may still lose what it has.
pub(crate) const SETTINGS: &str = "1 primary, 2 replicas; --appendonly yes --appendfsync always --save \"\" \
    --auto-aof-rewrite-percentage 0; SET, then WAIT 1; fsync before the acknowledgement on the primary only";
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(5);

/// Why it cannot be measured; `None` when it can.
pub(crate) fn cannot() -> Option<String> {
    let version = Command::new("redis-server").arg("--version").output();
    version.err().map(|error| format!("redis-server does not start ({error}); `cargo xtask bench setup-peers` installs it"))
}

/// A running primary with its replicas.
pub(crate) struct Redis {
    processes: Vec<Process>,
    clients: Vec<Arc<Connection>>,
}

struct Connection(Mutex<BufReader<TcpStream>>);

impl Redis {
    /// Starts it, with so many connections to the primary.
    pub(crate) async fn start(folder: &Path, connections: usize) -> Result<Self, BenchError> {
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the data folder"))?;
        let ports = free_ports(3).map_err(BenchError::io("looking for free ports"))?;
        let mut processes = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let data = folder.join(format!("redis-{number}"));
            std::fs::create_dir_all(&data).map_err(BenchError::io("creating the data folder"))?;
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.args(["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]);
            command.arg("--dir").arg(&data);
            if number > 0 {
                command.args(["--replicaof", &format!("127.0.0.1 {}", ports[0])]);
            }
            let process = Process::start(&format!("redis {number}"), &mut command, &folder.join(format!("{number}.log")));
            processes.push(process.map_err(BenchError::io("starting Redis"))?);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        let begun = Instant::now();
        let failed = |what: String| BenchError::Engine { engine: "redis".to_owned(), what };
        loop {
            if let Ok(first) = Connection::open(address).await
                && first.call(&[b"SET", b"ready", b"1"]).await.is_ok()
                && first.call(&[b"WAIT", b"2", b"1000"]).await.is_ok_and(|reply| reply == Reply::Number(2))
            {
                break;
            }
            if begun.elapsed() > START_MAX {
                return Err(failed("the replicas do not follow".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut clients = Vec::new();
        for _ in 0..connections.max(1) {
            let opened = Connection::open(address).await;
            clients.push(Arc::new(opened.map_err(BenchError::io("connecting to Redis"))?));
        }
        Ok(Self { processes, clients })
    }
}

#[async_trait(?Send)]
impl Engine for Redis {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let stores: Vec<Arc<dyn Store>> = self.clients.iter().map(|client| client.clone() as Arc<dyn Store>).collect();
        Target { replicas: stores.clone(), leader: stores, write_level, reads }
    }

    fn guarantees(&self, level: WriteLevel) -> Guarantees {
        self.clients[0].guarantees(level)
    }

    fn homes(&self) -> Vec<Home> {
        let store: Arc<dyn Store> = self.clients[0].clone();
        vec![Home { writes: store.clone(), reads: store }]
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        None
    }

    async fn fsyncs(&self) -> Result<Vec<u64>, BenchError> {
        Ok(Vec::new())
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.processes.iter_mut().try_for_each(Process::check).map_err(BenchError::io("Redis"))
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        drop(self.clients);
        for process in self.processes {
            process.stop(STOP_MAX).map_err(BenchError::io("stopping Redis"))?;
        }
        Ok(())
    }
}

/// A reply, as far as SET, GET and WAIT have them.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Status,
    Number(i64),
    Value(Option<Bytes>),
}

impl Connection {
    async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(Mutex::new(BufReader::new(stream))))
    }

    async fn call(&self, command: &[&[u8]]) -> std::io::Result<Reply> {
        let mut stream = self.0.lock().await;
        stream.get_mut().write_all(&encoded(command)).await?;
        reply(&mut stream).await
    }

    /// Both in one write.
    async fn set(&self, key: &[u8], value: &[u8]) -> std::io::Result<Reply> {
        let mut stream = self.0.lock().await;
        let mut both = encoded(&[b"SET", key, value]);
        both.extend(encoded(&[b"WAIT", b"1", b"0"]));
        stream.get_mut().write_all(&both).await?;
        reply(&mut stream).await?;
        reply(&mut stream).await
    }
}

fn encoded(command: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend(format!("${}\r\n", part.len()).into_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

async fn reply(stream: &mut BufReader<TcpStream>) -> std::io::Result<Reply> {
    let wrong = |line: &str| std::io::Error::other(format!("Redis says {line:?}"));
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let text = line.trim_end();
    let number = || text.get(1..).and_then(|number| number.parse::<i64>().ok()).ok_or_else(|| wrong(text));
    match text.as_bytes().first() {
        Some(b'+') => Ok(Reply::Status),
        Some(b':') => Ok(Reply::Number(number()?)),
        Some(b'$') => match usize::try_from(number()?) {
            Err(_) => Ok(Reply::Value(None)),
            Ok(length) => {
                let mut value = vec![0; length + 2];
                stream.read_exact(&mut value).await?;
                value.truncate(length);
                Ok(Reply::Value(Some(value.into())))
            }
        },
        _ => Err(wrong(text)),
    }
}

#[async_trait]
impl Store for Connection {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        let WriteOp::Put { value } = &write.op else { return Err(Rejection::Unsupported.into()) };
        match self.set(&write.key, value).await {
            Ok(Reply::Number(1..)) => {
                let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
                let reached = Reached { received: 2, durable: 1, applied: 2 };
                Ok(Written { at, reached, strict: false, effect: Some(WriteEffect::Done) })
            }
            _ => Err(WriteError::Indeterminate { reached: Reached::default() }),
        }
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        match self.call(&[b"GET", &read.key]).await {
            Ok(Reply::Value(value)) => {
                let values = value.into_iter().collect();
                Ok(ReadResult { values, seen: None, strict: false, staleness: None, context: None })
            }
            Ok(_) => Err(Rejection::Malformed.into()),
            Err(error) => Err(ReadError::Unreachable { last: error.to_string() }),
        }
    }

    async fn scan(&self, _: ScanRequest) -> Result<Page, ReadError> {
        Err(Rejection::Unsupported.into())
    }

    async fn subscribe(&self, _: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Err(Rejection::Unsupported.into())
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        Guarantees {
            strategy: "redis".to_owned(),
            mode: "appendfsync always, WAIT 1".to_owned(),
            acknowledged: "on the primary's disk, in the memory of 1 replica".to_owned(),
            survives: Survival::PowerLoss,
            reads: ReadGuarantee::Stale,
            ordering: "one order of all writes, until another primary is chosen".to_owned(),
            needs: "the primary and one replica".to_owned(),
            checked_by: vec!["read-back of every case".to_owned()],
        }
    }
}
