//! A flag in which enabling survives the disablings that have not seen it.

use serde::{Deserialize, Serialize};

use super::{Causal, DotSet, DotStore};
use crate::{CausalContext, Dot, Seen};

/// Enable-wins flag: on as long as one enabling has not been seen disabled. Off at first.
/// Source: Almeida, Shoker, Baquero 2018, section 7.4.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnableWinsFlag(DotSet);

impl EnableWinsFlag {
    /// The delta that switches the flag on.
    #[must_use]
    pub fn enable(&self, dot: Dot) -> Causal<Self> {
        Causal { store: Self(DotSet::of(dot)), context: self.seen(dot) }
    }

    /// The delta that switches the flag off, as far as its enablings are known here.
    #[must_use]
    pub fn disable(&self, dot: Dot) -> Causal<Self> {
        Causal { store: Self::default(), context: self.seen(dot) }
    }

    /// Whether the flag is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.0.is_bottom()
    }

    fn seen(&self, dot: Dot) -> CausalContext {
        let mut context = CausalContext::from_iter([dot]);
        self.0.collect_into(&mut context);
        context
    }
}

impl DotStore for EnableWinsFlag {
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
