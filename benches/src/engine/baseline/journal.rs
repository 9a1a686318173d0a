//! The append file of the baselines.
//!
//! Invariants: records lie back to back from the start; a record is whole if its checksum says so, and the first that is not
//! ends the file. The file is filled with zeros ahead, so that an fdatasync changes data only; an append that is out of room
//! pays for the next piece. Where several processes append, each does so with the lock held, and catches up with the others
//! first: the lock's file says where the last one ended.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

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
    written_bytes: u64,
    /// Held while this process appends; `None` where no other does.
    lock: Option<File>,
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
        let journal = Self {
            file,
            sync,
            end: end as u64,
            room: bytes.len() as u64,
            pending: Vec::new(),
            fsyncs: 0,
            written_bytes: 0,
            lock: None,
        };
        Ok(journal)
    }

    /// The same where other processes append to the file as well.
    pub(super) fn open_locked(path: &Path, sync: Sync, apply: impl FnMut(&[u8])) -> io::Result<Self> {
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).open(path.with_extension("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let mut journal = Self::open(path, sync, apply)?;
        lock.write_all_at(&journal.end.to_le_bytes(), 0)?;
        flock(&lock, FlockOperation::Unlock)?;
        journal.lock = Some(lock);
        Ok(journal)
    }

    /// Waits for the lock, where there is one; hands to `apply` what the others have appended meanwhile.
    pub(super) fn lock(&mut self, mut apply: impl FnMut(&[u8])) -> io::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        flock(lock, FlockOperation::LockExclusive)?;
        let mut end = [0; 8];
        lock.read_exact_at(&mut end, 0)?;
        let end = u64::from_le_bytes(end);
        if end > self.end {
            let mut bytes = vec![0; (end - self.end) as usize];
            self.file.read_exact_at(&mut bytes, self.end)?;
            let mut at = 0;
            while let Some(record) = record(&bytes[at..]) {
                apply(record);
                at += HEAD_BYTES + record.len();
            }
            if at < bytes.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "another process left a broken record"));
            }
            self.end = end;
        }
        Ok(())
    }

    /// Says where the file ends now, and lets the others in.
    pub(super) fn unlock(&mut self) -> io::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        lock.write_all_at(&self.end.to_le_bytes(), 0)?;
        Ok(flock(lock, FlockOperation::Unlock)?)
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
        if end > self.room && self.lock.is_some() {
            self.room = self.file.metadata()?.len();
        }
        if end > self.room {
            let zeros = vec![0; (end + AHEAD_BYTES - self.room) as usize];
            self.file.write_all_at(&zeros, self.room)?;
            self.room += zeros.len() as u64;
            self.written_bytes += zeros.len() as u64;
            if self.sync == Sync::Group {
                self.fsyncs += 1;
                self.file.sync_all()?;
            }
        }
        self.file.write_all_at(&self.pending, self.end)?;
        self.written_bytes += self.pending.len() as u64;
        if self.sync == Sync::Group {
            self.fsyncs += 1;
            self.file.sync_data()?;
        }
        self.end = end;
        self.pending.clear();
        Ok(())
    }

    /// Calls of fsync and fdatasync so far, and bytes written, as the answer to a client.
    pub(super) fn counted(&self) -> Bytes {
        [self.fsyncs.to_le_bytes(), self.written_bytes.to_le_bytes()].concat().into()
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
        assert_eq!(journal.fsyncs, 4, "one for each record, and one for the zeros");
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

    #[test]
    fn two_that_share_a_file_see_what_the_other_appended_in_one_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("journal");
        let open = || Journal::open_locked(&path, Sync::Never, |_| {}).expect("it opens");
        let mut journals = [open(), open()];
        let mut seen: [Vec<Vec<u8>>; 2] = [Vec::new(), Vec::new()];
        for (turn, of) in [0, 1, 1, 0, 1].into_iter().enumerate() {
            let journal = &mut journals[of];
            journal.lock(|record| seen[of].push(record.to_vec())).expect("the lock is free");
            journal.append(&[turn as u8 + 1]);
            seen[of].push(vec![turn as u8 + 1]);
            journal.commit().expect("it is written");
            journal.unlock().expect("it is unlocked");
        }
        journals[0].lock(|record| seen[0].push(record.to_vec())).expect("the lock is free");
        let all: Vec<Vec<u8>> = (1..=5).map(|turn| vec![turn]).collect();
        assert_eq!(seen, [all.clone(), all.clone()]);
        drop(journals);
        let mut found = Vec::new();
        Journal::open_locked(&path, Sync::Never, |record| found.push(record.to_vec())).expect("it opens");
        assert_eq!(found, all);
    }
}
