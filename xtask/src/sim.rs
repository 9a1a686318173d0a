//! `cargo xtask sim`: builds the swarm program in release, then hands over to it. Tests have it in the profile `swift`, which
//! costs them less time than it saves.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::{cargo, planted};

/// Seeds of the test phase.
const TEST_SEEDS: &str = "3000";

/// Runs the task. The program replaces this process, so that Ctrl-C reaches it alone: returns only when that fails.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let error = match release() {
        Ok(mut program) => format!("the swarm program does not start: {}", program.args(arguments).exec()),
        Err(message) => message,
    };
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Many seeds, as a test: a violation fails it, and so does a fault or a state that none of them met.
pub(crate) fn seeds() -> Result<(), String> {
    let mut program = swift()?;
    program.args(["--seeds", TEST_SEEDS]);
    cargo::run(program)
}

/// The fingerprints of a few seeds are the same in the debug build, which `cargo test` has left, and in an optimised
/// one.
pub(crate) fn traces() -> Result<(), String> {
    let optimised = output(swift()?)?;
    let debug = output(Command::new(cargo::target().join("debug").join("swarm")))?;
    if optimised == debug {
        Ok(())
    } else {
        Err(format!("optimised:\n{optimised}debug:\n{debug}the two builds differ"))
    }
}

fn output(mut command: Command) -> Result<String, String> {
    let output = command.arg("--traces").current_dir(cargo::root()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn release() -> Result<Command, String> {
    cargo::run(cargo::cargo(["build", "--release", "-p", "replikit-swarm", "--bins"]))?;
    Ok(cargo::built("release", "swarm"))
}

/// The program that the sample of planted bugs is compared with.
fn swift() -> Result<Command, String> {
    let mut command = Command::new(planted::clean()?);
    command.current_dir(cargo::root());
    Ok(command)
}
