//! Reads that need not be fresh: what they see was written once and is not from the future, and an answer with a bound is at
//! most that far behind true time.

use core::time::Duration;
use std::collections::HashMap;

use bytes::Bytes;
use replikit_core::{LogIndex, ReadLevel, StreamId, Time};

use super::history::{Ended, History, Level, OperationId, Recorded};
use super::versions::{Source, Versions};

/// A read that saw what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StalenessBroken {
    /// A value that nobody wrote, or only operations that had no effect.
    #[error("read {} saw {value:?}, which nobody wrote", read.index())]
    Phantom {
        /// The read.
        read: OperationId,
        /// What it saw.
        value: Bytes,
    },
    /// The read had ended before the write began.
    #[error("read {} had ended before write {} began, which it saw", read.index(), write.index())]
    FromTheFuture {
        /// The read.
        read: OperationId,
        /// The write.
        write: OperationId,
    },
    /// A newer write had been acknowledged for longer than the bound when the read began.
    #[error("read {} is bound to {bound:?}, but write {} had been acknowledged for longer", read.index(), newer.index())]
    Stale {
        /// The read.
        read: OperationId,
        /// The write that it should have seen.
        newer: OperationId,
        /// The bound.
        bound: Duration,
    },
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staleness {
    /// Reads whose values were looked for among the writes.
    pub reads: usize,
    /// Those with a bound, promised by their level or claimed by their answer.
    pub bounded: usize,
    /// Bounded ones whose age cannot be told: the key may have been removed more than once, or is a counter.
    pub undecided: usize,
}

/// The acknowledged writes of one key, by the end of their acknowledgement.
#[derive(Debug, Default)]
struct Acked {
    ends: Vec<Time>,
    // Up to and with each: the newest by its begin, and the newest by its index, if all stand in one stream.
    latest_begin: Vec<(Time, OperationId)>,
    latest_index: Vec<(LogIndex, OperationId)>,
    stream: Option<StreamId>,
}

impl Acked {
    fn new(history: &History, mut ids: Vec<OperationId>) -> Self {
        ids.sort_unstable_by_key(|&id| history.operation(id).answered_at());
        let mut positions = ids.iter().map(|&id| history.operation(id).position);
        let stream = positions.next().flatten().map(|position| position.stream);
        let stream = stream.filter(|&stream| positions.all(|at| at.is_some_and(|at| at.stream == stream)));
        let mut acked = Self { stream, ..Self::default() };
        for id in ids {
            let operation = history.operation(id);
            acked.ends.extend(operation.answered_at());
            let begin = (operation.began, id);
            acked.latest_begin.push(acked.latest_begin.last().map_or(begin, |&last| last.max(begin)));
            if let (Some(_), Some(position)) = (stream, operation.position) {
                let index = (position.id.index, id);
                acked.latest_index.push(acked.latest_index.last().map_or(index, |&last| last.max(index)));
            }
        }
        acked
    }

    /// A write acknowledged before `by` that is certainly newer than all that was seen.
    fn newer(&self, by: Time, seen: &[Option<&Recorded>]) -> Option<OperationId> {
        let last = self.ends.partition_point(|&end| end < by).checked_sub(1)?;
        let (begin, newest) = self.latest_begin[last];
        // What is absent was "written" before all time.
        let in_time = |of: &Option<&Recorded>| of.map_or(Some(Time::ZERO), Recorded::answered_at);
        if seen.iter().all(|of| in_time(of).is_some_and(|ended| ended < begin)) || seen == [None] {
            return Some(newest);
        }
        let &(index, newest) = self.latest_index.get(last)?;
        let in_log = |of: &Option<&Recorded>| {
            let position = of.and_then(|of| of.position).filter(|at| Some(at.stream) == self.stream);
            position.is_some_and(|at| at.id.index < index)
        };
        seen.iter().all(in_log).then_some(newest)
    }
}

/// Checks all answered reads of a history. `clock_error` is added to every bound: how much longer it may seem by true time
/// than by the clocks that it was measured with.
///
/// # Errors
/// [`StalenessBroken`] with the first read that saw what it must not.
pub fn check_staleness(history: &History, clock_error: Duration) -> Result<Staleness, StalenessBroken> {
    let versions = Versions::new(history);
    let mut ids: HashMap<&Bytes, Vec<OperationId>> = HashMap::new();
    for (at, operation) in history.operations().iter().enumerate() {
        if operation.surely_writes() && operation.is_strong() && operation.answered_at().is_some() {
            ids.entry(&operation.key).or_default().push(OperationId::new(at));
        }
    }
    let acked: HashMap<&Bytes, Acked> = ids.into_iter().map(|(key, ids)| (key, Acked::new(history, ids))).collect();
    let mut staleness = Staleness::default();
    for (at, operation) in history.operations().iter().enumerate() {
        let read = OperationId::new(at);
        let (end, values) = match &operation.ended {
            Ended::Found { at, value } => (*at, value.as_slice()),
            Ended::Siblings { at, values } => (*at, &values[..]),
            _ => continue,
        };
        staleness.reads += 1;
        let mut seen = Vec::new();
        let mut told = true;
        let absent = values.is_empty().then_some(None);
        for value in values.iter().map(Some).chain(absent) {
            match versions.source(&operation.key, value, end) {
                Source::Start => seen.push(None),
                Source::Untold => told = false,
                Source::Nobody => {
                    let value = value.cloned().unwrap_or_default();
                    return Err(StalenessBroken::Phantom { read, value });
                }
                Source::Write(write) => {
                    let source = history.operation(write);
                    if source.began > end {
                        return Err(StalenessBroken::FromTheFuture { read, write });
                    }
                    seen.push(Some(source));
                }
            }
        }
        let Some(bound) = bound(operation) else { continue };
        staleness.bounded += 1;
        if !told {
            staleness.undecided += 1;
            continue;
        }
        let by = Time(operation.began.0.saturating_sub((bound + clock_error).as_nanos() as u64));
        if let Some(newer) = acked.get(&operation.key).and_then(|acked| acked.newer(by, &seen)) {
            return Err(StalenessBroken::Stale { read, newer, bound });
        }
    }
    Ok(staleness)
}

/// How old a read's answer may be: the smaller of what was promised and what is claimed.
fn bound(operation: &Recorded) -> Option<Duration> {
    let promised = match operation.level {
        Level::Read(ReadLevel::BoundedStale(bound)) => Some(bound),
        _ => None,
    };
    promised.into_iter().chain(operation.staleness).min()
}
