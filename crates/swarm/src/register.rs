//! The standard run of the majority-quorum register.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{ClusterId, GroupId, NodeId, Time};
use replikit_sim::check::check_linearizable;
use replikit_sim::register::{Register, RegisterConfig, RegisterWorkload};
use replikit_sim::{Settings, SimStorage, WorkloadSettings, World};

use crate::run::{Run, Telling};

const GROUP: GroupId = GroupId(1);

/// A cluster of registers on the given settings.
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

/// One seed: three seconds of faults, then the cluster must serve again; what clients saw must be linearizable.
pub fn run<S: SimStorage + 'static>(seed: u64, telling: Telling) -> Result<Run, String> {
    let mut rng = Rng::with_seed(seed);
    let nodes = [1, 3, 3, 3, 5][rng.usize(0..5)];
    let settings = Settings::draw(&mut rng, nodes);
    let workload = WorkloadSettings { clients: rng.u32(1..8), keys: rng.u32(1..5), ..WorkloadSettings::default() };
    let mut world: World<Register, S> = world(seed, settings, rng.u32(2..60));
    let mut clients = RegisterWorkload::new(workload, nodes, GROUP);

    telling.to(&mut world);
    let end = Time::ZERO + Duration::from_secs(3);
    world.run_until(end, &mut clients).map_err(|violation| violation.to_string())?;
    world.heal();
    let wanted = clients.history().answered() + 20;
    let served = world
        .run_while(Duration::from_secs(10), &mut clients, |_, clients| clients.history().answered() >= wanted)
        .map_err(|violation| violation.to_string())?;
    if !served {
        return Err(format!("seed {seed}: no progress after everything was mended"));
    }
    clients.stop();
    let idle = world
        .run_while(Duration::from_secs(10), &mut clients, |_, clients| clients.is_idle())
        .map_err(|violation| violation.to_string())?;
    if !idle {
        return Err(format!("seed {seed}: an operation never ends"));
    }
    check_linearizable(clients.history()).map_err(|error| format!("seed {seed}: {error}"))?;
    Ok(Run::of(&world, clients.history()))
}
