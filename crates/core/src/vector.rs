//! Version vectors: which writes a replica holds, exactly.
//!
//! Invariant: a [`VersionVector`] represents a set of dots without loss: a gap-free base per origin and, above it, the runs
//! that came out of order. So "what are you missing" is an exact subtraction, and lag is a number. An origin of which nothing
//! is held is not in it; so equal sets are equal values. Source: Parker et al. 1983; gaps: Gonçalves et al., SRDS 2017.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::origin::{join_id, split_id};
use crate::{Dot, DotRange, OriginId, SequenceSet};

/// A set of dots, stored as a base per origin and the runs that came out of order.
///
/// Encoded by postcard it takes at most 15 bytes an origin without gaps (4 to 9 for small nodes and less than 2^42 writes),
/// and at least two bytes a run, so that what a hostile peer can make a decoder allocate is at most 32 times what it sent,
/// and refused above [`VersionVector::ORIGINS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct VersionVector {
    origins: BTreeMap<OriginId, SequenceSet>,
}

impl VersionVector {
    /// How far above an origin's base a dot may lie for [`Self::add`], in sequences: at most 32,768 runs an origin.
    pub const GAP_MAX: u64 = 1 << 16;
    /// How many origins a vector may have for [`Self::add`] and on the wire.
    pub const ORIGINS_MAX: usize = 1 << 16;

    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { origins: BTreeMap::new() }
    }

    /// Adds a dot that a replica has received; returns whether it is new. A sequence of 0, one further than
    /// [`Self::GAP_MAX`] above the base, or one origin more than [`Self::ORIGINS_MAX`] is not added: who receives writes asks
    /// for the missing ones first.
    pub fn add(&mut self, dot: Dot) -> bool {
        if dot.sequence == 0 || dot.sequence > self.base(dot.origin).saturating_add(Self::GAP_MAX) {
            return false;
        }
        if self.origins.len() >= Self::ORIGINS_MAX && !self.origins.contains_key(&dot.origin) {
            return false;
        }
        self.insert(dot)
    }

    /// Adds a dot however far it lies above the base; returns whether it is new. For what has been read from the own disk
    /// and for contexts, which are sparse. A sequence of 0 or above [`Dot::SEQUENCE_MAX`] is not added.
    pub fn insert(&mut self, dot: Dot) -> bool {
        if dot.sequence == 0 || dot.sequence > Dot::SEQUENCE_MAX {
            return false;
        }
        self.origins.entry(dot.origin).or_default().insert(dot.sequence)
    }

    /// Adds every sequence of a set; for a snapshot's content.
    pub fn insert_all(&mut self, origin: OriginId, held: &SequenceSet) {
        if held.is_empty() {
            return;
        }
        let mine = self.origins.entry(origin).or_default();
        if !mine.covers(held) {
            *mine = mine.union(held);
        }
    }

    /// Whether the dot is in the set.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.origins.get(&dot.origin).is_some_and(|held| held.contains(dot.sequence))
    }

    /// Every sequence of the origin up to and including this one is in the set.
    #[must_use]
    pub fn base(&self, origin: OriginId) -> u64 {
        self.origins.get(&origin).map_or(0, SequenceSet::base)
    }

    /// The largest sequence of the origin in the set; 0 if there is none.
    #[must_use]
    pub fn top(&self, origin: OriginId) -> u64 {
        self.origins.get(&origin).map_or(0, SequenceSet::top)
    }

    /// What is held of one origin; `None` if nothing is.
    #[must_use]
    pub fn held(&self, origin: OriginId) -> Option<&SequenceSet> {
        self.origins.get(&origin)
    }

    /// Whether every dot of the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.origins.iter().all(|(origin, held)| self.origins.get(origin).is_some_and(|mine| mine.covers(held)))
    }

    /// How many dots of the other set are missing here: the lag, in writes.
    #[must_use]
    pub fn lags(&self, other: &Self) -> u64 {
        other.ranges_beyond(self).map(|range| range.last - range.first + 1).sum()
    }

    /// The dots of this set that the other lacks, ascending: exactly what to send.
    pub fn minus<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Dot> + 'a {
        self.ranges_beyond(other)
            .flat_map(|range| range.sequences().map(move |sequence| Dot { origin: range.origin, sequence }))
    }

    /// The dots of this set that the other lacks, as ranges, ascending. The work is in runs, not in dots.
    pub fn ranges_beyond<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = DotRange> + 'a {
        static NOTHING: SequenceSet = SequenceSet::new();
        self.origins.iter().flat_map(move |(&origin, held)| {
            held.difference(other.origins.get(&origin).unwrap_or(&NOTHING)).map(move |run| DotRange {
                origin,
                first: *run.start(),
                last: *run.end(),
            })
        })
    }

    /// The part of this set that the other lacks, as a set.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        for (&origin, held) in &self.origins {
            let Some(covered) = other.origins.get(&origin) else {
                rest.origins.insert(origin, held.clone());
                continue;
            };
            let mut set = SequenceSet::new();
            for run in held.difference(covered) {
                set.insert_run(run);
            }
            if !set.is_empty() {
                rest.origins.insert(origin, set);
            }
        }
        rest
    }

    /// Adds every dot of the other set: the union.
    pub fn join(&mut self, other: &Self) {
        for (&origin, held) in &other.origins {
            self.insert_all(origin, held);
        }
    }

    /// What is in both sets: over the vectors of all members, what everybody holds.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let both = |(&origin, held): (&OriginId, &SequenceSet)| {
            let both = held.intersection(other.origins.get(&origin)?);
            (!both.is_empty()).then_some((origin, both))
        };
        Self { origins: self.origins.iter().filter_map(both).collect() }
    }

    /// The gap-free part: what contexts are stripped of.
    #[must_use]
    pub fn bases(&self) -> Self {
        let base = |(&origin, held): (&OriginId, &SequenceSet)| {
            (held.base() > 0).then(|| (origin, SequenceSet::up_to(held.base())))
        };
        Self { origins: self.origins.iter().filter_map(base).collect() }
    }

    /// An origin was closed with these writes: what it lacks below its top counts as held from now on, so that the hole
    /// blocks nothing. What this replica still has to fetch stays missing. See [`OriginClosed`](crate::OriginClosed).
    pub fn close(&mut self, origin: OriginId, held: &SequenceSet) {
        let mut void = SequenceSet::new();
        for run in SequenceSet::up_to(held.top()).difference(held) {
            void.insert_run(run);
        }
        self.insert_all(origin, &void);
    }

    /// Forgets an origin that is closed and that every member holds all of. Its dots are answered by
    /// [`OriginTable::admits`](crate::OriginTable::admits) from now on.
    ///
    /// Only once no key has a live version with one of its dots any more, here or in a copy on its way: of such a dot the
    /// vector could no longer say that it has been seen, and a version that was overwritten would come back. Until then a
    /// closed origin stays, at a few bytes.
    pub fn retire(&mut self, origin: OriginId) {
        self.origins.remove(&origin);
    }

    /// The origins of which anything is held, ascending.
    pub fn origins(&self) -> impl Iterator<Item = OriginId> + '_ {
        self.origins.keys().copied()
    }

    /// What is held, by origin, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (OriginId, &SequenceSet)> {
        self.origins.iter().map(|(&origin, held)| (origin, held))
    }

    /// Whether no dot is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// How many dots are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.origins.values().map(SequenceSet::len).sum()
    }

    /// Whether no origin has a gap.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.origins.values().all(SequenceSet::is_contiguous)
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::new();
        for dot in dots {
            vector.insert(dot);
        }
        vector
    }
}

impl Serialize for VersionVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.origins.iter().map(|(&origin, held)| (split_id(origin), held)))
    }
}

impl<'de> Deserialize<'de> for VersionVector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::<((u32, u32), SequenceSet)>::deserialize(deserializer)?;
        if entries.len() > Self::ORIGINS_MAX {
            return Err(de::Error::custom("too many origins"));
        }
        let mut origins = BTreeMap::new();
        let mut last = None;
        for ((slot, incarnation), held) in entries {
            let origin = join_id(slot, incarnation).ok_or_else(|| de::Error::custom("no such origin"))?;
            if last.is_some_and(|last| last >= origin) || held.is_empty() {
                return Err(de::Error::custom("origins that do not ascend, or an empty one"));
            }
            last = Some(origin);
            origins.insert(origin, held);
        }
        Ok(Self { origins })
    }
}
