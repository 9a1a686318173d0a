//! Two runs, or two builds in turn: how much faster or slower the second one is, with an interval, and whether that is a
//! regression.
//!
//! Invariant: a difference counts only if its interval, at the confidence asked for, does not hold "no difference", and it is
//! larger than the least that matters: equal builds stay quiet.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::figure::Better;
use crate::rank::{self, Shift};
use crate::record::{Kind, Record, Run};
use crate::report::Spread;
use crate::report::terminal::short;
use crate::slow_down::PLANTED;

/// What a regression is looked for in.
const GATED: [&str; 2] = ["throughput", "processor time per request"];
/// What is shown beside it.
const SHOWN: [&str; 3] = ["write latency p50", "write latency p99", "fsyncs per write and node"];

/// When a difference counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// How often intervals made so hold the truth: 0 to 1. The more metrics are looked at, the nearer to 1 it must be.
    pub confidence: f64,
    /// The least difference that matters, as a share: 0.05 for 5 %.
    pub least: f64,
    /// The largest loss that may stay unseen, as a share: where an interval holds a larger one, nothing was shown.
    pub unseen_max: f64,
}

impl Default for Gate {
    /// 99 % and 5 %: of a gate's 16 metrics one in six runs would show one that is no difference at 99 %, and hardly ever one
    /// that is also larger than 5 %. Who passes has no loss of more than 10 %.
    fn default() -> Self {
        Self { confidence: 0.99, least: 0.05, unseen_max: 0.1 }
    }
}

/// How the values of the two sides belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each of the first side was measured right beside the one of the same number of the second side.
    InTurn,
    /// One side was measured after the other.
    Apart,
}

/// What is said of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better by more than the least that matters.
    Better,
    /// Worse by more than the least that matters: a regression, where the metric is one of the gate's.
    Worse,
    /// No difference that counts.
    Same,
    /// Too few values for the confidence that was asked for.
    TooFew,
}

/// A metric of a case on both sides.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Which case.
    pub name: String,
    /// Which metric.
    pub metric: String,
    /// Whether it is one of the gate's.
    pub gated: bool,
    /// Median of the first side.
    pub base: f64,
    /// Median of the second side.
    pub new: f64,
    /// Its unit.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
    /// The second side over the first one, as a share: 0 for no change, -0.1 for a tenth less.
    pub change: Shift,
    /// What is said of it.
    pub verdict: Verdict,
}

impl Compared {
    /// How much worse it may be, as far as the interval says: a share.
    fn worst(&self) -> f64 {
        match self.better {
            Better::Higher => -self.change.low,
            Better::Lower => self.change.high,
            Better::Neither => 0.0,
        }
    }
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// By case, in the order of the first side.
    pub rows: Vec<Compared>,
    /// Cases that only the first side has.
    pub only_base: Vec<String>,
    /// Cases that only the second side has.
    pub only_new: Vec<String>,
    /// Why the comparison may be worth little.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// Compares. With [`Order::InTurn`] the runs of both sides belong together by their number.
    #[must_use]
    pub fn of(base: &[Run], new: &[Run], order: Order, gate: Gate) -> Self {
        let (old, fresh) = (values(base), values(new));
        let mut rows = Vec::new();
        for (name, metrics) in &old {
            let Some(others) = fresh.iter().find(|(other, _)| other == name).map(|(_, metrics)| metrics) else {
                continue;
            };
            for metric in GATED.into_iter().chain(SHOWN) {
                if let (Some(one), Some(other)) = (metrics.get(metric), others.get(metric)) {
                    rows.extend(compared(name, metric, one, other, order, gate));
                }
            }
        }
        let missing = |of: &Values, from: &Values| {
            let absent = of.iter().filter(|(name, _)| !from.iter().any(|(other, _)| other == name));
            absent.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let mut warnings = Vec::new();
        let machines: Vec<_> = base.iter().chain(new).map(|run| &run.header.machine).collect();
        if machines.windows(2).any(|pair| pair[0] != pair[1]) {
            warnings.push(
                "the runs were made on different machines or kernels: the differences are theirs as well".to_owned(),
            );
        }
        for (side, runs) in [("first", base), ("second", new)] {
            if let Some(planted) = runs.iter().find_map(Run::planted) {
                warnings.push(format!("the {side} side has a {PLANTED}: {planted}"));
            }
        }
        let mut modes: Vec<&str> = Vec::new();
        modes.extend(base.iter().chain(new).flat_map(|run| run.of(Kind::Probe)).map(|probe| probe.setting("cores")));
        modes.sort_unstable();
        modes.dedup();
        if modes.len() > 1 {
            warnings.push(format!(
                "the cores' distance changed meanwhile ({}): intervals are wider than need be",
                modes.join("/")
            ));
        }
        Self { rows, only_base: missing(&old, &fresh), only_new: missing(&fresh, &old), warnings }
    }

    /// Metrics of the gate that became worse.
    pub fn regressions(&self) -> impl Iterator<Item = &Compared> {
        self.rows.iter().filter(|row| row.gated && row.verdict == Verdict::Worse)
    }

    /// Why nothing was shown, unless a regression was: there is no metric of the gate, or too few values of one, or they are so
    /// far from each other that a loss could hide among them.
    #[must_use]
    pub fn cannot_tell(&self, gate: Gate) -> Option<String> {
        let confidence = gate.confidence * 100.0;
        let too_few = format!("there are too few values for intervals at {confidence} %");
        if self.gated().next().is_none() || self.gated().any(|row| row.verdict == Verdict::TooFew) {
            return Some(too_few);
        }
        let (unseen, most) = (self.unseen() * 100.0, gate.unseen_max * 100.0);
        (unseen > most)
            .then(|| format!("what is worse by {unseen:.1} % may have stayed unseen, and {most} % is the most"))
    }

    fn gated(&self) -> impl Iterator<Item = &Compared> {
        self.rows.iter().filter(|row| row.gated)
    }

    /// The largest loss that the intervals hold, as a share.
    fn unseen(&self) -> f64 {
        self.gated().map(Compared::worst).fold(0.0, f64::max)
    }

    /// A table in Markdown, and what follows from it.
    #[must_use]
    pub fn render(&self, gate: Gate) -> String {
        let mut text =
            String::from("| case | metric | base | new | change | interval | |\n|---|---|--:|--:|--:|--:|---|\n");
        let mut last = "";
        for row in &self.rows {
            let name = if row.name == last { "" } else { &row.name };
            last = &row.name;
            let verdict = match row.verdict {
                Verdict::Better => "better",
                Verdict::Worse if row.gated => "**worse**",
                Verdict::Worse => "worse, not gated",
                Verdict::Same => "",
                Verdict::TooFew => "too few values",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} [{}] | {} | {} | {:+.1} % | {:+.1} to {:+.1} % at {:.1} % | {verdict} |",
                row.metric,
                row.unit,
                short(row.base),
                short(row.new),
                row.change.by * 100.0,
                row.change.low * 100.0,
                row.change.high * 100.0,
                row.change.confidence * 100.0
            );
        }
        text.push('\n');
        for (missing, side) in [(&self.only_base, "base"), (&self.only_new, "new")] {
            for name in missing {
                let _ = writeln!(text, "only in {side}: {name}");
            }
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        let regressions = self.regressions().count();
        let (confidence, least) = (gate.confidence * 100.0, gate.least * 100.0);
        if regressions > 0 {
            let _ =
                writeln!(text, "REGRESSION: {regressions} metrics are worse by more than {least} % at {confidence} %");
        } else if let Some(why) = self.cannot_tell(gate) {
            let _ = writeln!(text, "CANNOT TELL: {why}; ask for more repeats, or for a machine that does nothing else");
        } else {
            let _ = writeln!(text, "no regression: nothing is worse by more than {least} % at {confidence} %");
            let unseen = self.unseen() * 100.0;
            let _ =
                writeln!(text, "what is worse by up to {unseen:.1} % may have stayed unseen; more repeats narrow that");
        }
        text
    }
}

/// By case, by metric: its unit, its direction, and the values in the order of runs and rounds.
type Values = Vec<(String, BTreeMap<String, (String, Better, Vec<f64>)>)>;

fn values(runs: &[Run]) -> Values {
    let mut all: Values = Vec::new();
    let cases = |record: &&Record| record.kind == Kind::Case;
    for record in runs.iter().flat_map(|run| &run.records).filter(cases) {
        let at = all.iter().position(|(name, _)| *name == record.name).unwrap_or_else(|| {
            all.push((record.name.clone(), BTreeMap::new()));
            all.len() - 1
        });
        for value in &record.figures {
            // The rate of an open loop is what was asked for.
            if value.metric == "throughput" && record.value("rate asked").is_some() {
                continue;
            }
            let (_, _, values) =
                all[at].1.entry(value.metric.clone()).or_insert_with(|| (value.unit.clone(), value.better, Vec::new()));
            values.push(value.value);
        }
    }
    all
}

fn compared(
    name: &str,
    metric: &str,
    (unit, better, one): &(String, Better, Vec<f64>),
    (_, _, other): &(String, Better, Vec<f64>),
    order: Order,
    gate: Gate,
) -> Option<Compared> {
    let logarithms = |values: &[f64]| values.iter().filter(|value| **value > 0.0).map(|value| value.ln()).collect();
    let (old, fresh): (Vec<f64>, Vec<f64>) = (logarithms(one), logarithms(other));
    let shift = match order {
        Order::InTurn if old.len() == fresh.len() => {
            let pairs: Vec<(f64, f64)> = old.into_iter().zip(fresh).collect();
            rank::paired(&pairs, gate.confidence)?
        }
        _ => rank::unpaired(&old, &fresh, gate.confidence)?,
    };
    let change = Shift {
        by: shift.by.exp_m1(),
        low: shift.low.exp_m1(),
        high: shift.high.exp_m1(),
        confidence: shift.confidence,
    };
    let counts = change.low > 0.0 || change.high < 0.0;
    let verdict = if change.confidence < gate.confidence {
        Verdict::TooFew
    } else if !counts || change.by.abs() <= gate.least || *better == Better::Neither {
        Verdict::Same
    } else if (change.by > 0.0) == (*better == Better::Higher) {
        Verdict::Better
    } else {
        Verdict::Worse
    };
    Some(Compared {
        name: name.to_owned(),
        metric: metric.to_owned(),
        gated: GATED.contains(&metric),
        base: Spread::of(one.clone(), unit, *better)?.median(),
        new: Spread::of(other.clone(), unit, *better)?.median(),
        unit: unit.clone(),
        better: *better,
        change,
        verdict,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::figure::Subject;
    use crate::machine::{Machine, Versions};
    use crate::record::{Header, Line, SCHEMA_VERSION};

    const CASES: usize = 8;

    /// A build whose cases take `slow` times as long, measured on a machine that drifts, with noise of some percent and every
    /// so many values an outlier.
    fn run(rng: &mut fastrand::Rng, drift: f64, slow: f64, outlier_every: u8) -> Run {
        let header = Header {
            schema: SCHEMA_VERSION,
            began: 0,
            machine: Machine::describe(Path::new(".")),
            versions: Versions { rustc: String::new(), replikit: String::new() },
            commit: String::new(),
            dirty: false,
            seed: 1,
            asked: String::new(),
            rounds: 1,
        };
        let mut run = Run::new(header);
        for case in 0..CASES {
            let noise = 1.0 + 0.03 * ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0);
            let outlier = if rng.u8(..outlier_every) == 0 { 1.6 } else { 1.0 };
            let time = slow * drift * noise * outlier;
            let subject = Subject::default();
            let figures = [
                subject.figure("throughput", 50_000.0 / time, "1/s", Better::Higher),
                subject.figure("processor time per request", 20.0 * slow * noise, "us", Better::Lower),
            ];
            run.add(Line::Measured(Record::of(Kind::Case, format!("case {case}"), &figures).expect("figures")));
        }
        run
    }

    fn runs(seed: u64, slow: f64, repeats: usize) -> (Vec<Run>, Vec<Run>) {
        runs_on(30, seed, slow, repeats)
    }

    fn runs_on(outlier_every: u8, seed: u64, slow: f64, repeats: usize) -> (Vec<Run>, Vec<Run>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let pairs = (0..repeats).map(|at| {
            // The machine becomes slower, and for some repeats its cores lie far from each other.
            let drift = (1.0 + 0.02 * at as f64) * if at % 5 == 3 { 1.8 } else { 1.0 };
            (run(&mut rng, drift, 1.0, outlier_every), run(&mut rng, drift, slow, outlier_every))
        });
        pairs.unzip()
    }

    #[test]
    fn a_planted_slow_down_of_a_tenth_is_caught_and_equal_builds_stay_quiet() {
        let gate = Gate::default();
        let (mut caught, mut alarms) = (0, 0);
        for seed in 0..100 {
            let (base, new) = runs(seed, 1.1, 16);
            caught += u32::from(Comparison::of(&base, &new, Order::InTurn, gate).regressions().count() > CASES / 2);
            let (base, new) = runs(1_000 + seed, 1.0, 16);
            alarms += u32::from(Comparison::of(&base, &new, Order::InTurn, gate).regressions().count() > 0);
        }
        assert_eq!((caught, alarms), (100, 0), "of 100 slower builds, and of 100 equal ones");
    }

    #[test]
    fn what_could_hide_a_slow_down_is_no_pass() {
        let gate = Gate::default();
        let (mut passed, mut hidden) = (0, 0);
        for seed in 0..100 {
            let passes = |(base, new): (Vec<Run>, Vec<Run>)| {
                let comparison = Comparison::of(&base, &new, Order::InTurn, gate);
                comparison.regressions().next().is_none() && comparison.cannot_tell(gate).is_none()
            };
            passed += u32::from(passes(runs_on(250, seed, 1.0, 16)));
            // Every third value is an outlier: too much to see anything.
            hidden += u32::from(passes(runs_on(3, seed, 1.1, 16)));
        }
        assert!(passed >= 90, "{passed} of 100 comparisons of equal builds pass on a machine that is quiet enough");
        assert_eq!(hidden, 0, "of 100 slower builds on a machine that is not");
    }

    /// The rate that `docs/benchmarks.md` states.
    #[test]
    fn equal_builds_seem_worse_as_rarely_as_the_confidence_says() {
        const METRICS: u32 = 20_000;
        let mut rng = fastrand::Rng::with_seed(4);
        let (any, gated) = (Gate { least: 0.0, ..Gate::default() }, Gate::default());
        let (mut seem, mut alarms) = (0, 0);
        for _ in 0..METRICS {
            let mut one = || {
                let values = (0..16).map(|_| 1.0 + 0.03 * ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0));
                ("us".to_owned(), Better::Lower, values.collect::<Vec<f64>>())
            };
            let (base, new) = (one(), one());
            let worse = |gate| {
                let compared = compared("", "", &base, &new, Order::InTurn, gate).expect("there are values");
                u32::from(compared.verdict == Verdict::Worse)
            };
            seem += worse(any);
            alarms += worse(gated);
        }
        let share = |count: u32| f64::from(count) / f64::from(METRICS);
        assert!(share(seem) <= (1.0 - any.confidence) / 2.0 * 1.2, "{seem} of {METRICS} seem worse");
        assert!(share(seem) >= 0.002, "{seem} of {METRICS}: a test that finds nothing to doubt is no test");
        assert!(share(alarms) <= 0.000_5, "{alarms} of {METRICS} are taken for regressions");
    }

    #[test]
    fn what_was_planted_is_told_with_the_comparison() {
        let (base, mut new) = runs(1, 1.1, 10);
        let planted = (PLANTED.to_owned(), "10 %".to_owned());
        new[0].records[0].settings.extend([planted]);
        let text = Comparison::of(&base, &new, Order::InTurn, Gate::default()).render(Gate::default());
        assert!(text.contains("warning: the second side has a planted slow-down: 10 %"), "{text}");
        assert!(!text.contains("the first side has"), "{text}");
    }

    #[test]
    fn runs_that_were_made_apart_are_compared_as_well() {
        let mut rng = fastrand::Rng::with_seed(3);
        let base: Vec<Run> = (0..8).map(|_| run(&mut rng, 1.0, 1.0, 30)).collect();
        let same: Vec<Run> = (0..8).map(|_| run(&mut rng, 1.0, 1.0, 30)).collect();
        let slow: Vec<Run> = (0..8).map(|_| run(&mut rng, 1.0, 1.25, 30)).collect();
        assert_eq!(Comparison::of(&base, &same, Order::Apart, Gate::default()).regressions().count(), 0);
        let comparison = Comparison::of(&base, &slow, Order::Apart, Gate::default());
        assert!(comparison.regressions().count() >= CASES, "{}", comparison.render(Gate::default()));
        assert!(comparison.render(Gate::default()).contains("REGRESSION"));
    }

    #[test]
    fn too_few_values_are_no_pass() {
        let (base, new) = runs(1, 1.0, 3);
        let comparison = Comparison::of(&base, &new, Order::InTurn, Gate::default());
        assert!(comparison.cannot_tell(Gate::default()).is_some_and(|why| why.contains("too few")));
        assert!(comparison.render(Gate::default()).contains("CANNOT TELL"));
        assert!(Comparison::of(&[], &[], Order::Apart, Gate::default()).cannot_tell(Gate::default()).is_some());
    }

    #[test]
    fn cases_of_one_side_only_are_named() {
        let (base, mut new) = runs(1, 1.0, 2);
        new.iter_mut().flat_map(|run| &mut run.records).for_each(|record| {
            record.name = record.name.replace("case 0", "case nought");
        });
        let comparison = Comparison::of(&base, &new, Order::InTurn, Gate::default());
        assert_eq!(
            (comparison.only_base, comparison.only_new),
            (vec!["case 0".to_owned()], vec!["case nought".to_owned()])
        );
    }
}
