//! Messages on their way: encoded, carried as bytes, decoded.
//!
//! Invariant: what a replica receives went through the codec; what does not decode closes its connection.

use core::time::Duration;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use replikit_core::{ClusterId, Input, Link, Message, NodeId, Replica};
use xxhash_rust::xxh3::xxh3_64;

use super::World;
use super::echo::Echo;
use super::plan::Planned;
use crate::chronicle::Happening;
use crate::fault::{Fault, FaultCounts};
use crate::frame;
use crate::network::Network;
use crate::storage::SimStorage;
use crate::subject::Subject;
use crate::trace::Step;

/// A message that arrives.
pub(super) struct Arrival {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) sender_life: u32,
    pub(super) hash: u64,
    pub(super) message: u64,
    pub(super) frame: Bytes,
}

/// How long a doubled message may linger.
const LINGERS_MICROS_MAX: u64 = 1_500_000;

impl<R: Replica, S: SimStorage> World<R, S> {
    /// A message has come over a connection, if that is still there.
    pub(super) fn arrive(
        &mut self,
        arrival: Arrival,
        connection: u32,
        subject: &mut impl Subject<R>,
    ) -> Result<(), String> {
        let (from, to) = (arrival.from, arrival.to);
        if self.nodes[to].replica.is_none() || !self.network.arrives(from, to, connection, &self.settings.network) {
            return Ok(());
        }
        self.come_in(arrival, subject)
    }

    /// A live node receives a message.
    pub(super) fn come_in(&mut self, arrival: Arrival, subject: &mut impl Subject<R>) -> Result<(), String> {
        let Arrival { from, to, sender_life, hash, message, frame } = arrival;
        if self.nodes[from].life != sender_life {
            self.counts[Fault::FormerIncarnation] += 1;
        }
        self.trace.note(Step::Arrive, self.now, to, hash);
        let (sender, receiver) = (self.nodes[from].id, self.nodes[to].id);
        match frame::decode(frame, self.cluster) {
            Ok(decoded) => {
                if let Some(chronicle) = &mut self.chronicle {
                    chronicle.note(self.now, receiver, Happening::Arrived { message, from: sender });
                }
                if self.nodes[to].inbox.len() >= self.settings.process.inbox_max {
                    self.counts[Fault::QueueFull] += 1;
                    return self.attempt(to, subject);
                }
                self.deliver(to, Input::Message { from: sender, message: decoded }, subject)
            }
            // Damage: the transport closes the connection, as a real one does after a frame that it cannot read.
            Err(_) => {
                if let Some(chronicle) = &mut self.chronicle {
                    chronicle.note(self.now, receiver, Happening::Refused { message, from: sender });
                }
                self.network.reset(from, to);
                Ok(())
            }
        }
    }

    pub(super) fn send(&mut self, from: usize, to: NodeId, message: &Message<R::Head>) -> Result<(), String> {
        let Some(to) = (to.0 as usize).checked_sub(1).filter(|&at| at < self.nodes.len()) else {
            return Err(format!("messages_have_receivers: a message to node {to}, which does not exist"));
        };
        if to == from {
            return Err("messages_have_receivers: a message to itself".to_owned());
        }
        let mut frame = frame::encode(message, self.cluster, &mut self.scratch);
        let hash = xxh3_64(&frame);
        self.trace.note(Step::Send, self.now, from, hash);
        self.messages += 1;
        let number = self.messages;
        if let Some(chronicle) = &mut self.chronicle {
            let text = format!("{:?}, {} batches", message.head, message.batches.as_slice().len());
            let to = self.nodes[to].id;
            chronicle.note(self.now, self.nodes[from].id, Happening::Sent { message: number, to, text });
        }
        let kind = frame.get(frame::HEAD_AT).copied().unwrap_or_default();
        self.kinds[usize::from(kind)] = true;
        let (network, rng) = (&self.settings.network, &mut self.rng);
        let copies = if network.duplicate_per_mille > 0 && rng.u16(0..1000) < network.duplicate_per_mille {
            self.counts[Fault::Duplication] += 1;
            2
        } else {
            1
        };
        if network.flip_per_mille > 0 && rng.u16(0..1000) < network.flip_per_mille {
            frame = damage(&frame, rng, &mut self.counts);
        }
        let hostile = network.hostile_per_mille > 0 && rng.u16(0..1000) < network.hostile_per_mille;
        let sender_life = self.nodes[from].life;
        let bytes = frame.len();
        self.bytes += bytes as u64;
        let ends = (from as u16, to as u16);
        if network.echo_per_mille > 0 && rng.u16(0..1000) < network.echo_per_mille {
            let echo = Echo { from: ends.0, sender_life, hash, message: number, frame: frame.clone() };
            self.echoes.remember(to, echo, rng);
        }
        for copy in 0..copies {
            let (network, counts) = (&self.settings.network, &mut self.counts);
            let mut sent = self.network.send((from, to), (bytes, kind), self.now, &mut self.rng, network, counts);
            // A copy may linger until its sender leads, or follows, in another term.
            if let Some(delivery) = &mut sent
                && copy > 0
                && network.outlives_crash
                && self.rng.u8(0..4) == 0
            {
                counts[Fault::LongDelay] += 1;
                delivery.at = delivery.at + Duration::from_micros(self.rng.u64(0..LINGERS_MICROS_MAX));
            }
            if let Some(delivery) = sent {
                let (connection, frame) = (delivery.connection, frame.clone());
                let planned =
                    Planned::Arrive { from: ends.0, to: ends.1, connection, sender_life, hash, message: number, frame };
                self.plan_at(delivery.at, planned);
            }
        }
        if hostile && !self.network.is_cut(from, to) {
            let frame = self.hostile_frame(message);
            let connection = self.network.connection(from, to);
            let after = Network::hint_delay(&mut self.rng, &self.settings.network);
            self.plan(
                after,
                Planned::Arrive { from: ends.0, to: ends.1, connection, sender_life, hash, message: 0, frame },
            );
        }
        Ok(())
    }

    /// What somebody sends who is no member: a message of another cluster, or random bytes.
    fn hostile_frame(&mut self, message: &Message<R::Head>) -> Bytes {
        if self.rng.bool() {
            self.counts[Fault::ForeignCluster] += 1;
            let foreign = ClusterId::from_u64(self.cluster.to_u64() ^ self.rng.u64(1..));
            return frame::encode(message, foreign, &mut self.scratch);
        }
        self.counts[Fault::HostileFrame] += 1;
        let mut bytes = vec![0; self.rng.usize(0..200)];
        self.rng.fill(&mut bytes);
        bytes.into()
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

/// Flips a bit, cuts the end off, or makes a length absurd.
fn damage(frame: &Bytes, rng: &mut Rng, counts: &mut FaultCounts) -> Bytes {
    let mut damaged = BytesMut::from(&frame[..]);
    match rng.u8(0..4) {
        0 => {
            counts[Fault::Truncated] += 1;
            damaged.truncate(rng.usize(0..frame.len()));
        }
        1 => {
            counts[Fault::Oversize] += 1;
            let at = frame::HEAD_AT - if rng.bool() { 4 } else { 8 };
            damaged[at..at + 4].copy_from_slice(&rng.u32(1 << 30..).to_le_bytes());
        }
        _ => {
            counts[Fault::Flip] += 1;
            let at = rng.usize(0..frame.len());
            damaged[at] ^= 1 << rng.u32(0..8);
        }
    }
    damaged.freeze()
}
