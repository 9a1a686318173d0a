//! What has changed of other nodes, told to the groups one after the other: a node that dies under ten thousand sleeping groups
//! does not wake them all at once.
//!
//! Invariant: every group hears of every change, in order, or of none while it is not here.

use core::time::Duration;
use std::collections::VecDeque;

use replikit_core::{Link, NodeId, Time};

use crate::heartbeats;
use crate::writes::SlotId;

/// So long after a step comes the next one.
const STEP: Duration = Duration::from_millis(1);
/// Groups that are woken in a step. An election takes a few messages and two writes to the log on each side.
pub(crate) const WOKEN_PER_STEP: usize = 8;
/// Groups that are told in a step, if few of them wake.
const TOLD_PER_STEP: usize = 1024;

/// One change, and which group is told next.
#[derive(Debug)]
struct Change {
    node: NodeId,
    link: Link,
    next: SlotId,
}

/// Changes that not all groups have been told of.
#[derive(Debug, Default)]
pub(crate) struct News {
    changes: VecDeque<Change>,
    // When the next step is due; none while there is nothing to tell.
    step_at: Option<Time>,
    told: usize,
    woken: usize,
}

impl News {
    /// Something has changed.
    pub(crate) fn add(&mut self, (node, link): heartbeats::News, now: Time) {
        self.changes.push_back(Change { node, link, next: 0 });
        self.step_at.get_or_insert(now);
    }

    /// When the next step is due.
    pub(crate) const fn due_at(&self) -> Option<Time> {
        self.step_at
    }

    /// Begins a step if it is due.
    pub(crate) fn begin(&mut self, now: Time) -> bool {
        let is_due = self.step_at.is_some_and(|at| at <= now);
        if is_due {
            (self.told, self.woken) = (0, 0);
            self.step_at = Some(now + STEP);
        }
        is_due
    }

    /// The next group to tell in this step, of `slots` in all, and what.
    pub(crate) fn next(&mut self, slots: usize) -> Option<(SlotId, NodeId, Link)> {
        loop {
            let Some(change) = self.changes.front_mut() else {
                self.step_at = None;
                return None;
            };
            if change.next as usize >= slots {
                self.changes.pop_front();
                continue;
            }
            if self.told >= TOLD_PER_STEP || self.woken >= WOKEN_PER_STEP {
                return None;
            }
            self.told += 1;
            let slot = change.next;
            change.next += 1;
            return Some((slot, change.node, change.link));
        }
    }

    /// The group that was told last has woken.
    pub(crate) const fn woke(&mut self) {
        self.woken += 1;
    }

    /// Nodes that are gone, as a group will be told: it should know before it hears anything else.
    pub(crate) fn losses(&self, slot: SlotId) -> impl Iterator<Item = (NodeId, Link)> {
        let untold = self.changes.iter().filter(move |change| change.next <= slot && change.link != Link::Up);
        untold.map(|change| (change.node, change.link))
    }
}
