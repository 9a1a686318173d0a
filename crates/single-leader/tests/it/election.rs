//! Elections: who leads, when, and who must not.

use std::time::Duration;

use replikit_core::*;
use replikit_single_leader::{Head, Vote};

use crate::group::*;

#[test]
fn a_group_elects_one_leader_and_all_follow_it() {
    for n in [1, 2, 3, 5] {
        let mut group = Group::new(n);
        let leader = group.elect();
        group.run(Duration::from_millis(100));
        for (id, node) in &group.nodes {
            assert_eq!(node.raft.status().leader, Some(leader), "{id:?} of {n}");
        }
    }
}

#[test]
fn survivors_of_a_killed_leader_elect_within_one_heartbeat_and_a_half() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.write(old, "a");
    group.kill(old);
    group.run(Duration::from_millis(45));
    let new = group.leader().expect("a reset link is enough to ask for an election at once");
    assert_ne!(new, old);
    group.write(new, "b");
}

#[test]
fn a_replica_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let lonely = group.follower();
    let term = group.nodes[&leader].raft.term();
    group.isolate(lonely);
    group.run(Duration::from_secs(3));
    group.heal();
    group.run(Duration::from_millis(500));
    assert_eq!(group.leader(), Some(leader));
    assert_eq!(group.nodes[&lonely].raft.term(), term, "pre-votes do not raise the term");
}

#[test]
fn a_leader_that_cannot_reach_a_quorum_steps_down_and_its_writes_are_in_doubt() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.isolate(old);
    let write = group.command(old, WriteLevel::Quorum, "a");
    group.run(Duration::from_millis(400));
    assert_ne!(group.nodes[&old].raft.role(), Role::Leader);
    assert!(matches!(group.outcomes[&write], Outcome::Indeterminate { .. }));
    assert!(group.leader().is_some_and(|leader| leader != old));
}

/// The leader of three, the member whose tail is to be cut, and the one that lags behind.
fn three(group: &mut Group) -> [NodeId; 3] {
    let leader = group.elect();
    let mut others = [1, 2, 3].map(node).into_iter().filter(|&id| id != leader);
    [leader, others.next().expect("three"), others.next().expect("three")]
}

/// The first two commit a write, and are stopped.
fn commit_on_two(group: &mut Group, [leader, cut, lagging]: [NodeId; 3]) {
    group.isolate(lagging);
    group.write(leader, "acknowledged by the leader and the one whose tail is cut");
    group.kill(cut);
    group.kill(leader);
    group.heal();
}

#[test]
fn a_replica_whose_tail_was_cut_does_not_vote_for_a_log_that_may_lack_what_it_acknowledged() {
    let mut group = Group::new(3);
    let members @ [leader, cut, _] = three(&mut group);
    commit_on_two(&mut group, members);
    group.start(cut, &[StreamId::consensus(GROUP)]);
    assert!(group.nodes[&cut].events.contains(&Event::TailCut { stream: StreamId::consensus(GROUP) }));
    group.run(Duration::from_secs(3));
    assert_eq!(group.leader(), None, "one member is missing, and it may hold more");
    group.start(leader, &[]);
    let new = group.elect();
    group.run(Duration::from_millis(100));
    for id in [1, 2, 3].map(node) {
        assert!(group.list(id).starts_with("acknowledged"), "{id:?} under {new:?}");
    }
}

/// `partitioned-log` seed 701293: the log tells of a cut tail until the group's next register, which said nothing of it; after another
/// crash the replica voted as if it remembered everything, and a committed write was gone.
#[test]
fn a_replica_whose_tail_was_cut_remembers_that_over_another_crash() {
    for asked in [false, true] {
        let mut group = Group::new(3);
        let members @ [leader, cut, lagging] = three(&mut group);
        commit_on_two(&mut group, members);
        group.cut_tail(cut);
        group.start(cut, &[StreamId::consensus(GROUP)]);
        if asked {
            // Its ballot is written for that.
            let vote = Vote { term: Term(9), last: LogId::default(), unanimous: false };
            let message = Message { head: Head::Vote(vote), batches: Batches::None };
            group.input(cut, Input::Message { from: lagging, message });
        }
        group.kill(cut);
        // The log tells it no more once a register was written.
        let told = [StreamId::consensus(GROUP)];
        group.start(cut, if asked { &[] } else { &told });
        group.run(Duration::from_secs(3));
        assert_eq!(group.leader(), None, "one member is missing, and it holds more");
        group.start(leader, &[]);
        group.elect();
        group.run(Duration::from_millis(100));
        assert!([1, 2, 3].map(node).iter().all(|id| group.list(*id).starts_with("acknowledged")));
        // It has caught up, and says so in its register: two of three suffice again.
        group.kill(cut);
        group.start(cut, &[]);
        group.run(Duration::from_millis(200));
        group.kill(leader);
        group.run(Duration::from_secs(2));
        assert!(group.leader().is_some());
    }
}

#[test]
fn a_replica_whose_tail_was_cut_votes_again_once_it_has_caught_up() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    let cut = group.follower();
    group.kill(cut);
    group.start(cut, &[StreamId::consensus(GROUP)]);
    group.run(Duration::from_millis(200));
    group.kill(leader);
    group.run(Duration::from_millis(400));
    assert!(group.leader().is_some(), "two of three suffice again");
}

/// Seeds 2239 and 5000646 of Raft on the real log: a message from before the crash was taken for what the leader holds now.
#[test]
fn a_message_of_a_former_life_does_not_make_a_cut_memory_whole() {
    let mut group = Group::new(3);
    let members @ [leader, cut, _] = three(&mut group);
    let mut old = None;
    while old.is_none() {
        group.now = group.now + Duration::from_millis(1);
        group.input(leader, Input::Timer);
        let append = |(from, to, message): &&(NodeId, NodeId, Message<Head>)| {
            *from == leader && *to == cut && matches!(message.head, Head::Append(_))
        };
        old = group.wire.iter().find(append).map(|(_, _, message)| message.clone());
    }
    group.settle();
    commit_on_two(&mut group, members);
    group.cut_tail(cut);
    group.start(cut, &[StreamId::consensus(GROUP)]);
    group.input(cut, Input::Message { from: leader, message: old.unwrap() });
    group.run(Duration::from_secs(3));
    assert_eq!(group.leader(), None, "the one that lacks the write must not lead");
}

#[test]
fn all_members_with_cut_tails_elect_the_longest_log() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    for id in [1, 2, 3].map(node) {
        group.kill(id);
    }
    for id in [1, 2, 3].map(node) {
        group.start(id, &[StreamId::consensus(GROUP)]);
    }
    let new = group.elect();
    group.run(Duration::from_millis(50));
    assert_eq!(group.list(new), "a");
}

#[test]
fn a_vote_leaves_only_after_the_ballot_is_on_disk() {
    let mut group = Group::new(3);
    let voter = node(2);
    group.nodes.get_mut(&voter).unwrap().disk_stopped = true;
    let vote = Vote { term: Term(7), last: LogId::ZERO, unanimous: false };
    group.wire.clear();
    let message = Message { head: Head::Vote(vote), batches: Batches::None };
    group.input(voter, Input::Message { from: node(1), message });
    assert!(group.wire.is_empty(), "the vote is held");
    group.resume_disk(voter);
    let granted = group.wire.iter().any(|(_, _, m)| matches!(&m.head, Head::VoteReply(reply) if reply.granted));
    assert!(granted);
}

#[test]
fn a_stalled_disk_hands_leadership_away() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.write(old, "a");
    group.input(old, Input::Storage { event: StorageEvent::Slow });
    group.settle();
    let new = group.leader().expect("another one leads at once");
    assert_ne!(new, old);
}

#[test]
fn a_failed_disk_ends_leadership_and_promises_nothing_more() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.nodes.get_mut(&old).unwrap().disk_stopped = true;
    let write = group.command(old, WriteLevel::Quorum, "a");
    group.input(old, Input::Storage { event: StorageEvent::Failed });
    assert!(matches!(group.outcomes[&write], Outcome::Indeterminate { .. }));
    let later = group.command(old, WriteLevel::Memory, "b");
    assert_eq!(group.outcomes[&later], Outcome::Rejected(Rejection::StorageFailed));
    group.run(Duration::from_millis(800));
    let new = group.leader().expect("the others elect");
    assert_ne!(new, old);
}
