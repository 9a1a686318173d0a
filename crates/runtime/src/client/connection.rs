//! One connection of a client: requests of many tasks go out in one write, answers of many come in with one read.
//!
//! Invariants: every request ends: by its answer, by its time limit, or with the connection; an answer to a request that
//! ended is dropped.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use replikit_core::{GroupId, Token};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Pool, lock};
use crate::requests::Requests;
use crate::slot::{Completion, Ending, SlotCache};
use crate::socket::{self, GreetError};
use crate::wire::{FrameBuffer, Hello, PartyRole, Reply, RequestHead, Welcome, decode_reply, encode_request};

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    /// The connection was lost, or given up because another node leads.
    #[error("the connection was lost")]
    Lost,
    /// No answer by the time limit.
    #[error("no answer in time")]
    TimedOut,
    /// The connection had ended before the request was sent.
    #[error("the connection had ended")]
    NotSent,
}

impl Ended {
    pub(super) const fn may_have_arrived(self) -> bool {
        match self {
            Self::Lost | Self::TimedOut => true,
            Self::NotSent => false,
        }
    }
}

type End = Result<Reply, Ended>;

impl Ending for End {
    fn abandoned() -> Self {
        Err(Ended::Lost)
    }
}

struct Pending {
    group: GroupId,
    completion: Completion<End>,
    deadline: Instant,
}

struct State {
    out: BytesMut,
    pending: Requests<Pending>,
    /// The writing task, while it has nothing to do.
    writer: Option<Waker>,
}

/// A greeted connection and the tasks that serve it; they end with it.
pub(super) struct Connection {
    stream: TcpStream,
    welcome: Welcome,
    requests_max: usize,
    state: Mutex<State>,
    slots: SlotCache<End>,
    closed: AtomicBool,
    /// Some request has ended: those that wait for a place may try again.
    room: Notify,
    zero: Instant,
    /// When the node was last heard, in nanoseconds since `zero`.
    heard_nanos: AtomicU64,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("node", &self.welcome.node).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) async fn dial(pool: &Arc<Pool>, address: &str) -> Result<Arc<Self>, GreetError> {
        let config = &pool.config;
        let stream = socket::connect(address, config.request_time_max).await?;
        let (welcome, rest) = socket::greet(&stream, &Hello::new(pool.cluster, PartyRole::Client)).await?;
        let connection = Arc::new(Self {
            stream,
            welcome,
            requests_max: config.requests_per_connection_max.max(1),
            state: Mutex::new(State { out: BytesMut::new(), pending: Requests::new(), writer: None }),
            slots: SlotCache::new(),
            closed: AtomicBool::new(false),
            room: Notify::new(),
            zero: Instant::now(),
            heard_nanos: AtomicU64::new(0),
        });
        let buffer = FrameBuffer::new(rest, config.frame_bytes_max);
        tokio::spawn(Arc::clone(&connection).read(buffer));
        tokio::spawn(Arc::clone(&connection).write());
        tokio::spawn(watching(Arc::downgrade(&connection), Arc::downgrade(pool), config.silence_max));
        Ok(connection)
    }

    pub(super) const fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its end.
    pub(super) async fn request(&self, group: GroupId, head: &RequestHead, body: &[u8], deadline: Instant) -> End {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            if self.has_room() {
                break;
            }
            // Registered before looking again: an end in between is not missed.
            room.as_mut().enable();
            if self.has_room() {
                break;
            }
            if tokio::time::timeout_at(deadline.into(), room).await.is_err() {
                return Err(Ended::NotSent);
            }
        }
        self.slots.request(|completion| self.submit(head, body, Pending { group, completion, deadline })).await
    }

    fn has_room(&self) -> bool {
        self.is_closed() || lock(&self.state).pending.len() < self.requests_max
    }

    fn submit(&self, head: &RequestHead, body: &[u8], pending: Pending) {
        let mut state = lock(&self.state);
        // Under the lock: whoever closes the connection takes it to end all requests.
        if self.is_closed() {
            drop(state);
            drop(pending.completion.end(Err(Ended::NotSent)));
            return;
        }
        if state.pending.len() == 0 {
            // Silence counts from the first request that is owed an answer.
            self.hear();
        }
        let Token(token) = state.pending.insert(pending);
        encode_request(token, head, body, &mut state.out);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    fn hear(&self) {
        let nanos = u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.heard_nanos.store(nanos, Ordering::Relaxed);
    }

    /// For how long the node has owed answers and said nothing; zero if it owes none.
    pub(super) fn owes_for(&self) -> Duration {
        let owes = lock(&self.state).pending.len() > 0;
        if owes { self.silent_for() } else { Duration::ZERO }
    }

    fn silent_for(&self) -> Duration {
        self.zero.elapsed().saturating_sub(Duration::from_nanos(self.heard_nanos.load(Ordering::Relaxed)))
    }

    /// Ends the connection and everything under way on it.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        self.closed.store(true, Ordering::Release);
        let pending = state.pending.drain();
        let writer = state.writer.take();
        drop(state);
        for pending in pending {
            wake(pending.completion.end(Err(Ended::Lost)));
        }
        wake(writer);
        self.room.notify_waiters();
        // The reading task is woken by the end of the stream.
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Both);
    }

    async fn write(self: Arc<Self>) {
        let mut bytes = BytesMut::new();
        loop {
            poll_fn(|context| {
                let mut state = lock(&self.state);
                if state.out.is_empty() && !self.is_closed() {
                    state.writer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                std::mem::swap(&mut state.out, &mut bytes);
                Poll::Ready(())
            })
            .await;
            if self.is_closed() || self.write_out(&mut bytes).await.is_err() {
                return self.close();
            }
        }
    }

    async fn write_out(&self, bytes: &mut BytesMut) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        bytes.clear();
        Ok(())
    }

    async fn read(self: Arc<Self>, mut buffer: FrameBuffer) {
        let mut replies = Vec::new();
        let mut ended = Vec::new();
        loop {
            let whole = loop {
                match buffer.next() {
                    Ok(Some(frame)) => match decode_reply(frame) {
                        Ok(reply) => replies.push(reply),
                        Err(error) => break Err(error),
                    },
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            if !replies.is_empty() {
                self.hear();
                let mut state = lock(&self.state);
                for (token, reply) in replies.drain(..) {
                    ended.extend(state.pending.take(Token(token)).map(|pending| (pending.completion, reply)));
                }
                drop(state);
                for (completion, reply) in ended.drain(..) {
                    wake(completion.end(Ok(reply)));
                }
                self.room.notify_waiters();
            }
            if let Err(error) = whole {
                tracing::warn!(node = %self.welcome.node, %error, "the node broke the protocol");
                return self.close();
            }
            match socket::read(&self.stream, &mut buffer).await {
                Ok(read) if read > 0 => {
                    buffer.filled(read);
                }
                _ => return self.close(),
            }
        }
    }

    /// Ends the requests whose time is over; the group of one that is left.
    fn expire(&self, now: Instant) -> Option<GroupId> {
        let mut state = lock(&self.state);
        let late = state.pending.take_if(|pending| pending.deadline <= now);
        let left = state.pending.first().map(|pending| pending.group);
        drop(state);
        if !late.is_empty() {
            for pending in late {
                wake(pending.completion.end(Err(Ended::TimedOut)));
            }
            self.room.notify_waiters();
        }
        left
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// [`watch`] as a trait object: it may dial, and dialling starts it.
fn watching(connection: Weak<Connection>, pool: Weak<Pool>, silence_max: Duration) -> Watching {
    Box::pin(watch(connection, pool, silence_max))
}

type Watching = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Ends late requests, and the connection if its node has fallen silent while another one leads.
async fn watch(connection: Weak<Connection>, pool: Weak<Pool>, silence_max: Duration) {
    let mut tick = tokio::time::interval((silence_max / 4).clamp(Duration::from_millis(1), Duration::from_millis(50)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(connection) = connection.upgrade().filter(|connection| !connection.is_closed()) else { return };
        let Some(pool) = pool.upgrade() else { return connection.close() };
        // A node that stands still owes for all its groups: one of them tells.
        let owed = connection.expire(Instant::now()).filter(|_| connection.silent_for() >= silence_max);
        if let Some(client) = owed.and_then(|group| pool.client_of(group)) {
            let node = connection.welcome.node;
            if client.leads_elsewhere(node).await && connection.silent_for() >= silence_max {
                tracing::info!(%node, "fell silent while another node leads");
                connection.close();
            }
        }
    }
}
