//! Coordinating writes: a write is ordered here, goes to every owner at once, and is acknowledged as soon as enough have it.
//!
//! Invariants: a dot is never given to two writes, for nothing leaves before its incarnation is durable, and each start that
//! may have forgotten something begins another one. An owner counts for a write once it has applied it and found nothing
//! newer beside it; one that has is answered by the same write with a newer stamp, which has seen the old one. So with
//! W + W > N a write that begins after another one was acknowledged wins over it whatever the clocks say, where the last write
//! wins. Source: Dynamo (DeCandia et al., SOSP 2007); the second stamp is our own.

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp, CrdtState};
use replikit_core::dotted::{Stream, next_incarnation};
use replikit_core::keyspace::{KeyspaceError, WriteCommand, decode_request};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batch, BatchKind, BatchMeta, CausalContext, Causality, Dot, HybridTimestamp, KEY_BYTES_MAX, LogIndex, NodeId, Now,
    Origin, OriginId, Outcome, Persist, Queue, Reached, Rejection, Stamp, Term, Time, Token, VALUE_BYTES_MAX,
    VersionVector, WriteEffect, WriteLevel, WriteOp,
};

use crate::config::Counting;
use crate::content::Versions;
use crate::handoff::Hinted;
use crate::levels::{Owners, Set, WriteNeed};
use crate::message::{NotLast, Stored};
use crate::record::{Change, Record, without};
use crate::replica::{Leaderless, Standing, position};
use crate::state::seen_by_client;

/// How far ahead of the wall clock the durable ceiling of timestamps is set, each time.
pub(crate) const CEILING_AHEAD: Duration = Duration::from_millis(400);

/// Own writes that are not stored yet.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    time: HybridTimestamp,
    first: u64,
    /// What of other origins had been applied when it was begun.
    past: VersionVector,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// What a write leaves in the log, owned.
#[derive(Clone, Debug)]
enum Owned {
    Put(Bytes),
    Delete,
    Merge(Bytes),
    Delta(Bytes),
}

impl Owned {
    fn change(&self) -> Change<'_> {
        match self {
            Self::Put(value) => Change::Put(value),
            Self::Delete => Change::Delete,
            Self::Merge(value) => Change::Merge(value),
            Self::Delta(delta) => Change::Delta(delta),
        }
    }
}

/// A write that waits for owners.
#[derive(Debug)]
struct Waiting {
    token: Token,
    level: WriteLevel,
    need: WriteNeed,
    /// Owners at which it is the last write, or stands beside others where that does not matter.
    applied: Set,
    /// Owners to which one that had seen it came first. They have it, and cannot tell what it came after: see
    /// [`Waiting::is_done`].
    superseded: Set,
    durable: Set,
    /// Fallback nodes that have it on disk in the place of an owner.
    hinted: Hinted,
    key: Bytes,
    bytes: usize,
    reply: Bytes,
    until: Time,
    /// Where the last write wins: what to write again, should it not be the last.
    again: Option<Owned>,
}

impl Waiting {
    /// Owners that have it.
    fn held(&self) -> Set {
        self.applied.union(self.superseded)
    }

    /// Whether enough owners have it, and so many of them have compared it that no write quorum misses all of these. Fallback
    /// nodes help only where the owners that can be reached are too few.
    fn is_done(&self, owners: &Owners, reachable: impl FnOnce() -> Set) -> bool {
        let compared = self.superseded.is_empty() || owners.is_compared(self.applied);
        let has = |more: Set| {
            self.need.applied.is_met(self.held().union(more)) && self.need.durable.is_met(self.durable.union(more))
        };
        let helped = || {
            let hinted = self.hinted.owners();
            if !self.need.hints_count || !has(hinted) {
                return false;
            }
            let reachable = reachable();
            !self.need.applied.is_met(reachable) || !self.need.durable.is_met(reachable)
        };
        compared && (has(Set::default()) || helped())
    }
}

/// Own writes that wait for owners, by sequence.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// The sequence of the first of them.
    first: u64,
    waiting: VecDeque<Option<Waiting>>,
    bytes: usize,
    count: usize,
    /// Up to where each owner's word has been taken, by owner: applied, durable.
    pub(crate) taken: Vec<(u64, u64)>,
    pub(crate) restamped: u64,
    /// Acknowledged with the help of fallback nodes.
    pub(crate) sloppy: u64,
}

impl Writing {
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.waiting.front().and_then(Option::as_ref).map(|first| first.until)
    }

    /// Own writes up to this wait for nobody.
    pub(crate) const fn settled(&self) -> u64 {
        self.first.saturating_sub(1)
    }

    /// Whether an answer is of use before it is durable.
    pub(crate) fn is_prompt(&self) -> bool {
        let memory = |waiting: &Waiting| waiting.need.durable.is_met(Set::default());
        self.waiting.iter().flatten().next_back().is_some_and(memory)
    }

    /// Whether somebody waits for any.
    pub(crate) const fn waits(&self) -> bool {
        self.count > 0
    }

    /// The writes that wait.
    fn sequences(&self) -> Vec<u64> {
        let waiting = self.waiting.iter().zip(self.first..);
        waiting.filter(|(waiting, _)| waiting.is_some()).map(|(_, sequence)| sequence).collect()
    }

    /// A write of this replica itself, for which nobody waits.
    pub(crate) fn push_unasked(&mut self, sequence: u64) {
        self.push(sequence, None);
    }

    fn push(&mut self, sequence: u64, waiting: Option<Waiting>) {
        if self.waiting.is_empty() {
            self.first = sequence;
        }
        debug_assert_eq!(self.first + self.waiting.len() as u64, sequence, "own sequences have no gap");
        if let Some(waiting) = &waiting {
            self.count += 1;
            self.bytes += waiting.bytes;
        }
        self.waiting.push_back(waiting);
    }

    fn get(&mut self, sequence: u64) -> Option<&mut Option<Waiting>> {
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.waiting.get_mut(at)
    }

    fn take(&mut self, sequence: u64) -> Option<Waiting> {
        let waiting = self.get(sequence)?.take()?;
        self.count -= 1;
        self.bytes -= waiting.bytes;
        Some(waiting)
    }

    /// A fallback node has a write on disk in the place of an owner.
    pub(crate) fn hinted(&mut self, sequence: u64, by: NodeId, owner: u32) {
        if let Some(Some(waiting)) = self.get(sequence) {
            waiting.hinted.insert(by, owner);
        }
    }

    /// The oldest writes that wait, for fallback nodes to be told of: sequence, key, and the owners that have it.
    pub(crate) fn unfinished(&self, most: usize) -> Vec<(u64, Bytes, Set)> {
        let waiting = self.waiting.iter().zip(self.first..);
        let waiting = waiting.filter_map(|(waiting, sequence)| {
            let waiting = waiting.as_ref()?;
            Some((sequence, waiting.key.clone(), waiting.held().union(waiting.hinted.owners())))
        });
        waiting.take(most).collect()
    }

    /// Forgets the settled ones in front.
    fn trim(&mut self) {
        while self.waiting.front().is_some_and(Option::is_none) {
            self.waiting.pop_front();
            self.first += 1;
        }
    }
}

impl Leaderless {
    pub(crate) fn handle_command(&mut self, now: Now, token: Token, level: WriteLevel, body: &[u8]) {
        if let Err(rejection) = self.coordinate(now, token, level, body) {
            self.reject(token, rejection);
        }
    }

    fn coordinate(&mut self, now: Now, token: Token, level: WriteLevel, body: &[u8]) -> Result<(), Rejection> {
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
            return Err(Rejection::StorageFailed);
        }
        let origin = self.serves()?;
        if !self.owners.stays() {
            return Err(self.elsewhere());
        }
        if self.config.keyspaces.of(&key).is_cas() {
            return self.begin_change(now, token, level, key, op, context.as_ref());
        }
        let replicas = self.owners.len();
        let Some(mut need) = self.owners.write_need(level) else {
            return Err(Rejection::Unreachable { level, replicas });
        };
        need.hints_count = self.config.fallbacks.counting == Counting::TowardsQuorums && Owners::takes_hints(level);
        let limit = self.config.limits.uncommitted_bytes_max;
        if self.writing.bytes >= limit {
            return Err(Rejection::Busy { queue: Queue::UncommittedBytes, limit: limit as u64 });
        }
        if self.writing.count >= self.config.limits.waiting_max {
            let limit = self.config.limits.waiting_max as u64;
            return Err(Rejection::Busy { queue: Queue::Acknowledgements, limit });
        }
        self.begin_batch_for(now, origin, &key);
        let stamp = self.next_stamp(origin);
        let (owned, keeps, beyond, effect) = self.prepare(&key, op, context.as_ref(), stamp)?;
        let lww = self.config.keyspaces.of(&key).is_lww();
        let again = lww.then(|| owned.clone());
        let bytes = self.write_record(stamp, &Record { key: &key, change: owned.change(), keeps, beyond });
        let effect = effect.unwrap_or_else(|| self.counter(&key));
        let mut applied = Set::default();
        applied.insert(self.owners.me());
        let waiting = Waiting {
            token,
            level,
            need,
            applied,
            superseded: Set::default(),
            durable: Set::default(),
            hinted: Hinted::default(),
            key,
            bytes,
            reply: encode(&effect),
            until: now.mono + self.config.timing.write,
            again,
        };
        self.writing.push(stamp.dot.sequence, Some(waiting));
        self.sampling.begin_write(now.mono, stamp.dot.sequence, &self.owners);
        self.end_record();
        Ok(())
    }

    pub(crate) fn end_record(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.bytes.len() >= self.config.limits.batch_bytes_max) {
            self.close_batch();
        }
    }

    /// Begins a batch whose time is later than that of every version of the key here.
    pub(crate) fn begin_batch_for(&mut self, now: Now, origin: OriginId, key: &[u8]) {
        let newest = self.state.versions(key).and_then(Versions::newest).map(|stamp| stamp.time);
        if self.open.as_ref().is_some_and(|open| newest > Some(open.time)) {
            self.close_batch();
        }
        if self.open.is_some() {
            return;
        }
        if let Some(newest) = newest {
            self.clock.observe(newest);
        }
        if self.clock.headroom(now.wall) < CEILING_AHEAD / 4 {
            self.raise_ceiling(now);
        }
        let mut time = self.clock.tick(now.wall);
        if time.is_none() {
            self.raise_ceiling(now);
            time = self.clock.tick(now.wall);
        }
        let time = time.expect("the ceiling was raised above the clock");
        let first = self.state.base().base(origin) + 1;
        let base = self.state.base().clone();
        let mut bytes = Vec::new();
        let causality = Causality { time, context: CausalContext::from(base.clone()) };
        causality.encode(Dot { origin, sequence: first }, &mut bytes);
        let mut past = base;
        past.retire(origin);
        self.open = Some(OpenBatch { time, first, past, bytes, ends: Vec::new() });
    }

    pub(crate) fn next_stamp(&self, origin: OriginId) -> Stamp {
        let open = self.open.as_ref().expect("begun just now");
        Stamp { time: open.time, dot: Dot { origin, sequence: open.first + open.ends.len() as u64 } }
    }

    /// Adds a write to the open batch and applies it; returns its bytes.
    pub(crate) fn write_record(&mut self, stamp: Stamp, record: &Record<'_>) -> usize {
        let mut open = self.open.take().expect("a batch was begun");
        let before = open.bytes.len();
        open.bytes = record.encode_into(open.bytes);
        open.ends.push(open.bytes.len());
        let bytes = open.bytes.len() - before;
        // The batch becomes the next storage action, whatever else is to be stored.
        self.state.apply_own(&open.past, stamp, record, self.last_write.next());
        self.open = Some(open);
        bytes
    }

    /// What a request means here. The effect is `None` when it is the new value of a counter.
    #[allow(clippy::type_complexity, reason = "the parts of one record, taken apart at once")]
    fn prepare(
        &mut self,
        key: &[u8],
        op: WriteOp,
        context: Option<&CausalContext>,
        stamp: Stamp,
    ) -> Result<(Owned, Vec<Dot>, Option<CausalContext>, Option<WriteEffect>), Rejection> {
        let keyspace = self.config.keyspaces.of(key);
        if let ConflictPolicy::Crdt(kind) = keyspace.conflicts {
            let op = match op {
                WriteOp::Crdt { op } => Some(op),
                WriteOp::Add { delta } if kind == CrdtKind::Counter => Some(CrdtOp::Add { amount: delta }),
                WriteOp::Delete => None,
                _ => return Err(Rejection::Unsupported),
            };
            let owned = self.prepare_merge(key, kind, op.as_ref(), stamp)?;
            let effect = if kind == CrdtKind::Counter { None } else { Some(WriteEffect::Done) };
            return Ok((owned, Vec::new(), None, effect));
        }
        let owned = match op {
            WriteOp::Put { value } => Owned::Put(value),
            WriteOp::Delete => Owned::Delete,
            _ => return Err(Rejection::Unsupported),
        };
        let (versions, base) = self.state.versions_beside(key);
        let present = versions.map_or(0, |versions| versions.as_slice().len());
        let (mut keeps, mut beyond) = match context {
            // Where the last write wins, a write replaces what is known here, and is newer than that: what a client has seen of
            // writes that are not known here would leave their times unknown.
            Some(context) if !keyspace.is_lww() => seen_by_client(versions, base, context),
            _ => (Vec::new(), CausalContext::new()),
        };
        if !matches!(keyspace.conflicts, ConflictPolicy::Siblings) {
            // One value is shown in any case: the write is made after all that is known here.
            keeps = Vec::new();
        } else if context.is_none() && present > 1 {
            // A client that did not say what it has read may replace one value, not several.
            keeps = versions.into_iter().flat_map(Versions::as_slice).map(|sibling| sibling.dot()).collect();
        }
        if let Some(above) = versions.and_then(Versions::above) {
            beyond.join(&without(above, &keeps));
        }
        if keeps.len() >= self.config.limits.siblings_max {
            let limit = self.config.limits.siblings_max as u64;
            return Err(Rejection::Busy { queue: Queue::Siblings, limit });
        }
        let beyond = (!beyond.is_empty()).then_some(beyond);
        Ok((owned, keeps, beyond, Some(WriteEffect::Done)))
    }

    /// What an operation on a value that merges, or a delete of it, leaves in the log: what it adds, where that takes nothing
    /// away, and the whole value otherwise.
    fn prepare_merge(
        &mut self,
        key: &[u8],
        kind: CrdtKind,
        op: Option<&CrdtOp>,
        stamp: Stamp,
    ) -> Result<Owned, Rejection> {
        let nothing = CrdtState::new(kind);
        let state = self.state.merging(key).unwrap_or(&nothing);
        let delta = match op {
            Some(op) => state.delta(stamp, op).map_err(|_| Rejection::Unsupported)?,
            None => state.clear(stamp.dot),
        };
        let only_adds = CrdtState::only_adds(kind, stamp.dot, &delta);
        if only_adds && state.fits(VALUE_BYTES_MAX - delta.len().min(VALUE_BYTES_MAX)) {
            return Ok(Owned::Delta(delta));
        }
        let mut state = state.clone();
        state.join_delta(self.state.base(), &delta).expect("a delta of this value");
        let value = state.encode();
        if value.len() > VALUE_BYTES_MAX {
            return Err(Rejection::TooLarge { bytes: value.len() as u64, bytes_max: VALUE_BYTES_MAX as u64 });
        }
        Ok(Owned::Merge(value))
    }

    fn counter(&mut self, key: &[u8]) -> WriteEffect {
        let text = self.state.find(key).values.into_iter().next();
        let value = text.and_then(|text| core::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0);
        WriteEffect::Counter { value }
    }

    /// Closes the open batch: what comes next has seen more.
    pub(crate) fn close_batch(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.ends.is_empty() {
            return;
        }
        let Standing::Writer(origin) = self.standing else { unreachable!("only a writer opens a batch") };
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
        let last = batch.last().index.0;
        self.keep(batch.clone(), write);
        self.persist_next(Persist::Append { batch, replace: false });
        self.outdated = true;
        let has_fallbacks = !self.config.fallbacks.nodes.is_empty();
        for sequence in open.first..=last {
            if has_fallbacks && let Some(Some(Waiting { key, .. })) = self.writing.get(sequence) {
                let key = key.clone();
                self.hint(origin, sequence, &key, Set::default());
            }
            self.try_acknowledge(sequence);
        }
        self.writing.trim();
        self.maybe_snapshot();
    }

    /// Answers the client of a write if enough owners have it.
    pub(crate) fn try_acknowledge(&mut self, sequence: u64) {
        let (owners, down, suspected) = (&self.owners, &self.down, &self.suspected);
        let Some(Some(waiting)) = self.writing.get(sequence) else { return };
        if !waiting.is_done(owners, || owners.without(|node| down.contains(&node) || suspected.contains(&node))) {
            return;
        }
        // Before its incarnation is durable a crash could give its dot to another write.
        if self.incarnated > self.durable {
            return;
        }
        let waiting = self.writing.take(sequence).expect("it is there");
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        let at = position(self.stream_id(origin), sequence);
        let strict = self.owners.is_strict_write(waiting.held(), waiting.durable);
        let reached = reached(&waiting);
        self.writing.sloppy += u64::from(!waiting.need.applied.is_met(waiting.held()));
        self.done(waiting.token, Outcome::Acked { at, reached, strict, reply: waiting.reply });
    }

    /// Own writes have become durable here.
    pub(crate) fn own_writes_are_durable(&mut self, now: Now) {
        let Some(origin) = self.origin() else { return };
        let Some(durable) = self.streams.get(&origin).map(Stream::durable) else { return };
        let me = self.owners.me();
        if self.owners.is_owner() {
            self.count(now, me, durable, durable, &[]);
        }
    }

    /// An owner tells how far this coordinator's writes have got there.
    pub(crate) fn handle_stored(&mut self, now: Now, from: NodeId, stored: &Stored) {
        if self.origin() != Some(stored.origin) {
            return;
        }
        let held = self.streams.get(&stored.origin).map_or(0, Stream::held);
        if stored.received > held || stored.durable > stored.received {
            return self.misbehaved(from, "it has writes of this incarnation that were never made");
        }
        if !stored.not_last.is_sorted_by(|(one, _), (other, _)| one < other) {
            return self.misbehaved(from, "a list of writes that does not ascend");
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.confirms_up_to(stored.origin, stored.received);
            self.outdated |= stored.missing && peer.missed(stored.origin, stored.received);
        }
        let Some(index) = self.owners.index(from).filter(|_| stored.epoch == self.epoch) else { return };
        let first = stored.judged_from + 1;
        if self.taken(index).0 < stored.judged_from {
            self.set_taken(index, stored.judged_from, stored.judged_from);
        }
        let not_last: Vec<(u64, NotLast)> =
            stored.not_last.iter().copied().filter(|(sequence, _)| *sequence >= first).collect();
        self.count(now, index, stored.received, stored.durable, &not_last);
        for (sequence, why) in not_last {
            if let NotLast::Behind(newer) = why {
                self.write_again(now, sequence, newer);
            }
        }
        self.writing.trim();
    }

    fn taken(&mut self, index: u32) -> (u64, u64) {
        if self.writing.taken.is_empty() {
            self.writing.taken = vec![(0, 0); self.owners.len().into()];
        }
        self.writing.taken[index as usize]
    }

    fn set_taken(&mut self, index: u32, applied: u64, durable: u64) {
        self.writing.taken[index as usize] = (applied, durable);
    }

    /// An owner has applied own writes up to one point, and has them on disk up to another; those in the
    /// list do not count.
    fn count(&mut self, now: Now, index: u32, applied: u64, durable: u64, not_last: &[(u64, NotLast)]) {
        self.sampling.durable(now.mono, index, durable);
        let (old_applied, old_durable) = self.taken(index);
        let why = |sequence: u64| {
            let at = not_last.binary_search_by_key(&sequence, |(listed, _)| *listed).ok()?;
            Some(not_last[at].1)
        };
        let first = self.writing.first;
        for sequence in first.max(old_applied + 1)..=applied {
            let Some(Some(waiting)) = self.writing.get(sequence) else { continue };
            match why(sequence) {
                None => waiting.applied.insert(index),
                Some(NotLast::Superseded) => waiting.superseded.insert(index),
                Some(NotLast::Behind(_)) => {}
            }
        }
        for sequence in first.max(old_durable + 1)..=durable {
            if !matches!(why(sequence), Some(NotLast::Behind(_)))
                && let Some(Some(waiting)) = self.writing.get(sequence)
            {
                waiting.durable.insert(index);
            }
        }
        for sequence in first.max(old_applied.min(old_durable) + 1)..=applied.max(durable) {
            self.try_acknowledge(sequence);
        }
        self.set_taken(index, old_applied.max(applied), old_durable.max(durable));
        self.writing.trim();
    }

    /// An owner has something newer than a write that waits: the same is written once more, newer than that.
    fn write_again(&mut self, now: Now, sequence: u64, newer: HybridTimestamp) {
        if newer.0 > now.wall.0.saturating_add(self.config.timing.drift_max.as_nanos() as u64) {
            let ahead = Duration::from_nanos(newer.0 - now.wall.0);
            self.event(replikit_core::Event::ClockAhead { node: self.config.node, ahead });
        }
        self.clock.observe(newer);
        let (Standing::Writer(origin), false) = (&self.standing, self.failed) else { return };
        let origin = *origin;
        let Some(mut waiting) = self.writing.take(sequence) else { return };
        let Some(owned) = waiting.again.clone() else {
            // Only where the last write wins can one be behind.
            let reached = reached(&waiting);
            return self.done(waiting.token, Outcome::Indeterminate { reached });
        };
        if self.open.as_ref().is_some_and(|open| open.time <= newer) {
            self.close_batch();
        }
        let key = waiting.key.clone();
        self.begin_batch_for(now, origin, &key);
        let stamp = self.next_stamp(origin);
        let beyond = self.state.versions(&key).and_then(Versions::above).cloned();
        let record = Record { key: &key, change: owned.change(), keeps: Vec::new(), beyond };
        waiting.bytes = self.write_record(stamp, &record);
        (waiting.applied, waiting.superseded, waiting.durable, waiting.hinted) = Default::default();
        waiting.applied.insert(self.owners.me());
        self.writing.push(stamp.dot.sequence, Some(waiting));
        self.writing.restamped += 1;
        self.end_record();
    }

    /// Other owners count from now on. Where the last write wins, what waits is made again if they are those of another epoch:
    /// an owner may have compared a write before it had what it was to be compared with.
    pub(crate) fn count_writes_anew(&mut self, now: Now, moved: bool) {
        self.writing.trim();
        for sequence in self.writing.sequences() {
            let Some(Some(waiting)) = self.writing.get(sequence) else { continue };
            let need = self.owners.write_need(waiting.level).filter(|_| self.owners.is_owner());
            let Some(mut need) = need else {
                let waiting = self.writing.take(sequence).expect("it is there");
                let reached = reached(&waiting);
                self.done(waiting.token, Outcome::Indeterminate { reached });
                continue;
            };
            need.hints_count = waiting.need.hints_count;
            waiting.need = need;
            (waiting.applied, waiting.superseded, waiting.durable, waiting.hinted) = Default::default();
            waiting.applied.insert(self.owners.me());
            if moved && waiting.again.is_some() && self.owners.stays() {
                self.write_again(now, sequence, HybridTimestamp(0));
            }
        }
        self.close_batch();
        self.own_writes_are_durable(now);
    }

    pub(crate) fn expire_writes(&mut self, now: Time) {
        loop {
            self.writing.trim();
            let first = self.writing.first;
            let Some(Some(waiting)) = self.writing.waiting.front() else { return };
            if waiting.until > now {
                return;
            }
            let waiting = self.writing.take(first).expect("it is in front");
            let reached = reached(&waiting);
            self.done(waiting.token, Outcome::Indeterminate { reached });
        }
    }

    /// The storage failed: what waits for it may or may not be there later.
    pub(crate) fn fail_writes(&mut self) {
        self.open = None;
        let writing = core::mem::take(&mut self.writing);
        for waiting in writing.waiting.into_iter().flatten() {
            self.done(waiting.token, Outcome::Indeterminate { reached: Reached::default() });
        }
    }

    /// Everybody has answered and all that they hold has been applied: a new incarnation may take part.
    pub(crate) fn try_standing(&mut self) {
        let Standing::Asking { wanted, newest } = &self.standing else { return };
        let applied = self.state.base();
        if self.out || !self.has_heard(wanted) || !wanted.values().all(|wanted| applied.covers(wanted)) {
            return;
        }
        let incarnation = next_incarnation(self.register.incarnation, *newest);
        let Ok(origin) = (Origin { node: self.config.node, incarnation }).id() else { return };
        (self.register.incarnation, self.register.forgotten) = (incarnation.0, incarnation.0);
        self.standing = Standing::Writer(origin);
        let (group, bytes) = (self.config.group, self.register.encode());
        self.incarnated = self.persist(Persist::Register { group, bytes });
        self.owed.extend(self.members.keys().copied().collect::<Vec<NodeId>>());
        self.start_consensus();
        self.stands();
    }
}

fn reached(waiting: &Waiting) -> Reached {
    let hinted = waiting.hinted.owners();
    Reached {
        received: waiting.held().union(hinted).len(),
        durable: waiting.durable.union(hinted).len(),
        applied: waiting.held().len(),
    }
}

pub(crate) fn encode(effect: &WriteEffect) -> Bytes {
    match effect {
        // The common answer is a constant: no allocation for it.
        WriteEffect::Done => Bytes::from_static(&[0]),
        other => postcard::to_stdvec(other).expect("an effect always encodes").into(),
    }
}
