//! Taking storage actions into the group being filled.

use std::collections::VecDeque;

use replikit_core::{
    Batch, GroupId, LogIndex, Persist, Position, REGISTER_BYTES_MAX, SnapshotSource, StreamId, WriteId,
};

use super::{Barrier, Life, Log};
use crate::FileId;
use crate::format::Small;
use crate::job::{Job, Script};
use crate::lost::{LostBatch, LostHeader, LostWriter};
use crate::snapshot::{SnapshotHeader, SnapshotWriter, snapshot_uuid, unfinished_name};
use crate::state::{Entry, beyond};

fn bytes_of(op: &Persist) -> usize {
    match op {
        Persist::Append { batch, .. } => batch.bytes(),
        Persist::SnapshotChunk { chunk, .. } => chunk.len(),
        Persist::Register { bytes, .. } => bytes.len(),
        Persist::Snapshot { .. } | Persist::Reset { .. } | Persist::Release { .. } => 0,
    }
}

impl Log {
    pub(super) fn take_persist(&mut self, id: WriteId, op: Persist) {
        assert_eq!(id, self.persisted.next(), "write ids count from 1 without gaps");
        self.persisted = id;
        match self.life {
            Life::Open => {}
            Life::Failed => return,
            Life::Closing | Life::Marked | Life::Closed => panic!("the log was closed before {id:?} was handed to it"),
        }
        if self.must_wait() {
            self.waiting_bytes += bytes_of(&op);
            self.waiting.push_back((id, op));
        } else {
            self.accept(id, op);
        }
    }

    fn must_wait(&self) -> bool {
        !self.waiting.is_empty() || self.barrier.is_some() || self.is_full()
    }

    /// Most bytes that a group takes, unless one batch is larger.
    pub(super) fn group_bytes_max(&self) -> usize {
        let segment = self.segments.all.back().expect("there is always a segment to write to");
        self.config.group_bytes_max.min((segment.header.capacity_bytes / 4) as usize)
    }

    pub(super) fn is_full(&self) -> bool {
        !self.filling.is_empty() && self.filling.body.bytes() >= self.group_bytes_max()
    }

    /// Takes what has waited for as long as there is room.
    pub(super) fn accept_waiting(&mut self) {
        while self.barrier.is_none() && !self.is_full() {
            let Some((id, op)) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= bytes_of(&op);
            self.accept(id, op);
        }
    }

    fn accept(&mut self, id: WriteId, op: Persist) {
        self.accepted = id;
        match op {
            Persist::Append { batch, replace } => {
                self.append(batch, replace);
                self.wait_for_group(id);
            }
            Persist::Register { group, bytes } => {
                assert!(bytes.len() <= REGISTER_BYTES_MAX, "a register holds at most {REGISTER_BYTES_MAX} bytes");
                self.filling.small(Small::Register { group, bytes: bytes.clone() });
                self.state.register(group, bytes);
                self.wait_for_group(id);
            }
            Persist::Reset { stream, next } => {
                self.reset(stream, next);
                self.wait_for_group(id);
            }
            Persist::Release { stream, before } => {
                self.release(stream, before);
                self.settle(id);
            }
            Persist::Snapshot { at, source } => {
                self.take_snapshot(at, source);
                self.settle(id);
            }
            Persist::SnapshotChunk { at, offset, chunk, last } => {
                let queued_bytes = self.stage_chunk(at, offset, &chunk, last.then_some(id));
                if last {
                    self.barrier = Some(Barrier::Install);
                } else {
                    if queued_bytes > self.config.snapshot_queue_bytes_max {
                        self.barrier = Some(Barrier::Chunks);
                    }
                    self.settle(id);
                }
            }
        }
    }

    /// An action that is durable with the group being filled.
    fn wait_for_group(&mut self, id: WriteId) {
        self.filling.urgent = true;
        self.filling.last = id;
    }

    /// An action that needs no write of its own: it is as durable as what came before it.
    pub(super) fn settle(&mut self, id: WriteId) {
        if self.filling.urgent {
            self.filling.last = id;
        } else if let Some(commit) = &mut self.commit {
            commit.last = id;
        } else {
            self.durable = id;
        }
    }

    fn append(&mut self, batch: Batch, replace: bool) {
        let stream = batch.stream();
        let base = batch.base();
        let (next, boundary) = self.state.streams.get(&stream).map_or((LogIndex(0), true), |known| {
            let holds = known.entries.get(known.find(base));
            (known.next, holds.is_none_or(|entry| entry.base >= base))
        });
        if base < next {
            assert!(replace, "{batch:?} overlaps what its stream holds up to {next}, and is not to replace it");
            assert!(boundary, "{batch:?} begins inside another batch: logs diverge at batch boundaries");
            let dropped = self.state.truncate(stream, base);
            self.filling.small(Small::Truncate { stream, from: base });
            self.forget(&dropped);
            self.keep_lost(stream, dropped);
        }
        let at = self.filling.batch(&batch);
        self.filling.appends += 1;
        self.move_credit_bytes += batch.bytes() as u64;
        self.state.order += 1;
        let mut entry = Entry::of(&batch, self.state.order, self.filling.place, at);
        self.cache_bytes += batch.bytes();
        self.cache.push_back((stream, base, entry.place, entry.bytes));
        entry.cached = Some(batch);
        self.state.append(stream, entry);
    }

    fn reset(&mut self, stream: StreamId, next: LogIndex) {
        if let Some(taking) = self.taking.get_mut(&stream.group) {
            taking.releases.retain(|(_, waiting, _)| *waiting != stream);
        }
        let dropped = self.state.reset(stream, next);
        self.filling.small(Small::Reset { stream, next });
        self.forget(&dropped);
        self.keep_lost(stream, beyond(dropped, next));
        self.released = true;
    }

    /// Takes dropped batches off the books of their segments.
    fn forget(&mut self, dropped: &[Entry]) {
        for entry in dropped {
            self.unuse(entry.place, entry.bytes);
        }
        self.released = true;
    }

    pub(super) fn unuse(&mut self, place: u64, bytes: u32) {
        let live_bytes = if place == self.filling.place {
            &mut self.filling.live_bytes
        } else {
            &mut self.segments.of_place_mut(place).expect("a live batch lies in a segment that is kept").live_bytes
        };
        *live_bytes -= u64::from(bytes);
    }

    /// Keeps a dropped suffix in a file of its own.
    pub(super) fn keep_lost(&mut self, stream: StreamId, dropped: Vec<Entry>) {
        if dropped.is_empty() {
            return;
        }
        let header = LostHeader::of(self.config.cluster, self.config.node, stream, &dropped);
        let mut batches = VecDeque::with_capacity(dropped.len());
        for mut entry in dropped {
            batches.push_back(match entry.cached.take() {
                Some(batch) => LostBatch::Cached(batch),
                None => {
                    let (file, group) = self.segments.locate(entry.place).expect("what is not cached was written");
                    LostBatch::OnDisk { file, offset: group + u64::from(entry.at), entry }
                }
            });
        }
        let file = self.new_file();
        self.keeping += 1;
        self.jobs.push_back(Job::Keep(LostWriter::new(header, file, batches)));
    }

    fn release(&mut self, stream: StreamId, before: LogIndex) {
        match self.taking.get_mut(&stream.group) {
            Some(taking) if taking.durable < taking.asked => {
                let asked = taking.asked;
                // Only the furthest release behind each snapshot counts.
                let same = taking.releases.iter_mut().find(|waiting| (waiting.0, waiting.1) == (asked, stream));
                match same {
                    Some((_, _, waiting)) => *waiting = before.max(*waiting),
                    None => taking.releases.push_back((asked, stream, before)),
                }
            }
            _ => self.release_now(stream, before),
        }
    }

    /// An own snapshot is durable: the releases that have waited for it take effect.
    pub(super) fn taken(&mut self, group: GroupId, number: u64) {
        let taking = self.taking.entry(group).or_default();
        taking.durable = taking.durable.max(number);
        while let Some(taking) = self.taking.get_mut(&group)
            && let Some((asked, stream, before)) = taking.releases.front().copied()
            && asked <= taking.durable
        {
            taking.releases.pop_front();
            self.release_now(stream, before);
        }
    }

    pub(super) fn release_now(&mut self, stream: StreamId, before: LogIndex) {
        let known = self.state.streams.entry(stream).or_default();
        known.released = known.released.max(before);
        let before = self.held_back(stream, known_released(&self.state, stream));
        let known = self.state.streams.entry(stream).or_default();
        if before <= known.first {
            return;
        }
        self.filling.small(Small::Release { stream, before });
        let (filling, segments) = (&mut self.filling, &mut self.segments);
        let released = known.released;
        self.state.release(stream, before, |entry| {
            if entry.place == filling.place {
                filling.live_bytes -= u64::from(entry.bytes);
            } else {
                let segment = segments.of_place_mut(entry.place).expect("a live batch lies in a segment that is kept");
                segment.live_bytes -= u64::from(entry.bytes);
            }
        });
        self.state.streams.entry(stream).or_default().released = released;
        self.released = true;
    }

    fn snapshot_header(&mut self, at: Position, file: FileId) -> SnapshotHeader {
        let number = self.next_snapshot;
        self.next_snapshot += 1;
        let uuid = snapshot_uuid(&self.config, self.starts, file);
        SnapshotHeader { number, uuid, cluster: self.config.cluster, node: self.config.node, at }
    }

    fn take_snapshot(&mut self, at: Position, source: Box<dyn SnapshotSource>) {
        let file = self.new_file();
        let taking = self.taking.entry(at.stream.group).or_default();
        taking.asked += 1;
        let number = taking.asked;
        let header = self.snapshot_header(at, file);
        self.jobs.push_back(Job::Take(SnapshotWriter::new(header, file), source, number));
    }

    /// Returns the bytes of the snapshot that wait for the disk.
    fn stage_chunk(&mut self, at: Position, offset: u64, chunk: &[u8], last: Option<WriteId>) -> usize {
        let group = at.stream.group;
        let staged = self
            .jobs
            .iter()
            .position(|job| matches!(job, Job::Stage(writer, None) if writer.header.at.stream.group == group));
        let goes_on = staged.is_some_and(|staged| match &self.jobs[staged] {
            Job::Stage(writer, _) => offset > 0 && writer.header.at == at,
            _ => false,
        });
        let staged = match staged {
            Some(staged) if goes_on => staged,
            staged => {
                if let Some(staged) = staged {
                    self.abandon(staged);
                }
                let file = self.new_file();
                let header = self.snapshot_header(at, file);
                self.jobs.push_back(Job::Stage(SnapshotWriter::new(header, file), None));
                self.jobs.len() - 1
            }
        };
        let Job::Stage(writer, waits) = &mut self.jobs[staged] else {
            unreachable!("the position is that of a staged snapshot");
        };
        assert_eq!(writer.snapshot_bytes, offset, "the chunks of a snapshot come in order");
        writer.push(chunk);
        if last.is_some() {
            // Later than whatever was taken while it was being received.
            writer.header.number = self.next_snapshot;
            self.next_snapshot += 1;
            writer.end();
            *waits = last;
        }
        writer.queued_bytes()
    }

    /// Gives up an unfinished snapshot file.
    fn abandon(&mut self, job: usize) {
        let Job::Stage(writer, _) = &self.jobs[job] else {
            unreachable!("only staged snapshots are abandoned");
        };
        let file = writer.file;
        if writer.is_begun() {
            let script = Script::remove(unfinished_name(file), file, "drop an unfinished snapshot");
            // In its place: an operation of it may be under way, whose completion finds this instead.
            self.jobs[job] = Job::Script(script);
        } else {
            self.jobs.remove(job);
        }
    }
}

fn known_released(state: &crate::state::State, stream: StreamId) -> LogIndex {
    state.streams.get(&stream).map_or(LogIndex(0), |stream| stream.released)
}
