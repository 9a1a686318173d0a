//! Handing a partition with all keys of the store to another group on the same nodes, and back; and placing a leaderless or multi-leader
//! group with all of them so that one of its nodes is another one, and back.
//!
//! The pause is the longest time without an acknowledged write around a handoff: all clients write to the partition that is
//! handed over, so nothing else hides it. Every acknowledged write is read back afterwards.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::{NodeId, Owners, ReadLevel, Store, WriteLevel, WriteRequest};
use replikit_partitioning::store::{FIRST_GROUP, StoreClient, StoreClientConfig};
use tokio::task::LocalSet;

use super::{CLIENTS, Found, HANDED_KEYS};
use crate::engine::partitioned::Partitioned;
use crate::engine::{Engine, Placed};
use crate::error::BenchError;
use crate::figure::{Better, Subject};
use crate::ledger::Ledger;
use crate::load::{self, Reads};
use crate::record::{Curve, Mark};
use crate::recorder::Latencies;
use crate::suite::VALUE_BYTES;
use crate::table::latency;
use crate::timeline::{BUCKET, Timeline};
use crate::verify::{Verified, verify, verify_at};
use crate::workload::key_bytes;

/// What goes elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// A partition, to another group.
    Partition,
    /// A node's copy of a group of this kind, to another node.
    Copy(Placed),
}

/// One partition, and two groups that can have it.
const TWO_GROUPS: [&str; 2] = ["--groups", "2"];
/// One of them is no owner.
const PLACES: usize = 4;
const IDLE_HANDOFFS: usize = 4;
const LOADED_HANDOFFS: usize = 6;
const HANDOFF_TIME_MAX: Duration = Duration::from_secs(60);
/// Writes before the first handoff, and between two.
const BETWEEN: Duration = Duration::from_millis(800);
/// Writes of a client that knows the map, for comparison.
const FRESH_WRITES: usize = 200;
/// Until replicas of a multi-leader group show the same.
const CONVERGENCE: Duration = Duration::from_secs(1);
/// After a write that failed.
const PAUSE: Duration = Duration::from_millis(2);

/// A cluster with one partition of [`HANDED_KEYS`] keys.
async fn loaded_cluster(moved: Moved, folder: &Path) -> Result<(Partitioned, Rc<Ledger>), BenchError> {
    let engine = match moved {
        Moved::Partition => Partitioned::start_with(folder, None, 1, &TWO_GROUPS).await?,
        Moved::Copy(of) => Partitioned::start_placed(of, folder, None, PLACES, 1).await?,
    };
    let ledger = Rc::new(Ledger::new(HANDED_KEYS, VALUE_BYTES));
    let target = engine.target(WriteLevel::Quorum, Reads::Linearizable);
    load::preload(&ledger, &target, HANDED_KEYS, VALUE_BYTES).await?;
    Ok((engine, ledger))
}

/// Places the only group on the node that is no owner, instead of one of the others; how long that took.
async fn place(client: &StoreClient) -> Result<Duration, BenchError> {
    let failed = |what: String| BenchError::Engine { engine: "partitioned".to_owned(), what };
    let map = client.map().await.map_err(|error| failed(error.to_string()))?;
    let partition = map.partitions().next().expect("a map covers all keys").clone();
    let mut nodes = (1..=PLACES as u32).map(NodeId);
    let outside = nodes.find(|node| !partition.replicas.contains(node)).expect("there is one more than owners");
    let mut replicas = partition.replicas;
    replicas.rotate_left(1);
    replicas.pop();
    replicas.push(outside);
    let begun = Instant::now();
    client.place(partition.group, replicas, HANDOFF_TIME_MAX).await.map_err(|error| failed(error.to_string()))?;
    Ok(begun.elapsed())
}

impl Moved {
    async fn move_once(self, client: &StoreClient) -> Result<Duration, BenchError> {
        match self {
            Self::Partition => hand_over(client).await,
            Self::Copy(_) => place(client).await,
        }
    }

    /// Reads everything back.
    async fn verified(self, ledger: &Ledger, client: &StoreClient) -> Result<Verified, BenchError> {
        Ok(match self {
            Self::Partition => verify(ledger, client).await?,
            Self::Copy(Placed::MultiLeader) => {
                // A replica shows what the others have told it, which they do ten times a second.
                tokio::time::sleep(CONVERGENCE).await;
                verify_at(ledger, client, ReadLevel::Local).await?
            }
            Self::Copy(Placed::Leaderless) => verify_at(ledger, client, ReadLevel::Owners(Owners::Quorum)).await?,
        })
    }
}

/// Hands the only partition to the group that does not have it; how long that took.
async fn hand_over(client: &StoreClient) -> Result<Duration, BenchError> {
    let failed = |what: String| BenchError::Engine { engine: "partitioned".to_owned(), what };
    let map = client.map().await.map_err(|error| failed(error.to_string()))?;
    let partition = map.partitions().next().expect("a map covers all keys").clone();
    let mut other = FIRST_GROUP;
    if partition.group == FIRST_GROUP {
        other.0 += 1;
    }
    let begun = Instant::now();
    client
        .hand_off(partition.id, other, partition.replicas, HANDOFF_TIME_MAX)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(begun.elapsed())
}

/// What keys and values of the partition take.
fn payload() -> f64 {
    f64::from(HANDED_KEYS) * (key_bytes(0).len() + VALUE_BYTES) as f64
}

/// Bytes a second that one thread sends to another over loopback: what a copy could take at best.
fn loopback_copy_rate() -> std::io::Result<f64> {
    const BYTES: usize = 256 << 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let chunk = vec![7; 256 << 10];
        for _ in 0..BYTES / chunk.len() {
            stream.write_all(&chunk)?;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept()?;
    let (mut buffer, mut received) = (vec![0; 256 << 10], 0);
    let begun = Instant::now();
    while received < BYTES {
        match stream.read(&mut buffer)? {
            0 => break,
            read => received += read,
        }
    }
    let rate = received as f64 / begun.elapsed().as_secs_f64();
    sender.join().expect("the sender does not panic")?;
    Ok(rate)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Requests that all nodes have had.
async fn requests(engine: &Partitioned) -> Result<u64, BenchError> {
    Ok(engine.statuses().await?.iter().map(|status| status.counters.requests).sum())
}

pub(super) async fn idle(moved: Moved, subject: &Subject, folder: &Path) -> Result<Found, BenchError> {
    let (engine, ledger) = loaded_cluster(moved, folder).await?;
    let copy_rate = loopback_copy_rate().map_err(BenchError::io("measuring loopback"))?;
    let operator = engine.client().clone();
    let config = StoreClientConfig::new(engine.cluster(), engine.addresses());
    let late = StoreClient::connect(config).await.map_err(|error| engine.failed(error.to_string()))?;
    let write = async |client: &StoreClient, key: u32| -> Result<f64, BenchError> {
        let Some((begun, value)) = ledger.begin(key, VALUE_BYTES) else { return Ok(0.0) };
        let at = Instant::now();
        client.write(WriteRequest::put(key_bytes(key), value)).await?;
        ledger.acked(begun);
        Ok(at.elapsed().as_secs_f64() * 1e6)
    };
    let (mut took, mut fresh, mut stale, mut trips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Asking for the counts is a request as well, once for each node.
    let asking = requests(&engine).await?;
    let asking = requests(&engine).await? - asking;
    for round in 0..IDLE_HANDOFFS as u32 {
        for key in 0..FRESH_WRITES as u32 {
            fresh.push(write(&late, key).await?);
        }
        took.push(moved.move_once(&operator).await?.as_secs_f64());
        let before = requests(&engine).await?;
        stale.push(write(&late, round).await?);
        // The map that is read beside the write is one of them.
        tokio::time::sleep(Duration::from_millis(50)).await;
        trips.push((requests(&engine).await? - before).saturating_sub(asking) as f64);
    }
    let verified = moved.verified(&ledger, &operator).await?;
    let took = median(took);
    let rate = payload() / took;
    let figures = vec![
        subject.figure("handoff", took * 1e6, "us", Better::Lower),
        subject.figure("keys handed over", f64::from(HANDED_KEYS) / took, "1/s", Better::Higher),
        subject.figure("bytes handed over", rate, "B/s", Better::Higher),
        subject.figure("loopback copy", copy_rate, "B/s", Better::Neither),
        subject.figure("share of the loopback copy", rate / copy_rate, "1", Better::Higher),
        subject.figure("write by a fresh map, p50", median(fresh), "us", Better::Lower),
        subject.figure("first write by a stale map", median(stale), "us", Better::Lower),
        subject.figure("requests of the first write by a stale map", median(trips), "1", Better::Lower),
        subject.figure("acked writes lost", verified.lost as f64, "1", Better::Lower),
    ];
    let mut wrong = Vec::new();
    if verified.lost + verified.foreign > 0 {
        wrong.push(format!("handoff: {} acked writes lost: {}", verified.lost, verified.told.join("; ")));
    }
    let line = format!("{} a handoff, {:.0} MB/s", latency(Duration::from_secs_f64(took)), rate / 1e6);
    Box::new(engine).stop().await?;
    Ok(Found { figures, wrong, line, ..Found::default() })
}

/// What the writers share.
struct Writing {
    ledger: Rc<Ledger>,
    begun: Instant,
    timeline: RefCell<Timeline>,
    handing: Cell<bool>,
    over: Cell<bool>,
    quiet: RefCell<Latencies>,
    meanwhile: RefCell<Latencies>,
    acked: Cell<u64>,
    errors: RefCell<Vec<String>>,
}

impl Writing {
    async fn write(&self, client: &StoreClient, key: u32) {
        let Some((begun, value)) = self.ledger.begin(key, VALUE_BYTES) else { return self.over.set(true) };
        let (at, handing) = (Instant::now(), self.handing.get());
        match client.write(WriteRequest::put(key_bytes(key), value)).await {
            Ok(_) => {
                self.ledger.acked(begun);
                self.acked.set(self.acked.get() + 1);
                self.timeline.borrow_mut().acked(self.begun.elapsed());
                let latencies = if handing || self.handing.get() { &self.meanwhile } else { &self.quiet };
                latencies.borrow_mut().record(at.elapsed());
            }
            Err(error) => {
                self.errors.borrow_mut().push(error.to_string());
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn mark(&self, what: String) {
        self.timeline.borrow_mut().mark(self.begun.elapsed(), what);
    }
}

/// One handoff under load.
struct HandedOver {
    from: Duration,
    took: Duration,
    /// Acknowledged writes a second before it, and during it.
    rates: [f64; 2],
}

pub(super) async fn loaded(moved: Moved, subject: &Subject, seed: u64, folder: &Path) -> Result<Found, BenchError> {
    let (engine, ledger) = loaded_cluster(moved, folder).await?;
    let clients = engine.clients().to_vec();
    let writing = Rc::new(Writing {
        ledger: Rc::clone(&ledger),
        begun: Instant::now(),
        timeline: RefCell::default(),
        handing: Cell::new(false),
        over: Cell::new(false),
        quiet: RefCell::new(Latencies::new()),
        meanwhile: RefCell::new(Latencies::new()),
        acked: Cell::new(0),
        errors: RefCell::default(),
    });
    let handed = LocalSet::new()
        .run_until(async {
            let writers: Vec<_> = (0..CLIENTS as usize)
                .map(|number| {
                    let (writing, client) = (Rc::clone(&writing), clients[number % clients.len()].clone());
                    let mut rng = fastrand::Rng::with_seed(seed ^ (number as u64) << 32);
                    tokio::task::spawn_local(async move {
                        while !writing.over.get() {
                            writing.write(&client, rng.u32(..HANDED_KEYS)).await;
                        }
                    })
                })
                .collect();
            let mut handed = Vec::new();
            tokio::time::sleep(BETWEEN).await;
            for number in 1..=LOADED_HANDOFFS {
                let before = writing.acked.get();
                tokio::time::sleep(BETWEEN).await;
                let quiet = (writing.acked.get() - before) as f64 / BETWEEN.as_secs_f64();
                let (from, before) = (writing.begun.elapsed(), writing.acked.get());
                writing.mark(format!("handoff {number} begins"));
                writing.handing.set(true);
                let took = moved.move_once(engine.client()).await?;
                writing.handing.set(false);
                writing.mark(format!("handoff {number} has ended"));
                let during = (writing.acked.get() - before) as f64 / took.as_secs_f64();
                handed.push(HandedOver { from, took, rates: [quiet, during] });
            }
            tokio::time::sleep(BETWEEN).await;
            writing.over.set(true);
            for writer in writers {
                writer.await.expect("a writer reports its errors");
            }
            Ok::<_, BenchError>(handed)
        })
        .await?;
    let mut timeline = writing.timeline.take();
    timeline.end(writing.begun.elapsed());
    let verified = moved.verified(&ledger, engine.client()).await?;
    let pauses = handed.iter().map(|it| timeline.longest_gap_between(it.from, it.from + it.took).length);
    let mut pauses: Vec<f64> = pauses.map(|pause| pause.as_secs_f64() * 1e6).collect();
    pauses.sort_by(f64::total_cmp);
    let took = median(handed.iter().map(|it| it.took.as_secs_f64()).collect());
    let dip = median(handed.iter().map(|it| 1.0 - it.rates[1] / it.rates[0].max(1.0)).collect());
    let dip_area =
        median(handed.iter().map(|it| (it.rates[0] - it.rates[1]).max(0.0) * it.took.as_secs_f64()).collect());
    let errors = writing.errors.take();
    let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
    let (quiet, meanwhile) = (writing.quiet.take(), writing.meanwhile.take());
    let mut figures = vec![
        subject.figure("handoff", took * 1e6, "us", Better::Lower),
        subject.figure("keys handed over", f64::from(HANDED_KEYS) / took, "1/s", Better::Higher),
        subject.figure("bytes handed over", payload() / took, "B/s", Better::Higher),
        subject.figure("pause of writes, p50", pauses[pauses.len() / 2], "us", Better::Lower),
        subject.figure("pause of writes, max", pauses[pauses.len() - 1], "us", Better::Lower),
        subject.figure("writes before", median(handed.iter().map(|it| it.rates[0]).collect()), "1/s", Better::Higher),
        subject.figure(
            "writes meanwhile",
            median(handed.iter().map(|it| it.rates[1]).collect()),
            "1/s",
            Better::Higher,
        ),
        subject.figure("dip", dip, "1", Better::Lower),
        subject.figure("dip area, writes", dip_area, "1", Better::Lower),
        subject.figure("requests failed", errors.len() as f64, "1", Better::Lower),
        subject.figure("acked writes lost", verified.lost as f64, "1", Better::Lower),
    ];
    for (name, latencies) in [("before", &quiet), ("meanwhile", &meanwhile)] {
        for (shown, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let metric = format!("write latency {name} {shown}");
            figures.push(subject.figure(&metric, micros(latencies.quantile(share)), "us", Better::Lower));
        }
    }
    let mut wrong = Vec::new();
    if verified.lost + verified.foreign > 0 {
        wrong.push(format!("handoff under load: {} acked writes lost: {}", verified.lost, verified.told.join("; ")));
    }
    if let Some(error) = errors.first() {
        wrong.push(format!("handoff under load: {} requests failed, for example: {error}", errors.len()));
    }
    let line = format!(
        "{} a handoff, writes pause for {} at most",
        latency(Duration::from_secs_f64(took)),
        latency(Duration::from_secs_f64(pauses[pauses.len() - 1] / 1e6))
    );
    let per_second = 1.0 / BUCKET.as_secs_f64();
    let counts = timeline.counts().iter().enumerate();
    let curve = Curve {
        name: "acked writes".to_owned(),
        x_unit: "s".to_owned(),
        y_unit: "1/s".to_owned(),
        points: counts.map(|(at, count)| (at as f64 * BUCKET.as_secs_f64(), f64::from(*count) * per_second)).collect(),
    };
    let marks = timeline.marks().iter().map(|(at, what)| Mark { at: at.as_secs_f64(), what: what.clone() }).collect();
    Box::new(engine).stop().await?;
    Ok(Found { figures, curves: vec![curve], marks, wrong, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_copy_has_a_rate() {
        assert!(loopback_copy_rate().expect("loopback is there") > 1e6);
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
