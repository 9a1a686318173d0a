//! Clients in a closed loop: each asks for one thing at a time, waits for the end, and goes on. What they see of keys that
//! are only put and read is a [`History`].
//!
//! Invariants: a client without a session that does not learn the end of an operation never asks again for it: in the
//! history it stays unknown. A client with a session asks again under the same number, at any node, until it learns the
//! end: in the history that is one operation.

mod dialect;
mod request;
mod settings;

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{
    NodeId, Outcome, ReadLevel, Rejection, Replica, SessionId, SessionSeq, SessionToken, Time, Token, WriteLevel,
    WriteOp,
};

pub use self::dialect::{Dialect, WantedRead, WantedWrite};
pub use self::request::{AckedWrite, Asked, Request, is_lasting};
pub use self::settings::{ReadKind, WorkloadSettings};
use crate::check::{Ended, History, What};
use crate::fault::Fault;
use crate::subject::Clients;

#[derive(Debug)]
struct Client {
    node: NodeId,
    session: Option<SessionId>,
    sequence: u64,
    seen: SessionToken,
    request: Option<Request>,
    // A write under a session whose end is not known: it is asked for again.
    pending: Option<Request>,
    // Alarms that ring before are left-overs.
    wake_at: Time,
}

/// The clients of a run.
#[derive(Debug)]
pub struct Workload<D> {
    settings: WorkloadSettings,
    nodes: u32,
    dialect: D,
    clients: Vec<Client>,
    asked: BTreeMap<Token, u32>,
    unique: u64,
    stopped: bool,
    history: History,
    acked: Vec<AckedWrite>,
    reads: usize,
    // Writes that were ever asked for, oldest first, for whoever knows what may be applied.
    wanted: Vec<WantedWrite>,
    garbage: Vec<Bytes>,
}

impl<D> Workload<D> {
    /// Clients for a cluster of so many nodes.
    pub const fn new(settings: WorkloadSettings, nodes: u32, dialect: D) -> Self {
        Self {
            settings,
            nodes,
            dialect,
            clients: Vec::new(),
            asked: BTreeMap::new(),
            unique: 0,
            stopped: false,
            history: History::new(),
            acked: Vec::new(),
            reads: 0,
            wanted: Vec::new(),
            garbage: Vec::new(),
        }
    }

    /// What the clients did and saw of keys that are only put and read linearizably.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The acknowledged writes, at all levels, in the order of their acknowledgements.
    #[must_use]
    pub fn acked(&self) -> &[AckedWrite] {
        &self.acked
    }

    /// Writes and reads that were acknowledged or answered.
    #[must_use]
    pub fn answered(&self) -> (usize, usize) {
        (self.acked.len(), self.reads)
    }

    /// All writes that were ever asked for, oldest first, each once however often it was asked for.
    #[must_use]
    pub fn wanted(&self) -> &[WantedWrite] {
        &self.wanted
    }

    /// Requests that mean nothing, oldest first.
    #[must_use]
    pub fn garbage(&self) -> &[Bytes] {
        &self.garbage
    }

    /// The request of this token, while it is under way.
    #[must_use]
    pub fn request(&self, token: Token) -> Option<&Request> {
        self.clients[*self.asked.get(&token)? as usize - 1].request.as_ref()
    }

    /// From now on as many writes as reads, one after the other, and nothing odd: for what must succeed soon.
    pub fn hurry(&mut self) {
        let settings = &mut self.settings;
        (settings.writes_per_mille, settings.odd_per_mille) = (500, 0);
        settings.think_max = settings.think_max.min(Duration::from_millis(5));
    }

    /// No new operations from now on; what a session asks for again goes on.
    pub const fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether no operation is open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.clients.iter().all(|client| client.pending.is_none())
    }

    /// A client's alarm rings: the part of [`Subject::on_alarm`](crate::Subject::on_alarm).
    pub fn on_alarm<R: Replica>(&mut self, client: u32, clients: &mut Clients<R::Head>)
    where
        D: Dialect<R>,
    {
        if client == 0 {
            clients.counts[Fault::HotKey] += u64::from(self.settings.keys == 1);
            for number in 1..=self.settings.clients {
                let node = NodeId(clients.rng.u32(1..=self.nodes));
                self.clients.push(Client {
                    node,
                    session: None,
                    sequence: 0,
                    seen: SessionToken::new(),
                    request: None,
                    pending: None,
                    wake_at: Time::ZERO,
                });
                self.rest(number, self.settings.think_max, clients);
            }
            return;
        }
        let Some(state) = self.clients.get(client as usize - 1) else { return };
        if clients.now < state.wake_at {
            return;
        }
        if state.request.is_some() {
            self.give_up(client, clients);
        }
        self.ask(client, clients);
    }

    fn close(&mut self, client: u32) -> Option<Request> {
        let request = self.clients[client as usize - 1].request.take()?;
        self.asked.remove(&request.token);
        if let Some(twin) = request.twin {
            self.asked.remove(&twin);
        }
        Some(request)
    }

    /// The client waits no longer for the answer.
    fn give_up<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let node = NodeId(clients.rng.u32(1..=self.nodes));
        let request = self.close(client);
        let state = &mut self.clients[client as usize - 1];
        state.node = node;
        if let Some(request) = request
            && matches!(&request.asked, Asked::Write { write, .. } if write.session.is_some())
        {
            state.pending = Some(request);
        }
    }

    fn ask<R: Replica>(&mut self, client: u32, clients: &mut Clients<R::Head>)
    where
        D: Dialect<R>,
    {
        let state = &mut self.clients[client as usize - 1];
        let dialect = &mut self.dialect;
        let node = state.node;
        let odd = !self.stopped && clients.rng.u16(0..1000) < self.settings.odd_per_mille;
        let mut request = if let Some(mut request) = state.pending.take() {
            let Asked::Write { write, attempts, .. } = &mut request.asked else { unreachable!("only writes pend") };
            *attempts += 1;
            clients.counts[Fault::Retry] += 1;
            clients.counts[Fault::RetryElsewhere] += u64::from(node != request.node);
            request.token = clients.request(node, |token| dialect.write(token, write));
            request.node = node;
            request
        } else if self.stopped {
            return;
        } else if client <= self.settings.with_session
            && state.session.is_none()
            && let Some(token) = clients.try_request(node, |token| dialect.open_session(token))
        {
            Request { began: clients.now, node, asked: Asked::Session, token, twin: None }
        } else if odd && let Some(token) = self.ask_oddly(client, clients) {
            Request { began: clients.now, node, asked: Asked::Odd, token, twin: None }
        } else {
            self.ask_anew(client, clients)
        };
        let state = &mut self.clients[client as usize - 1];
        if let Asked::Write { write, .. } = &request.asked
            && write.session.is_some()
            && odd
        {
            // Two copies of one request race each other, at one node or at two.
            clients.counts[Fault::DuplicateRequest] += 1;
            let other = NodeId(clients.rng.u32(1..=self.nodes));
            let twin = clients.request(other, |token| self.dialect.write(token, write));
            self.asked.insert(twin, client);
            request.twin = Some(twin);
        }
        self.asked.insert(request.token, client);
        state.request = Some(request);
        state.wake_at = clients.now + self.settings.timeout;
        clients.alarm(client, self.settings.timeout);
    }

    /// What no honest or up-to-date client asks for, and what only an operator does.
    fn ask_oddly<R: Replica>(&mut self, client: u32, clients: &mut Clients<R::Head>) -> Option<Token>
    where
        D: Dialect<R>,
    {
        let (node, dialect) = (self.clients[client as usize - 1].node, &mut self.dialect);
        match clients.rng.u8(0..4) {
            0 => {
                let mut bytes = vec![0; clients.rng.usize(0..40)];
                clients.rng.fill(&mut bytes);
                // No encoding begins like that, so that it means nothing to anybody.
                bytes.insert(0, 0xff);
                let bytes = Bytes::from(bytes);
                let token = clients.try_request(node, |token| dialect.garbage(token, bytes.clone()))?;
                clients.counts[Fault::HostileRequest] += 1;
                self.garbage.push(bytes);
                Some(token)
            }
            1 => {
                let (key, op) = (Bytes::from_static(b"astray"), WriteOp::Delete);
                let write = WantedWrite { key, op, level: WriteLevel::Quorum, session: None };
                let token = clients.try_request(node, |token| dialect.misroute(token, &write))?;
                clients.counts[Fault::StaleRoute] += 1;
                Some(token)
            }
            2 => {
                let token = clients.try_request(node, |token| dialect.snapshot(token))?;
                clients.counts[Fault::SnapshotByHand] += 1;
                Some(token)
            }
            _ => None,
        }
    }

    fn ask_anew<R: Replica>(&mut self, client: u32, clients: &mut Clients<R::Head>) -> Request
    where
        D: Dialect<R>,
    {
        let settings = &self.settings;
        let state = &mut self.clients[client as usize - 1];
        let dialect = &mut self.dialect;
        let (node, began, rng) = (state.node, clients.now, &mut clients.rng);
        let number = rng.u32(0..settings.keys.max(1));
        let other = rng.u16(0..1000) < settings.other_ops_per_mille;
        let family = if other { ["del", "cas", "ctr"][rng.usize(0..3)] } else { "key" };
        let key = Bytes::from(format!("{family}{number}"));
        let share = if client.is_multiple_of(3) { settings.writes_per_mille / 5 } else { settings.writes_per_mille };
        if rng.u16(0..1000) < share {
            self.unique += 1;
            let value = Bytes::from(format!("v{}", self.unique));
            let op = match family {
                "del" if rng.bool() => WriteOp::Delete,
                "cas" => {
                    // Guesses at a recent value, so that some succeed.
                    let guess = |write: &&WantedWrite| write.key == key;
                    let expected = self.wanted.iter().rev().take(16).find(guess).and_then(|write| match &write.op {
                        WriteOp::CompareAndSet { new, .. } => new.clone(),
                        _ => None,
                    });
                    WriteOp::CompareAndSet { expected: expected.filter(|_| rng.u8(0..4) > 0), new: Some(value) }
                }
                "ctr" => WriteOp::Add { delta: self.unique as i64 },
                _ => WriteOp::Put { value },
            };
            let level = settings.levels[rng.usize(0..settings.levels.len())];
            state.sequence += 1;
            let sequence = state.sequence;
            let session = state.session.map(|session| SessionSeq { session, sequence });
            let write = WantedWrite { key: key.clone(), op, level, session };
            let token = clients.request(node, |token| dialect.write(token, &write));
            self.wanted.push(write.clone());
            let operation = match &write.op {
                WriteOp::Put { value } if family == "key" => {
                    Some(self.history.begin(began, key, What::Write(value.clone())))
                }
                _ => None,
            };
            let asked = Asked::Write { write, operation, attempts: 1 };
            return Request { began, node, asked, token, twin: None };
        }
        let kind = settings.reads[rng.usize(0..settings.reads.len())];
        let level = match kind {
            ReadKind::Linearizable => ReadLevel::Linearizable,
            ReadKind::Session => ReadLevel::Session(state.seen.clone()),
            ReadKind::BoundedStale(bound) => ReadLevel::BoundedStale(bound),
            ReadKind::Local => ReadLevel::Local,
        };
        let read = WantedRead { key: key.clone(), level };
        let token = clients.request(node, |token| dialect.read(token, &read));
        let recorded = family == "key" && kind == ReadKind::Linearizable;
        let operation = recorded.then(|| self.history.begin(began, key, What::Read));
        Request { began, node, asked: Asked::Read { read, operation }, token, twin: None }
    }

    fn rest<H>(&mut self, client: u32, at_most: Duration, clients: &mut Clients<H>) {
        let after = Duration::from_nanos(clients.rng.u64(0..=at_most.as_nanos() as u64));
        self.clients[client as usize - 1].wake_at = clients.now + after;
        clients.alarm(client, after);
    }

    /// A request has ended: the part of [`Subject::on_done`](crate::Subject::on_done).
    ///
    /// # Errors
    /// A sentence, when the outcome is none that the request can have.
    pub fn on_done<R: Replica>(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<R::Head>,
    ) -> Result<(), String>
    where
        D: Dialect<R>,
    {
        // Of a client that has given up, or whose other copy was answered.
        let Some(&client) = self.asked.get(&token) else { return Ok(()) };
        let at = clients.now;
        let mut pause = self.settings.think_max;
        let state = &mut self.clients[client as usize - 1];
        match &outcome {
            Outcome::Rejected(rejection) => {
                // The other copy may still be answered.
                if let Some(request) = &mut state.request
                    && let Some(twin) = request.twin.take()
                {
                    self.asked.remove(&token);
                    request.token = if token == twin { request.token } else { twin };
                    return Ok(());
                }
                state.node = match rejection {
                    Rejection::NotLeader { leader: Some(leader) } => *leader,
                    _ => NodeId(clients.rng.u32(1..=self.nodes)),
                };
                pause = pause.max(Duration::from_millis(2));
            }
            Outcome::Indeterminate { .. } => state.node = NodeId(clients.rng.u32(1..=self.nodes)),
            Outcome::Acked { at, .. } => state.seen.observe(*at),
            Outcome::Value { seen: Some(seen), .. } => state.seen.observe(*seen),
            Outcome::Value { .. } => {}
        }
        let mut request = self.close(client).expect("a token is asked exactly while its client waits for it");
        let state = &mut self.clients[client as usize - 1];
        match (outcome, &request.asked) {
            (_, Asked::Odd) => {}
            (Outcome::Acked { reply, .. }, Asked::Session) => {
                let id = reply[..].try_into().map_err(|_| format!("session_ids: {reply:?} is no session id"))?;
                state.session = Some(SessionId(u64::from_le_bytes(id)));
                state.sequence = 0;
            }
            (Outcome::Acked { at: position, reply, .. }, Asked::Write { operation, write, .. }) => {
                if let Some(operation) = operation
                    && is_lasting(write.level)
                {
                    self.history.end(*operation, Ended::Written { at });
                }
                self.acked.push(AckedWrite { write: write.clone(), at: position, by: node, when: at, reply });
            }
            (Outcome::Value { values, .. }, Asked::Read { operation, .. }) => {
                self.reads += 1;
                let value = self.dialect.found(&values)?;
                if let Some(operation) = operation {
                    self.history.end(*operation, Ended::Found { at, value });
                }
            }
            (Outcome::Rejected(Rejection::SessionExpired), Asked::Write { .. }) => state.session = None,
            (Outcome::Rejected(Rejection::LostWrites { .. }), Asked::Read { operation, .. }) => {
                // The client has learned what it lost, and begins anew.
                state.seen = SessionToken::new();
                if let Some(operation) = operation {
                    self.history.end(*operation, Ended::Void);
                }
            }
            // An earlier attempt may have taken effect, whatever became of this one.
            (Outcome::Rejected(_) | Outcome::Indeterminate { .. }, Asked::Write { write, .. })
                if write.session.is_some() =>
            {
                request.node = node;
                state.pending = Some(request);
            }
            (Outcome::Rejected(_), Asked::Write { operation, .. } | Asked::Read { operation, .. }) => {
                if let Some(operation) = operation {
                    self.history.end(*operation, Ended::Void);
                }
            }
            (Outcome::Indeterminate { .. }, _) | (Outcome::Rejected(_), Asked::Session) => {}
            (outcome, asked) => return Err(format!("outcomes_fit_requests: {outcome:?} ends {asked:?}")),
        }
        self.rest(client, pause, clients);
        Ok(())
    }

    /// A process ended: the part of [`Subject::on_crash`](crate::Subject::on_crash). Clients that notice go elsewhere.
    pub fn on_crash<H>(&mut self, node: NodeId, clients: &mut Clients<H>) {
        for client in 1..=self.clients.len() as u32 {
            let state = &mut self.clients[client as usize - 1];
            if state.node == node && state.request.is_some() && clients.rng.bool() {
                self.give_up(client, clients);
                self.rest(client, self.settings.think_max, clients);
            }
        }
    }
}
