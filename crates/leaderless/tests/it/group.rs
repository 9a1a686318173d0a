//! Replicas with logs in memory, driven step by step: messages arrive when a test lets them, disks are done at once unless
//! a test stops them, and every node has a wall clock of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use replikit_core::keyspace::{Versions, decode_versions, encode_get, encode_write};
use replikit_core::*;
use replikit_leaderless::{Config, Counting, Fallback, Fallbacks, Founding, Head, Leaderless, Participant};
use replikit_log::{MemoryLog, RecoveryItem, Storage};

pub(crate) const GROUP: GroupId = GroupId(0);

/// What becomes of a snapshot on a disk.
pub(crate) type Rot = fn(Vec<u8>) -> Vec<u8>;

pub(crate) struct Place {
    pub(crate) replica: Participant,
    log: MemoryLog,
    pub(crate) events: Vec<Event>,
    pub(crate) disk_stopped: bool,
    // What the disk has not taken while it is stopped: a crash loses it.
    waiting: Vec<(WriteId, Persist)>,
    /// Batches that it has stored.
    pub(crate) appends: u64,
    /// Messages that it has handed to the network.
    pub(crate) sent: u64,
}

pub(crate) struct Group {
    pub(crate) places: BTreeMap<NodeId, Place>,
    logs: BTreeMap<NodeId, MemoryLog>,
    pub(crate) wire: VecDeque<(NodeId, NodeId, Message<Head>)>,
    /// Pairs that cannot reach each other, one direction each.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Pieces of snapshots that were handed to the network.
    pub(crate) pieces: u64,
    /// What did not get through.
    pub(crate) lost: Vec<(NodeId, NodeId, Message<Head>)>,
    /// Nodes whose pushes are lost on the wire.
    pub(crate) pushes_lost: BTreeSet<NodeId>,
    /// Nodes whose disks are stopped when they start.
    pub(crate) starts_stopped: BTreeSet<NodeId>,
    /// Messages that never arrive.
    pub(crate) drops: fn(&Head) -> bool,
    /// What becomes of the snapshot of a node when it starts next, behind all checksums.
    pub(crate) rot: Option<(NodeId, Rot)>,
    /// Whether what is released stays in the log, as in a file of which something else is needed.
    pub(crate) releases_late: bool,
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    pub(crate) skew: BTreeMap<NodeId, i64>,
    now: Time,
    tokens: u64,
    members: Vec<NodeId>,
    fallbacks: Fallbacks,
    configure: Box<dyn Fn(&mut Config)>,
    /// Where each node hears of epochs; none where owners never change.
    sources: BTreeMap<NodeId, Arc<Announcements>>,
    membership: Membership,
}

fn owners(nodes: impl IntoIterator<Item = u32>) -> Vec<NodeInfo> {
    let info = |id| NodeInfo { id: NodeId(id), address: String::new(), region: String::new(), zone: String::new() };
    nodes.into_iter().map(info).collect()
}

impl Group {
    pub(crate) fn new(nodes: u32, configure: impl Fn(&mut Config) + 'static) -> Self {
        Self::with_fallbacks(nodes, 0, Counting::Never, configure)
    }

    /// Owners from node 1 on, and behind them so many nodes that stand in for them.
    pub(crate) fn with_fallbacks(
        owners: u32,
        fallbacks: u32,
        counting: Counting,
        configure: impl Fn(&mut Config) + 'static,
    ) -> Self {
        let nodes = owners + fallbacks;
        Self::build(nodes, owners, fallbacks, counting, false, configure)
    }

    /// So many nodes, the first of which are the first owners; then it may be others.
    pub(crate) fn changing(nodes: u32, first: u32, configure: impl Fn(&mut Config) + 'static) -> Self {
        Self::build(nodes, first, 0, Counting::Never, true, configure)
    }

    /// The same, with fallback nodes behind the owners.
    pub(crate) fn changing_with_fallbacks(owners: u32, fallbacks: u32, counting: Counting) -> Self {
        Self::build(owners + fallbacks, owners, fallbacks, counting, true, |_| {})
    }

    fn build(
        nodes: u32,
        owners: u32,
        fallbacks: u32,
        counting: Counting,
        changes: bool,
        configure: impl Fn(&mut Config) + 'static,
    ) -> Self {
        let membership = Membership::founding(self::owners(1..=owners));
        let fallbacks = Fallbacks { nodes: (owners + 1..=owners + fallbacks).map(NodeId).collect(), counting };
        let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let mut group = Self {
            places: BTreeMap::new(),
            logs: members.iter().map(|node| (*node, MemoryLog::new())).collect(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            pieces: 0,
            lost: Vec::new(),
            pushes_lost: BTreeSet::new(),
            starts_stopped: BTreeSet::new(),
            drops: |_| false,
            rot: None,
            releases_late: false,
            outcomes: BTreeMap::new(),
            skew: BTreeMap::new(),
            now: Time(1_000_000_000),
            tokens: 0,
            members: members.clone(),
            fallbacks,
            configure: Box::new(configure),
            sources: BTreeMap::new(),
            membership: membership.clone(),
        };
        for node in members.iter().filter(|_| changes) {
            group.sources.insert(*node, Arc::new(Announcements::new(membership.clone())));
        }
        for node in members {
            group.start(node);
        }
        group.run(Duration::from_secs(1));
        group
    }

    fn clock(&self, node: NodeId) -> Now {
        let skew = self.skew.get(&node).copied().unwrap_or(0);
        Now { mono: self.now, wall: WallTime(1_750_000_000_000_000_000_u64.saturating_add_signed(skew) + self.now.0) }
    }

    /// Starts a node on what its log holds.
    pub(crate) fn start(&mut self, node: NodeId) {
        self.start_after(node, Vec::new());
    }

    /// The same for a log that was cut at the end of these streams.
    pub(crate) fn start_after(&mut self, node: NodeId, tail_cut: Vec<StreamId>) {
        let mut log = self.logs.remove(&node).expect("the node is stopped");
        log.restart();
        let mut owners = self.members.clone();
        owners.retain(|node| !self.fallbacks.nodes.contains(node));
        let mut config = Config::new(ClusterId::from_name("test"), GROUP, node, owners);
        config.founding = Founding::New;
        config.fallbacks = self.fallbacks.clone();
        if let Some(source) = self.sources.get(&node) {
            config.epochs = Box::new(source.clone());
        }
        (self.configure)(&mut config);
        let mut replica = Participant::new(config, &Boot { tail_cut, ..log.boots().of(GROUP) })
            .expect("the configuration is in range");
        let now = self.clock(node);
        let mut snapshot = Vec::new();
        for item in log.recovery() {
            match item {
                RecoveryItem::SnapshotChunk { at, chunk, last } => {
                    snapshot.extend_from_slice(&chunk);
                    if last {
                        if let Some((_, rot)) = self.rot.take_if(|(rotten, _)| *rotten == node) {
                            snapshot = rot(snapshot);
                        }
                        let chunk = std::mem::take(&mut snapshot).into();
                        replica.handle(now, Input::RecoverSnapshot { at, chunk, last });
                    }
                }
                item => replica.handle(now, item.into_input()),
            }
        }
        replica.handle(now, Input::Recovered);
        let disk_stopped = self.starts_stopped.contains(&node);
        let place = Place { replica, log, events: Vec::new(), disk_stopped, waiting: Vec::new(), appends: 0, sent: 0 };
        self.places.insert(node, place);
        self.drain(node);
    }

    /// Ends a node's process; its log stays, but for what its disk had not confirmed.
    pub(crate) fn kill(&mut self, node: NodeId) {
        let place = self.places.remove(&node).expect("the node runs");
        self.logs.insert(node, place.log);
        self.wire.retain(|(from, to, _)| *from != node && *to != node);
    }

    /// These nodes hear of an epoch that has other owners; all that hear of epochs are told apart from each other.
    pub(crate) fn announce_to(&mut self, hear: impl IntoIterator<Item = u32>, nodes: impl IntoIterator<Item = u32>) {
        self.membership = self.membership.next(owners(nodes));
        for node in hear {
            self.sources[&NodeId(node)].announce(self.membership.clone());
        }
    }

    /// Everybody hears of an epoch with these owners.
    pub(crate) fn announce(&mut self, nodes: impl IntoIterator<Item = u32>) {
        let all: Vec<u32> = self.members.iter().map(|node| node.0).collect();
        self.announce_to(all, nodes);
    }

    /// Whether these are the owners for all of them, and nobody else's quorums are needed.
    pub(crate) fn is_owned_by(&self, nodes: &[u32]) -> bool {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let mut owners = nodes.iter().filter_map(|node| self.places.get(node)?.replica.owner());
        owners.all(|owner| owner.is_serving(&nodes))
    }

    /// Nodes that start from now on are told this as well.
    pub(crate) fn reconfigure(&mut self, more: impl Fn(&mut Config) + 'static) {
        let before = std::mem::replace(&mut self.configure, Box::new(|_| {}));
        self.configure = Box::new(move |config| {
            before(config);
            more(config);
        });
    }

    /// Replaces the disk of a stopped node by an empty one.
    pub(crate) fn lose_disk(&mut self, node: NodeId) {
        self.logs.insert(node, MemoryLog::new());
    }

    pub(crate) fn input(&mut self, node: NodeId, input: Input<Head>) {
        let now = self.clock(node);
        self.places.get_mut(&node).expect("the node runs").replica.handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, node: NodeId) {
        let now = self.clock(node);
        let place = self.places.get_mut(&node).expect("the node runs");
        loop {
            while let Some(action) = place.replica.poll() {
                match action {
                    Action::Persist { id, op } => {
                        place.appends += u64::from(matches!(op, Persist::Append { .. }));
                        let op = match op {
                            Persist::Release { stream, .. } if self.releases_late => {
                                Persist::Release { stream, before: LogIndex(1) }
                            }
                            op => op,
                        };
                        if place.disk_stopped {
                            place.waiting.push((id, op));
                        } else {
                            place.log.persist(id, op);
                        }
                    }
                    Action::Send { to, message } => {
                        place.sent += 1;
                        self.pieces += u64::from(matches!(message.head, Head::Piece(_)));
                        self.wire.push_back((node, to, message));
                    }
                    Action::ReadLog { ticket, stream, from, bytes_max } => {
                        place.log.read_log(ticket, stream, from, bytes_max)
                    }
                    Action::ReadSnapshot { ticket, group, at, offset, bytes_max } => {
                        place.log.read_snapshot(ticket, group, at, offset, bytes_max);
                    }
                    Action::Done { token, outcome } => {
                        self.outcomes.insert(token.0, outcome);
                    }
                    Action::Event { event, .. } => place.events.push(event),
                }
            }
            let Some(output) = (!place.disk_stopped).then(|| place.log.poll()).flatten() else { return };
            if let Some(input) = output.into_input() {
                place.replica.handle(now, input);
            }
        }
    }

    /// The disk of a node goes on.
    pub(crate) fn resume_disk(&mut self, node: NodeId) {
        let place = self.places.get_mut(&node).expect("the node runs");
        place.disk_stopped = false;
        for (id, op) in place.waiting.drain(..) {
            place.log.persist(id, op);
        }
        self.drain(node);
    }

    /// Lets all messages arrive that are under way.
    pub(crate) fn deliver(&mut self) {
        while let Some((from, to, message)) = self.wire.pop_front() {
            let is_lost = matches!(message.head, Head::Push(_)) && self.pushes_lost.contains(&from);
            if self.cut.contains(&(from, to)) || is_lost || (self.drops)(&message.head) {
                self.lost.push((from, to, message));
            } else if self.places.contains_key(&to) {
                self.input(to, Input::Message { from, message });
            }
        }
    }

    /// Time goes by, in steps of ten milliseconds.
    pub(crate) fn run(&mut self, time: Duration) {
        for _ in 0..time.as_millis() / 10 {
            self.now = self.now + Duration::from_millis(10);
            let nodes: Vec<NodeId> = self.places.keys().copied().collect();
            for node in nodes {
                if self.places[&node].replica.deadline().is_some_and(|due| due <= self.now) {
                    self.input(node, Input::Timer);
                }
            }
            self.deliver();
        }
    }

    /// Cuts every link of a node, or mends them.
    pub(crate) fn isolate(&mut self, node: NodeId, cut: bool) {
        for &other in &self.members.clone() {
            for pair in [(node, other), (other, node)] {
                if cut {
                    self.cut.insert(pair);
                } else {
                    self.cut.remove(&pair);
                }
            }
        }
    }

    /// Cuts every link of a node, and tells the others.
    pub(crate) fn cut_off(&mut self, node: NodeId) {
        self.isolate(node, true);
        self.tell_links(node, Link::Down);
    }

    /// Mends every link of a node, and tells the others.
    pub(crate) fn reconnect(&mut self, node: NodeId) {
        self.isolate(node, false);
        self.tell_links(node, Link::Up);
    }

    pub(crate) fn ask(&mut self, node: u32, write: &WriteRequest) -> u64 {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_write(write).expect("in range"));
        self.input(NodeId(node), Input::Command { token, group: GROUP, level: write.level, session: None, body });
        token.0
    }

    /// The disk of a node goes on, and all that it says comes behind a request, before the node is asked for anything.
    pub(crate) fn ask_as_the_disk_goes_on(&mut self, node: u32, write: &WriteRequest) {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_write(write).expect("in range"));
        let (id, now) = (NodeId(node), self.clock(NodeId(node)));
        let place = self.places.get_mut(&id).expect("the node runs");
        let command = Input::Command { token, group: GROUP, level: write.level, session: None, body };
        place.replica.handle(now, command);
        place.disk_stopped = false;
        for (id, op) in place.waiting.drain(..) {
            place.log.persist(id, op);
        }
        while let Some(output) = place.log.poll() {
            output.into_input().into_iter().for_each(|input| place.replica.handle(now, input));
        }
        self.drain(id);
    }

    /// The outcome of a request, once it has one.
    pub(crate) fn outcome(&self, token: u64) -> Option<&Outcome> {
        self.outcomes.get(&token)
    }

    /// A write that everybody who can be reached hears of at once, and that must be acknowledged.
    pub(crate) fn write(&mut self, node: u32, write: WriteRequest) {
        let token = self.ask(node, &write);
        self.deliver();
        let outcome = self.outcome(token);
        assert!(matches!(outcome, Some(Outcome::Acked { .. })), "{outcome:?}");
    }

    pub(crate) fn query(&mut self, node: u32, key: &str, level: ReadLevel) -> u64 {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_get(key.as_bytes()).expect("in range"));
        self.input(NodeId(node), Input::Query { token, group: GROUP, level, body, bytes_max: 1 << 20 });
        token.0
    }

    /// A read that everybody who can be reached hears of at once, and that must be answered: what is shown, and whether the
    /// answer is strict.
    pub(crate) fn read(&mut self, node: u32, key: &str, level: ReadLevel) -> (Versions, bool) {
        let token = self.query(node, key, level);
        self.deliver();
        match self.outcome(token) {
            Some(Outcome::Value { values, strict, .. }) => (decode_versions(&values[0]).expect("an answer"), *strict),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn values(&mut self, node: u32, key: &str, level: ReadLevel) -> Vec<String> {
        let (versions, _) = self.read(node, key, level);
        versions.values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// A node is told that the link to another one is down.
    pub(crate) fn link_down(&mut self, at: u32, to: u32) {
        self.input(NodeId(at), Input::Peer { node: NodeId(to), link: Link::Down });
    }

    /// What a node has told its operator since it began.
    pub(crate) fn told(&self, node: u32, what: impl Fn(&Event) -> bool) -> usize {
        self.places[&NodeId(node)].events.iter().filter(|event| what(event)).count()
    }

    pub(crate) fn replica(&self, node: u32) -> &Leaderless {
        self.places[&NodeId(node)].replica.owner().expect("an owner")
    }

    pub(crate) fn fallback(&self, node: u32) -> &Fallback {
        self.places[&NodeId(node)].replica.fallback().expect("a fallback node")
    }

    pub(crate) fn nodes(&self) -> u32 {
        self.members.len() as u32
    }

    /// Every node that runs is told that its links to another one are up, or down.
    pub(crate) fn tell_links(&mut self, of: NodeId, link: Link) {
        let others: Vec<NodeId> = self.places.keys().copied().filter(|node| *node != of).collect();
        for node in others {
            self.input(node, Input::Peer { node: of, link });
        }
    }

    /// All replicas have applied the same writes and show the same.
    pub(crate) fn assert_agreed(&self) {
        let owners = self.places.values().filter_map(|place| place.replica.owner());
        let mut replicas = owners.map(|replica| (replica.applied(), replica.state_hash()));
        let first = replicas.next().expect("a replica");
        assert!(replicas.all(|other| other == first), "the replicas differ");
    }
}
