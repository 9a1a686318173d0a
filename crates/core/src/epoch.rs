//! Where membership epochs come from, so that no strategy depends on another one to learn its membership.
//!
//! Invariant: epochs never go back, and one epoch names one membership for ever.

use crate::{Epoch, NodeInfo};

/// The members of a group in one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Version.
    pub epoch: Epoch,
    /// Who belongs to it, ascending by node.
    pub nodes: Vec<NodeInfo>,
}

/// Tells a strategy which membership is in force. Implemented by [`StaticMembership`]; a node may plug in a replicated one.
pub trait EpochSource: Send {
    /// The newest membership known. Never blocks.
    fn current(&self) -> &Membership;
}

/// A membership that never changes.
#[derive(Clone, Debug)]
pub struct StaticMembership(Membership);

impl StaticMembership {
    /// These nodes, for ever, as epoch 1.
    #[must_use]
    pub fn new(mut nodes: Vec<NodeInfo>) -> Self {
        nodes.sort_by_key(|node| node.id);
        Self(Membership { epoch: Epoch(1), nodes })
    }
}

impl EpochSource for StaticMembership {
    fn current(&self) -> &Membership {
        &self.0
    }
}
