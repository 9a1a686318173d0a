//! Writers at all nodes of a multi-leader cluster that get in each other's way: how often that happens, what becomes of the
//! updates, how long a write takes to the other nodes, and how long the nodes take to agree when the load ends.
//!
//! An update reads a list at its own node, adds an element that exists once, and writes the list back over what it has read.
//! Afterwards every acknowledged element must be in what the nodes show; one that is not is *audited* when the audit log has a
//! value with it, and *silent* otherwise. Where concurrent lists stay beside each other nothing may be lost; where the newest
//! wins, what is lost must be audited. Counters get additions, whose sum must come out. Silent losses are wrong results.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::{NodeId, ReadLevel, ReadRequest, Store, WriteLevel, WriteRequest};
use replikit_runtime::KvClient;
use tokio::task::LocalSet;

use crate::engine::multi_leader::{COUNTERS, MultiLeader, NEWEST, SIBLINGS};
use crate::engine::{Engine, EngineKind};
use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Pace, Reads, Window};
use crate::recorder::Latencies;
use crate::table::{Side, Table, count, latency};
use crate::workload::{Spread, Workload};

/// Writers of lists, and of counters.
const LIST_WRITERS: usize = 12;
const ADDERS: usize = 3;
/// Lists that are written at a time: few enough that writers meet.
const LISTS: usize = 64;
/// A full list is followed by a new one.
const ELEMENTS_MAX: usize = 128;
const COUNTERS_WRITTEN: u32 = 16;
/// The load beside which the replication lag is measured.
const LAG_CLIENTS: u32 = 64;
const LAG_KEYS: u32 = 10_000;
const LAG_PAUSE: Duration = Duration::from_millis(2);
const LAG_WINDOW: Window = Window { warm_up: Duration::from_millis(200), measured: Duration::from_millis(500) };
/// The node that fails.
const VICTIM: NodeId = NodeId(3);
/// After an update that failed.
const PAUSE: Duration = Duration::from_millis(2);

/// What happens meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing; the replication lag is measured before.
    None,
    /// A node is killed after a third of the time, and started again after another.
    Kill,
}

/// What becomes of two lists that were written beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// Both are shown until a writer that has read both joins them.
    Siblings,
    /// The newest is shown, and the other one goes to the audit log.
    Newest,
}

impl Lists {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Siblings => SIBLINGS,
            Self::Newest => NEWEST,
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// When a write counts as done.
    pub level: WriteLevel,
    /// The policy of the lists.
    pub lists: Lists,
    /// What happens meanwhile.
    pub disturbance: Disturbance,
    /// How long the writers write.
    pub measured: Duration,
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = match self.lists {
            Lists::Siblings => "siblings",
            Lists::Newest => "newest wins",
        };
        write!(f, "{}, {:?}: {LIST_WRITERS} contending writers, {lists}", EngineKind::MultiLeader, self.level)?;
        match self.disturbance {
            Disturbance::None => Ok(()),
            Disturbance::Kill => f.write_str(", a node killed (SIGKILL) and restarted"),
        }
    }
}

impl Replication {
    /// Once a level: what becomes of lists makes no difference to it.
    fn measures_lag(&self) -> bool {
        self.disturbance == Disturbance::None && self.lists == Lists::Siblings
    }

    /// How long it takes, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let lag = 2 * (LAG_WINDOW.warm_up + LAG_WINDOW.measured) + self.measured;
        let lag = if self.measures_lag() { lag } else { Duration::ZERO };
        lag + self.measured + Duration::from_secs(2)
    }
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct ReplicationReport {
    /// Which.
    pub replication: Replication,
    /// How long the writers wrote.
    pub elapsed: Duration,
    /// Acknowledged updates of lists and counters.
    pub acked: u64,
    /// Updates that ended in any other way.
    pub unacked: u64,
    /// Updates that found several values, or whose value was overwritten by one that had not seen it.
    pub conflicts: u64,
    /// Acknowledged updates that are not shown, and are in the audit log.
    pub lost_audited: u64,
    /// Acknowledged updates that are neither; additions that were lost or counted twice.
    pub lost_silent: u64,
    /// Keys that the nodes show differently.
    pub differing: u64,
    /// From the end of the load until every node shows everything.
    pub convergence: Duration,
    /// From the acknowledgement at one node until another one shows it, at half of the load that 64 clients make. Reading
    /// is part of it.
    pub lag: Latencies,
    /// Updates acknowledged by the others while a node was down.
    pub acked_while_down: u64,
}

impl ReplicationReport {
    /// Wrong results, in words.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.lost_silent > 0 {
            wrong.push(format!("{}: {} updates lost that no audit log has", self.replication, self.lost_silent));
        }
        if self.differing > 0 {
            wrong.push(format!("{}: the nodes show {} keys differently", self.replication, self.differing));
        }
        wrong
    }

    fn conflicts_per_million(&self) -> f64 {
        self.conflicts as f64 * 1e6 / self.acked.max(1) as f64
    }

    fn per_second(&self) -> f64 {
        self.acked as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// One line for the progress.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{} updates/s, lost {} audited / {} silent, converged in {}",
            count(self.per_second()),
            self.lost_audited,
            self.lost_silent,
            latency(self.convergence)
        )
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut subject = Subject {
            engine: EngineKind::MultiLeader.name().to_owned(),
            workload: self.replication.to_string(),
            clients: (LIST_WRITERS + ADDERS) as u32,
            ..Subject::default()
        };
        subject.settings.insert("write".to_owned(), format!("{:?}", self.replication.level));
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let mut figures = vec![
            subject.figure("updates", self.per_second(), "1/s", Better::Higher),
            subject.figure("updates without an acknowledgement", self.unacked as f64, "1", Better::Lower),
            subject.figure("conflicts per 10^6 writes", self.conflicts_per_million(), "1", Better::Lower),
            subject.figure("lost updates, audited", self.lost_audited as f64, "1", Better::Lower),
            subject.figure("lost updates, silent", self.lost_silent as f64, "1", Better::Lower),
            subject.figure("keys that differ between nodes", self.differing as f64, "1", Better::Lower),
            subject.figure("convergence after the load", micros(self.convergence), "us", Better::Lower),
        ];
        if self.lag.count() > 0 {
            for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                let lag = micros(self.lag.quantile(share));
                figures.push(subject.figure(&format!("replication lag {name}"), lag, "us", Better::Lower));
            }
        }
        if self.replication.disturbance == Disturbance::Kill {
            let acked = self.acked_while_down as f64;
            figures.push(subject.figure("updates acked while a node was down", acked, "1", Better::Higher));
        }
        figures
    }
}

/// The table of all runs.
#[must_use]
pub fn table(reports: &[ReplicationReport]) -> String {
    let mut table = Table::new(vec![
        ("all nodes written to", Side::Left),
        ("updates/s", Side::Right),
        ("conflicts/10^6", Side::Right),
        ("lost: audited/silent", Side::Right),
        ("convergence", Side::Right),
        ("lag p50", Side::Right),
        ("lag p99", Side::Right),
        ("acked while down", Side::Right),
    ]);
    for report in reports {
        let lag = |share| match report.lag.count() {
            0 => "-".to_owned(),
            _ => latency(report.lag.quantile(share)),
        };
        let down = match report.replication.disturbance {
            Disturbance::None => "-".to_owned(),
            Disturbance::Kill => count(report.acked_while_down as f64),
        };
        table.row(
            "",
            vec![
                report.replication.to_string(),
                count(report.per_second()),
                count(report.conflicts_per_million().round()),
                format!("{}/{}", report.lost_audited, report.lost_silent),
                latency(report.convergence),
                lag(0.5),
                lag(0.99),
                down,
            ],
        );
    }
    table.render()
}

/// What the writers share.
struct Shared {
    level: WriteLevel,
    lists: Lists,
    over: Cell<bool>,
    next_element: Cell<u32>,
    /// How many lists of this number are full.
    generations: RefCell<Vec<u32>>,
    /// Acknowledged elements by list.
    acked: RefCell<BTreeMap<String, Vec<u32>>>,
    acked_count: Cell<u64>,
    added: Cell<u64>,
    additions_in_doubt: Cell<u64>,
    unacked: Cell<u64>,
    merged: Cell<u64>,
}

fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

fn elements(values: &[Bytes]) -> BTreeSet<u32> {
    let numbers = values.iter().flat_map(|value| value.chunks_exact(4));
    numbers.map(|number| u32::from_le_bytes(number.try_into().expect("chunks of four"))).collect()
}

impl Shared {
    async fn write_lists(self: Rc<Self>, store: KvClient, mut rng: fastrand::Rng) {
        while !self.over.get() {
            let list = rng.usize(..LISTS);
            if self.update(&store, list).await.is_err() {
                bump(&self.unacked);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn update(&self, store: &KvClient, list: usize) -> Result<(), BenchError> {
        let generation = self.generations.borrow()[list];
        let key = format!("{}{list:03}-{generation}", self.lists.prefix());
        let found = store.read(ReadRequest::new(key.clone()).at(ReadLevel::Local)).await?;
        let mut all = elements(&found.values);
        if all.len() >= ELEMENTS_MAX {
            let mut generations = self.generations.borrow_mut();
            generations[list] = generations[list].max(generation + 1);
            return Ok(());
        }
        let element = self.next_element.replace(self.next_element.get() + 1);
        all.insert(element);
        let value: Vec<u8> = all.iter().flat_map(|element| element.to_le_bytes()).collect();
        let mut write = WriteRequest::put(key.clone(), value).at(self.level);
        write.context = found.context;
        store.write(write).await?;
        if found.values.len() > 1 {
            bump(&self.merged);
        }
        bump(&self.acked_count);
        self.acked.borrow_mut().entry(key).or_default().push(element);
        Ok(())
    }

    async fn add(self: Rc<Self>, store: KvClient, mut rng: fastrand::Rng) {
        while !self.over.get() {
            let key = format!("{COUNTERS}{}", rng.u32(..COUNTERS_WRITTEN));
            match store.write(WriteRequest::add(key, 1).at(self.level)).await {
                Ok(_) => {
                    bump(&self.added);
                    bump(&self.acked_count);
                }
                Err(_) => {
                    bump(&self.additions_in_doubt);
                    bump(&self.unacked);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Runs it on a new cluster, with its data below `folder`. Must run on a current-thread runtime.
///
/// # Errors
/// When the cluster does not start, does not converge, or cannot be read back.
pub async fn run(replication: Replication, seed: u64, folder: &Path) -> Result<ReplicationReport, BenchError> {
    let mut cluster = MultiLeader::start(folder, None).await?;
    let mut lag = Latencies::new();
    if replication.measures_lag() {
        lag = measure_lag(&cluster, replication, seed).await;
        cluster.converge().await?;
    }
    // What was overwritten before is not this run's.
    cluster.audited().await?;
    let shared = Rc::new(Shared {
        level: replication.level,
        lists: replication.lists,
        over: Cell::new(false),
        next_element: Cell::new(0),
        generations: RefCell::new(vec![0; LISTS]),
        acked: RefCell::default(),
        acked_count: Cell::new(0),
        added: Cell::new(0),
        additions_in_doubt: Cell::new(0),
        unacked: Cell::new(0),
        merged: Cell::new(0),
    });
    let begun = Instant::now();
    let acked_while_down = LocalSet::new()
        .run_until(async {
            let writers: Vec<_> = (0..LIST_WRITERS + ADDERS)
                .map(|number| {
                    let store = cluster.clients()[number % cluster.clients().len()].clone();
                    let rng = fastrand::Rng::with_seed(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let shared = shared.clone();
                    tokio::task::spawn_local(async move {
                        if number < LIST_WRITERS {
                            shared.write_lists(store, rng).await;
                        } else {
                            shared.add(store, rng).await;
                        }
                    })
                })
                .collect();
            let down = disturb(replication, &mut cluster, &shared).await?;
            shared.over.set(true);
            for writer in writers {
                writer.await.expect("a writer reports its errors");
            }
            Ok::<u64, BenchError>(down)
        })
        .await?;
    let elapsed = begun.elapsed();
    let convergence = cluster.converge().await?;
    cluster.check()?;
    let mut report = ReplicationReport {
        replication,
        elapsed,
        acked: shared.acked_count.get(),
        unacked: shared.unacked.get(),
        conflicts: shared.merged.get(),
        lost_audited: 0,
        lost_silent: 0,
        differing: 0,
        convergence,
        lag,
        acked_while_down,
    };
    read_back(&mut cluster, &shared, &mut report).await?;
    Box::new(cluster).stop().await?;
    Ok(report)
}

/// Lets the time go by; how many updates were acknowledged while a node was down.
async fn disturb(replication: Replication, cluster: &mut MultiLeader, shared: &Shared) -> Result<u64, BenchError> {
    match replication.disturbance {
        Disturbance::None => {
            tokio::time::sleep(replication.measured).await;
            Ok(0)
        }
        Disturbance::Kill => {
            let third = replication.measured / 3;
            tokio::time::sleep(third).await;
            cluster.nodes.kill(VICTIM)?;
            let before = shared.acked_count.get();
            tokio::time::sleep(third).await;
            let acked = shared.acked_count.get() - before;
            cluster.nodes.restart(VICTIM)?;
            tokio::time::sleep(third).await;
            Ok(acked)
        }
    }
}

async fn values(store: &KvClient, key: &str) -> Result<Vec<Bytes>, BenchError> {
    Ok(store.read(ReadRequest::new(key.to_owned()).at(ReadLevel::Local)).await?.values)
}

async fn read_back(
    cluster: &mut MultiLeader,
    shared: &Shared,
    report: &mut ReplicationReport,
) -> Result<(), BenchError> {
    let audited = cluster.audited().await?.expect("this engine has an audit log");
    report.conflicts += audited.conflicts.len() as u64 + audited.dropped;
    let mut kept: BTreeMap<&[u8], BTreeSet<u32>> = BTreeMap::new();
    for conflict in &audited.conflicts {
        let value: Vec<Bytes> = conflict.overwritten.version.value.iter().cloned().collect();
        kept.entry(&conflict.key[..]).or_default().extend(elements(&value));
    }
    for (key, acked) in &shared.acked.take() {
        let shown = values(cluster.at(NodeId(1)), key).await?;
        for node in cluster.ids().skip(1) {
            if values(cluster.at(node), key).await? != shown {
                report.differing += 1;
            }
        }
        let shown = elements(&shown);
        let kept = kept.get(key.as_bytes());
        for element in acked.iter().filter(|element| !shown.contains(element)) {
            if kept.is_some_and(|kept| kept.contains(element)) {
                report.lost_audited += 1;
            } else {
                report.lost_silent += 1;
            }
        }
    }
    let mut sum = 0;
    for counter in 0..COUNTERS_WRITTEN {
        let key = format!("{COUNTERS}{counter}");
        let shown = values(cluster.at(NodeId(1)), &key).await?;
        for node in cluster.ids().skip(1) {
            if values(cluster.at(node), &key).await? != shown {
                report.differing += 1;
            }
        }
        let number = shown.first().and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok());
        sum += number.unwrap_or(0);
    }
    // An addition of unknown outcome may count or not; an acknowledged one counts once.
    let (least, most) = (shared.added.get(), shared.added.get() + shared.additions_in_doubt.get());
    report.lost_silent += least.saturating_sub(sum) + sum.saturating_sub(most);
    Ok(())
}

/// How long writes of node 1 take to node 2, at half of the load that the cluster bears.
async fn measure_lag(cluster: &MultiLeader, replication: Replication, seed: u64) -> Latencies {
    let target = cluster.target(replication.level, Reads::Local);
    let value_bytes = crate::suite::VALUE_BYTES;
    let workload = Workload { reads_percent: 0, spread: Spread::Uniform, keys: LAG_KEYS, value_bytes };
    let ledger = Rc::new(Ledger::new(LAG_KEYS, value_bytes));
    let full = Pace::Closed { clients: LAG_CLIENTS };
    let most = load::run(ledger.clone(), target.clone(), workload, full, LAG_WINDOW, seed).await.throughput();
    let half = Pace::Open { rate: (most / 2.0).max(1.0) as u32 };
    let window = Window { measured: replication.measured, ..LAG_WINDOW };
    let probe = async {
        tokio::time::sleep(window.warm_up).await;
        let end = Instant::now() + window.measured;
        let (writer, reader) = (cluster.at(NodeId(1)), cluster.at(NodeId(2)));
        let mut lag = Latencies::new();
        let mut number = 0_u64;
        while Instant::now() < end {
            number += 1;
            let write = WriteRequest::put("lag", number.to_string()).at(WriteLevel::LeaderDisk);
            if writer.write(write).await.is_ok() {
                let acked = Instant::now();
                while Instant::now() < end {
                    let shown = values(reader, "lag").await.unwrap_or_default();
                    if shown.first().is_some_and(|value| *value == number.to_string()) {
                        lag.record(acked.elapsed());
                        break;
                    }
                }
            }
            tokio::time::sleep(LAG_PAUSE).await;
        }
        lag
    };
    let (_, lag) = tokio::join!(load::run(ledger, target, workload, half, window, seed), probe);
    lag
}
