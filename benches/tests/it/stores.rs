//! Loads on stores in this process: an honest one, and ones that break one promise each.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replikit_benches::ledger::Ledger;
use replikit_benches::load::{self, Measured, Pace, Reads, Target, Window};
use replikit_benches::verify::{Verified, verify};
use replikit_benches::workload::{Spread, Workload};
use replikit_core::{
    Changes, Cursor, Guarantees, LogId, Page, Position, Reached, ReadError, ReadGuarantee, ReadRequest, ReadResult,
    Rejection, ScanRequest, Store, StreamId, SubscribeError, Survival, WriteEffect, WriteError, WriteLevel, WriteOp,
    WriteRequest, Written,
};

/// Which promise a store breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    /// Every hundredth write is acknowledged and dropped.
    ForgetsWrites,
    /// Reads of single keys show values of the past.
    ReadsThePast,
    /// Every answer takes its time.
    Stalls,
}

pub(crate) struct Memory {
    pub(crate) lie: Lie,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    now: BTreeMap<Bytes, Bytes>,
    before: BTreeMap<Bytes, Bytes>,
    writes: u64,
}

#[async_trait]
impl Store for Memory {
    async fn write(&self, write: WriteRequest) -> Result<Written, WriteError> {
        // As over a network: others get their turn.
        tokio::task::yield_now().await;
        if self.lie == Lie::Stalls {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut state = self.state.lock().unwrap();
        let value = match write.op {
            WriteOp::Put { value } => value,
            WriteOp::CompareAndSet { expected, new: Some(new) } => {
                let found = state.now.get(&write.key).cloned();
                if found != expected {
                    let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
                    let effect = Some(WriteEffect::Mismatch { found });
                    return Ok(Written { at, reached: Reached::default(), strict: true, effect });
                }
                new
            }
            _ => return Err(Rejection::Unsupported.into()),
        };
        state.writes += 1;
        let forgotten = self.lie == Lie::ForgetsWrites && state.writes.is_multiple_of(100);
        if !forgotten {
            let before = state.now.insert(write.key.clone(), value);
            // The past is kept now and then, so that it lies back further than one write.
            if let Some(before) = before.filter(|_| state.writes.is_multiple_of(3)) {
                state.before.insert(write.key, before);
            }
        }
        let at = Position { stream: StreamId::from_u64(0), id: LogId::default(), digest: 0 };
        Ok(Written { at, reached: Reached::default(), strict: true, effect: Some(WriteEffect::Done) })
    }

    async fn read(&self, read: ReadRequest) -> Result<ReadResult, ReadError> {
        tokio::task::yield_now().await;
        let state = self.state.lock().unwrap();
        let values = if self.lie == Lie::ReadsThePast { &state.before } else { &state.now };
        let values = values.get(&read.key).or(state.now.get(&read.key)).cloned().into_iter().collect();
        Ok(ReadResult { values, seen: None, strict: true, staleness: None, context: None })
    }

    async fn scan(&self, scan: ScanRequest) -> Result<Page, ReadError> {
        let state = self.state.lock().unwrap();
        let to = scan.to.unwrap_or(Bytes::from_static(&[0xff]));
        let mut found = state.now.range(scan.from..to).map(|(key, value)| (key.clone(), value.clone()));
        let items = found.by_ref().take(scan.limit as usize).collect();
        Ok(Page { items, next: found.next().map(|(key, _)| key) })
    }

    async fn subscribe(&self, _from: Cursor) -> Result<Box<dyn Changes>, SubscribeError> {
        Err(Rejection::Unsupported.into())
    }

    fn guarantees(&self, _level: WriteLevel) -> Guarantees {
        Guarantees {
            strategy: "memory".to_owned(),
            mode: String::new(),
            acknowledged: String::new(),
            survives: Survival::Nothing,
            reads: ReadGuarantee::Linearizable,
            ordering: String::new(),
            needs: String::new(),
            checked_by: Vec::new(),
        }
    }
}

const KEYS: u32 = 200;

fn bench(lie: Lie, reads: Reads, pace: Pace, millis: u64) -> (Measured, Verified) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(Memory { lie, state: Mutex::default() });
        let workload = Workload { reads_percent: 50, spread: Spread::Uniform, keys: KEYS, value_bytes: 64 };
        let target = Target {
            leader: vec![store.clone()],
            replicas: vec![store.clone()],
            write_level: WriteLevel::Quorum,
            reads,
        };
        let ledger = Rc::new(Ledger::new(KEYS, 64));
        load::preload(&ledger, &target, KEYS, 64).await.unwrap();
        let window = Window { warm_up: Duration::from_millis(10), measured: Duration::from_millis(millis) };
        let measured = load::run(ledger.clone(), target, workload, pace, window, 1).await;
        let verified = verify(&ledger, &*store).await.unwrap();
        (measured, verified)
    })
}

const CLOSED: Pace = Pace::Closed { clients: 8 };

#[test]
fn an_honest_store_is_found_right() {
    for reads in [Reads::Linearizable, Reads::Session, Reads::Local] {
        let (measured, verified) = bench(Lie::None, reads, CLOSED, 100);
        assert!(measured.writes.count() > 0 && measured.reads.count() > 0);
        assert_eq!((measured.wrong, measured.failed, measured.refused), (0, 0, 0), "{measured:?}");
        assert_eq!((verified.keys, verified.lost, verified.foreign), (u64::from(KEYS), 0, 0), "{verified:?}");
    }
}

#[test]
fn lost_writes_are_counted() {
    let (measured, verified) = bench(Lie::ForgetsWrites, Reads::Linearizable, CLOSED, 100);
    assert!(verified.lost > 0, "{verified:?}");
    assert_eq!(verified.lost as usize, verified.lost_keys.len());
    assert!(measured.wrong > 0, "reads saw that writes were gone: {measured:?}");
}

#[test]
fn stale_reads_are_wrong_where_they_are_not_permitted() {
    let (measured, verified) = bench(Lie::ReadsThePast, Reads::Linearizable, CLOSED, 100);
    assert!(measured.wrong > 0, "{measured:?}");
    assert_eq!(verified.lost, 0, "the data itself is there");
    let (measured, _) = bench(Lie::ReadsThePast, Reads::Local, CLOSED, 100);
    assert_eq!(measured.wrong, 0, "{measured:?}");
    assert!(measured.stale_ages.count() > 0, "{measured:?}");
    assert!(measured.staleness.max() > Duration::ZERO, "the probe saw it as well");
}

#[test]
fn an_open_loop_counts_the_wait_of_a_stalled_store() {
    // 200 requests a second, each 50 ms: a closed loop of one client would send 20.
    let (measured, _) = bench(Lie::Stalls, Reads::Linearizable, Pace::Open { rate: 200 }, 500);
    let sent = measured.writes.count() + measured.reads.count();
    assert!((60..=110).contains(&sent), "{sent} requests in half a second");
    assert!(measured.writes.quantile(0.01) >= Duration::from_millis(49), "{:?}", measured.writes.quantile(0.01));
}
