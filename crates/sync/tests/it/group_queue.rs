//! The group-commit queue.

use replikit_sync::{Closed, PushError, Taken, Watermark, group_queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

#[test]
fn sequences_start_at_one_without_gaps() {
    let (producer, mut consumer) = group_queue(8);
    assert_eq!(producer.push('a'), Ok(1));
    assert_eq!(producer.try_push('b'), Ok(2));
    assert_eq!(producer.push_all(&mut vec!['c', 'd']), Ok(3..5));
    assert_eq!(producer.push_all(&mut Vec::new()), Ok(5..5));
    let mut group = Vec::new();
    assert_eq!(consumer.take(&mut group), Some(1..5));
    assert_eq!(group, ['a', 'b', 'c', 'd']);
    assert_eq!(consumer.try_take(&mut group), Taken::Empty);
    assert_eq!(producer.push('e'), Ok(5));
    assert_eq!(consumer.try_take(&mut group), Taken::Items(5..6), "a vector that is not empty");
    assert_eq!(group, ['a', 'b', 'c', 'd', 'e']);
}

#[test]
fn queue_at_its_limit_gives_the_item_back() {
    let (producer, mut consumer) = group_queue(2);
    let mut items = vec![1, 2, 3];
    assert_eq!(producer.push_all(&mut items), Ok(1..3));
    assert_eq!(items, [3], "what did not fit stays");
    assert_eq!(producer.push_all(&mut items), Ok(3..3));
    assert_eq!(producer.try_push(4), Err(PushError::Full(4)));
    let mut group = Vec::new();
    consumer.take(&mut group);
    assert_eq!(group, [1, 2]);
    assert_eq!(producer.push_all(&mut items), Ok(3..4), "the group in the consumer's hands does not count");
}

#[test]
fn swapped_buffers_are_used_again() {
    let (producer, mut consumer) = group_queue::<u64>(64);
    let mut group = Vec::with_capacity(64);
    let mut buffers = Vec::new();
    for _ in 0..4 {
        producer.push_all(&mut vec![7; 64]).unwrap();
        consumer.take(&mut group);
        buffers.push((group.as_ptr(), group.capacity()));
        group.clear();
    }
    assert_eq!(buffers[..2], buffers[2..], "two buffers take turns");
}

#[test]
fn close_drains_then_ends() {
    let (producer, mut consumer) = group_queue(8);
    producer.push(1).unwrap();
    producer.close();
    assert_eq!(producer.push(2), Err(Closed(2)));
    assert_eq!(producer.try_push(2), Err(PushError::Closed(2)));
    assert_eq!(producer.push_all(&mut vec![2]), Err(Closed(())));
    let mut group = Vec::new();
    assert_eq!(consumer.take(&mut group), Some(1..2));
    assert_eq!(consumer.take(&mut group), None);
    assert_eq!(consumer.try_take(&mut group), Taken::Closed);
}

#[test]
fn last_producer_dropped_closes() {
    let (producer, mut consumer) = group_queue::<u8>(8);
    let other = producer.clone();
    drop(producer);
    assert_eq!(consumer.try_take(&mut Vec::new()), Taken::Empty);
    drop(other);
    assert_eq!(consumer.take(&mut Vec::new()), None);
}

#[test]
fn consumer_that_panics_releases_blocked_producers() {
    let (producer, mut consumer) = group_queue(1);
    producer.push(0).unwrap();
    let blocked: Vec<_> = (1..5)
        .map(|item| {
            let producer = producer.clone();
            thread::spawn(move || producer.push(item))
        })
        .collect();
    let died = thread::spawn(move || {
        // Everything taken, nothing left to take: then it dies with producers blocked or about to be.
        let _ = consumer.try_take(&mut Vec::new());
        std::panic::resume_unwind(Box::new("the consumer's bug"));
    });
    assert!(died.join().is_err());
    let accepted = blocked.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count();
    assert!(accepted <= 1, "only one item fits after the take");
    assert!(producer.is_closed());
    assert!(producer.is_empty(), "what was not taken is dropped");
}

#[test]
fn many_threads_are_acked_after_their_group_and_in_order() {
    const THREADS: usize = 16;
    const ITEMS: usize = 500;
    // A limit below the number of threads, so that pushes block too.
    let (producer, mut consumer) = group_queue::<(usize, usize)>(10);
    let durable = Arc::new(Watermark::<std::io::Error>::new(0));
    let disk: Arc<Vec<AtomicU64>> = Arc::new((0..THREADS * ITEMS).map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> = (0..THREADS)
        .map(|writer| {
            let (producer, durable, disk) = (producer.clone(), Arc::clone(&durable), Arc::clone(&disk));
            thread::spawn(move || {
                for item in 0..ITEMS {
                    let sequence = producer.push((writer, item)).unwrap();
                    durable.wait(sequence).unwrap();
                    assert_eq!(disk[writer * ITEMS + item].load(Ordering::Relaxed), sequence, "acked before its sync");
                }
            })
        })
        .collect();
    drop(producer);
    let mut group = Vec::new();
    let mut expected = 1;
    let mut items = [0; THREADS];
    while let Some(sequences) = consumer.take(&mut group) {
        assert_eq!(sequences.start, expected);
        expected = sequences.end;
        assert!(group.len() <= 10);
        for (sequence, (writer, item)) in sequences.zip(group.drain(..)) {
            assert_eq!(items[writer], item, "not in the producer's order");
            items[writer] += 1;
            disk[writer * ITEMS + item].store(sequence, Ordering::Relaxed);
        }
        durable.publish(expected - 1);
    }
    assert_eq!(expected as usize, THREADS * ITEMS + 1);
    for writer in writers {
        writer.join().unwrap();
    }
}
