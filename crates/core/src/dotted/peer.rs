//! Sending writes to one peer: what has gone out, what it has confirmed, and what has to be read first.
//!
//! Invariant: writes of an origin leave in order; what is not confirmed within an exchange goes out again from where the peer
//! stands, so messages may be lost. A peer that has never told what it holds is sent nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Outgoing;
use crate::{OriginId, SequenceSet, Ticket, VersionVector};

/// One that this replica sends writes to.
#[derive(Debug, Default)]
pub struct Peer {
    /// The last sequence of each origin that has gone out.
    sent: VersionVector,
    /// What has gone out and is not confirmed: origin, last sequence, bytes.
    inflight: VecDeque<(OriginId, u64, usize)>,
    inflight_bytes: usize,
    /// What it held at the last exchange, and the number of the report that said so.
    held_before: (u64, VersionVector),
    /// What it missed of each origin since the last exchange: the furthest point up to where it then held its writes.
    missing: BTreeMap<OriginId, u64>,
    /// It did not come forward since the last exchange: send whatever it lacks, whoever else should.
    pub repair: bool,
    /// Origins of which it lacks something and got nothing since the last exchange, whatever it got of others: the same of these.
    stuck: BTreeSet<OriginId>,
    /// A read of the log that is under way for it.
    pub reading: Option<(Ticket, OriginId)>,
    /// A snapshot on its way to it.
    pub outgoing: Option<Outgoing>,
}

impl Peer {
    /// The first sequence of an origin to send next, when the peer holds everything up to `held`.
    #[must_use]
    pub fn next(&self, origin: OriginId, held: u64) -> u64 {
        self.sent.base(origin).max(held) + 1
    }

    /// A batch goes out.
    pub fn sends(&mut self, origin: OriginId, last: u64, bytes: usize) {
        self.sent.insert_all(origin, &SequenceSet::up_to(last));
        self.inflight.push_back((origin, last, bytes));
        self.inflight_bytes += bytes;
    }

    /// Bytes that have gone out and are not confirmed.
    #[must_use]
    pub const fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// Whether writes of this origin are on their way.
    #[must_use]
    pub fn is_sending(&self, origin: OriginId) -> bool {
        self.inflight.iter().any(|(sending, ..)| *sending == origin)
    }

    /// It holds this.
    pub fn confirms(&mut self, held: &VersionVector) {
        let bytes = &mut self.inflight_bytes;
        self.inflight.retain(|(origin, last, size)| {
            let confirmed = held.base(*origin) >= *last;
            if confirmed {
                *bytes -= size;
            }
            !confirmed
        });
    }

    /// It holds an origin's writes up to this.
    pub fn confirms_up_to(&mut self, origin: OriginId, held: u64) {
        let bytes = &mut self.inflight_bytes;
        self.inflight.retain(|(sending, last, size)| {
            let confirmed = *sending == origin && *last <= held;
            if confirmed {
                *bytes -= size;
            }
            !confirmed
        });
    }

    /// It holds an origin's writes up to this and has missed what came next: that goes out again. Says whether it does:
    /// once for each place until the next exchange, however often it is said, and not for a place before one that was said
    /// already: messages that overtake each other would have the same sent again and again.
    pub fn missed(&mut self, origin: OriginId, held: u64) -> bool {
        let sent = self.sent.base(origin);
        if sent <= held || self.missing.get(&origin).is_some_and(|at| *at >= held) {
            return false;
        }
        self.missing.insert(origin, held);
        self.go_back_to(origin, held);
        true
    }

    /// Of this origin nothing counts as sent behind what it holds.
    fn go_back_to(&mut self, origin: OriginId, held: u64) {
        self.sent.retire(origin);
        self.sent.insert_all(origin, &SequenceSet::up_to(held));
        let bytes = &mut self.inflight_bytes;
        self.inflight.retain(|(sending, _, size)| {
            if *sending == origin {
                *bytes -= size;
            }
            *sending != origin
        });
    }

    /// Whether it is to be sent what it lacks of an origin, whoever else should.
    #[must_use]
    pub fn is_repaired(&self, origin: OriginId) -> bool {
        self.repair || self.stuck.contains(&origin)
    }

    /// Whether there is any such origin.
    #[must_use]
    pub fn needs_repair(&self) -> bool {
        self.repair || !self.stuck.is_empty()
    }

    /// Nothing that was sent counts as sent any more.
    pub fn go_back(&mut self) {
        self.sent = VersionVector::new();
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// An exchange later: if it says once more that it stands where it stood, in all or with one origin, although it lacks something of
    /// what is held here, that is sent again. One that says nothing is sent nothing.
    pub fn exchange(&mut self, report: u64, held: &VersionVector, here: &VersionVector) {
        self.missing.clear();
        self.stuck.clear();
        let (before, held_before) = &mut self.held_before;
        if *before == report {
            self.repair = false;
            return;
        }
        let lacks = |origin: &OriginId| here.base(*origin) > held.base(*origin);
        self.repair = *held == *held_before && here.origins().any(|origin| lacks(&origin));
        // The first report says where it stands, not that it stays there.
        if *before > 0 && !self.repair {
            let stands = |origin: &OriginId| held.base(*origin) == held_before.base(*origin);
            self.stuck = here.origins().filter(|origin| lacks(origin) && stands(origin)).collect();
        }
        *before = report;
        held_before.clone_from(held);
        if self.repair {
            self.go_back();
        }
        for origin in self.stuck.clone() {
            self.go_back_to(origin, held.base(origin));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 248 of leaderless replication, as it was then: answers that overtook each other had everything sent again, each
    /// time by turns.
    #[test]
    fn an_answer_that_was_overtaken_has_nothing_sent_again() {
        let (origin, mut peer) = (OriginId(1), Peer::default());
        (1..=4).for_each(|last| peer.sends(origin, last, 1));
        assert!(peer.missed(origin, 2));
        assert_eq!(peer.next(origin, 0), 3);
        (3..=4).for_each(|last| peer.sends(origin, last, 1));
        assert!(!peer.missed(origin, 1) && !peer.missed(origin, 2), "both were said before");
        assert_eq!(peer.next(origin, 0), 5);
        assert!(peer.missed(origin, 3), "it is further now, and lacks what comes next");
        peer.sends(origin, 4, 1);
        peer.exchange(1, &VersionVector::new(), &VersionVector::new());
        assert!(peer.missed(origin, 1), "an exchange later, what is said counts anew");
    }

    #[test]
    fn what_is_missed_goes_out_once_whatever_overtakes_what() {
        let (one, other) = (OriginId(1), OriginId(2));
        let mut peer = Peer::default();
        let again = |peer: &mut Peer, origin, held| {
            peer.sends(origin, 100, 1);
            peer.missed(origin, held)
        };
        assert!(again(&mut peer, one, 10));
        assert!(again(&mut peer, other, 5), "another origin");
        assert!(again(&mut peer, one, 20), "further on");
        for held in [10, 20, 10, 20] {
            assert!(!again(&mut peer, one, held), "said before, and on its way again");
        }
        peer.exchange(1, &VersionVector::new(), &up_to(&[(one, 100)]));
        assert!(again(&mut peer, one, 20), "what went out again was lost, too");
    }

    fn up_to(held: &[(OriginId, u64)]) -> VersionVector {
        let mut vector = VersionVector::new();
        for (origin, last) in held {
            vector.insert_all(*origin, &SequenceSet::up_to(*last));
        }
        vector
    }

    #[test]
    fn an_origin_that_stands_is_sent_again_however_others_come_forward() {
        let (one, other) = (OriginId(1), OriginId(2));
        let mut peer = Peer::default();
        peer.sends(one, 9, 1);
        peer.exchange(1, &up_to(&[(other, 10)]), &up_to(&[(one, 9), (other, 20)]));
        assert!(!peer.needs_repair(), "this is where it stands");
        peer.exchange(2, &up_to(&[(other, 30)]), &up_to(&[(one, 9), (other, 40)]));
        assert!(peer.is_repaired(one) && !peer.is_repaired(other));
        assert_eq!(peer.next(one, 0), 1, "nothing of it counts as sent");
        peer.exchange(3, &up_to(&[(one, 5), (other, 50)]), &up_to(&[(one, 9), (other, 60)]));
        assert!(!peer.needs_repair(), "both come forward");
        peer.exchange(3, &up_to(&[(one, 5), (other, 50)]), &up_to(&[(one, 9), (other, 60)]));
        assert!(!peer.needs_repair(), "it says nothing");
        peer.exchange(4, &up_to(&[(one, 5), (other, 50)]), &up_to(&[(one, 9), (other, 60)]));
        assert!(peer.is_repaired(one) && peer.is_repaired(other), "all of it stands");
    }
}
