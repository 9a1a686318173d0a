//! Membership by epoch: who belongs to the group, whose writes are closed and how far, and when a new epoch is settled.
//!
//! Invariants: all that a replica says and takes belongs to one epoch, and replicas of different epochs exchange no writes. So
//! when every member has told what it holds in the epoch, the union of that is all that there will ever be of the writes of a
//! node that is no member: whoever had more was not asked, and nobody takes it from him. Whoever tells of an epoch has on its
//! disk what it had in its log when it took the epoch over, and hands on writes of closed origins from its disk only; so the
//! union only shrinks if a disk does. Nobody is evicted by a clock.
//! Source: Wuu and Bernstein 1984; "closed origins" against holes that block stability for ever: the prototype of this crate.

use std::collections::{BTreeMap, BTreeSet};

use replikit_core::dotted::{Peer, first_number};
use replikit_core::{
    Epoch, Event, LogIndex, Membership, NodeId, NodeInfo, Origin, OriginId, Outcome, Persist, Reached, Time,
    VersionVector, WriteId,
};

use crate::fence::Fence;
use crate::member::Member;
use crate::message::Report;
use crate::record::Writes;
use crate::register::Stage;
use crate::replica::{MultiLeader, Standing};
use crate::waiting::Waiting;

/// The membership that a replica acts in.
#[derive(Debug)]
pub(crate) struct Epochs {
    pub(crate) membership: Membership,
    /// Whether this node is no member.
    pub(crate) evicted: bool,
    /// What was in the log when the epoch was taken over: durable before anybody is told of the epoch.
    taken_over: WriteId,
    /// The epoch that is told of until then.
    before: Epoch,
    /// What the members held when each had told of the epoch; `None` before.
    union: Option<VersionVector>,
    /// Whether all that has been applied here, in this epoch or for want of an earlier one.
    pub(crate) settled: bool,
    /// Nodes that this epoch or the one before has evicted, whose origins are to be reported as closed.
    closing: BTreeSet<NodeId>,
    /// The members by which keys have their homes: those who have been there and stay, if there are any.
    pub(crate) homes: Membership,
    /// How far a change of members in two steps has come.
    pub(crate) fence: Fence,
}

impl Epochs {
    /// The first one of a replica's life.
    pub(crate) fn new(membership: Membership, node: NodeId, settled: Epoch) -> Self {
        Self {
            evicted: !membership.contains(node),
            taken_over: WriteId(0),
            before: membership.epoch,
            union: None,
            settled: membership.is_founding() || settled == membership.epoch,
            closing: BTreeSet::new(),
            homes: homes(&membership),
            fence: Fence::default(),
            membership,
        }
    }
}

impl Epochs {
    /// A member has begun a new life, and may have lost what it had told of.
    pub(crate) fn look_anew(&mut self) {
        self.union = None;
        self.fence.look_anew();
    }
}

fn homes(membership: &Membership) -> Membership {
    let turnover = &membership.turnover;
    let old = |node: &NodeInfo| !turnover.joining.contains(&node.id);
    let stays = |node: &NodeInfo| old(node) && !turnover.leaving.contains(&node.id);
    let mut homes = membership.clone();
    // Where all are replaced, those who were there are the homes until they have fenced.
    if homes.nodes.iter().any(stays) {
        homes.nodes.retain(stays);
    } else if homes.nodes.iter().any(old) {
        homes.nodes.retain(old);
    }
    homes
}

impl MultiLeader {
    /// Takes over a newer epoch, if there is one.
    pub(crate) fn observe_epoch(&mut self) {
        if self.config.epochs.current().epoch > self.epoch {
            let membership = self.config.epochs.current().clone();
            self.begin_epoch(membership);
        }
    }

    fn begin_epoch(&mut self, membership: Membership) {
        // What is open was written under the epoch before.
        self.close_batch();
        let told = self.told_epoch();
        let me = self.config.node;
        let before = core::mem::replace(&mut self.epochs.membership, membership);
        let membership = &self.epochs.membership;
        self.epoch = membership.epoch;
        self.epochs.homes = homes(membership);
        self.epochs.fence = Fence::default();
        self.register.membership = Some(membership.clone());
        let since = |node: NodeId| membership.since(node).filter(|since| *since <= before.epoch);
        let gone = before.ids().filter(|node| since(*node).is_none() && *node != me);
        self.epochs.closing.extend(gone.collect::<Vec<NodeId>>());
        // Of a node that was evicted in between, nothing that is known counts.
        self.members.retain(|node, _| since(*node).is_some());
        self.epochs.evicted = !membership.contains(me);
        let others: BTreeSet<NodeId> =
            if self.epochs.evicted { BTreeSet::new() } else { membership.ids().filter(|node| *node != me).collect() };
        self.members.retain(|node, _| others.contains(node));
        for &node in &others {
            self.members.entry(node).or_default();
        }
        self.suspected.retain(|node| others.contains(node));
        self.down.retain(|node| others.contains(node));
        self.owed.retain(|node| others.contains(node));
        self.owed_durable.retain(|node, _| others.contains(node));
        self.epochs.union = None;
        self.epochs.settled = false;
        self.arriving = None;
        self.stability.begin_epoch();
        if let Standing::Asking { unheard, wanted, .. } = &mut self.standing {
            unheard.clone_from(&others);
            *wanted = BTreeMap::new();
        }
        if self.epochs.evicted {
            self.peers.clear();
            let epoch = self.epoch;
            self.persist_register();
            // Who counts copies is no matter of this node any more.
            self.give_up_writes();
            self.event(Event::Evicted { epoch });
            return self.try_retiring();
        }
        self.lay_graph();
        self.epochs.before = told;
        let members = self.epochs.membership.ids().collect();
        self.event(Event::EpochBegun { epoch: self.epoch, members });
        if self.must_begin_anew() {
            self.begin_anew();
        } else {
            self.register.epoch = self.epoch;
            self.persist_register();
        }
        self.epochs.taken_over = self.last_write;
        self.count_anew();
        self.next_exchange = Time::ZERO;
        self.outdated = true;
        self.after_news();
    }

    /// Whether this node was evicted since it last took part.
    pub(crate) fn must_begin_anew(&self) -> bool {
        self.epochs.membership.since(self.config.node).is_some_and(|since| since > self.register.epoch)
    }

    /// Lays the topology over the members.
    pub(crate) fn lay_graph(&mut self) {
        let members: Vec<NodeId> = self.epochs.membership.ids().collect();
        self.graph = self.config.topology.over(&members);
        self.bypassed = self.graph.with(&self.graph.bypass(&self.suspected));
        self.peers.clear();
        self.lay_peers();
    }

    pub(crate) fn persist_register(&mut self) {
        let (group, bytes) = (self.config.group, self.register.encode());
        self.persist(Persist::Register { group, bytes });
    }

    /// The epoch that others are told of.
    pub(crate) fn told_epoch(&self) -> Epoch {
        if self.durable >= self.epochs.taken_over { self.epoch } else { self.epochs.before }
    }

    /// More is durable: what was there when the epoch was taken over may be.
    pub(crate) fn tell_of_epoch(&mut self, durable_before: WriteId) {
        if durable_before < self.epochs.taken_over && self.durable >= self.epochs.taken_over {
            self.owed.extend(self.members.keys().copied());
            self.after_news();
        }
    }

    /// Whether what a member reports counts: it has not been evicted since.
    pub(crate) fn counts(&self, node: NodeId, report: &Report) -> bool {
        self.epochs.membership.since(node).is_some_and(|since| since <= report.epoch)
    }

    /// Whether an origin's writes come from other members only: its node is none, or has begun anew since.
    pub(crate) fn is_closed(&self, origin: OriginId) -> bool {
        let Some(Origin { node, incarnation }) = Origin::of(origin) else { return false };
        if node == self.config.node {
            return incarnation.0 < self.register.first;
        }
        match self.members.get(&node) {
            None => true,
            Some(member) => match &member.report {
                Some(report) => incarnation.0 < report.first,
                // It may have come back, and its new incarnation is not known yet.
                None => self.epochs.membership.joined.contains_key(&node),
            },
        }
    }

    /// What the members held when each of them, this one included, had told of the epoch; `None` before.
    fn union(&mut self) -> Option<&VersionVector> {
        let all = || self.members.values().all(|member| member.tells_of(self.epoch));
        if self.epochs.union.is_none() && self.told_epoch() == self.epoch && !self.epochs.evicted && all() {
            let mut union = self.held();
            for report in self.members.values().filter_map(|member| member.report.as_ref()) {
                union.join(&report.held);
            }
            self.epochs.union = Some(union);
        }
        self.epochs.union.as_ref()
    }

    /// How far a closed origin's writes go, once that is certain.
    pub(crate) fn closed_at(&self, origin: OriginId) -> Option<u64> {
        let union = self.epochs.union.as_ref()?;
        self.is_closed(origin).then(|| union.base(origin))
    }

    /// Finds out whether all members have told of the epoch, and what they held has been applied here.
    pub(crate) fn try_settling(&mut self) {
        if self.union().is_none() {
            return;
        }
        for node in core::mem::take(&mut self.epochs.closing) {
            let of_node = |origin: &OriginId| Origin::of(*origin).is_some_and(|origin| origin.node == node);
            let union = self.epochs.union.as_ref().expect("known just now");
            let closed: Vec<OriginId> =
                union.origins().filter(of_node).filter(|origin| self.is_closed(*origin)).collect();
            for origin in closed {
                let last = LogIndex(self.closed_at(origin).unwrap_or(0));
                self.event(Event::OriginClosed { stream: self.stream_id(origin), last });
            }
        }
        let covered = |union: &VersionVector| self.state.applied().covers(union);
        if !self.epochs.settled && self.origin().is_some() && self.epochs.union.as_ref().is_some_and(covered) {
            self.epochs.settled = true;
            self.register.settled = self.epoch;
            self.persist_register();
        }
    }

    /// Whether writes can be applied although something that they had seen is missing: no member has it, and who had is none.
    pub(crate) fn is_ready_without_lost(&self, writes: &Writes) -> bool {
        if self.epochs.union.is_none() || self.state.applied().base(writes.origin()) + 1 != writes.first() {
            return false;
        }
        writes.past.iter().all(|(origin, seen)| {
            let applied = self.state.applied().base(origin);
            applied >= seen.base() || self.closed_at(origin).is_some_and(|last| applied >= last)
        })
    }

    /// Every write under way ends: what becomes of it is known only once this node has come back.
    pub(crate) fn give_up_writes(&mut self) {
        for token in self.waiting_tokens() {
            self.done(token, Outcome::Indeterminate { reached: Reached::default() });
        }
    }

    /// Begins with an empty state, and the life that goes with it. What only this node may have has been put away.
    pub(crate) fn drop_state(&mut self) {
        self.drop_content();
        self.register.stage = Stage::Resubmitting;
        self.register.epoch = self.epoch;
        self.register.first = self.register.incarnation + 1;
        self.register.life += 1;
        self.report_number = first_number(self.register.life);
        self.asked.clear();
        self.persist_register();
        let others: BTreeSet<NodeId> = self.members.keys().copied().collect();
        for member in self.members.values_mut() {
            let heard = member.heard;
            *member = Member::default();
            member.heard = heard;
        }
        self.peers.values_mut().for_each(|peer| *peer = Peer::default());
        let newest = self.register.incarnation;
        self.standing = Standing::Asking { unheard: others, wanted: BTreeMap::new(), newest };
        // Nobody is told of the epoch before all that is on disk.
        self.epochs.taken_over = self.last_write;
        self.epochs.before = self.epochs.before.min(Epoch(self.epoch.0.saturating_sub(1)));
    }

    /// Every key and every stream goes, also from the disk.
    pub(crate) fn drop_content(&mut self) {
        let streams: Vec<OriginId> = self.streams.keys().copied().collect();
        for origin in streams {
            self.persist(Persist::Reset { stream: self.stream_id(origin), next: LogIndex(1) });
        }
        self.streams.clear();
        self.waiting = Waiting::default();
        (self.cache_bytes, self.log_bytes, self.retained_bytes) = (0, 0, 0);
        self.state = crate::state::State::new(
            self.config.node,
            self.config.keyspaces.clone(),
            self.config.limits.audit_bytes_max,
        );
        self.arriving = None;
        self.save();
    }
}
