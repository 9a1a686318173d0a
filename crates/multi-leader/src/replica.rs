//! The replica: what it owns, and which part of it an input is for.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replikit_core::dotted::{Peer, Stability, Stream, first_number};
use replikit_core::{
    Action, Admin, Batch, Batches, Boot, Epoch, Event, Figure, FollowerStatus, HybridClock, Incarnation, Input,
    Lingering, Link, LogId, LogIndex, Message, NodeId, Now, Origin, OriginId, Outcome, Persist, Position, Rejection,
    Replica, Role, SETTLED_EPOCH, SequenceSet, Status, StorageEvent, StreamId, Term, Time, Token, VersionVector,
    WriteId,
};

use crate::commit::{Acks, OpenBatch, Pending};
use crate::config::{Config, ConfigError, Founding};
use crate::epoch::Epochs;
use crate::member::Member;
use crate::message::{Head, Report};
use crate::reads::Reads;
use crate::record::Writes;
use crate::register::{Register, Stage};
use crate::resubmission::Stash;
use crate::snapshot::Incoming;
use crate::state::State;
use crate::topology::Graph;
use crate::transfer::Arriving;
use crate::waiting::Waiting;

/// Numbers of own reports that are remembered, to know when an answer was asked for.
pub(crate) const ASKED_MAX: usize = 64;

/// Who may write here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This incarnation writes.
    Writer(OriginId),
    /// It may have forgotten what it wrote: it has to hear from these first, and to apply what they hold.
    Asking {
        unheard: BTreeSet<NodeId>,
        /// What each of those held that it has heard from.
        wanted: BTreeMap<NodeId, VersionVector>,
        /// The newest incarnation of this node that anybody knows.
        newest: u32,
    },
}

/// A replica of a group in which every member takes writes.
pub struct MultiLeader {
    pub(crate) config: Config,
    /// The keyspaces in short.
    pub(crate) keyspaces: u64,
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) epoch: Epoch,
    pub(crate) epochs: Epochs,
    /// What it had put away when it was evicted.
    pub(crate) stash: Stash,
    /// Writes were applied without something that they had seen and nobody has.
    pub(crate) unfounded: bool,
    /// The clocks at the input that is being handled.
    pub(crate) now: Now,
    pub(crate) graph: Graph,
    /// The graph with links round the suspected ones.
    pub(crate) bypassed: Graph,
    pub(crate) suspected: BTreeSet<NodeId>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Peers whose link is known to be down.
    pub(crate) down: BTreeSet<NodeId>,
    /// Those to tell what is held at the end of the round: at once, or as soon as that is durable.
    pub(crate) owed: BTreeSet<NodeId>,
    pub(crate) owed_durable: BTreeMap<NodeId, WriteId>,
    pub(crate) standing: Standing,
    pub(crate) register: Register,
    pub(crate) state: State,
    pub(crate) streams: BTreeMap<OriginId, Stream>,
    pub(crate) waiting: Waiting,
    pub(crate) cache_bytes: usize,
    pub(crate) clock: HybridClock,
    pub(crate) open: Option<OpenBatch>,
    pub(crate) pending: replikit_core::Held<Pending>,
    pub(crate) pending_bytes: usize,
    pub(crate) acks: Acks,
    pub(crate) reads: Reads,
    pub(crate) stability: Stability,
    pub(crate) last_write: WriteId,
    /// Writes of others that the log has not been given yet.
    pub(crate) lingering: Lingering,
    pub(crate) durable: WriteId,
    /// The storage action that makes the incarnation durable under which this replica writes.
    pub(crate) incarnated: WriteId,
    /// The storage action that makes this life durable: before it, no report leaves, for another life could use its number.
    pub(crate) lived: WriteId,
    pub(crate) failed: bool,
    recovered: bool,
    /// Streams whose end was torn.
    cut: Vec<StreamId>,
    /// Where the log ends, by what has been pushed.
    logged: BTreeMap<OriginId, u64>,
    restoring: Option<Incoming>,
    pub(crate) arriving: Option<Arriving>,
    pub(crate) transfers: u64,
    pub(crate) tickets: u64,
    /// The number of the newest own report.
    pub(crate) report_number: u64,
    pub(crate) asked: VecDeque<(u64, Time)>,
    pub(crate) snapshot: Option<Position>,
    pub(crate) log_bytes: u64,
    pub(crate) retained_bytes: u64,
    pub(crate) next_exchange: Time,
    /// Whether peers may lack something that can go out now.
    pub(crate) outdated: bool,
    pub(crate) actions: VecDeque<Action<Head>>,
}

impl core::fmt::Debug for MultiLeader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MultiLeader")
            .field("node", &self.config.node)
            .field("standing", &self.standing)
            .field("applied", self.state.applied())
            .finish_non_exhaustive()
    }
}

impl MultiLeader {
    /// A replica on a disk that says `boot`; recovery is pushed next.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was written.
    pub fn new(config: Config, boot: &Boot) -> Result<Self, ConfigError> {
        config.check()?;
        let mut register = Register::of(boot)?;
        let told = config.epochs.current().clone();
        let membership = register.membership.take().filter(|known| known.epoch > told.epoch).unwrap_or(told);
        register.membership = config.epochs.changes().then(|| membership.clone());
        let epoch = membership.epoch;
        let epochs = Epochs::new(membership, config.node, register.settled);
        let membership = &epochs.membership;
        let all: Vec<NodeId> = membership.ids().collect();
        let mut others: BTreeSet<NodeId> = all.iter().copied().filter(|node| *node != config.node).collect();
        if epochs.evicted {
            others.clear();
        }
        let graph = config.topology.over(&all);
        let clock = HybridClock::resume(register.ceiling);
        let was_cut = boot.tail_cut.iter().any(|stream| stream.group == config.group);
        let is_new = register.incarnation == 0;
        let unclean = register.unclean != boot.incarnation;
        register.life += 1;
        register.unclean = boot.incarnation;
        // Who joins a group that is there catches up before it writes, whatever its operator says.
        let joins = membership.since(config.node) != Some(membership.founded);
        // A start that did not get so far as to have asked everybody left that in the register: the log tells a cut once only.
        let still = !is_new && register.forgotten > register.incarnation;
        let founds = is_new && (config.founding == Founding::Ask || joins);
        let asks = was_cut || still || founds || register.stage != Stage::Regular;
        if is_new && register.epoch == Epoch(0) && !epochs.evicted {
            register.epoch = epoch;
        }
        let standing = if asks {
            register.forgotten = register.incarnation + 1;
            Standing::Asking { unheard: others.clone(), wanted: BTreeMap::new(), newest: register.incarnation }
        } else {
            if is_new || unclean {
                register.incarnation += 1;
            }
            let origin = Origin { node: config.node, incarnation: Incarnation(register.incarnation) };
            Standing::Writer(origin.id().map_err(|_| ConfigError::Incarnations { node: config.node })?)
        };
        let state = State::new(config.node, config.keyspaces.clone(), config.limits.audit_bytes_max);
        Ok(Self {
            keyspaces: config.keyspaces.digest(),
            members: others.iter().map(|node| (*node, Member::default())).collect(),
            epoch,
            epochs,
            stash: Stash::default(),
            unfounded: false,
            now: Now::default(),
            peers: graph.receivers(config.node).map(|node| (node, Peer::default())).collect(),
            bypassed: graph.clone(),
            graph,
            suspected: BTreeSet::new(),
            down: BTreeSet::new(),
            owed: BTreeSet::new(),
            owed_durable: BTreeMap::new(),
            standing,
            report_number: first_number(register.life),
            register,
            state,
            streams: BTreeMap::new(),
            waiting: Waiting::default(),
            cache_bytes: 0,
            clock,
            open: None,
            pending: replikit_core::Held::new(),
            pending_bytes: 0,
            acks: Acks::default(),
            reads: Reads::default(),
            stability: Stability::default(),
            last_write: WriteId(0),
            lingering: Lingering::default(),
            durable: WriteId(0),
            incarnated: WriteId(1),
            lived: WriteId(1),
            failed: false,
            recovered: false,
            cut: boot.tail_cut.iter().copied().filter(|stream| stream.group == config.group).collect(),
            logged: BTreeMap::new(),
            restoring: None,
            arriving: None,
            transfers: 0,
            tickets: 0,
            asked: VecDeque::new(),
            snapshot: boot.snapshot,
            log_bytes: 0,
            retained_bytes: 0,
            next_exchange: Time::ZERO,
            outdated: false,
            actions: VecDeque::new(),
            config,
        })
    }

    /// What has been applied here: equal vectors, equal states.
    #[must_use]
    pub const fn applied(&self) -> &VersionVector {
        self.state.applied()
    }

    /// What has been received here, perhaps in memory only; `None` when all of it has been applied. For checks.
    #[must_use]
    pub fn received(&self) -> Option<VersionVector> {
        (self.waiting.bytes() > 0).then(|| self.held())
    }

    /// A hash of what the keys show; equal at replicas that have applied the same writes.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.state.hash()
    }

    /// What a key shows here, own writes included that are not durable yet. For checks; clients ask.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Vec<bytes::Bytes> {
        self.state.values(key)
    }

    /// What every member is known to have applied durably, with nothing on its way that was made without having seen it.
    #[must_use]
    pub const fn stable(&self) -> &VersionVector {
        self.stability.stable()
    }

    /// Counts, for an operator and for checks.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            keys: self.state.keys(),
            unsettled: self.state.unsettled(),
            conflicts: self.state.conflicts(),
            folded: self.state.folded(),
            overwritten: self.state.audit.total(),
            audit_dropped: self.state.audit.dropped(),
            waiting_bytes: self.waiting.bytes(),
            cache_bytes: self.cache_bytes,
            suspected: self.suspected.iter().copied().collect(),
        }
    }

    /// The members of the epoch that it acts in, ascending.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.epochs.membership.ids()
    }

    /// The incarnation that writes here; `None` while it has to ask the others first.
    #[must_use]
    pub const fn origin(&self) -> Option<OriginId> {
        match self.standing {
            Standing::Writer(origin) => Some(origin),
            Standing::Asking { .. } => None,
        }
    }

    pub(crate) fn stream_id(&self, origin: OriginId) -> StreamId {
        StreamId { group: self.config.group, origin }
    }

    pub(crate) fn done(&mut self, token: Token, outcome: Outcome) {
        self.actions.push_back(Action::Done { token, outcome });
    }

    pub(crate) fn reject(&mut self, token: Token, rejection: Rejection) {
        self.done(token, Outcome::Rejected(rejection));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.actions.push_back(Action::Event { group: self.config.group, event });
    }

    pub(crate) fn misbehaved(&mut self, node: NodeId, what: &'static str) {
        self.event(Event::PeerMisbehaved { node, what });
    }

    pub(crate) fn send(&mut self, to: NodeId, head: Head, batches: Batches) {
        self.actions.push_back(Action::Send { to, message: Message { head, batches } });
    }

    /// Wants something stored. Own writes that are open come first: the numbers that they were promised stay right.
    pub(crate) fn persist(&mut self, op: Persist) -> WriteId {
        self.close_batch();
        self.persist_next(op)
    }

    pub(crate) fn persist_next(&mut self, op: Persist) -> WriteId {
        self.stop_lingering();
        self.last_write = self.last_write.next();
        self.actions.push_back(Action::Persist { id: self.last_write, op });
        self.last_write
    }

    /// Wants writes of another node stored, which nobody waits for as long as their writer does not say so.
    pub(crate) fn persist_soon(&mut self, batch: Batch) -> WriteId {
        self.close_batch();
        self.last_write = self.last_write.next();
        let most = self.config.timing.sync_delay_max;
        let bytes = batch.bytes();
        let op = Persist::Append { batch, replace: false };
        self.lingering.add(self.last_write, op, bytes, self.now.mono, most);
        if most.is_zero() || self.lingering.bytes() >= self.config.limits.batch_bytes_max {
            self.stop_lingering();
        }
        self.last_write
    }

    /// Gives the log what it has not been given yet.
    pub(crate) fn stop_lingering(&mut self) {
        self.actions.extend(self.lingering.release().map(|(id, op)| Action::Persist { id, op }));
    }

    /// What a reader may be told that it has seen: everything applied, but for own writes that are not durable.
    pub(crate) fn visible(&self) -> Cow<'_, VersionVector> {
        let mut visible = Cow::Borrowed(self.state.applied());
        if let Standing::Writer(origin) = self.standing {
            let end = self.visible_of(origin);
            if end < visible.base(origin) {
                visible.to_mut().retire(origin);
                visible.to_mut().insert_all(origin, &SequenceSet::up_to(end));
            }
        }
        visible
    }

    pub(crate) fn visible_of(&self, origin: OriginId) -> u64 {
        let applied = self.state.applied().base(origin);
        match self.streams.get(&origin) {
            Some(stream) if self.standing == Standing::Writer(origin) => applied.min(stream.durable()),
            _ => applied,
        }
    }

    pub(crate) fn handle_recovered_batch(&mut self, batch: Batch) {
        let origin = batch.stream().origin;
        if batch.stream().group != self.config.group {
            return;
        }
        if origin == OriginId::STASH {
            return self.stash.recover(&batch);
        }
        if self.register.stage != Stage::Regular && Origin::of(origin).is_some_and(|o| o.node == self.config.node) {
            self.stash.recover_own(&batch);
        }
        let Ok(writes) = Writes::of(batch.clone(), |_| true) else { return };
        let applied = self.state.applied().base(origin);
        let digest = self.state.digest(origin);
        let stream = self.streams.entry(origin).or_insert_with(|| Stream::new(origin, applied, digest));
        self.logged.insert(origin, writes.last());
        if writes.last() <= stream.held() {
            // In the snapshot already; it can be sent to others from the log all the same.
            if writes.first() < stream.first() {
                stream.logged_from(writes.first());
            }
            return;
        }
        if !stream.continues(&batch) {
            // Behind a snapshot whose place in the log was not made yet: it comes again from a peer.
            return;
        }
        self.log_bytes += batch.bytes() as u64;
        self.cache_bytes += batch.bytes();
        stream.append(batch, None);
        self.clock.observe(writes.time);
        self.take_in(writes);
        self.trim_cache();
    }

    fn handle_recovered_snapshot(&mut self, at: Position, chunk: &[u8], last: bool) {
        let mut content = self.restoring.take().unwrap_or_default();
        let mut read = content.push(chunk);
        if read.is_ok() && last {
            read = content.join(&mut self.state).map(drop);
            self.snapshot = Some(at);
        } else if read.is_ok() {
            self.restoring = Some(content);
            return;
        }
        if read.is_err() {
            // What it held has to come from the others again, before anything is written here.
            self.event(Event::SnapshotUnreadable { at });
            self.ask_everybody();
        }
        for (origin, held) in self.state.applied().iter() {
            let digest = self.state.digest(origin);
            self.streams.insert(origin, Stream::new(origin, held.base(), digest));
        }
    }

    fn handle_recovered(&mut self, now: Now) {
        self.recovered = true;
        for stream in core::mem::take(&mut self.cut) {
            self.event(Event::TailCut { stream });
        }
        if !self.must_begin_anew() && !self.epochs.evicted {
            self.register.epoch = self.epoch;
        }
        self.raise_ceiling(now);
        // A snapshot may be ahead of what the log has of a stream: the stream goes on behind it.
        let logged = core::mem::take(&mut self.logged);
        let ahead = self.streams.values().filter(|stream| logged.get(&stream.origin()) != Some(&stream.held()));
        let ahead: Vec<(OriginId, u64)> = ahead.map(|stream| (stream.origin(), stream.held())).collect();
        for (origin, held) in ahead.into_iter().filter(|(_, held)| *held > 0) {
            let next = LogIndex(held + 1);
            self.persist(Persist::Reset { stream: self.stream_id(origin), next });
            self.streams.get_mut(&origin).expect("listed above").released(held + 1);
        }
        self.resume_coming_back();
        if self.must_begin_anew() {
            self.begin_anew();
        }
        if self.epochs.evicted {
            let epoch = self.epoch;
            self.event(Event::Evicted { epoch });
            // A crash may have come in between.
            self.try_retiring();
        }
        self.try_standing();
        self.event(Event::RoleChanged { role: Role::Equal, term: Term(0) });
        self.next_exchange = now.mono;
    }

    /// This replica may have forgotten what it wrote.
    fn ask_everybody(&mut self) {
        let newest = self.register.incarnation;
        let unheard = self.members.keys().copied().collect();
        self.standing = Standing::Asking { unheard, wanted: BTreeMap::new(), newest };
        self.register.forgotten = newest + 1;
    }

    /// Has the clock run on for a while, durably.
    pub(crate) fn raise_ceiling(&mut self, now: Now) {
        let ceiling = self.clock.wanted_ceiling(now.wall, crate::commit::CEILING_AHEAD);
        self.register.ceiling = ceiling;
        let (group, bytes) = (self.config.group, self.register.encode());
        self.persist(Persist::Register { group, bytes });
        // Timestamps leave with writes only, and those are stored behind the register.
        self.clock.raise_ceiling(ceiling);
    }

    fn handle_durable(&mut self, up_to: WriteId) {
        let before = self.durable;
        self.durable = self.durable.max(up_to);
        let mut grown = false;
        for stream in self.streams.values_mut() {
            grown |= stream.sync(self.durable);
        }
        self.release_pending();
        self.release_reads();
        self.tell_of_epoch(before);
        self.follow_change();
        if grown {
            self.outdated = true;
            // Who waits for more than that stays: a report that says less does not answer it.
            self.owed.extend(self.owed_durable.keys());
            let durable = self.durable;
            self.owed_durable.retain(|_, until| *until > durable);
        }
    }

    fn handle_storage(&mut self, event: StorageEvent) {
        match event {
            StorageEvent::Failed => {
                self.failed = true;
                self.fail_all();
                self.event(Event::StorageFailed);
            }
            StorageEvent::Slow => self.event(Event::StorageSlow),
            StorageEvent::Faulty { stream, range } => {
                if let Some(stream) = self.streams.get_mut(&stream.origin) {
                    stream.released(range.end().0 + 1);
                }
                self.event(Event::StorageFaulty { stream, range });
            }
        }
    }

    fn handle_peer(&mut self, node: NodeId, link: Link) {
        if !self.members.contains_key(&node) {
            return;
        }
        if link == Link::Up {
            self.down.remove(&node);
            self.owed.insert(node);
        } else {
            self.down.insert(node);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.go_back();
            }
        }
    }

    fn handle_admin(&mut self, token: Token, command: Admin) {
        match command {
            Admin::Status => {
                let values = vec![self.status().encode()];
                self.done(token, Outcome::Value { values, seen: None, strict: false, staleness: None });
            }
            Admin::Snapshot if self.register.stage != Stage::Regular => self.reject(token, Rejection::CatchingUp),
            Admin::Snapshot => {
                self.take_snapshot();
                self.done(token, Outcome::Value { values: Vec::new(), seen: None, strict: false, staleness: None });
            }
            _ => self.reject(token, Rejection::Unsupported),
        }
    }

    /// How it describes itself: its own origin as the log, and what each other member lacks of what is held here.
    #[must_use]
    pub fn status(&self) -> Status {
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        let stream = self.streams.get(&origin);
        let (held, durable, first) = stream.map_or((0, 0, 1), |s| (s.held(), s.durable(), s.first()));
        let mine = self.held();
        let follower = |(&node, member): (&NodeId, &Member)| FollowerStatus {
            node,
            match_index: LogIndex(member.durable(origin)),
            lag_entries: member.report.as_ref().map_or(mine.len(), |report| report.held.lags(&mine)),
        };
        Status {
            group: self.config.group,
            role: Role::Equal,
            term: Term(0),
            leader: None,
            last: Position {
                stream: self.stream_id(origin),
                id: LogId { term: Term(0), index: LogIndex(held) },
                digest: stream.map_or(0, Stream::digest),
            },
            commit_index: LogIndex(durable),
            applied_index: LogIndex(self.state.applied().base(origin)),
            first_index: LogIndex(first),
            epoch: self.epoch,
            snapshot: self.snapshot,
            followers: self.members.iter().map(follower).collect(),
            suspected: self.suspected.iter().copied().collect(),
            figures: self.figures().counts().into_iter().chain([self.settled()]).collect(),
        }
    }

    /// The newest epoch whose members have everything that there was before it, as far as this one knows.
    fn settled(&self) -> Figure {
        let settled = if self.epochs.settled { self.epoch } else { self.register.settled };
        Figure::new(SETTLED_EPOCH, settled.0)
    }

    /// Whether no crash can give the numbers of this life's reports to those of another life.
    fn may_report(&self) -> bool {
        self.lived <= self.durable
    }

    /// What the log has, but for own writes that are not durable: a crash may still take those back, and then nobody must
    /// wait for them.
    pub(crate) fn held(&self) -> VersionVector {
        self.vector(|stream| self.sendable(stream))
    }

    /// What is on this node's disk.
    pub(crate) fn durable_vector(&self) -> VersionVector {
        self.vector(Stream::durable)
    }

    /// Every stream, up to some point of each.
    fn vector(&self, end: impl Fn(&Stream) -> u64) -> VersionVector {
        VersionVector::up_to(self.streams.values().map(|stream| (stream.origin(), end(stream))))
    }

    /// What is held here, as it is told to others.
    pub(crate) fn report(&self) -> Report {
        let held = self.held();
        let durable = self.streams.values().any(|stream| stream.durable() != self.sendable(stream));
        let applied = self.visible();
        Report {
            epoch: self.told_epoch(),
            fenced: self.tells_of_fence(),
            keyspaces: self.keyspaces,
            current: match self.standing {
                Standing::Writer(_) => Some(self.register.incarnation),
                Standing::Asking { .. } => None,
            },
            first: self.register.first,
            number: self.report_number,
            applied: (*applied != held).then(|| applied.into_owned()),
            durable: durable.then(|| self.durable_vector()),
            held,
            echo: None,
            ask: false,
        }
    }

    fn handle_timer(&mut self, now: Now) {
        if now.mono >= self.next_exchange && self.may_report() {
            self.next_exchange = now.mono + self.config.timing.exchange;
            self.exchange(now);
        }
        if self.lingering.is_due(now.mono) {
            self.stop_lingering();
        }
        self.expire_acks(now.mono);
        self.expire_reads(now.mono);
    }
}

/// Counts of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Keys, those included of which only a delete is kept.
    pub keys: usize,
    /// Keys with more than one version, or with a delete that is not known everywhere yet.
    pub unsettled: usize,
    /// Writes that met another one that neither had seen.
    pub conflicts: u64,
    /// Values whose counters were folded, each time.
    pub folded: u64,
    /// Values that were overwritten by one that had not seen them: entries of the audit, also of those that were dropped since.
    pub overwritten: u64,
    /// Entries of the audit that were dropped for its limit.
    pub audit_dropped: u64,
    /// Batches that wait for what they had seen, in bytes.
    pub waiting_bytes: usize,
    /// Batches kept in memory for peers, in bytes.
    pub cache_bytes: usize,
    /// Members that have been silent for too long, ascending.
    pub suspected: Vec<NodeId>,
}

impl Figures {
    fn counts(&self) -> Vec<Figure> {
        vec![
            Figure::new("keys", self.keys as u64),
            Figure::new("writes met one that neither had seen", self.conflicts),
            Figure::new("values whose counters were folded", self.folded),
            Figure::new("values overwritten unseen, in the audit", self.overwritten),
            Figure::new("entries of the audit dropped for its limit", self.audit_dropped),
        ]
    }
}

impl Replica for MultiLeader {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        self.now = now;
        if self.recovered && !self.failed {
            self.observe_epoch();
        }
        match input {
            Input::RecoverSnapshot { at, chunk, last } => self.handle_recovered_snapshot(at, &chunk, last),
            Input::Recover { batch } => self.handle_recovered_batch(batch),
            Input::Recovered => self.handle_recovered(now),
            Input::Timer => self.handle_timer(now),
            Input::Message { from, message } => self.handle_message(now, from, message),
            Input::Peer { node, link } => self.handle_peer(node, link),
            Input::Command { token, group, level, session, body } => {
                if group != self.config.group || session.is_some() {
                    return self.reject(token, Rejection::Unsupported);
                }
                self.handle_command(now, token, level, &body);
            }
            Input::Query { token, group, level, body, bytes_max } => {
                if group != self.config.group {
                    return self.reject(token, Rejection::Unsupported);
                }
                self.handle_query(now, token, level, body, bytes_max);
            }
            Input::Durable { up_to } => self.handle_durable(up_to),
            Input::LogRead { ticket, stream, answer } => self.handle_log_read(ticket, stream, answer),
            Input::Storage { event } => self.handle_storage(event),
            Input::Admin { token, group, command } if group == self.config.group => self.handle_admin(token, command),
            Input::SnapshotRead { .. } => {}
            Input::OpenSession { token, .. }
            | Input::Write { token, .. }
            | Input::Read { token, .. }
            | Input::Admin { token, .. } => self.reject(token, Rejection::Unsupported),
        }
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if !self.recovered {
                return None;
            }
            if self.open.is_some() {
                self.close_batch();
            } else if core::mem::take(&mut self.outdated) {
                self.fill_peers();
            } else if !self.owed.is_empty() && self.may_report() {
                self.tell_owed();
            } else {
                return None;
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        if !self.recovered {
            return None;
        }
        let exchange = self.may_report().then_some(self.next_exchange);
        [exchange, self.lingering.until(), self.acks.deadline(), self.reads.deadline()].into_iter().flatten().min()
    }
}

/// Where a write stands.
pub(crate) const fn position(stream: StreamId, sequence: u64) -> Position {
    Position { stream, id: LogId { term: Term(0), index: LogIndex(sequence) }, digest: 0 }
}
