//! The key-value machine, with a record of what it was made to apply.

use bytes::{Bytes, BytesMut};
use replikit_core::keyspace::Keyspace;
use replikit_core::{LogIndex, NodeId, RestoreError, SnapshotSource, StateMachine};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ledger::Ledger;

/// A machine that tells the ledger of each command, and carries a hash over all of them.
#[derive(Debug)]
pub(crate) struct Recorder {
    node: NodeId,
    keyspace: Keyspace,
    ledger: Ledger,
    hash: u64,
    // Of a snapshot on its way in: the hash comes first.
    head: BytesMut,
    reading: bool,
}

const HEAD_BYTES: usize = 8;

impl Recorder {
    pub(crate) fn new(node: NodeId, ledger: Ledger) -> Self {
        Self { node, keyspace: Keyspace::new(), ledger, hash: 0, head: BytesMut::new(), reading: false }
    }

    /// Equal for machines that applied the same commands at the same indices.
    pub(crate) const fn state(&self) -> u64 {
        self.hash
    }
}

impl StateMachine for Recorder {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        self.hash = xxh3_64_with_seed(command, self.hash ^ at.0);
        let reply = self.keyspace.apply(at, command);
        self.ledger.lines().applied(self.node, at, command, self.hash, &reply);
        reply
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        self.keyspace.query(query, bytes_max)
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Image { head: Bytes::copy_from_slice(&self.hash.to_le_bytes()), rest: self.keyspace.snapshot() })
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        if !self.reading {
            self.reading = true;
            self.head.clear();
        }
        let missing = HEAD_BYTES - self.head.len();
        let (head, rest) = chunk.split_at(missing.min(chunk.len()));
        self.head.extend_from_slice(head);
        if let Ok(head) = self.head[..].try_into() {
            self.hash = u64::from_le_bytes(head);
        } else if last {
            return Err(RestoreError { what: "shorter than its head" });
        }
        self.reading = !last;
        self.keyspace.restore(rest, last)
    }
}

struct Image {
    head: Bytes,
    rest: Box<dyn SnapshotSource>,
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        if self.head.is_empty() {
            return self.rest.next(bytes_max);
        }
        Some(self.head.split_to(self.head.len().min(bytes_max.max(1))))
    }
}
