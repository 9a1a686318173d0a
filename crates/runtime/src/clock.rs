//! The two clocks of this machine, as a replica sees them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use replikit_core::{Now, Time, WallTime};

/// A monotonic clock whose zero is its creation, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    zero: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { zero: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: Time::ZERO + self.zero.elapsed(), wall: WallTime(nanos(wall)) }
    }

    /// The instant that a time of this clock stands for; `None` for one that never comes.
    pub(crate) fn instant(&self, time: Time) -> Option<Instant> {
        if time == Time::NEVER { None } else { self.zero.checked_add(Duration::from_nanos(time.0)) }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A timer that is set again only when the deadline moves forward in time; one that fires early finds nothing due.
#[derive(Debug)]
pub(crate) struct Alarm {
    sleep: std::pin::Pin<Box<tokio::time::Sleep>>,
    set_for: Time,
}

impl Alarm {
    /// Needs a runtime with timers.
    pub(crate) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(FAR)), set_for: Time::NEVER }
    }

    /// Ready when the deadline may have come.
    pub(crate) fn poll(
        &mut self,
        context: &mut std::task::Context<'_>,
        clock: &Clock,
        deadline: Option<Time>,
    ) -> std::task::Poll<()> {
        let deadline = deadline.unwrap_or(Time::NEVER);
        if deadline < self.set_for {
            self.set_for = deadline;
            let at = clock.instant(deadline).unwrap_or_else(|| Instant::now() + FAR);
            self.sleep.as_mut().reset(at.into());
        }
        if self.set_for == Time::NEVER {
            return std::task::Poll::Pending;
        }
        let fired = Future::poll(self.sleep.as_mut(), context);
        if fired.is_ready() {
            self.set_for = Time::NEVER;
        }
        fired
    }
}

const FAR: Duration = Duration::from_secs(24 * 3600);
