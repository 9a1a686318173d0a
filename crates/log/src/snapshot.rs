//! Snapshot files: a header block, then pieces of fixed size, each with its own checksum.
//!
//! Invariant: a file that bears a snapshot's name is whole: it was synced under another name first (Ganesan et al., FAST'17;
//! rename without a sync of the directory is how snapshots vanish).

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use replikit_core::{ClusterId, GroupId, LogId, LogIndex, NodeId, Position, SnapshotSource, StreamId, Term};

use crate::format::{BLOCK_BYTES, HeaderFault, LOG_VERSION, crc, le_u16, le_u32, le_u64, seed};
use crate::{DiskOp, FileId, FileName, LogConfig};

const MAGIC: u16 = u16::from_le_bytes(*b"RN");
/// A piece on disk: its header and its payload.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
const PIECE_HEADER_BYTES: usize = 16;
/// What of the first block says something.
pub(crate) const HEADER_BYTES: usize = 72;
/// Payload of every piece but the last.
pub(crate) const PAYLOAD_BYTES: usize = PIECE_BYTES - PIECE_HEADER_BYTES;
/// A long snapshot is synced in steps, so that the last sync is short, and no group's sync waits behind many pieces.
const UNSYNCED_BYTES_MAX: usize = 2 * PIECE_BYTES;

/// What a snapshot file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) at: Position,
    /// Counts the snapshots of a directory: of two of one group, the later one is the newer. Positions do not tell, for a
    /// group may have many streams.
    pub(crate) number: u64,
    /// Never the same twice in one directory; seeds the checksums of the pieces.
    pub(crate) uuid: u64,
}

impl SnapshotHeader {
    fn encode(&self) -> Bytes {
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[4..6].copy_from_slice(&MAGIC.to_le_bytes());
        block[6] = LOG_VERSION;
        block[8..16].copy_from_slice(&self.cluster.to_u64().to_le_bytes());
        block[16..20].copy_from_slice(&self.node.0.to_le_bytes());
        block[20..24].copy_from_slice(&(PAYLOAD_BYTES as u32).to_le_bytes());
        block[24..32].copy_from_slice(&self.at.stream.to_u64().to_le_bytes());
        block[32..40].copy_from_slice(&self.at.id.term.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.at.id.index.0.to_le_bytes());
        block[48..56].copy_from_slice(&self.at.digest.to_le_bytes());
        block[56..64].copy_from_slice(&self.number.to_le_bytes());
        block[64..72].copy_from_slice(&self.uuid.to_le_bytes());
        let crc = crc(0, &block[4..HEADER_BYTES]);
        block[0..4].copy_from_slice(&crc.to_le_bytes());
        block.into()
    }

    pub(crate) fn read(block: &[u8]) -> Result<Self, HeaderFault> {
        let Some(header) = block.get(..HEADER_BYTES) else { return Err(HeaderFault::Damaged) };
        if le_u16(header, 4) != MAGIC {
            return Err(HeaderFault::Damaged);
        }
        // Every version has its checksum here, over these bytes: a rotted version is damage, not a version.
        if crc(0, &header[4..]) != le_u32(header, 0) {
            return Err(HeaderFault::Damaged);
        }
        if header[6] > LOG_VERSION {
            return Err(HeaderFault::Newer(header[6]));
        }
        if le_u32(header, 20) != PAYLOAD_BYTES as u32 {
            return Err(HeaderFault::Damaged);
        }
        let id = LogId { term: Term(le_u64(header, 32)), index: LogIndex(le_u64(header, 40)) };
        Ok(Self {
            cluster: ClusterId::from_u64(le_u64(header, 8)),
            node: NodeId(le_u32(header, 16)),
            at: Position { stream: StreamId::from_u64(le_u64(header, 24)), id, digest: le_u64(header, 48) },
            number: le_u64(header, 56),
            uuid: le_u64(header, 64),
        })
    }

    pub(crate) fn name(&self) -> FileName {
        snapshot_name(self.at.stream.group, self.number)
    }
}

/// Never the same twice in one directory: `starts` grows with every opening, `file` with every file of an opening.
pub(crate) fn snapshot_uuid(config: &LogConfig, starts: u64, file: FileId) -> u64 {
    seed([config.cluster.to_u64() ^ u64::from(config.node.0).rotate_left(32), !starts, file.0])
}

pub(crate) fn snapshot_name(group: GroupId, number: u64) -> FileName {
    FileName::new(&format!("snap-{:08x}-{number:016x}.snap", group.0))
}

/// Whether a file's name is a snapshot's.
pub(crate) fn is_snapshot_name(name: &FileName) -> bool {
    name.as_str().starts_with("snap-") && name.as_str().ends_with(".snap")
}

/// A name for a file that is not whole yet; such files are removed when the log is opened.
pub(crate) fn unfinished_name(file: FileId) -> FileName {
    FileName::new(&format!("tmp-{:016x}", file.0))
}

pub(crate) fn is_unfinished_name(name: &FileName) -> bool {
    name.as_str().starts_with("tmp-") || name.as_str().starts_with("spare-")
}

/// A snapshot that can be read.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) header: SnapshotHeader,
    pub(crate) file: FileId,
    pub(crate) name: FileName,
    pub(crate) snapshot_bytes: u64,
}

impl SnapshotFile {
    pub(crate) const fn group(&self) -> GroupId {
        self.header.at.stream.group
    }

    pub(crate) const fn pieces(&self) -> u64 {
        let pieces = self.snapshot_bytes.div_ceil(PAYLOAD_BYTES as u64);
        if pieces == 0 { 1 } else { pieces }
    }

    /// Payload of a piece after checking it.
    pub(crate) fn check(&self, number: u64, piece: &Bytes) -> Option<Bytes> {
        check_piece(&self.header, number, piece).map(|(payload, _)| payload)
    }
}

pub(crate) const fn piece_offset(number: u64) -> u64 {
    BLOCK_BYTES + number * PIECE_BYTES as u64
}

/// Payload of a piece, and whether it is the last, after checking it.
pub(crate) fn check_piece(header: &SnapshotHeader, number: u64, piece: &Bytes) -> Option<(Bytes, bool)> {
    let head = piece.get(..PIECE_HEADER_BYTES)?;
    let (bytes, last) = (le_u32(head, 0) as usize, le_u32(head, 4));
    let payload = piece.get(PIECE_HEADER_BYTES..PIECE_HEADER_BYTES.checked_add(bytes)?)?;
    let seed = seed([header.uuid, number, u64::from(last) << 32 | bytes as u64]);
    let sound = xxhash_rust::xxh3::xxh3_64_with_seed(payload, seed) == le_u64(head, 8);
    sound.then(|| (piece.slice(PIECE_HEADER_BYTES..PIECE_HEADER_BYTES + bytes), last == 1))
}

/// Where the next operation of a file that is being written stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Create,
    Body,
    Sync,
    Rename,
    SyncDir,
    Done,
}

/// Writes a snapshot file, operation by operation.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    pub(crate) header: SnapshotHeader,
    pub(crate) file: FileId,
    phase: Phase,
    /// The piece being filled, with room for its header.
    piece: BytesMut,
    number: u64,
    written: u64,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    unsynced_bytes: usize,
    ended: bool,
    pub(crate) snapshot_bytes: u64,
}

impl SnapshotWriter {
    pub(crate) fn new(header: SnapshotHeader, file: FileId) -> Self {
        let mut writer = Self {
            header,
            file,
            phase: Phase::Create,
            piece: BytesMut::new(),
            number: 0,
            written: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            unsynced_bytes: 0,
            ended: false,
            snapshot_bytes: 0,
        };
        writer.begin_piece();
        writer
    }

    fn begin_piece(&mut self) {
        self.piece = BytesMut::with_capacity(PIECE_BYTES);
        self.piece.put_bytes(0, PIECE_HEADER_BYTES);
    }

    fn end_piece(&mut self, last: bool) {
        let bytes = self.piece.len() - PIECE_HEADER_BYTES;
        let seed = seed([self.header.uuid, self.number, u64::from(last) << 32 | bytes as u64]);
        let sum = xxhash_rust::xxh3::xxh3_64_with_seed(&self.piece[PIECE_HEADER_BYTES..], seed);
        self.piece[0..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        self.piece[4..8].copy_from_slice(&u32::from(last).to_le_bytes());
        self.piece[8..16].copy_from_slice(&sum.to_le_bytes());
        self.queued_bytes += self.piece.len();
        self.queue.push_back(self.piece.split().freeze());
        self.number += 1;
    }

    /// Takes the next bytes of the snapshot.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        self.snapshot_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.piece.len() == PIECE_BYTES {
                self.end_piece(false);
                self.begin_piece();
            }
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.put_slice(now);
            bytes = later;
        }
    }

    /// There are no more bytes.
    pub(crate) fn end(&mut self) {
        self.end_piece(true);
        self.ended = true;
    }

    /// Bytes that wait for the disk.
    pub(crate) const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Pulls from a source until there is something to write.
    pub(crate) fn pull(&mut self, source: &mut dyn SnapshotSource) {
        while self.queue.is_empty() && !self.ended {
            match source.next(PAYLOAD_BYTES) {
                Some(bytes) => self.push(&bytes),
                None => self.end(),
            }
        }
    }

    /// The next operation; `None` while more bytes are needed, and when it is done. Each must be carried out before the next
    /// is asked for.
    pub(crate) fn next_op(&mut self) -> Option<DiskOp> {
        let file = self.file;
        let (op, phase) = match self.phase {
            Phase::Create => (DiskOp::Create { file, name: unfinished_name(file) }, Phase::Body),
            Phase::Body if self.unsynced_bytes >= UNSYNCED_BYTES_MAX => {
                self.unsynced_bytes = 0;
                (DiskOp::Sync { file }, Phase::Body)
            }
            Phase::Body => match self.queue.pop_front() {
                Some(piece) => {
                    let offset = piece_offset(self.written);
                    self.written += 1;
                    self.queued_bytes -= piece.len();
                    self.unsynced_bytes += piece.len();
                    (DiskOp::Write { file, offset, buffers: vec![piece] }, Phase::Body)
                }
                // The header last: the number of a snapshot that is received is known only then.
                None if self.ended => {
                    (DiskOp::Write { file, offset: 0, buffers: vec![self.header.encode()] }, Phase::Sync)
                }
                None => return None,
            },
            Phase::Sync => (DiskOp::Sync { file }, Phase::Rename),
            Phase::Rename => (DiskOp::Rename { from: unfinished_name(file), to: self.header.name() }, Phase::SyncDir),
            Phase::SyncDir => (DiskOp::SyncDir, Phase::Done),
            Phase::Done => return None,
        };
        self.phase = phase;
        Some(op)
    }

    /// Whether its first operation was handed out: there may be a file.
    pub(crate) fn is_begun(&self) -> bool {
        self.phase != Phase::Create
    }

    /// Whether the file bears its name, durably; asked after the last operation was carried out.
    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub(crate) fn into_file(self) -> SnapshotFile {
        SnapshotFile {
            header: self.header,
            file: self.file,
            name: self.header.name(),
            snapshot_bytes: self.snapshot_bytes,
        }
    }
}
