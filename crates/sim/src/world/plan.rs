//! What is planned: the queue of a world, and what comes back again and again.
//!
//! Invariant: the earliest comes first; of equal times, what was planned first.

use core::cmp::Ordering;
use core::time::Duration;

use bytes::Bytes;
use replikit_core::{Input, Link, Time};

use super::echo::Echo;
use crate::settings::{Every, Settings};

#[derive(Debug)]
pub(super) enum Planned<H> {
    Arrive { from: u16, to: u16, connection: u32, sender_life: u32, hash: u64, message: u64, frame: Bytes },
    Echo { to: usize, echo: Box<Echo> },
    Request { to: usize, input: Box<Input<H>> },
    Peer { to: usize, of: usize, link: Link },
    Wake { node: usize, life: u32 },
    Timer { node: usize, life: u32 },
    Storage { node: usize, life: u32 },
    Crash { node: usize, life: u32 },
    Restart { node: usize, life: u32 },
    Recur(Recurring),
    Mend(Vec<(usize, usize)>),
    Flap(Box<Flap>),
    Clog { node: usize, until: Time },
    Relief(Relief),
    Churn { node: usize, life: u32 },
    Shift { turn: u64 },
    Alarm { client: u32 },
}

/// A link that is cut and mended, turn by turn.
#[derive(Debug)]
pub(super) struct Flap {
    pub(super) links: [(usize, usize); 2],
    /// Turns left; even ones cut.
    pub(super) left: u32,
    /// Mean time of a turn.
    pub(super) half: Duration,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Relief {
    Unmute,
    Faster { node: usize },
    QuickDisk { node: usize },
    Thaw { node: usize },
    Resume { node: usize, life: u32 },
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
    Clog,
    Flap,
    Mute,
    Outage,
    Slow,
    Starve,
    Leader,
    Freeze,
    Suspend,
    Shift,
}

impl Recurring {
    pub(super) const ALL: [Self; 18] = [
        Self::Netsplit,
        Self::OneWay,
        Self::Reset,
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::Stall,
        Self::ClockJump,
        Self::Clog,
        Self::Flap,
        Self::Mute,
        Self::Outage,
        Self::Slow,
        Self::Starve,
        Self::Leader,
        Self::Freeze,
        Self::Suspend,
        Self::Shift,
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
            Self::Clog => settings.network.clog,
            Self::Flap => settings.network.flap,
            Self::Mute => settings.network.mute,
            Self::Outage => settings.process.outage,
            Self::Slow => settings.process.slow,
            Self::Starve => settings.process.starve,
            Self::Leader => settings.leader.strike,
            Self::Freeze => settings.clock.freeze,
            Self::Suspend => settings.clock.suspend,
            Self::Shift => settings.leader.shift,
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
