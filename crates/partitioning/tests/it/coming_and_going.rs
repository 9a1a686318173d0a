//! Groups that come and go while the container runs, and groups of two kinds in one container.

use replikit_core::*;
use replikit_partitioning::{Either, EitherHead, Groups};

use crate::toy::*;

fn toy(wants: Vec<Action<u8>>) -> Toy {
    Toy { wants: wants.into(), ..Toy::default() }
}

fn drain<R: Replica>(node: &mut R) -> Vec<Action<R::Head>> {
    std::iter::from_fn(|| node.poll()).collect()
}

fn persisted<H: std::fmt::Debug>(actions: Vec<Action<H>>) -> Vec<u64> {
    let id = |action| match action {
        Action::Persist { id, .. } => id.0,
        other => panic!("{other:?}"),
    };
    actions.into_iter().map(id).collect()
}

#[test]
fn a_slot_is_given_to_another_group_only_when_no_storage_action_of_the_first_is_under_way() {
    let now = Now::default();
    let mut node = Groups::new(Epoch(1), [(GroupId(1), toy(vec![persist(1), persist(2)]))]);
    node.handle(now, Input::Recovered);
    assert_eq!(persisted(drain(&mut node)), [1, 2]);
    let removed = node.remove(GroupId(1)).expect("it was here");
    assert_eq!(removed.seen, ["recovered"]);
    assert!(node.remove(GroupId(1)).is_none());
    node.add(now, GroupId(2), toy(vec![persist(1)]));
    assert_eq!(persisted(drain(&mut node)), [3]);
    node.handle(now, Input::Durable { up_to: WriteId(2) });
    assert_eq!(node.replica(GroupId(2)).unwrap().seen, ["recovered"], "what became durable is not its own");
    // Now the first slot is free, and the next group gets it; what it asks for is told to it alone.
    node.add(now, GroupId(3), toy(vec![persist(1)]));
    assert_eq!(persisted(drain(&mut node)), [4]);
    node.handle(now, Input::Durable { up_to: WriteId(4) });
    assert_eq!(node.replica(GroupId(2)).unwrap().seen, ["recovered", "durable 1"]);
    assert_eq!(node.replica(GroupId(3)).unwrap().seen, ["recovered", "durable 1"]);
    assert_eq!(node.groups().map(|(group, _)| group).collect::<Vec<_>>(), [GroupId(3), GroupId(2)]);
}

#[test]
fn a_group_that_is_gone_is_not_woken_and_its_requests_are_refused() {
    let now = Now::default();
    let one = Toy { deadline: Some(Time(5)), ..Toy::default() };
    let mut node = Groups::new(Epoch(1), [(GroupId(1), one), (GroupId(2), toy(Vec::new()))]);
    drain(&mut node);
    assert_eq!(node.deadline(), Some(Time(5)));
    node.remove(GroupId(1));
    assert_eq!(node.deadline(), None);
    node.handle(
        now,
        Input::Query { token: Token(4), group: GroupId(1), level: ReadLevel::Local, body: "q".into(), bytes_max: 9 },
    );
    let actions = drain(&mut node);
    assert!(matches!(actions[..], [Action::Done { token: Token(4), outcome: Outcome::Rejected(_) }]), "{actions:?}");
}

#[test]
fn groups_that_have_run_are_named_once() {
    let now = Now::default();
    let mut node = Groups::new(Epoch(1), (1..=3).map(|group| (GroupId(group), toy(Vec::new()))));
    drain(&mut node);
    node.take_rested();
    for _ in 0..3 {
        node.handle(now, Input::OpenSession { token: Token(1), group: GroupId(2) });
        drain(&mut node);
    }
    assert_eq!(node.take_rested(), [GroupId(2)]);
    assert_eq!(node.take_rested(), []);
}

#[test]
fn a_replica_hears_only_words_of_its_own_kind() {
    let mut one: Either<Toy, Toy> = Either::one(GroupId(1), toy(vec![say(2, 10, None)]));
    let Some(Action::Send { message, .. }) = one.poll() else { panic!("it speaks") };
    assert_eq!(message.head, EitherHead::One(10));
    let head = |head| Input::Message { from: NodeId(2), message: Message { head, batches: Batches::None } };
    one.handle(Now::default(), head(EitherHead::One(11)));
    one.handle(Now::default(), head(EitherHead::Other(12)));
    one.handle(Now::default(), Input::Timer);
    assert_eq!(one.as_one().unwrap().seen, ["11 from 2 with 0", "timer"]);
    let event = one.poll();
    assert!(
        matches!(event, Some(Action::Event { event: Event::PeerMisbehaved { node: NodeId(2), .. }, .. })),
        "{event:?}"
    );
    assert!(one.as_other().is_none());
}
