//! Criterion benches of the parts: batches, log, protocol step, keyspace, counters. `cargo xtask bench micro [FILTER]`.
#![allow(missing_docs, reason = "criterion's macros generate public items without documentation")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use replikit_benches::protocol::{Nothing, raft};
use replikit_benches::workload::key_bytes;
use replikit_core::crdt::{CrdtKind, CrdtOp, CrdtState};
use replikit_core::keyspace::{Keyspace, encode_get, encode_write};
use replikit_core::{
    Batch, BatchKind, BatchMeta, ClusterId, Dot, GroupId, HybridTimestamp, LogIndex, NodeId, OriginId, Persist, Stamp,
    StateMachine, StreamId, Term, VersionVector, WriteId, WriteRequest,
};
use replikit_log::{Log, LogConfig, MemDisk, MemoryLog, Storage, drive};

const ENTRY: [u8; 256] = [7; 256];

fn meta(base: u64, prev_digest: u64) -> BatchMeta {
    BatchMeta {
        cluster: ClusterId::from_name("bench"),
        stream: StreamId::consensus(GroupId(1)),
        base: LogIndex(base),
        term: Term(1),
        prev_digest,
        time: HybridTimestamp(1),
        kind: BatchKind::Commands,
    }
}

fn batch(base: u64, entries: usize, prev_digest: u64) -> Batch {
    Batch::build(&meta(base, prev_digest), std::iter::repeat_n((&ENTRY[..], None), entries))
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for entries in [1, 64, 1_000] {
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_with_input(BenchmarkId::new("encode", entries), &entries, |b, &entries| {
            b.iter(|| batch(1, black_box(entries), 0));
        });
        let bytes = batch(1, entries, 0).as_bytes().clone();
        group.bench_with_input(BenchmarkId::new("verify and decode", entries), &bytes, |b, bytes| {
            b.iter(|| {
                let batch = Batch::verify(bytes.clone(), ClusterId::from_name("bench")).expect("the batch is whole");
                batch.entries().map(|entry| entry.payload.len()).sum::<usize>()
            });
        });
    }
    group.finish();
}

fn memory_log(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory log");
    for entries in [1, 64] {
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_with_input(BenchmarkId::new("append", entries), &entries, |b, &entries| {
            let (mut log, mut id, mut base) = (MemoryLog::new(), 0, 1);
            let stream = StreamId::consensus(GroupId(1));
            b.iter(|| {
                for op in [
                    Persist::Append { batch: batch(base, entries, 0), replace: false },
                    Persist::Release { stream, before: LogIndex(base) },
                ] {
                    id += 1;
                    log.persist(WriteId(id), op);
                }
                base += entries as u64;
                while let Some(output) = log.poll() {
                    black_box(output);
                }
            });
        });
    }
    group.finish();
}

/// A log in the real format on a disk in memory, holding so many batches.
fn filled(batches: u64, entries: usize) -> MemDisk {
    let mut disk = MemDisk::default();
    let (mut log, _) = Log::open(log_config(), &mut disk).expect("a new log opens");
    for write in 0..batches {
        let batch = batch(1 + write * entries as u64, entries, 0);
        log.persist(WriteId(write + 1), Persist::Append { batch, replace: false });
        drive(&mut log, &mut disk);
    }
    log.close();
    drive(&mut log, &mut disk);
    disk
}

fn log_config() -> LogConfig {
    LogConfig::new(ClusterId::from_name("bench"), NodeId(1))
}

fn log(c: &mut Criterion) {
    const BATCHES: u64 = 1_000;
    const ENTRIES: usize = 64;
    let mut group = c.benchmark_group("log on a disk in memory");
    group.throughput(Throughput::Elements(BATCHES * ENTRIES as u64)).sample_size(10);
    group.bench_function("append 1,000 batches of 64", |b| b.iter(|| filled(BATCHES, ENTRIES)));
    let mut disk = filled(BATCHES, ENTRIES);
    group.bench_function("recover 1,000 batches of 64", |b| {
        b.iter(|| {
            let (log, _) = Log::open(log_config(), &mut disk).expect("a closed log opens");
            assert_eq!(log.recovery(&mut disk).filter(Result::is_ok).count() as u64, BATCHES);
        });
    });
    group.finish();
}

fn protocol(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocol");
    for entries in [1, 64] {
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_with_input(BenchmarkId::new("round of three replicas", entries), &entries, |b, &entries| {
            let (mut replicas, _) = raft(|| Nothing);
            b.iter(|| replicas.round(std::iter::repeat_n(Bytes::from_static(&ENTRY), entries)));
        });
    }
    group.finish();
}

fn keyspace(c: &mut Criterion) {
    const KEYS: u32 = 100_000;
    let mut rng = fastrand::Rng::with_seed(1);
    let puts: Vec<Bytes> = (0..KEYS)
        .map(|key| encode_write(&WriteRequest::put(key_bytes(key), ENTRY.to_vec())).expect("the sizes are in range"))
        .collect();
    let mut full = Keyspace::new();
    for (index, put) in puts.iter().enumerate() {
        full.apply(LogIndex(index as u64 + 1), put);
    }
    let mut group = c.benchmark_group("keyspace");
    group.throughput(Throughput::Elements(1));
    group.bench_function("put to an existing key", |b| {
        b.iter(|| full.apply(LogIndex(1), &puts[rng.usize(..puts.len())]));
    });
    let mut rng = fastrand::Rng::with_seed(2);
    group.bench_function("get", |b| {
        b.iter_batched(
            || encode_get(&key_bytes(rng.u32(..KEYS))).expect("the size is in range"),
            |query| full.query(&query, 1 << 20),
            BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(u64::from(KEYS)));
    group.sample_size(10);
    group.bench_function("put of 100,000 new keys", |b| {
        b.iter_batched_ref(
            Keyspace::new,
            |keyspace| {
                for (index, put) in puts.iter().enumerate() {
                    keyspace.apply(LogIndex(index as u64 + 1), put);
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// A counter that three replicas add to, with so many additions that are not folded yet, and the delta of the next one.
fn counter(additions: u64) -> (CrdtState, VersionVector, Bytes) {
    let dot = |number: u64| Dot { origin: OriginId(number as u32 % 3 + 1), sequence: number / 3 + 1 };
    let (mut counter, mut applied) = (CrdtState::new(CrdtKind::Counter), VersionVector::new());
    let delta = |counter: &CrdtState, number| {
        let stamp = Stamp { time: HybridTimestamp(number), dot: dot(number) };
        counter.delta(stamp, &CrdtOp::Add { amount: 1 }).expect("a counter can be added to")
    };
    for number in 0..additions {
        counter.join_delta(&applied, &delta(&counter, number)).expect("a delta of a counter");
        applied.insert(dot(number));
        counter.strip(&applied);
    }
    let next = delta(&counter, additions);
    (counter, applied, next)
}

fn counters(c: &mut Criterion) {
    let mut group = c.benchmark_group("counter");
    for additions in [10, 100, 1_000] {
        let (counter, applied, next) = counter(additions);
        group.bench_function(BenchmarkId::new("take in one of so many additions", additions), |b| {
            b.iter_batched_ref(
                || counter.clone(),
                |counter| counter.join_delta(&applied, &next).expect("a delta of a counter"),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("read so many additions", additions), |b| b.iter(|| counter.values()));
    }
    group.finish();
}

criterion_group!(benches, batches, memory_log, log, protocol, keyspace, counters);
criterion_main!(benches);
