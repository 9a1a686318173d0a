//! A gateway: requests of clients that are for no group of this node in particular, answered by whoever knows where they
//! belong.
//!
//! Invariants: every request that a gateway takes is answered once; how many are under way is limited by
//! [`Limits::inbox_requests_max`](crate::Limits::inbox_requests_max). It runs on the node's thread, so it must not block.

use std::rc::Rc;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use replikit_core::{Admin, GroupId, Outcome, ReadLevel, Rejection, SessionSeq, Status, WriteLevel};

use crate::call::Call;
use crate::counters::NodeStatus;
use crate::net::Net;
use crate::server::Connection;

/// What a client asks of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GatewayCall {
    /// To have a command applied.
    Command {
        /// When it counts as done.
        level: WriteLevel,
        /// For exactly-once retries.
        session: Option<SessionSeq>,
        /// The command.
        body: Bytes,
    },
    /// For a session, as [`Input::OpenSession`](replikit_core::Input::OpenSession) does.
    OpenSession,
    /// A question.
    Query {
        /// How fresh the answer must be.
        level: ReadLevel,
        /// The question.
        body: Bytes,
        /// Largest answer, in bytes.
        bytes_max: usize,
    },
    /// To describe itself: answered by [`Outcome::Value`] with one encoded [`Status`].
    Status,
}

/// Answers requests for groups that are none of the node's own.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// Called for each request, with the group that it names, on the node's thread; many are under way at a time. Must not block.
    async fn call(&self, group: GroupId, call: GatewayCall) -> Outcome;
}

/// A gateway, and the groups that its clients name.
#[derive(Clone)]
pub struct GatewayAt {
    /// The groups: none that the node's replica has.
    pub groups: Vec<GroupId>,
    /// Who answers.
    pub gateway: Arc<dyn Gateway>,
}

impl std::fmt::Debug for GatewayAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayAt").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// A request in the words of a gateway; the rejection of what no gateway answers.
fn translated(call: Call) -> Result<GatewayCall, Rejection> {
    Ok(match call {
        Call::Command { level, session, body, .. } => GatewayCall::Command { level, session, body },
        Call::OpenSession { .. } => GatewayCall::OpenSession,
        Call::Query { level, body, bytes_max, .. } => GatewayCall::Query { level, body, bytes_max },
        Call::Admin { command: Admin::Status, .. } => GatewayCall::Status,
        Call::Admin { .. } => return Err(Rejection::Unsupported),
    })
}

/// Has the gateway answer a request; `Err` with why it does not.
pub(crate) fn pass<H: 'static>(
    net: &Rc<Net<H>>,
    gateway: &Arc<dyn Gateway>,
    connection: &Rc<Connection>,
    token: u64,
    call: Call,
) -> Result<(), Rejection> {
    if net.passed.get() >= net.limits.inbox_requests_max {
        net.counters.requests_busy.one();
        return Err(net.limits.busy());
    }
    let group = call.group();
    let call = translated(call)?;
    let (net, gateway, connection) = (Rc::clone(net), Arc::clone(gateway), Rc::clone(connection));
    net.passed.set(net.passed.get() + 1);
    tokio::task::spawn_local(async move {
        let describes = call == GatewayCall::Status;
        let outcome = gateway.call(group, call).await;
        net.passed.set(net.passed.get() - 1);
        net.counters.ended(&outcome);
        match status(&net, &outcome).filter(|_| describes) {
            Some(status) => connection.answer_status(token, &status),
            None => connection.answer(token, &outcome),
        }
        if connection.dirty.replace(true) {
            return;
        }
        // What else is answered in this turn goes out with it.
        tokio::task::yield_now().await;
        connection.dirty.set(false);
        connection.flush(&net.counters);
        connection.made_room();
    });
    Ok(())
}

fn status<H>(net: &Net<H>, outcome: &Outcome) -> Option<NodeStatus> {
    let Outcome::Value { values, .. } = outcome else { return None };
    let replica = Status::decode(values.first()?)?;
    let strategy = net.strategy.clone();
    Some(NodeStatus { node: net.node, strategy, replica, counters: net.counters.snapshot() })
}
