//! A partitioned store: several nodes, each with several single-leader groups and the log of maps in one container; clients whose
//! routes go stale; an operator that splits, merges and hands off; nodes that fail, also at every step of a handoff.

mod clients;
mod invariants;
mod operator;
mod subject;

use core::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{ClusterId, Epoch, GroupId, LogIndex, NodeId, Role, Term, Time};
use replikit_partitioning::handoff::Holdings;
use replikit_partitioning::host::{Host, HostConfig, Seat};
use replikit_partitioning::shard::Shard;
use replikit_partitioning::{GroupMachine, Groups, MetaMachine, PartitionMap, Scheme};
use replikit_sim::{Replicas, SimStorage, World};
use replikit_single_leader::{Config, Raft};

use crate::plan::Plan;
use crate::probe::Probe;
use crate::raft::knobs;
use crate::run::{Failure, Run, Telling, linearizable};
use crate::sleep;
use subject::PartitionedSubject;

/// The group with the log of maps.
const MAPS: GroupId = GroupId(1);
/// Groups of data; the first half of them begin with a partition each.
const DATA_GROUPS: u32 = 4;
/// Copies of each group, where there are as many nodes.
const COPIES: u32 = 3;
/// Keys of each kind.
const KEYS: u32 = 6;

/// What the invariants of this scenario are called, each with its sentence.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("map_covers_everything_once", "Every key has exactly one place in every map that any node ever has."),
    ("one_map_an_epoch", "Maps of one epoch are the same, at every node."),
    ("epochs_do_not_go_back", "The map of a living node and what a group holds of it only get newer."),
    (
        "one_group_takes_writes",
        "No key is written to in two groups at a time, as far as anybody has applied their logs.",
    ),
    ("replicas_hold_the_same", "Replicas of a group that have applied the same index hold the same partitions."),
    ("spans_do_not_meet", "The partitions that a group holds have no key in common."),
    ("linearizable", "Each key is a linearizable register, over all splits, merges and handoffs."),
    (
        "each_request_counts_once",
        "A request that is made again counts once, wherever its partition has gone meanwhile.",
    ),
    ("scans_skip_nothing", "A scan shows every key that was there from its begin to its end, over moves too."),
    ("scans_repeat_nothing", "A scan shows no key twice."),
    ("handoffs_end", "Every handoff ends once all is mended: committed, or taken back."),
    ("holdings_follow_the_map", "Once all is mended, groups hold what the map says."),
    ("nothing_is_left_behind", "A group that holds a partition no more has none of its keys."),
];

/// Any group of the store.
pub(crate) type Group = Raft<GroupMachine<Keyspace>>;
/// A node of the store.
pub(crate) type Node = Host<Group, Rafts>;

/// How a host looks at a Raft group.
#[derive(Debug)]
pub(crate) struct Rafts;

impl Seat<Group> for Rafts {
    type Machine = Keyspace;

    fn machine(replica: &Group) -> Option<&GroupMachine<Keyspace>> {
        Some(replica.machine())
    }

    fn leads(replica: &Group) -> Option<Term> {
        (replica.role() == Role::Leader && replica.applied().id.term == replica.term()).then(|| replica.term())
    }

    fn applied(replica: &Group) -> LogIndex {
        replica.applied().id.index
    }
}

/// Where the groups are, and what they begin with.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) first: PartitionMap,
    nodes: u32,
    copies: u32,
}

impl Layout {
    fn new(nodes: u32, copies: u32) -> Self {
        let members = |group| (group, members(nodes, copies, group));
        let groups = Self::data_groups().map(members);
        let first = PartitionMap::first(Scheme::KEY_ORDER, ["key".into()], groups).expect("it is whole");
        Self { first, nodes, copies }
    }

    pub(crate) fn members(&self, group: GroupId) -> Vec<NodeId> {
        members(self.nodes, self.copies, group)
    }

    /// All groups, the log of maps first.
    pub(crate) fn groups() -> impl Iterator<Item = GroupId> {
        (1..2 + DATA_GROUPS).map(GroupId)
    }

    pub(crate) fn data_groups() -> impl Iterator<Item = GroupId> {
        Self::groups().skip(1)
    }

    fn machine(&self, group: GroupId) -> GroupMachine<Keyspace> {
        if group == MAPS {
            return GroupMachine::Maps(MetaMachine::new(self.first.clone()));
        }
        GroupMachine::Data(Shard::new(*self.first.scheme(), Holdings::first(&self.first, group)))
    }
}

/// The nodes of a group at first: so many, dealt out in turn.
pub(crate) fn members(nodes: u32, copies: u32, group: GroupId) -> Vec<NodeId> {
    let mut members: Vec<_> = (0..copies.min(nodes)).map(|copy| NodeId((group.0 + copy) % nodes + 1)).collect();
    members.sort_unstable();
    members
}

/// One plan: faults for a while, then the store must serve again, every handoff must end, and all that clients saw must fit.
///
/// # Errors
/// The first violation.
pub fn run<S: SimStorage + 'static>(plan: &Plan, telling: Telling) -> Result<Run, Box<Failure>> {
    let nodes = plan.settings.nodes;
    // Where disks are damaged, what the world says of all nodes has to hold for the members of each group.
    let sound = !S::HAS_DISK || plan.settings.storage.disk.is_sound();
    let layout = Layout::new(nodes, if sound { COPIES } else { nodes });
    let mut rng = plan.rng(1);
    let (timeouts, limits) = knobs(&mut rng);
    let (patience, refresh) = (Duration::from_millis(rng.u64(5..100)), Duration::from_millis(rng.u64(20..400)));
    let piece_bytes = 1 << rng.u32(4..12);
    let hibernate_after = sleep::hibernate_after(plan, &timeouts);
    let cluster = ClusterId::from_name("sim");
    let own = layout.clone();
    let mut world: World<Node, S> = World::new(plan.seed, plan.settings.clone(), cluster, move |node, boots, seed| {
        let raft = |group: GroupId| {
            let members = own.members(group);
            members.contains(&node).then(|| {
                let mut config = Config::new(cluster, group, node, members, seed ^ u64::from(group.0));
                (config.timeouts, config.limits, config.hibernate_after) = (timeouts, limits, hibernate_after);
                (group, Raft::new(config, &boots.of(group), own.machine(group)).expect("the knobs are in range"))
            })
        };
        let groups = Groups::new(Epoch(1), Layout::groups().filter_map(raft));
        let groups = groups.with_node_heartbeats(sleep::heartbeats(&timeouts, seed));
        let config = HostConfig { patience, refresh, piece_bytes, ..HostConfig::new(node, MAPS) };
        Host::new(config, own.members(MAPS), own.first.clone(), groups)
    });
    telling.to(&mut world);
    let mut subject = PartitionedSubject::new(plan, layout, world.is_bounded());
    let bound = hibernate_after.map(|_| timeouts.election * 60 + Duration::from_secs(10));
    let played = play(plan, &mut world, &mut subject).and_then(|()| match bound {
        Some(bound) if world.is_bounded() => rest(&mut world, &mut subject, bound),
        _ => Ok(()),
    });
    played.map_err(|what| Failure::new(plan, &world, &what))?;
    Ok(Run::of(&world, subject.clients.answered(), subject.probes))
}

fn play<S: SimStorage>(
    plan: &Plan,
    world: &mut World<Node, S>,
    subject: &mut PartitionedSubject,
) -> Result<(), String> {
    let text = |violation: replikit_sim::Violation| violation.what;
    // Handoffs take some round trips and elections more than a plain run.
    let until = Time::ZERO + plan.lasts * 3;
    while world.now() < until {
        let left = until.since(world.now());
        if !world.run_while(left, subject, |_, subject| subject.strike.is_some()).map_err(text)? {
            break;
        }
        if let Some(node) = subject.strike.take() {
            world.crash(node, subject);
        }
    }
    subject.heal();
    world.heal(subject);
    let bound = Duration::from_secs(30);
    let wanted = subject.clients.answered_all() + 20;
    let served = |_: &World<Node, S>, subject: &PartitionedSubject| subject.clients.answered_all() >= wanted;
    let serves = world.run_while(bound, subject, served).map_err(text)?;
    if !serves && world.must_serve() {
        return Err(format!("serves_again: no progress after everything was mended: {}", subject.describe()));
    }
    subject.clients.stop();
    if !world.is_bounded() {
        return Ok(());
    }
    let at_rest = |world: &World<Node, S>, subject: &PartitionedSubject| {
        subject.clients.is_idle() && subject.is_at_rest(&world.replicas())
    };
    let rests = world.run_while(bound, subject, at_rest).map_err(text)?;
    if !rests && world.must_serve() {
        return Err(format!("handoffs_end: {}", subject.describe()));
    }
    linearizable(subject.clients.history())?;
    if rests {
        subject.check_end(&world.replicas())?;
    }
    subject.probes.hit(Probe::StoreAtRest);
    Ok(())
}

/// Every group sleeps, on every node.
fn rest<S: SimStorage>(
    world: &mut World<Node, S>,
    subject: &mut PartitionedSubject,
    bound: Duration,
) -> Result<(), String> {
    let asleep = |host: &Node| host.groups().groups().all(|(_, raft)| raft.is_asleep());
    let all_sleep = |world: &World<Node, S>, _: &PartitionedSubject| {
        let replicas = world.replicas();
        replicas.nodes().into_iter().all(|node| replicas.replica(node).is_some_and(asleep))
    };
    let sleep = world.run_while(bound, subject, all_sleep).map_err(|violation| violation.what)?;
    if !sleep && world.must_serve() && !world.replicas().nodes().into_iter().any(|node| world.is_refused(node)) {
        let replicas = world.replicas();
        let awake = replicas.nodes().into_iter().filter_map(|node| Some((node, replicas.replica(node)?)));
        let awake = awake.flat_map(|(node, host)| {
            let groups = host.groups().groups().filter(|(_, raft)| !raft.is_asleep());
            groups.map(move |(group, raft)| (node, group, raft.role(), raft.term(), raft.last().id))
        });
        return Err(format!("idle_groups_sleep: {:?} are awake", awake.collect::<Vec<_>>()));
    }
    Ok(())
}

/// A replica of a group that has applied as much as any, among the live ones.
pub(crate) fn newest(replicas: &impl Replicas<Node>, group: GroupId) -> Option<&Group> {
    let of = |node| replicas.replica(node).and_then(|host: &Node| host.groups().replica(group));
    replicas.nodes().into_iter().filter_map(of).max_by_key(|raft| raft.applied().id.index)
}
