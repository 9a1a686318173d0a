//! Members in one thread that hear each other at once, with disks that are done at once.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replikit_core::{Epoch, Incarnation, NodeId, Origin, Quorum, Time, Token};

use super::super::*;

pub(super) const DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Group {
    pub(super) members: BTreeMap<NodeId, Cas>,
    pub(super) wires: VecDeque<(NodeId, NodeId, Message)>,
    /// Nothing that these send arrives, nor what is sent to them.
    pub(super) down: BTreeSet<NodeId>,
    pub(super) sent: Vec<Message>,
    pub(super) records: BTreeMap<NodeId, Vec<Record>>,
    pub(super) slow_disks: bool,
    pub(super) ended: BTreeMap<Token, End>,
    tokens: u64,
    pub(super) now: Time,
}

pub(super) fn majority(nodes: core::ops::RangeInclusive<u32>) -> Quorum {
    Quorum::majority(nodes.map(NodeId).collect()).unwrap()
}

pub(super) fn member(node: u32, incarnation: u32, quorum: Quorum, config: CasConfig) -> Cas {
    let origin = Origin { node: NodeId(node), incarnation: Incarnation(incarnation) };
    Cas::new(config, origin.id().unwrap(), Epoch(1), quorum).unwrap()
}

impl Group {
    pub(super) fn new(n: u32) -> Self {
        Self::with(n, CasConfig::default())
    }

    pub(super) fn with(n: u32, config: CasConfig) -> Self {
        let mut group = Self {
            members: BTreeMap::new(),
            wires: VecDeque::new(),
            down: BTreeSet::new(),
            sent: Vec::new(),
            records: BTreeMap::new(),
            slow_disks: false,
            ended: BTreeMap::new(),
            tokens: 0,
            now: Time(1),
        };
        for node in 1..=n {
            let mut cas = member(node, 1, majority(1..=n), config.clone());
            cas.start(Start::Whole);
            group.members.insert(NodeId(node), cas);
        }
        group.settle();
        group
    }

    pub(super) fn at(&mut self, node: u32) -> &mut Cas {
        self.members.get_mut(&NodeId(node)).unwrap()
    }

    /// Takes what the members want done, and has their disks do it at once.
    pub(super) fn collect(&mut self) {
        for (&node, cas) in &mut self.members {
            while let Some(output) = cas.poll_output() {
                match output {
                    CasOutput::Persist { number, record } => {
                        self.records.entry(node).or_default().push(record);
                        if !self.slow_disks {
                            cas.handle_durable(self.now, number);
                        }
                    }
                    CasOutput::Send { to, message } => {
                        self.sent.push(message.clone());
                        if !self.down.contains(&node) && !self.down.contains(&to) {
                            self.wires.push_back((node, to, message));
                        }
                    }
                    CasOutput::Ended { token, end } => assert!(self.ended.insert(token, end).is_none(), "ended twice"),
                }
            }
        }
    }

    pub(super) fn settle(&mut self) {
        self.collect();
        while let Some((from, to, message)) = self.wires.pop_front() {
            let bytes = postcard::to_stdvec(&message).unwrap();
            let now = self.now;
            self.members.get_mut(&to).unwrap().handle_message(now, from, postcard::from_bytes(&bytes).unwrap());
            self.collect();
        }
    }

    /// Lets the oldest message from one member to another arrive, and nothing else.
    pub(super) fn deliver(&mut self, from: u32, to: u32) {
        let (from, to) = (NodeId(from), NodeId(to));
        let at = self.wires.iter().position(|wire| (wire.0, wire.1) == (from, to)).expect("there is a message");
        let (.., message) = self.wires.remove(at).expect("found just now");
        let now = self.now;
        self.members.get_mut(&to).unwrap().handle_message(now, from, message);
        self.collect();
    }

    /// A member comes back with an empty disk and takes over what all others have.
    pub(super) fn forget(&mut self, node: u32) {
        let voters: Vec<NodeId> = self.members.keys().copied().collect();
        let quorum = Quorum::majority(voters.clone()).unwrap();
        let mut again = member(node, 2, quorum, CasConfig::default());
        again.start(Start::Forgetful);
        let life = again.life();
        for giver in voters.iter().filter(|giver| giver.0 != node) {
            let giver = self.members.get_mut(giver).unwrap();
            giver.admit(NodeId(node), life);
            giver.image().for_each(|record| again.join(&record));
        }
        again.serve();
        self.members.insert(NodeId(node), again);
        self.collect();
    }

    pub(super) fn begin(&mut self, node: u32, key: &'static str, op: CasOp) -> Token {
        self.tokens += 1;
        let (now, token) = (self.now, Token(self.tokens));
        self.at(node).begin(now, token, key.into(), op, now + DEADLINE).unwrap();
        token
    }

    pub(super) fn ask(&mut self, node: u32, key: &'static str, op: CasOp) -> End {
        let token = self.begin(node, key, op);
        self.settle();
        for _ in 0..1_000 {
            if let Some(end) = self.ended.get(&token) {
                return end.clone();
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("{token:?} does not end");
    }

    pub(super) fn effect(&mut self, node: u32, key: &'static str, op: CasOp) -> Effect {
        match self.ask(node, key, op) {
            End::Done { effect, .. } => effect,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        for cas in self.members.values_mut() {
            cas.handle_time(now);
        }
        self.settle();
    }

    /// Questions sent since the last time.
    pub(super) fn asks(&mut self) -> [usize; 3] {
        let mut asks = [0; 3];
        for message in self.sent.drain(..) {
            match message {
                Message::Ask { ask: Ask::Prepare { .. }, .. } => asks[0] += 1,
                Message::Ask { ask: Ask::Accept { .. }, .. } => asks[1] += 1,
                Message::Ask { ask: Ask::Query { .. }, .. } => asks[2] += 1,
                Message::Answer { .. } => {}
            }
        }
        asks
    }
}
