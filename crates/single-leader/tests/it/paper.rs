//! One test per claim of the paper. Section numbers are those of Ongaro and Ousterhout, ATC'14.

use replikit_core::*;
use replikit_single_leader::{Append, Head, Vote};

use crate::group::*;

fn say(group: &mut Group, from: u32, to: u32, head: Head) -> Vec<Head> {
    group.wire.clear();
    let message = Message { head, batches: Batches::None };
    group.input(node(to), Input::Message { from: node(from), message });
    group
        .wire
        .drain(..)
        .filter(|(_, receiver, _)| *receiver == node(from))
        .map(|(_, _, message)| message.head)
        .collect()
}

fn append(term: u64, prev: LogId) -> Head {
    let index = LogIndex::ZERO;
    let term = Term(term);
    Head::Append(Append { term, prev, commit: index, last: index, round: 1, want_received: true, want_applied: false })
}

/// Reference: section 5.1.
#[test]
fn a_server_that_sees_a_larger_term_enters_it_and_follows() {
    let mut group = Group::new(3);
    say(&mut group, 1, 2, append(9, LogId::ZERO));
    assert_eq!((group.nodes[&node(2)].raft.term(), group.nodes[&node(2)].raft.role()), (Term(9), Role::Follower));
}

/// Reference: section 5.1.
#[test]
fn a_server_rejects_a_request_with_a_stale_term() {
    let mut group = Group::new(3);
    say(&mut group, 1, 2, append(9, LogId::ZERO));
    let replies = say(&mut group, 3, 2, append(8, LogId::ZERO));
    assert!(matches!(&replies[..], [Head::AppendReject(reject)] if reject.term == Term(9)), "{replies:?}");
}

/// Reference: section 5.2.
#[test]
fn a_server_votes_for_at_most_one_candidate_in_a_term() {
    let mut group = Group::new(3);
    let vote = Vote { term: Term(5), last: LogId::ZERO, unanimous: false };
    let granted = |replies: &[Head]| matches!(replies, [Head::VoteReply(reply)] if reply.granted);
    assert!(granted(&say(&mut group, 1, 2, Head::Vote(vote))));
    assert!(!granted(&say(&mut group, 3, 2, Head::Vote(vote))));
    assert!(granted(&say(&mut group, 1, 2, Head::Vote(vote))), "the same candidate may ask again");
    // Also after a restart.
    group.kill(node(2));
    group.start(node(2), &[]);
    assert!(!granted(&say(&mut group, 3, 2, Head::Vote(vote))));
    assert!(granted(&say(&mut group, 1, 2, Head::Vote(vote))));
}

/// Reference: section 5.4.1.
#[test]
fn a_voter_denies_its_vote_if_its_own_log_is_more_up_to_date() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "a");
    let last = group.nodes[&leader].raft.last().id;
    let voter = group.follower();
    let candidate = (1..=3).find(|&n| node(n) != leader && node(n) != voter).unwrap();
    let older = LogId { term: last.term, index: last.index.prev() };
    let shorter_but_newer = LogId { term: last.term.next(), index: LogIndex(1) };
    for (term, log, granted) in [(101, older, false), (102, last, true), (103, shorter_but_newer, true)] {
        let vote = Vote { term: Term(term), last: log, unanimous: false };
        let replies = say(&mut group, candidate, voter.0, Head::Vote(vote));
        assert!(matches!(&replies[..], [Head::VoteReply(reply)] if reply.granted == granted), "{log:?}: {replies:?}");
    }
}

/// Reference: section 5.3.
#[test]
fn a_follower_rejects_entries_whose_predecessor_it_does_not_hold() {
    let mut group = Group::new(3);
    let missing = LogId { term: Term(1), index: LogIndex(7) };
    let replies = say(&mut group, 1, 2, append(1, missing));
    assert!(matches!(&replies[..], [Head::AppendReject(reject)] if reject.hint == LogId::ZERO), "{replies:?}");
}

/// Reference: section 5.4.2.
#[test]
fn entries_of_earlier_terms_are_committed_only_behind_one_of_the_own_term() {
    let mut group = Group::new(3);
    let old = group.elect();
    for id in [1, 2, 3].map(node) {
        group.nodes.get_mut(&id).unwrap().disk_stopped = id != old;
    }
    group.command(old, WriteLevel::Quorum, "a");
    group.settle();
    let uncommitted = group.nodes[&old].raft.last().id.index;
    assert!(group.nodes[&old].raft.commit_index() < uncommitted);
    for id in [1, 2, 3].map(node) {
        group.resume_disk(id);
    }
    group.kill(old);
    let new = group.elect();
    group.settle();
    let raft = &group.nodes[&new].raft;
    assert!(raft.commit_index() > uncommitted);
    assert_eq!(raft.term_at(raft.commit_index()), Some(raft.term()));
    assert_eq!(group.list(new), "a");
}

/// Reference: section 8.
#[test]
fn a_new_leader_commits_an_entry_of_its_term_without_being_asked() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    assert!(group.nodes[&leader].raft.commit_index() >= LogIndex(1));
}
