//! Registers: one value, written as a whole.
//!
//! Invariant: a write replaces exactly the values that its writer had seen. Both registers keep concurrent values until a
//! write that has seen them; they differ in what they show. (A register that drops the loser of two concurrent writes at
//! once is not associative when a reset has seen only the winner.)

use serde::{Deserialize, Serialize};

use super::{Causal, DotFun, DotStore};
use crate::{CausalContext, Dot, HybridTimestamp, Seen, Stamp};

/// Shows all values that nobody has overwritten. Source: Almeida, Shoker, Baquero 2018, section 7.2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MvRegister<V>(DotFun<V>);

impl<V> Default for MvRegister<V> {
    fn default() -> Self {
        Self(DotFun::default())
    }
}

impl<V: Clone> MvRegister<V> {
    /// The delta that replaces all values known here.
    #[must_use]
    pub fn write(&self, dot: Dot, value: V) -> Causal<Self> {
        Causal { store: Self(DotFun::of(dot, value)), context: seen(&self.0, dot) }
    }

    /// The delta that removes all values known here.
    #[must_use]
    pub fn clear(&self, dot: Dot) -> Causal<Self> {
        Causal { store: Self::default(), context: seen(&self.0, dot) }
    }

    /// The concurrent values, ascending by dot; none when it was never written or is cleared.
    pub fn values(&self) -> impl Iterator<Item = (Dot, &V)> {
        self.0.iter()
    }
}

impl<V: Clone> DotStore for MvRegister<V> {
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

/// Shows the value with the newest [`Stamp`] among those that nobody has overwritten: by time, ties by node. A write always
/// replaces what its writer had seen, whatever the clocks say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LwwRegister<V>(DotFun<(HybridTimestamp, V)>);

impl<V> Default for LwwRegister<V> {
    fn default() -> Self {
        Self(DotFun::default())
    }
}

impl<V: Clone> LwwRegister<V> {
    /// The delta that replaces all values known here.
    #[must_use]
    pub fn write(&self, stamp: Stamp, value: V) -> Causal<Self> {
        Causal { store: Self(DotFun::of(stamp.dot, (stamp.time, value))), context: seen(&self.0, stamp.dot) }
    }

    /// The delta that removes all values known here.
    #[must_use]
    pub fn clear(&self, dot: Dot) -> Causal<Self> {
        Causal { store: Self::default(), context: seen(&self.0, dot) }
    }

    /// The value; `None` when it was never written or is cleared.
    #[must_use]
    pub fn value(&self) -> Option<&V> {
        self.newest().map(|(_, value)| value)
    }

    /// The value and its stamp.
    #[must_use]
    pub fn newest(&self) -> Option<(Stamp, &V)> {
        self.candidates().max_by_key(|(stamp, _)| *stamp)
    }

    /// The values that lost to the newest one and that nobody has overwritten yet, ascending by dot: for the audit log.
    pub fn losers(&self) -> impl Iterator<Item = (Stamp, &V)> {
        let winner = self.newest().map(|(stamp, _)| stamp);
        self.candidates().filter(move |(stamp, _)| Some(*stamp) != winner)
    }

    fn candidates(&self) -> impl Iterator<Item = (Stamp, &V)> {
        self.0.iter().map(|(dot, (time, value))| (Stamp { time: *time, dot }, value))
    }
}

impl<V: Clone> DotStore for LwwRegister<V> {
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

fn seen<V: Clone>(values: &DotFun<V>, dot: Dot) -> CausalContext {
    let mut context = CausalContext::from_iter([dot]);
    values.collect_into(&mut context);
    context
}
