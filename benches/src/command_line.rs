//! The command line of a bench program. What is wrong with it is one line on standard error.

use std::process::ExitCode;

use clap::Parser;

use crate::error::BenchError;

/// Reads the arguments, runs what they ask for, and makes the exit code: 2 for what cannot be asked for, 1 where the run fails.
/// `name` is what the program is called by.
pub fn run<C: Parser>(name: &str, run: impl FnOnce(C) -> Result<ExitCode, BenchError>) -> ExitCode {
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            eprintln!("{}; see `{name} --help`", text.lines().next().unwrap_or("error: bad arguments"));
            return ExitCode::from(2);
        }
    };
    run(cli).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(if matches!(error, BenchError::Usage(_)) { 2 } else { 1 })
    })
}
