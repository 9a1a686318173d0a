//! Faults that somebody plans, at a time and a place of their own, instead of drawing them; and what was sent.
//!
//! Invariant: what is done by hand lasts until it is undone by hand, or healed.

use core::time::Duration;

use replikit_core::{Link, NodeId, Replica, Time};

use super::World;
use super::plan::Planned;
use crate::fault::Fault;
use crate::storage::SimStorage;
use crate::subject::Subject;

/// What replicas sent to each other so far, whether it arrived or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Their bytes, as encoded.
    pub bytes: u64,
}

fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

impl<R: Replica, S: SimStorage> World<R, S> {
    /// What was sent so far.
    #[must_use]
    pub const fn traffic(&self) -> Traffic {
        Traffic { messages: self.messages, bytes: self.bytes }
    }

    /// Who became leader last, whether or not it still leads.
    #[must_use]
    pub fn elected_last(&self) -> Option<NodeId> {
        self.leader.map(|at| self.nodes[at].id)
    }

    /// Ends a process now; it stays down until [`World::restart`].
    pub fn kill(&mut self, node: NodeId, subject: &mut impl Subject<R>) {
        self.counts[Fault::Crash] += 1;
        self.crash_node(index(node), Duration::ZERO, subject);
        self.nodes[index(node)].dead = true;
        self.carry_out_clients();
    }

    /// Starts a process that was ended by [`World::kill`], on what its disk holds.
    pub fn restart(&mut self, node: NodeId) {
        let at = index(node);
        self.nodes[at].dead = false;
        let life = self.nodes[at].life;
        self.plan(Duration::ZERO, Planned::Restart { node: at, life });
    }

    /// Nothing gets from the first to the second of each pair any more.
    pub fn cut(&mut self, links: &[(NodeId, NodeId)]) {
        let links: Vec<(usize, usize)> = links.iter().map(|&(from, to)| (index(from), index(to))).collect();
        self.network.cut(&links);
    }

    /// Undoes [`World::cut`] of the same links.
    pub fn mend(&mut self, links: &[(NodeId, NodeId)]) {
        let links: Vec<(usize, usize)> = links.iter().map(|&(from, to)| (index(from), index(to))).collect();
        self.network.mend(&links);
        self.link_hints(&links, Link::Up);
    }

    /// Messages from the first to the second take so long from now on. Only where
    /// [`NetworkSettings::links`](crate::NetworkSettings::links) are given.
    pub fn set_delay(&mut self, from: NodeId, to: NodeId, delay: Duration) {
        let links = self.settings.network.links.get_mut(index(from));
        if let Some(known) = links.and_then(|links| links.get_mut(index(to))) {
            *known = delay;
        }
    }

    /// A process stands still for so long.
    pub fn pause(&mut self, node: NodeId, lasts: Duration) {
        self.counts[Fault::Pause] += 1;
        self.nodes[index(node)].busy_until = self.now + lasts;
    }

    /// A disk takes so many times as long from now on, at least 1.
    pub fn slow_disk(&mut self, node: NodeId, times: u32) {
        self.nodes[index(node)].slow_disk = times.max(1);
    }

    /// A wall clock jumps forward by so much.
    pub fn set_ahead(&mut self, node: NodeId, by: Duration) {
        self.counts[Fault::ClockForward] += 1;
        self.nodes[index(node)].clock.jump(by, false);
    }

    /// When the next event is due; `None` when nothing is planned.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        self.queue.peek().map(|entry| entry.at)
    }
}
