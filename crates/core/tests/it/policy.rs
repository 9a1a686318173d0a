//! Conflict policies: every version is accounted for, whatever the order.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use replikit_core::crdt::{AddWinsSet, Causal, CrdtKind};
use replikit_core::policy::{Cause, ConflictPolicy, DeletePolicy, Live, Resolution, Version, resolve};
use replikit_core::{Counterexample, Dot, HybridTimestamp, OriginId, Stamp, check_resolver};

fn stamp(time: u64, origin: u32) -> Stamp {
    Stamp { time: HybridTimestamp(time), dot: Dot { origin: OriginId(origin), sequence: 1 } }
}

fn put(time: u64, origin: u32, value: &'static str) -> Version {
    Version { stamp: stamp(time, origin), value: Some(Bytes::from_static(value.as_bytes())) }
}

fn delete(time: u64, origin: u32) -> Version {
    Version { stamp: stamp(time, origin), value: None }
}

fn longest() -> ConflictPolicy {
    ConflictPolicy::Merge(Arc::new(|left, right| {
        if (left.len(), left) >= (right.len(), right) { left.clone() } else { right.clone() }
    }))
}

fn policies() -> [ConflictPolicy; 4] {
    [ConflictPolicy::Lww, ConflictPolicy::Siblings, longest(), ConflictPolicy::Crdt(CrdtKind::Set)]
}

const DELETES: [DeletePolicy; 3] = [DeletePolicy::AddWins, DeletePolicy::DeleteWins, DeletePolicy::NewerWins];

fn versions() -> impl Strategy<Value = Vec<Version>> {
    let value = |origin: u32, kind: u8| match kind {
        0 | 1 => None,
        2 => Some(Bytes::from(vec![b'x'; origin as usize])),
        _ => {
            let dot = Dot { origin: OriginId(origin), sequence: 1 };
            Some(AddWinsSet::default().add(dot, Bytes::from(vec![origin as u8])).to_bytes())
        }
    };
    proptest::collection::btree_map(1..6_u32, (0..4_u64, 0..6_u8), 0..5).prop_map(move |versions| {
        let version = |(origin, (time, kind))| Version { stamp: stamp(time, origin), value: value(origin, kind) };
        versions.into_iter().map(version).collect()
    })
}

fn live_stamps(live: &Live) -> Vec<Stamp> {
    match live {
        Live::Absent => vec![],
        Live::Deleted(stamp) => vec![*stamp],
        Live::One(version) => vec![version.stamp],
        Live::Siblings(versions) => versions.iter().map(|version| version.stamp).collect(),
        Live::Merged { from, .. } => from.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_version_is_shown_or_audited_and_order_does_not_matter(
        (versions, shuffled) in versions().prop_flat_map(|all| (Just(all.clone()), Just([all.clone(), all].concat()).prop_shuffle())),
    ) {
        for policy in policies() {
            for deletes in DELETES {
                let resolution = resolve(&policy, deletes, &versions);
                prop_assert_eq!(&resolve(&policy, deletes, &shuffled), &resolution, "{:?} {:?}", policy, deletes);
                let live: BTreeSet<Stamp> = live_stamps(&resolution.live).into_iter().collect();
                let lost: BTreeSet<Stamp> = resolution.overwritten.iter().map(|lost| lost.version.stamp).collect();
                prop_assert_eq!(lost.len(), resolution.overwritten.len());
                let all: BTreeSet<Stamp> = versions.iter().map(|version| version.stamp).collect();
                prop_assert_eq!(live.union(&lost).copied().collect::<BTreeSet<_>>(), all.clone());
                let merged_by_function = matches!(policy, ConflictPolicy::Merge(_));
                prop_assert!(merged_by_function || live.is_disjoint(&lost), "{:?} {:?}", policy, deletes);
                for lost in &resolution.overwritten {
                    prop_assert!(all.contains(&lost.by));
                    prop_assert!(lost.cause != Cause::Newer || lost.by > lost.version.stamp);
                }
            }
        }
    }

    #[test]
    fn the_newest_value_wins_among_values(versions in versions()) {
        let values: Vec<Version> = versions.into_iter().filter(|version| version.value.is_some()).collect();
        let newest = values.iter().max_by_key(|version| version.stamp).cloned();
        let Resolution { live, .. } = resolve(&ConflictPolicy::Lww, DeletePolicy::AddWins, &values);
        prop_assert_eq!(live, newest.map_or(Live::Absent, Live::One));
    }
}

#[test]
fn a_delete_and_a_concurrent_value_are_decided_by_the_policy_for_deletes() {
    let (old, gone, new) = (put(1, 1, "old"), delete(2, 2), put(3, 3, "new"));
    let all = [old.clone(), gone.clone(), new.clone()];
    let siblings = |deletes| resolve(&ConflictPolicy::Siblings, deletes, &all);
    let kept = siblings(DeletePolicy::AddWins);
    assert_eq!(kept.live, Live::Siblings(vec![old.clone(), new.clone()]));
    assert_eq!(kept.overwritten.len(), 1);
    assert_eq!(kept.overwritten[0].cause, Cause::DeleteLost);
    assert_eq!(siblings(DeletePolicy::DeleteWins).live, Live::Deleted(gone.stamp));
    let newer = siblings(DeletePolicy::NewerWins);
    assert_eq!(newer.live, Live::One(new));
    let causes: Vec<_> = newer.overwritten.iter().map(|lost| (lost.version.clone(), lost.cause)).collect();
    assert_eq!(causes, [(old, Cause::Deleted), (gone, Cause::DeleteLost)]);
}

#[test]
fn equal_times_are_decided_by_the_node() {
    let versions = [put(5, 2, "two"), put(5, 3, "three"), put(5, 1, "one")];
    assert_eq!(resolve(&ConflictPolicy::Lww, DeletePolicy::AddWins, &versions).live, Live::One(versions[1].clone()));
}

#[test]
fn an_input_that_a_merge_function_drops_is_audited_and_the_one_it_keeps_is_not() {
    let versions = [put(1, 1, "long value"), put(2, 2, "short")];
    let resolution = resolve(&longest(), DeletePolicy::AddWins, &versions);
    let from = versions.iter().map(|version| version.stamp).collect();
    assert_eq!(resolution.live, Live::Merged { value: Bytes::from_static(b"long value"), from });
    let lost: Vec<_> = resolution.overwritten.iter().map(|lost| (lost.version.clone(), lost.cause)).collect();
    assert_eq!(lost, [(versions[1].clone(), Cause::Merged)]);
}

#[test]
fn values_of_a_mergeable_type_lose_nothing() {
    let dot = |origin| Dot { origin: OriginId(origin), sequence: 1 };
    let add = |origin: u32, element| Version {
        stamp: stamp(1, origin),
        value: Some(AddWinsSet::default().add(dot(origin), Bytes::from_static(element)).to_bytes()),
    };
    let versions = [add(1, b"a"), add(2, b"b"), put(9, 3, "not a set")];
    let policy = ConflictPolicy::Crdt(CrdtKind::Set);
    let Resolution { live, overwritten } = resolve(&policy, DeletePolicy::AddWins, &versions);
    let Live::Merged { value, .. } = live else { panic!("{live:?}") };
    let set = Causal::<AddWinsSet<Bytes>>::from_bytes(&value).unwrap();
    assert_eq!(set.store.iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(overwritten.iter().map(|lost| lost.cause).collect::<Vec<_>>(), [Cause::Malformed]);
}

#[test]
fn resolvers_that_break_a_law_are_shown_the_values_that_do_it() {
    let samples = [0_i64, 1, 2, 5];
    assert_eq!(check_resolver(|a: &i64, b: &i64| *a.max(b), &samples), Ok(()));
    let found = check_resolver(|a: &i64, b: &i64| a + b, &samples);
    assert_eq!(found, Err(Counterexample::NotIdempotent { value: 1, merged: 2 }));
    // "Keep what is here": the resolver `skip`, which makes replicas differ for ever.
    let found = check_resolver(|a: &i64, _: &i64| *a, &samples);
    assert_eq!(found, Err(Counterexample::NotCommutative { left: 0, right: 1, forth: 0, back: 1 }));
    let mean = |a: &i64, b: &i64| (a + b) / 2;
    assert!(matches!(check_resolver(mean, &samples), Err(Counterexample::NotAssociative { .. })));
    let calls = Cell::new(0);
    let moody = |a: &i64, b: &i64| {
        calls.set(calls.get() + 1);
        if a == b { *a } else { a.max(b) + calls.get() % 2 }
    };
    assert!(matches!(check_resolver(moody, &samples), Err(Counterexample::NotDeterministic { .. })));
}
