//! What owners say to each other. Batches of writes ride beside the head.

use bytes::Bytes;
use replikit_core::dotted::Holding;
use replikit_core::{Epoch, HybridTimestamp, NodeId, OriginId, VersionVector};
use serde::{Deserialize, Serialize};

use crate::cas;
use crate::content::KeyCopy;
use crate::ownership::Ownership;
use crate::scan::{FetchPage, FetchedPage, RepairPage};
use crate::scrub::{Scrub, Scrubbed};

/// The typed part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// Batches of writes; of each origin in order.
    Push(Push),
    /// How far the writes of the receiver have got at the sender, and what it thinks of them.
    Stored(Stored),
    /// What the sender holds.
    Report(Box<Report>),
    /// A piece of the sender's state.
    Piece(Piece),
    /// Which piece the receiver wants next.
    PieceWanted(PieceWanted),
    /// A coordinator wants a key.
    Fetch(Fetch),
    /// The answer to that.
    Fetched(Box<Fetched>),
    /// A coordinator tells what a key is, to an owner that knew less.
    Repair(Box<Repair>),
    /// It is on the sender's disk now.
    Repaired {
        /// Of which read.
        read: u64,
    },
    /// A coordinator hands over what an owner misses that cannot be reached.
    Hint(Box<Hint>),
    /// It is on the sender's disk now.
    Hinted {
        /// The coordinator's incarnation.
        origin: OriginId,
        /// Which of its writes.
        sequence: u64,
        /// For which owner.
        owner: NodeId,
    },
    /// About a key that is compared and set.
    Cas(Box<cas::Message>),
    /// The sender has forgotten which keys were compared and set, and gathers them.
    CasWanted(CasWanted),
    /// The answer to that.
    CasGiven(Box<CasGiven>),
    /// What the sender knows of epochs: it counts in others than the receiver does.
    Epochs(Box<Ownership>),
    /// An owner compares its records.
    Scrub(Box<Scrub>),
    /// The answer to that.
    Scrubbed(Box<Scrubbed>),
    /// A coordinator wants a page.
    FetchPage(FetchPage),
    /// The answer to that.
    FetchedPage(Box<FetchedPage>),
    /// A coordinator tells what keys of a page are, to an owner that knew less.
    RepairPage(Box<RepairPage>),
}

impl Head {
    /// The epochs that who asks for something counts in; `None` for answers.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Push(push) => Some(push.epoch),
            Self::Report(report) => Some(report.epoch),
            Self::Piece(piece) => Some(piece.epoch),
            Self::Fetch(fetch) => Some(fetch.epoch),
            Self::Repair(repair) => Some(repair.epoch),
            Self::Hint(hint) => Some(hint.epoch),
            Self::CasWanted(wanted) => Some(wanted.epoch),
            Self::Scrub(scrub) => Some(scrub.epoch),
            Self::FetchPage(fetch) => Some(fetch.epoch),
            Self::RepairPage(repair) => Some(repair.epoch),
            Self::Cas(message) => message.asked_in(),
            _ => None,
        }
    }
}

/// A question of an owner that has forgotten what it had promised and accepted of the keys that are compared and set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CasWanted {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// The life of its acceptor that begins.
    pub life: cas::Life,
    /// Keys up to this one have come.
    pub after: Option<Bytes>,
}

/// Some of what an owner has promised and accepted. It has noted the receiver's new life durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CasGiven {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// For which life of the receiver.
    pub life: cas::Life,
    /// The keys in it are behind this one.
    pub after: Option<Bytes>,
    /// One record for each key, and those of other lives.
    pub records: Vec<cas::Record>,
    /// The last key in it if there are more.
    pub next: Option<Bytes>,
}

/// Batches ride beside this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Whether an answer is wanted as soon as they are received, not only once they are durable.
    pub prompt: bool,
    /// The sender's own writes up to this sequence wait for nobody any more.
    pub settled: u64,
    /// The sender's life: what an earlier one sent is not taken any more once a later one has been heard of.
    pub life: u32,
}

/// An owner's word on the writes of one coordinator. Each message says everything, so they may be lost and may overtake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// The incarnation whose writes are meant.
    pub origin: OriginId,
    /// What it says of these it knows: earlier ones came with a snapshot, and it cannot tell whether something newer stood
    /// beside them.
    pub judged_from: u64,
    /// Everything up to this is in its memory.
    pub received: u64,
    /// Something that came after that came without what is between.
    pub missing: bool,
    /// Everything up to this is on its disk.
    pub durable: u64,
    /// Writes that do not count as done at this owner, above what the coordinator has settled, ascending, and why.
    pub not_last: Vec<(u64, NotLast)>,
}

/// Why a write is not the last one at an owner where the last write wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotLast {
    /// A newer one, of this time, stands beside it: written again with a newer time it will be.
    Behind(HybridTimestamp),
    /// One that had seen it came here before it did. This owner has it; but what it came after, it cannot be compared with here
    /// any more, so others have to.
    Superseded,
}

/// What an owner holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// [`Keyspaces`](crate::Keyspaces) in short.
    pub keyspaces: u64,
    /// The sender's present incarnation; `None` while it has none yet.
    pub current: Option<u32>,
    /// The newest life of every owner that the sender has heard of, in their order, its own included: what an earlier life of
    /// theirs has sent, the sender will not take any more.
    pub lives: Vec<u32>,
    /// Grows with every report of one incarnation: an older one says nothing.
    pub number: u64,
    /// What it has applied and has in its log, perhaps in memory only. What it lacks is to be sent.
    pub held: VersionVector,
    /// What is on its disk; `None` when that is all it holds.
    pub durable: Option<VersionVector>,
    /// The newest number of the receiver's reports that has come to the sender: this report was made after that one.
    pub echo: Option<u64>,
    /// Whether an answer is wanted at once.
    pub ask: bool,
    /// Whether a value that merges has seen a write here that no log tells of, and whose coordinator writes no more under that
    /// name: nothing is folded before all have such a value.
    pub strays: bool,
    /// While quorums of several epochs are needed: what is left to do before the newest one is enough.
    pub moving: Option<Moving>,
}

/// What an owner has to carry over before it may leave the epochs in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The owners, by their order, that have not confirmed every key which had seen more than the logs have brought.
    pub lacking: u64,
    /// Whether every key that is compared and set has been looked at through quorums of all these epochs.
    pub swept: bool,
    /// Whether somebody waits for a write that this owner orders: once it owns nothing, it could not say what became of it.
    pub waits: bool,
}

impl Report {
    /// What is on disk.
    #[must_use]
    pub fn durable(&self) -> &VersionVector {
        self.durable.as_ref().unwrap_or(&self.held)
    }

    /// What is held has been applied.
    pub(crate) fn holding(&self) -> Holding<'_> {
        Holding { held: &self.held, applied: &self.held, durable: self.durable() }
    }
}

/// A piece of the sender's state: what it has applied, every key, its audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Which transfer of the sender, for ever unique: the sender's incarnation, and a number.
    pub transfer: (OriginId, u64),
    /// Where the piece begins, in bytes.
    pub offset: u64,
    /// The piece.
    pub bytes: Bytes,
    /// Whether it is the last.
    pub last: bool,
}

/// The answer to a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceWanted {
    /// Of which transfer.
    pub transfer: (OriginId, u64),
    /// Where the next piece begins, in bytes; `None` when the transfer is not wanted, or is complete.
    pub offset: Option<u64>,
}

/// A question of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Which read of the coordinator's present life.
    pub read: u64,
    /// Which key.
    pub key: Bytes,
    /// What the coordinator has of it, in short: an owner that has the same need not send it.
    pub digest: u64,
}

/// An owner's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Which read.
    pub read: u64,
    /// What it has.
    pub answer: Answer,
}

/// What an owner has of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The same versions as the coordinator; and this is what the key has seen there.
    Same(VersionVector),
    /// Others: this is its copy.
    Copy(KeyCopy),
    /// It may have forgotten something, and cannot be counted.
    CatchingUp,
}

/// What a key is, by all that a coordinator has heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Which read.
    pub read: u64,
    /// Which key.
    pub key: Bytes,
    /// Its versions, and what they have seen.
    pub copy: KeyCopy,
}

/// What an owner misses of a key, for a node that stands in for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// The sender's incarnation.
    pub origin: OriginId,
    /// Which of its writes.
    pub sequence: u64,
    /// Which owner misses it.
    pub owner: NodeId,
    /// Which key.
    pub key: Bytes,
    /// Its versions with that write, and what they have seen.
    pub copy: KeyCopy,
}
