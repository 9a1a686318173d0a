//! Clients of the keys that are compared and set: each has one request after the other, at whichever node, and what all of
//! them saw must be linearizable, key by key.
//!
//! Values are unique. A client that has given up, or was told that the outcome is not known, leaves a request behind that may
//! take effect at any later time, or never.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::keyspace::{decode_effect, decode_versions, encode_get, encode_write};
use replikit_core::{
    GroupId, Input, NodeId, Outcome, Owners, ReadLevel, Time, Token, WriteEffect, WriteLevel, WriteOp, WriteRequest,
};
use replikit_sim::Clients;
use replikit_sim::check::{Ended, History, OperationId, Unproven, What, check_history};

use crate::probe::{Probe, Probes};

/// What their keys begin with.
pub(crate) const PREFIX: &str = "cas/";
/// Alarms from this one on are theirs; the first one begins.
pub(crate) const FIRST_ALARM: u32 = 1 << 20;
/// Most requests of one run: what a search for an order is to be done with.
const REQUESTS_MAX: usize = 400;
/// Requests that wait for the healing.
const RESERVED: usize = 60;
/// A client gives up after so long, once all is well again: longer than any node does.
const PATIENCE: Duration = Duration::from_secs(2);
/// Work of that search.
const STEPS_MAX: u64 = 300_000;

/// How they behave.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    pub(crate) clients: u32,
    pub(crate) keys: u32,
    /// How often a client turns to another node than its own.
    pub(crate) roam_per_mille: u16,
    pub(crate) think_max: Duration,
    pub(crate) timeout: Duration,
}

impl Habits {
    pub(crate) fn draw(rng: &mut Rng, timeout: Duration) -> Self {
        Self {
            clients: rng.u32(1..=5),
            keys: rng.u32(1..=4),
            roam_per_mille: if rng.bool() { rng.u16(0..1000) } else { 0 },
            think_max: Duration::from_micros(rng.u64(500..40_000)),
            timeout,
        }
    }
}

#[derive(Debug, Default)]
struct Client {
    busy: Option<Token>,
    due: Time,
    /// How many nodes it has left, because they did not answer, since the faults ended.
    left: usize,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Comparers {
    habits: Habits,
    group: GroupId,
    /// Those that they turn to.
    places: Vec<NodeId>,
    clients: Vec<Client>,
    open: BTreeMap<Token, (u32, OperationId)>,
    history: History,
    /// Values that keys were seen to have, the newest last.
    seen: BTreeMap<Bytes, Vec<Option<Bytes>>>,
    values: u64,
    /// Requests that took effect, or may have.
    requests: usize,
    requests_max: usize,
    stopped: bool,
    /// Whether the faults have ended.
    healed: bool,
    /// Requests that took effect or were answered.
    pub(crate) done: usize,
}

impl Comparers {
    pub(crate) fn new(habits: Habits, group: GroupId, nodes: u32) -> Self {
        Self {
            clients: (0..habits.clients).map(|_| Client::default()).collect(),
            habits,
            group,
            places: (1..=nodes).map(NodeId).collect(),
            open: BTreeMap::new(),
            history: History::new(),
            seen: BTreeMap::new(),
            values: 0,
            requests: 0,
            requests_max: REQUESTS_MAX - RESERVED,
            stopped: false,
            healed: false,
            done: 0,
        }
    }

    /// From now on all is well again, but for these nodes.
    pub(crate) fn go_on(&mut self, dead: &[NodeId]) {
        self.places.retain(|node| !dead.contains(node));
        self.healed = true;
        self.requests_max = self.requests + RESERVED;
        self.habits.timeout = self.habits.timeout.max(PATIENCE);
    }

    /// From now on clients turn to these nodes only.
    pub(crate) fn turn_to(&mut self, nodes: &[NodeId]) {
        self.places.retain(|node| nodes.contains(node));
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn begin<H>(&mut self, clients: &mut Clients<H>) {
        for client in 0..self.habits.clients {
            self.think(client, clients);
        }
    }

    fn think<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let after = Duration::from_micros(clients.rng.u64(0..=self.habits.think_max.as_micros() as u64));
        self.alarm(client, after, clients);
    }

    fn alarm<H>(&mut self, client: u32, after: Duration, clients: &mut Clients<H>) {
        self.clients[client as usize].due = clients.now + after;
        clients.alarm(FIRST_ALARM + client, after);
    }

    pub(crate) fn on_alarm<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        if clients.now < self.clients[client as usize].due {
            return;
        }
        if let Some(token) = self.clients[client as usize].busy.take() {
            // It gives up; what became of the request it will never know.
            self.open.remove(&token);
            // Whose node is gone for good turns to another one.
            self.clients[client as usize].left += usize::from(self.healed);
        }
        if self.stopped {
            return;
        }
        if self.requests < self.requests_max {
            self.ask(client, clients);
        } else {
            // Until all is well again.
            self.alarm(client, Duration::from_millis(20), clients);
        }
    }

    fn ask<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let rng = &mut clients.rng;
        let roams = rng.u16(0..1000) < self.habits.roam_per_mille;
        let home = client as usize + self.clients[client as usize].left;
        let place = if roams { rng.usize(0..self.places.len()) } else { home % self.places.len() };
        let node = self.places[place];
        let nth = rng.u32(0..self.habits.keys);
        let key = Bytes::from(format!("{PREFIX}{nth}"));
        self.values += 1;
        let value = Bytes::from(format!("v{}", self.values));
        // Counters are keys of their own: sums are not unique.
        let what = match (nth, rng.u8(0..10)) {
            (_, 0..4) => What::Read,
            (3, by) => What::Add(i64::from(by)),
            (_, 4..6) => What::Write(value),
            (_, 6) => What::Delete,
            (_, 7) => What::CompareAndSet { expected: None, new: Some(value) },
            _ => {
                let seen = self.seen.get(&key).map_or(&[][..], |seen| &seen[seen.len().saturating_sub(2)..]);
                let expected = if seen.is_empty() { None } else { seen[rng.usize(0..seen.len())].clone() };
                What::CompareAndSet { expected, new: (rng.u8(0..8) > 0).then_some(value) }
            }
        };
        let levels = [WriteLevel::Quorum, WriteLevel::Memory, WriteLevel::LeaderDisk, WriteLevel::Owners(Owners::One)];
        let (level, read) = match rng.u8(0..8) {
            nth @ 0..4 => (levels[nth as usize], ReadLevel::Local),
            _ => (WriteLevel::Quorum, ReadLevel::Linearizable),
        };
        let op = match &what {
            What::Read => None,
            What::Write(value) => Some(WriteOp::Put { value: value.clone() }),
            What::Delete => Some(WriteOp::Delete),
            What::Add(delta) => Some(WriteOp::Add { delta: *delta }),
            What::CompareAndSet { expected, new } => {
                Some(WriteOp::CompareAndSet { expected: expected.clone(), new: new.clone() })
            }
        };
        let group = self.group;
        let token = clients.request(node, |token| match op {
            None => {
                let body = encode_get(&key).expect("keys are small");
                Input::Query { token, group, level: read, body, bytes_max: 1 << 20 }
            }
            Some(op) => {
                let write = WriteRequest { op, ..WriteRequest::delete(key.clone()) };
                let body = encode_write(&write).expect("keys and values are small");
                Input::Command { token, group, level, session: None, body }
            }
        });
        self.requests += 1;
        let call = self.history.begin(clients.now, key, what);
        self.open.insert(token, (client, call));
        self.clients[client as usize].busy = Some(token);
        self.alarm(client, self.habits.timeout, clients);
    }

    /// A request has ended; `None` if it is not one of theirs.
    pub(crate) fn on_done<H>(
        &mut self,
        token: Token,
        outcome: &Outcome,
        probes: &mut Probes,
        clients: &mut Clients<H>,
    ) -> Option<Result<(), String>> {
        let (client, call) = self.open.remove(&token)?;
        self.clients[client as usize].busy = None;
        self.think(client, clients);
        let ended = match self.ended(call, outcome, clients.now) {
            Ok(ended) => ended,
            Err(what) => return Some(Err(what)),
        };
        match &ended {
            Ended::Applied { effect: WriteEffect::Mismatch { .. }, .. } => probes.hit(Probe::CompareMismatched),
            Ended::Applied { effect: WriteEffect::Counter { .. }, .. } => probes.hit(Probe::CounterAdded),
            Ended::Void => self.requests -= 1,
            Ended::Unknown => probes.hit(Probe::Indeterminate),
            _ => {}
        }
        self.history.end(call, ended);
        Some(Ok(()))
    }

    fn ended(&mut self, call: OperationId, outcome: &Outcome, at: Time) -> Result<Ended, String> {
        let operation = self.history.operation(call);
        Ok(match outcome {
            Outcome::Acked { reply, strict: true, .. } if !operation.is_read() => {
                let effect = decode_effect(reply).map_err(|error| format!("linearizable: {error}"))?;
                self.done += 1;
                Ended::Applied { at, effect }
            }
            Outcome::Value { values, strict: true, .. } if operation.is_read() => {
                let found = values.first().map(decode_versions);
                let found = found.ok_or("linearizable: an answer without content")?;
                let mut values = found.map_err(|error| format!("linearizable: {error}"))?.values;
                if values.len() > 1 {
                    return Err(format!("linearizable: {:?} has several values: {values:?}", operation.key));
                }
                let value = values.pop();
                self.seen.entry(operation.key.clone()).or_default().push(value.clone());
                self.done += 1;
                Ended::Found { at, value }
            }
            Outcome::Rejected(_) => Ended::Void,
            Outcome::Indeterminate { .. } if !operation.is_read() => Ended::Unknown,
            other => return Err(format!("linearizable: {:?} ended as {other:?}", operation.what)),
        })
    }

    /// Every key is linearizable, or there is too much in doubt to find an order.
    pub(crate) fn check(&self) -> Result<(), String> {
        match check_history(&self.history, STEPS_MAX) {
            Ok(_) | Err(Unproven::Undecided { .. }) => Ok(()),
            Err(wrong) => {
                let story: Vec<String> = self.history.operations().iter().map(|call| format!("{call:?}")).collect();
                Err(format!("linearizable: {wrong}: {}", story.join("\n")))
            }
        }
    }
}
