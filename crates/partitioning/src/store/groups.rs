//! The clients of the groups, made as they are needed: they share one connection for each node.
//!
//! Invariant: the client of a multi-leader group stays with one of its nodes, so that it reads what it has written, until that one is to
//! leave or refuses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use replikit_core::{GroupId, NodeId, Turnover};
use replikit_runtime::Client;

use crate::map::{Partition, Replication};

/// The client of a group.
#[derive(Debug)]
struct Known {
    /// The nodes, as the map has them, and who of them comes and goes.
    replicas: Vec<NodeId>,
    turnover: Turnover,
    /// The order in which they are asked.
    order: Vec<NodeId>,
    client: Client,
}

/// A client for each group that was asked.
#[derive(Debug, Default)]
pub(super) struct GroupClients(Mutex<BTreeMap<GroupId, Known>>);

impl GroupClients {
    // No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of the group of a partition.
    pub(super) fn of_partition(&self, root: &Client, partition: &Partition) -> Client {
        let Partition { group, replication, replicas, turnover, .. } = partition;
        self.client(root, *group, *replication, replicas, turnover)
    }

    /// The client of a group on these nodes.
    pub(super) fn of(&self, root: &Client, group: GroupId, replication: Replication, replicas: &[NodeId]) -> Client {
        self.client(root, group, replication, replicas, &Turnover::default())
    }

    fn client(
        &self,
        root: &Client,
        group: GroupId,
        replication: Replication,
        replicas: &[NodeId],
        turnover: &Turnover,
    ) -> Client {
        let mut clients = self.lock();
        let known = clients.get(&group);
        match known {
            Some(known) if known.replicas == replicas && known.turnover == *turnover => known.client.clone(),
            _ => {
                let home = known.map(|known| known.client.home()).filter(|_| replication == Replication::MultiLeader);
                let order = order(replicas, turnover, home);
                let client = match replication {
                    Replication::SingleLeader => root.for_group(group, order.iter().copied()),
                    Replication::Leaderless => root.for_group_without_leader(group, order.iter().copied()),
                    Replication::MultiLeader => root.for_group_at_home(group, order.iter().copied()),
                };
                let known =
                    Known { replicas: replicas.to_vec(), turnover: turnover.clone(), order, client: client.clone() };
                clients.insert(group, known);
                client
            }
        }
    }

    /// The node that the client of a multi-leader group is at home at refuses for now: from here on it asks the next one.
    pub(super) fn move_on(&self, root: &Client, group: GroupId, from: NodeId) {
        let mut clients = self.lock();
        let Some(Known { order, client, .. }) = clients.get_mut(&group) else { return };
        if client.home() != from || order.len() < 2 {
            return;
        }
        if let Some(at) = order.iter().position(|node| *node == from) {
            let next = (at + 1) % order.len();
            order.rotate_left(next);
        }
        *client = root.for_group_at_home(group, order.iter().copied());
    }
}

/// Whom to ask, in turn. Who stays has everything, or is about to; who goes takes writes until those who come have caught up. Among equals
/// the present home is asked first, and for the rest not all clients begin at the same one.
fn order(replicas: &[NodeId], turnover: &Turnover, home: Option<NodeId>) -> Vec<NodeId> {
    let rank = |node: &NodeId| match (turnover.leaving.contains(node), turnover.joining.contains(node)) {
        (false, false) => 0,
        (true, false) => 1,
        _ => 2,
    };
    let mut order = replicas.to_vec();
    order.sort_by_key(rank);
    let best = order.first().map_or(0, rank);
    let equals = order.iter().take_while(|node| rank(node) == best).count();
    let at_home = home.and_then(|home| order[..equals].iter().position(|node| *node == home));
    let from = at_home.unwrap_or_else(|| fastrand::usize(..equals.max(1))).min(equals);
    order[..equals].rotate_left(from);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_stays_at_its_home_unless_that_is_to_leave() {
        let nodes = |ids: &[u32]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let turnover = Turnover { joining: [NodeId(4)].into(), leaving: [NodeId(3)].into(), ..Turnover::default() };
        let of = |home: u32| order(&nodes(&[1, 2, 3, 4]), &turnover, Some(NodeId(home)));
        assert_eq!(of(2), nodes(&[2, 1, 3, 4]));
        assert_eq!(of(1), nodes(&[1, 2, 3, 4]));
        assert!([1, 2].contains(&of(3)[0].0) && of(3)[2..] == nodes(&[3, 4]), "{:?}", of(3));
        let begins: std::collections::BTreeSet<NodeId> =
            (0..200).map(|_| order(&nodes(&[1, 2, 3]), &Turnover::default(), None)[0]).collect();
        assert_eq!(begins.len(), 3, "clients are spread");
    }
}
