//! Change data capture over TCP: a connection of its own for each subscription, so that a slow subscriber holds up nothing
//! else; it goes on at another node, behind the last change, when its node is lost. At a client's home it waits for that very
//! node: where nobody leads, every node has an order of its own.
//!
//! Invariants: every change is handed out once and in log order, whatever connections it takes; what waits in memory is one
//! frame at most; a call that is dropped leaves everything where it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use replikit_core::{Change, Changes, Cursor, LogIndex, NodeId, Rejection, SubscribeError};
use tokio::net::TcpStream;

use super::{ClientTarget, Inner, Pause, lock};
use crate::changes::Unpacked;
use crate::socket::{self, GreetError};
use crate::wire::{FeedReply, FrameBuffer, Hello, PartyRole, RequestHead, decode_feed, encode_request};

/// The token of the only request of a connection.
const TOKEN: u64 = 1;
/// A peer that has vanished without a word is looked for after this time of silence.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A connection that brings changes.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    buffer: FrameBuffer,
}

impl Wire {
    /// The next frame; `None` if the connection has ended or does not speak the protocol.
    async fn next(&mut self, client: &Inner) -> Option<FeedReply> {
        loop {
            if let Some(frame) = self.buffer.next().ok()? {
                return decode_feed(frame, client.pool.cluster).ok();
            }
            match socket::read(&self.stream, &mut self.buffer).await {
                Ok(read) if read > 0 => self.buffer.filled(read),
                _ => return None,
            };
        }
    }
}

/// The changes of a group, over TCP.
#[derive(Debug)]
pub(super) struct ClientChanges {
    client: Arc<Inner>,
    wire: Option<Wire>,
    /// The only node that can go on.
    home: Option<NodeId>,
    unpacked: Unpacked,
    ended: Option<SubscribeError>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl ClientChanges {
    pub(super) async fn open(client: Arc<Inner>, from: Cursor) -> Result<Self, SubscribeError> {
        let (wire, next, node) = client.follow(from, None).await?;
        let equals = matches!(client.config.reads, ClientTarget::Home | ClientTarget::Fastest);
        let home = equals.then_some(node);
        Ok(Self { client, wire: Some(wire), home, unpacked: Unpacked::new(next), ended: None })
    }

    async fn advance(&mut self) -> Result<(), SubscribeError> {
        let Some(wire) = &mut self.wire else {
            self.wire = Some(self.client.follow(self.unpacked.cursor(), self.home).await?.0);
            return Ok(());
        };
        match wire.next(&self.client).await {
            Some(FeedReply::Batches(batches)) => batches.into_iter().for_each(|batch| self.unpacked.take(&batch)),
            Some(FeedReply::Ended(SubscribeError::Closed)) | None => self.wire = None,
            Some(FeedReply::Ended(why)) => return Err(why),
            Some(FeedReply::Begun(_)) => {}
        }
        Ok(())
    }
}

#[async_trait]
impl Changes for ClientChanges {
    async fn next(&mut self) -> Result<Change, SubscribeError> {
        loop {
            if let Some(change) = self.unpacked.pop() {
                return Ok(change);
            }
            if let Some(why) = &self.ended {
                return Err(why.clone());
            }
            if let Err(why) = self.advance().await {
                self.wire = None;
                self.ended = Some(why);
            }
        }
    }
}

impl Inner {
    /// A subscription at a node that takes it up, or at this one; the index at which it begins, and the node.
    async fn follow(&self, from: Cursor, at: Option<NodeId>) -> Result<(Wire, LogIndex, NodeId), SubscribeError> {
        let deadline = Instant::now() + self.config.request_time_max;
        let mut pause = Pause::new(self.config.retry_pause);
        loop {
            let node = at.unwrap_or_else(|| self.routes.aim(self.config.reads));
            let attempt = tokio::time::timeout(self.config.connect_time_max, self.follow_at(node, from));
            let last = match attempt.await.map_err(|_| GreetError::TimedOut) {
                Ok(Ok((wire, FeedReply::Begun(next)))) => return Ok((wire, next, node)),
                Ok(Ok((_, FeedReply::Ended(why)))) => match why {
                    SubscribeError::Rejected(Rejection::Busy { .. } | Rejection::ShuttingDown)
                    | SubscribeError::Closed => why,
                    why => return Err(why),
                },
                Ok(Ok((_, FeedReply::Batches(_)))) => SubscribeError::Closed,
                Ok(Err(error)) | Err(error) => SubscribeError::Unreachable { last: format!("node {node}: {error}") },
            };
            self.lost(node);
            if !pause.wait(deadline).await {
                return Err(last);
            }
        }
    }

    async fn follow_at(&self, node: NodeId, from: Cursor) -> Result<(Wire, FeedReply), GreetError> {
        let known = self.pool.nodes.get(&node).map(|known| lock(&known.address).clone());
        let address = known.ok_or_else(|| GreetError::Protocol(format!("node {node} is not known")))?;
        let stream = socket::connect(&address, self.config.request_time_max).await?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let (_, rest) = socket::greet(&stream, &Hello::new(self.pool.cluster, PartyRole::Client)).await?;
        let mut request = BytesMut::new();
        encode_request(TOKEN, &RequestHead::Follow { group: self.config.group, from }, &[], &mut request);
        socket::write_all(&stream, &request).await?;
        let mut wire = Wire { stream, buffer: FrameBuffer::new(rest, self.config.frame_bytes_max) };
        let first = wire.next(self).await;
        first.map(|first| (wire, first)).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
    }
}
