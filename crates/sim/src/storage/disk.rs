//! A disk that does to the log what disks have been seen to do: on top of losing what was not synced, it rots, loses and
//! misplaces writes, misreads, lies about syncs, fills up, and goes read-only.
//!
//! Invariant: every fault is drawn from a generator of the disk's own and counted when it is really met: when bytes
//! changed, an operation failed, or the power failed after a lie. What it may have cost is in [`Doubt`], so that the shadow
//! knows what the log must still find. Source: Alagappan et al., FAST'18; Ganesan et al., FAST'17; Rebello et al., ATC'20.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::NodeId;
use replikit_log::{Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName, MemDisk};

use crate::fault::{Fault, FaultCounts};
use crate::settings::{DiskSettings, StorageSettings};

const EIO: DiskError = DiskError::Io { code: 5 };
const SECTOR_BYTES: u64 = 512;
/// Where frames begin in a segment.
const FRAMES_START: u64 = 8192;
/// The newest group writes that a crash may have torn, or that nothing proves durable.
const UNPROVEN: usize = 4;
/// Writes that are remembered, so that they can be lost later.
const JOURNAL_MAX: usize = 256;

/// Whether it is found after a crash rather than met by an operation.
const fn is_at_rest(kind: Fault) -> bool {
    matches!(
        kind,
        Fault::BitRot
            | Fault::Helical
            | Fault::TailRot
            | Fault::TailLost
            | Fault::WriteLost
            | Fault::WriteMisdirected
            | Fault::LatentError
            | Fault::RegisterRot
            | Fault::SnapshotRot
            | Fault::FileMissing
            | Fault::FileTruncated
    )
}

/// Whether a node that meets it starts all the same.
const fn goes_on(kind: Fault) -> bool {
    kind.is_silent() || matches!(kind, Fault::TailRot | Fault::RegisterRot)
}

/// What a start after a crash may lack of what was confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// Nothing.
    #[default]
    None,
    /// The last group, told by a cut tail, but for its registers, of which there is a second copy.
    Tail,
    /// Some last groups with their registers, told by a cut tail.
    Misread,
    /// Anything: the disk confirmed what it did not do.
    Silent,
}

#[derive(Debug)]
struct Written {
    name: FileName,
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FaultyDisk {
    disk: MemDisk,
    rng: Rng,
    /// Its place among the victims, and how many there are.
    place: (u64, u64),
    settings: DiskSettings,
    met: FaultCounts,
    doubt: Doubt,
    /// The last group, or a copy of registers, has rotted since the log was opened. The other one of the two is all that is left of
    /// those registers, and the group before is proven by the last one, so neither may rot as well.
    second_copy_needed: bool,
    /// Something at rest is damaged: a refusal is in order from now on.
    damaged: bool,
    /// A read was answered wrongly since the opening began.
    misread: bool,
    /// A read met a bad sector since the opening began.
    unreadable: bool,
    journal: Vec<Written>,
    files: BTreeMap<FileId, FileName>,
    bad: Vec<(FileName, Range<u64>)>,
    read_only: bool,
    lied: BTreeSet<FileId>,
    lied_of_names: bool,
}

impl FaultyDisk {
    pub(super) fn new(node: NodeId, settings: &StorageSettings, seed: u64) -> Self {
        let victim = settings.disk.victims.contains(&node);
        let place = (u64::from(node.0), settings.disk.victims.len() as u64);
        Self {
            disk: MemDisk::with_sectors(settings.sector_bytes),
            rng: Rng::with_seed(seed ^ u64::from(node.0) << 48),
            place,
            settings: if victim { settings.disk.clone() } else { DiskSettings::default() },
            met: FaultCounts::default(),
            doubt: Doubt::None,
            second_copy_needed: false,
            damaged: false,
            misread: false,
            unreadable: false,
            journal: Vec::new(),
            files: BTreeMap::new(),
            bad: Vec::new(),
            read_only: false,
            lied: BTreeSet::new(),
            lied_of_names: false,
        }
    }

    /// No new faults if the world has none any more. Moves the counts of what was met.
    pub(super) fn settle(&mut self, settings: &StorageSettings, counts: &mut FaultCounts) {
        if settings.disk.victims.is_empty() && !self.settings.kinds.is_empty() {
            self.settings.kinds.clear();
            self.disk.limit_bytes(None);
        }
        counts.add(&core::mem::take(&mut self.met));
    }

    pub(super) const fn operations(&self) -> u64 {
        self.disk.operations()
    }

    pub(super) const fn fail_at(&mut self, operation: u64, error: DiskError) {
        self.disk.fail_at(operation, error);
    }

    /// An opening begins. Some find the disk nearly full.
    pub(super) fn begin_opening(&mut self) {
        (self.misread, self.unreadable) = (false, false);
        let full = self.has(Fault::DiskFull) && self.rng.u8(0..4) == 0;
        let limit = self.disk.used_bytes() + self.rng.u64(0..400 << 10);
        self.disk.limit_bytes(full.then_some(limit));
    }

    /// Whether the opening met a bad sector: it meets it again.
    pub(super) const fn was_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Whether a refused opening is worth another try: what was read was not what is there.
    pub(super) const fn was_misread(&self) -> bool {
        self.misread
    }

    /// Whether the log may refuse to open.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged || !self.bad.is_empty()
    }

    /// What the next successful opening may lack.
    pub(super) const fn take_doubt(&mut self) -> Doubt {
        self.second_copy_needed = false;
        core::mem::replace(&mut self.doubt, Doubt::None)
    }

    fn has(&self, kind: Fault) -> bool {
        self.settings.kinds.contains(&kind)
    }

    fn meets(&mut self, kind: Fault) -> bool {
        // A lie costs nothing unless the power fails before the next sync.
        let often = if kind.is_silent() { 16 } else { 1 };
        self.has(kind) && self.rng.u32(0..10_000) < u32::from(self.settings.under_way_per_10k) * often
    }

    fn doubts(&mut self, doubt: Doubt) {
        self.doubt = self.doubt.max(doubt);
    }

    /// Loses power, see [`MemDisk::crash`]; then something at rest may be found damaged.
    pub(super) fn crash(&mut self, keep: &mut dyn FnMut() -> bool) {
        let lied = !self.lied.is_empty();
        let mut lost = false;
        self.disk.crash(&mut || {
            let kept = keep();
            lost |= !kept;
            kept
        });
        if lost && lied {
            self.met[Fault::SyncLied] += 1;
        }
        if lost && self.lied_of_names {
            self.met[Fault::EntryLost] += 1;
        }
        if lost && (lied || self.lied_of_names) {
            self.damaged = true;
            self.doubts(Doubt::Silent);
        }
        self.files.clear();
        self.lied.clear();
        (self.read_only, self.lied_of_names) = (false, false);
        self.disk.limit_bytes(None);
        let at_rest: Vec<Fault> = self.settings.kinds.iter().copied().filter(|kind| is_at_rest(*kind)).collect();
        if !at_rest.is_empty() && self.rng.u16(0..1000) < self.settings.at_rest_per_mille {
            let mut kind = at_rest[self.rng.usize(0..at_rest.len())];
            // Rather one that the node goes on with: what stays down meets nothing any more.
            let goes_on: Vec<Fault> = at_rest.iter().copied().filter(|kind| goes_on(*kind)).collect();
            if !goes_on.is_empty() && self.rng.u8(0..4) != 0 {
                kind = goes_on[self.rng.usize(0..goes_on.len())];
            }
            self.damage(kind);
        }
    }

    // ---- at rest

    /// Whether what was written still stands where it was written.
    fn stands(&self, at: usize) -> bool {
        let Written { name, offset, after, .. } = &self.journal[at];
        let start = *offset as usize;
        self.disk.bytes(name).and_then(|bytes| bytes.get(start..start + after.len())) == Some(&after[..])
    }

    /// Writes of groups that still stand, oldest first.
    fn groups(&self) -> Vec<usize> {
        let is_group = |written: &Written| {
            let from = FRAMES_START.saturating_sub(written.offset) as usize;
            let kind = written.after.get(from..from + 8).filter(|head| head[4..6] == *b"RF").map(|head| head[7]);
            written.name.as_str().starts_with("seg-") && matches!(kind, Some(1 | 2))
        };
        (0..self.journal.len()).filter(|at| is_group(&self.journal[*at]) && self.stands(*at)).collect()
    }

    fn proven(&self) -> Vec<usize> {
        let mut groups = self.groups();
        groups.truncate(groups.len().saturating_sub(UNPROVEN));
        groups
    }

    fn pick(&mut self, of: &[usize]) -> Option<usize> {
        (!of.is_empty()).then(|| of[self.rng.usize(0..of.len())])
    }

    /// Flips some bits of one byte that is not zero.
    fn flip(&mut self, name: &FileName, range: Range<u64>) -> bool {
        let Some(bytes) = self.disk.bytes(name) else { return false };
        let end = range.end.min(bytes.len() as u64);
        let full: Vec<u64> = (range.start..end).filter(|at| bytes[*at as usize] != 0).collect();
        let Some(at) = (!full.is_empty()).then(|| full[self.rng.usize(0..full.len())]) else { return false };
        let flipped = bytes[at as usize] ^ self.rng.u8(1..);
        self.disk.damage(name, at, &[flipped]);
        self.damaged = true;
        true
    }

    fn rot(&mut self, at: usize) -> bool {
        let Written { name, offset, after, .. } = &self.journal[at];
        let (name, range) = (name.clone(), *offset..*offset + after.len() as u64);
        self.flip(&name, range)
    }

    /// What was written never arrived.
    fn lose_write(&mut self, at: usize) {
        let Written { name, offset, before, .. } = &self.journal[at];
        self.disk.damage(name, *offset, before);
        self.damaged = true;
    }

    fn files(&self, wanted: &[&str]) -> Vec<FileName> {
        let wanted = |name: &&FileName| wanted.iter().any(|start| name.as_str().starts_with(start));
        self.disk.names().filter(wanted).cloned().collect()
    }

    fn damage(&mut self, kind: Fault) {
        let done = match kind {
            Fault::BitRot => self.pick(&self.proven()).is_some_and(|at| self.rot(at)),
            Fault::Helical => {
                let (place, nodes) = self.place;
                let mut own = self.proven();
                own.retain(|at| *at as u64 % nodes == place % nodes);
                self.pick(&own).is_some_and(|at| self.rot(at))
            }
            Fault::TailRot | Fault::RegisterRot if self.second_copy_needed => false,
            Fault::TailRot => {
                self.doubts(Doubt::Tail);
                self.second_copy_needed = self.groups().last().is_some_and(|at| self.rot(*at));
                self.second_copy_needed
            }
            Fault::TailLost => match self.groups().last().copied() {
                Some(at) => {
                    self.doubts(Doubt::Silent);
                    self.lose_write(at);
                    true
                }
                None => false,
            },
            Fault::WriteLost => self.pick(&self.proven()).map(|at| self.lose_write(at)).is_some(),
            Fault::WriteMisdirected => self.misdirect(),
            Fault::LatentError => match self.pick(&self.proven()) {
                Some(at) => {
                    let Written { name, offset, after, .. } = &self.journal[at];
                    let at = offset + self.rng.u64(0..after.len() as u64) / SECTOR_BYTES * SECTOR_BYTES;
                    self.bad.push((name.clone(), at..at + SECTOR_BYTES));
                    // Counted once it is read.
                    return;
                }
                None => false,
            },
            Fault::RegisterRot => {
                self.second_copy_needed = self.rot_register();
                self.second_copy_needed
            }
            Fault::SnapshotRot => {
                let snapshots = self.files(&["snap-"]);
                let picked = (!snapshots.is_empty()).then(|| snapshots[self.rng.usize(0..snapshots.len())].clone());
                picked.is_some_and(|name| self.flip(&name, 0..u64::MAX))
            }
            Fault::FileMissing | Fault::FileTruncated => self.lose_file(kind),
            _ => false,
        };
        if done {
            self.met[kind] += 1;
        }
    }

    fn misdirect(&mut self) -> bool {
        let proven = self.proven();
        let (Some(lost), Some(hit)) = (self.pick(&proven), self.pick(&proven)) else { return false };
        if lost == hit {
            return false;
        }
        self.lose_write(lost);
        let (from, to) = (&self.journal[lost], &self.journal[hit]);
        self.disk.damage(&to.name, to.offset, &from.after[..from.after.len().min(to.after.len())]);
        true
    }

    /// Rots a copy of registers, the last or an older one.
    fn rot_register(&mut self) -> bool {
        let mut copies = Vec::new();
        for name in self.files(&["seg-"]) {
            let bytes = self.disk.bytes(&name).expect("it is listed");
            for (block, head) in bytes.chunks(4096).enumerate().filter(|(_, block)| block.len() >= 64) {
                if head[4..6] == *b"RF" && head[7] == 3 {
                    copies.push((name.clone(), block as u64 * 4096));
                }
            }
        }
        if copies.is_empty() {
            return false;
        }
        let (name, offset) = copies[self.rng.usize(0..copies.len())].clone();
        self.doubts(Doubt::Tail);
        self.flip(&name, offset..offset + 128)
    }

    /// A file that the log cannot do without is gone or cut short; never the newest segment, of which nothing may tell.
    fn lose_file(&mut self, kind: Fault) -> bool {
        let mut segments = self.files(&["seg-"]);
        if kind == Fault::FileMissing {
            segments.truncate(segments.len().saturating_sub(2));
        }
        let mut files = self.files(&["snap-"]);
        files.append(&mut segments);
        if files.is_empty() {
            return false;
        }
        let name = files[self.rng.usize(0..files.len())].clone();
        if kind == Fault::FileMissing {
            self.disk.lose(&name);
        } else {
            let bytes = self.disk.bytes(&name).map_or(0, <[u8]>::len) as u64;
            self.disk.truncate(&name, self.rng.u64(0..bytes.max(1)));
        }
        self.damaged = true;
        true
    }

    // ---- under way

    fn write(&mut self, file: FileId, offset: u64, buffers: Vec<Bytes>) -> Result<DiskAnswer, DiskError> {
        if self.meets(Fault::WritePart) {
            self.met[Fault::WritePart] += 1;
            let whole: Vec<u8> = buffers.concat();
            let part = Bytes::copy_from_slice(&whole[..self.rng.usize(0..=whole.len())]);
            let _ = self.disk.execute(DiskOp::Write { file, offset, buffers: vec![part] });
            return Err(EIO);
        }
        if !self.settings.kinds.is_empty()
            && let Some(name) = self.files.get(&file).cloned()
        {
            let after: Vec<u8> = buffers.concat();
            let end = offset + after.len() as u64;
            self.bad.retain(|(bad, range)| *bad != name || range.end <= offset || range.start >= end);
            if after.iter().any(|byte| *byte != 0) {
                let known = self.disk.bytes(&name).unwrap_or_default();
                let mut before = known.get(offset as usize..).unwrap_or_default().to_vec();
                before.resize(after.len(), 0);
                if self.journal.len() == JOURNAL_MAX {
                    self.journal.remove(0);
                }
                self.journal.push(Written { name, offset, before, after });
            }
        }
        self.disk.execute(DiskOp::Write { file, offset, buffers })
    }

    fn read(&mut self, file: FileId, offset: u64, bytes: usize) -> Result<DiskAnswer, DiskError> {
        let op = DiskOp::Read { file, offset, bytes };
        let Some(name) =
            self.files.get(&file).cloned().filter(|_| !self.settings.kinds.is_empty() || !self.bad.is_empty())
        else {
            return self.disk.execute(op);
        };
        let end = offset + bytes as u64;
        if self.meets(Fault::LatentError) {
            let at = self.rng.u64(offset..end.max(offset + 1)) / SECTOR_BYTES * SECTOR_BYTES;
            self.bad.push((name.clone(), at..at + SECTOR_BYTES));
        }
        if self.bad.iter().any(|(bad, range)| *bad == name && range.start < end && offset < range.end) {
            self.met[Fault::LatentError] += 1;
            self.unreadable = true;
            return Err(EIO);
        }
        if self.meets(Fault::BitRot) {
            let read = |at: &usize| {
                let Written { name: of, offset: from, after, .. } = &self.journal[*at];
                *of == name && *from < end && offset < from + after.len() as u64
            };
            let read: Vec<usize> = self.proven().into_iter().filter(read).collect();
            if self.pick(&read).is_some_and(|at| self.rot(at)) {
                self.met[Fault::BitRot] += 1;
            }
        }
        if self.meets(Fault::ReadMisdirected) {
            let length = self.disk.bytes(&name).map_or(0, <[u8]>::len) as u64;
            let elsewhere = self.rng.u64(0..length.max(1)) / SECTOR_BYTES * SECTOR_BYTES;
            let answer = self.disk.execute(DiskOp::Read { file, offset: elsewhere, bytes })?;
            // Zeros look like the end of the log: only a disk that answers otherwise the next time could be found out.
            if matches!(&answer, DiskAnswer::Read(read) if elsewhere != offset && read.iter().any(|byte| *byte != 0)) {
                self.met[Fault::ReadMisdirected] += 1;
                self.misread = true;
                self.doubts(Doubt::Misread);
                return Ok(answer);
            }
        }
        let answer = self.disk.execute(op)?;
        if self.meets(Fault::ReadStale)
            && let DiskAnswer::Read(read) = &answer
        {
            let inside = |at: &usize| {
                let written = &self.journal[*at];
                written.name == name && written.offset >= offset && written.offset < offset + read.len() as u64
            };
            let stale: Vec<usize> = self.proven().into_iter().filter(inside).collect();
            if let Some(at) = self.pick(&stale) {
                let Written { offset: from, before, .. } = &self.journal[at];
                let mut read = read.to_vec();
                let start = (from - offset) as usize;
                let take = before.len().min(read.len() - start);
                read[start..start + take].copy_from_slice(&before[..take]);
                self.met[Fault::ReadStale] += 1;
                self.misread = true;
                return Ok(DiskAnswer::Read(read.into()));
            }
        }
        Ok(answer)
    }

    fn renamed(&mut self, from: &FileName, to: &FileName) {
        let names = self.files.values_mut().chain(self.journal.iter_mut().map(|written| &mut written.name));
        for name in names.chain(self.bad.iter_mut().map(|(name, _)| name)) {
            if name == from {
                *name = to.clone();
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskAnswer, DiskError> {
        let changes = !matches!(op, DiskOp::Read { .. } | DiskOp::Open { .. } | DiskOp::List | DiskOp::Close { .. });
        if changes && !self.read_only && self.meets(Fault::ReadOnly) {
            self.read_only = true;
        }
        if changes && self.read_only {
            self.met[Fault::ReadOnly] += 1;
            return Err(DiskError::ReadOnly);
        }
        let result = match op {
            DiskOp::Write { file, offset, buffers } => self.write(file, offset, buffers),
            DiskOp::Read { file, offset, bytes } => self.read(file, offset, bytes),
            DiskOp::Sync { file } if self.meets(Fault::SyncLied) => {
                self.lied.insert(file);
                Ok(DiskAnswer::Done)
            }
            DiskOp::Sync { file } => {
                let result = self.disk.execute(DiskOp::Sync { file });
                // A sync that fails forgets what it was to save, and with it what an earlier one had lied about.
                if self.lied.remove(&file) && result.is_err() {
                    self.met[Fault::SyncLied] += 1;
                    self.damaged = true;
                    self.doubts(Doubt::Silent);
                }
                result
            }
            DiskOp::SyncDir if self.meets(Fault::EntryLost) => {
                self.lied_of_names = true;
                Ok(DiskAnswer::Done)
            }
            DiskOp::SyncDir => {
                let result = self.disk.execute(DiskOp::SyncDir);
                self.lied_of_names &= result.is_err();
                result
            }
            DiskOp::Create { file, ref name } | DiskOp::Open { file, ref name } => {
                self.files.insert(file, name.clone());
                self.disk.execute(op)
            }
            DiskOp::Rename { ref from, ref to } => {
                let (from, to) = (from.clone(), to.clone());
                let result = self.disk.execute(op);
                if result.is_ok() {
                    self.renamed(&from, &to);
                }
                result
            }
            DiskOp::Remove { ref name } => {
                let name = name.clone();
                self.bad.retain(|(bad, _)| *bad != name);
                self.disk.execute(op)
            }
            op => self.disk.execute(op),
        };
        if result == Err(DiskError::NoSpace) {
            self.met[Fault::DiskFull] += 1;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    /// Found by the register on the real log, seed 1740.
    #[test]
    fn a_sync_that_fails_after_one_that_lied_may_have_cost_anything() {
        let mut settings = Settings::calm(3).storage;
        let sound = settings.clone();
        settings.disk = DiskSettings {
            victims: vec![NodeId(1)],
            kinds: vec![Fault::SyncLied],
            at_rest_per_mille: 0,
            under_way_per_10k: 10_000,
        };
        let mut disk = FaultyDisk::new(NodeId(1), &settings, 1);
        let (file, mut counts) = (FileId(1), FaultCounts::default());
        disk.execute(DiskOp::Create { file, name: FileName::new("a") }).expect("there is room");
        disk.execute(DiskOp::Write { file, offset: 0, buffers: vec![Bytes::from_static(b"x")] })
            .expect("there is room");
        assert_eq!(disk.execute(DiskOp::Sync { file }), Ok(DiskAnswer::Done));
        assert_eq!(disk.take_doubt(), Doubt::None);
        disk.settle(&sound, &mut counts);
        disk.fail_at(disk.operations() + 1, EIO);
        assert_eq!(disk.execute(DiskOp::Sync { file }), Err(EIO));
        disk.settle(&sound, &mut counts);
        assert_eq!((disk.take_doubt(), counts[Fault::SyncLied]), (Doubt::Silent, 1));
    }

    /// Found by a multi-leader group on the real log, seed 2144: a crash during the opening rotted the group before as well.
    #[test]
    fn only_the_last_group_rots_until_the_log_has_been_opened() {
        let mut settings = Settings::calm(3).storage;
        settings.disk = DiskSettings {
            victims: vec![NodeId(1)],
            kinds: vec![Fault::TailRot],
            at_rest_per_mille: 1000,
            under_way_per_10k: 0,
        };
        let mut disk = FaultyDisk::new(NodeId(1), &settings, 1);
        let file = FileId(1);
        disk.execute(DiskOp::Create { file, name: FileName::new("seg-1") }).expect("there is room");
        let mut group = [1; 64];
        group[4..8].copy_from_slice(b"RF\0\x01");
        for offset in [FRAMES_START, FRAMES_START + 4096] {
            let buffers = vec![Bytes::copy_from_slice(&group)];
            disk.execute(DiskOp::Write { file, offset, buffers }).expect("there is room");
        }
        disk.execute(DiskOp::Sync { file }).expect("nothing fails");
        disk.execute(DiskOp::SyncDir).expect("nothing fails");
        let mut stands = |times: usize| {
            (0..times).for_each(|_| disk.crash(&mut || true));
            (disk.stands(0), disk.stands(1), disk.take_doubt())
        };
        assert_eq!(stands(2), (true, false, Doubt::Tail), "the first group is proven by the second");
        assert_eq!(stands(1), (false, false, Doubt::Tail), "it was opened: what it cut is gone");
    }

    /// Seed 99909 of all scenarios: the last group rotted, the log crashed while it was opened, and the copy of the group's registers
    /// rotted as well.
    #[test]
    fn registers_keep_one_of_their_two_copies_until_the_log_has_been_opened() {
        for seed in 0..50 {
            let mut settings = Settings::calm(3).storage;
            settings.disk = DiskSettings {
                victims: vec![NodeId(1)],
                kinds: vec![Fault::TailRot, Fault::RegisterRot],
                at_rest_per_mille: 1000,
                under_way_per_10k: 0,
            };
            let mut disk = FaultyDisk::new(NodeId(1), &settings, seed);
            let (file, name) = (FileId(1), FileName::new("seg-1"));
            disk.execute(DiskOp::Create { file, name: name.clone() }).expect("there is room");
            let mut group = [1; 8192];
            group[4..8].copy_from_slice(b"RF\0\x01");
            group[4100..4104].copy_from_slice(b"RF\0\x03");
            let buffers = vec![Bytes::copy_from_slice(&group)];
            disk.execute(DiskOp::Write { file, offset: FRAMES_START, buffers }).expect("there is room");
            disk.execute(DiskOp::Sync { file }).expect("nothing fails");
            disk.execute(DiskOp::SyncDir).expect("nothing fails");
            (0..4).for_each(|_| disk.crash(&mut || true));
            let found = &disk.disk.bytes(&name).expect("it was written")[FRAMES_START as usize..];
            let stands = |at: usize| found[at..at + 4096] == group[at..at + 4096];
            assert!(stands(0) != stands(4096), "one of the two has rotted");
        }
    }
}
