//! Keys that are compared and set, through the replica: message by message, over restarts and lost disks.

use std::time::Duration;

use replikit_core::crdt::CrdtOp;
use replikit_core::keyspace::{decode_effect, decode_versions};
use replikit_core::{NodeId, Outcome, Owners, ReadLevel, Rejection, WriteEffect, WriteLevel, WriteOp, WriteRequest};
use replikit_leaderless::{Founding, Head, Keyspace, Keyspaces, Quorums, Size};

use crate::group::Group;

fn group(nodes: u32) -> Group {
    Group::new(nodes, |config| config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas()))
}

fn request(key: &str, op: WriteOp) -> WriteRequest {
    WriteRequest { op, ..WriteRequest::delete(key.to_owned()) }
}

fn add(key: &str, delta: i64) -> WriteRequest {
    request(key, WriteOp::Add { delta })
}

fn set(key: &str, expected: Option<&str>, new: &str) -> WriteRequest {
    let expected = expected.map(|text| text.to_owned().into());
    request(key, WriteOp::CompareAndSet { expected, new: Some(new.to_owned().into()) })
}

fn effect(group: &mut Group, node: u32, write: &WriteRequest) -> WriteEffect {
    let token = group.ask(node, write);
    wait(group, token);
    match group.outcome(token) {
        Some(Outcome::Acked { reply, strict: true, .. }) => decode_effect(reply).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Who was refused for another one's promise begins again after a while.
fn wait(group: &mut Group, token: u64) {
    group.deliver();
    for _ in 0..100 {
        if group.outcome(token).is_none() {
            group.run(Duration::from_millis(10));
        }
    }
}

/// What a node shows.
fn values(group: &mut Group, node: u32, key: &str, level: ReadLevel) -> Vec<String> {
    let token = group.query(node, key, level);
    wait(group, token);
    let Some(Outcome::Value { values, strict: true, .. }) = group.outcome(token) else {
        panic!("{:?}", group.outcome(token))
    };
    let versions = decode_versions(&values[0]).unwrap();
    versions.values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn rejected(group: &mut Group, node: u32, write: &WriteRequest) -> Option<Rejection> {
    let token = group.ask(node, write);
    group.deliver();
    match group.outcome(token) {
        Some(Outcome::Rejected(rejection)) => Some(rejection.clone()),
        _ => None,
    }
}

#[test]
fn a_key_is_created_once_and_set_by_who_knows_it() {
    let mut group = group(3);
    assert_eq!(effect(&mut group, 1, &set("lock/a", None, "ada")), WriteEffect::Done);
    let found = Some("ada".into());
    assert_eq!(effect(&mut group, 2, &set("lock/a", None, "bob")), WriteEffect::Mismatch { found });
    assert_eq!(effect(&mut group, 3, &set("lock/a", Some("ada"), "bob")), WriteEffect::Done);
    for node in 1..=3 {
        for level in [ReadLevel::Linearizable, ReadLevel::Local, ReadLevel::Owners(Owners::Quorum)] {
            assert_eq!(values(&mut group, node, "lock/a", level), ["bob"], "node {node}");
        }
    }
    for (node, value) in [(1, 5), (2, 10), (3, 15), (3, 20)] {
        assert_eq!(effect(&mut group, node, &add("lock/n", 5)), WriteEffect::Counter { value });
    }
    assert_eq!(effect(&mut group, 2, &WriteRequest::delete("lock/a")), WriteEffect::Done);
    assert!(values(&mut group, 1, "lock/a", ReadLevel::Linearizable).is_empty());
    assert_eq!(effect(&mut group, 1, &set("lock/a", None, "cyd")), WriteEffect::Done);
}

#[test]
fn plain_requests_and_comparisons_are_refused_where_the_other_kind_lives() {
    let mut group = group(3);
    let insert = WriteOp::Crdt { op: CrdtOp::Insert { element: "x".into() } };
    assert_eq!(rejected(&mut group, 1, &request("lock/a", insert)), Some(Rejection::Unsupported));
    assert_eq!(rejected(&mut group, 1, &set("plain", None, "x")), Some(Rejection::Unsupported));
    assert_eq!(rejected(&mut group, 1, &add("plain", 1)), Some(Rejection::Unsupported));
    let token = group.query(1, "plain", ReadLevel::Linearizable);
    assert_eq!(group.outcome(token), Some(&Outcome::Rejected(Rejection::Unsupported)));

    // What is known of a plain key means nothing to one that is compared.
    group.write(1, WriteRequest::put("plain", "1").at(WriteLevel::Quorum));
    let (versions, _) = group.read(2, "plain", ReadLevel::Owners(Owners::Quorum));
    let over = WriteRequest::put("lock/a", "x").over(versions.context.unwrap());
    assert_eq!(rejected(&mut group, 1, &over), Some(Rejection::Unsupported));
    // And what is known of one that is compared is no hindrance.
    let (versions, _) = group.read(2, "lock/a", ReadLevel::Linearizable);
    group.write(2, WriteRequest::put("lock/a", "x").over(versions.context.unwrap()));
}

#[test]
fn a_level_above_a_majority_is_refused_and_quorum_is_a_majority_whatever_w_is() {
    let all = Quorums { read: Size::Exactly(1), write: Size::Exactly(3), durable: Size::Exactly(3) };
    let mut group = Group::new(3, move |config| {
        config.keyspaces = Keyspaces::all(Keyspace::cas());
        config.quorums = all;
    });
    group.isolate(NodeId(3), true);
    let one = |level| WriteRequest::put("k", "v").at(level);
    group.write(1, one(WriteLevel::Quorum));
    for level in [
        WriteLevel::Memory,
        WriteLevel::LeaderDisk,
        WriteLevel::Quorum,
        WriteLevel::Durable(2),
        WriteLevel::Applied(2),
        WriteLevel::Owners(Owners::LocalQuorum),
        WriteLevel::Owners(Owners::Quorum),
    ] {
        group.write(1, one(level));
    }
    for level in [WriteLevel::Durable(3), WriteLevel::Applied(3), WriteLevel::Owners(Owners::All)] {
        assert_eq!(rejected(&mut group, 1, &one(level)), Some(Rejection::Unreachable { level, replicas: 3 }));
    }
    assert_eq!(values(&mut group, 2, "k", ReadLevel::Local), ["v"]);
}

#[test]
fn a_proposer_that_was_the_last_one_needs_one_round_trip() {
    let mut group = group(3);
    group.write(1, add("lock/n", 1).at(WriteLevel::Quorum));
    group.deliver();
    let token = group.ask(1, &add("lock/n", 1));
    let asked = group.wire.len();
    assert!(group.wire.iter().all(|(from, _, message)| *from == NodeId(1) && matches!(message.head, Head::Cas(_))));
    assert_eq!(asked, 2, "one question to each other owner");
    for _ in 0..2 {
        let (from, to, message) = group.wire.pop_front().unwrap();
        group.input(to, replikit_core::Input::Message { from, message });
    }
    assert!(group.outcome(token).is_none());
    let (from, to, message) = group.wire.pop_front().unwrap();
    group.input(to, replikit_core::Input::Message { from, message });
    let Some(Outcome::Acked { reached, .. }) = group.outcome(token) else {
        panic!("the first answer makes a majority")
    };
    assert_eq!(reached.durable, 2);
    assert_eq!(group.replica(1).figures().cas.one_trip, 1);
}

#[test]
fn what_was_agreed_outlives_restarts_and_snapshots() {
    for small in [false, true] {
        let mut group = Group::new(3, move |config| {
            config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas());
            if small {
                config.limits.snapshot_log_bytes = 1;
                config.limits.snapshot_piece_bytes = 64;
            }
        });
        for round in 1..=5 {
            for node in 1..=3 {
                group.kill(NodeId(node));
                group.start(NodeId(node));
                group.run(Duration::from_millis(200));
            }
            for node in 1..=3 {
                let value = (round - 1) * 3 + i64::from(node);
                assert_eq!(effect(&mut group, node, &add("lock/n", 1)), WriteEffect::Counter { value });
            }
        }
        // All at once, too.
        for node in 1..=3 {
            group.kill(NodeId(node));
        }
        for node in 1..=3 {
            group.start(NodeId(node));
        }
        group.run(Duration::from_millis(500));
        assert_eq!(values(&mut group, 2, "lock/n", ReadLevel::Linearizable), ["15"]);
    }
}

#[test]
fn an_owner_that_lost_its_disk_answers_for_no_key_before_it_has_gathered_all_of_them() {
    for piece in [1, 1 << 20] {
        let mut group = Group::new(3, move |config| {
            config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas());
            config.limits.snapshot_piece_bytes = piece;
        });
        group.isolate(NodeId(3), true);
        for key in ["lock/a", "lock/b", "lock/c"] {
            group.write(1, WriteRequest::put(key, "v").at(WriteLevel::Quorum));
        }
        group.isolate(NodeId(3), false);
        // Nodes 1 and 2 have it. Node 2 loses its disk, and hears from node 3 only: the two would know nothing.
        group.kill(NodeId(2));
        group.lose_disk(NodeId(2));
        group.isolate(NodeId(1), true);
        group.reconfigure(|config| config.founding = Founding::Ask);
        group.start(NodeId(2));
        group.run(Duration::from_millis(500));
        let read = group.query(3, "lock/a", ReadLevel::Linearizable);
        let write = group.ask(3, &set("lock/b", None, "w"));
        group.run(Duration::from_secs(6));
        for token in [read, write] {
            assert_eq!(group.outcome(token), Some(&Outcome::Rejected(Rejection::NoQuorum)));
        }
        group.isolate(NodeId(1), false);
        group.run(Duration::from_secs(2));
        // And now node 1 is away for good: what it had promised and accepted is at node 2 again.
        group.isolate(NodeId(1), true);
        for key in ["lock/a", "lock/b", "lock/c"] {
            assert_eq!(values(&mut group, 3, key, ReadLevel::Linearizable), ["v"]);
        }
        assert_eq!(effect(&mut group, 2, &set("lock/a", Some("v"), "w")), WriteEffect::Done);
    }
}

#[test]
fn a_restart_amid_gathering_gathers_on() {
    let mut group = group(3);
    group.isolate(NodeId(3), true);
    group.write(1, WriteRequest::put("lock/a", "v").at(WriteLevel::Quorum));
    group.kill(NodeId(2));
    group.lose_disk(NodeId(2));
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.isolate(NodeId(3), false);
    group.start(NodeId(2));
    // It has heard from both, and has an incarnation; then node 1, which alone has the value, is cut off.
    group.drops = |head| matches!(head, Head::CasGiven(_));
    group.run(Duration::from_secs(1));
    assert!(group.replica(2).origin().is_some());
    group.drops = |_| false;
    group.isolate(NodeId(1), true);
    group.run(Duration::from_millis(300));
    for _ in 0..2 {
        group.kill(NodeId(2));
        group.start(NodeId(2));
        group.run(Duration::from_secs(1));
        let read = group.query(3, "lock/a", ReadLevel::Linearizable);
        group.run(Duration::from_secs(6));
        assert_eq!(group.outcome(read), Some(&Outcome::Rejected(Rejection::NoQuorum)));
    }
    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(1));
    group.isolate(NodeId(1), true);
    assert_eq!(values(&mut group, 3, "lock/a", ReadLevel::Linearizable), ["v"]);
}

#[test]
fn owners_that_lose_their_disks_together_do_not_wait_for_each_other() {
    let mut group = group(5);
    group.write(1, WriteRequest::put("lock/a", "v").at(WriteLevel::Quorum));
    group.reconfigure(|config| config.founding = Founding::Ask);
    for node in [1, 2] {
        group.kill(NodeId(node));
        group.lose_disk(NodeId(node));
    }
    for node in [1, 2] {
        group.start(NodeId(node));
    }
    group.run(Duration::from_secs(2));
    for node in [3, 4] {
        group.isolate(NodeId(node), true);
    }
    assert_eq!(values(&mut group, 1, "lock/a", ReadLevel::Linearizable), ["v"]);
}

#[test]
fn a_group_begins_when_everybody_asks_everybody() {
    let mut group = Group::new(3, |config| {
        config.keyspaces = Keyspaces::all(Keyspace::cas());
        config.founding = Founding::Ask;
    });
    assert_eq!(effect(&mut group, 3, &set("a", None, "v")), WriteEffect::Done);
    assert_eq!(values(&mut group, 1, "a", ReadLevel::Linearizable), ["v"]);
}

#[test]
fn without_a_majority_what_was_not_proposed_is_refused_and_what_was_is_in_doubt() {
    let mut group = group(3);
    group.write(1, add("lock/n", 1).at(WriteLevel::Quorum));
    group.deliver();
    group.isolate(NodeId(1), true);
    // Node 1 may propose at once; node 2 has to ask first.
    let doubt = group.ask(1, &add("lock/n", 1));
    group.isolate(NodeId(3), true);
    let refused = group.ask(2, &add("lock/n", 1));
    group.run(Duration::from_secs(6));
    assert!(matches!(group.outcome(doubt), Some(Outcome::Indeterminate { .. })));
    assert_eq!(group.outcome(refused), Some(&Outcome::Rejected(Rejection::NoQuorum)));
    group.isolate(NodeId(3), false);
    assert_eq!(effect(&mut group, 2, &add("lock/n", 10)), WriteEffect::Counter { value: 11 });
}

/// `leaderless-owners` seed 21384: its owners changed for ever, for every read ended before it proposed anything.
#[test]
fn a_read_proposes_in_time_what_silent_owners_leave_without_a_quorum() {
    let mut group = Group::new(3, |config| {
        config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas());
        (config.timing.read, config.timing.exchange) = (Duration::from_millis(60), Duration::from_millis(200));
    });
    assert_eq!(effect(&mut group, 2, &add("lock/n", 1)), WriteEffect::Counter { value: 1 });
    group.isolate(NodeId(2), true);
    assert_eq!(effect(&mut group, 1, &set("lock/a", None, "ada")), WriteEffect::Done);
    group.isolate(NodeId(2), false);
    group.kill(NodeId(3));
    assert_eq!(values(&mut group, 2, "lock/a", ReadLevel::Linearizable), ["ada"]);
}
