//! The standard run of Raft: a key-value group under every fault, all invariants after every round.

pub(crate) mod clients;
pub(crate) mod invariants;
pub(crate) mod ledger;
pub(crate) mod recorder;

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{ClusterId, GroupId, NodeId, Time, WriteLevel};
use replikit_sim::check::check_linearizable;
use replikit_sim::{Replicas, Settings, SimStorage, WorkloadSettings, World};
use replikit_single_leader::{Config, Limits, Raft, Timeouts};

use crate::run::{Run, Telling};
use clients::RaftSubject;
use ledger::Ledger;
use recorder::Recorder;

const GROUP: GroupId = GroupId(1);

/// Knobs of the protocol: every buffer from tiny to plenty, every timeout from short to long.
pub(crate) fn knobs(rng: &mut Rng) -> (Timeouts, Limits) {
    let election = Duration::from_millis(1 << rng.u32(4..9));
    let heartbeat = (election / rng.u32(3..10)).max(Duration::from_millis(1));
    let commit_notice = if rng.bool() { Duration::ZERO } else { heartbeat / 2 };
    let read = Duration::from_millis(rng.u64(50..1000));
    let mut bytes = |most: u32| if rng.bool() { 1 << rng.u32(5..most) } else { 1_u64 << 20 };
    let limits = Limits {
        batch_bytes_max: bytes(12) as usize,
        message_bytes_max: bytes(14) as usize,
        inflight_bytes_max: bytes(16) as usize,
        cache_bytes_max: bytes(14) as usize,
        snapshot_log_bytes: bytes(16),
        snapshot_piece_bytes: bytes(12) as u32,
        ..Limits::default()
    };
    (Timeouts { election, heartbeat, commit_notice, read }, limits)
}

/// One seed: faults for a while, then the group must serve again and its replicas agree.
pub fn run<S: SimStorage + 'static>(seed: u64, telling: Telling) -> Result<Run, String> {
    let mut rng = Rng::with_seed(seed);
    let nodes = [1, 3, 3, 3, 5][rng.usize(0..5)];
    let settings = Settings::draw(&mut rng, nodes);
    let (timeouts, limits) = knobs(&mut rng);
    let clients = rng.u32(1..8);
    let weak = [WriteLevel::Memory, WriteLevel::LeaderDisk, WriteLevel::Received(1), WriteLevel::Durable(1)];
    let mut levels = vec![WriteLevel::Quorum, WriteLevel::Applied(1 + rng.u8(0..nodes as u8))];
    if rng.bool() {
        levels.extend(weak);
    }
    let workload = WorkloadSettings {
        clients,
        keys: rng.u32(1..5),
        with_session: rng.u32(0..=clients),
        levels,
        ..WorkloadSettings::default()
    };
    let cluster = ClusterId::from_name("sim");
    let ledger = Ledger::default();
    let shared = ledger.clone();
    let mut world: World<Raft<Recorder>, S> = World::new(seed, settings, cluster, move |node, boots, seed| {
        let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect(), seed);
        (config.timeouts, config.limits) = (timeouts, limits);
        Raft::new(config, &boots.of(GROUP), Recorder::new(node, shared.clone())).expect("the knobs are in range")
    });
    let mut subject = RaftSubject::new(workload, nodes, GROUP, ledger);
    telling.to(&mut world);
    play(seed, &mut world, &mut subject, timeouts.election)?;
    Ok(Run::of(&world, subject.history()))
}

fn play<S: SimStorage>(
    seed: u64,
    world: &mut World<Raft<Recorder>, S>,
    subject: &mut RaftSubject,
    election: Duration,
) -> Result<(), String> {
    let stuck = |what: &str| format!("seed {seed}: {what} after everything was mended");
    let text = |violation: replikit_sim::Violation| violation.to_string();
    world.run_until(Time::ZERO + Duration::from_secs(2), subject).map_err(text)?;
    world.heal();
    let wanted = subject.history().answered() + 20;
    // Twenty election timeouts, and what a client may wait for a lost answer.
    let bound = election * 40 + Duration::from_secs(3);
    if !world.run_while(bound, subject, |_, subject| subject.history().answered() >= wanted).map_err(text)? {
        return Err(stuck(&format!("no progress: {}", describe(world))));
    }
    subject.stop();
    if !world.run_while(bound, subject, |_, subject| subject.is_idle()).map_err(text)? {
        return Err(stuck("an operation never ends"));
    }
    let agree = |world: &World<Raft<Recorder>, S>, _: &RaftSubject| {
        let replicas = world.replicas();
        let mut applied = replicas.nodes().into_iter().map(|node| {
            replicas.replica(node).map(|replica| (replica.applied(), replica.last(), replica.machine().state()))
        });
        let first = applied.next().expect("a cluster has nodes");
        first.is_some_and(|(applied, last, _)| applied == last) && applied.all(|other| other == first)
    };
    if !world.run_while(bound, subject, agree).map_err(text)? {
        return Err(stuck(&format!("the replicas do not agree: {}", describe(world))));
    }
    subject.check_end().map_err(|what| format!("seed {seed}: {what}"))?;
    check_linearizable(subject.history()).map_err(|error| format!("seed {seed}: {error}"))
}

fn describe<S: SimStorage>(world: &World<Raft<Recorder>, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(raft) => format!("node {node}: {:?}, applied {:?}", raft.status(), raft.applied()),
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
