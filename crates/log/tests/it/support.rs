//! What several tests build on.

use replikit_core::{
    Batch, BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp, LogIndex, OriginId, Persist, StreamId, Term,
    WriteId,
};
use replikit_log::{LogOutput, Storage};

pub(crate) fn cluster() -> ClusterId {
    ClusterId::from_name("test")
}

pub(crate) fn stream(group: u32, origin: u32) -> StreamId {
    StreamId { group: GroupId(group), origin: OriginId(origin) }
}

/// A batch of `count` entries of `payload_bytes` bytes each, which depend on stream, index and term.
pub(crate) fn batch(stream: StreamId, base: u64, term: u64, count: usize, payload_bytes: usize) -> Batch {
    let meta = BatchMeta {
        cluster: cluster(),
        stream,
        base: LogIndex(base),
        term: Term(term),
        prev_digest: 0,
        time: HybridTimestamp(base << 16),
        kind: BatchKind::Commands,
    };
    let seed = stream.to_u64() ^ base.rotate_left(20) ^ term.rotate_left(40);
    let payloads: Vec<Vec<u8>> = (0..count)
        .map(|entry| {
            (0..payload_bytes).map(|at| (seed.wrapping_mul(31) as usize + entry * 7 + at * 13) as u8 | 1).collect()
        })
        .collect();
    Batch::build(&meta, payloads.iter().map(|payload| (&payload[..], None)))
}

/// Hands actions to a log, counting their ids.
pub(crate) struct Writer {
    next: WriteId,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { next: WriteId(1) }
    }

    pub(crate) fn persist(&mut self, log: &mut impl Storage, op: Persist) -> WriteId {
        let id = self.next;
        self.next = id.next();
        log.persist(id, op);
        id
    }

    pub(crate) fn append(&mut self, log: &mut impl Storage, batch: Batch) -> WriteId {
        self.persist(log, Persist::Append { batch, replace: false })
    }
}

pub(crate) fn outputs(log: &mut impl Storage) -> Vec<LogOutput> {
    core::iter::from_fn(|| log.poll()).collect()
}
