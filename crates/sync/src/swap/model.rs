//! Loom models of the snapshot swap. Snapshots are numbered like their versions.

use super::Swap;
use crate::exploration::{Bound, explore};
use crate::primitives::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

#[test]
fn cached_reader_never_misses_a_store() {
    explore(Bound::Exhaustive, || {
        let swap = Arc::new(Swap::new(Arc::new(1)));
        let writer = {
            let swap = Arc::clone(&swap);
            thread::spawn(move || {
                for snapshot in [2, 3] {
                    assert_eq!(swap.store(Arc::new(snapshot)), snapshot);
                }
            })
        };
        let mut cached = swap.cached();
        let mut before = 1;
        for _ in 0..2 {
            let seen = **cached.get();
            assert_eq!(seen, cached.version(), "a snapshot under another one's version");
            assert!(seen >= before, "the cached snapshot went back");
            before = seen;
        }
        writer.join().expect("the writer ends");
        assert_eq!(**cached.get(), 3, "the cached reader missed a store");
    });
}

#[test]
fn load_after_store_never_shows_the_old_value() {
    explore(Bound::Exhaustive, || {
        let swap = Arc::new(Swap::new(Arc::new(1)));
        let prepared = Arc::new(AtomicU64::new(0));
        let returned = Arc::new(AtomicU64::new(0));
        let writer = {
            let (swap, prepared, returned) = (Arc::clone(&swap), Arc::clone(&prepared), Arc::clone(&returned));
            thread::spawn(move || {
                prepared.store(1, Ordering::Relaxed);
                swap.store(Arc::new(2));
                returned.store(1, Ordering::Release);
            })
        };
        let has_returned = returned.load(Ordering::Acquire) == 1;
        let version = swap.version();
        let prepared = prepared.load(Ordering::Relaxed);
        let loaded = *swap.load();
        if has_returned {
            assert_eq!((version, loaded), (2, 2), "an old snapshot after the store returned");
        }
        if version == 2 {
            assert_eq!(loaded, 2, "an old snapshot under a new version");
            assert_eq!(prepared, 1, "the version came before what was done for it");
        }
        writer.join().expect("the writer ends");
    });
}

#[test]
fn readers_agree_on_the_order_of_two_writers() {
    explore(Bound::Exhaustive, || {
        let swap = Arc::new(Swap::new(Arc::new(0)));
        let other = {
            let swap = Arc::clone(&swap);
            thread::spawn(move || swap.store(Arc::new(20)))
        };
        let reader = {
            let mut cached = swap.cached();
            thread::spawn(move || {
                let first = (**cached.get(), cached.version());
                let second = (**cached.get(), cached.version());
                assert!(first.1 <= second.1, "the version went back");
                assert_eq!(first.1 == second.1, first.0 == second.0, "one version, two snapshots");
                [first, second]
            })
        };
        let mine = swap.store(Arc::new(10));
        let others = other.join().expect("the other writer ends");
        assert_eq!(mine + others, 5, "versions 2 and 3 were not given once each");
        let order = if mine < others { [0, 10, 20] } else { [0, 20, 10] };
        for (snapshot, version) in reader.join().expect("the reader ends") {
            assert_eq!(snapshot, order[version as usize - 1], "a snapshot under another one's version");
        }
    });
}
