//! Multi-leader replication: every replica takes writes, commits them on its own disk, and hands them on.
#![forbid(unsafe_code)]

mod audit;
mod commit;
mod config;
mod exchange;
pub mod home;
mod member;
mod message;
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
pub use home::{Home, HomeFn};
pub use message::{Head, Hearsay, Piece, PieceWanted, Push, Report};
pub use record::LoggedWrite;
pub use replica::{Figures, MultiLeader};
pub use topology::{Graph, Topology, TopologyError, TopologyReport};
