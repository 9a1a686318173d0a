//! The `replikit` program: `node` runs one node, `cluster` a whole local cluster of real processes, the other commands speak
//! to a running cluster or look at a log.

mod args;
mod client;
mod cluster;
mod conflicts;
mod log;
mod node;
mod partitions;
mod router;
mod shape;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Args, Command};

/// What a command ended with: nothing, or one line that says what went wrong and what to do.
type CommandResult = Result<(), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Help that cannot be printed, because the reader has gone, is nobody's loss.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return usage(&error),
    };
    if let Err(message) = args.command.check() {
        eprintln!("replikit: {message}; see `replikit --help`");
        return ExitCode::from(2);
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(if args.verbose { tracing::Level::DEBUG } else { tracing::Level::INFO })
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match args.command {
        Command::Node(node) => node::run(node),
        Command::Cluster(cluster) => cluster::run(&cluster),
        Command::Put(put) => client::put(put),
        Command::Get(get) => client::get(get),
        Command::Delete(delete) => client::delete(delete),
        Command::Add(add) => client::add(add),
        Command::Insert(element) => client::insert(element),
        Command::Remove(element) => client::remove(element),
        Command::Flag(flag) => client::flag(flag),
        Command::Assign(assign) => client::assign(assign),
        Command::Conflicts(command) => conflicts::run(command),
        Command::Scan(scan) => client::scan(scan),
        Command::Watch(watch) => client::watch(watch),
        Command::Status(status) => client::status(status),
        Command::Log(command) => log::run(command),
        Command::Router(router) => router::run(router),
        Command::Partitions(command) => partitions::list(command),
        Command::Split(command) => partitions::split(command),
        Command::Merge(command) => partitions::merge(command),
        Command::Keep(command) => partitions::keep(command),
        Command::Balance(command) => partitions::balance(command),
        Command::Handoff(command) => partitions::handoff(command),
        Command::Place(command) => partitions::place(command),
        Command::Drain(command) => partitions::drain(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replikit: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says something on standard output. A reader that has gone away is no reason to end.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A wrong command line, as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("replikit: say what to do; see `replikit --help`");
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
    let line = lines.join(" ");
    let line = line.trim().strip_prefix("error: ").unwrap_or(&line).trim();
    eprintln!("replikit: {line}; see `replikit --help`");
    ExitCode::from(2)
}
