//! What the real log must find again after a crash, told by the storage contract alone.
//!
//! Invariant that it checks: what a start recovers is what some prefix of the storage actions means, and that prefix holds
//! at least everything that was reported durable. Registers alone may be later: the second copy of a torn group's registers
//! counts although the group does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{Batch, GroupId, LogAnswer, LogIndex, Persist, Position, StreamId, Term, WriteId};

use super::disk::Doubt;
use super::image::Image;
use super::{Recovery, RecoveryItem};

/// The meaning of all storage actions so far.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    durable: Image,
    released: BTreeMap<StreamId, LogIndex>,
    under_way: VecDeque<(WriteId, Persist)>,
    seen: Image,
    /// Every batch that was ever handed over, and every register.
    written: BTreeMap<(StreamId, LogIndex, Term), Vec<Batch>>,
    registers: BTreeMap<GroupId, BTreeSet<Bytes>>,
    snapshots: BTreeMap<GroupId, Snapshots>,
}

/// A snapshot that was asked for, and the first index of each stream of its group that it does not hold.
#[derive(Debug)]
struct Asked {
    at: Position,
    lacks: BTreeMap<StreamId, LogIndex>,
}

/// The snapshots of a group, in the order in which they were asked for.
#[derive(Debug, Default)]
struct Snapshots {
    asked: Vec<Asked>,
    /// How many of them lie before or at the newest that was said to be durable.
    durable: usize,
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
        match op {
            Persist::Append { batch, .. } => {
                let same = self.written.entry((batch.stream(), batch.base(), batch.term())).or_default();
                if !same.contains(batch) {
                    same.push(batch.clone());
                }
            }
            Persist::Register { group, bytes } => {
                self.registers.entry(*group).or_default().insert(bytes.clone());
            }
            Persist::Snapshot { at, .. } | Persist::SnapshotChunk { at, last: true, .. } => {
                let streams = self.seen.batches().filter(|(stream, _)| stream.group == at.stream.group);
                let mut lacks: BTreeMap<StreamId, LogIndex> = streams
                    .filter_map(|(stream, batches)| Some((stream, batches.last()?.last().index.next())))
                    .collect();
                lacks.insert(at.stream, at.id.index.next());
                self.snapshots.entry(at.stream.group).or_default().asked.push(Asked { at: *at, lacks });
            }
            _ => {}
        }
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

    /// The log says that this snapshot is durable.
    pub(super) fn snapshot_durable(&mut self, at: Position) {
        let known = self.snapshots.entry(at.stream.group).or_default();
        let place = known.asked.iter().rposition(|asked| asked.at == at).map_or(0, |place| place + 1);
        known.durable = known.durable.max(place);
    }

    /// A read of the log was answered with this.
    ///
    /// Errors are sentences: a promise that the log broke.
    pub(super) fn answered(&self, answer: &LogAnswer) -> Result<(), String> {
        match answer {
            LogAnswer::Batches(batches) => batches.as_slice().iter().try_for_each(|batch| self.is_written(batch)),
            LogAnswer::Compacted { .. } | LogAnswer::Faulty(_) => Ok(()),
        }
    }

    fn is_written(&self, batch: &Batch) -> Result<(), String> {
        let known = self.written.get(&(batch.stream(), batch.base(), batch.term()));
        if known.is_some_and(|known| known.contains(batch)) {
            return Ok(());
        }
        Err(format!("the log handed out {batch:?}, which was never written"))
    }

    /// A start found this. `doubt` is what the disk may have cost.
    ///
    /// Errors are sentences: a promise that the log broke.
    pub(super) fn recovered(&mut self, recovery: &Recovery, doubt: Doubt) -> Result<(), String> {
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item {
                self.is_written(batch)?;
            }
        }
        if doubt < Doubt::Silent {
            self.snapshots_are_kept(recovery)?;
        }
        // After a silent loss even what agrees may be of another life: incarnations come again.
        if doubt < Doubt::Silent {
            let Err(why) = self.is_prefix(recovery) else { return Ok(()) };
            if doubt == Doubt::None {
                return Err(why);
            }
            self.is_told(recovery, doubt)
                .map_err(|what| format!("{why}; a damaged disk does not excuse it: {what}"))?;
        }
        self.under_way.clear();
        self.durable.adopt(recovery);
        for (group, known) in &mut self.snapshots {
            let found = recovery.boots.of(*group).snapshot;
            known.durable = known.asked.iter().rposition(|asked| Some(asked.at) == found).map_or(0, |place| place + 1);
        }
        self.seen = self.durable.clone();
        Ok(())
    }

    /// No group may go on without a snapshot that was durable, or with an older one, once anything is gone that it holds.
    fn snapshots_are_kept(&self, recovery: &Recovery) -> Result<(), String> {
        for (group, known) in self.snapshots.iter().filter(|(_, known)| known.durable > 0) {
            let found = recovery.boots.of(*group).snapshot;
            let place = found.and_then(|at| known.asked.iter().rposition(|asked| asked.at == at));
            let lacks = place.map(|place| &known.asked[place].lacks);
            if place.is_none_or(|place| place + 1 < known.durable) && self.anything_is_gone(*group, lacks, recovery) {
                let durable = known.asked[known.durable - 1].at;
                return Err(format!("group {group} has the snapshot {found:?}, though {durable:?} was durable"));
            }
        }
        Ok(())
    }

    /// Whether anything is gone that the snapshot which was found, if any, lacks.
    fn anything_is_gone(
        &self,
        group: GroupId,
        lacks: Option<&BTreeMap<StreamId, LogIndex>>,
        recovery: &Recovery,
    ) -> bool {
        let there = |batch: &Batch| {
            recovery.items.iter().any(|item| matches!(item, RecoveryItem::Batch(found) if found == batch))
        };
        let mut streams = self.durable.batches().filter(|(stream, _)| stream.group == group);
        streams.any(|(stream, mut batches)| {
            let first = lacks.and_then(|lacks| lacks.get(&stream)).copied().unwrap_or_default();
            batches.any(|batch| batch.last().index >= first && !there(batch))
        })
    }

    /// Whether what is missing was told by a cut tail.
    fn is_told(&self, recovery: &Recovery, doubt: Doubt) -> Result<(), String> {
        let told = |stream: &StreamId| recovery.boots.of(stream.group).tail_cut.contains(stream);
        for (group, register) in self.durable.registers() {
            let found = recovery.boots.of(group).register;
            let may_be_older = doubt == Doubt::Misread && !recovery.boots.of(group).tail_cut.is_empty();
            if found != register && !may_be_older && !self.is_later(group, &found) {
                return Err(format!("group {group} has register {found:?} instead of {register:?}"));
            }
        }
        let mut found: BTreeMap<StreamId, Vec<&Batch>> = BTreeMap::new();
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item {
                found.entry(batch.stream()).or_default().push(batch);
            }
        }
        let (mut durable, mut released) = (self.durable.clone(), self.released.clone());
        void(&mut durable, &mut released, recovery);
        for (stream, expected) in durable.batches() {
            let found = found.get(&stream).map_or(&[][..], |found| &found[..]);
            let needed_from = released.get(&stream).copied().unwrap_or_default();
            let lost = expected.filter(|batch| batch.last().index >= needed_from).find(|batch| !found.contains(batch));
            // Of a stream that began in the torn group there is no trace: that the group was cut has to be enough.
            let traceless = found.is_empty() && !recovery.boots.of(stream.group).tail_cut.is_empty();
            if let Some(lost) = lost
                && !told(&stream)
                && !traceless
            {
                return Err(format!("{lost:?} is gone, and {stream} is not told to be cut"));
            }
        }
        Ok(())
    }

    fn is_later(&self, group: GroupId, register: &Bytes) -> bool {
        let mut under_way = self.under_way.iter();
        under_way
            .any(|(_, op)| matches!(op, Persist::Register { group: of, bytes } if *of == group && bytes == register))
    }

    /// Whether what was found is what some prefix of the actions means; then that is what the next actions build on.
    fn is_prefix(&mut self, recovery: &Recovery) -> Result<(), String> {
        let mut first_difference = None;
        let (mut image, mut released) = (self.durable.clone(), self.released.clone());
        let mut left = self.under_way.iter();
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
                    self.under_way.clear();
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
    use replikit_core::{BatchKind, BatchMeta, Boot, BytesSource, ClusterId, HybridTimestamp};

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
            assert_eq!(shadow.recovered(&found(bytes), Doubt::None).is_ok(), fine, "{bytes:?}");
        }
    }

    /// Found by a multi-leader group on the real log, seed 229: the first batch of its stream lay in the torn group.
    #[test]
    fn the_loss_of_a_whole_stream_is_told_by_a_cut_of_its_group() {
        let stream = StreamId { group: GroupId(1), origin: replikit_core::OriginId(2 << 20 | 1) };
        let meta = BatchMeta {
            cluster: ClusterId::from_name("test"),
            stream,
            base: LogIndex(1),
            term: Term(0),
            prev_digest: 0,
            time: HybridTimestamp(0),
            kind: BatchKind::Commands,
        };
        let batch = Batch::build(&meta, core::iter::once((&b"x"[..], None)));
        for (tail_cut, fine) in [(vec![], false), (vec![StreamId::consensus(GroupId(1))], true)] {
            let mut shadow = Shadow::default();
            shadow.persist(WriteId(1), &register(b"one")).expect("in order");
            shadow.persist(WriteId(2), &Persist::Append { batch: batch.clone(), replace: false }).expect("in order");
            shadow.durable(WriteId(2));
            let mut recovery = found(b"one");
            recovery.boots.groups.get_mut(&GroupId(1)).expect("just made").tail_cut = tail_cut;
            assert_eq!(shadow.recovered(&recovery, Doubt::Tail).is_ok(), fine);
        }
    }

    /// Found by the register on the real log, seed 3821: the newer snapshot's file was lost before anything was released for it.
    #[test]
    fn an_older_snapshot_is_fine_only_while_all_that_it_lacks_is_still_in_the_log() {
        let stream = StreamId::consensus(GroupId(1));
        let mut batches: Vec<Batch> = Vec::new();
        for base in 1..=3 {
            let meta = BatchMeta {
                cluster: ClusterId::from_name("test"),
                stream,
                base: LogIndex(base),
                term: Term(1),
                prev_digest: batches.last().map_or(0, Batch::digest),
                time: HybridTimestamp(0),
                kind: BatchKind::Commands,
            };
            batches.push(Batch::build(&meta, core::iter::once((&b"x"[..], None))));
        }
        let position = |batch: &Batch| Position { stream, id: batch.last(), digest: batch.digest() };
        let snapshot =
            |batch| Persist::Snapshot { at: position(batch), source: Box::new(BytesSource::new(Bytes::new())) };
        let append = |batch: &Batch| Persist::Append { batch: batch.clone(), replace: false };
        for (kept, fine) in [(1, true), (2, false)] {
            let mut shadow = Shadow::default();
            let release = Persist::Release { stream, before: LogIndex(2) };
            let (first, second) = (append(&batches[0]), append(&batches[1]));
            let ops = [first, snapshot(&batches[0]), release, second, append(&batches[2]), snapshot(&batches[2])];
            for (id, op) in (1..).zip(&ops) {
                shadow.persist(WriteId(id), op).expect("in order");
            }
            shadow.durable(WriteId(6));
            shadow.snapshot_durable(position(&batches[0]));
            shadow.snapshot_durable(position(&batches[2]));
            let mut recovery = found(b"");
            let boot = recovery.boots.groups.get_mut(&GroupId(1)).expect("just made");
            boot.snapshot = Some(position(&batches[0]));
            recovery.items = batches[kept..].iter().cloned().map(RecoveryItem::Batch).collect();
            assert_eq!(shadow.recovered(&recovery, Doubt::None).is_ok(), fine, "from {kept} on");
        }
    }
}
