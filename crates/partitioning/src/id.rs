//! Identities and versions of partitions.
//!
//! Invariant: a [`PartitionId`] is never given twice in the life of a map; each of the versions only grows. Source of the
//! three versions: TiKV's `{version, conf_ver}` and MongoDB's `<epoch, timestamp, major, minor>`.

use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! integer_newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

integer_newtype!(
    /// One partition. Never given again, also not after a merge has ended it.
    PartitionId(u64), "p"
);
integer_newtype!(
    /// Which life of the partition this is: the epoch of the map at which it was made or restored from a copy. It keeps a route
    /// that was learnt before a restore from being taken for a current one.
    Birth(u64), "b"
);
integer_newtype!(
    /// How often the bounds or the group of a partition have changed; from 1. A request routed under another one is refused.
    BoundsVersion(u32), "v"
);
integer_newtype!(
    /// How often the replica set of a partition's group has changed; from 1.
    PlacementVersion(u32), "c"
);
integer_newtype!(
    /// A failure domain: nodes that fail together (a rack, a zone).
    DomainId(u32), "d"
);
integer_newtype!(
    /// One handoff: the epoch of the map at which it was planned.
    HandoffId(u64), "h"
);

impl BoundsVersion {
    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl PlacementVersion {
    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
