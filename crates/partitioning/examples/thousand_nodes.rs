//! A cluster of 1,000 nodes in 50 failure domains with 100,000 partitions of three copies each: how long map and plans take, and how
//! many bytes they move, when a node joins, fails, or is to be emptied. Nothing is run but the pure functions.
//!
//! `cargo run --release -p replikit-partitioning --example thousand_nodes [NODES [PARTITIONS]]`

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

use bytes::Bytes;
use replikit_core::{GroupId, NodeId};
use replikit_partitioning::balance::{Objective, Plan, Settings, plan};
use replikit_partitioning::placement::{Method, assign};
use replikit_partitioning::{Change, DomainId, Load, Node, PartitionId, PartitionMap, Scheme, Standing, Topology};

const COPIES: usize = 3;
const DOMAINS: u32 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let nodes: u32 = arguments.next().map_or(Ok(1_000), |it| it.parse())?;
    let partitions: u64 = arguments.next().map_or(Ok(100_000), |it| it.parse())?;
    println!("{nodes} nodes in {DOMAINS} failure domains, {partitions} partitions, {COPIES} copies each\n");

    let topology = of_nodes(nodes)?;
    let methods = [
        ("table", Method::Table),
        ("two choices", Method::TwoChoices { seed: 1 }),
        ("jump", Method::Jump { seed: 1 }),
        ("rendezvous", Method::Rendezvous { seed: 1 }),
        ("ring, 256 points", Method::Ring { seed: 1, points: 256 }),
    ];
    for (name, method) in methods {
        let (placed, millis) = timed(|| assign(method, &topology, partitions as usize, COPIES));
        let placed = placed?;
        println!("place by {name}: {millis:.0} ms, fullest node {:.3} of its part", placed.imbalance(&topology));
    }

    let placed = assign(Method::Table, &topology, partitions as usize, COPIES)?;
    let groups = placed.replicas.into_iter().zip(1..).map(|(replicas, group)| (GroupId(group), replicas));
    let bounds = (1..partitions).map(|nth| Bytes::copy_from_slice(format!("user{nth:08}").as_bytes()));
    let (map, millis) = timed(|| PartitionMap::first(Scheme::KEY_ORDER, bounds, groups));
    let map = map?;
    println!("\nmap: built in {millis:.0} ms");
    let split = Change::Split { partition: PartitionId(7), at: Bytes::from_static(b"user00000006x") };
    let delta = map.delta(&split)?;
    let (next, millis) = timed(|| map.caught_up([&delta]));
    println!("map: next one by a delta in {millis:.1} ms, {} partitions", next?.len());

    // Sizes from 64 to 192 MiB; one partition in a hundred has thirty times the operations.
    let load = |id: PartitionId| Load {
        bytes: (64 << 20) + id.0 * 7_919 % 128 * (1 << 20),
        ops: if id.0.is_multiple_of(100) { 3_000 } else { 100 },
        cpu: 0,
    };
    let loads: BTreeMap<_, _> = map.partitions().map(|partition| (partition.id, load(partition.id))).collect();
    let bytes: f64 = loads.values().map(|load| load.bytes as f64).sum::<f64>() * COPIES as f64;
    let by_count = Settings::even(COPIES);
    let by_load = Settings { objective: Objective::Load, ..by_count.clone() };

    show("nothing has happened", &map, &loads, &topology, &by_count, None);
    show("even loads instead of numbers", &map, &loads, &topology, &by_load, None);
    let joined = of_nodes(nodes + 1)?;
    let ideal = Some(bytes / f64::from(nodes + 1));
    show("a node joins, by count", &map, &loads, &joined, &by_count, ideal);
    show("a node joins, by load", &map, &loads, &joined, &by_load, ideal);
    let held = |id: NodeId| {
        let of_node = map.partitions().filter(|it| it.replicas.contains(&id));
        Some(of_node.map(|it| loads[&it.id].bytes as f64).sum())
    };
    let lost = with_standing(&topology, NodeId(7), Standing::Lost)?;
    show("a node fails", &map, &loads, &lost, &by_count, held(NodeId(7)));
    let draining = with_standing(&topology, NodeId(8), Standing::Draining)?;
    show("a node is emptied", &map, &loads, &draining, &by_count, held(NodeId(8)));
    Ok(())
}

fn of_nodes(nodes: u32) -> Result<Topology, Box<dyn Error>> {
    Ok(Topology::new((1..=nodes).map(|id| Node::usual(NodeId(id), DomainId(id % DOMAINS))))?)
}

fn with_standing(topology: &Topology, id: NodeId, standing: Standing) -> Result<Topology, Box<dyn Error>> {
    let changed = |node: &Node| if node.id == id { Node { standing, ..*node } } else { *node };
    Ok(Topology::new(topology.nodes().iter().map(changed))?)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e3)
}

fn show(
    what: &str,
    map: &PartitionMap,
    loads: &BTreeMap<PartitionId, Load>,
    topology: &Topology,
    settings: &Settings,
    ideal: Option<f64>,
) -> Plan {
    let (plan, millis) = timed(|| plan(map, loads, topology, settings));
    println!("\n{what}: planned in {millis:.0} ms");
    println!("{plan}");
    if let Some(ideal) = ideal {
        println!("bytes moved over the least that is possible: {:.3}", plan.bytes as f64 / ideal);
    }
    plan
}
