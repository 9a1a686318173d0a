//! What machines did, by log index: the first replica to get to an index writes it down, all others must agree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use replikit_core::{LogIndex, NodeId};

use crate::check::StateHash;

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) command: Bytes,
    pub(super) reply: Bytes,
    pub(super) state: Option<Seen>,
}

/// What can be seen of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) state: StateHash,
    /// The answers to the probes.
    pub(super) answers: Vec<Bytes>,
}

#[derive(Debug, Default)]
struct Pages {
    lines: BTreeMap<LogIndex, (Line, NodeId)>,
    applied_to: BTreeMap<NodeId, LogIndex>,
    applied: u64,
    restored: u64,
    broken: Option<String>,
    // What the user's code is doing just now, for a panic.
    doing: Option<(NodeId, String)>,
}

/// One for all machines of a run.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pages: Arc<Mutex<Pages>>,
    probes: Arc<[Bytes]>,
    compare_every: u64,
}

impl Ledger {
    pub(super) fn new(probes: Vec<Bytes>, compare_every: u64) -> Self {
        Self { pages: Arc::default(), probes: probes.into(), compare_every }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A machine that panicked did so outside of the lock.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn probes(&self) -> &[Bytes] {
        &self.probes
    }

    /// Whether states are compared at this index.
    pub(super) const fn compares(&self, index: LogIndex) -> bool {
        index.0.is_multiple_of(self.compare_every)
    }

    /// The user's code is about to do something.
    pub(super) fn begin(&self, node: NodeId, doing: impl FnOnce() -> String) {
        self.pages().doing = Some((node, doing()));
    }

    /// It has done it.
    pub(super) fn done(&self) {
        self.pages().doing = None;
    }

    /// What the user's code was doing, and where; node 0 stands for none.
    pub(super) fn doing(&self) -> (NodeId, String) {
        self.pages().doing.take().unwrap_or((NodeId(0), "outside of the machine".to_owned()))
    }

    /// Something is wrong. Only the first counts.
    pub(super) fn broken(&self, what: String) {
        self.pages().broken.get_or_insert(what);
    }

    /// What was wrong first.
    pub(super) fn check(&self) -> Result<(), String> {
        self.pages().broken.clone().map_or(Ok(()), Err)
    }

    /// A node's machine begins anew.
    pub(super) fn started(&self, node: NodeId) {
        self.pages().applied_to.insert(node, LogIndex::ZERO);
    }

    /// A machine applied a command.
    pub(super) fn applied(&self, node: NodeId, index: LogIndex, line: Line) {
        let mut pages = self.pages();
        pages.applied += 1;
        let last = pages.applied_to.insert(node, index).unwrap_or_default();
        if last >= index {
            pages.broken.get_or_insert(format!("node {node} applied index {index} after index {last}"));
        }
        let Some((first, by)) = pages.lines.get(&index) else {
            pages.lines.insert(index, (line, node));
            return;
        };
        let broken = difference(first, &line).map(|what| format!("index {index}, nodes {by} and {node}: {what}"));
        if let Some(broken) = broken {
            pages.broken.get_or_insert(broken);
        }
    }

    /// A machine was restored from a snapshot that holds everything up to an index.
    pub(super) fn restored(&self, node: NodeId, index: LogIndex, seen: &Seen) {
        let mut pages = self.pages();
        pages.restored += 1;
        pages.applied_to.insert(node, index);
        let Some((Line { state: Some(first), .. }, by)) = pages.lines.get(&index) else { return };
        if let Some(what) = different(first, seen) {
            let what =
                format!("index {index}, node {by}, and node {node} after it was restored from a snapshot: {what}");
            pages.broken.get_or_insert(what);
        }
    }

    pub(super) fn line(&self, index: LogIndex) -> Option<Line> {
        self.pages().lines.get(&index).map(|(line, _)| line.clone())
    }

    /// All lines, ascending.
    pub(super) fn lines(&self) -> Vec<(LogIndex, Line)> {
        self.pages().lines.iter().map(|(&index, (line, _))| (index, line.clone())).collect()
    }

    /// Whether so many nodes have applied everything that any of them has.
    pub(super) fn all_applied(&self, nodes: u32) -> bool {
        let pages = self.pages();
        let last = pages.lines.last_key_value().map_or(LogIndex::ZERO, |(&index, _)| index);
        pages.applied_to.len() == nodes as usize && pages.applied_to.values().all(|&index| index == last)
    }

    /// Commands applied and snapshots restored.
    pub(super) fn counts(&self) -> (u64, u64) {
        let pages = self.pages();
        (pages.applied, pages.restored)
    }
}

/// How two machines differ in what one command did to them.
pub(super) fn difference(one: &Line, other: &Line) -> Option<String> {
    if one.command != other.command {
        return Some(format!("different commands, {:?} and {:?}", one.command, other.command));
    }
    if one.reply != other.reply {
        let (command, one, other) = (&one.command, &one.reply, &other.reply);
        return Some(format!("the same command {command:?} was answered {one:?} and {other:?}"));
    }
    match (&one.state, &other.state) {
        (Some(first), Some(second)) => {
            different(first, second).map(|what| format!("after the same command {:?}, {what}", one.command))
        }
        _ => None,
    }
}

/// How two states differ that should be equal.
pub(super) fn different(one: &Seen, other: &Seen) -> Option<String> {
    if one.state != other.state {
        return Some(format!("the same log led to states {:?} and {:?}", one.state, other.state));
    }
    if one.answers != other.answers {
        return Some(format!("the same state answers queries by {:?} and {:?}", one.answers, other.answers));
    }
    None
}
