//! Finds out whether a state machine of one's own is deterministic: `cargo run --release --example scenario -- [SEEDS]`.
//!
//! A raffle sells tickets and draws winners. The first version takes whichever ticket its hash map yields first, and every
//! process has its own order of hash maps: the replicas draw different winners from the same log. The second one takes the
//! lowest ticket.

use std::collections::HashMap;
use std::process::ExitCode;

use bytes::Bytes;
use replikit_core::{BytesSource, LogIndex, RestoreError, SnapshotSource, StateMachine};
use replikit_sim::{Scenario, ScenarioReport, Violation};
use replikit_single_leader::{Config, Raft};

/// How a winner is chosen among the tickets.
type Choice = fn(&HashMap<u8, u32>) -> Option<u8>;

/// Tickets with how often each was sold, and who has won.
pub(crate) struct Raffle {
    tickets: HashMap<u8, u32>,
    winners: Vec<u8>,
    choice: Choice,
    incoming: Vec<u8>,
}

impl Raffle {
    fn new(choice: Choice) -> Self {
        Self { tickets: HashMap::new(), winners: Vec::new(), choice, incoming: Vec::new() }
    }
}

impl StateMachine for Raffle {
    /// One byte sells that ticket, none draws a winner.
    fn apply(&mut self, _: LogIndex, command: &[u8]) -> Bytes {
        if let Some(&ticket) = command.first() {
            *self.tickets.entry(ticket).or_default() += 1;
        } else if let Some(winner) = (self.choice)(&self.tickets) {
            self.tickets.remove(&winner);
            self.winners.push(winner);
        }
        Bytes::new()
    }

    /// Who has won.
    fn query(&self, _: &[u8], bytes_max: usize) -> Bytes {
        Bytes::copy_from_slice(&self.winners[..self.winners.len().min(bytes_max)])
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        // In order: equal states have equal snapshots.
        let mut tickets: Vec<_> = self.tickets.iter().collect();
        tickets.sort_unstable();
        let bytes = postcard::to_stdvec(&(tickets, &self.winners)).expect("lists of numbers encode");
        Box::new(BytesSource::new(bytes.into()))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if last {
            let bytes = core::mem::take(&mut self.incoming);
            let state: (Vec<(u8, u32)>, Vec<u8>) =
                postcard::from_bytes(&bytes).map_err(|_| RestoreError { what: "not a raffle" })?;
            (self.tickets, self.winners) = (state.0.into_iter().collect(), state.1);
        }
        Ok(())
    }
}

fn run(choice: Choice, seeds: u64) -> Result<ScenarioReport, Violation> {
    let scenario = Scenario::new(
        move || Raffle::new(choice),
        |node, machine| {
            let mut config = Config::new(node.cluster, node.group, node.node, node.members, node.seed);
            // Small enough that followers are brought up by snapshots, too, in many pieces.
            config.limits.snapshot_log_bytes = 1 << (6 + node.run_seed % 8);
            config.limits.snapshot_piece_bytes = 1 << (3 + node.run_seed / 8 % 7);
            Raft::new(config, &node.boot, machine).expect("the knobs are in range")
        },
    );
    scenario.commands(|rng| if rng.u8(0..4) == 0 { Bytes::new() } else { vec![rng.u8(..)].into() }).run(0..seeds)
}

/// Whatever the hash map yields first wins.
pub(crate) fn run_careless(seeds: u64) -> Result<ScenarioReport, Violation> {
    run(|tickets| tickets.keys().next().copied(), seeds)
}

/// The lowest ticket wins.
pub(crate) fn run_careful(seeds: u64) -> Result<ScenarioReport, Violation> {
    run(|tickets| tickets.keys().min().copied(), seeds)
}

fn main() -> ExitCode {
    let seeds = std::env::args().nth(1).and_then(|seeds| seeds.parse().ok()).unwrap_or(100);
    match run_careless(seeds) {
        Ok(_) => println!("the careless raffle was not found out"),
        Err(violation) => println!("the careless raffle: {violation}"),
    }
    match run_careful(seeds) {
        Ok(report) => println!(
            "the careful raffle: {} seeds, {} commands acknowledged, {} applied, {} snapshots restored, no violation",
            report.seeds, report.acked, report.applied, report.restored
        ),
        Err(violation) => {
            println!("the careful raffle: {violation}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
