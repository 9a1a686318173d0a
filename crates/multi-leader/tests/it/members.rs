//! Membership by epoch: who is asked, whose writes count, and how a node that was evicted comes back.

use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::*;
use replikit_multi_leader::{Config, Home, Keyspace, Keyspaces, Topology, home};

use crate::group::Group;

const SECOND: Duration = Duration::from_secs(1);

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned())
}

fn many_kinds(config: &mut Config) {
    let crdt = |kind| Keyspace::new(ConflictPolicy::Crdt(kind));
    config.keyspaces = Keyspaces::default()
        .with("s/", Keyspace::new(ConflictPolicy::Siblings))
        .with("c/", crdt(CrdtKind::Counter))
        .with("e/", crdt(CrdtKind::Set));
}

#[test]
fn a_delete_is_collected_as_soon_as_the_member_that_never_heard_of_it_is_evicted() {
    let mut group = Group::new(3, |_| {});
    group.write(1, put("k", "v"));
    group.run(SECOND);
    group.kill(NodeId(3));
    group.write(1, WriteRequest::delete("k"));
    group.run(SECOND * 3);
    assert_eq!(group.replica(1).figures().unsettled, 1, "no clock evicts anybody");
    group.begin_epoch(&[1, 2]);
    group.run(SECOND);
    for node in [1, 2] {
        assert_eq!(group.replica(node).figures().keys, 0);
    }
}

#[test]
fn an_evicted_node_takes_no_writes_as_soon_as_it_knows_and_its_operator_is_told() {
    let mut group = Group::new(3, |_| {});
    group.begin_epoch(&[1, 2]);
    let refused = Outcome::Rejected(Rejection::StaleRoute { current: Epoch(2) });
    assert_eq!(group.outcome(3, &put("k", "v")), refused);
    assert!(group.told(3, |event| *event == Event::Evicted { epoch: Epoch(2) }));
    assert!(
        group.told(1, |event| matches!(event, Event::EpochBegun { epoch: Epoch(2), members } if members.len() == 2))
    );
    group.write(1, put("k", "v"));
    group.run(SECOND);
    assert!(group.values(3, "k").is_empty(), "and is sent nothing");
    assert_eq!(group.replica(1).status().epoch, Epoch(2));
}

#[test]
fn all_members_agree_how_much_of_an_evicted_node_counts_whoever_of_them_had_it() {
    let mut group = Group::new(4, |_| {});
    group.run(SECOND);
    // Only node 2 gets the first write, nobody the second.
    group.cut.extend([(NodeId(4), NodeId(1)), (NodeId(4), NodeId(3))]);
    let first = group.write(4, put("a", "one got it"));
    for (from, to, message) in std::mem::take(&mut group.wire) {
        if to == NodeId(2) {
            group.places.get_mut(&to).unwrap().replica.handle(Now::default(), Input::Message { from, message });
        }
    }
    group.isolate(NodeId(4), true);
    group.write(4, put("a", "nobody got it"));
    group.plan(&[1, 2, 3]);
    for node in [1, 3, 2] {
        group.tell(node);
    }
    // Late, and of the epoch before: it is not taken any more.
    group.isolate(NodeId(4), false);
    group.run(SECOND * 2);
    for node in 1..=3 {
        assert_eq!(group.values(node, "a"), ["one got it"]);
        let closed = |event: &Event| matches!(event, Event::OriginClosed { stream, last } if stream.origin == first.origin && last.0 == first.sequence);
        assert!(group.told(node, closed), "node {node} tells how far it counts");
    }
    group.assert_agreed_at(&[1, 2, 3]);
}

#[test]
fn an_evicted_node_comes_back_and_makes_its_unsent_writes_again_once() {
    let mut group = Group::new(3, many_kinds);
    group.write(1, put("lww", "first"));
    group.write(1, put("s/x", "first"));
    group.write(3, WriteRequest::add("c/n", 5));
    group.write(3, WriteRequest::crdt("e/s", CrdtOp::Insert { element: "old".into() }));
    group.run(SECOND);
    group.isolate(NodeId(3), true);
    // Unsent: replaces what it has seen, counts, removes and adds.
    group.write(3, put("lww", "unsent"));
    let seen = group.read(3, "s/x").context.unwrap();
    group.write(3, put("s/x", "unsent").over(seen));
    group.write(3, WriteRequest::add("c/n", 7));
    group.write(3, WriteRequest::crdt("e/s", CrdtOp::Remove { element: "old".into() }));
    group.write(3, WriteRequest::crdt("e/s", CrdtOp::Insert { element: "new".into() }));
    group.begin_epoch(&[1, 2]);
    group.run(SECOND);
    group.write(2, put("s/x", "meanwhile"));
    group.write(2, WriteRequest::add("c/n", 100));
    group.run(SECOND);
    group.isolate(NodeId(3), false);
    group.begin_epoch(&[1, 2, 3]);
    group.run(SECOND * 3);
    group.assert_agreed();
    let again = |event: &Event| matches!(event, Event::Resubmitted { writes: 4, dropped: 0, .. });
    assert!(group.told(3, again), "{:?}", group.places[&NodeId(3)].events);
    for node in 1..=3 {
        assert_eq!(group.values(node, "lww"), ["unsent"]);
        assert_eq!(group.values(node, "s/x"), ["meanwhile", "unsent"], "what it had replaced stays replaced");
        assert_eq!(group.values(node, "c/n"), ["112"], "each addition counts once");
        assert_eq!(group.values(node, "e/s"), ["new"]);
        assert!(group.audit(node).contains(&Some(Bytes::from("first"))), "what nobody was told of is on record");
    }
    // And once more: nothing is left to be made again.
    group.begin_epoch(&[1, 2]);
    group.run(SECOND);
    group.begin_epoch(&[1, 2, 3]);
    group.run(SECOND * 3);
    group.assert_agreed();
    assert_eq!((group.values(1, "c/n"), group.values(3, "s/x").len()), (vec!["112".to_owned()], 2));
}

#[test]
fn a_write_that_reached_somebody_before_the_eviction_is_recognised_by_its_dot() {
    let mut group = Group::new(3, many_kinds);
    group.cut.insert((NodeId(3), NodeId(1)));
    group.write(3, put("s/x", "reached two"));
    group.write(3, WriteRequest::add("c/n", 1));
    group.deliver();
    group.isolate(NodeId(3), true);
    group.begin_epoch(&[1, 2]);
    group.run(SECOND);
    group.isolate(NodeId(3), false);
    group.begin_epoch(&[1, 2, 3]);
    group.run(SECOND * 3);
    group.assert_agreed();
    assert!(group.told(3, |event| matches!(event, Event::Resubmitted { writes: 0, .. })));
    assert_eq!(
        (group.values(1, "s/x"), group.values(1, "c/n")),
        (vec!["reached two".to_owned()], vec!["1".to_owned()])
    );
}

#[test]
fn a_node_that_missed_the_epoch_which_evicted_it_learns_of_that_from_the_next_one() {
    let mut group = Group::new(3, many_kinds);
    group.run(SECOND);
    group.isolate(NodeId(3), true);
    let before = group.write(3, put("lww", "unsent"));
    group.plan(&[1, 2]);
    group.tell(1);
    group.tell(2);
    group.run(SECOND);
    group.write(1, WriteRequest::delete("lww"));
    group.run(SECOND);
    group.isolate(NodeId(3), false);
    group.plan(&[1, 2, 3]);
    for node in 1..=3 {
        group.tell(node);
    }
    assert!(group.told(3, |event| matches!(event, Event::BeganAnew { .. })));
    group.run(SECOND * 3);
    group.assert_agreed();
    assert_eq!(group.values(1, "lww"), ["unsent"]);
    let after = group.write(3, put("lww", "next"));
    assert!(after.origin > before.origin, "its old incarnations are closed");
}

#[test]
fn a_value_that_was_deleted_while_its_holder_was_evicted_does_not_come_back() {
    for deletes in [DeletePolicy::AddWins, DeletePolicy::DeleteWins, DeletePolicy::NewerWins] {
        for conflicts in [ConflictPolicy::Lww, ConflictPolicy::Siblings] {
            let space = Keyspace { deletes, ..Keyspace::new(conflicts.clone()) };
            let mut group = Group::new(3, move |config| config.keyspaces = Keyspaces::all(space.clone()));
            group.write(3, put("k", "own"));
            group.write(1, put("l", "of another"));
            group.run(SECOND);
            group.begin_epoch(&[1, 2]);
            group.write(1, WriteRequest::delete("k"));
            group.write(1, WriteRequest::delete("l"));
            group.run(SECOND);
            assert_eq!(group.replica(1).figures().keys, 0, "collected");
            group.begin_epoch(&[1, 2, 3]);
            group.run(SECOND * 3);
            group.assert_agreed();
            for node in 1..=3 {
                assert!(group.values(node, "k").is_empty() && group.values(node, "l").is_empty());
            }
        }
    }
}

#[test]
fn a_crash_at_any_moment_of_coming_back_loses_nothing_and_doubles_nothing() {
    for steps in 0..40 {
        let mut group = Group::new(3, many_kinds);
        group.run(SECOND);
        group.isolate(NodeId(3), true);
        for n in 0..5 {
            group.write(3, put(&format!("s/{n}"), "unsent"));
            group.write(3, WriteRequest::add("c/n", 1));
        }
        group.begin_epoch(&[1, 2]);
        group.run(SECOND);
        group.isolate(NodeId(3), false);
        group.disk_takes(NodeId(3), steps);
        group.begin_epoch(&[1, 2, 3]);
        group.run(Duration::from_millis(500));
        group.kill(NodeId(3));
        group.start(NodeId(3));
        group.run(Duration::from_millis(300));
        group.kill(NodeId(3));
        group.start(NodeId(3));
        group.run(SECOND * 3);
        group.assert_agreed();
        for n in 0..5 {
            assert_eq!(group.values(1, &format!("s/{n}")), ["unsent"], "after {steps} storage actions");
        }
        assert_eq!(group.values(1, "c/n"), ["5"], "after {steps} storage actions");
        group.write(3, put("done", "it writes again"));
    }
}

#[test]
fn who_joins_catches_up_without_stopping_anybody_and_writes_only_then() {
    let mut group = Group::founded_by(3, 4, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.snapshot_piece_bytes = 512;
        config.limits.cache_bytes_max = 512;
    });
    for n in 0..300 {
        group.write(1 + n % 3, put(&format!("k{}", n % 40), &format!("v{n}")));
        group.run(Duration::from_millis(10));
    }
    assert!(matches!(group.outcome(4, &put("k", "v")), Outcome::Rejected(Rejection::StaleRoute { .. })));
    group.begin_epoch(&[1, 2, 3, 4]);
    assert_eq!(group.outcome(4, &put("k", "v")), Outcome::Rejected(Rejection::CatchingUp), "also one that is new");
    for n in 0..100 {
        group.write(1 + n % 3, put(&format!("k{}", n % 40), &format!("w{n}")));
        group.run(Duration::from_millis(10));
    }
    group.run(SECOND * 2);
    assert!(group.told(4, |event| matches!(event, Event::SnapshotInstalled { .. })));
    group.write(4, put("mine", "written"));
    group.run(SECOND);
    group.assert_agreed();
    assert_eq!(group.replica(1).stable(), group.replica(1).applied(), "and counts");
}

#[test]
fn a_home_that_leaves_hands_over_once_everything_it_wrote_is_here() {
    let mut group = Group::new(3, |config| {
        let homes = home::by_prefix(vec![("eu/".into(), NodeId(3))]);
        config.keyspaces = Keyspaces::all(Keyspace { home: Home::Require(homes), ..Keyspace::default() });
    });
    group.write(3, put("eu/k", "by the old home"));
    group.run(SECOND);
    group.cut.insert((NodeId(3), NodeId(1)));
    group.cut.insert((NodeId(3), NodeId(2)));
    group.write(3, put("eu/k", "unsent"));
    group.plan(&[1, 2]);
    group.tell(1);
    let moved = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(Rejection::NotLeader { .. }));
    let (first, second) = (group.outcome(1, &put("eu/k", "new")), group.outcome(2, &put("eu/k", "new")));
    assert!(moved(&second), "who has not heard of the epoch sends its clients to the old home");
    let new_home = if moved(&first) { 2 } else { 1 };
    if new_home == 1 {
        assert_eq!(first, Outcome::Rejected(Rejection::CatchingUp), "not before all have said what they hold");
    }
    group.tell(2);
    group.run(SECOND);
    group.write(new_home, put("eu/k", "by the new home"));
    group.run(SECOND);
    // What the old home wrote because it did not know comes back as a conflict, and is told.
    group.cut.clear();
    group.tell(3);
    assert!(matches!(group.outcome(3, &put("eu/k", "late")), Outcome::Rejected(Rejection::StaleRoute { .. })));
    group.begin_epoch(&[1, 2, 3]);
    group.run(SECOND * 3);
    group.assert_agreed();
    assert_eq!(group.values(1, "eu/k"), ["by the new home"], "its time decides");
    for node in 1..=3 {
        assert!(group.audit(node).contains(&Some(Bytes::from("unsent"))), "node {node}");
    }
    group.write(3, put("eu/k", "home again"));
}

#[test]
fn a_ring_or_a_star_that_loses_a_member_goes_on_and_nothing_goes_round_for_ever() {
    for topology in [Topology::Ring, Topology::Star { hub: NodeId(2) }] {
        let mut group = Group::new(5, move |config| config.topology = topology.clone());
        group.write(2, put("k", "v"));
        group.run(SECOND);
        group.write(2, put("l", "v"));
        group.begin_epoch(&[1, 3, 4, 5]);
        group.run(SECOND * 2);
        let pushed = group.pushed;
        group.run(SECOND * 2);
        assert_eq!(group.pushed, pushed, "it is quiet");
        group.write(1, put("m", "v"));
        group.run(SECOND);
        assert_eq!(group.values(4, "m"), ["v"]);
        assert!(group.pushed - pushed <= 12, "{} pushes for one write", group.pushed - pushed);
        group.assert_agreed_at(&[1, 3, 4, 5]);
    }
}

#[test]
fn a_quorum_is_one_of_the_epoch_and_an_evicted_node_acknowledges_none() {
    let mut group = Group::new(3, |_| {});
    group.kill(NodeId(3));
    group.isolate(NodeId(2), true);
    let token = group.ask(1, &put("k", "v").at(WriteLevel::Quorum));
    group.run(SECOND);
    assert!(!group.outcomes.contains_key(&token));
    group.plan(&[1]);
    group.tell(1);
    assert!(matches!(group.outcomes[&token], Outcome::Acked { strict: true, .. }), "of one, one is a majority");
    let token = group.ask(2, &put("k", "v").at(WriteLevel::Quorum));
    group.tell(2);
    group.run(SECOND * 6);
    assert!(matches!(group.outcomes[&token], Outcome::Indeterminate { .. }));
}

#[test]
fn writes_that_had_seen_what_is_lost_with_another_evicted_node_are_kept() {
    let mut group = Group::new(5, |_| {});
    group.run(SECOND);
    // Node 5 writes, and only node 4 has it.
    for other in 1..=3 {
        group.cut.insert((NodeId(5), NodeId(other)));
    }
    group.write(5, put("a", "lost"));
    group.deliver();
    assert_eq!(group.values(4, "a"), ["lost"]);
    // Node 4 writes on, and only its own write gets to the others.
    group.isolate(NodeId(5), true);
    let kept = group.write(4, put("b", "kept"));
    group.wire.retain(|(from, _, message)| {
        let own = |batch: &Batch| batch.stream().origin == kept.origin;
        *from == NodeId(4) && !message.batches.is_empty() && message.batches.as_slice().iter().all(own)
    });
    while let Some((_, to, message)) = group.wire.pop_front() {
        group.input(to, Input::Message { from: NodeId(4), message });
    }
    group.kill(NodeId(4));
    assert!(
        group.values(1, "b").is_empty() && group.replica(1).figures().waiting_bytes > 0,
        "not before what it had seen"
    );
    group.begin_epoch(&[1, 2, 3]);
    group.run(SECOND * 2);
    for node in 1..=3 {
        assert_eq!((group.values(node, "a").len(), group.values(node, "b")), (0, vec!["kept".to_owned()]));
    }
    group.write(1, put("c", "after it"));
    group.kill(NodeId(1));
    group.start(NodeId(1));
    assert_eq!(group.values(1, "c"), ["after it"], "its own write waits for nothing");
    group.write(1, put("d", "it goes on"));
    group.run(SECOND);
    group.assert_agreed_at(&[1, 2, 3]);
}

/// Seed 9705 of the simulator: who had removed a value came back before who had written it, and nobody else knew either.
#[test]
fn what_an_evicted_node_removed_stays_away_when_the_only_one_who_has_it_comes_back_later() {
    let insert = |key: &str, element: &str| {
        WriteRequest::crdt(key.to_owned(), CrdtOp::Insert { element: element.to_owned().into() })
    };
    let remove = |key: &str, element: &str| {
        WriteRequest::crdt(key.to_owned(), CrdtOp::Remove { element: element.to_owned().into() })
    };
    for (first, second, crashed) in [(3, 4, false), (3, 4, true), (4, 3, false), (4, 3, true)] {
        let mut group = Group::new(4, many_kinds);
        group.write(1, insert("e/some", "stays"));
        group.run(SECOND);
        for (from, to) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
            group.cut.insert((NodeId(from), NodeId(to)));
            group.cut.insert((NodeId(to), NodeId(from)));
        }
        for key in ["e/all", "e/some"] {
            group.write(4, insert(key, "gone"));
        }
        group.deliver();
        for key in ["e/all", "e/some"] {
            assert!(group.values(3, key).contains(&"gone".to_owned()));
            group.isolate(NodeId(3), true);
            group.write(3, remove(key, "gone"));
        }
        if crashed {
            group.kill(NodeId(3));
            group.start(NodeId(3));
        }
        group.isolate(NodeId(4), true);
        group.begin_epoch(&[1, 2]);
        group.run(SECOND);
        group.cut.clear();
        group.isolate(NodeId(second), true);
        group.begin_epoch(&[1, 2, first]);
        group.run(SECOND * 3);
        group.isolate(NodeId(second), false);
        group.begin_epoch(&[1, 2, 3, 4]);
        group.run(SECOND * 3);
        group.assert_agreed();
        for node in 1..=4 {
            let found = (group.values(node, "e/all"), group.values(node, "e/some"));
            assert_eq!(found, (Vec::new(), vec!["stays".to_owned()]), "{first} first, at {node}, crashed: {crashed}");
        }
    }
}

/// Seed 46588: what waited here for a write that was lost counted as missing once nobody else was left to ask.
#[test]
fn an_own_write_that_waits_for_what_is_lost_is_not_made_again_beside_itself() {
    let mut group = Group::new(3, many_kinds);
    group.cut.insert((NodeId(3), NodeId(2)));
    group.write(3, put("s/lost", "x"));
    group.deliver();
    group.write(1, put("s/k", "v"));
    group.deliver();
    assert!(group.replica(2).received().is_some(), "it waits for what its writer had seen");
    group.kill(NodeId(3));
    group.begin_epoch(&[2, 3]);
    group.begin_epoch(&[1, 2, 3]);
    assert!(group.told(1, |event| matches!(event, Event::BeganAnew { stashed: 1, .. })));
    group.run(SECOND);
    assert!(group.replica(1).origin().is_none(), "node 3 has still to be asked");
    assert!(group.replica(1).received().is_some(), "the own write has come back, and waits here as well");
    group.begin_epoch(&[1]);
    group.run(SECOND);
    assert!(group.replica(1).origin().is_some());
    assert_eq!(group.values(1, "s/k"), ["v"], "once");
}

/// Six nodes of which the first three have founded the group, with a key of each kind written by node 1.
fn three_of_six() -> Group {
    let mut group = Group::founded_by(3, 6, many_kinds);
    group.write(1, put("lww", "first"));
    group.write(1, WriteRequest::add("c/n", 1));
    group.run(SECOND);
    group
}

#[test]
fn all_members_are_replaced_and_nothing_is_lost_that_a_leaver_alone_had_acknowledged() {
    let mut group = three_of_six();
    group.plan_towards(&[4, 5, 6]);
    group.tell_all();
    // Acknowledged by the disk of node 3 alone, which is about to leave.
    group.write(3, put("lww", "late"));
    group.write(3, WriteRequest::add("c/n", 10));
    group.run(SECOND * 2);
    let sealed = Outcome::Rejected(Rejection::StaleRoute { current: Epoch(2) });
    assert_eq!(group.outcome(3, &put("lww", "too late")), sealed, "others take writes by now");
    group.write(5, WriteRequest::add("c/n", 100));
    group.run(SECOND);
    group.complete();
    group.run(SECOND);
    group.assert_agreed_at(&[4, 5, 6]);
    assert_eq!((group.values(4, "lww"), group.values(4, "c/n")), (vec!["late".to_owned()], vec!["111".to_owned()]));
    for gone in 1..=3 {
        assert!(group.told(gone, |event| matches!(event, Event::Retired { epoch: Epoch(3), stashed: 0 })));
        assert_eq!(group.replica(gone).figures().keys, 0, "it keeps nothing that others have");
    }
}

#[test]
fn a_change_is_not_complete_before_every_leaver_has_handed_over_what_it_has() {
    let mut group = three_of_six();
    group.isolate(NodeId(3), true);
    group.write(3, WriteRequest::add("c/n", 10));
    group.plan_towards(&[1, 2, 4]);
    group.tell_all();
    group.run(SECOND * 5);
    for node in [1, 2, 4] {
        assert_eq!(group.replica(node).drained(), None, "node 3 has told nothing");
    }
    group.isolate(NodeId(3), false);
    group.run(SECOND * 2);
    group.complete();
    group.run(SECOND);
    group.assert_agreed_at(&[1, 2, 4]);
    assert_eq!(group.values(4, "c/n"), ["11"]);
}

#[test]
fn a_leaver_that_never_answers_is_given_up_and_brings_its_writes_if_it_is_named_again() {
    let mut group = three_of_six();
    group.isolate(NodeId(3), true);
    group.write(3, WriteRequest::add("c/n", 10));
    group.plan_towards(&[1, 2, 4]);
    group.tell_all();
    group.run(SECOND);
    group.give_up(3);
    group.run(SECOND * 2);
    group.complete();
    group.run(SECOND);
    assert_eq!(group.values(4, "c/n"), ["1"]);
    assert!(!group.told(3, |event| matches!(event, Event::Retired { .. })), "it has what nobody else has");
    group.isolate(NodeId(3), false);
    group.plan_towards(&[1, 2, 3, 4]);
    group.tell_all();
    group.run(SECOND * 3);
    group.complete();
    group.run(SECOND);
    group.assert_agreed_at(&[1, 2, 3, 4]);
    assert_eq!(group.values(4, "c/n"), ["11"]);
}

#[test]
fn a_majority_is_of_those_before_until_the_new_ones_have_caught_up_and_of_those_who_stay_then() {
    let mut group = three_of_six();
    group.plan_towards(&[1, 4, 5]);
    for node in 1..=3 {
        group.tell(node);
    }
    // Nodes 4 and 5 know of nothing: two of the three before are enough.
    group.isolate(NodeId(3), true);
    group.write(1, put("lww", "by those before").at(WriteLevel::Quorum));
    group.run(SECOND);
    assert!(matches!(group.outcome(4, &put("lww", "x")), Outcome::Rejected(_)));
    group.isolate(NodeId(3), false);
    group.tell(4);
    group.tell(5);
    group.run(SECOND * 2);
    // The two that leave are no majority of those who stay, however many disks have it.
    group.isolate(NodeId(4), true);
    group.isolate(NodeId(5), true);
    let token = group.ask(1, &put("lww", "by those who leave").at(WriteLevel::Quorum));
    group.run(SECOND);
    assert!(!group.outcomes.contains_key(&token), "{:?}", group.outcomes.get(&token));
    group.isolate(NodeId(4), false);
    group.run(SECOND);
    assert!(matches!(group.outcomes.get(&token), Some(Outcome::Acked { .. })), "{:?}", group.outcomes.get(&token));
}

#[test]
fn who_is_started_again_with_an_older_membership_goes_on_in_the_one_it_knows() {
    let mut group = three_of_six();
    group.plan_towards(&[4, 5, 6]);
    group.tell_all();
    group.run(SECOND * 2);
    group.kill(NodeId(3));
    group.forget_epochs(3);
    group.start(NodeId(3));
    group.run(SECOND);
    let sealed = Outcome::Rejected(Rejection::StaleRoute { current: Epoch(2) });
    assert_eq!(group.outcome(3, &put("lww", "too late")), sealed, "a fence holds over a restart");
    group.complete();
    group.run(SECOND);
    group.kill(NodeId(3));
    group.forget_epochs(3);
    group.start(NodeId(3));
    assert_eq!(group.outcome(3, &put("lww", "x")), Outcome::Rejected(Rejection::StaleRoute { current: Epoch(3) }));
    for node in 4..=6 {
        group.kill(NodeId(node));
        group.forget_epochs(node);
        group.start(NodeId(node));
    }
    group.run(SECOND);
    group.write(4, put("lww", "goes on").at(WriteLevel::Quorum));
    group.run(SECOND);
    group.assert_agreed_at(&[4, 5, 6]);
}

#[test]
fn who_is_given_up_acknowledges_nothing_by_its_own_disk_that_was_to_be_on_another() {
    let mut group = three_of_six();
    group.plan_towards(&[4]);
    for node in [1, 2, 3] {
        group.tell(node);
    }
    group.isolate(NodeId(2), true);
    group.isolate(NodeId(3), true);
    let token = group.ask(1, &put("lww", "on no other disk").at(WriteLevel::Quorum));
    assert!(!group.outcomes.contains_key(&token));
    group.give_up(1);
    assert!(
        matches!(group.outcomes.get(&token), Some(Outcome::Indeterminate { .. })),
        "{:?}",
        group.outcomes.get(&token)
    );
}

#[test]
fn keys_have_homes_among_those_who_stay_and_always_one() {
    let spread = |config: &mut Config| {
        let home = Home::Require(home::spread());
        config.keyspaces = Keyspaces::all(Keyspace { home, ..Keyspace::new(ConflictPolicy::Lww) });
    };
    let takes = |group: &mut Group, nodes: &[u32]| {
        let taken = |node: &&u32| matches!(group.outcome(**node, &put("k", "v")), Outcome::Acked { .. });
        nodes.iter().filter(taken).copied().collect::<Vec<u32>>()
    };
    let mut group = Group::founded_by(3, 5, spread);
    group.plan_towards(&[2, 4]);
    group.tell_all();
    group.run(SECOND * 2);
    assert_eq!(
        takes(&mut group, &[1, 2, 3, 4]),
        [2],
        "nodes 1 and 3 are to leave, node 4 has yet to become a member for good"
    );
    // All members before are given up: those who have come are the homes.
    let mut group = Group::founded_by(1, 5, spread);
    group.plan_towards(&[4, 5]);
    group.tell_all();
    group.run(SECOND * 2);
    group.give_up(1);
    group.run(SECOND * 2);
    assert_eq!(takes(&mut group, &[4, 5]).len(), 1, "one of them is the home");
}

#[test]
fn a_crash_while_it_drops_what_it_had_keeps_nothing_from_being_dropped_later() {
    let mut group = three_of_six();
    group.plan_towards(&[4, 5, 6]);
    group.tell_all();
    group.run(SECOND * 2);
    // The register gets to the disk, and nothing behind it.
    group.disk_takes(NodeId(3), 1);
    group.complete();
    group.kill(NodeId(3));
    group.start(NodeId(3));
    group.run(SECOND);
    assert!(group.told(3, |event| matches!(event, Event::Retired { .. })));
    assert_eq!(group.replica(3).figures().keys, 0);
    group.kill(NodeId(3));
    group.start(NodeId(3));
    group.run(SECOND);
    assert!(!group.told(3, |event| matches!(event, Event::Retired { .. })), "once is enough");
}
