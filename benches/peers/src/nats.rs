//! NATS JetStream with three servers and a stream on all of them, in files. A message is acknowledged when a majority has it;
//! none of them has synced it then.
//!
//! Invariant: an answer goes to the request whose number is the last part of its subject.

pub mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use replikit_benches::child::free_ports;
use replikit_benches::error::BenchError;
use replikit_core::{Guarantees, Reached, ReadGuarantee, Survival};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use self::wire::Said;
use crate::servers::{Failure, PutGet, Servers};

/// The server's program.
pub const PROGRAM: &str = "nats-server";
const SERVERS: usize = 3;
/// Most messages that one write carries.
const BATCH_MAX: usize = 1_024;
/// While servers start, a question may stay without an answer; it is asked again after this time.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// The stream: one copy of each message on every server, in files; every other setting is its default.
const STREAM: &str =
    r#"{"name":"bench","subjects":["bench.*"],"retention":"limits","storage":"file","num_replicas":3}"#;

/// The configuration file of one of the servers with these ports, for clients and for each other: what the documentation shows
/// for a cluster with JetStream.
#[must_use]
pub fn configuration(server: usize, clients: &[u16], routes: &[u16]) -> String {
    let others = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(", ");
    [
        format!("server_name: server-{server}"),
        format!("listen: 127.0.0.1:{}", clients[server]),
        "jetstream { store_dir: data }".to_owned(),
        format!("cluster {{ name: bench, listen: 127.0.0.1:{}, routes: [{others}] }}", routes[server]),
    ]
    .join("\n")
        + "\n"
}

/// The version in what `nats-server --version` prints.
#[must_use]
pub fn version_in(printed: &str) -> Option<&str> {
    printed.trim().strip_prefix("nats-server: v")
}

/// Starts it with its data below `folder`, and so many connections to the server that leads the stream.
///
/// # Errors
/// When it does not serve within its time limit; with the last words of a server that ended.
pub async fn start(folder: &Path, connections: usize) -> Result<Servers<Connection>, BenchError> {
    // All at once, so that no port is given twice.
    let mut ports = free_ports(2 * SERVERS).map_err(BenchError::io("looking for free ports"))?;
    let routes = ports.split_off(SERVERS);
    let mut servers = Servers::new("NATS");
    for server in 0..SERVERS {
        let folder = folder.join(format!("nats-{server}"));
        std::fs::create_dir_all(&folder).map_err(BenchError::io("creating the data folder"))?;
        let written = std::fs::write(folder.join("nats.conf"), configuration(server, &ports, &routes));
        written.map_err(BenchError::io("writing the configuration of NATS"))?;
        let mut command = Command::new(PROGRAM);
        // The folder of its data is named relative to the one that it runs in.
        command.args(["--config", "nats.conf"]);
        servers.launch(command, &folder)?;
    }
    let leader = servers.within_limit(async || leader(&ports).await).await?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Connection::open(leader).await.map_err(|error| servers.failed(error))?);
    }
    let settings = [
        ("servers", SERVERS.to_string()),
        ("configuration of the first", configuration(0, &ports, &routes).trim_end().replace('\n', "; ")),
        ("stream", STREAM.to_owned()),
        ("sync_interval", "its default: files are synced minutes later, whatever was acknowledged".to_owned()),
        ("requests", "PUB with an inbox for the acknowledgement, to the server that leads the stream".to_owned()),
    ];
    Ok(servers.serving(clients, settings))
}

/// The port of the server that leads the stream, which is created where it is missing; every server must have a copy, and the
/// leader must take a message.
async fn leader(ports: &[u16]) -> Result<u16, String> {
    let asked = async {
        let connection = Connection::open(ports[0]).await?;
        connection.ask("$JS.API.STREAM.CREATE.bench", STREAM.into()).await?;
        let info = connection.ask("$JS.API.STREAM.INFO.bench", Bytes::new()).await?;
        let cluster = info.cluster.ok_or("the stream is on one server only")?;
        if cluster.replicas.iter().filter(|replica| replica.current).count() < SERVERS - 1 {
            return Err("copies of the stream are not current".to_owned());
        }
        let number = cluster.leader.strip_prefix("server-").and_then(|number| number.parse::<usize>().ok());
        let port = number.and_then(|number| ports.get(number)).ok_or("nobody leads the stream")?;
        let leader = Connection::open(*port).await?;
        leader.put("ready".into(), "1".into()).await.map_err(|error| error.to_string())?;
        Ok(*port)
    };
    tokio::time::timeout(ANSWER_MAX, asked).await.map_err(|_| "no answer".to_owned())?
}

/// What JetStream answers, as far as anybody here reads it.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    error: Option<ApiError>,
    /// Where a published message stands in its stream.
    seq: Option<u64>,
    message: Option<Stored>,
    cluster: Option<Cluster>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    code: u16,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
struct Stored {
    /// In Base64; absent where it is empty.
    #[serde(default)]
    data: String,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
struct Replica {
    current: bool,
}

/// What is answered where there is no such message.
const NOT_FOUND: u16 = 404;

/// A message that waits for its turn on a connection.
struct Queued {
    subject: String,
    payload: Bytes,
    answer: oneshot::Sender<Bytes>,
}

/// A connection to one server. Requests that come together go out together; answers come in any order.
pub struct Connection {
    queue: mpsc::UnboundedSender<Queued>,
}

impl Connection {
    /// Connects. Its task lives on the current runtime, until the connection is dropped.
    ///
    /// # Errors
    /// When nobody listens there, or it is no NATS server; in words.
    pub async fn open(port: u16) -> Result<Self, String> {
        /// Inboxes must differ in the whole cluster.
        static INBOXES: AtomicU64 = AtomicU64::new(0);
        let inbox = format!("_INBOX.{}", INBOXES.fetch_add(1, Ordering::Relaxed));
        let connect = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let hello = format!(
                "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1}}\r\n\
                SUB {inbox}.* 1\r\nPING\r\n"
            );
            stream.write_all(hello.as_bytes()).await?;
            let mut read = BytesMut::new();
            loop {
                match take(&mut read)? {
                    Some(Said::Pong) => return Ok((stream, read)),
                    Some(Said::Failure(why)) => return Err(std::io::Error::other(why)),
                    Some(_) => {}
                    None if stream.read_buf(&mut read).await? == 0 => {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    None => {}
                }
            }
        };
        let connected: std::io::Result<_> = connect.await;
        let (stream, read) = connected.map_err(|error| format!("port {port}: {error}"))?;
        let (queue, queued) = mpsc::unbounded_channel();
        // Whoever waits for an answer is told by the end of its channel.
        tokio::spawn(async move { drop(serve(stream, read, queued, &inbox).await) });
        Ok(Self { queue })
    }

    /// The answer to a message; an error where it is a refusal, in words.
    async fn ask(&self, subject: &str, payload: Bytes) -> Result<Answer, String> {
        let answer = self.answer(subject, payload).await?;
        match answer.error {
            Some(ApiError { code, description }) => Err(format!("{code}: {description}")),
            None => Ok(answer),
        }
    }

    async fn answer(&self, subject: &str, payload: Bytes) -> Result<Answer, String> {
        let (answer, answered) = oneshot::channel();
        let ended = || "the connection has ended".to_owned();
        self.queue.send(Queued { subject: subject.to_owned(), payload, answer }).map_err(|_| ended())?;
        let answer = answered.await.map_err(|_| ended())?;
        serde_json::from_slice(&answer).map_err(|error| format!("{error} in {}", String::from_utf8_lossy(&answer)))
    }
}

/// Keys of the load are words without dots.
fn subject(key: &[u8]) -> String {
    format!("bench.{}", String::from_utf8_lossy(key))
}

fn take(read: &mut BytesMut) -> std::io::Result<Option<Said>> {
    wire::take(read).map_err(|malformed| std::io::Error::other(format!("{:?} is not NATS", malformed.0)))
}

/// Sends what is queued and hands the answers out, until nobody is there to ask.
async fn serve(
    mut stream: TcpStream,
    mut read: BytesMut,
    mut queued: mpsc::UnboundedReceiver<Queued>,
    inbox: &str,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let (mut batch, mut out, mut number) = (Vec::new(), Vec::new(), 0_u64);
    let mut waiting: HashMap<u64, oneshot::Sender<Bytes>> = HashMap::new();
    loop {
        read.reserve(64 << 10);
        tokio::select! {
            count = queued.recv_many(&mut batch, BATCH_MAX) => {
                if count == 0 {
                    return Ok(());
                }
                for Queued { subject, payload, answer } in batch.drain(..) {
                    number += 1;
                    waiting.insert(number, answer);
                    let length = payload.len();
                    out.extend_from_slice(format!("PUB {subject} {inbox}.{number} {length}\r\n").as_bytes());
                    out.extend_from_slice(&payload);
                    out.extend_from_slice(b"\r\n");
                }
            }
            bytes = reader.read_buf(&mut read) => {
                if bytes? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        while let Some(said) = take(&mut read)? {
            match said {
                Said::Ping => out.extend_from_slice(b"PONG\r\n"),
                Said::Info | Said::Pong => {}
                Said::Failure(why) => return Err(std::io::Error::other(why)),
                Said::Message { subject, payload } => {
                    let number = subject.rsplit('.').next().and_then(|number| number.parse().ok());
                    if let Some(answer) = number.and_then(|number: u64| waiting.remove(&number)) {
                        // Whoever asked may have gone meanwhile.
                        let _ = answer.send(payload);
                    }
                }
            }
        }
        if !out.is_empty() {
            writer.write_all(&out).await?;
            out.clear();
        }
    }
}

#[async_trait]
impl PutGet for Connection {
    const REACHED: Reached = Reached { received: 2, durable: 0, applied: 1 };
    const STRICT: bool = false;

    /// The server that leads answers reads by itself, without asking whether it still leads.
    fn guarantees() -> Guarantees {
        Guarantees {
            strategy: "nats".to_owned(),
            mode: "JetStream, R3, file storage".to_owned(),
            acknowledged: "on a majority of the servers, in the kernel's cache of each".to_owned(),
            // Power that fails everywhere may take what was acknowledged: what it does promise has no name here.
            survives: Survival::Nothing,
            reads: ReadGuarantee::Stale,
            ordering: "one order of all messages of the stream".to_owned(),
            needs: "a majority of the servers".to_owned(),
            checked_by: vec!["read-back of every bench case".to_owned()],
        }
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let answer = self.ask(&subject(&key), value).await?;
        answer.seq.map(drop).ok_or_else(|| "an acknowledgement without a sequence number".to_owned().into())
    }

    /// The last message of the key's subject.
    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, String> {
        let request = serde_json::json!({ "last_by_subj": subject(&key) }).to_string();
        let answer = self.answer("$JS.API.STREAM.MSG.GET.bench", request.into()).await?;
        match (answer.error, answer.message) {
            (Some(failure), _) if failure.code == NOT_FOUND => Ok(None),
            (Some(failure), _) => Err(format!("{}: {}", failure.code, failure.description)),
            (None, Some(message)) => {
                let value = BASE64_STANDARD.decode(message.data).map_err(|error| error.to_string())?;
                Ok(Some(value.into()))
            }
            (None, None) => Err("an answer without a message".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_server_knows_all_others_and_listens_on_loopback() {
        let (clients, routes) = ([21_401, 21_402, 21_403], [21_404, 21_405, 21_406]);
        for server in 0..SERVERS {
            let text = configuration(server, &clients, &routes);
            assert!(text.contains(&format!("listen: 127.0.0.1:{}\n", clients[server])), "{text}");
            assert!(text.contains(&format!("name: bench, listen: 127.0.0.1:{}", routes[server])), "{text}");
            for port in routes {
                assert!(text.contains(&format!("nats://127.0.0.1:{port}")), "{text}");
            }
            assert!(!text.contains("0.0.0.0") && !text.contains("sync"), "{text}");
        }
        assert!(STREAM.contains(r#""num_replicas":3"#) && STREAM.contains(r#""storage":"file""#));
    }

    #[test]
    fn the_version_is_found_in_what_the_server_prints() {
        assert_eq!(version_in("nats-server: v2.9.10\n"), Some("2.9.10"));
        assert_eq!(version_in("something else"), None);
    }

    /// A server that says hello, waits until so many messages were published, and answers them in reverse.
    async fn scripted(answers: &'static [&'static str]) -> Connection {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            stream.write_all(b"INFO {}\r\nPONG\r\n").await.expect("the client listens");
            let mut asked = BytesMut::new();
            let mut replies: Vec<String> = Vec::new();
            while replies.len() < answers.len() {
                stream.read_buf(&mut asked).await.expect("the client asks");
                let text = String::from_utf8_lossy(&asked).into_owned();
                // The last line may not be there whole yet.
                let whole = text.split_inclusive("\r\n").filter(|line| line.ends_with("\r\n"));
                let published = whole.filter(|line| line.starts_with("PUB "));
                replies = published.map(|line| line.split(' ').nth(2).expect("a reply subject").to_owned()).collect();
            }
            for (reply, answer) in replies.iter().zip(answers).rev() {
                let message = format!("MSG {reply} 1 {}\r\n{answer}\r\n", answer.len());
                stream.write_all(message.as_bytes()).await.expect("the client listens");
            }
        });
        Connection::open(port).await.expect("the server listens")
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
    }

    #[test]
    fn a_message_counts_only_when_it_has_its_place() {
        runtime().block_on(async {
            let connection = scripted(&[r#"{"stream":"bench","seq":1}"#]).await;
            connection.put("k".into(), "v".into()).await.expect("it has its place");
            for short in [
                &[r#"{"stream":"bench"}"#][..],
                &[r#"{"error":{"code":503,"description":"no leader"}}"#],
                &["something else"],
            ] {
                let written = scripted(short).await.put("k".into(), "v".into()).await;
                assert!(written.is_err(), "{written:?}");
            }
        });
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        runtime().block_on(async {
            let connection = scripted(&[r#"{"message":{"data":"Zmlyc3Q="}}"#, r#"{"error":{"code":404}}"#, "{}"]).await;
            let answers =
                tokio::join!(connection.get("a".into()), connection.get("b".into()), connection.get("c".into()));
            assert_eq!(answers.0, Ok(Some(Bytes::from_static(b"first"))));
            assert_eq!(answers.1, Ok(None));
            assert!(answers.2.is_err(), "{answers:?}");
        });
    }
}
