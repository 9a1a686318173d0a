//! Moves in rounds: what may be under way together.
//!
//! Invariant: a group changes one replica at a time, and its moves keep their order; no node reads or writes more copies at once,
//! and the cluster has no more moves under way, than the budget allows.

use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::{GroupId, NodeId};

use super::{Budget, Move};
use crate::topology::Topology;

/// Puts each move into the earliest round that has room for it, the most urgent moves first.
pub(super) fn scheduled(moves: Vec<Move>, topology: &Topology, budget: &Budget) -> Vec<Vec<Move>> {
    let mut rounds: Vec<Vec<Move>> = Vec::new();
    // Of each node, copies read and written in each round. A node that reads or writes is in the topology.
    let mut busy: Vec<Vec<(usize, usize)>> = vec![Vec::new(); topology.nodes().len()];
    let mut next_of: BTreeMap<GroupId, usize> = BTreeMap::new();
    let mut first_open = 0;
    for it in moves {
        let first = next_of.get(&it.group).copied().unwrap_or(0).max(first_open);
        let (out, into) = (topology.index(it.source), topology.index(it.to));
        let at = |node: Option<usize>, round: usize| {
            node.and_then(|node| busy[node].get(round).copied()).unwrap_or_default()
        };
        let fits = |round: &usize| {
            rounds.get(*round).is_none_or(|moves| moves.len() < budget.moves_at_once.max(1))
                && at(out, *round).0 < budget.out_at_once.max(1)
                && at(into, *round).1 < budget.in_at_once.max(1)
        };
        let round = (first..).find(fits).expect("a round that nobody uses has room");
        while rounds.len() <= round {
            rounds.push(Vec::new());
        }
        for node in [out, into].into_iter().flatten() {
            let rows = &mut busy[node];
            rows.resize(rows.len().max(round + 1), (0, 0));
        }
        if let Some(node) = out {
            busy[node][round].0 += 1;
        }
        if let Some(node) = into {
            busy[node][round].1 += 1;
        }
        next_of.insert(it.group, round + 1);
        rounds[round].push(it);
        while rounds.get(first_open).is_some_and(|moves| moves.len() >= budget.moves_at_once.max(1)) {
            first_open += 1;
        }
    }
    rounds
}

/// One round after the other, each as long as its busiest node copies.
pub(super) fn duration(rounds: &[Vec<Move>], budget: &Budget) -> Duration {
    let of_round = |moves: &Vec<Move>| {
        let mut bytes: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for it in moves {
            bytes.entry(it.source).or_default().0 += it.bytes;
            bytes.entry(it.to).or_default().1 += it.bytes;
        }
        bytes.values().map(|(out, into)| *out.max(into)).max().unwrap_or(0)
    };
    let bytes: u64 = rounds.iter().map(of_round).sum();
    Duration::from_millis((u128::from(bytes) * 1_000 / u128::from(budget.bytes_per_second.max(1))) as u64)
}
