//! The lines of a run, put together over its rounds: of each figure the median and the range.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::figure::Better;
use crate::record::{Curve, Kind, Mark, Record, Run};
use crate::suite::{OBJECTIVE, SWEEP_CLIENTS};

/// A sweep's rate counts as kept from this share on.
const KEPT_MIN: f64 = 0.95;

/// A figure over the rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// The values, ascending; at least one.
    values: Vec<f64>,
    /// Their unit.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
}

impl Spread {
    /// The figures of some rounds; `None` for no round.
    #[must_use]
    pub fn of(mut values: Vec<f64>, unit: &str, better: Better) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| Self { values, unit: unit.to_owned(), better })
    }

    /// The middle one, or the mean of the two in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        match self.values.len() % 2 {
            1 => self.values[middle],
            _ => f64::midpoint(self.values[middle - 1], self.values[middle]),
        }
    }

    /// The least.
    #[must_use]
    pub fn least(&self) -> f64 {
        self.values[0]
    }

    /// The most.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.values[self.values.len() - 1]
    }

    /// How many rounds.
    #[must_use]
    pub const fn rounds(&self) -> usize {
        self.values.len()
    }
}

/// One thing that was measured, over all rounds.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub kind: Kind,
    /// See [`Record::name`].
    pub name: String,
    /// See [`Record::engine`].
    pub engine: String,
    /// See [`Record::settings`].
    pub settings: BTreeMap<String, String>,
    /// See [`Record::workload`].
    pub workload: String,
    /// See [`Record::clients`].
    pub clients: u32,
    /// By metric.
    pub metrics: BTreeMap<String, Spread>,
    /// How far the cores were from each other right before and after it: one word if that did not change.
    pub cores: String,
    /// Those of the last round.
    pub curves: Vec<Curve>,
    /// Those of the last round.
    pub marks: Vec<Mark>,
    /// Those of all rounds.
    pub notes: Vec<String>,
    /// Files with more.
    pub raw: Vec<String>,
}

impl Row {
    /// The median of a metric.
    #[must_use]
    pub fn median(&self, metric: &str) -> Option<f64> {
        self.metrics.get(metric).map(Spread::median)
    }

    /// A setting, or nothing.
    #[must_use]
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Whether it is one plain machine.
    #[must_use]
    pub fn is_baseline(&self) -> bool {
        self.setting("kind") == "baseline"
    }

    /// The engine and what distinguishes it from the same engine in another row.
    #[must_use]
    pub fn subject(&self) -> String {
        match self.setting("write") {
            "" => self.engine.clone(),
            write => format!("{}, {write}", self.engine),
        }
    }

    /// Whether all requests are writes with uniform keys and values of the usual size, out of at least so many keys.
    #[must_use]
    pub fn is_plain_writes(&self) -> bool {
        self.workload.starts_with("write-only uniform 256 B") && self.setting("pace") == "closed loop"
    }

    /// The workload without its number of keys.
    #[must_use]
    pub fn workload_base(&self) -> &str {
        self.workload.split(", ").next().unwrap_or(&self.workload)
    }

    /// The number of keys.
    #[must_use]
    pub fn keys(&self) -> u32 {
        self.setting("keys").parse().unwrap_or(0)
    }

    /// A curve by its name.
    #[must_use]
    pub fn curve(&self, name: &str) -> Option<&Curve> {
        self.curves.iter().find(|curve| curve.name == name)
    }
}

/// A run, put together.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// What it was made from.
    pub run: &'a Run,
    /// In the order in which they were measured first.
    pub rows: Vec<Row>,
}

impl<'a> Summary<'a> {
    /// Puts a run together.
    #[must_use]
    pub fn of(run: &'a Run) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let mut values: Vec<BTreeMap<String, Vec<f64>>> = Vec::new();
        let mut cores: Vec<Vec<&str>> = Vec::new();
        for record in run.records.iter().filter(|record| record.kind != Kind::Probe) {
            let at = rows.iter().position(|row| row.name == record.name).unwrap_or_else(|| {
                rows.push(row(record));
                values.push(BTreeMap::new());
                cores.push(Vec::new());
                rows.len() - 1
            });
            rows[at].curves.clone_from(&record.curves);
            rows[at].marks.clone_from(&record.marks);
            for note in &record.notes {
                if !rows[at].notes.contains(note) {
                    rows[at].notes.push(note.clone());
                }
            }
            rows[at].raw.extend(record.raw.iter().cloned());
            for value in &record.figures {
                values[at].entry(value.metric.clone()).or_default().push(value.value);
            }
            cores[at].extend(modes(run, record));
        }
        for (row, (values, mut cores)) in rows.iter_mut().zip(values.into_iter().zip(cores)) {
            let first = run.records.iter().find(|record| record.name == row.name).expect("the row was made of it");
            for (metric, values) in values {
                let value = run.records.iter().filter(|record| record.name == row.name);
                let mut value = value.flat_map(|record| &record.figures).filter(|value| value.metric == metric);
                let value = value.next().expect("the metric was found in one of them");
                if let Some(spread) = Spread::of(values, &value.unit, value.better) {
                    row.metrics.insert(metric, spread);
                }
            }
            if cores.is_empty() {
                cores.extend(whole_run(run));
            }
            cores.sort_unstable();
            cores.dedup();
            row.cores = cores.join("/");
            row.kind = first.kind;
        }
        Self { run, rows }
    }

    /// The rows of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.kind == kind)
    }

    /// Whether the cores' distance changed during the run.
    #[must_use]
    pub fn cores_changed(&self) -> bool {
        let mut modes = self.run.of(Kind::Probe).map(|probe| probe.setting("cores"));
        let first = modes.next();
        modes.any(|mode| Some(mode) != first)
    }

    /// The highest rate of a load's sweep that was kept with p99 within [`OBJECTIVE`], over the rounds; `None` where there is
    /// no sweep, 0 in a round in which no rate was.
    #[must_use]
    pub fn rate_at_objective(&self, load: &str) -> Option<Spread> {
        let sweep: Vec<&Record> = self.run.of(Kind::Sweep).filter(|record| record.setting("load") == load).collect();
        let rounds: std::collections::BTreeSet<u32> = sweep.iter().map(|record| record.round).collect();
        let best = |round: u32| {
            let rates = sweep.iter().filter(|record| record.round == round).filter_map(|record| {
                let (rate, asked) = (record.value("throughput")?, record.value("rate asked")?);
                let p99 = Duration::from_nanos((record.value("write latency p99")? * 1e3) as u64);
                (rate >= KEPT_MIN * asked && p99 <= OBJECTIVE).then_some(rate)
            });
            rates.fold(0.0, f64::max)
        };
        Spread::of(rounds.into_iter().map(best).collect(), "1/s", Better::Higher)
    }

    /// One row for each engine and mode: plain writes of [`SWEEP_CLIENTS`] clients, to the most keys.
    #[must_use]
    pub fn headlines(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = Vec::new();
        for row in self.of_kind(Kind::Case).filter(|row| row.is_plain_writes() && row.clients == SWEEP_CLIENTS) {
            match rows.iter_mut().find(|known| known.subject() == row.subject()) {
                Some(known) if known.keys() < row.keys() => *known = row,
                Some(_) => {}
                None => rows.push(row),
            }
        }
        rows
    }

    /// The row of one thread with this pace and workload: synced if the other promises to survive anything.
    #[must_use]
    pub fn single_thread(&self, row: &Row) -> Option<&Row> {
        self.of_kind(Kind::Case).find(|one| {
            one.engine == "single-thread"
                && one.workload_base() == row.workload_base()
                && one.clients == row.clients
                && one.setting("pace") == row.setting("pace")
                && one.setting("disk before the acknowledgement") == row.setting("disk before the acknowledgement")
        })
    }

    /// How many cores it takes at least until the row is as fast as one thread: what its requests cost on processors, times
    /// the requests that one thread serves. Source: McSherry, Isard and Murray, HotOS'15.
    #[must_use]
    pub fn cores_to_match(&self, row: &Row) -> Option<f64> {
        let one = self.single_thread(row)?;
        Some(row.median("processor time per request")? * 1e-6 * one.median("throughput")?)
    }
}

fn row(record: &Record) -> Row {
    Row {
        kind: record.kind,
        name: record.name.clone(),
        engine: record.engine.clone(),
        settings: record.settings.clone(),
        workload: record.workload.clone(),
        clients: record.clients,
        metrics: BTreeMap::new(),
        cores: String::new(),
        curves: Vec::new(),
        marks: Vec::new(),
        notes: Vec::new(),
        raw: Vec::new(),
    }
}

/// What the probes right before and after the set of a record said.
fn modes<'a>(run: &'a Run, record: &'a Record) -> impl Iterator<Item = &'a str> {
    let probes = run.of(Kind::Probe).filter(move |probe| record.set > 0 && probe.set == record.set);
    probes.map(|probe| probe.setting("cores"))
}

fn whole_run(run: &Run) -> impl Iterator<Item = &str> {
    run.of(Kind::Probe).filter(|probe| probe.set == 0).map(|probe| probe.setting("cores"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle_of_what_was_measured() {
        let spread = |values: &[f64]| Spread::of(values.to_vec(), "1", Better::Higher);
        assert_eq!(spread(&[3.0, 1.0, 2.0]).expect("values").median(), 2.0);
        assert_eq!(spread(&[3.0, 1.0, 2.0, 10.0]).expect("values").median(), 2.5);
        let one = spread(&[f64::NAN, 4.0]).expect("one value counts");
        assert_eq!((one.least(), one.most(), one.rounds()), (4.0, 4.0, 1));
        assert!(spread(&[]).is_none());
    }
}
