//! Placements that count what each node has already: dealt in turn, and two choices.

use replikit_core::NodeId;

use super::{Choice, domains, mixed};
use crate::topology::{Node, shares};

/// Deals copies out in turn. Nodes of a domain lie side by side in a row in which each node fills its share; the copies of a
/// partition are taken from the row at equal distances of one row of partitions. A node whose share is at most that distance is
/// never met twice, and neither is a domain (systematic sampling).
pub(super) fn dealt(nodes: &[Node], partitions: usize, copies: usize) -> Vec<Vec<NodeId>> {
    let distance = partitions as u64;
    let total = distance * copies as u64;
    let mut order: Vec<&Node> = nodes.iter().collect();
    order.sort_by_key(|node| (node.domain, node.id));
    let racks: Vec<&[&Node]> = order.chunk_by(|a, b| a.domain == b.domain).collect();
    let weights: Vec<u64> = racks.iter().map(|rack| rack.iter().map(|node| u64::from(node.capacity)).sum()).collect();
    // With as many domains as copies, no domain takes two copies of anything, also if its capacity would let it.
    let by_rack = if racks.len() >= copies { limited(total, &racks, &weights, distance) } else { Vec::new() };
    let by_node: Vec<u64> = if by_rack.is_empty() {
        shares(total, &order.iter().map(|node| u64::from(node.capacity)).collect::<Vec<_>>(), distance)
    } else {
        let within = |(rack, share): (&&[&Node], &u64)| {
            shares(*share, &rack.iter().map(|node| u64::from(node.capacity)).collect::<Vec<_>>(), distance)
        };
        racks.iter().zip(&by_rack).flat_map(within).collect()
    };
    let row: Vec<NodeId> =
        order.iter().zip(&by_node).flat_map(|(node, share)| std::iter::repeat_n(node.id, *share as usize)).collect();
    (0..partitions).map(|nth| (0..copies).map(|copy| row[nth + copy * partitions]).collect()).collect()
}

/// Shares of domains. Node shares are computed first where no domain goes over the limit, so that nodes and not only domains are
/// as even as can be.
fn limited(total: u64, racks: &[&[&Node]], weights: &[u64], distance: u64) -> Vec<u64> {
    let flat: Vec<u64> = racks.iter().flat_map(|rack| rack.iter().map(|node| u64::from(node.capacity))).collect();
    let by_node = shares(total, &flat, distance);
    let mut rest = &by_node[..];
    let mut by_rack: Vec<u64> = Vec::with_capacity(racks.len());
    for rack in racks {
        let (own, others) = rest.split_at(rack.len());
        by_rack.push(own.iter().sum());
        rest = others;
    }
    if by_rack.iter().all(|share| *share <= distance) { Vec::new() } else { shares(total, weights, distance) }
}

/// Each copy goes to the less filled of two nodes that may take it, drawn by capacity.
pub(super) fn two_choices(nodes: &[Node], partitions: usize, copies: usize, seed: u64) -> Vec<Vec<NodeId>> {
    let domains = domains(nodes);
    // Where each node's stretch of capacity ends.
    let ends: Vec<u64> = nodes
        .iter()
        .scan(0, |end, node| {
            *end += u64::from(node.capacity);
            Some(*end)
        })
        .collect();
    let capacity = ends.last().copied().unwrap_or(0);
    let mut counts = vec![0_u64; nodes.len()];
    let mut drawn = 0_u64;
    // Filled less: counts over capacities, compared without division; the first of equal ones.
    let filled = |counts: &[u64], a: usize, b: usize| {
        let by = |it: usize, other: usize| counts[it] * u64::from(nodes[other].capacity);
        by(a, b).cmp(&by(b, a)).then(a.cmp(&b))
    };
    let mut all = Vec::with_capacity(partitions);
    for _ in 0..partitions {
        let mut choice = Choice::new(nodes, domains, copies);
        while !choice.is_complete() {
            let mut candidates = [None; 2];
            for candidate in &mut candidates {
                // A draw may hit what may not take the copy; after some such draws the least filled of all takes it.
                for _ in 0..DRAWS_MAX {
                    drawn += 1;
                    let at = ((u128::from(mixed(seed, drawn)) * u128::from(capacity)) >> 64) as u64;
                    let index = ends.partition_point(|end| *end <= at);
                    if choice.admits(index) {
                        *candidate = Some(index);
                        break;
                    }
                }
            }
            let best = candidates.into_iter().flatten().min_by(|&a, &b| filled(&counts, a, b)).or_else(|| {
                (0..nodes.len()).filter(|&index| choice.admits(index)).min_by(|&a, &b| filled(&counts, a, b))
            });
            let best = best.expect("there are as many nodes as copies, so one is not chosen yet");
            counts[best] += 1;
            choice.offer(best);
        }
        all.push(choice.into_ids());
    }
    all
}

/// Draws for one candidate before all nodes are looked at.
const DRAWS_MAX: usize = 16;
