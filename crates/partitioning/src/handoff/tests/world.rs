//! Groups, the log of maps, clients and an operator, in steps drawn from a seed: what travels may be lost, doubled and reordered,
//! leaders crash between any two steps.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::{GroupId, LogIndex, NodeId};
use serde::{Deserialize, Serialize};

use crate::handoff::{
    Answer, Ask, Holdings, Letter, NotHere, Output, Piece, Record, Source, SourceStore, Tail, Target, TargetStore,
};
use crate::id::{HandoffId, PartitionId};
use crate::map::{Change, Decision, PartitionMap};
use crate::partitioner::{Partitioner as _, Scheme};
use crate::span::Span;

pub(super) const GROUPS: u32 = 3;
pub(super) const CLIENTS: u32 = 3;
pub(super) const KEYS: [&[u8]; 4] = [b"apple", b"fig", b"melon", b"pear"];

/// SplitMix64.
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((it ^ (it >> 31)) % end.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A client's request to put a value at the end of a key's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Append {
    client: u32,
    sequence: u64,
    key: Vec<u8>,
    value: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Append(Append),
    Record(Record),
}

/// Lists, and the newest request of each client with its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Portion {
    lists: BTreeMap<Vec<u8>, Vec<u64>>,
    sessions: BTreeMap<(u32, Vec<u8>), (u64, u64)>,
}

impl Portion {
    /// The length of the list behind the value; the answer from before if it has been there already.
    fn append(&mut self, it: &Append) -> u64 {
        let known = self.sessions.get(&(it.client, it.key.clone()));
        if let Some((_, answer)) = known.filter(|(sequence, _)| *sequence >= it.sequence) {
            return *answer;
        }
        let list = self.lists.entry(it.key.clone()).or_default();
        list.push(it.value);
        let answer = list.len() as u64;
        self.sessions.insert((it.client, it.key.clone()), (it.sequence, answer));
        answer
    }

    fn within(&self, span: &Span) -> Self {
        Self {
            lists: self
                .lists
                .iter()
                .filter(|(key, _)| span.contains(key))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            sessions: self
                .sessions
                .iter()
                .filter(|(at, _)| span.contains(&at.1))
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
        }
    }

    fn encoded(&self) -> Bytes {
        postcard::to_allocvec(self).expect("it can be encoded").into()
    }

    fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.encoded())
    }
}

/// What the group's log makes of itself; the same on each of its replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Store {
    portion: Portion,
    staged: BTreeMap<HandoffId, Portion>,
    /// Requests that were carried out, by their index.
    done: Vec<(LogIndex, Append)>,
    /// Up to where the log is not kept any more.
    compacted: LogIndex,
}

impl Store {
    pub(super) fn compact(&mut self, to: LogIndex) {
        self.compacted = to;
    }
}

impl SourceStore for Store {
    fn piece(&self, span: &Span, _: Option<&[u8]>, _: usize) -> Piece {
        let all: Result<_, Append> = Ok(self.portion.within(span));
        Piece { items: postcard::to_allocvec(&all).expect("it can be encoded").into(), through: None }
    }

    fn tail(&self, span: &Span, after: LogIndex, to: LogIndex) -> Option<Tail> {
        let within = |(index, it): &&(LogIndex, Append)| after < *index && *index <= to && span.contains(&it.key);
        let encoded = |it: &Append| {
            let one: Result<Portion, _> = Err(it.clone());
            Bytes::from(postcard::to_allocvec(&one).expect("it can be encoded"))
        };
        let entries = self.done.iter().filter(within).map(|(_, it)| encoded(it)).collect();
        (self.compacted <= after).then_some(Tail { entries, to })
    }

    fn digest(&self, span: &Span) -> u64 {
        self.portion.within(span).digest()
    }
}

impl TargetStore for Store {
    fn stage_anew(&mut self, handoff: HandoffId) {
        self.staged.insert(handoff, Portion::default());
    }

    fn stage_entry(&mut self, handoff: HandoffId, entry: &[u8]) {
        let staged = self.staged.get_mut(&handoff).expect("it is staged");
        match postcard::from_bytes(entry).expect("an entry of ours") {
            Ok(portion) => *staged = portion,
            Err::<Portion, Append>(append) => _ = staged.append(&append),
        }
    }

    fn staged_digest(&self, handoff: HandoffId) -> u64 {
        self.staged[&handoff].digest()
    }

    fn publish(&mut self, handoff: HandoffId) {
        let Portion { lists, sessions } = self.staged.remove(&handoff).expect("it is staged");
        self.portion.lists.extend(lists);
        self.portion.sessions.extend(sessions);
    }

    fn discard(&mut self, handoff: HandoffId) {
        self.staged.remove(&handoff);
    }

    fn clear(&mut self) {
        self.portion = Portion::default();
    }

    fn remove(&mut self, span: &Span) {
        self.portion.lists.retain(|key, _| !span.contains(key));
        self.portion.sessions.retain(|(_, key), _| !span.contains(key));
    }
}

pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) log: Vec<Entry>,
    proposed: VecDeque<Entry>,
    pub(super) holdings: Holdings,
    pub(super) store: Store,
    source: Source,
    target: Target,
    map: PartitionMap,
}

#[derive(Clone, Debug)]
enum Travelling {
    Ask(GroupId, Letter<Ask>),
    Answer(GroupId, Letter<Answer>),
    Decide(Change),
    Append(GroupId, Append),
    Read(GroupId, u32, u64, Vec<u8>),
    Done(u32, u64, Vec<u64>, u64),
    Misrouted(u32, Box<PartitionMap>),
}

#[derive(Clone, Debug)]
struct Pending {
    sequence: u64,
    key: Vec<u8>,
    value: Option<u64>,
    begun: u64,
}

struct Client {
    map: PartitionMap,
    sequence: u64,
    pending: Option<Pending>,
}

/// A request that was answered: what was written, or the list that was read.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<u64>,
    pub(super) read: Vec<u64>,
    pub(super) begun: u64,
    pub(super) ended: u64,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) lose_one_in: usize,
    pub(super) double_one_in: usize,
    pub(super) crash_one_in: usize,
    pub(super) abort_one_in: usize,
    pub(super) compact_one_in: usize,
}

impl Faults {
    pub(super) const NONE: Self = Self {
        lose_one_in: usize::MAX,
        double_one_in: usize::MAX,
        crash_one_in: usize::MAX,
        abort_one_in: usize::MAX,
        compact_one_in: usize::MAX,
    };
}

pub(super) struct World {
    pub(super) draws: Draws,
    pub(super) faults: Faults,
    pub(super) now: u64,
    pub(super) groups: Vec<Group>,
    maps: Vec<PartitionMap>,
    travelling: VecDeque<Travelling>,
    clients: Vec<Client>,
    pub(super) answered: Vec<Answered>,
    /// Clients begin new requests.
    pub(super) busy: bool,
    pub(super) planned: usize,
    pub(super) committed: usize,
    pub(super) aborted: usize,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let replicas = |group: u32| (GroupId(group), vec![NodeId(group)]);
        let map =
            PartitionMap::first(Scheme::KEY_ORDER, ["m".into()], [replicas(1), replicas(2)]).expect("it is whole");
        let group = |id: u32| Group {
            id: GroupId(id),
            log: Vec::new(),
            proposed: VecDeque::new(),
            holdings: Holdings::first(&map, GroupId(id)),
            store: Store::default(),
            source: Source::new(GroupId(id)),
            target: Target::new(GroupId(id)),
            map: map.clone(),
        };
        let client = |_| Client { map: map.clone(), sequence: 0, pending: None };
        Self {
            draws: Draws(seed),
            faults,
            now: 0,
            groups: (1..=GROUPS).map(group).collect(),
            clients: (0..CLIENTS).map(client).collect(),
            maps: vec![map],
            travelling: VecDeque::new(),
            answered: Vec::new(),
            busy: true,
            planned: 0,
            committed: 0,
            aborted: 0,
        }
    }

    pub(super) fn map(&self) -> &PartitionMap {
        self.maps.last().expect("there is a first map")
    }

    fn send(&mut self, it: Travelling) {
        if self.draws.one_in(self.faults.lose_one_in) {
            return;
        }
        if self.draws.one_in(self.faults.double_one_in) {
            self.travelling.push_back(it.clone());
        }
        self.travelling.push_back(it);
    }

    /// One step of whoever is drawn; afterwards at most one group takes writes for a key.
    pub(super) fn step(&mut self) {
        self.now += 1;
        let group = self.draws.below(self.groups.len());
        match self.draws.below(12) {
            0..=3 => self.deliver(),
            4 | 5 => self.commit(group),
            6 => self.poll(group),
            7 => self.learn(group),
            8 | 9 => self.client(),
            10 => self.operator(),
            _ => {
                if self.draws.one_in(self.faults.crash_one_in) {
                    self.crash(group);
                }
                if self.draws.one_in(self.faults.compact_one_in) {
                    let it = &mut self.groups[group];
                    it.store.compact(LogIndex(it.log.len() as u64));
                }
            }
        }
        self.check_owners();
    }

    /// I2: at most one group takes writes for a key.
    fn check_owners(&self) {
        for key in KEYS {
            let position = Scheme::KEY_ORDER.position(key);
            let takes = |it: &&Group| it.holdings.admit_write(&position).is_ok();
            let owners: Vec<_> = self.groups.iter().filter(takes).map(|it| it.id).collect();
            assert!(owners.len() <= 1, "{owners:?} all take writes for {key:?}");
        }
    }

    fn deliver(&mut self) {
        // Mostly in order, sometimes not.
        let any = self.draws.below(self.travelling.len());
        let at = if self.draws.one_in(3) { any } else { 0 };
        let Some(it) = self.travelling.remove(at) else { return };
        match it {
            Travelling::Ask(to, letter) => {
                let group = self.group(to);
                let applied = LogIndex(group.log.len() as u64);
                let outputs = group.source.handle(&group.map, &group.holdings, &group.store, applied, &letter);
                self.carry_out(to, outputs, Travelling::Answer);
            }
            Travelling::Answer(to, letter) => {
                let group = self.group(to);
                let outputs = group.target.handle(&group.map, &group.holdings, &group.store, letter);
                self.carry_out(to, outputs, Travelling::Ask);
            }
            Travelling::Decide(change) => self.decide(&change),
            Travelling::Append(to, append) => self.group(to).proposed.push_back(Entry::Append(append)),
            Travelling::Read(to, client, sequence, key) => {
                let group = self.group(to);
                let answer = match group.source.admit_read(&group.holdings, &Scheme::KEY_ORDER.position(&key)) {
                    Ok(()) => Travelling::Done(client, sequence, group.list(&key), 0),
                    Err(NotHere::HandingOff(_) | NotHere::Elsewhere) => {
                        Travelling::Misrouted(client, Box::new(group.map.clone()))
                    }
                };
                self.send(answer);
            }
            Travelling::Done(client, sequence, read, length) => self.done(client, sequence, read, length),
            Travelling::Misrouted(client, map) => {
                // I5: a client's map never goes back.
                let it = &mut self.clients[client as usize];
                if map.epoch() > it.map.epoch() {
                    it.map = *map;
                }
            }
        }
    }

    fn group(&mut self, id: GroupId) -> &mut Group {
        &mut self.groups[id.0 as usize - 1]
    }

    fn carry_out<T>(&mut self, from: GroupId, outputs: Vec<Output<T>>, letter: fn(GroupId, Letter<T>) -> Travelling) {
        for output in outputs {
            match output {
                Output::Propose(record) => self.group(from).proposed.push_back(Entry::Record(record)),
                Output::Send(to, it) => self.send(letter(to, it)),
                Output::Decide(change) => self.send(Travelling::Decide(change)),
            }
        }
    }

    fn decide(&mut self, change: &Change) {
        let Ok((next, _)) = self.map().changed(change) else { return };
        match change {
            Change::PlanHandoff { .. } => self.planned += 1,
            Change::CommitHandoff(_) => self.committed += 1,
            Change::AbortHandoff(_) => self.aborted += 1,
            _ => {}
        }
        self.maps.push(next);
    }

    /// The first of what the group's leader has proposed becomes durable and is applied.
    fn commit(&mut self, group: usize) {
        let Some(entry) = self.groups[group].proposed.pop_front() else { return };
        if let Some(answer) = self.groups[group].append(entry) {
            self.send(answer);
        }
    }

    fn poll(&mut self, group: usize) {
        let it = &mut self.groups[group];
        let id = it.id;
        let answers = it.source.poll(&it.map, &it.holdings);
        let asks = it.target.poll(&it.map, &it.holdings, &it.store);
        self.carry_out(id, answers, Travelling::Answer);
        self.carry_out(id, asks, Travelling::Ask);
    }

    fn learn(&mut self, group: usize) {
        let newer = self.maps.partition_point(|map| map.epoch() <= self.groups[group].map.epoch());
        let which = newer + self.draws.below(self.maps.len() - newer);
        if let Some(map) = self.maps.get(which) {
            self.groups[group].map = map.clone();
        }
    }

    /// The leader is gone. Of what it had proposed, some became durable. Another one begins, with the log and an older map.
    pub(super) fn crash(&mut self, group: usize) {
        let durable = self.draws.below(self.groups[group].proposed.len() + 1);
        let map = self.maps[self.draws.below(self.maps.len())].clone();
        let it = &mut self.groups[group];
        let proposed = std::mem::take(&mut it.proposed);
        for entry in proposed.into_iter().take(durable) {
            // Nobody is left to answer.
            it.append(entry);
        }
        it.source = Source::new(it.id);
        it.target = Target::new(it.id);
        it.map = map;
    }

    fn client(&mut self) {
        let which = self.draws.below(self.clients.len());
        let (fresh, key) = (self.now, KEYS[self.draws.below(KEYS.len())].to_vec());
        let is_read = self.draws.one_in(2);
        let client = &mut self.clients[which];
        if client.pending.is_none() && self.busy {
            client.sequence += 1;
            let value = (!is_read).then_some(fresh);
            client.pending = Some(Pending { sequence: client.sequence, key, value, begun: self.now });
        }
        let Some(Pending { sequence, key, value, .. }) = client.pending.clone() else { return };
        let group = client.map.route(&key).group;
        let client = which as u32;
        self.send(match value {
            Some(value) => Travelling::Append(group, Append { client, sequence, key, value }),
            None => Travelling::Read(group, client, sequence, key),
        });
    }

    fn done(&mut self, client: u32, sequence: u64, read: Vec<u64>, length: u64) {
        let client = &mut self.clients[client as usize];
        let Some(pending) = client.pending.take_if(|pending| pending.sequence == sequence) else { return };
        assert!(pending.value.is_none() || length > 0);
        let Pending { key, value, begun, .. } = pending;
        self.answered.push(Answered { key, value, read, begun, ended: self.now });
    }

    fn operator(&mut self) {
        let partition = PartitionId(1 + self.draws.below(2) as u64);
        let target = 1 + self.draws.below(GROUPS as usize) as u32;
        if self.busy && self.draws.one_in(8) {
            self.decide(&Change::PlanHandoff { partition, target: GroupId(target), replicas: vec![NodeId(target)] });
        }
        if self.draws.one_in(self.faults.abort_one_in) {
            let open = self.map().handoffs().find(|it| it.decision == Decision::Open).map(|it| it.id);
            if let Some(id) = open {
                self.decide(&Change::AbortHandoff(id));
            }
        }
    }

    pub(super) fn plan(&mut self, partition: u64, target: u32) {
        let (partition, replicas) = (PartitionId(partition), vec![NodeId(target)]);
        self.decide(&Change::PlanHandoff { partition, target: GroupId(target), replicas });
    }

    pub(super) fn abort(&mut self) {
        self.faults.abort_one_in = 1;
        self.operator();
        self.faults.abort_one_in = usize::MAX;
    }

    /// Everybody is asked in turn, nothing is lost: I6, whatever is under way ends in so many rounds.
    pub(super) fn settle(&mut self) {
        self.faults = Faults::NONE;
        self.busy = false;
        for _ in 0..60 {
            for group in 0..self.groups.len() {
                self.groups[group].map = self.map().clone();
                self.poll(group);
            }
            for _ in 0..3 * self.clients.len() {
                self.client();
            }
            for _ in 0..4 {
                while !self.travelling.is_empty() {
                    self.deliver();
                }
                for group in 0..self.groups.len() {
                    while !self.groups[group].proposed.is_empty() {
                        self.now += 1;
                        self.commit(group);
                        self.check_owners();
                    }
                }
            }
            let at_rest = self.map().handoffs().count() == 0 && self.clients.iter().all(|it| it.pending.is_none());
            if at_rest {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.map().handoffs().collect::<Vec<_>>());
    }
}

impl Group {
    /// The log grows by an entry, which is applied; the answer to whoever asked for it.
    fn append(&mut self, entry: Entry) -> Option<Travelling> {
        self.log.push(entry.clone());
        let index = LogIndex(self.log.len() as u64);
        match entry {
            Entry::Record(record) => {
                self.holdings.apply(index, &record, &mut self.store);
                self.source.applied(index, &record, &self.holdings);
                None
            }
            Entry::Append(append) => {
                if self.holdings.admit_write(&Scheme::KEY_ORDER.position(&append.key)).is_err() {
                    return Some(Travelling::Misrouted(append.client, Box::new(self.map.clone())));
                }
                let length = self.store.portion.append(&append);
                let answer = Travelling::Done(append.client, append.sequence, Vec::new(), length);
                self.store.done.push((index, append));
                Some(answer)
            }
        }
    }

    pub(super) fn list(&self, key: &[u8]) -> Vec<u64> {
        self.store.portion.lists.get(key).cloned().unwrap_or_default()
    }
}
