//! The client: finding the leader, retrying once-only, many tasks on one connection, silent nodes.

use std::time::{Duration, Instant};

use replikit_core::{
    GroupId, NodeId, ReadError, ReadRequest, Rejection, SessionSeq, Store, WriteEffect, WriteError, WriteLevel,
    WriteRequest,
};
use replikit_runtime::{Client, ClientConfig, ConnectError, KvClient, Retries, WriteOptions};

use crate::primary::NEVER;
use crate::{bounded, cluster, config, connect, free_addresses, open};

#[test]
fn a_client_that_knows_one_follower_finds_the_leader() {
    bounded(async {
        let (nodes, _) = cluster(3).await;
        let third = nodes[2].local_address().to_string();
        let client = Client::connect(ClientConfig::new("test", [third])).await.unwrap();
        let store = KvClient::new(client.clone());
        store.write(WriteRequest::put("k", "v")).await.unwrap();
        assert_eq!(store.read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
        assert_eq!(client.nodes().len(), 3);
        assert_eq!(client.leader(), Some(NodeId(1)));
    });
}

#[test]
fn ten_thousand_requests_of_many_tasks_share_one_connection() {
    bounded(async {
        let (nodes, client) = cluster(3).await;
        let mut tasks = Vec::new();
        for _ in 0..200 {
            let store = KvClient::new(client.clone());
            tasks.push(tokio::spawn(async move {
                for _ in 0..50 {
                    store.write(WriteRequest::add("n", 1)).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let store = KvClient::new(client);
        assert_eq!(store.read(ReadRequest::new("n")).await.unwrap().values, ["10000"]);
        let counters = nodes[0].handle().counters();
        assert!(counters.rounds < 10_000, "{} rounds: requests were not taken together", counters.rounds);
    });
}

#[test]
fn a_write_sent_twice_under_one_number_takes_effect_once() {
    bounded(async {
        let (_nodes, client) = cluster(3).await;
        let store = KvClient::new(client.clone());
        let session = client.open_session().await.unwrap();
        let at = Some(SessionSeq { session, sequence: 1 });
        for _ in 0..3 {
            let mut write = WriteRequest::add("n", 1);
            write.session = at;
            let written = store.write(write).await.unwrap();
            assert_eq!(written.effect, Some(WriteEffect::Counter { value: 1 }));
        }
    });
}

#[test]
fn writes_go_on_through_the_loss_of_the_leader() {
    bounded(async {
        let (mut nodes, client) = cluster(3).await;
        let mut tasks = Vec::new();
        for task in 0..8 {
            let store = KvClient::new(client.clone());
            tasks.push(tokio::spawn(async move {
                for n in 0..200 {
                    store.write(WriteRequest::put(format!("{task}-{n}"), "v")).await.unwrap();
                }
            }));
        }
        while nodes[0].handle().counters().requests_acked < 100 {
            tokio::task::yield_now().await;
        }
        let leader = nodes.remove(0);
        tokio::task::spawn_blocking(move || leader.shutdown()).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(client.leader(), Some(NodeId(2)));
    });
}

#[test]
fn a_request_without_an_answer_ends_in_time() {
    bounded(async {
        let (nodes, client) = cluster(1).await;
        let mut config = client.config().clone();
        config.request_time_max = Duration::from_millis(100);
        let client = Client::connect(config).await.unwrap();
        let began = Instant::now();
        assert_eq!(client.query(NEVER).await, Err(ReadError::TimedOut));
        assert!(began.elapsed() >= Duration::from_millis(100));
        assert!(nodes[0].handle().counters().requests >= 1);
    });
}

#[test]
fn a_client_without_sessions_does_not_send_a_doubtful_write_again() {
    bounded(async {
        let (mut nodes, client) = cluster(2).await;
        let mut config = client.config().clone();
        config.retries = Retries::AtMostOnce;
        let client = Client::connect(config).await.unwrap();
        // Without its follower the leader of two cannot reach a majority: the write stays open until the leader is gone.
        drop(nodes.remove(1));
        let write = tokio::spawn(async move { client.write_with("c", WriteOptions::default()).await });
        while nodes[0].handle().counters().requests == 0 {
            tokio::task::yield_now().await;
        }
        let leader = nodes.remove(0);
        tokio::task::spawn_blocking(move || leader.shutdown()).await.unwrap();
        assert!(matches!(write.await.unwrap(), Err(WriteError::Indeterminate { .. })));
    });
}

#[test]
fn a_leader_that_falls_silent_is_left_for_the_one_that_the_others_follow() {
    bounded(async {
        // Node 1 is a socket that greets and never answers; nodes 2 and 3 are real and do not hear of it.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mute_address = mute.local_addr().unwrap().to_string();
        let (nodes, _) = cluster(2).await;
        let mut known: Vec<(u32, String)> = vec![(9, mute_address.clone())];
        known.extend(nodes.iter().map(|node| (node.id().0, node.local_address().to_string())));
        let thread = std::thread::spawn(move || {
            use std::io::Read;
            let (mut stream, _) = mute.accept().unwrap();
            crate::welcome(&stream, true, &known);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            rest.len()
        });
        let client = Client::connect(ClientConfig::new("test", [mute_address])).await.unwrap();
        assert_eq!(client.leader(), Some(NodeId(9)), "as it claims");
        let began = Instant::now();
        KvClient::new(client.clone()).write(WriteRequest::put("k", "v")).await.unwrap();
        assert!(began.elapsed() < client.config().request_time_max, "not only at the end of its time");
        assert_eq!(client.leader(), Some(NodeId(1)));
        drop(client);
        assert!(thread.join().unwrap() > 0, "it was asked, and kept silent");
    });
}

#[test]
fn a_cluster_that_nobody_answers_for_is_unreachable() {
    bounded(async {
        let addresses = free_addresses(2);
        let config = ClientConfig::new("test", addresses.iter().map(|(_, address)| address.clone()));
        assert!(matches!(Client::connect(config.clone()).await, Err(ConnectError::Unreachable { .. })));
        let none = ClientConfig::new("test", Vec::<String>::new());
        assert!(matches!(Client::connect(none).await, Err(ConnectError::NoAddress)));
    });
}

#[test]
fn a_write_that_never_left_is_reported_as_such() {
    bounded(async {
        let addresses = free_addresses(1);
        let node = open(config(&addresses, NodeId(1)));
        let mut settings = connect(&addresses).await.config().clone();
        settings.request_time_max = Duration::from_millis(300);
        let client = Client::connect(settings).await.unwrap();
        node.shutdown();
        let error = client.write("c").await.unwrap_err();
        assert!(matches!(error, WriteError::Unreachable { .. }), "{error:?}");
    });
}

#[test]
fn requests_beyond_the_clients_own_limit_wait_for_their_turn() {
    bounded(async {
        let (_nodes, client) = cluster(1).await;
        let mut settings = client.config().clone();
        settings.requests_per_connection_max = 1;
        let client = Client::connect(settings).await.unwrap();
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let store = KvClient::new(client.clone());
            tasks.push(tokio::spawn(async move { store.write(WriteRequest::add("n", 1)).await.unwrap() }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(KvClient::new(client).read(ReadRequest::new("n")).await.unwrap().values, ["100"]);
    });
}

#[test]
fn levels_below_quorum_are_acknowledged_early_and_without_an_effect() {
    bounded(async {
        let (_nodes, client) = cluster(3).await;
        let store = KvClient::new(client);
        let written = store.write(WriteRequest::put("k", "v").at(WriteLevel::Memory)).await.unwrap();
        assert_eq!((written.effect, written.strict), (None, false));
    });
}

#[test]
fn malformed_keys_are_rejected_before_they_are_sent() {
    bounded(async {
        let (nodes, client) = cluster(1).await;
        let store = KvClient::new(client);
        let empty = store.write(WriteRequest::put("", "v")).await.unwrap_err();
        assert_eq!(empty, WriteError::Rejected(Rejection::Malformed));
        let long = store.read(ReadRequest::new(vec![0; 5000])).await.unwrap_err();
        assert!(matches!(long, ReadError::Rejected(Rejection::TooLarge { bytes: 5000, .. })));
        assert_eq!(nodes[0].handle().for_group(GroupId(7)).counters().requests, 0);
    });
}
