//! Other systems under the same load as replikit's engines, interleaved with them, each at the settings that its own
//! documentation recommends for data that must not be lost; the settings are printed.

mod redis;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use replikit_benches::engine::{Engine, EngineKind};
use replikit_benches::error::BenchError;
use replikit_benches::figure::{Better, Subject};
use replikit_benches::ledger::Ledger;
use replikit_benches::load::{self, Measured, Pace, Reads, Window};
use replikit_benches::run::Place;
use replikit_benches::table::{Side, Table, count, latency};
use replikit_benches::verify::verify_each;
use replikit_benches::workload::{Spread, Workload};
use replikit_core::WriteLevel;

/// Packages of Debian that the peers are in.
const PACKAGES: [&str; 1] = ["redis-server"];
/// How often each is measured, in turns.
const TURNS: usize = 2;
const CLIENTS: [u32; 3] = [1, 16, 64];
const WINDOW: Window = Window { warm_up: Duration::from_millis(500), measured: Duration::from_secs(2) };
const KEYS: u32 = 10_000;
const WORKLOAD: Workload = Workload { reads_percent: 0, spread: Spread::Uniform, keys: KEYS, value_bytes: 256 };

/// Measures peers beside replikit: `cargo xtask bench peers`.
#[derive(Parser)]
#[command(name = "cargo xtask bench peers", bin_name = "cargo xtask bench peers")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Installs the peers from Debian's packages.
    Setup,
}

fn main() -> ExitCode {
    let ended = match Cli::parse().task {
        Some(Task::Setup) => setup(),
        None => run(),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn setup() -> Result<ExitCode, BenchError> {
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--no-install-recommends"]).args(PACKAGES);
    // The package would start a server of its own.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    let status = install.status().map_err(BenchError::io("starting apt-get"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Peers that are not measured, and why.
const NOT_MEASURED: [&str; 1] =
    ["etcd, NATS JetStream, Galera, openraft, raft-rs, OmniPaxos, raft-engine, okaywal: N/A: no driver for them here yet"];

fn run() -> Result<ExitCode, BenchError> {
    for line in NOT_MEASURED {
        println!("{line}");
    }
    if let Some(reason) = redis::cannot() {
        println!("Redis: N/A: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("Redis: {}", redis::SETTINGS);
    let place = Place::create(None)?;
    let (_, mut results) = place.results(1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the load generator"))?;
    let mut table = Table::new(vec![
        ("256 B writes", Side::Left),
        ("clients", Side::Right),
        ("ops/s, each turn", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("acknowledged", Side::Left),
    ]);
    let mut wrong = Vec::new();
    for clients in CLIENTS {
        let mut turns: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        let mut promises = [String::new(), String::new()];
        for turn in 0..TURNS {
            for (which, name) in NAMES.iter().enumerate() {
                let folder = place.data.path().join(format!("{which}-{clients}-{turn}"));
                let one = runtime.block_on(one(which, &folder, clients));
                let (measured, lost, promise) = one?;
                if lost > 0 {
                    wrong.push(format!("WRONG RESULT: {name}, {clients} clients: {lost} acked writes lost"));
                }
                eprintln!("  {name}, {clients} clients: {}/s", count(measured.throughput()));
                promises[which] = promise;
                turns[which].push(measured);
            }
        }
        for (which, name) in NAMES.iter().enumerate() {
            let mut best = turns[which].clone();
            best.sort_by(|one, other| one.throughput().total_cmp(&other.throughput()));
            let Some(last) = best.last() else { continue };
            let rates: Vec<String> = turns[which].iter().map(|measured| count(measured.throughput())).collect();
            let [p50, p99] = [0.5, 0.99].map(|share| latency(last.writes.quantile(share)));
            let (rates, promise) = (rates.join(", "), promises[which].clone());
            table.row("", vec![(*name).to_owned(), clients.to_string(), rates, p50, p99, promise]);
            let subject = Subject { engine: (*name).to_owned(), workload: WORKLOAD.to_string(), clients, ..Subject::default() };
            for measured in &turns[which] {
                let figure = subject.figure("throughput", measured.throughput(), "1/s", Better::Higher);
                results.write(&figure).map_err(BenchError::io("writing the results"))?;
            }
        }
    }
    println!("\n{}", table.render());
    wrong.iter().for_each(|line| println!("{line}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const NAMES: [&str; 2] = ["replikit single-leader, Quorum", "Redis, WAIT 1"];

/// What was measured, acknowledged writes that are gone, and what an acknowledgement means.
async fn one(which: usize, folder: &Path, clients: u32) -> Result<(Measured, u64, String), BenchError> {
    let (engine, level): (Box<dyn Engine>, WriteLevel) = match which {
        0 => (EngineKind::SingleLeader.start(folder).await?, WriteLevel::Quorum),
        _ => (Box::new(redis::Redis::start(folder, clients as usize).await?), WriteLevel::Received(2)),
    };
    let ledger = Rc::new(Ledger::new(KEYS, WORKLOAD.value_bytes));
    let target = engine.target(level, Reads::Linearizable);
    let measured = load::run(ledger.clone(), target.clone(), WORKLOAD, Pace::Closed { clients }, WINDOW, 1).await;
    let verified = verify_each(&ledger, &*target.leader[0]).await?;
    let promise = engine.guarantees(level).acknowledged;
    engine.stop().await?;
    Ok((measured, verified.lost + verified.foreign, promise))
}
