//! The kinds of faults that a run can meet, and how often it met each: a clean run that met nothing proves nothing.

use core::fmt;
use core::ops::{Index, IndexMut};

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// Every kind, in the order of the table of faults.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its id in the fault model, and what it is.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    /// A message was lost.
    Loss = "N1 message lost",
    /// A message arrived twice.
    Duplication = "N2 message duplicated",
    /// A message came in once more when its receiver had a new life or a new part.
    Echo = "N2 message of a former term or life again",
    /// A message took more than ten times the mean delay.
    LongDelay = "N3 message delayed for long",
    /// A message overtook an earlier one.
    Reorder = "N3 message overtook another",
    /// Two sides that did not see each other.
    TwoSides = "N4 netsplit in two",
    /// Another majority took its turn.
    Shift = "N4 majority shifted",
    /// Three or more sides that did not see each other.
    ManySides = "N5 netsplit in three or more",
    /// A link was cut in one direction.
    OneWay = "N6 one-way cut",
    /// Two sides, and one node that saw both.
    Bridge = "N7 netsplit with a bridge",
    /// Each node saw only its neighbours in a ring.
    Ring = "N8 netsplit into a ring",
    /// Each node saw only its neighbours in a chain.
    Chain = "N9 netsplit into a chain",
    /// All saw only one node.
    Hub = "N10 netsplit around a hub",
    /// The present leader was cut off from a majority.
    LeaderInMinority = "N11 leader in the minority",
    /// The links of a node held back what was sent over them.
    Clog = "N12 node clogged",
    /// The links of several nodes were clogged one after the other and freed in another order.
    SwizzleClog = "N12 swizzle-clog",
    /// A link was cut and mended again and again.
    Flap = "N13 flapping link",
    /// A message waited because a link's bandwidth was used up.
    Bandwidth = "N14 bandwidth used up",
    /// A connection broke.
    Reset = "N15 connection reset",
    /// A bit was flipped under way; the receiver noticed.
    Flip = "N16 bit flipped",
    /// A message was cut short under way; the receiver noticed.
    Truncated = "N16 message cut short",
    /// A length in a message was larger than anything; the receiver noticed.
    Oversize = "N16 oversized length",
    /// A message to or from a former incarnation was delivered.
    FormerIncarnation = "N17 message of a former incarnation",
    /// Messages of one kind were dropped.
    KindDropped = "N18 messages of one kind dropped",
    /// A message of another cluster came in; the receiver noticed.
    ForeignCluster = "N19 message of another cluster",
    /// A process crashed between two rounds.
    Crash = "P1 crash",
    /// A process crashed between two actions of a round.
    CrashAmidActions = "P2 crash between two actions",
    /// A process came back at once.
    InstantRestart = "P3 instant restart",
    /// The present leader crashed.
    LeaderCrash = "P1 leader crashed",
    /// A leader was struck right after its election.
    Churn = "P2 leader struck right after its election",
    /// A process was down for so long that it had to come back from a snapshot.
    LongOutage = "P4 outage longer than the log's retention",
    /// A process stood still.
    Pause = "P5 pause",
    /// All processes crashed at once.
    CrashAll = "P6 all processes crashed",
    /// A process crashed right after its recovery.
    CrashAfterRecovery = "P7 crash after recovery",
    /// Storage actions that were not yet durable were lost.
    UnsyncedLost = "S1 unsynced storage actions lost",
    /// A strict part of the unsynced writes survived.
    UnsyncedTorn = "S2 part of the unsynced writes survived",
    /// A start crashed while the log was being opened.
    CrashAmidOpening = "P7 crash while the log was opened",
    /// The last group of the log was torn and was cut at a start.
    TailCut = "S3 torn tail cut",
    /// A write failed.
    WriteFailed = "S6 write failed",
    /// A sync failed.
    SyncFailed = "S4 sync failed",
    /// The storage stalled.
    Stall = "S18 storage stall",
    /// A wall clock was off from the beginning.
    ClockOffset = "C1 wall clock off",
    /// A node's clocks ran at another rate.
    ClockDrift = "C2 clocks drift",
    /// A wall clock jumped forward.
    ClockForward = "C3 wall clock jumped forward",
    /// A wall clock jumped back.
    ClockBack = "C4 wall clock jumped back",
    /// A wall clock stood still.
    ClockFrozen = "C5 wall clock frozen",
    /// A machine was suspended: the process stood still, and its monotonic clock with it.
    Suspended = "C6 monotonic clock suspended",
    /// A processor was ten to a hundred times as slow.
    SlowCpu = "R1 slow processor",
    /// The leader's disk was ten to a hundred times as slow.
    SlowLeaderDisk = "R2 slow disk of the leader",
    /// A bounded queue was full and dropped a message.
    QueueFull = "R3 bounded queue full",
    /// A process was not told of its timers for a while.
    Starved = "R5 timers starved",
    /// An operator had a snapshot taken and the log released behind it.
    SnapshotByHand = "O6 snapshot and release by hand",
    /// A client asked again under the same number.
    Retry = "L1 retry under the same number",
    /// It did so at another node.
    RetryElsewhere = "L2 retry at another node",
    /// Two copies of one request were under way.
    DuplicateRequest = "L3 duplicate in flight",
    /// A client asked where nobody serves its group.
    StaleRoute = "L5 stale route",
    /// All clients used one key.
    HotKey = "L6 hot key",
    /// A peer's frame was random bytes; the receiver noticed.
    HostileFrame = "L7 hostile frame",
    /// A client's request was random bytes.
    HostileRequest = "L7 hostile request",
    /// A sync was confirmed without being carried out, and the power failed before a later one.
    SyncLied = "S5 sync lied",
    /// The disk was full.
    DiskFull = "S7 disk full",
    /// A part of a write that failed was carried out.
    WritePart = "S8 part of a failed write arrived",
    /// A read met a bad sector, and will again.
    LatentError = "S9 latent read error",
    /// Bytes of an older group, or of something read, changed.
    BitRot = "S10 bit rot",
    /// A write had landed elsewhere: what it was for is missing, and what stood there is gone.
    WriteMisdirected = "S11 misdirected write",
    /// A read was answered with the bytes of another place.
    ReadMisdirected = "S12 misdirected read",
    /// An older write had never arrived.
    WriteLost = "S13 lost write",
    /// A read was answered with what stood there before the last write.
    ReadStale = "S13 stale read",
    /// One copy of a register rotted.
    RegisterRot = "S14 register rotted",
    /// A snapshot rotted.
    SnapshotRot = "S15 snapshot rotted",
    /// A sync of the directory was confirmed without being carried out, and the power failed before a later one.
    EntryLost = "S16 directory entry lost",
    /// A file was gone.
    FileMissing = "S17 file missing",
    /// A file was cut short.
    FileTruncated = "S17 file truncated",
    /// The file system was mounted read-only.
    ReadOnly = "S19 read-only remount",
    /// The last group rotted.
    TailRot = "S20 last group rotted",
    /// The last write had never arrived, although it was confirmed.
    TailLost = "S20 last write lost",
    /// Each node lost another part; of everything one good copy was left.
    Helical = "S21 helical corruption",
    /// A log refused to open, and the node stayed down.
    Refused = "S9/S10/S11/S13/S15/S17/S21 damage noticed, node stayed down",
}

impl Fault {
    /// What only the disk under the real log can meet.
    pub const OF_THE_DISK: &'static [Self] = &[
        Self::CrashAmidOpening,
        Self::TailCut,
        Self::WriteFailed,
        Self::SyncLied,
        Self::DiskFull,
        Self::WritePart,
        Self::LatentError,
        Self::BitRot,
        Self::WriteMisdirected,
        Self::ReadMisdirected,
        Self::WriteLost,
        Self::ReadStale,
        Self::RegisterRot,
        Self::SnapshotRot,
        Self::EntryLost,
        Self::FileMissing,
        Self::FileTruncated,
        Self::ReadOnly,
        Self::TailRot,
        Self::TailLost,
        Self::Helical,
        Self::Refused,
    ];

    /// The log may have to cut the last group, which was confirmed, and tells the replica so. Only for replicas that then
    /// neither vote nor answer before they have caught up.
    #[must_use]
    pub const fn cuts_tail(self) -> bool {
        matches!(self, Self::TailRot | Self::ReadMisdirected)
    }

    /// Beyond what a single node can know: it confirms, and after a crash it lacks what it confirmed without any trace of it.
    /// No quorum protocol keeps its promises then, so a run that may meet one of these is unbounded:
    /// [`StorageSettings::bounded`](crate::StorageSettings::bounded).
    #[must_use]
    pub const fn is_silent(self) -> bool {
        matches!(self, Self::SyncLied | Self::EntryLost | Self::TailLost)
    }
}

/// How often each kind was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// Whether no kind was met.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    /// Adds one to each kind that another run met at all.
    pub fn add_met(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += u64::from(*theirs > 0);
        }
    }
}

impl Index<Fault> for FaultCounts {
    type Output = u64;

    fn index(&self, fault: Fault) -> &u64 {
        &self.0[fault as usize]
    }
}

impl IndexMut<Fault> for FaultCounts {
    fn index_mut(&mut self, fault: Fault) -> &mut u64 {
        &mut self.0[fault as usize]
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &fault in Fault::ALL {
            writeln!(f, "{:>12}  {}", self[fault], fault.text())?;
        }
        Ok(())
    }
}
