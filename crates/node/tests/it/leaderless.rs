//! A leaderless cluster of real processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::program::*;

const NODES: u32 = 3;
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
const SETTINGS: [&str; 6] =
    ["--strategy", "leaderless", "--keyspace", "note/=siblings", "--keyspace", "count/=counter"];

struct Cluster<'a> {
    ports: u16,
    dir: &'a Path,
    nodes: BTreeMap<u32, Node>,
}

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

    fn try_client(&self, id: u32, args: &[&str]) -> Output {
        let (at, id) = (format!("127.0.0.1:{}", u32::from(self.ports) + id - 1), id.to_string());
        run(&[args, &["--at", &at, "--node", &id, "--cluster", "test", "--timeout-ms", "20000"]].concat())
    }

    /// What a command prints that is run at one node.
    fn client(&self, id: u32, args: &[&str]) -> String {
        let output = self.try_client(id, args);
        assert!(output.status.success(), "{args:?} at node {id}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Waits until a command prints this at a node.
    fn until(&self, id: u32, args: &[&str], wanted: &str) {
        let end = Instant::now() + CATCH_UP_MAX;
        loop {
            let output = self.try_client(id, args);
            if text(&output.stdout) == wanted {
                return;
            }
            assert!(Instant::now() < end, "node {id}, {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn quorums_go_on_without_a_node_that_was_killed_and_it_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[]);
    let acked = cluster.client(1, &["put", "k", "one"]);
    assert!(["on 2 disks", "on 3 disks"].iter().any(|disks| acked.contains(disks)), "{acked}");
    assert_eq!(cluster.client(2, &["get", "k"]), "one\n", "a quorum read at another node");

    cluster.kill(3);
    cluster.client(1, &["put", "k", "two"]);
    assert_eq!(cluster.client(2, &["get", "k"]), "two\n");
    cluster.client(2, &["add", "count/x", "5"]);
    cluster.client(1, &["add", "count/x", "-2"]);
    for level in ["one", "two", "local-one", "local-quorum", "each-quorum", "quorum"] {
        assert_eq!(cluster.client(1, &["get", "count/x", "--level", level]), "3\n", "{level}");
        cluster.client(2, &["put", level, "v", "--level", level]);
    }
    let status = cluster.client(1, &["status"]);
    assert!(status.contains("replica") && status.contains("node 3 is ") && status.contains("behind"), "{status}");

    cluster.bring_back(3, &[]);
    cluster.until(3, &["get", "k", "--level", "local"], "two\n");
    cluster.until(3, &["get", "count/x", "--level", "local"], "3\n");
    cluster.client(3, &["put", "k", "three", "--level", "all"]);
    assert_eq!(cluster.client(1, &["scan", "k", "--to", "l"]), "k\tthree\n");
    for id in 1..=NODES {
        assert!(cluster.nodes.remove(&id).unwrap().terminate(), "node {id} ends cleanly when asked to");
    }
}

#[test]
fn values_that_have_not_seen_each_other_are_merged_over_their_context_or_audited() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.client(1, &["put", "note/a", "first"]);
    let read = |id| {
        let shown = cluster.client(id, &["get", "note/a", "--context"]);
        shown.lines().last().unwrap().strip_prefix("context ").unwrap().to_owned()
    };
    let (left, right) = (read(1), read(2));
    cluster.client(1, &["put", "note/a", "left", "--over", &left]);
    cluster.client(2, &["put", "note/a", "right", "--over", &right]);
    let both = cluster.client(3, &["get", "note/a"]);
    assert!(both.lines().count() == 2 && both.contains("left") && both.contains("right"), "{both}");
    cluster.client(3, &["put", "note/a", "both", "--over", &read(3)]);
    assert_eq!(cluster.client(1, &["get", "note/a"]), "both\n");
    assert_eq!(cluster.client(1, &["conflicts", "list"]), "", "siblings that were seen are not overwritten");
    let fresh = cluster.try_client(1, &["get", "note/a", "--level", "linearizable"]);
    assert!(text(&fresh.stderr).contains("quorum"), "{}", text(&fresh.stderr));
}

#[test]
fn keys_are_compared_and_set_at_any_node_also_when_one_has_lost_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--keyspace", "lock/=cas"];
    let mut cluster = Cluster::start(dir.path(), &more);
    assert!(cluster.client(1, &["put", "lock/a", "ada", "--if-absent"]).contains("agreed, on "));
    let held = cluster.try_client(2, &["put", "lock/a", "bob", "--if-absent"]);
    assert!(!held.status.success() && text(&held.stderr).contains("ada"), "{}", text(&held.stderr));
    cluster.client(3, &["put", "lock/a", "bob", "--if", "ada"]);
    assert_eq!(cluster.client(1, &["get", "lock/a", "--level", "linearizable"]), "bob\n");
    let stale = cluster.try_client(1, &["delete", "lock/a", "--if", "ada"]);
    assert!(text(&stale.stderr).contains("bob"), "{}", text(&stale.stderr));
    for sum in 1..=4 {
        assert_eq!(cluster.client(1 + sum % 3, &["add", "lock/n", "1"]), format!("{sum}\n"));
    }
    let plain = cluster.try_client(1, &["put", "k", "v", "--if-absent"]);
    assert!(text(&plain.stderr).contains("--keyspace"), "{}", text(&plain.stderr));
    cluster.client(1, &["put", "k", "v"]);
    let mixed = cluster.try_client(1, &["scan"]);
    assert!(text(&mixed.stderr).contains("compared and set"), "{}", text(&mixed.stderr));
    assert_eq!(cluster.client(1, &["scan", "--level", "local"]), "k\tv\n");
    assert_eq!(cluster.client(2, &["scan", "", "--to", "l"]), "k\tv\n", "at a quorum");

    cluster.kill(3);
    std::fs::remove_dir_all(dir.path().join("3")).unwrap();
    assert_eq!(cluster.client(2, &["add", "lock/n", "1"]), "5\n");
    cluster.bring_back(3, &more);
    cluster.until(3, &["get", "lock/n"], "5\n");
    // Once it has gathered what it had promised it makes up a majority again.
    let end = Instant::now() + CATCH_UP_MAX;
    while cluster.client(3, &["status"]).contains("yet to tell") {
        assert!(Instant::now() < end, "it does not gather");
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.kill(1);
    cluster.until(3, &["get", "lock/a"], "bob\n");
    assert_eq!(cluster.client(3, &["add", "lock/n", "1"]), "6\n");
    cluster.client(2, &["delete", "lock/a", "--if", "bob"]);
    assert!(!cluster.try_client(3, &["get", "lock/a"]).status.success());
}

#[test]
fn quorums_are_said_at_the_start_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &["--quorums", "1,3,3", "--repair", "async"]);
    assert!(cluster.client(1, &["put", "k", "v"]).contains("on 3 disks"));
    assert_eq!(cluster.client(2, &["get", "k"]), "v\n");
    let node = ["node", "--cluster", "c", "--id", "1", "--listen", "127.0.0.1:0", "--data", "/nonexistent/replikit"];
    refused(&[&node[..], &["--strategy", "leaderless", "--quorums", "2,2,2"]].concat(), &["2", "1 owners"]);
    refused(&[&node[..], &["--quorums", "1,1,1"]].concat(), &["--quorums", "leaderless"]);
    refused(&[&node[..], &["--strategy", "leaderless", "--quorums", "1,1"]].concat(), &["R,W,D"]);
    refused(&[&node[..], &["--strategy", "leaderless", "--topology", "ring"]].concat(), &["multi-leader"]);
}

#[test]
fn levels_count_the_nodes_of_a_region() {
    let dir = tempfile::tempdir().unwrap();
    let regions = ["--region", "eu=1,2", "--region", "us=3"];
    let mut cluster = Cluster::start(dir.path(), &regions);
    cluster.client(1, &["put", "k", "one", "--level", "each-quorum"]);
    assert_eq!(cluster.client(3, &["get", "k", "--level", "local-quorum"]), "one\n");
    cluster.kill(3);
    let away = cluster.try_client(1, &["put", "k", "two", "--level", "each-quorum"]);
    assert!(text(&away.stderr).contains("may or may not"), "nobody of us is there: {}", text(&away.stderr));
    cluster.client(1, &["put", "k", "three", "--level", "local-quorum"]);
    let node = ["cluster", "--strategy", "leaderless", "--nodes", "3"];
    refused(&[&node[..], &["--region", "eu=1,4"]].concat(), &["node 4"]);
    refused(&[&node[..], &["--region", "eu=1,2", "--region", "us=2"]].concat(), &["node 2 twice"]);
    refused(&[&node[..], &["--region", "eu"]].concat(), &["NAME=NODES"]);
    refused(&["cluster", "--region", "eu=1"], &["--region", "leaderless"]);
}
