//! Ballots: which proposal of a key comes before which.
//!
//! Invariant: a ballot is used for at most one value of a key, for ever. A proposer never uses a ballot twice while it
//! lives; a node that starts again has a higher [`Proposer::start`], which is on its disk before any of its ballots leaves
//! it; a node that lost its disk writes as a new origin. Source: Rystsov, arXiv 1802.07000 (ballot numbers).

use core::fmt;

use replikit_core::{NodeId, Origin, OriginId};
use serde::{Deserialize, Serialize};

/// One run of one node as a proposer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Proposer {
    /// The incarnation of the node: a new one whenever its disk may have forgotten something.
    pub origin: OriginId,
    /// The n-th start with what that disk holds, from 1.
    pub start: u32,
}

impl Proposer {
    /// The node that proposes; `None` for an origin that no node has.
    #[must_use]
    pub fn node(self) -> Option<NodeId> {
        Origin::of(self.origin).map(|origin| origin.node)
    }
}

impl fmt::Debug for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Origin::of(self.origin) {
            Some(origin) => write!(f, "n{}.{}.{}", origin.node, origin.incarnation.0, self.start),
            None => write!(f, "{:?}.{}", self.origin, self.start),
        }
    }
}

/// The number of a proposal of one key: rounds first, proposers to tell equal rounds apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// From 1, at most [`Ballot::ROUND_MAX`]; 0 only in [`Ballot::ZERO`].
    pub round: u64,
    /// Whose.
    pub proposer: Proposer,
}

impl Ballot {
    /// Before every proposal: nothing is promised, nothing accepted.
    pub const ZERO: Self = Self { round: 0, proposer: Proposer { origin: OriginId(0), start: 0 } };
    /// The largest round that an acceptor takes: what is above can only be damage, and would leave no room for more rounds.
    pub const ROUND_MAX: u64 = u64::MAX >> 1;

    /// The same proposer's next ballot.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { round: self.round.saturating_add(1), proposer: self.proposer }
    }

    /// Whether somebody can have proposed it.
    #[must_use]
    pub const fn is_proposal(self) -> bool {
        self.round > 0 && self.round <= Self::ROUND_MAX
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}", self.round, self.proposer)
    }
}
