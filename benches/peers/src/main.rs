//! The program behind `cargo xtask bench --suite peers`, which builds it beside the node program.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use replikit_benches::command_line;
use replikit_benches::error::BenchError;
use replikit_benches::interrupt::{INTERRUPTED, interrupted};
use replikit_benches::place::Place;
use replikit_peers::contest::{self, Contest};
use replikit_peers::outcome::Outcome;
use replikit_peers::rounds::{self, Asked};
use replikit_peers::system::System;

/// Puts other systems under the same load as replikit's engines, in turn with them, and prints by how much ours are better or
/// worse. `cargo xtask bench setup-peers` installs what it needs; what is not installed is N/A.
#[derive(Parser)]
#[command(name = "cargo xtask bench --suite peers", bin_name = "cargo xtask bench --suite peers")]
struct Cli {
    /// Only contests whose line contains this; one that fits none shows all lines.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How often each system is measured, the others in between.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each measured window, in seconds.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// What all randomness of the run comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the results go, instead of a new folder below target/bench.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Cli {
    fn keeps(&self, contest: &Contest) -> bool {
        let Some(only) = &self.only else { return true };
        contest.to_string().contains(only)
    }

    /// The part that decides what is measured.
    fn asked(&self) -> String {
        let only = self.only.as_ref().map_or_else(String::new, |only| format!(" --only '{only}'"));
        format!("--suite peers{only} --seconds {} --rounds {}", self.seconds, self.rounds)
    }
}

fn main() -> ExitCode {
    command_line::run("cargo xtask bench --suite peers", run)
}

fn run(cli: Cli) -> Result<ExitCode, BenchError> {
    let contests: Vec<Contest> = contest::all().into_iter().filter(|contest| cli.keeps(contest)).collect();
    if contests.is_empty() {
        let all = contest::all().iter().map(Contest::to_string).collect::<Vec<_>>().join("\n");
        return Err(BenchError::Usage(format!("no contest fits; there are\n{all}")));
    }
    let absent = absent(&contests);
    for (system, reason) in &absent {
        println!("{}: N/A: {reason}", system.name());
    }
    let place = Place::create(cli.out.clone())?;
    let results = RefCell::new(place.results(cli.seed, &cli.asked(), cli.rounds)?);
    println!("{}", results.borrow().run().header.line());
    let outcome = RefCell::new(Outcome::new(contests, absent));
    let window = contest::window(Duration::from_secs(u64::from(cli.seconds)));
    let asked = Asked { rounds: cli.rounds, window, seed: cli.seed };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the load generator"))?;
    // Dropping the run kills its processes; dropping the runtime waits for its threads. The data is removed behind both.
    let interrupted = runtime.block_on(async {
        tokio::select! {
            ended = rounds::run(asked, &place, &results, &outcome) => ended.map(|()| false),
            signalled = interrupted() => signalled.map(|()| true),
        }
    });
    drop(runtime);
    let interrupted = interrupted?;
    let outcome = outcome.into_inner();
    println!("\n{}\n{}", outcome.table(), outcome.systems());
    println!("results: {}", place.folder.join("results.jsonl").display());
    let wrong = outcome.wrong();
    wrong.iter().for_each(|wrong| println!("{wrong}"));
    if interrupted {
        println!("interrupted: the figures above are those of what had ended");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What cannot be measured here, and why.
fn absent(contests: &[Contest]) -> BTreeMap<System, String> {
    let systems = contests.iter().flat_map(Contest::systems);
    systems.filter_map(|system| Some((system, system.version().err()?))).collect()
}
