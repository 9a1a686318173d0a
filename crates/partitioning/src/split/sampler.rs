//! Where to cut by load: a reservoir of candidates, each of which counts what falls to its left and to its right.
//!
//! Invariant: bounded memory ([`CANDIDATES`] keys), no clock, randomness from a seed. A candidate counts only what came after it
//! was drawn, so that what is sequential shows: everything is on one side of every candidate. Source: CockroachDB's
//! unweighted finder; reservoir sampling, Vitter 1985, algorithm R.

use bytes::Bytes;

use super::{Cut, SAMPLES_MIN, SIDE_PERCENT_MAX, SPANNING_PERCENT_MAX, percent};
use crate::map::{Partition, Refused};
use crate::mix::{STEP, mixed};
use crate::partitioner::{Partitioner as _, Scheme};
use crate::span::Span;

/// Candidates kept (CockroachDB and TiKV: 20).
pub const CANDIDATES: usize = 20;

/// What a request touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'r> {
    /// Read of one position.
    Read(&'r [u8]),
    /// Write of one position.
    Write(&'r [u8]),
    /// Something over a stretch of positions.
    Scan(&'r Span),
}

#[derive(Clone, Debug)]
struct Candidate {
    position: Bytes,
    left: u64,
    here: u64,
    right: u64,
    /// Scans that a cut right before, or right behind the position would part.
    spanning_before: u64,
    spanning_behind: u64,
}

/// What is known of where a partition's load falls. Feed it every request, or one in so many, while the partition is hot; ask it,
/// then start a new one.
#[derive(Clone, Debug)]
pub struct LoadSampler {
    candidates: Vec<Candidate>,
    seen: u64,
    draws: u64,
    writes: u64,
    /// Writes beyond all writes before them, upwards and downwards.
    ahead: u64,
    behind: u64,
    outermost: Option<(Bytes, Bytes)>,
}

impl LoadSampler {
    /// Knows nothing. The seed decides which requests become candidates.
    pub fn new(seed: u64) -> Self {
        Self { candidates: Vec::new(), seen: 0, draws: seed, writes: 0, ahead: 0, behind: 0, outermost: None }
    }

    /// Requests that it has seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Counts a request of this weight (1, or its microseconds of processor time).
    pub fn record(&mut self, request: Request<'_>, weight: u64) {
        for candidate in &mut self.candidates {
            candidate.count(&request, weight);
        }
        if let Request::Write(position) = request {
            self.write(position);
        }
        let position = match request {
            Request::Read(position) | Request::Write(position) => position,
            Request::Scan(span) => &span.start,
        };
        self.seen += 1;
        let drawn = self.draw() % self.seen;
        if self.candidates.len() < CANDIDATES {
            self.candidates.push(Candidate::at(position));
        } else if let Some(place) = usize::try_from(drawn).ok().filter(|place| *place < CANDIDATES) {
            self.candidates[place] = Candidate::at(position);
        }
    }

    fn write(&mut self, position: &[u8]) {
        self.writes += 1;
        match &mut self.outermost {
            None => self.outermost = Some((Bytes::copy_from_slice(position), Bytes::copy_from_slice(position))),
            Some((_, last)) if position > &last[..] => {
                self.ahead += 1;
                *last = Bytes::copy_from_slice(position);
            }
            Some((first, _)) if position < &first[..] => {
                self.behind += 1;
                *first = Bytes::copy_from_slice(position);
            }
            Some(_) => {}
        }
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(STEP);
        mixed(self.draws)
    }

    /// The cut that parts the load best.
    ///
    /// # Errors
    /// Too few requests, or why no cut would help: one key, a sequence, requests that span every good cut, or all on one side.
    pub fn cut(&self, scheme: &Scheme, partition: &Partition) -> Result<Bytes, Refused> {
        let needed = 10 * SAMPLES_MIN;
        let samples = usize::try_from(self.seen).unwrap_or(usize::MAX);
        if samples < needed {
            return Err(Refused::TooFewSamples { samples, needed });
        }
        // A candidate that was drawn late has counted too little to be judged by.
        let most = self.candidates.iter().map(Candidate::counted).max().unwrap_or(0);
        let judged = || self.candidates.iter().filter(move |candidate| 4 * candidate.counted() >= most);
        let cuts = || judged().flat_map(|it| it.cuts(scheme)).filter(|cut| cut.is_within(scheme, partition));
        let fair = |cut: &Cut| cut.larger_side() <= SIDE_PERCENT_MAX;
        let good = cuts().filter(|cut| fair(cut) && cut.spanning() <= SPANNING_PERCENT_MAX);
        if let Some(cut) = good.min_by(|a, b| a.cost().cmp(&b.cost()).then_with(|| a.at.cmp(&b.at))) {
            return Ok(cut.at);
        }
        let single = judged().map(|it| percent(it.here, it.counted())).max().unwrap_or(0);
        let sequential = percent(self.ahead.max(self.behind), self.writes);
        Err(if single > 100 - SIDE_PERCENT_MAX {
            Refused::SingleKey { percent: single }
        } else if sequential > 50 {
            Refused::Sequential { percent: sequential }
        } else if let Some(spanning) = cuts().filter(fair).map(|cut| cut.spanning()).min() {
            Refused::Spanning { percent: spanning }
        } else if let Some(spanning) = cuts().map(|cut| cut.spanning()).min().filter(|it| *it > SPANNING_PERCENT_MAX) {
            Refused::Spanning { percent: spanning }
        } else {
            Refused::Uneven { percent: cuts().map(|cut| cut.larger_side()).min().unwrap_or(100) }
        })
    }
}

impl Candidate {
    fn at(position: &[u8]) -> Self {
        let position = Bytes::copy_from_slice(position);
        Self { position, left: 0, here: 0, right: 0, spanning_before: 0, spanning_behind: 0 }
    }

    fn counted(&self) -> u64 {
        self.left + self.here + self.right + self.spanning_behind
    }

    fn count(&mut self, request: &Request<'_>, weight: u64) {
        let span = match request {
            Request::Read(position) | Request::Write(position) => {
                *match (*position).cmp(&self.position[..]) {
                    core::cmp::Ordering::Less => &mut self.left,
                    core::cmp::Ordering::Equal => &mut self.here,
                    core::cmp::Ordering::Greater => &mut self.right,
                } += weight;
                return;
            }
            Request::Scan(span) => span,
        };
        let starts_before = span.start < self.position;
        let ends_behind = span.end.as_ref().is_none_or(|end| **end > *self.position);
        match (starts_before, ends_behind) {
            (true, true) => {
                self.spanning_before += weight;
                self.spanning_behind += weight;
            }
            (true, false) => self.left += weight,
            // Beginning right here: only a cut behind the position parts it.
            (false, _) if span.start == self.position => self.spanning_behind += weight,
            (false, _) => self.right += weight,
        }
    }

    /// The cuts right before and right behind it.
    fn cuts(&self, scheme: &Scheme) -> [Cut; 2] {
        let begins_here = self.spanning_behind - self.spanning_before;
        let before = Cut {
            at: self.position.clone(),
            left: self.left,
            right: self.here + self.right + begins_here,
            spanning: self.spanning_before,
        };
        let behind = Cut {
            at: scheme.bound_behind(&self.position),
            left: self.left + self.here,
            right: self.right,
            spanning: self.spanning_behind,
        };
        [before, behind]
    }
}
