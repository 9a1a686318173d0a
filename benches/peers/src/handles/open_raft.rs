//! `openraft`: three nodes as tasks of one runtime, with logs and state machines in memory, and a network that calls the other node.
//!
//! What it asks of storage is here as plainly as it can be: a queue of entries under a lock, synced as soon as it is appended.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Config, EntryPayload, LogState, OptionalSend, Raft, RaftLogReader, RaftNetworkFactory, RaftNetworkV2,
    RaftSnapshotBuilder, SnapshotPolicy,
};
use replikit_benches::handle::Handle;

use crate::tally::{Applied, REPLICAS, Tallies, Tally};

/// A leader must be there within this time.
const START_MAX: Duration = Duration::from_secs(10);

/// A command; its bytes are shared by all logs.
#[derive(Clone, Debug)]
pub(super) struct Command(Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command of {} B", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// The crate's own defaults, but for commands and answers.
    pub(super) Types: D = Command, R = (), Node = ()
);

type Node = Raft<Types, Machine>;
type Snapshot = SnapshotOf<Types, Applied>;

/// Nothing panics while it holds one of these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics under it")
}

/// The settings of a node, and their names.
pub(super) fn config() -> Config {
    Config {
        // A busy machine must not cost the leader its place.
        heartbeat_interval: 250,
        election_timeout_min: 1_000,
        election_timeout_max: 2_000,
        max_payload_entries: 4_096,
        // Snapshots are what lets it forget its log.
        snapshot_policy: SnapshotPolicy::LogsSinceLast(100_000),
        max_in_snapshot_log_to_keep: 50_000,
        purge_batch_size: 1_024,
        replication_lag_threshold: 200_000,
        ..Config::default()
    }
}

/// A running group. [`OpenRaft::stop`] ends it; its nodes know each other, so dropping it does not.
pub(super) struct OpenRaft {
    nodes: Arc<Mutex<Vec<Node>>>,
    leader: Node,
}

impl OpenRaft {
    /// Starts three nodes on the current runtime, and waits until the first one leads.
    pub(super) async fn start(tallies: &Tallies) -> Result<Self, String> {
        let config = Arc::new(config().validate().map_err(|error| error.to_string())?);
        let router = Router::default();
        let mut nodes = Vec::new();
        for (id, tally) in tallies.iter().enumerate() {
            let machine = Machine { tally: tally.clone(), state: Arc::default() };
            let node = Raft::new(id as u64, config.clone(), router.clone(), Log::default(), machine).await;
            nodes.push(node.map_err(|error| error.to_string())?);
        }
        let leader = nodes[0].clone();
        router.0.lock().expect("nothing panics under it").extend(nodes);
        let this = Self { nodes: router.0, leader };
        let members: BTreeSet<u64> = (0..REPLICAS as u64).collect();
        this.leader.initialize(members).await.map_err(|error| error.to_string())?;
        // The members are entry 0; entry 1 is the leader's own, and it leads once that is applied.
        let led = this.leader.wait(Some(START_MAX)).applied_index_at_least(Some(1), "the first node leads").await;
        led.map_err(|error| error.to_string())?;
        Ok(this)
    }

    /// What clients call.
    pub(super) fn handle(&self) -> Leader {
        Leader(self.leader.clone())
    }

    /// Ends its tasks, and lets go of its logs.
    pub(super) async fn stop(self) -> Result<(), String> {
        let nodes = std::mem::take(&mut *locked(&self.nodes));
        for node in nodes {
            node.shutdown().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// The node that leads.
#[derive(Clone)]
pub(super) struct Leader(Node);

impl Handle for Leader {
    async fn write(&self, command: Bytes) -> Result<(), String> {
        self.0.client_write(Command(command)).await.map(drop).map_err(|error| error.to_string())
    }
}

/// A node's log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    vote: Option<VoteOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    /// One behind the other, from the one behind `purged` on.
    entries: VecDeque<EntryOf<Types>>,
}

impl Stored {
    /// Where the entry of this index is, or would be.
    fn position(&self, index: u64) -> usize {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        (index.saturating_sub(first) as usize).min(self.entries.len())
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: B,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let stored = locked(&self.0);
        let start = match range.start_bound() {
            Bound::Included(index) => stored.position(*index),
            Bound::Excluded(index) => stored.position(*index + 1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => stored.position(*index + 1),
            Bound::Excluded(index) => stored.position(*index),
            Bound::Unbounded => stored.entries.len(),
        };
        Ok(stored.entries.range(start..end.max(start)).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(locked(&self.0).vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let stored = locked(&self.0);
        let last = stored.entries.back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: stored.purged, last_log_id: last.or(stored.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        locked(&self.0).vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        locked(&self.0).entries.extend(entries);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut stored = locked(&self.0);
        let kept = last.map_or(0, |last| stored.position(last.index + 1));
        stored.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, until: LogIdOf<Types>) -> Result<(), io::Error> {
        let mut stored = locked(&self.0);
        let purged = stored.position(until.index + 1);
        stored.entries.drain(..purged);
        stored.purged = Some(until);
        Ok(())
    }
}

/// A node's state machine: a tally.
#[derive(Clone)]
struct Machine {
    tally: Arc<Tally>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    last: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    snapshot: Option<Snapshot>,
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Applied;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut state = locked(&self.state);
        let meta = SnapshotMetaOf::<Types> { last_log_id: state.last, last_membership: state.membership.clone() };
        let snapshot = Snapshot { meta, snapshot: self.tally.applied() };
        state.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Applied;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let state = locked(&self.state);
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => self.tally.apply(&command.0),
                EntryPayload::Membership(membership) => {
                    locked(&self.state).membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                }
            }
            locked(&self.state).last = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, data: Applied) -> Result<(), io::Error> {
        self.tally.set(data);
        let mut state = locked(&self.state);
        state.last = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(Snapshot { meta: meta.clone(), snapshot: data });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(locked(&self.state).snapshot.clone())
    }
}

/// All nodes, by their ids; filled once they are there.
#[derive(Clone, Default)]
struct Router(Arc<Mutex<Vec<Node>>>);

impl RaftNetworkFactory<Types> for Router {
    type Network = Wire;

    async fn new_client(&mut self, target: u64, (): &()) -> Wire {
        Wire(locked(&self.0).get(target as usize).cloned())
    }
}

/// The way to another node: a call. There is none to a node that is stopped.
struct Wire(Option<Node>);

impl Wire {
    fn target(&self) -> Result<&Node, Unreachable<Types>> {
        self.0.as_ref().ok_or_else(|| Unreachable::from_string("the group is stopped"))
    }
}

impl RaftNetworkV2<Types> for Wire {
    type SnapshotData = Applied;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.target()?.append_entries(request).await;
        answer.map_err(|error| Unreachable::new(&error).into())
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.target()?.vote(request).await;
        answer.map_err(|error| Unreachable::new(&error).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let answer = self.target()?.install_full_snapshot(vote, snapshot).await;
        answer.map_err(|error| Unreachable::new(&error).into())
    }
}
