//! The watermark: a position that only rises, and those who wait for it. "Durable up to here", "committed up to here".
//!
//! Invariants:
//!
//! - The position never falls, and never moves again once the watermark is poisoned.
//! - Who sees a position, also sees everything that was done before it was published.
//! - No lost wake-up: every wait ends once its position is published or the watermark is poisoned.
//!
//! Position and poison share one atomic word, so their order is the order of that word. A publisher stores the word and
//! then looks whether anybody is registered; a waiter registers and then looks at the word again. This is Dekker's
//! pattern: with a sequentially consistent fence between the two steps on both sides, at least one sees the other. So
//! publishing with nobody waiting takes no lock.

#[cfg(all(test, replikit_loom))]
mod model;
mod poison_on_drop;
mod reached;

pub use poison_on_drop::PoisonOnDrop;
pub use reached::Reached;

use crate::poison::Poisoned;
use crate::primitives::{AtomicU64, AtomicUsize, Mutex, Ordering, Parker, fence, give_way};
use crate::waiters::{WaiterKey, Waiters, WakeBatch, Wakeup};
use crate::weakening::{Weakening, ordering, planted};
use std::sync::Arc;

/// A position that one thread publishes and many threads and tasks wait for.
///
/// `E` is why it may be poisoned. Positions lie below 2^63; the top bit of the word is the poison.
#[derive(Debug)]
pub struct Watermark<E> {
    /// The [`Word`]. Changed by read-modify-write only, so that a poison is never overwritten.
    word: AtomicU64,
    /// Length of `waiting.waiters`, stored under the lock and read by publishers without it.
    registered: AtomicUsize,
    waiting: Mutex<Waiting<E>>,
}

#[derive(Debug)]
struct Waiting<E> {
    waiters: Waiters,
    /// Set under the lock before the poison bit is.
    cause: Option<Arc<E>>,
}

/// What the atomic word says: the position in the low 63 bits, the poison in the top bit.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const POISON: u64 = 1 << 63;

    fn position(self) -> u64 {
        self.0 & !Self::POISON
    }

    fn is_poisoned(self) -> bool {
        self.0 & Self::POISON != 0
    }
}

impl<E> Watermark<E> {
    /// How often a thread lets others run before it goes to sleep. Going to sleep and being woken costs two system calls
    /// and a switch; with many threads per core the position is often there after a turn or two of the others. Measured
    /// with 64 threads and a real fdatasync on two busy cores, in several rounds: about twice the rate of sleeping at
    /// once; one thread alone: no difference beyond the noise. Under loom none: more looks at the word allow nothing that
    /// one look does not, but multiply the executions.
    const YIELDS_MAX: usize = if cfg!(replikit_loom) { 0 } else { 3 };

    /// A watermark that stands at `position`: 0 for an empty log, the recovered end otherwise.
    pub fn new(position: u64) -> Self {
        assert!(position < Word::POISON, "positions lie below 2^63");
        Self {
            word: AtomicU64::new(position),
            registered: AtomicUsize::new(0),
            waiting: Mutex::new(Waiting { waiters: Waiters::new(), cause: None }),
        }
    }

    /// The position; one atomic load (`Acquire`). Poison does not hide it: what was reached before stays reached.
    pub fn load(&self) -> u64 {
        self.word().position()
    }

    /// Raises the position and wakes whoever waits for at most that much.
    ///
    /// Everything the caller did before happens before the end of those waits. A position below the current one changes
    /// nothing, and nothing moves a poisoned watermark. Never blocks; takes a lock only if somebody waits.
    pub fn publish(&self, position: u64) {
        assert!(position < Word::POISON, "positions lie below 2^63");
        if planted(Weakening::WatermarkNotifyBeforeStore) {
            self.wake_reached(position);
        }
        let before = self.word.fetch_max(position, ordering(Ordering::Release, Weakening::WatermarkPublishRelaxed));
        if before >= position || planted(Weakening::WatermarkNotifyBeforeStore) {
            return;
        }
        // Pairs with the fence in `register`.
        if !planted(Weakening::WatermarkPublishWithoutFence) {
            fence(Ordering::SeqCst);
        }
        if self.registered.load(Ordering::Relaxed) > 0 {
            self.wake_reached(position);
        }
    }

    /// Ends every wait for a position not yet reached, now and for ever, with `cause`. The first cause wins; returns
    /// whether it was this one.
    pub fn poison(&self, cause: impl Into<Arc<E>>) -> bool {
        let cause = cause.into();
        if planted(Weakening::PoisonBitBeforeCause) {
            self.word.fetch_or(Word::POISON, Ordering::AcqRel);
        }
        {
            let mut waiting = self.waiting.lock();
            if waiting.cause.is_some() {
                return false;
            }
            waiting.cause = Some(cause);
            self.word.fetch_or(Word::POISON, Ordering::AcqRel);
        }
        // Who registers from here on sees the bit under the lock.
        if !planted(Weakening::PoisonWithoutWake) {
            self.wake_reached(u64::MAX);
        }
        true
    }

    /// Has the watermark poisoned with `cause` when the guard is dropped: for a publisher that may panic or return early,
    /// so that nobody waits for what it will never publish.
    pub fn poison_on_drop(self: &Arc<Self>, cause: impl Into<Arc<E>>) -> PoisonOnDrop<E> {
        PoisonOnDrop::new(Arc::clone(self), cause.into())
    }

    /// The poison, if there is one. One atomic load while there is none.
    pub fn poisoned(&self) -> Option<Poisoned<E>> {
        if self.word().is_poisoned() { Some(self.waiting.lock().poisoned()) } else { None }
    }

    /// Blocks until the position is at least `at_least`, and returns it.
    ///
    /// One atomic load if it is so already.
    ///
    /// # Errors
    ///
    /// [`Poisoned`] if the watermark was poisoned first: the position will never be reached.
    pub fn wait(&self, at_least: u64) -> Result<u64, Poisoned<E>> {
        if let Some(outcome) = self.outcome(at_least) {
            return outcome;
        }
        for _ in 0..Self::YIELDS_MAX {
            give_way();
            if let Some(outcome) = self.outcome(at_least) {
                return outcome;
            }
        }
        let parker = Parker::new();
        match self.register(at_least, Wakeup::Thread(parker.unparker())) {
            Registration::Ended(outcome) => outcome,
            Registration::Waiting(_) => loop {
                parker.park();
                if let Some(outcome) = self.outcome(at_least) {
                    return outcome;
                }
            },
        }
    }

    /// A future that ends as [`Self::wait`] does. Dropping it cancels the wait.
    pub fn reached(&self, at_least: u64) -> Reached<E, &Self> {
        Reached::new(self, at_least)
    }

    /// Like [`Self::reached`], for a task or a loop that keeps its watermark alive itself.
    pub fn reached_owned(self: &Arc<Self>, at_least: u64) -> Reached<E, Arc<Self>> {
        Reached::new(Arc::clone(self), at_least)
    }

    /// How many threads and tasks are registered. For metrics and tests.
    pub fn waiting(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    fn word(&self) -> Word {
        Word(self.word.load(ordering(Ordering::Acquire, Weakening::WatermarkWaitRelaxed)))
    }

    /// How a wait for `at_least` ends, if it ends now.
    fn outcome(&self, at_least: u64) -> Option<Result<u64, Poisoned<E>>> {
        let word = self.word();
        if word.position() >= at_least {
            Some(Ok(word.position()))
        } else if word.is_poisoned() {
            Some(Err(self.waiting.lock().poisoned()))
        } else {
            None
        }
    }

    /// Registers a waiter, unless its wait has ended meanwhile.
    ///
    /// A registration stays until its position is published or the watermark is poisoned, which also wakes it.
    fn register(&self, at_least: u64, wakeup: Wakeup) -> Registration<E> {
        let mut waiting = self.waiting.lock();
        let key = waiting.waiters.insert(at_least, wakeup);
        self.registered.store(waiting.waiters.len(), Ordering::Relaxed);
        // Pairs with the fence in `publish`. Poison needs none: it passes through the lock held here.
        if !planted(Weakening::WatermarkRegisterWithoutFence) {
            fence(Ordering::SeqCst);
        }
        let word = self.word();
        let reached = word.position() >= at_least && !planted(Weakening::WatermarkRegisterWithoutRecheck);
        let poisoned = word.is_poisoned() && !planted(Weakening::PoisonRegisterWithoutRecheck);
        if !reached && !poisoned {
            return Registration::Waiting(key);
        }
        let wakeup = waiting.waiters.remove(key);
        self.registered.store(waiting.waiters.len(), Ordering::Relaxed);
        let outcome = if reached { Ok(word.position()) } else { Err(waiting.poisoned()) };
        drop(waiting);
        drop(wakeup);
        Registration::Ended(outcome)
    }

    /// False if the waiter is registered no longer: its wait has ended.
    fn replace_wakeup(&self, key: WaiterKey, wakeup: Wakeup) -> bool {
        let old = if planted(Weakening::WatermarkStaleWaker) {
            Ok(wakeup)
        } else {
            self.waiting.lock().waiters.replace(key, wakeup)
        };
        old.is_ok()
    }

    fn cancel(&self, key: WaiterKey) {
        if planted(Weakening::WatermarkCancelForgotten) {
            return;
        }
        let mut waiting = self.waiting.lock();
        let wakeup = waiting.waiters.remove(key);
        self.registered.store(waiting.waiters.len(), Ordering::Relaxed);
        drop(waiting);
        drop(wakeup);
    }

    fn wake_reached(&self, position: u64) {
        loop {
            let mut batch = WakeBatch::new();
            let mut waiting = self.waiting.lock();
            let more = waiting.waiters.take_reached(position, &mut batch);
            self.registered.store(waiting.waiters.len(), Ordering::Relaxed);
            drop(waiting);
            batch.wake_all();
            if !more {
                return;
            }
        }
    }
}

impl<E> Waiting<E> {
    fn poisoned(&self) -> Poisoned<E> {
        Poisoned::new(Arc::clone(self.cause.as_ref().expect("the cause is set under the lock before the poison bit")))
    }
}

/// What became of an attempt to wait.
enum Registration<E> {
    Waiting(WaiterKey),
    Ended(Result<u64, Poisoned<E>>),
}
