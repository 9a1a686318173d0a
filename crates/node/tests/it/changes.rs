//! Change data capture of a single-leader group, in process, over TCP and from the command line.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use replikit_core::keyspace::{Keyspace, decode_write};
use replikit_core::{
    Change, Changes, Cursor, NodeId, ReadLevel, ReadRequest, Store, SubscribeError, WriteLevel, WriteOp, WriteRequest,
};
use replikit_runtime::{Client, ClientConfig, KvClient, KvHandle, NodeConfig, ReadTarget};
use replikit_single_leader::{Cluster, Node, Settings};

use crate::program::{free_ports, replikit, run, text};

/// Everything here ends within this time on any machine, or hangs.
const TEST_TIME_MAX: Duration = Duration::from_secs(100);

fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TEST_TIME_MAX, test).await.expect("the test hangs") })
}

fn key(change: &Change) -> String {
    let (key, op) = decode_write(&change.command).unwrap();
    assert!(matches!(op, WriteOp::Put { .. }));
    String::from_utf8(key.to_vec()).unwrap()
}

async fn next(changes: &mut Box<dyn Changes>) -> String {
    key(&changes.next().await.unwrap())
}

async fn put(store: &impl Store, key: &str) {
    store.write(WriteRequest::put(key.to_owned(), "value")).await.unwrap();
}

fn addresses(ports: u16) -> Vec<(NodeId, String)> {
    (1..=3_u16).map(|id| (NodeId(u32::from(id)), format!("127.0.0.1:{}", ports + id - 1))).collect()
}

fn open(addresses: &[(NodeId, String)], id: u32, dir: &Path) -> Node<Keyspace> {
    let listen = addresses[id as usize - 1].1.clone();
    let config = NodeConfig::new(NodeId(id), "test", listen).peers(addresses.to_vec()).dir(dir.join(id.to_string()));
    Node::open_with(config, Settings::default(), Keyspace::new()).unwrap()
}

async fn connect(addresses: &[(NodeId, String)], reads: ReadTarget) -> KvClient {
    let addresses = addresses.iter().map(|(_, address)| address.clone());
    let mut config = ClientConfig::new("test", addresses).reads(reads);
    config.request_time_max = Duration::from_secs(30);
    KvClient::new(Client::connect(config).await.unwrap())
}

#[test]
fn a_subscriber_of_a_cluster_in_the_process_follows_through_the_loss_of_the_leader() {
    bounded(async {
        let cluster = Cluster::open(3, Keyspace::new).unwrap();
        let store = KvHandle::new(cluster.handle());
        put(&store, "a").await;
        let mut changes = store.subscribe(Cursor::Oldest).await.unwrap();
        let leader = cluster.leader().await.unwrap();
        let mut at_each = BTreeMap::new();
        for node in [1, 2, 3].map(NodeId) {
            let store = KvHandle::new(cluster.handle_at(node));
            at_each.insert(node, store.subscribe(Cursor::Oldest).await.unwrap());
        }
        assert_eq!(next(&mut changes).await, "a");
        cluster.stop(leader).await;
        put(&store, "b").await;
        assert_eq!(next(&mut changes).await, "b");
        for (node, mut changes) in at_each {
            assert_eq!(next(&mut changes).await, "a");
            if node == leader {
                let ended = changes.next().await.unwrap_err();
                assert!(matches!(ended, SubscribeError::Rejected(_)), "{ended}");
                assert_eq!(changes.next().await, Err(ended), "it stays ended");
            } else {
                assert_eq!(next(&mut changes).await, "b");
            }
        }
    });
}

#[test]
fn a_subscriber_over_tcp_sees_every_write_once_and_in_order_at_any_replica() {
    bounded(async {
        let (addresses, dir) = (addresses(free_ports(3)), tempfile::tempdir().unwrap());
        let _nodes = [1, 2, 3].map(|id| open(&addresses, id, dir.path()));
        let store = connect(&addresses, ReadTarget::Leader).await;
        let (tasks, each) = (8, 100);
        let mut at_each = Vec::new();
        for node in [1, 2, 3].map(NodeId) {
            let follower = connect(&addresses, ReadTarget::Node(node)).await;
            at_each.push(follower.subscribe(Cursor::Oldest).await.unwrap());
        }
        let writers: Vec<_> = (0..tasks)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in task * each..(task + 1) * each {
                        put(&store, &n.to_string()).await;
                    }
                })
            })
            .collect();
        let mut orders = Vec::new();
        for changes in &mut at_each {
            let mut seen = Vec::new();
            while seen.len() < (tasks * each) as usize {
                let change = changes.next().await.unwrap();
                assert!(change.session.is_some(), "a client's write has a session");
                seen.push((change.at.id.index, key(&change)));
            }
            assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "in log order");
            orders.push(seen);
        }
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(orders[0] == orders[1] && orders[1] == orders[2], "one order everywhere");
        let mut keys: Vec<i32> = orders[0].iter().map(|(_, key)| key.parse().unwrap()).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..tasks * each).collect::<Vec<_>>());
    });
}

#[test]
fn a_subscriber_over_tcp_goes_on_at_another_node_when_its_own_is_lost() {
    bounded(async {
        let (addresses, dir) = (addresses(free_ports(3)), tempfile::tempdir().unwrap());
        let mut nodes = BTreeMap::from([1, 2, 3].map(|id| (NodeId(id), open(&addresses, id, dir.path()))));
        let store = connect(&addresses, ReadTarget::Leader).await;
        put(&store, "a").await;
        let mut changes = store.subscribe(Cursor::Oldest).await.unwrap();
        assert_eq!(next(&mut changes).await, "a");
        for key in ["b", "c"] {
            // The leader most likely, and with it the subscriber's node; the rest is a majority again after the restart.
            let leader = nodes[&NodeId(1)].handle().leader().await.unwrap();
            nodes.remove(&leader).unwrap().shutdown();
            put(&store, key).await;
            assert_eq!(next(&mut changes).await, key);
            nodes.insert(leader, open(&addresses, leader.0, dir.path()));
        }
    });
}

#[test]
fn entries_that_were_never_committed_are_not_shown_before_or_after_another_leader_replaces_them() {
    bounded(async {
        let (addresses, dir) = (addresses(free_ports(3)), tempfile::tempdir().unwrap());
        let mut nodes: Vec<Option<Node<Keyspace>>> = (1..=3).map(|id| Some(open(&addresses, id, dir.path()))).collect();
        let store = connect(&addresses, ReadTarget::Leader).await;
        put(&store, "a").await;
        let leader = nodes[0].as_ref().unwrap().handle().leader().await.unwrap();
        let old = leader.0 as usize - 1;
        let alone = KvHandle::new(nodes[old].as_ref().unwrap().handle());
        let mut changes = alone.subscribe(Cursor::Oldest).await.unwrap();
        assert_eq!(next(&mut changes).await, "a");

        for node in (0..3).filter(|&node| node != old) {
            nodes[node].take().unwrap().shutdown();
        }
        // On the leader's disk, and nowhere else.
        let lost = WriteRequest::put("lost", "x").at(WriteLevel::LeaderDisk);
        alone.write(lost).await.unwrap();
        let shown = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        assert!(shown.is_err(), "{shown:?} is not committed");
        nodes[old].take().unwrap().shutdown();
        assert_eq!(changes.next().await, Err(SubscribeError::Closed));

        for node in (0..3).filter(|&node| node != old) {
            nodes[node] = Some(open(&addresses, node as u32 + 1, dir.path()));
        }
        put(&store, "b").await;
        nodes[old] = Some(open(&addresses, leader.0, dir.path()));
        let again = KvHandle::new(nodes[old].as_ref().unwrap().handle());
        let mut changes = again.subscribe(Cursor::Oldest).await.unwrap();
        assert_eq!([next(&mut changes).await, next(&mut changes).await], ["a", "b"]);
        let gone = again.read(ReadRequest::new("lost").at(ReadLevel::Local)).await.unwrap();
        assert!(gone.values.is_empty());
    });
}

#[test]
fn watch_prints_changes_from_where_it_is_told() {
    let (ports, dir) = (free_ports(3), tempfile::tempdir().unwrap());
    let _nodes: Vec<_> = (1..=3).map(|id| crate::program::Node::start(id, ports, 3, dir.path())).collect();
    let at: Vec<String> = addresses(ports).into_iter().map(|(_, address)| address).collect();
    let at = at.join(",");
    let reach = ["--at", &at, "--cluster", "test", "--timeout-ms", "20000"];
    let client = |args: &[&str]| {
        let output = run(&[args, &reach].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    client(&["put", "greeting", "hello"]);
    client(&["add", "counter", "5"]);
    let both = client(&["watch", "--from", "oldest", "--count", "2"]);
    let lines: Vec<Vec<&str>> = both.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!([&lines[0][1..], &lines[1][1..]], [&["put", "greeting", "hello"][..], &["add", "counter", "5"][..]]);

    let mut watching = replikit()
        .args(["watch", "--from", lines[1][0], "--node", "2"])
        .args(reach)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client(&["delete", "greeting"]);
    let mut line = String::new();
    BufReader::new(watching.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("\tdelete\tgreeting\n"), "{line}");
    watching.kill().unwrap();
    watching.wait().unwrap();
}
