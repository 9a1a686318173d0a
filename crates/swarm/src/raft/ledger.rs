//! What was applied anywhere, for ever: the first replica to apply an index writes it down, all others must agree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use replikit_core::{LogIndex, NodeId};

#[derive(Debug)]
struct Line {
    command: Bytes,
    hash: u64,
    by: NodeId,
}

#[derive(Debug, Default)]
struct Lines {
    lines: BTreeMap<LogIndex, Line>,
    // Every command is unique, so it may stand at one index only.
    commands: BTreeMap<Bytes, LogIndex>,
    broken: Option<String>,
}

/// The committed log of a group as its machines saw it, shared by all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Lines>>);

impl Ledger {
    /// A machine applied a command; `hash` covers it and all before it.
    pub(crate) fn applied(&self, node: NodeId, at: LogIndex, command: &[u8], hash: u64) {
        let mut lines = self.0.lock().expect("one thread");
        let broken = match lines.lines.get(&at) {
            Some(line) if line.command != command => Some(format!(
                "state machine safety: node {node} and node {} applied different commands at {at}",
                line.by
            )),
            Some(line) if line.hash != hash => Some(format!(
                "same applied index, same state: nodes {node} and {} differ in what they applied up to {at}",
                line.by
            )),
            Some(_) => None,
            None => {
                let line = Line { command: Bytes::copy_from_slice(command), hash, by: node };
                let known = lines.commands.insert(line.command.clone(), at);
                lines.lines.insert(at, line);
                known.map(|known| format!("exactly once: a command was applied at {known} and again at {at}"))
            }
        };
        if lines.broken.is_none() {
            lines.broken = broken;
        }
    }

    /// What was broken first, if anything was.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.0.lock().expect("one thread").broken.clone().map_or(Ok(()), Err)
    }

    /// The command applied at an index.
    pub(crate) fn command(&self, at: LogIndex) -> Option<Bytes> {
        self.0.lock().expect("one thread").lines.get(&at).map(|line| line.command.clone())
    }

    /// The index at which a command was applied.
    pub(crate) fn index(&self, command: &[u8]) -> Option<LogIndex> {
        self.0.lock().expect("one thread").commands.get(command).copied()
    }
}
