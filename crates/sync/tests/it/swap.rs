//! The snapshot swap.

use replikit_sync::Swap;
use std::sync::Arc;
use std::thread;

#[test]
fn store_replaces_the_snapshot_and_raises_the_version() {
    let swap = Arc::new(Swap::new(Arc::new("old")));
    let mut cached = swap.cached();
    assert_eq!((swap.version(), *swap.load(), **cached.get(), cached.version()), (1, "old", "old", 1));
    assert_eq!(swap.store(Arc::new("new")), 2);
    assert_eq!((swap.version(), *swap.load(), **cached.get(), cached.version()), (2, "new", "new", 2));
}

#[test]
fn unchanged_snapshot_is_not_loaded_again() {
    let snapshot = Arc::new(7);
    let swap = Arc::new(Swap::new(Arc::clone(&snapshot)));
    let mut cached = swap.cached();
    let before = Arc::strong_count(&snapshot);
    let first = Arc::as_ptr(cached.get());
    assert_eq!(first, Arc::as_ptr(cached.get()));
    assert_eq!(Arc::strong_count(&snapshot), before);
}

#[test]
fn old_snapshot_lives_as_long_as_a_reader_holds_it() {
    let swap = Arc::new(Swap::new(Arc::new(vec![1])));
    let held = swap.load();
    let weak = Arc::downgrade(&held);
    swap.store(Arc::new(vec![2]));
    assert_eq!(*held, [1]);
    drop(held);
    assert!(weak.upgrade().is_none());
}

#[test]
fn readers_see_versions_rise_while_a_writer_stores() {
    const STORES: u64 = 5000;
    let swap = Arc::new(Swap::new(Arc::new(1u64)));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let mut cached = swap.cached();
            thread::spawn(move || {
                let mut before = 0;
                while before < STORES {
                    let seen = **cached.get();
                    assert!(seen >= before);
                    assert_eq!(seen, cached.version());
                    before = seen;
                }
            })
        })
        .collect();
    for snapshot in 2..=STORES {
        assert_eq!(swap.store(Arc::new(snapshot)), snapshot);
        assert_eq!(*swap.load(), snapshot);
    }
    for reader in readers {
        reader.join().unwrap();
    }
}
