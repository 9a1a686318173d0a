//! The baseline's append file.
//!
//! Invariants: records lie back to back from the start; a record is whole if its checksum says so, and the first that is not
//! ends the file. The file is filled with zeros ahead, so that an fdatasync changes data only; an append that is out of room
//! pays for the next piece.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::engine::Sync;

/// Zeros that are written ahead at a time.
const AHEAD_BYTES: u64 = 16 << 20;
const HEAD_BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    sync: Sync,
    end: u64,
    room: u64,
    pending: Vec<u8>,
    fsyncs: u64,
}

impl Journal {
    /// Opens the file, or creates it; hands every whole record to `apply`, in order.
    pub(super) fn open(path: &Path, sync: Sync, mut apply: impl FnMut(&[u8])) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let bytes = std::fs::read(path)?;
        let mut end = 0;
        while let Some(record) = record(&bytes[end..]) {
            apply(record);
            end += HEAD_BYTES + record.len();
        }
        let journal = Self { file, sync, end: end as u64, room: bytes.len() as u64, pending: Vec::new(), fsyncs: 0 };
        Ok(journal)
    }

    /// Adds a record to the next [`commit`](Self::commit).
    pub(super) fn append(&mut self, record: &[u8]) {
        self.pending.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.pending.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
        self.pending.extend_from_slice(record);
    }

    /// Writes what was added, and waits for the disk if it is to.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let end = self.end + self.pending.len() as u64;
        if end > self.room {
            let zeros = vec![0; (end + AHEAD_BYTES - self.room) as usize];
            self.file.write_all_at(&zeros, self.room)?;
            self.room += zeros.len() as u64;
            if self.sync == Sync::Group {
                self.fsyncs += 1;
                self.file.sync_all()?;
            }
        }
        self.file.write_all_at(&self.pending, self.end)?;
        if self.sync == Sync::Group {
            self.fsyncs += 1;
            self.file.sync_data()?;
        }
        self.end = end;
        self.pending.clear();
        Ok(())
    }

    /// Calls of fsync and fdatasync so far.
    pub(super) const fn fsyncs(&self) -> u64 {
        self.fsyncs
    }
}

/// The record at the front, if there is a whole one.
fn record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let record = rest.get(..length)?;
    (length > 0 && crc32fast::hash(record) == u32::from_le_bytes(*sum)).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_records_come_back_and_a_torn_one_does_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, Sync::Group, |_| panic!("a new file is empty")).expect("it opens");
        for record in [&b"one"[..], b"two", b"three"] {
            journal.append(record);
            journal.commit().expect("it is written");
        }
        assert_eq!(journal.fsyncs(), 4, "one for each record, and one for the zeros");
        let torn = journal.end - 1;
        drop(journal);
        File::options().write(true).open(&path).and_then(|file| file.write_all_at(&[0xff], torn)).expect("damage");
        let mut found = Vec::new();
        let mut journal = Journal::open(&path, Sync::Never, |record| found.push(record.to_vec())).expect("it opens");
        assert_eq!(found, [b"one", b"two"]);
        journal.append(b"four");
        journal.commit().expect("it is written");
        drop(journal);
        found.clear();
        Journal::open(&path, Sync::Never, |record| found.push(record.to_vec())).expect("it opens");
        assert_eq!(found, [&b"one"[..], b"two", b"four"]);
    }
}
