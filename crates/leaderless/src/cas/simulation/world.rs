//! The world of the simulation: members with disks, the network between them, clients, and one change of members.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{Epoch, Incarnation, NodeId, Origin, Quorum, Time, Token};
use replikit_sim::check::{Ended, History, OperationId, What};
use serde::{Deserialize, Serialize};

use super::super::*;

pub(super) const KEYS: [&str; 3] = ["a", "b", "sum"];

/// What members send to each other here: besides the protocol, the copying of state, which is the replica's in earnest.
#[derive(Serialize, Deserialize)]
enum Wire {
    Cas(Message),
    Join { life: Life },
    Give { life: Life, records: Vec<Record> },
}

enum Event {
    Deliver { to: NodeId, from: NodeId, bytes: Vec<u8> },
    Synced { node: NodeId, boot: u32, number: RecordNumber },
    Timer { node: NodeId, boot: u32 },
    Join { node: NodeId, boot: u32 },
    Client(usize),
    Crash { node: NodeId, loses_disk: bool },
    Boot(NodeId),
    Epoch { node: NodeId, epoch: Epoch },
}

#[derive(Default)]
pub(super) struct Member {
    pub(super) cas: Option<Cas>,
    boot: u32,
    incarnation: u32,
    /// Survives crashes up to `durable`.
    disk: Vec<Record>,
    durable: usize,
    /// Records on disk when this process began.
    base: usize,
    lost: bool,
    /// Whose state is still missing.
    missing: BTreeSet<NodeId>,
    /// Who gets the state once a record is durable.
    giving: Vec<(RecordNumber, NodeId, Life)>,
    epoch: Epoch,
    pub(super) calls: BTreeMap<Token, (usize, OperationId)>,
}

impl Member {
    /// Whether it has all that it ever held, and will after a crash.
    fn is_whole(&self) -> bool {
        let standing = self.disk[..self.durable].iter().rev().find_map(|record| match record {
            Record::Serving { .. } => Some(true),
            Record::Joining { .. } => Some(false),
            _ => None,
        });
        // A founding member that has not begun to serve has not promised anything either.
        !self.lost && standing.unwrap_or(true)
    }
}

struct Client {
    left: u32,
    waiting: bool,
}

pub(super) struct Faults {
    pub(super) loss: f64,
    doubled: f64,
    pub(super) slow: f64,
    crashes: u32,
    losses: u32,
    /// Longest time of most disk writes, and of being down, in microseconds.
    sync: u64,
    outage: u64,
    changes_members: bool,
}

pub(super) struct World {
    pub(super) random: Rng,
    pub(super) now: Time,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    pub(super) members: BTreeMap<NodeId, Member>,
    quorums: BTreeMap<Epoch, Quorum>,
    config: CasConfig,
    pub(super) faults: Faults,
    clients: Vec<Client>,
    pub(super) history: History,
    latest: BTreeMap<&'static str, Vec<Option<Bytes>>>,
    pub(super) values: u32,
    keys: usize,
    ballots: BTreeMap<(Bytes, Ballot), Register>,
    pub(super) ended: [u64; 3],
}

pub(super) fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let changes_members = random.u8(..) < 50;
        let n = if changes_members || random.u8(..) < 170 { 3 } else { 5 };
        let all = (1..=n).map(NodeId);
        let mut quorums = BTreeMap::from([(Epoch(1), Quorum::majority(all.clone().collect()).unwrap())]);
        let mut nodes: Vec<NodeId> = all.collect();
        if changes_members {
            let new: Vec<NodeId> = (2..=n + 1).map(NodeId).collect();
            quorums.insert(Epoch(2), Quorum::joint(nodes.clone(), new.clone()).unwrap());
            quorums.insert(Epoch(3), Quorum::majority(new).unwrap());
            nodes.push(NodeId(n + 1));
        }
        let keys = random.usize(1..=KEYS.len());
        let pick = |random: &mut Rng, of: &[f64]| of[random.usize(..of.len())];
        let faults = Faults {
            loss: pick(&mut random, &[0.0, 0.02, 0.1, 0.3]),
            doubled: pick(&mut random, &[0.0, 0.05, 0.3]),
            slow: pick(&mut random, &[0.0, 0.05, 0.3]),
            crashes: [0, 2, 5, 20][random.usize(..4)],
            losses: random.u32(..3),
            sync: [100, 600, 4_000][random.usize(..3)],
            outage: [1_500, 15_000][random.usize(..2)],
            changes_members,
        };
        let config = CasConfig {
            resend: micros(random.u64(2_000..8_000)),
            backoff: micros(random.u64(100..3_000)),
            backoff_max: micros(6_000),
            leases_max: [0, 1, 100][random.usize(..3)],
            batch_max: random.usize(1..5),
            requests_per_key_max: random.usize(2..9),
            seed,
            ..CasConfig::default()
        };
        let mut world = Self {
            now: Time::ZERO,
            events: BTreeMap::new(),
            sequence: 0,
            members: BTreeMap::new(),
            quorums,
            config,
            faults,
            clients: (0..random.u32(2..7)).map(|_| Client { left: random.u32(6..16), waiting: false }).collect(),
            random,
            history: History::new(),
            latest: KEYS.into_iter().map(|key| (key, vec![None])).collect(),
            values: 0,
            keys,
            ballots: BTreeMap::new(),
            ended: [0; 3],
        };
        for node in nodes {
            // The node that joins in a change of members has nothing, and the group has begun.
            let lost = world.faults.changes_members && node == NodeId(n + 1);
            let member = Member { incarnation: 1, epoch: Epoch(1), lost, ..Member::default() };
            world.members.insert(node, member);
            if !lost {
                world.boot(node);
            }
        }
        for client in 0..world.clients.len() {
            world.later(micros(100), Event::Client(client));
        }
        for crash in 0..world.faults.crashes {
            let node = NodeId(world.random.u32(1..=n));
            let loses_disk = crash < world.faults.losses;
            let at = micros(world.random.u64(..40_000));
            world.at(Time::ZERO + at, Event::Crash { node, loses_disk });
        }
        if world.faults.changes_members {
            for node in 1..=n + 1 {
                let at = micros(world.random.u64(5_000..15_000));
                world.at(Time::ZERO + at, Event::Epoch { node: NodeId(node), epoch: Epoch(2) });
            }
        }
        world
    }

    fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Within this time, at random.
    fn later(&mut self, within: Duration, event: Event) {
        let wait = Duration::from_nanos(self.random.u64(1..=within.as_nanos() as u64));
        self.at(self.now + wait, event);
    }

    pub(super) fn member(&mut self, node: NodeId) -> &mut Member {
        self.members.get_mut(&node).expect("every node is there from the beginning")
    }

    fn boot(&mut self, node: NodeId) {
        let (config, quorums) = (self.config.clone(), self.quorums.clone());
        let member = self.member(node);
        if member.cas.is_some() {
            return;
        }
        member.boot += 1;
        if member.lost {
            member.incarnation += 1;
        }
        let origin = Origin { node, incarnation: Incarnation(member.incarnation) }.id().unwrap();
        let mut cas = Cas::new(config, origin, member.epoch, quorums[&member.epoch].clone()).unwrap();
        for record in &member.disk {
            cas.recover(record);
        }
        member.base = member.disk.len();
        cas.start(if member.lost { Start::Forgetful } else { Start::Whole });
        let joins = cas.standing() == Standing::Joining;
        member.cas = Some(cas);
        (member.missing, member.giving) = (BTreeSet::new(), Vec::new());
        if joins {
            self.member(node).missing = self.others(node);
            let boot = self.member(node).boot;
            self.later(micros(500), Event::Join { node, boot });
        }
        self.carry_out(node);
    }

    /// The members that a node has to join from: all others of the epochs that it knows.
    fn others(&self, node: NodeId) -> BTreeSet<NodeId> {
        let member = &self.members[&node];
        self.quorums[&member.epoch].voters().into_iter().filter(|&other| other != node).collect()
    }

    fn crash(&mut self, node: NodeId, loses_disk: bool) {
        // Two members that have forgotten at the same time cannot be helped: each needs all others.
        let whole = self.members.values().all(Member::is_whole);
        let mut random = self.random.fork();
        let member = self.member(node);
        if member.cas.take().is_none() {
            return;
        }
        let kept = random.usize(member.durable..=member.disk.len());
        member.disk.truncate(kept);
        member.durable = kept;
        member.calls.clear();
        if loses_disk && whole {
            (member.lost, member.durable) = (true, 0);
            member.disk.clear();
        }
        let outage = micros(self.faults.outage);
        self.later(outage, Event::Boot(node));
        for client in &mut self.clients {
            client.waiting = false;
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, wire: &Wire) {
        let bytes = postcard::to_stdvec(wire).unwrap();
        let copies = if self.random.f64() < self.faults.loss {
            0
        } else {
            1 + u32::from(self.random.f64() < self.faults.doubled)
        };
        for _ in 0..copies {
            let slow = self.random.f64() < self.faults.slow;
            let within = micros(if slow { 20_000 } else { 400 });
            self.later(within, Event::Deliver { to, from, bytes: bytes.clone() });
        }
    }

    /// Does what a member wants done.
    pub(super) fn carry_out(&mut self, node: NodeId) {
        loop {
            let member = self.member(node);
            let Some(cas) = &mut member.cas else { return };
            let Some(output) = cas.poll_output() else { break };
            match output {
                CasOutput::Persist { number, record } => {
                    let bytes = postcard::to_stdvec(&record).unwrap();
                    member.disk.push(postcard::from_bytes(&bytes).unwrap());
                    assert_eq!(
                        member.base as u64 + number.0,
                        member.disk.len() as u64,
                        "records are numbered without gaps"
                    );
                    let boot = member.boot;
                    if let Record::Entry { key, entry } = record {
                        let chosen =
                            self.ballots.entry((key, entry.accepted)).or_insert_with(|| entry.register.clone());
                        assert_eq!(*chosen, entry.register, "ballot {:?} has two values", entry.accepted);
                    }
                    let within = if self.random.u8(..) < 30 { 8_000 } else { self.faults.sync };
                    self.later(micros(within), Event::Synced { node, boot, number });
                }
                CasOutput::Send { to, message } => self.send(node, to, &Wire::Cas(message)),
                CasOutput::Ended { token, end } => self.end(node, token, end),
            }
        }
        let member = self.member(node);
        let (boot, cas) = (member.boot, member.cas.as_ref().expect("running"));
        let due = cas.deadline();
        if due != Time::NEVER {
            let at = due.max(Time(self.now.0 + 1));
            self.at(at, Event::Timer { node, boot });
        }
    }

    fn end(&mut self, node: NodeId, token: Token, end: End) {
        let at = self.now;
        let Some((client, call)) = self.member(node).calls.remove(&token) else { return };
        self.ended[match end {
            End::Done { .. } => 0,
            End::TimedOut => 1,
            End::Indeterminate => 2,
        }] += 1;
        let ended = match end {
            End::Done { effect: Effect::Read(value), .. } => {
                let key = KEYS.into_iter().find(|key| self.history.operation(call).key == *key).expect("one of ours");
                let known = self.latest.get_mut(key).expect("one of ours");
                known.push(value.clone());
                Ended::Found { at, value }
            }
            End::Done { effect: Effect::Wrote(effect), .. } => Ended::Applied { at, effect },
            End::TimedOut => Ended::Void,
            End::Indeterminate => Ended::Unknown,
        };
        self.history.end(call, ended);
        self.clients[client].waiting = false;
        self.later(micros(1_500), Event::Client(client));
    }

    fn ask(&mut self, client: usize) {
        if self.clients[client].left == 0 || self.clients[client].waiting {
            return;
        }
        let nodes: Vec<NodeId> = self.members.keys().copied().collect();
        let node = nodes[self.random.usize(..nodes.len())];
        // Asks again if nothing comes back: the node may have crashed.
        self.later(micros(60_000), Event::Client(client));
        if self.members[&node].cas.is_none() {
            return;
        }
        self.clients[client].left -= 1;
        let key = KEYS[self.random.usize(..self.keys)];
        self.values += 1;
        let new = Bytes::from(format!("v{}", self.values));
        let known = &self.latest[key];
        let expected = known[known.len() - 1 - self.random.usize(..known.len().min(2))].clone();
        let (op, what) = match (key, self.random.u8(..10)) {
            (_, 0..4) => (CasOp::Read, What::Read),
            ("sum", by) => (CasOp::Add { delta: by.into() }, What::Add(by.into())),
            (_, 4..6) => (CasOp::Put { value: new.clone() }, What::Write(new)),
            (_, 6) => (CasOp::Delete, What::Delete),
            _ => {
                let new = Some(new);
                (
                    CasOp::CompareAndSet { expected: expected.clone(), new: new.clone() },
                    What::CompareAndSet { expected, new },
                )
            }
        };
        let now = self.now;
        let call = self.history.begin(now, key.into(), what);
        let deadline = now + micros(self.random.u64(3_000..30_000));
        let token = Token(u64::from(self.values));
        let member = self.member(node);
        let cas = member.cas.as_mut().expect("looked at above");
        if cas.begin(now, token, key.into(), op, deadline).is_ok() {
            member.calls.insert(token, (client, call));
            self.clients[client].waiting = true;
            self.carry_out(node);
        } else {
            self.history.end(call, Ended::Void);
            self.later(micros(1_000), Event::Client(client));
        }
    }

    fn receive(&mut self, to: NodeId, from: NodeId, bytes: &[u8]) {
        let now = self.now;
        let member = self.member(to);
        let Some(cas) = &mut member.cas else { return };
        match postcard::from_bytes(bytes).unwrap() {
            Wire::Cas(message) => cas.handle_message(now, from, message),
            Wire::Join { life } => {
                let number = cas.admit(from, life);
                member.giving.push((number, from, life));
            }
            Wire::Give { life, records } => {
                if cas.standing() == Standing::Joining && cas.life() == life {
                    for record in &records {
                        cas.join(record);
                    }
                    member.missing.remove(&from);
                    if member.missing.is_empty() {
                        cas.serve();
                        member.lost = false;
                    }
                }
            }
        }
        self.carry_out(to);
        self.give(to);
    }

    fn give(&mut self, node: NodeId) {
        let member = self.member(node);
        let durable = RecordNumber((member.durable.saturating_sub(member.base)) as u64);
        let Some(cas) = &member.cas else { return };
        let (ready, waiting): (Vec<_>, Vec<_>) = member.giving.drain(..).partition(|&(number, ..)| number <= durable);
        let records: Vec<Record> = if ready.is_empty() { Vec::new() } else { cas.image().collect() };
        member.giving = waiting;
        for (_, to, life) in ready {
            self.send(node, to, &Wire::Give { life, records: records.clone() });
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Deliver { to, from, bytes } => self.receive(to, from, &bytes),
            Event::Synced { node, boot, number } => {
                let member = self.member(node);
                if member.boot == boot
                    && let Some(cas) = &mut member.cas
                {
                    member.durable = member.durable.max(member.base + number.0 as usize);
                    cas.handle_durable(now, number);
                    self.carry_out(node);
                    self.give(node);
                }
            }
            Event::Timer { node, boot } => {
                let member = self.member(node);
                if member.boot == boot
                    && let Some(cas) = &mut member.cas
                    && cas.deadline() <= now
                {
                    cas.handle_time(now);
                    self.carry_out(node);
                }
            }
            Event::Join { node, boot } => {
                let member = self.member(node);
                let Some(cas) = &member.cas else { return };
                if member.boot == boot && cas.standing() == Standing::Joining {
                    let (life, missing) = (cas.life(), member.missing.clone());
                    for to in missing {
                        self.send(node, to, &Wire::Join { life });
                    }
                    self.at(now + micros(3_000), Event::Join { node, boot });
                }
            }
            Event::Client(client) => self.ask(client),
            Event::Crash { node, loses_disk } => self.crash(node, loses_disk),
            Event::Boot(node) => self.boot(node),
            Event::Epoch { node, epoch } => self.reconfigure(node, epoch),
        }
    }

    fn reconfigure(&mut self, node: NodeId, epoch: Epoch) {
        let (now, quorum) = (self.now, self.quorums[&epoch].clone());
        let member = self.member(node);
        member.epoch = epoch;
        if let Some(cas) = &mut member.cas {
            cas.reconfigure(now, epoch, quorum);
            self.carry_out(node);
        }
        let all_in = self.members.values().all(|member| member.epoch == Epoch(2));
        if epoch == Epoch(2) && all_in {
            let last = *self.members.keys().last().expect("there are members");
            self.boot(last);
        }
    }

    /// Once the new member serves, the old ones may go.
    fn change_members(&mut self) {
        let ready = self.members.values().all(|member| {
            member.epoch == Epoch(2) && member.cas.as_ref().is_some_and(|cas| cas.standing() == Standing::Serving)
        });
        if ready {
            let nodes: Vec<NodeId> = self.members.keys().copied().collect();
            for node in nodes {
                self.reconfigure(node, Epoch(3));
            }
        }
    }

    pub(super) fn run(&mut self, until: Time) {
        while let Some(event) = self.events.first_entry() {
            if event.key().0 > until {
                break;
            }
            self.now = event.key().0;
            let event = event.remove();
            self.happen(event);
            if self.faults.changes_members {
                self.change_members();
            }
        }
        self.now = until;
    }
}
