//! Reads: a coordinator joins the copies of as many owners as the level asks for, and tells those that knew less.
//!
//! Invariants: no owner shows what a crash of it could take back; an owner counts once for a read; what is returned is the
//! exact join of the copies that were counted, so with R + W > N it holds every write acknowledged before, or one that had seen
//! it. With blocking repair the read returns once N - R + 1 owners have what it returns: no later read of R owners misses it, so
//! reads never go back. A session waits for its own writes at the node that it asks. Source: Dynamo (DeCandia et al.,
//! SOSP 2007); writing back before returning: ABD (Attiya, Bar-Noy, Dolev 1995); sessions: Terry et al., PDIS'94.

use core::ops::ControlFlow;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::dotted::first_number;
use replikit_core::keyspace::{KeyspaceQuery, decode_query, encode_conflict_page, encode_page, encode_versions};
use replikit_core::{
    Batches, Epoch, HedgeBudget, KEY_BYTES_MAX, Latency, LogIndex, NodeId, Now, OriginId, Outcome, Queue, Reached,
    ReadLevel, Rejection, Term, Time, Token, WriteId,
};

use crate::config::{Keyspaces, ReadRepair, meets_cas};
use crate::content::{Content, KeyCopy, Known};
use crate::latency::Owed;
use crate::levels::{Need, Set};
use crate::message::{Answer, Fetch, Fetched, Head, Repair};
use crate::record::Local;
use crate::replica::{Leaderless, Standing};
use crate::scan::{Filling, PageRead, PageWanted};

/// What a client wants to read.
#[derive(Debug)]
enum Wanted {
    Key(Bytes),
    Page(PageWanted),
}

/// What leaves once something is on disk here.
#[derive(Debug)]
pub(crate) enum Reply {
    /// To a coordinator.
    Head(NodeId, Head),
    /// To a client.
    Done(Token, Outcome),
}

/// A key that is read at several owners.
#[derive(Debug)]
struct KeyRead {
    key: Bytes,
    /// What all copies so far say together.
    known: Known,
    /// This replica's copy, and in short.
    first: Content,
    mine: u64,
    /// What each owner that has answered has, in short; this one is not among them.
    answers: Vec<(u32, u64)>,
}

/// What a read asks owners for.
#[expect(clippy::large_enum_variant, reason = "most reads are of one key, and allocate nothing more")]
#[derive(Debug)]
enum What {
    Key(KeyRead),
    Page(Box<PageRead>),
}

impl What {
    fn fetch(&self, epoch: Epoch, read: u64) -> Head {
        match self {
            Self::Key(KeyRead { key, mine, .. }) => Head::Fetch(Fetch { epoch, read, key: key.clone(), digest: *mine }),
            Self::Page(page) => page.fetch(epoch, read),
        }
    }

    /// Tells an owner what it misses.
    fn repair(&self, epoch: Epoch, read: u64, index: u32) -> Head {
        match self {
            Self::Key(KeyRead { key, known, .. }) => {
                Head::Repair(Box::new(Repair { epoch, read, key: key.clone(), copy: known.copy() }))
            }
            Self::Page(page) => page.repair(epoch, read, index),
        }
    }

    /// How many keys an owner misses.
    fn stale_at(&self, index: u32) -> usize {
        match self {
            Self::Key(_) => 1,
            Self::Page(page) => page.stale_at(index),
        }
    }

    /// Takes all answers together. Returns the owners that have what comes of that, and those that do not, both with `me`, which is
    /// this one.
    fn judge(&mut self, me: u32, keyspaces: &Keyspaces) -> (Set, Vec<u32>) {
        let (mut have, mut stale) = (Set::default(), Vec::new());
        match self {
            Self::Key(KeyRead { known, mine, answers, .. }) => {
                let merged = known.content.digest();
                for (index, digest) in core::iter::once((me, *mine)).chain(answers.iter().copied()) {
                    if digest == merged {
                        have.insert(index);
                    } else {
                        stale.push(index);
                    }
                }
            }
            Self::Page(page) => {
                stale = page.join(me, keyspaces);
                let answered = core::iter::once(me).chain(page.answers());
                answered.filter(|index| !stale.contains(index)).for_each(|index| have.insert(index));
            }
        }
        (have, stale)
    }
}

/// A read under way.
#[derive(Debug)]
struct Reading {
    token: Token,
    what: What,
    bytes_max: usize,
    level: ReadLevel,
    need: Need,
    answered: Set,
    asked: Set,
    /// The storage action that makes this replica's copy durable.
    after: WriteId,
    began: Now,
    hedge: Option<Time>,
    until: Time,
    /// Owners that have been told what the others know, and have not confirmed it; `None` before that.
    repairing: Option<Repairing>,
}

#[derive(Debug)]
struct Repairing {
    /// Owners that have what is returned.
    have: Set,
    /// So many must.
    want: Need,
    /// Those that were told.
    told: Set,
}

/// A read that waits for writes.
#[derive(Debug)]
struct Behind {
    token: Token,
    wants: Vec<(OriginId, u64)>,
    query: KeyspaceQuery,
    bytes_max: usize,
    until: Time,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    reading: BTreeMap<u64, Reading>,
    next: u64,
    hedges: BTreeSet<(Time, u64)>,
    /// Reads that only wait for this replica's disk.
    local: BTreeSet<(WriteId, u64)>,
    behind: VecDeque<Behind>,
    latency: BTreeMap<u32, Latency>,
    owed: Owed,
    budget: HedgeBudget,
    /// Reads that asked others.
    pub(crate) shared: u64,
    pub(crate) hedged: u64,
    pub(crate) repaired: u64,
}

impl Reads {
    /// What an owner's answer is to be taken in with, if it is waited for.
    fn awaited(&mut self, now: Now, index: u32, read: u64) -> Option<&mut What> {
        self.paid(now, index, read);
        let reading = self.reading.get_mut(&read)?;
        if reading.answered.contains(index) || !reading.asked.contains(index) || reading.repairing.is_some() {
            return None;
        }
        Some(&mut reading.what)
    }

    /// An owner has answered, whether or not that is still waited for.
    fn paid(&mut self, now: Now, index: u32, read: u64) {
        if let Some(took) = self.owed.answered(read, index, now.mono) {
            self.took(index, took);
        }
    }

    /// The same for an answer to a question for a page.
    pub(crate) fn awaited_page(&mut self, now: Now, index: u32, read: u64) -> Option<&mut PageRead> {
        match self.awaited(now, index, read)? {
            What::Page(page) => Some(page),
            What::Key(_) => None,
        }
    }

    /// An owner took so long to answer.
    pub(crate) fn took(&mut self, index: u32, time: Duration) {
        self.latency.entry(index).or_default().sample(time);
    }

    /// How long an owner took to answer, the newest samples.
    pub(crate) fn round_trips(&self, index: u32) -> Vec<Duration> {
        self.latency.get(&index).map_or_else(Vec::new, |latency| latency.samples().to_vec())
    }

    /// The owners are others from now on.
    pub(crate) fn forget_latencies(&mut self) {
        self.latency.clear();
        self.owed.clear();
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let first = self.reading.values().next().map(|reading| reading.until);
        let hedge = self.hedges.first().map(|(at, _)| *at);
        [first, hedge, self.behind.front().map(|behind| behind.until)].into_iter().flatten().min()
    }
}

impl Leaderless {
    pub(crate) fn handle_query(&mut self, now: Now, token: Token, level: ReadLevel, body: &Bytes, bytes_max: usize) {
        if self.failed {
            return self.reject(token, Rejection::StorageFailed);
        }
        let query = match decode_query(body) {
            Ok(KeyspaceQuery::Get { key }) if key.is_empty() => return self.reject(token, Rejection::Malformed),
            Ok(query) => query,
            Err(_) => return self.reject(token, Rejection::Malformed),
        };
        if let KeyspaceQuery::Conflicts { after, limit } = query {
            let page = encode_conflict_page(&self.state.audit.page(after, limit, bytes_max));
            return self.done(token, value(page, false, None));
        }
        if let Err(rejection) = self.serves() {
            return self.reject(token, rejection);
        }
        if let KeyspaceQuery::Get { key } = &query
            && self.config.keyspaces.of(key).is_cas()
        {
            return self.begin_look(now, token, key.clone(), bytes_max);
        }
        match level {
            ReadLevel::Session(session) => {
                let mut wants = Vec::new();
                for position in session.positions().iter().filter(|seen| seen.stream.group == self.config.group) {
                    let (origin, LogIndex(sequence)) = (position.stream.origin, position.id.index);
                    if self.visible_of(origin) < sequence {
                        if let Some(last) = self.ended_at(origin)
                            && last < sequence
                        {
                            let index = position.id.index;
                            return self.reject(token, Rejection::LostWrites { term: Term(0), index });
                        }
                        wants.push((origin, sequence));
                    }
                }
                if wants.is_empty() {
                    return self.answer_here(Some(now), token, &query, bytes_max);
                }
                let limit = self.config.limits.waiting_max;
                if self.reads.behind.len() >= limit {
                    return self.reject(token, Rejection::Busy { queue: Queue::Reads, limit: limit as u64 });
                }
                let until = now.mono + self.config.timing.read;
                self.reads.behind.push_back(Behind { token, wants, query, bytes_max, until });
            }
            ReadLevel::BoundedStale(bound) => match self.staleness(now.mono) {
                Some(staleness) if staleness <= bound => self.answer_here(Some(now), token, &query, bytes_max),
                _ => self.reject(token, Rejection::TooStale { bound }),
            },
            level => match (self.owners.read_need(&level), query) {
                (None, _) => self.reject(token, Rejection::Unsupported),
                (Some(Need::Count(1)), query) => self.answer_here(Some(now), token, &query, bytes_max),
                (Some(need), KeyspaceQuery::Get { key }) => {
                    self.begin_read(now, token, Wanted::Key(key), (level, need), bytes_max);
                }
                (Some(need), KeyspaceQuery::Scan { from, to, limit }) => {
                    if meets_cas(&self.config.keyspaces, &from, to.as_deref()) {
                        return self.reject(token, Rejection::MixedRange);
                    }
                    let wanted = PageWanted { from, to, limit, bytes_max: bytes_max as u64 };
                    self.begin_read(now, token, Wanted::Page(wanted), (level, need), bytes_max);
                }
                (Some(_), _) => self.reject(token, Rejection::Unsupported),
            },
        }
    }

    /// The last write of an incarnation that writes no more, once that is certain: its node goes on as a later one, has told
    /// what it holds, and has lost nothing.
    fn ended_at(&self, origin: OriginId) -> Option<u64> {
        let writer = replikit_core::Origin::of(origin)?;
        if writer.node == self.config.node {
            // What others have of it came back here before this incarnation took part, if it had been forgotten; what this
            // node sent before its disk had it may still come back.
            return None;
        }
        if self.is_gone(origin) {
            let report = |node: NodeId| self.members.get(&node).and_then(|member| member.report.as_ref());
            let tells = |node: NodeId| report(node).is_some_and(|report| report.epoch == self.epoch);
            if !self.owners.others().all(tells) {
                return None;
            }
            let most = self.owners.others().filter_map(report).map(|report| report.held.base(origin)).max();
            let most = most.unwrap_or(0).max(self.state.base().base(origin));
            return (self.stability.stable().base(origin) >= most).then_some(most);
        }
        let report = self.members.get(&writer.node)?.report.as_ref()?;
        let over = report.current? > writer.incarnation.0;
        let known = self.members.values().filter_map(|member| member.report.as_ref());
        // Another owner may have more of it than its own node, which crashed between sending and storing.
        let most = known.map(|report| report.held.base(origin)).max()?;
        let all = self.members.values().all(|member| member.report.is_some());
        (over && all && self.stability.stable().base(origin) >= most).then_some(most)
    }

    /// Everything acknowledged anywhere up to this long ago has been applied here; `None` when that is not known.
    pub(crate) fn staleness(&mut self, now: Time) -> Option<Duration> {
        let applied = self.state.base();
        let mut oldest = now;
        for (node, member) in &mut self.members {
            if self.owners.index(*node).is_some() {
                oldest = oldest.min(member.fresh(applied)?);
            }
        }
        Some(now.since(oldest))
    }

    /// Answers from this replica's own copy; how old that is, it says when it knows the time.
    fn answer_here(&mut self, now: Option<Now>, token: Token, query: &KeyspaceQuery, bytes_max: usize) {
        let staleness = now.and_then(|now| self.staleness(now.mono));
        let mut here = Set::default();
        here.insert(self.owners.me());
        let strict = self.owners.is_strict_read(here);
        let (answer, pending) = match query {
            KeyspaceQuery::Get { key } => {
                let pending = self.state.pending(key).max(self.installed);
                let known = self.state.known(key);
                let answer = match self.encode(key, &known, bytes_max) {
                    Ok(answer) => answer,
                    Err(rejection) => return self.reject(token, rejection),
                };
                if let Some(now) = now.filter(|_| !strict) {
                    self.check_answer(now, key, known, here);
                }
                (answer, pending)
            }
            KeyspaceQuery::Scan { from, to, limit } => self.scan(from, to.as_ref(), *limit, bytes_max),
            _ => return self.reject(token, Rejection::Unsupported),
        };
        self.reply_after(pending, Reply::Done(token, value(answer, strict, staleness)));
    }

    /// What a client is told of a key.
    fn encode(&self, key: &[u8], known: &Known, bytes_max: usize) -> Result<Bytes, Rejection> {
        let found = known.content.found(self.config.keyspaces.of(key));
        let bytes: usize = found.values.iter().map(|value| value.len() + 8).sum();
        if bytes > bytes_max {
            return Err(Rejection::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 });
        }
        Ok(encode_versions(&found.values, &known.context()))
    }

    /// A page of keys as they are here. A key in conflict shows its newest value.
    fn scan(&self, from: &[u8], to: Option<&Bytes>, limit: u32, bytes_max: usize) -> (Bytes, WriteId) {
        let (mut filling, mut pending) = (Filling::new(limit, bytes_max), self.installed);
        self.state.scan(from, |key, found| {
            if to.is_some_and(|to| key >= &to[..]) {
                return ControlFlow::Break(());
            }
            if !filling.push(key, &found) {
                return ControlFlow::Break(());
            }
            pending = pending.max(found.pending);
            ControlFlow::Continue(())
        });
        (encode_page(&filling.end()), pending)
    }

    /// What is here of what a read asks for, and the storage action that makes it durable.
    fn begun(&mut self, wanted: Wanted) -> (What, WriteId) {
        match wanted {
            Wanted::Key(key) => {
                let known = self.state.known(&key);
                let after = self.state.pending(&key).max(self.installed);
                let (first, mine) = (known.content.clone(), known.content.digest());
                (What::Key(KeyRead { key, known, first, mine, answers: Vec::new() }), after)
            }
            Wanted::Page(wanted) => {
                let (copies, after) = self.copies(&wanted);
                (What::Page(Box::new(PageRead::new(wanted, copies))), after)
            }
        }
    }

    fn begin_read(
        &mut self,
        now: Now,
        token: Token,
        wanted: Wanted,
        (level, need): (ReadLevel, Need),
        bytes_max: usize,
    ) {
        let limit = self.config.limits.waiting_max;
        if self.reads.reading.len() >= limit {
            return self.reject(token, Rejection::Busy { queue: Queue::Reads, limit: limit as u64 });
        }
        let mut me = Set::default();
        me.insert(self.owners.me());
        let read = self.next_read();
        let (what, after) = self.begun(wanted);
        self.reads.shared += 1;
        self.reads.budget.earn();
        let reading = Reading {
            token,
            what,
            bytes_max,
            level,
            need,
            answered: me,
            asked: me,
            after,
            began: now,
            hedge: None,
            until: now.mono + self.config.timing.read,
            repairing: None,
        };
        self.reads.reading.insert(read, reading);
        self.ask(now, read);
        self.advance(read);
    }

    /// The life is in it: an answer to an earlier life's question is none to this one's.
    pub(crate) fn next_read(&mut self) -> u64 {
        self.reads.next += 1;
        first_number(self.register.life) + self.reads.next
    }

    /// Asks as many owners as a read still needs, the fastest first.
    fn ask(&mut self, now: Now, read: u64) {
        if !self.may_number() {
            // After a crash this life's numbers would be given to other questions.
            return;
        }
        let Some(mut reading) = self.reads.reading.remove(&read) else { return };
        let mut others: Vec<u32> = self.owners.others().filter_map(|node| self.owners.index(node)).collect();
        let speed = |index: &u32| self.reads.latency.get(index).map_or(Duration::ZERO, Latency::usual);
        others.sort_by_key(|index| (self.is_away(self.owners.node(*index)), speed(index), *index));
        // Those that were asked and cannot be reached do not count as asked.
        let mut hoped = reading.answered;
        for index in others.iter().filter(|index| reading.asked.contains(**index)) {
            if !self.is_away(self.owners.node(*index)) {
                hoped.insert(*index);
            }
        }
        for index in others {
            if reading.asked.contains(index) || !reading.need.wants(index, hoped) {
                continue;
            }
            hoped.insert(index);
            self.fetch(now, read, &mut reading, index);
        }
        self.reads.reading.insert(read, reading);
    }

    fn fetch(&mut self, now: Now, read: u64, reading: &mut Reading, index: u32) {
        reading.asked.insert(index);
        self.reads.owed.asked(read, index, now.mono);
        let patience = self.reads.latency.get(&index).map_or(self.config.timing.hedge_max, Latency::slow);
        let hedge = now.mono + patience.min(self.config.timing.hedge_max);
        if reading.hedge.is_none_or(|known| known > hedge) {
            if let Some(known) = reading.hedge.replace(hedge) {
                self.reads.hedges.remove(&(known, read));
            }
            self.reads.hedges.insert((hedge, read));
        }
        self.send(self.owners.node(index), reading.what.fetch(self.epoch, read), Batches::None);
    }

    /// A coordinator wants a key.
    pub(crate) fn handle_fetch(&mut self, from: NodeId, fetch: Fetch) {
        let Fetch { read, key, digest, .. } = fetch;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return self.misbehaved(from, "a key that no keyspace has");
        }
        let (answer, pending) = if matches!(self.standing, Standing::Writer(_)) {
            let pending = self.state.pending(&key).max(self.installed);
            let same = self.state.key_digest(&key) == digest;
            let answer = if same { Answer::Same(self.state.seen(&key)) } else { Answer::Copy(self.state.copy(&key)) };
            (answer, pending)
        } else {
            (Answer::CatchingUp, WriteId(0))
        };
        self.reply_after(pending, Reply::Head(from, Head::Fetched(Box::new(Fetched { read, answer }))));
    }

    /// An owner has answered.
    pub(crate) fn handle_fetched(&mut self, now: Now, from: NodeId, fetched: Fetched) {
        let Fetched { read, answer } = fetched;
        let Some(index) = self.owners.index(from) else { return };
        if !self.reads.reading.contains_key(&read) {
            self.reads.paid(now, index, read);
            return self.handle_check(now, index, read, answer);
        }
        let Some(What::Key(reading)) = self.reads.awaited(now, index, read) else { return };
        let digest = match answer {
            Answer::Same(seen) => {
                reading.known.agree(&reading.first, &seen);
                reading.mine
            }
            Answer::Copy(copy) => match reading.known.join(copy, self.config.keyspaces.of(&reading.key)) {
                Some(theirs) => theirs.digest(),
                None => return self.misbehaved(from, "a copy of a key that its keyspace cannot have"),
            },
            // Another one has to be asked in its place.
            Answer::CatchingUp => {
                self.ask_one_more(now, read);
                return;
            }
        };
        reading.answers.push((index, digest));
        self.answered(read, index);
    }

    /// What an owner has was taken in.
    pub(crate) fn answered(&mut self, read: u64, index: u32) {
        if let Some(reading) = self.reads.reading.get_mut(&read) {
            reading.answered.insert(index);
        }
        self.advance(read);
    }

    /// Does what a read is ready for.
    fn advance(&mut self, read: u64) {
        let Some(reading) = self.reads.reading.get(&read) else { return };
        if !reading.need.is_met(reading.answered) {
            return;
        }
        if reading.repairing.is_none() {
            if reading.after > self.durable {
                // What a crash here could take back is told to nobody.
                self.reads.local.insert((reading.after, read));
                return;
            }
            self.begin_repair(read);
        }
        let reading = &self.reads.reading[&read];
        let repaired = reading.repairing.as_ref().is_none_or(|repairing| repairing.want.is_met(repairing.have));
        if !repaired {
            return;
        }
        if reading.after > self.durable {
            self.reads.local.insert((reading.after, read));
            return;
        }
        self.end_read(read);
    }

    /// Tells owners that knew less.
    fn begin_repair(&mut self, read: u64) {
        let (me, mode) = (self.owners.me(), self.config.repair);
        let reading = self.reads.reading.get_mut(&read).expect("looked up by the caller");
        let (have, stale) = reading.what.judge(me, &self.config.keyspaces);
        let want = match mode {
            ReadRepair::Blocking => self.owners.unmissable(reading.answered),
            _ => Need::Count(0),
        };
        let mut repairing = Repairing { have, want, told: Set::default() };
        if mode == ReadRepair::Off || stale.is_empty() {
            reading.repairing = Some(Repairing { want: Need::Count(0), ..repairing });
            return;
        }
        let mut reading = self.reads.reading.remove(&read).expect("looked up just now");
        for index in stale {
            if index != me {
                repairing.told.insert(index);
                self.reads.repaired += reading.what.stale_at(index) as u64;
                self.send(self.owners.node(index), reading.what.repair(self.epoch, read, index), Batches::None);
                continue;
            }
            let copies = match &reading.what {
                What::Key(KeyRead { key, known, .. }) => vec![(key.clone(), known.copy())],
                What::Page(page) => page.copies_for(me),
            };
            let (write, keys) = self.take_copies(copies);
            if mode == ReadRepair::Blocking {
                // It counts once it is durable here: an end waits for that anyway.
                reading.after = reading.after.max(write);
            }
            self.reads.repaired += keys;
            repairing.have.insert(me);
        }
        reading.repairing = Some(repairing);
        self.reads.reading.insert(read, reading);
        self.maybe_snapshot();
    }

    /// Joins copies with what is here; returns the storage action after which all of that is durable, also what was known already,
    /// and how many of them said something new.
    pub(crate) fn take_copies(&mut self, copies: Vec<(Bytes, KeyCopy)>) -> (WriteId, u64) {
        self.close_batch();
        let (mut after, mut taken) = (self.installed, 0);
        for (key, copy) in copies {
            let record = Local::Repaired { key: key.clone(), copy: copy.clone() };
            if self.state.repair(&key, copy, self.last_write.next()) {
                self.persist_local(&record);
                taken += 1;
            }
            after = after.max(self.state.pending(&key));
        }
        (after, taken)
    }

    /// A coordinator knows more of a key.
    pub(crate) fn handle_repair(&mut self, from: NodeId, repair: Repair) {
        let Repair { read, key, copy, .. } = repair;
        if key.is_empty() || key.len() > KEY_BYTES_MAX || self.config.keyspaces.of(&key).is_cas() {
            return self.misbehaved(from, "a key that no keyspace has");
        }
        let (after, _) = self.take_copies(vec![(key, copy)]);
        self.reply_after(after, Reply::Head(from, Head::Repaired { read }));
        self.maybe_snapshot();
    }

    /// An owner has what it was told on its disk.
    pub(crate) fn handle_repaired(&mut self, from: NodeId, read: u64) {
        let Some(index) = self.owners.index(from) else { return };
        let Some(reading) = self.reads.reading.get_mut(&read) else { return self.orphan_confirmed(index, read) };
        let Some(repairing) = reading.repairing.as_mut().filter(|repairing| repairing.told.contains(index)) else {
            return;
        };
        repairing.have.insert(index);
        self.advance(read);
    }

    fn end_read(&mut self, read: u64) {
        let reading = self.reads.reading.remove(&read).expect("looked up by the caller");
        if let Some(hedge) = reading.hedge {
            self.reads.hedges.remove(&(hedge, read));
        }
        let strict = self.owners.is_strict_read(reading.answered);
        // Every write of the quorum that was acknowledged before the read began is in it.
        let staleness = strict.then_some(Duration::ZERO);
        match reading.what {
            What::Key(KeyRead { key, known, .. }) => match self.encode(&key, &known, reading.bytes_max) {
                Ok(answer) => {
                    self.done(reading.token, value(answer, strict, staleness));
                    if !strict {
                        self.check_answer(reading.began, &key, known, reading.answered);
                    }
                }
                Err(rejection) => self.reject(reading.token, rejection),
            },
            What::Page(page) => {
                let answer = page.encode(&self.config.keyspaces, reading.bytes_max);
                self.done(reading.token, value(answer, strict, staleness));
            }
        }
    }

    /// Asks one owner more; whether there is one.
    pub(crate) fn ask_one_more(&mut self, now: Now, read: u64) -> bool {
        let Some(mut reading) = self.reads.reading.remove(&read) else { return false };
        if let Some(hedge) = reading.hedge.take() {
            self.reads.hedges.remove(&(hedge, read));
        }
        let mut rest: Vec<u32> = self.owners.others().filter_map(|node| self.owners.index(node)).collect();
        rest.retain(|index| !reading.asked.contains(*index) && reading.need.wants(*index, reading.answered));
        rest.sort_by_key(|index| (self.is_away(self.owners.node(*index)), *index));
        if let Some(index) = rest.first() {
            self.fetch(now, read, &mut reading, *index);
        }
        self.reads.reading.insert(read, reading);
        !rest.is_empty()
    }

    /// Owners that have not answered in their usual time: others are asked, as far as the budget goes.
    pub(crate) fn hedge_reads(&mut self, now: Now) {
        while let Some(&(at, read)) = self.reads.hedges.first() {
            if at > now.mono {
                return;
            }
            self.reads.hedges.remove(&(at, read));
            let Some(reading) = self.reads.reading.get_mut(&read) else { continue };
            reading.hedge = None;
            if reading.need.is_met(reading.answered) {
                continue;
            }
            for (index, already) in self.reads.owed.late(read, now.mono) {
                self.reads.latency.entry(index).or_default().late(already);
            }
            if self.reads.budget.suffices() && self.ask_one_more(now, read) {
                self.reads.budget.spend();
                self.reads.hedged += 1;
            }
        }
    }

    /// An owner cannot be reached: reads that wait for it ask another one.
    pub(crate) fn ask_instead_of(&mut self, now: Now, node: NodeId) {
        let Some(index) = self.owners.index(node) else { return };
        self.reads.owed.forgive(index);
        let waits = |reading: &Reading| reading.asked.contains(index) && !reading.answered.contains(index);
        let reads: Vec<u64> =
            self.reads.reading.iter().filter(|(_, reading)| waits(reading)).map(|(read, _)| *read).collect();
        for read in reads {
            self.ask(now, read);
        }
    }

    /// At every exchange: questions and repairs that may have been lost go out again.
    pub(crate) fn ask_again(&mut self, now: Now) {
        let after = self.config.timing.exchange;
        let old: Vec<u64> = self
            .reads
            .reading
            .iter()
            .filter(|(_, reading)| now.mono.since(reading.began.mono) >= after)
            .map(|(read, _)| *read)
            .collect();
        for read in old {
            let Some(mut reading) = self.reads.reading.remove(&read) else { continue };
            match &reading.repairing {
                None => {
                    let silent = |index: &u32| !reading.answered.contains(*index);
                    let silent: Vec<u32> =
                        self.owners.others().filter_map(|node| self.owners.index(node)).filter(silent).collect();
                    for index in silent {
                        self.fetch(now, read, &mut reading, index);
                    }
                }
                Some(repairing) => {
                    let missing = repairing.told.difference(repairing.have);
                    for index in (0..u32::from(self.owners.len())).filter(|index| missing.contains(*index)) {
                        self.send(self.owners.node(index), reading.what.repair(self.epoch, read, index), Batches::None);
                    }
                }
            }
            self.reads.reading.insert(read, reading);
        }
    }

    /// Other owners count from now on: what is under way begins again.
    pub(crate) fn begin_reads_anew(&mut self, now: Now) {
        self.reads.hedges.clear();
        self.reads.local.clear();
        for (_, reading) in core::mem::take(&mut self.reads.reading) {
            if let Err(rejection) = self.serves() {
                self.reject(reading.token, rejection);
                continue;
            }
            let Some(need) = self.owners.read_need(&reading.level) else {
                self.reject(reading.token, Rejection::Unsupported);
                continue;
            };
            let (what, after) = self.begun(match reading.what {
                What::Key(KeyRead { key, .. }) => Wanted::Key(key),
                What::Page(page) => Wanted::Page(page.wanted().clone()),
            });
            let mut me = Set::default();
            me.insert(self.owners.me());
            let read = self.next_read();
            let reading =
                Reading { what, need, answered: me, asked: me, after, hedge: None, repairing: None, ..reading };
            self.reads.reading.insert(read, reading);
            self.ask(now, read);
            self.advance(read);
        }
    }

    /// Says what waited for this disk.
    pub(crate) fn release_replies(&mut self) {
        while let Some(reply) = self.replies.release(self.durable) {
            self.reply(reply);
        }
    }

    pub(crate) fn reply(&mut self, reply: Reply) {
        match reply {
            Reply::Head(to, head) => self.send(to, head, Batches::None),
            Reply::Done(token, outcome) => self.done(token, outcome),
        }
    }

    /// This life's numbers are its own from now on: what could not be asked yet is.
    pub(crate) fn begin_asking(&mut self, now: Now) {
        let reads: Vec<u64> = self.reads.reading.keys().copied().collect();
        for read in reads {
            self.ask(now, read);
        }
        self.gather();
    }

    /// More is durable, or has been applied.
    pub(crate) fn release_reads(&mut self) {
        while let Some(&(after, read)) = self.reads.local.first() {
            if after > self.durable {
                break;
            }
            self.reads.local.remove(&(after, read));
            self.advance(read);
        }
        if self.reads.behind.is_empty() {
            return;
        }
        for read in core::mem::take(&mut self.reads.behind) {
            if read.wants.iter().all(|(origin, sequence)| self.visible_of(*origin) >= *sequence) {
                self.answer_here(None, read.token, &read.query, read.bytes_max);
            } else {
                self.reads.behind.push_back(read);
            }
        }
    }

    pub(crate) fn expire_reads(&mut self, now: Time) {
        while let Some(read) = self.reads.behind.pop_front_if(|first| first.until <= now) {
            self.reject(read.token, Rejection::TooStale { bound: Duration::ZERO });
        }
        while let Some(first) = self.reads.reading.first_entry().filter(|first| first.get().until <= now) {
            let (read, reading) = first.remove_entry();
            if let Some(hedge) = reading.hedge {
                self.reads.hedges.remove(&(hedge, read));
            }
            self.reads.local.remove(&(reading.after, read));
            self.done(reading.token, Outcome::Indeterminate { reached: Reached::default() });
        }
    }

    pub(crate) fn fail_reads(&mut self, why: &Rejection) {
        let reads = core::mem::take(&mut self.reads);
        let replies: Vec<Reply> = self.replies.drain().collect();
        let held = replies.into_iter().filter_map(|reply| match reply {
            Reply::Done(token, _) => Some(token),
            Reply::Head(..) => None,
        });
        let mut tokens: Vec<Token> = held.collect();
        tokens.extend(reads.behind.into_iter().map(|read| read.token));
        tokens.extend(reads.reading.into_values().map(|reading| reading.token));
        for token in tokens {
            self.reject(token, why.clone());
        }
    }
}

/// One value: what the keyspace's codec makes of versions or of a page.
fn value(answer: Bytes, strict: bool, staleness: Option<Duration>) -> Outcome {
    Outcome::Value { values: vec![answer], seen: None, strict, staleness }
}
