//! A counter of additions and subtractions that counts each once, also when it arrives twice, and can be reset.
//!
//! Invariant: the value is the sum of the additions that no reset has seen. Each addition is its own dot, so a reset takes
//! away exactly what it has seen: the usual compression, one sum per node, either loses concurrent additions or brings
//! back reset ones. What is causally stable is folded into one entry per origin, so the counter stays small.
//! Source: Baquero, Almeida, Lerche, "The problem with embedded CRDT counters and a solution", PaPoC 2016, for the problem.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Causal, DotStore};
use crate::{CausalContext, Dot, DotRange, Seen, VersionVector};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Addition {
    // The first sequence whose addition is in the sum; the entry's own unless it was folded.
    from: u64,
    sum: i128,
}

/// PN-counter that can be reset.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counter(BTreeMap<Dot, Addition>);

impl Counter {
    /// The delta that adds an amount, which may be negative.
    #[must_use]
    pub fn add(&self, dot: Dot, amount: i64) -> Causal<Self> {
        let addition = Addition { from: dot.sequence, sum: amount.into() };
        Causal { store: Self(BTreeMap::from([(dot, addition)])), context: CausalContext::from_iter([dot]) }
    }

    /// The delta that takes away the additions known here.
    #[must_use]
    pub fn reset(&self, dot: Dot) -> Causal<Self> {
        let mut context = CausalContext::from_iter([dot]);
        self.collect_into(&mut context);
        Causal { store: Self::default(), context }
    }

    /// The sum, limited to the range of the type.
    #[must_use]
    pub fn value(&self) -> i64 {
        let sum = self.0.values().fold(0_i128, |sum, addition| sum.wrapping_add(addition.sum));
        i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
    }

    /// Folds the additions that are causally stable into one entry per origin: no reset is on its way that has seen one of
    /// them and not the others. Only what is below the first gap of an origin is folded, so that a reset can name all that
    /// is in an entry as one run of dots.
    ///
    /// `stable` is causally stable at this replica if it is in the vector of every member *and* this replica holds everything
    /// that was in those vectors: a reset that has not seen an addition was made before its maker held that, so it is there.
    /// Replicas may fold at different times; their counters still join, and are equal again after the next fold.
    pub fn fold(&mut self, stable: &VersionVector) {
        let folded: Vec<(Dot, Addition)> =
            self.0.extract_if(.., |dot, _| dot.sequence <= stable.base(dot.origin)).collect();
        let mut last: Option<(Dot, Addition)> = None;
        for (dot, addition) in folded {
            last = Some(match last.take() {
                Some((before, folded)) if before.origin == dot.origin => {
                    (dot, Addition { from: folded.from, sum: folded.sum.wrapping_add(addition.sum) })
                }
                other => {
                    self.0.extend(other);
                    (dot, addition)
                }
            });
        }
        self.0.extend(last);
    }

    /// How many entries it takes: the additions since the last fold, and one per origin.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.0.len()
    }
}

impl DotStore for Counter {
    fn is_bottom(&self) -> bool {
        self.0.is_empty()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.0.keys().copied().for_each(found);
    }

    // Of a folded entry all that is in it, for another replica may not have folded it. Everybody holds every dot of the run.
    fn collect_into(&self, context: &mut CausalContext) {
        for (dot, addition) in &self.0 {
            context.insert_run(DotRange { origin: dot.origin, first: addition.from, last: dot.sequence });
        }
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let mut new = Vec::new();
        for (dot, theirs) in &other.0 {
            match self.0.get_mut(dot) {
                // Of two that were folded differently, the one that holds more; its fold has taken the rest out already.
                Some(mine) if theirs.from != mine.from => *mine = if theirs.from < mine.from { *theirs } else { *mine },
                Some(mine) => *mine = (*mine).max(*theirs),
                None if seen.contains(*dot) => {}
                None => new.push((*dot, *theirs)),
            }
        }
        self.0.retain(|dot, _| other.0.contains_key(dot) || !other_seen.contains(*dot));
        self.0.extend(new);
    }
}
