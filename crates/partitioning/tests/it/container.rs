//! What the container promises.

use proptest::prelude::*;
use replikit_core::*;
use replikit_partitioning::{FRAME_PARTS_MAX, Groups, GroupsHead, Part};

use crate::toy::*;

type Node = Groups<Toy>;

/// Groups 1 to n, each about to hand out the given actions.
fn node(wants: impl IntoIterator<Item = Vec<Action<u8>>>) -> Node {
    let toys = wants
        .into_iter()
        .zip(1..)
        .map(|(wants, group)| (GroupId(group), Toy { wants: wants.into(), ..Toy::default() }));
    Groups::new(Epoch(7), toys)
}

fn drain(node: &mut Node) -> Vec<Action<GroupsHead<u8>>> {
    std::iter::from_fn(|| node.poll()).collect()
}

fn seen(node: &Node, group: u32) -> Vec<&str> {
    node.replica(GroupId(group)).expect("the group is here").seen.iter().map(String::as_str).collect()
}

#[test]
fn storage_actions_are_one_sequence_and_each_touched_group_hears_of_its_own_once() {
    let mut node = node([vec![persist(1), persist(2)], vec![persist(1)], Vec::new()]);
    let ids: Vec<u64> = drain(&mut node)
        .into_iter()
        .map(|action| match action {
            Action::Persist { id, .. } => id.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2, 3]);
    node.handle(Now::default(), Input::Durable { up_to: WriteId(3) });
    assert_eq!(seen(&node, 1), ["durable 2"]);
    assert_eq!(seen(&node, 2), ["durable 1"]);
    assert_eq!(seen(&node, 3), [""; 0], "an idle group hears nothing");
}

#[test]
fn what_all_groups_say_to_a_peer_in_a_round_is_one_message_and_arrives_at_its_groups() {
    let mut sender = node([
        vec![say(2, 10, [batch(1), batch(1)]), say(3, 11, None)],
        vec![say(2, 20, None), say(2, 21, [batch(2)])],
    ]);
    let mut receiver = node([Vec::new(), Vec::new()]);
    let sent = drain(&mut sender);
    assert_eq!(sent.len(), 2, "one message for each peer: {sent:?}");
    for action in sent {
        let Action::Send { to, message } = action else { panic!("{action:?}") };
        if to == NodeId(2) {
            // As on the wire.
            let head = postcard::from_bytes(&postcard::to_stdvec(&message.head).expect("encodes")).expect("decodes");
            let message = Message { head, batches: message.batches };
            receiver.handle(Now::default(), Input::Message { from: NodeId(1), message });
        }
    }
    assert_eq!(seen(&receiver, 1), ["10 from 1 with 2"]);
    assert_eq!(seen(&receiver, 2), ["20 from 1 with 0", "21 from 1 with 1"]);
}

#[test]
fn a_long_round_is_cut_into_several_messages() {
    let parts = FRAME_PARTS_MAX * 2 + 1;
    let mut node = node([(0..parts).map(|_| say(2, 1, None)).collect()]);
    let sizes: Vec<usize> = drain(&mut node)
        .into_iter()
        .map(|action| match action {
            Action::Send { message, .. } => message.head.parts.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [FRAME_PARTS_MAX, FRAME_PARTS_MAX, 1]);
}

#[test]
fn only_groups_whose_deadline_has_come_are_woken() {
    let mut node = Groups::new(
        Epoch(1),
        [(1, Some(Time(30))), (2, Some(Time(10))), (3, None)]
            .map(|(group, deadline)| (GroupId(group), Toy { deadline, ..Toy::default() })),
    );
    drain(&mut node);
    assert_eq!(node.deadline(), Some(Time(10)));
    node.handle(Now { mono: Time(20), ..Now::default() }, Input::Timer);
    drain(&mut node);
    assert_eq!((seen(&node, 1), seen(&node, 2)), (Vec::new(), vec!["timer"]));
    assert_eq!(node.deadline(), Some(Time(30)));
}

#[test]
fn equal_tickets_of_two_groups_find_their_way_back() {
    let read = |group| Action::ReadLog {
        ticket: Ticket(5),
        stream: StreamId::consensus(GroupId(group)),
        from: LogIndex(1),
        bytes_max: 1,
    };
    let snapshot = Action::ReadSnapshot { ticket: Ticket(5), at: None, group: GroupId(2), offset: 0, bytes_max: 1 };
    let mut node = node([vec![read(1)], vec![read(2), snapshot]]);
    for action in drain(&mut node).into_iter().rev() {
        let input = match action {
            Action::ReadLog { ticket, stream, .. } => {
                Input::LogRead { ticket, stream, answer: LogAnswer::Batches(Batches::None) }
            }
            Action::ReadSnapshot { ticket, .. } => Input::SnapshotRead { ticket, answer: SnapshotAnswer::Gone },
            other => panic!("{other:?}"),
        };
        node.handle(Now::default(), input);
    }
    node.handle(Now::default(), Input::SnapshotRead { ticket: Ticket(99), answer: SnapshotAnswer::Gone });
    assert_eq!(seen(&node, 1), ["log read 5"]);
    assert_eq!(seen(&node, 2), ["snapshot read 5", "log read 5"]);
}

#[test]
fn a_request_for_a_group_that_is_not_here_is_answered_with_the_epoch() {
    let mut node = node([Vec::new()]);
    let query = |token, group| Input::Query {
        token: Token(token),
        group: GroupId(group),
        level: ReadLevel::Local,
        body: "".into(),
        bytes_max: 0,
    };
    node.handle(Now::default(), query(1, 1));
    node.handle(Now::default(), query(2, 9));
    let actions = drain(&mut node);
    let stale = Outcome::Rejected(Rejection::StaleRoute { current: Epoch(7) });
    assert!(matches!(&actions[..], [Action::Done { token: Token(2), outcome }] if *outcome == stale), "{actions:?}");
    assert_eq!(seen(&node, 1), ["query"]);
}

#[test]
fn recovery_goes_to_each_group_and_damage_only_to_its_own() {
    let mut node = node([Vec::new(), Vec::new()]);
    node.handle(Now::default(), Input::Recover { batch: batch(2) });
    node.handle(Now::default(), Input::Recover { batch: batch(9) });
    node.handle(Now::default(), Input::Recovered);
    let stream = StreamId::consensus(GroupId(1));
    let event = StorageEvent::Faulty { stream, range: LogIndex(1)..=LogIndex(1) };
    node.handle(Now::default(), Input::Storage { event });
    node.handle(Now::default(), Input::Storage { event: StorageEvent::Failed });
    assert_eq!(seen(&node, 1)[0], "recovered");
    assert!(seen(&node, 1)[1].starts_with("Faulty"));
    assert_eq!(seen(&node, 2), ["recover 1", "recovered", "Failed"]);
}

#[test]
fn only_groups_that_wait_for_the_disk_hear_that_it_stalls() {
    let mut node = node([vec![persist(1), persist(2)], Vec::new(), Vec::new()]);
    drain(&mut node);
    let slow = || Input::Storage { event: StorageEvent::Slow };
    node.handle(Now::default(), slow());
    assert_eq!((seen(&node, 1), seen(&node, 2)), (vec!["Slow"], Vec::new()));
    // One that wants something of it while it stalls hears it then, and once.
    node.add(Now::default(), GroupId(4), Toy { wants: [persist(1), persist(2)].into(), ..Toy::default() });
    drain(&mut node);
    assert_eq!(seen(&node, 4), ["Slow"]);
    node.handle(Now::default(), Input::Durable { up_to: WriteId(2) });
    node.add(Now::default(), GroupId(5), Toy { wants: [persist(1)].into(), ..Toy::default() });
    drain(&mut node);
    assert_eq!(seen(&node, 5), [""; 0], "the disk works again");
    node.handle(Now::default(), slow());
    assert_eq!((seen(&node, 1), seen(&node, 3)), (vec!["Slow", "durable 2"], Vec::new()));
    assert_eq!((seen(&node, 4).len(), seen(&node, 5)), (2, vec!["Slow"]));
}

fn part() -> impl Strategy<Value = Part<u8>> {
    (0..4_u32, 0..3_u32, any::<u8>()).prop_map(|(group, batches, head)| Part { group: GroupId(group), batches, head })
}

proptest! {
    #[test]
    fn parts_that_claim_other_batches_than_came_are_dropped_and_reported(
        parts in proptest::collection::vec(part(), 0..6),
        came in 0..8_usize,
    ) {
        let mut node = node([Vec::new(), Vec::new(), Vec::new()]);
        let claimed: usize = parts.iter().map(|part| part.batches as usize).sum();
        let here = |part: &&Part<u8>| (1..=3).contains(&part.group.0);
        let expected: usize = parts.iter().filter(here).map(|part| part.batches as usize).sum();
        let batches = (0..came).map(|_| batch(1)).collect();
        let message = Message { head: GroupsHead { parts, life: None }, batches };
        node.handle(Now::default(), Input::Message { from: NodeId(2), message });
        let got: usize = node.groups().map(|(_, toy)| toy.batches_seen).sum();
        let reported = drain(&mut node)
            .iter()
            .any(|action| matches!(action, Action::Event { event: Event::PeerMisbehaved { .. }, .. }));
        prop_assert_eq!(reported, claimed != came);
        prop_assert_eq!(got, if reported { 0 } else { expected });
    }
}
