//! Pages of keys that lie in several partitions by turns: each page asks all of them.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::{ReadLevel, ScanRequest, Store, WriteLevel};
use replikit_partitioning::store::{LegCounts, StoreClient, StoreClientConfig};

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
/// One page in so many meets a replica that stands still...
const PAGES_PER_STALL: usize = 40;
/// ... for so long: a pause of a disk, a garbage collector, a neighbour on the machine.
const STALL: Duration = Duration::from_millis(50);

pub(super) async fn run(subject: &Subject, partitions: u16, seed: u64, folder: &Path) -> Result<Found, BenchError> {
    let mut engine = Partitioned::start_with(folder, None, partitions, &[]).await?;
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
    let mut figures = vec![
        subject.figure("pages", per_second, "1/s", Better::Higher),
        subject.figure("page p50", micros(0.5), "us", Better::Lower),
        subject.figure("page p99", micros(0.99), "us", Better::Lower),
        subject.figure("partitions asked for a page", f64::from(partitions), "1", Better::Neither),
    ];
    for hedges in [false, true] {
        let (stalled, asked_twice) = pages_with_stalls(&mut engine, hedges, &mut rng).await?;
        let how = if hedges { "another one asked" } else { "nobody else asked" };
        let mut add = |what: &str, value: f64, unit: &str| {
            figures.push(subject.figure(&format!("{what}, {how}"), value, unit, Better::Lower));
        };
        add("local page p99 while a replica stalls", stalled.quantile(0.99).as_secs_f64() * 1e6, "us");
        add("share of partitions asked twice", asked_twice, "1");
    }
    let line = format!("a page takes {}", latency(Duration::from_secs_f64(micros(0.5) / 1e6)));
    Box::new(engine).stop().await?;
    Ok(Found { figures, wrong, line, ..Found::default() })
}

/// Pages of local reads, one of [`PAGES_PER_STALL`] of which begins while a node stands still for [`STALL`]; and the share of partitions
/// that were asked at two replicas.
async fn pages_with_stalls(
    engine: &mut Partitioned,
    hedges: bool,
    rng: &mut fastrand::Rng,
) -> Result<(Latencies, f64), BenchError> {
    let config = StoreClientConfig { hedges, ..engine.client().config().clone() };
    let client = StoreClient::connect(config).await.map_err(|error| engine.failed(error.to_string()))?;
    let mut latencies = Latencies::new();
    for number in 0..PAGES {
        let first = rng.u32(..PAGED_KEYS - PAGE);
        let scan = ScanRequest { from: key_bytes(first), to: None, limit: PAGE, level: ReadLevel::Local };
        let nodes = engine.own_nodes();
        let stalls = number % PAGES_PER_STALL == PAGES_PER_STALL - 1;
        let still = nodes.ids().nth(rng.usize(..3)).filter(|_| stalls);
        if let Some(node) = still {
            nodes.freeze(node)?;
        }
        let at = Instant::now();
        let page = async {
            let page = client.scan(scan).await;
            latencies.record(at.elapsed());
            page
        };
        let goes_on = async {
            match still {
                None => Ok(()),
                Some(node) => {
                    tokio::time::sleep(STALL).await;
                    nodes.thaw(node)
                }
            }
        };
        let (page, goes_on) = tokio::join!(page, goes_on);
        page?;
        goes_on?;
    }
    let LegCounts { asked, hedged } = client.legs();
    Ok((latencies, hedged as f64 / asked.max(1) as f64))
}
