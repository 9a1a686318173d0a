//! Version vectors: which writes a replica holds, exactly.
//!
//! Invariant: a [`VersionVector`] represents a set of dots without loss: a gap-free base per origin and, above it, the runs
//! that came out of order. So "what are you missing" is an exact subtraction, and lag is a number. An origin of which nothing
//! is held is not in it; so equal sets are equal values. Source: Parker et al. 1983; gaps: Gonçalves et al., SRDS 2017.

use core::fmt;

use serde::de::{SeqAccess, Visitor};
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
    // Ascending by origin; few, and read far more often than changed.
    origins: Vec<(OriginId, SequenceSet)>,
}

impl VersionVector {
    /// How far above an origin's base a dot may lie for [`Self::add`], in sequences: at most 32,768 runs an origin.
    pub const GAP_MAX: u64 = 1 << 16;
    /// How many origins a vector may have for [`Self::add`] and on the wire.
    pub const ORIGINS_MAX: usize = 1 << 16;

    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { origins: Vec::new() }
    }

    /// A set without gaps: every dot up to some sequence of each origin. Origins ascend; one of which nothing is held is left out.
    #[must_use]
    pub fn up_to(bases: impl IntoIterator<Item = (OriginId, u64)>) -> Self {
        let bases = bases.into_iter();
        let mut origins = Vec::with_capacity(bases.size_hint().1.unwrap_or(0));
        origins.extend(bases.filter(|(_, base)| *base > 0).map(|(origin, base)| (origin, SequenceSet::up_to(base))));
        assert!(origins.is_sorted_by(|(a, _), (b, _)| a < b), "the origins of a vector ascend");
        Self { origins }
    }

    fn place(&self, origin: OriginId) -> Result<usize, usize> {
        self.origins.binary_search_by_key(&origin, |(origin, _)| *origin)
    }

    /// What is held of an origin, to add to it at once: nothing that is empty stays.
    fn entry(&mut self, origin: OriginId) -> &mut SequenceSet {
        let at = self.place(origin).unwrap_or_else(|at| {
            self.origins.insert(at, (origin, SequenceSet::new()));
            at
        });
        &mut self.origins[at].1
    }

    /// Adds a dot that a replica has received; returns whether it is new. A sequence of 0, one further than
    /// [`Self::GAP_MAX`] above the base, or one origin more than [`Self::ORIGINS_MAX`] is not added: who receives writes asks
    /// for the missing ones first.
    pub fn add(&mut self, dot: Dot) -> bool {
        if dot.sequence == 0 || dot.sequence > self.base(dot.origin).saturating_add(Self::GAP_MAX) {
            return false;
        }
        if self.origins.len() >= Self::ORIGINS_MAX && self.held(dot.origin).is_none() {
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
        self.entry(dot.origin).insert(dot.sequence)
    }

    /// Adds every sequence of a set; for a snapshot's content.
    pub fn insert_all(&mut self, origin: OriginId, held: &SequenceSet) {
        if held.is_empty() {
            return;
        }
        self.entry(origin).join(held);
    }

    /// Whether the dot is in the set.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.held(dot.origin).is_some_and(|held| held.contains(dot.sequence))
    }

    /// Every sequence of the origin up to and including this one is in the set.
    #[must_use]
    pub fn base(&self, origin: OriginId) -> u64 {
        self.held(origin).map_or(0, SequenceSet::base)
    }

    /// The largest sequence of the origin in the set; 0 if there is none.
    #[must_use]
    pub fn top(&self, origin: OriginId) -> u64 {
        self.held(origin).map_or(0, SequenceSet::top)
    }

    /// What is held of one origin; `None` if nothing is.
    #[must_use]
    pub fn held(&self, origin: OriginId) -> Option<&SequenceSet> {
        self.place(origin).ok().map(|at| &self.origins[at].1)
    }

    /// Whether every dot of the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut mine = self.origins.iter();
        other.origins.iter().all(|(origin, held)| {
            let mine = mine.find(|(mine, _)| mine >= origin);
            mine.is_some_and(|(same, mine)| same == origin && mine.covers(held))
        })
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
        self.origins.iter().flat_map(move |&(origin, ref held)| {
            held.difference(other.held(origin).unwrap_or(&NOTHING)).map(move |run| DotRange {
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
        for (origin, held) in self.iter() {
            let Some(covered) = other.held(origin) else {
                rest.origins.push((origin, held.clone()));
                continue;
            };
            let mut set = SequenceSet::new();
            for run in held.difference(covered) {
                set.insert_run(run);
            }
            if !set.is_empty() {
                rest.origins.push((origin, set));
            }
        }
        rest
    }

    /// Adds every dot of the other set: the union.
    pub fn join(&mut self, other: &Self) {
        let (mut at, mut new) = (0, Vec::new());
        for (origin, held) in &other.origins {
            at += self.origins[at..].iter().take_while(|(mine, _)| mine < origin).count();
            match self.origins.get_mut(at) {
                Some((mine, set)) if mine == origin => set.join(held),
                _ => new.push((*origin, held.clone())),
            }
        }
        if !new.is_empty() {
            // Two ascending runs: the sort merges them in one pass, however many origins a peer claims.
            self.origins.extend(new);
            self.origins.sort_by_key(|(origin, _)| *origin);
        }
    }

    /// What is in both sets: over the vectors of all members, what everybody holds.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let both = |(origin, held): (OriginId, &SequenceSet)| {
            let both = held.intersection(other.held(origin)?);
            (!both.is_empty()).then_some((origin, both))
        };
        Self { origins: self.iter().filter_map(both).collect() }
    }

    /// The gap-free part: what contexts are stripped of.
    #[must_use]
    pub fn bases(&self) -> Self {
        Self::up_to(self.iter().map(|(origin, held)| (origin, held.base())))
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
        if let Ok(at) = self.place(origin) {
            self.origins.remove(at);
        }
    }

    /// The origins of which anything is held, ascending.
    pub fn origins(&self) -> impl Iterator<Item = OriginId> + '_ {
        self.origins.iter().map(|(origin, _)| *origin)
    }

    /// What is held, by origin, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (OriginId, &SequenceSet)> {
        self.origins.iter().map(|(origin, held)| (*origin, held))
    }

    /// Whether no dot is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// How many dots are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.origins.iter().map(|(_, held)| held.len()).sum()
    }

    /// Whether no origin has a gap.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.origins.iter().all(|(_, held)| held.is_contiguous())
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::new();
        // Ascending, so that every origin is put at the end, however many there are.
        let mut dots: Vec<Dot> = dots.into_iter().collect();
        dots.sort_unstable();
        for dot in dots {
            vector.insert(dot);
        }
        vector
    }
}

impl Serialize for VersionVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.origins.iter().map(|(origin, held)| (split_id(*origin), held)))
    }
}

impl<'de> Deserialize<'de> for VersionVector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Entries)
    }
}

/// Takes the origins of a vector one by one.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = VersionVector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("origins, ascending, with what is held of each")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<VersionVector, A::Error> {
        // A peer may claim any number, and has to send each before more room is made.
        let mut origins = Vec::with_capacity(entries.size_hint().unwrap_or(0).min(16));
        while let Some(((slot, incarnation), held)) = entries.next_element::<((u32, u32), SequenceSet)>()? {
            let origin = join_id(slot, incarnation).ok_or_else(|| de::Error::custom("no such origin"))?;
            if origins.last().is_some_and(|(last, _)| *last >= origin) || held.is_empty() {
                return Err(de::Error::custom("origins that do not ascend, or an empty one"));
            }
            if origins.len() >= VersionVector::ORIGINS_MAX {
                return Err(de::Error::custom("too many origins"));
            }
            origins.push((origin, held));
        }
        Ok(VersionVector { origins })
    }
}
