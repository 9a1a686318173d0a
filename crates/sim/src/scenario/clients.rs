//! Clients of a scenario: each asks for one thing after the other; what they were told is held against the log.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{
    Input, LogIndex, NodeId, Outcome, ReadLevel, Rejection, Replica, StateMachine, Time, Token, WriteLevel,
};

use super::ledger::{Ledger, Line, difference};
use super::watched::see;
use super::{Draw, Ending, GROUP, Scenario};
use crate::check::Place;
use crate::subject::{Clients, Replicas, Subject};

const TIMEOUT: Duration = Duration::from_millis(400);
const PAUSE_MAX: Duration = Duration::from_millis(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
enum Asked {
    Command(Bytes),
    Query(Bytes),
}

/// One request that was answered.
#[derive(Clone, Debug)]
struct Told {
    place: Place,
    began: Time,
    ended: Time,
    /// Of a query.
    answer: Option<(Bytes, Bytes)>,
}

#[derive(Debug)]
struct Client {
    node: NodeId,
    open: Option<(Token, Asked, Time)>,
    // Alarms that ring before are left-overs.
    wake_at: Time,
}

pub(super) struct ScenarioClients<'a> {
    commands: &'a Draw,
    queries: &'a Draw,
    nodes: u32,
    count: u32,
    clients: Vec<Client>,
    open: BTreeMap<Token, u32>,
    told: Vec<Told>,
    acked: u64,
    stopped: bool,
    ledger: Ledger,
}

impl<'a> ScenarioClients<'a> {
    pub(super) fn new<M, R>(scenario: &'a Scenario<M, R>, ledger: Ledger) -> Self {
        Self {
            commands: &scenario.commands,
            queries: &scenario.queries,
            nodes: scenario.nodes,
            count: scenario.clients,
            clients: Vec::new(),
            open: BTreeMap::new(),
            told: Vec::new(),
            acked: 0,
            stopped: false,
            ledger,
        }
    }

    pub(super) const fn acked(&self) -> u64 {
        self.acked
    }

    pub(super) const fn answered(&self) -> u64 {
        self.told.len() as u64 - self.acked
    }

    pub(super) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn all_applied(&self, nodes: u32) -> bool {
        self.ledger.all_applied(nodes)
    }

    fn ask<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let state = &mut self.clients[client as usize - 1];
        if let Some((token, ..)) = state.open.take() {
            // It waits no longer.
            self.open.remove(&token);
            state.node = NodeId(clients.rng.u32(1..=self.nodes));
        }
        if self.stopped {
            return;
        }
        let asked = if clients.rng.u8(0..4) == 0 {
            Asked::Query((self.queries)(&mut clients.rng))
        } else {
            Asked::Command((self.commands)(&mut clients.rng))
        };
        let what = asked.clone();
        let token = clients.request(state.node, |token| match what {
            Asked::Command(body) => {
                Input::Command { token, group: GROUP, level: WriteLevel::Quorum, session: None, body }
            }
            Asked::Query(body) => {
                let (level, bytes_max) = (ReadLevel::Linearizable, ANSWER_BYTES_MAX);
                Input::Query { token, group: GROUP, level, body, bytes_max }
            }
        });
        state.open = Some((token, asked, clients.now));
        state.wake_at = clients.now + TIMEOUT;
        clients.alarm(client, TIMEOUT);
        self.open.insert(token, client);
    }

    fn rest<H>(&mut self, client: u32, clients: &mut Clients<H>) {
        let after = Duration::from_nanos(clients.rng.u64(0..=PAUSE_MAX.as_nanos() as u64));
        self.clients[client as usize - 1].wake_at = clients.now + after;
        clients.alarm(client, after);
    }

    /// An acknowledged command stands where its reply says, and did what its reply says.
    fn acknowledged(&self, index: LogIndex, command: &Bytes, reply: &Bytes) -> Result<(), String> {
        match self.ledger.line(index) {
            Some(line) if line.command == *command && line.reply == *reply => Ok(()),
            Some(Line { command: there, reply: said, .. }) => Err(format!(
                "{command:?} was acknowledged as index {index} with {reply:?}, but there stands {there:?} with {said:?}"
            )),
            None => Err(format!("{command:?} was acknowledged as index {index}, which nobody has applied")),
        }
    }

    /// The whole log, replayed to a machine in its first state, must explain everything that was seen.
    pub(super) fn check_end<M: StateMachine>(&mut self, fresh: M) -> Result<(), Ending> {
        self.replay(fresh).map_err(Ending::AtEnd)
    }

    fn replay<M: StateMachine>(&mut self, mut machine: M) -> Result<(), String> {
        // The order of the log respects real time: then all that was told is linearizable, if the answers are right.
        self.told.sort_by_key(|told| (told.place.order(), told.began));
        let mut latest_begin = Time::ZERO;
        for told in &self.told {
            if told.ended < latest_begin {
                return Err(format!("not linearizable: {told:?} had ended before something before it began"));
            }
            latest_begin = latest_begin.max(told.began);
        }
        let mut answers = self.told.iter().filter_map(|told| match (told.place, &told.answer) {
            (Place::After(index), Some((query, answer))) => Some((index, query, answer)),
            _ => None,
        });
        let mut due = answers.next();
        let lines = self.ledger.lines();
        for at in 0..=lines.len() {
            let next = lines.get(at).map(|(index, _)| *index);
            while let Some((seen, query, answer)) = due
                && next.is_none_or(|next| seen < next)
            {
                self.ledger.begin(NodeId(0), || format!("while a replay up to index {seen} answered {query:?}"));
                let replayed = machine.query(query, ANSWER_BYTES_MAX);
                if replayed != *answer {
                    return Err(format!(
                        "a query {query:?} of the state at index {seen} was answered {answer:?}, in a replay {replayed:?}"
                    ));
                }
                due = answers.next();
            }
            if let Some((index, line)) = lines.get(at) {
                self.ledger.begin(NodeId(0), || format!("while index {index} was replayed, {:?}", line.command));
                let reply = machine.apply(*index, &line.command);
                let state = self.ledger.compares(*index).then(|| see(&machine, &self.ledger));
                let replayed = Line { command: line.command.clone(), reply, state };
                if let Some(what) = difference(line, &replayed) {
                    return Err(format!("index {index}, a replica and a replay of the log: {what}"));
                }
            }
        }
        self.ledger.done();
        Ok(())
    }
}

impl<R: Replica> Subject<R> for ScenarioClients<'_> {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<R::Head>) {
        if client == 0 {
            for number in 1..=self.count {
                let node = NodeId(clients.rng.u32(1..=self.nodes));
                self.clients.push(Client { node, open: None, wake_at: Time::ZERO });
                self.rest(number, clients);
            }
            return;
        }
        if self.clients.get(client as usize - 1).is_some_and(|state| clients.now >= state.wake_at) {
            self.ask(client, clients);
        }
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<R::Head>,
    ) -> Result<(), String> {
        let Some(client) = self.open.remove(&token) else { return Ok(()) };
        let state = &mut self.clients[client as usize - 1];
        let (_, asked, began) = state.open.take().expect("a token is open exactly while its client waits for it");
        let ended = clients.now;
        match (outcome, asked) {
            (Outcome::Acked { at, reply, .. }, Asked::Command(command)) => {
                self.acked += 1;
                self.told.push(Told { place: Place::At(at.id.index), began, ended, answer: None });
                self.acknowledged(at.id.index, &command, &reply)?;
            }
            (Outcome::Value { values, seen, .. }, Asked::Query(query)) => {
                let [answer] = &values[..] else { return Err(format!("a query was answered {} times", values.len())) };
                let seen = seen.ok_or("a query's answer does not say what it has seen")?;
                let answer = Some((query, answer.clone()));
                self.told.push(Told { place: Place::After(seen.id.index), began, ended, answer });
            }
            (Outcome::Rejected(Rejection::NotLeader { leader: Some(leader) }), _) => state.node = leader,
            (Outcome::Rejected(_) | Outcome::Indeterminate { .. }, _) => {
                state.node = NodeId(clients.rng.u32(1..=self.nodes));
            }
            (outcome, asked) => return Err(format!("{outcome:?} ends {asked:?}")),
        }
        self.rest(client, clients);
        Ok(())
    }

    fn check(&mut self, _: NodeId, _: &impl Replicas<R>) -> Result<(), String> {
        self.ledger.check()
    }
}
