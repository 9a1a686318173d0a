//! Groups of three replicas in this process behind async handles: clients are tasks, on the same two threads as the replicas.
//!
//! Invariant: at the end of a run all three replicas have applied every acknowledged command and no other, in one order.

mod open_raft;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use replikit_benches::error::BenchError;
use replikit_benches::handle::{self, Calls};
use replikit_benches::load::Window;

use self::open_raft::OpenRaft;
use crate::sample::Sample;
use crate::tally::{self, Machine, Tallies};

/// Replicas that lag behind have caught up within this time.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// A handle to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandleKind {
    /// Ours.
    Replikit,
    /// The crate `openraft`.
    OpenRaft,
}

impl HandleKind {
    /// The crate that it is in.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Replikit => "replikit-runtime",
            Self::OpenRaft => "openraft",
        }
    }

    /// How it is set up.
    fn configuration(self) -> BTreeMap<String, String> {
        let own = match self {
            Self::Replikit => vec![
                ("replicas", "3 in one task; logs in memory".to_owned()),
                ("settings", "every one its default".to_owned()),
            ],
            Self::OpenRaft => {
                let config = open_raft::config();
                vec![
                    (
                        "replicas",
                        "3, each as the tasks that it consists of; logs in memory; the network is a call".to_owned(),
                    ),
                    ("heartbeat_interval", format!("{} ms", config.heartbeat_interval)),
                    (
                        "election_timeout",
                        format!("{} to {} ms", config.election_timeout_min, config.election_timeout_max),
                    ),
                    ("max_payload_entries", config.max_payload_entries.to_string()),
                    ("snapshot_policy", format!("{:?}", config.snapshot_policy)),
                    ("other settings", "their defaults".to_owned()),
                ]
            }
        };
        let all = ("threads", format!("{}, of one tokio runtime, for clients and replicas", handle::WORKERS));
        own.into_iter().chain([all]).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Has so many clients call a new group for the time of a window. Blocks.
    ///
    /// # Errors
    /// When a call fails, or the group does not start.
    pub fn measure(self, clients: u32, window: Window) -> Result<Sample, BenchError> {
        let tallies = Tallies::default();
        let called = handle::runtime()?.block_on(self.call(&tallies, clients, window));
        let calls = called.map_err(|what| BenchError::Engine { engine: self.package().to_owned(), what })?;
        let applied = tallies[0].applied();
        let mut wrong = tally::differing(&tallies, applied);
        if applied.count != calls.acked {
            wrong.push(format!("{} commands were acknowledged, and {} applied", calls.acked, applied.count));
        }
        Ok(Sample {
            rate: calls.per_second,
            latencies: calls.latencies,
            configuration: self.configuration(),
            acknowledged: "in the memory of two replicas, and applied by the one that leads".to_owned(),
            wrong,
            ..Sample::default()
        })
    }

    async fn call(self, tallies: &Tallies, clients: u32, window: Window) -> Result<Calls, String> {
        match self {
            Self::Replikit => {
                let machines = tallies.clone();
                let cluster = handle::cluster(move |node| Machine(machines[node.0 as usize - 1].clone()));
                let calls = handle::call(&cluster.handle(), tally::command, clients, window).await?;
                settle(tallies, calls.acked).await;
                Ok(calls)
            }
            Self::OpenRaft => {
                let group = OpenRaft::start(tallies).await?;
                let calls = handle::call(&group.handle(), tally::command, clients, window).await?;
                settle(tallies, calls.acked).await;
                group.stop().await?;
                Ok(calls)
            }
        }
    }
}

/// Waits until all replicas have applied so many commands, as long as they may take.
async fn settle(tallies: &Tallies, count: u64) {
    let begun = Instant::now();
    while tallies.iter().any(|tally| tally.applied().count < count) && begun.elapsed() < SETTLE_MAX {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Long enough that something is served beside all other tests.
    const WINDOW: Window = Window { warm_up: Duration::from_millis(100), measured: Duration::from_millis(600) };

    #[test]
    fn every_replica_applies_what_was_acknowledged_in_one_order() {
        for kind in [HandleKind::Replikit, HandleKind::OpenRaft] {
            for clients in [1, 64] {
                let sample = kind.measure(clients, WINDOW).expect("the group serves");
                assert!(sample.wrong.is_empty(), "{kind:?}: {:?}", sample.wrong);
                assert!(sample.rate > 0.0 && sample.latencies.count() > 0, "{kind:?}: {sample:?}");
            }
        }
    }
}
