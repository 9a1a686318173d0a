//! Nodes with their log on disk.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{ClusterId, Event, NodeId, ReadError, ReadRequest, Store, WriteRequest};
use replikit_runtime::{KvClient, KvHandle, Node, NodeConfig, OpenError};

use crate::primary::{LOG, PANIC, Primary, SNAPSHOT};
use crate::{bounded, config, connect, free_addresses, linked, open, try_open};

fn alone(dir: &Path) -> NodeConfig {
    NodeConfig::new(NodeId(1), "test", "127.0.0.1:0").peers([(NodeId(1), "127.0.0.1:0".into())]).dir(dir)
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let node = open(alone(dir.path()));
        let store = KvHandle::new(node.handle());
        for n in 0..100 {
            store.write(WriteRequest::add("n", n)).await.unwrap();
        }
        let counters = node.handle().counters();
        assert!(counters.fsyncs >= 1 && counters.storage_groups >= 1 && counters.disk_bytes_written > 100 * 64);
        node.shutdown();
        let node = open(alone(dir.path()));
        let read = KvHandle::new(node.handle()).read(ReadRequest::new("n")).await.unwrap();
        assert_eq!(read.values, ["4950"]);
    });
}

#[test]
fn one_write_at_a_time_takes_one_group_each_and_many_share() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let node = open(alone(dir.path()));
        let store = KvHandle::new(node.handle());
        let groups = || node.handle().counters().storage_groups;
        let before = groups();
        for _ in 0..20 {
            store.write(WriteRequest::add("n", 1)).await.unwrap();
        }
        let alone = groups() - before;
        assert!(alone >= 20, "{alone} groups for 20 writes, each acknowledged before the next");
        let before = groups();
        let mut tasks = Vec::new();
        for _ in 0..200 {
            let store = store.clone();
            tasks.push(tokio::spawn(async move { store.write(WriteRequest::add("n", 1)).await.unwrap() }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let shared = groups() - before;
        assert!(shared < 200, "{shared} groups for 200 writes at once");
    });
}

#[test]
fn a_cluster_on_disk_goes_on_after_all_its_nodes_were_restarted() {
    bounded(async {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let addresses = free_addresses(3);
        let start = || -> Vec<Node<Keyspace>> {
            let on_disk = addresses.iter().zip(&dirs).map(|((id, _), dir)| config(&addresses, *id).dir(dir.path()));
            on_disk.map(open).collect()
        };
        let nodes = start();
        linked(&nodes).await;
        let store = KvClient::new(connect(&addresses).await);
        for n in 0..20 {
            store.write(WriteRequest::put(format!("k{n}"), "v")).await.unwrap();
        }
        drop(nodes);
        let nodes = start();
        linked(&nodes).await;
        let store = KvClient::new(connect(&addresses).await);
        store.write(WriteRequest::put("more", "v")).await.unwrap();
        assert_eq!(store.read(ReadRequest::new("k19")).await.unwrap().values, ["v"]);
    });
}

#[test]
fn old_entries_and_snapshots_are_read_back_from_the_disk() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let node = open(alone(dir.path()));
        let handle = node.handle();
        let store = KvHandle::new(handle.clone());
        for n in 0..10 {
            store.write(WriteRequest::put(format!("k{n}"), "v")).await.unwrap();
        }
        assert_eq!(handle.query(LOG).await.unwrap().value[..], 10_u64.to_le_bytes());
        assert!(handle.query(SNAPSHOT).await.unwrap().value.is_empty(), "none was taken yet");
        handle.take_snapshot().await.unwrap();
        while handle.query(SNAPSHOT).await.unwrap().value.is_empty() {}
        store.write(WriteRequest::put("behind", "the snapshot")).await.unwrap();
        drop(store);
        node.shutdown();
        let node = open(alone(dir.path()));
        let store = KvHandle::new(node.handle());
        assert_eq!(store.read(ReadRequest::new("k9")).await.unwrap().values, ["v"]);
        assert_eq!(store.read(ReadRequest::new("behind")).await.unwrap().values, ["the snapshot"]);
    });
}

#[test]
fn a_clean_shutdown_leaves_no_trace_of_a_crash() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let mut starts = Vec::new();
        for _ in 0..3 {
            let (sender, found) = mpsc::channel();
            let node: Node<Keyspace> = Node::open(alone(dir.path()), move |boots| {
                sender.send(boots.incarnation()).unwrap();
                Ok(Primary::new(NodeId(1), vec![NodeId(1)], ClusterId::from_name("test")))
            })
            .unwrap();
            KvHandle::new(node.handle()).write(WriteRequest::put("k", "v")).await.unwrap();
            node.shutdown();
            starts.push(found.recv().unwrap());
        }
        assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "unclean starts were counted: {starts:?}");
    });
}

#[test]
fn a_directory_that_is_not_this_nodes_is_refused_in_one_line_and_left_alone() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let node = open(alone(dir.path()));
        KvHandle::new(node.handle()).write(WriteRequest::put("k", "v")).await.unwrap();
        let refused = |config: NodeConfig| {
            let error = try_open(config).expect_err("a foreign directory was opened");
            assert!(!error.to_string().contains('\n'), "{error}");
            let OpenError::Log { source, .. } = error else { panic!("{error}") };
            source
        };
        let locked = refused(alone(dir.path()));
        let replikit_log::OpenError::Disk { error, .. } = locked else { panic!("{locked}") };
        assert_eq!(error, replikit_log::DiskError::Locked);
        node.shutdown();
        let other_cluster = NodeConfig { cluster: "other".into(), ..alone(dir.path()) };
        assert!(matches!(refused(other_cluster), replikit_log::OpenError::WrongCluster { .. }));
        let other_node = NodeConfig { id: NodeId(2), ..alone(dir.path()) };
        assert!(matches!(refused(other_node), replikit_log::OpenError::WrongNode { .. }));
        let node = open(alone(dir.path()));
        assert_eq!(KvHandle::new(node.handle()).read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
    });
}

#[test]
fn a_disk_that_takes_longer_than_the_limit_is_reported_to_the_replica() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let slow = Arc::new(AtomicU32::new(0));
        let mut config = alone(dir.path());
        // Nothing is as fast as that.
        config.timing.storage_slow_after = Duration::ZERO;
        let heard = Arc::clone(&slow);
        config.events = Some(Arc::new(move |node, _group, event| {
            assert_eq!(node, NodeId(1));
            if *event == Event::StorageSlow {
                heard.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let node = open(config);
        let store = KvHandle::new(node.handle());
        while slow.load(Ordering::Relaxed) == 0 {
            store.write(WriteRequest::put("k", "v")).await.unwrap();
        }
        assert!(node.handle().counters().storage_stalls >= 1);
    });
}

#[test]
fn a_replica_that_panics_ends_its_requests_and_lets_go_of_its_directory() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let mut node = open(alone(dir.path()));
        let handle = node.handle();
        KvHandle::new(handle.clone()).write(WriteRequest::put("k", "v")).await.unwrap();
        assert_eq!(handle.query(PANIC).await, Err(ReadError::TimedOut));
        node.join();
        // The log thread ends behind the loop's: it is given the time that it takes.
        let node = loop {
            match try_open(alone(dir.path())) {
                Ok(node) => break node,
                Err(OpenError::Log { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(KvHandle::new(node.handle()).read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
    });
}
