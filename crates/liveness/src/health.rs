//! How well this node itself does: one that is late cannot tell whether others are.
//!
//! Invariants: time during which this node did not run does not count against others; the worse it does the longer it waits,
//! up to nine times. Source: Lifeguard's local health (Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More
//! Accurate Failure Detection", 2018, section 4.A).

use core::time::Duration;

/// Worst score: everything takes nine times as long.
pub(crate) const SCORE_MAX: u32 = 8;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    score: u32,
    in_time: u32,
}

impl Health {
    /// Timers that were in time, one after the other, for one step up.
    const IN_TIME: u32 = 16;

    /// A timer went off this much too late; `tolerated` is what a healthy node may be late.
    pub(crate) fn timer(&mut self, late: Duration, tolerated: Duration) {
        if late > tolerated {
            self.in_time = 0;
            self.score = (self.score + 1).min(SCORE_MAX);
        } else {
            self.in_time += 1;
            if self.in_time == Self::IN_TIME {
                self.in_time = 0;
                self.score = self.score.saturating_sub(1);
            }
        }
    }

    /// How long it waits for what a healthy node would wait this long for.
    pub(crate) fn stretched(self, wait: Duration) -> Duration {
        wait * (1 + self.score)
    }

    pub(crate) const fn score(self) -> u32 {
        self.score
    }
}
