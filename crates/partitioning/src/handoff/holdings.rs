//! What a group holds, as its own log says: the place where a write is taken or refused.
//!
//! Invariant: a pure fold over the log, so every replica has the same holdings at the same index, and so has one that starts anew.
//! A record that does not fit changes nothing: doubled and late proposals are harmless.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::{Epoch, GroupId, LogIndex};
use serde::{Deserialize, Serialize};

use super::{Record, TargetStore};
use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId};
use crate::map::{Partition, PartitionMap, Route, StaleRoute};
use crate::partitioner::Position;
use crate::span::Span;

/// A partition that the group has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// As the map had it when the group's log last said so.
    pub entry: Partition,
    /// Whether it takes writes.
    pub phase: Phase,
}

impl Held {
    fn serving(entry: &Partition) -> Box<Self> {
        Box::new(Self { entry: entry.clone(), phase: Phase::Serving })
    }
}

/// Entries of partitions that have left the group, kept for those who still ask here; the oldest go first.
pub const DEPARTED_MAX: usize = 64;

/// Whether a partition takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It does.
    Serving,
    /// It does not, until the handoff is decided.
    Sealed {
        /// By which handoff.
        handoff: HandoffId,
        /// Where in the log.
        at: LogIndex,
    },
}

/// A partition that is on its way here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Which partition.
    pub partition: PartitionId,
    /// What it covers.
    pub span: Span,
    /// Which life of it.
    pub birth: Birth,
    /// Its bounds version at the source; one more when it is open here.
    pub bounds: BoundsVersion,
    /// The source's log index up to which it is here, as far as it is copied.
    pub to: LogIndex,
    /// How far it is copied.
    pub copied: Copied,
    /// Whether that is the source's seal, checked by digest.
    pub prepared: bool,
}

/// How far a copy has come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Copied {
    /// Up to and with this key.
    Through(Bytes),
    /// To the end.
    Whole,
}

impl From<Option<Bytes>> for Copied {
    fn from(through: Option<Bytes>) -> Self {
        through.map_or(Self::Whole, Self::Through)
    }
}

/// Why a group does not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// It is on its way to another group: ask again soon, here or there.
    #[error("the partition is being handed off by handoff {0}")]
    HandingOff(HandoffId),
    /// The group does not hold it: the sender's route is stale.
    #[error("the group does not hold the partition")]
    Elsewhere,
}

/// Why a request is not carried out under its route. Nothing has been done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The sender's map is older than the group's log: it has the answer in hand, as far as the group knows it.
    #[error(transparent)]
    Stale(#[from] StaleRoute),
    /// The sender's map is newer than what the group's log says so far: ask again soon.
    #[error("the route is from a newer map than that of epoch {epoch}")]
    Ahead {
        /// What the group's log knows of.
        epoch: Epoch,
    },
    /// It is on its way to another group: ask again soon, here or there.
    #[error("the partition is being handed off by handoff {0}")]
    HandingOff(HandoffId),
}

/// What a group holds, and what is on its way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    // Boxed, for a leaf of the tree has room for many, and most groups have one.
    held: BTreeMap<PartitionId, Box<Held>>,
    staged: BTreeMap<HandoffId, Staged>,
    // Of each partition the newest handoff that is over for this group.
    fences: BTreeMap<PartitionId, HandoffId>,
    // Where partitions are that were here.
    departed: VecDeque<Partition>,
    // Of the newest map that the log has told of.
    epoch: Epoch,
    // Of the newest map whose splits and merges the log has told of.
    recut_at: Epoch,
}

impl Holdings {
    /// What a group holds by the first map, before its log has said anything.
    pub fn first(map: &PartitionMap, group: GroupId) -> Self {
        let held = |it: &Partition| (it.id, Held::serving(it));
        Self { held: map.of_group(group).map(held).collect(), epoch: map.epoch(), ..Self::default() }
    }

    /// The newest map that the group's log has told of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The partitions that it holds.
    pub fn held(&self) -> impl Iterator<Item = (PartitionId, &Held)> {
        self.held.iter().map(|(id, held)| (*id, &**held))
    }

    /// What is staged for a handoff.
    pub fn staged(&self, handoff: HandoffId) -> Option<&Staged> {
        self.staged.get(&handoff)
    }

    /// All that is staged.
    pub fn all_staged(&self) -> impl Iterator<Item = (HandoffId, &Staged)> {
        self.staged.iter().map(|(id, staged)| (*id, staged))
    }

    /// The partition that a handoff has sealed, and where in the log.
    pub fn sealed(&self, handoff: HandoffId) -> Option<(PartitionId, LogIndex)> {
        self.held.iter().find_map(|(id, held)| match held.phase {
            Phase::Sealed { handoff: by, at } if by == handoff => Some((*id, at)),
            _ => None,
        })
    }

    /// Whether a handoff of this partition is over for this group: it can neither seal nor stage any more.
    pub fn is_over(&self, partition: PartitionId, handoff: HandoffId) -> bool {
        self.fences.get(&partition).is_some_and(|fence| *fence >= handoff)
    }

    fn at(&self, position: &Position<'_>) -> Result<&Held, NotHere> {
        let held = self.held.values().find(|held| stands_in(position, &held.entry.span));
        held.map(Box::as_ref).ok_or(NotHere::Elsewhere)
    }

    /// Whether a request for a position is carried out under its route. To be asked when a write is applied, by every replica, and
    /// when a read is answered.
    ///
    /// # Errors
    /// Why it is not; nothing is to be done then.
    pub fn check(&self, route: &Route, position: &Position<'_>) -> Result<&Held, Refusal> {
        let held =
            self.held.get(&route.partition).map(Box::as_ref).filter(|held| stands_in(position, &held.entry.span));
        if let Some(held) = held
            && (held.entry.birth, held.entry.bounds) == (route.birth, route.bounds)
        {
            return match held.phase {
                Phase::Serving => Ok(held),
                Phase::Sealed { handoff, .. } => Err(Refusal::HandingOff(handoff)),
            };
        }
        Err(self.refusal(route, |span| stands_in(position, span)))
    }

    /// As [`Self::check`], for a request that is for whatever is in the route's partition.
    ///
    /// # Errors
    /// Why it is not carried out.
    pub fn check_whole(&self, route: &Route) -> Result<&Held, Refusal> {
        match self.held.get(&route.partition).map(Box::as_ref) {
            Some(held) if (held.entry.birth, held.entry.bounds) == (route.birth, route.bounds) => match held.phase {
                Phase::Serving => Ok(held),
                Phase::Sealed { handoff, .. } => Err(Refusal::HandingOff(handoff)),
            },
            held => {
                let span = held.map(|held| held.entry.span.clone());
                Err(self.refusal(route, |other| span.as_ref().is_some_and(|span| span.meets(other))))
            }
        }
    }

    fn refusal(&self, route: &Route, concerns: impl Fn(&Span) -> bool) -> Refusal {
        let known = self.held.get(&route.partition).map(|held| (held.entry.birth, held.entry.bounds));
        let is_ahead = match known {
            Some(known) => (route.birth, route.bounds) > known,
            // One that left is not ahead; one that this group has not heard of may be on its way here.
            None => {
                let left = self.departed.iter().rev().find(|it| it.id == route.partition);
                left.map_or(route.birth.0 > self.epoch.0, |it| (route.birth, route.bounds) >= (it.birth, it.bounds))
                    || self.staged.values().any(|staged| staged.partition == route.partition)
            }
        };
        if is_ahead {
            return Refusal::Ahead { epoch: self.epoch };
        }
        let held = self.held.values().map(|held| &held.entry);
        let current = held.chain(self.departed.iter().rev()).filter(|entry| concerns(&entry.span));
        Refusal::Stale(StaleRoute { epoch: self.epoch, current: current.take(STALE_ENTRIES).cloned().collect() })
    }

    /// What must be written into the group's log so that its holdings follow the splits, merges and placements of a map: a
    /// [`Record::Recut`] for the entries of this group that cover what the group holds and are not held like that yet. None when the
    /// holdings are as the map has them, or something else has to come first.
    pub fn recut(&self, map: &PartitionMap, group: GroupId) -> Option<Record> {
        if map.epoch() < self.recut_at {
            return None;
        }
        let is_held = |it: &Partition| self.held.get(&it.id).is_some_and(|held| held.entry == *it);
        let wanted: Vec<&Partition> = map.of_group(group).filter(|it| !is_held(it)).collect();
        // Each maximal run of neighbours that covers exactly what some held partitions cover.
        let mut entries: Vec<Partition> = Vec::new();
        let mut run: Vec<&Partition> = Vec::new();
        for it in wanted {
            if run.last().is_some_and(|last| last.span.end.as_ref() != Some(&it.span.start)) {
                run.clear();
            }
            run.push(it);
            // The shortest end of the run that fits: neighbours that are not here yet do not hold the others up.
            let fit = (0..run.len()).rev().find(|&from| self.replaced(&run[from..], map.epoch()).is_some());
            if let Some(from) = fit {
                entries.extend(run.drain(..).skip(from).cloned());
            }
        }
        (!entries.is_empty()).then_some(Record::Recut { epoch: map.epoch(), entries })
    }

    /// The held partitions, all serving, that cover exactly what these neighbours cover, if the map of `epoch` may have made the
    /// ones of the others.
    fn replaced(&self, neighbours: &[&Partition], epoch: Epoch) -> Option<Vec<PartitionId>> {
        let (first, last) = (neighbours.first()?, neighbours.last()?);
        let whole = Span { start: first.span.start.clone(), end: last.span.end.clone() };
        let is_forward = |new: &Partition| {
            self.held.get(&new.id).is_none_or(|held| {
                let old = &held.entry;
                (old.birth, old.bounds, old.placement) <= (new.birth, new.bounds, new.placement)
            })
        };
        let mut old: Vec<_> = self.held.iter().filter(|(_, held)| held.entry.span.meets(&whole)).collect();
        old.sort_by(|a, b| a.1.entry.span.start.cmp(&b.1.entry.span.start));
        let fits = |held: &Held| held.phase == Phase::Serving && held.entry.birth.0 <= epoch.0;
        let joined = old.windows(2).all(|pair| pair[0].1.entry.span.end.as_ref() == Some(&pair[1].1.entry.span.start));
        let (left, right) = (&old.first()?.1.entry.span, &old.last()?.1.entry.span);
        let covers = joined && left.start == whole.start && right.end == whole.end;
        // One that is held already, but elsewhere, cannot come here.
        let own = |new: &&Partition| self.held.get(&new.id).is_none_or(|held| held.entry.span.meets(&whole));
        (covers && old.iter().all(|(_, held)| fits(held)) && neighbours.iter().all(|it| is_forward(it) && own(it)))
            .then(|| old.iter().map(|(id, _)| **id).collect())
    }

    fn apply_recut(&mut self, epoch: Epoch, entries: &[Partition]) {
        if epoch < self.recut_at {
            return;
        }
        let neighbours = |a: &Partition, b: &Partition| a.span.end.as_ref() == Some(&b.span.start);
        for chunk in entries.chunk_by(neighbours) {
            // A stretch may be made of several that fit one by one.
            let mut rest: Vec<&Partition> = chunk.iter().collect();
            while !rest.is_empty() {
                let fit = (1..=rest.len()).find_map(|to| self.replaced(&rest[..to], epoch).map(|old| (to, old)));
                let Some((to, old)) = fit else { break };
                for id in old {
                    self.held.remove(&id);
                }
                for entry in rest.drain(..to) {
                    self.held.insert(entry.id, Held::serving(entry));
                }
            }
        }
        (self.recut_at, self.epoch) = (epoch, self.epoch.max(epoch));
    }

    fn depart(&mut self, entries: &[Partition]) {
        for entry in entries {
            self.departed.retain(|it| it.id != entry.id);
            self.departed.push_back(entry.clone());
        }
        let over = self.departed.len().saturating_sub(DEPARTED_MAX);
        self.departed.drain(..over);
    }

    /// Whether a write is taken. To be asked when the write is applied, by every replica: then it is a fact of the log.
    ///
    /// # Errors
    /// Why it is not; nothing is to be done then.
    pub fn admit_write(&self, position: &Position<'_>) -> Result<(), NotHere> {
        match self.at(position)?.phase {
            Phase::Serving => Ok(()),
            Phase::Sealed { handoff, .. } => Err(NotHere::HandingOff(handoff)),
        }
    }

    /// The handoff that has sealed what the position is in; none where writes are taken.
    pub(super) fn sealed_at(&self, position: &Position<'_>) -> Result<Option<HandoffId>, NotHere> {
        match self.at(position)?.phase {
            Phase::Serving => Ok(None),
            Phase::Sealed { handoff, .. } => Ok(Some(handoff)),
        }
    }

    /// Whether what is staged for a handoff covers a position: for checks.
    pub fn is_staged(&self, position: &Position<'_>) -> bool {
        self.staged.values().any(|staged| stands_in(position, &staged.span))
    }

    fn close(&mut self, partition: PartitionId, handoff: HandoffId) {
        let fence = self.fences.entry(partition).or_default();
        *fence = handoff.max(*fence);
    }

    /// Applies a record that stands at `index` in the group's log.
    pub fn apply(&mut self, index: LogIndex, record: &Record, store: &mut impl TargetStore) {
        match record {
            Record::Recut { epoch, entries } => self.apply_recut(*epoch, entries),
            Record::Seal { handoff, partition, birth, bounds } => {
                let over = self.is_over(*partition, *handoff);
                if let Some(held) = self.held.get_mut(partition).filter(|held| {
                    !over && held.phase == Phase::Serving && (held.entry.birth, held.entry.bounds) == (*birth, *bounds)
                }) {
                    held.phase = Phase::Sealed { handoff: *handoff, at: index };
                }
            }
            Record::Unseal { handoff, partition } => {
                if self.sealed(*handoff).is_some_and(|(id, _)| id == *partition)
                    && let Some(held) = self.held.get_mut(partition)
                {
                    held.phase = Phase::Serving;
                }
                self.close(*partition, *handoff);
            }
            Record::Drop { handoff, partition, epoch, now } => {
                if self.sealed(*handoff).is_some_and(|(id, _)| id == *partition)
                    && let Some(held) = self.held.remove(partition)
                {
                    if self.held.is_empty() {
                        store.clear();
                    } else {
                        store.remove(&held.entry.span);
                    }
                    self.depart(now);
                    self.epoch = self.epoch.max(*epoch);
                }
                self.close(*partition, *handoff);
            }
            Record::Stage { handoff, partition, birth, bounds, span, at, after, piece } => {
                let staged = self.staged.get(handoff).filter(|_| !self.is_over(*partition, *handoff));
                let fits = match after {
                    None => self.staged.get(handoff).is_none_or(|staged| !staged.prepared && staged.to < *at),
                    Some(after) => staged
                        .is_some_and(|it| it.to == *at && matches!(&it.copied, Copied::Through(key) if key == after)),
                };
                if !fits || self.is_over(*partition, *handoff) {
                    return;
                }
                if after.is_none() {
                    store.stage_anew(*handoff);
                }
                let staged = Staged {
                    partition: *partition,
                    span: span.clone(),
                    birth: *birth,
                    bounds: *bounds,
                    to: *at,
                    copied: piece.through.clone().into(),
                    prepared: false,
                };
                self.staged.insert(*handoff, staged);
                store.stage_entry(*handoff, &piece.items);
            }
            Record::Tail { handoff, after, to, entries } => {
                if let Some(staged) = self.staged.get_mut(handoff).filter(|staged| {
                    !staged.prepared && staged.copied == Copied::Whole && staged.to == *after && after < to
                }) {
                    staged.to = *to;
                    for entry in entries {
                        store.stage_entry(*handoff, entry);
                    }
                }
            }
            Record::Prepared { handoff, sealed } => {
                if let Some(staged) =
                    self.staged.get_mut(handoff).filter(|staged| staged.to == *sealed && staged.copied == Copied::Whole)
                {
                    staged.prepared = true;
                }
            }
            Record::Open { handoff, entry } => {
                // What of it was here before has to go first, and the entry has to be what was staged, one version on.
                let fits = |it: &Staged| {
                    it.prepared
                        && (it.partition, it.birth, it.bounds.next(), &it.span)
                            == (entry.id, entry.birth, entry.bounds, &entry.span)
                        && !self.held.values().any(|held| held.entry.span.meets(&it.span))
                };
                if self.staged.get(handoff).is_some_and(fits) {
                    self.staged.remove(handoff);
                    self.departed.retain(|it| !it.span.meets(&entry.span));
                    self.held.insert(entry.id, Held::serving(entry));
                    self.close(entry.id, *handoff);
                    store.publish(*handoff);
                }
            }
            Record::Discard { handoff, partition } => {
                if self.staged.remove(handoff).is_some() {
                    store.discard(*handoff);
                }
                self.close(*partition, *handoff);
            }
        }
    }
}

fn stands_in(position: &Position<'_>, span: &Span) -> bool {
    position.cmp_bound(&span.start).is_ge() && span.end.as_deref().is_none_or(|end| position.cmp_bound(end).is_lt())
}

/// Entries in one refusal.
const STALE_ENTRIES: usize = crate::map::STALE_ENTRIES_MAX;
