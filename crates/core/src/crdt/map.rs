//! A map of mergeable values, nested as deep as one likes.
//!
//! A field is found by its [`Path`]: the names of the maps around it and its own. Invariant: a map exists as long as a field
//! below it does, so nesting needs no recursion (and a hostile value cannot be nested deeper than a stack). Fields of
//! different types under one path stand beside each other, so that replicas that create them concurrently still converge.
//! Source: the observed-remove map of Almeida, Shoker, Baquero 2018, section 7.5; fields by name and type: Riak.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::store::gone;
use super::{AddWinsSet, Causal, Counter, DotMap, DotStore, EnableWinsFlag, LwwRegister, MvRegister};
use crate::{CausalContext, Dot, Seen, VersionVector};

/// Where a field stands: names from the outside in, at least one.
pub type Path = Vec<Bytes>;

/// Fields of five types, by path.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Map {
    counters: DotMap<Path, Counter>,
    newest: DotMap<Path, LwwRegister<Bytes>>,
    concurrent: DotMap<Path, MvRegister<Bytes>>,
    sets: DotMap<Path, AddWinsSet<Bytes>>,
    flags: DotMap<Path, EnableWinsFlag>,
}

mod sealed {
    pub trait Sealed {}
}

/// A type that a field of a [`Map`] can have.
pub trait Field: DotStore + sealed::Sealed {
    /// The map's fields of this type.
    fn fields(map: &Map) -> &DotMap<Path, Self>;
    /// A map with these fields only.
    fn only(fields: DotMap<Path, Self>) -> Map;
}

macro_rules! field {
    ($type:ty, $fields:ident) => {
        impl sealed::Sealed for $type {}

        impl Field for $type {
            fn fields(map: &Map) -> &DotMap<Path, Self> {
                &map.$fields
            }

            fn only($fields: DotMap<Path, Self>) -> Map {
                Map { $fields, ..Map::default() }
            }
        }
    };
}

field!(Counter, counters);
field!(LwwRegister<Bytes>, newest);
field!(MvRegister<Bytes>, concurrent);
field!(AddWinsSet<Bytes>, sets);
field!(EnableWinsFlag, flags);

impl Map {
    /// The field of this type at a path, if it is present.
    #[must_use]
    pub fn get<F: Field>(&self, path: &Path) -> Option<&F> {
        F::fields(self).get(path)
    }

    /// The delta that changes one field: `change` gets the field as it is, empty when absent, and returns the field's delta.
    #[must_use]
    pub fn update<F: Field>(&self, path: Path, change: impl FnOnce(&F) -> Causal<F>) -> Causal<Self> {
        let Causal { store, context } = match self.get(&path) {
            Some(field) => change(field),
            None => change(&F::default()),
        };
        let fields = if store.is_bottom() { DotMap::default() } else { DotMap::of(path, store) };
        Causal { store: F::only(fields), context }
    }

    /// The delta that removes everything at and below a path, of all types, as far as it is known here. What is written there
    /// concurrently survives, without what was there before.
    #[must_use]
    pub fn remove(&self, dot: Dot, path: &Path) -> Causal<Self> {
        let mut context = CausalContext::from_iter([dot]);
        self.collect_below::<Counter>(path, &mut context);
        self.collect_below::<LwwRegister<Bytes>>(path, &mut context);
        self.collect_below::<MvRegister<Bytes>>(path, &mut context);
        self.collect_below::<AddWinsSet<Bytes>>(path, &mut context);
        self.collect_below::<EnableWinsFlag>(path, &mut context);
        Causal { store: Self::default(), context }
    }

    /// Folds every counter: see [`Counter::fold`].
    pub fn fold(&mut self, stable: &VersionVector) {
        self.counters.stores_mut().for_each(|counter| counter.fold(stable));
    }

    /// Whether a counter would be smaller by [`fold`](Self::fold).
    #[must_use]
    pub fn folds(&self, stable: &VersionVector) -> bool {
        self.counters.iter().any(|(_, counter)| counter.folds(stable))
    }

    /// Whether no counter has anything left to fold.
    #[must_use]
    pub fn is_folded(&self) -> bool {
        self.counters.iter().all(|(_, counter)| counter.is_folded())
    }

    /// The fields of one type at and below a path, ascending; an empty path means all.
    pub fn below<'a, F: Field + 'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a Path, &'a F)> {
        F::fields(self).iter_from(path).take_while(move |(found, _)| found.starts_with(path))
    }

    /// How many fields there are, of all types.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counters.len() + self.newest.len() + self.concurrent.len() + self.sets.len() + self.flags.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn collect_below<F: Field>(&self, path: &Path, context: &mut CausalContext) {
        self.below::<F>(path).for_each(|(_, field)| field.collect_into(context));
    }
}

impl DotStore for Map {
    fn is_bottom(&self) -> bool {
        self.is_empty()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.counters.visit(found);
        self.newest.visit(found);
        self.concurrent.visit(found);
        self.sets.visit(found);
        self.flags.visit(found);
    }

    fn mark(&self) -> u64 {
        let marks =
            [self.counters.mark(), self.newest.mark(), self.concurrent.mark(), self.sets.mark(), self.flags.mark()];
        marks.into_iter().fold(0, u64::wrapping_add)
    }

    fn collect_into(&self, context: &mut CausalContext) {
        self.counters.collect_into(context);
        self.newest.collect_into(context);
        self.concurrent.collect_into(context);
        self.sets.collect_into(context);
        self.flags.collect_into(context);
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        let mut left = gone(other, other_seen);
        self.counters.join_present(seen, &other.counters, other_seen, &mut left);
        self.newest.join_present(seen, &other.newest, other_seen, &mut left);
        self.concurrent.join_present(seen, &other.concurrent, other_seen, &mut left);
        self.sets.join_present(seen, &other.sets, other_seen, &mut left);
        self.flags.join_present(seen, &other.flags, other_seen, &mut left);
        if left > 0 {
            self.counters.join_absent(seen, &other.counters, other_seen);
            self.newest.join_absent(seen, &other.newest, other_seen);
            self.concurrent.join_absent(seen, &other.concurrent, other_seen);
            self.sets.join_absent(seen, &other.sets, other_seen);
            self.flags.join_absent(seen, &other.flags, other_seen);
        }
    }
}
