//! Processes: how they start on what their disk holds, and how they end.
//!
//! Invariant: what was planned for a former life is void.

use core::time::Duration;

use replikit_core::{Input, Link, Replica, Time, WriteId};

use super::World;
use super::plan::Planned;
use crate::chronicle::Happening;
use crate::fault::Fault;
use crate::settings::around;
use crate::storage::{RecoveryItem, SimStorage, StartError};
use crate::subject::Subject;
use crate::trace::Step;

impl<R: Replica, S: SimStorage> World<R, S> {
    pub(super) fn start_node(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        self.trace.note(Step::Restart, self.now, at, 0);
        let (storage, mut context) = self.storage(at);
        let recovery = match storage.start(&mut context) {
            Ok(recovery) => recovery,
            Err(StartError::Broken(what)) => return Err(format!("recovery: {what}")),
            Err(StartError::Refused(_)) => return Ok(()),
        };
        subject.on_start(self.nodes[at].id, &recovery)?;
        if let Some(chronicle) = &mut self.chronicle {
            chronicle.note(self.now, self.nodes[at].id, Happening::Started);
        }
        let replica_seed = self.rng.u64(..);
        let node = &mut self.nodes[at];
        node.clock.boot(self.now, &mut self.rng);
        let mut replica = (self.factory)(node.id, &recovery.boots, replica_seed);
        let now = node.clock.read(self.now);
        for item in recovery.items {
            if let Some(narrator) = &mut self.narrator {
                narrator(self.now, node.id, &item);
            }
            let input = match item {
                RecoveryItem::SnapshotChunk { at, chunk, last } => Input::RecoverSnapshot { at, chunk, last },
                RecoveryItem::Batch(batch) => Input::Recover { batch },
            };
            replica.handle(now, input);
        }
        replica.handle(now, Input::Recovered);
        node.replica = Some(replica);
        node.busy_until = self.now;
        node.last_write = WriteId(0);
        node.late_timers = 0;
        if self.faults && self.settings.process.crash.is_some() && self.rng.u8(0..32) == 0 {
            self.counts[Fault::CrashAfterRecovery] += 1;
            self.nodes[at].crash_after = Some(self.rng.u32(0..4));
        }
        let others: Vec<usize> = (0..self.nodes.len()).filter(|&other| other != at).collect();
        for other in others {
            if self.nodes[other].replica.is_some() {
                self.link_hints(&[(at, other), (other, at)], Link::Up);
            }
        }
        self.echo(at);
        self.round(at, subject)
    }

    pub(super) fn crash_node(&mut self, at: usize, lasts: Duration, subject: &mut impl Subject<R>) {
        if self.nodes[at].replica.take().is_none() {
            return;
        }
        self.trace.note(Step::Crash, self.now, at, 0);
        if let Some(chronicle) = &mut self.chronicle {
            chronicle.note(self.now, self.nodes[at].id, Happening::Crashed);
        }
        let (storage, mut context) = self.storage(at);
        storage.crash(&mut context);
        let node = &mut self.nodes[at];
        node.life += 1;
        node.inbox.clear();
        (node.wake_at, node.timer_at, node.storage_at) = (Time::NEVER, Time::NEVER, Time::NEVER);
        node.crash_after = None;
        (node.slowness, node.starved_until) = (1, Time::ZERO);
        let (id, life) = (node.id, node.life);
        for other in (0..self.nodes.len()).filter(|&other| other != at) {
            self.network.reset(at, other);
            if self.rng.bool() {
                self.link_hints(&[(at, other)], Link::Reset);
            }
        }
        let instant = self.settings.process.instant_restart && self.rng.bool();
        let after = if instant {
            self.counts[Fault::InstantRestart] += 1;
            Duration::from_micros(self.rng.u64(0..200))
        } else {
            around(&mut self.rng, lasts, false)
        };
        self.plan(after, Planned::Restart { node: at, life });
        subject.on_crash(id, &mut self.clients);
    }
}
