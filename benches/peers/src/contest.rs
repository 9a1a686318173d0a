//! Contests: one of ours and its peers under one load, and by how much ours should be better.

use std::fmt;
use std::time::Duration;

use replikit_benches::disk_log::{ENTRY_BYTES, Syncs};
use replikit_benches::load::Window;

use crate::groups::GroupKind;
use crate::handles::HandleKind;
use crate::logs::LogKind;
use crate::system::System;

/// Size of a value.
pub const VALUE_BYTES: usize = 256;

/// What is done to each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Clients that each write one value after the other, to keys at random.
    Writes {
        /// How many.
        clients: u32,
    },
    /// Clients that each read one value after the other, linearizably, of keys at random that were all written once before.
    Reads {
        /// How many.
        clients: u32,
    },
    /// Clients that each add to one counter again and again.
    Adds {
        /// How many.
        clients: u32,
    },
    /// One thread that appends one batch after the other.
    Appends {
        /// Entries in a batch.
        entries: usize,
        /// Whether it waits for the disk before the next one.
        syncs: Syncs,
    },
    /// One thread that has three replicas in memory apply one batch of commands after the other.
    Rounds {
        /// Commands in a batch.
        batch: usize,
    },
    /// Clients that call an async handle of three replicas in memory, one after the other.
    Calls {
        /// How many.
        clients: u32,
    },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Appends { entries: 1, syncs } => write!(f, "appends of 1 entry of {ENTRY_BYTES} B, {syncs}"),
            Self::Appends { entries, syncs } => {
                write!(f, "appends of {entries} entries of {ENTRY_BYTES} B, {syncs}")
            }
            Self::Adds { clients } => write!(f, "additions to one counter, {clients} clients"),
            Self::Rounds { batch: 1 } => write!(f, "1 command of {VALUE_BYTES} B at a time, in memory"),
            Self::Rounds { batch } => write!(f, "{batch} commands of {VALUE_BYTES} B at a time, in memory"),
            Self::Calls { clients: 1 } => write!(f, "calls with {VALUE_BYTES} B, in memory, 1 client"),
            Self::Calls { clients } => write!(f, "calls with {VALUE_BYTES} B, in memory, {clients} clients"),
            Self::Reads { clients } => {
                write!(f, "linearizable reads of {VALUE_BYTES} B, a fresh store, {clients} clients")
            }
            Self::Writes { clients: 1 } => write!(f, "writes of {VALUE_BYTES} B, 1 client"),
            Self::Writes { clients } => write!(f, "writes of {VALUE_BYTES} B, {clients} clients"),
        }
    }
}

/// Something in which ours can be better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests, or entries, a second.
    Rate,
    /// The latency that 99 in a hundred do not exceed.
    P99,
}

/// By how much ours should be better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// In what.
    pub metric: Metric,
    /// So many times as good, at least.
    pub times: f64,
}

/// One load on several systems in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Contest {
    /// What is done.
    pub load: Load,
    /// One of ours.
    pub ours: System,
    /// What it is held against.
    pub peers: Vec<Peer>,
}

/// What ours is held against.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Which.
    pub system: System,
    /// What ours should reach; nothing where the peer is there to be seen.
    pub goals: Vec<Goal>,
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<_> = self.peers.iter().map(|peer| peer.system.name()).collect();
        write!(f, "{}: {} against {}", self.load, self.ours.name(), peers.join(" and "))
    }
}

impl Contest {
    /// Ours, and then its peers.
    pub fn systems(&self) -> impl Iterator<Item = System> + '_ {
        std::iter::once(self.ours).chain(self.peers.iter().map(|peer| peer.system))
    }

    /// What ours should reach against a system.
    #[must_use]
    pub fn goals(&self, system: System) -> &[Goal] {
        self.peers.iter().find(|peer| peer.system == system).map_or(&[], |peer| &peer.goals)
    }
}

/// Every contest, in the order in which they are run.
#[must_use]
pub fn all() -> Vec<Contest> {
    let redis = [(1, 2.0), (16, 2.5), (64, 2.5)].map(|(clients, times)| redis(clients, times));
    let synced = [(1, 1.0), (64, 1.2), (1_000, 1.2)].map(|(entries, times)| logs(entries, Syncs::Each, times));
    let not_synced = [1, 64, 1_000].map(|entries| logs(entries, Syncs::Never, 2.0));
    let rounds = [(1, 1.3), (64, 3.0), (1_000, 3.0)].map(|(batch, times)| rounds(batch, times));
    let calls = [(1, 8.0), (4_096, 2.0)].map(|(clients, times)| {
        let [ours, theirs] = [HandleKind::Replikit, HandleKind::OpenRaft].map(System::Handle);
        by_rate(Load::Calls { clients }, ours, [theirs], times)
    });
    let nats = by_rate(Load::Writes { clients: 64 }, System::SingleLeader, [System::Nats], 2.0);
    let galera = [
        (Load::Writes { clients: 16 }, 10.0),
        (Load::Writes { clients: 64 }, 10.0),
        (Load::Adds { clients: 64 }, 300.0),
    ];
    let galera = galera.map(|(load, times)| by_rate(load, System::MultiLeader, [System::Galera], times));
    let reads = [64, 256].map(|clients| by_rate(Load::Reads { clients }, System::SingleLeader, [System::Etcd], 4.0));
    let etcd = [64, 256].map(etcd).into_iter().chain(reads);
    let all = redis.into_iter().chain(synced).chain(not_synced).chain(etcd);
    all.chain(rounds).chain(calls).chain([nats]).chain(galera).collect()
}

/// Single clients have nobody to share a connection with.
fn redis(clients: u32, times: f64) -> Contest {
    let shared = (clients > 1).then(|| Peer { system: System::RedisShared, goals: Vec::new() });
    let own = Peer { system: System::Redis, goals: vec![Goal { metric: Metric::Rate, times }] };
    Contest {
        load: Load::Writes { clients },
        ours: System::SingleLeader,
        peers: std::iter::once(own).chain(shared).collect(),
    }
}

fn etcd(clients: u32) -> Contest {
    let goals = vec![Goal { metric: Metric::Rate, times: 8.0 }, Goal { metric: Metric::P99, times: 4.0 }];
    Contest {
        load: Load::Writes { clients },
        ours: System::SingleLeader,
        peers: vec![Peer { system: System::Etcd, goals }],
    }
}

fn logs(entries: usize, syncs: Syncs, times: f64) -> Contest {
    let peers = [LogKind::OkayWal, LogKind::RaftEngine].map(System::Log);
    by_rate(Load::Appends { entries, syncs }, System::Log(LogKind::Replikit), peers, times)
}

fn rounds(batch: usize, times: f64) -> Contest {
    let peers = [GroupKind::RaftRs, GroupKind::OmniPaxos].map(System::Group);
    by_rate(Load::Rounds { batch }, System::Group(GroupKind::Replikit), peers, times)
}

/// Ours should have so many times the rate of each of the peers.
fn by_rate<const N: usize>(load: Load, ours: System, peers: [System; N], times: f64) -> Contest {
    let goals = vec![Goal { metric: Metric::Rate, times }];
    let peers = peers.map(|system| Peer { system, goals: goals.clone() });
    Contest { load, ours, peers: peers.into() }
}

/// How long a load is put on each side.
#[must_use]
pub fn window(measured: Duration) -> Window {
    Window { warm_up: measured / 4, measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contest_is_ours_against_others() {
        for contest in all() {
            assert!(contest.ours.is_ours(), "{contest:?}");
            assert!(
                !contest.peers.is_empty() && contest.peers.iter().all(|peer| !peer.system.is_ours()),
                "{contest:?}"
            );
            assert!(contest.peers.iter().flat_map(|peer| &peer.goals).all(|goal| goal.times >= 1.0), "{contest:?}");
        }
    }

    #[test]
    fn contests_are_told_apart_by_their_description() {
        let mut names: Vec<_> = all().iter().map(Contest::to_string).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}
