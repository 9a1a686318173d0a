//! The run of a leaderless group one of whose disks rots behind every checksum: when that node starts, a record of its snapshot
//! has gone or holds another value, and no vector says so.
//!
//! A copy that says of a write that it had seen it, and does not have it, cannot be told from one that has deleted it: to join the
//! two before the scrub has come by spreads the loss. So nobody reads at quorums here; and once the rotten owner has sent
//! another one its snapshot or a key, all that is asked is that owners come to agree, and that nothing else is told of.

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{Action, ClusterId, Event, GroupId, Input, NodeId, Now, Outcome, Replica, Time, Token, WriteLevel};
use replikit_leaderless::{Config, Founding, Head, Keyspace, Keyspaces, Leaderless, ReadRepair};
use replikit_sim::{Clients, Replicas, SimStorage, Subject, World};

use super::knobs;
use crate::crowd::{Asked, Behaviour, Crowd};
use crate::plan::Plan;
use crate::probe::{Probe, Probes};
use crate::run::{Failure, Run, Telling};

const GROUP: GroupId = GroupId(1);
/// The first byte of a key's record in a snapshot, behind its length.
const KEY: u8 = 1;

/// The invariants of such a group, by the name with which a violation begins, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("rot_is_repaired", "A record that was damaged at one owner is in the end, everywhere, what the others have."),
    (
        "only_rot_is_told",
        "The scrub tells of keys whose records were damaged, and changes them where they were, unless their owner has handed them on.",
    ),
];

/// Damages a snapshot in one record; returns its key.
fn damage(snapshot: &mut Vec<u8>, rng: &mut Rng) -> Option<Bytes> {
    let (mut at, mut keys) = (0, Vec::new());
    while let Some(length) = snapshot[at..].first_chunk::<4>() {
        let end = at + 4 + u32::from_le_bytes(*length) as usize;
        if snapshot.get(at + 4) == Some(&KEY) {
            keys.push(at..end);
        }
        at = end;
    }
    if keys.is_empty() {
        return None;
    }
    let record = keys.swap_remove(rng.usize(0..keys.len()));
    let begins = record.start + 6;
    let key = Bytes::copy_from_slice(&snapshot[begins..begins + usize::from(snapshot[begins - 1])]);
    // Values are a letter and digits.
    let digit = |at: &usize| snapshot[*at - 1] == b'v' && snapshot[*at].is_ascii_digit();
    match (begins + key.len() + 1..record.end).rev().find(digit) {
        Some(at) if rng.bool() => snapshot[at] = b'0' + (snapshot[at] - b'0' + 1) % 10,
        _ => drop(snapshot.drain(record)),
    }
    Some(key)
}

/// What has been damaged.
#[derive(Clone, Debug)]
struct Rot {
    rng: Arc<Mutex<Rng>>,
    keys: Arc<Mutex<BTreeSet<Bytes>>>,
}

/// A replica, and its disk when that rots.
struct Rotting {
    replica: Leaderless,
    rot: Option<Rot>,
    snapshot: Vec<u8>,
}

impl Replica for Rotting {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        let input = match (&self.rot, input) {
            (Some(rot), Input::RecoverSnapshot { at, chunk, last }) => {
                self.snapshot.extend_from_slice(&chunk);
                if !last {
                    return;
                }
                let mut snapshot = core::mem::take(&mut self.snapshot);
                let key = damage(&mut snapshot, &mut rot.rng.lock().unwrap_or_else(PoisonError::into_inner));
                rot.keys.lock().unwrap_or_else(PoisonError::into_inner).extend(key);
                Input::RecoverSnapshot { at, chunk: snapshot.into(), last }
            }
            (_, input) => input,
        };
        self.replica.handle(now, input);
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        self.replica.poll()
    }

    fn deadline(&self) -> Option<Time> {
        self.replica.deadline()
    }
}

/// Clients and invariants.
struct RotSubject {
    crowd: Crowd,
    rotten: NodeId,
    rot: Rot,
    /// Whether the rotten owner has sent others what they join with theirs.
    handed_on: bool,
    probes: Probes,
    bounded: bool,
}

impl RotSubject {
    fn is_damaged(&self, key: &Bytes) -> bool {
        self.rot.keys.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

impl Subject<Rotting> for RotSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        self.crowd.on_alarm(client, clients);
    }

    fn on_action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        if let Action::Send { message, .. } = action {
            self.handed_on |= node == self.rotten && matches!(message.head, Head::Piece(_) | Head::Repair(_));
        }
        Ok(())
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        let Some(open) = self.crowd.end(token, clients) else { return Ok(()) };
        match (outcome, open.asked) {
            (Outcome::Acked { at, .. }, Asked::Write { .. }) => self.crowd.wrote(open.client, at),
            (Outcome::Value { .. }, _) => self.crowd.reads += 1,
            _ => {}
        }
        Ok(())
    }

    fn on_event(&mut self, at: NodeId, _: GroupId, event: &Event) -> Result<(), String> {
        let honest = match event {
            Event::RecordRepaired { key, .. } => {
                self.probes.hit(Probe::RecordRepaired);
                (at == self.rotten || self.handed_on) && self.is_damaged(key)
            }
            Event::RecordsDiffer { key, .. } => {
                self.probes.hit(Probe::RecordsDiffered);
                self.is_damaged(key)
            }
            // What was read from a disk is what memory has.
            Event::RecordDamaged { .. } => false,
            _ => true,
        };
        if honest || !self.bounded {
            return Ok(());
        }
        Err(format!(
            "only_rot_is_told: node {at} tells {event:?}, and {:?} of node {} is damaged",
            self.rot, self.rotten
        ))
    }

    fn check(&mut self, _: NodeId, _: &impl Replicas<Rotting>) -> Result<(), String> {
        Ok(())
    }
}

/// One plan: owners of which one rots, under faults; then all of them must come to hold the same.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let rng = &mut plan.rng(11);
    let nodes = if plan.settings.nodes < 5 { 3 } else { 5 };
    let (timing, mut limits) = knobs(rng);
    limits.snapshot_log_bytes = 1 << rng.u32(8..12);
    limits.retained_bytes_max = 1 << 30;
    let spaces = Keyspaces::default()
        .with("lww/", Keyspace::new(ConflictPolicy::Lww))
        .with("sib/", Keyspace::new(ConflictPolicy::Siblings));
    let cluster = ClusterId::from_name("sim");
    let mut settings = plan.settings.clone();
    settings.nodes = nodes;
    let rotten = NodeId(rng.u32(1..=nodes));
    let rot = Rot { rng: Arc::new(Mutex::new(rng.fork())), keys: Arc::default() };
    let rots = rot.clone();
    let mut world: World<Rotting, S> = World::new(plan.seed, settings, cluster, move |node, boots, _| {
        let mut config = Config::new(cluster, GROUP, node, (1..=nodes).map(NodeId).collect());
        (config.timing, config.limits) = (timing, limits);
        (config.keyspaces, config.founding) = (spaces.clone(), Founding::New);
        config.repair = ReadRepair::Off;
        let replica = Leaderless::new(config, &boots.of(GROUP)).expect("the knobs are in range");
        Rotting { replica, rot: (node == rotten).then(|| rots.clone()), snapshot: Vec::new() }
    });
    let behaviour = Behaviour {
        prefixes: vec!["lww/", "sib/"],
        clients: plan.workload.clients.max(3),
        keys: rng.u32(1..=40),
        writes_per_mille: rng.u16(700..=950),
        deletes_per_mille: if rng.bool() { rng.u16(0..400) } else { 0 },
        roam_per_mille: if rng.bool() { rng.u16(0..1000) } else { 0 },
        levels: vec![WriteLevel::Quorum, WriteLevel::LeaderDisk],
        reads: Vec::new(),
        scans_per_mille: 0,
        think_max: Duration::from_micros(rng.u64(500..30_000)),
        timeout: plan.workload.timeout,
    };
    let crowd = Crowd::new(behaviour, GROUP, nodes);
    let bounded = world.is_bounded();
    let mut subject = RotSubject { crowd, rotten, rot, handed_on: false, probes: Probes::default(), bounded };
    telling.to(&mut world);
    let patience =
        Duration::from_secs(12) + plan.workload.timeout * 4 + timing.exchange * 128 + timing.suspect_after * 4;
    play(plan, &mut world, &mut subject, patience).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, (subject.crowd.writes, subject.crowd.reads), subject.probes))
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Rotting, S>,
    subject: &mut RotSubject,
    patience: Duration,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;
    world.heal(subject);
    subject.crowd.stop();
    let same = |world: &World<Rotting, S>, _: &RotSubject| {
        let replicas = world.replicas();
        let states = replicas.nodes().into_iter().map(|node| {
            let Rotting { replica, .. } = replicas.replica(node)?;
            Some((replica.applied().clone(), replica.state_hash()))
        });
        let states: BTreeSet<_> =
            states.map(|state| state.map(|(applied, hash)| (format!("{applied:?}"), hash))).collect();
        states.len() == 1 && !states.contains(&None)
    };
    let ends = world.run_while(patience, subject, same).map_err(text)?;
    if ends || !world.must_serve() || !subject.bounded {
        return Ok(());
    }
    Err(format!("rot_is_repaired: not within {patience:?}, {:?}: {}", subject.rot, describe(world)))
}

fn describe<S: SimStorage>(world: &World<Rotting, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(Rotting { replica, .. }) => format!("node {node}: {replica:?}, {:?}", replica.figures()),
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
