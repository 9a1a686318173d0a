//! Whole states that are sent instead of writes.

use std::time::Duration;

use replikit_core::{Event, NodeId, ReadLevel, WriteLevel, WriteRequest};

use crate::group::Group;

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::LeaderDisk)
}

fn installed(event: &Event) -> bool {
    matches!(event, Event::SnapshotInstalled { .. })
}

#[test]
fn a_log_that_was_given_up_for_who_is_away_sends_nobody_else_a_snapshot() {
    let mut group = Group::new(3, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.cache_bytes_max = 4 << 10;
    });
    group.isolate(NodeId(3), true);
    for n in 0..400 {
        group.write(1 + n % 2, put(&format!("k{}", n % 100), &format!("value {n}")));
        group.run(Duration::from_millis(10));
    }
    for node in [1, 2] {
        assert_eq!(group.told(node, installed), 0, "node {node}");
        assert_eq!(group.values(node, "k99", ReadLevel::Local), ["value 399"]);
    }
    group.isolate(NodeId(3), false);
    group.run(Duration::from_secs(10));
    assert!(group.told(3, installed) > 0);
    group.assert_agreed();
}

#[test]
fn a_snapshot_above_the_limit_is_refused_and_told_and_only_its_beginning_comes_again() {
    let mut group = Group::new(3, |config| {
        config.limits.snapshot_log_bytes = 4 << 10;
        config.limits.retained_bytes_max = 4 << 10;
        config.limits.snapshot_piece_bytes = 512;
        config.limits.cache_bytes_max = 512;
        if config.node == NodeId(3) {
            config.limits.snapshot_bytes_max = 2 << 10;
        }
    });
    group.isolate(NodeId(3), true);
    for n in 0..400 {
        group.write(1 + n % 2, put(&format!("k{}", n % 100), &format!("value {n}")));
        group.run(Duration::from_millis(10));
    }
    group.isolate(NodeId(3), false);
    group.run(Duration::from_secs(10));
    let told = group.told(3, |event| matches!(event, Event::SnapshotRefused { bytes_max: 2048, .. }));
    assert!((1..=2).contains(&told), "told {told} times within ten seconds");
    assert!(group.pieces < 500, "{} pieces", group.pieces);
    assert!(!group.replica(3).applied().covers(group.replica(1).applied()));
    // The operator raises the limit.
    group.reconfigure(|config| config.limits.snapshot_bytes_max = 1 << 20);
    group.kill(NodeId(3));
    group.start(NodeId(3));
    group.run(Duration::from_secs(10));
    group.assert_agreed();
}
