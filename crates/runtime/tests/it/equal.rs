//! A toy replica of a family without a leader, and clients that speak to such: every node takes writes for itself and tells
//! nobody. It is useless, but it shows where every single request went.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::crdt::CrdtOp;
use replikit_core::keyspace::{
    Conflict, ConflictPage, Keyspace, KeyspaceQuery, decode_query, decode_request, decode_value, encode_conflict_page,
    encode_get, encode_versions,
};
use replikit_core::policy::{Cause, Overwritten, Version};
use replikit_core::{
    Action, Admin, CausalContext, Dot, GroupId, HybridTimestamp, Input, LogId, LogIndex, NodeId, Now, OriginId,
    Outcome, Position, Reached, ReadError, ReadLevel, ReadRequest, Rejection, Replica, Role, Stamp, StateMachine,
    Status, Store, StreamId, Term, Time, Token, WriteEffect, WriteError, WriteRequest,
};
use replikit_runtime::{
    Client, ClientConfig, ClientTarget, DEFAULT_GROUP, KvClient, KvHandle, LocalCluster, LocalConfig, Node, Retries,
};

use crate::{bounded, config, free_addresses};

/// A write of this key is carried out and never acknowledged.
const DOUBTFUL: &str = "doubtful";
/// Keys that begin so have their home at node 3.
const AT_THREE: &str = "three/";

struct Equal {
    id: NodeId,
    machine: Keyspace,
    written: u64,
    actions: VecDeque<Action<()>>,
    /// For how many milliseconds its answers are held back.
    slow: Arc<AtomicU64>,
    held_back: VecDeque<(Time, Action<()>)>,
    now: Time,
}

impl Equal {
    fn new(id: NodeId, slow: Arc<AtomicU64>) -> Self {
        let (actions, held_back) = Default::default();
        Self { id, machine: Keyspace::new(), written: 0, actions, slow, held_back, now: Time(0) }
    }

    fn done(&mut self, token: Token, outcome: Outcome) {
        let action = Action::Done { token, outcome };
        match self.slow.load(Ordering::Relaxed) {
            0 => self.actions.push_back(action),
            millis => self.held_back.push_back((self.now + Duration::from_millis(millis), action)),
        }
    }

    fn at(&self) -> Position {
        let id = LogId { term: Term(0), index: LogIndex(self.written) };
        Position { stream: StreamId { group: DEFAULT_GROUP, origin: OriginId(self.id.0) }, id, digest: 0 }
    }

    fn value(&mut self, token: Token, value: Bytes) {
        let (seen, staleness) = (Some(self.at()), None);
        self.done(token, Outcome::Value { values: vec![value], seen, strict: false, staleness });
    }

    fn command(&mut self, token: Token, body: &[u8]) {
        let request = decode_request(body).expect("the tests send nothing else");
        if request.key.starts_with(AT_THREE.as_bytes()) && self.id != NodeId(3) {
            let leader = Some(NodeId(3));
            return self.done(token, Outcome::Rejected(Rejection::NotLeader { leader }));
        }
        self.written += 1;
        let reply = self.machine.apply(LogIndex(self.written), body);
        if request.key != DOUBTFUL {
            let (at, reached) = (self.at(), Reached { received: 1, durable: 1, applied: 1 });
            self.done(token, Outcome::Acked { at, reached, strict: false, reply });
        }
    }

    fn query(&mut self, token: Token, body: &[u8]) {
        let answer = match decode_query(body) {
            Ok(KeyspaceQuery::Get { key }) => {
                let values: Vec<Bytes> = self.machine.get(&key).into_iter().collect();
                encode_versions(&values, &CausalContext::from_iter([self.dot()]))
            }
            Ok(KeyspaceQuery::Conflicts { after, limit }) => {
                let conflict = |number| Conflict { number, key: "k".into(), overwritten: overwritten(self.dot()) };
                let last = after + u64::from(limit);
                let conflicts = (after + 1..=last).map(conflict).collect();
                encode_conflict_page(&ConflictPage { conflicts, next: Some(last), dropped: 7 })
            }
            _ => self.machine.query(body, 1 << 20),
        };
        self.value(token, answer);
    }

    fn dot(&self) -> Dot {
        Dot { origin: OriginId(self.id.0), sequence: self.written + 1 }
    }
}

fn overwritten(dot: Dot) -> Overwritten {
    let stamp = Stamp { time: HybridTimestamp(1), dot };
    Overwritten { version: Version { stamp, value: Some("lost".into()) }, by: stamp, cause: Cause::Newer }
}

impl Replica for Equal {
    type Head = ();

    fn handle(&mut self, now: Now, input: Input<()>) {
        self.now = now.mono;
        while let Some((_, action)) = self.held_back.pop_front_if(|(due, _)| *due <= self.now) {
            self.actions.push_back(action);
        }
        match input {
            Input::Command { token, body, .. } => self.command(token, &body),
            Input::Query { token, body, .. } => self.query(token, &body),
            Input::OpenSession { token, .. } => self.done(token, Outcome::Rejected(Rejection::Unsupported)),
            Input::Admin { token, command: Admin::Status, .. } => {
                let status = Status {
                    group: DEFAULT_GROUP,
                    role: Role::Equal,
                    term: Term(0),
                    leader: None,
                    last: self.at(),
                    commit_index: LogIndex(self.written),
                    applied_index: LogIndex(self.written),
                    first_index: LogIndex(1),
                    epoch: replikit_core::Epoch(1),
                    snapshot: None,
                    followers: Vec::new(),
                    suspected: Vec::new(),
                    figures: Vec::new(),
                };
                // At once, so that what a slow node has done can be seen.
                let (values, seen) = (vec![status.encode()], Some(self.at()));
                let outcome = Outcome::Value { values, seen, strict: false, staleness: None };
                self.actions.push_back(Action::Done { token, outcome });
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Action<()>> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        self.held_back.front().map(|(due, _)| *due)
    }
}

fn cluster(count: u32) -> (Vec<Node<Keyspace>>, Vec<String>) {
    cluster_with(count, |_| Arc::default())
}

/// Nodes that can be made slow.
fn cluster_with(count: u32, slow: impl Fn(NodeId) -> Arc<AtomicU64>) -> (Vec<Node<Keyspace>>, Vec<String>) {
    let addresses = free_addresses(count);
    let open = |id| {
        let mut config = config(&addresses, id);
        // What is owed for ever holds up no shutdown.
        config.timing.shutdown_time_max = Duration::from_millis(50);
        let slow = slow(id);
        Node::open(config, move |_boots| Ok(Equal::new(id, slow))).unwrap()
    };
    let nodes = addresses.iter().map(|(id, _)| open(*id)).collect();
    (nodes, addresses.into_iter().map(|(_, address)| address).collect())
}

async fn stop(nodes: &mut Vec<Node<Keyspace>>, id: NodeId) {
    let node = nodes.remove(nodes.iter().position(|node| node.id() == id).unwrap());
    tokio::task::spawn_blocking(move || node.shutdown()).await.unwrap();
}

/// How many writes each node has carried out, ascending by node.
async fn written(nodes: &[Node<Keyspace>]) -> Vec<(NodeId, u64)> {
    let mut written = Vec::new();
    for node in nodes {
        let status = node.handle().status().await.unwrap();
        assert_eq!((status.node, status.replica.role, status.replica.leader), (node.id(), Role::Equal, None));
        written.push((node.id(), status.replica.applied_index.0));
    }
    written
}

/// What one node holds of a key.
async fn held(node: &Node<Keyspace>, key: &str) -> Vec<Bytes> {
    let read = ReadRequest::new(key.to_owned()).at(ReadLevel::Local);
    KvHandle::new(node.handle()).read(read).await.unwrap().values
}

fn begin_at(addresses: &[String], first: usize) -> ClientConfig {
    let (before, after) = addresses.split_at(first);
    ClientConfig::new("test", after.iter().chain(before).cloned()).without_leader()
}

fn add(key: &str) -> WriteRequest {
    WriteRequest::add(key.to_owned(), 1)
}

#[test]
fn a_client_with_a_home_writes_and_reads_there_and_nowhere_else() {
    bounded(async {
        let (nodes, addresses) = cluster(3);
        let client = Client::connect(begin_at(&addresses, 1)).await.unwrap();
        let store = KvClient::new(client.clone());
        for n in 1..=20 {
            let effect = store.write(add("n")).await.unwrap().effect;
            assert_eq!(effect, Some(WriteEffect::Counter { value: n }));
        }
        assert_eq!(store.read(ReadRequest::new("n")).await.unwrap().values, ["20"]);
        assert_eq!((client.home(), client.leader()), (NodeId(2), None));
        assert_eq!(written(&nodes).await, [(NodeId(1), 0), (NodeId(2), 20), (NodeId(3), 0)]);
    });
}

/// A client of the fastest of three nodes, its home the second one, that has been served by all; how many writes that took,
/// and what makes node 2 slow.
async fn fastest() -> (Vec<Node<Keyspace>>, Client, u64, Arc<AtomicU64>) {
    let slow: Arc<AtomicU64> = Arc::default();
    let (nodes, addresses) = cluster_with(3, |id| if id == NodeId(2) { slow.clone() } else { Arc::default() });
    let config = begin_at(&addresses, 1).reads(ClientTarget::Fastest).writes(ClientTarget::Fastest);
    let client = Client::connect(config).await.unwrap();
    let (store, mut total) = (KvClient::new(client.clone()), 0);
    while written(&nodes).await.iter().any(|(_, written)| *written < 2) || client.home() != NodeId(2) {
        store.write(add("n")).await.unwrap();
        total += 1;
    }
    (nodes, client, total, slow)
}

#[test]
fn a_client_of_the_fastest_leaves_a_slow_node_and_tries_it_seldom() {
    bounded(async {
        let (nodes, client, before, slow) = fastest().await;
        let at_two = written(&nodes).await[1].1;
        slow.store(200, Ordering::Relaxed);
        let store = KvClient::new(client.clone());
        for _ in 0..2_000 {
            store.write(add("n")).await.unwrap();
        }
        assert_ne!(client.home(), NodeId(2));
        let after = written(&nodes).await;
        // One by which it is found out, and a few that try it: in all that took.
        assert!(after[1].1 - at_two <= 20, "{} of 2000 went to the slow node", after[1].1 - at_two);
        assert_eq!(after.iter().map(|(_, written)| written).sum::<u64>(), before + 2_000, "nothing was sent twice");
    });
}

#[test]
fn a_client_of_the_fastest_goes_on_elsewhere_while_a_node_owes_answers() {
    bounded(async {
        let (nodes, client, _, slow) = fastest().await;
        slow.store(60_000, Ordering::Relaxed);
        let at_two = written(&nodes).await[1].1;
        let mut stuck = Vec::new();
        while written(&nodes).await[1].1 == at_two {
            let store = KvClient::new(client.clone());
            stuck.push(tokio::spawn(async move { store.write(add("n")).await }));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Longer than it may owe anything after what it took before.
        tokio::time::sleep(Duration::from_millis(100)).await;
        KvClient::new(client.clone()).read(ReadRequest::new("n")).await.unwrap();
        assert_ne!(client.home(), NodeId(2));
        assert!(stuck.iter().any(|write| !write.is_finished()), "and what it owes is waited for");
    });
}

#[test]
fn a_client_that_looks_for_a_leader_where_there_is_none_stays_at_one_node_too() {
    bounded(async {
        let (mut nodes, addresses) = cluster(3);
        let mut config = begin_at(&addresses, 1).writes(ClientTarget::Leader).reads(ClientTarget::Leader);
        config.request_time_max = Duration::from_secs(20);
        let store = KvClient::new(Client::connect(config).await.unwrap());
        for _ in 0..20 {
            store.write(add("n")).await.unwrap();
        }
        assert_eq!(written(&nodes).await, [(NodeId(1), 0), (NodeId(2), 20), (NodeId(3), 0)]);
        stop(&mut nodes, NodeId(2)).await;
        let mut acked = 0;
        while acked < 20 {
            match store.write(add("n")).await {
                Ok(_) => acked += 1,
                Err(error) => assert!(matches!(error, WriteError::Indeterminate { .. }), "{error:?}"),
            }
        }
        assert_eq!(written(&nodes).await, [(NodeId(1), 0), (NodeId(3), 20)]);
    });
}

#[test]
fn a_client_whose_home_is_lost_goes_on_at_another_node_and_nothing_counts_twice() {
    bounded(async {
        let (mut nodes, addresses) = cluster(3);
        let client = Client::connect(begin_at(&addresses, 1)).await.unwrap();
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let client = client.clone();
            let store = KvClient::new(client.clone());
            tasks.push(tokio::spawn(async move {
                let (mut acked, mut in_doubt, mut left) = (0, 0, 20);
                while left > 0 {
                    left -= u64::from(client.home() != NodeId(2));
                    match store.write(add("n")).await {
                        Ok(_) => acked += 1,
                        Err(WriteError::Indeterminate { .. }) => in_doubt += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (acked, in_doubt)
            }));
        }
        // Its last words: what it had carried out by then is not known to anybody but its clients.
        let second = nodes[1].handle();
        while second.counters().requests_acked < 100 {
            tokio::task::yield_now().await;
        }
        stop(&mut nodes, NodeId(2)).await;
        let before = second.counters().requests_acked;
        let (mut acked, mut in_doubt) = (0, 0);
        for task in tasks {
            let (one_acked, one_in_doubt) = task.await.unwrap();
            acked += one_acked;
            in_doubt += one_in_doubt;
        }
        assert_eq!(client.home(), NodeId(3), "the next one");
        let written = written(&nodes).await;
        assert_eq!(written[0], (NodeId(1), 0));
        let after = written[1].1;
        // Every acknowledgement is one write; of those in doubt the lost node may have carried out each once.
        assert!(after <= acked && acked <= before + after, "{before} before, {after} after, {acked} acknowledged");
        assert!(before + after <= acked + in_doubt, "{before} + {after} of {acked}, {in_doubt} in doubt");
    });
}

#[test]
fn a_write_that_may_have_been_carried_out_is_not_sent_to_another_node() {
    bounded(async {
        let (mut nodes, addresses) = cluster(2);
        let client = Client::connect(begin_at(&addresses, 0)).await.unwrap();
        let store = KvClient::new(client.clone());
        let write = tokio::spawn(async move { store.write(WriteRequest::put(DOUBTFUL, "v")).await });
        while written(&nodes[..1]).await != [(NodeId(1), 1)] {
            tokio::task::yield_now().await;
        }
        stop(&mut nodes, NodeId(1)).await;
        assert!(matches!(write.await.unwrap(), Err(WriteError::Indeterminate { .. })));
        KvClient::new(client.clone()).write(add("n")).await.unwrap();
        assert_eq!(held(&nodes[0], DOUBTFUL).await, Vec::<Bytes>::new());
        assert_eq!((written(&nodes).await, client.home()), (vec![(NodeId(2), 1)], NodeId(2)));
    });
}

#[test]
fn a_write_whose_connection_ends_is_not_sent_again() {
    use std::io::Read;
    bounded(async {
        for target in [ClientTarget::Home, ClientTarget::Leader] {
            let (nodes, addresses) = cluster(1);
            // Node 9 greets, takes one request, and is gone.
            let short = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let short_address = short.local_addr().unwrap().to_string();
            let known = [(9, short_address.clone()), (1, addresses[0].clone())];
            let thread = std::thread::spawn(move || {
                let (mut stream, _) = short.accept().unwrap();
                crate::welcome(&stream, false, &known);
                stream.read(&mut [0; 1000]).unwrap()
            });
            let client = Client::connect(begin_at(&[short_address], 0).writes(target)).await.unwrap();
            assert_eq!((client.home(), client.leader()), (NodeId(9), None));
            let store = KvClient::new(client);
            let doubt = store.write(add("n")).await;
            assert!(matches!(doubt, Err(WriteError::Indeterminate { .. })), "{doubt:?}");
            assert!(thread.join().unwrap() > 0, "it was asked");
            assert_eq!(written(&nodes).await, [(NodeId(1), 0)]);
            store.write(add("n")).await.unwrap();
            assert_eq!(written(&nodes).await, [(NodeId(1), 1)]);
        }
    });
}

#[test]
fn a_write_under_a_session_that_is_in_doubt_waits_for_the_node_that_knows_it() {
    bounded(async {
        let (mut nodes, addresses) = cluster(2);
        let mut config = begin_at(&addresses, 0);
        config.request_time_max = Duration::from_secs(1);
        let client = Client::connect(config).await.unwrap();
        let store = KvClient::new(client.clone());
        let mut write = WriteRequest::put(DOUBTFUL, "v");
        write.session = Some(replikit_core::SessionSeq { session: replikit_core::SessionId(1), sequence: 1 });
        let write = tokio::spawn(async move { store.write(write).await });
        while written(&nodes[..1]).await != [(NodeId(1), 1)] {
            tokio::task::yield_now().await;
        }
        stop(&mut nodes, NodeId(1)).await;
        assert!(matches!(write.await.unwrap(), Err(WriteError::Indeterminate { .. })));
        assert_eq!(client.home(), NodeId(2), "for what comes next");
        assert_eq!(written(&nodes).await, [(NodeId(2), 0)]);
    });
}

#[test]
fn a_key_with_a_home_is_written_there_and_the_client_stays_where_it_is() {
    bounded(async {
        let (mut nodes, addresses) = cluster(3);
        let mut config = begin_at(&addresses, 0);
        config.request_time_max = Duration::from_millis(500);
        let client = Client::connect(config).await.unwrap();
        let store = KvClient::new(client.clone());
        for _ in 0..10 {
            store.write(add("three/n")).await.unwrap();
            store.write(add("n")).await.unwrap();
        }
        assert_eq!((client.home(), client.leader()), (NodeId(1), None));
        assert_eq!(written(&nodes).await, [(NodeId(1), 10), (NodeId(2), 0), (NodeId(3), 10)]);
        stop(&mut nodes, NodeId(3)).await;
        let error = store.write(add("three/n")).await.unwrap_err();
        let expected = Rejection::NotLeader { leader: Some(NodeId(3)) };
        // In doubt if it was sent before the end of the connection was noticed.
        let fits = matches!(&error, WriteError::Unreachable { .. } | WriteError::Indeterminate { .. });
        assert!(fits || error == expected.into(), "{error:?}");
        store.write(add("n")).await.unwrap();
        assert_eq!((client.home(), written(&nodes).await[0]), (NodeId(1), (NodeId(1), 11)));
    });
}

#[test]
fn a_client_of_one_node_speaks_to_no_other() {
    bounded(async {
        let (mut nodes, addresses) = cluster(3);
        let mut config = begin_at(&addresses, 0).writes(ClientTarget::Node(NodeId(2)));
        config.request_time_max = Duration::from_millis(300);
        let store = KvClient::new(Client::connect(config).await.unwrap());
        store.write(add("n")).await.unwrap();
        let elsewhere = store.write(add("three/n")).await;
        assert_eq!(elsewhere, Err(Rejection::NotLeader { leader: Some(NodeId(3)) }.into()));
        assert_eq!(written(&nodes).await, [(NodeId(1), 0), (NodeId(2), 1), (NodeId(3), 0)]);
        stop(&mut nodes, NodeId(2)).await;
        let mut error = store.write(add("n")).await.unwrap_err();
        if matches!(error, WriteError::Indeterminate { .. }) {
            // Sent before the end of the connection was seen.
            error = store.write(add("n")).await.unwrap_err();
        }
        assert!(matches!(error, WriteError::Unreachable { .. }), "{error:?}");
        assert_eq!(written(&nodes).await, [(NodeId(1), 0), (NodeId(3), 0)]);
    });
}

#[test]
fn a_silent_home_is_left_by_what_comes_next_and_its_debts_are_waited_for() {
    bounded(async {
        let (nodes, addresses) = cluster(2);
        let mut config = begin_at(&addresses, 0);
        config.request_time_max = Duration::from_secs(4);
        config.silence_max = Duration::from_millis(20);
        let client = Client::connect(config).await.unwrap();
        // Its home owes an answer and says nothing, as a node that was paused does.
        let store = KvClient::new(client.clone());
        let began = Instant::now();
        let debt = tokio::spawn(async move { store.write(WriteRequest::put(DOUBTFUL, "v")).await });
        while client.home() != NodeId(2) {
            tokio::task::yield_now().await;
        }
        assert!(began.elapsed() < Duration::from_secs(3), "not only when its time is over");
        KvClient::new(client.clone()).write(add("n")).await.unwrap();
        assert!(matches!(debt.await.unwrap(), Err(WriteError::Indeterminate { .. })));
        assert!(began.elapsed() >= Duration::from_secs(4));
        assert_eq!(written(&nodes).await, [(NodeId(1), 1), (NodeId(2), 1)]);
    });
}

#[test]
fn sessions_where_there_are_none_are_refused_at_once() {
    bounded(async {
        let (nodes, addresses) = cluster(1);
        let mut config = begin_at(&addresses, 0);
        config.retries = Retries::ExactlyOnce;
        let store = KvClient::new(Client::connect(config).await.unwrap());
        assert_eq!(store.write(add("n")).await, Err(Rejection::Unsupported.into()));
        assert_eq!(written(&nodes).await, [(NodeId(1), 0)]);
    });
}

#[test]
fn a_read_hands_on_the_context_and_a_page_of_conflicts_what_was_overwritten() {
    bounded(async {
        let (_nodes, addresses) = cluster(1);
        let store = KvClient::new(Client::connect(begin_at(&addresses, 0)).await.unwrap());
        let absent = store.read(ReadRequest::new("k")).await.unwrap();
        let dot = |sequence| Dot { origin: OriginId(1), sequence };
        assert_eq!((absent.values, absent.context), (vec![], Some(CausalContext::from_iter([dot(1)]))));
        store.write(WriteRequest::put("k", "v").over(CausalContext::from_iter([dot(1)]))).await.unwrap();
        let read = store.read(ReadRequest::new("k")).await.unwrap();
        assert_eq!(read.values, ["v"]);
        assert_eq!(read.context, Some(CausalContext::from_iter([dot(2)])));
        let page = store.conflicts(4, 2).await.unwrap();
        assert_eq!((page.next, page.dropped), (Some(6), 7));
        assert_eq!(page.conflicts.iter().map(|conflict| conflict.number).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(page.conflicts[0].overwritten, overwritten(dot(2)));
    });
}

#[test]
fn where_one_leader_orders_the_writes_there_is_no_context_and_no_conflict() {
    bounded(async {
        let (nodes, client) = crate::cluster(1).await;
        let store = KvClient::new(client);
        let dot = Dot { origin: OriginId(1), sequence: 1 };
        store.write(WriteRequest::put("k", "v").over(CausalContext::from_iter([dot]))).await.unwrap();
        let read = store.read(ReadRequest::new("k")).await.unwrap();
        assert_eq!((read.values, read.context), (vec![Bytes::from("v")], None));
        let effect = store.write(WriteRequest::crdt("k", CrdtOp::Enable)).await.unwrap().effect;
        assert_eq!(effect, Some(WriteEffect::Unsupported));
        assert_eq!(store.conflicts(0, 10).await, Ok(ConflictPage::default()));
        assert_eq!(KvHandle::new(nodes[0].handle()).conflicts(0, 10).await, Ok(ConflictPage::default()));
        let answer = nodes[0].handle().query(encode_get(b"k").unwrap()).await.unwrap().value;
        assert_eq!(decode_value(&answer), Ok(Some("v".into())));
    });
}

#[test]
fn a_cluster_of_equals_in_one_process_takes_writes_and_says_who_it_is() {
    bounded(async {
        let cluster: LocalCluster<Keyspace> =
            LocalCluster::open(LocalConfig::new(3), |id, _boots| Equal::new(id, Arc::default()));
        let anywhere = KvHandle::new(cluster.handle());
        anywhere.write(add("n")).await.unwrap();
        KvHandle::new(cluster.handle_at(NodeId(2))).write(add("n")).await.unwrap();
        anywhere.write(add("three/n")).await.unwrap();
        let mut seen = Vec::new();
        for node in cluster.nodes() {
            let status = cluster.handle_at(*node).status().await.unwrap();
            seen.push((status.node, status.replica.role, status.replica.applied_index.0));
        }
        assert_eq!(seen, [1, 2, 3].map(|node| (NodeId(node), Role::Equal, 1)));
        assert_eq!(cluster.handle().status().await.unwrap().node, NodeId(1));
        cluster.stop(NodeId(1)).await;
        assert_eq!(cluster.handle().status().await.unwrap().node, NodeId(2));
        assert_eq!(anywhere.endpoint().for_group(GroupId(1)).group(), DEFAULT_GROUP);
        cluster.shutdown();
        let ended = cluster.handle().status().await.unwrap_err();
        assert_eq!(ended, ReadError::Rejected(Rejection::ShuttingDown));
    });
}
