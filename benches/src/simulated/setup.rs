//! A strategy with its settings: what is chosen between.

use std::fmt;
use std::time::Duration;

use replikit_core::crdt::CrdtKind;
use replikit_core::keyspace::Keyspace as Machine;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{Boot, ClusterId, GroupId, Guarantees, NodeId, Owners, ReadLevel, SessionToken, WriteLevel};
use replikit_leaderless::{self as leaderless, Leaderless, Quorums, Size};
use replikit_multi_leader::{self as multi_leader, MultiLeader};
use replikit_single_leader::{self as single_leader, Config, Raft};

use crate::engine::{Askers, EngineKind, Sizes};
use crate::load::Reads;
use crate::network::Network;
use crate::play::{CHURNED, COUNTERS, LISTS, LOGS, SETS};
use crate::workload::mix::{Operation, Updates};

/// How data is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One node orders all writes.
    SingleLeader,
    /// Every node takes writes, and passes them on.
    MultiLeader,
    /// Every node takes requests, and asks others.
    Leaderless(Sizes),
    /// The same, with agreement on each key.
    LeaderlessCas,
}

impl Strategy {
    /// The engine that measures it between real processes.
    #[must_use]
    pub const fn engine(self) -> EngineKind {
        match self {
            Self::SingleLeader => EngineKind::SingleLeader,
            Self::MultiLeader => EngineKind::MultiLeader,
            Self::Leaderless(sizes) => EngineKind::Leaderless(sizes),
            Self::LeaderlessCas => EngineKind::LeaderlessCas(Askers::All),
        }
    }
}

/// How fresh reads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// They see all that was acknowledged.
    Linearizable,
    /// Of as many owners as the quorums say.
    Quorum,
    /// They see what their session has seen.
    Session,
    /// They see what the node has.
    Local,
}

/// A strategy with its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Which.
    pub strategy: Strategy,
    /// When a write counts as done.
    pub write_level: WriteLevel,
    /// How reads are done.
    pub freshness: Freshness,
}

impl Setup {
    /// All that is chosen between.
    #[must_use]
    pub fn candidates() -> Vec<Self> {
        use Freshness::{Linearizable, Local, Quorum, Session};
        let of = |strategy, write_level, freshness| Self { strategy, write_level, freshness };
        let majorities = Strategy::Leaderless(Sizes::Majorities);
        vec![
            of(Strategy::SingleLeader, WriteLevel::Quorum, Linearizable),
            of(Strategy::SingleLeader, WriteLevel::Quorum, Session),
            of(Strategy::SingleLeader, WriteLevel::Quorum, Local),
            of(Strategy::SingleLeader, WriteLevel::LeaderDisk, Linearizable),
            of(Strategy::SingleLeader, WriteLevel::Memory, Local),
            of(Strategy::MultiLeader, WriteLevel::Quorum, Session),
            of(Strategy::MultiLeader, WriteLevel::Quorum, Local),
            of(Strategy::MultiLeader, WriteLevel::LeaderDisk, Session),
            of(Strategy::MultiLeader, WriteLevel::LeaderDisk, Local),
            of(majorities, WriteLevel::Quorum, Quorum),
            of(majorities, WriteLevel::Quorum, Session),
            of(majorities, WriteLevel::Quorum, Local),
            of(Strategy::Leaderless(Sizes::WriteAll), WriteLevel::Quorum, Quorum),
            of(Strategy::Leaderless(Sizes::One), WriteLevel::Quorum, Quorum),
            of(Strategy::LeaderlessCas, WriteLevel::Quorum, Linearizable),
        ]
    }

    /// What it promises, on so many nodes.
    #[must_use]
    pub fn guarantees(&self, nodes: u8) -> Guarantees {
        let read = self.read_level(&SessionToken::new());
        match self.strategy {
            Strategy::SingleLeader => single_leader::guarantees_with_reads(self.write_level, &read),
            Strategy::MultiLeader => multi_leader::guarantees_with_reads(self.write_level, &read),
            Strategy::Leaderless(sizes) => {
                leaderless::guarantees_of(nodes, quorums(sizes, nodes), self.write_level, &read)
            }
            Strategy::LeaderlessCas => leaderless::guarantees_of_cas(),
        }
    }

    /// Whether an acknowledged write is never lost, and an answered read must show it.
    #[must_use]
    pub const fn is_strong(&self) -> bool {
        matches!(self.write_level, WriteLevel::Quorum | WriteLevel::Applied(_))
    }

    /// The level of a read in a session that has seen this much.
    #[must_use]
    pub fn read_level(&self, token: &SessionToken) -> ReadLevel {
        match self.freshness {
            Freshness::Linearizable => ReadLevel::Linearizable,
            Freshness::Quorum => ReadLevel::Owners(Owners::Quorum),
            Freshness::Session => ReadLevel::Session(token.clone()),
            Freshness::Local => ReadLevel::Local,
        }
    }

    /// The same for a real engine.
    #[must_use]
    pub const fn reads(&self) -> Reads {
        match (self.freshness, self.strategy) {
            (Freshness::Linearizable, _) => Reads::Linearizable,
            (Freshness::Quorum, Strategy::Leaderless(Sizes::One)) => Reads::QuorumOfFewer,
            (Freshness::Quorum, _) => Reads::Quorum,
            (Freshness::Session, _) => Reads::Session,
            (Freshness::Local, _) => Reads::Local,
        }
    }

    /// Why it cannot do an operation that is made in this way; `None` when it can.
    #[must_use]
    pub const fn cannot(&self, operation: Operation, updates: Updates) -> Option<&'static str> {
        self.strategy.engine().cannot(operation, updates)
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = match self.freshness {
            Freshness::Linearizable => "linearizable reads",
            Freshness::Quorum => "quorum reads",
            Freshness::Session => "session reads",
            Freshness::Local => "local reads",
        };
        match self.strategy {
            Strategy::SingleLeader => write!(f, "single-leader, {:?}, {reads}", self.write_level),
            Strategy::MultiLeader => write!(f, "multi-leader, {:?}, {reads}", self.write_level),
            Strategy::Leaderless(sizes) => {
                let quorums = match sizes {
                    Sizes::Majorities => "majorities",
                    Sizes::One => "R = W = 1",
                    Sizes::WriteAll => "R = 1, W = N",
                };
                write!(f, "leaderless, {quorums}, {reads}")
            }
            Strategy::LeaderlessCas => f.write_str("leaderless, keys agreed on one by one"),
        }
    }
}

fn quorums(sizes: Sizes, nodes: u8) -> Quorums {
    let (read, write) = sizes.of(nodes);
    let (read, write) = (Size::Exactly(read), Size::Exactly(write));
    Quorums { read, write, durable: write }
}

/// How long a replica waits for others before it gives up on a request: many round trips.
fn patience(network: &Network) -> Duration {
    Duration::from_secs(1).max(network.round_trip_max() * 10)
}

pub(super) fn raft(
    cluster: ClusterId,
    group: GroupId,
    node: NodeId,
    network: &Network,
    boot: &Boot,
    seed: u64,
) -> Raft<Machine> {
    let mut config = Config::new(cluster, group, node, network.ids().collect(), seed);
    config.timeouts.election = network.election_timeout();
    config.timeouts.heartbeat = config.timeouts.election / 5;
    config.timeouts.read = patience(network);
    Raft::new(config, boot, Machine::new()).expect("the settings are in range")
}

pub(super) fn multi_leader(
    cluster: ClusterId,
    group: GroupId,
    node: NodeId,
    network: &Network,
    boot: &Boot,
) -> MultiLeader {
    use multi_leader::{Config, Founding, Keyspace, Keyspaces};
    let mut config = Config::new(cluster, group, node, network.ids().collect());
    config.keyspaces = Keyspaces::default()
        .with(COUNTERS, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Counter)))
        .with(SETS, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set)));
    config.founding = Founding::New;
    config.timing.exchange = config.timing.exchange.max(network.round_trip_max());
    config.timing.suspect_after = config.timing.exchange * 10;
    config.timing.write = patience(network);
    config.timing.read = patience(network);
    MultiLeader::new(config, boot).expect("the settings are in range")
}

pub(super) fn leaderless(
    cluster: ClusterId,
    group: GroupId,
    node: NodeId,
    network: &Network,
    boot: &Boot,
    strategy: Strategy,
) -> Leaderless {
    use leaderless::{Config, Founding, Keyspace, Keyspaces};
    let owners: Vec<NodeId> = network.ids().collect();
    let count = owners.len() as u8;
    let mut config = Config::new(cluster, group, node, owners);
    config.keyspaces = match strategy {
        Strategy::LeaderlessCas => {
            let agreed = ["key", LISTS, LOGS, CHURNED, COUNTERS];
            agreed.into_iter().fold(Keyspaces::default(), |all, prefix| all.with(prefix, Keyspace::cas()))
        }
        _ => Keyspaces::default()
            .with(COUNTERS, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Counter)))
            .with(SETS, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set))),
    };
    if let Strategy::Leaderless(sizes) = strategy {
        config.quorums = quorums(sizes, count);
    }
    config.founding = Founding::New;
    config.timing.exchange = config.timing.exchange.max(network.round_trip_max());
    config.timing.suspect_after = config.timing.exchange * 10;
    config.timing.write = patience(network);
    config.timing.read = patience(network);
    config.timing.hedge_max = config.timing.hedge_max.max(network.round_trip_max() * 2);
    Leaderless::new(config, boot).expect("the settings are in range")
}
