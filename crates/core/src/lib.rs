//! The vocabulary and the contracts of replikit.
//!
//! This crate has no I/O and no runtime. It says what a replica is ([`Replica`]), what a user brings ([`StateMachine`]) and
//! gets ([`Store`]), what is replicated ([`Batch`]), and how identity, causality and time are written down.
//!
//! # What it does not do
//!
//! It drives nothing and stores nothing: `replikit-runtime` drives any replica on real machines, `replikit-sim` in virtual
//! time, `replikit-log` keeps batches on disk.
//!
//! # Fault model
//!
//! | part | assumption |
//! |---|---|
//! | network | messages may be lost, duplicated, delayed and reordered without bound; a batch that arrives verified |
//! | processes | crash and come back with what was durable; may pause for any time |
//! | disk | what an fsync that returned covered stays, or its loss is noticed by checksum; a failed fsync is never retried |
//! | clocks | monotonic clocks never go back; wall clocks may do anything and decide neither ownership nor collection |
//!
//! # Sources
//!
//! Raft (Ongaro and Ousterhout, ATC'14; Ongaro's thesis), Kleppmann's *Designing Data-Intensive Applications* chapters 5
//! and 6 for the words, and the papers named on each module.
#![forbid(unsafe_code)]

mod batch;
mod clock;
mod context;
pub mod crdt;
mod dot;
pub mod dotted;
mod dvvs;
mod epoch;
mod guarantees;
mod hedging;
mod held;
mod id;
pub mod keyspace;
mod laws;
mod level;
mod lingering;
mod machine;
mod origin;
mod outcome;
pub mod policy;
pub mod quorum;
mod replica;
mod sequence;
mod stamp;
mod store;
mod time;
mod vector;

pub use batch::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_VERSION, Batch, BatchError, BatchHeader, BatchKind, BatchMeta, Batches,
    BatchesIntoIter, Entries, Entry, SESSION_WINDOW, SESSIONS_MAX, SessionSeq,
};
pub use clock::{ClockDrift, HybridClock, HybridTimestamp};
pub use context::{CausalContext, ContextError, Seen};
pub use dot::{Dot, DotRange};
pub use dvvs::Dvvs;
pub use epoch::{Announcements, EpochSource, Membership, SETTLED_EPOCH, StaticMembership, Turnover};
pub use guarantees::{Guarantees, ReadGuarantee, Survival};
pub use hedging::{HedgeBudget, Latency};
pub use held::Held;
pub use id::{
    ClusterId, Epoch, GroupId, LogId, LogIndex, NodeId, NodeInfo, OriginId, Position, SessionId, StreamId, Term,
    Ticket, Token, WriteId,
};
pub use laws::{Counterexample, check_resolver};
pub use level::{Owners, ReadLevel, SessionToken, WriteLevel};
pub use lingering::Lingering;
pub use machine::{BytesSource, RestoreError, Small, StateMachine};
pub use origin::{Admission, Incarnation, Origin, OriginClosed, OriginError, OriginState, OriginTable};
pub use outcome::{Outcome, Queue, Reached, Rejection};
pub use quorum::Quorum;
pub use replica::{
    Action, Admin, Boot, Event, Figure, FollowerStatus, Input, Link, LogAnswer, Message, Persist, REGISTER_BYTES_MAX,
    Replica, Role, SnapshotAnswer, SnapshotSource, Status, StorageEvent,
};
pub use sequence::SequenceSet;
pub use stamp::{Causality, Stamp};
pub use store::{
    Change, Changes, Cursor, KEY_BYTES_MAX, Page, ReadError, ReadRequest, ReadResult, ScanRequest, Store,
    SubscribeError, VALUE_BYTES_MAX, WriteEffect, WriteError, WriteOp, WriteRequest, Written,
};
pub use time::{Now, Time, WallTime};
pub use vector::VersionVector;
