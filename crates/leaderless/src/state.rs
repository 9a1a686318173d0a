//! The data of a replica: what has been applied, and what the keys hold.
//!
//! Invariants: the writes of each origin are applied in order, each once, those of different origins in any order; so the
//! vector has no gap and says only what has been applied to the keys. What a key shows depends on the writes that it knows
//! only. What is not on disk here is known as such: a reader waits for it.

use core::ops::{Bound, ControlFlow};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use replikit_core::crdt::CrdtState;
use replikit_core::keyspace::{Audit, Conflict, Map};
use replikit_core::policy::Version;
use replikit_core::{CausalContext, Dot, OriginId, SequenceSet, Stamp, VersionVector, WriteId};
use xxhash_rust::xxh3::Xxh3;

use crate::config::{Keyspace, Keyspaces};
use crate::content::{Content, Decided, Folding, Found, KeyCopy, Known, Stored, Versions};
use crate::message::NotLast;
use crate::record::{Change, Record, Saw, Writes};
use crate::scan::{Copies, PageWanted};
use crate::tree::{Leaves, Tree, leaf_of};

/// A key's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) content: Content,
    /// The newest storage action that changed the key and may not be durable: a reader waits for it.
    pub(crate) pending: WriteId,
    /// The hash of the record as the tree has it.
    hash: u64,
}

/// A walk over all records that makes their tree anew from what is stored.
#[derive(Debug, Default)]
struct Walk {
    /// The keys before this one have been met.
    next: Bytes,
    /// Their tree, as it is now.
    tree: Tree,
}

/// What some of the records are found to be by a walk.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// Keys whose records are not what they were when they were changed last.
    pub(crate) damaged: Vec<Bytes>,
    /// At the end of a walk: leaves that do not hold what was put into them.
    pub(crate) leaves: usize,
    /// Whether this was the end of a walk.
    pub(crate) is_over: bool,
}

/// What may become of a record.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    Alter,
    Lose,
}

/// Some of the keys, and what each is.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) keys: BTreeMap<Bytes, Decided>,
    /// Where the rest begins; `None` when there is none.
    pub(crate) next: Option<Bytes>,
}

/// So many unsettled keys are looked at in one exchange, or this share of all of them, whatever is more: in this many exchanges
/// each has had its turn.
const COLLECTED_MIN: usize = 4096;
const COLLECTED_SHARE: usize = 16;

/// The data of a replica.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) keyspaces: Keyspaces,
    map: Map<Slot>,
    base: VersionVector,
    /// Digest of the newest applied batch of each origin.
    digests: BTreeMap<OriginId, u64>,
    /// Keys with something to decide, to collect, to strip, or to be waited for.
    unsettled: BTreeSet<Bytes>,
    /// The last of them that was looked at.
    collected: Option<Bytes>,
    pub(crate) audit: Audit,
    bytes: usize,
    conflicts: u64,
    /// Values whose counters were folded, each time.
    folded: u64,
    /// Over all records; every change of one is a change of it.
    tree: Tree,
    walk: Walk,
}

impl State {
    pub(crate) fn new(keyspaces: Keyspaces, audit_bytes_max: usize) -> Self {
        Self {
            keyspaces,
            map: Map::new(),
            base: VersionVector::new(),
            digests: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            collected: None,
            audit: Audit::new(audit_bytes_max),
            bytes: 0,
            conflicts: 0,
            folded: 0,
            tree: Tree::default(),
            walk: Walk::default(),
        }
    }

    /// Changes a key's place, given the vector and how the key is treated; the tree follows.
    fn change<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Slot, &VersionVector, &Keyspace) -> R) -> R {
        let (base, tree, walk) = (&self.base, &mut self.tree, &mut self.walk);
        let keyspace = self.keyspaces.of(key);
        self.map.update(key, |slot| {
            let result = change(slot, base, keyspace);
            let hash = slot.content.decided(key, keyspace).hash();
            let before = core::mem::replace(&mut slot.hash, hash);
            let leaf = leaf_of(key);
            tree.replace(leaf, before, hash);
            if key < &walk.next[..] {
                walk.tree.replace(leaf, before, hash);
            }
            result
        })
    }

    /// Removes a key; the tree follows.
    fn remove(&mut self, key: &[u8]) {
        let Some(before) = self.map.peek(key).map(|slot| slot.hash) else { return };
        let leaf = leaf_of(key);
        self.tree.replace(leaf, before, 0);
        if key < &self.walk.next[..] {
            self.walk.tree.replace(leaf, before, 0);
        }
        self.map.remove(key);
    }

    /// Over the records as they were put there.
    pub(crate) const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What a key is, as other owners should have it as well.
    pub(crate) fn decided(&mut self, key: &[u8]) -> Decided {
        let keyspace = self.keyspaces.of(key);
        self.map.peek(key).map_or(Decided::Nothing, |slot| slot.content.decided(key, keyspace))
    }

    /// Looks at the next records, at most so many and about so many bytes: whether they are what was put there. From then on
    /// the tree says what is stored, so that owners which compare theirs find it.
    pub(crate) fn walk(&mut self, most: usize, bytes_max: usize) -> Walked {
        let mut walked = Walked::default();
        let (mut left, mut bytes, mut next) = (most, 0, None);
        let (keyspaces, walk) = (&self.keyspaces, &mut self.walk);
        self.map.for_each_from(Bound::Included(&walk.next), |key, slot| {
            if left == 0 || bytes >= bytes_max {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            (left, bytes) = (left - 1, bytes + key.len() + slot.content.bytes());
            let hash = slot.content.decided(key, keyspaces.of(key)).hash();
            walk.tree.replace(leaf_of(key), 0, hash);
            if hash != slot.hash {
                walked.damaged.push(Bytes::copy_from_slice(key));
            }
            ControlFlow::Continue(())
        });
        for key in &walked.damaged {
            let keyspace = self.keyspaces.of(key);
            let tree = &mut self.tree;
            self.map.update(key, |slot| {
                let hash = slot.content.decided(key, keyspace).hash();
                tree.replace(leaf_of(key), core::mem::replace(&mut slot.hash, hash), hash);
            });
        }
        match next {
            Some(next) => self.walk.next = next,
            None => {
                let Walk { tree, .. } = core::mem::take(&mut self.walk);
                walked.leaves = tree.differing(self.tree.leaves()).len();
                walked.is_over = true;
                self.tree = tree;
            }
        }
        walked
    }

    /// The keys from `from` on that fall into some leaves, and what each is, without those that are nothing: of so many keys at
    /// most that are looked at, and about so many bytes. The last one says where to go on.
    pub(crate) fn list(&self, from: &[u8], leaves: &Leaves, most: usize, bytes_max: usize) -> Listing {
        let mut listing = Listing::default();
        let (mut left, mut bytes) = (most, 0);
        self.map.for_each_from(Bound::Included(from), |key, slot| {
            if left == 0 || bytes >= bytes_max {
                listing.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            left -= 1;
            if leaves.contains(leaf_of(key)) {
                let decided = slot.content.decided(key, self.keyspaces.of(key));
                if decided != Decided::Nothing {
                    bytes += key.len() + 16;
                    listing.keys.insert(Bytes::copy_from_slice(key), decided);
                }
            }
            ControlFlow::Continue(())
        });
        listing
    }

    /// Puts another owner's record of a key in the place of the own one, although both know the same writes; the storage action
    /// `pending` makes it durable. What was there goes to the audit. Nothing is done with a malformed copy, or one of writes that
    /// have not been applied here.
    pub(crate) fn adopt(&mut self, key: &[u8], copy: KeyCopy, pending: WriteId) -> bool {
        let keyspace = self.keyspaces.of(key);
        let Some((mut theirs, _)) = copy.check(keyspace) else { return false };
        let mut is_known = true;
        theirs.visit(&mut |dot| is_known &= self.base.contains(dot));
        theirs.strip(&self.base);
        if !is_known || theirs.above().is_some() {
            return false;
        }
        if let Content::Versions(versions) = &mut theirs {
            versions.audit(keyspace);
        }
        let after = theirs.bytes();
        let (before, lost) = self.change(key, |slot, _, _| {
            slot.pending = slot.pending.max(pending);
            let before = core::mem::replace(&mut slot.content, theirs);
            (before.bytes(), before.lost_to(&slot.content))
        });
        self.bytes = (self.bytes + after).saturating_sub(before);
        for lost in lost {
            self.audit.add(key, lost);
        }
        self.unsettled.insert(Bytes::copy_from_slice(key));
        true
    }

    /// What has been applied.
    pub(crate) const fn base(&self) -> &VersionVector {
        &self.base
    }

    /// Digest of the newest applied batch of an origin; 0 if there is none.
    pub(crate) fn digest(&self, origin: OriginId) -> u64 {
        self.digests.get(&origin).copied().unwrap_or(0)
    }

    /// Bytes of the keys and their versions, about.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn keys(&self) -> usize {
        self.map.len()
    }

    /// Values whose counters were folded, each time.
    pub(crate) const fn folded(&self) -> u64 {
        self.folded
    }

    /// Writes that met another one that neither had seen.
    pub(crate) const fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// Keys with something to decide or to collect.
    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Keys with something to decide, or to remember, and with nothing to do: with more than one version that only a write
    /// decides between, or having seen what no log has brought, which is told everywhere.
    pub(crate) fn lasting(&self, is_told: impl Fn(&[u8], u64) -> bool) -> usize {
        let mut keys = 0;
        self.map.for_each_from(Bound::Unbounded, |key, slot| {
            let lasts = match orphan_digest(&slot.content, &self.base) {
                Some(digest) => is_told(key, digest),
                None => match &slot.content {
                    Content::Versions(versions) => versions.as_slice().len() > 1 && !self.keyspaces.of(key).is_lww(),
                    Content::Merging(_) => false,
                },
            };
            keys += usize::from(lasts);
            ControlFlow::Continue(())
        });
        keys
    }

    /// Applies the next batch of an origin, which the storage action `pending` makes durable. Returns the writes that are
    /// not the last ones of keys where the last one wins, ascending.
    pub(crate) fn apply(&mut self, writes: &Writes, pending: WriteId) -> Vec<(u64, NotLast)> {
        let mut not_last = Vec::new();
        for (dot, record) in writes.iter() {
            let saw = Saw { past: &writes.past, dot, record: &record };
            if let Some(why) = self.apply_record(&saw, Stamp { time: writes.time, dot }, pending) {
                not_last.push((dot.sequence, why));
            }
        }
        self.digests.insert(writes.origin(), writes.batch.digest());
        not_last
    }

    /// Applies an own write whose batch is still open.
    pub(crate) fn apply_own(&mut self, past: &VersionVector, stamp: Stamp, record: &Record<'_>, pending: WriteId) {
        self.apply_record(&Saw { past, dot: stamp.dot, record }, stamp, pending);
    }

    /// The batch of the newest own writes is closed.
    pub(crate) fn close_own(&mut self, origin: OriginId, digest: u64) {
        self.digests.insert(origin, digest);
    }

    fn apply_record(&mut self, saw: &Saw<'_>, stamp: Stamp, pending: WriteId) -> Option<NotLast> {
        let key = saw.record.key;
        let (mut overwritten, mut conflict, mut not_last) = (Vec::new(), false, None);
        let (before, after, settled) = self.change(key, |slot, base, keyspace| {
            slot.pending = slot.pending.max(pending);
            slot.content.shape(keyspace);
            let before = slot.content.bytes();
            match (saw.record.change, &mut slot.content) {
                (Change::Merge(value), Content::Merging(state)) => {
                    // A value that claims what it has not seen changes nothing: only a peer that lies makes one.
                    if let Ok(theirs) = CrdtState::decode(state.kind(), value) {
                        let _ = state.join(base, &theirs, &saw.base());
                    }
                }
                (Change::Delta(value), Content::Merging(state)) => {
                    let _ = state.join_delta(base, value);
                }
                (Change::Put(_) | Change::Delete, Content::Versions(versions)) => {
                    let value = match saw.record.change {
                        Change::Put(value) => Some(Bytes::copy_from_slice(value)),
                        _ => None,
                    };
                    versions.update(base, saw, Version { stamp, value }, keyspace);
                    conflict = versions.as_slice().len() > 1;
                    overwritten = versions.audit(keyspace);
                    let stands = versions.as_slice().iter().any(|sibling| sibling.dot() == stamp.dot);
                    if keyspace.is_lww() {
                        let newer = versions.newest().filter(|newest| *newest > stamp);
                        let behind = newer.map(|newest| NotLast::Behind(newest.time));
                        not_last = if stands { behind } else { Some(NotLast::Superseded) };
                    }
                }
                // A write that its keyspace does not have: replicas with other keyspaces are not listened to.
                _ => {}
            }
            (before, slot.content.bytes(), slot.content.is_settled() && !slot.content.is_void())
        });
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.conflicts += u64::from(conflict);
        for lost in overwritten {
            self.audit.add(key, lost);
        }
        self.base.insert(stamp.dot);
        if !settled {
            self.settle(key);
        }
        not_last
    }

    /// Strips a key of what the vector says by now, and notes it if something is left to do.
    fn settle(&mut self, key: &[u8]) {
        let settled = self.change(key, |slot, base, _| {
            slot.content.strip(base);
            slot.content.is_settled() && !slot.content.is_void()
        });
        if !settled {
            self.unsettled.insert(Bytes::copy_from_slice(key));
        }
    }

    /// Takes in a copy of a key that a coordinator has put together; the storage action `pending` makes it durable. Returns
    /// whether it says anything new; a malformed copy does not.
    pub(crate) fn repair(&mut self, key: &[u8], copy: KeyCopy, pending: WriteId) -> bool {
        let Known { base, mut content } = self.known(key);
        let keyspace = self.keyspaces.of(key);
        let Some((theirs, their_base)) = copy.check(keyspace) else { return false };
        if !content.join(&base, &theirs, &their_base) {
            return false;
        }
        let overwritten = match &mut content {
            Content::Versions(versions) => versions.audit(keyspace),
            Content::Merging(_) => Vec::new(),
        };
        let bytes = content.bytes();
        let before = self.change(key, |slot, _, _| {
            slot.pending = slot.pending.max(pending);
            let before = slot.content.bytes();
            slot.content = content;
            before
        });
        self.bytes = (self.bytes + bytes).saturating_sub(before);
        for lost in overwritten {
            self.audit.add(key, lost);
        }
        self.unsettled.insert(Bytes::copy_from_slice(key));
        true
    }

    /// What is known of a key here.
    pub(crate) fn known(&mut self, key: &[u8]) -> Known {
        let keyspace = self.keyspaces.of(key);
        let mut content = self.map.peek(key).map_or_else(Content::default, |slot| slot.content.clone());
        content.shape(keyspace);
        Known { base: self.base.clone(), content }
    }

    /// The newest storage action that changed a key.
    pub(crate) fn pending(&mut self, key: &[u8]) -> WriteId {
        self.map.peek(key).map_or(WriteId(0), |slot| slot.pending)
    }

    /// A key's copy, for another replica.
    pub(crate) fn copy(&mut self, key: &[u8]) -> KeyCopy {
        let nothing = Content::default();
        let content = self.map.peek(key).map_or(&nothing, |slot| &slot.content);
        KeyCopy { base: self.base.clone(), stored: Stored::for_others(content) }
    }

    /// What a key has seen here.
    pub(crate) fn seen(&self, key: &[u8]) -> VersionVector {
        let mut seen = CausalContext::from(self.base.clone());
        if let Some(slot) = self.map.get(key) {
            slot.content.above().into_iter().for_each(|above| seen.join(above));
        }
        seen.vector().clone()
    }

    /// Origins of which some key has seen more than the logs have brought.
    pub(crate) fn origins_above(&mut self) -> BTreeSet<OriginId> {
        let mut origins = BTreeSet::new();
        for key in &self.unsettled {
            let above = self.map.peek(key).and_then(|slot| slot.content.above());
            origins.extend(above.into_iter().flat_map(|above| above.vector().iter().map(|(origin, _)| origin)));
        }
        origins
    }

    /// Keys that have seen more than the logs have brought, each with a digest of what it is, but for those that are told
    /// everywhere; the first so many.
    pub(crate) fn orphans(&mut self, most: usize, is_told: impl Fn(&Bytes, u64) -> bool) -> Vec<(Bytes, u64)> {
        let mut orphans = Vec::new();
        for key in &self.unsettled {
            let Some(slot) = self.map.peek(key) else { continue };
            if let Some(digest) = orphan_digest(&slot.content, &self.base).filter(|digest| !is_told(key, *digest)) {
                orphans.push((key.clone(), digest));
            }
            if orphans.len() == most {
                break;
            }
        }
        orphans
    }

    /// Keys that have seen more than the logs have brought, and what that is.
    pub(crate) fn ahead(&mut self) -> Vec<(Bytes, VersionVector)> {
        let mut ahead = Vec::new();
        for key in &self.unsettled {
            let above = self.map.peek(key).and_then(|slot| slot.content.above());
            if let Some(above) = above.map(|above| above.vector()).filter(|above| !self.base.covers(above)) {
                ahead.push((key.clone(), above.clone()));
            }
        }
        ahead
    }

    /// Whether a value that merges has seen a write of an origin that is over, of which no log has told.
    pub(crate) fn strays(&self, is_over: impl Fn(OriginId) -> bool) -> bool {
        let is_stray = |content: &Content| {
            let above = content.above().filter(|_| matches!(content, Content::Merging(_)));
            above.is_some_and(|above| above.vector().iter().any(|(origin, _)| is_over(origin)))
        };
        self.unsettled.iter().any(|key| self.map.get(key).is_some_and(|slot| is_stray(&slot.content)))
    }

    /// A digest of what a key is if it has seen more than the logs have brought.
    pub(crate) fn orphan(&mut self, key: &[u8]) -> Option<u64> {
        let slot = self.map.peek(key)?;
        orphan_digest(&slot.content, &self.base)
    }

    /// Equal for replicas whose copies of the key have the same versions.
    pub(crate) fn key_digest(&mut self, key: &[u8]) -> u64 {
        let keyspace = self.keyspaces.of(key);
        match self.map.peek(key) {
            Some(slot) => slot.content.digest(),
            None => {
                let mut nothing = Content::default();
                nothing.shape(keyspace);
                nothing.digest()
            }
        }
    }

    /// Looks at a value that merges, to make a delta of it.
    pub(crate) fn merging(&mut self, key: &[u8]) -> Option<&CrdtState> {
        match self.map.peek(key).map(|slot| &slot.content) {
            Some(Content::Merging(state)) => Some(state),
            _ => None,
        }
    }

    /// The versions of a key and what it has seen above the vector.
    pub(crate) fn versions(&mut self, key: &[u8]) -> Option<&Versions> {
        self.versions_beside(key).0
    }

    /// The same, and the vector.
    pub(crate) fn versions_beside(&mut self, key: &[u8]) -> (Option<&Versions>, &VersionVector) {
        let versions = match self.map.peek(key).map(|slot| &slot.content) {
            Some(Content::Versions(versions)) => Some(versions),
            _ => None,
        };
        (versions, &self.base)
    }

    /// What a reader finds.
    pub(crate) fn find(&mut self, key: &[u8]) -> Found {
        let keyspace = self.keyspaces.of(key);
        let Some(slot) = self.map.peek(key) else { return Found::default() };
        Found { pending: slot.pending, ..slot.content.found(keyspace) }
    }

    /// What a key shows.
    pub(crate) fn values(&self, key: &[u8]) -> Vec<Bytes> {
        self.map.get(key).map_or_else(Vec::new, |slot| slot.content.found(self.keyspaces.of(key)).values)
    }

    /// What the keys are that are asked for, about so many bytes of them and so many that show nothing; and the newest storage
    /// action that changed one of them.
    pub(crate) fn copies(&self, wanted: &PageWanted, bytes_max: usize, hidden_max: usize) -> (Copies, WriteId) {
        let mut copies = Copies { base: self.base.clone(), ..Copies::default() };
        let (mut shown, mut hidden, mut bytes, mut pending) = (0, 0, 0, WriteId(0));
        self.map.for_each_from(Bound::Included(&wanted.from), |key, slot| {
            if wanted.to.as_ref().is_some_and(|to| key >= &to[..]) {
                return ControlFlow::Break(());
            }
            bytes += key.len() + slot.content.encoded_bytes();
            let is_full = bytes > bytes_max && !copies.keys.is_empty();
            if is_full || shown >= wanted.limit.max(1) || hidden >= hidden_max {
                copies.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            let shows = !slot.content.found(self.keyspaces.of(key)).values.is_empty();
            (shown, hidden) = (shown + u32::from(shows), hidden + usize::from(!shows));
            pending = pending.max(slot.pending);
            copies.keys.insert(Bytes::copy_from_slice(key), slot.content.clone());
            ControlFlow::Continue(())
        });
        (copies, pending)
    }

    /// Calls `visit` for each key from `from` on, also for those that show nothing, ascending, until it breaks.
    pub(crate) fn scan(&self, from: &[u8], mut visit: impl FnMut(&[u8], Found) -> ControlFlow<()>) {
        self.map.for_each_from(Bound::Included(from), |key, slot| {
            visit(key, Found { pending: slot.pending, ..slot.content.found(self.keyspaces.of(key)) })
        });
    }

    /// Drops what can decide nothing any more, and what keys have seen that the vector says by now. `stable` has been applied
    /// by every owner, and everything that any owner had applied then has been applied here.
    /// Source: Baquero, Almeida, Shoker 2014 (causal stability).
    /// The logs will never bring more of the origins in `ended`: what a key has seen of them beyond that is forgotten, unless a
    /// write of them is live in it. Some of the keys, each in its turn: one owner that is far behind has very many.
    pub(crate) fn collect(&mut self, stable: &VersionVector, folding: Folding, ended: &[OriginId], durable: WriteId) {
        for key in self.next_collected() {
            let keyspace = self.keyspaces.of(&key);
            let Some(slot) = self.map.peek(&key) else {
                self.unsettled.remove(&key);
                continue;
            };
            if slot.content.is_unfolded() {
                let mut settled = folding == Folding::Never;
                if folding == Folding::Now && slot.content.folds(stable) {
                    settled = self.change(&key, |slot, _, _| {
                        slot.content.fold(stable);
                        slot.content.is_settled()
                    });
                    self.folded += 1;
                }
                if settled {
                    self.unsettled.remove(&key);
                }
                continue;
            }
            // Looked at first: a shard that an image shares is copied by a change.
            if ended.is_empty() && slot.content.is_ahead(&self.base) {
                continue;
            }
            let awaited = slot.pending > durable;
            let mut content = slot.content.clone();
            content.strip(&self.base);
            if !ended.is_empty() {
                let mut live = BTreeSet::new();
                content.visit(&mut |dot| {
                    if !self.base.contains(dot) {
                        live.insert(dot.origin);
                    }
                });
                let mut over = VersionVector::new();
                for &origin in ended.iter().filter(|origin| !live.contains(origin)) {
                    over.insert_all(origin, &SequenceSet::up_to(Dot::SEQUENCE_MAX));
                }
                content.strip(&over);
            }
            let changed = match (&mut content, &slot.content) {
                (Content::Versions(mine), Content::Versions(before)) => {
                    mine.collect(keyspace, stable);
                    mine != before
                }
                (Content::Merging(mine), Content::Merging(before)) => mine != before,
                _ => false,
            };
            self.bytes = (self.bytes + content.bytes()).saturating_sub(slot.content.bytes());
            let (void, settled) = (content.is_void(), content.is_settled());
            if void && !awaited {
                self.remove(&key);
            } else if changed {
                self.change(&key, |slot, _, _| slot.content = content);
            }
            if settled && !(void && awaited) {
                self.unsettled.remove(&key);
            }
        }
    }

    /// Unsettled keys that have not had their turn for longest.
    fn next_collected(&mut self) -> Vec<Bytes> {
        let most = COLLECTED_MIN.max(self.unsettled.len() / COLLECTED_SHARE);
        let after = self.collected.take().unwrap_or_default();
        let behind = self.unsettled.range::<[u8], _>((Bound::Excluded(&after[..]), Bound::Unbounded));
        let before = self.unsettled.range::<[u8], _>((Bound::Unbounded, Bound::Included(&after[..])));
        let keys: Vec<Bytes> = behind.chain(before).take(most).cloned().collect();
        self.collected = keys.last().cloned();
        keys
    }

    /// Equal at replicas that show the same.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.map.for_each_from(Bound::Unbounded, |key, slot| {
            let found = slot.content.found(self.keyspaces.of(key));
            if !found.values.is_empty() {
                hash.write(key);
                for value in &found.values {
                    hash.write_usize(value.len());
                    hash.write(value);
                }
                for stamp in &found.stamps {
                    hash.write_u32(stamp.dot.origin.0);
                    hash.write_u64(stamp.dot.sequence);
                }
            }
            ControlFlow::Continue(())
        });
        hash.finish()
    }

    /// Does to a record what no write does: for tests of who finds it.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, key: &[u8], damage: Damage) {
        match damage {
            Damage::Lose => assert!(self.map.remove(key)),
            Damage::Alter => self.map.update(key, |slot| {
                let Content::Versions(versions) = &mut slot.content else { panic!("a plain key") };
                versions.flip_a_bit();
            }),
        }
    }

    /// The content, for a snapshot.
    pub(crate) const fn map(&self) -> &Map<Slot> {
        &self.map
    }

    /// The digests, for a snapshot.
    pub(crate) const fn digests(&self) -> &BTreeMap<OriginId, u64> {
        &self.digests
    }

    /// What will have been applied here once the state of a replica that has applied this is joined.
    pub(crate) fn base_with(&self, their_base: &VersionVector) -> VersionVector {
        let mut both = self.base.clone();
        for (origin, held) in their_base.iter() {
            both.insert_all(origin, &SequenceSet::up_to(held.base()));
        }
        both
    }

    /// Takes in another replica's state, key by key, so that both together have applied this much; [`State::joined`] ends it.
    pub(crate) fn join_key(
        &mut self,
        key: &[u8],
        theirs: &Content,
        their_base: &VersionVector,
        both_bases: &VersionVector,
    ) {
        let mut overwritten = Vec::new();
        let (before, after, settled) = self.change(key, |slot, base, keyspace| {
            let before = slot.content.bytes();
            slot.content.shape(keyspace);
            slot.content.join(base, theirs, their_base);
            if let Content::Versions(versions) = &mut slot.content {
                overwritten = versions.audit(keyspace);
            }
            slot.content.strip(both_bases);
            (before, slot.content.bytes(), slot.content.is_settled() && !slot.content.is_void())
        });
        self.bytes = (self.bytes + after).saturating_sub(before);
        for lost in overwritten {
            self.audit.add(key, lost);
        }
        if !settled {
            self.unsettled.insert(Bytes::copy_from_slice(key));
        }
    }

    /// The keys that the other replica does not have: what it has seen of them is gone.
    pub(crate) fn join_absent(
        &mut self,
        theirs: &BTreeSet<Bytes>,
        their_base: &VersionVector,
        both_bases: &VersionVector,
    ) {
        let mut absent = Vec::new();
        self.map.for_each_from(Bound::Unbounded, |key, _| {
            if !theirs.contains(key) {
                absent.push(Bytes::copy_from_slice(key));
            }
            ControlFlow::Continue(())
        });
        for key in absent {
            let mut nothing = Content::default();
            nothing.shape(self.keyspaces.of(&key));
            self.join_key(&key, &nothing, their_base, both_bases);
        }
    }

    /// All keys of the other replica have been joined: what it had applied has been applied.
    pub(crate) fn joined(
        &mut self,
        their_base: &VersionVector,
        digests: &BTreeMap<OriginId, u64>,
        audit: Vec<Conflict>,
    ) {
        for (origin, held) in their_base.iter() {
            if held.base() > self.base.base(origin) {
                self.base.insert_all(origin, &SequenceSet::up_to(held.base()));
                self.digests.insert(origin, digests.get(&origin).copied().unwrap_or(0));
            }
        }
        // What others have stripped of their own keys, the vector says here from now on too.
        let keys: Vec<Bytes> = self.unsettled.iter().cloned().collect();
        for key in keys {
            // What is void now is dropped by `collect`, once that is durable.
            let settled = self.change(&key, |slot, base, _| {
                slot.content.strip(base);
                slot.content.is_settled() && !slot.content.is_void()
            });
            if settled {
                self.unsettled.remove(&key);
            }
        }
        self.audit.add_new(audit.into_iter().map(|conflict| (conflict.key, conflict.overwritten)));
    }
}

fn orphan_digest(content: &Content, base: &VersionVector) -> Option<u64> {
    let above = content.above().filter(|above| !base.covers(above.vector()))?;
    let mut hash = Xxh3::new();
    hash.write_u64(content.digest());
    hash.write(&above.to_token());
    Some(hash.finish())
}

/// What a client's context means for a write of a key, of which this replica knows these versions: which of them it stands
/// beside, and what it had seen that is not known here.
pub(crate) fn seen_by_client(
    versions: Option<&Versions>,
    base: &VersionVector,
    context: &CausalContext,
) -> (Vec<Dot>, CausalContext) {
    let present = versions.map_or(&[][..], Versions::as_slice);
    let keeps = present.iter().map(|sibling| sibling.dot()).filter(|dot| !context.contains(*dot)).collect();
    let mut beyond = context.clone();
    beyond.strip(base);
    (keeps, beyond)
}

#[cfg(test)]
mod tests {
    use replikit_core::crdt::{CrdtKind, CrdtOp};
    use replikit_core::policy::ConflictPolicy;
    use replikit_core::{HybridTimestamp, Incarnation, NodeId, Origin};

    use super::*;
    use crate::config::Keyspace;

    #[test]
    fn a_key_that_a_snapshot_leaves_empty_is_dropped_once_its_last_change_is_durable() {
        let origin = Origin { node: NodeId(1), incarnation: Incarnation(1) }.id().expect("in range");
        let all = |last| {
            let mut all = VersionVector::new();
            all.insert_all(origin, &SequenceSet::up_to(last));
            all
        };
        let set = Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set));
        let mut state = State::new(Keyspaces::all(set), 1 << 20);
        let stamp = Stamp { time: HybridTimestamp(1), dot: Dot { origin, sequence: 1 } };
        let nothing = CrdtState::new(CrdtKind::Set);
        let mut one = nothing.clone();
        let added = nothing.delta(stamp, &CrdtOp::Insert { element: "x".into() }).expect("a set takes it");
        one.join_delta(&VersionVector::new(), &added).expect("made just now");
        let copy = |state: &CrdtState, last| KeyCopy {
            base: all(last),
            stored: Stored::for_others(&Content::Merging(Box::new(state.clone()))),
        };
        // It was added and taken away again, and this replica has heard so before the log's vector says it.
        assert!(state.repair(b"k", copy(&one, 1), WriteId(5)));
        assert!(state.repair(b"k", copy(&nothing, 2), WriteId(7)));
        assert_eq!((state.keys(), state.values(b"k").len()), (1, 0));
        state.joined(&all(2), &BTreeMap::new(), Vec::new());
        state.collect(&all(2), Folding::Now, &[], WriteId(6));
        assert_eq!(state.keys(), 1, "a crash may still bring the value back");
        state.collect(&all(2), Folding::Now, &[], WriteId(7));
        assert_eq!((state.keys(), state.unsettled()), (0, 0));
    }
}
