//! A host whose groups come and go as the map places them, with toy groups.

use std::sync::{Arc, Mutex};

use replikit_core::keyspace::Keyspace;
use replikit_core::*;
use replikit_partitioning::host::{Host, HostConfig, HostHead, Placing, Seat};
use replikit_partitioning::{
    Change, GroupMachine, Groups, GroupsHead, MetaAnswer, Part, PartitionMap, Replication, Scheme,
};

use crate::toy::*;

#[derive(Debug)]
struct Seats;

impl Seat<Toy> for Seats {
    type Machine = Keyspace;

    fn machine(_: &Toy) -> Option<&GroupMachine<Keyspace>> {
        None
    }

    fn leads(_: &Toy) -> Option<Term> {
        None
    }

    fn applied(_: &Toy) -> LogIndex {
        LogIndex(0)
    }
}

/// Writes down what it is asked for: whether a group is new, which, and its epoch. Says of every replica that in this epoch those who
/// stay have everything.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<Vec<(bool, GroupId, Epoch)>>>, Arc<Mutex<Option<Epoch>>>);

impl Places {
    fn told(&self) -> Vec<(bool, GroupId, Epoch)> {
        std::mem::take(&mut self.0.lock().expect("nothing panics under it"))
    }
}

impl Placing<Toy> for Places {
    fn announce(&mut self, group: GroupId, membership: Membership) {
        self.0.lock().expect("nothing panics under it").push((false, group, membership.epoch));
    }

    fn found(&mut self, group: GroupId, membership: Membership) -> Result<Toy, String> {
        self.0.lock().expect("nothing panics under it").push((true, group, membership.epoch));
        if membership.nodes.len() > 5 { Err("too many".to_owned()) } else { Ok(Toy::default()) }
    }

    fn drained(&self, _: &Toy) -> Option<Epoch> {
        *self.1.lock().expect("nothing panics under it")
    }
}

const MAPS: GroupId = GroupId(1);

fn first() -> PartitionMap {
    first_of(Replication::Leaderless)
}

fn first_of(replication: Replication) -> PartitionMap {
    let nodes = |ids: [u32; 3]| ids.map(NodeId).to_vec();
    let groups = [(GroupId(2), nodes([1, 2, 3])), (GroupId(3), nodes([4, 5, 6]))];
    PartitionMap::first_of(replication, Scheme::KEY_ORDER, ["m".into()], groups).expect("it is whole")
}

fn host(places: &Places) -> Host<Toy, Seats> {
    host_of(places, first())
}

fn host_of(places: &Places, first: PartitionMap) -> Host<Toy, Seats> {
    let groups = Groups::new(Epoch(1), [(GroupId(2), Toy::default())]);
    let mut host = Host::new(HostConfig::new(NodeId(1), MAPS), vec![NodeId(2)], first, groups)
        .with_placing(Box::new(places.clone()));
    host.handle(Now::default(), Input::Recovered);
    drain(&mut host);
    host
}

fn drain(host: &mut Host<Toy, Seats>) -> Vec<Action<HostHead<u8>>> {
    std::iter::from_fn(|| host.poll()).collect()
}

fn tell(host: &mut Host<Toy, Seats>, head: HostHead<u8>) -> Vec<Action<HostHead<u8>>> {
    let message = Message { head, batches: Batches::None };
    host.handle(Now::default(), Input::Message { from: NodeId(2), message });
    drain(host)
}

fn placed(map: &PartitionMap, group: u32, to: &[u32]) -> PartitionMap {
    let replicas = to.iter().copied().map(NodeId).collect();
    map.changed(&Change::Place { group: GroupId(group), replicas }).expect("the group is there").0
}

fn of_map(map: &PartitionMap) -> HostHead<u8> {
    HostHead::Maps(MetaAnswer::Map(Box::new(map.clone())))
}

fn spoken(group: u32) -> HostHead<u8> {
    let part = Part { group: GroupId(group), head: 7, batches: 0 };
    HostHead::Groups(GroupsHead { parts: vec![part], life: None })
}

#[test]
fn groups_are_announced_and_made_as_the_map_places_them() {
    let places = Places::default();
    let mut host = host(&places);
    assert_eq!(places.told(), []);
    let map = placed(&placed(&first(), 2, &[1, 2, 4]), 3, &[1, 5, 6]);
    tell(&mut host, of_map(&map));
    assert_eq!(places.told(), [(false, GroupId(2), Epoch(2)), (true, GroupId(3), Epoch(2))]);
    let seen = |host: &Host<Toy, Seats>, group| host.groups().replica(GroupId(group)).expect("it is here").seen.clone();
    assert_eq!(seen(&host, 2).last().map(String::as_str), Some("timer"), "it is to look at its members");
    assert_eq!(seen(&host, 3), ["recovered"]);
    // The same map again, and one that changes something else, say nothing new.
    tell(&mut host, of_map(&map));
    tell(&mut host, of_map(&placed(&map, 2, &[2, 4, 6])));
    assert_eq!(places.told(), [(false, GroupId(2), Epoch(3))], "also that it is no member any more");
    assert!(host.groups().replica(GroupId(2)).is_some(), "it sends others on");
}

/// `placed` seed 3189: the placement that named this node had come into force, but all that it ever heard of was the next one.
#[test]
fn who_is_spoken_to_of_a_group_that_is_not_there_makes_one() {
    let places = Places::default();
    let mut host = host(&places);
    tell(&mut host, spoken(3));
    assert_eq!(places.told(), [(true, GroupId(3), Epoch(1))]);
    let group = host.groups().replica(GroupId(3)).expect("it is here");
    assert_eq!(group.seen, ["recovered", "7 from 2 with 0"]);
    tell(&mut host, spoken(3));
    tell(&mut host, spoken(9));
    assert_eq!(places.told(), [], "it is there by now, and of the other one no map knows");
}

#[test]
fn a_group_that_cannot_be_made_is_told_and_the_others_go_on() {
    let places = Places::default();
    let mut host = host(&places);
    let told = tell(&mut host, of_map(&placed(&first(), 3, &[1, 2, 3, 4, 5, 6])));
    let is_told = |action: &Action<HostHead<u8>>| matches!(action, Action::Event { group: GroupId(3), event: Event::NotPlaced { why } } if why == "too many");
    assert!(told.iter().any(is_told), "{told:?}");
    assert!(host.groups().replica(GroupId(3)).is_none() && host.groups().replica(GroupId(2)).is_some());
}

#[test]
fn the_second_step_of_a_placement_is_asked_for_once_those_who_stay_have_everything() {
    let places = Places::default();
    let map = first_of(Replication::MultiLeader);
    let mut host = host_of(&places, map.clone());
    let joint = placed(&map, 2, &[1, 2, 4]);
    tell(&mut host, of_map(&joint));
    let asked = |actions: &[Action<HostHead<u8>>]| {
        let change = |action: &Action<HostHead<u8>>| match action {
            Action::Send { to: NodeId(2), message: Message { head: HostHead::Change(change), .. } } => {
                Some(change.clone())
            }
            _ => None,
        };
        actions.iter().filter_map(change).collect::<Vec<Change>>()
    };
    let mut later = |seconds: u64| {
        let mono = Time(0) + core::time::Duration::from_secs(seconds);
        host.handle(Now { mono, ..Now::default() }, Input::Timer);
        drain(&mut host)
    };
    assert_eq!(asked(&later(1)), [], "nobody says that they have");
    *places.1.lock().expect("nothing panics under it") = Some(Epoch(1));
    assert_eq!(asked(&later(2)), [], "that was of another placement");
    *places.1.lock().expect("nothing panics under it") = Some(Epoch(2));
    let placement = joint.of_group(GroupId(2)).next().expect("it is there").placement;
    let complete = Change::CompletePlacement { group: GroupId(2), placement };
    assert_eq!(asked(&later(3)), std::slice::from_ref(&complete));
    assert_eq!(asked(&later(4)), std::slice::from_ref(&complete), "it may have been lost");
    let (done, _) = joint.changed(&complete).expect("it is as it was");
    assert_eq!(done.of_group(GroupId(2)).next().expect("it is there").replicas, [1, 2, 4].map(NodeId));
    tell(&mut host, of_map(&done));
    assert_eq!(places.told().last(), Some(&(false, GroupId(2), Epoch(3))));
    host.handle(Now { mono: Time(0) + core::time::Duration::from_secs(9), ..Now::default() }, Input::Timer);
    assert_eq!(asked(&drain(&mut host)), []);
}

#[test]
fn a_node_that_the_map_does_not_name_answers_no_reads_of_a_multi_leader_group() {
    let places = Places::default();
    let map = first_of(Replication::MultiLeader);
    let mut host = host_of(&places, map.clone());
    let read = |host: &mut Host<Toy, Seats>| {
        let (token, group, level) = (Token(5), GroupId(2), ReadLevel::Local);
        host.handle(Now::default(), Input::Query { token, group, level, body: "k".into(), bytes_max: 1 << 10 });
        drain(host).into_iter().find_map(|action| match action {
            Action::Done { token: Token(5), outcome } => Some(outcome),
            _ => None,
        })
    };
    assert_eq!(read(&mut host), None, "the group answers by itself");
    let joint = placed(&map, 2, &[2, 3]);
    tell(&mut host, of_map(&joint));
    assert_eq!(read(&mut host), None, "it is a member until the others have everything");
    let (without, _) = joint.changed(&Change::GiveUp { group: GroupId(2), node: NodeId(1) }).expect("it is to leave");
    tell(&mut host, of_map(&without));
    assert_eq!(read(&mut host), Some(Outcome::Rejected(Rejection::StaleRoute { current: Epoch(3) })));
}
