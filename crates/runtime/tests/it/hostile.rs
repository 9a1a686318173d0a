//! What comes over a socket and is not what it should be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{ClusterId, Store, WriteRequest};
use replikit_runtime::{Client, ClientConfig, ConnectError, KvClient, Node};

use crate::{TEST_TIME_MAX, bounded, cluster, frame};

/// The greeting, byte by byte: it is the same in every version.
fn hello(versions: (u16, u16), cluster: &str, role: u8, node: u32) -> Vec<u8> {
    hello_of(versions, cluster, role, node, 0)
}

/// The same of a node that was founded with something.
fn hello_of(versions: (u16, u16), cluster: &str, role: u8, node: u32, founding: u64) -> Vec<u8> {
    let mut bytes = vec![34, 0, 0, 0, 1];
    bytes.extend_from_slice(b"replikit");
    bytes.extend_from_slice(&versions.0.to_le_bytes());
    bytes.extend_from_slice(&versions.1.to_le_bytes());
    bytes.extend_from_slice(&ClusterId::from_name(cluster).to_u64().to_le_bytes());
    bytes.push(role);
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&founding.to_le_bytes());
    bytes
}

const PEER: u8 = 1;
const CLIENT: u8 = 2;

fn connect(node: &Node<Keyspace>) -> TcpStream {
    let stream = TcpStream::connect(node.local_address()).unwrap();
    stream.set_read_timeout(Some(TEST_TIME_MAX)).unwrap();
    stream
}

/// Everything that the node says until it closes the connection.
fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset says the same as an end: the node did not read what was sent behind the garbage.
    let _ = stream.read_to_end(&mut answer);
    answer
}

async fn still_serves(client: &Client) {
    KvClient::new(client.clone()).write(WriteRequest::put("still", "here")).await.unwrap();
}

#[test]
fn greetings_that_do_not_fit_are_refused_with_a_reason_in_one_line() {
    bounded(async {
        let (nodes, client) = cluster(3).await;
        for (hello, reason) in [
            (hello((1, 1), "other", CLIENT, 0), "belongs to cluster"),
            (hello((7, 9), "test", CLIENT, 0), "no common protocol version: this node speaks 1 to 1, you speak 7 to 9"),
            (hello((0, 0), "test", CLIENT, 0), "no common protocol version"),
            (hello((1, 1), "test", PEER, 1), "node 1 is this node itself"),
            (hello((1, 1), "test", PEER, 9), "node 9 is not a member"),
            (hello_of((1, 1), "test", PEER, 2, 7), "node 2 was founded with other options than node 1"),
        ] {
            let before = nodes[0].handle().counters().handshakes_refused;
            let mut stream = connect(&nodes[0]);
            stream.write_all(&hello).unwrap();
            let answer = until_closed(stream);
            let line = std::str::from_utf8(&answer[5..]).unwrap();
            assert_eq!(answer[4], 3, "the kind of a refusal");
            assert!(line.contains(reason) && !line.contains('\n'), "{line:?} does not say {reason:?}");
            assert_eq!(nodes[0].handle().counters().handshakes_refused, before + 1);
        }
        still_serves(&client).await;
    });
}

#[test]
fn a_client_of_another_cluster_learns_why_it_is_refused() {
    bounded(async {
        let (nodes, _client) = cluster(1).await;
        let config = ClientConfig::new("other", [nodes[0].local_address().to_string()]);
        let error = Client::connect(config).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Refused { reason, .. } if reason.contains("cluster")), "{error}");
    });
}

#[test]
fn garbage_closes_its_connection_and_is_counted() {
    bounded(async {
        let (nodes, client) = cluster(3).await;
        let good = hello((1, 1), "test", CLIENT, 0);
        let peer = hello((1, 1), "test", PEER, 2);
        let with = |hello: &[u8], behind: &[u8]| [hello, behind].concat();
        for (what, bytes) in [
            ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("an empty frame", vec![0, 0, 0, 0, 0]),
            ("a greeting of another kind", vec![2, 0, 0, 0, 5, 5]),
            ("no magic", vec![26; 31]),
            ("an oversized request", with(&good, &[0xff, 0xff, 0xff, 0x7f, 5])),
            ("a request without a token", with(&good, &[2, 0, 0, 0, 5, 1])),
            ("a request of an unknown kind", with(&good, &[10, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 99])),
            ("a message from a client", with(&good, &[2, 0, 0, 0, 4, 0])),
            ("a request from a peer", with(&peer, &[2, 0, 0, 0, 5, 0])),
            ("a batch that is none", with(&peer, &[10, 0, 0, 0, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8])),
            ("an oversized message", with(&peer, &[0, 0, 0, 0x10, 4])),
        ] {
            let before = nodes[0].handle().counters().frames_bad;
            let mut stream = connect(&nodes[0]);
            stream.write_all(&bytes).unwrap();
            until_closed(stream);
            assert_eq!(nodes[0].handle().counters().frames_bad, before + 1, "{what}");
            still_serves(&client).await;
        }
    });
}

#[test]
fn a_truncated_frame_and_a_silent_connection_do_no_harm() {
    bounded(async {
        let (nodes, client) = cluster(1).await;
        let mut stream = connect(&nodes[0]);
        stream.write_all(&hello((1, 1), "test", CLIENT, 0)[..20]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(until_closed(stream).is_empty());
        let silent = connect(&nodes[0]);
        assert!(until_closed(silent).is_empty(), "closed without a word after its time");
        let mut half = connect(&nodes[0]);
        half.write_all(&hello((1, 1), "test", CLIENT, 0)).unwrap();
        assert_eq!(frame(&half).0, 2, "welcome");
        half.write_all(&[200, 0, 0, 0, 5, 1, 2, 3]).unwrap();
        half.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(until_closed(half).is_empty());
        assert_eq!(nodes[0].handle().counters().frames_bad, 0, "an end is no garbage");
        still_serves(&client).await;
    });
}

#[test]
fn a_connection_is_not_read_beyond_its_requests_in_flight() {
    bounded(async {
        let addresses = crate::free_addresses(1);
        let mut config = crate::config(&addresses, addresses[0].0);
        config.limits.requests_per_connection_max = 4;
        let node = crate::open(config);
        let mut stream = connect(&node);
        stream.write_all(&hello((1, 1), "test", CLIENT, 0)).unwrap();
        assert_eq!(frame(&stream).0, 2, "welcome");
        // Ten queries that are never answered: kind 5, token, query of group 1 at level local, body.
        let query = [&[19, 0, 0, 0, 5][..], &[7; 8], &[2, 1, 3, 0xff, 0x01], crate::primary::NEVER].concat();
        stream.write_all(&query.repeat(10)).unwrap();
        let handle = node.handle();
        while handle.counters().requests < 4 {
            tokio::task::yield_now().await;
        }
        // Another connection is served, several times over, while this one stays where it is.
        let client = crate::connect(&addresses).await;
        for _ in 0..20 {
            still_serves(&client).await;
        }
        assert_eq!(handle.counters().requests, 4 + 21, "4 of the 10, 20 writes, and a session");
    });
}

#[test]
fn a_full_inbox_is_answered_busy() {
    bounded(async {
        let addresses = crate::free_addresses(1);
        let mut config = crate::config(&addresses, addresses[0].0);
        config.limits.inbox_requests_max = 1;
        let node = crate::open(config);
        let mut stream = connect(&node);
        stream.write_all(&hello((1, 1), "test", CLIENT, 0)).unwrap();
        assert_eq!(frame(&stream).0, 2, "welcome");
        let query = [&[17, 0, 0, 0, 5][..], &[7; 8], &[2, 1, 3, 0xff, 0x01], b"abc"].concat();
        // Both are read at once, before the loop has its turn.
        stream.write_all(&query.repeat(2)).unwrap();
        let (first, second) = (frame(&stream).1, frame(&stream).1);
        let rejected = |body: &[u8]| body[8] == 3;
        assert!(rejected(&first) != rejected(&second), "one was busy, one was not");
        assert_eq!(node.handle().counters().requests_busy, 1);
    });
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    bounded(async {
        let addresses = crate::free_addresses(1);
        let mut config = crate::config(&addresses, addresses[0].0);
        config.limits.connections_max = 1;
        let node = crate::open(config);
        let client = crate::connect(&addresses).await;
        let mut second = connect(&node);
        second.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        second.write_all(&hello((1, 1), "test", CLIENT, 0)).unwrap();
        let answer = until_closed(second);
        assert!(String::from_utf8_lossy(&answer[5..]).contains("its limit"));
        still_serves(&client).await;
    });
}
