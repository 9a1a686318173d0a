//! The Raft replica: the one public state machine, which only dispatches. What each role does lies in `election`, `follower`,
//! `leader`, `reads` and `install`.
//!
//! Invariants: `applied <= commit <= last`; the durable index never passes `last`; the term never goes back; nothing that
//! depends on a term leaves this replica before that term is on disk.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use replikit_core::{
    Action, Admin, Batch, BatchKind, Batches, Boot, Event, FollowerStatus, GroupId, Held, HybridClock, Input, Link,
    LogId, LogIndex, Message, NodeId, Now, Outcome, Persist, Position, Quorum, Reached, Rejection, Replica, Role,
    SessionId, StateMachine, Status, StorageEvent, StreamId, Term, Time, Token, WriteId,
};

use crate::config::{Common, Config, ConfigError, Members, Sharing};
use crate::election::{Candidate, Memory, Stage};
use crate::follower::Follower;
use crate::install::Install;
use crate::leader::Leader;
use crate::message::{Append, Head};
use crate::reads::Reads;
use crate::register::Ballot;
use crate::sessions::{Known, Reply, Sessions};
use crate::snapshot::{End, GroupState, Restorer, Source};
use crate::view::LogView;

/// A control record of the consensus log, one byte.
pub(crate) const CONTROL_NOOP: &[u8] = &[0];
/// Opens a session whose id is the index of this record.
pub(crate) const CONTROL_OPEN_SESSION: &[u8] = &[1];

#[derive(Debug)]
pub(crate) enum State {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// The newest snapshot, the one before it, and when the next is due.
#[derive(Debug, Default)]
struct Snapshots {
    newest: Option<Position>,
    writing: VecDeque<(WriteId, Position)>,
    log_bytes: u64,
}

/// One replica of a single-leader group. Source: Raft (Ongaro and Ousterhout, ATC'14) and Ongaro's thesis.
#[derive(Debug)]
pub struct Raft<M> {
    pub(crate) config: Arc<Common>,
    pub(crate) stream: StreamId,
    pub(crate) quorum: Arc<Quorum>,
    /// The other members, ascending.
    pub(crate) peers: Arc<[NodeId]>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: Now,
    clock: HybridClock,

    machine: M,
    sessions: Sessions,
    pub(crate) view: LogView,
    /// Highest index known to be committed. Invariant: at the end of a batch, `applied <= commit <= last`.
    pub(crate) commit: LogIndex,
    /// The last entry applied, always the end of a batch.
    pub(crate) applied: Position,

    pub(crate) ballot: Ballot,
    /// The storage action that made the ballot durable; 0 if it was found so.
    ballot_write: WriteId,
    written: WriteId,
    pub(crate) durable: WriteId,
    /// Appends under way to the disk, with the last index of each; clamped when the log is truncated.
    pub(crate) appends: VecDeque<(WriteId, LogIndex)>,
    /// Last index on this replica's disk.
    pub(crate) durable_index: LogIndex,
    /// Votes, which must not leave before the ballot is on disk.
    pub(crate) held: Held<(NodeId, Head)>,
    storage_failed: bool,

    pub(crate) state: State,
    /// Who leads this term, if known; this node itself if it does.
    pub(crate) leader: Option<NodeId>,
    pub(crate) memory: Memory,
    /// Members whose node is gone, as the driver says.
    pub(crate) gone: Vec<NodeId>,
    pub(crate) reads: Reads,
    /// Boxed, as what follows: few replicas have it at a time, of thousands on a node.
    pub(crate) install: Option<Box<Install>>,
    recovery: Option<Box<Recovery>>,
    snapshots: Snapshots,

    pub(crate) out: VecDeque<Action<Head>>,
    /// Whether there may be something to flush since the last drain.
    pub(crate) dirty: bool,
}

/// What recovery has pushed so far.
#[derive(Debug, Default)]
struct Recovery {
    restorer: Restorer,
    /// Base of a batch that does not continue what was pushed before it. Either a later batch replaces it, for a log is
    /// pushed with what was replaced in it, or an install was cut off by a crash.
    stray: Option<LogIndex>,
    /// Where the log ends that was pushed: its last index and the digest there.
    log_end: Option<(LogIndex, u64)>,
}

impl<M: StateMachine> Raft<M> {
    /// A replica that continues from what its disk holds; feed recovery before anything else.
    ///
    /// # Errors
    /// [`ConfigError`] says which setting is out of range, or that the vote record cannot be read.
    pub fn new(config: Config, boot: &Boot, machine: M) -> Result<Self, ConfigError> {
        Self::sharing(&mut Sharing::default(), &config, boot, machine)
    }

    /// The same for one of many on a node, which keeps what it has in common with the others but once.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn sharing(sharing: &mut Sharing, config: &Config, boot: &Boot, machine: M) -> Result<Self, ConfigError> {
        config.check()?;
        let (ballot, was_cut) = Ballot::decode(&boot.register).ok_or(ConfigError::Register { group: config.group })?;
        let (common, Members { quorum, peers }) = sharing.of(config);
        let stream = StreamId::consensus(config.group);
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let mut out = VecDeque::new();
        let tail_cut = boot.tail_cut.contains(&stream);
        if tail_cut {
            out.push_back(Action::Event { group: config.group, event: Event::TailCut { stream } });
        }
        Ok(Self {
            stream,
            quorum,
            peers,
            reads: Reads::new(rng.u64(..)),
            rng,
            now: Now::default(),
            clock: HybridClock::unbounded(),
            machine,
            sessions: Sessions::default(),
            view: LogView::new(stream),
            commit: LogIndex::ZERO,
            applied: Position { stream, ..Position::default() },
            ballot,
            ballot_write: WriteId(0),
            written: WriteId(0),
            durable: WriteId(0),
            appends: VecDeque::new(),
            durable_index: LogIndex::ZERO,
            held: Held::new(),
            storage_failed: false,
            state: State::Follower(Follower::new(Time::NEVER)),
            leader: None,
            memory: if tail_cut || was_cut { Memory::Cut { whole_at: None } } else { Memory::Whole },
            gone: Vec::new(),
            install: None,
            snapshots: Snapshots { newest: boot.snapshot, ..Snapshots::default() },
            recovery: Some(Box::default()),
            out,
            dirty: false,
            config: common,
        })
    }

    /// The user's state machine.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// This replica's part in the group.
    pub const fn role(&self) -> Role {
        match &self.state {
            State::Follower(_) => Role::Follower,
            State::Candidate(Candidate { stage: Stage::Pre, .. }) => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// Its term.
    pub const fn term(&self) -> Term {
        self.ballot.term
    }

    /// Highest index known to be committed.
    pub const fn commit_index(&self) -> LogIndex {
        self.commit
    }

    /// The last entry applied.
    pub const fn applied(&self) -> Position {
        self.applied
    }

    /// The last entry of the log.
    pub const fn last(&self) -> Position {
        Position { stream: self.stream, id: self.view.last(), digest: self.view.last_digest() }
    }

    /// Term of an entry, as far as this replica remembers it; for checks.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.view.term_at(index)
    }

    /// The replica's description of itself.
    pub fn status(&self) -> Status {
        let followers = match &self.state {
            State::Leader(leader) => leader
                .followers
                .iter()
                .map(|progress| FollowerStatus {
                    node: progress.node,
                    match_index: progress.matched,
                    lag_entries: self.view.last().index.0.saturating_sub(progress.matched.0),
                })
                .collect(),
            _ => Vec::new(),
        };
        Status {
            group: self.stream.group,
            role: self.role(),
            term: self.ballot.term,
            leader: self.leader,
            last: self.last(),
            commit_index: self.commit,
            applied_index: self.applied.id.index,
            first_index: self.view.floor().id.index.next(),
            epoch: replikit_core::Epoch(1),
            snapshot: self.snapshots.newest,
            followers,
            suspected: Vec::new(),
            figures: Vec::new(),
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.push_back(Action::Event { group: self.stream.group, event });
    }

    pub(crate) fn done(&mut self, token: Token, outcome: Outcome) {
        self.out.push_back(Action::Done { token, outcome });
    }

    pub(crate) fn reject(&mut self, token: Token, rejection: Rejection) {
        self.done(token, Outcome::Rejected(rejection));
    }

    pub(crate) fn act(&mut self, action: Action<Head>) {
        self.out.push_back(action);
    }

    #[inline]
    pub(crate) fn send(&mut self, to: NodeId, head: Head, batches: Batches) {
        self.out.push_back(Action::Send { to, message: Message { head, batches } });
    }

    pub(crate) fn misbehaved(&mut self, node: NodeId, what: &'static str) {
        self.event(Event::PeerMisbehaved { node, what });
    }

    pub(crate) fn persist(&mut self, op: Persist) -> WriteId {
        self.written = self.written.next();
        if let Persist::Append { batch, .. } = &op {
            self.appends.push_back((self.written, batch.last().index));
        }
        self.out.push_back(Action::Persist { id: self.written, op });
        self.written
    }

    /// Whether the current term is on disk, which every answer in this term depends on.
    pub(crate) fn term_is_durable(&self) -> bool {
        self.ballot_write <= self.durable
    }

    /// Enters a term or gives the vote in it; what depends on it goes through [`Self::send_when_term_is_durable`].
    pub(crate) fn set_ballot(&mut self, ballot: Ballot) {
        assert!(ballot.term >= self.ballot.term, "a term never goes back");
        assert!(
            ballot.term > self.ballot.term || self.ballot.vote.is_none() || self.ballot.vote == ballot.vote,
            "a vote never changes within a term"
        );
        if ballot != self.ballot {
            self.ballot = ballot;
            self.persist_ballot();
        }
    }

    /// With what is remembered: the log forgets with this that the tail was cut.
    pub(crate) fn persist_ballot(&mut self) {
        let bytes = self.ballot.encode(self.memory != Memory::Whole);
        self.ballot_write = self.persist(Persist::Register { group: self.stream.group, bytes });
    }

    pub(crate) fn send_when_term_is_durable(&mut self, to: NodeId, head: Head) {
        if self.term_is_durable() {
            self.send(to, head, Batches::None);
        } else {
            self.held.hold(self.ballot_write, (to, head));
        }
    }

    fn handle_durable(&mut self, up_to: WriteId) {
        if up_to > self.written {
            // Only a driver that lost count could say this; nothing beyond what was handed out can be durable.
            return;
        }
        self.durable = self.durable.max(up_to);
        let before = self.durable_index;
        while let Some(&(id, index)) = self.appends.front() {
            if id > self.durable {
                break;
            }
            self.appends.pop_front();
            self.durable_index = index;
        }
        while let Some((to, head)) = self.held.release(self.durable) {
            self.send(to, head, Batches::None);
        }
        while let Some(&(id, at)) = self.snapshots.writing.front() {
            if id > self.durable {
                break;
            }
            self.snapshots.writing.pop_front();
            // The log between the snapshot before and this one stays for followers that are a little behind.
            if let Some(older) = self.snapshots.newest.replace(at) {
                self.persist(Persist::Release { stream: self.stream, before: older.id.index.next() });
            }
        }
        self.install_durable();
        if self.durable_index != before {
            match &mut self.state {
                State::Leader(_) => self.leader_durable(),
                State::Follower(follower) => follower.ack_due = true,
                State::Candidate(_) => {}
            }
        }
        self.recheck_memory();
        self.dirty = true;
    }

    /// The storage failed: nothing more becomes durable, so nothing more is promised.
    fn handle_storage_failed(&mut self) {
        if self.storage_failed {
            return;
        }
        self.storage_failed = true;
        self.event(Event::StorageFailed);
        let _ = self.held.drain().count();
        self.become_follower(None);
        self.fail_reads(&Rejection::StorageFailed);
    }

    /// Drops everything at and above `from`, which another leader's log has replaced.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(from > self.commit, "a committed entry is never dropped");
        let last = self.view.last();
        let term = self.view.term_at(from).expect("only entries of the log are dropped");
        self.view.truncate(from);
        // What the disk confirms from now on was confirmed for entries that are gone.
        self.durable_index = self.durable_index.min(from.prev());
        for (_, index) in &mut self.appends {
            *index = (*index).min(from.prev());
        }
        self.event(Event::LostWrites { stream: self.stream, range: from..=last.index, term });
    }

    pub(crate) fn append(&mut self, batch: Batch, replace: Replace) {
        self.persist(Persist::Append { batch: batch.clone(), replace: replace == Replace::Tail });
        self.view.append(batch);
    }

    pub(crate) fn build_batch<'a>(
        &mut self,
        kind: BatchKind,
        entries: impl Iterator<Item = (&'a [u8], Option<replikit_core::SessionSeq>)> + Clone,
    ) -> Batch {
        let meta = replikit_core::BatchMeta {
            cluster: self.config.cluster,
            stream: self.stream,
            base: self.view.last().index.next(),
            term: self.ballot.term,
            prev_digest: self.view.last_digest(),
            time: self.clock.tick(self.now.wall).expect("this clock has no ceiling"),
            kind,
        };
        Batch::build(&meta, entries)
    }

    /// Moves the commit index forward and applies what it uncovers.
    pub(crate) fn advance_commit(&mut self, to: LogIndex) {
        debug_assert!(to <= self.view.last().index, "only entries of the log are committed");
        if to <= self.commit {
            return;
        }
        self.commit = to;
        while self.applied.id.index < self.commit {
            self.apply_next();
        }
        self.view.evict(self.applied.id.index, self.config.limits.cache_bytes_max);
        self.serve_applied();
        if self.snapshots.log_bytes >= self.config.limits.snapshot_log_bytes {
            self.take_snapshot();
        }
        self.dirty = true;
    }

    /// Applies the first batch that is not applied yet.
    fn apply_next(&mut self) {
        // Borrowed apart, so that the batch is not counted up and down for it.
        let Self { view, machine, sessions, state, out, applied, snapshots, stream, durable_index, commit, .. } = self;
        let cached = view.holding(applied.id.index.next()).expect("unapplied batches stay in memory");
        debug_assert!(cached.last <= *commit, "whole batches are committed");
        let (batch, digest, stream) = (&cached.batch, cached.digest, *stream);
        let (term, last, kind) = (cached.term, LogId { term: cached.term, index: cached.last }, batch.kind());
        let mut leader = if let State::Leader(leader) = state { Some(leader) } else { None };
        // Batches are never cut: what one entry of it has reached, all have.
        let reached = leader
            .as_ref()
            .map_or_else(Reached::default, |leader| leader.reached(last.index, *durable_index, last.index));
        for entry in batch.entries() {
            // The common entry of a follower: nobody waits for the reply.
            if leader.is_none() && kind == BatchKind::Commands && entry.session.is_none() {
                drop(machine.apply(entry.index, entry.payload));
                continue;
            }
            let id = LogId { term, index: entry.index };
            let (at, outcome) = match (kind, entry.session) {
                (BatchKind::Control, _) => (id, Ok(apply_control(sessions, entry.index, entry.payload))),
                (BatchKind::Commands, None) => (id, Ok(machine.apply(entry.index, entry.payload))),
                (BatchKind::Commands, Some(request)) => match sessions.look_up(request) {
                    Known::New => {
                        let bytes = machine.apply(entry.index, entry.payload);
                        sessions.record(request, Reply { at: id, bytes: bytes.clone() });
                        (id, Ok(bytes))
                    }
                    Known::Applied(reply) => (reply.at, Ok(reply.bytes)),
                    Known::Expired => (id, Err(Rejection::SessionExpired)),
                },
            };
            let Some(leader) = &mut leader else { continue };
            let token = leader.waiters.applied(entry.index);
            if token.is_none() && leader.waiters.keep(entry.index).is_none() {
                continue;
            }
            let outcome = match outcome {
                Ok(reply) => {
                    let digest = if at == id { digest } else { view.holding(at.index).map_or(0, |c| c.digest) };
                    Outcome::Acked { at: Position { stream, id: at, digest }, reached, strict: true, reply }
                }
                Err(rejection) => Outcome::Rejected(rejection),
            };
            match token {
                Some(token) => out.push_back(Action::Done { token, outcome }),
                None => {
                    if let Some(kept) = leader.waiters.keep(entry.index) {
                        *kept = Some(outcome);
                    }
                }
            }
        }
        *applied = Position { stream, id: last, digest };
        snapshots.log_bytes += batch.bytes() as u64;
        if let Some(leader) = leader {
            leader.uncommitted_bytes = leader.uncommitted_bytes.saturating_sub(batch.bytes());
        }
    }

    fn take_snapshot(&mut self) {
        if self.is_restoring() {
            // A newer one is on its way to the disk, and the log behind what is applied here is given up.
            return;
        }
        let newest = self.snapshots.writing.back().map(|&(_, at)| at).or(self.snapshots.newest);
        if newest.is_some_and(|at| at.id.index >= self.applied.id.index) || self.applied.id.index == LogIndex::ZERO {
            return;
        }
        self.snapshots.log_bytes = 0;
        let group = GroupState { sessions: self.sessions.clone(), terms: self.view.terms_to(self.applied.id.index) };
        let source = Box::new(Source::new(&group, self.machine.snapshot()));
        let id = self.persist(Persist::Snapshot { at: self.applied, source });
        self.snapshots.writing.push_back((id, self.applied));
        self.event(Event::SnapshotTaken { at: self.applied });
    }

    /// The machine holds a snapshot's state now: go on behind it.
    pub(crate) fn adopt_snapshot(&mut self, at: Position, group: GroupState) {
        self.sessions = group.sessions;
        self.view.reset(at, group.terms);
        self.commit = at.id.index;
        self.applied = at;
        self.durable_index = at.id.index;
        self.appends.clear();
        self.snapshots.writing.clear();
        self.snapshots.newest = Some(at);
        self.snapshots.log_bytes = 0;
    }

    pub(crate) const fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    pub(crate) fn query_machine(&self, query: &[u8], bytes_max: usize) -> Bytes {
        self.machine.query(query, bytes_max)
    }

    fn recover_snapshot(&mut self, at: Position, chunk: &[u8], end: End) {
        let Some(recovery) = &mut self.recovery else { return };
        match recovery.restorer.restore(&mut self.machine, chunk, end) {
            Ok(None) => {}
            Ok(Some(group)) => self.adopt_snapshot(at, group),
            Err(_) => self.unreadable_snapshot(at),
        }
    }

    /// A snapshot that was durable cannot be read: this replica knows nothing, and must not act as if it did.
    pub(crate) fn unreadable_snapshot(&mut self, at: Position) {
        self.event(Event::SnapshotUnreadable { at });
        self.handle_storage_failed();
    }

    fn recover_batch(&mut self, batch: Batch) {
        let Some(recovery) = &mut self.recovery else { return };
        let floor = self.view.floor();
        if batch.stream() != self.stream {
            return;
        }
        if recovery.stray.is_some_and(|stray| batch.base() <= stray) {
            recovery.stray = None;
        }
        recovery.log_end = Some((batch.last().index, batch.digest()));
        if batch.last().index <= floor.id.index {
            return;
        }
        if batch.base() <= self.view.last().index && batch.base() > floor.id.index {
            self.view.truncate(batch.base());
        }
        if batch.base() == self.view.last().index.next() && batch.prev_digest() == self.view.last_digest() {
            self.view.append(batch);
        } else {
            let base = batch.base();
            recovery.stray = Some(recovery.stray.map_or(base, |stray| stray.min(base)));
        }
    }

    fn recovered(&mut self) {
        let Some(recovery) = self.recovery.take() else { return };
        self.durable_index = self.view.last().index;
        let floor = self.view.floor();
        let behind_snapshot = self.view.last() == floor.id && floor.id.index > LogIndex::ZERO;
        if behind_snapshot && (recovery.stray.is_some() || recovery.log_end != Some((floor.id.index, floor.digest))) {
            // A crash may have come between the installed snapshot and the end of the log that it replaced; what is left of
            // that log does not lead up to the snapshot.
            let next = self.view.last().index.next();
            self.persist(Persist::Reset { stream: self.stream, next });
        } else if recovery.stray.is_some() {
            let range = self.view.last().index.next()..=self.view.last().index.next();
            self.event(Event::StorageFaulty { stream: self.stream, range });
            self.handle_storage_failed();
        }
        // An entry of a term proves that the term was entered, even if the register of it was not durable yet.
        if self.view.last().term > self.ballot.term {
            self.set_ballot(Ballot { term: self.view.last().term, vote: None });
        }
        self.state = State::Follower(Follower::new(self.election_deadline()));
        if self.peers.is_empty() {
            self.campaign(Stage::Pre);
        }
    }

    fn handle_admin(&mut self, token: Token, command: Admin) {
        match command {
            Admin::Status => {
                let values = vec![self.status().encode()];
                self.done(token, Outcome::Value { values, seen: Some(self.applied), strict: true, staleness: None });
            }
            Admin::Snapshot => {
                self.take_snapshot();
                let seen = Some(self.applied);
                self.done(token, Outcome::Value { values: Vec::new(), seen, strict: true, staleness: None });
            }
            _ => self.reject(token, Rejection::Unsupported),
        }
    }

    fn handle_message(&mut self, from: NodeId, message: Message<Head>) {
        if !self.peers.contains(&from) {
            return self.misbehaved(from, "spoke without being a member");
        }
        if self.storage_failed {
            return;
        }
        // Raft section 5.1: whoever sees a larger term enters it and follows.
        if let Some(term) = message.head.term()
            && term > self.ballot.term
        {
            self.enter_term(term);
        }
        match message.head {
            Head::Append(append) => self.handle_append(from, append, message.batches),
            Head::AppendAck(ack) => self.handle_append_ack(from, &ack),
            Head::AppendReject(reject) => self.handle_append_reject(from, &reject),
            Head::PreVote(vote) => self.handle_pre_vote(from, &vote),
            Head::PreVoteReply(reply) => self.handle_vote_reply(from, &reply, Stage::Pre),
            Head::Vote(vote) => self.handle_vote(from, &vote),
            Head::VoteReply(reply) => self.handle_vote_reply(from, &reply, Stage::Real),
            Head::ReadIndex(read) => self.handle_read_index(from, read),
            Head::ReadIndexReply(reply) => self.handle_read_index_reply(from, &reply),
            Head::SnapshotPiece(piece) => self.handle_snapshot_piece(from, &piece),
            Head::SnapshotAck(ack) => self.handle_snapshot_ack(from, &ack),
            Head::TimeoutNow(timeout) => self.handle_timeout_now(from, &timeout),
            Head::Sleep(sleep) => self.handle_sleep(from, &sleep),
            Head::SleepAck(ack) => self.handle_sleep_ack(from, &ack),
            Head::Wake(wake) => self.handle_wake(&wake),
        }
    }

    fn handle_peer(&mut self, node: NodeId, link: Link) {
        if !self.peers.contains(&node) {
            return;
        }
        self.gone.retain(|gone| *gone != node);
        if link != Link::Up {
            self.gone.push(node);
        }
        match &mut self.state {
            State::Leader(leader) => {
                if let Some(progress) = leader.follower_mut(node) {
                    progress.disconnect();
                }
                // Whoever is back may have begun anew, or lack what was written meanwhile.
                if link == Link::Up {
                    self.stir();
                }
            }
            State::Follower(_) | State::Candidate(_) => {
                if self.leader == Some(node) && link != Link::Up {
                    self.leader_vanished(node, link);
                }
            }
        }
    }

    fn flush(&mut self) {
        self.dirty = false;
        if self.recovery.is_some() || self.storage_failed {
            return;
        }
        match &self.state {
            State::Leader(_) => self.flush_leader(),
            State::Follower(_) => self.flush_follower(),
            State::Candidate(_) => {}
        }
    }
}

fn apply_control(sessions: &mut Sessions, at: LogIndex, record: &[u8]) -> Bytes {
    if record == CONTROL_OPEN_SESSION {
        let SessionId(id) = sessions.open(at);
        return Bytes::copy_from_slice(&id.to_le_bytes());
    }
    Bytes::new()
}

/// Whether an appended batch replaces the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    Nothing,
    Tail,
}

impl<M: StateMachine> Replica for Raft<M> {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        self.now = Now { mono: self.now.mono.max(now.mono), wall: now.wall };
        self.dirty = true;
        match input {
            Input::Command { token, group, level, session, body } if group == self.stream.group => {
                self.handle_command(token, level, session, body);
            }
            Input::Message { from, message } => self.handle_message(from, message),
            Input::Durable { up_to } => {
                if !self.storage_failed {
                    self.handle_durable(up_to);
                }
            }
            Input::Timer => self.handle_timer(),
            Input::Query { token, group, level, body, bytes_max } if group == self.stream.group => {
                self.handle_query(token, level, body, bytes_max);
            }
            Input::OpenSession { token, group } if group == self.stream.group => self.handle_open_session(token),
            Input::Admin { token, group, command } if group == self.stream.group => self.handle_admin(token, command),
            Input::Peer { node, link } => self.handle_peer(node, link),
            Input::LogRead { ticket, stream, answer } => {
                if stream == self.stream {
                    self.handle_log_read(ticket, answer);
                }
            }
            Input::SnapshotRead { ticket, answer } => self.handle_snapshot_read(ticket, answer),
            Input::Storage { event } => match event {
                StorageEvent::Failed => self.handle_storage_failed(),
                StorageEvent::Slow => self.handle_storage_slow(),
                StorageEvent::Faulty { stream, range } => self.event(Event::StorageFaulty { stream, range }),
            },
            Input::RecoverSnapshot { at, chunk, last } => self.recover_snapshot(at, &chunk, End::from(last)),
            Input::Recover { batch } => self.recover_batch(batch),
            Input::Recovered => self.recovered(),
            Input::Write { token, .. } | Input::Read { token, .. } => self.reject(token, Rejection::Unsupported),
            Input::Command { token, .. }
            | Input::Query { token, .. }
            | Input::OpenSession { token, .. }
            | Input::Admin { token, .. } => {
                self.reject(token, Rejection::StaleRoute { current: replikit_core::Epoch(1) });
            }
        }
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        loop {
            if let Some(action) = self.out.pop_front() {
                return Some(action);
            }
            if !self.dirty {
                if self.is_asleep() {
                    self.shrink();
                }
                return None;
            }
            self.flush();
        }
    }

    fn deadline(&self) -> Option<Time> {
        if self.recovery.is_some() || self.storage_failed {
            return None;
        }
        let role = match &self.state {
            State::Follower(follower) => follower.election_at,
            State::Candidate(candidate) => candidate.retry_at,
            State::Leader(leader) => leader.deadline(),
        };
        let earliest = role.min(self.reads.deadline());
        (earliest != Time::NEVER).then_some(earliest)
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        (group == self.stream.group).then_some(self.applied.id.index)
    }
}

impl<M: StateMachine> Raft<M> {
    fn handle_timer(&mut self) {
        if self.recovery.is_some() || self.storage_failed {
            return;
        }
        self.expire_reads();
        let now = self.now.mono;
        match &self.state {
            State::Follower(follower) if follower.election_at <= now => self.campaign(Stage::Pre),
            State::Candidate(candidate) if candidate.retry_at <= now => self.campaign(Stage::Pre),
            State::Leader(_) => self.leader_timer(),
            State::Follower(_) | State::Candidate(_) => {}
        }
    }

    pub(crate) const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(crate) const fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }

    pub(crate) const fn storage_has_failed(&self) -> bool {
        self.storage_failed
    }

    /// Why nobody may ask this replica for anything, if that is so.
    pub(crate) fn refusal(&self) -> Option<Rejection> {
        if self.storage_failed {
            return Some(Rejection::StorageFailed);
        }
        match &self.state {
            State::Leader(_) => None,
            _ => Some(Rejection::NotLeader { leader: self.leader }),
        }
    }

    /// Ends leadership or candidacy. Requests that wait for a commit may still be committed by another leader.
    pub(crate) fn become_follower(&mut self, leader: Option<NodeId>) {
        let follower = Follower::new(self.election_deadline());
        let was = self.role();
        let old = core::mem::replace(&mut self.state, State::Follower(follower));
        if let State::Leader(mut old) = old {
            for token in old.abandon() {
                self.done(token, Outcome::Indeterminate { reached: Reached { received: 1, durable: 0, applied: 0 } });
            }
        }
        if was != Role::Follower {
            self.event(Event::RoleChanged { role: Role::Follower, term: self.ballot.term });
        }
        self.set_leader(leader);
        self.dirty = true;
    }

    pub(crate) fn set_leader(&mut self, leader: Option<NodeId>) {
        if self.leader != leader {
            self.leader = leader;
            self.event(Event::LeaderChanged { leader, term: self.ballot.term });
            self.leader_changed_for_reads();
        }
    }

    /// Enters a larger term that somebody else is in.
    pub(crate) fn enter_term(&mut self, term: Term) {
        self.set_ballot(Ballot { term, vote: None });
        self.become_follower(None);
    }

    pub(crate) fn append_head(&self, prev: LogId, round: u64) -> Append {
        Append {
            term: self.ballot.term,
            prev,
            commit: self.commit,
            last: self.view.last().index,
            round,
            want_received: false,
            want_applied: false,
        }
    }

    pub(crate) const fn group(&self) -> GroupId {
        self.stream.group
    }
}
