//! The shared log of replikit: what replicas persist, on disk, and back again after a crash.
//!
//! One log serves all groups of a loop, so one fsync serves all. It keeps whole batches of many streams, small registers (votes,
//! incarnations, clock ceilings), and snapshots. It is sans-IO: it emits [`DiskOp`]s and takes their completions, so real files
//! ([`FileDisk`]), memory ([`MemDisk`]) and a simulator's faulty disk run the very same code and format.
//!
//! # Guarantees
//!
//! | what | promise |
//! |---|---|
//! | [`LogOutput::Durable`] | everything up to that action is there after any crash, in order |
//! | a torn tail | is cut only where nothing proves it durable, and that is told ([`LogEvent::TailCut`], `Boot::tail_cut`) |
//! | damage to what was durable | refuses to open and names file, bytes and entries ([`OpenError::Corrupt`]); nothing is changed |
//! | a replaced suffix | never comes back, and is kept beside the log ([`lost_suffix`]) |
//! | a failed write or fsync | poisons the log: no retry, nothing more is confirmed |
//! | an idle stream | pins no segment |
//! | a register | stands in two places from the moment that it is durable |
//!
//! # What it does not do
//!
//! It does not repair damage: another replica has the data. It does not encrypt or compress. It starts no thread and reads no
//! clock: a watchdog for slow disks is the driver's.
//!
//! # Fault model
//!
//! What an fsync that returned covered stays, or its loss is noticed by a checksum; until then any subset of the written
//! sectors may survive. A failed fsync may have dropped what it should have saved, although reads still show it (Rebello et
//! al., ATC'20). A rename survives only once the directory was synced.
//!
//! # Driving it
//!
//! ```
//! use replikit_core::{
//!     Batch, BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp, LogIndex, NodeId, Persist, StreamId, Term, WriteId,
//! };
//! use replikit_log::{Log, LogConfig, LogOutput, MemDisk, RecoveryItem, Storage, drive};
//!
//! let cluster = ClusterId::from_name("example");
//! let mut disk = MemDisk::new(); // or FileDisk::open(path)?
//! let (mut log, _) = Log::open(LogConfig::new(cluster, NodeId(1)), &mut disk)?;
//! let batch = Batch::build(
//!     &BatchMeta {
//!         cluster,
//!         stream: StreamId::consensus(GroupId(1)),
//!         base: LogIndex(1),
//!         term: Term(1),
//!         prev_digest: 0,
//!         time: HybridTimestamp(0),
//!         kind: BatchKind::Commands,
//!     },
//!     [(&b"set x"[..], None)].into_iter(),
//! );
//! log.persist(WriteId(1), Persist::Append { batch: batch.clone(), replace: false });
//! drive(&mut log, &mut disk); // one write, one sync
//! assert!(matches!(log.poll(), Some(LogOutput::Durable { up_to: WriteId(1) })));
//!
//! // After a crash:
//! let (log, _) = Log::open(LogConfig::new(cluster, NodeId(1)), &mut disk)?;
//! for item in log.recovery(&mut disk) {
//!     assert!(matches!(item?, RecoveryItem::Batch(found) if found == batch));
//! }
//! # Ok::<(), replikit_log::OpenError>(())
//! ```
//!
//! # Sources
//!
//! Protocol-aware recovery (Alagappan et al., FAST'18) for telling a crash from damage; TigerBeetle's journal for the decision
//! as an exhaustively tested function; Kafka's batches for what is replicated; `docs/log-format.md` for every byte.
#![forbid(unsafe_code)]

mod classify;
mod config;
mod disk;
mod error;
mod event;
mod file_disk;
mod format;
mod group;
mod inspect;
mod job;
mod log;
mod lost;
mod mem_disk;
mod memory_log;
mod open;
mod scan;
mod segment;
mod snapshot;
mod state;
mod storage;
mod survey;

pub use config::{ConfigError, LogConfig};
pub use disk::{Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName, Lane, OpId};
pub use error::{Damage, OpenError};
pub use event::{LogEvent, SubscriptionId, Tail};
pub use file_disk::{DiskStats, FileDisk};
pub use format::LOG_VERSION;
pub use inspect::{Report, SegmentReport, StreamReport, dump, lost_suffix, verify};
pub use log::{Log, Recovery, drive};
pub use mem_disk::MemDisk;
pub use memory_log::MemoryLog;
pub use open::Recovered;
pub use storage::{Boots, LogOutput, RecoveryItem, Storage};

/// Most reads of old entries and snapshots that are with the disk at one time; more wait their turn.
pub const READS_IN_FLIGHT_MAX: usize = 16;
