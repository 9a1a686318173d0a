//! Multi-leader replication: every replica takes writes, commits them on its own disk, and hands them on.
#![forbid(unsafe_code)]

mod audit;
mod commit;
mod config;
mod exchange;
mod guarantees;
pub mod home;
mod member;
mod message;
#[cfg(feature = "runtime")]
mod node;
mod peer;
mod reads;
mod record;
mod register;
mod replica;
mod snapshot;
mod state;
mod stream;
mod topology;
mod transfer;
mod versions;

pub use config::{Config, ConfigError, Founding, Keyspace, Keyspaces, Limits, Timing};
pub use guarantees::{guarantees, guarantees_with_reads};
pub use home::{Home, HomeFn};
pub use message::{Head, Hearsay, Piece, PieceWanted, Push, Report};
#[cfg(feature = "runtime")]
pub use node::{Cluster, Node, Settings};
pub use record::LoggedWrite;
pub use replica::{Figures, MultiLeader};
#[cfg(feature = "runtime")]
pub use replikit_runtime::{KvHandle, NodeConfig, OpenError};
pub use topology::{Graph, Topology, TopologyError, TopologyReport};
