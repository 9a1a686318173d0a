//! The partitioned store as running nodes: many single-leader groups in each node, one of which keeps the map; clients that know
//! where keys are, nodes and routers that know it for those who do not.
//!
//! | part | what it is |
//! |---|---|
//! | [`Layout`] | which groups there are, on which nodes, and the first map: what a store is founded with |
//! | [`StoreNode`] | one node: its replicas of all its groups, one log, one listener |
//! | `PlacedStoreNode` | the same of a store whose groups of data are leaderless or multi-leader (features `leaderless`, `multi-leader`) |
//! | [`StoreClient`] | a [`Store`](replikit_core::Store) that sends each request to the group that has the key, under a [`Route`](crate::Route) |
//! | [`Front`], [`Router`] | the same client inside a node or a process without data, for clients that know nothing of partitions |
//! | [`Keeper`] | cuts what is hot or large, joins what is cold |
//! | [`StoreCluster`] | n nodes in one process, for tests, examples and measuring |
//!
//! Groups that a request may name: [`META_GROUP`], the log of maps; [`STORE_GROUP`], the whole store, answered by any node and router, which
//! forwards; [`MAPS_GROUP`], the newest map that a node or router knows of, answered by any; from [`FIRST_GROUP`] on, the groups that hold
//! partitions.
//!
//! # What it guarantees
//!
//! What its single-leader groups guarantee, for each key: linearizable reads and writes, nothing lost that was acknowledged at
//! `Quorum`. Whether a request belongs to a group is decided where the group orders it, so a stale map, of a client or a node, costs
//! one more round trip and nothing else. A write has its client's number, so that a retry takes effect once, also when the partition
//! has been handed to another group in between.
//!
//! # What it does not do
//!
//! Levels that are acknowledged before a write is applied would acknowledge writes that are refused as they are applied:
//! `Memory`, `LeaderDisk`, and `Received` and `Durable` of at most a majority are carried out at `Quorum`, and those of more replicas
//! are refused. A page of a scan is not a snapshot: each partition is read at its own moment. There is no order
//! of all changes, hence no subscription.
//!
//! # Sources
//!
//! The three ways of routing: Kleppmann, *Designing Data-Intensive Applications*, chapter 6. Numbers of requests that go where the keys go:
//! RIFL (Lee et al., SOSP'15).

mod asking;
mod audit;
mod cache;
mod client;
mod cluster;
mod front;
mod groups;
mod identity;
mod keeper;
mod layout;
mod legs;
mod machine;
mod moves;
mod node;
#[cfg(any(feature = "leaderless", feature = "multi-leader"))]
mod placed;
mod scan;

use replikit_core::{GroupId, Guarantees, WriteLevel};

pub use client::{ChangeError, StoreClient, StoreClientConfig};
pub use cluster::StoreCluster;
pub use front::{Front, Router};
pub use keeper::{Keeper, KeeperConfig, Kept};
pub use layout::{Founding, Layout, LayoutError, PARTITIONS_FIRST_MAX};
pub use legs::LegCounts;
pub use machine::{Described, DescribedPartition, StoreMachine};
pub use moves::{HandOffError, Owned, PlaceError};
pub use node::StoreNode;
#[cfg(any(feature = "leaderless", feature = "multi-leader"))]
pub use placed::{PlacedSettings, PlacedStoreNode};
pub use scan::{Completeness, Gathered};

/// The group that keeps the map.
pub const META_GROUP: GroupId = GroupId(0);
/// The whole store, for clients that know nothing of partitions.
pub const STORE_GROUP: GroupId = replikit_runtime::DEFAULT_GROUP;
/// The first group that holds partitions.
pub const FIRST_GROUP: GroupId = GroupId(2);
/// The newest map that a node or router knows of.
pub const MAPS_GROUP: GroupId = GroupId(u32::MAX);

/// The strategy's name, as nodes tell it.
pub const STRATEGY: &str = "partitioned";

/// The name of that of leaderless groups.
pub const STRATEGY_LEADERLESS: &str = "partitioned-leaderless";

/// The name of that of multi-leader groups.
pub const STRATEGY_MULTI_LEADER: &str = "partitioned-multi-leader";

/// What a partitioned store of leaderless groups promises for writes at a level, with quorum reads.
#[cfg(feature = "leaderless")]
#[must_use]
pub fn guarantees_leaderless(level: WriteLevel) -> Guarantees {
    let of_groups = replikit_leaderless::guarantees(level);
    Guarantees {
        strategy: STRATEGY_LEADERLESS.to_owned(),
        needs: format!("{} of the key's group", of_groups.needs),
        checked_by: match level {
            WriteLevel::Quorum => names(&["placed_reads_are_current", "placed_keep_everything"]),
            // No partition moves where these are looked at: the groups are checked by themselves.
            _ => of_groups.checked_by,
        },
        ..of_groups
    }
}

/// The same where nothing more is known of such groups: the least.
#[cfg(not(feature = "leaderless"))]
#[must_use]
pub fn guarantees_leaderless(level: WriteLevel) -> Guarantees {
    least(STRATEGY_LEADERLESS, level)
}

/// What a partitioned store of multi-leader groups promises for writes at a level, with local reads.
#[cfg(feature = "multi-leader")]
#[must_use]
pub fn guarantees_multi_leader(level: WriteLevel) -> Guarantees {
    let of_groups = replikit_multi_leader::guarantees(level);
    Guarantees {
        strategy: STRATEGY_MULTI_LEADER.to_owned(),
        needs: format!("{}, of the key's group", of_groups.needs),
        checked_by: match level {
            WriteLevel::LeaderDisk | WriteLevel::Quorum => names(&["placed_leaders_keep_everything"]),
            // No partition moves where these are looked at: the groups are checked by themselves.
            _ => of_groups.checked_by,
        },
        ..of_groups
    }
}

/// The same where nothing more is known of such groups: the least.
#[cfg(not(feature = "multi-leader"))]
#[must_use]
pub fn guarantees_multi_leader(level: WriteLevel) -> Guarantees {
    least(STRATEGY_MULTI_LEADER, level)
}

#[cfg(not(all(feature = "leaderless", feature = "multi-leader")))]
fn least(strategy: &str, level: WriteLevel) -> Guarantees {
    Guarantees {
        strategy: strategy.to_owned(),
        mode: format!("{level:?}"),
        acknowledged: "as the settings of the groups define it".to_owned(),
        survives: replikit_core::Survival::Nothing,
        reads: replikit_core::ReadGuarantee::Stale,
        ordering: "each key by what its writers had seen".to_owned(),
        needs: "a replica of the key's group".to_owned(),
        checked_by: Vec::new(),
    }
}

/// What a partitioned store of single-leader groups promises for writes at a level, with linearizable reads.
#[must_use]
pub fn guarantees(level: WriteLevel) -> Guarantees {
    let of_groups = replikit_single_leader::guarantees(client::carried_out_at(level));
    Guarantees {
        strategy: STRATEGY.to_owned(),
        mode: format!("{level:?}"),
        ordering: "one order of the writes of each partition".to_owned(),
        needs: format!("{} of the key's group", of_groups.needs),
        checked_by: names(&["linearizable", "each_request_counts_once", "one_group_takes_writes"]),
        ..of_groups
    }
}

fn names(checks: &[&str]) -> Vec<String> {
    checks.iter().map(|&check| check.to_owned()).collect()
}
