//! A partitioned store of leaderless or multi-leader groups: several nodes, each with some of the groups and the log of maps in one
//! container; an operator who places groups on other nodes at any moment; clients whose maps go stale. What becomes of a group while
//! its members change is watched in `leaderless-owners` and `multi-leader`; here, that the map brings it about, and that nobody loses
//! anything on the way.

mod clients;
mod kind;
mod operator;
mod subject;

use core::marker::PhantomData;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use replikit_core::keyspace::Keyspace as Machine;
use replikit_core::{
    Announcements, Boot, ClusterId, Epoch, GroupId, LogIndex, Membership, NodeId, Replica, Term, Time,
};
use replikit_partitioning::host::{Host, HostConfig, HostHead, Placing, Seat};
use replikit_partitioning::{Either, GroupMachine, Groups, HashSlots, MetaMachine, PartitionMap, Replication, Scheme};
use replikit_sim::{SimStorage, World};
use replikit_single_leader::{Config as RaftConfig, Raft};

use crate::partitioned::{Rafts, members};
use crate::plan::Plan;
use crate::probe::Probe;
use crate::raft::knobs;
use crate::run::{Failure, Run, Telling};
pub use kind::{Kind, OfLeaderless, OfLeaders};
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

/// The same for multi-leader groups.
pub const INVARIANTS_OF_LEADERS: &[(&str, &str)] = &[
    (
        "placed_leaders_keep_everything",
        "Whatever a node of a group has acknowledged by its own disk is there and counts once, also when all its nodes were replaced.",
    ),
    (
        "placed_leaders_agree",
        "Once nobody writes and nobody places anything, the replicas of each group show the same.",
    ),
    (
        "placements_are_followed",
        "Once nobody places anything any more, every placement is complete, and those whom the map names have everything.",
    ),
];

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// They write and read at quorums.
    Quorums,
    /// They add at one node, and look at the end.
    Leaders,
}

impl Style {
    /// What says that nothing is lost.
    const fn keeps(self) -> &'static str {
        match self {
            Self::Quorums => "placed_keep_everything",
            Self::Leaders => "placed_leaders_keep_everything",
        }
    }
}

/// A group of the store: the log of maps, or data.
pub(crate) type Group<K> = Either<Raft<GroupMachine<Machine>>, <K as Kind>::Replica>;
/// A node of the store.
pub(crate) type Node<K> = Host<Group<K>, Seats<K>>;
/// What nodes say to each other.
pub(crate) type Head<K> = HostHead<<Group<K> as Replica>::Head>;

/// How a host looks at its groups.
#[derive(Debug)]
pub(crate) struct Seats<K>(PhantomData<K>);

impl<K: Kind> Seat<Group<K>> for Seats<K> {
    type Machine = Machine;

    fn machine(replica: &Group<K>) -> Option<&GroupMachine<Machine>> {
        replica.as_one().and_then(Rafts::machine)
    }

    fn leads(replica: &Group<K>) -> Option<Term> {
        replica.as_one().and_then(Rafts::leads)
    }

    fn applied(replica: &Group<K>) -> LogIndex {
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
    fn new(replication: Replication, nodes: u32, copies: u32) -> Self {
        let groups = Self::data_groups().map(|group| (group, members(nodes, copies, group)));
        let bounds = HashSlots::even_bounds(DATA_GROUPS as u16);
        let first = PartitionMap::first_of(replication, Scheme::hash_slots(7), bounds, groups).expect("it is whole");
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

/// Makes the groups of a node, and tells them who belongs to them.
#[derive(Debug)]
struct Places<K: Kind> {
    node: NodeId,
    cluster: ClusterId,
    settings: K::Settings,
    /// Unclean starts that the disk has seen.
    incarnation: u32,
    sources: BTreeMap<GroupId, Arc<Announcements>>,
}

impl<K: Kind> Places<K> {
    fn group(&mut self, group: GroupId, membership: Membership, boot: &Boot) -> Group<K> {
        let source = Arc::new(Announcements::new(membership));
        self.sources.insert(group, source.clone());
        Either::other(group, K::replica(&self.settings, self.cluster, group, self.node, source, boot))
    }
}

impl<K: Kind> Placing<Group<K>> for Places<K> {
    fn announce(&mut self, group: GroupId, membership: Membership) {
        self.sources[&group].announce(membership);
    }

    fn found(&mut self, group: GroupId, membership: Membership) -> Result<Group<K>, String> {
        Ok(self.group(group, membership, &Boot { incarnation: self.incarnation, ..Boot::default() }))
    }

    fn drained(&self, replica: &Group<K>) -> Option<Epoch> {
        replica.as_other().and_then(K::drained)
    }
}

/// One plan: faults for a while, then the store must serve again, the owners be those that the map names, and nothing be missing.
///
/// # Errors
/// The first violation.
pub fn run<K: Kind, S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    // Where disks are damaged, what the world says of all nodes has to hold for the members of each group.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let layout = Layout::new(K::REPLICATION, nodes, if sound { COPIES } else { nodes });
    let mut rng = plan.rng(1);
    let (timeouts, raft_limits) = knobs(&mut rng);
    let (settings, exchange) = K::settings(&mut rng);
    let refresh = Duration::from_millis(rng.u64(20..400));
    let cluster = ClusterId::from_name("sim");
    let own = layout.clone();
    let mut world: World<Node<K>, S> =
        World::new(plan.seed, plan.settings.clone(), cluster, move |node, boots, seed| {
            let (incarnation, settings) = (boots.incarnation, settings.clone());
            let mut places = Places::<K> { node, cluster, settings, incarnation, sources: BTreeMap::new() };
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
    let mut subject = PlacedSubject::<K>::new(plan, layout, world.is_bounded() && (sound || K::SURVIVES_ROT), sound);
    play(plan, &mut world, &mut subject, exchange).map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.clients.answered(), subject.probes))
}

fn play<K: Kind, S: SimStorage>(
    plan: &Plan,
    world: &mut World<Node<K>, S>,
    subject: &mut PlacedSubject<K>,
    exchange: Duration,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    // Two placements one after the other take some exchanges.
    world.run_until(Time::ZERO + plan.lasts * 2, subject).map_err(text)?;
    world.heal(subject);
    subject.heal();
    let patience = Duration::from_secs(40) + plan.workload.timeout * 4 + exchange * 100;
    // An owner that may have forgotten something asks all others, also one whose log does not open any more.
    let is_whole = |world: &World<Node<K>, S>| !(1..=plan.settings.nodes).any(|node| world.is_refused(NodeId(node)));
    let must_serve = |world: &World<Node<K>, S>| world.must_serve() && world.is_bounded() && is_whole(world);
    let wanted = subject.clients.answered_all() + 20;
    let served = |_: &World<Node<K>, S>, subject: &PlacedSubject<K>| subject.clients.answered_all() >= wanted;
    if !world.run_while(patience, subject, served).map_err(text)? && must_serve(world) {
        return Err(format!("serves_again: no progress after everything was mended: {}", describe(world, subject)));
    }
    subject.clients.stop();
    let idle = |_: &World<Node<K>, S>, subject: &PlacedSubject<K>| subject.clients.is_idle();
    if !world.run_while(patience, subject, idle).map_err(text)? && must_serve(world) {
        return Err(format!("serves_again: a request never ends: {}", describe(world, subject)));
    }
    if !must_serve(world) {
        return Ok(());
    }
    let at_rest = |world: &World<Node<K>, S>, subject: &PlacedSubject<K>| subject.is_at_rest(&world.replicas());
    // A slow disk takes in one small batch after the other (placed-leaders seed 177796: a thousand of them).
    let rests = world.run_while(patience * 5, subject, at_rest).map_err(text)?;
    // A disk may be found damaged as late as this.
    if !is_whole(world) {
        return Ok(());
    }
    if !rests {
        return Err(format!("placements_are_followed: {}", describe(world, subject)));
    }
    subject.check_agreed(&world.replicas())?;
    subject.probes.hit(Probe::PlacedAtRest);
    subject.clients.look_at_all(world.clients());
    let seen = |_: &World<Node<K>, S>, subject: &PlacedSubject<K>| subject.clients.has_seen_all();
    if !world.run_while(patience, subject, seen).map_err(text)? && is_whole(world) {
        return Err(format!("serves_again: not every key can be read at the end: {}", describe(world, subject)));
    }
    Ok(())
}

fn describe<K: Kind, S: SimStorage>(world: &World<Node<K>, S>, subject: &PlacedSubject<K>) -> String {
    use replikit_sim::Replicas as _;
    let replicas = world.replicas();
    let describe = |node: NodeId| match replicas.replica(node) {
        None => format!("node {node} is down"),
        Some(host) => {
            let group =
                |(group, replica): (GroupId, &Group<K>)| Some(format!("{group} {}", K::describe(replica.as_other()?)));
            let groups: Vec<String> = host.groups().groups().filter_map(group).collect();
            format!("node {node} at {}: {}", host.map().epoch(), groups.join(", "))
        }
    };
    let nodes: Vec<String> = replicas.nodes().into_iter().map(describe).collect();
    format!("{}; {}", subject.describe(), nodes.join("; "))
}
