//! What a group holds, as its own log says: the place where a write is taken or refused.
//!
//! Invariant: a pure fold over the log, so every replica has the same holdings at the same index, and so has one that starts anew.
//! A record that does not fit changes nothing: doubled and late proposals are harmless.

use std::collections::BTreeMap;

use replikit_core::{GroupId, LogIndex};
use serde::{Deserialize, Serialize};

use super::{Record, Seal, TargetStore};
use crate::id::{Birth, BoundsVersion, HandoffId, PartitionId};
use crate::map::{Partition, PartitionMap};
use crate::partitioner::Position;
use crate::span::Span;

/// A partition that the group has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it covers.
    pub span: Span,
    /// Which life of it.
    pub birth: Birth,
    /// Under which bounds.
    pub bounds: BoundsVersion,
    /// Whether it takes writes.
    pub phase: Phase,
}

/// Whether a partition takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It does.
    Serving,
    /// It does not, until the handoff is decided.
    Sealed {
        /// By which handoff.
        handoff: HandoffId,
        /// Where in the log, and what there was at it.
        seal: Seal,
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
    /// The source's log index up to which it is here.
    pub to: LogIndex,
    /// Whether that is the source's seal, checked by digest.
    pub prepared: bool,
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

/// What a group holds, and what is on its way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    held: BTreeMap<PartitionId, Held>,
    staged: BTreeMap<HandoffId, Staged>,
    // Of each partition the newest handoff that is over for this group.
    fences: BTreeMap<PartitionId, HandoffId>,
}

impl Holdings {
    /// What a group holds by the first map, before its log has said anything.
    pub fn first(map: &PartitionMap, group: GroupId) -> Self {
        let held = |it: &Partition| {
            let held = Held { span: it.span.clone(), birth: it.birth, bounds: it.bounds, phase: Phase::Serving };
            (it.id, held)
        };
        Self { held: map.of_group(group).map(held).collect(), ..Self::default() }
    }

    /// The partitions that it holds.
    pub fn held(&self) -> impl Iterator<Item = (PartitionId, &Held)> {
        self.held.iter().map(|(id, held)| (*id, held))
    }

    /// What is staged for a handoff.
    pub fn staged(&self, handoff: HandoffId) -> Option<&Staged> {
        self.staged.get(&handoff)
    }

    /// All that is staged.
    pub fn all_staged(&self) -> impl Iterator<Item = (HandoffId, &Staged)> {
        self.staged.iter().map(|(id, staged)| (*id, staged))
    }

    /// The partition that a handoff has sealed, with the seal.
    pub fn sealed(&self, handoff: HandoffId) -> Option<(PartitionId, Seal)> {
        self.held.iter().find_map(|(id, held)| match held.phase {
            Phase::Sealed { handoff: by, seal } if by == handoff => Some((*id, seal)),
            _ => None,
        })
    }

    /// Whether a handoff of this partition is over for this group: it can neither seal nor stage any more.
    pub fn is_over(&self, partition: PartitionId, handoff: HandoffId) -> bool {
        self.fences.get(&partition).is_some_and(|fence| *fence >= handoff)
    }

    fn at(&self, position: &Position<'_>) -> Result<&Held, NotHere> {
        let covers = |held: &&Held| {
            position.cmp_bound(&held.span.start).is_ge()
                && held.span.end.as_deref().is_none_or(|end| position.cmp_bound(end).is_lt())
        };
        self.held.values().find(covers).ok_or(NotHere::Elsewhere)
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

    fn close(&mut self, partition: PartitionId, handoff: HandoffId) {
        let fence = self.fences.entry(partition).or_default();
        *fence = handoff.max(*fence);
    }

    /// Applies a record that stands at `index` in the group's log.
    pub fn apply(&mut self, index: LogIndex, record: &Record, store: &mut impl TargetStore) {
        match record {
            Record::Seal { handoff, partition, birth, bounds } => {
                let over = self.is_over(*partition, *handoff);
                if let Some(held) = self.held.get_mut(partition).filter(|held| {
                    !over && held.phase == Phase::Serving && (held.birth, held.bounds) == (*birth, *bounds)
                }) {
                    let seal = Seal { at: index, digest: store.digest(&held.span) };
                    held.phase = Phase::Sealed { handoff: *handoff, seal };
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
            Record::Drop { handoff, partition } => {
                if self.sealed(*handoff).is_some_and(|(id, _)| id == *partition)
                    && let Some(held) = self.held.remove(partition)
                {
                    store.remove(&held.span);
                }
                self.close(*partition, *handoff);
            }
            Record::Stage { handoff, partition, birth, bounds, span, at, snapshot } => {
                let newer = self.staged.get(handoff).is_none_or(|staged| !staged.prepared && staged.to < *at);
                if newer && !self.is_over(*partition, *handoff) {
                    let staged = Staged {
                        partition: *partition,
                        span: span.clone(),
                        birth: *birth,
                        bounds: *bounds,
                        to: *at,
                        prepared: false,
                    };
                    self.staged.insert(*handoff, staged);
                    store.stage(*handoff, snapshot);
                }
            }
            Record::Tail { handoff, after, to, entries } => {
                if let Some(staged) =
                    self.staged.get_mut(handoff).filter(|staged| !staged.prepared && staged.to == *after && after < to)
                {
                    staged.to = *to;
                    for entry in entries {
                        store.stage_entry(*handoff, entry);
                    }
                }
            }
            Record::Prepared { handoff, sealed } => {
                if let Some(staged) = self.staged.get_mut(handoff).filter(|staged| staged.to == *sealed) {
                    staged.prepared = true;
                }
            }
            Record::Open { handoff } => {
                if self.staged.get(handoff).is_some_and(|staged| staged.prepared)
                    && let Some(staged) = self.staged.remove(handoff)
                {
                    let Staged { partition, span, birth, bounds, .. } = staged;
                    self.held.insert(partition, Held { span, birth, bounds: bounds.next(), phase: Phase::Serving });
                    self.close(partition, *handoff);
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
