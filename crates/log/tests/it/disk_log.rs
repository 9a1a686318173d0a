//! The log on a disk, rule by rule.

use bytes::Bytes;
use replikit_core::{
    Batch, Batches, BytesSource, ClusterId, GroupId, LogAnswer, LogId, LogIndex, NodeId, Persist, Position,
    SnapshotAnswer, StorageEvent, Term, Ticket, WriteId,
};
use replikit_log::{
    ConfigError, Disk, DiskAnswer, DiskError, DiskOp, FileId, FileName, Log, LogConfig, LogEvent, LogOutput, MemDisk,
    OpenError, Recovered, RecoveryItem, Storage, Tail, drive, dump, lost_suffix, verify,
};

use crate::support::{Writer, batch, cluster, outputs, stream};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes_min: 64 << 10,
        segment_bytes_max: 256 << 10,
        cache_bytes_max: 0,
        ..LogConfig::new(cluster(), NodeId(1))
    }
}

fn open(disk: &mut MemDisk) -> (Log, Recovered) {
    Log::open(config(), disk).expect("the log opens")
}

fn recovered(log: &Log, disk: &mut MemDisk) -> Vec<Batch> {
    log.recovery(disk)
        .filter_map(|item| match item.expect("what was verified is read") {
            RecoveryItem::Batch(batch) => Some(batch),
            RecoveryItem::SnapshotChunk { .. } => None,
        })
        .collect()
}

fn durable(outputs: &[LogOutput]) -> Option<WriteId> {
    outputs
        .iter()
        .filter_map(|output| if let LogOutput::Durable { up_to } = output { Some(*up_to) } else { None })
        .next_back()
}

fn read(log: &mut Log, disk: &mut MemDisk, from: u64, bytes_max: u32) -> (LogAnswer, Vec<LogOutput>) {
    log.read_log(Ticket(1), stream(1, 0), LogIndex(from), bytes_max);
    drive(log, disk);
    let mut rest = outputs(log);
    let at = rest.iter().position(|output| matches!(output, LogOutput::LogRead { .. })).expect("a read is answered");
    match rest.remove(at) {
        LogOutput::LogRead { answer, .. } => (answer, rest),
        _ => unreachable!("it was just found"),
    }
}

fn batches(answer: LogAnswer) -> Vec<Batch> {
    match answer {
        LogAnswer::Batches(batches) => batches.into_iter().collect(),
        other => panic!("not batches: {other:?}"),
    }
}

fn segments(disk: &MemDisk) -> Vec<FileName> {
    disk.names().filter(|name| name.as_str().starts_with("seg-")).cloned().collect()
}

fn find(disk: &MemDisk, name: &FileName, bytes: &[u8]) -> u64 {
    let file = disk.bytes(name).expect("the file is there");
    let at = file.windows(bytes.len()).position(|window| window == bytes);
    at.expect("the bytes stand in the file") as u64
}

#[test]
fn a_lone_writer_pays_one_write_and_one_sync() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    for base in 1..=10 {
        let (operations, syncs) = (disk.operations(), disk.syncs());
        let id = writer.append(&mut log, batch(stream(1, 0), base, 1, 1, 256));
        drive(&mut log, &mut disk);
        assert_eq!(durable(&outputs(&mut log)), Some(id));
        assert_eq!((disk.operations() - operations, disk.syncs() - syncs), (2, 1));
    }
}

#[test]
fn what_comes_while_a_group_is_being_written_shares_the_next_sync() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    let first = writer.append(&mut log, batch(stream(1, 0), 1, 1, 1, 8));
    let (write, sync) = (log.poll_disk().expect("a write"), log.poll_disk().expect("a sync"));
    assert!(log.poll_disk().is_none(), "one group at a time");
    let last = (2..100).map(|base| writer.append(&mut log, batch(stream(1, 0), base, 1, 1, 8))).last();
    for (id, op) in [write, sync] {
        assert_eq!(durable(&outputs(&mut log)), None);
        let result = disk.execute(op);
        log.complete(id, result);
    }
    assert_eq!(durable(&outputs(&mut log)), Some(first));
    let syncs = disk.syncs();
    drive(&mut log, &mut disk);
    assert_eq!((durable(&outputs(&mut log)), disk.syncs() - syncs), (last, 1));
}

#[test]
fn old_batches_are_read_from_the_disk_and_released_ones_are_compacted() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let written: Vec<Batch> = (0..40).map(|n| batch(stream(1, 0), 1 + n * 3, 1, 3, 900)).collect();
    for batch in &written {
        writer.append(&mut log, batch.clone());
        drive(&mut log, &mut disk);
    }
    assert_eq!(batches(read(&mut log, &mut disk, 5, 1).0), [written[1].clone()], "at least one batch");
    let some = batches(read(&mut log, &mut disk, 4, 10_000).0);
    assert_eq!(some, written[1..1 + some.len()]);
    assert!(some.len() > 1 && some.iter().map(Batch::bytes).sum::<usize>() <= 10_000);
    assert!(batches(read(&mut log, &mut disk, 121, 100).0).is_empty(), "past the end");
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(8) });
    let (answer, _) = read(&mut log, &mut disk, 4, 100);
    assert!(matches!(answer, LogAnswer::Compacted { first: LogIndex(7) }), "the batch that holds 8 stays: {answer:?}");
}

#[test]
fn segments_are_recycled_and_an_idle_stream_pins_none() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let idle = batch(stream(9, 0), 1, 1, 2, 700);
    writer.append(&mut log, idle.clone());
    let mut most = 0;
    for n in 0..2000_u64 {
        writer.append(&mut log, batch(stream(1, 0), 1 + n, 1, 1, 3000));
        drive(&mut log, &mut disk);
        if n % 10 == 9 {
            writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(n) });
        }
        most = most.max(log.segment_bytes());
    }
    assert!(most <= 6 * (256 << 10), "6 MB of released batches took {most} bytes of segments");
    assert_eq!(durable(&outputs(&mut log)), Some(WriteId(2201)));
    disk.crash(&mut || false);
    let (log, found) = open(&mut disk);
    let left = recovered(&log, &mut disk);
    assert_eq!(left[0], idle, "the oldest append comes first, wherever it stands");
    assert!(left[1..].iter().map(|batch| batch.base().0).eq(1999..=2000) || left.len() > 3);
    assert!(found.events.is_empty(), "recycled bytes are not taken for a torn tail: {:?}", found.events);
}

#[test]
fn a_batch_larger_than_a_segment_gets_a_segment_of_its_size() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let large = batch(stream(1, 0), 1, 1, 1, 3 << 20);
    let id = writer.append(&mut log, large.clone());
    drive(&mut log, &mut disk);
    assert_eq!(durable(&outputs(&mut log)), Some(id));
    disk.crash(&mut || false);
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk), [large]);
}

#[test]
fn a_replaced_suffix_is_kept_in_a_file_and_never_comes_back() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let old: Vec<Batch> = [1, 3, 5].map(|base| batch(stream(1, 0), base, 1, 2, 100)).to_vec();
    for batch in &old {
        writer.append(&mut log, batch.clone());
        drive(&mut log, &mut disk);
    }
    let new = batch(stream(1, 0), 3, 2, 1, 100);
    writer.persist(&mut log, Persist::Append { batch: new.clone(), replace: true });
    drive(&mut log, &mut disk);
    let kept = outputs(&mut log).into_iter().find_map(|output| match output {
        LogOutput::Event(LogEvent::LostKept { range, term, file, .. }) => Some((range, term, file)),
        _ => None,
    });
    let (range, term, file) = kept.expect("the log says that it kept the suffix");
    assert_eq!((range, term), (LogIndex(3)..=LogIndex(6), Term(1)));
    disk.crash(&mut || false);
    let suffix = lost_suffix(&mut disk, &file).expect("the file is there");
    assert_eq!(suffix, Some((stream(1, 0), old[1..].to_vec())));
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk), [old[0].clone(), new]);
}

#[test]
fn registers_survive_compaction_and_the_latest_wins() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    for vote in [&b"first"[..], b"second"] {
        writer.persist(&mut log, Persist::Register { group: GroupId(4), bytes: Bytes::copy_from_slice(vote) });
        drive(&mut log, &mut disk);
    }
    for n in 0..400_u64 {
        writer.append(&mut log, batch(stream(1, 0), 1 + n, 1, 1, 3000));
        writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(n) });
        drive(&mut log, &mut disk);
    }
    disk.crash(&mut || false);
    let (_, found) = open(&mut disk);
    assert_eq!(&found.boots.of(GroupId(4)).register[..], b"second");
}

#[test]
fn a_vote_survives_damage_to_its_own_group() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    writer.append(&mut log, batch(stream(4, 0), 1, 1, 1, 50));
    drive(&mut log, &mut disk);
    writer.persist(&mut log, Persist::Register { group: GroupId(4), bytes: Bytes::from_static(b"vote") });
    drive(&mut log, &mut disk);
    assert_eq!(durable(&outputs(&mut log)), Some(WriteId(2)));
    disk.crash(&mut || false);
    let name = segments(&disk)[0].clone();
    let vote = find(&disk, &name, b"vote");
    disk.damage(&name, vote, b"veto");
    let (log, found) = open(&mut disk);
    assert_eq!(&found.boots.of(GroupId(4)).register[..], b"vote", "from the second copy");
    assert_eq!(found.boots.of(GroupId(4)).tail_cut, [stream(4, 0)], "whatever else the group held is gone");
    assert!(matches!(found.events[..], [LogEvent::TailCut { .. }]), "{:?}", found.events);
    assert_eq!(recovered(&log, &mut disk).len(), 1);
}

#[test]
fn a_torn_tail_is_cut_told_and_stays_cut() {
    let mut disk = MemDisk::with_sectors(4096);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let first = batch(stream(1, 0), 1, 1, 1, 50);
    writer.append(&mut log, first.clone());
    drive(&mut log, &mut disk);
    writer.append(&mut log, batch(stream(2, 0), 1, 1, 4, 9000));
    let (_, write) = log.poll_disk().expect("a write");
    disk.execute(write).expect("it is written, not synced");
    let mut sector = 0;
    disk.crash(&mut || {
        sector += 1;
        sector != 3
    });
    let (log, found) = open(&mut disk);
    assert_eq!(found.boots.of(GroupId(2)).tail_cut, [stream(2, 0)], "the torn group names its streams");
    assert_eq!(found.boots.of(GroupId(1)).tail_cut, [], "and no others");
    assert_eq!(found.boots.incarnation(), 1);
    assert_eq!(recovered(&log, &mut disk), std::slice::from_ref(&first));
    drop(log);
    let (mut log, found) = open(&mut disk);
    assert_eq!(found.boots.of(GroupId(2)).tail_cut, [stream(2, 0)], "the replica may have crashed before it took note");
    assert_eq!(found.events, [], "the operator was told");
    assert_eq!(recovered(&log, &mut disk), std::slice::from_ref(&first));
    let mut writer = Writer::new();
    writer.persist(&mut log, Persist::Register { group: GroupId(2), bytes: Bytes::from_static(b"I was cut") });
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    for _ in 0..2 {
        let (log, found) = open(&mut disk);
        assert_eq!(found.boots.of(GroupId(2)).tail_cut, [], "now its register says so");
        assert_eq!(recovered(&log, &mut disk), std::slice::from_ref(&first));
    }
}

/// Groups of one batch each, across several segments, all durable; with the disk.
fn durable_log() -> (MemDisk, Vec<Batch>) {
    let mut disk = MemDisk::with_sectors(4096);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let written: Vec<Batch> = (0..60).map(|n| batch(stream(1 + n as u32 % 2, 0), 1 + n / 2 * 2, 1, 2, 1500)).collect();
    for batch in &written {
        writer.append(&mut log, batch.clone());
        drive(&mut log, &mut disk);
    }
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    assert!(segments(&disk).len() > 2, "the log spans several segments");
    (disk, written)
}

#[test]
fn damage_to_what_was_durable_refuses_to_start_names_the_entries_and_changes_nothing() {
    let (disk, written) = durable_log();
    for damaged in [0, 1, 20, written.len() - 2] {
        let batch = &written[damaged];
        let mut disk = disk.clone();
        let header = &batch.as_bytes()[..64];
        let name = segments(&disk)
            .into_iter()
            .find(|name| disk.bytes(name).expect("it is there").windows(64).any(|window| window == header));
        let name = name.expect("the batch stands in a segment");
        let at = find(&disk, &name, header);
        let byte = disk.bytes(&name).expect("it is there")[at as usize + 100];
        disk.damage(&name, at + 100, &[byte ^ 4]);
        let before: Vec<_> = disk.names().map(|name| (name.clone(), disk.bytes(name).map(<[u8]>::to_vec))).collect();
        let error = Log::open(config(), &mut disk).expect_err("damage to durable entries refuses to start");
        let OpenError::Corrupt(found) = &error else { panic!("{error}") };
        assert_eq!(found.file, name);
        assert!(found.bytes.contains(&at), "{error}");
        let entries = (batch.stream(), batch.range());
        assert_eq!(found.entries, [entries], "{error}");
        let after: Vec<_> = disk.names().map(|name| (name.clone(), disk.bytes(name).map(<[u8]>::to_vec))).collect();
        assert_eq!(before, after, "nothing was changed");
        let report = verify(&mut disk).expect("a damaged log can be looked at");
        assert_eq!(report.damage.len(), 1, "{report}");
        let mut text = String::new();
        dump(&mut disk, &mut text).expect("a damaged log can be dumped");
        assert!(text.contains("checksum does not match"), "{text}");
    }
}

#[test]
fn any_flipped_bit_of_a_durable_log_is_harmless_or_refused_never_a_shorter_log() {
    let (disk, written) = durable_log();
    let mut whole = disk.clone();
    let (log, _) = open(&mut whole);
    let all = recovered(&log, &mut whole);
    assert_eq!(all, written);
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut refused, mut harmless, mut cut) = (0, 0, 0);
    for _ in 0..400 {
        let mut disk = disk.clone();
        let names: Vec<FileName> = disk.names().cloned().collect();
        let name = &names[rng.usize(..names.len())];
        let bytes = disk.bytes(name).expect("it is there");
        let at = rng.usize(..bytes.len());
        let flipped = bytes[at] ^ 1 << rng.u32(..8);
        disk.damage(name, at as u64, &[flipped]);
        match Log::open(config(), &mut disk) {
            Err(OpenError::Corrupt(_)) => refused += 1,
            Err(other) => panic!("{other}"),
            Ok((log, found)) => {
                let left = recovered(&log, &mut disk);
                if left == all {
                    harmless += 1;
                } else {
                    // The very last group: nothing proves it durable, so its loss is told.
                    assert_eq!(left, all[..all.len() - 1]);
                    assert!(!found.boots.of(written[written.len() - 1].stream().group).tail_cut.is_empty());
                    cut += 1;
                }
            }
        }
    }
    assert!(refused > 50 && harmless > 50 && cut > 0, "{refused} refused, {harmless} harmless, {cut} cut");
}

#[test]
fn a_missing_segment_refuses_to_start() {
    let (mut disk, _) = durable_log();
    let names = segments(&disk);
    disk.execute(DiskOp::Remove { name: names[1].clone() }).expect("it is there");
    let error = Log::open(config(), &mut disk).expect_err("a segment is missing");
    assert!(matches!(error, OpenError::Corrupt(_)), "{error}");
}

#[test]
fn one_damaged_copy_of_a_header_is_told_and_survived() {
    let (mut disk, written) = durable_log();
    let name = segments(&disk)[1].clone();
    disk.damage(&name, 4096 + 20, &[0xff; 8]);
    let (log, found) = open(&mut disk);
    assert!(found.events.contains(&LogEvent::CopyDamaged { file: name, offset: 4096 }), "{:?}", found.events);
    assert_eq!(recovered(&log, &mut disk), written);
}

#[test]
fn another_clusters_nodes_or_versions_log_is_left_alone() {
    let (disk, _) = durable_log();
    let other = ClusterId::from_name("other");
    let wrong = LogConfig { cluster: other, ..config() };
    let error = Log::open(wrong, &mut disk.clone()).expect_err("another cluster");
    assert_eq!(error, OpenError::WrongCluster { found: cluster(), expected: other });
    let wrong = LogConfig { node: NodeId(9), ..config() };
    let error = Log::open(wrong, &mut disk.clone()).expect_err("another node");
    assert_eq!(error, OpenError::WrongNode { found: NodeId(1), expected: NodeId(9) });
    let mut newer = disk.clone();
    let name = segments(&newer)[0].clone();
    for copy in [0_u32, 1] {
        let at = copy as usize * 4096;
        let mut header = newer.bytes(&name).expect("it is there")[at..at + 64].to_vec();
        header[6] = 9;
        let mut sum = crc32fast::Hasher::new_with_initial(copy);
        sum.update(&header[4..]);
        header[..4].copy_from_slice(&sum.finalize().to_le_bytes());
        newer.damage(&name, at as u64, &header);
    }
    let error = Log::open(config(), &mut newer).expect_err("a newer version");
    assert_eq!(error, OpenError::NewerVersion { file: name, found: 9, supported: 1 });
    for error in [&error, &OpenError::WrongNode { found: NodeId(1), expected: NodeId(9) }] {
        assert_eq!(error.to_string().lines().count(), 1, "one line says what and what to do");
    }
}

fn at(index: u64) -> Position {
    Position { stream: stream(1, 0), id: LogId { term: Term(1), index: LogIndex(index) }, digest: 3 }
}

#[test]
fn a_release_waits_for_the_snapshot_before_it_and_appends_do_not() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let written: Vec<Batch> = (0..5).map(|n| batch(stream(1, 0), 1 + n, 1, 1, 100)).collect();
    for batch in &written {
        writer.append(&mut log, batch.clone());
    }
    drive(&mut log, &mut disk);
    let image: Bytes = (0..900_000_u32).map(|n| n as u8).collect::<Vec<u8>>().into();
    let source = Box::new(BytesSource::new(image.clone()));
    writer.persist(&mut log, Persist::Snapshot { at: at(5), source });
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(6) });
    let last = writer.append(&mut log, batch(stream(2, 0), 1, 1, 1, 10));
    for _ in 0..2 {
        let (id, op) = log.poll_disk().expect("the group's write and sync");
        let result = disk.execute(op);
        log.complete(id, result);
    }
    assert_eq!(durable(&outputs(&mut log)), Some(last), "the append did not wait for the snapshot");
    let mut torn = disk.clone();
    torn.crash(&mut || true);
    let (old, found) = open(&mut torn);
    assert_eq!(found.boots.of(GroupId(1)).snapshot, None);
    assert_eq!(recovered(&old, &mut torn).len(), 6, "nothing was released before the snapshot was durable");

    drive(&mut log, &mut disk);
    let told = outputs(&mut log);
    let durable_at = LogEvent::SnapshotDurable { at: at(5), snapshot_bytes: 900_000 };
    assert!(told.iter().any(|output| matches!(output, LogOutput::Event(event) if *event == durable_at)), "{told:?}");
    assert!(matches!(read(&mut log, &mut disk, 2, 100).0, LogAnswer::Compacted { first: LogIndex(6) }));
    let (mut pieces, mut offset) = (Vec::new(), 0);
    loop {
        log.read_snapshot(Ticket(3), GroupId(1), Some(at(5)), offset, 200_000);
        drive(&mut log, &mut disk);
        let Some(LogOutput::SnapshotRead { answer: SnapshotAnswer::Chunk { chunk, last, .. }, .. }) =
            outputs(&mut log).pop()
        else {
            panic!("the snapshot can be read")
        };
        offset += chunk.len() as u64;
        pieces.extend_from_slice(&chunk);
        if last {
            break;
        }
    }
    assert_eq!(pieces, image);
    log.read_snapshot(Ticket(4), GroupId(1), Some(at(4)), 0, 10);
    assert!(matches!(outputs(&mut log)[..], [LogOutput::SnapshotRead { answer: SnapshotAnswer::Gone, .. }]));
}

#[test]
fn a_release_behind_a_snapshot_that_failed_does_not_take_effect_with_an_earlier_one() {
    // Found by the crash test of failed operations, seed 398.
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    for n in 0..9 {
        writer.append(&mut log, batch(stream(1, 0), 1 + n, 1, 1, 100));
    }
    drive(&mut log, &mut disk);
    let image = Bytes::from(vec![1; 2_000_000]);
    writer.persist(&mut log, Persist::Snapshot { at: at(3), source: Box::new(BytesSource::new(image)) });
    let small = Box::new(BytesSource::new(Bytes::from_static(b"small")));
    writer.persist(&mut log, Persist::Snapshot { at: at(8), source: small });
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(9) });
    // The jobs take turns; the second one's file cannot be created.
    let mut created = 0;
    while let Some((id, op)) = log.poll_disk() {
        created += u32::from(matches!(op, DiskOp::Create { .. }));
        let fails = matches!(op, DiskOp::Create { .. }) && created == 2;
        let result = if fails { Err(DiskError::NoSpace) } else { disk.execute(op) };
        log.complete(id, result);
    }
    assert_eq!(created, 2);
    assert!(!log.is_failed());
    let events = outputs(&mut log);
    let durable_at = |index| LogEvent::SnapshotDurable { at: at(index), snapshot_bytes: 2_000_000 };
    assert!(events.iter().any(|output| matches!(output, LogOutput::Event(event) if *event == durable_at(3))));
    assert_eq!(batches(read(&mut log, &mut disk, 4, 1).0).len(), 1, "no durable snapshot holds entry 4");
}

#[test]
fn nothing_behind_a_received_snapshot_is_durable_before_it() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    let chunk =
        |offset: u64, last| Persist::SnapshotChunk { at: at(50), offset, chunk: Bytes::from(vec![7; 1000]), last };
    let first = writer.persist(&mut log, chunk(0, false));
    assert_eq!(durable(&outputs(&mut log)), Some(first), "an unfinished snapshot promises nothing");
    writer.persist(&mut log, chunk(1000, true));
    writer.persist(&mut log, Persist::Reset { stream: stream(1, 0), next: LogIndex(51) });
    let last = writer.append(&mut log, batch(stream(1, 0), 51, 1, 1, 10));
    let mut renamed = false;
    while let Some((id, op)) = log.poll_disk() {
        let is_segment = matches!(&op, DiskOp::Write { file, .. } if *file == FileId(1));
        assert!(renamed || !is_segment, "the reset is not written before the snapshot is durable");
        renamed |= matches!(&op, DiskOp::Rename { to, .. } if to.as_str().starts_with("snap-"));
        let result = disk.execute(op);
        log.complete(id, result);
    }
    assert_eq!(durable(&outputs(&mut log)), Some(last));
    disk.crash(&mut || false);
    let (log, found) = open(&mut disk);
    assert_eq!(found.boots.of(GroupId(1)).snapshot, Some(at(50)));
    assert_eq!(recovered(&log, &mut disk).len(), 1);
}

#[test]
fn the_later_of_two_snapshots_wins_whatever_their_positions() {
    // A group with many streams: found by the simulator (register-log, seed 37).
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let positions = [(stream(1, 3), 7, 900), (stream(1, 4), 2, 5), (stream(1, 4), 2, 4)];
    for (stream, term, index) in positions {
        let at = Position { stream, id: LogId { term: Term(term), index: LogIndex(index) }, digest: 0 };
        let source = Box::new(BytesSource::new(Bytes::from(index.to_string())));
        writer.persist(&mut log, Persist::Snapshot { at, source });
        while let Some((id, op)) = log.poll_disk() {
            // The older ones are still there when the power fails.
            let result = if matches!(op, DiskOp::Remove { .. }) { Ok(DiskAnswer::Done) } else { disk.execute(op) };
            log.complete(id, result);
        }
        let mut crashed = disk.clone();
        crashed.crash(&mut || false);
        let (_, found) = open(&mut crashed);
        assert_eq!(found.boots.of(GroupId(1)).snapshot, Some(at));
        let snapshots = crashed.names().filter(|name| name.as_str().starts_with("snap-")).count();
        assert_eq!(snapshots, 1, "the older ones are gone");
    }
}

/// Found by the simulator (raft-log, seed 2068): the refusal told the operator to use a newer program.
#[test]
fn a_rotted_version_of_a_snapshot_is_damage_and_no_newer_version() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let source = Box::new(BytesSource::new(Bytes::from_static(b"state")));
    Writer::new().persist(&mut log, Persist::Snapshot { at: at(5), source });
    drive(&mut log, &mut disk);
    let name = disk.names().find(|name| name.as_str().starts_with("snap-")).expect("it is durable").clone();
    disk.damage(&name, 6, &[201]);
    let error = Log::open(config(), &mut disk).expect_err("a snapshot is damaged");
    assert!(matches!(&error, OpenError::Corrupt(damage) if damage.file == name), "{error}");
}

#[test]
fn a_received_snapshot_wins_over_one_taken_while_it_was_coming_in() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let half = |offset, last| Persist::SnapshotChunk { at: at(60), offset, chunk: Bytes::from_static(b"half"), last };
    writer.persist(&mut log, half(0, false));
    let source = Box::new(BytesSource::new(Bytes::from_static(b"own")));
    writer.persist(&mut log, Persist::Snapshot { at: at(50), source });
    drive(&mut log, &mut disk);
    writer.persist(&mut log, half(4, true));
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    let (_, found) = open(&mut disk);
    assert_eq!(found.boots.of(GroupId(1)).snapshot, Some(at(60)));
}

#[test]
fn the_same_snapshot_taken_twice_is_there_once() {
    // Found by the crash test of closed logs, seed 96: the first to be asked for finished last and was dropped by its
    // name, which was the second one's as well.
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    for bytes in [2_000_000, 5] {
        let source = Box::new(BytesSource::new(Bytes::from(vec![1; bytes])));
        writer.persist(&mut log, Persist::Snapshot { at: at(50), source });
    }
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    let (_, found) = open(&mut disk);
    assert_eq!(found.boots.of(GroupId(1)).snapshot, Some(at(50)));
}

#[test]
fn a_snapshot_that_begins_anew_drops_the_unfinished_one() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    let big = Bytes::from(vec![1; 600_000]);
    writer.persist(&mut log, Persist::SnapshotChunk { at: at(5), offset: 0, chunk: big, last: false });
    drive(&mut log, &mut disk);
    let new = Bytes::from_static(b"whole");
    let id = writer.persist(&mut log, Persist::SnapshotChunk { at: at(9), offset: 0, chunk: new, last: true });
    drive(&mut log, &mut disk);
    assert_eq!(durable(&outputs(&mut log)), Some(id));
    let other: Vec<&FileName> = disk.names().filter(|name| !name.as_str().starts_with("seg-")).collect();
    assert!(matches!(other[..], [name] if name.as_str().starts_with("snap-")), "{other:?}");
}

#[test]
fn a_failed_sync_poisons_the_log() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    let good = writer.append(&mut log, batch(stream(1, 0), 1, 1, 1, 10));
    drive(&mut log, &mut disk);
    assert_eq!(durable(&outputs(&mut log)), Some(good));
    writer.append(&mut log, batch(stream(1, 0), 2, 1, 1, 10));
    disk.fail_at(disk.operations() + 2, DiskError::Io { code: 5 });
    drive(&mut log, &mut disk);
    let told = outputs(&mut log);
    assert!(
        matches!(told[..], [LogOutput::Event(LogEvent::Failed { .. }), LogOutput::Storage(StorageEvent::Failed)]),
        "{told:?}"
    );
    writer.append(&mut log, batch(stream(1, 0), 3, 1, 1, 10));
    assert!(log.poll_disk().is_none() && log.is_failed(), "no retry");
    assert!(outputs(&mut log).is_empty(), "and no further confirmation");
}

#[test]
fn what_the_page_cache_shows_after_a_failed_sync_is_written_again_before_it_counts() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    drive(&mut log, &mut disk);
    let mut writer = Writer::new();
    let unsynced = batch(stream(1, 0), 1, 1, 1, 10);
    writer.append(&mut log, unsynced.clone());
    disk.fail_at(disk.operations() + 2, DiskError::Io { code: 5 });
    drive(&mut log, &mut disk);
    // The process ends, the machine does not: the bytes are in the page cache only, and the kernel calls them clean.
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk), std::slice::from_ref(&unsynced));
    disk.crash(&mut || false);
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk), [unsynced], "what was recovered once is durable");
}

#[test]
fn a_full_disk_is_told_early_survived_and_only_then_fatal() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    disk.limit_bytes(Some(80 << 10));
    let mut writer = Writer::new();
    let mut told = Vec::new();
    let mut last = None;
    for n in 0..100_u64 {
        writer.append(&mut log, batch(stream(1, 0), 1 + n, 1, 1, 3000));
        drive(&mut log, &mut disk);
        let new = outputs(&mut log);
        last = durable(&new).or(last);
        told.extend(new.into_iter().filter(|output| !matches!(output, LogOutput::Durable { .. })));
        if log.is_failed() {
            break;
        }
    }
    let slow = told.iter().position(|output| matches!(output, LogOutput::Storage(StorageEvent::Slow)));
    let failed = told.iter().position(|output| matches!(output, LogOutput::Storage(StorageEvent::Failed)));
    assert!(slow.is_some() && failed.is_some() && slow < failed, "{told:?}");
    let last = last.expect("there was room for some").0;
    assert!(last > 5, "what fits the first segment was written: {last}");
    disk.crash(&mut || false);
    disk.limit_bytes(None);
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk).len() as u64, last);
}

#[test]
fn a_full_disk_that_gets_space_again_goes_on() {
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    disk.limit_bytes(Some(80 << 10));
    let mut writer = Writer::new();
    for n in 0..100_u64 {
        let id = writer.append(&mut log, batch(stream(1, 0), 1 + n, 1, 1, 3000));
        drive(&mut log, &mut disk);
        assert_eq!(durable(&outputs(&mut log)), Some(id));
        if n == 5 {
            disk.limit_bytes(None);
        }
    }
}

#[test]
fn a_batch_that_rots_while_the_log_runs_is_faulty_not_fatal() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    let written: Vec<Batch> = (0..3).map(|n| batch(stream(1, 0), 1 + n * 2, 1, 2, 500)).collect();
    for batch in &written {
        writer.append(&mut log, batch.clone());
        drive(&mut log, &mut disk);
    }
    let name = segments(&disk)[0].clone();
    let rotten = find(&disk, &name, &written[1].as_bytes()[..64]);
    disk.damage(&name, rotten + 70, &[0; 16]);
    outputs(&mut log);
    assert_eq!(batches(read(&mut log, &mut disk, 1, 10_000).0), [written[0].clone()], "up to the rotten one");
    let (answer, told) = read(&mut log, &mut disk, 3, 10_000);
    let range = LogIndex(3)..=LogIndex(4);
    assert!(matches!(answer, LogAnswer::Faulty(found) if found == range));
    let event = StorageEvent::Faulty { stream: stream(1, 0), range };
    assert!(told.iter().any(|output| matches!(output, LogOutput::Storage(told) if *told == event)), "{told:?}");
    assert_eq!(batches(read(&mut log, &mut disk, 5, 10_000).0), [written[2].clone()]);
}

fn tail(log: &mut Log, disk: &mut MemDisk, id: replikit_log::SubscriptionId, committed: u64) -> Tail {
    log.tail(id, LogIndex(committed), 1 << 20);
    drive(log, disk);
    let tails = outputs(log).into_iter().filter_map(|output| match output {
        LogOutput::Tail { tail, .. } => Some(tail),
        _ => None,
    });
    let mut tails: Vec<Tail> = tails.collect();
    assert_eq!(tails.len(), 1);
    tails.remove(0)
}

#[test]
fn a_cursor_sees_committed_durable_batches_once_and_holds_back_a_bounded_part_of_the_log() {
    let mut disk = MemDisk::new();
    let config = LogConfig { retained_bytes_max: 20_000, ..config() };
    let (mut log, _) = Log::open(config, &mut disk).expect("it opens");
    let mut writer = Writer::new();
    let written: Vec<Batch> = (0..20).map(|n| batch(stream(1, 0), 1 + n * 2, 1, 2, 2000)).collect();
    let cursor = log.subscribe(stream(1, 0), LogIndex(1));
    writer.append(&mut log, written[0].clone());
    log.tail(cursor, LogIndex(2), 1 << 20);
    let tails = outputs(&mut log);
    assert!(
        matches!(tails[..], [LogOutput::Tail { tail: Tail::Batches(Batches::None), .. }]),
        "not durable: {tails:?}"
    );
    drive(&mut log, &mut disk);
    assert!(matches!(tail(&mut log, &mut disk, cursor, 1), Tail::Batches(Batches::None)), "half of it is committed");
    for batch in &written[1..] {
        writer.append(&mut log, batch.clone());
        drive(&mut log, &mut disk);
    }
    outputs(&mut log);
    match tail(&mut log, &mut disk, cursor, 5) {
        Tail::Batches(batches) => assert_eq!(batches.as_slice(), &written[..2], "whole batches up to the commit index"),
        other => panic!("{other:?}"),
    }
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(9) });
    match tail(&mut log, &mut disk, cursor, 9) {
        Tail::Batches(batches) => assert_eq!(batches.as_slice(), &written[2..4], "held back for the cursor"),
        other => panic!("{other:?}"),
    }
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(37) });
    let Tail::Lagged { first } = tail(&mut log, &mut disk, cursor, 40) else { panic!("it held back more than it may") };
    assert!(first > LogIndex(9) && first < LogIndex(37), "{first}");
    match tail(&mut log, &mut disk, cursor, 40) {
        Tail::Batches(batches) => assert_eq!(batches.as_slice(), &written[(first.0 as usize - 1) / 2..]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(read(&mut log, &mut disk, 36, 10).0, LogAnswer::Compacted { first: LogIndex(37) }));
}

#[test]
fn a_snapshot_ahead_of_its_stream_voids_it() {
    // The crash comes between the snapshot and the record of it.
    let mut disk = MemDisk::with_sectors(512);
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    writer.append(&mut log, batch(stream(1, 0), 1, 1, 4, 10));
    drive(&mut log, &mut disk);
    let chunk = Bytes::from_static(b"image");
    writer.persist(&mut log, Persist::SnapshotChunk { at: at(9), offset: 0, chunk, last: true });
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    let (mut log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk), []);
    let mut writer = Writer::new();
    writer.append(&mut log, batch(stream(1, 0), 10, 2, 1, 10));
    drive(&mut log, &mut disk);
    disk.crash(&mut || false);
    let (log, _) = open(&mut disk);
    assert_eq!(recovered(&log, &mut disk).len(), 1);
}

#[test]
fn the_report_counts_what_is_there() {
    let (mut disk, written) = durable_log();
    let report = verify(&mut disk).expect("it can be read");
    assert!(report.damage.is_empty() && !report.closed);
    assert_eq!(report.segments.iter().map(|segment| segment.batches).sum::<u64>(), written.len() as u64);
    assert_eq!(report.streams.len(), 2);
    assert_eq!((report.streams[0].first.0, report.streams[0].next.0), (0, 61));
    assert!(report.to_string().ends_with("sound\n"));
    let mut text = String::new();
    dump(&mut disk, &mut text).expect("it can be read");
    assert_eq!(text.matches(" batch 1/consensus ").count(), 30, "{text}");
}

#[test]
fn completions_that_nobody_waits_for_are_ignored() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    writer.append(&mut log, batch(stream(1, 0), 1, 1, 1, 10));
    let (write, op) = log.poll_disk().expect("a write");
    let answer = disk.execute(op);
    log.complete(write, answer.clone());
    log.complete(write, answer);
    let (sync, _) = log.poll_disk().expect("a sync");
    log.complete(sync, Ok(DiskAnswer::Done));
    log.complete(sync, Err(DiskError::NoSpace));
    assert!(!log.is_failed());
}

/// Found by the simulator (raft-log, seed 124): releases make no group urgent, so a group full of them was never written and
/// everything behind it waited for ever.
#[test]
fn releases_that_fill_a_group_hold_nothing_up() {
    let mut disk = MemDisk::new();
    let config = LogConfig { group_bytes_max: 4096, ..config() };
    let (mut log, _) = Log::open(config, &mut disk).expect("the log opens");
    let mut writer = Writer::new();
    for group in 1..=300 {
        writer.append(&mut log, batch(stream(group, 0), 1, 1, 1, 8));
    }
    drive(&mut log, &mut disk);
    for group in 1..=300 {
        writer.persist(&mut log, Persist::Release { stream: stream(group, 0), before: LogIndex(2) });
        drive(&mut log, &mut disk);
    }
    let id = writer.append(&mut log, batch(stream(1, 0), 2, 1, 1, 8));
    drive(&mut log, &mut disk);
    assert_eq!(durable(&outputs(&mut log)), Some(id));
}

/// With a group smaller than what a batch takes on disk, moving live batches filled one segment with them after the other.
#[test]
fn a_setting_that_cannot_work_is_refused_by_name_before_anything_is_touched() {
    let kib = 1_u64 << 10;
    let range = |setting, found, least, most| ConfigError::OutOfRange { setting, found, least, most };
    let cases = [
        (LogConfig { group_bytes_max: 512, ..config() }, range("group_bytes_max", 512, 4 * kib, 1 << 30)),
        (LogConfig { group_bytes_max: 2 << 30, ..config() }, range("group_bytes_max", 2 << 30, 4 * kib, 1 << 30)),
        (LogConfig { segment_bytes_min: 0, ..config() }, range("segment_bytes_min", 0, 64 * kib, 1 << 40)),
        (
            LogConfig { segment_bytes_max: u64::MAX, ..config() },
            range("segment_bytes_max", u64::MAX, 64 * kib, 1 << 40),
        ),
        (
            LogConfig { segment_bytes_min: 128 * kib, segment_bytes_max: 64 * kib, ..config() },
            ConfigError::SegmentOrder { least: 128 * kib, most: 64 * kib },
        ),
    ];
    let mut disk = MemDisk::new();
    for (wrong, expected) in cases {
        let error = Log::open(wrong, &mut disk).expect_err("it cannot work");
        assert_eq!(error, OpenError::Config(expected));
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    assert_eq!(disk.operations(), 0);
}

#[test]
fn the_smallest_settings_move_live_batches_and_come_to_rest() {
    let mut disk = MemDisk::new();
    let config = LogConfig {
        segment_bytes_min: 64 << 10,
        segment_bytes_max: 64 << 10,
        group_bytes_max: 4 << 10,
        cache_bytes_max: 0,
        snapshot_queue_bytes_max: 0,
        retained_bytes_max: 0,
        ..config()
    };
    let (mut log, _) = Log::open(config.clone(), &mut disk).expect("the smallest settings work");
    let mut writer = Writer::new();
    // Live for ever, one small batch to a group.
    for group in 2..40 {
        writer.append(&mut log, batch(stream(group, 0), 1, 1, 1, 500));
        drive(&mut log, &mut disk);
    }
    for base in 1..2000 {
        writer.append(&mut log, batch(stream(1, 0), base, 1, 1, 1500));
        writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(base) });
        let before = disk.operations();
        drive(&mut log, &mut disk);
        assert!(disk.operations() - before < 2000, "an action costs a bounded number of disk operations");
    }
    assert!(log.segment_bytes() <= 16 * (64 << 10), "{} bytes", log.segment_bytes());
    drop(log);
    let (log, _) = Log::open(config, &mut disk).expect("it opens again");
    assert_eq!(recovered(&log, &mut disk).len(), 39);
}

/// Found by the simulator's disk: a group went on without the snapshot that held what it had released.
#[test]
fn a_snapshot_that_is_needed_and_missing_refuses_to_start() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    for base in 1..10 {
        writer.append(&mut log, batch(stream(1, 0), base, 1, 1, 8));
    }
    let source = Box::new(BytesSource::new(Bytes::from_static(b"state")));
    writer.persist(&mut log, Persist::Snapshot { at: at(8), source });
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(9) });
    drive(&mut log, &mut disk);
    writer.append(&mut log, batch(stream(1, 0), 10, 1, 1, 8));
    drive(&mut log, &mut disk);
    let name = disk.names().find(|name| name.as_str().starts_with("snap-")).cloned().expect("there is one");
    // However often it was opened meanwhile.
    for _ in 0..3 {
        let mut lost = disk.clone();
        lost.lose(&name);
        match Log::open(config(), &mut lost) {
            Err(OpenError::Corrupt(damage)) => {
                assert_eq!((damage.file, damage.what), (name.clone(), "the snapshot is missing"))
            }
            other => panic!("opened without its snapshot: {other:?}"),
        }
        open(&mut disk);
    }
}

/// A log whose first segment is sealed and whose second holds a durable group.
fn two_segments() -> (MemDisk, Vec<FileName>) {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    for base in 1..=6 {
        writer.append(&mut log, batch(stream(1, 0), base, 1, 1, 16_000));
        drive(&mut log, &mut disk);
        if log.segment_bytes() > 0 && disk.operations() > 0 && segments_with_content(&disk) == 2 {
            break;
        }
    }
    assert_eq!(segments_with_content(&disk), 2);
    let names = segments(&disk);
    (disk, names)
}

fn segments_with_content(disk: &MemDisk) -> usize {
    let begun = |name: &&FileName| disk.bytes(name).is_some_and(|bytes| bytes[8192..].iter().any(|byte| *byte != 0));
    segments(disk).iter().filter(begun).count()
}

/// Found by the simulator's disk: the footer of the segment before says that there was another.
#[test]
fn a_last_segment_that_is_missing_or_begins_damaged_refuses_to_start_once_the_one_before_has_its_footer() {
    let (disk, names) = two_segments();
    let mut lost = disk.clone();
    for name in &names[1..] {
        lost.lose(name);
    }
    let refused = |mut disk: MemDisk| match Log::open(config(), &mut disk) {
        Err(OpenError::Corrupt(damage)) => damage,
        other => panic!("opened without its last segment: {other:?}"),
    };
    assert_eq!(refused(lost).what, "the segment behind it is missing");
    // The only group of the last segment is in order, its start is not.
    let mut rotted = disk.clone();
    let byte = disk.bytes(&names[1]).expect("it is there")[8192 + 20];
    rotted.damage(&names[1], 8192 + 20, &[!byte]);
    refused(rotted);
}

/// Found by the simulator's disk: what was cut off read as zeros, as a clean end.
#[test]
fn a_segment_that_is_cut_short_refuses_to_start() {
    let (disk, names) = two_segments();
    for name in &names {
        let mut short = disk.clone();
        let bytes = disk.bytes(name).expect("it is there").len() as u64;
        for left in [12 << 10, bytes / 2, bytes - 4096] {
            short.truncate(name, left);
            assert!(matches!(Log::open(config(), &mut short), Err(OpenError::Corrupt(_))), "{name} with {left} bytes");
            short = disk.clone();
        }
    }
}

/// Found by the simulator's disk (register on the real log, seed 10): with the second copy of the registers damaged, the log
/// was cut behind it, durable groups and all.
#[test]
fn a_damaged_copy_of_registers_is_told_and_costs_nothing() {
    let mut disk = MemDisk::new();
    let (mut log, _) = open(&mut disk);
    let mut writer = Writer::new();
    for base in 1..=3 {
        writer.persist(&mut log, Persist::Register { group: GroupId(1), bytes: Bytes::from(vec![base as u8; 9]) });
        writer.append(&mut log, batch(stream(1, base as u32), 1, 1, 1, 8));
        drive(&mut log, &mut disk);
    }
    let name = segments(&disk).remove(0);
    let bytes = disk.bytes(&name).expect("it is there").to_vec();
    let copies: Vec<usize> =
        (2..bytes.len() / 4096).map(|block| block * 4096).filter(|at| bytes[at + 7] == 3).collect();
    assert_eq!(copies.len(), 3);
    for at in copies {
        for byte in [at, at + 20, at + 70] {
            let mut rotted = disk.clone();
            rotted.damage(&name, byte as u64, &[!bytes[byte]]);
            let (log, found) = open(&mut rotted);
            assert_eq!(found.events, [LogEvent::CopyDamaged { file: name.clone(), offset: at as u64 }]);
            assert_eq!(found.boots.of(GroupId(1)).register, Bytes::from(vec![3; 9]));
            assert_eq!(recovered(&log, &mut rotted).len(), 3);
        }
    }
}
