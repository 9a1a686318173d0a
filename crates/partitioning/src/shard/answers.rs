//! What clients were answered, kept with the keys that the requests were about.
//!
//! Invariants: an answer is kept until its client says that it waits for it no longer, or until its client has been pushed out by
//! newer ones; what cannot be told any more is [`Known::Expired`], never new. Source: RIFL (Lee et al., SOSP'15): completion records
//! lie beside the object that they are about and move with it.
//!
//! Which answers a key has is asked only while keys move: the index for it is made by the first such question, and kept up to date
//! until [`Answers::forget_index`].

use core::cell::RefCell;
use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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

/// An answer with its key.
#[derive(Clone, Debug)]
struct Kept {
    sequence: u64,
    key: Bytes,
    reply: Bytes,
}

#[derive(Clone, Debug, Default)]
struct Client {
    done_below: u64,
    // Ascending by number.
    answers: VecDeque<Kept>,
}

impl Client {
    fn place(&self, sequence: u64) -> Result<usize, usize> {
        // A client counts up: most of the time it is the last.
        match self.answers.back() {
            Some(last) if last.sequence < sequence => Err(self.answers.len()),
            _ => self.answers.binary_search_by_key(&sequence, |kept| kept.sequence),
        }
    }

    fn get(&self, sequence: u64) -> Option<&Kept> {
        self.place(sequence).ok().map(|at| &self.answers[at])
    }

    /// Keeps an answer; returns the one that it replaces.
    fn put(&mut self, kept: Kept) -> Option<Kept> {
        match self.place(kept.sequence) {
            Ok(at) => Some(core::mem::replace(&mut self.answers[at], kept)),
            Err(at) => {
                self.answers.insert(at, kept);
                None
            }
        }
    }
}

/// Whose answers there are about each key.
type Index = BTreeMap<Bytes, BTreeSet<(ClientId, u64)>>;

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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub(super) struct Answers {
    clients: BTreeMap<ClientId, Client>,
    // Clients below it have been pushed out.
    floor: ClientId,
    // None before it was asked for.
    index: RefCell<Option<Index>>,
}

impl From<Answers> for Flat {
    fn from(answers: Answers) -> Self {
        let flat = |(id, client): (ClientId, Client)| {
            let answers = client.answers.into_iter().map(|Kept { sequence, key, reply }| (sequence, key, reply));
            (id, client.done_below, answers.collect())
        };
        Self { floor: answers.floor, clients: answers.clients.into_iter().map(flat).collect() }
    }
}

impl From<Flat> for Answers {
    fn from(flat: Flat) -> Self {
        let mut answers = Self { floor: flat.floor, ..Self::default() };
        for (client, done_below, kept) in flat.clients {
            answers.clients.insert(client, Client { done_below, answers: VecDeque::new() });
            for (sequence, key, reply) in kept {
                answers.insert(key, Answer { client, sequence, reply });
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
        match client.get(request.sequence) {
            Some(kept) => Known::Answered(kept.reply.clone()),
            None if request.sequence < client.done_below => Known::Expired,
            // A window full of open requests: no client that keeps to it sends that.
            None if request.sequence >= client.done_below.max(request.done_below) + ANSWERS_MAX as u64 => {
                Known::Expired
            }
            None => Known::New,
        }
    }

    /// Keeps the answer to a request that was new, and forgets what its client waits for no longer.
    pub(super) fn record(&mut self, request: Request, key: Bytes, reply: Bytes) {
        let client = self.clients.entry(request.client).or_default();
        client.done_below = client.done_below.max(request.done_below);
        let done = client.done_below;
        while let Some(kept) = client.answers.pop_front_if(|kept| kept.sequence < done) {
            unlist(self.index.get_mut(), &kept.key, (request.client, kept.sequence));
        }
        self.insert(key, Answer { client: request.client, sequence: request.sequence, reply });
    }

    fn insert(&mut self, key: Bytes, answer: Answer) {
        let Answer { client: id, sequence, reply } = answer;
        if id < self.floor {
            return;
        }
        let index = self.index.get_mut();
        if let Some(index) = index {
            index.entry(key.clone()).or_default().insert((id, sequence));
        }
        let client = self.clients.entry(id).or_default();
        let of = key.clone();
        if let Some(old) = client.put(Kept { sequence, key, reply })
            && old.key != of
        {
            unlist(index, &old.key, (id, sequence));
        }
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
            for kept in client.answers {
                unlist(self.index.get_mut(), &kept.key, (id, kept.sequence));
            }
        }
    }

    fn with_index<T>(&self, run: impl FnOnce(&Index) -> T) -> T {
        run(self.index.borrow_mut().get_or_insert_with(|| {
            let mut index = Index::new();
            for (id, client) in &self.clients {
                for kept in &client.answers {
                    index.entry(kept.key.clone()).or_default().insert((*id, kept.sequence));
                }
            }
            index
        }))
    }

    /// No keys move for now: which answers a key has will not be asked soon.
    pub(super) fn forget_index(&mut self) {
        *self.index.get_mut() = None;
    }

    /// All answers about a key.
    pub(super) fn of_key(&self, key: &[u8]) -> Vec<Answer> {
        let answer = |&(client, sequence): &(ClientId, u64)| {
            let kept = self.clients.get(&client)?.get(sequence)?;
            Some(Answer { client, sequence, reply: kept.reply.clone() })
        };
        self.with_index(|index| {
            index.get(key).map_or_else(Vec::new, |listed| listed.iter().filter_map(answer).collect())
        })
    }

    /// There are no answers about any key here any more. The clients stay, with what they wait for no longer.
    pub(super) fn clear_keys(&mut self) {
        self.forget_index();
        self.clients.values_mut().for_each(|client| client.answers.clear());
    }

    /// The keys that there are answers about, from one on.
    pub(super) fn keys_from(&self, from: Bound<&[u8]>) -> impl Iterator<Item = Bytes> + '_ {
        let first = |from: Bound<&[u8]>| {
            self.with_index(|index| index.range::<[u8], _>((from, Bound::Unbounded)).next().map(|(key, _)| key.clone()))
        };
        core::iter::successors(first(from), move |key| first(Bound::Excluded(key)))
    }

    /// Takes all of these beside its own.
    pub(super) fn join(&mut self, others: &Self) {
        self.raise_floor(others.floor);
        for (&client, of_client) in &others.clients {
            for Kept { sequence, key, reply } in &of_client.answers {
                self.insert(key.clone(), Answer { client, sequence: *sequence, reply: reply.clone() });
            }
        }
    }

    /// These are all answers about a key.
    pub(super) fn set_key(&mut self, key: &[u8], answers: Vec<Answer>) {
        self.with_index(|_| ());
        let listed = self.index.get_mut().as_mut().and_then(|index| index.remove(key));
        for (client, sequence) in listed.unwrap_or_default() {
            // The client stays, with what it waits for no longer: its old requests may be about keys that stay.
            if let Some(it) = self.clients.get_mut(&client)
                && let Ok(at) = it.place(sequence)
            {
                it.answers.remove(at);
            }
        }
        let key = Bytes::copy_from_slice(key);
        for answer in answers {
            self.insert(key.clone(), answer);
        }
    }
}

fn unlist(index: &mut Option<Index>, key: &Bytes, which: (ClientId, u64)) {
    if let Some(index) = index
        && let Some(listed) = index.get_mut(key)
    {
        listed.remove(&which);
        if listed.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Record { client: u64, sequence: u64, done: u64, key: u8 },
        SetKey { key: u8, answers: Vec<(u64, u64)> },
        RaiseFloor(u64),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1_u64..5, 1_u64..20, 0_u64..8, 0_u8..4)
                .prop_map(|(client, sequence, done, key)| Step::Record { client, sequence, done, key }),
            2 => (0_u8..4, proptest::collection::vec((1_u64..5, 1_u64..20), 0..4))
                .prop_map(|(key, answers)| Step::SetKey { key, answers }),
            1 => (0_u64..4).prop_map(Step::RaiseFloor),
            1 => Just(Step::Forget),
        ]
    }

    fn all(answers: &Answers) -> Vec<(Bytes, Vec<Answer>)> {
        answers.keys_from(Bound::Unbounded).map(|key| (key.clone(), answers.of_key(&key))).collect()
    }

    proptest! {
        #[test]
        fn the_index_is_the_same_whenever_it_is_made(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut kept, mut late) = (Answers::default(), Answers::default());
            for step in steps {
                for (answers, is_late) in [(&mut kept, false), (&mut late, true)] {
                    match step.clone() {
                        Step::Record { client, sequence, done, key } => {
                            let request = Request { client: ClientId(client), sequence, done_below: done };
                            if answers.look_up(request) == Known::New {
                                answers.record(request, vec![key].into(), vec![sequence as u8].into());
                            }
                        }
                        Step::SetKey { key, answers: of } => {
                            let reply = Bytes::from_static(b"moved");
                            let of = of.into_iter().map(|(client, sequence)| {
                                Answer { client: ClientId(client), sequence, reply: reply.clone() }
                            });
                            answers.set_key(&[key], of.collect());
                        }
                        Step::RaiseFloor(floor) => answers.raise_floor(ClientId(floor)),
                        Step::Forget if is_late => answers.forget_index(),
                        Step::Forget => {}
                    }
                    if !is_late {
                        all(answers);
                    }
                }
                let read = |answers: &Answers| postcard::to_stdvec(answers).unwrap();
                prop_assert_eq!(read(&kept), read(&late));
                let mut made_now = late.clone();
                made_now.forget_index();
                prop_assert_eq!(all(&kept), all(&made_now));
            }
        }
    }
}
