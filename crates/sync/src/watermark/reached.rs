//! A task's wait on a watermark, as a future.
//!
//! Invariant: a future that is dropped before its wait ended leaves no registration behind.

use super::{Registration, Watermark};
use crate::poison::Poisoned;
use crate::waiters::{WaiterKey, Wakeup};
use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Resolves to the position once it is at least the awaited one, or to [`Poisoned`].
///
/// Made by [`Watermark::reached`] and [`Watermark::reached_owned`]. It needs no particular runtime. Polling costs one
/// atomic load if the wait has ended. A loop that waits again and again keeps one and calls [`Self::rearm`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Reached<E, W: Deref<Target = Watermark<E>>> {
    watermark: W,
    at_least: u64,
    /// Set while this future may be registered.
    registered: Option<WaiterKey>,
    error: PhantomData<fn() -> E>,
}

impl<E, W: Deref<Target = Watermark<E>>> Reached<E, W> {
    pub(super) fn new(watermark: W, at_least: u64) -> Self {
        Self { watermark, at_least, registered: None, error: PhantomData }
    }

    /// Waits for `at_least` from now on; what it waited for before is cancelled.
    pub fn rearm(&mut self, at_least: u64) {
        self.cancel();
        self.at_least = at_least;
    }

    fn cancel(&mut self) {
        if let Some(key) = self.registered.take() {
            self.watermark.cancel(key);
        }
    }
}

impl<E, W: Deref<Target = Watermark<E>> + Unpin> Future for Reached<E, W> {
    type Output = Result<u64, Poisoned<E>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(outcome) = this.watermark.outcome(this.at_least) {
            // Whoever ended the wait also takes the registration out.
            this.registered = None;
            return Poll::Ready(outcome);
        }
        let mut wakeup = Wakeup::Task(context.waker().clone());
        if let Some(key) = this.registered {
            if this.watermark.replace_wakeup(key, wakeup) {
                return Poll::Pending;
            }
            wakeup = Wakeup::Task(context.waker().clone());
        }
        match this.watermark.register(this.at_least, wakeup) {
            Registration::Waiting(key) => {
                this.registered = Some(key);
                Poll::Pending
            }
            Registration::Ended(outcome) => {
                this.registered = None;
                Poll::Ready(outcome)
            }
        }
    }
}

impl<E, W: Deref<Target = Watermark<E>>> Drop for Reached<E, W> {
    fn drop(&mut self) {
        self.cancel();
    }
}
