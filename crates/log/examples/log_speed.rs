//! How fast the log is on a directory's disk, beside what the disk itself can do.
//!
//! ```text
//! cargo run --release -p replikit-log --example log_speed [DIRECTORY [lone|batched|memory|open]]
//! ```
//!
//! Writes up to 2 GiB below the directory (the system's temporary one by default) and removes it again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replikit_core::{
    Batch, BatchKind, BatchMeta, ClusterId, GroupId, HybridTimestamp, LogIndex, NodeId, Persist, StreamId, Term,
    WriteId,
};
use replikit_log::{FileDisk, Log, LogConfig, LogOutput, MemDisk, RecoveryItem, Storage, drive};

/// Counts allocations: the log must not make one per entry.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ENTRY_BYTES: usize = 256;

/// Appends batches to one stream, and releases what is far behind.
struct Writer {
    stream: StreamId,
    next: u64,
    id: WriteId,
    digest: u64,
    payload: Vec<u8>,
}

impl Writer {
    fn new() -> Self {
        Self {
            stream: StreamId::consensus(GroupId(1)),
            next: 1,
            id: WriteId(0),
            digest: 0,
            payload: (0..ENTRY_BYTES).map(|byte| byte as u8).collect(),
        }
    }

    fn append(&mut self, log: &mut Log, entries: usize) {
        let meta = BatchMeta {
            cluster: cluster(),
            stream: self.stream,
            base: LogIndex(self.next),
            term: Term(1),
            prev_digest: self.digest,
            time: HybridTimestamp(self.next << 16),
            kind: BatchKind::Commands,
        };
        let batch = Batch::build(&meta, (0..entries).map(|_| (&self.payload[..], None)));
        self.next += entries as u64;
        self.digest = batch.digest();
        self.id = self.id.next();
        log.persist(self.id, Persist::Append { batch, replace: false });
    }

    fn release(&mut self, log: &mut Log, keep: u64) {
        self.id = self.id.next();
        let before = LogIndex(self.next.saturating_sub(keep));
        log.persist(self.id, Persist::Release { stream: self.stream, before });
    }
}

fn cluster() -> ClusterId {
    ClusterId::from_name("speed")
}

fn config() -> LogConfig {
    LogConfig::new(cluster(), NodeId(1))
}

fn wait(log: &mut Log, id: WriteId) {
    while let Some(output) = log.poll() {
        if let LogOutput::Durable { up_to } = output {
            assert!(up_to <= id, "nothing is durable before it was persisted");
        }
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

/// A write of one block and fdatasync, on a file that was filled with zeros.
fn raw(directory: &Path, rounds: usize, times: &mut Vec<Duration>) {
    let path = directory.join("raw");
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).expect("a file");
    if file.metadata().expect("its length").len() == 0 {
        for megabyte in 0..64 {
            file.write_all_at(&vec![0; 1 << 20], megabyte << 20).expect("space");
        }
        file.sync_all().expect("a sync");
    }
    let block = vec![7; 4096];
    for round in 0..rounds {
        let start = Instant::now();
        file.write_all_at(&block, (times.len() + round) as u64 % (16 << 10) * 4096).expect("a write");
        file.sync_data().expect("a sync");
        times.push(start.elapsed());
    }
}

/// The same as [`batched`] without a log: writes of this size and fdatasync.
fn raw_batched(directory: &Path, bytes: usize, rounds: usize) -> f64 {
    raw(directory, 1, &mut Vec::new());
    let file = OpenOptions::new().write(true).open(directory.join("raw")).expect("a file");
    let block = vec![7; bytes];
    let start = Instant::now();
    for round in 0..rounds {
        let offset = (round * bytes) % ((64 << 20) - bytes) / 4096 * 4096;
        file.write_all_at(&block, offset as u64).expect("a write");
        file.sync_data().expect("a sync");
    }
    start.elapsed().as_secs_f64() / rounds as f64
}

fn lone_writer(directory: &Path) {
    let path = directory.join("lone");
    let mut disk = FileDisk::open(&path).expect("a directory");
    let (mut log, _) = Log::open(config(), &mut disk).expect("an empty log opens");
    let mut writer = Writer::new();
    // Into the steady state: segments of full size, recycled.
    drive(&mut log, &mut disk);
    let (mut raw_times, mut times) = (Vec::new(), Vec::new());
    let mut slow = 0;
    for _ in 0..20 {
        raw(directory, 250, &mut raw_times);
        for _ in 0..250 {
            // Background work is done beside commits by a driver with threads; here it is kept out of the measured time.
            drive(&mut log, &mut disk);
            let start = Instant::now();
            writer.append(&mut log, 1);
            for _ in 0..2 {
                let Some((id, op)) = log.poll_disk() else { break };
                slow += u32::from(id.lane != replikit_log::Lane::Commit);
                let result = replikit_log::Disk::execute(&mut disk, op);
                log.complete(id, result);
            }
            times.push(start.elapsed());
            wait(&mut log, writer.id);
        }
        writer.release(&mut log, 1000);
    }
    let (raw_half, half) = (percentile(&mut raw_times, 50), percentile(&mut times, 50));
    println!("write + fdatasync of 4 KiB      p50 {raw_half:8.1} us   p99 {:8.1} us", percentile(&mut raw_times, 99));
    println!(
        "one 256 B entry, fsync each     p50 {half:8.1} us   p99 {:8.1} us   {:.2}x of raw ({slow} waited for a segment)",
        percentile(&mut times, 99),
        half / raw_half
    );
}

fn batched(directory: &Path, entries: usize, rounds: usize) {
    let path = directory.join(format!("batched-{entries}"));
    let mut disk = FileDisk::open(&path).expect("a directory");
    let (mut log, _) = Log::open(config(), &mut disk).expect("an empty log opens");
    let mut writer = Writer::new();
    let (mut spent, mut background) = (Duration::ZERO, Duration::ZERO);
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let start = Instant::now();
        writer.append(&mut log, entries);
        for _ in 0..2 {
            let Some((id, op)) = log.poll_disk() else { break };
            let result = replikit_log::Disk::execute(&mut disk, op);
            log.complete(id, result);
        }
        wait(&mut log, writer.id);
        times.push(start.elapsed());
        spent += start.elapsed();
        if round % 64 == 63 {
            writer.release(&mut log, 64 * entries as u64);
        }
        let start = Instant::now();
        drive(&mut log, &mut disk);
        wait(&mut log, writer.id);
        background += start.elapsed();
    }
    let total = (entries * rounds) as f64;
    let raw = raw_batched(directory, (entries * (ENTRY_BYTES + 4) + 128).next_multiple_of(4096), rounds / 2);
    println!(
        "{entries:5} entries of 256 B per fsync {:9.0} entries/s   {:7.1} MB/s   {:.2}x of raw ({:9.0}/s)   \
         p50 {:.0} us p99 {:.0} us max {:.0} us   with background work {:9.0}/s",
        total / spent.as_secs_f64(),
        total * ENTRY_BYTES as f64 / spent.as_secs_f64() / 1e6,
        spent.as_secs_f64() / rounds as f64 / raw,
        entries as f64 / raw,
        percentile(&mut times, 50),
        percentile(&mut times, 99),
        percentile(&mut times, 100),
        total / (spent + background).as_secs_f64(),
    );
}

fn in_memory(entries: usize, rounds: usize) {
    let mut disk = MemDisk::new();
    let (mut log, _) = Log::open(config(), &mut disk).expect("an empty log opens");
    let mut writer = Writer::new();
    let mut measured = (Instant::now(), 0);
    for round in 0..rounds {
        if round == rounds / 2 {
            measured = (Instant::now(), ALLOCATIONS.load(Ordering::Relaxed));
        }
        writer.append(&mut log, entries);
        drive(&mut log, &mut disk);
        wait(&mut log, writer.id);
        if round % 64 == 63 {
            writer.release(&mut log, 64 * entries as u64);
        }
    }
    let total = (entries * (rounds - rounds / 2)) as f64;
    println!(
        "{entries:5} entries per group, no fsync {:9.0} entries/s   {:7.1} MB/s   {:.4} allocations per entry",
        total / measured.0.elapsed().as_secs_f64(),
        total * ENTRY_BYTES as f64 / measured.0.elapsed().as_secs_f64() / 1e6,
        (ALLOCATIONS.load(Ordering::Relaxed) - measured.1) as f64 / total
    );
}

fn opening(directory: &Path, entries: usize) {
    let path = directory.join(format!("opening-{entries}"));
    let mut disk = FileDisk::open(&path).expect("a directory");
    let (mut log, _) = Log::open(config(), &mut disk).expect("an empty log opens");
    let mut writer = Writer::new();
    let mut bytes = 0;
    while bytes < 1 << 30 {
        for _ in 0..(1 << 20) / (entries * ENTRY_BYTES) {
            writer.append(&mut log, entries);
            bytes += entries * (ENTRY_BYTES + 4) + 64;
        }
        drive(&mut log, &mut disk);
        wait(&mut log, writer.id);
    }
    log.close();
    drive(&mut log, &mut disk);
    drop((log, disk));
    for _ in 0..2 {
        let mut disk = FileDisk::open(&path).expect("a directory");
        let start = Instant::now();
        let (log, found) = Log::open(config(), &mut disk).expect("the log opens");
        let opened = start.elapsed();
        assert_eq!(found.boots.incarnation(), 0, "it was closed");
        let start = Instant::now();
        let (mut batches, mut read) = (0_u64, 0);
        for item in log.recovery(&mut disk) {
            if let RecoveryItem::Batch(batch) = item.expect("what was verified is read") {
                batches += 1;
                read += batch.bytes();
            }
        }
        assert_eq!(read, bytes, "all of it comes back");
        println!(
            "open 1 GiB, {batches:7} batches, all checksums {:6.3} s; push all batches {:6.3} s",
            opened.as_secs_f64(),
            start.elapsed().as_secs_f64()
        );
        // Closed again, so that the next opening is a clean one as well.
        let mut log = log;
        log.close();
        drive(&mut log, &mut disk);
    }
    drop(std::fs::remove_dir_all(&path));
}

fn main() {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let directory = base.join(format!("replikit-log-speed-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("the directory can be created");
    let only = std::env::args().nth(2);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("lone") {
        lone_writer(&directory);
    }
    if wanted("batched") {
        batched(&directory, 64, 4000);
        batched(&directory, 1000, 2000);
    }
    if wanted("memory") {
        in_memory(1, 2_000_000);
        in_memory(64, 200_000);
    }
    if wanted("open") {
        opening(&directory, 64);
        opening(&directory, 1000);
        opening(&directory, 1);
    }
    std::fs::remove_dir_all(&directory).expect("the directory can be removed");
}
