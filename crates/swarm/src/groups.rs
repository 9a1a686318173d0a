//! Several groups in each node, on one storage: two registers, or Rafts, in one container.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{
    Action, ClusterId, Epoch, Event, GroupId, Input, NodeId, Outcome, Persist, Replica, Role, Time, Token, WriteId,
};
use replikit_partitioning::{Groups, GroupsHead};
use replikit_sim::register::{Register, RegisterConfig, RegisterDialect, RegisterMessage};
use replikit_sim::{
    AckedWrite, Asked, Clients, Dialect, Recovery, Replicas, Request, SimStorage, Subject, Violation, WantedRead,
    WantedWrite, Workload, WorkloadSettings, World, is_lasting,
};
use replikit_single_leader::{Config, Head, Raft};

use crate::plan::Plan;
use crate::probe::{Probe, Probes};
use crate::raft::answers::Answers;
use crate::raft::clients::KeyValue;
use crate::raft::invariants::Invariants;
use crate::raft::knobs;
use crate::raft::ledger::Ledger;
use crate::raft::recorder::Recorder;
use crate::register::{plain, settings};
use crate::run::{Failure, Run, Telling, linearizable};
use crate::sleep::{self, Sleepers};

/// Which group holds a key: groups count from 1.
fn group_of(key: &Bytes, groups: u32) -> GroupId {
    GroupId(u32::from(*key.last().expect("keys are not empty")) % groups + 1)
}

/// Sends each key to its group.
#[derive(Clone, Copy, Debug)]
struct Routed {
    groups: u32,
}

impl Dialect<Groups<Register>> for Routed {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<GroupsHead<RegisterMessage>> {
        RegisterDialect { group: group_of(&write.key, self.groups) }.write_input(token, write)
    }

    fn read(&mut self, token: Token, read: &WantedRead) -> Input<GroupsHead<RegisterMessage>> {
        RegisterDialect { group: group_of(&read.key, self.groups) }.read_input(token, read)
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        RegisterDialect::value(values)
    }
}

impl Dialect<Groups<Raft<Recorder>>> for Routed {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<GroupsHead<Head>> {
        KeyValue { group: group_of(&write.key, self.groups) }.write_input(token, write)
    }

    fn read(&mut self, token: Token, read: &WantedRead) -> Input<GroupsHead<Head>> {
        KeyValue { group: group_of(&read.key, self.groups) }.read_input(token, read)
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        KeyValue::value(values)
    }

    fn misroute(&mut self, token: Token, write: &WantedWrite) -> Option<Input<GroupsHead<Head>>> {
        Some(KeyValue { group: GroupId(self.groups + 77) }.write_input(token, write))
    }
}

/// What is checked of each group in the container.
trait Watch<R: Replica> {
    /// A client asks for a write.
    fn wanted(&mut self, write: &WantedWrite);
    /// A process begins.
    fn started(&mut self, node: NodeId, recovery: &Recovery);
    /// A storage action is wanted.
    fn persist(&mut self, node: NodeId, id: WriteId, op: &Persist) -> Result<(), String>;
    /// Storage actions are durable.
    fn durable(&mut self, node: NodeId, up_to: WriteId);
    /// A container says something to another.
    fn sent(&mut self, node: NodeId, to: NodeId, head: &GroupsHead<R::Head>) -> Result<(), String>;
    /// A request ends.
    fn done(&mut self, request: &Request, outcome: &Outcome, now: Time) -> Result<(), String>;
    /// A write was acknowledged.
    fn acked(&self, ack: &AckedWrite) -> Result<(), String>;
    /// A group reports something.
    fn event(&mut self, group: GroupId, event: &Event);
    /// A container has run.
    fn check(&mut self, node: NodeId, container: &Groups<R>) -> Result<(), String>;
    /// A process ended.
    fn crashed(&mut self, node: NodeId);
    /// All is quiet.
    fn end(&self, acked: &[AckedWrite]) -> Result<(), String>;
}

/// Registers have no invariants beyond what their clients see.
struct NoWatch;

impl Watch<Register> for NoWatch {
    fn wanted(&mut self, _: &WantedWrite) {}

    fn started(&mut self, _: NodeId, _: &Recovery) {}

    fn persist(&mut self, _: NodeId, _: WriteId, _: &Persist) -> Result<(), String> {
        Ok(())
    }

    fn durable(&mut self, _: NodeId, _: WriteId) {}

    fn sent(&mut self, _: NodeId, _: NodeId, _: &GroupsHead<RegisterMessage>) -> Result<(), String> {
        Ok(())
    }

    fn done(&mut self, _: &Request, _: &Outcome, _: Time) -> Result<(), String> {
        Ok(())
    }

    fn acked(&self, _: &AckedWrite) -> Result<(), String> {
        Ok(())
    }

    fn event(&mut self, _: GroupId, _: &Event) {}

    fn check(&mut self, _: NodeId, _: &Groups<Register>) -> Result<(), String> {
        Ok(())
    }

    fn crashed(&mut self, _: NodeId) {}

    fn end(&self, _: &[AckedWrite]) -> Result<(), String> {
        Ok(())
    }
}

/// One Raft group: what its replicas and its clients saw.
struct Group {
    invariants: Invariants,
    answers: Answers,
}

/// The Raft groups of the containers.
struct Rafts {
    groups: BTreeMap<GroupId, Group>,
    sleepers: Sleepers,
    /// What groups have said so far.
    said: u64,
}

impl Rafts {
    fn of(&self, key: &Bytes) -> GroupId {
        group_of(key, self.groups.len() as u32)
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Invariants> {
        self.groups.values_mut().map(|group| &mut group.invariants)
    }
}

impl Watch<Raft<Recorder>> for Rafts {
    fn wanted(&mut self, write: &WantedWrite) {
        self.groups[&self.of(&write.key)].invariants.ledger.lines().want(write);
    }

    fn started(&mut self, node: NodeId, recovery: &Recovery) {
        self.sleepers.started(node);
        self.each().for_each(|invariants| invariants.started(node, recovery));
    }

    fn persist(&mut self, node: NodeId, id: WriteId, op: &Persist) -> Result<(), String> {
        self.each().try_for_each(|invariants| invariants.persist(node, id, op))
    }

    fn durable(&mut self, node: NodeId, up_to: WriteId) {
        self.each().for_each(|invariants| invariants.durable(node, up_to));
    }

    fn sent(&mut self, node: NodeId, to: NodeId, head: &GroupsHead<Head>) -> Result<(), String> {
        self.said += head.parts.len() as u64;
        head.parts.iter().try_for_each(|part| match self.groups.get_mut(&part.group) {
            Some(group) => group.invariants.sent(node, to, &part.head),
            None => Err(format!("messages_have_receivers: node {node} speaks of group {:?}", part.group)),
        })
    }

    fn done(&mut self, request: &Request, outcome: &Outcome, now: Time) -> Result<(), String> {
        let key = match &request.asked {
            Asked::Write { write, .. } => &write.key,
            Asked::Read { read, .. } => &read.key,
            _ => return Ok(()),
        };
        let group = self.of(key);
        let Group { invariants, answers } = self.groups.get_mut(&group).expect("keys have groups");
        answers.check(&invariants.ledger, request, outcome, now)?;
        answers.learn(request, outcome, now);
        Ok(())
    }

    fn acked(&self, ack: &AckedWrite) -> Result<(), String> {
        self.groups[&self.of(&ack.write.key)].invariants.acked_is_applied(ack)
    }

    fn event(&mut self, group: GroupId, event: &Event) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.invariants.event(event);
        }
    }

    fn check(&mut self, node: NodeId, container: &Groups<Raft<Recorder>>) -> Result<(), String> {
        container.groups().try_for_each(|(group, raft)| {
            self.sleepers.ran(group, node, raft)?;
            self.groups.get_mut(&group).expect("every group is watched").invariants.check(node, raft)
        })
    }

    fn crashed(&mut self, node: NodeId) {
        self.sleepers.crashed(node);
        self.each().for_each(|invariants| invariants.crashed(node));
    }

    fn end(&self, acked: &[AckedWrite]) -> Result<(), String> {
        self.groups.iter().try_for_each(|(&id, group)| {
            let own = acked.iter().filter(|ack| self.of(&ack.write.key) == id && is_lasting(ack.write.level));
            group.invariants.end(&own.cloned().collect::<Vec<_>>())
        })
    }
}

struct Watched<W> {
    workload: Workload<Routed>,
    watch: W,
    checked_wanted: usize,
    checked_acks: usize,
    /// Whether the promises must hold.
    bounded: bool,
}

impl<R: Replica, W: Watch<R>> Subject<Groups<R>> for Watched<W>
where
    Routed: Dialect<Groups<R>>,
{
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<GroupsHead<R::Head>>) {
        self.workload.on_alarm::<Groups<R>>(client, clients);
        let wanted = self.workload.wanted();
        wanted[self.checked_wanted..].iter().for_each(|write| self.watch.wanted(write));
        self.checked_wanted = wanted.len();
    }

    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        self.watch.started(node, recovery);
        Ok(())
    }

    fn on_action(&mut self, node: NodeId, action: &Action<GroupsHead<R::Head>>) -> Result<(), String> {
        match action {
            Action::Persist { id, op } => {
                let kept = self.watch.persist(node, *id, op);
                if self.bounded { kept } else { Ok(()) }
            }
            Action::Send { to, message } => {
                let kept = self.watch.sent(node, *to, &message.head);
                if self.bounded { kept } else { Ok(()) }
            }
            Action::Event { group, event } => {
                self.watch.event(*group, event);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_durable(&mut self, node: NodeId, up_to: WriteId) {
        self.watch.durable(node, up_to);
    }

    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<GroupsHead<R::Head>>,
    ) -> Result<(), String> {
        if let Some(request) = self.workload.request(token).filter(|_| self.bounded) {
            self.watch.done(request, &outcome, clients.now)?;
        }
        self.workload.on_done::<Groups<R>>(node, token, outcome, clients)?;
        for ack in &self.workload.acked()[self.checked_acks..] {
            if self.bounded {
                self.watch.acked(ack)?;
            }
        }
        self.checked_acks = self.workload.acked().len();
        Ok(())
    }

    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<GroupsHead<R::Head>>) {
        self.workload.on_crash(node, clients);
        self.watch.crashed(node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Groups<R>>) -> Result<(), String> {
        replicas.replica(node).filter(|_| self.bounded).map_or(Ok(()), |container| self.watch.check(node, container))
    }
}

fn play<R: Replica + 'static, W: Watch<R>, S: SimStorage>(
    plan: &Plan,
    world: &mut World<Groups<R>, S>,
    subject: &mut Watched<W>,
    bound: Duration,
) -> Result<(), String>
where
    Routed: Dialect<Groups<R>>,
{
    let text = |violation: Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;
    world.heal(subject);
    subject.workload.hurry();
    let (writes, reads) = subject.workload.answered();
    let served = |_: &World<Groups<R>, S>, subject: &Watched<W>| {
        let (now_writes, now_reads) = subject.workload.answered();
        now_writes >= writes + 10 && now_reads >= reads + 10
    };
    let serves = world.run_while(bound, subject, served).map_err(text)?;
    if !serves && world.must_serve() {
        return Err("serves_again: no progress after everything was mended".to_owned());
    }
    subject.workload.stop();
    if !world.is_bounded() {
        return Ok(());
    }
    let idle = world.run_while(bound, subject, |_, subject| subject.workload.is_idle()).map_err(text)?;
    if !idle && world.must_serve() {
        return Err("requests_end: an operation never ends".to_owned());
    }
    linearizable(subject.workload.history())?;
    subject.watch.end(subject.workload.acked())
}

/// Longer than any message is on its way.
const LINGERING: Duration = Duration::from_secs(2);

type RaftNode = Groups<Raft<Recorder>>;
type RaftWorld<S> = World<RaftNode, S>;

/// All nodes but one; nothing if one of them is not up.
fn all_but(replicas: &impl Replicas<RaftNode>, but: Option<NodeId>) -> Option<Vec<&RaftNode>> {
    let nodes = replicas.nodes().into_iter().filter(|node| Some(*node) != but);
    nodes.map(|node| replicas.replica(node)).collect()
}

fn all_sleep<S: SimStorage>(world: &RaftWorld<S>, but: Option<NodeId>) -> bool {
    let replicas = world.replicas();
    all_but(&replicas, but).is_some_and(|all| all.iter().all(|node| node.groups().all(|(_, it)| it.is_asleep())))
}

/// Every group has a leader in the latest term, among all nodes but one.
fn all_are_led<S: SimStorage>(world: &RaftWorld<S>, but: NodeId) -> bool {
    let replicas = world.replicas();
    let Some(all) = all_but(&replicas, Some(but)) else { return false };
    let groups = all[0].groups().map(|(group, _)| group);
    groups.into_iter().all(|group| {
        let newest = all
            .iter()
            .filter_map(|node| node.replica(group))
            .max_by_key(|raft| (raft.term(), raft.role() == Role::Leader));
        newest.is_some_and(|raft| raft.role() == Role::Leader)
    })
}

fn sleepers_agree<S: SimStorage>(world: &RaftWorld<S>) -> Result<(), String> {
    let replicas = world.replicas();
    let Some(all) = all_but(&replicas, None) else { return Ok(()) };
    let groups = all[0].groups().map(|(group, _)| group);
    groups.into_iter().try_for_each(|group| sleep::agree(group, all.iter().filter_map(|node| node.replica(group))))
}

/// Nobody asks for anything any more: every group sleeps and says nothing; one whose leader dies gets another one, and the dead one,
/// when it is back, what it missed.
fn rest<S: SimStorage>(
    plan: &Plan,
    world: &mut RaftWorld<S>,
    subject: &mut Watched<Rafts>,
    election: Duration,
) -> Result<(), String> {
    let text = |violation: Violation| violation.what;
    let bound = election * 60 + Duration::from_secs(10);
    let sleep = |world: &mut RaftWorld<S>, subject: &mut Watched<Rafts>, but| {
        world.run_while(bound, subject, |world, _| all_sleep(world, but)).map_err(text)
    };
    // A node whose log refused to open stays down, and one that remembers nothing of it may wait for it.
    let excused = |world: &RaftWorld<S>| {
        !world.must_serve() || world.replicas().nodes().into_iter().any(|node| world.is_refused(node))
    };
    if excused(world) {
        return Ok(());
    }
    if !sleep(world, subject, None)? {
        return if excused(world) { Ok(()) } else { Err(format!("idle_groups_sleep: {}", describe(world))) };
    }
    sleepers_agree(world)?;
    // What lingered on its way since the faults may still wake somebody.
    world.run_until(world.now() + LINGERING, subject).map_err(text)?;
    // A crash that lingered too may find a log that refuses (`raft-groups-log`, seed 372).
    if !sleep(world, subject, None)? {
        return if excused(world) { Ok(()) } else { Err(format!("idle_groups_sleep: {}", describe(world))) };
    }
    let said = subject.watch.said;
    world.run_until(world.now() + election * 20, subject).map_err(text)?;
    if subject.watch.said != said || !all_sleep(world, None) {
        return Err(format!("sleeping_groups_are_silent: {}", describe(world)));
    }
    if plan.settings.nodes < 3 {
        return Ok(());
    }
    let victim = NodeId(plan.rng(6).u32(1..=plan.settings.nodes));
    world.kill(victim, subject);
    let led = |world: &RaftWorld<S>, _: &Watched<Rafts>| all_are_led(world, victim);
    if !world.run_while(bound, subject, led).map_err(text)? || !sleep(world, subject, Some(victim))? {
        return Err(format!("leaders_of_the_dead_are_replaced: {}", describe(world)));
    }
    world.restart(victim);
    if !sleep(world, subject, None)? {
        return if excused(world) { Ok(()) } else { Err(format!("idle_groups_sleep: {}", describe(world))) };
    }
    subject.watch.sleepers.probes.hit(Probe::GroupsAtRest);
    sleepers_agree(world)
}

fn describe<S: SimStorage>(world: &RaftWorld<S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(container) => {
            let of = |(group, raft): (GroupId, &Raft<Recorder>)| {
                let sleeps = if raft.is_asleep() { "sleeps" } else { "is awake" };
                format!("{group} {sleeps} as {} of {} at {:?}", raft.role(), raft.term(), raft.last().id)
            };
            format!("node {node}: {}", container.groups().map(of).collect::<Vec<_>>().join(", "))
        }
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// How many groups, and the clients' part.
fn setup(plan: &Plan) -> (u32, WorkloadSettings) {
    let groups = plan.rng(3).u32(2..5);
    (groups, WorkloadSettings { keys: groups * 2, writes_per_mille: 500, ..plain(&plan.workload) })
}

/// Half of the seeds have clients that ask so seldom that groups sleep in between.
fn lull(plan: &Plan, workload: WorkloadSettings) -> WorkloadSettings {
    let mut rng = plan.rng(7);
    let longer = if rng.bool() { rng.u32(5..60) } else { 1 };
    WorkloadSettings { think_max: workload.think_max * longer, ..workload }
}

/// One plan of several groups of registers.
///
/// # Errors
/// The first violation.
pub fn registers<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let (nodes, (groups, workload)) = (plan.settings.nodes, setup(plan));
    let snapshot_every = plan.rng(1).u32(2..60);
    let cluster = ClusterId::from_name("sim");
    let mut world: World<Groups<Register>, S> =
        World::new(plan.seed, settings(plan), cluster, move |node, boots, _| {
            let register = |group| {
                let mut config = RegisterConfig::new(cluster, group, node, (1..=nodes).map(NodeId).collect());
                config.snapshot_every = snapshot_every;
                (group, Register::new(config, &boots.of(group)).expect("small node ids, few starts"))
            };
            Groups::new(Epoch(1), (1..=groups).map(GroupId).map(register))
        });
    telling.to(&mut world);
    let workload = Workload::new(workload, nodes, Routed { groups });
    let mut subject =
        Watched { workload, watch: NoWatch, checked_wanted: 0, checked_acks: 0, bounded: world.is_bounded() };
    play(plan, &mut world, &mut subject, Duration::from_secs(10)).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.workload.answered(), Probes::default()))
}

/// One plan of several Raft groups.
///
/// # Errors
/// The first violation.
pub fn rafts<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let (nodes, (groups, workload)) = (plan.settings.nodes, setup(plan));
    let (timeouts, limits) = knobs(&mut plan.rng(1));
    let cluster = ClusterId::from_name("sim");
    let ledgers: BTreeMap<GroupId, Ledger> = (1..=groups).map(|group| (GroupId(group), Ledger::default())).collect();
    let suspended = plan.settings.clock.suspend.is_some();
    let group = |(&group, ledger): (&GroupId, &Ledger)| {
        let invariants = Invariants::new(ledger.clone(), group, nodes);
        (group, Group { invariants, answers: Answers::new(suspended) })
    };
    let watch = Rafts { groups: ledgers.iter().map(group).collect(), sleepers: Sleepers::default(), said: 0 };
    let hibernate_after = sleep::hibernate_after(plan, &timeouts);
    let settings = plan.settings.clone();
    let mut world: World<Groups<Raft<Recorder>>, S> =
        World::new(plan.seed, settings, cluster, move |node, boots, seed| {
            let raft = |(&group, ledger): (&GroupId, &Ledger)| {
                let own_seed = seed ^ u64::from(group.0);
                let mut config = Config::new(cluster, group, node, (1..=nodes).map(NodeId).collect(), own_seed);
                (config.timeouts, config.limits, config.hibernate_after) = (timeouts, limits, hibernate_after);
                let machine = Recorder::new(node, ledger.clone());
                (group, Raft::new(config, &boots.of(group), machine).expect("the knobs are in range"))
            };
            let groups = Groups::new(Epoch(1), ledgers.iter().map(raft));
            groups.with_node_heartbeats(sleep::heartbeats(&timeouts, seed))
        });
    telling.to(&mut world);
    let workload = Workload::new(lull(plan, workload), nodes, Routed { groups });
    let mut subject = Watched { workload, watch, checked_wanted: 0, checked_acks: 0, bounded: world.is_bounded() };
    let bound = timeouts.election * 40 + Duration::from_secs(8);
    let played = play(plan, &mut world, &mut subject, bound).and_then(|()| match hibernate_after {
        Some(_) if world.is_bounded() => rest(plan, &mut world, &mut subject, timeouts.election),
        _ => Ok(()),
    });
    played.map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.workload.answered(), subject.watch.sleepers.probes))
}
