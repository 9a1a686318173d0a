//! Real files.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::{Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName};

const LOCK_NAME: &str = "lock";
const SLICES_MAX: usize = 256;

/// Counters of a [`FileDisk`], since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Write system calls.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// `fdatasync` calls on files.
    pub syncs: u64,
    /// `fsync` calls on the directory.
    pub dir_syncs: u64,
    /// Read system calls.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
    dir_syncs: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    directory: File,
    files: Mutex<BTreeMap<FileId, Arc<File>>>,
    counters: Counters,
    /// Held, and with it the lock, until the last clone is gone.
    _lock: File,
}

/// A directory of real files. Clones share it: a driver gives each of its disk threads one. Holds a lock on the directory
/// against a second process for as long as any clone lives.
#[derive(Clone, Debug)]
pub struct FileDisk {
    shared: Arc<Shared>,
}

fn disk_error(error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::NotFound => DiskError::NotFound,
        io::ErrorKind::AlreadyExists => DiskError::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnly,
        io::ErrorKind::PermissionDenied => DiskError::Denied,
        _ => DiskError::Io { code: error.raw_os_error().unwrap_or(0) },
    }
}

impl FileDisk {
    /// Opens a directory, creating it when it is not there, and locks it.
    ///
    /// # Errors
    /// [`DiskError::Locked`] when another process has it open; otherwise what the file system says.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let open = || {
            if !path.is_dir() {
                std::fs::create_dir_all(path)?;
                // The directory's own name must survive as well as what will be in it.
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    File::open(parent)?.sync_all()?;
                }
            }
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_NAME))?;
            Ok((lock, File::open(path)?))
        };
        let (lock, directory) = open().map_err(|error| disk_error(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked),
            Err(TryLockError::Error(error)) => return Err(disk_error(&error)),
        }
        let shared = Shared {
            path: path.to_owned(),
            directory,
            files: Mutex::default(),
            counters: Counters::default(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What was done so far, by all clones.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            writes: read(&counters.writes),
            written_bytes: read(&counters.written_bytes),
            syncs: read(&counters.syncs),
            dir_syncs: read(&counters.dir_syncs),
            reads: read(&counters.reads),
            read_bytes: read(&counters.read_bytes),
        }
    }

    fn file(&self, file: FileId) -> io::Result<Arc<File>> {
        let files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&file).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn keep(&self, file: FileId, open: File) {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).insert(file, Arc::new(open));
    }

    fn write(&self, file: FileId, mut offset: u64, buffers: &[Bytes]) -> io::Result<()> {
        let file = self.file(file)?;
        let mut left = buffers.iter().filter(|buffer| !buffer.is_empty());
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        loop {
            let mut count = 0;
            for (slice, buffer) in slices.iter_mut().zip(left.by_ref()) {
                *slice = IoSlice::new(buffer);
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            let mut gathered = &mut slices[..count];
            while !gathered.is_empty() {
                let written = match rustix::io::pwritev(&file, gathered, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => written,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                self.shared.counters.writes.fetch_add(1, Ordering::Relaxed);
                self.shared.counters.written_bytes.fetch_add(written as u64, Ordering::Relaxed);
                offset += written as u64;
                IoSlice::advance_slices(&mut gathered, written);
            }
        }
    }

    fn read(&self, file: FileId, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let file = self.file(file)?;
        let mut read = Vec::with_capacity(bytes);
        while read.len() < bytes {
            let at = offset + read.len() as u64;
            let got = match rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut read), at) {
                Ok(0) => break,
                Ok(got) => got,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.shared.counters.reads.fetch_add(1, Ordering::Relaxed);
            self.shared.counters.read_bytes.fetch_add(got as u64, Ordering::Relaxed);
        }
        read.truncate(bytes);
        Ok(read.into())
    }

    fn carry_out(&self, op: DiskOp) -> io::Result<DiskAnswer> {
        let path = |name: &FileName| self.shared.path.join(name.as_str());
        match op {
            DiskOp::Create { file, name } => {
                self.keep(file, OpenOptions::new().read(true).write(true).create_new(true).open(path(&name))?);
            }
            DiskOp::Open { file, name } => {
                let open = OpenOptions::new().read(true).write(true).open(path(&name))?;
                let bytes = open.metadata()?.len();
                self.keep(file, open);
                return Ok(DiskAnswer::Opened { bytes });
            }
            DiskOp::Write { file, offset, mut buffers } => {
                self.write(file, offset, &buffers)?;
                buffers.clear();
                return Ok(DiskAnswer::Written { buffers });
            }
            DiskOp::Sync { file } => {
                self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
                self.file(file)?.sync_data()?;
            }
            DiskOp::Read { file, offset, bytes } => return Ok(DiskAnswer::Read(self.read(file, offset, bytes)?)),
            DiskOp::Close { file } => {
                self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
            }
            DiskOp::Rename { from, to } => std::fs::rename(path(&from), path(&to))?,
            DiskOp::Remove { name } => std::fs::remove_file(path(&name))?,
            DiskOp::SyncDir => {
                self.shared.counters.dir_syncs.fetch_add(1, Ordering::Relaxed);
                self.shared.directory.sync_all()?;
            }
            DiskOp::List => {
                let mut listed = Vec::new();
                for entry in std::fs::read_dir(&self.shared.path)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let Some(name) = name.to_str().and_then(FileName::found) else { continue };
                    let metadata = entry.metadata()?;
                    if metadata.is_file() && name.as_str() != LOCK_NAME {
                        listed.push((name, metadata.len()));
                    }
                }
                listed.sort_unstable();
                return Ok(DiskAnswer::Listed(listed));
            }
        }
        Ok(DiskAnswer::Done)
    }
}

impl Disk for FileDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskAnswer, DiskError> {
        self.carry_out(op).map_err(|error| disk_error(&error))
    }
}
