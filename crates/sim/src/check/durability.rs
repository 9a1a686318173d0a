//! What was acknowledged is still there, what was refused is not, and nothing is there twice.
//!
//! The law: acknowledged = found + reported as lost, and only what was acknowledged below `Quorum` may be reported. Every
//! write carries a serial that no other one has, and at the end all replicas are scanned for the serials that they applied.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use bytes::Bytes;
use replikit_core::{Event, LogIndex, NodeId, Position, StreamId, Term, WriteLevel};

use super::history::{Ended, History, Level, What};

/// What its client knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged at this level, and where it stands.
    Acked {
        /// The level.
        level: WriteLevel,
        /// Where; `None` in families whose replies do not say.
        at: Option<Position>,
    },
    /// It may be there or not.
    Unknown,
    /// It had no effect and never will.
    Void,
}

/// A write that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What no other write carries.
    pub serial: Bytes,
    /// What its client knows.
    pub fate: Fate,
}

/// The serials that a replica has applied, in the order in which it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Whose.
    pub node: NodeId,
    /// What it applied.
    pub applied: Vec<Bytes>,
}

/// What was reported as possibly lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    // By stream: ranges with the term of their first entry.
    ranges: BTreeMap<StreamId, Vec<(RangeInclusive<LogIndex>, Term)>>,
    crashed: BTreeSet<(StreamId, Term)>,
}

impl Losses {
    /// Nothing was reported.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new(), crashed: BTreeSet::new() }
    }

    /// These entries were reported; `term` is that of the first of them.
    pub fn report(&mut self, stream: StreamId, range: RangeInclusive<LogIndex>, term: Term) {
        self.ranges.entry(stream).or_default().push((range, term));
    }

    /// Takes note of an event, if it is such a report.
    pub fn observe(&mut self, event: &Event) {
        if let Event::LostWrites { stream, range, term } = event {
            self.report(*stream, range.clone(), *term);
        }
    }

    /// The leader of a term crashed: what it held in memory alone is gone with all knowledge of it. Excuses what was
    /// acknowledged in that term at `Memory` and at `Received`, for which nobody is left to report.
    pub fn leader_crashed(&mut self, stream: StreamId, term: Term) {
        self.crashed.insert((stream, term));
    }

    /// Whether the entry was reported.
    #[must_use]
    pub fn contains(&self, at: Position) -> bool {
        let ranges = self.ranges.get(&at.stream).map_or(&[][..], |ranges| &ranges[..]);
        ranges.iter().any(|(range, term)| range.contains(&at.id.index) && *term <= at.id.term)
    }

    /// Whether a weak acknowledgement may be gone.
    pub(super) fn excuses(&self, level: WriteLevel, at: Position) -> bool {
        let in_memory = matches!(level, WriteLevel::Memory | WriteLevel::Received(_));
        self.contains(at) || in_memory && self.crashed.contains(&(at.stream, at.id.term))
    }
}

/// A broken promise of durability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDurable {
    /// An acknowledged write is not there, and nobody has said so.
    #[error("node {node} lacks {serial:?}, acknowledged at {level:?} as {at:?}")]
    Lost {
        /// Who lacks it.
        node: NodeId,
        /// The write.
        serial: Bytes,
        /// The level.
        level: WriteLevel,
        /// Where it stood.
        at: Option<Position>,
    },
    /// What nobody asked for, or what was refused, is there.
    #[error("node {node} applied {serial:?}, which {}", if *refused { "was refused" } else { "nobody asked for" })]
    Phantom {
        /// Who has it.
        node: NodeId,
        /// What.
        serial: Bytes,
        /// Whether it was asked for, and refused.
        refused: bool,
    },
    /// A write was applied more than once.
    #[error("node {node} applied {serial:?} twice")]
    Twice {
        /// Who.
        node: NodeId,
        /// What.
        serial: Bytes,
    },
    /// Writes were applied in another order than their positions say.
    #[error("node {node} applied {serial:?} before {after:?}, which stands before it")]
    OutOfOrder {
        /// Who.
        node: NodeId,
        /// What came too early.
        serial: Bytes,
        /// What should have come first.
        after: Bytes,
    },
    /// A counter is not the sum of what was added.
    #[error("the counter is {value}, which must be from {least} to {most}")]
    Counter {
        /// What it is.
        value: i64,
        /// What was acknowledged, and the least that what is unknown can add.
        least: i64,
        /// The same with the most that it can add.
        most: i64,
    },
    /// Two writes carry one serial: the check cannot tell them apart.
    #[error("two writes carry {serial:?}")]
    NotUnique {
        /// The serial.
        serial: Bytes,
    },
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Acknowledged writes that every replica has.
    pub kept: usize,
    /// Acknowledged below `Quorum`, gone, and reported.
    pub reported: usize,
    /// Of unknown fate, and there.
    pub surfaced: usize,
}

/// Holds the final state of all replicas, once they agree, against what clients know.
///
/// # Errors
/// [`NotDurable`] with the first broken promise.
pub fn check_durability(attempts: &[Attempt], scans: &[Scan], losses: &Losses) -> Result<Durability, NotDurable> {
    let mut fates: HashMap<&Bytes, Fate> = HashMap::with_capacity(attempts.len());
    for attempt in attempts {
        if fates.insert(&attempt.serial, attempt.fate).is_some() {
            return Err(NotDurable::NotUnique { serial: attempt.serial.clone() });
        }
    }
    let mut durability = Durability::default();
    for (nth, scan) in scans.iter().enumerate() {
        let found = check_scan(scan, &fates)?;
        for attempt in attempts {
            let present = found.contains(&attempt.serial);
            let count = match attempt.fate {
                Fate::Void => continue,
                Fate::Unknown if present => &mut durability.surfaced,
                Fate::Unknown => continue,
                Fate::Acked { .. } if present => &mut durability.kept,
                Fate::Acked { level, at } => {
                    let lasting = matches!(level, WriteLevel::Quorum | WriteLevel::Applied(_));
                    if lasting || !at.is_some_and(|at| losses.excuses(level, at)) {
                        let serial = attempt.serial.clone();
                        return Err(NotDurable::Lost { node: scan.node, serial, level, at });
                    }
                    &mut durability.reported
                }
            };
            *count += usize::from(nth == 0);
        }
    }
    Ok(durability)
}

/// No phantom, nothing twice, and acknowledged writes in the order of their positions.
fn check_scan<'a>(scan: &'a Scan, fates: &HashMap<&Bytes, Fate>) -> Result<BTreeSet<&'a Bytes>, NotDurable> {
    let (node, mut found) = (scan.node, BTreeSet::new());
    let mut last: BTreeMap<StreamId, (LogIndex, &Bytes)> = BTreeMap::new();
    for serial in &scan.applied {
        let fate = fates.get(serial);
        if matches!(fate, None | Some(Fate::Void)) {
            return Err(NotDurable::Phantom { node, serial: serial.clone(), refused: fate.is_some() });
        }
        if !found.insert(serial) {
            return Err(NotDurable::Twice { node, serial: serial.clone() });
        }
        if let Some(Fate::Acked { at: Some(at), .. }) = fate {
            let before = last.insert(at.stream, (at.id.index, serial));
            if let Some((_, early)) = before.filter(|(index, _)| *index >= at.id.index) {
                return Err(NotDurable::OutOfOrder { node, serial: early.clone(), after: serial.clone() });
            }
        }
    }
    Ok(found)
}

/// Holds a counter's final value against the additions to it: exact where all that is unknown adds 1, necessary otherwise.
///
/// # Errors
/// [`NotDurable::Counter`].
pub fn check_counter(value: i64, acked: impl IntoIterator<Item = i64>, unknown: &[i64]) -> Result<(), NotDurable> {
    let sum: i64 = acked.into_iter().sum();
    let least = sum + unknown.iter().filter(|&&delta| delta < 0).sum::<i64>();
    let most = sum + unknown.iter().filter(|&&delta| delta > 0).sum::<i64>();
    if (least..=most).contains(&value) { Ok(()) } else { Err(NotDurable::Counter { value, least, most }) }
}

/// The writes of a history whose values are their serials.
#[must_use]
pub fn attempts(history: &History) -> Vec<Attempt> {
    let writes = history.operations().iter().filter_map(|operation| {
        let (What::Write(serial), Level::Write(level)) = (&operation.what, &operation.level) else { return None };
        let fate = match operation.ended {
            Ended::Void => Fate::Void,
            _ if operation.answered_at().is_some() => Fate::Acked { level: *level, at: operation.position },
            _ => Fate::Unknown,
        };
        Some(Attempt { serial: serial.clone(), fate })
    });
    writes.collect()
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kept, {} reported as lost, {} of unknown fate are there", self.kept, self.reported, self.surfaced)
    }
}
