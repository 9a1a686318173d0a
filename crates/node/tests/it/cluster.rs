//! A cluster of real processes.

use std::path::Path;

use crate::program::*;

const NODES: u32 = 3;

fn at(ports: u16) -> String {
    (0..3).map(|n| format!("127.0.0.1:{}", ports + n)).collect::<Vec<_>>().join(",")
}

fn client(ports: u16, args: &[&str]) -> String {
    let at = at(ports);
    let mut all = args.to_vec();
    all.extend(["--at", &at, "--cluster", "test", "--timeout-ms", "20000"]);
    let output = run(&all);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn start_all(ports: u16, dir: &Path) -> Vec<Option<Node>> {
    (1..=NODES).map(|id| Some(Node::start(id, ports, NODES, dir))).collect()
}

/// The number of the node that leads, from the status table.
fn leader(ports: u16) -> usize {
    for _ in 0..200 {
        let table = client(ports, &["status"]);
        let row = table.lines().find(|line| line.split_whitespace().nth(2) == Some("leader"));
        if let Some(node) = row.and_then(|row| row.split_whitespace().next()?.parse().ok()) {
            return node;
        }
    }
    panic!("no leader");
}

#[test]
fn what_was_written_survives_the_crash_of_the_leader_and_then_of_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let mut nodes = start_all(ports, dir.path());
    assert!(client(ports, &["put", "greeting", "hello"]).starts_with("ok: entry"));
    assert_eq!(client(ports, &["add", "counter", "5"]), "5\n");

    let killed = leader(ports);
    nodes[killed - 1].take().unwrap().kill();
    assert_eq!(client(ports, &["get", "greeting"]), "hello\n");
    assert_eq!(client(ports, &["add", "counter", "-7"]), "-2\n");
    client(ports, &["put", "later", "x", "--level", "applied:2"]);

    nodes[killed - 1] = Some(Node::start(killed as u32, ports, NODES, dir.path()));
    for node in &mut nodes {
        node.take().unwrap().kill();
    }
    let nodes = start_all(ports, dir.path());
    assert_eq!(client(ports, &["scan"]), "counter\t-2\ngreeting\thello\nlater\tx\n");
    assert_eq!(client(ports, &["scan", "d", "--to", "h"]), "greeting\thello\n");
    client(ports, &["delete", "later"]);
    let missing = run(&["get", "later", "--at", &at(ports), "--cluster", "test"]);
    assert!(!missing.status.success());

    for node in nodes.into_iter().flatten() {
        assert!(node.terminate(), "a node ends cleanly when asked to");
    }
    for id in 1..=NODES {
        let data = dir.path().join(id.to_string());
        let verified = run(&["log", "verify", data.to_str().unwrap()]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        assert!(!run(&["log", "dump", data.to_str().unwrap()]).stdout.is_empty());
    }
}

#[test]
fn one_command_runs_a_cluster_and_takes_it_down_again() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let mut child = replikit()
        .args(["cluster", "--cluster", "test", "--port", &ports.to_string(), "--dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("Ctrl-C stops the cluster"));
    assert!(ready);
    client(ports, &["put", "k", "v"]);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success());
    assert_eq!(rest.iter().filter(|line| line.contains("has stopped")).count(), 3, "{rest:?}");
}
