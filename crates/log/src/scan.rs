//! Reading a segment frame by frame, every checksum verified. Changes nothing.

use bytes::Bytes;
use replikit_core::{Batch, ClusterId, StreamId};

use crate::classify::Slot;
use crate::format::{
    BLOCK_BYTES, DATA_START, FRAME_HEADER_BYTES, FooterEntry, FrameHeader, FrameKind, HeaderFault, LOG_VERSION, Origin,
    Record, SegmentHeader, Small, blocks, frame_digest, read_footer, read_records, zeros,
};
use crate::{Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName, OpenError};

/// Small enough that what was read is still in the processor's cache when it is summed.
const WINDOW_BYTES: usize = 512 << 10;

/// Carries out an operation whose answer is that it was done.
pub(crate) fn run(disk: &mut dyn Disk, op: DiskOp) -> Result<(), DiskError> {
    disk.execute(op).map(drop)
}

/// Attributes a disk error to what was tried.
pub(crate) fn tried<'a>(operation: &'static str, file: &'a FileName) -> impl FnOnce(DiskError) -> OpenError + 'a {
    move |error| OpenError::Disk { operation, file: file.clone(), error }
}

/// An open file, read through a window so that small reads cost no disk operation each.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) file: FileId,
    pub(crate) name: FileName,
    pub(crate) file_bytes: u64,
    base: u64,
    bytes: Bytes,
}

impl Window {
    pub(crate) fn open(disk: &mut dyn Disk, file: FileId, name: &FileName) -> Result<Self, OpenError> {
        match disk.execute(DiskOp::Open { file, name: name.clone() }).map_err(tried("open", name))? {
            DiskAnswer::Opened { bytes } => {
                Ok(Self { file, name: name.clone(), file_bytes: bytes, base: 0, bytes: Bytes::new() })
            }
            other => unreachable!("a disk answered {other:?} to an open"),
        }
    }

    pub(crate) fn at(file: FileId, name: FileName, file_bytes: u64) -> Self {
        Self { file, name, file_bytes, base: 0, bytes: Bytes::new() }
    }

    /// Bytes of the file; fewer where it ends.
    pub(crate) fn get(&mut self, disk: &mut dyn Disk, offset: u64, bytes: usize) -> Result<Bytes, OpenError> {
        let end = (offset + bytes as u64).min(self.file_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        if offset < self.base || end > self.base + self.bytes.len() as u64 {
            // One block more than asked for, so that the header behind a long frame is at hand; what was read before goes first, so that its memory can be used again.
            self.bytes = Bytes::new();
            let op = DiskOp::Read { file: self.file, offset, bytes: (bytes + BLOCK_BYTES as usize).max(WINDOW_BYTES) };
            match disk.execute(op).map_err(tried("read", &self.name))? {
                DiskAnswer::Read(read) => (self.base, self.bytes) = (offset, read),
                other => unreachable!("a disk answered {other:?} to a read"),
            }
        }
        let start = (offset - self.base) as usize;
        let end = (start + bytes).min(self.bytes.len());
        Ok(self.bytes.slice(start.min(end)..end))
    }
}

/// Reads both copies of a segment's header; the second value says where a damaged copy begins.
pub(crate) fn read_header(
    disk: &mut dyn Disk,
    window: &mut Window,
) -> Result<Result<(SegmentHeader, Option<u64>), HeaderFault>, OpenError> {
    let mut copies = [Err(HeaderFault::Damaged); 2];
    for copy in 0..2 {
        let block = window.get(disk, u64::from(copy) * BLOCK_BYTES, BLOCK_BYTES as usize)?;
        copies[copy as usize] = SegmentHeader::read(&block, copy);
    }
    Ok(match copies {
        [Ok(header), Ok(second)] if header == second => Ok((header, None)),
        [Ok(_), Ok(_)] => Err(HeaderFault::Damaged),
        [Ok(header), Err(_)] => Ok((header, Some(BLOCK_BYTES))),
        [Err(_), Ok(header)] => Ok((header, Some(0))),
        [Err(HeaderFault::Newer(version)), Err(_)] | [Err(_), Err(HeaderFault::Newer(version))] => {
            Err(HeaderFault::Newer(version))
        }
        [Err(HeaderFault::Damaged), Err(HeaderFault::Damaged)] => Err(HeaderFault::Damaged),
    })
}

pub(crate) fn newer(file: &FileName, found: u8) -> OpenError {
    OpenError::NewerVersion { file: file.clone(), found, supported: LOG_VERSION }
}

/// A record whose checksums all hold.
#[derive(Clone, Debug)]
pub(crate) enum Checked {
    Small(Small),
    Batch(Batch),
}

/// A frame whose checksums all hold.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) offset: u64,
    pub(crate) digest: u64,
    /// With where each begins, from the start of the frame.
    pub(crate) records: Vec<(u32, Checked)>,
    pub(crate) footer: Vec<FooterEntry>,
    /// The whole frame, without padding.
    pub(crate) bytes: Bytes,
}

/// What stands at a place where a frame may begin.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Frame(Frame),
    /// `header` is there when it is in order itself; `records` are those of its records that can still be told, when their
    /// headers are in order.
    Damaged {
        header: Option<FrameHeader>,
        told: Option<Vec<(u32, Record)>>,
        what: &'static str,
    },
    Zero,
}

fn check(records: Vec<(u32, Record)>, cluster: ClusterId) -> Option<Vec<(u32, Checked)>> {
    let checked = records.into_iter().map(|(at, record)| {
        let checked = match record {
            Record::Small(small) => Checked::Small(small),
            Record::Batch { bytes, .. } => Checked::Batch(Batch::verify(bytes, cluster).ok()?),
        };
        Some((at, checked))
    });
    checked.collect()
}

/// Reads what stands at an offset.
pub(crate) fn look(
    disk: &mut dyn Disk,
    window: &mut Window,
    segment: &SegmentHeader,
    offset: u64,
) -> Result<Found, OpenError> {
    let start = window.get(disk, offset, FRAME_HEADER_BYTES)?;
    let Some(header) = FrameHeader::read(&start, segment, offset) else {
        let block = window.get(disk, offset, BLOCK_BYTES as usize)?;
        return Ok(if block == zeros(block.len()) {
            Found::Zero
        } else {
            Found::Damaged { header: None, told: None, what: "no valid frame begins here" }
        });
    };
    let bytes = window.get(disk, offset, header.bytes as usize)?;
    let damaged = |told, what| Ok(Found::Damaged { header: Some(header), told, what });
    if bytes.len() < header.bytes as usize {
        return damaged(None, "the file ends within the frame");
    }
    let (mut records, mut footer) = (Vec::new(), Vec::new());
    if header.kind == FrameKind::Footer {
        match read_footer(&bytes, &header) {
            Some(entries) => footer = entries,
            None => return damaged(None, "the footer's checksum does not match"),
        }
    } else {
        let Some(told) = read_records(&bytes, &header, segment.cluster) else {
            return damaged(None, "the frame's checksum does not match");
        };
        match check(told, segment.cluster) {
            Some(checked) => records = checked,
            None => {
                let told = read_records(&bytes, &header, segment.cluster);
                return damaged(told, "a batch's checksum does not match");
            }
        }
    }
    Ok(Found::Frame(Frame { header, offset, digest: frame_digest(&bytes), records, footer, bytes }))
}

/// Where the frame behind this one begins.
pub(crate) const fn behind(offset: u64, header: &FrameHeader) -> u64 {
    offset + blocks(header.bytes as u64)
}

/// What stands from an offset to the end of a segment, block by block where no frame is in order; runs of equal slots are
/// one. Returns the slots with their offsets, the first damaged frame's told records, the registers of a copy of frame
/// `copy_of`, and where the last block that is not zero ends.
pub(crate) fn rest(
    disk: &mut dyn Disk,
    window: &mut Window,
    segment: &SegmentHeader,
    from: u64,
) -> Result<Rest, OpenError> {
    let mut rest = Rest { slots: Vec::new(), first: None, copies: Vec::new(), streams: Vec::new(), end: from };
    let mut offset = from.max(DATA_START);
    while offset < segment.capacity_bytes.min(window.file_bytes) {
        let found = look(disk, window, segment, offset)?;
        let (slot, next) = match &found {
            Found::Zero => (Slot::Zero, offset + BLOCK_BYTES),
            Found::Damaged { header, .. } => {
                (Slot::Damaged { durable: header.map_or(0, |header| header.durable) }, offset + BLOCK_BYTES)
            }
            Found::Frame(frame) => {
                let FrameHeader { seq, durable, .. } = frame.header;
                let slot = match frame.header.kind {
                    FrameKind::Start | FrameKind::Group => Slot::Good { seq, durable },
                    FrameKind::Copy => Slot::Copy { seq, durable },
                    FrameKind::Footer => Slot::Footer { seq },
                };
                (slot, behind(offset, &frame.header))
            }
        };
        if slot != Slot::Zero {
            rest.end = next;
        }
        if rest.slots.last().is_none_or(|(_, last)| *last != slot || !matches!(slot, Slot::Zero | Slot::Damaged { .. }))
        {
            rest.slots.push((offset, slot));
        }
        if let Found::Frame(frame) = &found {
            rest.streams.extend(frame.records.iter().filter_map(|(_, record)| match record {
                Checked::Batch(batch) => Some(batch.stream()),
                Checked::Small(_) => None,
            }));
        }
        match found {
            Found::Frame(frame) if frame.header.kind == FrameKind::Copy => rest.copies.push(frame),
            found if rest.first.is_none() => rest.first = Some(found),
            _ => {}
        }
        offset = next;
    }
    // A recycled file holds bytes of an earlier life. Behind each group stands a zero block; what comes after it is stale.
    if segment.origin == Origin::Recycled && rest.slots.first().is_some_and(|(_, slot)| *slot == Slot::Zero) {
        for (_, slot) in &mut rest.slots {
            if *slot == (Slot::Damaged { durable: 0 }) {
                *slot = Slot::Zero;
            }
        }
    }
    Ok(rest)
}

/// See [`rest`].
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) slots: Vec<(u64, Slot)>,
    /// What stands first.
    pub(crate) first: Option<Found>,
    /// Copies of registers that are in order.
    pub(crate) copies: Vec<Frame>,
    /// Of batches in frames that are in order.
    pub(crate) streams: Vec<StreamId>,
    /// Where the last block that is not zero ends.
    pub(crate) end: u64,
}
