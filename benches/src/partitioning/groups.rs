//! Many groups on each node: what writes to all of them reach, what each of them holds in memory, and what they cost when
//! nobody asks for anything.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::WriteLevel;

use super::{CLIENTS, Found};
use crate::engine::partitioned::Partitioned;
use crate::engine::{Counted, Engine};
use crate::error::BenchError;
use crate::figure::{Better, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Pace, Reads, Window};
use crate::suite::VALUE_BYTES;
use crate::table::count;
use crate::usage::Usage;
use crate::workload::{Spread, Workload};

const KEYS: u32 = 20_000;
const WINDOW: Window = Window { warm_up: Duration::from_millis(500), measured: Duration::from_millis(1_500) };
/// After the load, until nothing of it is left to do.
const SETTLING: Duration = Duration::from_secs(1);
/// How long nobody asks for anything.
const IDLE: Duration = Duration::from_secs(10);

pub(super) async fn run(subject: &Subject, groups: u16, seed: u64, folder: &Path) -> Result<Found, BenchError> {
    let begun = Instant::now();
    let engine = Partitioned::start_with(folder, None, groups, &[]).await?;
    let started = begun.elapsed();
    let processes = engine.processes();
    let nodes = processes.len() as f64;
    let ledger = Rc::new(Ledger::new(KEYS, VALUE_BYTES));
    let target = engine.target(WriteLevel::Quorum, Reads::Linearizable);
    let workload = Workload { reads_percent: 0, spread: Spread::Uniform, keys: KEYS, value_bytes: VALUE_BYTES };
    let counted = async |of: fn(&Counted) -> u64| Ok::<_, BenchError>(engine.counted().await?.iter().map(of).sum());
    let fsyncs: fn(&Counted) -> u64 = |it| it.fsyncs;
    let messages: fn(&Counted) -> u64 = |it| it.messages_sent.unwrap_or_default();
    let (before, at): (u64, _) = (counted(fsyncs).await?, Instant::now());
    let measured =
        load::run(Rc::clone(&ledger), target.clone(), workload, Pace::Closed { clients: CLIENTS }, WINDOW, seed).await;
    let synced = (counted(fsyncs).await? - before) as f64 / at.elapsed().as_secs_f64() / nodes;
    let verified = crate::verify::verify(&ledger, &*target.leader[0]).await?;
    tokio::time::sleep(SETTLING).await;
    let before: u64 = counted(messages).await?;
    let (used, at) = (Usage::of(&processes), Instant::now());
    tokio::time::sleep(IDLE).await;
    let after = Usage::of(&processes);
    let idle = (after.cpu.saturating_sub(used.cpu)).as_secs_f64() / at.elapsed().as_secs_f64() / nodes;
    let said = (counted(messages).await? - before) as f64 / at.elapsed().as_secs_f64() / nodes;
    let replicas = f64::from(groups);
    let figures = vec![
        subject.figure("writes", measured.throughput(), "1/s", Better::Higher),
        subject.figure("write latency p50", measured.writes.quantile(0.5).as_secs_f64() * 1e6, "us", Better::Lower),
        subject.figure("write latency p99", measured.writes.quantile(0.99).as_secs_f64() * 1e6, "us", Better::Lower),
        subject.figure("fsyncs per second and node", synced, "1/s", Better::Lower),
        subject.figure("start until every group has written", started.as_secs_f64() * 1e6, "us", Better::Lower),
        subject.figure("memory of a node", after.memory_bytes as f64 / nodes / 1_048_576.0, "MiB", Better::Lower),
        subject.figure("processor of an idle node", idle * 1e6, "us/s", Better::Lower),
        subject.figure("processor of an idle group on a node", idle * 1e6 / replicas, "us/s", Better::Lower),
        subject.figure("messages of an idle node to other nodes", said, "1/s", Better::Lower),
        subject.figure("requests failed", (measured.failed + measured.refused) as f64, "1", Better::Lower),
        subject.figure("acked writes lost", verified.lost as f64, "1", Better::Lower),
    ];
    let mut wrong = Vec::new();
    if verified.lost + verified.foreign > 0 {
        wrong.push(format!("{groups} groups: {} acked writes lost: {}", verified.lost, verified.told.join("; ")));
    }
    let line = format!(
        "{} writes/s, {:.0} us/s of processor for an idle group",
        count(measured.throughput()),
        idle * 1e6 / replicas
    );
    Box::new(engine).stop().await?;
    Ok(Found { figures, wrong, line, ..Found::default() })
}
