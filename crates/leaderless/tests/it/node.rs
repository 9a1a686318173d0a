//! Whole clusters: in one loop with logs in memory, and nodes over TCP with logs on disk.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::CrdtKind;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    NodeId, Owners, ReadLevel, ReadRequest, Rejection, Store, WriteError, WriteLevel, WriteRequest, Written,
};
use replikit_leaderless::{
    Cluster, Founding, Keyspace, Keyspaces, KvHandle, Node, NodeConfig, Quorums, Settings, Size,
};

const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);

fn bounded<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("ends in time") })
}

fn settings() -> Settings {
    let keyspaces = Keyspaces::default()
        .with("note/", Keyspace::new(ConflictPolicy::Siblings))
        .with("count/", Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Counter)));
    Settings::new(keyspaces)
}

async fn values(store: &KvHandle, key: &'static str) -> Vec<Bytes> {
    store.read(ReadRequest::new(key).at(QUORUM)).await.unwrap().values
}

/// Writes as soon as the node takes part.
async fn write(store: &KvHandle, write: WriteRequest) -> Written {
    loop {
        match store.write(write.clone()).await {
            Err(WriteError::Rejected(Rejection::CatchingUp)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other.unwrap(),
        }
    }
}

#[test]
fn what_is_written_at_a_quorum_is_read_at_a_quorum_with_any_owner_stopped() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let at = |node| cluster.handle_at(NodeId(node));
        for dead in 1..=3 {
            let (writer, reader) = (dead % 3 + 1, (dead + 1) % 3 + 1);
            write(&at(writer), WriteRequest::put("k", dead.to_string())).await;
            cluster.stop(NodeId(writer)).await;
            assert_eq!(values(&at(reader), "k").await, [dead.to_string()]);
            write(&at(reader), WriteRequest::add("count/x", 1)).await;
            cluster.start(NodeId(writer)).await;
        }
        write(&at(1), WriteRequest::add("count/x", -1).at(WriteLevel::Owners(Owners::All))).await;
        assert_eq!(values(&at(2), "count/x").await, ["2"]);
    });
}

#[test]
fn regions_are_what_their_levels_count() {
    bounded(async {
        let settings = settings().region(NodeId(1), "north").region(NodeId(2), "south").region(NodeId(3), "south");
        let cluster = Cluster::open(3, settings).unwrap();
        let north = cluster.handle_at(NodeId(1));
        write(&north, WriteRequest::put("k", "1").at(WriteLevel::Owners(Owners::EachQuorum))).await;
        cluster.stop(NodeId(2)).await;
        cluster.stop(NodeId(3)).await;
        let local = WriteLevel::Owners(Owners::LocalQuorum);
        write(&north, WriteRequest::put("k", "2").at(local)).await;
        let read = ReadRequest::new("k").at(ReadLevel::Owners(Owners::LocalQuorum));
        assert_eq!(north.read(read).await.unwrap().values, ["2"], "the north is on its own");
    });
}

#[test]
fn what_does_not_exist_in_this_family_is_refused() {
    bounded(async {
        let cluster = Cluster::open(3, settings()).unwrap();
        let store = cluster.handle_at(NodeId(1));
        write(&store, WriteRequest::put("k", "v")).await;
        let linearizable = store.read(ReadRequest::new("k")).await;
        assert_eq!(linearizable.unwrap_err(), Rejection::Unsupported.into());
        let swap = WriteRequest::compare_and_set("k", Some("v".into()), Some("w".into()));
        assert_eq!(store.write(swap).await.unwrap_err(), Rejection::Unsupported.into());
        assert!(store.endpoint().open_session().await.is_err());
    });
}

#[test]
fn quorums_that_do_not_fit_the_cluster_are_refused() {
    let quorums = Quorums { read: Size::Exactly(4), ..Quorums::default() };
    let error = Cluster::open(3, settings().quorums(quorums)).unwrap_err().to_string();
    assert!(error.contains("read") && error.contains('4'), "{error}");
}

#[test]
fn a_node_that_may_have_been_an_owner_takes_no_part_before_it_has_asked_the_others() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let open = |founding| {
            // Nobody listens there: the node is on its own.
            let nobody = vec![(NodeId(2), "127.0.0.1:1".to_owned())];
            let config = NodeConfig::new(NodeId(1), "alone", "127.0.0.1:0").peers(nobody).dir(dir.path());
            Node::open(config, Settings { founding, ..settings() }).unwrap()
        };
        let one = || WriteRequest::put("k", "v").at(WriteLevel::Owners(Owners::One));
        let node = open(Founding::Ask);
        assert_eq!(node.handle().write(one()).await.unwrap_err(), Rejection::CatchingUp.into());
        node.shutdown();
        let node = open(Founding::New);
        write(&node.handle(), one()).await;
        node.shutdown();
        let node = open(Founding::Ask);
        let read = node.handle().read(ReadRequest::new("k").at(ReadLevel::Local)).await;
        assert_eq!(read.unwrap().values, ["v"], "its own disk says that it is an owner");
    });
}
