//! The driving loop of one node: gather inputs, read the clocks once, handle, carry out, plan what is due.
//!
//! Invariant: storage actions reach the storage in the order in which the replica wanted them.

use core::time::Duration;

use replikit_core::{Action, Event, Input, Replica, Role, StorageEvent, Time};

use super::plan::Planned;
use super::{ACTIONS_PER_ROUND_MAX, AllNodes, LATE_TIMERS_MAX, World};
use crate::chronicle::Happening;
use crate::fault::Fault;
use crate::settings::around;
use crate::storage::{SimStorage, StorageContext, StorageOutput};
use crate::subject::Subject;
use crate::trace::Step;

impl<R: Replica, S: SimStorage> World<R, S> {
    pub(super) fn deliver(
        &mut self,
        at: usize,
        input: Input<R::Head>,
        subject: &mut impl Subject<R>,
    ) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        self.nodes[at].inbox.push_back(input);
        self.attempt(at, subject)
    }

    /// Runs a round now if the node is idle, or plans one for when it is.
    pub(super) fn attempt(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        if self.nodes[at].busy_until > self.now {
            self.wake(at);
            return Ok(());
        }
        self.round(at, subject)
    }

    pub(super) fn wake(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let wake_at = node.busy_until.max(self.now);
        if wake_at < node.wake_at {
            node.wake_at = wake_at;
            let life = node.life;
            self.plan_at(wake_at, Planned::Wake { node: at, life });
        }
    }

    pub(super) fn round(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        let node = &mut self.nodes[at];
        let now = node.clock.read(self.now);
        let replica = node.replica.as_mut().expect("only live nodes run rounds");
        let inputs = self.inputs;
        while let Some(input) = node.inbox.pop_front() {
            self.inputs += 1;
            replica.handle(now, input);
        }
        let starved = node.starved_until > self.now;
        if !starved && replica.deadline().is_some_and(|deadline| deadline <= now.mono) {
            self.inputs += 1;
            node.late_timers += 1;
            if node.late_timers > LATE_TIMERS_MAX {
                return Err(format!("deadlines_end: the deadline stays in the past after {LATE_TIMERS_MAX} timers"));
            }
            replica.handle(now, Input::Timer);
        }
        self.drain(at, subject)?;
        let node = &mut self.nodes[at];
        let Some(replica) = &node.replica else { return Ok(()) };
        // A node that nobody writes to has nothing but timers.
        if replica.deadline().is_none_or(|deadline| deadline > now.mono) {
            node.late_timers = 0;
        }
        let work = self.settings.process.per_input * (self.inputs - inputs) as u32;
        let round = around(&mut self.rng, self.settings.process.round, false);
        let busy = (round + work) * self.nodes[at].slowness;
        self.nodes[at].busy_until = self.now + busy;
        self.after_round(at);
        subject.check(self.nodes[at].id, &AllNodes(&self.nodes))
    }

    /// Carries out all that the replica wants; the process may crash between two actions.
    pub(super) fn drain(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        let mut actions = 0;
        loop {
            if let Some(left) = &mut self.nodes[at].crash_after {
                if *left == 0 {
                    self.counts[Fault::CrashAmidActions] += 1;
                    let lasts = self.settings.process.crash.map_or(Duration::from_millis(20), |every| every.lasts);
                    self.crash_node(at, lasts, subject);
                    return Ok(());
                }
                *left -= 1;
            }
            let replica = self.nodes[at].replica.as_mut().expect("only live nodes run rounds");
            let Some(action) = replica.poll() else { return Ok(()) };
            actions += 1;
            if actions > ACTIONS_PER_ROUND_MAX {
                return Err(format!("rounds_end: a round wanted more than {ACTIONS_PER_ROUND_MAX} actions"));
            }
            self.carry_out(at, action, subject)?;
        }
    }

    pub(super) fn carry_out(
        &mut self,
        at: usize,
        action: Action<R::Head>,
        subject: &mut impl Subject<R>,
    ) -> Result<(), String> {
        let now = self.now;
        self.actions += 1;
        let id = self.nodes[at].id;
        if let Some(narrator) = &mut self.narrator {
            narrator(now, id, &action);
        }
        if let Some(chronicle) = &mut self.chronicle {
            match &action {
                Action::Send { .. } => {}
                Action::Done { token, outcome } => {
                    let (token, text) = (*token, format!("{outcome:?}"));
                    chronicle.note(now, id, Happening::Ended { token, text });
                }
                other => chronicle.note(now, id, Happening::Did { text: format!("{other:?}") }),
            }
        }
        subject.on_action(id, &action)?;
        match action {
            Action::Persist { id, op } => {
                let node = &mut self.nodes[at];
                if id != node.last_write.next() {
                    return Err(format!("storage_actions_are_numbered: {id:?} follows {:?}", node.last_write));
                }
                node.last_write = id;
                self.trace.note(Step::Persist, now, at, id.0);
                node.storage.persist(id, op).map_err(|what| format!("storage_contract: {what}"))
            }
            Action::Send { to, message } => self.send(at, to, &message),
            Action::ReadLog { ticket, stream, from, bytes_max } => {
                self.trace.note(Step::Read, now, at, from.0);
                let (storage, mut context) = self.storage(at);
                storage.read_log(ticket, stream, from, bytes_max, &mut context);
                Ok(())
            }
            Action::ReadSnapshot { ticket, group, at: position, offset, bytes_max } => {
                self.trace.note(Step::Read, now, at, offset);
                let (storage, mut context) = self.storage(at);
                storage.read_snapshot(ticket, group, position, offset, bytes_max, &mut context);
                Ok(())
            }
            Action::Done { token, outcome } => {
                self.trace.note(Step::Done, now, at, token.0);
                subject.on_done(id, token, outcome, &mut self.clients)
            }
            Action::Event { group, event } => {
                self.trace.note(Step::Event, now, at, u64::from(group.0));
                // Where a disk lost silently what its node had said, others see it say something else.
                if let Event::PeerMisbehaved { node, what } = &event
                    && self.bounded
                {
                    return Err(format!(
                        "honest_peers_are_not_accused: node {node} is accused, though all are honest: {what}"
                    ));
                }
                match &event {
                    Event::RoleChanged { role: Role::Leader, .. } => {
                        self.elected(at);
                        self.echo(at);
                    }
                    Event::RoleChanged { role: Role::Candidate, .. } => self.echo(at),
                    Event::SnapshotInstalled { .. } if core::mem::take(&mut self.nodes[at].long_outage) => {
                        self.counts[Fault::LongOutage] += 1;
                    }
                    _ => {}
                }
                subject.on_event(id, group, &event)
            }
        }
    }

    pub(super) fn storage(&mut self, at: usize) -> (&mut S, StorageContext<'_>) {
        let node = &mut self.nodes[at];
        let settings = match node.slow_disk {
            1 => &self.settings.storage,
            times => {
                self.slow_storage.clone_from(&self.settings.storage);
                self.slow_storage.sync *= times;
                &self.slow_storage
            }
        };
        let context = StorageContext { now: self.now, rng: &mut self.rng, settings, counts: &mut self.counts };
        (&mut node.storage, context)
    }

    /// Plans what the round has made due: the storage's next end and the replica's next timer.
    pub(super) fn after_round(&mut self, at: usize) {
        let (storage, mut context) = self.storage(at);
        storage.pump(&mut context);
        self.plan_storage(at);
        let node = &mut self.nodes[at];
        let life = node.life;
        let Some(deadline) = node.replica.as_ref().and_then(R::deadline) else { return };
        let due = node.clock.when(deadline).max(node.starved_until);
        if due < Time::NEVER && due < node.timer_at {
            // A timer that spins must still let time pass.
            let late = self.rng.u64(1..=self.settings.clock.timer_late_max.as_nanos().max(1) as u64);
            let timer_at = Time(due.max(self.now).0 + late);
            if timer_at < node.timer_at {
                node.timer_at = timer_at;
                self.plan_at(timer_at, Planned::Timer { node: at, life });
            }
        }
    }

    pub(super) fn plan_storage(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(due) = node.storage.due() {
            let due = due.max(self.now);
            if due < node.storage_at {
                node.storage_at = due;
                let life = node.life;
                self.plan_at(due, Planned::Storage { node: at, life });
            }
        }
    }

    pub(super) fn drain_storage(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        loop {
            let (storage, mut context) = self.storage(at);
            let Some(output) = storage.poll(&mut context) else { break };
            if let Some(narrator) = &mut self.narrator {
                narrator(self.now, self.nodes[at].id, &output);
            }
            if let Some(chronicle) = &mut self.chronicle {
                chronicle.note(self.now, self.nodes[at].id, Happening::Stored { text: format!("{output:?}") });
            }
            let input = match output {
                StorageOutput::Durable(up_to) => {
                    self.trace.note(Step::Storage, self.now, at, up_to.0);
                    subject.on_durable(self.nodes[at].id, up_to);
                    Input::Durable { up_to }
                }
                StorageOutput::LogRead { ticket, stream, answer } => Input::LogRead { ticket, stream, answer },
                StorageOutput::SnapshotRead { ticket, answer } => Input::SnapshotRead { ticket, answer },
                StorageOutput::Event(event) => {
                    if matches!(event, StorageEvent::Failed | StorageEvent::Faulty { .. }) {
                        // The operator's part: a node whose disk fails is started anew.
                        let after = Duration::from_millis(self.rng.u64(1..500));
                        let life = self.nodes[at].life;
                        self.plan(after, Planned::Crash { node: at, life });
                    }
                    Input::Storage { event }
                }
            };
            self.nodes[at].inbox.push_back(input);
        }
        self.plan_storage(at);
        if self.nodes[at].inbox.is_empty() { Ok(()) } else { self.attempt(at, subject) }
    }
}
