//! What the real log must find again after a crash, told by the storage contract alone.
//!
//! Invariant that it checks: what a start recovers is what some prefix of the storage actions means, and that prefix holds
//! at least everything that was reported durable. Registers alone may be later: the second copy of a torn group's registers
//! counts although the group does not.

use std::collections::{BTreeMap, VecDeque};

use replikit_core::{Batch, LogIndex, Persist, StreamId, WriteId};

use super::image::Image;
use super::{Recovery, RecoveryItem};

/// The meaning of all storage actions so far.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    durable: Image,
    released: BTreeMap<StreamId, LogIndex>,
    under_way: VecDeque<(WriteId, Persist)>,
    seen: Image,
}

/// The same action; `None` for snapshots, whose content is the replica's affair and which are written beside the log.
fn copy(op: &Persist) -> Option<Persist> {
    Some(match op {
        Persist::Append { batch, replace } => Persist::Append { batch: batch.clone(), replace: *replace },
        Persist::Register { group, bytes } => Persist::Register { group: *group, bytes: bytes.clone() },
        Persist::Reset { stream, next } => Persist::Reset { stream: *stream, next: *next },
        Persist::Release { stream, before } => Persist::Release { stream: *stream, before: *before },
        Persist::Snapshot { .. } | Persist::SnapshotChunk { .. } => return None,
    })
}

fn carry_out(image: &mut Image, released: &mut BTreeMap<StreamId, LogIndex>, op: &Persist) {
    image.apply(op).expect("checked when it was taken");
    match op {
        Persist::Reset { stream, .. } => {
            released.remove(stream);
        }
        Persist::Release { stream, before } => {
            let known = released.entry(*stream).or_default();
            *known = (*known).max(*before);
        }
        _ => {}
    }
}

impl Shadow {
    /// An action is handed to the log.
    ///
    /// Errors are sentences: a rule of the contract that the replica broke.
    pub(super) fn persist(&mut self, id: WriteId, op: &Persist) -> Result<(), String> {
        if let Some(op) = copy(op) {
            self.seen.apply(&op)?;
            self.under_way.push_back((id, op));
        }
        Ok(())
    }

    /// The log says that these are durable.
    pub(super) fn durable(&mut self, up_to: WriteId) {
        while self.under_way.front().is_some_and(|(id, _)| *id <= up_to) {
            let (_, op) = self.under_way.pop_front().expect("there is a front");
            carry_out(&mut self.durable, &mut self.released, &op);
        }
    }

    /// A start found this.
    ///
    /// Errors are sentences: a promise that the log broke.
    pub(super) fn recovered(&mut self, recovery: &Recovery) -> Result<(), String> {
        let mut first_difference = None;
        let under_way = core::mem::take(&mut self.under_way);
        let (mut image, mut released) = (self.durable.clone(), self.released.clone());
        let mut left = under_way.iter();
        loop {
            let (mut after, mut after_released) = (image.clone(), released.clone());
            void(&mut after, &mut after_released, recovery);
            for (_, op) in left.clone() {
                if let Persist::Register { group, bytes } = op
                    && recovery.boots.of(*group).register == *bytes
                {
                    after.apply(op).expect("checked when it was taken");
                }
            }
            match difference(&after, &after_released, recovery) {
                None => {
                    (self.durable, self.released) = (after, after_released);
                    self.seen = self.durable.clone();
                    return Ok(());
                }
                Some(difference) => {
                    first_difference.get_or_insert(difference);
                }
            }
            let Some((_, op)) = left.next() else { break };
            carry_out(&mut image, &mut released, op);
        }
        Err(format!(
            "the log recovered what no prefix of its storage actions means; compared with what was durable: {}",
            first_difference.expect("compared at least once")
        ))
    }
}

/// A snapshot may be durable before the log's own record of what it holds: then the log begins anew behind it.
fn void(image: &mut Image, released: &mut BTreeMap<StreamId, LogIndex>, recovery: &Recovery) {
    for at in recovery.boots.groups.values().filter_map(|boot| boot.snapshot) {
        let (next, held) = image.end(at.stream, at.id.index);
        if next <= at.id.index || held.is_some_and(|held| held.term() != at.id.term) {
            carry_out(image, released, &Persist::Reset { stream: at.stream, next: at.id.index.next() });
        }
    }
}

/// How a recovery differs from what an image means; what was released may be missing.
fn difference(image: &Image, released: &BTreeMap<StreamId, LogIndex>, recovery: &Recovery) -> Option<String> {
    for (group, register) in image.registers() {
        let found = recovery.boots.of(group).register;
        if found != register {
            return Some(format!("group {group} has register {found:?} instead of {register:?}"));
        }
    }
    let mut found: BTreeMap<StreamId, Vec<&Batch>> = BTreeMap::new();
    for item in &recovery.items {
        if let RecoveryItem::Batch(batch) = item {
            let batches = found.entry(batch.stream()).or_default();
            while batches.last().is_some_and(|last| last.base() >= batch.base()) {
                batches.pop();
            }
            batches.push(batch);
        }
    }
    for (stream, expected) in image.batches() {
        let found = found.remove(&stream).unwrap_or_default();
        let expected: Vec<&Batch> = expected.collect();
        let needed_from = released.get(&stream).copied().unwrap_or_default();
        let missing = expected.len().checked_sub(found.len());
        let tail = missing.map(|missing| &expected[missing..]);
        if tail != Some(&found[..]) {
            return Some(format!("stream {stream} holds {} instead of {}", range(&found), range(&expected)));
        }
        let lost = expected[..missing.unwrap_or(0)].last().is_some_and(|lost| lost.last().index >= needed_from);
        if lost {
            return Some(format!(
                "stream {stream} holds {}, though only what is before {needed_from} of {} was released",
                range(&found),
                range(&expected)
            ));
        }
    }
    found.into_iter().find(|(_, batches)| !batches.is_empty()).map(|(stream, batches)| {
        format!("stream {stream} holds {}, which was never written or is void", range(&batches))
    })
}

fn range(batches: &[&Batch]) -> String {
    match batches {
        [] => "nothing".to_owned(),
        [first, .., last] => format!("{} batches from {first:?} to {last:?}", batches.len()),
        [one] => format!("{one:?}"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use replikit_core::{Boot, GroupId};

    use super::*;

    fn register(bytes: &'static [u8]) -> Persist {
        Persist::Register { group: GroupId(1), bytes: Bytes::from_static(bytes) }
    }

    fn found(bytes: &'static [u8]) -> Recovery {
        let mut recovery = Recovery::default();
        let boot = Boot { register: Bytes::from_static(bytes), ..Boot::default() };
        recovery.boots.groups.insert(GroupId(1), boot);
        recovery
    }

    /// Found by many Raft groups on the real log, seed 973: the second register came from the copy of a torn group.
    #[test]
    fn a_register_may_be_later_than_what_was_durable_but_never_earlier() {
        for (bytes, fine) in [(&b"old"[..], false), (b"durable", true), (b"torn", true), (b"never", false)] {
            let mut shadow = Shadow::default();
            for (id, op) in [register(b"old"), register(b"durable"), register(b"torn")].iter().enumerate() {
                shadow.persist(WriteId(id as u64 + 1), op).expect("in order");
            }
            shadow.durable(WriteId(2));
            assert_eq!(shadow.recovered(&found(bytes)).is_ok(), fine, "{bytes:?}");
        }
    }
}
