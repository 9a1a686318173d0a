//! A node's two clocks as functions of true time.
//!
//! Invariant: the monotonic clock never goes back, whatever the rate and the jumps of the wall clock.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{Now, Time, WallTime};

use crate::settings::ClockSettings;

const MILLION: i128 = 1_000_000;
// Somewhere in 2025: far enough from zero that a negative offset stays positive.
const WALL_START_NS: i128 = 1_750_000_000_000_000_000;

/// The clocks of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeClock {
    booted: Time,
    // What the monotonic clock showed when the process began: arbitrary, and another one after each start.
    base_ns: u64,
    rate_ppm: i32,
    wall_offset_ns: i128,
}

impl NodeClock {
    pub(crate) fn draw(rng: &mut Rng, settings: &ClockSettings) -> Self {
        let drift = settings.drift_ppm_max as i32;
        let offset = settings.offset_max.as_nanos() as i64;
        Self {
            booted: Time::ZERO,
            base_ns: 0,
            rate_ppm: rng.i32(-drift..=drift),
            wall_offset_ns: i128::from(rng.i64(-offset..=offset)),
        }
    }

    /// The process starts anew: the monotonic clock has another zero.
    pub(crate) fn boot(&mut self, now: Time, rng: &mut Rng) {
        self.booted = now;
        self.base_ns = rng.u64(0..1 << 50);
    }

    /// The wall clock jumps.
    pub(crate) fn jump(&mut self, by: Duration, back: bool) {
        let by = by.as_nanos() as i128;
        self.wall_offset_ns += if back { -by } else { by };
    }

    /// What the clocks show at a true time.
    pub(crate) fn read(&self, now: Time) -> Now {
        let passed = i128::from(now.0 - self.booted.0);
        let shown = passed * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        let wall = WALL_START_NS + i128::from(now.0) + self.wall_offset_ns;
        Now { mono: Time(self.base_ns + shown as u64), wall: WallTime(wall.max(0) as u64) }
    }

    /// The first true time at which the monotonic clock shows at least `mono`.
    pub(crate) fn when(&self, mono: Time) -> Time {
        if mono == Time::NEVER {
            return mono;
        }
        let shown = i128::from(mono.0.saturating_sub(self.base_ns));
        let rate = MILLION + i128::from(self.rate_ppm);
        let passed = (shown * MILLION + rate - 1) / rate;
        Time(self.booted.0.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_at_the_first_instant_whatever_the_rate() {
        for rate_ppm in [-100_000, -1, 0, 1, 33_333, 100_000] {
            let clock = NodeClock { booted: Time(777), base_ns: 12_345, rate_ppm, wall_offset_ns: 0 };
            for ahead in [0, 1, 999, 1_000_000_007] {
                let deadline = Time(12_345 + ahead);
                let at = clock.when(deadline);
                assert!(clock.read(at).mono >= deadline);
                assert!(at.0 == 777 || clock.read(Time(at.0 - 1)).mono < deadline);
            }
        }
    }
}
