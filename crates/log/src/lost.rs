//! Files that keep the suffix of a stream that another leader's log replaced. Nothing that may have been acknowledged is
//! erased silently; the log itself never reads these files again.

use core::ops::RangeInclusive;
use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::{Batch, ClusterId, LogIndex, NodeId, StreamId, Term};

use crate::format::{LOG_VERSION, crc, le_u16, le_u32, le_u64};
use crate::snapshot::unfinished_name;
use crate::state::Entry;
use crate::{DiskOp, FileId, FileName};

const MAGIC: u16 = u16::from_le_bytes(*b"RL");
const HEADER_BYTES: usize = 64;
const WRITE_BYTES_MAX: usize = 1 << 20;

/// What a lost file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LostHeader {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) stream: StreamId,
    pub(crate) term: Term,
    pub(crate) range: RangeInclusive<LogIndex>,
}

impl LostHeader {
    fn encode(&self) -> Bytes {
        let mut header = [0; HEADER_BYTES];
        header[4..6].copy_from_slice(&MAGIC.to_le_bytes());
        header[6] = LOG_VERSION;
        header[8..16].copy_from_slice(&self.cluster.to_u64().to_le_bytes());
        header[16..20].copy_from_slice(&self.node.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.stream.to_u64().to_le_bytes());
        header[32..40].copy_from_slice(&self.term.0.to_le_bytes());
        header[40..48].copy_from_slice(&self.range.start().0.to_le_bytes());
        header[48..56].copy_from_slice(&self.range.end().0.to_le_bytes());
        let crc = crc(0, &header[4..]);
        header[0..4].copy_from_slice(&crc.to_le_bytes());
        Bytes::copy_from_slice(&header)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        if le_u16(header, 4) != MAGIC || header[6] != LOG_VERSION || crc(0, &header[4..]) != le_u32(header, 0) {
            return None;
        }
        Some(Self {
            cluster: ClusterId::from_u64(le_u64(header, 8)),
            node: NodeId(le_u32(header, 16)),
            stream: StreamId::from_u64(le_u64(header, 24)),
            term: Term(le_u64(header, 32)),
            range: LogIndex(le_u64(header, 40))..=LogIndex(le_u64(header, 48)),
        })
    }

    pub(crate) fn name(&self) -> FileName {
        FileName::new(&format!(
            "lost-{:08x}-{:08x}-{:016x}-{:016x}-{:016x}.lost",
            self.stream.group.0,
            self.stream.origin.0,
            self.term.0,
            self.range.start().0,
            self.range.end().0
        ))
    }

    /// Names what was dropped, in stream order and not empty.
    pub(crate) fn of(cluster: ClusterId, node: NodeId, stream: StreamId, dropped: &[Entry]) -> Self {
        let (first, last) = (&dropped[0], &dropped[dropped.len() - 1]);
        Self { cluster, node, stream, term: first.term, range: first.base..=last.last() }
    }
}

/// Whether a file's name is a lost suffix's.
pub(crate) fn is_lost_name(name: &FileName) -> bool {
    name.as_str().starts_with("lost-") && name.as_str().ends_with(".lost")
}

/// The stream and the batches of a lost file; `None` when it is damaged.
pub(crate) fn read_lost(bytes: &Bytes) -> Option<(LostHeader, Vec<Batch>)> {
    let header = LostHeader::read(bytes)?;
    let (mut batches, mut at) = (Vec::new(), HEADER_BYTES);
    while at < bytes.len() {
        let length = replikit_core::BatchHeader::read(&bytes[at..], header.cluster).ok()?.bytes;
        let end = at.checked_add(length).filter(|end| *end <= bytes.len())?;
        batches.push(Batch::verify(bytes.slice(at..end), header.cluster).ok()?);
        at = end;
    }
    Some((header, batches))
}

/// A batch that is to be kept.
#[derive(Clone, Debug)]
pub(crate) enum LostBatch {
    Cached(Batch),
    OnDisk { file: FileId, offset: u64, entry: Entry },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Create,
    Header,
    Batches,
    Reading,
    Rename,
    SyncDir,
    Close,
    Done,
}

/// Writes a lost file, operation by operation.
#[derive(Debug)]
pub(crate) struct LostWriter {
    pub(crate) header: LostHeader,
    pub(crate) file: FileId,
    phase: Phase,
    batches: VecDeque<LostBatch>,
    offset: u64,
}

impl LostWriter {
    pub(crate) fn new(header: LostHeader, file: FileId, batches: VecDeque<LostBatch>) -> Self {
        Self { header, file, phase: Phase::Create, batches, offset: 0 }
    }

    fn write(&mut self, buffers: Vec<Bytes>) -> DiskOp {
        let offset = self.offset;
        self.offset += buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        DiskOp::Write { file: self.file, offset, buffers }
    }

    /// The next operation; `None` when it is done. Each must be carried out before the next is asked for; a read is answered
    /// by [`LostWriter::read`].
    pub(crate) fn next_op(&mut self) -> Option<DiskOp> {
        let file = self.file;
        let (op, phase) = match self.phase {
            Phase::Create => (DiskOp::Create { file, name: unfinished_name(file) }, Phase::Header),
            Phase::Header => (self.write(vec![self.header.encode()]), Phase::Batches),
            Phase::Batches | Phase::Reading => {
                let (mut buffers, mut bytes) = (Vec::new(), 0);
                while let Some(LostBatch::Cached(batch)) = self.batches.front()
                    && bytes < WRITE_BYTES_MAX
                {
                    bytes += batch.bytes();
                    buffers.push(batch.as_bytes().clone());
                    self.batches.pop_front();
                }
                if buffers.is_empty() {
                    match self.batches.front() {
                        Some(LostBatch::OnDisk { file, offset, entry }) => {
                            let (file, offset, bytes) = (*file, *offset, entry.bytes as usize);
                            (DiskOp::Read { file, offset, bytes }, Phase::Reading)
                        }
                        _ => (DiskOp::Sync { file }, Phase::Rename),
                    }
                } else {
                    (self.write(buffers), Phase::Batches)
                }
            }
            Phase::Rename => (DiskOp::Rename { from: unfinished_name(file), to: self.header.name() }, Phase::SyncDir),
            Phase::SyncDir => (DiskOp::SyncDir, Phase::Close),
            Phase::Close => (DiskOp::Close { file }, Phase::Done),
            Phase::Done => return None,
        };
        self.phase = phase;
        Some(op)
    }

    /// Whether the operation under way is a read.
    pub(crate) fn is_reading(&self) -> bool {
        self.phase == Phase::Reading
    }

    /// What a read found. Returns the indices of a batch that cannot be read any more.
    pub(crate) fn read(&mut self, bytes: Option<Bytes>) -> Option<RangeInclusive<LogIndex>> {
        self.phase = Phase::Batches;
        let Some(LostBatch::OnDisk { entry, .. }) = self.batches.pop_front() else {
            return None;
        };
        match bytes.and_then(|bytes| Batch::verify(bytes, self.header.cluster).ok()) {
            Some(batch) if batch.stream() == self.header.stream && batch.base() == entry.base => {
                self.batches.push_front(LostBatch::Cached(batch));
                None
            }
            _ => Some(entry.base..=entry.last()),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}
