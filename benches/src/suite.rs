//! Suites: which cases are run. Cases of one engine stand side by side, so that it is started once.

use std::fmt;
use std::time::Duration;

use replikit_core::WriteLevel;

use crate::engine::{Askers, EngineKind, Sizes, Sync};
use crate::fault::Fault;
use crate::load::{Pace, Reads, Window};
use crate::replication::{Disturbance, Lists, Replication};
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
}

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
    /// Measurements, those of one engine side by side.
    pub cases: Vec<Case>,
    /// Writers that get in each other's way.
    pub replications: Vec<Replication>,
    /// Fault runs.
    pub faults: Vec<Fault>,
    /// Measured by each probe of the machine.
    pub probe: Duration,
}

impl Case {
    /// When a write is acknowledged, in a word.
    #[must_use]
    pub fn mode(&self) -> String {
        match self.engine {
            EngineKind::SingleLeader | EngineKind::MultiLeader => format!("{:?}", self.write_level),
            EngineKind::Leaderless(sizes) => {
                let (read, write) = sizes.sizes();
                format!("R {read}, W {write}, {:?}", self.write_level)
            }
            EngineKind::LeaderlessCas(Askers::One) => "one node asked".to_owned(),
            EngineKind::LeaderlessCas(Askers::All) => "all nodes asked".to_owned(),
            EngineKind::SingleThread(Sync::Group) => "fdatasync".to_owned(),
            EngineKind::SingleThread(Sync::Never) => "no sync".to_owned(),
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
        write!(f, "{}, {}: {}", self.engine, self.mode(), self.workload)?;
        match self.reads_shown() {
            "" => {}
            reads => write!(f, ", reads {reads}")?,
        }
        match self.pace {
            Pace::Closed { clients: 1 } => f.write_str(", 1 client"),
            Pace::Closed { clients } => write!(f, ", {clients} clients"),
            Pace::Open { rate } => write!(f, ", open loop at {rate}/s"),
        }
    }
}

impl Suite {
    /// The suite of this name; `measured` replaces the length of its windows.
    #[must_use]
    pub fn new(name: SuiteName, measured: Option<Duration>) -> Self {
        let (keys, window, probe) = match name {
            SuiteName::Smoke => (10_000, [300, 1_000], 100),
            SuiteName::Default => (100_000, [700, 2_500], 400),
        };
        let [warm_up, default_measured] = window.map(Duration::from_millis);
        let window = Window { warm_up, measured: measured.unwrap_or(default_measured) };
        let (cases, faults) = match name {
            SuiteName::Smoke => (smoke(keys), vec![Fault::Kill]),
            SuiteName::Default => (default(keys), vec![Fault::Kill, Fault::Freeze]),
        };
        let cases = cases.into_iter().map(|case| Case { window, ..case }).collect();
        let replication = |level, disturbance, seconds| Replication {
            level,
            lists: Lists::Siblings,
            disturbance,
            measured: measured.unwrap_or(Duration::from_millis(seconds)),
        };
        let replications = match name {
            SuiteName::Smoke => vec![replication(WriteLevel::LeaderDisk, Disturbance::Kill, 1_000)],
            SuiteName::Default => vec![
                replication(WriteLevel::LeaderDisk, Disturbance::None, 2_000),
                Replication { lists: Lists::Newest, ..replication(WriteLevel::LeaderDisk, Disturbance::None, 2_000) },
                replication(WriteLevel::Quorum, Disturbance::None, 2_000),
                replication(WriteLevel::LeaderDisk, Disturbance::Kill, 3_000),
            ],
        };
        Self { cases, replications, faults, probe: Duration::from_millis(probe) }
    }

    /// Keeps the cases of this engine whose description contains `only`, and likewise the fault runs.
    pub fn keep(&mut self, engine: Option<&str>, only: Option<&str>) {
        let engine_fits = |name: &str| engine.is_none_or(|engine| engine == name);
        let text_fits = |text: &str| only.is_none_or(|only| text.contains(only));
        self.cases.retain(|case| engine_fits(case.engine.name()) && text_fits(&case.to_string()));
        self.replications.retain(|run| engine_fits(EngineKind::MultiLeader.name()) && text_fits(&run.to_string()));
        self.faults.retain(|fault| engine_fits(EngineKind::SingleLeader.name()) && text_fits(&fault.to_string()));
    }

    /// How long the suite takes, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let cases = self.cases.iter().map(Case::estimate).sum::<Duration>();
        let faults = self.faults.iter().map(|fault| fault.estimate()).sum::<Duration>();
        let replications = self.replications.iter().map(|run| run.estimate()).sum::<Duration>();
        cases + replications + faults + 8 * self.probe
    }
}

impl Case {
    /// How long the case takes, about: reading back and a share of the engine's start included.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        self.window.warm_up + self.window.measured + Duration::from_millis(500)
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

fn smoke(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader, SingleThread};
    use Spread::{Uniform, Zipf};
    use WriteLevel::{LeaderDisk, Memory, Quorum};
    let replicated = |level, reads, spread, clients| case(SingleLeader, level, reads, spread, keys, clients);
    let baseline = |sync, level, clients| case(SingleThread(sync), level, 0, Uniform, keys, clients);
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
        baseline(Sync::Group, LeaderDisk, 1),
        baseline(Sync::Group, LeaderDisk, 64),
        baseline(Sync::Never, Memory, 64),
    ]
}

fn default(keys: u32) -> Vec<Case> {
    use EngineKind::{MultiLeader, SingleLeader, SingleThread};
    use Spread::{Uniform, Zipf};
    use WriteLevel::{LeaderDisk, Memory, Quorum};
    let replicated = |level, reads, spread, clients| case(SingleLeader, level, reads, spread, keys, clients);
    let mut cases = Vec::new();
    for clients in [1, 64, 256] {
        cases.push(replicated(Quorum, 0, Uniform, clients));
    }
    cases.push(replicated(Quorum, 0, Zipf, 64));
    let large = Workload { reads_percent: 0, spread: Uniform, keys, value_bytes: VALUE_BYTES_LARGE };
    cases.push(Case { workload: large, ..replicated(Quorum, 0, Uniform, 64) });
    cases.push(Case { pace: Pace::Open { rate: 20_000 }, ..replicated(Quorum, 0, Uniform, 0) });
    cases.push(replicated(Quorum, 50, Uniform, 64));
    for clients in [1, 64, 256] {
        cases.push(replicated(Quorum, 95, Uniform, clients));
    }
    cases.push(replicated(Quorum, 95, Zipf, 64));
    for reads in [Reads::Session, Reads::Local] {
        cases.push(Case { reads, ..replicated(Quorum, 95, Uniform, 64) });
    }
    for level in [LeaderDisk, Memory] {
        for clients in [1, 64, 256] {
            cases.push(replicated(level, 0, Uniform, clients));
        }
    }
    for clients in [1, 64, 256] {
        cases.push(case(MultiLeader, LeaderDisk, 0, Uniform, keys, clients));
    }
    cases.push(case(MultiLeader, LeaderDisk, 0, Zipf, keys, 64));
    cases.push(Case { reads: Reads::Local, ..case(MultiLeader, LeaderDisk, 95, Uniform, keys, 64) });
    for clients in [1, 64] {
        cases.push(case(MultiLeader, Quorum, 0, Uniform, keys, clients));
    }
    for sizes in [Sizes::Majorities, Sizes::One, Sizes::WriteAll] {
        for clients in [1, 64] {
            cases.push(quorums(sizes, 0, Uniform, keys, clients));
        }
        cases.push(quorums(sizes, 50, Zipf, keys, 64));
    }
    for clients in [1, 64] {
        cases.push(agreed(Askers::One, 0, AGREED_KEYS, clients));
    }
    cases.push(agreed(Askers::One, 50, AGREED_KEYS, 64));
    for clients in [1, 3, 64] {
        cases.push(agreed(Askers::All, 0, 1, clients));
    }
    for (sync, level) in [(Sync::Group, LeaderDisk), (Sync::Never, Memory)] {
        for clients in [1, 64, 256] {
            cases.push(case(SingleThread(sync), level, 0, Uniform, keys, clients));
        }
        cases.push(case(SingleThread(sync), level, 95, Uniform, keys, 64));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_keep_their_time() {
        assert!(Suite::new(SuiteName::Smoke, None).estimate() < Duration::from_secs(50));
        assert!(Suite::new(SuiteName::Default, None).estimate() < Duration::from_secs(240));
    }

    #[test]
    fn an_engine_is_started_once() {
        for name in [SuiteName::Smoke, SuiteName::Default] {
            let suite = Suite::new(name, None);
            let mut engines: Vec<_> = suite.cases.iter().map(|case| case.engine).collect();
            engines.dedup();
            for (at, engine) in engines.iter().enumerate() {
                assert!(!engines[..at].contains(engine), "{engine} is started twice in {name:?}");
            }
        }
    }

    #[test]
    fn cases_are_told_apart_by_their_description() {
        let suite = Suite::new(SuiteName::Default, None);
        let mut names: Vec<_> = suite.cases.iter().map(Case::to_string).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_selection_keeps_what_fits_both() {
        let mut suite = Suite::new(SuiteName::Default, None);
        suite.keep(Some("single-thread"), Some("64 clients"));
        assert!(suite.faults.is_empty());
        assert!(!suite.cases.is_empty());
        assert!(suite.cases.iter().all(|case| case.to_string().contains("64 clients")));
    }
}
