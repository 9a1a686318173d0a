//! The log itself: takes storage actions, emits disk operations, takes their completions.
//!
//! Invariants: one group is being written at a time, so any later good group proves the earlier ones durable; durability is
//! one watermark in FIFO order; after a failed write or sync nothing becomes durable any more and nothing is retried.

mod background;
mod commit;
mod persist;
mod read;
mod recovery;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{GroupId, LogIndex, Persist, Position, StorageEvent, StreamId, Ticket, WriteId};

pub use self::recovery::Recovery;
use crate::group::Filling;
use crate::job::{Job, Prepared, Spare};
use crate::open::{Opened, open};
use crate::segment::Segments;
use crate::snapshot::SnapshotFile;
use crate::state::State;
use crate::{
    Disk, DiskAnswer, DiskError, DiskOp, FileId, Lane, LogConfig, LogEvent, LogOutput, OpId, OpenError, Recovered,
    Storage, SubscriptionId,
};
use commit::Commit;
use read::Read;

/// The segment after the current one.
#[derive(Debug)]
enum Next {
    /// Not asked for yet.
    None,
    /// Being prepared.
    Preparing,
    /// Ready.
    Ready(Prepared),
    /// There was no space for it.
    Lacking,
}

/// Why storage actions wait in memory, untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// A snapshot from a peer must be durable before anything behind it is written.
    Install,
    /// Too many snapshot chunks wait for the disk.
    Chunks,
}

/// The log's own life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// Asked to close; the mark is not written yet.
    Closing,
    /// The mark is being written.
    Marked,
    Closed,
    /// A disk operation failed.
    Failed,
}

/// The snapshots that a group's replica has taken of its own state since the log was opened, and what waits for them.
#[derive(Debug, Default)]
struct Taking {
    asked: u64,
    /// The newest of them that is durable.
    durable: u64,
    /// Releases, with the snapshot that was asked for before each.
    releases: VecDeque<(u64, StreamId, LogIndex)>,
}

#[derive(Clone, Copy, Debug)]
struct Subscription {
    stream: StreamId,
    cursor: LogIndex,
    /// A read for it is under way.
    busy: bool,
}

/// The shared log: see the module and [`Storage`].
///
/// # Driving it
///
/// 1. [`Log::open`], then push [`Log::recovery`] into the replica.
/// 2. Hand every storage action to [`Storage::persist`], reads to [`Storage::read_log`] and [`Storage::read_snapshot`].
/// 3. [`Log::poll_disk`] until `None`; carry out each operation, those of one [`Lane`] in order, and hand each result to
///    [`Log::complete`]. Actions that come while a group is being written form the next group: no timer, and a lone writer
///    waits for one write and one sync only.
/// 4. [`Storage::poll`] until `None`; hand the outputs on. Go to 2.
///
/// [`drive`] does 3 and is enough where one thread may block.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    starts: u64,
    incarnation: u32,
    life: Life,
    state: State,
    segments: Segments,
    /// Segments below this are released on disk.
    oldest: u64,
    unsealed: BTreeSet<u64>,
    filling: Filling,
    spare_buffers: Vec<Bytes>,
    commit: Option<Commit>,
    /// Number and digest of the last frame that was encoded.
    seq: u64,
    digest: u64,
    durable_seq: u64,
    /// Groups below this are durable.
    durable_place: u64,
    next: Next,
    prepare_attempts: u32,
    next_number: u64,
    largest_bytes: u64,
    spares: Vec<Spare>,
    next_file: u64,
    next_op: u64,
    ready: VecDeque<(OpId, DiskOp)>,
    jobs: VecDeque<Job>,
    /// The operation of the job in front.
    job_op: Option<OpId>,
    /// Bytes that may be moved forward: as many as were appended since the log was opened, less what was moved. So moving
    /// costs at most as much as appending, whatever the policy says.
    move_credit_bytes: u64,
    /// Something was released since the segments were last looked at.
    released: bool,
    reads: BTreeMap<u64, Read>,
    reads_waiting: VecDeque<Read>,
    waiting: VecDeque<(WriteId, Persist)>,
    waiting_bytes: usize,
    barrier: Option<Barrier>,
    accepted: WriteId,
    persisted: WriteId,
    durable: WriteId,
    told: WriteId,
    outputs: VecDeque<LogOutput>,
    /// What is in memory for reads, oldest first: stream, base, place, bytes.
    cache: VecDeque<(StreamId, LogIndex, u64, u32)>,
    cache_bytes: usize,
    snapshots: BTreeMap<GroupId, SnapshotFile>,
    next_snapshot: u64,
    taking: BTreeMap<GroupId, Taking>,
    /// Dropped suffixes that are not kept yet: until then no segment goes.
    keeping: u32,
    subscriptions: BTreeMap<SubscriptionId, Subscription>,
    next_subscription: u64,
    slow_told: bool,
}

impl Log {
    /// Opens a log, recovering what it holds, or begins a new one. Blocks on `disk`; goes on with the files that it opened
    /// there, so the same disk must carry out the operations of [`Log::poll_disk`].
    ///
    /// # Errors
    /// [`OpenError`]; then nothing was changed on disk, unless it says that the disk itself failed.
    pub fn open(config: LogConfig, disk: &mut dyn Disk) -> Result<(Self, Recovered), OpenError> {
        let (opened, recovered) = open(&config, disk)?;
        let Opened { state, segments, unsealed, snapshots, lost, names, .. } = opened;
        let numbers = snapshots.values().map(|known| known.header.number).chain(state.snapshots.values().copied());
        let next_snapshot = numbers.max().unwrap_or(0) + 1;
        let mut log = Self {
            starts: opened.starts,
            incarnation: opened.incarnation,
            life: Life::Open,
            state,
            segments,
            oldest: opened.oldest,
            unsealed: unsealed.into_iter().collect(),
            filling: Filling::new(opened.next_place),
            spare_buffers: Vec::new(),
            commit: None,
            seq: opened.seq,
            digest: opened.digest,
            durable_seq: opened.seq,
            durable_place: opened.next_place,
            next: Next::None,
            prepare_attempts: 0,
            next_number: opened.next_number,
            largest_bytes: opened.largest_bytes,
            spares: Vec::new(),
            next_file: opened.next_file,
            next_op: 1,
            ready: VecDeque::new(),
            jobs: VecDeque::new(),
            job_op: None,
            move_credit_bytes: 0,
            released: true,
            reads: BTreeMap::new(),
            reads_waiting: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            barrier: None,
            accepted: WriteId(0),
            persisted: WriteId(0),
            durable: WriteId(0),
            told: WriteId(0),
            outputs: VecDeque::new(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            next_snapshot,
            snapshots,
            taking: BTreeMap::new(),
            keeping: 0,
            subscriptions: BTreeMap::new(),
            next_subscription: 1,
            slow_told: false,
            config,
        };
        // A crash may have come between a truncation and the file that keeps what it dropped.
        for (stream, dropped) in lost {
            let header = crate::lost::LostHeader::of(log.config.cluster, log.config.node, stream, &dropped);
            if !names.contains(&header.name()) {
                log.keep_lost(stream, dropped);
            }
        }
        Ok((log, recovered))
    }

    /// How many unclean starts this directory has seen.
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Bytes that the log's segments take on disk, prepared ones included.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        let spare: u64 = self.spares.iter().map(|spare| spare.capacity_bytes).sum();
        let next = if let Next::Ready(next) = &self.next { next.header.capacity_bytes } else { 0 };
        self.segments.all.iter().map(|segment| segment.header.capacity_bytes).sum::<u64>() + spare + next
    }

    /// Bytes of storage actions that wait in memory because the group being filled is full or a snapshot holds them up.
    /// The driver stops taking client requests while this is above a limit of its own: the log cannot refuse an action.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.waiting_bytes + self.filling.body.bytes()
    }

    /// Whether a disk operation failed; see [`StorageEvent::Failed`].
    #[must_use]
    pub const fn is_failed(&self) -> bool {
        matches!(self.life, Life::Failed)
    }

    /// Begins to close the log in good order: all actions so far become durable, then a mark that the next opening takes for
    /// a clean start. Drive the log until [`Log::is_closed`]. Actions that come later are a bug of the caller.
    pub fn close(&mut self) {
        if self.life == Life::Open {
            self.life = Life::Closing;
        }
    }

    /// Whether the log is closed and durable, or failed: then nothing more will happen.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed | Life::Failed)
    }

    /// The next disk operation. Several may be under way at a time; see [`Lane`].
    pub fn poll_disk(&mut self) -> Option<(OpId, DiskOp)> {
        if self.life == Life::Failed {
            return None;
        }
        if self.ready.is_empty() {
            self.start_commit();
            self.start_background();
            self.start_reads();
        }
        self.ready.pop_front()
    }

    /// Takes the result of a disk operation. A result that nobody waits for is ignored.
    pub fn complete(&mut self, op: OpId, result: Result<DiskAnswer, DiskError>) {
        if self.life == Life::Failed {
            return;
        }
        match op.lane {
            Lane::Commit => self.complete_commit(op, result),
            Lane::Background => self.complete_background(op, result),
            Lane::Read => self.complete_read(op, result),
        }
    }

    fn emit(&mut self, lane: Lane, op: DiskOp) -> OpId {
        let id = OpId { number: self.next_op, lane };
        self.next_op += 1;
        self.ready.push_back((id, op));
        id
    }

    fn new_file(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file - 1)
    }

    /// Gives up: no retry, no further confirmation.
    fn fail(&mut self, operation: &'static str, error: DiskError) {
        self.life = Life::Failed;
        self.ready.clear();
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.outputs.push_back(LogOutput::Event(LogEvent::Failed { operation, error }));
        self.outputs.push_back(LogOutput::Storage(StorageEvent::Failed));
    }
}

impl Storage for Log {
    fn persist(&mut self, id: WriteId, op: Persist) {
        self.take_persist(id, op);
    }

    fn read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32) {
        self.take_read_log(ticket, stream, from, bytes_max);
    }

    fn read_snapshot(&mut self, ticket: Ticket, group: GroupId, at: Option<Position>, offset: u64, bytes_max: u32) {
        self.take_read_snapshot(ticket, group, at, offset, bytes_max);
    }

    fn poll(&mut self) -> Option<LogOutput> {
        if self.told < self.durable {
            self.told = self.durable;
            return Some(LogOutput::Durable { up_to: self.durable });
        }
        self.outputs.pop_front()
    }
}

/// Carries out disk operations, one after the other, until the log has none left.
pub fn drive(log: &mut Log, disk: &mut dyn Disk) {
    while let Some((id, op)) = log.poll_disk() {
        let result = disk.execute(op);
        log.complete(id, result);
    }
}
