//! Read levels at leaders and followers.

use std::time::Duration;

use replikit_core::*;

use crate::group::*;

#[test]
fn a_linearizable_read_sees_the_last_write_at_every_replica() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    for id in [1, 2, 3].map(node) {
        let read = group.query(id, ReadLevel::Linearizable);
        group.settle();
        assert_eq!(group.answer(read), "a", "at {id:?}");
    }
}

#[test]
fn a_leader_that_was_deposed_without_knowing_it_answers_no_linearizable_read() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.write(old, "a");
    group.isolate(old);
    // The others elect and write while the old leader's process stands still.
    let mut others: Vec<NodeId> = [1, 2, 3].map(node).into_iter().filter(|&id| id != old).collect();
    let frozen = group.nodes.remove(&old).unwrap();
    group.run(Duration::from_millis(600));
    let new = group.leader().expect("a new leader");
    group.write(new, "b");
    group.nodes.insert(old, frozen);
    let read = group.query(old, ReadLevel::Linearizable);
    group.settle();
    assert!(!group.outcomes.contains_key(&read), "nobody confirms the old leader");
    group.run(Duration::from_secs(2));
    assert!(matches!(group.outcomes[&read], Outcome::Rejected(Rejection::NotLeader { .. })));
    others.clear();
}

#[test]
fn many_reads_share_one_confirmation() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    let before = group.sent;
    let now = Now { mono: group.now, wall: WallTime(0) };
    for i in 0..100 {
        let level = ReadLevel::Linearizable;
        let query = Input::Query { token: Token(1000 + i), group: GROUP, level, body: "".into(), bytes_max: 100 };
        group.nodes.get_mut(&leader).unwrap().raft.handle(now, query);
    }
    group.input(leader, Input::Timer);
    group.settle();
    assert_eq!(group.answer(1099), "a");
    assert_eq!(group.sent - before, 4, "one question and one answer for each follower");
}

#[test]
fn a_new_leader_answers_reads_only_after_it_committed_in_its_own_term() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.write(old, "a");
    group.kill(old);
    // Stop the disks of the survivors right when one of them wins, so that it cannot commit.
    while group.leader().is_none() {
        group.run(Duration::from_millis(1));
    }
    let new = group.leader().unwrap();
    let fresh = group.query(new, ReadLevel::Linearizable);
    group.run(Duration::from_millis(50));
    assert_eq!(group.answer(fresh), "a");
    let status = group.nodes[&new].raft.status();
    assert_eq!(group.nodes[&new].raft.term_at(status.commit_index), Some(status.term));
}

#[test]
fn a_session_reads_its_own_write_at_a_lagging_follower_only_once_it_is_there() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let lagging = group.follower();
    group.isolate(lagging);
    let at = group.write(leader, "mine");
    let mut session = SessionToken::new();
    session.observe(at);
    let read = group.query(lagging, ReadLevel::Session(session));
    let stale = group.query(lagging, ReadLevel::Local);
    assert_eq!(group.answer(stale), "", "a local read says what is there");
    assert!(!group.outcomes.contains_key(&read));
    group.heal();
    group.run(Duration::from_millis(200));
    assert_eq!(group.answer(read), "mine");
}

#[test]
fn bounded_staleness_is_kept_by_proof_and_not_by_clocks() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let follower = group.follower();
    group.write(leader, "a");
    let bound = ReadLevel::BoundedStale(Duration::from_millis(50));
    let first = group.query(follower, bound.clone());
    group.settle();
    assert_eq!(group.answer(first), "a");
    group.run(Duration::from_millis(20));
    let before = group.sent;
    let second = group.query(follower, bound.clone());
    let Outcome::Value { staleness: Some(age), .. } = &group.outcomes[&second] else { panic!("served at once") };
    assert!(*age <= Duration::from_millis(50) && group.sent == before);
    group.isolate(follower);
    group.run(Duration::from_millis(60));
    let third = group.query(follower, bound);
    assert!(!group.outcomes.contains_key(&third), "the proof is too old, and no new one comes");
}
