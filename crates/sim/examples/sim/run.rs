//! What a run leaves behind.

use replikit_core::Replica;
use replikit_sim::check::History;
use replikit_sim::{FaultCounts, SimStorage, World};

/// Whether a run is told event by event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// Nothing is told.
    Silent,
    /// Every event and action goes to the standard output.
    Aloud,
}

impl Telling {
    /// Sets the world up for it.
    pub(crate) fn to<R: Replica + 'static, S: SimStorage + 'static>(self, world: &mut World<R, S>) {
        if self == Self::Aloud {
            world.narrate(|at, node, what| println!("{at:?} node {node} {what:?}"));
        }
    }
}

/// Figures of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Faults met.
    pub(crate) counts: FaultCounts,
    /// Equal for equal runs.
    pub(crate) fingerprint: u64,
    /// Operations that were acknowledged or answered.
    pub(crate) answered: usize,
    /// Events.
    pub(crate) events: u64,
    /// Inputs that replicas handled.
    pub(crate) inputs: u64,
}

impl Run {
    /// The figures of a run that has ended.
    pub(crate) fn of<R: Replica, S: SimStorage>(world: &World<R, S>, history: &History) -> Self {
        Self {
            counts: world.counts().clone(),
            fingerprint: world.trace().fingerprint(),
            answered: history.answered(),
            events: world.events(),
            inputs: world.inputs(),
        }
    }
}
