//! Nodes that watch each other for their groups.

use std::time::Duration;

use replikit_core::*;
use replikit_partitioning::{Groups, GroupsHead, NodeHeartbeats, Part};

use crate::toy::*;

type Node = Groups<Toy>;

const EVERY: Duration = Duration::from_millis(30);
const PATIENCE: Duration = Duration::from_millis(150);

/// So much has passed before the tests begin, in milliseconds: by then all groups have begun.
const STARTED: u64 = 1000;

fn at(millis: u64) -> Now {
    Now { mono: Time((STARTED + millis) * 1_000_000), ..Now::default() }
}

/// Tells a node that recovery is over, and goes on for a while.
fn start(node: &mut Node) {
    let before = |millis: u64| Now { mono: Time(millis * 1_000_000), ..Now::default() };
    node.handle(before(0), Input::Recovered);
    for millis in 1..20 {
        drain(node);
        node.handle(before(millis), Input::Timer);
    }
    drain(node);
}

/// A node with so many groups, which sleep until they are told that a node is gone.
fn node(groups: u32, life: u64) -> Node {
    let toy = |group| (GroupId(group), Toy { woken_until: Some(Time(u64::MAX - 1)), ..Toy::default() });
    let node = Groups::new(Epoch(1), (1..=groups).map(toy));
    let mut node = node.with_node_heartbeats(NodeHeartbeats { every: EVERY, patience: PATIENCE, life });
    start(&mut node);
    node
}

fn drain(node: &mut Node) -> Vec<(NodeId, GroupsHead<u8>)> {
    let sent = std::iter::from_fn(|| node.poll()).map(|action| match action {
        Action::Send { to, message } => (to, message.head),
        other => panic!("{other:?}"),
    });
    sent.collect()
}

fn hear(node: &mut Node, millis: u64, from: u32, life: u64) {
    let head = GroupsHead { parts: Vec::new(), life: Some(life) };
    let message = Message { head, batches: Batches::None };
    node.handle(at(millis), Input::Message { from: NodeId(from), message });
    drain(node);
}

fn tick(node: &mut Node, millis: u64) -> Vec<(NodeId, GroupsHead<u8>)> {
    node.handle(at(millis), Input::Timer);
    drain(node)
}

fn told(node: &Node, group: u32) -> Vec<&str> {
    let seen = &node.replica(GroupId(group)).expect("it is here").seen;
    seen.iter().map(String::as_str).filter(|seen| seen.starts_with("node")).collect()
}

fn awake(node: &Node) -> usize {
    node.groups().filter(|(_, toy)| toy.deadline.is_some()).count()
}

#[test]
fn a_node_with_ten_thousand_sleeping_groups_says_one_small_thing_to_each_peer() {
    let mut node = node(10_000, 7);
    hear(&mut node, 0, 2, 1);
    hear(&mut node, 0, 3, 1);
    assert_eq!(node.deadline(), Some(at(30).mono));
    for beat in 1..=4 {
        let sent = tick(&mut node, beat * 30);
        assert_eq!(sent.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [2, 3]);
        for (_, head) in sent {
            assert!(head.parts.is_empty());
            assert!(postcard::to_stdvec(&head).expect("it encodes").len() <= 12);
        }
    }
    assert_eq!(node.take_rested().len(), 10_000, "from the beginning");
    tick(&mut node, 149);
    assert_eq!(node.take_rested(), [], "no group has run");
}

#[test]
fn what_groups_say_takes_the_place_of_a_heartbeat() {
    let groups = [(GroupId(1), Toy { wants: [say(2, 1, None)].into(), ..Toy::default() })];
    let heartbeats = NodeHeartbeats { every: EVERY, patience: PATIENCE, life: 7 };
    let mut node = Groups::new(Epoch(1), groups).with_node_heartbeats(heartbeats);
    node.handle(at(1), Input::Recovered);
    let sent = drain(&mut node);
    assert_eq!(sent[0].1.life, Some(7), "which tells the life as well");
    node.handle(at(10), Input::Timer);
    assert_eq!(drain(&mut node), []);
    assert_eq!(tick(&mut node, 31).len(), 1);
}

#[test]
fn groups_hear_of_a_node_that_falls_silent_and_of_its_return() {
    let mut node = node(1, 7);
    hear(&mut node, 0, 2, 1);
    tick(&mut node, 149);
    assert_eq!(told(&node, 1), [""; 0]);
    tick(&mut node, 180);
    assert_eq!(told(&node, 1), ["node 2 is Down"]);
    hear(&mut node, 200, 2, 1);
    assert_eq!(told(&node, 1), ["node 2 is Down", "node 2 is Up"]);
}

#[test]
fn groups_hear_of_a_node_that_began_anew_before_they_hear_what_it_says() {
    let mut node = node(1, 7);
    hear(&mut node, 0, 2, 1);
    let parts = vec![Part { group: GroupId(1), batches: 0, head: 5 }];
    let message = Message { head: GroupsHead { parts, life: Some(2) }, batches: Batches::None };
    node.handle(at(1), Input::Message { from: NodeId(2), message });
    let seen = &node.replica(GroupId(1)).expect("it is here").seen;
    assert_eq!(seen[1..], ["node 2 is Reset", "node 2 is Up", "5 from 2 with 0"]);
}

#[test]
fn a_node_that_dies_wakes_its_groups_a_few_at_a_time() {
    let mut node = node(1000, 7);
    hear(&mut node, 0, 2, 1);
    let (mut now, mut steps, mut before) = (180, 0, 0);
    tick(&mut node, now);
    while awake(&node) < 1000 {
        let woken = awake(&node) - before;
        assert!((1..=8).contains(&woken), "{woken} at once");
        before = awake(&node);
        steps += 1;
        assert_eq!(node.deadline().map(|due| due <= at(now + 1).mono), Some(true));
        now += 1;
        tick(&mut node, now);
    }
    assert_eq!(steps, 1000 / 8 - 1);
    assert!((1..=1000).all(|group| told(&node, group) == ["node 2 is Down"]));
}

/// A node whose groups are awake once they have begun, as recovery ends.
fn starting(groups: u32, wants: impl Fn(u32) -> Vec<Action<u8>>) -> Node {
    let begun_until = Some(Time(u64::MAX - 1));
    let toy = |group| (GroupId(group), Toy { begun_until, wants: wants(group).into(), ..Toy::default() });
    let mut node = Groups::new(Epoch(1), (1..=groups).map(toy));
    while node.poll().is_some() {}
    node.handle(at(0), Input::Recovered);
    while node.poll().is_some() {}
    node
}

#[test]
fn a_node_that_starts_wakes_its_groups_a_few_at_a_time() {
    let mut node = starting(1000, |_| Vec::new());
    let (mut now, mut before) = (0, 0);
    while awake(&node) < 1000 {
        assert_eq!(awake(&node) - before, 8);
        before = awake(&node);
        now += 1;
        assert_eq!(node.deadline(), Some(at(now).mono));
        tick(&mut node, now);
    }
    tick(&mut node, now + 1);
    assert!((1..=1000).all(|group| node.replica(GroupId(group)).expect("it is here").seen == ["recovered"]));
}

#[test]
fn a_node_with_much_to_write_wakes_its_groups_more_slowly_but_does() {
    let mut node = starting(1000, |group| if group == 1 { (1..=1000).map(persist).collect() } else { Vec::new() });
    let mut woken = vec![awake(&node)];
    for now in 1..=48 {
        tick(&mut node, now);
        woken.push(awake(&node));
    }
    assert_eq!((woken[0], woken[15], woken[16], woken[31], woken[32], woken[48]), (8, 8, 16, 16, 24, 32));
    node.handle(at(48), Input::Durable { up_to: WriteId(1000) });
    tick(&mut node, 49);
    tick(&mut node, 50);
    assert_eq!(awake(&node), 48, "the disk has caught up");
}

#[test]
fn a_node_without_the_time_to_wake_its_groups_wakes_them_more_slowly() {
    let mut node = starting(1000, |_| Vec::new());
    let woken: Vec<usize> = [1, 7, 8, 14, 18, 24].map(|now| (tick(&mut node, now), awake(&node)).1).into();
    assert_eq!(woken, [16, 16, 24, 24, 32, 32], "steps at 2, 9 and 19 come at 7, 14 and 24: too late");
}

#[test]
fn who_asks_all_groups_of_a_node_that_starts_does_not_have_them_begin() {
    let mut node = starting(1000, |_| Vec::new());
    let ask = |node: &mut Node, group: u32| {
        node.handle(at(0), Input::OpenSession { token: Token(group.into()), group: GroupId(group) });
        node.replica(GroupId(group)).expect("it is here").seen.len()
    };
    assert_eq!((ask(&mut node, 1), ask(&mut node, 900)), (2, 0));
    let waits = Outcome::Rejected(Rejection::NotLeader { leader: None });
    assert!(matches!(node.poll(), Some(Action::Done { token: Token(900), outcome }) if outcome == waits));
    assert_eq!(awake(&node), 8);
}

#[test]
fn a_group_begins_before_it_hears_anything_else() {
    let mut node = starting(1000, |_| Vec::new());
    let seen = |node: &Node, group| node.replica(GroupId(group)).expect("it is here").seen.clone();
    assert_eq!(seen(&node, 900), [""; 0], "its turn has not come");
    let parts = vec![Part { group: GroupId(900), batches: 0, head: 5 }];
    let message = Message { head: GroupsHead { parts, life: None }, batches: Batches::None };
    node.handle(at(0), Input::Message { from: NodeId(2), message });
    assert_eq!(seen(&node, 900), ["recovered", "5 from 2 with 0"]);
    for now in 1..200 {
        tick(&mut node, now);
    }
    assert_eq!(seen(&node, 900), ["recovered", "5 from 2 with 0"], "but once");
}

#[test]
fn a_group_that_is_asked_for_something_hears_of_losses_first() {
    let mut node = node(1000, 7);
    hear(&mut node, 0, 2, 1);
    tick(&mut node, 180);
    assert_eq!(told(&node, 1000), [""; 0], "its turn has not come");
    node.handle(at(180), Input::OpenSession { token: Token(1), group: GroupId(1000) });
    let seen = &node.replica(GroupId(1000)).expect("it is here").seen;
    assert_eq!(seen[1], "node 2 is Down");
    assert!(seen[2].starts_with("OpenSession"));
}

#[test]
fn a_group_that_comes_later_is_told_who_is_gone() {
    let mut node = node(1, 7);
    hear(&mut node, 0, 2, 1);
    tick(&mut node, 180);
    node.add(at(181), GroupId(9), Toy::default());
    assert_eq!(told(&node, 9), ["node 2 is Down"]);
}

#[test]
fn a_node_that_gives_up_a_group_or_its_disk_is_taken_for_one_that_began_anew_or_died() {
    let mut node = node(2, 7);
    hear(&mut node, 0, 2, 1);
    assert_eq!(tick(&mut node, 30)[0].1.life, Some(7));
    node.remove(GroupId(2));
    assert_ne!(tick(&mut node, 60)[0].1.life, Some(7));
    node.handle(at(61), Input::Storage { event: StorageEvent::Failed });
    assert_eq!(tick(&mut node, 90), []);
}

#[test]
fn a_container_that_does_not_watch_says_nothing_of_its_life_and_passes_links_on() {
    let mut node = Groups::new(Epoch(1), [(GroupId(1), Toy { wants: [say(2, 1, None)].into(), ..Toy::default() })]);
    assert_eq!(drain(&mut node)[0].1.life, None);
    node.handle(at(1), Input::Peer { node: NodeId(2), link: Link::Down });
    drain(&mut node);
    assert_eq!(told(&node, 1), ["node 2 is Down"]);
    assert_eq!(node.deadline(), None);
}
