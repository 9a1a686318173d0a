//! `cargo xtask ci`: what must be green before a change goes in.

use std::process::ExitCode;

use crate::phase::Phases;
use crate::{cargo, docs, test, tidy};

/// Runs the task.
pub(crate) fn run() -> ExitCode {
    let mut all = Phases::default();
    all.run("format", || cargo::run(cargo::cargo(["fmt", "--all", "--", "--check"])));
    all.run("tidy", tidy::check);
    all.run("clippy, warnings denied", || {
        cargo::run(cargo::cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    all.run("rustdoc, warnings denied", || docs::build(false));
    test::phases(&mut all);
    all.report(&test::SKIPPED)
}
