//! What partitioning costs and takes: finding a key's route, planning moves, handing a partition over while clients write,
//! pages of many partitions, and many groups on one node: busy, idle, and when a node dies.

mod groups;
mod handoff;
mod leaders;
mod planning;
mod scatter;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use self::handoff::Moved;
use crate::engine::Placed;
use crate::error::BenchError;
use crate::figure::{Figure, Subject};
use crate::record::{Curve, Kind, Mark, Record};
use crate::suite::VALUE_BYTES;

/// Clients that write while a partition is handed over, and to many groups.
const CLIENTS: u32 = 64;
/// Keys of the partition that is handed over.
const HANDED_KEYS: u32 = 100_000;
/// Keys whose pages are read.
const PAGED_KEYS: u32 = 20_000;

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitioningRun {
    /// Routes of keys, and plans of moves, in this process.
    Planning,
    /// A partition is handed from group to group and back.
    Handoff {
        /// Whether clients write to it meanwhile.
        loaded: bool,
    },
    /// A copy of a group goes to another node and back.
    Placement {
        /// Of which kind the group is.
        of: Placed,
        /// Whether clients write to it meanwhile.
        loaded: bool,
    },
    /// Pages of keys that lie in so many partitions by turns.
    Scatter {
        /// How many.
        partitions: u16,
    },
    /// So many groups on each node that nobody asks for anything, while one of the nodes is killed.
    Leaders {
        /// How many.
        groups: u16,
    },
    /// So many groups on each node, with writes to all of them, and then none.
    Groups {
        /// How many.
        groups: u16,
    },
}

/// All of them, in the order in which they run.
pub const ALL: [PartitioningRun; 13] = [
    PartitioningRun::Planning,
    PartitioningRun::Handoff { loaded: false },
    PartitioningRun::Handoff { loaded: true },
    PartitioningRun::Placement { of: Placed::Leaderless, loaded: false },
    PartitioningRun::Placement { of: Placed::Leaderless, loaded: true },
    PartitioningRun::Placement { of: Placed::MultiLeader, loaded: false },
    PartitioningRun::Placement { of: Placed::MultiLeader, loaded: true },
    PartitioningRun::Scatter { partitions: 1 },
    PartitioningRun::Scatter { partitions: 16 },
    PartitioningRun::Scatter { partitions: 64 },
    PartitioningRun::Groups { groups: 48 },
    PartitioningRun::Groups { groups: 1_024 },
    PartitioningRun::Leaders { groups: 10_000 },
];

impl fmt::Display for PartitioningRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planning => f.write_str("partitioned, in memory: routes and plans"),
            Self::Handoff { loaded } => {
                write!(f, "partitioned, 3 nodes: a partition of {HANDED_KEYS} keys of {VALUE_BYTES} B handed over")?;
                if *loaded { write!(f, ", {CLIENTS} clients write to it") } else { f.write_str(", idle") }
            }
            Self::Placement { of, loaded } => {
                write!(
                    f,
                    "{}, 4 nodes, 3 of a group: a copy of {HANDED_KEYS} keys of {VALUE_BYTES} B goes to the fourth",
                    of.name()
                )?;
                if *loaded { write!(f, ", {CLIENTS} clients write to it") } else { f.write_str(", idle") }
            }
            Self::Scatter { partitions } => {
                write!(f, "partitioned, 3 nodes: pages of {} keys of {partitions} partitions by hash", scatter::PAGE)
            }
            Self::Groups { groups } => {
                write!(
                    f,
                    "partitioned, 3 nodes: {groups} groups on each node, {CLIENTS} clients write to all, then none"
                )
            }
            Self::Leaders { groups } => {
                write!(f, "partitioned, 3 nodes: {groups} idle groups on each node, until all have a leader")
            }
        }
    }
}

impl PartitioningRun {
    /// How long it takes, about.
    #[must_use]
    pub const fn estimate(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Planning => 4,
            Self::Handoff { loaded: false } | Self::Placement { loaded: false, .. } => 12,
            Self::Handoff { loaded: true } | Self::Placement { loaded: true, .. } => 20,
            Self::Scatter { .. } => 10,
            Self::Groups { .. } => 12,
            Self::Leaders { .. } => 40,
        })
    }
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The figures.
    pub figures: Vec<Figure>,
    /// Acknowledged writes over time, where clients write.
    pub curves: Vec<Curve>,
    /// What happened when.
    pub marks: Vec<Mark>,
    /// Wrong results, in words.
    pub wrong: Vec<String>,
    /// One line for the progress.
    pub line: String,
}

impl Found {
    /// The line that is written of it.
    #[must_use]
    pub fn record(self, name: &str) -> Record {
        let mut record = Record::of(Kind::Partitioning, name, &self.figures).expect("there are figures");
        (record.curves, record.marks, record.wrong) = (self.curves, self.marks, self.wrong);
        record
    }
}

/// Carries out a run, with its data below `folder`. Must run on a current-thread runtime.
///
/// # Errors
/// When the cluster does not start or does not serve.
pub async fn run(run: PartitioningRun, seed: u64, folder: &Path) -> Result<Found, BenchError> {
    let subject = |workload: &str, clients: u32| Subject {
        engine: "partitioned".to_owned(),
        workload: workload.to_owned(),
        clients,
        ..Subject::default()
    };
    let of_placed = |of: Placed, workload: &str, clients: u32| Subject {
        engine: of.name().to_owned(),
        ..subject(workload, clients)
    };
    match run {
        PartitioningRun::Planning => Ok(planning::run(&subject("in memory", 0))),
        PartitioningRun::Handoff { loaded: false } => {
            handoff::idle(Moved::Partition, &subject("handoff, idle", 0), folder).await
        }
        PartitioningRun::Handoff { loaded: true } => {
            handoff::loaded(Moved::Partition, &subject("handoff under load", CLIENTS), seed, folder).await
        }
        PartitioningRun::Placement { of, loaded: false } => {
            handoff::idle(Moved::Copy(of), &of_placed(of, "placement, idle", 0), folder).await
        }
        PartitioningRun::Placement { of, loaded: true } => {
            handoff::loaded(Moved::Copy(of), &of_placed(of, "placement under load", CLIENTS), seed, folder).await
        }
        PartitioningRun::Scatter { partitions } => scatter::run(&subject("pages", 1), partitions, seed, folder).await,
        PartitioningRun::Groups { groups } => groups::run(&subject("many groups", CLIENTS), groups, seed, folder).await,
        PartitioningRun::Leaders { groups } => leaders::run(&subject("idle groups", 0), groups, folder).await,
    }
}
