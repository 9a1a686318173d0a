//! Drives any [`Replica`](replikit_core::Replica) in virtual time, from one seed: network, process, clock and storage
//! faults, clients that record what they see, and checks of it.
//!
//! # What is checked
//!
//! | promise | by |
//! |---|---|
//! | each key is linearizable | [`check::check_linearizable`], [`check::check_history`] on what clients saw |
//! | sessions, staleness, durability, causality | the other checks of [`check`] |
//! | a user's own state machine is deterministic | [`Scenario`] |
//! | a strategy's own invariants | the [`Subject`]'s `check`, after every round of every replica |
//! | the replica keeps the driving contract | the [`World`]: storage actions are numbered without gaps, appends fit their stream, deadlines end |
//! | the cluster gets well again | [`World::heal`], then [`World::run_while`] with a bound |
//! | a run depends on nothing but its seed | [`World::trace`] of two runs |
//!
//! # What it does not do
//!
//! [`ModelStorage`] knows the meaning of the storage contract and no bytes; [`LogStorage`] runs the real log on a disk that
//! loses power, fails and stalls. Damage of bytes at rest is not among the faults yet.
//!
//! # The loop of one node
//!
//! 1. Inputs gather while the node is busy or paused; then its clocks are read once.
//! 2. Every input is handled, the timer too if it is due.
//! 3. Every action is carried out; the process may crash between any two.
//! 4. The storage begins what can begin; the next timer is planned; the subject's checks run.
//!
//! # Example
//!
//! ```
//! use core::time::Duration;
//! use replikit_core::{ClusterId, GroupId, NodeId, Time};
//! use replikit_sim::register::{Register, RegisterConfig, RegisterWorkload};
//! use replikit_sim::{Settings, World, WorkloadSettings};
//!
//! let seed = 7;
//! let cluster = ClusterId::from_name("example");
//! let settings = Settings::draw(&mut fastrand::Rng::with_seed(seed), 3);
//! let mut world: World<Register> = World::new(seed, settings, cluster, move |node, boots, _| {
//!     let members = (1..=3).map(NodeId).collect();
//!     Register::new(RegisterConfig::new(cluster, GroupId(1), node, members), &boots.of(GroupId(1))).expect("three small nodes")
//! });
//! let mut clients = RegisterWorkload::new(WorkloadSettings::default(), 3, GroupId(1));
//! world.run_until(Time::ZERO + Duration::from_secs(2), &mut clients)?;
//! replikit_sim::check::check_linearizable(clients.history()).expect("a register is linearizable");
//! # Ok::<(), replikit_sim::Violation>(())
//! ```
//!
//! # Sources
//!
//! FoundationDB's and TigerBeetle's simulators for the method; swarm testing: Groce et al., ISSTA'12; Gibbons and Korach 1997
//! for the check of registers.
#![forbid(unsafe_code)]

pub mod check;
mod chronicle;
mod clock;
mod diagram;
mod fault;
mod frame;
mod network;
pub mod register;
mod scenario;
mod settings;
mod storage;
mod subject;
mod trace;
mod workload;
mod world;

pub use chronicle::{Chronicle, Happening, Line};
pub use diagram::{Caption, diagram};
pub use fault::{Fault, FaultCounts};
pub use scenario::{Scenario, ScenarioNode, ScenarioReport, Watched};
pub use settings::{
    ClockSettings, DiskSettings, Every, LeaderSettings, NetworkSettings, ProcessSettings, Settings, StorageSettings,
};
pub use storage::{
    Boots, LogStorage, ModelStorage, Recovery, RecoveryItem, SimStorage, StartError, StorageContext, StorageOutput,
};
pub use subject::{Clients, Replicas, Subject};
pub use trace::Trace;
pub use workload::{
    AckedWrite, Asked, Dialect, ReadKind, Request, WantedRead, WantedWrite, Workload, WorkloadSettings, is_lasting,
};
pub use world::{Factory, Traffic, Violation, World};
