//! What the paper and the module's documentation claim, one test each, with members that hear each other at once.

mod damage;
mod group;

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{Epoch, NodeId, Quorum, Time, Token, VALUE_BYTES_MAX, WriteEffect, WriteOp};

use self::group::{DEADLINE, Group, majority, member};
use super::*;

fn put(value: &'static str) -> CasOp {
    CasOp::Put { value: value.into() }
}

const fn add(delta: i64) -> CasOp {
    CasOp::Add { delta }
}

fn counter(value: i64) -> Effect {
    Effect::Wrote(WriteEffect::Counter { value })
}

fn found(value: &'static str) -> Effect {
    Effect::Read(Some(value.into()))
}

#[test]
fn the_first_change_of_a_key_takes_two_round_trips_and_each_further_one_of_the_same_proposer_one() {
    for others in [2, 4] {
        let mut group = Group::new(others as u32 + 1);
        assert_eq!(group.effect(1, "k", add(1)), counter(1));
        assert_eq!(group.asks(), [others, others, 0]);
        for n in 2..20 {
            assert_eq!(group.effect(1, "k", add(1)), counter(n));
            assert_eq!(group.asks(), [0, others, 0]);
        }
        let stats = group.at(1).stats();
        assert_eq!((stats.rounds, stats.one_trip, stats.conflicts), (20, 18, 0));
    }
}

#[test]
fn a_read_takes_one_round_trip_and_writes_nothing_wherever_it_is_asked() {
    let mut group = Group::new(3);
    assert_eq!(group.effect(2, "k", CasOp::Read), Effect::Read(None));
    group.effect(1, "k", put("v"));
    group.asks();
    let written: usize = group.records.values().map(Vec::len).sum();
    for node in 1..=3 {
        assert_eq!(group.effect(node, "k", CasOp::Read), found("v"));
        assert_eq!(group.asks(), [0, 0, 2]);
    }
    assert_eq!(group.records.values().map(Vec::len).sum::<usize>(), written);
    group.effect(1, "k", put("w"));
    assert_eq!(group.asks(), [0, 2, 0], "reads did not take the promises away from the writer");
}

#[test]
fn values_that_are_known_to_who_asks_are_not_sent() {
    let mut group = Group::new(3);
    group.effect(1, "k", put("v"));
    group.sent.clear();
    group.effect(2, "k", CasOp::Read);
    group.effect(2, "k", put("w"));
    let values = group.sent.iter().filter(|message| {
        matches!(message, Message::Answer { answer: Answer::Promised(held) | Answer::Holds(held), .. }
            if held.register.is_some())
    });
    assert_eq!(values.count(), 0);
}

#[test]
fn any_member_changes_what_another_one_has_written_and_the_writer_before_is_refused_once() {
    let mut group = Group::new(3);
    for n in 0..30 {
        assert_eq!(group.effect(1 + n % 3, "k", add(1)), counter(i64::from(n) + 1));
    }
    assert_eq!(group.effect(1, "k", CasOp::Read), found("30"));
}

#[test]
fn operations_have_the_effects_of_the_keyspace() {
    let mut group = Group::new(3);
    let wrote = |effect| Effect::Wrote(effect);
    let create = |value: &'static str| CasOp::CompareAndSet { expected: None, new: Some(value.into()) };
    assert_eq!(group.effect(1, "k", create("a")), wrote(WriteEffect::Done));
    assert_eq!(group.effect(2, "k", create("b")), wrote(WriteEffect::Mismatch { found: Some("a".into()) }));
    assert_eq!(group.effect(3, "k", add(1)), wrote(WriteEffect::NotACounter));
    assert_eq!(group.effect(3, "k", put("41")), wrote(WriteEffect::Done));
    assert_eq!(group.effect(1, "k", add(1)), counter(42));
    assert_eq!(group.effect(1, "k", add(i64::MAX)), wrote(WriteEffect::NotACounter));
    assert_eq!(group.effect(2, "k", CasOp::Delete), wrote(WriteEffect::Done));
    assert_eq!(group.effect(2, "k", CasOp::Read), Effect::Read(None));
    let exclaim = |value: Option<&Bytes>| value.map(|value| Bytes::from([value, &b"!"[..]].concat()));
    assert_eq!(group.effect(2, "k", CasOp::Update(Arc::new(|_| Some("hi".into())))), wrote(WriteEffect::Done));
    assert_eq!(group.effect(3, "k", CasOp::Update(Arc::new(exclaim))), wrote(WriteEffect::Done));
    let large = |_: Option<&Bytes>| Some(Bytes::from(vec![0; VALUE_BYTES_MAX + 1]));
    assert_eq!(group.effect(3, "k", CasOp::Update(Arc::new(large))), wrote(WriteEffect::Unsupported));
    assert_eq!(group.effect(1, "k", CasOp::Read), found("hi!"));
    assert!(CasOp::of(WriteOp::Delete).is_some());
}

#[test]
fn a_minority_may_be_down_and_a_majority_may_not() {
    let mut group = Group::new(5);
    group.down.extend([NodeId(4), NodeId(5)]);
    assert_eq!(group.effect(1, "k", add(1)), counter(1));
    assert_eq!(group.effect(1, "k", add(1)), counter(2));
    assert_eq!(group.effect(2, "k", CasOp::Read), found("2"));
    group.down.insert(NodeId(3));
    assert_eq!(group.ask(2, "k", add(1)), End::TimedOut, "it was never proposed");
    assert_eq!(group.ask(2, "k", CasOp::Read), End::TimedOut);
    assert_eq!(group.ask(1, "k", add(1)), End::Indeterminate, "it was proposed, at the ballot promised before");
    group.down.clear();
    let sum = group.effect(3, "k", CasOp::Read);
    assert!(sum == found("2") || sum == found("3"));
    assert_eq!(group.at(1).sizes().requests + group.at(2).sizes().requests, 0);
}

#[test]
fn an_accepted_value_survives_whoever_proposes_next_and_is_not_applied_again() {
    let mut group = Group::new(3);
    group.effect(1, "k", add(1));
    // The proposal reaches one other member, and no answer comes back.
    let token = group.begin(1, "k", add(10));
    group.collect();
    let (from, to, message) = group.wires.pop_front().unwrap();
    assert_eq!((from, to), (NodeId(1), NodeId(2)));
    group.wires.clear();
    let now = group.now;
    group.at(2).handle_message(now, from, message);
    group.collect();
    group.wires.clear();
    // Somebody else finds it and goes on from there, so often that the first proposer's ballot is long past.
    for n in 0..20 {
        assert_eq!(group.effect(3, "k", add(100)), counter(111 + 100 * n));
    }
    assert!(!group.ended.contains_key(&token));
    group.pass(Duration::from_millis(200));
    group.pass(Duration::from_millis(200));
    match &group.ended[&token] {
        End::Done { effect, .. } => assert_eq!(*effect, counter(11), "the effect that it had then"),
        other => panic!("{other:?}"),
    }
    assert_eq!(group.effect(2, "k", CasOp::Read), found("2011"));
}

#[test]
fn requests_of_one_key_that_wait_are_proposed_together_in_order() {
    let mut group = Group::new(3);
    let first = group.begin(1, "k", put("1"));
    let reads_then = group.begin(1, "k", CasOp::Read);
    let adds: Vec<Token> = (0..10).map(|_| group.begin(1, "k", add(1))).collect();
    let reads_last = group.begin(1, "k", CasOp::Read);
    group.settle();
    assert_eq!(group.asks(), [2, 2, 0], "the first phase gave the others time to join in");
    let effect = |token: &Token| match &group.ended[token] {
        End::Done { effect, .. } => effect.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((effect(&first), effect(&reads_then)), (Effect::Wrote(WriteEffect::Done), found("1")));
    for (n, token) in adds.iter().enumerate() {
        assert_eq!(effect(token), counter(2 + n as i64));
    }
    assert_eq!(effect(&reads_last), found("11"));
}

#[test]
fn nothing_that_says_yes_leaves_before_it_is_on_disk() {
    let mut group = Group::new(3);
    group.effect(1, "k", put("v"));
    group.slow_disks = true;
    group.sent.clear();
    for op in [put("w"), CasOp::Read] {
        group.begin(2, "k", op);
        group.settle();
    }
    assert!(group.sent.iter().all(|message| matches!(message, Message::Ask { .. })), "{:?}", group.sent);
    // What was promised and accepted already is told again only once it is durable.
    group.pass(Duration::from_millis(150));
    assert!(group.sent.iter().all(|message| matches!(message, Message::Ask { .. })), "{:?}", group.sent);
    assert!(group.at(1).sizes().held > 0);
}

#[test]
fn a_member_asks_nothing_before_its_start_is_on_disk() {
    let mut cas = member(1, 1, majority(1..=3), CasConfig::default());
    cas.start(Start::Whole);
    cas.begin(Time(1), Token(1), "k".into(), put("v"), Time::NEVER).unwrap();
    let mut started = None;
    while let Some(output) = cas.poll_output() {
        match output {
            CasOutput::Persist { number, record: Record::Started { start: 1 } } => started = Some(number),
            CasOutput::Persist { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    cas.handle_durable(Time(2), started.unwrap());
    assert!(matches!(cas.poll_output(), Some(CasOutput::Send { .. })));
}

#[test]
fn a_member_that_lost_its_disk_answers_once_it_has_joined_from_all_others() {
    let mut group = Group::new(3);
    group.down.insert(NodeId(2));
    group.effect(1, "k", put("v"));
    group.down.clear();
    // Members 1 and 3 hold the value; 3 forgets it.
    let mut again = member(3, 2, majority(1..=3), CasConfig::default());
    again.start(Start::Forgetful);
    group.members.insert(NodeId(3), again);
    group.down.insert(NodeId(1));
    assert_eq!(group.ask(2, "k", CasOp::Read), End::TimedOut, "2 and 3 alone know nothing, and 3 says nothing");
    let life = group.at(3).life();
    assert_eq!(life, Life(2));
    for giver in [1, 2] {
        assert_eq!(group.at(3).standing(), Standing::Joining);
        group.at(giver).admit(NodeId(3), life);
        let given: Vec<Record> = group.at(giver).image().collect();
        given.iter().for_each(|record| group.at(3).join(record));
    }
    group.at(3).serve();
    group.settle();
    assert_eq!(group.effect(2, "k", CasOp::Read), found("v"));
    group.down.clear();
    assert_eq!(group.effect(1, "k", add(1)), Effect::Wrote(WriteEffect::NotACounter));
}

#[test]
fn what_a_member_accepted_before_it_lost_its_disk_does_not_count_with_what_others_accept_after_it_joined() {
    let mut group = Group::new(5);
    group.effect(1, "k", add(1));
    // Member 4 proposes, and only 1 has promised so far; 1 does not know, and proposes at the ballot that it has in advance.
    group.begin(4, "k", add(100));
    group.collect();
    group.deliver(4, 1);
    let token = group.begin(1, "k", add(10));
    group.collect();
    // Only 5 accepts. It says so, and loses its disk.
    group.deliver(1, 5);
    group.deliver(5, 1);
    group.forget(5);
    // Then 2 and 3 accept.
    for other in [2, 3] {
        group.deliver(1, other);
        group.deliver(other, 1);
    }
    assert!(!group.ended.contains_key(&token), "1, 4 and 5 know nothing of it, and are a quorum");
    // What was promised to 4 by 1 and 5 lets it go on from the value before.
    group.deliver(1, 4);
    group.deliver(4, 5);
    group.deliver(5, 4);
    group.settle();
    group.pass(Duration::from_millis(200));
    group.pass(Duration::from_millis(200));
    assert!(matches!(&group.ended[&token], End::Done { effect, .. } if *effect == counter(111)), "{:?}", group.ended);
    assert_eq!(group.effect(2, "k", CasOp::Read), found("111"));
}

#[test]
fn a_joint_quorum_takes_both_memberships_and_older_epochs_are_not_answered() {
    let mut group = Group::new(5);
    let nodes = |range: core::ops::RangeInclusive<u32>| range.map(NodeId).collect::<Vec<_>>();
    group.effect(1, "k", put("v"));
    let now = group.now;
    for node in 1..=5 {
        let quorum = Quorum::joint(nodes(1..=3), nodes(3..=5)).unwrap();
        group.at(node).reconfigure(now, Epoch(2), quorum);
    }
    group.down.extend([NodeId(4), NodeId(5)]);
    assert_eq!(group.ask(1, "k", put("w")), End::TimedOut, "a majority of the new members is missing");
    group.down.clear();
    group.effect(1, "k", put("w"));
    let now = group.now;
    for node in 3..=5 {
        group.at(node).reconfigure(now, Epoch(3), majority(3..=5));
    }
    assert_eq!(group.effect(5, "k", CasOp::Read), found("w"));
    assert_eq!(group.ask(1, "k", CasOp::Read), End::TimedOut, "member 1 counts in an epoch that is over");
}

#[test]
fn the_state_comes_back_from_records_and_from_an_image_alike() {
    let mut group = Group::new(3);
    for (node, key) in [(1, "a"), (2, "b"), (3, "a"), (1, "c")] {
        group.effect(node, key, add(1));
    }
    let image: Vec<Record> = group.at(2).image().collect();
    let records = group.records[&NodeId(2)].clone();
    let both = image.iter().chain(&records).cloned().collect();
    let backwards = records.iter().rev().cloned().collect();
    for from in [records, both, backwards] {
        let mut cas = member(2, 1, majority(1..=3), CasConfig::default());
        from.iter().for_each(|record: &Record| cas.recover(record));
        assert_eq!(cas.image().collect::<Vec<_>>(), image);
        cas.start(Start::Whole);
        assert_eq!(cas.standing(), Standing::Serving);
        let started = cas.image().next();
        assert_eq!(started, Some(Record::Started { start: 2 }), "its ballots are new");
    }
}

#[test]
fn what_is_too_much_or_too_large_is_refused() {
    let limits = CasConfig { requests_max: 3, requests_per_key_max: 2, ..CasConfig::default() };
    let mut group = Group::with(3, limits);
    group.down.extend([NodeId(2), NodeId(3)]);
    let now = group.now;
    let tokens = [group.begin(1, "a", add(1)), group.begin(1, "a", add(1)), group.begin(1, "b", add(1))];
    let mut begin = |key: Bytes, op| group.at(1).begin(now, Token(99), key, op, now + DEADLINE);
    assert_eq!(begin("a".into(), add(1)), Err(CasRefusal::Busy { requests_max: 3 }));
    assert!(matches!(begin(Bytes::new(), add(1)), Err(CasRefusal::Size { bytes: 0, .. })));
    assert!(matches!(begin(vec![0; 5_000].into(), CasOp::Read), Err(CasRefusal::Size { bytes: 5_000, .. })));
    let large = CasOp::Put { value: vec![0; VALUE_BYTES_MAX + 1].into() };
    assert!(matches!(begin("a".into(), large), Err(CasRefusal::Size { .. })));
    group.pass(DEADLINE);
    assert!(tokens.iter().all(|token| group.ended[token] == End::TimedOut));
    let now = group.now;
    group.begin(1, "a", add(1));
    group.begin(1, "a", add(1));
    let third = group.at(1).begin(now, Token(99), "a".into(), add(1), now + DEADLINE);
    assert_eq!(third, Err(CasRefusal::Busy { requests_max: 2 }));
}
