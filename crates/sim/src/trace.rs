//! The fingerprint of a run: equal fingerprints, equal runs, event for event.

use replikit_core::Time;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A running hash over everything that happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace(u64);

/// What is hashed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Arrive,
    Request,
    Peer,
    Wake,
    Timer,
    Storage,
    Restart,
    Fault,
    Mend,
    Alarm,
    Persist,
    Send,
    Read,
    Done,
    Event,
    Crash,
}

impl Trace {
    /// The fingerprint so far.
    #[must_use]
    pub const fn fingerprint(self) -> u64 {
        self.0
    }

    pub(crate) fn note(&mut self, step: Step, now: Time, node: usize, detail: u64) {
        let mut words = [0; 24];
        words[..8].copy_from_slice(&now.0.to_le_bytes());
        words[8..16].copy_from_slice(&((node as u64) << 8 | step as u64).to_le_bytes());
        words[16..].copy_from_slice(&detail.to_le_bytes());
        self.0 = xxh3_64_with_seed(&words, self.0);
    }
}
