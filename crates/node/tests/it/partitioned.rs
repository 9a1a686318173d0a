//! A partitioned cluster of real processes.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use replikit_core::{ReadLevel, ScanRequest, Store, WriteRequest};
use replikit_partitioning::store::{Completeness, StoreClient, StoreClientConfig};
use replikit_runtime::{Client, ClientConfig, KvClient};

use crate::program::*;

const NODES: u32 = 4;
const SHAPE: [&str; 4] = ["--partitions", "6", "--scheme", "range"];

fn client(at: &str, args: &[&str]) -> String {
    let mut all = args.to_vec();
    all.extend(["--at", at, "--cluster", "test", "--timeout-ms", "30000"]);
    let output = run(&all);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn keys_are_found_through_any_node_and_a_router_also_after_a_crash_a_split_and_a_drain() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(5);
    let start = |id| Node::start_with(id, ports, NODES, dir.path(), &SHAPE);
    let mut nodes: Vec<Option<Node>> = (1..=NODES).map(|id| Some(start(id))).collect();
    let address = |n: u32| format!("127.0.0.1:{}", u32::from(ports) + n - 1);
    let at = (1..=NODES).map(address).collect::<Vec<_>>().join(",");

    let mut router = replikit()
        .args(["router", "--cluster", "test", "--listen", &address(5), "--peers", &at])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(router.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("listening on"));

    for (n, key) in ["1", "apple", "kiwi", "plum", "zucchini"].iter().enumerate() {
        assert!(client(&address(n as u32 + 1), &["put", key, "x"]).starts_with("ok: entry"));
    }
    assert_eq!(client(&address(5), &["add", "count", "5"]), "5\n");
    let all = "1\tx\napple\tx\ncount\t5\nkiwi\tx\nplum\tx\nzucchini\tx\n";
    assert_eq!(client(&at, &["scan"]), all);
    let status = client(&at, &["status"]);
    assert!(status.contains("6 partitions in all"), "{status}");

    nodes[1].take().unwrap().kill();
    assert_eq!(client(&address(5), &["add", "count", "1"]), "6\n");
    assert_eq!(client(&address(1), &["get", "plum"]), "x\n");
    nodes[1] = Some(start(2));

    assert!(client(&at, &["split", "lemon"]).starts_with("ok: partition 7 begins at lemon.."));
    let listed = client(&at, &["partitions"]);
    assert!(listed.contains("7 partitions at epoch 2"), "{listed}");
    let leaders = listed.lines().filter(|line| line.ends_with("serving")).map(|line| line.split_whitespace().nth(4));
    assert!(leaders.flatten().all(|leader| (1..=NODES).any(|node| leader == node.to_string())), "{listed}");
    assert!(client(&at, &["merge", "lamb"]).contains("one of 6 at epoch 3"));
    assert!(client(&at, &["split", "lemon"]).starts_with("ok: partition 8 begins at lemon.."));
    let drained = client(&at, &["drain", "4"]);
    assert!(drained.contains("node 4 holds no partition any more"), "{drained}");
    let plan = client(&at, &["balance", "--dry-run", "--drain", "4"]);
    assert!(plan.contains("worst node over its part") && !plan.contains("node 4 "), "{plan}");
    nodes[3].take().unwrap().kill();
    assert_eq!(client(&address(1), &["scan"]), all.replace("count\t5", "count\t6"));

    router.kill().unwrap();
    router.wait().unwrap();
}

#[test]
fn a_keeper_cuts_a_partition_while_it_is_hot() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let shape = ["--partitions", "1", "--scheme", "range"];
    let _nodes: Vec<Node> = (1..=3).map(|id| Node::start_with(id, ports, 3, dir.path(), &shape)).collect();
    let at = (1..=3).map(|n| format!("127.0.0.1:{}", u32::from(ports) + n - 1)).collect::<Vec<_>>().join(",");
    client(&at, &["put", "a", "x"]);
    let keep = ["keep", "--split-above-ops", "1", "--hot-for-s", "0", "--cluster", "test", "--at", &at];
    let mut keeper = replikit().args(keep).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("looking after 1 partitions"));
    let done = Arc::new(AtomicBool::new(false));
    let load = {
        let (done, at) = (done.clone(), at.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = ClientConfig::new("test", at.split(','));
                let store = KvClient::new(Client::connect(config).await.unwrap());
                for n in 0_u32.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("{}{n}", char::from(b'a' + (n * 7 % 26) as u8));
                    store.write(WriteRequest::put(key, "v")).await.unwrap();
                }
            });
        })
    };
    let told = lines.next().unwrap().unwrap();
    assert_eq!(told, "partition 1 is hot: its right part is partition 2 now");
    done.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert!(client(&at, &["partitions"]).contains("2 partitions at epoch 2"));
    keeper.kill().unwrap();
    keeper.wait().unwrap();
}

#[test]
fn a_cluster_is_balanced_by_handing_partitions_to_other_groups() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(4);
    let _nodes: Vec<Node> = (1..=NODES).map(|id| Node::start_with(id, ports, NODES, dir.path(), &SHAPE)).collect();
    let at = (1..=NODES).map(|n| format!("127.0.0.1:{}", u32::from(ports) + n - 1)).collect::<Vec<_>>().join(",");
    for key in ["a", "apple", "apricot", "avocado", "b", "banana"] {
        client(&at, &["put", key, "x"]);
    }
    let before = client(&at, &["scan"]);
    // All of it is in one group, in five parts.
    for key in ["ap", "apr", "av", "b"] {
        assert!(client(&at, &["split", key]).starts_with("ok: partition"));
    }
    let plan = client(&at, &["balance", "--dry-run"]);
    let moves = plan.lines().filter(|line| line.contains("(Evenness)")).count();
    assert!(moves > 0, "{plan}");
    let done = client(&at, &["balance", "--apply", "--most", "1"]);
    assert!(done.contains("1 of 1") && done.contains("ok: partition"), "{done}");
    let done = client(&at, &["balance", "--apply"]);
    let last = done.lines().rev().find(|line| line.contains("about 0 s left"));
    assert_eq!(last.is_some(), moves > 1, "{done}");
    assert!(client(&at, &["balance", "--dry-run"]).starts_with("0 partitions to hand over"), "it is even now");
    assert_eq!(client(&at, &["scan"]), before);
    assert_eq!(client(&at, &["balance", "--cancel"]), "no handoff is under way\n");
}

#[test]
fn a_scan_asks_another_replica_where_one_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let nodes: Vec<Node> =
        (1..=3).map(|id| Node::start_with(id, ports, 3, dir.path(), &["--partitions", "6"])).collect();
    let at: Vec<String> = (1..=3).map(|n| format!("127.0.0.1:{}", u32::from(ports) + n - 1)).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut config = StoreClientConfig::new("test", at);
        (config.request_time_max, config.leg_time_max) = (Duration::from_secs(60), Duration::from_secs(60));
        config.attempt_time_max = Duration::from_secs(60);
        let store = StoreClient::connect(config).await.unwrap();
        for n in 0..60 {
            store.write(WriteRequest::put(format!("key{n:02}"), "x")).await.unwrap();
        }
        let scan = ScanRequest { from: "key".into(), to: None, limit: 100, level: ReadLevel::Local };
        for _ in 0..20 {
            assert_eq!(store.gather(&scan, Completeness::Whole).await.unwrap().page.items.len(), 60);
        }
        let led = store.describe_all(&store.map().await.unwrap()).await;
        let (_, stands_still, _) = led.first().unwrap();
        nodes[stands_still.0 as usize - 1].pause();
        // What it leads, one of its followers answers; an attempt at it would take a minute.
        let found = tokio::time::timeout(Duration::from_secs(30), store.gather(&scan, Completeness::Whole)).await;
        assert_eq!(found.expect("nobody else was asked").unwrap().page.items.len(), 60);
        assert!(store.legs().hedged > 0, "{:?}", store.legs());
        nodes[stands_still.0 as usize - 1].resume();
    });
}

#[test]
fn groups_without_leaders_are_placed_by_hand_drained_and_made_even() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(4);
    let shape = ["--strategy", "leaderless", "--partitions", "4", "--keyspace", "count/=counter", "--new"];
    let start = |id| Node::start_with(id, ports, NODES, dir.path(), &shape);
    let mut nodes: Vec<Option<Node>> = (1..=NODES).map(|id| Some(start(id))).collect();
    let at = (1..=NODES).map(|n| format!("127.0.0.1:{}", u32::from(ports) + n - 1)).collect::<Vec<_>>().join(",");
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert!(client(&at, &["put", key, "x"]).starts_with("ok: write"));
    }
    assert_eq!(client(&at, &["add", "count/n", "5"]), "5\n");
    let all = client(&at, &["scan"]);
    assert_eq!(all.lines().count(), 7, "{all}");
    let listed = client(&at, &["partitions"]);
    assert!(listed.contains("4 partitions at epoch 1") && listed.matches("serving").count() == 4, "{listed}");
    assert!(client(&at, &["place", "2", "2,3,4"]).starts_with("ok: group 2 is on nodes 2,3,4 now"));
    let drained = client(&at, &["drain", "4"]);
    assert!(drained.contains("node 4 owns nothing any more"), "{drained}");
    let status = client(&at, &["status", "--node", "4"]);
    let row: Vec<&str> = status.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[4], "0", "{status}");
    assert_eq!(client(&at, &["scan"]), all);
    // It is gone for good, and nobody misses it.
    nodes[3].take().unwrap().kill();
    assert_eq!(client(&at, &["scan"]), all);
    nodes[3] = Some(Node::start_with(4, ports, NODES, dir.path(), &shape[..shape.len() - 1]));
    let done = client(&at, &["balance", "--apply"]);
    assert!(done.contains("ok: group"), "{done}");
    assert!(client(&at, &["balance", "--dry-run"]).starts_with("0 replicas to place"), "it is even now");
    assert_eq!(client(&at, &["scan"]), all);
    let refused_there = |args: &[&str], words: &str| {
        let output = run(&[args, &["--at", &at, "--cluster", "test"]].concat());
        assert!(!output.status.success() && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    };
    refused_there(&["split", "c"], "without one log");
    refused_there(&["handoff", "1", "3"], "without one log");
    refused_there(&["place", "2", "1,9"], "no node 9");
}

#[test]
fn groups_with_several_leaders_are_placed_by_hand_and_a_dead_node_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(4);
    let shape = ["--strategy", "multi-leader", "--partitions", "4", "--keyspace", "count/=counter", "--new"];
    let start = |id| Node::start_with(id, ports, NODES, dir.path(), &shape);
    let mut nodes: Vec<Option<Node>> = (1..=NODES).map(|id| Some(start(id))).collect();
    let at = (1..=NODES).map(|n| format!("127.0.0.1:{}", u32::from(ports) + n - 1)).collect::<Vec<_>>().join(",");
    let soon = |args: &[&str], expected: &str| {
        // A local read shows what its node has heard of.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let shown = client(&at, args);
            if shown == expected {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{args:?} shows {shown}, not {expected}");
        }
    };
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert!(client(&at, &["put", key, "x"]).starts_with("ok: write"));
    }
    client(&at, &["add", "count/n", "5"]);
    soon(&["get", "count/n"], "5\n");
    let listed = client(&at, &["partitions"]);
    assert!(listed.contains("4 partitions at epoch 1") && listed.matches("serving").count() == 4, "{listed}");
    assert!(client(&at, &["place", "2", "2,3,4"]).starts_with("ok: group 2 is on nodes 2,3,4 now"));
    let drained = client(&at, &["drain", "4"]);
    assert!(drained.contains("node 4 owns nothing any more"), "{drained}");
    for key in ["a", "b", "c", "d", "e", "f"] {
        soon(&["get", key], "x\n");
    }
    nodes[3].take().unwrap().kill();
    nodes[3] = Some(Node::start_with(4, ports, NODES, dir.path(), &shape[..shape.len() - 1]));
    let done = client(&at, &["balance", "--apply"]);
    assert!(done.contains("ok: group"), "{done}");
    // One of the nodes of group 3 dies for good.
    let place = client(&at, &["place", "3", "1,2,4"]);
    assert!(place.starts_with("ok: group 3"), "{place}");
    nodes[3].take().unwrap().kill();
    let refused_there = |args: &[&str], words: &str| {
        let output = run(&[args, &["--at", &at, "--cluster", "test"]].concat());
        assert!(!output.status.success() && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    };
    refused_there(&["place", "3", "--give-up", "4"], "place the group without it first");
    refused_there(&["place", "3", "1,2,3", "--wait-ms", "300"], "it goes on by itself");
    let listed = client(&at, &["partitions"]);
    assert!(listed.contains("leaves 4"), "{listed}");
    let given_up = client(&at, &["place", "3", "--give-up", "4"]);
    assert!(given_up.starts_with("ok: group 3 does without node 4"), "{given_up}");
    soon(&["get", "count/n"], "5\n");
    refused_there(&["split", "c"], "without one log");
}

#[test]
fn wrong_shapes_are_refused_in_one_line() {
    refused(&["cluster", "--scheme", "range"], &["--partitions"]);
    let star = ["cluster", "--partitions", "4", "--strategy", "multi-leader", "--topology", "star:1"];
    refused(&star, &["names nodes"]);
    refused(&["cluster", "--partitions", "4", "--strategy", "multi-leader", "--groups", "5"], &["for ever"]);
    refused(&["cluster", "--partitions", "4", "--strategy", "leaderless", "--groups", "5"], &["for ever"]);
    refused(&["cluster", "--partitions", "4", "--strategy", "leaderless", "--fallbacks", "3"], &["--fallbacks"]);
    refused(&["cluster", "--partitions", "4", "--copies", "5"], &["5 copies", "3"]);
    refused(&["cluster", "--partitions", "4", "--groups", "2"], &["at least as many groups"]);
    refused(&["router", "--listen", "127.0.0.1:1"], &["--peers"]);
    refused(&["partitions", "--at", "127.0.0.1:1"], &["127.0.0.1:1"]);
    refused(&["balance", "--at", "127.0.0.1:1"], &["--dry-run"]);
    refused(&["keep", "--split-above-ops", "0", "--at", "127.0.0.1:1"], &["--split-above-ops"]);
    refused(&["balance", "--cancel", "--most", "1", "--at", "127.0.0.1:1"], &["--most"]);
}
