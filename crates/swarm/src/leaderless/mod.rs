//! The standard run of a leaderless group: quorums of every size under every fault, and each answer is what a model of all
//! writes says.

pub(crate) mod comparers;
mod disk;
pub mod hints;
pub(crate) mod model;
mod pages;
pub mod rot;
pub(crate) mod subject;
pub(crate) mod views;

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::crdt::CrdtKind;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{ClusterId, GroupId, NodeId, Owners, ReadLevel, Time, VersionVector, WriteLevel};
use replikit_leaderless::{
    Config, Founding, Keyspace, Keyspaces, Leaderless, Limits, Quorums, ReadRepair, Size, Timing,
};
use replikit_sim::{Replicas, SimStorage, World};

use crate::crowd::{Behaviour, Crowd};
use crate::multi::census::Census;
use crate::plan::Plan;
use crate::probe::Probe;
use crate::run::{Failure, Run, Telling};
use comparers::{Comparers, Habits};
use subject::{LeaderlessSubject, Promises};

const GROUP: GroupId = GroupId(1);

/// The invariants of a leaderless group, by the name with which a violation begins, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("dots_are_unique", "A dot names one write for ever, whatever its coordinator forgets."),
    ("applied_in_order", "What is applied of an origin has no gap."),
    ("applied_never_goes_back", "A living replica does not forget what it has applied."),
    ("acked_is_there", "An acknowledged write is in as many logs and on as many disks as its level says."),
    ("strict_is_a_quorum", "A write that is called strict is on the disks of a quorum of owners."),
    ("reads_show_the_past", "A read shows what a model of all writes shows for what the answer says it has seen."),
    ("quorums_overlap", "With R + W > N a read has seen every quorum write that was acknowledged before it began."),
    ("reads_do_not_go_back", "With blocking repair no quorum read misses what an earlier one returned."),
    (
        "later_write_wins",
        "Where the last write wins, and W + W > N, a write wins over those acknowledged before it began.",
    ),
    (
        "pages_are_whole",
        "Page after page a scan goes forward, and repeats nothing; what is asked of reads, it shows of every key in between.",
    ),
    ("sessions_do_not_go_back", "A read with a token has seen what the session has read and written, at any replica."),
    ("staleness_is_bounded", "A read is no staler than it says."),
    (
        "epochs_overlap",
        "While owners change, what can be decided in one set of epochs and in another has owners in common, or the first is over.",
    ),
    (
        "conserved",
        "Every acknowledged write is live, or replaced by one that had seen it, or in the audit of a replica.",
    ),
    ("audit_answers", "The audit can be read."),
    ("converges", "Healed replicas apply the same writes, whoever of them is dead, also without any read repair."),
    ("replicas_agree", "Replicas that have applied the same writes show the same, and what the model says."),
    ("no_loops", "A batch is sent a bounded number of times, and not at all once everybody has it."),
    (
        "linearizable",
        "Each key that is compared and set is linearizable, whatever messages, processes, disks and clocks do.",
    ),
    ("hedges_within_budget", "Owners are asked in addition to late ones for one read in twenty, and for 32 at once."),
    ("scrub_is_honest", "The scrub finds nothing where nothing was damaged."),
    ("collected", "When all is quiet and everybody is there, no delete, no loser and no context is kept any more."),
];

/// What is watched of such a group, beside [`Probe::OF_QUORUMS`].
pub(crate) const PROBES: &[Probe] = &[
    Probe::SiblingsRead,
    Probe::ClockAhead,
    Probe::PeerSuspected,
    Probe::WritesConflicted,
    Probe::ValueOverwritten,
    Probe::StableAdvanced,
    Probe::SnapshotTaken,
    Probe::SnapshotInstalled,
    Probe::SnapshotInPieces,
    Probe::LogReleased,
    Probe::LogReset,
    Probe::LogReadFromDisk,
    Probe::MinorityDead,
    Probe::CompareMismatched,
    Probe::CounterAdded,
    Probe::Indeterminate,
];

/// What is watched beside them while owners change.
pub(crate) const PROBES_OF_OWNERS: &[Probe] = &[
    Probe::EpochBegun,
    Probe::NodeEvicted,
    Probe::NodeRetired,
    Probe::NodeBeganAnew,
    Probe::EpochsJoint,
    Probe::EpochSettled,
];

/// Whether the owners of a run change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    Stay,
    Change,
}

/// The prefixes of the keyspaces, and what they hold.
const PREFIXES: [&str; 6] = ["lww/", "sib/", "merge/", "count/", "set/", "flag/"];

/// The keyspaces of a run: one of each kind, under the prefixes that clients use.
fn keyspaces() -> Keyspaces {
    // The longer text, and of two equally long ones the larger: commutative, associative and idempotent.
    let longer = Arc::new(
        |left: &Bytes, right: &Bytes| {
            if (left.len(), left) >= (right.len(), right) { left.clone() } else { right.clone() }
        },
    );
    let [lww, siblings, merge, count, set, flag] = PREFIXES;
    Keyspaces::default()
        .with(lww, Keyspace::new(ConflictPolicy::Lww))
        .with(siblings, Keyspace::new(ConflictPolicy::Siblings))
        .with(merge, Keyspace::new(ConflictPolicy::Merge(longer)))
        .with(count, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Counter)))
        .with(set, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set)))
        .with(flag, Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Flag)))
        .with(comparers::PREFIX, Keyspace::cas())
}

pub(crate) fn knobs(rng: &mut Rng) -> (Timing, Limits) {
    let exchange = Duration::from_millis(1 << rng.u32(4..8));
    let timing = Timing {
        exchange,
        suspect_after: exchange * rng.u32(3..12),
        write: Duration::from_millis(rng.u64(50..1000)),
        read: Duration::from_millis(rng.u64(50..1000)),
        hedge_max: Duration::from_millis(1 << rng.u32(0..6)),
        drift_max: Duration::from_millis(1 << rng.u32(0..10)),
        scrub: Some(exchange),
    };
    let mut bytes = |least: u32, most: u32| if rng.bool() { 1 << rng.u32(least..most) } else { 1_usize << 20 };
    let limits = Limits {
        batch_bytes_max: bytes(0, 12),
        message_bytes_max: bytes(0, 14),
        inflight_bytes_max: bytes(8, 16),
        cache_bytes_max: bytes(0, 14),
        snapshot_log_bytes: bytes(11, 16) as u64,
        retained_bytes_max: bytes(11, 16) as u64,
        snapshot_piece_bytes: bytes(5, 12),
        ..Limits::default()
    };
    (timing, limits)
}

/// R, W and D that can be met while so many are dead: most often majorities.
fn quorums(rng: &mut Rng, nodes: u8, dead: u8) -> (Quorums, Promises) {
    let majority = nodes / 2 + 1;
    let mut size = || if rng.u8(0..3) == 0 { 1 + rng.u8(0..nodes - dead) } else { majority };
    let (read, write) = (size(), size());
    let durable = if rng.u8(0..4) == 0 { 1 + rng.u8(0..write) } else { write };
    let quorums = Quorums { read: Size::Exactly(read), write: Size::Exactly(write), durable: Size::Exactly(durable) };
    (quorums, Promises { read, write, durable, blocking: true, is_fixed: true })
}

/// One plan: faults for a while, then those that are left must come to agree.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    run_with::<S>(plan, telling, Ownership::Stay)
}

/// The same while the owners change by epochs.
///
/// # Errors
/// The first violation.
pub fn run_with_changes<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    run_with::<S>(plan, telling, Ownership::Change)
}

fn run_with<S: SimStorage + 'static>(plan: &Plan, telling: Telling, ownership: Ownership) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    let rng = &mut plan.rng(11);
    let (timing, limits) = knobs(rng);
    let (quorums, mut promises) = quorums(rng, nodes as u8, plan.dead as u8);
    let repair = [ReadRepair::Blocking, ReadRepair::Blocking, ReadRepair::Async, ReadRepair::Off][rng.usize(0..4)];
    promises.blocking = repair == ReadRepair::Blocking;
    let keyspaces = keyspaces();
    let cluster = ClusterId::from_name("sim");
    // Who asks before it begins waits for everybody, also for one whose log refuses to open.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let founding = if plan.dead == 0 && rng.bool() && sound { Founding::Ask } else { Founding::New };
    let census = Census::draw(&mut plan.rng(14), nodes, plan.lasts, ownership == Ownership::Change && sound);
    let (mut quorums, mut promises) = (quorums, promises);
    if census.changes() {
        // Fixed numbers need not meet where there are more owners.
        quorums = Quorums::default();
        (promises.is_fixed, promises.durable) = (false, promises.write);
    }
    let sources: Option<Vec<_>> =
        census.changes().then(|| (1..=nodes).map(|node| census.source(NodeId(node))).collect());
    let spaces = keyspaces.clone();
    let settings = plan.settings.clone();
    let mut world: World<Leaderless, S> = World::new(plan.seed, settings, cluster, move |node, boots, _| {
        let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect());
        (config.timing, config.limits) = (timing, limits);
        (config.keyspaces, config.founding) = (spaces.clone(), founding);
        (config.quorums, config.repair) = (quorums, repair);
        if let Some(sources) = &sources {
            config.epochs = Box::new(sources[node.0 as usize - 1].clone());
        }
        Leaderless::new(config, &boots.of(GROUP)).expect("the knobs are in range")
    });
    let copies = 1 + rng.u8(0..nodes as u8);
    let mut levels = vec![WriteLevel::Quorum, WriteLevel::Quorum, WriteLevel::LeaderDisk];
    if rng.bool() {
        levels.extend([
            WriteLevel::Memory,
            WriteLevel::Received(copies),
            WriteLevel::Durable(copies),
            WriteLevel::Applied(copies),
            WriteLevel::Owners(Owners::LocalQuorum),
        ]);
    }
    let quorum = ReadLevel::Owners(Owners::Quorum);
    let reads = vec![quorum.clone(), quorum, ReadLevel::Replicas(copies), ReadLevel::Owners(Owners::EachQuorum)];
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
        reads,
        scans_per_mille: if others.bool() { others.u16(0..250) } else { 0 },
        think_max: Duration::from_micros(rng.u64(500..30_000)),
        timeout: plan.workload.timeout,
    };
    let clock = &plan.settings.clock;
    let steady = clock.suspend.is_none();
    let crowd = Crowd::new(behaviour, GROUP, nodes);
    let drift = steady.then_some(clock.drift_ppm_max);
    let mut subject = LeaderlessSubject::new(GROUP, keyspaces, promises, crowd, drift, census);
    let rng = &mut plan.rng(13);
    if rng.u8(0..3) > 0 {
        subject.comparers = Some(Comparers::new(Habits::draw(rng, plan.workload.timeout), GROUP, nodes));
    }
    subject.bounded = world.is_bounded();
    telling.to(&mut world);
    play(plan, &mut world, &mut subject, timing).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, (subject.crowd.writes, subject.crowd.reads), subject.probes))
}

/// Whether a replica knows that everybody has everything, and keeps nothing for those who might not.
fn is_settled(replica: &Leaderless) -> bool {
    replica.stable() == replica.applied() && replica.figures().unsettled <= replica.lasting()
}

/// Whether an owner that may have forgotten something, for its log was cut, waits for one that is down for good: it asks all.
fn waits<S: SimStorage>(world: &World<Leaderless, S>, dead: &[NodeId]) -> bool {
    let replicas = world.replicas();
    let nodes = replicas.nodes();
    let asks = |node: &NodeId| replicas.replica(*node).is_some_and(|replica| replica.origin().is_none());
    nodes.iter().any(|node| dead.contains(node) || world.is_refused(*node)) && nodes.iter().any(asks)
}

/// Whether an owner that has forgotten what it had promised waits for one that is down for good, to tell it: so that keys
/// which are compared and set may be one owner short of a quorum.
fn gathers<S: SimStorage>(world: &World<Leaderless, S>, dead: &[NodeId]) -> bool {
    let replicas = world.replicas();
    let nodes = replicas.nodes();
    let gathers = |node: &NodeId| replicas.replica(*node).is_some_and(Leaderless::is_gathering);
    nodes.iter().any(|node| dead.contains(node) || world.is_refused(*node)) && nodes.iter().any(gathers)
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Leaderless, S>,
    subject: &mut LeaderlessSubject,
    timing: Timing,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let mut dead: Vec<NodeId> = (1..=plan.settings.nodes).map(NodeId).collect();
    plan.rng(2).shuffle(&mut dead);
    dead.truncate(if sound { plan.dead as usize } else { 0 });
    if subject.census.changes() && !subject.census.outlives(&dead) {
        dead.clear();
    }
    if !dead.is_empty() {
        subject.probes.hit(Probe::MinorityDead);
    }
    world.heal_all_but(&dead, subject);
    subject.census.finish(&dead);
    let members = subject.census.members();
    if subject.census.changes() {
        subject.crowd.turn_to(&members);
    }
    subject.crowd.hurry();
    let wanted = (subject.crowd.writes + 10, subject.crowd.reads + 10);
    let compared = subject.comparers.as_mut().map(|comparers| {
        comparers.go_on(&dead);
        if members.len() < plan.settings.nodes as usize {
            comparers.turn_to(&members);
        }
        comparers.done + 5
    });
    let patience = Duration::from_secs(12) + plan.workload.timeout * 4 + timing.exchange * 40;
    let served = |_: &World<Leaderless, S>, subject: &LeaderlessSubject| {
        subject.crowd.writes >= wanted.0 && subject.crowd.reads >= wanted.1
    };
    let compares = |_: &World<Leaderless, S>, subject: &LeaderlessSubject| {
        subject.comparers.as_ref().is_none_or(|comparers| Some(comparers.done) >= compared)
    };
    let must_serve = |world: &World<Leaderless, S>| world.must_serve() && world.is_bounded() && !waits(world, &dead);
    if !world.run_while(patience, subject, served).map_err(text)? && must_serve(world) {
        return Err(format!("converges: nothing is served any more: {}", describe(world)));
    }
    subject.crowd.stop();
    if !world.run_while(patience, subject, compares).map_err(text)? && must_serve(world) && !gathers(world, &dead) {
        return Err(format!("converges: no key is compared and set any more: {}", describe(world)));
    }
    subject.stop();
    if !world.run_while(patience, subject, |_, subject| subject.is_idle()).map_err(text)? && must_serve(world) {
        return Err(format!("converges: a request never ends: {}", describe(world)));
    }
    if let Some(comparers) = subject.comparers.as_ref().filter(|_| world.is_bounded()) {
        comparers.check()?;
    }
    if !must_serve(world) {
        return Ok(());
    }
    // What one node has gets to every other one: with its delay, its disk, and an exchange if it is lost.
    let bound = patience + timing.exchange * 24 + timing.suspect_after * 4;
    let up = |world: &World<Leaderless, S>| -> Vec<NodeId> {
        let nodes = world.replicas().nodes();
        let is_up = |node: &NodeId| members.contains(node) && !dead.contains(node) && !world.is_refused(*node);
        nodes.into_iter().filter(is_up).collect()
    };
    let agreed = |world: &World<Leaderless, S>, subject: &LeaderlessSubject| {
        let replicas = world.replicas();
        let serves = |node: NodeId| replicas.replica(node).is_some_and(|replica| replica.is_serving(&members));
        if subject.census.changes() && !up(world).into_iter().all(serves) {
            return false;
        }
        let mut first: Option<(&VersionVector, u64)> = None;
        let mut states =
            up(world).into_iter().map(|node| replicas.replica(node).map(|it| (it.applied(), it.state_hash())));
        states.all(|state| state.is_some_and(|state| *first.get_or_insert(state) == state)) && first.is_some()
    };
    if !world.run_while(bound, subject, agreed).map_err(text)? {
        // Without a quorum for the keys that are compared and set, owners do not change either.
        if subject.census.changes() && gathers(world, &dead) {
            return Ok(());
        }
        return Err(format!("converges: the replicas do not: {}", describe(world)));
    }
    let alive = up(world);
    check_views(world, subject, &alive)?;
    if dead.is_empty() && alive.len() == members.len() {
        let settled = |world: &World<Leaderless, S>, _: &LeaderlessSubject| {
            let replicas = world.replicas();
            alive.iter().all(|node| replicas.replica(*node).is_some_and(is_settled))
        };
        // A disk may be found damaged as late as this.
        let settles = world.run_while(bound * 2, subject, settled).map_err(text)?;
        if !settles && up(world) == alive {
            return Err(format!("collected: what everybody has is not known to be stable: {}", describe(world)));
        }
        check_views(world, subject, &alive)?;
        // An evicted node whose disk has failed cannot hear that it is one, and sends what it has to those that it knew.
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
        let replicas = world.replicas();
        let alive: Vec<(NodeId, &Leaderless)> =
            alive.iter().filter_map(|node| Some((*node, replicas.replica(*node)?))).collect();
        subject.check_conservation(&alive, dropped)?;
    }
    Ok(())
}

/// Every replica shows the same, and what the model says.
fn check_views<S: SimStorage>(
    world: &World<Leaderless, S>,
    subject: &LeaderlessSubject,
    alive: &[NodeId],
) -> Result<(), String> {
    let replicas = world.replicas();
    for replica in alive.iter().filter_map(|node| replicas.replica(*node)) {
        subject.check_view(replica)?;
    }
    let hashes: BTreeSet<u64> =
        { alive.iter().filter_map(|node| replicas.replica(*node)).map(Leaderless::state_hash).collect() };
    if hashes.len() > 1 {
        return Err(format!("replicas_agree: {} states of equal vectors: {}", hashes.len(), describe(world)));
    }
    Ok(())
}

fn describe<S: SimStorage>(world: &World<Leaderless, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(replica) => format!("node {node}: {replica:?}, stable {:?}, {:?}", replica.stable(), replica.figures()),
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
