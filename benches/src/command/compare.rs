//! Compares two results, or runs two builds in turn (A B B A) and compares those.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Args;
use replikit_benches::compare::{Comparison, Gate, Order};
use replikit_benches::error::BenchError;
use replikit_benches::place::Place;
use replikit_benches::record::{FILE_NAME, Run};
use replikit_benches::slow_down::SlowDown;

/// Exit code when the values are too few, or too far from each other, to tell.
const CANNOT_TELL: u8 = 3;
const PROGRAM: &str = "replikit-bench";

#[derive(Args)]
pub(crate) struct CompareArguments {
    /// Results (a file, or a run's folder), or a folder with the two programs of a build; `cargo xtask bench compare` takes a
    /// commit as well, and builds it.
    base: PathBuf,
    /// What is compared with it, of the same kind.
    new: PathBuf,
    /// Suite that builds run.
    #[arg(long, default_value = "gate")]
    suite: String,
    /// Only cases whose line in `bench list` contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only this engine.
    #[arg(long)]
    engine: Option<String>,
    /// How often each build runs; fewer than 8 cannot reach 99 %, and of fewer than 15 a single outlier spoils the interval.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Slows the engines of the second build down on purpose by so many percent, to see whether that is found: give the same
    /// build twice.
    #[arg(long, value_name = "PERCENT")]
    plant_slow_down: Option<SlowDown>,
    /// How sure a difference must be, in percent.
    #[arg(long, default_value_t = 99.0, value_parser = percent)]
    confidence: f64,
    /// The least difference that matters, in percent.
    #[arg(long, default_value_t = 5.0, value_parser = percent)]
    least: f64,
    /// The largest loss that may stay unseen, in percent: where an interval holds a larger one, the exit code is 3.
    #[arg(long, default_value_t = 10.0, value_parser = percent)]
    unseen: f64,
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..100.0).contains(&value) { Ok(value) } else { Err("not from 0 to 100".to_owned()) }
}

pub(crate) fn compare(arguments: &CompareArguments) -> Result<ExitCode, BenchError> {
    let gate = Gate {
        confidence: arguments.confidence / 100.0,
        least: arguments.least / 100.0,
        unseen_max: arguments.unseen / 100.0,
    };
    let builds = [&arguments.base, &arguments.new].map(|path| path.join(PROGRAM).is_file());
    let (base, new, order) = match builds {
        [true, true] => in_turn(arguments)?,
        [false, false] if arguments.plant_slow_down.is_some() => {
            let what = "a slow-down is planted in a build; results are what they are".to_owned();
            return Err(BenchError::Usage(what));
        }
        [false, false] => (vec![Run::read(&arguments.base)?], vec![Run::read(&arguments.new)?], Order::Apart),
        _ => {
            let what = "one of the two has results and the other one is a build; compare two of a kind".to_owned();
            return Err(BenchError::Usage(what));
        }
    };
    for (side, runs) in [("base", &base), ("new", &new)] {
        for fault in runs.iter().flat_map(Run::faults_found) {
            println!("{side}: {fault}");
        }
    }
    let comparison = Comparison::of(&base, &new, order, gate);
    print!("{}", comparison.render(gate));
    Ok(if comparison.regressions().next().is_some() {
        ExitCode::FAILURE
    } else if comparison.cannot_tell(gate).is_some() {
        ExitCode::from(CANNOT_TELL)
    } else {
        ExitCode::SUCCESS
    })
}

fn in_turn(arguments: &CompareArguments) -> Result<(Vec<Run>, Vec<Run>, Order), BenchError> {
    let place = Place::create(None)?;
    let (mut base, mut new) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for repeat in 0..arguments.repeats {
        let mut sides =
            [("base", &arguments.base, None, &mut base), ("new", &arguments.new, arguments.plant_slow_down, &mut new)];
        // A B B A: a machine that becomes slower steadily does so for both.
        if repeat % 2 == 1 {
            sides.reverse();
        }
        for (side, build, slow_down, runs) in sides {
            let out = place.folder.join(format!("{side}-{repeat}"));
            runs.push(run(arguments, build, slow_down, &out, u64::from(repeat) + 1)?);
        }
        let done = repeat + 1;
        let left = begun.elapsed() / done * (arguments.repeats - done);
        eprintln!("[{done}/{}, about {} s left]", arguments.repeats, left.as_secs());
    }
    eprintln!("results: {}", place.folder.display());
    Ok((base, new, Order::InTurn))
}

fn run(
    arguments: &CompareArguments,
    build: &Path,
    slow_down: Option<SlowDown>,
    out: &Path,
    seed: u64,
) -> Result<Run, BenchError> {
    let program = build.join(PROGRAM);
    let mut command = Command::new(&program);
    command.args(["run", "--suite", &arguments.suite, "--rounds", "1", "--seed", &seed.to_string(), "--out"]).arg(out);
    for (flag, value) in [("--only", &arguments.only), ("--engine", &arguments.engine)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    if let Some(slow_down) = slow_down {
        command.args(["--plant-slow-down", &slow_down.percent().to_string()]);
    }
    let ended =
        command.stdin(Stdio::null()).output().map_err(BenchError::io(format!("starting {}", program.display())))?;
    if out.join(FILE_NAME).is_file() && matches!(ended.status.code(), Some(0 | 1)) {
        // Wrong results do not end a comparison; they are told with it.
        return Ok(Run::read(out)?);
    }
    let errors = String::from_utf8_lossy(&ended.stderr);
    Err(BenchError::Engine {
        engine: program.display().to_string(),
        what: format!("{}: {}", ended.status, errors.lines().last().unwrap_or("it said nothing")),
    })
}
