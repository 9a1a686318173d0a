//! Reads: ReadIndex with one confirmation for many reads, follower reads inside the protocol, session tokens, bounded
//! staleness.
//!
//! Invariants: a linearizable read is answered at an index that a quorum confirmed after the read arrived; a request id is
//! never used twice, also not for a retry. Source: Ongaro's thesis section 6.4; sessions: Terry et al., PDIS'94.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use replikit_core::{
    Batches, LogIndex, NodeId, Outcome, Position, Queue, ReadLevel, Rejection, SessionSeq, StateMachine, Ticket, Time,
    Token,
};

use crate::election::Memory;
use crate::hibernation::Rest;
use crate::message::{Head, ReadIndex, ReadIndexReply};
use crate::replica::{Raft, State};
use crate::sessions::Known;

/// A client's read.
#[derive(Debug)]
struct Query {
    token: Token,
    body: Bytes,
    bytes_max: usize,
    expires_at: Time,
}

/// Reads that wait for one confirmation.
#[derive(Debug)]
struct Round {
    round: u64,
    /// The commit index when the round began.
    index: LogIndex,
    began_at: Time,
    queries: Vec<Query>,
    /// Reads of followers: who, and their request id.
    remote: Vec<(NodeId, u64)>,
}

/// Reads that were sent to the leader.
#[derive(Debug)]
struct Forwarded {
    id: u64,
    sent_at: Time,
    queries: Vec<Query>,
}

/// Why a waiting read may be served once its index is applied.
#[derive(Clone, Copy, Debug)]
enum Proof {
    /// Everything acknowledged before this moment is at or below the index.
    AsOf(Time),
    /// The session has seen this position.
    Seen(Position),
}

#[derive(Debug)]
pub(crate) struct Reads {
    next_id: u64,
    next_ticket: u64,
    /// Not yet confirmed nor forwarded.
    open: Vec<Query>,
    remote: Vec<(NodeId, u64)>,
    rounds: VecDeque<Round>,
    forwarded: VecDeque<Forwarded>,
    waiting: BTreeMap<LogIndex, Vec<(Query, Proof)>>,
    /// The newest confirmed moment, and the index that covers it.
    fresh: Option<(Time, LogIndex)>,
    pending: usize,
    sweep_at: Time,
}

/// Requests to the leader under way at once; more reads gather behind them and share the next one.
const FORWARDED_MAX: usize = 4;

impl Reads {
    pub(crate) const fn new(first_id: u64) -> Self {
        Self {
            next_id: first_id,
            next_ticket: 1,
            open: Vec::new(),
            remote: Vec::new(),
            rounds: VecDeque::new(),
            forwarded: VecDeque::new(),
            waiting: BTreeMap::new(),
            fresh: None,
            pending: 0,
            sweep_at: Time::NEVER,
        }
    }

    pub(crate) const fn deadline(&self) -> Time {
        self.sweep_at
    }

    /// Whether no read waits for anything, nor anybody's question for an answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending == 0 && self.remote.is_empty() && self.rounds.is_empty() && self.forwarded.is_empty()
    }

    /// Gives back the memory of what is empty.
    pub(crate) fn shrink(&mut self) {
        self.open.shrink_to_fit();
        self.remote.shrink_to_fit();
        self.rounds.shrink_to_fit();
        self.forwarded.shrink_to_fit();
    }
}

impl<M: StateMachine> Raft<M> {
    pub(crate) const fn next_ticket(&mut self) -> Ticket {
        self.reads.next_ticket += 1;
        Ticket(self.reads.next_ticket)
    }

    pub(crate) fn session_lookup(&self, request: SessionSeq) -> Known {
        self.sessions().look_up(request)
    }

    pub(crate) fn handle_query(&mut self, token: Token, level: ReadLevel, body: Bytes, bytes_max: usize) {
        let now = self.now.mono;
        if self.is_restoring() {
            return self.reject(token, Rejection::NotLeader { leader: self.leader });
        }
        if self.storage_has_failed() {
            return self.reject(token, Rejection::StorageFailed);
        }
        let limit = self.config.limits.reads_max;
        if self.reads.pending >= limit {
            return self.reject(token, Rejection::Busy { queue: Queue::Reads, limit: limit as u64 });
        }
        let query = Query { token, body, bytes_max, expires_at: now + self.config.timeouts.read };
        match level {
            ReadLevel::Linearizable => self.confirm(query),
            ReadLevel::Local => self.serve(&query, self.fresh_as_of()),
            ReadLevel::BoundedStale(bound) => match self.fresh_as_of() {
                Some(as_of) if now.since(as_of) <= bound => self.serve(&query, Some(as_of)),
                _ => self.confirm(query),
            },
            ReadLevel::Session(session) => match session.position(self.stream) {
                None => self.serve(&query, self.fresh_as_of()),
                Some(seen) if self.is_gone(seen) => self.reject_lost(token, seen),
                Some(seen) if seen.id.index <= self.applied.id.index => self.serve(&query, self.fresh_as_of()),
                Some(seen) => self.wait(seen.id.index, query, Proof::Seen(seen)),
            },
            ReadLevel::Replicas(_) | ReadLevel::Owners(_) => self.reject(token, Rejection::Unsupported),
        }
    }

    /// A moment up to which this replica's state provably holds everything acknowledged.
    fn fresh_as_of(&self) -> Option<Time> {
        self.reads.fresh.filter(|&(_, index)| index <= self.applied.id.index).map(|(as_of, _)| as_of)
    }

    fn is_gone(&self, seen: Position) -> bool {
        let other_content = seen.id.index <= self.commit
            && seen.digest != 0
            && self.view.holding(seen.id.index).is_some_and(|cached| cached.digest != seen.digest);
        other_content || self.view.is_lost(seen.id, self.commit)
    }

    fn reject_lost(&mut self, token: Token, seen: Position) {
        self.reject(token, Rejection::LostWrites { term: seen.id.term, index: seen.id.index });
    }

    fn pend(&mut self) {
        self.stir();
        self.reads.pending += 1;
        self.sweep_soon();
    }

    fn sweep_soon(&mut self) {
        if self.reads.sweep_at == Time::NEVER {
            self.reads.sweep_at = self.now.mono + self.sweep_interval();
        }
    }

    fn sweep_interval(&self) -> Duration {
        (self.config.timeouts.read / 4).min(self.config.timeouts.election)
    }

    fn confirm(&mut self, query: Query) {
        self.pend();
        self.reads.open.push(query);
    }

    fn wait(&mut self, index: LogIndex, query: Query, proof: Proof) {
        self.pend();
        self.reads.waiting.entry(index).or_default().push((query, proof));
    }

    /// Answers from the state as it is.
    fn serve(&mut self, query: &Query, as_of: Option<Time>) {
        let answer = self.query_machine(&query.body, query.bytes_max);
        let staleness = as_of.map(|as_of| self.now.mono.since(as_of));
        let outcome =
            Outcome::Value { values: vec![answer], seen: Some(self.applied), strict: as_of.is_some(), staleness };
        self.done(query.token, outcome);
    }

    /// Leader: all reads that came in this round of inputs share one confirmation.
    pub(crate) fn begin_read_round(&mut self) {
        if self.reads.open.is_empty() && self.reads.remote.is_empty() {
            return;
        }
        let State::Leader(leader) = &mut self.state else { return };
        // Before the first entry of the term is committed, the commit index may lag behind what was acknowledged.
        if self.commit < leader.term_start {
            return;
        }
        leader.round += 1;
        // Told by this round, so it must not sleep before it is answered.
        leader.rest = Rest::Awake { idle_since: self.now.mono };
        self.reads.rounds.push_back(Round {
            round: leader.round,
            index: self.commit,
            began_at: self.now.mono,
            queries: core::mem::take(&mut self.reads.open),
            remote: core::mem::take(&mut self.reads.remote),
        });
    }

    /// Leader: a quorum has answered newer rounds.
    pub(crate) fn confirm_read_rounds(&mut self) {
        let State::Leader(leader) = &self.state else { return };
        if self.reads.rounds.is_empty() {
            return;
        }
        let (me, own) = (self.config.node, leader.round);
        let answered = |node| {
            if node == me {
                return own;
            }
            leader.followers.iter().find(|progress| progress.node == node).map_or(0, |progress| progress.round_acked)
        };
        // The rule is that of elections: those who answered cannot have elected anybody else before they did.
        let confirmed = self.quorum.written(answered);
        while self.reads.rounds.front().is_some_and(|round| round.round <= confirmed) {
            let round = self.reads.rounds.pop_front().expect("just seen");
            self.reads.fresh = Some((round.began_at, round.index));
            let (term, last) = (self.ballot.term, self.view.last().index);
            for (node, id) in round.remote {
                let reply = ReadIndexReply { term, id, index: round.index, last };
                self.send(node, Head::ReadIndexReply(reply), Batches::None);
            }
            self.ready(round.queries, round.index, round.began_at);
        }
    }

    fn ready(&mut self, queries: Vec<Query>, index: LogIndex, as_of: Time) {
        for query in queries {
            self.reads.pending -= 1;
            if index <= self.applied.id.index {
                self.serve(&query, Some(as_of));
            } else {
                self.wait(index, query, Proof::AsOf(as_of));
            }
        }
    }

    /// Answers what waited for indices that are applied now.
    pub(crate) fn serve_applied(&mut self) {
        while let Some(entry) = self.reads.waiting.first_entry() {
            if *entry.key() > self.applied.id.index {
                return;
            }
            for (query, proof) in entry.remove() {
                self.reads.pending -= 1;
                match proof {
                    Proof::AsOf(as_of) => self.serve(&query, Some(as_of)),
                    Proof::Seen(seen) if self.is_gone(seen) => self.reject_lost(query.token, seen),
                    Proof::Seen(_) => self.serve(&query, self.fresh_as_of()),
                }
            }
        }
    }

    pub(crate) fn handle_read_index(&mut self, from: NodeId, read: ReadIndex) {
        if matches!(self.state, State::Leader(_)) && read.term == self.ballot.term {
            if self.reads.remote.len() >= self.config.limits.reads_max {
                return;
            }
            self.reads.remote.push((from, read.id));
            self.stir();
        }
    }

    /// Follower: asks the leader on behalf of the reads at hand.
    pub(crate) fn flush_forwarded_reads(&mut self) {
        let Some(leader) = self.leader else { return };
        // One whose log was cut asks for its own sake as well: only an answer to a question of this life tells what it has to
        // hold again, for messages of its former lives may still arrive.
        let lacks_memory = self.memory == Memory::Cut { whole_at: None } && self.reads.forwarded.is_empty();
        let wants = !self.reads.open.is_empty() || lacks_memory;
        if !wants || self.reads.forwarded.len() >= FORWARDED_MAX || !self.term_is_durable() {
            return;
        }
        self.reads.next_id = self.reads.next_id.wrapping_add(1);
        let id = self.reads.next_id;
        let queries = core::mem::take(&mut self.reads.open);
        self.reads.forwarded.push_back(Forwarded { id, sent_at: self.now.mono, queries });
        // The answer may be lost, also of a question that no read waits for.
        self.sweep_soon();
        self.send(leader, Head::ReadIndex(ReadIndex { term: self.ballot.term, id }), Batches::None);
    }

    pub(crate) fn handle_read_index_reply(&mut self, from: NodeId, reply: &ReadIndexReply) {
        if self.leader != Some(from) || reply.term != self.ballot.term {
            return;
        }
        let Some(at) = self.reads.forwarded.iter().position(|forwarded| forwarded.id == reply.id) else { return };
        let forwarded = self.reads.forwarded.remove(at).expect("just found");
        if self.reads.fresh.is_none_or(|(as_of, _)| as_of < forwarded.sent_at) {
            self.reads.fresh = Some((forwarded.sent_at, reply.index));
        }
        self.ready(forwarded.queries, reply.index, forwarded.sent_at);
        if let Memory::Cut { whole_at: whole_at @ None } = &mut self.memory {
            *whole_at = Some(reply.last);
            self.recheck_memory();
        }
    }

    /// Unconfirmed reads begin anew with whoever leads now.
    pub(crate) fn leader_changed_for_reads(&mut self) {
        self.reads.remote.clear();
        for forwarded in self.reads.forwarded.drain(..) {
            self.reads.open.extend(forwarded.queries);
        }
        for round in self.reads.rounds.drain(..) {
            self.reads.open.extend(round.queries);
        }
    }

    pub(crate) fn expire_reads(&mut self) {
        let now = self.now.mono;
        if self.reads.sweep_at > now {
            return;
        }
        let patience = self.config.timeouts.election;
        // An unanswered request is repeated under a new id: an old answer to an old id proves nothing new.
        while self.reads.forwarded.front().is_some_and(|forwarded| forwarded.sent_at + patience <= now) {
            let forwarded = self.reads.forwarded.pop_front().expect("just seen");
            self.reads.open.extend(forwarded.queries);
        }
        let mut expired = Vec::new();
        let mut lost = Vec::new();
        let mut keep = |query: &Query| {
            let keep = query.expires_at > now;
            if !keep {
                expired.push(query.token);
            }
            keep
        };
        self.reads.open.retain(&mut keep);
        for round in &mut self.reads.rounds {
            round.queries.retain(&mut keep);
        }
        for forwarded in &mut self.reads.forwarded {
            forwarded.queries.retain(&mut keep);
        }
        let mut waiting = core::mem::take(&mut self.reads.waiting);
        waiting.retain(|_, queries| {
            queries.retain(|(query, proof)| match proof {
                Proof::Seen(seen) if self.is_gone(*seen) => {
                    lost.push((query.token, *seen));
                    false
                }
                _ => keep(query),
            });
            !queries.is_empty()
        });
        self.reads.waiting = waiting;
        self.reads.pending -= expired.len() + lost.len();
        for token in expired {
            self.reject(token, Rejection::NotLeader { leader: self.leader });
        }
        for (token, seen) in lost {
            self.reject_lost(token, seen);
        }
        let is_over = self.reads.pending == 0 && self.reads.forwarded.is_empty();
        self.reads.sweep_at = if is_over { Time::NEVER } else { now + self.sweep_interval() };
    }

    /// Refuses all reads at hand.
    pub(crate) fn fail_reads(&mut self, rejection: &Rejection) {
        self.leader_changed_for_reads();
        let waiting = core::mem::take(&mut self.reads.waiting).into_values().flatten().map(|(query, _)| query);
        let all: Vec<Query> = self.reads.open.drain(..).chain(waiting).collect();
        self.reads.pending = 0;
        self.reads.sweep_at = Time::NEVER;
        for query in all {
            self.reject(query.token, rejection.clone());
        }
    }
}
