//! A replica's whole state on its way to a peer that lacks more than the log has, or more than the state is worth.
//!
//! Invariant: one piece is under way at a time, and is sent again with each exchange until its receiver wants the next; a
//! transfer that either side has forgotten begins anew.

use core::fmt;

use crate::{OriginId, SnapshotSource, WriteId};
use bytes::Bytes;

/// A transfer, at the sender.
pub struct Outgoing {
    /// Which, for ever unique: the sender's incarnation, and a number.
    pub transfer: (OriginId, u64),
    source: Box<dyn SnapshotSource>,
    /// It holds own writes up to this storage action, which must be durable first.
    pub after: WriteId,
    offset: u64,
    piece: Option<(Bytes, bool)>,
    ahead: Option<Bytes>,
    /// Whether the piece has been sent since the last exchange.
    pub fresh: bool,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("transfer", &self.transfer)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// A transfer of what the source gives, which may leave once the storage action `after` is durable.
    #[must_use]
    pub fn new(transfer: (OriginId, u64), source: Box<dyn SnapshotSource>, after: WriteId) -> Self {
        Self { transfer, source, after, offset: 0, piece: None, ahead: None, fresh: false }
    }

    /// The piece to send: where it begins, its bytes, and whether it is the last.
    pub fn piece(&mut self, bytes_max: usize) -> (u64, Bytes, bool) {
        if self.piece.is_none() {
            let bytes = self.ahead.take().or_else(|| self.source.next(bytes_max)).unwrap_or_default();
            self.ahead = self.source.next(bytes_max);
            self.piece = Some((bytes, self.ahead.is_none()));
        }
        let (bytes, last) = self.piece.clone().expect("there is one now");
        (self.offset, bytes, last)
    }

    /// The receiver wants the piece at this offset; returns whether that can be had. One that is wanted twice goes out once: else
    /// each message that came twice would double all that follow.
    pub fn wanted(&mut self, offset: u64) -> bool {
        let Some((bytes, last)) = &self.piece else { return offset == self.offset };
        if offset == self.offset {
            return true;
        }
        if *last || offset != self.offset + bytes.len() as u64 {
            return false;
        }
        self.offset = offset;
        self.piece = None;
        self.fresh = false;
        true
    }
}
