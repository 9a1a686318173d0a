//! What has changed of other nodes, and that recovery is over, told to the groups one after the other: neither a node that dies under
//! ten thousand sleeping groups nor one that starts with as many wakes them all at once.
//!
//! Invariant: every group hears of every change, in order, or of none while it is not here.

use core::time::Duration;
use std::collections::VecDeque;

use replikit_core::{Link, NodeId, Time};

use crate::heartbeats;
use crate::writes::SlotId;

/// So long after a step comes the next one.
const STEP: Duration = Duration::from_millis(1);
/// The same while the node has enough to do: much to write, or no time to begin a step when it is due.
const STEP_BUSY: Duration = Duration::from_millis(16);
/// A step that begins so much too late tells of a node that has enough to do.
const LATE: Duration = Duration::from_millis(5);
/// Groups that are woken in a step. An election takes a few messages and two writes to the log on each side.
pub(crate) const WOKEN_PER_STEP: usize = 8;
/// Groups that are told in a step, if few of them wake.
const TOLD_PER_STEP: usize = 1024;

/// What groups are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Recovery is over.
    Begin,
    /// How the link to a node is.
    Link(NodeId, Link),
}

/// One change, and which group is told next.
#[derive(Debug)]
struct Change {
    notice: Notice,
    next: SlotId,
}

/// Changes that not all groups have been told of.
#[derive(Debug, Default)]
pub(crate) struct News {
    changes: VecDeque<Change>,
    // When the next step is due; none while there is nothing to tell.
    step_at: Option<Time>,
    stepped_at: Time,
    told: usize,
    woken: usize,
}

impl News {
    /// Something has changed.
    pub(crate) fn add(&mut self, notice: Notice, now: Time) {
        self.changes.push_back(Change { notice, next: 0 });
        self.step_at.get_or_insert(now);
    }

    /// When the next step is due.
    pub(crate) const fn due_at(&self) -> Option<Time> {
        self.step_at
    }

    /// Begins a step if it is due; a node that has enough to do takes fewer of them.
    pub(crate) fn begin(&mut self, now: Time, is_busy: bool) -> bool {
        let Some(due) = self.step_at.filter(|at| *at <= now) else { return false };
        self.step_at = Some(now + STEP);
        let waits = (is_busy || now >= due + LATE) && now < self.stepped_at + STEP_BUSY;
        if !waits {
            (self.stepped_at, self.told, self.woken) = (now, 0, 0);
        }
        !waits
    }

    /// The next group to tell in this step, of `slots` in all, and what.
    pub(crate) fn next(&mut self, slots: usize) -> Option<(SlotId, Notice)> {
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
            return Some((slot, change.notice));
        }
    }

    /// The group that was told last has woken.
    pub(crate) const fn woke(&mut self) {
        self.woken += 1;
    }

    /// Nodes that are gone, as a group will be told: it should know before it hears anything else.
    pub(crate) fn losses(&self, slot: SlotId) -> impl Iterator<Item = (NodeId, Link)> {
        let untold = self.changes.iter().filter(move |change| change.next <= slot);
        untold.filter_map(|change| match change.notice {
            Notice::Link(_, Link::Up) | Notice::Begin => None,
            Notice::Link(node, link) => Some((node, link)),
        })
    }
}

impl From<heartbeats::News> for Notice {
    fn from((node, link): heartbeats::News) -> Self {
        Self::Link(node, link)
    }
}
