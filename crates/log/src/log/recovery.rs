//! Pushing what was recovered: snapshots first, then live batches in append order.

use std::collections::VecDeque;

use replikit_core::{Batch, StreamId};

use super::Log;
use crate::scan::Window;
use crate::snapshot::{SnapshotFile, piece_offset};
use crate::{Damage, Disk, FileName, OpenError, RecoveryItem};

/// Iterator over what a log recovered; see [`Log::recovery`]. After an error there is nothing more.
pub struct Recovery<'a> {
    log: &'a Log,
    disk: &'a mut dyn Disk,
    snapshots: VecDeque<SnapshotFile>,
    /// Piece of the first snapshot that comes next.
    piece: u64,
    /// By append order, last first; with their places in their streams.
    batches: Vec<(u64, StreamId, usize)>,
    window: Option<Window>,
}

impl core::fmt::Debug for Recovery<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Recovery({} snapshots and {} batches left)", self.snapshots.len(), self.batches.len())
    }
}

impl Log {
    /// What to push into a replica before anything else, in order: chunks of the newest snapshot of each group, then all live
    /// batches in append order over all streams. Blocks on `disk`. Released and replaced batches are not among them.
    pub fn recovery<'a>(&'a self, disk: &'a mut dyn Disk) -> Recovery<'a> {
        let mut batches: Vec<_> = self
            .state
            .streams
            .iter()
            .flat_map(|(id, stream)| stream.entries.iter().enumerate().map(|(at, entry)| (entry.order, *id, at)))
            .collect();
        batches.sort_unstable_by(|a, b| b.cmp(a));
        Recovery {
            log: self,
            disk,
            snapshots: self.snapshots.values().cloned().collect(),
            piece: 0,
            batches,
            window: None,
        }
    }
}

impl Recovery<'_> {
    fn corrupt(file: FileName, offset: u64, bytes: u64, what: &'static str) -> OpenError {
        OpenError::Corrupt(Damage { file, bytes: offset..offset + bytes, what, entries: Vec::new() })
    }

    fn snapshot_piece(&mut self, snapshot: &SnapshotFile) -> Result<RecoveryItem, OpenError> {
        let offset = piece_offset(self.piece);
        let file_bytes = piece_offset(snapshot.pieces());
        let mut window = match self.window.take() {
            Some(window) if window.file == snapshot.file => window,
            _ => Window::at(snapshot.file, snapshot.name.clone(), file_bytes),
        };
        let bytes = window.get(self.disk, offset, crate::snapshot::PIECE_BYTES)?;
        self.window = Some(window);
        let Some(chunk) = snapshot.check(self.piece, &bytes) else {
            let what = "a piece's checksum does not match";
            return Err(Self::corrupt(snapshot.name.clone(), offset, bytes.len() as u64, what));
        };
        self.piece += 1;
        let last = self.piece == snapshot.pieces();
        if last {
            self.snapshots.pop_front();
            self.piece = 0;
        }
        Ok(RecoveryItem::SnapshotChunk { at: snapshot.header.at, chunk, last })
    }

    fn batch(&mut self, stream: StreamId, at: usize) -> Result<RecoveryItem, OpenError> {
        let entry = self.log.state.streams.get(&stream).and_then(|stream| stream.entries.get(at));
        let entry = entry.expect("the log is borrowed, so its entries are those of the start");
        if let Some(batch) = &entry.cached {
            return Ok(RecoveryItem::Batch(batch.clone()));
        }
        let segment = self.log.segments.of_place(entry.place).expect("a live batch lies in a segment that is kept");
        let (file, group) = self.log.segments.locate(entry.place).expect("what is not cached was written");
        let mut window = match self.window.take() {
            Some(window) if window.file == file => window,
            _ => Window::at(file, segment.name(), segment.header.capacity_bytes),
        };
        let offset = group + u64::from(entry.at);
        let bytes = window.get(self.disk, offset, entry.bytes as usize)?;
        self.window = Some(window);
        match Batch::verify(bytes, self.log.config.cluster) {
            Ok(batch) if batch.stream() == stream && batch.base() == entry.base => Ok(RecoveryItem::Batch(batch)),
            _ => {
                let what = "a batch's checksum does not match";
                Err(Self::corrupt(segment.name(), offset, u64::from(entry.bytes), what))
            }
        }
    }
}

impl Iterator for Recovery<'_> {
    type Item = Result<RecoveryItem, OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = if let Some(snapshot) = self.snapshots.front().cloned() {
            self.snapshot_piece(&snapshot)
        } else {
            let (_, stream, at) = self.batches.pop()?;
            self.batch(stream, at)
        };
        if item.is_err() {
            self.snapshots.clear();
            self.batches.clear();
        }
        Some(item)
    }
}
