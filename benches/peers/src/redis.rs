//! Redis with two replicas. A write is acknowledged when the primary has synced it and one replica has it.
//!
//! Invariant: `WAIT` stands behind every write on its connection, and no answer is given before the one to `WAIT`.

pub mod resp;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use replikit_benches::child::free_ports;
use replikit_benches::error::BenchError;
use replikit_core::{Guarantees, Reached, ReadGuarantee, Survival};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use self::resp::Reply;
use crate::servers::{Failure, PutGet, Servers};

/// The server's program.
pub const PROGRAM: &str = "redis-server";
/// A primary and its replicas.
const SERVERS: usize = 3;
/// Most commands that one write of a shared connection carries.
const BATCH_MAX: usize = 1_024;

/// The configuration file of a server that follows this primary, or is one: what its documentation recommends for data that
/// must not be lost, and nothing that would write in the background meanwhile.
#[must_use]
pub fn configuration(port: u16, primary: Option<u16>) -> String {
    let mut lines = vec![
        "bind 127.0.0.1".to_owned(),
        format!("port {port}"),
        "appendonly yes".to_owned(),
        "appendfsync always".to_owned(),
        "auto-aof-rewrite-percentage 0".to_owned(),
        "save \"\"".to_owned(),
        "repl-diskless-sync-delay 0".to_owned(),
    ];
    lines.extend(primary.map(|primary| format!("replicaof 127.0.0.1 {primary}")));
    lines.join("\n") + "\n"
}

/// The version in what `redis-server --version` prints.
#[must_use]
pub fn version_in(printed: &str) -> Option<&str> {
    printed.split_whitespace().find_map(|word| word.strip_prefix("v="))
}

/// Starts it with its data below `folder`, and so many connections to the primary.
///
/// # Errors
/// When the replicas do not follow within their time limit; with the last words of a server that ended.
pub async fn start(folder: &Path, connections: usize) -> Result<Servers<Connection>, BenchError> {
    let ports = free_ports(SERVERS).map_err(BenchError::io("looking for free ports"))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
    let mut servers = Servers::new("Redis");
    launch(&mut servers, folder, ports[0], None)?;
    // A replica that finds no primary asks again a second later.
    let open = async || Connection::open(address).await.map_err(|error| error.to_string());
    let first = servers.within_limit(open).await?;
    for port in &ports[1..] {
        launch(&mut servers, folder, *port, Some(ports[0]))?;
    }
    servers.within_limit(async || first.followed().await).await?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Connection::open(address).await.map_err(BenchError::io("connecting to Redis"))?);
    }
    let one_line = |text: String| text.trim_end().replace('\n', "; ");
    let settings = [
        ("servers", "1 primary, 2 replicas".to_owned()),
        ("primary", one_line(configuration(ports[0], None))),
        ("replica", one_line(configuration(ports[1], Some(ports[0])))),
        ("requests", "SET, and WAIT 1 0 behind it in the same write".to_owned()),
    ];
    Ok(servers.serving(clients, settings))
}

fn launch(servers: &mut Servers<Connection>, folder: &Path, port: u16, primary: Option<u16>) -> Result<(), BenchError> {
    let folder = folder.join(format!("redis-{port}"));
    std::fs::create_dir_all(&folder).map_err(BenchError::io("creating the data folder"))?;
    let written = std::fs::write(folder.join("redis.conf"), configuration(port, primary));
    written.map_err(BenchError::io("writing the configuration of Redis"))?;
    let mut command = Command::new(PROGRAM);
    // The folder that a server runs in is the one that it keeps its data in.
    command.arg("redis.conf");
    servers.launch(command, &folder)
}

/// A command that waits for its turn on a connection.
struct Queued {
    bytes: Vec<u8>,
    /// Whether it is acknowledged only once a replica has it.
    replicated: bool,
    answer: oneshot::Sender<Result<Reply, String>>,
}

/// A connection to the primary. Commands that come while others are under way wait, and go out together, with one `WAIT` behind
/// all of them: alone on its connection, a command has a `WAIT` of its own.
pub struct Connection {
    queue: mpsc::UnboundedSender<Queued>,
}

impl Connection {
    /// Connects. Its task lives on the current runtime, until the connection is dropped.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (queue, queued) = mpsc::unbounded_channel();
        tokio::spawn(serve(stream, queued));
        Ok(Self { queue })
    }

    async fn call(&self, command: &[&[u8]], replicated: bool) -> Result<Reply, String> {
        let (answer, answered) = oneshot::channel();
        let mut bytes = Vec::new();
        resp::put(command, &mut bytes);
        let ended = || "the connection has ended".to_owned();
        self.queue.send(Queued { bytes, replicated, answer }).map_err(|_| ended())?;
        match answered.await.map_err(|_| ended())?? {
            Reply::Failure(why) => Err(why),
            reply => Ok(reply),
        }
    }

    /// All replicas have what the primary has.
    async fn followed(&self) -> Result<(), String> {
        self.call(&[b"SET", b"ready", b"1"], false).await?;
        match self.call(&[b"WAIT", b"2", b"500"], false).await? {
            Reply::Number(2) => Ok(()),
            few => Err(format!("WAIT 2 answers {few:?}")),
        }
    }
}

/// Sends what is queued and hands the answers out, until nobody is there to ask.
async fn serve(mut stream: TcpStream, mut queued: mpsc::UnboundedReceiver<Queued>) {
    let (mut batch, mut out, mut read) = (Vec::new(), Vec::new(), BytesMut::new());
    while queued.recv_many(&mut batch, BATCH_MAX).await > 0 {
        out.clear();
        batch.iter().for_each(|command| out.extend_from_slice(&command.bytes));
        let replicated = batch.iter().any(|command| command.replicated);
        if replicated {
            resp::put(&[b"WAIT", b"1", b"0"], &mut out);
        }
        let answers = answers(&mut stream, &out, batch.len(), replicated, &mut read).await;
        let broken = answers.is_err();
        // Whoever asked may have gone meanwhile.
        match answers {
            Ok(replies) => batch.drain(..).zip(replies).for_each(|(command, reply)| {
                let _ = command.answer.send(Ok(reply));
            }),
            Err(error) => batch.drain(..).for_each(|command| {
                let _ = command.answer.send(Err(error.to_string()));
            }),
        }
        if broken {
            return;
        }
    }
}

/// The answers to so many commands, and to the `WAIT` behind them, which must count a replica.
async fn answers(
    stream: &mut TcpStream,
    out: &[u8],
    commands: usize,
    replicated: bool,
    read: &mut BytesMut,
) -> io::Result<Vec<Reply>> {
    stream.write_all(out).await?;
    let mut replies = Vec::with_capacity(commands + 1);
    while replies.len() < commands + usize::from(replicated) {
        match resp::take(read) {
            Ok(Some(reply)) => replies.push(reply),
            Ok(None) => {
                read.reserve(64 << 10);
                if stream.read_buf(read).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(malformed) => return Err(io::Error::other(format!("{:?} is no reply", malformed.0))),
        }
    }
    match replicated.then(|| replies.pop()).flatten() {
        None | Some(Reply::Number(1..)) => Ok(replies),
        Some(short) => Err(io::Error::other(format!("WAIT answers {short:?}"))),
    }
}

#[async_trait]
impl PutGet for Connection {
    const REACHED: Reached = Reached { received: 2, durable: 1, applied: 2 };
    const STRICT: bool = false;

    /// `WAIT` promises that a replica has a write, not that it has synced it; a new primary may be one that misses writes. The
    /// primary passes a write on behind its own sync.
    fn guarantees() -> Guarantees {
        Guarantees {
            strategy: "redis".to_owned(),
            mode: "appendfsync always, WAIT 1".to_owned(),
            acknowledged: "on the primary's disk, in the memory of 1 of 2 replicas".to_owned(),
            survives: Survival::PowerLoss,
            reads: ReadGuarantee::Stale,
            ordering: "one order of all writes, until another primary is chosen".to_owned(),
            needs: "the primary and one replica".to_owned(),
            checked_by: vec!["read-back of every bench case".to_owned()],
        }
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        match self.call(&[b"SET", &key, &value], true).await? {
            Reply::Status(_) => Ok(()),
            other => Err(format!("SET answers {other:?}").into()),
        }
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, String> {
        match self.call(&[b"GET", &key], false).await? {
            Reply::Value(value) => Ok(value),
            other => Err(format!("GET answers {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_syncs_before_it_answers() {
        for primary in [None, Some(21_200)] {
            let text = configuration(21_201, primary);
            let lines: Vec<_> = text.lines().collect();
            assert!(lines.contains(&"appendonly yes") && lines.contains(&"appendfsync always"), "{text}");
            assert!(lines.contains(&"bind 127.0.0.1") && lines.contains(&"port 21201"), "{text}");
            let follows = lines.iter().filter(|line| line.starts_with("replicaof")).collect::<Vec<_>>();
            assert_eq!(follows.len(), usize::from(primary.is_some()), "{text}");
        }
        assert!(configuration(21_201, Some(21_200)).ends_with("replicaof 127.0.0.1 21200\n"));
    }

    #[test]
    fn the_version_is_found_in_what_the_server_prints() {
        let printed = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0";
        assert_eq!(version_in(printed), Some("7.0.15"));
        assert_eq!(version_in("something else"), None);
    }

    /// A server that answers from a script, whatever it is asked.
    async fn scripted(answers: &'static [u8]) -> (Connection, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut asked = BytesMut::with_capacity(1 << 10);
            stream.read_buf(&mut asked).await.expect("the client asks");
            stream.write_all(answers).await.expect("the client listens");
            asked.to_vec()
        });
        (Connection::open(address).await.expect("the server listens"), server)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
    }

    #[test]
    fn a_write_counts_only_when_a_replica_has_it() {
        runtime().block_on(async {
            let (connection, server) = scripted(b"+OK\r\n:1\r\n").await;
            connection.put("k".into(), "v".into()).await.expect("a replica has it");
            let asked = server.await.expect("the server ends");
            assert_eq!(asked, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n");
            for short in [b"+OK\r\n:0\r\n".as_slice(), b"-MISCONF disk\r\n:1\r\n", b"+OK\r\n"] {
                let (connection, _) = scripted(short).await;
                let written = connection.put("k".into(), "v".into()).await;
                assert!(written.is_err(), "{written:?}");
            }
        });
    }

    #[test]
    fn writes_that_come_together_share_a_wait() {
        runtime().block_on(async {
            let (connection, server) = scripted(b"+OK\r\n+OK\r\n:2\r\n").await;
            let both = tokio::join!(connection.put("a".into(), "1".into()), connection.put("b".into(), "2".into()));
            assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
            let asked = String::from_utf8(server.await.expect("the server ends")).expect("it is text");
            assert_eq!(asked.matches("WAIT").count(), 1, "{asked}");
        });
    }
}
