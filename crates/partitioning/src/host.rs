//! A node of a partitioned store: its groups, the newest map that it knows, and the drivers of what its leaders have to do.
//!
//! Invariants:
//!
//! - Nothing of it must survive: maps come from the log of maps, and what a handoff has reached stands in the groups' logs. A new
//!   leader's driver goes on from there.
//! - A driver works only at a leader that has applied an entry of its own term: so nothing of an earlier leader can come into the
//!   log behind what it sees.
//! - The map never goes back (I5).
//! - A node without open handoffs asks for nothing but now and then for a newer map.
//! - Groups that the host [places](Placing) have the members that a map names, at an epoch of their own for each placement: what that
//!   means for requests is the strategy's to say. A node that a map no longer names keeps its replica, which sends others on.

mod message;
mod placing;

use core::marker::PhantomData;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{
    Action, Batches, Epoch, Event, GroupId, Input, LogIndex, Message, NodeId, Now, Outcome, Rejection, Replica, Term,
    Time, Token, WriteLevel,
};

use crate::convert;
use crate::frames::GroupsHead;
use crate::groups::Groups;
use crate::handoff::{Ask, Letter, Output, Record, Source, Target};
use crate::id::{HandoffId, PlacementVersion};
use crate::machine::GroupMachine;
use crate::map::{Change, Partition, PartitionMap, Replication};
use crate::meta::{MetaAnswer, MetaCommand, MetaMachine, MetaQuery};
use crate::shard::{Keyed, Shard, encode_record};
pub use message::HostHead;
pub use placing::Placing;

/// How a host looks at a replica of its strategy.
pub trait Seat<R: Replica> {
    /// The user's state machine.
    type Machine: Keyed;

    /// What the replica replicates, if its group has one log; none of a group whose strategy keeps the keys itself.
    fn machine(replica: &R) -> Option<&GroupMachine<Self::Machine>>;

    /// The term in which it leads, once it has applied an entry of that term; none while it does not lead.
    fn leads(replica: &R) -> Option<Term>;

    /// The last entry that it has applied.
    fn applied(replica: &R) -> LogIndex;
}

/// How long it is until more of what is not held any more is freed.
const TIDY_PAUSE: Duration = Duration::from_millis(1);
/// So many keys at a time: nobody notices.
const TIDY_KEYS: usize = 256;

/// Tokens from here on are the host's own; its driver gives smaller ones.
pub const HOST_TOKENS: u64 = u64::MAX - (1 << 40);

/// Settings of a host. All times are local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// This node.
    pub node: NodeId,
    /// The group that keeps the log of maps.
    pub maps: GroupId,
    /// After so long without an answer a handoff's question is asked again. Longer than a round trip and a disk write.
    pub patience: Duration,
    /// How often a node asks for a newer map of its own accord; it is also told by whoever changes it.
    pub refresh: Duration,
    /// About so many bytes are in one piece of a copy; [`PIECE_BYTES`](crate::handoff::PIECE_BYTES) by default.
    pub piece_bytes: usize,
}

impl HostConfig {
    /// A node of a store whose maps are kept by this group: asks again after 100 ms, for newer maps every 5 s.
    pub const fn new(node: NodeId, maps: GroupId) -> Self {
        let (patience, refresh) = (Duration::from_millis(100), Duration::from_secs(5));
        Self { node, maps, patience, refresh, piece_bytes: crate::handoff::PIECE_BYTES }
    }
}

/// The drivers of a group that this node leads.
#[derive(Debug)]
struct Driver {
    term: Term,
    source: Source,
    target: Target,
    /// Records of the group's log that it has seen applied.
    records: u64,
    proposed: BTreeMap<Token, Record>,
}

impl Driver {
    fn new(group: GroupId, term: Term, piece_bytes: usize) -> Self {
        let (source, target) = (Source::new(group).with_piece_bytes(piece_bytes), Target::new(group));
        Self { term, source, target, records: u64::MAX, proposed: BTreeMap::new() }
    }
}

/// All groups of a node. See the [module](self).
#[derive(Debug)]
pub struct Host<R: Replica, S> {
    config: HostConfig,
    // Where the log of maps is kept.
    map_nodes: Vec<NodeId>,
    groups: Groups<R>,
    map: Arc<PartitionMap>,
    drivers: BTreeMap<GroupId, Driver>,
    // Who asked last about a handoff: answers go there.
    asked_by: BTreeMap<HandoffId, NodeId>,
    deciding: BTreeMap<Token, Change>,
    next_token: u64,
    next_asked: usize,
    ask_again_at: Time,
    refresh_at: Time,
    tidy_at: Time,
    // Groups that have memory to free.
    untidy: BTreeSet<GroupId>,
    placing: Option<Box<dyn Placing<R>>>,
    // By which placement each group was announced.
    placed: BTreeMap<GroupId, PlacementVersion>,
    // Groups that stay here, with a placement that is not complete; and which was asked to be taken for complete.
    changing: BTreeMap<GroupId, Option<PlacementVersion>>,
    is_ready: bool,
    // The map has changed, or it is time to ask again.
    is_due: bool,
    dirty: BTreeSet<GroupId>,
    local: VecDeque<HostHead<R::Head>>,
    out: VecDeque<Action<HostHead<R::Head>>>,
    now: Now,
    seat: PhantomData<S>,
}

impl<R: Replica, S: Seat<R>> Host<R, S> {
    /// A node with these groups that begins with `map`: the store's first one, or any newer one.
    pub fn new(config: HostConfig, map_nodes: Vec<NodeId>, map: PartitionMap, groups: Groups<R>) -> Self {
        Self {
            config,
            map_nodes,
            groups,
            map: Arc::new(map),
            drivers: BTreeMap::new(),
            asked_by: BTreeMap::new(),
            deciding: BTreeMap::new(),
            next_token: HOST_TOKENS,
            next_asked: config.node.0 as usize,
            ask_again_at: Time::NEVER,
            refresh_at: Time::NEVER,
            tidy_at: Time::NEVER,
            untidy: BTreeSet::new(),
            placing: None,
            placed: BTreeMap::new(),
            changing: BTreeMap::new(),
            is_ready: false,
            is_due: false,
            dirty: BTreeSet::new(),
            local: VecDeque::new(),
            out: VecDeque::new(),
            now: Now::default(),
            seat: PhantomData,
        }
    }

    /// Has replicas come and go as the map places them, for strategies that change their owners by epochs. The replicas that are
    /// here know the placement of the map that the host begins with, or a later one.
    #[must_use]
    pub fn with_placing(mut self, placing: Box<dyn Placing<R>>) -> Self {
        self.placed = self.map.partitions().map(|it| (it.group, it.placement)).collect();
        self.watch_changing();
        self.placing = Some(placing);
        self
    }

    /// The newest map that this node knows.
    pub const fn map(&self) -> &Arc<PartitionMap> {
        &self.map
    }

    /// The groups.
    pub const fn groups(&self) -> &Groups<R> {
        &self.groups
    }

    /// Asks the log of maps for a change, from whichever node leads it. What becomes of it is seen in the map.
    pub fn change(&mut self, change: Change) {
        self.decide(change);
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn send(&mut self, to: NodeId, head: HostHead<R::Head>) {
        if to == self.config.node {
            self.local.push_back(head);
        } else {
            self.out.push_back(Action::Send { to, message: Message { head, batches: Batches::None } });
        }
    }

    fn misbehaved(&mut self, node: NodeId, what: &'static str) {
        let event = Event::PeerMisbehaved { node, what };
        self.out.push_back(Action::Event { group: self.config.maps, event });
    }

    /// The log of maps, if it is kept here.
    fn maps(&self) -> Option<&MetaMachine> {
        self.groups.replica(self.config.maps).and_then(S::machine).and_then(GroupMachine::maps)
    }

    /// The data of a group that is here and has one log.
    fn shard(groups: &Groups<R>, group: GroupId) -> Option<&Shard<S::Machine>> {
        groups.replica(group).and_then(S::machine).and_then(GroupMachine::data)
    }

    fn leads(&self, group: GroupId) -> Option<Term> {
        self.groups.replica(group).and_then(S::leads)
    }

    /// A newer map is at hand.
    fn adopt(&mut self, map: PartitionMap) {
        if map.epoch() > self.map.epoch() {
            self.map = Arc::new(map);
            self.asked_by.retain(|id, _| self.map.handoff(*id).is_some());
            self.is_due = true;
            self.place();
        }
    }

    /// The map may place groups anew.
    fn place(&mut self) {
        let Some(placing) = &mut self.placing else { return };
        let mut new = Vec::new();
        for partition in self.map.partitions() {
            let group = partition.group;
            let has_log = partition.replication.has_one_log();
            if has_log || self.placed.get(&group).is_some_and(|known| *known >= partition.placement) {
                continue;
            }
            self.placed.insert(group, partition.placement);
            if self.groups.replica(group).is_some() {
                placing.announce(group, partition.membership());
                self.groups.wake(self.now, group);
            } else if partition.replicas.contains(&self.config.node) {
                new.push(group);
            }
        }
        new.into_iter().for_each(|group| self.found(group));
        self.watch_changing();
    }

    /// The answer to a question to a multi-leader group that the map does not name this node for: a local read would be answered by
    /// whatever it had when it was a member.
    fn refused(&self, input: &Input<HostHead<R::Head>>) -> Option<Action<HostHead<R::Head>>> {
        let Input::Query { token, group, .. } = input else { return None };
        // Only groups that the map places come and go.
        self.placing.as_ref()?;
        let partition = self.map.of_group(*group).next().filter(|it| it.replication == Replication::MultiLeader)?;
        let current = Epoch(partition.placement.0.into());
        let outcome = Outcome::Rejected(Rejection::StaleRoute { current });
        (!partition.replicas.contains(&self.config.node)).then_some(Action::Done { token: *token, outcome })
    }

    /// Which groups that stay here are on their way.
    fn watch_changing(&mut self) {
        let own = self.config.node;
        let changing = self.map.partitions().filter(|it| it.turnover.is_open() && it.stays().any(|node| node == own));
        self.changing = changing.map(|it| (it.group, None)).collect();
    }

    /// Asks for the second step of a placement once those who stay have everything.
    fn complete_placement(&mut self, group: GroupId) {
        let Some(asked) = self.changing.get(&group).copied() else { return };
        let (Some(placing), Some(replica)) = (&self.placing, self.groups.replica(group)) else { return };
        let Some(Epoch(drained)) = placing.drained(replica) else { return };
        let placement = PlacementVersion(drained as u32);
        let is_of_map = self.map.of_group(group).any(|it| it.placement == placement);
        if is_of_map && asked != Some(placement) {
            self.changing.insert(group, Some(placement));
            self.decide(Change::CompletePlacement { group, placement });
        }
    }

    /// Others speak to this node of a group that is not here: a placement that this node has not heard of, for a later one followed it,
    /// may have come into force with it as an owner, and those wait for it to hand over what it has.
    fn found_heard(&mut self, head: &GroupsHead<R::Head>) {
        if self.placing.is_none() || !self.is_ready {
            return;
        }
        for part in &head.parts {
            let is_placed = |it: &Partition| it.replication == Replication::Leaderless;
            if self.groups.replica(part.group).is_none() && self.map.of_group(part.group).any(is_placed) {
                self.found(part.group);
            }
        }
    }

    /// A replica of a group of which nothing is here.
    fn found(&mut self, group: GroupId) {
        let (Some(placing), Some(partition)) = (&mut self.placing, self.map.of_group(group).next()) else { return };
        match placing.found(group, partition.membership()) {
            Ok(replica) => self.groups.add(self.now, group, replica),
            Err(why) => self.out.push_back(Action::Event { group, event: Event::NotPlaced { why } }),
        }
    }

    /// If the log of maps is kept here, its newest map; who leads it tells everybody.
    fn learn_here(&mut self) {
        let Some(maps) = self.maps() else { return };
        let newest = maps.map();
        if newest.epoch() <= self.map.epoch() {
            return;
        }
        let (newest, old) = (newest.clone(), self.map.epoch());
        if self.leads(self.config.maps).is_some() {
            let news = maps.since(old);
            let everybody: BTreeSet<NodeId> = newest.partitions().flat_map(|it| it.replicas.iter().copied()).collect();
            let open = newest.handoffs().flat_map(|it| it.replicas.iter().copied());
            let everybody: BTreeSet<NodeId> = everybody.into_iter().chain(open).collect();
            let own = self.config.node;
            for node in everybody.into_iter().filter(|node| *node != own) {
                self.send(node, HostHead::Maps(news.clone()));
            }
        }
        self.adopt(newest);
    }

    fn ask_for_maps(&mut self) {
        let others: Vec<NodeId> = self.map_nodes.iter().copied().filter(|node| *node != self.config.node).collect();
        if others.is_empty() {
            return;
        }
        self.next_asked = (self.next_asked + 1) % others.len();
        let question = HostHead::Since(MetaQuery::Since(self.map.epoch()));
        self.send(others[self.next_asked], question);
    }

    fn decide(&mut self, change: Change) {
        for node in self.map_nodes.clone() {
            self.send(node, HostHead::Change(change.clone()));
        }
    }

    fn handle_host(&mut self, from: NodeId, head: HostHead<R::Head>) {
        match head {
            HostHead::Groups(_) => {}
            HostHead::Ask(group, letter) => {
                if self.map.handoff(letter.handoff).is_some() {
                    self.asked_by.insert(letter.handoff, from);
                }
                self.with_driver(group, |driver, map, shard, applied| {
                    let outputs = driver.source.handle(map, shard.holdings(), shard.contents(), applied, &letter);
                    Outputs { asks: Vec::new(), answers: outputs }
                });
            }
            HostHead::Answer(group, letter) => self.with_driver(group, |driver, map, shard, _| {
                let outputs = driver.target.handle(map, shard.holdings(), shard.contents(), letter);
                Outputs { asks: outputs, answers: Vec::new() }
            }),
            HostHead::Change(change) => self.propose_change(change),
            HostHead::Since(question) => {
                let MetaQuery::Since(epoch) = question;
                if let Some(maps) = self.maps()
                    && maps.map().epoch() > epoch
                {
                    let news = maps.since(epoch);
                    self.send(from, HostHead::Maps(news));
                }
            }
            HostHead::Maps(MetaAnswer::Map(map)) => self.adopt(*map),
            HostHead::Maps(MetaAnswer::Deltas(deltas)) => match self.map.caught_up(&deltas) {
                Ok(map) => self.adopt(map),
                Err(crate::map::DeltaError::Gap { .. }) => self.ask_for_maps(),
                Err(_) => self.misbehaved(from, "told of changes that make no map"),
            },
            HostHead::Maps(MetaAnswer::Malformed) => {}
        }
    }

    fn propose_change(&mut self, change: Change) {
        if self.leads(self.config.maps).is_none() || self.deciding.values().any(|it| *it == change) {
            return;
        }
        let Some(maps) = self.maps() else { return };
        if maps.map().delta(&change).is_err() {
            return;
        }
        let command = MetaCommand::Change { at: maps.map().epoch(), change: change.clone() };
        let token = self.token();
        self.deciding.insert(token, change);
        self.command(token, self.config.maps, command.encode());
    }

    fn command(&mut self, token: Token, group: GroupId, body: Bytes) {
        let level = WriteLevel::Quorum;
        self.groups.handle(self.now, Input::Command { token, group, level, session: None, body });
    }

    fn with_driver(
        &mut self,
        group: GroupId,
        run: impl FnOnce(&mut Driver, &PartitionMap, &Shard<S::Machine>, LogIndex) -> Outputs,
    ) {
        let Some(replica) = self.groups.replica(group) else { return };
        let shard = S::machine(replica).and_then(GroupMachine::data);
        let (Some(driver), Some(shard)) = (self.drivers.get_mut(&group), shard) else { return };
        if S::leads(replica) != Some(driver.term) {
            return;
        }
        let Outputs { asks, answers } = run(driver, &self.map, shard, S::applied(replica));
        for output in asks {
            match output {
                Output::Propose(record) => self.propose(group, record),
                Output::Decide(change) => self.decide(change),
                Output::Send(to, letter) => self.send_ask(to, letter),
            }
        }
        for output in answers {
            match output {
                Output::Propose(record) => self.propose(group, record),
                Output::Decide(change) => self.decide(change),
                Output::Send(to, letter) => {
                    if let Some(&node) = self.asked_by.get(&letter.handoff) {
                        self.send(node, HostHead::Answer(to, letter));
                    }
                }
            }
        }
    }

    /// Whoever leads the source answers.
    fn send_ask(&mut self, to: GroupId, letter: Letter<Ask>) {
        // The group may have other nodes by now, or no partition any more.
        let now = self.map.of_group(to).next().map(|it| it.replicas.clone());
        let planned = || self.map.handoff(letter.handoff).map(|it| it.source_replicas.clone());
        for node in now.or_else(planned).unwrap_or_default() {
            self.send(node, HostHead::Ask(to, letter.clone()));
        }
    }

    fn propose(&mut self, group: GroupId, record: Record) {
        let token = self.token();
        let Some(driver) = self.drivers.get_mut(&group) else { return };
        if driver.proposed.values().any(|it| *it == record) {
            return;
        }
        let body = encode_record(&record);
        driver.proposed.insert(token, record);
        self.command(token, group, body);
    }

    /// A command of the host's own has ended.
    fn ended(&mut self, token: Token, outcome: &Outcome) {
        self.deciding.remove(&token);
        for (group, driver) in &mut self.drivers {
            if driver.proposed.remove(&token).is_some() {
                if !matches!(outcome, Outcome::Acked { .. }) {
                    // What it has asked for may not come: it begins anew from what the log says.
                    *driver = Driver::new(*group, driver.term, self.config.piece_bytes);
                }
                self.dirty.insert(*group);
                return;
            }
        }
    }

    /// Does what there is to do by what has changed since the last time.
    fn drive(&mut self) {
        if !self.is_ready {
            return;
        }
        self.learn_here();
        let mut groups: BTreeSet<GroupId> = self.groups.take_rested().into_iter().collect();
        groups.append(&mut self.dirty);
        for &group in &groups {
            if Self::shard(&self.groups, group).is_some_and(Shard::is_untidy) {
                self.untidy.insert(group);
            }
        }
        let is_due = core::mem::take(&mut self.is_due);
        if is_due {
            // What was asked may have been lost.
            self.changing.values_mut().for_each(|asked| *asked = None);
            groups.extend(self.changing.keys().chain(self.drivers.keys()));
        }
        for group in groups {
            self.complete_placement(group);
            self.seat(group);
            self.step(group, if is_due { Step::Always } else { Step::IfChanged });
        }
        self.plan_timers();
        while let Some(head) = self.local.pop_front() {
            self.handle_host(self.config.node, head);
        }
    }

    /// A driver for who leads, and for nobody else.
    fn seat(&mut self, group: GroupId) {
        let term = Self::shard(&self.groups, group).and_then(|_| self.leads(group));
        match term {
            Some(term) if self.drivers.get(&group).is_none_or(|driver| driver.term != term) => {
                self.drivers.insert(group, Driver::new(group, term, self.config.piece_bytes));
            }
            Some(_) => {}
            None => _ = self.drivers.remove(&group),
        }
    }

    fn step(&mut self, group: GroupId, step: Step) {
        self.with_driver(group, |driver, map, shard, _| {
            if step == Step::IfChanged && driver.records == shard.records() {
                return Outputs::default();
            }
            driver.records = shard.records();
            let mut answers = driver.source.poll(map, shard.holdings());
            answers.extend(shard.holdings().recut(map, group).map(Output::Propose));
            Outputs { asks: driver.target.poll(map, shard.holdings(), shard.contents()), answers }
        });
    }

    /// When it has to be woken again.
    fn plan_timers(&mut self) {
        let now = self.now.mono;
        let concerned =
            |it: &crate::map::Handoff| self.drivers.contains_key(&it.source) || self.drivers.contains_key(&it.target);
        let is_open = self.map.handoffs().any(concerned) || !self.changing.is_empty();
        if !is_open {
            self.ask_again_at = Time::NEVER;
        } else if self.ask_again_at <= now || self.ask_again_at == Time::NEVER {
            self.ask_again_at = now + self.config.patience;
        }
        if self.untidy.is_empty() {
            self.tidy_at = Time::NEVER;
        } else if self.tidy_at == Time::NEVER {
            self.tidy_at = now + TIDY_PAUSE;
        }
    }

    fn handle_timer(&mut self) {
        let now = self.now.mono;
        if self.ask_again_at <= now {
            self.is_due = true;
        }
        if self.tidy_at <= now {
            self.tidy_at = Time::NEVER;
            let groups = &self.groups;
            self.untidy.retain(|group| {
                Self::shard(groups, *group).inspect(|shard| shard.tidy(TIDY_KEYS)).is_some_and(Shard::is_untidy)
            });
        }
        if self.refresh_at <= now {
            self.refresh_at = now + self.config.refresh;
            self.ask_for_maps();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Always,
    IfChanged,
}

#[derive(Default)]
struct Outputs {
    asks: Vec<Output<Ask>>,
    answers: Vec<Output<crate::handoff::Answer>>,
}

impl<R: Replica, S: Seat<R>> Replica for Host<R, S> {
    type Head = HostHead<R::Head>;

    fn handle(&mut self, now: Now, input: Input<Self::Head>) {
        self.now = now;
        match input {
            Input::Message { from, message: Message { head, batches } } => match head {
                HostHead::Groups(head) => {
                    self.found_heard(&head);
                    self.groups.handle(now, Input::Message { from, message: Message { head, batches } });
                }
                head if self.is_ready => self.handle_host(from, head),
                _ => {}
            },
            Input::Timer => {
                self.groups.handle(now, Input::Timer);
                self.handle_timer();
            }
            Input::Recovered => {
                self.groups.handle(now, Input::Recovered);
                (self.is_ready, self.is_due) = (true, true);
                self.refresh_at = now.mono + self.config.refresh;
                self.ask_for_maps();
            }
            other => {
                if let Some(refused) = self.refused(&other) {
                    self.out.push_back(refused);
                } else if let Some(input) = convert::input(other) {
                    self.groups.handle(now, input);
                }
            }
        }
    }

    fn poll(&mut self) -> Option<Action<Self::Head>> {
        loop {
            if let Some(action) = self.out.pop_front() {
                return Some(action);
            }
            match self.groups.poll() {
                Some(Action::Done { token, outcome }) if token.0 > HOST_TOKENS => self.ended(token, &outcome),
                Some(action) => return Some(convert::action(action, HostHead::Groups)),
                None => {
                    self.drive();
                    if self.out.is_empty() && !self.groups.is_running() && self.dirty.is_empty() {
                        return None;
                    }
                }
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        let own = self.ask_again_at.min(self.refresh_at).min(self.tidy_at);
        let own = (own != Time::NEVER).then_some(own);
        match (own, self.groups.deadline()) {
            (Some(own), Some(groups)) => Some(own.min(groups)),
            (own, groups) => own.or(groups),
        }
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        self.groups.committed(group)
    }
}
