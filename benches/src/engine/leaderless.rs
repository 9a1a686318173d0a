//! The leaderless cluster: three nodes that all take requests, with quorums of given sizes; the load is spread over them.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use replikit_core::{Guarantees, Owners, ReadLevel, WriteLevel};
use replikit_leaderless::{Quorums, Size, guarantees, guarantees_of, guarantees_of_cas};

use super::multi_leader::MultiLeader;
use super::nodes::NODES;
use super::{Askers, Audited, Counted, Engine, Sizes};
use crate::error::BenchError;
use crate::load::{Reads, Target};

/// A running cluster.
pub struct Leaderless {
    /// Its nodes are equal as well: they are reached, waited for and audited in the same way.
    cluster: MultiLeader,
    sizes: Sizes,
}

impl Leaderless {
    /// Starts three nodes with their data below `folder`, and waits until all take writes and see those of the others.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, sizes: Sizes) -> Result<Self, BenchError> {
        let arguments: &[&str] = match sizes {
            Sizes::Majorities => &["--strategy", "leaderless", "--quorums", "2,2,2"],
            Sizes::One => &["--strategy", "leaderless", "--quorums", "1,1,1"],
            Sizes::WriteAll => &["--strategy", "leaderless", "--quorums", "1,3,3"],
        };
        let cluster = MultiLeader::start_as("leaderless", folder, arguments, guarantees).await?;
        Ok(Self { cluster, sizes })
    }
}

#[async_trait(?Send)]
impl Engine for Leaderless {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        self.cluster.target(write_level, reads)
    }

    fn guarantees(&self, write_level: WriteLevel) -> Guarantees {
        let (read, write) = self.sizes.sizes();
        let (read, write) = (Size::Exactly(read), Size::Exactly(write));
        let quorums = Quorums { read, write, durable: write };
        guarantees_of(NODES as u8, quorums, write_level, &ReadLevel::Owners(Owners::Quorum))
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

    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        self.cluster.counted().await
    }

    fn processes(&self) -> Vec<u32> {
        self.cluster.processes()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        self.cluster.configuration()
    }

    async fn remarks(&self) -> Result<Vec<String>, BenchError> {
        self.cluster.remarks().await
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.cluster.check()
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        Box::new(self.cluster).stop().await
    }
}

/// A running cluster whose keys are compared and set.
pub struct LeaderlessCas {
    cluster: MultiLeader,
    askers: Askers,
}

impl LeaderlessCas {
    /// Starts three nodes with their data below `folder`, and waits until all take writes.
    ///
    /// # Errors
    /// When they do not within their time limit; with the last words of the one that failed.
    pub async fn start(folder: &Path, askers: Askers) -> Result<Self, BenchError> {
        let arguments = &["--strategy", "leaderless", "--keyspace", "key=cas"];
        let cluster = MultiLeader::start_as("leaderless-cas", folder, arguments, |_| guarantees_of_cas()).await?;
        Ok(Self { cluster, askers })
    }
}

#[async_trait(?Send)]
impl Engine for LeaderlessCas {
    fn target(&self, write_level: WriteLevel, reads: Reads) -> Target {
        let mut target = self.cluster.target(write_level, reads);
        if self.askers == Askers::One {
            // Each node in turn: the first of each round is node 1.
            target.leader = target.leader.into_iter().step_by(NODES as usize).collect();
        }
        target
    }

    fn guarantees(&self, _: WriteLevel) -> Guarantees {
        guarantees_of_cas()
    }

    fn scan_level(&self) -> Option<ReadLevel> {
        None
    }

    async fn counted(&self) -> Result<Vec<Counted>, BenchError> {
        self.cluster.counted().await
    }

    fn processes(&self) -> Vec<u32> {
        self.cluster.processes()
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        self.cluster.configuration()
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.cluster.check()
    }

    async fn stop(self: Box<Self>) -> Result<(), BenchError> {
        Box::new(self.cluster).stop().await
    }
}
