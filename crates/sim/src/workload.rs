//! Clients in a closed loop on a few keys: each writes a value that nobody else writes, or reads, waits for the end, and
//! goes on. What they see is a [`History`].
//!
//! Invariants: a client without a session that does not learn the end of an operation never asks again for it: in the
//! history it stays unknown. A client with a session asks again under the same number, at any node, until it learns the
//! end: in the history that is one operation.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{
    Input, NodeId, Outcome, Position, Rejection, Replica, SessionId, SessionSeq, Time, Token, WriteLevel,
};

use crate::check::{Ended, History, OperationId, What};
use crate::subject::Clients;

/// One write, as a client wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedWrite {
    /// Which key.
    pub key: Bytes,
    /// The value, unique in the run.
    pub value: Bytes,
    /// When it counts as done.
    pub level: WriteLevel,
    /// For clients that ask again.
    pub session: Option<SessionSeq>,
}

/// How a strategy family is asked to write and read a key.
pub trait Dialect<R: Replica> {
    /// A write of a key.
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<R::Head>;

    /// A linearizable read of a key.
    fn read(&mut self, token: Token, key: &Bytes) -> Input<R::Head>;

    /// What a read found, from the values of its outcome.
    ///
    /// # Errors
    /// A sentence, when the answer is none.
    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String>;

    /// Opens a session; `None` in families without sessions.
    fn open_session(&mut self, token: Token) -> Option<Input<R::Head>> {
        let _ = token;
        None
    }
}

/// What the clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSettings {
    /// Clients, each with one operation at a time.
    pub clients: u32,
    /// Keys; few keys mean much contention.
    pub keys: u32,
    /// Share of writes, per mille.
    pub writes_per_mille: u16,
    /// The first so many clients open a session and ask again under it.
    pub with_session: u32,
    /// Levels of writes, drawn for each. Acknowledgements below `Quorum` promise nothing to the history.
    pub levels: Vec<WriteLevel>,
    /// Largest pause between two operations of a client.
    pub think_max: Duration,
    /// A client gives up on an operation after this, or asks again.
    pub timeout: Duration,
}

impl Default for WorkloadSettings {
    fn default() -> Self {
        Self {
            clients: 4,
            keys: 3,
            writes_per_mille: 500,
            with_session: 0,
            levels: vec![WriteLevel::Quorum],
            think_max: Duration::from_millis(10),
            timeout: Duration::from_millis(400),
        }
    }
}

#[derive(Clone, Debug)]
enum Open {
    Session,
    Read { operation: OperationId },
    Write { operation: OperationId, write: WantedWrite },
}

#[derive(Debug)]
struct Client {
    node: NodeId,
    session: Option<SessionId>,
    sequence: u64,
    asked: Option<(Token, Open)>,
    // A write under a session whose end is not known: it is asked for again.
    pending: Option<(OperationId, WantedWrite)>,
    // Alarms that ring before are left-overs.
    wake_at: Time,
}

/// An acknowledged write: its operation and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckedWrite {
    /// Which operation.
    pub operation: OperationId,
    /// What was written.
    pub write: WantedWrite,
    /// Where it stands.
    pub at: Position,
}

/// The clients of a run.
#[derive(Debug)]
pub struct Workload<D> {
    settings: WorkloadSettings,
    nodes: u32,
    dialect: D,
    clients: Vec<Client>,
    asked: BTreeMap<Token, u32>,
    values: u64,
    stopped: bool,
    history: History,
    acked: Vec<AckedWrite>,
}

/// Whether an acknowledgement at this level means that the write is never lost.
const fn is_lasting(level: WriteLevel) -> bool {
    matches!(level, WriteLevel::Quorum | WriteLevel::Applied(_))
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
            values: 0,
            stopped: false,
            history: History::new(),
            acked: Vec::new(),
        }
    }

    /// What the clients did and saw.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The acknowledged writes, at all levels, in the order of their acknowledgements.
    #[must_use]
    pub fn acked(&self) -> &[AckedWrite] {
        &self.acked
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
            for number in 1..=self.settings.clients {
                let node = NodeId(clients.rng.u32(1..=self.nodes));
                self.clients.push(Client {
                    node,
                    session: None,
                    sequence: 0,
                    asked: None,
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
        if state.asked.is_some() {
            self.give_up(client, clients);
        }
        self.ask(client, clients);
    }

    /// The client waits no longer for the answer.
    fn give_up<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let state = &mut self.clients[client as usize - 1];
        state.node = NodeId(clients.rng.u32(1..=self.nodes));
        let Some((token, open)) = state.asked.take() else { return };
        self.asked.remove(&token);
        if let Open::Write { operation, write } = open
            && write.session.is_some()
        {
            state.pending = Some((operation, write));
        }
    }

    fn ask<R: Replica>(&mut self, client: u32, clients: &mut Clients<R::Head>)
    where
        D: Dialect<R>,
    {
        let state = &mut self.clients[client as usize - 1];
        let dialect = &mut self.dialect;
        let node = state.node;
        let (token, open) = if let Some((operation, write)) = state.pending.take() {
            (clients.request(node, |token| dialect.write(token, &write)), Open::Write { operation, write })
        } else if self.stopped {
            return;
        } else if client <= self.settings.with_session
            && state.session.is_none()
            && let Some(token) = clients.try_request(node, |token| dialect.open_session(token))
        {
            (token, Open::Session)
        } else {
            let key = Bytes::from(format!("key{}", clients.rng.u32(0..self.settings.keys.max(1))));
            if clients.rng.u16(0..1000) < self.settings.writes_per_mille {
                self.values += 1;
                let value = Bytes::from(format!("value{}", self.values));
                let level = self.settings.levels[clients.rng.usize(0..self.settings.levels.len())];
                state.sequence += 1;
                let sequence = state.sequence;
                let session = state.session.map(|session| SessionSeq { session, sequence });
                let write = WantedWrite { key: key.clone(), value: value.clone(), level, session };
                let token = clients.request(node, |token| dialect.write(token, &write));
                (token, Open::Write { operation: self.history.begin(clients.now, key, What::Write(value)), write })
            } else {
                let token = clients.request(node, |token| dialect.read(token, &key));
                (token, Open::Read { operation: self.history.begin(clients.now, key, What::Read) })
            }
        };
        let state = &mut self.clients[client as usize - 1];
        state.asked = Some((token, open));
        state.wake_at = clients.now + self.settings.timeout;
        clients.alarm(client, self.settings.timeout);
        self.asked.insert(token, client);
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
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<R::Head>,
    ) -> Result<(), String>
    where
        D: Dialect<R>,
    {
        // Of a client that has given up.
        let Some(client) = self.asked.remove(&token) else { return Ok(()) };
        let state = &mut self.clients[client as usize - 1];
        let (asked, open) = state.asked.take().expect("a token is asked exactly while its client waits for it");
        assert_eq!(asked, token, "a client waits for one token at a time");
        let at = clients.now;
        let mut pause = self.settings.think_max;
        match (&outcome, &open) {
            (Outcome::Rejected(rejection), _) => {
                state.node = match rejection {
                    Rejection::NotLeader { leader: Some(leader) } => *leader,
                    _ => NodeId(clients.rng.u32(1..=self.nodes)),
                };
                pause = pause.max(Duration::from_millis(2));
            }
            (Outcome::Indeterminate { .. }, _) => state.node = NodeId(clients.rng.u32(1..=self.nodes)),
            _ => {}
        }
        match (outcome, open) {
            (Outcome::Acked { reply, .. }, Open::Session) => {
                let id = reply[..].try_into().map_err(|_| format!("{reply:?} is no session id"))?;
                state.session = Some(SessionId(u64::from_le_bytes(id)));
                state.sequence = 0;
            }
            (Outcome::Acked { at: position, .. }, Open::Write { operation, write }) => {
                if is_lasting(write.level) {
                    self.history.end(operation, Ended::Written { at });
                }
                self.acked.push(AckedWrite { operation, write, at: position });
            }
            (Outcome::Value { values, .. }, Open::Read { operation }) => {
                let value = self.dialect.found(&values)?;
                self.history.end(operation, Ended::Found { at, value });
            }
            (Outcome::Rejected(Rejection::SessionExpired), Open::Write { .. }) => state.session = None,
            // An earlier attempt may have taken effect, whatever became of this one.
            (Outcome::Rejected(_) | Outcome::Indeterminate { .. }, Open::Write { operation, write })
                if write.session.is_some() =>
            {
                state.pending = Some((operation, write));
            }
            (Outcome::Rejected(_), Open::Write { operation, .. } | Open::Read { operation }) => {
                self.history.end(operation, Ended::Void);
            }
            (Outcome::Indeterminate { .. }, _) | (Outcome::Rejected(_), Open::Session) => {}
            (outcome, open) => return Err(format!("{outcome:?} ends {open:?}")),
        }
        self.rest(client, pause, clients);
        Ok(())
    }

    /// A process ended: the part of [`Subject::on_crash`](crate::Subject::on_crash). Clients that notice go elsewhere.
    pub fn on_crash<H>(&mut self, node: NodeId, clients: &mut Clients<H>) {
        for client in 1..=self.clients.len() as u32 {
            let state = &mut self.clients[client as usize - 1];
            if state.node == node && state.asked.is_some() && clients.rng.bool() {
                self.give_up(client, clients);
                self.rest(client, self.settings.think_max, clients);
            }
        }
    }
}
