//! Key-value data over a handle or a client: the keyspace's codec on top of commands and queries.

use async_trait::async_trait;
use bytes::Bytes;
use replikit_core::keyspace::{
    ConflictPage, Keyspace, KeyspaceError, Versions, decode_conflict_page, decode_effect, decode_page, decode_versions,
    encode_conflicts, encode_get, encode_scan, encode_write,
};
use replikit_core::{
    CausalContext, Changes, Cursor, Guarantees, Page, ReadError, ReadGuarantee, ReadLevel, ReadRequest, ReadResult,
    Rejection, ScanRequest, Store, SubscribeError, Survival, WriteError, WriteLevel, WriteRequest, Written,
};

use crate::call::{Acked, Answer};
use crate::client::Client;
use crate::config::{Promise, ReadOptions, WriteOptions};
use crate::handle::Handle;

/// What is promised when nobody said what the strategy promises: the least.
fn unknown(level: WriteLevel) -> Guarantees {
    Guarantees {
        strategy: "unknown".into(),
        mode: format!("{level:?}"),
        acknowledged: "as the node's strategy defines it".into(),
        survives: Survival::Nothing,
        reads: ReadGuarantee::Stale,
        ordering: "unknown".into(),
        needs: "a reachable node".into(),
        checked_by: Vec::new(),
    }
}

fn written(acked: Acked) -> Written {
    // Levels that are acknowledged before the command is applied have no reply, hence no effect to tell of.
    let Acked { at, reached, strict, reply } = acked;
    Written { at, reached, strict, effect: decode_effect(&reply).ok() }
}

fn read_result(answer: &Answer) -> Result<ReadResult, ReadError> {
    let Versions { values, context } = decode_versions(&answer.value).map_err(rejection)?;
    let &Answer { seen, strict, staleness, .. } = answer;
    Ok(ReadResult { values, seen, strict, staleness, context })
}

fn rejection(error: KeyspaceError) -> Rejection {
    match error {
        KeyspaceError::Key { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: replikit_core::KEY_BYTES_MAX as u64 }
        }
        KeyspaceError::Value { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: replikit_core::VALUE_BYTES_MAX as u64 }
        }
        KeyspaceError::Context { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: CausalContext::TOKEN_BYTES_MAX as u64 }
        }
        KeyspaceError::AnswerTooLarge { bytes_max } => {
            Rejection::TooLarge { bytes: bytes_max as u64 + 1, bytes_max: bytes_max as u64 }
        }
        KeyspaceError::Malformed => Rejection::Malformed,
    }
}

fn command(write: &WriteRequest) -> Result<Bytes, Rejection> {
    if write.key.is_empty() { Err(Rejection::Malformed) } else { encode_write(write).map_err(rejection) }
}

fn question(read: &ReadRequest) -> Result<Bytes, Rejection> {
    if read.key.is_empty() { Err(Rejection::Malformed) } else { encode_get(&read.key).map_err(rejection) }
}

/// What a key-value store speaks through: a handle or a client.
trait Endpoint: Send + Sync {
    fn command(&self, body: Bytes, options: WriteOptions) -> impl Future<Output = Result<Acked, WriteError>> + Send;
    fn ask(&self, body: Bytes, options: ReadOptions) -> impl Future<Output = Result<Answer, ReadError>> + Send;
    fn follow(&self, from: Cursor) -> impl Future<Output = Result<Box<dyn Changes>, SubscribeError>> + Send;
}

impl Endpoint for Handle<Keyspace> {
    fn command(&self, body: Bytes, options: WriteOptions) -> impl Future<Output = Result<Acked, WriteError>> + Send {
        self.write_with(body, options)
    }

    fn ask(&self, body: Bytes, options: ReadOptions) -> impl Future<Output = Result<Answer, ReadError>> + Send {
        self.query_with(body, options)
    }

    fn follow(&self, from: Cursor) -> impl Future<Output = Result<Box<dyn Changes>, SubscribeError>> + Send {
        self.subscribe(from)
    }
}

impl Endpoint for Client {
    fn command(&self, body: Bytes, options: WriteOptions) -> impl Future<Output = Result<Acked, WriteError>> + Send {
        self.write_with(body, options)
    }

    fn ask(&self, body: Bytes, options: ReadOptions) -> impl Future<Output = Result<Answer, ReadError>> + Send {
        self.query_with(body, options)
    }

    fn follow(&self, from: Cursor) -> impl Future<Output = Result<Box<dyn Changes>, SubscribeError>> + Send {
        self.subscribe(from)
    }
}

/// A key-value [`Store`] over a [`Handle`] or a [`Client`]: [`KvHandle`], [`KvClient`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kv<E> {
    endpoint: E,
    promise: Promise,
}

/// The key-value [`Store`] within the process.
pub type KvHandle = Kv<Handle<Keyspace>>;

/// The key-value [`Store`] over TCP.
pub type KvClient = Kv<Client>;

impl KvHandle {
    /// A store that speaks to the keyspace behind this handle.
    #[must_use]
    pub fn new(handle: Handle<Keyspace>) -> Self {
        let promise = handle.promise().unwrap_or(unknown);
        Self { endpoint: handle, promise }
    }
}

impl KvClient {
    /// A store that speaks to the cluster's keyspace through this client.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { endpoint: client, promise: unknown }
    }
}

impl<E> Kv<E> {
    /// The same store, telling what the cluster's strategy promises.
    #[must_use]
    pub fn promising(self, promise: Promise) -> Self {
        Self { promise, ..self }
    }

    /// The handle or client underneath.
    #[must_use]
    pub const fn endpoint(&self) -> &E {
        &self.endpoint
    }
}

#[expect(private_bounds, reason = "handles and clients are the only endpoints there are")]
impl<E: Endpoint> Kv<E> {
    /// A page of the audit log of the replica that is asked: acknowledged values that are not shown because a concurrent
    /// write won, with a number larger than `after`, at most `limit` and at least one. Replicas number by themselves, so all
    /// pages are to come from one of them. Always empty where one leader orders the writes.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn conflicts(&self, after: u64, limit: u32) -> Result<ConflictPage, ReadError> {
        let answer = self.endpoint.ask(encode_conflicts(after, limit), ReadOptions::at(ReadLevel::Local)).await?;
        Ok(decode_conflict_page(&answer.value).map_err(rejection)?)
    }
}

#[async_trait]
impl<E: Endpoint> Store for Kv<E> {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        let options = WriteOptions { level: write.level, session: write.session };
        Ok(written(self.endpoint.command(command(&write)?, options).await?))
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        let question = question(&read)?;
        read_result(&self.endpoint.ask(question, ReadOptions::at(read.level)).await?)
    }

    async fn scan(&self, scan: ScanRequest) -> Result<Page, ReadError> {
        let question = encode_scan(&scan);
        let answer = self.endpoint.ask(question, ReadOptions::at(scan.level)).await?;
        Ok(decode_page(&answer.value).map_err(rejection)?)
    }

    async fn subscribe(&self, from: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        self.endpoint.follow(from).await
    }

    fn guarantees(&self, level: WriteLevel) -> Guarantees {
        (self.promise)(level)
    }
}
