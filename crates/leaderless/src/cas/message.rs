//! What proposers and acceptors say to each other.
//!
//! Invariant: an answer repeats the [`Attempt`] that it answers, which no other question ever had, so late and doubled answers
//! are told from those that count. Whatever arrives is checked against the limits before it is looked at.

use bytes::Bytes;
use replikit_core::{Epoch, KEY_BYTES_MAX, NodeId};
use serde::{Deserialize, Serialize};

use super::ballot::{Ballot, Proposer};
use super::register::Register;

/// Most lives that an answer may name.
const LIVES_MAX: usize = 1 << 10;

/// Which question this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Who asks.
    pub proposer: Proposer,
    /// Its n-th question, from 1.
    pub number: u64,
}

/// How often a member's acceptor began again without what it had promised: 0 for one that never did. Greater is later.
///
/// It is the incarnation of the node at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Life(pub u32);

/// A question of a proposer about one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Promise to take nothing below this ballot any more, and tell what you have accepted (phase 1a).
    Prepare {
        /// Which ballot.
        ballot: Ballot,
        /// The value of this ballot is known to who asks, and need not be sent.
        known: Ballot,
    },
    /// Accept this value (phase 2a).
    Accept {
        /// Which ballot.
        ballot: Ballot,
        /// What to accept.
        register: Register,
        /// Promise this ballot as well: the first phase of the proposer's next proposal (the paper's one-round-trip optimization).
        next: Ballot,
    },
    /// Tell what you have accepted; promise nothing.
    Query {
        /// The value of this ballot is known to who asks, and need not be sent.
        known: Ballot,
    },
}

/// What an acceptor has accepted, without the value if who asked knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The ballot of it; [`Ballot::ZERO`] for nothing.
    pub ballot: Ballot,
    /// The value. `None`: it is the one known to who asked.
    pub register: Option<Register>,
}

/// An acceptor's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Prepare`]: promised.
    Promised(Holding),
    /// To [`Ask::Accept`]: accepted, and the next ballot promised.
    Accepted,
    /// To [`Ask::Query`].
    Holds(Holding),
    /// To [`Ask::Prepare`] and [`Ask::Accept`]: a higher ballot has been promised.
    Refused {
        /// Which.
        promised: Ballot,
    },
}

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// From a proposer to an acceptor.
    Ask {
        /// The membership that the proposer counts in.
        epoch: Epoch,
        /// Which question.
        attempt: Attempt,
        /// Which key.
        key: Bytes,
        /// What is asked.
        ask: Ask,
    },
    /// Back.
    Answer {
        /// As in the question.
        epoch: Epoch,
        /// As in the question.
        attempt: Attempt,
        /// The acceptor's own life.
        life: Life,
        /// The later lives of other members that had their state from this one before it gave this answer: answers of their
        /// earlier lives do not count together with it. Mostly empty.
        lives: Vec<(NodeId, Life)>,
        /// What it says.
        answer: Answer,
    },
}

impl Message {
    /// The membership that a proposer counts in that asks; `None` for an answer.
    pub(crate) const fn asked_in(&self) -> Option<Epoch> {
        match self {
            Self::Ask { epoch, .. } => Some(*epoch),
            Self::Answer { .. } => None,
        }
    }

    /// Whether it keeps the limits; a peer's message that does not is dropped.
    pub(super) fn is_bounded(&self) -> bool {
        let holding = |holding: &Holding| {
            holding.ballot.round <= Ballot::ROUND_MAX && holding.register.as_ref().is_none_or(Register::is_bounded)
        };
        match self {
            Self::Ask { key, ask, .. } => {
                (1..=KEY_BYTES_MAX).contains(&key.len())
                    && match ask {
                        Ask::Prepare { ballot, .. } => ballot.is_proposal(),
                        Ask::Accept { ballot, register, next } => {
                            ballot.is_proposal()
                                && next.is_proposal()
                                && *next > *ballot
                                && next.proposer == ballot.proposer
                                && register.is_bounded()
                        }
                        Ask::Query { .. } => true,
                    }
            }
            Self::Answer { lives, answer, .. } => {
                lives.len() <= LIVES_MAX
                    && match answer {
                        Answer::Promised(held) | Answer::Holds(held) => holding(held),
                        Answer::Accepted => true,
                        Answer::Refused { promised } => promised.is_proposal(),
                    }
            }
        }
    }
}
