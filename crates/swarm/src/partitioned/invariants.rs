//! What must hold of maps and holdings after every event: I1, I2 and I5 of the research on partitions, and that replicas agree.
//! Each is a function of its own, named in what it says when it is broken.

use std::collections::BTreeMap;

use replikit_core::{Epoch, GroupId, LogIndex, NodeId};
use replikit_partitioning::handoff::{Holdings, Phase};
use replikit_partitioning::{Partition, PartitionMap, Span};
use xxhash_rust::xxh3::xxh3_64;

use super::{KEYS, Layout};

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    // The holdings of each group as far as anybody has applied its log.
    newest: BTreeMap<GroupId, (LogIndex, Holdings)>,
    // What the holdings were at an index, by a hash.
    at: BTreeMap<(GroupId, LogIndex), u64>,
    // The map of each running node.
    maps: BTreeMap<NodeId, Epoch>,
    // Every map that anybody had, by a hash.
    epochs: BTreeMap<Epoch, u64>,
}

fn hash(of: &impl serde::Serialize) -> u64 {
    xxh3_64(&postcard::to_stdvec(of).expect("it always encodes"))
}

impl Seen {
    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.maps.remove(&node);
    }

    /// Whether a group has more partitions, or fewer, of the same positions than in its newest log that was seen before.
    pub(crate) fn recut(&self, group: GroupId, holdings: &Holdings) -> core::cmp::Ordering {
        let count = |holdings: &Holdings| holdings.held().count();
        match self.newest.get(&group) {
            Some((_, before)) if covered(before) == covered(holdings) => count(holdings).cmp(&count(before)),
            _ => core::cmp::Ordering::Equal,
        }
    }

    /// A node has a map.
    pub(crate) fn map(&mut self, node: NodeId, map: &PartitionMap) -> Result<(), String> {
        let before = self.maps.insert(node, map.epoch());
        if before == Some(map.epoch()) {
            return Ok(());
        }
        epochs_do_not_go_back(node, before, map.epoch())?;
        map_covers_everything_once(map)?;
        let own = hash(map);
        let known = *self.epochs.entry(map.epoch()).or_insert(own);
        if known != own {
            return Err(format!("one_map_an_epoch: node {node} has another map of epoch {}", map.epoch()));
        }
        Ok(())
    }

    /// A replica has applied its group's log up to an index, and holds this.
    pub(crate) fn holdings(&mut self, group: GroupId, at: LogIndex, holdings: &Holdings) -> Result<(), String> {
        let own = hash(holdings);
        let known = *self.at.entry((group, at)).or_insert(own);
        if known != own {
            return Err(format!("replicas_hold_the_same: of group {group} at {at}: {holdings:?}"));
        }
        let newest = self.newest.entry(group).or_default();
        if newest.0 >= at {
            return Ok(());
        }
        if newest.1.epoch() > holdings.epoch() {
            return Err(format!("epochs_do_not_go_back: group {group} at {at} is at {}", holdings.epoch()));
        }
        *newest = (at, holdings.clone());
        spans_do_not_meet(group, holdings)?;
        self.one_group_takes_writes()
    }

    /// I2: at most one group takes writes for a key. Each group's log is looked at as far as anybody has applied it: what it says
    /// there is committed, and only the log's own next records change it.
    fn one_group_takes_writes(&self) -> Result<(), String> {
        for key in keys() {
            let takes = |(_, (_, holdings)): &(&GroupId, &(LogIndex, Holdings))| {
                holdings.held().any(|(_, held)| held.phase == Phase::Serving && held.entry.span.contains(&key))
            };
            let owners: Vec<_> = self.newest.iter().filter(takes).map(|(group, _)| *group).collect();
            if owners.len() > 1 {
                return Err(format!("one_group_takes_writes: groups {owners:?} do for {key:?}"));
            }
        }
        Ok(())
    }
}

/// Some keys of every place where a cut can be.
fn keys() -> impl Iterator<Item = Vec<u8>> {
    ["a", "a+", "key", "key+"].into_iter().flat_map(|family| (0..KEYS).map(move |nth| format!("{family}{nth}").into()))
}

/// I5.
fn epochs_do_not_go_back(node: NodeId, before: Option<Epoch>, now: Epoch) -> Result<(), String> {
    match before {
        Some(before) if before > now => Err(format!("epochs_do_not_go_back: node {node} from {before} to {now}")),
        _ => Ok(()),
    }
}

/// I1, computed from the entries alone.
fn map_covers_everything_once(map: &PartitionMap) -> Result<(), String> {
    let broken = |what: &Partition| Err(format!("map_covers_everything_once: at {}: {what:?}", map.epoch()));
    let mut expected = Some(bytes::Bytes::new());
    for partition in map.partitions() {
        if expected.as_ref() != Some(&partition.span.start) {
            return broken(partition);
        }
        expected.clone_from(&partition.span.end);
    }
    if expected.is_some() {
        Err(format!("map_covers_everything_once: at {}: not to the end", map.epoch()))
    } else {
        Ok(())
    }
}

/// The positions that a group holds, in stretches that do not touch.
fn covered(holdings: &Holdings) -> Vec<Span> {
    let mut spans: Vec<_> = holdings.held().map(|(_, held)| held.entry.span.clone()).collect();
    spans.sort_by(|a, b| a.start.cmp(&b.start));
    spans.dedup_by(|next, span| {
        let touch = span.end.as_ref() == Some(&next.start);
        if touch {
            span.end.clone_from(&next.end);
        }
        touch
    });
    spans
}

/// A group holds nothing twice.
fn spans_do_not_meet(group: GroupId, holdings: &Holdings) -> Result<(), String> {
    let held: Vec<_> = holdings.held().collect();
    for (nth, (id, one)) in held.iter().enumerate() {
        if let Some((other, _)) = held[nth + 1..].iter().find(|(_, two)| one.entry.span.meets(&two.entry.span)) {
            return Err(format!("spans_do_not_meet: group {group} has {id} and {other}"));
        }
    }
    Ok(())
}

/// What a group must hold when all is quiet: what the map says, and nothing else.
pub(crate) fn group_is_at_rest(map: &PartitionMap, group: GroupId, holdings: &Holdings) -> Result<(), String> {
    let held: BTreeMap<_, _> = holdings.held().map(|(id, held)| (id, (held.entry.clone(), held.phase))).collect();
    let wanted: BTreeMap<_, _> = map.of_group(group).map(|it| (it.id, (it.clone(), Phase::Serving))).collect();
    if held != wanted {
        return Err(format!("holdings_follow_the_map: group {group} has {held:?}, not {wanted:?}"));
    }
    match holdings.all_staged().next() {
        Some((handoff, _)) => Err(format!("holdings_follow_the_map: group {group} has staged for handoff {handoff}")),
        None => Ok(()),
    }
}

/// The groups that can have data.
pub(crate) fn data_groups() -> impl Iterator<Item = GroupId> {
    Layout::data_groups()
}
