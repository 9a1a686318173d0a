//! Owners that change: which epochs this replica counts in, when their owners become those of the next one, and who has to
//! begin anew.
//!
//! Steps, each of which any replica may take and the others take over by hearing of it: an epoch is *announced*, and its owners
//! get what the present ones have, and count for nothing; it is *joint*, as soon as those of them that can be heard have it, and
//! are enough: every request needs a quorum of each epoch in force; it is *settled*, once its owners have everything that was
//! acknowledged before, and then those before it own nothing any more.
//!
//! Invariants: an epoch that is in force stays so until a later one that was joint with it is settled; answers count only
//! between replicas that have the same epochs in force, on their disks. So a quorum in one set of epochs and a quorum in another
//! have an owner in common, or the first is held by so many owners of the second that no quorum there is without one.
//!
//! *Why.* To settle, a majority of each epoch before has to be in the joint set, and as many that no quorum of it is without
//! one. From then on none of them answers a request that is not counted in the new epoch, and none can be part of another way
//! out of the old one. What had been acknowledged by a quorum of the old epoch before, one of them holds, and says so; and
//! what they say that they hold has come to enough of the new owners: logs, keys that reads have repaired ahead of the logs,
//! and keys that are compared and set, each of which has been looked at through joint quorums. No clock is asked.
//!
//! Source: joint consensus, Ongaro's thesis section 4.3; reconfiguration without agreement on an order: Jehl, Vitenberg,
//! Meling 2015 (SmartMerge); closed origins: see multi-leader replication.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use replikit_core::dotted::Peer;
use replikit_core::{
    Batches, Epoch, Event, Figure, LogIndex, NodeId, Now, Origin, OriginId, Rejection, SETTLED_EPOCH, Time,
    VersionVector, WriteId,
};
use serde::{Deserialize, Serialize};

use crate::levels::{Owners, Set, Voters};
use crate::message::{Head, Moving, Report};
use crate::orphan::{KEYS_MAX, PATIENCE};
use crate::ownership::Ownership;
use crate::record::Local;
use crate::replica::{Leaderless, Standing};

/// An owner to be is waited for until nothing has been heard of it for so many times the time after which an owner is suspected.
const NEW_OWNER_PATIENCE: u32 = 5;

/// What a replica must not forget of epochs: in the stream of its own records, as it is more than a register holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owning {
    /// The epochs that it counts in.
    pub(crate) ownership: Ownership,
    /// Whether it has had everything that the owners before it had: before, it orders no writes.
    pub(crate) caught_up: bool,
    /// Whether it was evicted, and its state is of that time.
    pub(crate) out: bool,
}

/// The way out of the epochs in force, while they are several.
#[derive(Debug, Default)]
pub(crate) struct Move {
    /// What each owner held when it first told of these epochs, without having begun a new life since.
    held: BTreeMap<NodeId, VersionVector>,
    /// Keys that had seen more than the logs here when these epochs came into force, and that some owner to be may still lack.
    orphans: BTreeMap<Bytes, Ahead>,
    /// The owners to be that lack any of them, or did when it was last looked at.
    lacking: Set,
    exchanges: u32,
    /// The last of them that was told.
    told: Option<Bytes>,
    /// Whether every key that is compared and set here has been looked at in these epochs.
    pub(crate) swept: bool,
}

/// What a key had seen beyond the logs, and the owners to be that do not have it yet.
#[derive(Debug)]
struct Ahead {
    above: VersionVector,
    lacking: Set,
}

impl Move {
    /// A key has been confirmed by an owner.
    pub(crate) fn confirmed(&mut self, key: &Bytes, index: u32) {
        let Some(ahead) = self.orphans.get_mut(key) else { return };
        ahead.lacking.remove(index);
        if ahead.lacking.is_empty() {
            self.orphans.remove(key);
        }
        if self.orphans.is_empty() {
            self.lacking = Set::default();
        }
    }

    /// The logs have brought this much to an owner's disk: most keys have seen more than the logs only because one log is behind
    /// another for a moment.
    fn explained(&mut self, index: u32, durable: &VersionVector) {
        if !self.lacking.contains(index) {
            return;
        }
        self.lacking = Set::default();
        self.orphans.retain(|_, ahead| {
            if ahead.lacking.contains(index) && durable.covers(&ahead.above) {
                ahead.lacking.remove(index);
            }
            self.lacking = self.lacking.union(ahead.lacking);
            !ahead.lacking.is_empty()
        });
    }

    /// Keys that the logs have not explained for a while, each with those that are to be told: every one has its turn.
    fn next_told(&mut self, reachable: Set) -> Vec<(Bytes, Set)> {
        self.exchanges += 1;
        if self.exchanges <= PATIENCE {
            return Vec::new();
        }
        let after = self.told.take().unwrap_or_default();
        let behind = self.orphans.range::<[u8], _>((Bound::Excluded(&after[..]), Bound::Unbounded));
        let before = self.orphans.range::<[u8], _>((Bound::Unbounded, Bound::Included(&after[..])));
        let to_tell = behind.chain(before).map(|(key, ahead)| (key.clone(), ahead.lacking.intersection(reachable)));
        let next: Vec<(Bytes, Set)> = to_tell.filter(|(_, to)| !to.is_empty()).take(KEYS_MAX).collect();
        self.told = next.last().map(|(key, _)| key.clone());
        next
    }

    /// A node may hold less than it has told.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.held.remove(&node);
    }
}

impl Leaderless {
    /// Learns of an epoch that was announced here.
    pub(crate) fn observe_epochs(&mut self, now: Now) {
        let current = self.config.epochs.current();
        if current.epoch > self.newest_known() {
            let announced = Ownership::announced(current.clone());
            self.learn_epochs(now, &announced);
        }
    }

    fn newest_known(&self) -> Epoch {
        self.taking.as_ref().map_or(&self.ownership, |(_, taking)| taking).newest()
    }

    /// What this replica knows of epochs, and tells: that which is on its disk. The same is told to the same node once between
    /// two exchanges: two nodes that wait for their disks with what they have learned would answer each other without end.
    pub(crate) fn tell_epochs(&mut self, now: Now, to: NodeId) {
        if !self.config.epochs.changes() {
            return;
        }
        self.told_epochs.retain(|_, (until, told)| *until > now.mono && *told == self.ownership);
        if !self.told_epochs.contains_key(&to) {
            self.told_epochs.insert(to, (now.mono + self.config.timing.exchange, self.ownership.clone()));
            self.send(to, Head::Epochs(Box::new(self.ownership.clone())), Batches::None);
        }
    }

    /// Another node tells what it knows of epochs.
    pub(crate) fn handle_epochs(&mut self, now: Now, from: NodeId, theirs: &Ownership) {
        if !self.config.epochs.changes() || !theirs.is_sound() {
            return self.misbehaved(from, "epochs that cannot be");
        }
        self.learn_epochs(now, theirs);
        let mut both = theirs.clone();
        if both.merge(&self.ownership) {
            self.tell_epochs(now, from);
        }
    }

    /// Takes in what is known of epochs elsewhere. What concerns those in force counts once it is on disk here.
    fn learn_epochs(&mut self, now: Now, more: &Ownership) {
        let mut wanted = self.taking.as_ref().map_or(&self.ownership, |(_, taking)| taking).clone();
        if !wanted.merge(more) || !wanted.is_sound() || self.failed {
            return;
        }
        if wanted.number() == self.epoch {
            self.ownership.announced = wanted.announced;
            self.lay_members();
            self.come_back(now);
            self.next_exchange = Time::ZERO;
            return;
        }
        if self.taking.as_ref().is_some_and(|(_, taking)| taking.number() == wanted.number()) {
            self.taking.as_mut().expect("looked at just now").1 = wanted;
            return;
        }
        self.taking = Some((WriteId(u64::MAX), wanted));
        let write = self.persist_owning();
        self.taking.as_mut().expect("set just now").0 = write;
    }

    /// What is to be known of epochs after a restart.
    pub(crate) fn owning(&self) -> Option<Owning> {
        let ownership = self.taking.as_ref().map_or(&self.ownership, |(_, taking)| taking);
        self.config.epochs.changes().then(|| Owning {
            ownership: ownership.clone(),
            caught_up: self.caught_up,
            out: self.out,
        })
    }

    pub(crate) fn persist_owning(&mut self) -> WriteId {
        let owning = self.owning().expect("only where epochs change anything of it does");
        self.persist_local(&Local::Owning(Box::new(owning)))
    }

    /// What the disk knows of epochs.
    pub(crate) fn recover_owning(&mut self, owning: Owning) {
        let Owning { ownership, caught_up, out } = owning;
        self.ownership.merge(&ownership);
        (self.caught_up, self.out, self.has_owning) = (caught_up, out, true);
    }

    /// All that the disk knows is known.
    pub(crate) fn count_in_recovered(&mut self, now: Now) {
        self.epoch = self.ownership.number();
        self.lay_owners();
        self.lay_members();
        self.begin_move();
        self.count_consensus(now);
        self.come_back(now);
        self.retire(now);
    }

    /// The disk has it: from now on this replica counts in other epochs.
    pub(crate) fn take_epochs(&mut self, now: Now) {
        if self.taking.as_ref().is_none_or(|(write, _)| *write > self.durable) {
            return;
        }
        // This may make it time for a snapshot, behind which the record of what is taken is released: it still tells of it.
        self.close_batch();
        let Some((_, taking)) = self.taking.take() else { return };
        let me = self.config.node;
        let before = core::mem::replace(&mut self.ownership, taking);
        let (settled, newest) = (before.settled.as_ref().map(|it| it.epoch), before.epoch());
        let had = before.contains(me);
        if had && !self.ownership.continues(&before, me) && !self.out {
            self.out = true;
            self.caught_up = false;
            self.persist_owning();
        }
        self.epoch = self.ownership.number();
        self.lay_owners();
        self.lay_members();
        self.peers.values_mut().for_each(Peer::go_back);
        self.stability.begin_anew();
        if let Standing::Asking { wanted, .. } = &mut self.standing {
            wanted.clear();
        }
        self.orphans.begin_anew();
        self.begin_move();
        self.count_consensus(now);
        let epoch = self.ownership.epoch();
        if epoch > newest {
            let members = self.owners.newest().map_or_else(Vec::new, |newest| {
                self.owners.nodes().iter().copied().filter(|node| self.is_in(newest, *node)).collect()
            });
            self.event(Event::EpochBegun { epoch, members });
        }
        if had && !self.owners.is_owner() {
            self.event(Event::Evicted { epoch });
        }
        let moved = self.ownership.settled.as_ref().map(|it| it.epoch) > settled;
        self.close_gone(&before);
        self.come_back(now);
        self.retire(now);
        self.count_writes_anew(now, moved);
        self.begin_reads_anew(now);
        self.owed.extend(self.members.keys().copied());
        self.owed_stored.extend(self.members.keys().copied());
        self.next_exchange = Time::ZERO;
        self.outdated = true;
    }

    fn is_in(&self, voters: &Voters, node: NodeId) -> bool {
        self.owners.index(node).is_some_and(|index| voters.set().contains(index))
    }

    /// Counts the owners in force.
    pub(crate) fn lay_owners(&mut self) {
        self.owners = Owners::new(self.ownership.in_force(), self.config.node, self.config.quorums);
        self.sampling.begin_anew();
        self.reads.forget_latencies();
        self.writing.taken.clear();
    }

    /// Those that this replica speaks with: owners, and those who are getting ready.
    pub(crate) fn lay_members(&mut self) {
        let me = self.config.node;
        let mut others: BTreeSet<NodeId> = BTreeSet::new();
        if self.ownership.contains(me) || self.ownership.announces(me) {
            others.extend(self.owners.nodes());
            others.extend(self.ownership.announced.iter().flat_map(|announced| announced.ids()));
            others.remove(&me);
        }
        self.members.retain(|node, _| others.contains(node));
        self.peers.retain(|node, _| others.contains(node));
        for &node in &others {
            self.members.entry(node).or_default();
            self.peers.entry(node).or_default();
        }
        self.suspected.retain(|node| others.contains(node));
        let fallbacks = &self.config.fallbacks.nodes;
        self.down.retain(|node| others.contains(node) || fallbacks.contains(node));
        self.owed.retain(|node| others.contains(node));
        self.owed_stored.retain(|node| others.contains(node));
        self.owed_durable.retain(|node, _| others.contains(node));
        self.arriving.take_if(|arriving| !others.contains(&arriving.from));
    }

    /// Tells how far the writes of those go who own nothing any more.
    fn close_gone(&mut self, before: &Ownership) {
        if self.ownership.is_joint() || !self.owners.is_owner() {
            return;
        }
        let gone: Vec<NodeId> = before.in_force().flat_map(|membership| membership.ids()).collect();
        for (origin, held) in self.held().iter() {
            let node = Origin::of(origin).map(|origin| origin.node);
            let closed = node.is_some_and(|node| gone.contains(&node) && self.owners.index(node).is_none());
            if closed {
                let stream = self.stream_id(origin);
                self.event(Event::OriginClosed { stream, last: LogIndex(held.base()) });
            }
        }
    }

    /// Whether requests are answered here.
    pub(crate) fn serves(&self) -> Result<OriginId, Rejection> {
        let Standing::Writer(origin) = self.standing else {
            return Err(if self.owners.is_owner() { Rejection::CatchingUp } else { self.elsewhere() });
        };
        match (self.owners.is_owner(), self.caught_up) {
            (true, true) => Ok(origin),
            (true, false) => Err(Rejection::CatchingUp),
            (false, _) => Err(self.elsewhere()),
        }
    }

    /// Another owner is to be asked.
    pub(crate) fn elsewhere(&self) -> Rejection {
        let newest = self.owners.newest().map(Voters::set).unwrap_or_default();
        let mut owners = self.owners.others().filter(|node| {
            !self.is_away(*node) && self.owners.index(*node).is_some_and(|index| newest.contains(index))
        });
        Rejection::NotLeader { leader: owners.next() }
    }

    /// Whether a member counts in the same epochs, by its newest report, and takes part.
    fn goes_along(&self, report: &Report) -> bool {
        report.epoch == self.epoch && report.current.is_some()
    }

    /// Whether this replica has to hear from fewer than all before it takes part: it was counted in no epoch that it could
    /// have forgotten anything of which others do not know.
    pub(crate) fn is_new_owner(&self) -> bool {
        let Some(settled) = self.owners.settled() else { return true };
        self.config.epochs.changes() && !self.is_in(settled, self.config.node)
    }

    /// Whether these, with what they hold, have told enough for this replica to take part.
    pub(crate) fn has_heard(&self, wanted: &BTreeMap<NodeId, VersionVector>) -> bool {
        let Some(settled) = self.owners.settled() else { return false };
        if !self.is_new_owner() {
            return self.owners.others().all(|node| wanted.contains_key(&node));
        }
        let heard = wanted.keys().filter(|node| self.is_in(settled, **node)).count();
        heard >= usize::from(settled.blocking())
    }

    /// A new owner orders writes only once it has had what the owners in force held: so each of its writes has seen what is
    /// stable, and deletes that are forgotten take nothing back.
    pub(crate) fn try_catching_up(&mut self) {
        if self.caught_up || self.out || !self.owners.is_owner() || !matches!(self.standing, Standing::Writer(_)) {
            return;
        }
        let Some(settled) = self.owners.settled() else { return };
        let applied = self.state.base();
        let covered = self.members.iter().filter(|(node, member)| {
            let covers = |report: &Report| self.goes_along(report) && applied.covers(&report.held);
            self.is_in(settled, **node) && member.report.as_ref().is_some_and(covers)
        });
        let needed = settled.blocking().min(settled.set().len() - u8::from(self.is_in(settled, self.config.node)));
        if covered.count() >= needed.into() {
            self.caught_up = true;
            self.persist_owning();
        }
    }

    /// Several epochs are in force from now on, or one.
    pub(crate) fn begin_move(&mut self) {
        self.moving = Move::default();
        if !self.ownership.is_joint() {
            return;
        }
        if matches!(self.standing, Standing::Writer(_)) {
            self.moving.held.insert(self.config.node, self.held());
        }
        let mut lacking = self.owners.newest().map(Voters::set).unwrap_or_default();
        if self.owners.is_owner() {
            lacking.remove(self.owners.me());
        }
        self.moving.orphans =
            self.state.ahead().into_iter().map(|(key, above)| (key, Ahead { above, lacking })).collect();
        self.moving.lacking = if self.moving.orphans.is_empty() { Set::default() } else { lacking };
    }

    /// This replica takes part from now on.
    pub(crate) fn stands(&mut self) {
        if self.ownership.is_joint() {
            let (node, held) = (self.config.node, self.held());
            self.moving.held.entry(node).or_insert(held);
        }
    }

    /// An owner has told what it holds.
    pub(crate) fn observe_move(&mut self, node: NodeId) {
        if !self.ownership.is_joint() {
            return;
        }
        let Some(report) = self.members.get(&node).and_then(|member| member.report.as_ref()) else { return };
        let Some(index) = self.owners.index(node).filter(|_| self.goes_along(report)) else { return };
        self.moving.held.entry(node).or_insert_with(|| report.held.clone());
        self.moving.explained(index, report.durable());
    }

    /// What it tells of the way out of the epochs in force.
    pub(crate) fn moving(&self) -> Option<Moving> {
        self.ownership.is_joint().then(|| Moving {
            lacking: self.moving.lacking.bits(),
            swept: self.moving.swept,
            waits: self.writing.waits() || self.consensus.waits(),
        })
    }

    /// At every exchange, while several epochs are in force: tells of keys that no log may bring to the owners to be.
    pub(crate) fn spread_moving(&mut self) {
        if !self.ownership.is_joint() || self.installed > self.durable || !self.may_number() {
            return;
        }
        let reachable = self.reachable_owners();
        for (key, lacking) in self.moving.next_told(reachable) {
            self.tell_key(&key, lacking);
        }
    }

    /// Takes the next step, if it is time for it.
    pub(crate) fn try_moving(&mut self, now: Now) {
        if !self.config.epochs.changes() || self.taking.is_some() || !self.owners.is_owner() {
            return;
        }
        self.try_catching_up();
        if let Some(joint) = self.joint_next(now) {
            self.learn_epochs(now, &joint);
        } else if let Some(settled) = self.settled_next() {
            self.learn_epochs(now, &settled);
        }
    }

    /// Whether a node may still become an owner: one that takes in a snapshot says nothing for a while.
    fn was_heard_lately(&self, now: Now, node: NodeId) -> bool {
        let heard = self.members.get(&node).and_then(|member| member.heard);
        heard.is_none_or(|heard| now.mono.since(heard) < self.config.timing.suspect_after * NEW_OWNER_PATIENCE)
    }

    /// The announced epoch, once all those of its owners that can be reached are ready, and these are enough for its quorums: in
    /// force sooner, it would have to do without those who are still being filled, and one failure more would stop it.
    fn joint_next(&self, now: Now) -> Option<Ownership> {
        let announced = self.ownership.announced.as_ref()?;
        if announced.ids().any(|node| self.config.fallbacks.nodes.contains(&node)) {
            return None;
        }
        let next = Owners::new([announced].into_iter(), self.config.node, self.config.quorums);
        let is_ready = |node: &NodeId| {
            if *node == self.config.node {
                return matches!(self.standing, Standing::Writer(_)) && !self.out;
            }
            let report = self.members.get(node).and_then(|member| member.report.as_ref());
            report.is_some_and(|report| self.goes_along(report))
        };
        let ready = announced.ids().filter(|node| !self.is_away(*node) && is_ready(node)).count();
        // Of the owners in force, one that has to hear from another which is gone for good may never be ready before the next
        // epoch is in force.
        let is_waited_for = announced
            .ids()
            .any(|node| self.owners.index(node).is_none() && !is_ready(&node) && self.was_heard_lately(now, node));
        let is_enough = ready >= next.newest()?.serving().into();
        (is_enough && !is_waited_for).then(|| self.ownership.with(announced.clone()))
    }

    /// The newest epoch in force, if its owners have everything that any quorum before has acknowledged.
    fn settled_next(&self) -> Option<Ownership> {
        let (newest, earlier) = self.owners.voters().split_last().filter(|(_, earlier)| !earlier.is_empty())?;
        let me = self.config.node;
        let is_here = |node: NodeId| node == me || !self.is_away(node);
        let reporters: Vec<NodeId> = self.moving.held.keys().copied().filter(|node| is_here(*node)).collect();
        let report = |node: NodeId| {
            let report = self.members.get(&node).and_then(|member| member.report.as_ref());
            report.filter(|report| self.goes_along(report))
        };
        let moving = |node: NodeId| if node == me { self.moving() } else { report(node).and_then(|it| it.moving) };
        for voters in earlier {
            let among = || reporters.iter().filter(|node| self.is_in(voters, **node));
            let swept = among().filter(|node| moving(**node).is_some_and(|moving| moving.swept)).count();
            if among().count() < voters.blocking().into() || swept < voters.blocking().into() {
                return None;
            }
        }
        // Who leaves hands over what only it has, and answers those that wait for it, unless it cannot be reached.
        let is_ready = |node: NodeId| reporters.contains(&node) && moving(node).is_some_and(|moving| !moving.waits);
        let leaves = |node: &&NodeId| !self.is_in(newest, **node) && is_here(**node);
        if self.owners.nodes().iter().filter(leaves).any(|node| !is_ready(*node)) {
            return None;
        }
        let mut all = VersionVector::new();
        let mut lacking = Set::default();
        for node in &reporters {
            all.join(&self.moving.held[node]);
            lacking = lacking.union(moving(*node).map_or(newest.set(), |moving| Set::of_bits(moving.lacking)));
        }
        let has = |node: &NodeId| {
            let covers = if *node == me {
                matches!(self.standing, Standing::Writer(_))
                    && self.state.base().covers(&all)
                    && self.durable_vector().covers(&all)
                    && self.installed <= self.durable
            } else {
                report(*node).is_some_and(|report| report.durable().covers(&all))
            };
            covers && self.owners.index(*node).is_some_and(|index| !lacking.contains(index))
        };
        let carriers = self.owners.nodes().iter().filter(|node| self.is_in(newest, **node) && has(node)).count();
        let settled = self.ownership.joint.last()?.clone();
        (carriers >= newest.carriers().into()).then(|| Ownership::founding(settled))
    }

    /// Whether an origin's node owns nothing and is not about to: all that there will be of its writes is what the owners have.
    pub(crate) fn is_gone(&self, origin: OriginId) -> bool {
        Origin::of(origin).is_some_and(|Origin { node, .. }| {
            !self.ownership.is_joint() && self.owners.index(node).is_none() && node != self.config.node
        })
    }

    /// What an operator is told of epochs.
    pub(crate) fn epoch_counts(&self) -> Vec<Figure> {
        if !self.config.epochs.changes() {
            return Vec::new();
        }
        let epoch = |epoch: Option<Epoch>| epoch.map_or(0, |epoch| epoch.0);
        let settled = self.ownership.settled.as_ref().map(|it| it.epoch);
        vec![
            Figure::new(SETTLED_EPOCH, epoch(settled)),
            Figure::new("epochs whose quorums are needed", self.ownership.in_force().count() as u64),
            Figure::new(
                "epoch whose owners are getting ready",
                epoch(self.ownership.announced.as_ref().map(|it| it.epoch)),
            ),
        ]
    }
}
