//! The clients of the groups, made as they are needed: they share one connection for each node.
//!
//! Invariant: the client of a multi-leader group stays with one of its nodes, so that it reads what it has written, until that one is to
//! leave or refuses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use replikit_core::{GroupId, NodeId};
use replikit_runtime::Client;

use crate::map::{Partition, Replication};

/// A client for each group that was asked.
#[derive(Debug, Default)]
pub(super) struct GroupClients(Mutex<BTreeMap<GroupId, (Vec<NodeId>, Client)>>);

impl GroupClients {
    // No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, (Vec<NodeId>, Client)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of the group of a partition.
    pub(super) fn of_partition(&self, root: &Client, partition: &Partition) -> Client {
        let Partition { group, replication, replicas, turnover, .. } = partition;
        if *replication != Replication::MultiLeader || !turnover.is_open() {
            return self.of(root, *group, *replication, replicas);
        }
        // Who stays has everything, or is about to; who goes takes writes until those who come have caught up.
        let rank = |node: &NodeId| (turnover.leaving.contains(node), turnover.joining.contains(node));
        let mut nodes = replicas.clone();
        nodes.sort_by_key(|node| match rank(node) {
            (false, false) => 0,
            (true, false) => 1,
            _ => 2,
        });
        let mut clients = self.lock();
        if let Some((known, client)) = clients.get(group)
            && (*known == nodes || nodes.first() == Some(&client.home()))
        {
            return client.clone();
        }
        let client = root.for_group_at_home(*group, nodes.iter().copied());
        clients.insert(*group, (nodes, client.clone()));
        client
    }

    /// The client of a group on these nodes.
    pub(super) fn of(&self, root: &Client, group: GroupId, replication: Replication, replicas: &[NodeId]) -> Client {
        let mut clients = self.lock();
        let known = clients.get(&group);
        match known {
            Some((nodes, client)) if nodes == replicas => client.clone(),
            _ => {
                let home = known.map(|(_, client)| client.home()).filter(|_| replication == Replication::MultiLeader);
                let at_home = home.and_then(|home| replicas.iter().position(|node| *node == home));
                // Not all clients begin at the same replica.
                let from = at_home.unwrap_or_else(|| fastrand::usize(..replicas.len().max(1))).min(replicas.len());
                let in_turn = replicas[from..].iter().chain(&replicas[..from]).copied();
                let client = match replication {
                    Replication::SingleLeader => root.for_group(group, in_turn),
                    Replication::Leaderless => root.for_group_without_leader(group, in_turn),
                    Replication::MultiLeader => root.for_group_at_home(group, in_turn),
                };
                clients.insert(group, (replicas.to_vec(), client.clone()));
                client
            }
        }
    }

    /// The node that the client of a multi-leader group is at home at refuses for now: from here on it asks the next one.
    pub(super) fn move_on(&self, root: &Client, group: GroupId, from: NodeId) {
        let mut clients = self.lock();
        let Some((nodes, client)) = clients.get_mut(&group) else { return };
        if client.home() != from || nodes.len() < 2 {
            return;
        }
        let at = nodes.iter().position(|node| *node == from).map_or(0, |at| at + 1) % nodes.len();
        *client = root.for_group_at_home(group, nodes[at..].iter().chain(&nodes[..at]).copied());
    }
}
