//! The follower: takes entries from the leader of its term and says what it holds.
//!
//! Invariant: `matched` is the highest index known to agree with the log of this term's leader; an acknowledgement speaks of
//! nothing beyond it, however much longer the own log is. Source: Raft section 5.3.

use replikit_core::{Batch, Batches, LogId, LogIndex, NodeId, StateMachine, Time};

use crate::message::{Append, AppendAck, AppendReject, Head};
use crate::replica::{Raft, Replace, State};

#[derive(Debug)]
pub(crate) struct Follower {
    /// When to ask for an election; never while it sleeps.
    pub(crate) election_at: Time,
    /// When the leader was last heard.
    pub(crate) heard_at: Time,
    pub(crate) matched: LogIndex,
    /// The newest confirmation round of the leader.
    pub(crate) round: u64,
    /// Whether to say what is held, at the end of this round of inputs.
    pub(crate) ack_due: bool,
    /// Answer once the commit index is applied, for a leader that counts that.
    want_applied: bool,
}

impl Follower {
    pub(crate) const fn new(election_at: Time) -> Self {
        Self {
            election_at,
            heard_at: Time::ZERO,
            matched: LogIndex::ZERO,
            round: 0,
            ack_due: false,
            want_applied: false,
        }
    }

    /// Whether it relies on its driver to say that its leader is gone.
    pub(crate) fn is_asleep(&self) -> bool {
        self.election_at == Time::NEVER
    }
}

/// What to do with a batch that a leader sent.
enum Fate {
    /// It is in the log already.
    Known,
    /// It is the next one.
    Next,
    /// Another entry stands in its place: cut there, then append.
    Conflict,
    /// The sender broke the protocol.
    Wrong(&'static str),
}

impl<M: StateMachine> Raft<M> {
    /// The leader of the current term was heard; returns the follower's state.
    pub(crate) fn heard_leader(&mut self, from: NodeId) -> Option<&mut Follower> {
        match &self.state {
            State::Leader(_) => {
                self.misbehaved(from, "claims to lead a term that this node leads");
                return None;
            }
            State::Candidate(_) => self.become_follower(Some(from)),
            State::Follower(_) if self.leader.is_none() => {
                if let State::Follower(follower) = &mut self.state {
                    // Nothing is known yet of how the logs of this leader and this node agree.
                    follower.matched = LogIndex::ZERO;
                    follower.round = 0;
                }
                self.set_leader(Some(from));
            }
            State::Follower(_) if self.leader != Some(from) => {
                self.misbehaved(from, "claims to lead a term that another node leads");
                return None;
            }
            State::Follower(_) => {}
        }
        let now = self.now.mono;
        let deadline = self.election_deadline();
        let State::Follower(follower) = &mut self.state else { return None };
        follower.heard_at = now;
        follower.election_at = deadline;
        Some(follower)
    }

    pub(crate) fn handle_append(&mut self, from: NodeId, append: Append, batches: Batches) {
        if append.term < self.ballot.term {
            // Tells the old leader that it is one. The hint is of no use to it.
            let (term, hint) = (self.ballot.term, LogId::ZERO);
            let reject = AppendReject { term, round: 0, prev: append.prev.index, hint };
            return self.send_when_term_is_durable(from, Head::AppendReject(reject));
        }
        let Some(follower) = self.heard_leader(from) else { return };
        // Heartbeats and probes want an answer; a notice of a new commit index does not.
        let new_round = append.round > follower.round;
        follower.round = follower.round.max(append.round);
        follower.want_applied |= append.want_applied;
        follower.ack_due |= append.want_received || new_round;
        if self.is_restoring() {
            return;
        }
        // Committed entries are in every later leader's log, so below the commit index the logs agree.
        let agrees = append.prev.index <= self.commit || self.view.term_at(append.prev.index) == Some(append.prev.term);
        if !agrees {
            // The rejection answers the round too.
            if let State::Follower(follower) = &mut self.state {
                follower.ack_due = false;
            }
            let hint = self.agreement_hint(append.prev);
            let round = append.round;
            let reject = AppendReject { term: self.ballot.term, round, prev: append.prev.index, hint };
            return self.send_when_term_is_durable(from, Head::AppendReject(reject));
        }
        let mut last = append.prev.index;
        let mut known = false;
        for batch in batches {
            match self.fate(&append, last, &batch) {
                Fate::Known => {
                    last = batch.last().index;
                    known = true;
                }
                Fate::Next => {
                    last = batch.last().index;
                    self.append(batch, Replace::Nothing);
                }
                Fate::Conflict => {
                    last = batch.last().index;
                    self.truncate(batch.base());
                    self.append(batch, Replace::Tail);
                }
                Fate::Wrong(what) => return self.misbehaved(from, what),
            }
        }
        let State::Follower(follower) = &mut self.state else { return };
        follower.matched = follower.matched.max(last);
        // New entries are acknowledged when they are durable; for known ones the acknowledgement was lost.
        follower.ack_due |= known;
        let commit = append.commit.min(follower.matched);
        self.advance_commit(commit);
        self.recheck_memory();
    }

    fn fate(&self, append: &Append, after: LogIndex, batch: &Batch) -> Fate {
        if batch.stream() != self.stream {
            return Fate::Wrong("sent a batch of another stream");
        }
        if batch.base() != after.next() {
            return Fate::Wrong("sent batches with a gap");
        }
        if batch.term() > append.term {
            return Fate::Wrong("sent a batch of a later term than its own");
        }
        let last = batch.last();
        if last.index <= self.commit {
            return Fate::Known;
        }
        if batch.base() <= self.commit {
            return Fate::Wrong("sent a batch that cuts a committed one");
        }
        if batch.base() <= self.view.last().index {
            if self.view.term_at(batch.base()) == Some(batch.term()) {
                // The same term created one batch here, for ever.
                return match self.view.holding(batch.base()) {
                    Some(cached) if cached.digest != batch.digest() => {
                        Fate::Wrong("sent two different batches of one term")
                    }
                    _ => Fate::Known,
                };
            }
            if self.view.holding(batch.base()).is_some_and(|cached| cached.first != batch.base()) {
                return Fate::Wrong("sent a batch that cuts another one");
            }
            if self.view.digest_ending(batch.base().prev()).is_some_and(|digest| digest != batch.prev_digest()) {
                return Fate::Wrong("broke the digest chain");
            }
            return Fate::Conflict;
        }
        if batch.prev_digest() != self.view.last_digest() {
            return Fate::Wrong("broke the digest chain");
        }
        Fate::Next
    }

    /// Where the logs may agree at best, given that they do not at `prev`. Skips a whole term at a time. Source: Raft
    /// section 5.3, last paragraph but one.
    fn agreement_hint(&self, prev: LogId) -> LogId {
        let last = self.view.last();
        if prev.index > last.index {
            return last;
        }
        let index = self.view.run_start(prev.index).prev().max(self.commit);
        LogId { term: self.view.term_at(index).unwrap_or_default(), index }
    }

    pub(crate) fn flush_follower(&mut self) {
        self.flush_forwarded_reads();
        let durable_index = self.durable_index;
        let term_is_durable = self.term_is_durable();
        let (commit, applied, term) = (self.commit, self.applied.id.index, self.ballot.term);
        let Some(leader) = self.leader else { return };
        let State::Follower(follower) = &mut self.state else { return };
        if follower.want_applied && applied >= commit {
            follower.want_applied = false;
            follower.ack_due = true;
        }
        if !follower.ack_due || !term_is_durable {
            return;
        }
        follower.ack_due = false;
        let ack = AppendAck {
            term,
            round: follower.round,
            received: follower.matched,
            durable: durable_index.min(follower.matched),
            applied,
        };
        self.send(leader, Head::AppendAck(ack), Batches::None);
    }
}
