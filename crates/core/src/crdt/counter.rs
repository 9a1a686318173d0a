//! A counter of additions and subtractions that counts each once, also when it arrives twice, and can be reset.
//!
//! Invariant: the value is the sum of the additions that no reset has seen. Each addition is its own dot, so a reset takes
//! away exactly what it has seen: the usual compression, one sum per node, either loses concurrent additions or brings
//! back reset ones. What is causally stable is folded into one entry per origin, so the counter stays small. Taking in a delta
//! costs what the delta has, however many additions there are, and reading the value costs nothing.
//! Source: Baquero, Almeida, Lerche, "The problem with embedded CRDT counters and a solution", PaPoC 2016, for the problem.

use core::ops::RangeInclusive;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Causal, DotStore};
use crate::{CausalContext, Dot, DotRange, OriginId, Seen, VersionVector};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Addition {
    // The first sequence whose addition is in the sum; the entry's own unless it was folded.
    from: u64,
    sum: i128,
}

/// PN-counter that can be reset.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    additions: BTreeMap<Dot, Addition>,
    // Of all additions, in whatever order they came and went: it wraps, so none is lost on the way.
    sum: i128,
}

/// The dots of one origin with these sequences.
fn dots(origin: OriginId, sequences: RangeInclusive<u64>) -> RangeInclusive<Dot> {
    let (first, last) = sequences.into_inner();
    Dot { origin, sequence: first }..=Dot { origin, sequence: last }
}

impl From<BTreeMap<Dot, Addition>> for Counter {
    fn from(additions: BTreeMap<Dot, Addition>) -> Self {
        let sum = additions.values().fold(0_i128, |sum, addition| sum.wrapping_add(addition.sum));
        Self { additions, sum }
    }
}

/// The additions alone: their sum follows from them.
impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.additions.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|additions: BTreeMap<Dot, Addition>| additions.into())
    }
}

impl Counter {
    /// The delta that adds an amount, which may be negative.
    #[must_use]
    pub fn add(&self, dot: Dot, amount: i64) -> Causal<Self> {
        let addition = Addition { from: dot.sequence, sum: amount.into() };
        Causal { store: BTreeMap::from([(dot, addition)]).into(), context: CausalContext::from_iter([dot]) }
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
        i64::try_from(self.sum).unwrap_or(if self.sum < 0 { i64::MIN } else { i64::MAX })
    }

    /// Folds the additions that are causally stable into one entry per origin: no reset is on its way that has seen one of
    /// them and not the others. Only what is below the first gap of an origin is folded, so that a reset can name all that
    /// is in an entry as one run of dots.
    ///
    /// `stable` is causally stable at this replica if it is in the vector of every member *and* this replica holds everything
    /// that was in those vectors: a reset that has not seen an addition was made before its maker held that, so it is there.
    /// Replicas may fold at different times; their counters still join, and are equal again after the next fold.
    pub fn fold(&mut self, stable: &VersionVector) {
        for (origin, held) in stable.iter() {
            let mut stable = self.additions.extract_if(dots(origin, 0..=held.base()), |_, _| true);
            let Some(first) = stable.next() else { continue };
            let (last, folded) = stable.fold(first, |(_, folded), (dot, addition)| {
                (dot, Addition { from: folded.from, sum: folded.sum.wrapping_add(addition.sum) })
            });
            self.additions.insert(last, folded);
        }
    }

    /// How many entries it takes: the additions since the last fold, and one per origin.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.additions.len()
    }

    fn put(&mut self, dot: Dot, addition: Addition) {
        let replaced = self.additions.insert(dot, addition).map_or(0, |replaced| replaced.sum);
        self.sum = self.sum.wrapping_sub(replaced).wrapping_add(addition.sum);
    }

    /// Drops what the other side has seen and does not have.
    fn drop_gone(&mut self, other: &Self, other_seen: &VersionVector) {
        for (origin, held) in other_seen.iter() {
            for run in held.runs() {
                let is_gone = |dot: &Dot, _: &mut Addition| !other.additions.contains_key(dot);
                for (_, gone) in self.additions.extract_if(dots(origin, run), is_gone) {
                    self.sum = self.sum.wrapping_sub(gone.sum);
                }
            }
        }
    }
}

impl DotStore for Counter {
    fn is_bottom(&self) -> bool {
        self.additions.is_empty()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.additions.keys().copied().for_each(found);
    }

    // Of a folded entry all that is in it, for another replica may not have folded it. Everybody holds every dot of the run.
    fn collect_into(&self, context: &mut CausalContext) {
        for (dot, addition) in &self.additions {
            context.insert_run(DotRange { origin: dot.origin, first: addition.from, last: dot.sequence });
        }
    }

    // Only what the other side has, or has seen, is looked at.
    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        for (dot, theirs) in &other.additions {
            match self.additions.get(dot).copied() {
                // Of two that were folded differently, the one that holds more; its fold has taken the rest out already.
                Some(mine) if theirs.from != mine.from => {
                    self.put(*dot, if theirs.from < mine.from { *theirs } else { mine });
                }
                Some(mine) => self.put(*dot, mine.max(*theirs)),
                None if seen.contains(*dot) => {}
                None => self.put(*dot, *theirs),
            }
        }
        self.drop_gone(other, other_seen.base);
        self.drop_gone(other, other_seen.above.vector());
    }
}
