//! What owners do for a request, message by message.

use std::time::Duration;

use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    CausalContext, NodeId, OriginId, Outcome, Owners, ReadLevel, Rejection, StreamId, WriteLevel, WriteRequest,
};
use replikit_leaderless::{Config, Founding, Keyspace, Keyspaces, Quorums, ReadRepair, Size};

use crate::group::{GROUP, Group};

const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);
const ALL: ReadLevel = ReadLevel::Owners(Owners::All);
const HOUR: i64 = 3_600_000_000_000;

fn group() -> Group {
    Group::new(3, |config| config.keyspaces = Keyspaces::default().with("note/", siblings()))
}

fn siblings() -> Keyspace {
    Keyspace::new(ConflictPolicy::Siblings)
}

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::Quorum)
}

#[test]
fn a_write_is_acknowledged_by_w_owners_and_read_by_r() {
    let mut group = group();
    group.isolate(NodeId(3), true);
    let token = group.ask(1, &put("k", "v"));
    assert!(group.outcome(token).is_none(), "one of two owners that are needed");
    group.deliver();
    let Some(Outcome::Acked { reached, strict, .. }) = group.outcome(token) else { panic!("two owners have it") };
    assert_eq!((reached.applied, reached.durable, *strict), (2, 2, true));

    let token = group.query(2, "k", QUORUM);
    assert!(group.outcome(token).is_none(), "one of two owners that are needed");
    group.deliver();
    assert!(matches!(group.outcome(token), Some(Outcome::Value { strict: true, .. })));
    let (versions, strict) = group.read(2, "k", ReadLevel::Local);
    assert_eq!((versions.values.len(), strict), (1, false), "one owner is not a quorum");
}

#[test]
fn a_level_that_the_group_cannot_meet_is_refused() {
    let mut group = group();
    let token = group.ask(1, &put("k", "v").at(WriteLevel::Durable(4)));
    assert!(matches!(group.outcome(token), Some(Outcome::Rejected(Rejection::Unreachable { replicas: 3, .. }))));
    for level in [ReadLevel::Linearizable, ReadLevel::Replicas(4)] {
        let token = group.query(1, "k", level);
        assert_eq!(group.outcome(token), Some(&Outcome::Rejected(Rejection::Unsupported)));
    }
}

#[test]
fn the_sizes_of_quorums_are_what_the_level_quorum_asks_for() {
    let exactly =
        |read, write| Quorums { read: Size::Exactly(read), write: Size::Exactly(write), durable: Size::Exactly(write) };
    for (read, write) in [(1, 1), (2, 2), (1, 3), (3, 1)] {
        let mut group = Group::new(3, move |config: &mut Config| config.quorums = exactly(read, write));
        let token = group.ask(1, &put("k", "v"));
        assert_eq!(group.outcome(token).is_some(), write == 1, "W = {write}");
        group.deliver();
        assert!(matches!(group.outcome(token), Some(Outcome::Acked { reached, .. }) if reached.durable >= write));
        let token = group.query(1, "k", QUORUM);
        assert_eq!(group.outcome(token).is_some(), read == 1, "R = {read}");
        group.deliver();
        let overlap = read + write > 3;
        assert!(matches!(group.outcome(token), Some(Outcome::Value { strict, .. }) if *strict == overlap));
    }
}

#[test]
fn a_write_behind_a_newer_one_is_stamped_anew_and_wins_whatever_the_clocks_say() {
    let mut group = group();
    group.skew.insert(NodeId(1), HOUR);
    group.isolate(NodeId(3), true);
    group.write(1, put("k", "first, by a clock that is an hour ahead"));

    // Node 3 has not heard of it, and node 1 cannot be asked.
    group.isolate(NodeId(3), false);
    group.isolate(NodeId(1), true);
    assert_eq!(group.replica(3).figures().restamped, 0);
    group.write(3, put("k", "later"));
    assert_eq!(group.replica(3).figures().restamped, 1, "node 2 said that it is behind");
    assert_eq!(group.values(2, "k", ReadLevel::Local), ["later"]);

    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(3));
    for node in 1..=3 {
        assert_eq!(group.values(node, "k", ReadLevel::Local), ["later"], "node {node}");
    }
    group.assert_agreed();
}

/// Found by the bench: where one owner is enough, a write that came to another one behind a later write waited for ever.
#[test]
fn a_write_that_one_owner_is_enough_for_does_not_wait_because_another_has_a_later_one() {
    let one = Quorums { read: Size::Exactly(1), write: Size::Exactly(1), durable: Size::Exactly(1) };
    let mut group = Group::new(3, move |config: &mut Config| config.quorums = one);
    for node in [1, 3] {
        group.places.get_mut(&NodeId(node)).unwrap().disk_stopped = true;
    }
    group.cut.insert((NodeId(1), NodeId(2)));
    let token = group.ask(1, &put("k", "earlier"));
    group.deliver();
    group.ask(3, &put("k", "later, and it has seen the earlier one"));
    group.deliver();
    assert!(group.outcome(token).is_none(), "it is on no disk");
    group.cut.remove(&(NodeId(1), NodeId(2)));
    group.run(Duration::from_secs(1));
    assert!(matches!(group.outcome(token), Some(Outcome::Acked { .. })), "{:?}", group.outcome(token));
}

/// Found by the bench: reads of anything waited for the disk as long as an answer about something else did.
#[test]
fn a_read_waits_for_its_own_key_to_be_on_disk_and_for_no_other() {
    let mut group = group();
    group.write(1, put("old", "v"));
    group.run(Duration::from_secs(1));
    for node in [2, 3] {
        group.places.get_mut(&NodeId(node)).unwrap().disk_stopped = true;
    }
    group.ask(1, &put("new", "v"));
    group.deliver();
    let (local, waiting) = (group.query(2, "new", ReadLevel::Local), group.query(1, "new", QUORUM));
    group.deliver();
    assert!(group.outcome(local).is_none() && group.outcome(waiting).is_none(), "a crash could take it back");
    let (here, there) = (group.query(2, "old", ReadLevel::Local), group.query(1, "old", QUORUM));
    group.deliver();
    for token in [here, there] {
        assert!(matches!(group.outcome(token), Some(Outcome::Value { .. })), "{:?}", group.outcome(token));
    }
    group.resume_disk(NodeId(2));
    group.deliver();
    for token in [local, waiting] {
        assert!(matches!(group.outcome(token), Some(Outcome::Value { .. })), "{:?}", group.outcome(token));
    }
}

/// Owners that were told of something by reads, counted over all coordinators, and what the disks have stored.
fn repairs(group: &Group) -> (u64, u64) {
    let told = (1..=3).map(|node| group.replica(node).figures().repaired).sum();
    (told, group.places.values().map(|place| place.appends).sum())
}

#[test]
fn a_second_read_repairs_nothing() {
    // scylladb#8970: a repaired replica was repaired again by every read.
    for (repair, coordinator) in [(ReadRepair::Blocking, 2), (ReadRepair::Blocking, 3), (ReadRepair::Async, 2)] {
        let mut group = Group::new(3, move |config| {
            (config.repair, config.keyspaces) = (repair, Keyspaces::default().with("note/", siblings()));
        });
        group.isolate(NodeId(3), true);
        group.write(1, put("k", "v"));
        group.write(1, put("note/k", "v"));
        group.isolate(NodeId(3), false);
        // Nodes 2 and 3 ask each other: one of them lacks the writes.
        group.isolate(NodeId(1), true);
        group.link_down(2, 1);
        group.link_down(3, 1);
        for key in ["k", "note/k"] {
            let before = repairs(&group);
            assert_eq!(group.values(coordinator, key, QUORUM), ["v"]);
            let after = repairs(&group);
            assert_eq!(after.0, before.0 + 1, "node 3 is told, coordinator {coordinator}");
            for reader in [2, 3, coordinator] {
                assert_eq!(group.values(reader, key, QUORUM), ["v"]);
            }
            assert_eq!(repairs(&group), after, "{repair:?}, coordinator {coordinator}, {key}");
        }
        // The write itself comes later, and changes nothing.
        group.isolate(NodeId(1), false);
        group.run(Duration::from_secs(3));
        assert_eq!(group.values(3, "note/k", ReadLevel::Local), ["v"]);
        group.assert_agreed();
    }
}

#[test]
fn without_repair_an_owner_that_knows_less_is_not_told() {
    let mut group = Group::new(3, |config| config.repair = ReadRepair::Off);
    group.isolate(NodeId(3), true);
    group.write(1, put("k", "v"));
    group.isolate(NodeId(3), false);
    group.isolate(NodeId(1), true);
    group.link_down(3, 1);
    assert_eq!(group.values(3, "k", QUORUM), ["v"], "node 2 has it");
    assert_eq!(group.values(3, "k", ReadLevel::Local), Vec::<String>::new());
    assert_eq!(repairs(&group).0, 0);
}

#[test]
fn a_dead_owner_fails_no_quorum_request() {
    for dead in 1..=3 {
        let mut group = group();
        group.kill(NodeId(dead));
        let alive: Vec<u32> = (1..=3).filter(|node| *node != dead).collect();
        for (round, node) in alive.iter().cycle().take(20).enumerate() {
            let value = round.to_string();
            let write = group.ask(*node, &put("k", &value));
            group.deliver();
            assert!(matches!(group.outcome(write), Some(Outcome::Acked { strict: true, .. })), "round {round}");
            for reader in &alive {
                let read = group.query(*reader, "k", QUORUM);
                // Nobody has said that the owner is gone: another one is asked once it has been silent for a moment.
                group.run(Duration::from_millis(30));
                assert!(matches!(group.outcome(read), Some(Outcome::Value { strict: true, .. })), "round {round}");
            }
        }
        group.start(NodeId(dead));
        group.run(Duration::from_secs(3));
        assert_eq!(group.values(dead, "k", ReadLevel::Local), ["19"]);
        group.assert_agreed();
    }
}

#[test]
fn a_key_with_more_siblings_than_a_batch_takes_is_repaired_all_the_same() {
    let mut group = group();
    group.isolate(NodeId(3), true);
    for n in 0..20 {
        let value = format!("{n:02}{}", "x".repeat((1 << 20) - 2));
        group.write(1, put("note/big", &value).over(CausalContext::new()));
    }
    group.isolate(NodeId(3), false);
    group.isolate(NodeId(1), true);
    group.link_down(3, 1);
    let read = group.query(3, "note/big", QUORUM);
    group.run(Duration::from_millis(50));
    assert!(group.outcome(read).is_some(), "it has ended, if only to say that the answer is too large");
    assert_eq!(group.replica(3).peek(b"note/big").len(), 20);
    group.kill(NodeId(3));
    group.start(NodeId(3));
    assert_eq!(group.replica(3).peek(b"note/big").len(), 20, "it was on disk");
}

#[test]
fn siblings_collapse_with_a_context() {
    let mut group = group();
    let level = WriteLevel::LeaderDisk;
    // Nothing is delivered between them: neither has seen the other.
    group.ask(1, &put("note/cart", "milk").at(level));
    group.ask(2, &put("note/cart", "bread").at(level));
    group.deliver();
    let (versions, _) = group.read(3, "note/cart", QUORUM);
    assert_eq!(versions.values.len(), 2, "nothing is lost");
    group.write(3, put("note/cart", "milk, bread").over(versions.context.unwrap()));
    for node in 1..=3 {
        assert_eq!(group.values(node, "note/cart", QUORUM), ["milk, bread"], "node {node}");
    }
    group.run(Duration::from_secs(2));
    assert_eq!(group.replica(1).lasting(), 0);
    group.assert_agreed();
}

#[test]
fn an_owner_with_an_empty_disk_is_not_counted_before_it_has_caught_up() {
    let mut group = group();
    group.isolate(NodeId(3), true);
    group.write(1, put("k", "v"));
    group.isolate(NodeId(3), false);
    // Of the two that acknowledged, node 2 loses its disk, and does not hear from node 1.
    group.kill(NodeId(2));
    group.lose_disk(NodeId(2));
    group.isolate(NodeId(1), true);
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(2));
    group.link_down(3, 1);
    group.run(Duration::from_millis(500));
    assert_eq!(group.replica(2).origin(), None);
    let refused = group.query(2, "k", QUORUM);
    assert_eq!(group.outcome(refused), Some(&Outcome::Rejected(Rejection::CatchingUp)));
    let read = group.query(3, "k", QUORUM);
    group.run(Duration::from_millis(500));
    assert!(group.outcome(read).is_none(), "nodes 2 and 3 would say that there is nothing");

    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(3));
    let shown = group.outcome(read);
    assert!(matches!(shown, Some(Outcome::Value { strict: true, .. })), "{shown:?}");
    assert_eq!(group.values(2, "k", ALL), ["v"]);
    assert!(group.replica(2).origin().is_some());
    group.assert_agreed();
}

/// Seed 24109 of the simulator: every owner remembered for ever that a key had seen such a write.
#[test]
fn a_write_that_was_lost_with_its_owners_disk_is_forgotten_once_a_client_has_deleted_it() {
    let mut group = group();
    group.isolate(NodeId(2), true);
    let alone = group.ask(2, &put("note/k", "v").at(WriteLevel::LeaderDisk));
    group.deliver();
    assert!(matches!(group.outcome(alone), Some(Outcome::Acked { strict: false, .. })));
    let (versions, _) = group.read(2, "note/k", ReadLevel::Local);
    group.kill(NodeId(2));
    group.lose_disk(NodeId(2));
    group.isolate(NodeId(2), false);
    let seen = versions.context.expect("a value has one");
    group.write(1, WriteRequest::delete("note/k").at(WriteLevel::Quorum).over(seen.clone()));
    assert_eq!(group.replica(1).figures().keys, 1, "the write that it had seen may still come from node 2");
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(2));
    group.run(Duration::from_secs(2));
    for node in 1..=3 {
        let figures = group.replica(node).figures();
        assert_eq!((figures.keys, figures.unsettled), (0, 0), "node {node}");
    }
    // And it says nothing of what that node writes from then on: no dot is given away twice.
    group.write(2, put("note/k", "kept"));
    group.write(1, put("note/k", "new").over(seen));
    assert_eq!(group.values(3, "note/k", ALL), ["new", "kept"]);
}

#[test]
fn answers_of_few_owners_are_compared_with_what_the_others_have() {
    let one = Quorums { read: Size::Exactly(1), write: Size::Exactly(1), durable: Size::Exactly(1) };
    let mut group = Group::new(3, move |config| config.quorums = one);
    group.isolate(NodeId(3), true);
    group.write(1, put("k", "v"));
    group.run(Duration::from_millis(40));
    group.isolate(NodeId(3), false);
    assert!(group.values(3, "k", QUORUM).is_empty(), "the write has not come there");
    let measured = group.replica(3).figures().staleness;
    assert_eq!((measured.checked, measured.stale), (1, 1));
    assert!(measured.worst > Duration::from_millis(30), "{measured:?}");
    assert_eq!(group.values(2, "k", QUORUM), ["v"]);
    let measured = group.replica(2).figures().staleness;
    assert_eq!((measured.checked, measured.stale), (1, 0));
}

#[test]
fn a_node_whose_log_was_cut_still_asks_when_it_is_started_once_more() {
    let mut group = group();
    group.write(1, put("k", "v"));
    group.kill(NodeId(2));
    group.isolate(NodeId(2), true);
    group.start_after(NodeId(2), vec![StreamId { group: GROUP, origin: OriginId::LOCAL }]);
    group.run(Duration::from_millis(300));
    for _ in 0..2 {
        assert_eq!(group.replica(2).origin(), None);
        // The log tells of the cut until a register was written.
        group.kill(NodeId(2));
        group.start(NodeId(2));
        group.run(Duration::from_millis(300));
    }
    assert_eq!(group.replica(2).origin(), None, "it has not heard from anybody yet");
    group.isolate(NodeId(2), false);
    group.run(Duration::from_secs(1));
    assert!(group.replica(2).origin().is_some());
    group.kill(NodeId(2));
    group.start(NodeId(2));
    assert!(group.replica(2).origin().is_some(), "it has asked");
}
