//! The log of one origin, as this replica holds it.
//!
//! Invariants: batches are held without a gap, in the order and chain in which their origin wrote them, and lie in the
//! replica's own log under the origin's stream. What is applied of them, and what is durable, are prefixes.

use std::collections::VecDeque;

use crate::{Batch, OriginId, WriteId};

/// What is held of one origin.
#[derive(Debug)]
pub struct Stream {
    origin: OriginId,
    /// The last sequence held.
    held: u64,
    /// Digest of the batch that ends there.
    digest: u64,
    /// The last sequence that is on disk here.
    durable: u64,
    // Ends of batches that are not known to be on disk, with the storage action that puts them there.
    unsynced: VecDeque<(WriteId, u64)>,
    /// Below this sequence the log has nothing, as far as is known.
    first: u64,
    // The newest batches, without a gap up to the last one held.
    cache: VecDeque<Batch>,
    cache_bytes: usize,
    /// Bytes and writes that came by, to tell what a delta would cost.
    passed: (u64, u64),
}

impl Stream {
    /// A stream of which everything up to `held` has been applied and is on disk.
    #[must_use]
    pub const fn new(origin: OriginId, held: u64, digest: u64) -> Self {
        Self {
            origin,
            held,
            digest,
            durable: held,
            unsynced: VecDeque::new(),
            first: held + 1,
            cache: VecDeque::new(),
            cache_bytes: 0,
            passed: (0, 0),
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn origin(&self) -> OriginId {
        self.origin
    }

    /// The last sequence held.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Digest of the batch that ends there; 0 before the first.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// The last sequence that is on disk here.
    #[must_use]
    pub const fn durable(&self) -> u64 {
        self.durable
    }

    /// Below this sequence the log has nothing, as far as is known.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Whether the batch continues the stream.
    #[must_use]
    pub fn continues(&self, batch: &Batch) -> bool {
        batch.base().0 == self.held + 1 && (self.held == 0 || batch.prev_digest() == self.digest)
    }

    /// Takes the next batch; it is on disk with the storage action `write`, or already when that is `None`.
    pub fn append(&mut self, batch: Batch, write: Option<WriteId>) {
        debug_assert!(self.continues(&batch), "batches are held without a gap");
        self.held = batch.last().index.0;
        self.digest = batch.digest();
        self.passed.0 += batch.bytes() as u64;
        self.passed.1 += u64::from(batch.count());
        match write {
            Some(write) => self.unsynced.push_back((write, self.held)),
            None => self.durable = self.held,
        }
        self.cache_bytes += batch.bytes();
        self.cache.push_back(batch);
    }

    /// Storage actions up to this one are durable; returns whether more of the stream is.
    pub fn sync(&mut self, durable: WriteId) -> bool {
        let before = self.durable;
        while let Some(&(write, end)) = self.unsynced.front() {
            if write > durable {
                break;
            }
            self.unsynced.pop_front();
            self.durable = self.durable.max(end);
        }
        self.durable > before
    }

    /// A snapshot was installed that holds everything up to `held`, on disk with the storage action `write`: what lay in the
    /// log before is void. One that holds no more than is held changes nothing.
    pub fn skip_to(&mut self, held: u64, digest: u64, write: WriteId) {
        if held <= self.held {
            return;
        }
        let passed = self.passed;
        let durable = self.durable;
        *self = Self::new(self.origin, held, digest);
        (self.passed, self.durable) = (passed, durable);
        self.unsynced.push_back((write, held));
    }

    /// The log has nothing below this sequence.
    pub fn released(&mut self, first: u64) {
        self.first = self.first.max(first);
    }

    /// The log has the stream from this sequence on.
    pub fn logged_from(&mut self, first: u64) {
        self.first = first;
    }

    /// The batch in memory that holds a sequence, or the first one after it if that is where the cache begins; `None` when
    /// it has to be read from the log.
    #[must_use]
    pub fn cached(&self, sequence: u64) -> Option<&Batch> {
        let at = self.cache.partition_point(|batch| batch.last().index.0 < sequence);
        self.cache.get(at).filter(|batch| batch.base().0 <= sequence)
    }

    /// Bytes in memory.
    #[must_use]
    pub const fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Drops the oldest batch from memory; returns its bytes.
    pub fn forget_oldest(&mut self) -> usize {
        let bytes = self.cache.pop_front().map_or(0, |batch| batch.bytes());
        self.cache_bytes -= bytes;
        bytes
    }

    /// What the writes behind a sequence take, in bytes, about.
    #[must_use]
    pub fn bytes_behind(&self, sequence: u64) -> u64 {
        let (bytes, writes) = self.passed;
        let each = bytes.checked_div(writes).unwrap_or(128);
        each * self.held.saturating_sub(sequence)
    }
}
