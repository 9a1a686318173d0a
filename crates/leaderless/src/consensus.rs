//! Keys that are compared and set: what goes between the replica and [`cas`](crate::cas).
//!
//! Invariants: what an acceptor has promised and accepted is in the stream of the own records, or in the snapshot that took
//! their place, before its answer leaves; a node that may have forgotten some of it has gathered it from all others before it
//! answers again. Plain requests never reach such a key, nor these a plain one.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::keyspace::encode_versions;
use replikit_core::{
    Batches, CausalContext, Epoch, Figure, Incarnation, KEY_BYTES_MAX, NodeId, Now, Origin, Outcome, Queue, Quorum,
    Reached, Rejection, Time, Token, WriteEffect, WriteId, WriteLevel, WriteOp,
};

use crate::cas::{
    Cas, CasConfig, CasImage, CasOp, CasOutput, CasRefusal, CasStats, Effect, End, Message, Record, RecordNumber,
    Standing as Acceptor, Start,
};
use crate::config::{Config, Keyspace};
use crate::levels::Set;
use crate::message::{CasGiven, CasWanted, Head};
use crate::reads::Reply;
use crate::record::Local;
use crate::replica::{Leaderless, Standing, position};

/// A request under way.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Change,
    Look {
        bytes_max: usize,
    },
    /// By this replica itself, so that the quorums of these epochs have what a key holds.
    Sweep {
        epoch: Epoch,
    },
}

/// Keys that are looked at at once, so that the quorums of several epochs have them.
const SWEPT_MAX: usize = 64;

/// Keys still to be looked at.
#[derive(Debug, Default)]
struct Sweep {
    /// Those up to this one have had their turn; `None` before the first.
    after: Option<Bytes>,
    /// Whether there are more.
    is_over: bool,
    under_way: BTreeMap<Token, Bytes>,
    again: Vec<Bytes>,
}

/// The part of a replica that agrees with others on the values of single keys.
#[derive(Debug)]
pub(crate) struct Consensus {
    cas: Cas,
    /// Whether it takes part: from when this replica has an incarnation until its storage fails.
    started: bool,
    asked: BTreeMap<Token, Asked>,
    /// Records that go into the log together, encoded, the last one's number, and their bytes.
    records: Vec<Vec<u8>>,
    recorded: RecordNumber,
    bytes: usize,
    /// Up to which record a storage action makes them durable.
    written: VecDeque<(WriteId, RecordNumber)>,
    /// Owners whose state is still missing here, with the last key that has come of it.
    missing: BTreeMap<NodeId, Option<Bytes>>,
    /// Those that have told all.
    told: Vec<NodeId>,
    sweep: Sweep,
    /// Questions of this replica itself so far.
    sweeps: u64,
}

impl Consensus {
    /// `config` is checked, and has these owners.
    pub(crate) fn new(config: &Config, epoch: Epoch, owners: &[NodeId]) -> Self {
        let cas = CasConfig {
            requests_max: config.limits.waiting_max,
            resend: config.timing.exchange,
            ..CasConfig::default()
        };
        // It proposes nothing under this name: the incarnation is known when it starts.
        let origin = Origin { node: config.node, incarnation: Incarnation(1) };
        let origin = origin.id().expect("checked with the configuration");
        // Where the owners are not known yet, it does not begin before they are.
        let owners = if owners.is_empty() { vec![config.node] } else { owners.to_vec() };
        let quorum = Quorum::majority(owners).expect("owners are some, each once");
        Self {
            cas: Cas::new(cas, origin, epoch, quorum).expect("an origin of a node"),
            started: false,
            asked: BTreeMap::new(),
            records: Vec::new(),
            recorded: RecordNumber::default(),
            bytes: 0,
            written: VecDeque::new(),
            missing: BTreeMap::new(),
            told: Vec::new(),
            sweep: Sweep::default(),
            sweeps: 0,
        }
    }

    pub(crate) fn recover(&mut self, record: &Record) {
        self.cas.recover(record);
    }

    pub(crate) fn image(&self) -> CasImage {
        self.cas.image()
    }

    pub(crate) const fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    pub(crate) const fn stats(&self) -> CasStats {
        self.cas.stats()
    }

    /// Whether nothing is known of any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.cas.sizes().keys == 0
    }

    /// Whether somebody waits for a change.
    pub(crate) fn waits(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Change))
    }

    /// What an operator is told.
    pub(crate) fn counts(&self) -> [Figure; 4] {
        let stats = self.cas.stats();
        [
            Figure::new("keys compared and set", self.cas.sizes().keys as u64),
            Figure::new("changes in one round trip", stats.one_trip),
            Figure::new("proposals refused for a higher one", stats.conflicts),
            Figure::new("owners yet to tell what was promised here", self.missing.len() as u64),
        ]
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        Some(self.cas.deadline()).filter(|at| self.started && *at < Time::NEVER)
    }
}

impl Leaderless {
    /// Whether it may have forgotten what it had promised of keys that are compared and set, and some owner has not told it
    /// yet: it is counted for none of them meanwhile.
    #[must_use]
    pub fn is_gathering(&self) -> bool {
        !self.consensus.missing.is_empty()
    }

    /// This replica takes part from now on, if it did not yet.
    pub(crate) fn start_consensus(&mut self) {
        let Standing::Writer(origin) = self.standing else { return };
        if self.consensus.started || self.failed || !self.config.keyspaces.iter().any(Keyspace::is_cas) {
            return;
        }
        let consensus = &mut self.consensus;
        consensus.started = true;
        consensus.cas.incarnate(origin);
        let forgetful = consensus.cas.life().0 < self.register.forgotten;
        consensus.cas.start(if forgetful { Start::Forgetful } else { Start::Whole });
        if consensus.cas.standing() == Acceptor::Joining {
            consensus.missing = self.owners.others().map(|node| (node, None)).collect();
            consensus.told.clear();
        }
        self.carry_out();
        self.gather();
    }

    /// A client wants a key changed.
    pub(crate) fn begin_change(
        &mut self,
        now: Now,
        token: Token,
        level: WriteLevel,
        key: Bytes,
        op: WriteOp,
        context: Option<&CausalContext>,
    ) -> Result<(), Rejection> {
        if !self.owners.is_majority_enough(level) {
            return Err(Rejection::Unreachable { level, replicas: self.owners.len() });
        }
        // What a client has read it names in a comparison here.
        if context.is_some_and(|context| !context.is_empty()) {
            return Err(Rejection::Unsupported);
        }
        let Some(op) = CasOp::of(op) else { return Err(Rejection::Unsupported) };
        let until = now.mono + self.config.timing.write;
        self.begin(now, token, Asked::Change, key, op, until)
    }

    /// A client wants to know a key.
    pub(crate) fn begin_look(&mut self, now: Now, token: Token, key: Bytes, bytes_max: usize) {
        let until = now.mono + self.config.timing.read;
        if let Err(rejection) = self.begin(now, token, Asked::Look { bytes_max }, key, CasOp::Read, until) {
            self.reject(token, rejection);
        }
    }

    fn begin(
        &mut self,
        now: Now,
        token: Token,
        asked: Asked,
        key: Bytes,
        op: CasOp,
        until: Time,
    ) -> Result<(), Rejection> {
        let queue = if op.is_read() { Queue::Reads } else { Queue::Acknowledgements };
        self.consensus.cas.begin(now.mono, token, key, op, until).map_err(|refusal| match refusal {
            CasRefusal::Busy { requests_max } => Rejection::Busy { queue, limit: requests_max as u64 },
            CasRefusal::Size { bytes: 0, .. } => Rejection::Malformed,
            CasRefusal::Size { bytes, bytes_max } => {
                Rejection::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 }
            }
        })?;
        self.consensus.asked.insert(token, asked);
        self.carry_out();
        Ok(())
    }

    /// A member says something about a key.
    pub(crate) fn handle_cas(&mut self, now: Now, from: NodeId, message: Message) {
        if let Message::Ask { key, .. } = &message
            && !self.is_agreed(key)
        {
            return self.misbehaved(from, "a question about a key that is not compared and set");
        }
        if self.consensus.started {
            self.consensus.cas.handle_message(now.mono, from, message);
            self.carry_out();
        }
    }

    fn is_agreed(&self, key: &[u8]) -> bool {
        (1..=KEY_BYTES_MAX).contains(&key.len()) && self.config.keyspaces.of(key).is_cas()
    }

    /// Asks those whose state is still missing, again if they did not answer.
    pub(crate) fn gather(&mut self) {
        if !self.consensus.started || self.consensus.cas.standing() != Acceptor::Joining {
            return;
        }
        if self.has_gathered() {
            self.consensus.missing.clear();
            self.consensus.cas.serve();
            return self.carry_out();
        }
        let missing: Vec<NodeId> = self.consensus.missing.keys().copied().collect();
        for node in missing {
            self.want(node);
        }
    }

    fn want(&mut self, node: NodeId) {
        // Before its life is on disk here, another life could get the same name.
        if self.incarnated > self.durable {
            return;
        }
        let Some(after) = self.consensus.missing.get(&node).cloned() else { return };
        let (epoch, life) = (self.epoch, self.consensus.cas.life());
        self.send(node, Head::CasWanted(CasWanted { epoch, life, after }), Batches::None);
    }

    /// A member that has forgotten what it had promised gathers that.
    pub(crate) fn handle_cas_wanted(&mut self, from: NodeId, wanted: &CasWanted) {
        let number = self.consensus.cas.admit(from, wanted.life);
        self.carry_out();
        self.write_records();
        // What it has is told once it is durable here that answers to the earlier life count no more.
        let covers = |(_, last): &&(WriteId, RecordNumber)| *last >= number;
        let after = self.consensus.written.iter().find(covers).map_or(WriteId(0), |(write, _)| *write);
        let (records, next) = self.consensus.cas.page(wanted.after.as_deref(), self.config.limits.snapshot_piece_bytes);
        let (epoch, life) = (self.epoch, wanted.life);
        let given = CasGiven { epoch, life, after: wanted.after.clone(), records, next };
        self.reply_after(after, Reply::Head(from, Head::CasGiven(Box::new(given))));
    }

    /// A member tells what it has promised and accepted.
    pub(crate) fn handle_cas_given(&mut self, from: NodeId, given: CasGiven) {
        let CasGiven { life, after, records, next, .. } = given;
        let cas = &mut self.consensus.cas;
        if !self.consensus.started || cas.standing() != Acceptor::Joining || cas.life() != life {
            return;
        }
        let Some(known) = self.consensus.missing.get_mut(&from).filter(|known| **known == after) else { return };
        if next.is_some() && next <= after {
            return self.misbehaved(from, "keys that do not ascend");
        }
        let is_done = next.is_none();
        *known = next;
        for record in &records {
            let key = match record {
                Record::Promised { key, .. } | Record::Entry { key, .. } => Some(key),
                _ => None,
            };
            if key.is_none_or(|key| self.is_agreed(key)) {
                self.consensus.cas.join(record);
            }
        }
        if is_done {
            self.consensus.missing.remove(&from);
            self.consensus.told.push(from);
        }
        if self.has_gathered() {
            self.consensus.missing.clear();
            self.consensus.cas.serve();
        }
        self.carry_out();
        if !is_done {
            self.want(from);
        }
    }

    /// Does what has to be done for the keys.
    fn carry_out(&mut self) {
        while let Some(output) = self.consensus.cas.poll_output() {
            match output {
                CasOutput::Persist { number, record } => {
                    let bytes = Local::Cas(record).encode();
                    self.consensus.recorded = number;
                    self.consensus.bytes += bytes.len();
                    self.consensus.records.push(bytes);
                    if self.consensus.bytes >= self.config.limits.batch_bytes_max {
                        self.write_records();
                    }
                }
                CasOutput::Send { to, message } => self.send(to, Head::Cas(Box::new(message)), Batches::None),
                CasOutput::Ended { token, end } => self.end_asked(token, end),
            }
        }
    }

    /// Puts the records into the log that have come together.
    pub(crate) fn write_records(&mut self) {
        if self.consensus.records.is_empty() {
            return;
        }
        let records = core::mem::take(&mut self.consensus.records);
        self.consensus.bytes = 0;
        let write = self.persist_locals(&records);
        let up_to = self.consensus.recorded;
        self.consensus.written.push_back((write, up_to));
        self.maybe_snapshot();
    }

    /// More is on disk here.
    pub(crate) fn records_are_durable(&mut self, now: Now) {
        let durable = self.durable;
        let mut up_to = None;
        while let Some((_, number)) = self.consensus.written.pop_front_if(|(write, _)| *write <= durable) {
            up_to = Some(number);
        }
        if let Some(number) = up_to.filter(|_| self.consensus.started) {
            self.consensus.cas.handle_durable(now.mono, number);
            self.carry_out();
        }
    }

    /// Requests that have waited too long end, questions are asked again.
    pub(crate) fn expire_changes(&mut self, now: Now) {
        if self.consensus.deadline().is_some_and(|at| at <= now.mono) {
            self.consensus.cas.handle_time(now.mono);
            self.carry_out();
        }
    }

    fn end_asked(&mut self, token: Token, end: End) {
        let Some(asked) = self.consensus.asked.remove(&token) else { return };
        let outcome = match (end, asked) {
            (End::Done { effect: Effect::Wrote(effect), reached, .. }, _) => self.changed(&effect, reached),
            (End::Done { effect: Effect::Read(value), .. }, Asked::Look { bytes_max }) => looked(value, bytes_max),
            (End::Done { effect: Effect::Read(value), .. }, Asked::Change) => looked(value, usize::MAX),
            (end, Asked::Sweep { epoch }) => return self.swept(token, epoch, matches!(end, End::Done { .. })),
            (End::Indeterminate, Asked::Change) => Outcome::Indeterminate { reached: Reached::default() },
            (End::TimedOut, _) | (End::Indeterminate, Asked::Look { .. }) => Outcome::Rejected(Rejection::NoQuorum),
        };
        self.done(token, outcome);
    }

    fn changed(&self, effect: &WriteEffect, members: u8) -> Outcome {
        // It stands in no log of writes: a session that has seen it need not wait for anything.
        let at = position(self.stream_id(self.origin().unwrap_or(replikit_core::OriginId::LOCAL)), 0);
        let reached = Reached { received: members, durable: members, applied: members };
        Outcome::Acked { at, reached, strict: true, reply: crate::coordinate::encode(effect) }
    }

    /// Whether so many have told that nothing is missing that this replica may have forgotten.
    fn has_gathered(&self) -> bool {
        let Consensus { missing, told, .. } = &self.consensus;
        let Some(settled) = self.owners.settled().filter(|_| self.is_new_owner()) else { return missing.is_empty() };
        let told =
            told.iter().filter_map(|node| self.owners.index(*node)).filter(|index| settled.set().contains(*index));
        told.count() >= settled.blocking().into()
    }

    /// Other epochs are in force: majorities of each of them agree from now on.
    pub(crate) fn count_consensus(&mut self, now: Now) {
        let of = |set: Set| (0..self.owners.len()).map(u32::from).filter(move |index| set.contains(*index));
        let sets = self.owners.voters().iter();
        let sets = sets.map(|voters| of(voters.set()).map(|index| self.owners.node(index)).collect());
        let Ok(quorum) = Quorum::every(sets.collect()) else { return };
        let (owners, consensus) = (&self.owners, &mut self.consensus);
        consensus.missing.retain(|node, _| owners.index(*node).is_some());
        if consensus.cas.standing() == Acceptor::Joining && consensus.started {
            for node in owners.others().filter(|node| !consensus.told.contains(node)) {
                consensus.missing.entry(node).or_insert(None);
            }
        }
        consensus.sweep = Sweep::default();
        if !self.owners.is_owner() {
            self.give_up_asked();
        }
        self.consensus.cas.reconfigure(now.mono, self.epoch, quorum);
        self.carry_out();
        self.gather();
    }

    /// This node owns nothing any more: what was asked of it ends.
    pub(crate) fn give_up_asked(&mut self) {
        for (token, asked) in core::mem::take(&mut self.consensus.asked) {
            match asked {
                Asked::Sweep { .. } => {}
                Asked::Change => self.done(token, Outcome::Indeterminate { reached: Reached::default() }),
                Asked::Look { .. } => self.reject(token, Rejection::NoQuorum),
            }
        }
    }

    /// While quorums of several epochs are needed: looks at every key that has been compared and set here, so that those of the
    /// newest have it.
    pub(crate) fn sweep(&mut self, now: Now) {
        if !self.ownership.is_joint() || self.moving.swept || !self.owners.is_owner() {
            return;
        }
        if !self.config.keyspaces.iter().any(Keyspace::is_cas) {
            self.moving.swept = true;
            return;
        }
        if !self.consensus.started || self.consensus.cas.standing() != Acceptor::Serving {
            return;
        }
        // Nobody waits for it: long enough to ask again, however little time a client's read has.
        let until = now.mono + self.config.timing.read + self.config.timing.exchange * 4;
        while self.consensus.sweep.under_way.len() < SWEPT_MAX {
            let sweep = &mut self.consensus.sweep;
            if sweep.again.is_empty() && !sweep.is_over {
                sweep.again = self.consensus.cas.keys_behind(sweep.after.as_ref(), SWEPT_MAX);
                sweep.is_over = sweep.again.is_empty();
                sweep.after = sweep.again.last().cloned().or(sweep.after.take());
            }
            let Some(key) = sweep.again.pop() else { break };
            self.consensus.sweeps += 1;
            // Clients' tokens are counted from the other end.
            let token = Token(u64::MAX - self.consensus.sweeps);
            self.consensus.sweep.under_way.insert(token, key.clone());
            let asked = Asked::Sweep { epoch: self.epoch };
            if self.begin(now, token, asked, key.clone(), CasOp::Read, until).is_err() {
                self.consensus.sweep.under_way.remove(&token);
                self.consensus.sweep.again.push(key);
                break;
            }
        }
        self.end_sweep();
    }

    fn swept(&mut self, token: Token, epoch: Epoch, is_done: bool) {
        if epoch != self.epoch {
            return;
        }
        let Some(key) = self.consensus.sweep.under_way.remove(&token) else { return };
        if !is_done {
            self.consensus.sweep.again.push(key);
        }
        if self.consensus.sweep.under_way.is_empty() {
            self.next_exchange = Time::ZERO;
        }
        self.end_sweep();
    }

    fn end_sweep(&mut self) {
        let sweep = &self.consensus.sweep;
        if sweep.is_over && sweep.again.is_empty() && sweep.under_way.is_empty() && !self.moving.swept {
            self.moving.swept = true;
            self.owed.extend(self.members.keys().copied());
        }
    }

    /// The storage failed: what was asked may have been proposed.
    pub(crate) fn fail_consensus(&mut self) {
        self.consensus.started = false;
        self.consensus.records.clear();
        for (token, asked) in core::mem::take(&mut self.consensus.asked) {
            match asked {
                Asked::Sweep { .. } => {}
                Asked::Change => self.done(token, Outcome::Indeterminate { reached: Reached::default() }),
                Asked::Look { .. } => self.reject(token, Rejection::StorageFailed),
            }
        }
    }
}

fn looked(value: Option<Bytes>, bytes_max: usize) -> Outcome {
    let bytes = value.as_ref().map_or(0, |value| value.len() + 8);
    if bytes > bytes_max {
        return Outcome::Rejected(Rejection::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 });
    }
    let values = vec![encode_versions(value.as_slice(), &CausalContext::new())];
    Outcome::Value { values, seen: None, strict: true, staleness: Some(core::time::Duration::ZERO) }
}
