//! Loom models of the group-commit queue, together with the watermark that its producers wait for.

use super::group_queue;
use crate::Watermark;
use crate::exploration::{Bound, explore};
use crate::primitives::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

type Failure = &'static str;

#[test]
fn no_write_is_acked_before_its_sync() {
    explore(Bound::Preemptions(3), || {
        let (producer, mut consumer) = group_queue::<usize>(4);
        let durable = Arc::new(Watermark::<Failure>::new(0));
        let disk = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let writers = [(0, producer.clone()), (1, producer)].map(|(block, producer)| {
            let (durable, disk) = (Arc::clone(&durable), Arc::clone(&disk));
            thread::spawn(move || {
                let sequence = producer.push(block).expect("the consumer outlives the producers");
                durable.wait(sequence).expect("nobody poisons it");
                // Only now, so that no end of the queue can make up for a lost wake-up.
                drop(producer);
                assert_eq!(disk[block].load(Ordering::Relaxed), sequence, "acked before its sync");
            })
        });
        let mut group = Vec::new();
        let mut next = 1;
        while let Some(sequences) = consumer.take(&mut group) {
            assert_eq!(sequences.start, next, "a gap in the sequences");
            assert_eq!(sequences.clone().count(), group.len());
            next = sequences.end;
            for (sequence, block) in sequences.zip(group.drain(..)) {
                disk[block].store(sequence, Ordering::Relaxed);
            }
            durable.publish(next - 1);
        }
        assert_eq!(next, 3, "the queue ended before all was taken");
        for writer in writers {
            writer.join().expect("the writer ends");
        }
    });
}

#[test]
fn failed_sync_reaches_all_waiters() {
    explore(Bound::Preemptions(4), || {
        let (producer, mut consumer) = group_queue::<u8>(4);
        let durable = Arc::new(Watermark::<Failure>::new(0));
        let writers = [producer.clone(), producer].map(|producer| {
            let durable = Arc::clone(&durable);
            thread::spawn(move || match producer.push(7) {
                Ok(sequence) => {
                    assert_eq!(*durable.wait(sequence).expect_err("no sync succeeded").cause(), "fsync");
                }
                Err(_closed) => assert!(durable.poisoned().is_some(), "closed without a reason"),
            })
        });
        let mut group = Vec::new();
        assert!(consumer.take(&mut group).is_some());
        assert!(durable.poison("fsync"));
        drop(consumer);
        for writer in writers {
            writer.join().expect("the writer ends");
        }
        assert_eq!(durable.load(), 0);
        assert_eq!(durable.waiting(), 0);
    });
}

#[test]
fn producers_blocked_at_the_limit_continue_after_a_take() {
    explore(Bound::Preemptions(4), || {
        let (producer, mut consumer) = group_queue::<u8>(1);
        let blocked = {
            let producer = producer.clone();
            thread::spawn(move || {
                producer.push(1).expect("the consumer outlives the producers");
                producer.push(2).expect("the consumer outlives the producers");
            })
        };
        let other = thread::spawn(move || {
            producer.push(3).expect("the consumer outlives the producers");
        });
        let mut taken = Vec::new();
        let mut group = Vec::new();
        while consumer.take(&mut group).is_some() {
            assert_eq!(group.len(), 1, "more waited than the limit allows");
            taken.append(&mut group);
        }
        blocked.join().expect("the blocked producer ends");
        other.join().expect("the other producer ends");
        taken.retain(|item| *item != 3);
        assert_eq!(taken, [1, 2], "not first in, first out");
    });
}

#[test]
fn producers_blocked_at_the_limit_learn_that_the_consumer_is_gone() {
    explore(Bound::Exhaustive, || {
        let (producer, consumer) = group_queue::<u8>(1);
        let blocked = thread::spawn(move || {
            let _ = producer.push(1);
            let refused = producer.push(2).expect_err("nobody takes the first item");
            assert_eq!(refused.0, 2);
        });
        drop(consumer);
        blocked.join().expect("the blocked producer ends");
    });
}

#[test]
fn close_drains_then_ends() {
    explore(Bound::Exhaustive, || {
        let (producer, mut consumer) = group_queue::<u64>(4);
        let closer = {
            let producer = producer.clone();
            thread::spawn(move || {
                let accepted = producer.push(1).is_ok();
                producer.close();
                u64::from(accepted)
            })
        };
        let late = thread::spawn(move || {
            let mut items = vec![10, 100];
            let accepted = producer.push_all(&mut items).map_or(0, |sequences| sequences.count());
            assert!(accepted == 0 || accepted == 2, "a batch was torn");
            // Keeps the producer alive: it is `close` that ends the queue.
            (producer, if accepted == 2 { 110 } else { 0 })
        });
        let mut drained = 0;
        let mut group = Vec::new();
        while consumer.take(&mut group).is_some() {
            drained += group.drain(..).sum::<u64>();
        }
        let accepted = closer.join().expect("the closer ends") + late.join().expect("the late producer ends").1;
        assert_eq!(drained, accepted, "what was accepted is not what was drained");
    });
}
