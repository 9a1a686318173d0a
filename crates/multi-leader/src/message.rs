//! What replicas say to each other. Batches of writes ride beside the head.

use bytes::Bytes;
use replikit_core::dotted::Holding;
use replikit_core::{Epoch, NodeId, OriginId, VersionVector};
use serde::{Deserialize, Serialize};

/// The typed part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// Batches of writes; of each origin in order.
    Push(Push),
    /// What the sender holds.
    Report(Box<Report>),
    /// What others hold, as the sender was told: for peers that do not hear from them directly.
    Gossip(Vec<Hearsay>),
    /// A piece of the sender's state.
    Piece(Piece),
    /// Which piece the receiver wants next.
    PieceWanted(PieceWanted),
}

/// Batches ride beside this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The sender's membership epoch.
    pub epoch: Epoch,
    /// Whether a report is wanted as soon as they are received, not only once they are durable.
    pub prompt: bool,
}

/// What a replica holds: three sets of writes, of which usually all are the same.
///
/// All that the sender had in its log when it took over the epoch is durable before it tells of the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sender's membership epoch.
    pub epoch: Epoch,
    /// [`Keyspaces`](crate::Keyspaces) in short.
    pub keyspaces: u64,
    /// The sender's present incarnation; `None` while it has none yet.
    pub current: Option<u32>,
    /// Whether the sender has fenced in that epoch (`fence`): it has acknowledged nothing otherwise than by copies at those who
    /// stay but what it holds, and if it is to leave, will never hold more of its own.
    pub fenced: bool,
    /// The sender's first incarnation since it was last named as a member: those before it are closed.
    pub first: u32,
    /// Grows with every report of one incarnation: an older one says nothing.
    pub number: u64,
    /// What its log has, perhaps in memory only. What it lacks is to be sent.
    pub held: VersionVector,
    /// What it has applied; `None` when that is all it holds.
    pub applied: Option<VersionVector>,
    /// What is on its disk; `None` when that is all it holds.
    pub durable: Option<VersionVector>,
    /// The newest number of the receiver's reports that has come to the sender: this report was made after that one.
    pub echo: Option<u64>,
    /// Whether an answer is wanted at once.
    pub ask: bool,
}

impl Report {
    /// What has been applied.
    #[must_use]
    pub fn applied(&self) -> &VersionVector {
        self.applied.as_ref().unwrap_or(&self.held)
    }

    /// What is on disk.
    #[must_use]
    pub fn durable(&self) -> &VersionVector {
        self.durable.as_ref().unwrap_or(&self.held)
    }

    pub(crate) fn holding(&self) -> Holding<'_> {
        Holding { held: &self.held, applied: self.applied(), durable: self.durable() }
    }
}

/// A report of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearsay {
    /// Whose report it is.
    pub node: NodeId,
    /// It, without the parts that are between two nodes.
    pub report: Report,
}

/// A piece of the sender's state: what it has applied, every key, its audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The sender's membership epoch.
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
