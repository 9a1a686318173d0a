//! Maps: what is refused, what is found, what changes make.

use super::*;
use crate::partitioner::{HashSlots, HashThenRange, HashedPrefix, SlotHash};
use proptest::prelude::*;

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().map(|id| NodeId(*id)).collect()
}

fn key_map(bounds: &[&str]) -> PartitionMap {
    let bounds: Vec<Bytes> = bounds.iter().map(|bound| Bytes::copy_from_slice(bound.as_bytes())).collect();
    let groups = (1..=bounds.len() as u32 + 1).map(|group| (GroupId(group), nodes(&[1, 2, 3])));
    PartitionMap::first(Scheme::KEY_ORDER, bounds, groups).expect("the bounds rise")
}

fn with_spans(spans: &[(&'static str, Option<&'static str>)]) -> Result<PartitionMap, MapError> {
    let partitions = spans.iter().zip(1..).map(|(&(start, end), id)| {
        Arc::new(Partition {
            id: PartitionId(id),
            birth: Birth(1),
            span: Span::new(start, end.map(Bytes::from)),
            bounds: BoundsVersion(1),
            group: GroupId(id as u32),
            replication: Replication::SingleLeader,
            placement: PlacementVersion(1),
            replicas: nodes(&[1]),
            joined: BTreeMap::new(),
            turnover: Turnover::default(),
        })
    });
    PartitionMap::build(Epoch(1), Scheme::KEY_ORDER, PartitionId(99), partitions.collect(), BTreeMap::new())
}

fn refusal(spans: &[(&'static str, Option<&'static str>)]) -> String {
    with_spans(spans).expect_err("it does not cover the space once").to_string()
}

#[test]
fn a_map_that_does_not_cover_the_space_once_is_refused_with_the_place() {
    assert!(with_spans(&[("m", None), ("", Some("m"))]).is_ok(), "the order in which they are given does not matter");
    let gap = "gap: [\"f\", \"m\") belongs to no partition, after partition 1";
    assert_eq!(refusal(&[("", Some("f")), ("m", None)]), gap);
    let overlap = "overlap: [\"f\", \"m\") belongs to partition 1 and to partition 2";
    assert_eq!(refusal(&[("", Some("m")), ("f", None)]), overlap);
    let within = "overlap: [\"f\", \"g\") belongs to partition 1 and to partition 2";
    assert_eq!(refusal(&[("", None), ("f", Some("g"))]), within);
    let start = "gap: [\"\", \"b\") belongs to no partition, after the beginning";
    assert_eq!(refusal(&[("b", None)]), start);
    let end = "gap: [\"z\", end) belongs to no partition, after partition 1";
    assert_eq!(refusal(&[("", Some("z"))]), end);
    assert_eq!(refusal(&[]), "no partition covers anything: [\"\", end) is without an owner");
    assert_eq!(
        refusal(&[("", Some("m")), ("n", Some("m")), ("m", None)]),
        "partition 2 covers nothing: [\"n\", \"m\")"
    );
}

#[test]
fn replica_sets_bounds_and_ids_that_cannot_be_are_refused() {
    let first = |scheme, bound: &'static [u8], replicas: [&[u32]; 2], groups: [u32; 2]| {
        let groups = groups.iter().zip(replicas).map(|(group, ids)| (GroupId(*group), nodes(ids)));
        PartitionMap::first(scheme, [Bytes::from_static(bound)], groups).map(|_| ()).map_err(|error| error.to_string())
    };
    let key_order = Scheme::KEY_ORDER;
    assert_eq!(first(key_order, b"m", [&[1], &[2]], [1, 2]), Ok(()));
    let none = "partition 2 is on nodes []: at least one, and none twice, must hold it";
    assert_eq!(first(key_order, b"m", [&[1], &[]], [1, 2]), Err(none.to_owned()));
    let twice = "partition 1 is on nodes [n1, n1]: at least one, and none twice, must hold it";
    assert_eq!(first(key_order, b"m", [&[1, 1], &[2]], [1, 2]), Err(twice.to_owned()));
    let apart = "partitions 1 and 2 are both of group 5, but not placed alike";
    assert_eq!(first(key_order, b"m", [&[1], &[2]], [5, 5]), Err(apart.to_owned()));
    let bound = "partition 2 has a bound that cannot be: a bound between hash slots is a slot of two bytes from 1 to below 16384";
    assert_eq!(first(Scheme::hash_slots(1), b"m", [&[1], &[2]], [1, 2]), Err(bound.to_owned()));
    let few = PartitionMap::first(key_order, ["m".into()], [(GroupId(1), nodes(&[1]))]);
    assert_eq!(few, Err(MapError::TooFewGroups { pieces: 2, groups: 1 }));
}

fn slot_map(partitions: u16) -> PartitionMap {
    let groups = (1..=u32::from(partitions)).map(|group| (GroupId(group), nodes(&[1])));
    PartitionMap::first(Scheme::hash_slots(7), HashSlots::even_bounds(partitions), groups).expect("bounds rise")
}

#[test]
fn every_key_is_found_in_the_partition_of_its_slot() {
    let map = slot_map(1_000);
    for key in 0..20_000_u32 {
        let key = key.to_le_bytes();
        let partition = map.partition_of(&key);
        assert!(partition.span.contains(&map.scheme().position(&key).to_bytes()));
        assert_eq!(map.route(&key), partition.route());
    }
    assert_eq!(map.meeting(&Span::ALL).count(), 1_000);
    assert_eq!(map.meeting(&Span::one(b"k")).collect::<Vec<_>>(), [map.partition_of(b"k")]);
}

#[test]
fn a_route_to_other_bounds_is_refused_with_what_mends_it() {
    let old = key_map(&["m"]);
    let route = old.route(b"c");
    let (map, _) = old.changed(&Change::Split { partition: route.partition, at: "f".into() }).expect("f is within");
    let Err(Misrouted::Stale(stale)) = map.check(&route, b"g") else { panic!("the bounds have changed") };
    assert_eq!((stale.epoch, stale.current.len()), (Epoch(2), 1));
    assert_eq!(map.check(&stale.current[0].route(), b"g"), Ok(Fit::Exact));
    assert_eq!(old.check(&stale.current[0].route(), b"g"), Err(Misrouted::Ahead { epoch: Epoch(1) }));
    assert_eq!(old.check(&map.route(b"c"), b"c"), Err(Misrouted::Ahead { epoch: Epoch(1) }));
}

#[test]
fn a_right_route_for_a_wrong_key_is_refused() {
    let map = key_map(&["m"]);
    let Err(Misrouted::Stale(stale)) = map.check(&map.route(b"a"), b"x") else { panic!("x is elsewhere") };
    assert_eq!(stale.current[0].id, PartitionId(2));
    let scan = Span::prefixed(b"x");
    assert!(map.check_scan(&map.route(b"a"), &scan).is_err() && map.check_scan(&map.route(b"x"), &scan).is_ok());
}

#[test]
fn a_new_replica_set_is_told_but_refuses_nothing() {
    let old = key_map(&["m"]);
    let change = Change::Place { group: GroupId(1), replicas: nodes(&[4, 2, 3]) };
    let (map, _) = old.changed(&change).expect("the group is there");
    assert_eq!(map.check(&old.route(b"a"), b"a"), Ok(Fit::PlacedAnew));
    assert_eq!(map.check(&old.route(b"x"), b"x"), Ok(Fit::Exact));
}

#[test]
fn who_was_no_replica_in_between_has_joined_with_the_placement_that_it_came_back_with() {
    let map = key_map(&["m"]);
    let place = |map: &PartitionMap, to: &[u32]| {
        let change = Change::Place { group: GroupId(1), replicas: nodes(to) };
        map.changed(&change).expect("the group is there").0
    };
    let without = place(&map, &[4, 2, 1]);
    let again = place(&place(&without, &[5, 4, 1]), &[1, 2, 4]);
    let membership = again.partition_of(b"a").membership();
    let since: Vec<_> = (1..=5).map(|node| membership.since(NodeId(node)).map(|epoch| epoch.0)).collect();
    assert_eq!(since, [Some(1), Some(4), None, Some(2), None]);
    assert_eq!((membership.epoch, membership.is_founding()), (Epoch(4), false));
    assert!(again.partition_of(b"x").membership().is_founding(), "another group's");
    // The same as the memberships that follow each other.
    let mut followed = map.partition_of(b"a").membership();
    for replicas in [[1, 2, 4], [1, 4, 5], [1, 2, 4]] {
        let info = |id| NodeInfo { id: NodeId(id), address: String::new(), region: String::new(), zone: String::new() };
        followed = followed.next(replicas.map(info).into());
    }
    assert_eq!(membership, followed);
}

#[test]
fn a_partition_without_a_leader_moves_with_its_group_only() {
    let groups = (1..=2).map(|group| (GroupId(group), nodes(&[1, 2, 3])));
    let first = PartitionMap::first_of(Replication::Leaderless, Scheme::KEY_ORDER, ["m".into()], groups);
    let map = first.expect("the bounds rise");
    let refused = |change: &Change| map.changed(change).expect_err("it is refused");
    let (left, right) = (PartitionId(1), PartitionId(2));
    assert_eq!(refused(&Change::Split { partition: left, at: "c".into() }), Refused::NoLog(left));
    assert_eq!(refused(&Change::Merge { left, right }), Refused::NoLog(left));
    let handoff = Change::PlanHandoff { partition: right, target: GroupId(1), replicas: nodes(&[1, 2, 3]) };
    assert_eq!(refused(&handoff), Refused::NoLog(right));
    let (placed, _) =
        map.changed(&Change::Place { group: GroupId(2), replicas: nodes(&[4, 5]) }).expect("the group is there");
    assert_eq!(placed.partition_of(b"x").membership().ids().collect::<Vec<_>>(), nodes(&[4, 5]));
    // Two partitions of one such group would be one whose parts go different ways.
    let groups = [1, 1].map(|group| (GroupId(group), nodes(&[1, 2, 3])));
    let twice = PartitionMap::first_of(Replication::Leaderless, Scheme::KEY_ORDER, ["m".into()], groups);
    assert!(matches!(twice, Err(MapError::GroupShared { .. })));
}

#[test]
fn a_restore_makes_every_route_stale() {
    let old = key_map(&["m"]);
    let (map, _) = old.changed(&Change::Restore).expect("nothing is under way");
    assert!(matches!(map.check(&old.route(b"a"), b"a"), Err(Misrouted::Stale(_))));
}

#[test]
fn a_merge_needs_neighbours_of_one_group() {
    let map = key_map(&["f", "m"]);
    let merge = |left, right| Change::Merge { left: PartitionId(left), right: PartitionId(right) };
    let refused = |map: &PartitionMap, change: &Change| map.changed(change).map(|_| ()).expect_err("it is refused");
    assert_eq!(refused(&map, &merge(1, 2)), Refused::ApartGroups { left: GroupId(1), right: GroupId(2) });
    let not_adjacent = Refused::NotAdjacent { left: PartitionId(2), right: PartitionId(1) };
    assert_eq!(refused(&map, &merge(2, 1)), not_adjacent);
    let (map, _) = map.changed(&Change::Place { group: GroupId(2), replicas: nodes(&[7]) }).expect("it is there");
    let unaligned = Refused::UnalignedReplicas { left: nodes(&[1, 2, 3]), right: nodes(&[7]) };
    assert_eq!(refused(&map, &merge(1, 2)), unaligned);
    let (map, _) = map.changed(&Change::Split { partition: PartitionId(1), at: "c".into() }).expect("c is within");
    let old = map.route(b"d");
    let (map, _) = map.changed(&merge(1, 4)).expect("both halves are of one group");
    assert_eq!(map.partition_of(b"d").span, Span::new("", Some("f".into())));
    assert!(matches!(map.check(&old, b"d"), Err(Misrouted::Stale(_))), "its partition has ended");
}

#[test]
fn a_handoff_is_decided_once_and_nothing_else_touches_its_partition() {
    let map = key_map(&["m"]);
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(9), replicas: nodes(&[7, 8]) };
    let (planned, _) = map.changed(&plan).expect("nothing is under way");
    let id = HandoffId(2);
    let under = Err(Refused::UnderHandoff { partition: PartitionId(1), handoff: id });
    assert_eq!(planned.delta(&plan).map(|_| ()), under);
    let split = Change::Split { partition: PartitionId(1), at: "c".into() };
    assert_eq!(planned.delta(&split).map(|_| ()), under);
    assert_eq!(planned.delta(&Change::ForgetHandoff(id)), Err(Refused::StillOpen(id)));
    assert_eq!(planned.delta(&Change::Restore), Err(Refused::StillOpen(id)));
    assert_eq!(planned.check(&map.route(b"a"), b"a"), Ok(Fit::Exact), "a plan alone changes no route");

    let (committed, _) = planned.changed(&Change::CommitHandoff(id)).expect("it is open");
    let decided = Err(Refused::Decided { handoff: id, decision: Decision::Committed });
    assert_eq!(committed.delta(&Change::AbortHandoff(id)), decided);
    assert!(matches!(committed.check(&map.route(b"a"), b"a"), Err(Misrouted::Stale(_))));
    assert_eq!((committed.route(b"a").group, &committed.partition_of(b"a").replicas), (GroupId(9), &nodes(&[7, 8])));

    let (aborted, _) = planned.changed(&Change::AbortHandoff(id)).expect("it is open");
    assert!(aborted.delta(&Change::CommitHandoff(id)).is_err());
    assert_eq!(aborted.route(b"a"), map.route(b"a"));
    let (forgotten, _) = aborted.changed(&Change::ForgetHandoff(id)).expect("it is decided");
    assert_eq!(forgotten.handoff(id), None);
    assert_eq!(forgotten.delta(&Change::CommitHandoff(id)), Err(Refused::UnknownHandoff(id)));
    assert_eq!(
        forgotten.changed(&plan).expect("it is free again").0.handoffs().next().map(|it| it.id),
        Some(HandoffId(5))
    );
}

#[test]
fn a_partition_is_not_handed_off_again_before_both_sides_have_cleaned() {
    let map = key_map(&["m"]);
    let plan = |partition, target, on: &[u32]| Change::PlanHandoff {
        partition: PartitionId(partition),
        target: GroupId(target),
        replicas: nodes(on),
    };
    let (map, _) = map.changed(&plan(1, 9, &[7, 8])).expect("nothing is under way");
    let id = HandoffId(2);
    let (decided, _) = map.changed(&Change::CommitHandoff(id)).expect("it is open");
    // The source may still have what it had: back there, it would come to light again, or be dropped late.
    let back = plan(1, 1, &[1, 2, 3]);
    assert_eq!(decided.delta(&back), Err(Refused::NotForgotten(id)));
    let split = Change::Split { partition: PartitionId(1), at: "c".into() };
    let (halves, _) = decided.changed(&split).expect("the handoff is decided");
    assert_eq!(halves.delta(&plan(3, 2, &[1, 2, 3])), Err(Refused::NotForgotten(id)), "a half of it as well");
    let (aborted, _) = map.changed(&Change::AbortHandoff(id)).expect("it is open");
    assert_eq!(
        aborted.delta(&plan(1, 9, &[7, 8])),
        Err(Refused::NotForgotten(id)),
        "the target may still have the copy"
    );
    let (forgotten, _) = decided.changed(&Change::ForgetHandoff(id)).expect("it is decided");
    assert!(forgotten.delta(&back).is_ok());
}

#[test]
fn a_source_that_has_no_partition_left_is_found_until_it_has_cleaned() {
    let map = key_map(&["m"]);
    let (map, _) = map.changed(&Change::Place { group: GroupId(1), replicas: nodes(&[4, 5]) }).expect("it is there");
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: nodes(&[1, 2, 3]) };
    let (map, planned) = map.changed(&plan).expect("nothing is under way");
    let id = planned.handoffs[0].id;
    let (map, _) = map.changed(&Change::CommitHandoff(id)).expect("it is open");
    assert_eq!(map.of_group(GroupId(1)).count(), 0);
    let bytes = postcard::to_allocvec(&map).expect("it can be encoded");
    let read: PartitionMap = postcard::from_bytes(&bytes).expect("it was written here");
    let handoff = read.handoff(id).expect("nobody has forgotten it");
    assert_eq!((handoff.source, &handoff.source_replicas), (GroupId(1), &nodes(&[4, 5])));
}

#[test]
fn the_encoding_is_frozen() {
    let map = key_map(&["m"]);
    let plan = Change::PlanHandoff { partition: PartitionId(2), target: GroupId(9), replicas: nodes(&[7, 300]) };
    let (map, delta) = map.changed(&plan).expect("nothing is under way");
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let bytes = postcard::to_allocvec(&map).expect("it can be encoded");
    // Epoch, scheme, next id; two partitions; one handoff.
    let golden = concat!(
        "02", "00", "03", //
        "02", "01", "01", "00", "01", "01", "6d", "01", "01", "00", "01", "03", "01", "02", "03", "00", "00", "00",
        "00", //
        "02", "01", "01", "6d", "00", "01", "02", "00", "01", "03", "01", "02", "03", "00", "00", "00", "00", //
        "01", "02", "02", "01", "01", "01", "6d", "00", "02", "09", "02", "07", "ac02", "03", "01", "02", "03", "00"
    );
    assert_eq!(hex(bytes.clone()), golden);
    assert_eq!(postcard::from_bytes::<PartitionMap>(&bytes).expect("it is whole"), map);
    let golden = concat!(
        "01", "03", "00", "00", //
        "01", "02", "02", "01", "01", "01", "6d", "00", "02", "09", "02", "07", "ac02", "03", "01", "02", "03", "00",
        "00"
    );
    assert_eq!(hex(postcard::to_allocvec(&delta).expect("it can be encoded")), golden);
    let slots = postcard::to_allocvec(&Scheme::hash_slots(300)).expect("it can be encoded");
    assert_eq!(hex(slots), "0100ac02");
    let compound = HashThenRange { hash: SlotHash::RedisCrc16, prefix: HashedPrefix::Until(b':') };
    assert_eq!(hex(postcard::to_allocvec(&Scheme::HashThenRange(compound)).expect("it can be encoded")), "0201003a");
}

#[test]
fn an_encoded_map_with_a_gap_is_refused_when_read() {
    let bytes = postcard::to_allocvec(&key_map(&["m"])).expect("it can be encoded");
    let at = bytes.iter().rposition(|byte| *byte == b'm').expect("the bound is in it");
    let mut broken = bytes;
    broken[at] = b'n';
    assert!(postcard::from_bytes::<PartitionMap>(&broken).is_err());
}

/// Any change, also ones that make no sense at the map.
fn change() -> impl Strategy<Value = Change> {
    let partition = || (1_u64..12).prop_map(PartitionId);
    let handoff = || (1_u64..24).prop_map(HandoffId);
    let replicas = || proptest::collection::vec((1_u32..5).prop_map(NodeId), 0..4);
    let at = proptest::collection::vec(prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(255)], 0..4);
    prop_oneof![
        4 => (partition(), at).prop_map(|(partition, at)| Change::Split { partition, at: at.into() }),
        2 => (partition(), partition()).prop_map(|(left, right)| Change::Merge { left, right }),
        1 => (1_u32..6, replicas()).prop_map(|(group, replicas)| Change::Place { group: GroupId(group), replicas }),
        2 => (partition(), 1_u32..6, replicas()).prop_map(|(partition, target, replicas)| {
            Change::PlanHandoff { partition, target: GroupId(target), replicas }
        }),
        2 => handoff().prop_map(Change::CommitHandoff),
        1 => handoff().prop_map(Change::AbortHandoff),
        1 => handoff().prop_map(Change::ForgetHandoff),
        1 => Just(Change::Restore),
    ]
}

proptest! {
    #[test]
    fn whatever_changes_come_the_map_stays_whole_and_only_goes_forward(
        changes in proptest::collection::vec(change(), 0..40), key in proptest::collection::vec(any::<u8>(), 0..4)
    ) {
        let first = key_map(&["b"]);
        let mut map = first.clone();
        let mut log = DeltaLog::new(&first, 8);
        let mut all = Vec::new();
        let mut taken = std::collections::BTreeSet::from([PartitionId(1), PartitionId(2)]);
        for change in &changes {
            let Ok((next, delta)) = map.changed(change) else { continue };
            prop_assert_eq!(next.epoch(), Epoch(map.epoch().0 + 1));
            // I1: made again from its parts, it passes every check.
            let again = PartitionMap::build(
                next.epoch, next.scheme, next.next_id, next.partitions.clone(), next.handoffs.clone(),
            );
            prop_assert_eq!(&again.expect("it is whole"), &next);
            prop_assert_eq!(next.partitions().filter(|it| it.span.contains(&key)).count(), 1);
            prop_assert_eq!(&next.partition_of(&key).span, &next.partitions().find(|it| it.span.contains(&key)).expect("one").span);
            for group in next.partitions().map(|it| it.group) {
                prop_assert!(next.of_group(group).eq(next.partitions().filter(|it| it.group == group)));
            }
            // I5: no version goes back, no id comes again.
            for partition in next.partitions() {
                match map.partition(partition.id) {
                    Some(old) => prop_assert!((old.birth, old.bounds) <= (partition.birth, partition.bounds)),
                    None => prop_assert!(taken.insert(partition.id)),
                }
            }
            // A route that still fits is of the partition as it is.
            let route = map.route(&key);
            if next.check(&route, &key).is_ok() {
                prop_assert_eq!(next.route(&key).group, route.group);
            }
            prop_assert_eq!(log.push(delta.clone()), Ok(()));
            all.push(delta);
            map = next;
        }
        prop_assert_eq!(&first.caught_up(&all).expect("none is missing"), &map);
        prop_assert_eq!(&map.caught_up(&all).expect("it has them all"), &map);
        if all.len() > 1 {
            let gap = first.caught_up(&all[1..]);
            prop_assert_eq!(gap, Err(DeltaError::Gap { have: Epoch(1), next: Epoch(2) }));
        }
        match log.since(first.epoch(), usize::MAX) {
            Catchup::Deltas(deltas) => prop_assert_eq!(&first.caught_up(&deltas).expect("none is missing"), &map),
            Catchup::Map => prop_assert!(all.len() > 8),
        }
        prop_assert_eq!(log.since(map.epoch(), usize::MAX), Catchup::Deltas(Vec::new()));
        let bytes = postcard::to_allocvec(&map).expect("it can be encoded");
        prop_assert_eq!(&postcard::from_bytes::<PartitionMap>(&bytes).expect("it is whole"), &map);
    }

    #[test]
    fn the_directory_finds_what_a_search_finds(
        which in 0..3, prefix in proptest::collection::vec(any::<u8>(), 0..12),
        bounds in proptest::collection::btree_set(
            proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..12), 0..60
        ),
        keys in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..14), 1..60
        )
    ) {
        let hash = SlotHash::Xxh3 { seed: 1 };
        let scheme = match which {
            0 => Scheme::KEY_ORDER,
            1 => Scheme::HashThenRange(HashThenRange { hash, prefix: HashedPrefix::Bytes(1) }),
            _ => Scheme::hash_slots(1),
        };
        let made: std::collections::BTreeSet<Bytes> = bounds.iter().filter_map(|bound| match which {
            0 => Some(Bytes::from([&prefix[..], bound].concat())).filter(|bound| !bound.is_empty()),
            1 => Some(Bytes::from([&[bound.len() as u8 % 3, 7][..], bound].concat())),
            _ => bound.first_chunk::<2>().map(|slot| Bytes::from(vec![slot[0] & 0x3f, slot[1]])).filter(|slot| **slot != [0, 0]),
        }).collect();
        let groups = (1..=made.len() as u32 + 1).map(|group| (GroupId(group), nodes(&[1])));
        let map = PartitionMap::first(scheme, made, groups).expect("sets are sorted");
        let near = bounds.iter().map(|bound| [&prefix[..], bound].concat());
        for key in keys.iter().cloned().chain(keys.iter().map(|key| [&prefix[..], key].concat())).chain(near) {
            let position = scheme.position(&key).to_bytes();
            let found = map.partition_of(&key);
            prop_assert!(found.span.contains(&position), "{:?} is not in {:?}", position, found.span);
        }
    }
}
