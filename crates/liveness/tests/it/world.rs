//! Detectors in virtual time, with a network that delays, loses and swallows.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{NodeId, Time};
use replikit_liveness::{Detector, Said, Settings};

/// What a node said of another one, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) at: Time,
    pub(crate) by: NodeId,
    pub(crate) of: NodeId,
    pub(crate) up: bool,
}

#[derive(Debug)]
enum Happens {
    Arrives { to: NodeId, probe: Bytes },
    Timer { node: NodeId },
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<NodeId, Detector>,
    all: Vec<NodeId>,
    events: BTreeMap<(Time, u64), Happens>,
    number: u64,
    random: Rng,
    /// One message of a hundred is lost, this many times.
    pub(crate) loss_percent: u32,
    /// Pairs from and to that nothing gets through between.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that stand still until then.
    pub(crate) paused: BTreeMap<NodeId, Time>,
    /// Nodes that do everything this much too late.
    pub(crate) late: BTreeMap<NodeId, Duration>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) sent: u64,
}

impl World {
    pub(crate) fn new(nodes: u32, seed: u64) -> Self {
        let all: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let mut world = Self {
            now: Time::ZERO,
            nodes: BTreeMap::new(),
            all: all.clone(),
            events: BTreeMap::new(),
            number: 0,
            random: Rng::with_seed(seed),
            loss_percent: 0,
            cut: BTreeSet::new(),
            paused: BTreeMap::new(),
            late: BTreeMap::new(),
            verdicts: Vec::new(),
            sent: 0,
        };
        for node in all {
            world.start(node, 1000);
        }
        world
    }

    pub(crate) fn start(&mut self, node: NodeId, generation: u64) {
        let settings = Settings::default();
        let mut detector = Detector::new(node, &self.all, generation, settings).expect("the defaults work");
        detector.start(self.now);
        self.nodes.insert(node, detector);
        self.drain(node);
    }

    pub(crate) fn crash(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Cuts these off from the rest, or heals that.
    pub(crate) fn split(&mut self, side: &[NodeId]) {
        for &one in side {
            for &other in self.all.iter().filter(|node| !side.contains(node)) {
                self.cut.extend([(one, other), (other, one)]);
            }
        }
    }

    fn push(&mut self, at: Time, happens: Happens) {
        self.number += 1;
        self.events.insert((at, self.number), happens);
    }

    fn drain(&mut self, node: NodeId) {
        let Some(detector) = self.nodes.get_mut(&node) else { return };
        let said: Vec<Said> = core::iter::from_fn(|| detector.poll()).collect();
        let deadline = detector.deadline();
        for said in said {
            match said {
                Said::Send(to, probe) => {
                    self.sent += 1;
                    let lost = self.random.u32(..100) < self.loss_percent || self.cut.contains(&(node, to));
                    let delay = Duration::from_micros(self.random.u64(200..2000));
                    if !lost {
                        self.push(self.now + delay, Happens::Arrives { to, probe });
                    }
                }
                Said::Up(of) => self.verdicts.push(Verdict { at: self.now, by: node, of, up: true }),
                Said::Down(of) => self.verdicts.push(Verdict { at: self.now, by: node, of, up: false }),
            }
        }
        if let Some(deadline) = deadline {
            self.push(deadline.max(self.now), Happens::Timer { node });
        }
    }

    /// Runs for so long.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, number), happens) = entry.remove_entry();
            let node = match &happens {
                Happens::Arrives { to, .. } => *to,
                Happens::Timer { node } => *node,
            };
            if let Some(&awake) = self.paused.get(&node).filter(|awake| **awake > at) {
                self.events.insert((awake, number), happens);
                continue;
            }
            self.now = at;
            let now = at + self.late.get(&node).copied().unwrap_or_default();
            let Some(detector) = self.nodes.get_mut(&node) else { continue };
            match happens {
                Happens::Arrives { probe, .. } => detector.handle(now, &probe).expect("nobody sends anything else"),
                // Most are of a deadline that is no more.
                Happens::Timer { .. } if detector.deadline().is_none_or(|deadline| deadline > now) => continue,
                Happens::Timer { .. } => detector.timer(now),
            }
            self.drain(node);
        }
        self.now = until;
    }

    /// Who is held to be down, by each.
    pub(crate) fn down(&self) -> BTreeMap<NodeId, Vec<NodeId>> {
        let down = |detector: &Detector| self.all.iter().copied().filter(|node| detector.is_down(*node)).collect();
        self.nodes.iter().map(|(node, detector)| (*node, down(detector))).collect()
    }

    pub(crate) fn is_all_up(&self) -> bool {
        self.down().values().all(Vec::is_empty)
    }
}
