//! The partitioned store as it runs: nodes over loopback, clients that know where keys are, and clients that do not.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::{
    GroupId, NodeId, ReadLevel, ReadRequest, Rejection, ScanRequest, Store, WriteError, WriteLevel, WriteRequest,
};
use replikit_partitioning::Scheme;
use replikit_partitioning::store::{
    Completeness, Founding, MAPS_GROUP, Router, STORE_GROUP, STRATEGY, StoreClient, StoreClientConfig, StoreCluster,
};
use replikit_runtime::{Client, ClientConfig, KvClient};

/// Everything here ends within this time on any machine, or hangs.
const TEST_TIME_MAX: Duration = Duration::from_secs(120);

/// Runs a test with time to end but none to hang.
fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
    runtime.block_on(async { tokio::time::timeout(TEST_TIME_MAX, test).await.expect("the test hangs") })
}

fn founding(nodes: u32, partitions: u16) -> Founding {
    Founding::new((1..=nodes).map(NodeId), partitions)
}

/// A client with patience: three replicas of many groups elect their leaders on a machine that does other things too.
async fn client(cluster: &StoreCluster) -> StoreClient {
    let mut config = cluster.client_config();
    config.request_time_max = Duration::from_secs(60);
    config.leg_time_max = Duration::from_secs(60);
    StoreClient::connect(config).await.expect("the store is there")
}

async fn plain(addresses: impl IntoIterator<Item = String>) -> KvClient {
    let mut config = ClientConfig::new("local", addresses);
    config.request_time_max = Duration::from_secs(60);
    KvClient::new(Client::connect(config).await.expect("the store is there"))
}

fn key(n: u32) -> String {
    format!("{}{n:04}", char::from(b'a' + (n % 26) as u8))
}

async fn fill(store: &impl Store, keys: u32) {
    for n in 0..keys {
        store.write(WriteRequest::put(key(n), n.to_string())).await.expect("the write is acknowledged");
    }
}

/// All pages of a scan, of so many keys each.
async fn all(store: &impl Store, limit: u32) -> Vec<(Bytes, Bytes)> {
    let (mut from, mut found) = (Bytes::new(), Vec::new());
    loop {
        let page = store
            .scan(ScanRequest { from, to: None, limit, level: ReadLevel::Linearizable })
            .await
            .expect("the page is answered");
        assert!(page.items.len() <= limit as usize);
        found.extend(page.items);
        match page.next {
            Some(next) => from = next,
            None => return found,
        }
    }
}

fn expected(keys: u32) -> Vec<(Bytes, Bytes)> {
    let all: BTreeMap<Bytes, Bytes> = (0..keys).map(|n| (key(n).into(), n.to_string().into())).collect();
    all.into_iter().collect()
}

#[test]
fn keys_of_all_partitions_are_written_read_and_scanned_in_order_by_hash_and_by_range() {
    bounded(async {
        for scheme in [Scheme::hash_slots(0), Scheme::KEY_ORDER] {
            let cluster = StoreCluster::open(&founding(5, 6).scheme(scheme)).unwrap();
            let store = client(&cluster).await;
            fill(&store, 60).await;
            assert_eq!(store.read(ReadRequest::new(key(7))).await.unwrap().values, ["7"]);
            for limit in [1000, 7] {
                assert_eq!(all(&store, limit).await, expected(60));
            }
            let (from, to) = ("c".into(), Some("e".into()));
            let scan = ScanRequest { from, to, limit: 100, level: ReadLevel::Linearizable };
            let gathered = store.gather(&scan, Completeness::Whole).await.unwrap();
            assert!(gathered.is_complete() && gathered.page.next.is_none());
            assert_eq!(gathered.page.items.len(), (0..60).filter(|n| (2..4).contains(&(n % 26))).count());
            assert_eq!(store.guarantees(WriteLevel::Quorum).strategy, STRATEGY);
        }
    });
}

#[test]
fn a_client_with_a_stale_map_is_mended_by_the_refusal_and_loses_nothing() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(3, 1).scheme(Scheme::KEY_ORDER)).unwrap();
        let (one, other) = (client(&cluster).await, client(&cluster).await);
        fill(&other, 52).await;
        let reads = other.map_reads();
        for at in ["g", "m", "t"] {
            one.split(at.as_bytes()).await.unwrap();
        }
        assert_eq!(one.map().await.unwrap().len(), 4);
        for n in 0..52 {
            assert_eq!(other.read(ReadRequest::new(key(n))).await.unwrap().values, [n.to_string()]);
            other.write(WriteRequest::add("zz", 1)).await.unwrap();
        }
        assert_eq!(other.read(ReadRequest::new("zz")).await.unwrap().values, ["52"]);
        // Three splits at once: each refusal mends its keys, and what reads the map beside it is one of all who found out.
        assert!(other.map_reads() - reads <= 4, "{} reads of the map", other.map_reads() - reads);
    });
}

#[test]
fn where_a_page_ends_means_the_same_before_and_after_a_split() {
    bounded(async {
        for scheme in [Scheme::hash_slots(0), Scheme::KEY_ORDER] {
            let cluster = StoreCluster::open(&founding(3, 2).scheme(scheme)).unwrap();
            let store = client(&cluster).await;
            fill(&store, 60).await;
            let (mut from, mut found, mut cuts) = (Bytes::new(), Vec::new(), ["d0003", "k0010", "s0018"].iter());
            loop {
                let scan = ScanRequest { from, to: None, limit: 9, level: ReadLevel::Linearizable };
                let page = store.scan(scan).await.unwrap();
                found.extend(page.items);
                let Some(next) = page.next else { break };
                from = next;
                if let Some(cut) = cuts.next() {
                    store.split(cut.as_bytes()).await.unwrap();
                }
            }
            assert_eq!(found, expected(60));
        }
    });
}

#[test]
fn clients_that_know_nothing_of_partitions_work_at_any_node_and_through_a_router() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(4, 5)).unwrap();
        let nodes: Vec<String> = cluster.addresses().iter().map(|(_, address)| address.clone()).collect();
        let router = Router::open("127.0.0.1:0", StoreClientConfig::new("local", nodes.clone())).unwrap();
        for at in nodes.iter().cloned().chain([router.local_address().to_string()]) {
            let store = plain([at]).await;
            for n in 0..10 {
                store.write(WriteRequest::add(key(n), 1)).await.unwrap();
            }
            assert_eq!(all(&store, 4).await.len(), 10);
            let refused = store.write(WriteRequest::put("k", "v").at(WriteLevel::Durable(3))).await;
            assert_eq!(refused, Err(WriteError::Rejected(Rejection::Unsupported)));
        }
        let store = client(&cluster).await;
        for n in 0..10 {
            assert_eq!(store.read(ReadRequest::new(key(n))).await.unwrap().values, ["5"]);
        }
        let by_router =
            Client::connect(ClientConfig::new("local", [router.local_address().to_string()])).await.unwrap();
        let status = by_router.status(by_router.home()).await.unwrap();
        assert_eq!((&status.strategy[..], status.replica.group), (STRATEGY, STORE_GROUP));
        assert!(by_router.for_group(MAPS_GROUP, []).query("nonsense").await.is_err());
    });
}

#[test]
fn a_store_goes_on_without_one_of_its_nodes_and_takes_it_back() {
    bounded(async {
        let dir = std::env::temp_dir().join(format!("replikit-store-{}", std::process::id()));
        let mut cluster = StoreCluster::open_with(&founding(5, 6), Default::default(), Some(&dir)).unwrap();
        let store = client(&cluster).await;
        fill(&store, 30).await;
        cluster.stop(NodeId(1));
        for n in 30..60 {
            store.write(WriteRequest::put(key(n), n.to_string())).await.unwrap();
        }
        assert_eq!(all(&store, 50).await, expected(60));
        cluster.start(NodeId(1)).unwrap();
        cluster.stop(NodeId(2));
        for n in 0..60 {
            store.write(WriteRequest::add(key(n), 1)).await.unwrap();
        }
        for n in 0..60 {
            assert_eq!(store.read(ReadRequest::new(key(n))).await.unwrap().values, [(n + 1).to_string()]);
        }
        drop(cluster);
        // Every node would compute another first map from these.
        for other in
            [founding(5, 7), founding(4, 6), founding(5, 6).copies(2), founding(5, 6).scheme(Scheme::KEY_ORDER)]
        {
            let error = StoreCluster::open_with(&other, Default::default(), Some(&dir)).unwrap_err().to_string();
            assert!(error.contains("was founded with 6 partitions by hash") && !error.contains('\n'), "{error}");
        }
        let cluster = StoreCluster::open_with(&founding(5, 6), Default::default(), Some(&dir)).unwrap();
        assert_eq!(all(&client(&cluster).await, 50).await.len(), 60);
        drop(cluster);
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn a_partition_is_handed_to_another_group_while_a_client_counts_in_it() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(4, 1).groups(2).scheme(Scheme::KEY_ORDER)).unwrap();
        let store = client(&cluster).await;
        fill(&store, 52).await;
        let map = store.map().await.unwrap();
        let partition = map.partition_of(b"a").id;
        let (target, replicas) =
            cluster.layout().groups().nth(1).map(|(group, nodes)| (group, nodes.to_vec())).unwrap();
        let counting = tokio::spawn({
            let store = store.clone();
            async move {
                for _ in 0..300 {
                    store.write(WriteRequest::add("count", 1)).await.unwrap();
                }
            }
        });
        store.hand_off(partition, target, replicas, Duration::from_secs(60)).await.unwrap();
        counting.await.unwrap();
        let map = store.map().await.unwrap();
        assert_eq!(map.partition_of(b"a").group, target, "the handoff was committed");
        assert_ne!(target, GroupId(2));
        assert_eq!(store.read(ReadRequest::new("count")).await.unwrap().values, ["300"]);
        assert_eq!(all(&store, 10).await.len(), 53);
    });
}

/// A handoff under load was reported as taken back: the map that was looked at had been asked for by somebody else before the plan.
#[test]
fn a_map_that_is_read_anew_has_what_its_reader_has_changed_before() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(3, 1).groups(2)).unwrap();
        let store = client(&cluster).await;
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    loop {
                        store.map().await.unwrap();
                    }
                })
            })
            .collect();
        let groups: Vec<_> = cluster.layout().groups().map(|(group, nodes)| (group, nodes.to_vec())).collect();
        let partition = store.map().await.unwrap().partition_of(b"a").id;
        for nth in 0..40 {
            let (group, nodes) = groups[(nth + 1) % 2].clone();
            let map = store.hand_off(partition, group, nodes, Duration::from_secs(60)).await.unwrap();
            assert_eq!(map.partition_of(b"a").group, group);
        }
        readers.iter().for_each(|reader| reader.abort());
    });
}
