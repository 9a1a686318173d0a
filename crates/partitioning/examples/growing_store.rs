//! A store that begins with one partition on three of six nodes and grows: splits, handoffs to groups on the other nodes, all
//! while a client counts, and checks at the end that every addition counted once.
//!
//! `cargo run --release -p replikit-partitioning --example growing_store [partitions]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use replikit_core::{NodeId, ReadRequest, Store, WriteRequest};
use replikit_partitioning::store::{Founding, StoreClient, StoreCluster};
use replikit_partitioning::{PartitionId, Scheme};

const KEYS: u32 = 1000;

fn key(n: u32) -> String {
    format!("user{:03}", n % KEYS)
}

/// Adds to one key after the other until it is told to stop; how often it added to each, and the longest wait.
async fn count(store: StoreClient, stop: Arc<AtomicBool>) -> Result<(Vec<u64>, Duration), replikit_core::WriteError> {
    let (mut counts, mut longest) = (vec![0; KEYS as usize], Duration::ZERO);
    for n in (0..KEYS).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        store.write(WriteRequest::add(key(n), 1)).await?;
        longest = longest.max(began.elapsed());
        counts[n as usize] += 1;
    }
    Ok((counts, longest))
}

/// Hands a partition to the group of this place in the layout.
async fn hand_off(
    store: &StoreClient,
    cluster: &StoreCluster,
    partition: PartitionId,
    nth: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let groups = cluster.layout().groups().count();
    let (target, replicas) = cluster.layout().groups().nth(nth % groups).expect("there are groups");
    if store.map().await?.partition(partition).is_none_or(|it| it.group == target) {
        return Ok(());
    }
    store.hand_off(partition, target, replicas.to_vec(), Duration::from_secs(60)).await?;
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let partitions: usize = std::env::args().nth(1).map_or(Ok(16), |count| count.parse())?;
    let founding = Founding::new((1..=6).map(NodeId), 1).groups(12).scheme(Scheme::KEY_ORDER);
    let cluster = StoreCluster::open(&founding)?;
    let store = cluster.client().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(cluster.client().await?, Arc::clone(&stop)));

    let began = Instant::now();
    for nth in 1..partitions {
        let cut = key((KEYS as usize * nth / partitions) as u32);
        let (map, right) = store.split(cut.as_bytes()).await?;
        hand_off(&store, &cluster, right, nth).await?;
        println!("{:>6.2} s  {:>3} partitions, epoch {}", began.elapsed().as_secs_f64(), map.len(), map.epoch());
    }
    stop.store(true, Ordering::Relaxed);
    let (counts, longest) = counting.await??;
    for (n, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let read = store.read(ReadRequest::new(key(n as u32))).await?;
        assert_eq!(read.values, [count.to_string()], "{}: an addition was lost or counted twice", key(n as u32));
    }
    let map = store.map().await?;
    let used: std::collections::BTreeSet<NodeId> =
        map.partitions().flat_map(|it| it.replicas.iter().copied()).collect();
    println!(
        "{} additions all counted once; {} partitions on {} nodes; the longest wait was {longest:?}",
        counts.iter().sum::<u64>(),
        map.len(),
        used.len()
    );
    Ok(())
}
