//! What a key has seen that no log has brought here: a read has repaired it, and the owner whose write it was may never come
//! back with its log.
//!
//! Invariant: such a key is told to every other owner until that has confirmed it, so owners come to agree without any further
//! read, whoever stays away. Usually the log follows within an exchange, and nothing is sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::dotted::first_number;
use replikit_core::{Batches, NodeId};

use crate::levels::Set;
use crate::message::{Head, Repair};
use crate::replica::Leaderless;

/// Most keys that are told in one exchange.
pub(crate) const KEYS_MAX: usize = 256;
/// So many exchanges the logs have to bring it themselves.
pub(crate) const PATIENCE: u32 = 2;

/// A key that has seen more than the logs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orphan {
    /// What it is, in short.
    digest: u64,
    exchanges: u32,
    /// Owners that have it.
    confirmed: Set,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    keys: BTreeMap<Bytes, Orphan>,
    /// Repairs under way, by number.
    told: BTreeMap<u64, Bytes>,
    next: u64,
}

impl Orphans {
    /// Owners are counted anew.
    pub(crate) fn begin_anew(&mut self) {
        self.keys.clear();
        self.told.clear();
    }
}

impl Leaderless {
    /// At every exchange: tells others of keys that no log has explained for a while.
    pub(crate) fn spread_orphans(&mut self) {
        let told = self.told_orphans();
        let found = self.state.orphans(KEYS_MAX, |key, digest| told.get(key) == Some(&digest));
        self.orphans.told.clear();
        let state = &mut self.state;
        self.orphans.keys.retain(|key, orphan| {
            let is_told = told.get(key) == Some(&orphan.digest) && state.orphan(key) == Some(orphan.digest);
            is_told || found.iter().any(|(orphan, _)| orphan == key)
        });
        if self.installed > self.durable {
            return;
        }
        let reachable = self.reachable_owners();
        for (key, digest) in found {
            let orphan = self.orphans.keys.entry(key.clone()).or_default();
            if orphan.digest != digest {
                *orphan = Orphan { digest, ..Orphan::default() };
            }
            orphan.exchanges += 1;
            let orphan = *orphan;
            if orphan.exchanges > PATIENCE {
                self.tell_key(&key, reachable.difference(orphan.confirmed));
            }
        }
    }

    /// The other owners, without those whose link is down.
    pub(crate) fn reachable_owners(&self) -> Set {
        let mut reachable = Set::default();
        let others = self.owners.others().filter(|node| !self.down.contains(node));
        others.filter_map(|node| self.owners.index(node)).for_each(|index| reachable.insert(index));
        reachable
    }

    /// Tells other owners of a key, unless a crash here could take back what it is.
    pub(crate) fn tell_key(&mut self, key: &Bytes, owners: Set) {
        if owners.is_empty() || self.state.pending(key) > self.durable {
            return;
        }
        let copy = self.state.copy(key);
        let is_told = |node: &NodeId| self.owners.index(*node).is_some_and(|index| owners.contains(index));
        for to in self.owners.others().filter(is_told).collect::<Vec<NodeId>>() {
            let read = self.orphan_number(key);
            let repair = Repair { epoch: self.epoch, read, key: key.clone(), copy: copy.clone() };
            self.send(to, Head::Repair(Box::new(repair)), Batches::None);
        }
    }

    /// Those that every other owner has confirmed, and as what.
    pub(crate) fn told_orphans(&self) -> BTreeMap<Bytes, u64> {
        let others: Vec<u32> = self.owners.others().filter_map(|node| self.owners.index(node)).collect();
        let is_told = |orphan: &Orphan| others.iter().all(|index| orphan.confirmed.contains(*index));
        let told = self.orphans.keys.iter().filter(|(_, orphan)| is_told(orphan));
        told.map(|(key, orphan)| (key.clone(), orphan.digest)).collect()
    }

    /// A number for one more question about a key.
    fn orphan_number(&mut self, key: &Bytes) -> u64 {
        // Numbers of reads and these never meet: they count from the other end of a life.
        self.orphans.next += 1;
        let read = first_number(self.register.life + 1) - self.orphans.next;
        self.orphans.told.insert(read, key.clone());
        read
    }

    /// An owner has it.
    pub(crate) fn orphan_confirmed(&mut self, index: u32, read: u64) {
        if let Some(key) = self.orphans.told.get(&read) {
            self.moving.confirmed(key, index);
        }
        if let Some(orphan) = self.orphans.told.get(&read).and_then(|key| self.orphans.keys.get_mut(key)) {
            orphan.confirmed.insert(index);
        }
    }
}
