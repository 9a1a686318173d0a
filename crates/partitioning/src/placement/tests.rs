//! Evenness, movement and failure domains of every method.

use super::*;
use crate::topology::Standing;
use proptest::prelude::*;

const METHODS: [Method; 5] = [
    Method::Table,
    Method::TwoChoices { seed: 1 },
    Method::Jump { seed: 1 },
    Method::Rendezvous { seed: 1 },
    Method::Ring { seed: 1, points: 256 },
];

fn topology(nodes: u32, domains: u32) -> Topology {
    Topology::new((0..nodes).map(|id| Node::usual(NodeId(id), DomainId(id % domains)))).expect("ids differ")
}

fn imbalance(method: Method, nodes: u32, partitions: usize) -> f64 {
    let topology = topology(nodes, nodes);
    assign(method, &topology, partitions, 1).expect("there are enough nodes").imbalance(&topology)
}

#[test]
fn evenness_is_what_each_method_promises() {
    // Fullest node over the mean with 16,384 partitions on 100 nodes.
    let found = METHODS.map(|method| imbalance(method, 100, 16_384));
    let promised = [1.004, 1.04, 1.25, 1.25, 1.45];
    for ((method, found), promised) in METHODS.iter().zip(found).zip(promised) {
        assert!(found <= promised, "{method:?}: {found}");
    }
    assert!(imbalance(Method::Table, 10, 1_000) <= 1.01);
}

#[test]
fn more_points_on_the_ring_are_more_even() {
    let by_points = [16, 256, 1_000].map(|points| imbalance(Method::Ring { seed: 3, points }, 100, 100_000));
    assert!(by_points[0] > by_points[1] && by_points[1] > by_points[2], "{by_points:?}");
    assert!(by_points[0] > 1.4 && by_points[1] < 1.3 && by_points[2] < 1.16, "{by_points:?}");
}

#[test]
fn a_node_added_moves_no_more_than_its_part_by_jump_and_rendezvous() {
    let partitions = 65_536;
    for method in [Method::Jump { seed: 5 }, Method::Rendezvous { seed: 5 }] {
        let before = assign(method, &topology(10, 10), partitions, 1).expect("there are enough nodes");
        let after = assign(method, &topology(11, 11), partitions, 1).expect("there are enough nodes");
        let ideal = partitions as f64 / 11.0;
        let moved = after.moved_since(&before) as f64;
        assert!(moved <= 1.05 * ideal && moved >= 0.9 * ideal, "{method:?}: {moved} of {ideal}");
        let elsewhere = before.replicas.iter().zip(&after.replicas).filter(|(b, a)| a != b && a[0] != NodeId(10));
        assert_eq!(elsewhere.count(), 0, "between old nodes nothing moves");
    }
}

#[test]
fn a_node_lost_moves_only_what_it_had_by_rendezvous() {
    let all = topology(20, 20);
    let lost = NodeId(7);
    let without = Topology::new(all.nodes().iter().map(|node| match node.id == lost {
        true => Node { standing: Standing::Lost, ..*node },
        false => *node,
    }))
    .expect("ids differ");
    let method = Method::Rendezvous { seed: 8 };
    let before = assign(method, &all, 10_000, 3).expect("there are enough nodes");
    let after = assign(method, &without, 10_000, 3).expect("there are enough nodes");
    assert_eq!(after.moved_since(&before) as u64, before.counts(&all)[7]);
}

#[test]
fn copies_that_must_share_a_domain_are_said() {
    for method in METHODS {
        let placed = assign(method, &topology(6, 2), 50, 3).expect("there are enough nodes");
        assert_eq!(placed.crowded.len(), 50, "{method:?}");
        let spread = assign(method, &topology(6, 3), 50, 3).expect("there are enough nodes");
        assert_eq!(spread.crowded, [], "{method:?}");
    }
}

#[test]
fn fewer_nodes_than_copies_are_refused() {
    let error = assign(Method::Table, &topology(2, 2), 1, 3);
    assert_eq!(error, Err(PlacementError::TooFewNodes { nodes: 2, copies: 3 }));
    assert_eq!(assign(Method::Table, &topology(2, 2), 1, 0), Err(PlacementError::Copies(0)));
}

fn method() -> impl Strategy<Value = Method> {
    (any::<u64>(), 0..5).prop_map(|(seed, which)| match which {
        0 => Method::Table,
        1 => Method::TwoChoices { seed },
        2 => Method::Jump { seed },
        3 => Method::Rendezvous { seed },
        _ => Method::Ring { seed, points: 32 },
    })
}

proptest! {
    #[test]
    fn copies_are_on_different_nodes_and_on_as_many_domains_as_can_be(
        method in method(), nodes in proptest::collection::vec((0_u32..5, 1_u32..400, any::<bool>()), 1..20),
        partitions in 0_usize..60, copies in 1_usize..6
    ) {
        let topology = Topology::new(nodes.iter().zip(0..).map(|(&(domain, capacity, serves), id)| {
            let standing = if serves { Standing::Serving } else { Standing::Draining };
            Node { id: NodeId(id), domain: DomainId(domain), capacity, standing }
        })).expect("ids differ");
        let serving = topology.serving().count();
        let Ok(placed) = assign(method, &topology, partitions, copies) else {
            prop_assert!(serving < copies);
            return Ok(());
        };
        prop_assert_eq!(placed.replicas.len(), partitions);
        for (nth, replicas) in placed.replicas.iter().enumerate() {
            let mut distinct = replicas.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), copies);
            let standing = |id: &NodeId| topology.node(*id).map(|node| node.standing);
            prop_assert!(replicas.iter().all(|id| standing(id) == Some(Standing::Serving)));
            if topology.domains() >= copies {
                prop_assert!(!placed.crowded.contains(&nth), "{:?}", replicas);
            }
        }
    }

    #[test]
    fn the_table_gives_every_node_its_part_to_the_whole_number(
        capacities in proptest::collection::vec(50_u32..150, 6..30), partitions in 1_usize..500
    ) {
        let nodes = capacities.iter().zip(0..).map(|(&capacity, id)| {
            Node { capacity, ..Node::usual(NodeId(id), DomainId(id)) }
        });
        let topology = Topology::new(nodes).expect("ids differ");
        let placed = assign(Method::Table, &topology, partitions, 2).expect("there are enough nodes");
        let total: u32 = capacities.iter().sum();
        for (count, capacity) in placed.counts(&topology).iter().zip(&capacities) {
            let part = 2.0 * partitions as f64 * f64::from(*capacity) / f64::from(total);
            prop_assert!((*count as f64 - part).abs() < 1.0, "{} of {}", count, part);
        }
    }
}
