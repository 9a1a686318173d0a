//! Runs a suite: engines one after the other, each on a new data folder, each case judged and written to the results as soon
//! as it has ended.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::child::Scratch;
use crate::engine::{Engine, EngineKind};
use crate::error::BenchError;
use crate::fault::{self, FaultReport};
use crate::figure::{Better, Figure, Header, Results, SCHEMA_VERSION, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Pace};
use crate::machine::{self, Machine, Versions};
use crate::probe::{Effort, Probes};
use crate::progress::Progress;
use crate::replication::ReplicationReport;
use crate::report::{self, CaseReport, Conflicts};
use crate::suite::{Case, Suite};
use crate::verify::{Verified, verify_at, verify_each};

/// What was found so far; shown also when the run is cut short.
#[derive(Debug, Default)]
pub struct Found {
    /// Cases that have ended.
    pub cases: Vec<CaseReport>,
    /// Fault runs that have ended.
    pub faults: Vec<FaultReport>,
    /// Runs of writers that get in each other's way that have ended.
    pub replications: Vec<ReplicationReport>,
    /// Probes of the machine: before, after.
    pub probes: Vec<Probes>,
    /// What the nodes of deployments that have ended had counted.
    pub counted: Vec<String>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// Where a run keeps its files.
#[derive(Debug)]
pub struct Place {
    /// Results; kept.
    pub folder: PathBuf,
    /// Data of the engines; removed when the run ends.
    pub data: Scratch,
}

impl Place {
    /// `out`, or a new folder below the build folder, which `latest` then names.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(out: Option<PathBuf>) -> Result<Self, BenchError> {
        let failed = || BenchError::io("creating the results folder");
        let folder = match out {
            Some(folder) => folder,
            None => {
                let all = build_folder().map_err(failed())?.join("bench");
                let name = format!("{}-{}", unix_seconds(), std::process::id());
                let folder = all.join(&name);
                std::fs::create_dir_all(&folder).map_err(failed())?;
                let latest = all.join("latest");
                // The link may not exist yet; if it cannot be replaced, making it fails and says why.
                let _ = std::fs::remove_file(&latest);
                std::os::unix::fs::symlink(&name, latest).map_err(failed())?;
                folder
            }
        };
        let data = Scratch::create(folder.join("data")).map_err(failed())?;
        Ok(Self { folder, data })
    }

    /// Opens the results file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn results(&self, seed: u64) -> Result<(Header, Results), BenchError> {
        let (commit, dirty) = machine::commit();
        let header = Header {
            schema: SCHEMA_VERSION,
            began: unix_seconds(),
            machine: Machine::describe(self.data.path()),
            versions: Versions::describe(),
            commit,
            dirty,
            seed,
        };
        let results = Results::create(&self.folder, &header).map_err(BenchError::io("creating the results file"))?;
        Ok((header, results))
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The folder that cargo builds into: this program lies in its `release` or `debug` folder.
fn build_folder() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).unwrap_or(Path::new("target")).to_owned())
}

/// Runs everything. What is found goes to `found` at once. Must run on a current-thread runtime.
///
/// # Errors
/// When the machine refuses; engines that fail are noted in `found`, and the others go on.
pub async fn run(
    suite: &Suite,
    seed: u64,
    place: &Place,
    results: &mut Results,
    found: &RefCell<Found>,
) -> Result<(), BenchError> {
    probe(suite, place, results, found, "before")?;
    let mut progress =
        Progress::new(suite.cases.len() + suite.replications.len() + suite.faults.len(), suite.estimate());
    for (at, cases) in suite.cases.chunk_by(|one, next| one.engine == next.engine).enumerate() {
        let folder = place.data.path().join(format!("engine-{at}"));
        if let Err(error) = deployment(cases, seed, &folder, results, &mut progress, found).await {
            progress.end(&format!("failed: {error}"));
            found.borrow_mut().failures.push(format!("{}: {error}", cases[0].engine));
        }
        remove(&folder)?;
    }
    for replication in &suite.replications {
        let folder = place.data.path().join("replication");
        progress.begin(&replication.to_string(), replication.estimate());
        match crate::replication::run(*replication, seed, &folder).await {
            Ok(report) => {
                progress.end(&report.line());
                write(results, &report.figures())?;
                found.borrow_mut().replications.push(report);
            }
            Err(error) => {
                progress.end(&format!("failed: {error}"));
                found.borrow_mut().failures.push(format!("{replication}: {error}"));
            }
        }
        remove(&folder)?;
    }
    for fault in &suite.faults {
        let folder = place.data.path().join(format!("{fault:?}"));
        progress.begin(&fault.to_string(), fault.estimate());
        match fault::run(*fault, &folder).await {
            Ok(report) => {
                progress.end(&format!(
                    "longest gap {:.0} ms, {} acked writes lost",
                    report.gap.length.as_secs_f64() * 1e3,
                    report.verified.lost
                ));
                write(results, &report.figures())?;
                let path = place.folder.join(format!("timeline-{fault:?}.csv").to_lowercase());
                std::fs::write(path, report.csv()).map_err(BenchError::io("writing the time line"))?;
                found.borrow_mut().faults.push(report);
            }
            Err(error) => {
                progress.end(&format!("failed: {error}"));
                found.borrow_mut().failures.push(format!("{fault}: {error}"));
            }
        }
        remove(&folder)?;
    }
    progress.finish();
    probe(suite, place, results, found, "after")?;
    write(results, &ratio(&found.borrow()).into_iter().collect::<Vec<_>>())
}

fn remove(folder: &Path) -> Result<(), BenchError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BenchError::io(format!("removing {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}

fn probe(
    suite: &Suite,
    place: &Place,
    results: &mut Results,
    found: &RefCell<Found>,
    when: &str,
) -> Result<(), BenchError> {
    let effort = Effort { per_probe: suite.probe };
    let probes = Probes::take(place.data.path(), effort).map_err(BenchError::io("probing the machine"))?;
    write(results, &probes.figures(when))?;
    println!("probes {when}: {}", probes.line());
    found.borrow_mut().probes.push(probes);
    Ok(())
}

fn write(results: &mut Results, figures: &[Figure]) -> Result<(), BenchError> {
    figures.iter().try_for_each(|figure| results.write(figure)).map_err(BenchError::io("writing the results"))
}

/// All cases of one engine on one deployment.
async fn deployment(
    cases: &[Case],
    seed: u64,
    folder: &Path,
    results: &mut Results,
    progress: &mut Progress,
    found: &RefCell<Found>,
) -> Result<(), BenchError> {
    let kind: EngineKind = cases[0].engine;
    let keys = cases.iter().map(|case| case.workload.keys).max().unwrap_or(1);
    let value_bytes = cases.iter().map(|case| case.workload.value_bytes).max().unwrap_or(0);
    let mut engine = None;
    let ledger = Rc::new(Ledger::new(keys, value_bytes));
    for case in cases {
        progress.begin(&case.to_string(), case.estimate());
        let engine = match &mut engine {
            Some(engine) => engine,
            None => {
                let started = kind.start(folder).await?;
                let target = started.target(case.write_level, case.reads);
                load::preload(&ledger, &target, keys, case.workload.value_bytes).await?;
                engine.insert(started)
            }
        };
        let report = measure(&mut **engine, case, seed, &ledger).await?;
        progress.end(&report.line());
        write(results, &report.figures())?;
        for (what, latencies) in [("writes", &report.measured.writes), ("reads", &report.measured.reads)] {
            if latencies.count() > 0 {
                let name = format!("{case} {what}");
                results.write_histogram(&name, latencies).map_err(BenchError::io("writing a histogram"))?;
            }
        }
        found.borrow_mut().cases.push(report);
    }
    let Some(engine) = engine else { return Ok(()) };
    for counted in engine.counted().await? {
        found.borrow_mut().counted.push(format!("{kind}: {counted}"));
    }
    engine.stop().await
}

async fn measure(
    engine: &mut dyn Engine,
    case: &Case,
    seed: u64,
    ledger: &Rc<Ledger>,
) -> Result<CaseReport, BenchError> {
    let target = engine.target(case.write_level, case.reads);
    let before = engine.fsyncs().await?;
    let measured = load::run(ledger.clone(), target.clone(), case.workload, case.pace, case.window, seed).await;
    let after = engine.fsyncs().await?;
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
    // A node that was restarted meanwhile counts from 0; there is none in a case without faults.
    let fsyncs = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect();
    Ok(CaseReport {
        case: *case,
        guarantees: engine.guarantees(case.write_level),
        measured,
        fsyncs,
        verified,
        conflicts,
    })
}

/// The latency of one client's quorum write over what the machine's disk and network take for it at least.
fn ratio(found: &Found) -> Option<Figure> {
    let (case, ratio) = latency_ratio(found)?;
    let subject = Subject {
        engine: case.engine.name().to_owned(),
        workload: case.workload.to_string(),
        clients: 1,
        ..Subject::default()
    };
    let metric = "p50 of one client / (fdatasync p50 with 3 writers + 2 loopback round trips)";
    Some(subject.figure(metric, ratio, "1", Better::Lower))
}

fn latency_ratio(found: &Found) -> Option<(Case, f64)> {
    let one = found.cases.iter().find(|report| {
        report.case.engine == EngineKind::SingleLeader
            && report.case.write_level == replikit_core::WriteLevel::Quorum
            && report.case.pace == Pace::Closed { clients: 1 }
            && report.case.workload.reads_percent == 0
    })?;
    let floors: Vec<Duration> = found.probes.iter().map(Probes::write_floor).collect();
    let floor = floors.iter().sum::<Duration>() / u32::try_from(floors.len()).ok().filter(|count| *count > 0)?;
    Some((one.case, one.measured.writes.quantile(0.5).as_secs_f64() / floor.as_secs_f64()))
}

/// The latency of one client's write to the local disk of a multi-leader node over that of the one-process baseline.
fn local_ratio(found: &Found) -> Option<(String, f64)> {
    use crate::engine::Sync;
    let one = |engine, level| {
        let fits = |report: &&CaseReport| {
            let Case { engine: of, write_level, pace, workload, .. } = report.case;
            (of, write_level, pace) == (engine, level, Pace::Closed { clients: 1 }) && workload.reads_percent == 0
        };
        found.cases.iter().find(fits).map(|report| report.measured.writes.quantile(0.5).as_secs_f64())
    };
    let level = replikit_core::WriteLevel::LeaderDisk;
    let ratio = one(EngineKind::MultiLeader, level)? / one(EngineKind::SingleThread(Sync::Group), level)?;
    Some((format!("{level:?}"), ratio))
}

/// The replication lag over what the machine's network and disks take for it at least: one way, and two fsyncs.
fn lag_ratios(found: &Found) -> Vec<(String, f64)> {
    let floors: Vec<Duration> = found
        .probes
        .iter()
        .map(|probes| probes.loopback.quantile(0.5) / 2 + 2 * probes.sync_three.quantile(0.5))
        .collect();
    let Some(count) = u32::try_from(floors.len()).ok().filter(|count| *count > 0) else { return Vec::new() };
    let floor = floors.iter().sum::<Duration>() / count;
    let measured = found.replications.iter().filter(|report| report.lag.count() > 0);
    measured
        .map(|report| {
            (format!("{:?}", report.replication.level), report.lag.quantile(0.99).as_secs_f64() / floor.as_secs_f64())
        })
        .collect()
}

impl Found {
    /// Everything that was found, for people.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.cases.is_empty() {
            text.push_str(&report::table(&self.cases));
        }
        for note in self.cases.iter().flat_map(CaseReport::notes) {
            text.push_str(&format!("note: {note}\n"));
        }
        for counted in &self.counted {
            text.push_str(&format!("note: {counted}\n"));
        }
        if !self.replications.is_empty() {
            text.push('\n');
            text.push_str(&crate::replication::table(&self.replications));
        }
        for fault in &self.faults {
            text.push('\n');
            text.push_str(&fault.render());
        }
        for (level, ratio) in lag_ratios(self) {
            text.push_str(&format!(
                "\nreplication lag at half load, {level}: p99 is {ratio:.2} x (half a loopback round trip + 2 fdatasync p50 with 3 writers)\n"
            ));
        }
        if let Some((level, ratio)) = local_ratio(self) {
            text.push_str(&format!(
                "\none client, multi-leader, {level}: p50 is {ratio:.2} x that of single-thread with fdatasync\n"
            ));
        }
        if let Some((_, ratio)) = latency_ratio(self) {
            text.push_str(&format!(
                "\none client, Quorum: p50 is {ratio:.2} x (fdatasync p50 with 3 writers + 2 loopback round trips)\n"
            ));
        }
        let modes: Vec<_> = self.probes.iter().map(Probes::mode).collect();
        if modes.windows(2).any(|pair| pair[0] != pair[1]) {
            text.push_str("the cores' distance changed during the run: do not compare its figures with each other\n");
        }
        text
    }

    /// Wrong results and failures, in words: none in a good run.
    #[must_use]
    pub fn faults_found(&self) -> Vec<String> {
        let cases = self.cases.iter().flat_map(CaseReport::wrong);
        let faults = self.faults.iter().filter(|report| report.is_wrong()).map(|report| {
            let Verified { lost, foreign, .. } = &report.verified;
            format!("{}: {lost} acked writes lost, {foreign} foreign values", report.fault)
        });
        let replications = self.replications.iter().flat_map(ReplicationReport::wrong);
        let wrong = cases.chain(replications).chain(faults).map(|what| format!("WRONG RESULT: {what}"));
        wrong.chain(self.failures.iter().map(|what| format!("NOT MEASURED: {what}"))).collect()
    }
}
