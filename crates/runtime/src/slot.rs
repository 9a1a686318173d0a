//! Where a request waits for its end, and the end's other side.
//!
//! Invariant: every [`Completion`] ends exactly once, also when it is dropped because a loop or connection died: no waiter
//! is ever left behind.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What a request ends with; says what stands for "nobody is left to answer".
pub(crate) trait Ending: Send + 'static {
    /// The end of a request whose completion was dropped.
    fn abandoned() -> Self;
}

enum State<T> {
    Idle,
    Waiting(Waker),
    Done(T),
}

/// A place to wait in; reused from one request to the next.
pub(crate) struct Slot<T>(Mutex<State<T>>);

impl<T> Slot<T> {
    fn new() -> Self {
        Self(Mutex::new(State::Idle))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to end one request.
pub(crate) struct Completion<T: Ending>(Option<Arc<Slot<T>>>);

impl<T: Ending> Completion<T> {
    /// Ends the request; the waker is to be woken by the caller, best after a whole round.
    #[must_use]
    pub(crate) fn end(mut self, ending: T) -> Option<Waker> {
        let slot = self.0.take()?;
        Self::store(&slot, ending)
    }

    fn store(slot: &Slot<T>, ending: T) -> Option<Waker> {
        match std::mem::replace(&mut *slot.lock(), State::Done(ending)) {
            State::Waiting(waker) => Some(waker),
            State::Idle | State::Done(_) => None,
        }
    }
}

impl<T: Ending> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take().and_then(|slot| Self::store(&slot, T::abandoned())) {
            waker.wake();
        }
    }
}

impl<T: Ending> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}

/// A few slots kept for reuse: a task that asks one thing after another allocates once.
pub(crate) struct SlotCache<T>(Mutex<Vec<Arc<Slot<T>>>>);

const CACHED_SLOTS_MAX: usize = 16;

impl<T: Ending> SlotCache<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Arc<Slot<T>> {
        // A cache that is contended is worth less than an allocation.
        self.0.try_lock().ok().and_then(|mut slots| slots.pop()).unwrap_or_else(|| Arc::new(Slot::new()))
    }

    fn give(&self, slot: Arc<Slot<T>>) {
        if let Ok(mut slots) = self.0.try_lock()
            && slots.len() < CACHED_SLOTS_MAX
        {
            slots.push(slot);
        }
    }

    /// A request: `submit` is called once, at the first poll, with the right to end it.
    pub(crate) fn request<F>(&self, submit: F) -> Request<'_, T, F>
    where
        F: FnOnce(Completion<T>) + Unpin,
    {
        Request { cache: self, submit: Some(submit), slot: None }
    }
}

impl<T> fmt::Debug for SlotCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotCache")
    }
}

/// A request under way. Dropping it abandons the answer, not the request.
#[must_use]
pub(crate) struct Request<'a, T: Ending, F> {
    cache: &'a SlotCache<T>,
    submit: Option<F>,
    slot: Option<Arc<Slot<T>>>,
}

impl<T: Ending, F> Future for Request<'_, T, F>
where
    F: FnOnce(Completion<T>) + Unpin,
{
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Some(submit) = self.submit.take() {
            let slot = self.cache.take();
            *slot.lock() = State::Waiting(context.waker().clone());
            self.slot = Some(Arc::clone(&slot));
            submit(Completion(Some(slot)));
            // Falls through: `submit` may have ended it on the spot.
        }
        let slot = self.slot.take().expect("a request is not polled after its end");
        let mut state = slot.lock();
        match std::mem::replace(&mut *state, State::Idle) {
            State::Done(ending) => {
                drop(state);
                self.cache.give(slot);
                Poll::Ready(ending)
            }
            State::Waiting(waker) => {
                let waker = if waker.will_wake(context.waker()) { waker } else { context.waker().clone() };
                *state = State::Waiting(waker);
                drop(state);
                self.slot = Some(slot);
                Poll::Pending
            }
            State::Idle => unreachable!("only the end of a request empties its slot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ending for u32 {
        fn abandoned() -> Self {
            Self::MAX
        }
    }

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    type Held = Mutex<Option<Completion<u32>>>;

    fn hold(held: &Held) -> impl FnOnce(Completion<u32>) + Unpin + '_ {
        |completion| *held.lock().unwrap() = Some(completion)
    }

    fn end(held: &Held, with: u32) {
        drop(held.lock().unwrap().take().unwrap().end(with));
    }

    #[test]
    fn an_ended_request_yields_its_ending_and_its_slot_serves_again() {
        let (cache, held) = (SlotCache::<u32>::new(), Held::default());
        let mut slots = Vec::new();
        for n in 0..3 {
            let mut request = cache.request(hold(&held));
            assert!(poll(&mut request).is_pending());
            slots.push(Arc::as_ptr(request.slot.as_ref().unwrap()));
            end(&held, n);
            assert_eq!(poll(&mut request), Poll::Ready(n));
        }
        assert!(slots.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_dropped_completion_ends_its_request() {
        let cache = SlotCache::<u32>::new();
        let mut request = cache.request(drop);
        assert_eq!(poll(&mut request), Poll::Ready(u32::MAX));
    }

    #[test]
    fn a_request_that_nobody_waits_for_does_not_reach_the_next_user_of_a_slot() {
        let (cache, first, second) = (SlotCache::<u32>::new(), Held::default(), Held::default());
        let mut abandoned = cache.request(hold(&first));
        assert!(poll(&mut abandoned).is_pending());
        drop(abandoned);
        let mut request = cache.request(hold(&second));
        assert!(poll(&mut request).is_pending());
        end(&first, 1);
        assert!(poll(&mut request).is_pending(), "the abandoned request's end is not this one's");
        end(&second, 2);
        assert_eq!(poll(&mut request), Poll::Ready(2));
    }
}
