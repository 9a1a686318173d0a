//! Pages of keys that lie in several partitions by turns: each page asks all of them.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::{ReadLevel, ScanRequest, Store, WriteLevel};

use super::{Found, PAGED_KEYS};
use crate::engine::Engine;
use crate::engine::partitioned::Partitioned;
use crate::error::BenchError;
use crate::figure::{Better, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Reads};
use crate::recorder::Latencies;
use crate::suite::VALUE_BYTES;
use crate::table::latency;
use crate::workload::key_bytes;

/// Keys of a page.
pub(super) const PAGE: u32 = 100;
const PAGES: usize = 400;

pub(super) async fn run(subject: &Subject, partitions: u16, seed: u64, folder: &Path) -> Result<Found, BenchError> {
    let engine = Partitioned::start_with(folder, None, partitions, &[]).await?;
    let ledger = Rc::new(Ledger::new(PAGED_KEYS, VALUE_BYTES));
    let target = engine.target(WriteLevel::Quorum, Reads::Linearizable);
    load::preload(&ledger, &target, PAGED_KEYS, VALUE_BYTES).await?;
    let (mut rng, mut latencies, mut wrong) = (fastrand::Rng::with_seed(seed), Latencies::new(), Vec::new());
    let begun = Instant::now();
    for _ in 0..PAGES {
        // Keys are numbered in the order in which they stand.
        let first = rng.u32(..PAGED_KEYS - PAGE);
        let scan = ScanRequest { from: key_bytes(first), to: None, limit: PAGE, level: ReadLevel::Linearizable };
        let at = Instant::now();
        let page = engine.client().scan(scan).await?;
        latencies.record(at.elapsed());
        let expected = (first..first + PAGE).map(key_bytes);
        if !page.items.iter().map(|(key, _)| key.clone()).eq(expected) {
            wrong.push(format!("a page from key {first} on has other keys"));
        }
    }
    let per_second = PAGES as f64 / begun.elapsed().as_secs_f64();
    let micros = |share: f64| latencies.quantile(share).as_secs_f64() * 1e6;
    let figures = vec![
        subject.figure("pages", per_second, "1/s", Better::Higher),
        subject.figure("page p50", micros(0.5), "us", Better::Lower),
        subject.figure("page p99", micros(0.99), "us", Better::Lower),
        subject.figure("partitions asked for a page", f64::from(partitions), "1", Better::Neither),
    ];
    let line = format!("a page takes {}", latency(Duration::from_secs_f64(micros(0.5) / 1e6)));
    Box::new(engine).stop().await?;
    Ok(Found { figures, wrong, line, ..Found::default() })
}
