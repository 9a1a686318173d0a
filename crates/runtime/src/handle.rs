//! The in-process way to a replica: unboxed async calls through the loop's mailbox.
//!
//! Invariant: every call ends, also when the loop is gone: its completion is dropped with the mailbox and says so.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::{
    Admin, Changes, Cursor, GroupId, NodeId, Outcome, Queue, Reached, ReadError, Rejection, SessionId, Status,
    SubscribeError, WriteError,
};
use replikit_sync::{MailboxSender, PushError};
use tokio::sync::{oneshot, watch};

use crate::call::{Acked, Answer, Call, acked, answered, session_id};
use crate::changes::{HandleChanges, Shelver};
use crate::config::{Promise, ReadOptions, WriteOptions, strategy};
use crate::counters::{Counters, NodeCounters, NodeStatus};
use crate::slot::{Completion, SlotCache};

/// What handles leave in the mailbox of a loop.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A request; `to` is a node, or whoever leads.
    Call { to: Option<NodeId>, call: Call, completion: Completion<Outcome> },
    /// Somebody wants the changes of a group; `to` as above.
    Follow { to: Option<NodeId>, group: GroupId, from: Cursor, shelver: Shelver },
    /// A subscriber that had no room has some again. If the mailbox is full, whoever empties it looks by itself.
    Room,
    /// End cleanly.
    Shutdown,
    /// Drop the replica of a node as if its process had died; its log stays.
    Stop { node: NodeId, done: oneshot::Sender<()> },
    /// Build the replica of a node anew from its log.
    Start { node: NodeId, done: oneshot::Sender<()> },
}

/// What all handles of one loop share.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) sender: MailboxSender<Parcel>,
    pub(crate) leader: watch::Receiver<Option<NodeId>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) promise: Option<Promise>,
    /// The nodes of the loop.
    pub(crate) nodes: Vec<NodeId>,
    /// How long a call that follows the leader waits for one to be known.
    pub(crate) leader_time_max: Duration,
    /// What may wait for one subscriber.
    pub(crate) subscription_bytes_max: usize,
}

/// Whom a handle speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// This node; an answer "not the leader" goes to the caller.
    Node(NodeId),
    /// Whoever leads; followed through changes of leader.
    Leader,
}

/// The way to a group from within the process: `write` and `query` for the user's own state machine `M`. For a
/// [`Keyspace`](replikit_core::keyspace::Keyspace), [`KvHandle`](crate::KvHandle) makes it a
/// [`Store`](replikit_core::Store).
///
/// Cheap to clone. Dropping a call's future abandons the answer, not the request.
pub struct Handle<M> {
    port: Arc<Port>,
    target: Target,
    group: GroupId,
    slots: SlotCache<Outcome>,
    machine: PhantomData<fn() -> M>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.port), self.target, self.group)
    }
}

impl<M> fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("target", &self.target).field("group", &self.group).finish_non_exhaustive()
    }
}

impl<M> Handle<M> {
    pub(crate) const fn new(port: Arc<Port>, target: Target, group: GroupId) -> Self {
        Self { port, target, group, slots: SlotCache::new(), machine: PhantomData }
    }

    /// The same handle for another group of the node.
    #[must_use]
    pub fn for_group(&self, group: GroupId) -> Self {
        Self::new(Arc::clone(&self.port), self.target, group)
    }

    /// The group that it speaks to.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }

    /// Replicates a command at level `Quorum` and returns the state machine's reply.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::Indeterminate`] leaves the effect open.
    pub async fn write(&self, command: impl Into<Bytes>) -> Result<Acked, WriteError> {
        self.write_with(command, WriteOptions::default()).await
    }

    /// Replicates a command.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::Indeterminate`] leaves the effect open.
    pub async fn write_with(&self, command: impl Into<Bytes>, options: WriteOptions) -> Result<Acked, WriteError> {
        let (group, body) = (self.group, command.into());
        let WriteOptions { level, session } = options;
        acked(self.ask(move || Call::Command { group, level, session, body: body.clone() }).await)
    }

    /// Asks the state machine, linearizably.
    ///
    /// # Errors
    /// [`ReadError`]. A read never changes state.
    pub async fn query(&self, query: impl Into<Bytes>) -> Result<Answer, ReadError> {
        self.query_with(query, ReadOptions::default()).await
    }

    /// Asks the state machine.
    ///
    /// # Errors
    /// [`ReadError`]. A read never changes state.
    pub async fn query_with(&self, query: impl Into<Bytes>, options: ReadOptions) -> Result<Answer, ReadError> {
        let (group, body) = (self.group, query.into());
        let ReadOptions { level, answer_bytes_max: bytes_max } = options;
        answered(self.ask(move || Call::Query { group, level: level.clone(), body: body.clone(), bytes_max }).await)
    }

    /// Opens a session for exactly-once retries: number its writes from 1 and retry under the same number.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn open_session(&self) -> Result<SessionId, WriteError> {
        let group = self.group;
        let acked = acked(self.ask(move || Call::OpenSession { group }).await)?;
        session_id(&acked.reply).ok_or(WriteError::Indeterminate { reached: Reached::default() })
    }

    /// Describes the node of the handle, or else the leader, or, where nobody leads, the first node that runs; and the
    /// counters.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn status(&self) -> Result<NodeStatus, ReadError> {
        let (mut nodes, group) = match self.target {
            Target::Node(node) => (vec![node], self.group),
            Target::Leader => (self.port.nodes.clone(), self.group),
        };
        let leader = *self.port.leader.borrow();
        nodes.sort_by_key(|node| Some(*node) != leader);
        let mut outcome = Outcome::Rejected(Rejection::ShuttingDown);
        for node in nodes {
            outcome = self.ask_once(Some(node), Call::Admin { group, command: Admin::Status }).await;
            if outcome != Outcome::Rejected(Rejection::ShuttingDown) {
                let replica = Status::decode(&answered(outcome)?.value).ok_or(Rejection::Unsupported)?;
                let strategy = strategy(self.port.promise);
                return Ok(NodeStatus { node, strategy, replica, counters: self.counters() });
            }
        }
        answered(outcome).and(Err(Rejection::Unsupported.into()))
    }

    /// Has the replica take a snapshot now and release the log behind it.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn take_snapshot(&self) -> Result<(), WriteError> {
        let group = self.group;
        match self.ask(move || Call::Admin { group, command: Admin::Snapshot }).await {
            Outcome::Value { .. } | Outcome::Acked { .. } => Ok(()),
            other => acked(other).map(drop),
        }
    }

    /// Follows the committed commands of the group, as [`Store::subscribe`](replikit_core::Store::subscribe) does. What waits
    /// for the subscriber in memory is limited by
    /// [`Limits::subscription_bytes_max`](crate::Limits::subscription_bytes_max).
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe(&self, from: Cursor) -> Result<Box<dyn Changes>, SubscribeError>
    where
        M: 'static,
    {
        Ok(Box::new(HandleChanges::open(self.clone(), from).await?))
    }

    /// The node's counters.
    #[must_use]
    pub fn counters(&self) -> NodeCounters {
        self.port.counters.snapshot()
    }

    /// Who leads the group as far as the node knows; waits until somebody is known to, in families without a leader for ever.
    /// `None` if the node has stopped.
    pub async fn leader(&self) -> Option<NodeId> {
        let mut leader = self.port.leader.clone();
        leader.wait_for(Option::is_some).await.ok().and_then(|leader| *leader)
    }

    pub(crate) fn promise(&self) -> Option<Promise> {
        self.port.promise
    }

    pub(crate) fn subscription_bytes_max(&self) -> usize {
        self.port.subscription_bytes_max
    }

    pub(crate) fn follow(&self, from: Cursor, shelver: Shelver) -> Result<(), SubscribeError> {
        let to = match self.target {
            Target::Node(node) => Some(node),
            Target::Leader => None,
        };
        let sender = &self.port.sender;
        sender.try_push(Parcel::Follow { to, group: self.group, from, shelver }).map_err(|error| match error {
            PushError::Full(_) => {
                let limit = sender.capacity_items() as u64;
                Rejection::Busy { queue: Queue::Inbox, limit }.into()
            }
            PushError::Closed(_) => SubscribeError::Closed,
        })
    }

    pub(crate) fn nudge(&self) {
        let _ = self.port.sender.try_push(Parcel::Room);
    }

    async fn ask(&self, call: impl Fn() -> Call) -> Outcome {
        match self.target {
            Target::Node(node) => self.ask_once(Some(node), call()).await,
            Target::Leader => {
                let outcome = self.ask_once(None, call()).await;
                if not_leader(&outcome).is_some() { self.ask_next_leader(call).await } else { outcome }
            }
        }
    }

    /// Rejected means that it had no effect and never will: asking another node cannot double it.
    async fn ask_next_leader(&self, call: impl Fn() -> Call) -> Outcome {
        let mut known = self.port.leader.clone();
        let mut to = None;
        known.borrow_and_update();
        loop {
            let outcome = self.ask_once(to, call()).await;
            let Some(hint) = not_leader(&outcome) else { return outcome };
            // A hint is worth one more question; a second one that is wrong means that an election is going on.
            if hint.is_some() && to.is_none() {
                to = hint;
                continue;
            }
            to = None;
            // Marks the change as seen: the next question is answered with it or with a newer one.
            if !matches!(tokio::time::timeout(self.port.leader_time_max, known.changed()).await, Ok(Ok(()))) {
                return outcome;
            }
        }
    }

    async fn ask_once(&self, to: Option<NodeId>, call: Call) -> Outcome {
        let sender = &self.port.sender;
        self.slots
            .request(move |completion| {
                let refused = match sender.try_push(Parcel::Call { to, call, completion }) {
                    Ok(()) => return,
                    Err(PushError::Full(refused)) => {
                        let limit = sender.capacity_items() as u64;
                        (refused, Rejection::Busy { queue: Queue::Inbox, limit })
                    }
                    Err(PushError::Closed(refused)) => (refused, Rejection::ShuttingDown),
                };
                if let (Parcel::Call { completion, .. }, rejection) = refused {
                    // The caller is being polled right now: it needs no wake-up.
                    drop(completion.end(Outcome::Rejected(rejection)));
                }
            })
            .await
    }
}

/// The hint of an answer that the replica does not lead.
const fn not_leader(outcome: &Outcome) -> Option<Option<NodeId>> {
    match outcome {
        Outcome::Rejected(Rejection::NotLeader { leader }) => Some(*leader),
        _ => None,
    }
}
