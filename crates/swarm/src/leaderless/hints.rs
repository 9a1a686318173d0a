//! The run of a leaderless group with nodes that stand in for owners: what they confirm, they keep until its owner has it.
//!
//! Invariant of the run: promises are looked at as a client and the disks see them; which reads a sloppy quorum may miss is no
//! question here, for nothing is promised of them.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::keyspace::decode_versions;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Action, ClusterId, Dot, Event, GroupId, NodeId, Outcome, Owners, Persist, ReadLevel, Time, Token, WriteId,
    WriteLevel, quorum,
};
use replikit_leaderless::{
    Config, Counting, Fallback, Fallbacks, Founding, Head, Hint, Keyspace, Keyspaces, Leaderless, Participant,
    ReadRepair,
};
use replikit_sim::{Clients, Recovery, Replicas, SimStorage, Subject, World};

use super::disk::Disk;
use super::knobs;
use crate::crowd::{Asked, Behaviour, Crowd};
use crate::multi::census::Census;
use crate::plan::Plan;
use crate::probe::{Probe, Probes};
use crate::run::{Failure, Run, Telling};

const GROUP: GroupId = GroupId(1);

/// The invariants of such a group, by the name with which a violation begins, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    (
        "sloppy_is_on_disks",
        "A write of a quorum is on as many disks as it says, of owners and of nodes in their place.",
    ),
    ("sloppy_is_never_strict", "A write that is called strict is on the disks of a quorum of owners."),
    (
        "hints_are_kept",
        "What a node in an owner's place has confirmed, it keeps until that owner has it, or, if that is none any more, those that are.",
    ),
    ("hints_are_delivered", "Healed, every owner has what was kept for it, and nothing is kept for it any more."),
    (
        "hints_conserve",
        "A write of a quorum is known to some owner in the end, or to one that was evicted, although one of all nodes is dead for good.",
    ),
];

/// What is known of one owner.
#[derive(Debug, Default)]
struct Place {
    disk: Disk,
    /// Whether its log has been read.
    up: bool,
}

/// A hint that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    by: NodeId,
    owner: NodeId,
    key: Bytes,
    dot: Dot,
}

/// A write of a quorum that a client was told is there.
#[derive(Clone, Debug)]
struct Acked {
    dot: Dot,
    key: Bytes,
}

/// Clients and invariants.
#[derive(Debug)]
struct HintsSubject {
    crowd: Crowd,
    /// Who owns the keys, and when.
    census: Census,
    /// Nodes up to this one are owners at some time, those behind it fallbacks.
    owners: u32,
    places: BTreeMap<NodeId, Place>,
    /// Keys of writes that were handed over.
    keys: BTreeMap<Dot, Bytes>,
    /// Confirmed, and not seen at their owners yet.
    kept: BTreeSet<Kept>,
    /// All that were ever confirmed: who has a write in whose place.
    confirmed: BTreeMap<Dot, BTreeMap<NodeId, BTreeSet<NodeId>>>,
    /// The same by key: who, in whose place.
    ever: BTreeSet<(NodeId, NodeId, Bytes)>,
    /// What keepers have sent to owners, by number.
    sent: BTreeMap<(NodeId, u64), (NodeId, Bytes)>,
    /// Which of it the owner has confirmed.
    answered: BTreeSet<(NodeId, NodeId, Bytes)>,
    /// Acknowledged, and not seen yet at a quorum of owners at once: what they all have seen may be replaced, and forgotten.
    acked: Vec<Acked>,
    looks: u64,
    probes: Probes,
    bounded: bool,
}

impl HintsSubject {
    fn is_owner(&self, node: NodeId) -> bool {
        node.0 <= self.owners
    }

    /// W and D; while the owners change, of the fewest that there are at some time.
    fn write(&self) -> usize {
        quorum::majority(usize::from(self.census.fewest()))
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.places.get(&node).is_some_and(|place| place.up)
    }

    fn place(&mut self, node: NodeId) -> &mut Place {
        self.places.entry(node).or_default()
    }

    /// Owners' disks that have a write, and disks of others that have it in the place of further owners: each of them for one.
    fn disks(&self, dot: Dot) -> (usize, usize) {
        let own: BTreeSet<NodeId> =
            self.places.iter().filter(|(_, place)| place.disk.durable.contains(dot)).map(|(node, _)| *node).collect();
        let (mut keepers, mut owners) = (0, BTreeSet::new());
        for kept in self.confirmed.get(&dot).into_iter().flat_map(BTreeMap::values) {
            let further: Vec<NodeId> = kept.iter().copied().filter(|owner| !own.contains(owner)).collect();
            keepers += usize::from(!further.is_empty());
            owners.extend(further);
        }
        (own.len(), keepers.min(owners.len()))
    }

    fn on_acked(&mut self, dot: Dot, asked: &Asked, strict: bool) -> Result<(), String> {
        let Asked::Write { key, level, .. } = asked else { return Ok(()) };
        let (own, others) = self.disks(dot);
        if strict && own < self.write() {
            return Err(format!("sloppy_is_never_strict: {dot:?} at {level:?} is on {own} disks of owners"));
        }
        let wanted = if *level == WriteLevel::Quorum { self.write() } else { 1 };
        if own + others < wanted {
            return Err(format!(
                "sloppy_is_on_disks: {dot:?} at {level:?} is on {own} disks of owners, {others} others"
            ));
        }
        if own < wanted {
            self.probes.hit(Probe::SloppyAcked);
        }
        if *level == WriteLevel::Quorum {
            self.acked.push(Acked { dot, key: key.clone() });
        }
        Ok(())
    }

    /// What has come to an owner needs to be kept for it no more; the rest must be. What was kept for an owner that has left
    /// is kept for those that are there, until a quorum of them has it.
    fn check_kept(&mut self, owner: NodeId, replicas: &impl Replicas<Participant>) -> Result<(), String> {
        let Some(replica) = replicas.replica(owner).and_then(Participant::owner) else { return Ok(()) };
        let (left, write) = (self.census.is_ever_outside(owner), self.write());
        let (places, probes) = (&self.places, &mut self.probes);
        let is_up = |node: NodeId| places.get(&node).is_some_and(|place| place.up);
        let owners: Vec<NodeId> = (1..=self.owners).map(NodeId).collect();
        let passed_on = |kept: &Kept, keeper: &Fallback| {
            // Of who is down nobody can tell.
            let may_have = |node: &&NodeId| {
                let replica = replicas.replica(**node).and_then(Participant::owner).filter(|_| is_up(**node));
                replica.is_none_or(|replica| replica.seen(&kept.key).contains(kept.dot))
            };
            left && (owners.iter().any(|node| keeper.keys_for(*node).contains(&kept.key))
                || owners.iter().filter(may_have).count() >= write)
        };
        let mut lost = None;
        self.kept.retain(|kept| {
            if kept.owner != owner {
                return true;
            }
            if replica.seen(&kept.key).contains(kept.dot) {
                probes.hit(Probe::HintArrived);
                return false;
            }
            // What is in no log, all owners may have come to know, and to forget again, while this one looked at its messages.
            let is_confirmed = self.answered.contains(&(kept.by, owner, kept.key.clone()));
            if is_confirmed && places.values().all(|place| !place.disk.durable.contains(kept.dot)) {
                return false;
            }
            let keeper = replicas.replica(kept.by).and_then(Participant::fallback).filter(|_| is_up(kept.by));
            if keeper.is_some_and(|keeper| !keeper.keys_for(owner).contains(&kept.key) && !passed_on(kept, keeper)) {
                lost = Some(kept.clone());
            }
            true
        });
        lost.map_or(Ok(()), |kept| Err(format!("hints_are_kept: {kept:?} is neither kept nor there")))
    }

    /// Every write of a quorum is known to somebody who is left. Who was evicted and comes back makes writes that only it had
    /// again, by another name: `leaderless-owners` looks at that.
    fn check_conserved(&self, owners: &[&Leaderless]) -> Result<(), String> {
        let has = |acked: &Acked, owner: &&Leaderless| owner.seen(&acked.key).contains(acked.dot);
        let evicted = |acked: &&Acked| {
            let mut disks = self.places.iter().filter(|(_, place)| place.disk.durable.contains(acked.dot));
            disks.any(|(node, _)| self.census.is_ever_outside(*node))
        };
        let mut stayed = self.acked.iter().filter(|acked| !evicted(acked));
        let nowhere = stayed.find(|acked| !owners.iter().any(|owner| has(acked, owner)));
        nowhere.map_or(Ok(()), |acked| Err(format!("hints_conserve: {acked:?} is nowhere")))
    }

    /// Takes note of which writes a quorum of owners has seen.
    fn look_around(&mut self, replicas: &impl Replicas<Participant>) {
        let owners: Vec<&Leaderless> = (1..=self.owners)
            .map(NodeId)
            .filter(|node| self.is_up(*node))
            .filter_map(|node| replicas.replica(node)?.owner())
            .collect();
        let write = self.write();
        self.acked
            .retain(|acked| owners.iter().filter(|owner| owner.seen(&acked.key).contains(acked.dot)).count() < write);
    }
}

impl Subject<Participant> for HintsSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        if self.census.on_alarm(client) {
            return;
        }
        if client == 0 {
            self.census.alarms().into_iter().for_each(|(alarm, after)| clients.alarm(alarm, after));
        }
        self.crowd.on_alarm(client, clients);
    }

    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        let place = self.place(node);
        place.disk.begins(recovery);
        place.up = false;
        Ok(())
    }

    fn on_action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        match action {
            Action::Persist { id, op: Persist::Append { batch, .. } } if self.is_owner(node) => {
                let dots = super::subject::dots(batch);
                self.place(node).disk.is_given(*id, dots);
            }
            Action::Persist { id, op: Persist::SnapshotChunk { last: true, .. } } if self.is_owner(node) => {
                self.place(node).disk.is_given_snapshot(*id);
            }
            Action::Send { to, message } => match &message.head {
                Head::Repair(repair) if !self.is_owner(node) => {
                    let kept = (node, *to, repair.key.clone());
                    self.sent.insert((node, repair.read), (*to, repair.key.clone()));
                    if !self.ever.contains(&kept) {
                        self.probes.hit(Probe::HintHandedOn);
                    }
                }
                Head::Repaired { read } => {
                    if let Some((owner, key)) = self.sent.get(&(*to, *read)).filter(|(owner, _)| *owner == node) {
                        self.answered.insert((*to, *owner, key.clone()));
                    }
                }
                Head::Hint(hint) => {
                    let Hint { origin, sequence, key, .. } = &**hint;
                    self.keys.insert(Dot { origin: *origin, sequence: *sequence }, key.clone());
                }
                Head::Hinted { origin, sequence, owner } if !self.is_owner(node) => {
                    let dot = Dot { origin: *origin, sequence: *sequence };
                    let key = self.keys.get(&dot).ok_or("hints_are_kept: of a write that nobody handed over")?.clone();
                    self.probes.hit(Probe::HintKept);
                    self.confirmed.entry(dot).or_default().entry(node).or_default().insert(*owner);
                    self.ever.insert((node, *owner, key.clone()));
                    self.kept.insert(Kept { by: node, owner: *owner, key, dot });
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn on_durable(&mut self, node: NodeId, up_to: WriteId) {
        self.place(node).disk.confirms(up_to);
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        let Some(open) = self.crowd.end(token, clients) else { return Ok(()) };
        match outcome {
            Outcome::Acked { at, strict, .. } => {
                let dot = Dot { origin: at.stream.origin, sequence: at.id.index.0 };
                let kept = self.on_acked(dot, &open.asked, strict);
                self.crowd.wrote(open.client, at);
                if self.bounded { kept } else { Ok(()) }
            }
            Outcome::Value { values, .. } => {
                let found = values.first().and_then(|answer| decode_versions(answer).ok());
                if let (Asked::Read { key, .. }, Some(context)) = (&open.asked, found.and_then(|it| it.context)) {
                    self.crowd.read(open.client, key, &context);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_event(&mut self, at: NodeId, _: GroupId, event: &Event) -> Result<(), String> {
        match event {
            Event::RoleChanged { .. } => self.place(at).up = true,
            Event::PeerMisbehaved { node, what } if self.bounded => {
                return Err(format!("honest_peers_are_not_accused: node {node}: {what}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn on_crash(&mut self, node: NodeId, _: &mut Clients<Head>) {
        self.place(node).up = false;
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Participant>) -> Result<(), String> {
        let Some(owner) = replicas.replica(node).and_then(Participant::owner) else { return Ok(()) };
        let place = self.places.entry(node).or_default();
        place.disk.installs(owner.applied());
        if !self.bounded || !place.up {
            return Ok(());
        }
        place.disk.recovers(owner.applied());
        // Often enough: it takes owners an exchange to forget what they all have.
        self.looks += 1;
        if self.looks.is_multiple_of(4) {
            self.look_around(replicas);
        }
        self.check_kept(node, replicas)
    }
}

/// One plan: owners, and one or two nodes beside them, under faults; then what is kept must come to its owners.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let rng = &mut plan.rng(11);
    let owners = if plan.settings.nodes < 5 { 3 } else { 5 };
    let nodes = owners + rng.u32(1..=2);
    let (timing, mut limits) = knobs(rng);
    if rng.u8(0..3) == 0 {
        // Some are refused.
        limits.hints_bytes_max = 1 << rng.u32(7..12);
    }
    let spaces = Keyspaces::default()
        .with("lww/", Keyspace::new(ConflictPolicy::Lww))
        .with("sib/", Keyspace::new(ConflictPolicy::Siblings));
    let repair = [ReadRepair::Blocking, ReadRepair::Async, ReadRepair::Off][rng.usize(0..3)];
    let counting = if rng.u8(0..4) == 0 { Counting::Never } else { Counting::TowardsQuorums };
    let fallbacks = Fallbacks { nodes: (owners + 1..=nodes).map(NodeId).collect(), counting };
    let cluster = ClusterId::from_name("sim");
    let others = &mut plan.rng(14);
    let changes = others.bool();
    let census = Census::draw(others, owners, plan.lasts, changes);
    // A fallback hears of epochs from owners; what it was told itself may be as old as what any of them was told.
    let mut told = |node: u32| NodeId(if node > owners { others.u32(1..=owners) } else { node });
    let sources: Option<Vec<_>> = census.changes().then(|| (1..=nodes).map(|node| census.source(told(node))).collect());
    let mut settings = plan.settings.clone();
    settings.nodes = nodes;
    let mut world: World<Participant, S> = World::new(plan.seed, settings, cluster, move |node, boots, _| {
        let mut config = Config::new(cluster, GROUP, node, (1..=owners).map(NodeId).collect());
        (config.timing, config.limits) = (timing, limits);
        (config.keyspaces, config.founding) = (spaces.clone(), Founding::New);
        (config.repair, config.fallbacks) = (repair, fallbacks.clone());
        if let Some(sources) = &sources {
            config.epochs = Box::new(sources[node.0 as usize - 1].clone());
        }
        Participant::new(config, &boots.of(GROUP)).expect("the knobs are in range")
    });
    let behaviour = Behaviour {
        prefixes: vec!["lww/", "sib/"],
        clients: plan.workload.clients.max(3),
        keys: rng.u32(1..=12),
        writes_per_mille: rng.u16(500..=900),
        deletes_per_mille: if rng.bool() { rng.u16(0..300) } else { 0 },
        roam_per_mille: if rng.bool() { rng.u16(0..1000) } else { 0 },
        levels: vec![WriteLevel::Quorum, WriteLevel::Quorum, WriteLevel::Owners(Owners::Any)],
        reads: vec![ReadLevel::Owners(Owners::Quorum)],
        scans_per_mille: 0,
        think_max: Duration::from_micros(rng.u64(500..30_000)),
        timeout: plan.workload.timeout,
    };
    let mut subject = HintsSubject {
        crowd: Crowd::new(behaviour, GROUP, owners),
        owners,
        census,
        ever: BTreeSet::new(),
        sent: BTreeMap::new(),
        answered: BTreeSet::new(),
        places: BTreeMap::new(),
        keys: BTreeMap::new(),
        kept: BTreeSet::new(),
        confirmed: BTreeMap::new(),
        acked: Vec::new(),
        looks: 0,
        probes: Probes::default(),
        bounded: world.is_bounded(),
    };
    telling.to(&mut world);
    let patience =
        Duration::from_secs(12) + plan.workload.timeout * 4 + timing.exchange * 64 + timing.suspect_after * 4;
    let mut dead = dead(&mut plan.rng(2), nodes);
    if !subject.census.outlives(&dead) {
        dead.clear();
    }
    play(plan, &mut world, &mut subject, &dead, patience).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, (subject.crowd.writes, subject.crowd.reads), subject.probes))
}

/// The node that stays dead, if one does.
fn dead(rng: &mut Rng, nodes: u32) -> Vec<NodeId> {
    if rng.bool() { vec![NodeId(rng.u32(1..=nodes))] } else { Vec::new() }
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Participant, S>,
    subject: &mut HintsSubject,
    dead: &[NodeId],
    patience: Duration,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    world.run_until(Time::ZERO + plan.lasts, subject).map_err(text)?;
    world.heal_all_but(dead, subject);
    subject.census.finish(dead);
    subject.crowd.stop();
    let (members, changes) = (subject.census.members(), subject.census.changes());
    let owners: Vec<NodeId> = members.iter().copied().filter(|node| !dead.contains(node)).collect();
    // For an owner that is dead for good it stays, until it is no owner any more.
    let served = if changes { (1..=subject.owners).map(NodeId).collect() } else { owners.clone() };
    let delivered = |world: &World<Participant, S>, subject: &HintsSubject| {
        let replicas = world.replicas();
        let of = |node: &NodeId| replicas.replica(*node).and_then(Participant::owner);
        if changes && !owners.iter().all(|node| of(node).is_some_and(|owner| owner.is_serving(&members))) {
            return false;
        }
        // What a keeper still has is known once its log has been read.
        let keeps_nothing = |node: NodeId| {
            let keeper = replicas.replica(node).and_then(Participant::fallback).filter(|_| subject.is_up(node));
            keeper.is_some_and(|keeper| served.iter().all(|owner| keeper.keys_for(*owner).is_empty()))
        };
        let mut keepers = replicas.nodes().into_iter().filter(|node| !subject.is_owner(*node) && !dead.contains(node));
        let states: BTreeSet<Option<u64>> = owners.iter().map(|node| Some(of(node)?.state_hash())).collect();
        states.len() == 1 && !states.contains(&None) && keepers.all(keeps_nothing)
    };
    let ends = world.run_while(patience, subject, delivered).map_err(text)?;
    if !world.must_serve() || !subject.bounded {
        return Ok(());
    }
    if !ends && changes && waits(world, dead) {
        return Ok(());
    }
    if !ends {
        return Err(format!("hints_are_delivered: not within {patience:?}: {}", describe(world)));
    }
    let replicas = world.replicas();
    // Who owns nothing any more keeps what it has until it is named again.
    let ever = (1..=subject.owners).map(NodeId).filter(|node| !dead.contains(node));
    let alive: Vec<&Leaderless> = ever.filter_map(|node| replicas.replica(node)?.owner()).collect();
    subject.check_conserved(&alive).map_err(|what| format!("{what}; owners {members:?}, dead {dead:?}"))
}

/// Whether an owner that may have forgotten something waits for one that is down for good, and so the epoch without that one
/// waits for it: for then too few of its owners are ready.
fn waits<S: SimStorage>(world: &World<Participant, S>, dead: &[NodeId]) -> bool {
    let replicas = world.replicas();
    let nodes = replicas.nodes();
    let asks = |node: &NodeId| {
        replicas.replica(*node).and_then(Participant::owner).is_some_and(|replica| replica.origin().is_none())
    };
    nodes.iter().any(|node| dead.contains(node) || world.is_refused(*node)) && nodes.iter().any(asks)
}

fn describe<S: SimStorage>(world: &World<Participant, S>) -> String {
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(Participant::Owner(owner)) => format!("node {node}: {owner:?}, {:?}", owner.figures()),
        Some(Participant::Fallback(fallback)) => {
            let kept: Vec<_> = replicas.nodes().into_iter().map(|owner| fallback.keys_for(owner)).collect();
            format!("node {node}: {fallback:?}, keeps {kept:?}")
        }
    };
    replicas.nodes().into_iter().map(describe).collect::<Vec<_>>().join("; ")
}
