//! What makes the next map out of a map, and a bounded log of it.
//!
//! Invariant: a delta fits exactly one epoch. Deltas are facts, not orders: any peer that has them can serve them, and whoever
//! applies them in order has the same map (Cassandra TCM: "missing entries may be fetched from any peer").

use std::collections::VecDeque;
use std::sync::Arc;

use replikit_core::Epoch;
use serde::{Deserialize, Serialize};

use super::{Handoff, MapError, Partition, PartitionMap};
use crate::id::{HandoffId, PartitionId};

/// What makes the map of epoch `from + 1` out of that of epoch `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The map that it is for.
    pub from: Epoch,
    /// The id that the next partition will get.
    pub next_id: PartitionId,
    /// Partitions that have ended.
    pub ended: Vec<PartitionId>,
    /// Partitions that are new or have changed.
    pub changed: Vec<Partition>,
    /// Handoffs that are new or decided.
    pub handoffs: Vec<Handoff>,
    /// Handoffs that are forgotten.
    pub forgotten: Vec<HandoffId>,
}

impl Delta {
    /// The map that it makes.
    pub fn to(&self) -> Epoch {
        Epoch(self.from.0.saturating_add(1))
    }
}

/// Why deltas make no map. The map they were for is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Deltas in between are missing. Nobody's mistake: ask for what follows `have`.
    #[error("the map is at epoch {have}, the next delta is for epoch {next}: what lies between is missing")]
    Gap {
        /// The epoch that the map was brought to.
        have: Epoch,
        /// The epoch that the delta is for.
        next: Epoch,
    },
    /// A delta that makes no valid map: whoever served it is broken.
    #[error("the delta for epoch {from} makes no map: {error}")]
    Invalid {
        /// The epoch that the delta is for.
        from: Epoch,
        /// What is wrong with it.
        error: MapError,
    },
    /// An id or handoff that goes back: whoever served it is broken.
    #[error("the delta for epoch {from} takes back what was given out")]
    Back {
        /// The epoch that the delta is for.
        from: Epoch,
    },
}

impl PartitionMap {
    /// The map after these deltas, in their order. Those that this map has already are passed over; none may be missing.
    ///
    /// # Errors
    /// When one is missing, or one makes no valid map.
    pub fn caught_up<'d>(&self, deltas: impl IntoIterator<Item = &'d Delta>) -> Result<Self, DeltaError> {
        let mut now: Option<Self> = None;
        for delta in deltas {
            let map = now.as_ref().unwrap_or(self);
            if delta.from < map.epoch {
                continue;
            }
            if delta.from > map.epoch {
                return Err(DeltaError::Gap { have: map.epoch, next: delta.from });
            }
            now = Some(map.after(delta)?);
        }
        Ok(now.unwrap_or_else(|| self.clone()))
    }

    fn after(&self, delta: &Delta) -> Result<Self, DeltaError> {
        let from = delta.from;
        if delta.next_id < self.next_id || from.0 == u64::MAX {
            return Err(DeltaError::Back { from });
        }
        let mut partitions = self.partitions.clone();
        let mut added = Vec::new();
        let mut gone = vec![false; partitions.len()];
        for &id in &delta.ended {
            match self.index_of(id) {
                Some(index) => gone[index] = true,
                None => return Err(DeltaError::Back { from }),
            }
        }
        for partition in &delta.changed {
            let entry = Arc::new(partition.clone());
            match self.index_of(partition.id) {
                Some(index) => {
                    let old = &partitions[index];
                    let forward = (old.birth, old.bounds) <= (entry.birth, entry.bounds);
                    if !forward || gone[index] {
                        return Err(DeltaError::Back { from });
                    }
                    partitions[index] = entry;
                }
                None if partition.id >= self.next_id => added.push(entry),
                None => return Err(DeltaError::Back { from }),
            }
        }
        let mut index = 0;
        partitions.retain(|_| {
            index += 1;
            !gone[index - 1]
        });
        partitions.extend(added);
        let mut handoffs = self.handoffs.clone();
        for id in &delta.forgotten {
            handoffs.remove(id);
        }
        handoffs.extend(delta.handoffs.iter().map(|handoff| (handoff.id, handoff.clone())));
        Self::build(delta.to(), self.scheme, delta.next_id, partitions, handoffs)
            .map_err(|error| DeltaError::Invalid { from, error })
    }
}

/// Deltas that a [`DeltaLog`] keeps by default.
pub const DELTAS_MAX: usize = 4_096;

/// The newest deltas, for those who are behind.
#[derive(Clone, Debug)]
pub struct DeltaLog {
    deltas: VecDeque<Delta>,
    // The epoch behind the newest delta.
    end: Epoch,
    deltas_max: usize,
}

/// What someone at an older epoch needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catchup {
    /// These deltas, in order; none when nothing is missing.
    Deltas(Vec<Delta>),
    /// The whole map: some of the deltas are not kept any more, or it is ahead of this log.
    Map,
}

impl DeltaLog {
    /// An empty log behind a map. Keeps at most `deltas_max` deltas; the oldest go first.
    pub fn new(map: &PartitionMap, deltas_max: usize) -> Self {
        Self { deltas: VecDeque::new(), end: map.epoch, deltas_max }
    }

    /// Adds the delta that makes the next map.
    ///
    /// # Errors
    /// When it is not the next one; the log is as it was.
    pub fn push(&mut self, delta: Delta) -> Result<(), DeltaError> {
        if delta.from != self.end {
            return Err(DeltaError::Gap { have: self.end, next: delta.from });
        }
        self.end = delta.to();
        self.deltas.push_back(delta);
        if self.deltas.len() > self.deltas_max {
            self.deltas.pop_front();
        }
        Ok(())
    }

    /// What brings a map of epoch `have` to the newest one, in at most `deltas_max` deltas.
    pub fn since(&self, have: Epoch, deltas_max: usize) -> Catchup {
        let first = self.end.0 - self.deltas.len() as u64;
        match have.0.checked_sub(first) {
            Some(skipped) if have <= self.end => {
                Catchup::Deltas(self.deltas.iter().skip(skipped as usize).take(deltas_max).cloned().collect())
            }
            _ => Catchup::Map,
        }
    }
}
