//! The program as its user sees it: real processes, bad input, clean ends.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

mod bad_input;
mod changes;
mod cluster;
mod leaderless;
mod multi;
mod partitioned;
mod program;
