//! A majority-quorum register per key: the smallest useful [`Replica`] that has no leader, kept as an example of how to
//! write one.
//!
//! # The algorithm
//!
//! Every node may coordinate. A write asks a majority for the newest stamp of the key, takes a larger one, and has a
//! majority make the record durable. A read asks a majority for the newest record and has a majority hold it before it
//! answers. Two majorities meet in a node, so a read sees every write that ended before it began: each key is linearizable,
//! for writes and deletes. Source: Attiya, Bar-Noy and Dolev, JACM 42(1), 1995; for many writers Lynch and Shvartsman,
//! FTCS 1997.
//!
//! # How it keeps the contract of a replica
//!
//! 1. *What `poll` hands out may be carried out at once.* The answer to `Store` claims durability, so it waits in [`Held`]
//!    until the write that it depends on is durable. It does so also when nothing had to be written, for the record may be
//!    in memory only, behind a write that is still under way. The answer to `Ask` claims nothing and leaves at once.
//! 2. *No clock, no randomness.* Stamps are counters; time only limits how long an operation waits.
//! 3. *Memory does not survive.* A stamp or an operation id that was sent may be forgotten in a crash and would be given
//!    away twice. Both carry the number of this start, which is made durable as the group's register before any of
//!    them leaves.
//! 4. *The log does not grow for ever.* Each start writes a stream of its own; from time to time the records are written as
//!    a snapshot and the streams are released. Recovery merges snapshot and batches by stamp, in whatever order.
//! 5. *Nothing a peer says is a panic*, and every queue has a limit.
//!
//! It is not fast: one batch for each record, and an ordered map of operations.
//!
//! [`Replica`]: replikit_core::Replica
//! [`Held`]: replikit_core::Held

mod config;
mod coordinate;
mod copy;
mod message;
mod operation;
mod record;
mod replica;
mod snapshot;
mod workload;

pub use config::{RegisterConfig, RegisterError};
pub use message::{OperationId, RegisterMessage};
pub use record::Stamp;
pub use replica::Register;
pub use workload::{RegisterDialect, RegisterWorkload};
