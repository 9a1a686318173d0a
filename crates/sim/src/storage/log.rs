//! The real log, its bytes on a disk in memory that loses what was not synced, in any subset of sectors, and does worse.
//!
//! Invariant: operations of one lane are carried out in order, one at a time; those of different lanes in the order in which
//! they end. An operation is carried out when it ends, so a crash meets it undone, or, if it is a write, done in part.

use std::collections::{BTreeMap, VecDeque};

use replikit_core::{
    ClusterId, GroupId, LogIndex, NodeId, Persist, Position, StorageEvent, StreamId, Ticket, Time, WriteId,
};
use replikit_log::{Disk, DiskError, DiskOp, Lane, Log, LogConfig, LogEvent, LogOutput, OpId, OpenError, Storage};

use super::disk::FaultyDisk;
use super::shadow::Shadow;
use super::{Boots, Recovery, RecoveryItem, SimStorage, StartError, StorageContext, StorageOutput};
use crate::fault::Fault;
use crate::settings::around;

#[derive(Debug)]
struct Operation {
    id: OpId,
    op: DiskOp,
    due: Time,
}

/// A lane's operations; only the first one is under way.
#[derive(Debug, Default)]
struct Queue {
    under_way: Option<Operation>,
    waiting: VecDeque<(OpId, DiskOp)>,
}

/// The real log on a simulated disk.
#[derive(Debug)]
pub struct LogStorage {
    cluster: ClusterId,
    node: NodeId,
    config: Option<LogConfig>,
    disk: FaultyDisk,
    log: Option<Log>,
    refused: bool,
    impaired: bool,
    // A promise that the log broke while it was running; told at the next storage action or start.
    broken: Option<String>,
    shadow: Shadow,
    // What the log has said, and when: it answers from memory at once, without any disk operation.
    outputs: VecDeque<(Time, StorageOutput)>,
    lanes: BTreeMap<Lane, Queue>,
    slow_at: Option<Time>,
    stalled_until: Time,
}

/// How an opening ended.
enum Opening {
    Opened(Box<Log>, Recovery),
    /// The process crashed amid it.
    Crashed,
    /// The disk is damaged.
    Refused(String),
}

impl LogStorage {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("the storage is used only between a start and a crash")
    }

    /// Small segments, so that a run of seconds fills several; buffers from tiny to plenty.
    fn draw_config(&self, context: &mut StorageContext<'_>) -> LogConfig {
        let rng = &mut *context.rng;
        let mut config = LogConfig::new(self.cluster, self.node);
        config.segment_bytes_min = 64 << 10;
        config.segment_bytes_max = 128 << 10;
        config.group_bytes_max = 1 << rng.u32(12..17);
        config.cache_bytes_max = if rng.bool() { 1 << rng.u32(6..16) } else { 16 << 20 };
        config.snapshot_queue_bytes_max = 1 << rng.u32(6..16);
        config
    }

    /// What an opening that failed means.
    fn failed(&self, error: &OpenError) -> Result<Opening, StartError> {
        match error {
            OpenError::Disk { error: DiskError::Io { .. }, .. } if self.disk.was_unreadable() => {
                Ok(Opening::Refused(error.to_string()))
            }
            OpenError::Disk { error: DiskError::Io { .. } | DiskError::NoSpace | DiskError::ReadOnly, .. } => {
                Ok(Opening::Crashed)
            }
            // Where a read was answered wrongly, trying again is what an operator does.
            OpenError::Corrupt(_) if self.disk.is_damaged() || self.disk.was_misread() => {
                Ok(Opening::Refused(error.to_string()))
            }
            error => Err(StartError::Broken(format!("a sound disk was refused: {error}"))),
        }
    }

    fn open(&mut self, config: LogConfig, context: &mut StorageContext<'_>) -> Result<Opening, StartError> {
        let (log, recovered) = match Log::open(config, &mut self.disk) {
            Ok(opened) => opened,
            Err(error) => return self.failed(&error),
        };
        if recovered.events.iter().any(|event| matches!(event, LogEvent::TailCut { .. })) {
            context.counts[Fault::TailCut] += 1;
        }
        let items = log
            .recovery(&mut self.disk)
            .map(|item| {
                item.map(|item| match item {
                    replikit_log::RecoveryItem::SnapshotChunk { at, chunk, last } => {
                        RecoveryItem::SnapshotChunk { at, chunk, last }
                    }
                    replikit_log::RecoveryItem::Batch(batch) => RecoveryItem::Batch(batch),
                })
            })
            .collect::<Result<Vec<_>, OpenError>>();
        let items = match items {
            Err(error) => return self.failed(&error),
            Ok(items) => items,
        };
        let groups = recovered.boots.iter().map(|(group, boot)| (group, boot.clone())).collect();
        let boots = Boots { groups, incarnation: recovered.boots.incarnation() };
        Ok(Opening::Opened(Box::new(log), Recovery { boots, items }))
    }

    fn lose_power(&mut self, context: &mut StorageContext<'_>) {
        let lose = context.settings.lose_unsynced;
        // All, none, or any of the sectors.
        let kept_of_eight = [0, 4, 8, context.rng.u8(0..=8)][context.rng.usize(0..4)];
        let (mut lost, mut kept) = (0_u32, 0_u32);
        let rng = &mut *context.rng;
        self.disk.crash(&mut || {
            let keep = !lose || rng.u8(0..8) < kept_of_eight;
            if keep {
                kept += 1
            } else {
                lost += 1
            }
            keep
        });
        self.disk.settle(context.settings, context.counts);
        if lost > 0 {
            context.counts[Fault::UnsyncedLost] += 1;
            if kept > 0 {
                context.counts[Fault::UnsyncedTorn] += 1;
            }
        }
    }

    /// Begins the next operation of each lane that is idle.
    fn begin(&mut self, context: &mut StorageContext<'_>) {
        let (mean, heavy_tail) = (context.settings.sync, context.settings.heavy_tail);
        for (lane, queue) in &mut self.lanes {
            if queue.under_way.is_some() {
                continue;
            }
            let Some((id, op)) = queue.waiting.pop_front() else { continue };
            let mean = if matches!(op, DiskOp::Sync { .. } | DiskOp::SyncDir) { mean } else { mean / 8 };
            let due = (context.now + around(context.rng, mean, heavy_tail)).max(self.stalled_until);
            if *lane == Lane::Commit && self.slow_at.is_none() {
                let slow_at = context.now + context.settings.slow_after;
                self.slow_at = (due > slow_at).then_some(slow_at);
            }
            queue.under_way = Some(Operation { id, op, due });
        }
    }

    /// Ends the operation that is due first, if one is.
    fn end(&mut self, context: &mut StorageContext<'_>) -> bool {
        let first = self
            .lanes
            .iter()
            .filter_map(|(lane, queue)| queue.under_way.as_ref().map(|operation| (operation.due, *lane)))
            .min();
        let Some((_, lane)) = first.filter(|(due, _)| *due <= context.now) else { return false };
        let queue = self.lanes.get_mut(&lane).expect("listed above");
        let Operation { id, op, .. } = queue.under_way.take().expect("listed above");
        let fails = matches!(op, DiskOp::Sync { .. } | DiskOp::Write { .. } | DiskOp::SyncDir)
            && context.rng.u32(0..200_000) < u32::from(context.settings.fail_per_100k);
        if fails {
            let fault = if matches!(op, DiskOp::Write { .. }) { Fault::WriteFailed } else { Fault::SyncFailed };
            context.counts[fault] += 1;
            self.disk.fail_at(self.disk.operations() + 1, DiskError::Io { code: 5 });
        }
        let result = self.disk.execute(op);
        self.disk.settle(context.settings, context.counts);
        self.log().complete(id, result);
        self.take_operations();
        self.begin(context);
        true
    }

    fn take_outputs(&mut self, now: Time) {
        while let Some(output) = self.log().poll() {
            let output = match output {
                LogOutput::Durable { up_to } => {
                    self.shadow.durable(up_to);
                    StorageOutput::Durable(up_to)
                }
                LogOutput::LogRead { ticket, stream, answer } => {
                    if let Err(what) = self.shadow.answered(&answer) {
                        self.broken.get_or_insert(what);
                    }
                    StorageOutput::LogRead { ticket, stream, answer }
                }
                LogOutput::SnapshotRead { ticket, answer } => StorageOutput::SnapshotRead { ticket, answer },
                LogOutput::Storage(event) => StorageOutput::Event(event),
                LogOutput::Event(LogEvent::SnapshotDurable { at, .. }) => {
                    self.shadow.snapshot_durable(at);
                    continue;
                }
                LogOutput::Tail { .. } | LogOutput::Event(_) => continue,
            };
            self.outputs.push_back((now, output));
        }
    }

    fn take_operations(&mut self) {
        let log = self.log.as_mut().expect("the storage is used only between a start and a crash");
        while let Some((id, op)) = log.poll_disk() {
            self.lanes.entry(id.lane).or_default().waiting.push_back((id, op));
        }
    }
}

impl SimStorage for LogStorage {
    const HAS_DISK: bool = true;

    fn new(cluster: ClusterId, node: NodeId, context: &mut StorageContext<'_>) -> Self {
        let disk = FaultyDisk::new(node, context.settings, context.rng.get_seed());
        let mut storage = Self {
            cluster,
            node,
            config: None,
            disk,
            log: None,
            refused: false,
            impaired: false,
            broken: None,
            shadow: Shadow::default(),
            outputs: VecDeque::new(),
            lanes: BTreeMap::new(),
            slow_at: None,
            stalled_until: Time::ZERO,
        };
        storage.config = Some(storage.draw_config(context));
        storage
    }

    fn start(&mut self, context: &mut StorageContext<'_>) -> Result<Recovery, StartError> {
        if let Some(broken) = self.broken.take() {
            return Err(StartError::Broken(broken));
        }
        let config = self.config.clone().expect("drawn when the storage was made");
        self.refused = false;
        loop {
            // Some openings crash amid their own work, and are tried again.
            let crashes = context.settings.crash_amid_opening && context.rng.u8(0..8) == 0;
            let at = if crashes { self.disk.operations() + context.rng.u64(1..40) } else { 0 };
            self.disk.begin_opening();
            self.disk.fail_at(at, DiskError::Io { code: 5 });
            let opening = self.open(config.clone(), context);
            // Operation 0 never comes.
            self.disk.fail_at(0, DiskError::Io { code: 5 });
            self.disk.settle(context.settings, context.counts);
            match opening? {
                Opening::Opened(log, recovery) => {
                    let doubt = self.disk.take_doubt();
                    // The log tells it until the next register; from then on the replica remembers it, over other starts too.
                    self.impaired |= recovery.boots.groups.values().any(|boot| !boot.tail_cut.is_empty());
                    self.shadow.recovered(&recovery, doubt).map_err(StartError::Broken)?;
                    self.log = Some(*log);
                    return Ok(recovery);
                }
                Opening::Crashed => {
                    context.counts[Fault::CrashAmidOpening] += 1;
                    self.lose_power(context);
                }
                Opening::Refused(_) if self.disk.was_misread() => {}
                Opening::Refused(why) => {
                    context.counts[Fault::Refused] += 1;
                    (self.refused, self.impaired) = (true, true);
                    return Err(StartError::Refused(why));
                }
            }
        }
    }

    fn is_refused(&self) -> bool {
        self.refused
    }

    fn is_impaired(&self) -> bool {
        self.impaired
    }

    fn persist(&mut self, id: WriteId, op: Persist) -> Result<(), String> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        self.shadow.persist(id, &op)?;
        self.log().persist(id, op);
        Ok(())
    }

    fn read_log(
        &mut self,
        ticket: Ticket,
        stream: StreamId,
        from: LogIndex,
        bytes_max: u32,
        _: &mut StorageContext<'_>,
    ) {
        self.log().read_log(ticket, stream, from, bytes_max);
    }

    fn read_snapshot(
        &mut self,
        ticket: Ticket,
        group: GroupId,
        at: Option<Position>,
        offset: u64,
        bytes_max: u32,
        _: &mut StorageContext<'_>,
    ) {
        self.log().read_snapshot(ticket, group, at, offset, bytes_max);
    }

    fn pump(&mut self, context: &mut StorageContext<'_>) {
        self.take_operations();
        self.take_outputs(context.now);
        self.begin(context);
    }

    fn due(&self) -> Option<Time> {
        let under_way = self.lanes.values().filter_map(|queue| queue.under_way.as_ref().map(|operation| operation.due));
        let said = self.outputs.front().map(|(at, _)| *at);
        under_way.chain(self.slow_at).chain(said).min()
    }

    fn poll(&mut self, context: &mut StorageContext<'_>) -> Option<StorageOutput> {
        loop {
            self.take_outputs(context.now);
            if let Some((_, output)) = self.outputs.pop_front() {
                return Some(output);
            }
            if self.slow_at.take_if(|at| *at <= context.now).is_some() {
                return Some(StorageOutput::Event(StorageEvent::Slow));
            }
            if !self.end(context) {
                return None;
            }
        }
    }

    fn stall(&mut self, until: Time) {
        self.stalled_until = self.stalled_until.max(until);
        for operation in self.lanes.values_mut().filter_map(|queue| queue.under_way.as_mut()) {
            operation.due = operation.due.max(until);
        }
    }

    fn resume(&mut self, now: Time) {
        self.stalled_until = self.stalled_until.min(now);
        for operation in self.lanes.values_mut().filter_map(|queue| queue.under_way.as_mut()) {
            operation.due = operation.due.min(now);
        }
    }

    fn crash(&mut self, context: &mut StorageContext<'_>) {
        for queue in core::mem::take(&mut self.lanes).into_values() {
            // What was under way may be done; of a write, the crash then keeps any part.
            if let Some(operation) = queue.under_way
                && context.rng.bool()
            {
                let _ = self.disk.execute(operation.op);
            }
        }
        self.disk.settle(context.settings, context.counts);
        self.log = None;
        self.outputs.clear();
        self.slow_at = None;
        self.stalled_until = Time::ZERO;
        self.lose_power(context);
    }
}
