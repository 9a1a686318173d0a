//! One event after the other.
//!
//! Invariant: after the healing nothing that is left of the faults happens any more.

use core::time::Duration;

use replikit_core::{Input, Link, Replica, Time, Token};

use super::message::Arrival;
use super::plan::{Entry, Planned};
use super::{Violation, World};
use crate::chronicle::Happening;
use crate::network::Network;
use crate::storage::SimStorage;
use crate::subject::Subject;
use crate::trace::Step;

impl<R: Replica, S: SimStorage> World<R, S> {
    /// The next event. Does nothing when there is none.
    ///
    /// # Errors
    /// The [`Violation`] that was noticed after it.
    pub fn step(&mut self, subject: &mut impl Subject<R>) -> Result<(), Violation> {
        self.carry_out_clients();
        let Some(Entry { at, planned, .. }) = self.queue.pop() else { return Ok(()) };
        self.now = at;
        self.clients.now = at;
        self.events += 1;
        let node = match &planned {
            Planned::Arrive { to, .. } => usize::from(*to),
            Planned::Request { to, .. } | Planned::Peer { to, .. } | Planned::Echo { to, .. } => *to,
            Planned::Wake { node, .. }
            | Planned::Timer { node, .. }
            | Planned::Storage { node, .. }
            | Planned::Crash { node, .. }
            | Planned::Restart { node, .. } => *node,
            _ => 0,
        };
        if let Some(narrator) = &mut self.narrator {
            narrator(at, self.nodes[node].id, &planned);
        }
        let result = self.happen(planned, subject);
        self.carry_out_clients();
        result.map_err(|what| Violation { seed: self.seed, at, node: self.nodes[node].id, what })
    }

    pub(super) fn carry_out_clients(&mut self) {
        if self.clients.alarms.is_empty() && self.clients.requests.is_empty() {
            return;
        }
        let mut alarms = core::mem::take(&mut self.clients.alarms);
        for (client, after) in alarms.drain(..) {
            self.plan(after, Planned::Alarm { client });
        }
        let mut requests = core::mem::take(&mut self.clients.requests);
        for (node, input) in requests.drain(..) {
            let after = Network::hint_delay(&mut self.rng, &self.settings.network);
            if let Some(to) = (node.0 as usize).checked_sub(1).filter(|&at| at < self.nodes.len()) {
                let input = Box::new(input);
                self.plan(after, Planned::Request { to, input });
            }
        }
        // The buffers are kept: this runs at every event.
        (self.clients.alarms, self.clients.requests) = (alarms, requests);
    }

    fn happen(&mut self, planned: Planned<R::Head>, subject: &mut impl Subject<R>) -> Result<(), String> {
        match planned {
            Planned::Arrive { from, to, connection, sender_life, hash, message, frame } => {
                let (from, to) = (usize::from(from), usize::from(to));
                self.arrive(Arrival { from, to, sender_life, hash, message, frame }, connection, subject)
            }
            Planned::Echo { to, echo } if self.faults => self.echoes(to, *echo, subject),
            Planned::Echo { .. } => Ok(()),
            Planned::Request { to, input } => {
                self.trace.note(Step::Request, self.now, to, 0);
                if let Some(chronicle) = &mut self.chronicle {
                    let happening = Happening::Requested { token: token_of(&input), text: format!("{input:?}") };
                    chronicle.note(self.now, self.nodes[to].id, happening);
                }
                self.deliver(to, *input, subject)
            }
            Planned::Peer { to, of, link } => {
                self.trace.note(Step::Peer, self.now, to, (of as u64) << 2 | link as u64);
                let node = self.nodes[of].id;
                self.deliver(to, Input::Peer { node, link }, subject)
            }
            Planned::Wake { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].wake_at != self.now {
                    return Ok(());
                }
                self.nodes[node].wake_at = Time::NEVER;
                self.trace.note(Step::Wake, self.now, node, 0);
                self.attempt(node, subject)
            }
            Planned::Timer { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].timer_at != self.now {
                    return Ok(());
                }
                self.nodes[node].timer_at = Time::NEVER;
                self.trace.note(Step::Timer, self.now, node, 0);
                self.attempt(node, subject)
            }
            Planned::Storage { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].storage_at != self.now {
                    return Ok(());
                }
                self.nodes[node].storage_at = Time::NEVER;
                self.drain_storage(node, subject)
            }
            Planned::Crash { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].replica.is_some() {
                    self.crash_node(node, Duration::from_millis(20), subject);
                }
                Ok(())
            }
            Planned::Restart { node, life } => {
                let state = &self.nodes[node];
                if state.life == life && state.replica.is_none() && !state.dead {
                    return self.start_node(node, subject);
                }
                Ok(())
            }
            Planned::Recur(kind) => {
                if self.faults {
                    self.strike(kind, subject);
                    self.recur(kind);
                }
                Ok(())
            }
            Planned::Mend(links) => {
                if self.faults {
                    self.trace.note(Step::Mend, self.now, 0, links.len() as u64);
                    self.network.mend(&links);
                    self.link_hints(&links, Link::Up);
                }
                Ok(())
            }
            Planned::Flap(flap) => {
                if self.faults {
                    self.flap(*flap);
                }
                Ok(())
            }
            Planned::Clog { node, until } => {
                if self.faults {
                    self.network.clog(node, until);
                }
                Ok(())
            }
            Planned::Relief(relief) => {
                if self.faults {
                    self.relieve(relief, subject)
                } else {
                    Ok(())
                }
            }
            Planned::Churn { node, life } => {
                if self.faults && self.nodes[node].life == life && self.nodes[node].replica.is_some() {
                    self.churn(node, subject);
                }
                Ok(())
            }
            Planned::Shift { turn } => {
                if self.faults {
                    self.next_shift(turn, subject);
                }
                Ok(())
            }
            Planned::Alarm { client } => {
                self.trace.note(Step::Alarm, self.now, 0, u64::from(client));
                subject.on_alarm(client, &mut self.clients);
                Ok(())
            }
        }
    }
}

/// The token of a client's request.
fn token_of<H>(input: &Input<H>) -> Token {
    match input {
        Input::Command { token, .. }
        | Input::Query { token, .. }
        | Input::OpenSession { token, .. }
        | Input::Write { token, .. }
        | Input::Read { token, .. }
        | Input::Admin { token, .. } => *token,
        _ => Token(0),
    }
}
