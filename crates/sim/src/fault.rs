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
    /// A message took more than ten times the mean delay.
    LongDelay = "N3 message delayed for long",
    /// A message overtook an earlier one.
    Reorder = "N3 message overtook another",
    /// The cluster was split.
    Netsplit = "N4-N11 netsplit",
    /// A link was cut in one direction.
    OneWay = "N6 one-way cut",
    /// A connection broke.
    Reset = "N15 connection reset",
    /// A bit was flipped under way; the receiver noticed.
    Flip = "N16 bit flipped in a batch",
    /// A message to or from a former incarnation was delivered.
    FormerIncarnation = "N17 message of a former incarnation",
    /// A process crashed between two rounds.
    Crash = "P1 crash",
    /// A process crashed between two actions of a round.
    CrashAmidActions = "P2 crash between two actions",
    /// A process came back at once.
    InstantRestart = "P3 instant restart",
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
    /// A wall clock jumped.
    ClockJump = "C3/C4 wall clock jump",
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
