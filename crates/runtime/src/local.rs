//! n replicas in one loop: direct message passing, logs in memory, no thread or socket between them. For tests, examples
//! and for measuring a protocol behind the async handle.
//!
//! Invariants: a message reaches its replica after every message that its sender sent it before; the round ends when no
//! replica has anything left to do, and only then are waiters woken.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use replikit_core::{
    Action, Cursor, Event, GroupId, Input, Link, NodeId, Now, Outcome, Rejection, Replica, Time, Token,
};
use replikit_log::{Boots, LogOutput, MemoryLog, Storage};
use replikit_sync::{Mailbox, mailbox};
use tokio::sync::{oneshot, watch};

use crate::changes::Shelver;
use crate::clock::{Alarm, Clock};
use crate::config::{DEFAULT_GROUP, EventHook, Limits, Promise};
use crate::counters::Counters;
use crate::driver::LeaderWatch;
use crate::feed::{Feeds, Subscriber};
use crate::handle::{Handle, Parcel, Port, Target};
use crate::requests::Requests;
use crate::slot::Completion;
use crate::storage::into_input;

/// Settings of a cluster in one process.
#[derive(Clone)]
pub struct LocalConfig {
    /// The nodes.
    pub nodes: Vec<NodeId>,
    /// Group that handles speak to.
    pub group: GroupId,
    /// Requests waiting in the inbox; beyond it they are rejected as busy.
    pub inbox_requests_max: usize,
    /// How long a call waits for a leader to be known.
    pub leader_time_max: Duration,
    /// Receives every event.
    pub events: Option<EventHook>,
    /// What the strategy promises.
    pub promise: Option<Promise>,
}

impl LocalConfig {
    /// Nodes 1 to `nodes` with default settings.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        Self {
            nodes: (1..=nodes).map(NodeId).collect(),
            group: DEFAULT_GROUP,
            inbox_requests_max: 1 << 16,
            leader_time_max: Duration::from_secs(5),
            events: None,
            promise: None,
        }
    }
}

impl fmt::Debug for LocalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalConfig").field("nodes", &self.nodes).field("group", &self.group).finish_non_exhaustive()
    }
}

/// A cluster in one process whose replicas run in one loop: a task of the current tokio runtime, or a thread of its own
/// where there is none. Dropping it ends the loop; calls under way end as indeterminate.
pub struct LocalCluster<M> {
    port: Arc<Port>,
    nodes: Vec<NodeId>,
    group: GroupId,
    machine: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for LocalCluster<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCluster").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl<M> LocalCluster<M> {
    /// Starts the cluster. `build` makes the replica of a node from what its log says; it is called again by
    /// [`LocalCluster::start`].
    pub fn open<R, F>(config: LocalConfig, build: F) -> Self
    where
        R: Replica + Send + 'static,
        F: FnMut(NodeId, &Boots) -> R + Send + 'static,
    {
        let (sender, parcels) = mailbox(config.inbox_requests_max.max(1));
        let limits = Limits::default();
        let (leader_sender, leader) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let port = Arc::new(Port {
            sender,
            leader,
            counters: Arc::clone(&counters),
            promise: config.promise,
            nodes: config.nodes.clone(),
            leader_time_max: config.leader_time_max,
            subscription_bytes_max: limits.subscription_bytes_max,
        });
        let driver = Driver {
            build,
            members: config.nodes.iter().map(|&id| Member::new(id, &limits)).collect(),
            arrivals: config.nodes.iter().map(|_| VecDeque::new()).collect(),
            parcels,
            clock: Clock::new(),
            leader: LeaderWatch::new(config.group, leader_sender),
            events: config.events,
            counters,
            wakers: Vec::new(),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(driver.run());
        } else {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                runtime.expect("a runtime with timers only takes memory").block_on(driver.run());
            });
        }
        Self { port, nodes: config.nodes, group: config.group, machine: PhantomData }
    }

    /// The nodes, in the order of the configuration.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// A handle that follows the leader: a call that finds no leader waits for the next one. Where nobody leads, it speaks to
    /// the first node that runs.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        Handle::new(Arc::clone(&self.port), Target::Leader, self.group)
    }

    /// A handle on one node; "not the leader" is an answer to its caller.
    #[must_use]
    pub fn handle_at(&self, node: NodeId) -> Handle<M> {
        Handle::new(Arc::clone(&self.port), Target::Node(node), self.group)
    }

    /// Who leads; waits until somebody is known to, in families without a leader for ever. `None` after [`LocalCluster::shutdown`].
    pub async fn leader(&self) -> Option<NodeId> {
        self.handle().leader().await
    }

    /// Ends a node as if its process had died; its log stays. Its open requests end as indeterminate.
    pub async fn stop(&self, node: NodeId) {
        let (done, stopped) = oneshot::channel();
        if self.port.sender.try_push(Parcel::Stop { node, done }).is_ok() {
            let _ = stopped.await;
        }
    }

    /// Starts a stopped node from its log.
    pub async fn start(&self, node: NodeId) {
        let (done, started) = oneshot::channel();
        if self.port.sender.try_push(Parcel::Start { node, done }).is_ok() {
            let _ = started.await;
        }
    }

    /// Ends the loop; handles answer that the node is shutting down from now on.
    pub fn shutdown(&self) {
        let _ = self.port.sender.try_push(Parcel::Shutdown);
    }
}

impl<M> Drop for LocalCluster<M> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

struct Member<R> {
    id: NodeId,
    replica: Option<R>,
    log: MemoryLog,
    requests: Requests<Completion<Outcome>>,
    feeds: Feeds<Shelver>,
    /// It was handed something, so it may want something done.
    touched: bool,
}

impl<R> Member<R> {
    fn new(id: NodeId, limits: &Limits) -> Self {
        let feeds = Feeds::new(limits.subscriptions_max, limits.subscription_bytes_max);
        Self { id, replica: None, log: MemoryLog::new(), requests: Requests::new(), feeds, touched: false }
    }
}

struct Driver<R: Replica, F> {
    build: F,
    members: Vec<Member<R>>,
    /// What each member is to handle next, beside it so that one member's messages can be delivered while it is polled.
    arrivals: Vec<VecDeque<Input<R::Head>>>,
    parcels: Mailbox<Parcel>,
    clock: Clock,
    leader: LeaderWatch,
    events: Option<EventHook>,
    counters: Arc<Counters>,
    /// Whom to wake at the end of the round.
    wakers: Vec<Waker>,
}

/// What a round starts with.
enum Wait {
    Parcels,
    Timer,
    Closed,
}

impl<R, F> Driver<R, F>
where
    R: Replica,
    F: FnMut(NodeId, &Boots) -> R,
{
    async fn run(mut self) {
        let mut alarm = Alarm::new();
        let mut parcels = Vec::new();
        for at in 0..self.members.len() {
            self.start(at, Start::First);
        }
        self.settle(self.clock.now());
        loop {
            let wait = self.wait(&mut alarm, &mut parcels).await;
            if matches!(wait, Wait::Closed) {
                break;
            }
            let now = self.clock.now();
            self.counters.rounds.one();
            for parcel in parcels.drain(..) {
                match parcel {
                    Parcel::Call { to, call, completion } => {
                        self.counters.requests.one();
                        if let Some(at) = self.route(to) {
                            let member = &mut self.members[at];
                            let input = call.into_input(member.requests.insert(completion));
                            member.replica.as_mut().expect("only a running node is chosen").handle(now, input);
                            member.touched = true;
                        } else {
                            self.counters.requests_rejected.one();
                            self.wakers.extend(completion.end(Outcome::Rejected(Rejection::ShuttingDown)));
                        }
                    }
                    Parcel::Follow { to, group, from, shelver } => self.follow(to, group, from, shelver),
                    Parcel::Room => {}
                    Parcel::Shutdown => self.parcels.close(),
                    Parcel::Stop { node, done } => {
                        self.stop(node);
                        let _ = done.send(());
                    }
                    Parcel::Start { node, done } => {
                        if let Some(at) = self.position(node).filter(|&at| self.members[at].replica.is_none()) {
                            self.start(at, Start::Again);
                        }
                        let _ = done.send(());
                    }
                }
            }
            if matches!(wait, Wait::Timer) {
                for member in &mut self.members {
                    if let Some(replica) = &mut member.replica
                        && replica.deadline().is_some_and(|deadline| deadline <= now.mono)
                    {
                        replica.handle(now, Input::Timer);
                        member.touched = true;
                    }
                }
            }
            self.settle(now);
            self.feed(now);
            let woken = self.wakers.len();
            for waker in self.wakers.drain(..) {
                waker.wake();
            }
            if woken > 1 {
                // Let all of them run first: their next requests then make one batch.
                yield_behind_the_woken().await;
            }
        }
    }

    async fn wait(&mut self, alarm: &mut Alarm, parcels: &mut Vec<Parcel>) -> Wait {
        poll_fn(|context| {
            let (clock, deadline) = (&self.clock, self.deadline());
            // The timer is looked at in every round: load must not keep it from firing.
            if alarm.poll(context, clock, deadline).is_ready() {
                let _ = self.parcels.try_drain(parcels);
                return Poll::Ready(Wait::Timer);
            }
            self.parcels
                .poll_drain(context, parcels)
                .map(|something| if something { Wait::Parcels } else { Wait::Closed })
        })
        .await
    }

    fn deadline(&self) -> Option<Time> {
        self.members.iter().filter_map(|member| member.replica.as_ref()?.deadline()).min()
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.members.iter().position(|member| member.id == node)
    }

    /// The running member that a call goes to.
    fn route(&self, to: Option<NodeId>) -> Option<usize> {
        let running = |&at: &usize| self.members[at].replica.is_some();
        match to {
            Some(node) => self.position(node).filter(running),
            None => {
                let known = self.leader.known().and_then(|leader| self.position(leader)).filter(running);
                known.or_else(|| (0..self.members.len()).find(running))
            }
        }
    }

    fn start(&mut self, at: usize, start: Start) {
        if start == Start::Again {
            self.members[at].log.restart();
        }
        let member = &mut self.members[at];
        let mut replica = (self.build)(member.id, &member.log.boots());
        let now = self.clock.now();
        for item in member.log.recovery() {
            replica.handle(now, item.into_input());
        }
        replica.handle(now, Input::Recovered);
        member.replica = Some(replica);
        member.touched = true;
        let id = member.id;
        self.arrivals[at].clear();
        for other in (0..self.members.len()).filter(|&other| other != at) {
            if self.members[other].replica.is_some() {
                self.arrivals[other].push_back(Input::Peer { node: id, link: Link::Up });
                let node = self.members[other].id;
                self.arrivals[at].push_back(Input::Peer { node, link: Link::Up });
            }
        }
    }

    fn stop(&mut self, node: NodeId) {
        let Some(at) = self.position(node).filter(|&at| self.members[at].replica.is_some()) else { return };
        self.members[at].replica = None;
        self.members[at].feeds.close();
        self.arrivals[at].clear();
        for completion in self.members[at].requests.drain() {
            self.counters.requests_indeterminate.one();
            drop(completion);
        }
        self.leader.lost(node);
        for other in (0..self.members.len()).filter(|&other| other != at) {
            if self.members[other].replica.is_some() {
                self.arrivals[other].push_back(Input::Peer { node, link: Link::Reset });
            }
        }
    }

    fn follow(&mut self, to: Option<NodeId>, group: GroupId, from: Cursor, shelver: Shelver) {
        let Some(at) = self.route(to) else { return shelver.end(Rejection::ShuttingDown.into()) };
        let Member { replica: Some(replica), log, feeds, .. } = &mut self.members[at] else { return };
        feeds.add(replica, group, from, shelver, log);
    }

    /// Hands subscribers what is committed.
    fn feed(&mut self, now: Now) {
        for Member { replica, log, feeds, .. } in &mut self.members {
            if let Some(replica) = replica {
                // Ends when no subscriber has room any more.
                while feeds.pump(replica, now.mono, log) {}
            }
        }
    }

    /// Runs all members until none has anything left to do.
    fn settle(&mut self, now: Now) {
        let mut idle = false;
        while !idle {
            idle = true;
            for at in 0..self.members.len() {
                let Member { replica, touched, .. } = &mut self.members[at];
                if self.arrivals[at].is_empty() && !std::mem::take(touched) {
                    continue;
                }
                let Some(replica) = replica else {
                    self.arrivals[at].clear();
                    continue;
                };
                idle = false;
                while let Some(input) = self.arrivals[at].pop_front() {
                    replica.handle(now, input);
                }
                self.carry_out(at, now);
            }
        }
    }

    /// Carries out all that one member wants done.
    fn carry_out(&mut self, at: usize, now: Now) {
        loop {
            let Member { id, replica: Some(replica), log, requests, feeds, .. } = &mut self.members[at] else { return };
            let Some(action) = replica.poll() else {
                let Some(output) = log.poll() else { return };
                if matches!(output, LogOutput::Durable { .. }) {
                    feeds.durable();
                }
                if let Some(input) = into_input(output) {
                    replica.handle(now, input);
                }
                continue;
            };
            match action {
                Action::Persist { id, op } => log.persist(id, op),
                Action::Send { to, message } => {
                    let from = *id;
                    self.counters.messages_sent.one();
                    if let Some(to) = self.position(to) {
                        self.arrivals[to].push_back(Input::Message { from, message });
                    }
                }
                Action::ReadLog { ticket, stream, from, bytes_max } => log.read_log(ticket, stream, from, bytes_max),
                Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
                    log.read_snapshot(ticket, group, at, offset, bytes_max);
                }
                Action::Done { token, outcome } => {
                    let completion = requests.take(token);
                    self.done(completion, outcome, token);
                }
                Action::Event { group, event } => {
                    let node = *id;
                    self.event(node, group, &event);
                }
            }
        }
    }

    fn done(&mut self, completion: Option<Completion<Outcome>>, outcome: Outcome, token: Token) {
        let Some(completion) = completion else {
            tracing::warn!(%token, "a replica answered a request that is not open");
            return;
        };
        self.counters.ended(&outcome);
        self.wakers.extend(completion.end(outcome));
    }

    fn event(&mut self, node: NodeId, group: GroupId, event: &Event) {
        self.leader.observe(node, group, event);
        if let Some(hook) = &self.events {
            hook(node, group, event);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    Again,
}

/// Lets every task that was just woken run before this one does again.
async fn yield_behind_the_woken() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        // Not `tokio::task::yield_now`, which has the runtime look at its timers and sockets first.
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
