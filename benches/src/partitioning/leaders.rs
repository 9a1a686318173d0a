//! Many groups that nobody asks for anything: how long it takes until each has a leader after the nodes have started, and after one of
//! them was killed; what a group takes while it sleeps.

use std::path::Path;
use std::time::{Duration, Instant};

use replikit_core::NodeId;

use super::Found;
use crate::engine::Engine;
use crate::engine::partitioned::Partitioned;
use crate::error::BenchError;
use crate::figure::{Better, Subject};
use crate::usage::Usage;

/// The one that is killed.
const VICTIM: NodeId = NodeId(3);
/// After an election, until all groups sleep.
const SETTLING: Duration = Duration::from_secs(3);
/// How long nobody asks for anything.
const IDLE: Duration = Duration::from_secs(10);
/// Every group has a leader within this time.
const LED_MAX: Duration = Duration::from_secs(60);
/// To tell how many groups it leads a node asks all of them: it may be asked for a fifth of its time.
const PAUSE_FACTOR: u32 = 4;

pub(super) async fn run(subject: &Subject, groups: u16, folder: &Path) -> Result<Found, BenchError> {
    let begun = Instant::now();
    let mut engine = Partitioned::founded(folder, None, groups, &[]).await?;
    let all: Vec<NodeId> = engine.own_nodes().ids().collect();
    led(&engine, groups, &all).await?;
    let started = begun.elapsed();
    tokio::time::sleep(SETTLING).await;
    let (used, at) = (Usage::of(&engine.processes()), Instant::now());
    tokio::time::sleep(IDLE).await;
    let after = Usage::of(&engine.processes());
    let replicas = f64::from(groups) * all.len() as f64;
    let idle = after.cpu.saturating_sub(used.cpu).as_secs_f64() / at.elapsed().as_secs_f64() / replicas;
    let memory = after.memory_bytes as f64 / replicas;

    let survivors: Vec<NodeId> = all.iter().copied().filter(|node| *node != VICTIM).collect();
    engine.own_nodes().kill(VICTIM)?;
    let killed = Instant::now();
    led(&engine, groups, &survivors).await?;
    let replaced = killed.elapsed();
    engine.own_nodes().restart(VICTIM)?;
    engine.serves().await?;
    let figures = vec![
        subject.figure("start until every group has a leader", started.as_secs_f64() * 1e6, "us", Better::Lower),
        subject.figure("memory of a sleeping group on a node", memory, "B", Better::Lower),
        subject.figure("processor of an idle group on a node", idle * 1e6, "us/s", Better::Lower),
        subject.figure("kill until every group has a leader", replaced.as_secs_f64() * 1e6, "us", Better::Lower),
    ];
    let line = format!(
        "all led {:.1} s after the start and {:.1} s after a kill; {memory:.0} B and {:.1} us/s for an idle group",
        started.as_secs_f64(),
        replaced.as_secs_f64(),
        idle * 1e6
    );
    Box::new(engine).stop().await?;
    Ok(Found { figures, line, ..Found::default() })
}

/// Waits until these nodes lead all groups.
async fn led(engine: &Partitioned, groups: u16, nodes: &[NodeId]) -> Result<(), BenchError> {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        let led = led_by(engine, nodes).await;
        if matches!(led, Ok(led) if led >= u64::from(groups)) {
            return Ok(());
        }
        if begun.elapsed() > LED_MAX {
            return Err(engine.failed(format!("{} of {groups} groups have a leader after {LED_MAX:?}", led?)));
        }
        tokio::time::sleep((asked.elapsed() * PAUSE_FACTOR).max(Duration::from_millis(5))).await;
    }
}

async fn led_by(engine: &Partitioned, nodes: &[NodeId]) -> Result<u64, BenchError> {
    let mut led = 0;
    for node in nodes {
        led += engine.groups_led(*node).await?;
    }
    Ok(led)
}
