//! Where the newest map is kept and changed: one place that decides.
//!
//! Invariant: of two changes that do not go together one is refused, whoever asks; an epoch that was given is never given
//! again. Sources: Cassandra's TCM; the compare-and-set of a revision as in etcd.

use replikit_core::Epoch;
use serde::{Deserialize, Serialize};

use crate::map::{Catchup, Change, DELTAS_MAX, Delta, DeltaLog, PartitionMap, Refused};
use crate::shard::ClientId;

/// At which map a change may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// At any at which the change itself is possible: what a handoff decides, and what a person asks for by name.
    Any,
    /// At this one only: what was computed from all of it, such as a balancer's plan.
    Epoch(Epoch),
}

/// Why the map was not changed. It is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreRefused {
    /// Somebody else has changed it meanwhile: catch up, and think again.
    #[error("the map is at epoch {current}, not at the expected one")]
    Moved {
        /// The epoch that is in force.
        current: Epoch,
    },
    /// The change is not possible at this map.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A log of maps: what the metadata group's state machine is, and what a test has in memory.
pub trait MapStore {
    /// The newest map.
    fn map(&self) -> &PartitionMap;

    /// Makes the next map, if the newest is the expected one. Where the store is replicated: called when the change is applied.
    ///
    /// # Errors
    /// Why it is not made.
    fn compare_and_set(&mut self, expected: Expected, change: &Change) -> Result<Delta, StoreRefused>;

    /// What brings a map of epoch `have` to the newest one.
    fn since(&self, have: Epoch) -> Catchup;

    /// A number for a client that no other one has, larger than all before.
    fn open_client(&mut self) -> ClientId;
}

/// A [`MapStore`] in memory.
#[derive(Clone, Debug)]
pub struct MapLog {
    map: PartitionMap,
    deltas: DeltaLog,
    clients: u64,
}

impl MapLog {
    /// A log that begins with a map.
    pub fn new(map: PartitionMap) -> Self {
        Self { deltas: DeltaLog::new(&map, DELTAS_MAX), map, clients: 0 }
    }

    /// A log that goes on at a map after so many clients, as a snapshot has it; it serves no older deltas.
    pub fn resumed(map: PartitionMap, clients: u64) -> Self {
        Self { clients, ..Self::new(map) }
    }

    /// How many clients have got a number.
    pub const fn clients(&self) -> u64 {
        self.clients
    }
}

impl MapStore for MapLog {
    fn map(&self) -> &PartitionMap {
        &self.map
    }

    fn compare_and_set(&mut self, expected: Expected, change: &Change) -> Result<Delta, StoreRefused> {
        let current = self.map.epoch();
        if let Expected::Epoch(epoch) = expected
            && epoch != current
        {
            return Err(StoreRefused::Moved { current });
        }
        let (map, delta) = self.map.changed(change)?;
        self.deltas.push(delta.clone()).expect("it follows the newest map");
        self.map = map;
        Ok(delta)
    }

    fn since(&self, have: Epoch) -> Catchup {
        self.deltas.since(have, DELTAS_MAX)
    }

    fn open_client(&mut self) -> ClientId {
        self.clients += 1;
        ClientId(self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PartitionId;
    use crate::partitioner::Scheme;
    use replikit_core::{GroupId, NodeId};

    #[test]
    fn of_two_changes_of_one_map_the_second_is_refused_and_catches_up() {
        let map = PartitionMap::first(Scheme::KEY_ORDER, [], [(GroupId(1), vec![NodeId(1)])]).unwrap();
        let mut store = MapLog::new(map.clone());
        let split = |at: &'static str| Change::Split { partition: PartitionId(1), at: at.into() };
        let expected = Expected::Epoch(map.epoch());
        let delta = store.compare_and_set(expected, &split("m")).unwrap();
        assert_eq!(store.compare_and_set(expected, &split("f")), Err(StoreRefused::Moved { current: Epoch(2) }));
        assert_eq!(store.since(map.epoch()), Catchup::Deltas(vec![delta.clone()]));
        assert_eq!(map.caught_up([&delta]).as_ref(), Ok(store.map()));
        store.compare_and_set(Expected::Any, &split("f")).unwrap();
        assert!(matches!(store.compare_and_set(Expected::Any, &split("z")), Err(StoreRefused::Refused(_))));
        assert_eq!(store.map().len(), 3);
    }

    #[test]
    fn no_client_number_is_given_twice() {
        let map = PartitionMap::first(Scheme::KEY_ORDER, [], [(GroupId(1), vec![NodeId(1)])]).unwrap();
        let mut store = MapLog::new(map.clone());
        let first = store.open_client();
        let mut again = MapLog::resumed(map, store.clients());
        assert!(again.open_client() > first);
    }
}
