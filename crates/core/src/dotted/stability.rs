//! Causal stability: which writes everybody has, for ever.
//!
//! Invariant: a write is stable once every member of the epoch has applied it and has it on disk, and everything that any
//! member held by then has been applied here. So no write is on its way that was made without having seen it, and what
//! only decides between it and such writes may be collected. No clock is asked. Source: Baquero, Almeida, Shoker 2014.

use crate::VersionVector;

/// What a member says that it has: three sets of writes, of which usually all are the same.
#[derive(Clone, Copy, Debug)]
pub struct Holding<'a> {
    /// What its log has, perhaps in memory only.
    pub held: &'a VersionVector,
    /// What of it has been applied.
    pub applied: &'a VersionVector,
    /// What of it is on its disk.
    pub durable: &'a VersionVector,
}

/// Finds out what every member has.
#[derive(Debug, Default)]
pub struct Stability {
    /// Applied by every member, durably, and nothing is on its way that was made without having seen it.
    stable: VersionVector,
    /// The next such set, as soon as the second has been applied here: everything that any member held.
    next: Option<(VersionVector, VersionVector)>,
}

impl Stability {
    /// What is stable.
    #[must_use]
    pub const fn stable(&self) -> &VersionVector {
        &self.stable
    }

    /// A member has begun a new life, and may hold less than it said: what is not known to be stable yet is found out anew.
    pub fn begin_anew(&mut self) {
        self.next = None;
    }

    /// Other members are asked from now on: nothing is known of them.
    pub fn begin_epoch(&mut self) {
        *self = Self::default();
    }

    /// Looks at what this replica and each other member has; of a member that has not told yet in this epoch there is `None`.
    /// Returns whether more is stable.
    pub fn advance<'a>(&mut self, mine: Holding<'_>, others: impl Iterator<Item = Option<Holding<'a>>>) -> bool {
        let mut grown = false;
        if let Some((stable, seen)) = self.next.take() {
            if mine.applied.covers(&seen) {
                grown = !self.stable.covers(&stable);
                self.stable = stable;
            } else {
                self.next = Some((stable, seen));
            }
        }
        // What is stable has been applied here: when that is all, there is no more.
        if self.next.is_none() && !self.stable.covers(mine.applied) {
            let mut stable = mine.applied.meet(mine.durable);
            let mut seen = VersionVector::new();
            for member in others {
                let Some(Holding { held, applied, durable }) = member else { return grown };
                stable = stable.meet(applied).meet(durable);
                // Of an origin whose node is no member, what is held anywhere may not have been applied anywhere.
                seen.join(held);
            }
            if !self.stable.covers(&stable) {
                self.next = Some((stable, seen));
            }
        }
        grown
    }
}
