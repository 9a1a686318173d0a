//! Exactly-once client sessions: which requests of which session were applied, and what was answered.
//!
//! Invariants: part of the replicated state, so it changes by applied entries only and travels with the snapshot; at most
//! [`SESSIONS_MAX`] sessions and [`SESSION_WINDOW`] replies each. A session's id is the log index of its registration, so an
//! expired session is never mistaken for a new one. Source: Ongaro's thesis section 6.3.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use replikit_core::{LogId, LogIndex, SESSION_WINDOW, SESSIONS_MAX, SessionId, SessionSeq};

/// What was answered to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) at: LogId,
    pub(crate) bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    used_at: LogIndex,
    /// The sequence of the first reply kept.
    low: u64,
    replies: VecDeque<Option<Reply>>,
}

/// What the group knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not applied yet.
    New,
    /// It was applied, with this answer.
    Applied(Reply),
    /// The session is unknown, or the request lies outside its window: it cannot be told whether it was applied.
    Expired,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
}

impl Sessions {
    /// Opens a session, by an entry at `at`.
    pub(crate) fn open(&mut self, at: LogIndex) -> SessionId {
        if self.sessions.len() >= SESSIONS_MAX {
            let idle = self.sessions.iter().min_by_key(|(_, session)| session.used_at).map(|(&id, _)| id);
            self.sessions.remove(&idle.expect("there are sessions"));
        }
        let id = SessionId(at.0);
        self.sessions.insert(id, Session { used_at: at, low: 1, replies: VecDeque::new() });
        id
    }

    pub(crate) fn look_up(&self, request: SessionSeq) -> Known {
        let Some(session) = self.sessions.get(&request.session) else { return Known::Expired };
        let Some(at) = request.sequence.checked_sub(session.low) else { return Known::Expired };
        match session.replies.get(at as usize) {
            Some(Some(reply)) => Known::Applied(reply.clone()),
            Some(None) => Known::New,
            // A window's width above the newest: no client that keeps to its window sends that.
            None if at >= session.replies.len() as u64 + SESSION_WINDOW => Known::Expired,
            None => Known::New,
        }
    }

    /// Keeps the answer to a request that [`look_up`](Self::look_up) called new.
    pub(crate) fn record(&mut self, request: SessionSeq, reply: Reply) {
        let session = self.sessions.get_mut(&request.session).expect("the request was looked up before");
        session.used_at = reply.at.index;
        let at = (request.sequence - session.low) as usize;
        if session.replies.len() <= at {
            session.replies.resize(at + 1, None);
        }
        session.replies[at] = Some(reply);
        let over = session.replies.len().saturating_sub(SESSION_WINDOW as usize);
        session.replies.drain(..over);
        session.low += over as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikit_core::Term;

    fn reply(index: u64) -> Reply {
        Reply { at: LogId { term: Term(1), index: LogIndex(index) }, bytes: Bytes::new() }
    }

    #[test]
    fn a_retry_gets_the_first_answer_and_a_gap_stays_open() {
        let mut sessions = Sessions::default();
        let session = sessions.open(LogIndex(5));
        let at = |sequence| SessionSeq { session, sequence };
        sessions.record(at(1), reply(6));
        sessions.record(at(3), reply(7));
        assert_eq!(sessions.look_up(at(1)), Known::Applied(reply(6)));
        assert_eq!(sessions.look_up(at(2)), Known::New);
        assert_eq!(sessions.look_up(at(3)), Known::Applied(reply(7)));
        assert_eq!(sessions.look_up(at(4)), Known::New);
    }

    #[test]
    fn what_cannot_be_told_is_expired_and_never_new() {
        let mut sessions = Sessions::default();
        let session = sessions.open(LogIndex(5));
        let at = |sequence| SessionSeq { session, sequence };
        assert_eq!(sessions.look_up(at(0)), Known::Expired);
        assert_eq!(sessions.look_up(at(u64::MAX)), Known::Expired);
        for sequence in 1..=SESSION_WINDOW + 1 {
            sessions.record(at(sequence), reply(sequence + 5));
        }
        assert_eq!(sessions.look_up(at(1)), Known::Expired, "below the window");
        assert_eq!(sessions.look_up(SessionSeq { session: SessionId(4), sequence: 1 }), Known::Expired);
    }

    #[test]
    fn the_session_used_least_recently_makes_room() {
        let mut sessions = Sessions::default();
        for index in 1..=SESSIONS_MAX as u64 {
            sessions.open(LogIndex(index));
        }
        let at = |session, sequence| SessionSeq { session: SessionId(session), sequence };
        sessions.record(at(1, 1), reply(10_000));
        sessions.open(LogIndex(10_001));
        assert_eq!(sessions.look_up(at(1, 2)), Known::New);
        assert_eq!(sessions.look_up(at(2, 1)), Known::Expired);
    }
}
