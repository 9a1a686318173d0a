//! Fault runs: the leader is killed, or frozen, under load; every acknowledged write is then read back.
//!
//! Every write goes to a key of its own, so that one that is lost cannot hide behind a later one.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::{WriteLevel, WriteRequest};
use tokio::task::LocalSet;

use crate::engine::Engine;
use crate::engine::single_leader::SingleLeader;
use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::ledger::Ledger;
use crate::load::{Reads, Target};
use crate::timeline::{Gap, Timeline};
use crate::verify::{Verified, verify};
use crate::workload::key_bytes;

/// Clients of a fault run.
pub const CLIENTS: u32 = 16;
const VALUE_BYTES: usize = 64;
/// Most keys of a run, to bound the memory of the three nodes; then the load ends early, which the time line shows.
const KEYS_MAX: u32 = 4_000_000;
const WARM_UP: Duration = Duration::from_millis(500);
/// How long after the start the fault happens, how long after it is undone, and how long after that the run ends.
const BEFORE: Duration = Duration::from_secs(2);
const DURING: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(2);
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL; started again two seconds later.
    Kill,
    /// SIGSTOP; goes on two seconds later.
    Freeze,
}

impl Fault {
    /// How long the run takes, about.
    #[must_use]
    pub fn estimate(self) -> Duration {
        WARM_UP + BEFORE + DURING + AFTER + Duration::from_secs(3)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "fault: leader killed (SIGKILL) and restarted",
            Self::Freeze => "fault: leader frozen (SIGSTOP) and thawed",
        })
    }
}

/// When what happened, counted from the start of the time line.
#[derive(Clone, Copy, Debug, Default)]
struct Struck {
    at: Duration,
    undone: Duration,
}

/// What a fault run found.
#[derive(Clone, Debug)]
pub struct FaultReport {
    /// Which fault.
    pub fault: Fault,
    /// Acknowledged writes over time.
    pub timeline: Timeline,
    /// The longest time without an acknowledged write while the fault lasted: what clients saw of it.
    pub gap: Gap,
    /// Acknowledged writes, warm-up included.
    pub acked: u64,
    /// Writes that ended in any other way.
    pub unacked: u64,
    /// What was read back.
    pub verified: Verified,
}

impl FaultReport {
    /// Whether the run showed a wrong result.
    #[must_use]
    pub const fn is_wrong(&self) -> bool {
        self.verified.lost > 0 || self.verified.foreign > 0
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut subject = Subject {
            engine: "single-leader".to_owned(),
            workload: self.fault.to_string(),
            clients: CLIENTS,
            ..Subject::default()
        };
        subject.settings.insert("write".to_owned(), format!("{:?}", WriteLevel::Quorum));
        let millis = |gap: Gap| gap.length.as_secs_f64() * 1e3;
        let longest = millis(self.timeline.longest_gap());
        vec![
            subject.figure(
                "longest gap without an acked write, during the fault",
                millis(self.gap),
                "ms",
                Better::Lower,
            ),
            subject.figure("longest gap without an acked write", longest, "ms", Better::Lower),
            subject.figure("acked writes", self.acked as f64, "1", Better::Higher),
            subject.figure("acked writes read back", self.verified.keys as f64, "1", Better::Higher),
            subject.figure("acked writes lost", self.verified.lost as f64, "1", Better::Lower),
            subject.figure("writes without an acknowledgement", self.unacked as f64, "1", Better::Lower),
        ]
    }

    /// The time line and what it amounts to, for people.
    #[must_use]
    pub fn render(&self) -> String {
        let longest = self.timeline.longest_gap();
        let mut text = format!("{}, {CLIENTS} clients, write level Quorum\n", self.fault);
        text.push_str(&self.timeline.render());
        text.push_str(&format!(
            "  longest gap without an acked write: {:.0} ms during the fault (from {:.2} s); {:.0} ms in all (from {:.2} s)\n  acked writes: {}, read back: {}, lost: {}; \
             writes of unknown outcome: {}\n",
            self.gap.length.as_secs_f64() * 1e3,
            self.gap.from.as_secs_f64(),
            longest.length.as_secs_f64() * 1e3,
            longest.from.as_secs_f64(),
            self.acked,
            self.verified.keys,
            self.verified.lost,
            self.unacked,
        ));
        for told in &self.verified.told {
            text.push_str(&format!("  WRONG: {told}\n"));
        }
        text
    }

    /// The time line as comma-separated values: start of the bucket in milliseconds, acknowledged writes in it.
    #[must_use]
    pub fn csv(&self) -> String {
        let bucket = crate::timeline::BUCKET.as_millis();
        let rows = self.timeline.counts().iter().enumerate();
        let rows: String = rows.map(|(at, count)| format!("{},{count}\n", at as u128 * bucket)).collect();
        format!("from_ms,acked_writes\n{rows}")
    }
}

struct Shared {
    ledger: Ledger,
    target: Target,
    start: Cell<Option<Instant>>,
    over: Cell<bool>,
    next_key: Cell<u32>,
    timeline: RefCell<Timeline>,
    unacked: Cell<u64>,
}

/// Runs one fault on a new cluster, with its data below `folder`. Must run on a current-thread runtime.
///
/// # Errors
/// When the cluster does not start, has no leader, or cannot be read back.
pub async fn run(fault: Fault, folder: &Path) -> Result<FaultReport, BenchError> {
    let mut cluster = SingleLeader::start(folder).await?;
    let shared = Rc::new(Shared {
        ledger: Ledger::new(KEYS_MAX, VALUE_BYTES),
        target: cluster.target(WriteLevel::Quorum, Reads::Linearizable),
        start: Cell::new(None),
        over: Cell::new(false),
        next_key: Cell::new(0),
        timeline: RefCell::new(Timeline::new()),
        unacked: Cell::new(0),
    });
    let struck = LocalSet::new()
        .run_until(async {
            let clients: Vec<_> =
                (0..CLIENTS as usize).map(|client| tokio::task::spawn_local(shared.clone().client(client))).collect();
            let struck = strike(fault, &mut cluster, &shared).await?;
            shared.over.set(true);
            let end = tokio::time::Instant::now() + DRAIN_MAX;
            for client in clients {
                // A write that does not end in time was not acknowledged; it is dropped with the set of tasks.
                let _ = tokio::time::timeout_at(end, client).await;
            }
            Ok::<Struck, BenchError>(struck)
        })
        .await?;
    cluster.check()?;
    let verified = verify(&shared.ledger, &*shared.target.leader[0]).await?;
    Box::new(cluster).stop().await?;
    let timeline = shared.timeline.take();
    Ok(FaultReport {
        fault,
        gap: timeline.longest_gap_between(struck.at, struck.undone),
        timeline,
        acked: shared.ledger.acked_count() as u64,
        unacked: shared.unacked.get(),
        verified,
    })
}

async fn strike(fault: Fault, cluster: &mut SingleLeader, shared: &Shared) -> Result<Struck, BenchError> {
    tokio::time::sleep(WARM_UP).await;
    let start = Instant::now();
    shared.start.set(Some(start));
    let mark = |what: String| shared.timeline.borrow_mut().mark(start.elapsed(), what);
    tokio::time::sleep(BEFORE).await;
    let leader = cluster.leader().await?;
    let at = start.elapsed();
    match fault {
        Fault::Kill => {
            mark(format!("node {leader}, the leader, killed"));
            cluster.nodes().kill(leader)?;
            tokio::time::sleep(DURING).await;
            mark(format!("node {leader} restarted"));
            cluster.nodes().restart(leader)?;
        }
        Fault::Freeze => {
            mark(format!("node {leader}, the leader, frozen"));
            cluster.nodes().freeze(leader)?;
            tokio::time::sleep(DURING).await;
            mark(format!("node {leader} thawed"));
            cluster.nodes().thaw(leader)?;
        }
    }
    let undone = start.elapsed();
    tokio::time::sleep(AFTER).await;
    let end = start.elapsed();
    shared.start.set(None);
    shared.timeline.borrow_mut().end(end);
    cluster.wait_ready().await?;
    Ok(Struck { at, undone })
}

impl Shared {
    async fn client(self: Rc<Self>, number: usize) {
        let store = &self.target.leader[number % self.target.leader.len()];
        while !self.over.get() && self.next_key.get() < KEYS_MAX {
            let key = self.next_key.replace(self.next_key.get() + 1);
            let Some((begun, value)) = self.ledger.begin(key, VALUE_BYTES) else { return };
            match store.write(WriteRequest::put(key_bytes(key), value)).await {
                Ok(_) => {
                    self.ledger.acked(begun);
                    if let Some(start) = self.start.get() {
                        self.timeline.borrow_mut().acked(start.elapsed());
                    }
                }
                Err(_) => {
                    self.unacked.set(self.unacked.get() + 1);
                    // A client that is refused at once must not spin.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }
}
