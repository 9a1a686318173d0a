//! How long an owner takes to answer, as its coordinator sees it.
//!
//! Invariant: only what was measured counts, the newest samples most. Source: rapid read protection, Cassandra; the tail at
//! scale (Dean and Barroso 2013).

use core::time::Duration;

const SAMPLES: usize = 128;

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
