//! A disk in memory, for tests and for measuring the log without a device.
//!
//! Invariant: after [`MemDisk::crash`] it holds what was synced, and of what was written since any subset of sectors; of the
//! directory's changes since the last [`DiskOp::SyncDir`] any prefix.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName};

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Written since the last sync, in order.
    pending: Vec<(u64, Bytes)>,
    /// `bytes` may differ from `durable`.
    dirty: bool,
    /// A sync failed since the last crash, so no later one makes the two alike.
    forgetful: bool,
}

impl Inode {
    fn put(bytes: &mut Vec<u8>, offset: u64, written: &[u8]) {
        let end = offset as usize + written.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(written);
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(FileName, usize),
    Rename(FileName, FileName),
    Remove(FileName),
}

fn change(names: &mut BTreeMap<FileName, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

/// What a disk remembers for the sake of crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Nothing: everything survives at once.
    Plain,
    /// What was not synced may be lost by sectors of this size.
    Sectors(usize),
}

/// A disk in memory: see the module. Cloning it copies everything, open files included.
#[derive(Clone, Debug)]
pub struct MemDisk {
    inodes: Vec<Inode>,
    names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    changes: Vec<NameChange>,
    open: BTreeMap<FileId, usize>,
    memory: Memory,
    operations: u64,
    syncs: u64,
    fail: Option<(u64, DiskError)>,
    bytes_max: Option<u64>,
}

impl Default for MemDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemDisk {
    /// An empty disk on which everything survives at once.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            open: BTreeMap::new(),
            memory: Memory::Plain,
            operations: 0,
            syncs: 0,
            fail: None,
            bytes_max: None,
        }
    }

    /// An empty disk that loses what was not synced when it crashes, by sectors of this size in bytes.
    #[must_use]
    pub const fn with_sectors(sector_bytes: usize) -> Self {
        let mut disk = Self::new();
        disk.memory = Memory::Sectors(sector_bytes);
        disk
    }

    /// Operations carried out so far.
    #[must_use]
    pub const fn operations(&self) -> u64 {
        self.operations
    }

    /// File syncs carried out so far.
    #[must_use]
    pub const fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Makes the operation with this number, counted from 1 as by [`MemDisk::operations`], fail. A sync that fails has
    /// forgotten what it should have made durable, as real kernels do (Rebello et al., ATC'20): a later one succeeds and
    /// saves none of it.
    pub const fn fail_at(&mut self, operation: u64, error: DiskError) {
        self.fail = Some((operation, error));
    }

    /// Makes writes fail with [`DiskError::NoSpace`] that would take all files together beyond this many bytes.
    pub const fn limit_bytes(&mut self, bytes_max: Option<u64>) {
        self.bytes_max = bytes_max;
    }

    /// Loses power: `keep` decides for each sector that was not synced, in order of writing, and for each change of the
    /// directory whether it is there afterwards; of the latter, those behind the first that is not are not either.
    pub fn crash(&mut self, keep: &mut dyn FnMut() -> bool) {
        if let Memory::Sectors(sector_bytes) = self.memory {
            for inode in self.inodes.iter_mut().filter(|inode| inode.dirty) {
                for (offset, written) in core::mem::take(&mut inode.pending) {
                    let mut at = 0;
                    while at < written.len() {
                        let start = offset as usize + at;
                        let take = (sector_bytes - start % sector_bytes).min(written.len() - at);
                        if keep() {
                            Inode::put(&mut inode.durable, start as u64, &written[at..at + take]);
                        }
                        at += take;
                    }
                }
                inode.bytes.clone_from(&inode.durable);
                (inode.dirty, inode.forgetful) = (false, false);
            }
            for made in core::mem::take(&mut self.changes) {
                if !keep() {
                    break;
                }
                change(&mut self.durable_names, &made);
            }
            self.names.clone_from(&self.durable_names);
            let named: BTreeSet<usize> = self.names.values().copied().collect();
            for (_, gone) in self.inodes.iter_mut().enumerate().filter(|(at, _)| !named.contains(at)) {
                *gone = Inode::default();
            }
        }
        self.open.clear();
    }

    /// A file's bytes as a reader would see them now.
    #[must_use]
    pub fn bytes(&self, name: &FileName) -> Option<&[u8]> {
        self.names.get(name).map(|inode| &self.inodes[*inode].bytes[..])
    }

    /// Overwrites bytes of a file behind the log's back, as a failing medium does; they are durable.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn damage(&mut self, name: &FileName, offset: u64, bytes: &[u8]) {
        let inode = &mut self.inodes[self.names[name]];
        Inode::put(&mut inode.bytes, offset, bytes);
        Inode::put(&mut inode.durable, offset, bytes);
    }

    /// Cuts a file short behind the log's back; durably.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn truncate(&mut self, name: &FileName, bytes: u64) {
        let inode = &mut self.inodes[self.names[name]];
        inode.bytes.truncate(bytes as usize);
        inode.durable.truncate(bytes as usize);
    }

    /// Loses a file behind the log's back; durably.
    pub fn lose(&mut self, name: &FileName) {
        self.names.remove(name);
        self.durable_names.remove(name);
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].bytes.len() as u64).sum()
    }

    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &FileName> {
        self.names.keys()
    }

    fn rename(&mut self, made: NameChange) {
        change(&mut self.names, &made);
        if self.memory != Memory::Plain {
            self.changes.push(made);
        }
    }

    fn inode(&self, file: FileId) -> Result<usize, DiskError> {
        self.open.get(&file).copied().ok_or(DiskError::NotFound)
    }
}

impl Disk for MemDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskAnswer, DiskError> {
        self.operations += 1;
        if let Some((at, error)) = self.fail
            && at == self.operations
        {
            if let DiskOp::Sync { file } = op {
                let inode = self.inode(file)?;
                self.inodes[inode].pending.clear();
                self.inodes[inode].forgetful = true;
            }
            return Err(error);
        }
        match op {
            DiskOp::Create { file, name } => {
                if self.names.contains_key(&name) {
                    return Err(DiskError::Exists);
                }
                self.inodes.push(Inode::default());
                self.open.insert(file, self.inodes.len() - 1);
                self.rename(NameChange::Set(name, self.inodes.len() - 1));
            }
            DiskOp::Open { file, name } => {
                let inode = *self.names.get(&name).ok_or(DiskError::NotFound)?;
                self.open.insert(file, inode);
                return Ok(DiskAnswer::Opened { bytes: self.inodes[inode].bytes.len() as u64 });
            }
            DiskOp::Write { file, mut offset, mut buffers } => {
                let inode = self.inode(file)?;
                if let Some(bytes_max) = self.bytes_max {
                    let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
                    let grows = end.saturating_sub(self.inodes[inode].bytes.len() as u64);
                    if grows > 0 && self.used_bytes() + grows > bytes_max {
                        return Err(DiskError::NoSpace);
                    }
                }
                let inode = &mut self.inodes[inode];
                for buffer in buffers.drain(..) {
                    Inode::put(&mut inode.bytes, offset, &buffer);
                    let bytes = buffer.len() as u64;
                    if self.memory != Memory::Plain {
                        inode.dirty = true;
                        inode.pending.push((offset, buffer));
                    }
                    offset += bytes;
                }
                return Ok(DiskAnswer::Written { buffers });
            }
            DiskOp::Sync { file } => {
                self.syncs += 1;
                let inode = self.inode(file)?;
                let inode = &mut self.inodes[inode];
                for (offset, written) in inode.pending.drain(..) {
                    Inode::put(&mut inode.durable, offset, &written);
                }
                inode.dirty = inode.forgetful;
            }
            DiskOp::Read { file, offset, bytes } => {
                let inode = &self.inodes[self.inode(file)?];
                let start = (offset as usize).min(inode.bytes.len());
                let end = start.saturating_add(bytes).min(inode.bytes.len());
                return Ok(DiskAnswer::Read(Bytes::copy_from_slice(&inode.bytes[start..end])));
            }
            DiskOp::Close { file } => {
                self.open.remove(&file);
            }
            DiskOp::Rename { from, to } => {
                if !self.names.contains_key(&from) {
                    return Err(DiskError::NotFound);
                }
                self.rename(NameChange::Rename(from, to));
            }
            DiskOp::Remove { name } => {
                if !self.names.contains_key(&name) {
                    return Err(DiskError::NotFound);
                }
                self.rename(NameChange::Remove(name));
            }
            DiskOp::SyncDir => {
                for made in core::mem::take(&mut self.changes) {
                    change(&mut self.durable_names, &made);
                }
            }
            DiskOp::List => {
                let listed =
                    self.names.iter().map(|(name, inode)| (name.clone(), self.inodes[*inode].bytes.len() as u64));
                return Ok(DiskAnswer::Listed(listed.collect()));
            }
        }
        Ok(DiskAnswer::Done)
    }
}
