//! The shared log alone, on real files: each append waits for its fsync. Beside it the floor: the same bytes written to one
//! file of written zeros, with fdatasync. And, to tell the disk's share from the log's own, appends that wait for no fsync.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use replikit_core::{
    Batch, BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp, LogIndex, NodeId, Persist, StreamId, Term,
    WriteId,
};
use replikit_log::{Disk, DiskAnswer, DiskError, DiskOp, FileDisk, Lane, Log, LogConfig, LogOutput, OpId, Storage};
use replikit_sync::{Watermark, group_queue};

use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::recorder::Latencies;

/// Size of an entry.
pub const ENTRY_BYTES: usize = 256;
/// Threads that wait for durability at once.
pub const THREADS: usize = 64;
/// Entries in a large batch.
pub const BATCH_ENTRIES: usize = 1_000;
/// Log that is opened.
pub const OPEN_BYTES: u64 = 1 << 30;
const ENTRY: [u8; ENTRY_BYTES] = [7; ENTRY_BYTES];
/// The log is released this far behind its end, as a replica that takes snapshots would.
pub const KEPT_BYTES: u64 = 128 << 20;
/// What is written before anything is measured: so much, and every further segment is a file that is used again. A log that is
/// younger fills each of its files with zeros first, beside the appends.
pub const FILL_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 3 * KEPT_BYTES };
const QUEUE_ITEMS_MAX: usize = 4_096;

/// Whether an append waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// It is durable before the next one begins.
    Each,
    /// The bytes are the kernel's, which writes them when it likes.
    Never,
}

impl fmt::Display for Syncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Each => "fsync each",
            Self::Never => "no fsync",
        })
    }
}

/// Files whose syncs are carried out, or only said to be: the log itself has no mode without them.
#[derive(Clone)]
struct Files {
    disk: FileDisk,
    syncs: Syncs,
}

impl Disk for Files {
    fn execute(&mut self, op: DiskOp) -> Result<DiskAnswer, DiskError> {
        match (self.syncs, &op) {
            (Syncs::Never, DiskOp::Sync { .. } | DiskOp::SyncDir) => Ok(DiskAnswer::Done),
            _ => self.disk.execute(op),
        }
    }
}

/// What no commit waits for, on a thread of its own, as a node has it: segments that are prepared, sealed and used again.
struct Background {
    /// `None` once nothing more comes.
    operations: Option<Sender<(OpId, DiskOp)>>,
    ended: Receiver<(OpId, Result<DiskAnswer, DiskError>)>,
    under_way: usize,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    fn start(mut disk: Files) -> Self {
        let (operations, coming) = mpsc::channel();
        let (answers, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for (id, op) in coming {
                // Nobody asks any more once the log is gone.
                let _ = answers.send((id, disk.execute(op)));
            }
        });
        Self { operations: Some(operations), ended, under_way: 0, thread: Some(thread) }
    }

    fn begin(&mut self, id: OpId, op: DiskOp) {
        let operations = self.operations.as_ref().expect("the thread is told to end by dropping this only");
        operations.send((id, op)).expect("the thread reports its errors");
        self.under_way += 1;
    }

    /// An operation that has ended; `None` when none has.
    fn ended(&mut self) -> Option<(OpId, Result<DiskAnswer, DiskError>)> {
        let ended = self.ended.try_recv().ok()?;
        self.under_way -= 1;
        Some(ended)
    }

    /// The next operation that ends; `None` when none is under way.
    fn wait(&mut self) -> Option<(OpId, Result<DiskAnswer, DiskError>)> {
        if self.under_way == 0 {
            return None;
        }
        self.under_way -= 1;
        Some(self.ended.recv().expect("the thread answers everything"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.operations.take());
        // A thread that has panicked has said so itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What one case found.
#[derive(Clone, Debug)]
pub struct Appends {
    /// What was done.
    pub workload: String,
    /// Entries made durable a second.
    pub entries_per_second: f64,
    /// From handing a batch in to its durability; empty where it was not measured.
    pub latencies: Latencies,
    /// Calls of fsync per entry.
    pub fsyncs_per_entry: f64,
}

fn subject(workload: &str) -> Subject {
    Subject { engine: "log".to_owned(), workload: format!("log: {workload}"), ..Subject::default() }
}

impl Appends {
    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let subject = subject(&self.workload);
        let mut figures = vec![
            subject.figure("throughput", self.entries_per_second, "1/s", Better::Higher),
            subject.figure("fsyncs per entry", self.fsyncs_per_entry, "1", Better::Lower),
        ];
        if self.latencies.count() > 0 {
            for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                let micros = self.latencies.quantile(share).as_nanos() as f64 / 1e3;
                figures.push(subject.figure(&format!("latency {name}"), micros, "us", Better::Lower));
            }
        }
        figures
    }
}

/// What opening a log took.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Bytes of its batches.
    pub bytes: u64,
    /// Recovery: every group and its checksums read.
    pub open: Duration,
    /// Handing every batch out again, verified, as a replica gets them.
    pub replay: Duration,
}

impl Opened {
    /// The figures.
    #[must_use]
    pub fn figures(&self) -> [Figure; 2] {
        let subject = subject(&format!("open {} MiB, warm", self.bytes >> 20));
        let millis =
            |metric: &str, time: Duration| subject.figure(metric, time.as_secs_f64() * 1e3, "ms", Better::Lower);
        [millis("open", self.open), millis("replay of every batch", self.replay)]
    }
}

/// A log on files, its own stream, and where the stream stands.
struct Writer {
    log: Log,
    disk: Files,
    background: Background,
    stream: StreamId,
    write: WriteId,
    next: LogIndex,
    digest: u64,
    bytes: u64,
    /// Where each batch began, by bytes, for the release.
    released: LogIndex,
    marks: std::collections::VecDeque<(u64, LogIndex)>,
}

fn failed(what: impl Into<String>) -> BenchError {
    BenchError::Engine { engine: "log".to_owned(), what: what.into() }
}

fn config() -> LogConfig {
    LogConfig::new(ClusterId::from_name("bench"), NodeId(1))
}

fn open(folder: &Path, syncs: Syncs) -> Result<(Log, Files), BenchError> {
    let disk = FileDisk::open(folder).map_err(|error| failed(error.to_string()))?;
    let mut disk = Files { disk, syncs };
    let (log, _) = Log::open(config(), &mut disk).map_err(|error| failed(error.to_string()))?;
    Ok((log, disk))
}

impl Writer {
    fn create(folder: &Path, syncs: Syncs) -> Result<Self, BenchError> {
        let (log, disk) = open(folder, syncs)?;
        Ok(Self {
            log,
            background: Background::start(disk.clone()),
            disk,
            stream: StreamId::consensus(GroupId(1)),
            write: WriteId(0),
            next: LogIndex(1),
            digest: 0,
            bytes: 0,
            released: LogIndex(1),
            marks: std::collections::VecDeque::new(),
        })
    }

    fn persist(&mut self, op: Persist) -> WriteId {
        self.write = self.write.next();
        self.log.persist(self.write, op);
        self.write
    }

    /// Hands a batch of so many entries to the log.
    fn append(&mut self, entries: usize) -> WriteId {
        let meta = BatchMeta {
            cluster: config().cluster,
            stream: self.stream,
            base: self.next,
            term: Term(1),
            prev_digest: self.digest,
            time: HybridTimestamp(self.next.0),
            kind: BatchKind::Commands,
        };
        let batch = Batch::build(&meta, std::iter::repeat_n((&ENTRY[..], None), entries));
        self.digest = batch.digest();
        self.next = self.next.plus(entries as u64);
        self.bytes += batch.bytes() as u64;
        self.marks.push_back((self.bytes, self.next));
        self.persist(Persist::Append { batch, replace: false })
    }

    /// Releases what lies further back than a replica keeps.
    fn release(&mut self) {
        let mut before = self.released;
        while let Some(&(end, next)) = self.marks.front()
            && end + KEPT_BYTES < self.bytes
        {
            before = next;
            self.marks.pop_front();
        }
        if before > self.released {
            self.released = before;
            self.persist(Persist::Release { stream: self.stream, before });
        }
    }

    /// Carries out what the log wants done, and where that is nothing waits for the background; the newest durable write.
    fn flush(&mut self) -> Result<WriteId, BenchError> {
        let mut idle = true;
        loop {
            while let Some((id, result)) = self.background.ended() {
                self.log.complete(id, result);
            }
            match self.log.poll_disk() {
                Some((id, op)) if id.lane == Lane::Commit => {
                    let result = self.disk.execute(op);
                    self.log.complete(id, result);
                    idle = false;
                }
                Some((id, op)) => self.background.begin(id, op),
                None if idle && let Some((id, result)) = self.background.wait() => {
                    self.log.complete(id, result);
                    idle = false;
                }
                None => break,
            }
        }
        let mut durable = WriteId(0);
        while let Some(output) = self.log.poll() {
            match output {
                LogOutput::Durable { up_to } => durable = up_to,
                LogOutput::Storage(event) => return Err(failed(format!("the disk failed: {event:?}"))),
                _ => {}
            }
        }
        Ok(durable)
    }

    /// Makes a batch of so many entries durable; how long that took.
    fn commit(&mut self, entries: usize) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        let write = self.append(entries);
        while self.flush()? < write {}
        let took = begun.elapsed();
        self.release();
        Ok(took)
    }

    /// Writes until files are used again.
    fn fill(&mut self) -> Result<(), BenchError> {
        while self.bytes < FILL_BYTES {
            self.commit(BATCH_ENTRIES)?;
        }
        Ok(())
    }

    fn fsyncs(&self) -> u64 {
        let stats = self.disk.disk.stats();
        stats.syncs + stats.dir_syncs
    }
}

/// One batch of so many entries at a time, by the thread that waits for it.
///
/// # Errors
/// When the disk fails.
pub fn one_writer(folder: &Path, entries: usize, syncs: Syncs, measured: Duration) -> Result<Appends, BenchError> {
    let mut writer = Writer::create(folder, syncs)?;
    writer.fill()?;
    let mut latencies = Latencies::new();
    let (mut start, mut fsyncs, mut done) = (Instant::now(), 0, 0_u64);
    let mut warm = false;
    loop {
        if !warm && start.elapsed() >= measured / 4 {
            (warm, start, fsyncs, done, latencies) = (true, Instant::now(), writer.fsyncs(), 0, Latencies::new());
        }
        if warm && start.elapsed() >= measured {
            break;
        }
        latencies.record(writer.commit(entries)?);
        done += entries as u64;
    }
    let took = start.elapsed().as_secs_f64();
    Ok(Appends {
        workload: format!("one writer, batches of {entries}, {ENTRY_BYTES} B, {syncs}"),
        entries_per_second: done as f64 / took,
        latencies,
        fsyncs_per_entry: (writer.fsyncs() - fsyncs) as f64 / done.max(1) as f64,
    })
}

/// Many threads, each waiting for its entry's durability before it hands in the next; one thread drives the log.
///
/// # Errors
/// When the disk fails.
pub fn waiting_threads(folder: &Path, measured: Duration) -> Result<Appends, BenchError> {
    let mut writer = Writer::create(folder, Syncs::Each)?;
    writer.fill()?;
    let filled = writer.fsyncs();
    let (producer, mut consumer) = group_queue::<()>(QUEUE_ITEMS_MAX);
    let durable = Arc::new(Watermark::<BenchError>::new(0));
    let over = AtomicBool::new(false);
    let acked = AtomicU64::new(0);
    let (rate, fsyncs) = std::thread::scope(|scope| {
        let log = scope.spawn({
            let durable = durable.clone();
            move || {
                let mut items = Vec::new();
                while let Some(sequences) = consumer.take(&mut items) {
                    let mut write = WriteId(0);
                    for () in items.drain(..) {
                        write = writer.append(1);
                    }
                    loop {
                        match writer.flush() {
                            Ok(up_to) if up_to >= write => break,
                            Ok(_) => {}
                            Err(error) => {
                                durable.poison(error);
                                return writer.fsyncs();
                            }
                        }
                    }
                    durable.publish(sequences.end - 1);
                    writer.release();
                }
                writer.fsyncs()
            }
        });
        for _ in 0..THREADS {
            let producer = producer.clone();
            let (durable, over, acked) = (&durable, &over, &acked);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Ok(sequence) = producer.push(()) else { return };
                    if durable.wait(sequence).is_err() {
                        return;
                    }
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        drop(producer);
        std::thread::sleep(measured / 4);
        let (start, before) = (Instant::now(), acked.load(Ordering::Relaxed));
        std::thread::sleep(measured);
        let rate = (acked.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        (rate, log.join().expect("the log thread reports its errors"))
    });
    if let Some(poisoned) = durable.poisoned() {
        return Err(failed(poisoned.to_string()));
    }
    Ok(Appends {
        workload: format!("{THREADS} waiting threads, {ENTRY_BYTES} B, group commit"),
        entries_per_second: rate,
        latencies: Latencies::new(),
        // The warm-up and the segments' own syncs included.
        fsyncs_per_entry: (fsyncs - filled) as f64 / acked.into_inner().max(1) as f64,
    })
}

/// The floor: so many bytes written and synced in a file of written zeros.
///
/// # Errors
/// Those of the file system.
pub fn raw(folder: &Path, entries: usize, measured: Duration) -> Result<Appends, BenchError> {
    raw_file(folder, entries, measured).map_err(BenchError::io("writing the raw file"))
}

fn raw_file(folder: &Path, entries: usize, measured: Duration) -> io::Result<Appends> {
    const FILE_BYTES: u64 = 64 << 20;
    std::fs::create_dir_all(folder)?;
    let file = File::create(folder.join("raw"))?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset)?;
    }
    file.sync_all()?;
    let data = vec![7; entries * ENTRY_BYTES];
    let mut latencies = Latencies::new();
    let (start, mut offset, mut done) = (Instant::now(), 0, 0_u64);
    while start.elapsed() < measured {
        if offset + data.len() as u64 > FILE_BYTES {
            offset = 0;
        }
        let begun = Instant::now();
        file.write_all_at(&data, offset)?;
        file.sync_data()?;
        latencies.record(begun.elapsed());
        offset += data.len() as u64;
        done += entries as u64;
    }
    Ok(Appends {
        workload: format!("floor: raw file, batches of {entries}, {ENTRY_BYTES} B, fdatasync each"),
        entries_per_second: done as f64 / start.elapsed().as_secs_f64(),
        latencies,
        fsyncs_per_entry: 1.0 / entries as f64,
    })
}

/// Fills a log, closes it, and opens it again.
///
/// # Errors
/// When the disk fails, or what was written does not come back.
pub fn reopen(folder: &Path) -> Result<Opened, BenchError> {
    const ENTRIES: usize = 64;
    let mut writer = Writer::create(folder, Syncs::Each)?;
    let mut batches = 0_u64;
    while writer.bytes < OPEN_BYTES {
        // Several batches to a sync: only the content counts here.
        for _ in 0..64 {
            writer.append(ENTRIES);
            batches += 1;
        }
        writer.flush()?;
    }
    let write = writer.write;
    let mut durable = writer.flush()?;
    while durable < write && durable != WriteId(0) {
        durable = writer.flush()?;
    }
    let bytes = writer.bytes;
    writer.log.close();
    while !writer.log.is_closed() {
        writer.flush()?;
    }
    drop(writer);
    let start = Instant::now();
    let (log, mut disk) = open(folder, Syncs::Each)?;
    let open = start.elapsed();
    let start = Instant::now();
    let mut found = 0_u64;
    for item in log.recovery(&mut disk) {
        item.map_err(|error| failed(error.to_string()))?;
        found += 1;
    }
    if found != batches {
        return Err(failed(format!("{found} of {batches} batches came back")));
    }
    Ok(Opened { bytes, open, replay: start.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_writer_pays_one_sync_an_entry_and_a_crowd_shares_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let measured = Duration::from_millis(200);
        let alone = one_writer(&folder.path().join("one"), 1, Syncs::Each, measured).expect("the disk works");
        assert!((0.99..1.5).contains(&alone.fsyncs_per_entry), "{alone:?}");
        let crowd = waiting_threads(&folder.path().join("many"), measured).expect("the disk works");
        assert!(crowd.fsyncs_per_entry < 0.5, "{crowd:?}");
        assert!(crowd.entries_per_second > 0.0);
    }

    #[test]
    fn without_syncs_the_disk_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let appends = one_writer(folder.path(), 1, Syncs::Never, Duration::from_millis(100)).expect("the disk works");
        assert!(appends.entries_per_second > 0.0);
        assert_eq!(appends.fsyncs_per_entry, 0.0);
    }
}
