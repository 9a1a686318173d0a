//! Engines: what is measured, as running processes behind one trait. To add one: implement [`Engine`], add a variant to
//! [`EngineKind`] and cases to [`suite`](crate::suite).

pub mod baseline;
pub mod leaderless;
pub mod multi_leader;
pub mod nodes;
pub mod partitioned;
pub mod single_leader;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use async_trait::async_trait;
use replikit_core::keyspace::Conflict;
use replikit_core::{Guarantees, NodeId, ReadLevel, WriteLevel};
use replikit_partitioning::store::{STRATEGY_LEADERLESS, STRATEGY_MULTI_LEADER};
use replikit_runtime::{NodeCounters, NodeStatus};

use self::baseline::Architecture;
use self::nodes::Nodes;
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::network::Network;
use crate::play::Home;
use crate::workload::mix::{Operation, Updates};

/// A deployment that serves requests. Dropping it kills its processes.
#[async_trait(?Send)]
pub trait Engine {
    /// Where to send requests of these levels.
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target;

    /// What the engine promises for writes at this level.
    fn guarantees(&self, write_level: WriteLevel) -> Guarantees;

    /// Its nodes as the clients see them that live beside each.
    fn homes(&self) -> Vec<Home>;

    /// Processes of the node program, and the network between them; `None` where a network and faults of nodes mean nothing.
    fn nodes(&self) -> Option<&Nodes> {
        None
    }

    /// The same, to do something to them.
    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        None
    }

    /// How every node describes itself; empty where there are no [`nodes`](Self::nodes).
    ///
    /// # Errors
    /// When one does not answer.
    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        Ok(Vec::new())
    }

    /// Who leads; `None` where nobody does.
    ///
    /// # Errors
    /// When somebody should and nobody does.
    async fn leader(&self) -> Result<Option<NodeId>, BenchError> {
        Ok(None)
    }

    /// Waits until every node serves.
    ///
    /// # Errors
    /// When that takes too long.
    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        Ok(())
    }

    /// How everything is read back; `None` where pages do not show the keys, and each is read by itself.
    fn scan_level(&self) -> Option<ReadLevel> {
        Some(ReadLevel::Linearizable)
    }

    /// Waits until any replica shows all that was acknowledged.
    ///
    /// # Errors
    /// When that takes too long.
    async fn settle(&mut self) -> Result<(), BenchError> {
        Ok(())
    }

    /// What was overwritten by writes that had not seen it since this was asked last; `None` where that does not happen.
    ///
    /// # Errors
    /// When a node does not answer.
    async fn audited(&mut self) -> Result<Option<Audited>, BenchError> {
        Ok(None)
    }

    /// Hands partitions to other groups, one after the other, for about so long; how many.
    ///
    /// # Errors
    /// When there are none to hand over, or one could not be.
    async fn migrate(&mut self, _time: std::time::Duration) -> Result<usize, BenchError> {
        Err(BenchError::Usage("an engine without partitions has none to hand over".to_owned()))
    }

    /// What each node has counted since its start.
    ///
    /// # Errors
    /// When a node does not answer.
    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        Ok(self.statuses().await?.iter().map(|status| Counted::from(&status.counters)).collect())
    }

    /// Its processes, whose use of the machine is measured; none for what runs in this one.
    fn processes(&self) -> Vec<u32> {
        self.nodes().map_or_else(Vec::new, Nodes::processes)
    }

    /// How it is set up: names and values for the report.
    fn configuration(&self) -> BTreeMap<String, String> {
        self.nodes().map_or_else(BTreeMap::new, Nodes::configuration)
    }

    /// What its nodes have counted that only their strategy counts, a line for each node.
    ///
    /// # Errors
    /// When a node does not answer.
    async fn remarks(&self) -> Result<Vec<String>, BenchError> {
        Ok(Vec::new())
    }

    /// Whether all its processes still run.
    ///
    /// # Errors
    /// When one has ended by itself; with its last words.
    fn check(&mut self) -> Result<(), BenchError> {
        self.nodes_mut().map_or(Ok(()), Nodes::check)
    }

    /// Ends it cleanly.
    ///
    /// # Errors
    /// When a process does not end when it is asked to.
    async fn stop(mut self: Box<Self>) -> Result<(), BenchError> {
        self.nodes_mut().map_or(Ok(()), Nodes::stop)
    }
}

/// What a node has counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Calls of `fsync` and `fdatasync`.
    pub fsyncs: u64,
    /// Bytes that it sent, to clients and to other nodes; `None` where it does not count them.
    pub bytes_sent: Option<u64>,
    /// Bytes that it wrote to its disk; `None` where it does not count them.
    pub disk_bytes: Option<u64>,
    /// Messages that it sent to other nodes; `None` where it does not count them, or there are none.
    pub messages_sent: Option<u64>,
}

impl From<&NodeCounters> for Counted {
    fn from(counters: &NodeCounters) -> Self {
        Self {
            fsyncs: counters.fsyncs,
            bytes_sent: Some(counters.bytes_sent),
            disk_bytes: Some(counters.disk_bytes_written),
            messages_sent: Some(counters.messages_sent),
        }
    }
}

/// A part of an audit log.
#[derive(Clone, Debug)]
pub struct Audited {
    /// What is kept.
    pub conflicts: Vec<Conflict>,
    /// How many more there were.
    pub dropped: u64,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Three processes of the node program, each with its log on disk.
    SingleLeader,
    /// The same, with every node taking writes.
    MultiLeader,
    /// The same, with quorums of these sizes.
    Leaderless(Sizes),
    /// The same, with keys that are compared and set.
    LeaderlessCas(Askers),
    /// The same, with a group that has one leader for each of so many partitions.
    Partitioned(Partitions),
    /// The same, with groups of another kind, one for each of so many partitions.
    Placed(Placed, Partitions),
    /// One plain machine.
    Baseline(Architecture, Sync),
}

/// The names of the engines that are clusters of nodes.
pub const CLUSTERS: [&str; 7] = [
    "single-leader",
    "multi-leader",
    "leaderless",
    "leaderless-cas",
    "partitioned",
    STRATEGY_LEADERLESS,
    STRATEGY_MULTI_LEADER,
];
/// And of those that are one machine.
pub const BASELINES: [&str; 3] = ["single-thread", "shared-memory", "shared-disk"];

/// How many of the three owners take part in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// R = 2, W = 2: they meet, and either works with one node down.
    Majorities,
    /// R = 1, W = 1: they need not meet.
    One,
    /// R = 1, W = 3: they meet, and no write works with a node down.
    WriteAll,
}

impl Sizes {
    /// R and W; D is W.
    #[must_use]
    pub const fn sizes(self) -> (u8, u8) {
        self.of(nodes::NODES as u8)
    }

    /// R and W among so many owners; D is W.
    #[must_use]
    pub const fn of(self, owners: u8) -> (u8, u8) {
        match self {
            Self::Majorities => (owners / 2 + 1, owners / 2 + 1),
            Self::One => (1, 1),
            Self::WriteAll => (1, owners),
        }
    }
}

/// Which groups a map places on nodes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Leaderless ones, with majorities as quorums.
    Leaderless,
    /// Multi-leader ones.
    MultiLeader,
}

impl Placed {
    /// The name of a store of them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leaderless => STRATEGY_LEADERLESS,
            Self::MultiLeader => STRATEGY_MULTI_LEADER,
        }
    }
}

/// Into how many partitions the keys are cut, by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// One: what routing costs by itself.
    One,
    /// Sixteen, led by all three nodes.
    Sixteen,
}

impl Partitions {
    /// How many.
    #[must_use]
    pub const fn count(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Sixteen => 16,
        }
    }
}

/// Which nodes propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Askers {
    /// One: it goes on where it was.
    One,
    /// All: they get into each other's way where they change the same key.
    All,
}

/// Whether the baseline waits for its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// One fdatasync for all writes that are at hand, before any of them is acknowledged.
    Group,
    /// Never; the kernel writes when it likes.
    Never,
}

impl EngineKind {
    /// The name that `--engine` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleLeader => "single-leader",
            Self::MultiLeader => "multi-leader",
            Self::Leaderless(_) => "leaderless",
            Self::LeaderlessCas(_) => "leaderless-cas",
            Self::Partitioned(_) => "partitioned",
            Self::Placed(placed, _) => placed.name(),
            Self::Baseline(architecture, _) => architecture.name(),
        }
    }

    /// Whether it is there to be beaten, and promises one copy only.
    #[must_use]
    pub const fn is_baseline(self) -> bool {
        matches!(self, Self::Baseline(..))
    }

    /// The engine of this name, as it is usually set up.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let usual = [
            Self::SingleLeader,
            Self::MultiLeader,
            Self::Leaderless(Sizes::Majorities),
            Self::LeaderlessCas(Askers::All),
            Self::Partitioned(Partitions::Sixteen),
            Self::Placed(Placed::Leaderless, Partitions::Sixteen),
            Self::Placed(Placed::MultiLeader, Partitions::Sixteen),
            Self::Baseline(Architecture::SingleThread, Sync::Group),
            Self::Baseline(Architecture::SharedMemory, Sync::Group),
            Self::Baseline(Architecture::SharedDisk, Sync::Group),
        ];
        usual.into_iter().find(|engine| engine.name() == name)
    }

    /// What it consists of.
    #[must_use]
    pub const fn setup(self) -> &'static str {
        match self {
            Self::SingleLeader | Self::MultiLeader | Self::Leaderless(_) | Self::LeaderlessCas(_) => "3 nodes",
            Self::Partitioned(Partitions::One) | Self::Placed(_, Partitions::One) => "3 nodes, 1 partition",
            Self::Partitioned(Partitions::Sixteen) | Self::Placed(_, Partitions::Sixteen) => "3 nodes, 16 partitions",
            Self::Baseline(Architecture::SharedDisk, _) => "3 processes",
            Self::Baseline(..) => "1 process",
        }
    }

    /// Starts it, with its data below `folder`.
    ///
    /// # Errors
    /// When it does not serve requests within its time limit; with the last words of its processes.
    pub async fn start(self, folder: &Path) -> Result<Box<dyn Engine>, BenchError> {
        self.start_over(folder, None).await
    }

    /// Starts it with this network between its nodes, and as many nodes as the network has; without one, with loopback.
    ///
    /// # Errors
    /// When it does not serve requests within its time limit; with the last words of its processes.
    pub async fn start_over(self, folder: &Path, network: Option<&Network>) -> Result<Box<dyn Engine>, BenchError> {
        Ok(match self {
            Self::SingleLeader => Box::new(single_leader::SingleLeader::start(folder, network).await?),
            Self::MultiLeader => Box::new(multi_leader::MultiLeader::start(folder, network).await?),
            Self::Leaderless(sizes) => Box::new(leaderless::Leaderless::start(folder, network, sizes).await?),
            Self::LeaderlessCas(askers) => Box::new(leaderless::LeaderlessCas::start(folder, network, askers).await?),
            Self::Partitioned(partitions) => {
                Box::new(partitioned::Partitioned::start(folder, network, partitions).await?)
            }
            Self::Placed(placed, partitions) => {
                let nodes = network.map_or(nodes::NODES as usize, |network| network.nodes.len());
                Box::new(
                    partitioned::Partitioned::start_placed(placed, folder, network, nodes, partitions.count()).await?,
                )
            }
            Self::Baseline(architecture, sync) => {
                Box::new(baseline::Baseline::start(folder, architecture, sync).await?)
            }
        })
    }

    /// Why it cannot do an operation that is made in this way; `None` when it can.
    #[must_use]
    pub const fn cannot(self, operation: Operation, updates: Updates) -> Option<&'static str> {
        match (self, operation, updates) {
            (Self::SingleLeader | Self::Partitioned(_) | Self::Baseline(..), Operation::SetAdd, Updates::Merge) => {
                Some("one order of all writes: it has no sets that merge; put back, or compare and set")
            }
            (
                Self::MultiLeader | Self::Leaderless(_) | Self::Placed(..),
                Operation::Increment | Operation::SetAdd,
                Updates::CompareAndSet,
            ) => Some(
                "no node knows what the others accept: it cannot compare and set outside of keys agreed on one by one",
            ),
            (Self::LeaderlessCas(_), Operation::Scan, _) => {
                Some("pages do not show keys that are agreed on one by one")
            }
            (Self::LeaderlessCas(_), Operation::SetAdd, Updates::Merge) => {
                Some("keys that are agreed on one by one hold no values that merge")
            }
            _ => None,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.name(), self.setup())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_that_of_an_engine_with_a_colour() {
        for name in CLUSTERS.into_iter().chain(BASELINES) {
            let engine = EngineKind::named(name).expect("it is named");
            assert_eq!((engine.name(), engine.is_baseline()), (name, BASELINES.contains(&name)));
            assert!(crate::report::plot::COLOURS.iter().any(|(of, ..)| *of == name), "{name} has no colour");
        }
    }
}
