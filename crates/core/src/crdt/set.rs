//! A set in which an addition survives the removals that have not seen it.

use serde::{Deserialize, Serialize};

use super::{Causal, DotMap, DotSet, DotStore};
use crate::{CausalContext, Dot, Seen};

/// Add-wins observed-remove set: each element lives as long as one of its additions has not been seen removed.
/// Source: Almeida, Shoker, Baquero 2018, section 7.3 (optimised observed-remove set, without tombstones).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "E: Ord + Deserialize<'de>"))]
pub struct AddWinsSet<E>(DotMap<E, DotSet>);

impl<E> Default for AddWinsSet<E> {
    fn default() -> Self {
        Self(DotMap::default())
    }
}

impl<E: Ord + Clone> AddWinsSet<E> {
    /// The delta that adds an element; its earlier additions are replaced by this one.
    #[must_use]
    pub fn add(&self, dot: Dot, element: E) -> Causal<Self> {
        let mut context = self.seen_of(&element);
        context.insert(dot);
        Causal { store: Self(DotMap::of(element, DotSet::of(dot))), context }
    }

    /// The delta that removes an element, as far as its additions are known here.
    #[must_use]
    pub fn remove(&self, dot: Dot, element: &E) -> Causal<Self> {
        let mut context = self.seen_of(element);
        context.insert(dot);
        Causal { store: Self::default(), context }
    }

    /// The delta that removes all elements known here.
    #[must_use]
    pub fn clear(&self, dot: Dot) -> Causal<Self> {
        let mut context = CausalContext::from_iter([dot]);
        self.collect_into(&mut context);
        Causal { store: Self::default(), context }
    }

    /// Whether the element is in the set.
    #[must_use]
    pub fn contains(&self, element: &E) -> bool {
        self.0.get(element).is_some()
    }

    /// The elements, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &E> {
        self.0.iter().map(|(element, _)| element)
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn seen_of(&self, element: &E) -> CausalContext {
        let mut context = CausalContext::new();
        if let Some(dots) = self.0.get(element) {
            dots.collect_into(&mut context);
        }
        context
    }
}

impl<E: Ord + Clone> DotStore for AddWinsSet<E> {
    fn is_bottom(&self) -> bool {
        self.0.is_bottom()
    }

    fn visit(&self, found: &mut dyn FnMut(Dot)) {
        self.0.visit(found);
    }

    fn join(&mut self, seen: Seen<'_>, other: &Self, other_seen: Seen<'_>) {
        self.0.join(seen, &other.0, other_seen);
    }
}
