//! The partitioned store of multi-leader groups as it runs: groups go from nodes to nodes while clients write at one disk.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{NodeId, ReadLevel, ReadRequest, Store, WriteLevel, WriteRequest};
use replikit_multi_leader::{Keyspace, Keyspaces, Settings};
use replikit_partitioning::store::{
    ChangeError, Founding, PlaceError, STRATEGY_MULTI_LEADER, StoreClient, StoreCluster,
};
use replikit_partitioning::{Partition, PartitionMap};
use replikit_runtime::{Client, ClientConfig, KvClient};

/// Everything here ends within this time on any machine, or hangs.
const TEST_TIME_MAX: Duration = Duration::from_secs(120);
/// No placement takes as long, unless somebody is waited for in vain.
const PLACE_TIME_MAX: Duration = Duration::from_secs(30);

fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
    runtime.block_on(async { tokio::time::timeout(TEST_TIME_MAX, test).await.expect("the test hangs") })
}

fn open(nodes: u32, partitions: u16, dir: Option<&std::path::Path>) -> StoreCluster {
    let crdt = |kind| Keyspace::new(ConflictPolicy::Crdt(kind));
    let keyspaces = Keyspaces::default().with("set/", crdt(CrdtKind::Set)).with("count/", crdt(CrdtKind::Counter));
    let founding = Founding::new((1..=nodes).map(NodeId), partitions);
    StoreCluster::open_multi_leader(&founding, Settings::new(keyspaces), dir).expect("it starts")
}

async fn client(cluster: &StoreCluster) -> StoreClient {
    let mut config = cluster.client_config();
    config.request_time_max = Duration::from_secs(30);
    StoreClient::connect(config).await.expect("the store is there")
}

async fn values(store: &impl Store, key: &str) -> Vec<String> {
    let read = store.read(ReadRequest::new(key.to_owned()).at(ReadLevel::Local)).await;
    let values = read.expect("the read is answered").values;
    values.into_iter().map(|value| String::from_utf8(value.into()).expect("it is text")).collect()
}

/// Until a value is there: replicas that are told of a write show it soon.
async fn soon(store: &impl Store, key: &str, expected: &str) {
    while values(store, key).await != [expected] {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn others(partition: &Partition, nodes: u32) -> Vec<NodeId> {
    (1..=nodes).map(NodeId).filter(|node| !partition.replicas.contains(node)).collect()
}

async fn map(store: &StoreClient) -> Arc<PartitionMap> {
    store.map().await.expect("there is a map")
}

#[test]
fn keys_of_all_groups_are_written_and_read_also_by_clients_that_know_nothing_of_partitions() {
    bounded(async {
        let cluster = open(4, 4, None);
        let store = client(&cluster).await;
        for n in 0..40 {
            store.write(WriteRequest::put(format!("key{n}"), n.to_string())).await.expect("it is acknowledged");
        }
        assert_eq!(values(&store, "key7").await, ["7"], "a client reads what it has written");
        let first = cluster.addresses()[0].1.clone();
        let config = ClientConfig::new("local", [first]).without_leader();
        let plain = KvClient::new(Client::connect(config).await.expect("a node answers"));
        plain.write(WriteRequest::add("count/a", 5).at(WriteLevel::LeaderDisk)).await.expect("it is acknowledged");
        soon(&store, "count/a", "5").await;
        assert_eq!(store.guarantees(WriteLevel::LeaderDisk).strategy, STRATEGY_MULTI_LEADER);
    });
}

#[test]
fn what_was_overwritten_unseen_is_listed_by_each_node_over_all_its_groups_page_by_page() {
    bounded(async {
        let cluster = open(3, 4, None);
        // Each is at home at some node of each group: so many are not all at the same one.
        let mut clients = Vec::new();
        while clients.len() < 12 {
            clients.push(client(&cluster).await);
        }
        let root = Client::connect(ClientConfig::new("local", [cluster.addresses()[0].1.clone()])).await;
        let root = root.expect("a node answers");
        let audit = |limit: u32| {
            let node = KvClient::new(root.at_node(NodeId(1)));
            async move {
                let (mut listed, mut after) = (Vec::new(), 0);
                loop {
                    let page = node.conflicts(after, limit).await.expect("the node answers");
                    listed.extend(page.conflicts.into_iter().map(|one| (one.number, one.key)));
                    match page.next {
                        Some(next) => after = next,
                        None => return listed,
                    }
                }
            }
        };
        // Until writes that have not seen each other met in two groups at least.
        let (mut round, mut all) = (0, Vec::new());
        let groups =
            |listed: &[(u64, bytes::Bytes)]| listed.iter().map(|(number, _)| number >> 40).collect::<BTreeSet<_>>();
        while groups(&all).len() < 2 {
            for n in 0..16 {
                let mut writes = tokio::task::JoinSet::new();
                for (number, client) in clients.iter().cloned().enumerate() {
                    let put =
                        WriteRequest::put(format!("hot{n}"), format!("{number} {round}")).at(WriteLevel::LeaderDisk);
                    writes.spawn(async move { client.write(put).await });
                }
                for written in writes.join_all().await {
                    written.expect("it is acknowledged");
                }
            }
            round += 1;
            all = audit(1_000).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let all = audit(1_000).await;
        assert_eq!(audit(3).await, all, "pages leave nothing out and repeat nothing");
        assert!(all.is_sorted() && all.len() >= 2);
    });
}

#[test]
fn groups_go_to_all_other_nodes_while_clients_write_at_one_disk_and_no_write_fails_or_is_lost() {
    bounded(async {
        let cluster = open(6, 3, None);
        let store = client(&cluster).await;
        let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..8_u64 {
            let (writer, stop, count) = (client(&cluster).await, Arc::clone(&over), Arc::clone(&written));
            writers.spawn(async move {
                let mut added = 0;
                while !stop.load(Ordering::Relaxed) {
                    let element = format!("{number} {added}");
                    let level = if added % 2 == 0 { WriteLevel::LeaderDisk } else { WriteLevel::Quorum };
                    let insert = CrdtOp::Insert { element: element.into() };
                    let write = WriteRequest::crdt(format!("set/{}", added % 9), insert);
                    writer.write(write.at(level)).await.expect("no write fails while groups move");
                    writer.write(WriteRequest::add("count/all", 1).at(level)).await.expect("nor does this one");
                    added += 1;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                (number, added)
            });
        }
        for _ in 0..2 {
            for partition in map(&store).await.partitions() {
                let others = others(partition, 6);
                let placed = store.place(partition.group, others.clone(), PLACE_TIME_MAX).await;
                let placed = placed.expect("the group goes there");
                assert_eq!(placed.partition(partition.id).expect("it stays").replicas, others);
            }
        }
        let enough = written.load(Ordering::Relaxed) + 100;
        while written.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        over.store(true, Ordering::Relaxed);
        let added = writers.join_all().await;
        soon(&store, "count/all", &added.iter().map(|(_, added)| added).sum::<u64>().to_string()).await;
        for nth in 0..9 {
            let numbers = added.iter().flat_map(|(number, added)| (0..*added).map(move |it| (number, it)));
            let expected: BTreeSet<String> =
                numbers.filter(|(_, it)| it % 9 == nth).map(|(number, it)| format!("{number} {it}")).collect();
            let key = format!("set/{nth}");
            let mut found = BTreeSet::new();
            while found != expected {
                found = values(&store, &key).await.into_iter().collect();
                assert!(found.is_subset(&expected), "{key} shows what nobody added");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
}

#[test]
fn nodes_that_came_and_went_go_on_where_the_map_has_them_when_they_are_started_again() {
    bounded(async {
        let dir = tempfile::tempdir().expect("there is room");
        let mut cluster = open(4, 1, Some(dir.path()));
        let store = client(&cluster).await;
        store.write(WriteRequest::add("count/a", 1)).await.expect("it is acknowledged");
        let partition = map(&store).await.partitions().next().expect("it has one").clone();
        let kept: Vec<NodeId> = partition.replicas[1..].iter().copied().chain(others(&partition, 4)).collect();
        store.place(partition.group, kept, PLACE_TIME_MAX).await.expect("the group goes there");
        store.write(WriteRequest::add("count/a", 10)).await.expect("it is acknowledged");
        for node in (1..=4).map(NodeId) {
            cluster.stop(node);
            cluster.start(node).expect("it starts from its folder");
        }
        let again = client(&cluster).await;
        again.write(WriteRequest::add("count/a", 100).at(WriteLevel::Quorum)).await.expect("it is acknowledged");
        soon(&again, "count/a", "111").await;
        let left = again.owned(map(&again).await.partitions()).await;
        assert!(left.iter().all(|owned| owned.silent.is_empty()), "{left:?}");
    });
}

#[test]
fn a_dead_leaver_is_waited_for_until_it_is_given_up_and_what_cannot_be_is_refused() {
    bounded(async {
        let mut cluster = open(4, 1, None);
        let store = client(&cluster).await;
        store.write(WriteRequest::put("k", "v").at(WriteLevel::Quorum)).await.expect("it is acknowledged");
        let partition = map(&store).await.partitions().next().expect("it has one").clone();
        let group = partition.group;
        // Not a node that keeps the map's group alone in the way of its majority.
        let dead = partition.replicas[2];
        cluster.stop(dead);
        let wanted: Vec<NodeId> = (1..=4).map(NodeId).filter(|node| *node != dead).collect();
        let early = store.give_up(group, dead, PLACE_TIME_MAX).await;
        let Err(PlaceError::Change(ChangeError::Refused { why })) = early else { panic!("{early:?}") };
        assert!(why.contains("not about to leave"), "{why}");
        let under_way = store.place(group, wanted.clone(), Duration::from_millis(500)).await;
        let Err(PlaceError::UnderWay { lacking, .. }) = under_way else { panic!("{under_way:?}") };
        assert!(lacking.contains(&dead), "{lacking:?}");
        // Meanwhile whoever can be reached serves.
        store.write(WriteRequest::put("k", "w").at(WriteLevel::Quorum)).await.expect("it is acknowledged");
        let map = store.give_up(group, dead, PLACE_TIME_MAX).await.expect("it goes on without");
        assert_eq!(map.partition(partition.id).expect("it stays").replicas, wanted);
        soon(&store, "k", "w").await;
        let Err(ChangeError::Refused { why }) = store.split(b"key3").await else { panic!("nothing is cut") };
        assert!(why.contains("without one log"), "{why}");
        let stranger = store.place(group, vec![NodeId(9)], PLACE_TIME_MAX).await;
        assert!(matches!(stranger, Err(PlaceError::Change(ChangeError::Refused { .. }))));
    });
}
