//! The leaderless cluster: three nodes that all take requests, with quorums of given sizes; the load is spread over them.

use std::path::Path;

use async_trait::async_trait;
use replikit_core::{Guarantees, Owners, ReadLevel, WriteLevel};
use replikit_leaderless::{Quorums, Size, guarantees, guarantees_of, guarantees_of_cas};
use replikit_runtime::{KvClient, NodeStatus};

use super::multi_leader::{MultiLeader, homes_of};
use super::nodes::Nodes;
use super::{Askers, Audited, Engine, Sizes};
use crate::error::BenchError;
use crate::load::{Reads, Target};
use crate::network::Network;
use crate::play::Home;

/// A running cluster.
pub struct Leaderless {
    /// Its nodes are equal as well: they are reached, waited for and audited in the same way.
    cluster: MultiLeader,
    /// What lives beside a node asks another one when that answers sooner.
    beside: Vec<KvClient>,
    sizes: Sizes,
    owners: u8,
}

impl Leaderless {
    /// Starts nodes with their data below `folder`, and waits until all take writes and see those of the others.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, network: Option<&Network>, sizes: Sizes) -> Result<Self, BenchError> {
        let owners = network.map_or(super::nodes::NODES as usize, |network| network.nodes.len()) as u8;
        let (read, write) = sizes.of(owners);
        let quorums = format!("{read},{write},{write}");
        let arguments = [
            "--strategy",
            "leaderless",
            "--quorums",
            quorums.as_str(),
            "--keyspace",
            "count/=counter",
            "--keyspace",
            "set/=set",
        ];
        let cluster = MultiLeader::start_as("leaderless", folder, network, &arguments, guarantees).await?;
        Ok(Self { beside: cluster.ranking_clients().await?, cluster, sizes, owners })
    }
}

#[async_trait(?Send)]
impl Engine for Leaderless {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        self.cluster.target(write_level, reads)
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        let (read, write) = self.sizes.of(self.owners);
        let (read, write) = (Size::Exactly(read), Size::Exactly(write));
        let quorums = Quorums { read, write, durable: write };
        guarantees_of(self.owners, quorums, write_level, &ReadLevel::Owners(Owners::Quorum))
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        Some(ReadLevel::Local)
    }

    async fn settle(&mut self) -> Result<(), BenchError> {
        self.cluster.settle().await
    }

    async fn audited(&mut self) -> Result<Option<Audited>, BenchError> {
        self.cluster.audited().await
    }

    fn homes(&self) -> Vec<Home> {
        homes_of(&self.beside)
    }

    fn nodes(&self) -> Option<&Nodes> {
        self.cluster.nodes()
    }

    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        self.cluster.nodes_mut()
    }

    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        self.cluster.wait_ready().await
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        self.cluster.statuses().await
    }

    async fn remarks(&self) -> Result<Vec<String>, BenchError> {
        self.cluster.remarks().await
    }
}

/// A running cluster whose keys are compared and set.
pub struct LeaderlessCas {
    cluster: MultiLeader,
    askers: Askers,
}

impl LeaderlessCas {
    /// Starts nodes with their data below `folder`, and waits until all take writes.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, network: Option<&Network>, askers: Askers) -> Result<Self, BenchError> {
        let mut arguments = vec!["--strategy", "leaderless"];
        for keyspace in ["key=cas", "list/=cas", "log/=cas", "churn/=cas", "count/=cas"] {
            arguments.extend(["--keyspace", keyspace]);
        }
        let cluster =
            MultiLeader::start_as("leaderless-cas", folder, network, &arguments, |_| guarantees_of_cas()).await?;
        Ok(Self { cluster, askers })
    }
}

#[async_trait(?Send)]
impl Engine for LeaderlessCas {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let mut target = self.cluster.target(write_level, reads);
        if self.askers == Askers::One {
            // Each node in turn: the first of each round is node 1.
            target.leader = target.leader.into_iter().step_by(target.replicas.len()).collect();
        }
        target
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        guarantees_of_cas()
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        None
    }

    fn homes(&self) -> Vec<Home> {
        self.cluster.homes()
    }

    fn nodes(&self) -> Option<&Nodes> {
        self.cluster.nodes()
    }

    fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        self.cluster.nodes_mut()
    }

    async fn wait_ready(&mut self) -> Result<(), BenchError> {
        self.cluster.wait_ready().await
    }

    async fn statuses(&self) -> Result<Vec<NodeStatus>, BenchError> {
        self.cluster.statuses().await
    }
}
