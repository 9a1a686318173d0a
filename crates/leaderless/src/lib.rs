//! Leaderless replication: any owner of a key takes a request, and quorums of owners answer it.
#![forbid(unsafe_code)]

mod audit;
mod config;
mod content;
mod coordinate;
mod exchange;
mod guarantees;
mod latency;
mod levels;
mod member;
mod message;
mod orphan;
mod reads;
mod record;
mod register;
mod replica;
mod snapshot;
mod state;

pub use config::{
    Config, ConfigError, Founding, Keyspace, Keyspaces, Limits, OWNERS_MAX, Quorums, ReadRepair, Size, Timing,
};
pub use content::KeyCopy;
pub use guarantees::{guarantees, guarantees_with_reads};
pub use message::{Answer, Fetch, Fetched, Head, NotLast, Piece, PieceWanted, Push, Repair, Report, Stored};
pub use record::LoggedWrite;
pub use replica::{Figures, Leaderless};
