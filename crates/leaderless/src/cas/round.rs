//! The rounds of a proposal: what the proposer asks, and what it does with the answers.
//!
//! Invariants: a ballot is proposed with one value at most; a value is proposed only on the latest value that a quorum of
//! promises shows; a request ends with an effect only once a quorum has accepted the value that it is in.
//! Source: Rystsov, arXiv 1802.07000, the proposer's steps; the argument for reads is in [the module](super#reads).

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::Time;

use super::acceptor::Acceptors;
use super::ballot::Ballot;
use super::change::Effect;
use super::message::{Answer, Ask, Attempt, Holding, Message};
use super::output::End;
use super::proposer::{Answered, Proposers};
use super::register::Register;
use super::sticky::Lease;
use super::tally::Verdict;
use super::work::{Phase, Plan, Work};

/// Most proposals of one batch: beyond, its operations end in doubt.
const TRIES_MAX: usize = 64;
/// Most queries for one read. A proposal instead of a further one takes the promises away from whoever writes.
const QUERIES_MAX: u32 = 3;
/// A query waits for this part of the time that is left for its reads at most.
const QUERY_SHARE: u32 = 4;

impl Proposers {
    /// Begins the next thing to do.
    pub(super) fn advance(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
        if work.is_done() {
            return;
        }
        if work.only_reads() {
            self.query(now, key, work, acceptors);
        } else if let Some(Lease { next, register }) = self.leases.take(key) {
            self.stats.one_trip += 1;
            self.accept(now, key, work, next, register);
        } else {
            self.prepare(now, key, work, acceptors);
        }
    }

    fn query(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
        let known = known(key, acceptors);
        self.rest(work);
        work.phase = Phase::Querying { known, values: Vec::new(), before: self.arrivals };
        self.ask_anew(now, key, work);
    }

    pub(super) fn prepare(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
        let promised = acceptors.entry(key).map_or(0, |entry| entry.promised.round);
        self.clock = self.clock.max(promised).saturating_add(1);
        let ballot = Ballot { round: self.clock, proposer: self.me };
        let known = known(key, acceptors);
        self.rest(work);
        work.phase = Phase::Preparing { ballot, known, latest: (Ballot::ZERO, Register::default()) };
        self.ask_anew(now, key, work);
    }

    /// Proposes the batch on top of the latest value.
    fn accept(&mut self, now: Time, key: &Bytes, work: &mut Work, ballot: Ballot, mut register: Register) {
        let next = ballot.next();
        self.clock = self.clock.max(next.round);
        self.rest(work);
        let plan = if work.tries.len() >= TRIES_MAX { Plan::Forgotten } else { work.plan(&register) };
        if matches!(plan, Plan::Forgotten) {
            self.give_up(work);
        }
        let effects = match plan {
            Plan::Adopt(effects) => effects,
            Plan::Apply | Plan::Forgotten => work.apply(&mut register, ballot, self.config.batch_max),
        };
        if work.batch.is_empty() {
            return;
        }
        work.phase = Phase::Accepting { ballot, next, register, effects };
        self.ask_anew(now, key, work);
    }

    /// Ends the operations in doubt so, and queues the others again.
    fn give_up(&mut self, work: &mut Work) {
        let batch = core::mem::take(&mut work.batch);
        for (nth, request) in batch.into_iter().enumerate().rev() {
            let Some(token) = request.token else { continue };
            if work.in_doubt(nth) {
                self.end(token, End::Indeterminate);
            } else {
                work.queue.push_front(request);
            }
        }
        work.tries.clear();
    }

    fn ask_anew(&mut self, now: Time, key: &Bytes, work: &mut Work) {
        self.stats.rounds += 1;
        self.asked += 1;
        work.attempt = self.asked;
        self.attempts.insert(work.attempt, key.clone());
        self.ask(now, key, work);
    }

    /// Asks every member that has not answered yet.
    pub(super) fn ask(&mut self, now: Time, key: &Bytes, work: &mut Work) {
        let wait = match &work.phase {
            // Who holds something else and who is silent may leave no quorum for what is held: it is proposed in time.
            Phase::Querying { .. } => self.config.resend.min(work.left(now) / QUERY_SHARE),
            _ => self.config.resend,
        };
        work.wake = now + wait.max(Duration::from_nanos(1));
        let ask = match &work.phase {
            Phase::Idle | Phase::Waiting => return,
            Phase::Querying { known, .. } => Ask::Query { known: known.0 },
            Phase::Preparing { ballot, known, .. } => Ask::Prepare { ballot: *ballot, known: known.0 },
            Phase::Accepting { ballot, next, register, .. } => {
                Ask::Accept { ballot: *ballot, register: register.clone(), next: *next }
            }
        };
        let attempt = Attempt { proposer: self.me, number: work.attempt };
        for &node in &self.voters {
            if work.tally.verdict(node).is_none() {
                let (epoch, key, ask) = (self.epoch, key.clone(), ask.clone());
                self.asks.push_back((node, Message::Ask { epoch, attempt, key, ask }));
            }
        }
    }

    pub(super) fn count(
        &mut self,
        now: Time,
        key: &Bytes,
        work: &mut Work,
        answered: Answered,
        acceptors: &mut Acceptors,
    ) {
        let Answered { from, life, lives, answer, .. } = answered;
        match (&mut work.phase, answer) {
            (Phase::Querying { known, values, .. }, Answer::Holds(holding)) => {
                let Some((ballot, register)) = value_of(holding, known) else { return };
                if !values.iter().any(|(other, _)| *other == ballot) {
                    values.push((ballot, register));
                }
                work.tally.count(from, life, &lives, Verdict::Holds(ballot));
                self.decide_query(now, key, work, acceptors);
            }
            (Phase::Preparing { ballot, known, latest }, Answer::Promised(holding)) => {
                let Some(accepted) = value_of(holding, known) else { return };
                if accepted.0 >= *ballot {
                    return;
                }
                if accepted.0 > latest.0 {
                    *latest = accepted;
                }
                work.tally.count(from, life, &lives, Verdict::Granted);
                if work.tally.elected(&self.quorum) {
                    let (ballot, register) = (*ballot, core::mem::take(&mut latest.1));
                    self.accept(now, key, work, ballot, register);
                }
            }
            (Phase::Accepting { .. }, Answer::Accepted) => {
                work.tally.count(from, life, &lives, Verdict::Granted);
                if work.tally.written(&self.quorum) {
                    self.finish(now, key, work, acceptors);
                }
            }
            (Phase::Preparing { .. } | Phase::Accepting { .. }, Answer::Refused { promised }) => {
                self.clock = self.clock.max(promised.round);
                work.tally.count(from, life, &lives, Verdict::Refused);
                if work.tally.hopeless(&self.quorum) {
                    self.back_off(now, work);
                }
            }
            // An answer to another question under this question's number: the peer is at fault.
            _ => {}
        }
    }

    fn decide_query(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
        if let Some(settled) = work.tally.settled(&self.quorum) {
            let Phase::Querying { values, before, .. } = &work.phase else { return };
            let (value, before) = (values.iter().find(|(ballot, _)| *ballot == settled), *before);
            let value = value.and_then(|(_, register)| register.value.clone());
            let holding = self.voters.iter().filter(|&&node| work.tally.said(node, Verdict::Holds(settled))).count();
            let reached = holding.min(usize::from(u8::MAX)) as u8;
            let mut left = VecDeque::new();
            for request in core::mem::take(&mut work.queue) {
                match request.token {
                    Some(token) if request.op.is_read() && request.arrival <= before => {
                        let effect = Effect::Read(value.clone());
                        self.end(token, End::Done { effect, ballot: settled, reached });
                    }
                    _ => left.push_back(request),
                }
            }
            work.queue = left;
            (work.conflicts, work.queries) = (0, 0);
            self.stats.query_reads += 1;
            self.rest(work);
            self.advance(now, key, work, acceptors);
        } else if !work.tally.may_settle(&self.quorum) {
            // A proposal is under way, and mostly succeeds in the meantime, or broke off: then it is finished here.
            work.queries += 1;
            if work.queries < QUERIES_MAX {
                self.query(now, key, work, acceptors);
            } else {
                self.prepare(now, key, work, acceptors);
            }
        }
    }

    /// A quorum has accepted the value.
    fn finish(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
        let Phase::Accepting { ballot, next, register, effects } = core::mem::replace(&mut work.phase, Phase::Idle)
        else {
            return;
        };
        let reached = work.tally.granted().min(usize::from(u8::MAX)) as u8;
        // Who accepted has promised the next ballot too.
        if work.tally.elected(&self.quorum) {
            self.leases.put(key.clone(), Lease { next, register });
        }
        for (request, effect) in core::mem::take(&mut work.batch).into_iter().zip(effects) {
            if let Some(token) = request.token {
                self.end(token, End::Done { effect, ballot, reached });
            }
        }
        work.tries.clear();
        (work.conflicts, work.queries) = (0, 0);
        self.rest(work);
        self.advance(now, key, work, acceptors);
    }

    /// Somebody else was faster: begins again after a while.
    pub(super) fn back_off(&mut self, now: Time, work: &mut Work) {
        self.stats.conflicts += 1;
        let doubled = self.config.backoff.saturating_mul(1 << work.conflicts.min(16));
        let longest = doubled.min(self.config.backoff_max).as_nanos().max(1);
        work.conflicts = work.conflicts.saturating_add(1);
        self.rest(work);
        work.phase = Phase::Waiting;
        let wait = u64::try_from(u128::from(self.draw()) % longest).unwrap_or(u64::MAX);
        work.wake = now + Duration::from_nanos(wait);
    }
}

/// What the acceptor of this node has accepted: values of it need not be sent.
fn known(key: &Bytes, acceptors: &mut Acceptors) -> (Ballot, Register) {
    acceptors.entry(key).map_or_else(Default::default, |entry| (entry.accepted, entry.register.clone()))
}

/// The value that an answer speaks of; `None` for an answer that leaves out what was not known.
fn value_of(holding: Holding, known: &(Ballot, Register)) -> Option<(Ballot, Register)> {
    match holding.register {
        Some(register) => Some((holding.ballot, register)),
        None => (holding.ballot == known.0).then(|| known.clone()),
    }
}
