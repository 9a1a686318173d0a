//! What is planned: the queue of a world, and what comes back again and again.
//!
//! Invariant: the earliest comes first; of equal times, what was planned first.

use core::cmp::Ordering;

use bytes::Bytes;
use replikit_core::{Input, Link, Time};

use crate::settings::{Every, Settings};

#[derive(Debug)]
pub(super) enum Planned<H> {
    Arrive { from: usize, to: usize, connection: u32, sender_life: u32, frame: Bytes },
    Request { to: usize, input: Input<H> },
    Peer { to: usize, of: usize, link: Link },
    Wake { node: usize, life: u32 },
    Timer { node: usize, life: u32 },
    Storage { node: usize, life: u32 },
    Crash { node: usize, life: u32 },
    Restart { node: usize, life: u32 },
    Recur(Recurring),
    Mend(Vec<(usize, usize)>),
    Alarm { client: u32 },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Recurring {
    Netsplit,
    OneWay,
    Reset,
    Crash,
    CrashAll,
    Pause,
    Stall,
    ClockJump,
}

impl Recurring {
    pub(super) const ALL: [Self; 8] = [
        Self::Netsplit,
        Self::OneWay,
        Self::Reset,
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::Stall,
        Self::ClockJump,
    ];

    pub(super) const fn every(self, settings: &Settings) -> Option<Every> {
        match self {
            Self::Netsplit => settings.network.netsplit,
            Self::OneWay => settings.network.one_way,
            Self::Reset => settings.network.reset,
            Self::Crash => settings.process.crash,
            Self::CrashAll => settings.process.crash_all,
            Self::Pause => settings.process.pause,
            Self::Stall => settings.storage.stall,
            Self::ClockJump => settings.clock.jump,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry<H> {
    pub(super) at: Time,
    pub(super) sequence: u64,
    pub(super) planned: Planned<H>,
}

impl<H> PartialEq for Entry<H> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<H> Eq for Entry<H> {}

impl<H> PartialOrd for Entry<H> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<H> Ord for Entry<H> {
    // The heap gives the largest first; the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}
