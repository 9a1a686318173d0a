//! The loop: drives one replica, or a container of many, from sockets, handles and the log.
//!
//! One round: take what arrived, read the clocks, hand it to the replica, carry out all that it wants done; then one write
//! per peer, one group for the log, one write per client, and the waiters are woken. Batching comes from load: a lone
//! request waits for nothing, and there is no timer but the replica's deadline.
//!
//! Invariants: the clocks are read after the inputs that they accompany were received; storage actions stay in order.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use replikit_core::{
    Action, Batches, Event, GroupId, Input, LogIndex, NodeId, Now, Outcome, Rejection, Replica, Role, Status,
    StorageEvent, SubscribeError, Term, Time, Token,
};
use replikit_log::{LogOutput, SubscriptionId};
use replikit_sync::Mailbox;
use tokio::sync::watch;

use crate::call::Call;
use crate::changes::Shelver;
use crate::clock::{Alarm, Clock};
use crate::config::EventHook;
use crate::counters::NodeStatus;
use crate::feed::{FeedId, Feeds, Subscriber};
use crate::handle::Parcel;
use crate::net::{Arrival, Net};
use crate::requests::Requests;
use crate::server::{Connection, RemoteSubscriber};
use crate::slot::Completion;
use crate::storage::{Backend, into_input};

/// Who waits for the end of a request.
enum Waiter {
    Handle(Completion<Outcome>),
    Client { connection: Rc<Connection>, token: u64 },
    ClientStatus { connection: Rc<Connection>, token: u64 },
}

/// Who follows the changes of a group.
enum NodeSubscriber {
    Handle(Shelver),
    Client(RemoteSubscriber),
}

impl Subscriber for NodeSubscriber {
    fn is_gone(&self) -> bool {
        match self {
            Self::Handle(shelver) => shelver.is_gone(),
            Self::Client(remote) => remote.is_gone(),
        }
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Handle(shelver) => shelver.has_room(),
            Self::Client(remote) => remote.has_room(),
        }
    }

    fn begin(&self, next: LogIndex) {
        match self {
            Self::Handle(shelver) => shelver.begin(next),
            Self::Client(remote) => remote.begin(next),
        }
    }

    fn give(&self, batches: Batches) {
        match self {
            Self::Handle(shelver) => shelver.give(batches),
            Self::Client(remote) => remote.give(batches),
        }
    }

    fn end(&self, why: SubscribeError) {
        match self {
            Self::Handle(shelver) => shelver.end(why),
            Self::Client(remote) => remote.end(why),
        }
    }
}

/// What an event tells of the leader of a group.
pub(crate) struct LeaderWatch {
    pub(crate) group: GroupId,
    term: Term,
    sender: watch::Sender<Option<NodeId>>,
}

impl LeaderWatch {
    pub(crate) fn new(group: GroupId, sender: watch::Sender<Option<NodeId>>) -> Self {
        Self { group, term: Term::default(), sender }
    }

    /// Takes note of an event at a node; the highest term is right, whoever tells of it.
    pub(crate) fn observe(&mut self, node: NodeId, group: GroupId, event: &Event) {
        let (leader, term) = match *event {
            Event::RoleChanged { role: Role::Leader, term } => (Some(node), term),
            Event::LeaderChanged { leader, term } => (leader, term),
            _ => return,
        };
        // That nobody is known to lead is news only of a later term, or from the one who led.
        let news = term > self.term || term == self.term && (leader.is_some() || self.known() == Some(node));
        if group == self.group && news {
            self.term = term;
            self.sender.send_if_modified(|known| std::mem::replace(known, leader) != leader);
        }
    }

    /// The node has died.
    pub(crate) fn lost(&self, node: NodeId) {
        self.sender.send_if_modified(|leader| leader.take_if(|leader| *leader == node).is_some());
    }

    pub(crate) fn known(&self) -> Option<NodeId> {
        *self.sender.borrow()
    }
}

pub(crate) struct Driver<R: Replica> {
    pub(crate) replica: R,
    pub(crate) net: Rc<Net<R::Head>>,
    pub(crate) storage: Backend,
    pub(crate) parcels: Mailbox<Parcel>,
    pub(crate) clock: Clock,
    pub(crate) leader: LeaderWatch,
    pub(crate) events: Option<EventHook>,
    requests: Requests<Waiter>,
    feeds: Feeds<NodeSubscriber>,
    /// Waiters in this process, to wake at the end of the round.
    wakers: Vec<Waker>,
    /// Connections with answers, to flush at the end of the round.
    dirty: Vec<Rc<Connection>>,
    /// When a shutdown that began gives up waiting.
    closing: Option<Time>,
}

/// What woke the loop.
struct Batch<H> {
    arrivals: Vec<Arrival<H>>,
    parcels: Vec<Parcel>,
    outputs: Vec<LogOutput>,
}

impl<R: Replica> Driver<R> {
    pub(crate) fn new(
        replica: R,
        net: Rc<Net<R::Head>>,
        storage: Backend,
        parcels: Mailbox<Parcel>,
        clock: Clock,
        leader: LeaderWatch,
        events: Option<EventHook>,
    ) -> Self {
        let feeds = Feeds::new(net.limits.subscriptions_max, net.limits.subscription_bytes_max);
        Self {
            replica,
            net,
            storage,
            parcels,
            clock,
            leader,
            events,
            requests: Requests::new(),
            feeds,
            wakers: Vec::new(),
            dirty: Vec::new(),
            closing: None,
        }
    }

    /// Runs until a shutdown is complete; the log is closed then.
    pub(crate) async fn run(mut self) {
        let mut alarm = Alarm::new();
        let mut batch = Batch { arrivals: Vec::new(), parcels: Vec::new(), outputs: Vec::new() };
        // What recovery left to do.
        self.settle(self.clock.now());
        loop {
            self.wait(&mut alarm, &mut batch).await;
            let now = self.clock.now();
            self.net.counters.rounds.one();
            self.take(now, &mut batch);
            self.settle(now);
            if self.closing.is_some_and(|give_up| now.mono >= give_up || self.is_quiet()) {
                break;
            }
        }
        self.end();
    }

    async fn wait(&mut self, alarm: &mut Alarm, batch: &mut Batch<R::Head>) {
        let deadline = [self.replica.deadline(), self.storage.deadline(), self.closing].into_iter().flatten().min();
        poll_fn(|context| {
            // All four are looked at, so that all of them will wake the loop, and none starves another.
            let mut ready = self.net.poll_arrivals(context, &mut batch.arrivals).is_ready();
            ready |= match self.parcels.poll_drain(context, &mut batch.parcels) {
                Poll::Ready(true) => true,
                // All handles are gone: the node was dropped.
                Poll::Ready(false) => {
                    let first = self.closing.is_none();
                    if first {
                        batch.parcels.push(Parcel::Shutdown);
                    }
                    first
                }
                Poll::Pending => false,
            };
            ready |= self.storage.poll_outputs(context, &mut batch.outputs).is_ready();
            ready |= alarm.poll(context, &self.clock, deadline).is_ready();
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Hands everything at hand to the replica.
    fn take(&mut self, now: Now, batch: &mut Batch<R::Head>) {
        let inputs = batch.arrivals.len() + batch.parcels.len() + batch.outputs.len();
        self.net.counters.inputs.add(inputs as u64);
        for output in batch.outputs.drain(..) {
            let output = match output {
                LogOutput::Tail { subscription: SubscriptionId(feed), tail } => {
                    self.feeds.tailed(FeedId(feed), tail, now.mono, &mut self.storage);
                    continue;
                }
                output => output,
            };
            self.observe(&output, now);
            if let Some(input) = into_input(output) {
                self.replica.handle(now, input);
            }
        }
        for arrival in batch.arrivals.drain(..) {
            match arrival {
                Arrival::Input(input) => self.replica.handle(now, input),
                Arrival::Request { connection, token, call } => {
                    let waiter = if matches!(call, Call::Admin { command: replikit_core::Admin::Status, .. }) {
                        Waiter::ClientStatus { connection, token }
                    } else {
                        Waiter::Client { connection, token }
                    };
                    let token = self.requests.insert(waiter);
                    self.replica.handle(now, call.into_input(token));
                }
                Arrival::Follow { connection, token, group, from } => {
                    let subscriber = NodeSubscriber::Client(RemoteSubscriber::new(&connection, token, &self.net));
                    self.feeds.add(&self.replica, group, from, subscriber, &mut self.storage);
                }
            }
        }
        for parcel in batch.parcels.drain(..) {
            match parcel {
                Parcel::Call { call, completion, .. } => {
                    self.net.counters.requests.one();
                    if self.closing.is_some() {
                        let outcome = Outcome::Rejected(Rejection::ShuttingDown);
                        self.net.counters.ended(&outcome);
                        self.wakers.extend(completion.end(outcome));
                    } else {
                        let token = self.requests.insert(Waiter::Handle(completion));
                        self.replica.handle(now, call.into_input(token));
                    }
                }
                Parcel::Follow { group, from, shelver, .. } => {
                    let subscriber = NodeSubscriber::Handle(shelver);
                    self.feeds.add(&self.replica, group, from, subscriber, &mut self.storage);
                }
                Parcel::Room => {}
                Parcel::Shutdown => {
                    self.net.closing.set(true);
                    self.closing.get_or_insert(now.mono + self.net.timing.shutdown_time_max);
                }
                // Only a cluster in one loop can stop and start its nodes.
                Parcel::Stop { done, .. } | Parcel::Start { done, .. } => drop(done),
            }
        }
        if self.storage.is_stalled(now.mono) {
            self.net.counters.storage_stalls.one();
            tracing::warn!("the disk has been busy with one write for too long");
            self.replica.handle(now, Input::Storage { event: StorageEvent::Slow });
        }
        if self.replica.deadline().is_some_and(|deadline| deadline <= now.mono) {
            self.replica.handle(now, Input::Timer);
        }
    }

    /// Takes note of what the log says.
    fn observe(&mut self, output: &LogOutput, now: Now) {
        self.storage.observe(output, now.mono);
        if matches!(output, LogOutput::Durable { .. }) {
            self.feeds.durable();
        }
    }

    /// Carries out all that the replica wants done, then writes, submits and wakes.
    fn settle(&mut self, now: Now) {
        loop {
            while let Some(action) = self.replica.poll() {
                self.carry_out(action);
            }
            // A log in memory answers at once.
            let Some(output) = self.storage.poll_now() else { break };
            self.observe(&output, now);
            if let Some(input) = into_input(output) {
                self.replica.handle(now, input);
            }
        }
        // Whoever waits longest comes first: entries that disks have yet to take, the peers' before our own so that theirs
        // work while ours does; but answers before what is on our disk already, and before messages that only tell of
        // progress.
        if !self.storage.has_waiting() {
            self.answer();
        }
        for link in self.net.peers.values() {
            link.flush(&self.net.counters);
        }
        if self.feeds.pump(&self.replica, now.mono, &mut self.storage) {
            self.net.bell.ring();
        }
        self.storage.submit(now.mono, &self.net.counters);
        self.answer();
    }

    /// Writes the round's answers and wakes who waits for one.
    fn answer(&mut self) {
        for connection in self.dirty.drain(..) {
            connection.dirty.set(false);
            connection.flush(&self.net.counters);
            connection.made_room();
        }
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }

    fn carry_out(&mut self, action: Action<R::Head>) {
        match action {
            Action::Persist { id, op } => self.storage.persist(id, op),
            Action::ReadLog { ticket, stream, from, bytes_max } => {
                self.storage.read_log(ticket, stream, from, bytes_max);
            }
            Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
                self.storage.read_snapshot(ticket, group, at, offset, bytes_max);
            }
            Action::Send { to, message } => match self.net.peers.get(&to) {
                Some(link) => link.send(&message, &self.net),
                None => self.net.counters.messages_dropped.one(),
            },
            Action::Done { token, outcome } => self.done(token, outcome),
            Action::Event { group, event } => {
                let node = self.net.node;
                tracing::debug!(%node, %group, ?event, "event");
                self.leader.observe(node, group, &event);
                self.net.leader.set(self.leader.known());
                if let Some(hook) = &self.events {
                    hook(node, group, &event);
                }
            }
        }
    }

    fn done(&mut self, token: Token, outcome: Outcome) {
        self.net.counters.ended(&outcome);
        let connection = match self.requests.take(token) {
            Some(Waiter::Handle(completion)) => return self.wakers.extend(completion.end(outcome)),
            Some(Waiter::Client { connection, token }) => {
                connection.answer(token, &outcome);
                connection
            }
            Some(Waiter::ClientStatus { connection, token }) => {
                match self.status(&outcome) {
                    Some(status) => connection.answer_status(token, &status),
                    None => connection.answer(token, &outcome),
                }
                connection
            }
            None => return tracing::warn!(%token, "the replica answered a request that is not open"),
        };
        if !connection.dirty.replace(true) {
            self.dirty.push(connection);
        }
    }

    fn status(&self, outcome: &Outcome) -> Option<NodeStatus> {
        let Outcome::Value { values, .. } = outcome else { return None };
        let replica = Status::decode(values.first()?)?;
        let strategy = self.net.strategy.clone();
        Some(NodeStatus { node: self.net.node, strategy, replica, counters: self.net.counters.snapshot() })
    }

    fn is_quiet(&self) -> bool {
        self.requests.len() == 0 && self.storage.is_quiet()
    }

    /// Answers who still waits, and closes the log.
    fn end(mut self) {
        for waiter in self.requests.drain() {
            let outcome = Outcome::Indeterminate { reached: replikit_core::Reached::default() };
            self.net.counters.ended(&outcome);
            match waiter {
                Waiter::Handle(completion) => {
                    if let Some(waker) = completion.end(outcome) {
                        waker.wake();
                    }
                }
                Waiter::Client { connection, token } | Waiter::ClientStatus { connection, token } => {
                    connection.answer(token, &outcome);
                    connection.flush(&self.net.counters);
                }
            }
        }
        self.feeds.close();
        self.storage.close();
    }
}
