//! Snapshots: taken, sent, installed, recovered from.

use std::time::Duration;

use replikit_core::*;

use crate::group::*;

fn small(config: &mut replikit_single_leader::Config) {
    config.limits.snapshot_log_bytes = 2000;
    config.limits.snapshot_piece_bytes = 7;
    config.limits.cache_bytes_max = 100;
}

#[test]
fn a_follower_that_is_too_far_behind_gets_a_snapshot_and_then_the_tail() {
    let mut group = Group::with(3, small);
    let leader = group.elect();
    let away = group.follower();
    group.isolate(away);
    for _ in 0..200 {
        group.write(leader, "x");
    }
    group.heal();
    group.run(Duration::from_millis(900));
    assert_eq!(group.list(away), group.list(leader));
    let events = &group.nodes[&away].events;
    assert!(events.iter().any(|event| matches!(event, Event::SnapshotInstalled { .. })), "{events:?}");
    group.write(leader, "tail");
    assert!(group.list(away).ends_with("x,tail"));
}

#[test]
fn a_restart_continues_from_the_snapshot_and_the_log_behind_it() {
    let mut group = Group::with(3, small);
    let leader = group.elect();
    for _ in 0..100 {
        group.write(leader, "x");
    }
    let expected = group.list(leader);
    for id in [1, 2, 3].map(node) {
        group.kill(id);
    }
    for id in [1, 2, 3].map(node) {
        group.start(id, &[]);
        let status = group.nodes[&id].raft.status();
        assert!(status.snapshot.is_some() && status.applied_index > LogIndex::ZERO);
    }
    let leader = group.elect();
    group.settle();
    assert_eq!(group.list(leader), expected);
}

#[test]
fn sessions_travel_with_the_snapshot() {
    let mut group = Group::with(3, small);
    let leader = group.elect();
    let away = group.follower();
    let token = group.token();
    group.input(leader, Input::OpenSession { token, group: GROUP });
    group.settle();
    let Outcome::Acked { reply, .. } = &group.outcomes[&token.0] else { panic!("no session") };
    let session = SessionId(u64::from_le_bytes(reply[..].try_into().unwrap()));
    let request = Some(SessionSeq { session, sequence: 1 });
    group.isolate(away);
    group.session_command(leader, WriteLevel::Quorum, request, "once");
    for _ in 0..200 {
        group.write(leader, "x");
    }
    group.heal();
    group.run(Duration::from_millis(900));
    assert_eq!(group.list(away), group.list(leader));
    // Only the one who has the session from the snapshot, and one of the others, are left.
    group.kill(leader);
    group.run(Duration::from_secs(1));
    let new = group.leader().unwrap();
    group.session_command(new, WriteLevel::Quorum, request, "once");
    group.settle();
    for id in group.nodes.keys() {
        assert_eq!(group.list(*id).matches("once").count(), 1, "at {id:?}");
    }
}

#[test]
fn session_tokens_of_lost_writes_are_recognised_also_behind_a_snapshot() {
    let mut group = Group::with(3, small);
    let old = group.elect();
    group.isolate(old);
    let token = group.command(old, WriteLevel::Memory, "lost");
    let Outcome::Acked { at, .. } = group.outcomes[&token].clone() else { panic!("acknowledged in memory") };
    group.run(Duration::from_millis(600));
    let new = group.leader().filter(|&new| new != old).unwrap();
    for _ in 0..200 {
        group.write(new, "x");
    }
    group.heal();
    group.run(Duration::from_millis(900));
    assert_eq!(group.list(old), group.list(new), "the old leader took a snapshot over its lost suffix");
    let mut session = SessionToken::new();
    session.observe(at);
    let read = group.query(old, ReadLevel::Session(session));
    assert!(matches!(group.outcomes[&read], Outcome::Rejected(Rejection::LostWrites { .. })));
}

#[test]
fn an_operator_can_ask_for_a_snapshot() {
    let mut group = Group::new(1);
    let leader = group.elect();
    group.write(leader, "a");
    let token = group.token();
    group.input(leader, Input::Admin { token, group: GROUP, command: Admin::Snapshot });
    assert_eq!(group.nodes[&leader].raft.status().snapshot.map(|at| at.id.index), Some(LogIndex(2)));
}

/// Seed 60231 of the simulator: the snapshot of what the follower had applied took the place of the newer one that was on its way
/// to the disk, behind which the log had been reset already: neither the state nor the log was there any more.
#[test]
fn a_snapshot_asked_for_while_a_newer_one_is_being_installed_does_not_take_its_place() {
    let mut group = Group::with(3, small);
    let leader = group.elect();
    let away = group.follower();
    group.write(leader, "first");
    group.isolate(away);
    for _ in 0..200 {
        group.write(leader, "x");
    }
    group.heal();
    group.nodes.get_mut(&away).expect("it is there").disk_stopped = true;
    group.run(Duration::from_millis(900));
    let token = group.token();
    group.input(away, Input::Admin { token, group: GROUP, command: Admin::Snapshot });
    group.resume_disk(away);
    group.run(Duration::from_millis(900));
    let events = &group.nodes[&away].events;
    assert!(events.iter().any(|event| matches!(event, Event::SnapshotInstalled { .. })), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::StorageFailed)), "{events:?}");
    assert_eq!(group.list(away), group.list(leader));
}
