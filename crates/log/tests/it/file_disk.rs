//! The log on real files.

use replikit_core::{Batch, NodeId};
use replikit_log::{
    Disk, DiskAnswer, DiskError, DiskOp, FileDisk, FileId, FileName, Log, LogConfig, LogOutput, RecoveryItem, Storage,
    drive,
};

use crate::support::{Writer, batch, cluster, stream};

fn config() -> LogConfig {
    LogConfig { segment_bytes_min: 64 << 10, segment_bytes_max: 128 << 10, ..LogConfig::new(cluster(), NodeId(1)) }
}

#[test]
fn a_log_on_files_comes_back_after_its_process() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let written: Vec<Batch> = (0..100).map(|n| batch(stream(1, 0), 1 + n * 3, 1, 3, 1000)).collect();
    for (round, batches) in written.chunks(25).enumerate() {
        let mut disk = FileDisk::open(&directory.path().join("data")).expect("the directory is made");
        let (mut log, found) = Log::open(config(), &mut disk).expect("the log opens");
        let recovered: Vec<Batch> = log
            .recovery(&mut disk)
            .map(|item| match item.expect("what was verified is read") {
                RecoveryItem::Batch(batch) => batch,
                RecoveryItem::SnapshotChunk { .. } => panic!("no snapshot was taken"),
            })
            .collect();
        assert_eq!(recovered, written[..round * 25]);
        assert_eq!(found.boots.incarnation() as usize, round / 2, "every second round closes");
        let mut writer = Writer::new();
        let last = batches.iter().map(|batch| writer.append(&mut log, batch.clone())).last();
        drive(&mut log, &mut disk);
        let told = core::iter::from_fn(|| log.poll()).filter_map(|output| match output {
            LogOutput::Durable { up_to } => Some(up_to),
            _ => None,
        });
        assert_eq!(told.last(), last);
        if round % 2 == 0 {
            log.close();
            drive(&mut log, &mut disk);
            assert!(log.is_closed());
        }
    }
}

#[test]
fn a_directory_serves_one_process_at_a_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = FileDisk::open(directory.path()).expect("it opens");
    let clone = disk.clone();
    drop(disk);
    assert_eq!(FileDisk::open(directory.path()).expect_err("a clone still holds it"), DiskError::Locked);
    drop(clone);
    FileDisk::open(directory.path()).expect("it is free again");
}

#[test]
fn many_small_buffers_are_written_in_order_and_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut disk = FileDisk::open(directory.path()).expect("it opens");
    let file = FileId(1);
    let name = FileName::new("numbers");
    disk.execute(DiskOp::Create { file, name: name.clone() }).expect("it is new");
    assert_eq!(disk.execute(DiskOp::Create { file: FileId(2), name: name.clone() }), Err(DiskError::Exists));
    let buffers = (0..1000_u32).map(|n| n.to_le_bytes().to_vec().into()).collect();
    let answer = disk.execute(DiskOp::Write { file, offset: 100, buffers }).expect("there is room");
    assert!(matches!(answer, DiskAnswer::Written { buffers } if buffers.is_empty() && buffers.capacity() >= 1000));
    disk.execute(DiskOp::Sync { file }).expect("it syncs");
    let DiskAnswer::Read(read) = disk.execute(DiskOp::Read { file, offset: 100, bytes: 5000 }).expect("it reads")
    else {
        panic!("a read answers with bytes")
    };
    let numbers = read.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
    assert!(read.len() == 4000 && numbers.eq(0..1000));
    let stats = disk.stats();
    assert_eq!((stats.syncs, stats.written_bytes, stats.read_bytes), (1, 4000, 4000));
    assert!(stats.writes >= 4, "at most 256 buffers a call: {stats:?}");
    let listed = disk.execute(DiskOp::List).expect("it lists");
    assert_eq!(listed, DiskAnswer::Listed(vec![(name, 4100)]), "the lock is not the log's");
}
