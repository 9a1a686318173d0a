//! The requests of one key under way at one proposer.
//!
//! Invariant: an operation is in the queue as long as no proposal contained it, so that ending it then is without effect; then
//! it is in the batch, whose operations stay together, in order, in every further proposal until one of them took effect.

use core::time::Duration;
use std::collections::VecDeque;

use replikit_core::{Time, Token};

use super::ballot::Ballot;
use super::change::{CasOp, Effect};
use super::register::{Descent, Register};
use super::tally::Tally;

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    /// `None` once it has been answered, while others of its batch have not.
    pub(super) token: Option<Token>,
    pub(super) op: CasOp,
    pub(super) deadline: Time,
    /// Reads that came before a query began are answered by it.
    pub(super) arrival: u64,
}

/// A proposal that was sent and may have taken effect.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) ballot: Ballot,
    /// Of each operation of the batch.
    pub(super) effects: Vec<Effect>,
}

/// Where the work stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing is asked.
    Idle,
    /// After a conflict; nothing is asked until [`Work::wake`].
    Waiting,
    /// What do you hold?
    Querying {
        /// What is known at this node.
        known: (Ballot, Register),
        /// Values of other ballots that came with answers.
        values: Vec<(Ballot, Register)>,
        /// The reads that arrived before this one are answered.
        before: u64,
    },
    /// First phase.
    Preparing {
        ballot: Ballot,
        known: (Ballot, Register),
        /// The latest of what was accepted, as far as answered.
        latest: (Ballot, Register),
    },
    /// Second phase.
    Accepting {
        ballot: Ballot,
        next: Ballot,
        register: Register,
        /// What the operations of the batch end with if it succeeds.
        effects: Vec<Effect>,
    },
}

/// What to do with the batch, given the latest value.
#[derive(Debug)]
pub(super) enum Plan {
    /// Apply it: no earlier proposal with it is in this value's past.
    Apply,
    /// It is in there, with these effects.
    Adopt(Vec<Effect>),
    /// Nobody knows any more.
    Forgotten,
}

/// The work on one key.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) queue: VecDeque<Request>,
    pub(super) batch: Vec<Request>,
    pub(super) tries: Vec<Try>,
    pub(super) phase: Phase,
    /// The question that counts; 0 for none.
    pub(super) attempt: u64,
    pub(super) tally: Tally,
    pub(super) conflicts: u32,
    /// Queries without a result.
    pub(super) queries: u32,
    /// When to ask again, or to begin again.
    pub(super) wake: Time,
    /// The timer that is set.
    pub(super) timer: Time,
}

impl Work {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            batch: Vec::new(),
            tries: Vec::new(),
            phase: Phase::Idle,
            attempt: 0,
            tally: Tally::default(),
            conflicts: 0,
            queries: 0,
            wake: Time::NEVER,
            timer: Time::NEVER,
        }
    }

    pub(super) fn requests(&self) -> usize {
        self.queue.len() + self.batch.iter().filter(|request| request.token.is_some()).count()
    }

    pub(super) fn is_done(&self) -> bool {
        self.queue.is_empty() && self.batch.is_empty()
    }

    /// Whether a query answers all that is asked.
    pub(super) fn only_reads(&self) -> bool {
        self.batch.is_empty() && self.queue.iter().all(|request| request.op.is_read())
    }

    /// The next time at which something has to be done.
    pub(super) fn due(&self) -> Time {
        let open = self.batch.iter().filter(|request| request.token.is_some());
        self.queue.iter().chain(open).map(|request| request.deadline).fold(self.wake, Time::min)
    }

    /// How long it is until the first queued request is too late.
    pub(super) fn left(&self, now: Time) -> Duration {
        let first = self.queue.iter().map(|request| request.deadline).min();
        first.map_or(Duration::ZERO, |first| first.since(now))
    }

    /// What became of the batch's earlier proposals, as far as this value tells.
    pub(super) fn plan(&self, register: &Register) -> Plan {
        let mut plan = Plan::Apply;
        for earlier in &self.tries {
            match register.lineage.of(earlier.ballot) {
                Descent::Includes => return Plan::Adopt(earlier.effects.clone()),
                Descent::Forgotten => plan = Plan::Forgotten,
                Descent::Excludes => {}
            }
        }
        plan
    }

    /// Whether the n-th operation of the batch may have taken effect, or may still.
    pub(super) fn in_doubt(&self, nth: usize) -> bool {
        self.tries.iter().any(|earlier| earlier.effects.get(nth).is_some_and(Effect::changed))
    }

    /// Applies the batch, which takes in what is queued if no proposal had it yet. The value carries the ballot on if
    /// anything changed, and the proposal is in doubt from now on.
    pub(super) fn apply(&mut self, register: &mut Register, ballot: Ballot, batch_max: usize) -> Vec<Effect> {
        if self.tries.is_empty() {
            let room = batch_max.max(1).saturating_sub(self.batch.len()).min(self.queue.len());
            self.batch.extend(self.queue.drain(..room));
        }
        let effects: Vec<Effect> = self.batch.iter().map(|request| request.op.apply(&mut register.value)).collect();
        if effects.iter().any(Effect::changed) {
            register.lineage.push(ballot);
            self.tries.push(Try { ballot, effects: effects.clone() });
        }
        effects
    }
}
