//! A client's numbers of its requests: at most [`ANSWERS_MAX`] between the oldest one under way and the newest.
//!
//! Invariant: a number is used by one request only, and is under way until its ticket is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::shard::{ANSWERS_MAX, ClientId, Request};

/// Most clients that one [`StoreClient`](super::StoreClient) is; beyond it requests wait for the oldest ones under way.
pub(super) const IDENTITIES_MAX: usize = 64;

#[derive(Debug)]
struct Identity {
    client: ClientId,
    /// Number of the front of `open`.
    oldest: u64,
    /// Whether each number from `oldest` on is still under way; the front always is.
    open: VecDeque<bool>,
    expired: bool,
}

impl Identity {
    fn next(&mut self) -> Option<Request> {
        if self.expired || self.open.len() >= ANSWERS_MAX {
            return None;
        }
        let sequence = self.oldest + self.open.len() as u64;
        self.open.push_back(true);
        Some(Request { client: self.client, sequence, done_below: self.oldest })
    }

    fn end(&mut self, sequence: u64) {
        if let Some(open) = sequence.checked_sub(self.oldest).and_then(|at| self.open.get_mut(at as usize)) {
            *open = false;
        }
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.oldest += 1;
        }
    }
}

/// The numbers that are free and under way.
#[derive(Debug, Default)]
pub(super) struct Identities(Mutex<Vec<Identity>>);

/// A number under way.
#[derive(Debug)]
pub(super) struct Ticket {
    all: Arc<Identities>,
    pub(super) request: Request,
}

impl Identities {
    fn lock(&self) -> MutexGuard<'_, Vec<Identity>> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number of a client that has room.
    pub(super) fn take(self: &Arc<Self>) -> Option<Ticket> {
        let request = self.lock().iter_mut().find_map(Identity::next)?;
        Some(Ticket { all: Arc::clone(self), request })
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn add(&self, client: ClientId) {
        self.lock().push(Identity { client, oldest: 1, open: VecDeque::new(), expired: false });
    }
}

impl Ticket {
    /// The client is not known to some group any more.
    pub(super) fn expire(self) {
        let mut all = self.all.lock();
        if let Some(identity) = all.iter_mut().find(|it| it.client == self.request.client) {
            identity.expired = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(at) = all.iter().position(|it| it.client == self.request.client) {
            let identity = &mut all[at];
            identity.end(self.request.sequence);
            if identity.expired && identity.open.is_empty() {
                all.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_within_a_window_and_say_what_is_waited_for_no_longer() {
        let all = Arc::new(Identities::default());
        assert!(all.take().is_none());
        all.add(ClientId(7));
        let mut open: VecDeque<Ticket> = (0..ANSWERS_MAX).map(|_| all.take().unwrap()).collect();
        assert!(all.take().is_none(), "the window is full");
        open.pop_back();
        assert!(all.take().is_none(), "the oldest is still under way");
        open.pop_front();
        let next = all.take().unwrap().request;
        assert_eq!((next.client, next.sequence, next.done_below), (ClientId(7), ANSWERS_MAX as u64 + 1, 2));
    }

    #[test]
    fn an_expired_client_gives_no_numbers_and_goes_with_its_last_request() {
        let all = Arc::new(Identities::default());
        all.add(ClientId(7));
        let (first, second) = (all.take().unwrap(), all.take().unwrap());
        first.expire();
        assert!(all.take().is_none());
        drop(second);
        assert_eq!(all.count(), 0);
    }
}
