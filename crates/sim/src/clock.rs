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
    // True time that the monotonic clock has not seen since the process began.
    lost_ns: u64,
    suspended_at: Option<Time>,
    wall_frozen: Option<i128>,
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
            lost_ns: 0,
            suspended_at: None,
            wall_frozen: None,
        }
    }

    /// Whether its wall clock is off, and whether its rate is.
    pub(crate) const fn errors(&self) -> (bool, bool) {
        (self.wall_offset_ns != 0, self.rate_ppm != 0)
    }

    /// The process starts anew: the monotonic clock has another zero.
    pub(crate) fn boot(&mut self, now: Time, rng: &mut Rng) {
        self.booted = now;
        self.base_ns = rng.u64(0..1 << 50);
        (self.lost_ns, self.suspended_at) = (0, None);
    }

    /// The machine is suspended: its monotonic clock stands still.
    pub(crate) fn suspend(&mut self, now: Time) {
        self.suspended_at.get_or_insert(now);
    }

    /// The machine goes on.
    pub(crate) fn resume(&mut self, now: Time) {
        if let Some(since) = self.suspended_at.take() {
            self.lost_ns += now.0 - since.0;
        }
    }

    /// The wall clock stands still.
    pub(crate) fn freeze(&mut self, now: Time) {
        let shown = i128::from(now.0) + self.wall_offset_ns;
        self.wall_frozen.get_or_insert(shown);
    }

    /// The wall clock goes on, from the right time.
    pub(crate) const fn thaw(&mut self) {
        self.wall_frozen = None;
    }

    /// The wall clock jumps.
    pub(crate) fn jump(&mut self, by: Duration, back: bool) {
        let by = by.as_nanos() as i128;
        self.wall_offset_ns += if back { -by } else { by };
    }

    /// What the clocks show at a true time.
    pub(crate) fn read(&self, now: Time) -> Now {
        let seen = self.suspended_at.unwrap_or(now);
        let passed = i128::from(seen.0 - self.booted.0 - self.lost_ns);
        let shown = passed * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        let wall = WALL_START_NS + self.wall_frozen.unwrap_or(i128::from(now.0) + self.wall_offset_ns);
        Now { mono: Time(self.base_ns + shown as u64), wall: WallTime(wall.max(0) as u64) }
    }

    /// The first true time at which the monotonic clock shows at least `mono`; never, as long as it stands still.
    pub(crate) fn when(&self, mono: Time) -> Time {
        if mono == Time::NEVER || self.suspended_at.is_some() {
            return Time::NEVER;
        }
        let shown = i128::from(mono.0.saturating_sub(self.base_ns));
        let rate = MILLION + i128::from(self.rate_ppm);
        let passed = (shown * MILLION + rate - 1) / rate;
        let passed = u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(self.lost_ns);
        Time(self.booted.0.saturating_add(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_at_the_first_instant_whatever_the_rate() {
        for rate_ppm in [-100_000, -1, 0, 1, 33_333, 100_000] {
            let clock = NodeClock {
                booted: Time(777),
                base_ns: 12_345,
                rate_ppm,
                wall_offset_ns: 0,
                lost_ns: 0,
                suspended_at: None,
                wall_frozen: None,
            };
            for ahead in [0, 1, 999, 1_000_000_007] {
                let deadline = Time(12_345 + ahead);
                let at = clock.when(deadline);
                assert!(clock.read(at).mono >= deadline);
                assert!(at.0 == 777 || clock.read(Time(at.0 - 1)).mono < deadline);
            }
        }
    }

    #[test]
    fn a_suspended_clock_loses_the_time_and_meets_its_deadlines_later() {
        let mut rng = Rng::with_seed(1);
        let settings = crate::Settings::calm(1).clock;
        let mut clock = NodeClock::draw(&mut rng, &settings);
        clock.boot(Time(100), &mut rng);
        let deadline = Time(clock.read(Time(100)).mono.0 + 50);
        clock.suspend(Time(120));
        assert_eq!(clock.when(deadline), Time::NEVER);
        assert_eq!(clock.read(Time(900)).mono, clock.read(Time(120)).mono);
        clock.resume(Time(1120));
        assert_eq!(clock.when(deadline), Time(1150));
        assert_eq!(clock.read(Time(1150)).mono, deadline);
    }
}
