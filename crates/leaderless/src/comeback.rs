//! An owner that was evicted: it drops what it has, but for what nobody else may have. If it is named again, it begins with an empty
//! state, and makes that again.
//!
//! Invariants: what others had closed of its writes stays closed, so what was forgotten because every owner had it does not
//! come back; what it has and nobody else has is put away, durably, before its state is dropped, and stays there until it has
//! been made again. A quorum never counted any of that. State is dropped once those who own the keys have everything that any
//! quorum has acknowledged: an epoch without this node is settled.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use replikit_core::dotted::{Peer, first_number};
use replikit_core::policy::{Overwritten, Version, resolve};
use replikit_core::{Dot, Epoch, Event, LogIndex, Now, OriginId, Persist, Rejection};

use crate::consensus::Consensus;
use crate::content::{Content, KeyCopy, Stored, Versions};
use crate::member::Member;
use crate::record::{Change, Local, Record};
use crate::replica::{Leaderless, Standing};
use crate::state::State;

/// Keys that are made again in one exchange.
const KEYS_MAX: usize = 256;

/// Keys as they were when this node was evicted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stash(BTreeMap<Bytes, KeyCopy>);

impl Stash {
    /// Puts a key away; what was put away of it first stays.
    pub(crate) fn put(&mut self, key: Bytes, copy: KeyCopy) {
        self.0.entry(key).or_insert(copy);
    }

    pub(crate) fn take_first(&mut self) -> Option<(Bytes, KeyCopy)> {
        self.0.pop_first()
    }
}

/// What became of a key that was put away.
enum Again {
    /// Others did not have it.
    Made,
    /// Others have it, or there is nothing of it.
    Known,
    /// What others wrote since has won over it: that is for the audit.
    Lost(Overwritten),
}

impl Leaderless {
    /// Whether this node owns the keys, or is about to.
    fn is_named(&self) -> bool {
        self.owners.is_owner() || self.ownership.announces(self.config.node)
    }

    /// This node is, or is to be, an owner again: it begins anew if it was evicted since.
    pub(crate) fn come_back(&mut self, now: Now) {
        if self.out && self.is_named() && self.taking.is_none() && !self.failed {
            self.begin_anew(now);
        }
    }

    /// What only this node may have: what is not known to be everywhere, own writes or not. Of a weak write this may have been the
    /// only disk, and its writer has crashed.
    fn put_away(&mut self) {
        let stable = self.stability.stable().clone();
        let only_here = |dot: Dot| !stable.contains(dot);
        let mut keys = Vec::new();
        self.state.map().for_each_from(Bound::Unbounded, |key, slot| {
            let mut found = false;
            slot.content.visit(&mut |dot| found |= only_here(dot));
            if found {
                keys.push(Bytes::copy_from_slice(key));
            }
            ControlFlow::Continue(())
        });
        for key in keys {
            let copy = self.state.copy(&key);
            self.persist_local(&Local::Stashed { key: key.clone(), copy: copy.clone() });
            self.stash.put(key, copy);
        }
    }

    /// This node owns nothing any more, and is not about to: what the owners have, it need not keep.
    pub(crate) fn retire(&mut self, now: Now) {
        let is_empty = self.streams.is_empty() && self.state.map().is_empty() && self.consensus.is_empty();
        if !self.out || self.is_named() || is_empty || self.ownership.is_joint() || self.taking.is_some() || self.failed
        {
            return;
        }
        self.drop_state(now, &self.elsewhere());
        self.write_image();
        let (epoch, stashed) = (self.ownership.epoch(), self.stash.0.len() as u64);
        self.event(Event::Retired { epoch, stashed });
    }

    /// What may be here only is put away, and the rest is gone; requests under way end.
    fn drop_state(&mut self, now: Now, instead: &Rejection) {
        self.close_batch();
        self.put_away();
        self.fail_writes();
        self.give_up_asked();
        // What they wait for was found missing in a state that is about to go.
        self.fail_reads(instead);
        let streams: Vec<OriginId> = self.streams.keys().copied().collect();
        for origin in streams {
            self.persist(Persist::Reset { stream: self.stream_id(origin), next: LogIndex(1) });
        }
        self.streams.clear();
        self.judged.clear();
        (self.cache_bytes, self.log_bytes, self.retained_bytes) = (0, 0, 0);
        let mut state = State::new(self.config.keyspaces.clone(), self.config.limits.audit_bytes_max);
        core::mem::swap(&mut state.audit, &mut self.state.audit);
        self.state = state;
        self.stability.begin_epoch();
        self.arriving = None;
        self.orphans.begin_anew();
        self.consensus = Consensus::new(&self.config, Epoch(0), self.owners.nodes());
        self.count_consensus(now);
    }

    fn begin_anew(&mut self, now: Now) {
        self.drop_state(now, &Rejection::CatchingUp);
        (self.out, self.caught_up) = (false, false);
        let newest = self.register.incarnation;
        self.register.forgotten = newest + 1;
        self.register.life += 1;
        self.report_number = first_number(self.register.life);
        self.asked.clear();
        let (group, bytes) = (self.config.group, self.register.encode());
        self.lived = self.persist(Persist::Register { group, bytes });
        self.write_image();
        for member in self.members.values_mut() {
            let heard = member.heard;
            *member = Member::default();
            member.heard = heard;
        }
        self.peers.values_mut().for_each(|peer| *peer = Peer::default());
        self.standing = Standing::Asking { wanted: BTreeMap::new(), newest };
        self.begin_move();
        let (epoch, stashed) = (self.ownership.newest(), self.stash.0.len() as u64);
        self.event(Event::BeganAnew { epoch, stashed });
        self.next_exchange = replikit_core::Time::ZERO;
    }

    /// At every exchange: makes again what had been put away, some at a time.
    pub(crate) fn resubmit(&mut self, now: Now) {
        if self.stash.0.is_empty() || self.incarnated > self.durable {
            return;
        }
        let Ok(origin) = self.serves() else { return };
        let (mut writes, mut known, mut lost) = (0, 0, Vec::new());
        for _ in 0..KEYS_MAX {
            let Some((key, copy)) = self.stash.take_first() else { break };
            match self.make_again(now, origin, &key, copy) {
                Again::Made => writes += 1,
                Again::Known => known += 1,
                Again::Lost(overwritten) => lost.push((key, overwritten)),
            }
        }
        self.event(Event::Resubmitted { writes, known, dropped: lost.len() as u64 });
        // After a crash all of it is looked at once more.
        self.state.audit.add_new(lost);
        if self.stash.0.is_empty() {
            // It is not looked at again after a restart.
            self.take_snapshot();
        }
    }

    fn make_again(&mut self, now: Now, origin: OriginId, key: &Bytes, copy: KeyCopy) -> Again {
        let keyspace = self.config.keyspaces.of(key);
        let Some((content, _)) = copy.clone().check(keyspace) else { return Again::Known };
        if let (Content::Versions(versions), true) = (&content, keyspace.is_lww()) {
            return versions.last().map_or(Again::Known, |last| self.make_last_again(now, origin, key, last));
        }
        // Beside others it stands as what it was.
        self.close_batch();
        let copy = KeyCopy { base: copy.base, stored: Stored::for_others(&content) };
        let record = Local::Repaired { key: key.clone(), copy: copy.clone() };
        if !self.state.repair(key, copy, self.last_write.next()) {
            return Again::Known;
        }
        self.persist_local(&record);
        Again::Made
    }

    /// Where the last write wins, it is made again as a new one if it would win: under its old name it could come to an owner that
    /// has forgotten a newer delete, for every owner had that.
    fn make_last_again(&mut self, now: Now, origin: OriginId, key: &Bytes, last: &Version) -> Again {
        if self.state.seen(key).contains(last.stamp.dot) {
            return Again::Known;
        }
        let present = self.state.versions(key).and_then(Versions::last).cloned();
        let change = match (&last.value, &present) {
            (Some(value), _) => Change::Put(value),
            (None, Some(_)) => Change::Delete,
            (None, None) => return Again::Known,
        };
        let keyspace = self.config.keyspaces.of(key);
        let both: Vec<Version> = present.into_iter().chain([last.clone()]).collect();
        let overwritten = resolve(&keyspace.conflicts, keyspace.deletes(), &both).overwritten;
        if let Some(lost) = overwritten.into_iter().find(|lost| lost.version.stamp == last.stamp) {
            return Again::Lost(lost);
        }
        self.begin_batch_for(now, origin, key);
        let stamp = self.next_stamp(origin);
        let beyond = self.state.versions(key).and_then(|versions| versions.above()).cloned();
        self.write_record(stamp, &Record { key, change, keeps: Vec::new(), beyond });
        self.writing.push_unasked(stamp.dot.sequence);
        self.end_record();
        Again::Made
    }
}
