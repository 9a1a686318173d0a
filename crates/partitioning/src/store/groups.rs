//! The clients of the groups, made as they are needed: they share one connection for each node.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use replikit_core::{GroupId, NodeId};
use replikit_runtime::Client;

use crate::map::Replication;

/// A client for each group that was asked.
#[derive(Debug, Default)]
pub(super) struct GroupClients(Mutex<BTreeMap<GroupId, (Vec<NodeId>, Client)>>);

impl GroupClients {
    /// The client of a group on these nodes.
    pub(super) fn of(&self, root: &Client, group: GroupId, replication: Replication, replicas: &[NodeId]) -> Client {
        // No code that can panic runs under this lock.
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&group) {
            Some((nodes, client)) if nodes == replicas => client.clone(),
            _ => {
                // Not all clients begin at the same replica.
                let from = fastrand::usize(..replicas.len().max(1));
                let in_turn = replicas[from.min(replicas.len())..].iter().chain(&replicas[..from.min(replicas.len())]);
                let client = match replication {
                    Replication::SingleLeader => root.for_group(group, in_turn.copied()),
                    Replication::Leaderless => root.for_group_without_leader(group, in_turn.copied()),
                };
                clients.insert(group, (replicas.to_vec(), client.clone()));
                client
            }
        }
    }
}
