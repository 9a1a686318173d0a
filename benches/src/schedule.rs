//! When the requests of an open loop are due. The next request is due whether or not the one before was answered, and its
//! latency counts from that moment: a stalled server cannot hide its stall by slowing the load down.
//!
//! Source: wrk2 (Tene), "coordinated omission".

use std::time::Duration;

/// Evenly spaced arrivals at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    rate: u32,
}

impl Schedule {
    /// So many requests a second, at least 1.
    ///
    /// # Panics
    /// When the rate is 0, which is no load.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        assert!(rate > 0, "an open loop has a rate");
        Self { rate }
    }

    /// When request number `number` (from 0) is due, counted from the start. Exact: rounding does not add up.
    #[must_use]
    pub fn due(&self, number: u64) -> Duration {
        let rate = u64::from(self.rate);
        Duration::from_secs(number / rate) + Duration::from_nanos(number % rate * 1_000_000_000 / rate)
    }

    /// How many requests are due by then.
    #[must_use]
    pub fn count_by(&self, elapsed: Duration) -> u64 {
        let whole = elapsed.as_secs().saturating_mul(u64::from(self.rate));
        // The first request is due at once.
        whole + (u64::from(elapsed.subsec_nanos()) * u64::from(self.rate)) / 1_000_000_000 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_even_and_do_not_drift() {
        let schedule = Schedule::new(3);
        assert_eq!(schedule.due(0), Duration::ZERO);
        assert_eq!(schedule.due(1), Duration::from_nanos(333_333_333));
        assert_eq!(schedule.due(3), Duration::from_secs(1));
        assert_eq!(schedule.due(3_000_001), Duration::from_secs(1_000_000) + Duration::from_nanos(333_333_333));
    }

    #[test]
    fn what_is_due_by_a_moment_agrees_with_when_each_is_due() {
        let schedule = Schedule::new(7_919);
        for number in (0..100_000).step_by(617) {
            let due = schedule.due(number);
            assert!(schedule.count_by(due + Duration::from_nanos(1)) > number, "request {number} is due");
            if let Some(earlier) = due.checked_sub(Duration::from_nanos(1)) {
                assert!(schedule.count_by(earlier) <= number, "request {number} is not due early");
            }
        }
    }
}
