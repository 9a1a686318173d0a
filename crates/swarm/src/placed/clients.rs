//! Clients of a store whose groups move: each with a map that goes stale, and one request at a time. The registers are one client's
//! each, so that it knows what a read may show; the sets are everybody's. In multi-leader groups a read shows what its node has: there,
//! clients add to sets and counters, at the level of one disk or of a majority, and look at the end.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::crdt::CrdtOp;
use replikit_core::keyspace::{decode_versions, encode_get, encode_write};
use replikit_core::{Input, NodeId, Outcome, Owners, ReadLevel, Rejection, Time, Token, WriteLevel, WriteRequest};
use replikit_partitioning::PartitionMap;
use replikit_sim::Clients;

use super::Style;
use crate::probe::{Probe, Probes};

/// Registers of each client, and sets of all.
const REGISTERS: u32 = 3;
const SETS: u32 = 3;

#[derive(Clone, Debug)]
enum Want {
    /// Of nothing: a delete.
    Put {
        key: Bytes,
        value: Option<u64>,
    },
    Add {
        key: Bytes,
        element: u64,
    },
    Count {
        key: Bytes,
        amount: u64,
    },
    /// With what had been acknowledged of a set when it was asked.
    Get {
        key: Bytes,
        added: BTreeSet<u64>,
    },
}

impl Want {
    const fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Add { key, .. } | Self::Count { key, .. } | Self::Get { key, .. } => key,
        }
    }
}

/// What is known of a register.
#[derive(Debug, Default)]
struct Known {
    /// The last write that was acknowledged; nothing for a delete, as for none.
    acked: Option<u64>,
    /// Writes of which nobody knows whether they are there: they may be shown at any time.
    open: BTreeSet<Option<u64>>,
}

/// What is known of a counter: what was added for certain, and what perhaps.
#[derive(Debug, Default)]
struct Counted {
    acked: u64,
    open: u64,
}

#[derive(Debug)]
struct Pending {
    token: Token,
    want: Want,
    group: replikit_core::GroupId,
    gives_up_at: Time,
}

#[derive(Debug)]
struct Client {
    map: Arc<PartitionMap>,
    pending: Option<Pending>,
    /// Whom it was sent to.
    sent_on: Option<NodeId>,
    due: Time,
}

/// All clients.
#[derive(Debug)]
pub(crate) struct PlacedClients {
    clients: Vec<Client>,
    think: Duration,
    timeout: Duration,
    asked: BTreeMap<Token, u32>,
    registers: BTreeMap<Bytes, Known>,
    added: BTreeMap<Bytes, BTreeSet<u64>>,
    counted: BTreeMap<Bytes, Counted>,
    style: Style,
    unique: u64,
    answers: (usize, usize),
    stopped: bool,
    // At the end: keys that nobody has looked at yet.
    unseen: Vec<Bytes>,
    looks: bool,
}

impl PlacedClients {
    pub(crate) fn new(map: Arc<PartitionMap>, style: Style, count: u32, think: Duration, timeout: Duration) -> Self {
        let client = || Client { map: Arc::clone(&map), pending: None, sent_on: None, due: Time::ZERO };
        Self {
            clients: (0..count).map(|_| client()).collect(),
            think,
            timeout,
            asked: BTreeMap::new(),
            registers: BTreeMap::new(),
            added: BTreeMap::new(),
            counted: BTreeMap::new(),
            style,
            unique: 0,
            answers: (0, 0),
            stopped: false,
            unseen: Vec::new(),
            looks: false,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.clients.len() as u32
    }

    /// Writes and reads answered.
    pub(crate) const fn answered(&self) -> (usize, usize) {
        self.answers
    }

    pub(crate) const fn answered_all(&self) -> usize {
        self.answers.0 + self.answers.1
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    pub(crate) fn describe(&self) -> String {
        let open: Vec<_> = self.clients.iter().filter_map(|client| client.pending.as_ref()).collect();
        format!("{:?} answers, open {open:?}", self.answers)
    }

    pub(crate) fn start<H>(&self, hands: &mut Clients<H>) {
        for client in 0..self.count() {
            let after = self.pause(hands);
            hands.alarm(client + 1, after);
        }
    }

    /// Every key is read once more, by whoever is free.
    pub(crate) fn look_at_all<H>(&mut self, hands: &mut Clients<H>) {
        let keys = self.registers.keys().chain(self.added.keys()).chain(self.counted.keys());
        self.unseen = keys.cloned().collect();
        (self.looks, self.stopped) = (true, false);
        for client in 1..=self.count() {
            hands.alarm(client, Duration::ZERO);
        }
    }

    pub(crate) fn has_seen_all(&self) -> bool {
        self.unseen.is_empty() && self.is_idle()
    }

    fn pause<H>(&self, hands: &mut Clients<H>) -> Duration {
        Duration::from_nanos(hands.rng.u64(0..=self.think.as_nanos() as u64))
    }

    fn want<H>(&mut self, client: u32, hands: &mut Clients<H>) -> Option<Want> {
        if self.looks {
            let key = self.unseen.pop()?;
            return Some(self.get(key));
        }
        let register = Bytes::from(format!("lww/{client}/{}", hands.rng.u32(0..REGISTERS)));
        let set = Bytes::from(format!("set/{}", hands.rng.u32(0..SETS)));
        self.unique += 1;
        if self.style == Style::Leaders {
            let counter = Bytes::from(format!("count/{}", hands.rng.u32(0..SETS)));
            return Some(match hands.rng.u8(0..10) {
                0..=4 => Want::Add { key: set, element: self.unique },
                5..=7 => Want::Count { key: counter, amount: hands.rng.u64(1..1_000) },
                8 => self.get(counter),
                _ => self.get(set),
            });
        }
        Some(match hands.rng.u8(0..10) {
            0 => Want::Put { key: register, value: None },
            1..=3 => Want::Put { key: register, value: Some(self.unique) },
            4..=5 => Want::Add { key: set, element: self.unique },
            6..=8 => self.get(register),
            _ => self.get(set),
        })
    }

    fn get(&self, key: Bytes) -> Want {
        let added = self.added.get(&key).cloned().unwrap_or_default();
        Want::Get { key, added }
    }

    /// A client asks, or gives up what it waits for.
    pub(crate) fn on_alarm<H>(
        &mut self,
        number: u32,
        newest: &Arc<PartitionMap>,
        hands: &mut Clients<H>,
        probes: &mut Probes,
    ) {
        let client = &mut self.clients[number as usize - 1];
        if hands.now < client.due {
            return;
        }
        if let Some(pending) = &client.pending {
            if hands.now < pending.gives_up_at {
                return;
            }
            let pending = client.pending.take().expect("looked at just now");
            // Who does not answer may not be an owner any more.
            client.map = Arc::clone(newest);
            self.asked.remove(&pending.token);
            self.is_open(pending.want, probes);
        }
        if self.stopped {
            return;
        }
        let Some(want) = self.want(number, hands) else { return };
        if self.looks && self.style == Style::Leaders {
            // A node that has not heard that it is none of the group's any more shows what it had, as any local read may.
            self.clients[number as usize - 1].map = Arc::clone(newest);
        }
        self.ask(number, want, hands);
    }

    fn ask<H>(&mut self, number: u32, want: Want, hands: &mut Clients<H>) {
        let client = &mut self.clients[number as usize - 1];
        let partition = client.map.partition_of(want.key());
        let of_map = || partition.replicas[hands.rng.usize(0..partition.replicas.len())];
        let node = client.sent_on.take().unwrap_or_else(of_map);
        let group = partition.group;
        let level = match self.style {
            Style::Leaders if hands.rng.bool() => WriteLevel::LeaderDisk,
            _ => WriteLevel::Quorum,
        };
        let reads = match self.style {
            Style::Quorums => ReadLevel::Owners(Owners::Quorum),
            Style::Leaders => ReadLevel::Local,
        };
        let token = hands.request(node, |token| match &want {
            Want::Put { key, value } => {
                let write = match value {
                    Some(value) => WriteRequest::put(key.clone(), value.to_string()),
                    None => WriteRequest::delete(key.clone()),
                };
                let body = encode_write(&write.at(level)).expect("it is small");
                Input::Command { token, group, level, session: None, body }
            }
            Want::Add { element, .. } => {
                let insert = CrdtOp::Insert { element: element.to_string().into() };
                let body = encode_write(&WriteRequest::crdt(want.key().clone(), insert).at(level));
                Input::Command { token, group, level, session: None, body: body.expect("it is small") }
            }
            Want::Count { amount, .. } => {
                let add = WriteRequest::add(want.key().clone(), *amount as i64).at(level);
                let body = encode_write(&add).expect("it is small");
                Input::Command { token, group, level, session: None, body }
            }
            Want::Get { key, .. } => {
                let body = encode_get(key).expect("it is small");
                Input::Query { token, group, level: reads, body, bytes_max: 1 << 20 }
            }
        });
        self.asked.insert(token, number);
        let gives_up_at = hands.now + self.timeout;
        let client = &mut self.clients[number as usize - 1];
        client.due = gives_up_at;
        client.pending = Some(Pending { token, want, group, gives_up_at });
        hands.alarm(number, self.timeout);
    }

    /// Nobody knows what has become of a request.
    fn is_open(&mut self, want: Want, probes: &mut Probes) {
        match want {
            Want::Put { key, value } => {
                probes.hit(Probe::Indeterminate);
                self.registers.entry(key).or_default().open.insert(value);
            }
            Want::Count { key, amount } => self.counted.entry(key).or_default().open += amount,
            Want::Get { key, .. } if self.looks => self.unseen.push(key),
            Want::Add { .. } | Want::Get { .. } => {}
        }
    }

    /// A request has ended.
    ///
    /// # Errors
    /// When what it shows cannot be.
    pub(crate) fn on_done<H>(
        &mut self,
        token: Token,
        outcome: &Outcome,
        newest: &Arc<PartitionMap>,
        hands: &mut Clients<H>,
        probes: &mut Probes,
    ) -> Result<(), String> {
        let Some(number) = self.asked.remove(&token) else { return Ok(()) };
        let client = &mut self.clients[number as usize - 1];
        let Some(Pending { want, group, .. }) = client.pending.take() else { return Ok(()) };
        let mut after = self.pause(hands);
        let client = &mut self.clients[number as usize - 1];
        let is_stale = client.map.epoch() < newest.epoch();
        match outcome {
            Outcome::Acked { .. } => {
                self.answers.0 += 1;
                match want {
                    Want::Put { key, value } => self.registers.entry(key).or_default().acked = value,
                    Want::Add { key, element } => _ = self.added.entry(key).or_default().insert(element),
                    Want::Count { key, amount } => self.counted.entry(key).or_default().acked += amount,
                    Want::Get { .. } => return Err("placed_reads_are_current: a read was acknowledged".to_owned()),
                }
            }
            Outcome::Value { values, strict, .. } => {
                self.answers.1 += 1;
                if !strict && self.style == Style::Quorums {
                    return Err(format!("placed_reads_are_current: a quorum read of {want:?} is not strict"));
                }
                let value = values.first().ok_or("placed_reads_are_current: an answer without content")?;
                self.check(&want, value, group)?;
            }
            Outcome::Rejected(rejection) => {
                if is_stale {
                    probes.hit(Probe::PlacedRouteMended);
                }
                // A refusal brings the newest map, or sends on, or both.
                if matches!(rejection, Rejection::StaleRoute { .. }) || hands.rng.bool() {
                    client.map = Arc::clone(newest);
                }
                if let Rejection::NotLeader { leader: Some(node) } = rejection {
                    client.sent_on = Some(*node);
                    probes.hit(Probe::SentOnByFormerOwner);
                }
                if let Want::Get { key, .. } = want
                    && self.looks
                {
                    self.unseen.push(key);
                    after += Duration::from_millis(10);
                }
            }
            _ => self.is_open(want, probes),
        }
        self.clients[number as usize - 1].due = hands.now + after;
        hands.alarm(number, after);
        Ok(())
    }

    fn check(&self, want: &Want, answer: &Bytes, group: replikit_core::GroupId) -> Result<(), String> {
        let Want::Get { key, added } = want else {
            return Err(format!("placed_reads_are_current: {want:?} was answered"));
        };
        let found = decode_versions(answer).map_err(|error| format!("placed_reads_are_current: {error}"))?;
        let number = |value: &Bytes| core::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
        if self.style == Style::Leaders && !self.looks {
            return Ok(());
        }
        if key.starts_with(b"count/") {
            let Some(Counted { acked, open }) = self.counted.get(key) else { return Ok(()) };
            let shown = found.values.first().and_then(number).unwrap_or(0);
            return match (*acked..=acked + open).contains(&shown) {
                true => Ok(()),
                false => Err(format!(
                    "placed_leaders_keep_everything: {key:?} of group {group} shows {shown}, not {acked} and up to {open} more"
                )),
            };
        }
        if key.starts_with(b"set/") {
            let elements: BTreeSet<u64> = found.values.iter().filter_map(number).collect();
            let lost: Vec<_> = added.difference(&elements).collect();
            return match lost.is_empty() {
                true => Ok(()),
                false => Err(format!("{}: {key:?} of group {group} lacks {lost:?}", self.style.keeps())),
            };
        }
        let Some(known) = self.registers.get(key) else { return Ok(()) };
        let shown = found.values.first().and_then(number);
        let may_be = shown == known.acked || known.open.contains(&shown);
        match may_be {
            true => Ok(()),
            false => Err(format!("placed_reads_are_current: {key:?} of group {group} shows {shown:?}, not {known:?}")),
        }
    }
}
