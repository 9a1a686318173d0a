//! The state machine of a node's groups, which also says what it holds; and how its leaders are seen.

use bytes::Bytes;
use replikit_core::keyspace::Keyspace;
use replikit_core::{GroupId, LogIndex, RestoreError, Role, SnapshotSource, StateMachine, Term};
use replikit_single_leader::Raft;
use serde::{Deserialize, Serialize};

use super::META_GROUP;
use crate::handoff::{Holdings, Phase};
use crate::host::Seat;
use crate::id::PartitionId;
use crate::machine::GroupMachine;
use crate::map::{PartitionMap, Refused};
use crate::meta::MetaMachine;
use crate::shard::Shard;

/// The question of what a group holds; no query of a shard begins with it.
const DESCRIBE: u8 = 0xfe;
/// The beginning of questions about load.
const LOADS: u8 = 0xfd;

/// The state machine of one of a node's groups.
#[derive(Debug)]
pub struct StoreMachine(GroupMachine<Keyspace>);

impl StoreMachine {
    /// That of a group, as its log begins.
    pub(super) fn first(group: GroupId, map: &PartitionMap) -> Self {
        Self(if group == META_GROUP {
            GroupMachine::Maps(MetaMachine::new(map.clone()))
        } else {
            GroupMachine::Data(Shard::new(*map.scheme(), Holdings::first(map, group)))
        })
    }

    /// The log of maps, or what the group holds.
    #[must_use]
    pub const fn group(&self) -> &GroupMachine<Keyspace> {
        &self.0
    }
}

/// How a host looks at the replicas of a store.
#[derive(Debug)]
pub(super) struct StoreSeat;

impl Seat<Raft<StoreMachine>> for StoreSeat {
    type Machine = Keyspace;

    fn machine(replica: &Raft<StoreMachine>) -> Option<&GroupMachine<Keyspace>> {
        Some(replica.machine().group())
    }

    fn leads(replica: &Raft<StoreMachine>) -> Option<Term> {
        let term = replica.term();
        (replica.role() == Role::Leader && replica.applied().id.term == term).then_some(term)
    }

    fn applied(replica: &Raft<StoreMachine>) -> LogIndex {
        replica.applied().id.index
    }
}

/// What a group holds, as one of its replicas has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// What its log has said so far.
    pub holdings: Holdings,
    /// How large its partitions are.
    pub partitions: Vec<DescribedPartition>,
}

/// How large a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedPartition {
    /// Which one.
    pub id: PartitionId,
    /// Whether it takes writes.
    pub serving: bool,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of keys and values in it.
    pub bytes: u64,
}

impl Described {
    fn of(shard: &Shard<Keyspace>) -> Self {
        let serving = |id| shard.holdings().held().any(|(held, it)| held == id && it.phase == Phase::Serving);
        let partitions = shard
            .sizes()
            .map(|(id, keys, bytes)| DescribedPartition { id, serving: serving(id), keys, bytes })
            .collect();
        Self { holdings: shard.holdings().clone(), partitions }
    }

    /// The question for it.
    #[must_use]
    pub const fn question() -> Bytes {
        Bytes::from_static(&[DESCRIBE])
    }

    /// Reads the answer; `None` for other bytes.
    #[must_use]
    pub fn decode(answer: &[u8]) -> Option<Self> {
        match answer.split_first() {
            Some((&DESCRIBE, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
    }

    fn encode(&self) -> Bytes {
        postcard::to_extend(self, vec![DESCRIBE]).expect("what a group holds always encodes").into()
    }
}

/// A question to a group's leader about what its partitions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LoadQuestion {
    /// How many operations of each partition it has carried out: [`LoadAnswer::Operations`].
    Operations,
    /// Where a partition is best cut: [`LoadAnswer::Cut`].
    Cut {
        partition: PartitionId,
        /// By its bytes, or by what it is asked.
        by_size: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LoadAnswer {
    Operations(Vec<(PartitionId, u64)>),
    /// A position, or why there is no good one.
    Cut(Result<Bytes, String>),
    /// Too little has been asked of it since it began to count.
    NotYet,
}

impl LoadQuestion {
    pub(super) fn encode(self) -> Bytes {
        postcard::to_extend(&self, vec![LOADS]).expect("a question always encodes").into()
    }

    fn decode(query: &[u8]) -> Option<Self> {
        query.strip_prefix(&[LOADS]).and_then(|question| postcard::from_bytes(question).ok())
    }

    fn ask(self, shard: &Shard<Keyspace>) -> LoadAnswer {
        match self {
            Self::Operations => LoadAnswer::Operations(shard.operations()),
            Self::Cut { partition, by_size: true } => {
                LoadAnswer::Cut(shard.cut_by_size(partition).map_err(|refused| refused.to_string()))
            }
            Self::Cut { partition, by_size: false } => match shard.cut_by_load(partition) {
                Err(Refused::TooFewSamples { .. }) => LoadAnswer::NotYet,
                cut => LoadAnswer::Cut(cut.map_err(|refused| refused.to_string())),
            },
        }
    }
}

impl LoadAnswer {
    fn encode(&self) -> Bytes {
        postcard::to_extend(self, vec![LOADS]).expect("an answer always encodes").into()
    }

    /// Reads it; `None` for other bytes.
    pub(super) fn decode(answer: &[u8]) -> Option<Self> {
        answer.strip_prefix(&[LOADS]).and_then(|answer| postcard::from_bytes(answer).ok())
    }
}

impl StateMachine for StoreMachine {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        self.0.apply(at, command)
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        match &self.0 {
            GroupMachine::Data(shard) if *query == [DESCRIBE] => Described::of(shard).encode(),
            GroupMachine::Data(shard) if query.first() == Some(&LOADS) => match LoadQuestion::decode(query) {
                Some(question) => question.ask(shard).encode(),
                None => Bytes::new(),
            },
            group => group.query(query, bytes_max),
        }
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        self.0.snapshot()
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.0.restore(chunk, last)
    }
}
