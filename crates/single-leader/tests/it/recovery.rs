//! What a restart makes of a disk on which a crash left more, or less, than a clean end would have.

use std::time::Duration;

use replikit_core::*;
use replikit_log::RecoveryItem;
use replikit_single_leader::{Config, Head, Raft};

use crate::group::*;

const STREAM: StreamId = StreamId::consensus(GROUP);

fn small(config: &mut Config) {
    config.limits.snapshot_log_bytes = 500;
}

/// What a disk holds with a snapshot and a log behind it: the snapshot's end, its chunks, the batches behind it.
fn disk() -> (Position, Vec<RecoveryItem>, Vec<Batch>) {
    let mut group = Group::with(1, small);
    let leader = group.elect();
    let mut written = 0;
    // The last batch may be the very one that the snapshot ends with: write until one lies behind it.
    loop {
        group.write(leader, "x");
        group.run(Duration::from_millis(1));
        written += 1;
        let status = group.nodes[&leader].raft.status();
        if let Some(at) = status.snapshot
            && written > 20
            && status.last.id.index > at.id.index.next()
        {
            let (mut chunks, mut batches) = (Vec::new(), Vec::new());
            for item in group.nodes[&leader].log.recovery() {
                match item {
                    RecoveryItem::Batch(batch) if batch.base() > at.id.index => batches.push(batch),
                    RecoveryItem::Batch(_) => {}
                    chunk => chunks.push(chunk),
                }
            }
            return (at, chunks, batches);
        }
    }
}

fn older(base: LogIndex) -> Batch {
    let meta = BatchMeta {
        cluster: ClusterId::from_name("test"),
        stream: STREAM,
        base,
        term: Term(1),
        prev_digest: 77,
        time: HybridTimestamp(1),
        kind: BatchKind::Commands,
    };
    Batch::build(&meta, std::iter::once((&b"older"[..], None)))
}

fn restart(at: Position, items: impl IntoIterator<Item = RecoveryItem>) -> (Raft<List>, Vec<Action<Head>>) {
    let config = Config::new(ClusterId::from_name("test"), GROUP, node(1), [1, 2, 3].map(node).to_vec(), 1);
    let boot = Boot { snapshot: Some(at), ..Boot::default() };
    let mut raft = Raft::new(config, &boot, List::default()).expect("in range");
    for item in items {
        raft.handle(Now::default(), item.into_input());
    }
    raft.handle(Now::default(), Input::Recovered);
    let actions = std::iter::from_fn(|| raft.poll()).collect();
    (raft, actions)
}

fn failed(actions: &[Action<Head>]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Event { event: Event::StorageFailed, .. }))
}

fn reset_to(actions: &[Action<Head>]) -> Option<LogIndex> {
    actions.iter().find_map(|action| match action {
        Action::Persist { op: Persist::Reset { stream: STREAM, next }, .. } => Some(*next),
        _ => None,
    })
}

/// Found by the simulator (raft, seed 680): the replica took the replaced batch for damage and never answered again.
#[test]
fn a_batch_that_was_replaced_later_is_no_damage_even_if_it_does_not_continue_the_snapshot() {
    let (at, chunks, batches) = disk();
    let last = batches.last().expect("the disk holds batches behind the snapshot").last();
    let replaced = RecoveryItem::Batch(older(at.id.index.next()));
    let log = batches.into_iter().map(RecoveryItem::Batch);
    let (raft, actions) = restart(at, chunks.into_iter().chain([replaced]).chain(log));
    assert!(!failed(&actions), "{actions:?}");
    assert_eq!(raft.last().id, last);
}

#[test]
fn a_gap_in_the_log_behind_the_snapshot_is_damage() {
    let (at, chunks, batches) = disk();
    let log = batches.into_iter().map(RecoveryItem::Batch);
    let beyond = RecoveryItem::Batch(older(at.id.index.plus(99)));
    let (_, actions) = restart(at, chunks.into_iter().chain(log).chain([beyond]));
    assert!(failed(&actions), "{actions:?}");
}

/// Found by the simulator (raft, seed 3644): a crash between an installed snapshot and the reset of the log that it
/// replaced; the next append left a gap in the log.
#[test]
fn a_log_that_ends_before_the_snapshot_is_reset_before_anything_is_appended() {
    let (at, chunks, batches) = disk();
    let (_, ends_before) = restart(at, chunks.clone().into_iter().chain([RecoveryItem::Batch(older(LogIndex(1)))]));
    assert_eq!(reset_to(&ends_before), Some(at.id.index.next()));
    let (_, nothing_left) = restart(at, chunks.clone());
    assert_eq!(reset_to(&nothing_left), Some(at.id.index.next()));
    let (_, whole) = restart(at, chunks.into_iter().chain(batches.into_iter().map(RecoveryItem::Batch)));
    assert_eq!(reset_to(&whole), None, "a log that leads up to the snapshot stays");
}
