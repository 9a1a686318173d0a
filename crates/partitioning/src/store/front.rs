//! The store for clients that know nothing of partitions: inside every node, and as a router, a process without data.
//!
//! Invariants: a front sends a request on to the group that has its key, which sends it nowhere else: one hop. It keeps nothing that
//! a request needs to be retried through another front: a session that it opens is a number that the log of maps gave, and answers
//! are kept by the groups.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replikit_core::keyspace::{
    KeyspaceQuery, WantedPage, decode_query, encode_conflict_page, encode_page, wanted_key, wanted_page, written_key,
};
use replikit_core::{
    Epoch, Figure, GroupId, LogId, LogIndex, NodeId, Outcome, Position, Reached, ReadError, ReadLevel, Rejection, Role,
    SESSION_WINDOW, ScanRequest, SessionSeq, Status, StreamId, Term, WriteError,
};
use replikit_runtime::{
    Acked, Answer, Gateway, GatewayAt, GatewayCall, Handle, Node, NodeConfig, NodeStatus, OpenError, ReadOptions,
};
use replikit_single_leader::Raft;
use tokio::sync::OnceCell;

use super::asking::ask_some_at_once;
use super::cache::MapCache;
use super::client::{StoreClient, StoreClientConfig};
use super::machine::StoreMachine;
use super::scan::{Completeness, gather};
use super::{MAPS_GROUP, META_GROUP, STORE_GROUP};
use crate::groups::Groups;
use crate::map::Replication;
use crate::meta::{MetaAnswer, MetaCommand, MetaQuery};
use crate::shard::{ClientId, Request};

/// How long a node may take to learn of the newest map before it describes itself.
const MAP_TIME_MAX: Duration = Duration::from_millis(100);

/// Groups of a node that are asked how they are at once.
const ASKED_AT_ONCE: usize = 256;

/// A session's number, as the groups know it: its client has at most [`SESSION_WINDOW`] requests between the oldest one that is
/// under way and the newest.
pub(super) const fn numbered(session: SessionSeq) -> Request {
    let SessionSeq { session, sequence } = session;
    let oldest = sequence.saturating_sub(SESSION_WINDOW - 1);
    Request { client: ClientId(session.0), sequence, done_below: if oldest == 0 { 1 } else { oldest } }
}

/// A position that says nothing.
fn nowhere() -> Position {
    let id = LogId { term: Term(0), index: LogIndex(0) };
    Position { stream: StreamId::consensus(STORE_GROUP), id, digest: 0 }
}

/// Answers requests for the whole store at a node or router.
#[derive(Debug)]
pub struct Front {
    config: StoreClientConfig,
    cache: Arc<MapCache>,
    /// The nodes of the group that keeps the map, where they are known.
    meta: Option<Vec<NodeId>>,
    client: OnceCell<StoreClient>,
    /// The node's own groups.
    own: OnceLock<Own>,
}

#[derive(Debug)]
struct Own {
    node: NodeId,
    handle: Handle<StoreMachine>,
    /// All that may be here: the map says which groups are that it places.
    groups: Vec<GroupId>,
}

impl Own {
    fn of_partitions(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().copied().filter(|group| *group != META_GROUP)
    }

    /// How those of its groups that answer describe themselves: many at a time, so that a node with thousands soon has them all.
    async fn statuses(&self) -> Vec<(GroupId, NodeStatus)> {
        let ask = |group| {
            let handle = self.handle.for_group(group);
            async move { Some((group, handle.status().await.ok()?)) }
        };
        let statuses = ask_some_at_once(self.of_partitions().collect(), ASKED_AT_ONCE, ask).await;
        statuses.into_iter().flatten().collect()
    }
}

impl Front {
    pub(super) fn new(config: StoreClientConfig, cache: Arc<MapCache>, meta: Option<Vec<NodeId>>) -> Self {
        Self { config, cache, meta, client: OnceCell::new(), own: OnceLock::new() }
    }

    pub(super) fn at(self: &Arc<Self>) -> GatewayAt {
        let gateway: Arc<dyn Gateway> = Arc::<Self>::clone(self);
        GatewayAt { groups: vec![STORE_GROUP, MAPS_GROUP], gateway }
    }

    /// Tells it of the node's groups.
    pub(super) fn own(&self, node: NodeId, handle: Handle<StoreMachine>, groups: Vec<GroupId>) {
        // It is told once, by the node that has made it.
        let _ = self.own.set(Own { node, handle, groups });
    }

    async fn client(&self) -> Result<&StoreClient, Rejection> {
        let connect = || StoreClient::connect_to(self.config.clone(), Arc::clone(&self.cache), self.meta.as_deref());
        self.client.get_or_try_init(connect).await.map_err(|_| Rejection::NoQuorum)
    }

    async fn carry_out(&self, group: GroupId, call: GatewayCall) -> Result<Outcome, Rejection> {
        let client = self.client().await?;
        Ok(match (group, call) {
            (_, GatewayCall::Status) => self.describe(client).await,
            (MAPS_GROUP, GatewayCall::Query { body, .. }) => self.answer_map(client, &body).await?,
            (MAPS_GROUP, GatewayCall::Command { body, .. }) => {
                // Only what is a command of the map goes on to the group that keeps it.
                MetaCommand::decode(&body).map_err(|_| Rejection::Malformed)?;
                acked(client.0.maps.write(body).await)
            }
            (_, GatewayCall::OpenSession) => {
                let opened = client.open_client().await;
                acked(opened.map(|ClientId(client)| Acked {
                    at: nowhere(),
                    reached: Reached::default(),
                    strict: true,
                    reply: Bytes::copy_from_slice(&client.to_le_bytes()),
                }))
            }
            (_, GatewayCall::Command { level, session, body }) => {
                let key = written_key(&body).map_err(|_| Rejection::Malformed)?;
                acked(client.command(key, &body, level, session.map(numbered)).await)
            }
            (_, GatewayCall::Query { level, body, bytes_max }) => self.ask(client, level, &body, bytes_max).await?,
            // A request of a newer kind.
            _ => return Err(Rejection::Unsupported),
        })
    }

    async fn ask(
        &self,
        client: &StoreClient,
        level: ReadLevel,
        body: &[u8],
        bytes_max: usize,
    ) -> Result<Outcome, Rejection> {
        if let Ok(key) = wanted_key(body) {
            let options = ReadOptions { level, answer_bytes_max: bytes_max };
            return Ok(answered(client.question(key, body, options).await));
        }
        if let Ok(KeyspaceQuery::Conflicts { after, limit }) = decode_query(body) {
            // What was overwritten at one node is in the log of that one: a router has none.
            let own = self.own.get().ok_or(Rejection::Unsupported)?;
            let page = super::audit::page(&own.handle, own.of_partitions().collect(), after, limit, bytes_max).await;
            return Ok(answered(page.map(|page| Answer {
                value: encode_conflict_page(&page),
                seen: None,
                strict: false,
                staleness: None,
            })));
        }
        let WantedPage { from, to, limit, .. } = wanted_page(body).map_err(|_| Rejection::Unsupported)?;
        let (from, to) = (Bytes::copy_from_slice(from), to.map(Bytes::copy_from_slice));
        let scan = ScanRequest { from, to, limit, level };
        let gathered = gather(&client.0, &scan, Completeness::Whole, bytes_max).await;
        Ok(answered(gathered.map(|gathered| Answer {
            value: encode_page(&gathered.page),
            seen: None,
            strict: true,
            staleness: None,
        })))
    }

    /// What follows the epoch asked for; if nothing is known to, the log of maps is asked, by one for all who want to know.
    async fn answer_map(&self, client: &StoreClient, question: &[u8]) -> Result<Outcome, Rejection> {
        let MetaQuery::Since(have) = MetaQuery::decode(question).map_err(|_| Rejection::Malformed)?;
        if self.cache.load().epoch() <= have
            && let Err(error) = self.cache.refresh(&client.0.maps).await
            && self.cache.load().map().is_none()
        {
            return Ok(answered(Err(error)));
        }
        let answer = self.cache.since(have).unwrap_or(MetaAnswer::Deltas(Vec::new()));
        Ok(Outcome::Value { values: vec![answer.encode()], seen: None, strict: true, staleness: None })
    }

    /// The whole store as this node sees it.
    async fn describe(&self, client: &StoreClient) -> Outcome {
        // As far as that can be had at once: else it is described by an older map, or without one.
        let _ = tokio::time::timeout(MAP_TIME_MAX, self.cache.refresh(&client.0.maps)).await;
        let known = self.cache.load();
        let mut figures = vec![Figure::new("partitions in all", known.map().map_or(0, |map| map.len() as u64))];
        let mut role = Role::Fallback;
        let mut applied = 0;
        if let Some(own) = self.own.get() {
            role = Role::Equal;
            let (mut leads, mut led) = (0, 0);
            for (group, status) in own.statuses().await {
                applied += status.replica.applied_index.0;
                if status.replica.role == Role::Leader {
                    leads += 1;
                    led += known.map().map_or(0, |map| map.of_group(group).count() as u64);
                }
            }
            let owned = known.map().map(|map| {
                let mut placed = map.partitions().filter(|it| !it.replication.has_one_log()).peekable();
                placed.peek()?;
                Some(placed.filter(|it| it.replicas.contains(&own.node)).count() as u64)
            });
            match owned.flatten() {
                Some(owned) => figures.push(Figure::new("groups owned", owned)),
                None => {
                    figures.push(Figure::new("groups here", own.of_partitions().count() as u64));
                    figures.push(Figure::new("groups led", leads));
                    figures.push(Figure::new("partitions led", led));
                }
            }
        }
        let status = Status {
            group: STORE_GROUP,
            role,
            term: Term(0),
            leader: None,
            last: nowhere(),
            commit_index: LogIndex(applied),
            applied_index: LogIndex(applied),
            first_index: LogIndex(0),
            epoch: known.epoch(),
            snapshot: None,
            followers: Vec::new(),
            suspected: Vec::new(),
            figures,
        };
        Outcome::Value { values: vec![status.encode()], seen: None, strict: false, staleness: None }
    }
}

#[async_trait]
impl Gateway for Front {
    async fn call(&self, group: GroupId, call: GatewayCall) -> Outcome {
        self.carry_out(group, call).await.unwrap_or_else(Outcome::Rejected)
    }
}

/// A rejection for a client that knows nothing of groups and their leaders.
fn plain(rejection: Rejection) -> Rejection {
    match rejection {
        Rejection::NotLeader { .. } => Rejection::NoQuorum,
        rejection => rejection,
    }
}

fn acked(ended: Result<Acked, WriteError>) -> Outcome {
    match ended {
        Ok(Acked { at, reached, strict, reply }) => Outcome::Acked { at, reached, strict, reply },
        Err(WriteError::Rejected(rejection)) => Outcome::Rejected(plain(rejection)),
        Err(WriteError::Unreachable { .. }) => Outcome::Rejected(Rejection::NoQuorum),
        Err(WriteError::Indeterminate { reached }) => Outcome::Indeterminate { reached },
        // Whatever else a write may end with, it is not known to have had no effect.
        Err(_) => Outcome::Indeterminate { reached: Reached::default() },
    }
}

fn answered(ended: Result<Answer, ReadError>) -> Outcome {
    match ended {
        Ok(Answer { value, seen, strict, staleness }) => {
            Outcome::Value { values: vec![value], seen, strict, staleness }
        }
        Err(ReadError::Rejected(rejection)) => Outcome::Rejected(plain(rejection)),
        Err(_) => Outcome::Rejected(Rejection::NoQuorum),
    }
}

/// A front in a process without data: the routing tier. Dropping it shuts it down.
#[derive(Debug)]
pub struct Router {
    node: Node<StoreMachine>,
}

impl Router {
    /// Opens a router that listens at `listen` for the clients of the store that `nodes` are some addresses of, and whose groups
    /// replicate like this. It needs none of them to be up yet.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running.
    pub fn open(listen: &str, nodes: StoreClientConfig, replication: Replication) -> Result<Self, OpenError> {
        // Clients tell routers apart by their numbers, which none of the store's nodes may have.
        let number = (1 << 31) | (xxhash_rust::xxh3::xxh3_64(listen.as_bytes()) as u32 >> 2);
        let mut config = NodeConfig::new(NodeId(number), nodes.cluster.clone(), listen);
        config.promise = Some(match replication {
            Replication::SingleLeader => super::guarantees,
            Replication::Leaderless => super::guarantees_leaderless,
            Replication::MultiLeader => super::guarantees_multi_leader,
        });
        config.gateway = Some(Arc::new(Front::new(nodes, Arc::new(MapCache::new()), None)).at());
        let node = Node::open(config, |_boots| Ok(Groups::<Raft<StoreMachine>>::new(Epoch(0), [])))?;
        Ok(Self { node })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.node.local_address()
    }

    /// Shuts down cleanly: requests under way are answered.
    pub fn shutdown(self) {
        self.node.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use replikit_core::SessionId;

    use super::*;

    #[test]
    fn a_number_of_a_session_lets_go_only_of_what_its_window_has_passed() {
        let at = |sequence| numbered(SessionSeq { session: SessionId(3), sequence });
        assert_eq!((at(1).done_below, at(SESSION_WINDOW).done_below), (1, 1));
        assert_eq!(at(SESSION_WINDOW + 1).done_below, 2);
        assert!(at(1000).sequence - at(1000).done_below < crate::shard::ANSWERS_MAX as u64);
    }
}
