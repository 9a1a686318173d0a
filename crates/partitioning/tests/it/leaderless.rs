//! The partitioned store of leaderless groups as it runs: groups go from nodes to nodes while clients write.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    GroupId, NodeId, Owners, ReadLevel, ReadRequest, Rejection, ScanRequest, Store, WriteError, WriteLevel,
    WriteRequest,
};
use replikit_leaderless::{Keyspace, Keyspaces, Settings};
use replikit_partitioning::store::{
    ChangeError, Completeness, Founding, PlaceError, STRATEGY_LEADERLESS, StoreClient, StoreCluster,
};
use replikit_runtime::{Client, ClientConfig, KvClient};

/// Everything here ends within this time on any machine, or hangs.
const TEST_TIME_MAX: Duration = Duration::from_secs(120);
const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);

fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
    runtime.block_on(async { tokio::time::timeout(TEST_TIME_MAX, test).await.expect("the test hangs") })
}

fn settings() -> Settings {
    let set = Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set));
    Settings::new(Keyspaces::default().with("set/", set))
}

fn open(nodes: u32, partitions: u16) -> StoreCluster {
    StoreCluster::open_leaderless(&Founding::new((1..=nodes).map(NodeId), partitions), settings(), None)
        .expect("it starts")
}

async fn client(cluster: &StoreCluster) -> StoreClient {
    let mut config = cluster.client_config();
    config.request_time_max = Duration::from_secs(60);
    config.leg_time_max = Duration::from_secs(60);
    StoreClient::connect(config).await.expect("the store is there")
}

fn key(n: u32) -> String {
    format!("key{n:04}")
}

async fn fill(store: &impl Store, keys: u32) {
    for n in 0..keys {
        store.write(WriteRequest::put(key(n), n.to_string())).await.expect("the write is acknowledged");
    }
}

async fn value(store: &impl Store, n: u32) -> Vec<Bytes> {
    store.read(ReadRequest::new(key(n)).at(QUORUM)).await.expect("the read is answered").values
}

#[test]
fn keys_of_all_groups_are_written_read_and_scanned_also_by_clients_that_know_nothing_of_partitions() {
    bounded(async {
        let cluster = open(5, 6);
        let store = client(&cluster).await;
        fill(&store, 60).await;
        assert_eq!(value(&store, 7).await, ["7"]);
        let scan = ScanRequest { from: Bytes::new(), to: None, limit: 100, level: QUORUM };
        let gathered = store.gather(&scan, Completeness::Whole).await.expect("all groups answer");
        let expected: BTreeMap<Bytes, Bytes> = (0..60).map(|n| (key(n).into(), n.to_string().into())).collect();
        assert_eq!(gathered.page.items, expected.into_iter().collect::<Vec<_>>());
        let first = cluster.addresses()[0].1.clone();
        let config = ClientConfig::new("local", [first]).without_leader();
        let plain = KvClient::new(Client::connect(config).await.expect("a node answers"));
        assert_eq!(value(&plain, 8).await, ["8"]);
        let added = WriteRequest::crdt("set/a", CrdtOp::Insert { element: "x".into() });
        plain.write(added).await.expect("the write is acknowledged");
        let read = store.read(ReadRequest::new("set/a").at(QUORUM)).await.expect("the read is answered");
        assert_eq!(read.values, ["x"]);
    });
}

#[test]
fn groups_go_to_other_nodes_while_clients_write_and_nothing_is_lost() {
    bounded(async {
        let cluster = open(6, 3);
        let store = client(&cluster).await;
        fill(&store, 90).await;
        let (over, written, writer) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), store.clone());
        let (stop, count) = (Arc::clone(&over), Arc::clone(&written));
        let writing = tokio::spawn(async move {
            let mut round = 0;
            let mut last = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                for n in 0..90 {
                    let value = format!("{n} {round}");
                    match writer.write(WriteRequest::put(key(n), value.clone())).await {
                        Ok(_) => _ = last.insert(n, value),
                        // Its owners changed under it: it may be there.
                        Err(WriteError::Indeterminate { .. }) => _ = last.remove(&n),
                        Err(error) => panic!("a write while groups move: {error}"),
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                round += 1;
            }
            last
        });
        let map = store.map().await.expect("there is a map");
        for partition in map.partitions() {
            let all = (1..=6).map(NodeId);
            let others: Vec<NodeId> = all.filter(|node| !partition.replicas.contains(node)).collect();
            let placed = store.place(partition.group, others.clone(), Duration::from_secs(30)).await;
            let placed = placed.expect("the group goes there");
            assert_eq!(placed.partition(partition.id).expect("it stays").replicas, others);
        }
        // Each key at least once behind the moves as well.
        let enough = written.load(Ordering::Relaxed) + 2 * 90;
        while written.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        over.store(true, Ordering::Relaxed);
        let last = writing.await.expect("no write fails");
        for (n, value) in last {
            assert_eq!(self::value(&store, n).await, [value], "key {n}");
        }
        // Who was an owner sends on, and keeps nobody from anything.
        let again = client(&cluster).await;
        fill(&again, 90).await;
        assert_eq!(value(&again, 3).await, ["3"]);
    });
}

#[test]
fn a_group_goes_there_and_back_under_load() {
    bounded(async {
        let cluster = open(4, 1);
        let store = client(&cluster).await;
        fill(&store, 500).await;
        let over = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16_u32 {
            let (store, stop) = (client(&cluster).await, Arc::clone(&over));
            writers.spawn(async move {
                let (mut last, mut round) = (BTreeMap::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    // Each writer has keys of its own.
                    let n = writer + 16 * (round % 30);
                    let value = round.to_string();
                    match store.write(WriteRequest::put(key(n), value.clone())).await {
                        Ok(_) => _ = last.insert(n, value),
                        Err(WriteError::Indeterminate { .. }) => _ = last.remove(&n),
                        Err(error) => panic!("a write while the group moves: {error}"),
                    }
                }
                last
            });
        }
        let mut replicas = [1, 2, 3, 4].map(NodeId);
        for _ in 0..6 {
            replicas.rotate_left(1);
            let group = store.map().await.expect("there is a map").partitions().next().expect("it has one").group;
            store.place(group, replicas[..3].into(), Duration::from_secs(20)).await.expect("the group goes there");
        }
        over.store(true, Ordering::Relaxed);
        for last in writers.join_all().await {
            for (n, value) in last {
                assert_eq!(self::value(&store, n).await, [value], "key {n}");
            }
        }
    });
}

#[test]
fn a_dead_node_is_replaced_and_what_cannot_be_is_refused() {
    bounded(async {
        let mut cluster = open(4, 2);
        let store = client(&cluster).await;
        fill(&store, 20).await;
        let map = store.map().await.expect("there is a map");
        cluster.stop(NodeId(3));
        let mut groups: Vec<GroupId> = Vec::new();
        for partition in map.partitions().filter(|it| it.replicas.contains(&NodeId(3))) {
            store
                .place(partition.group, [1, 2, 4].map(NodeId).into(), Duration::from_secs(30))
                .await
                .expect("it goes on");
            groups.push(partition.group);
        }
        assert!(!groups.is_empty());
        for n in 0..20 {
            assert_eq!(value(&store, n).await, [n.to_string()]);
        }
        let refused = |to: &[u32]| store.place(groups[0], to.iter().copied().map(NodeId).collect(), Duration::ZERO);
        assert!(matches!(refused(&[1, 9]).await, Err(PlaceError::Change(ChangeError::Refused { .. }))));
        assert!(matches!(refused(&[]).await, Err(PlaceError::Change(ChangeError::Refused { .. }))));
        let Err(ChangeError::Refused { why }) = store.split(b"key0003").await else { panic!("nothing is cut") };
        assert!(why.contains("without one log"), "{why}");
        let numbered = WriteRequest::put("k", "v");
        let session = replikit_core::SessionSeq { session: replikit_core::SessionId(1), sequence: 1 };
        let numbered = WriteRequest { session: Some(session), ..numbered };
        assert_eq!(store.write(numbered).await, Err(WriteError::Rejected(Rejection::Unsupported)));
        assert_eq!(store.guarantees(WriteLevel::Quorum).strategy, STRATEGY_LEADERLESS);
    });
}
