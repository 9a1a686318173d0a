//! Runs a suite, or goes on with a run that was cut short; makes the report of what was measured, however it ended.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use replikit_benches::engine::{BASELINES, CLUSTERS, EngineKind};
use replikit_benches::error::BenchError;
use replikit_benches::fault::{Fault, FaultRun};
use replikit_benches::interrupt::{INTERRUPTED, interrupted};
use replikit_benches::place::{Place, runs_folder};
use replikit_benches::play::command::{network_named, workload};
use replikit_benches::report::{Summary, terminal};
use replikit_benches::run;
use replikit_benches::slow_down::SlowDown;
use replikit_benches::suite::{Asked, Suite, SuiteName};

use crate::command::report;

#[derive(Args)]
pub(crate) struct RunArguments {
    /// What to run: smoke ends within a minute, default within five; all takes half an hour; gate is for `compare`;
    /// partitioning takes three.
    #[arg(long, value_enum, default_value_t = SuiteName::Default)]
    suite: SuiteName,
    /// Only cases whose line in `bench list` contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only this engine, as `bench list` names them.
    #[arg(long, value_parser = PossibleValuesParser::new(CLUSTERS.into_iter().chain(BASELINES)))]
    engine: Option<String>,
    /// What all randomness of the run comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the results go, instead of a new folder below target/bench.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Length of each measured window, in seconds, instead of the suite's own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// How often each case is measured, all others in between, instead of the suite's own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Slows the engines down on purpose by so many percent, to see what a comparison makes of it; loads only. The results
    /// say so, and are refused for the documentation.
    #[arg(long, value_name = "PERCENT")]
    plant_slow_down: Option<SlowDown>,
    /// Goes on with a run that was cut short: the last one, or the one in this folder.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "out")]
    resume: Option<Option<PathBuf>>,
}

impl RunArguments {
    /// The part that decides what is measured.
    fn asked(&self) -> String {
        let name = clap::ValueEnum::to_possible_value(&self.suite).expect("no suite is hidden");
        let mut asked = format!("--suite {}", name.get_name());
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                asked.push_str(&format!(" --{name} {value}"));
            }
        };
        add("engine", self.engine.clone());
        add("only", self.only.as_ref().map(|only| format!("'{only}'")));
        add("seconds", self.seconds.map(|seconds| seconds.to_string()));
        add("rounds", self.rounds.map(|rounds| rounds.to_string()));
        add("plant-slow-down", self.plant_slow_down.map(|slow_down| slow_down.percent().to_string()));
        asked
    }

    /// The suite that is left of what was asked for.
    ///
    /// # Errors
    /// When nothing is left.
    fn suite(&self) -> Result<Suite, BenchError> {
        let measured = self.seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let mut suite = Suite::new(self.suite, Asked { measured, rounds: self.rounds });
        suite.keep(self.engine.as_deref(), self.only.as_deref());
        if let Some(slow_down) = self.plant_slow_down {
            suite.plant(slow_down);
        }
        if suite.is_empty() {
            return Err(BenchError::Usage("no case fits; `cargo xtask bench list` shows them".to_owned()));
        }
        Ok(suite)
    }
}

pub(crate) fn suite(arguments: &RunArguments) -> Result<ExitCode, BenchError> {
    let suite = arguments.suite()?;
    let place = match &arguments.resume {
        None => Place::create(arguments.out.clone())?,
        Some(folder) => {
            let latest =
                || runs_folder().map_err(BenchError::io("looking for the last run")).map(|all| all.join("latest"));
            Place::at(folder.clone().map_or_else(latest, Ok)?)?
        }
    };
    measure(&suite, arguments.seed, &arguments.asked(), place, arguments.resume.is_some())
}

/// What is asked of fault runs.
#[derive(clap::Args)]
pub(crate) struct FaultArguments {
    /// Only this fault; once for each.
    #[arg(long, value_enum)]
    kind: Vec<Fault>,
    /// On this engine.
    #[arg(long, default_value = "single-leader")]
    #[arg(value_parser = CLUSTERS)]
    engine: String,
    /// Between the nodes: loopback, a built-in network, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "loopback")]
    network: String,
    /// What the clients do meanwhile: a built-in workload, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "faults")]
    workload: String,
    /// What all randomness of the run comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the results go.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The runs of these faults, or of all; what cannot be run is told.
pub(crate) fn faults(arguments: &FaultArguments) -> Result<ExitCode, BenchError> {
    let mut suite = Suite::new(SuiteName::Default, Asked::default());
    suite.cases.clear();
    suite.sweeps.clear();
    suite.replications.clear();
    suite.faults.clear();
    let FaultArguments { kind, engine, network, workload: mix, seed, out } = arguments;
    let asked = format!("fault --engine {engine} --network {network} --workload {mix}");
    let (network, mix) = (network_named(network)?, workload(mix)?);
    let engine = EngineKind::named(engine).ok_or_else(|| BenchError::Usage(format!("no engine `{engine}`")))?;
    for fault in Fault::ALL.into_iter().filter(|fault| kind.is_empty() || kind.contains(fault)) {
        let run = FaultRun { network: network.clone(), mix: mix.clone(), ..FaultRun::new(engine, fault) };
        match run.cannot() {
            Some(reason) => println!("{run}: N/A: {reason}"),
            None => suite.faults.push(run),
        }
    }
    measure(&suite, *seed, &asked, Place::create(out.clone())?, false)
}

fn measure(suite: &Suite, seed: u64, asked: &str, place: Place, resumed: bool) -> Result<ExitCode, BenchError> {
    let results =
        if resumed { place.results_to_go_on(seed, asked)? } else { place.results(seed, asked, suite.rounds)? };
    println!("{}", results.run().header.line());
    let results = RefCell::new(results);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the load generator"))?;
    // Dropping the run kills its processes, so everything is cleaned up before the exit code is returned.
    let interrupted = runtime.block_on(async {
        tokio::select! {
            ended = run::run(suite, seed, &place, &results) => ended.map(|()| false),
            signalled = interrupted() => signalled.map(|()| true),
        }
    })?;
    let results = results.into_inner();
    println!("\n{}", terminal::render(&Summary::of(results.run())));
    println!("results: {}", place.folder.join("results.jsonl").display());
    println!("report:  {}", report::write_page(&place.folder, None)?.display());
    let faults = results.run().faults_found();
    for fault in &faults {
        println!("{fault}");
    }
    if interrupted {
        println!("interrupted: the figures above are those of what had ended; `--resume` goes on");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
