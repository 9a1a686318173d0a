//! Poison: the first error ends it for everyone, for ever.
//!
//! Invariants: the first cause wins; every present and future waiter gets that cause; no waiter is left behind. The case
//! to keep in mind is okaywal 0.3.1, whose waiters block for ever after a failed fsync.
//!
//! A broadcast of poison is a [`Watermark`] that nobody publishes: the only end of a wait on it is the error. So there is
//! one algorithm, not two.

#[cfg(all(test, replikit_loom))]
mod model;

use crate::watermark::{Reached, Watermark};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The answer to every wait on something poisoned: the first error, shared.
pub struct Poisoned<E> {
    cause: Arc<E>,
}

impl<E> Poisoned<E> {
    pub(crate) fn new(cause: Arc<E>) -> Self {
        Self { cause }
    }

    /// The first error.
    pub fn cause(&self) -> &E {
        &self.cause
    }

    /// The first error, to hand on.
    pub fn into_cause(self) -> Arc<E> {
        self.cause
    }
}

impl<E> Clone for Poisoned<E> {
    fn clone(&self) -> Self {
        Self { cause: Arc::clone(&self.cause) }
    }
}

impl<E: fmt::Debug> fmt::Debug for Poisoned<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poisoned").field(&self.cause).finish()
    }
}

impl<E: fmt::Display> fmt::Display for Poisoned<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by an earlier error: {}", self.cause)
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Poisoned<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}

/// A broadcast of the first error, for parts that have no watermark.
#[derive(Debug)]
pub struct Poison<E> {
    /// Never published.
    watermark: Watermark<E>,
}

impl<E> Poison<E> {
    /// No position of a watermark reaches this.
    const NEVER: u64 = u64::MAX;

    /// Not poisoned yet.
    pub fn new() -> Self {
        Self { watermark: Watermark::new(0) }
    }

    /// Sets the cause unless one is set; returns whether this one won. Wakes all waiters, blocks nobody.
    pub fn set(&self, cause: impl Into<Arc<E>>) -> bool {
        self.watermark.poison(cause)
    }

    /// The cause, if there is one. One atomic load while there is none.
    pub fn poisoned(&self) -> Option<Poisoned<E>> {
        self.watermark.poisoned()
    }

    /// Blocks until there is a cause.
    pub fn wait(&self) -> Poisoned<E> {
        ended(self.watermark.wait(Self::NEVER))
    }

    /// A future that ends as [`Self::wait`] does. Dropping it cancels the wait.
    pub fn until_poisoned(&self) -> UntilPoisoned<'_, E> {
        UntilPoisoned { reached: self.watermark.reached(Self::NEVER) }
    }

    /// How many threads and tasks are registered. For metrics and tests.
    pub fn waiting(&self) -> usize {
        self.watermark.waiting()
    }
}

impl<E> Default for Poison<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// Resolves to the cause once there is one. Made by [`Poison::until_poisoned`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct UntilPoisoned<'a, E> {
    reached: Reached<E, &'a Watermark<E>>,
}

impl<E> Future for UntilPoisoned<'_, E> {
    type Output = Poisoned<E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Poisoned<E>> {
        Pin::new(&mut self.get_mut().reached).poll(context).map(ended)
    }
}

fn ended<E>(outcome: Result<u64, Poisoned<E>>) -> Poisoned<E> {
    match outcome {
        Err(poisoned) => poisoned,
        Ok(position) => unreachable!("positions lie below 2^63, nobody can reach {position}"),
    }
}
