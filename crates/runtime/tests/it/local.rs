//! The cluster in one loop, and the handle.

use replikit_core::keyspace::Keyspace;
use replikit_core::{
    ClusterId, NodeId, ReadError, ReadLevel, ReadRequest, Rejection, Role, Store, WriteEffect, WriteError, WriteLevel,
    WriteRequest,
};
use replikit_runtime::{KvHandle, LocalCluster, LocalConfig, ReadOptions, WriteOptions};

use crate::bounded;
use crate::primary::{GROUP, NEVER, Primary};

fn three() -> LocalCluster<Keyspace> {
    let config = LocalConfig::new(3);
    let nodes = config.nodes.clone();
    LocalCluster::open(config, move |id, _boots| Primary::new(id, nodes.clone(), ClusterId::from_name("local")))
}

#[test]
fn a_write_through_the_handle_is_read_back() {
    bounded(async {
        let cluster = three();
        let store = KvHandle::new(cluster.handle());
        let written = store.write(WriteRequest::put("k", "v")).await.unwrap();
        assert_eq!(written.effect, Some(WriteEffect::Done));
        assert_eq!(store.read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
    });
}

#[test]
fn a_thousand_tasks_share_one_loop_and_every_write_counts_once() {
    bounded(async {
        let cluster = three();
        let mut tasks = Vec::new();
        for _ in 0..1000 {
            let store = KvHandle::new(cluster.handle());
            tasks.push(tokio::spawn(async move {
                for _ in 0..20 {
                    store.write(WriteRequest::add("n", 1)).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let read = KvHandle::new(cluster.handle()).read(ReadRequest::new("n")).await.unwrap();
        assert_eq!(read.values, ["20000"]);
        assert_eq!(cluster.handle().counters().requests_acked, 20_000);
    });
}

#[test]
fn a_handle_that_follows_the_leader_outlives_it() {
    bounded(async {
        let cluster = three();
        let store = KvHandle::new(cluster.handle());
        assert_eq!(cluster.leader().await, Some(NodeId(1)));
        store.write(WriteRequest::put("a", "1")).await.unwrap();
        cluster.stop(NodeId(1)).await;
        store.write(WriteRequest::put("b", "2")).await.unwrap();
        assert_eq!(cluster.leader().await, Some(NodeId(2)));
        let stopped = cluster.handle_at(NodeId(1));
        assert_eq!(stopped.query("x").await, Err(ReadError::Rejected(Rejection::ShuttingDown)));
    });
}

#[test]
fn a_node_started_again_holds_what_its_log_held() {
    bounded(async {
        let cluster = three();
        KvHandle::new(cluster.handle()).write(WriteRequest::put("a", "1")).await.unwrap();
        cluster.stop(NodeId(1)).await;
        cluster.start(NodeId(1)).await;
        let read =
            KvHandle::new(cluster.handle_at(NodeId(1))).read(ReadRequest::new("a").at(ReadLevel::Local)).await.unwrap();
        assert_eq!(read.values, ["1"]);
    });
}

#[test]
fn a_handle_on_one_node_tells_who_leads_instead_of_following() {
    bounded(async {
        let cluster = three();
        cluster.leader().await;
        let follower = cluster.handle_at(NodeId(3));
        let error = follower.write_with("c", WriteOptions::at(WriteLevel::Quorum)).await.unwrap_err();
        assert_eq!(error, WriteError::Rejected(Rejection::NotLeader { leader: Some(NodeId(1)) }));
        let status = follower.status().await.unwrap();
        assert_eq!((status.node, status.replica.role), (NodeId(3), Role::Follower));
    });
}

#[test]
fn a_request_open_at_a_node_that_dies_ends_as_indeterminate() {
    bounded(async {
        let cluster = three();
        let handle = cluster.handle_at(NodeId(2));
        let query = tokio::spawn(async move { handle.query_with(NEVER, ReadOptions::at(ReadLevel::Local)).await });
        while cluster.handle().counters().requests == 0 {
            tokio::task::yield_now().await;
        }
        cluster.stop(NodeId(2)).await;
        assert_eq!(query.await.unwrap(), Err(ReadError::TimedOut));
    });
}

#[test]
fn the_inbox_rejects_beyond_its_limit() {
    // One thread: nothing is taken out of the inbox while calls are being made.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = LocalConfig { inbox_requests_max: 2, ..LocalConfig::new(1) };
        let nodes = config.nodes.clone();
        let cluster: LocalCluster<Keyspace> =
            LocalCluster::open(config, move |id, _| Primary::new(id, nodes.clone(), ClusterId::from_name("local")));
        let handle = cluster.handle_at(NodeId(1)).for_group(GROUP);
        let write = || handle.write_with("c", WriteOptions::default());
        let (a, b, c) = tokio::join!(write(), write(), write());
        assert!(a.is_ok() && b.is_ok());
        assert!(matches!(c, Err(WriteError::Rejected(Rejection::Busy { limit: 2, .. }))), "{c:?}");
    });
}

#[test]
fn without_a_runtime_the_cluster_has_a_thread_of_its_own() {
    let cluster = three();
    bounded(async {
        KvHandle::new(cluster.handle()).write(WriteRequest::put("k", "v")).await.unwrap();
        cluster.shutdown();
        let mut ended = cluster.handle().write("c").await;
        while ended.is_ok() {
            ended = cluster.handle().write("c").await;
        }
        assert!(matches!(ended, Err(WriteError::Rejected(Rejection::ShuttingDown) | WriteError::Indeterminate { .. })));
    });
}

#[test]
fn a_call_ends_when_the_cluster_is_dropped() {
    bounded(async {
        let cluster = three();
        let handle = cluster.handle();
        drop(cluster);
        let mut ended = handle.write("c").await;
        while ended.is_ok() {
            ended = handle.write("c").await;
        }
        assert!(matches!(ended, Err(WriteError::Rejected(Rejection::ShuttingDown) | WriteError::Indeterminate { .. })));
    });
}
