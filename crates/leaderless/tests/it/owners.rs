//! Owners that change while requests go on.

use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batches, Epoch, Event, Input, Link, Membership, Message, NodeId, Outcome, Owners, ReadLevel, Rejection,
    SessionToken, WriteLevel, WriteRequest,
};
use replikit_leaderless::{Counting, Head, Keyspace, Keyspaces, Ownership};

use crate::group::Group;

const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);
const SECOND: Duration = Duration::from_secs(1);

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::Quorum)
}

fn is_acked(group: &Group, token: u64) -> bool {
    matches!(group.outcome(token), Some(Outcome::Acked { strict: true, .. }))
}

#[test]
fn owners_hand_everything_over_to_others() {
    let mut group = Group::changing(6, 3, |_| {});
    for nth in 0..20 {
        group.write(1 + nth % 3, put(&format!("k{nth}"), "v"));
    }
    group.announce(4..=6);
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[4, 5, 6]), "{:?}", group.places[&NodeId(4)].replica);
    for node in 1..=3 {
        let token = group.ask(node, &put("k", "v"));
        let leader = Some(NodeId(4));
        assert_eq!(group.outcome(token), Some(&Outcome::Rejected(Rejection::NotLeader { leader })));
        assert_eq!(group.told(node, |event| matches!(event, Event::Evicted { .. })), 1);
        group.kill(NodeId(node));
    }
    for nth in 0..20 {
        assert_eq!(group.values(4 + nth % 3, &format!("k{nth}"), QUORUM), ["v"]);
    }
    group.write(4, put("k", "w"));
}

/// `placed` seed 20538: owners of an epoch that was still joint when the next one joined it took themselves for evicted, all at once, and
/// dropped what they had acknowledged.
#[test]
fn owners_of_a_joint_epoch_stay_what_they_are_when_another_one_joins_it() {
    let mut group = Group::changing(7, 3, |_| {});
    group.write(1, put("before", "v"));
    group.announce(4..=6);
    let is_joint = |group: &Group, node: u32, epochs: usize| group.replica(node).ownership().joint.len() == epochs;
    while !(4..=5).all(|node| is_joint(&group, node, 1)) {
        group.run(Duration::from_millis(10));
    }
    // Without a majority of the owners before, it stays joint.
    (2..=3).for_each(|node| group.isolate(NodeId(node), true));
    group.write(4, put("k", "v").at(WriteLevel::LeaderDisk));
    // An owner to be of which nothing is heard is not waited for without end.
    group.isolate(NodeId(7), true);
    group.announce([4, 5, 7]);
    group.run(SECOND * 6);
    assert!((4..=5).all(|node| is_joint(&group, node, 2)), "{:?}", group.replica(4).ownership());
    [2, 3, 7].into_iter().for_each(|node| group.isolate(NodeId(node), false));
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[4, 5, 7]));
    let began_anew = |event: &Event| matches!(event, Event::BeganAnew { .. });
    for node in [4, 5, 7] {
        assert_eq!(group.told(node, began_anew), 0, "node {node}");
    }
    for key in ["k", "before"] {
        assert_eq!(group.values(7, key, QUORUM), ["v"]);
    }
}

#[test]
fn who_owns_nothing_any_more_drops_what_it_had_also_over_a_restart() {
    let mut group = Group::changing(6, 3, |_| {});
    for nth in 0..20 {
        group.write(1 + nth % 3, put(&format!("k{nth}"), "v"));
    }
    // Nobody hears of this one.
    group.pushes_lost.insert(NodeId(2));
    group.isolate(NodeId(2), true);
    group.write(2, put("only", "mine").at(WriteLevel::LeaderDisk));
    group.announce(4..=6);
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[4, 5, 6]));
    group.isolate(NodeId(2), false);
    group.pushes_lost.clear();
    // It still has to be told.
    group.run(SECOND);
    for node in 1..=3 {
        assert_eq!(group.replica(node).figures().keys, 0, "node {node}");
        let retired =
            |event: &Event| matches!(event, Event::Retired { stashed, .. } if *stashed >= u64::from(node == 2));
        assert_eq!(group.told(node, retired), 1, "node {node}");
        group.kill(NodeId(node));
        group.start(NodeId(node));
        assert_eq!(group.replica(node).figures().keys, 0, "node {node}");
    }
    assert_eq!(group.values(4, "k7", QUORUM), ["v"]);
    assert!(group.values(4, "only", QUORUM).is_empty());
    group.announce([2, 4, 5, 6]);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[2, 4, 5, 6]));
    assert_eq!(group.values(6, "only", QUORUM), ["mine"], "it has made that again");
    assert_eq!(group.values(2, "k7", QUORUM), ["v"]);
}

#[test]
fn a_joint_epoch_needs_a_quorum_of_the_owners_before_and_of_those_to_be() {
    let mut group = Group::changing(6, 3, |_| {});
    // Nothing is told of keys that reads have repaired, nor of what is held: the epoch stays joint.
    group.announce(4..=6);
    for _ in 0..200 {
        group.run(Duration::from_millis(10));
        if group.replica(1).ownership().joint.len() == 1 && group.replica(4).ownership().joint.len() == 1 {
            break;
        }
    }
    assert_eq!(group.replica(1).ownership().joint.len(), 1, "some time before it is settled it is joint");
    group.isolate(NodeId(5), true);
    group.isolate(NodeId(6), true);
    let token = group.ask(4, &put("k", "v"));
    group.deliver();
    assert!(!is_acked(&group, token) || group.replica(4).ownership().joint.is_empty(), "one of the owners to be");
}

#[test]
fn who_was_told_of_nothing_takes_the_newer_epoch_from_who_refuses_it_and_goes_on() {
    let mut group = Group::changing(4, 3, |_| {});
    group.write(1, put("k", "v"));
    group.isolate(NodeId(1), true);
    group.announce_to([2, 3, 4], 2..=4);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[2, 3, 4]), "a majority of the owners before was there");
    // What it asks as an owner of the epoch before nobody answers, before and after it can be heard.
    let token = group.ask(1, &put("k", "late"));
    let read = group.query(1, "k", QUORUM);
    group.deliver();
    assert!(group.outcome(token).is_none() && group.outcome(read).is_none());
    group.isolate(NodeId(1), false);
    group.run(SECOND);
    assert!(matches!(group.outcome(token), Some(Outcome::Indeterminate { .. })), "{:?}", group.outcome(token));
    assert!(matches!(group.outcome(read), Some(Outcome::Rejected(Rejection::NotLeader { .. }))));
    assert_eq!(group.told(1, |event| matches!(event, Event::Evicted { .. })), 1);
    assert_eq!(group.values(2, "k", QUORUM), ["v"], "no quorum had it");
}

#[test]
fn a_dead_owner_is_replaced_without_it() {
    let mut group = Group::changing(4, 3, |_| {});
    group.write(3, put("k", "v"));
    group.kill(NodeId(3));
    group.tell_links(NodeId(3), Link::Down);
    group.announce([1, 2, 4]);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[1, 2, 4]));
    group.kill(NodeId(1));
    group.tell_links(NodeId(1), Link::Down);
    assert_eq!(group.values(4, "k", QUORUM), ["v"]);
}

#[test]
fn an_epoch_is_not_left_before_enough_of_the_next_owners_have_what_was_acknowledged() {
    let mut group = Group::changing(5, 3, |_| {});
    // What owner 3 alone has of a weak write no log brings to the others while it cannot be heard.
    group.pushes_lost.insert(NodeId(3));
    group.write(3, put("k", "v").at(WriteLevel::LeaderDisk));
    group.announce(3..=5);
    group.run(SECOND);
    assert!(!group.is_owned_by(&[3, 4, 5]), "two of its owners do not have it");
    let ownership = group.replica(1).ownership();
    assert_eq!(ownership.settled.as_ref().map(|it| it.epoch.0), Some(1));
    group.pushes_lost.clear();
    group.run(SECOND);
    assert!(group.is_owned_by(&[3, 4, 5]));
    assert_eq!(group.values(4, "k", ReadLevel::Local), ["v"]);
}

/// `leaderless-owners` seed 2000273: the batch that was closed before the epochs were taken was reason for a snapshot, which told of
/// neither those before nor those that were taken, and behind which the record of them was released.
#[test]
fn a_snapshot_at_the_moment_when_epochs_are_taken_tells_of_them() {
    let mut group = Group::changing(4, 3, |config| config.limits.snapshot_log_bytes = 8 << 10);
    // What owner 3 alone has keeps the next epoch joint.
    group.pushes_lost.insert(NodeId(3));
    group.write(3, put("only", "v").at(WriteLevel::LeaderDisk));
    group.places.get_mut(&NodeId(1)).expect("it runs").disk_stopped = true;
    group.announce([1, 2, 4]);
    group.run(SECOND);
    let before = group.replica(1).ownership().epoch();
    assert!(group.replica(2).ownership().epoch() > before, "its disk has not taken what it has learned");
    let large = "v".repeat(9 << 10);
    group.ask_as_the_disk_goes_on(1, &put("k", &large));
    assert!(group.told(1, |event| matches!(event, Event::SnapshotTaken { .. })) > 0);
    let taken = group.replica(1).ownership().clone();
    assert!(taken.epoch() > before);
    group.kill(NodeId(1));
    group.start(NodeId(1));
    assert_eq!(group.replica(1).ownership(), &taken);
    group.pushes_lost.clear();
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[1, 2, 4]));
}

#[test]
fn who_leaves_hands_over_what_only_it_has() {
    let mut group = Group::changing(4, 3, |_| {});
    group.pushes_lost.insert(NodeId(1));
    group.write(1, put("k", "v").at(WriteLevel::LeaderDisk));
    group.announce(2..=4);
    group.run(SECOND);
    assert!(!group.is_owned_by(&[2, 3, 4]), "it is there, and has something that nobody else has");
    group.pushes_lost.clear();
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[2, 3, 4]));
    assert_eq!(group.values(3, "k", QUORUM), ["v"]);
}

#[test]
fn who_was_evicted_while_away_comes_back_empty_and_makes_again_what_only_it_had() {
    let mut group = Group::changing(3, 3, |_| {});
    group.write(1, put("gone", "v"));
    group.run(SECOND);
    group.cut_off(NodeId(3));
    group.write(3, put("only", "mine").at(WriteLevel::LeaderDisk));
    group.announce_to([1, 2], 1..=2);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[1, 2]));
    group.write(1, WriteRequest::delete("gone".to_owned()).at(WriteLevel::Quorum));
    group.run(SECOND);
    assert_eq!(group.replica(1).figures().keys, 0, "nobody has to remember the delete");
    group.announce_to([1, 2], 1..=3);
    group.reconnect(NodeId(3));
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[1, 2, 3]));
    assert_eq!(group.told(3, |event| matches!(event, Event::BeganAnew { stashed: 1, .. })), 1);
    for node in 1..=3 {
        assert_eq!(group.values(node, "only", ReadLevel::Local), ["mine"]);
        assert!(group.values(node, "gone", ReadLevel::Local).is_empty(), "what was deleted stays so");
    }
    group.assert_agreed();
}

/// Seed 167 of the simulator: what a write that was made again had come with was forgotten while it was live, so the copies
/// that its owners sent claimed what they had not seen.
#[test]
fn what_was_made_again_under_its_old_name_is_read_from_everybody() {
    let flags = Keyspaces::all(Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Flag)));
    let mut group = Group::changing(3, 3, move |config| config.keyspaces = flags.clone());
    group.run(SECOND);
    group.cut_off(NodeId(3));
    group.write(3, WriteRequest::crdt("on", CrdtOp::Enable).at(WriteLevel::LeaderDisk));
    group.announce_to([1, 2], 1..=2);
    group.run(SECOND * 3);
    group.announce_to([1, 2], 1..=3);
    group.reconnect(NodeId(3));
    group.run(SECOND * 10);
    assert!(group.is_owned_by(&[1, 2, 3]));
    for node in 1..=3 {
        assert_eq!(group.replica(node).lasting(), 1, "its log will never bring it");
        assert_eq!(group.values(node, "on", ReadLevel::Owners(Owners::All)), ["true"]);
        assert_eq!(group.told(node, |event| matches!(event, Event::PeerMisbehaved { .. })), 0);
    }
    group.write(1, WriteRequest::crdt("on", CrdtOp::Disable).at(WriteLevel::Quorum));
    group.run(SECOND * 10);
    for node in 1..=3 {
        assert!(group.values(node, "on", ReadLevel::Owners(Owners::All)).is_empty(), "off");
    }
    group.assert_agreed();
}

/// Seed 1940 of the simulator: a write that had lost was made again under its old name, and came to owners that had forgotten the
/// delete which had won over it.
#[test]
fn where_the_last_write_wins_what_has_lost_is_told_and_not_made_again() {
    let mut group = Group::changing(3, 3, |_| {});
    group.write(1, put("gone", "first"));
    group.run(SECOND);
    group.cut_off(NodeId(3));
    for key in ["k", "gone", "newest"] {
        group.write(3, put(key, "of three").at(WriteLevel::LeaderDisk));
    }
    group.announce_to([1, 2], 1..=2);
    group.run(SECOND * 3);
    group.write(1, put("k", "since"));
    group.announce_to([1, 2], 1..=3);
    group.run(SECOND);
    group.reconnect(NodeId(3));
    group.run(SECOND * 5);
    let told = |event: &Event| matches!(event, Event::Resubmitted { writes: 2, known: 0, dropped: 1 });
    assert_eq!(group.told(3, told), 1);
    assert_eq!(group.replica(3).figures().overwritten, 1, "it is in the audit");
    group.write(2, WriteRequest::delete("k").at(WriteLevel::Quorum));
    group.run(SECOND * 5);
    for node in 1..=3 {
        assert!(group.values(node, "k", ReadLevel::Local).is_empty(), "node {node}");
        assert_eq!(group.values(node, "gone", ReadLevel::Local), ["of three"], "it is the last write");
        assert_eq!(group.replica(node).figures().keys, 2, "nothing is remembered of a delete");
    }
    group.assert_agreed();
}

/// Seed 1183 of the simulator: each owner forgot on its own what a key had seen of a log that is gone, and an older copy of the
/// key came with another owner that had been evicted.
#[test]
fn what_was_overwritten_stays_so_when_another_evicted_owner_brings_it_again() {
    let siblings = Keyspaces::all(Keyspace::new(ConflictPolicy::Siblings));
    let mut group = Group::changing(5, 5, move |config| {
        config.keyspaces = siblings.clone();
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.cache_bytes_max = 4 << 10;
    });
    group.run(SECOND);
    let others = [1, 2, 5];
    others.iter().for_each(|node| group.kill(NodeId(*node)));
    for (node, value) in [(3, "of three"), (4, "of four")] {
        group.ask(node, &put("k", value).at(WriteLevel::LeaderDisk));
    }
    group.run(SECOND);
    assert_eq!(group.values(4, "k", ReadLevel::Local), ["of three", "of four"]);
    for node in [3, 4] {
        group.cut_off(NodeId(node));
    }
    others.iter().for_each(|node| group.start(NodeId(*node)));
    group.announce_to(others, others);
    group.run(SECOND * 3);
    assert!(group.values(1, "k", QUORUM).is_empty());
    group.announce_to(others, [1, 2, 3, 5]);
    group.reconnect(NodeId(3));
    group.run(SECOND * 5);
    let (found, _) = group.read(2, "k", QUORUM);
    assert_eq!(found.values.len(), 2);
    group.write(2, put("k", "one for both").over(found.context.expect("values have one")).at(WriteLevel::Quorum));
    for nth in 0..20 {
        group.write(2, put(&format!("filler{nth}"), &"v".repeat(1000)));
        group.run(SECOND);
    }
    group.announce_to(others, 1..=5);
    group.reconnect(NodeId(4));
    group.run(SECOND * 10);
    assert!(group.is_owned_by(&[1, 2, 3, 4, 5]));
    for node in 1..=5 {
        assert_eq!(group.values(node, "k", ReadLevel::Local), ["one for both"], "node {node}");
    }
    group.assert_agreed();
}

/// Seed 197 of the simulator: a read waited for a write that its node had not heard of, the node dropped its state, and once
/// that write was there the read was answered without another one that had been there before.
#[test]
fn a_read_that_waits_while_its_node_begins_anew_is_refused() {
    let mut group = Group::changing(3, 3, |_| {});
    group.run(SECOND);
    group.cut_off(NodeId(3));
    let mut session = SessionToken::default();
    let writes = [(3, put("own", "v").at(WriteLevel::LeaderDisk)), (1, put("k", "v"))];
    for (node, write) in writes {
        let token = group.ask(node, &write);
        group.deliver();
        let Some(Outcome::Acked { at, .. }) = group.outcome(token) else { panic!("{:?}", group.outcome(token)) };
        session.observe(*at);
    }
    group.announce_to([1, 2], 1..=2);
    group.run(SECOND * 3);
    group.announce_to([1, 2], 1..=3);
    group.run(SECOND);
    let token = group.query(3, "own", ReadLevel::Session(session));
    assert_eq!(group.outcome(token), None, "it has not heard of the other write");
    group.reconnect(NodeId(3));
    group.run(SECOND);
    assert_eq!(group.told(3, |event| matches!(event, Event::BeganAnew { .. })), 1);
    assert_eq!(group.outcome(token), Some(&Outcome::Rejected(Rejection::CatchingUp)));
}

#[test]
fn any_owner_may_crash_at_any_step_of_a_change() {
    for crash in 1..=5_u32 {
        for step in 0..24_u64 {
            let mut group = Group::changing(5, 3, |_| {});
            for nth in 0..5 {
                group.write(1 + nth % 3, put(&format!("k{nth}"), "v"));
            }
            group.announce(3..=5);
            group.run(Duration::from_millis(30 * step));
            group.kill(NodeId(crash));
            group.tell_links(NodeId(crash), Link::Down);
            group.run(Duration::from_millis(100));
            group.start(NodeId(crash));
            group.tell_links(NodeId(crash), Link::Up);
            group.run(SECOND * 3);
            assert!(group.is_owned_by(&[3, 4, 5]), "node {crash} at step {step}");
            for nth in 0..5 {
                let found = group.values(4 + nth % 2, &format!("k{nth}"), QUORUM);
                assert_eq!(found, ["v"], "node {crash} at step {step}");
            }
        }
    }
}

#[test]
fn epochs_that_nodes_hear_of_in_different_ways_come_together() {
    let mut group = Group::changing(5, 3, |_| {});
    group.write(1, put("k", "v"));
    group.announce_to([1, 4], [1, 2, 4]);
    group.announce_to([2, 5], [2, 4, 5]);
    group.announce_to([3], [3, 4, 5]);
    group.run(SECOND * 5);
    assert!(group.is_owned_by(&[3, 4, 5]));
    assert_eq!(group.values(5, "k", QUORUM), ["v"]);
}

#[test]
fn keys_that_are_compared_and_set_follow_the_owners() {
    let mut group = Group::changing(6, 3, |config| {
        config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas());
    });
    let set = |expected: Option<&'static str>, new: &'static str| {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        WriteRequest::compare_and_set("lock/a", expected.map(bytes), Some(bytes(new))).at(WriteLevel::Quorum)
    };
    group.write(1, set(None, "ada"));
    group.announce(4..=6);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[4, 5, 6]));
    (1..=3).for_each(|node| group.kill(NodeId(node)));
    assert_eq!(group.values(5, "lock/a", ReadLevel::Linearizable), ["ada"]);
    group.write(6, set(Some("ada"), "bob"));
    assert_eq!(group.values(4, "lock/a", ReadLevel::Linearizable), ["bob"]);
}

#[test]
fn deletes_are_forgotten_once_the_owners_of_the_epoch_have_them() {
    let mut group = Group::changing(4, 3, |_| {});
    group.write(1, put("k", "v"));
    group.kill(NodeId(3));
    group.tell_links(NodeId(3), Link::Down);
    group.write(1, WriteRequest::delete("k".to_owned()).at(WriteLevel::Quorum));
    group.run(SECOND);
    assert_eq!(group.replica(1).figures().keys, 1, "one owner may not have it");
    group.announce([1, 2, 4]);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[1, 2, 4]));
    assert_eq!(group.replica(1).figures().keys, 0, "that one owns nothing any more");
}

/// An exchange looks at some of the keys that wait for something, each in its turn: those before it have two values, and wait for a
/// client.
#[test]
fn a_delete_is_forgotten_however_many_keys_wait_for_something() {
    let siblings = Keyspaces::default().with("sib/", Keyspace::new(ConflictPolicy::Siblings));
    let mut group = Group::new(2, move |config| config.keyspaces = siblings.clone());
    let many = 5000;
    for nth in 0..many {
        for node in 1..=2 {
            group.ask(node, &put(&format!("sib/{nth:04}"), "v").at(WriteLevel::LeaderDisk));
        }
        if nth % 500 == 0 {
            group.deliver();
        }
    }
    group.write(1, WriteRequest::delete("z".to_owned()).at(WriteLevel::Quorum));
    group.run(SECOND * 2);
    for node in 1..=2 {
        let figures = group.replica(node).figures();
        assert_eq!((figures.keys, figures.unsettled), (many, many), "node {node}");
    }
}

#[test]
fn what_a_fallback_keeps_for_who_owns_nothing_any_more_an_owner_is_told() {
    let mut group = Group::changing_with_fallbacks(3, 1, Counting::TowardsQuorums);
    group.kill(NodeId(2));
    group.kill(NodeId(3));
    group.tell_links(NodeId(2), Link::Down);
    group.tell_links(NodeId(3), Link::Down);
    let token = group.ask(1, &put("k", "v"));
    group.deliver();
    assert!(matches!(group.outcome(token), Some(Outcome::Acked { strict: false, .. })));
    let for_whom = (2..=3).find(|node| !group.fallback(4).keys_for(NodeId(*node)).is_empty()).expect("one of the two");
    let stays = 5 - for_whom;
    group.start(NodeId(stays));
    group.tell_links(NodeId(stays), Link::Up);
    group.link_down(stays, for_whom);
    group.announce([1, stays]);
    group.run(SECOND * 3);
    assert!(group.is_owned_by(&[1.min(stays), 1.max(stays)]));
    assert_eq!(group.fallback(4).kept().0, 0, "an owner has it");
}

/// What `leaderless-hints` seed 1864 lost: of two owners and a fallback that had acknowledged a write, the fallback gave its copy up
/// once the one owner had confirmed it that had the write already, and the other one was evicted.
#[test]
fn what_a_fallback_keeps_for_who_owns_nothing_any_more_it_keeps_until_all_owners_have_it() {
    let mut group = Group::changing_with_fallbacks(5, 1, Counting::TowardsQuorums);
    for node in (3..=5).map(NodeId) {
        group.kill(node);
        group.tell_links(node, Link::Down);
    }
    let token = group.ask(1, &put("k", "v"));
    group.deliver();
    assert!(matches!(group.outcome(token), Some(Outcome::Acked { strict: false, .. })));
    let leaves = (3..=5).find(|node| !group.fallback(6).keys_for(NodeId(*node)).is_empty()).expect("one of the three");
    // Those who have it reach nobody but the fallback from now on, and hand it over no second time; who leaves is not told.
    group.drops = |head| matches!(head, Head::Hint(_));
    group.cut.insert((NodeId(6), NodeId(leaves)));
    for there in (3..=5).map(NodeId) {
        for here in (1..=2).map(NodeId) {
            group.cut.extend([(here, there), (there, here)]);
        }
    }
    for node in (3..=5).map(NodeId) {
        group.start(node);
        group.tell_links(node, Link::Up);
    }
    let stay: Vec<u32> = (3..=5).filter(|node| *node != leaves).collect();
    group.announce([1, stay[0], stay[1]]);
    group.run(SECOND * 3);
    assert_eq!(group.fallback(6).kept().0, 0, "everybody has it");
    for node in stay {
        assert!(!group.replica(node).seen(b"k").is_empty(), "node {node} was told");
    }
}

#[test]
fn a_message_of_other_epochs_is_answered_with_what_is_known_of_them() {
    let mut group = Group::changing(4, 3, |_| {});
    group.announce_to([1], 1..=4);
    group.drops = |head| matches!(head, Head::Epochs(_));
    group.run(SECOND);
    assert!(group.lost.iter().any(|(_, _, message)| matches!(message.head, Head::Epochs(_))));
    assert_eq!(group.replica(2).ownership().announced, None, "it was told nothing");
    group.drops = |_| false;
    group.run(SECOND * 2);
    assert!(group.is_owned_by(&[1, 2, 3, 4]), "one node that has heard of it is enough");
}

/// What `leaderless-owners` seed 7890 never came to the end of: two owners that wait for their disks with what they have learned of
/// epochs, each of which knows on its disk what the other does not.
#[test]
fn nodes_that_wait_for_their_disks_do_not_tell_each_other_of_epochs_without_end() {
    let mut group = Group::changing(3, 3, |_| {});
    let (first, second, third) = (NodeId(1), NodeId(2), NodeId(3));
    let settled = group.replica(1).ownership().clone();
    let with_joint = |epochs: &[u64]| {
        let membership = settled.settled.clone().expect("founded");
        let joint = epochs.iter().map(|epoch| Membership { epoch: Epoch(*epoch), ..membership.clone() }).collect();
        Ownership { joint, ..settled.clone() }
    };
    let say = |group: &mut Group, from, to, ownership| {
        let message = Message { head: Head::Epochs(Box::new(ownership)), batches: Batches::None };
        group.input(to, Input::Message { from, message });
    };
    // On the disk of the second; the first has heard of a later one.
    say(&mut group, third, second, with_joint(&[2]));
    (0..4).for_each(|_| group.announce_to([], 1..=3));
    group.announce_to([1], 1..=3);
    group.places.get_mut(&first).expect("runs").disk_stopped = true;
    group.places.get_mut(&second).expect("runs").disk_stopped = true;
    group.wire.clear();
    // On their way to the disks.
    say(&mut group, second, first, with_joint(&[2]));
    say(&mut group, third, second, with_joint(&[2, 3]));
    let mut told = 0;
    while let Some((from, to, message)) = group.wire.pop_front() {
        told += usize::from(matches!(message.head, Head::Epochs(_)));
        assert!(told < 20, "they go on and on");
        if to != third {
            group.input(to, Input::Message { from, message });
        }
    }
    assert!(told > 0, "they know of different epochs");
    group.resume_disk(first);
    group.resume_disk(second);
    group.run(SECOND * 5);
    assert!(group.is_owned_by(&[1, 2, 3]));
}

/// `leaderless-owners` seed 8270: the only disk that had the write was that of an owner that left.
#[test]
fn a_write_at_one_owner_is_on_a_disk_that_stays() {
    let mut group = Group::changing(3, 3, |_| {});
    group.announce(2..=3);
    group.isolate(NodeId(2), true);
    for _ in 0..200 {
        group.run(Duration::from_millis(10));
        if [1, 3].iter().all(|node| group.replica(*node).ownership().joint.len() == 1) {
            break;
        }
    }
    assert_eq!(group.replica(3).ownership().joint.len(), 1, "no majority of the next owners can be heard");
    group.places.get_mut(&NodeId(3)).expect("runs").disk_stopped = true;
    let tokens = [WriteLevel::LeaderDisk, WriteLevel::Durable(1), WriteLevel::Owners(Owners::One)]
        .map(|level| group.ask(3, &put("k", "v").at(level)));
    group.deliver();
    assert!(tokens.iter().all(|token| group.outcome(*token).is_none()), "only the disk of one that leaves has it");
    group.resume_disk(NodeId(3));
    group.deliver();
    for token in tokens {
        assert!(matches!(group.outcome(token), Some(Outcome::Acked { .. })), "{:?}", group.outcome(token));
    }
}

/// `leaderless-owners` seed 36046: of a weak write the only disk was that of an owner that was evicted; its writer had crashed.
#[test]
fn who_was_evicted_while_away_makes_again_what_others_wrote_and_only_it_had() {
    for key in ["sib", "lww/k"] {
        let mut group = Group::changing(3, 3, |config| {
            config.keyspaces = Keyspaces::default().with("lww/", Keyspace::new(ConflictPolicy::Lww));
        });
        group.run(SECOND);
        group.cut_off(NodeId(2));
        group.places.get_mut(&NodeId(1)).expect("runs").disk_stopped = true;
        let token = group.ask(1, &put(key, "v").at(WriteLevel::LeaderDisk));
        group.deliver();
        assert!(matches!(group.outcome(token), Some(Outcome::Acked { .. })), "on the disk of node 3");
        group.kill(NodeId(1));
        group.tell_links(NodeId(1), Link::Down);
        group.cut_off(NodeId(3));
        group.start(NodeId(1));
        group.reconnect(NodeId(2));
        group.isolate(NodeId(3), true);
        group.announce_to([1, 2], 1..=2);
        group.run(SECOND * 3);
        assert!(group.is_owned_by(&[1, 2]));
        assert!(group.values(1, key, QUORUM).is_empty());
        group.announce_to([1, 2], 1..=3);
        group.reconnect(NodeId(3));
        group.run(SECOND * 5);
        assert!(group.is_owned_by(&[1, 2, 3]));
        for node in 1..=3 {
            assert_eq!(group.values(node, key, ReadLevel::Local), ["v"], "node {node}");
        }
        group.assert_agreed();
    }
}

#[test]
fn an_epoch_is_not_in_force_before_its_new_owners_have_what_the_others_have() {
    let mut group = Group::changing(4, 3, |_| {});
    for nth in 0..20 {
        group.write(1 + nth % 3, put(&format!("k{nth}"), "v"));
    }
    // Owner 4 is heard of, and gets nothing.
    group.pushes_lost.extend((1..=3).map(NodeId));
    group.drops = |head| matches!(head, Head::Piece(_));
    group.announce(2..=4);
    group.run(SECOND * 6);
    for node in 1..=4 {
        let ownership = group.replica(node).ownership();
        assert_eq!(ownership.epoch(), Epoch(1), "node {node}: {ownership:?}");
    }
    group.pushes_lost.clear();
    group.drops = |_| false;
    group.run(SECOND);
    assert!(group.is_owned_by(&[2, 3, 4]));
    group.kill(NodeId(3));
    group.tell_links(NodeId(3), Link::Down);
    assert_eq!(group.values(4, "k7", QUORUM), ["v"]);
}

#[test]
fn who_leaves_answers_those_who_wait_for_it() {
    let mut group = Group::changing(4, 3, |_| {});
    // Others have what it writes, but it does not hear so.
    group.drops = |head| matches!(head, Head::Stored(_));
    let token = group.ask(1, &put("k", "v"));
    group.announce(2..=4);
    group.run(SECOND / 2);
    assert!(!group.is_owned_by(&[2, 3, 4]));
    assert!(group.outcome(token).is_none(), "{:?}", group.outcome(token));
    group.drops = |_| false;
    group.run(SECOND);
    assert!(group.is_owned_by(&[2, 3, 4]));
    assert!(is_acked(&group, token), "{:?}", group.outcome(token));
}
