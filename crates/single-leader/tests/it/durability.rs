//! The durability ladder: what each level waits for, and what is reported when it was too weak.

use std::time::Duration;

use replikit_core::*;

use crate::group::*;

/// Stops all disks but those given, lets messages through, and returns whether a write at the level is acknowledged.
fn acked_with_disks(level: WriteLevel, disks: usize, network: bool) -> bool {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.write(leader, "warm");
    let order: Vec<NodeId> =
        std::iter::once(leader).chain([1, 2, 3].map(node).into_iter().filter(|&id| id != leader)).collect();
    for id in &order[disks..] {
        group.nodes.get_mut(id).unwrap().disk_stopped = true;
    }
    if !network {
        group.isolate(leader);
    }
    let token = group.command(leader, level, "x");
    group.settle();
    match group.outcomes.get(&token) {
        Some(Outcome::Acked { strict, reached, .. }) => {
            assert!(usize::from(reached.durable) <= disks, "no more disks are counted than have it");
            assert!(!matches!(level, WriteLevel::Quorum | WriteLevel::Applied(_)) || *strict, "a commit is strict");
            true
        }
        Some(other) => panic!("{other:?}"),
        None => false,
    }
}

#[test]
fn each_level_waits_for_exactly_what_it_promises() {
    use WriteLevel::*;
    for (level, disks, network, acked) in [
        (Memory, 0, false, true),
        (LeaderDisk, 0, true, false),
        (LeaderDisk, 1, false, true),
        (Received(2), 0, false, false),
        (Received(2), 0, true, true),
        (Received(3), 0, true, true),
        (Durable(2), 1, true, false),
        (Durable(2), 2, true, true),
        (Durable(3), 2, true, false),
        (Durable(3), 3, true, true),
        (Quorum, 1, true, false),
        (Quorum, 2, true, true),
        (Quorum, 3, false, false),
        (Applied(1), 2, true, true),
        (Applied(2), 2, true, true),
        (Applied(3), 3, true, true),
        (Applied(2), 1, true, false),
    ] {
        assert_eq!(acked_with_disks(level, disks, network), acked, "{level:?} with {disks} disks, network {network}");
    }
}

#[test]
fn a_quorum_of_followers_commits_while_the_leaders_own_disk_is_still_busy() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.nodes.get_mut(&leader).unwrap().disk_stopped = true;
    let token = group.command(leader, WriteLevel::Quorum, "x");
    group.settle();
    let Some(Outcome::Acked { reached, .. }) = group.outcomes.get(&token) else { panic!("two of three disks suffice") };
    assert_eq!(reached.durable, 2);
}

#[test]
fn writes_that_a_weak_level_lost_are_reported_and_the_session_token_tells_the_client() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.write(old, "kept");
    group.isolate(old);
    let token = group.command(old, WriteLevel::LeaderDisk, "lost");
    let Outcome::Acked { at, strict: false, .. } = group.outcomes[&token].clone() else {
        panic!("weak and acknowledged")
    };
    group.run(Duration::from_millis(600));
    let new = group.leader().filter(|&new| new != old).expect("the others elect");
    group.write(new, "new");
    let mut session = SessionToken::new();
    session.observe(at);
    let read = group.query(new, ReadLevel::Session(session));
    assert_eq!(
        group.outcomes[&read],
        Outcome::Rejected(Rejection::LostWrites { term: at.id.term, index: at.id.index })
    );
    group.heal();
    group.run(Duration::from_millis(300));
    let reported = group.nodes[&old].events.iter().any(
        |event| matches!(event, Event::LostWrites { range, term, .. } if range.contains(&at.id.index) && *term == at.id.term),
    );
    assert!(reported, "{:?}", group.nodes[&old].events);
    assert_eq!(group.list(old), "kept,new");
}
