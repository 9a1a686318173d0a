//! What clients were answered, kept with the keys that the requests were about.
//!
//! Invariants: an answer is kept until its client says that it waits for it no longer, or until its client has been pushed out by
//! newer ones; what cannot be told any more is [`Known::Expired`], never new. Source: RIFL (Lee et al., SOSP'15): completion records
//! lie beside the object that they are about and move with it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A client of the store: a number that was never given before and is larger than those given long before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// A client's own number of a request, with which it asks again until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whose.
    pub client: ClientId,
    /// Its number, from 1; another one for each request of the client.
    pub sequence: u64,
    /// The client waits for none of its requests below this number any more.
    pub done_below: u64,
}

/// Most clients that a group remembers; the ones with the lowest numbers go first, and are told that they have expired.
pub const CLIENTS_MAX: usize = 16 << 10;
/// Most answers of one client that a group keeps: a client has at most so many requests open.
pub const ANSWERS_MAX: usize = 256;

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was not carried out.
    New,
    /// It was, with this answer.
    Answered(Bytes),
    /// It cannot be told.
    Expired,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) client: ClientId,
    pub(super) sequence: u64,
    pub(super) reply: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Client {
    done_below: u64,
    answers: BTreeMap<u64, (Bytes, Bytes)>,
}

/// The answers as they are written down: the index by key is made anew.
#[derive(Serialize, Deserialize)]
struct Flat {
    floor: ClientId,
    // With what each waits for no longer.
    clients: Vec<(ClientId, u64, Vec<FlatAnswer>)>,
}

/// A request's number, its key and its reply.
type FlatAnswer = (u64, Bytes, Bytes);

/// The answers of a group, or of a partition on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub(super) struct Answers {
    clients: BTreeMap<ClientId, Client>,
    by_key: BTreeMap<Bytes, BTreeSet<(ClientId, u64)>>,
    // Clients below it have been pushed out.
    floor: ClientId,
}

impl From<Answers> for Flat {
    fn from(answers: Answers) -> Self {
        let flat = |(id, client): (ClientId, Client)| {
            let answers = client.answers.into_iter().map(|(sequence, (key, reply))| (sequence, key, reply));
            (id, client.done_below, answers.collect())
        };
        Self { floor: answers.floor, clients: answers.clients.into_iter().map(flat).collect() }
    }
}

impl From<Flat> for Answers {
    fn from(flat: Flat) -> Self {
        let mut answers = Self { floor: flat.floor, ..Self::default() };
        for (client, done_below, kept) in flat.clients {
            answers.clients.insert(client, Client { done_below, answers: BTreeMap::new() });
            for (sequence, key, reply) in kept {
                answers.insert(&key, Answer { client, sequence, reply });
            }
        }
        answers
    }
}

impl Answers {
    pub(super) fn floor(&self) -> ClientId {
        self.floor
    }

    pub(super) fn look_up(&self, request: Request) -> Known {
        if request.client < self.floor || request.sequence < request.done_below {
            return Known::Expired;
        }
        let Some(client) = self.clients.get(&request.client) else { return Known::New };
        match client.answers.get(&request.sequence) {
            Some((_, reply)) => Known::Answered(reply.clone()),
            None if request.sequence < client.done_below => Known::Expired,
            // A window full of open requests: no client that keeps to it sends that.
            None if request.sequence >= client.done_below.max(request.done_below) + ANSWERS_MAX as u64 => {
                Known::Expired
            }
            None => Known::New,
        }
    }

    /// Keeps the answer to a request that was new, and forgets what its client waits for no longer.
    pub(super) fn record(&mut self, request: Request, key: &[u8], reply: Bytes) {
        let client = self.clients.entry(request.client).or_default();
        client.done_below = client.done_below.max(request.done_below);
        while let Some(entry) = client.answers.first_entry() {
            if *entry.key() >= client.done_below {
                break;
            }
            let (sequence, (key, _)) = entry.remove_entry();
            unlist(&mut self.by_key, &key, (request.client, sequence));
        }
        self.insert(key, Answer { client: request.client, sequence: request.sequence, reply });
    }

    fn insert(&mut self, key: &[u8], answer: Answer) {
        if answer.client < self.floor {
            return;
        }
        let key = Bytes::copy_from_slice(key);
        let client = self.clients.entry(answer.client).or_default();
        if let Some((old, _)) = client.answers.insert(answer.sequence, (key.clone(), answer.reply)) {
            unlist(&mut self.by_key, &old, (answer.client, answer.sequence));
        }
        self.by_key.entry(key).or_default().insert((answer.client, answer.sequence));
        while self.clients.len() > CLIENTS_MAX {
            let lowest = self.clients.keys().next().copied().expect("there are too many");
            self.raise_floor(ClientId(lowest.0 + 1));
        }
    }

    /// Pushes clients below a number out.
    pub(super) fn raise_floor(&mut self, floor: ClientId) {
        self.floor = self.floor.max(floor);
        while let Some(entry) = self.clients.first_entry() {
            if *entry.key() >= self.floor {
                return;
            }
            let (id, client) = entry.remove_entry();
            for (sequence, (key, _)) in client.answers {
                unlist(&mut self.by_key, &key, (id, sequence));
            }
        }
    }

    /// All answers about a key.
    pub(super) fn of_key(&self, key: &[u8]) -> Vec<Answer> {
        let Some(listed) = self.by_key.get(key) else { return Vec::new() };
        let answer = |&(client, sequence): &(ClientId, u64)| {
            let (_, reply) = &self.clients[&client].answers[&sequence];
            Answer { client, sequence, reply: reply.clone() }
        };
        listed.iter().map(answer).collect()
    }

    /// The keys that there are answers about, from one on.
    pub(super) fn keys_from<'a>(&'a self, from: core::ops::Bound<&'a [u8]>) -> impl Iterator<Item = &'a Bytes> {
        self.by_key.range::<[u8], _>((from, core::ops::Bound::Unbounded)).map(|(key, _)| key)
    }

    /// Takes all of these beside its own.
    pub(super) fn join(&mut self, others: &Self) {
        self.raise_floor(others.floor);
        for (&client, of_client) in &others.clients {
            for (&sequence, (key, reply)) in &of_client.answers {
                self.insert(key, Answer { client, sequence, reply: reply.clone() });
            }
        }
    }

    /// These are all answers about a key.
    pub(super) fn set_key(&mut self, key: &[u8], answers: Vec<Answer>) {
        for (client, sequence) in self.by_key.remove(key).unwrap_or_default() {
            // The client stays, with what it waits for no longer: its old requests may be about keys that stay.
            if let Some(it) = self.clients.get_mut(&client) {
                it.answers.remove(&sequence);
            }
        }
        for answer in answers {
            self.insert(key, answer);
        }
    }
}

fn unlist(by_key: &mut BTreeMap<Bytes, BTreeSet<(ClientId, u64)>>, key: &Bytes, which: (ClientId, u64)) {
    if let Some(listed) = by_key.get_mut(key) {
        listed.remove(&which);
        if listed.is_empty() {
            by_key.remove(key);
        }
    }
}
