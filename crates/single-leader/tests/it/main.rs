//! Behaviour of a single-leader group, driven by hand in virtual time.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

mod durability;
mod election;
mod group;
mod hibernation;
mod paper;
mod reads;
mod recovery;
mod replication;
mod snapshots;
