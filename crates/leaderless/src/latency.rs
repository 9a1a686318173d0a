//! Which answers owners owe, so that it is known how long one takes.
//!
//! Invariant: an answer counts whenever it comes, so that late ones, whose reads have ended with the help of others, are not left out.
//! Source: rapid read protection, Cassandra.

use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::Time;

/// Questions that are remembered while no answer has come; beyond it the oldest are forgotten.
const OWED_MAX: usize = 4_096;

/// Questions that owners owe an answer to, and when they were asked first.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    since: BTreeMap<(u64, u32), Time>,
}

impl Owed {
    /// Asked again, it counts from the first time: nobody knows which one is answered.
    pub(crate) fn asked(&mut self, read: u64, index: u32, now: Time) {
        self.since.entry((read, index)).or_insert(now);
        if self.since.len() > OWED_MAX {
            self.since.pop_first();
        }
    }

    /// How long the answer has taken; `None` if that is not known, or it has come before.
    pub(crate) fn answered(&mut self, read: u64, index: u32, now: Time) -> Option<Duration> {
        self.since.remove(&(read, index)).map(|asked| now.since(asked))
    }

    /// Owners that owe this read an answer, and for how long they have.
    pub(crate) fn late(&self, read: u64, now: Time) -> impl Iterator<Item = (u32, Duration)> + '_ {
        self.since.range((read, 0)..=(read, u32::MAX)).map(move |((_, index), asked)| (*index, now.since(*asked)))
    }

    /// Whoever could not be reached owes nothing.
    pub(crate) fn forgive(&mut self, index: u32) {
        self.since.retain(|(_, owing), _| *owing != index);
    }

    pub(crate) fn clear(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_from_the_first_question_and_once() {
        let (mut owed, at) = (Owed::default(), |millis| Time(0) + Duration::from_millis(millis));
        owed.asked(1, 2, at(0));
        owed.asked(1, 2, at(5));
        owed.asked(1, 3, at(7));
        owed.asked(2, 2, at(8));
        let late: Vec<_> = owed.late(1, at(10)).collect();
        assert_eq!(late, [(2, Duration::from_millis(10)), (3, Duration::from_millis(3))]);
        assert_eq!(owed.answered(1, 2, at(10)), Some(Duration::from_millis(10)));
        assert_eq!(owed.answered(1, 2, at(10)), None);
        owed.forgive(2);
        assert_eq!((owed.answered(2, 2, at(11)), owed.late(1, at(11)).count()), (None, 1));
        for read in 0..2 * OWED_MAX as u64 {
            owed.asked(read, 0, at(12));
        }
        assert_eq!(owed.since.len(), OWED_MAX);
    }
}
