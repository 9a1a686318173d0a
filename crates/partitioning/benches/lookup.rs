//! From keys to routes, at maps of several kinds and sizes, beside the standard library's ordered map; and what the next map costs.
#![allow(missing_docs, reason = "criterion's macros generate public items without documentation")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Bound;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use replikit_core::{GroupId, NodeId};
use replikit_partitioning::{
    Change, HashSlots, HashThenRange, HashedPrefix, PartitionMap, Route, Scheme, SlotHash, Span,
};

/// Keys asked for in turn: many enough that no branch predictor learns them.
const KEYS: usize = 1 << 14;

fn map(scheme: Scheme, bounds: Vec<Bytes>) -> PartitionMap {
    let groups = (1..=bounds.len() as u32 + 1).map(|group| (GroupId(group), vec![NodeId(1), NodeId(2), NodeId(3)]));
    PartitionMap::first(scheme, bounds, groups).expect("the bounds rise")
}

/// SplitMix64.
fn mixed(n: u64) -> u64 {
    let mut it = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    it ^ (it >> 31)
}

/// Keys of 16 bytes, as people write them.
fn user(n: u64) -> [u8; 16] {
    let mut key = *b"user000000000000";
    let digits = format!("{n:012}");
    key[4..].copy_from_slice(digits.as_bytes());
    key
}

/// Keys of 16 bytes under one of eight tables, whose names differ behind the eighth byte.
fn row(n: u64) -> [u8; 16] {
    let mut key = *b"database/t_00000";
    key[10] = b'0' + (n % 8) as u8;
    key[11..].copy_from_slice(format!("{:05}", n / 8).as_bytes());
    key
}

fn even(partitions: u64, key: impl Fn(u64) -> [u8; 16]) -> Vec<Bytes> {
    let mut bounds: Vec<_> = (1..partitions).map(|nth| Bytes::copy_from_slice(&key(nth * 37))).collect();
    bounds.sort_unstable();
    bounds
}

fn lookups<const LENGTH: usize>(
    c: &mut Criterion,
    name: &str,
    size: usize,
    map: &PartitionMap,
    key: impl Fn(u64) -> [u8; LENGTH],
) {
    let keys: Vec<[u8; LENGTH]> = (0..KEYS as u64).map(key).collect();
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    group.bench_with_input(BenchmarkId::new(name, size), map, |b, map| {
        let mut nth = 0;
        b.iter(|| {
            nth = (nth + 1) % KEYS;
            map.route(black_box(&keys[nth]))
        });
    });
    group.finish();
}

fn hash_slots(c: &mut Criterion) {
    for partitions in [16, 1_024, 16_384] {
        let map = map(Scheme::hash_slots(7), HashSlots::even_bounds(partitions).collect());
        lookups(c, "hash slots, keys of 8 bytes", usize::from(partitions), &map, |n| mixed(n).to_le_bytes());
        lookups(c, "hash slots, keys of 16 bytes", usize::from(partitions), &map, |n| user(mixed(n) % 1_000_000));
    }
    let redis = Scheme::HashSlots(HashSlots { hash: SlotHash::RedisCrc16 });
    let map = map(redis, HashSlots::even_bounds(1_024).collect());
    lookups(c, "hash slots as Redis, keys of 8 bytes", 1_024, &map, |n| mixed(n).to_le_bytes());
}

fn ordered(c: &mut Criterion) {
    for partitions in [100, 10_000, 100_000] {
        let users = map(Scheme::KEY_ORDER, even(partitions, user));
        lookups(c, "key order, keys of 16 bytes", partitions as usize, &users, |n| user(mixed(n) % (partitions * 37)));
        let rows = map(
            Scheme::KEY_ORDER,
            even(partitions, |n| row(n % 800_000))
                .into_iter()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect(),
        );
        lookups(c, "key order, alike for 10 bytes of 16", rows.len(), &rows, |n| row(mixed(n) % (partitions * 37)));
        let bounds: BTreeMap<Bytes, Route> =
            users.partitions().map(|partition| (partition.span.start.clone(), partition.route())).collect();
        let keys: Vec<[u8; 16]> = (0..KEYS as u64).map(|n| user(mixed(n) % (partitions * 37))).collect();
        c.bench_with_input(BenchmarkId::new("route/BTreeMap, keys of 16 bytes", partitions), &bounds, |b, bounds| {
            let mut nth = 0;
            b.iter(|| {
                nth = (nth + 1) % KEYS;
                let key: &[u8] = black_box(&keys[nth]);
                bounds.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back().map(|(_, route)| *route)
            });
        });
    }
    let compound = HashThenRange { hash: SlotHash::Xxh3 { seed: 7 }, prefix: HashedPrefix::Bytes(12) };
    let map = map(Scheme::HashThenRange(compound), HashSlots::even_bounds(10_000).collect());
    lookups(c, "hash then range, keys of 16 bytes", 10_000, &map, |n| user(mixed(n) % 1_000_000));
}

fn maps(c: &mut Criterion) {
    let mut group = c.benchmark_group("map");
    for partitions in [1_000, 100_000] {
        let old = map(Scheme::KEY_ORDER, even(partitions, user));
        let route = old.route(&user(40));
        let change = Change::Split { partition: route.partition, at: Bytes::copy_from_slice(&user(45)) };
        let (_, delta) = old.changed(&change).expect("the cut is within");
        group.bench_function(BenchmarkId::new("apply a delta", partitions), |b| {
            b.iter(|| old.caught_up([black_box(&delta)]).expect("it fits"));
        });
        let keys = Span::prefixed(b"user00000000004");
        group.bench_function(BenchmarkId::new("partitions of a range", partitions), |b| {
            b.iter(|| old.meeting(black_box(&keys)).count());
        });
        group.bench_function(BenchmarkId::new("check a route", partitions), |b| {
            b.iter(|| old.check(black_box(&route), &user(40)));
        });
    }
    group.finish();
}

criterion_group!(benches, hash_slots, ordered, maps);
criterion_main!(benches);
