//! The baseline's client: a [`Store`] over one connection, any number of requests under way.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use replikit_core::keyspace::{decode_effect, decode_page, decode_value, encode_get, encode_scan, encode_write};
use replikit_core::{
    Changes, Cursor, Guarantees, LogId, Page, Position, Reached, ReadError, ReadRequest, ReadResult, Rejection,
    ScanRequest, Store, StreamId, SubscribeError, WriteError, WriteLevel, WriteRequest, Written,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::wire::{Frame, Kind};
use super::{Architecture, guarantees};

/// A connection to the baseline; closed when the last clone is gone.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    architecture: Architecture,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    out: BytesMut,
    waiting: HashMap<u64, oneshot::Sender<Bytes>>,
    token: u64,
    /// Why the connection ended.
    closed: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with the lock held")
    }

    fn close(&self, why: String) {
        let mut state = self.state();
        state.closed.get_or_insert(why);
        // Whoever waits learns it from the dropped sender.
        state.waiting.clear();
        self.more.notify_one();
    }
}

impl Client {
    /// Connects. Its tasks live on the current runtime.
    pub(super) async fn connect(address: SocketAddr, architecture: Architecture) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let shared = Arc::new(Shared::default());
        tokio::spawn(receive(reader, shared.clone()));
        tokio::spawn(send(writer, shared.clone()));
        Ok(Self { shared, architecture })
    }

    /// The answer to one request; the error says why the connection ended.
    pub(super) async fn call(&self, kind: Kind, body: &[u8]) -> Result<Bytes, String> {
        let answer = {
            let mut state = self.shared.state();
            if let Some(why) = &state.closed {
                return Err(why.clone());
            }
            let (sender, receiver) = oneshot::channel();
            state.token += 1;
            let token = state.token;
            let idle = state.out.is_empty();
            state.waiting.insert(token, sender);
            Frame::put(kind, token, body, &mut state.out);
            drop(state);
            if idle {
                self.shared.more.notify_one();
            }
            receiver
        };
        answer
            .await
            .map_err(|_| self.shared.state().closed.clone().unwrap_or_else(|| "the connection ended".to_owned()))
    }

    /// Calls of fsync and fdatasync, and bytes written to disk, by the process at the other end.
    pub(super) async fn counted(&self) -> Result<(u64, u64), String> {
        let answer = self.call(Kind::Counted, &[]).await?;
        let (fsyncs, bytes) = answer.split_first_chunk::<8>().ok_or("a count of another length")?;
        let bytes = bytes.try_into().map_err(|_| "a count of another length")?;
        Ok((u64::from_le_bytes(*fsyncs), u64::from_le_bytes(bytes)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.close("the client is gone".to_owned());
    }
}

async fn send(mut writer: OwnedWriteHalf, shared: Arc<Shared>) {
    loop {
        let (out, closed) = {
            let mut state = shared.state();
            (state.out.split(), state.closed.is_some())
        };
        if closed {
            return;
        }
        if out.is_empty() {
            shared.more.notified().await;
        } else if let Err(error) = writer.write_all(&out).await {
            shared.close(error.to_string());
        }
    }
}

async fn receive(mut reader: OwnedReadHalf, shared: Arc<Shared>) {
    let mut read = BytesMut::new();
    loop {
        match reader.read_buf(&mut read).await {
            Ok(0) => return shared.close("the server closed the connection".to_owned()),
            Ok(_) => {}
            Err(error) => return shared.close(error.to_string()),
        }
        loop {
            match Frame::take(&mut read) {
                Ok(Some(frame)) => {
                    let waiting = shared.state().waiting.remove(&frame.token);
                    if let Some(waiting) = waiting {
                        // Whoever asked may have gone meanwhile.
                        let _ = waiting.send(Bytes::copy_from_slice(&frame.body));
                    }
                }
                Ok(None) => break,
                Err(_) => return shared.close("the server broke the protocol".to_owned()),
            }
        }
        if shared.state().closed.is_some() {
            return;
        }
        read.reserve(64 << 10);
    }
}

const MALFORMED: Rejection = Rejection::Malformed;

#[async_trait]
impl Store for Client {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        let command = encode_write(&write).map_err(|_| MALFORMED)?;
        let reply = self.call(Kind::Command, &command).await;
        let reply = reply.map_err(|_| WriteError::Indeterminate { reached: Reached::default() })?;
        let effect = decode_effect(&reply).map_err(|_| MALFORMED)?;
        // The baseline has no log positions: nothing in the bench depends on them for one copy.
        let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
        let reached = Reached { received: 1, durable: 1, applied: 1 };
        Ok(Written { at, reached, strict: true, effect: Some(effect) })
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        let query = encode_get(&read.key).map_err(|_| MALFORMED)?;
        let answer = self.call(Kind::Query, &query).await.map_err(|last| ReadError::Unreachable { last })?;
        let value = decode_value(&answer).map_err(|_| MALFORMED)?;
        Ok(ReadResult { values: value.into_iter().collect(), seen: None, strict: true, staleness: None, context: None })
    }

    async fn scan(&self, scan: ScanRequest) -> Result<Page, ReadError> {
        let answer = self.call(Kind::Query, &encode_scan(&scan)).await;
        let answer = answer.map_err(|last| ReadError::Unreachable { last })?;
        Ok(decode_page(&answer).map_err(|_| MALFORMED)?)
    }

    async fn subscribe(&self, _from: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Err(Rejection::Unsupported.into())
    }

    fn guarantees(&self, level: WriteLevel) -> Guarantees {
        guarantees(self.architecture, level)
    }
}
