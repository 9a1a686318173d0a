//! Groups that the map places: a new placement is an epoch of the group, and the strategy does the rest, by quorums of the owners before
//! and behind, for one that has no leader. Nothing is sealed. In a multi-leader group those who come and those who go are members together
//! until the former have everything: two placements, the second of which the hosts ask for.

use replikit_core::{Epoch, GroupId, Membership};

/// Makes replicas of groups, and tells them who belongs to the group.
///
/// What it tells a replica never goes back, but over a restart of the process: a replica is to know by itself in which epochs it
/// counts. See [`EpochSource`](replikit_core::EpochSource), and Cassandra's TCM for placements as epochs.
pub trait Placing<R>: Send + core::fmt::Debug {
    /// These are the members from now on, for a replica that is here.
    fn announce(&mut self, group: GroupId, membership: Membership);

    /// A replica for a group of which nothing was ever here, with these members. This node is one of them, or was one by a placement in
    /// between.
    ///
    /// # Errors
    /// Why there can be none: the settings do not fit so many members, for example. The others do without this one.
    fn found(&mut self, group: GroupId, membership: Membership) -> Result<R, String>;

    /// Of a group whose members change in two steps: the epoch that the replica acts in, if those who stay have everything in it, so that
    /// the others can go.
    fn drained(&self, replica: &R) -> Option<Epoch> {
        let _ = replica;
        None
    }
}
