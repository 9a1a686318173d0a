//! The legs of scans, one for each partition that is asked: how long they take, and whether another replica is asked as well.
//!
//! Invariant: legs that ask somebody else in addition are a fixed share of all, so that a store that is slow everywhere gets no second
//! load on top. Source: the tail at scale (Dean and Barroso 2013): of many legs, one is late far more often than any one of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replikit_core::{HedgeBudget, Latency, NodeId, ReadLevel};
use replikit_runtime::Client;

use crate::map::{Partition, Replication};

/// No leg is late before this: answers differ by as much for no reason.
const PATIENCE_MIN: Duration = Duration::from_millis(1);
/// As long as little is known of how long they take.
const PATIENCE_UNKNOWN: Duration = Duration::from_millis(20);

/// How often partitions were asked for their part of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LegCounts {
    /// In all.
    pub asked: u64,
    /// Those where another replica was asked as well, because the first one was late.
    pub hedged: u64,
}

#[derive(Debug, Default)]
struct Seen {
    took: Latency,
    budget: HedgeBudget,
    counts: LegCounts,
}

/// What a client has seen of its legs.
#[derive(Debug, Default)]
pub(super) struct Legs(Mutex<Seen>);

impl Legs {
    // No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leg begins; it is late after this time.
    pub(super) fn begins(&self) -> Duration {
        let mut seen = self.lock();
        seen.budget.earn();
        seen.counts.asked += 1;
        let slow = seen.took.slow();
        if slow == Duration::MAX { PATIENCE_UNKNOWN } else { slow.max(PATIENCE_MIN) }
    }

    /// Whether another replica may be asked for one that is late; it counts as asked.
    pub(super) fn hedges(&self) -> bool {
        let mut seen = self.lock();
        let may = seen.budget.suffices();
        if may {
            seen.budget.spend();
            seen.counts.hedged += 1;
        }
        may
    }

    /// A leg was answered.
    pub(super) fn answered(&self, took: Duration) {
        self.lock().took.sample(took);
    }

    pub(super) fn counts(&self) -> LegCounts {
        self.lock().counts
    }
}

/// A replica that can answer a question at this level in the place of the one that is asked first.
pub(super) fn stand_in(partition: &Partition, first: &Client, level: &ReadLevel) -> Option<NodeId> {
    let asked = match partition.replication {
        // Where it must be the newest, others could but ask the leader.
        Replication::SingleLeader if matches!(level, ReadLevel::Linearizable) => return None,
        Replication::SingleLeader => first.aims_at(),
        Replication::Leaderless | Replication::MultiLeader => first.home(),
    };
    let others = partition.replicas.iter().copied().filter(|node| *node != asked && !partition.turnover.moves(*node));
    fastrand::choice(others.collect::<Vec<NodeId>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_is_late_when_it_takes_longer_than_nearly_all_others_and_one_in_twenty_is_asked_elsewhere() {
        let legs = Legs::default();
        assert_eq!(legs.begins(), PATIENCE_UNKNOWN);
        (0..200).for_each(|_| legs.answered(Duration::from_millis(4)));
        assert_eq!(legs.begins(), Duration::from_millis(4));
        (0..200).for_each(|_| legs.answered(Duration::from_micros(4)));
        assert_eq!(legs.begins(), PATIENCE_MIN);
        while legs.hedges() {}
        for _ in 0..1_000 {
            legs.begins();
            legs.hedges();
        }
        let LegCounts { asked, hedged } = legs.counts();
        assert!(hedged > 50 && hedged <= HedgeBudget::hedges_max(asked), "{hedged} of {asked}");
    }
}
