//! Latencies as a histogram: 1 ns to 60 s, three significant digits; nothing is averaged away.
//!
//! Source: HdrHistogram (Tene); percentiles are those of single requests, not of sampled intervals.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in nanoseconds; longer ones count as this.
const LATENCY_NANOS_MAX: u64 = 60_000_000_000;

/// Latencies of one kind of request.
#[derive(Clone, Debug)]
pub struct Latencies {
    nanos: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        let nanos = Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, 3).expect("the bounds are in range");
        Self { nanos }
    }

    /// Counts one request.
    pub fn record(&mut self, latency: Duration) {
        self.nanos.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NANOS_MAX));
    }

    /// Adds those of another recorder.
    pub fn merge(&mut self, other: &Self) {
        self.nanos.add(&other.nanos).expect("all recorders have the same bounds");
    }

    /// Number of requests.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// The latency that this share of the requests (0 to 1) did not exceed; zero when there was none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanos.value_at_quantile(share))
    }

    /// The longest latency.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.nanos.max())
    }

    /// For ascending latencies in microseconds, which share of the requests took longer: few points, denser where few are left.
    #[must_use]
    pub fn survival(&self) -> Vec<(f64, f64)> {
        let count = self.count();
        let mut points: Vec<(f64, f64)> = Vec::new();
        let mut left = 1.0_f64;
        while count > 0 && left * count as f64 >= 1.0 {
            let micros = self.quantile(1.0 - left).as_nanos() as f64 / 1e3;
            match points.last_mut() {
                Some(last) if last.0 >= micros => last.1 = left,
                _ => points.push((micros, left)),
            }
            left *= 0.75;
        }
        points
    }

    /// Writes the percentile distribution in the text format that HdrHistogram's plotters read; values in microseconds.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_percentiles(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
        let mut total = 0;
        for step in self.nanos.iter_quantiles(5) {
            total += step.count_since_last_iteration();
            let quantile = step.quantile_iterated_to();
            let value = step.value_iterated_to() as f64 / 1e3;
            if quantile < 1.0 {
                writeln!(out, "{value:>12.3} {quantile:>14.12} {total:>10} {:>14.2}", 1.0 / (1.0 - quantile))?;
            } else {
                writeln!(out, "{value:>12.3} {quantile:>14.12} {total:>10}")?;
            }
        }
        let (mean, deviation) = (self.nanos.mean() / 1e3, self.nanos.stdev() / 1e3);
        writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
        writeln!(
            out,
            "#[Max     = {:>12.3}, Total count    = {:>12}]",
            self.max().as_nanos() as f64 / 1e3,
            self.count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_requests() {
        let mut latencies = Latencies::new();
        for micros in 1..=1_000 {
            latencies.record(Duration::from_micros(micros));
        }
        let close = |found: Duration, micros: f64| (found.as_nanos() as f64 / 1e3 / micros - 1.0).abs() < 2e-3;
        assert!(close(latencies.quantile(0.5), 500.0), "{:?}", latencies.quantile(0.5));
        assert!(close(latencies.quantile(0.99), 990.0), "{:?}", latencies.quantile(0.99));
        assert!(close(latencies.quantile(0.999), 999.0), "{:?}", latencies.quantile(0.999));
        assert!(close(latencies.max(), 1_000.0), "{:?}", latencies.max());
        assert_eq!(latencies.count(), 1_000);
    }

    #[test]
    fn survival_falls_from_all_requests_to_one() {
        assert!(Latencies::new().survival().is_empty());
        let mut latencies = Latencies::new();
        for micros in [0, 0, 0, 0, 0, 0, 5, 10, 20, 40] {
            latencies.record(Duration::from_micros(micros));
        }
        let points = latencies.survival();
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1), "{points:?}");
        // Six of ten took no time: the first point says which share took longer than that, about.
        assert!((0.3..0.5).contains(&points[0].1), "{points:?}");
        assert!(points.last().expect("there are points").1 >= 0.1);
    }

    #[test]
    fn a_latency_beyond_the_range_still_counts() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_secs(600));
        assert_eq!(latencies.count(), 1);
        assert!(latencies.max() >= Duration::from_secs(60));
    }

    #[test]
    fn merging_adds_the_counts() {
        let (mut one, mut other) = (Latencies::new(), Latencies::new());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_micros(3));
        one.merge(&other);
        assert_eq!(one.count(), 2);
        assert!(one.max() >= Duration::from_micros(3));
    }

    #[test]
    fn the_percentile_dump_ends_with_all_requests() {
        let mut latencies = Latencies::new();
        for micros in 1..=100 {
            latencies.record(Duration::from_micros(micros));
        }
        let mut text = Vec::new();
        latencies.write_percentiles(&mut text).expect("writing to memory works");
        let text = String::from_utf8(text).expect("the dump is text");
        let last = text.lines().rfind(|line| !line.starts_with('#')).expect("there are lines");
        assert!(last.trim_end().ends_with("100"), "{last}");
        assert!(text.contains("Total count    =          100"), "{text}");
    }
}
