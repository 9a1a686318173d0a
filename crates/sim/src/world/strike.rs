//! Faults that strike from time to time: some node, some link, or the present leader.
//!
//! Invariant: a fault is counted when it is met, not when it is drawn.

use core::time::Duration;

use replikit_core::{Link, Replica};

use super::World;
use super::plan::{Flap, Planned, Recurring, Relief};
use crate::chronicle::Happening;
use crate::fault::Fault;
use crate::settings::around;
use crate::storage::SimStorage;
use crate::subject::Subject;
use crate::trace::Step;

impl<R: Replica, S: SimStorage> World<R, S> {
    pub(super) fn strike(&mut self, kind: Recurring, subject: &mut impl Subject<R>) {
        let Some(every) = kind.every(&self.settings) else { return };
        let nodes = self.nodes.len();
        let lasts = around(&mut self.rng, every.lasts, true);
        let victim = self.rng.usize(0..nodes);
        self.trace.note(Step::Fault, self.now, victim, kind as u64);
        if let Some(chronicle) = &mut self.chronicle {
            let text = format!("{kind:?} for {lasts:?}");
            chronicle.note(self.now, self.nodes[victim].id, Happening::Fault { text });
        }
        let is_up = self.nodes[victim].replica.is_some();
        match kind {
            Recurring::Netsplit | Recurring::OneWay | Recurring::Reset | Recurring::Clog | Recurring::Flap
                if nodes > 1 =>
            {
                self.strike_links(kind, victim, lasts);
            }
            Recurring::Netsplit | Recurring::OneWay | Recurring::Reset | Recurring::Clog | Recurring::Flap => {}
            Recurring::Mute => {
                let known: Vec<u8> = (0..=u8::MAX).filter(|&kind| self.kinds[usize::from(kind)]).collect();
                if !known.is_empty() {
                    let kind = known[self.rng.usize(0..known.len())];
                    self.network.mute(Some(kind));
                    self.plan(lasts, Planned::Relief(Relief::Unmute));
                }
            }
            Recurring::Crash => {
                if !is_up {
                    return;
                }
                if self.rng.bool() {
                    self.nodes[victim].crash_after = Some(self.rng.u32(0..12));
                } else {
                    self.counts[Fault::Crash] += 1;
                    self.crash_node(victim, lasts, subject);
                }
            }
            Recurring::CrashAll => {
                self.counts[Fault::CrashAll] += 1;
                for at in 0..nodes {
                    self.crash_node(at, lasts, subject);
                }
            }
            Recurring::Outage => {
                if is_up {
                    self.nodes[victim].long_outage = true;
                    self.crash_node(victim, lasts, subject);
                }
            }
            Recurring::Pause => {
                if is_up {
                    self.counts[Fault::Pause] += 1;
                    self.nodes[victim].busy_until = self.now + lasts;
                }
            }
            Recurring::Slow => {
                if is_up {
                    self.counts[Fault::SlowCpu] += 1;
                    self.nodes[victim].slowness = self.rng.u32(10..=100);
                    self.plan(lasts, Planned::Relief(Relief::Faster { node: victim }));
                }
            }
            Recurring::Starve => {
                if is_up {
                    self.counts[Fault::Starved] += 1;
                    self.nodes[victim].starved_until = self.now + lasts;
                }
            }
            Recurring::Suspend => {
                if is_up {
                    self.counts[Fault::Suspended] += 1;
                    let node = &mut self.nodes[victim];
                    node.clock.suspend(self.now);
                    node.busy_until = node.busy_until.max(self.now + lasts);
                    let life = node.life;
                    self.plan(lasts, Planned::Relief(Relief::Resume { node: victim, life }));
                }
            }
            Recurring::Stall => {
                self.counts[Fault::Stall] += 1;
                let until = self.now + lasts;
                self.nodes[victim].storage.stall(until);
            }
            Recurring::ClockJump => {
                let back = self.rng.bool();
                self.counts[if back { Fault::ClockBack } else { Fault::ClockForward }] += 1;
                self.nodes[victim].clock.jump(lasts, back);
            }
            Recurring::Freeze => {
                self.counts[Fault::ClockFrozen] += 1;
                self.nodes[victim].clock.freeze(self.now);
                self.plan(lasts, Planned::Relief(Relief::Thaw { node: victim }));
            }
            Recurring::Shift => self.begin_shifts(lasts),
            Recurring::Leader => {
                if let Some(leader) = self.leader.filter(|&leader| self.nodes[leader].replica.is_some()) {
                    self.strike_leader(leader, lasts, subject);
                }
            }
        }
    }

    fn strike_links(&mut self, kind: Recurring, victim: usize, lasts: Duration) {
        let nodes = self.nodes.len();
        let other = (victim + self.rng.usize(1..nodes)) % nodes;
        let both = [(victim, other), (other, victim)];
        match kind {
            Recurring::Netsplit => {
                let cut = self.network.split(&mut self.rng, &mut self.counts);
                self.plan(lasts, Planned::Mend(cut));
            }
            Recurring::OneWay => {
                self.network.cut(&[(victim, other)]);
                self.counts[Fault::OneWay] += 1;
                self.plan(lasts, Planned::Mend(vec![(victim, other)]));
            }
            Recurring::Reset => {
                self.network.reset(victim, other);
                self.counts[Fault::Reset] += 1;
                self.link_hints(&both, Link::Reset);
                let then = if self.rng.bool() { Link::Up } else { Link::Down };
                self.link_hints(&both, then);
            }
            Recurring::Flap => {
                self.counts[Fault::Flap] += 1;
                let half = lasts.min(Duration::from_millis(100));
                let left = 2 * self.rng.u32(2..8);
                self.plan(Duration::ZERO, Planned::Flap(Box::new(Flap { links: both, left, half })));
            }
            _ if self.rng.bool() => {
                self.counts[Fault::Clog] += 1;
                self.network.clog(victim, self.now + lasts);
            }
            _ => {
                self.counts[Fault::SwizzleClog] += 1;
                let mut order: Vec<usize> = (0..nodes).collect();
                self.rng.shuffle(&mut order);
                order.truncate(self.rng.usize(2..=nodes));
                for (step, &node) in order.iter().enumerate() {
                    let until = self.now + lasts + around(&mut self.rng, lasts, false);
                    self.plan(lasts / 8 * step as u32, Planned::Clog { node, until });
                }
            }
        }
    }

    /// A link that is cut and mended, turn by turn.
    pub(super) fn flap(&mut self, flap: Flap) {
        let Flap { links, left, half } = flap;
        if left.is_multiple_of(2) {
            self.network.cut(&links);
        } else {
            self.network.mend(&links);
            self.link_hints(&links, Link::Up);
        }
        if left > 1 {
            let after = around(&mut self.rng, half, false);
            self.plan(after, Planned::Flap(Box::new(Flap { links, left: left - 1, half })));
        }
    }

    fn strike_leader(&mut self, leader: usize, lasts: Duration, subject: &mut impl Subject<R>) {
        match self.rng.u8(0..6) {
            0 | 1 => self.isolate(leader, lasts),
            2 => {
                self.counts[Fault::LeaderCrash] += 1;
                self.crash_node(leader, lasts, subject);
            }
            3 => self.nodes[leader].crash_after = Some(self.rng.u32(0..6)),
            4 => {
                self.counts[Fault::Pause] += 1;
                self.nodes[leader].busy_until = self.now + lasts;
            }
            _ => {
                self.counts[Fault::SlowLeaderDisk] += 1;
                self.nodes[leader].slow_disk = self.rng.u32(10..=100);
                self.plan(lasts, Planned::Relief(Relief::QuickDisk { node: leader }));
            }
        }
    }

    /// Cuts a node off from a majority, in five-node clusters sometimes together with another; clients still reach it. The
    /// majority may notice at once, as when a switch closes its connections, or only by silence.
    fn isolate(&mut self, leader: usize, lasts: Duration) {
        let nodes = self.nodes.len();
        if nodes < 2 {
            return;
        }
        self.counts[Fault::LeaderInMinority] += 1;
        let mut inside = vec![leader];
        if nodes > 3 && self.rng.bool() {
            inside.push((leader + self.rng.usize(1..nodes)) % nodes);
        }
        let outside: Vec<usize> = (0..nodes).filter(|node| !inside.contains(node)).collect();
        if self.rng.bool() {
            let links: Vec<(usize, usize)> = outside.iter().map(|&other| (leader, other)).collect();
            self.link_hints(&links, Link::Reset);
        }
        let only_out = self.rng.u8(0..4) == 0;
        let mut cut = Vec::new();
        for &one in &inside {
            for &other in &outside {
                cut.push((one, other));
                if !only_out {
                    cut.push((other, one));
                }
            }
        }
        self.network.cut(&cut);
        self.plan(lasts, Planned::Mend(cut));
        if self.rng.u8(0..4) == 0 {
            // Its disk confirms what it wrote alone only after it has heard of the next leader.
            self.counts[Fault::Stall] += 1;
            let until = self.now + lasts + around(&mut self.rng, Duration::from_millis(20), true);
            self.nodes[leader].storage.stall(until);
        }
    }

    /// A leader was elected: some are struck before they get far.
    pub(super) fn elected(&mut self, at: usize) {
        self.leader = Some(at);
        self.shift_soon(at);
        let settings = &self.settings.leader;
        if self.faults && settings.churn_per_mille > 0 && self.rng.u16(0..1000) < settings.churn_per_mille {
            let after = around(&mut self.rng, settings.churn_within / 2, false);
            let life = self.nodes[at].life;
            self.plan(after, Planned::Churn { node: at, life });
        }
    }

    pub(super) fn churn(&mut self, at: usize, subject: &mut impl Subject<R>) {
        self.counts[Fault::Churn] += 1;
        self.trace.note(Step::Fault, self.now, at, u64::MAX);
        let lasts = around(&mut self.rng, self.settings.leader.churn_lasts / 2, false);
        if self.rng.u8(0..3) == 0 {
            self.counts[Fault::LeaderCrash] += 1;
            self.crash_node(at, lasts, subject);
        } else {
            self.isolate(at, lasts);
        }
    }

    pub(super) fn relieve(&mut self, relief: Relief, subject: &mut impl Subject<R>) -> Result<(), String> {
        match relief {
            Relief::Unmute => self.network.mute(None),
            Relief::Faster { node } => self.nodes[node].slowness = 1,
            Relief::QuickDisk { node } => self.nodes[node].slow_disk = 1,
            Relief::Thaw { node } => self.nodes[node].clock.thaw(),
            Relief::Resume { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].replica.is_some() {
                    self.nodes[node].clock.resume(self.now);
                    self.nodes[node].timer_at = replikit_core::Time::NEVER;
                    return self.attempt(node, subject);
                }
            }
        }
        Ok(())
    }
}
