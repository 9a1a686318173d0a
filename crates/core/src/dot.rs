//! Dots and version vectors: which writes a replica holds, exactly.
//!
//! Invariant: a [`VersionVector`] represents a set of dots without loss: a gap-free base per origin and, above it, the dots
//! that came out of order. So "what are you missing" is an exact subtraction. Source: Parker et al. 1983; dotted version
//! vectors: Preguiça et al. 2010; the gap bitmap: Gonçalves et al. 2017 (DottedDB).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::OriginId;

/// One write, for ever unique: the n-th write of one origin, which is an incarnation of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote.
    pub origin: OriginId,
    /// Its n-th write, from 1, without gaps.
    pub sequence: u64,
}

/// What is held of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Held {
    // Every sequence up to and including this one is held.
    base: u64,
    // Bit i of word w stands for sequence base + 2 + 64 w + i: base + 1 is missing by definition. The last word is not 0.
    above: Vec<u64>,
}

impl Held {
    fn contains(&self, sequence: u64) -> bool {
        if sequence <= self.base {
            return sequence > 0;
        }
        let Some(bit) = sequence.checked_sub(self.base + 2) else { return false };
        self.above.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn add(&mut self, sequence: u64) -> bool {
        if sequence <= self.base || self.contains(sequence) {
            return false;
        }
        if sequence == self.base + 1 {
            self.base += 1;
            while self.shift() {
                self.base += 1;
            }
            return true;
        }
        let bit = sequence - self.base - 2;
        let word = (bit / 64) as usize;
        if self.above.len() <= word {
            self.above.resize(word + 1, 0);
        }
        self.above[word] |= 1 << (bit % 64);
        true
    }

    /// Moves the bitmap down by one, for a base that has just grown by one; returns whether the next sequence is held.
    fn shift(&mut self) -> bool {
        let mut carry = 0;
        for word in self.above.iter_mut().rev() {
            let low = *word & 1;
            *word = *word >> 1 | carry << 63;
            carry = low;
        }
        while self.above.last() == Some(&0) {
            self.above.pop();
        }
        carry == 1
    }

    fn top(&self) -> u64 {
        match self.above.last() {
            None => self.base,
            Some(word) => self.base + 2 + 64 * (self.above.len() as u64 - 1) + u64::from(63 - word.leading_zeros()),
        }
    }
}

/// A set of dots, stored as a base per origin and a bitmap of what came out of order.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VersionVector {
    origins: BTreeMap<OriginId, Held>,
}

impl VersionVector {
    /// How far above an origin's base a dot may lie, in sequences: the bitmap stays below 8 KiB an origin.
    pub const GAP_MAX: u64 = 1 << 16;

    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { origins: BTreeMap::new() }
    }

    /// Adds a dot; returns whether it is new. A sequence of 0, or one further than [`Self::GAP_MAX`] above the base, is not
    /// added: who receives writes asks for the missing ones first.
    pub fn add(&mut self, dot: Dot) -> bool {
        if dot.sequence == 0 || dot.sequence > self.base(dot.origin).saturating_add(Self::GAP_MAX) {
            return false;
        }
        self.origins.entry(dot.origin).or_default().add(dot.sequence)
    }

    /// Whether the dot is in the set.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.origins.get(&dot.origin).is_some_and(|held| held.contains(dot.sequence))
    }

    /// Every sequence of the origin up to and including this one is in the set.
    #[must_use]
    pub fn base(&self, origin: OriginId) -> u64 {
        self.origins.get(&origin).map_or(0, |held| held.base)
    }

    /// The largest sequence of the origin in the set; 0 if there is none.
    #[must_use]
    pub fn top(&self, origin: OriginId) -> u64 {
        self.origins.get(&origin).map_or(0, Held::top)
    }

    /// Whether every dot of the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.origins.iter().all(|(&origin, held)| {
            self.base(origin) >= held.base
                && (held.base + 1..=held.top())
                    .all(|sequence| !held.contains(sequence) || self.contains(Dot { origin, sequence }))
        })
    }

    /// The dots of this set that the other lacks, ascending: exactly what to send.
    pub fn minus<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Dot> + 'a {
        self.origins.iter().flat_map(move |(&origin, held)| {
            (other.base(origin) + 1..=held.top())
                .map(move |sequence| Dot { origin, sequence })
                .filter(move |dot| held.contains(dot.sequence) && !other.contains(*dot))
        })
    }

    /// The origins of which anything is held, ascending.
    pub fn origins(&self) -> impl Iterator<Item = OriginId> + '_ {
        self.origins.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn dot() -> impl Strategy<Value = Dot> {
        (0..3_u32, 1..200_u64).prop_map(|(origin, sequence)| Dot { origin: OriginId(origin), sequence })
    }

    fn both(dots: &[Dot]) -> (VersionVector, BTreeSet<Dot>) {
        let (mut vector, mut set) = (VersionVector::new(), BTreeSet::new());
        for &dot in dots {
            assert_eq!(vector.add(dot), set.insert(dot), "{dot:?} was reported wrongly as new or known");
        }
        (vector, set)
    }

    proptest! {
        #[test]
        fn a_version_vector_is_exactly_a_set_of_dots(
            left in proptest::collection::vec(dot(), 0..250),
            right in proptest::collection::vec(dot(), 0..250),
        ) {
            let (a, a_set) = both(&left);
            let (b, b_set) = both(&right);
            for origin in (0..3).map(OriginId) {
                for sequence in 0..202 {
                    let dot = Dot { origin, sequence };
                    prop_assert_eq!(a.contains(dot), a_set.contains(&dot));
                }
                let top = a_set.iter().filter(|dot| dot.origin == origin).map(|dot| dot.sequence).max().unwrap_or(0);
                prop_assert_eq!(a.top(origin), top);
            }
            let missing: BTreeSet<Dot> = a.minus(&b).collect();
            prop_assert_eq!(&missing, &a_set.difference(&b_set).copied().collect());
            prop_assert_eq!(a.covers(&b), b_set.is_subset(&a_set));
        }
    }

    #[test]
    fn a_dot_far_above_the_base_is_not_added() {
        let mut vector = VersionVector::new();
        let dot = |sequence| Dot { origin: OriginId(1), sequence };
        assert!(!vector.add(dot(VersionVector::GAP_MAX + 1)));
        assert!(!vector.add(dot(u64::MAX)));
        assert!(vector.add(dot(VersionVector::GAP_MAX)));
    }
}
