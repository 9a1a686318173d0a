//! Hybrid logical clock: timestamps that follow causality and stay close to wall time.
//!
//! Invariant: timestamps issued by one clock strictly increase, also across crashes, as long as the caller keeps the
//! durable ceiling: a clock never issues a timestamp at or above the ceiling it was given. Source: Kulkarni et al. 2014;
//! the durable ceiling is the same trick as a transaction id allocator's high-water mark.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::WallTime;

/// A hybrid timestamp: wall time in nanoseconds whose lowest 16 bits are a logical counter.
///
/// Resolution of the wall part is 65,536 ns; up to 65,536 timestamps fit into one step before the clock runs ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTimestamp(pub u64);

const COUNTER_BITS: u32 = 16;

impl HybridTimestamp {
    /// The wall-clock part, in nanoseconds since the Unix epoch, rounded down to the resolution.
    #[must_use]
    pub const fn wall(self) -> WallTime {
        WallTime(self.0 >> COUNTER_BITS << COUNTER_BITS)
    }
}

/// A peer's timestamp lies too far ahead of the own wall clock. Blame: one of the two clocks; which, nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a timestamp is {ahead:?} ahead of this clock, {drift_max:?} is allowed")]
pub struct ClockDrift {
    /// How far ahead it is.
    pub ahead: Duration,
    /// What is allowed.
    pub drift_max: Duration,
}

/// Issues [`HybridTimestamp`]s.
#[derive(Clone, Debug)]
pub struct HybridClock {
    last: HybridTimestamp,
    ceiling: HybridTimestamp,
}

impl HybridClock {
    /// A clock that continues after a restart: `durable_ceiling` is the last ceiling that was made durable, or zero.
    /// Nothing is issued until [`raise_ceiling`](Self::raise_ceiling) was called.
    #[must_use]
    pub const fn resume(durable_ceiling: HybridTimestamp) -> Self {
        Self { last: durable_ceiling, ceiling: durable_ceiling }
    }

    /// A clock without a durable ceiling, for timestamps that need not outlive the process.
    #[must_use]
    pub const fn unbounded() -> Self {
        Self { last: HybridTimestamp(0), ceiling: HybridTimestamp(u64::MAX) }
    }

    /// The next timestamp, larger than all issued and observed; `None` when the ceiling is reached: make a
    /// [`wanted_ceiling`](Self::wanted_ceiling) durable first.
    pub fn tick(&mut self, wall: WallTime) -> Option<HybridTimestamp> {
        let wall_part = wall.0 >> COUNTER_BITS << COUNTER_BITS;
        let next = HybridTimestamp(wall_part.max(self.last.0.saturating_add(1)));
        (next < self.ceiling).then(|| {
            self.last = next;
            next
        })
    }

    /// Takes note of a timestamp seen elsewhere: later ones issued here are larger.
    pub fn observe(&mut self, seen: HybridTimestamp) {
        self.last = self.last.max(seen);
    }

    /// Takes note of a peer's timestamp as far as it is at most `drift_max` ahead of the own wall clock: one broken clock does
    /// not drag all others along.
    ///
    /// # Errors
    /// [`ClockDrift`] for one that is further ahead. The clock has then moved to the bound only; the peer's write is still to
    /// be applied (dots, not clocks, decide that), and the drift to be reported.
    pub fn observe_peer(
        &mut self,
        seen: HybridTimestamp,
        wall: WallTime,
        drift_max: Duration,
    ) -> Result<(), ClockDrift> {
        let bound_ns = wall.0.saturating_add(u64::try_from(drift_max.as_nanos()).unwrap_or(u64::MAX));
        let bound = HybridTimestamp(bound_ns);
        self.observe(seen.min(bound));
        if seen > bound {
            return Err(ClockDrift { ahead: Duration::from_nanos(seen.0 - wall.0), drift_max });
        }
        Ok(())
    }

    /// How long the clock can run before it needs a higher ceiling, if the wall clock runs on from `wall`. Ask for one in
    /// time: zero means that [`tick`](Self::tick) refuses.
    #[must_use]
    pub fn headroom(&self, wall: WallTime) -> Duration {
        let next = (wall.0 >> COUNTER_BITS << COUNTER_BITS).max(self.last.0.saturating_add(1));
        Duration::from_nanos(self.ceiling.0.saturating_sub(next))
    }

    /// The ceiling to make durable so that the clock can run for `ahead`; a pure proposal.
    #[must_use]
    pub fn wanted_ceiling(&self, wall: WallTime, ahead: Duration) -> HybridTimestamp {
        let ahead_ns = u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX);
        HybridTimestamp(self.last.0.max(wall.0).saturating_add(ahead_ns))
    }

    /// The given ceiling is durable now. A lower one than before is ignored.
    pub fn raise_ceiling(&mut self, durable: HybridTimestamp) {
        self.ceiling = self.ceiling.max(durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_increase_while_the_wall_clock_goes_back() {
        let mut clock = HybridClock::unbounded();
        let mut last = HybridTimestamp(0);
        for wall in [5_000_000, 1_000_000, 1_000_000, 9_000_000, 0] {
            let next = clock.tick(WallTime(wall)).unwrap();
            assert!(next > last);
            last = next;
        }
    }

    #[test]
    fn observed_timestamps_are_passed() {
        let mut clock = HybridClock::unbounded();
        clock.observe(HybridTimestamp(77 << 16));
        assert!(clock.tick(WallTime(1)).unwrap() > HybridTimestamp(77 << 16));
    }

    #[test]
    fn a_peer_far_ahead_drags_the_clock_no_further_than_the_bound_and_is_reported() {
        let (mut clock, wall, drift_max) = (HybridClock::unbounded(), WallTime(1 << 40), Duration::from_millis(500));
        assert_eq!(clock.observe_peer(HybridTimestamp((1 << 40) + 400_000_000), wall, drift_max), Ok(()));
        assert!(clock.tick(wall).unwrap() > HybridTimestamp((1 << 40) + 400_000_000));
        let ahead = Duration::from_secs(30);
        let far = HybridTimestamp((1 << 40) + 30_000_000_000);
        assert_eq!(clock.observe_peer(far, wall, drift_max), Err(ClockDrift { ahead, drift_max }));
        assert_eq!(clock.tick(wall), Some(HybridTimestamp((1 << 40) + 500_000_001)));
        let last = HybridTimestamp(u64::MAX);
        assert!(clock.observe_peer(last, wall, drift_max).is_err(), "a peer cannot use up the clock");
        assert!(clock.tick(wall).is_some());
    }

    #[test]
    fn the_headroom_ends_exactly_where_the_clock_refuses() {
        let mut clock = HybridClock::resume(HybridTimestamp(0));
        clock.raise_ceiling(HybridTimestamp(1 << 30));
        for wall in [0, 1 << 20, (1 << 30) - 1, 1 << 30, 1 << 40].map(WallTime) {
            let headroom = clock.headroom(wall);
            assert_eq!(clock.clone().tick(wall).is_some(), headroom > Duration::ZERO, "at {wall:?}");
        }
    }

    #[test]
    fn nothing_is_issued_above_the_durable_ceiling_so_a_crash_cannot_repeat_a_timestamp() {
        let mut clock = HybridClock::resume(HybridTimestamp(0));
        assert_eq!(clock.tick(WallTime(1 << 20)), None);
        let ceiling = clock.wanted_ceiling(WallTime(1 << 20), Duration::from_millis(1));
        clock.raise_ceiling(ceiling);
        let before_crash = clock.tick(WallTime(1 << 20)).unwrap();
        assert_eq!(clock.tick(WallTime(1 << 40)), None, "the wall clock jumped past the ceiling");
        let mut after_crash = HybridClock::resume(ceiling);
        after_crash.raise_ceiling(after_crash.wanted_ceiling(WallTime(0), Duration::from_secs(1)));
        assert!(after_crash.tick(WallTime(0)).unwrap() > before_crash);
    }
}
