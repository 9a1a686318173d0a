//! "Sometimes" probes: interesting states of a protocol, observed from outside. A long run in which one is never met tests
//! less than it seems to, and fails.

macro_rules! probes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// An interesting state.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Probe {
            $($(#[$doc])* $name,)*
        }

        impl Probe {
            /// Every probe.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

probes! {
    /// A follower dropped an uncommitted suffix for another leader's log.
    SuffixTruncated,
    /// A dropped suffix was reported.
    LostWritesReported,
    /// A snapshot was begun.
    SnapshotTaken,
    /// A follower took a snapshot in place of its state.
    SnapshotInstalled,
    /// A snapshot was sent in more than one piece.
    SnapshotInPieces,
    /// The log behind a snapshot was released.
    LogReleased,
    /// The log was begun anew behind an installed snapshot.
    LogReset,
    /// A leader read old entries from its disk for a follower.
    LogReadFromDisk,
    /// A leader was elected after another one.
    LeaderChanged,
    /// A leader gave up because it did not hear a quorum.
    LeaderSteppedDown,
    /// A leader was deposed by a later term.
    LeaderDeposed,
    /// A node led again that had lost entries meanwhile which had been acknowledged to it when it led before.
    LedAgainAfterLoss,
    /// A leader handed leadership over.
    LeadershipHandedOver,
    /// A pre-vote was refused.
    PreVoteRefused,
    /// A vote was refused.
    VoteRefused,
    /// A candidate had to stand again.
    ElectionRepeated,
    /// A vote was asked for after every member had answered, for the sake of one whose tail was cut.
    UnanimousVoteAsked,
    /// A follower refused entries that do not follow its log.
    AppendRejected,
    /// A leader of an earlier term was told that it is one.
    OldLeaderToldSo,
    /// A leader committed entries of an earlier term.
    EarlierTermCommitted,
    /// A follower asked the leader for a read index.
    ReadIndexForwarded,
    /// A quorum confirmed a read index for a follower.
    ReadIndexAnswered,
    /// One round of confirmation served several reads.
    ReadRoundShared,
    /// A follower answered a linearizable read.
    LinearizableReadAtFollower,
    /// A follower answered a read with a token.
    SessionReadAtFollower,
    /// A read with a token was refused because what it had seen was lost.
    SessionReadRefused,
    /// A read within a staleness bound was answered.
    BoundedStaleAnswered,
    /// A local read said how stale it is.
    LocalReadWithBound,
    /// A local read could not say how stale it is.
    LocalReadWithoutBound,
    /// A retry was answered without a new effect.
    RetryDeduplicated,
    /// Two copies of a request raced each other, and one was answered.
    DuplicateAnswered,
    /// A write ended without its client learning how.
    Indeterminate,
    /// A request was refused by a node that does not lead.
    NotLeaderAnswered,
    /// A request for another group was refused.
    StaleRouteAnswered,
    /// A write was acknowledged below `Quorum`.
    WeakAck,
    /// A write acknowledged below `Quorum` was lost.
    WeakAckLost,
    /// A write was acknowledged as applied by several.
    AppliedAck,
    /// A compare-and-set found another value.
    CompareMismatched,
    /// A counter was added to.
    CounterAdded,
    /// A read showed several siblings.
    SiblingsRead,
    /// A report was passed on to who does not hear from its sender.
    ReportPassedOn,
    /// A peer's clock ran too far ahead.
    ClockAhead,
    /// A silent peer was suspected.
    PeerSuspected,
    /// A write had to wait for what it had seen.
    WriteWaitedForItsPast,
    /// Two writes met that had not seen each other.
    WritesConflicted,
    /// A value was overwritten by one that had not seen it.
    ValueOverwritten,
    /// Writes became known to be stable.
    StableAdvanced,
    /// Additions to a counter were folded into one.
    CounterFolded,
    /// A replica took over a membership epoch.
    EpochBegun,
    /// A replica counted in several epochs at once.
    EpochsJoint,
    /// The owners of an epoch took over from those before.
    EpochSettled,
    /// A node learned that it is no member.
    NodeEvicted,
    /// A node put away what only it had.
    StashWritten,
    /// A node that was evicted began with an empty state.
    NodeBeganAnew,
    /// A write of a node that was evicted was made again.
    WriteMadeAgain,
    /// A write was applied although something that it had seen is lost.
    PastWasLost,
    /// An owner had something newer than a write that came to it.
    WriteBehind,
    /// A write was stamped anew because an owner had a newer one.
    WriteStampedAnew,
    /// A read found owners that knew less, and told them.
    RepairSent,
    /// An owner took what a read had put together.
    ReadRepaired,
    /// Another owner was asked in place of a slow one.
    ReadHedged,
    /// A key was changed in one round trip, by consensus.
    ChangedInOneTrip,
    /// A change of a key met a higher ballot and began again.
    BallotRefused,
    /// A read was answered without a proposal, by owners that agreed.
    AgreedReadAnswered,
    /// An owner gathered from another one what it had promised before it lost its disk.
    PromisesGathered,
    /// A node that stands in for an owner has confirmed a hint.
    HintKept,
    /// An owner got what had been kept for it.
    HintArrived,
    /// What was kept for an owner that is none any more was handed to one that is.
    HintHandedOn,
    /// A write was acknowledged with the help of nodes that stand in for owners.
    SloppyAcked,
    /// A page was joined from the lists of several owners, of which some were cut off.
    PageJoined,
    /// Owners have compared their records.
    RecordsCompared,
    /// An owner took a majority's record for its own, which was damaged.
    RecordRepaired,
    /// Records differed, and no majority had the same.
    RecordsDiffered,
    /// A storage failed under a replica.
    StorageFailed,
    /// A leader gave up because its disk was slow.
    StorageSlow,
    /// A disk lost the torn end of its log.
    TailCut,
    /// A node recovered a log with entries in it.
    RecoveredWithLog,
    /// A node recovered from a snapshot.
    RecoveredFromSnapshot,
    /// The run went on with some nodes dead for good.
    MinorityDead,
    /// A group in which nothing happened fell asleep.
    GroupSlept,
    /// One did so while a member was down.
    GroupSleptWithoutSome,
    /// The leader of a sleeping group woke.
    LeaderWoke,
    /// A sleeping follower woke.
    FollowerWoke,
    /// The node of a sleeping leader died.
    SleepingLeaderDied,
    /// A leader was replaced while it slept.
    SleepingLeaderReplaced,
    /// At the end every group slept, said nothing, and replaced a leader that died.
    GroupsAtRest,
    /// A handoff was planned.
    HandoffPlanned,
    /// A target had some of a partition, but not all yet.
    HandoffCopiedInPart,
    /// A target had all of a partition, as far as it was then.
    HandoffCopied,
    /// A source took no more writes.
    HandoffSealed,
    /// A target had everything up to the seal.
    HandoffPrepared,
    /// A handoff was committed.
    HandoffCommitted,
    /// A handoff was aborted.
    HandoffAborted,
    /// A target opened, or discarded what it had.
    HandoffTargetCleaned,
    /// A source dropped the partition, or took writes again.
    HandoffSourceCleaned,
    /// A handoff was forgotten.
    HandoffForgotten,
    /// A node crashed when a handoff had been planned.
    StruckAtPlan,
    /// A node crashed when a partition had been copied, or some of it.
    StruckAtCopy,
    /// A node crashed when a source had sealed.
    StruckAtSeal,
    /// A node crashed when a target had prepared.
    StruckAtPrepare,
    /// A node crashed when a handoff had been decided.
    StruckAtDecision,
    /// A node crashed when a side of a handoff had cleaned.
    StruckAtClean,
    /// A group's log followed a split.
    SplitFollowed,
    /// A group's log followed a merge.
    MergeFollowed,
    /// A client's stale route was mended by the answer.
    StaleRouteMended,
    /// A client knew of a newer map than the group that it asked.
    RouteAhead,
    /// A request came between the seal and the opening of its partition.
    RequestBetweenSealAndOpen,
    /// A request was answered after its partition had moved.
    RetryElsewhereAnswered,
    /// A scan went on though a partition of it had moved or changed.
    ScanOverAMove,
    /// At the end every handoff was over, and every group held what the map says.
    StoreAtRest,
    /// A node that owns nothing any more dropped what it had.
    NodeRetired,
    /// A group began to count in the epoch of a placement.
    PlacementBegun,
    /// A node was told that a group is placed elsewhere.
    PlacedElsewhere,
    /// A node dropped what it had of a group that is placed elsewhere.
    PlacedDropped,
    /// A node that had lost a group to others was given it back.
    PlacedHereAgain,
    /// A node sent a client on to an owner.
    SentOnByFormerOwner,
    /// A client with an old map was refused, and went on with a new one.
    PlacedRouteMended,
    /// At the end the owners of every group were those that the map names.
    PlacedAtRest,
}

impl Probe {
    /// Those of owners that change.
    pub const OF_OWNERS: &'static [Self] = &[Self::EpochsJoint, Self::EpochSettled, Self::NodeRetired];

    /// Those of owners that answer in quorums.
    pub const OF_QUORUMS: &'static [Self] = &[
        Self::WriteBehind,
        Self::WriteStampedAnew,
        Self::RepairSent,
        Self::ReadRepaired,
        Self::ReadHedged,
        Self::ChangedInOneTrip,
        Self::BallotRefused,
        Self::AgreedReadAnswered,
        Self::PromisesGathered,
        Self::RecordsCompared,
        Self::PageJoined,
    ];

    /// Those of groups that sleep.
    pub const OF_SLEEP: &'static [Self] = &[
        Self::GroupSlept,
        Self::GroupSleptWithoutSome,
        Self::LeaderWoke,
        Self::FollowerWoke,
        Self::SleepingLeaderDied,
        Self::SleepingLeaderReplaced,
        Self::GroupsAtRest,
    ];

    /// Those of a partitioned store.
    pub const OF_PARTITIONS: &'static [Self] = &[
        Self::HandoffPlanned,
        Self::HandoffCopiedInPart,
        Self::HandoffCopied,
        Self::HandoffSealed,
        Self::HandoffPrepared,
        Self::HandoffCommitted,
        Self::HandoffAborted,
        Self::HandoffTargetCleaned,
        Self::HandoffSourceCleaned,
        Self::HandoffForgotten,
        Self::StruckAtPlan,
        Self::StruckAtCopy,
        Self::StruckAtSeal,
        Self::StruckAtPrepare,
        Self::StruckAtDecision,
        Self::StruckAtClean,
        Self::SplitFollowed,
        Self::MergeFollowed,
        Self::StaleRouteMended,
        Self::RouteAhead,
        Self::RequestBetweenSealAndOpen,
        Self::RetryElsewhereAnswered,
        Self::ScanOverAMove,
        Self::StoreAtRest,
    ];

    /// Those of a store whose groups are placed anew.
    pub const OF_PLACEMENTS: &'static [Self] = &[
        Self::PlacementBegun,
        Self::PlacedElsewhere,
        Self::PlacedDropped,
        Self::PlacedHereAgain,
        Self::SentOnByFormerOwner,
        Self::PlacedRouteMended,
        Self::PlacedAtRest,
    ];

    /// Those of nodes that stand in for owners.
    pub const OF_HINTS: &'static [Self] = &[Self::HintKept, Self::HintArrived, Self::HintHandedOn, Self::SloppyAcked];

    /// Those of owners one of whose disks rots.
    pub const OF_ROT: &'static [Self] = &[Self::RecordRepaired, Self::RecordsDiffered];

    /// Those of replicas that all take writes.
    pub const OF_MANY_LEADERS: &'static [Self] = &[
        Self::SiblingsRead,
        Self::ReportPassedOn,
        Self::ClockAhead,
        Self::PeerSuspected,
        Self::WriteWaitedForItsPast,
        Self::WritesConflicted,
        Self::ValueOverwritten,
        Self::StableAdvanced,
        Self::CounterFolded,
        Self::EpochBegun,
        Self::NodeEvicted,
        Self::StashWritten,
        Self::NodeBeganAnew,
        Self::WriteMadeAgain,
        Self::PastWasLost,
    ];
}

/// How often each was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probes([u64; Probe::ALL.len()]);

impl Default for Probes {
    fn default() -> Self {
        Self([0; Probe::ALL.len()])
    }
}

impl Probes {
    /// The state was met.
    pub const fn hit(&mut self, probe: Probe) {
        self.0[probe as usize] += 1;
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// How often it was met.
    #[must_use]
    pub const fn count(&self, probe: Probe) -> u64 {
        self.0[probe as usize]
    }
}
