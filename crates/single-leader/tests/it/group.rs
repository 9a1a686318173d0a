//! A group of replicas with logs in memory, driven step by step: messages arrive when a test lets them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use replikit_core::*;
use replikit_log::{LogOutput, MemoryLog, Storage};
use replikit_single_leader::{Config, Head, Raft};

pub(crate) const GROUP: GroupId = GroupId(0);

/// Applies by appending; a query answers the whole list, commands separated by commas.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) items: Vec<Bytes>,
    incoming: Vec<u8>,
}

impl StateMachine for List {
    fn apply(&mut self, _at: LogIndex, command: &[u8]) -> Bytes {
        self.items.push(Bytes::copy_from_slice(command));
        Bytes::from(self.items.len().to_string())
    }

    fn query(&self, _query: &[u8], _bytes_max: usize) -> Bytes {
        self.items.join(&b","[..]).into()
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(BytesSource::new(self.query(b"", usize::MAX)))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if last {
            let whole = std::mem::take(&mut self.incoming);
            self.items =
                whole.split(|&b| b == b',').filter(|item| !item.is_empty()).map(Bytes::copy_from_slice).collect();
        }
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) raft: Raft<List>,
    pub(crate) log: MemoryLog,
    pub(crate) events: Vec<Event>,
    /// Storage actions that the disk has not confirmed, while it is stopped.
    pub(crate) disk_stopped: bool,
    withheld: Option<WriteId>,
}

pub(crate) struct Group {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) now: Time,
    pub(crate) wire: VecDeque<(NodeId, NodeId, Message<Head>)>,
    /// Pairs that cannot reach each other, one direction each.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    pub(crate) sent: u64,
    next_token: u64,
    configure: fn(&mut Config),
    starts: u64,
    members: Vec<NodeId>,
    logs: BTreeMap<NodeId, MemoryLog>,
}

pub(crate) fn node(n: u32) -> NodeId {
    NodeId(n)
}

impl Group {
    pub(crate) fn new(n: u32) -> Self {
        Self::with(n, |_| {})
    }

    pub(crate) fn with(n: u32, configure: fn(&mut Config)) -> Self {
        let members: Vec<NodeId> = (1..=n).map(NodeId).collect();
        let mut group = Self {
            nodes: BTreeMap::new(),
            now: Time(1_000_000_000),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            sent: 0,
            next_token: 0,
            configure,
            starts: 0,
            logs: members.iter().map(|&id| (id, MemoryLog::new())).collect(),
            members: members.clone(),
        };
        for id in members {
            group.start(id, &[]);
        }
        group
    }

    /// Starts a node from what its log holds; `tail_cut` as a torn log would report it.
    pub(crate) fn start(&mut self, id: NodeId, tail_cut: &[StreamId]) {
        self.starts += 1;
        let mut log = self.logs.remove(&id).expect("the node is stopped");
        log.restart();
        let mut boot = log.boots().of(GROUP);
        boot.tail_cut.extend_from_slice(tail_cut);
        let mut config = Config::new(ClusterId::from_name("test"), GROUP, id, self.members.clone(), self.starts);
        (self.configure)(&mut config);
        let mut raft = Raft::new(config, &boot, List::default()).expect("the configuration is in range");
        let now = self.clock();
        for item in log.recovery() {
            raft.handle(now, item.into_input());
        }
        raft.handle(now, Input::Recovered);
        self.nodes.insert(id, Node { raft, log, events: Vec::new(), disk_stopped: false, withheld: None });
        self.drain(id);
    }

    /// Ends a node's process; its log stays.
    pub(crate) fn kill(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).expect("the node runs");
        self.logs.insert(id, node.log);
        self.wire.retain(|(from, to, _)| *from != id && *to != id);
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(other, Input::Peer { node: id, link: Link::Reset });
        }
    }

    /// Takes the last batch from the log of a node that is stopped, as a start does that finds it rotten.
    pub(crate) fn cut_tail(&mut self, id: NodeId) {
        let old = self.logs.remove(&id).expect("the node is stopped");
        let kept = old.recovery().filter_map(|item| match item.into_input::<Head>() {
            Input::Recover { batch } => Some(Persist::Append { batch, replace: false }),
            _ => None,
        });
        let mut ops: Vec<Persist> = kept.collect();
        ops.pop().expect("the log is not empty");
        ops.push(Persist::Register { group: GROUP, bytes: old.boots().of(GROUP).register });
        let mut log = MemoryLog::new();
        (1..).zip(ops).for_each(|(id, op)| log.persist(WriteId(id), op));
        self.logs.insert(id, log);
    }

    fn clock(&self) -> Now {
        Now { mono: self.now, wall: WallTime(self.now.0) }
    }

    pub(crate) fn input(&mut self, id: NodeId, input: Input<Head>) {
        let now = self.clock();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.raft.handle(now, input);
            self.drain(id);
        }
    }

    fn drain(&mut self, id: NodeId) {
        let now = self.clock();
        let node = self.nodes.get_mut(&id).expect("the node runs");
        loop {
            let mut progress = false;
            while let Some(action) = node.raft.poll() {
                progress = true;
                match action {
                    Action::Persist { id, op } => node.log.persist(id, op),
                    Action::Send { to, message } => {
                        self.sent += 1;
                        if !self.cut.contains(&(id, to)) {
                            self.wire.push_back((id, to, message));
                        }
                    }
                    Action::ReadLog { ticket, stream, from, bytes_max } => {
                        node.log.read_log(ticket, stream, from, bytes_max)
                    }
                    Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
                        node.log.read_snapshot(ticket, group, at, offset, bytes_max);
                    }
                    Action::Done { token, outcome } => {
                        let twice = self.outcomes.insert(token.0, outcome);
                        assert_eq!(twice, None, "request {token} ended twice");
                    }
                    Action::Event { event, .. } => node.events.push(event),
                }
            }
            while let Some(output) = node.log.poll() {
                progress = true;
                if let LogOutput::Durable { up_to } = output
                    && node.disk_stopped
                {
                    node.withheld = Some(up_to);
                    continue;
                }
                let Some(input) = output.into_input() else { continue };
                node.raft.handle(now, input);
            }
            if !progress {
                return;
            }
        }
    }

    pub(crate) fn resume_disk(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node runs");
        node.disk_stopped = false;
        if let Some(up_to) = node.withheld.take() {
            self.input(id, Input::Durable { up_to });
        }
    }

    /// Delivers everything under way, and what it causes, without letting time pass.
    pub(crate) fn settle(&mut self) {
        while let Some((from, to, message)) = self.wire.pop_front() {
            if !self.cut.contains(&(from, to)) {
                self.input(to, Input::Message { from, message });
            }
        }
    }

    /// Lets time pass, timers fire and messages arrive.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let due = self.nodes.iter().filter_map(|(&id, node)| node.raft.deadline().map(|at| (at, id))).min();
            match due {
                Some((at, id)) if at <= end => {
                    self.now = self.now.max(at);
                    self.input(id, Input::Timer);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Runs until there is a leader that everybody who can hear it follows.
    pub(crate) fn elect(&mut self) -> NodeId {
        for _ in 0..100 {
            self.run(Duration::from_millis(20));
            if let Some(leader) = self.leader() {
                self.settle();
                return leader;
            }
        }
        panic!("no leader within two seconds");
    }

    /// The leader of the largest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leading = self.nodes.iter().filter(|(_, node)| node.raft.role() == Role::Leader);
        leading.max_by_key(|(_, node)| node.raft.term()).map(|(&id, _)| id)
    }

    pub(crate) fn follower(&self) -> NodeId {
        let leader = self.leader().expect("there is a leader");
        *self.nodes.keys().find(|&&id| id != leader).expect("there are followers")
    }

    pub(crate) fn isolate(&mut self, id: NodeId) {
        for &other in &self.members {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    pub(crate) fn command(&mut self, at: NodeId, level: WriteLevel, body: &'static str) -> u64 {
        self.session_command(at, level, None, body)
    }

    pub(crate) fn session_command(
        &mut self,
        at: NodeId,
        level: WriteLevel,
        session: Option<SessionSeq>,
        body: &'static str,
    ) -> u64 {
        let token = self.token();
        self.input(at, Input::Command { token, group: GROUP, level, session, body: body.into() });
        token.0
    }

    pub(crate) fn query(&mut self, at: NodeId, level: ReadLevel) -> u64 {
        let token = self.token();
        self.input(at, Input::Query { token, group: GROUP, level, body: Bytes::new(), bytes_max: 1 << 20 });
        token.0
    }

    /// Writes at `Quorum` and waits for the acknowledgement.
    pub(crate) fn write(&mut self, at: NodeId, body: &'static str) -> Position {
        let token = self.command(at, WriteLevel::Quorum, body);
        self.settle();
        match self.outcomes.get(&token) {
            Some(Outcome::Acked { at, strict: true, .. }) => *at,
            other => panic!("{body} was not acknowledged: {other:?}"),
        }
    }

    pub(crate) fn answer(&self, token: u64) -> String {
        match self.outcomes.get(&token) {
            Some(Outcome::Value { values, .. }) => String::from_utf8(values[0].to_vec()).expect("text"),
            other => panic!("no value: {other:?}"),
        }
    }

    pub(crate) fn list(&self, id: NodeId) -> String {
        String::from_utf8(self.nodes[&id].raft.machine().query(b"", 0).to_vec()).expect("text")
    }
}
