//! What the groups of a node say to a peer in one round, gathered into one message.
//!
//! Invariant: the parts to a peer keep the order in which they were said; the batches lie beside the head in the order of
//! the parts, each part says how many are its own.

use std::collections::BTreeMap;

use replikit_core::{Batches, GroupId, Message, NodeId};
use serde::{Deserialize, Serialize};

/// Most parts of one message; then another one is begun.
pub const FRAME_PARTS_MAX: usize = 1024;
/// A message is sent once its batches have so many bytes.
pub const FRAME_BATCH_BYTES_MAX: usize = 1 << 20;

/// What one group says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part<H> {
    /// Which group; the receiver's group of that id is meant.
    pub group: GroupId,
    /// How many of the message's batches belong to it.
    pub batches: u32,
    /// The group's own head.
    pub head: H,
}

/// The head of a message between containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupsHead<H> {
    /// What each group says, in order; nothing in a heartbeat of the node.
    pub parts: Vec<Part<H>>,
    /// The life of the sender's process, another one after each start; `None` when the sender does not tell.
    pub life: Option<u64>,
}

impl<H> GroupsHead<H> {
    /// Whether the parts claim exactly the batches that came with them.
    pub(crate) fn claims(&self, batches: &Batches) -> bool {
        let claimed: u64 = self.parts.iter().map(|part| u64::from(part.batches)).sum();
        claimed == batches.as_slice().len() as u64
    }
}

#[derive(Debug)]
pub(crate) struct Frame<H> {
    parts: Vec<Part<H>>,
    batches: Batches,
    batch_bytes: usize,
}

/// The messages of the round under way.
#[derive(Debug)]
pub(crate) struct Frames<H> {
    open: BTreeMap<NodeId, Frame<H>>,
}

impl<H> Frames<H> {
    pub(crate) const fn new() -> Self {
        Self { open: BTreeMap::new() }
    }

    /// Something has to be said to a node, if only that this one is there.
    pub(crate) fn open(&mut self, to: NodeId) -> &mut Frame<H> {
        self.open.entry(to).or_insert(Frame { parts: Vec::new(), batches: Batches::None, batch_bytes: 0 })
    }

    /// Adds what a group says; returns the message to this peer if that has made it large enough to go.
    pub(crate) fn add(&mut self, to: NodeId, group: GroupId, message: Message<H>) -> Option<Message<GroupsHead<H>>> {
        let frame = self.open(to);
        frame.batch_bytes += message.batches.bytes();
        let batches = message.batches.as_slice().len() as u32;
        frame.parts.push(Part { group, batches, head: message.head });
        if frame.parts.len() == 1 {
            frame.batches = message.batches;
        } else {
            message.batches.into_iter().for_each(|batch| frame.batches.push(batch));
        }
        let full = frame.parts.len() >= FRAME_PARTS_MAX || frame.batch_bytes >= FRAME_BATCH_BYTES_MAX;
        if full { self.open.remove(&to).map(Frame::into_message) } else { None }
    }

    /// Whether nothing is to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The round has ended: the next message to send.
    pub(crate) fn next(&mut self) -> Option<(NodeId, Message<GroupsHead<H>>)> {
        self.open.pop_first().map(|(to, frame)| (to, frame.into_message()))
    }
}

impl<H> Frame<H> {
    fn into_message(self) -> Message<GroupsHead<H>> {
        Message { head: GroupsHead { parts: self.parts, life: None }, batches: self.batches }
    }
}
