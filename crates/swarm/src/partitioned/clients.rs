//! Clients of a partitioned store: each with a cache of routes that goes stale, and one request at a time that it asks again, under
//! the same number, until it is answered.

use core::ops::Bound;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikit_core::keyspace::{decode_effect, decode_page, decode_value, encode_get, encode_scan, encode_write};
use replikit_core::{
    GroupId, Input, NodeId, Outcome, ReadLevel, Rejection, ScanRequest, Time, Token, WriteEffect, WriteLevel,
    WriteRequest,
};
use replikit_partitioning::handoff::Refusal;
use replikit_partitioning::host::HostHead;
use replikit_partitioning::shard::{self, ClientId, Reply, Request};
use replikit_partitioning::{Birth, BoundsVersion, MetaAnswer, MetaQuery, Partition, PartitionId, Route};
use replikit_sim::Clients;
use replikit_sim::check::{Ended, History, OperationId, What};
use replikit_single_leader::Head;

use super::{KEYS, Layout, MAPS};
use crate::probe::{Probe, Probes};

type Hands = Clients<HostHead<Head>>;

/// Keys of a page of a scan.
const PAGE: u32 = 3;

/// Which partition covers which keys, as one client knows it: by the start of each.
#[derive(Clone, Debug, Default)]
struct Routes(BTreeMap<Bytes, Partition>);

impl Routes {
    fn of(&self, key: &[u8]) -> Option<&Partition> {
        self.0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .map(|(_, it)| it)
            .filter(|it| it.span.contains(key))
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(start) = self.of(key).map(|entry| entry.span.start.clone()) {
            self.0.remove(&start);
        }
    }

    /// Takes an entry in place of all that it meets, unless the same partition is known newer.
    fn learn(&mut self, entry: &Partition) {
        let newer = |it: &Partition| it.id == entry.id && (it.birth, it.bounds) > (entry.birth, entry.bounds);
        if self.0.values().any(newer) {
            return;
        }
        self.0.retain(|_, it| !it.span.meets(&entry.span));
        self.0.insert(entry.span.start.clone(), entry.clone());
    }
}

#[derive(Clone, Debug)]
enum Want {
    Put { key: Bytes, value: Bytes, operation: OperationId },
    Add { key: Bytes, amount: i64 },
    Get { key: Bytes, operation: OperationId },
    Scan { cursor: Bytes, items: Vec<Bytes>, before: Vec<Bytes>, end: Option<Bytes>, pages: u32 },
}

impl Want {
    fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Add { key, .. } | Self::Get { key, .. } | Self::Scan { cursor: key, .. } => {
                key
            }
        }
    }
}

#[derive(Debug)]
struct Pending {
    sequence: u64,
    want: Want,
    token: Token,
    group: GroupId,
    // The entry that it was asked by.
    by: Option<(PartitionId, Birth, BoundsVersion)>,
    attempts: u32,
    // It was refused because its partition was elsewhere by then.
    redirected: bool,
}

#[derive(Debug, Default)]
struct Client {
    routes: Routes,
    leaders: BTreeMap<GroupId, NodeId>,
    sequence: u64,
    pending: Option<Pending>,
    wake_at: Time,
}

/// All clients.
#[derive(Debug)]
pub(crate) struct StoreClients {
    layout: Layout,
    clients: Vec<Client>,
    count: u32,
    think: Duration,
    timeout: Duration,
    asked: BTreeMap<Token, u32>,
    // Questions for the map.
    maps: BTreeMap<Token, u32>,
    history: History,
    unique: u64,
    written: BTreeSet<Bytes>,
    sums: BTreeMap<Bytes, i64>,
    answers: (usize, usize),
    stopped: bool,
}

impl StoreClients {
    pub(crate) fn new(layout: Layout, count: u32, think: Duration, timeout: Duration) -> Self {
        Self {
            layout,
            clients: Vec::new(),
            count,
            think,
            timeout,
            asked: BTreeMap::new(),
            maps: BTreeMap::new(),
            history: History::new(),
            unique: 0,
            written: BTreeSet::new(),
            sums: BTreeMap::new(),
            answers: (0, 0),
            stopped: false,
        }
    }

    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    pub(crate) const fn answered(&self) -> (usize, usize) {
        self.answers
    }

    pub(crate) const fn answered_all(&self) -> usize {
        self.answers.0 + self.answers.1
    }

    pub(crate) const fn history(&self) -> &History {
        &self.history
    }

    /// What each counter is to be: every addition once.
    pub(crate) const fn sums(&self) -> &BTreeMap<Bytes, i64> {
        &self.sums
    }

    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    /// Faults are over: requests come faster, so that what must succeed soon does.
    pub(crate) fn hurry(&mut self) {
        self.think = self.think.min(Duration::from_millis(5));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.pending.is_none())
    }

    pub(crate) fn describe(&self) -> String {
        let open = |(nth, client): (usize, &Client)| {
            client.pending.as_ref().map(|it| {
                format!("client {nth} waits for group {} since {:?}: {:?}", it.group, client.wake_at, it.want)
            })
        };
        self.clients.iter().enumerate().filter_map(open).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn start(&mut self, hands: &mut Hands) {
        for client in 1..=self.count {
            let mut it = Client::default();
            self.layout.first.partitions().for_each(|entry| it.routes.learn(entry));
            self.clients.push(it);
            self.rest(client, self.think, hands);
        }
    }

    fn rest(&mut self, client: u32, at_most: Duration, hands: &mut Hands) {
        let after = Duration::from_nanos(hands.rng.u64(0..=at_most.as_nanos() as u64));
        self.clients[client as usize - 1].wake_at = hands.now + after;
        hands.alarm(client, after);
    }

    pub(crate) fn on_alarm(&mut self, client: u32, hands: &mut Hands) {
        let Some(state) = self.clients.get_mut(client as usize - 1) else { return };
        if hands.now < state.wake_at {
            return;
        }
        if let Some(pending) = &state.pending {
            // No answer in time: somebody else may lead.
            if self.asked.remove(&pending.token).is_some() {
                state.leaders.remove(&pending.group);
            }
            return self.ask(client, hands);
        }
        if self.stopped {
            return;
        }
        self.begin(client, hands);
        self.ask(client, hands);
    }

    fn begin(&mut self, client: u32, hands: &mut Hands) {
        let number = hands.rng.u32(0..KEYS);
        self.unique += 1;
        // On both sides of the first cut.
        let family = if hands.rng.bool() { "key" } else { "a" };
        let key = Bytes::from(format!("{family}{number}"));
        let want = match hands.rng.u8(0..10) {
            0..=3 => {
                let value = Bytes::from(format!("v{}", self.unique));
                let operation = self.history.begin(hands.now, key.clone(), What::Write(value.clone()));
                Want::Put { key, value, operation }
            }
            4 | 5 => {
                let (key, amount) = (Bytes::from(format!("{family}+{number}")), self.unique as i64);
                // It is asked for until it is answered, so it counts from the beginning.
                *self.sums.entry(key.clone()).or_default() += amount;
                Want::Add { key, amount }
            }
            6..=8 => {
                let operation = self.history.begin(hands.now, key.clone(), What::Read);
                Want::Get { key, operation }
            }
            _ => {
                let before = self.written.iter().cloned().collect();
                Want::Scan { cursor: Bytes::new(), items: Vec::new(), before, end: None, pages: 0 }
            }
        };
        let state = &mut self.clients[client as usize - 1];
        state.sequence += 1;
        let sequence = state.sequence;
        state.pending =
            Some(Pending { sequence, want, token: Token(0), group: MAPS, by: None, attempts: 0, redirected: false });
    }

    fn ask(&mut self, client: u32, hands: &mut Hands) {
        let state = &mut self.clients[client as usize - 1];
        let Some(pending) = &mut state.pending else { return };
        pending.attempts += 1;
        state.wake_at = hands.now + self.timeout;
        hands.alarm(client, self.timeout);
        let Some(entry) = state.routes.of(pending.want.key()).cloned() else {
            // Nothing is known of it: one question for the whole map.
            let members = self.layout.members(MAPS);
            let node = members[hands.rng.usize(0..members.len())];
            let body = MetaQuery::Since(replikit_core::Epoch(0)).encode();
            let token = hands.request(node, |token| Input::Query {
                token,
                group: MAPS,
                level: ReadLevel::Local,
                body,
                bytes_max: 1 << 20,
            });
            self.maps.insert(token, client);
            return;
        };
        let (group, route) = (entry.group, entry.route());
        pending.by = Some((entry.id, entry.birth, entry.bounds));
        let any = entry.replicas[hands.rng.usize(0..entry.replicas.len())];
        let node = *state.leaders.entry(group).or_insert(any);
        let request =
            Request { client: ClientId(u64::from(client)), sequence: pending.sequence, done_below: pending.sequence };
        if let Want::Scan { end, .. } = &mut pending.want {
            *end = entry.span.end.clone();
        }
        let token = hands.request(node, |token| input(token, group, &route, request, &pending.want));
        (pending.token, pending.group) = (token, group);
        self.asked.insert(token, client);
    }

    /// A request has ended; whether it was one of these clients'.
    pub(crate) fn on_done(
        &mut self,
        token: Token,
        outcome: &Outcome,
        hands: &mut Hands,
        probes: &mut Probes,
    ) -> Result<(), String> {
        if let Some(client) = self.maps.remove(&token) {
            self.learn_map(client, outcome);
            self.rest(client, Duration::from_millis(1), hands);
            return Ok(());
        }
        let Some(client) = self.asked.remove(&token) else { return Ok(()) };
        let state = &mut self.clients[client as usize - 1];
        let group = state.pending.as_ref().map_or(MAPS, |pending| pending.group);
        let reply = match outcome {
            Outcome::Acked { reply, .. } => reply.clone(),
            Outcome::Value { values, .. } => values.first().cloned().unwrap_or_default(),
            Outcome::Rejected(Rejection::NotLeader { leader: Some(leader) }) => {
                state.leaders.insert(group, *leader);
                self.rest(client, Duration::from_millis(3), hands);
                return Ok(());
            }
            Outcome::Rejected(_) | Outcome::Indeterminate { .. } => {
                state.leaders.remove(&group);
                self.rest(client, Duration::from_millis(5), hands);
                return Ok(());
            }
        };
        match shard::decode_reply(&reply).map_err(|error| format!("one_reply: {error}: {reply:?}"))? {
            Reply::Done(answer) => self.finish(client, &answer, hands, probes),
            Reply::Refused(refusal) => {
                self.refused(client, &refusal, hands, probes);
                Ok(())
            }
            other => Err(format!("requests_are_known: {other:?} to {:?}", self.clients[client as usize - 1].pending)),
        }
    }

    fn learn_map(&mut self, client: u32, outcome: &Outcome) {
        let Outcome::Value { values, .. } = outcome else { return };
        if let Some(Ok(MetaAnswer::Map(map))) = values.first().map(|bytes| MetaAnswer::decode(bytes)) {
            let routes = &mut self.clients[client as usize - 1].routes;
            // An older map than what is known leaves gaps; they are asked for again.
            map.partitions().for_each(|entry| routes.learn(entry));
        }
    }

    fn refused(&mut self, client: u32, refusal: &Refusal, hands: &mut Hands, probes: &mut Probes) {
        let state = &mut self.clients[client as usize - 1];
        let Some(pending) = &mut state.pending else { return };
        match refusal {
            Refusal::Stale(stale) => {
                probes.hit(Probe::StaleRouteMended);
                pending.redirected = true;
                stale.current.iter().for_each(|entry| state.routes.learn(entry));
                // An entry that was refused is no entry any more, whatever else is known: who is told nothing newer of its key asks
                // for the map.
                let key = pending.want.key();
                let refused = |it: &Partition| pending.by == Some((it.id, it.birth, it.bounds));
                if state.routes.of(key).is_some_and(refused) {
                    state.routes.forget(key);
                }
            }
            Refusal::Ahead { .. } => probes.hit(Probe::RouteAhead),
            Refusal::HandingOff(_) => {
                probes.hit(Probe::RequestBetweenSealAndOpen);
                pending.redirected = true;
                if hands.rng.u8(0..4) == 0 {
                    state.routes.forget(pending.want.key());
                }
            }
        }
        self.rest(client, Duration::from_millis(8), hands);
    }

    fn finish(&mut self, client: u32, answer: &Bytes, hands: &mut Hands, probes: &mut Probes) -> Result<(), String> {
        let at = hands.now;
        let state = &mut self.clients[client as usize - 1];
        let Some(mut pending) = state.pending.take() else { return Ok(()) };
        if pending.attempts > 1 && pending.redirected {
            probes.hit(Probe::RetryElsewhereAnswered);
        }
        match &mut pending.want {
            Want::Put { key, operation, .. } => {
                self.written.insert(key.clone());
                self.history.end(*operation, Ended::Written { at });
                self.answers.0 += 1;
            }
            Want::Add { key, .. } => {
                let effect = decode_effect(answer).map_err(|error| format!("one_reply: {error}"))?;
                if !matches!(effect, WriteEffect::Counter { .. }) {
                    return Err(format!("one_reply: {effect:?} to an addition to {key:?}"));
                }
                self.answers.0 += 1;
            }
            Want::Get { operation, .. } => {
                let value = decode_value(answer).map_err(|error| format!("one_reply: {error}"))?;
                self.history.end(*operation, Ended::Found { at, value });
                self.answers.1 += 1;
            }
            Want::Scan { cursor, items, before, end, pages } => {
                let page = decode_page(answer).map_err(|error| format!("one_reply: {error}"))?;
                *pages += 1;
                for (key, _) in page.items {
                    if items.last().is_some_and(|last| *last >= key) {
                        return Err(format!("scans_repeat_nothing: {key:?} behind {:?}", items.last()));
                    }
                    items.push(key);
                }
                // A cursor is a key: whoever covers it by then goes on.
                let next = page.next.or_else(|| end.take());
                match next {
                    Some(next) => {
                        if next <= *cursor {
                            return Err(format!("scans_repeat_nothing: from {cursor:?} back to {next:?}"));
                        }
                        *cursor = next;
                        state.sequence += 1;
                        pending.sequence = state.sequence;
                        state.pending = Some(pending);
                        self.ask(client, hands);
                        return Ok(());
                    }
                    None => {
                        if let Some(key) = before.iter().find(|key| !items.contains(key)) {
                            return Err(format!("scans_skip_nothing: {key:?} is not in {items:?}"));
                        }
                        if pending.redirected {
                            probes.hit(Probe::ScanOverAMove);
                        }
                        self.answers.1 += 1;
                    }
                }
            }
        }
        self.rest(client, self.think, hands);
        Ok(())
    }
}

fn input(token: Token, group: GroupId, route: &Route, request: Request, want: &Want) -> Input<HostHead<Head>> {
    let write = |write: &WriteRequest| {
        let body = encode_write(write).expect("keys and values of the workload are small");
        Input::Command {
            token,
            group,
            level: WriteLevel::Quorum,
            session: None,
            body: shard::encode_write(route, Some(request), &body),
        }
    };
    let read = |body: &Bytes| Input::Query {
        token,
        group,
        level: ReadLevel::Linearizable,
        body: shard::encode_read(route, body),
        bytes_max: 1 << 16,
    };
    match want {
        Want::Put { key, value, .. } => write(&WriteRequest::put(key.clone(), value.clone())),
        Want::Add { key, amount } => write(&WriteRequest::add(key.clone(), *amount)),
        Want::Get { key, .. } => read(&encode_get(key).expect("keys of the workload are small")),
        Want::Scan { cursor, .. } => {
            let level = ReadLevel::Linearizable;
            read(&encode_scan(&ScanRequest { from: cursor.clone(), to: None, limit: PAGE, level }))
        }
    }
}
