//! Networks that are given, and faults that are planned by hand: exactly what was asked for happens.

use core::time::Duration;

use replikit_core::{ClusterId, GroupId, NodeId, Time};
use replikit_sim::register::{Register, RegisterConfig, RegisterWorkload};
use replikit_sim::{Replicas, Settings, WorkloadSettings, World};

const GROUP: GroupId = GroupId(1);

fn world(one_way: Duration) -> (World<Register>, RegisterWorkload) {
    let cluster = ClusterId::from_name("by hand");
    let mut settings = Settings::calm(3);
    settings.network.delay = Duration::ZERO;
    settings.network.links = vec![vec![one_way; 3]; 3];
    settings.process.round = Duration::ZERO;
    settings.storage.sync = Duration::ZERO;
    let world = World::new(7, settings, cluster, move |node, boots, _| {
        let members = (1..=3).map(NodeId).collect();
        Register::new(RegisterConfig::new(cluster, GROUP, node, members), &boots.of(GROUP))
            .expect("these nodes form a group")
    });
    let settings = WorkloadSettings { clients: 1, think_max: Duration::ZERO, ..WorkloadSettings::default() };
    (world, RegisterWorkload::new(settings, 3, GROUP))
}

/// How many operations of one client end within a second.
fn answered(one_way: Duration) -> usize {
    let (mut world, mut clients) = world(one_way);
    world.run_until(Time::ZERO + Duration::from_secs(1), &mut clients).expect("no invariant is broken");
    clients.history().answered()
}

#[test]
fn an_operation_takes_the_round_trips_that_the_links_say() {
    let (near, far) = (answered(Duration::from_millis(5)), answered(Duration::from_millis(50)));
    // One or two round trips each: at most a hundred and at most ten in a second.
    assert!((40..=100).contains(&near), "{near}");
    assert!((4..=10).contains(&far), "{far}");
}

#[test]
fn without_a_majority_nothing_is_served_until_a_node_is_back() {
    let (mut world, mut clients) = world(Duration::from_millis(1));
    world.run_until(Time::ZERO + Duration::from_millis(500), &mut clients).unwrap();
    let before = clients.history().answered();
    assert!(before > 0);
    for node in [1, 2] {
        world.kill(NodeId(node), &mut clients);
    }
    world.run_until(Time::ZERO + Duration::from_secs(3), &mut clients).unwrap();
    assert!(world.replicas().replica(NodeId(1)).is_none(), "it stays down");
    let down = clients.history().answered();
    assert!(down <= before + 1, "{down} after {before}");
    world.restart(NodeId(1));
    world.run_until(Time::ZERO + Duration::from_secs(5), &mut clients).unwrap();
    assert!(clients.history().answered() > down + 10);
}

#[test]
fn a_cut_in_one_direction_is_one_and_traffic_is_counted() {
    let (mut world, mut clients) = world(Duration::from_millis(1));
    world.run_until(Time::ZERO + Duration::from_millis(200), &mut clients).unwrap();
    let links: Vec<_> = [2, 3].map(|to| (NodeId(1), NodeId(to))).into();
    world.cut(&links);
    let before = world.traffic();
    world.run_until(Time::ZERO + Duration::from_secs(2), &mut clients).unwrap();
    world.mend(&links);
    let meanwhile = clients.history().answered();
    world.run_until(Time::ZERO + Duration::from_secs(3), &mut clients).unwrap();
    assert!(clients.history().answered() > meanwhile);
    assert!(world.traffic().messages > before.messages && world.traffic().bytes > before.bytes);
}
