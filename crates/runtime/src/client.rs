//! The client over TCP: finds the leader, pipelines the requests of any number of tasks over one connection per node, and
//! retries under one session, so that a retried write takes effect once.
//!
//! Invariants: a write that may have reached a replica is retried only under its session and sequence, and by a client that
//! follows no leader only at that replica; a request ends by its time limit, whatever the nodes do.

mod connection;
mod rank;
mod route;
mod session;
mod subscription;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use replikit_core::{
    Changes, ClusterId, Cursor, GroupId, NodeId, Outcome, Reached, ReadError, Rejection, Role, SessionId, SessionSeq,
    SubscribeError, WriteError,
};

use crate::call::{Acked, Answer, acked, answered, session_id};
use crate::config::{DEFAULT_GROUP, ReadOptions, WriteOptions};
use crate::counters::NodeStatus;
use crate::error::ConnectError;
use crate::socket::GreetError;
use crate::wire::{Reply, RequestHead};

use connection::{Connection, Ended};
use rank::Ranking;
use route::Routes;
pub use route::{ClientTarget, ReadTarget};
use session::Sessions;
use subscription::ClientChanges;

/// Whether writes are retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Retries {
    /// Every write carries a session and a sequence: retried until its time is over, and effective once. Needs a strategy
    /// that has sessions.
    #[default]
    ExactlyOnce,
    /// Writes carry no session: one that may have reached a replica is not sent again.
    AtMostOnce,
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Addresses of some of its nodes, as `host:port`; the others are learned.
    pub addresses: Vec<String>,
    /// Group that requests go to.
    pub group: GroupId,
    /// Whom queries go to. Default: the leader.
    pub reads: ClientTarget,
    /// Whom commands go to. Default: the leader.
    pub writes: ClientTarget,
    /// Whether writes are retried.
    pub retries: Retries,
    /// A request ends after this time, retries included. Default 5 s.
    pub request_time_max: Duration,
    /// A connection must be made and greeted within this time. Default 500 ms.
    pub connect_time_max: Duration,
    /// If a node has owed answers and said nothing for this long, the others are asked who leads. Default 150 ms; below
    /// the election timeout it costs a few small requests, above it the client is the last to notice a new leader.
    pub silence_max: Duration,
    /// First pause before a request is tried again; doubles up to 8 times that, with jitter. Default 2 ms: longer ones
    /// add to the gap that a change of leader makes.
    pub retry_pause: Duration,
    /// Requests without an answer on one connection; beyond it callers wait. Default 4096.
    pub requests_per_connection_max: usize,
    /// Largest frame from a node, in bytes. Default 24 MiB.
    pub frame_bytes_max: usize,
    /// Most sessions; beyond it writes wait for the oldest ones under way. Default 64.
    pub sessions_max: usize,
}

impl ClientConfig {
    /// Default settings.
    pub fn new(cluster: impl Into<String>, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            cluster: cluster.into(),
            addresses: addresses.into_iter().map(Into::into).collect(),
            group: DEFAULT_GROUP,
            reads: ClientTarget::Leader,
            writes: ClientTarget::Leader,
            retries: Retries::ExactlyOnce,
            request_time_max: Duration::from_secs(5),
            connect_time_max: Duration::from_millis(500),
            silence_max: Duration::from_millis(150),
            retry_pause: Duration::from_millis(2),
            requests_per_connection_max: 4096,
            frame_bytes_max: 24 << 20,
            sessions_max: 64,
        }
    }

    /// The same client with queries going elsewhere.
    #[must_use]
    pub const fn reads(mut self, reads: ClientTarget) -> Self {
        self.reads = reads;
        self
    }

    /// The same client with commands going elsewhere.
    #[must_use]
    pub const fn writes(mut self, writes: ClientTarget) -> Self {
        self.writes = writes;
        self
    }

    /// The same client for a family without a leader: queries and commands go to its [`ClientTarget::Home`], commands
    /// without a session, so that one that may have arrived is not sent again.
    #[must_use]
    pub const fn without_leader(mut self) -> Self {
        self.retries = Retries::AtMostOnce;
        self.reads(ClientTarget::Home).writes(ClientTarget::Home)
    }

    /// Whether it has to know how long each node takes.
    const fn ranks(&self) -> bool {
        matches!((self.reads, self.writes), (ClientTarget::Fastest, _) | (_, ClientTarget::Fastest))
    }
}

/// A client of one cluster. Cheap to clone; all clones share connections and sessions. Lives in the tokio runtime that it
/// was connected in.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.0.config.addresses).finish_non_exhaustive()
    }
}

/// One node as the client knows it.
#[derive(Debug)]
struct Known {
    address: Mutex<String>,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held while a connection is being made, so that many callers make one.
    dialing: tokio::sync::Mutex<()>,
}

impl Known {
    fn standing(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).clone().filter(|connection| !connection.is_closed())
    }
}

/// What the clients of all groups share: the nodes and the connections to them.
struct Pool {
    config: ClientConfig,
    cluster: ClusterId,
    nodes: DashMap<NodeId, Arc<Known>>,
    /// Who asks for each group, for the watch over connections that fall silent.
    clients: DashMap<GroupId, Weak<Inner>>,
}

/// The client of one group.
struct Inner {
    config: ClientConfig,
    pool: Arc<Pool>,
    /// The nodes that hold the group, where not all do.
    members: Option<Vec<NodeId>>,
    routes: Routes,
    /// Empty unless the fastest node is asked.
    ranking: Ranking,
    sessions: Sessions,
}

/// Why one attempt brought no outcome.
#[derive(Debug)]
enum Attempt {
    /// Nobody could be reached; nothing was sent.
    Unreachable(String),
    /// The connection or the time ended.
    Ended(Ended),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects to the first node that answers, and learns of the others from it.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let pool = Arc::new(Pool {
            cluster: ClusterId::from_name(&config.cluster),
            nodes: DashMap::new(),
            clients: DashMap::new(),
            config: config.clone(),
        });
        let mut last = ConnectError::NoAddress;
        for address in config.addresses.clone() {
            match pool.dial(&address).await {
                Ok(connection) => {
                    let inner = Inner::new(&pool, config, None);
                    inner.routes.begin(connection.welcome().node);
                    inner.begin(&connection);
                    pool.adopt(connection, Some(address));
                    return Ok(Self(inner));
                }
                Err(GreetError::Refused(reason)) => last = ConnectError::Refused { address, reason },
                // A refusal says more than a node that is down.
                Err(_) if matches!(last, ConnectError::Refused { .. }) => {}
                Err(error) => last = ConnectError::Unreachable { address, reason: error.to_string() },
            }
        }
        Err(last)
    }

    /// The same client for another group of the cluster, with sessions of its own: it shares the connections. `members` are the
    /// nodes that hold the group, the first of which is asked first; without any, all nodes are taken to.
    #[must_use]
    pub fn for_group(&self, group: GroupId, members: impl IntoIterator<Item = NodeId>) -> Self {
        self.beside(ClientConfig { group, ..self.0.config.clone() }, members.into_iter().collect())
    }

    /// The same client for a group of the cluster that has no leader, with any of these nodes as coordinators, the one that answers
    /// soonest first. Writes carry no session: one that may have arrived is not sent again.
    #[must_use]
    pub fn for_group_without_leader(&self, group: GroupId, members: impl IntoIterator<Item = NodeId>) -> Self {
        let config = ClientConfig { group, ..self.0.config.clone() }.without_leader();
        self.beside(config.reads(ClientTarget::Fastest).writes(ClientTarget::Fastest), members.into_iter().collect())
    }

    /// The same client for a group of the cluster where every member takes writes: it stays with the first of these nodes that can be
    /// reached, so that it reads what it has written. Writes carry no session: one that may have arrived is not sent again.
    #[must_use]
    pub fn for_group_at_home(&self, group: GroupId, members: impl IntoIterator<Item = NodeId>) -> Self {
        self.beside(ClientConfig { group, ..self.0.config.clone() }.without_leader(), members.into_iter().collect())
    }

    /// The same client that asks this node and no other, whatever its role.
    #[must_use]
    pub fn at_node(&self, node: NodeId) -> Self {
        let config = ClientConfig { ..self.0.config.clone() }.without_leader();
        self.beside(config.reads(ClientTarget::Node(node)).writes(ClientTarget::Node(node)), vec![node])
    }

    /// A client with other settings that shares the connections.
    fn beside(&self, config: ClientConfig, members: Vec<NodeId>) -> Self {
        let first = members.first().copied().unwrap_or_else(|| self.home());
        let inner = Inner::new(&self.0.pool, config, Some(members).filter(|members| !members.is_empty()));
        inner.routes.begin(first);
        Self(inner)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        &self.0.config
    }

    /// The nodes that it knows and their addresses, ascending by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<(NodeId, String)> {
        let mut nodes: Vec<_> =
            self.0.pool.nodes.iter().map(|node| (*node.key(), lock(&node.address).clone())).collect();
        nodes.sort();
        nodes
    }

    /// Who leads, as far as it knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.0.routes.leader()
    }

    /// Whom the next request for the leader goes to: who leads, or else who is guessed to. Behind a linearizable answer it is who gave it.
    #[must_use]
    pub fn aims_at(&self) -> NodeId {
        self.0.routes.aim(ClientTarget::Leader)
    }

    /// Where requests for [`ClientTarget::Home`] and [`ClientTarget::Fastest`] go at the moment.
    #[must_use]
    pub fn home(&self) -> NodeId {
        self.0.routes.home()
    }

    /// Replicates a command at level `Quorum` and returns the state machine's reply.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::Indeterminate`] leaves the effect open.
    pub async fn write(&self, command: impl Into<Bytes>) -> Result<Acked, WriteError> {
        self.write_with(command, WriteOptions::default()).await
    }

    /// Replicates a command.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::Indeterminate`] leaves the effect open.
    pub async fn write_with(&self, command: impl Into<Bytes>, options: WriteOptions) -> Result<Acked, WriteError> {
        let inner = &self.0;
        let (command, deadline) = (command.into(), Instant::now() + inner.config.request_time_max);
        let WriteOptions { level, session } = options;
        let group = inner.config.group;
        let own = session.is_none() && inner.config.retries == Retries::ExactlyOnce;
        loop {
            let ticket = if own { Some(inner.sessions.next(inner, deadline).await?) } else { None };
            let session = ticket.as_ref().map_or(session, |ticket| Some(ticket.sequence()));
            let head = RequestHead::Command { group, level, session };
            match inner.write(&head, &command, session, deadline).await {
                // Nothing of it was ever sent under the expired session: it is as good as new.
                Err(WriteError::Rejected(Rejection::SessionExpired)) if own => {
                    if let Some(ticket) = ticket {
                        ticket.expire();
                    }
                }
                other => return other,
            }
        }
    }

    /// Asks the state machine, linearizably.
    ///
    /// # Errors
    /// [`ReadError`]. A read never changes state.
    pub async fn query(&self, query: impl Into<Bytes>) -> Result<Answer, ReadError> {
        self.query_with(query, ReadOptions::default()).await
    }

    /// Asks the state machine.
    ///
    /// # Errors
    /// [`ReadError`]. A read never changes state.
    pub async fn query_with(&self, query: impl Into<Bytes>, options: ReadOptions) -> Result<Answer, ReadError> {
        let inner = &self.0;
        let ReadOptions { level, answer_bytes_max } = options;
        let bytes_max = u32::try_from(answer_bytes_max).unwrap_or(u32::MAX);
        let head = RequestHead::Query { group: inner.config.group, level, bytes_max };
        let deadline = Instant::now() + inner.config.request_time_max;
        inner.query(&head, &query.into(), inner.config.reads, deadline).await
    }

    /// Opens a session whose sequence numbers the caller assigns, for use in [`WriteOptions::session`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn open_session(&self) -> Result<SessionId, WriteError> {
        self.0.open_session(Instant::now() + self.0.config.request_time_max).await
    }

    /// Follows the committed commands of the group, as [`Store::subscribe`](replikit_core::Store::subscribe) does, over a
    /// connection of its own: at the node that [`ClientConfig::reads`] names, or at the leader as far as it is known, and at
    /// another one, behind the last change, when that one is lost. It stays where it is when the leader changes.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe(&self, from: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Ok(Box::new(ClientChanges::open(Arc::clone(&self.0), from).await?))
    }

    /// Describes one node and its counters.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, ReadError> {
        self.0.status(node, Instant::now() + self.0.config.request_time_max).await
    }

    /// Has one node take a snapshot now and release the log behind it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn take_snapshot(&self, node: NodeId) -> Result<(), ReadError> {
        let head = RequestHead::Snapshot { group: self.0.config.group };
        let deadline = Instant::now() + self.0.config.request_time_max;
        match self.0.ask(node, &head, &[], deadline).await.map_err(read_error)? {
            Reply::Outcome(Outcome::Rejected(rejection)) => Err(rejection.into()),
            _ => Ok(()),
        }
    }
}

fn read_error(attempt: Attempt) -> ReadError {
    match attempt {
        Attempt::Unreachable(last) => ReadError::Unreachable { last },
        Attempt::Ended(_) => ReadError::TimedOut,
    }
}

impl Pool {
    async fn dial(self: &Arc<Self>, address: &str) -> Result<Arc<Connection>, GreetError> {
        let dialing = Connection::dial(self, address);
        tokio::time::timeout(self.config.connect_time_max, dialing).await.map_err(|_| GreetError::TimedOut)?
    }

    /// Takes a new connection in, and what its node said of the cluster.
    fn adopt(&self, connection: Arc<Connection>, address: Option<String>) {
        let welcome = connection.welcome();
        for (node, its_address) in &welcome.nodes {
            // Where a node was reached is better than where it says that it listens.
            let reached = address.clone().filter(|_| *node == welcome.node);
            self.known(*node, reached.as_ref().unwrap_or(its_address));
        }
        let known = self.known(welcome.node, address.as_deref().unwrap_or_default());
        *lock(&known.connection) = Some(connection);
    }

    fn known(&self, node: NodeId, address: &str) -> Arc<Known> {
        let known = self.nodes.entry(node).or_insert_with(|| {
            Arc::new(Known {
                address: Mutex::new(address.to_owned()),
                connection: Mutex::new(None),
                dialing: tokio::sync::Mutex::new(()),
            })
        });
        Arc::clone(&known)
    }

    /// Who asks for a group, if anybody still does.
    fn client_of(&self, group: GroupId) -> Option<Arc<Inner>> {
        self.clients.get(&group).and_then(|client| client.upgrade())
    }
}

impl Inner {
    fn new(pool: &Arc<Pool>, config: ClientConfig, members: Option<Vec<NodeId>>) -> Arc<Self> {
        let inner = Arc::new(Self {
            pool: Arc::clone(pool),
            members,
            routes: Routes::new(),
            ranking: Ranking::default(),
            sessions: Sessions::new(config.sessions_max.max(1)),
            config,
        });
        pool.clients.insert(inner.config.group, Arc::downgrade(&inner));
        inner
    }

    fn node_ids(&self) -> Vec<NodeId> {
        match &self.members {
            Some(members) => members.clone(),
            None => self.pool.nodes.iter().map(|node| *node.key()).collect(),
        }
    }

    /// The next attempt goes elsewhere, unless it is for this node only.
    fn lost(&self, node: NodeId) {
        if let Some(better) = self.ranking.slow(node, Instant::now()) {
            self.routes.move_home(node, better);
        }
        self.routes.lost(node, &self.node_ids());
    }

    /// Takes what a new connection says of who leads. A node speaks of one group only, which need not be this one: a hint.
    fn begin(&self, connection: &Connection) {
        if let (None, None, Some(leader)) = (&self.members, self.routes.leader(), connection.welcome().leader) {
            self.routes.set_leader(leader);
        }
    }

    /// A standing connection to a node, made if there is none.
    async fn connection(&self, node: NodeId) -> Result<Arc<Connection>, String> {
        let pool = &self.pool;
        let known = pool.nodes.get(&node).map(|known| Arc::clone(&known));
        let known = known.ok_or_else(|| format!("node {node} is not known"))?;
        if let Some(connection) = known.standing() {
            return Ok(connection);
        }
        let _dialing = known.dialing.lock().await;
        if let Some(connection) = known.standing() {
            return Ok(connection);
        }
        let address = lock(&known.address).clone();
        match pool.dial(&address).await {
            Ok(connection) => {
                *lock(&known.connection) = Some(Arc::clone(&connection));
                self.begin(&connection);
                pool.adopt(Arc::clone(&connection), None);
                Ok(connection)
            }
            Err(error) => Err(format!("node {node} at {address}: {error}")),
        }
    }

    /// Whom to ask.
    fn aim(self: &Arc<Self>, target: ClientTarget, writes: bool) -> NodeId {
        match target {
            ClientTarget::Fastest => self.fastest(writes),
            _ => self.routes.aim(target),
        }
    }

    /// The home, unless it has become slow: then one that takes its place. Now and then one that is tried.
    fn fastest(self: &Arc<Self>, writes: bool) -> NodeId {
        let (mut home, now) = (self.routes.home(), Instant::now());
        if self.standing(home).is_some_and(|connection| connection.owes_for() > self.ranking.patience(home))
            && let Some(better) = self.ranking.slow(home, now)
        {
            self.routes.move_home(home, better);
            home = self.routes.home();
        }
        let Some(tried) = self.ranking.due(home, writes, now, || self.node_ids()) else { return home };
        if self.standing(tried).is_some() {
            return tried;
        }
        // No request waits until it can be tried.
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            if inner.connection(tried).await.is_err() {
                inner.ranking.slow(tried, Instant::now());
            }
        });
        home
    }

    fn standing(&self, node: NodeId) -> Option<Arc<Connection>> {
        self.pool.nodes.get(&node)?.standing()
    }

    /// One request to one node.
    async fn ask(
        self: &Arc<Self>,
        node: NodeId,
        head: &RequestHead,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Reply, Attempt> {
        let connection = self.connection(node).await.map_err(Attempt::Unreachable)?;
        let asked = self.config.ranks().then(Instant::now);
        let reply = connection.request(self.config.group, head, body, deadline).await.map_err(Attempt::Ended)?;
        if let Some(asked) = asked
            && matches!(reply, Reply::Outcome(Outcome::Acked { .. } | Outcome::Value { .. }))
        {
            let (home, now) = (self.routes.home(), Instant::now());
            if let Some(better) = self.ranking.answered(node, now - asked, home, now) {
                self.routes.move_home(home, better);
            }
        }
        Ok(reply)
    }

    /// A write where writes go. `SessionExpired` comes out only if the write is known to have had no effect.
    async fn write(
        self: &Arc<Self>,
        head: &RequestHead,
        body: &[u8],
        session: Option<SessionSeq>,
        deadline: Instant,
    ) -> Result<Acked, WriteError> {
        let target = self.config.writes;
        let mut pause = Pause::new(self.config.retry_pause);
        // Whether an attempt may have taken effect although its outcome is not known.
        let mut in_doubt = None;
        // The only node that knows the session of the attempt in doubt; one that is asked once.
        let (mut pinned, mut detour) = (None, None);
        let mut last;
        loop {
            let node = pinned.or(detour.take()).unwrap_or_else(|| self.aim(target, true));
            match self.ask(node, head, body, deadline).await {
                Ok(Reply::Outcome(Outcome::Rejected(rejection))) => match rejection {
                    Rejection::NotLeader { leader } if !matches!(target, ClientTarget::Node(_)) => {
                        last = Rejection::NotLeader { leader }.into();
                        detour = self.redirect(target, node, leader, &mut pause);
                    }
                    Rejection::Busy { .. } | Rejection::ShuttingDown if Instant::now() < deadline => {
                        if rejection == Rejection::ShuttingDown {
                            self.lost(node);
                        }
                        last = rejection.into();
                    }
                    // About this attempt only: an earlier one may have taken effect.
                    rejection => return Err(in_doubt.map_or(rejection.into(), indeterminate)),
                },
                Ok(Reply::Outcome(Outcome::Indeterminate { reached })) => {
                    if session.is_none() {
                        return Err(indeterminate(reached));
                    }
                    in_doubt = Some(reached);
                    last = indeterminate(reached);
                    pinned = stays(target, node);
                }
                Ok(Reply::Outcome(outcome)) => return acked(outcome),
                Ok(Reply::Status(_)) => return Err(indeterminate(Reached::default())),
                Err(Attempt::Unreachable(why)) => {
                    last = WriteError::Unreachable { last: why };
                    self.lost(node);
                }
                Err(Attempt::Ended(ended)) => {
                    last = WriteError::Unreachable { last: format!("node {node}: {ended}") };
                    self.lost(node);
                    if ended.may_have_arrived() {
                        if session.is_none() {
                            return Err(indeterminate(Reached::default()));
                        }
                        in_doubt.get_or_insert_with(Reached::default);
                        pinned = stays(target, node);
                    }
                    pause.skip_once();
                }
            }
            if !pause.wait(deadline).await {
                return Err(in_doubt.map_or(last, indeterminate));
            }
        }
    }

    async fn query(
        self: &Arc<Self>,
        head: &RequestHead,
        body: &[u8],
        target: ClientTarget,
        deadline: Instant,
    ) -> Result<Answer, ReadError> {
        let mut pause = Pause::new(self.config.retry_pause);
        let mut detour = None;
        loop {
            let (node, tries) = match detour.take() {
                Some(node) => (node, false),
                None => {
                    let node = self.aim(target, false);
                    (node, target == ClientTarget::Fastest && node != self.routes.home())
                }
            };
            let asking = self.ask(node, head, body, deadline);
            let answer = if tries {
                let patience = self.ranking.patience(self.routes.home());
                let Ok(answer) = tokio::time::timeout(patience, asking).await else {
                    // What was asked only to see how long it takes: it takes too long.
                    self.ranking.slow(node, Instant::now());
                    continue;
                };
                answer
            } else {
                asking.await
            };
            let error = match answer {
                Ok(Reply::Outcome(Outcome::Rejected(rejection))) => {
                    match &rejection {
                        Rejection::NotLeader { leader } if !matches!(target, ClientTarget::Node(_)) => {
                            detour = self.redirect(target, node, *leader, &mut pause);
                        }
                        // A follower that knows no leader will know one soon.
                        Rejection::NotLeader { .. } | Rejection::Busy { .. } => {}
                        Rejection::ShuttingDown => self.lost(node),
                        _ => return Err(rejection.into()),
                    }
                    rejection.into()
                }
                // The leader changed while it was confirmed: a read can always be asked again.
                Ok(Reply::Outcome(Outcome::Indeterminate { .. })) => ReadError::TimedOut,
                Ok(Reply::Outcome(outcome)) => return answered(outcome),
                Ok(Reply::Status(_)) => return Err(Rejection::Unsupported.into()),
                Err(attempt) => {
                    self.lost(node);
                    if matches!(attempt, Attempt::Ended(_)) {
                        pause.skip_once();
                    }
                    read_error(attempt)
                }
            };
            if !pause.wait(deadline).await {
                return Err(error);
            }
        }
    }

    async fn open_session(self: &Arc<Self>, deadline: Instant) -> Result<SessionId, WriteError> {
        let head = RequestHead::OpenSession { group: self.config.group };
        let mut pause = Pause::new(self.config.retry_pause);
        loop {
            match self.write(&head, &[], None, deadline).await {
                Ok(acked) => {
                    return session_id(&acked.reply).ok_or(WriteError::Rejected(Rejection::Unsupported));
                }
                // A session that nobody knows of harms nobody: another one is opened.
                Err(WriteError::Indeterminate { reached }) => {
                    if !pause.wait(deadline).await {
                        return Err(WriteError::Unreachable {
                            last: format!("a session could not be opened in time ({reached:?})"),
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn status(self: &Arc<Self>, node: NodeId, deadline: Instant) -> Result<NodeStatus, ReadError> {
        let head = RequestHead::Status { group: self.config.group };
        match self.ask(node, &head, &[], deadline).await.map_err(read_error)? {
            Reply::Status(status) => Ok(*status),
            Reply::Outcome(Outcome::Rejected(rejection)) => Err(rejection.into()),
            Reply::Outcome(_) => Err(Rejection::Unsupported.into()),
        }
    }

    /// Takes a hint of who leads, from a node that does not. Returns where the next attempt goes if that is nowhere else to
    /// be seen: with a home, the hint may be about one key only.
    fn redirect(
        &self,
        target: ClientTarget,
        from: NodeId,
        leader: Option<NodeId>,
        pause: &mut Pause,
    ) -> Option<NodeId> {
        let leader = leader.filter(|leader| *leader != from && self.pool.nodes.contains_key(leader));
        if leader.is_some() {
            pause.skip_once();
        }
        match (target, leader) {
            (ClientTarget::Home | ClientTarget::Fastest, leader) => return leader,
            (_, Some(leader)) => self.routes.set_leader(leader),
            (_, None) => self.routes.leads_not(from, &self.node_ids()),
        }
        None
    }

    /// Asks the other nodes who leads, because this one has fallen silent; whether somebody else does. Where nobody leads,
    /// what comes next goes to another node; what this one owes is waited for, because it may have been carried out.
    async fn leads_elsewhere(self: &Arc<Self>, silent: NodeId) -> bool {
        let deadline = Instant::now() + self.config.request_time_max;
        let mut newest = None;
        for node in self.node_ids().into_iter().filter(|node| *node != silent) {
            let status = tokio::time::timeout(self.config.silence_max, self.status(node, deadline));
            if let Ok(Ok(status)) = status.await {
                if status.replica.role == Role::Equal {
                    self.lost(silent);
                }
                newest = newest.max(Some((status.replica.term, status.replica.leader)));
            }
        }
        let Some((_, Some(leader))) = newest else { return false };
        if leader == silent || !self.pool.nodes.contains_key(&leader) {
            return false;
        }
        self.routes.set_leader(leader);
        true
    }
}

/// Where a write in doubt is sent again. A leader knows its group's sessions, wherever it runs; an equal knows its own.
const fn stays(target: ClientTarget, node: NodeId) -> Option<NodeId> {
    match target {
        ClientTarget::Home | ClientTarget::Fastest => Some(node),
        ClientTarget::Leader | ClientTarget::Node(_) => None,
    }
}

const fn indeterminate(reached: Reached) -> WriteError {
    WriteError::Indeterminate { reached }
}

/// Pauses between attempts: doubling, with jitter.
struct Pause {
    next: Duration,
    max: Duration,
    skip: bool,
    skips: u32,
}

/// Attempts that may follow one another without a pause: enough for a chain of hints, too few for a storm.
const SKIPS_MAX: u32 = 4;

impl Pause {
    fn new(first: Duration) -> Self {
        Self { next: first, max: first * 8, skip: false, skips: 0 }
    }

    /// The next attempt goes somewhere else: it need not wait.
    fn skip_once(&mut self) {
        self.skip = self.skips < SKIPS_MAX;
        self.skips += 1;
    }

    /// Waits; false if there is no time for another attempt.
    async fn wait(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if !std::mem::take(&mut self.skip) {
            let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.next = (self.next * 2).min(self.max);
            tokio::time::sleep(pause.min(left)).await;
        }
        true
    }
}
