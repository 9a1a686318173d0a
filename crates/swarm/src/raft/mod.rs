//! The standard run of Raft: a key-value group under every fault, all invariants after every round.

pub(crate) mod answers;
pub(crate) mod clients;
pub(crate) mod disk;
pub(crate) mod invariants;
pub(crate) mod ledger;
pub(crate) mod recorder;
pub(crate) mod subject;

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{ClusterId, GroupId, NodeId, Role, Time};
use replikit_sim::{Replicas, SimStorage, World};
use replikit_single_leader::{Config, Limits, Raft, Timeouts};

use crate::plan::Plan;
use crate::probe::Probe;
use crate::run::{Failure, Run, Telling, linearizable};
pub use invariants::INVARIANTS;
use ledger::Ledger;
use recorder::Recorder;
use subject::RaftSubject;

const GROUP: GroupId = GroupId(1);

/// Knobs of the protocol: every buffer from tiny to plenty, every timeout from a tenth to tenfold.
pub(crate) fn knobs(rng: &mut Rng) -> (Timeouts, Limits) {
    let election = Duration::from_millis(if rng.u8(0..8) == 0 { 1 << rng.u32(9..11) } else { 1 << rng.u32(4..9) });
    let heartbeat = (election / rng.u32(3..7)).max(Duration::from_millis(1));
    let commit_notice = if rng.bool() { Duration::ZERO } else { heartbeat / 2 };
    let read = Duration::from_millis(rng.u64(50..1000));
    let mut bytes = |most: u32| if rng.bool() { 1 << rng.u32(0..most) } else { 1_u64 << 20 };
    let limits = Limits {
        batch_bytes_max: bytes(12) as usize,
        message_bytes_max: bytes(14) as usize,
        inflight_bytes_max: bytes(16) as usize,
        cache_bytes_max: bytes(14) as usize,
        snapshot_log_bytes: bytes(16).max(1 << 11),
        snapshot_piece_bytes: bytes(12).max(32) as u32,
        ..Limits::default()
    };
    (Timeouts { election, heartbeat, commit_notice, read }, limits)
}

/// A violation of what must hold at the end.
type Broken = String;

/// One plan: faults for a while, then the rest must serve again and its replicas agree.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    let (timeouts, limits) = knobs(&mut plan.rng(1));
    let cluster = ClusterId::from_name("sim");
    let ledger = Ledger::default();
    let shared = ledger.clone();
    let mut world: World<Raft<Recorder>, S> =
        World::new(plan.seed, plan.settings.clone(), cluster, move |node, boots, seed| {
            let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect(), seed);
            (config.timeouts, config.limits) = (timeouts, limits);
            Raft::new(config, &boots.of(GROUP), Recorder::new(node, shared.clone())).expect("the knobs are in range")
        });
    let suspended = plan.settings.clock.suspend.is_some();
    let mut subject = RaftSubject::new(plan.workload.clone(), nodes, GROUP, ledger, suspended);
    subject.bounded = world.is_bounded();
    telling.to(&mut world);
    play(plan, &mut world, &mut subject, timeouts).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.answered(), subject.probes))
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Raft<Recorder>, S>,
    subject: &mut RaftSubject,
    timeouts: Timeouts,
) -> Result<(), Broken> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;

    // A replica whose tail was cut votes only when every member has answered, so with one nobody may be missing. A node
    // whose log refuses to open stays down, and nobody else may then.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let dead: Vec<NodeId> = if subject.tail_was_cut || !sound { Vec::new() } else { pick(plan) };
    if !dead.is_empty() {
        subject.probes.hit(Probe::MinorityDead);
    }
    world.heal_all_but(&dead, subject);

    // A leader within twenty election timeouts, as slow clocks count them, after starting and reading what the disks hold.
    // A node that then finds its disk damaged is started anew, perhaps some times.
    let starts = Duration::from_millis(if sound { 200 } else { 3000 });
    let bound = timeouts.election * 22 + starts;
    let led = |world: &World<Raft<Recorder>, S>, _: &RaftSubject| {
        let replicas = world.replicas();
        let alive = || replicas.nodes().into_iter().filter(|node| !dead.contains(node) && !world.is_refused(*node));
        alive().any(|node| {
            replicas.replica(node).is_some_and(|raft| {
                let leads = raft.role() == Role::Leader && raft.term_at(raft.commit_index()) == Some(raft.term());
                leads
                    && alive()
                        .all(|other| replicas.replica(other).is_some_and(|raft| raft.status().leader == Some(node)))
            })
        })
    };
    if !world.run_while(bound, subject, led).map_err(text)? {
        if !world.must_serve() || (subject.tail_was_cut && !dead.is_empty()) {
            // Noticed only at a start after the healing, or beyond what a quorum survives: this run shows safety alone.
            return safe(world, subject);
        }
        return Err(format!("converges: no leader that all follow: {}", describe(world)));
    }
    subject.hurry();
    let (writes, reads) = subject.answered();
    let served = |_: &World<Raft<Recorder>, S>, subject: &RaftSubject| {
        let (now_writes, now_reads) = subject.answered();
        now_writes >= writes + 10 && now_reads >= reads + 10
    };
    // What a client may wait for lost answers: one may be all there is, and some of its requests go to nodes that stay dead.
    let patience = Duration::from_secs(8) + plan.workload.timeout * 32 + timeouts.read * 2;
    if !world.run_while(patience, subject, served).map_err(text)? {
        if !world.must_serve() {
            return safe(world, subject);
        }
        return Err(format!("serves_again: {:?} of {writes}, {reads}: {}", subject.answered(), describe(world)));
    }
    subject.stop();
    if !world.run_while(patience, subject, |_, subject| subject.is_idle()).map_err(text)? {
        if !world.must_serve() {
            return safe(world, subject);
        }
        return Err(format!("requests_end: a request is still open: {}", describe(world)));
    }
    let agree = |world: &World<Raft<Recorder>, S>, _: &RaftSubject| {
        let replicas = world.replicas();
        let up = |node: &NodeId| !dead.contains(node) && !world.is_refused(*node);
        let mut applied = replicas.nodes().into_iter().filter(up).map(|node| {
            replicas.replica(node).map(|replica| (replica.applied(), replica.last(), replica.machine().state()))
        });
        let first = applied.next().flatten();
        first.is_some_and(|(applied, last, _)| applied == last) && applied.all(|other| other == first)
    };
    if !world.run_while(bound + patience, subject, agree).map_err(text)? {
        if !world.must_serve() {
            return safe(world, subject);
        }
        return Err(format!("replicas_agree: they do not: {}", describe(world)));
    }
    if world.is_bounded() {
        let refused = world.replicas().nodes().into_iter().any(|node| world.is_refused(node));
        subject.check_end(dead.is_empty() && !refused)?;
    }
    safe(world, subject)
}

/// What clients saw must be what the guarantees say, however far the run got; unless a disk silently lost what it confirmed.
fn safe<S: SimStorage>(world: &World<Raft<Recorder>, S>, subject: &RaftSubject) -> Result<(), Broken> {
    if world.is_bounded() { linearizable(subject.history()) } else { Ok(()) }
}

/// The nodes that stay dead.
fn pick(plan: &Plan) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = (1..=plan.settings.nodes).map(NodeId).collect();
    plan.rng(2).shuffle(&mut nodes);
    nodes.truncate(plan.dead as usize);
    nodes
}

fn describe<S: SimStorage>(world: &World<Raft<Recorder>, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(raft) => format!("node {node}: {:?}, applied {:?}", raft.status(), raft.applied()),
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
