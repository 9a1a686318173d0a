//! The async handle in memory: a cluster in one loop, and clients that are tasks beside it on two threads. What it costs to
//! ask a group from async code, without sockets and disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::{ClusterId, WriteError};
use replikit_runtime::{LocalCluster, LocalConfig};
use replikit_single_leader::{Config, Raft};

use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::protocol::Nothing;

/// Clients at once, in each case.
pub const CLIENTS: [u32; 3] = [1, 256, 4_096];
/// Worker threads, as few as the smallest machine that is worth measuring on has cores.
const WORKERS: usize = 2;
const VALUE: &[u8] = &[7; 256];

/// What one case found.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Clients at once.
    pub clients: u32,
    /// Acknowledged writes a second.
    pub per_second: f64,
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

/// Measures one number of clients for so long, after a warm-up of a quarter of it.
///
/// # Errors
/// When no runtime can be started, or a write is not acknowledged: the figure would be one of something else.
pub fn measure(clients: u32, measured: Duration) -> Result<Calls, BenchError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(WORKERS).enable_time().build().map_err(BenchError::io("starting threads"))?;
    runtime.block_on(async move {
        let group = LocalConfig::new(3).group;
        let cluster: LocalCluster<Nothing> = LocalCluster::open(LocalConfig::new(3), move |node, boots| {
            let nodes = LocalConfig::new(3).nodes;
            let config = Config::new(ClusterId::from_name("bench"), group, node, nodes, u64::from(node.0));
            Raft::new(config, &boots.of(group), Nothing).expect("the default configuration is in range")
        });
        // The first write waits for a leader.
        cluster.handle().write(Bytes::from_static(VALUE)).await.map_err(failed)?;
        let over = Arc::new(AtomicBool::new(false));
        let acked: Arc<Vec<Lane>> = Arc::new((0..clients).map(|_| Lane::default()).collect());
        let tasks: Vec<_> = (0..clients as usize)
            .map(|client| {
                let (handle, over, acked) = (cluster.handle(), over.clone(), acked.clone());
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        handle.write(Bytes::from_static(VALUE)).await?;
                        acked[client].0.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), WriteError>(())
                })
            })
            .collect();
        let sum = || acked.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum::<u64>();
        tokio::time::sleep(measured / 4).await;
        let (start, before) = (Instant::now(), sum());
        tokio::time::sleep(measured).await;
        let per_second = (sum() - before) as f64 / start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            let ended = task.await.expect("a client reports its errors");
            ended.map_err(failed)?;
        }
        Ok(Calls { clients, per_second })
    })
}

fn failed(error: WriteError) -> BenchError {
    BenchError::Engine { engine: "async handle".to_owned(), what: error.to_string() }
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
        assert!(calls.per_second > 0.0);
    }
}
