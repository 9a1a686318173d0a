//! The harness as a whole: it finds what is wrong with a store that lies, and nothing with one that does not; the program's
//! exit code and files say so.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, also in a function that it calls")]

mod plays;
mod program;
mod report;
mod stores;
