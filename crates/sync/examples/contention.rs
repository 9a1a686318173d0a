//! How fast 64 threads get through the group-commit queue, one item each at a time, when the sync itself costs nothing.
//!
//! `cargo run --release -p replikit-sync --example contention [THREADS [SECONDS]]`

use replikit_sync::{Watermark, group_queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: f64 = arguments.next().map_or(Ok(2.0), |text| text.parse())?;

    let (producer, mut consumer) = group_queue::<u64>(4096);
    let durable = Arc::new(Watermark::<std::io::Error>::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let consumer = std::thread::spawn({
        let durable = Arc::clone(&durable);
        move || {
            let guard = durable.poison_on_drop(std::io::Error::other("the consumer is gone"));
            let mut group = Vec::new();
            let mut groups = 0u64;
            while let Some(sequences) = consumer.take(&mut group) {
                group.clear();
                groups += 1;
                durable.publish(sequences.end - 1);
            }
            guard.disarm();
            groups
        }
    });
    let start = Instant::now();
    let writers: Vec<_> = (0..threads as u64)
        .map(|writer| {
            let (producer, durable, stop) = (producer.clone(), Arc::clone(&durable), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut acked = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let sequence = producer.push(writer).expect("the consumer outlives the producers");
                    durable.wait(sequence).expect("nobody poisons it");
                    acked += 1;
                }
                acked
            })
        })
        .collect();
    drop(producer);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    stop.store(true, Ordering::Relaxed);
    let acked: u64 = writers.into_iter().map(|writer| writer.join().expect("the writer does not panic")).sum();
    let elapsed = start.elapsed();
    let groups = consumer.join().expect("the consumer does not panic");
    println!(
        "{threads} threads: {:.0} items/s, {:.1} items per group",
        acked as f64 / elapsed.as_secs_f64(),
        acked as f64 / groups as f64
    );
    Ok(())
}
