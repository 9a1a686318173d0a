//! Faults that strike the whole cluster from time to time.
//!
//! Invariant: a fault is counted when it is met, not when it is drawn.

use replikit_core::{Link, Replica};

use super::World;
use super::plan::{Planned, Recurring};
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
        match kind {
            Recurring::Netsplit if nodes > 1 => {
                let cut = self.network.split(&mut self.rng);
                self.counts[Fault::Netsplit] += 1;
                self.plan(lasts, Planned::Mend(cut));
            }
            Recurring::OneWay if nodes > 1 => {
                let other = (victim + self.rng.usize(1..nodes)) % nodes;
                self.network.cut(&[(victim, other)]);
                self.counts[Fault::OneWay] += 1;
                self.plan(lasts, Planned::Mend(vec![(victim, other)]));
            }
            Recurring::Reset if nodes > 1 => {
                let other = (victim + self.rng.usize(1..nodes)) % nodes;
                self.network.reset(victim, other);
                self.counts[Fault::Reset] += 1;
                let both = [(victim, other), (other, victim)];
                self.link_hints(&both, Link::Reset);
                let then = if self.rng.bool() { Link::Up } else { Link::Down };
                self.link_hints(&both, then);
            }
            Recurring::Netsplit | Recurring::OneWay | Recurring::Reset => {}
            Recurring::Crash => {
                if self.nodes[victim].replica.is_none() {
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
            Recurring::Pause => {
                if self.nodes[victim].replica.is_some() {
                    self.counts[Fault::Pause] += 1;
                    self.nodes[victim].busy_until = self.now + lasts;
                }
            }
            Recurring::Stall => {
                self.counts[Fault::Stall] += 1;
                let until = self.now + lasts;
                self.nodes[victim].storage.stall(until);
            }
            Recurring::ClockJump => {
                self.counts[Fault::ClockJump] += 1;
                let back = self.rng.bool();
                self.nodes[victim].clock.jump(lasts, back);
            }
        }
    }
}
