//! Phases of a long task: each runs whatever became of the one before, and the last lines say how each ended and how long
//! it took.

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs phases one after the other and remembers how they ended.
#[derive(Default)]
pub(crate) struct Phases {
    ended: Vec<(&'static str, Duration, Result<(), String>)>,
}

impl Phases {
    /// Runs one phase.
    pub(crate) fn run(&mut self, name: &'static str, phase: impl FnOnce() -> Result<(), String>) {
        println!("== {name}");
        let start = Instant::now();
        let result = phase();
        if let Err(message) = &result {
            eprintln!("error: {message}");
        }
        self.ended.push((name, start.elapsed(), result));
    }

    /// Prints one line per phase, then what was left out; the exit code of the task.
    pub(crate) fn report(self, skipped: &[&str]) -> ExitCode {
        println!();
        for (name, took, result) in &self.ended {
            println!("{:<6} {name:<44} {:>7.1} s", if result.is_ok() { "ok" } else { "FAILED" }, took.as_secs_f64());
        }
        for what in skipped {
            println!("not run: {what}");
        }
        let failed = self.ended.iter().filter(|(_, _, result)| result.is_err()).count();
        let took: Duration = self.ended.iter().map(|(_, took, _)| *took).sum();
        println!("{} phases, {failed} failed, {:.1} s", self.ended.len(), took.as_secs_f64());
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
