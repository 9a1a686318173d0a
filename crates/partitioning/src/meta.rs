//! The log of maps as a state machine: what the metadata group replicates.
//!
//! Invariants:
//!
//! - The map changes by commands only: of two that do not go together, the one that the log has first decides (a compare-and-set). What a change does is a pure function of the map, so all replicas agree.
//! - The first map is given, and the same at every replica: it is part of what the store is founded with.
//! - A question is answered from what is applied. Whoever has an older map gets the deltas behind it, or, when they are not kept any
//!   more, the map.
//!
//! Source: Cassandra's TCM, "a linear log of transformations".

use bytes::Bytes;
use replikit_core::{BytesSource, Epoch, LogIndex, RestoreError, SnapshotSource, StateMachine};
use serde::{Deserialize, Serialize};

use crate::map::{Catchup, Change, Delta, PartitionMap};
use crate::map_store::{Expected, MapLog, MapStore, StoreRefused};
use crate::shard::ClientId;

/// The encoding of commands, questions and answers: the first byte of each.
pub const META_VERSION: u8 = 1;

/// Most deltas in one answer; whoever needs more asks again.
pub const META_DELTAS_MAX: usize = 256;

/// A command of the log of maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// A change of the map of this epoch.
    Change {
        /// The map that it is for; when another one is in force, nothing changes.
        at: Epoch,
        /// What to change.
        change: Change,
    },
    /// A change of whatever map is in force.
    ChangeAny {
        /// What to change.
        change: Change,
    },
    /// A number for a new client.
    OpenClient,
}

/// The reply to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaReply {
    /// Done.
    Changed {
        /// What the change made of the map.
        delta: Delta,
    },
    /// Another map is in force than the expected one: nothing has changed.
    Behind {
        /// Its epoch.
        current: Epoch,
    },
    /// The number of the new client.
    Client(ClientId),
    /// The map does not let the change be made: nothing has changed.
    Refused {
        /// The reason, as [`Refused`](crate::Refused) words it.
        why: String,
    },
    /// No command of this version: nothing has changed.
    Malformed,
}

/// A question to the log of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaQuery {
    /// For what follows this epoch; epoch 0 asks for the whole map.
    Since(Epoch),
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaAnswer {
    /// What follows the epoch asked for, in order; nothing when that is the newest.
    Deltas(Vec<Delta>),
    /// The whole map.
    Map(Box<PartitionMap>),
    /// No question of this version.
    Malformed,
}

/// Bytes that are no command, question or answer of this version. Blame: whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these are no words of the log of maps, version {META_VERSION}")]
pub struct MetaMalformed;

macro_rules! encoded {
    ($($name:ident),*) => {$(
        impl $name {
            /// Its bytes.
            #[must_use]
            pub fn encode(&self) -> Bytes {
                postcard::to_extend(self, vec![META_VERSION]).expect("words of the log of maps always encode").into()
            }

            /// The inverse of `encode`.
            ///
            /// # Errors
            /// When these are other bytes.
            pub fn decode(bytes: &[u8]) -> Result<Self, MetaMalformed> {
                match bytes.split_first() {
                    Some((&META_VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| MetaMalformed),
                    _ => Err(MetaMalformed),
                }
            }
        }
    )*};
}
encoded!(MetaCommand, MetaReply, MetaQuery, MetaAnswer);

/// The state machine of the metadata group.
#[derive(Debug)]
pub struct MetaMachine {
    log: MapLog,
    incoming: Vec<u8>,
}

impl MetaMachine {
    /// A log of maps that begins with this one: the same at every replica.
    #[must_use]
    pub fn new(first: PartitionMap) -> Self {
        Self { log: MapLog::new(first), incoming: Vec::new() }
    }

    /// The map in force.
    #[must_use]
    pub fn map(&self) -> &PartitionMap {
        self.log.map()
    }

    /// What follows an epoch, as far as this replica has applied the log.
    #[must_use]
    pub fn since(&self, epoch: Epoch) -> MetaAnswer {
        MetaAnswer::since(&self.log, epoch)
    }

    fn change(&mut self, expected: Expected, change: &Change) -> MetaReply {
        match self.log.compare_and_set(expected, change) {
            Ok(delta) => MetaReply::Changed { delta },
            Err(StoreRefused::Moved { current }) => MetaReply::Behind { current },
            Err(StoreRefused::Refused(why)) => MetaReply::Refused { why: why.to_string() },
        }
    }
}

impl MetaAnswer {
    /// What a log of maps answers to whoever has the map of this epoch.
    pub(crate) fn since(log: &impl MapStore, have: Epoch) -> Self {
        match log.since(have) {
            Catchup::Deltas(mut deltas) => {
                deltas.truncate(META_DELTAS_MAX);
                Self::Deltas(deltas)
            }
            Catchup::Map => Self::Map(Box::new(log.map().clone())),
        }
    }
}

impl StateMachine for MetaMachine {
    fn apply(&mut self, _at: LogIndex, command: &[u8]) -> Bytes {
        match MetaCommand::decode(command) {
            Ok(MetaCommand::Change { at, change }) => self.change(Expected::Epoch(at), &change),
            Ok(MetaCommand::ChangeAny { change }) => self.change(Expected::Any, &change),
            Ok(MetaCommand::OpenClient) => MetaReply::Client(self.log.open_client()),
            Err(MetaMalformed) => MetaReply::Malformed,
        }
        .encode()
    }

    fn query(&self, query: &[u8], _bytes_max: usize) -> Bytes {
        match MetaQuery::decode(query) {
            Ok(MetaQuery::Since(epoch)) => self.since(epoch),
            Err(MetaMalformed) => MetaAnswer::Malformed,
        }
        .encode()
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        let bytes =
            postcard::to_extend(&(self.log.clients(), self.map()), vec![META_VERSION]).expect("a map always encodes");
        Box::new(BytesSource::new(bytes.into()))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if last {
            let whole = core::mem::take(&mut self.incoming);
            let read: Option<(u64, PartitionMap)> = match whole.split_first() {
                Some((&META_VERSION, rest)) => postcard::from_bytes(rest).ok(),
                _ => None,
            };
            let (clients, map) = read.ok_or(RestoreError { what: "not a log of maps" })?;
            self.log = MapLog::resumed(map, clients);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use replikit_core::{GroupId, NodeId};

    use super::*;
    use crate::{PartitionId, Scheme};

    fn machine() -> MetaMachine {
        let nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        let groups = [(GroupId(2), nodes.clone()), (GroupId(3), nodes)];
        MetaMachine::new(PartitionMap::first(Scheme::KEY_ORDER, ["m".into()], groups).unwrap())
    }

    fn split(machine: &mut MetaMachine, at: u64, partition: u64, bound: &'static str) -> MetaReply {
        let change = Change::Split { partition: PartitionId(partition), at: bound.into() };
        let command = MetaCommand::Change { at: Epoch(at), change };
        MetaReply::decode(&machine.apply(LogIndex(1), &command.encode())).unwrap()
    }

    fn ask(machine: &MetaMachine, epoch: u64) -> MetaAnswer {
        MetaAnswer::decode(&machine.query(&MetaQuery::Since(Epoch(epoch)).encode(), 1 << 20)).unwrap()
    }

    #[test]
    fn of_two_changes_of_one_map_the_first_in_the_log_decides() {
        let mut machine = machine();
        assert!(matches!(split(&mut machine, 1, 1, "c"), MetaReply::Changed { .. }));
        assert_eq!(split(&mut machine, 1, 1, "d"), MetaReply::Behind { current: Epoch(2) });
        assert_eq!(machine.map().len(), 3);
    }

    #[test]
    fn a_refused_change_says_why_and_leaves_the_epoch() {
        let mut machine = machine();
        let MetaReply::Refused { why } = split(&mut machine, 1, 1, "z") else { panic!() };
        assert!(why.contains("not within"), "{why}");
        assert_eq!(machine.map().epoch(), Epoch(1));
        assert_eq!(machine.apply(LogIndex(1), b"x"), MetaReply::Malformed.encode());
    }

    #[test]
    fn whoever_has_an_older_map_catches_up_by_deltas_and_whoever_has_none_gets_the_map() {
        let mut machine = machine();
        let old = machine.map().clone();
        split(&mut machine, 1, 1, "c");
        split(&mut machine, 2, 2, "p");
        let MetaAnswer::Deltas(deltas) = ask(&machine, 1) else { panic!() };
        assert_eq!(old.caught_up(&deltas).unwrap(), *machine.map());
        assert_eq!(ask(&machine, 3), MetaAnswer::Deltas(Vec::new()));
        assert_eq!(ask(&machine, 0), MetaAnswer::Map(Box::new(machine.map().clone())));
    }

    #[test]
    fn a_snapshot_in_pieces_is_the_same_map() {
        let mut one = machine();
        split(&mut one, 1, 1, "c");
        let (mut other, mut source) = (machine(), one.snapshot());
        while let Some(piece) = source.next(7) {
            other.restore(&piece, false).unwrap();
        }
        other.restore(&[], true).unwrap();
        assert_eq!(other.map(), one.map());
        let open = MetaCommand::OpenClient.encode();
        assert_eq!(other.apply(LogIndex(9), &open), MetaReply::Client(ClientId(1)).encode());
        assert_eq!(other.apply(LogIndex(9), &open), MetaReply::Client(ClientId(2)).encode(), "never given twice");
        assert!(machine().restore(b"\x02", true).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_words_never_panic(bytes in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..60)) {
            let mut machine = machine();
            machine.apply(LogIndex(1), &bytes);
            machine.query(&bytes, 100);
            let _ = (MetaReply::decode(&bytes), MetaAnswer::decode(&bytes), machine.restore(&bytes, true));
        }
    }
}
