//! Hibernation: when a group sleeps, what wakes it, and that it is never without a leader for ever.

use std::collections::VecDeque;
use std::time::Duration;

use replikit_core::*;
use replikit_single_leader::{Head, Sleep};

use crate::group::*;

const LONG: Duration = Duration::from_millis(600);

/// A group whose nodes sleep when nothing happens, after a first write.
fn group(n: u32) -> (Group, NodeId) {
    let mut group = Group::with(n, |config| config.hibernate_after = Some(Duration::from_millis(100)));
    let leader = group.elect();
    group.write(leader, "a");
    (group, leader)
}

fn asleep(n: u32) -> (Group, NodeId) {
    let (mut group, leader) = group(n);
    group.run(LONG);
    assert!(group.sleeps(), "nothing has happened for long");
    (group, leader)
}

impl Group {
    fn sleeps(&self) -> bool {
        self.nodes.values().all(|node| node.raft.is_asleep())
    }

    /// As a driver says that watches nodes.
    fn tell(&mut self, of: NodeId, link: Link) {
        for id in self.nodes.keys().copied().filter(|id| *id != of).collect::<Vec<_>>() {
            self.input(id, Input::Peer { node: of, link });
        }
    }
}

#[test]
fn a_group_that_sleeps_says_nothing_and_waits_for_nothing() {
    for n in [1, 2, 3, 5] {
        let (mut group, leader) = asleep(n);
        let said = group.sent;
        group.run(Duration::from_secs(60));
        assert_eq!(group.sent, said, "{n} nodes");
        assert!(group.nodes.values().all(|node| node.raft.deadline().is_none()));
        assert_eq!(group.leader(), Some(leader));
    }
}

#[test]
fn a_group_never_sleeps_unless_its_driver_watches_nodes() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    group.run(Duration::from_secs(5));
    assert!(group.nodes.values().all(|node| !node.raft.is_asleep()));
}

#[test]
fn a_write_wakes_the_group_and_is_acknowledged_in_one_round_trip() {
    let (mut group, leader) = asleep(3);
    group.write(leader, "b");
    assert!(!group.sleeps());
    group.run(LONG);
    assert!(group.sleeps());
    assert!(group.nodes.keys().all(|id| group.list(*id) == "a,b"));
}

#[test]
fn a_linearizable_read_at_a_sleeping_follower_wakes_the_group_and_is_confirmed() {
    let (mut group, _) = asleep(3);
    let follower = group.follower();
    let said = group.sent;
    let read = group.query(follower, ReadLevel::Linearizable);
    group.settle();
    assert_eq!(group.answer(read), "a");
    assert!(group.sent > said, "a quorum was asked");
}

#[test]
fn a_read_that_is_too_stale_at_a_sleeping_follower_asks_the_leader() {
    let (mut group, _) = asleep(3);
    let follower = group.follower();
    group.run(Duration::from_secs(10));
    let read = group.query(follower, ReadLevel::BoundedStale(Duration::from_millis(50)));
    group.settle();
    assert!(
        matches!(&group.outcomes[&read], Outcome::Value { staleness: Some(age), .. } if *age <= Duration::from_millis(50))
    );
}

#[test]
fn a_local_read_wakes_nobody() {
    let (mut group, _) = asleep(3);
    let (follower, said) = (group.follower(), group.sent);
    let read = group.query(follower, ReadLevel::Local);
    group.run(LONG);
    assert_eq!((group.answer(read), group.sent), ("a".to_owned(), said));
    assert!(group.sleeps());
}

#[test]
fn sleeping_followers_elect_when_they_are_told_that_the_node_of_their_leader_is_gone() {
    for link in [Link::Down, Link::Reset] {
        let (mut group, old) = asleep(3);
        group.isolate(old);
        group.tell(old, link);
        group.run(LONG);
        let new = group.leader().expect("there is a majority");
        assert_ne!(new, old);
        group.write(new, "b");
        group.run(LONG);
        assert!(group.nodes[&new].raft.is_asleep(), "one whose node is gone keeps nobody awake");
    }
}

#[test]
fn a_leader_that_left_somebody_behind_wakes_when_its_node_is_back() {
    let (mut group, leader) = group(3);
    let lost = group.follower();
    group.isolate(lost);
    group.input(leader, Input::Peer { node: lost, link: Link::Down });
    group.write(leader, "b");
    group.run(LONG);
    assert!(group.nodes[&leader].raft.is_asleep());
    group.heal();
    // Its own timer would wake the leader as well.
    group.input(leader, Input::Peer { node: lost, link: Link::Up });
    group.settle();
    assert_eq!(group.list(lost), "a,b");
    group.run(LONG);
    assert!(group.sleeps());
    assert_eq!(group.leader(), Some(leader));
}

#[test]
fn a_leader_waits_for_a_follower_that_is_behind_while_its_node_is_there() {
    let (mut group, leader) = group(3);
    let lost = group.follower();
    group.isolate(lost);
    group.write(leader, "b");
    group.run(LONG * 10);
    assert!(!group.nodes[&leader].raft.is_asleep(), "it may be back at any moment without being told of");
}

#[test]
fn a_follower_that_was_started_anew_wakes_the_leader_and_catches_up() {
    let (mut group, leader) = asleep(3);
    let other = group.follower();
    group.kill(other);
    group.write(leader, "b");
    group.run(LONG);
    assert!(group.nodes[&leader].raft.is_asleep());
    let term = group.nodes[&leader].raft.term();
    group.start(other, &[]);
    group.run(LONG);
    assert_eq!(group.list(other), "a,b");
    assert_eq!((group.leader(), group.nodes[&leader].raft.term()), (Some(leader), term), "nobody was deposed");
    group.tell(other, Link::Up);
    group.run(LONG);
    assert!(group.sleeps());
}

#[test]
fn a_sleeping_follower_refuses_a_pre_vote_and_wakes_its_leader() {
    let (mut group, leader) = asleep(3);
    let lonely = group.follower();
    let term = group.nodes[&leader].raft.term();
    // Only the leader does not hear it.
    group.cut.insert((lonely, leader));
    group.input(lonely, Input::Peer { node: leader, link: Link::Down });
    group.run(Duration::from_millis(200));
    assert!(!group.nodes[&leader].raft.is_asleep(), "the other follower has told it");
    group.run(LONG);
    assert_eq!((group.leader(), group.nodes[&leader].raft.term()), (Some(leader), term));
}

#[test]
fn a_question_to_sleep_that_was_lost_is_asked_again() {
    let (mut group, leader) = group(3);
    let follower = group.follower();
    group.write(leader, "b");
    group.run(Duration::from_millis(60));
    group.cut.insert((leader, follower));
    group.run(Duration::from_millis(100));
    group.heal();
    group.run(LONG);
    assert!(group.sleeps());
}

/// Lets time pass, with messages that are on their way for so long.
fn run_slowly(group: &mut Group, duration: Duration, delay: Duration) {
    let (end, mut under_way) = (group.now + duration, VecDeque::new());
    while group.now < end {
        group.now = group.now + Duration::from_millis(1);
        let now = group.now;
        for id in group.nodes.keys().copied().collect::<Vec<_>>() {
            if group.nodes[&id].raft.deadline().is_some_and(|at| at <= now) {
                group.input(id, Input::Timer);
            }
        }
        while let Some((_, (from, to, message))) = under_way.pop_front_if(|(at, _)| *at <= now) {
            group.input(to, Input::Message { from, message });
        }
        under_way.extend(group.wire.drain(..).map(|message| (now + delay, message)));
    }
}

#[test]
fn a_group_whose_answers_take_longer_than_a_heartbeat_sleeps_all_the_same() {
    let (mut group, leader) = group(3);
    run_slowly(&mut group, Duration::from_secs(1), Duration::from_millis(40));
    assert!(group.sleeps());
    assert_eq!(group.leader(), Some(leader));
}

#[test]
fn an_old_question_to_sleep_does_not_put_a_follower_to_sleep_that_lacks_an_entry() {
    let (mut group, leader) = asleep(3);
    let follower = group.follower();
    let (term, last) = (group.nodes[&leader].raft.term(), group.nodes[&leader].raft.last().id);
    group.write(leader, "b");
    for round in [1, u64::MAX] {
        let head = Head::Sleep(Sleep { term, round, last });
        let message = Message { head, batches: Batches::None };
        group.input(follower, Input::Message { from: leader, message });
        assert!(!group.nodes[&follower].raft.is_asleep());
    }
}

#[test]
fn a_follower_agrees_to_sleep_only_with_the_leader_of_its_term() {
    let (mut group, leader) = asleep(3);
    let follower = group.follower();
    let other = group.nodes.keys().copied().find(|id| *id != leader && *id != follower).expect("there are three");
    let (term, last) = (group.nodes[&leader].raft.term(), group.nodes[&leader].raft.last().id);
    group.input(follower, Input::Peer { node: leader, link: Link::Down });
    assert!(!group.nodes[&follower].raft.is_asleep());
    for (from, term) in [(other, term), (leader, Term(term.0 - 1))] {
        let message = Message { head: Head::Sleep(Sleep { term, round: u64::MAX, last }), batches: Batches::None };
        group.input(follower, Input::Message { from, message });
        assert!(!group.nodes[&follower].raft.is_asleep());
    }
}

#[test]
fn a_leader_that_was_replaced_while_it_slept_learns_of_it() {
    let (mut group, old) = asleep(3);
    group.isolate(old);
    group.tell(old, Link::Down);
    group.run(LONG);
    let new = group.leader().expect("there is a majority");
    group.write(new, "b");
    group.run(LONG);
    assert!(group.nodes[&old].raft.is_asleep() && group.nodes[&old].raft.role() == Role::Leader);
    // A read at the old leader is not answered by it alone.
    let read = group.query(old, ReadLevel::Linearizable);
    group.settle();
    assert_eq!(group.outcomes.get(&read), None);
    group.heal();
    group.tell(old, Link::Up);
    group.run(LONG);
    assert_eq!(group.list(old), "a,b");
    assert_eq!(group.answer(read), "a,b");
    assert!(group.sleeps());
}

#[test]
fn followers_of_a_leader_whose_disk_grew_slow_elect_another_one() {
    let (mut group, old) = asleep(3);
    group.input(old, Input::Storage { event: StorageEvent::Slow });
    group.run(LONG * 3);
    let new = group.leader().expect("the best follower was asked to lead");
    assert_ne!(new, old);
    assert!(group.sleeps());
}

/// `raft-groups` seed 109 showed that a question whose answer was lost was never asked again, unless somebody read.
#[test]
fn a_replica_whose_tail_was_cut_asks_its_leader_until_it_is_answered_and_then_sleeps() {
    let (mut group, leader) = group(3);
    let cut = group.follower();
    group.kill(cut);
    group.cut_tail(cut);
    group.start(cut, &[StreamId::consensus(GROUP)]);
    group.cut.insert((cut, leader));
    group.run(Duration::from_millis(60));
    group.heal();
    group.tell(cut, Link::Up);
    group.run(LONG);
    assert_eq!(group.list(cut), "a");
    assert!(group.sleeps());
}
