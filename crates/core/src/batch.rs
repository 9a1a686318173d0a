//! The batch: what is replicated. Byte-identical in memory, on the wire and on every disk, never sliced apart and never
//! re-encoded.
//!
//! Invariants: a [`Batch`] value always verified once, when it was built or when its bytes came in; batches of a stream form
//! a hash chain ([`Batch::prev_digest`]), so equal digests mean an equal prefix. Two logs that share one entry share
//! its whole batch, hence logs diverge at batch boundaries only.
//!
//! Layout, little endian (`docs/log-format.md` gives it byte by byte):
//!
//! | offset | field |
//! |---|---|
//! | 0 | u32 CRC-32 of bytes 4..64, seeded with the cluster |
//! | 4 | u16 magic, u8 version, u8 flags |
//! | 8 | u64 stream |
//! | 16 | u64 base index |
//! | 24 | u64 term |
//! | 32 | u32 count, u32 body length |
//! | 40 | u64 XXH3-64 of the body, seeded with the cluster |
//! | 48 | u64 digest of the batch before |
//! | 56 | u64 hybrid timestamp |
//! | 64 | payloads back to back; session column (16 B an entry) if flagged; `count` u32 end offsets |

use core::cell::RefCell;
use core::fmt;
use core::ops::RangeInclusive;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{ClusterId, HybridTimestamp, LogId, LogIndex, SessionId, StreamId, Term};

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Largest batch that is built or accepted, header included, in bytes.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Version of the batch layout that this code writes and reads.
pub const BATCH_VERSION: u8 = 1;

const MAGIC: u16 = 0x4b52;
const FLAG_CONTROL: u8 = 1 << 3;
const FLAG_SESSIONS: u8 = 1 << 4;
const FLAGS_KNOWN: u8 = FLAG_CONTROL | FLAG_SESSIONS;
const SESSION_BYTES: usize = 16;
const OFFSET_BYTES: usize = 4;

/// Replies that a group keeps per session, and so the most requests of one session that may be in flight.
pub const SESSION_WINDOW: u64 = 256;
/// Sessions that a group keeps; opening one more expires the one that was used least recently.
pub const SESSIONS_MAX: usize = 4096;

/// One request of a client session: the session and its place in the session's order, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionSeq {
    /// The session, as assigned by the group.
    pub session: SessionId,
    /// From 1, without gaps, per session. A retry carries the same number.
    pub sequence: u64,
}

/// Whether a batch carries the user's commands or the protocol's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// Entries are commands for the state machine.
    Commands,
    /// Entries are records of the protocol itself (no-op, session registration, membership).
    Control,
}

/// What a new batch says of itself beside its entries.
#[derive(Clone, Copy, Debug)]
pub struct BatchMeta {
    /// Identity that seeds the checksums.
    pub cluster: ClusterId,
    /// Stream that the batch is appended to.
    pub stream: StreamId,
    /// Index of its first entry.
    pub base: LogIndex,
    /// Term of all its entries.
    pub term: Term,
    /// [`Batch::digest`] of the batch before, 0 for the first of a stream.
    pub prev_digest: u64,
    /// When the leader or origin built it.
    pub time: HybridTimestamp,
    /// What its entries are.
    pub kind: BatchKind,
}

/// Why bytes are not a batch. Blame: the peer or the disk that they came from; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than a header, or than the header announces.
    #[error("batch is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Not a batch header at all.
    #[error("not a batch: magic {found:#06x}")]
    Magic {
        /// What stood in its place.
        found: u16,
    },
    /// Written by a version of the format that this code does not know.
    #[error("batch format version {found} is not supported (this is version {BATCH_VERSION})")]
    Version {
        /// Version found.
        found: u8,
    },
    /// The header's own checksum does not match: damaged, or of another cluster.
    #[error("batch header checksum does not match")]
    HeaderChecksum,
    /// The body's checksum does not match.
    #[error("batch body checksum does not match at index {base}")]
    BodyChecksum {
        /// First index of the batch.
        base: LogIndex,
    },
    /// The checksums match, yet the content contradicts itself: a bug of the writer, or a hostile peer.
    #[error("batch is malformed: {what}")]
    Malformed {
        /// Which rule is broken.
        what: &'static str,
    },
}

/// A whole batch, header and body. Cheap to clone: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch(Bytes);

thread_local! {
    // Arenas belong to the loop that builds batches, not to the group: one allocation serves thousands of batches, and an
    // idle group keeps none.
    static ARENA: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

const ARENA_BYTES: usize = 256 << 10;

fn le_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn header_crc(cluster: ClusterId, header: &[u8]) -> u32 {
    let seed = (cluster.to_u64() ^ cluster.to_u64() >> 32) as u32;
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&header[4..BATCH_HEADER_BYTES]);
    hasher.finalize()
}

fn body_sum(cluster: ClusterId, body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(body, cluster.to_u64())
}

/// The fixed part of a batch, readable before its body: lengths can be trusted because the header has its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Stream of the batch.
    pub stream: StreamId,
    /// Index of its first entry.
    pub base: LogIndex,
    /// Term of its entries.
    pub term: Term,
    /// Number of entries, at least 1.
    pub count: u32,
    /// Bytes of header and body together.
    pub bytes: usize,
    /// Digest of the batch before.
    pub prev_digest: u64,
    /// This batch's own digest.
    pub digest: u64,
    /// When it was built.
    pub time: HybridTimestamp,
}

impl BatchHeader {
    /// Reads and checks a header; `bytes` may be longer.
    ///
    /// # Errors
    /// Every [`BatchError`] but [`BatchError::BodyChecksum`].
    pub fn read(bytes: &[u8], cluster: ClusterId) -> Result<Self, BatchError> {
        let Some(header) = bytes.get(..BATCH_HEADER_BYTES) else {
            return Err(BatchError::Short { have: bytes.len(), need: BATCH_HEADER_BYTES });
        };
        let magic = le_u16(header, 4);
        if magic != MAGIC {
            return Err(BatchError::Magic { found: magic });
        }
        // The version decides how the rest is read, so it comes before the checksum: a newer format may move it.
        if header[6] != BATCH_VERSION {
            return Err(BatchError::Version { found: header[6] });
        }
        if header_crc(cluster, header) != le_u32(header, 0) {
            return Err(BatchError::HeaderChecksum);
        }
        if header[7] & !FLAGS_KNOWN != 0 {
            return Err(BatchError::Malformed { what: "unknown flags" });
        }
        let count = le_u32(header, 32);
        let base = le_u64(header, 16);
        let body = le_u32(header, 36) as usize;
        if count == 0 {
            return Err(BatchError::Malformed { what: "no entries" });
        }
        if base == 0 || base.checked_add(u64::from(count)).is_none() {
            return Err(BatchError::Malformed { what: "indices out of range" });
        }
        if BATCH_HEADER_BYTES + body > BATCH_BYTES_MAX {
            return Err(BatchError::Malformed { what: "longer than the largest batch" });
        }
        let column = if header[7] & FLAG_SESSIONS == 0 { 0 } else { SESSION_BYTES };
        if (count as usize).saturating_mul(OFFSET_BYTES + column) > body {
            return Err(BatchError::Malformed { what: "more entries than bytes" });
        }
        Ok(Self {
            stream: StreamId::from_u64(le_u64(header, 8)),
            base: LogIndex(base),
            term: Term(le_u64(header, 24)),
            count,
            bytes: BATCH_HEADER_BYTES + body,
            prev_digest: le_u64(header, 48),
            digest: xxhash_rust::xxh3::xxh3_64(header),
            time: HybridTimestamp(le_u64(header, 56)),
        })
    }

    /// The identity of the last entry.
    #[must_use]
    pub const fn last(&self) -> LogId {
        LogId { term: self.term, index: LogIndex(self.base.0 + self.count as u64 - 1) }
    }
}

impl Batch {
    /// Builds a batch from its entries: payloads with, where the client has one, its session.
    ///
    /// The bytes are written once, into the loop's arena; no allocation of its own in steady state.
    ///
    /// # Panics
    /// When there is no entry, or when the batch would be larger than [`BATCH_BYTES_MAX`]: who builds batches keeps both.
    pub fn build<'a, I>(meta: &BatchMeta, entries: I) -> Self
    where
        I: Iterator<Item = (&'a [u8], Option<SessionSeq>)> + Clone,
    {
        let (mut count, mut payload_bytes, mut flags) = (0_usize, 0_usize, 0_u8);
        for (payload, session) in entries.clone() {
            count += 1;
            payload_bytes += payload.len();
            if session.is_some() {
                flags |= FLAG_SESSIONS;
            }
        }
        assert!(count > 0, "a batch holds at least one entry");
        let column = if flags & FLAG_SESSIONS == 0 { 0 } else { SESSION_BYTES };
        let total = BATCH_HEADER_BYTES + payload_bytes + count * (column + OFFSET_BYTES);
        assert!(total <= BATCH_BYTES_MAX, "a batch of {total} bytes is larger than {BATCH_BYTES_MAX}");
        if meta.kind == BatchKind::Control {
            flags |= FLAG_CONTROL;
        }

        ARENA.with_borrow_mut(|arena| {
            if arena.capacity() < total {
                *arena = BytesMut::with_capacity(total.max(ARENA_BYTES));
            }
            let mut header = [0; BATCH_HEADER_BYTES];
            header[4..6].copy_from_slice(&MAGIC.to_le_bytes());
            header[6] = BATCH_VERSION;
            header[7] = flags;
            header[8..16].copy_from_slice(&meta.stream.to_u64().to_le_bytes());
            header[16..24].copy_from_slice(&meta.base.0.to_le_bytes());
            header[24..32].copy_from_slice(&meta.term.0.to_le_bytes());
            header[32..36].copy_from_slice(&(count as u32).to_le_bytes());
            header[36..40].copy_from_slice(&((total - BATCH_HEADER_BYTES) as u32).to_le_bytes());
            header[48..56].copy_from_slice(&meta.prev_digest.to_le_bytes());
            header[56..64].copy_from_slice(&meta.time.0.to_le_bytes());
            arena.put_slice(&header);
            for (payload, _) in entries.clone() {
                arena.put_slice(payload);
            }
            if column > 0 {
                for (_, session) in entries.clone() {
                    let session = session.unwrap_or(SessionSeq { session: SessionId(0), sequence: 0 });
                    arena.put_u64_le(session.session.0);
                    arena.put_u64_le(session.sequence);
                }
            }
            let mut end = 0_u32;
            for (payload, _) in entries {
                end += payload.len() as u32;
                arena.put_u32_le(end);
            }
            let sum = body_sum(meta.cluster, &arena[BATCH_HEADER_BYTES..]);
            arena[40..48].copy_from_slice(&sum.to_le_bytes());
            let crc = header_crc(meta.cluster, &arena[..BATCH_HEADER_BYTES]);
            arena[0..4].copy_from_slice(&crc.to_le_bytes());
            Self(arena.split().freeze())
        })
    }

    /// Takes bytes that came from a peer or a disk, after checking all of them.
    ///
    /// # Errors
    /// [`BatchError`] names what does not hold; nothing is kept.
    pub fn verify(bytes: Bytes, cluster: ClusterId) -> Result<Self, BatchError> {
        let header = BatchHeader::read(&bytes, cluster)?;
        if bytes.len() != header.bytes {
            return Err(BatchError::Short { have: bytes.len(), need: header.bytes });
        }
        if body_sum(cluster, &bytes[BATCH_HEADER_BYTES..]) != le_u64(&bytes, 40) {
            return Err(BatchError::BodyChecksum { base: header.base });
        }
        let batch = Self(bytes);
        let payload_bytes = batch.payload_end() - BATCH_HEADER_BYTES;
        let mut last = 0;
        for offset in batch.0[batch.offsets_start()..].chunks_exact(OFFSET_BYTES) {
            let end = u32::from_le_bytes(offset.try_into().expect("four bytes"));
            if end < last || end as usize > payload_bytes {
                return Err(BatchError::Malformed { what: "entry offsets out of order" });
            }
            last = end;
        }
        if last as usize != payload_bytes {
            return Err(BatchError::Malformed { what: "entries do not fill the payload" });
        }
        Ok(batch)
    }

    /// The batch as it stands on wire and disk.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The stream that it belongs to.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        StreamId::from_u64(le_u64(&self.0, 8))
    }

    /// Index of the first entry.
    #[must_use]
    pub fn base(&self) -> LogIndex {
        LogIndex(le_u64(&self.0, 16))
    }

    /// Term of all entries.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(le_u64(&self.0, 24))
    }

    /// Number of entries, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        le_u32(&self.0, 32)
    }

    /// Identity of the last entry.
    #[must_use]
    pub fn last(&self) -> LogId {
        LogId { term: self.term(), index: LogIndex(self.base().0 + u64::from(self.count()) - 1) }
    }

    /// First to last index.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<LogIndex> {
        self.base()..=self.last().index
    }

    /// [`Batch::digest`] of the batch before it in its stream; 0 for the first.
    #[must_use]
    pub fn prev_digest(&self) -> u64 {
        le_u64(&self.0, 48)
    }

    /// XXH3-64 of the header, which holds the body's checksum and the digest before: equal digests, equal prefix.
    #[must_use]
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0[..BATCH_HEADER_BYTES])
    }

    /// When the leader or origin built it.
    #[must_use]
    pub fn time(&self) -> HybridTimestamp {
        HybridTimestamp(le_u64(&self.0, 56))
    }

    /// Whether its entries are commands or control records.
    #[must_use]
    pub fn kind(&self) -> BatchKind {
        if self.0[7] & FLAG_CONTROL == 0 { BatchKind::Commands } else { BatchKind::Control }
    }

    /// Bytes of header and body.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn offsets_start(&self) -> usize {
        self.0.len() - self.count() as usize * OFFSET_BYTES
    }

    fn has_sessions(&self) -> bool {
        self.0[7] & FLAG_SESSIONS != 0
    }

    fn payload_end(&self) -> usize {
        let column = if self.has_sessions() { self.count() as usize * SESSION_BYTES } else { 0 };
        self.offsets_start() - column
    }

    /// The entries in order, borrowed.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        let payload_end = self.payload_end();
        let offsets_start = self.offsets_start();
        Entries {
            payloads: &self.0[BATCH_HEADER_BYTES..payload_end],
            sessions: &self.0[payload_end..offsets_start],
            offsets: &self.0[offsets_start..],
            start: 0,
            index: self.base(),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} {:?} +{}, {} B)", self.stream(), self.base(), self.count(), self.bytes())
    }
}

/// One entry of a batch, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it stands in its stream.
    pub index: LogIndex,
    /// The command or control record.
    pub payload: &'a [u8],
    /// Whose request it is, when the client has a session.
    pub session: Option<SessionSeq>,
}

/// Iterator over the entries of a batch.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    payloads: &'a [u8],
    sessions: &'a [u8],
    offsets: &'a [u8],
    start: usize,
    index: LogIndex,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    #[inline]
    fn next(&mut self) -> Option<Entry<'a>> {
        let (offset, rest) = self.offsets.split_first_chunk::<OFFSET_BYTES>()?;
        self.offsets = rest;
        let end = u32::from_le_bytes(*offset) as usize;
        let payload = &self.payloads[self.start..end];
        self.start = end;
        let session = self.sessions.split_first_chunk::<SESSION_BYTES>().and_then(|(column, rest)| {
            self.sessions = rest;
            let session = SessionSeq { session: SessionId(le_u64(column, 0)), sequence: le_u64(column, 8) };
            (session.session.0 != 0).then_some(session)
        });
        let index = self.index;
        self.index = index.next();
        Some(Entry { index, payload, session })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.offsets.len() / OFFSET_BYTES;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Batches that ride beside a message's head or answer a log read: one is the common case and needs no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Batches {
    /// None.
    #[default]
    None,
    /// Exactly one.
    One(Batch),
    /// Any number, in stream order.
    Many(Vec<Batch>),
}

impl Batches {
    /// The batches as a slice.
    #[must_use]
    pub fn as_slice(&self) -> &[Batch] {
        match self {
            Self::None => &[],
            Self::One(batch) => core::slice::from_ref(batch),
            Self::Many(batches) => batches,
        }
    }

    /// Adds one at the end.
    pub fn push(&mut self, batch: Batch) {
        *self = match core::mem::take(self) {
            Self::None => Self::One(batch),
            Self::One(first) => Self::Many(vec![first, batch]),
            Self::Many(mut batches) => {
                batches.push(batch);
                Self::Many(batches)
            }
        };
    }

    /// Bytes of all batches.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.as_slice().iter().map(Batch::bytes).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl IntoIterator for Batches {
    type Item = Batch;
    type IntoIter = BatchesIntoIter;

    fn into_iter(self) -> BatchesIntoIter {
        BatchesIntoIter(match self {
            Self::None => Rest::One(None),
            Self::One(batch) => Rest::One(Some(batch)),
            Self::Many(batches) => Rest::Many(batches.into_iter()),
        })
    }
}

impl FromIterator<Batch> for Batches {
    fn from_iter<I: IntoIterator<Item = Batch>>(batches: I) -> Self {
        let mut all = Self::None;
        for batch in batches {
            all.push(batch);
        }
        all
    }
}

/// Owning iterator over [`Batches`].
#[derive(Debug)]
pub struct BatchesIntoIter(Rest);

#[derive(Debug)]
enum Rest {
    One(Option<Batch>),
    Many(std::vec::IntoIter<Batch>),
}

impl Iterator for BatchesIntoIter {
    type Item = Batch;

    #[inline]
    fn next(&mut self) -> Option<Batch> {
        match &mut self.0 {
            Rest::One(one) => one.take(),
            Rest::Many(many) => many.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{GroupId, OriginId};

    fn meta(cluster: ClusterId) -> BatchMeta {
        BatchMeta {
            cluster,
            stream: StreamId { group: GroupId(3), origin: OriginId::CONSENSUS },
            base: LogIndex(10),
            term: Term(2),
            prev_digest: 99,
            time: HybridTimestamp(7 << 16),
            kind: BatchKind::Commands,
        }
    }

    fn session(n: u64) -> Option<SessionSeq> {
        (!n.is_multiple_of(3)).then_some(SessionSeq { session: SessionId(n), sequence: n + 1 })
    }

    proptest! {
        #[test]
        fn what_was_built_is_read_back(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
            with_sessions in any::<bool>(),
        ) {
            let cluster = ClusterId::from_name("test");
            let at = |i: usize| if with_sessions { session(i as u64) } else { None };
            let batch = Batch::build(&meta(cluster), payloads.iter().enumerate().map(|(i, p)| (&p[..], at(i))));
            let read = Batch::verify(batch.as_bytes().clone(), cluster).unwrap();
            prop_assert_eq!(read.base(), LogIndex(10));
            prop_assert_eq!(read.last(), LogId { term: Term(2), index: LogIndex(9 + payloads.len() as u64) });
            prop_assert_eq!(read.prev_digest(), 99);
            prop_assert_eq!(read.time(), HybridTimestamp(7 << 16));
            prop_assert_eq!(read.entries().len(), payloads.len());
            for (i, entry) in read.entries().enumerate() {
                prop_assert_eq!(entry.payload, &payloads[i][..]);
                prop_assert_eq!(entry.session, at(i));
                prop_assert_eq!(entry.index, LogIndex(10 + i as u64));
            }
        }

        #[test]
        fn any_flipped_bit_is_noticed(
            payload in proptest::collection::vec(any::<u8>(), 0..60),
            flip in any::<proptest::sample::Index>(),
        ) {
            let cluster = ClusterId::from_name("test");
            let batch = Batch::build(&meta(cluster), core::iter::once((&payload[..], session(1))));
            let mut bytes = batch.as_bytes().to_vec();
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Batch::verify(bytes.into(), cluster).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let cluster = ClusterId::from_name("test");
            prop_assert!(Batch::verify(bytes.into(), cluster).is_err());
        }
    }

    #[test]
    fn bytes_of_another_cluster_do_not_verify() {
        let batch = Batch::build(&meta(ClusterId::from_name("a")), core::iter::once((&b"x"[..], None)));
        assert_eq!(Batch::verify(batch.as_bytes().clone(), ClusterId::from_name("b")), Err(BatchError::HeaderChecksum));
    }

    #[test]
    fn hostile_counts_and_lengths_are_refused_before_the_body_is_read() {
        let cluster = ClusterId::from_name("test");
        let good = Batch::build(&meta(cluster), core::iter::once((&b"payload"[..], None)));
        for (at, value, what) in [
            (32, 0, "no entries"),
            (32, u32::MAX, "more entries than bytes"),
            (36, u32::MAX, "longer than the largest batch"),
        ] {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = header_crc(cluster, &bytes);
            bytes[0..4].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(BatchHeader::read(&bytes, cluster), Err(BatchError::Malformed { what }));
        }
    }

    #[test]
    fn building_many_batches_shares_arenas() {
        let cluster = ClusterId::from_name("test");
        let batches: Vec<Batch> =
            (0..100).map(|_| Batch::build(&meta(cluster), core::iter::once((&b"12345678"[..], None)))).collect();
        let adjacent = batches
            .windows(2)
            .filter(|pair| {
                pair[0].as_bytes().as_ptr() as usize + pair[0].bytes() == pair[1].as_bytes().as_ptr() as usize
            })
            .count();
        assert!(adjacent >= 98, "only {adjacent} of 99 neighbours lie in one arena");
    }
}
