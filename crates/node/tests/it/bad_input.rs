//! Bad input: one line that says what and what to do, a non-zero exit, nothing overwritten.

use std::net::TcpListener;

use crate::program::*;

#[test]
fn unknown_commands_and_flags_are_one_line() {
    refused(&["frobnicate"], &["frobnicate", "--help"]);
    refused(&["node", "--frobnicate"], &["--frobnicate", "--help"]);
    refused(&["put", "key"], &["VALUE", "--help"]);
    refused(&["put", "k", "v", "--level", "perhaps"], &["perhaps", "quorum"]);
    refused(&["cluster", "--nodes", "0"], &["0", "1..=9"]);
    refused(&["conflicts"], &["say what to do", "--help"]);
    refused(&["cluster", "--topology", "ring"], &["--topology", "multi-leader"]);
    refused(&["cluster", "--strategy", "multi-leader", "--topology", "custom:1,2"], &["`1`", "1-2"]);
    refused(&["cluster", "--strategy", "multi-leader", "--keyspace", "a/=best"], &["best", "siblings"]);
    refused(&["put", "k", "v", "--over", "no context"], &["--over", "get --context"]);
    let usage = run(&["cluster", "--conflicts", "lww"]);
    assert_eq!(usage.status.code(), Some(2));
}

fn node<'a>(listen: &'a str, dir: &'a str) -> Vec<&'a str> {
    vec!["node", "--cluster", "test", "--id", "1", "--listen", listen, "--data", dir]
}

#[test]
fn bad_addresses_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    refused(&node("nowhere", data), &["nowhere", "HOST:PORT"]);
    refused(&node("0.0.0.0:7199", data), &["0.0.0.0:7199", "--insecure"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&node(&address, data), &[&address, "in use"]);
    let mut twice = node("127.0.0.1:0", data);
    twice.extend(["--peer", "2=127.0.0.1:1", "--peer", "2=127.0.0.1:2"]);
    refused(&twice, &["two peers", "2"]);
    let mut timeout = node("127.0.0.1:0", data);
    timeout.extend(["--election-timeout-ms", "1"]);
    refused(&timeout, &["election timeout"]);
    let mut star = node("127.0.0.1:0", data);
    star.extend(["--strategy", "multi-leader", "--topology", "star:9"]);
    refused(&star, &["node 9", "not a member"]);
}

#[test]
fn a_data_directory_of_another_cluster_or_node_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(1);
    assert!(Node::start(1, ports, 1, dir.path()).terminate());
    let data = dir.path().join("1");
    let contents = || {
        let mut files: Vec<_> = std::fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = contents();
    let text = data.to_str().unwrap();
    let node = |cluster: &'static str, id: &'static str| {
        vec!["node", "--cluster", cluster, "--id", id, "--listen", "127.0.0.1:0", "--data", text]
    };
    refused(&node("other", "1"), &["cluster"]);
    refused(&node("test", "2"), &["node 1"]);
    assert!(before == contents(), "nothing was overwritten");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let inside = file.join("data");
    let inside = inside.to_str().unwrap();
    refused(&node("127.0.0.1:0", inside), &[inside]);
    refused(&["log", "verify", inside], &[inside]);
}

#[test]
fn a_cluster_that_is_not_there_is_said_to_be_unreachable() {
    let port = free_ports(1);
    let at = format!("127.0.0.1:{port}");
    refused(&["get", "k", "--at", &at, "--timeout-ms", "200"], &[&at]);
}
