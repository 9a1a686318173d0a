//! The standard run of a multi-leader group: every replica takes writes under every fault, and each answer is what a model of
//! all writes says.

pub(crate) mod census;
pub(crate) mod model;
pub(crate) mod subject;

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::crdt::CrdtKind;
use replikit_core::policy::{ConflictPolicy, DeletePolicy};
use replikit_core::{ClusterId, GroupId, NodeId, Time, VersionVector, WriteLevel};
use replikit_multi_leader::{Config, Founding, Home, Keyspace, Keyspaces, Limits, MultiLeader, Timing, Topology, home};
use replikit_sim::{Fault, Replicas, SimStorage, World};

use crate::crowd::{Behaviour, Crowd, PREFIXES};
use crate::plan::Plan;
use crate::probe::Probe;
use crate::run::{Failure, Run, Telling};
use census::Census;
use subject::MultiSubject;

const GROUP: GroupId = GroupId(1);

/// The invariants of a multi-leader group, by the name with which a violation begins, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("dots_are_unique", "A dot names one write for ever, whatever its writer forgets."),
    ("sent_after_durable", "A write leaves its node only once it is on its disk."),
    ("applied_in_order", "What is applied of an origin has no gap."),
    ("applied_in_causal_order", "A write is applied after everything that its origin had applied."),
    (
        "applied_never_goes_back",
        "A living replica does not forget what it has applied, unless it was evicted and says so.",
    ),
    ("acked_is_there", "An acknowledged write has come into as many logs and onto as many disks as its level says."),
    ("reads_show_the_past", "A read shows what a model of all writes shows for what the answer says it has seen."),
    ("sessions_do_not_go_back", "A read with a token has seen what the session has read and written, at any replica."),
    ("staleness_is_bounded", "A read is no staler than it says."),
    (
        "homes_have_no_conflicts",
        "Writes of keys with a required home never stand beside each other, also when the home changes; but those that a home \
         made because it did not know that it was evicted.",
    ),
    (
        "conserved",
        "Every acknowledged write is live, or replaced by one that had seen it, or in the audit of every replica; or it is on \
         the disk of a node that was evicted, until that has come back and made it again.",
    ),
    ("audit_answers", "The audit can be read."),
    ("converges", "Healed replicas apply the same writes, whoever of them is dead and whatever the topology."),
    ("replicas_agree", "Replicas that have applied the same writes show the same, and what the model says."),
    ("no_loops", "A batch is sent a bounded number of times, and not at all once everybody has it."),
    ("collected", "When all is quiet and everybody is there, no delete and no loser is kept any more."),
];

/// What is watched of such a group, beside [`Probe::OF_MANY_LEADERS`].
pub(crate) const PROBES: &[Probe] = &[
    Probe::SnapshotTaken,
    Probe::SnapshotInstalled,
    Probe::SnapshotInPieces,
    Probe::LogReleased,
    Probe::LogReset,
    Probe::LogReadFromDisk,
    Probe::SessionReadRefused,
    Probe::MinorityDead,
];

/// What nobody of such a group can meet: faults of a leader, and of requests that its clients do not make.
pub(crate) const UNMET_FAULTS: &[Fault] = &[
    Fault::Shift,
    Fault::LeaderInMinority,
    Fault::LeaderCrash,
    Fault::Churn,
    Fault::SlowLeaderDisk,
    Fault::SnapshotByHand,
    Fault::Retry,
    Fault::RetryElsewhere,
    Fault::DuplicateRequest,
    Fault::StaleRoute,
    Fault::HotKey,
    Fault::HostileRequest,
];

/// The keyspaces of a run: one of each kind, under the prefixes that clients use.
fn keyspaces(rng: &mut Rng) -> Keyspaces {
    let mut deletes = || [DeletePolicy::AddWins, DeletePolicy::DeleteWins, DeletePolicy::NewerWins][rng.usize(0..3)];
    // The longer text, and of two equally long ones the larger: commutative, associative and idempotent.
    let longer = Arc::new(
        |left: &Bytes, right: &Bytes| {
            if (left.len(), left) >= (right.len(), right) { left.clone() } else { right.clone() }
        },
    );
    let mut space = |conflicts| Keyspace { conflicts, deletes: deletes(), home: Home::Anywhere };
    let [lww, siblings, merge, count, set, homed, flag] = PREFIXES;
    Keyspaces::default()
        .with(lww, space(ConflictPolicy::Lww))
        .with(siblings, space(ConflictPolicy::Siblings))
        .with(merge, space(ConflictPolicy::Merge(longer)))
        .with(count, space(ConflictPolicy::Crdt(CrdtKind::Counter)))
        .with(set, space(ConflictPolicy::Crdt(CrdtKind::Set)))
        .with(homed, Keyspace { home: Home::Require(home::spread()), ..Keyspace::new(ConflictPolicy::Lww) })
        .with(flag, space(ConflictPolicy::Crdt(CrdtKind::Flag)))
}

fn topology(rng: &mut Rng, nodes: u32) -> Topology {
    match rng.u8(0..6) {
        0 | 1 => Topology::AllToAll,
        2 => Topology::Star { hub: NodeId(rng.u32(1..=nodes)) },
        3 => Topology::Ring,
        _ => {
            // A ring, so that everybody is reached, and some links across it.
            let mut links: Vec<(NodeId, NodeId)> =
                (1..=nodes).map(|node| (NodeId(node), NodeId(node % nodes + 1))).collect();
            for _ in 0..rng.u32(0..=nodes) {
                links.push((NodeId(rng.u32(1..=nodes)), NodeId(rng.u32(1..=nodes))));
            }
            Topology::Custom(links)
        }
    }
}

pub(crate) fn knobs(rng: &mut Rng) -> (Timing, Limits) {
    let exchange = Duration::from_millis(1 << rng.u32(4..8));
    let timing = Timing {
        exchange,
        suspect_after: exchange * rng.u32(3..12),
        write: Duration::from_millis(rng.u64(50..1000)),
        read: Duration::from_millis(rng.u64(50..1000)),
        drift_max: Duration::from_millis(1 << rng.u32(0..10)),
        sync_delay_max: if rng.bool() { Duration::ZERO } else { Duration::from_millis(1 << rng.u32(0..7)) },
    };
    let mut bytes = |least: u32, most: u32| if rng.bool() { 1 << rng.u32(least..most) } else { 1_usize << 20 };
    let limits = Limits {
        batch_bytes_max: bytes(0, 12),
        message_bytes_max: bytes(0, 14),
        inflight_bytes_max: bytes(8, 16),
        cache_bytes_max: bytes(0, 14),
        causal_buffer_bytes_max: bytes(0, 14),
        snapshot_log_bytes: bytes(11, 16) as u64,
        retained_bytes_max: bytes(11, 16) as u64,
        snapshot_piece_bytes: bytes(5, 12),
        ..Limits::default()
    };
    (timing, limits)
}

/// One plan: faults for a while, then those that are left must come to agree.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    let rng = &mut plan.rng(11);
    let (timing, limits) = knobs(rng);
    let (keyspaces, topology) = (keyspaces(rng), topology(rng, nodes));
    let cluster = ClusterId::from_name("sim");
    // Who asks before it begins waits for everybody, also for one whose log refuses to open.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let founding = if plan.dead == 0 && rng.bool() && sound { Founding::Ask } else { Founding::New };
    let census = Census::draw(&mut plan.rng(13), nodes, plan.lasts, plan.members && sound);
    let sources: Vec<_> = (1..=nodes).map(|node| census.source(NodeId(node))).collect();
    let (spaces, shape) = (keyspaces.clone(), topology.clone());
    let settings = plan.settings.clone();
    let mut world: World<MultiLeader, S> = World::new(plan.seed, settings, cluster, move |node, boots, _| {
        let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect());
        (config.timing, config.limits) = (timing, limits);
        (config.keyspaces, config.topology) = (spaces.clone(), shape.clone());
        config.founding = founding;
        config.epochs = Box::new(sources[node.0 as usize - 1].clone());
        MultiLeader::new(config, &boots.of(GROUP)).expect("the knobs are in range")
    });
    let copies = 1 + rng.u8(0..nodes as u8);
    let mut levels = vec![WriteLevel::LeaderDisk, WriteLevel::Quorum, WriteLevel::LeaderDisk];
    if rng.bool() {
        levels.extend([
            WriteLevel::Memory,
            WriteLevel::Received(copies),
            WriteLevel::Durable(copies),
            WriteLevel::Applied(copies),
        ]);
    }
    // Few keyspaces, many conflicts; but not only keys whose home may be dead.
    let mut prefixes = PREFIXES.to_vec();
    let others = &mut plan.rng(12);
    if others.u8(0..3) == 0 {
        others.shuffle(&mut prefixes);
        prefixes.truncate(2);
    }
    let behaviour = Behaviour {
        prefixes,
        clients: plan.workload.clients.max(nodes.min(3)),
        keys: rng.u32(1..=12),
        writes_per_mille: rng.u16(300..=800),
        deletes_per_mille: if rng.bool() { rng.u16(0..400) } else { 0 },
        roam_per_mille: if rng.bool() { rng.u16(0..1000) } else { 0 },
        levels,
        reads: Vec::new(),
        scans_per_mille: 0,
        think_max: Duration::from_micros(rng.u64(500..30_000)),
        timeout: plan.workload.timeout,
    };
    let clock = &plan.settings.clock;
    let steady = clock.suspend.is_none();
    let crowd = Crowd::new(behaviour, GROUP, nodes);
    let drift = steady.then_some(clock.drift_ppm_max);
    let mut subject = MultiSubject::new(GROUP, keyspaces, crowd, drift, census);
    subject.bounded = world.is_bounded();
    telling.to(&mut world);
    let graph = topology.graph(&(1..=nodes).map(NodeId).collect::<Vec<_>>()).expect("everybody is reached");
    let diameter = graph.report().diameter as u32;
    play(plan, &mut world, &mut subject, timing, diameter).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, (subject.crowd.writes, subject.crowd.reads), subject.probes))
}

/// Whether all that are up may have forgotten something, for their logs were cut, and wait for one that is down for good: each
/// asks all.
fn all_wait<S: SimStorage>(world: &World<MultiLeader, S>, dead: &[NodeId]) -> bool {
    let replicas = world.replicas();
    let nodes = replicas.nodes();
    let asks = |node: &NodeId| replicas.replica(*node).is_none_or(|replica| replica.origin().is_none());
    nodes.iter().any(|node| dead.contains(node) || world.is_refused(*node)) && nodes.iter().all(asks)
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<MultiLeader, S>,
    subject: &mut MultiSubject,
    timing: Timing,
    diameter: u32,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let mut dead: Vec<NodeId> = (1..=plan.settings.nodes).map(NodeId).collect();
    plan.rng(2).shuffle(&mut dead);
    dead.truncate(if sound { plan.dead as usize } else { 0 });
    if !dead.is_empty() {
        subject.probes.hit(Probe::MinorityDead);
    }
    world.heal_all_but(&dead, subject);
    subject.census.finish(&dead);
    let members = subject.census.members();
    subject.crowd.turn_to(&members);
    subject.crowd.hurry();
    let wanted = (subject.crowd.writes + 10, subject.crowd.reads + 10);
    let patience = Duration::from_secs(12) + plan.workload.timeout * 4 + timing.exchange * 40;
    let served = |_: &World<MultiLeader, S>, subject: &MultiSubject| {
        subject.crowd.writes >= wanted.0 && subject.crowd.reads >= wanted.1
    };
    let must_serve =
        |world: &World<MultiLeader, S>| world.must_serve() && world.is_bounded() && !all_wait(world, &dead);
    if !world.run_while(patience, subject, served).map_err(text)? && must_serve(world) {
        return Err(format!("converges: nothing is served any more: {}", describe(world)));
    }
    subject.crowd.stop();
    if !world.run_while(patience, subject, |_, subject| subject.crowd.is_idle()).map_err(text)? && must_serve(world) {
        return Err(format!("converges: a request never ends: {}", describe(world)));
    }
    if !must_serve(world) {
        return Ok(());
    }
    // What one node has gets to every other one: link by link, each with its delay, its disk, and an exchange if it is lost.
    let bound = patience + timing.exchange * 8 * (diameter + 2) + timing.suspect_after * 4;
    let up = |world: &World<MultiLeader, S>| -> Vec<NodeId> {
        let nodes = world.replicas().nodes();
        let lives = |node: &NodeId| members.contains(node) && !dead.contains(node) && !world.is_refused(*node);
        nodes.into_iter().filter(lives).collect()
    };
    let agreed = |world: &World<MultiLeader, S>, subject: &MultiSubject| {
        let replicas = world.replicas();
        let writes = |node: NodeId| replicas.replica(node).is_some_and(|replica| replica.origin().is_some());
        if subject.census.changes() && !up(world).into_iter().all(writes) {
            return false;
        }
        let mut first: Option<&VersionVector> = None;
        let mut applied = up(world).into_iter().map(|node| replicas.replica(node).map(MultiLeader::applied));
        applied.all(|applied| applied.is_some_and(|applied| first.get_or_insert(applied) == &applied))
            && first.is_some()
    };
    // With buffers of one write an exchange brings only a few: but each bound brings some, and nobody writes any more.
    let progress = |world: &World<MultiLeader, S>| -> u64 {
        let replicas = world.replicas();
        up(world).into_iter().filter_map(|node| replicas.replica(node)).map(|replica| replica.applied().len()).sum()
    };
    let mut before = progress(world);
    while !world.run_while(bound, subject, agreed).map_err(text)? {
        let now = progress(world);
        if now <= before {
            return Err(format!("converges: the replicas do not: {}", describe(world)));
        }
        before = now;
    }
    let alive = up(world);
    check_views(world, subject, &alive)?;
    if alive == members {
        let settled = |world: &World<MultiLeader, S>, _: &MultiSubject| {
            let replicas = world.replicas();
            alive
                .iter()
                .all(|node| replicas.replica(*node).is_some_and(|replica| replica.stable() == replica.applied()))
        };
        // A disk may be found damaged as late as this.
        let settles = world.run_while(bound * 2, subject, settled).map_err(text)?;
        if !settles && up(world) == alive {
            return Err(format!("collected: what everybody has is not known to be stable: {}", describe(world)));
        }
        check_views(world, subject, &alive)?;
        // A node that was evicted and could not write that down still sends what nobody takes.
        let sent = subject.sent_by(&alive);
        let pause = timing.exchange * 6;
        let quiet = !world.run_while(pause, subject, |_, subject| subject.sent_by(&alive) > sent).map_err(text)?;
        if !quiet && up(world) == alive {
            return Err(format!("no_loops: writes still go round although everybody has them: {}", describe(world)));
        }
    }
    let alive = up(world);
    for &node in &alive {
        subject.ask_audit(node, 0, world.clients());
    }
    // A disk may be found damaged as late as this.
    if !world.run_while(patience, subject, |world, subject| subject.has_audits_of(&up(world))).map_err(text)? {
        return Err("audit_answers: a node does not tell its audit".to_owned());
    }
    let alive = up(world);
    let dropped = alive
        .iter()
        .any(|node| world.replicas().replica(*node).is_some_and(|replica| replica.figures().audit_dropped > 0));
    if subject.bounded {
        subject.check_homes(&alive)?;
        subject.check_conservation(&alive, dropped)?;
    }
    Ok(())
}

/// Every replica shows the same, and what the model says.
fn check_views<S: SimStorage>(
    world: &World<MultiLeader, S>,
    subject: &MultiSubject,
    alive: &[NodeId],
) -> Result<(), String> {
    let hashes: BTreeSet<u64> = {
        let replicas = world.replicas();
        alive.iter().filter_map(|node| replicas.replica(*node)).map(MultiLeader::state_hash).collect()
    };
    if hashes.len() > 1 {
        return Err(format!("replicas_agree: {} states of equal vectors: {}", hashes.len(), describe(world)));
    }
    let replicas = world.replicas();
    subject.check_views(alive.iter().filter_map(|node| replicas.replica(*node)))
}

fn describe<S: SimStorage>(world: &World<MultiLeader, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(replica) => format!("node {node}: {replica:?}, stable {:?}, {:?}", replica.stable(), replica.figures()),
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
