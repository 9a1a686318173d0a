//! What a replica in memory has applied: how many commands, and a digest of them in their order.
//!
//! Invariant: replicas whose tallies are equal have applied the same commands in the same order. Every system applies a command
//! by one and the same call, so that none of them pays more for being checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use replikit_core::{BytesSource, LogIndex, RestoreError, SnapshotSource, StateMachine};

use crate::contest::VALUE_BYTES;

/// Replicas of a group, on each side.
pub const REPLICAS: usize = 3;

/// What one replica has applied.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    digest: AtomicU64,
}

/// What it had applied at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Commands.
    pub count: u64,
    /// Of them, in their order.
    pub digest: u64,
}

/// One tally for each replica.
pub type Tallies = [Arc<Tally>; REPLICAS];

/// A command that is told apart by its number.
#[must_use]
pub fn command(number: u64) -> Bytes {
    let mut bytes = vec![7; VALUE_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

impl Tally {
    /// Applies a command. One thread at a time.
    pub fn apply(&self, command: &[u8]) {
        /// Odd, with bits all over: a number moves through all of the digest (Knuth's multiplicative hash for 64 bits).
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let number = command.first_chunk().map_or(u64::MAX, |number| u64::from_le_bytes(*number));
        let Applied { count, digest } = self.applied();
        let digest = (digest.rotate_left(5) ^ number).wrapping_mul(FACTOR);
        self.set(Applied { count: count + 1, digest });
    }

    /// What it has applied; of one moment where nothing is applied meanwhile.
    #[must_use]
    pub fn applied(&self) -> Applied {
        // Whoever sees a count sees its digest as well.
        let count = self.count.load(Ordering::Acquire);
        Applied { count, digest: self.digest.load(Ordering::Relaxed) }
    }

    /// Takes over what another replica has applied.
    pub fn set(&self, applied: Applied) {
        self.digest.store(applied.digest, Ordering::Relaxed);
        self.count.store(applied.count, Ordering::Release);
    }
}

/// In words, which replicas have not applied just this; none in a good run.
#[must_use]
pub fn differing(tallies: &Tallies, expected: Applied) -> Vec<String> {
    let seen = tallies.iter().map(|tally| tally.applied()).enumerate();
    let differing = seen.filter(|(_, applied)| *applied != expected);
    differing
        .map(|(number, applied)| format!("replica {} has {applied:?} instead of {expected:?}", number + 1))
        .collect()
}

/// A tally as the state machine of one of replikit's replicas.
pub struct Machine(pub Arc<Tally>);

impl StateMachine for Machine {
    fn apply(&mut self, _: LogIndex, command: &[u8]) -> Bytes {
        self.0.apply(command);
        Bytes::new()
    }

    fn query(&self, _: &[u8], _: usize) -> Bytes {
        Bytes::new()
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        let Applied { count, digest } = self.0.applied();
        let bytes = [count.to_le_bytes(), digest.to_le_bytes()].concat();
        Box::new(BytesSource::new(bytes.into()))
    }

    fn restore(&mut self, chunk: &[u8], _: bool) -> Result<(), RestoreError> {
        let number = |from: usize| Some(u64::from_le_bytes(*chunk.get(from..)?.first_chunk()?));
        let (Some(count), Some(digest)) = (number(0), number(8)) else {
            return Err(RestoreError { what: "a tally is two numbers" });
        };
        self.0.set(Applied { count, digest });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_lost_doubled_and_exchanged_commands() {
        let of = |numbers: &[u64]| {
            let tally = Tally::default();
            numbers.iter().for_each(|number| tally.apply(&command(*number)));
            tally.applied()
        };
        assert_eq!(of(&[1, 2, 3]), of(&[1, 2, 3]));
        for other in [&[1, 3, 2][..], &[1, 2], &[1, 2, 2], &[1, 2, 3, 3], &[0, 2, 3]] {
            assert_ne!(of(&[1, 2, 3]), of(other), "{other:?}");
        }
    }

    #[test]
    fn a_replica_that_differs_is_named() {
        let tallies = Tallies::default();
        tallies.iter().for_each(|tally| tally.apply(&command(1)));
        let expected = tallies[0].applied();
        assert!(differing(&tallies, expected).is_empty());
        tallies[2].apply(&command(2));
        let told = differing(&tallies, expected);
        assert!(told.len() == 1 && told[0].starts_with("replica 3"), "{told:?}");
    }
}
