//! The sequences of one origin, as runs.
//!
//! Invariant: a [`SequenceSet`] is a base, up to which every sequence is in the set, and above it runs that are ascending,
//! disjoint and never adjacent; so equal sets are equal values, and one without gaps is one number.
//! Source: the gap bitmap of Gonçalves et al., SRDS 2017 (DottedDB), as runs, because losses come in bursts.

use core::ops::RangeInclusive;
use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Dot;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Run {
    first: u64,
    last: u64,
}

/// A set of sequences, from 1 to [`Dot::SEQUENCE_MAX`].
///
/// Hardly ever has one a gap, so that runs are kept elsewhere: 16 bytes, and copied without asking for memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct SequenceSet {
    base: u64,
    // Above base + 1, which is missing; `None` when there is no run, never empty.
    above: Option<Box<Runs>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Runs(VecDeque<Run>);

impl SequenceSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { base: 0, above: None }
    }

    /// Every sequence up to and including `base`, which is capped at [`Dot::SEQUENCE_MAX`].
    #[must_use]
    pub fn up_to(base: u64) -> Self {
        Self { base: base.min(Dot::SEQUENCE_MAX), above: None }
    }

    /// Every sequence up to and including this one is in the set.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// The largest sequence in the set; 0 if there is none.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.above().back().map_or(self.base, |run| run.last)
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.top() == 0
    }

    /// How many sequences are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.iter().map(|run| run.last - run.first + 1).sum()
    }

    /// Whether there is nothing above the base.
    #[must_use]
    pub const fn is_contiguous(&self) -> bool {
        self.above.is_none()
    }

    fn above(&self) -> &VecDeque<Run> {
        static NOTHING: Runs = Runs(VecDeque::new());
        &self.above.as_deref().unwrap_or(&NOTHING).0
    }

    /// To add a run.
    fn above_mut(&mut self) -> &mut VecDeque<Run> {
        &mut self.above.get_or_insert_default().0
    }

    /// Whether the sequence is in the set.
    #[must_use]
    pub fn contains(&self, sequence: u64) -> bool {
        if sequence <= self.base {
            return sequence > 0;
        }
        let above = self.above();
        let at = above.partition_point(|run| run.last < sequence);
        above.get(at).is_some_and(|run| run.first <= sequence)
    }

    /// Adds a sequence; returns whether it is new. 0 and what is above [`Dot::SEQUENCE_MAX`] are never added.
    pub fn insert(&mut self, sequence: u64) -> bool {
        if sequence <= self.base || sequence > Dot::SEQUENCE_MAX {
            return false;
        }
        if sequence == self.base + 1 {
            self.base = sequence;
            self.absorb();
            return true;
        }
        let above = self.above_mut();
        let at = above.partition_point(|run| run.last < sequence);
        if above.get(at).is_some_and(|run| run.first <= sequence) {
            return false;
        }
        let joins_left = at > 0 && above[at - 1].last + 1 == sequence;
        let joins_right = above.get(at).is_some_and(|run| run.first == sequence + 1);
        match (joins_left, joins_right) {
            (true, true) => {
                above[at - 1].last = above[at].last;
                above.remove(at);
            }
            (true, false) => above[at - 1].last = sequence,
            (false, true) => above[at].first = sequence,
            (false, false) => above.insert(at, Run { first: sequence, last: sequence }),
        }
        true
    }

    /// Adds a run that lies above everything in the set.
    pub(crate) fn insert_run(&mut self, run: RangeInclusive<u64>) {
        let (first, last) = run.into_inner();
        debug_assert!(first > self.top(), "runs are added in ascending order");
        if self.is_contiguous() && self.base + 1 == first {
            self.base = last;
            return;
        }
        let above = self.above_mut();
        match above.back_mut() {
            Some(back) if back.last + 1 == first => back.last = last,
            _ => above.push_back(Run { first, last }),
        }
    }

    /// The runs of the set, ascending, the one below the base first.
    pub fn runs(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.iter().map(|run| run.first..=run.last)
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if other.is_contiguous() && self.is_contiguous() {
            return Self::up_to(self.base.max(other.base));
        }
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        Self::from_sorted(core::iter::from_fn(|| match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if b.first < a.first => right.next(),
            (Some(_), _) => left.next(),
            (None, _) => right.next(),
        }))
    }

    /// Adds everything that is in the other set.
    pub fn join(&mut self, other: &Self) {
        if self.is_contiguous() && other.is_contiguous() {
            self.base = self.base.max(other.base);
        } else if !self.covers(other) {
            *self = self.union(other);
        }
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_contiguous() && other.is_contiguous() {
            return Self::up_to(self.base.min(other.base));
        }
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        Self::from_sorted(core::iter::from_fn(|| {
            loop {
                let (a, b) = (*left.peek()?, *right.peek()?);
                if a.last <= b.last {
                    left.next();
                } else {
                    right.next();
                }
                let both = Run { first: a.first.max(b.first), last: a.last.min(b.last) };
                if both.first <= both.last {
                    return Some(both);
                }
            }
        }))
    }

    /// What is in this set and not in the other, as runs, ascending.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = RangeInclusive<u64>> + 'a {
        let (mut left, mut right) = (self.iter(), other.iter().peekable());
        let mut rest: Option<Run> = None;
        core::iter::from_fn(move || {
            loop {
                let run = match rest.take() {
                    Some(run) => run,
                    None => left.next()?,
                };
                while right.next_if(|hole| hole.last < run.first).is_some() {}
                let Some(&hole) = right.peek().filter(|hole| hole.first <= run.last) else {
                    return Some(run.first..=run.last);
                };
                if hole.last < run.last {
                    rest = Some(Run { first: hole.last + 1, last: run.last });
                }
                if run.first < hole.first {
                    return Some(run.first..=hole.first - 1);
                }
            }
        })
    }

    /// Whether everything in the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if other.top() <= self.base {
            return true;
        }
        other.difference(self).next().is_none()
    }

    fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        let below = (self.base > 0).then_some(Run { first: 1, last: self.base });
        below.into_iter().chain(self.above().iter().copied())
    }

    /// From runs that ascend by their first sequence; they may touch and overlap.
    fn from_sorted(runs: impl Iterator<Item = Run>) -> Self {
        let mut set = Self::new();
        for run in runs {
            if run.first <= set.base + 1 {
                set.base = set.base.max(run.last);
                continue;
            }
            let above = set.above_mut();
            match above.back_mut() {
                Some(back) if run.first <= back.last + 1 => back.last = back.last.max(run.last),
                _ => above.push_back(run),
            }
        }
        set
    }

    /// The base has grown by one: takes in the run that it may touch now.
    fn absorb(&mut self) {
        let Some(Runs(above)) = self.above.as_deref_mut() else { return };
        if let Some(run) = above.pop_front_if(|run| run.first == self.base + 1) {
            self.base = run.last;
        }
        if above.is_empty() {
            self.above = None;
        }
    }
}

impl FromIterator<u64> for SequenceSet {
    fn from_iter<I: IntoIterator<Item = u64>>(sequences: I) -> Self {
        let mut set = Self::new();
        for sequence in sequences {
            set.insert(sequence);
        }
        set
    }
}

/// Runs as pairs of small numbers: how many are missing beyond the one that must be, how many follow beyond the first.
struct Encoded<'a>(&'a SequenceSet);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_contiguous() {
            return serializer.collect_seq([(0_u64, 0_u64); 0]);
        }
        let mut last = self.0.base;
        serializer.collect_seq(self.0.above().iter().map(|run| {
            let pair = (run.first - last - 2, run.last - run.first);
            last = run.last;
            pair
        }))
    }
}

impl Serialize for SequenceSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.base, Encoded(self)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SequenceSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (base, pairs) = <(u64, Vec<(u64, u64)>)>::deserialize(deserializer)?;
        let run_after = |last: u64, (gap, more): (u64, u64)| {
            let first = last.checked_add(2)?.checked_add(gap)?;
            Some(Run { first, last: first.checked_add(more)? }).filter(|run| run.last <= Dot::SEQUENCE_MAX)
        };
        let mut last = base;
        let mut set = Self { base, above: None };
        for pair in pairs {
            let run = run_after(last, pair).ok_or_else(|| de::Error::custom("a run beyond the largest sequence"))?;
            last = run.last;
            set.above_mut().push_back(run);
        }
        if base > Dot::SEQUENCE_MAX {
            return Err(de::Error::custom("a base beyond the largest sequence"));
        }
        Ok(set)
    }
}
