//! Owners that have applied the same writes and hold something else: a snapshot was damaged behind its checksum.

use std::time::Duration;

use replikit_core::keyspace::{decode_conflict_page, encode_conflicts};
use replikit_core::policy::Cause;
use replikit_core::{Admin, Event, Input, NodeId, Outcome, ReadLevel, Token, WriteLevel, WriteRequest};

use crate::group::{GROUP, Group, Rot};

const TIME: Duration = Duration::from_secs(2);

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::Quorum)
}

/// Two keys that all owners have, in the snapshot of node 2 too, which rots and from which it starts again.
fn group(nodes: u32, rot: Rot) -> Group {
    let mut group = Group::new(nodes, |config| {
        (config.timing.exchange, config.timing.scrub) = (Duration::from_millis(20), Some(Duration::from_millis(50)));
    });
    group.write(1, put("key", "right"));
    group.write(1, put("whole", "whole"));
    group.run(TIME);
    group.input(NodeId(2), Input::Admin { token: Token(u64::MAX), group: GROUP, command: Admin::Snapshot });
    group.kill(NodeId(2));
    // Nothing comes to it while it is looked at.
    group.isolate(NodeId(2), true);
    group.rot = Some((NodeId(2), rot));
    group.start(NodeId(2));
    assert_eq!(group.replica(2).applied(), group.replica(1).applied(), "its vector says that it has everything");
    assert_ne!(group.replica(2).state_hash(), group.replica(1).state_hash());
    group.isolate(NodeId(2), false);
    group
}

/// The record of the first key goes.
fn lose(mut snapshot: Vec<u8>) -> Vec<u8> {
    let length = |at: usize| 4 + u32::from_le_bytes(snapshot[at..at + 4].try_into().unwrap()) as usize;
    let header = length(0);
    let record = header..header + length(header);
    assert!(snapshot[record.clone()].windows(3).any(|window| window == b"key"));
    snapshot.drain(record);
    snapshot
}

/// One bit of its value flips.
fn alter(mut snapshot: Vec<u8>) -> Vec<u8> {
    let at = snapshot.windows(5).position(|window| window == b"right").unwrap();
    snapshot[at] ^= 4;
    snapshot
}

fn repaired(event: &Event) -> bool {
    matches!(event, Event::RecordRepaired { key, copies: 2 } if key == "key")
}

fn differs(event: &Event) -> bool {
    matches!(event, Event::RecordsDiffer { key, records: 2 } if key == "key")
}

fn told_of_records(event: &Event) -> bool {
    matches!(event, Event::RecordRepaired { .. } | Event::RecordsDiffer { .. } | Event::RecordDamaged { .. })
}

#[test]
fn a_record_that_one_of_three_owners_has_lost_or_has_otherwise_is_taken_from_the_two_and_told() {
    for (rot, left) in [(lose as Rot, &[][..]), (alter, &["vight"])] {
        let mut group = group(3, rot);
        assert_eq!(group.values(2, "key", ReadLevel::Local), left);
        group.run(TIME);
        assert_eq!(group.values(2, "key", ReadLevel::Local), ["right"]);
        group.assert_agreed();
        assert_eq!((group.told(2, repaired), group.told(2, told_of_records)), (1, 1));
        assert_eq!(group.replica(2).figures().scrub.repaired, 1);
        for node in [1, 3] {
            assert_eq!(group.told(node, told_of_records), 0, "node {node} has nothing to tell of its own");
        }

        let mut rounds: Vec<u64> = (1..=3).map(|node| group.replica(node).figures().scrub.rounds).collect();
        group.run(TIME);
        assert!(rounds.iter_mut().zip(1..).all(|(rounds, node)| group.replica(node).figures().scrub.rounds > *rounds));
        assert_eq!(group.told(2, told_of_records), 1, "once");
    }
}

#[test]
fn what_was_taken_over_is_in_the_log_behind_the_snapshot_that_is_wrong() {
    for rot in [lose as Rot, alter] {
        let mut group = group(3, rot);
        group.run(TIME);
        group.kill(NodeId(2));
        // Nobody can tell it again, and the snapshot is what it was.
        group.isolate(NodeId(2), true);
        group.rot = Some((NodeId(2), rot));
        group.start(NodeId(2));
        assert_eq!(group.rot, None, "it starts from the snapshot");
        assert_eq!(group.values(2, "key", ReadLevel::Local), ["right"]);
        assert_eq!(group.replica(2).state_hash(), group.replica(1).state_hash());
    }
}

#[test]
fn what_was_taken_over_once_takes_nothing_back_that_was_written_since() {
    let mut group = group(3, lose);
    group.run(TIME);
    assert_eq!(group.told(2, repaired), 1);
    group.write(1, put("key", "newer"));
    group.run(TIME);
    group.releases_late = true;
    for snapshot in [false, true] {
        if snapshot {
            // What was taken over is still in the log, below the snapshot.
            group.input(NodeId(2), Input::Admin { token: Token(u64::MAX), group: GROUP, command: Admin::Snapshot });
        }
        group.kill(NodeId(2));
        group.isolate(NodeId(2), true);
        group.start(NodeId(2));
        assert_eq!(group.values(2, "key", ReadLevel::Local), ["newer"], "with a new snapshot: {snapshot}");
        group.isolate(NodeId(2), false);
        group.run(TIME);
        group.assert_agreed();
    }
}

#[test]
fn what_a_majority_outvotes_is_in_the_audit() {
    let mut group = group(3, alter);
    group.run(TIME);
    let (token, level) = (Token(u64::MAX - 1), ReadLevel::Local);
    let (body, bytes_max) = (encode_conflicts(0, 10), 1 << 20);
    group.input(NodeId(2), Input::Query { token, group: GROUP, level, body, bytes_max });
    let Some(Outcome::Value { values, .. }) = group.outcome(token.0) else { panic!("the audit answers") };
    let page = decode_conflict_page(&values[0]).unwrap();
    let [conflict] = &page.conflicts[..] else { panic!("{page:?}") };
    let lost = &conflict.overwritten;
    assert_eq!((&conflict.key[..], lost.version.value.as_deref()), (&b"key"[..], Some(&b"vight"[..])));
    assert_eq!(lost.cause, Cause::Outvoted);
}

#[test]
fn of_two_owners_nobody_knows_which_is_right_so_both_tell_and_nothing_is_changed() {
    let mut group = group(2, alter);
    group.run(TIME * 3);
    for (node, value) in [(1, "right"), (2, "vight")] {
        assert_eq!(group.values(node, "key", ReadLevel::Local), [value]);
        assert_eq!((group.told(node, differs), group.told(node, told_of_records)), (1, 1), "node {node}, and once");
        let figures = group.replica(node).figures().scrub;
        assert_eq!((figures.undecided, figures.repaired), (1, 0));
    }
    // A client who knows better writes it anew.
    group.write(1, put("key", "decided"));
    group.run(TIME);
    group.assert_agreed();
    assert_eq!(group.replica(2).figures().scrub.undecided, 0);
}

#[test]
fn records_are_compared_while_writes_go_on() {
    let mut group = group(3, lose);
    // Node 3 is behind in one key all the time: vectors are never the same.
    group.pushes_lost.insert(NodeId(1));
    for n in 0..200 {
        group.ask(1, &put("busy", &n.to_string()).at(WriteLevel::LeaderDisk));
        group.run(Duration::from_millis(10));
        let (mine, theirs) = (group.replica(1).applied(), group.replica(3).applied());
        assert_ne!(mine, theirs);
    }
    assert_eq!(group.told(2, repaired), 1);
    assert_eq!(group.told(2, told_of_records), 1);
    assert_eq!(group.told(1, told_of_records) + group.told(3, told_of_records), 0);
}
