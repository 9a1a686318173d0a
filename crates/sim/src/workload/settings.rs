//! How many clients there are and what they ask for: drawn from the seed.
//!
//! Invariant: equal settings and equal draws, equal requests.

use core::time::Duration;

use replikit_core::WriteLevel;

/// A kind of read level; what it needs beside is the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// Sees all that was acknowledged before.
    Linearizable,
    /// Sees what the client has seen.
    Session,
    /// Sees all up to so long ago.
    BoundedStale(Duration),
    /// Sees something.
    Local,
}

/// What the clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSettings {
    /// Clients, each with one operation at a time.
    pub clients: u32,
    /// Keys of each kind; few keys mean much contention.
    pub keys: u32,
    /// Share of writes, per mille. Of three clients one writes a fifth of that.
    pub writes_per_mille: u16,
    /// The first so many clients open a session and ask again under it.
    pub with_session: u32,
    /// Levels of writes, drawn for each. Acknowledgements below `Quorum` promise nothing to the history.
    pub levels: Vec<WriteLevel>,
    /// Levels of reads, drawn for each.
    pub reads: Vec<ReadKind>,
    /// Share of writes that are no put but a deletion, a compare-and-set or an addition, per mille; on keys of their own.
    pub other_ops_per_mille: u16,
    /// Share of requests that are sent twice, misrouted, garbage or for a snapshot, per mille.
    pub odd_per_mille: u16,
    /// Largest pause between two operations of a client.
    pub think_max: Duration,
    /// A client gives up on an operation after this, or asks again.
    pub timeout: Duration,
}

impl Default for WorkloadSettings {
    fn default() -> Self {
        Self {
            clients: 4,
            keys: 3,
            writes_per_mille: 500,
            with_session: 0,
            levels: vec![WriteLevel::Quorum],
            reads: vec![ReadKind::Linearizable],
            other_ops_per_mille: 0,
            odd_per_mille: 0,
            think_max: Duration::from_millis(10),
            timeout: Duration::from_millis(400),
        }
    }
}
