//! Changing members in two steps, so that nothing stays behind: first the new ones join those who are there, and then those go who are
//! to leave, once the others have everything.
//!
//! Invariants, in the epoch of the first step:
//!
//! - Until a member has *fenced*, it counts copies at the members before; from then on at those who stay. It fences once every node that
//!   joins has caught up, durably before it tells; and one that is to leave takes no writes from then on.
//! - What a member holds when it tells of its fence has everything in it that it has acknowledged otherwise than by those who stay.
//!   So when every member has told, and each of those who stay has all of that on its disk, the others are needed for nothing
//!   any more. That is what [`MultiLeader::drained`] says; who keeps the memberships then makes the second step.
//! - Nobody who is to leave is waited for in vain because of a clock: if it never tells, somebody has to give it up.
//!
//! Writes are taken at every moment by whoever stays, and by whoever leaves until those who come have caught up: nothing pauses.
//! Source: Kleppmann, DDIA, chapter 5 (leaders that hand over what they have written); joint membership: Ongaro's thesis 2014, section 4.3.

use std::collections::BTreeSet;

use replikit_core::{Epoch, Event, NodeId, Rejection, VersionVector, WriteId};

use crate::member::Member;
use crate::replica::MultiLeader;

/// How far the change has come, as this replica knows.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// The storage action that makes the own fence durable.
    stored: WriteId,
    /// Who has told of having fenced, this node included.
    told: BTreeSet<NodeId>,
    /// What they held when they told of it first.
    held: VersionVector,
}

impl Fence {
    /// A member has begun a new life, and may have lost what it had told of: all have to tell again.
    pub(crate) fn look_anew(&mut self) {
        self.told.clear();
        self.held = VersionVector::new();
    }

    fn tells(&mut self, node: NodeId, held: impl FnOnce() -> VersionVector) {
        if self.told.insert(node) {
            self.held.join(&held());
        }
    }
}

impl MultiLeader {
    /// Whether copies are counted by who stays.
    fn has_fenced(&self) -> bool {
        self.register.fenced == self.epoch
    }

    /// Whether others are told of it: it is durable, and everything that was to be acknowledged by then is held.
    pub(crate) fn tells_of_fence(&self) -> bool {
        let is_durable = self.epochs.fence.stored <= self.durable && self.told_epoch() == self.epoch;
        self.has_fenced() && is_durable && self.origin().is_some() && !self.epochs.evicted
    }

    /// Whether this node is about to leave, and somebody else is to be written to.
    pub(crate) fn takes_no_writes(&self) -> bool {
        self.has_fenced() && self.epochs.membership.turnover.leaving.contains(&self.config.node)
    }

    /// Whether a copy at this member counts.
    pub(crate) fn counts_copies(&self, node: NodeId) -> bool {
        let membership = &self.epochs.membership;
        if !membership.turnover.is_open() {
            return true;
        }
        // All members before may have been given up.
        let is_anybody_old = || membership.ids().any(|node| !membership.turnover.joining.contains(&node));
        match self.has_fenced() {
            true => !membership.turnover.leaving.contains(&node),
            false => !membership.turnover.joining.contains(&node) || !is_anybody_old(),
        }
    }

    /// A member has told something: perhaps that it has fenced.
    pub(crate) fn hear_of_fence(&mut self, node: NodeId) {
        let report = self.members.get(&node).and_then(|member| member.report.as_ref());
        let told = report.filter(|report| report.fenced && report.epoch == self.epoch && report.current.is_some());
        if let Some(report) = told {
            self.epochs.fence.tells(node, || report.held.clone());
        }
    }

    /// Fences as soon as that can be, and sees to it that the others hear.
    pub(crate) fn follow_change(&mut self) {
        if !self.epochs.membership.turnover.is_open() || self.epochs.evicted {
            return;
        }
        if !self.has_fenced() && self.may_fence() {
            self.close_batch();
            self.register.fenced = self.epoch;
            self.persist_register();
            self.epochs.fence.stored = self.last_write;
            self.count_anew();
            self.release_acks();
        }
        let me = self.config.node;
        if self.tells_of_fence() && !self.epochs.fence.told.contains(&me) {
            let held = self.held();
            self.epochs.fence.tells(me, || held);
            self.owed.extend(self.members.keys().copied());
        }
    }

    /// Whether those who join have caught up, and this node has as well.
    fn may_fence(&self) -> bool {
        let membership = &self.epochs.membership;
        let me = self.config.node;
        let is_ready = |member: &Member| {
            member.tells_of(self.epoch) && member.report.as_ref().is_some_and(|report| report.current.is_some())
        };
        let mut come = membership.turnover.joining.difference(&membership.turnover.leaving).filter(|node| **node != me);
        self.told_epoch() == self.epoch
            && self.origin().is_some()
            && come.all(|node| self.members.get(node).is_some_and(is_ready))
    }

    /// The epoch that this replica acts in, if it is one of a change of members in two steps, and the second step can be made: those who
    /// stay, of whom this node is one, have on their disks everything that any member has ever acknowledged.
    #[must_use]
    pub fn drained(&self) -> Option<Epoch> {
        let membership = &self.epochs.membership;
        let stays = |node: NodeId| !membership.turnover.leaving.contains(&node);
        let Fence { told, held, .. } = &self.epochs.fence;
        if !membership.turnover.is_open()
            || !stays(self.config.node)
            || !membership.ids().all(|node| told.contains(&node))
        {
            return None;
        }
        let has_all = |member: &Member| {
            member.tells_of(self.epoch) && member.report.as_ref().is_some_and(|report| report.durable().covers(held))
        };
        let others = self.members.iter().filter(|(node, _)| stays(**node)).all(|(_, member)| has_all(member));
        (others && self.durable_vector().covers(held)).then_some(self.epoch)
    }

    /// Whether this node is no member any more, and the others have everything that it had.
    fn has_left(&self) -> bool {
        let left = self.epochs.membership.turnover.left.get(&self.config.node);
        self.epochs.evicted && left == Some(&self.register.fenced)
    }

    /// Why somebody else has to be asked who has the keys, if this node has none any more, or none yet.
    pub(crate) fn shows_nothing(&self) -> Option<Rejection> {
        if self.has_left() {
            return Some(Rejection::StaleRoute { current: self.epoch });
        }
        let joins = self.epochs.membership.turnover.joining.contains(&self.config.node);
        (joins && self.origin().is_none()).then_some(Rejection::CatchingUp)
    }

    /// This node may be no member any more. If the others have everything that it has, it keeps nothing.
    pub(crate) fn try_retiring(&mut self) {
        let has_nothing = self.streams.is_empty() && self.state.keys() == 0;
        if !self.has_left() || has_nothing {
            return;
        }
        self.give_up_reads();
        self.drop_content();
        let epoch = self.epoch;
        self.event(Event::Retired { epoch, stashed: 0 });
    }
}
