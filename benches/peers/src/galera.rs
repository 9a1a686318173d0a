//! MariaDB with Galera: three nodes that all take writes, reached over the MySQL protocol. A transaction is acknowledged when all
//! nodes have it and its own node has synced it.
//!
//! Invariant: clients are spread over all nodes, each with a connection of its own, for the protocol has one request under way.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Statement};
use replikit_benches::child::free_ports;
use replikit_benches::error::BenchError;
use replikit_benches::play::COUNTERS;
use replikit_core::{Guarantees, Reached, ReadGuarantee, Survival};
use tokio::sync::Mutex;

use crate::servers::{Failure, PutGet, Servers};

/// The server's program.
pub const PROGRAM: &str = "mariadbd";
/// What makes a cluster of it, where Debian has it.
const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";
const NODES: usize = 3;
/// What a server is refused to run as by default, and what it runs as then; Debian's package creates that user.
const ROOT: u32 = 0;
const USER: &str = "mysql";

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For clients.
    clients: u16,
    /// For the other nodes.
    group: u16,
    /// For what a node has missed.
    missed: u16,
    /// For a copy of everything.
    copy: u16,
}

/// The configuration file of one of the nodes, with its data in this folder: what the documentation asks for, each transaction synced by its own node, four
/// threads that apply the others' (twice the cores of the smallest machine), and rights that nobody checks.
#[must_use]
pub fn configuration(node: usize, ports: &[Ports], data: &Path) -> String {
    let own = ports[node];
    let group = ports.iter().map(|ports| format!("127.0.0.1:{}", ports.group)).collect::<Vec<_>>().join(",");
    let settings = [
        ("datadir", data.display().to_string()),
        // Relative to the folder of its data: paths of sockets must be short.
        ("socket", "mysql.sock".to_owned()),
        ("pid-file", "mysql.pid".to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("port", own.clients.to_string()),
        ("skip-grant-tables", String::new()),
        ("skip-name-resolve", String::new()),
        ("binlog_format", "ROW".to_owned()),
        ("default_storage_engine", "InnoDB".to_owned()),
        ("innodb_autoinc_lock_mode", "2".to_owned()),
        ("innodb_flush_log_at_trx_commit", "1".to_owned()),
        ("innodb_buffer_pool_size", "256M".to_owned()),
        ("innodb_log_file_size", "256M".to_owned()),
        ("wsrep_on", "ON".to_owned()),
        ("wsrep_provider", PROVIDER.to_owned()),
        (
            "wsrep_provider_options",
            format!("\"gmcast.listen_addr=tcp://127.0.0.1:{};ist.recv_addr=127.0.0.1:{}\"", own.group, own.missed),
        ),
        ("wsrep_cluster_name", "bench".to_owned()),
        ("wsrep_cluster_address", format!("gcomm://{group}")),
        ("wsrep_node_name", format!("node-{node}")),
        ("wsrep_node_address", format!("127.0.0.1:{}", own.group)),
        ("wsrep_sst_method", "rsync".to_owned()),
        ("wsrep_sst_receive_address", format!("127.0.0.1:{}", own.copy)),
        ("wsrep_slave_threads", "4".to_owned()),
    ];
    let lines =
        settings.map(|(name, value)| if value.is_empty() { name.to_owned() } else { format!("{name}={value}") });
    format!("[mysqld]\n{}\n", lines.join("\n"))
}

/// The version in what `mariadbd --version` prints.
#[must_use]
pub fn version_in(printed: &str) -> Option<&str> {
    let (_, behind) = printed.split_once("Ver ")?;
    behind.split_whitespace().next().filter(|version| version.contains("MariaDB"))
}

/// Why there is no cluster of it; `None` where there can be one.
#[must_use]
pub fn missing() -> Option<String> {
    let missing = !Path::new(PROVIDER).is_file();
    missing.then(|| format!("`{PROVIDER}` is not there; `cargo xtask bench setup-peers` installs it"))
}

/// Starts it with its data below `folder`, and so many connections, each to another node than the one before.
///
/// # Errors
/// When it does not serve within its time limit; with the last words of a node that ended.
pub async fn start(folder: &Path, connections: usize) -> Result<Servers<Connection>, BenchError> {
    // All at once, so that no port is given twice.
    let ports = free_ports(4 * NODES).map_err(BenchError::io("looking for free ports"))?;
    let ports: Vec<Ports> = ports
        .chunks_exact(4)
        .map(|four| Ports { clients: four[0], group: four[1], missed: four[2], copy: four[3] })
        .collect();
    let mut servers = Servers::new("Galera");
    launch(&mut servers, folder, 0, &ports)?;
    // The first node alone is the cluster; the others copy what it has.
    servers.within_limit(async || together(&ports[..1]).await).await?;
    for node in 1..NODES {
        launch(&mut servers, folder, node, &ports)?;
    }
    servers.within_limit(async || together(&ports).await).await?;
    create(ports[0]).await.map_err(|error| servers.failed(error.to_string()))?;
    let mut clients = Vec::new();
    for number in 0..connections {
        let open = Connection::open(ports[number % NODES].clients).await;
        clients.push(open.map_err(|error| servers.failed(error.to_string()))?);
    }
    let settings = [
        ("nodes", NODES.to_string()),
        ("configuration of the first", configuration(0, &ports, Path::new("data")).trim_end().replace('\n', "; ")),
        ("requests", "prepared statements of one row each, autocommit; wsrep_sync_wait=1 for reads".to_owned()),
    ];
    Ok(servers.serving(clients, settings))
}

fn launch(servers: &mut Servers<Connection>, folder: &Path, node: usize, ports: &[Ports]) -> Result<(), BenchError> {
    let folder = folder.join(format!("galera-{node}"));
    let data = folder.join("data");
    std::fs::create_dir_all(&data).map_err(BenchError::io("creating the data folder"))?;
    let written = std::fs::write(folder.join("my.cnf"), configuration(node, ports, &data));
    written.map_err(BenchError::io("writing the configuration of Galera"))?;
    let as_user = prepare_user(&data)?;
    if node == 0 {
        let mut install = Command::new("mariadb-install-db");
        install.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args(&as_user);
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        let output = install.output().map_err(BenchError::io("starting mariadb-install-db"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
            return Err(servers.failed(format!("mariadb-install-db: {}: {words}", output.status)));
        }
    }
    let mut command = Command::new(PROGRAM);
    command.arg(format!("--defaults-file={}", folder.join("my.cnf").display())).args(&as_user);
    command.args((node == 0).then_some("--wsrep-new-cluster"));
    servers.launch(command, &folder)
}

/// Root's data must belong to somebody else, for neither the server nor its copying works as root. What tells a program so.
fn prepare_user(data: &Path) -> Result<Option<String>, BenchError> {
    let own = std::fs::metadata("/proc/self").map_err(BenchError::io("asking who runs this"))?.uid();
    if own != ROOT {
        return Ok(None);
    }
    let output = Command::new("id").args(["-u", USER]).output().map_err(BenchError::io("starting id"))?;
    let number = String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok();
    let number = number.ok_or_else(|| BenchError::Engine {
        engine: "Galera".to_owned(),
        what: format!("root cannot run it, and there is no user `{USER}`"),
    })?;
    chown(data, Some(number), None).map_err(BenchError::io("giving the data folder away"))?;
    Ok(Some(format!("--user={USER}")))
}

async fn connect(port: u16) -> mysql_async::Result<Conn> {
    let options = OptsBuilder::default().ip_or_hostname("127.0.0.1").tcp_port(port).user(Some("root"));
    Conn::new(options.prefer_socket(false).tcp_nodelay(true)).await
}

/// Whether these nodes are one cluster, and each of them serves.
async fn together(ports: &[Ports]) -> Result<(), String> {
    for node in ports {
        let status = async {
            let mut connection = connect(node.clients).await?;
            let query = "SHOW STATUS WHERE Variable_name IN ('wsrep_cluster_size', 'wsrep_local_state_comment')";
            let rows: BTreeMap<String, String> =
                connection.query::<(String, String), _>(query).await?.into_iter().collect();
            connection.disconnect().await?;
            Ok::<_, mysql_async::Error>(rows)
        };
        let status = status.await.map_err(|error| error.to_string())?;
        let (size, state) = (status.get("wsrep_cluster_size"), status.get("wsrep_local_state_comment"));
        if size != Some(&ports.len().to_string()) || state.is_none_or(|state| state != "Synced") {
            return Err(format!("a node is {status:?}"));
        }
    }
    Ok(())
}

async fn create(node: Ports) -> mysql_async::Result<()> {
    let mut connection = connect(node.clients).await?;
    for statement in [
        "CREATE DATABASE bench",
        "CREATE TABLE bench.pairs (k VARBINARY(64) PRIMARY KEY, v VARBINARY(1024) NOT NULL)",
        "CREATE TABLE bench.counters (k VARBINARY(64) PRIMARY KEY, n BIGINT NOT NULL)",
    ] {
        connection.query_drop(statement).await?;
    }
    connection.disconnect().await
}

/// A connection to one node, with its statements.
pub struct Connection(Mutex<Prepared>);

struct Prepared {
    connection: Conn,
    put: Statement,
    get: Statement,
    add: Statement,
    sum: Statement,
}

impl Connection {
    async fn open(port: u16) -> mysql_async::Result<Self> {
        let mut connection = connect(port).await?;
        // Reads wait for what was committed elsewhere; writes need not.
        connection.query_drop("SET SESSION wsrep_sync_wait = 1").await?;
        let put = "INSERT INTO bench.pairs VALUES (?, ?) ON DUPLICATE KEY UPDATE v = VALUES(v)";
        let put = connection.prep(put).await?;
        let get = connection.prep("SELECT v FROM bench.pairs WHERE k = ?").await?;
        let add = "INSERT INTO bench.counters VALUES (?, ?) ON DUPLICATE KEY UPDATE n = n + VALUES(n)";
        let add = connection.prep(add).await?;
        let sum = connection.prep("SELECT CAST(n AS CHAR) FROM bench.counters WHERE k = ?").await?;
        Ok(Self(Mutex::new(Prepared { connection, put, get, add, sum })))
    }
}

/// What the server refuses was rolled back.
fn failure(error: mysql_async::Error) -> Failure {
    match error {
        mysql_async::Error::Server(refusal) => Failure::Refused(refusal.to_string()),
        other => Failure::InDoubt(other.to_string()),
    }
}

#[async_trait]
impl PutGet for Connection {
    const REACHED: Reached = Reached { received: 3, durable: 1, applied: 1 };
    const STRICT: bool = false;

    fn guarantees() -> Guarantees {
        Guarantees {
            strategy: "galera".to_owned(),
            mode: "three writers, innodb_flush_log_at_trx_commit 1".to_owned(),
            acknowledged: "on the disk of its own node, in the memory of all".to_owned(),
            survives: Survival::PowerLoss,
            reads: ReadGuarantee::Session,
            ordering: "one order of all transactions; of those that meet, all but the first are refused".to_owned(),
            needs: "a majority of the nodes".to_owned(),
            checked_by: vec!["read-back of every bench case".to_owned()],
        }
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let Prepared { connection, put, .. } = &mut *self.0.lock().await;
        connection.exec_drop(&*put, (&key[..], &value[..])).await.map_err(failure)
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>, String> {
        let Prepared { connection, get, sum, .. } = &mut *self.0.lock().await;
        let query = if key.starts_with(COUNTERS.as_bytes()) { sum } else { get };
        let value: Result<Option<Vec<u8>>, _> = connection.exec_first(&*query, (&key[..],)).await;
        Ok(value.map_err(|error| error.to_string())?.map(Bytes::from))
    }

    async fn add(&self, key: Bytes, delta: i64) -> Result<(), Failure> {
        let Prepared { connection, add, .. } = &mut *self.0.lock().await;
        connection.exec_drop(&*add, (&key[..], delta)).await.map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_all_others_and_listens_on_loopback() {
        let ports: Vec<Ports> = (0..3)
            .map(|node| 21_500 + 4 * node)
            .map(|first| Ports { clients: first, group: first + 1, missed: first + 2, copy: first + 3 })
            .collect();
        for node in 0..NODES {
            let text = configuration(node, &ports, Path::new("data"));
            assert!(text.contains("gcomm://127.0.0.1:21501,127.0.0.1:21505,127.0.0.1:21509\n"), "{text}");
            assert!(text.contains("\nbind-address=127.0.0.1\n") && !text.contains("0.0.0.0"), "{text}");
            assert!(text.contains("\ninnodb_flush_log_at_trx_commit=1\n"), "every transaction is synced: {text}");
            for port in 4 * node..4 * node + 4 {
                assert!(
                    text.contains(&format!(":{}", 21_500 + port)) || text.contains(&format!("port={}", 21_500 + port))
                );
            }
        }
    }

    #[test]
    fn the_version_is_found_in_what_the_server_prints() {
        let printed = "mariadbd  Ver 10.11.14-MariaDB-0+deb12u2 for debian-linux-gnu on x86_64 (Debian 12)\n";
        assert_eq!(version_in(printed), Some("10.11.14-MariaDB-0+deb12u2"));
        assert_eq!(version_in("mysqld  Ver 8.0.36 for Linux"), None);
    }

    #[test]
    fn what_the_server_refuses_had_no_effect() {
        let deadlock = mysql_async::ServerError {
            code: 1213,
            message: "Deadlock found when trying to get lock".to_owned(),
            state: "40001".to_owned(),
        };
        let refused = failure(mysql_async::Error::Server(deadlock));
        assert!(matches!(&refused, Failure::Refused(why) if why.contains("Deadlock")), "{refused:?}");
        let broken = mysql_async::Error::Io(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        assert!(matches!(failure(broken), Failure::InDoubt(_)));
    }
}
