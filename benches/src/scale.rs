//! The scale-out *model*: one to nine simulated nodes, each with the processor and the disk that this machine was measured to
//! have in the same run, and how many of them it takes to beat one thread.
//!
//! What is measured: what the processors of three real nodes do for a write, what an fdatasync takes, and what one thread on
//! one core serves. What is modelled: everything else. A node is one core; what it does for an input is the measured work
//! spread evenly over the inputs that the simulated replicas handle for a write.
//!
//! Source: COST, McSherry, Isard and Murray, HotOS 2015: the configuration that outperforms a single thread.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use replikit_core::WriteLevel;

use crate::engine::baseline::Architecture;
use crate::engine::nodes::Nodes;
use crate::engine::{Engine, EngineKind, Sizes, Sync};
use crate::error::BenchError;
use crate::fault::Fault;
use crate::figure::{Better, Figure, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Pace, Reads, Window};
use crate::network::Network;
use crate::place::Place;
use crate::probe::{Effort, Probes};
use crate::record::{Kind, Line, Record};
use crate::simulated::{Budget, Freshness, Setup, Simulated, Simulation, Strategy};
use crate::table::{Side, Table, count};
use crate::workload::keys::KeySpread;
use crate::workload::mix::{Mix, Operation, Updates};
use crate::workload::trace::Trace;
use crate::workload::{Spread, Workload};

/// Clients of the calibration, and for each node of the model.
const CLIENTS: u32 = 64;
const KEYS: u32 = 10_000;
const VALUE_BYTES: usize = 256;
const STEPS: usize = 40_000;
/// How long a modelled cluster is under load.
const LASTS: Duration = Duration::from_millis(150);
const SIZES: [(u32, &str); 5] = [(1, "1 node"), (3, "3 nodes"), (5, "5 nodes"), (7, "7 nodes"), (9, "9 nodes")];
const WINDOW: Window = Window { warm_up: Duration::from_millis(500), measured: Duration::from_millis(1_500) };

/// What this machine was measured to do.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    /// What the processors of all three nodes do for a write together.
    pub work_per_write: Duration,
    /// Inputs that simulated replicas handle for a write.
    pub inputs_per_write: f64,
    /// An fdatasync beside two others.
    pub sync: Duration,
    /// Writes and reads a second of one thread that syncs before it answers.
    pub one_thread: [f64; 2],
}

impl Calibration {
    /// What the modelled nodes are made of.
    #[must_use]
    pub fn budget(&self) -> Budget {
        let per_input = self.work_per_write.div_f64(self.inputs_per_write.max(1e-9));
        Budget { per_input, per_round: Duration::ZERO, sync: self.sync }
    }
}

/// The model of a cluster of some size.
#[derive(Clone, Debug)]
pub struct Modelled {
    /// What is modelled.
    pub setup: Setup,
    /// How many nodes, each one core.
    pub nodes: u32,
    /// Operations a second.
    pub per_second: f64,
    /// Whether they write.
    pub writes: bool,
}

fn mix(operation: Operation, nodes: u32) -> Mix {
    Mix {
        name: operation.to_string(),
        weights: vec![(operation, 1)],
        keys: KEYS,
        spread: KeySpread::Uniform,
        value_bytes: (VALUE_BYTES as u32, VALUE_BYTES as u32),
        scan_keys: 1,
        clients: CLIENTS * nodes,
        updates: Updates::Put,
    }
}

/// A LAN of so many nodes.
fn network(nodes: u32) -> Network {
    let mut lan = Network::built_in("lan").expect("it is built in");
    lan.nodes = vec![0; nodes as usize];
    lan
}

/// Models one size.
///
/// # Errors
/// When the simulated run has no result.
pub fn model(
    setup: &Setup,
    nodes: u32,
    operation: Operation,
    budget: Budget,
    seed: u64,
) -> Result<Simulated, BenchError> {
    let simulation = Simulation {
        setup: setup.clone(),
        network: network(nodes),
        fault: Fault::None,
        trace: Rc::new(Trace::draw(&mix(operation, nodes), seed, STEPS)),
        updates: Updates::Put,
        think: Duration::ZERO,
        lasts: LASTS,
        budget,
        seed,
    };
    simulation.run().map_err(|error| BenchError::Usage(error.to_string()))
}

/// The setups that are modelled.
#[must_use]
pub fn setups() -> Vec<Setup> {
    let of = |strategy, write_level, freshness| Setup { strategy, write_level, freshness };
    vec![
        of(Strategy::SingleLeader, WriteLevel::Quorum, Freshness::Linearizable),
        of(Strategy::SingleLeader, WriteLevel::Quorum, Freshness::Local),
        of(Strategy::MultiLeader, WriteLevel::LeaderDisk, Freshness::Local),
        of(Strategy::Leaderless(Sizes::Majorities), WriteLevel::Quorum, Freshness::Quorum),
    ]
}

/// Measures what the model is made of.
///
/// # Errors
/// When an engine does not start or the machine refuses.
pub async fn calibrate(folder: &Path, seed: u64) -> Result<Calibration, BenchError> {
    let effort = Effort { per_probe: Duration::from_millis(200) };
    let probes = Probes::take(folder, effort).map_err(BenchError::io("probing the machine"))?;
    let write_only = Workload { reads_percent: 0, spread: Spread::Uniform, keys: KEYS, value_bytes: VALUE_BYTES };
    let pace = Pace::Closed { clients: CLIENTS };

    let cluster = EngineKind::SingleLeader.start(&folder.join("cluster")).await?;
    let target = cluster.target(WriteLevel::Quorum, Reads::Linearizable);
    let ledger = Rc::new(Ledger::new(KEYS, VALUE_BYTES));
    let before = worked(&*cluster)?;
    let measured = load::run(ledger, target, write_only, pace, WINDOW, seed).await;
    let work = worked(&*cluster)?.saturating_sub(before);
    cluster.stop().await?;
    let work_per_write = work.div_f64(measured.writes_ever.max(1) as f64);

    let thread = EngineKind::Baseline(Architecture::SingleThread, Sync::Group).start(&folder.join("thread")).await?;
    let mut one_thread = [0.0; 2];
    for (reads_percent, rate) in [(0, 0), (100, 1)] {
        let workload = Workload { reads_percent, ..write_only };
        let target = thread.target(WriteLevel::LeaderDisk, Reads::Linearizable);
        let ledger = Rc::new(Ledger::new(KEYS, VALUE_BYTES));
        one_thread[rate] = load::run(ledger, target, workload, pace, WINDOW, seed).await.throughput();
    }
    thread.stop().await?;

    // Batches depend on how busy a node is: the number of inputs is that of nodes which are as busy as the real ones.
    let sync = probes.sync_three.quantile(0.5);
    let guess = Budget { per_input: Duration::from_micros(1), per_round: Duration::ZERO, sync };
    let simulated = model(&setups()[0], 3, Operation::Update, guess, seed)?;
    let inputs_per_write = simulated.inputs as f64 / simulated.served.max(1) as f64;
    Ok(Calibration { work_per_write, inputs_per_write, sync, one_thread })
}

fn worked(engine: &dyn Engine) -> Result<Duration, BenchError> {
    engine.nodes().map_or(Ok(Duration::ZERO), Nodes::processor_time)
}

/// Models how clusters of one to nine nodes scale.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What everything random comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the results go, instead of a new folder below target/bench.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the task.
///
/// # Errors
/// When the machine refuses, or a simulated run has no result.
pub fn run(arguments: &Arguments) -> Result<ExitCode, BenchError> {
    let place = Place::create(arguments.out.clone())?;
    let mut results = place.results(arguments.seed, "scale", 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the load generator"))?;
    let calibration = runtime.block_on(calibrate(place.data.path(), arguments.seed))?;
    let budget = calibration.budget();
    let [writes, reads] = calibration.one_thread;
    println!(
        "MODEL, calibrated in this run: a write takes {:?} of the processors of three nodes, spread over {:.1} inputs, \
         {:?} each; an fdatasync takes {:?}; one thread serves {} writes/s and {} reads/s\n",
        calibration.work_per_write,
        calibration.inputs_per_write,
        budget.per_input,
        calibration.sync,
        count(writes),
        count(reads),
    );
    let mut heads = vec![("modelled, one core per node", Side::Left), ("", Side::Left)];
    heads.extend(SIZES.map(|(_, shown)| (shown, Side::Right)));
    heads.push(("cores to beat one thread", Side::Right));
    let mut table = Table::new(heads);
    for setup in setups() {
        for (operation, floor, unit) in [(Operation::Update, writes, "writes/s"), (Operation::Read, reads, "reads/s")] {
            let mut row = Vec::new();
            for (nodes, _) in SIZES {
                let simulated = model(&setup, nodes, operation, budget, arguments.seed)?;
                let per_second = simulated.per_second();
                row.push(Modelled { setup: setup.clone(), nodes, per_second, writes: operation.writes() });
                eprintln!("  model: {setup}, {nodes} nodes: {} {unit}", count(per_second));
            }
            let cores = row.iter().find(|modelled| modelled.per_second > floor).map(|modelled| modelled.nodes);
            let mut cells = vec![setup.to_string(), unit.to_owned()];
            cells.extend(row.iter().map(|modelled| count(modelled.per_second)));
            cells.push(cores.map_or_else(|| "never, up to 9".to_owned(), |cores| cores.to_string()));
            table.row("", cells);
            for modelled in &row {
                let name = format!("model of {}, {} nodes: {unit}", modelled.setup, modelled.nodes);
                let record = Record::of(Kind::Model, name, &[figure(modelled, unit)]).expect("there is a figure");
                results.write(Line::Measured(record)).map_err(BenchError::io("writing the results"))?;
            }
        }
    }
    println!("\n{}", table.render());
    println!("Every node holds everything: partitioning is not in this model.");
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(ExitCode::SUCCESS)
}

fn figure(modelled: &Modelled, unit: &str) -> Figure {
    let mut subject = Subject {
        engine: format!("model of {}", modelled.setup.strategy.engine().name()),
        workload: if modelled.writes { "writes" } else { "reads" }.to_owned(),
        clients: CLIENTS * modelled.nodes,
        ..Subject::default()
    };
    subject.settings.insert("setup".to_owned(), modelled.setup.to_string());
    subject.settings.insert("nodes".to_owned(), modelled.nodes.to_string());
    subject.figure(&format!("modelled {unit}"), modelled.per_second, "1/s", Better::Higher)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(per_input: Duration) -> Budget {
        Budget { per_input, per_round: Duration::ZERO, sync: Duration::from_micros(50) }
    }

    fn rate(setup: &Setup, nodes: u32, operation: Operation, per_input: Duration) -> f64 {
        model(setup, nodes, operation, budget(per_input), 1).expect("it has a result").per_second()
    }

    #[test]
    fn a_processor_that_is_half_as_fast_serves_less() {
        let setup = &setups()[0];
        let [fast, slow] = [20, 80].map(|micros| rate(setup, 1, Operation::Update, Duration::from_micros(micros)));
        assert!(fast > 2.0 * slow && slow > 0.0, "{fast} and {slow} writes/s");
    }

    #[test]
    fn local_reads_scale_with_the_nodes_and_writes_of_one_leader_do_not() {
        let setup = &setups()[1];
        let per_input = Duration::from_micros(50);
        let [one, three] = [1, 3].map(|nodes| rate(setup, nodes, Operation::Read, per_input));
        assert!(three > 2.0 * one, "{one} and {three} reads/s");
        let [one, three] = [1, 3].map(|nodes| rate(setup, nodes, Operation::Update, per_input));
        assert!(three < 1.5 * one, "{one} and {three} writes/s");
    }
}
