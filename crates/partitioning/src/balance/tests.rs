//! Plans: what they promise is replayed, move by move.

use super::*;
use crate::id::DomainId;
use crate::map::Change;
use crate::partitioner::{HashSlots, Scheme};
use crate::placement::{Method, assign};
use crate::topology::{Node, Standing};
use bytes::Bytes;
use proptest::prelude::*;

fn topology(nodes: u32, domains: u32) -> Topology {
    Topology::new((1..=nodes).map(|id| Node::usual(NodeId(id), DomainId(id % domains)))).expect("ids differ")
}

fn with_standing(topology: &Topology, which: NodeId, standing: Standing) -> Topology {
    let changed = |node: &Node| if node.id == which { Node { standing, ..*node } } else { *node };
    Topology::new(topology.nodes().iter().map(changed)).expect("ids differ")
}

fn placed(topology: &Topology, partitions: u16, copies: usize, method: Method) -> PartitionMap {
    let placed = assign(method, topology, usize::from(partitions), copies).expect("there are enough nodes");
    let groups = placed.replicas.into_iter().zip(1..).map(|(replicas, group)| (GroupId(group), replicas));
    PartitionMap::first(Scheme::hash_slots(1), HashSlots::even_bounds(partitions), groups).expect("it is whole")
}

fn all(map: &PartitionMap, load: impl Fn(u64) -> Load) -> BTreeMap<PartitionId, Load> {
    map.partitions().map(|partition| (partition.id, load(partition.id.0))).collect()
}

fn bytes(bytes: u64) -> Load {
    Load { bytes, ops: bytes, cpu: bytes }
}

/// The map after a plan; on the way everything that a plan promises is checked.
fn carried_out(map: &PartitionMap, topology: &Topology, settings: &Settings, plan: &Plan) -> PartitionMap {
    let mut map = map.clone();
    for round in &plan.rounds {
        assert!(!round.is_empty() && round.len() <= settings.budget.moves_at_once);
        let mut groups: Vec<_> = round.iter().map(|it| it.group).collect();
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(groups.len(), round.len(), "a group changes one replica at a time");
        for node in topology.nodes() {
            assert!(round.iter().filter(|it| it.source == node.id).count() <= settings.budget.out_at_once);
            assert!(round.iter().filter(|it| it.to == node.id).count() <= settings.budget.in_at_once);
        }
        for it in round {
            let old = map.of_group(it.group).next().expect("the group is there").replicas.clone();
            let is = |id: &NodeId, standing| topology.node(*id).is_some_and(|node| node.standing == standing);
            let lives = |id: &NodeId| is(id, Standing::Serving) || is(id, Standing::Draining);
            assert!(is(&it.to, Standing::Serving) && !old.contains(&it.to), "{it:?} of {old:?}");
            assert!(old.contains(&it.source) && lives(&it.source), "{it:?} is read from {old:?}");
            let mut new = old.clone();
            new.push(it.to);
            match it.from {
                Some(from) => {
                    assert!(old.contains(&from));
                    assert!(it.why == Why::Repair || lives(&from));
                    new.retain(|node| *node != from);
                }
                None => assert!(it.why == Why::Repair && old.len() < settings.copies),
            }
            assert!(new.len() >= old.len(), "never fewer copies than before");
            if it.why >= Why::Spread {
                assert!(domains(topology, &new) >= domains(topology, &old));
            }
            map = map.changed(&Change::Place { group: it.group, replicas: new }).expect("the group is there").0;
        }
    }
    map
}

fn domains(topology: &Topology, nodes: &[NodeId]) -> usize {
    let mut domains: Vec<_> = nodes.iter().filter_map(|id| topology.node(*id)).map(|node| node.domain).collect();
    domains.sort_unstable();
    domains.dedup();
    domains.len()
}

#[test]
fn a_node_added_gets_its_part_and_nothing_else_moves() {
    let (old, new) = (topology(10, 10), topology(11, 11));
    let map = placed(&old, 1_000, 3, Method::Table);
    let loads = all(&map, |_| bytes(1 << 20));
    let settings = Settings::even(3);
    assert!(plan(&map, &loads, &old, &settings).is_empty());
    let plan = plan(&map, &loads, &new, &settings);
    let ideal = 3.0 * 1_000.0 / 11.0 * f64::from(1 << 20);
    assert!(plan.bytes as f64 <= 1.05 * ideal, "{} bytes of {ideal}", plan.bytes);
    assert!(plan.moves().all(|it| it.to == NodeId(11)));
    assert!(plan.after.count <= 1.01, "{plan}");
    carried_out(&map, &new, &settings, &plan);
}

#[test]
fn a_node_added_gets_its_part_of_uneven_loads_too() {
    let (old, new) = (topology(10, 10), topology(11, 11));
    let map = placed(&old, 2_000, 3, Method::Table);
    let loads = all(&map, |id| bytes((1 << 16) + (id * 7_919 % 1_009) * 400));
    for objective in [Objective::Count, Objective::Load] {
        let settings = Settings { objective, ..Settings::even(3) };
        let plan = plan(&map, &loads, &new, &settings);
        let ideal = 3.0 * loads.values().map(|load| load.bytes as f64).sum::<f64>() / 11.0;
        assert!(plan.bytes as f64 <= 1.05 * ideal, "{objective:?}: {} bytes of {ideal}", plan.bytes);
        assert!(plan.after.count.min(plan.after.bytes) <= 1.03, "{plan}");
        carried_out(&map, &new, &settings, &plan);
    }
}

#[test]
fn a_node_that_joins_many_gets_its_part_by_load_too() {
    let (old, new) = (topology(100, 10), topology(101, 10));
    let map = placed(&old, 2_000, 3, Method::Table);
    let loads = all(&map, |_| bytes(100));
    let settings = Settings { objective: Objective::Load, ..Settings::even(3) };
    let plan = plan(&map, &loads, &new, &settings);
    let joined = plan.nodes.iter().find(|(id, ..)| *id == NodeId(101)).expect("it is there");
    assert!((55..=60).contains(&joined.1), "it has {} of 59 replicas", joined.1);
    assert!(plan.moves().all(|it| it.to == NodeId(101)));
}

#[test]
fn planted_unfairness_is_evened_out() {
    let topology = topology(9, 3);
    let map = placed(&topology, 900, 3, Method::Rendezvous { seed: 4 });
    // A tenth of the partitions is ten times as hot.
    let loads = all(&map, |id| Load { bytes: 1_000, ops: if id.is_multiple_of(10) { 1_000 } else { 100 }, cpu: 10 });
    let by_count = Settings::even(3);
    let counted = plan(&map, &loads, &topology, &by_count);
    assert!(counted.before.count > 1.02 && counted.after.count <= 1.01, "{counted}");
    carried_out(&map, &topology, &by_count, &counted);
    let by_load = Settings { objective: Objective::Load, ..by_count };
    let loaded = plan(&map, &loads, &topology, &by_load);
    assert!(loaded.before.ops > 1.06 && loaded.after.ops <= 1.03, "{loaded}");
    let map = carried_out(&map, &topology, &by_load, &loaded);
    assert!(plan(&map, &loads, &topology, &by_load).is_empty(), "what is even stays");
}

#[test]
fn a_hot_node_is_relieved_with_few_bytes() {
    let topology = topology(10, 10);
    let map = placed(&topology, 1_000, 1, Method::Table);
    // All that is hot is on one node, and small.
    let hot: Vec<_> = map.partitions().filter(|it| it.replicas[0] == NodeId(3)).map(|it| it.id.0).collect();
    let loads = all(&map, |id| match hot.contains(&id) {
        true => Load { bytes: 1_000, ops: 1_000, cpu: 0 },
        false => Load { bytes: 1_000, ops: 500, cpu: 0 },
    });
    let settings = Settings { objective: Objective::Load, ..Settings::even(1) };
    let plan = plan(&map, &loads, &topology, &settings);
    assert!(plan.before.ops > 1.8 && plan.after.ops < 1.15, "{plan}");
    let total: u64 = loads.values().map(|load| load.bytes).sum();
    assert!(plan.bytes * 100 <= 6 * total, "{plan}");
}

#[test]
fn little_unfairness_is_left_alone() {
    let topology = topology(4, 4);
    let map = placed(&topology, 400, 1, Method::Table);
    let loads = all(&map, |id| {
        bytes(if map.partition(PartitionId(id)).is_some_and(|it| it.replicas[0] == NodeId(1)) { 104 } else { 100 })
    });
    let settings = Settings { objective: Objective::Load, ..Settings::even(1) };
    assert!(plan(&map, &loads, &topology, &settings).is_empty());
}

#[test]
fn a_lost_node_is_made_up_for_on_many_others() {
    let all_up = topology(10, 5);
    let map = placed(&all_up, 500, 3, Method::Rendezvous { seed: 2 });
    let loads = all(&map, |_| bytes(100));
    let lost = with_standing(&all_up, NodeId(4), Standing::Lost);
    let held = map.partitions().filter(|it| it.replicas.contains(&NodeId(4))).count();
    let settings = Settings::even(3);
    let plan = plan(&map, &loads, &lost, &settings);
    assert_eq!(plan.moves().filter(|it| it.why == Why::Repair).count(), held);
    let map = carried_out(&map, &lost, &settings, &plan);
    assert!(map.partitions().all(|it| !it.replicas.contains(&NodeId(4)) && domains(&lost, &it.replicas) == 3));
}

#[test]
fn a_node_that_drains_ends_empty_and_takes_nothing() {
    let all_up = topology(7, 7);
    let map = placed(&all_up, 300, 3, Method::Table);
    let draining = with_standing(&all_up, NodeId(2), Standing::Draining);
    let settings = Settings::even(3);
    let plan = plan(&map, &all(&map, |_| bytes(1)), &draining, &settings);
    let map = carried_out(&map, &draining, &settings, &plan);
    assert!(map.partitions().all(|it| !it.replicas.contains(&NodeId(2))));
    assert!(plan.after.count <= 1.01, "{plan}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let all_up = topology(3, 3);
    let map = placed(&all_up, 10, 3, Method::Table);
    let draining = with_standing(&all_up, NodeId(2), Standing::Draining);
    let drained = plan(&map, &BTreeMap::new(), &draining, &Settings::even(3));
    assert_eq!((drained.moves().count(), drained.stuck.len()), (0, 10));
    assert_eq!(drained.stuck[0], Stuck::NoNode(GroupId(1)));
    let none = Topology::new([]).expect("no node is given twice");
    let lost = plan(&map, &BTreeMap::new(), &none, &Settings::even(3));
    assert_eq!(lost.stuck[9], Stuck::NoCopy(GroupId(10)));
}

#[test]
fn groups_under_handoff_stay_where_they_are() {
    let old = topology(3, 3);
    let map = placed(&old, 30, 1, Method::Table);
    let source = map.partition(PartitionId(1)).expect("it is there").replicas.clone();
    let handoff = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(99), replicas: vec![NodeId(1)] };
    let (map, _) = map.changed(&handoff).expect("nothing is under way");
    let draining = with_standing(&old, source[0], Standing::Draining);
    let plan = plan(&map, &BTreeMap::new(), &draining, &Settings::even(1));
    assert_eq!(plan.moves().filter(|it| it.why == Why::Drain).count(), 9);
    assert!(plan.moves().all(|it| it.group != GroupId(1)));
}

#[test]
fn proportional_sizing_splits_the_largest_and_joins_nothing() {
    let map = placed(&topology(3, 3), 30, 1, Method::Table);
    let loads = all(&map, bytes);
    let settings = Settings { sizing: Sizing::Proportional { per_node: 8 }, ..Settings::even(1) };
    let grown = plan(&map, &loads, &topology(4, 4), &settings);
    assert_eq!(grown.splits, [PartitionId(30), PartitionId(29)]);
    assert!(plan(&map, &loads, &topology(1, 1), &settings).merges.is_empty());
}

fn node() -> impl Strategy<Value = (u32, u32, u8)> {
    (0_u32..4, 30_u32..300, 0_u8..10)
}

proptest! {
    #[test]
    fn every_plan_keeps_its_promises_and_is_the_last_one(
        nodes in proptest::collection::vec(node(), 4..14), partitions in 1_u16..120, copies in 1_usize..4,
        wanted in 1_usize..4, by_load in any::<bool>(), loads in proptest::collection::vec((0_u64..1_000, 0_u64..1_000), 120),
        budget in (1_usize..20, 1_usize..4, 1_usize..6), seed in any::<u64>()
    ) {
        let standing = |it: u8| match it { 0 => Standing::Lost, 1 => Standing::Draining, _ => Standing::Serving };
        let all_up = Topology::new(nodes.iter().zip(1..).map(|(&(domain, capacity, _), id)| {
            Node { capacity, ..Node::usual(NodeId(id), DomainId(domain)) }
        })).expect("ids differ");
        let now = Topology::new(nodes.iter().zip(1..).map(|(&(domain, capacity, it), id)| {
            Node { capacity, standing: standing(it), ..Node::usual(NodeId(id), DomainId(domain)) }
        })).expect("ids differ");
        let map = placed(&all_up, partitions, copies, Method::Rendezvous { seed });
        let loads = all(&map, |id| Load { bytes: loads[id as usize - 1].0, ops: loads[id as usize - 1].1, cpu: 1 });
        let settings = Settings {
            copies: wanted,
            objective: if by_load { Objective::Load } else { Objective::Count },
            sizing: Sizing::Fixed,
            budget: Budget {
                moves_at_once: budget.0, out_at_once: budget.1, in_at_once: budget.2, ..Budget::default()
            },
        };
        let first = plan(&map, &loads, &now, &settings);
        prop_assert_eq!(&plan(&map, &loads, &now, &settings), &first);
        let after = carried_out(&map, &now, &settings, &first);
        let serving = now.serving().count();
        for partition in after.partitions() {
            let stuck = first.stuck.iter().any(|it| matches!(it, Stuck::NoCopy(group) | Stuck::NoNode(group) if *group == partition.group));
            let serves = |id: &NodeId| now.node(*id).is_some_and(|node| node.standing == Standing::Serving);
            prop_assert!(stuck || partition.replicas.iter().all(serves));
            prop_assert!(stuck || partition.replicas.len() >= wanted.min(serving));
            prop_assert!(stuck || domains(&now, &partition.replicas) == now.domains().min(partition.replicas.len()));
        }
        // What was predicted is what is.
        for (id, count, load) in &first.nodes {
            let held = || after.partitions().filter(|it| it.replicas.contains(id));
            prop_assert_eq!(held().count() as u64, *count);
            prop_assert_eq!(held().map(|it| loads[&it.id]).sum::<Load>(), *load);
        }
        // No thrashing: nothing is left to be done.
        let again = plan(&after, &loads, &now, &settings);
        prop_assert_eq!(again.moves().count(), 0, "{}", again);
    }
}

/// The map once it is cut at a slot; none if it is cut there already.
fn cut(map: &PartitionMap, slot: [u8; 2]) -> Option<PartitionMap> {
    let at = Bytes::copy_from_slice(&slot);
    let partition = map.partitions().find(|it| it.span.contains(&at))?.id;
    Some(map.changed(&Change::Split { partition, at }).ok()?.0)
}

/// The map after shifts; on the way everything that they promise is checked.
fn handed_over(map: &PartitionMap, topology: &Topology, plan: &Shifts) -> PartitionMap {
    let mut map = map.clone();
    for it in &plan.shifts {
        let partition = map.partition(it.partition).expect("it is there");
        assert_eq!(partition.group, it.from);
        assert!(it.to != it.from && map.of_group(it.to).all(|other| other.replicas == it.replicas));
        assert!(it.replicas.iter().all(|id| topology.node(*id).is_some_and(|node| node.standing == Standing::Serving)));
        let planned = Change::PlanHandoff { partition: it.partition, target: it.to, replicas: it.replicas.clone() };
        map = map.changed(&planned).expect("nothing is under way").0;
        let id = map.open_handoff(it.partition).expect("planned just now").id;
        map = map.changed(&Change::CommitHandoff(id)).expect("it is open").0;
        map = map.changed(&Change::ForgetHandoff(id)).expect("it is decided").0;
    }
    map
}

#[test]
fn what_was_split_where_all_keys_go_spreads_over_the_groups() {
    let topology = topology(6, 6);
    let mut map = placed(&topology, 6, 3, Method::Table);
    // One partition is cut again and again; its group has all the pieces.
    let start = map.partitions().next().expect("six").span.end.clone().expect("not the last");
    for nth in 1..8_u16 {
        let at = (u16::from_be_bytes([start[0], start[1]]) * nth / 8).to_be_bytes();
        map = cut(&map, at).expect("a bound of its own");
    }
    let loads = all(&map, |_| bytes(1 << 20));
    for objective in [Objective::Count, Objective::Load] {
        let plan = shifts(&map, &loads, &topology, objective, usize::MAX);
        assert!(plan.before.count > 1.3 && plan.after.count < 1.11 && plan.after.bytes < 1.11, "{plan}");
        let after = handed_over(&map, &topology, &plan);
        assert!(shifts(&after, &loads, &topology, objective, usize::MAX).shifts.is_empty(), "once is enough");
        assert!(shifts(&map, &loads, &topology, objective, 2).shifts.len() <= 2);
    }
}

#[test]
fn a_node_is_emptied_by_handing_its_partitions_to_groups_without_it() {
    let topology = topology(5, 5);
    let map = placed(&topology, 15, 3, Method::Table);
    let leaving = with_standing(&topology, NodeId(3), Standing::Draining);
    let plan = shifts(&map, &BTreeMap::new(), &leaving, Objective::Count, 0);
    assert!(plan.stuck.is_empty() && plan.shifts.iter().all(|it| it.why == Why::Drain));
    let after = handed_over(&map, &leaving, &plan);
    assert!(after.partitions().all(|it| !it.replicas.contains(&NodeId(3))));
    // Where every group is on it there is nowhere to go, and nothing is done by halves.
    let three = self::topology(3, 3);
    let map = placed(&three, 4, 3, Method::Table);
    let leaving = with_standing(&three, NodeId(3), Standing::Draining);
    let plan = shifts(&map, &BTreeMap::new(), &leaving, Objective::Count, 9);
    assert!(plan.shifts.is_empty() && plan.stuck.len() == 4, "{plan}");
}

proptest! {
    #[test]
    fn shifts_help_end_and_leave_nothing_to_do(
        nodes in 3_u32..8, partitions in 4_u16..24, cuts in proptest::collection::vec((0_u16..16_384, 1_u64..1_000), 0..12),
        by_load in proptest::bool::ANY,
    ) {
        let topology = topology(nodes, nodes);
        let mut map = placed(&topology, partitions, 3, Method::Table);
        for (at, _) in &cuts {
            map = cut(&map, at.to_be_bytes()).unwrap_or(map);
        }
        let weights: Vec<u64> = cuts.iter().map(|(_, weight)| *weight).chain([100]).collect();
        let loads = all(&map, |id| bytes(weights[id as usize % weights.len()]));
        let objective = if by_load { Objective::Load } else { Objective::Count };
        let plan = shifts(&map, &loads, &topology, objective, usize::MAX);
        let worst = |it: &Evenness| if by_load { it.bytes } else { it.count };
        prop_assert!(worst(&plan.after) <= worst(&plan.before), "{}", plan);
        prop_assert_eq!(&plan, &shifts(&map, &loads, &topology, objective, usize::MAX));
        let after = handed_over(&map, &topology, &plan);
        let again = shifts(&after, &loads, &topology, objective, usize::MAX);
        prop_assert!(again.shifts.is_empty(), "{} and then {}", plan, again);
    }
}
