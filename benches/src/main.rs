//! The bench program; `cargo xtask bench` builds it, builds the node program beside it, and hands its arguments on.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use replikit_benches::allocations::Counted;
use replikit_benches::disk_log::{self, Appends};
use replikit_benches::engine::{Sync, single_thread};
use replikit_benches::error::BenchError;
use replikit_benches::fault::Fault;
use replikit_benches::figure::Header;
use replikit_benches::handle;
use replikit_benches::protocol;
use replikit_benches::run::{self, Found, Place};
use replikit_benches::suite::{Suite, SuiteName};
use replikit_benches::table::{Side, Table, count, latency};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Measures replication strategies side by side: real processes, real TCP, real fsync, on this machine. Results go to
/// target/bench/RUN/results.jsonl; target/bench/latest is the last run.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "`cargo xtask bench micro [FILTER]` runs the criterion benches.")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Task {
    /// Runs a suite (the default task).
    Run(RunArguments),
    /// Lists the cases and fault runs of a suite.
    List {
        /// Which suite.
        #[arg(long, value_enum, default_value_t = SuiteName::Default)]
        suite: SuiteName,
    },
    /// Kills and freezes the leader under load; shows the time line and counts lost writes.
    Fault {
        /// Only this fault.
        #[arg(long, value_enum)]
        kind: Option<Fault>,
        /// Where the results go.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// The protocol without sockets and disks: three replicas in one thread with allocations per entry, and behind the
    /// async handle.
    Protocol {
        /// How often each case is run; the best counts.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        repetitions: u32,
        /// Where the results go.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// The shared log alone: appends that wait for their fsync, and opening a log of 1 GiB.
    Log {
        /// Length of each measured window, in seconds.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
        seconds: u32,
        /// Where the results go.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Serves as the one-process baseline; started by the bench itself.
    #[command(hide = true)]
    ServeSingleThread {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        data: PathBuf,
        #[arg(long, value_enum)]
        sync: SyncArgument,
    },
}

#[derive(Args)]
struct RunArguments {
    /// What to run: smoke ends within a minute, default within five.
    #[arg(long, value_enum, default_value_t = SuiteName::Default)]
    suite: SuiteName,
    /// Only cases whose line in `bench list` contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only this engine: single-leader, multi-leader, leaderless, leaderless-cas or single-thread.
    #[arg(long, value_parser = ["single-leader", "multi-leader", "leaderless", "leaderless-cas", "single-thread"])]
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
}

#[derive(Clone, Copy, ValueEnum)]
enum SyncArgument {
    Group,
    Never,
}

const HANDLE_WINDOW: Duration = Duration::from_secs(2);

/// Exit code of a run that Ctrl-C or SIGTERM ended, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            eprintln!("{}; see `cargo xtask bench --help`", text.lines().next().unwrap_or("error: bad arguments"));
            return ExitCode::from(2);
        }
    };
    let ended = match cli.task.unwrap_or(Task::Run(cli.run)) {
        Task::Run(arguments) => run_suite(arguments),
        Task::List { suite } => {
            list(suite);
            Ok(ExitCode::SUCCESS)
        }
        Task::Fault { kind, out } => {
            let mut suite = Suite::new(SuiteName::Default, None);
            suite.cases.clear();
            suite.replications.clear();
            suite.faults.retain(|fault| kind.is_none_or(|kind| *fault == kind));
            measure(&suite, 0, out)
        }
        Task::Protocol { repetitions, out } => run_protocol(repetitions, out),
        Task::Log { seconds, out } => run_log(Duration::from_secs(u64::from(seconds)), out),
        Task::ServeSingleThread { listen, data, sync } => {
            let sync = match sync {
                SyncArgument::Group => Sync::Group,
                SyncArgument::Never => Sync::Never,
            };
            let served = single_thread::serve(listen, &data, sync).map_err(BenchError::io(format!("serving {listen}")));
            served.map(|()| ExitCode::SUCCESS)
        }
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, BenchError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run_suite(arguments: RunArguments) -> Result<ExitCode, BenchError> {
    let measured = arguments.seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
    let mut suite = Suite::new(arguments.suite, measured);
    suite.keep(arguments.engine.as_deref(), arguments.only.as_deref());
    if suite.cases.is_empty() && suite.replications.is_empty() && suite.faults.is_empty() {
        return Err(BenchError::Usage("no case fits; `cargo xtask bench list` shows them".to_owned()));
    }
    measure(&suite, arguments.seed, arguments.out)
}

fn measure(suite: &Suite, seed: u64, out: Option<PathBuf>) -> Result<ExitCode, BenchError> {
    let place = Place::create(out)?;
    let (header, mut results) = place.results(seed)?;
    println!("{}", machine_line(&header));
    let found = RefCell::new(Found::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the load generator"))?;
    // Dropping the run kills its processes, so everything is cleaned up before the exit code is returned.
    let interrupted = runtime.block_on(async {
        tokio::select! {
            ended = run::run(suite, seed, &place, &mut results, &found) => ended.map(|()| false),
            signalled = signalled() => signalled.map(|()| true),
        }
    })?;
    let found = found.into_inner();
    println!("\n{}", found.render());
    println!("results: {}", place.folder.join("results.jsonl").display());
    let faults = found.faults_found();
    for fault in &faults {
        println!("{fault}");
    }
    if interrupted {
        println!("interrupted: the figures above are those of the cases that had ended");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn signalled() -> Result<(), BenchError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(BenchError::io("listening for signals"))?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.map_err(BenchError::io("listening for signals")),
        _ = terminate.recv() => Ok(()),
    }
}

fn machine_line(header: &Header) -> String {
    let machine = &header.machine;
    format!(
        "{}, {} cores, {} MiB, {}, data on {}; {}; commit {}{}; seed {}",
        machine.cpu,
        machine.cores,
        machine.memory_mib,
        machine.kernel,
        machine.file_system,
        header.versions.rustc,
        header.commit,
        if header.dirty { " with changes" } else { "" },
        header.seed,
    )
}

fn list(name: SuiteName) {
    let suite = Suite::new(name, None);
    println!(
        "single-leader, multi-leader and leaderless need the node program, which `cargo xtask bench` builds; single-thread needs nothing"
    );
    for case in &suite.cases {
        println!("{case}");
    }
    for run in &suite.replications {
        println!("{run}");
    }
    for fault in &suite.faults {
        println!("single-leader, 3 nodes: {fault}");
    }
    println!(
        "{} cases, {} runs of contending writers, {} fault runs, about {} s",
        suite.cases.len(),
        suite.replications.len(),
        suite.faults.len(),
        suite.estimate().as_secs()
    );
}

fn run_protocol(repetitions: u32, out: Option<PathBuf>) -> Result<ExitCode, BenchError> {
    let place = Place::create(out)?;
    let (header, mut results) = place.results(0)?;
    println!("{}", machine_line(&header));
    let mut table = Table::new(vec![
        ("three replicas in one thread, memory log", Side::Left),
        ("commands a round", Side::Right),
        ("entries/s, applied by all", Side::Right),
        ("allocations/entry", Side::Right),
    ]);
    let mut written = Ok(());
    protocol::cases(repetitions, |rounds| {
        eprintln!("  {} x {}: {}/s", rounds.workload, rounds.batch, count(rounds.entries_per_second));
        let allocations = format!("{:.4}", rounds.allocations_per_entry);
        let speed = count(rounds.entries_per_second);
        table.row("", vec![rounds.workload.clone(), rounds.batch.to_string(), speed, allocations]);
        for figure in rounds.figures() {
            if written.is_ok() {
                written = results.write(&figure);
            }
        }
    });
    written.map_err(BenchError::io("writing the results"))?;
    println!("\n{}", table.render());
    let mut table = Table::new(vec![
        ("three replicas in one loop, async handle, memory log", Side::Left),
        ("clients", Side::Right),
        ("writes/s", Side::Right),
    ]);
    for clients in handle::CLIENTS {
        let calls = handle::measure(clients, HANDLE_WINDOW)?;
        results.write(&calls.figure()).map_err(BenchError::io("writing the results"))?;
        table.row("", vec!["256 B, counting".to_owned(), clients.to_string(), count(calls.per_second)]);
    }
    println!("{}", table.render());
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(ExitCode::SUCCESS)
}

fn run_log(measured: Duration, out: Option<PathBuf>) -> Result<ExitCode, BenchError> {
    let place = Place::create(out)?;
    let (header, mut results) = place.results(0)?;
    println!("{}", machine_line(&header));
    let mut table = Table::new(vec![
        ("the log on disk, one process", Side::Left),
        ("entries/s", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("fsyncs/entry", Side::Right),
    ]);
    let mut ended = |name: &str, appends: Result<Appends, BenchError>| {
        let appends = appends?;
        let quantile = |share| match appends.latencies.count() {
            0 => "-".to_owned(),
            _ => latency(appends.latencies.quantile(share)),
        };
        let cells = [count(appends.entries_per_second), quantile(0.5), quantile(0.99)];
        let fsyncs = format!("{:.4}", appends.fsyncs_per_entry);
        table.row("", [appends.workload.clone()].into_iter().chain(cells).chain([fsyncs]).collect());
        eprintln!("  {name}: {}/s", count(appends.entries_per_second));
        for figure in appends.figures() {
            results.write(&figure).map_err(BenchError::io("writing the results"))?;
        }
        Ok::<(), BenchError>(())
    };
    let folder = |name: &str| place.data.path().join(name);
    for entries in [1, disk_log::BATCH_ENTRIES] {
        ended("floor", disk_log::raw(&folder("raw"), entries, measured))?;
        ended("one writer", disk_log::one_writer(&folder(&format!("one-{entries}")), entries, measured))?;
    }
    ended("waiting threads", disk_log::waiting_threads(&folder("many"), measured))?;
    println!("\n{}", table.render());
    let opened = disk_log::reopen(&folder("open"))?;
    for figure in opened.figures() {
        results.write(&figure).map_err(BenchError::io("writing the results"))?;
    }
    println!(
        "open of {} MiB, every checksum verified, warm: {}; then replay of every batch: {}",
        opened.bytes >> 20,
        latency(opened.open),
        latency(opened.replay)
    );
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(ExitCode::SUCCESS)
}
