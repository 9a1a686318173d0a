//! What the tasks of one node's thread share: the loop's inbox for sockets, the links to peers, a few facts.
//!
//! Everything here lives on one thread: cells instead of locks. Invariant: no borrow of a cell is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use replikit_core::{ClusterId, Cursor, GroupId, Input, NodeId, Outcome, Rejection};

use crate::call::Call;
use crate::config::{Limits, Timing};
use crate::counters::Counters;
use crate::gateway::{self, GatewayAt};
use crate::link::PeerLink;
use crate::server::Connection;
use crate::wire::ClientRequest;

/// What a socket brought for the replica.
pub(crate) enum Arrival<H> {
    Input(Input<H>),
    Request {
        connection: Rc<Connection>,
        token: u64,
        call: Call,
    },
    /// Somebody wants the changes of a group.
    Follow {
        connection: Rc<Connection>,
        token: u64,
        group: GroupId,
        from: Cursor,
    },
}

/// Wakes the loop. Invariant: a loop that sleeps finds it rung if it was rung since it last looked.
#[derive(Default)]
pub(crate) struct Bell {
    waker: Cell<Option<Waker>>,
    rung: Cell<bool>,
}

impl Bell {
    /// Has the loop run another round.
    pub(crate) fn ring(&self) {
        self.rung.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait(&self, context: &Context<'_>) {
        let waker = self.waker.take().filter(|waker| waker.will_wake(context.waker()));
        self.waker.set(Some(waker.unwrap_or_else(|| context.waker().clone())));
    }
}

/// Shared by the loop, the acceptor, and the tasks of connections.
pub(crate) struct Net<H> {
    pub(crate) node: NodeId,
    /// Which strategy its replica is of; empty when nobody said.
    pub(crate) strategy: String,
    pub(crate) cluster: ClusterId,
    /// What the cluster was founded with, in short.
    pub(crate) founding: u64,
    /// All nodes and where they listen, this one included.
    pub(crate) nodes: Vec<(NodeId, String)>,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) counters: Arc<Counters>,
    /// Who answers what is for no group of the replica.
    pub(crate) gateway: Option<GatewayAt>,
    /// Requests under way at the gateway.
    pub(crate) passed: Cell<usize>,
    pub(crate) peers: BTreeMap<NodeId, Rc<PeerLink>>,
    /// Who leads, as far as the replica said.
    pub(crate) leader: Cell<Option<NodeId>>,
    /// Set once the node shuts down: no new requests.
    pub(crate) closing: Cell<bool>,
    pub(crate) connections: Cell<usize>,
    arrivals: RefCell<Vec<Arrival<H>>>,
    /// Requests among the arrivals.
    requests: Cell<usize>,
    pub(crate) bell: Rc<Bell>,
}

impl<H> Net<H> {
    pub(crate) fn new(
        node: NodeId,
        cluster: ClusterId,
        nodes: Vec<(NodeId, String)>,
        limits: Limits,
        timing: Timing,
        counters: Arc<Counters>,
    ) -> Self {
        let others = nodes.iter().filter(|(id, _)| *id != node);
        let peers = others.map(|(id, address)| (*id, Rc::new(PeerLink::new(*id, address.clone())))).collect();
        Self {
            node,
            strategy: String::new(),
            cluster,
            founding: 0,
            nodes,
            limits,
            timing,
            counters,
            gateway: None,
            passed: Cell::new(0),
            peers,
            leader: Cell::new(None),
            closing: Cell::new(false),
            connections: Cell::new(0),
            arrivals: RefCell::default(),
            requests: Cell::new(0),
            bell: Rc::default(),
        }
    }

    /// Leaves an input for the loop.
    pub(crate) fn arrived(&self, input: Input<H>) {
        self.arrivals.borrow_mut().push(Arrival::Input(input));
        self.bell.wake();
    }

    /// Leaves a request for the loop; at the limit, or while shutting down, an answer is put in line.
    pub(crate) fn requested(self: &Rc<Self>, connection: &Rc<Connection>, token: u64, request: ClientRequest)
    where
        H: 'static,
    {
        self.counters.requests.one();
        let gateway = self.gateway.as_ref().filter(|gateway| gateway.groups.contains(&request.group()));
        let refusal = if self.closing.get() {
            Rejection::ShuttingDown
        } else if let Some(gateway) = gateway {
            let passed = match request {
                ClientRequest::Call(call) => gateway::pass(self, &gateway.gateway, connection, token, call),
                ClientRequest::Follow { .. } => Err(Rejection::Unsupported),
            };
            match passed {
                Ok(()) => return,
                Err(rejection) => rejection,
            }
        } else if self.requests.get() >= self.limits.inbox_requests_max {
            self.counters.requests_busy.one();
            self.limits.busy()
        } else {
            self.requests.set(self.requests.get() + 1);
            let connection = Rc::clone(connection);
            self.arrivals.borrow_mut().push(match request {
                ClientRequest::Call(call) => Arrival::Request { connection, token, call },
                ClientRequest::Follow { group, from } => Arrival::Follow { connection, token, group, from },
            });
            return self.bell.wake();
        };
        let outcome = Outcome::Rejected(refusal);
        self.counters.ended(&outcome);
        connection.answer(token, &outcome);
    }

    /// Takes what arrived; ready if there was anything, or the bell was rung. `arrivals` must be empty and is swapped.
    pub(crate) fn poll_arrivals(&self, context: &Context<'_>, arrivals: &mut Vec<Arrival<H>>) -> Poll<()> {
        let mut waiting = self.arrivals.borrow_mut();
        if waiting.is_empty() && !self.bell.rung.take() {
            self.bell.wait(context);
            return Poll::Pending;
        }
        std::mem::swap(&mut *waiting, arrivals);
        self.requests.set(0);
        Poll::Ready(())
    }
}
