//! The leader: orders commands, replicates them, and decides what is committed.
//!
//! Invariants: an entry is committed only when a write quorum of disks holds it and it is of the leader's own term, or
//! stands before such a one (Raft section 5.4.2); the leader counts itself only once its own disk has it; its disk write runs
//! beside the sends.

use std::collections::VecDeque;

use bytes::Bytes;

use replikit_core::{
    BatchKind, Batches, Event, LogAnswer, LogId, LogIndex, NodeId, Outcome, Position, Queue, Reached, Rejection, Role,
    SessionSeq, StateMachine, Ticket, Time, Token, WriteLevel,
};

use crate::hibernation::Rest;
use crate::message::{AppendAck, AppendReject, Head, TimeoutNow};
use crate::progress::{Phase, Progress};
use crate::replica::{CONTROL_NOOP, CONTROL_OPEN_SESSION, Raft, Replace, State};
use crate::sessions::Known;

/// A command on its way into the open batch.
#[derive(Debug)]
struct Pending {
    token: Token,
    level: WriteLevel,
    session: Option<SessionSeq>,
    body: Bytes,
}

/// The batch that is being filled; it closes at the end of a round of inputs, or when it is full.
#[derive(Debug)]
struct Open {
    kind: BatchKind,
    entries: Vec<Pending>,
    bytes: usize,
}

/// A write that waits for a level other than `Quorum`.
#[derive(Debug)]
struct Weak {
    index: LogIndex,
    at: Position,
    token: Token,
    level: WriteLevel,
    /// For `Applied`: the outcome, once the entry is applied here.
    outcome: Option<Outcome>,
}

/// Requests that wait for their entries, in log order.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    quorum: VecDeque<(LogIndex, Token)>,
    weak: VecDeque<Weak>,
}

impl Waiters {
    /// The request that waits for this entry to be applied, if any. Called once per entry, in order.
    #[inline]
    pub(crate) fn applied(&mut self, index: LogIndex) -> Option<Token> {
        match self.quorum.front() {
            Some(&(waits_for, token)) if waits_for == index => {
                self.quorum.pop_front();
                Some(token)
            }
            _ => None,
        }
    }

    /// Where to keep the outcome of an entry whose request waits for others to apply it too.
    #[inline]
    pub(crate) fn keep(&mut self, index: LogIndex) -> Option<&mut Option<Outcome>> {
        if self.weak.is_empty() {
            return None;
        }
        let slot = self.weak.iter_mut().find(|weak| weak.index == index)?;
        matches!(slot.level, WriteLevel::Applied(_)).then_some(&mut slot.outcome)
    }
}

#[derive(Debug)]
pub(crate) struct Leader {
    /// Ascending by node.
    pub(crate) followers: Vec<Progress>,
    open: Open,
    pub(crate) waiters: Waiters,
    /// Bytes of batches that are not applied yet.
    pub(crate) uncommitted_bytes: usize,
    /// The first entry of this term: reads wait until it is committed (Ongaro's thesis section 6.4).
    pub(crate) term_start: LogIndex,
    /// The newest confirmation round.
    pub(crate) round: u64,
    /// Never while it sleeps, like the two below.
    pub(crate) heartbeat_at: Time,
    pub(crate) quorum_check_at: Time,
    /// When followers must be told of the commit index at the latest.
    pub(crate) commit_notice_at: Time,
    pub(crate) rest: Rest,
}

impl Leader {
    pub(crate) fn follower_mut(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.followers.iter_mut().find(|progress| progress.node == node)
    }

    pub(crate) fn deadline(&self) -> Time {
        self.heartbeat_at.min(self.quorum_check_at).min(self.commit_notice_at)
    }

    /// How far an entry has got, given this node's own disk and state.
    pub(crate) fn reached(&self, index: LogIndex, durable: LogIndex, applied: LogIndex) -> Reached {
        let own = |reached: bool| u8::from(reached);
        let mut reached = Reached { received: 1, durable: own(durable >= index), applied: own(applied >= index) };
        for progress in &self.followers {
            reached.received += own(progress.received >= index);
            reached.durable += own(progress.matched >= index);
            reached.applied += own(progress.applied >= index);
        }
        reached
    }

    /// The tokens of all that will not be answered by this leader any more.
    pub(crate) fn abandon(&mut self) -> Vec<Token> {
        let pending = self.open.entries.drain(..).map(|pending| pending.token);
        let quorum = self.waiters.quorum.drain(..).map(|(_, token)| token);
        let weak = self.waiters.weak.drain(..).map(|weak| weak.token);
        pending.chain(quorum).chain(weak).collect()
    }

    /// Whether no request waits for an entry.
    pub(crate) fn owes_nothing(&self) -> bool {
        self.open.entries.is_empty() && self.waiters.quorum.is_empty() && self.waiters.weak.is_empty()
    }

    /// Gives back the memory of what is empty.
    pub(crate) fn shrink(&mut self) {
        self.open.entries.shrink_to_fit();
        self.waiters.quorum.shrink_to_fit();
        self.waiters.weak.shrink_to_fit();
        self.followers.iter_mut().for_each(|progress| progress.window.shrink());
    }

    fn has_weak(&self, wanted: impl Fn(WriteLevel) -> bool) -> bool {
        self.waiters.weak.iter().any(|weak| wanted(weak.level))
    }
}

impl<M: StateMachine> Raft<M> {
    pub(crate) fn become_leader(&mut self) {
        let (now, next) = (self.now.mono, self.view.last().index.next());
        let inflight = self.config.limits.inflight_bytes_max;
        let uncommitted = self.view.from(self.commit.next()).map_or(0, |rest| rest.map(|c| c.batch.bytes()).sum());
        self.state = State::Leader(Box::new(Leader {
            followers: self.peers.iter().map(|&node| Progress::new(node, next, now, inflight)).collect(),
            open: Open { kind: BatchKind::Commands, entries: Vec::new(), bytes: 0 },
            waiters: Waiters::default(),
            uncommitted_bytes: uncommitted,
            term_start: next,
            round: 1,
            heartbeat_at: now + self.config.timeouts.heartbeat,
            quorum_check_at: now + self.config.timeouts.election,
            commit_notice_at: Time::NEVER,
            rest: Rest::Awake { idle_since: now },
        }));
        self.event(Event::RoleChanged { role: Role::Leader, term: self.ballot.term });
        self.set_leader(Some(self.config.node));
        // Commits what earlier leaders left, and lets reads begin. Source: Raft section 8.
        let noop = self.build_batch(BatchKind::Control, core::iter::once((CONTROL_NOOP, None)));
        if let State::Leader(leader) = &mut self.state {
            leader.uncommitted_bytes += noop.bytes();
        }
        self.append(noop, Replace::Nothing);
        self.dirty = true;
    }

    pub(crate) fn handle_command(&mut self, token: Token, level: WriteLevel, session: Option<SessionSeq>, body: Bytes) {
        let limits = &self.config.limits;
        let leader = match &self.state {
            State::Leader(leader) if !self.storage_has_failed() => leader,
            _ => {
                let refusal = self.refusal().expect("a leader with a sound disk takes commands");
                return self.reject(token, refusal);
            }
        };
        let replicas = (self.peers.len() + 1) as u8;
        let bytes = leader.uncommitted_bytes + leader.open.bytes + body.len();
        let rejection = match level {
            _ if body.len() > limits.command_bytes_max => {
                Some(Rejection::TooLarge { bytes: body.len() as u64, bytes_max: limits.command_bytes_max as u64 })
            }
            WriteLevel::Owners(_) => Some(Rejection::Unsupported),
            WriteLevel::Received(k) | WriteLevel::Durable(k) | WriteLevel::Applied(k) if k == 0 || k > replicas => {
                Some(Rejection::Unreachable { level, replicas })
            }
            _ if bytes > limits.uncommitted_bytes_max => {
                Some(Rejection::Busy { queue: Queue::UncommittedBytes, limit: limits.uncommitted_bytes_max as u64 })
            }
            _ => None,
        };
        if let Some(rejection) = rejection {
            return self.reject(token, rejection);
        }
        if let Some(request) = session
            && let Some(outcome) = self.answer_to_retry(request)
        {
            return self.done(token, outcome);
        }
        self.propose(BatchKind::Commands, Pending { token, level, session, body });
    }

    pub(crate) fn handle_open_session(&mut self, token: Token) {
        match self.refusal() {
            Some(refusal) => self.reject(token, refusal),
            None => {
                let body = Bytes::from_static(CONTROL_OPEN_SESSION);
                self.propose(BatchKind::Control, Pending { token, level: WriteLevel::Quorum, session: None, body });
            }
        }
    }

    /// A request that was applied before is answered from the session, without a new entry.
    fn answer_to_retry(&self, request: SessionSeq) -> Option<Outcome> {
        match self.session_lookup(request) {
            Known::Applied(reply) => {
                let digest = self.view.holding(reply.at.index).map_or(0, |cached| cached.digest);
                let at = Position { stream: self.stream, id: reply.at, digest };
                let reached = Reached { received: 1, durable: 1, applied: 1 };
                Some(Outcome::Acked { at, reached, strict: true, reply: reply.bytes })
            }
            // An unknown session may have been opened by an entry that is not applied here yet: decided when applied.
            Known::New | Known::Expired => None,
        }
    }

    #[inline]
    fn propose(&mut self, kind: BatchKind, pending: Pending) {
        self.stir();
        let State::Leader(leader) = &mut self.state else { return };
        if leader.open.kind != kind && !leader.open.entries.is_empty() {
            self.close_batch();
        }
        let State::Leader(leader) = &mut self.state else { return };
        leader.open.kind = kind;
        leader.open.bytes += pending.body.len();
        leader.open.entries.push(pending);
        if leader.open.bytes >= self.config.limits.batch_bytes_max {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        if leader.open.entries.is_empty() {
            return;
        }
        let kind = leader.open.kind;
        let mut entries = core::mem::take(&mut leader.open.entries);
        leader.open.bytes = 0;
        let batch = self.build_batch(kind, entries.iter().map(|pending| (&pending.body[..], pending.session)));
        let (base, bytes) = (batch.base(), batch.bytes());
        self.append(batch, Replace::Nothing);
        let (last, digest, stream) = (self.view.last(), self.view.last_digest(), self.stream);
        let mut acknowledged = Vec::new();
        let State::Leader(leader) = &mut self.state else { return };
        leader.uncommitted_bytes += bytes;
        let mut index = base;
        for Pending { token, level, .. } in entries.drain(..) {
            let at = Position { stream, id: LogId { term: last.term, index }, digest };
            match level {
                WriteLevel::Quorum => leader.waiters.quorum.push_back((index, token)),
                WriteLevel::Memory => acknowledged.push((token, at)),
                level => leader.waiters.weak.push_back(Weak { index, at, token, level, outcome: None }),
            }
            index = index.next();
        }
        // The buffer is kept for the next batch, unless a burst made it large.
        if entries.capacity() <= 1 << 12 {
            leader.open.entries = entries;
        }
        for (token, at) in acknowledged {
            let reached = Reached { received: 1, durable: 0, applied: 0 };
            self.done(token, Outcome::Acked { at, reached, strict: false, reply: Bytes::new() });
        }
    }

    pub(crate) fn flush_leader(&mut self) {
        self.close_batch();
        self.begin_read_round();
        let State::Leader(leader) = &self.state else { return };
        if leader.rest == Rest::Asleep {
            return;
        }
        let want_received = leader.has_weak(|level| matches!(level, WriteLevel::Received(_)));
        let want_applied = leader.has_weak(|level| matches!(level, WriteLevel::Applied(_)));
        for at in 0..self.peers.len() {
            if let State::Leader(leader) = &self.state
                && leader.followers[at].is_told_all(self.view.last().index, self.commit, leader.round)
            {
                continue;
            }
            self.replicate(at, want_received, want_applied);
        }
        self.settle_weak();
        self.clear_commit_notice();
        self.dirty = false;
        // A group of one needs nobody's answer.
        if self.peers.is_empty() {
            self.confirm_read_rounds();
        }
    }

    /// Sends a follower what it may be sent now.
    fn replicate(&mut self, at: usize, want_received: bool, want_applied: bool) {
        let limits = self.config.limits;
        let now = self.now.mono;
        loop {
            let State::Leader(leader) = &mut self.state else { return };
            let round = leader.round;
            let progress = &mut leader.followers[at];
            let probing = match &mut progress.phase {
                Phase::Probe { waiting: true } => return self.tell(at, want_applied),
                Phase::Probe { .. } => true,
                Phase::Replicate if progress.next > self.view.last().index || progress.window.is_full() => {
                    return self.tell(at, want_applied);
                }
                Phase::Replicate => false,
                Phase::Snapshot(_) => {
                    self.send_snapshot_piece(at);
                    return self.tell(at, want_applied);
                }
            };
            if progress.reading.is_some() {
                return self.tell(at, want_applied);
            }
            if progress.next <= self.view.floor().id.index {
                progress.send_snapshot(now);
                continue;
            }
            let prev_index = progress.next.prev();
            let Some(prev_term) = self.view.term_at(prev_index) else {
                progress.send_snapshot(now);
                continue;
            };
            let mut batches = Batches::None;
            if progress.next <= self.view.last().index {
                let Some(cached) = self.view.from(progress.next) else {
                    return self.read_log_for(at);
                };
                let mut bytes = 0;
                for cached in cached {
                    if !batches.is_empty() && bytes + cached.batch.bytes() > limits.message_bytes_max {
                        break;
                    }
                    bytes += cached.batch.bytes();
                    progress.next = cached.last.next();
                    batches.push(cached.batch.clone());
                }
                progress.window.send(progress.next.prev(), bytes);
            }
            if probing {
                progress.phase = Phase::Probe { waiting: true };
            }
            progress.commit_told = self.commit;
            progress.round_told = round;
            let node = progress.node;
            let mut append = self.append_head(LogId { term: prev_term, index: prev_index }, round);
            append.want_received = want_received || probing;
            append.want_applied = want_applied;
            self.send(node, Head::Append(append), batches);
        }
    }

    /// Tells a follower of a new round or commit index, if no batch carried it.
    fn tell(&mut self, at: usize, want_applied: bool) {
        let notice = self.config.timeouts.commit_notice;
        let now = self.now.mono;
        let State::Leader(leader) = &mut self.state else { return };
        let round = leader.round;
        let progress = &mut leader.followers[at];
        let new_round = progress.round_told < round;
        let new_commit = progress.commit_told < self.commit && matches!(progress.phase, Phase::Replicate);
        if new_commit && !new_round && !notice.is_zero() && !want_applied && leader.commit_notice_at > now {
            leader.commit_notice_at = leader.commit_notice_at.min(now + notice);
            return;
        }
        if !new_round && !new_commit {
            return;
        }
        progress.round_told = round;
        progress.commit_told = self.commit;
        let node = progress.node;
        // What is known to agree: a heartbeat must not be refused because a batch before it is still under way.
        let index = match progress.phase {
            Phase::Replicate => progress.next.prev(),
            Phase::Probe { .. } | Phase::Snapshot(_) => progress.matched,
        };
        let prev = self.view.term_at(index).map_or(LogId::ZERO, |term| LogId { term, index });
        let mut append = self.append_head(prev, round);
        append.want_received = new_round;
        append.want_applied = want_applied;
        self.send(node, Head::Append(append), Batches::None);
    }

    fn read_log_for(&mut self, at: usize) {
        let ticket = self.next_ticket();
        let bytes_max = u32::try_from(self.config.limits.message_bytes_max).unwrap_or(u32::MAX);
        let stream = self.stream;
        let State::Leader(leader) = &mut self.state else { return };
        let progress = &mut leader.followers[at];
        progress.reading = Some(ticket);
        let from = progress.next;
        self.act(replikit_core::Action::ReadLog { ticket, stream, from, bytes_max });
    }

    pub(crate) fn handle_log_read(&mut self, ticket: Ticket, answer: LogAnswer) {
        let now = self.now.mono;
        let State::Leader(leader) = &mut self.state else { return };
        let round = leader.round;
        let Some(progress) = leader.followers.iter_mut().find(|progress| progress.reading == Some(ticket)) else {
            return;
        };
        progress.reading = None;
        match answer {
            LogAnswer::Batches(batches) => {
                let Some((first, last)) = batches.as_slice().first().zip(batches.as_slice().last()) else { return };
                let (first, last) = (first.base(), last.last().index);
                let sendable = !matches!(progress.phase, Phase::Snapshot(_)) && first == progress.next;
                let Some(term) = self.view.term_at(first.prev()).filter(|_| sendable && last <= self.view.last().index)
                else {
                    return;
                };
                progress.next = last.next();
                progress.window.send(last, batches.bytes());
                let probing = matches!(progress.phase, Phase::Probe { .. });
                if probing {
                    progress.phase = Phase::Probe { waiting: true };
                }
                progress.commit_told = self.commit;
                let node = progress.node;
                let mut append = self.append_head(LogId { term, index: first.prev() }, round);
                append.want_received = probing;
                self.send(node, Head::Append(append), batches);
            }
            LogAnswer::Compacted { .. } => progress.send_snapshot(now),
            LogAnswer::Faulty(range) => {
                // Another member may hold what this disk has lost; its leader can serve the follower.
                self.event(Event::StorageFaulty { stream: self.stream, range });
                self.hand_over();
            }
        }
    }

    pub(crate) fn handle_append_ack(&mut self, from: NodeId, ack: &AppendAck) {
        let (now, last, term) = (self.now.mono, self.view.last().index, self.ballot.term);
        let State::Leader(leader) = &mut self.state else { return };
        if ack.term != term {
            return;
        }
        if ack.durable > ack.received || ack.received > last || ack.round > leader.round {
            return self.misbehaved(from, "acknowledges what it was never sent");
        }
        let Some(progress) = leader.follower_mut(from) else { return };
        progress.heard_at = now;
        let grew = progress.acknowledge(ack.round, ack.received, ack.durable, ack.applied.min(last));
        let new_round = ack.round > progress.round_acked;
        progress.round_acked = progress.round_acked.max(ack.round);
        // What is committed already moves nothing.
        if grew && progress.matched > self.commit {
            self.try_commit();
        }
        if new_round {
            self.confirm_read_rounds();
        }
    }

    pub(crate) fn handle_append_reject(&mut self, from: NodeId, reject: &AppendReject) {
        let (now, term) = (self.now.mono, self.ballot.term);
        let State::Leader(leader) = &mut self.state else { return };
        if reject.term != term || reject.round > leader.round {
            return;
        }
        // The logs agree at the hint if its term stands there; else at the end of the run of terms before it, at best.
        let hint = reject.hint;
        let agreed = match self.view.term_at(hint.index) {
            Some(term) if term == hint.term => hint.index,
            Some(_) => self.view.run_start(hint.index).prev(),
            None => hint.index.min(self.view.last().index),
        };
        // Batches are never cut: begin at the base of the batch that holds the next index.
        let agreed = self.view.holding(agreed.next()).map_or(agreed, |cached| cached.first.prev());
        let Some(progress) = leader.follower_mut(from) else { return };
        progress.heard_at = now;
        let new_round = reject.round > progress.round_acked;
        progress.round_acked = progress.round_acked.max(reject.round);
        progress.reject(reject.round, reject.prev, agreed);
        if new_round {
            self.confirm_read_rounds();
        }
        self.stir();
    }

    /// The own disk has more than before.
    pub(crate) fn leader_durable(&mut self) {
        if self.durable_index > self.commit {
            self.try_commit();
        }
    }

    /// Raft section 5.3 and 5.4.2.
    fn try_commit(&mut self) {
        let State::Leader(leader) = &self.state else { return };
        let (me, own) = (self.config.node, self.durable_index);
        let held = |node| {
            if node == me {
                return own;
            }
            leader.followers.iter().find(|progress| progress.node == node).map_or(LogIndex::ZERO, |p| p.matched)
        };
        let quorum_index = self.quorum.written(held);
        if quorum_index > self.commit && self.view.term_at(quorum_index) == Some(self.ballot.term) {
            self.advance_commit(quorum_index);
        }
    }

    /// Answers writes whose level below or above `Quorum` is reached.
    fn settle_weak(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        if leader.waiters.weak.is_empty() {
            return;
        }
        let (durable, applied) = (self.durable_index, self.applied.id.index);
        let mut weak = core::mem::take(&mut leader.waiters.weak);
        let mut settled = Vec::new();
        weak.retain_mut(|waiter| {
            let reached = leader.reached(waiter.index, durable, applied);
            let done = match waiter.level {
                WriteLevel::Memory | WriteLevel::Quorum | WriteLevel::Owners(_) => true,
                WriteLevel::LeaderDisk => durable >= waiter.index,
                WriteLevel::Received(k) => reached.received >= k,
                WriteLevel::Durable(k) => reached.durable >= k,
                WriteLevel::Applied(k) => waiter.outcome.is_some() && reached.applied >= k,
            };
            if done {
                let outcome = match waiter.outcome.take() {
                    Some(Outcome::Acked { at, strict, reply, .. }) => Outcome::Acked { at, reached, strict, reply },
                    Some(other) => other,
                    None => {
                        let strict = applied >= waiter.index;
                        Outcome::Acked { at: waiter.at, reached, strict, reply: Bytes::new() }
                    }
                };
                settled.push((waiter.token, outcome));
            }
            !done
        });
        leader.waiters.weak = weak;
        for (token, outcome) in settled {
            self.done(token, outcome);
        }
    }

    pub(crate) fn leader_timer(&mut self) {
        let now = self.now.mono;
        let timeouts = self.config.timeouts;
        let me = self.config.node;
        let State::Leader(leader) = &mut self.state else { return };
        if leader.commit_notice_at <= now {
            // Told in this round's flush, which sees that the notice is due.
            leader.commit_notice_at = now;
        }
        if leader.quorum_check_at <= now {
            leader.quorum_check_at = now + timeouts.election / 2;
            let heard = |node| {
                node == me || leader.followers.iter().any(|p| p.node == node && p.heard_at + timeouts.election > now)
            };
            if !self.quorum.elected(heard) {
                // Ongaro's thesis section 6.2: a leader that cannot reach a quorum must not keep clients waiting.
                return self.become_follower(None);
            }
        }
        let State::Leader(leader) = &mut self.state else { return };
        if leader.heartbeat_at <= now {
            leader.heartbeat_at = now + timeouts.heartbeat;
            leader.round += 1;
            for progress in &mut leader.followers {
                progress.stop_waiting(now, timeouts.election);
            }
            self.ask_to_sleep();
        }
    }

    pub(crate) fn clear_commit_notice(&mut self) {
        let now = self.now.mono;
        if let State::Leader(leader) = &mut self.state
            && leader.commit_notice_at <= now
        {
            leader.commit_notice_at = Time::NEVER;
        }
    }

    /// Gives leadership to the follower that holds the most.
    fn hand_over(&mut self) {
        let State::Leader(leader) = &self.state else { return };
        let best = leader.followers.iter().max_by_key(|progress| progress.matched).map(|progress| progress.node);
        let timeout = TimeoutNow { term: self.ballot.term };
        if let Some(best) = best {
            self.send(best, Head::TimeoutNow(timeout), Batches::None);
        }
        self.become_follower(None);
    }

    /// An fsync is under way for too long: let somebody lead whose disk works.
    pub(crate) fn handle_storage_slow(&mut self) {
        self.event(Event::StorageSlow);
        if !self.peers.is_empty() {
            self.hand_over();
        }
    }
}
