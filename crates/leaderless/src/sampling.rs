//! What a coordinator measures on the side: how long writes take to reach each owner, and how often an answer of few owners
//! was stale.
//!
//! Invariant: nothing that a client is told depends on it, and it costs one question to each other owner for one read in
//! [`ONE_READ_IN`]. Source: the staleness monitor of probabilistically bounded staleness (Bailis et al., VLDB 2012).

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::{Batches, Now, Time};

use crate::content::{Content, Known};
use crate::levels::{Owners, Set};
use crate::message::{Answer, Fetch, Head};
use crate::replica::Leaderless;
use crate::staleness::Delays;

/// One read of fewer owners than quorums need, out of so many, is looked at.
pub(crate) const ONE_READ_IN: u64 = 256;
/// One write out of so many.
const ONE_WRITE_IN: u64 = 64;
/// Samples that are kept.
const SAMPLES: usize = 128;
/// Reads that are looked at at once.
const CHECKS_MAX: usize = 64;

/// A write whose way is watched.
#[derive(Debug)]
struct Watched {
    sequence: u64,
    began: Time,
    told: Vec<Option<Duration>>,
}

/// An answer that has been given, and is compared with what others have.
#[derive(Debug)]
struct Check {
    key: Bytes,
    answered: Known,
    began: Now,
    asked: Set,
    heard: Set,
}

/// Answers of fewer owners than quorums need, as far as they were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Measured {
    /// Answers that were compared with what every other owner had.
    pub checked: u64,
    /// Of these, how many missed a version that was, by its timestamp and the usual time of a write, acknowledged when the read
    /// began. Deletes that leave nothing, and values that merge, are not looked at.
    pub stale: u64,
    /// The longest time by which one was stale.
    pub worst: Duration,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    writes: u64,
    watched: VecDeque<Watched>,
    told: VecDeque<Vec<Duration>>,
    /// A moving average of the time after which W owners have a write on disk.
    usual: Duration,
    write: u8,
    reads: u64,
    checks: BTreeMap<u64, Check>,
    pub(crate) measured: Measured,
}

impl Sampling {
    /// A write begins: one out of a few is watched.
    pub(crate) fn begin_write(&mut self, now: Time, sequence: u64, owners: &Owners) {
        self.writes += 1;
        self.write = owners.write_size();
        if self.writes % ONE_WRITE_IN != 1 {
            return;
        }
        if self.watched.len() == SAMPLES {
            self.end_watch();
        }
        self.watched.push_back(Watched { sequence, began: now, told: vec![None; owners.len().into()] });
    }

    /// The owners are others from now on.
    pub(crate) fn begin_anew(&mut self) {
        self.watched.clear();
        self.told.clear();
        self.checks.clear();
    }

    /// An owner has own writes up to this on its disk.
    pub(crate) fn durable(&mut self, now: Time, index: u32, up_to: u64) {
        for watched in self.watched.iter_mut().take_while(|watched| watched.sequence <= up_to) {
            watched.told[index as usize].get_or_insert_with(|| now.since(watched.began));
        }
        while self.watched.front().is_some_and(|watched| watched.told.iter().all(Option::is_some)) {
            self.end_watch();
        }
    }

    /// The oldest of the watched writes has been watched for long enough.
    fn end_watch(&mut self) {
        let Some(watched) = self.watched.pop_front() else { return };
        if self.told.len() == SAMPLES {
            self.told.pop_front();
        }
        let told: Vec<Duration> = watched.told.into_iter().map(|told| told.unwrap_or(Duration::MAX)).collect();
        let mut order = told.clone();
        order.sort_unstable();
        let took = order[usize::from(self.write).clamp(1, order.len()) - 1];
        if took < Duration::MAX {
            self.usual = if self.usual.is_zero() { took } else { (self.usual * 15 + took) / 16 };
        }
        self.told.push_back(told);
    }
}

impl Leaderless {
    /// An answer of few owners was given: one out of many is compared with what the other owners have.
    pub(crate) fn check_answer(&mut self, now: Now, key: &Bytes, known: Known, answered: Set) {
        let may_ask = self.may_number();
        let sampling = &mut self.sampling;
        sampling.reads += 1;
        let comparable = matches!(known.content, Content::Versions(_));
        if !comparable || sampling.reads % ONE_READ_IN != 1 || !may_ask {
            return;
        }
        if sampling.checks.len() == CHECKS_MAX {
            sampling.checks.pop_first();
        }
        let (digest, epoch) = (known.content.digest(), self.epoch);
        let read = self.next_read();
        let mut asked = Set::default();
        let others = (0..u32::from(self.owners.len())).filter(|index| !answered.contains(*index));
        let others: Vec<u32> = others.filter(|index| *index != self.owners.me()).collect();
        for &index in &others {
            asked.insert(index);
            let fetch = Fetch { epoch, read, key: key.clone(), digest };
            self.send(self.owners.node(index), Head::Fetch(fetch), Batches::None);
        }
        let check = Check { key: key.clone(), answered: known, began: now, asked, heard: Set::default() };
        self.sampling.checks.insert(read, check);
    }

    /// An owner has answered a question that no client waits for.
    pub(crate) fn handle_check(&mut self, now: Now, index: u32, read: u64, answer: Answer) {
        let sampling = &mut self.sampling;
        let Some(check) = sampling.checks.get_mut(&read) else { return };
        if check.heard.contains(index) || !check.asked.contains(index) {
            return;
        }
        check.heard.insert(index);
        self.reads.took(index, now.mono.since(check.began.mono));
        if let Answer::Copy(copy) = answer {
            let before = check.answered.content.clone();
            if check.answered.join(copy, self.config.keyspaces.of(&check.key)).is_none() {
                sampling.checks.remove(&read);
                return;
            }
            let acknowledged = |time: u64| time.saturating_add(sampling.usual.as_nanos() as u64);
            let missed = check.answered.content.missed_by(&before).map(|stamp| acknowledged(stamp.time.0));
            if let Some(missed) = missed.filter(|missed| *missed < check.began.wall.0) {
                let by = Duration::from_nanos(check.began.wall.0 - missed);
                sampling.measured.worst = sampling.measured.worst.max(by);
                sampling.measured.stale += 1;
                sampling.measured.checked += 1;
                sampling.checks.remove(&read);
                return;
            }
        }
        if check.heard == check.asked {
            sampling.measured.checked += 1;
            sampling.checks.remove(&read);
        }
    }

    /// What has been measured of the ways to the owners.
    #[must_use]
    pub fn delays(&self) -> Delays {
        Delays {
            own: self.owners.me() as usize,
            writes: self.sampling.told.iter().cloned().collect(),
            answers: (0..u32::from(self.owners.len())).map(|index| self.reads.round_trips(index)).collect(),
        }
    }
}
