//! The contract between a replica and whoever drives it.
//!
//! **The one rule: whatever [`Replica::poll`] hands out may be carried out at once.** The replica keeps a message back until
//! the durability that it depends on has been confirmed ([`Held`](crate::Held)); the driver only keeps storage actions in
//! FIFO order. No other ordering rule exists.

use core::fmt;
use core::ops::RangeInclusive;
use core::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{
    Batch, Batches, Epoch, GroupId, LogIndex, NodeId, Now, Outcome, Position, ReadLevel, ReadRequest, SessionSeq,
    StreamId, Term, Ticket, Time, Token, WriteId, WriteLevel, WriteRequest,
};

/// One replica of one group, or a container of many: no I/O, no clock, no thread, no randomness of its own, so that the same
/// code runs on real machines and in virtual time.
///
/// # The driving loop
///
/// 1. Recovery first: [`Input::RecoverSnapshot`] chunks of each group that has a snapshot, then one [`Input::Recover`] per
///    batch in append order over all streams, then [`Input::Recovered`]. Nothing else arrives before that.
/// 2. Gather the inputs at hand; then read the clocks once, into [`Now`].
/// 3. [`handle`](Self::handle) each input.
/// 4. [`poll`](Self::poll) until `None`; carry out each action at once, storage actions in FIFO order.
/// 5. Wait for the next input, at most until [`deadline`](Self::deadline), then feed [`Input::Timer`]. Go to 2.
///
/// What a peer or a client sent is never a panic: it is answered, or dropped and reported as an event.
pub trait Replica {
    /// The small typed part of a message; whole batches ride beside it.
    type Head: Clone + fmt::Debug + Serialize + DeserializeOwned + Send + 'static;

    /// Something happened. Never blocks.
    fn handle(&mut self, now: Now, input: Input<Self::Head>);

    /// The next thing to do, in order; drain until `None` once the inputs at hand are in. May close the open batch.
    fn poll(&mut self) -> Option<Action<Self::Head>>;

    /// When [`Input::Timer`] is due at the latest; `None` when nothing is waited for. Constant time.
    fn deadline(&self) -> Option<Time>;
    /// The highest index of a group's own log that is committed and applied here, always the end of a batch; `None` for a group
    /// that is not here, and for a family whose log has no commit index. Called by the driver after each drain while somebody
    /// follows the group's changes: must be cheap.
    fn committed(&self, _group: GroupId) -> Option<LogIndex> {
        None
    }
}

/// What replicas say to each other: a small head and, beside it, whole batches as they lie in memory.
#[derive(Clone, Debug)]
pub struct Message<H> {
    /// The typed part.
    pub head: H,
    /// Batches that ride along.
    pub batches: Batches,
}

/// State of the link to a peer: a hint, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A connection stands.
    Up,
    /// The connection was reset by the other side: its process has most likely ended.
    Reset,
    /// No connection, and none could be made.
    Down,
}

/// What the storage says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageEvent {
    /// A write or fsync failed. Nothing more becomes durable; no retry (Rebello et al., ATC'20). The replica gives up
    /// leadership and answers all that waits with [`Outcome::Indeterminate`].
    Failed,
    /// An fsync has been under way for longer than the driver's limit. A leader hands leadership away.
    Slow,
    /// Entries that were durable can no longer be read.
    Faulty {
        /// Their stream.
        stream: StreamId,
        /// Which of them.
        range: RangeInclusive<LogIndex>,
    },
}

/// What an operator asks of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Admin {
    /// Describe yourself: answered by [`Outcome::Value`] with one encoded [`Status`](crate::Status).
    Status,
    /// Take a snapshot now and release the log behind it.
    Snapshot,
}

/// What happens to a replica.
#[derive(Debug)]
pub enum Input<H> {
    /// A chunk of the newest durable snapshot of a group, before any batch of it.
    RecoverSnapshot {
        /// The last entry that the snapshot holds.
        at: Position,
        /// The next bytes of it.
        chunk: Bytes,
        /// Whether they are the last.
        last: bool,
    },
    /// A batch found on disk; in append order over all streams, older content of the same indices first.
    Recover {
        /// The batch.
        batch: Batch,
    },
    /// All that the disk holds has been pushed.
    Recovered,
    /// The deadline has come.
    Timer,
    /// A peer said something. Untrusted but for its sender, which the transport vouches for.
    Message {
        /// Who said it.
        from: NodeId,
        /// What.
        message: Message<H>,
    },
    /// The link to a peer changed.
    Peer {
        /// Which peer.
        node: NodeId,
        /// How its link is now.
        link: Link,
    },
    /// A client wants a command applied by the group's state machine.
    Command {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
        /// When it counts as done.
        level: WriteLevel,
        /// For exactly-once retries.
        session: Option<SessionSeq>,
        /// The command, opaque.
        body: Bytes,
    },
    /// A client wants a session: the reply of the outcome is the new [`SessionId`](crate::SessionId) as 8 bytes, little
    /// endian. Acknowledged at `Quorum`.
    OpenSession {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
    },
    /// A client asks the group's state machine.
    Query {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
        /// How fresh the answer must be.
        level: ReadLevel,
        /// The query, opaque.
        body: Bytes,
        /// Largest answer in bytes.
        bytes_max: usize,
    },
    /// A client writes a key (families that order writes per key, not per group).
    Write {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
        /// The write.
        write: Box<WriteRequest>,
    },
    /// A client reads a key (families that order writes per key, not per group).
    Read {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
        /// The read.
        read: Box<ReadRequest>,
    },
    /// All storage actions up to this one are durable.
    Durable {
        /// The newest of them.
        up_to: WriteId,
    },
    /// Answer to [`Action::ReadLog`].
    LogRead {
        /// Which read.
        ticket: Ticket,
        /// Its stream.
        stream: StreamId,
        /// What was found.
        answer: LogAnswer,
    },
    /// Answer to [`Action::ReadSnapshot`].
    SnapshotRead {
        /// Which read.
        ticket: Ticket,
        /// What was found.
        answer: SnapshotAnswer,
    },
    /// The storage says something of itself.
    Storage {
        /// What.
        event: StorageEvent,
    },
    /// An operator asks for something.
    Admin {
        /// Comes back in [`Action::Done`].
        token: Token,
        /// Which group.
        group: GroupId,
        /// What.
        command: Admin,
    },
}

/// What a read of the log found.
#[derive(Clone, Debug)]
pub enum LogAnswer {
    /// Whole batches from the one that holds the index asked for; at least one unless the index is past the end.
    Batches(Batches),
    /// The index asked for was released; this is the first that is left.
    Compacted {
        /// First index that can be read.
        first: LogIndex,
    },
    /// These entries cannot be read any more.
    Faulty(RangeInclusive<LogIndex>),
}

/// What a read of a snapshot found.
#[derive(Clone, Debug)]
pub enum SnapshotAnswer {
    /// A piece of it.
    Chunk {
        /// The last entry that the snapshot holds.
        at: Position,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// The piece.
        chunk: Bytes,
        /// Whether it ends the snapshot.
        last: bool,
    },
    /// There is no snapshot of this group, or not the one asked for any more.
    Gone,
}

/// What a replica wants done.
#[derive(Debug)]
pub enum Action<H> {
    /// Make something durable. FIFO; answered by [`Input::Durable`].
    Persist {
        /// Its number: one more than that of the one before.
        id: WriteId,
        /// What.
        op: Persist,
    },
    /// Send a message. The driver may drop it.
    Send {
        /// To whom; never this node itself.
        to: NodeId,
        /// What.
        message: Message<H>,
    },
    /// Read whole batches; answered by [`Input::LogRead`].
    ReadLog {
        /// Comes back in the answer.
        ticket: Ticket,
        /// Which stream.
        stream: StreamId,
        /// The first index wanted.
        from: LogIndex,
        /// Stop before exceeding this, but return at least one batch.
        bytes_max: u32,
    },
    /// Read a piece of the newest durable snapshot of a group; answered by [`Input::SnapshotRead`].
    ReadSnapshot {
        /// Comes back in the answer.
        ticket: Ticket,
        /// Which snapshot; `None` means the newest.
        at: Option<Position>,
        /// Whose.
        group: GroupId,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// Its size at most.
        bytes_max: u32,
    },
    /// A request has ended.
    Done {
        /// Which.
        token: Token,
        /// How.
        outcome: Outcome,
    },
    /// Something that an operator wants to know.
    Event {
        /// In which group.
        group: GroupId,
        /// What.
        event: Event,
    },
}

/// A storage action.
#[derive(Debug)]
pub enum Persist {
    /// Append a batch to its stream. Its base is the stream's next index, or, with `replace`, at most that.
    Append {
        /// The batch.
        batch: Batch,
        /// Drop everything at and above the batch's base first; the log keeps that as the lost suffix.
        replace: bool,
    },
    /// Small record of a group (vote, incarnation, clock ceilings): the latest wins; at most [`REGISTER_BYTES_MAX`]; survives
    /// compaction.
    Register {
        /// Whose.
        group: GroupId,
        /// The record.
        bytes: Bytes,
    },
    /// Write a whole snapshot of a group, pulled from the source. Replaces the older one once durable.
    Snapshot {
        /// The last entry that it holds.
        at: Position,
        /// Where its bytes come from.
        source: Box<dyn SnapshotSource>,
    },
    /// Write a piece of a snapshot that comes from a peer, in order from offset 0. With `last`, the snapshot replaces the
    /// older one once durable; pieces of an unfinished snapshot are dropped when another one begins or at a restart.
    SnapshotChunk {
        /// The last entry that the snapshot holds.
        at: Position,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// The piece.
        chunk: Bytes,
        /// Whether it ends the snapshot.
        last: bool,
    },
    /// A snapshot was installed: the stream's content is void, its next index is this.
    Reset {
        /// Which stream.
        stream: StreamId,
        /// Index of the next batch.
        next: LogIndex,
    },
    /// The replica no longer needs entries below this index.
    Release {
        /// Which stream.
        stream: StreamId,
        /// The first index still needed.
        before: LogIndex,
    },
}

/// Largest [`Persist::Register`] record, in bytes.
pub const REGISTER_BYTES_MAX: usize = 256;

/// A point-in-time image of a state machine, pulled piece by piece while the machine goes on.
pub trait SnapshotSource: Send {
    /// The next piece, at most `bytes_max` bytes and not empty; `None` after the last. Called by the driver's storage side,
    /// possibly on another thread; must not block.
    fn next(&mut self, bytes_max: usize) -> Option<Bytes>;
}

impl fmt::Debug for dyn SnapshotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotSource")
    }
}

/// What the disk says of a group before recovery is pushed: arguments to the replica's constructor.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// The latest durable register; empty when none was ever written.
    pub register: Bytes,
    /// The newest durable snapshot.
    pub snapshot: Option<Position>,
    /// How many unclean starts this data directory has seen: an origin is a node incarnation.
    pub incarnation: u32,
    /// Streams whose tail was cut because its last group was torn: it cannot be told from an acknowledged one, so such a
    /// replica must not vote as if it remembered everything. When it is not empty, streams of which nothing is left may have
    /// begun in the torn group as well. It is told at every start until the group's next register is durable: who is not yet whole by
    /// then has to write that into it.
    pub tail_cut: Vec<StreamId>,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether an election could be won, without disturbing anybody. Source: Ongaro's thesis section 9.6.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Orders the writes.
    Leader,
    /// Follows without a vote.
    Learner,
    /// Takes part as an equal (families without a leader).
    Equal,
    /// Keeps what owners miss that cannot be reached, and is none itself.
    Fallback,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Equal => "replica",
            Self::Fallback => "fallback",
        })
    }
}

/// Something that an operator wants to know. Nothing here needs to be handled for safety.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The replica's own part changed.
    RoleChanged {
        /// Its part now.
        role: Role,
        /// In which term. A leader's term is its fencing token.
        term: Term,
    },
    /// The replica learned who leads.
    LeaderChanged {
        /// Who; `None` while nobody is known to.
        leader: Option<NodeId>,
        /// In which term.
        term: Term,
    },
    /// Entries that may have been acknowledged below `Quorum` were dropped because another leader's log won. The log keeps
    /// them beside itself.
    LostWrites {
        /// Which stream.
        stream: StreamId,
        /// Which indices.
        range: RangeInclusive<LogIndex>,
        /// Term of the first of them.
        term: Term,
    },
    /// The last group of the log was torn and was cut at this start.
    TailCut {
        /// Which stream.
        stream: StreamId,
    },
    /// A peer broke the protocol; its message was dropped.
    PeerMisbehaved {
        /// Which peer.
        node: NodeId,
        /// Which rule it broke.
        what: &'static str,
    },
    /// A peer's clock runs ahead of this one by more than is allowed. Its writes are taken all the same, and its clock drags
    /// this one along no further than the limit.
    ClockAhead {
        /// Whose clock stamped the write.
        node: NodeId,
        /// By how much.
        ahead: Duration,
    },
    /// Nothing has come from a peer for too long; others are reached around it.
    PeerSuspected {
        /// Which peer.
        node: NodeId,
    },
    /// A membership epoch has begun here. Members of the one before that are not in it are evicted: how far each of their
    /// writes counts is told by [`Event::OriginClosed`].
    EpochBegun {
        /// The epoch.
        epoch: Epoch,
        /// Its members, ascending.
        members: Vec<NodeId>,
    },
    /// This node is not a member any more, or not yet: it takes no writes. Writes that no member has stay on its disk until it
    /// is named again.
    Evicted {
        /// The epoch that does not name it.
        epoch: Epoch,
    },
    /// This node is no member any more, and the members have all that was acknowledged by a quorum: it has dropped what it had of the
    /// group, but for what no member may have, which it has put away durably until it is named again.
    Retired {
        /// The epoch that does not name it.
        epoch: Epoch,
        /// Keys put away.
        stashed: u64,
    },
    /// This node was named as a member of the group, and cannot be one: the others do without it.
    NotPlaced {
        /// Why.
        why: String,
    },
    /// An evicted node's writes end here: all members of the epoch have said what they hold. Later ones, acknowledged or not,
    /// are on its disk only, and come back when it does.
    OriginClosed {
        /// Whose stream.
        stream: StreamId,
        /// The last write that counts; 0 when none does.
        last: LogIndex,
    },
    /// This node was evicted and is named again: it has put away what only it may have, and begins anew with an empty state.
    BeganAnew {
        /// The epoch that names it.
        epoch: Epoch,
        /// Keys with something that was put away.
        stashed: u64,
    },
    /// What this node had put away when it was evicted has been dealt with.
    Resubmitted {
        /// Writes that were made again, values that merge counted once each.
        writes: u64,
        /// Writes that some member had all the same.
        known: u64,
        /// Writes that were not made again: of others, which this node had held and no member had, and which come back with their own
        /// nodes, or not; and such as have lost to a newer one meanwhile, which the audit has.
        dropped: u64,
    },
    /// The storage failed; this replica acknowledges nothing any more.
    StorageFailed,
    /// The storage stalls; leadership was given up.
    StorageSlow,
    /// Entries that were durable can no longer be read.
    StorageFaulty {
        /// Which stream.
        stream: StreamId,
        /// Which indices.
        range: RangeInclusive<LogIndex>,
    },
    /// A snapshot of the own state was begun.
    SnapshotTaken {
        /// The last entry that it holds.
        at: Position,
    },
    /// A snapshot from a peer took the place of the own state.
    SnapshotInstalled {
        /// The last entry that it holds.
        at: Position,
        /// Who sent it.
        from: NodeId,
    },
    /// A snapshot from a peer is larger than this replica takes; nothing of it was kept. Blame: the operator, whose limit is
    /// too low for what the peer holds, or the peer. The replica stays behind until one of the two changes.
    SnapshotRefused {
        /// Who sent it.
        from: NodeId,
        /// The limit, in bytes.
        bytes_max: u64,
    },
    /// A snapshot could not be read by the state machine; the replica cannot go on from it.
    SnapshotUnreadable {
        /// The last entry that it holds.
        at: Position,
    },
    /// A record in memory is not the one that was put there. Blame: the memory, or a bug here. It is compared with those of the
    /// others, and what it shows until then may be wrong.
    RecordDamaged {
        /// Of which key; `None` when all that is known is that some record has gone or has come.
        key: Option<Bytes>,
    },
    /// This replica's record of a key was not the one that a majority of the owners has, with the same writes applied: it took
    /// theirs. Values that only it had are in its audit.
    RecordRepaired {
        /// Of which key.
        key: Bytes,
        /// How many owners have what it took.
        copies: u8,
    },
    /// Owners that have applied the same writes have different records of a key, and no majority has the same one, as far as they
    /// can be reached: nothing was changed. Told once for a key and what is found of it.
    RecordsDiffer {
        /// Of which key.
        key: Bytes,
        /// How many different records there are.
        records: u8,
    },
}

/// How a replica describes itself to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which group.
    pub group: GroupId,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Last entry of its log.
    pub last: Position,
    /// Highest index known to be committed.
    pub commit_index: LogIndex,
    /// Highest index applied.
    pub applied_index: LogIndex,
    /// First index still in the log.
    pub first_index: LogIndex,
    /// The membership epoch that it acts in.
    pub epoch: Epoch,
    /// The newest snapshot.
    pub snapshot: Option<Position>,
    /// A leader's view of its followers, ascending by node.
    pub followers: Vec<FollowerStatus>,
    /// Members that have been silent for too long, as far as it looks for that; ascending.
    pub suspected: Vec<NodeId>,
    /// What only this strategy counts.
    pub figures: Vec<Figure>,
}

/// Something that a replica has counted since it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// Of what: a few words in lower case that stand well behind a number, as in "12 reads hedged".
    pub of: String,
    /// How many.
    pub count: u64,
}

impl Figure {
    /// So many of these.
    #[must_use]
    pub fn new(of: impl Into<String>, count: u64) -> Self {
        Self { of: of.into(), count }
    }
}

/// A leader's view of one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowerStatus {
    /// Which.
    pub node: NodeId,
    /// Highest index known to be on its disk.
    pub match_index: LogIndex,
    /// Entries that it is behind.
    pub lag_entries: u64,
}

impl Status {
    /// The status as the one value of an [`Outcome::Value`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a status always encodes").into()
    }

    /// The inverse of [`Status::encode`]; `None` for other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}
