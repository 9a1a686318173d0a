//! The partitioned store as it runs: nodes over loopback, clients that know where keys are, and clients that do not.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::{
    GroupId, NodeId, ReadLevel, ReadRequest, Rejection, ScanRequest, Store, WriteError, WriteLevel, WriteRequest,
};
use replikit_partitioning::split::Thresholds;
use replikit_partitioning::store::{
    Completeness, Founding, Keeper, KeeperConfig, Kept, MAPS_GROUP, Router, STORE_GROUP, STRATEGY, StoreClient,
    StoreClientConfig, StoreCluster,
};
use replikit_partitioning::{Load, Replication, Scheme};
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
        let router =
            Router::open("127.0.0.1:0", StoreClientConfig::new("local", nodes.clone()), Replication::SingleLeader)
                .unwrap();
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

/// A keeper that acts at the second look: above so many bytes or operations a second it splits.
fn keeper(store: &StoreClient, bytes: u64, ops: u64) -> Keeper {
    let thresholds = Thresholds {
        split_above: Load { bytes, ops, cpu: u64::MAX },
        hot_for: Duration::ZERO,
        cold_for: Duration::from_millis(300),
    };
    let config = KeeperConfig { thresholds, sizes_every: Duration::ZERO, ..KeeperConfig::default() };
    Keeper::new(store.clone(), config)
}

/// What a keeper does until it does something, while requests go on.
async fn first_kept(keeper: &mut Keeper, mut meanwhile: impl AsyncFnMut()) -> Kept {
    loop {
        meanwhile().await;
        let kept = keeper.look().await.expect("the map is there");
        if let Some(kept) = kept.into_iter().next() {
            return kept;
        }
    }
}

#[test]
fn a_hot_partition_is_cut_where_its_load_is_and_its_parts_are_joined_when_they_are_cold() {
    bounded(async {
        for scheme in [Scheme::hash_slots(0), Scheme::KEY_ORDER] {
            let cluster = StoreCluster::open(&founding(3, 1).scheme(scheme)).unwrap();
            let store = client(&cluster).await;
            let mut keeper = keeper(&store, u64::MAX, 0);
            let mut turn = 0;
            let kept = first_kept(&mut keeper, async || {
                for n in 0..300_u32 {
                    let key = key(n.wrapping_mul(7) % 300);
                    if (n + turn) % 3 == 0 {
                        store.write(WriteRequest::put(key, n.to_string())).await.unwrap();
                    } else {
                        store.read(ReadRequest::new(key)).await.unwrap();
                    }
                }
                turn += 1;
            })
            .await;
            let Kept::Split { partition, right, by_size: false } = kept else { panic!("{kept:?}") };
            let map = store.map().await.unwrap();
            assert_eq!(map.len(), 2);
            let at = |n| map.partition_of(key(n).as_bytes()).id;
            let on_the_left = (0..300).filter(|n| at(*n) == partition).count();
            assert!((75..=225).contains(&on_the_left), "{on_the_left} of 300 keys");
            assert!((0..300).all(|n| [partition, right].contains(&at(n))));
            fill(&store, 300).await;
            assert_eq!(all(&store, 1000).await, expected(300));

            let mut idle = self::keeper(&store, u64::MAX, u64::MAX);
            let kept = first_kept(&mut idle, async || tokio::time::sleep(Duration::from_millis(50)).await).await;
            assert_eq!(kept, Kept::Merged { left: partition, right });
            assert_eq!((store.map().await.unwrap().len(), all(&store, 1000).await), (1, expected(300)));
        }
    });
}

#[test]
fn a_large_partition_is_cut_in_the_middle_of_its_bytes() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(3, 1).scheme(Scheme::KEY_ORDER)).unwrap();
        let store = client(&cluster).await;
        for n in 0..60_u32 {
            // The last ones are as large as all others together.
            let bytes = if n < 50 { 100 } else { 500 };
            store.write(WriteRequest::put(format!("k{n:04}"), vec![7; bytes])).await.unwrap();
        }
        let kept = first_kept(&mut keeper(&store, 5_000, u64::MAX), async || {}).await;
        assert!(matches!(kept, Kept::Split { by_size: true, .. }), "{kept:?}");
        let map = store.map().await.unwrap();
        let cut = map.partitions().nth(1).unwrap().span.start.clone();
        assert!((&b"k0045"[..]..&b"k0054"[..]).contains(&&cut[..]), "{}", cut.escape_ascii());
    });
}

#[test]
fn a_partition_that_no_cut_helps_is_left_whole_and_the_reason_is_told_once() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(3, 1).scheme(Scheme::KEY_ORDER)).unwrap();
        let store = client(&cluster).await;
        let (mut number, mut told) = (0, Vec::new());
        for sequential in [false, true] {
            let mut keeper = keeper(&store, u64::MAX, 0);
            let kept = first_kept(&mut keeper, async || {
                for _ in 0..500 {
                    number += 1;
                    let key = if sequential { format!("log/{number:08}") } else { "one".to_owned() };
                    store.write(WriteRequest::put(key, "v")).await.unwrap();
                }
            })
            .await;
            let Kept::NotSplit { why, .. } = kept else { panic!("{kept:?}") };
            told.push(why);
            store.write(WriteRequest::put("one", "v")).await.unwrap();
            assert_eq!(keeper.look().await.unwrap(), [], "it is told once");
            // The next load is all that is looked at.
            for _ in 0..2 {
                keeper.look().await.unwrap();
            }
        }
        assert!(told[0].contains("one key has 100 percent"), "{told:?}");
        assert!(told[1].contains("writes go to the end"), "{told:?}");
        assert_eq!(store.map().await.unwrap().len(), 1);
    });
}

#[test]
fn neighbours_of_one_group_are_merged_by_hand_and_others_are_not() {
    bounded(async {
        let cluster = StoreCluster::open(&founding(3, 2).scheme(Scheme::KEY_ORDER)).unwrap();
        let store = client(&cluster).await;
        fill(&store, 52).await;
        store.split(b"c").await.unwrap();
        let refused = store.merge(b"zz").await.unwrap_err().to_string();
        assert!(refused.contains("behind the last one"), "{refused}");
        let refused = store.merge(b"0").await.unwrap_err().to_string();
        assert!(refused.contains("hand one off first") || refused.contains("not aligned"), "{refused}");
        let (map, left) = store.merge(b"b").await.unwrap();
        assert_eq!((map.len(), map.partition_of(b"d").id), (2, left));
        assert_eq!(all(&store, 1000).await, expected(52));
    });
}
