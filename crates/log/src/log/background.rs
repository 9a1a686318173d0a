//! Background work, one disk operation at a time, the jobs taking turns.

use std::collections::VecDeque;

use bytes::Bytes;
use replikit_core::{Batch, LogIndex, StorageEvent, StreamId};

use super::{Barrier, Life, Log, Next};
use crate::format::{DATA_START, SegmentHeader, Small, footer_bytes};
use crate::job::{Job, Moving, Outcome, Script, origin_of};
use crate::segment::{Use, next_capacity, segment_uuid, should_empty_oldest, spare_name};
use crate::snapshot::{SnapshotWriter, unfinished_name};
use crate::{DiskAnswer, DiskError, DiskOp, FileId, Lane, LogEvent, LogOutput, OpId};

/// Most attempts at preparing a segment on a full disk before a group that waits for it is given up, and the log with it.
const PREPARE_ATTEMPTS_MAX: u32 = 2;

/// What a job wants.
enum Step {
    Op(DiskOp),
    Wait,
    Done,
}

impl Log {
    /// Emits the next background operation, if none is under way.
    pub(super) fn start_background(&mut self) {
        if self.job_op.is_some() {
            return;
        }
        for _ in 0..self.jobs.len() {
            let Some(mut job) = self.jobs.pop_front() else { return };
            match self.step(&mut job) {
                Step::Op(op) => {
                    self.jobs.push_front(job);
                    self.job_op = Some(self.emit(Lane::Background, op));
                    return;
                }
                Step::Wait => self.jobs.push_back(job),
                Step::Done => self.finish(job),
            }
        }
    }

    fn step(&mut self, job: &mut Job) -> Step {
        let op = match job {
            Job::Script(script) => {
                if script.unread.is_some_and(|file| self.is_read(file)) {
                    return Step::Wait;
                }
                script.unread = None;
                script.ops.pop_front()
            }
            Job::Take(writer, source, _) => {
                writer.pull(&mut **source);
                writer.next_op()
            }
            Job::Stage(writer, _) => match writer.next_op() {
                None if !writer.is_done() => return Step::Wait,
                op => op,
            },
            Job::Keep(writer) => writer.next_op(),
            Job::Move(left) => return self.step_move(left),
        };
        op.map_or(Step::Done, Step::Op)
    }

    pub(super) fn complete_background(&mut self, op: OpId, result: Result<DiskAnswer, DiskError>) {
        if self.job_op != Some(op) {
            return;
        }
        self.job_op = None;
        let Some(mut job) = self.jobs.pop_front() else { return };
        let done = match (&mut job, result) {
            (Job::Keep(writer), Ok(DiskAnswer::Read(bytes))) => {
                let faulty = writer.read(Some(bytes)).map(|range| (writer.header.stream, range));
                self.tell_faulty(faulty);
                false
            }
            (Job::Keep(writer), Err(_)) if writer.is_reading() => {
                let faulty = writer.read(None).map(|range| (writer.header.stream, range));
                self.tell_faulty(faulty);
                false
            }
            (Job::Move(left), Ok(DiskAnswer::Read(bytes))) => {
                self.moved(left, Some(bytes));
                left.is_empty()
            }
            (Job::Move(left), _) => {
                self.moved(left, None);
                left.is_empty()
            }
            (Job::Script(script), Err(DiskError::NotFound)) if script.is_removal() => script.ops.is_empty(),
            (_, Err(error)) => return self.job_failed(job, error),
            (Job::Script(script), Ok(_)) => script.ops.is_empty(),
            (Job::Take(writer, ..), Ok(_)) => writer.is_done(),
            (Job::Stage(writer, _), Ok(_)) => writer.is_done(),
            (Job::Keep(writer), Ok(_)) => writer.is_done(),
        };
        if done {
            self.finish(job);
        } else {
            self.jobs.push_back(job);
        }
        self.lift_chunks();
    }

    fn tell_faulty(&mut self, faulty: Option<(StreamId, core::ops::RangeInclusive<LogIndex>)>) {
        if let Some((stream, range)) = faulty {
            self.outputs.push_back(LogOutput::Storage(StorageEvent::Faulty { stream, range }));
        }
    }

    /// A background operation failed. Lack of space is survivable where nobody was promised anything yet.
    fn job_failed(&mut self, job: Job, error: DiskError) {
        match job {
            Job::Script(script) if script.is_prepare() && error == DiskError::NoSpace => {
                let Outcome::Prepared(prepared) = script.outcome else { return };
                let name = spare_name(prepared.header.number);
                self.jobs.push_back(Job::Script(Script::remove(name, prepared.file, "drop a segment")));
                let attempts = self.prepare_attempts + 1;
                self.prepare_attempts = attempts;
                self.next = Next::Lacking;
                self.tell_slow(prepared.header.capacity_bytes);
            }
            Job::Take(writer, ..) if error == DiskError::NoSpace => {
                // The releases behind it go on waiting, for a later one that succeeds.
                self.drop_unfinished(writer.file);
                self.outputs.push_back(LogOutput::Event(LogEvent::NoSpace { segment_bytes: writer.snapshot_bytes }));
            }
            Job::Keep(writer) if error == DiskError::NoSpace => {
                // The dropped batches stay where they are: no segment goes while one is not kept. The next opening tries again.
                self.drop_unfinished(writer.file);
                self.outputs.push_back(LogOutput::Event(LogEvent::NoSpace { segment_bytes: 0 }));
            }
            Job::Script(script) => self.fail(script.what, error),
            Job::Take(..) => self.fail("write a snapshot", error),
            Job::Stage(..) => self.fail("write a received snapshot", error),
            Job::Keep(_) => self.fail("keep a dropped suffix", error),
            Job::Move(_) => {}
        }
    }

    fn drop_unfinished(&mut self, file: FileId) {
        let script = Script::remove(unfinished_name(file), file, "drop an unfinished file");
        self.jobs.push_back(Job::Script(script));
    }

    fn finish(&mut self, job: Job) {
        match job {
            Job::Script(script) => match script.outcome {
                Outcome::Prepared(prepared) => {
                    self.prepare_attempts = 0;
                    self.slow_told = false;
                    self.next = Next::Ready(prepared);
                }
                Outcome::Recycled(spare) => self.spares.push(spare),
                Outcome::Nothing => {}
            },
            Job::Take(writer, _, number) => {
                let group = writer.header.at.stream.group;
                self.install(writer);
                self.taken(group, number);
            }
            Job::Stage(writer, id) => {
                self.install(writer);
                self.barrier = None;
                self.settle(id.expect("only a snapshot whose last chunk is in gets done"));
                self.accept_waiting();
            }
            Job::Keep(writer) => {
                self.keeping -= 1;
                self.released = true;
                self.outputs.push_back(LogOutput::Event(LogEvent::LostKept {
                    stream: writer.header.stream,
                    range: writer.header.range.clone(),
                    term: writer.header.term,
                    file: writer.header.name(),
                }));
            }
            Job::Move(_) => self.released = true,
        }
    }

    /// A snapshot is durable: the older one goes.
    fn install(&mut self, writer: SnapshotWriter) {
        let snapshot = writer.into_file();
        let (at, group) = (snapshot.header.at, snapshot.group());
        if self.snapshots.get(&group).is_some_and(|known| known.header.number > snapshot.header.number) {
            let script = Script::remove(snapshot.name, snapshot.file, "drop an old snapshot");
            self.jobs.push_back(Job::Script(script));
            return;
        }
        self.outputs
            .push_back(LogOutput::Event(LogEvent::SnapshotDurable { at, snapshot_bytes: snapshot.snapshot_bytes }));
        // In front of the releases that it allows, which go into this group or a later one.
        let number = snapshot.header.number;
        self.filling.small(Small::Snapshot { group, number });
        self.state.need_snapshot(group, number);
        if let Some(old) = self.snapshots.insert(group, snapshot) {
            let script = Script::remove(old.name, old.file, "drop an old snapshot");
            self.jobs.push_back(Job::Script(script));
        }
    }

    /// Lets storage actions on again once the disk has caught up with the snapshot chunks.
    fn lift_chunks(&mut self) {
        if self.barrier != Some(Barrier::Chunks) {
            return;
        }
        let queued: usize = self
            .jobs
            .iter()
            .map(|job| if let Job::Stage(writer, _) = job { writer.queued_bytes() } else { 0 })
            .max()
            .unwrap_or(0);
        if queued <= self.config.snapshot_queue_bytes_max / 2 {
            self.barrier = None;
            self.accept_waiting();
        }
    }

    /// Has the next segment prepared. With `need`, a group of that many bytes waits for it.
    pub(super) fn prepare_next(&mut self, need: u64) {
        match self.next {
            Next::None => {}
            Next::Preparing | Next::Ready(_) => return,
            Next::Lacking if need == 0 && self.spares.is_empty() => return,
            Next::Lacking if self.spares.is_empty() && self.prepare_attempts >= PREPARE_ATTEMPTS_MAX => {
                return self.fail("prepare a segment", DiskError::NoSpace);
            }
            Next::Lacking => {}
        }
        let need = if need == 0 { 0 } else { need + footer_bytes(self.filling.footer.len()) };
        let largest = if self.prepare_attempts == 0 { self.largest_bytes } else { 0 };
        let capacity_bytes = next_capacity(&self.config, largest, need);
        let least = if self.prepare_attempts == 0 { capacity_bytes } else { DATA_START + need };
        let spare = self.spares.iter().position(|spare| spare.capacity_bytes >= least);
        let spare = spare.map(|at| self.spares.swap_remove(at));
        let number = self.next_number;
        self.next_number += 1;
        let header = SegmentHeader {
            cluster: self.config.cluster,
            node: self.config.node,
            number,
            uuid: segment_uuid(&self.config, self.starts, number),
            capacity_bytes: spare.as_ref().map_or(capacity_bytes, |spare| spare.capacity_bytes),
            origin: origin_of(spare.is_some()),
        };
        let file = spare.as_ref().map_or_else(|| self.new_file(), |spare| spare.file);
        // In front: a group may be waiting for it. The very first belongs to the job whose operation is under way.
        let at = usize::from(self.job_op.is_some());
        self.jobs.insert(at, Job::Script(Script::prepare(header, file, spare)));
        self.next = Next::Preparing;
    }

    /// Begins to empty the oldest segment when that is worth it.
    pub(super) fn plan_moves(&mut self) {
        if !self.released || self.segments.all.len() < 2 || self.jobs.iter().any(|job| matches!(job, Job::Move(_))) {
            return;
        }
        self.released = false;
        let used = self
            .segments
            .all
            .iter()
            .take(self.segments.all.len() - 1)
            .map(|segment| Use { capacity_bytes: segment.header.capacity_bytes, live_bytes: segment.live_bytes });
        let (oldest, second) = (&self.segments.all[0], &self.segments.all[1]);
        let live = self.segments.all.iter().map(|segment| segment.live_bytes).sum();
        if oldest.live_bytes == 0 || oldest.stuck || !should_empty_oldest(used, live) {
            return;
        }
        if oldest.live_bytes > self.move_credit_bytes {
            self.released = true;
            return;
        }
        self.move_credit_bytes -= oldest.live_bytes;
        let places = oldest.first_place..second.first_place;
        let mut left = VecDeque::new();
        for (stream, state) in &self.state.streams {
            let here = state.entries.iter().filter(|entry| places.contains(&entry.place));
            left.extend(here.map(|entry| Moving { stream: *stream, base: entry.base, place: entry.place }));
        }
        self.jobs.push_back(Job::Move(left));
    }

    fn step_move(&mut self, left: &mut VecDeque<Moving>) -> Step {
        while let Some(Moving { stream, base, place }) = left.front().copied() {
            let entry = self.state.streams.get(&stream).and_then(|stream| stream.at_base(base));
            let Some(entry) = entry.filter(|entry| entry.place == place) else {
                left.pop_front();
                continue;
            };
            if self.life != Life::Open || self.filling.body.bytes() >= self.group_bytes_max() / 2 {
                return Step::Wait;
            }
            let Some(batch) = entry.cached.clone() else {
                let (file, group) = self.segments.locate(place).expect("a batch that is moved was written");
                let (offset, bytes) = (group + u64::from(entry.at), entry.bytes as usize);
                return Step::Op(DiskOp::Read { file, offset, bytes });
            };
            left.pop_front();
            self.forward(stream, batch);
        }
        Step::Done
    }

    /// The batch that was to be moved has been read, or cannot be.
    fn moved(&mut self, left: &mut VecDeque<Moving>, bytes: Option<Bytes>) {
        let Some(Moving { stream, base, place }) = left.pop_front() else { return };
        let entry = self.state.streams.get(&stream).and_then(|stream| stream.at_base(base));
        let Some(entry) = entry.filter(|entry| entry.place == place) else { return };
        let range = entry.base..=entry.last();
        let batch = bytes.and_then(|bytes| Batch::verify(bytes, self.config.cluster).ok());
        match batch.filter(|batch| batch.stream() == stream && batch.base() == base) {
            Some(batch) if self.life == Life::Open => self.forward(stream, batch),
            Some(_) => {}
            None => {
                left.clear();
                if let Some(segment) = self.segments.of_place_mut(place) {
                    segment.stuck = true;
                }
                self.tell_faulty(Some((stream, range)));
            }
        }
    }

    /// Writes a live batch once more, into the group being filled; from now on it stands there.
    fn forward(&mut self, stream: StreamId, batch: Batch) {
        let place = self.filling.place;
        let entry = self.state.streams.get_mut(&stream).and_then(|stream| stream.at_base_mut(batch.base()));
        let entry = entry.expect("only a batch that is there is moved");
        let (old, bytes) = (entry.place, entry.bytes);
        self.filling.small(Small::Forward { stream, order: entry.order });
        entry.at = self.filling.batch(&batch);
        entry.place = place;
        self.cache_bytes += batch.bytes();
        self.cache.push_back((stream, batch.base(), place, bytes));
        entry.cached = Some(batch);
        self.filling.urgent = true;
        self.unuse(old, bytes);
    }
}
