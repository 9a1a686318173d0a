//! Messages on their way: encoded, carried as bytes, decoded.
//!
//! Invariant: what a replica receives went through the codec; what does not decode closes its connection.

use bytes::{Bytes, BytesMut};
use replikit_core::{Input, Link, NodeId, Replica};

use super::World;
use super::plan::Planned;
use crate::fault::Fault;
use crate::frame;
use crate::network::Network;
use crate::storage::SimStorage;
use crate::subject::Subject;
use crate::trace::Step;

impl<R: Replica, S: SimStorage> World<R, S> {
    pub(super) fn arrive(
        &mut self,
        (from, to): (usize, usize),
        connection: u32,
        sender_life: u32,
        frame: Bytes,
        subject: &mut impl Subject<R>,
    ) -> Result<(), String> {
        if self.nodes[to].replica.is_none() || !self.network.arrives(from, to, connection, &self.settings.network) {
            return Ok(());
        }
        if self.nodes[from].life != sender_life {
            self.counts[Fault::FormerIncarnation] += 1;
        }
        self.trace.note_bytes(Step::Arrive, self.now, to, &frame);
        match frame::decode(frame, self.cluster) {
            Ok(message) => {
                let from = self.nodes[from].id;
                self.deliver(to, Input::Message { from, message }, subject)
            }
            // A flipped bit: the transport closes the connection, as a real one does after a frame that it cannot read.
            Err(_) => {
                self.network.reset(from, to);
                Ok(())
            }
        }
    }

    pub(super) fn send(
        &mut self,
        from: usize,
        to: NodeId,
        message: &replikit_core::Message<R::Head>,
    ) -> Result<(), String> {
        let Some(to) = (to.0 as usize).checked_sub(1).filter(|&at| at < self.nodes.len()) else {
            return Err(format!("a message to node {to}, which does not exist"));
        };
        if to == from {
            return Err("a message to itself".to_owned());
        }
        let mut frame = frame::encode(message, &mut self.scratch);
        self.trace.note_bytes(Step::Send, self.now, from, &frame);
        let (network, rng) = (&self.settings.network, &mut self.rng);
        let copies = if network.duplicate_per_mille > 0 && rng.u16(0..1000) < network.duplicate_per_mille {
            self.counts[Fault::Duplication] += 1;
            2
        } else {
            1
        };
        let batches_start = frame::batches_start(&frame);
        if batches_start < frame.len() && network.flip_per_mille > 0 && rng.u16(0..1000) < network.flip_per_mille {
            // Behind the length of the first batch: what is flipped is the batch's own bytes.
            let at = rng.usize(batches_start + 4..frame.len());
            let mut flipped = BytesMut::from(&frame[..]);
            flipped[at] ^= 1 << rng.u32(0..8);
            frame = flipped.freeze();
            self.counts[Fault::Flip] += 1;
        }
        let sender_life = self.nodes[from].life;
        for _ in 0..copies {
            let delivery =
                self.network.send((from, to), self.now, &mut self.rng, &self.settings.network, &mut self.counts);
            if let Some(delivery) = delivery {
                let (connection, frame) = (delivery.connection, frame.clone());
                self.plan_at(delivery.at, Planned::Arrive { from, to, connection, sender_life, frame });
            }
        }
        Ok(())
    }

    /// Tells the receiving end of each link how the link is, if it can hear of it and then only sometimes: it is a hint.
    pub(super) fn link_hints(&mut self, links: &[(usize, usize)], link: Link) {
        for &(from, to) in links {
            if self.network.is_cut(from, to) || self.nodes[to].replica.is_none() {
                continue;
            }
            let after = Network::hint_delay(&mut self.rng, &self.settings.network);
            self.plan(after, Planned::Peer { to, of: from, link });
        }
    }
}
