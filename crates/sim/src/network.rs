//! The links between nodes: which are cut, how long a message takes, what is lost.
//!
//! Invariant: a message is carried by one connection; when that connection breaks, what is under way on it never arrives,
//! unless the settings let messages outlive it. Without reordering, a link is first in, first out.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::Time;

use crate::fault::{Fault, FaultCounts};
use crate::settings::{NetworkSettings, around};

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    // How many netsplits and cuts lie on it.
    cuts: u32,
    connection: u32,
    last_arrival: Time,
}

/// How the nodes fall apart in a netsplit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetsplitShape {
    /// Two sides that do not see each other (N4).
    TwoSides,
    /// Two sides and one node that sees both (N7).
    Bridge,
    /// Each node sees only its two neighbours in a ring (N8).
    Ring,
    /// Each node sees only its neighbours in a chain (N9).
    Chain,
    /// All see only one node (N10).
    Hub,
}

impl NetsplitShape {
    const ALL: [Self; 5] = [Self::TwoSides, Self::Bridge, Self::Ring, Self::Chain, Self::Hub];
}

/// One message under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) at: Time,
    pub(crate) connection: u32,
}

/// All links.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    nodes: usize,
    links: Vec<Link>,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, links: vec![Link::default(); nodes * nodes] }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }

    /// When a message arrives, if it does; call it twice for one that is doubled.
    pub(crate) fn send(
        &mut self,
        (from, to): (usize, usize),
        now: Time,
        rng: &mut Rng,
        settings: &NetworkSettings,
        counts: &mut FaultCounts,
    ) -> Option<Delivery> {
        let (reorder, loss) = (settings.reorder, u32::from(settings.loss_per_mille));
        if self.link(from, to).cuts > 0 {
            return None;
        }
        if loss > 0 && rng.u32(0..1000) < loss {
            counts[Fault::Loss] += 1;
            return None;
        }
        let delay = around(rng, settings.delay, settings.heavy_tail);
        if delay > settings.delay * 10 {
            counts[Fault::LongDelay] += 1;
        }
        let link = self.link(from, to);
        let mut at = now + delay;
        if at < link.last_arrival {
            if reorder {
                counts[Fault::Reorder] += 1;
            } else {
                at = link.last_arrival;
            }
        }
        link.last_arrival = link.last_arrival.max(at);
        Some(Delivery { at, connection: link.connection })
    }

    /// Whether what was sent over this connection still arrives.
    pub(crate) fn arrives(&mut self, from: usize, to: usize, connection: u32, settings: &NetworkSettings) -> bool {
        let link = self.link(from, to);
        link.cuts == 0 && (link.connection == connection || settings.outlives_crash)
    }

    pub(crate) fn is_cut(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).cuts > 0
    }

    /// The connection between two nodes breaks, in both directions.
    pub(crate) fn reset(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            let link = self.link(from, to);
            link.connection += 1;
            link.last_arrival = Time::ZERO;
        }
    }

    /// Cuts links; returns which, for [`Network::mend`].
    pub(crate) fn split(&mut self, rng: &mut Rng) -> Vec<(usize, usize)> {
        let n = self.nodes;
        let shape = NetsplitShape::ALL[rng.usize(0..NetsplitShape::ALL.len())];
        let mut order: Vec<usize> = (0..n).collect();
        rng.shuffle(&mut order);
        let side = rng.usize(1..n.max(2));
        let place: Vec<usize> = (0..n).map(|node| order.iter().position(|&o| o == node).expect("a shuffle")).collect();
        let apart = |a: usize, b: usize| {
            let (a, b) = (place[a], place[b]);
            match shape {
                NetsplitShape::TwoSides => (a < side) != (b < side),
                NetsplitShape::Bridge => a != 0 && b != 0 && (a <= side) != (b <= side),
                NetsplitShape::Ring => !matches!(a.abs_diff(b), 1) && a.abs_diff(b) != n - 1,
                NetsplitShape::Chain => a.abs_diff(b) != 1,
                NetsplitShape::Hub => a != 0 && b != 0,
            }
        };
        let cut: Vec<(usize, usize)> =
            (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|&(a, b)| a != b && apart(a, b)).collect();
        self.cut(&cut);
        cut
    }

    /// Cuts these links.
    pub(crate) fn cut(&mut self, links: &[(usize, usize)]) {
        for &(from, to) in links {
            self.link(from, to).cuts += 1;
        }
    }

    /// Undoes a cut.
    pub(crate) fn mend(&mut self, links: &[(usize, usize)]) {
        for &(from, to) in links {
            let cuts = &mut self.link(from, to).cuts;
            *cuts = cuts.saturating_sub(1);
        }
    }

    /// Undoes all cuts.
    pub(crate) fn mend_all(&mut self) {
        for link in &mut self.links {
            link.cuts = 0;
        }
    }

    /// A short delay for what is no message: hints about links, requests of clients.
    pub(crate) fn hint_delay(rng: &mut Rng, settings: &NetworkSettings) -> Duration {
        around(rng, settings.delay, false)
    }
}
