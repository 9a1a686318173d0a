//! The atomics, locks and parking that every structure of this crate is built from: std's, or loom's under
//! `cfg(replikit_loom)`.
//!
//! Nothing else in the crate may name `std::sync::atomic`, `std::sync::Mutex` or `std::thread::park`: what bypasses this
//! module is invisible to loom, and a model that cannot see an access proves nothing about it. `std::sync::Arc` is used
//! as it is: its counts are not what the models are about.
//!
//! A rule that keeps the models honest: no thread loads an atomic and later plainly stores to it. Loom 0.7 remembers one
//! last access per atomic, so the storing thread's own load hides the loads of others, and the executions in which the
//! store comes between those are never explored (seen: 5 executions where there are dozens). Use a read-modify-write, or
//! keep the writer's copy under its lock.

#[cfg(replikit_loom)]
use loom::sync as imp;
#[cfg(not(replikit_loom))]
use std::sync as imp;

use std::sync::PoisonError;

pub(crate) use imp::MutexGuard;
pub(crate) use imp::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use parking::{Parker, Unparker};

/// A lock whose critical sections run no foreign code and so cannot panic half way: std's poisoning carries no
/// information here and is ignored.
#[derive(Debug)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable over [`Mutex`].
#[derive(Debug)]
pub(crate) struct Condvar(imp::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(imp::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Lets other threads run, if there are any. Under loom nothing: it explores all switches anyway.
pub(crate) fn give_way() {
    #[cfg(not(replikit_loom))]
    std::thread::yield_now();
}

#[cfg(not(replikit_loom))]
mod parking {
    use std::thread::{self, Thread};

    /// Puts the calling thread to sleep until its [`Unparker`] is used. One token per thread, as with
    /// `std::thread::park`: an unpark that comes first is not lost, and sleeps may end for no reason.
    pub(crate) struct Parker(());

    impl Parker {
        /// For the calling thread, which is the only one that may park on it.
        pub(crate) fn new() -> Self {
            Self(())
        }

        pub(crate) fn unparker(&self) -> Unparker {
            Unparker(thread::current())
        }

        pub(crate) fn park(&self) {
            thread::park();
        }
    }

    /// Wakes the thread of its [`Parker`].
    #[derive(Debug)]
    pub(crate) struct Unparker(Thread);

    impl Unparker {
        pub(crate) fn unpark(self) {
            self.0.unpark();
        }
    }
}

#[cfg(replikit_loom)]
mod parking {
    use loom::sync::{Condvar, Mutex};
    use std::sync::Arc;
    use std::task::Wake;

    /// The parking token, built from a lock: loom 0.7's own `Thread::unpark` also wakes threads that are blocked on a
    /// mutex, and a mutex released beside it forgets the token, so it reports deadlocks that do not exist.
    pub(crate) struct Parker(Arc<Token>);

    #[derive(Debug)]
    struct Token {
        available: Mutex<bool>,
        changed: Condvar,
    }

    impl Parker {
        pub(crate) fn new() -> Self {
            Self(Arc::new(Token { available: Mutex::new(false), changed: Condvar::new() }))
        }

        pub(crate) fn unparker(&self) -> Unparker {
            Unparker(Arc::clone(&self.0))
        }

        /// The same token as a task's waker, so that models can drive futures.
        #[cfg(test)]
        pub(crate) fn waker(&self) -> std::task::Waker {
            std::task::Waker::from(Arc::clone(&self.0))
        }

        pub(crate) fn park(&self) {
            let mut available = self.0.available.lock().expect("loom's locks are never poisoned");
            while !*available {
                available = self.0.changed.wait(available).expect("loom's locks are never poisoned");
            }
            *available = false;
        }
    }

    impl Token {
        fn make_available(&self) {
            *self.available.lock().expect("loom's locks are never poisoned") = true;
            self.changed.notify_all();
        }
    }

    impl Wake for Token {
        fn wake(self: Arc<Self>) {
            self.make_available();
        }
    }

    #[derive(Debug)]
    pub(crate) struct Unparker(Arc<Token>);

    impl Unparker {
        pub(crate) fn unpark(self) {
            self.0.make_available();
        }
    }
}
