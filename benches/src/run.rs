//! Runs a suite: in each round all engines one after the other, each on a new data folder; everything that was measured is
//! judged and written to the results as soon as it has ended. What the results have already is not measured again.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::case::{CaseReport, Conflicts, survival};
use crate::engine::{Counted, Engine, EngineKind};
use crate::error::BenchError;
use crate::fault::{self, FaultReport};
use crate::ledger::Ledger;
use crate::load::{self, Pace};
use crate::place::Place;
use crate::probe::{self, Effort, Probes};
use crate::progress::Progress;
use crate::record::{Curve, EngineLine, Failed, Kind, Line, Mark, Record, Remark, Results};
use crate::replication::ReplicationReport;
use crate::slow_down::{PLANTED, SlowDown};
use crate::suite::{Case, SWEEP_SHARES, Suite};
use crate::timeline::BUCKET;
use crate::usage::Usage;
use crate::verify::{verify_at, verify_each};

/// Time of each probe between sets of cases.
const DISTANCE: Duration = Duration::from_millis(40);

/// A run under way.
struct Running<'a> {
    suite: &'a Suite,
    place: &'a Place,
    seed: u64,
    results: &'a RefCell<Results>,
    progress: Progress,
    /// Number of the current set of cases.
    set: u32,
}

/// Runs everything that the results do not have yet. Must run on a current-thread runtime; may be dropped at any time.
///
/// # Errors
/// When the machine refuses; engines that fail are noted in the results, and the others go on.
pub async fn run(suite: &Suite, seed: u64, place: &Place, results: &RefCell<Results>) -> Result<(), BenchError> {
    let progress = Progress::new(suite.steps(), suite.estimate());
    let set = results.borrow().run().records.iter().map(|record| record.set).max().unwrap_or(0);
    let mut running = Running { suite, place, seed, results, progress, set };
    running.probe("before")?;
    for round in 1..=suite.rounds {
        for cases in suite.cases.chunk_by(|one, next| one.engine == next.engine) {
            running.set_of_cases(cases, round).await?;
        }
    }
    running.replications().await?;
    running.partitioning().await?;
    running.faults().await?;
    running.progress.finish();
    running.probe("after")
}

impl Running<'_> {
    fn write(&self, line: Line) -> Result<(), BenchError> {
        self.results.borrow_mut().write(line).map_err(BenchError::io("writing the results"))
    }

    fn failed(&mut self, what: impl ToString, error: &BenchError) -> Result<(), BenchError> {
        self.progress.end(&format!("failed: {error}"));
        self.write(Line::Failed(Failed { what: what.to_string(), why: error.to_string() }))
    }

    fn has(&self, name: &str, round: u32) -> bool {
        self.results.borrow().run().has(name, round)
    }

    /// All probes of the machine.
    fn probe(&self, when: &str) -> Result<(), BenchError> {
        let effort = Effort { per_probe: self.suite.probe };
        let probes = Probes::take(self.place.data.path(), effort).map_err(BenchError::io("probing the machine"))?;
        eprintln!("probes {when}: {}", probes.line());
        let name = format!("the machine, {when} the run");
        let record = Record::of(Kind::Probe, name, &probes.figures(when)).expect("probes have figures");
        self.write(Line::Measured(record))
    }

    /// How far the cores are from each other now.
    fn distance(&self, when: &str) -> Result<(), BenchError> {
        let figures = probe::distance_figures(probe::distance(DISTANCE), when);
        let name = format!("the cores, {when} set {}", self.set);
        let mut record = Record::of(Kind::Probe, name, &figures).expect("there is a figure");
        record.set = self.set;
        self.write(Line::Measured(record))
    }

    /// All cases and sweeps of one engine in one round, on one deployment.
    async fn set_of_cases(&mut self, cases: &[Case], round: u32) -> Result<(), BenchError> {
        let suite = self.suite;
        let swept: Vec<&Case> = suite.sweeps.iter().filter(|sweep| sweep.engine == cases[0].engine).collect();
        let names = cases.iter().map(Case::to_string);
        let sweep_names = swept.iter().flat_map(|sweep| SWEEP_SHARES.map(|share| sweep.sweep_name(share)));
        if names.chain(sweep_names).all(|name| self.has(&name, round)) {
            cases.iter().for_each(|case| self.progress.skip(case.estimate()));
            let rates = swept.iter().flat_map(|sweep| [sweep.estimate(); SWEEP_SHARES.len()]);
            rates.for_each(|estimate| self.progress.skip(estimate));
            return Ok(());
        }
        self.set += 1;
        self.distance("before")?;
        let folder = self.place.data.path().join(format!("set-{}", self.set));
        if let Err(error) = self.deployment(cases, &swept, round, &folder).await {
            self.failed(cases[0].engine, &error)?;
        }
        remove(&folder)?;
        self.distance("after")
    }

    async fn deployment(
        &mut self,
        cases: &[Case],
        swept: &[&Case],
        round: u32,
        folder: &Path,
    ) -> Result<(), BenchError> {
        let kind: EngineKind = cases[0].engine;
        // Only reads need keys that are there.
        let loaded = cases.iter().filter(|case| case.workload.reads_percent > 0).map(|case| case.workload.keys);
        let keys = cases.iter().map(|case| case.workload.keys).max().unwrap_or(1);
        let value_bytes = cases.iter().map(|case| case.workload.value_bytes).max().unwrap_or(0);
        let ledger = Rc::new(Ledger::new(keys, value_bytes));
        let mut engine = kind.start(folder).await?;
        let heading = format!("{}, {}", kind, cases[0].mode());
        let mut configuration = engine.configuration();
        configuration.extend(self.suite.slow_down.map(|slow_down| (PLANTED.to_owned(), slow_down.to_string())));
        self.write(Line::Engine(EngineLine { engine: heading, configuration }))?;
        let target = engine.target(cases[0].write_level, cases[0].reads);
        load::preload(&ledger, &target, loaded.max().unwrap_or(0), cases[0].workload.value_bytes).await?;
        let mut reached: Vec<(Case, f64)> = Vec::new();
        for case in cases {
            if let Some(throughput) = self.throughput(&case.to_string(), round) {
                self.progress.skip(case.estimate());
                reached.push((*case, throughput));
                continue;
            }
            let report = self.case(&mut *engine, case, None, round, &ledger).await?;
            reached.push((*case, report.measured.throughput()));
        }
        for sweep in swept {
            let closed = reached.iter().find(|(case, _)| sweep.is_swept_behind(case));
            let (_, throughput) = *closed.expect("a sweep is kept with its closed loop only");
            for share in SWEEP_SHARES {
                if self.has(&sweep.sweep_name(share), round) {
                    self.progress.skip(sweep.estimate());
                    continue;
                }
                let rate = (throughput * f64::from(share) / 100.0).max(1.0) as u32;
                let case = Case { pace: Pace::Open { rate }, ..**sweep };
                self.case(&mut *engine, &case, Some(share), round, &ledger).await?;
            }
        }
        let told = engine.remarks().await?;
        if !told.is_empty() {
            self.write(Line::Remark(Remark { engine: format!("{}, {}", kind, cases[0].mode()), round, told }))?;
        }
        engine.stop().await
    }

    fn throughput(&self, name: &str, round: u32) -> Option<f64> {
        let results = self.results.borrow();
        let record = results.run().records.iter().find(|record| record.name == name && record.round == round);
        record.and_then(|record| record.value("throughput"))
    }

    async fn case(
        &mut self,
        engine: &mut dyn Engine,
        case: &Case,
        share: Option<u32>,
        round: u32,
        ledger: &Rc<Ledger>,
    ) -> Result<CaseReport, BenchError> {
        let name = share.map_or_else(|| case.to_string(), |share| case.sweep_name(share));
        self.progress.begin(&format!("round {round}: {name}"), case.estimate());
        let seed = self.seed + u64::from(round) - 1;
        let report = measure(engine, case, share, seed, ledger, self.suite.slow_down).await?;
        self.progress.end(&report.line());
        let mut record = report.record();
        (record.round, record.set) = (round, self.set);
        if let Some(slow_down) = self.suite.slow_down {
            record.settings.insert(PLANTED.to_owned(), slow_down.to_string());
            record.notes.push(format!("{name}: {PLANTED}: {slow_down}"));
        }
        for (what, latencies) in [("writes", &report.measured.writes), ("reads", &report.measured.reads)] {
            if latencies.count() > 0 {
                let name = format!("{name} {what} round {round}");
                let written = self.results.borrow_mut().write_histogram(&name, latencies);
                record.raw.push(written.map_err(BenchError::io("writing a histogram"))?);
            }
        }
        self.write(Line::Measured(record))?;
        Ok(report)
    }

    async fn replications(&mut self) -> Result<(), BenchError> {
        for replication in &self.suite.replications {
            let name = replication.to_string();
            if self.has(&name, 1) {
                self.progress.skip(replication.estimate());
                continue;
            }
            let folder = self.place.data.path().join("replication");
            self.progress.begin(&name, replication.estimate());
            match crate::replication::run(*replication, self.seed, &folder).await {
                Ok(report) => {
                    self.progress.end(&report.line());
                    self.write(Line::Measured(replication_record(&name, &report)))?;
                }
                Err(error) => self.failed(&name, &error)?,
            }
            remove(&folder)?;
        }
        Ok(())
    }

    async fn partitioning(&mut self) -> Result<(), BenchError> {
        for run in &self.suite.partitioning {
            let name = run.to_string();
            if self.has(&name, 1) {
                self.progress.skip(run.estimate());
                continue;
            }
            let folder = self.place.data.path().join("partitioning");
            self.progress.begin(&name, run.estimate());
            match crate::partitioning::run(*run, self.seed, &folder).await {
                Ok(found) => {
                    self.progress.end(&found.line);
                    self.write(Line::Measured(found.record(&name)))?;
                }
                Err(error) => self.failed(&name, &error)?,
            }
            remove(&folder)?;
        }
        Ok(())
    }

    async fn faults(&mut self) -> Result<(), BenchError> {
        for fault in &self.suite.faults {
            let name = fault.to_string();
            if self.has(&name, 1) {
                self.progress.skip(fault.estimate());
                continue;
            }
            let folder = self.place.data.path().join("fault");
            self.progress.begin(&name, fault.estimate());
            match fault::run(fault, self.seed, &folder).await {
                Ok(report) => {
                    self.progress.end(&format!(
                        "longest gap {:.0} ms, {} acked writes lost",
                        report.gap.length.as_secs_f64() * 1e3,
                        report.judged.silent()
                    ));
                    self.write(Line::Measured(fault_record(&name, &report)))?;
                }
                Err(error) => self.failed(&name, &error)?,
            }
            remove(&folder)?;
        }
        Ok(())
    }
}

fn replication_record(name: &str, report: &ReplicationReport) -> Record {
    let mut record = Record::of(Kind::Replication, name, &report.figures()).expect("there are figures");
    if report.lag.count() > 0 {
        record.curves.push(survival("replication lag", &report.lag));
    }
    record.wrong = report.wrong();
    record
}

fn fault_record(name: &str, report: &FaultReport) -> Record {
    let mut record = Record::of(Kind::Fault, name, &report.figures()).expect("there are figures");
    let per_second = 1.0 / BUCKET.as_secs_f64();
    let counts = report.timeline.counts().iter().enumerate();
    record.curves.push(Curve {
        name: "acked writes".to_owned(),
        x_unit: "s".to_owned(),
        y_unit: "1/s".to_owned(),
        points: counts.map(|(at, count)| (at as f64 * BUCKET.as_secs_f64(), f64::from(*count) * per_second)).collect(),
    });
    let marks = report.timeline.marks().iter();
    record.marks = marks.map(|(at, what)| Mark { at: at.as_secs_f64(), what: what.clone() }).collect();
    record.wrong = report.wrong();
    record.notes = report.unserved.iter().map(|(why, count)| format!("not served, {count} times: {why}")).collect();
    record
}

fn remove(folder: &Path) -> Result<(), BenchError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BenchError::io(format!("removing {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}

async fn measure(
    engine: &mut dyn Engine,
    case: &Case,
    share: Option<u32>,
    seed: u64,
    ledger: &Rc<Ledger>,
    slow_down: Option<SlowDown>,
) -> Result<CaseReport, BenchError> {
    let target = engine.target(case.write_level, case.reads);
    let processes = engine.processes();
    let (before, used_before) = (engine.counted().await?, Usage::of(&processes));
    let planted = slow_down.map(|slow_down| slow_down.plant(&processes));
    let measured = load::run(ledger.clone(), target.clone(), case.workload, case.pace, case.window, seed).await;
    drop(planted);
    let (used, after) = (Usage::of(&processes), engine.counted().await?);
    engine.check()?;
    engine.settle().await?;
    let mut verified = match engine.scan_level() {
        Some(level) => verify_at(ledger, &*target.leader[0], level).await?,
        None => verify_each(ledger, &*target.leader[0]).await?,
    };
    let lost_keys = verified.lost_keys.clone();
    let conflicts = engine.audited().await?.map(|audited| Conflicts {
        overwritten: audited.conflicts.len() as u64 + audited.dropped,
        lost_audited: verified.excuse(ledger, &audited.conflicts),
    });
    for key in lost_keys {
        ledger.forgive(key);
    }
    let usage = Usage {
        cpu: used.cpu.saturating_sub(used_before.cpu),
        disk_bytes: used.disk_bytes.saturating_sub(used_before.disk_bytes),
        memory_bytes: used.memory_bytes,
    };
    Ok(CaseReport {
        case: *case,
        share,
        guarantees: engine.guarantees(case.write_level),
        measured,
        counted: after.iter().zip(&before).map(|(after, before)| since(after, before)).collect(),
        usage,
        verified,
        conflicts,
    })
}

/// A node that was restarted meanwhile counts from 0; there is none in a case without faults.
fn since(after: &Counted, before: &Counted) -> Counted {
    let less = |after: Option<u64>, before: Option<u64>| Some(after?.saturating_sub(before?));
    Counted {
        fsyncs: after.fsyncs.saturating_sub(before.fsyncs),
        bytes_sent: less(after.bytes_sent, before.bytes_sent),
        disk_bytes: less(after.disk_bytes, before.disk_bytes),
        messages_sent: less(after.messages_sent, before.messages_sent),
    }
}
