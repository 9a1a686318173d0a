//! The client's sessions: sequence numbers from 1, at most [`SESSION_WINDOW`] between the oldest request of a session that
//! is under way and the newest.
//!
//! Invariant: a number is used by one write only. One that was never sent leaves a gap, which the window passes over.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use replikit_core::{Queue, Rejection, SESSION_WINDOW, SessionId, SessionSeq, WriteError};
use tokio::sync::Notify;

use super::{Inner, lock};

struct Session {
    id: SessionId,
    /// Number of the front of `open`.
    oldest: u64,
    /// Whether each number from `oldest` on is still under way; the front always is.
    open: VecDeque<bool>,
    expired: bool,
}

impl Session {
    fn next(&mut self) -> Option<SessionSeq> {
        if self.expired || self.open.len() as u64 >= SESSION_WINDOW {
            return None;
        }
        let sequence = self.oldest + self.open.len() as u64;
        self.open.push_back(true);
        Some(SessionSeq { session: self.id, sequence })
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

/// All sessions of a client.
pub(super) struct Sessions {
    sessions: Mutex<Vec<Session>>,
    sessions_max: usize,
    /// Held while a session is being opened, so that many callers open one.
    opening: tokio::sync::Mutex<()>,
    /// Some window has moved.
    moved: Notify,
}

/// A number of a session; given back when dropped.
pub(super) struct Ticket {
    client: Arc<Inner>,
    at: SessionSeq,
}

impl Ticket {
    pub(super) const fn sequence(&self) -> SessionSeq {
        self.at
    }

    /// The session is not known to the group any more.
    pub(super) fn expire(self) {
        let mut sessions = lock(&self.client.sessions.sessions);
        if let Some(session) = sessions.iter_mut().find(|session| session.id == self.at.session) {
            session.expired = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut sessions = lock(&self.client.sessions.sessions);
        if let Some(at) = sessions.iter().position(|session| session.id == self.at.session) {
            let session = &mut sessions[at];
            let was_full = session.open.len() as u64 >= SESSION_WINDOW;
            session.end(self.at.sequence);
            if session.expired && session.open.is_empty() {
                sessions.swap_remove(at);
            }
            drop(sessions);
            if was_full {
                self.client.sessions.moved.notify_waiters();
            }
        }
    }
}

impl Sessions {
    pub(super) fn new(sessions_max: usize) -> Self {
        Self { sessions: Mutex::default(), sessions_max, opening: tokio::sync::Mutex::new(()), moved: Notify::new() }
    }

    fn take(&self, client: &Arc<Inner>) -> Option<Ticket> {
        let at = lock(&self.sessions).iter_mut().find_map(Session::next)?;
        Some(Ticket { client: Arc::clone(client), at })
    }

    /// The next number of a session that has room; a new session if none has.
    pub(super) async fn next(&self, client: &Arc<Inner>, deadline: Instant) -> Result<Ticket, WriteError> {
        loop {
            if let Some(ticket) = self.take(client) {
                return Ok(ticket);
            }
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let _opening = self.opening.lock().await;
            if let Some(ticket) = self.take(client) {
                return Ok(ticket);
            }
            if lock(&self.sessions).len() < self.sessions_max {
                let id = client.open_session(deadline).await?;
                lock(&self.sessions).push(Session { id, oldest: 1, open: VecDeque::new(), expired: false });
            } else if tokio::time::timeout_at(deadline.into(), moved).await.is_err() {
                return Err(Rejection::Busy { queue: Queue::SessionWindow, limit: SESSION_WINDOW }.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_gives_out_numbers_only_within_its_window() {
        let mut session = Session { id: SessionId(1), oldest: 1, open: VecDeque::new(), expired: false };
        for sequence in 1..=SESSION_WINDOW {
            assert_eq!(session.next(), Some(SessionSeq { session: SessionId(1), sequence }));
        }
        assert_eq!(session.next(), None);
        for sequence in 2..SESSION_WINDOW {
            session.end(sequence);
        }
        assert_eq!(session.next(), None, "the oldest is still under way");
        session.end(1);
        session.end(1);
        for sequence in SESSION_WINDOW + 1..2 * SESSION_WINDOW {
            assert_eq!(session.next().map(|at| at.sequence), Some(sequence));
        }
        assert_eq!(session.next(), None, "the window begins at number {SESSION_WINDOW}");
    }

    #[test]
    fn an_expired_session_gives_out_no_numbers() {
        let mut session = Session { id: SessionId(1), oldest: 1, open: VecDeque::new(), expired: true };
        assert_eq!(session.next(), None);
    }
}
