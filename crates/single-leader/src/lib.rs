//! Single-leader replication: Raft as a [`Replica`](replikit_core::Replica), for a user's own state machine.
//!
//! | write level | acknowledged means | survives | lost when |
//! |---|---|---|---|
//! | `Memory` | in the leader's memory | no crash | the leader crashes; reported as [`LostWrites`](replikit_core::Event::LostWrites) |
//! | `LeaderDisk` | on the leader's disk | power loss | another leader takes over; reported, and kept beside the log |
//! | `Received(k)`, `Durable(k)` | in the memory, on the disks of k replicas | k - 1 of them | as above, below a quorum |
//! | `Quorum` | committed | any minority of disks | never |
//! | `Applied(k)` | committed and visible at k replicas | any minority of disks | never |
//!
//! Reads are linearizable by default, at any replica; weaker levels are per read. Retries under a session are applied once.
//!
//! A group in which nothing happens can sleep, without messages and timers, if its driver watches nodes:
//! [`Config::hibernate_after`].
//!
//! # What it does not do yet
//!
//! Membership change, leases, witnesses and priorities. A group is the members it was configured with.
//!
//! # Fault model
//!
//! Crash and recovery; messages may be lost, duplicated, delayed and reordered; no clock is trusted for safety. What an
//! fsync that returned covered is there after a crash, or its loss is noticed; a torn tail that may have held acknowledged
//! entries makes the replica abstain from elections until it has caught up.
//!
//! # The driving loop
//!
//! See [`Replica`](replikit_core::Replica). A group of one, driven by hand:
//!
//! ```
//! use replikit_core::*;
//! use replikit_single_leader::{Config, Raft};
//!
//! let config = Config::new(ClusterId::from_name("doc"), GroupId(0), NodeId(1), vec![NodeId(1)], 7);
//! let counter = Small::new(0_u64, |n, _| { *n += 1; n.to_le_bytes().to_vec() }, |n, _| n.to_le_bytes().to_vec());
//! let mut raft = Raft::new(config, &Boot::default(), counter).unwrap();
//! // 1. Recovery: an empty disk pushes nothing.
//! raft.handle(Now::default(), Input::Recovered);
//! // 2. Inputs, 3. drain: a disk that is done at once.
//! let mut run = |raft: &mut Raft<_>, input| {
//!     raft.handle(Now::default(), input);
//!     let mut done = None;
//!     while let Some(action) = raft.poll() {
//!         match action {
//!             Action::Persist { id, .. } => raft.handle(Now::default(), Input::Durable { up_to: id }),
//!             Action::Done { outcome, .. } => done = Some(outcome),
//!             _ => {}
//!         }
//!     }
//!     done
//! };
//! run(&mut raft, Input::Timer);
//! let command = Input::Command {
//!     token: Token(1), group: GroupId(0), level: WriteLevel::Quorum, session: None, body: "add".into(),
//! };
//! assert!(matches!(run(&mut raft, command), Some(Outcome::Acked { strict: true, .. })));
//! ```
//!
//! # Sources
//!
//! Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm* (ATC'14); Ongaro's thesis (2014) for pre-vote,
//! check-quorum, ReadIndex, sessions and leadership transfer.
#![forbid(unsafe_code)]

mod config;
mod election;
mod follower;
mod guarantees;
mod hibernation;
mod install;
mod leader;
mod message;
#[cfg(feature = "runtime")]
mod node;
mod progress;
mod reads;
mod register;
mod replica;
mod sessions;
mod snapshot;
mod view;

pub use config::{Config, ConfigError, Limits, Sharing, Timeouts};
pub use guarantees::{guarantees, guarantees_with_reads};
pub use message::{
    Append, AppendAck, AppendReject, Head, ReadIndex, ReadIndexReply, Sleep, SleepAck, SnapshotAck, SnapshotPiece,
    TimeoutNow, Vote, VoteReply, Wake,
};
#[cfg(feature = "runtime")]
pub use node::{Cluster, Node, Settings};
pub use replica::Raft;
#[cfg(feature = "runtime")]
pub use replikit_runtime::{Handle, KvHandle, NodeConfig, OpenError};
