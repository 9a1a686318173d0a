//! The proposer of one node: which requests are under way, when something is due, and in which membership it counts.
//!
//! Invariants: every request that was taken in ends once; each key is worked on by itself, one question at a time. The
//! questions and what follows from their answers are in `round`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{Epoch, NodeId, OriginId, Quorum, Time, Token};

use super::acceptor::Acceptors;
use super::ballot::Proposer;
use super::change::CasOp;
use super::config::CasConfig;
use super::message::{Answer, Life, Message};
use super::output::{CasRefusal, CasStats, End};
use super::sticky::Leases;
use super::tally::Tally;
use super::work::{Phase, Request, Work};

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
    pub(super) config: CasConfig,
    pub(super) me: Proposer,
    pub(super) epoch: Epoch,
    pub(super) quorum: Quorum,
    pub(super) voters: Vec<NodeId>,
    /// The highest round that was used or seen, over all keys.
    pub(super) clock: u64,
    /// Questions so far.
    pub(super) asked: u64,
    pub(super) arrivals: u64,
    random: u64,
    works: BTreeMap<Bytes, Box<Work>>,
    pub(super) attempts: BTreeMap<u64, Bytes>,
    timers: BTreeSet<(Time, Bytes)>,
    pub(super) leases: Leases,
    requests: usize,
    pub(super) asks: VecDeque<(NodeId, Message)>,
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

    pub(super) const fn incarnate(&mut self, origin: OriginId) {
        self.me.origin = origin;
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
        let of_key = self.works.get(key).map_or(0, |work| work.requests());
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
        let mut work = self.take(&key).unwrap_or_else(|| Box::new(Work::new()));
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

    fn take(&mut self, key: &Bytes) -> Option<Box<Work>> {
        let work = self.works.remove(key)?;
        self.timers.remove(&(work.timer, key.clone()));
        Some(work)
    }

    fn put_back(&mut self, key: Bytes, mut work: Box<Work>) {
        if work.is_done() {
            self.rest(&mut work);
            return;
        }
        work.timer = work.due();
        self.timers.insert((work.timer, key.clone()));
        self.works.insert(key, work);
    }

    /// Asks nothing; answers to what was asked do not count any more.
    pub(super) fn rest(&mut self, work: &mut Work) {
        self.attempts.remove(&work.attempt);
        (work.attempt, work.phase, work.wake) = (0, Phase::Idle, Time::NEVER);
        work.tally = Tally::default();
    }

    /// SplitMix64.
    pub(super) const fn draw(&mut self) -> u64 {
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

    pub(super) fn end(&mut self, token: Token, end: End) {
        self.requests -= 1;
        self.ends.push_back((token, end));
    }
}
