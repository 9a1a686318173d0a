//! The log thread: owns the log, so that the loop never waits for a disk.
//!
//! The loop hands over one group a round; whatever gathers while the disk works is the next group. What clients wait for,
//! the write and the sync of a group, runs on the log thread itself; segment preparation, snapshots and reads of old entries
//! run on two more threads, so that none of them delays a commit. Invariants: operations reach the log in order; those of
//! one [`Lane`] reach the disk in order; at the limit of the queue operations wait in the loop, which wakes with every
//! answer.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use replikit_core::{GroupId, LogIndex, Persist, Position, StreamId, Ticket, Time, WriteId};
use replikit_log::{
    Disk, DiskAnswer, DiskError, DiskOp, FileDisk, Lane, Log, LogOutput, OpId, Storage, SubscriptionId,
};
use replikit_sync::{GroupConsumer, GroupProducer, Mailbox, MailboxSender, group_queue, mailbox};

use crate::counters::Counters;
use crate::feed::FeedId;

/// What is asked of the log thread.
enum Operation {
    Persist {
        id: WriteId,
        op: Persist,
    },
    ReadLog {
        ticket: Ticket,
        stream: StreamId,
        from: LogIndex,
        bytes_max: u32,
    },
    ReadSnapshot {
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
    },
    Follow {
        feed: FeedId,
        stream: StreamId,
        from: LogIndex,
    },
    Unfollow {
        feed: FeedId,
    },
    Tail {
        feed: FeedId,
        committed: LogIndex,
        bytes_max: u32,
    },
    /// From the threads of the other lanes.
    Complete {
        id: OpId,
        result: Result<DiskAnswer, DiskError>,
    },
    Close,
}

/// Answers waiting for the loop: bounded by what it asked for, one for each read and one watermark a group.
const ANSWERS_MAX: usize = usize::MAX / 2;

/// The way to the log thread. Dropping it ends the thread as a crash would, without the mark of a clean end: the loop has
/// panicked.
struct Queue(GroupProducer<Operation>);

impl Drop for Queue {
    fn drop(&mut self) {
        // The lanes' threads hold the queue as well, so it does not end by itself.
        self.0.close();
    }
}

/// The loop's end of the log thread.
pub(crate) struct LogThread {
    operations: Queue,
    outputs: Mailbox<LogOutput>,
    /// The round's operations so far, and what did not fit into the queue.
    waiting: Vec<Operation>,
    slow_after: Duration,
    submitted: WriteId,
    durable: WriteId,
    /// When the disk last made progress, or was given something to do while idle.
    progress: Time,
    told_stalled: bool,
    thread: JoinHandle<()>,
}

impl LogThread {
    pub(crate) fn start(
        log: Log,
        disk: FileDisk,
        operations_max: usize,
        slow_after: Duration,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let (operations, taken) = group_queue(operations_max.max(1));
        let (answers, outputs) = mailbox(ANSWERS_MAX);
        let background = LaneThread::start("replikit-files", disk.clone(), operations.clone())?;
        let reads = LaneThread::start("replikit-reads", disk.clone(), operations.clone())?;
        let cursors = BTreeMap::new();
        let worker = Worker { log, disk, background, reads, cursors, answers, counters };
        let thread = std::thread::Builder::new().name("replikit-log".into()).spawn(move || worker.run(taken))?;
        Ok(Self {
            operations: Queue(operations),
            outputs,
            waiting: Vec::new(),
            slow_after,
            submitted: WriteId(0),
            durable: WriteId(0),
            progress: Time::ZERO,
            told_stalled: false,
            thread,
        })
    }

    pub(crate) fn persist(&mut self, id: WriteId, op: Persist) {
        self.waiting.push(Operation::Persist { id, op });
    }

    pub(crate) fn read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32) {
        self.waiting.push(Operation::ReadLog { ticket, stream, from, bytes_max });
    }

    pub(crate) fn read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
    ) {
        self.waiting.push(Operation::ReadSnapshot { ticket, group, at, offset, bytes_max });
    }

    pub(crate) fn follow(&mut self, feed: FeedId, stream: StreamId, from: LogIndex) {
        self.waiting.push(Operation::Follow { feed, stream, from });
    }

    pub(crate) fn unfollow(&mut self, feed: FeedId) {
        self.waiting.push(Operation::Unfollow { feed });
    }

    /// Answered by one [`LogOutput::Tail`] under the number of the feed.
    pub(crate) fn tail(&mut self, feed: FeedId, committed: LogIndex, bytes_max: u32) {
        self.waiting.push(Operation::Tail { feed, committed, bytes_max });
    }

    pub(crate) const fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn submit(&mut self, now: Time, counters: &Counters) {
        if self.waiting.is_empty() {
            return;
        }
        let newest = self.waiting.iter().rev().find_map(|operation| match operation {
            Operation::Persist { id, .. } => Some(*id),
            _ => None,
        });
        if let Some(newest) = newest {
            if self.is_quiet() {
                self.progress = now;
            }
            self.submitted = self.submitted.max(newest);
        }
        counters.storage_operations.add(self.waiting.len() as u64);
        // What does not fit stays in front of the next round's. A log that has ended answers nothing any more; the
        // replica has heard why.
        if self.operations.0.push_all(&mut self.waiting).is_err() {
            self.waiting.clear();
        }
    }

    pub(crate) fn poll_outputs(&mut self, context: &mut Context<'_>, outputs: &mut Vec<LogOutput>) -> Poll<()> {
        match self.outputs.poll_drain(context, outputs) {
            Poll::Ready(true) => Poll::Ready(()),
            // The thread has ended: its last words were drained before.
            Poll::Ready(false) | Poll::Pending => Poll::Pending,
        }
    }

    pub(crate) fn durable(&mut self, up_to: WriteId, now: Time) {
        self.durable = up_to;
        self.progress = now;
        self.told_stalled = false;
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.durable >= self.submitted
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        (!self.is_quiet() && !self.told_stalled).then(|| self.progress + self.slow_after)
    }

    pub(crate) fn is_stalled(&mut self, now: Time) -> bool {
        let stalled = self.deadline().is_some_and(|deadline| deadline <= now);
        self.told_stalled |= stalled;
        stalled
    }

    pub(crate) fn close(self) {
        // Blocks while the queue is full; fails only if the thread has ended already.
        for operation in self.waiting.into_iter().chain([Operation::Close]) {
            let _ = self.operations.0.push(operation);
        }
        if self.thread.join().is_err() {
            tracing::error!("the log thread has panicked");
        }
    }
}

/// A thread for the disk operations of one lane. What waits for it is bounded by the log, which hands out at most one
/// background operation and a few reads at a time.
struct LaneThread {
    operations: mpsc::Sender<(OpId, DiskOp)>,
    thread: JoinHandle<()>,
}

impl LaneThread {
    fn start(name: &str, mut disk: FileDisk, completed: GroupProducer<Operation>) -> io::Result<Self> {
        let (operations, taken) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for (id, op) in taken {
                let result = disk.execute(op);
                if completed.push(Operation::Complete { id, result }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { operations, thread })
    }

    /// Waits for its end, and with it for the end of its hold on the directory.
    fn end(self) {
        drop(self.operations);
        if self.thread.join().is_err() {
            tracing::error!("a disk thread has panicked");
        }
    }
}

struct Worker {
    log: Log,
    disk: FileDisk,
    background: LaneThread,
    reads: LaneThread,
    /// The log's own number of each feed's cursor.
    cursors: BTreeMap<FeedId, SubscriptionId>,
    answers: MailboxSender<LogOutput>,
    counters: Arc<Counters>,
}

impl Worker {
    fn run(mut self, mut operations: GroupConsumer<Operation>) {
        let mut group = Vec::new();
        let mut outputs = Vec::new();
        while !self.log.is_closed() && operations.take(&mut group).is_some() {
            for operation in group.drain(..) {
                match operation {
                    Operation::Persist { id, op } => self.log.persist(id, op),
                    Operation::ReadLog { ticket, stream, from, bytes_max } => {
                        self.log.read_log(ticket, stream, from, bytes_max);
                    }
                    Operation::ReadSnapshot { ticket, group, at, offset, bytes_max } => {
                        self.log.read_snapshot(ticket, group, at, offset, bytes_max);
                    }
                    Operation::Follow { feed, stream, from } => {
                        self.cursors.insert(feed, self.log.subscribe(stream, from));
                    }
                    Operation::Unfollow { feed } => {
                        if let Some(cursor) = self.cursors.remove(&feed) {
                            self.log.unsubscribe(cursor);
                        }
                    }
                    Operation::Tail { feed, committed, bytes_max } => {
                        if let Some(&cursor) = self.cursors.get(&feed) {
                            self.log.tail(cursor, committed, bytes_max);
                        }
                    }
                    Operation::Complete { id, result } => self.log.complete(id, result),
                    Operation::Close => self.log.close(),
                }
            }
            self.pump(&mut outputs);
        }
        // A log that failed takes nothing any more; the loop has heard of it. Dropping the queue says the rest.
        drop(operations);
        self.background.end();
        self.reads.end();
    }

    /// The loop knows cursors by their feeds.
    fn under_the_feed(&self, output: LogOutput) -> Option<LogOutput> {
        match output {
            LogOutput::Tail { subscription, tail } => {
                let (feed, _) = self.cursors.iter().find(|(_, cursor)| **cursor == subscription)?;
                Some(LogOutput::Tail { subscription: SubscriptionId(feed.0), tail })
            }
            output => Some(output),
        }
    }

    /// Has disk operations carried out until none is left but those under way on other threads.
    fn pump(&mut self, outputs: &mut Vec<LogOutput>) {
        loop {
            while let Some(output) = self.log.poll() {
                outputs.extend(self.under_the_feed(output));
            }
            // Each watermark goes out as soon as it is known. An error means that the loop is gone.
            let _ = self.answers.push_all(outputs);
            let Some((id, op)) = self.log.poll_disk() else { break };
            let lane = match id.lane {
                Lane::Commit => {
                    if matches!(op, DiskOp::Sync { .. }) {
                        self.counters.storage_groups.one();
                    }
                    let result = self.disk.execute(op);
                    self.log.complete(id, result);
                    continue;
                }
                Lane::Background => &self.background,
                Lane::Read => &self.reads,
            };
            if lane.operations.send((id, op)).is_err() {
                // Its thread has panicked: as good as a disk that fails.
                self.log.complete(id, Err(DiskError::Io { code: 0 }));
            }
        }
        let stats = self.disk.stats();
        self.counters.fsyncs.set(stats.syncs + stats.dir_syncs);
        self.counters.disk_bytes_written.set(stats.written_bytes);
    }
}
