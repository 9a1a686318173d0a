//! Causal stability: which writes everybody has, for ever.
//!
//! Invariant: a write is stable once every member of the epoch has applied it and has it on disk, and everything that any
//! member had applied by then has been applied here. So no write is on its way that was made without having seen it, and what
//! only decides between it and such writes may be collected. No clock is asked. Source: Baquero, Almeida, Shoker 2014.

use crate::VersionVector;

/// Finds out what every member has.
#[derive(Debug, Default)]
pub struct Stability {
    /// Applied by every member, durably, and nothing is on its way that was made without having seen it.
    stable: VersionVector,
    /// The next such set, as soon as the second has been applied here: everything that any member had applied.
    next: Option<(VersionVector, VersionVector)>,
}

impl Stability {
    /// What is stable.
    #[must_use]
    pub const fn stable(&self) -> &VersionVector {
        &self.stable
    }

    /// A member may hold less than it said: what is not known to be stable yet is found out anew.
    pub fn begin_anew(&mut self) {
        self.next = None;
    }

    /// Looks at what this replica and each other member has applied, and has on disk, in this order; of a member that has not
    /// told yet in this epoch there is `None`. Returns whether more is stable.
    pub fn advance<'a>(
        &mut self,
        mine: (&VersionVector, &VersionVector),
        others: impl Iterator<Item = Option<(&'a VersionVector, &'a VersionVector)>>,
    ) -> bool {
        let (applied, durable) = mine;
        let mut grown = false;
        if let Some((stable, seen)) = self.next.take() {
            if applied.covers(&seen) {
                grown = !self.stable.covers(&stable);
                self.stable = stable;
            } else {
                self.next = Some((stable, seen));
            }
        }
        if self.next.is_none() {
            let mut stable = applied.meet(durable);
            let mut seen = VersionVector::new();
            for member in others {
                let Some((applied, durable)) = member else { return grown };
                stable = stable.meet(applied).meet(durable);
                seen.join(applied);
            }
            if !self.stable.covers(&stable) {
                self.next = Some((stable, seen));
            }
        }
        grown
    }
}
