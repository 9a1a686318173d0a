//! The client that knows where keys are.
//!
//! Invariants:
//!
//! - Each request carries the route of its key, and each write a number of its client: whatever the client believes, a group carries
//!   a request out only if it holds the key, and a write once.
//! - A stale route costs one more round trip: what mends it comes with the refusal. The map is read anew beside that, by one of all
//!   who found out (single-flight).
//! - A request ends by its time limit.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use replikit_core::keyspace::{KeyspaceError, decode_effect, decode_versions, encode_get, encode_write};
use replikit_core::{
    Changes, Cursor, Epoch, GroupId, Guarantees, NodeId, Page, Queue, Reached, ReadError, ReadRequest, ReadResult,
    Rejection, ScanRequest, Store, SubscribeError, WriteError, WriteLevel, WriteRequest, Written,
};
use replikit_runtime::{
    ANSWER_BYTES_MAX, Acked, Answer, Client, ClientConfig, ConnectError, ReadOptions, Retries, WriteOptions,
};

use super::asking::ask_some_at_once;
use super::cache::{Known, MapCache};
use super::groups::GroupClients;
use super::identity::{IDENTITIES_MAX, Identities, Ticket};
use super::legs::{LegCounts, Legs};
use super::machine::{Described, LoadAnswer, LoadQuestion};
use super::scan::{Completeness, Gathered};
use super::{MAPS_GROUP, META_GROUP};
use crate::handoff::Refusal;
use crate::id::PartitionId;
use crate::map::{Change, Delta, Partition, PartitionMap, Replication, Route};
use crate::map_store::Expected;
use crate::meta::{MetaCommand, MetaReply};
use crate::partitioner::Partitioner as _;
use crate::shard::{ANSWERS_MAX, ClientId, Reply, Request, decode_reply, encode_read, encode_record};

/// Groups that are asked at a time by who wants to know something of all: each is woken by it.
const GROUPS_AT_ONCE: usize = 16;

/// The groups that hold partitions, and their nodes.
pub(super) fn groups_of(map: &PartitionMap) -> BTreeMap<GroupId, Vec<NodeId>> {
    map.partitions().map(|it| (it.group, it.replicas.clone())).collect()
}

/// Settings of a client of a partitioned store.
#[derive(Clone, Debug)]
pub struct StoreClientConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Addresses of some of its nodes, as `host:port`; the others are learned.
    pub addresses: Vec<String>,
    /// A request ends after this time, retries included. Default 5 s.
    pub request_time_max: Duration,
    /// One attempt ends after this time; then the map is read anew and the next one begins. Default 1 s.
    pub attempt_time_max: Duration,
    /// One partition's part of a scan ends after this time, retries included. Default 2 s.
    pub leg_time_max: Duration,
    /// Partitions that a scan asks at a time. Default 16.
    pub legs_max: usize,
    /// Whether another replica is asked as well where a partition's part of a scan is late. Default yes.
    pub hedges: bool,
}

impl StoreClientConfig {
    /// Default settings.
    pub fn new(cluster: impl Into<String>, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            cluster: cluster.into(),
            addresses: addresses.into_iter().map(Into::into).collect(),
            request_time_max: Duration::from_secs(5),
            attempt_time_max: Duration::from_secs(1),
            leg_time_max: Duration::from_secs(2),
            legs_max: 16,
            hedges: true,
        }
    }
}

/// Why the map was not changed. It is as it was, unless it may have been changed all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Somebody else has changed it meanwhile: catch up, and think again.
    #[error("the map is at epoch {current} by now")]
    Moved {
        /// The epoch that is in force.
        current: Epoch,
    },
    /// The change is not possible at this map.
    #[error("{why}")]
    Refused {
        /// Why.
        why: String,
    },
    /// The group that keeps the map did not answer well; only [`WriteError::Indeterminate`] leaves open what happened.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The map cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A client of a partitioned store. Cheap to clone; all clones share connections, map and numbers. Lives in the tokio runtime that it
/// was connected in.
#[derive(Clone, Debug)]
pub struct StoreClient(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: StoreClientConfig,
    /// Whom to ask for the map, and for changes of it.
    pub(super) maps: Client,
    pub(super) cache: Arc<MapCache>,
    groups: GroupClients,
    identities: Arc<Identities>,
    pub(super) legs: Legs,
    /// Held while a number for a client is being asked for.
    opening: tokio::sync::Mutex<()>,
}

/// At which level the groups carry a write out: none that is acknowledged before it is applied.
pub(super) const fn carried_out_at(level: WriteLevel) -> WriteLevel {
    match level {
        WriteLevel::Memory | WriteLevel::LeaderDisk | WriteLevel::Received(_) | WriteLevel::Durable(_) => {
            WriteLevel::Quorum
        }
        level => level,
    }
}

/// The same, among so many replicas.
fn level_among(level: WriteLevel, replicas: usize) -> Result<WriteLevel, Rejection> {
    match level {
        WriteLevel::Received(k) | WriteLevel::Durable(k) if usize::from(k) > replicas / 2 + 1 => {
            Err(Rejection::Unsupported)
        }
        level => Ok(carried_out_at(level)),
    }
}

pub(super) fn rejection(error: KeyspaceError) -> Rejection {
    match error {
        KeyspaceError::Key { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: replikit_core::KEY_BYTES_MAX as u64 }
        }
        KeyspaceError::Value { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: replikit_core::VALUE_BYTES_MAX as u64 }
        }
        KeyspaceError::Context { bytes } => {
            Rejection::TooLarge { bytes: bytes as u64, bytes_max: replikit_core::CausalContext::TOKEN_BYTES_MAX as u64 }
        }
        KeyspaceError::AnswerTooLarge { bytes_max } => {
            Rejection::TooLarge { bytes: bytes_max as u64 + 1, bytes_max: bytes_max as u64 }
        }
        KeyspaceError::Malformed => Rejection::Malformed,
    }
}

impl StoreClient {
    /// Connects to the first node or router that answers, and reads the map from it.
    ///
    /// # Errors
    /// [`ConnectError`]; also when the first node that answers has no map within the time, because it is of another strategy or
    /// cannot reach those that keep it.
    pub async fn connect(config: StoreClientConfig) -> Result<Self, ConnectError> {
        let client = Self::connect_to(config, Arc::new(MapCache::new()), None).await?;
        let inner = &client.0;
        inner.refresh_by(Instant::now() + inner.config.request_time_max).await.map_err(|error| {
            ConnectError::Unreachable {
                address: inner.config.addresses.join(","),
                reason: format!("no partition map: {error}"),
            }
        })?;
        Ok(client)
    }

    /// A client that asks the group of the map itself, on these nodes, or else any node or router.
    pub(super) async fn connect_to(
        config: StoreClientConfig,
        cache: Arc<MapCache>,
        meta: Option<&[NodeId]>,
    ) -> Result<Self, ConnectError> {
        let mut of_groups = ClientConfig::new(config.cluster.clone(), config.addresses.clone());
        of_groups.group = MAPS_GROUP;
        of_groups.request_time_max = config.attempt_time_max.min(config.request_time_max);
        // Writes have numbers of their own.
        of_groups.retries = Retries::AtMostOnce;
        let root = Client::connect(of_groups).await?;
        let maps = match meta {
            Some(nodes) => root.for_group(META_GROUP, nodes.iter().copied()),
            None => root,
        };
        Ok(Self(Arc::new(Inner {
            config,
            maps,
            cache,
            groups: GroupClients::default(),
            identities: Arc::default(),
            legs: Legs::default(),
            opening: tokio::sync::Mutex::new(()),
        })))
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &StoreClientConfig {
        &self.0.config
    }

    /// The nodes that it knows and their addresses, ascending by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<(NodeId, String)> {
        self.0.maps.nodes()
    }

    /// The newest map, read anew.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn map(&self) -> Result<Arc<PartitionMap>, ReadError> {
        self.0.refresh_by(Instant::now() + self.0.config.request_time_max).await?;
        Ok(Arc::clone(self.0.cache.load().map().ok_or(ReadError::TimedOut)?))
    }

    /// A client of one group with a leader, for what is asked of groups rather than of keys.
    #[must_use]
    pub fn group(&self, group: GroupId, replicas: &[NodeId]) -> Client {
        self.0.groups.of(&self.0.maps, group, Replication::SingleLeader, replicas)
    }

    /// The same of the group of a partition, whatever its strategy.
    #[must_use]
    pub fn group_of(&self, partition: &Partition) -> Client {
        self.0.client_of(partition)
    }

    /// What a group holds and how large it is, as its leader has applied. Walks over all that the group holds.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn describe(&self, group: GroupId, replicas: &[NodeId]) -> Result<Described, ReadError> {
        let answer = self.group(group, replicas).query(Described::question()).await?;
        Described::decode(&answer.value).ok_or(Rejection::Unsupported.into())
    }

    /// What all groups of a map that have leaders hold, each with its leader, as far as they answer. Walks over all that the store holds, and wakes who
    /// sleeps.
    pub async fn describe_all(&self, map: &PartitionMap) -> Vec<(GroupId, NodeId, Described)> {
        let with_leaders = map.partitions().filter(|it| it.replication.has_one_log());
        let groups: BTreeMap<GroupId, Vec<NodeId>> = with_leaders.map(|it| (it.group, it.replicas.clone())).collect();
        let described = self.ask_groups(groups, |client, group, replicas| async move {
            let described = client.describe(group, &replicas).await.ok()?;
            Some((group, client.group(group, &replicas).aims_at(), described))
        });
        described.await.into_iter().flatten().collect()
    }

    /// Asks each of these groups something, a few at a time; the answers, in no order.
    pub(super) async fn ask_groups<T, F>(
        &self,
        groups: impl IntoIterator<Item = (GroupId, Vec<NodeId>)>,
        ask: impl Fn(Self, GroupId, Vec<NodeId>) -> F,
    ) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let ask = |(group, replicas)| ask(self.clone(), group, replicas);
        ask_some_at_once(groups.into_iter().collect(), GROUPS_AT_ONCE, ask).await
    }

    /// Asks a group's leader about load: only it counts reads.
    pub(super) async fn ask_load(
        &self,
        group: GroupId,
        replicas: &[NodeId],
        question: LoadQuestion,
    ) -> Result<LoadAnswer, ReadError> {
        let answer = self.group(group, replicas).query(question.encode()).await?;
        LoadAnswer::decode(&answer.value).ok_or(Rejection::Unsupported.into())
    }

    /// Changes the map.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn change(&self, expected: Expected, change: Change) -> Result<Delta, ChangeError> {
        let command = match expected {
            Expected::Any => MetaCommand::ChangeAny { change },
            Expected::Epoch(at) => MetaCommand::Change { at, change },
        };
        match self.0.meta(&command).await? {
            MetaReply::Changed { delta } => Ok(delta),
            MetaReply::Behind { current } => Err(ChangeError::Moved { current }),
            MetaReply::Refused { why } => Err(ChangeError::Refused { why }),
            MetaReply::Client(_) | MetaReply::Malformed => Err(WriteError::from(Rejection::Unsupported).into()),
        }
    }

    /// Cuts the partition of a key in two, in front of where the key stands; both parts stay in their group. Returns the map behind
    /// it. The group takes requests for the parts once it has heard of them, which it does at once if it can be reached.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn split(&self, key: &[u8]) -> Result<(Arc<PartitionMap>, PartitionId), ChangeError> {
        let map = self.map().await?;
        let at = map.scheme().position(key).to_bytes();
        let partition = map.partition_of(key).id;
        let map = self.change_bounds(Expected::Any, &map, partition, Change::Split { partition, at }).await?;
        let right = map.partition_of(key).id;
        Ok((map, right))
    }

    /// Joins the partition of a key with the one behind it, which must be of the same group: nothing is copied. Returns the map behind
    /// it and the partition.
    ///
    /// # Errors
    /// [`ChangeError`]; refused if there is none behind it, or it is of another group.
    pub async fn merge(&self, key: &[u8]) -> Result<(Arc<PartitionMap>, PartitionId), ChangeError> {
        let map = self.map().await?;
        let left = map.partition_of(key);
        let right = left.span.end.as_ref().and_then(|end| map.partitions().find(|it| it.span.start == *end));
        let right =
            right.ok_or_else(|| ChangeError::Refused { why: "no partition is behind the last one".to_owned() })?;
        let (left, right) = (left.id, right.id);
        Ok((self.change_bounds(Expected::Any, &map, left, Change::Merge { left, right }).await?, left))
    }

    /// Splits or merges a partition of a map, and tells its group.
    pub(super) async fn change_bounds(
        &self,
        expected: Expected,
        map: &PartitionMap,
        of: PartitionId,
        change: Change,
    ) -> Result<Arc<PartitionMap>, ChangeError> {
        let unknown = || ChangeError::Refused { why: format!("there is no partition {of}") };
        let partition = map.partition(of).ok_or_else(unknown)?;
        let (group, replicas) = (partition.group, partition.replicas.clone());
        self.change(expected, change).await?;
        let map = self.map().await?;
        // If this fails, the group's nodes see to it.
        let _ = self.recut(&map, group, &replicas).await;
        Ok(map)
    }

    /// Tells a group of the splits and merges of a map that it has not heard of; whether there were any.
    ///
    /// # Errors
    /// [`WriteError`]; what the group has heard of twice changes nothing.
    pub async fn recut(&self, map: &PartitionMap, group: GroupId, replicas: &[NodeId]) -> Result<bool, WriteError> {
        let described = self.describe(group, replicas).await;
        let described = described.map_err(|error| WriteError::Unreachable { last: error.to_string() })?;
        match described.holdings.recut(map, group) {
            Some(record) => self.group(group, replicas).write(encode_record(&record)).await.map(|_| true),
            None => Ok(false),
        }
    }

    /// A number for a client that retries by itself: see [`Request`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn open_client(&self) -> Result<ClientId, WriteError> {
        self.0.open_client(Instant::now() + self.0.config.request_time_max).await
    }

    /// Has a command of the keyspace carried out, under the caller's own number if there is one.
    pub(super) async fn command(
        &self,
        key: &[u8],
        command: &[u8],
        level: WriteLevel,
        request: Option<Request>,
    ) -> Result<Acked, WriteError> {
        self.0.write(key, command, level, request).await
    }

    /// Has a question about a key answered.
    pub(super) async fn question(
        &self,
        key: &[u8],
        question: &[u8],
        options: ReadOptions,
    ) -> Result<Answer, ReadError> {
        let deadline = Instant::now() + self.0.config.request_time_max;
        self.0.read(|known| known.partition_of(key).map(|it| self.0.aimed(it)), question, options, deadline).await
    }

    /// A page of a range of keys, from all partitions that have some of them. Where the level lets another replica answer, one is asked
    /// as well if a partition is late, for one partition in twenty. With [`Completeness::Whole`] a partition that does not
    /// answer in its time fails the scan; with [`Completeness::Partial`] the page goes without it and says so.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn gather(&self, scan: &ScanRequest, completeness: Completeness) -> Result<Gathered, ReadError> {
        super::scan::gather(&self.0, scan, completeness, ANSWER_BYTES_MAX).await
    }

    /// How often partitions were asked for their part of a scan, up to now.
    #[must_use]
    pub fn legs(&self) -> LegCounts {
        self.0.legs.counts()
    }

    /// How often the map was asked for, up to the last answer.
    #[must_use]
    pub fn map_reads(&self) -> u64 {
        self.0.cache.answered()
    }
}

/// Who is asked for a partition, and under which route; none for a group without one log, which looks at none.
pub(super) struct Aimed {
    client: Client,
    route: Option<Route>,
    /// Its group, if another of its nodes may do what one refuses.
    others_of: Option<GroupId>,
}

impl Aimed {
    /// The same, with this node and no other to ask.
    pub(super) fn at_node(&self, node: NodeId) -> Self {
        Self { client: self.client.at_node(node), route: self.route, others_of: None }
    }
}

impl Inner {
    pub(super) async fn refresh_by(&self, deadline: Instant) -> Result<(), ReadError> {
        let refresh = self.cache.refresh(&self.maps);
        tokio::time::timeout_at(deadline.into(), refresh).await.map_err(|_| ReadError::TimedOut)?
    }

    async fn meta(&self, command: &MetaCommand) -> Result<MetaReply, WriteError> {
        let acked = self.maps.write(command.encode()).await?;
        MetaReply::decode(&acked.reply).map_err(|_| WriteError::Indeterminate { reached: acked.reached })
    }

    async fn open_client(&self, deadline: Instant) -> Result<ClientId, WriteError> {
        let mut pause = Pause::new();
        loop {
            let error = match self.meta(&MetaCommand::OpenClient).await {
                Ok(MetaReply::Client(client)) => return Ok(client),
                Ok(_) => return Err(Rejection::Unsupported.into()),
                // A number that nobody uses harms nobody: another one is asked for.
                Err(WriteError::Indeterminate { reached }) => {
                    WriteError::Unreachable { last: format!("no number in time ({reached:?})") }
                }
                Err(error) => error,
            };
            if !pause.wait(deadline).await {
                return Err(error);
            }
        }
    }

    async fn ticket(&self, deadline: Instant) -> Result<Ticket, WriteError> {
        let mut pause = Pause::new();
        loop {
            if let Some(ticket) = self.identities.take() {
                return Ok(ticket);
            }
            if self.identities.count() < IDENTITIES_MAX {
                let _opening = self.opening.lock().await;
                if let Some(ticket) = self.identities.take() {
                    return Ok(ticket);
                }
                self.identities.add(self.open_client(deadline).await?);
            } else if !pause.wait(deadline).await {
                return Err(Rejection::Busy { queue: Queue::SessionWindow, limit: ANSWERS_MAX as u64 }.into());
            }
        }
    }

    async fn write(
        &self,
        key: &[u8],
        command: &[u8],
        level: WriteLevel,
        request: Option<Request>,
    ) -> Result<Acked, WriteError> {
        let deadline = Instant::now() + self.config.request_time_max;
        if !self.replication_of(key, deadline).await?.has_one_log() {
            return match request {
                None => self.write_unnumbered(key, command, level, deadline).await,
                Some(_) => Err(Rejection::Unsupported.into()),
            };
        }
        if let Some(request) = request {
            return self.write_numbered(key, command, level, request, deadline).await;
        }
        loop {
            let ticket = self.ticket(deadline).await?;
            match self.write_numbered(key, command, level, ticket.request, deadline).await {
                // Nothing of it was ever carried out under the expired number: it is as good as new.
                Err(WriteError::Rejected(Rejection::SessionExpired)) => ticket.expire(),
                other => return other,
            }
        }
    }

    /// How the group of a key replicates: that never changes.
    async fn replication_of(&self, key: &[u8], deadline: Instant) -> Result<Replication, WriteError> {
        let mut pause = Pause::new();
        loop {
            if let Some(partition) = self.cache.load().partition_of(key) {
                return Ok(partition.replication);
            }
            let unread = self.refresh_by(deadline).await.err();
            if !pause.wait(deadline).await {
                let last = unread.map_or_else(|| "no map in time".to_owned(), |error| error.to_string());
                return Err(WriteError::Unreachable { last });
            }
        }
    }

    /// A write to a group without a leader, which knows no numbers: one that may have arrived is not sent again.
    async fn write_unnumbered(
        &self,
        key: &[u8],
        command: &[u8],
        level: WriteLevel,
        deadline: Instant,
    ) -> Result<Acked, WriteError> {
        let mut pause = Pause::new();
        loop {
            let known = self.cache.load();
            let last = match known.partition_of(key).map(|it| self.aimed(it)) {
                None => WriteError::Unreachable { last: "no map in time".to_owned() },
                Some(Aimed { client, others_of, .. }) => {
                    match client.write_with(command.to_vec(), WriteOptions::at(level)).await {
                        Err(WriteError::Rejected(rejection)) if is_passing(&rejection) => {
                            self.move_on(others_of, &client, &rejection);
                            rejection.into()
                        }
                        Err(WriteError::Unreachable { last }) => WriteError::Unreachable { last },
                        ended => return ended,
                    }
                }
            };
            // Perhaps its owners are others by now.
            let _ = self.refresh_by(deadline).await;
            if !pause.wait(deadline).await {
                return Err(last);
            }
        }
    }

    /// How a question gets to a partition.
    pub(super) fn aimed(&self, partition: &Partition) -> Aimed {
        let route = partition.replication.has_one_log().then(|| partition.route());
        let has_others = partition.replication == Replication::MultiLeader;
        Aimed { client: self.client_of(partition), route, others_of: has_others.then_some(partition.group) }
    }

    /// From here on another node of the group is asked, where there are others and the rejection is of this one only.
    fn move_on(&self, others_of: Option<GroupId>, client: &Client, rejection: &Rejection) {
        if let Some(group) = others_of.filter(|_| is_of_this_node(rejection)) {
            self.groups.move_on(&self.maps, group, client.home());
        }
    }

    pub(super) fn client_of(&self, partition: &Partition) -> Client {
        self.groups.of_partition(&self.maps, partition)
    }

    /// `SessionExpired` comes out only if the write is known to have had no effect.
    async fn write_numbered(
        &self,
        key: &[u8],
        command: &[u8],
        level: WriteLevel,
        request: Request,
        deadline: Instant,
    ) -> Result<Acked, WriteError> {
        let mut pause = Pause::new();
        // Whether an attempt may have taken effect although its outcome is not known.
        let mut in_doubt: Option<Reached> = None;
        let ended = |in_doubt: Option<Reached>, error: WriteError| match in_doubt {
            Some(reached) => WriteError::Indeterminate { reached },
            None => error,
        };
        loop {
            let known = self.cache.load();
            let last = match known.partition_of(key) {
                None => self
                    .refresh_by(deadline)
                    .await
                    .err()
                    .map(|error| WriteError::Unreachable { last: error.to_string() }),
                Some(partition) => {
                    let level = level_among(level, partition.replicas.len())?;
                    let body = crate::shard::encode_write(&partition.route(), Some(request), command);
                    match self.client_of(partition).write_with(body, WriteOptions::at(level)).await {
                        Ok(acked) => match decode_reply(&acked.reply) {
                            Ok(Reply::Done(reply)) => return Ok(Acked { reply, ..acked }),
                            Ok(Reply::Refused(refusal)) => {
                                Some(self.refused(&refusal, &mut pause, deadline).await.into())
                            }
                            Ok(Reply::Expired) => return Err(ended(in_doubt, Rejection::SessionExpired.into())),
                            Ok(Reply::Malformed) => return Err(ended(in_doubt, Rejection::Malformed.into())),
                            Ok(Reply::Recorded) | Err(_) => {
                                return Err(WriteError::Indeterminate { reached: acked.reached });
                            }
                        },
                        Err(WriteError::Indeterminate { reached }) => {
                            in_doubt = Some(reached);
                            Some(WriteError::Indeterminate { reached })
                        }
                        Err(WriteError::Rejected(rejection)) if !is_passing(&rejection) => {
                            return Err(ended(in_doubt, rejection.into()));
                        }
                        Err(error) => {
                            // Perhaps it is somewhere else by now.
                            let _ = self.refresh_by(deadline).await;
                            Some(error)
                        }
                    }
                }
            };
            if !pause.wait(deadline).await {
                let unreachable = || WriteError::Unreachable { last: "no map in time".to_owned() };
                return Err(ended(in_doubt, last.unwrap_or_else(unreachable)));
            }
        }
    }

    /// A question to the partition that `aim` finds in what is known.
    pub(super) async fn read(
        &self,
        aim: impl Fn(&Known) -> Option<Aimed>,
        question: &[u8],
        options: ReadOptions,
        deadline: Instant,
    ) -> Result<Answer, ReadError> {
        let mut pause = Pause::new();
        loop {
            let aimed = aim(&self.cache.load());
            let last = match aimed {
                None => self.refresh_by(deadline).await.err(),
                Some(Aimed { client, route, others_of }) => {
                    let question = match &route {
                        Some(route) => encode_read(route, question),
                        None => Bytes::copy_from_slice(question),
                    };
                    let asked = client.query_with(question, options.clone());
                    let asked = tokio::time::timeout_at(deadline.into(), asked).await;
                    match asked.unwrap_or(Err(ReadError::TimedOut)) {
                        Ok(answer) if route.is_none() => return Ok(answer),
                        Ok(answer) => match decode_reply(&answer.value) {
                            Ok(Reply::Done(value)) => return Ok(Answer { value, ..answer }),
                            Ok(Reply::Refused(refusal)) => {
                                Some(self.refused(&refusal, &mut pause, deadline).await.into())
                            }
                            Ok(Reply::Malformed) => return Err(Rejection::Malformed.into()),
                            Ok(Reply::Expired | Reply::Recorded) | Err(_) => return Err(Rejection::Unsupported.into()),
                        },
                        Err(ReadError::Rejected(rejection)) if !is_passing(&rejection) => return Err(rejection.into()),
                        Err(error) => {
                            if let ReadError::Rejected(rejection) = &error {
                                self.move_on(others_of, &client, rejection);
                            }
                            let _ = self.refresh_by(deadline).await;
                            Some(error)
                        }
                    }
                }
            };
            if !pause.wait(deadline).await {
                return Err(last.unwrap_or(ReadError::TimedOut));
            }
        }
    }

    /// Learns from a refusal; what it is as a rejection.
    async fn refused(&self, refusal: &Refusal, pause: &mut Pause, deadline: Instant) -> Rejection {
        match refusal {
            Refusal::Stale(stale) => {
                if self.cache.patch(stale) {
                    // The next attempt goes where the refusal says; the rest of the map is read beside it.
                    pause.skip_once();
                    let (cache, maps) = (Arc::clone(&self.cache), self.maps.clone());
                    tokio::spawn(async move { cache.refresh(&maps).await });
                } else {
                    let _ = self.refresh_by(deadline).await;
                }
                Rejection::StaleRoute { current: stale.epoch }
            }
            Refusal::Ahead { epoch } => Rejection::StaleRoute { current: *epoch },
            Refusal::HandingOff(_) => Rejection::StaleRoute { current: self.cache.load().epoch() },
        }
    }
}

/// Whether another node of a multi-leader group may do what this one does not.
const fn is_of_this_node(rejection: &Rejection) -> bool {
    matches!(rejection, Rejection::StaleRoute { .. } | Rejection::CatchingUp | Rejection::StorageFailed)
}

/// Whether a rejection says nothing of the next attempt.
const fn is_passing(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::StaleRoute { .. }
            | Rejection::NotLeader { .. }
            | Rejection::Busy { .. }
            | Rejection::ShuttingDown
            | Rejection::CatchingUp
            | Rejection::NoQuorum
            | Rejection::StorageFailed
    )
}

/// First pause between attempts; doubles up to eight times that, with jitter.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// Attempts that may follow one another without a pause: enough for a chain of refusals, too few for a storm.
const SKIPS_MAX: u32 = 4;

/// Pauses between attempts.
pub(super) struct Pause {
    next: Duration,
    skip: bool,
    skips: u32,
}

impl Pause {
    pub(super) const fn new() -> Self {
        Self { next: RETRY_PAUSE, skip: false, skips: 0 }
    }

    fn skip_once(&mut self) {
        self.skip = self.skips < SKIPS_MAX;
        self.skips += 1;
    }

    /// Waits; false if there is no time for another attempt.
    pub(super) async fn wait(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if !std::mem::take(&mut self.skip) {
            let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.next = (self.next * 2).min(RETRY_PAUSE * 8);
            tokio::time::sleep(pause.min(left)).await;
        }
        true
    }
}

#[async_trait]
impl Store for StoreClient {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        if write.key.is_empty() {
            return Err(Rejection::Malformed.into());
        }
        let command = encode_write(&write).map_err(rejection)?;
        // The caller's session is a number that `open_client` gave, with the window of sessions.
        let request = write.session.map(super::front::numbered);
        let Acked { at, reached, strict, reply } = self.command(&write.key, &command, write.level, request).await?;
        Ok(Written { at, reached, strict, effect: decode_effect(&reply).ok() })
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        if read.key.is_empty() {
            return Err(Rejection::Malformed.into());
        }
        let question = encode_get(&read.key).map_err(rejection)?;
        let Answer { value, seen, strict, staleness } =
            self.question(&read.key, &question, ReadOptions::at(read.level)).await?;
        let found = decode_versions(&value).map_err(rejection)?;
        Ok(ReadResult { values: found.values, seen, strict, staleness, context: found.context })
    }

    async fn scan(&self, scan: ScanRequest) -> Result<Page, ReadError> {
        Ok(self.gather(&scan, Completeness::Whole).await?.page)
    }

    /// There is no order of all changes: refused. [`StoreClient::group`] follows one group.
    async fn subscribe(&self, _from: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Err(Rejection::Unsupported.into())
    }

    fn guarantees(&self, level: WriteLevel) -> Guarantees {
        let first = self.0.cache.load().map().and_then(|map| map.partitions().next().map(|it| it.replication));
        match first.unwrap_or_default() {
            Replication::SingleLeader => super::guarantees(level),
            Replication::Leaderless => super::guarantees_leaderless(level),
            Replication::MultiLeader => super::guarantees_multi_leader(level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_level_is_acknowledged_before_the_group_has_said_that_it_holds_the_key() {
        for weak in [WriteLevel::Memory, WriteLevel::LeaderDisk, WriteLevel::Received(2), WriteLevel::Durable(2)] {
            assert_eq!(level_among(weak, 3), Ok(WriteLevel::Quorum));
        }
        assert_eq!(level_among(WriteLevel::Durable(3), 3), Err(Rejection::Unsupported));
        assert_eq!(level_among(WriteLevel::Applied(3), 3), Ok(WriteLevel::Applied(3)));
    }
}
