//! All checks at once on what clients of a real Raft group saw under faults: nothing is to be found.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::keyspace::{self, Keyspace};
use replikit_core::{
    BytesSource, ClusterId, Event, GroupId, Input, LogIndex, NodeId, Outcome, ReadLevel, Rejection, RestoreError, Role,
    SessionToken, SnapshotSource, StateMachine, StreamId, Term, Time, Token, WriteLevel, WriteOp, WriteRequest,
};
use replikit_sim::check::{
    Attempt, ClientId, Convergence, Ended, Fate, History, Level, Linearized, Losses, OperationId, STEPS_MAX, Scan,
    StateHash, What, check_durability, check_history, check_sessions, check_staleness,
};
use replikit_sim::{Clients, LogStorage, ModelStorage, Replicas, Settings, SimStorage, Subject, World};
use replikit_single_leader::{Config, Head, Raft};

use super::position;

const GROUP: GroupId = GroupId(1);
const CLIENTS: u32 = 6;

/// A keyspace that remembers the serial of each command: its first eight bytes.
#[derive(Debug)]
struct Serials {
    keyspace: Keyspace,
    applied: Vec<(u64, Bytes)>,
    incoming: Vec<u8>,
}

impl Serials {
    fn new() -> Self {
        Self { keyspace: Keyspace::new(), applied: Vec::new(), incoming: Vec::new() }
    }
}

impl StateMachine for Serials {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        let (serial, command) = command.split_at(8);
        self.applied.push((at.0, Bytes::copy_from_slice(serial)));
        self.keyspace.apply(at, command)
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        self.keyspace.query(query, bytes_max)
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        let (mut pairs, mut source) = (Vec::new(), self.keyspace.snapshot());
        while let Some(piece) = source.next(1 << 20) {
            pairs.extend_from_slice(&piece);
        }
        Box::new(BytesSource::new(postcard::to_stdvec(&(&self.applied, pairs)).expect("bytes encode").into()))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if !last {
            return Ok(());
        }
        let bytes = core::mem::take(&mut self.incoming);
        let (applied, pairs): (Vec<(u64, Bytes)>, Vec<u8>) =
            postcard::from_bytes(&bytes).map_err(|_| RestoreError { what: "not serials" })?;
        self.applied = applied;
        self.keyspace.restore(&pairs, true)
    }
}

struct Client {
    node: NodeId,
    token: SessionToken,
    open: Option<(Token, OperationId)>,
    wake_at: Time,
}

/// Clients that ask for everything there is, and write everything down.
struct Everything {
    nodes: u32,
    clients: Vec<Client>,
    open: BTreeMap<Token, u32>,
    history: History,
    // The serial of each write.
    serials: BTreeMap<OperationId, Bytes>,
    values: u64,
    losses: Losses,
    leads: BTreeMap<NodeId, Term>,
    stopped: bool,
}

impl Everything {
    fn new(nodes: u32) -> Self {
        let client = || Client { node: NodeId(1), token: SessionToken::new(), open: None, wake_at: Time::ZERO };
        Self {
            nodes,
            clients: (0..CLIENTS).map(|_| client()).collect(),
            open: BTreeMap::new(),
            history: History::new(),
            serials: BTreeMap::new(),
            values: 0,
            losses: Losses::new(),
            leads: BTreeMap::new(),
            stopped: false,
        }
    }

    fn what(&mut self, rng: &mut Rng, key: &str) -> What {
        self.values += 1;
        let new = Bytes::from(format!("v{}", self.values));
        let expected = Some(Bytes::from(format!("v{}", self.values - rng.u64(0..12.min(self.values)))));
        match (rng.u8(0..8), key) {
            (0..4, _) => What::Read,
            (_, "counter") => What::Add(1),
            (4..6, _) => What::Write(new),
            (6, "removed") => What::Delete,
            _ => What::CompareAndSet { expected, new: Some(new) },
        }
    }

    fn level(&self, rng: &mut Rng, what: &What, client: u32) -> Level {
        let bound = Duration::from_millis(rng.u64(0..200));
        if *what != What::Read {
            let weak = [WriteLevel::Memory, WriteLevel::LeaderDisk, WriteLevel::Durable(1), WriteLevel::Received(1)];
            let lasting = if rng.bool() { WriteLevel::Quorum } else { WriteLevel::Applied(1) };
            return Level::Write(if rng.u8(0..4) == 0 { weak[rng.usize(0..4)] } else { lasting });
        }
        Level::Read(match rng.u8(0..5) {
            0 => ReadLevel::Local,
            1 => ReadLevel::BoundedStale(bound),
            2 | 3 => ReadLevel::Session(self.clients[client as usize].token.clone()),
            _ => ReadLevel::Linearizable,
        })
    }

    fn ask(&mut self, client: u32, clients: &mut Clients<Head>) {
        if let Some((token, _)) = self.clients[client as usize].open.take() {
            self.open.remove(&token);
            self.clients[client as usize].node = NodeId(clients.rng.u32(1..=self.nodes));
        }
        if self.stopped {
            return;
        }
        let key = ["register", "other", "removed", "counter"][clients.rng.usize(0..4)];
        let what = self.what(&mut clients.rng, key);
        let level = self.level(&mut clients.rng, &what, client);
        let operation = self.history.begin_as(ClientId(client), level.clone(), clients.now, key.into(), what.clone());
        let op = match what {
            What::Read => None,
            What::Write(value) => Some(WriteOp::Put { value }),
            What::CompareAndSet { expected, new } => Some(WriteOp::CompareAndSet { expected, new }),
            What::Add(delta) => Some(WriteOp::Add { delta }),
            What::Delete => Some(WriteOp::Delete),
        };
        // Reads go anywhere, writes to whom the client takes for the leader.
        let mut node = self.clients[client as usize].node;
        let input: Box<dyn FnOnce(Token) -> Input<Head>> = match (op, level) {
            (Some(op), Level::Write(level)) => {
                let serial = Bytes::copy_from_slice(&(operation.index() as u64).to_le_bytes());
                let mut write = WriteRequest::delete(key);
                write.op = op;
                let command = keyspace::encode_write(&write).expect("a small write");
                let body = [&serial[..], &command].concat().into();
                self.serials.insert(operation, serial);
                Box::new(move |token| Input::Command { token, group: GROUP, level, session: None, body })
            }
            (_, Level::Read(level)) => {
                if clients.rng.bool() {
                    node = NodeId(clients.rng.u32(1..=self.nodes));
                }
                let body = keyspace::encode_get(key.as_bytes()).expect("a small key");
                Box::new(move |token| Input::Query { token, group: GROUP, level, body, bytes_max: 1 << 10 })
            }
            _ => unreachable!("writes have levels of writes"),
        };
        let token = clients.request(node, input);
        self.open.insert(token, client);
        let state = &mut self.clients[client as usize];
        state.open = Some((token, operation));
        state.wake_at = clients.now + Duration::from_millis(400);
        clients.alarm(client + 1, Duration::from_millis(400));
    }

    fn answered(&mut self, client: u32, operation: OperationId, outcome: Outcome, at: Time) -> Result<(), String> {
        let state = &mut self.clients[client as usize];
        match outcome {
            Outcome::Acked { at: position, reply, .. } => {
                self.history.locate(operation, position);
                state.token.observe(position);
                let ended = match keyspace::decode_effect(&reply) {
                    Ok(effect) => Ended::Applied { at, effect },
                    Err(_) => Ended::Written { at },
                };
                self.history.end(operation, ended);
            }
            Outcome::Value { values, seen, staleness, .. } => {
                let [answer] = &values[..] else { return Err(format!("{} answers", values.len())) };
                let value = keyspace::decode_value(answer).map_err(|error| error.to_string())?;
                self.history.end(operation, Ended::Found { at, value });
                if let Some(seen) = seen {
                    self.history.locate(operation, seen);
                    if self.history.operation(operation).level != Level::Read(ReadLevel::Local) {
                        state.token.observe(seen);
                    }
                }
                if let Some(staleness) = staleness {
                    self.history.bound(operation, staleness);
                }
            }
            Outcome::Rejected(rejection) => {
                self.history.end(operation, Ended::Void);
                match rejection {
                    Rejection::NotLeader { leader: Some(leader) } => state.node = leader,
                    Rejection::LostWrites { term, index } => {
                        self.losses.report(StreamId::consensus(GROUP), index..=index, term);
                        state.token = SessionToken::new();
                    }
                    _ => state.node = NodeId(1 + state.node.0 % self.nodes),
                }
            }
            Outcome::Indeterminate { .. } => {}
        }
        Ok(())
    }
}

impl Subject<Raft<Serials>> for Everything {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        if client == 0 {
            (1..=CLIENTS).for_each(|client| clients.alarm(client, Duration::from_millis(u64::from(client))));
        } else if clients.now >= self.clients[client as usize - 1].wake_at {
            self.ask(client - 1, clients);
        }
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        let Some(client) = self.open.remove(&token) else { return Ok(()) };
        let (_, operation) = self.clients[client as usize].open.take().expect("it is open");
        self.answered(client, operation, outcome, clients.now)?;
        let after = Duration::from_micros(clients.rng.u64(0..10_000));
        self.clients[client as usize].wake_at = clients.now + after;
        clients.alarm(client + 1, after);
        Ok(())
    }

    fn on_event(&mut self, node: NodeId, _: GroupId, event: &Event) -> Result<(), String> {
        self.losses.observe(event);
        if let Event::RoleChanged { role: Role::Leader, term } = event {
            self.leads.insert(node, *term);
        }
        Ok(())
    }

    fn on_crash(&mut self, node: NodeId, _: &mut Clients<Head>) {
        if let Some(term) = self.leads.remove(&node) {
            self.losses.leader_crashed(StreamId::consensus(GROUP), term);
        }
    }
}

fn run<S: SimStorage + 'static>(seed: u64) -> Result<Linearized, String> {
    let mut rng = Rng::with_seed(seed);
    let nodes = [3, 3, 5][rng.usize(0..3)];
    let settings = Settings::draw(&mut rng, nodes);
    let limit = 1 << rng.u32(6..20);
    let cluster = ClusterId::from_name("checks");
    let mut world: World<Raft<Serials>, S> = World::new(seed, settings, cluster, move |node, boots, seed| {
        let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect(), seed);
        config.limits.snapshot_log_bytes = limit;
        Raft::new(config, &boots.of(GROUP), Serials::new()).expect("the knobs are in range")
    });
    let mut clients = Everything::new(nodes);
    let text = |violation: replikit_sim::Violation| violation.to_string();
    world.run_until(Time::ZERO + Duration::from_secs(2), &mut clients).map_err(text)?;
    world.heal(&mut clients);
    world.run_until(world.now() + Duration::from_secs(1), &mut clients).map_err(text)?;
    clients.stopped = true;
    world.run_until(world.now() + Duration::from_secs(3), &mut clients).map_err(text)?;

    let replicas = world.replicas();
    let mut convergence = Convergence::default();
    let mut scans = Vec::new();
    let mut log: BTreeMap<Bytes, u64> = BTreeMap::new();
    for node in replicas.nodes() {
        let raft = replicas.replica(node).ok_or("a node is down after all was mended")?;
        log = raft.machine().applied.iter().map(|(index, serial)| (serial.clone(), *index)).collect();
        scans.push(Scan { node, applied: raft.machine().applied.iter().map(|(_, serial)| serial.clone()).collect() });
        let state = StateHash::of_machine(raft.machine());
        convergence.observe(node, raft.applied().id.index, state).map_err(|error| error.to_string())?;
    }
    if convergence.len() != 1 {
        return Err("the replicas have not caught up".to_owned());
    }
    let fate = |operation: OperationId| {
        let recorded = clients.history.operation(operation);
        match (&recorded.ended, &recorded.level) {
            (Ended::Void, _) => Fate::Void,
            (Ended::Unknown, _) | (_, Level::Read(_)) => Fate::Unknown,
            (_, Level::Write(level)) => Fate::Acked { level: *level, at: recorded.position },
        }
    };
    let attempts: Vec<Attempt> =
        clients.serials.iter().map(|(&id, serial)| Attempt { serial: serial.clone(), fate: fate(id) }).collect();
    check_durability(&attempts, &scans, &clients.losses).map_err(|error| error.to_string())?;
    let sessions = check_sessions(&clients.history, &clients.losses).map_err(|error| error.to_string())?;
    // Clocks are off by a tenth at most, in either direction, and bounds are up to 200 ms.
    let staleness = check_staleness(&clients.history, Duration::from_millis(50)).map_err(|error| error.to_string())?;
    let mut settled = clients.history.clone();
    for (&id, serial) in &clients.serials {
        settled.settle(id, log.get(serial).copied().map(position));
    }
    let linearized = check_history(&settled, STEPS_MAX).map_err(|error| error.to_string())?;
    if sessions.checked < 100 || staleness.bounded < 20 {
        return Err(format!("too little was checked: {sessions:?}, {staleness:?}"));
    }
    Ok(linearized)
}

fn all_hold<S: SimStorage + 'static>(seeds: core::ops::Range<u64>) {
    let mut total = Linearized::default();
    for seed in seeds {
        let linearized = run::<S>(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        total.by_witness += linearized.by_witness;
        total.by_zones += linearized.by_zones;
        total.by_search += linearized.by_search;
    }
    assert_eq!((total.by_zones, total.by_search), (0, 0), "the log is no witness any more");
    assert!(total.by_witness > 0);
}

#[test]
fn every_promise_of_raft_holds_under_faults() {
    all_hold::<ModelStorage>(0..30);
}

#[test]
fn every_promise_of_raft_holds_on_the_real_log() {
    all_hold::<LogStorage>(0..10);
}
