//! Opening a log: survey it, refuse or go on, begin a new segment.
//!
//! Every opening begins a new segment, made under another name and renamed when it is whole. It links to the old content up
//! to, but not including, the last group, and holds that group's records once more: nothing proves that group durable,
//! and after a failed fsync even the page cache may show bytes that the disk does not have (Rebello et al., ATC'20). So what
//! the replica is told was recovered is durable before it is told, and a crash at any point of the opening leaves the old
//! log as it was.

use std::collections::{BTreeSet, VecDeque};

use replikit_core::StreamId;

use crate::format::{
    BLOCK_BYTES, DATA_START, FooterEntry, FrameKind, Link, Origin, SegmentHeader, Small, footer_bytes,
};
use crate::group::{Chain, copied_frame, small_frame};
use crate::job::{fill, header_blocks};
use crate::scan::{Checked, run, tried};
use crate::segment::{Segment, Segments, next_capacity, segment_name, segment_uuid, spare_name};
use crate::state::{Entry, State};
use crate::survey::{Survey, is_closed, survey};
use crate::{Boots, Disk, DiskOp, FileId, FileName, LogConfig, LogEvent, OpenError};

/// What recovery found.
///
/// [`Boot::tail_cut`](replikit_core::Boot::tail_cut) is told at every opening from the cut on until a register of the group was persisted: a replica
/// that writes down in its register that it must not vote yet is not asked to remember more than the log does.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What each group's replica is built from.
    pub boots: Boots,
    /// What an operator wants to know of it.
    pub events: Vec<LogEvent>,
}

/// What the running log begins with.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) state: State,
    pub(crate) segments: Segments,
    /// Segments whose footer is missing.
    pub(crate) unsealed: Vec<u64>,
    pub(crate) snapshots: std::collections::BTreeMap<replikit_core::GroupId, crate::snapshot::SnapshotFile>,
    pub(crate) lost: Vec<(StreamId, Vec<Entry>)>,
    pub(crate) names: BTreeSet<FileName>,
    pub(crate) starts: u64,
    pub(crate) incarnation: u32,
    pub(crate) seq: u64,
    pub(crate) digest: u64,
    pub(crate) next_number: u64,
    pub(crate) next_file: u64,
    pub(crate) next_place: u64,
    pub(crate) oldest: u64,
    /// The largest segment so far.
    pub(crate) largest_bytes: u64,
}

/// All that a segment's start frame says.
pub(crate) fn start_records(link: Link, state: &State) -> Vec<Small> {
    let mut records = vec![Small::Link(link)];
    records
        .extend(state.registers.iter().map(|(group, bytes)| Small::Register { group: *group, bytes: bytes.clone() }));
    records.extend(state.streams.iter().map(|(stream, state)| Small::Stream {
        stream: *stream,
        first: state.first,
        next: state.next,
    }));
    records.extend(state.snapshots.iter().map(|(group, number)| Small::Snapshot { group: *group, number: *number }));
    // Behind the registers: a register that is only carried takes no cut back.
    records.extend(state.cuts.iter().map(|stream| Small::Cut { stream: *stream }));
    records
}

/// Opens a log: see the module.
pub(crate) fn open(config: &LogConfig, disk: &mut dyn Disk) -> Result<(Opened, Recovered), OpenError> {
    config.check().map_err(OpenError::Config)?;
    let mut found = survey(disk, Some((config.cluster, config.node)))?;
    if !found.damage.is_empty() {
        return Err(OpenError::Corrupt(found.damage.swap_remove(0)));
    }
    let (prev, starts, incarnation) = match found.head {
        Some((link, ..)) => {
            let unclean = u32::from(!found.last.as_ref().is_some_and(is_closed));
            (prev_of(&mut found, link), link.starts + 1, link.incarnation + unclean)
        }
        None => ((0, 0, 0), 1, 0),
    };
    let number = found.number_max + 1;
    let whole = found.whole_state();
    let mut extra = found.rescued.clone();
    for (stream, next) in found.voided(&whole) {
        extra.push(Small::Reset { stream, next });
    }
    extra.extend(found.tail_cut.iter().map(|stream| Small::Cut { stream: *stream }));
    let verbatim = found.last_records();

    // The new segment, whole, under another name.
    let link = Link {
        prev_number: prev.0,
        prev_uuid: prev.1,
        prev_end: prev.2,
        starts,
        incarnation,
        oldest: found.oldest.max(found.segments.first().map_or(number, |segment| segment.header.number)),
        order: found.state.order,
    };
    let start = start_records(link, &found.state);
    let largest_bytes = found.segments.iter().map(|segment| segment.header.capacity_bytes).max().unwrap_or(0);
    let mut header = SegmentHeader {
        cluster: config.cluster,
        node: config.node,
        number,
        uuid: segment_uuid(config, starts, number),
        // Known once its first frames are built, which do not depend on it.
        capacity_bytes: 0,
        origin: Origin::Zeroed,
    };
    let durable = found.seq;
    let chain = Chain { seq: durable + 1, durable, prev_digest: found.digest };
    let start = small_frame(&header, DATA_START, chain, FrameKind::Start, start.iter());
    let mut end = DATA_START + start.len() as u64;
    let (mut seq, mut digest) = (chain.seq, crate::format::frame_digest(&start));
    let mut buffers = vec![start];
    let mut offsets = Vec::new();
    let (verbatim, mut registers) = verbatim.unwrap_or_default();
    let batches = verbatim.count as usize;
    if verbatim.count > 0 || !extra.is_empty() {
        seq += 1;
        let chain = Chain { seq, durable, prev_digest: digest };
        offsets.push((end / BLOCK_BYTES) as u32);
        let group = copied_frame(&header, end, chain, FrameKind::Group, verbatim, extra.iter());
        digest = crate::format::frame_digest(&group);
        end += group.len() as u64;
        buffers.push(group);
        registers.extend(extra.iter().filter(|small| matches!(small, Small::Register { .. })).cloned());
        if !registers.is_empty() {
            let copy = small_frame(&header, end, chain, FrameKind::Copy, registers.iter());
            end += copy.len() as u64;
            buffers.push(copy);
        }
    }
    header.capacity_bytes = next_capacity(config, 0, end - DATA_START + footer_bytes(batches));
    let buffers = header_blocks(&header).into_iter().chain(buffers).collect();
    let file = FileId(found.next_file);
    write_segment(disk, &header, file, buffers, &found.garbage)?;

    // From here on the old log is linked to, and the new one is durable.
    let mut segments = Segments::default();
    let unsealed =
        found.segments.iter().filter(|segment| !segment.sealed).map(|segment| segment.header.number).collect();
    for segment in core::mem::take(&mut found.segments) {
        segments.all.push_back(Segment {
            header: segment.header,
            file: segment.window.file,
            first_place: segment.first_place,
            offsets: segment.offsets,
            end: segment.end,
            last_seq: segment.last_seq,
            live_bytes: 0,
            footer: segment.footer,
            stuck: false,
        });
    }
    let place = found.places;
    let first = offsets.first().map_or(0, |block| u64::from(*block) * BLOCK_BYTES);
    let next_place = place + offsets.len() as u64;
    let mut state = core::mem::take(&mut found.state);
    let mut lost = core::mem::take(&mut found.lost);
    let mut footer = Vec::new();
    let mut forwarded = None;
    for (at, record) in found.last.iter().flat_map(|frame| &frame.records) {
        match record {
            Checked::Small(Small::Forward { order, .. }) => forwarded = Some(*order),
            Checked::Small(small) => state.replay(small, &mut lost),
            Checked::Batch(batch) => {
                footer.push(FooterEntry::of(batch, first + u64::from(*at)));
                state.replay_batch(batch, forwarded.take(), place, *at);
            }
        }
    }
    for small in &extra {
        state.replay(small, &mut lost);
    }
    segments.all.push_back(Segment {
        header,
        file,
        first_place: place,
        offsets,
        end,
        last_seq: seq,
        live_bytes: 0,
        footer,
        stuck: false,
    });
    segments.count_live(&state);

    let recovered = Recovered { boots: boots(&found, &state, incarnation), events: found.events };
    let opened = Opened {
        state,
        segments,
        unsealed,
        snapshots: found.snapshots,
        lost,
        names: found.names.into_iter().collect(),
        starts,
        incarnation,
        seq,
        digest,
        next_number: number + 1,
        next_file: found.next_file + 1,
        next_place,
        oldest: link.oldest,
        largest_bytes: largest_bytes.max(header.capacity_bytes),
    };
    Ok((opened, recovered))
}

/// What the new segment links to. A last segment in which nothing but its start would be left is void: nothing proves that
/// start durable either.
fn prev_of(found: &mut Survey, link: Link) -> (u64, u64, u64) {
    let head = found.segments.last().expect("a log with a start has a segment");
    if head.offsets.is_empty() {
        let (_, seq, prev_digest) = found.head.expect("a log with a start has a link");
        (found.seq, found.digest) = (seq - 1, prev_digest);
        let head = found.segments.pop().expect("it was just there");
        found.garbage.push((head.window.name, Some(head.window.file)));
        return (link.prev_number, link.prev_uuid, link.prev_end);
    }
    (head.header.number, head.header.uuid, head.end)
}

fn write_segment(
    disk: &mut dyn Disk,
    header: &SegmentHeader,
    file: FileId,
    buffers: Vec<bytes::Bytes>,
    garbage: &[(FileName, Option<FileId>)],
) -> Result<(), OpenError> {
    let name = segment_name(header.number);
    let spare = spare_name(header.number);
    let stale = garbage.iter().any(|(name, _)| *name == spare);
    if stale {
        run(disk, DiskOp::Remove { name: spare.clone() }).map_err(tried("remove", &spare))?;
    }
    let mut ops = VecDeque::new();
    fill(&mut ops, file, spare.clone(), header.capacity_bytes);
    ops.push_back(DiskOp::Write { file, offset: 0, buffers });
    ops.push_back(DiskOp::Sync { file });
    ops.push_back(DiskOp::Rename { from: spare.clone(), to: name.clone() });
    ops.push_back(DiskOp::SyncDir);
    for op in ops {
        run(disk, op).map_err(tried("write", &name))?;
    }
    for (name, file) in garbage.iter().filter(|(name, _)| *name != spare) {
        run(disk, DiskOp::Remove { name: name.clone() }).map_err(tried("remove", name))?;
        if let Some(file) = file {
            run(disk, DiskOp::Close { file: *file }).map_err(tried("close", name))?;
        }
    }
    if !garbage.is_empty() {
        run(disk, DiskOp::SyncDir).map_err(tried("sync", &name))?;
    }
    Ok(())
}

fn boots(found: &Survey, state: &State, incarnation: u32) -> Boots {
    let mut boots = Boots { incarnation, ..Boots::default() };
    let groups = state.registers.keys().chain(found.snapshots.keys()).copied();
    let groups = groups.chain(state.streams.keys().map(|stream| stream.group));
    for group in groups.chain(state.cuts.iter().map(|stream| stream.group)) {
        let mut boot = boots.of(group);
        boot.register = state.registers.get(&group).cloned().unwrap_or_default();
        boot.snapshot = found.snapshots.get(&group).map(|snapshot| snapshot.header.at);
        boot.tail_cut = state.cuts.iter().filter(|stream| stream.group == group).copied().collect();
        boots.groups.insert(group, boot);
    }
    boots
}
