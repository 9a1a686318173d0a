//! Whole clusters: in one loop with logs in memory, and nodes over TCP with logs on disk.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::keyspace::ConflictPage;
use replikit_core::policy::{Cause, ConflictPolicy};
use replikit_core::{
    NodeId, ReadLevel, ReadRequest, ReadResult, Rejection, Store, WriteEffect, WriteError, WriteLevel, WriteRequest,
    Written,
};
use replikit_multi_leader::{Cluster, Founding, Keyspace, Keyspaces, KvHandle, Node, NodeConfig, Settings, Topology};

const ALL: WriteLevel = WriteLevel::Applied(3);

fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("ends in time") })
}

fn settings() -> Settings {
    let crdt = |kind| Keyspace::new(ConflictPolicy::Crdt(kind));
    let keyspaces = Keyspaces::default()
        .with("note/", Keyspace::new(ConflictPolicy::Siblings))
        .with("count/", crdt(CrdtKind::Counter))
        .with("tags/", crdt(CrdtKind::Set));
    Settings::new(keyspaces)
}

fn stores(cluster: &Cluster) -> [KvHandle; 3] {
    [1, 2, 3].map(|node| cluster.handle_at(NodeId(node)))
}

async fn get(store: &KvHandle, key: &'static str) -> ReadResult {
    store.read(ReadRequest::new(key).at(ReadLevel::Local)).await.unwrap()
}

async fn values(store: &KvHandle, key: &'static str) -> Vec<Bytes> {
    get(store, key).await.values
}

async fn conflicts(store: &KvHandle) -> ConflictPage {
    store.conflicts(0, 100).await.unwrap()
}

/// Writes as soon as the node takes writes.
async fn write(store: &KvHandle, write: WriteRequest) -> Written {
    loop {
        match store.write(write.clone()).await {
            Err(WriteError::Rejected(Rejection::CatchingUp)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other.unwrap(),
        }
    }
}

/// All three write at the same moment: no one has seen the others.
async fn write_at_once(stores: &[KvHandle; 3], key: &'static str) {
    let [a, b, c] = stores;
    tokio::join!(
        write(a, WriteRequest::put(key, "a").at(ALL)),
        write(b, WriteRequest::put(key, "b").at(ALL)),
        write(c, WriteRequest::put(key, "c").at(ALL)),
    );
}

#[test]
fn what_is_written_at_any_node_is_seen_at_all_of_them() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let stores = stores(&cluster);
        for (store, key) in stores.iter().zip(["x", "y", "z"]) {
            let written = write(store, WriteRequest::put(key, key).at(ALL)).await;
            assert_eq!((written.reached.applied, written.effect), (3, Some(WriteEffect::Done)));
        }
        for store in &stores {
            for key in ["x", "y", "z"] {
                assert_eq!(values(store, key).await, [key]);
            }
        }
    });
}

#[test]
fn siblings_are_shown_until_a_write_that_has_seen_them() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let stores = stores(&cluster);
        write(&stores[0], WriteRequest::put("warm", "up").at(ALL)).await;
        write_at_once(&stores, "note/1").await;
        let shown = get(&stores[1], "note/1").await;
        assert_eq!(shown.values, ["a", "b", "c"], "nothing is lost");
        write(&stores[1], WriteRequest::put("note/1", "abc").over(shown.context.unwrap()).at(ALL)).await;
        for store in &stores {
            assert_eq!(values(store, "note/1").await, ["abc"]);
            assert!(conflicts(store).await.conflicts.is_empty(), "all were seen by the one that replaced them");
        }
    });
}

#[test]
fn a_value_that_lost_is_in_the_audit_of_every_node() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let stores = stores(&cluster);
        write(&stores[0], WriteRequest::put("warm", "up").at(ALL)).await;
        write_at_once(&stores, "last").await;
        let winner = values(&stores[0], "last").await;
        assert_eq!(winner.len(), 1);
        for store in &stores {
            assert_eq!(values(store, "last").await, winner);
            let page = conflicts(store).await;
            let mut all: Vec<Bytes> =
                page.conflicts.iter().filter_map(|lost| lost.overwritten.version.value.clone()).collect();
            assert!(page.conflicts.iter().all(|lost| lost.overwritten.cause == Cause::Newer && lost.key == "last"));
            all.extend(winner.clone());
            all.sort();
            assert_eq!(all, ["a", "b", "c"], "acknowledged = shown + audited");
            assert_eq!(page.dropped, 0);
        }
    });
}

#[test]
fn counters_and_sets_take_every_write_of_every_node() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let stores = stores(&cluster);
        let [a, b, c] = &stores;
        let insert = |element: &'static str| WriteRequest::crdt("tags/x", CrdtOp::Insert { element: element.into() });
        tokio::join!(
            write(a, WriteRequest::add("count/x", 5).at(ALL)),
            write(b, WriteRequest::add("count/x", -2).at(ALL)),
            write(c, WriteRequest::add("count/x", 4).at(ALL)),
            write(a, insert("red").at(ALL)),
            write(b, insert("blue").at(ALL)),
        );
        for store in &stores {
            assert_eq!(values(store, "count/x").await, ["7"]);
            assert_eq!(values(store, "tags/x").await, ["blue", "red"]);
        }
    });
}

#[test]
fn a_node_that_was_away_catches_up_from_the_others() {
    bounded(async {
        let cluster = Cluster::open(3, settings().topology(Topology::Ring)).unwrap();
        let stores = stores(&cluster);
        write(&stores[2], WriteRequest::put("mine", "1").at(ALL)).await;
        cluster.stop(NodeId(3)).await;
        write(&stores[0], WriteRequest::put("theirs", "2").at(WriteLevel::LeaderDisk)).await;
        cluster.start(NodeId(3)).await;
        write(&stores[0], WriteRequest::put("later", "3").at(ALL)).await;
        for key in ["mine", "theirs", "later"] {
            assert_eq!(values(&stores[2], key).await.len(), 1, "{key}");
        }
        write(&stores[2], WriteRequest::put("mine", "4").at(ALL)).await;
        assert_eq!(values(&stores[0], "mine").await, ["4"]);
    });
}

#[test]
fn what_does_not_exist_in_this_family_is_refused() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let store = cluster.handle_at(NodeId(1));
        write(&store, WriteRequest::put("k", "v").at(WriteLevel::LeaderDisk)).await;
        let linearizable = store.read(ReadRequest::new("k")).await;
        assert_eq!(linearizable.unwrap_err(), Rejection::Unsupported.into());
        let swap = WriteRequest::compare_and_set("k", Some("v".into()), Some("w".into()));
        assert_eq!(store.write(swap).await.unwrap_err(), Rejection::Unsupported.into());
        assert!(store.endpoint().open_session().await.is_err());
    });
}

#[test]
fn settings_that_do_not_fit_the_cluster_are_refused() {
    let star = settings().topology(Topology::Star { hub: NodeId(7) });
    assert!(Cluster::open(3, star).unwrap_err().to_string().contains("node 7"));
    let one_way = Topology::Custom(vec![(NodeId(1), NodeId(2))]);
    assert!(Cluster::open(2, settings().topology(one_way)).is_err());
    let all: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let ring = settings().topology(Topology::Ring).report(&all).unwrap();
    assert_eq!(ring.split_by_node.len(), 3);
}

#[test]
fn a_node_on_disk_writes_alone_and_goes_on_after_a_restart() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let open = |peers: Vec<(NodeId, String)>, founding| {
            let config = NodeConfig::new(NodeId(1), "alone", "127.0.0.1:0").peers(peers).dir(dir.path());
            Node::open(config, Settings { founding, ..settings() }).unwrap()
        };
        // Nobody listens there: the node is on its own.
        let nobody = vec![(NodeId(2), "127.0.0.1:1".to_owned())];
        let node = open(nobody.clone(), Founding::Ask);
        let refused = node.handle().write(WriteRequest::put("k", "1").at(WriteLevel::LeaderDisk)).await;
        assert_eq!(refused.unwrap_err(), Rejection::CatchingUp.into());
        node.shutdown();
        let node = open(nobody.clone(), Founding::New);
        for n in 1..=3 {
            write(&node.handle(), WriteRequest::put("k", n.to_string()).at(WriteLevel::LeaderDisk)).await;
        }
        node.shutdown();
        let node = open(nobody, Founding::Ask);
        assert_eq!(values(&node.handle(), "k").await, ["3"]);
        let written = write(&node.handle(), WriteRequest::put("k", "4").at(WriteLevel::LeaderDisk)).await;
        assert_eq!(written.at.id.index.0, 4, "a clean restart goes on where it was");
    });
}

#[test]
fn a_write_over_a_context_does_not_replace_in_silence_what_the_context_has_not_seen() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let store = cluster.handle_at(NodeId(1));
        write(&store, WriteRequest::put("last", "1").at(ALL)).await;
        let read = get(&store, "last").await;
        write(&store, WriteRequest::put("last", "2").at(ALL)).await;
        write(&store, WriteRequest::put("last", "3").over(read.context.unwrap()).at(ALL)).await;
        let lost: Vec<_> =
            conflicts(&store).await.conflicts.into_iter().map(|lost| lost.overwritten.version.value).collect();
        assert_eq!(lost, [Some("2".into())], "3 had not seen 2");
    });
}

#[test]
fn replicas_that_ask_at_the_same_moment_hear_each_others_answers() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let stores = stores(&cluster);
        write(&stores[0], WriteRequest::put("k", "v").at(ALL)).await;
        loop {
            let level = ReadLevel::BoundedStale(Duration::from_secs(5));
            let fresh = tokio::join!(
                stores[0].read(ReadRequest::new("k").at(level.clone())),
                stores[1].read(ReadRequest::new("k").at(level.clone())),
                stores[2].read(ReadRequest::new("k").at(level.clone())),
            );
            if fresh.0.is_ok() && fresh.1.is_ok() && fresh.2.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
