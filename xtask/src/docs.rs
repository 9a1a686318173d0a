//! `cargo xtask docs`: the documentation of the workspace's own crates.

use std::process::ExitCode;

use crate::cargo;

/// Runs the task.
pub(crate) fn run(open: bool) -> ExitCode {
    match build(open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Builds it; broken links and other warnings are errors.
pub(crate) fn build(open: bool) -> Result<(), String> {
    let mut command = cargo::cargo(["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    if open {
        command.arg("--open");
    }
    cargo::run(command)
}
