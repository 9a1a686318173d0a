//! Contests: one of ours and its peers under one load, and by how much ours should be better.

use std::fmt;
use std::time::Duration;

use replikit_benches::load::Window;

use crate::system::System;

/// Size of a value, and of an entry.
pub const VALUE_BYTES: usize = 256;

/// What is done to each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Clients that each write one value after the other, to keys at random.
    Writes {
        /// How many.
        clients: u32,
    },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writes { clients: 1 } => write!(f, "writes of {VALUE_BYTES} B, 1 client"),
            Self::Writes { clients } => write!(f, "writes of {VALUE_BYTES} B, {clients} clients"),
        }
    }
}

/// Something in which ours can be better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests, or entries, a second.
    Rate,
    /// The latency that 99 in a hundred do not exceed.
    P99,
}

/// By how much ours should be better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// In what.
    pub metric: Metric,
    /// So many times as good, at least.
    pub times: f64,
}

/// One load on several systems in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Contest {
    /// What is done.
    pub load: Load,
    /// One of ours.
    pub ours: System,
    /// What it is held against; [`Contest::goals`] hold for the first, the others are there to be seen.
    pub peers: Vec<System>,
    /// What ours should reach against the first peer.
    pub goals: Vec<Goal>,
}

impl Contest {
    /// Ours, and then its peers.
    pub fn systems(&self) -> impl Iterator<Item = System> + '_ {
        std::iter::once(self.ours).chain(self.peers.iter().copied())
    }
}

/// Every contest, in the order in which they are run.
#[must_use]
pub fn all() -> Vec<Contest> {
    let rate = |times| vec![Goal { metric: Metric::Rate, times }];
    let redis = |clients, times| Contest {
        load: Load::Writes { clients },
        ours: System::SingleLeader,
        peers: if clients == 1 { vec![System::Redis] } else { vec![System::Redis, System::RedisShared] },
        goals: rate(times),
    };
    vec![redis(1, 2.0), redis(16, 2.5), redis(64, 2.5)]
}

/// How long a load is put on each side.
#[must_use]
pub fn window(measured: Duration) -> Window {
    Window { warm_up: measured / 4, measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contest_is_ours_against_others() {
        for contest in all() {
            assert!(contest.ours.is_ours(), "{contest:?}");
            assert!(!contest.peers.is_empty() && contest.peers.iter().all(|peer| !peer.is_ours()), "{contest:?}");
            assert!(contest.goals.iter().all(|goal| goal.times >= 1.0), "{contest:?}");
        }
    }
}
