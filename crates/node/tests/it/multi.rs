//! A multi-leader cluster of real processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use replikit_core::{Store, WriteLevel, WriteRequest};
use replikit_runtime::{Client, ClientConfig, KvClient};

use crate::program::*;

const NODES: u32 = 3;
const CONVERGE_MAX: Duration = Duration::from_secs(30);

struct Cluster<'a> {
    ports: u16,
    dir: &'a Path,
    nodes: BTreeMap<u32, Node>,
}

const SETTINGS: [&str; 10] = [
    "--strategy",
    "multi-leader",
    "--keyspace",
    "note/=siblings",
    "--keyspace",
    "count/=counter",
    "--keyspace",
    "tags/=set",
    "--keyspace",
    "card/=map",
];

impl<'a> Cluster<'a> {
    fn start(dir: &'a Path, more: &[&str]) -> Self {
        let mut cluster = Self { ports: free_ports(3), dir, nodes: BTreeMap::new() };
        let first = [&["--new"], more].concat();
        (1..=NODES).for_each(|id| cluster.bring_back(id, &first));
        cluster
    }

    fn bring_back(&mut self, id: u32, more: &[&str]) {
        let more = [&SETTINGS[..], more].concat();
        self.nodes.insert(id, Node::start_with(id, self.ports, NODES, self.dir, &more));
    }

    fn kill(&mut self, id: u32) {
        self.nodes.remove(&id).unwrap().kill();
    }

    fn at(&self, id: u32) -> String {
        format!("127.0.0.1:{}", u32::from(self.ports) + id - 1)
    }

    fn try_client(&self, id: u32, args: &[&str]) -> Output {
        let (at, id) = (self.at(id), id.to_string());
        run(&[args, &["--at", &at, "--node", &id, "--cluster", "test", "--timeout-ms", "20000"]].concat())
    }

    /// What a command prints that is run at one node.
    fn client(&self, id: u32, args: &[&str]) -> String {
        let output = self.try_client(id, args);
        assert!(output.status.success(), "{args:?} at node {id}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Writes at a node that may still be finding out what it wrote before it was killed.
    fn put(&self, id: u32, key: &str, value: &str) {
        let end = Instant::now() + CONVERGE_MAX;
        loop {
            let output = self.try_client(id, &["put", key, value]);
            if output.status.success() {
                return;
            }
            assert!(text(&output.stderr).contains("catch up") && Instant::now() < end, "{}", text(&output.stderr));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a command prints the same at all nodes, and this is so.
    fn converge(&self, args: &[&str], so: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + CONVERGE_MAX;
        loop {
            let all: Vec<String> = (1..=NODES).map(|id| text(&self.try_client(id, args).stdout)).collect();
            if all.iter().all(|one| *one == all[0]) && so(&all[0]) {
                return all[0].clone();
            }
            assert!(Instant::now() < end, "{args:?}: the nodes print {all:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Key and value of every overwritten value that a node lists, ascending.
    fn overwritten(&self, id: u32) -> Vec<(String, String)> {
        let list = self.client(id, &["conflicts", "list", "--limit", "1000"]);
        let fields = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let mut all: Vec<_> = list.lines().map(fields).map(|line| (line[1].clone(), line[6].clone())).collect();
        all.sort();
        all
    }
}

#[test]
fn writes_on_both_sides_of_a_pause_are_all_shown_or_listed_on_every_node() {
    /// Which writes a node that goes on takes first is up to its sockets; soon it is those of its client.
    const ROUNDS_MAX: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.put(1, "warm", "up");
    cluster.converge(&["get", "warm"], |shown| shown == "up\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connect = async {
        let mut config = ClientConfig::new("test", [cluster.at(3)]).without_leader();
        config.request_time_max = Duration::from_secs(30);
        KvClient::new(Client::connect(config).await.unwrap())
    };
    let store = runtime.block_on(connect);

    let (mut keys, mut listed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS_MAX {
        cluster.nodes[&3].pause();
        let key = format!("key{round}");
        let request = WriteRequest::put(key.clone(), "three").at(WriteLevel::LeaderDisk);
        let store = store.clone();
        // It waits in the socket of the node that stands still.
        let waiting = runtime.spawn(async move { store.write(request).await });
        cluster.put(1, &key, "one");
        cluster.client(2, &["add", "count/x", "5"]);
        cluster.nodes[&3].resume();
        runtime.block_on(waiting).unwrap().unwrap();
        cluster.client(3, &["add", "count/x", "-2"]);
        keys.push(key);
        let sum = format!("{}\n", 3 * keys.len());
        cluster.converge(&["get", "count/x"], |shown| shown == sum);
        listed = cluster.overwritten(1);
        if !listed.is_empty() {
            break;
        }
    }
    assert!(!listed.is_empty(), "no conflict in {ROUNDS_MAX} pauses");
    let all = cluster.converge(&["scan", "key", "--to", "kez"], |all| all.lines().count() == keys.len());
    // Node 3 either had seen what it replaced, or one of the two lost and is listed.
    let shown: BTreeMap<&str, &str> = all.lines().map(|line| line.split_once('\t').unwrap()).collect();
    for (key, lost) in &listed {
        assert!(matches!((lost.as_str(), shown[key.as_str()]), ("one", "three") | ("three", "one")), "{key}: {lost}");
    }
    for (key, value) in &shown {
        let lost = listed.iter().any(|(of, lost)| of == key && lost == "three");
        assert!(*value == "three" || lost, "what node 3 acknowledged of {key} is neither shown nor listed");
    }
    for id in 2..=NODES {
        assert_eq!(cluster.overwritten(id), listed, "node {id}");
    }
}

#[test]
fn a_conflict_of_nodes_that_were_killed_in_turn_is_listed_on_every_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[]);
    cluster.put(1, "note/a", "first");
    cluster.converge(&["get", "note/a"], |shown| shown == "first\n");

    cluster.kill(1);
    cluster.kill(2);
    for (key, value) in [("last", "three"), ("note/a", "left"), ("only", "3")] {
        cluster.put(3, key, value);
    }
    cluster.kill(3);
    cluster.bring_back(1, &[]);
    cluster.bring_back(2, &[]);
    for (key, value) in [("last", "one"), ("note/a", "right")] {
        cluster.put(1, key, value);
    }
    cluster.bring_back(3, &[]);

    let shown = cluster.converge(&["get", "last"], |shown| shown.lines().count() == 1 && shown != "three\n");
    assert_eq!(shown, "one\n", "the newer one");
    cluster.converge(&["get", "only"], |shown| shown == "3\n");
    let siblings = cluster.converge(&["get", "note/a"], |shown| shown.lines().count() == 2);
    assert!(siblings.contains("left") && siblings.contains("right"), "{siblings}");
    for id in 1..=NODES {
        assert_eq!(cluster.overwritten(id), [("last".to_owned(), "three".to_owned())], "node {id}");
    }
    let export = cluster.client(2, &["conflicts", "export"]);
    for field in ["\"key\":\"last\"", "\"value\":\"three\"", "\"cause\":\"newer\"", "\"dot\":\"3.", "\"by\":\"1."] {
        assert!(export.contains(field), "no {field} in {export}");
    }
    assert_eq!(cluster.client(2, &["conflicts", "list", "--after", "1"]), "");

    // What was read is carried to the write that replaces it.
    let read = cluster.client(2, &["get", "note/a", "--context"]);
    let token = read.lines().last().unwrap().strip_prefix("context ").unwrap();
    cluster.client(2, &["put", "note/a", "both", "--over", token]);
    cluster.converge(&["get", "note/a"], |shown| shown == "both\n");
    assert_eq!(cluster.overwritten(1).len(), 1, "siblings that were seen are not overwritten");
    cluster.client(3, &["delete", "only"]);
    cluster.converge(&["scan"], |all| all == "last\tone\nnote/a\tboth\n");
}

#[test]
fn the_fields_of_a_map_are_written_anywhere_and_a_silent_member_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[]);
    cluster.client(1, &["assign", "card/x", "Ada", "--field", "name"]);
    cluster.client(2, &["add", "card/x", "2", "--field", "stats/visits"]);
    cluster.client(3, &["insert", "card/x", "red", "--field", "tags"]);
    cluster.client(3, &["flag", "card/x", "on", "--field", "active"]);
    let whole = "active\tflag\ton\nname\tregister\tAda\nstats/visits\tcounter\t2\ntags\tset\tred\n";
    cluster.converge(&["get", "card/x", "--fields"], |shown| shown == whole);
    cluster.client(2, &["delete", "card/x", "--field", "stats"]);
    cluster.converge(&["get", "card/x", "--fields"], |shown| !shown.contains("stats") && shown.contains("name"));
    let wrong = cluster.try_client(1, &["add", "card/x", "2", "--field", "a//b"]);
    assert_eq!(wrong.status.code(), Some(2));
    cluster.kill(3);
    let end = Instant::now() + CONVERGE_MAX;
    while !cluster.client(1, &["status"]).contains("node 1 has heard nothing for too long from: 3") {
        assert!(Instant::now() < end, "node 3 is not suspected");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn counters_and_sets_are_written_anywhere_and_status_tells_who_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &["--topology", "star:2"]);
    cluster.client(1, &["add", "count/x", "5"]);
    cluster.client(3, &["add", "count/x", "2"]);
    cluster.converge(&["get", "count/x"], |sum| sum == "7\n");
    cluster.client(1, &["insert", "tags/x", "red"]);
    cluster.client(3, &["insert", "tags/x", "blue"]);
    cluster.converge(&["get", "tags/x"], |all| all == "blue\nred\n");
    cluster.client(3, &["remove", "tags/x", "red"]);
    cluster.converge(&["get", "tags/x"], |all| all == "blue\n");
    let wrong = cluster.try_client(1, &["insert", "plain", "x"]);
    assert!(text(&wrong.stderr).contains("--keyspace") && wrong.status.code() == Some(1), "{}", text(&wrong.stderr));
    let fresh = cluster.try_client(1, &["get", "count/x", "--level", "linearizable"]);
    assert!(text(&fresh.stderr).contains("local"), "{}", text(&fresh.stderr));

    cluster.kill(3);
    cluster.client(1, &["add", "count/x", "1"]);
    let status = cluster.client(1, &["status"]);
    assert!(status.contains("replica") && status.contains("node 3 is ") && status.contains("behind"), "{status}");
    cluster.bring_back(3, &["--topology", "star:2"]);
    cluster.converge(&["get", "count/x"], |sum| sum == "8\n");
    for id in 1..=NODES {
        assert!(cluster.nodes.remove(&id).unwrap().terminate(), "node {id} ends cleanly when asked to");
    }
}
