//! `bench play`: the same traces on every engine, side by side; what an engine cannot do stands there with its reason.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use replikit_core::Guarantees;

use super::{Judged, Play, Played, Staged, Until, stage};
use crate::engine::baseline::Architecture;
use crate::engine::{Askers, EngineKind, Partitions, Placed, Sizes, Sync};
use crate::error::BenchError;
use crate::fault::FaultRun;
use crate::figure::{Better, Figure, Subject};
use crate::network::{self, Network};
use crate::place::Place;
use crate::record::{Kind, Line, Record};
use crate::recorder::Latencies;
use crate::table::{Side, Table, count, latency};
use crate::workload::mix::{self, Mix, Updates};
use crate::workload::trace::Trace;

/// An operation that has not ended by then counts as not served; longer where messages are.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long an operation may take over a network.
pub(crate) fn deadline(network: &Network) -> Duration {
    DEADLINE.max(network.round_trip_max() * 10)
}

/// Plays workloads on every engine.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What the clients do: a built-in workload, or a TOML file; once for each. A wrong name is answered with the built-in
    /// ones.
    #[arg(long = "workload", value_name = "NAME|FILE", default_values = ["ycsb-a", "counter", "set-add"])]
    workloads: Vec<String>,
    /// A recorded trace instead, as comma-separated values; played in its own time.
    #[arg(long, value_name = "FILE", conflicts_with = "workloads")]
    trace: Option<PathBuf>,
    /// What lies between the nodes: loopback, a built-in network, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "loopback")]
    network: String,
    /// Only this engine: single-leader, multi-leader, leaderless, leaderless-cas, partitioned, partitioned-leaderless,
    /// partitioned-multi-leader or single-thread.
    #[arg(long)]
    engine: Option<String>,
    /// Operations of each workload.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    operations: u32,
    /// What all randomness of the run comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the traces there as comma-separated values, one file each, instead of playing them.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Where the results go, instead of a new folder below target/bench.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The workload of this name, or in this file.
///
/// # Errors
/// When there is neither, or the file is wrong.
pub fn workload(name: &str) -> Result<Mix, BenchError> {
    if let Some(mix) = Mix::built_in(name) {
        return Ok(mix);
    }
    if !Path::new(name).exists() {
        let known: Vec<&str> = mix::BUILT_IN.iter().map(|(known, _)| *known).collect();
        return Err(BenchError::Usage(format!("`{name}` is no file and no workload; known are {}", known.join(", "))));
    }
    Mix::read(Path::new(name)).map_err(|error| BenchError::Usage(error.to_string()))
}

/// The network of this name, or in this file.
///
/// # Errors
/// When there is neither, or the file is wrong.
pub fn network_named(name: &str) -> Result<Network, BenchError> {
    if name == "loopback" {
        return Ok(Network::loopback());
    }
    if let Some(network) = Network::built_in(name) {
        return Ok(network);
    }
    if !Path::new(name).exists() {
        let known: Vec<&str> = network::BUILT_IN.iter().map(|(known, _)| *known).collect();
        let known = known.join(", ");
        return Err(BenchError::Usage(format!("`{name}` is no file and no network; known are loopback, {known}")));
    }
    Network::read(Path::new(name)).map_err(|error| BenchError::Usage(error.to_string()))
}

/// One row.
struct Row {
    engine: EngineKind,
    workload: String,
    clients: u32,
    network: String,
    guarantees: Guarantees,
    played: Played,
    judged: Judged,
}

impl Row {
    fn per_second(&self) -> f64 {
        self.served() as f64 / self.played.elapsed.as_secs_f64().max(1e-9)
    }

    fn served(&self) -> u64 {
        self.played.latencies.values().map(Latencies::count).sum()
    }

    fn latencies(&self) -> Latencies {
        let mut all = Latencies::new();
        self.played.latencies.values().for_each(|latencies| all.merge(latencies));
        all
    }

    fn unserved(&self) -> u64 {
        self.played.failures.values().sum()
    }

    fn figures(&self) -> Vec<Figure> {
        let settings = [
            ("network", self.network.clone()),
            ("mode", self.guarantees.mode.clone()),
            ("acknowledged", self.guarantees.acknowledged.clone()),
            ("survives", self.guarantees.survives.to_string()),
            ("read guarantee", self.guarantees.reads.to_string()),
            ("checked as", self.judged.checked_as.to_owned()),
        ];
        let subject = Subject {
            engine: self.engine.name().to_owned(),
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            workload: self.workload.clone(),
            clients: self.clients,
        };
        let mut figures = vec![
            subject.figure("throughput", self.per_second(), "1/s", Better::Higher),
            subject.figure("operations not served", self.unserved() as f64, "1", Better::Lower),
            subject.figure("retries", self.played.retries as f64, "1", Better::Lower),
            subject.figure("lost updates, audited", self.judged.lost_audited as f64, "1", Better::Lower),
            subject.figure("lost updates, silent", self.judged.silent() as f64, "1", Better::Lower),
            subject.figure("operations checked", self.judged.checked as f64, "1", Better::Higher),
            subject.figure("wrong results", f64::from(u8::from(self.wrong().is_some())), "1", Better::Lower),
        ];
        if let Some(conflicts) = self.judged.conflicts {
            let per_million = conflicts as f64 * 1e6 / self.served().max(1) as f64;
            figures.push(subject.figure("conflicts per 10^6 operations", per_million, "1", Better::Lower));
        }
        for (operation, latencies) in &self.played.latencies {
            for (shown, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                let micros = latencies.quantile(share).as_nanos() as f64 / 1e3;
                figures.push(subject.figure(&format!("{operation} latency {shown}"), micros, "us", Better::Lower));
            }
        }
        figures
    }

    fn record(&self) -> Record {
        let name = format!("{}, {}, {}: {}", self.engine, self.guarantees.mode, self.network, self.workload);
        let mut record = Record::of(Kind::Case, name, &self.figures()).expect("there are figures");
        record.wrong.extend(self.wrong());
        record
    }

    /// What must not be: a promise broken. Updates that clients lost to each other are none: nobody promised that they would
    /// not, and they are counted.
    fn wrong(&self) -> Option<String> {
        let records = &self.judged.records;
        if records.lost + records.foreign > 0 {
            return Some(format!("{} acked records lost, {} foreign", records.lost, records.foreign));
        }
        self.judged.broken.clone()
    }

    fn add_to(&self, table: &mut Table) {
        let all = self.latencies();
        table.row(
            &format!("{}, {}", self.workload, self.network),
            vec![
                self.engine.name().to_owned(),
                format!("{}; reads {}", self.guarantees.mode, self.guarantees.reads),
                count(self.per_second()),
                latency(all.quantile(0.5)),
                latency(all.quantile(0.99)),
                count(self.unserved() as f64),
                self.judged.conflicts.map_or_else(|| "-".to_owned(), |conflicts| count(conflicts as f64)),
                format!("{}/{}", self.judged.lost_audited, self.judged.silent()),
                self.judged.checked.to_string(),
            ],
        );
    }
}

/// The engines that traces are played on.
const ENGINES: [EngineKind; 9] = [
    EngineKind::SingleLeader,
    EngineKind::MultiLeader,
    EngineKind::Leaderless(Sizes::Majorities),
    EngineKind::Leaderless(Sizes::One),
    EngineKind::LeaderlessCas(Askers::All),
    EngineKind::Partitioned(Partitions::Sixteen),
    EngineKind::Placed(Placed::Leaderless, Partitions::Sixteen),
    EngineKind::Placed(Placed::MultiLeader, Partitions::Sixteen),
    EngineKind::Baseline(Architecture::SingleThread, Sync::Group),
];

/// Runs the task.
///
/// # Errors
/// When an argument means nothing, or the machine refuses.
pub fn run(arguments: &Arguments) -> Result<ExitCode, BenchError> {
    let network = network_named(&arguments.network)?;
    let mut plays: Vec<(String, Rc<Trace>, Updates)> = Vec::new();
    match &arguments.trace {
        Some(file) => {
            let trace = Trace::read(file).map_err(|error| BenchError::Usage(error.to_string()))?;
            plays.push((file.display().to_string(), Rc::new(trace), Updates::Put));
        }
        None => {
            for name in &arguments.workloads {
                let mix = workload(name)?;
                let trace = Trace::draw(&mix, arguments.seed, arguments.operations as usize);
                plays.push((mix.name, Rc::new(trace), mix.updates));
            }
        }
    }
    if let Some(folder) = &arguments.record {
        std::fs::create_dir_all(folder).map_err(BenchError::io("creating the folder of traces"))?;
        for (number, (name, trace, _)) in plays.iter().enumerate() {
            let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let file = folder.join(format!("{number}-{plain}.csv"));
            std::fs::write(&file, trace.csv()).map_err(BenchError::io(format!("writing {}", file.display())))?;
            println!("{}", file.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let place = Place::create(arguments.out.clone())?;
    let mut results = place.results(arguments.seed, "play", 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the clients"))?;
    let mut table = Table::new(vec![
        ("engine", Side::Left),
        ("mode", Side::Left),
        ("ops/s", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("not served", Side::Right),
        ("conflicts", Side::Right),
        ("lost: audited/silent", Side::Right),
        ("checked", Side::Right),
    ]);
    let (mut notes, mut wrong) = (Vec::new(), Vec::new());
    for (name, trace, updates) in &plays {
        for engine in ENGINES {
            if arguments.engine.as_ref().is_some_and(|wanted| wanted != engine.name()) {
                continue;
            }
            let cannot = trace.operations().into_iter().find_map(|operation| engine.cannot(operation, *updates));
            if let Some(reason) = cannot {
                notes.push(format!("{name}: {engine}: N/A: {reason}"));
                continue;
            }
            if matches!(engine, EngineKind::Baseline(..)) && network.round_trip_max() > Duration::ZERO {
                notes.push(format!("{name}: {engine}: N/A: one process has no network between nodes"));
                continue;
            }
            let folder = place.data.path().join("play");
            let row = runtime.block_on(one(engine, name, trace, *updates, &network, &folder));
            match row {
                Ok(row) => {
                    eprintln!("  {name}: {engine}: {} ops/s", count(row.per_second()));
                    results.write(Line::Measured(row.record())).map_err(BenchError::io("writing the results"))?;
                    row.add_to(&mut table);
                    for (why, count) in &row.played.failures {
                        notes.push(format!("{name}: {engine}: not served, {count} times: {why}"));
                    }
                    wrong.extend(row.wrong().map(|what| format!("WRONG RESULT: {name}: {engine}: {what}")));
                }
                Err(error) => wrong.push(format!("NOT MEASURED: {name}: {engine}: {error}")),
            }
            // What is left of it would be found by the next engine.
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
    println!("\n{}", table.render());
    for line in notes.iter().chain(&wrong) {
        println!("{line}");
    }
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn one(
    engine_kind: EngineKind,
    name: &str,
    trace: &Rc<Trace>,
    updates: Updates,
    network: &Network,
    folder: &Path,
) -> Result<Row, BenchError> {
    // Its strongest levels, as for faults.
    let FaultRun { write_level, reads, .. } = FaultRun::new(engine_kind, crate::fault::Fault::None);
    let until = match network.offline {
        None => Until::TheEnd,
        Some(offline) => Until::Elapsed(offline.from + offline.lasts * 2),
    };
    let play = Play {
        trace: trace.clone(),
        updates,
        write_level,
        reads,
        until,
        think: Duration::ZERO,
        deadline: deadline(network),
    };
    let Staged { guarantees, played, judged } = stage(engine_kind, &play, network, folder).await?;
    let (workload, network) = (name.to_owned(), network.to_string());
    Ok(Row { engine: engine_kind, workload, clients: trace.clients(), network, guarantees, played, judged })
}
