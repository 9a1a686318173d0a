//! Change data capture, in process and over TCP.

use std::path::Path;

use replikit_core::keyspace::{Keyspace, decode_write};
use replikit_core::{
    Change, Changes, ClusterId, Cursor, GroupId, LogIndex, NodeId, Queue, Rejection, Store, SubscribeError, WriteOp,
    WriteRequest,
};
use replikit_runtime::{Client, ClientConfig, KvClient, KvHandle, Limits, LocalCluster, LocalConfig, Node, NodeConfig};

use crate::primary::Primary;
use crate::{bounded, cluster, open, try_open};

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

async fn put_all(store: &impl Store, keys: std::ops::Range<u32>) {
    for n in keys {
        store.write(WriteRequest::put(format!("{n}"), vec![7; 200])).await.unwrap();
    }
}

#[test]
fn a_subscriber_in_the_process_sees_what_is_committed_in_order_and_resumes_behind_any_change() {
    bounded(async {
        let config = LocalConfig::new(3);
        let nodes = config.nodes.clone();
        let cluster: LocalCluster<Keyspace> =
            LocalCluster::open(config, move |id, _| Primary::new(id, nodes.clone(), ClusterId::from_name("local")));
        let store = KvHandle::new(cluster.handle());
        put(&store, "before").await;
        let mut newest = store.subscribe(Cursor::Newest).await.unwrap();
        for key in ["a", "b", "c"] {
            put(&store, key).await;
        }
        let first = newest.next().await.unwrap();
        assert_eq!(key(&first), "a");
        assert_eq!([next(&mut newest).await, next(&mut newest).await], ["b", "c"]);
        // The toy's followers do not commit; those of real strategies have tests of their own.
        let other = KvHandle::new(cluster.handle_at(NodeId(1)));
        let mut resumed = other.subscribe(first.cursor()).await.unwrap();
        assert_eq!([next(&mut resumed).await, next(&mut resumed).await], ["b", "c"]);
        let mut oldest = other.subscribe(Cursor::Oldest).await.unwrap();
        assert_eq!([next(&mut oldest).await, next(&mut oldest).await], ["before", "a"]);
    });
}

#[test]
fn a_call_for_the_next_change_that_is_dropped_loses_nothing() {
    bounded(async {
        let (_nodes, client) = cluster(1).await;
        let store = KvClient::new(client);
        let mut changes = store.subscribe(Cursor::Newest).await.unwrap();
        assert!(polled_once(changes.next()).await.is_none(), "there is nothing yet");
        put(&store, "a").await;
        // Calls are dropped until one finds the change at once: no dropped one has taken it.
        let change = loop {
            match polled_once(changes.next()).await {
                Some(change) => break change.unwrap(),
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(key(&change), "a");
    });
}

/// Polls once and drops; what came of it, if it did not have to wait.
async fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

fn on_disk(dir: &Path) -> NodeConfig {
    NodeConfig::new(NodeId(1), "test", "127.0.0.1:0").peers([(NodeId(1), "127.0.0.1:0".into())]).dir(dir)
}

/// Waits until the log behind a snapshot is released; the first index that is left.
async fn compacted(node: &Node<Keyspace>, store: &impl Store) -> LogIndex {
    node.handle().take_snapshot().await.unwrap();
    loop {
        let mut all = store.subscribe(Cursor::After(LogIndex(0))).await.unwrap();
        match all.next().await {
            Err(SubscribeError::Lagged { first }) => return first,
            Err(other) => panic!("{other}"),
            Ok(_) => {}
        }
        drop(all);
        // A round, for the loop to see that nobody follows any more.
        put(store, "next").await;
    }
}

#[test]
fn a_cursor_behind_the_compacted_log_lags_and_the_oldest_change_is_the_first_that_is_left() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let node = open(on_disk(dir.path()));
        let client = Client::connect(ClientConfig::new("test", [node.local_address().to_string()])).await.unwrap();
        let (near, far) = (KvHandle::new(node.handle()), KvClient::new(client));
        put_all(&near, 0..10).await;
        let first = compacted(&node, &near).await;
        assert!(first > LogIndex(1));
        let mut lagging = far.subscribe(Cursor::After(LogIndex(0))).await.unwrap();
        assert_eq!(lagging.next().await, Err(SubscribeError::Lagged { first }));
        put(&near, "later").await;
        let mut oldest = far.subscribe(Cursor::Oldest).await.unwrap();
        let change = oldest.next().await.unwrap();
        assert!(change.at.id.index >= first);
    });
}

#[test]
fn a_slow_subscriber_is_held_in_the_log_as_far_as_its_retention_goes() {
    bounded(async {
        for (retained, all) in [(1 << 30, true), (0, false)] {
            let dir = tempfile::tempdir().unwrap();
            let limits = Limits { subscription_bytes_max: 4 << 10, ..Limits::default() };
            let node = open(NodeConfig { log_retained_bytes_max: retained, limits, ..on_disk(dir.path()) });
            let store = KvHandle::new(node.handle());
            let mut slow = store.subscribe(Cursor::Oldest).await.unwrap();
            put_all(&store, 0..200).await;
            if all {
                node.handle().take_snapshot().await.unwrap();
            } else {
                compacted(&node, &store).await;
            }
            let mut seen = 0;
            let end = loop {
                if seen == 200 {
                    break None;
                }
                match slow.next().await {
                    Ok(change) => assert_eq!(key(&change), format!("{seen}"), "in order, none left out"),
                    Err(why) => break Some(why),
                }
                seen += 1;
            };
            if all {
                assert_eq!(end, None, "retention of {retained} bytes");
            } else {
                assert!(matches!(end, Some(SubscribeError::Lagged { .. })), "{seen} seen, then {end:?}");
                assert!(seen < 60, "{seen} changes of 200 bytes waited in memory, the limit is 4 KiB");
            }
        }
    });
}

#[test]
fn settings_out_of_range_and_subscribers_beyond_the_limit_are_refused() {
    bounded(async {
        let small = Limits { subscription_bytes_max: 1, ..Limits::default() };
        let alone = || NodeConfig::new(NodeId(1), "test", "127.0.0.1:0").peers([(NodeId(1), "127.0.0.1:0".into())]);
        for wrong in
            [NodeConfig { log_retained_bytes_max: u64::MAX, ..alone() }, NodeConfig { limits: small, ..alone() }]
        {
            let error = try_open(wrong).unwrap_err().to_string();
            assert!(error.contains("_bytes_max is "), "{error}");
        }
        let limits = Limits { subscriptions_max: 1, ..Limits::default() };
        let node = open(NodeConfig { limits, ..alone() });
        let handle = node.handle();
        let one = handle.subscribe(Cursor::Newest).await.unwrap();
        let busy = Rejection::Busy { queue: Queue::Subscriptions, limit: 1 };
        let refused = |result: Result<Box<dyn Changes>, _>| result.err();
        assert_eq!(refused(handle.subscribe(Cursor::Newest).await), Some(busy.into()));
        drop(one);
        KvHandle::new(node.handle()).write(WriteRequest::put("k", "v")).await.unwrap();
        let mut two = handle.subscribe(Cursor::After(LogIndex(u64::MAX))).await.unwrap();
        assert!(polled_once(two.next()).await.is_none(), "nothing stands there for a long time");
        let nobody = handle.for_group(GroupId(99)).subscribe(Cursor::Newest).await;
        assert_eq!(refused(nobody), Some(Rejection::Unsupported.into()));
    });
}
