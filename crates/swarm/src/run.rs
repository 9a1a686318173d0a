//! What a run leaves behind.

use replikit_core::Replica;
use replikit_sim::check::History;
use replikit_sim::{FaultCounts, SimStorage, World};

/// Whether a run is told event by event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// Nothing is told.
    Silent,
    /// Every event and action goes to the standard output.
    Aloud,
}

impl Telling {
    /// Sets the world up for it.
    pub fn to<R: Replica + 'static, S: SimStorage + 'static>(self, world: &mut World<R, S>) {
        if self == Self::Aloud {
            world.narrate(|at, node, what| println!("{at:?} node {node} {what:?}"));
        }
    }
}

/// Figures of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Faults met.
    pub counts: FaultCounts,
    /// Equal for equal runs.
    pub fingerprint: u64,
    /// Operations that were acknowledged or answered.
    pub answered: usize,
    /// Events.
    pub events: u64,
    /// Inputs that replicas handled.
    pub inputs: u64,
}

impl Run {
    /// The figures of a run that has ended.
    pub fn of<R: Replica, S: SimStorage>(world: &World<R, S>, history: &History) -> Self {
        Self {
            counts: world.counts().clone(),
            fingerprint: world.trace().fingerprint(),
            answered: history.answered(),
            events: world.events(),
            inputs: world.inputs(),
        }
    }
}
