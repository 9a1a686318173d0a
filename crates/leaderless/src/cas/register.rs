//! What an acceptor accepts: the value of a key, and by which proposals it came about.
//!
//! Invariant: the [`Lineage`] holds the ballots of the proposals that changed the value, from the first one to this one,
//! each applied to what the one before left behind. Only the oldest are forgotten. So a proposer whose proposal was refused
//! by some acceptors finds out from any later register whether it took effect after all, and neither applies an operation
//! twice nor gives up in doubt whenever somebody was faster. CASPaxos (Rystsov, arXiv 1802.07000) has no such record, and
//! leaves a refused proposal in doubt.

use bytes::Bytes;
use replikit_core::VALUE_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::ballot::{Ballot, Proposer};

/// Most runs of ballots in a lineage.
pub const LINEAGE_RUNS_MAX: usize = 8;

/// Consecutive rounds of one proposer: one that is not disturbed takes one run for all its proposals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    proposer: Proposer,
    first: u64,
    last: u64,
}

/// What a lineage says of a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// The value descends from that proposal.
    Includes,
    /// It does not.
    Excludes,
    /// The lineage does not reach back so far.
    Forgotten,
}

/// The ballots whose proposals changed a value, ascending, the oldest forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lineage(Vec<Run>);

impl Lineage {
    /// Adds a proposal, whose ballot is above all that are there.
    pub fn push(&mut self, ballot: Ballot) {
        match self.0.last_mut() {
            Some(run) if run.proposer == ballot.proposer && run.last.checked_add(1) == Some(ballot.round) => {
                run.last = ballot.round;
            }
            _ => {
                if self.0.len() >= LINEAGE_RUNS_MAX {
                    self.0.remove(0);
                }
                self.0.push(Run { proposer: ballot.proposer, first: ballot.round, last: ballot.round });
            }
        }
    }

    /// Whether the value descends from a proposal.
    #[must_use]
    pub fn of(&self, ballot: Ballot) -> Descent {
        let includes = |run: &Run| run.proposer == ballot.proposer && (run.first..=run.last).contains(&ballot.round);
        if self.0.iter().any(includes) {
            return Descent::Includes;
        }
        match self.0.first() {
            // Ballots only ascend along a lineage: whatever was forgotten is below the oldest that is left.
            Some(run) if self.0.len() >= LINEAGE_RUNS_MAX => {
                let oldest = Ballot { round: run.first, proposer: run.proposer };
                if ballot > oldest { Descent::Excludes } else { Descent::Forgotten }
            }
            _ => Descent::Excludes,
        }
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.0.len() <= LINEAGE_RUNS_MAX
    }
}

/// The value of a key with its history.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Register {
    /// The value; `None` for an absent key.
    pub value: Option<Bytes>,
    /// How it came about.
    pub lineage: Lineage,
}

impl Register {
    pub(super) fn is_bounded(&self) -> bool {
        self.lineage.is_bounded() && self.value.as_ref().is_none_or(|value| value.len() <= VALUE_BYTES_MAX)
    }

    pub(super) fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }
}

#[cfg(test)]
mod tests {
    use replikit_core::OriginId;

    use super::*;

    fn ballot(round: u64, origin: u32) -> Ballot {
        Ballot { round, proposer: Proposer { origin: OriginId(origin), start: 1 } }
    }

    #[test]
    fn a_lineage_knows_its_ballots_and_when_it_has_forgotten() {
        let mut lineage = Lineage::default();
        // The first proposer undisturbed for long, then two in turns.
        for round in 1..=100 {
            lineage.push(ballot(round, 1));
        }
        assert_eq!(lineage.0.len(), 1, "one run for an undisturbed proposer");
        assert_eq!(lineage.of(ballot(50, 1)), Descent::Includes);
        assert_eq!(lineage.of(ballot(50, 2)), Descent::Excludes);
        for round in 101..=120 {
            lineage.push(ballot(round, 1 + round as u32 % 2));
        }
        assert_eq!(lineage.0.len(), LINEAGE_RUNS_MAX);
        assert_eq!(lineage.of(ballot(120, 1)), Descent::Includes);
        assert_eq!(lineage.of(ballot(119, 1)), Descent::Excludes);
        assert_eq!(lineage.of(ballot(50, 1)), Descent::Forgotten, "it was in, but that is no longer known");
        assert_eq!(lineage.of(ballot(50, 2)), Descent::Forgotten);
    }
}
