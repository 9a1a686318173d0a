//! Clients of a group without a leader: any of them at any replica, with sessions and contexts, every operation and level.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::crdt::CrdtOp;
use replikit_core::keyspace::{encode_get, encode_scan, encode_write};
use replikit_core::{
    CausalContext, GroupId, Input, KEY_BYTES_MAX, NodeId, ReadLevel, ScanRequest, SessionToken, Time, Token,
    VersionVector, WriteLevel, WriteOp, WriteRequest,
};
use replikit_sim::Clients;

/// What a client has asked for.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    Write {
        key: Bytes,
        op: WriteOp,
        level: WriteLevel,
        context: Option<CausalContext>,
    },
    Read {
        key: Bytes,
        level: ReadLevel,
    },
    /// One page, of so many bytes at most.
    Page {
        scan: ScanRequest,
        bytes_max: usize,
    },
}

/// A request under way.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) client: u32,
    pub(crate) asked: Asked,
    pub(crate) at: Time,
}

#[derive(Clone, Debug, Default)]
struct Client {
    session: SessionToken,
    /// What it has read of each key.
    contexts: BTreeMap<Bytes, CausalContext>,
    busy: Option<Token>,
    /// The rest of a scan that has begun.
    rest: Option<ScanRequest>,
    /// Alarms before this one are of no interest any more.
    due: Time,
    /// How many nodes it has left, because they did not answer, since the faults ended.
    left: u32,
}

/// How clients behave.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) clients: u32,
    /// What its keys begin with.
    pub(crate) prefixes: Vec<&'static str>,
    pub(crate) keys: u32,
    pub(crate) writes_per_mille: u16,
    pub(crate) deletes_per_mille: u16,
    pub(crate) roam_per_mille: u16,
    pub(crate) levels: Vec<WriteLevel>,
    /// Scans, page by page, of the keys that are not compared and set.
    pub(crate) scans_per_mille: u16,
    /// Levels of reads that owners are asked for; where there are none, replicas answer alone.
    pub(crate) reads: Vec<ReadLevel>,
    pub(crate) think_max: Duration,
    pub(crate) timeout: Duration,
}

/// The prefixes of the keyspaces, and what they hold.
pub(crate) const PREFIXES: [&str; 7] = ["lww/", "sib/", "merge/", "count/", "set/", "home/", "flag/"];

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Crowd {
    behaviour: Behaviour,
    group: GroupId,
    nodes: u32,
    /// Those that clients turn to.
    places: Vec<NodeId>,
    clients: Vec<Client>,
    pub(crate) open: BTreeMap<Token, Open>,
    written: u64,
    stopped: bool,
    hurrying: bool,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
}

impl Crowd {
    pub(crate) fn new(behaviour: Behaviour, group: GroupId, nodes: u32) -> Self {
        let clients = vec![Client::default(); behaviour.clients as usize];
        Self {
            behaviour,
            group,
            nodes,
            places: (1..=nodes).map(NodeId).collect(),
            clients,
            open: BTreeMap::new(),
            written: 0,
            stopped: false,
            hurrying: false,
            reads: 0,
            writes: 0,
        }
    }

    pub(crate) fn session(&self, client: u32) -> &SessionToken {
        &self.clients[client as usize].session
    }

    pub(crate) const fn nodes(&self) -> u32 {
        self.nodes
    }

    /// From now on clients turn to these nodes only.
    pub(crate) fn turn_to(&mut self, nodes: &[NodeId]) {
        self.places = nodes.to_vec();
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) const fn hurry(&mut self) {
        self.hurrying = true;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    fn think(&self, rng: &mut Rng) -> Duration {
        let most = if self.hurrying { Duration::from_millis(5) } else { self.behaviour.think_max };
        Duration::from_micros(rng.u64(0..=most.as_micros() as u64 + 1))
    }

    /// Alarm 0 begins; alarm n is client n - 1's, and also says that it has waited long enough.
    pub(crate) fn on_alarm<H>(&mut self, alarm: u32, clients: &mut Clients<H>) {
        let Some(client) = alarm.checked_sub(1) else {
            for client in 0..self.behaviour.clients {
                let after = self.think(&mut clients.rng);
                self.alarm(client, after, clients);
            }
            return;
        };
        if clients.now < self.clients[client as usize].due {
            return;
        }
        if let Some(token) = self.clients[client as usize].busy {
            // It gives up; what became of the request it will never know.
            self.open.remove(&token);
            self.clients[client as usize].busy = None;
            // Whose node is dead for good turns to another one, and does not wait for it for ever.
            self.clients[client as usize].left += u32::from(self.hurrying);
        }
        if !self.stopped {
            self.ask(client, clients);
        }
    }

    fn ask<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let rng = &mut clients.rng;
        let roams = rng.u16(0..1000) < self.behaviour.roam_per_mille;
        let places = self.places.len() as u32;
        let place =
            if roams { rng.u32(1..=places) - 1 } else { (client + self.clients[client as usize].left) % places };
        let node = self.places[place as usize];
        let scans = self.behaviour.scans_per_mille;
        let asked = if scans > 0 && (self.clients[client as usize].rest.is_some() || rng.u16(0..1000) < scans) {
            self.page(client, rng)
        } else {
            self.one(client, rng)
        };
        let group = self.group;
        let input = |token| match &asked {
            Asked::Write { key, op, level, context } => {
                let mut write = WriteRequest::delete(key.clone());
                (write.op, write.context) = (op.clone(), context.clone());
                let body = encode_write(&write).expect("keys and values are small");
                Input::Command { token, group, level: *level, session: None, body }
            }
            Asked::Read { key, level } => {
                let body = encode_get(key).expect("keys are small");
                Input::Query { token, group, level: level.clone(), body, bytes_max: 1 << 20 }
            }
            Asked::Page { scan, bytes_max } => {
                let (body, level) = (encode_scan(scan), scan.level.clone());
                Input::Query { token, group, level, body, bytes_max: *bytes_max }
            }
        };
        let token = clients.request(node, input);
        self.clients[client as usize].busy = Some(token);
        self.open.insert(token, Open { client, asked, at: clients.now });
        self.alarm(client, self.behaviour.timeout, clients);
    }

    /// The next page of a scan, or the first one of another.
    fn page(&mut self, client: u32, rng: &mut Rng) -> Asked {
        // What the answer's frame takes is counted too.
        let bytes_max = if rng.bool() { 1 << 20 } else { KEY_BYTES_MAX + rng.usize(64..400) };
        if let Some(scan) = self.clients[client as usize].rest.take() {
            return Asked::Page { scan, bytes_max };
        }
        let prefix = self.behaviour.prefixes[rng.usize(0..self.behaviour.prefixes.len())];
        let from = if rng.bool() { prefix.to_owned() } else { format!("{prefix}{}", rng.u32(0..self.behaviour.keys)) };
        let to = rng.bool().then(|| format!("{prefix}~").into());
        let level = self.behaviour.reads[rng.usize(0..self.behaviour.reads.len())].clone();
        Asked::Page { scan: ScanRequest { from: from.into(), to, limit: rng.u32(1..6), level }, bytes_max }
    }

    /// A write or a read of one key.
    fn one(&mut self, client: u32, rng: &mut Rng) -> Asked {
        let prefix = self.behaviour.prefixes[rng.usize(0..self.behaviour.prefixes.len())];
        let key = Bytes::from(format!("{prefix}{}", rng.u32(0..self.behaviour.keys)));
        let known = self.clients[client as usize].contexts.get(&key).cloned();
        // Once it counts that so many of each are served, neither is rare.
        let writes = self.behaviour.writes_per_mille;
        let writes = if self.hurrying { writes.clamp(300, 700) } else { writes };
        if rng.u16(0..1000) < writes {
            self.written += 1;
            let level = self.behaviour.levels[rng.usize(0..self.behaviour.levels.len())];
            let value = Bytes::from(format!("v{}", self.written));
            let deletes = rng.u16(0..1000) < self.behaviour.deletes_per_mille;
            let op = match prefix {
                _ if deletes => WriteOp::Delete,
                "count/" => WriteOp::Add { delta: rng.i64(-3..10) },
                "set/" if rng.u8(0..3) == 0 => {
                    let element = Bytes::from(format!("v{}", rng.u64(1..=self.written)));
                    WriteOp::Crdt { op: CrdtOp::Remove { element } }
                }
                "set/" => WriteOp::Crdt { op: CrdtOp::Insert { element: value } },
                "flag/" => WriteOp::Crdt { op: if rng.bool() { CrdtOp::Enable } else { CrdtOp::Disable } },
                _ => WriteOp::Put { value },
            };
            let context = known.filter(|_| rng.bool());
            Asked::Write { key, op, level, context }
        } else {
            let session = self.clients[client as usize].session.clone();
            let level = match rng.u8(0..4) {
                _ if !self.behaviour.reads.is_empty() && rng.u8(0..4) > 0 => {
                    self.behaviour.reads[rng.usize(0..self.behaviour.reads.len())].clone()
                }
                0 => ReadLevel::Local,
                1 => ReadLevel::BoundedStale(Duration::from_millis(1 << rng.u32(2..11))),
                _ => ReadLevel::Session(session),
            };
            // While somebody is dead for good, nobody can say how stale it is.
            let level = match level {
                ReadLevel::BoundedStale(_) if self.hurrying => ReadLevel::Local,
                level => level,
            };
            Asked::Read { key, level }
        }
    }

    fn alarm<H>(&mut self, client: u32, after: Duration, clients: &mut Clients<H>) {
        self.clients[client as usize].due = clients.now + after;
        clients.alarm(client + 1, after);
    }

    /// A request has ended; returns it, unless its client has given up.
    pub(crate) fn end<H>(&mut self, token: Token, clients: &mut Clients<H>) -> Option<Open> {
        let open = self.open.remove(&token)?;
        self.clients[open.client as usize].busy = None;
        let after = self.think(&mut clients.rng);
        self.alarm(open.client, after, clients);
        Some(open)
    }

    /// A node takes no requests for now: once it counts how soon they are served, its client turns to another one.
    pub(crate) fn turned_away(&mut self, client: u32) {
        self.clients[client as usize].left += u32::from(self.hurrying);
    }

    /// A client's write stands here.
    pub(crate) fn wrote(&mut self, client: u32, at: replikit_core::Position) {
        self.writes += 1;
        self.clients[client as usize].session.observe(at);
    }

    /// A client has read this.
    pub(crate) fn read(&mut self, client: u32, key: &Bytes, context: &CausalContext) {
        self.reads += 1;
        let client = &mut self.clients[client as usize];
        client.session.observe_context(self.group, context);
        client.contexts.insert(key.clone(), context.clone());
    }

    /// A client has read a page; the rest of its scan is next.
    pub(crate) fn paged(&mut self, client: u32, rest: Option<ScanRequest>) {
        self.clients[client as usize].rest = rest;
    }

    /// What the client's session has seen is lost: it begins anew.
    pub(crate) fn forget(&mut self, client: u32) {
        self.clients[client as usize].session = SessionToken::new();
    }

    pub(crate) fn vector(&self, client: u32) -> VersionVector {
        let mut vector = VersionVector::new();
        for seen in self.session(client).positions() {
            vector.insert_all(seen.stream.origin, &replikit_core::SequenceSet::up_to(seen.id.index.0));
        }
        vector
    }
}
