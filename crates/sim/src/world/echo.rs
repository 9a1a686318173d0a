//! What the network may deliver once more: some of the messages that were ever sent to each node.
//!
//! Invariant: nothing comes in that was not sent to that node by that sender. A network that delays without bound and doubles
//! messages may do this at any time; it does it when a node has a new life or a new part, for which the message was not meant.

use core::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::Replica;

use super::World;
use super::message::Arrival;
use super::plan::Planned;
use crate::fault::Fault;
use crate::settings::around;
use crate::storage::SimStorage;
use crate::subject::Subject;

/// Most messages that are remembered for a node.
const REMEMBERED_MAX: usize = 32;
/// Most messages that come in once more at a time.
const AT_ONCE_MAX: usize = 24;

/// When they do, on average; some much later.
const SOON: Duration = Duration::from_millis(8);

/// A message that was sent.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    pub(super) from: u16,
    pub(super) sender_life: u32,
    pub(super) hash: u64,
    pub(super) message: u64,
    pub(super) frame: Bytes,
}

/// Messages by their receivers.
#[derive(Debug)]
pub(super) struct Echoes(Vec<Vec<Echo>>);

impl Echoes {
    pub(super) fn new(nodes: usize) -> Self {
        Self(vec![Vec::new(); nodes])
    }

    /// Keeps a message; of many, newer ones more likely than older ones.
    pub(super) fn remember(&mut self, to: usize, echo: Echo, rng: &mut Rng) {
        let kept = &mut self.0[to];
        if kept.len() < REMEMBERED_MAX {
            kept.push(echo);
        } else {
            kept[rng.usize(0..REMEMBERED_MAX)] = echo;
        }
    }
}

impl<R: Replica, S: SimStorage> World<R, S> {
    /// Some of what was sent to a node comes in again, at once or a little later.
    pub(super) fn echo(&mut self, to: usize) {
        if !self.faults || self.echoes.0[to].is_empty() {
            return;
        }
        for _ in 0..self.rng.usize(0..=AT_ONCE_MAX) {
            let known = &self.echoes.0[to];
            let echo = Box::new(known[self.rng.usize(0..known.len())].clone());
            let after = around(&mut self.rng, SOON, true);
            self.plan(after, Planned::Echo { to, echo });
        }
    }

    /// It was held up somewhere on its way: a cut behind it does not stop it.
    pub(super) fn echoes(&mut self, to: usize, echo: Echo, subject: &mut impl Subject<R>) -> Result<(), String> {
        let Echo { from, sender_life, hash, message, frame } = echo;
        if !self.settings.network.outlives_crash || self.nodes[to].replica.is_none() {
            return Ok(());
        }
        self.counts[Fault::Echo] += 1;
        let from = usize::from(from);
        self.come_in(Arrival { from, to, sender_life, hash, message, frame }, subject)
    }
}
