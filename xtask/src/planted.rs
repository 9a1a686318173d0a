//! `cargo xtask planted`: proves that the simulator finds bugs, by planting known ones in a scratch copy of the sources.
//!
//! Invariant: the protocol code itself holds no trace of them; a bug is a file of `crates/swarm/planted` that says which text
//! of which file to put another text for. Source: mutation analysis; etcd's list of reproduced robustness bugs.

mod bug;
mod found;
mod hunt;
mod interrupt;
mod scratch;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cargo;
use found::{Finding, Findings};
use hunt::{Clean, Hunt, Pace};
use scratch::Scratch;

/// A bug that must be found at once: a runner that misses it would miss everything.
const CANARY: &str = "CANARY";
/// Bugs that continuous integration plants, beside the canary: one of reads, one of the log. Each costs a build.
const SAMPLE: [&str; 3] = [CANARY, "B14", "B28"];

/// What is asked for on the command line.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these bugs (all of them without any).
    bugs: Vec<String>,
    /// How many ranges of seeds each bug is hunted in.
    #[arg(long, default_value_t = 10)]
    bases: u64,
    /// Seeds in one range; a bug that none of them finds is missed.
    #[arg(long, default_value_t = 5000)]
    seeds: u64,
    /// Only the few bugs that continuous integration plants.
    #[arg(long, conflicts_with = "bugs")]
    sample: bool,
    /// Keeps what is found of each bug in crates/swarm/planted/found.jsonl, and writes docs/planted.md anew.
    #[arg(long, conflicts_with = "sample")]
    write: bool,
}

/// Runs the task.
pub(crate) fn run(options: &Options) -> ExitCode {
    interrupt::listen();
    match hunt_all(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) if message == interrupt::INTERRUPTED => {
            eprintln!("{message}");
            ExitCode::from(130)
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The simulator of the sources as they are, built as the planted bugs are: what they need of it is compiled once for all.
pub(crate) fn clean() -> Result<PathBuf, String> {
    Scratch::new(cargo::root(), cargo::target())?.clean()
}

/// The few bugs of continuous integration, each in one range of seeds.
pub(crate) fn sample() -> Result<(), String> {
    let options = Options { bugs: Vec::new(), bases: 1, seeds: 5000, sample: true, write: false };
    if hunt_all(&options)? { Ok(()) } else { Err("a planted bug was missed".to_owned()) }
}

/// Whether every bug was found in every range, and the sources as they are passed the same seeds.
fn hunt_all(options: &Options) -> Result<bool, String> {
    let all = bug::read_all()?;
    let mut bugs: Vec<&bug::Bug> = all.iter().collect();
    if options.sample {
        bugs.retain(|bug| SAMPLE.contains(&bug.id.as_str()));
    }
    if let Some(unknown) = options.bugs.iter().find(|id| !bugs.iter().any(|bug| bug.id == **id)) {
        let known: Vec<&str> = bugs.iter().map(|bug| bug.id.as_str()).collect();
        return Err(format!("{unknown}: no such bug; known are {}", known.join(" ")));
    }
    if !options.bugs.is_empty() {
        bugs.retain(|bug| options.bugs.contains(&bug.id));
    }
    let scratch = Scratch::new(cargo::root(), cargo::target())?;
    println!("building the simulator from the sources as they are");
    let clean = Clean::new(scratch.clean()?);
    let mut findings = Vec::new();
    for (at, bug) in bugs.iter().enumerate() {
        println!("[{}/{}] {}: {}", at + 1, bugs.len(), bug.id, bug.title);
        let planted = match scratch.plant(bug) {
            Ok(planted) => planted,
            Err(message) if message == interrupt::INTERRUPTED => return Err(message),
            // The others are hunted all the same.
            Err(message) => {
                println!("    {message}");
                findings.push((*bug, None));
                continue;
            }
        };
        let pace = Pace::new(options.bases);
        let hunt = Hunt { planted: &planted, clean: &clean, strategy: &bug.strategy, seeds: options.seeds };
        let catch = hunt.run(options.bases, &pace)?;
        println!("    {catch}\n    {pace}");
        let finding = Finding::new(bug, &catch, options.seeds);
        if options.write {
            // At once, for others may write theirs meanwhile, and the rest may be interrupted.
            let mut known = Findings::read()?;
            known.forget_all_but(&all);
            known.put(finding.clone());
            known.write()?;
            table::write(&all, &known)?;
        }
        findings.push((*bug, Some(finding)));
    }
    print!("{}", table::terminal(&findings));
    if options.write {
        println!("wrote crates/swarm/planted/found.jsonl and docs/planted.md");
    }
    Ok(findings.iter().all(|(_, finding)| finding.as_ref().is_some_and(Finding::is_whole)))
}
