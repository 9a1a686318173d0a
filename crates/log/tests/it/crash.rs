//! Random actions, random progress of the disk, loss of power at any disk operation with any subset of unsynced sectors
//! kept; then the recovered log is compared with a model of every prefix of the actions.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{
    Batch, BytesSource, GroupId, LogId, LogIndex, NodeId, Persist, Position, StorageEvent, StreamId, Term, WriteId,
};
use replikit_log::{
    Disk, DiskError, DiskOp, Lane, Log, LogConfig, LogOutput, MemDisk, OpId, RecoveryItem, Storage, drive,
};

use crate::support::{batch, cluster, stream};

const STREAMS: [(u32, u32); 4] = [(1, 0), (1, 7), (2, 0), (3, 0)];

fn config() -> LogConfig {
    LogConfig {
        segment_bytes_min: 64 << 10,
        segment_bytes_max: 256 << 10,
        cache_bytes_max: 32 << 10,
        snapshot_queue_bytes_max: 128 << 10,
        ..LogConfig::new(cluster(), NodeId(1))
    }
}

/// What a stream holds.
#[derive(Clone, Debug, Default, PartialEq)]
struct StreamModel {
    /// Since the last reset, released ones included.
    batches: Vec<Batch>,
    next: u64,
    released: u64,
}

/// What the log holds after some number of actions.
#[derive(Clone, Debug, Default)]
struct Model {
    streams: BTreeMap<StreamId, StreamModel>,
    registers: BTreeMap<GroupId, Bytes>,
}

/// Names of files that must keep what a replacement dropped.
fn lost_name(stream: StreamId, dropped: &[Batch]) -> String {
    let (first, last) = (&dropped[0], &dropped[dropped.len() - 1]);
    format!(
        "lost-{:08x}-{:08x}-{:016x}-{:016x}-{:016x}.lost",
        stream.group.0,
        stream.origin.0,
        first.term().0,
        first.base().0,
        last.last().index.0
    )
}

fn snapshot_bytes(at: Position) -> Bytes {
    let bytes = (at.id.index.0 * 7919 % 700_000) as usize;
    (0..bytes).map(|i| (i as u64 * 31 + at.id.index.0) as u8).collect::<Vec<u8>>().into()
}

/// A log under test, its disk, and every state that it may recover to.
struct World {
    rng: Rng,
    disk: MemDisk,
    log: Log,
    persisted: WriteId,
    durable: WriteId,
    /// After each action; the first is what was recovered.
    history: Vec<Model>,
    /// Actions whose replacement dropped something, with the file that must keep it.
    dropped: Vec<(WriteId, String)>,
    snapshots: BTreeMap<GroupId, Vec<Position>>,
    term: u64,
    lanes: BTreeMap<Lane, VecDeque<(OpId, DiskOp)>>,
    incarnation: u32,
    failed: bool,
    /// A disk operation is made to fail: it may be a read.
    injected: bool,
    /// Offset of the next chunk of a snapshot that is being received.
    receiving: Option<(Position, usize)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut disk = MemDisk::with_sectors(if rng.bool() { 512 } else { 4096 });
        let (log, recovered) = Log::open(config(), &mut disk).expect("an empty directory opens");
        assert_eq!(recovered.boots.incarnation(), 0);
        Self {
            rng,
            disk,
            log,
            persisted: WriteId(0),
            durable: WriteId(0),
            history: vec![Model::default()],
            dropped: Vec::new(),
            snapshots: BTreeMap::new(),
            term: 1,
            lanes: BTreeMap::new(),
            incarnation: 0,
            failed: false,
            injected: false,
            receiving: None,
        }
    }

    fn now(&self) -> &Model {
        self.history.last().expect("there is always a state")
    }

    fn persist(&mut self, op: Persist, change: impl FnOnce(&mut Model)) {
        let mut model = self.now().clone();
        change(&mut model);
        self.history.push(model);
        self.persisted = self.persisted.next();
        self.log.persist(self.persisted, op);
    }

    fn act(&mut self) {
        let (group, origin) = STREAMS[self.rng.usize(..STREAMS.len())];
        let id = stream(group, origin);
        let known = self.now().streams.get(&id).cloned().unwrap_or_default();
        match self.rng.u32(..100) {
            0..55 => {
                let base = known.next.max(1);
                let (count, bytes) = (self.rng.usize(1..6), self.rng.usize(0..2500));
                let made = batch(id, base, self.term, count, bytes);
                let op = Persist::Append { batch: made.clone(), replace: self.rng.bool() };
                self.persist(op, |model| {
                    let stream = model.streams.entry(id).or_default();
                    stream.next = made.last().index.0 + 1;
                    stream.batches.push(made);
                });
            }
            55..65 if !known.batches.is_empty() => {
                self.term += 1;
                let keep = self.rng.usize(known.batches.len().saturating_sub(4)..known.batches.len());
                let base = known.batches[keep].base().0;
                // What a snapshot holds is committed: no leader replaces it.
                let committed = self.snapshots.get(&id.group).into_iter().flatten().filter(|at| at.stream == id);
                if base < known.released || committed.map(|at| at.id.index.0).max().is_some_and(|last| base <= last) {
                    return;
                }
                let made = batch(id, base, self.term, self.rng.usize(1..4), self.rng.usize(0..200));
                let name = lost_name(id, &known.batches[keep..]);
                self.persist(Persist::Append { batch: made.clone(), replace: true }, |model| {
                    let stream = model.streams.entry(id).or_default();
                    stream.batches.truncate(keep);
                    stream.next = made.last().index.0 + 1;
                    stream.batches.push(made);
                });
                self.dropped.push((self.persisted, name));
            }
            65..75 => {
                let bytes: Bytes = vec![self.rng.u8(..); self.rng.usize(1..60)].into();
                self.persist(Persist::Register { group: GroupId(group), bytes: bytes.clone() }, |model| {
                    model.registers.insert(GroupId(group), bytes);
                });
            }
            75..83 if origin == 0 && known.next > 1 => {
                let Some(first) = known.batches.first().map(|first| first.base().0.max(known.released)) else { return };
                if first >= known.next {
                    return;
                }
                // A state machine only goes on.
                let taken = self.snapshots.get(&GroupId(group)).into_iter().flatten().filter(|at| at.stream == id);
                let first = taken.map(|at| at.id.index.0).max().map_or(first, |taken| taken.max(first));
                if first >= known.next {
                    return;
                }
                let index = self.rng.u64(first..known.next);
                let at = self.position(id, index);
                self.snapshots.entry(GroupId(group)).or_default().push(at);
                let source = Box::new(BytesSource::new(snapshot_bytes(at)));
                self.persist(Persist::Snapshot { at, source }, |_| {});
                let before = at.id.index.0 + 1;
                if self.rng.bool() {
                    self.persist(Persist::Release { stream: id, before: LogIndex(before) }, |model| {
                        let stream = model.streams.entry(id).or_default();
                        stream.released = stream.released.max(before);
                    });
                }
            }
            83..88 if origin != 0 && !known.batches.is_empty() => {
                let before = known.batches[self.rng.usize(..known.batches.len())].base().0;
                self.persist(Persist::Release { stream: id, before: LogIndex(before) }, |model| {
                    let stream = model.streams.entry(id).or_default();
                    stream.released = stream.released.max(before);
                });
            }
            88..94 => self.receive(id, known.next),
            _ => {}
        }
    }

    fn position(&self, stream: StreamId, index: u64) -> Position {
        let holds = self
            .now()
            .streams
            .get(&stream)
            .and_then(|known| known.batches.iter().find(|batch| batch.range().contains(&LogIndex(index))));
        let term = holds.map_or(Term(self.term), Batch::term);
        Position { stream, id: LogId { term, index: LogIndex(index) }, digest: 1 }
    }

    /// A snapshot from a peer, chunk by chunk over several actions.
    fn receive(&mut self, id: StreamId, next: u64) {
        if id.origin.0 != 0 && self.receiving.is_none() {
            return;
        }
        let (at, offset) = match self.receiving {
            Some(receiving) => receiving,
            None => {
                self.term += 1;
                let index = next.max(2) + self.rng.u64(..50);
                (Position { stream: id, id: LogId { term: Term(self.term), index: LogIndex(index) }, digest: 1 }, 0)
            }
        };
        // A replica does not install what is behind its own snapshot.
        let taken = self.snapshots.get(&at.stream.group).into_iter().flatten().filter(|own| own.stream == at.stream);
        let released = self.now().streams.get(&at.stream).map_or(0, |known| known.released);
        if at.id.index.0 < released.max(taken.map(|own| own.id.index.0).max().unwrap_or(0)) {
            self.receiving = None;
            return;
        }
        let bytes = snapshot_bytes(at);
        let end = bytes.len().min(offset + self.rng.usize(1..300_000));
        let last = end == bytes.len();
        let chunk = bytes.slice(offset..end);
        self.receiving = (!last).then_some((at, end));
        self.persist(Persist::SnapshotChunk { at, offset: offset as u64, chunk, last }, |_| {});
        if last {
            self.snapshots.entry(at.stream.group).or_default().push(at);
            let next = at.id.index.0 + 1;
            let stream = at.stream;
            let beyond: Vec<Batch> = self
                .now()
                .streams
                .get(&stream)
                .map(|known| known.batches.iter().filter(|batch| batch.last().index.0 >= next).cloned().collect())
                .unwrap_or_default();
            self.persist(Persist::Reset { stream, next: LogIndex(next) }, |model| {
                model.streams.insert(stream, StreamModel { batches: Vec::new(), next, released: next });
            });
            if !beyond.is_empty() {
                self.dropped.push((self.persisted, lost_name(stream, &beyond)));
            }
        }
    }

    fn gather(&mut self) {
        while let Some((id, op)) = self.log.poll_disk() {
            self.lanes.entry(id.lane).or_default().push_back((id, op));
        }
        while let Some(output) = self.log.poll() {
            match output {
                LogOutput::Durable { up_to } => {
                    assert!(!self.failed, "nothing becomes durable after a failure");
                    assert!(self.durable < up_to && up_to <= self.persisted, "the watermark grows");
                    self.durable = up_to;
                }
                LogOutput::Storage(StorageEvent::Failed) => {
                    assert!(!self.failed, "a failure is told once");
                    self.failed = true;
                }
                LogOutput::Storage(StorageEvent::Faulty { .. }) if !self.injected => {
                    panic!("nothing is faulty here: {output:?}")
                }
                _ => {}
            }
        }
    }

    /// Carries out some disk operations, lanes in random order.
    fn progress(&mut self, steps: usize) {
        for _ in 0..steps {
            self.gather();
            let busy: Vec<Lane> = self.lanes.iter().filter(|(_, ops)| !ops.is_empty()).map(|(lane, _)| *lane).collect();
            if busy.is_empty() {
                return;
            }
            let lane = busy[self.rng.usize(..busy.len())];
            let (id, op) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front).expect("the lane is busy");
            let result = self.disk.execute(op);
            self.log.complete(id, result);
        }
        self.gather();
    }

    /// Loses power, perhaps with operations carried out whose completion was never seen; opens again and compares.
    fn crash(&mut self) {
        self.gather();
        for ops in self.lanes.values_mut() {
            while let Some((_, op)) = ops.pop_front() {
                if self.rng.bool() {
                    break;
                }
                drop(self.disk.execute(op));
            }
            ops.clear();
        }
        let keep = self.rng.u32(0..=4);
        let rng = &mut self.rng;
        self.disk.crash(&mut || rng.u32(..4) < keep);
        let starts = self.incarnation + 1;
        let opened = self.rng.u32(..4) == 0;
        if opened {
            self.crash_while_opening();
        }
        // An opening that fails late may count as a start.
        self.reopen(starts..=starts + u32::from(opened));
    }

    fn crash_while_opening(&mut self) {
        let mut disk = self.disk.clone();
        let at = disk.operations() + self.rng.u64(1..40);
        disk.fail_at(at, DiskError::Io { code: 5 });
        if let Err(error) = Log::open(config(), &mut disk) {
            assert!(format!("{error}").contains("input/output error"), "{error}");
        }
        disk.fail_at(0, DiskError::NotFound);
        let keep = self.rng.u32(0..=4);
        let rng = &mut self.rng;
        disk.crash(&mut || rng.u32(..4) < keep);
        self.disk = disk;
    }

    fn reopen(&mut self, incarnations: core::ops::RangeInclusive<u32>) {
        let (log, recovered) = match Log::open(config(), &mut self.disk) {
            Ok(opened) => opened,
            Err(error) => panic!("a crash is no corruption: {error}"),
        };
        let incarnation = recovered.boots.incarnation();
        assert!(incarnations.contains(&incarnation), "{incarnation} is not in {incarnations:?}");
        self.incarnation = incarnation;

        let mut chunks: BTreeMap<GroupId, (Position, Vec<u8>, bool)> = BTreeMap::new();
        let mut found: BTreeMap<StreamId, Vec<Batch>> = BTreeMap::new();
        for item in log.recovery(&mut self.disk) {
            match item.expect("what was verified can be read") {
                RecoveryItem::SnapshotChunk { at, chunk, last } => {
                    let (known, bytes, done) = chunks.entry(at.stream.group).or_insert_with(|| (at, Vec::new(), false));
                    assert!(*known == at && !*done && found.is_empty(), "snapshots come first, whole");
                    bytes.extend_from_slice(&chunk);
                    *done = last;
                }
                RecoveryItem::Batch(batch) => found.entry(batch.stream()).or_default().push(batch),
            }
        }
        let mut snapshots = BTreeMap::new();
        for (group, (at, bytes, done)) in chunks {
            assert!(done && bytes == snapshot_bytes(at), "the snapshot of {group} is whole");
            assert!(self.snapshots[&group].contains(&at), "{at:?} was written");
            assert_eq!(recovered.boots.of(group).snapshot, Some(at));
            snapshots.insert(group, at);
        }
        for (group, boot) in recovered.boots.iter() {
            assert!(boot.snapshot.is_none() || snapshots.contains_key(&group));
        }

        let registers: BTreeMap<GroupId, Bytes> = recovered
            .boots
            .iter()
            .filter(|(_, boot)| !boot.register.is_empty())
            .map(|(group, boot)| (group, boot.register.clone()))
            .collect();
        let mut why = String::new();
        let survivor = (self.durable.0..=self.persisted.0).rev().find(|at| {
            match matches(&self.history[*at as usize..], &found, &registers, &snapshots) {
                Ok(()) => true,
                Err(reason) => {
                    why.push_str(&format!("\n  after {at}: {reason}"));
                    false
                }
            }
        });
        let Some(survivor) = survivor else {
            panic!("durable {:?}, persisted {:?}, recovered nothing of the kind:{why}", self.durable, self.persisted);
        };

        self.log = log;
        drive(&mut self.log, &mut self.disk);
        let names: Vec<String> = self.disk.names().map(|name| name.as_str().to_owned()).collect();
        for (id, name) in &self.dropped {
            assert!(*id > self.durable || names.contains(name), "{name} keeps what {id:?} dropped");
        }
        self.dropped.retain(|(id, _)| *id <= self.durable);
        for (id, _) in &mut self.dropped {
            *id = WriteId(0);
        }
        // What was recovered is what the next actions build on.
        let mut model = self.history[survivor as usize].clone();
        model.registers = registers;
        for (id, state) in &mut model.streams {
            state.batches = found.remove(id).unwrap_or_default();
            state.next = state.next.max(state.batches.last().map_or(0, |last| last.last().index.0 + 1));
            if let Some(at) = snapshots.get(&id.group).filter(|at| at.stream == *id)
                && is_void(&self.history[survivor as usize].streams[id], at)
            {
                state.next = at.id.index.0 + 1;
                state.released = state.next;
            }
            if let Some(first) = state.batches.first() {
                state.released = state.released.max(first.base().0);
            } else {
                state.released = state.released.max(state.next);
            }
        }
        self.history = vec![model];
        (self.persisted, self.durable) = (WriteId(0), WriteId(0));
        self.lanes.clear();
        self.failed = false;
        self.receiving = None;
        self.gather();
    }
}

/// Whether a snapshot is ahead of a stream, or of another history.
fn is_void(model: &StreamModel, at: &Position) -> bool {
    let holds = model.batches.iter().find(|batch| batch.range().contains(&at.id.index));
    model.next <= at.id.index.0 || holds.is_some_and(|batch| batch.term() != at.id.term)
}

/// Whether what was recovered is the state of a model. Released batches may be there or not, from the front; a snapshot that
/// is ahead of its stream voids it; a register may come from the second copy of a group that was torn, and so be later.
fn matches(
    models: &[Model],
    found: &BTreeMap<StreamId, Vec<Batch>>,
    registers: &BTreeMap<GroupId, Bytes>,
    snapshots: &BTreeMap<GroupId, Position>,
) -> Result<(), String> {
    let model = &models[0];
    for group in model.registers.keys().chain(registers.keys()) {
        let found = registers.get(group);
        if !models.iter().any(|model| model.registers.get(group) == found) {
            return Err(format!("register {found:?}, not {:?} or later", model.registers.get(group)));
        }
    }
    let none = StreamModel::default();
    let streams = model.streams.keys().chain(found.keys());
    for id in streams {
        let model = model.streams.get(id).unwrap_or(&none);
        let found = found.get(id).map_or(&[][..], |found| &found[..]);
        let snapshot = snapshots.get(&id.group).filter(|at| at.stream == *id);
        if let Some(at) = snapshot.filter(|at| is_void(model, at)) {
            if found.is_empty() {
                continue;
            }
            return Err(format!("{id} holds {found:?} though the snapshot at {at:?} voids it: {model:?}"));
        }
        if !model.batches.ends_with(found) {
            return Err(format!("{id} holds {found:?}, which does not end {:?}", model.batches));
        }
        let missing = &model.batches[..model.batches.len() - found.len()];
        if let Some(batch) = missing.iter().find(|batch| batch.last().index.0 >= model.released) {
            return Err(format!("{id} misses {batch:?}, released only below {}", model.released));
        }
        if id.origin.0 == 0
            && let Some(batch) = missing.last()
            && snapshot.is_none_or(|at| at.id.index < batch.last().index)
        {
            return Err(format!("{id} misses {batch:?}, which no durable snapshot holds: {snapshot:?}"));
        }
    }
    Ok(())
}

/// `SEED` alone, or as many as `SEEDS` says, the first of them `FROM`.
fn seeds() -> core::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("FROM").unwrap_or(0);
            from..from + number("SEEDS").unwrap_or(40)
        }
    }
}

/// Runs a test for each seed, and says which failed.
fn each_seed(test: impl Fn(u64)) {
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = outcome {
            eprintln!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn after_any_crash_the_log_holds_a_prefix_of_the_actions_that_includes_all_durable_ones() {
    each_seed(|seed| {
        let mut world = World::new(seed);
        for _ in 0..6 {
            for _ in 0..world.rng.usize(5..120) {
                for _ in 0..world.rng.usize(1..8) {
                    world.act();
                }
                let steps = world.rng.usize(..12);
                world.progress(steps);
            }
            if world.rng.u32(..4) == 0 {
                world.progress(100_000);
                assert_eq!(world.durable, world.persisted, "an idle log has nothing left to do");
            }
            world.crash();
        }
    });
}

#[test]
fn after_a_failed_disk_operation_nothing_is_confirmed_and_what_was_is_kept() {
    each_seed(fail_disk_operations);
}

/// A batch was moved forward in the first group of a segment; that group was torn, but the segment's start, which already
/// said that the older segment is not needed any more, was not: so the older segment went, and with it the batch.
#[test]
fn a_torn_group_that_moved_a_batch_forward_does_not_cost_the_batch() {
    fail_disk_operations(2930);
}

fn fail_disk_operations(seed: u64) {
    let mut world = World::new(seed ^ 0xf00d);
    world.injected = true;
    for _ in 0..5 {
        let at = world.disk.operations() + world.rng.u64(1..600);
        let error = if world.rng.bool() { DiskError::NoSpace } else { DiskError::Io { code: 5 } };
        world.disk.fail_at(at, error);
        for _ in 0..world.rng.usize(5..80) {
            for _ in 0..world.rng.usize(1..8) {
                world.act();
            }
            let steps = world.rng.usize(..20);
            world.progress(steps);
        }
        world.disk.fail_at(0, error);
        world.crash();
    }
}

#[test]
fn a_closed_log_opens_as_a_clean_start_with_everything_in_it() {
    each_seed(|seed| {
        let mut world = World::new(seed ^ 0xc105e);
        for _ in 0..4 {
            for _ in 0..world.rng.usize(1..60) {
                world.act();
            }
            world.progress(100_000);
            if world.receiving.is_none() {
                assert_eq!(world.durable, world.persisted);
            }
            world.log.close();
            drive(&mut world.log, &mut world.disk);
            world.gather();
            assert!(world.log.is_closed());
            world.disk.crash(&mut || false);
            // The incarnation stays after a clean start.
            world.reopen(world.incarnation..=world.incarnation);
        }
    });
}
