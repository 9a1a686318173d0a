//! What stands behind a simulated node's storage actions.
//!
//! Invariant: what was reported durable survives every crash; of the rest a prefix, in the order of the actions, survives.
//! [`ModelStorage`] is that sentence and nothing else; [`LogStorage`] is the real log, which has to make it true.

mod disk;
mod image;
mod log;
mod model;
mod shadow;

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{
    Batch, Boot, ClusterId, GroupId, LogAnswer, LogIndex, NodeId, Persist, Position, SnapshotAnswer, StorageEvent,
    StreamId, Ticket, Time, WriteId,
};

pub use log::LogStorage;
pub use model::ModelStorage;

use crate::fault::FaultCounts;
use crate::settings::StorageSettings;

/// What the disk says of each group before recovery is pushed.
#[derive(Clone, Debug, Default)]
pub struct Boots {
    /// Groups of which anything was found.
    pub groups: BTreeMap<GroupId, Boot>,
    /// Unclean starts that this disk has seen.
    pub incarnation: u32,
}

impl Boots {
    /// The group's boot; an empty one for a group of which nothing was found.
    #[must_use]
    pub fn of(&self, group: GroupId) -> Boot {
        self.groups.get(&group).cloned().unwrap_or(Boot { incarnation: self.incarnation, ..Boot::default() })
    }
}

/// What is pushed at a start.
#[derive(Clone, Debug)]
pub enum RecoveryItem {
    /// A piece of a group's newest snapshot.
    SnapshotChunk {
        /// The last entry that the snapshot holds.
        at: Position,
        /// The piece.
        chunk: Bytes,
        /// Whether it is the last one.
        last: bool,
    },
    /// A batch, in append order over all streams.
    Batch(Batch),
}

/// All that a start finds on the disk.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Arguments for the replica's constructor.
    pub boots: Boots,
    /// What to push, in order.
    pub items: Vec<RecoveryItem>,
}

/// What a storage has to say.
#[derive(Clone, Debug)]
pub enum StorageOutput {
    /// All actions up to this one are durable.
    Durable(WriteId),
    /// A read of the log ended.
    LogRead {
        /// Which read.
        ticket: Ticket,
        /// Its stream.
        stream: StreamId,
        /// What was found.
        answer: LogAnswer,
    },
    /// A read of a snapshot ended.
    SnapshotRead {
        /// Which read.
        ticket: Ticket,
        /// What was found.
        answer: SnapshotAnswer,
    },
    /// Something that the replica should know of the storage.
    Event(StorageEvent),
}

/// Why a start gives nothing to recover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The disk is damaged and the storage says so: the node stays down, as it should. No violation.
    Refused(String),
    /// A sound disk was refused, or what was recovered is not what was stored: a violation.
    Broken(String),
}

/// What a storage may use of the world around it.
#[derive(Debug)]
pub struct StorageContext<'a> {
    /// True time.
    pub now: Time,
    /// The run's randomness.
    pub rng: &'a mut Rng,
    /// How the storage behaves.
    pub settings: &'a StorageSettings,
    /// Where faults are counted.
    pub counts: &'a mut FaultCounts,
}

/// The storage of one simulated node. Time passes for it only through the calls.
pub trait SimStorage: Sized {
    /// Whether there is a disk under it that plays [`DiskSettings`](crate::DiskSettings).
    const HAS_DISK: bool = false;

    /// An empty disk of a node.
    fn new(cluster: ClusterId, node: NodeId, context: &mut StorageContext<'_>) -> Self;

    /// A process starts on what the disk holds: called once before anything else, and again after each crash.
    ///
    /// # Errors
    /// [`StartError`] says whether the node stays down or a promise was broken.
    fn start(&mut self, context: &mut StorageContext<'_>) -> Result<Recovery, StartError>;

    /// Whether the last start was refused: the node is down for good, as long as nobody replaces its disk.
    fn is_refused(&self) -> bool {
        false
    }

    /// Whether the last start was refused, or one so far told of a cut tail: such a node may have to wait for all others.
    fn is_impaired(&self) -> bool {
        false
    }

    /// Takes a storage action.
    ///
    /// # Errors
    /// A sentence that says which rule of the contract the replica broke.
    fn persist(&mut self, id: WriteId, op: Persist) -> Result<(), String>;

    /// Begins a read of the log.
    fn read_log(
        &mut self,
        ticket: Ticket,
        stream: StreamId,
        from: LogIndex,
        bytes_max: u32,
        context: &mut StorageContext<'_>,
    );

    /// Begins a read of a snapshot.
    fn read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
        context: &mut StorageContext<'_>,
    );

    /// All actions of a round are in: begins what can begin.
    fn pump(&mut self, context: &mut StorageContext<'_>);

    /// When the next thing under way ends.
    fn due(&self) -> Option<Time>;

    /// The next thing that has ended by now.
    fn poll(&mut self, context: &mut StorageContext<'_>) -> Option<StorageOutput>;

    /// Nothing ends before this time.
    fn stall(&mut self, until: Time);

    /// A stall is over: what is under way ends now.
    fn resume(&mut self, now: Time);

    /// The process ends; what was not durable may be lost.
    fn crash(&mut self, context: &mut StorageContext<'_>);
}
