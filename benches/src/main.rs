//! The bench program; `cargo xtask bench` builds it, builds the node program beside it, and hands its arguments on.

mod command;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use replikit_benches::allocations::Counted;
use replikit_benches::engine::Sync;
use replikit_benches::engine::baseline::{self, Architecture};
use replikit_benches::error::BenchError;
use replikit_benches::suite::SuiteName;
use replikit_benches::{advise, command_line, play, scale};

use crate::command::compare::CompareArguments;
use crate::command::report::ReportArguments;
use crate::command::run::{FaultArguments, RunArguments};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Measures replication strategies side by side: real processes, real TCP, real fsync, on this machine. Results and report go
/// to target/bench/RUN; target/bench/latest is the last run.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "`cargo xtask bench micro [FILTER]` runs the criterion benches. `cargo xtask bench --suite peers` measures \
    other systems beside these (`--suite peers --help`); `cargo xtask bench setup-peers` installs them."
)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Task {
    /// Runs a suite and makes its report (the default task).
    Run(RunArguments),
    /// Lists what a suite measures.
    List {
        /// Which suite.
        #[arg(long, value_enum, default_value_t = SuiteName::Default)]
        suite: SuiteName,
    },
    /// Makes the report of a run: a page, and on demand the README's block and the documentation's plots.
    Report(ReportArguments),
    /// Compares two results or two builds; exit code 1 for a regression, 3 when there is too little to tell.
    Compare(CompareArguments),
    /// Plays workloads, built-in or your own, or a recorded trace, on every engine over any network, and checks the results.
    Play(play::command::Arguments),
    /// Says which strategies meet needs for a workload on a network, ranked, and what excludes the others; from simulation.
    Advise(advise::Arguments),
    /// Models one to nine nodes, calibrated by measurement in the same run, and how many cores it takes to beat one thread.
    Scale(scale::Arguments),
    /// Has something fail under load; shows the time line, what each side saw of it, and counts lost writes.
    Fault(FaultArguments),
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
    /// Serves as a baseline; started by the bench itself.
    #[command(hide = true)]
    ServeBaseline {
        #[arg(value_enum)]
        architecture: ArchitectureArgument,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        data: PathBuf,
        #[arg(long, value_enum)]
        sync: SyncArgument,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum ArchitectureArgument {
    SingleThread,
    SharedMemory,
    SharedDisk,
}

#[derive(Clone, Copy, ValueEnum)]
enum SyncArgument {
    Group,
    Never,
}

fn main() -> ExitCode {
    command_line::run("cargo xtask bench", run)
}

fn run(cli: Cli) -> Result<ExitCode, BenchError> {
    match cli.task.unwrap_or(Task::Run(cli.run)) {
        Task::Run(arguments) => command::run::suite(&arguments),
        Task::List { suite } => {
            command::list::list(suite);
            Ok(ExitCode::SUCCESS)
        }
        Task::Report(arguments) => command::report::report(&arguments),
        Task::Compare(arguments) => command::compare::compare(&arguments),
        Task::Play(arguments) => play::command::run(&arguments),
        Task::Advise(arguments) => advise::run(&arguments),
        Task::Scale(arguments) => scale::run(&arguments),
        Task::Fault(arguments) => command::run::faults(&arguments),
        Task::Protocol { repetitions, out } => command::alone::protocol(repetitions, out),
        Task::Log { seconds, out } => command::alone::log(Duration::from_secs(u64::from(seconds)), out),
        Task::ServeBaseline { architecture, listen, data, sync } => serve(architecture, listen, data, sync),
    }
}

fn serve(
    architecture: ArchitectureArgument,
    listen: SocketAddr,
    data: PathBuf,
    sync: SyncArgument,
) -> Result<ExitCode, BenchError> {
    let architecture = match architecture {
        ArchitectureArgument::SingleThread => Architecture::SingleThread,
        ArchitectureArgument::SharedMemory => Architecture::SharedMemory,
        ArchitectureArgument::SharedDisk => Architecture::SharedDisk,
    };
    let sync = match sync {
        SyncArgument::Group => Sync::Group,
        SyncArgument::Never => Sync::Never,
    };
    let served = baseline::serve(architecture, listen, &data, sync);
    served.map(|()| ExitCode::SUCCESS).map_err(BenchError::io(format!("serving {listen}")))
}
