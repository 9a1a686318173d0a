//! Multi-leader replication: every replica takes writes, commits them on its own disk, and hands them on.
//!
//! | write level | acknowledged means | survives | lost when |
//! |---|---|---|---|
//! | `Memory` | in this node's memory | no crash | this node crashes; a session that has seen it is told |
//! | `LeaderDisk` | on this node's disk; no message was sent before | power loss | this disk is lost before another replica has it |
//! | `Received(k)`, `Applied(k)` | as above, and received, shown by k replicas | power loss | as above |
//! | `Durable(k)` | on the disks of k replicas | k - 1 of them | k disks are lost |
//! | `Quorum` | on the disks of a majority | any minority of disks | never |
//!
//! Acknowledged is not the same as kept: of concurrent writes of a key the policy of its [`Keyspace`] decides which is shown.
//! Every acknowledged write is live, or replaced by a write that had seen it, or in the audit log; or counted as dropped from
//! there. Reads are local, with a session token they never go back at any replica, and a staleness that is stated is an upper
//! bound.
//!
//! # What it does not do
//!
//! Linearizable reads, compare-and-set at a key without a required home, uniqueness and other invariants across keys,
//! and exactly-once retries of a request (a counter's retry counts twice).
//!
//! # Members
//!
//! The members are those of the newest epoch that an [`EpochSource`](replikit_core::EpochSource) tells of; none is ever taken
//! for gone because of a clock. A node that an epoch evicts takes no more writes as soon as it knows. Of what it wrote, that
//! counts which some member had when it took over the epoch; the rest is on its own disk, and when a later epoch names it
//! again it begins with an empty state, catches up, and makes those writes again under their old dots.
//!
//! # Fault model
//!
//! Crash and recovery; messages may be lost, duplicated, delayed and reordered; no clock is trusted for anything but which of
//! two concurrent writes is the newer one. A node whose log was cut at its end, or whose disk is empty, writes nothing before
//! all others have told it what they know of it.
//!
//! # The driving loop
//!
//! See [`Replica`](replikit_core::Replica). A group of one, driven by hand:
//!
//! ```
//! use replikit_core::keyspace::encode_write;
//! use replikit_core::*;
//! use replikit_multi_leader::{Config, MultiLeader};
//!
//! let config = Config::new(ClusterId::from_name("doc"), GroupId(0), NodeId(1), vec![NodeId(1)]);
//! let mut replica = MultiLeader::new(config, &Boot::default()).unwrap();
//! // 1. Recovery: an empty disk pushes nothing.
//! replica.handle(Now::default(), Input::Recovered);
//! // 2. Inputs, 3. drain: a disk that is done at once.
//! let mut run = |input| {
//!     replica.handle(Now::default(), input);
//!     let mut done = None;
//!     while let Some(action) = replica.poll() {
//!         match action {
//!             Action::Persist { id, .. } => replica.handle(Now::default(), Input::Durable { up_to: id }),
//!             Action::Done { outcome, .. } => done = Some(outcome),
//!             _ => {}
//!         }
//!     }
//!     done
//! };
//! let body = encode_write(&WriteRequest::put("key", "value")).unwrap();
//! let level = WriteLevel::LeaderDisk;
//! let command = Input::Command { token: Token(1), group: GroupId(0), level, session: None, body };
//! assert!(matches!(run(command), Some(Outcome::Acked { .. })));
//! ```
//!
//! # Sources
//!
//! DDIA chapter 5; dots and stripped contexts: DottedDB (Goncalves et al., SRDS 2017) and dotted version vectors (Almeida et
//! al. 2014); causal stability: Baquero, Almeida, Shoker 2014; session guarantees: Terry et al., PDIS'94; cheap full exchange
//! with lossy push: Riak's NextGenRepl.
#![forbid(unsafe_code)]

mod commit;
mod config;
mod epoch;
mod exchange;
mod fence;
mod guarantees;
pub mod home;
mod member;
mod message;
#[cfg(feature = "runtime")]
mod node;
mod reads;
mod record;
mod register;
mod replica;
mod resubmission;
mod snapshot;
mod state;
mod topology;
mod transfer;
mod versions;
mod waiting;

pub use config::{Config, ConfigError, Founding, Keyspace, Keyspaces, Limits, Timing};
pub use guarantees::{guarantees, guarantees_with_reads};
pub use home::{Home, HomeFn};
pub use message::{Head, Hearsay, Piece, PieceWanted, Push, Report};
#[cfg(feature = "runtime")]
pub use node::{Cluster, Node, Settings, SharedEpochs};
pub use record::LoggedWrite;
pub use replica::{Figures, MultiLeader};
#[cfg(feature = "runtime")]
pub use replikit_runtime::{KvHandle, NodeConfig, OpenError};
pub use topology::{Graph, Topology, TopologyError, TopologyReport};
