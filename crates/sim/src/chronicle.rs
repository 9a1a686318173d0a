//! What happened in a run, as plain data: messages, storage, crashes, faults and requests, for whoever draws or reads it.
//!
//! Invariant: lines are in the order in which things happened; of a long run the newest are kept.

use std::collections::VecDeque;

use replikit_core::{NodeId, Time, Token};

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A message was sent; the same number arrives, perhaps twice, or never.
    Sent {
        /// Its number, unique in the run.
        message: u64,
        /// To whom.
        to: NodeId,
        /// What it says.
        text: String,
    },
    /// A message came in and was understood.
    Arrived {
        /// Its number.
        message: u64,
        /// From whom.
        from: NodeId,
    },
    /// A message came in and was refused: damaged, or of another cluster.
    Refused {
        /// Its number.
        message: u64,
        /// From whom.
        from: NodeId,
    },
    /// A client's request reached a node.
    Requested {
        /// Which.
        token: Token,
        /// What it says.
        text: String,
    },
    /// A request ended.
    Ended {
        /// Which.
        token: Token,
        /// How.
        text: String,
    },
    /// The replica wanted something else done: storage, a read, an event.
    Did {
        /// What.
        text: String,
    },
    /// The storage answered.
    Stored {
        /// What.
        text: String,
    },
    /// A process began.
    Started,
    /// A process ended.
    Crashed,
    /// A fault struck, or ended.
    Fault {
        /// Which.
        text: String,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// True time.
    pub at: Time,
    /// At which node.
    pub node: NodeId,
    /// What.
    pub what: Happening,
}

/// The newest lines of a run.
#[derive(Clone, Debug, Default)]
pub struct Chronicle {
    lines: VecDeque<Line>,
    lines_max: usize,
}

impl Chronicle {
    /// Keeps so many lines.
    #[must_use]
    pub const fn new(lines_max: usize) -> Self {
        Self { lines: VecDeque::new(), lines_max }
    }

    pub(crate) fn note(&mut self, at: Time, node: NodeId, what: Happening) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { at, node, what });
    }

    /// Only the newest lines.
    #[must_use]
    pub fn newest(&self, lines: usize) -> Self {
        let skip = self.lines.len().saturating_sub(lines);
        Self { lines: self.lines.iter().skip(skip).cloned().collect(), lines_max: self.lines_max }
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }
}
