//! Replicas with logs in memory, driven step by step: messages arrive when a test lets them, disks are done at once unless
//! a test stops them, and every node has a wall clock of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::keyspace::{
    Versions, decode_conflict_page, decode_versions, encode_conflicts, encode_get, encode_write,
};
use replikit_core::*;
use replikit_log::{MemoryLog, Storage};
use replikit_multi_leader::{Config, Founding, Head, MultiLeader};

pub(crate) const GROUP: GroupId = GroupId(0);

fn info(node: u32) -> NodeInfo {
    NodeInfo { id: NodeId(node), address: String::new(), region: String::new(), zone: String::new() }
}

pub(crate) struct Place {
    pub(crate) replica: MultiLeader,
    log: MemoryLog,
    pub(crate) events: Vec<Event>,
    pub(crate) disk_stopped: bool,
    /// How many more storage actions its disk takes; what comes behind them is never durable.
    disk_takes: Option<u32>,
    /// Storage actions that wait for a disk, a snapshot or a release not counted.
    pub(crate) appends: u64,
}

pub(crate) struct Group {
    pub(crate) places: BTreeMap<NodeId, Place>,
    logs: BTreeMap<NodeId, MemoryLog>,
    pub(crate) wire: VecDeque<(NodeId, NodeId, Message<Head>)>,
    /// Pairs that cannot reach each other, one direction each.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes whose pushes are lost on the wire.
    pub(crate) pushes_lost: BTreeSet<NodeId>,
    /// Nodes whose disks are stopped when they start.
    pub(crate) starts_stopped: BTreeSet<NodeId>,
    /// Every message comes twice.
    pub(crate) duplicates: bool,
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    /// Batches that were handed to the network.
    pub(crate) pushed: u64,
    /// Bytes that were handed to the network: heads and batches.
    pub(crate) sent_bytes: usize,
    /// How often messages that were under way together have arrived: half round trips.
    pub(crate) flights: u64,
    pub(crate) skew: BTreeMap<NodeId, i64>,
    now: Time,
    tokens: u64,
    members: Vec<NodeId>,
    /// The newest membership, and what each node knows of it.
    membership: Membership,
    sources: BTreeMap<NodeId, Arc<Announcements>>,
    configure: Box<dyn Fn(&mut Config)>,
}

impl Group {
    pub(crate) fn new(nodes: u32, configure: impl Fn(&mut Config) + 'static) -> Self {
        Self::founded_by(nodes, nodes, configure)
    }

    /// A group that the first few of the nodes have founded; the others run as well.
    pub(crate) fn founded_by(founders: u32, nodes: u32, configure: impl Fn(&mut Config) + 'static) -> Self {
        let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let membership = Membership::founding((1..=founders).map(info).collect());
        let source = || Arc::new(Announcements::new(membership.clone()));
        let sources = members.iter().map(|node| (*node, source())).collect();
        let mut group = Self {
            sources,
            places: BTreeMap::new(),
            logs: members.iter().map(|node| (*node, MemoryLog::new())).collect(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            pushes_lost: BTreeSet::new(),
            starts_stopped: BTreeSet::new(),
            duplicates: false,
            outcomes: BTreeMap::new(),
            pushed: 0,
            sent_bytes: 0,
            flights: 0,
            skew: BTreeMap::new(),
            now: Time(1_000_000_000),
            tokens: 0,
            members: members.clone(),
            membership,
            configure: Box::new(configure),
        };
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

    /// A new epoch with these members; nobody knows of it yet.
    pub(crate) fn plan(&mut self, nodes: &[u32]) {
        self.membership = self.membership.next(nodes.iter().copied().map(info).collect());
    }

    /// The first of two steps to these members; nobody knows of it yet.
    pub(crate) fn plan_towards(&mut self, nodes: &[u32]) {
        self.membership = self.membership.towards(nodes.iter().copied().map(info).collect());
    }

    /// The second step, of which everybody knows at once; some member must have said that it can be made.
    pub(crate) fn complete(&mut self) {
        let is_drained = |place: &Place| place.replica.drained() == Some(self.membership.epoch);
        assert!(self.places.values().any(is_drained), "nobody says that the change can be completed");
        self.membership = self.membership.completed();
        self.tell_all();
    }

    /// One that is to leave is given up.
    pub(crate) fn give_up(&mut self, node: u32) {
        self.membership = self.membership.without(NodeId(node));
        self.tell_all();
    }

    pub(crate) fn tell_all(&mut self) {
        for node in self.members.clone() {
            self.tell(node.0);
        }
    }

    /// What a node is told when it starts is the first membership again.
    pub(crate) fn forget_epochs(&mut self, node: u32) {
        let founding = Membership::founding(self.membership.nodes.clone());
        self.sources.insert(NodeId(node), Arc::new(Announcements::new(founding)));
    }

    /// A node hears of the newest epoch.
    pub(crate) fn tell(&mut self, node: u32) {
        self.sources[&NodeId(node)].announce(self.membership.clone());
        if self.places.contains_key(&NodeId(node)) {
            self.input(NodeId(node), Input::Timer);
        }
    }

    /// A new epoch with these members, of which everybody knows at once.
    pub(crate) fn begin_epoch(&mut self, nodes: &[u32]) {
        self.plan(nodes);
        self.tell_all();
    }

    /// What a node has told its operator since it began.
    pub(crate) fn told(&self, node: u32, what: impl Fn(&Event) -> bool) -> bool {
        self.places[&NodeId(node)].events.iter().any(what)
    }

    /// Starts a node on what its log holds.
    pub(crate) fn start(&mut self, node: NodeId) {
        self.start_after(node, Vec::new());
    }

    /// The same for a log that was cut at the end of these streams.
    pub(crate) fn start_after(&mut self, node: NodeId, tail_cut: Vec<StreamId>) {
        let mut log = self.logs.remove(&node).expect("the node is stopped");
        log.restart();
        let mut config = Config::new(ClusterId::from_name("test"), GROUP, node, self.members.clone());
        config.founding = Founding::New;
        config.epochs = Box::new(self.sources[&node].clone());
        (self.configure)(&mut config);
        let boot = Boot { tail_cut, ..log.boots().of(GROUP) };
        let mut replica = MultiLeader::new(config, &boot).expect("the configuration is in range");
        let now = self.clock(node);
        for item in log.recovery() {
            replica.handle(now, item.into_input());
        }
        replica.handle(now, Input::Recovered);
        let disk_stopped = self.starts_stopped.contains(&node);
        let place = Place { replica, log, events: Vec::new(), disk_stopped, disk_takes: None, appends: 0 };
        self.places.insert(node, place);
        self.drain(node);
    }

    /// Ends a node's process; its log stays, but for what its disk had not confirmed.
    pub(crate) fn kill(&mut self, node: NodeId) {
        let place = self.places.remove(&node).expect("the node runs");
        self.logs.insert(node, place.log);
        self.wire.retain(|(from, to, _)| *from != node && *to != node);
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
                        match &mut place.disk_takes {
                            Some(0) => continue,
                            Some(left) => *left -= 1,
                            None => {}
                        }
                        place.log.persist(id, op);
                    }
                    Action::Send { to, message } => {
                        let batches: usize = message.batches.as_slice().iter().map(Batch::bytes).sum();
                        self.sent_bytes += postcard::to_stdvec(&message.head).expect("a head encodes").len() + batches;
                        self.pushed += message.batches.as_slice().len() as u64;
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

    /// The disk of a node takes so many storage actions more, and none behind them.
    pub(crate) fn disk_takes(&mut self, node: NodeId, actions: u32) {
        self.places.get_mut(&node).expect("the node runs").disk_takes = Some(actions);
    }

    /// The disk of a node goes on.
    pub(crate) fn resume_disk(&mut self, node: NodeId) {
        self.places.get_mut(&node).expect("the node runs").disk_stopped = false;
        self.drain(node);
    }

    /// Lets all messages arrive that are under way.
    pub(crate) fn deliver(&mut self) {
        while !self.wire.is_empty() {
            self.flights += 1;
            for (from, to, message) in std::mem::take(&mut self.wire) {
                let is_lost = matches!(message.head, Head::Push(_)) && self.pushes_lost.contains(&from);
                if !self.cut.contains(&(from, to)) && !is_lost && self.places.contains_key(&to) {
                    if self.duplicates {
                        self.input(to, Input::Message { from, message: message.clone() });
                    }
                    self.input(to, Input::Message { from, message });
                }
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

    pub(crate) fn ask(&mut self, node: u32, write: &WriteRequest) -> u64 {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_write(write).expect("in range"));
        self.input(NodeId(node), Input::Command { token, group: GROUP, level: write.level, session: None, body });
        token.0
    }

    /// Writes that come in together, and share a batch.
    pub(crate) fn write_together(&mut self, node: u32, writes: &[WriteRequest]) {
        let now = self.clock(NodeId(node));
        for write in writes {
            self.tokens += 1;
            let (token, body) = (Token(self.tokens), encode_write(write).expect("in range"));
            let level = WriteLevel::LeaderDisk;
            let input = Input::Command { token, group: GROUP, level, session: None, body };
            self.places.get_mut(&NodeId(node)).expect("the node runs").replica.handle(now, input);
        }
        self.drain(NodeId(node));
    }

    pub(crate) fn write(&mut self, node: u32, write: WriteRequest) -> Dot {
        let token = self.ask(node, &write.at(WriteLevel::LeaderDisk));
        match &self.outcomes[&token] {
            Outcome::Acked { at, .. } => Dot { origin: at.stream.origin, sequence: at.id.index.0 },
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read_at(&mut self, node: u32, key: &str, level: ReadLevel) -> Option<Outcome> {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_get(key.as_bytes()).expect("in range"));
        self.input(NodeId(node), Input::Query { token, group: GROUP, level, body, bytes_max: 1 << 20 });
        self.outcomes.get(&token.0).cloned()
    }

    pub(crate) fn read(&mut self, node: u32, key: &str) -> Versions {
        match self.read_at(node, key, ReadLevel::Local) {
            Some(Outcome::Value { values, .. }) => decode_versions(&values[0]).expect("an answer"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn values(&mut self, node: u32, key: &str) -> Vec<String> {
        self.read(node, key).values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The values that the audit of a node has, oldest first.
    pub(crate) fn audit(&mut self, node: u32) -> Vec<Option<Bytes>> {
        self.tokens += 1;
        let (token, body) = (Token(self.tokens), encode_conflicts(0, 1000));
        self.input(
            NodeId(node),
            Input::Query { token, group: GROUP, level: ReadLevel::Local, body, bytes_max: 1 << 20 },
        );
        let Outcome::Value { values, .. } = &self.outcomes[&token.0] else { panic!("an audit") };
        let page = decode_conflict_page(&values[0]).expect("a page");
        page.conflicts.into_iter().map(|conflict| conflict.overwritten.version.value).collect()
    }

    pub(crate) fn replica(&self, node: u32) -> &MultiLeader {
        &self.places[&NodeId(node)].replica
    }

    /// What a client is answered.
    pub(crate) fn outcome(&mut self, node: u32, write: &WriteRequest) -> Outcome {
        let token = self.ask(node, &write.clone().at(WriteLevel::LeaderDisk));
        self.outcomes[&token].clone()
    }

    /// These replicas have applied the same writes and show the same.
    pub(crate) fn assert_agreed_at(&self, nodes: &[u32]) {
        let first = self.replica(nodes[0]);
        for &node in nodes {
            let replica = self.replica(node);
            assert_eq!(replica.applied(), first.applied(), "node {node} and node {} differ", nodes[0]);
            assert_eq!(replica.state_hash(), first.state_hash(), "node {node} and node {} differ", nodes[0]);
        }
    }

    /// All replicas have applied the same writes and show the same.
    pub(crate) fn assert_agreed(&self) {
        let mut replicas = self.places.values().map(|place| (place.replica.applied(), place.replica.state_hash()));
        let first = replicas.next().expect("a replica");
        assert!(replicas.all(|other| other == first), "the replicas differ");
    }
}
