//! The loop's side of the log: in memory, answered on the spot, or on disk behind a thread.
//!
//! Invariant: storage actions reach the log in the order in which the replica gave them out.

use std::task::{Context, Poll};

use replikit_core::{GroupId, Input, LogIndex, Persist, Position, StreamId, Ticket, Time, WriteId};
use replikit_log::{LogOutput, MemoryLog, Storage, Tail};

use crate::counters::Counters;
use crate::feed::{FeedId, Tailed};
use crate::log_thread::LogThread;

/// The input that a log's output becomes, if the replica is concerned. What is for the operator is logged.
pub(crate) fn into_input<H>(output: LogOutput) -> Option<Input<H>> {
    if let LogOutput::Event(event) = &output {
        tracing::info!(?event, "log");
    }
    output.into_input()
}

impl Tailed for Backend {
    fn follow(&mut self, feed: FeedId, stream: StreamId, from: LogIndex) {
        match self {
            Self::Memory(log) => log.follow(feed, stream, from),
            Self::Disk(thread) => thread.follow(feed, stream, from),
        }
    }

    fn unfollow(&mut self, feed: FeedId) {
        match self {
            Self::Memory(log) => log.unfollow(feed),
            Self::Disk(thread) => thread.unfollow(feed),
        }
    }

    fn tail(
        &mut self,
        feed: FeedId,
        stream: StreamId,
        from: LogIndex,
        committed: LogIndex,
        bytes_max: u32,
    ) -> Option<Tail> {
        match self {
            Self::Memory(log) => Tailed::tail(log, feed, stream, from, committed, bytes_max),
            Self::Disk(thread) => {
                thread.tail(feed, committed, bytes_max);
                None
            }
        }
    }
}

/// Where a node keeps its log.
pub(crate) enum Backend {
    Memory(MemoryLog),
    Disk(LogThread),
}

impl Backend {
    pub(crate) fn persist(&mut self, id: WriteId, op: Persist) {
        match self {
            Self::Memory(log) => log.persist(id, op),
            Self::Disk(thread) => thread.persist(id, op),
        }
    }

    pub(crate) fn read_log(&mut self, ticket: Ticket, stream: StreamId, from: LogIndex, bytes_max: u32) {
        match self {
            Self::Memory(log) => log.read_log(ticket, stream, from, bytes_max),
            Self::Disk(thread) => thread.read_log(ticket, stream, from, bytes_max),
        }
    }

    pub(crate) fn read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
    ) {
        match self {
            Self::Memory(log) => log.read_snapshot(ticket, group, at, offset, bytes_max),
            Self::Disk(thread) => thread.read_snapshot(ticket, group, at, offset, bytes_max),
        }
    }

    /// What a log in memory answers at once.
    pub(crate) fn poll_now(&mut self) -> Option<LogOutput> {
        match self {
            Self::Memory(log) => log.poll(),
            Self::Disk(_) => None,
        }
    }

    /// What the log thread has answered; ready if there was anything.
    pub(crate) fn poll_outputs(&mut self, context: &mut Context<'_>, outputs: &mut Vec<LogOutput>) -> Poll<()> {
        match self {
            Self::Memory(_) => Poll::Pending,
            Self::Disk(thread) => thread.poll_outputs(context, outputs),
        }
    }

    /// Hands the round's operations over as one group.
    pub(crate) fn submit(&mut self, now: Time, counters: &Counters) {
        if let Self::Disk(thread) = self {
            thread.submit(now, counters);
        }
    }

    /// Whether the round has operations for the disk.
    pub(crate) fn has_waiting(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Disk(thread) => thread.has_waiting(),
        }
    }

    /// Takes note of the log's progress.
    pub(crate) fn observe(&mut self, output: &LogOutput, now: Time) {
        if let (Self::Disk(thread), LogOutput::Durable { up_to }) = (self, output) {
            thread.durable(*up_to, now);
        }
    }

    /// When [`Backend::is_stalled`] is to be asked again.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(thread) => thread.deadline(),
        }
    }

    /// Whether the disk has made no progress for longer than its limit; says so once per stall.
    pub(crate) fn is_stalled(&mut self, now: Time) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Disk(thread) => thread.is_stalled(now),
        }
    }

    /// Whether everything that was handed over is durable.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Disk(thread) => thread.is_quiet(),
        }
    }

    /// Ends the log cleanly; blocks until its thread has ended.
    pub(crate) fn close(self) {
        if let Self::Disk(thread) = self {
            thread.close();
        }
    }
}
