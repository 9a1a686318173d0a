//! Origins: who writes a dotted stream, and what became of those who write no more.
//!
//! An [`Origin`] is one incarnation of a node. Invariants: a node takes a new incarnation whenever it may have forgotten a
//! sequence that it had given away (an unclean start, a lost disk), so dots are unique for ever; an origin only moves from
//! open to closed to retired; which of its writes count as held is settled once, when it is closed.
//!
//! Source: incarnations against key amnesia: riak_kv#1813; node-wide dots: Gonçalves et al., SRDS 2017 (DottedDB).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Dot, NodeId, OriginId, SequenceSet};

const INCARNATION_BITS: u32 = 20;
const INCARNATION_MASK: u32 = (1 << INCARNATION_BITS) - 1;

/// The n-th life of a node, from 1: it grows by one at every start that may have forgotten something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

impl Incarnation {
    /// The largest incarnation: a node that has used it up needs a new [`NodeId`].
    pub const MAX: Self = Self(INCARNATION_MASK);
}

/// Who writes: one incarnation of one node.
///
/// Its [`OriginId`] is a fixed function of it, so replicas agree on it without exchanging a table, and origins sort by node
/// before incarnation, which makes "the larger dot wins" a rule about nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The node, at most [`Origin::NODE_MAX`].
    pub node: NodeId,
    /// Which of its lives, from 1.
    pub incarnation: Incarnation,
}

impl Origin {
    /// The largest node id that can write dotted streams.
    pub const NODE_MAX: NodeId = NodeId(4093);

    /// The origin's number within its group.
    ///
    /// # Errors
    /// [`OriginError::OutOfRange`] when the node is above [`Self::NODE_MAX`] or the incarnation is 0 or above
    /// [`Incarnation::MAX`].
    pub const fn id(self) -> Result<OriginId, OriginError> {
        let Incarnation(incarnation) = self.incarnation;
        if self.node.0 > Self::NODE_MAX.0 || incarnation == 0 || incarnation > INCARNATION_MASK {
            return Err(OriginError::OutOfRange { origin: self });
        }
        Ok(OriginId((self.node.0 + 1) << INCARNATION_BITS | incarnation))
    }

    /// The inverse of [`Origin::id`]; `None` for the special streams and for numbers that no origin has.
    #[must_use]
    pub const fn of(id: OriginId) -> Option<Self> {
        let (slot, incarnation) = (id.0 >> INCARNATION_BITS, id.0 & INCARNATION_MASK);
        if slot == 0 || slot - 1 > Self::NODE_MAX.0 || incarnation == 0 {
            return None;
        }
        Some(Self { node: NodeId(slot - 1), incarnation: Incarnation(incarnation) })
    }
}

/// An origin number in two small parts, so that it takes two bytes on the wire for small nodes and incarnations. Total over
/// all numbers, the special ones too.
pub(crate) const fn split_id(id: OriginId) -> (u32, u32) {
    (id.0 >> INCARNATION_BITS, id.0 & INCARNATION_MASK)
}

/// For `#[serde(with)]`: an origin number in its two parts.
pub(crate) mod parts {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::{OriginId, join_id, split_id};

    pub(crate) fn serialize<S: Serializer>(id: &OriginId, serializer: S) -> Result<S::Ok, S::Error> {
        split_id(*id).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OriginId, D::Error> {
        let (slot, incarnation) = <(u32, u32)>::deserialize(deserializer)?;
        join_id(slot, incarnation).ok_or_else(|| de::Error::custom("no such origin"))
    }
}

/// The inverse of [`split_id`]; `None` for parts that no number has.
pub(crate) const fn join_id(slot: u32, incarnation: u32) -> Option<OriginId> {
    if slot > u32::MAX >> INCARNATION_BITS || incarnation > INCARNATION_MASK {
        return None;
    }
    Some(OriginId(slot << INCARNATION_BITS | incarnation))
}

/// Why an origin cannot be opened, closed or retired. The table is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// The node or the incarnation has no number. Blame: the operator for the node, or a node that started unclean more
    /// than a million times.
    #[error("incarnation {} of node {} is out of range", origin.incarnation.0, origin.node)]
    OutOfRange {
        /// The origin asked for.
        origin: Origin,
    },
    /// A node's incarnations only grow: this one is not above the newest known. Blame: a node that came back with old state.
    #[error("incarnation {} of node {} is not newer than {}", origin.incarnation.0, origin.node, newest.0)]
    NotNewer {
        /// The origin asked for.
        origin: Origin,
        /// The newest known.
        newest: Incarnation,
    },
    /// The origin was never opened here. Blame: the caller, or a peer that knows more.
    #[error("incarnation {} of node {} is unknown", origin.incarnation.0, origin.node)]
    Unknown {
        /// The origin asked for.
        origin: Origin,
    },
    /// The origin is closed already, with another set of held writes, or retired: what was void stays void.
    #[error("incarnation {} of node {} is closed already", origin.incarnation.0, origin.node)]
    Settled {
        /// The origin asked for.
        origin: Origin,
    },
    /// Only a closed origin can retire. Blame: the caller.
    #[error("incarnation {} of node {} is still open", origin.incarnation.0, origin.node)]
    StillOpen {
        /// The origin asked for.
        origin: Origin,
    },
}

/// The record that closes an origin: the union of what the members of the epoch hold of it.
///
/// Sequences that are not in the union were lost with their writer (it had sent them beside its own disk write, and crashed)
/// and count as held by everybody from now on: otherwise the hole would block stability for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginClosed {
    /// Who writes no more.
    pub origin: Origin,
    /// What at least one member holds.
    pub held: SequenceSet,
}

/// What is known of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OriginState {
    /// It may still write.
    Open,
    /// It writes no more; these are its writes.
    Closed {
        /// Held by at least one member when it was closed.
        held: SequenceSet,
    },
    /// Closed, and every member holds all of it: it has left the vectors.
    Retired,
}

/// What to do with a dot that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its origin is open, or closed with this dot among its writes: look it up in the vector.
    Admitted,
    /// Its origin was closed without it: the write is void, whoever still sends it.
    Void,
    /// Its origin has retired: everybody holds it, or it is void.
    Retired,
    /// Its origin was never opened here.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Lives {
    // Every incarnation up to and including this one has retired: what keeps the table small for ever.
    retired: u32,
    // The others; only above `retired`.
    states: BTreeMap<u32, OriginState>,
}

impl Lives {
    fn newest(&self) -> u32 {
        self.states.last_key_value().map_or(self.retired, |(&incarnation, _)| incarnation)
    }
}

/// The origins of one group: which may write, which are closed, which have retired.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OriginTable {
    nodes: BTreeMap<NodeId, Lives>,
}

impl OriginTable {
    /// No origins.
    #[must_use]
    pub const fn new() -> Self {
        Self { nodes: BTreeMap::new() }
    }

    /// The origin that a node takes next: one above the newest known. A node that lost its disk asks its peers' tables.
    #[must_use]
    pub fn next(&self, node: NodeId) -> Origin {
        let newest = self.nodes.get(&node).map_or(0, Lives::newest);
        Origin { node, incarnation: Incarnation(newest.saturating_add(1)) }
    }

    /// Opens an origin; one that is open stays so.
    ///
    /// # Errors
    /// [`OriginError::OutOfRange`]; [`OriginError::NotNewer`] for an unknown or settled one at or below the newest known.
    pub fn open(&mut self, origin: Origin) -> Result<OriginId, OriginError> {
        let id = origin.id()?;
        let lives = self.nodes.entry(origin.node).or_default();
        if lives.states.get(&origin.incarnation.0) == Some(&OriginState::Open) {
            return Ok(id);
        }
        let newest = lives.newest();
        if origin.incarnation.0 <= newest {
            return Err(OriginError::NotNewer { origin, newest: Incarnation(newest) });
        }
        lives.states.insert(origin.incarnation.0, OriginState::Open);
        Ok(id)
    }

    /// Closes an origin. Also do [`VersionVector::close`](crate::VersionVector::close) on the vectors. The same record twice
    /// changes nothing.
    ///
    /// # Errors
    /// [`OriginError::Unknown`]; [`OriginError::Settled`] for another set than the first time, or a retired origin.
    pub fn close(&mut self, record: &OriginClosed) -> Result<(), OriginError> {
        let origin = record.origin;
        let state = self.state_mut(origin)?;
        match state {
            OriginState::Open => *state = OriginState::Closed { held: record.held.clone() },
            OriginState::Closed { held } if *held == record.held => {}
            OriginState::Closed { .. } | OriginState::Retired => return Err(OriginError::Settled { origin }),
        }
        Ok(())
    }

    /// Retires a closed origin that every member holds all of, durably, and of which no version is live. Also do
    /// [`VersionVector::retire`](crate::VersionVector::retire), which says why.
    ///
    /// # Errors
    /// [`OriginError::Unknown`]; [`OriginError::StillOpen`].
    pub fn retire(&mut self, origin: Origin) -> Result<(), OriginError> {
        if self.state(origin) == Some(&OriginState::Retired) {
            return Ok(());
        }
        let state = self.state_mut(origin)?;
        if *state == OriginState::Open {
            return Err(OriginError::StillOpen { origin });
        }
        *state = OriginState::Retired;
        let lives = self.nodes.get_mut(&origin.node).expect("its state was found just now");
        while lives.states.get(&(lives.retired + 1)) == Some(&OriginState::Retired) {
            lives.retired += 1;
            lives.states.remove(&lives.retired);
        }
        Ok(())
    }

    /// What is known of an origin; `None` when it was never opened here.
    #[must_use]
    pub fn state(&self, origin: Origin) -> Option<&OriginState> {
        let lives = self.nodes.get(&origin.node)?;
        if (1..=lives.retired).contains(&origin.incarnation.0) {
            return Some(&OriginState::Retired);
        }
        lives.states.get(&origin.incarnation.0)
    }

    /// Whether a write with this dot may still be taken. Ask before the vector: a retired origin is no longer in it.
    #[must_use]
    pub fn admits(&self, dot: Dot) -> Admission {
        match Origin::of(dot.origin).and_then(|origin| self.state(origin)) {
            None => Admission::Unknown,
            Some(OriginState::Open) => Admission::Admitted,
            Some(OriginState::Closed { held }) if held.contains(dot.sequence) => Admission::Admitted,
            Some(OriginState::Closed { .. }) => Admission::Void,
            Some(OriginState::Retired) => Admission::Retired,
        }
    }

    /// The origins that have not retired, ascending, with their state.
    pub fn origins(&self) -> impl Iterator<Item = (Origin, &OriginState)> {
        self.nodes.iter().flat_map(|(&node, lives)| {
            lives
                .states
                .iter()
                .filter(|(_, state)| **state != OriginState::Retired)
                .map(move |(&incarnation, state)| (Origin { node, incarnation: Incarnation(incarnation) }, state))
        })
    }

    fn state_mut(&mut self, origin: Origin) -> Result<&mut OriginState, OriginError> {
        let lives = self.nodes.get_mut(&origin.node).ok_or(OriginError::Unknown { origin })?;
        if (1..=lives.retired).contains(&origin.incarnation.0) {
            return Err(OriginError::Settled { origin });
        }
        lives.states.get_mut(&origin.incarnation.0).ok_or(OriginError::Unknown { origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(node: u32, incarnation: u32) -> Origin {
        Origin { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn an_origin_has_one_number_and_is_found_by_it() {
        let mut last = OriginId::CONSENSUS;
        for node in [0, 1, 77, Origin::NODE_MAX.0] {
            for incarnation in [1, 2, Incarnation::MAX.0] {
                let id = origin(node, incarnation).id().unwrap();
                assert_eq!(Origin::of(id), Some(origin(node, incarnation)));
                assert!(id > last && id < OriginId::LOCAL, "origins sort by node, then incarnation");
                let (slot, low) = split_id(id);
                assert_eq!(join_id(slot, low), Some(id));
                last = id;
            }
        }
        for outside in [origin(Origin::NODE_MAX.0 + 1, 1), origin(1, 0), origin(1, Incarnation::MAX.0 + 1)] {
            assert_eq!(outside.id(), Err(OriginError::OutOfRange { origin: outside }));
        }
        for special in [OriginId::CONSENSUS, OriginId::LOCAL, OriginId(5), OriginId(1 << 20)] {
            assert_eq!(Origin::of(special), None);
        }
    }

    #[test]
    fn an_incarnation_is_never_used_again() {
        let mut table = OriginTable::new();
        let first = table.next(NodeId(3));
        table.open(first).unwrap();
        table.open(first).unwrap();
        let second = table.next(NodeId(3));
        assert_eq!(second, origin(3, 2));
        table.open(second).unwrap();
        for old in [first, second] {
            table.close(&OriginClosed { origin: old, held: SequenceSet::up_to(2) }).unwrap();
            assert_eq!(table.open(old), Err(OriginError::NotNewer { origin: old, newest: Incarnation(2) }));
        }
        table.retire(second).unwrap();
        table.retire(first).unwrap();
        table.retire(first).unwrap();
        assert_eq!(table.origins().count(), 0);
        assert_eq!(table.next(NodeId(3)), origin(3, 3), "a retired incarnation is remembered by its number alone");
        assert!(table.open(first).is_err());
    }

    #[test]
    fn what_was_void_when_an_origin_closed_stays_void() {
        let mut table = OriginTable::new();
        let closed = origin(1, 1);
        let id = table.open(closed).unwrap();
        let dot = |sequence| Dot { origin: id, sequence };
        assert_eq!(table.admits(dot(9)), Admission::Admitted);
        assert_eq!(table.retire(closed), Err(OriginError::StillOpen { origin: closed }));
        let held: SequenceSet = [1, 2, 5].into_iter().collect();
        table.close(&OriginClosed { origin: closed, held: held.clone() }).unwrap();
        table.close(&OriginClosed { origin: closed, held }).unwrap();
        let other = OriginClosed { origin: closed, held: SequenceSet::up_to(5) };
        assert_eq!(table.close(&other), Err(OriginError::Settled { origin: closed }));
        assert_eq!(table.admits(dot(5)), Admission::Admitted);
        assert_eq!(table.admits(dot(4)), Admission::Void);
        assert_eq!(table.admits(dot(6)), Admission::Void);
        table.retire(closed).unwrap();
        assert_eq!(table.admits(dot(5)), Admission::Retired);
        assert_eq!(table.admits(Dot { origin: origin(1, 2).id().unwrap(), sequence: 1 }), Admission::Unknown);
        assert_eq!(table.admits(Dot { origin: OriginId::LOCAL, sequence: 1 }), Admission::Unknown);
    }
}
