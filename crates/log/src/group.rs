//! The group being filled: what the next write and fsync will cover.
//!
//! Batches of up to 4 KiB are copied into one buffer, larger ones are gathered as they lie: a copy of that size costs less
//! than another element of the gathered write.

use bytes::{BufMut, Bytes, BytesMut};
use replikit_core::{BATCH_HEADER_BYTES, Batch, WriteId};

use crate::format::{
    BLOCK_BYTES, FRAME_HEADER_BYTES, FooterEntry, FrameHeader, FrameKind, Origin, SMALL_HEADER_BYTES, SegmentHeader,
    Small, blocks, frame_digest, zeros,
};

const COPY_BYTES_MAX: usize = 4 << 10;
const ARENA_BYTES: usize = 256 << 10;

/// A frame's records, being gathered.
#[derive(Debug, Default)]
pub(crate) struct Body {
    buffers: Vec<Bytes>,
    scratch: BytesMut,
    /// What the content sum is taken over.
    summed: Vec<u8>,
    /// With the frame's header.
    bytes: usize,
    records: u32,
}

impl Body {
    /// `reserved` buffers are left free in front.
    fn begin(&mut self, reserved: usize) {
        self.buffers.clear();
        self.buffers.resize(reserved, Bytes::new());
        self.scratch.clear();
        self.summed.clear();
        self.bytes = FRAME_HEADER_BYTES;
        self.records = 0;
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn make_room(&mut self, bytes: usize) {
        if self.scratch.capacity() - self.scratch.len() >= bytes {
            return;
        }
        self.flush();
        if !self.scratch.try_reclaim(bytes) {
            self.scratch = BytesMut::with_capacity(bytes.max(ARENA_BYTES));
        }
    }

    fn flush(&mut self) {
        if !self.scratch.is_empty() {
            self.buffers.push(self.scratch.split().freeze());
        }
    }

    fn pad(&mut self) {
        let padded = self.bytes.next_multiple_of(8);
        self.scratch.put_bytes(0, padded - self.bytes);
        self.bytes = padded;
    }

    pub(crate) fn small(&mut self, small: &Small) {
        self.make_room(SMALL_HEADER_BYTES + 512);
        self.pad();
        let start = self.scratch.len();
        small.encode(&mut self.scratch);
        self.summed.extend_from_slice(&self.scratch[start..]);
        self.bytes += self.scratch.len() - start;
        self.records += 1;
    }

    /// Where the batch begins in the frame.
    fn batch(&mut self, batch: &Batch) -> u32 {
        let bytes = batch.as_bytes();
        self.make_room(8 + if bytes.len() <= COPY_BYTES_MAX { bytes.len() } else { 0 });
        self.pad();
        let at = self.bytes as u32;
        self.summed.extend_from_slice(&bytes[..BATCH_HEADER_BYTES]);
        if bytes.len() <= COPY_BYTES_MAX {
            self.scratch.put_slice(bytes);
        } else {
            self.flush();
            self.buffers.push(bytes.clone());
        }
        self.bytes += bytes.len();
        self.records += 1;
        at
    }

    /// Closes the frame: returns its header, and fills the last block with zeros.
    fn close(
        &mut self,
        segment: &SegmentHeader,
        offset: u64,
        chain: Chain,
        kind: FrameKind,
    ) -> [u8; FRAME_HEADER_BYTES] {
        let header = FrameHeader {
            kind,
            seq: chain.seq,
            durable: chain.durable,
            bytes: u32::try_from(self.bytes).expect("a frame is smaller than 4 GiB"),
            records: self.records,
            content_sum: xxhash_rust::xxh3::xxh3_64(&self.summed),
            prev_digest: chain.prev_digest,
        };
        self.flush();
        let padding = blocks(self.bytes as u64) as usize - self.bytes;
        if padding > 0 {
            self.buffers.push(zeros(padding));
        }
        header.encode(segment, offset)
    }
}

/// A frame's place in the chain of frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) seq: u64,
    pub(crate) durable: u64,
    pub(crate) prev_digest: u64,
}

/// Records as they stand in another frame.
#[derive(Debug, Default)]
pub(crate) struct Verbatim {
    pub(crate) bytes: Bytes,
    /// What the content sum is taken over.
    pub(crate) summed: Vec<u8>,
    pub(crate) count: u32,
}

/// Builds a whole frame of small records: a start frame, or a copy of registers.
pub(crate) fn small_frame<'a>(
    segment: &SegmentHeader,
    offset: u64,
    chain: Chain,
    kind: FrameKind,
    records: impl Iterator<Item = &'a Small>,
) -> Bytes {
    copied_frame(segment, offset, chain, kind, Verbatim::default(), records)
}

/// Builds a whole frame of records from another frame and small records behind them.
pub(crate) fn copied_frame<'a>(
    segment: &SegmentHeader,
    offset: u64,
    chain: Chain,
    kind: FrameKind,
    verbatim: Verbatim,
    records: impl Iterator<Item = &'a Small>,
) -> Bytes {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    bytes.extend_from_slice(&verbatim.bytes);
    let mut summed = verbatim.summed;
    let mut count = verbatim.count;
    for record in records {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let start = bytes.len();
        record.encode(&mut bytes);
        summed.extend_from_slice(&bytes[start..]);
        count += 1;
    }
    let header = FrameHeader {
        kind,
        seq: chain.seq,
        durable: chain.durable,
        bytes: u32::try_from(bytes.len()).expect("a frame is smaller than 4 GiB"),
        records: count,
        content_sum: xxhash_rust::xxh3::xxh3_64(&summed),
        prev_digest: chain.prev_digest,
    };
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(segment, offset));
    bytes.resize(blocks(bytes.len() as u64) as usize, 0);
    bytes.into()
}

/// The footer frame of a segment.
pub(crate) fn footer_frame(segment: &SegmentHeader, offset: u64, chain: Chain, entries: &[FooterEntry]) -> Bytes {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    for entry in entries {
        entry.encode(&mut bytes);
    }
    let header = FrameHeader {
        kind: FrameKind::Footer,
        seq: chain.seq,
        durable: chain.durable,
        bytes: u32::try_from(bytes.len()).expect("a frame is smaller than 4 GiB"),
        records: entries.len() as u32,
        content_sum: xxhash_rust::xxh3::xxh3_64(&bytes[FRAME_HEADER_BYTES..]),
        prev_digest: chain.prev_digest,
    };
    bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(segment, offset));
    bytes.resize(blocks(bytes.len() as u64) as usize, 0);
    bytes.into()
}

const START: usize = 0;
const HEADER: usize = 1;

/// The group that takes in what is persisted while another is being written.
#[derive(Debug)]
pub(crate) struct Filling {
    /// Number of this group since the log was opened.
    pub(crate) place: u64,
    pub(crate) body: Body,
    /// Records that stand in the copy as well.
    registers: Vec<Small>,
    copy_bytes: usize,
    pub(crate) footer: Vec<FooterEntry>,
    pub(crate) live_bytes: u64,
    /// The newest action that the group makes durable.
    pub(crate) last: WriteId,
    /// Appends in it; copies of older batches do not count.
    pub(crate) appends: u64,
    /// Whether anything waits for this group; if not, it waits for company.
    pub(crate) urgent: bool,
}

impl Filling {
    pub(crate) fn new(place: u64) -> Self {
        let mut body = Body::default();
        body.begin(2);
        Self {
            place,
            body,
            registers: Vec::new(),
            copy_bytes: 0,
            footer: Vec::new(),
            live_bytes: 0,
            last: WriteId(0),
            appends: 0,
            urgent: false,
        }
    }

    /// Begins the next group, with a vector that a write has given back.
    pub(crate) fn begin(&mut self, buffers: Vec<Bytes>) {
        self.place += 1;
        self.body.buffers = buffers;
        self.body.begin(2);
        self.registers.clear();
        self.copy_bytes = 0;
        self.footer.clear();
        self.live_bytes = 0;
        self.appends = 0;
        self.urgent = false;
    }

    pub(crate) fn small(&mut self, small: Small) {
        self.body.small(&small);
        if let Small::Register { bytes, .. } = &small {
            if self.copy_bytes == 0 {
                self.copy_bytes = FRAME_HEADER_BYTES;
            }
            self.copy_bytes = self.copy_bytes.next_multiple_of(8) + SMALL_HEADER_BYTES + bytes.len();
            self.registers.push(small);
        }
    }

    pub(crate) fn batch(&mut self, batch: &Batch) -> u32 {
        let at = self.body.batch(batch);
        self.live_bytes += batch.bytes() as u64;
        self.footer.push(FooterEntry::of(batch, u64::from(at)));
        at
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.body.records == 0
    }

    /// Bytes that it takes in a segment.
    pub(crate) fn disk_bytes(&self) -> u64 {
        blocks(self.body.bytes as u64) + blocks(self.copy_bytes as u64)
    }

    /// Turns it into what is to be written at an offset. `start` goes in front and is not counted in the offset. Returns the
    /// buffers and the group's digest.
    pub(crate) fn close(
        &mut self,
        segment: &SegmentHeader,
        offset: u64,
        chain: Chain,
        start: Option<Bytes>,
    ) -> (Vec<Bytes>, u64) {
        let header = self.body.close(segment, offset, chain, FrameKind::Group);
        let digest = frame_digest(&header);
        self.body.make_room(FRAME_HEADER_BYTES);
        self.body.scratch.put_slice(&header);
        self.body.buffers[HEADER] = self.body.scratch.split().freeze();
        if let Some(start) = start {
            self.body.buffers[START] = start;
        }
        if !self.registers.is_empty() {
            let at = offset + blocks(self.body.bytes as u64);
            let copy = small_frame(segment, at, chain, FrameKind::Copy, self.registers.iter());
            self.body.buffers.push(copy);
        }
        if segment.origin == Origin::Recycled && offset + self.disk_bytes() < segment.capacity_bytes {
            self.body.buffers.push(zeros(BLOCK_BYTES as usize));
        }
        (core::mem::take(&mut self.body.buffers), digest)
    }
}
