//! Golden files freeze the format: the same actions write the same bytes, and the bytes of version 1 open for ever.
//!
//! `UPDATE=1 cargo test -p replikit-log golden` rewrites them; doing so to a released version breaks users' data.

use std::path::PathBuf;

use bytes::Bytes;
use replikit_core::{BytesSource, GroupId, LogId, LogIndex, NodeId, Persist, Position, Term};
use replikit_log::{Disk, DiskOp, FileId, FileName, Log, LogConfig, MemDisk, RecoveryItem, drive, lost_suffix, verify};

use crate::support::{Writer, batch, cluster, outputs, stream};

fn config() -> LogConfig {
    LogConfig { segment_bytes_min: 64 << 10, segment_bytes_max: 64 << 10, ..LogConfig::new(cluster(), NodeId(3)) }
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn at() -> Position {
    Position { stream: stream(1, 0), id: LogId { term: Term(1), index: LogIndex(2) }, digest: 0x0102_0304_0506_0708 }
}

/// Every kind of action; closed, and opened once more.
fn write() -> MemDisk {
    let mut disk = MemDisk::new();
    let (mut log, _) = Log::open(config(), &mut disk).expect("an empty directory opens");
    let mut writer = Writer::new();
    let step = |log: &mut Log, disk: &mut MemDisk| {
        drive(log, disk);
        outputs(log);
    };
    writer.append(&mut log, batch(stream(1, 0), 1, 1, 2, 5));
    // Enough for the segment not to be emptied.
    writer.append(&mut log, batch(stream(2, 7), 1, 1, 1, 20_000));
    writer.persist(&mut log, Persist::Register { group: GroupId(1), bytes: Bytes::from_static(b"vote of group 1") });
    step(&mut log, &mut disk);
    writer.append(&mut log, batch(stream(1, 0), 3, 1, 3, 9));
    writer.append(&mut log, batch(stream(2, 7), 2, 1, 1, 20_000));
    step(&mut log, &mut disk);
    let source = Box::new(BytesSource::new(Bytes::from_static(b"the state of group 1")));
    writer.persist(&mut log, Persist::Snapshot { at: at(), source });
    writer.persist(&mut log, Persist::Append { batch: batch(stream(1, 0), 3, 2, 1, 9), replace: true });
    step(&mut log, &mut disk);
    writer.persist(&mut log, Persist::Release { stream: stream(1, 0), before: LogIndex(3) });
    writer.persist(&mut log, Persist::Reset { stream: stream(3, 0), next: LogIndex(40) });
    step(&mut log, &mut disk);
    log.close();
    step(&mut log, &mut disk);
    let (mut log, _) = Log::open(config(), &mut disk).expect("a closed log opens");
    let mut writer = Writer::new();
    writer.append(&mut log, batch(stream(3, 0), 40, 5, 1, 1));
    step(&mut log, &mut disk);
    disk
}

/// A segment without the zeros at its end.
fn trimmed<'a>(name: &str, bytes: &'a [u8]) -> &'a [u8] {
    if !name.starts_with("seg-") {
        return bytes;
    }
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[test]
fn the_same_actions_write_the_bytes_of_the_golden_files() {
    let disk = write();
    let names: Vec<String> = disk.names().map(|name| name.as_str().to_owned()).collect();
    assert_eq!(
        names,
        [
            "lost-00000001-00000000-0000000000000001-0000000000000003-0000000000000005.lost",
            "seg-0000000000000001.log",
            "seg-0000000000000002.log",
            "seg-0000000000000004.log",
            "seg-0000000000000005.log",
            "snap-00000001-0000000000000001.snap",
        ]
    );
    for name in names {
        let path = directory().join(&name);
        let written = trimmed(&name, disk.bytes(&FileName::new(&name)).expect("it is listed"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(directory()).expect("the directory can be made");
            std::fs::write(&path, written).expect("a golden file can be written");
        }
        let golden = std::fs::read(&path).expect("there is a golden file");
        let differs = written.iter().zip(&golden).position(|(a, b)| a != b);
        assert!(written == golden, "{name} differs from byte {differs:?} on, {} and {}", written.len(), golden.len());
    }
}

#[test]
fn the_golden_files_open() {
    let mut disk = MemDisk::new();
    let entries = std::fs::read_dir(directory()).expect("there are golden files");
    for (file, entry) in entries.enumerate() {
        let entry = entry.expect("it can be listed");
        let name = entry.file_name().into_string().expect("names are ASCII");
        let mut bytes = std::fs::read(entry.path()).expect("it can be read");
        if name.starts_with("seg-") {
            bytes.resize(64 << 10, 0);
        }
        let file = FileId(1_000_000 + file as u64);
        disk.execute(DiskOp::Create { file, name: FileName::new(&name) }).expect("it is new");
        disk.execute(DiskOp::Write { file, offset: 0, buffers: vec![bytes.into()] }).expect("there is room");
    }
    let report = verify(&mut disk).expect("it can be read");
    assert!(report.damage.is_empty(), "{report}");
    let (log, found) = Log::open(config(), &mut disk).expect("version 1 opens");
    assert_eq!(found.events, []);
    assert_eq!(found.boots.incarnation(), 1, "closed once, then not");
    let boot = found.boots.of(GroupId(1));
    assert_eq!((&boot.register[..], boot.snapshot), (&b"vote of group 1"[..], Some(at())));
    let mut batches = Vec::new();
    for item in log.recovery(&mut disk) {
        match item.expect("it was verified") {
            RecoveryItem::SnapshotChunk { at: found, chunk, last } => {
                assert_eq!((found, &chunk[..], last), (at(), &b"the state of group 1"[..], true));
            }
            RecoveryItem::Batch(batch) => batches.push(batch),
        }
    }
    let expected = [
        batch(stream(2, 7), 1, 1, 1, 20_000),
        batch(stream(2, 7), 2, 1, 1, 20_000),
        batch(stream(1, 0), 3, 2, 1, 9),
        batch(stream(3, 0), 40, 5, 1, 1),
    ];
    assert_eq!(batches, expected);
    let lost = disk.names().find(|name| name.as_str().starts_with("lost-")).cloned().expect("one was kept");
    let kept = lost_suffix(&mut disk, &lost).expect("it can be read");
    assert_eq!(kept, Some((stream(1, 0), vec![batch(stream(1, 0), 3, 1, 3, 9)])));
}
