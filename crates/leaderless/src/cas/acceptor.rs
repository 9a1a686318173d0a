//! The acceptor: what this member has promised and accepted, key by key.
//!
//! Invariants: a promise never goes down; nothing below it is accepted; an answer that says yes depends on a record, which is
//! durable before the answer leaves. Source: Rystsov, arXiv 1802.07000, the acceptor's steps.
//!
//! # A member that lost its disk
//!
//! It may have promised and accepted what it no longer knows. So it begins a new [`Life`]: it answers nothing until, key by
//! key, it has the highest promise and the latest value of *all* other members (any quorum that it was part of had another
//! member in it, which knows). That is not enough while proposals are under way: its last answer before the loss could
//! be counted together with an answer that another member gives after it was copied from. So each member that gives its state
//! notes the new life durably first, and names it in every answer from then on; a proposer drops the answers of earlier lives.

use core::ops::{Bound, ControlFlow};
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::NodeId;
use replikit_core::keyspace::{Map, MapImage};

use super::ballot::Ballot;
use super::message::{Answer, Ask, Holding, Life};
use super::record::{Entry, Record, RecordNumber};
use super::register::Register;

/// An entry without its key and its value, about.
const ENTRY_BYTES: usize = 150;

/// Whether the acceptor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was not started yet.
    Stopped,
    /// It gathers what it forgot, and answers nothing.
    Joining,
    /// It answers.
    Serving,
}

/// What the acceptor has to say, and what must be on disk first.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) answer: Answer,
    /// What has changed; it takes the number that was offered.
    pub(super) record: Option<Record>,
    /// The answer may leave once this record is durable.
    pub(super) after: RecordNumber,
}

/// The acceptor of one member.
#[derive(Debug)]
pub(super) struct Acceptors {
    entries: Map<Entry>,
    standing: Standing,
    life: Life,
    lives: BTreeMap<NodeId, Life>,
}

impl Acceptors {
    pub(super) fn new() -> Self {
        Self { entries: Map::new(), standing: Standing::Stopped, life: Life::default(), lives: BTreeMap::new() }
    }

    pub(super) const fn standing(&self) -> Standing {
        self.standing
    }

    pub(super) const fn life(&self) -> Life {
        self.life
    }

    pub(super) fn lives(&self) -> Vec<(NodeId, Life)> {
        self.lives.iter().map(|(&node, &life)| (node, life)).collect()
    }

    pub(super) const fn keys(&self) -> usize {
        self.entries.len()
    }

    /// Applies a record: from the disk, or of another member.
    pub(super) fn apply(&mut self, record: &Record, number: RecordNumber) -> bool {
        match record {
            Record::Started { .. } => false,
            Record::Joining { life } if *life >= self.life => {
                (self.standing, self.life) = (Standing::Joining, *life);
                true
            }
            Record::Serving { life } if *life >= self.life => {
                (self.standing, self.life) = (Standing::Serving, *life);
                true
            }
            Record::Joining { .. } | Record::Serving { .. } => false,
            Record::Admitted { node, life } => {
                let known = self.lives.entry(*node).or_default();
                let later = *life > *known;
                *known = (*life).max(*known);
                later
            }
            Record::Promised { key, ballot } => {
                self.entries.update(key, |entry| entry.promise(*ballot) && note(entry, number))
            }
            Record::Entry { key, entry: other } => {
                self.entries.update(key, |entry| entry.join(other) && note(entry, number))
            }
        }
    }

    /// What has been accepted for a key, with the promise; nothing for an unknown key.
    pub(super) fn entry(&mut self, key: &[u8]) -> Option<&Entry> {
        self.entries.peek(key)
    }

    /// The state as it is now, each key once.
    pub(super) fn image(&self) -> MapImage<Entry> {
        self.entries.image()
    }

    /// Adds the entries behind a key, of about so many bytes, at least one; returns the last key if there are more.
    pub(super) fn page(&self, after: Option<&[u8]>, bytes_max: usize, into: &mut Vec<Record>) -> Option<Bytes> {
        let (mut bytes, mut last, mut more) = (0, None, None);
        self.entries.for_each_from(after.map_or(Bound::Unbounded, Bound::Excluded), |key, entry| {
            if bytes >= bytes_max.max(1) {
                more = last.take();
                return ControlFlow::Break(());
            }
            let key = Bytes::copy_from_slice(key);
            bytes += key.len() + entry.register.value_bytes() + ENTRY_BYTES;
            last = Some(key.clone());
            into.push(Record::Entry { key, entry: entry.clone().settled() });
            ControlFlow::Continue(())
        });
        more
    }

    /// The next keys, ascending.
    pub(super) fn keys_behind(&self, after: Option<&[u8]>, most: usize) -> Vec<Bytes> {
        let mut keys = Vec::new();
        self.entries.for_each_from(after.map_or(Bound::Unbounded, Bound::Excluded), |key, _| {
            if keys.len() == most {
                return ControlFlow::Break(());
            }
            keys.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        });
        keys
    }

    /// Answers a question. A record, if there is one, will have this number.
    pub(super) fn answer(&mut self, key: &Bytes, ask: Ask, number: RecordNumber) -> Step {
        match ask {
            Ask::Prepare { ballot, known } => self.prepare(key, ballot, known, number),
            Ask::Accept { ballot, register, next } => self.accept(key, ballot, register, next, number),
            Ask::Query { known } => match self.entries.peek(key) {
                Some(entry) => {
                    Step { answer: Answer::Holds(holding(entry, known)), record: None, after: entry.recorded }
                }
                None => {
                    let answer = Answer::Holds(holding(&Entry::default(), known));
                    Step { answer, record: None, after: RecordNumber::default() }
                }
            },
        }
    }

    fn prepare(&mut self, key: &Bytes, ballot: Ballot, known: Ballot, number: RecordNumber) -> Step {
        self.entries.update(key, |entry| {
            if ballot < entry.promised {
                return refuse(entry);
            }
            let record = entry.promise(ballot).then(|| {
                entry.recorded = number;
                Record::Promised { key: key.clone(), ballot }
            });
            Step { answer: Answer::Promised(holding(entry, known)), record, after: entry.recorded }
        })
    }

    fn accept(&mut self, key: &Bytes, ballot: Ballot, register: Register, next: Ballot, number: RecordNumber) -> Step {
        self.entries.update(key, |entry| {
            // Asked once more: it has accepted, whatever it has promised since.
            if ballot == entry.accepted {
                return Step { answer: Answer::Accepted, record: None, after: entry.recorded };
            }
            if ballot < entry.promised {
                return refuse(entry);
            }
            (entry.accepted, entry.register, entry.recorded) = (ballot, register, number);
            entry.promise(next);
            let record = Some(Record::Entry { key: key.clone(), entry: entry.clone() });
            Step { answer: Answer::Accepted, record, after: number }
        })
    }
}

fn note(entry: &mut Entry, number: RecordNumber) -> bool {
    entry.recorded = number;
    true
}

fn holding(entry: &Entry, known: Ballot) -> Holding {
    let register = (entry.accepted != known).then(|| entry.register.clone());
    Holding { ballot: entry.accepted, register }
}

/// A refusal promises nothing, so it may leave at once.
fn refuse(entry: &Entry) -> Step {
    let answer = Answer::Refused { promised: entry.promised };
    Step { answer, record: None, after: RecordNumber::default() }
}
