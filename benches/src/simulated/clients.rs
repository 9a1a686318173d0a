//! The clients of a simulated run: each lives beside a node, and does its part of the trace.
//!
//! Invariants: a request to another node takes as long as messages between the two nodes, and does not get through a cut; an
//! operation that has not ended by its deadline was not served, and what became of it stays open.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::CrdtOp;
use replikit_core::keyspace::{
    Conflict, decode_conflict_page, decode_effect, decode_versions, encode_conflicts, encode_get, encode_scan,
    encode_write,
};
use replikit_core::{
    GroupId, Input, NodeId, Outcome, ReadLevel, Rejection, Replica, ScanRequest, SessionToken, Time, Token,
    WriteEffect, WriteId, WriteRequest,
};
use replikit_sim::check::{ClientId, Ended, History, Level, OperationId, What};
use replikit_sim::{Clients, ModelStorage, Subject, Violation, World};

use super::setup::{Freshness, Setup, Strategy};
use super::{Simulated, SimulatedSide, Simulation};
use crate::fault::Plan;
use crate::ledger::{Begun, Expectation, Ledger, Verdict};
use crate::load::Reads;
use crate::network::Network;
use crate::play::{CHURNED, COUNTERS, HISTORY_MAX, LISTS, LOGS, SETS, Updated, element_bytes, elements, identity};
use crate::workload::key_bytes;
use crate::workload::mix::{Operation, Updates};
use crate::workload::trace::{Step, Trace};

const ATTEMPTS_MAX: u32 = 64;
const ELEMENTS_MAX: usize = 128;
const ANSWER_BYTES_MAX: usize = 1 << 22;
const AUDIT_PAGE: u32 = 1_000;
/// After an operation that failed.
const PAUSE: Duration = Duration::from_millis(5);
/// A question at the end that was not answered is asked again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Questions at the end that are under way at once.
const ASKED_AT_ONCE: usize = 64;

/// What a client sends.
#[derive(Clone, Debug)]
enum Ask {
    Write(WriteRequest),
    Read(Bytes),
    Scan(ScanRequest),
}

/// What a request is for.
#[derive(Clone, Debug)]
enum Part {
    /// A record is read; `then` it is written.
    ReadRecord {
        key: u32,
        then: Option<Step>,
        expectation: Expectation,
        began: u64,
        operation: Option<OperationId>,
    },
    WriteRecord {
        begun: Begun,
        operation: Option<OperationId>,
    },
    Scan,
    Add {
        key: Bytes,
    },
    Insert {
        key: Bytes,
        element: u32,
    },
    ReadList {
        number: u32,
        key: Bytes,
        element: u32,
        attempts: u32,
    },
    WriteList {
        number: u32,
        key: Bytes,
        element: u32,
        attempts: u32,
    },
    Append {
        key: Bytes,
        element: u32,
    },
    Churn {
        number: u32,
        key: Bytes,
        operation: Option<OperationId>,
    },
    ReadChurned {
        operation: Option<OperationId>,
    },
}

#[derive(Debug)]
enum Phase {
    Resting,
    /// The request is on its way; lost ones never get there.
    Going {
        to: NodeId,
        lost: bool,
    },
    Waiting {
        token: Token,
    },
    /// The answer is on its way.
    Coming {
        outcome: Outcome,
    },
}

#[derive(Debug)]
struct Client {
    home: NodeId,
    /// Whom it writes to, as far as it knows.
    leader: Option<NodeId>,
    steps: Vec<Step>,
    next: usize,
    phase: Phase,
    part: Option<Part>,
    /// What was sent last, and to whom: it may have to be sent again.
    ask: Option<Ask>,
    asked: NodeId,
    operation: Operation,
    began: Time,
    deadline: Time,
    /// When its next alarm counts.
    due: Time,
    token: SessionToken,
    removed: BTreeSet<u32>,
    appended: u32,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    began: Time,
    ended: Time,
    served: bool,
    home: NodeId,
}

/// A question at the end.
#[derive(Clone, Debug)]
enum Question {
    Key(Bytes),
    Conflicts { node: NodeId, after: u64 },
}

/// The clients, and what they saw.
pub(super) struct Simulants {
    group: GroupId,
    setup: Setup,
    network: Network,
    trace: Rc<Trace>,
    updates: Updates,
    think: Duration,
    deadline: Duration,
    stride: u32,
    ledger: Ledger,
    clients: Vec<Client>,
    waiting: BTreeMap<Token, usize>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    down: BTreeSet<NodeId>,
    history: History,
    updated: Updated,
    attempts: Vec<Attempt>,
    found: Simulated,
    stopped: bool,
    syncs: u64,
    // Loading.
    to_load: Vec<u32>,
    loading: BTreeMap<Token, (u32, Begun, Option<OperationId>, Time)>,
    loader: NodeId,
    // Reading back.
    questions: Vec<Question>,
    asked: BTreeMap<Token, (Question, Time)>,
    shown: BTreeMap<Bytes, Vec<Bytes>>,
    conflicts: Vec<Conflict>,
    asker: NodeId,
}

impl Simulants {
    pub(super) fn new(simulation: &Simulation, group: GroupId) -> Self {
        let trace = simulation.trace.clone();
        let nodes = simulation.network.nodes.len() as u32;
        let clients = trace.by_client().into_iter().enumerate().map(|(number, steps)| Client {
            home: NodeId(number as u32 % nodes + 1),
            leader: None,
            steps,
            next: 0,
            phase: Phase::Resting,
            part: None,
            ask: None,
            asked: NodeId(1),
            operation: Operation::Read,
            began: Time::ZERO,
            deadline: Time::NEVER,
            due: Time::NEVER,
            token: SessionToken::new(),
            removed: BTreeSet::new(),
            appended: 0,
        });
        let bytes = trace.value_bytes_max() as usize;
        Self {
            group,
            setup: simulation.setup.clone(),
            network: simulation.network.clone(),
            updates: simulation.updates,
            think: simulation.think,
            deadline: Duration::from_millis(500).max(simulation.network.round_trip_max() * 6),
            stride: (trace.steps().len() / HISTORY_MAX) as u32 + 1,
            ledger: Ledger::in_virtual_time(trace.keys(), bytes),
            clients: clients.collect(),
            trace,
            waiting: BTreeMap::new(),
            cuts: BTreeSet::new(),
            down: BTreeSet::new(),
            history: History::new(),
            updated: Updated::default(),
            attempts: Vec::new(),
            found: Simulated::default(),
            stopped: false,
            syncs: 0,
            to_load: Vec::new(),
            loading: BTreeMap::new(),
            loader: NodeId(1),
            questions: Vec::new(),
            asked: BTreeMap::new(),
            shown: BTreeMap::new(),
            conflicts: Vec::new(),
            asker: NodeId(1),
        }
    }

    pub(super) const fn history(&self) -> &History {
        &self.history
    }

    pub(super) const fn syncs(&self) -> u64 {
        self.syncs
    }

    pub(super) fn cut(&mut self, links: &[(NodeId, NodeId)]) {
        self.cuts.extend(links);
    }

    pub(super) fn mend(&mut self) {
        self.cuts.clear();
    }

    /// Whoever asks this node is refused from now on.
    pub(super) fn is_down(&mut self, node: NodeId) {
        self.down.insert(node);
    }

    /// It answers again.
    pub(super) fn is_back(&mut self, node: NodeId) {
        self.down.remove(&node);
    }

    /// Loads what must be there before the trace begins.
    pub(super) fn begin<H>(&mut self, clients: &mut Clients<H>) {
        let touches = |step: &&Step| {
            matches!(step.operation, Operation::Read | Operation::Update | Operation::ReadModifyWrite)
                && step.key < self.trace.loaded()
        };
        let keys: BTreeSet<u32> = self.trace.steps().iter().filter(touches).map(|step| step.key).collect();
        self.to_load = keys.into_iter().rev().collect();
        self.ledger.set_now(clients.now.0);
        self.load(clients);
    }

    pub(super) fn await_loaded<R: Replica>(&mut self, world: &mut World<R, ModelStorage>) -> Result<(), Violation> {
        let loaded = |_: &World<R, ModelStorage>, this: &Self| this.to_load.is_empty() && this.loading.is_empty();
        while !world.run_while(AGAIN, self, loaded)? {
            // What was not answered is asked again; it may have been done, and is then done twice.
            let late: Vec<Token> = self.loading.keys().copied().collect();
            for token in late {
                if let Some((key, ..)) = self.loading.remove(&token) {
                    self.to_load.push(key);
                }
            }
            self.loader = NodeId(self.loader.0 % self.network.nodes.len() as u32 + 1);
            self.load(world.clients());
        }
        // Every node has to see it.
        world.run_until(world.now() + self.network.round_trip_max() * 10 + Duration::from_millis(500), self)
    }

    fn load<H>(&mut self, clients: &mut Clients<H>) {
        while self.loading.len() < ASKED_AT_ONCE {
            let Some(key) = self.to_load.pop() else { return };
            let bytes = self.trace.value_bytes_max() as usize;
            let Some((begun, value)) = self.ledger.begin(key, bytes) else { return };
            let operation = key
                .is_multiple_of(self.stride)
                .then(|| self.history.begin(clients.now, key_bytes(key), What::Write(identity(&value))));
            let write = WriteRequest::put(key_bytes(key), value).at(self.setup.write_level);
            let token = self.send(self.loader, &Ask::Write(write), ReadLevel::Local, clients);
            self.loading.insert(token, (key, begun, operation, clients.now));
        }
    }

    /// The clients begin.
    pub(super) fn start<H>(&mut self, now: Time, clients: &mut Clients<H>) {
        self.ledger.set_now(now.0);
        for number in 0..self.clients.len() {
            let after = Duration::from_nanos(clients.rng.u64(0..=self.think.as_nanos() as u64 + 1_000));
            self.alarm(number, clients.now + after, clients);
        }
    }

    pub(super) const fn stop(&mut self) {
        self.stopped = true;
    }

    fn alarm<H>(&mut self, number: usize, due: Time, clients: &mut Clients<H>) {
        self.clients[number].due = due;
        clients.alarm(number as u32 + 1, due.since(clients.now));
    }

    fn send<H>(&mut self, node: NodeId, ask: &Ask, level: ReadLevel, clients: &mut Clients<H>) -> Token {
        let group = self.group;
        clients.request(node, |token| match ask {
            Ask::Write(write) => {
                let body = encode_write(write).expect("keys and values of a trace are in range");
                Input::Command { token, group, level: write.level, session: None, body }
            }
            Ask::Read(key) => {
                let body = encode_get(key).expect("keys of a trace are in range");
                Input::Query { token, group, level, body, bytes_max: ANSWER_BYTES_MAX }
            }
            Ask::Scan(scan) => {
                Input::Query { token, group, level, body: encode_scan(scan), bytes_max: ANSWER_BYTES_MAX }
            }
        })
    }

    fn begin_operation(
        &mut self,
        number: usize,
        key_number: u32,
        key: &Bytes,
        what: What,
        at: Time,
    ) -> Option<OperationId> {
        if !key_number.is_multiple_of(self.stride) {
            return None;
        }
        let level = match what {
            What::Read => Level::Read(self.setup.read_level(&self.clients[number].token)),
            _ => Level::Write(self.setup.write_level),
        };
        Some(self.history.begin_as(ClientId(number as u32), level, at, key.clone(), what))
    }

    fn end_operation(&mut self, operation: Option<OperationId>, ended: Ended) {
        if let Some(operation) = operation {
            self.history.end(operation, ended);
        }
    }

    /// The next operation.
    fn next<H>(&mut self, number: usize, clients: &mut Clients<H>) {
        let client = &mut self.clients[number];
        if self.stopped || client.steps.is_empty() {
            client.due = Time::NEVER;
            return;
        }
        let step = client.steps[client.next % client.steps.len()];
        client.next += 1;
        (client.operation, client.began) = (step.operation, clients.now);
        client.deadline = clients.now + self.deadline;
        self.perform(number, step, clients);
    }

    fn perform<H>(&mut self, number: usize, step: Step, clients: &mut Clients<H>) {
        let now = clients.now;
        match step.operation {
            Operation::Read => self.read_record(number, step.key, None, clients),
            Operation::ReadModifyWrite => self.read_record(number, step.key, Some(step), clients),
            Operation::Update | Operation::Insert => self.write_record(number, step, clients),
            Operation::Scan => {
                let level = self.setup.read_level(&self.clients[number].token);
                let scan = ScanRequest { from: key_bytes(step.key), to: None, limit: step.size.max(1), level };
                self.go(number, Ask::Scan(scan), Part::Scan, clients);
            }
            Operation::Increment if self.updates == Updates::Merge => {
                let key = Bytes::from(format!("{COUNTERS}{}", step.key));
                self.updated.adding(key.clone());
                self.go(number, Ask::Write(WriteRequest::add(key.clone(), 1)), Part::Add { key }, clients);
            }
            Operation::SetAdd if self.updates == Updates::Merge => {
                let key = Bytes::from(format!("{SETS}{}", step.key));
                let element = self.updated.next_element();
                let write = WriteRequest::crdt(key.clone(), CrdtOp::Insert { element: element_bytes(element) });
                self.go(number, Ask::Write(write), Part::Insert { key, element }, clients);
            }
            Operation::Increment | Operation::SetAdd => {
                let element = self.updated.next_element();
                self.read_list(number, step.key, element, 0, clients);
            }
            Operation::Append => {
                let client = &mut self.clients[number];
                let key = Bytes::from(format!("{LOGS}{number:04}-{:08}", client.appended));
                client.appended += 1;
                let element = self.updated.next_element();
                let mut value = vec![0x5a; (step.size as usize).max(4)];
                value[..4].copy_from_slice(&element.to_le_bytes());
                let write = WriteRequest::put(key.clone(), value);
                self.go(number, Ask::Write(write), Part::Append { key, element }, clients);
            }
            Operation::Churn => {
                let key = Bytes::from(format!("{CHURNED}{}", step.key));
                let client = &mut self.clients[number];
                let creates = client.removed.remove(&step.key) || number % 2 == 1;
                let (write, what) = if creates {
                    let value = element_bytes(self.updated.next_element());
                    (WriteRequest::put(key.clone(), value.clone()), What::Write(value))
                } else {
                    client.removed.insert(step.key);
                    (WriteRequest::delete(key.clone()), What::Delete)
                };
                let operation = self.begin_operation(number, step.key, &key, what, now);
                self.go(number, Ask::Write(write), Part::Churn { number: step.key, key, operation }, clients);
            }
        }
    }

    fn read_record<H>(&mut self, number: usize, key: u32, then: Option<Step>, clients: &mut Clients<H>) {
        let bytes = key_bytes(key);
        let operation = self.begin_operation(number, key, &bytes, What::Read, clients.now);
        let (expectation, began) = (self.ledger.expect(key), self.ledger.now());
        let part = Part::ReadRecord { key, then, expectation, began, operation };
        self.go(number, Ask::Read(bytes), part, clients);
    }

    fn write_record<H>(&mut self, number: usize, step: Step, clients: &mut Clients<H>) {
        let Some((begun, value)) = self.ledger.begin(step.key, step.size as usize) else {
            self.stopped = true;
            return;
        };
        let key = key_bytes(step.key);
        let operation = self.begin_operation(number, step.key, &key, What::Write(identity(&value)), clients.now);
        self.go(number, Ask::Write(WriteRequest::put(key, value)), Part::WriteRecord { begun, operation }, clients);
    }

    fn read_list<H>(&mut self, client: usize, number: u32, element: u32, attempts: u32, clients: &mut Clients<H>) {
        let generation = self.updated.generation(number);
        let key = Bytes::from(format!("{LISTS}{number}-{generation}"));
        let part = Part::ReadList { number, key: key.clone(), element, attempts };
        self.go(client, Ask::Read(key), part, clients);
    }

    /// Sends a request on its way.
    fn go<H>(&mut self, number: usize, ask: Ask, part: Part, clients: &mut Clients<H>) {
        let client = &self.clients[number];
        let home = client.home;
        let ask = match ask {
            Ask::Write(write) => Ask::Write(write.at(self.setup.write_level)),
            other => other,
        };
        // Only writes of a strategy with a leader, and reads that it must vouch for, go elsewhere than home.
        let leads = self.setup.strategy == Strategy::SingleLeader;
        let reads_current = self.setup.freshness == Freshness::Linearizable;
        let to = match &ask {
            Ask::Write(_) if leads => client.leader.unwrap_or(home),
            Ask::Read(_) | Ask::Scan(_) if leads && reads_current => client.leader.unwrap_or(home),
            _ => home,
        };
        self.clients[number].part = Some(part);
        self.travel(number, to, ask, clients);
    }

    fn travel<H>(&mut self, number: usize, to: NodeId, ask: Ask, clients: &mut Clients<H>) {
        let home = self.clients[number].home;
        let lost = home != to && self.cuts.contains(&(home, to));
        let takes = if home == to { Duration::ZERO } else { self.network.one_way(home, to) };
        self.clients[number].ask = Some(ask);
        self.clients[number].phase = Phase::Going { to, lost };
        let due = if lost { self.clients[number].deadline } else { clients.now + takes };
        self.alarm(number, due.min(self.clients[number].deadline), clients);
    }

    fn finish<H>(&mut self, number: usize, served: bool, clients: &mut Clients<H>) {
        let client = &mut self.clients[number];
        client.phase = Phase::Resting;
        client.part = None;
        client.deadline = Time::NEVER;
        let (began, home, writes) = (client.began, client.home, client.operation.writes());
        self.attempts.push(Attempt { began, ended: clients.now, served, home });
        if served {
            let latencies = if writes { &mut self.found.writes } else { &mut self.found.reads };
            latencies.record(clients.now.since(began));
        }
        let rest = if served { self.think } else { self.think + PAUSE };
        let rest = Duration::from_nanos(clients.rng.u64(0..=rest.as_nanos() as u64 * 2));
        self.alarm(number, clients.now + rest, clients);
    }

    /// Gives up: what became of the request, the client will never know.
    fn give_up<H>(&mut self, number: usize, refused: bool, clients: &mut Clients<H>) {
        let client = &mut self.clients[number];
        if let Phase::Waiting { token } = &client.phase {
            self.waiting.remove(token);
        }
        // Whoever did not answer may not lead any more.
        client.leader = None;
        match client.part.take() {
            Some(Part::ReadRecord { operation, .. } | Part::ReadChurned { operation }) => {
                self.end_operation(operation, Ended::Void);
            }
            Some(Part::WriteRecord { operation, .. } | Part::Churn { operation, .. }) if refused => {
                self.end_operation(operation, Ended::Void);
            }
            Some(Part::Add { key }) if refused => self.updated.not_added(&key),
            _ => {}
        }
        self.finish(number, false, clients);
    }

    /// The answer is in.
    fn answered<H>(&mut self, number: usize, from: NodeId, outcome: Outcome, clients: &mut Clients<H>) {
        match outcome {
            Outcome::Acked { at, reply, .. } => {
                self.clients[number].token.observe(at);
                if self.setup.strategy == Strategy::SingleLeader {
                    self.clients[number].leader = Some(from);
                }
                let effect = decode_effect(&reply).ok();
                self.acked(number, effect, clients);
            }
            Outcome::Value { values, seen, .. } => {
                if let Some(seen) = seen {
                    self.clients[number].token.observe(seen);
                }
                self.valued(number, values, clients);
            }
            Outcome::Rejected(Rejection::NotLeader { leader }) => {
                let Some(part) = self.clients[number].part.clone() else { return };
                let nodes = self.network.nodes.len() as u32;
                let next = NodeId(from.0 % nodes + 1);
                self.clients[number].leader = Some(leader.filter(|leader| *leader != from).unwrap_or(next));
                self.again(number, part, leader.is_none(), clients);
            }
            Outcome::Rejected(_) => self.give_up(number, true, clients),
            Outcome::Indeterminate { .. } => self.give_up(number, false, clients),
        }
    }

    /// The same request to another node.
    fn again<H>(&mut self, number: usize, part: Part, nobody_leads: bool, clients: &mut Clients<H>) {
        let Some(ask) = self.clients[number].ask.clone() else { return self.give_up(number, true, clients) };
        let to = self.clients[number].leader.unwrap_or(self.clients[number].home);
        if nobody_leads && clients.now + PAUSE >= self.clients[number].deadline {
            return self.give_up(number, true, clients);
        }
        self.clients[number].part = Some(part);
        self.travel(number, to, ask, clients);
        if nobody_leads {
            let due = self.clients[number].due + PAUSE;
            self.alarm(number, due, clients);
        }
    }

    fn acked<H>(&mut self, number: usize, effect: Option<WriteEffect>, clients: &mut Clients<H>) {
        if effect == Some(WriteEffect::Unsupported) {
            return self.give_up(number, true, clients);
        }
        let now = clients.now;
        match self.clients[number].part.take() {
            Some(Part::WriteRecord { begun, operation }) => {
                self.ledger.acked(begun);
                self.end_operation(operation, Ended::Written { at: now });
            }
            Some(Part::Add { key }) => self.updated.added(&key),
            Some(Part::Insert { key, element }) => self.updated.element(key, element),
            Some(Part::Append { key, element }) => self.updated.appended(key, element),
            Some(Part::WriteList { number: list, key, element, attempts }) => {
                if matches!(effect, Some(WriteEffect::Mismatch { .. })) {
                    if attempts >= ATTEMPTS_MAX {
                        return self.give_up(number, true, clients);
                    }
                    return self.read_list(number, list, element, attempts + 1, clients);
                }
                self.updated.element(key, element);
            }
            Some(Part::Churn { number: key_number, key, operation }) => {
                self.end_operation(operation, Ended::Applied { at: now, effect: WriteEffect::Done });
                let operation = self.begin_operation(number, key_number, &key, What::Read, now);
                return self.go(number, Ask::Read(key), Part::ReadChurned { operation }, clients);
            }
            _ => {}
        }
        self.finish(number, true, clients);
    }

    fn valued<H>(&mut self, number: usize, values: Vec<Bytes>, clients: &mut Clients<H>) {
        let now = clients.now;
        let part = self.clients[number].part.take();
        if matches!(part, Some(Part::Scan)) {
            return self.finish(number, true, clients);
        }
        let versions = values.first().map(decode_versions).and_then(Result::ok).unwrap_or_default();
        if let Some(context) = &versions.context {
            self.clients[number].token.observe_context(self.group, context);
        }
        match part {
            Some(Part::ReadRecord { key, then, expectation, began, operation }) => {
                let value = versions.values.into_iter().next();
                self.found.record_reads += 1;
                match self.ledger.judge(expectation, began, value.as_deref()) {
                    Verdict::Fresh => {}
                    Verdict::Stale { age } => {
                        self.found.stale_reads += 1;
                        self.found.stale_ages.record(Duration::from_nanos(age));
                    }
                    Verdict::Missing => self.found.stale_reads += 1,
                    Verdict::Foreign => self.found.broken = Some(format!("a read of key {key}: a foreign value")),
                }
                let value = value.as_ref().map(identity);
                self.end_operation(operation, Ended::Found { at: now, value });
                if let Some(step) = then {
                    return self.write_record(number, step, clients);
                }
            }
            Some(Part::ReadChurned { operation }) => {
                let value = versions.values.into_iter().next();
                self.end_operation(operation, Ended::Found { at: now, value });
            }
            Some(Part::ReadList { number: list, key, element, attempts }) => {
                let mut all = elements(&versions.values);
                if all.len() >= ELEMENTS_MAX {
                    let generation = self.updated.generation(list);
                    self.updated.full(list, generation);
                    return self.read_list(number, list, element, attempts, clients);
                }
                all.insert(element);
                let value: Bytes = all.iter().flat_map(|element| element.to_le_bytes()).collect();
                let mut write = match self.updates {
                    Updates::CompareAndSet => {
                        let expected = versions.values.into_iter().next();
                        WriteRequest::compare_and_set(key.clone(), expected, Some(value))
                    }
                    _ => WriteRequest::put(key.clone(), value),
                };
                write.context = versions.context;
                let part = Part::WriteList { number: list, key, element, attempts };
                return self.go(number, Ask::Write(write), part, clients);
            }
            _ => {}
        }
        self.finish(number, true, clients);
    }

    /// Asks for everything that must be there.
    pub(super) fn read_back<H>(&mut self, clients: &mut Clients<H>) {
        let records = self.ledger.acked_keys().map(key_bytes);
        let updated = &self.updated;
        let others = updated.elements.keys().chain(updated.logs.keys()).chain(updated.counters.keys()).cloned();
        self.questions = records.chain(others).map(Question::Key).collect();
        if matches!(self.setup.strategy, Strategy::MultiLeader | Strategy::Leaderless(_)) {
            let nodes = self.network.ids();
            self.questions.extend(nodes.map(|node| Question::Conflicts { node, after: 0 }));
            self.found.conflicts = Some(0);
        }
        self.ask_back(clients);
        clients.alarm(0, AGAIN);
    }

    pub(super) fn is_read_back(&self) -> bool {
        self.questions.is_empty() && self.asked.is_empty()
    }

    fn ask_back<H>(&mut self, clients: &mut Clients<H>) {
        // All replicas agree by now; where they do not speak for all, a current read is one that asks.
        let level = match self.setup.strategy {
            Strategy::SingleLeader | Strategy::LeaderlessCas => ReadLevel::Linearizable,
            Strategy::MultiLeader | Strategy::Leaderless(_) => ReadLevel::Local,
        };
        while self.asked.len() < ASKED_AT_ONCE {
            let Some(question) = self.questions.pop() else { return };
            let token = match &question {
                Question::Key(key) => self.send(self.asker, &Ask::Read(key.clone()), level.clone(), clients),
                Question::Conflicts { node, after } => {
                    let (group, body) = (self.group, encode_conflicts(*after, AUDIT_PAGE));
                    let level = ReadLevel::Local;
                    clients.request(*node, |token| Input::Query {
                        token,
                        group,
                        level,
                        body,
                        bytes_max: ANSWER_BYTES_MAX,
                    })
                }
            };
            self.asked.insert(token, (question, clients.now));
        }
    }

    fn told_back<H>(&mut self, question: Question, outcome: Outcome, clients: &mut Clients<H>) {
        let answer = if let Outcome::Value { values, .. } = &outcome { values.first() } else { None };
        match (&question, answer) {
            (Question::Key(key), Some(answer)) => {
                let versions = decode_versions(answer).unwrap_or_default();
                self.shown.insert(key.clone(), versions.values);
            }
            (Question::Conflicts { node, .. }, Some(answer)) => {
                let page = decode_conflict_page(answer).unwrap_or_default();
                if let Some(after) = page.next {
                    self.questions.push(Question::Conflicts { node: *node, after });
                }
                self.conflicts.extend(page.conflicts);
            }
            // Asked again at another node.
            (_, None) => {
                self.asker = match outcome {
                    Outcome::Rejected(Rejection::NotLeader { leader: Some(leader) }) => leader,
                    _ => NodeId(self.asker.0 % self.network.nodes.len() as u32 + 1),
                };
                self.questions.insert(0, question);
                return;
            }
        }
        self.ask_back(clients);
    }

    /// What everything amounts to.
    pub(super) fn found(&mut self, plan: &Plan, (at, undone): (Time, Time), lasts: Duration) -> Simulated {
        let mut found = std::mem::take(&mut self.found);
        self.attempts.sort_by_key(|attempt| attempt.ended);
        let end = self.attempts.last().map_or(undone, |attempt| attempt.ended);
        for side in 0..plan.sides_count() {
            let own = |attempt: &&Attempt| plan.sides[attempt.home.0 as usize - 1] == side;
            let meanwhile = |attempt: &&Attempt| own(attempt) && (at..undone).contains(&attempt.began);
            let mut seen = SimulatedSide::default();
            for attempt in self.attempts.iter().filter(meanwhile) {
                seen.asked += 1;
                seen.served += u64::from(attempt.served);
            }
            let mut last = at;
            let ends = self.attempts.iter().filter(own).filter(|attempt| attempt.served && attempt.ended >= at);
            for ended in ends.map(|attempt| attempt.ended).chain([end]) {
                if last < undone {
                    seen.gap = seen.gap.max(ended.since(last));
                }
                last = last.max(ended);
            }
            found.sides.push(seen);
        }
        found.served = self.attempts.iter().filter(|attempt| attempt.served).count() as u64;
        found.unserved = self.attempts.len() as u64 - found.served;
        found.lasted = lasts;
        self.judge(&mut found);
        found
    }

    fn judge(&self, found: &mut Simulated) {
        let mut kept: BTreeMap<&Bytes, Vec<Bytes>> = BTreeMap::new();
        let mut dots = BTreeSet::new();
        for conflict in &self.conflicts {
            if dots.insert(conflict.overwritten.version.stamp.dot) {
                kept.entry(&conflict.key).or_default().extend(conflict.overwritten.version.value.clone());
            }
        }
        if let Some(conflicts) = &mut found.conflicts {
            *conflicts = dots.len() as u64;
        }
        let nothing = Vec::new();
        let shown = |key: &Bytes| self.shown.get(key).unwrap_or(&nothing);
        for number in self.ledger.acked_keys() {
            let key = key_bytes(number);
            let fresh = |value: Option<&Bytes>| {
                let value = value.map(|value| &value[..]);
                self.ledger.judge(self.ledger.expect(number), self.ledger.now(), value) == Verdict::Fresh
            };
            if !fresh(shown(&key).first()) {
                match kept.get(&key).is_some_and(|kept| kept.iter().any(|value| fresh(Some(value)))) {
                    true => found.lost_audited += 1,
                    false => found.records_lost += 1,
                }
            }
        }
        found.acked = self.updated.acked() + self.ledger.acked_count() as u64;
        for (key, acked) in &self.updated.elements {
            let (there, kept) = (elements(shown(key)), kept.get(key).map(|kept| elements(kept)));
            for element in acked.iter().filter(|element| !there.contains(element)) {
                match kept.as_ref().is_some_and(|kept| kept.contains(element)) {
                    true => found.lost_audited += 1,
                    false => found.lost_silent += 1,
                }
            }
        }
        for (key, element) in &self.updated.logs {
            let there = shown(key).iter().any(|value| value.starts_with(&element.to_le_bytes()));
            found.lost_silent += u64::from(!there);
        }
        for (key, counter) in &self.updated.counters {
            let number =
                shown(key).first().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0);
            let (least, most): (u64, u64) = (counter.acked, counter.acked + counter.in_doubt);
            found.lost_silent += least.saturating_sub(number) + number.saturating_sub(most);
        }
    }
}

impl<R: Replica> Subject<R> for Simulants {
    fn on_alarm(&mut self, alarm: u32, clients: &mut Clients<R::Head>) {
        self.ledger.set_now(clients.now.0);
        let Some(number) = (alarm as usize).checked_sub(1) else {
            if !self.questions.is_empty() || !self.asked.is_empty() {
                let late = |asked: &Time| clients.now.since(*asked) >= AGAIN;
                let late: Vec<Token> =
                    self.asked.iter().filter(|(_, (_, asked))| late(asked)).map(|(token, _)| *token).collect();
                for token in late {
                    if let Some((question, _)) = self.asked.remove(&token) {
                        self.questions.push(question);
                    }
                }
                self.ask_back(clients);
                clients.alarm(0, AGAIN);
            }
            return;
        };
        let client = &mut self.clients[number];
        if clients.now < client.due {
            return;
        }
        if clients.now >= client.deadline {
            let refused = matches!(client.phase, Phase::Going { .. });
            return self.give_up(number, refused, clients);
        }
        match std::mem::replace(&mut client.phase, Phase::Resting) {
            Phase::Resting => self.next(number, clients),
            Phase::Going { lost: true, .. } => self.give_up(number, true, clients),
            Phase::Going { to, .. } => {
                let Some(ask) = client.ask.clone() else { return self.give_up(number, true, clients) };
                if self.down.contains(&to) {
                    // The connection is refused at once: another node may lead by now.
                    let nodes = self.network.nodes.len() as u32;
                    let leads = self.setup.strategy == Strategy::SingleLeader;
                    let current = matches!(ask, Ask::Write(_)) || self.setup.reads() == Reads::Linearizable;
                    if !leads || !current {
                        return self.give_up(number, true, clients);
                    }
                    self.clients[number].leader = Some(NodeId(to.0 % nodes + 1));
                    let next = NodeId(to.0 % nodes + 1);
                    self.travel(number, next, ask, clients);
                    let due = self.clients[number].due + PAUSE;
                    return self.alarm(number, due, clients);
                }
                let level = self.setup.read_level(&self.clients[number].token);
                let token = self.send(to, &ask, level, clients);
                self.waiting.insert(token, number);
                let client = &mut self.clients[number];
                (client.phase, client.asked) = (Phase::Waiting { token }, to);
                let deadline = client.deadline;
                self.alarm(number, deadline, clients);
            }
            Phase::Waiting { .. } => self.give_up(number, false, clients),
            Phase::Coming { outcome } => {
                let from = self.clients[number].asked;
                self.answered(number, from, outcome, clients);
            }
        }
    }

    fn on_durable(&mut self, _: NodeId, _: WriteId) {
        self.syncs += 1;
    }

    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<R::Head>,
    ) -> Result<(), String> {
        self.ledger.set_now(clients.now.0);
        if let Some((key, begun, operation, _)) = self.loading.remove(&token) {
            match outcome {
                Outcome::Acked { .. } => {
                    self.ledger.acked(begun);
                    self.end_operation(operation, Ended::Written { at: clients.now });
                }
                other => {
                    if let Outcome::Rejected(Rejection::NotLeader { leader: Some(leader) }) = other {
                        self.loader = leader;
                    }
                    self.to_load.push(key);
                }
            }
            self.load(clients);
            return Ok(());
        }
        if let Some((question, _)) = self.asked.remove(&token) {
            self.told_back(question, outcome, clients);
            return Ok(());
        }
        let Some(number) = self.waiting.remove(&token) else { return Ok(()) };
        let home = self.clients[number].home;
        let deadline = self.clients[number].deadline;
        if home != node && self.cuts.contains(&(node, home)) {
            // It never arrives: the client waits until its deadline.
            self.alarm(number, deadline, clients);
            return Ok(());
        }
        let takes = if home == node { Duration::ZERO } else { self.network.one_way(node, home) };
        self.clients[number].phase = Phase::Coming { outcome };
        self.alarm(number, (clients.now + takes).min(deadline), clients);
        Ok(())
    }
}
