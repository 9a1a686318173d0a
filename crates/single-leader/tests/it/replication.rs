//! Replication: logs converge, sessions apply once, misbehaviour changes nothing.

use std::time::Duration;

use bytes::Bytes;
use replikit_core::*;
use replikit_single_leader::{Append, Head};

use crate::group::*;

#[test]
fn a_write_at_quorum_is_applied_everywhere() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    group.write(leader, "b");
    for id in [1, 2, 3].map(node) {
        assert_eq!(group.list(id), "a,b");
    }
}

#[test]
fn commands_of_one_round_share_a_batch_and_its_messages() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "warm");
    let before = group.sent;
    let now = Now { mono: group.now, wall: WallTime(0) };
    for i in 0..50 {
        let command = Input::Command {
            token: Token(1000 + i),
            group: GROUP,
            level: WriteLevel::Quorum,
            session: None,
            body: "x".into(),
        };
        group.nodes.get_mut(&leader).unwrap().raft.handle(now, command);
    }
    group.input(leader, Input::Timer);
    group.settle();
    assert!(group.outcomes.contains_key(&1049));
    assert_eq!(group.sent - before, 6, "two appends, two acknowledgements, two notices of the commit index");
}

#[test]
fn a_restarted_group_holds_everything() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    for id in [1, 2, 3].map(node) {
        group.kill(id);
    }
    for id in [1, 2, 3].map(node) {
        group.start(id, &[]);
    }
    let leader = group.elect();
    group.write(leader, "b");
    for id in [1, 2, 3].map(node) {
        assert_eq!(group.list(id), "a,b");
    }
}

#[test]
fn a_follower_that_was_away_catches_up_from_the_log() {
    let mut group = Group::with(3, |config| config.limits.cache_bytes_max = 1);
    let leader = group.elect();
    let away = group.follower();
    group.isolate(away);
    for _ in 0..20 {
        group.write(leader, "x");
    }
    group.heal();
    group.run(Duration::from_millis(300));
    assert_eq!(group.list(away), group.list(leader));
}

#[test]
fn a_follower_whose_confirmed_tail_was_cut_catches_up_under_the_same_leader() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    group.write(leader, "b");
    group.run(Duration::from_millis(200));
    let cut = group.follower();
    group.kill(cut);
    group.cut_tail(cut);
    group.start(cut, &[StreamId::consensus(GROUP)]);
    group.run(Duration::from_millis(200));
    assert_eq!(group.leader(), Some(leader));
    assert_eq!(group.list(cut), "a,b");
}

#[test]
fn lost_messages_are_sent_again() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let mut tokens = Vec::new();
    for i in 0..30 {
        tokens.push(group.command(leader, WriteLevel::Quorum, "x"));
        if i % 3 == 0 {
            group.wire.pop_back();
        }
        if i % 4 == 0 {
            group.wire.pop_front();
        }
        if i % 7 == 0 {
            group.settle();
        }
    }
    group.run(Duration::from_millis(300));
    for token in tokens {
        assert!(matches!(group.outcomes.get(&token), Some(Outcome::Acked { .. })), "{token}");
    }
}

#[test]
fn duplicated_and_reordered_messages_change_nothing() {
    let mut group = Group::new(3);
    let leader = group.elect();
    for _ in 0..10 {
        group.command(leader, WriteLevel::Quorum, "x");
    }
    let mut again: Vec<_> = group.wire.iter().cloned().collect();
    again.reverse();
    group.wire.extend(again);
    group.run(Duration::from_millis(300));
    for id in [1, 2, 3].map(node) {
        assert_eq!(group.list(id), ["x"; 10].join(","));
    }
}

fn open_session(group: &mut Group, at: NodeId) -> SessionId {
    let token = group.token();
    group.input(at, Input::OpenSession { token, group: GROUP });
    group.settle();
    match &group.outcomes[&token.0] {
        Outcome::Acked { reply, .. } => SessionId(u64::from_le_bytes(reply[..].try_into().unwrap())),
        other => panic!("no session: {other:?}"),
    }
}

#[test]
fn a_retry_under_the_same_session_is_applied_once_also_by_another_leader() {
    let mut group = Group::new(3);
    let old = group.elect();
    let session = open_session(&mut group, old);
    let request = Some(SessionSeq { session, sequence: 1 });
    let first = group.session_command(old, WriteLevel::Quorum, request, "once");
    group.settle();
    group.kill(old);
    group.run(Duration::from_millis(100));
    let new = group.leader().unwrap();
    let retry = group.session_command(new, WriteLevel::Quorum, request, "once");
    group.settle();
    assert_eq!(group.list(new), "once");
    let (Outcome::Acked { at: a, reply: x, .. }, Outcome::Acked { at: b, reply: y, .. }) =
        (&group.outcomes[&first], &group.outcomes[&retry])
    else {
        panic!("both are acknowledged");
    };
    assert_eq!((a.id, x), (b.id, y), "the retry gets the first answer");
}

#[test]
fn two_copies_of_a_request_in_flight_are_applied_once() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let session = open_session(&mut group, leader);
    let request = Some(SessionSeq { session, sequence: 1 });
    let first = group.session_command(leader, WriteLevel::Quorum, request, "once");
    let second = group.session_command(leader, WriteLevel::Quorum, request, "once");
    group.settle();
    assert_eq!(group.list(leader), "once");
    assert!(matches!(group.outcomes[&first], Outcome::Acked { .. }));
    assert!(matches!(group.outcomes[&second], Outcome::Acked { .. }));
}

#[test]
fn a_request_of_an_unknown_session_is_refused_and_not_applied() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let request = Some(SessionSeq { session: SessionId(999), sequence: 1 });
    let token = group.session_command(leader, WriteLevel::Quorum, request, "never");
    group.settle();
    assert_eq!(group.outcomes[&token], Outcome::Rejected(Rejection::SessionExpired));
    assert_eq!(group.list(leader), "");
}

#[test]
fn limits_reject_with_the_limit_named() {
    let mut group = Group::with(3, |config| {
        config.limits.command_bytes_max = 10;
        config.limits.uncommitted_bytes_max = 400;
    });
    let leader = group.elect();
    let large = group.command(leader, WriteLevel::Quorum, "longer than ten bytes");
    assert_eq!(group.outcomes[&large], Outcome::Rejected(Rejection::TooLarge { bytes: 21, bytes_max: 10 }));
    let level = WriteLevel::Durable(4);
    let many = group.command(leader, level, "x");
    assert_eq!(group.outcomes[&many], Outcome::Rejected(Rejection::Unreachable { level, replicas: 3 }));
    group.isolate(leader);
    let last = (0..20).map(|_| group.command(leader, WriteLevel::Quorum, "x")).last().unwrap();
    let busy = Rejection::Busy { queue: Queue::UncommittedBytes, limit: 400 };
    assert_eq!(group.outcomes[&last], Outcome::Rejected(busy));
}

#[test]
fn a_leader_of_an_old_term_is_told_so_and_steps_down() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.isolate(old);
    group.command(old, WriteLevel::Memory, "lost");
    group.run(Duration::from_millis(150));
    // Still convinced that it leads, or not: it must not after it hears of the new term.
    group.heal();
    group.run(Duration::from_secs(1));
    let leaders = group.nodes.values().filter(|node| node.raft.role() == Role::Leader).count();
    assert_eq!(leaders, 1);
}

#[test]
fn messages_of_strangers_and_impossible_claims_are_reported_and_change_nothing() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    let before = group.nodes[&leader].raft.status();
    let term = group.nodes[&leader].raft.term();
    let mut say = |from: u32, head: Head| {
        let message = Message { head, batches: Batches::None };
        group.input(leader, Input::Message { from: node(from), message });
    };
    let append = Append {
        term,
        prev: LogId::ZERO,
        commit: LogIndex(u64::MAX),
        last: LogIndex(u64::MAX),
        round: u64::MAX,
        want_received: true,
        want_applied: true,
    };
    say(9, Head::Append(Append { term: Term(u64::MAX), ..append }));
    let other = if leader == node(1) { 2 } else { 1 };
    say(other, Head::Append(append));
    let ack = replikit_single_leader::AppendAck {
        term,
        round: u64::MAX,
        received: LogIndex(u64::MAX),
        durable: LogIndex(u64::MAX),
        applied: LogIndex(u64::MAX),
    };
    say(other, Head::AppendAck(ack));
    let node = &group.nodes[&leader];
    assert_eq!(node.raft.status(), before);
    let reports = node.events.iter().filter(|event| matches!(event, Event::PeerMisbehaved { .. })).count();
    assert_eq!(reports, 3);
}

#[test]
fn arbitrary_heads_never_panic() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    let samples: Vec<Head> = sample_heads();
    for round in 0..20_000 {
        let head = &samples[rng.usize(..samples.len())];
        let mut bytes = encode(head);
        let at = rng.usize(1..bytes.len());
        bytes[at] = rng.u8(..);
        if let Some(head) = decode(&bytes) {
            let to = node(rng.u32(1..=3));
            let from = node(rng.u32(1..=3));
            if to != from && group.nodes[&to].raft.term().0 < u64::MAX / 4 {
                let batches = Batches::None;
                group.input(to, Input::Message { from, message: Message { head, batches } });
                group.wire.truncate(20);
            }
        }
        if round % 100 == 0 {
            group.run(Duration::from_millis(10));
        }
    }
}

fn sample_heads() -> Vec<Head> {
    use replikit_single_leader::*;
    let (term, index) = (Term(1), LogIndex(1));
    let id = LogId { term, index };
    let at = Position { stream: StreamId::consensus(GROUP), id, digest: 1 };
    vec![
        Head::Append(Append {
            term,
            prev: id,
            commit: index,
            last: index,
            round: 1,
            want_received: true,
            want_applied: true,
        }),
        Head::AppendAck(AppendAck { term, round: 1, received: index, durable: index, applied: index }),
        Head::AppendReject(AppendReject { term, round: 1, prev: index, hint: id }),
        Head::PreVote(Vote { term, last: id, unanimous: true }),
        Head::PreVoteReply(VoteReply { term, asked: term, granted: true, last: id }),
        Head::Vote(Vote { term, last: id, unanimous: false }),
        Head::VoteReply(VoteReply { term, asked: term, granted: true, last: id }),
        Head::ReadIndex(ReadIndex { term, id: 1 }),
        Head::ReadIndexReply(ReadIndexReply { term, id: 1, index, last: index }),
        Head::SnapshotPiece(Box::new(SnapshotPiece {
            term,
            at,
            offset: 0,
            piece: Bytes::from("abc"),
            last: true,
            round: 1,
        })),
        Head::SnapshotAck(SnapshotAck { term, at, offset: 0, round: 1 }),
        Head::TimeoutNow(TimeoutNow { term }),
    ]
}

fn encode(head: &Head) -> Vec<u8> {
    postcard::to_stdvec(head).unwrap()
}

fn decode(bytes: &[u8]) -> Option<Head> {
    postcard::from_bytes(bytes).ok()
}
