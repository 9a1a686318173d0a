//! What becomes of what an owner said, or asked, in an earlier life.

use std::time::Duration;

use replikit_core::{NodeId, Replica, WriteLevel, WriteRequest};

use crate::group::Group;

/// Seed 10220 of multi-leader replication: the next life used the numbers again. Nobody could tell what a life that never was
/// had said from what its successor says.
#[test]
fn nothing_that_counts_by_lives_leaves_before_the_life_is_on_disk() {
    let mut group = Group::new(3, |_| {});
    group.cut.insert((NodeId(3), NodeId(2)));
    group.write(3, WriteRequest::put("k", "v").at(WriteLevel::LeaderDisk));
    group.kill(NodeId(3));
    group.kill(NodeId(1));
    group.starts_stopped.insert(NodeId(1));
    group.start(NodeId(1));
    // Node 2 lacks what node 3 wrote, and node 1 has it.
    group.link_down(1, 3);
    group.run(Duration::from_millis(500));
    let place = &group.places[&NodeId(1)];
    assert_eq!((place.sent, place.replica.deadline()), (0, None), "it waits for its disk and nothing else");
    assert!(group.replica(2).peek(b"k").is_empty());
    group.resume_disk(NodeId(1));
    group.run(Duration::from_millis(300));
    assert_eq!(group.replica(2).peek(b"k"), ["v"]);
    group.assert_agreed();
}
