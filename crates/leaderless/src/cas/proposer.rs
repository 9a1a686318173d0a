//! The proposer: carries requests out against the acceptors of all members.
//!
//! Invariants: a ballot is proposed with one value at most; a value is proposed only on the latest value that a quorum of
//! promises shows; a request ends with an effect only once a quorum has accepted the value that it is in.
//! Source: Rystsov, arXiv 1802.07000 section 2.2; the argument for reads is in [the module](super#reads).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{Epoch, NodeId, Quorum, Time, Token};

use super::acceptor::Acceptors;
use super::ballot::{Ballot, Proposer};
use super::change::{CasOp, Effect};
use super::config::CasConfig;
use super::member::{CasRefusal, CasStats, End};
use super::message::{Answer, Ask, Attempt, Holding, Life, Message};
use super::register::Register;
use super::sticky::{Lease, Leases};
use super::tally::{Tally, Verdict};
use super::work::{Phase, Plan, Request, Work};

/// Most proposals of one batch: beyond, its operations end in doubt.
const TRIES_MAX: usize = 64;
/// Most queries for one read. A proposal instead of a further one takes the promises away from whoever writes.
const QUERIES_MAX: u32 = 3;

/// What an acceptor said, and who it is.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) from: NodeId,
    pub(super) number: u64,
    pub(super) life: Life,
    pub(super) lives: Vec<(NodeId, Life)>,
    pub(super) answer: Answer,
}

/// The proposer of one node.
#[derive(Debug)]
pub(super) struct Proposers {
    config: CasConfig,
    me: Proposer,
    epoch: Epoch,
    quorum: Quorum,
    voters: Vec<NodeId>,
    /// The highest round that was used or seen, over all keys.
    clock: u64,
    /// Questions so far.
    asked: u64,
    arrivals: u64,
    random: u64,
    works: BTreeMap<Bytes, Work>,
    attempts: BTreeMap<u64, Bytes>,
    timers: BTreeSet<(Time, Bytes)>,
    leases: Leases,
    requests: usize,
    asks: VecDeque<(NodeId, Message)>,
    ends: VecDeque<(Token, End)>,
    pub(super) stats: CasStats,
}

impl Proposers {
    pub(super) fn new(config: CasConfig, me: Proposer, node: NodeId, epoch: Epoch, quorum: Quorum) -> Self {
        let leases = Leases::new(config.leases_max, config.lease_bytes_max);
        let random = config.seed ^ (u64::from(node.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            voters: quorum.voters(),
            config,
            me,
            epoch,
            quorum,
            clock: 0,
            asked: 0,
            arrivals: 0,
            random,
            works: BTreeMap::new(),
            attempts: BTreeMap::new(),
            timers: BTreeSet::new(),
            leases,
            requests: 0,
            asks: VecDeque::new(),
            ends: VecDeque::new(),
            stats: CasStats::default(),
        }
    }

    pub(super) const fn me(&self) -> Proposer {
        self.me
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A new start, of which nothing has left yet.
    pub(super) const fn start(&mut self, start: u32) {
        self.me.start = start;
    }

    pub(super) const fn requests(&self) -> usize {
        self.requests
    }

    /// Whether there is room for one more request.
    pub(super) fn admits(&self, key: &Bytes) -> Result<(), CasRefusal> {
        let of_key = self.works.get(key).map_or(0, Work::requests);
        let limits = [(self.requests, self.config.requests_max), (of_key, self.config.requests_per_key_max)];
        match limits.into_iter().find(|(requests, requests_max)| requests >= requests_max) {
            Some((_, requests_max)) => Err(CasRefusal::Busy { requests_max }),
            None => Ok(()),
        }
    }

    pub(super) const fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(super) fn poll_ask(&mut self) -> Option<(NodeId, Message)> {
        self.asks.pop_front()
    }

    pub(super) fn poll_end(&mut self) -> Option<(Token, End)> {
        self.ends.pop_front()
    }

    pub(super) fn deadline(&self) -> Time {
        self.timers.first().map_or(Time::NEVER, |&(at, _)| at)
    }

    /// Takes a request in.
    pub(super) fn begin(
        &mut self,
        now: Time,
        token: Token,
        key: Bytes,
        op: CasOp,
        deadline: Time,
        acceptors: &mut Acceptors,
    ) {
        self.requests += 1;
        self.arrivals += 1;
        let mut work = self.take(&key).unwrap_or_else(Work::new);
        work.queue.push_back(Request { token: Some(token), op, deadline, arrival: self.arrivals });
        if matches!(work.phase, Phase::Idle) {
            self.advance(now, &key, &mut work, acceptors);
        }
        self.put_back(key, work);
    }

    /// Counts an answer.
    pub(super) fn handle_answer(&mut self, now: Time, answered: Answered, acceptors: &mut Acceptors) {
        if !self.quorum.is_voter(answered.from) {
            return;
        }
        let Some(key) = self.attempts.get(&answered.number).cloned() else { return };
        let Some(mut work) = self.take(&key) else { return };
        self.count(now, &key, &mut work, answered, acceptors);
        self.put_back(key, work);
    }

    /// Ends what is too late, asks again what was not answered, and begins again after conflicts.
    pub(super) fn handle_time(&mut self, now: Time, acceptors: &mut Acceptors) {
        while let Some((at, key)) = self.timers.first() {
            if *at > now {
                return;
            }
            let key = key.clone();
            let Some(mut work) = self.take(&key) else {
                self.timers.pop_first();
                continue;
            };
            self.expire(now, &mut work);
            if matches!(work.phase, Phase::Idle) {
                self.advance(now, &key, &mut work, acceptors);
            } else if work.wake <= now {
                match work.phase {
                    Phase::Idle | Phase::Waiting => {
                        work.phase = Phase::Idle;
                        self.advance(now, &key, &mut work, acceptors);
                    }
                    Phase::Querying { .. } => self.prepare(now, &key, &mut work, acceptors),
                    Phase::Preparing { .. } | Phase::Accepting { .. } if work.tally.any_refused() => {
                        self.back_off(now, &mut work);
                    }
                    Phase::Preparing { .. } | Phase::Accepting { .. } => {
                        self.stats.resends += 1;
                        self.ask(now, &key, &mut work);
                    }
                }
            }
            self.put_back(key, work);
        }
    }

    /// Counts in another membership from now on; what is under way begins again.
    pub(super) fn reconfigure(&mut self, now: Time, epoch: Epoch, quorum: Quorum, acceptors: &mut Acceptors) {
        self.voters = quorum.voters();
        (self.epoch, self.quorum) = (epoch, quorum);
        // Promises of a quorum of another membership need not be promises of a quorum of this one.
        self.leases.clear();
        let keys: Vec<Bytes> = self.works.keys().cloned().collect();
        for key in keys {
            let Some(mut work) = self.take(&key) else { continue };
            self.rest(&mut work);
            self.advance(now, &key, &mut work, acceptors);
            self.put_back(key, work);
        }
    }

    fn take(&mut self, key: &Bytes) -> Option<Work> {
        let work = self.works.remove(key)?;
        self.timers.remove(&(work.timer, key.clone()));
        Some(work)
    }

    fn put_back(&mut self, key: Bytes, mut work: Work) {
        if work.is_done() {
            self.rest(&mut work);
            return;
        }
        work.timer = work.due();
        self.timers.insert((work.timer, key.clone()));
        self.works.insert(key, work);
    }

    /// Asks nothing; answers to what was asked do not count any more.
    fn rest(&mut self, work: &mut Work) {
        self.attempts.remove(&work.attempt);
        (work.attempt, work.phase, work.wake) = (0, Phase::Idle, Time::NEVER);
        work.tally = Tally::default();
    }

    /// Begins the next thing to do.
    fn advance(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
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

    fn prepare(&mut self, now: Time, key: &Bytes, work: &mut Work, acceptors: &mut Acceptors) {
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
    fn ask(&mut self, now: Time, key: &Bytes, work: &mut Work) {
        work.wake = now + self.config.resend.max(core::time::Duration::from_nanos(1));
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

    fn count(&mut self, now: Time, key: &Bytes, work: &mut Work, answered: Answered, acceptors: &mut Acceptors) {
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
    fn back_off(&mut self, now: Time, work: &mut Work) {
        self.stats.conflicts += 1;
        let doubled = self.config.backoff.saturating_mul(1 << work.conflicts.min(16));
        let longest = doubled.min(self.config.backoff_max).as_nanos().max(1);
        work.conflicts = work.conflicts.saturating_add(1);
        self.rest(work);
        work.phase = Phase::Waiting;
        let wait = u64::try_from(u128::from(self.draw()) % longest).unwrap_or(u64::MAX);
        work.wake = now + core::time::Duration::from_nanos(wait);
    }

    /// SplitMix64.
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn expire(&mut self, now: Time, work: &mut Work) {
        let late = |request: &Request| request.deadline <= now;
        let mut left = VecDeque::new();
        for request in core::mem::take(&mut work.queue) {
            match request.token {
                Some(token) if late(&request) => self.end(token, End::TimedOut),
                _ => left.push_back(request),
            }
        }
        work.queue = left;
        for nth in 0..work.batch.len() {
            if !late(&work.batch[nth]) {
                continue;
            }
            let in_doubt = work.in_doubt(nth);
            let request = &mut work.batch[nth];
            let Some(token) = request.token.take() else { continue };
            if in_doubt {
                self.end(token, End::Indeterminate);
            } else {
                // No proposal so far has it take effect, and none will.
                request.op = CasOp::Read;
                self.end(token, End::TimedOut);
            }
        }
        if !work.batch.is_empty() && work.batch.iter().all(|request| request.token.is_none()) {
            work.batch.clear();
            work.tries.clear();
            self.rest(work);
        }
    }

    fn end(&mut self, token: Token, end: End) {
        self.requests -= 1;
        self.ends.push_back((token, end));
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
