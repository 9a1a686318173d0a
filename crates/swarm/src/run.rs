//! What a run leaves behind: figures, or the invariant that it broke.

use core::fmt;
use std::io::{self, Write};

use replikit_core::Replica;
use replikit_sim::check::History;
use replikit_sim::{Chronicle, FaultCounts, SimStorage, World};

use crate::plan::Plan;
use crate::probe::Probes;

/// Writes a line to the standard output. Nobody may read it any more, behind a pipe to `head`: how a run went, its exit code
/// tells in any case.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How closely a run is watched. It changes nothing of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// Nothing is told.
    Silent,
    /// Every event and action goes to the standard output.
    Aloud,
    /// The newest lines are kept for a [`Failure`].
    Recorded,
}

/// Lines that are kept of a run that is recorded.
const LINES_MAX: usize = 4000;

impl Telling {
    /// Sets the world up for it.
    pub(crate) fn to<R: Replica + 'static, S: SimStorage + 'static>(self, world: &mut World<R, S>) {
        match self {
            Self::Silent => {}
            Self::Aloud => world.narrate(|at, node, what| say(format_args!("{at:?} node {node} {what:?}"))),
            Self::Recorded => world.record(LINES_MAX),
        }
    }
}

/// Figures of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Faults met.
    pub counts: FaultCounts,
    /// Probes met.
    pub probes: Probes,
    /// Equal for equal runs.
    pub fingerprint: u64,
    /// Operations that were acknowledged or answered.
    pub answered: usize,
    /// Events of the world.
    pub events: u64,
    /// Inputs and actions of the replicas.
    pub protocol_events: u64,
    /// Simulated time, in nanoseconds.
    pub simulated_ns: u64,
}

impl Run {
    /// The figures of a run that has ended.
    pub(crate) fn of<R: Replica, S: SimStorage>(
        world: &World<R, S>,
        (writes, reads): (usize, usize),
        probes: Probes,
    ) -> Self {
        Self {
            counts: world.counts(),
            probes,
            fingerprint: world.trace().fingerprint(),
            answered: writes + reads,
            events: world.events(),
            protocol_events: world.protocol_events(),
            simulated_ns: world.now().0,
        }
    }
}

/// A run that broke an invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was run.
    pub plan: Plan,
    /// The invariant's name.
    pub invariant: String,
    /// How it was broken.
    pub what: String,
    /// What happened before, if the run was recorded.
    pub chronicle: Option<Chronicle>,
}

impl Failure {
    /// From a sentence that begins with the invariant's name.
    pub(crate) fn new<R: Replica, S: SimStorage>(plan: &Plan, world: &World<R, S>, what: &str) -> Box<Self> {
        let (invariant, what) = what.split_once(": ").unwrap_or(("unnamed", what));
        let what = format!("{what}, at {:?}", world.now());
        let chronicle = world.chronicle().cloned();
        Box::new(Self { plan: plan.clone(), invariant: invariant.to_owned(), what, chronicle })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {} is broken: {}", self.plan.seed, self.invariant, self.what)
    }
}

/// Each key of the history is linearizable.
pub(crate) fn linearizable(history: &History) -> Result<(), String> {
    replikit_sim::check::check_linearizable(history).map_err(|error| format!("linearizable: {error}"))
}
