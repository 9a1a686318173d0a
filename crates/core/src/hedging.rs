//! Asking somebody else when an answer is late: how long answers take, and how often that may be done.
//!
//! Invariants: only what was measured counts, the newest samples most; what is asked once more is a fixed share of all that is asked.
//! Source: the tail at scale (Dean and Barroso 2013); rapid read protection, Cassandra; the retry budget of gRPC (proposal A6).

use core::time::Duration;

const SAMPLES: usize = 128;
/// One in so many questions may be asked once more because an answer is late...
const ASKED_PER_HEDGE: u32 = 20;
/// ... and so many at once, when somebody stops: as many as are under way then, about.
const HEDGES_AT_ONCE: u32 = 32;

/// How long somebody takes to answer: the newest samples.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    samples: Vec<Duration>,
    next: usize,
    usual: Duration,
    slow: Option<Duration>,
}

impl Latency {
    /// It has answered after so long.
    pub fn sample(&mut self, took: Duration) {
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
    pub fn late(&mut self, already: Duration) {
        self.usual = self.usual.max((self.usual * 7 + already) / 8);
    }

    /// The newest samples, in no order.
    #[must_use]
    pub fn samples(&self) -> &[Duration] {
        &self.samples
    }

    /// A moving average: who is asked first.
    #[must_use]
    pub const fn usual(&self) -> Duration {
        self.usual
    }

    /// What 99 of 100 answers stay below; long as long as little is known.
    #[must_use]
    pub fn slow(&self) -> Duration {
        self.slow.unwrap_or(Duration::MAX)
    }
}

/// How many may be asked in addition to late ones: one in twenty, and 32 at once.
#[derive(Debug)]
pub struct HedgeBudget {
    /// In questions.
    left: u32,
}

impl Default for HedgeBudget {
    fn default() -> Self {
        Self { left: ASKED_PER_HEDGE * HEDGES_AT_ONCE }
    }
}

impl HedgeBudget {
    /// A question is asked.
    pub fn earn(&mut self) {
        self.left = (self.left + 1).min(ASKED_PER_HEDGE * HEDGES_AT_ONCE);
    }

    /// Whether one more may be asked.
    #[must_use]
    pub const fn suffices(&self) -> bool {
        self.left >= ASKED_PER_HEDGE
    }

    /// One more is asked.
    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(ASKED_PER_HEDGE);
    }

    /// The most that may be spent for so many questions.
    #[must_use]
    pub const fn hedges_max(reads: u64) -> u64 {
        reads / ASKED_PER_HEDGE as u64 + HEDGES_AT_ONCE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_is_asked_for_one_in_twenty_reads_and_for_some_at_once() {
        let mut budget = HedgeBudget::default();
        let spend = |budget: &mut HedgeBudget| {
            let suffices = budget.suffices();
            suffices.then(|| budget.spend()).is_some()
        };
        let spent = (0..100).filter(|_| spend(&mut budget)).count();
        assert_eq!(spent, HEDGES_AT_ONCE as usize);
        let mut hedges = spent as u64;
        for reads in 1..10_000 {
            budget.earn();
            hedges += u64::from(spend(&mut budget));
            assert!(hedges <= HedgeBudget::hedges_max(reads), "{hedges} of {reads}");
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
