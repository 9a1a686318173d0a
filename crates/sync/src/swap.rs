//! The snapshot swap: readers share an immutable snapshot, a writer puts the next one in its place.
//!
//! Invariants:
//!
//! - After [`Swap::store`] returned, no load that begins later returns an older snapshot.
//! - Versions start at 1 and rise by one with each store; a version and its snapshot are read together.
//! - Who sees a version, also sees everything the storing thread did before that store.
//!
//! It does not tell when the last reader has let go of an old snapshot: a cut-over that must wait for work begun under
//! the old one needs its own count of that work.

#[cfg(all(test, replikit_loom))]
mod model;

use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::weakening::{Weakening, ordering, planted};
use std::sync::Arc;

/// The current snapshot and its version.
#[derive(Debug)]
pub struct Swap<T> {
    /// The version in `current`, for readers who only want to know whether it has changed. Stored under the lock.
    version: AtomicU64,
    current: Mutex<Current<T>>,
}

#[derive(Debug)]
struct Current<T> {
    snapshot: Arc<T>,
    version: u64,
}

impl<T> Swap<T> {
    /// Starts with version 1.
    pub fn new(snapshot: Arc<T>) -> Self {
        let current = Current { snapshot, version: 1 };
        Self { version: AtomicU64::new(current.version), current: Mutex::new(current) }
    }

    /// The current snapshot: a short lock and a count. For hot paths use [`Self::cached`].
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.current.lock().snapshot)
    }

    /// The current snapshot with its version.
    pub fn load_versioned(&self) -> (Arc<T>, u64) {
        if planted(Weakening::SwapVersionReadApart) {
            return (self.load(), self.version());
        }
        let current = self.current.lock();
        (Arc::clone(&current.snapshot), current.version)
    }

    /// The version of the current snapshot: one atomic load (`Acquire`).
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Puts `snapshot` in place and returns its version. The old one is dropped by whoever lets go of it last.
    pub fn store(&self, snapshot: Arc<T>) -> u64 {
        let mut current = self.current.lock();
        let version = current.version + 1;
        if planted(Weakening::SwapVersionBeforeValue) {
            current.version = version;
            self.version.store(version, Ordering::Release);
            drop(current);
            current = self.current.lock();
        }
        let old = std::mem::replace(&mut *current, Current { snapshot, version });
        self.version.store(version, ordering(Ordering::Release, Weakening::SwapVersionRelaxed));
        drop(current);
        drop(old);
        version
    }

    /// A reader that keeps the snapshot at hand.
    pub fn cached(self: &Arc<Self>) -> Cached<T> {
        let (snapshot, version) = self.load_versioned();
        Cached { swap: Arc::clone(self), snapshot, version }
    }
}

/// A reader's own hold on the snapshot: one atomic load as long as it is unchanged. It keeps an outdated snapshot alive
/// until it is used again.
#[derive(Debug)]
pub struct Cached<T> {
    swap: Arc<Swap<T>>,
    snapshot: Arc<T>,
    /// Of `snapshot`.
    version: u64,
}

impl<T> Cached<T> {
    /// The current snapshot, loaded again only if it has changed.
    pub fn get(&mut self) -> &Arc<T> {
        if self.swap.version() != self.version {
            (self.snapshot, self.version) = self.swap.load_versioned();
        }
        &self.snapshot
    }

    /// Version of the snapshot that [`Self::get`] returned last.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self { swap: Arc::clone(&self.swap), snapshot: Arc::clone(&self.snapshot), version: self.version }
    }
}
