//! Without processes: how long it takes from a key to its route, and what the balancer plans when a node comes or is lost.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::{GroupId, NodeId};
use replikit_partitioning::balance::{Plan, Settings, plan};
use replikit_partitioning::placement::{Method, assign};
use replikit_partitioning::{DomainId, HashSlots, Load, Node, PartitionMap, Scheme, Standing, Topology};

use super::Found;
use crate::figure::{Better, Figure, Subject};

/// Keys that are looked up by turns: many enough that no branch predictor learns them.
const KEYS: usize = 1 << 14;
const LOOKED_UP: Duration = Duration::from_millis(300);
/// Ranges of the map whose lookups are timed.
const RANGES: u32 = 10_000;
/// The large cluster of the plans.
const NODES: u32 = 1_000;
const PARTITIONS: u32 = 100_000;
const COPIES: usize = 3;
const PARTITION_BYTES: u64 = 64 << 20;

/// SplitMix64.
fn mixed(n: u64) -> u64 {
    let mut it = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    it ^ (it >> 31)
}

/// Nanoseconds of one lookup.
fn lookup<const LENGTH: usize>(map: &PartitionMap, key: impl Fn(u64) -> [u8; LENGTH]) -> f64 {
    let keys: Vec<[u8; LENGTH]> = (0..KEYS as u64).map(|n| key(mixed(n))).collect();
    let (begun, mut rounds) = (Instant::now(), 0_u32);
    while begun.elapsed() < LOOKED_UP {
        for key in &keys {
            black_box(map.route(black_box(key)));
        }
        rounds += 1;
    }
    begun.elapsed().as_secs_f64() * 1e9 / (f64::from(rounds) * KEYS as f64)
}

fn one_group_each(scheme: Scheme, bounds: Vec<Bytes>) -> PartitionMap {
    let groups = (1..=bounds.len() as u32 + 1).map(|group| (GroupId(group), vec![NodeId(1), NodeId(2), NodeId(3)]));
    PartitionMap::first(scheme, bounds, groups).expect("the bounds rise")
}

fn user(n: u64) -> [u8; 16] {
    let mut key = *b"user000000000000";
    key[4..].copy_from_slice(format!("{n:012}").as_bytes());
    key
}

fn nodes(count: u32, lost: Option<NodeId>) -> Topology {
    let node = |id: u32| {
        let node = Node::usual(NodeId(id), DomainId(id));
        if lost == Some(node.id) { Node { standing: Standing::Lost, ..node } } else { node }
    };
    Topology::new((1..=count).map(node)).expect("ids differ")
}

/// A map with as many partitions as there are in a large cluster, by range: there are more of them than slots.
fn large(topology: &Topology) -> PartitionMap {
    let placed = assign(Method::Table, topology, PARTITIONS as usize, COPIES).expect("there are enough nodes");
    let groups = placed.replicas.into_iter().zip(1..).map(|(replicas, group)| (GroupId(group), replicas));
    let bounds = (1..PARTITIONS).map(|nth| Bytes::copy_from_slice(&user(u64::from(nth))));
    PartitionMap::first(Scheme::KEY_ORDER, bounds, groups).expect("it is whole")
}

fn planned(
    subject: &Subject,
    what: &str,
    map: &PartitionMap,
    loads: &BTreeMap<replikit_partitioning::PartitionId, Load>,
    topology: &Topology,
    ideal_bytes: f64,
) -> (Plan, Vec<Figure>) {
    let begun = Instant::now();
    let plan = plan(map, loads, topology, &Settings::even(COPIES));
    let took = begun.elapsed().as_secs_f64() * 1e6;
    let figures = vec![
        subject.figure(&format!("{what}: planning"), took, "us", Better::Lower),
        subject.figure(&format!("{what}: moves"), plan.moves().count() as f64, "1", Better::Neither),
        subject.figure(&format!("{what}: bytes moved over ideal"), plan.bytes as f64 / ideal_bytes, "1", Better::Lower),
        subject.figure(&format!("{what}: worst node over its part"), plan.after.count, "1", Better::Lower),
    ];
    (plan, figures)
}

pub(super) fn run(subject: &Subject) -> Found {
    let slots = one_group_each(Scheme::hash_slots(7), HashSlots::even_bounds(1_024).collect());
    let mut bounds: Vec<Bytes> = (1..u64::from(RANGES)).map(|n| Bytes::copy_from_slice(&user(n * 37))).collect();
    bounds.sort_unstable();
    let ranges = one_group_each(Scheme::KEY_ORDER, bounds);
    let hashed = lookup(&slots, u64::to_le_bytes);
    let ordered = lookup(&ranges, |n| user(n % (u64::from(RANGES) * 37)));
    let mut figures = vec![
        subject.figure("lookup among 1,024 partitions by hash", hashed, "ns", Better::Lower),
        subject.figure("lookup among 10,000 ranges", ordered, "ns", Better::Lower),
    ];
    let topology = nodes(NODES, None);
    let map = large(&topology);
    let load = |bytes| Load { bytes, ..Load::default() };
    let loads: BTreeMap<_, _> = map.partitions().map(|it| (it.id, load(PARTITION_BYTES))).collect();
    let replicas = f64::from(PARTITIONS) * COPIES as f64;
    let added = nodes(NODES + 1, None);
    let part = replicas / f64::from(NODES + 1) * PARTITION_BYTES as f64;
    let (_, of_added) = planned(subject, "a node added to 1,000", &map, &loads, &added, part);
    let lost = nodes(NODES, Some(NodeId(7)));
    let held = map.partitions().filter(|it| it.replicas.contains(&NodeId(7))).count() as f64;
    let (plan, of_lost) = planned(subject, "a node of 1,000 lost", &map, &loads, &lost, held * PARTITION_BYTES as f64);
    figures.extend(of_added);
    figures.extend(of_lost);
    let stuck = plan.stuck.len();
    let wrong = if stuck > 0 { vec![format!("{stuck} groups stay without a copy")] } else { Vec::new() };
    let line = format!("{hashed:.1} ns by hash, {ordered:.1} ns among {RANGES} ranges");
    Found { figures, wrong, line, ..Found::default() }
}
