//! Where a client's requests go.
//!
//! Invariant: whoever is asked is a node that the client knows. Learning that a node is lost changes where the *next* attempt
//! goes; whether there may be one is not decided here.

use std::sync::atomic::{AtomicU32, Ordering};

use replikit_core::NodeId;

/// Whom the client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientTarget {
    /// Whoever leads. Where nobody does, as in families without a leader: one node, and another one once that is lost.
    #[default]
    Leader,
    /// This node and no other, whatever its role: that it does not lead is an answer to a command.
    Node(NodeId),
    /// The home of the client, for families without a leader: the node of the first address that answered, and another one
    /// once that is lost, until that one is. A hint that another node leads holds for the one request: keys may have homes.
    /// A command that may have been carried out is sent again under its session only, and only to the same node.
    Home,
    /// For families without a leader: the node of the first address that answered, and another one once that answers in
    /// half the time, or this one is lost or owes answers for more than ten times what it usually takes. Up to ten requests a
    /// second try each other node, rather reads than writes; a read that is tried in vain is asked at home. A write is sent to one
    /// node, and one in doubt stays in doubt, as with [`Home`](Self::Home).
    Fastest,
}

/// Whom queries go to.
pub type ReadTarget = ClientTarget;

/// A node that may be unknown.
#[derive(Debug)]
struct Cell(AtomicU32);

impl Cell {
    const fn empty() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The node's id plus one; 0 for none.
    fn code(node: Option<NodeId>) -> u32 {
        node.map_or(0, |node| node.0.saturating_add(1))
    }

    fn get(&self) -> Option<NodeId> {
        self.0.load(Ordering::Relaxed).checked_sub(1).map(NodeId)
    }

    fn set(&self, node: Option<NodeId>) {
        self.0.store(Self::code(node), Ordering::Relaxed);
    }

    /// Sets it unless another task has by now; whether it did.
    fn replace(&self, old: NodeId, new: Option<NodeId>) -> bool {
        let (old, new) = (Self::code(Some(old)), Self::code(new));
        self.0.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Who leads, who is asked while nobody is known to, and where the client is at home.
#[derive(Debug)]
pub(super) struct Routes {
    leader: Cell,
    guess: Cell,
    home: Cell,
}

impl Routes {
    pub(super) const fn new() -> Self {
        Self { leader: Cell::empty(), guess: Cell::empty(), home: Cell::empty() }
    }

    /// The first node that answered: everything begins there.
    pub(super) fn begin(&self, node: NodeId) {
        self.guess.set(Some(node));
        self.home.set(Some(node));
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.leader.get()
    }

    pub(super) fn set_leader(&self, leader: NodeId) {
        self.leader.set(Some(leader));
    }

    pub(super) fn home(&self) -> NodeId {
        self.home.get().unwrap_or_default()
    }

    /// Whom to ask.
    pub(super) fn aim(&self, target: ClientTarget) -> NodeId {
        match target {
            ClientTarget::Leader => self.leader.get().or(self.guess.get()).unwrap_or_default(),
            ClientTarget::Node(node) => node,
            ClientTarget::Home | ClientTarget::Fastest => self.home(),
        }
    }

    /// The client is at home at `new` from here on, unless it has left `old` by now.
    pub(super) fn move_home(&self, old: NodeId, new: NodeId) {
        self.home.replace(old, Some(new));
    }

    /// This node does not lead, and does not know who does. If it was taken for the leader, somebody else is asked who leads
    /// next: who was asked before may go on to name it.
    pub(super) fn leads_not(&self, node: NodeId, nodes: &[NodeId]) {
        let named = self.leader.replace(node, None);
        let wrong = self.guess.get().filter(|_| named).unwrap_or(node);
        self.guess.replace(wrong, next_after(wrong, nodes));
    }

    /// This node cannot be reached, or has not answered.
    pub(super) fn lost(&self, node: NodeId, nodes: &[NodeId]) {
        self.leads_not(node, nodes);
        self.home.replace(node, next_after(node, nodes));
    }
}

/// The next larger node, or the smallest.
fn next_after(node: NodeId, nodes: &[NodeId]) -> Option<NodeId> {
    nodes.iter().copied().min_by_key(|other| (*other <= node, *other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(4), NodeId(9)];

    #[test]
    fn requests_stay_at_a_node_until_it_is_lost_and_then_go_to_the_next() {
        let routes = Routes::new();
        routes.begin(NodeId(4));
        for target in [ClientTarget::Leader, ClientTarget::Home] {
            assert_eq!((routes.aim(target), routes.aim(target)), (NodeId(4), NodeId(4)));
        }
        routes.lost(NodeId(1), &NODES);
        assert_eq!(routes.home(), NodeId(4), "somebody else was lost");
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(routes.home());
            routes.lost(routes.home(), &NODES);
        }
        assert_eq!((seen, routes.home()), (vec![NodeId(4), NodeId(9), NodeId(1)], NodeId(4)));
    }

    #[test]
    fn who_leads_moves_no_home() {
        let routes = Routes::new();
        routes.begin(NodeId(4));
        routes.set_leader(NodeId(9));
        assert_eq!((routes.aim(ClientTarget::Leader), routes.aim(ClientTarget::Home)), (NodeId(9), NodeId(4)));
        routes.leads_not(NodeId(9), &NODES);
        assert_eq!(routes.aim(ClientTarget::Leader), NodeId(9), "node 4 may go on to say that node 9 leads");
        routes.leads_not(NodeId(9), &NODES);
        assert_eq!((routes.aim(ClientTarget::Leader), routes.home()), (NodeId(1), NodeId(4)));
        assert_eq!(routes.aim(ClientTarget::Node(NodeId(1))), NodeId(1));
    }
}
