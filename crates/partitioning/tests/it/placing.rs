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

/// Writes down what it is asked for: whether a group is new, which, and its epoch.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<Vec<(bool, GroupId, Epoch)>>>);

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
}

const MAPS: GroupId = GroupId(1);

fn first() -> PartitionMap {
    let nodes = |ids: [u32; 3]| ids.map(NodeId).to_vec();
    let groups = [(GroupId(2), nodes([1, 2, 3])), (GroupId(3), nodes([4, 5, 6]))];
    PartitionMap::first_of(Replication::Leaderless, Scheme::KEY_ORDER, ["m".into()], groups).expect("it is whole")
}

fn host(places: &Places) -> Host<Toy, Seats> {
    let groups = Groups::new(Epoch(1), [(GroupId(2), Toy::default())]);
    let mut host = Host::new(HostConfig::new(NodeId(1), MAPS), vec![NodeId(2)], first(), groups)
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
