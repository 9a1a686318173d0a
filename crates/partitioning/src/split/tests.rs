//! Cuts, refusals, and that splits and merges come to rest.

use super::*;
use crate::map::Change;
use crate::partitioner::{HashSlots, Partitioner as _};
use crate::span::Span;
use proptest::prelude::*;
use replikit_core::{GroupId, NodeId};

fn key_map() -> PartitionMap {
    PartitionMap::first(Scheme::KEY_ORDER, [], [(GroupId(1), vec![NodeId(1)])]).expect("it is whole")
}

fn whole() -> Partition {
    key_map().partition_of(b"").clone()
}

fn key(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// SplitMix64: keys in no order.
fn mixed(n: u64) -> u64 {
    let mut it = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it ^ (it >> 31)
}

fn by_load(requests: impl IntoIterator<Item = (Bytes, u64)>) -> Result<Bytes, Refused> {
    let mut sampler = LoadSampler::new(1);
    for (position, weight) in requests {
        sampler.record(Request::Write(&position), weight);
    }
    sampler.cut(&Scheme::KEY_ORDER, &whole())
}

fn share_below(cut: &Bytes, keys: impl Iterator<Item = Bytes> + Clone) -> f64 {
    keys.clone().filter(|key| key < cut).count() as f64 / keys.count() as f64
}

#[test]
fn load_spread_over_keys_is_cut_near_its_middle() {
    let keys = (0..10_000).map(|n| key(mixed(n) % 1_000));
    let cut = by_load(keys.clone().map(|key| (key, 1))).expect("it can be cut");
    let left = share_below(&cut, keys);
    assert!((0.35..0.65).contains(&left), "{left} of the load is on the left");
}

#[test]
fn one_key_with_most_of_the_load_is_named_as_the_reason() {
    let hot = |n: u64| if n.is_multiple_of(10) { key(mixed(n) % 1_000) } else { key(500) };
    let refused = by_load((0..10_000).map(|n| (hot(n), 1)));
    assert!(matches!(refused, Err(Refused::SingleKey { percent: 85..=95 })), "{refused:?}");
}

#[test]
fn writes_in_key_order_are_named_as_the_reason() {
    let refused = by_load((0..10_000).map(|n| (key(n), 1)));
    assert!(matches!(refused, Err(Refused::Sequential { percent: 99..=100 })), "{refused:?}");
    let down = by_load((0..10_000).map(|n| (key(20_000 - n), 1)));
    assert!(matches!(down, Err(Refused::Sequential { percent: 99..=100 })), "{down:?}");
}

#[test]
fn scans_over_everything_are_named_as_the_reason() {
    let mut sampler = LoadSampler::new(1);
    for n in 0..1_000 {
        sampler.record(Request::Scan(&Span::new(key(mixed(n) % 100), Some(key(900 + mixed(n) % 100)))), 1);
        sampler.record(Request::Read(&key(mixed(n) % 1_000)), u64::from(n % 4 == 0));
    }
    let refused = sampler.cut(&Scheme::KEY_ORDER, &whole());
    assert!(matches!(refused, Err(Refused::Spanning { .. })), "{refused:?}");
}

#[test]
fn short_scans_do_not_hinder_a_cut() {
    let mut sampler = LoadSampler::new(1);
    for n in 0..2_000 {
        let start = mixed(n) % 1_000;
        sampler.record(Request::Scan(&Span::new(key(start), Some(key(start + 10)))), 1);
    }
    let cut = sampler.cut(&Scheme::KEY_ORDER, &whole()).expect("it can be cut");
    assert!((300..700).contains(&u64::from_be_bytes(cut[..8].try_into().expect("a key"))));
}

#[test]
fn too_few_requests_are_no_reason_to_cut() {
    let refused = by_load((0..199).map(|n| (key(mixed(n)), 1)));
    assert_eq!(refused, Err(Refused::TooFewSamples { samples: 199, needed: 200 }));
}

#[test]
fn a_hot_slot_cannot_be_cut_but_two_can() {
    let scheme = Scheme::hash_slots(1);
    let HashSlots { hash } = HashSlots { hash: crate::partitioner::SlotHash::Xxh3 { seed: 1 } };
    let map = PartitionMap::first(scheme, [], [(GroupId(1), vec![NodeId(1)])]).expect("it is whole");
    let cut = |keys: u64| {
        let mut sampler = LoadSampler::new(1);
        for n in 0..1_000_u64 {
            sampler.record(Request::Write(&hash.slot(&(mixed(n) % keys).to_le_bytes()).to_bytes()), 1);
        }
        sampler.cut(&scheme, map.partition_of(b""))
    };
    assert_eq!(cut(1), Err(Refused::SingleKey { percent: 100 }));
    let at = cut(2).expect("it can be cut");
    assert_eq!(scheme.check_bound(&at), Ok(()));
}

#[test]
fn sizes_are_cut_at_half_of_the_bytes() {
    // The upper tenth of the keys has half of the bytes.
    let sample = |n: u64| SizeSample { position: key(n), bytes: if n < 900 { 10 } else { 90 } };
    let samples: Vec<_> = (0..1_000).map(|n| sample((n * 7) % 1_000)).collect();
    assert_eq!(cut_by_size(&Scheme::KEY_ORDER, &whole(), &samples), Ok(key(900)));
    let one_large: Vec<_> =
        (0..1_000).map(|n| SizeSample { position: key(n), bytes: if n == 300 { 99_000 } else { 1 } }).collect();
    let refused = cut_by_size(&Scheme::KEY_ORDER, &whole(), &one_large);
    assert_eq!(refused, Err(Refused::SingleKey { percent: 100 }));
    let few = cut_by_size(&Scheme::KEY_ORDER, &whole(), &samples[..19]);
    assert_eq!(few, Err(Refused::TooFewSamples { samples: 19, needed: 20 }));
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_burst_splits_nothing_and_cold_neighbours_wait_their_time() {
    let map = key_map();
    let (map, _) = map.changed(&Change::Split { partition: PartitionId(1), at: key(5) }).expect("it is within");
    let thresholds = Thresholds::default();
    let mut trends = Trends::default();
    let hot = |ops| BTreeMap::from([(PartitionId(1), Load { ops, ..Load::NONE }), (PartitionId(2), Load::NONE)]);
    let mut at = |second: u64, ops| trends.observe(Time(second * SECOND), &map, &hot(ops), &thresholds);
    assert_eq!(at(0, 9_000).splits, []);
    assert_eq!(at(9, 9_000).splits, []);
    assert_eq!(at(10, 9_000).splits, [PartitionId(1)]);
    assert_eq!(at(11, 2_000).splits, [], "it has cooled down");
    assert_eq!(at(12, 9_000).splits, [], "the time starts again");
    assert_eq!(at(13, 1_000).merges, []);
    assert_eq!(at(312, 1_000).merges, []);
    assert_eq!(at(313, 1_000).merges, [(PartitionId(1), PartitionId(2))]);
}

#[test]
fn cold_neighbours_on_other_nodes_are_held_up_with_the_reason() {
    let groups = [(GroupId(1), vec![NodeId(1)]), (GroupId(2), vec![NodeId(2)])];
    let map = PartitionMap::first(Scheme::KEY_ORDER, ["m".into()], groups).expect("it is whole");
    let loads = map.partitions().map(|it| (it.id, Load::NONE)).collect();
    let mut trends = Trends::default();
    trends.observe(Time(0), &map, &loads, &Thresholds::default());
    let advice = trends.observe(Time(300 * SECOND), &map, &loads, &Thresholds::default());
    assert_eq!(advice.merges, []);
    let unaligned = Refused::UnalignedReplicas { left: vec![NodeId(1)], right: vec![NodeId(2)] };
    assert_eq!(advice.held_up, [(PartitionId(1), PartitionId(2), unaligned)]);
}

proptest! {
    #[test]
    fn splits_and_merges_come_to_rest_and_never_undo_each_other(
        weights in proptest::collection::vec(0_u64..100, 40..120), cuts in proptest::collection::btree_set(1_u64..120, 0..40),
        split_above in 50_u64..2_000
    ) {
        let mut map = PartitionMap::first(Scheme::KEY_ORDER, cuts.iter().map(|cut| key(*cut)),
            std::iter::repeat_n((GroupId(1), vec![NodeId(1)]), cuts.len() + 1)).expect("it is whole");
        let thresholds = Thresholds {
            split_above: Load { bytes: split_above, ops: u64::MAX, cpu: u64::MAX }, ..Thresholds::default()
        };
        let (mut split_at, mut merged_at) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut trends = Trends::default();
        let mut quiet = 0;
        for round in 0..1_000_u64 {
            let samples: Vec<_> =
                weights.iter().zip(0..).map(|(bytes, n)| SizeSample { position: key(n), bytes: *bytes }).collect();
            let load = |it: &Partition| {
                let within = samples.iter().filter(|sample| it.span.contains(&sample.position));
                (it.id, Load { bytes: within.map(|sample| sample.bytes).sum(), ..Load::NONE })
            };
            let loads = map.partitions().map(load).collect();
            let advice = trends.observe(Time(round * 20 * SECOND), &map, &loads, &thresholds);
            let before = map.epoch();
            for id in &advice.splits {
                let Ok(at) = cut_by_size(&Scheme::KEY_ORDER, map.partition(*id).expect("it is there"), &samples) else { continue };
                prop_assert!(!merged_at.contains(&at), "{:?} was joined before", at);
                split_at.insert(at.clone());
                map = map.changed(&Change::Split { partition: *id, at }).expect("the cut is within").0;
            }
            for &(left, right) in &advice.merges {
                let at = map.partition(right).expect("it is there").span.start.clone();
                prop_assert!(!split_at.contains(&at), "{:?} was cut before", at);
                merged_at.insert(at);
                map = map.changed(&Change::Merge { left, right }).expect("they are neighbours").0;
            }
            quiet = if map.epoch() == before { quiet + 1 } else { 0 };
            if quiet > 20 {
                return Ok(());
            }
        }
        prop_assert!(false, "it does not come to rest");
    }
}
