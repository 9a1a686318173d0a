//! What replicas of one group say to each other: one struct per message under one enum.
//!
//! Names follow Raft: `Append` is AppendEntries, `Vote` is RequestVote, `SnapshotPiece` is InstallSnapshot. Whole batches
//! ride beside [`Head::Append`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use replikit_core::{LogId, LogIndex, Position, Term};

/// The typed part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// Leader to follower: entries, or a heartbeat without any. Source: Raft section 5.3.
    Append(Append),
    /// Follower to leader: what it holds.
    AppendAck(AppendAck),
    /// Follower to leader: the entry before the batches is not in its log.
    AppendReject(AppendReject),
    /// Asks whether a vote would be granted, without a new term. Source: Ongaro's thesis section 9.6.
    PreVote(Vote),
    /// Answers [`Head::PreVote`].
    PreVoteReply(VoteReply),
    /// Asks for a vote. Source: Raft section 5.2.
    Vote(Vote),
    /// Answers [`Head::Vote`].
    VoteReply(VoteReply),
    /// Follower to leader: which index must a linearizable read wait for? Source: Ongaro's thesis section 6.4.
    ReadIndex(ReadIndex),
    /// Answers [`Head::ReadIndex`].
    ReadIndexReply(ReadIndexReply),
    /// Leader to follower: a piece of a snapshot. Source: Raft section 7.
    SnapshotPiece(Box<SnapshotPiece>),
    /// Follower to leader: how much of the snapshot it holds.
    SnapshotAck(SnapshotAck),
    /// Leader to its best follower: stand for election at once. Source: Ongaro's thesis section 3.10.
    TimeoutNow(TimeoutNow),
    /// Leader to follower: a heartbeat that also asks to sleep.
    Sleep(Sleep),
    /// Follower to leader: it sleeps.
    SleepAck(SleepAck),
    /// Follower to leader: it was woken, and wants to hear that its leader is there.
    Wake(Wake),
}

/// See [`Head::Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The leader's term.
    pub term: Term,
    /// The entry before the first batch.
    pub prev: LogId,
    /// The leader's commit index.
    pub commit: LogIndex,
    /// The last index of the leader's log.
    pub last: LogIndex,
    /// Confirmation round: an answer proves leadership for all reads of this round and before.
    pub round: u64,
    /// Whether to acknowledge receipt before the batches are durable.
    pub want_received: bool,
    /// Whether to acknowledge once the commit index is applied.
    pub want_applied: bool,
}

/// See [`Head::AppendAck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendAck {
    /// The follower's term, which is the leader's.
    pub term: Term,
    /// The newest confirmation round seen.
    pub round: u64,
    /// Last index that agrees with the leader's log.
    pub received: LogIndex,
    /// Last index of those that is on disk.
    pub durable: LogIndex,
    /// Last index applied.
    pub applied: LogIndex,
}

/// See [`Head::AppendReject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendReject {
    /// The follower's term; a higher one deposes the leader.
    pub term: Term,
    /// The newest confirmation round seen: a rejection of entries still confirms leadership.
    pub round: u64,
    /// The index that is not in the follower's log as the leader has it.
    pub prev: LogIndex,
    /// Where the two logs may agree at best.
    pub hint: LogId,
}

/// See [`Head::Vote`] and [`Head::PreVote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The term to be led.
    pub term: Term,
    /// The last entry of the candidate's log.
    pub last: LogId,
    /// Every member has answered and none has a longer log: even a replica whose tail was cut may grant this.
    pub unanimous: bool,
}

/// See [`Head::VoteReply`] and [`Head::PreVoteReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// The term asked for if granted, else the voter's own.
    pub term: Term,
    /// The term that was asked for.
    pub asked: Term,
    /// The vote.
    pub granted: bool,
    /// The last entry of the voter's log.
    pub last: LogId,
}

/// See [`Head::ReadIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadIndex {
    /// The follower's term.
    pub term: Term,
    /// Never used twice, also not after a restart.
    pub id: u64,
}

/// See [`Head::ReadIndexReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadIndexReply {
    /// The leader's term.
    pub term: Term,
    /// Which request.
    pub id: u64,
    /// A read that sees this index is linearizable.
    pub index: LogIndex,
    /// The last index of the leader's log: whatever the follower had acknowledged to it before it asked is below or at it.
    pub last: LogIndex,
}

/// See [`Head::SnapshotPiece`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPiece {
    /// The leader's term.
    pub term: Term,
    /// The last entry that the snapshot holds.
    pub at: Position,
    /// Where the piece begins, in bytes.
    pub offset: u64,
    /// The piece.
    pub piece: Bytes,
    /// Whether it ends the snapshot.
    pub last: bool,
    /// Confirmation round, as in [`Append`].
    pub round: u64,
}

/// See [`Head::SnapshotAck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAck {
    /// The follower's term.
    pub term: Term,
    /// Which snapshot.
    pub at: Position,
    /// Bytes of it that the follower holds, from the beginning.
    pub offset: u64,
    /// The newest confirmation round seen.
    pub round: u64,
}

/// See [`Head::TimeoutNow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeoutNow {
    /// The leader's term.
    pub term: Term,
}

/// See [`Head::Sleep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// The leader's term.
    pub term: Term,
    /// Confirmation round, as in [`Append`].
    pub round: u64,
    /// The last entry of the leader's log: all of it is committed.
    pub last: LogId,
}

/// See [`Head::SleepAck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepAck {
    /// The follower's term, which is the leader's.
    pub term: Term,
    /// The round of the question.
    pub round: u64,
}

/// See [`Head::Wake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// The follower's term.
    pub term: Term,
}

impl Head {
    /// The sender's term, which a receiver compares with its own; pre-votes speak of a term that nobody is in yet.
    pub(crate) const fn term(&self) -> Option<Term> {
        match self {
            Self::Append(m) => Some(m.term),
            Self::AppendAck(m) => Some(m.term),
            Self::AppendReject(m) => Some(m.term),
            Self::Vote(m) => Some(m.term),
            Self::VoteReply(m) => Some(m.term),
            Self::ReadIndex(m) => Some(m.term),
            Self::ReadIndexReply(m) => Some(m.term),
            Self::SnapshotPiece(m) => Some(m.term),
            Self::SnapshotAck(m) => Some(m.term),
            Self::TimeoutNow(m) => Some(m.term),
            Self::Sleep(m) => Some(m.term),
            Self::SleepAck(m) => Some(m.term),
            Self::Wake(m) => Some(m.term),
            Self::PreVote(_) => None,
            Self::PreVoteReply(m) => {
                if m.granted {
                    None
                } else {
                    Some(m.term)
                }
            }
        }
    }
}
