//! What a run is about: the clients that use the cluster, and the checks that watch it.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{Action, Event, GroupId, Input, NodeId, Outcome, Replica, Time, Token, WriteId};

use crate::fault::FaultCounts;
use crate::storage::Recovery;

/// The live replicas of a cluster.
pub trait Replicas<R> {
    /// The replica of a node; `None` while it is down.
    fn replica(&self, node: NodeId) -> Option<&R>;

    /// All nodes, also those that are down, ascending.
    fn nodes(&self) -> Vec<NodeId>;
}

/// What the clients of a run may do. Clients are numbered; each has one alarm at a time under way, or several.
#[derive(Debug)]
pub struct Clients<H> {
    /// True time.
    pub now: Time,
    /// The clients' own randomness: what they do does not change what faults the seed draws.
    pub rng: Rng,
    /// Faults that clients are the cause of.
    pub counts: FaultCounts,
    next_token: u64,
    pub(crate) requests: Vec<(NodeId, Input<H>)>,
    pub(crate) alarms: Vec<(u32, Duration)>,
}

impl<H> Clients<H> {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            now: Time::ZERO,
            rng,
            counts: FaultCounts::default(),
            next_token: 1,
            requests: Vec::new(),
            alarms: Vec::new(),
        }
    }

    /// Sends a request to a node; it is lost when the node is down or crashes before it answers.
    pub fn request(&mut self, node: NodeId, input: impl FnOnce(Token) -> Input<H>) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.requests.push((node, input(token)));
        token
    }

    /// Like [`Clients::request`], if there is such a request.
    pub fn try_request(&mut self, node: NodeId, input: impl FnOnce(Token) -> Option<Input<H>>) -> Option<Token> {
        let token = Token(self.next_token);
        self.requests.push((node, input(token)?));
        self.next_token += 1;
        Some(token)
    }

    /// Wakes a client after a while: [`Subject::on_alarm`].
    pub fn alarm(&mut self, client: u32, after: Duration) {
        self.alarms.push((client, after));
    }
}

/// Watches a run and, if it has clients, drives them. Every method is called in an order that the seed decides alone.
pub trait Subject<R: Replica> {
    /// A client's alarm rings. Client 0 rings once at the beginning.
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<R::Head>) {
        let _ = (client, clients);
    }

    /// A process begins on what its disk holds.
    ///
    /// # Errors
    /// A sentence that says which guarantee was broken.
    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        let _ = (node, recovery);
        Ok(())
    }

    /// A replica wants something done; it is carried out right after.
    ///
    /// # Errors
    /// A sentence that says which guarantee was broken.
    fn on_action(&mut self, node: NodeId, action: &Action<R::Head>) -> Result<(), String> {
        let _ = (node, action);
        Ok(())
    }

    /// A node's storage actions up to this one are durable; its replica hears of it next.
    fn on_durable(&mut self, node: NodeId, up_to: WriteId) {
        let _ = (node, up_to);
    }

    /// A request has ended.
    ///
    /// # Errors
    /// A sentence that says which guarantee was broken.
    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<R::Head>,
    ) -> Result<(), String> {
        let _ = (node, token, outcome, clients);
        Ok(())
    }

    /// A replica reported something.
    ///
    /// # Errors
    /// A sentence that says which guarantee was broken.
    fn on_event(&mut self, node: NodeId, group: GroupId, event: &Event) -> Result<(), String> {
        let _ = (node, group, event);
        Ok(())
    }

    /// A process ended; its open requests are never answered.
    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<R::Head>) {
        let _ = (node, clients);
    }

    /// Called after every round of a replica: the place of invariants. `node` is the one that has just run.
    ///
    /// # Errors
    /// A sentence that says which invariant is broken.
    fn check(&mut self, node: NodeId, replicas: &impl Replicas<R>) -> Result<(), String> {
        let _ = (node, replicas);
        Ok(())
    }
}

/// A subject without clients and checks.
impl<R: Replica> Subject<R> for () {}
