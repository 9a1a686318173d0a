//! Looking at a log from outside: `replikit log verify` and `replikit log dump`. Changes nothing.

use core::fmt::{self, Write};
use core::ops::{Range, RangeInclusive};

use replikit_core::{Batch, ClusterId, LogIndex, NodeId, Position, StreamId, Term};

use crate::format::{BLOCK_BYTES, DATA_START, FrameKind, HeaderFault, Link, Small};
use crate::lost::{is_lost_name, read_lost};
use crate::scan::{Checked, Found, Frame, Window, behind, look, newer, read_header, tried};
use crate::segment::segment_number;
use crate::survey::{is_closed, survey};
use crate::{Damage, Disk, DiskAnswer, DiskOp, FileId, FileName, LogEvent, OpenError};

/// What [`verify`] found out about a log.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whose log it is; `None` for an empty directory.
    pub owner: Option<(ClusterId, NodeId)>,
    /// Segments that are needed, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Streams, ascending.
    pub streams: Vec<StreamReport>,
    /// Newest snapshot of each group, with its size in bytes.
    pub snapshots: Vec<(Position, u64)>,
    /// Kept suffixes: file, stream, term of the first entry, indices.
    pub lost: Vec<(FileName, StreamId, Term, RangeInclusive<LogIndex>)>,
    /// Groups that have a register.
    pub registers: usize,
    /// How often the log was opened, and how many of these starts were unclean.
    pub starts: (u64, u32),
    /// Whether it was closed in good order.
    pub closed: bool,
    /// What opening it would tell.
    pub events: Vec<LogEvent>,
    /// What would keep it from being opened.
    pub damage: Vec<Damage>,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its file.
    pub file: FileName,
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes of it that hold something.
    pub content_bytes: u64,
    /// Groups in it.
    pub groups: u64,
    /// Batches in it, released ones included.
    pub batches: u64,
    /// Whether it has its footer.
    pub sealed: bool,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Which.
    pub stream: StreamId,
    /// First index that was not released.
    pub first: LogIndex,
    /// Index of its next entry.
    pub next: LogIndex,
    /// Live batches.
    pub batches: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Reads a whole log and verifies every checksum.
///
/// # Errors
/// What keeps the log from being read at all; damage is in the report.
pub fn verify(disk: &mut dyn Disk) -> Result<Report, OpenError> {
    let found = survey(disk, None)?;
    let state = found.whole_state();
    let mut lost = Vec::new();
    let mut damage = found.damage.clone();
    for name in found.names.iter().filter(|name| is_lost_name(name)) {
        match lost_suffix(disk, name)? {
            Some((stream, batches)) if !batches.is_empty() => {
                let range = batches[0].base()..=batches[batches.len() - 1].last().index;
                lost.push((name.clone(), stream, batches[0].term(), range));
            }
            _ => damage.push(Damage {
                file: name.clone(),
                bytes: 0..0,
                what: "a kept suffix is damaged; the log itself is not",
                entries: Vec::new(),
            }),
        }
    }
    let last_batches = found.last.iter().flat_map(|frame| &frame.records);
    let last_batches = last_batches.filter(|(_, record)| matches!(record, Checked::Batch(_))).count() as u64;
    let mut segments: Vec<SegmentReport> = found
        .segments
        .iter()
        .map(|segment| SegmentReport {
            file: segment.window.name.clone(),
            capacity_bytes: segment.header.capacity_bytes,
            content_bytes: segment.end,
            groups: segment.offsets.len() as u64,
            batches: segment.batches,
            sealed: segment.sealed,
        })
        .collect();
    if let (Some(segment), Some(last)) = (segments.last_mut(), &found.last) {
        segment.groups += 1;
        segment.batches += last_batches;
        segment.content_bytes = behind(last.offset, &last.header);
    }
    Ok(Report {
        owner: found.cluster,
        segments,
        streams: state
            .streams
            .iter()
            .map(|(stream, state)| StreamReport {
                stream: *stream,
                first: state.first,
                next: state.next,
                batches: state.entries.len() as u64,
                bytes: state.entries.iter().map(|entry| u64::from(entry.bytes)).sum(),
            })
            .collect(),
        snapshots: found.snapshots.values().map(|known| (known.header.at, known.snapshot_bytes)).collect(),
        lost,
        registers: state.registers.len(),
        starts: found.head.map_or((0, 0), |(link, ..)| (link.starts, link.incarnation)),
        closed: found.last.as_ref().is_some_and(is_closed),
        events: found.events,
        damage,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            Some((cluster, node)) => writeln!(
                f,
                "cluster {cluster:?} node {node}, opened {} times, {} of them unclean, {}",
                self.starts.0,
                self.starts.1,
                if self.closed { "closed" } else { "not closed" }
            )?,
            None => writeln!(f, "no log")?,
        }
        for segment in &self.segments {
            writeln!(
                f,
                "{} {} of {} bytes, {} groups, {} batches{}",
                segment.file,
                segment.content_bytes,
                segment.capacity_bytes,
                segment.groups,
                segment.batches,
                if segment.sealed { ", sealed" } else { "" }
            )?;
        }
        for stream in &self.streams {
            writeln!(
                f,
                "stream {} entries {}..{}, {} batches, {} bytes",
                stream.stream, stream.first, stream.next, stream.batches, stream.bytes
            )?;
        }
        for (at, bytes) in &self.snapshots {
            writeln!(f, "snapshot {} at {}, {bytes} bytes", at.stream, at.id)?;
        }
        for (file, stream, term, range) in &self.lost {
            writeln!(f, "{file} keeps {stream} entries {}..={} of term {term}", range.start(), range.end())?;
        }
        for event in &self.events {
            writeln!(f, "event: {event:?}")?;
        }
        for damage in &self.damage {
            writeln!(f, "damage: {damage}")?;
        }
        if self.damage.is_empty() { writeln!(f, "sound") } else { writeln!(f, "DAMAGED") }
    }
}

/// The stream and the batches that a kept suffix holds (a file called `lost-..`); `None` when the file is damaged.
///
/// # Errors
/// When the file cannot be read.
pub fn lost_suffix(disk: &mut dyn Disk, name: &FileName) -> Result<Option<(StreamId, Vec<Batch>)>, OpenError> {
    let file = FileId(u64::MAX);
    let mut window = Window::open(disk, file, name)?;
    let bytes = window.get(disk, 0, window.file_bytes as usize)?;
    disk.execute(DiskOp::Close { file }).map_err(tried("close", name))?;
    Ok(read_lost(&bytes).map(|(header, batches)| (header.stream, batches)))
}

/// Writes out every frame and record of a log's segments, one line each, damaged ones included.
///
/// # Errors
/// What keeps a file from being read. A writer that fails ends the dump early.
pub fn dump(disk: &mut dyn Disk, out: &mut dyn Write) -> Result<(), OpenError> {
    let directory = FileName::new("directory");
    let listed = match disk.execute(DiskOp::List).map_err(tried("list", &directory))? {
        DiskAnswer::Listed(listed) => listed,
        other => unreachable!("a disk answered {other:?} to a list"),
    };
    for (name, bytes) in listed {
        if writeln!(out, "{name} {bytes} bytes").is_err() {
            break;
        }
        if segment_number(&name).is_some() && dump_segment(disk, &name, out)?.is_err() {
            break;
        }
    }
    Ok(())
}

fn dump_segment(disk: &mut dyn Disk, name: &FileName, out: &mut dyn Write) -> Result<fmt::Result, OpenError> {
    let file = FileId(u64::MAX);
    let mut window = Window::open(disk, file, name)?;
    let (header, damaged) = match read_header(disk, &mut window)? {
        Ok(read) => read,
        Err(HeaderFault::Newer(version)) => return Err(newer(name, version)),
        Err(HeaderFault::Damaged) => return Ok(writeln!(out, "  both copies of the header are damaged")),
    };
    let mut told = writeln!(
        out,
        "  cluster {:?} node {} number {} uuid {:016x} capacity {} {:?}",
        header.cluster, header.node, header.number, header.uuid, header.capacity_bytes, header.origin
    );
    if let Some(offset) = damaged {
        told = told.and_then(|()| writeln!(out, "  the copy of the header at {offset} is damaged"));
    }
    let mut offset = DATA_START;
    let mut run: Option<(&'static str, Range<u64>)> = None;
    while offset < header.capacity_bytes.min(window.file_bytes) && told.is_ok() {
        let found = look(disk, &mut window, &header, offset)?;
        let (what, next) = match &found {
            Found::Frame(frame) => ("", behind(offset, &frame.header)),
            Found::Zero => ("zero", offset + BLOCK_BYTES),
            Found::Damaged { what, .. } => (*what, offset + BLOCK_BYTES),
        };
        match &mut run {
            Some((running, bytes)) if *running == what && !what.is_empty() => bytes.end = next,
            _ => {
                told = flush(out, run.take());
                if what.is_empty() {
                    if let Found::Frame(frame) = &found {
                        told = told.and_then(|()| dump_frame(frame, out));
                    }
                } else {
                    run = Some((what, offset..next));
                }
            }
        }
        offset = next;
    }
    told = told.and_then(|()| flush(out, run));
    disk.execute(DiskOp::Close { file }).map_err(tried("close", name))?;
    Ok(told)
}

fn flush(out: &mut dyn Write, run: Option<(&'static str, Range<u64>)>) -> fmt::Result {
    match run {
        Some((what, bytes)) => writeln!(out, "  {}..{} {what}", bytes.start, bytes.end),
        None => Ok(()),
    }
}

fn dump_frame(frame: &Frame, out: &mut dyn Write) -> fmt::Result {
    let header = &frame.header;
    let kind = match header.kind {
        FrameKind::Start => "start",
        FrameKind::Group => "group",
        FrameKind::Copy => "copy",
        FrameKind::Footer => "footer",
    };
    writeln!(
        out,
        "  {} {kind} {} durable {} {} bytes {} records digest {:016x} after {:016x}",
        frame.offset, header.seq, header.durable, header.bytes, header.records, frame.digest, header.prev_digest
    )?;
    for (at, record) in &frame.records {
        write!(out, "    {} ", frame.offset + u64::from(*at))?;
        match record {
            Checked::Batch(batch) => writeln!(
                out,
                "batch {} entries {}..={} term {} {} bytes digest {:016x}",
                batch.stream(),
                batch.base(),
                batch.last().index,
                batch.term(),
                batch.bytes(),
                batch.digest()
            )?,
            Checked::Small(small) => dump_small(small, out)?,
        }
    }
    for entry in &frame.footer {
        let (stream, base, last) = (entry.stream, entry.base, entry.last());
        writeln!(out, "    {stream} entries {base}..={last} term {} at {}", entry.term, entry.offset)?;
    }
    Ok(())
}

fn dump_small(small: &Small, out: &mut dyn Write) -> fmt::Result {
    match small {
        Small::Link(Link { prev_number, prev_uuid, prev_end, starts, incarnation, oldest, order }) => writeln!(
            out,
            "link to {prev_number} uuid {prev_uuid:016x} end {prev_end}, starts {starts} incarnation {incarnation} \
             oldest {oldest} order {order}"
        ),
        Small::Register { group, bytes } => {
            write!(out, "register {group} ")?;
            bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
            writeln!(out)
        }
        Small::Truncate { stream, from } => writeln!(out, "truncate {stream} from {from}"),
        Small::Reset { stream, next } => writeln!(out, "reset {stream} next {next}"),
        Small::Release { stream, before } => writeln!(out, "release {stream} before {before}"),
        Small::Stream { stream, first, next } => writeln!(out, "stream {stream} first {first} next {next}"),
        Small::Forward { stream, order } => writeln!(out, "forward {stream} append {order}"),
        Small::Oldest { number } => writeln!(out, "oldest segment {number}"),
        Small::Close => writeln!(out, "close"),
        Small::Cut { stream } => writeln!(out, "cut {stream}"),
        Small::Snapshot { group, number } => writeln!(out, "snapshot of group {group} number {number}"),
    }
}
