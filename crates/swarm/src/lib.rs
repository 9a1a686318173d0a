//! Every strategy under the simulator: its subjects with their clients and invariants, and the scenarios that run a seed of
//! each. `replikit-sim` knows replicas through core's traits only; what knows a strategy by name lives here.
//!
//! # What is run
//!
//! | scenario | what it is |
//! |---|---|
//! | `raft` | one group of single-leader replication on the storage model |
//! | `raft-groups` | several such groups in one container |
//! | `register`, `register-groups` | the majority-quorum register of `replikit-sim`, a second subject of every feature |
//! | each with `-log` | the same on the real log, on a disk that loses power |
//!
//! The program: `cargo xtask sim --help`.
#![forbid(unsafe_code)]

pub mod groups;
pub mod raft;
pub mod register;
mod run;

pub use run::{Run, Telling};

use replikit_sim::{LogStorage, ModelStorage};

/// Runs one seed of a scenario; an error is the sentence of the first violation.
pub type Scenario = fn(u64, Telling) -> Result<Run, String>;

/// Every scenario on the storage model and, under a name with `-log`, on the real log.
pub const SCENARIOS: [(&str, Scenario); 8] = [
    ("raft", raft::run::<ModelStorage>),
    ("raft-log", raft::run::<LogStorage>),
    ("raft-groups", groups::rafts::<ModelStorage>),
    ("raft-groups-log", groups::rafts::<LogStorage>),
    ("register", register::run::<ModelStorage>),
    ("register-log", register::run::<LogStorage>),
    ("register-groups", groups::registers::<ModelStorage>),
    ("register-groups-log", groups::registers::<LogStorage>),
];

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
