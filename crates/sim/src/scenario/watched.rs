//! A user's machine with an observer: what it does is written to the ledger, and held against what others did.
//!
//! Snapshot layout: u64 index of the last command within, little endian; then the machine's own bytes.

use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{BytesSource, LogIndex, NodeId, RestoreError, SnapshotSource, StateMachine};

use super::Invariant;
use super::ledger::{Ledger, Line, Seen, different};
use crate::check::StateHash;

const HEAD_BYTES: usize = 8;
/// Largest answer to a probe.
const ANSWER_BYTES_MAX: usize = 1 << 16;

/// The machine of a [`Scenario`](super::Scenario)'s replica: the user's own, watched.
pub struct Watched<M> {
    machine: M,
    node: NodeId,
    fresh: Arc<dyn Fn() -> M + Send + Sync>,
    invariant: Option<Invariant<M>>,
    ledger: Ledger,
    applied: LogIndex,
    // Of a snapshot on its way in: the index comes first.
    head: Vec<u8>,
}

impl<M> core::fmt::Debug for Watched<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watched").field("node", &self.node).field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl<M: StateMachine> Watched<M> {
    pub(super) fn new(
        node: NodeId,
        fresh: Arc<dyn Fn() -> M + Send + Sync>,
        invariant: Option<Invariant<M>>,
        ledger: Ledger,
    ) -> Self {
        ledger.started(node);
        Self { machine: fresh(), node, fresh, invariant, ledger, applied: LogIndex::ZERO, head: Vec::new() }
    }

    /// The user's machine.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    fn check_invariant(&self) {
        if let Some(Err(what)) = self.invariant.as_ref().map(|holds| holds(&self.machine)) {
            let (node, applied) = (self.node, self.applied);
            self.ledger.broken(format!("index {applied}, node {node}: the invariant does not hold: {what}"));
        }
    }

    /// A machine that is restored from the snapshot, in a few pieces, is the same machine.
    fn check_snapshot(&self, snapshot: &Bytes) {
        let (node, applied) = (self.node, self.applied);
        let mut restored = (self.fresh)();
        // Another cut each time, so that pieces of any kind come up.
        let piece_bytes = 1 + snapshot.len() / (1 + applied.0 as usize % 5);
        let mut left = snapshot.clone();
        loop {
            let piece = left.split_to(left.len().min(piece_bytes));
            if let Err(RestoreError { what }) = restored.restore(&piece, left.is_empty()) {
                return self
                    .ledger
                    .broken(format!("index {applied}, node {node}: its own snapshot is refused: {what}"));
            }
            if left.is_empty() {
                break;
            }
        }
        if let Some(what) = different(&see(&self.machine, &self.ledger), &see(&restored, &self.ledger)) {
            let what = format!("index {applied}, node {node}, and a machine restored from its snapshot: {what}");
            self.ledger.broken(what);
        }
    }
}

/// What can be seen of a machine's state.
pub(super) fn see(machine: &impl StateMachine, ledger: &Ledger) -> Seen {
    let answers = ledger.probes().iter().map(|probe| machine.query(probe, ANSWER_BYTES_MAX)).collect();
    Seen { state: StateHash::of_machine(machine), answers }
}

impl<M: StateMachine> StateMachine for Watched<M> {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        self.ledger.begin(self.node, || format!("while it applied index {at}, {:?}", Bytes::copy_from_slice(command)));
        let reply = self.machine.apply(at, command);
        self.applied = at;
        self.check_invariant();
        let state = self.ledger.compares(at).then(|| see(&self.machine, &self.ledger));
        let line = Line { command: Bytes::copy_from_slice(command), reply: reply.clone(), state };
        self.ledger.applied(self.node, at, line);
        self.ledger.done();
        reply
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        self.ledger.begin(self.node, || format!("while it answered {:?}", Bytes::copy_from_slice(query)));
        let answer = self.machine.query(query, bytes_max);
        self.ledger.done();
        answer
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        self.ledger.begin(self.node, || format!("while it took a snapshot at index {}", self.applied));
        let snapshot = whole(&self.machine);
        self.check_snapshot(&snapshot);
        self.ledger.done();
        let head = BytesSource::new(Bytes::copy_from_slice(&self.applied.0.to_le_bytes()));
        // A handle of the user's own, so that it is pulled while the machine goes on.
        Box::new(WithIndex { head, machine: self.machine.snapshot() })
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        let missing = HEAD_BYTES.saturating_sub(self.head.len());
        let (head, rest) = chunk.split_at(missing.min(chunk.len()));
        self.head.extend_from_slice(head);
        if self.head.len() < HEAD_BYTES && !last {
            return Ok(());
        }
        let index = <[u8; HEAD_BYTES]>::try_from(&self.head[..]);
        self.ledger.begin(self.node, || "while it restored a snapshot".to_owned());
        let restored = self.machine.restore(rest, last);
        if last {
            self.head.clear();
            let index = index.map_err(|_| RestoreError { what: "shorter than its index" })?;
            self.applied = LogIndex(u64::from_le_bytes(index));
            match restored {
                Ok(()) => {
                    self.check_invariant();
                    let seen = see(&self.machine, &self.ledger);
                    self.ledger.restored(self.node, self.applied, &seen);
                }
                Err(RestoreError { what }) => {
                    let (node, applied) = (self.node, self.applied);
                    self.ledger.broken(format!("node {node} refuses a snapshot of index {applied}: {what}"));
                }
            }
        }
        self.ledger.done();
        restored
    }
}

/// All bytes of a machine's snapshot.
fn whole(machine: &impl StateMachine) -> Bytes {
    let (mut bytes, mut source) = (Vec::new(), machine.snapshot());
    while let Some(piece) = source.next(1 << 20) {
        bytes.extend_from_slice(&piece);
    }
    bytes.into()
}

struct WithIndex {
    head: BytesSource,
    machine: Box<dyn SnapshotSource>,
}

impl SnapshotSource for WithIndex {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        self.head.next(bytes_max).or_else(|| self.machine.next(bytes_max))
    }
}
