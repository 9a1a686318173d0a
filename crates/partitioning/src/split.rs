//! When a partition is cut in two or joined with its neighbour, and where it is cut.
//!
//! Invariants: a cut is offered only if it leaves a fair part on both sides, else the reason is said; splits and merges never
//! alternate, because two neighbours are joined only when both together are below half of what makes one be split, and that
//! for [`Thresholds::cold_for`]. Sources: CockroachDB's load-based splitting and its finder, TiKV RFC 45 (20 samples, 10 s),
//! FoundationDB's split and merge thresholds.

mod sampler;
mod size;

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::Time;

use crate::id::PartitionId;
use crate::load::Load;
use crate::map::{Partition, PartitionMap, Refused, aligned};
use crate::partitioner::Scheme;

pub use sampler::{CANDIDATES, LoadSampler, Request};
pub use size::{SizeSample, cut_by_size};

/// When to split and when to merge. The ratio between the two is fixed: neighbours are joined below half of what makes a
/// partition be split, so that a join is never followed by a split, nor a split by a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// A partition above any of the three is split. Default: 512 MiB, 2,500 operations, a quarter of a core, as CockroachDB.
    pub split_above: Load,
    /// For how long it must have been above: shorter bursts are not worth a split (TiKV). Default 10 s.
    pub hot_for: Duration,
    /// For how long two neighbours must have been below half of it to be joined. Default 300 s (FoundationDB).
    pub cold_for: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            split_above: Load { bytes: 512 << 20, ops: 2_500, cpu: 250_000 },
            hot_for: Duration::from_secs(10),
            cold_for: Duration::from_secs(300),
        }
    }
}

/// Two neighbours are joined when together they are below so many percent of what makes one be split.
pub const MERGE_PERCENT: u8 = 50;

/// Larger side of an acceptable cut, in percent.
pub const SIDE_PERCENT_MAX: u8 = 75;

/// Requests that may span an acceptable cut, in percent: each of them would ask two partitions from then on.
pub const SPANNING_PERCENT_MAX: u8 = 50;

/// Samples below which no cut is chosen (TiKV).
pub const SAMPLES_MIN: usize = 20;

/// What to do about sizes and loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Partitions that have been above the threshold for long enough: their cut is to be chosen.
    pub splits: Vec<PartitionId>,
    /// Neighbours that can be joined at once; no partition in two pairs.
    pub merges: Vec<(PartitionId, PartitionId)>,
    /// Neighbours that are cold, with what has to be done before they can be joined.
    pub held_up: Vec<(PartitionId, PartitionId, Refused)>,
}

/// Since when each partition has been hot, and each pair of neighbours cold. Keeps nothing of partitions that have ended.
#[derive(Clone, Debug, Default)]
pub struct Trends {
    hot: BTreeMap<PartitionId, Time>,
    cold: BTreeMap<(PartitionId, PartitionId), Time>,
}

impl Trends {
    /// Takes what was measured of every partition and says what is due. A partition without a measure is left alone.
    pub fn observe(
        &mut self,
        now: Time,
        map: &PartitionMap,
        loads: &BTreeMap<PartitionId, Load>,
        thresholds: &Thresholds,
    ) -> Advice {
        let mut advice = Advice { splits: Vec::new(), merges: Vec::new(), held_up: Vec::new() };
        let (mut hot, mut cold) = (BTreeMap::new(), BTreeMap::new());
        let merge_below = thresholds.split_above.percent(MERGE_PERCENT);
        let mut left: Option<(&Partition, Load)> = None;
        for partition in map.partitions() {
            let Some(&load) = loads.get(&partition.id) else {
                left = None;
                continue;
            };
            if load.is_above(&thresholds.split_above) {
                let since = self.hot.get(&partition.id).copied().unwrap_or(now);
                hot.insert(partition.id, since);
                if now.since(since) >= thresholds.hot_for {
                    advice.splits.push(partition.id);
                }
            }
            let before = left.replace((partition, load));
            let Some((neighbour, _)) = before.filter(|(_, other)| !(*other + load).is_above(&merge_below)) else {
                continue;
            };
            let pair = (neighbour.id, partition.id);
            let since = self.cold.get(&pair).copied().unwrap_or(now);
            cold.insert(pair, since);
            if now.since(since) >= thresholds.cold_for {
                let under_handoff = |it: &Partition| {
                    let open = map.open_handoff(it.id);
                    open.map(|handoff| Refused::UnderHandoff { partition: it.id, handoff: handoff.id })
                };
                match under_handoff(neighbour).or(under_handoff(partition)).map_or(aligned(neighbour, partition), Err) {
                    Ok(()) => {
                        advice.merges.push(pair);
                        // What is joined now is measured anew before it is joined again.
                        left = None;
                    }
                    Err(reason) => advice.held_up.push((pair.0, pair.1, reason)),
                }
            }
        }
        (self.hot, self.cold) = (hot, cold);
        advice
    }
}

/// A cut and what it leaves: whole weights, so that the same samples give the same cut everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    at: Bytes,
    left: u64,
    right: u64,
    spanning: u64,
}

impl Cut {
    fn larger_side(&self) -> u8 {
        percent(self.left.max(self.right), self.left + self.right)
    }

    fn spanning(&self) -> u8 {
        percent(self.spanning, self.left + self.right + self.spanning)
    }

    /// How bad it is: what is uneven, and what is asked twice, in parts of a thousand of all.
    fn cost(&self) -> u64 {
        let all = u128::from(self.left) + u128::from(self.right) + u128::from(self.spanning);
        let bad = u128::from(self.left.abs_diff(self.right)) + u128::from(self.spanning);
        (bad * 1_000).checked_div(all).unwrap_or(1_000) as u64
    }

    /// Whether a partition of this scheme can be cut there.
    fn is_within(&self, scheme: &Scheme, partition: &Partition) -> bool {
        use crate::partitioner::Partitioner as _;
        self.at > partition.span.start && partition.span.contains(&self.at) && scheme.check_bound(&self.at).is_ok()
    }
}

/// Rounded up, so that 100 is all only if it is nearly all, and a limit is not met by rounding.
fn percent(part: u64, whole: u64) -> u8 {
    (u128::from(part) * 100).div_ceil(u128::from(whole.max(1))).min(100) as u8
}
