//! Background work: what the log does beside group commits, one disk operation at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::{LogIndex, SnapshotSource, StreamId, WriteId};

use crate::format::{BLOCK_BYTES, DATA_START, Origin, SegmentHeader, ZEROS_BYTES_MAX, zeros};
use crate::lost::LostWriter;
use crate::segment::{segment_name, spare_name};
use crate::snapshot::SnapshotWriter;
use crate::{DiskOp, FileId, FileName};

/// Zeros that one system call writes: a group's sync that ends on the same core waits for the end of it.
const ZERO_WRITE_BYTES: u64 = 64 << 10;
/// Zeros that one sync covers: a group's sync waits behind them in the disk's queue.
const ZERO_SYNC_BYTES: u64 = 512 << 10;

/// A segment that is ready to take groups.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) header: SegmentHeader,
    pub(crate) file: FileId,
}

/// A released segment's file, waiting to be used again.
#[derive(Clone, Debug)]
pub(crate) struct Spare {
    pub(crate) file: FileId,
    pub(crate) name: FileName,
    pub(crate) capacity_bytes: u64,
}

/// What a finished script means to the log.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Prepared(Prepared),
    Recycled(Spare),
    Nothing,
}

/// Disk operations, known beforehand, one behind the other.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) ops: VecDeque<DiskOp>,
    pub(crate) outcome: Outcome,
    /// Starts only when no read of this file is under way.
    pub(crate) unread: Option<FileId>,
    pub(crate) what: &'static str,
    removes: bool,
}

/// Fills a new file with zeros, really written: a reserved but unwritten extent costs a change of metadata at the first
/// write, in the middle of a group commit.
pub(crate) fn fill(ops: &mut VecDeque<DiskOp>, file: FileId, name: FileName, capacity_bytes: u64) {
    ops.push_back(DiskOp::Create { file, name });
    let mut offset = 0;
    while offset < capacity_bytes {
        let end = (offset + ZERO_WRITE_BYTES).min(capacity_bytes);
        let (mut buffers, mut left) = (Vec::new(), (end - offset) as usize);
        while left > 0 {
            let piece = left.min(ZEROS_BYTES_MAX);
            buffers.push(zeros(piece));
            left -= piece;
        }
        ops.push_back(DiskOp::Write { file, offset, buffers });
        offset = end;
        // In steps, so that no group's sync has to wait for all of it.
        if offset.is_multiple_of(ZERO_SYNC_BYTES) && offset < capacity_bytes {
            ops.push_back(DiskOp::Sync { file });
        }
    }
}

/// Both copies of a segment's header.
pub(crate) fn header_blocks(header: &SegmentHeader) -> Vec<Bytes> {
    vec![header.encode(0), header.encode(1)]
}

impl Script {
    /// Makes a segment ready, from nothing or from a spare file.
    pub(crate) fn prepare(header: SegmentHeader, file: FileId, spare: Option<Spare>) -> Self {
        let mut ops = VecDeque::new();
        let from = match spare {
            Some(spare) => {
                let mut buffers = header_blocks(&header);
                buffers.push(zeros(BLOCK_BYTES as usize));
                ops.push_back(DiskOp::Write { file, offset: 0, buffers });
                spare.name
            }
            None => {
                let name = spare_name(header.number);
                fill(&mut ops, file, name.clone(), header.capacity_bytes);
                ops.push_back(DiskOp::Write { file, offset: 0, buffers: header_blocks(&header) });
                name
            }
        };
        debug_assert_eq!(DATA_START, 2 * BLOCK_BYTES);
        ops.push_back(DiskOp::Sync { file });
        ops.push_back(DiskOp::Rename { from, to: segment_name(header.number) });
        ops.push_back(DiskOp::SyncDir);
        Self {
            ops,
            outcome: Outcome::Prepared(Prepared { header, file }),
            unread: None,
            what: "prepare a segment",
            removes: false,
        }
    }

    /// Takes a released segment out of the log; its file is used again.
    pub(crate) fn recycle(header: &SegmentHeader, file: FileId) -> Self {
        let name = spare_name(header.number);
        let ops = [DiskOp::Rename { from: segment_name(header.number), to: name.clone() }, DiskOp::SyncDir];
        let spare = Spare { file, name, capacity_bytes: header.capacity_bytes };
        Self {
            ops: ops.into(),
            outcome: Outcome::Recycled(spare),
            unread: Some(file),
            what: "recycle a segment",
            removes: false,
        }
    }

    pub(crate) fn remove(name: FileName, file: FileId, what: &'static str) -> Self {
        let ops = [DiskOp::Remove { name }, DiskOp::Close { file }];
        Self { ops: ops.into(), outcome: Outcome::Nothing, unread: Some(file), what, removes: true }
    }

    pub(crate) fn seal(file: FileId, offset: u64, footer: Bytes) -> Self {
        let ops = [DiskOp::Write { file, offset, buffers: vec![footer] }, DiskOp::Sync { file }];
        Self { ops: ops.into(), outcome: Outcome::Nothing, unread: None, what: "seal a segment", removes: false }
    }

    /// Whether it only removes and closes: that a file is gone already is as good.
    pub(crate) fn is_removal(&self) -> bool {
        self.removes
    }

    /// Whether it makes a segment from nothing: that is what lack of space stops.
    pub(crate) const fn is_prepare(&self) -> bool {
        matches!(self.outcome, Outcome::Prepared(_))
    }
}

/// Whether a file of this origin needs a zero block behind each group.
pub(crate) const fn origin_of(spare: bool) -> Origin {
    if spare { Origin::Recycled } else { Origin::Zeroed }
}

/// A live batch that is to be moved forward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moving {
    pub(crate) stream: StreamId,
    pub(crate) base: LogIndex,
    pub(crate) place: u64,
}

/// Background work.
pub(crate) enum Job {
    Script(Script),
    /// A snapshot of the own state, pulled piece by piece; with its number among those of its group.
    Take(SnapshotWriter, Box<dyn SnapshotSource>, u64),
    /// A snapshot from a peer; with an id once its last chunk is in, which becomes durable with it.
    Stage(SnapshotWriter, Option<WriteId>),
    /// A dropped suffix.
    Keep(LostWriter),
    /// Batches that are to be moved out of the oldest segment; the first is being read.
    Move(VecDeque<Moving>),
}

impl core::fmt::Debug for Job {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Script(script) => write!(f, "Script({}, {} left)", script.what, script.ops.len()),
            Self::Take(writer, ..) => write!(f, "Take({:?})", writer.header.at),
            Self::Stage(writer, _) => write!(f, "Stage({:?})", writer.header.at),
            Self::Keep(writer) => write!(f, "Keep({:?})", writer.header.range),
            Self::Move(left) => write!(f, "Move({} left)", left.len()),
        }
    }
}
