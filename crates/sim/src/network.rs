//! The links between nodes: which are cut, how long a message takes, what is lost.
//!
//! Invariant: a message is carried by one connection; when that connection breaks, what is under way on it never arrives,
//! unless the settings let messages outlive it. Without reordering, a link is first in, first out.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::Time;

use crate::fault::{Fault, FaultCounts};
use crate::settings::{NetworkSettings, around};

/// How late a message may still come after everything was mended.
const LATE_AT_MOST: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    // How many netsplits and cuts lie on it.
    cuts: u32,
    connection: u32,
    last_arrival: Time,
    // What is sent over it before arrives after.
    clogged_until: Time,
    // When its bandwidth is free again.
    busy_until: Time,
}

/// How the nodes fall apart in a netsplit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    TwoSides,
    ManySides,
    Bridge,
    Ring,
    Chain,
    Hub,
}

impl Shape {
    const ALL: [(Self, Fault); 6] = [
        (Self::TwoSides, Fault::TwoSides),
        (Self::ManySides, Fault::ManySides),
        (Self::Bridge, Fault::Bridge),
        (Self::Ring, Fault::Ring),
        (Self::Chain, Fault::Chain),
        (Self::Hub, Fault::Hub),
    ];
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
    // Messages whose head begins with this byte are dropped.
    muted: Option<u8>,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, links: vec![Link::default(); nodes * nodes], muted: None }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }

    /// When a message of so many bytes and this kind arrives, if it does; call it twice for one that is doubled.
    pub(crate) fn send(
        &mut self,
        (from, to): (usize, usize),
        (bytes, kind): (usize, u8),
        now: Time,
        rng: &mut Rng,
        settings: &NetworkSettings,
        counts: &mut FaultCounts,
    ) -> Option<Delivery> {
        let (reorder, loss) = (settings.reorder, u32::from(settings.loss_per_mille));
        let muted = self.muted;
        let link = self.link(from, to);
        if link.cuts > 0 {
            return None;
        }
        if muted == Some(kind) {
            counts[Fault::KindDropped] += 1;
            return None;
        }
        if loss > 0 && rng.u32(0..1000) < loss {
            counts[Fault::Loss] += 1;
            return None;
        }
        let delay = match settings.links.get(from).and_then(|links| links.get(to)) {
            Some(exact) => *exact + Duration::from_nanos(rng.u64(0..=settings.jitter.as_nanos() as u64)),
            None => around(rng, settings.delay, settings.heavy_tail),
        };
        if settings.links.is_empty() && delay > settings.delay * 10 {
            counts[Fault::LongDelay] += 1;
        }
        let mut begins = now;
        if settings.bytes_per_ms > 0 {
            begins = now.max(link.busy_until);
            let waits = begins.since(now);
            if waits > settings.queue_max {
                counts[Fault::QueueFull] += 1;
                return None;
            }
            if !waits.is_zero() {
                counts[Fault::Bandwidth] += 1;
            }
            let takes = bytes as u64 * 1_000_000 / u64::from(settings.bytes_per_ms);
            begins = begins + Duration::from_nanos(takes);
            link.busy_until = begins;
        }
        let mut at = begins + delay;
        if at < link.clogged_until {
            at = link.clogged_until + delay;
        }
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

    pub(crate) fn connection(&mut self, from: usize, to: usize) -> u32 {
        self.link(from, to).connection
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
            link.busy_until = Time::ZERO;
        }
    }

    /// Cuts links in one of the shapes of netsplits; returns which, for [`Network::mend`].
    pub(crate) fn split(&mut self, rng: &mut Rng, counts: &mut FaultCounts) -> Vec<(usize, usize)> {
        let n = self.nodes;
        let (shape, fault) = Shape::ALL[rng.usize(0..Shape::ALL.len())];
        let mut order: Vec<usize> = (0..n).collect();
        rng.shuffle(&mut order);
        let side = rng.usize(1..n.max(2));
        let sides = rng.usize(3..=n.max(3));
        let mut place = vec![0; n];
        for (at, &node) in order.iter().enumerate() {
            place[node] = at;
        }
        let apart = |a: usize, b: usize| {
            let (a, b) = (place[a], place[b]);
            match shape {
                Shape::TwoSides => (a < side) != (b < side),
                Shape::ManySides => a % sides != b % sides,
                Shape::Bridge => a != 0 && b != 0 && (a <= side) != (b <= side),
                Shape::Ring => !matches!(a.abs_diff(b), 1) && a.abs_diff(b) != n - 1,
                Shape::Chain => a.abs_diff(b) != 1,
                Shape::Hub => a != 0 && b != 0,
            }
        };
        let cut: Vec<(usize, usize)> =
            (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|&(a, b)| a != b && apart(a, b)).collect();
        if !cut.is_empty() && (shape != Shape::ManySides || n >= 3) {
            counts[fault] += 1;
        }
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

    /// What is sent to or from a node before this time arrives after it, in both directions.
    pub(crate) fn clog(&mut self, node: usize, until: Time) {
        for other in 0..self.nodes {
            for (from, to) in [(node, other), (other, node)] {
                let link = self.link(from, to);
                link.clogged_until = link.clogged_until.max(until);
            }
        }
    }

    /// Drops messages of this kind, or none any more.
    pub(crate) const fn mute(&mut self, kind: Option<u8>) {
        self.muted = kind;
    }

    /// Undoes all cuts, clogs and mutes. A connection that holds back what was sent for long breaks, and with it what is
    /// under way on it: otherwise it would hold back all that comes after, too.
    pub(crate) fn mend_all(&mut self, now: Time) {
        self.muted = None;
        for link in &mut self.links {
            (link.cuts, link.clogged_until, link.busy_until) = (0, Time::ZERO, Time::ZERO);
            if link.last_arrival > now + LATE_AT_MOST {
                link.last_arrival = Time::ZERO;
                link.connection += 1;
            }
        }
    }

    /// A short delay for what is no message: hints about links, requests of clients.
    pub(crate) fn hint_delay(rng: &mut Rng, settings: &NetworkSettings) -> Duration {
        around(rng, settings.delay, false)
    }
}
