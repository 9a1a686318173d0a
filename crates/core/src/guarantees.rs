//! What a strategy in a given mode promises, as a value: the bench prints it beside every number, the simulator checks
//! exactly that, and the documentation is generated from it.

use core::fmt;

use serde::{Deserialize, Serialize};

/// How reads relate to acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadGuarantee {
    /// Every read sees all writes acknowledged before it began. Source: Herlihy and Wing 1990.
    Linearizable,
    /// Every read has seen all writes acknowledged before it began, or what replaced them, and any of those under way: with
    /// several writers that is less than linearizable. Source: Lamport, "On interprocess communication", 1986.
    Regular,
    /// A session sees its own writes and never goes back. Source: Terry et al., PDIS'94.
    Session,
    /// Not older than a stated bound.
    BoundedStale,
    /// Any state that once was current.
    Stale,
}

/// What is left of an acknowledged write after faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survival {
    /// Nothing that is acknowledged is lost as long as a majority of disks survives.
    Minority,
    /// Acknowledged writes survive the loss of power everywhere, but not of the one disk that they are on.
    PowerLoss,
    /// The crash of one process may lose acknowledged writes; the loss is reported.
    Nothing,
}

/// One row of the guarantees table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantees {
    /// Strategy, as its crate is named.
    pub strategy: String,
    /// Mode within it, for example the write level.
    pub mode: String,
    /// What "acknowledged" means.
    pub acknowledged: String,
    /// What survives.
    pub survives: Survival,
    /// How reads relate to writes.
    pub reads: ReadGuarantee,
    /// Which order all replicas agree on.
    pub ordering: String,
    /// What must be reachable for a write to be acknowledged.
    pub needs: String,
    /// Names of the checks that fail when the promise is broken.
    pub checked_by: Vec<String>,
}

impl fmt::Display for ReadGuarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::Regular => "regular",
            Self::Session => "session",
            Self::BoundedStale => "bounded staleness",
            Self::Stale => "stale",
        })
    }
}

impl fmt::Display for Survival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minority => "any minority of disks",
            Self::PowerLoss => "power loss, not its disk",
            Self::Nothing => "no crash",
        })
    }
}
