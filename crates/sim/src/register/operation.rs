//! A coordinator's view of one read or write: two rounds, each over when a majority has answered.
//!
//! Invariant: answers are counted by node, never by message, and only those of the round under way.

use bytes::Bytes;
use replikit_core::{Batch, NodeId, Position, Time, Token};

use super::record::Stamp;

/// What the client wants.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Read,
    Write(Option<Bytes>),
}

/// The round that an operation is in.
#[derive(Clone, Debug)]
pub(super) enum Round {
    /// Learning the newest stamp from a majority.
    Query { newest: Option<(Stamp, Batch)> },
    /// Getting a majority to hold a record. For a read that is the record it is about to answer with: otherwise a later
    /// read could ask another majority and see an older one.
    Store { batch: Batch, value: Option<Bytes>, at: Position },
}

/// One read or write.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) token: Token,
    pub(super) key: Bytes,
    pub(super) wish: Wish,
    pub(super) round: Round,
    pub(super) give_up_at: Time,
    answered: Vec<NodeId>,
}

impl Operation {
    pub(super) const fn new(token: Token, key: Bytes, wish: Wish, give_up_at: Time) -> Self {
        Self { token, key, wish, round: Round::Query { newest: None }, give_up_at, answered: Vec::new() }
    }

    /// Counts a node's answer to the round under way; returns how many nodes have answered it.
    pub(super) fn count(&mut self, node: NodeId) -> usize {
        if !self.answered.contains(&node) {
            self.answered.push(node);
        }
        self.answered.len()
    }

    pub(super) fn has_answered(&self, node: NodeId) -> bool {
        self.answered.contains(&node)
    }

    pub(super) fn answers(&self) -> usize {
        self.answered.len()
    }

    /// Goes on to the second round.
    pub(super) fn store(&mut self, batch: Batch, value: Option<Bytes>, at: Position) {
        self.round = Round::Store { batch, value, at };
        self.answered.clear();
    }
}
