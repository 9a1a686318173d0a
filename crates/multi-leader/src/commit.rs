//! Local commit: a write is ordered, made durable and acknowledged here, without asking anybody.
//!
//! Invariants: no write leaves this node, and no reader sees one, before it is on this node's disk, so a crash never takes back
//! what somebody has seen and a dot is never given away twice; the writes of one batch have seen the same writes of others.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp, CrdtState};
use replikit_core::dotted::{Stream, next_incarnation};
use replikit_core::keyspace::{KeyspaceError, WriteCommand, decode_request};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batch, BatchKind, BatchMeta, CausalContext, Causality, Dot, HybridTimestamp, KEY_BYTES_MAX, LogIndex, NodeId, Now,
    Origin, OriginId, Outcome, Persist, Queue, Reached, Rejection, Stamp, Term, Time, Token, VALUE_BYTES_MAX,
    WriteEffect, WriteLevel, WriteOp, quorum,
};

use crate::home::Home;
use crate::member::Member;
use crate::record::{Change, Provenance, Record};
use crate::register::Stage;
use crate::replica::{MultiLeader, Standing, position};
use crate::state::Found;

/// How far ahead of the wall clock the durable ceiling of timestamps is set, each time. After a restart the clock goes on from
/// the ceiling, so for this long its writes win over later ones of others: less than clocks are allowed to differ anyway.
pub(crate) const CEILING_AHEAD: Duration = Duration::from_millis(400);

/// Own writes that are not stored yet.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    pub(crate) time: HybridTimestamp,
    first: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    waiting: Vec<Pending>,
}

/// A write that waits for its storage.
#[derive(Debug)]
pub(crate) struct Pending {
    token: Token,
    level: WriteLevel,
    sequence: u64,
    bytes: usize,
    reply: Bytes,
    arrived: Time,
}

/// How many replicas must have done what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Received(u8),
    Durable(u8),
    Applied(u8),
}

#[derive(Debug)]
struct Waiting {
    token: Token,
    level: WriteLevel,
    sequence: u64,
    reply: Bytes,
    until: Time,
}

/// Own durable writes that wait for other replicas.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    // By what they wait for; each queue in the order of the writes, which is that of the deadlines too.
    queues: BTreeMap<Need, VecDeque<Waiting>>,
    count: usize,
}

impl OpenBatch {
    /// The dot of the next write.
    pub(crate) const fn next_dot(&self, origin: OriginId) -> Dot {
        Dot { origin, sequence: self.first + self.ends.len() as u64 }
    }

    pub(crate) const fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes.len() >= bytes_max
    }
}

impl Acks {
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.queues.values().filter_map(|queue| queue.front()).map(|first| first.until).min()
    }

    pub(crate) const fn is_prompt(&self) -> bool {
        self.count > 0
    }
}

impl MultiLeader {
    pub(crate) fn handle_command(&mut self, now: Now, token: Token, level: WriteLevel, body: &[u8]) {
        match self.commit(now, token, level, body) {
            Ok(()) => {}
            Err(Refusal::Rejected(rejection)) => self.reject(token, rejection),
            Err(Refusal::Answered(effect)) => {
                // It changed nothing, but tells of a value that may not be durable yet.
                let pending = Pending {
                    token,
                    level: WriteLevel::LeaderDisk,
                    sequence: 0,
                    bytes: 0,
                    reply: encode(&effect),
                    arrived: now.mono,
                };
                match &mut self.open {
                    Some(open) => open.waiting.push(pending),
                    None => {
                        self.pending.hold(self.last_write, pending);
                        self.release_pending();
                    }
                }
            }
        }
    }

    fn commit(&mut self, now: Now, token: Token, level: WriteLevel, body: &[u8]) -> Result<(), Refusal> {
        let request = decode_request(body).map_err(|error| match error {
            KeyspaceError::Value { bytes } => {
                Rejection::TooLarge { bytes: bytes as u64, bytes_max: VALUE_BYTES_MAX as u64 }
            }
            KeyspaceError::Key { bytes } if bytes > KEY_BYTES_MAX => {
                Rejection::TooLarge { bytes: bytes as u64, bytes_max: KEY_BYTES_MAX as u64 }
            }
            _ => Rejection::Malformed,
        })?;
        let WriteCommand { key, op, context } = request;
        if self.failed {
            return Err(Rejection::StorageFailed.into());
        }
        if self.epochs.evicted || self.takes_no_writes() {
            return Err(Rejection::StaleRoute { current: self.epoch }.into());
        }
        let Standing::Writer(origin) = self.standing else { return Err(Rejection::CatchingUp.into()) };
        if matches!(level, WriteLevel::Owners(_)) {
            return Err(Rejection::Unsupported.into());
        }
        let replicas = self.replicas();
        if copies(level, replicas) > replicas {
            return Err(Rejection::Unreachable { level, replicas }.into());
        }
        self.check_home(&key)?;
        let limit = self.config.limits.uncommitted_bytes_max;
        if self.pending_bytes >= limit {
            return Err(Rejection::Busy { queue: Queue::UncommittedBytes, limit: limit as u64 }.into());
        }
        if self.acks.count >= self.config.limits.waiting_max && copies(level, replicas) > 1 {
            let limit = self.config.limits.waiting_max as u64;
            return Err(Rejection::Busy { queue: Queue::Acknowledgements, limit }.into());
        }
        if self.clock.headroom(now.wall) < CEILING_AHEAD / 4 {
            self.raise_ceiling(now);
        }
        self.begin_batch(now, origin);
        let open = self.open.as_ref().expect("begun just now");
        let dot = open.next_dot(origin);
        let stamp = Stamp { time: open.time, dot };
        let (owned, provenance, effect) = self.prepare(&key, op, context.as_ref(), stamp)?;
        let change = match &owned {
            Owned::Put(value) => Change::Put(value),
            Owned::Delete => Change::Delete,
            Owned::Merge(delta) => Change::Merge(delta),
        };
        let record = Record { key: &key, change, provenance };
        let before = self.open.as_ref().map_or(0, |open| open.bytes.len());
        self.write_record(stamp, &record);
        let effect = match effect {
            Some(effect) => effect,
            None => self.counter(&key),
        };
        let open = self.open.as_mut().expect("begun above");
        let bytes = open.bytes.len() - before;
        self.pending_bytes += bytes;
        let (sequence, reply, arrived) = (dot.sequence, encode(&effect), now.mono);
        open.waiting.push(Pending { token, level, sequence, bytes, reply, arrived });
        if open.is_full(self.config.limits.batch_bytes_max) {
            self.close_batch();
        }
        Ok(())
    }

    /// Whether this is the place to write a key.
    fn check_home(&self, key: &[u8]) -> Result<(), Rejection> {
        let membership = &self.epochs.homes;
        let elsewhere = |home: &crate::home::HomeFn| home(key, membership).filter(|home| *home != self.config.node);
        match &self.config.keyspaces.of(key).home {
            Home::Anywhere => Ok(()),
            Home::Require(home) => match elsewhere(home) {
                Some(home) => Err(Rejection::NotLeader { leader: Some(home) }),
                // Whoever was home before may have written what is not here yet.
                None if !self.epochs.settled => Err(Rejection::CatchingUp),
                None => Ok(()),
            },
            Home::Prefer(home) => match elsewhere(home) {
                Some(home) if !self.suspected.contains(&home) && !self.down.contains(&home) => {
                    Err(Rejection::NotLeader { leader: Some(home) })
                }
                _ => Ok(()),
            },
        }
    }

    pub(crate) fn begin_batch(&mut self, now: Now, origin: OriginId) {
        if self.open.is_some() {
            return;
        }
        let mut time = self.clock.tick(now.wall);
        if time.is_none() {
            self.raise_ceiling(now);
            time = self.clock.tick(now.wall);
        }
        let time = time.expect("the ceiling was raised above the clock");
        let first = self.state.applied().base(origin) + 1;
        let causality = Causality { time, context: CausalContext::from(self.state.applied().clone()) };
        let mut bytes = Vec::new();
        causality.encode(Dot { origin, sequence: first }, &mut bytes);
        self.open = Some(OpenBatch { time, first, bytes, ends: Vec::new(), waiting: Vec::new() });
    }

    pub(crate) fn write_record(&mut self, stamp: Stamp, record: &Record<'_>) {
        let open = self.open.as_mut().expect("a batch was begun");
        open.bytes = record.encode_into(core::mem::take(&mut open.bytes));
        open.ends.push(open.bytes.len());
        // The batch becomes the next storage action, whatever else is to be stored.
        self.state.apply_own(stamp, record, self.last_write.next());
    }

    /// What a request means here. The effect is `None` when it is the new value of a counter.
    fn prepare(
        &mut self,
        key: &[u8],
        op: WriteOp,
        context: Option<&CausalContext>,
        stamp: Stamp,
    ) -> Result<(Owned, Provenance, Option<WriteEffect>), Refusal> {
        let keyspace = self.config.keyspaces.of(key);
        let unsupported = || Refusal::Rejected(Rejection::Unsupported);
        if let ConflictPolicy::Crdt(kind) = keyspace.conflicts {
            let op = match op {
                WriteOp::Crdt { op } => Some(op),
                WriteOp::Add { delta } if kind == CrdtKind::Counter => Some(CrdtOp::Add { amount: delta }),
                WriteOp::Delete => None,
                _ => return Err(unsupported()),
            };
            let nothing = CrdtState::new(kind);
            let state = self.state.merging(key).unwrap_or(&nothing);
            let delta = match &op {
                Some(op) => state.delta(stamp, op).map_err(|_| unsupported())?,
                None => state.clear(stamp.dot),
            };
            if delta.len() > VALUE_BYTES_MAX {
                let (bytes, bytes_max) = (delta.len() as u64, VALUE_BYTES_MAX as u64);
                return Err(Rejection::TooLarge { bytes, bytes_max }.into());
            }
            let effect = if kind == CrdtKind::Counter { None } else { Some(WriteEffect::Done) };
            return Ok((Owned::Merge(delta), Provenance::All, effect));
        }
        let provenance = match keyspace.conflicts {
            ConflictPolicy::Siblings => replaced(&self.state.find(key), context),
            // One value is shown in any case; what its client had not read goes to the audit.
            _ => context.map_or(Provenance::All, |context| Provenance::Over(self.state.seen_of(key, context))),
        };
        match op {
            WriteOp::Put { value } => Ok((Owned::Put(value), provenance, Some(WriteEffect::Done))),
            WriteOp::Delete => Ok((Owned::Delete, provenance, Some(WriteEffect::Done))),
            WriteOp::CompareAndSet { expected, new } => {
                // Only at a home that others do not write at does comparing mean anything.
                let here = Some(self.config.node);
                if !matches!(&keyspace.home, Home::Require(home) if home(key, &self.epochs.homes) == here) {
                    return Err(unsupported());
                }
                let found = self.state.find(key).values.into_iter().next();
                if found != expected {
                    return Err(Refusal::Answered(WriteEffect::Mismatch { found }));
                }
                Ok((new.map_or(Owned::Delete, Owned::Put), provenance, Some(WriteEffect::Done)))
            }
            _ => Err(unsupported()),
        }
    }

    fn counter(&mut self, key: &[u8]) -> WriteEffect {
        let text = self.state.find(key).values.into_iter().next();
        let value = text.and_then(|text| core::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0);
        WriteEffect::Counter { value }
    }

    /// Closes the open batch: what comes next has seen more.
    pub(crate) fn close_batch(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Standing::Writer(origin) = self.standing else { unreachable!("only a writer opens a batch") };
        if open.ends.is_empty() {
            // Only answers to requests that changed nothing.
            for pending in open.waiting {
                self.pending.hold(self.last_write, pending);
            }
            return self.release_pending();
        }
        let stream = self.streams.entry(origin).or_insert_with(|| Stream::new(origin, 0, 0));
        let meta = BatchMeta {
            cluster: self.config.cluster,
            stream: replikit_core::StreamId { group: self.config.group, origin },
            base: LogIndex(open.first),
            term: Term(0),
            prev_digest: stream.digest(),
            time: open.time,
            kind: BatchKind::Commands,
        };
        let starts = core::iter::once(0).chain(open.ends.iter().copied());
        let entries = starts.zip(&open.ends).map(|(start, end)| (&open.bytes[start..*end], None));
        let batch = Batch::build(&meta, entries);
        let write = self.last_write.next();
        self.state.close_own(origin, batch.digest());
        self.keep(batch.clone(), write);
        self.persist_next(Persist::Append { batch, replace: false });
        for pending in open.waiting {
            // Before its incarnation is durable a crash could give its dot to another write.
            if pending.level == WriteLevel::Memory && self.incarnated <= self.durable {
                self.pending_bytes -= pending.bytes;
                let reached = Reached { received: 1, durable: 0, applied: 1 };
                self.acknowledge(pending.token, pending.sequence, reached, false, Bytes::new());
            } else {
                self.pending.hold(write, pending);
            }
        }
        self.maybe_snapshot();
    }

    fn acknowledge(&mut self, token: Token, sequence: u64, reached: Reached, strict: bool, reply: Bytes) {
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        let at = position(self.stream_id(origin), sequence);
        self.done(token, Outcome::Acked { at, reached, strict, reply });
    }

    /// Own writes have become durable.
    pub(crate) fn release_pending(&mut self) {
        let standings = self.standings();
        while let Some(pending) = self.pending.release(self.durable) {
            self.pending_bytes -= pending.bytes;
            let replicas = self.replicas();
            let need = need(pending.level, replicas);
            let Pending { token, level, sequence, reply, arrived, .. } = pending;
            let here = u8::from(self.counts_copies(self.config.node));
            match need.filter(|need| copies_of(*need) > here) {
                Some(need) => {
                    let until = arrived + self.config.timing.write;
                    self.acks.count += 1;
                    self.acks.queues.entry(need).or_default().push_back(Waiting {
                        token,
                        level,
                        sequence,
                        reply,
                        until,
                    });
                }
                None => {
                    let reached = reached(&standings, sequence);
                    self.acknowledge(token, sequence, reached, self.is_strict(level, replicas), reply);
                }
            }
        }
        if self.acks.count > 0 {
            self.release_acks();
        }
    }

    fn is_strict(&self, level: WriteLevel, replicas: u8) -> bool {
        let majority = quorum::majority(replicas.into()) as u8;
        match level {
            WriteLevel::Quorum => true,
            WriteLevel::Durable(copies) => copies >= majority,
            _ => replicas == 1 && !matches!(level, WriteLevel::Memory) && self.counts_copies(self.config.node),
        }
    }

    /// Up to where the other members have this replica's writes: received, durable, applied.
    fn standings(&self) -> Vec<[u64; 3]> {
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        let standing = |member: &Member| [member.held(origin), member.durable(origin), member.applied(origin)];
        self.members.values().map(standing).collect()
    }

    /// Other replicas have told of more.
    pub(crate) fn release_acks(&mut self) {
        if self.acks.count == 0 {
            return;
        }
        let Some(origin) = self.origin() else { return };
        let replicas = self.replicas();
        let standings = self.standings();
        let needs: Vec<Need> = self.acks.queues.keys().copied().collect();
        let mut others: Vec<u64> = Vec::with_capacity(self.members.len());
        let here = u8::from(self.counts_copies(self.config.node));
        for need in needs {
            let has = |member: &Member| match need {
                Need::Received(_) => member.held(origin),
                Need::Durable(_) => member.durable(origin),
                Need::Applied(_) => member.applied(origin),
            };
            others.clear();
            let counted = self.members.iter().filter(|(node, _)| self.counts_copies(**node));
            others.extend(counted.map(|(_, member)| has(member)));
            others.sort_unstable_by(|a, b| b.cmp(a));
            // This replica has all of them.
            let enough = match copies_of(need).checked_sub(1 + here) {
                Some(at) => others.get(usize::from(at)).copied().unwrap_or(0),
                None => u64::MAX,
            };
            while let Some(waiting) =
                self.acks.queues.get_mut(&need).and_then(|queue| queue.pop_front_if(|first| first.sequence <= enough))
            {
                self.acks.count -= 1;
                let reached = reached(&standings, waiting.sequence);
                let strict = self.is_strict(waiting.level, replicas);
                self.acknowledge(waiting.token, waiting.sequence, reached, strict, waiting.reply);
            }
        }
        self.acks.queues.retain(|_, queue| !queue.is_empty());
    }

    pub(crate) fn expire_acks(&mut self, now: Time) {
        let mut expired = Vec::new();
        for queue in self.acks.queues.values_mut() {
            while let Some(waiting) = queue.pop_front_if(|first| first.until <= now) {
                expired.push(waiting);
            }
        }
        self.acks.count -= expired.len();
        self.acks.queues.retain(|_, queue| !queue.is_empty());
        let standings = self.standings();
        for waiting in expired {
            let reached = reached(&standings, waiting.sequence);
            self.done(waiting.token, Outcome::Indeterminate { reached });
        }
    }

    /// The storage failed: what waits for it may or may not be there later.
    pub(crate) fn fail_all(&mut self) {
        self.give_up_writes();
        self.fail_reads();
    }

    /// The requests that wait for their storage or for other replicas; they wait no longer.
    pub(crate) fn waiting_tokens(&mut self) -> Vec<Token> {
        let mut tokens: Vec<Token> = self.pending.drain().map(|pending| pending.token).collect();
        tokens.extend(self.open.take().into_iter().flat_map(|open| open.waiting).map(|pending| pending.token));
        let queues = core::mem::take(&mut self.acks);
        tokens.extend(queues.queues.into_values().flatten().map(|waiting| waiting.token));
        self.pending_bytes = 0;
        tokens
    }

    /// The members have changed: a majority is another number.
    pub(crate) fn count_anew(&mut self) {
        let replicas = self.replicas();
        let queues = core::mem::take(&mut self.acks.queues);
        let mut all: Vec<Waiting> = queues.into_values().flatten().collect();
        all.sort_by_key(|waiting| waiting.sequence);
        for waiting in all {
            let need = need(waiting.level, replicas).unwrap_or(Need::Durable(1));
            self.acks.queues.entry(need).or_default().push_back(waiting);
        }
    }

    /// How many replicas of the group count; an evicted node counts none of them any more, and acknowledges for none.
    fn replicas(&self) -> u8 {
        if self.epochs.evicted {
            return u8::MAX;
        }
        let counted = self.epochs.membership.ids().filter(|node| self.counts_copies(*node));
        if self.epochs.membership.turnover.is_open() { counted.count() as u8 } else { self.members.len() as u8 + 1 }
    }

    /// Everybody has answered and all that they hold has been applied: a new incarnation may write.
    pub(crate) fn try_standing(&mut self) {
        let Standing::Asking { unheard, wanted, newest } = &self.standing else { return };
        let applied = self.state.applied();
        if self.epochs.evicted || !unheard.is_empty() || !wanted.values().all(|wanted| applied.covers(wanted)) {
            return;
        }
        // Nor is there anything more to come of what is here: an own write may be among it.
        if self.waiting.bytes() > 0 {
            return;
        }
        let incarnation = next_incarnation(self.register.incarnation, *newest);
        let Ok(origin) = (Origin { node: self.config.node, incarnation }).id() else { return };
        self.register.incarnation = incarnation.0;
        if self.register.stage != Stage::Regular {
            self.register.first = incarnation.0;
        }
        self.standing = Standing::Writer(origin);
        let (group, bytes) = (self.config.group, self.register.encode());
        self.incarnated = self.persist(Persist::Register { group, bytes });
        if self.register.stage == Stage::Resubmitting {
            self.resubmit();
        }
        self.owed.extend(self.members.keys().copied().collect::<Vec<NodeId>>());
    }
}

/// How many replicas have a write: this one, and those others that stand at it or behind it.
fn reached(standings: &[[u64; 3]], sequence: u64) -> Reached {
    let count = |what: usize| 1 + standings.iter().filter(|standing| standing[what] >= sequence).count() as u8;
    Reached { received: count(0), durable: count(1), applied: count(2) }
}

/// Which of the siblings of a key a write replaces: those that its client has read. A client that did not say may replace one,
/// not several.
fn replaced(found: &Found, context: Option<&CausalContext>) -> Provenance {
    let Some(context) = context else {
        return if found.values.len() > 1 { Provenance::These(Vec::new()) } else { Provenance::All };
    };
    let dots = found.stamps.iter().map(|stamp| stamp.dot);
    let seen: Vec<Dot> = dots.filter(|dot| context.contains(*dot)).collect();
    if seen.len() == found.stamps.len() { Provenance::All } else { Provenance::These(seen) }
}

/// What a write leaves in the log, owned.
enum Owned {
    Put(Bytes),
    Delete,
    Merge(Bytes),
}

/// Why a request is not written.
enum Refusal {
    Rejected(Rejection),
    /// It changes nothing, and this is its answer.
    Answered(WriteEffect),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// What a level waits for; `None` when only for this node.
fn need(level: WriteLevel, replicas: u8) -> Option<Need> {
    match level {
        WriteLevel::Memory | WriteLevel::LeaderDisk => None,
        WriteLevel::Received(copies) => Some(Need::Received(copies)),
        WriteLevel::Durable(copies) => Some(Need::Durable(copies)),
        WriteLevel::Quorum | WriteLevel::Owners(_) => Some(Need::Durable(quorum::majority(replicas.into()) as u8)),
        WriteLevel::Applied(copies) => Some(Need::Applied(copies)),
    }
}

const fn copies_of(need: Need) -> u8 {
    match need {
        Need::Received(copies) | Need::Durable(copies) | Need::Applied(copies) => copies,
    }
}

/// How many replicas a level asks for.
fn copies(level: WriteLevel, replicas: u8) -> u8 {
    match level {
        WriteLevel::Memory | WriteLevel::LeaderDisk => 1,
        WriteLevel::Received(copies) | WriteLevel::Durable(copies) | WriteLevel::Applied(copies) => copies,
        WriteLevel::Quorum | WriteLevel::Owners(_) => quorum::majority(replicas.into()) as u8,
    }
}

fn encode(effect: &WriteEffect) -> Bytes {
    match effect {
        // The common answer is a constant: no allocation for it.
        WriteEffect::Done => Bytes::from_static(&[0]),
        other => postcard::to_stdvec(other).expect("an effect always encodes").into(),
    }
}
