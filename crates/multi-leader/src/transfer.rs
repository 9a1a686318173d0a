//! A peer's whole state on its way in: see [`Outgoing`](replikit_core::dotted::Outgoing) for the other side.

use replikit_core::{NodeId, OriginId, Time};

use crate::snapshot::Incoming;

/// A transfer, at the receiver.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// It has grown beyond the limit, and its content was dropped: another one is not begun at once.
    pub(crate) refused: bool,
    pub(crate) from: NodeId,
    pub(crate) transfer: (OriginId, u64),
    pub(crate) offset: u64,
    pub(crate) content: Incoming,
    pub(crate) heard: Time,
}
