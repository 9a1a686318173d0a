//! The log without a disk keeps the contract of [`Storage`].

use bytes::Bytes;
use replikit_core::{
    BytesSource, GroupId, LogAnswer, LogId, LogIndex, Persist, Position, SnapshotAnswer, Term, Ticket,
};
use replikit_log::{LogOutput, MemoryLog, RecoveryItem, Storage};

use crate::support::{Writer, batch, outputs, stream};

fn read(log: &mut MemoryLog, from: u64, bytes_max: u32) -> LogAnswer {
    log.read_log(Ticket(9), stream(1, 0), LogIndex(from), bytes_max);
    match outputs(log).pop() {
        Some(LogOutput::LogRead { ticket: Ticket(9), answer, .. }) => answer,
        other => panic!("not the answer of a read: {other:?}"),
    }
}

#[test]
fn what_was_persisted_is_durable_at_once_and_recovered_in_append_order() {
    let (mut log, mut writer) = (MemoryLog::new(), Writer::new());
    let appended = [batch(stream(1, 0), 1, 1, 3, 8), batch(stream(2, 0), 1, 1, 1, 8), batch(stream(1, 0), 4, 1, 2, 8)];
    for batch in &appended {
        writer.append(&mut log, batch.clone());
    }
    let last = writer.persist(&mut log, Persist::Register { group: GroupId(1), bytes: Bytes::from_static(b"vote") });
    assert!(matches!(outputs(&mut log)[..], [LogOutput::Durable { up_to }] if up_to == last));
    log.restart();
    let recovered: Vec<_> = log
        .recovery()
        .map(|item| match item {
            RecoveryItem::Batch(batch) => batch,
            RecoveryItem::SnapshotChunk { .. } => panic!("there is no snapshot"),
        })
        .collect();
    assert_eq!(recovered, appended);
    assert_eq!(&log.boots().of(GroupId(1)).register[..], b"vote");
    assert_eq!(log.boots().of(GroupId(7)).incarnation, 1, "an unknown group still learns of the unclean start");
}

#[test]
fn a_replaced_suffix_is_gone_and_released_entries_are_compacted() {
    let (mut log, mut writer) = (MemoryLog::new(), Writer::new());
    for base in [1, 3, 5] {
        writer.append(&mut log, batch(stream(1, 0), base, 1, 2, 8));
    }
    let winner = batch(stream(1, 0), 3, 2, 1, 8);
    writer.persist(&mut log, Persist::Append { batch: winner.clone(), replace: true });
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(3) });
    assert!(matches!(read(&mut log, 2, 1), LogAnswer::Compacted { first: LogIndex(3) }));
    match read(&mut log, 3, 1000) {
        LogAnswer::Batches(batches) => assert_eq!(batches.as_slice(), [winner]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(read(&mut log, 4, 1000), LogAnswer::Batches(batches) if batches.is_empty()));
}

#[test]
fn a_snapshot_in_chunks_reads_back_whole_and_replaces_the_older_one() {
    let (mut log, mut writer) = (MemoryLog::new(), Writer::new());
    let at = |index| Position { stream: stream(1, 0), id: LogId { term: Term(1), index: LogIndex(index) }, digest: 5 };
    let source = Box::new(BytesSource::new(Bytes::from_static(b"old")));
    writer.persist(&mut log, Persist::Snapshot { at: at(2), source });
    for (offset, chunk, last) in [(0, &b"abc"[..], false), (3, b"de", true)] {
        let chunk = Bytes::from_static(chunk);
        writer.persist(&mut log, Persist::SnapshotChunk { at: at(9), offset, chunk, last });
    }
    log.read_snapshot(Ticket(1), GroupId(1), None, 2, 2);
    log.read_snapshot(Ticket(2), GroupId(1), Some(at(2)), 0, 2);
    let answers = outputs(&mut log);
    let [
        LogOutput::Durable { .. },
        LogOutput::SnapshotRead { answer: middle, .. },
        LogOutput::SnapshotRead { answer: old, .. },
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert!(matches!(middle, SnapshotAnswer::Chunk { offset: 2, chunk, last: false, .. } if &chunk[..] == b"cd"));
    assert!(matches!(old, SnapshotAnswer::Gone));
    let Some(RecoveryItem::SnapshotChunk { at: found, chunk, last: true }) = log.recovery().next() else {
        panic!("the snapshot is recovered first")
    };
    assert_eq!((found, &chunk[..]), (at(9), &b"abcde"[..]));
}
