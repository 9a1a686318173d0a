//! The outcome of a run: all samples, and what they say about ours and its peers.
//!
//! Invariant: a ratio is one of samples of the same round, so that a machine that changes meanwhile changes both of its sides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use replikit_benches::figure::Better;
use replikit_benches::report::Spread;
use replikit_benches::table::{Side, Table, count, latency};

use crate::contest::{Contest, Goal, Load, Metric};
use crate::sample::Sample;
use crate::system::System;

/// A sample and where it belongs.
#[derive(Clone, Debug)]
struct Taken {
    contest: usize,
    round: u32,
    system: System,
    sample: Sample,
}

/// All samples of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    contests: Vec<Contest>,
    taken: Vec<Taken>,
    absent: BTreeMap<System, String>,
}

impl Outcome {
    /// No sample yet; these systems cannot be measured, for these reasons.
    #[must_use]
    pub const fn new(contests: Vec<Contest>, absent: BTreeMap<System, String>) -> Self {
        Self { contests, taken: Vec::new(), absent }
    }

    /// What is run.
    #[must_use]
    pub fn contests(&self) -> &[Contest] {
        &self.contests
    }

    /// Why a system is not put under a load; `None` where it is.
    #[must_use]
    pub fn absent(&self, system: System, load: Load) -> Option<&str> {
        self.absent.get(&system).map(String::as_str).or_else(|| system.cannot(load))
    }

    /// Adds what a system did in a round of a contest.
    pub fn add(&mut self, contest: usize, round: u32, system: System, sample: Sample) {
        self.taken.push(Taken { contest, round, system, sample });
    }

    fn samples(&self, contest: usize, system: System) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(move |taken| taken.contest == contest && taken.system == system)
    }

    /// How many times as good ours is as the peer, over the rounds that have both; `None` where no round has.
    #[must_use]
    pub fn ratio(&self, contest: usize, peer: System, metric: Metric) -> Option<Spread> {
        let ours = self.contests[contest].ours;
        let ratios = self.samples(contest, peer).filter_map(|theirs| {
            let ours = self.samples(contest, ours).find(|ours| ours.round == theirs.round)?;
            Some(ours.sample.merit(metric) / theirs.sample.merit(metric))
        });
        Spread::of(ratios.collect(), "1", Better::Higher)
    }

    /// Wrong results, in words; none in a good run.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let each = self.taken.iter().flat_map(|taken| {
            let load = self.contests[taken.contest].load;
            let name = taken.system.name();
            taken.sample.wrong.iter().map(move |wrong| format!("WRONG RESULT: {name}, {load}: {wrong}"))
        });
        each.collect()
    }

    /// The figures of all contests, ours first in each.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new(vec![
            ("median and range", Side::Left),
            ("1/s", Side::Right),
            ("p50", Side::Right),
            ("p99", Side::Right),
            ("ours: times the rate", Side::Right),
            ("p99 lower by", Side::Right),
            ("goal", Side::Left),
        ]);
        for (number, contest) in self.contests.iter().enumerate() {
            for system in contest.systems() {
                table.row(&contest.to_string(), self.row(number, system));
            }
        }
        table.render()
    }

    fn row(&self, number: usize, system: System) -> Vec<String> {
        let contest = &self.contests[number];
        let none = || "-".to_owned();
        let name = system.name().to_owned();
        let samples: Vec<&Sample> = self.samples(number, system).map(|taken| &taken.sample).collect();
        let rates = samples.iter().map(|sample| sample.rate).collect();
        let Some(rates) = Spread::of(rates, "1/s", Better::Higher) else {
            let why = if self.absent(system, contest.load).is_some() { "N/A" } else { "failed" };
            return vec![name, why.to_owned(), none(), none(), none(), none(), none()];
        };
        let quantile = |share: f64| {
            let found = samples.iter().filter(|sample| sample.latencies.count() > 0);
            let seconds = found.map(|sample| sample.latencies.quantile(share).as_secs_f64()).collect();
            let spread = Spread::of(seconds, "s", Better::Lower);
            spread.map_or_else(none, |spread| latency(Duration::from_secs_f64(spread.median())))
        };
        let mut row = vec![name, ranged(&rates, count), quantile(0.5), quantile(0.99)];
        let times = |value: f64| format!("{value:.2}");
        for metric in [Metric::Rate, Metric::P99] {
            let ratio = if system == contest.ours { None } else { self.ratio(number, system, metric) };
            row.push(ratio.map_or_else(none, |ratio| ranged(&ratio, times)));
        }
        let goals: Vec<String> = contest.goals(system).iter().map(|goal| self.verdict(number, system, *goal)).collect();
        row.push(if goals.is_empty() { none() } else { goals.join("; ") });
        row
    }

    /// Whether the median of the ratios reaches the goal.
    fn verdict(&self, contest: usize, peer: System, goal: Goal) -> String {
        let metric = match goal.metric {
            Metric::Rate => "",
            Metric::P99 => "p99 ",
        };
        let reached = self.ratio(contest, peer, goal.metric).is_some_and(|ratio| ratio.median() >= goal.times);
        format!("{metric}{}: {}", goal.times, if reached { "reached" } else { "missed" })
    }

    /// Each system: its version, how it is set up, what it promises, or why it is not measured.
    #[must_use]
    pub fn systems(&self) -> String {
        let mut told = BTreeSet::new();
        let mut text = String::new();
        for (number, contest) in self.contests.iter().enumerate() {
            for system in contest.systems() {
                let (heading, described) = match self.absent(system, contest.load) {
                    Some(reason) => (format!("{}: N/A: {reason}", system.name()), String::new()),
                    None => match self.samples(number, system).next() {
                        Some(taken) => described(system, contest.load, &taken.sample),
                        None => continue,
                    },
                };
                // What differs between loads of one promise is how many clients there are, and at which ports.
                if told.insert(heading.clone()) {
                    text.push_str(&format!("{heading}\n{described}"));
                }
            }
        }
        text
    }
}

/// The system and what it promises, and how it is set up.
fn described(system: System, load: Load, sample: &Sample) -> (String, String) {
    let version = system.version().unwrap_or_else(|_| "of unknown version".to_owned());
    let heading = format!(
        "{}: {version}; acknowledged: {}; fsync before that: {}",
        system.name(),
        sample.acknowledged,
        system.syncs(load)
    );
    (heading, sample.configuration.iter().map(|(name, value)| format!("  {name}: {value}\n")).collect())
}

/// The median, with the range in parentheses.
fn ranged(spread: &Spread, shown: impl Fn(f64) -> String) -> String {
    format!("{} ({}-{})", shown(spread.median()), shown(spread.least()), shown(spread.most()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::{self, Peer};

    fn contest() -> Contest {
        Contest {
            load: Load::Writes { clients: 64 },
            ours: System::SingleLeader,
            peers: vec![Peer {
                system: System::Redis,
                goals: vec![Goal { metric: Metric::Rate, times: 2.5 }, Goal { metric: Metric::P99, times: 4.0 }],
            }],
        }
    }

    fn sample(rate: f64, millis: u64) -> Sample {
        let mut sample = Sample { rate, ..Sample::default() };
        sample.latencies.record(Duration::from_millis(millis));
        sample
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        let mut outcome = Outcome::new(vec![contest()], BTreeMap::new());
        // The machine halves its speed from round to round, and once a peer fails.
        for (round, speed) in [(1, 4.0), (2, 2.0), (3, 1.0)] {
            outcome.add(0, round, System::SingleLeader, sample(3_000.0 * speed, 2));
            if round != 2 {
                outcome.add(0, round, System::Redis, sample(1_000.0 * speed, 6));
            }
        }
        let rate = outcome.ratio(0, System::Redis, Metric::Rate).expect("two rounds have both");
        assert_eq!((rate.rounds(), rate.least(), rate.most()), (2, 3.0, 3.0));
        let p99 = outcome.ratio(0, System::Redis, Metric::P99).expect("two rounds have both");
        assert!((2.9..3.1).contains(&p99.median()), "{p99:?}");
        let table = outcome.table();
        assert!(table.contains("3.00 (3.00-3.00)") && table.contains("2.5: reached; p99 4: missed"), "{table}");
    }

    #[test]
    fn a_system_that_is_absent_says_why_and_reaches_nothing() {
        let reason = "it is not here".to_owned();
        let mut outcome = Outcome::new(vec![contest()], BTreeMap::from([(System::Redis, reason)]));
        outcome.add(0, 1, System::SingleLeader, sample(1.0, 1));
        assert!(outcome.ratio(0, System::Redis, Metric::Rate).is_none());
        let table = outcome.table();
        assert!(table.contains("N/A") && !table.contains("reached"), "{table}");
        assert!(outcome.systems().contains("Redis, WAIT 1: N/A: it is not here"), "{}", outcome.systems());
    }

    #[test]
    fn a_wrong_result_names_its_system_and_load() {
        let mut outcome = Outcome::new(contest::all(), BTreeMap::new());
        assert!(outcome.wrong().is_empty());
        outcome.add(0, 1, System::Redis, Sample { wrong: vec!["1 lost".to_owned()], ..Sample::default() });
        let load = outcome.contests()[0].load;
        assert_eq!(outcome.wrong(), [format!("WRONG RESULT: Redis, WAIT 1, {load}: 1 lost")]);
    }
}
