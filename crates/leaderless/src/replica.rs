//! The replica: what it owns, and which part of it an input is for.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replikit_core::dotted::{Peer, Stability, Stream, first_number, life_of};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Action, Admin, Batch, Batches, Boot, Epoch, Event, Figure, FollowerStatus, HedgeBudget, Held, HybridClock,
    Incarnation, Input, Link, LogId, LogIndex, Message, NodeId, Now, Origin, OriginId, Outcome, Persist, Position,
    Rejection, Replica, Role, Status, StorageEvent, StreamId, Term, Time, Token, VersionVector, WriteId,
};

use crate::cas::CasStats;
use crate::comeback::Stash;
use crate::config::{Config, ConfigError, Founding};
use crate::consensus::Consensus;
use crate::coordinate::{OpenBatch, Writing};
use crate::epoch::Move;
use crate::exchange::Arriving;
use crate::levels::Owners;
use crate::member::Member;
use crate::message::{Head, NotLast, Report};
use crate::orphan::Orphans;
use crate::ownership::Ownership;
use crate::reads::{Reads, Reply};
use crate::record::{Local, Writes, own_batch};
use crate::register::Register;
use crate::sampling::{Measured, Sampling};
use crate::scrub::{ScrubStats, Scrubbing};
use crate::snapshot::Incoming;
use crate::state::State;

/// Numbers of own reports that are remembered, to know when an answer was asked for.
pub(crate) const ASKED_MAX: usize = 64;

/// Largest record of a replica's own in its log, in bytes; the rest of a batch is its frame.
pub(crate) const LOCAL_BYTES_MAX: usize = replikit_core::BATCH_BYTES_MAX / 2;

/// Who may write here, and be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This incarnation takes part.
    Writer(OriginId),
    /// It may have forgotten what it wrote and what it acknowledged: it has to hear from the other owners first, and to apply
    /// what they hold.
    Asking {
        /// What each of those held that it has heard from.
        wanted: BTreeMap<NodeId, VersionVector>,
        /// The newest incarnation of this node that anybody knows.
        newest: u32,
    },
}

/// What this replica thinks of another coordinator's writes.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// It says nothing of the writes up to this: they came with a snapshot.
    pub(crate) from: u64,
    /// Writes that are not the last ones here; above what the coordinator has settled.
    pub(crate) not_last: VecDeque<(u64, NotLast)>,
    /// Something that came after what is held came without what is between.
    pub(crate) missing: bool,
}

/// A replica of a group whose members are equal: each owns every key, coordinates requests, and answers other coordinators.
pub struct Leaderless {
    pub(crate) config: Config,
    /// The keyspaces in short.
    pub(crate) keyspaces: u64,
    /// The epochs that it counts in: they are on its disk.
    pub(crate) ownership: Ownership,
    /// Those that it is going to count in, and the storage action after which it does.
    pub(crate) taking: Option<(WriteId, Ownership)>,
    /// The way out of the epochs in force, while they are several.
    pub(crate) moving: Move,
    /// Whether it has had all that the owners before it had, so that it may order writes.
    pub(crate) caught_up: bool,
    /// Whether it was evicted since it last took part.
    pub(crate) out: bool,
    /// What it made while nobody else had it, until it was evicted: to be made again.
    pub(crate) stash: Stash,
    pub(crate) owners: Owners,
    pub(crate) members: BTreeMap<NodeId, Member>,
    /// Names the epochs that it counts in.
    pub(crate) epoch: Epoch,
    pub(crate) suspected: BTreeSet<NodeId>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Peers whose link is known to be down.
    pub(crate) down: BTreeSet<NodeId>,
    /// Those to tell what is held at the end of the round.
    pub(crate) owed: BTreeSet<NodeId>,
    /// Coordinators to tell how far their writes have got: at once, or as soon as this is durable.
    pub(crate) owed_stored: BTreeSet<NodeId>,
    pub(crate) owed_durable: BTreeMap<NodeId, WriteId>,
    pub(crate) judged: BTreeMap<OriginId, Judged>,
    pub(crate) standing: Standing,
    pub(crate) register: Register,
    pub(crate) state: State,
    pub(crate) streams: BTreeMap<OriginId, Stream>,
    /// The stream of what came in other ways than as a write: the last index, and its digest.
    pub(crate) local: (u64, u64),
    /// Whether the log has any of them.
    has_local: bool,
    /// Own records up to this one are in the snapshot that was restored.
    restored_local: u64,
    /// Whether the disk knows of epochs.
    pub(crate) has_owning: bool,
    pub(crate) cache_bytes: usize,
    pub(crate) clock: HybridClock,
    pub(crate) open: Option<OpenBatch>,
    pub(crate) writing: Writing,
    pub(crate) reads: Reads,
    pub(crate) consensus: Consensus,
    /// What leaves once something is on disk here.
    pub(crate) replies: Held<Reply>,
    pub(crate) last_held: WriteId,
    pub(crate) orphans: Orphans,
    pub(crate) sampling: Sampling,
    pub(crate) scrubbing: Scrubbing,
    /// Which fallback node is tried first.
    pub(crate) hint_turn: usize,
    pub(crate) hints_sent: u64,
    pub(crate) stability: Stability,
    pub(crate) last_write: WriteId,
    pub(crate) durable: WriteId,
    /// The storage action that makes the incarnation durable under which this replica writes.
    pub(crate) incarnated: WriteId,
    /// The storage action that makes this life durable: before it, nothing leaves that is counted by lives, for another life
    /// could use its numbers.
    pub(crate) lived: WriteId,
    /// The storage action that made the newest installed snapshot durable: readers wait for it.
    pub(crate) installed: WriteId,
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
    // To whom what was told of epochs, and until when it is not told again.
    pub(crate) told_epochs: BTreeMap<NodeId, (Time, Ownership)>,
    pub(crate) next_exchange: Time,
    /// Whether peers may lack something that can go out now.
    pub(crate) outdated: bool,
    pub(crate) actions: VecDeque<Action<Head>>,
}

impl core::fmt::Debug for Leaderless {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Leaderless")
            .field("node", &self.config.node)
            .field("standing", &self.standing)
            .field("base", self.state.base())
            .finish_non_exhaustive()
    }
}

impl Leaderless {
    /// A replica on a disk that says `boot`; recovery is pushed next.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was written.
    pub fn new(config: Config, boot: &Boot) -> Result<Self, ConfigError> {
        config.check()?;
        if config.fallbacks.nodes.contains(&config.node) {
            return Err(ConfigError::NotAnOwner { node: config.node });
        }
        let mut register = Register::of(boot)?;
        let membership = config.epochs.current().clone();
        let is_new = register.incarnation == 0;
        // Which epoch came before a later one, the disk says, or others do.
        let ownership =
            if membership.is_founding() { Ownership::founding(membership) } else { Ownership::announced(membership) };
        let is_founder = ownership.contains(config.node);
        let owners = Owners::new(ownership.in_force(), config.node, config.quorums);
        let clock = HybridClock::resume(register.ceiling);
        let was_cut = boot.tail_cut.iter().any(|stream| stream.group == config.group);
        let unclean = register.unclean != boot.incarnation;
        register.life += 1;
        register.unclean = boot.incarnation;
        // A start that did not get so far as to have asked everybody left that in the register: the log tells a cut once only.
        let still = !is_new && register.forgotten > register.incarnation;
        let asks = was_cut || still || is_new && (config.founding == Founding::Ask || !is_founder);
        let standing = if asks {
            register.forgotten = register.incarnation + 1;
            Standing::Asking { wanted: BTreeMap::new(), newest: register.incarnation }
        } else {
            if is_new || unclean {
                register.incarnation += 1;
            }
            if is_new {
                // So the operator says now.
                register.forgotten = 0;
            }
            let origin = Origin { node: config.node, incarnation: Incarnation(register.incarnation) };
            Standing::Writer(origin.id().map_err(|_| ConfigError::Incarnations { node: config.node })?)
        };
        let state = State::new(config.keyspaces.clone(), config.limits.audit_bytes_max);
        let consensus = Consensus::new(&config, ownership.number(), owners.nodes());
        let mut replica = Self {
            keyspaces: config.keyspaces.digest(),
            members: BTreeMap::new(),
            epoch: ownership.number(),
            peers: BTreeMap::new(),
            ownership,
            taking: None,
            moving: Move::default(),
            caught_up: is_founder,
            out: false,
            stash: Stash::default(),
            owners,
            suspected: BTreeSet::new(),
            down: BTreeSet::new(),
            owed: BTreeSet::new(),
            owed_stored: BTreeSet::new(),
            owed_durable: BTreeMap::new(),
            judged: BTreeMap::new(),
            standing,
            report_number: first_number(register.life),
            register,
            state,
            streams: BTreeMap::new(),
            local: (0, 0),
            has_local: false,
            restored_local: 0,
            has_owning: false,
            cache_bytes: 0,
            clock,
            open: None,
            writing: Writing::default(),
            reads: Reads::default(),
            consensus,
            replies: Held::new(),
            last_held: WriteId(0),
            orphans: Orphans::default(),
            sampling: Sampling::default(),
            scrubbing: Scrubbing::default(),
            hint_turn: 0,
            hints_sent: 0,
            stability: Stability::default(),
            last_write: WriteId(0),
            durable: WriteId(0),
            incarnated: WriteId(1),
            lived: WriteId(1),
            installed: WriteId(0),
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
            told_epochs: BTreeMap::new(),
            next_exchange: Time::ZERO,
            outdated: false,
            actions: VecDeque::new(),
            config,
        };
        replica.lay_members();
        Ok(replica)
    }

    /// What has been applied here from the logs of the origins.
    #[must_use]
    pub const fn applied(&self) -> &VersionVector {
        self.state.base()
    }

    /// A hash of what the keys show; equal at replicas that know the same writes.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.state.hash()
    }

    /// What a key shows here, writes included that are not durable yet. For checks; clients ask.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Vec<bytes::Bytes> {
        self.state.values(key)
    }

    /// What every owner is known to have applied durably, with nothing on its way that was made without having seen it.
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
            cache_bytes: self.cache_bytes,
            restamped: self.writing.restamped,
            shared_reads: self.reads.shared,
            hedged: self.reads.hedged,
            hinted: self.hints_sent,
            sloppy: self.writing.sloppy,
            repaired: self.reads.repaired,
            staleness: self.sampling.measured,
            scrub: self.scrubbing.stats,
            cas: self.consensus.stats(),
            suspected: self.suspected.iter().copied().collect(),
        }
    }

    /// When reads of few owners are expected to see a write, for an operator.
    fn predicted(&self) -> impl Iterator<Item = Figure> {
        let prediction = self.delays().predict(1, self.owners.write_size());
        let name = |share| format!("us after which {share} of 1000 reads of one owner are expected to see a write");
        prediction.into_iter().flat_map(move |prediction| {
            [500, 999].into_iter().filter_map(move |share| {
                let after = prediction.visible_after(f64::from(share) / 1000.0);
                (after < Duration::MAX).then(|| Figure::new(name(share), after.as_micros() as u64))
            })
        })
    }

    /// What a key has seen here: the logs, and what reads have brought.
    #[must_use]
    pub fn seen(&self, key: &[u8]) -> VersionVector {
        self.state.seen(key)
    }

    /// Keys that are unsettled although there is nothing to do: with more than one value until one is written over them, or
    /// having seen a write whose log was lost, which every owner knows.
    #[must_use]
    pub fn lasting(&self) -> usize {
        let told = self.told_orphans();
        self.state.lasting(|key, digest| told.get(key) == Some(&digest))
    }

    /// The epochs that it counts in, and the one that is to come.
    #[must_use]
    pub const fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Names the epochs that it counts in: replicas with the same name answer each other.
    #[must_use]
    pub const fn view(&self) -> Epoch {
        self.epoch
    }

    /// Whether it takes requests, counts in one epoch only, and the owners of that are these.
    #[must_use]
    pub fn is_serving(&self, owners: &[NodeId]) -> bool {
        self.serves().is_ok() && !self.ownership.is_joint() && self.owners.nodes() == owners
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
        self.last_write = self.last_write.next();
        self.actions.push_back(Action::Persist { id: self.last_write, op });
        self.last_write
    }

    /// Writes a record of this replica's own into its log. What it says is part of the state already; of a key with more
    /// siblings than a batch takes, the whole state is written instead.
    pub(crate) fn persist_local(&mut self, record: &Local) -> WriteId {
        self.close_batch();
        let bytes = record.encode();
        if bytes.len() > LOCAL_BYTES_MAX {
            let snapshot = self.last_write.next();
            self.take_snapshot();
            return snapshot;
        }
        self.persist_locals(&[bytes])
    }

    /// Writes records of this replica's own, which fit into one batch; there is one at least.
    pub(crate) fn persist_locals(&mut self, records: &[Vec<u8>]) -> WriteId {
        self.close_batch();
        let records = records.iter().map(Vec::as_slice);
        let batch = own_batch(self.config.cluster, self.config.group, &mut self.local, records);
        self.log_bytes += batch.bytes() as u64;
        self.persist_next(Persist::Append { batch, replace: false })
    }

    /// Sends something once this storage action is durable: at once if it is, whatever others wait for. Until the incarnation is, a
    /// crash could give the dots of its writes to others, and what is shown of any key may have seen them.
    pub(crate) fn reply_after(&mut self, after: WriteId, reply: Reply) {
        let after = after.max(self.incarnated);
        if after <= self.durable {
            return self.reply(reply);
        }
        // Those that wait leave in the order of what they wait for.
        self.last_held = self.last_held.max(after);
        self.replies.hold(self.last_held, reply);
    }

    /// Whether a node is known not to be reachable.
    pub(crate) fn is_away(&self, node: NodeId) -> bool {
        self.down.contains(&node) || self.suspected.contains(&node)
    }

    /// The last sequence of an origin that may be shown: what is on this disk.
    pub(crate) fn visible_of(&self, origin: OriginId) -> u64 {
        self.streams.get(&origin).map_or(0, Stream::durable).min(self.state.base().base(origin))
    }

    fn handle_recovered_batch(&mut self, batch: Batch) {
        let StreamId { group, origin } = batch.stream();
        if group != self.config.group {
            return;
        }
        if origin == OriginId::LOCAL {
            self.local = (batch.last().index.0, batch.digest());
            self.has_local = true;
            self.log_bytes += batch.bytes() as u64;
            for entry in batch.entries() {
                match Local::decode(entry.payload) {
                    Some(Local::Owning(owning)) if entry.index.0 > self.restored_local => self.recover_owning(*owning),
                    Some(Local::Stashed { .. }) if entry.index.0 <= self.restored_local => {}
                    Some(Local::Stashed { key, copy }) => self.stash.put(key, copy),
                    Some(Local::Owning(_)) => {}
                    Some(Local::Repaired { key, copy }) => drop(self.state.repair(&key, copy, WriteId(0))),
                    // What has been written since is in the snapshot, and must not be taken back.
                    Some(Local::Adopted { .. }) if entry.index.0 <= self.restored_local => {}
                    Some(Local::Adopted { key, copy }) => drop(self.state.adopt(&key, copy, WriteId(0))),
                    Some(Local::Cas(record)) => self.consensus.recover(&record),
                    None => {}
                }
            }
            return;
        }
        let Ok(writes) = Writes::of(batch.clone(), |_, _| true) else { return };
        let applied = self.state.base().base(origin);
        let digest = self.state.digest(origin);
        let stream = self.streams.entry(origin).or_insert_with(|| Stream::new(origin, applied, digest));
        self.logged.insert(origin, writes.last());
        if writes.last() <= stream.held() {
            // In the snapshot already; it can be sent to others from the log all the same.
            if batch.base().0 < stream.first() {
                stream.logged_from(batch.base().0);
            }
            return;
        }
        if !stream.continues(&batch) {
            // Behind a snapshot whose place in the log was not made yet: it comes again from another owner.
            return;
        }
        self.log_bytes += batch.bytes() as u64;
        self.cache_bytes += batch.bytes();
        stream.append(batch, None);
        self.clock.observe(writes.time);
        self.take_in(&writes, WriteId(0));
        self.trim_cache();
    }

    fn handle_recovered_snapshot(&mut self, at: Position, chunk: &[u8], last: bool) {
        let mut content = self.restoring.take().unwrap_or_default();
        let mut read = content.push(chunk);
        if read.is_ok() && last {
            read = content.join(&mut self.state).map(|(header, own)| {
                self.local = header.local;
                self.restored_local = header.local.0;
                own.cas.iter().for_each(|record| self.consensus.recover(record));
                self.stash = own.stash;
                own.owning.into_iter().for_each(|owning| self.recover_owning(owning));
            });
            self.snapshot = Some(at);
        } else if read.is_ok() {
            self.restoring = Some(content);
            return;
        }
        if read.is_err() {
            // What it held has to come from the others again, before this replica is counted.
            self.event(Event::SnapshotUnreadable { at });
            let newest = self.register.incarnation;
            self.standing = Standing::Asking { wanted: BTreeMap::new(), newest };
            self.register.forgotten = newest + 1;
        }
        for (origin, held) in self.state.base().iter() {
            let digest = self.state.digest(origin);
            self.streams.insert(origin, Stream::new(origin, held.base(), digest));
            self.judged.entry(origin).or_default().from = held.base();
        }
    }

    fn handle_recovered(&mut self, now: Now) {
        self.recovered = true;
        for stream in core::mem::take(&mut self.cut) {
            self.event(Event::TailCut { stream });
        }
        self.raise_ceiling(now);
        self.incarnated = self.last_write;
        // A snapshot may be ahead of what the log has of a stream: the stream goes on behind it.
        let logged = core::mem::take(&mut self.logged);
        let ahead = self.streams.values().filter(|stream| logged.get(&stream.origin()) != Some(&stream.held()));
        let ahead: Vec<(OriginId, u64)> = ahead.map(|stream| (stream.origin(), stream.held())).collect();
        for (origin, held) in ahead.into_iter().filter(|(_, held)| *held > 0) {
            let next = LogIndex(held + 1);
            self.persist(Persist::Reset { stream: self.stream_id(origin), next });
            self.streams.get_mut(&origin).expect("listed above").released(held + 1);
        }
        if !self.has_local {
            // Where the stream of own records ended before, only its records or the snapshot could say.
            let next = LogIndex(self.local.0 + 1);
            self.persist(Persist::Reset { stream: self.stream_id(OriginId::LOCAL), next });
        }
        if self.config.epochs.changes() && !self.has_owning && self.ownership.settled.is_some() {
            // By the next start a later epoch may have been announced.
            self.persist_owning();
        }
        if self.config.epochs.changes() {
            self.count_in_recovered(now);
        }
        self.try_standing();
        self.start_consensus();
        self.event(Event::RoleChanged { role: Role::Equal, term: Term(0) });
        self.next_exchange = now.mono;
    }

    /// Has the clock run on for a while, durably.
    pub(crate) fn raise_ceiling(&mut self, now: Now) {
        let ceiling = self.clock.wanted_ceiling(now.wall, crate::coordinate::CEILING_AHEAD);
        self.register.ceiling = ceiling;
        let (group, bytes) = (self.config.group, self.register.encode());
        self.persist(Persist::Register { group, bytes });
        // A write that carries such a timestamp is stored behind the register, and is counted only once it is.
        self.clock.raise_ceiling(ceiling);
    }

    fn handle_durable(&mut self, now: Now, up_to: WriteId) {
        let before = self.durable;
        self.durable = self.durable.max(up_to);
        if self.taking.is_some() {
            self.take_epochs(now);
        }
        if before < self.lived && self.may_number() {
            self.begin_asking(now);
        }
        let mut grown = false;
        for stream in self.streams.values_mut() {
            grown |= stream.sync(self.durable);
        }
        self.own_writes_are_durable(now);
        self.records_are_durable(now);
        self.release_replies();
        self.release_reads();
        if grown || !self.owed_durable.is_empty() {
            self.outdated = true;
            let durable = self.durable;
            let due = self.owed_durable.extract_if(.., |_, until| *until <= durable).map(|(node, _)| node);
            self.owed_stored.extend(due);
        }
    }

    fn handle_storage(&mut self, event: StorageEvent) {
        match event {
            StorageEvent::Failed => {
                self.failed = true;
                self.fail_writes();
                self.fail_reads(&Rejection::StorageFailed);
                self.fail_consensus();
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

    fn handle_peer(&mut self, now: Now, node: NodeId, link: Link) {
        if self.config.fallbacks.nodes.contains(&node) {
            match link {
                Link::Up => self.down.remove(&node),
                _ => self.down.insert(node),
            };
            return;
        }
        if !self.members.contains_key(&node) {
            return;
        }
        if link == Link::Up {
            self.down.remove(&node);
            self.owed.insert(node);
            return;
        }
        self.down.insert(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.go_back();
        }
        self.ask_instead_of(now, node);
    }

    fn handle_admin(&mut self, token: Token, command: Admin) {
        match command {
            Admin::Status => {
                let values = vec![self.status().encode()];
                self.done(token, Outcome::Value { values, seen: None, strict: false, staleness: None });
            }
            Admin::Snapshot => {
                self.take_snapshot();
                self.done(token, Outcome::Value { values: Vec::new(), seen: None, strict: false, staleness: None });
            }
            _ => self.reject(token, Rejection::Unsupported),
        }
    }

    /// How it describes itself: its own origin as the log, and what each other owner lacks of what is held here.
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
            applied_index: LogIndex(self.state.base().base(origin)),
            first_index: LogIndex(first),
            snapshot: self.snapshot,
            followers: self.members.iter().map(follower).collect(),
            epoch: self.ownership.epoch(),
            suspected: self.suspected.iter().copied().collect(),
            figures: (self.figures().counts().into_iter())
                .chain(self.epoch_counts())
                .chain(self.consensus.counts())
                .chain(self.predicted())
                .collect(),
        }
    }

    /// Whether no crash can give the numbers of this life to another one.
    pub(crate) fn may_number(&self) -> bool {
        self.lived <= self.durable
    }

    /// What is held here of every origin.
    pub(crate) fn held(&self) -> VersionVector {
        self.vector(Stream::held)
    }

    /// What of it is on disk here.
    pub(crate) fn durable_vector(&self) -> VersionVector {
        self.vector(Stream::durable)
    }

    fn vector(&self, end: impl Fn(&Stream) -> u64) -> VersionVector {
        let mut vector = VersionVector::new();
        for stream in self.streams.values() {
            vector.insert_all(stream.origin(), &replikit_core::SequenceSet::up_to(end(stream)));
        }
        vector
    }

    /// The newest life of every owner, in their order.
    pub(crate) fn lives(&self) -> Vec<u32> {
        let life = |index: u32| match self.members.get(&self.owners.node(index)) {
            Some(member) => member.report.as_ref().map_or(0, |report| life_of(report.number)),
            None => self.register.life,
        };
        (0..u32::from(self.owners.len())).map(life).collect()
    }

    /// What is held here, as it is told to others.
    pub(crate) fn report(&self) -> Report {
        let held = self.held();
        let durable = self.vector(Stream::durable);
        Report {
            epoch: self.epoch,
            keyspaces: self.keyspaces,
            current: self.current(self.config.node),
            lives: self.lives(),
            number: self.report_number,
            durable: (durable != held).then_some(durable),
            held,
            echo: None,
            ask: false,
            strays: self.strays(),
            moving: self.moving(),
        }
    }

    /// The present incarnation of an owner, as it told last; `None` where it has none, or is not known.
    pub(crate) fn current(&self, node: NodeId) -> Option<u32> {
        if node == self.config.node {
            return self.origin().filter(|_| !self.out).map(|_| self.register.incarnation);
        }
        self.members.get(&node)?.report.as_ref()?.current
    }

    /// Whether a value that merges has seen a write of which no log here can tell, so that nothing may be folded; also where nobody
    /// folds. It is looked for among all that is not settled: while owners change, or one is down, most of the keys that are written.
    fn strays(&self) -> bool {
        if !self.ownership.is_founding() {
            return true;
        }
        if !self.config.keyspaces.iter().any(|keyspace| matches!(keyspace.conflicts, ConflictPolicy::Crdt(_))) {
            return false;
        }
        let is_current = |origin: Origin| self.current(origin.node) == Some(origin.incarnation.0);
        self.state.strays(|origin| !Origin::of(origin).is_some_and(is_current))
    }

    fn handle_timer(&mut self, now: Now) {
        if now.mono >= self.next_exchange && self.may_number() {
            self.next_exchange = now.mono + self.config.timing.exchange;
            self.exchange(now);
        }
        self.expire_writes(now.mono);
        self.hedge_reads(now);
        self.expire_reads(now.mono);
        self.expire_changes(now);
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
    /// Batches kept in memory for peers, in bytes.
    pub cache_bytes: usize,
    /// Writes that were stamped anew because an owner had a newer one.
    pub restamped: u64,
    /// Reads that asked other owners.
    pub shared_reads: u64,
    /// Owners that were asked in addition to a late one.
    pub hedged: u64,
    /// Writes handed to fallback nodes for owners that could not be reached, each time.
    pub hinted: u64,
    /// Writes acknowledged with the help of fallback nodes.
    pub sloppy: u64,
    /// Owners that were told of a version by a read.
    pub repaired: u64,
    /// How stale answers of few owners were.
    pub staleness: Measured,
    /// What came of comparing records.
    pub scrub: ScrubStats,
    /// Of keys that are compared and set.
    pub cas: CasStats,
    /// Owners that have been silent for too long, ascending.
    pub suspected: Vec<NodeId>,
}

impl Figures {
    /// The most reads that may have been hedged by now.
    #[must_use]
    pub const fn hedged_max(&self) -> u64 {
        HedgeBudget::hedges_max(self.shared_reads)
    }

    fn counts(&self) -> Vec<Figure> {
        vec![
            Figure::new("keys", self.keys as u64),
            Figure::new("writes met one that neither had seen", self.conflicts),
            Figure::new("values whose counters were folded", self.folded),
            Figure::new("values overwritten unseen, in the audit", self.overwritten),
            Figure::new("entries of the audit dropped for its limit", self.audit_dropped),
            Figure::new("writes stamped anew", self.restamped),
            Figure::new("reads of several owners", self.shared_reads),
            Figure::new("reads hedged", self.hedged),
            Figure::new("owners repaired by reads", self.repaired),
            Figure::new("hints handed to fallback nodes", self.hinted),
            Figure::new("writes acknowledged with the help of fallback nodes", self.sloppy),
            Figure::new("reads of few owners looked at", self.staleness.checked),
            Figure::new("of these stale", self.staleness.stale),
            Figure::new("us the longest of these", self.staleness.worst.as_micros() as u64),
            Figure::new("rounds of the scrub", self.scrub.rounds),
            Figure::new("walks of it over all records", self.scrub.walks),
            Figure::new("records found damaged", self.scrub.damaged),
            Figure::new("records taken from a majority", self.scrub.repaired),
            Figure::new("records that differ without a majority", self.scrub.undecided),
        ]
    }
}

impl Replica for Leaderless {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        if self.recovered && self.config.epochs.changes() {
            self.observe_epochs(now);
        }
        match input {
            Input::RecoverSnapshot { at, chunk, last } => self.handle_recovered_snapshot(at, &chunk, last),
            Input::Recover { batch } => self.handle_recovered_batch(batch),
            Input::Recovered => self.handle_recovered(now),
            Input::Timer => self.handle_timer(now),
            Input::Message { from, message } => self.handle_message(now, from, message),
            Input::Peer { node, link } => self.handle_peer(now, node, link),
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
                self.handle_query(now, token, level, &body, bytes_max);
            }
            Input::Durable { up_to } => self.handle_durable(now, up_to),
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
            } else if self.consensus.has_records() {
                self.write_records();
            } else if self.may_number() && core::mem::take(&mut self.outdated) {
                self.fill_peers();
            } else if !self.owed_stored.is_empty() {
                self.tell_stored();
            } else if !self.owed.is_empty() && self.may_number() {
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
        // Who owns nothing and is not about to has nobody to speak with.
        let is_out = self.config.epochs.changes() && !self.owners.is_owner() && self.members.is_empty();
        let exchange = (self.may_number() && !is_out).then_some(self.next_exchange);
        let deadlines = [exchange, self.writing.deadline(), self.reads.deadline(), self.consensus.deadline()];
        deadlines.into_iter().flatten().min()
    }
}

/// Where a write stands.
pub(crate) const fn position(stream: StreamId, sequence: u64) -> Position {
    Position { stream, id: LogId { term: Term(0), index: LogIndex(sequence) }, digest: 0 }
}
