//! What a partition costs its nodes.
//!
//! Invariant: whole numbers, already smoothed by whoever measured them (10 s are usual). Operations and processor time stand beside
//! bytes, because bytes alone miss hot partitions of small values (FoundationDB issue 1450).

use core::ops::{Add, AddAssign, SubAssign};

use serde::{Deserialize, Serialize};

/// What one replica of a partition takes, or what a node has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes stored.
    pub bytes: u64,
    /// Operations a second.
    pub ops: u64,
    /// Microseconds of processor time a second.
    pub cpu: u64,
}

impl Load {
    /// Nothing.
    pub const NONE: Self = Self { bytes: 0, ops: 0, cpu: 0 };

    /// Whether any of the three is above that of `limit`.
    pub fn is_above(&self, limit: &Self) -> bool {
        self.bytes > limit.bytes || self.ops > limit.ops || self.cpu > limit.cpu
    }

    /// Each of the three as so many percent of it, rounded down.
    #[must_use]
    pub fn percent(&self, percent: u8) -> Self {
        let part = |of: u64| (u128::from(of) * u128::from(percent) / 100) as u64;
        Self { bytes: part(self.bytes), ops: part(self.ops), cpu: part(self.cpu) }
    }
}

impl Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            ops: self.ops.saturating_add(other.ops),
            cpu: self.cpu.saturating_add(other.cpu),
        }
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.ops = self.ops.saturating_sub(other.ops);
        self.cpu = self.cpu.saturating_sub(other.cpu);
    }
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads.fold(Self::NONE, Add::add)
    }
}
