//! `cargo xtask bench`: builds the node program and the bench program in release, then hands over to the latter.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::cargo;

/// Runs the task. `bench micro` is criterion's; everything else is the bench program's.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == "micro" => micro(rest),
        _ => hand_over(arguments),
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
    let mut program = program("release")?;
    program.args(arguments);
    Err(format!("the bench program does not start: {}", program.exec()))
}

/// The smoke suite, as a test: wrong results and engines that do not start fail it. Its figures are not compared with any, so
/// it is built in the profile that compiles in seconds.
pub(crate) fn smoke() -> Result<(), String> {
    let mut program = program("swift")?;
    program.args(["run", "--suite", "smoke"]);
    cargo::run(program)
}

fn micro(arguments: &[OsString]) -> Result<(), String> {
    let mut command = cargo::cargo(["bench", "-p", "replikit-benches", "--bench", "micro", "--"]);
    command.args(arguments);
    cargo::run(command)
}

/// Builds both programs in one call, so that they share one set of dependency features and hence one build.
fn program(profile: &str) -> Result<Command, String> {
    cargo::run(cargo::cargo(["build", "--profile", profile, "-p", "replikit", "-p", "replikit-benches", "--bins"]))?;
    let mut command = Command::new(cargo::target().join(profile).join("replikit-bench"));
    command.current_dir(cargo::root());
    Ok(command)
}
