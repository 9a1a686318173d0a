//! Suites: which cases are run, and in which order. Cases of one engine stand side by side, so that it is started once in
//! each round; the rounds go through all engines in turn, so that a machine that changes meanwhile changes for all of them.

use std::fmt;
use std::time::Duration;

use replikit_core::WriteLevel;

use crate::engine::baseline::Architecture;
use crate::engine::{Askers, EngineKind, Partitions, Placed, Sizes, Sync};
use crate::fault::{Fault, FaultRun};
use crate::load::{Pace, Reads, Window};
use crate::partitioning::{self, PartitioningRun};
use crate::replication::{Disturbance, Lists, Replication};
use crate::slow_down::SlowDown;
use crate::table::count;
use crate::workload::{Spread, Workload};

/// Size of a value unless a case says otherwise.
pub const VALUE_BYTES: usize = 256;
/// Size of the large values.
pub const VALUE_BYTES_LARGE: usize = 4 << 10;

/// A named set of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SuiteName {
    /// Ends within a minute: shows that everything runs.
    Smoke,
    /// Ends within five minutes: figures to compare.
    Default,
    /// The cases of the default suite, each longer and more often; takes about half an hour.
    All,
    /// Few cases, to compare two builds of the same sources.
    Gate,
    /// Routes, plans, handoffs, pages and many groups of a partitioned store, and what routing costs; takes three minutes.
    Partitioning,
    /// Reads and writes of one, 64 and 256 clients at quorums of every size, keys that are compared and set, and a node that
    /// crashes or is slow; takes four minutes.
    Leaderless,
}

/// Clients whose closed loop says what an open one can ask for.
pub const SWEEP_CLIENTS: u32 = 64;
/// The rates of a sweep, in percent of what the closed loop reached in the same round.
pub const SWEEP_SHARES: [u32; 4] = [30, 60, 80, 95];
/// What a sweep looks for: the highest rate with 99 in a hundred requests within this time.
pub const OBJECTIVE: Duration = Duration::from_millis(10);

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// On what.
    pub engine: EngineKind,
    /// When a write counts as done.
    pub write_level: WriteLevel,
    /// How reads are done.
    pub reads: Reads,
    /// What clients do.
    pub workload: Workload,
    /// How fast.
    pub pace: Pace,
    /// For how long.
    pub window: Window,
}

/// What a suite runs.
#[derive(Clone, Debug)]
pub struct Suite {
    /// How often the cases are measured, at least 1.
    pub rounds: u32,
    /// Measurements, those of one engine side by side.
    pub cases: Vec<Case>,
    /// Rates that are swept in an open loop behind the cases of the same engine; the pace is that of the reference.
    pub sweeps: Vec<Case>,
    /// Writers that get in each other's way.
    pub replications: Vec<Replication>,
    /// What only a partitioned store does.
    pub partitioning: Vec<PartitioningRun>,
    /// Fault runs.
    pub faults: Vec<FaultRun>,
    /// Planted in all cases and sweeps.
    pub slow_down: Option<SlowDown>,
    /// Measured by each probe of the machine.
    pub probe: Duration,
}

impl Case {
    /// When a write is acknowledged, in a word.
    #[must_use]
    pub fn mode(&self) -> String {
        match self.engine {
            EngineKind::SingleLeader
            | EngineKind::MultiLeader
            | EngineKind::Partitioned(_)
            | EngineKind::Placed(..) => {
                format!("{:?}", self.write_level)
            }
            EngineKind::Leaderless(sizes) => {
                let (read, write) = sizes.sizes();
                format!("R {read}, W {write}, {:?}", self.write_level)
            }
            EngineKind::LeaderlessCas(Askers::One) => "one node asked".to_owned(),
            EngineKind::LeaderlessCas(Askers::All) => "all nodes asked".to_owned(),
            EngineKind::Baseline(_, Sync::Group) => "fdatasync".to_owned(),
            EngineKind::Baseline(_, Sync::Never) => "no sync".to_owned(),
        }
    }

    /// How reads are done, in words; empty for workloads without reads.
    #[must_use]
    pub const fn reads_shown(&self) -> &'static str {
        match self.reads {
            _ if self.workload.reads_percent == 0 => "",
            Reads::Linearizable => "linearizable",
            Reads::Session => "session, any replica",
            Reads::Local => "local, any replica",
            Reads::Quorum | Reads::QuorumOfFewer => "quorum, through any replica",
        }
    }

    /// How many clients, or at which rate.
    #[must_use]
    pub fn pace_shown(&self) -> String {
        match self.pace {
            Pace::Closed { clients } => clients.to_string(),
            Pace::Open { rate } => format!("{rate}/s"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.load())?;
        match self.pace {
            Pace::Closed { clients: 1 } => f.write_str(", 1 client"),
            Pace::Closed { clients } => write!(f, ", {clients} clients"),
            Pace::Open { rate } => write!(f, ", open loop at {rate}/s"),
        }
    }
}

impl Case {
    /// What is done to what, without the pace.
    #[must_use]
    pub fn load(&self) -> String {
        let reads = match self.reads_shown() {
            "" => String::new(),
            reads => format!(", reads {reads}"),
        };
        format!("{}, {}: {}{reads}", self.engine, self.mode(), self.workload_shown())
    }

    /// The workload, with the number of keys.
    #[must_use]
    pub fn workload_shown(&self) -> String {
        match self.workload.keys {
            1 => self.workload.to_string(),
            keys => format!("{}, {} keys", self.workload, count(f64::from(keys))),
        }
    }

    /// How a rate of a sweep is called: the same in each round, though the rate is not.
    #[must_use]
    pub fn sweep_name(&self, share: u32) -> String {
        format!("{}, open loop at {share} % of what {SWEEP_CLIENTS} clients reach", self.load())
    }
}

/// What a run may ask for beside the name of a suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Length of the measured windows.
    pub measured: Option<Duration>,
    /// How often the cases are measured.
    pub rounds: Option<u32>,
}

impl Suite {
    /// The suite of this name; what was asked for replaces its own.
    #[must_use]
    pub fn new(name: SuiteName, asked: Asked) -> Self {
        let (keys, rounds, window, probe) = match name {
            SuiteName::Smoke => (5_000, 1, [200, 500], 50),
            SuiteName::Default => (20_000, 3, [200, 500], 200),
            SuiteName::All => (100_000, 5, [700, 2_500], 400),
            SuiteName::Gate => (5_000, 1, [200, 700], 50),
            SuiteName::Partitioning => (20_000, 3, [200, 700], 100),
            SuiteName::Leaderless => (20_000, 3, [200, 700], 100),
        };
        let [warm_up, default_measured] = window.map(Duration::from_millis);
        let window = Window { warm_up, measured: asked.measured.unwrap_or(default_measured) };
        let (cases, sweeps, faults) = match name {
            SuiteName::Smoke => (smoke(keys), Vec::new(), vec![Fault::LeaderCrash]),
            SuiteName::Default | SuiteName::All => {
                (default(keys), sweeps(keys), vec![Fault::LeaderCrash, Fault::LeaderPause])
            }
            SuiteName::Gate => (gate(keys), Vec::new(), Vec::new()),
            SuiteName::Partitioning => (partitioned(keys), Vec::new(), Vec::new()),
            SuiteName::Leaderless => (leaderless(keys), Vec::new(), vec![Fault::Crash, Fault::SlowReplica]),
        };
        let timed = |cases: Vec<Case>, window| cases.into_iter().map(|case| Case { window, ..case }).collect();
        let sweep_window = Window { warm_up: window.warm_up / 2, measured: window.measured.mul_f64(0.7) };
        let replication = |level, disturbance, millis| Replication {
            level,
            lists: Lists::Siblings,
            disturbance,
            measured: asked.measured.unwrap_or(Duration::from_millis(millis)),
        };
        let replications = match name {
            SuiteName::Smoke => vec![replication(WriteLevel::LeaderDisk, Disturbance::Kill, 1_000)],
            SuiteName::Default | SuiteName::All => vec![
                replication(WriteLevel::LeaderDisk, Disturbance::None, 1_000),
                Replication { lists: Lists::Newest, ..replication(WriteLevel::LeaderDisk, Disturbance::None, 1_000) },
                replication(WriteLevel::Quorum, Disturbance::None, 1_000),
                replication(WriteLevel::LeaderDisk, Disturbance::Kill, 2_000),
            ],
            SuiteName::Gate | SuiteName::Partitioning | SuiteName::Leaderless => Vec::new(),
        };
        let struck = match name {
            SuiteName::Leaderless => EngineKind::Leaderless(Sizes::Majorities),
            _ => EngineKind::SingleLeader,
        };
        let partitioning = match name {
            SuiteName::Partitioning => partitioning::ALL.to_vec(),
            _ => Vec::new(),
        };
        Self {
            rounds: asked.rounds.unwrap_or(rounds),
            cases: timed(cases, window),
            sweeps: timed(sweeps, sweep_window),
            replications,
            partitioning,
            faults: faults.into_iter().map(|fault| FaultRun::new(struck, fault)).collect(),
            slow_down: None,
            probe: Duration::from_millis(probe),
        }
    }

    /// Keeps the cases of this engine whose description contains `only`, and likewise the sweeps and fault runs.
    pub fn keep(&mut self, engine: Option<&str>, only: Option<&str>) {
        let engine_fits = |name: &str| engine.is_none_or(|engine| engine == name);
        let text_fits = |text: &str| only.is_none_or(|only| text.contains(only));
        self.cases.retain(|case| engine_fits(case.engine.name()) && text_fits(&case.to_string()));
        self.sweeps.retain(|sweep| engine_fits(sweep.engine.name()) && text_fits(&sweep.sweep_name(SWEEP_SHARES[0])));
        // A sweep needs the rate of its closed loop.
        let cases = &self.cases;
        self.sweeps.retain(|sweep| cases.iter().any(|case| sweep.is_swept_behind(case)));
        self.replications.retain(|run| engine_fits(EngineKind::MultiLeader.name()) && text_fits(&run.to_string()));
        self.partitioning.retain(|run| engine_fits("partitioned") && text_fits(&run.to_string()));
        self.faults.retain(|run| engine_fits(run.engine.name()) && text_fits(&run.to_string()));
    }

    /// Slows all loads down on purpose, and leaves out everything else: it would not be slower, and seem to be compared.
    pub fn plant(&mut self, slow_down: SlowDown) {
        self.slow_down = Some(slow_down);
        self.replications.clear();
        self.partitioning.clear();
        self.faults.clear();
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cases.is_empty() && self.replications.is_empty() && self.partitioning.is_empty() && self.faults.is_empty()
    }

    /// How many things are measured.
    #[must_use]
    pub fn steps(&self) -> usize {
        let swept = self.sweeps.len() * SWEEP_SHARES.len();
        let once = self.replications.len() + self.partitioning.len() + self.faults.len();
        self.rounds as usize * (self.cases.len() + swept) + once
    }

    /// How long the suite takes, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let cases = self.cases.iter().map(Case::estimate).sum::<Duration>();
        let sweeps = self.sweeps.iter().map(Case::estimate).sum::<Duration>() * SWEEP_SHARES.len() as u32;
        let deployments = self.cases.chunk_by(|one, next| one.engine == next.engine);
        let starts = deployments.map(|cases| start_estimate(cases[0].engine)).sum::<Duration>();
        let faults = self.faults.iter().map(|fault| fault.estimate()).sum::<Duration>();
        let replications = self.replications.iter().map(|run| run.estimate()).sum::<Duration>();
        let partitioning = self.partitioning.iter().map(PartitioningRun::estimate).sum::<Duration>();
        self.rounds * (cases + sweeps + starts) + replications + partitioning + faults + 8 * self.probe
    }
}

/// Starting, loading the data, stopping, and the probes before and after.
fn start_estimate(engine: EngineKind) -> Duration {
    Duration::from_millis(if engine.is_baseline() { 400 } else { 1_700 })
}

impl Case {
    /// How long the case takes, about: reading back included.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        self.window.warm_up + self.window.measured + Duration::from_millis(200)
    }

    /// Whether this is a sweep, and that the closed loop which says what to ask for.
    #[must_use]
    pub fn is_swept_behind(&self, closed: &Self) -> bool {
        let same = |one: &Self| (one.engine, one.write_level, one.reads, one.workload, one.pace);
        same(self) == same(closed)
    }
}

const UNSET: Window = Window { warm_up: Duration::ZERO, measured: Duration::ZERO };

/// A case with 256 B values and linearizable reads.
const fn case(
    engine: EngineKind,
    write_level: WriteLevel,
    reads_percent: u8,
    spread: Spread,
    keys: u32,
    clients: u32,
) -> Case {
    let workload = Workload { reads_percent, spread, keys, value_bytes: VALUE_BYTES };
    let pace = Pace::Closed { clients };
    Case { engine, write_level, reads: Reads::Linearizable, workload, pace, window: UNSET }
}

/// Quorum writes and quorum reads.
const fn quorums(sizes: Sizes, reads_percent: u8, spread: Spread, keys: u32, clients: u32) -> Case {
    let mut case = case(EngineKind::Leaderless(sizes), WriteLevel::Quorum, reads_percent, spread, keys, clients);
    case.reads = match sizes {
        Sizes::Majorities | Sizes::WriteAll => Reads::Quorum,
        Sizes::One => Reads::QuorumOfFewer,
    };
    case
}

/// Changes by consensus on each key, and linearizable reads.
const fn agreed(askers: Askers, reads_percent: u8, keys: u32, clients: u32) -> Case {
    let kind = EngineKind::LeaderlessCas(askers);
    case(kind, WriteLevel::Quorum, reads_percent, Spread::Uniform, keys, clients)
}

/// So many that a proposer keeps the promises for all of them.
const AGREED_KEYS: u32 = 2_000;

fn baseline(architecture: Architecture, sync: Sync, reads: u8, keys: u32, clients: u32) -> Case {
    let level = match sync {
        Sync::Group => WriteLevel::LeaderDisk,
        Sync::Never => WriteLevel::Memory,
    };
    case(EngineKind::Baseline(architecture, sync), level, reads, Spread::Uniform, keys, clients)
}

fn smoke(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader};
    use Spread::{Uniform, Zipf};
    use WriteLevel::{LeaderDisk, Memory, Quorum};
    let replicated = |level, reads, spread, clients| case(SingleLeader, level, reads, spread, keys, clients);
    let plain = |architecture, sync, clients| baseline(architecture, sync, 0, keys, clients);
    vec![
        replicated(Quorum, 0, Uniform, 1),
        replicated(Quorum, 0, Uniform, 64),
        replicated(Quorum, 50, Zipf, 64),
        Case { reads: Reads::Local, ..replicated(Quorum, 95, Uniform, 64) },
        Case { pace: Pace::Open { rate: 5_000 }, ..replicated(Quorum, 0, Uniform, 0) },
        replicated(LeaderDisk, 0, Uniform, 64),
        replicated(Memory, 0, Uniform, 64),
        case(MultiLeader, LeaderDisk, 0, Uniform, keys, 1),
        Case { reads: Reads::Local, ..case(MultiLeader, LeaderDisk, 50, Zipf, keys, 64) },
        quorums(Sizes::Majorities, 50, Zipf, keys, 64),
        agreed(Askers::One, 0, AGREED_KEYS, 1),
        case(EngineKind::Partitioned(Partitions::Sixteen), Quorum, 50, Zipf, keys, 64),
        plain(Architecture::SingleThread, Sync::Group, 1),
        plain(Architecture::SingleThread, Sync::Group, 64),
        plain(Architecture::SingleThread, Sync::Never, 64),
        plain(Architecture::SharedMemory, Sync::Group, 64),
        plain(Architecture::SharedDisk, Sync::Group, 64),
    ]
}

/// Numbers of keys of the conflict curve, beside all of them: the fewer, the more often two writers meet.
const HOT_KEYS: [u32; 3] = [100, 1_000, 10_000];

fn default(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader};
    use Spread::{Uniform, Zipf};
    use WriteLevel::{LeaderDisk, Memory, Quorum};
    let replicated = |level, reads, spread, clients| case(SingleLeader, level, reads, spread, keys, clients);
    let mut cases = Vec::new();
    for clients in [1, 64, 256] {
        cases.push(replicated(Quorum, 0, Uniform, clients));
    }
    let large = Workload { reads_percent: 0, spread: Uniform, keys, value_bytes: VALUE_BYTES_LARGE };
    cases.push(Case { workload: large, ..replicated(Quorum, 0, Uniform, 64) });
    cases.push(replicated(Quorum, 50, Zipf, 64));
    for reads in [Reads::Linearizable, Reads::Session, Reads::Local] {
        cases.push(Case { reads, ..replicated(Quorum, 95, Uniform, 64) });
    }
    for level in [LeaderDisk, Memory] {
        for clients in [1, 64] {
            cases.push(replicated(level, 0, Uniform, clients));
        }
    }
    for clients in [1, 64, 256] {
        cases.push(case(MultiLeader, LeaderDisk, 0, Uniform, keys, clients));
    }
    cases.extend(HOT_KEYS.map(|hot| case(MultiLeader, LeaderDisk, 0, Uniform, hot, 64)));
    for percent in [50, 95] {
        let spread = if percent == 50 { Zipf } else { Uniform };
        cases.push(Case { reads: Reads::Local, ..case(MultiLeader, LeaderDisk, percent, spread, keys, 64) });
    }
    for clients in [1, 64] {
        cases.push(case(MultiLeader, Quorum, 0, Uniform, keys, clients));
    }
    for sizes in [Sizes::Majorities, Sizes::One, Sizes::WriteAll] {
        for clients in [1, 64] {
            cases.push(quorums(sizes, 0, Uniform, keys, clients));
        }
        if sizes == Sizes::Majorities {
            cases.extend(HOT_KEYS.map(|hot| quorums(sizes, 0, Uniform, hot, 64)));
            cases.push(quorums(sizes, 95, Uniform, keys, 64));
        }
        cases.push(quorums(sizes, 50, Zipf, keys, 64));
    }
    for clients in [1, 64] {
        cases.push(agreed(Askers::One, 0, AGREED_KEYS, clients));
    }
    cases.push(agreed(Askers::One, 50, AGREED_KEYS, 64));
    for clients in [1, 64] {
        cases.push(agreed(Askers::All, 0, 1, clients));
    }
    for clients in [1, 64] {
        cases.push(case(EngineKind::Partitioned(Partitions::Sixteen), Quorum, 0, Uniform, keys, clients));
    }
    cases.push(case(EngineKind::Partitioned(Partitions::Sixteen), Quorum, 95, Uniform, keys, 64));
    for architecture in [Architecture::SingleThread, Architecture::SharedMemory, Architecture::SharedDisk] {
        for clients in [1, 64] {
            cases.push(baseline(architecture, Sync::Group, 0, keys, clients));
        }
        if architecture == Architecture::SingleThread {
            cases.push(baseline(architecture, Sync::Group, 0, keys, 256));
        }
        cases.push(baseline(architecture, Sync::Group, 95, keys, 64));
        cases.push(baseline(architecture, Sync::Never, 0, keys, 64));
    }
    cases
}

/// Writes of each strategy at its usual level, and of one thread.
fn sweeps(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader};
    use WriteLevel::{LeaderDisk, Quorum};
    let writes = |engine, level| case(engine, level, 0, Spread::Uniform, keys, SWEEP_CLIENTS);
    vec![
        writes(SingleLeader, Quorum),
        writes(MultiLeader, LeaderDisk),
        quorums(Sizes::Majorities, 0, Spread::Uniform, keys, SWEEP_CLIENTS),
        agreed(Askers::One, 0, AGREED_KEYS, SWEEP_CLIENTS),
        baseline(Architecture::SingleThread, Sync::Group, 0, keys, SWEEP_CLIENTS),
    ]
}

/// Writes and reads with one order of all writes, through one partition, and through several; and through several of groups of the other
/// kinds.
fn partitioned(keys: u32) -> Vec<Case> {
    let one = EngineKind::Partitioned(Partitions::One);
    let several = EngineKind::Partitioned(Partitions::Sixteen);
    let mut cases = Vec::new();
    for engine in [EngineKind::SingleLeader, one, several] {
        for clients in [1, 64, 256] {
            cases.push(case(engine, WriteLevel::Quorum, 0, Spread::Uniform, keys, clients));
        }
        cases.push(case(engine, WriteLevel::Quorum, 95, Spread::Uniform, keys, 64));
    }
    for (placed, reads) in [(Placed::Leaderless, Reads::Quorum), (Placed::MultiLeader, Reads::Local)] {
        let engine = EngineKind::Placed(placed, Partitions::Sixteen);
        for clients in [1, 64, 256] {
            cases.push(case(engine, WriteLevel::Quorum, 0, Spread::Uniform, keys, clients));
        }
        cases.push(Case { reads, ..case(engine, WriteLevel::Quorum, 95, Spread::Uniform, keys, 64) });
    }
    cases
}

/// Writes and reads by quorums of every size, and beside them one thread and keys that are compared and set.
fn leaderless(keys: u32) -> Vec<Case> {
    let mut cases = Vec::new();
    for sizes in [Sizes::Majorities, Sizes::One, Sizes::WriteAll] {
        for reads_percent in [0, 100] {
            for clients in [1, 64, 256] {
                cases.push(quorums(sizes, reads_percent, Spread::Uniform, keys, clients));
            }
        }
    }
    for reads_percent in [0, 100] {
        for clients in [1, 64] {
            cases.push(agreed(Askers::One, reads_percent, AGREED_KEYS, clients));
        }
    }
    cases.push(baseline(Architecture::SingleThread, Sync::Group, 0, keys, 1));
    cases
}

/// One case for each path that a change may slow down.
fn gate(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader};
    use Spread::{Uniform, Zipf};
    use WriteLevel::{LeaderDisk, Quorum};
    vec![
        case(SingleLeader, Quorum, 0, Uniform, keys, 1),
        case(SingleLeader, Quorum, 0, Uniform, keys, 64),
        case(SingleLeader, Quorum, 95, Uniform, keys, 64),
        case(MultiLeader, LeaderDisk, 0, Uniform, keys, 64),
        quorums(Sizes::Majorities, 50, Zipf, keys, 64),
        agreed(Askers::One, 0, AGREED_KEYS, 64),
        case(EngineKind::Partitioned(Partitions::Sixteen), Quorum, 0, Uniform, keys, 64),
        baseline(Architecture::SingleThread, Sync::Group, 0, keys, 64),
        baseline(Architecture::SingleThread, Sync::Never, 0, keys, 64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_keep_their_time() {
        assert!(Suite::new(SuiteName::Smoke, Asked::default()).estimate() < Duration::from_secs(50));
        assert!(Suite::new(SuiteName::Default, Asked::default()).estimate() < Duration::from_secs(285));
    }

    #[test]
    fn an_engine_is_started_once() {
        for name in <SuiteName as clap::ValueEnum>::value_variants() {
            let suite = Suite::new(*name, Asked::default());
            let mut engines: Vec<_> = suite.cases.iter().map(|case| case.engine).collect();
            engines.dedup();
            for (at, engine) in engines.iter().enumerate() {
                assert!(!engines[..at].contains(engine), "{engine} is started twice in {name:?}");
            }
        }
    }

    #[test]
    fn every_sweep_has_the_closed_loop_that_it_is_measured_against() {
        let suite = Suite::new(SuiteName::Default, Asked::default());
        assert!(!suite.sweeps.is_empty());
        for sweep in &suite.sweeps {
            assert!(suite.cases.iter().any(|case| sweep.is_swept_behind(case)), "{sweep}");
        }
    }

    #[test]
    fn cases_are_told_apart_by_their_description() {
        let suite = Suite::new(SuiteName::Default, Asked::default());
        let mut names: Vec<_> = suite.cases.iter().map(Case::to_string).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_selection_keeps_what_fits_both() {
        let mut suite = Suite::new(SuiteName::Default, Asked::default());
        suite.keep(Some("single-thread"), Some("64 clients"));
        assert!(suite.faults.is_empty());
        assert!(!suite.cases.is_empty());
        assert!(suite.cases.iter().all(|case| case.to_string().contains("64 clients")));
    }
}
