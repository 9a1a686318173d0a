//! How long an owner takes to answer, as its coordinator sees it.
//!
//! Invariants: only what was measured counts, the newest samples most; an answer counts whenever it comes, so that late ones, whose
//! reads have ended with the help of others, are not left out; questions that are asked once more are a fixed share of all. Source:
//! rapid read protection, Cassandra; the tail at scale (Dean and Barroso 2013); the retry budget of gRPC (proposal A6).

use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::Time;

const SAMPLES: usize = 128;
/// Questions that are remembered while no answer has come; beyond it the oldest are forgotten.
const OWED_MAX: usize = 4_096;
/// One in so many reads may ask one owner more because another one is late...
const READS_PER_HEDGE: u32 = 20;
/// ... and so many at once, when an owner stops: as many as are under way then, about.
const HEDGES_AT_ONCE: u32 = 32;

/// The newest samples of one owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latency {
    samples: Vec<Duration>,
    next: usize,
    usual: Duration,
    slow: Option<Duration>,
}

impl Latency {
    pub(crate) fn sample(&mut self, took: Duration) {
        if self.samples.len() < SAMPLES {
            self.samples.push(took);
        } else {
            self.samples[self.next] = took;
            self.next = (self.next + 1) % SAMPLES;
        }
        self.usual = if self.usual.is_zero() { took } else { (self.usual * 7 + took) / 8 };
        // Sorting is worth it now and then only.
        if self.slow.is_none() && self.samples.len() >= 16 || self.next.is_multiple_of(SAMPLES / 4) {
            let mut sorted = self.samples.clone();
            sorted.sort_unstable();
            self.slow = sorted.get((sorted.len() - 1) * 99 / 100).copied();
        }
    }

    /// It has not answered for so long: the time that it takes is not less.
    pub(crate) fn late(&mut self, already: Duration) {
        self.usual = self.usual.max((self.usual * 7 + already) / 8);
    }

    /// The newest samples, in no order.
    pub(crate) fn samples(&self) -> &[Duration] {
        &self.samples
    }

    /// A moving average: who is asked first.
    pub(crate) const fn usual(&self) -> Duration {
        self.usual
    }

    /// What 99 of 100 answers stay below; long as long as little is known.
    pub(crate) fn slow(&self) -> Duration {
        self.slow.unwrap_or(Duration::MAX)
    }
}

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

/// How many owners may be asked in addition to late ones.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In reads.
    left: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: READS_PER_HEDGE * HEDGES_AT_ONCE }
    }
}

impl Budget {
    /// A read begins.
    pub(crate) fn earn(&mut self) {
        self.left = (self.left + 1).min(READS_PER_HEDGE * HEDGES_AT_ONCE);
    }

    /// Whether one more may be asked.
    pub(crate) const fn suffices(&self) -> bool {
        self.left >= READS_PER_HEDGE
    }

    /// One more is asked.
    pub(crate) fn spend(&mut self) {
        self.left = self.left.saturating_sub(READS_PER_HEDGE);
    }

    /// The most that may be spent in so many reads.
    pub(crate) const fn hedges_max(reads: u64) -> u64 {
        reads / READS_PER_HEDGE as u64 + HEDGES_AT_ONCE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_is_asked_for_one_in_twenty_reads_and_for_some_at_once() {
        let mut budget = Budget::default();
        let spend = |budget: &mut Budget| {
            let suffices = budget.suffices();
            suffices.then(|| budget.spend()).is_some()
        };
        let spent = (0..100).filter(|_| spend(&mut budget)).count();
        assert_eq!(spent, HEDGES_AT_ONCE as usize);
        let mut hedges = spent as u64;
        for reads in 1..10_000 {
            budget.earn();
            hedges += u64::from(spend(&mut budget));
            assert!(hedges <= Budget::hedges_max(reads), "{hedges} of {reads}");
        }
        assert!(hedges >= 9_999 / 20);
        for _ in 0..100_000 {
            budget.earn();
        }
        assert_eq!(
            (0..100).filter(|_| spend(&mut budget)).count(),
            HEDGES_AT_ONCE as usize,
            "rest does not add up for ever"
        );
    }

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

    #[test]
    fn who_is_late_is_asked_behind_others_before_it_has_answered() {
        let (mut one, mut other) = (Latency::default(), Latency::default());
        one.sample(Duration::from_micros(100));
        other.sample(Duration::from_micros(200));
        one.late(Duration::from_micros(50));
        assert_eq!(one.usual(), Duration::from_micros(100), "it may take as long as ever");
        one.late(Duration::from_millis(10));
        assert!(one.usual() > other.usual());
    }
}
