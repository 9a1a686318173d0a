//! Several groups in each node, on one storage: two registers, or Rafts, in one container.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{ClusterId, Epoch, GroupId, Input, NodeId, Outcome, Replica, Time, Token};
use replikit_partitioning::{Groups, GroupsHead};
use replikit_sim::check::{History, check_linearizable};
use replikit_sim::register::{Register, RegisterConfig, RegisterDialect, RegisterMessage};
use replikit_sim::{
    Clients, Dialect, Replicas, Settings, SimStorage, Subject, Violation, WantedWrite, Workload, WorkloadSettings,
    World,
};
use replikit_single_leader::{Config, Head, Raft};

use crate::raft::clients::{KeyValue, command};
use crate::raft::invariants::Invariants;
use crate::raft::knobs;
use crate::raft::ledger::Ledger;
use crate::raft::recorder::Recorder;
use crate::run::{Run, Telling};

/// Which group holds a key: groups count from 1.
fn group_of(key: &Bytes, groups: u32) -> GroupId {
    GroupId(u32::from(*key.last().expect("keys are not empty")) % groups + 1)
}

/// The wire of the inside in the wire of the container: requests carry no head, so only their type changes.
fn wrap<H>(input: Input<H>) -> Input<GroupsHead<H>> {
    match input {
        Input::Command { token, group, level, session, body } => Input::Command { token, group, level, session, body },
        Input::Query { token, group, level, body, bytes_max } => Input::Query { token, group, level, body, bytes_max },
        Input::Write { token, group, write } => Input::Write { token, group, write },
        Input::Read { token, group, read } => Input::Read { token, group, read },
        other => unreachable!("no request of the workload: {}", core::any::type_name_of_val(&other)),
    }
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

    fn read(&mut self, token: Token, key: &Bytes) -> Input<GroupsHead<RegisterMessage>> {
        RegisterDialect { group: group_of(key, self.groups) }.read_input(token, key)
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        RegisterDialect::value(values)
    }
}

impl Dialect<Groups<Raft<Recorder>>> for Routed {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<GroupsHead<Head>> {
        wrap(KeyValue { group: group_of(&write.key, self.groups) }.write(token, write))
    }

    fn read(&mut self, token: Token, key: &Bytes) -> Input<GroupsHead<Head>> {
        wrap(KeyValue { group: group_of(key, self.groups) }.read(token, key))
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        KeyValue { group: GroupId(1) }.found(values)
    }
}

/// What is checked of each group in the container.
trait Watch<R: Replica> {
    fn check(&mut self, node: NodeId, container: &Groups<R>) -> Result<(), String>;
    fn crashed(&mut self, node: NodeId);
    fn end(&self, acked: &[replikit_sim::AckedWrite]) -> Result<(), String>;
}

/// Registers have no invariants beyond what their clients see.
struct NoWatch;

impl Watch<Register> for NoWatch {
    fn check(&mut self, _: NodeId, _: &Groups<Register>) -> Result<(), String> {
        Ok(())
    }

    fn crashed(&mut self, _: NodeId) {}

    fn end(&self, _: &[replikit_sim::AckedWrite]) -> Result<(), String> {
        Ok(())
    }
}

impl Watch<Raft<Recorder>> for BTreeMap<GroupId, Invariants> {
    fn check(&mut self, node: NodeId, container: &Groups<Raft<Recorder>>) -> Result<(), String> {
        for (group, raft) in container.groups() {
            let invariants = self.get_mut(&group).expect("every group is watched");
            invariants.check(node, raft).map_err(|what| format!("group {group}: {what}"))?;
        }
        Ok(())
    }

    fn crashed(&mut self, node: NodeId) {
        self.values_mut().for_each(|invariants| invariants.crashed(node));
    }

    fn end(&self, acked: &[replikit_sim::AckedWrite]) -> Result<(), String> {
        for ack in acked {
            let group = group_of(&ack.write.key, self.len() as u32);
            if self[&group].ledger.index(&command(&ack.write)) != Some(ack.at.id.index) {
                return Err(format!("{ack:?} was lost"));
            }
        }
        Ok(())
    }
}

struct Watched<W> {
    workload: Workload<Routed>,
    watch: W,
}

impl<R: Replica, W: Watch<R>> Subject<Groups<R>> for Watched<W>
where
    Routed: Dialect<Groups<R>>,
{
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<GroupsHead<R::Head>>) {
        self.workload.on_alarm::<Groups<R>>(client, clients);
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<GroupsHead<R::Head>>,
    ) -> Result<(), String> {
        self.workload.on_done::<Groups<R>>(token, outcome, clients)
    }

    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<GroupsHead<R::Head>>) {
        self.workload.on_crash(node, clients);
        self.watch.crashed(node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Groups<R>>) -> Result<(), String> {
        replicas.replica(node).map_or(Ok(()), |container| self.watch.check(node, container))
    }
}

fn play<R: Replica + 'static, W: Watch<R>, S: SimStorage>(
    seed: u64,
    world: &mut World<Groups<R>, S>,
    subject: &mut Watched<W>,
    bound: Duration,
) -> Result<Run, String>
where
    Routed: Dialect<Groups<R>>,
{
    let text = |violation: Violation| violation.to_string();
    world.run_until(Time::ZERO + Duration::from_secs(2), subject).map_err(text)?;
    world.heal();
    let wanted = subject.workload.history().answered() + 20;
    let served = |_: &World<Groups<R>, S>, subject: &Watched<W>| subject.workload.history().answered() >= wanted;
    if !world.run_while(bound, subject, served).map_err(text)? {
        return Err(format!("seed {seed}: no progress after everything was mended"));
    }
    subject.workload.stop();
    if !world.run_while(bound, subject, |_, subject| subject.workload.is_idle()).map_err(text)? {
        return Err(format!("seed {seed}: an operation never ends"));
    }
    let history: &History = subject.workload.history();
    check_linearizable(history).map_err(|error| format!("seed {seed}: {error}"))?;
    subject.watch.end(subject.workload.acked()).map_err(|what| format!("seed {seed}: {what}"))?;
    Ok(Run::of(world, history))
}

struct Setup {
    nodes: u32,
    groups: u32,
    settings: Settings,
    workload: WorkloadSettings,
}

fn setup(rng: &mut Rng) -> Setup {
    let nodes = [1, 3, 3, 3, 5][rng.usize(0..5)];
    let groups = rng.u32(2..5);
    let settings = Settings::draw(rng, nodes);
    let workload = WorkloadSettings { clients: rng.u32(2..8), keys: groups * 2, ..WorkloadSettings::default() };
    Setup { nodes, groups, settings, workload }
}

/// One seed of several groups of registers.
pub fn registers<S: SimStorage + 'static>(seed: u64, telling: Telling) -> Result<Run, String> {
    let mut rng = Rng::with_seed(seed);
    let Setup { nodes, groups, settings, workload } = setup(&mut rng);
    let snapshot_every = rng.u32(2..60);
    let cluster = ClusterId::from_name("sim");
    let mut world: World<Groups<Register>, S> = World::new(seed, settings, cluster, move |node, boots, _| {
        let register = |group| {
            let mut config = RegisterConfig::new(cluster, group, node, (1..=nodes).map(NodeId).collect());
            config.snapshot_every = snapshot_every;
            (group, Register::new(config, &boots.of(group)).expect("small node ids, few starts"))
        };
        Groups::new(Epoch(1), (1..=groups).map(GroupId).map(register))
    });
    telling.to(&mut world);
    let mut subject = Watched { workload: Workload::new(workload, nodes, Routed { groups }), watch: NoWatch };
    play(seed, &mut world, &mut subject, Duration::from_secs(10))
}

/// One seed of several Raft groups.
pub fn rafts<S: SimStorage + 'static>(seed: u64, telling: Telling) -> Result<Run, String> {
    let mut rng = Rng::with_seed(seed);
    let Setup { nodes, groups, settings, workload } = setup(&mut rng);
    let (timeouts, limits) = knobs(&mut rng);
    let cluster = ClusterId::from_name("sim");
    let ledgers: BTreeMap<GroupId, Ledger> = (1..=groups).map(|group| (GroupId(group), Ledger::default())).collect();
    let watch: BTreeMap<GroupId, Invariants> =
        ledgers.iter().map(|(&group, ledger)| (group, Invariants::new(ledger.clone()))).collect();
    let mut world: World<Groups<Raft<Recorder>>, S> = World::new(seed, settings, cluster, move |node, boots, seed| {
        let raft = |(&group, ledger): (&GroupId, &Ledger)| {
            let own_seed = seed ^ u64::from(group.0);
            let mut config = Config::new(cluster, group, node, (1..=nodes).map(NodeId).collect(), own_seed);
            (config.timeouts, config.limits) = (timeouts, limits);
            let machine = Recorder::new(node, ledger.clone());
            (group, Raft::new(config, &boots.of(group), machine).expect("the knobs are in range"))
        };
        Groups::new(Epoch(1), ledgers.iter().map(raft))
    });
    telling.to(&mut world);
    let mut subject = Watched { workload: Workload::new(workload, nodes, Routed { groups }), watch };
    play(seed, &mut world, &mut subject, timeouts.election * 40 + Duration::from_secs(3))
}
