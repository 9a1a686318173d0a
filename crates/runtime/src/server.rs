//! The accepting side: greetings, peers' messages, clients' requests and their answers.
//!
//! Invariants: whatever breaks the format closes its own connection and is counted, and touches nothing else; a connection
//! has at most `requests_per_connection_max` requests and about `client_queue_bytes_max` bytes of answers open, and is not
//! read any further beyond that.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::BytesMut;
use replikit_core::{Batches, Input, LogIndex, NodeId, Outcome, Replica, SubscribeError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::counters::{Counters, NodeStatus};
use crate::feed::Subscriber;
use crate::net::{Bell, Net};
use crate::socket;
use crate::wire::{
    Flushed, FrameBuffer, FrameError, GREETING_BYTES_MAX, Hello, Outbox, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN,
    PartyRole, Welcome, decode_message, decode_request, encode_answer, encode_changes, encode_status,
    encode_subscribed, encode_unsubscribed, refusal,
};

/// A client's connection, as the loop sees it.
pub(crate) struct Connection {
    stream: TcpStream,
    outbox: RefCell<Outbox>,
    /// The socket took no more; a task waits until it does.
    blocked: Cell<bool>,
    /// Among those that the loop flushes at the end of its round.
    pub(crate) dirty: Cell<bool>,
    requests: Cell<usize>,
    /// Subscriptions among the requests.
    subscriptions: Cell<usize>,
    /// The loop's: rung when a subscriber's socket takes more.
    bell: Rc<Bell>,
    /// Somebody waits for fewer requests or bytes.
    room: Notify,
}

impl Connection {
    fn new(stream: TcpStream, bell: Rc<Bell>) -> Self {
        Self {
            stream,
            outbox: RefCell::default(),
            blocked: Cell::new(false),
            dirty: Cell::new(false),
            requests: Cell::new(0),
            subscriptions: Cell::new(0),
            bell,
            room: Notify::new(),
        }
    }

    /// Puts an answer in line.
    pub(crate) fn answer(&self, token: u64, outcome: &Outcome) {
        encode_answer(token, outcome, &mut self.outbox.borrow_mut());
        self.requests.set(self.requests.get() - 1);
    }

    /// Puts a status in line.
    pub(crate) fn answer_status(&self, token: u64, status: &NodeStatus) {
        encode_status(token, status, &mut self.outbox.borrow_mut());
        self.requests.set(self.requests.get() - 1);
    }

    /// A subscription begins: its changes come under the token of its request.
    fn begin_changes(&self, token: u64, next: LogIndex) {
        self.subscriptions.set(self.subscriptions.get() + 1);
        encode_subscribed(token, next, &mut self.outbox.borrow_mut());
    }

    fn end_changes(&self, token: u64, why: &SubscribeError) {
        encode_unsubscribed(token, why, &mut self.outbox.borrow_mut());
        self.subscriptions.set(self.subscriptions.get().saturating_sub(1));
        self.requests.set(self.requests.get() - 1);
    }

    /// Writes what waits, with one system call if the socket takes it.
    pub(crate) fn flush(self: &Rc<Self>, counters: &Arc<Counters>) {
        if !self.blocked.get() && matches!(self.outbox.borrow_mut().flush(&self.stream, counters), Ok(Flushed::Blocked))
        {
            self.blocked.set(true);
            tokio::task::spawn_local(Rc::clone(self).flush_when_writable(Arc::clone(counters)));
        }
    }

    /// Lets the reading side go on if it waits for room.
    pub(crate) fn made_room(&self) {
        self.room.notify_one();
    }

    async fn flush_when_writable(self: Rc<Self>, counters: Arc<Counters>) {
        while self.stream.writable().await.is_ok() {
            if !matches!(self.outbox.borrow_mut().flush(&self.stream, &counters), Ok(Flushed::Blocked)) {
                break;
            }
        }
        self.blocked.set(false);
        self.room.notify_one();
        if self.subscriptions.get() > 0 {
            self.bell.ring();
        }
    }

    fn is_full<H>(&self, net: &Net<H>) -> bool {
        self.requests.get() >= net.limits.requests_per_connection_max
            || self.outbox.borrow().bytes() >= net.limits.client_queue_bytes_max
    }
}

/// A subscriber over TCP. The connection ends with its reading task, and the subscription with it.
pub(crate) struct RemoteSubscriber {
    connection: Weak<Connection>,
    token: u64,
    bytes_max: usize,
    counters: Arc<Counters>,
}

impl RemoteSubscriber {
    pub(crate) fn new<H>(connection: &Rc<Connection>, token: u64, net: &Net<H>) -> Self {
        let (bytes_max, counters) = (net.limits.subscription_bytes_max, Arc::clone(&net.counters));
        Self { connection: Rc::downgrade(connection), token, bytes_max, counters }
    }

    fn tell(&self, tell: impl FnOnce(&Connection)) {
        if let Some(connection) = self.connection.upgrade() {
            tell(&connection);
            connection.flush(&self.counters);
        }
    }
}

impl Subscriber for RemoteSubscriber {
    fn is_gone(&self) -> bool {
        self.connection.strong_count() == 0
    }

    fn has_room(&self) -> bool {
        self.connection.upgrade().is_some_and(|connection| connection.outbox.borrow().bytes() <= self.bytes_max / 2)
    }

    fn begin(&self, next: LogIndex) {
        self.tell(|connection| connection.begin_changes(self.token, next));
    }

    fn give(&self, batches: Batches) {
        self.tell(|connection| encode_changes(self.token, &batches, &mut connection.outbox.borrow_mut()));
    }

    fn end(&self, why: SubscribeError) {
        self.tell(|connection| connection.end_changes(self.token, &why));
    }
}

/// Accepts connections, for ever.
pub(crate) async fn accept<R: Replica + 'static>(net: Rc<Net<R::Head>>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                net.counters.connections_accepted.one();
                let net = Rc::clone(&net);
                tokio::task::spawn_local(async move {
                    net.connections.set(net.connections.get() + 1);
                    if let Err(end) = serve::<R>(&net, stream).await {
                        tracing::debug!(%address, %end, "connection closed");
                    }
                    net.connections.set(net.connections.get() - 1);
                });
            }
            Err(error) => {
                // Most likely out of file descriptors: what is accepted already goes on.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(net.timing.reconnect_pause_min).await;
            }
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other side closed it")]
    Closed,
    #[error("no greeting in time")]
    Silent,
    #[error("refused: {0}")]
    Refused(String),
}

async fn serve<R: Replica>(net: &Rc<Net<R::Head>>, stream: TcpStream) -> Result<(), End> {
    socket::prepare(&stream, net.timing.unacknowledged_time_max)?;
    let mut buffer = FrameBuffer::new(BytesMut::new(), GREETING_BYTES_MAX);
    let hello = async {
        let frame = loop {
            if let Some(frame) = counted(net, buffer.next())? {
                break frame;
            }
            if socket::read(&stream, &mut buffer).await? == 0 {
                return Err(End::Closed);
            }
        };
        Ok(counted(net, Hello::decode(&frame))?)
    };
    let hello = tokio::time::timeout(net.timing.connect_time_max, hello).await.map_err(|_| End::Silent)??;
    if let Err(reason) = admit(net, &hello) {
        net.counters.handshakes_refused.one();
        tracing::warn!(reason, "connection refused");
        socket::write_all(&stream, &refusal(&reason)).await?;
        return Err(End::Refused(reason));
    }
    let version = hello.version_max.min(PROTOCOL_VERSION);
    let welcome = Welcome { version, node: net.node, leader: net.leader.get(), nodes: net.nodes.clone() };
    socket::write_all(&stream, &welcome.encode()).await?;
    match hello.role {
        PartyRole::Peer(peer) => hear_peer::<R>(net, &stream, buffer.into_bytes(), peer).await,
        PartyRole::Client => hear_client(net, stream, buffer.into_bytes()).await,
    }
}

/// Whether this connection may go on, or the one-line reason why not.
fn admit<H>(net: &Net<H>, hello: &Hello) -> Result<(), String> {
    if hello.version_max < PROTOCOL_VERSION_MIN || hello.version_min > PROTOCOL_VERSION {
        return Err(format!(
            "no common protocol version: this node speaks {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}, you speak {} to {}",
            hello.version_min, hello.version_max
        ));
    }
    if hello.cluster != net.cluster {
        return Err(format!("this node belongs to cluster {:?}, you ask for {:?}", net.cluster, hello.cluster));
    }
    if let PartyRole::Peer(node) = hello.role {
        if node == net.node {
            return Err(format!("node {node} is this node itself: two nodes have the same id"));
        }
        if hello.founding != net.founding {
            return Err(format!(
                "node {node} was founded with other options than node {}: all nodes of a cluster are started with the same",
                net.node
            ));
        }
        if !net.peers.contains_key(&node) {
            return Err(format!("node {node} is not a member of this cluster"));
        }
    }
    if net.connections.get() > net.limits.connections_max {
        return Err(format!("this node has {} connections, its limit", net.limits.connections_max));
    }
    Ok(())
}

fn counted<H, T>(net: &Net<H>, result: Result<T, FrameError>) -> Result<T, FrameError> {
    if result.is_err() {
        net.counters.frames_bad.one();
    }
    result
}

async fn read<H>(net: &Net<H>, stream: &TcpStream, buffer: &mut FrameBuffer) -> Result<(), End> {
    let read = socket::read(stream, buffer).await?;
    if read == 0 {
        return Err(End::Closed);
    }
    net.counters.socket_reads.one();
    net.counters.bytes_received.add(read as u64);
    if buffer.filled(read) {
        // More is waiting, most likely: the loop and the other connections get their turn first.
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn hear_peer<R: Replica>(
    net: &Rc<Net<R::Head>>,
    stream: &TcpStream,
    bytes: BytesMut,
    peer: NodeId,
) -> Result<(), End> {
    if let Some(link) = net.peers.get(&peer) {
        link.dial_now();
    }
    let mut buffer = FrameBuffer::new(bytes, net.limits.peer_frame_bytes_max);
    loop {
        while let Some(frame) = counted(net, buffer.next())? {
            let message = counted(net, decode_message(frame, net.cluster))?;
            net.counters.messages_received.one();
            net.arrived(Input::Message { from: peer, message });
        }
        read(net, stream, &mut buffer).await?;
    }
}

async fn hear_client<H: 'static>(net: &Rc<Net<H>>, stream: TcpStream, bytes: BytesMut) -> Result<(), End> {
    let connection = Rc::new(Connection::new(stream, Rc::clone(&net.bell)));
    let mut buffer = FrameBuffer::new(bytes, net.limits.client_frame_bytes_max);
    loop {
        while let Some(frame) = counted(net, buffer.next())? {
            let (token, request) = counted(net, decode_request(frame))?;
            connection.requests.set(connection.requests.get() + 1);
            net.requested(&connection, token, request);
            while connection.is_full(net) {
                connection.flush(&net.counters);
                connection.room.notified().await;
            }
        }
        // Refusals do not pass through the loop.
        if !connection.dirty.get() && connection.outbox.borrow().bytes() > 0 {
            connection.flush(&net.counters);
        }
        read(net, &connection.stream, &mut buffer).await?;
    }
}
