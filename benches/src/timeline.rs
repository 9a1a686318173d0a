//! Acknowledged writes over time, around faults.
//!
//! Invariant: the longest gap counts from one acknowledgement to the next, whatever buckets they fall into, and up to the
//! end of the run.

use std::fmt::Write;
use std::time::Duration;

use crate::table;

/// Width of a bucket.
pub const BUCKET: Duration = Duration::from_millis(100);
/// Shorter ones are not remembered: they are the usual time between two acknowledgements.
const GAP_MIN: Duration = Duration::from_millis(1);
/// Buckets in one printed line.
const BUCKETS_PER_LINE: usize = 10;

/// A time without an acknowledged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// When it began.
    pub from: Duration,
    /// How long it was.
    pub length: Duration,
}

/// A run's acknowledged writes; times count from its start and do not go back.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    counts: Vec<u32>,
    last: Duration,
    /// Those worth telling, in the order of time.
    gaps: Vec<Gap>,
    marks: Vec<(Duration, String)>,
}

impl Timeline {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A write was acknowledged.
    pub fn acked(&mut self, at: Duration) {
        self.close_gap(at);
        let bucket = (at.as_nanos() / BUCKET.as_nanos()) as usize;
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
    }

    /// Something was done to the cluster.
    pub fn mark(&mut self, at: Duration, what: impl Into<String>) {
        self.marks.push((at, what.into()));
    }

    /// The run has ended.
    pub fn end(&mut self, at: Duration) {
        self.close_gap(at);
        let buckets = (at.as_nanos() / BUCKET.as_nanos()) as usize;
        if self.counts.len() < buckets {
            self.counts.resize(buckets, 0);
        }
    }

    /// The longest time without an acknowledged write.
    #[must_use]
    pub fn longest_gap(&self) -> Gap {
        self.longest_gap_between(Duration::ZERO, Duration::MAX)
    }

    /// The longest time without an acknowledged write that has a part between these moments.
    #[must_use]
    pub fn longest_gap_between(&self, from: Duration, until: Duration) -> Gap {
        let touching = self.gaps.iter().filter(|gap| gap.from < until && gap.from + gap.length > from);
        touching.copied().max_by_key(|gap| gap.length).unwrap_or_default()
    }

    /// Acknowledged writes in each bucket.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// What was done to the cluster, and when.
    #[must_use]
    pub fn marks(&self) -> &[(Duration, String)] {
        &self.marks
    }

    /// One line per second: acknowledged writes per second in each bucket, and the marks of that second.
    #[must_use]
    pub fn render(&self) -> String {
        let per_second = 1.0 / BUCKET.as_secs_f64();
        let mut text = format!("  acked writes/s, one column per {} ms\n", BUCKET.as_millis());
        for (line, counts) in self.counts.chunks(BUCKETS_PER_LINE).enumerate() {
            let from = BUCKET * (line * BUCKETS_PER_LINE) as u32;
            let until = from + BUCKET * BUCKETS_PER_LINE as u32;
            // Writing to a string cannot fail.
            let _ = write!(text, "  {:>5.1} s ", from.as_secs_f64());
            for count in counts {
                let _ = write!(text, "{:>8}", table::count(f64::from(*count) * per_second));
            }
            for (at, what) in self.marks.iter().filter(|(at, _)| (from..until).contains(at)) {
                let _ = write!(text, "   <- {:.2} s {what}", at.as_secs_f64());
            }
            text.push('\n');
        }
        text
    }

    fn close_gap(&mut self, at: Duration) {
        let length = at.saturating_sub(self.last);
        if length >= GAP_MIN {
            self.gaps.push(Gap { from: self.last, length });
        }
        self.last = self.last.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_longest_gap_crosses_buckets_and_reaches_the_end() {
        let mut timeline = Timeline::new();
        for at in [10, 20, 350, 360] {
            timeline.acked(millis(at));
        }
        assert_eq!(timeline.longest_gap(), Gap { from: millis(20), length: millis(330) });
        timeline.end(millis(1_000));
        assert_eq!(timeline.longest_gap(), Gap { from: millis(360), length: millis(640) });
        assert_eq!(timeline.longest_gap_between(millis(15), millis(30)).from, millis(20));
        assert_eq!(timeline.longest_gap_between(millis(12), millis(19)), Gap { from: millis(10), length: millis(10) });
        assert_eq!(timeline.longest_gap_between(millis(350), millis(355)).length, millis(10));
        assert_eq!(timeline.counts(), [2, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn marks_stand_in_the_line_of_their_second() {
        let mut timeline = Timeline::new();
        for at in (0..2_000).step_by(10) {
            timeline.acked(millis(at));
        }
        timeline.mark(millis(1_040), "leader killed");
        timeline.end(millis(2_000));
        let text = timeline.render();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(!lines[1].contains("<-") && lines[2].ends_with("<- 1.04 s leader killed"), "{text}");
        assert!(lines[1].contains("100"), "10 writes in 100 ms are 100 a second: {text}");
    }
}
