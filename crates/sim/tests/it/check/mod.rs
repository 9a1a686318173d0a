//! The checkers are checked: correct executions are made up and must pass; then each is damaged in every way on a list, and
//! a slow oracle that follows the definition word by word decides whether the damage is one.

mod causal;
mod durability;
mod linearizability;
mod real;
mod sessions;
mod staleness;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{GroupId, LogId, LogIndex, Position, StreamId, Term};

/// An entry of the one log of these tests.
fn position(index: u64) -> Position {
    let id = LogId { term: Term(1), index: LogIndex(index) };
    Position { stream: StreamId::consensus(GroupId(1)), id, digest: 0 }
}

fn key(number: u64) -> Bytes {
    format!("k{number}").into()
}

fn value(number: u64) -> Bytes {
    format!("v{number}").into()
}

/// How often a test has seen either verdict: both have to come up, or it proves nothing.
#[derive(Debug, Default)]
struct Verdicts {
    accepted: usize,
    rejected: usize,
}

impl Verdicts {
    /// The check and the oracle must say the same.
    fn compare(&mut self, check: bool, oracle: bool, what: impl FnOnce() -> String) {
        assert_eq!(check, oracle, "the check says {check}, the definition says {oracle}: {}", what());
        *(if oracle { &mut self.accepted } else { &mut self.rejected }) += 1;
    }

    fn assert_at_least(&self, each: usize) {
        assert!(self.accepted >= each && self.rejected >= each, "{self:?}: the cases are too much alike");
    }
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> Option<&'a T> {
    (!from.is_empty()).then(|| &from[rng.usize(0..from.len())])
}
