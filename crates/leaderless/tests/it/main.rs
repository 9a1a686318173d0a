//! The strategy as its user sees it.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

mod consensus;
mod group;
mod hints;
mod lives;
#[cfg(feature = "runtime")]
mod node;
mod owners;
mod quorums;
mod scans;
mod scrub;
mod snapshots;
