//! Reads: answered from this replica's own state, as fresh as the level asks for and can be proved.
//!
//! Invariants: nothing is shown that a crash of this replica could take back; a session never goes back, at whatever replica it
//! reads; a stated staleness is an upper bound. Source: session guarantees, Terry et al., PDIS'94.

use core::ops::ControlFlow;
use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::keyspace::{KeyspaceQuery, decode_query, encode_conflict_page, encode_page, encode_versions};
use replikit_core::{
    CausalContext, Held, KEY_BYTES_MAX, LogIndex, Now, OriginId, Outcome, Page, Queue, ReadLevel, Rejection, Term,
    Time, Token, WriteId,
};

use crate::replica::MultiLeader;

/// An answer whose values are not durable yet.
#[derive(Debug)]
struct Ready {
    token: Token,
    outcome: Outcome,
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
    ready: Held<Ready>,
    last_held: WriteId,
    behind: VecDeque<Behind>,
}

impl Reads {
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.behind.front().map(|behind| behind.until)
    }
}

impl MultiLeader {
    pub(crate) fn handle_query(&mut self, now: Now, token: Token, level: ReadLevel, body: Bytes, bytes_max: usize) {
        if self.failed {
            return self.reject(token, Rejection::StorageFailed);
        }
        if let Some(rejection) = self.shows_nothing() {
            return self.reject(token, rejection);
        }
        let query = match decode_query(&body) {
            Ok(KeyspaceQuery::Get { key }) if key.is_empty() => return self.reject(token, Rejection::Malformed),
            Ok(query) => query,
            Err(_) => return self.reject(token, Rejection::Malformed),
        };
        match level {
            ReadLevel::Local => {
                let staleness = self.staleness(now.mono);
                self.answer(token, &query, bytes_max, staleness);
            }
            ReadLevel::BoundedStale(bound) => match self.staleness(now.mono) {
                Some(staleness) if staleness <= bound => self.answer(token, &query, bytes_max, Some(staleness)),
                _ => self.reject(token, Rejection::TooStale { bound }),
            },
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
                    let staleness = self.staleness(now.mono);
                    return self.answer(token, &query, bytes_max, staleness);
                }
                let limit = self.config.limits.waiting_max;
                if self.reads.behind.len() >= limit {
                    return self.reject(token, Rejection::Busy { queue: Queue::Reads, limit: limit as u64 });
                }
                let until = now.mono + self.config.timing.read;
                self.reads.behind.push_back(Behind { token, wants, query, bytes_max, until });
            }
            // Nobody orders the writes of this family: no replica can know the newest one.
            _ => self.reject(token, Rejection::Unsupported),
        }
    }

    /// The last write of an incarnation that writes no more, once that is certain: its node goes on as a later one, has told
    /// what it holds, and has lost nothing.
    fn ended_at(&self, origin: OriginId) -> Option<u64> {
        let writer = replikit_core::Origin::of(origin)?;
        if writer.node == self.config.node {
            let over = writer.incarnation.0 < self.register.incarnation && self.origin().is_some();
            return over.then(|| self.streams.get(&origin).map_or(0, |stream| stream.held()));
        }
        if let Some(last) = self.closed_at(origin) {
            return Some(last);
        }
        let report = self.members.get(&writer.node)?.report.as_ref()?;
        (report.current? > writer.incarnation.0).then(|| report.held.base(origin))
    }

    /// Everything acknowledged anywhere up to this long ago has been applied here; `None` when that is not known.
    pub(crate) fn staleness(&mut self, now: Time) -> Option<Duration> {
        if self.epochs.evicted {
            return None;
        }
        let applied = self.state.applied();
        let mut oldest = now;
        for member in self.members.values_mut() {
            oldest = oldest.min(member.fresh(applied)?);
        }
        Some(now.since(oldest))
    }

    fn answer(&mut self, token: Token, query: &KeyspaceQuery, bytes_max: usize, staleness: Option<Duration>) {
        let (value, pending) = match query {
            KeyspaceQuery::Get { key } => {
                let found = self.state.find(key);
                let bytes: usize = found.values.iter().map(|value| value.len() + 8).sum();
                if bytes > bytes_max {
                    let rejection = Rejection::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 };
                    return self.reject(token, rejection);
                }
                if found.pending <= self.durable {
                    let context = CausalContext::from(self.visible().into_owned());
                    (encode_versions(&found.values, &context), WriteId(0))
                } else {
                    // Once all own writes are durable, everything that has been applied may be shown.
                    let context = CausalContext::from(self.state.applied().clone());
                    (encode_versions(&found.values, &context), self.newest_write())
                }
            }
            KeyspaceQuery::Scan { from, to, limit } => self.scan(from, to.as_ref(), *limit, bytes_max),
            KeyspaceQuery::Conflicts { after, limit } => {
                (encode_conflict_page(&self.state.audit.page(*after, *limit, bytes_max)), WriteId(0))
            }
            _ => return self.reject(token, Rejection::Unsupported),
        };
        let outcome = Outcome::Value { values: vec![value], seen: None, strict: false, staleness };
        if pending <= self.durable {
            return self.done(token, outcome);
        }
        // Answers leave in the order of what they wait for.
        self.reads.last_held = self.reads.last_held.max(pending);
        self.reads.ready.hold(self.reads.last_held, Ready { token, outcome });
    }

    /// The storage action of the newest own write, also of one that is open.
    fn newest_write(&self) -> WriteId {
        if self.open.is_some() { self.last_write.next() } else { self.last_write }
    }

    /// A page of keys. A key in conflict shows its newest value.
    fn scan(&self, from: &[u8], to: Option<&Bytes>, limit: u32, bytes_max: usize) -> (Bytes, WriteId) {
        let (mut page, mut pending) = (Page::default(), WriteId(0));
        // What the encoding adds: lengths, counts and the cursor.
        let mut bytes = 64 + KEY_BYTES_MAX;
        self.state.scan(from, |key, found| {
            if to.is_some_and(|to| key >= &to[..]) {
                return ControlFlow::Break(());
            }
            let newest = found.stamps.iter().enumerate().max_by_key(|(_, stamp)| **stamp).map_or(0, |(at, _)| at);
            let value =
                found.values.get(newest).or_else(|| found.values.first()).expect("what is visited shows something");
            bytes += key.len() + value.len() + 16;
            if page.items.len() == limit.max(1) as usize || bytes > bytes_max && !page.items.is_empty() {
                page.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            pending = pending.max(found.pending);
            page.items.push((Bytes::copy_from_slice(key), value.clone()));
            ControlFlow::Continue(())
        });
        (encode_page(&page), pending)
    }

    /// More is durable, or has been applied.
    pub(crate) fn release_reads(&mut self) {
        while let Some(Ready { token, outcome }) = self.reads.ready.release(self.durable) {
            self.done(token, outcome);
        }
        if self.reads.behind.is_empty() {
            return;
        }
        for read in core::mem::take(&mut self.reads.behind) {
            if read.wants.iter().all(|(origin, sequence)| self.visible_of(*origin) >= *sequence) {
                self.answer(read.token, &read.query, read.bytes_max, None);
            } else {
                self.reads.behind.push_back(read);
            }
        }
    }

    pub(crate) fn expire_reads(&mut self, now: Time) {
        while let Some(read) = self.reads.behind.pop_front_if(|first| first.until <= now) {
            self.reject(read.token, Rejection::TooStale { bound: Duration::ZERO });
        }
    }

    /// The state is about to be dropped: what a read had found here already may be missing when the rest comes.
    pub(crate) fn give_up_reads(&mut self) {
        for read in core::mem::take(&mut self.reads.behind) {
            self.reject(read.token, Rejection::CatchingUp);
        }
    }

    pub(crate) fn fail_reads(&mut self) {
        let reads = core::mem::take(&mut self.reads);
        let mut ready = reads.ready;
        let tokens: Vec<Token> =
            ready.drain().map(|ready| ready.token).chain(reads.behind.into_iter().map(|read| read.token)).collect();
        for token in tokens {
            self.reject(token, Rejection::StorageFailed);
        }
    }
}
