//! Dots: the identity of a write.
//!
//! Invariant: no two writes ever share a dot, because an origin is an incarnation of a node and counts its writes without
//! gaps. Source: Preguiça et al. 2010 (dotted version vectors).

use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::OriginId;

/// One write, for ever unique: the n-th write of one origin, which is an incarnation of a node.
///
/// Dots sort by node, then incarnation, then sequence: see [`Origin`](crate::Origin). Encoded by postcard a dot takes 3 to 13
/// bytes, 2 of them for the origin as long as node and incarnation are below 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote.
    #[serde(with = "crate::origin::parts")]
    pub origin: OriginId,
    /// Its n-th write, from 1, without gaps, at most [`Dot::SEQUENCE_MAX`].
    pub sequence: u64,
}

impl Dot {
    /// The largest sequence: at a million writes a second it lasts for two thousand years.
    pub const SEQUENCE_MAX: u64 = (1 << 56) - 1;
}

/// Consecutive dots of one origin: what to ask for, or what to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DotRange {
    /// Who wrote them.
    #[serde(with = "crate::origin::parts")]
    pub origin: OriginId,
    /// The first sequence.
    pub first: u64,
    /// The last sequence, not below the first.
    pub last: u64,
}

impl DotRange {
    /// The sequences; empty for a range whose last is below its first, as a peer may claim.
    #[must_use]
    pub const fn sequences(self) -> RangeInclusive<u64> {
        self.first..=self.last
    }
}
