//! What the answers to clients tell, held against each other and against the ledger: the shared checkers' guarantees, by the
//! log's own positions.
//!
//! Invariant: what a client has learned stands at a position, and everything that begins later, of any client, stands or sees
//! behind it. So the log is the witness, and no history has to be searched.

use replikit_core::{LogIndex, Outcome, ReadLevel, Time};
use replikit_sim::{Asked, Request, is_lasting};

use super::clients::KeyValue;
use super::ledger::Ledger;

/// What clients have learned, by time: the highest index that a strict answer had shown by then.
#[derive(Debug, Default)]
struct Witness {
    // Ascending in both.
    known: Vec<(Time, LogIndex)>,
}

impl Witness {
    fn learn(&mut self, at: Time, index: LogIndex) {
        if self.known.last().is_none_or(|(_, known)| *known < index) {
            self.known.push((at, index));
        }
    }

    /// What was known before this moment.
    fn before(&self, at: Time) -> LogIndex {
        let after = self.known.partition_point(|&(when, _)| when < at);
        after.checked_sub(1).map_or(LogIndex::ZERO, |last| self.known[last].1)
    }
}

/// The answers of one group so far.
#[derive(Debug)]
pub(crate) struct Answers {
    witness: Witness,
    // Local reads are promised nothing; how stale others may be shown is measured with clocks that drift.
    clocks_are_suspended: bool,
}

impl Answers {
    pub(crate) fn new(clocks_are_suspended: bool) -> Self {
        Self { witness: Witness::default(), clocks_are_suspended }
    }

    /// A request ends like this.
    pub(crate) fn check(&self, ledger: &Ledger, request: &Request, outcome: &Outcome, now: Time) -> Result<(), String> {
        match &request.asked {
            Asked::Read { .. } => self.check_read(ledger, request, outcome, now),
            Asked::Write { write, .. } => match outcome {
                Outcome::Acked { at, .. } if is_lasting(write.level) => {
                    let known = self.witness.before(request.began);
                    if at.id.index > known {
                        return Ok(());
                    }
                    let (began, index) = (request.began, at.id.index);
                    Err(format!(
                        "writes_stand_in_order: begun at {began:?}, when {known} was known, it stands at {index}"
                    ))
                }
                // Under a session an earlier attempt may have taken effect, as may the other one of two copies.
                Outcome::Rejected(_) if write.session.is_none() && !request.has_twin() => {
                    ledger.lines().refuse(write);
                    Ok(())
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The client knows of it from now on.
    pub(crate) fn learn(&mut self, request: &Request, outcome: &Outcome, now: Time) {
        let known = match (outcome, &request.asked) {
            (Outcome::Acked { at, .. }, Asked::Write { write, .. }) if is_lasting(write.level) => Some(*at),
            (Outcome::Value { seen, .. }, Asked::Read { .. }) => *seen,
            _ => None,
        };
        if let Some(position) = known {
            self.witness.learn(now, position.id.index);
        }
    }

    fn check_read(&self, ledger: &Ledger, request: &Request, outcome: &Outcome, now: Time) -> Result<(), String> {
        let (Asked::Read { read, .. }, Outcome::Value { values, seen, staleness, .. }) = (&request.asked, outcome)
        else {
            return Ok(());
        };
        let Some(seen) = seen else { return Err(format!("reads_show_their_position: {outcome:?} names none")) };
        let found = KeyValue::value(values)?;
        let lines = ledger.lines();
        let expected = lines.value(&read.key, seen.id.index);
        if found.as_ref() != expected {
            return Err(format!(
                "reads_show_their_position: {:?} at {} is {expected:?}, {found:?} was read",
                read.key, seen.id.index
            ));
        }
        match &read.level {
            ReadLevel::Linearizable => {
                let known = self.witness.before(request.began);
                if seen.id.index < known {
                    return Err(format!(
                        "linearizable_read_is_current: begun at {:?}, when {known} was known, it saw {}",
                        request.began, seen.id.index
                    ));
                }
            }
            ReadLevel::Session(token) => {
                if let Some(position) = token.position(seen.stream)
                    && seen.id.index < position.id.index
                {
                    return Err(format!("session_reads_do_not_go_back: {seen:?} after {position:?}"));
                }
            }
            _ => {}
        }
        let asked = if let ReadLevel::BoundedStale(bound) = read.level { Some((request.began, bound)) } else { None };
        for (from, bound) in staleness.map(|said| (now, said)).into_iter().chain(asked) {
            // Clocks drift by a tenth at most.
            let since = Time(from.0.saturating_sub((bound.as_nanos() as u64).saturating_mul(6) / 5));
            if !self.clocks_are_suspended && seen.id.index < self.witness.before(since) {
                return Err(format!("staleness_is_bounded: at {now:?} a read within {bound:?} saw {}", seen.id.index));
            }
        }
        Ok(())
    }
}
