//! Sending writes to one peer: what has gone out, what it has confirmed, and what has to be read first.
//!
//! Invariant: writes of an origin leave in order; what is not confirmed within an exchange goes out again from where the peer
//! stands, so messages may be lost. A peer that has never told what it holds is sent nothing.

use std::collections::VecDeque;

use replikit_core::{OriginId, SequenceSet, Ticket, VersionVector};

use crate::transfer::Outgoing;

/// One that this replica sends writes to.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// The last sequence of each origin that has gone out.
    sent: VersionVector,
    /// What has gone out and is not confirmed: origin, last sequence, bytes.
    inflight: VecDeque<(OriginId, u64, usize)>,
    inflight_bytes: usize,
    /// What it held at the last exchange, and the number of the report that said so.
    held_before: (u64, VersionVector),
    /// It did not come forward since the last exchange: send whatever it lacks, whoever else should.
    pub(crate) repair: bool,
    /// A read of the log that is under way for it.
    pub(crate) reading: Option<(Ticket, OriginId)>,
    /// A snapshot on its way to it.
    pub(crate) outgoing: Option<Outgoing>,
}

impl Peer {
    /// The first sequence of an origin to send next, when the peer holds everything up to `held`.
    pub(crate) fn next(&self, origin: OriginId, held: u64) -> u64 {
        self.sent.base(origin).max(held) + 1
    }

    /// A batch goes out.
    pub(crate) fn sends(&mut self, origin: OriginId, last: u64, bytes: usize) {
        self.sent.insert_all(origin, &SequenceSet::up_to(last));
        self.inflight.push_back((origin, last, bytes));
        self.inflight_bytes += bytes;
    }

    pub(crate) const fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// Whether writes of this origin are on their way.
    pub(crate) fn is_sending(&self, origin: OriginId) -> bool {
        self.inflight.iter().any(|(sending, ..)| *sending == origin)
    }

    /// It holds this.
    pub(crate) fn confirms(&mut self, held: &VersionVector) {
        let bytes = &mut self.inflight_bytes;
        self.inflight.retain(|(origin, last, size)| {
            let confirmed = held.base(*origin) >= *last;
            if confirmed {
                *bytes -= size;
            }
            !confirmed
        });
    }

    /// Nothing that was sent counts as sent any more.
    pub(crate) fn go_back(&mut self) {
        self.sent = VersionVector::new();
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// An exchange later: if it says once more that it stands where it stood, although it lacks something, that is sent again.
    /// One that says nothing is sent nothing.
    pub(crate) fn exchange(&mut self, report: u64, held: &VersionVector, lacks: bool) {
        let (before, held_before) = &mut self.held_before;
        if *before == report {
            self.repair = false;
            return;
        }
        self.repair = lacks && *held == *held_before;
        *before = report;
        held_before.clone_from(held);
        if self.repair {
            self.go_back();
        }
    }
}
