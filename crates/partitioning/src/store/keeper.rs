//! Splits and merges without anybody's hand: what is hot or large is cut, what is cold is joined.
//!
//! Invariants: a keeper has nothing that must not be lost, and decides by compare-and-set at the map that it has looked at; so any
//! number of them may run, anywhere, and one that dies is started again. It cuts and joins within groups, which copies nothing; to bring
//! the parts to other nodes is the balancer's. Source: the split and merge queues of CockroachDB, TiKV's checkers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use replikit_core::{GroupId, ReadError, Time};

use super::client::{ChangeError, StoreClient, groups_of};
use super::machine::{Described, LoadAnswer, LoadQuestion};
use crate::id::PartitionId;
use crate::load::Load;
use crate::map::{Change, PartitionMap};
use crate::map_store::Expected;
use crate::split::{Thresholds, Trends};

/// A group that is asked nothing is left out of so many looks at most: each one wakes it.
const PASSED_OVER_MAX: u32 = 16;

/// Settings of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeeperConfig {
    /// When to split and when to merge. Processor time is not measured.
    pub thresholds: Thresholds,
    /// How often sizes are asked for. Default 60 s: each time a group's leader walks over all that it holds.
    pub sizes_every: Duration,
    /// Neighbours are not joined while there are no more partitions than this. Default 1.
    pub partitions_min: usize,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        Self { thresholds: Thresholds::default(), sizes_every: Duration::from_secs(60), partitions_min: 1 }
    }
}

/// What a keeper has done, or why it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kept {
    /// A partition was cut.
    Split {
        /// Which one; it is the left part now.
        partition: PartitionId,
        /// The right part.
        right: PartitionId,
        /// For its bytes; otherwise for what it is asked.
        by_size: bool,
    },
    /// Two neighbours are one partition.
    Merged {
        /// What they are now.
        left: PartitionId,
        /// What is no more.
        right: PartitionId,
    },
    /// A partition is hot or large and cannot be cut well. Told once for each reason.
    NotSplit {
        /// Which one.
        partition: PartitionId,
        /// One of the reasons of [`Refused`](crate::map::Refused), in words.
        why: String,
    },
}

/// What was measured of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// None before its group has been asked for sizes.
    bytes: Option<u64>,
    /// Operations counted by its leader, and when.
    counted: Option<(u64, Time)>,
    /// Operations a second between the last two looks; none before the second one.
    ops: Option<u64>,
}

/// Looks after the partitions of a store: cuts what is hot or large, joins what is cold, each by compare-and-set at the map that it has
/// looked at. It keeps nothing that must not be lost; any number of them may run.
#[derive(Debug)]
pub struct Keeper {
    client: StoreClient,
    config: KeeperConfig,
    begun: Instant,
    trends: Trends,
    measured: BTreeMap<PartitionId, Measured>,
    sizes_at: Option<Time>,
    resting: BTreeMap<GroupId, Resting>,
    told: BTreeSet<(PartitionId, String)>,
}

/// A group that was asked nothing between the last two looks at it.
#[derive(Clone, Copy, Debug)]
struct Resting {
    /// Looks that it is left out of from now on.
    left: u32,
    /// Those that it was left out of last.
    pause: u32,
}

impl Keeper {
    /// Begins to look after a store.
    #[must_use]
    pub fn new(client: StoreClient, config: KeeperConfig) -> Self {
        let (trends, measured, resting, told) = Default::default();
        Self { client, config, begun: Instant::now(), trends, measured, sizes_at: None, resting, told }
    }

    /// Measures all partitions, and does what is due. To be called every second or so; what it measures it compares with the call before.
    /// A group that does not answer is left alone.
    ///
    /// # Errors
    /// When the map cannot be read or changed. That somebody else has changed it is none: the next call looks again.
    pub async fn look(&mut self) -> Result<Vec<Kept>, ChangeError> {
        let map = self.client.map().await?;
        let now = Time(u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.measure(&map, now).await;
        let load = |it: &Measured| Some(Load { bytes: it.bytes?, ops: it.ops?, cpu: 0 });
        let loads = self.measured.iter().filter_map(|(id, it)| Some((*id, load(it)?))).collect();
        let advice = self.trends.observe(now, &map, &loads, &self.config.thresholds);
        let mut kept = Vec::new();
        // One change at each map: the others are thought about again at the next one.
        for partition in advice.splits {
            let by_size = loads[&partition].bytes > self.config.thresholds.split_above.bytes;
            match self.split(&map, partition, by_size).await? {
                Some(done @ Kept::Split { .. }) => {
                    kept.push(done);
                    return Ok(kept);
                }
                other => kept.extend(other),
            }
        }
        if map.len() > self.config.partitions_min
            && let Some((left, right)) = advice.merges.first().copied()
            && self.change(&map, left, Change::Merge { left, right }).await?.is_some()
        {
            self.forget([left, right]);
            kept.push(Kept::Merged { left, right });
        }
        Ok(kept)
    }

    /// `None` if somebody else was faster, or if nothing new is to be told.
    async fn split(
        &mut self,
        map: &PartitionMap,
        partition: PartitionId,
        by_size: bool,
    ) -> Result<Option<Kept>, ChangeError> {
        let Some(entry) = map.partition(partition) else { return Ok(None) };
        let question = LoadQuestion::Cut { partition, by_size };
        let answer = self.client.ask_load(entry.group, &entry.replicas, question).await;
        let at = match answer {
            Ok(LoadAnswer::Cut(Ok(at))) => at,
            Ok(LoadAnswer::Cut(Err(why))) => {
                let is_new = self.told.insert((partition, kind(&why)));
                return Ok(is_new.then_some(Kept::NotSplit { partition, why }));
            }
            // Or its leader has gone: it is asked again.
            Ok(LoadAnswer::NotYet | LoadAnswer::Operations(_)) | Err(_) => return Ok(None),
        };
        let change = Change::Split { partition, at: at.clone() };
        let Some(map) = self.change(map, partition, change).await? else { return Ok(None) };
        let right = map.partitions().find(|it| it.span.start == at).map(|it| it.id);
        self.forget([partition]);
        self.told.retain(|(told, _)| *told != partition);
        Ok(right.map(|right| Kept::Split { partition, right, by_size }))
    }

    /// Changes the bounds of a partition. A change that comes too late is none, and harms nobody.
    async fn change(
        &self,
        map: &PartitionMap,
        of: PartitionId,
        change: Change,
    ) -> Result<Option<Arc<PartitionMap>>, ChangeError> {
        match self.client.change_bounds(Expected::Epoch(map.epoch()), map, of, change).await {
            Ok(changed) => Ok(Some(changed)),
            Err(ChangeError::Moved { .. } | ChangeError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What has other bounds now is measured anew.
    fn forget(&mut self, partitions: impl IntoIterator<Item = PartitionId>) {
        for partition in partitions {
            self.measured.remove(&partition);
        }
    }

    async fn measure(&mut self, map: &PartitionMap, now: Time) {
        self.measured.retain(|id, _| map.partition(*id).is_some());
        self.told.retain(|(id, _)| map.partition(*id).is_some());
        let mut groups = groups_of(map);
        let due = self.sizes_at.is_none_or(|at| now.since(at) >= self.config.sizes_every);
        if due {
            self.sizes_at = Some(now);
        }
        // Of a group whose partitions have other bounds now, at once: of that one only.
        let has_bytes = |id| self.measured.get(&id).is_some_and(|measured| measured.bytes.is_some());
        let unsized_groups: BTreeSet<GroupId> =
            map.partitions().filter(|it| due || !has_bytes(it.id)).map(|it| it.group).collect();
        self.resting.retain(|group, _| groups.contains_key(group));
        groups.retain(|group, _| {
            let resting = self.resting.get_mut(group).filter(|it| it.left > 0 && !unsized_groups.contains(group));
            resting.map(|resting| resting.left -= 1).is_none()
        });
        let asked = self.client.ask_groups(groups, |client, group, replicas| {
            let sizes = unsized_groups.contains(&group);
            async move {
                let operations = client.ask_load(group, &replicas, LoadQuestion::Operations).await;
                let described = if sizes { client.describe(group, &replicas).await.ok() } else { None };
                (group, operations, described)
            }
        });
        for (group, operations, described) in asked.await {
            self.take(map, now, group, operations, described.as_ref());
        }
    }

    /// Takes what a group's leader has said.
    fn take(
        &mut self,
        map: &PartitionMap,
        now: Time,
        group: GroupId,
        operations: Result<LoadAnswer, ReadError>,
        described: Option<&Described>,
    ) {
        let Ok(LoadAnswer::Operations(operations)) = operations else {
            // Nobody knows what it is asked: it is neither hot nor cold.
            self.measured.retain(|id, _| map.partition(*id).is_none_or(|it| it.group != group));
            return;
        };
        let operations: BTreeMap<PartitionId, u64> = operations.into_iter().collect();
        let mut rests = true;
        for partition in map.of_group(group) {
            let measured = self.measured.entry(partition.id).or_default();
            measured.count(operations.get(&partition.id).copied().unwrap_or(0), now);
            measured.bytes = described.and_then(|it| bytes_of(it, partition.id)).or(measured.bytes);
            rests &= measured.ops == Some(0);
        }
        if rests {
            let before = self.resting.get(&group).map_or(0, |resting| resting.pause);
            let pause = (before * 2).clamp(1, PASSED_OVER_MAX);
            self.resting.insert(group, Resting { left: pause, pause });
        } else {
            self.resting.remove(&group);
        }
    }
}

impl Measured {
    fn count(&mut self, operations: u64, now: Time) {
        self.ops = match self.counted {
            // Another node leads now, and has counted by itself.
            Some((before, _)) if operations < before => None,
            Some((before, at)) if now > at => {
                Some((u128::from(operations - before) * 1_000_000_000 / now.since(at).as_nanos()) as u64)
            }
            _ => None,
        };
        self.counted = Some((operations, now));
    }
}

fn bytes_of(described: &Described, partition: PartitionId) -> Option<u64> {
    described.partitions.iter().find(|it| it.id == partition).map(|it| it.bytes)
}

/// A reason without its numbers.
fn kind(why: &str) -> String {
    why.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_a_second_are_those_between_two_looks_at_one_leader() {
        let at = |millis| Time(0) + Duration::from_millis(millis);
        let mut measured = Measured::default();
        measured.count(1_000, at(0));
        assert_eq!(measured.ops, None, "nobody knows since when");
        measured.count(1_500, at(500));
        assert_eq!(measured.ops, Some(1_000));
        measured.count(3, at(1_000));
        assert_eq!(measured.ops, None, "another one leads, and counts from nothing");
        measured.count(3, at(2_000));
        assert_eq!(measured.ops, Some(0));
    }

    #[test]
    fn a_reason_is_the_same_whatever_its_numbers() {
        assert_eq!(kind("one key has 80 percent"), kind("one key has 9 percent"));
        assert_ne!(kind("one key has 80 percent"), kind("80 percent of the writes"));
    }
}
