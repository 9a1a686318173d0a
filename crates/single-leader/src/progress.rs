//! The leader's view of one follower: how far it is, and how much may be under way to it.
//!
//! Invariants: `matched <= received`, and both only grow, unless the follower's disk loses what it had confirmed;
//! `next > matched`; nothing is sent in `Probe` while an answer is awaited,
//! and never more than the window in `Replicate`. Source: Raft section 5.3 for `matched` (matchIndex) and `next`
//! (nextIndex); the three states are those of etcd's design page.

use core::time::Duration;
use std::collections::VecDeque;

use replikit_core::{LogIndex, NodeId, Position, Ticket, Time};

/// What the leader does for a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Looks for the point where the logs agree: one message at a time.
    Probe {
        /// An answer is awaited; the next heartbeat gives up waiting.
        waiting: bool,
    },
    /// Streams batches within the window.
    Replicate,
    /// Sends a snapshot, a piece at a time.
    Snapshot(Box<Sending>),
}

/// A snapshot under way to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    /// Which one; `None` until the storage has named it.
    pub(crate) at: Option<Position>,
    /// Bytes that the follower is known to hold.
    pub(crate) offset: u64,
    /// Its size, once the last piece was read.
    pub(crate) end: Option<u64>,
    /// A piece is being read or is under way.
    pub(crate) waiting: bool,
    /// When the follower last held more than before.
    pub(crate) since: Time,
}

/// Batches under way to one follower, bounded by a window that adapts: it doubles when it was full and an answer came, and
/// halves when something was lost.
#[derive(Debug)]
pub(crate) struct Window {
    sent: VecDeque<(LogIndex, usize)>,
    bytes: usize,
    limit: usize,
    limit_max: usize,
}

impl Window {
    const LIMIT_MIN: usize = 128 << 10;

    fn new(limit_max: usize) -> Self {
        let limit = Self::LIMIT_MIN.min(limit_max);
        Self { sent: VecDeque::new(), bytes: 0, limit, limit_max }
    }

    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }

    #[inline]
    pub(crate) fn send(&mut self, last: LogIndex, bytes: usize) {
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    #[inline]
    fn acknowledge(&mut self, upto: LogIndex) {
        let was_full = self.is_full();
        while let Some(&(last, bytes)) = self.sent.front() {
            if last > upto {
                break;
            }
            self.sent.pop_front();
            self.bytes -= bytes;
        }
        if was_full && !self.is_full() {
            self.limit = (self.limit * 2).min(self.limit_max);
        }
    }

    /// Gives back memory that nothing under way needs.
    pub(crate) fn shrink(&mut self) {
        self.sent.shrink_to_fit();
    }

    fn lose(&mut self) {
        if !self.sent.is_empty() {
            self.limit = (self.limit / 2).max(Self::LIMIT_MIN.min(self.limit_max));
        }
        self.sent.clear();
        self.bytes = 0;
    }
}

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) node: NodeId,
    pub(crate) phase: Phase,
    pub(crate) window: Window,
    /// Highest index known to be on the follower's disk.
    pub(crate) matched: LogIndex,
    /// The confirmation round of the acknowledgement that told of it. What the follower rejects in a later round, it rejects
    /// after that acknowledgement: its disk has lost what it had confirmed.
    matched_round: u64,
    /// Highest index known to be in its memory.
    pub(crate) received: LogIndex,
    /// Highest index that it is known to have applied.
    pub(crate) applied: LogIndex,
    /// The next index to send.
    pub(crate) next: LogIndex,
    /// The commit index that it was told.
    pub(crate) commit_told: LogIndex,
    /// The newest confirmation round that it answered.
    pub(crate) round_acked: u64,
    /// The newest confirmation round that it was told.
    pub(crate) round_told: u64,
    /// The newest confirmation round in which it agreed to sleep.
    pub(crate) round_slept: u64,
    /// When it last said anything in this term.
    pub(crate) heard_at: Time,
    /// The read of the log, or of a snapshot, that is under way for it.
    pub(crate) reading: Option<Ticket>,
}

impl Progress {
    pub(crate) fn new(node: NodeId, next: LogIndex, now: Time, inflight_bytes_max: usize) -> Self {
        Self {
            node,
            phase: Phase::Probe { waiting: false },
            window: Window::new(inflight_bytes_max),
            matched: LogIndex::ZERO,
            matched_round: 0,
            received: LogIndex::ZERO,
            applied: LogIndex::ZERO,
            next,
            commit_told: LogIndex::ZERO,
            round_acked: 0,
            round_told: 0,
            round_slept: 0,
            heard_at: now,
            reading: None,
        }
    }

    /// Whether there is nothing to send: it was sent the whole log, and told of the commit index and the round.
    #[inline]
    pub(crate) fn is_told_all(&self, last: LogIndex, commit: LogIndex, round: u64) -> bool {
        matches!(self.phase, Phase::Replicate)
            && self.next > last
            && self.commit_told >= commit
            && self.round_told >= round
    }

    /// Whether it holds and has applied the log up to its end, knows that all of it is committed, and nothing is under way.
    pub(crate) fn has_all(&self, last: LogIndex) -> bool {
        let level = self.matched == last && self.applied == last && self.commit_told >= last;
        level && matches!(self.phase, Phase::Replicate) && self.reading.is_none()
    }

    /// The follower, which had seen confirmation round `round`, holds everything up to `received`, and up to `durable` on
    /// disk. Returns whether `matched` grew.
    pub(crate) fn acknowledge(&mut self, round: u64, received: LogIndex, durable: LogIndex, applied: LogIndex) -> bool {
        self.received = self.received.max(received);
        self.applied = self.applied.max(applied);
        // What is in its memory has left the network, whether or not its disk is done.
        self.window.acknowledge(self.received);
        if self.next <= self.received {
            self.next = self.received.next();
        }
        let caught_up = match &self.phase {
            Phase::Probe { .. } => self.received.next() >= self.next,
            Phase::Snapshot(sending) => sending.at.is_some_and(|at| self.received >= at.id.index),
            Phase::Replicate => false,
        };
        if caught_up {
            self.phase = Phase::Replicate;
        }
        let grew = durable > self.matched;
        if grew {
            (self.matched, self.matched_round) = (durable, round);
        }
        grew
    }

    /// The follower lacks the entry at `prev`, which a message of confirmation round `round` named; the logs agree at
    /// `agreed` at best.
    pub(crate) fn reject(&mut self, round: u64, prev: LogIndex, agreed: LogIndex) {
        if matches!(self.phase, Phase::Snapshot(_)) {
            return;
        }
        // An acknowledgement carries the newest round that its sender has seen, so this was said after it: the follower was
        // started anew, and the tail that it had confirmed was cut. Counting less than it holds delays a commit at worst.
        if round > self.matched_round && agreed < self.matched {
            self.matched = agreed;
            self.received = agreed;
        }
        // An answer to a message that was overtaken by a later success says nothing new.
        if prev <= self.matched {
            return;
        }
        self.next = agreed.next().min(prev).max(self.matched.next());
        self.phase = Phase::Probe { waiting: false };
        self.window.lose();
    }

    /// The link was lost, and with it what was under way.
    pub(crate) fn disconnect(&mut self) {
        self.window.lose();
        self.next = self.received.next().max(LogIndex(1));
        self.phase = Phase::Probe { waiting: false };
        self.reading = None;
    }

    /// An answer to a probe that did not come until a heartbeat was due will not come.
    pub(crate) fn stop_waiting(&mut self, now: Time, patience: Duration) {
        match &mut self.phase {
            Phase::Probe { waiting } => *waiting = false,
            // The follower may have begun anew, and forgotten what it held.
            Phase::Snapshot(sending) if sending.since + patience * 10 <= now => self.disconnect(),
            Phase::Snapshot(sending) if sending.since + patience <= now => sending.waiting = self.reading.is_some(),
            Phase::Snapshot(_) | Phase::Replicate => {}
        }
    }

    /// The follower is so far behind that only a snapshot helps.
    pub(crate) fn send_snapshot(&mut self, now: Time) {
        self.window.lose();
        let sending = Sending { at: None, offset: 0, end: None, waiting: false, since: now };
        self.phase = Phase::Snapshot(Box::new(sending));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicating() -> Progress {
        let mut progress = Progress::new(NodeId(2), LogIndex(1), Time::ZERO, 1 << 20);
        progress.acknowledge(1, LogIndex(0), LogIndex(0), LogIndex(0));
        assert_eq!(progress.phase, Phase::Replicate);
        progress
    }

    #[test]
    fn a_full_window_doubles_when_an_answer_comes_and_halves_when_something_is_lost() {
        let mut progress = replicating();
        progress.window.send(LogIndex(1), Window::LIMIT_MIN);
        progress.next = LogIndex(2);
        assert!(progress.window.is_full());
        progress.acknowledge(1, LogIndex(1), LogIndex(1), LogIndex(0));
        progress.window.send(LogIndex(2), Window::LIMIT_MIN);
        assert!(!progress.window.is_full(), "the window has doubled");
        progress.disconnect();
        progress.window.send(LogIndex(2), Window::LIMIT_MIN);
        assert!(progress.window.is_full(), "the window has halved");
    }

    #[test]
    fn an_old_rejection_does_not_undo_a_later_success() {
        let mut progress = replicating();
        progress.acknowledge(1, LogIndex(10), LogIndex(10), LogIndex(0));
        progress.reject(1, LogIndex(4), LogIndex(2));
        assert_eq!((progress.next, &progress.phase), (LogIndex(11), &Phase::Replicate));
    }

    #[test]
    fn a_rejection_of_a_later_round_undoes_what_the_follower_has_lost() {
        let mut progress = replicating();
        assert!(progress.acknowledge(5, LogIndex(10), LogIndex(10), LogIndex(0)));
        // Of the round of the acknowledgement: it may have been sent before it.
        progress.reject(5, LogIndex(10), LogIndex(7));
        assert_eq!((progress.matched, progress.next), (LogIndex(10), LogIndex(11)));
        progress.reject(6, LogIndex(10), LogIndex(7));
        assert_eq!((progress.matched, progress.received, progress.next), (LogIndex(7), LogIndex(7), LogIndex(8)));
        assert_eq!(progress.phase, Phase::Probe { waiting: false });
        assert!(progress.acknowledge(6, LogIndex(10), LogIndex(10), LogIndex(0)));
        assert_eq!((progress.matched, &progress.phase), (LogIndex(10), &Phase::Replicate));
    }

    #[test]
    fn probing_goes_back_to_where_the_logs_may_agree() {
        let mut progress = replicating();
        progress.next = LogIndex(20);
        progress.reject(1, LogIndex(19), LogIndex(7));
        assert_eq!((progress.next, &progress.phase), (LogIndex(8), &Phase::Probe { waiting: false }));
        progress.acknowledge(1, LogIndex(7), LogIndex(7), LogIndex(0));
        assert_eq!(progress.phase, Phase::Replicate);
    }
}
