//! The bytes of a segment: header, frames, records. `docs/log-format.md` gives them byte by byte.
//!
//! Invariant: every checksum that says "these bytes belong here" is seeded with the cluster, the segment's uuid and the
//! offset in the file, so that foreign, misplaced or recycled bytes never verify. The content sum of a frame covers small
//! records whole and batches by their headers; a batch header in turn holds its body's checksum, so every byte is summed
//! once. Source: Alagappan et al., FAST'18; Ganesan et al., FAST'17.

use bytes::{BufMut, Bytes};
use replikit_core::{
    BATCH_HEADER_BYTES, Batch, BatchHeader, ClusterId, GroupId, LogIndex, NodeId, OriginId, StreamId, Term,
};

/// Version of the file formats that this code writes, and the newest that it reads.
pub const LOG_VERSION: u8 = 1;

pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Where frames begin: behind two copies of the header.
pub(crate) const DATA_START: u64 = 2 * BLOCK_BYTES;
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
pub(crate) const SMALL_HEADER_BYTES: usize = 16;
pub(crate) const FOOTER_ENTRY_BYTES: usize = 40;

const SEGMENT_MAGIC: u16 = u16::from_le_bytes(*b"RS");
const FRAME_MAGIC: u16 = u16::from_le_bytes(*b"RF");
const SMALL_MAGIC: u16 = u16::from_le_bytes(*b"RR");
const FLAG_RECYCLED: u8 = 1;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Zero bytes that cost nothing; at most [`ZEROS_BYTES_MAX`].
pub(crate) fn zeros(bytes: usize) -> Bytes {
    Bytes::from_static(&ZEROS[..bytes])
}

pub(crate) const ZEROS_BYTES_MAX: usize = ZEROS.len();

/// Rounded up to whole blocks.
pub(crate) const fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

pub(crate) fn le_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// A seed from what a piece of a file belongs to.
pub(crate) fn seed(parts: [u64; 3]) -> u64 {
    let mut bytes = [0; 24];
    for (at, part) in parts.into_iter().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&part.to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// How a segment's file came to be: decides what stands behind its last group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Filled with zeros: the first block behind the last group is zero by itself.
    Zeroed,
    /// Holds groups of an earlier life: a zero block is written behind each group.
    Recycled,
}

/// What a segment says of itself, twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// From 1; part of the file's name.
    pub(crate) number: u64,
    /// Never the same twice in one directory, whatever becomes of the file.
    pub(crate) uuid: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) origin: Origin,
}

/// Why a copy of a header does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Newer(u8),
    Damaged,
}

impl SegmentHeader {
    /// One block per copy; `copy` is 0 or 1.
    pub(crate) fn encode(&self, copy: u32) -> Bytes {
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[4..6].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
        block[6] = LOG_VERSION;
        block[7] = if self.origin == Origin::Recycled { FLAG_RECYCLED } else { 0 };
        block[8..16].copy_from_slice(&self.cluster.to_u64().to_le_bytes());
        block[16..20].copy_from_slice(&self.node.0.to_le_bytes());
        block[24..32].copy_from_slice(&self.number.to_le_bytes());
        block[32..40].copy_from_slice(&self.uuid.to_le_bytes());
        block[40..48].copy_from_slice(&self.capacity_bytes.to_le_bytes());
        let crc = crc(copy, &block[4..64]);
        block[0..4].copy_from_slice(&crc.to_le_bytes());
        block.into()
    }

    pub(crate) fn read(block: &[u8], copy: u32) -> Result<Self, HeaderFault> {
        let Some(header) = block.get(..64) else { return Err(HeaderFault::Damaged) };
        if le_u16(header, 4) != SEGMENT_MAGIC {
            return Err(HeaderFault::Damaged);
        }
        // Every version has its checksum here, over these bytes: a rotted version is damage, not a version.
        if crc(copy, &header[4..]) != le_u32(header, 0) {
            return Err(HeaderFault::Damaged);
        }
        if header[6] > LOG_VERSION {
            return Err(HeaderFault::Newer(header[6]));
        }
        if header[6] != LOG_VERSION || header[7] & !FLAG_RECYCLED != 0 {
            return Err(HeaderFault::Damaged);
        }
        Ok(Self {
            cluster: ClusterId::from_u64(le_u64(header, 8)),
            node: NodeId(le_u32(header, 16)),
            number: le_u64(header, 24),
            uuid: le_u64(header, 32),
            capacity_bytes: le_u64(header, 40),
            origin: if header[7] & FLAG_RECYCLED == 0 { Origin::Zeroed } else { Origin::Recycled },
        })
    }

    pub(crate) fn frame_seed(&self, offset: u64) -> u32 {
        seed([self.cluster.to_u64(), self.uuid, offset]) as u32
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// First of a segment: the link to the one before, all registers, all streams.
    Start = 1,
    /// What one write and fsync covers.
    Group = 2,
    /// The registers of the group before, a second time, in sectors of their own.
    Copy = 3,
    /// Where the batches of a sealed segment stand.
    Footer = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    /// Start and group frames count up by one through all segments; a copy or a footer bears the number before it.
    pub(crate) seq: u64,
    /// What a returned fsync covered when this frame was encoded.
    pub(crate) durable: u64,
    /// Header and records, without the padding to whole blocks.
    pub(crate) bytes: u32,
    pub(crate) records: u32,
    pub(crate) content_sum: u64,
    /// Digest of the start or group frame before.
    pub(crate) prev_digest: u64,
}

impl FrameHeader {
    pub(crate) fn encode(&self, segment: &SegmentHeader, offset: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut header = [0; FRAME_HEADER_BYTES];
        header[4..6].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        header[6] = LOG_VERSION;
        header[7] = self.kind as u8;
        header[8..16].copy_from_slice(&segment.uuid.to_le_bytes());
        header[16..24].copy_from_slice(&self.seq.to_le_bytes());
        header[24..32].copy_from_slice(&self.durable.to_le_bytes());
        header[32..36].copy_from_slice(&self.bytes.to_le_bytes());
        header[36..40].copy_from_slice(&self.records.to_le_bytes());
        header[40..48].copy_from_slice(&self.content_sum.to_le_bytes());
        header[48..56].copy_from_slice(&self.prev_digest.to_le_bytes());
        let crc = crc(segment.frame_seed(offset), &header[4..]);
        header[0..4].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// The header, when these bytes are one that was written right here.
    pub(crate) fn read(bytes: &[u8], segment: &SegmentHeader, offset: u64) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER_BYTES)?;
        if le_u16(header, 4) != FRAME_MAGIC || header[6] != LOG_VERSION || le_u64(header, 8) != segment.uuid {
            return None;
        }
        if crc(segment.frame_seed(offset), &header[4..]) != le_u32(header, 0) {
            return None;
        }
        let kind = match header[7] {
            1 => FrameKind::Start,
            2 => FrameKind::Group,
            3 => FrameKind::Copy,
            4 => FrameKind::Footer,
            _ => return None,
        };
        let bytes = le_u32(header, 32);
        if (bytes as usize) < FRAME_HEADER_BYTES || offset + blocks(u64::from(bytes)) > segment.capacity_bytes {
            return None;
        }
        Some(Self {
            kind,
            seq: le_u64(header, 16),
            durable: le_u64(header, 24),
            bytes,
            records: le_u32(header, 36),
            content_sum: le_u64(header, 40),
            prev_digest: le_u64(header, 48),
        })
    }
}

/// Chains frames: a start or group frame names the digest of the one before.
pub(crate) fn frame_digest(header: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&header[..FRAME_HEADER_BYTES])
}

/// The first record of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Number of the segment before; 0 for the first of a log.
    pub(crate) prev_number: u64,
    pub(crate) prev_uuid: u64,
    /// Where the content of the segment before ends; what stands behind is void.
    pub(crate) prev_end: u64,
    /// How often the log was opened.
    pub(crate) starts: u64,
    /// How many of these starts found it not closed.
    pub(crate) incarnation: u32,
    /// Segments below this number are not needed.
    pub(crate) oldest: u64,
    /// Number of the next append over all streams.
    pub(crate) order: u64,
}

/// A small record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Small {
    Link(Link),
    /// The latest wins.
    Register {
        group: GroupId,
        bytes: Bytes,
    },
    /// Everything of the stream at and above this index is void.
    Truncate {
        stream: StreamId,
        from: LogIndex,
    },
    /// The stream is void; this is its next index.
    Reset {
        stream: StreamId,
        next: LogIndex,
    },
    /// Batches wholly below this index are void.
    Release {
        stream: StreamId,
        before: LogIndex,
    },
    /// State of a stream, carried into a new segment.
    Stream {
        stream: StreamId,
        first: LogIndex,
        next: LogIndex,
    },
    /// The next record is a batch that stood further back, appended under this number; not a new append.
    Forward {
        stream: StreamId,
        order: u64,
    },
    /// Segments below this number are not needed any more.
    Oldest {
        number: u64,
    },
    /// The stream's tail was cut at an opening, and no register of its group was written since.
    Cut {
        stream: StreamId,
    },
    /// The group's snapshot of this number, or a later one, is needed: what it holds may have been released.
    Snapshot {
        group: GroupId,
        number: u64,
    },
    /// The log was closed in good order. Means so only as the last record of all.
    Close,
}

fn group_key(group: GroupId) -> StreamId {
    StreamId { group, origin: OriginId(0) }
}

impl Small {
    /// Appends the record, without padding.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        let mut fixed = [0; 56];
        let mut put = |values: &[u64]| {
            for (at, value) in values.iter().enumerate() {
                fixed[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            values.len() * 8
        };
        let none = StreamId::default();
        let (kind, stream, payload) = match self {
            Self::Link(link) => {
                let Link { prev_number, prev_uuid, prev_end, starts, incarnation, oldest, order } = *link;
                (1, none, put(&[prev_number, prev_uuid, prev_end, starts, u64::from(incarnation), oldest, order]))
            }
            Self::Register { group, .. } => (2, group_key(*group), 0),
            Self::Truncate { stream, from } => (3, *stream, put(&[from.0])),
            Self::Reset { stream, next } => (4, *stream, put(&[next.0])),
            Self::Release { stream, before } => (5, *stream, put(&[before.0])),
            Self::Stream { stream, first, next } => (6, *stream, put(&[first.0, next.0])),
            Self::Forward { stream, order } => (7, *stream, put(&[*order])),
            Self::Oldest { number } => (8, none, put(&[*number])),
            Self::Close => (9, none, 0),
            Self::Cut { stream } => (10, *stream, 0),
            Self::Snapshot { group, number } => (11, group_key(*group), put(&[*number])),
        };
        let payload = if let Self::Register { bytes, .. } = self { &bytes[..] } else { &fixed[..payload] };
        out.put_u32_le(payload.len() as u32);
        out.put_u16_le(SMALL_MAGIC);
        out.put_u8(kind);
        out.put_u8(0);
        out.put_u64_le(stream.to_u64());
        out.put_slice(payload);
    }

    fn read(kind: u8, stream: StreamId, payload: &Bytes) -> Option<Self> {
        let values = |count: usize| (payload.len() == count * 8).then_some(());
        let at = |index: usize| le_u64(payload, index * 8);
        Some(match kind {
            1 => {
                values(7)?;
                Self::Link(Link {
                    prev_number: at(0),
                    prev_uuid: at(1),
                    prev_end: at(2),
                    starts: at(3),
                    incarnation: u32::try_from(at(4)).ok()?,
                    oldest: at(5),
                    order: at(6),
                })
            }
            2 => Self::Register { group: stream.group, bytes: payload.clone() },
            3 => values(1).map(|()| Self::Truncate { stream, from: LogIndex(at(0)) })?,
            4 => values(1).map(|()| Self::Reset { stream, next: LogIndex(at(0)) })?,
            5 => values(1).map(|()| Self::Release { stream, before: LogIndex(at(0)) })?,
            6 => values(2).map(|()| Self::Stream { stream, first: LogIndex(at(0)), next: LogIndex(at(1)) })?,
            7 => values(1).map(|()| Self::Forward { stream, order: at(0) })?,
            8 => values(1).map(|()| Self::Oldest { number: at(0) })?,
            9 => values(0).map(|()| Self::Close)?,
            10 => values(0).map(|()| Self::Cut { stream })?,
            11 => values(1).map(|()| Self::Snapshot { group: stream.group, number: at(0) })?,
            _ => return None,
        })
    }
}

/// A record as it stands in a frame.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Small(Small),
    /// A batch whose header is in order; its body is not checked yet.
    Batch {
        header: BatchHeader,
        bytes: Bytes,
    },
}

/// Reads the records of a whole frame (header included): where each begins, and what it is. `None` when the content sum does
/// not match or a record makes no sense; bodies of batches are not looked at.
pub(crate) fn read_records(frame: &Bytes, header: &FrameHeader, cluster: ClusterId) -> Option<Vec<(u32, Record)>> {
    let mut records = Vec::with_capacity((header.records as usize).min(frame.len() / SMALL_HEADER_BYTES));
    let mut sum = xxhash_rust::xxh3::Xxh3::new();
    let mut at = FRAME_HEADER_BYTES;
    for _ in 0..header.records {
        let rest = frame.get(at..)?;
        if rest.len() < SMALL_HEADER_BYTES {
            return None;
        }
        let (record, bytes) = if le_u16(rest, 4) == SMALL_MAGIC {
            let bytes = SMALL_HEADER_BYTES.checked_add(le_u32(rest, 0) as usize)?;
            sum.update(rest.get(..bytes)?);
            let payload = frame.slice(at + SMALL_HEADER_BYTES..at + bytes);
            (Record::Small(Small::read(rest[6], StreamId::from_u64(le_u64(rest, 8)), &payload)?), bytes)
        } else {
            let header = BatchHeader::read(rest, cluster).ok()?;
            sum.update(&rest[..BATCH_HEADER_BYTES]);
            if header.bytes > rest.len() {
                return None;
            }
            (Record::Batch { header, bytes: frame.slice(at..at + header.bytes) }, header.bytes)
        };
        records.push((at as u32, record));
        at = (at + bytes).next_multiple_of(8).min(frame.len());
    }
    (at == frame.len() && sum.digest() == header.content_sum).then_some(records)
}

/// Where a batch stands in a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) stream: StreamId,
    pub(crate) base: LogIndex,
    pub(crate) term: Term,
    pub(crate) count: u32,
    pub(crate) bytes: u32,
    /// From the start of the file.
    pub(crate) offset: u64,
}

impl FooterEntry {
    pub(crate) fn of(batch: &Batch, offset: u64) -> Self {
        Self {
            stream: batch.stream(),
            base: batch.base(),
            term: batch.term(),
            count: batch.count(),
            bytes: batch.bytes() as u32,
            offset,
        }
    }

    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        out.put_u64_le(self.stream.to_u64());
        out.put_u64_le(self.base.0);
        out.put_u64_le(self.term.0);
        out.put_u32_le(self.count);
        out.put_u32_le(self.bytes);
        out.put_u64_le(self.offset);
    }

    fn read(bytes: &[u8]) -> Self {
        Self {
            stream: StreamId::from_u64(le_u64(bytes, 0)),
            base: LogIndex(le_u64(bytes, 8)),
            term: Term(le_u64(bytes, 16)),
            count: le_u32(bytes, 24),
            bytes: le_u32(bytes, 28),
            offset: le_u64(bytes, 32),
        }
    }

    pub(crate) const fn last(&self) -> LogIndex {
        LogIndex(self.base.0 + self.count as u64 - 1)
    }
}

/// Bytes that the footer of a segment with this many batches takes.
pub(crate) const fn footer_bytes(entries: usize) -> u64 {
    blocks((FRAME_HEADER_BYTES + entries * FOOTER_ENTRY_BYTES) as u64)
}

/// Reads the entries of a whole footer frame; `None` when they do not match their sum.
pub(crate) fn read_footer(frame: &[u8], header: &FrameHeader) -> Option<Vec<FooterEntry>> {
    let entries = &frame[FRAME_HEADER_BYTES..];
    if entries.len() != header.records as usize * FOOTER_ENTRY_BYTES
        || xxhash_rust::xxh3::xxh3_64(entries) != header.content_sum
    {
        return None;
    }
    Some(entries.chunks_exact(FOOTER_ENTRY_BYTES).map(FooterEntry::read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentHeader {
        SegmentHeader {
            cluster: ClusterId::from_name("test"),
            node: NodeId(3),
            number: 9,
            uuid: 0x1234_5678_9abc_def0,
            capacity_bytes: 1 << 20,
            origin: Origin::Recycled,
        }
    }

    #[test]
    fn segment_headers_are_read_back_and_a_copy_in_the_wrong_place_is_not() {
        let block = segment().encode(1);
        assert_eq!(SegmentHeader::read(&block, 1), Ok(segment()));
        assert_eq!(SegmentHeader::read(&block, 0), Err(HeaderFault::Damaged));
        let mut newer = block.to_vec();
        newer[6] = 2;
        assert_eq!(SegmentHeader::read(&newer, 1), Err(HeaderFault::Damaged), "the checksum tells a rotted version");
        let sum = crc(1, &newer[4..64]);
        newer[..4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(SegmentHeader::read(&newer, 1), Err(HeaderFault::Newer(2)));
    }

    #[test]
    fn a_frame_verifies_only_where_it_was_written() {
        let header = FrameHeader {
            kind: FrameKind::Group,
            seq: 7,
            durable: 6,
            bytes: 100,
            records: 2,
            content_sum: 8,
            prev_digest: 9,
        };
        let bytes = header.encode(&segment(), 8192);
        assert_eq!(FrameHeader::read(&bytes, &segment(), 8192), Some(header));
        assert_eq!(FrameHeader::read(&bytes, &segment(), 12_288), None, "misplaced");
        let recycled = SegmentHeader { uuid: 5, ..segment() };
        assert_eq!(FrameHeader::read(&bytes, &recycled, 8192), None, "of the file's earlier life");
        let foreign = SegmentHeader { cluster: ClusterId::from_name("other"), ..segment() };
        assert_eq!(FrameHeader::read(&bytes, &foreign, 8192), None, "of another cluster");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::read(&flipped, &segment(), 8192), None, "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_of_small_records_are_those_of_version_1() {
        let stream = StreamId { group: GroupId(4), origin: OriginId(5) };
        let link = Link { prev_number: 1, prev_uuid: 2, prev_end: 3, starts: 4, incarnation: 5, oldest: 6, order: 7 };
        for (small, hex) in [
            (
                Small::Link(link),
                "3800000052520100 0000000000000000 0100000000000000 0200000000000000 0300000000000000 \
                 0400000000000000 0500000000000000 0600000000000000 0700000000000000",
            ),
            (
                Small::Register { group: GroupId(4), bytes: Bytes::from_static(b"abc") },
                "0300000052520200 0000000004000000 616263",
            ),
            (Small::Truncate { stream, from: LogIndex(9) }, "0800000052520300 0500000004000000 0900000000000000"),
            (Small::Reset { stream, next: LogIndex(9) }, "0800000052520400 0500000004000000 0900000000000000"),
            (Small::Release { stream, before: LogIndex(9) }, "0800000052520500 0500000004000000 0900000000000000"),
            (
                Small::Stream { stream, first: LogIndex(8), next: LogIndex(9) },
                "1000000052520600 0500000004000000 0800000000000000 0900000000000000",
            ),
            (Small::Forward { stream, order: 9 }, "0800000052520700 0500000004000000 0900000000000000"),
            (Small::Oldest { number: 9 }, "0800000052520800 0000000000000000 0900000000000000"),
            (Small::Close, "0000000052520900 0000000000000000"),
            (Small::Cut { stream }, "0000000052520a00 0500000004000000"),
            (Small::Snapshot { group: GroupId(4), number: 9 }, "0800000052520b00 0000000004000000 0900000000000000"),
        ] {
            let mut bytes = Vec::new();
            small.encode(&mut bytes);
            let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(written, hex.replace(' ', ""), "{small:?}");
        }
    }

    #[test]
    fn small_records_are_read_back() {
        let stream = StreamId { group: GroupId(4), origin: OriginId::LOCAL };
        let link = Link { prev_number: 1, prev_uuid: 2, prev_end: 3, starts: 4, incarnation: 5, oldest: 6, order: 7 };
        for small in [
            Small::Link(link),
            Small::Register { group: GroupId(4), bytes: Bytes::from_static(b"vote") },
            Small::Truncate { stream, from: LogIndex(1) },
            Small::Reset { stream, next: LogIndex(2) },
            Small::Release { stream, before: LogIndex(3) },
            Small::Stream { stream, first: LogIndex(4), next: LogIndex(5) },
            Small::Forward { stream, order: 6 },
            Small::Oldest { number: 7 },
            Small::Close,
            Small::Cut { stream },
            Small::Snapshot { group: GroupId(4), number: 8 },
        ] {
            let mut bytes = Vec::new();
            small.encode(&mut bytes);
            let payload = Bytes::copy_from_slice(&bytes[SMALL_HEADER_BYTES..]);
            assert_eq!(Small::read(bytes[6], StreamId::from_u64(le_u64(&bytes, 8)), &payload), Some(small));
        }
    }
}
