//! Nodes over TCP: opening, peers, shutting down.

use replikit_core::{NodeId, ReadLevel, ReadRequest, Rejection, Store, WriteError, WriteRequest};
use replikit_runtime::{KvClient, NodeConfig, OpenError};

use crate::{bounded, cluster, config, connect, free_addresses, linked, open, try_open};

#[test]
fn writes_over_tcp_reach_all_nodes() {
    bounded(async {
        let (nodes, client) = cluster(3).await;
        let store = KvClient::new(client);
        for n in 0..50 {
            store.write(WriteRequest::put(format!("k{n}"), format!("v{n}"))).await.unwrap();
        }
        assert_eq!(store.read(ReadRequest::new("k49")).await.unwrap().values, ["v49"]);
        for node in &nodes {
            // A majority was enough for the acknowledgement: the third node may be a little behind.
            while node.handle().status().await.unwrap().replica.last.id.index.0 < 50 {
                tokio::task::yield_now().await;
            }
            assert_eq!(node.handle().leader().await, Some(NodeId(1)));
        }
        let counters = nodes[0].handle().counters();
        assert_eq!(counters.requests_acked, 51, "50 writes and one session");
        assert!(counters.messages_sent > 0 && counters.messages_received > 0);
    });
}

#[test]
fn the_loss_of_a_node_is_heard_and_its_return_as_well() {
    bounded(async {
        let addresses = free_addresses(3);
        let mut nodes: Vec<_> = addresses.iter().map(|(id, _)| open(config(&addresses, *id))).collect();
        linked(&nodes).await;
        let store = KvClient::new(connect(&addresses).await);
        store.write(WriteRequest::put("a", "1")).await.unwrap();
        nodes.remove(0).shutdown();
        store.write(WriteRequest::put("b", "2")).await.unwrap();
        assert_eq!(nodes[0].handle().leader().await, Some(NodeId(2)));
        // The toy replica gives leadership back to the lowest node that is up.
        let _first = open(config(&addresses, NodeId(1)));
        let follower = nodes[1].handle();
        while follower.status().await.unwrap().replica.leader != Some(NodeId(1)) {
            tokio::task::yield_now().await;
        }
        assert!(nodes[1].handle().counters().peer_connects >= 3);
        assert_eq!(nodes[1].handle().counters().peer_disconnects, 1);
    });
}

#[test]
fn a_node_that_shuts_down_answers_what_is_open_and_refuses_what_comes() {
    bounded(async {
        let (mut nodes, client) = cluster(1).await;
        let store = KvClient::new(client);
        store.write(WriteRequest::put("a", "1")).await.unwrap();
        let handle = nodes[0].handle();
        let node = nodes.remove(0);
        node.shutdown();
        let error = handle.write("late").await.unwrap_err();
        assert_eq!(error, WriteError::Rejected(Rejection::ShuttingDown));
    });
}

#[test]
fn the_open_request_of_a_node_that_shuts_down_ends() {
    bounded(async {
        let (mut nodes, _client) = cluster(1).await;
        let handle = nodes[0].handle();
        let never = tokio::spawn(async move { handle.query(crate::primary::NEVER).await });
        while nodes[0].handle().counters().requests == 0 {
            tokio::task::yield_now().await;
        }
        tokio::task::spawn_blocking(move || nodes.remove(0).shutdown()).await.unwrap();
        assert!(never.await.unwrap().is_err());
    });
}

#[test]
fn a_deadline_is_met_without_any_traffic() {
    bounded(async {
        let (nodes, _client) = cluster(1).await;
        // Answered by the timer, which the toy replica checks not to come early.
        let answer = nodes[0].handle().query(crate::primary::LATER).await.unwrap();
        assert_eq!(answer.value, crate::primary::LATER);
    });
}

#[test]
fn a_follower_serves_local_reads_and_hands_the_rest_on() {
    bounded(async {
        let (_nodes, client) = cluster(3).await;
        KvClient::new(client.clone()).write(WriteRequest::put("k", "v")).await.unwrap();
        let reads = replikit_runtime::ReadTarget::Node(NodeId(3));
        let config = client.config().clone().reads(reads);
        let at_third = KvClient::new(replikit_runtime::Client::connect(config).await.unwrap());
        // The toy replica's followers apply nothing before a restart: what counts is who answered.
        let read = at_third.read(ReadRequest::new("k").at(ReadLevel::Local)).await.unwrap();
        assert!(read.values.is_empty());
    });
}

#[test]
fn wrong_configurations_are_refused_in_one_line() {
    let refused = |config| {
        let error = try_open(config).expect_err("a wrong configuration was accepted");
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() > 20, "{line:?}");
        error
    };
    assert!(matches!(refused(NodeConfig::new(NodeId(1), "test", "no address")), OpenError::Address { .. }));
    assert!(matches!(refused(NodeConfig::new(NodeId(1), "", "127.0.0.1:0")), OpenError::Configuration { .. }));
    let twice = NodeConfig::new(NodeId(1), "test", "127.0.0.1:0")
        .peers([(NodeId(2), "127.0.0.1:1".to_owned()), (NodeId(2), "127.0.0.1:2".to_owned())]);
    assert!(matches!(refused(twice), OpenError::Configuration { .. }));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_use = refused(NodeConfig::new(NodeId(1), "test", address.clone()));
    assert!(matches!(in_use, OpenError::AddressInUse { address: found } if found == address));
}
