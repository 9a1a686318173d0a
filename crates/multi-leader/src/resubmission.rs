//! Coming back: a node that was evicted begins anew, and makes those of its writes again that nobody else has.
//!
//! Invariants: what an evicted node had written is put away on its disk before its state is dropped, and stays there until it
//! has been made again or was found to be held by somebody; a crash at any point comes back into the same procedure. The dot
//! that its client was told goes with a write that is made again, however often, so it counts once. A write made again keeps
//! its time and replaces what it had replaced before, and nothing else: it was made without having seen what others have
//! written since. A value that merges is put away as a whole: joining it twice is joining it once.
//! Source: an offline replica's writes handed back: issue of every system with a limit on absence (Cassandra's grace period,
//! Ditto's time to live); the conservation law of `docs/multi-leader.md`.

use core::ops::{Bound, ControlFlow};
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::crdt::{CrdtKind, CrdtState};
use replikit_core::keyspace::Conflict;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batch, BatchKind, BatchMeta, Dot, Event, HybridTimestamp, LogIndex, Origin, OriginId, Persist, Stamp, Term,
    VersionVector,
};
use serde::{Deserialize, Serialize};

use crate::record::{Change, LoggedWrite, Provenance, Record};
use crate::register::Stage;
use crate::replica::MultiLeader;
use crate::state::Content;

/// Entries of one batch of the stash, in bytes, unless one is larger.
const STASH_BATCH_BYTES: usize = 256 << 10;

/// A record of the stash.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Stashed {
    /// What had been applied in the life that the records behind it are of.
    Life(VersionVector),
    /// Records before this one that have been made again, and are dealt with: by what their clients were told.
    Made(BTreeSet<Dot>),
    Item(Item),
}

/// Something that only this node may have.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Item {
    /// An own write that had not been replaced.
    Write {
        key: Bytes,
        /// What its client was told.
        identity: Dot,
        /// What it was last.
        dot: Dot,
        time: HybridTimestamp,
        /// `None` for a delete.
        value: Option<Bytes>,
        /// What had not been replaced either.
        beside: Vec<Dot>,
    },
    /// A value that merges, as a delta.
    Value { key: Bytes, kind: CrdtKind, delta: Bytes },
    /// An own write that was overwritten, and that only the audit of this node may have.
    Overwritten(Conflict),
}

/// What a node that was evicted has put away, in a stream of its log.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    // Each with what had been applied in its life.
    items: Vec<(Arc<VersionVector>, Item)>,
    lives: Vec<Arc<VersionVector>>,
    /// The end of the stream, and the digest of its last batch.
    last: u64,
    digest: u64,
    /// The identities of own writes that have been made again.
    again: BTreeSet<Dot>,
}

impl Stash {
    /// A batch of the stream was found on disk.
    pub(crate) fn recover(&mut self, batch: &Batch) {
        for entry in batch.entries() {
            match postcard::from_bytes(entry.payload) {
                Ok(Stashed::Life(applied)) => self.lives.push(Arc::new(applied)),
                Ok(Stashed::Made(made)) => self.is_made(&made),
                Ok(Stashed::Item(item)) => {
                    if let Some(life) = self.lives.last() {
                        self.items.push((life.clone(), item));
                    }
                }
                Err(_) => {}
            }
        }
        self.last = batch.last().index.0;
        self.digest = batch.digest();
    }

    fn is_made(&mut self, made: &BTreeSet<Dot>) {
        let is_left = |item: &Item| !matches!(item, Item::Write { identity, .. } if made.contains(identity));
        self.items.retain(|(_, item)| is_left(item));
    }

    /// An own batch was found on disk.
    pub(crate) fn recover_own(&mut self, batch: &Batch) {
        let writes = LoggedWrite::read(batch).unwrap_or_default();
        self.again.extend(writes.into_iter().filter_map(|write| write.again));
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.last == 0
    }
}

impl MultiLeader {
    /// This node was evicted and is named again: it puts away what only it may have, and drops its state.
    pub(crate) fn begin_anew(&mut self) {
        self.close_batch();
        self.give_up_writes();
        self.give_up_reads();
        let items = self.only_here();
        let stashed = items.len() as u64;
        if self.has_written() {
            self.put_away(items);
        }
        self.register.stage = Stage::Resetting;
        self.persist_register();
        self.drop_state();
        self.event(Event::BeganAnew { epoch: self.epoch, stashed });
    }

    /// What a crash has interrupted, once the disk has been read.
    pub(crate) fn resume_coming_back(&mut self) {
        match self.register.stage {
            // It was not complete when the process ended.
            Stage::Regular if !self.stash.is_empty() => self.forget_stash(),
            Stage::Regular | Stage::Resubmitting => {}
            Stage::Resetting => self.drop_state(),
        }
    }

    fn forget_stash(&mut self) {
        self.stash = Stash::default();
        self.persist(Persist::Reset { stream: self.stream_id(OriginId::STASH), next: LogIndex(1) });
    }

    fn is_own(&self, dot: Dot) -> bool {
        Origin::of(dot.origin).is_some_and(|origin| origin.node == self.config.node)
    }

    /// Without writes of its own there is nothing that only it may have written.
    fn has_written(&self) -> bool {
        self.state.applied().origins().any(|origin| self.is_own(Dot { origin, sequence: 1 }))
    }

    /// Own writes that have not been replaced, values that merge, and own writes that were overwritten.
    fn only_here(&self) -> Vec<Item> {
        let (mut items, mut live) = (Vec::new(), BTreeSet::new());
        let applied = self.state.applied();
        if !self.has_written() {
            return items;
        }
        self.state.map().for_each_from(Bound::Unbounded, |key, slot| {
            let key = || Bytes::copy_from_slice(key);
            match &slot.content {
                Content::Merging(merging) => {
                    let state = &merging.state;
                    items.push(Item::Value { key: key(), kind: state.kind(), delta: state.to_delta(applied) });
                }
                Content::Versions(versions) => {
                    let all = versions.as_slice();
                    for sibling in all.iter().filter(|sibling| self.is_own(sibling.dot())) {
                        let version = &sibling.version;
                        live.insert(sibling.dot());
                        items.push(Item::Write {
                            key: key(),
                            identity: sibling.identity(),
                            dot: sibling.dot(),
                            time: version.stamp.time,
                            value: version.value.clone(),
                            beside: all.iter().flat_map(|sibling| [sibling.dot(), sibling.identity()]).collect(),
                        });
                    }
                }
            }
            ControlFlow::Continue(())
        });
        self.state.audit.entries().for_each_from(Bound::Unbounded, |_, conflict| {
            let dot = conflict.overwritten.version.stamp.dot;
            if self.is_own(dot) && !live.contains(&dot) {
                items.push(Item::Overwritten(conflict.clone()));
            }
            ControlFlow::Continue(())
        });
        items
    }

    /// Adds to the stash: what is in it already stays before it.
    fn put_away(&mut self, items: Vec<Item>) {
        let life = Arc::new(self.state.applied().clone());
        // What was made again in the life that ends here is among the items, if it has not been replaced.
        let made = core::mem::take(&mut self.stash.again);
        self.stash.is_made(&made);
        let mut records = vec![Stashed::Made(made), Stashed::Life((*life).clone())];
        self.stash.lives.push(life.clone());
        for item in items {
            records.push(Stashed::Item(item.clone()));
            self.stash.items.push((life.clone(), item));
        }
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        for (at, record) in records.iter().enumerate() {
            let payload = postcard::to_stdvec(record).expect("a record always encodes into memory");
            bytes += payload.len();
            payloads.push(payload);
            if bytes >= STASH_BATCH_BYTES || at + 1 == records.len() {
                let meta = BatchMeta {
                    cluster: self.config.cluster,
                    stream: self.stream_id(OriginId::STASH),
                    base: LogIndex(self.stash.last + 1),
                    term: Term(0),
                    prev_digest: self.stash.digest,
                    time: HybridTimestamp(0),
                    kind: BatchKind::Commands,
                };
                let batch = Batch::build(&meta, payloads.iter().map(|payload| (&payload[..], None)));
                (self.stash.last, self.stash.digest) = (batch.last().index.0, batch.digest());
                self.persist(Persist::Append { batch, replace: false });
                payloads.clear();
                bytes = 0;
            }
        }
    }

    /// All that the members have is here, and a new incarnation writes: what is left of the stash is made again.
    pub(crate) fn resubmit(&mut self) {
        let mut stash = core::mem::take(&mut self.stash);
        let applied = self.state.applied().clone();
        let (mut writes, mut known) = (0, 0);
        let mut audited = false;
        // In the order in which they were made; values behind them.
        let order = |(_, item): &(Arc<VersionVector>, Item)| match item {
            Item::Write { time, dot, .. } => (0, Some(Stamp { time: *time, dot: *dot })),
            Item::Value { .. } => (1, None),
            Item::Overwritten(_) => (2, None),
        };
        stash.items.sort_by_key(order);
        for removal in self.removals(&stash) {
            let (key, delta) = &removal;
            self.write_again(&Record { key, change: Change::Merge(delta), provenance: Provenance::All });
            writes += 1;
        }
        for (life, item) in stash.items {
            match item {
                Item::Write { key, identity, dot, time, value, beside } => {
                    if applied.contains(dot) || applied.contains(identity) || !stash.again.insert(identity) {
                        known += 1;
                        continue;
                    }
                    let there = self.state.versions(&key);
                    let replaced = |dot: Dot| life.contains(dot) && !beside.contains(&dot);
                    let old = there.as_slice().iter();
                    let old: Vec<_> = old.filter(|old| replaced(old.dot()) || replaced(old.identity())).collect();
                    let values = old.iter().filter(|old| old.version.value.is_some());
                    let newest_wins = matches!(self.state.keyspaces.of(&key).conflicts, ConflictPolicy::Lww);
                    let decided = values.map(|old| old.version.stamp).max().filter(|_| newest_wins);
                    let replaces = old.iter().map(|old| old.dot()).collect();
                    let change = value.as_ref().map_or(Change::Delete, |value| Change::Put(value));
                    let provenance = Provenance::Again { dot: identity, time, replaces, decided };
                    self.write_again(&Record { key: &key, change, provenance });
                    writes += 1;
                }
                Item::Value { key, kind, delta } => {
                    let nothing = CrdtState::new(kind);
                    let mut state = self.state.merging(&key).unwrap_or(&nothing).clone();
                    state.strip(self.state.applied());
                    let mut joined = state.clone();
                    let brings = joined.join_delta(self.state.applied(), &delta).is_ok() && joined != state;
                    if !brings {
                        known += 1;
                        continue;
                    }
                    self.write_again(&Record { key: &key, change: Change::Merge(&delta), provenance: Provenance::All });
                    writes += 1;
                }
                Item::Overwritten(conflict) => {
                    let dot = conflict.overwritten.version.stamp.dot;
                    if !applied.contains(dot) && !stash.again.contains(&dot) {
                        self.state.audit.add(&conflict.key, conflict.overwritten);
                        audited = true;
                    }
                }
            }
        }
        self.close_batch();
        let lost = |life: &Arc<VersionVector>| -> u64 {
            let others = life
                .ranges_beyond(&applied)
                .filter(|range| !self.is_own(Dot { origin: range.origin, sequence: range.first }));
            others.map(|range| range.last - range.first + 1).sum()
        };
        let dropped = stash.lives.last().map_or(0, lost);
        let had_stash = stash.last > 0;
        if audited {
            self.save();
        }
        self.register.stage = Stage::Regular;
        self.persist_register();
        if had_stash {
            self.forget_stash();
        }
        self.event(Event::Resubmitted { writes, known, dropped });
    }

    /// Of a value that merges, nothing is kept once nothing of it is left and every member has what this node wrote to it. So
    /// what is there now, and was known in a life that had nothing of the key in the end, was removed in it: by a write of
    /// another node that may be here only.
    fn removals(&self, stash: &Stash) -> Vec<(Bytes, Bytes)> {
        let mut removals = Vec::new();
        for life in &stash.lives {
            let of_life = |(of, item): &(Arc<VersionVector>, Item)| match item {
                Item::Value { key, .. } if Arc::ptr_eq(of, life) => Some(key.clone()),
                _ => None,
            };
            let kept: BTreeSet<Bytes> = stash.items.iter().filter_map(of_life).collect();
            self.state.map().for_each_from(Bound::Unbounded, |key, slot| {
                if let Content::Merging(merging) = &slot.content
                    && !kept.contains(key)
                {
                    let state = &merging.state;
                    let mut removed = VersionVector::new();
                    state.visit(&mut |dot| {
                        if life.contains(dot) {
                            removed.insert(dot);
                        }
                    });
                    if !removed.is_empty() {
                        let delta = CrdtState::new(state.kind()).to_delta(&removed);
                        removals.push((Bytes::copy_from_slice(key), delta));
                    }
                }
                ControlFlow::Continue(())
            });
        }
        removals
    }

    fn write_again(&mut self, record: &Record<'_>) {
        let origin = self.origin().expect("a new incarnation writes");
        self.begin_batch(self.now, origin);
        let open = self.open.as_ref().expect("begun just now");
        let stamp = Stamp { time: open.time, dot: open.next_dot(origin) };
        self.write_record(stamp, record);
        if self.open.as_ref().is_some_and(|open| open.is_full(self.config.limits.batch_bytes_max)) {
            self.close_batch();
        }
    }
}
