//! The project's own commands; `cargo xtask` prints them. One file per task; flags are declared here.

mod bench;
mod cargo;
mod ci;
mod docs;
mod loom;
mod peers;
mod phase;
mod planted;
mod sim;
mod test;
mod tidy;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// The project's own commands. They need nothing but cargo.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// All tests: `cargo test`, the examples, the loom models, 3,000 simulated seeds, the smoke suite of the bench.
    Test,
    /// What continuous integration runs: format, tidiness, clippy, rustdoc, then `test`.
    Ci,
    /// Measures the strategies side by side (`cargo xtask bench --help`).
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the bench program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Runs seeds of every strategy under the simulator (`cargo xtask sim --help`).
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on to the swarm program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Explores the loom models of replikit-sync and prints how many executions that took.
    Loom {
        /// Only models whose name contains this.
        model: Option<String>,
        /// Plants each model's faults instead: every model must notice its own.
        #[arg(long)]
        weaken: bool,
    },
    /// Plants known bugs in a scratch copy of the sources, and checks that the simulator finds each. Takes hours in full.
    Planted(planted::Options),
    /// Builds the documentation of all crates, warnings denied.
    Docs {
        /// Opens it in a browser.
        #[arg(long)]
        open: bool,
    },
    /// Checks what the compiler does not: module headers, forbidden test attributes, paths of one machine.
    Tidy,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // One line: what is wrong and where the list of tasks is.
            let text = error.to_string();
            eprintln!("{}; `cargo xtask` lists the tasks", text.lines().next().unwrap_or("error: bad arguments"));
            return ExitCode::from(2);
        }
    };
    match cli.task {
        None => {
            print!("{}", Cli::command().render_help());
            ExitCode::SUCCESS
        }
        Some(Task::Test) => test::run(),
        Some(Task::Ci) => ci::run(),
        Some(Task::Bench { arguments }) => bench::run(&arguments),
        Some(Task::Sim { arguments }) => sim::run(&arguments),
        Some(Task::Loom { model, weaken }) => loom::run(model.as_deref(), weaken),
        Some(Task::Planted(options)) => planted::run(&options),
        Some(Task::Docs { open }) => docs::run(open),
        Some(Task::Tidy) => tidy::run(),
    }
}
