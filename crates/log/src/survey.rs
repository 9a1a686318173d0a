//! Reads a whole log, verifies every checksum, and says what it holds. Changes nothing.
//!
//! Rules, from protocol-aware recovery (Alagappan et al., FAST'18): a segment that a later one links to must be whole up to
//! where the link says; in the last one, [`classify`] tells the clean end from a torn tail and from damage. The last good
//! group is not proven durable by anything, so whoever opens the log writes it again.

use core::ops::RangeInclusive;
use std::collections::BTreeMap;

use replikit_core::{ClusterId, GroupId, LogIndex, NodeId, StreamId};

use crate::classify::{Decision, Slot, classify};
use crate::format::{
    BLOCK_BYTES, DATA_START, FRAME_HEADER_BYTES, FooterEntry, FrameKind, HeaderFault, Link, Record, SMALL_HEADER_BYTES,
    SegmentHeader, Small, blocks, le_u32,
};
use crate::group::Verbatim;
use crate::scan::{Checked, Found, Frame, Rest, Window, behind, look, newer, read_header, rest, tried};
use crate::segment::segment_number;
use crate::snapshot::{
    self, SnapshotFile, SnapshotHeader, check_piece, is_snapshot_name, is_unfinished_name, piece_offset,
};
use crate::state::{Entry, State, Stream};
use crate::{Damage, Disk, DiskAnswer, DiskOp, FileId, FileName, LogEvent, OpenError};

/// A segment and where its groups stand.
#[derive(Clone, Debug)]
pub(crate) struct SurveyedSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) window: Window,
    pub(crate) first_place: u64,
    /// Of each group, in blocks.
    pub(crate) offsets: Vec<u32>,
    pub(crate) end: u64,
    pub(crate) last_seq: u64,
    pub(crate) footer: Vec<FooterEntry>,
    pub(crate) sealed: bool,
    pub(crate) batches: u64,
}

/// What a log holds.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) cluster: Option<(ClusterId, NodeId)>,
    /// In order of their numbers; the last is the one that was written to.
    pub(crate) segments: Vec<SurveyedSegment>,
    /// Up to, but not including, `last`.
    pub(crate) state: State,
    /// The last good frame when it is a group: nothing proves it durable.
    pub(crate) last: Option<Frame>,
    /// Number and digest of the last frame but `last`.
    pub(crate) seq: u64,
    pub(crate) digest: u64,
    /// The link of the last segment, and its start frame's number and the digest before it.
    pub(crate) head: Option<(Link, u64, u64)>,
    /// Registers found only in the copy of a torn group.
    pub(crate) rescued: Vec<Small>,
    pub(crate) lost: Vec<(StreamId, Vec<Entry>)>,
    pub(crate) snapshots: BTreeMap<GroupId, SnapshotFile>,
    pub(crate) events: Vec<LogEvent>,
    pub(crate) tail_cut: Vec<StreamId>,
    pub(crate) damage: Vec<Damage>,
    /// Files that hold nothing that is needed.
    pub(crate) garbage: Vec<(FileName, Option<FileId>)>,
    pub(crate) names: Vec<FileName>,
    pub(crate) number_max: u64,
    pub(crate) next_file: u64,
    pub(crate) places: u64,
    pub(crate) oldest: u64,
    gaps: Vec<(usize, BTreeMap<StreamId, LogIndex>)>,
}

/// A segment file whose header was read.
struct Candidate {
    header: SegmentHeader,
    window: Window,
    /// Its link and start frame, when that is in order.
    start: Option<(Link, Frame)>,
}

impl Candidate {
    fn garbage(self) -> (FileName, Option<FileId>) {
        (self.window.name, Some(self.window.file))
    }
}

fn link_of(frame: &Frame) -> Option<Link> {
    match frame.records.first() {
        Some((_, Checked::Small(Small::Link(link)))) if frame.header.kind == FrameKind::Start => Some(*link),
        _ => None,
    }
}

/// Whether the last thing in the log is that it was closed.
pub(crate) fn is_closed(frame: &Frame) -> bool {
    matches!(frame.records.last(), Some((_, Checked::Small(Small::Close))))
}

/// Bytes on disk of the second copy of a group's registers; 0 when it has none.
fn copy_bytes_of(frame: &Frame) -> u64 {
    if frame.header.kind != FrameKind::Group {
        return 0;
    }
    let registers = frame.records.iter().filter_map(|(_, record)| match record {
        Checked::Small(Small::Register { bytes, .. }) => Some(bytes.len()),
        _ => None,
    });
    let bytes = registers.fold(0, |bytes: usize, register| {
        bytes.max(FRAME_HEADER_BYTES).next_multiple_of(8) + SMALL_HEADER_BYTES + register
    });
    blocks(bytes as u64)
}

/// Surveys a log. With `expected`, another cluster's or node's log is an error.
///
/// # Errors
/// What keeps the survey from being made at all. Damage is in [`Survey::damage`].
pub(crate) fn survey(disk: &mut dyn Disk, expected: Option<(ClusterId, NodeId)>) -> Result<Survey, OpenError> {
    let directory = FileName::new("directory");
    let listed = match disk.execute(DiskOp::List).map_err(tried("list", &directory))? {
        DiskAnswer::Listed(listed) => listed,
        other => unreachable!("a disk answered {other:?} to a list"),
    };
    let mut survey = Survey {
        names: listed.into_iter().map(|(name, _)| name).collect(),
        places: 1,
        next_file: 1,
        ..Survey::default()
    };
    let mut candidates = survey.candidates(disk, expected)?;
    survey.snapshots(disk, expected)?;
    survey.garbage.extend(survey.names.iter().filter(|name| is_unfinished_name(name)).map(|name| (name.clone(), None)));
    let Some(head) = candidates.iter().rposition(|candidate| candidate.start.is_some()) else {
        for candidate in candidates {
            survey.damaged(
                &candidate.window.name,
                DATA_START..candidate.window.file_bytes,
                "no segment begins the log",
            );
        }
        return Ok(survey);
    };
    let beyond = candidates.split_off(head + 1);
    let chain = survey.chain(candidates);
    survey.read_chain(disk, chain, beyond)?;
    survey.snapshots_are_there();
    Ok(survey)
}

impl Survey {
    fn file(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file - 1)
    }

    fn damaged(&mut self, file: &FileName, bytes: core::ops::Range<u64>, what: &'static str) {
        self.damage.push(Damage { file: file.clone(), bytes, what, entries: Vec::new() });
    }

    fn belongs(&mut self, found: (ClusterId, NodeId), expected: Option<(ClusterId, NodeId)>) -> Result<(), OpenError> {
        let expected = expected.or(self.cluster).unwrap_or(found);
        self.cluster = Some(expected);
        if found.0 != expected.0 {
            return Err(OpenError::WrongCluster { found: found.0, expected: expected.0 });
        }
        if found.1 != expected.1 {
            return Err(OpenError::WrongNode { found: found.1, expected: expected.1 });
        }
        Ok(())
    }

    /// Reads the header and the start frame of each segment file, ascending by number.
    fn candidates(
        &mut self,
        disk: &mut dyn Disk,
        expected: Option<(ClusterId, NodeId)>,
    ) -> Result<Vec<Candidate>, OpenError> {
        let mut numbers: Vec<(u64, FileName)> =
            self.names.iter().filter_map(|name| Some((segment_number(name)?, name.clone()))).collect();
        numbers.sort_unstable();
        let mut candidates = Vec::new();
        for (number, name) in numbers {
            self.number_max = number;
            let file = self.file();
            let mut window = Window::open(disk, file, &name)?;
            let header = match read_header(disk, &mut window)? {
                Ok((header, copy)) => {
                    if let Some(offset) = copy {
                        self.events.push(LogEvent::CopyDamaged { file: name.clone(), offset });
                    }
                    header
                }
                Err(HeaderFault::Newer(version)) => return Err(newer(&name, version)),
                Err(HeaderFault::Damaged) => {
                    self.damaged(&name, 0..DATA_START, "both copies of the header are damaged");
                    continue;
                }
            };
            self.belongs((header.cluster, header.node), expected)?;
            if header.number != number {
                self.damaged(&name, 0..DATA_START, "the header is that of another segment");
                continue;
            }
            if window.file_bytes < header.capacity_bytes {
                self.damaged(&name, window.file_bytes..header.capacity_bytes, "the file is cut short");
            }
            let start = match look(disk, &mut window, &header, DATA_START)? {
                Found::Frame(frame) => link_of(&frame).map(|link| (link, frame)),
                _ => None,
            };
            candidates.push(Candidate { header, window, start });
        }
        Ok(candidates)
    }

    /// Verifies every snapshot and keeps the newest of each group.
    fn snapshots(&mut self, disk: &mut dyn Disk, expected: Option<(ClusterId, NodeId)>) -> Result<(), OpenError> {
        let names: Vec<FileName> = self.names.iter().filter(|name| is_snapshot_name(name)).cloned().collect();
        for name in names {
            let file = self.file();
            let mut window = Window::open(disk, file, &name)?;
            let header = match SnapshotHeader::read(&window.get(disk, 0, snapshot::HEADER_BYTES)?) {
                Ok(header) => header,
                Err(HeaderFault::Newer(version)) => return Err(newer(&name, version)),
                Err(HeaderFault::Damaged) => {
                    self.damaged(&name, 0..piece_offset(0), "the header's checksum does not match");
                    continue;
                }
            };
            self.belongs((header.cluster, header.node), expected)?;
            let (mut number, mut snapshot_bytes) = (0, 0);
            let whole = loop {
                let piece = window.get(disk, piece_offset(number), snapshot::PIECE_BYTES)?;
                let Some((payload, last)) = check_piece(&header, number, &piece) else {
                    let bytes = piece_offset(number)..piece_offset(number) + piece.len() as u64;
                    self.damaged(&name, bytes, "a piece's checksum does not match");
                    break false;
                };
                snapshot_bytes += payload.len() as u64;
                number += 1;
                if last {
                    break header.name() == name;
                }
            };
            if !whole {
                continue;
            }
            let found = SnapshotFile { header, file, name, snapshot_bytes };
            let older = match self.snapshots.get(&found.group()) {
                Some(other) if other.header.number >= found.header.number => Some(found),
                _ => self.snapshots.insert(found.group(), found),
            };
            self.garbage.extend(older.map(|older| (older.name, Some(older.file))));
        }
        Ok(())
    }

    /// What was released because a snapshot holds it is gone with the snapshot.
    fn snapshots_are_there(&mut self) {
        for (group, number) in self.whole_state().snapshots {
            if self.snapshots.get(&group).is_none_or(|found| found.header.number < number) {
                self.damaged(&snapshot::snapshot_name(group, number), 0..0, "the snapshot is missing");
            }
        }
    }

    /// Follows the links from the last segment back to the oldest that is there; the rest is garbage.
    fn chain(&mut self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut chain: Vec<Candidate> = Vec::new();
        while let Some(candidate) = candidates.pop() {
            let wanted = chain.last().and_then(|later| later.start.as_ref()).map(|(link, _)| *link);
            match wanted {
                Some(link) if candidate.header.number > link.prev_number => self.garbage.push(candidate.garbage()),
                Some(link) if candidate.header.number == link.prev_number => {
                    if candidate.header.uuid != link.prev_uuid {
                        let name = candidate.window.name.clone();
                        self.damaged(&name, 0..DATA_START, "the next segment links to another in its place");
                    }
                    if candidate.start.is_none() {
                        let name = candidate.window.name.clone();
                        self.damaged(&name, DATA_START..link.prev_end, "the start frame is damaged");
                        break;
                    }
                    chain.push(candidate);
                }
                // Further back than the link: what the link names is missing.
                Some(_) => self.garbage.push(candidate.garbage()),
                None => chain.push(candidate),
            }
        }
        self.garbage.extend(candidates.into_iter().map(Candidate::garbage));
        chain.reverse();
        chain
    }

    fn read_chain(
        &mut self,
        disk: &mut dyn Disk,
        chain: Vec<Candidate>,
        beyond: Vec<Candidate>,
    ) -> Result<(), OpenError> {
        let links: Vec<Option<(Link, u64)>> = chain
            .iter()
            .map(|candidate| candidate.start.as_ref().map(|(link, frame)| (*link, frame.header.seq)))
            .collect();
        let first_number = chain.first().map_or(0, |candidate| candidate.header.number);
        let first_prev = links.first().copied().flatten().map_or(0, |(link, _)| link.prev_number);
        let last_at = chain.len() - 1;
        for (at, candidate) in chain.into_iter().enumerate() {
            let Candidate { header, window, start } = candidate;
            if at == 0
                && let Some((link, frame)) = &start
            {
                self.seq = frame.header.seq - 1;
                self.digest = frame.header.prev_digest;
                self.state.order = link.order;
            }
            let segment = SurveyedSegment {
                header,
                window,
                first_place: self.places,
                offsets: Vec::new(),
                end: DATA_START,
                last_seq: 0,
                footer: Vec::new(),
                sealed: false,
                batches: 0,
            };
            if let Some((link, frame)) = &start {
                self.head = Some((*link, frame.header.seq, frame.header.prev_digest));
                // The last start says what the group behind it makes true: that group may be torn.
                if at != last_at {
                    self.oldest = self.oldest.max(link.oldest);
                }
            }
            match links.get(at + 1) {
                Some(Some((next, next_seq))) => self.read_sealed(disk, segment, next.prev_end, *next_seq)?,
                Some(None) => {}
                None => {
                    debug_assert_eq!(at, last_at, "only the last segment has none behind it");
                    self.read_last(disk, segment, &beyond)?;
                }
            }
        }
        if self.damage.is_empty() && first_prev != 0 && first_prev >= self.oldest && first_prev < first_number {
            let name = crate::segment::segment_name(first_prev);
            self.damaged(&name, 0..0, "the segment is missing");
        }
        self.garbage.extend(beyond.into_iter().map(Candidate::garbage));
        Ok(())
    }

    /// Takes a good frame into the state.
    fn take(&mut self, segment: &mut SurveyedSegment, frame: &Frame) {
        if frame.header.kind == FrameKind::Group {
            segment.offsets.push((frame.offset / BLOCK_BYTES) as u32);
            self.places += 1;
        }
        let place = self.places - 1;
        let mut forwarded = None;
        for (at, record) in &frame.records {
            match record {
                Checked::Small(Small::Forward { order, .. }) => forwarded = Some(*order),
                Checked::Small(Small::Oldest { number }) => self.oldest = self.oldest.max(*number),
                Checked::Small(small) => self.state.replay(small, &mut self.lost),
                Checked::Batch(batch) => {
                    let stream = batch.stream();
                    for (damage, next) in &mut self.gaps {
                        if let Some(next) = next.remove(&stream)
                            && next < batch.base()
                            && forwarded.is_none()
                        {
                            self.damage[*damage].entries.push((stream, next..=batch.base().prev()));
                        }
                    }
                    segment.batches += 1;
                    segment.footer.push(FooterEntry::of(batch, frame.offset + u64::from(*at)));
                    self.state.replay_batch(batch, forwarded.take(), place, *at);
                }
            }
        }
        self.seq = frame.header.seq;
        self.digest = frame.digest;
        segment.end = behind(frame.offset, &frame.header);
        segment.last_seq = frame.header.seq;
    }

    /// Whether a frame follows the last that was taken.
    fn follows(&self, frame: &Frame) -> bool {
        match frame.header.kind {
            FrameKind::Start | FrameKind::Group => {
                frame.header.seq == self.seq + 1 && frame.header.prev_digest == self.digest
            }
            FrameKind::Copy => frame.header.seq == self.seq,
            FrameKind::Footer => false,
        }
    }

    /// Remembers damage, with the entries that are known to have stood there. `footer` lists the segment's batches.
    fn report(
        &mut self,
        segment: &SurveyedSegment,
        bytes: core::ops::Range<u64>,
        what: &'static str,
        footer: Option<&[FooterEntry]>,
        told: Option<&[(u32, Record)]>,
    ) {
        let mut entries: Vec<(StreamId, RangeInclusive<LogIndex>)> = Vec::new();
        let mut add = |stream: StreamId, base: LogIndex, last: LogIndex| match entries.last_mut() {
            Some((other, range)) if *other == stream && range.end().next() == base => *range = *range.start()..=last,
            _ => entries.push((stream, base..=last)),
        };
        if let Some(footer) = footer {
            for entry in footer.iter().filter(|entry| bytes.contains(&entry.offset)) {
                add(entry.stream, entry.base, entry.last());
            }
        } else if let Some(told) = told {
            for (_, record) in told {
                if let Record::Batch { header, .. } = record {
                    add(header.stream, header.base, header.last().index);
                }
            }
        }
        if footer.is_none() && told.is_none() {
            let next = self.state.streams.iter().map(|(stream, state)| (*stream, state.next)).collect();
            self.gaps.push((self.damage.len(), next));
        }
        self.damage.push(Damage { file: segment.window.name.clone(), bytes, what, entries });
    }

    /// Reads a segment that a later one links to: all of it was durable.
    fn read_sealed(
        &mut self,
        disk: &mut dyn Disk,
        mut segment: SurveyedSegment,
        end: u64,
        next_seq: u64,
    ) -> Result<(), OpenError> {
        let header = segment.header;
        let footer_at = |disk: &mut dyn Disk, window: &mut Window| {
            Ok::<_, OpenError>(match look(disk, window, &header, end)? {
                Found::Frame(frame) if frame.header.kind == FrameKind::Footer && frame.header.seq + 1 == next_seq => {
                    Some(frame.footer)
                }
                _ => None,
            })
        };
        let mut offset = DATA_START;
        let mut copy_bytes = 0;
        while offset < end {
            let found = look(disk, &mut segment.window, &header, offset)?;
            if copy_bytes > 0 && matches!(found, Found::Damaged { .. }) {
                // The registers stand in the group before, which is in order, and in the start of the next segment.
                self.events.push(LogEvent::CopyDamaged { file: segment.window.name.clone(), offset });
                offset += copy_bytes;
                (segment.end, copy_bytes) = (offset, 0);
                continue;
            }
            let (what, told) = match found {
                Found::Frame(frame) if self.follows(&frame) => {
                    let next = behind(offset, &frame.header);
                    copy_bytes = copy_bytes_of(&frame);
                    if frame.header.kind == FrameKind::Copy {
                        segment.end = next;
                    } else {
                        self.take(&mut segment, &frame);
                    }
                    offset = next;
                    continue;
                }
                Found::Frame(_) => ("a frame is missing before this one", None),
                Found::Zero => ("zeros in place of a frame", None),
                Found::Damaged { what, told, .. } => (what, told),
            };
            let mut next = offset + BLOCK_BYTES;
            while next < end {
                if let Found::Frame(frame) = look(disk, &mut segment.window, &header, next)?
                    && matches!(frame.header.kind, FrameKind::Start | FrameKind::Group)
                    && frame.header.seq > self.seq
                {
                    self.seq = frame.header.seq - 1;
                    self.digest = frame.header.prev_digest;
                    break;
                }
                next += BLOCK_BYTES;
            }
            let footer = footer_at(disk, &mut segment.window.clone())?;
            self.report(&segment, offset..next.min(end), what, footer.as_deref(), told.as_deref());
            offset = next;
        }
        let footer = footer_at(disk, &mut segment.window)?;
        if self.damage.is_empty() && self.seq + 1 != next_seq {
            self.report(&segment, segment.end..end, "the last frames are missing", footer.as_deref(), None);
        }
        segment.sealed = footer.is_some();
        if segment.sealed {
            segment.footer = Vec::new();
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Reads the last segment, and decides on what follows its good frames. `beyond` are later segments without a start.
    fn read_last(
        &mut self,
        disk: &mut dyn Disk,
        mut segment: SurveyedSegment,
        beyond: &[Candidate],
    ) -> Result<(), OpenError> {
        let header = segment.header;
        let mut offset = DATA_START;
        let mut last: Option<Frame> = None;
        let (first_seq, mut seq, mut digest) = (self.seq + 1, self.seq, self.digest);
        let mut slots = Vec::new();
        // Of the last group's registers, until it is read.
        let mut copy_bytes = 0;
        loop {
            let frame = match look(disk, &mut segment.window, &header, offset)? {
                Found::Frame(frame) => frame,
                Found::Damaged { .. } if copy_bytes > 0 => {
                    // The group before is in order, and with it the registers: the copy alone is damaged if the log goes on,
                    // or ends, where it should.
                    let behind_copy = offset + copy_bytes;
                    match look(disk, &mut segment.window, &header, behind_copy)? {
                        Found::Frame(next) if next.header.seq == seq + 1 && next.header.prev_digest == digest => {}
                        Found::Zero => {}
                        _ => break,
                    }
                    self.events.push(LogEvent::CopyDamaged { file: segment.window.name.clone(), offset });
                    slots.push(Slot::Copy { seq, durable: 0 });
                    (offset, copy_bytes) = (behind_copy, 0);
                    continue;
                }
                _ => break,
            };
            let follows = match frame.header.kind {
                FrameKind::Start | FrameKind::Group => {
                    frame.header.seq == seq + 1 && frame.header.prev_digest == digest
                }
                FrameKind::Copy => frame.header.seq == seq,
                FrameKind::Footer => false,
            };
            if !follows {
                break;
            }
            offset = behind(offset, &frame.header);
            copy_bytes = copy_bytes_of(&frame);
            if frame.header.kind == FrameKind::Copy {
                slots.push(Slot::Copy { seq, durable: frame.header.durable });
                if last.is_none() {
                    segment.end = offset;
                }
                copy_bytes = 0;
                continue;
            }
            slots.push(Slot::Good { seq: frame.header.seq, durable: frame.header.durable });
            (seq, digest) = (frame.header.seq, frame.digest);
            if let Some(before) = last.replace(frame) {
                self.take(&mut segment, &before);
                segment.end = last.as_ref().map_or(segment.end, |last| last.offset);
            }
        }
        // Frames in this segment that were chained so far are good; the chain is not known beyond the first that is not.
        let tail = rest(disk, &mut segment.window, &header, offset)?;
        let good = slots.len();
        slots.extend(tail.slots.iter().map(|(_, slot)| *slot));
        let mut later = Vec::new();
        for candidate in beyond {
            let mut window = candidate.window.clone();
            later.push((candidate, rest(disk, &mut window, &candidate.header, DATA_START)?));
        }
        let beyond = || later.iter().flat_map(|(_, rest)| &rest.slots).map(|(_, slot)| *slot);
        // What is missing between this segment and the next good frame can be that segment's own start.
        let start_only = beyond().any(|slot| matches!(slot, Slot::Good { seq: found, .. } if found == seq + 2));
        let proven = if start_only { 0 } else { beyond().map(evidence).max().unwrap_or(0) };
        match classify(first_seq, &slots, proven) {
            Decision::Clean { .. } => {}
            Decision::Torn { .. } => self.cut(&segment.window.name, offset, &tail, seq + 1, last.as_ref()),
            Decision::Corrupt { at } => {
                let start = tail.slots.get(at.saturating_sub(good)).map_or(offset, |(offset, _)| *offset);
                let sound = tail
                    .slots
                    .iter()
                    .find(|(offset, slot)| *offset > start && matches!(slot, Slot::Good { .. } | Slot::Footer { .. }));
                let (what, told) = match &tail.first {
                    Some(Found::Damaged { what, told, .. }) => (*what, told.as_deref()),
                    Some(Found::Zero) | None => ("zeros in place of a frame", None),
                    Some(Found::Frame(frame)) if frame.header.kind == FrameKind::Footer => {
                        ("the segment behind it is missing", None)
                    }
                    Some(Found::Frame(_)) => ("a frame is missing before this one", None),
                };
                let end = sound.map_or(tail.end, |(offset, _)| *offset).max(start);
                self.report(&segment, start..end, what, None, told);
            }
        }
        for (candidate, rest) in &later {
            let slots: Vec<Slot> = rest.slots.iter().map(|(_, slot)| *slot).collect();
            match classify(seq + 1, &slots, 0) {
                // A good start was not found at first: then one of the two reads was wrong.
                Decision::Clean { good } | Decision::Torn { good } if good > 0 => {
                    self.damaged(&candidate.window.name, DATA_START..rest.end, "two reads of the start frame differ");
                }
                Decision::Clean { .. } => {}
                Decision::Torn { .. } => {
                    self.cut(&candidate.window.name, DATA_START, rest, seq + 1, last.as_ref());
                }
                Decision::Corrupt { .. } => {
                    self.damaged(&candidate.window.name, DATA_START..rest.end, "the start frame is damaged");
                }
            }
        }
        self.finish_last(segment, last);
        Ok(())
    }

    fn finish_last(&mut self, segment: SurveyedSegment, last: Option<Frame>) {
        match last {
            Some(frame) if frame.header.kind == FrameKind::Group => {
                self.oldest = self.oldest.max(self.head.map_or(0, |(link, ..)| link.oldest));
                for (_, record) in &frame.records {
                    if let Checked::Small(Small::Oldest { number }) = record {
                        self.oldest = self.oldest.max(*number);
                    }
                }
                self.last = Some(frame);
            }
            // A start alone: the segment is void, and what its start says of streams is what the group behind it made of them.
            // Its registers are the newest there are.
            Some(frame) => {
                for (_, record) in &frame.records {
                    if let Checked::Small(small @ Small::Register { .. }) = record {
                        self.state.replay(small, &mut self.lost);
                    }
                }
            }
            None => {}
        }
        self.segments.push(segment);
    }

    /// Notes that a torn group is cut, and rescues what its copy holds.
    fn cut(&mut self, file: &FileName, offset: u64, rest: &Rest, seq: u64, last: Option<&Frame>) {
        let mut streams: Vec<StreamId> = match &rest.first {
            Some(Found::Damaged { told: Some(told), .. }) => {
                // The small records of such a frame are in order; some batch is not.
                let registers = told.iter().filter_map(|(_, record)| match record {
                    Record::Small(small @ Small::Register { .. }) => Some(small.clone()),
                    _ => None,
                });
                self.rescued.extend(registers);
                told.iter()
                    .filter_map(|(_, record)| match record {
                        Record::Batch { header, .. } => Some(header.stream),
                        Record::Small(Small::Truncate { stream, .. } | Small::Reset { stream, .. }) => Some(*stream),
                        Record::Small(_) => None,
                    })
                    .collect()
            }
            _ => {
                let of_last =
                    last.into_iter().flat_map(|frame| &frame.records).filter_map(|(_, record)| match record {
                        Checked::Batch(batch) => Some(batch.stream()),
                        Checked::Small(Small::Register { group, .. }) => Some(StreamId::consensus(*group)),
                        Checked::Small(_) => None,
                    });
                // A group that has written nothing but votes may have lost one.
                let voted = self.state.registers.keys().map(|group| StreamId::consensus(*group));
                self.state.streams.keys().copied().chain(voted).chain(of_last).collect()
            }
        };
        streams.extend(rest.streams.iter().copied());
        let unknown = !matches!(&rest.first, Some(Found::Damaged { told: Some(_), .. }));
        for copy in rest.copies.iter().filter(|copy| copy.header.seq >= seq) {
            for (_, record) in &copy.records {
                if let Checked::Small(small @ Small::Register { group, .. }) = record {
                    self.rescued.push(small.clone());
                    if unknown {
                        streams.push(StreamId::consensus(*group));
                    }
                }
            }
        }
        streams.sort_unstable();
        streams.dedup();
        self.tail_cut.extend(streams.iter().copied());
        self.tail_cut.sort_unstable();
        self.tail_cut.dedup();
        self.events.push(LogEvent::TailCut { file: file.clone(), bytes: offset..rest.end.max(offset), streams });
    }

    /// The state with the last group in it: what the log says it holds.
    pub(crate) fn whole_state(&self) -> State {
        let mut state = self.state.clone();
        let mut lost = Vec::new();
        let mut forwarded = None;
        for (at, record) in self.last.iter().flat_map(|frame| &frame.records) {
            match record {
                Checked::Small(Small::Forward { order, .. }) => forwarded = Some(*order),
                Checked::Small(small) => state.replay(small, &mut lost),
                Checked::Batch(batch) => state.replay_batch(batch, forwarded.take(), self.places, *at),
            }
        }
        for small in &self.rescued {
            state.replay(small, &mut lost);
        }
        state
    }

    /// The streams that a durable snapshot voids, with their next index: a crash came between a snapshot that was installed
    /// or taken and the log's own record of it.
    pub(crate) fn voided(&self, state: &State) -> Vec<(StreamId, LogIndex)> {
        let voided = self.snapshots.values().filter_map(|snapshot| {
            let at = snapshot.header.at;
            let empty = Stream::default();
            let stream = state.streams.get(&at.stream).unwrap_or(&empty);
            let holds = stream.entries.get(stream.find(at.id.index)).filter(|entry| entry.base <= at.id.index);
            let conflicts = holds.is_some_and(|entry| entry.term != at.id.term);
            (stream.next <= at.id.index || conflicts).then_some((at.stream, at.id.index.next()))
        });
        voided.collect()
    }

    /// The last group's records without the mark that the log was closed, and the registers among them.
    pub(crate) fn last_records(&self) -> Option<(Verbatim, Vec<Small>)> {
        let frame = self.last.as_ref()?;
        let mut end = frame.bytes.len();
        let mut records = &frame.records[..];
        if is_closed(frame) {
            let (at, _) = records.last()?;
            end = *at as usize;
            records = &records[..records.len() - 1];
        }
        let mut summed = Vec::new();
        let mut registers = Vec::new();
        for (at, record) in records {
            let start = *at as usize;
            match record {
                Checked::Small(small) => {
                    let length = le_u32(&frame.bytes, start) as usize;
                    summed.extend_from_slice(&frame.bytes[start..start + SMALL_HEADER_BYTES + length]);
                    if let Small::Register { .. } = small {
                        registers.push(small.clone());
                    }
                }
                Checked::Batch(_) => {
                    summed.extend_from_slice(&frame.bytes[start..start + replikit_core::BATCH_HEADER_BYTES]);
                }
            }
        }
        let bytes = frame.bytes.slice(FRAME_HEADER_BYTES..end);
        Some((Verbatim { bytes, summed, count: records.len() as u32 }, registers))
    }
}

const fn evidence(slot: Slot) -> u64 {
    match slot {
        Slot::Good { durable, .. } | Slot::Copy { durable, .. } | Slot::Damaged { durable } => durable,
        Slot::Footer { seq } => seq,
        Slot::Zero => 0,
    }
}
