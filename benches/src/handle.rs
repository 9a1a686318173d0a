//! The async handle in memory: a cluster in one loop, and clients that are tasks beside it on two threads. What it costs to
//! ask a group from async code, without sockets and disks.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::{ClusterId, NodeId, StateMachine};
use replikit_runtime::{LocalCluster, LocalConfig};
use replikit_single_leader::{Config, Raft};
use tokio::runtime::Runtime;

use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::load::Window;
use crate::protocol::Nothing;
use crate::recorder::Latencies;

/// Clients at once, in each case.
pub const CLIENTS: [u32; 3] = [1, 256, 4_096];
/// Worker threads, as few as the smallest machine that is worth measuring on has cores.
pub const WORKERS: usize = 2;
const VALUE: &[u8] = &[7; 256];
/// One call in so many is timed: to look at the clock takes a good part of a call.
const CALLS_TIMED_EVERY: u64 = 16;

/// Something that clients ask to replicate commands.
pub trait Handle: Clone + Send + 'static {
    /// Replicates a command, and returns once it is applied. Errors are in words.
    fn write(&self, command: Bytes) -> impl Future<Output = Result<(), String>> + Send;
}

impl<M: 'static> Handle for replikit_runtime::Handle<M> {
    async fn write(&self, command: Bytes) -> Result<(), String> {
        // The one of the type, not of the trait.
        self.write(command).await.map(drop).map_err(|error| error.to_string())
    }
}

/// What one case found.
#[derive(Clone, Debug)]
pub struct Calls {
    /// Clients at once.
    pub clients: u32,
    /// Acknowledged writes a second.
    pub per_second: f64,
    /// Of some of the calls in the window.
    pub latencies: Latencies,
    /// All acknowledged writes, before and behind the window as well.
    pub acked: u64,
}

impl Calls {
    /// The figure.
    #[must_use]
    pub fn figure(&self) -> Figure {
        let mut subject = Subject {
            engine: "single-leader".to_owned(),
            workload: "async handle: 256 B, counting".to_owned(),
            clients: self.clients,
            ..Subject::default()
        };
        subject.settings.insert("log".to_owned(), "memory".to_owned());
        subject.settings.insert("threads".to_owned(), WORKERS.to_string());
        subject.figure("throughput", self.per_second, "1/s", Better::Higher)
    }
}

/// The threads of a case.
///
/// # Errors
/// When they cannot be started.
pub fn runtime() -> Result<Runtime, BenchError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(WORKERS).enable_time().build().map_err(BenchError::io("starting threads"))
}

/// A cluster of three nodes with these machines, in a task of the current runtime.
pub fn cluster<M: StateMachine>(mut machine: impl FnMut(NodeId) -> M + Send + 'static) -> LocalCluster<M> {
    let LocalConfig { nodes, group, .. } = LocalConfig::new(3);
    LocalCluster::open(LocalConfig::new(3), move |node, boots| {
        let config = Config::new(ClusterId::from_name("bench"), group, node, nodes.clone(), u64::from(node.0));
        Raft::new(config, &boots.of(group), machine(node)).expect("the default configuration is in range")
    })
}

/// Measures one number of clients for so long, after a warm-up of a quarter of it.
///
/// # Errors
/// When no runtime can be started, or a write is not acknowledged: the figure would be one of something else.
pub fn measure(clients: u32, measured: Duration) -> Result<Calls, BenchError> {
    let window = Window { warm_up: measured / 4, measured };
    let called = runtime()?.block_on(async {
        let cluster = cluster(|_| Nothing);
        call(&cluster.handle(), |_| Bytes::from_static(VALUE), clients, window).await
    });
    called.map_err(|what| BenchError::Engine { engine: "async handle".to_owned(), what })
}

/// Has so many clients call at once, each with its command by its number, and again as soon as it was answered. On return
/// every call has been answered.
///
/// # Errors
/// When one is not acknowledged.
pub async fn call<H: Handle>(
    handle: &H,
    command: impl Fn(u64) -> Bytes,
    clients: u32,
    window: Window,
) -> Result<Calls, String> {
    // The first write waits for a leader.
    handle.write(command(0)).await?;
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let acked: Arc<Vec<Lane>> = Arc::new((0..clients).map(|_| Lane::default()).collect());
    let tasks: Vec<_> = (0..clients as usize)
        .map(|number| {
            let client = Client { handle: handle.clone(), number, acked: acked.clone(), phase: phase.clone() };
            tokio::spawn(client.run(command(number as u64)))
        })
        .collect();
    let sum = || acked.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum::<u64>();
    tokio::time::sleep(window.warm_up).await;
    phase.store(MEASURED, Ordering::Relaxed);
    let (start, before) = (Instant::now(), sum());
    tokio::time::sleep(window.measured).await;
    let per_second = (sum() - before) as f64 / start.elapsed().as_secs_f64();
    phase.store(OVER, Ordering::Relaxed);
    let mut latencies = Latencies::new();
    for task in tasks {
        let timed = task.await.expect("a client reports its errors")?;
        timed.into_iter().for_each(|latency| latencies.record(latency));
    }
    Ok(Calls { clients, per_second, latencies, acked: sum() + 1 })
}

/// Phases of a case, in their order.
const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

struct Client<H> {
    handle: H,
    number: usize,
    acked: Arc<Vec<Lane>>,
    phase: Arc<AtomicU8>,
}

impl<H: Handle> Client<H> {
    /// Calls until it is over; the latencies that were taken.
    async fn run(self, command: Bytes) -> Result<Vec<Duration>, String> {
        let mut timed = Vec::new();
        for call in 0_u64.. {
            let phase = self.phase.load(Ordering::Relaxed);
            if phase == OVER {
                break;
            }
            let begun = (phase == MEASURED && call % CALLS_TIMED_EVERY == 0).then(Instant::now);
            self.handle.write(command.clone()).await?;
            self.acked[self.number].0.fetch_add(1, Ordering::Relaxed);
            timed.extend(begun.map(|begun| begun.elapsed()));
        }
        Ok(timed)
    }
}

/// A counter on a cache line of its own: clients must not slow each other down by counting.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_served() {
        let calls = measure(4, Duration::from_millis(100)).expect("the cluster serves");
        assert!(calls.per_second > 0.0 && calls.acked > 4, "{calls:?}");
        assert!((1..=calls.acked).contains(&calls.latencies.count()), "{calls:?}");
    }
}
