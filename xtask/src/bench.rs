//! `cargo xtask bench`: builds the node program and the bench program in release, then hands over to the latter.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::{cargo, peers};

/// Runs the task. `bench micro` is criterion's, `bench --suite peers` that of a program of its own; everything else is the
/// bench program's.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == "micro" => micro(rest),
        Some((first, _)) if first == "compare" => compare(arguments),
        Some((first, rest)) if first == "setup-peers" => peers::setup(rest),
        _ => match peers::asked(arguments) {
            Some(rest) => peers(&rest),
            None => hand_over(arguments),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Replaces this process, so that Ctrl-C reaches the bench program alone and the terminal waits for its clean-up: returns
/// only when that fails.
fn hand_over(arguments: &[OsString]) -> Result<(), String> {
    Err(format!("the bench program does not start: {}", release()?.args(arguments).exec()))
}

/// The same for the program that measures other systems, which looks for the node program beside itself.
fn peers(arguments: &[OsString]) -> Result<(), String> {
    release()?;
    Err(format!("the program of the peers does not start: {}", peers::program()?.args(arguments).exec()))
}

/// Builds those of the two sides that are commits, each in a copy of the sources of its own, and hands over.
fn compare(arguments: &[OsString]) -> Result<(), String> {
    let mut sides = 0;
    let mut value_of_flag = false;
    let mut handed = Vec::new();
    for argument in arguments {
        let text = argument.to_string_lossy();
        let is_side = !text.starts_with('-') && !value_of_flag && text != "compare";
        // Every flag of `bench compare` but `--help` has a value.
        value_of_flag = text.starts_with("--") && !text.contains('=') && text != "--help";
        if is_side && sides < 2 {
            sides += 1;
            handed.push(if Path::new(argument).exists() { argument.clone() } else { build_of(&text)?.into() });
        } else {
            handed.push(argument.clone());
        }
    }
    hand_over(&handed)
}

/// The folder with the programs of a commit, built as `cargo xtask bench` builds its own. What was built before is there still.
fn build_of(revision: &str) -> Result<PathBuf, String> {
    let mut git = Command::new("git");
    let spec = format!("{revision}^{{commit}}");
    git.args(["rev-parse", "--verify", "--quiet", "--end-of-options", &spec]).current_dir(cargo::root());
    let output = git.output().map_err(|error| format!("git does not start: {error}"))?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || commit.is_empty() {
        return Err(format!("{revision} is neither a file, nor a folder, nor a commit"));
    }
    let folder = cargo::target().join("bench").join("builds").join(&commit);
    let built = folder.join("target").join("release");
    if built.join("replikit-bench").is_file() && built.join("replikit").is_file() {
        return Ok(built);
    }
    println!("building {revision}, {commit}");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let archive = folder.join("sources.tar");
    let mut git = Command::new("git");
    git.args(["archive", "--format=tar", "-o"]).arg(&archive).arg(&commit).current_dir(cargo::root());
    cargo::run(git)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&folder);
    cargo::run(tar)?;
    let mut build = cargo::cargo(["build", "--release", "-p", "replikit", "-p", "replikit-benches", "--bins"]);
    build.current_dir(&folder).env("CARGO_TARGET_DIR", folder.join("target"));
    cargo::run(build)?;
    Ok(built)
}

/// The smoke suite, as a test: wrong results and engines that do not start fail it. Its figures are not compared with any, so
/// the programs are those that `cargo test` has left.
pub(crate) fn smoke() -> Result<(), String> {
    let mut program = cargo::built("debug", "replikit-bench");
    program.args(["run", "--suite", "smoke"]);
    cargo::run(program)
}

fn micro(arguments: &[OsString]) -> Result<(), String> {
    let mut command = cargo::cargo(["bench", "-p", "replikit-benches", "--bench", "micro", "--"]);
    command.args(arguments);
    cargo::run(command)
}

/// Builds both programs in one call, so that they share one set of dependency features and hence one build.
fn release() -> Result<Command, String> {
    cargo::run(cargo::cargo(["build", "--release", "-p", "replikit", "-p", "replikit-benches", "--bins"]))?;
    Ok(cargo::built("release", "replikit-bench"))
}
