//! Group commit: closing the group being filled, writing it, one sync for all of it.

use core::mem;

use replikit_core::{StorageEvent, WriteId};

use super::{Life, Log, Next};
use crate::format::{DATA_START, FrameKind, Link, Small, blocks, footer_bytes, frame_digest};
use crate::group::{Chain, footer_frame, small_frame};
use crate::job::{Job, Prepared, Script};
use crate::open::start_records;
use crate::segment::Segment;
use crate::{DiskAnswer, DiskError, DiskOp, Lane, LogEvent, LogOutput, OpId};

/// Spare files kept for later segments.
const SPARES_MAX: usize = 2;

/// A group that is being written.
#[derive(Debug)]
pub(super) struct Commit {
    write: OpId,
    sync: OpId,
    seq: u64,
    place: u64,
    /// Segments below this go once the group is durable.
    oldest: u64,
    /// The newest action that it makes durable.
    pub(super) last: WriteId,
}

impl Log {
    /// Closes the group being filled and emits its write and its sync, if anything waits for it and none is under way.
    pub(super) fn start_commit(&mut self) {
        if self.commit.is_some() {
            return;
        }
        let closing = self.life == Life::Closing && self.waiting.is_empty() && self.barrier.is_none();
        // Releases make no group urgent, but a group that is full of them must go, or nothing else would ever get in.
        if !closing && !self.filling.urgent && !self.is_full() {
            self.prepare_next(0);
            return;
        }
        let oldest = self.oldest_needed();
        if oldest > self.oldest {
            self.oldest = oldest;
            self.filling.small(Small::Oldest { number: oldest });
        }
        if closing {
            self.filling.small(Small::Close);
            self.filling.urgent = true;
            self.life = Life::Marked;
        }
        self.write_group();
    }

    /// The first segment that is still needed once the group being filled is durable.
    fn oldest_needed(&self) -> u64 {
        let needed = |segment: &&Segment| segment.live_bytes > 0;
        let mut but_last = self.segments.all.iter().take(self.segments.all.len() - 1);
        let last = self.segments.all.back().expect("there is always a segment to write to");
        match but_last.find(needed) {
            _ if self.keeping > 0 => self.oldest,
            Some(needed) => needed.header.number,
            None => last.header.number,
        }
    }

    fn write_group(&mut self) {
        let segment = self.segments.all.back().expect("there is always a segment to write to");
        let need = self.filling.disk_bytes();
        let footer = footer_bytes(segment.footer.len() + self.filling.footer.len());
        let start = if segment.end + need + footer <= segment.header.capacity_bytes {
            None
        } else {
            match self.rotate(need) {
                Some(start) => Some(start),
                None => return,
            }
        };
        let chain = self.next_frame();
        let place = self.filling.place;
        let segment = self.segments.all.back_mut().expect("there is always a segment to write to");
        let write_at = if start.is_some() { DATA_START } else { segment.end };
        let offset = write_at + start.as_ref().map_or(0, |start| start.len() as u64);
        let (buffers, digest) = self.filling.close(&segment.header, offset, chain, start);
        segment.offsets.push((offset / crate::format::BLOCK_BYTES) as u32);
        segment.end = offset + need;
        segment.last_seq = chain.seq;
        segment.live_bytes += self.filling.live_bytes;
        segment.footer.extend(self.filling.footer.iter().map(|entry| {
            let mut entry = *entry;
            entry.offset += offset;
            entry
        }));
        let file = segment.file;
        (self.seq, self.digest) = (chain.seq, digest);
        let last = self.filling.last;
        self.filling.begin(mem::take(&mut self.spare_buffers));
        let write = self.emit(Lane::Commit, DiskOp::Write { file, offset: write_at, buffers });
        let sync = self.emit(Lane::Commit, DiskOp::Sync { file });
        self.commit = Some(Commit { write, sync, seq: chain.seq, place, oldest: self.oldest, last });
        self.accept_waiting();
        self.prepare_next(0);
    }

    const fn next_frame(&self) -> Chain {
        Chain { seq: self.seq + 1, durable: self.durable_seq, prev_digest: self.digest }
    }

    /// Goes on to the next segment, if it is ready and large enough for its start and a group of `need` bytes. Returns its
    /// start frame.
    fn rotate(&mut self, need: u64) -> Option<bytes::Bytes> {
        if matches!(self.next, Next::Preparing) {
            return None;
        }
        let prev = self.segments.all.back().expect("there is always a segment to write to");
        let link = Link {
            prev_number: prev.header.number,
            prev_uuid: prev.header.uuid,
            prev_end: prev.end,
            starts: self.starts,
            incarnation: self.incarnation,
            oldest: self.oldest,
            order: self.order_before_filling(),
        };
        let records = start_records(link, &self.state);
        let chain = self.next_frame();
        let Next::Ready(Prepared { header, file }) = &self.next else {
            let start = small_frame(&prev.header, DATA_START, chain, FrameKind::Start, records.iter());
            self.prepare_next(start.len() as u64 + need);
            return None;
        };
        let (header, file) = (*header, *file);
        let start = small_frame(&header, DATA_START, chain, FrameKind::Start, records.iter());
        let need = start.len() as u64 + need;
        if DATA_START + need + footer_bytes(self.filling.footer.len()) > header.capacity_bytes {
            self.next = Next::None;
            let name = crate::segment::segment_name(header.number);
            self.jobs.push_back(Job::Script(Script::remove(name, file, "drop a segment that is too small")));
            self.prepare_next(need);
            return None;
        }
        self.next = Next::None;
        self.unsealed.insert(prev.header.number);
        (self.seq, self.digest) = (chain.seq, frame_digest(&start));
        self.largest_bytes = self.largest_bytes.max(header.capacity_bytes);
        self.segments.all.push_back(Segment {
            header,
            file,
            first_place: self.filling.place,
            offsets: Vec::new(),
            end: DATA_START + start.len() as u64,
            last_seq: chain.seq,
            live_bytes: 0,
            footer: Vec::new(),
            stuck: false,
        });
        self.released = true;
        Some(start)
    }

    /// Number of the last append before the group being filled: its appends are counted again by whoever reads the segment.
    fn order_before_filling(&self) -> u64 {
        self.state.order - self.filling.appends
    }

    pub(super) fn complete_commit(&mut self, op: OpId, result: Result<DiskAnswer, DiskError>) {
        let Some(commit) = &self.commit else { return };
        match result {
            Ok(DiskAnswer::Written { buffers }) if op == commit.write => {
                debug_assert!(buffers.is_empty(), "a disk gives the vector back empty");
                self.spare_buffers = buffers;
            }
            Ok(_) if op == commit.sync => self.committed(),
            Ok(_) => {}
            Err(error) => {
                let what = if op == commit.write { "write a group" } else { "sync a group" };
                self.fail(what, error);
            }
        }
    }

    fn committed(&mut self) {
        let Some(commit) = self.commit.take() else { return };
        self.durable_seq = commit.seq;
        self.durable_place = commit.place + 1;
        self.durable = self.durable.max(commit.last);
        self.slow_told = false;
        if self.life == Life::Marked {
            self.life = Life::Closed;
        }
        while let Some(segment) = self.segments.all.front()
            && segment.header.number < commit.oldest
        {
            let segment = self.segments.all.pop_front().expect("there is a front");
            self.unsealed.remove(&segment.header.number);
            let useful = segment.header.capacity_bytes >= self.largest_bytes.min(self.config.segment_bytes_max);
            let script = if useful && self.spares.len() < SPARES_MAX {
                Script::recycle(&segment.header, segment.file)
            } else {
                Script::remove(segment.name(), segment.file, "remove a segment")
            };
            self.jobs.push_back(Job::Script(script));
        }
        self.seal();
        self.evict();
        self.accept_waiting();
        self.plan_moves();
    }

    /// Writes the footers of segments that are left. Only once the segment behind holds a durable group: until then a
    /// damaged start there must not void what a footer would overwrite.
    fn seal(&mut self) {
        let last = self.segments.all.back().expect("there is always a segment to write to").header.number;
        for number in mem::take(&mut self.unsealed) {
            let Some(segment) = self.segments.all.iter_mut().find(|segment| segment.header.number == number) else {
                continue;
            };
            if number == last {
                continue;
            }
            let entries = mem::take(&mut segment.footer);
            let room = segment.header.capacity_bytes - segment.end;
            if footer_bytes(entries.len()) > room {
                continue;
            }
            let seq = segment.last_seq;
            let chain = Chain { seq, durable: seq, prev_digest: 0 };
            let footer = footer_frame(&segment.header, segment.end, chain, &entries);
            debug_assert_eq!(footer.len() as u64, blocks(footer.len() as u64));
            let (file, end) = (segment.file, segment.end);
            self.jobs.push_back(Job::Script(Script::seal(file, end, footer)));
        }
    }

    /// Lets old batches go from memory, durable ones only.
    pub(super) fn evict(&mut self) {
        while self.cache_bytes > self.config.cache_bytes_max {
            let Some((stream, base, place, bytes)) = self.cache.front().copied() else { return };
            if place >= self.durable_place {
                return;
            }
            self.cache.pop_front();
            self.cache_bytes -= bytes as usize;
            if let Some(entry) = self.state.streams.get_mut(&stream).and_then(|stream| stream.at_base_mut(base))
                && entry.place == place
            {
                entry.cached = None;
            }
        }
    }

    pub(super) fn tell_slow(&mut self, segment_bytes: u64) {
        if !self.slow_told {
            self.slow_told = true;
            self.outputs.push_back(LogOutput::Event(LogEvent::NoSpace { segment_bytes }));
            self.outputs.push_back(LogOutput::Storage(StorageEvent::Slow));
        }
    }
}
