//! Whether a request may be carried out under the route that it came with. To be asked where the write is ordered - when it is
//! applied, or within what also appends it - and not when it arrives: between the two the map may change (research section 4.1).

use replikit_core::Epoch;
use serde::{Deserialize, Serialize};

use super::{Partition, PartitionMap, Route};
use crate::partitioner::Partitioner;
use crate::span::Span;

/// Most entries in one [`StaleRoute`]; a scan that meets more learns the rest as it goes on.
pub const STALE_ENTRIES_MAX: usize = 64;

/// A route that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// In every version.
    Exact,
    /// But the group has other replicas by now. Where a log orders writes, that is as good; where the client's own choice of
    /// replicas makes the quorum, it is not.
    PlacedAnew,
}

/// A route that was learnt from an older map, with what mends it: one more round trip, no question to anybody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the route is stale: at epoch {epoch} its keys belong to {} partitions as given", .current.len())]
pub struct StaleRoute {
    /// The map that `current` is from.
    pub epoch: Epoch,
    /// The partitions of the request's keys, at most [`STALE_ENTRIES_MAX`].
    pub current: Vec<Partition>,
}

/// Why a request is not carried out here under its route. Nothing has been done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misrouted {
    /// The sender's map is older: it has the answer in hand.
    #[error(transparent)]
    Stale(#[from] StaleRoute),
    /// The sender's map is newer than this one, which is of `epoch`: whoever asks here catches up first and tries again.
    #[error("the route is from a newer map than that of epoch {epoch}")]
    Ahead {
        /// Of the older map.
        epoch: Epoch,
    },
}

impl PartitionMap {
    /// Whether a request for `key` may be carried out under `route` at this map. The key is looked at too: a route that fits
    /// another key than the one that is written is refused.
    ///
    /// # Errors
    /// When the route is not that of this map.
    pub fn check(&self, route: &Route, key: &[u8]) -> Result<Fit, Misrouted> {
        match self.fit(route) {
            Ok((index, fit)) if index == self.index(key) => Ok(fit),
            Err(Versions::Ahead) => Err(Misrouted::Ahead { epoch: self.epoch }),
            Ok(_) | Err(Versions::Behind) => Err(self.stale(std::iter::once(self.partition_of(key)))),
        }
    }

    /// As [`Self::check`], for a scan over `keys` that reads what of them is in the route's partition.
    ///
    /// # Errors
    /// When the route is not that of this map, or no key of the range can be in its partition.
    pub fn check_scan(&self, route: &Route, keys: &Span) -> Result<Fit, Misrouted> {
        match self.fit(route) {
            Ok((index, fit)) if self.scheme.meets(keys, &self.partitions[index].span) => Ok(fit),
            Err(Versions::Ahead) => Err(Misrouted::Ahead { epoch: self.epoch }),
            Ok(_) | Err(Versions::Behind) => Err(self.stale(self.meeting(keys))),
        }
    }

    fn stale<'m>(&'m self, current: impl Iterator<Item = &'m Partition>) -> Misrouted {
        let current = current.take(STALE_ENTRIES_MAX).cloned().collect();
        Misrouted::Stale(StaleRoute { epoch: self.epoch, current })
    }

    fn fit(&self, route: &Route) -> Result<(usize, Fit), Versions> {
        let Some(index) = self.index_of(route.partition) else {
            // An id that was given out and is gone has been merged away; another one is yet to come.
            return Err(if route.partition < self.next_id { Versions::Behind } else { Versions::Ahead });
        };
        let current = &self.routes[index];
        match (route.birth, route.bounds).cmp(&(current.birth, current.bounds)) {
            core::cmp::Ordering::Less => Err(Versions::Behind),
            core::cmp::Ordering::Greater => Err(Versions::Ahead),
            core::cmp::Ordering::Equal if route.group != current.group => Err(Versions::Behind),
            core::cmp::Ordering::Equal if route.placement != current.placement => Ok((index, Fit::PlacedAnew)),
            core::cmp::Ordering::Equal => Ok((index, Fit::Exact)),
        }
    }
}

enum Versions {
    Behind,
    Ahead,
}
