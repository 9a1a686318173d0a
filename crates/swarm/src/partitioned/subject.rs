//! The store under watch: its clients, its operator, its invariants, and crashes where a handoff has just taken a step.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use replikit_core::keyspace::Keyspace;
use replikit_core::{GroupId, NodeId, Outcome, Role, Token};
use replikit_partitioning::handoff::{Copied, Holdings};
use replikit_partitioning::host::HostHead;
use replikit_partitioning::shard::{Keyed as _, Shard};
use replikit_partitioning::{Decision, Handoff, HandoffId, PartitionMap};
use replikit_sim::{Clients, Replicas, Subject};
use replikit_single_leader::Head;

use super::clients::StoreClients;
use super::invariants::{Seen, data_groups, group_is_at_rest};
use super::operator::Operator;
use super::{Layout, Node, newest};
use crate::plan::Plan;
use crate::probe::{Probe, Probes};

/// A step of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Planned,
    CopiedInPart,
    Copied,
    Sealed,
    Prepared,
    Committed,
    Aborted,
    TargetCleaned,
    SourceCleaned,
    Forgotten,
}

impl Step {
    const fn met(self) -> Probe {
        match self {
            Self::Planned => Probe::HandoffPlanned,
            Self::CopiedInPart => Probe::HandoffCopiedInPart,
            Self::Copied => Probe::HandoffCopied,
            Self::Sealed => Probe::HandoffSealed,
            Self::Prepared => Probe::HandoffPrepared,
            Self::Committed => Probe::HandoffCommitted,
            Self::Aborted => Probe::HandoffAborted,
            Self::TargetCleaned => Probe::HandoffTargetCleaned,
            Self::SourceCleaned => Probe::HandoffSourceCleaned,
            Self::Forgotten => Probe::HandoffForgotten,
        }
    }

    const fn struck(self) -> Probe {
        match self {
            Self::Planned => Probe::StruckAtPlan,
            Self::CopiedInPart | Self::Copied => Probe::StruckAtCopy,
            Self::Sealed => Probe::StruckAtSeal,
            Self::Prepared => Probe::StruckAtPrepare,
            Self::Committed | Self::Aborted => Probe::StruckAtDecision,
            Self::TargetCleaned | Self::SourceCleaned | Self::Forgotten => Probe::StruckAtClean,
        }
    }
}

/// The store with all that watches it.
pub(crate) struct PartitionedSubject {
    layout: Layout,
    pub(crate) clients: StoreClients,
    operator: Operator,
    pub(crate) probes: Probes,
    seen: Seen,
    bounded: bool,
    // The newest map that anybody has.
    map: PartitionMap,
    // Every handoff that was ever seen.
    handoffs: BTreeMap<HandoffId, Handoff>,
    steps: BTreeSet<(HandoffId, Step)>,
    // What each replica had applied when it was looked at last.
    records: BTreeMap<(NodeId, GroupId), u64>,
    rng: Rng,
    strikes: bool,
    /// A node that is to crash now.
    pub(crate) strike: Option<NodeId>,
}

impl PartitionedSubject {
    pub(crate) fn new(plan: &Plan, layout: Layout, bounded: bool) -> Self {
        let mut rng = plan.rng(2);
        let workload = &plan.workload;
        let clients = StoreClients::new(layout.clone(), workload.clients, workload.think_max, workload.timeout);
        Self {
            clients,
            operator: Operator::new(&mut rng),
            probes: Probes::default(),
            seen: Seen::default(),
            bounded,
            map: layout.first.clone(),
            handoffs: BTreeMap::new(),
            steps: BTreeSet::new(),
            records: BTreeMap::new(),
            strikes: plan.settings.process.crash.is_some() && rng.bool(),
            rng,
            strike: None,
            layout,
        }
    }

    /// No more strikes, and nobody asks for new handoffs.
    pub(crate) fn heal(&mut self) {
        (self.strikes, self.strike) = (false, None);
        self.operator.stop();
        self.clients.hurry();
    }

    pub(crate) fn describe(&self) -> String {
        let open: Vec<_> = self.map.handoffs().collect();
        let steps: Vec<_> = self.steps.iter().filter(|(id, _)| self.map.handoff(*id).is_some()).collect();
        format!("at {}: {open:?}; {steps:?}; {}", self.map.epoch(), self.clients.describe())
    }

    /// Whether every handoff is over and every group holds what the map says.
    pub(crate) fn is_at_rest(&self, replicas: &impl Replicas<Node>) -> bool {
        self.rest(replicas).is_ok()
    }

    fn rest(&self, replicas: &impl Replicas<Node>) -> Result<(), String> {
        if let Some(handoff) = self.map.handoffs().next() {
            return Err(format!("handoffs_end: {handoff:?}"));
        }
        for group in data_groups() {
            let raft = newest(replicas, group).ok_or_else(|| format!("handoffs_end: nobody has group {group}"))?;
            let shard = raft.machine().data().ok_or("a group of data")?;
            group_is_at_rest(&self.map, group, shard.holdings())?;
        }
        Ok(())
    }

    /// All is quiet: every addition counts once, and nobody has what is not its own.
    pub(crate) fn check_end(&self, replicas: &impl Replicas<Node>) -> Result<(), String> {
        self.rest(replicas)?;
        let shard = |group| newest(replicas, group).and_then(|raft| raft.machine().data());
        for (key, sum) in self.clients.sums() {
            let owner = self.map.partition_of(key).group;
            let found = shard(owner).and_then(|shard| shard.machine().state(key));
            if found.as_deref() != Some(sum.to_string().as_bytes()) {
                return Err(format!("each_request_counts_once: {key:?} is {found:?} at group {owner}, not {sum}"));
            }
        }
        for group in data_groups() {
            let Some(shard) = shard(group) else { continue };
            let mut foreign = None;
            shard.machine().each_from(core::ops::Bound::Unbounded, &mut |key, _| {
                if self.map.partition_of(key).group != group {
                    foreign = Some(key.to_vec());
                }
                core::ops::ControlFlow::Continue(())
            });
            if let Some(key) = foreign {
                return Err(format!("nothing_is_left_behind: group {group} has {:?}", key.escape_ascii().to_string()));
            }
        }
        Ok(())
    }

    /// A handoff has taken a step, as seen at a node.
    fn step(&mut self, handoff: &Handoff, step: Step, node: NodeId, replicas: &impl Replicas<Node>) {
        if !self.steps.insert((handoff.id, step)) {
            return;
        }
        self.probes.hit(step.met());
        if !self.strikes || self.strike.is_some() || self.rng.u8(0..4) > 0 {
            return;
        }
        // Who has just taken it, or who leads one of the sides.
        let side = if self.rng.bool() { handoff.source } else { handoff.target };
        let leads = |other: &NodeId| {
            let raft = replicas.replica(*other).and_then(|host: &Node| host.groups().replica(side));
            raft.is_some_and(|raft| raft.role() == Role::Leader)
        };
        let leader = replicas.nodes().into_iter().find(leads);
        self.probes.hit(step.struck());
        self.strike = Some(leader.filter(|_| self.rng.bool()).unwrap_or(node));
    }

    fn watch_map(&mut self, node: NodeId, map: &PartitionMap, replicas: &impl Replicas<Node>) {
        if map.epoch() <= self.map.epoch() {
            return;
        }
        let before = core::mem::replace(&mut self.map, map.clone());
        for handoff in map.handoffs() {
            self.handoffs.insert(handoff.id, handoff.clone());
            let step = match handoff.decision {
                Decision::Open => Step::Planned,
                Decision::Committed => Step::Committed,
                Decision::Aborted => Step::Aborted,
            };
            self.step(handoff, step, node, replicas);
        }
        for handoff in before.handoffs().filter(|it| map.handoff(it.id).is_none()) {
            self.step(handoff, Step::Forgotten, node, replicas);
        }
    }

    fn watch_holdings(&mut self, node: NodeId, group: GroupId, holdings: &Holdings, replicas: &impl Replicas<Node>) {
        for handoff in self.handoffs.values().cloned().collect::<Vec<_>>() {
            let is_over = holdings.is_over(handoff.partition, handoff.id);
            if handoff.source == group {
                if holdings.sealed(handoff.id).is_some() {
                    self.step(&handoff, Step::Sealed, node, replicas);
                }
                if is_over {
                    self.step(&handoff, Step::SourceCleaned, node, replicas);
                }
            }
            if handoff.target == group {
                if let Some(staged) = holdings.staged(handoff.id) {
                    let step = match staged.copied {
                        _ if staged.prepared => Step::Prepared,
                        Copied::Whole => Step::Copied,
                        Copied::Through(_) => Step::CopiedInPart,
                    };
                    self.step(&handoff, step, node, replicas);
                }
                if is_over {
                    self.step(&handoff, Step::TargetCleaned, node, replicas);
                }
            }
        }
    }

    fn watch_shard(
        &mut self,
        node: NodeId,
        group: GroupId,
        at: replikit_core::LogIndex,
        shard: &Shard<Keyspace>,
        replicas: &impl Replicas<Node>,
    ) -> Result<(), String> {
        let known = self.records.insert((node, group), shard.records());
        if known == Some(shard.records()) {
            return Ok(());
        }
        let holdings = shard.holdings();
        match self.seen.recut(group, holdings) {
            core::cmp::Ordering::Greater => self.probes.hit(Probe::SplitFollowed),
            core::cmp::Ordering::Less => self.probes.hit(Probe::MergeFollowed),
            core::cmp::Ordering::Equal => {}
        }
        self.watch_holdings(node, group, holdings, replicas);
        if self.bounded { self.seen.holdings(group, at, holdings) } else { Ok(()) }
    }
}

type Hands = Clients<HostHead<Head>>;

impl Subject<Node> for PartitionedSubject {
    fn on_alarm(&mut self, client: u32, hands: &mut Hands) {
        let operator = self.clients.count() + 1;
        if client == 0 {
            self.clients.start(hands);
            hands.alarm(operator, core::time::Duration::from_millis(20));
        } else if client == operator {
            self.operator.on_alarm(client, &self.map, &self.layout, hands);
        } else {
            self.clients.on_alarm(client, hands);
        }
    }

    fn on_done(&mut self, _: NodeId, token: Token, outcome: Outcome, hands: &mut Hands) -> Result<(), String> {
        let kept = self.clients.on_done(token, &outcome, hands, &mut self.probes);
        if self.bounded { kept } else { Ok(()) }
    }

    fn on_crash(&mut self, node: NodeId, _: &mut Hands) {
        self.seen.crashed(node);
        self.records.retain(|(of, _), _| *of != node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Node>) -> Result<(), String> {
        let Some(host) = replicas.replica(node) else { return Ok(()) };
        let kept = self.seen.map(node, host.map());
        if self.bounded {
            kept?;
        }
        self.watch_map(node, host.map(), replicas);
        for (group, raft) in host.groups().groups() {
            if let Some(shard) = raft.machine().data() {
                self.watch_shard(node, group, raft.applied().id.index, shard, replicas)?;
            }
        }
        Ok(())
    }
}
