//! What was applied anywhere, for ever: the first replica to apply an index writes it down, all others must agree. Beside
//! it a plain model of the keys, so that every answer can be held against the position that it claims.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use replikit_core::{LogIndex, NodeId, WriteEffect, WriteOp, keyspace};
use replikit_sim::WantedWrite;

use super::clients::command;

#[derive(Debug)]
struct Line {
    command: Bytes,
    hash: u64,
    reply: Bytes,
    by: NodeId,
}

/// A command that clients asked for.
#[derive(Debug)]
struct Wanted {
    write: WantedWrite,
    asked: u32,
    refused: u32,
    applied: u32,
    at: Option<LogIndex>,
}

/// The contents; see [`Ledger`].
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: Vec<Option<Line>>,
    wanted: HashMap<Bytes, Wanted>,
    garbage: HashMap<Bytes, ()>,
    // The values of each key with the index from which on they stood.
    versions: BTreeMap<Bytes, Vec<(LogIndex, Option<Bytes>)>>,
    broken: Option<String>,
}

/// The committed log of a group as its machines saw it, shared by all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Lines>>);

impl Ledger {
    /// The contents. One thread runs a seed, so nobody waits here.
    pub(crate) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().expect("one thread")
    }
}

impl Lines {
    /// A client asks for this.
    pub(crate) fn want(&mut self, write: &WantedWrite) {
        let new = || Wanted { write: write.clone(), asked: 0, refused: 0, applied: 0, at: None };
        self.wanted.entry(command(write)).or_insert_with(new).asked += 1;
    }

    /// A client was told that what it asked for had no effect, and never will have one.
    pub(crate) fn refuse(&mut self, write: &WantedWrite) {
        let Some(wanted) = self.wanted.get_mut(&command(write)) else { return };
        wanted.refused += 1;
        if wanted.applied > wanted.asked - wanted.refused && self.broken.is_none() {
            let at = wanted.at.unwrap_or_default();
            self.broken = Some(format!("refused_is_not_applied: {write:?} was refused and stands at {at}"));
        }
    }

    /// A client sends bytes that mean nothing.
    pub(crate) fn want_garbage(&mut self, bytes: &Bytes) {
        self.garbage.insert(bytes.clone(), ());
    }

    /// A machine applied a command; `hash` covers it and all before it.
    pub(crate) fn applied(&mut self, node: NodeId, at: LogIndex, command: &[u8], hash: u64, reply: &Bytes) {
        let slot = at.0 as usize;
        if self.lines.len() <= slot {
            self.lines.resize_with(slot + 1, || None);
        }
        let broken = match &self.lines[slot] {
            Some(line) if line.command != command => {
                Some(format!("state_machine_safety: nodes {node} and {} applied different commands at {at}", line.by))
            }
            Some(line) if line.hash != hash || line.reply != *reply => Some(format!(
                "same_state_at_same_index: nodes {node} and {} differ in what they applied up to {at}",
                line.by
            )),
            Some(_) => None,
            None => {
                let command = Bytes::copy_from_slice(command);
                self.lines[slot] = Some(Line { command: command.clone(), hash, reply: reply.clone(), by: node });
                self.first_applied(at, &command, reply).err()
            }
        };
        if self.broken.is_none() {
            self.broken = broken;
        }
    }

    fn first_applied(&mut self, at: LogIndex, command: &Bytes, reply: &Bytes) -> Result<(), String> {
        let Some(wanted) = self.wanted.get_mut(command) else {
            if self.garbage.contains_key(command) {
                return Ok(());
            }
            return Err(format!("no_phantom: {command:?} was applied at {at}, and nobody asked for it"));
        };
        wanted.applied += 1;
        if wanted.applied > wanted.asked {
            let first = wanted.at.unwrap_or_default();
            return Err(format!("exactly_once: a command was applied at {first} and again at {at}"));
        }
        if wanted.applied > wanted.asked - wanted.refused {
            return Err(format!("refused_is_not_applied: {:?} was refused and stands at {at}", wanted.write));
        }
        wanted.at = Some(at);
        let versions = self.versions.entry(wanted.write.key.clone()).or_default();
        let now = versions.last().and_then(|(_, value)| value.clone());
        let (next, effect) = carry_out(now, &wanted.write.op);
        versions.push((at, next));
        if keyspace::decode_effect(reply).ok().as_ref() != Some(&effect) {
            return Err(format!("replies_tell_the_effect: {:?} at {at} was answered {reply:?}", wanted.write));
        }
        Ok(())
    }

    /// What was broken first, if anything was.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// The command applied at an index and the reply to it.
    pub(crate) fn command(&self, at: LogIndex) -> Option<(&Bytes, &Bytes)> {
        self.lines.get(at.0 as usize)?.as_ref().map(|line| (&line.command, &line.reply))
    }

    /// Whether a command was applied anywhere.
    pub(crate) fn is_applied(&self, command: &Bytes) -> bool {
        self.wanted.get(command).is_some_and(|wanted| wanted.at.is_some())
    }

    /// The value of a key as of an index.
    pub(crate) fn value(&self, key: &Bytes, at: LogIndex) -> Option<&Bytes> {
        let versions = self.versions.get(key)?;
        let after = versions.partition_point(|&(index, _)| index <= at);
        versions[..after].last()?.1.as_ref()
    }
}

/// The keyspace's meaning, written down a second time.
fn carry_out(now: Option<Bytes>, op: &WriteOp) -> (Option<Bytes>, WriteEffect) {
    match op {
        WriteOp::Put { value } => (Some(value.clone()), WriteEffect::Done),
        WriteOp::Delete => (None, WriteEffect::Done),
        WriteOp::CompareAndSet { expected, new } if *expected == now => (new.clone(), WriteEffect::Done),
        WriteOp::CompareAndSet { .. } => (now.clone(), WriteEffect::Mismatch { found: now }),
        WriteOp::Add { delta } => {
            let text = now.as_deref().map_or("0", |text| core::str::from_utf8(text).unwrap_or("x"));
            match text.parse::<i64>().ok().and_then(|sum| sum.checked_add(*delta)) {
                Some(value) => (Some(value.to_string().into()), WriteEffect::Counter { value }),
                None => (now, WriteEffect::NotACounter),
            }
        }
        other => unreachable!("no operation of the workload: {other:?}"),
    }
}
