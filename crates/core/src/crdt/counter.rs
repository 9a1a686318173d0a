//! A counter of additions and subtractions that counts each once, also when it arrives twice, and can be reset.
//!
//! Invariant: the value is the sum of the additions that no reset has seen. Each addition is its own dot, so a reset takes
//! away exactly what it has seen: the usual compression, one sum per node, either loses concurrent additions or brings
//! back reset ones. What is causally stable is folded into one entry per origin, so the counter stays small; which additions
//! are in it is told by a mark that folding leaves as it is. Taking in a delta costs what the delta has, however many additions
//! there are, and reading the value costs nothing.
//! Source: Baquero, Almeida, Lerche, "The problem with embedded CRDT counters and a solution", PaPoC 2016, for the problem.

use core::ops::RangeInclusive;
use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::store::mark_of;
use super::{Causal, DotStore};
use crate::{CausalContext, Dot, DotRange, OriginId, Seen, VersionVector};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Addition {
    sum: i128,
    folded: Option<Folded>,
}

/// Several additions of one origin, the last of which gives the dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Folded {
    // The first sequence whose addition is in the sum: less than that of the dot.
    from: u64,
    mark: u64,
}

impl Addition {
    fn from(&self, dot: Dot) -> u64 {
        self.folded.map_or(dot.sequence, |folded| folded.from)
    }

    fn mark(&self, dot: Dot) -> u64 {
        self.folded.map_or_else(|| mark_of(dot), |folded| folded.mark)
    }

    /// The same with later additions of the origin, up to those of `dot`.
    fn then(&self, own: Dot, dot: Dot, later: &Self) -> Self {
        let mark = self.mark(own).wrapping_add(later.mark(dot));
        Self { sum: self.sum.wrapping_add(later.sum), folded: Some(Folded { from: self.from(own), mark }) }
    }
}

/// PN-counter that can be reset.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    additions: BTreeMap<Dot, Addition>,
    // Of all additions, in whatever order they came and went: they wrap, so none is lost on the way.
    sum: i128,
    mark: u64,
}

/// The dots of one origin with these sequences.
fn dots(origin: OriginId, sequences: RangeInclusive<u64>) -> RangeInclusive<Dot> {
    let (first, last) = sequences.into_inner();
    Dot { origin, sequence: first }..=Dot { origin, sequence: last }
}

impl From<BTreeMap<Dot, Addition>> for Counter {
    fn from(additions: BTreeMap<Dot, Addition>) -> Self {
        let sum = additions.values().fold(0_i128, |sum, addition| sum.wrapping_add(addition.sum));
        let mark = additions.iter().fold(0_u64, |mark, (dot, addition)| mark.wrapping_add(addition.mark(*dot)));
        Self { additions, sum, mark }
    }
}

/// The additions alone: the rest follows from them.
impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.additions.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let additions: BTreeMap<Dot, Addition> = BTreeMap::deserialize(deserializer)?;
        let is_run = |(dot, addition): (&Dot, &Addition)| {
            addition.folded.is_none_or(|folded| folded.from > 0 && folded.from < dot.sequence)
        };
        if !additions.iter().all(is_run) {
            return Err(D::Error::custom("additions are folded from an earlier one on"));
        }
        Ok(additions.into())
    }
}

impl Counter {
    /// What an entry takes when it is encoded, at most: dot, sum, first sequence and mark.
    pub(super) const ENTRY_BYTES_MAX: usize = 64;

    /// The delta that adds an amount, which may be negative.
    #[must_use]
    pub fn add(&self, dot: Dot, amount: i64) -> Causal<Self> {
        let addition = Addition { sum: amount.into(), folded: None };
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
            if !self.folds_at(origin, held.base()) {
                continue;
            }
            let stable = self.additions.extract_if(dots(origin, 0..=held.base()), |_, _| true);
            let folded = stable.reduce(|(own, folded), (dot, addition)| (dot, folded.then(own, dot, &addition)));
            self.additions.extend(folded);
        }
    }

    /// Whether [`fold`](Self::fold) would leave fewer entries.
    #[must_use]
    pub fn folds(&self, stable: &VersionVector) -> bool {
        stable.iter().any(|(origin, held)| self.folds_at(origin, held.base()))
    }

    fn folds_at(&self, origin: OriginId, last: u64) -> bool {
        self.additions.range(dots(origin, 0..=last)).nth(1).is_some()
    }

    /// Whether it has one entry per origin at most: nothing is left to fold.
    #[must_use]
    pub fn is_folded(&self) -> bool {
        self.additions.keys().zip(self.additions.keys().skip(1)).all(|(dot, next)| dot.origin != next.origin)
    }

    /// How many entries it takes: the additions since the last fold, and one per origin.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.additions.len()
    }

    fn put(&mut self, dot: Dot, addition: Addition) {
        if let Some(replaced) = self.additions.insert(dot, addition) {
            self.take_off(dot, &replaced);
        }
        self.sum = self.sum.wrapping_add(addition.sum);
        self.mark = self.mark.wrapping_add(addition.mark(dot));
    }

    /// An addition is not in it any more.
    fn take_off(&mut self, dot: Dot, addition: &Addition) {
        self.sum = self.sum.wrapping_sub(addition.sum);
        self.mark = self.mark.wrapping_sub(addition.mark(dot));
    }

    /// Drops what the other side has seen and does not have.
    fn drop_gone(&mut self, other: &Self, other_seen: &VersionVector) {
        for (origin, held) in other_seen.iter() {
            for run in held.runs() {
                let is_gone = |dot: &Dot, _: &mut Addition| !other.additions.contains_key(dot);
                let gone: Vec<(Dot, Addition)> = self.additions.extract_if(dots(origin, run), is_gone).collect();
                gone.iter().for_each(|(dot, addition)| self.take_off(*dot, addition));
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

    fn mark(&self) -> u64 {
        self.mark
    }

    // Of a folded entry all that is in it, for another replica may not have folded it. Everybody holds every dot of the run.
    fn collect_into(&self, context: &mut CausalContext) {
        for (dot, addition) in &self.additions {
            context.insert_run(DotRange { origin: dot.origin, first: addition.from(*dot), last: dot.sequence });
        }
    }

    // Only what the other side has, or has seen, is looked at.
    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        for (dot, theirs) in &other.additions {
            match self.additions.get(dot).copied() {
                // Of two that were folded differently, the one that holds more; its fold has taken the rest out already.
                Some(mine) if theirs.from(*dot) != mine.from(*dot) => {
                    self.put(*dot, if theirs.from(*dot) < mine.from(*dot) { *theirs } else { mine });
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
