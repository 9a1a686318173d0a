//! The answers to one question, counted by member.
//!
//! Invariant: what counts together was given by acceptors none of which had given its state to a later life of another one
//! before. An answer that names a later life of a member takes the answer of its earlier life out of the count.

use replikit_core::{NodeId, Quorum};

use super::ballot::Ballot;
use super::message::Life;

/// What one member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Yes.
    Granted,
    /// It holds this ballot.
    Holds(Ballot),
    /// No.
    Refused,
}

/// Answers so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    answers: Vec<(NodeId, Life, Verdict)>,
    lives: Vec<(NodeId, Life)>,
}

impl Tally {
    /// Counts an answer. A later one of the same member counts only if it is of a later life, or says yes after a no.
    pub(super) fn count(&mut self, from: NodeId, life: Life, lives: &[(NodeId, Life)], verdict: Verdict) {
        for &(node, later) in lives {
            self.learn(node, later);
        }
        if self.lives.iter().any(|&(node, later)| node == from && later > life) {
            return;
        }
        self.learn(from, life);
        match self.answers.iter_mut().find(|(node, ..)| *node == from) {
            Some((.., said)) if *said == Verdict::Refused => *said = verdict,
            Some(_) => {}
            None => self.answers.push((from, life, verdict)),
        }
    }

    fn learn(&mut self, node: NodeId, life: Life) {
        match self.lives.iter_mut().find(|(known, _)| *known == node) {
            Some((_, known)) => *known = life.max(*known),
            None => self.lives.push((node, life)),
        }
        self.answers.retain(|&(from, answered, _)| from != node || answered >= life);
    }

    pub(super) fn verdict(&self, node: NodeId) -> Option<Verdict> {
        self.answers.iter().find(|(from, ..)| *from == node).map(|&(.., verdict)| verdict)
    }

    pub(super) fn said(&self, node: NodeId, verdict: Verdict) -> bool {
        self.verdict(node) == Some(verdict)
    }

    pub(super) fn any_refused(&self) -> bool {
        self.answers.iter().any(|&(.., verdict)| verdict == Verdict::Refused)
    }

    /// Members that said yes.
    pub(super) fn granted(&self) -> usize {
        self.answers.iter().filter(|&&(.., verdict)| verdict == Verdict::Granted).count()
    }

    /// Whether enough promised for a value to be proposed.
    pub(super) fn elected(&self, quorum: &Quorum) -> bool {
        quorum.elected(|node| self.said(node, Verdict::Granted))
    }

    /// Whether enough accepted for the value to be chosen.
    pub(super) fn written(&self, quorum: &Quorum) -> bool {
        quorum.written(|node| self.said(node, Verdict::Granted))
    }

    /// Whether refusals leave no quorum of either kind.
    pub(super) fn hopeless(&self, quorum: &Quorum) -> bool {
        let left = |node| !self.said(node, Verdict::Refused);
        !(quorum.elected(left) && quorum.written(left))
    }

    /// The ballot that a quorum holds: one that accepts and one that promises, both.
    ///
    /// A value with that ballot is chosen, and nothing later was when the first of the answers was given, see [the module
    /// on reads](super#reads).
    pub(super) fn settled(&self, quorum: &Quorum) -> Option<Ballot> {
        self.ballots().find(|&ballot| {
            let holds = |node| self.said(node, Verdict::Holds(ballot));
            quorum.written(holds) && quorum.elected(holds)
        })
    }

    /// Whether missing answers could still make some ballot settled.
    pub(super) fn may_settle(&self, quorum: &Quorum) -> bool {
        let may = |ballot| {
            let may_hold = |node| self.verdict(node).is_none_or(|verdict| verdict == Verdict::Holds(ballot));
            quorum.written(may_hold) && quorum.elected(may_hold)
        };
        self.answers.is_empty() || self.ballots().any(may)
    }

    fn ballots(&self) -> impl Iterator<Item = Ballot> + '_ {
        self.answers.iter().filter_map(|&(.., verdict)| match verdict {
            Verdict::Holds(ballot) => Some(ballot),
            Verdict::Granted | Verdict::Refused => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Quorum {
        Quorum::majority((1..=3).map(NodeId).collect()).unwrap()
    }

    #[test]
    fn answers_of_an_earlier_life_do_not_count_with_those_that_know_of_a_later_one() {
        let again = [(NodeId(1), Life(2))];
        for late in [false, true] {
            let mut tally = Tally::default();
            if !late {
                tally.count(NodeId(1), Life(1), &[], Verdict::Granted);
            }
            tally.count(NodeId(2), Life(1), &again, Verdict::Granted);
            if late {
                tally.count(NodeId(1), Life(1), &[], Verdict::Granted);
            }
            assert!(!tally.written(&three()));
            tally.count(NodeId(1), Life(2), &[], Verdict::Granted);
            assert!(tally.written(&three()));
        }
    }

    #[test]
    fn an_answer_counts_once_and_a_yes_outweighs_a_no() {
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.count(NodeId(1), Life(1), &[], Verdict::Granted);
        }
        assert!(!tally.elected(&three()));
        tally.count(NodeId(2), Life(1), &[], Verdict::Refused);
        assert!(!tally.hopeless(&three()) && tally.any_refused());
        tally.count(NodeId(2), Life(1), &[], Verdict::Granted);
        tally.count(NodeId(2), Life(1), &[], Verdict::Refused);
        assert!(tally.elected(&three()));
    }
}
