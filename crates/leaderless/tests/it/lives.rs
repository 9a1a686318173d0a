//! What becomes of what an owner said, or asked, in an earlier life.

use std::time::Duration;

use replikit_core::dotted::life_of;
use replikit_core::{Input, NodeId, Outcome, ReadLevel, Replica, WriteLevel, WriteRequest};
use replikit_leaderless::{Founding, Head};

use crate::group::Group;

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::LeaderDisk)
}

/// Seed 10220 of multi-leader replication: the next life used the numbers again. Nobody could tell what a life that never was
/// had said from what its successor says.
#[test]
fn nothing_that_counts_by_lives_leaves_before_the_life_is_on_disk() {
    let mut group = Group::new(3, |_| {});
    group.cut.insert((NodeId(3), NodeId(2)));
    group.write(3, put("k", "v"));
    group.kill(NodeId(3));
    group.kill(NodeId(1));
    group.starts_stopped.insert(NodeId(1));
    group.start(NodeId(1));
    // Node 2 lacks what node 3 wrote, and node 1 has it.
    group.link_down(1, 3);
    group.run(Duration::from_millis(500));
    let place = &group.places[&NodeId(1)];
    assert_eq!((place.sent, place.replica.deadline()), (0, None), "it waits for its disk and nothing else");
    assert!(group.replica(2).peek(b"k").is_empty());
    group.resume_disk(NodeId(1));
    group.run(Duration::from_millis(300));
    assert_eq!(group.replica(2).peek(b"k"), ["v"]);
    group.assert_agreed();
}

/// Seed 200271 of leaderless replication: what a reader was shown had seen a write of an incarnation that no disk knew. After a crash
/// its dot named another write, of which the reader then claimed to know.
#[test]
fn nothing_is_shown_before_the_incarnation_is_on_disk() {
    let mut group = Group::new(3, |_| {});
    group.write(1, put("k", "v"));
    group.kill(NodeId(1));
    group.starts_stopped.insert(NodeId(1));
    group.start(NodeId(1));
    group.ask(1, &put("other", "lost"));
    let read = group.query(1, "k", ReadLevel::Local);
    group.deliver();
    assert_eq!(group.outcome(read), None);
    group.resume_disk(NodeId(1));
    assert!(matches!(group.outcome(read), Some(Outcome::Value { .. })), "{:?}", group.outcome(read));
}

/// Node 1 has told everybody of a write that nobody else has, and comes back without it.
fn group_of_a_lost_write() -> Group {
    let mut group = Group::new(3, |_| {});
    group.pushes_lost.insert(NodeId(1));
    group.write(1, put("k", "lost"));
    group.write(2, put("l", "kept"));
    group.run(Duration::from_millis(500));
    group.pushes_lost.clear();
    group.kill(NodeId(1));
    group.lose_disk(NodeId(1));
    group.reconfigure(|config| config.founding = Founding::Ask);
    group
}

#[test]
fn a_read_of_bounded_staleness_does_not_wait_for_a_write_that_was_lost_with_the_only_disk_that_had_it() {
    let mut group = group_of_a_lost_write();
    group.start(NodeId(1));
    group.run(Duration::from_secs(2));
    group.assert_agreed();
    for node in 1..=3 {
        let read = group.query(node, "l", ReadLevel::BoundedStale(Duration::from_millis(300)));
        let outcome = group.outcome(read);
        assert!(matches!(outcome, Some(Outcome::Value { .. })), "node {node} knows how fresh it is: {outcome:?}");
    }
}

#[test]
fn an_owner_that_asks_does_not_wait_for_a_write_that_is_lost_meanwhile() {
    let mut group = group_of_a_lost_write();
    group.start(NodeId(1));
    group.run(Duration::from_secs(1));
    group.pushes_lost.insert(NodeId(1));
    group.write(1, put("k", "lost as well"));
    group.kill(NodeId(3));
    group.lose_disk(NodeId(3));
    group.start(NodeId(3));
    group.run(Duration::from_millis(500));
    assert_eq!(group.replica(3).origin(), None, "it waits for what node 1 says to have");
    group.pushes_lost.clear();
    group.kill(NodeId(1));
    group.lose_disk(NodeId(1));
    group.start(NodeId(1));
    group.run(Duration::from_secs(2));
    assert!((1..=3).all(|node| group.replica(node).origin().is_some()), "all take part again");
    group.assert_agreed();
}

/// Node 1 in its third life. The last report of node 2 before the end of that is on its way to it still.
fn group_with_a_late_report() -> (Group, Input<Head>) {
    let mut group = Group::new(3, |_| {});
    for _ in 0..2 {
        group.kill(NodeId(1));
        group.start(NodeId(1));
        group.run(Duration::from_millis(200));
    }
    group.cut.insert((NodeId(2), NodeId(1)));
    group.run(Duration::from_millis(300));
    group.cut.clear();
    let is_report = |(from, _, message): &(NodeId, NodeId, _)| {
        let message: &replikit_core::Message<Head> = message;
        *from == NodeId(2) && matches!(message.head, Head::Report(_))
    };
    let lost = std::mem::take(&mut group.lost);
    let (from, _, message) = lost.into_iter().rfind(is_report).expect("there was an exchange");
    (group, Input::Message { from, message })
}

#[test]
fn what_an_earlier_life_was_answered_is_no_answer_to_one_that_has_forgotten_it() {
    let (mut group, late) = group_with_a_late_report();
    group.isolate(NodeId(3), true);
    group.write(1, put("k", "v").at(WriteLevel::Quorum));
    group.isolate(NodeId(3), false);
    group.kill(NodeId(1));
    group.lose_disk(NodeId(1));
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.isolate(NodeId(2), true);
    group.start(NodeId(1));
    group.run(Duration::from_millis(300));
    assert_eq!(group.replica(1).origin(), None, "it has heard of its earlier life, and nothing from node 2");
    group.input(NodeId(1), late);
    assert_eq!(group.replica(1).origin(), None, "that was said before node 1 had written what it asks for");
    group.isolate(NodeId(2), false);
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(1, "k", ReadLevel::Local), ["v"]);
}

#[test]
fn a_life_that_only_others_remember_is_written_down() {
    let (mut group, _) = group_with_a_late_report();
    group.kill(NodeId(1));
    group.lose_disk(NodeId(1));
    group.start(NodeId(1));
    group.run(Duration::from_millis(300));
    let life = |group: &Group| {
        let told = group.lost.iter().rev().find_map(|(from, _, message)| match &message.head {
            Head::Report(report) if *from == NodeId(1) => Some(life_of(report.number)),
            _ => None,
        });
        told.expect("it reports")
    };
    group.isolate(NodeId(1), true);
    group.run(Duration::from_millis(200));
    assert_eq!(life(&group), 4, "its disk has forgotten three");
    group.kill(NodeId(1));
    group.start(NodeId(1));
    group.run(Duration::from_millis(200));
    assert_eq!(life(&group), 5);
}
