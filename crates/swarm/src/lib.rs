//! Every strategy under the simulator: its subjects with their clients and invariants, and the scenarios that run a seed of
//! each. `replikit-sim` knows replicas through core's traits only; what knows a strategy by name lives here.
//!
//! # What is run
//!
//! | scenario | what it is |
//! |---|---|
//! | `raft` | one group of single-leader replication on the storage model |
//! | `raft-groups` | several such groups in one container, which sleep when nothing happens |
//! | `multi-leader` | one multi-leader group on the storage model |
//! | `leaderless` | one leaderless group on the storage model |
//! | `leaderless-owners` | one whose owners change, on the storage model only |
//! | `leaderless-hints` | one with nodes that stand in for owners, which change in every third run, on the storage model only |
//! | `leaderless-rot` | one of whose disks one rots behind every checksum, on the storage model only |
//! | `partitioned` | a store of several such groups: splits, merges and handoffs, clients whose routes go stale |
//! | `placed` | a store of leaderless groups, which an operator places on other nodes, by a map that a group of its own keeps |
//! | `placed-leaders` | the same of multi-leader groups |
//! | `register`, `register-groups` | the majority-quorum register of `replikit-sim`, a second subject of every feature |
//! | each with `-log` | the same on the real log, on disks that lose power, and for half of the seeds do worse |
//!
//! The program: `cargo xtask sim --help`.
#![forbid(unsafe_code)]

pub mod coverage;
mod crowd;
pub mod groups;
#[cfg(test)]
mod guarantees;
pub mod leaderless;
mod many;
pub mod multi;
#[cfg(test)]
mod page;
pub mod partitioned;
pub mod placed;
mod plan;
mod probe;
pub mod raft;
pub mod register;
mod run;
mod shrink;
pub mod sleep;
mod writes;

pub use many::{LONG_RUN, Many, RECHECK_EVERY, Together, run as run_many};
pub use plan::{Plan, SWITCHES, Switch};
pub use probe::{Probe, Probes};
pub use run::{Failure, Run, Telling, say};
pub use shrink::shrink;

use placed::{OfLeaderless, OfLeaders};
use replikit_sim::{Fault, LogStorage, ModelStorage};

/// Runs one plan of a scenario.
pub type Scenario = fn(&Plan, Telling) -> Result<Run, Box<Failure>>;

/// Every scenario on the storage model and, under a name with `-log`, on the real log; first a mixture of them by seed.
pub const SCENARIOS: [(&str, Scenario); 22] = [
    ("all", all),
    ("raft", raft::run::<ModelStorage>),
    ("raft-log", raft::run::<LogStorage>),
    ("raft-groups", groups::rafts::<ModelStorage>),
    ("raft-groups-log", groups::rafts::<LogStorage>),
    ("multi-leader", multi::run::<ModelStorage>),
    ("multi-leader-log", multi::run::<LogStorage>),
    ("register", register::run::<ModelStorage>),
    ("register-log", register::run::<LogStorage>),
    ("register-groups", groups::registers::<ModelStorage>),
    ("register-groups-log", groups::registers::<LogStorage>),
    ("leaderless", leaderless::run::<ModelStorage>),
    ("leaderless-log", leaderless::run::<LogStorage>),
    ("partitioned", partitioned::run::<ModelStorage>),
    ("partitioned-log", partitioned::run::<LogStorage>),
    ("leaderless-hints", leaderless::hints::run::<ModelStorage>),
    ("leaderless-owners", leaderless::run_with_changes::<ModelStorage>),
    ("leaderless-rot", leaderless::rot::run::<ModelStorage>),
    ("placed", placed::run::<OfLeaderless, ModelStorage>),
    ("placed-log", placed::run::<OfLeaderless, LogStorage>),
    ("placed-leaders", placed::run::<OfLeaders, ModelStorage>),
    ("placed-leaders-log", placed::run::<OfLeaders, LogStorage>),
];

/// A quarter of the seeds on the standard scenario, the rest on the others.
fn all(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    const TURNS: [usize; 30] =
        [1, 2, 5, 3, 1, 6, 13, 1, 4, 16, 1, 7, 5, 13, 2, 1, 8, 1, 14, 11, 10, 1, 12, 11, 15, 5, 17, 18, 20, 21];
    SCENARIOS[TURNS[plan.seed as usize % TURNS.len()]].1(plan, telling)
}

/// The scenario of this name.
///
/// # Errors
/// A sentence that names all scenarios.
pub fn scenario(name: &str) -> Result<Scenario, String> {
    SCENARIOS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run).ok_or_else(|| {
        let known: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
        format!("{name}: no such scenario; known are {}", known.join(", "))
    })
}

/// Seeds whose fingerprints are compared between builds.
pub const TRACED_SEEDS: core::ops::Range<u64> = 0..8;

/// Runs a plan; a panic is a violation too.
///
/// # Errors
/// The first violation.
pub fn play(scenario: Scenario, plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    std::panic::catch_unwind(|| scenario(plan, telling)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned();
        Err(Box::new(Failure { plan: plan.clone(), invariant: "no_panic".to_owned(), what, chronicle: None }))
    })
}

/// Faults that a scenario cannot meet: those of the real log, and those of requests that a strategy does not have.
#[must_use]
pub fn unreachable_faults(scenario: &str) -> Vec<Fault> {
    match scenario {
        "all" | "raft-log" => Vec::new(),
        "raft" => Fault::OF_THE_DISK.to_vec(),
        "multi-leader" | "leaderless" => [multi::UNMET_FAULTS, Fault::OF_THE_DISK].concat(),
        "multi-leader-log" | "leaderless-log" => multi::UNMET_FAULTS.to_vec(),
        _ => Fault::ALL.to_vec(),
    }
}

/// States that a scenario cannot meet, or that are not watched in it.
#[must_use]
pub fn unreachable_probes(scenario: &str) -> Vec<Probe> {
    let of_others = || {
        [
            Probe::OF_MANY_LEADERS,
            Probe::OF_QUORUMS,
            Probe::OF_PARTITIONS,
            Probe::OF_PLACEMENTS,
            Probe::OF_HINTS,
            Probe::OF_OWNERS,
            Probe::OF_ROT,
            Probe::OF_SLEEP,
        ]
        .concat()
    };
    let all_but = |met: &[Probe]| Probe::ALL.iter().copied().filter(|probe| !met.contains(probe)).collect();
    match scenario {
        "all" => Vec::new(),
        "raft-log" => of_others(),
        "raft" => [of_others(), vec![Probe::TailCut]].concat(),
        "raft-groups" | "raft-groups-log" => all_but(Probe::OF_SLEEP),
        "partitioned" | "partitioned-log" => all_but(Probe::OF_PARTITIONS),
        "placed" | "placed-log" => all_but(Probe::OF_PLACEMENTS),
        // Nobody there sends a client on to another node.
        "placed-leaders" | "placed-leaders-log" => {
            [all_but(Probe::OF_PLACEMENTS), vec![Probe::SentOnByFormerOwner]].concat()
        }
        "leaderless-hints" => all_but(Probe::OF_HINTS),
        "leaderless-rot" => all_but(Probe::OF_ROT),
        "leaderless-owners" => all_but(&[Probe::OF_QUORUMS, leaderless::PROBES, leaderless::PROBES_OF_OWNERS].concat()),
        "leaderless" | "leaderless-log" => all_but(&[Probe::OF_QUORUMS, leaderless::PROBES].concat()),
        "multi-leader" | "multi-leader-log" => all_but(&[Probe::OF_MANY_LEADERS, multi::PROBES].concat()),
        _ => Probe::ALL.to_vec(),
    }
}
