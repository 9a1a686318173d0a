//! What the crate promises, claim by claim, and the bugs of other systems that must not be here.

use std::time::Duration;

use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::keyspace::decode_effect;
use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::*;
use replikit_multi_leader::{Config, Founding, Home, Keyspace, Keyspaces, LoggedWrite, Topology, home};

use crate::group::{GROUP, Group};

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned())
}

fn siblings(config: &mut Config) {
    config.keyspaces = Keyspaces::all(Keyspace::new(ConflictPolicy::Siblings));
}

#[test]
fn a_local_write_costs_one_append_and_no_message_before_it_is_acknowledged() {
    let mut group = Group::new(3, |_| {});
    let before = group.places[&NodeId(1)].appends;
    group.places.get_mut(&NodeId(1)).unwrap().disk_stopped = true;
    let token = group.ask(1, &put("k", "v").at(WriteLevel::LeaderDisk));
    assert!(!group.outcomes.contains_key(&token) && group.pushed == 0, "nothing before the disk");
    group.wire.clear();
    group.resume_disk(NodeId(1));
    assert!(matches!(group.outcomes[&token], Outcome::Acked { reached: Reached { durable: 1, .. }, .. }));
    assert_eq!(group.places[&NodeId(1)].appends, before + 1);
}

#[test]
fn writes_of_others_are_stored_together_and_at_once_where_somebody_waits() {
    let mut group = Group::new(3, |config| config.timing.exchange = Duration::from_secs(10));
    let appends = |group: &Group| group.places[&NodeId(2)].appends;
    let before = appends(&group);
    for n in 0..10 {
        group.write(1, put("k", &n.to_string()).at(WriteLevel::LeaderDisk));
        group.deliver();
        assert_eq!(group.values(2, "k"), [n.to_string()], "visible at once");
    }
    assert_eq!(appends(&group), before, "and not stored yet");
    group.run(Duration::from_millis(10));
    assert_eq!(appends(&group), before + 10, "all of it after the delay");
    group.write(1, put("k", "l").at(WriteLevel::LeaderDisk));
    group.deliver();
    let token = group.ask(1, &put("k", "m").at(WriteLevel::Quorum));
    group.deliver();
    assert!(matches!(group.outcomes[&token], Outcome::Acked { reached: Reached { durable: 2.., .. }, .. }));
    assert_eq!(appends(&group), before + 12, "with what lingered before it");
    group.write(1, put("k", "n").at(WriteLevel::LeaderDisk));
    group.deliver();
    group.write(2, put("l", "o").at(WriteLevel::LeaderDisk));
    assert_eq!(appends(&group), before + 14, "with the next own write");
}

#[test]
fn nobody_reads_a_write_that_a_crash_could_take_back() {
    let mut group = Group::new(2, |_| {});
    group.write(1, put("k", "old"));
    group.places.get_mut(&NodeId(1)).unwrap().disk_stopped = true;
    group.ask(1, &put("k", "new").at(WriteLevel::Memory));
    assert_eq!(group.read_at(1, "k", ReadLevel::Local), None, "the answer waits for the disk");
    group.deliver();
    assert_eq!(group.values(2, "k"), ["old"]);
    group.resume_disk(NodeId(1));
    group.deliver();
    assert_eq!(group.values(1, "k"), ["new"]);
    assert_eq!(group.values(2, "k"), ["new"]);
}

#[test]
fn a_quorum_write_waits_for_the_disks_of_a_majority() {
    let mut group = Group::new(3, |_| {});
    group.places.get_mut(&NodeId(2)).unwrap().disk_stopped = true;
    group.isolate(NodeId(3), true);
    let token = group.ask(1, &put("k", "v").at(WriteLevel::Quorum));
    group.run(Duration::from_millis(300));
    assert!(!group.outcomes.contains_key(&token), "two have it, one on disk");
    group.resume_disk(NodeId(2));
    group.run(Duration::from_millis(300));
    assert!(matches!(group.outcomes[&token], Outcome::Acked { strict: true, reached: Reached { durable: 2, .. }, .. }));
}

#[test]
fn a_write_that_waits_too_long_is_indeterminate_and_still_there() {
    let mut group = Group::new(3, |_| {});
    group.isolate(NodeId(1), true);
    let token = group.ask(1, &put("k", "v").at(WriteLevel::Quorum));
    group.run(Duration::from_secs(6));
    assert!(matches!(group.outcomes[&token], Outcome::Indeterminate { reached: Reached { durable: 1, .. } }));
    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(3, "k"), ["v"]);
}

/// Also CouchDB issue 1507: trees of revisions that nobody can collapse.
#[test]
fn a_write_with_the_context_of_all_siblings_collapses_them_and_a_blind_one_does_not() {
    let mut group = Group::new(2, siblings);
    group.isolate(NodeId(1), true);
    group.write(1, put("k", "a"));
    group.write(2, put("k", "b"));
    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(1));
    let seen = group.read(2, "k");
    assert_eq!((group.values(1, "k"), seen.values.len()), (vec!["a".to_owned(), "b".to_owned()], 2));
    group.write(1, put("k", "blind"));
    group.deliver();
    assert_eq!(group.values(2, "k"), ["a", "blind", "b"], "ascending by origin, then sequence");
    group.write(2, put("k", "both").over(seen.context.unwrap()));
    group.deliver();
    assert_eq!(group.values(1, "k"), ["blind", "both"], "what its writer had not read stays");
    let seen = group.read(1, "k");
    group.write(1, put("k", "all").over(seen.context.unwrap()));
    group.deliver();
    assert_eq!((group.values(1, "k"), group.values(2, "k")), (vec!["all".to_owned()], vec!["all".to_owned()]));
}

/// pgactive issue 18: the time of applying was compared instead of that of writing, and replicas differed.
#[test]
fn the_newest_write_wins_everywhere_whenever_it_arrives() {
    for first in [1, 2] {
        let mut group = Group::new(3, |_| {});
        group.skew.insert(NodeId(1), 40_000_000);
        for node in [1, 2] {
            group.isolate(NodeId(node), true);
        }
        group.write(2, put("k", "older"));
        group.write(1, put("k", "newer"));
        group.isolate(NodeId(first), false);
        group.run(Duration::from_millis(500));
        group.isolate(NodeId(1), false);
        group.isolate(NodeId(2), false);
        group.run(Duration::from_secs(1));
        for node in 1..=3 {
            assert_eq!(group.values(node, "k"), ["newer"]);
            assert_eq!(group.audit(node), [Some("older".into())], "the loser is on record at every replica");
        }
        group.assert_agreed();
    }
}

/// pgactive issue 327: changes were skipped for ever, with a channel that looked healthy.
#[test]
fn a_push_that_was_lost_is_found_by_the_next_exchange() {
    let mut group = Group::new(3, |_| {});
    group.write(1, put("a", "1"));
    group.wire.clear();
    group.write(1, put("b", "2"));
    group.deliver();
    assert!(group.values(2, "b").is_empty(), "not before what came first");
    group.run(Duration::from_secs(1));
    for node in [2, 3] {
        assert_eq!((group.values(node, "a"), group.values(node, "b")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    }
}

/// riak_kv issue 1813, key amnesia: a key that was deleted and collected began its clock anew, and new writes looked old.
#[test]
fn a_key_that_was_collected_and_a_node_that_lost_its_disk_never_use_a_dot_again() {
    let mut group = Group::new(3, |_| {});
    let first = group.write(1, put("k", "v"));
    group.run(Duration::from_millis(300));
    group.write(1, WriteRequest::delete("k"));
    group.run(Duration::from_secs(1));
    assert_eq!(group.replica(1).figures().keys, 0, "nothing is left of the key, the delete included");
    let again = group.write(1, put("k", "w"));
    assert!(again.origin == first.origin && again.sequence > first.sequence);
    group.deliver();
    group.kill(NodeId(1));
    group.lose_disk(NodeId(1));
    // An operator who does not know says nothing: the node asks.
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(1));
    assert_eq!(group.replica(1).origin(), None, "it asks before it writes");
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(1, "k"), ["w"]);
    let anew = group.write(1, put("k", "x"));
    assert!(anew.origin > first.origin, "a new incarnation");
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(3, "k"), ["x"]);
}

/// Seed 2547 of the simulator on the real log: what that member had acknowledged was on the disk of a third one only.
#[test]
fn a_member_that_has_to_ask_what_it_wrote_vouches_for_nothing() {
    let mut group = Group::new(3, |_| {});
    group.cut.insert((NodeId(3), NodeId(1)));
    group.write(3, put("k", "v"));
    group.deliver();
    group.kill(NodeId(3));
    group.lose_disk(NodeId(3));
    group.cut.extend([(NodeId(2), NodeId(3)), (NodeId(3), NodeId(2))]);
    group.cut.remove(&(NodeId(3), NodeId(1)));
    group.pushes_lost.insert(NodeId(2));
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(3));
    for step in 1..=60 {
        group.run(Duration::from_millis(10));
        assert_eq!(group.replica(3).origin(), None, "it has not heard from node 2");
        let answer = group.read_at(1, "k", ReadLevel::Local);
        let Some(Outcome::Value { staleness, .. }) = answer else { panic!("{answer:?}") };
        let since = Duration::from_millis(10 * step);
        let knows = !group.values(1, "k").is_empty();
        assert!(knows || staleness.is_none_or(|staleness| staleness >= since), "{staleness:?} {since:?} after a write");
    }
    group.cut.clear();
    group.pushes_lost.clear();
    group.run(Duration::from_secs(3));
    assert_eq!(group.values(1, "k"), ["v"]);
}

/// Seed 42185 of the simulator: such a node stated less staleness than it had.
#[test]
fn a_node_whose_log_was_cut_still_asks_when_it_is_started_once_more() {
    let mut group = Group::new(3, |_| {});
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

/// The simulator's seed 24109 of leaderless: the node began the lost incarnation once more, since nobody else had its writes.
#[test]
fn what_a_client_has_seen_of_a_lost_disk_says_nothing_of_later_writes() {
    let mut group = Group::new(3, siblings);
    group.isolate(NodeId(2), true);
    let lost = group.write(2, put("k", "lost"));
    let seen = group.read(2, "k").context.expect("a value has one");
    group.kill(NodeId(2));
    group.lose_disk(NodeId(2));
    group.isolate(NodeId(2), false);
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(2));
    group.run(Duration::from_secs(1));
    let kept = group.write(2, put("k", "kept"));
    assert!(kept.origin > lost.origin, "no dot is given away twice");
    group.run(Duration::from_secs(1));
    group.write(1, put("k", "new").over(seen));
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(3, "k"), ["new", "kept"]);
}

/// MySQL bug 27808: writes circled for ever after their origin had left the ring.
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

/// Seeds 226, 2350 and 2971 of the simulator: nothing was collected any more by who had been told of the lost write.
#[test]
fn nobody_waits_for_a_write_that_was_lost_with_the_only_disk_that_had_it() {
    let mut group = group_of_a_lost_write();
    group.start(NodeId(1));
    group.run(Duration::from_secs(2));
    group.assert_agreed();
    for node in 1..=3 {
        let replica = group.replica(node);
        assert_eq!(replica.stable(), replica.applied(), "node {node} can collect all that there is");
        let bounded = group.read_at(node, "l", ReadLevel::BoundedStale(Duration::from_millis(300)));
        assert!(matches!(bounded, Some(Outcome::Value { .. })), "node {node} knows how fresh it is: {bounded:?}");
    }
}

/// Seed 10220 of the simulator on the real log: the next life used the numbers again, took an old answer to them for its own, and
/// a read told of a staleness that it did not have.
#[test]
fn no_report_leaves_before_its_life_is_on_disk() {
    let mut group = Group::new(2, |_| {});
    let reports = |group: &Group| group.wire.iter().filter(|(from, _, _)| *from == NodeId(1)).count();
    group.kill(NodeId(1));
    group.starts_stopped.insert(NodeId(1));
    group.start(NodeId(1));
    group.input(NodeId(1), Input::Timer);
    group.input(NodeId(1), Input::Peer { node: NodeId(2), link: Link::Up });
    assert_eq!((reports(&group), group.replica(1).deadline()), (0, None), "it waits for its disk and nothing else");
    group.resume_disk(NodeId(1));
    assert!(
        group.replica(1).deadline().is_some() && reports(&group) > 0,
        "it answers, and asks as soon as it is called"
    );
    group.run(Duration::from_millis(300));
    group.assert_agreed();
}

#[test]
fn who_asks_before_it_begins_does_not_wait_for_a_write_that_is_lost_meanwhile() {
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
    assert!((1..=3).all(|node| group.replica(node).origin().is_some()), "everybody writes again");
    group.assert_agreed();
}

#[test]
fn nothing_goes_round_a_ring_for_ever_and_a_write_crosses_each_link_at_most_once() {
    let mut group = Group::new(5, |config| config.topology = Topology::Ring);
    let before = group.pushed;
    group.write(2, put("k", "v"));
    group.deliver();
    group.kill(NodeId(2));
    group.run(Duration::from_secs(3));
    let pushed = group.pushed - before;
    assert!((3..=5).contains(&pushed), "{pushed} pushes for one write");
    group.run(Duration::from_secs(3));
    assert_eq!(group.pushed - before, pushed, "and then it is quiet");
    for node in [1, 3, 4, 5] {
        assert_eq!(group.values(node, "k"), ["v"]);
    }
}

#[test]
fn a_ring_goes_on_around_any_member_that_is_silent() {
    let mut group = Group::new(4, |config| config.topology = Topology::Ring);
    group.isolate(NodeId(3), true);
    group.run(Duration::from_secs(2));
    group.write(2, put("k", "v"));
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(1, "k"), ["v"], "two sends round three");
    group.isolate(NodeId(3), false);
    group.run(Duration::from_secs(2));
    assert_eq!(group.values(3, "k"), ["v"]);
    group.assert_agreed();
}

/// Seed 1660 of the simulator: a crash before that gave the dot to another write, and the client's token would name that one.
#[test]
fn a_write_to_memory_is_acknowledged_only_once_its_incarnation_is_durable() {
    let mut group = Group::new(3, |config| config.founding = Founding::Ask);
    group.write(1, put("k", "v"));
    group.run(Duration::from_secs(1));
    group.kill(NodeId(3));
    group.lose_disk(NodeId(3));
    group.isolate(NodeId(2), true);
    group.start(NodeId(3));
    group.run(Duration::from_secs(1));
    group.places.get_mut(&NodeId(3)).expect("it runs").disk_stopped = true;
    group.isolate(NodeId(2), false);
    group.run(Duration::from_secs(1));
    assert!(group.replica(3).origin().is_some(), "everybody has answered");
    let token = group.ask(3, &put("k", "w").at(WriteLevel::Memory));
    assert!(!group.outcomes.contains_key(&token));
    group.resume_disk(NodeId(3));
    assert!(matches!(group.outcomes[&token], Outcome::Acked { .. }));
}

/// Seed 1757 of the simulator: the second silent member was believed to be alive as soon as links were laid round it.
#[test]
fn a_ring_goes_on_around_several_silent_members_in_a_row_and_takes_each_back() {
    let mut group = Group::new(7, |config| config.topology = Topology::Ring);
    for node in 5..=7 {
        group.kill(NodeId(node));
    }
    group.run(Duration::from_secs(10));
    group.write(4, put("k", "v"));
    group.run(Duration::from_secs(1));
    assert_eq!(group.values(1, "k"), ["v"], "four sends round three silent ones");
    for node in [6, 7, 5] {
        group.start(NodeId(node));
        group.run(Duration::from_secs(10));
        assert_eq!(group.values(node, "k"), ["v"]);
    }
    for node in 1..=7 {
        assert_eq!(group.replica(node).figures().suspected, []);
    }
    group.assert_agreed();
}

#[test]
fn a_delete_that_has_been_collected_brings_nothing_back_from_a_member_that_was_away() {
    for deletes in [DeletePolicy::AddWins, DeletePolicy::DeleteWins, DeletePolicy::NewerWins] {
        let mut group = Group::new(3, move |config| {
            config.keyspaces = Keyspaces::all(Keyspace { deletes, ..Keyspace::default() });
        });
        group.write(1, put("k", "v"));
        group.run(Duration::from_millis(300));
        group.isolate(NodeId(3), true);
        group.write(1, WriteRequest::delete("k"));
        group.run(Duration::from_secs(3));
        assert!(group.replica(1).figures().unsettled == 1, "as long as one does not know of it, it stays");
        group.isolate(NodeId(3), false);
        group.run(Duration::from_secs(2));
        for node in 1..=3 {
            assert!(group.values(node, "k").is_empty());
            assert_eq!(group.replica(node).figures().keys, 0, "then nothing is kept of it");
        }
    }
}

#[test]
fn a_session_reads_its_own_writes_at_any_replica() {
    let mut group = Group::new(3, |_| {});
    group.isolate(NodeId(2), true);
    let dot = group.write(1, put("k", "v"));
    let mut token = SessionToken::new();
    let stream = StreamId { group: GROUP, origin: dot.origin };
    let id = LogId { term: Term(0), index: LogIndex(dot.sequence) };
    token.observe(Position { stream, id, digest: 0 });
    assert_eq!(group.read_at(2, "k", ReadLevel::Session(token.clone())), None, "it waits");
    group.run(Duration::from_secs(6));
    let late = group.read_at(2, "k", ReadLevel::BoundedStale(Duration::from_secs(1)));
    assert!(matches!(late, Some(Outcome::Rejected(Rejection::TooStale { .. }))));
    group.isolate(NodeId(2), false);
    group.run(Duration::from_secs(1));
    assert!(matches!(group.read_at(2, "k", ReadLevel::Session(token)), Some(Outcome::Value { .. })));
    let fresh = group.read_at(2, "k", ReadLevel::BoundedStale(Duration::from_secs(1)));
    assert!(matches!(fresh, Some(Outcome::Value { staleness: Some(bound), .. }) if bound <= Duration::from_secs(1)));
    assert_eq!(
        group.read_at(2, "k", ReadLevel::Linearizable),
        Some(Outcome::Rejected(Rejection::Unsupported)),
        "nobody orders these writes"
    );
}

#[test]
fn a_key_with_a_required_home_is_written_there_only_and_can_be_compared_there() {
    let mut group = Group::new(3, |config| {
        let homes = home::by_prefix(vec![("eu/".into(), NodeId(2))]);
        config.keyspaces = Keyspaces::all(Keyspace { home: Home::Require(homes), ..Keyspace::default() });
    });
    let token = group.ask(1, &put("eu/k", "v"));
    let elsewhere = Rejection::NotLeader { leader: Some(NodeId(2)) };
    assert_eq!(group.outcomes[&token], Outcome::Rejected(elsewhere));
    let swap = |from: Option<&'static str>, to: &'static str| {
        WriteRequest::compare_and_set("eu/k", from.map(Into::into), Some(to.into())).at(WriteLevel::LeaderDisk)
    };
    for (write, effect) in [
        (swap(None, "one"), WriteEffect::Done),
        (swap(None, "two"), WriteEffect::Mismatch { found: Some("one".into()) }),
        (swap(Some("one"), "two"), WriteEffect::Done),
    ] {
        let token = group.ask(2, &write);
        let Outcome::Acked { reply, .. } = &group.outcomes[&token] else { panic!("{:?}", group.outcomes[&token]) };
        assert_eq!(decode_effect(reply), Ok(effect));
    }
    let token = group.ask(1, &WriteRequest::compare_and_set("us/k", None, None));
    let nowhere = Outcome::Rejected(Rejection::Unsupported);
    assert_eq!(
        group.outcomes[&token], nowhere,
        "a key without a home is written anywhere: comparing would mean nothing"
    );
}

#[test]
fn counters_and_sets_lose_nothing() {
    let mut group = Group::new(3, |config| {
        let crdt = |kind| Keyspace::new(ConflictPolicy::Crdt(kind));
        config.keyspaces = Keyspaces::default().with("c/", crdt(CrdtKind::Counter)).with("s/", crdt(CrdtKind::Set));
    });
    for node in 1..=3 {
        group.isolate(NodeId(node), true);
    }
    for node in 1..=3 {
        for n in 0..10 {
            group.write(node, WriteRequest::add("c/x", i64::from(node)));
            let element = format!("{node}-{n}").into();
            group.write(node, WriteRequest::crdt("s/x", CrdtOp::Insert { element }));
        }
    }
    for node in 1..=3 {
        group.isolate(NodeId(node), false);
    }
    group.run(Duration::from_secs(2));
    for node in 1..=3 {
        assert_eq!(group.values(node, "c/x"), ["60"]);
        assert_eq!(group.values(node, "s/x").len(), 30);
    }
    group.assert_agreed();
}

#[test]
fn a_member_that_comes_back_after_the_log_was_given_up_gets_a_snapshot_and_keeps_its_own_writes() {
    let mut group = Group::new(3, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.snapshot_piece_bytes = 512;
        config.limits.cache_bytes_max = 512;
    });
    group.isolate(NodeId(3), true);
    group.write(3, put("mine", "kept"));
    for n in 0..400 {
        group.write(1 + n % 2, put(&format!("k{}", n % 50), &format!("v{n}")));
        group.run(Duration::from_millis(10));
    }
    group.isolate(NodeId(3), false);
    group.run(Duration::from_secs(10));
    let installed = |event: &Event| matches!(event, Event::SnapshotInstalled { .. });
    assert!(group.places[&NodeId(3)].events.iter().any(installed));
    group.assert_agreed();
    assert_eq!(group.values(1, "mine"), ["kept"]);
    group.kill(NodeId(3));
    group.start(NodeId(3));
    group.run(Duration::from_secs(1));
    group.assert_agreed();
}

/// Seed 7102 of the simulator on the real log: each duplicate was answered, and each answer doubled all that followed.
#[test]
fn a_message_that_comes_twice_does_not_double_the_rest_of_a_snapshot() {
    let sent = |duplicates: bool| {
        let mut group = Group::new(2, |config| {
            config.limits.snapshot_log_bytes = 1 << 10;
            config.limits.retained_bytes_max = 1 << 10;
            config.limits.snapshot_piece_bytes = 160;
            config.limits.cache_bytes_max = 0;
        });
        group.isolate(NodeId(2), true);
        for n in 0..40 {
            group.write(1, put(&format!("k{}", n % 20), &format!("v{n}")));
        }
        group.isolate(NodeId(2), false);
        (group.duplicates, group.sent_bytes) = (duplicates, 0);
        group.run(Duration::from_millis(500));
        let installed = |event: &Event| matches!(event, Event::SnapshotInstalled { .. });
        assert!(group.places[&NodeId(2)].events.iter().any(installed));
        group.assert_agreed();
        group.sent_bytes
    };
    let (once, twice) = (sent(false), sent(true));
    assert!(twice <= 3 * once, "{twice} bytes instead of {once}");
}

/// Seed 4408 of the simulator: the key's place was freed, and with it what says that its reader has to wait.
#[test]
fn a_removal_that_is_not_durable_is_not_shown_either_when_a_snapshot_comes_in() {
    let mut group = Group::new(2, |config| {
        config.keyspaces = Keyspaces::all(Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set)));
        config.limits.snapshot_log_bytes = 1 << 10;
        config.limits.retained_bytes_max = 1 << 10;
        config.limits.cache_bytes_max = 0;
    });
    group.write(1, WriteRequest::crdt("s", CrdtOp::Insert { element: "e".into() }));
    group.run(Duration::from_millis(300));
    group.isolate(NodeId(2), true);
    for n in 0..100 {
        group.write(1, WriteRequest::crdt(format!("other-{n}"), CrdtOp::Insert { element: "e".into() }));
    }
    group.places.get_mut(&NodeId(2)).unwrap().disk_stopped = true;
    group.ask(2, &WriteRequest::delete("s").at(WriteLevel::Memory));
    group.isolate(NodeId(2), false);
    group.run(Duration::from_secs(3));
    assert!(group.told(2, |event| matches!(event, Event::SnapshotInstalled { .. })));
    assert_eq!(group.read_at(2, "s", ReadLevel::Local), None, "the answer waits for the disk");
    group.resume_disk(NodeId(2));
    group.run(Duration::from_secs(1));
    assert!(group.values(1, "s").is_empty() && group.values(2, "s").is_empty());
}

/// Seed 226 of the simulator on the real log: what was lost after it had been told of was waited for.
#[test]
fn collection_goes_on_after_a_member_has_lost_a_write_that_it_had_told_of() {
    let mut group = Group::new(3, |_| {});
    group.write(3, put("first", "v"));
    group.run(Duration::from_secs(1));
    group.write(3, put("told", "v"));
    // The report gets through, the write does not.
    group.wire.clear();
    group.input(NodeId(3), Input::Peer { node: NodeId(1), link: Link::Up });
    group.deliver();
    assert!(group.values(1, "told").is_empty());
    group.write(1, put("k", "v"));
    group.deliver();
    group.kill(NodeId(3));
    group.lose_disk(NodeId(3));
    group.run(Duration::from_millis(300));
    group.reconfigure(|config| config.founding = Founding::Ask);
    group.start(NodeId(3));
    group.run(Duration::from_secs(3));
    group.assert_agreed();
    assert_eq!(group.replica(1).stable(), group.replica(1).applied());
}

#[test]
fn causality_takes_at_most_24_bytes_a_write_with_three_origins() {
    let mut group = Group::new(3, |_| {});
    for node in 1..=3 {
        for n in 0..20 {
            group.write(node, put(&format!("key-{n}"), "value"));
        }
        group.run(Duration::from_millis(200));
    }
    group.write(1, put("key-x", "value"));
    let mut largest = 0;
    for (_, _, message) in &group.wire {
        for batch in message.batches.as_slice() {
            let payload: usize = batch.entries().map(|entry| entry.payload.len()).sum();
            let writes = LoggedWrite::read(batch).unwrap();
            let content: usize =
                writes.iter().map(|write| write.key.len() + write.value.as_ref().unwrap().len() + 3).sum();
            largest = largest.max(payload - content);
        }
    }
    assert!((1..=24).contains(&largest), "{largest} bytes of causality");
}

#[test]
fn a_divergence_of_one_percent_is_repaired_with_little_more_than_its_bytes() {
    let mut group = Group::new(2, |_| {});
    let value = "v".repeat(100);
    let writes = |keys: std::ops::Range<u32>| -> Vec<WriteRequest> {
        keys.map(|key| put(&format!("key-{key:06}"), &value)).collect()
    };
    for from in (0..100_000).step_by(1_000) {
        group.write_together(1, &writes(from..from + 1_000));
        group.run(Duration::from_millis(10));
    }
    group.run(Duration::from_secs(1));
    group.assert_agreed();
    group.isolate(NodeId(1), true);
    let changed = writes(0..1_000);
    for together in changed.chunks(16) {
        group.write_together(1, together);
    }
    group.run(Duration::from_secs(2));
    group.isolate(NodeId(1), false);
    let before = group.sent_bytes;
    group.run(Duration::from_millis(300));
    group.assert_agreed();
    let differing: usize = changed.iter().map(|write| write.key.len() + value.len()).sum();
    let sent = group.sent_bytes - before;
    assert!(sent * 10 <= differing * 12 + 10_240, "{sent} bytes for {differing} that differed");
}

#[test]
fn an_in_sync_digest_takes_at_most_16_bytes_an_origin() {
    let mut group = Group::new(3, |_| {});
    for node in 1..=3 {
        for _ in 0..200 {
            group.write(node, put("k", "v"));
        }
    }
    group.run(Duration::from_secs(1));
    let vector = group.replica(1).applied();
    let bytes = postcard::to_stdvec(vector).unwrap().len();
    assert!(bytes <= 16 * 3, "{bytes} bytes for three origins");
}

#[test]
fn peers_and_clients_cannot_cause_a_panic() {
    let mut group = Group::new(2, |_| {});
    group.write(2, put("k", "v"));
    let (_, _, message) = group.wire.pop_back().unwrap();
    let good = message.batches.as_slice()[0].clone();
    let meta = |stream, base, prev_digest| BatchMeta {
        cluster: ClusterId::from_name("test"),
        stream,
        base: LogIndex(base),
        term: Term(0),
        prev_digest,
        time: HybridTimestamp(1),
        kind: BatchKind::Commands,
    };
    let own = StreamId { group: GROUP, origin: group.replica(1).origin().unwrap() };
    let bad = [
        Batch::build(&meta(good.stream(), 1, 0), core::iter::once((&b""[..], None))),
        Batch::build(&meta(good.stream(), 1, 0), core::iter::once((&b"\x00garbage that is no write"[..], None))),
        Batch::build(&meta(own, 1, 0), core::iter::once((&b"x"[..], None))),
        Batch::build(&meta(StreamId::consensus(GROUP), 1, 0), core::iter::once((&b"x"[..], None))),
        Batch::build(&meta(good.stream(), u64::MAX - 7, 0), core::iter::once((&b"x"[..], None))),
    ];
    let before = group.places[&NodeId(1)].events.len();
    for batch in bad {
        let message = Message { head: message.head.clone(), batches: Batches::One(batch) };
        group.input(NodeId(1), Input::Message { from: NodeId(2), message });
    }
    let accused = |event: &&Event| matches!(event, Event::PeerMisbehaved { node: NodeId(2), .. });
    assert!(group.places[&NodeId(1)].events[before..].iter().filter(accused).count() >= 4);
    group.input(NodeId(1), Input::Message { from: NodeId(9), message });
    for body in [&b""[..], b"\xff\xff", b"\x00\x00"] {
        let (token, body) = (Token(999), bytes::Bytes::copy_from_slice(body));
        let level = WriteLevel::LeaderDisk;
        group.input(NodeId(1), Input::Command { token, group: GROUP, level, session: None, body: body.clone() });
        assert!(matches!(group.outcomes[&999], Outcome::Rejected(_)));
        let level = ReadLevel::Local;
        group.input(NodeId(1), Input::Query { token, group: GROUP, level, body, bytes_max: 100 });
        assert!(matches!(group.outcomes[&999], Outcome::Rejected(_)));
    }
    group.run(Duration::from_secs(1));
    group.assert_agreed();
}

#[test]
fn a_snapshot_above_the_limit_is_refused_and_told_and_only_its_beginning_comes_again() {
    let mut group = Group::new(3, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.snapshot_piece_bytes = 512;
        config.limits.cache_bytes_max = 512;
        if config.node == NodeId(3) {
            config.limits.snapshot_bytes_max = 2 << 10;
        }
    });
    group.isolate(NodeId(3), true);
    for n in 0..400 {
        group.write(1 + n % 2, put(&format!("k{}", n % 100), &format!("value {n}")));
        group.run(Duration::from_millis(10));
    }
    group.isolate(NodeId(3), false);
    let before = group.sent_bytes;
    group.run(Duration::from_secs(10));
    let refused = |event: &&Event| matches!(event, Event::SnapshotRefused { bytes_max: 2048, .. });
    let told = group.places[&NodeId(3)].events.iter().filter(refused).count();
    assert!((1..=2).contains(&told), "told {told} times within ten seconds");
    let (pieces, others) = (500 * 512, 64 << 10);
    assert!(group.sent_bytes - before < pieces + others, "{} bytes", group.sent_bytes - before);
    assert!(!group.replica(3).applied().covers(group.replica(1).applied()));
    // The operator raises the limit.
    group.reconfigure(|config| config.limits.snapshot_bytes_max = 1 << 20);
    group.kill(NodeId(3));
    group.start(NodeId(3));
    group.run(Duration::from_secs(10));
    group.assert_agreed();
}

#[test]
fn a_log_that_was_given_up_for_who_is_away_sends_nobody_else_a_snapshot() {
    let mut group = Group::new(3, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.cache_bytes_max = 4 << 10;
    });
    group.isolate(NodeId(3), true);
    for n in 0..400 {
        group.write(1 + n % 2, put(&format!("k{}", n % 100), &format!("value {n}")));
        group.run(Duration::from_millis(10));
    }
    let installed = |event: &Event| matches!(event, Event::SnapshotInstalled { .. });
    for node in [1, 2] {
        assert!(!group.places[&NodeId(node)].events.iter().any(installed), "node {node}");
        assert_eq!(group.values(node, "k99"), ["value 399"]);
    }
    group.isolate(NodeId(3), false);
    group.run(Duration::from_secs(10));
    assert!(group.places[&NodeId(3)].events.iter().any(installed));
    group.assert_agreed();
}

/// Both sides of a netsplit of 30 s write so many new keys; returns how many flights it took until everybody had them after the
/// exchange that found out, and the bytes that were sent for each byte written.
fn netsplit(keys: u32) -> (u64, f64) {
    const ROUNDS: u32 = 300;
    let mut group = Group::new(3, |_| {});
    group.isolate(NodeId(3), true);
    let mut written = 0;
    for n in 0..ROUNDS {
        let key = |i: u32| format!("key {:07}", n * (keys / ROUNDS) + i);
        let writes: Vec<WriteRequest> = (0..keys / ROUNDS).map(|i| put(&key(i), "a value of some length")).collect();
        for writes in writes.chunks(100) {
            group.write_together(if n % 2 == 0 { 1 } else { 3 }, writes);
        }
        written += writes.len() * ("key 0000000".len() + "a value of some length".len());
        group.run(Duration::from_millis(100));
    }
    group.isolate(NodeId(3), false);
    let equal = |group: &Group| group.places.values().all(|p| p.replica.applied() == group.replica(1).applied());
    assert!(!equal(&group));
    let (mut flights, sent) = (0, group.sent_bytes);
    for _ in 0..200 {
        let before = group.flights;
        group.run(Duration::from_millis(10));
        flights = group.flights - before;
        if equal(&group) {
            break;
        }
    }
    group.assert_agreed();
    (flights, (group.sent_bytes - sent) as f64 / written as f64)
}

#[test]
fn what_both_sides_wrote_during_a_netsplit_is_there_after_one_exchange_and_two_round_trips() {
    let (flights, bytes) = netsplit(30_000);
    // Until nothing is under way any more, reports of what was received included.
    assert!(flights <= 4, "{flights} flights after the exchange that found out");
    // The half of node 3 goes to both others; the other half comes to it from both, who find out at the same time.
    assert!(bytes < 3.0, "{bytes} bytes for each that was written");
}
