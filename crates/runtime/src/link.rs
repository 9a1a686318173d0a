//! The link to one peer: a connection that this node dials and only sends on; the peer's own serves the other direction.
//!
//! Two connections per pair need no rule of who dials and nothing to resolve when both do. Invariants: what waits for the
//! peer is bounded in bytes; a message is dropped whole or sent whole; the replica hears `Up` when the link stands, `Reset`
//! when it breaks, and `Down` once when it cannot be made.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use replikit_core::{Input, Link, Message, NodeId};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::counters::Counters;
use crate::net::Net;
use crate::socket::{self, GreetError};
use crate::wire::{Flushed, Hello, Outbox, PartyRole, encode_message};

/// The sending side of one peer.
pub(crate) struct PeerLink {
    pub(crate) id: NodeId,
    address: String,
    stream: RefCell<Option<Rc<TcpStream>>>,
    outbox: RefCell<Outbox>,
    /// The socket took no more; a task waits until it does.
    blocked: Cell<bool>,
    /// The peer has dialled this node, so it is worth dialling at once.
    redial: Notify,
}

impl PeerLink {
    pub(crate) fn new(id: NodeId, address: String) -> Self {
        Self {
            id,
            address,
            stream: RefCell::default(),
            outbox: RefCell::default(),
            blocked: Cell::new(false),
            redial: Notify::new(),
        }
    }

    /// Puts a message in line; dropped, and counted, without a connection or at the queue's limit.
    pub(crate) fn send<H: Serialize, I>(&self, message: &Message<H>, net: &Net<I>) {
        let mut outbox = self.outbox.borrow_mut();
        let room = outbox.bytes() + message.batches.bytes() <= net.limits.peer_queue_bytes_max;
        let sent = self.stream.borrow().is_some()
            && room
            && encode_message(message, net.limits.peer_frame_bytes_max, &mut outbox).is_some();
        if sent {
            net.counters.messages_sent.one();
        } else {
            net.counters.messages_dropped.one();
        }
    }

    /// Writes what waits, with one system call if the socket takes it.
    pub(crate) fn flush(self: &Rc<Self>, counters: &std::sync::Arc<Counters>) {
        if self.blocked.get() || self.outbox.borrow().bytes() == 0 {
            return;
        }
        let Some(stream) = self.stream.borrow().clone() else { return };
        if let Ok(Flushed::Blocked) = self.outbox.borrow_mut().flush(&stream, counters) {
            self.blocked.set(true);
            tokio::task::spawn_local(Rc::clone(self).flush_when_writable(stream, std::sync::Arc::clone(counters)));
        }
        // After an error the reading side of the socket ends as well, and with it the link.
    }

    async fn flush_when_writable(self: Rc<Self>, stream: Rc<TcpStream>, counters: std::sync::Arc<Counters>) {
        loop {
            let writable = stream.writable().await;
            let same = self.stream.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, &stream));
            if writable.is_err() || !same {
                return;
            }
            if !matches!(self.outbox.borrow_mut().flush(&stream, &counters), Ok(Flushed::Blocked)) {
                return self.blocked.set(false);
            }
        }
    }

    /// Called when the peer has dialled this node.
    pub(crate) fn dial_now(&self) {
        if self.stream.borrow().is_none() {
            self.redial.notify_one();
        }
    }

    fn attach(&self, stream: Rc<TcpStream>) {
        *self.stream.borrow_mut() = Some(stream);
    }

    fn detach(&self) {
        *self.stream.borrow_mut() = None;
        self.outbox.borrow_mut().clear();
        self.blocked.set(false);
    }
}

/// Keeps the link to a peer standing, for ever.
pub(crate) async fn keep<H>(net: Rc<Net<H>>, link: Rc<PeerLink>) {
    let (pause_min, pause_max) = (net.timing.reconnect_pause_min, net.timing.reconnect_pause_max);
    let mut pause = pause_min;
    let mut told_down = false;
    let mut refused = None;
    loop {
        match dial(&net, &link.address).await {
            Ok(stream) => {
                (pause, told_down, refused) = (pause_min, false, None);
                let stream = Rc::new(stream);
                net.counters.peer_connects.one();
                tracing::info!(peer = %link.id, address = link.address, "connected");
                link.attach(Rc::clone(&stream));
                net.arrived(Input::Peer { node: link.id, link: Link::Up });
                let end = until_it_ends(&stream).await;
                link.detach();
                net.counters.peer_disconnects.one();
                tracing::info!(peer = %link.id, %end, "connection lost");
                net.arrived(Input::Peer { node: link.id, link: Link::Reset });
            }
            // What an operator has to mend, and not to wait for.
            Err(GreetError::Refused(reason)) if refused.as_ref() != Some(&reason) => {
                tracing::warn!(peer = %link.id, address = link.address, reason, "it refuses this node");
                refused = Some(reason);
                if !told_down {
                    told_down = true;
                    net.arrived(Input::Peer { node: link.id, link: Link::Down });
                }
            }
            Err(error) if !told_down => {
                told_down = true;
                tracing::info!(peer = %link.id, address = link.address, %error, "cannot connect; trying again");
                net.arrived(Input::Peer { node: link.id, link: Link::Down });
            }
            Err(error) => tracing::debug!(peer = %link.id, %error, "cannot connect"),
        }
        let asked = tokio::time::timeout(jittered(pause), link.redial.notified()).await.is_ok();
        pause = if asked { pause_min } else { (pause * 2).min(pause_max) };
    }
}

/// Between half of it and all of it, so that nodes that lost each other at the same moment do not dial in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

async fn dial<H>(net: &Net<H>, address: &str) -> Result<TcpStream, GreetError> {
    let hello = Hello::new(net.cluster, PartyRole::Peer(net.node)).founded(net.founding);
    let greeting = async {
        let stream = socket::connect(address, net.timing.unacknowledged_time_max).await?;
        let (welcome, rest) = socket::greet(&stream, &hello).await?;
        if !rest.is_empty() {
            return Err(GreetError::Protocol("bytes behind the welcome".into()));
        }
        Ok((stream, welcome))
    };
    let (stream, _welcome) =
        tokio::time::timeout(net.timing.connect_time_max, greeting).await.map_err(|_| GreetError::TimedOut)??;
    Ok(stream)
}

/// Nothing comes back on this connection but its end.
async fn until_it_ends(stream: &TcpStream) -> io::Error {
    let mut nothing = BytesMut::with_capacity(16);
    loop {
        if let Err(error) = stream.readable().await {
            return error;
        }
        match stream.try_read_buf(&mut nothing) {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => return io::ErrorKind::InvalidData.into(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}
