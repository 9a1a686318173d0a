//! The standard run of the majority-quorum register.

use core::time::Duration;

use replikit_core::{ClusterId, GroupId, NodeId, Time};
use replikit_sim::register::{Register, RegisterConfig, RegisterWorkload};
use replikit_sim::{Settings, SimStorage, WorkloadSettings, World};

use crate::plan::Plan;
use crate::probe::Probes;
use crate::run::{Failure, Run, Telling, linearizable};

const GROUP: GroupId = GroupId(1);

/// A cluster of registers on the given settings.
#[must_use]
pub fn world<S: SimStorage>(seed: u64, settings: Settings, snapshot_every: u32) -> World<Register, S> {
    let cluster = ClusterId::from_name("sim");
    let nodes = settings.nodes;
    World::new(seed, settings, cluster, move |node, boots, _| {
        let members = (1..=nodes).map(NodeId).collect();
        let mut config = RegisterConfig::new(cluster, GROUP, node, members);
        config.snapshot_every = snapshot_every;
        Register::new(config, &boots.of(GROUP)).expect("small node ids, few starts")
    })
}

/// A plan's faults but for those of the disk that a register does not survive: it takes no note of a cut tail.
pub(crate) fn settings(plan: &Plan) -> Settings {
    let mut settings = plan.settings.clone();
    settings.storage.disk.kinds.retain(|kind| !kind.cuts_tail());
    settings
}

/// What a register understands of a plan's workload: puts at `Quorum` and linearizable reads.
pub(crate) fn plain(workload: &WorkloadSettings) -> WorkloadSettings {
    let WorkloadSettings { clients, keys, think_max, .. } = *workload;
    WorkloadSettings { clients, keys: keys.min(5), think_max, ..WorkloadSettings::default() }
}

/// One plan: faults for a while, then the cluster must serve again; what clients saw must be linearizable.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    let mut world: World<Register, S> = world(plan.seed, settings(plan), plan.rng(1).u32(2..60));
    let mut clients = RegisterWorkload::new(plain(&plan.workload), nodes, GROUP);
    telling.to(&mut world);
    play(plan, &mut world, &mut clients).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, clients.answered(), Probes::default()))
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Register, S>,
    clients: &mut RegisterWorkload,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, clients).map_err(text)?;
    world.heal(clients);
    let wanted = clients.history().answered() + 20;
    let bound = Duration::from_secs(10);
    let serves = world.run_while(bound, clients, |_, clients| clients.history().answered() >= wanted).map_err(text)?;
    if !serves && world.must_serve() {
        return Err("serves_again: no progress after everything was mended".to_owned());
    }
    clients.stop();
    if !world.is_bounded() {
        return Ok(());
    }
    let idle = world.run_while(bound, clients, |_, clients| clients.is_idle()).map_err(text)?;
    if !idle && world.must_serve() {
        return Err("requests_end: an operation never ends".to_owned());
    }
    linearizable(clients.history())
}
