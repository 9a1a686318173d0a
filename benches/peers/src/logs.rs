//! Logs as libraries in this process: batches of entries, one behind the other, by one thread.
//!
//! Invariant: the bytes of the entries are the same for every log, and no log compresses them. What lies further back than a
//! replica keeps is released, as it is by replikit's own side, so that each may use its files again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Instant;

use okaywal::{Configuration, LogVoid, WriteAheadLog};
use protobuf::well_known_types::BytesValue;
use raft_engine::env::DefaultFileSystem;
use raft_engine::internals::FilePipeLog;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use replikit_benches::disk_log::{self, BATCH_ENTRIES, ENTRY_BYTES, FILL_BYTES, KEPT_BYTES, Syncs};
use replikit_benches::error::BenchError;
use replikit_benches::load::Window;
use replikit_benches::recorder::Latencies;

use crate::sample::Sample;

const ENTRY: [u8; ENTRY_BYTES] = [7; ENTRY_BYTES];
const SEGMENT_BYTES: u64 = 64 << 20;
/// A whole batch of the largest size is buffered before it is written.
const BUFFER_BYTES: usize = 512 << 10;

/// A log to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogKind {
    /// Ours.
    Replikit,
    /// The crate `okaywal`.
    OkayWal,
    /// The crate `raft-engine`.
    RaftEngine,
}

impl LogKind {
    /// The crate that it is in.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Replikit => "replikit-log",
            Self::OkayWal => "okaywal",
            Self::RaftEngine => "raft-engine",
        }
    }

    /// How it is set up.
    fn configuration(self) -> BTreeMap<String, String> {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let settings = match self {
            Self::Replikit => vec![
                ("segments", "up to 64 MiB, used again".to_owned()),
                ("released", format!("{} behind the end", mib(KEPT_BYTES))),
                ("compression", "none; it has none".to_owned()),
                ("without fsync", "its disk says that it synced, and did not".to_owned()),
            ],
            Self::OkayWal => vec![
                ("preallocate_bytes", mib(SEGMENT_BYTES)),
                ("checkpoint_after_bytes", format!("{}, by a manager that keeps nothing", mib(SEGMENT_BYTES * 3 / 4))),
                ("buffer_bytes", format!("{} KiB", BUFFER_BYTES >> 10)),
                ("batch", "one entry of so many chunks".to_owned()),
            ],
            Self::RaftEngine => vec![
                ("target_file_size", mib(SEGMENT_BYTES)),
                ("purge_threshold", mib(KEPT_BYTES)),
                ("released", format!("{} behind the end, by compact_to and purge_expired_files", mib(KEPT_BYTES))),
                ("enable_log_recycle", "true".to_owned()),
                ("batch_compression_threshold", "0: none".to_owned()),
                ("format_version", "V2".to_owned()),
            ],
        };
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Appends batches of so many entries for the time of a window. Blocks.
    ///
    /// # Errors
    /// When the disk fails, or the log cannot work in this way.
    pub fn measure(self, folder: &Path, entries: usize, syncs: Syncs, window: Window) -> Result<Sample, BenchError> {
        let (rate, latencies) = match self {
            Self::Replikit => {
                let appends = disk_log::one_writer(folder, entries, syncs, window.measured)?;
                (appends.entries_per_second, appends.latencies)
            }
            Self::OkayWal => repeat(&mut OkayWal::open(folder, entries, syncs)?, entries, window)?,
            Self::RaftEngine => repeat(&mut RaftEngine::open(folder, entries, syncs)?, entries, window)?,
        };
        let acknowledged = match syncs {
            Syncs::Each => "on the disk",
            Syncs::Never => "in the kernel's cache",
        };
        let acknowledged = acknowledged.to_owned();
        Ok(Sample { rate, latencies, configuration: self.configuration(), acknowledged, ..Sample::default() })
    }

    fn failed(self, error: impl fmt::Display) -> BenchError {
        BenchError::Engine { engine: self.package().to_owned(), what: error.to_string() }
    }
}

/// A log that takes batches.
trait Appends {
    /// From now on batches have so many entries.
    fn resize(&mut self, entries: usize);

    /// Appends a batch; on return it is as durable as was asked for.
    fn append(&mut self) -> Result<(), BenchError>;
}

/// Writes until the files of any of the logs are used again, as replikit's own side of the measurement does.
fn fill(log: &mut dyn Appends, entries: usize) -> Result<(), BenchError> {
    log.resize(BATCH_ENTRIES);
    for _ in 0..FILL_BYTES.div_ceil((BATCH_ENTRIES * ENTRY_BYTES) as u64) {
        log.append()?;
    }
    log.resize(entries);
    Ok(())
}

/// Entries a second, and how long each batch took.
fn repeat(log: &mut dyn Appends, entries: usize, window: Window) -> Result<(f64, Latencies), BenchError> {
    fill(log, entries)?;
    let warm_up = Instant::now();
    while warm_up.elapsed() < window.warm_up {
        log.append()?;
    }
    let (start, mut done, mut latencies) = (Instant::now(), 0_u64, Latencies::new());
    while start.elapsed() < window.measured {
        let begun = Instant::now();
        log.append()?;
        latencies.record(begun.elapsed());
        done += entries as u64;
    }
    Ok((done as f64 / start.elapsed().as_secs_f64(), latencies))
}

struct OkayWal {
    /// `None` once it was shut down.
    log: Option<WriteAheadLog>,
    entries: usize,
}

impl OkayWal {
    fn open(folder: &Path, entries: usize, syncs: Syncs) -> Result<Self, BenchError> {
        if syncs == Syncs::Never {
            return Err(LogKind::OkayWal.failed("it has no commit without fsync"));
        }
        let configuration = Configuration::default_for(folder)
            .preallocate_bytes(SEGMENT_BYTES as u32)
            .checkpoint_after_bytes(SEGMENT_BYTES * 3 / 4)
            .buffer_bytes(BUFFER_BYTES);
        let log = configuration.open(LogVoid).map_err(|error| LogKind::OkayWal.failed(error))?;
        Ok(Self { log: Some(log), entries })
    }
}

impl Appends for OkayWal {
    fn resize(&mut self, entries: usize) {
        self.entries = entries;
    }

    fn append(&mut self) -> Result<(), BenchError> {
        let log = self.log.as_ref().expect("it is shut down by dropping it only");
        let append = || {
            let mut batch = log.begin_entry()?;
            for _ in 0..self.entries {
                batch.write_chunk(&ENTRY)?;
            }
            batch.commit()
        };
        append().map(drop).map_err(|error| LogKind::OkayWal.failed(error))
    }
}

impl Drop for OkayWal {
    fn drop(&mut self) {
        // Its thread would otherwise write on in a folder that is about to be removed. What it has not written nobody reads.
        let _ = self.log.take().map(WriteAheadLog::shutdown);
    }
}

/// An entry whose first bytes are its index, for raft-engine asks an entry for that.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let index = entry.value.first_chunk().expect("an entry begins with its index");
        u64::from_be_bytes(*index)
    }
}

/// The one stream of entries.
const REGION: u64 = 1;

struct RaftEngine {
    log: Engine<DefaultFileSystem, FilePipeLog<DefaultFileSystem>>,
    /// Used again for each batch.
    entries: Vec<BytesValue>,
    sync: bool,
    next: u64,
    released: u64,
}

impl RaftEngine {
    fn open(folder: &Path, entries: usize, syncs: Syncs) -> Result<Self, BenchError> {
        let config = Config {
            dir: folder.display().to_string(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            target_file_size: ReadableSize(SEGMENT_BYTES),
            purge_threshold: ReadableSize(KEPT_BYTES),
            batch_compression_threshold: ReadableSize(0),
            enable_log_recycle: true,
            ..Config::default()
        };
        let log = Engine::open(config).map_err(|error| LogKind::RaftEngine.failed(error))?;
        let mut entry = BytesValue::new();
        entry.set_value(ENTRY.to_vec());
        Ok(Self { log, entries: vec![entry; entries], sync: syncs == Syncs::Each, next: 1, released: 1 })
    }

    /// Releases what lies further back than is kept, a segment at a time.
    fn release(&mut self) -> raft_engine::Result<()> {
        const KEPT: u64 = KEPT_BYTES / ENTRY_BYTES as u64;
        const STEP: u64 = SEGMENT_BYTES / ENTRY_BYTES as u64;
        if self.next > self.released + KEPT + STEP {
            self.released = self.next - KEPT;
            self.log.compact_to(REGION, self.released);
            self.log.purge_expired_files()?;
        }
        Ok(())
    }
}

impl Appends for RaftEngine {
    fn resize(&mut self, entries: usize) {
        self.entries = vec![self.entries[0].clone(); entries];
    }

    fn append(&mut self) -> Result<(), BenchError> {
        for entry in &mut self.entries {
            entry.value[..8].copy_from_slice(&self.next.to_be_bytes());
            self.next += 1;
        }
        let mut batch = LogBatch::with_capacity(self.entries.len() * (ENTRY_BYTES + 8));
        let appended = batch
            .add_entries::<Indexed>(REGION, &self.entries)
            .and_then(|()| self.log.write(&mut batch, self.sync))
            .and_then(|_| self.release());
        appended.map_err(|error| LogKind::RaftEngine.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WINDOW: Window = Window { warm_up: Duration::from_millis(10), measured: Duration::from_millis(40) };

    #[test]
    fn every_log_appends_what_it_is_asked_to() {
        for kind in [LogKind::Replikit, LogKind::OkayWal, LogKind::RaftEngine] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let sample = kind.measure(folder.path(), 3, Syncs::Each, WINDOW).expect("the disk works");
            assert!(sample.rate > 0.0 && sample.latencies.count() > 0, "{kind:?}: {sample:?}");
            assert_eq!(sample.acknowledged, "on the disk");
        }
    }

    #[test]
    fn raft_engine_holds_every_entry_that_was_appended() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = RaftEngine::open(folder.path(), 5, Syncs::Each).expect("the disk works");
        for _ in 0..4 {
            log.append().expect("the disk works");
        }
        assert_eq!((log.log.first_index(REGION), log.log.last_index(REGION)), (Some(1), Some(20)));
        let entry = log.log.get_entry::<Indexed>(REGION, 17).expect("the log is sound").expect("it was appended");
        assert_eq!((Indexed::index(&entry), entry.value.len()), (17, ENTRY_BYTES));
    }

    #[test]
    fn okaywal_gives_back_every_chunk_that_was_appended() {
        #[derive(Debug, Clone, Default)]
        struct Recovered(std::sync::Arc<std::sync::Mutex<Vec<usize>>>);

        impl okaywal::LogManager for Recovered {
            fn recover(&mut self, entry: &mut okaywal::Entry<'_>) -> std::io::Result<()> {
                let chunks = entry.read_all_chunks()?.unwrap_or_default();
                assert!(chunks.iter().all(|chunk| chunk == &ENTRY));
                self.0.lock().expect("nothing panics under it").push(chunks.len());
                Ok(())
            }

            fn checkpoint_to(
                &mut self,
                _: okaywal::EntryId,
                _: &mut okaywal::SegmentReader,
                _: &WriteAheadLog,
            ) -> std::io::Result<()> {
                Ok(())
            }
        }

        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = OkayWal::open(folder.path(), 5, Syncs::Each).expect("the disk works");
        for _ in 0..4 {
            log.append().expect("the disk works");
        }
        drop(log);
        let recovered = Recovered::default();
        let again = Configuration::default_for(folder.path()).open(recovered.clone()).expect("the disk works");
        again.shutdown().expect("it ends");
        assert_eq!(*recovered.0.lock().expect("nothing panics under it"), [5, 5, 5, 5]);
    }

    #[test]
    fn a_log_without_such_a_mode_says_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = LogKind::OkayWal.measure(folder.path(), 1, Syncs::Never, WINDOW).expect_err("it always syncs");
        assert!(error.to_string().contains("no commit without fsync"), "{error}");
    }
}
