//! A partitioned store of leaderless groups: several nodes, each with some of the groups and the log of maps in one container; an
//! operator who places groups on other nodes at any moment; clients whose maps go stale. What becomes of a group while its owners
//! change is watched in `leaderless-owners`; here, that the map brings it about, and that nobody loses anything on the way.

mod clients;
mod operator;
mod subject;

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use replikit_core::keyspace::Keyspace as Machine;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Announcements, Boot, ClusterId, Epoch, GroupId, LogIndex, Membership, NodeId, Replica, Term, Time,
};
use replikit_leaderless::{Config, Founding, Keyspace, Keyspaces, Leaderless, Limits, Timing};
use replikit_partitioning::host::{Host, HostConfig, HostHead, Placing, Seat};
use replikit_partitioning::{Either, GroupMachine, Groups, HashSlots, MetaMachine, PartitionMap, Replication, Scheme};
use replikit_sim::{SimStorage, World};
use replikit_single_leader::{Config as RaftConfig, Raft};

use crate::partitioned::{Rafts, members};
use crate::plan::Plan;
use crate::probe::Probe;
use crate::raft::knobs;
use crate::run::{Failure, Run, Telling};
use subject::PlacedSubject;

/// The group with the log of maps.
const MAPS: GroupId = GroupId(1);
/// Groups of data, each with one partition for ever.
const DATA_GROUPS: u32 = 3;
/// Copies of each group at first, where there are as many nodes.
const COPIES: u32 = 3;

/// What the invariants of this scenario are called, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    (
        "placed_reads_are_current",
        "A quorum read shows the last acknowledged quorum write of its key, or one whose outcome its writer does not know, wherever the partition is.",
    ),
    (
        "placed_keep_everything",
        "Every element whose addition to a set was acknowledged is in it, wherever the partition is.",
    ),
    (
        "placements_are_followed",
        "Once nobody places anything any more, the owners of each group are those that the map names.",
    ),
];

/// A group of the store: the log of maps, or data.
pub(crate) type Group = Either<Raft<GroupMachine<Machine>>, Leaderless>;
/// A node of the store.
pub(crate) type Node = Host<Group, Seats>;
/// What nodes say to each other.
pub(crate) type Head = HostHead<<Group as Replica>::Head>;

/// How a host looks at its groups.
#[derive(Debug)]
pub(crate) struct Seats;

impl Seat<Group> for Seats {
    type Machine = Machine;

    fn machine(replica: &Group) -> Option<&GroupMachine<Machine>> {
        replica.as_one().and_then(Rafts::machine)
    }

    fn leads(replica: &Group) -> Option<Term> {
        replica.as_one().and_then(Rafts::leads)
    }

    fn applied(replica: &Group) -> LogIndex {
        replica.as_one().map_or(LogIndex(0), Rafts::applied)
    }
}

/// Where the groups are at first.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) first: PartitionMap,
    pub(crate) nodes: u32,
    copies: u32,
}

impl Layout {
    fn new(nodes: u32, copies: u32) -> Self {
        let groups = Self::data_groups().map(|group| (group, members(nodes, copies, group)));
        let bounds = HashSlots::even_bounds(DATA_GROUPS as u16);
        let first = PartitionMap::first_of(Replication::Leaderless, Scheme::hash_slots(7), bounds, groups)
            .expect("it is whole");
        Self { first, nodes, copies }
    }

    /// Who keeps the log of maps.
    pub(crate) fn map_nodes(&self) -> Vec<NodeId> {
        members(self.nodes, self.copies, MAPS)
    }

    pub(crate) fn data_groups() -> impl Iterator<Item = GroupId> {
        (2..2 + DATA_GROUPS).map(GroupId)
    }

    /// The members with which a group began.
    fn founding(&self, group: GroupId) -> Membership {
        self.first.of_group(group).next().expect("every group has a partition").membership()
    }
}

/// Makes the leaderless groups of a node, and tells them who belongs to them.
#[derive(Debug)]
struct Places {
    node: NodeId,
    settings: Settings,
    /// Unclean starts that the disk has seen.
    incarnation: u32,
    sources: BTreeMap<GroupId, Arc<Announcements>>,
}

/// What all groups of a run have alike.
#[derive(Clone, Debug)]
struct Settings {
    cluster: ClusterId,
    timing: Timing,
    limits: Limits,
}

impl Places {
    fn group(&mut self, group: GroupId, membership: Membership, boot: &Boot) -> Group {
        let owners = membership.ids().collect();
        let source = Arc::new(Announcements::new(membership));
        self.sources.insert(group, source.clone());
        let mut config = Config::new(self.settings.cluster, group, self.node, owners);
        (config.timing, config.limits) = (self.settings.timing, self.settings.limits);
        (config.keyspaces, config.founding) = (keyspaces(), Founding::New);
        config.epochs = Box::new(source);
        Either::other(group, Leaderless::new(config, boot).expect("the knobs are in range"))
    }
}

impl Placing<Group> for Places {
    fn announce(&mut self, group: GroupId, membership: Membership) {
        self.sources[&group].announce(membership);
    }

    fn found(&mut self, group: GroupId, membership: Membership) -> Result<Group, String> {
        Ok(self.group(group, membership, &Boot { incarnation: self.incarnation, ..Boot::default() }))
    }
}

/// Keys of two kinds: the last write wins, and sets.
fn keyspaces() -> Keyspaces {
    let set = Keyspace::new(ConflictPolicy::Crdt(replikit_core::crdt::CrdtKind::Set));
    Keyspaces::default().with("set/", set).with("lww/", Keyspace::new(ConflictPolicy::Lww))
}

/// One plan: faults for a while, then the store must serve again, the owners be those that the map names, and nothing be missing.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    // Where disks are damaged, what the world says of all nodes has to hold for the members of each group.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let layout = Layout::new(nodes, if sound { COPIES } else { nodes });
    let mut rng = plan.rng(1);
    let (timeouts, raft_limits) = knobs(&mut rng);
    let (timing, limits) = crate::leaderless::knobs(&mut rng);
    let refresh = Duration::from_millis(rng.u64(20..400));
    let cluster = ClusterId::from_name("sim");
    let settings = Settings { cluster, timing, limits };
    let own = layout.clone();
    let mut world: World<Node, S> = World::new(plan.seed, plan.settings.clone(), cluster, move |node, boots, seed| {
        let incarnation = boots.incarnation;
        let mut places = Places { node, settings: settings.clone(), incarnation, sources: BTreeMap::new() };
        let mut groups = Vec::new();
        if own.map_nodes().contains(&node) {
            let mut config = RaftConfig::new(cluster, MAPS, node, own.map_nodes(), seed);
            (config.timeouts, config.limits) = (timeouts, raft_limits);
            let machine = GroupMachine::Maps(MetaMachine::new(own.first.clone()));
            let raft = Raft::new(config, &boots.of(MAPS), machine).expect("the knobs are in range");
            groups.push((MAPS, Either::one(MAPS, raft)));
        }
        for group in Layout::data_groups() {
            let founding = own.founding(group);
            if founding.contains(node) || boots.groups.contains_key(&group) {
                groups.push((group, places.group(group, founding, &boots.of(group))));
            }
        }
        let config = HostConfig { refresh, ..HostConfig::new(node, MAPS) };
        let groups = Groups::new(Epoch(1), groups);
        Host::new(config, own.map_nodes(), own.first.clone(), groups).with_placing(Box::new(places))
    });
    telling.to(&mut world);
    let mut subject = PlacedSubject::new(plan, layout, world.is_bounded(), sound);
    play(plan, &mut world, &mut subject, timing).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.clients.answered(), subject.probes))
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Node, S>,
    subject: &mut PlacedSubject,
    timing: Timing,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    // Two placements one after the other take some exchanges.
    world.run_until(Time::ZERO + plan.lasts * 2, subject).map_err(text)?;
    world.heal(subject);
    subject.heal();
    let patience = Duration::from_secs(40) + plan.workload.timeout * 4 + timing.exchange * 100;
    // An owner that may have forgotten something asks all others, also one whose log does not open any more.
    let is_whole = |world: &World<Node, S>| !(1..=plan.settings.nodes).any(|node| world.is_refused(NodeId(node)));
    let must_serve = |world: &World<Node, S>| world.must_serve() && world.is_bounded() && is_whole(world);
    let wanted = subject.clients.answered_all() + 20;
    let served = |_: &World<Node, S>, subject: &PlacedSubject| subject.clients.answered_all() >= wanted;
    if !world.run_while(patience, subject, served).map_err(text)? && must_serve(world) {
        return Err(format!("serves_again: no progress after everything was mended: {}", describe(world, subject)));
    }
    subject.clients.stop();
    let idle = |_: &World<Node, S>, subject: &PlacedSubject| subject.clients.is_idle();
    if !world.run_while(patience, subject, idle).map_err(text)? && must_serve(world) {
        return Err(format!("serves_again: a request never ends: {}", describe(world, subject)));
    }
    if !must_serve(world) {
        return Ok(());
    }
    let at_rest = |world: &World<Node, S>, subject: &PlacedSubject| subject.is_at_rest(&world.replicas());
    let rests = world.run_while(patience, subject, at_rest).map_err(text)?;
    // A disk may be found damaged as late as this.
    if !is_whole(world) {
        return Ok(());
    }
    if !rests {
        return Err(format!("placements_are_followed: {}", describe(world, subject)));
    }
    subject.probes.hit(Probe::PlacedAtRest);
    subject.clients.look_at_all(world.clients());
    let seen = |_: &World<Node, S>, subject: &PlacedSubject| subject.clients.has_seen_all();
    if !world.run_while(patience, subject, seen).map_err(text)? && is_whole(world) {
        return Err(format!("serves_again: not every key can be read at the end: {}", describe(world, subject)));
    }
    Ok(())
}

fn describe<S: SimStorage>(world: &World<Node, S>, subject: &PlacedSubject) -> String {
    use replikit_sim::Replicas as _;
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(host) => {
            let group = |(group, replica): (GroupId, &Group)| {
                replica.as_other().map(|it| format!("{group} {:?} caught up {}", it.ownership(), it.origin().is_some()))
            };
            let groups: Vec<String> = host.groups().groups().filter_map(group).collect();
            format!("node {node} at {}: {}", host.map().epoch(), groups.join(", "))
        }
    };
    let nodes: Vec<String> = replicas.nodes().into_iter().map(describe).collect();
    format!("{}; {}", subject.describe(), nodes.join("; "))
}
