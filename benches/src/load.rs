//! The load generator: many clients in one thread, in a closed or an open loop, against anything that is a [`Store`].
//!
//! Invariants: every answer is judged by the [`Ledger`]; a latency in the open loop counts from the moment the request was
//! due; only requests of the measured window are recorded. One thread, so that the load takes at most one core from the
//! replicas on a small machine.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replikit_core::{
    Owners, ReadError, ReadLevel, ReadRequest, SessionToken, Store, WriteError, WriteLevel, WriteRequest,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;

use crate::ledger::{Expectation, Ledger, Verdict};
use crate::recorder::Latencies;
use crate::schedule::Schedule;
use crate::staleness;
use crate::workload::{Request, Requests, Workload, key_bytes};

/// Most requests of an open loop that are under way at once; more wait, and their latency counts the wait.
pub const OPEN_IN_FLIGHT_MAX: usize = 4_096;
/// How long requests may take to end after the window; what is still open then counts as failed.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Most wrong answers that are told in full; all are counted.
const WRONG_TOLD_MAX: usize = 5;

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each of so many clients sends its next request when the one before was answered.
    Closed {
        /// How many.
        clients: u32,
    },
    /// Requests are sent at a rate, answered or not.
    Open {
        /// Requests a second.
        rate: u32,
    },
}

/// How reads are done, and hence what they must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Linearizable, through the leader: an older value is a wrong result, if the newer one was acknowledged at `Quorum` or
    /// stronger.
    Linearizable,
    /// At any replica, with a session's token: an older value than the session's own write is a wrong result.
    Session,
    /// At any replica, whatever it has: how old that is, is measured.
    Local,
    /// Through any replica, of so many that they meet every quorum write: an older value is a wrong result.
    Quorum,
    /// Through any replica, of as many as the engine calls a quorum, which are too few to meet every write: how old what they
    /// show is, is measured.
    QuorumOfFewer,
}

impl Reads {
    /// The level of a read that is no session's.
    #[must_use]
    pub const fn level(self) -> ReadLevel {
        match self {
            Self::Linearizable => ReadLevel::Linearizable,
            Self::Session | Self::Local => ReadLevel::Local,
            Self::Quorum | Self::QuorumOfFewer => ReadLevel::Owners(Owners::Quorum),
        }
    }
}

/// When requests are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Not recorded.
    pub warm_up: Duration,
    /// Recorded.
    pub measured: Duration,
}

/// What the load is put on.
#[derive(Clone)]
pub struct Target {
    /// Where writes and linearizable reads go; clients are spread over them. At least one.
    pub leader: Vec<Arc<dyn Store>>,
    /// Where other reads go: one per replica. At least one.
    pub replicas: Vec<Arc<dyn Store>>,
    /// When a write counts as done.
    pub write_level: WriteLevel,
    /// How reads are done.
    pub reads: Reads,
}

/// What the load found.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Length of the measured window.
    pub elapsed: Duration,
    /// Latencies of acknowledged writes.
    pub writes: Latencies,
    /// Latencies of answered reads.
    pub reads: Latencies,
    /// How late requests of an open loop were sent.
    pub send_lag: Latencies,
    /// All acknowledged writes from the first to the last, warm-up included: what fsyncs are divided by.
    pub writes_ever: u64,
    /// All answered reads from the first to the last, warm-up included.
    pub reads_ever: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Writes of unknown outcome, reads without an answer, and requests that no node took.
    pub failed: u64,
    /// One of those failures, in words.
    pub failure: Option<String>,
    /// Reads that showed a superseded value where that is permitted, with the lower bound of its age.
    pub stale_ages: Latencies,
    /// Staleness of one steadily written key at the replicas, exact; empty for linearizable reads.
    pub staleness: Latencies,
    /// Reads that showed what must not be shown.
    pub wrong: u64,
    /// Some of them, in words.
    pub wrong_told: Vec<String>,
}

impl Target {
    /// Whether every read must show what was acknowledged before it began.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        // A write that is acknowledged before it is committed may be missed even by a linearizable read.
        matches!(self.reads, Reads::Linearizable | Reads::Quorum)
            && matches!(self.write_level, WriteLevel::Quorum | WriteLevel::Applied(_))
    }
}

impl Measured {
    /// Requests a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        (self.writes.count() + self.reads.count()) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn refuse(&mut self, why: &impl ToString) {
        self.refused += 1;
        self.failure = Some(why.to_string());
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failure = Some(what);
    }

    fn wrong(&mut self, what: String) {
        self.wrong += 1;
        if self.wrong_told.len() < WRONG_TOLD_MAX {
            self.wrong_told.push(what);
        }
    }
}

/// What all clients of a load share.
struct Shared {
    ledger: Rc<Ledger>,
    target: Target,
    workload: Workload,
    recording: Cell<bool>,
    over: Cell<bool>,
    found: RefCell<Measured>,
}

/// One client's own memory.
struct Client {
    number: usize,
    turn: usize,
    token: SessionToken,
    /// What a session must see of its own writes.
    own: HashMap<u32, Expectation>,
}

impl Client {
    fn new(number: usize) -> Self {
        Self { number, turn: number, token: SessionToken::new(), own: HashMap::new() }
    }
}

/// Puts a load on the target and measures. Must run on a current-thread runtime.
pub async fn run(
    ledger: Rc<Ledger>,
    target: Target,
    workload: Workload,
    pace: Pace,
    window: Window,
    seed: u64,
) -> Measured {
    let probed = target.reads != Reads::Linearizable && workload.reads_percent > 0;
    let shared = Rc::new(Shared {
        ledger,
        target,
        workload,
        recording: Cell::new(false),
        over: Cell::new(false),
        found: RefCell::new(Measured::default()),
    });
    let local = LocalSet::new();
    let staleness = local
        .run_until(async {
            let staleness = probed.then(|| {
                let target = &shared.target;
                staleness::Probe::begin(
                    target.leader[0].clone(),
                    target.replicas.clone(),
                    target.write_level,
                    target.reads,
                )
            });
            match pace {
                Pace::Closed { clients } => closed(&shared, clients, window, seed).await,
                Pace::Open { rate } => open(&shared, rate, window, seed).await,
            }
            match staleness {
                Some(probe) => probe.end().await,
                None => Latencies::new(),
            }
        })
        .await;
    // Requests that did not end in time still hold the shared state; they die with the set of tasks.
    let mut found = shared.found.take();
    found.staleness = staleness;
    found
}

async fn closed(shared: &Rc<Shared>, clients: u32, window: Window, seed: u64) {
    let zipf = Requests::distribution(shared.workload);
    let mut running = Vec::new();
    for number in 0..clients as usize {
        let shared = shared.clone();
        let mut requests = Requests::new(shared.workload, zipf, seed, number as u64);
        running.push(tokio::task::spawn_local(async move {
            let mut client = Client::new(number);
            while !shared.over.get() {
                shared.perform(&mut client, requests.draw(), Instant::now()).await;
            }
        }));
    }
    measure(shared, window).await;
    shared.over.set(true);
    drain(shared, running).await;
}

async fn open(shared: &Rc<Shared>, rate: u32, window: Window, seed: u64) {
    let mut requests = Requests::new(shared.workload, Requests::distribution(shared.workload), seed, 0);
    let schedule = Schedule::new(rate);
    let start = Instant::now();
    let mut due = pacer(schedule, start);
    let places = Arc::new(Semaphore::new(OPEN_IN_FLIGHT_MAX));
    let sender = tokio::task::spawn_local({
        let shared = shared.clone();
        async move {
            let mut running = Vec::new();
            let mut sent = 0;
            while let Some(count) = due.recv().await {
                while sent < count && !shared.over.get() {
                    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                    let (intended, request) = (start + schedule.due(sent), requests.draw());
                    let shared = shared.clone();
                    if shared.recording.get() {
                        shared.found.borrow_mut().send_lag.record(intended.elapsed());
                    }
                    running.push(tokio::task::spawn_local(async move {
                        let mut client = Client::new(sent as usize);
                        shared.perform(&mut client, request, intended).await;
                        drop(place);
                    }));
                    sent += 1;
                }
                if shared.over.get() {
                    break;
                }
                running.retain(|request| !request.is_finished());
            }
            running
        }
    });
    measure(shared, window).await;
    shared.over.set(true);
    let running = sender.await.expect("the sender does not panic");
    drain(shared, running).await;
}

/// Says how many requests are due, whenever that changes. A thread of its own: the runtime's timers are a millisecond coarse,
/// and spinning would take a core from the replicas.
fn pacer(schedule: Schedule, start: Instant) -> mpsc::Receiver<u64> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut count = 0;
        loop {
            if let Some(pause) = schedule.due(count).checked_sub(start.elapsed()) {
                std::thread::sleep(pause);
            }
            count = schedule.count_by(start.elapsed()).max(count);
            if sender.blocking_send(count).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn measure(shared: &Shared, window: Window) {
    tokio::time::sleep(window.warm_up).await;
    shared.recording.set(true);
    let begun = Instant::now();
    tokio::time::sleep(window.measured).await;
    shared.recording.set(false);
    shared.found.borrow_mut().elapsed = begun.elapsed();
}

async fn drain(shared: &Shared, running: Vec<tokio::task::JoinHandle<()>>) {
    let end = tokio::time::Instant::now() + DRAIN_MAX;
    for request in running {
        match tokio::time::timeout_at(end, request).await {
            Ok(ended) => ended.expect("a client reports its errors"),
            Err(_) => {
                let mut found = shared.found.borrow_mut();
                found.fail(format!("a request did not end within {DRAIN_MAX:?} after the window"));
            }
        }
    }
}

impl Shared {
    async fn perform(&self, client: &mut Client, request: Request, intended: Instant) {
        let failed = match request {
            Request::Write(key) => self.write(client, key, intended).await,
            Request::Read(key) => self.read(client, key, intended).await,
        };
        if failed {
            // A client that is refused at once must not spin.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether the request failed.
    async fn write(&self, client: &mut Client, key: u32, intended: Instant) -> bool {
        let Some((begun, value)) = self.ledger.begin(key, self.workload.value_bytes) else {
            self.over.set(true);
            return true;
        };
        let leader = &self.target.leader[client.number % self.target.leader.len()];
        let recording = self.recording.get();
        let write = WriteRequest::put(key_bytes(key), value).at(self.target.write_level);
        let result = leader.write(write).await;
        let mut found = self.found.borrow_mut();
        match result {
            Ok(written) => {
                self.ledger.acked(begun);
                if self.target.reads == Reads::Session {
                    client.token.observe(written.at);
                    client.own.insert(key, self.ledger.expect_at_least(begun));
                }
                found.writes_ever += 1;
                if recording && self.recording.get() {
                    found.writes.record(intended.elapsed());
                }
                return false;
            }
            Err(error @ (WriteError::Rejected(_) | WriteError::Refused { .. })) => found.refuse(&error),
            Err(error) => found.fail(error.to_string()),
        }
        true
    }

    async fn read(&self, client: &mut Client, key: u32, intended: Instant) -> bool {
        let target = &self.target;
        client.turn += 1;
        let (store, level) = match target.reads {
            Reads::Linearizable => (&target.leader[client.number % target.leader.len()], ReadLevel::Linearizable),
            Reads::Session => {
                (&target.replicas[client.turn % target.replicas.len()], ReadLevel::Session(client.token.clone()))
            }
            reads => (&target.replicas[client.turn % target.replicas.len()], reads.level()),
        };
        let recording = self.recording.get();
        let (expectation, began) = (self.ledger.expect(key), self.ledger.now());
        let result = store.read(ReadRequest::new(key_bytes(key)).at(level)).await;
        let mut found = self.found.borrow_mut();
        match result {
            Ok(answer) => {
                if let (Reads::Session, Some(seen)) = (target.reads, answer.seen) {
                    client.token.observe(seen);
                }
                let value = answer.values.first().map(|value| &value[..]);
                self.judge(&mut found, client, expectation, began, value);
                found.reads_ever += 1;
                if recording && self.recording.get() {
                    found.reads.record(intended.elapsed());
                }
                return false;
            }
            Err(ReadError::Rejected(rejection)) => found.refuse(&rejection),
            Err(error) => found.fail(error.to_string()),
        }
        true
    }

    fn judge(&self, found: &mut Measured, client: &Client, expectation: Expectation, began: u64, value: Option<&[u8]>) {
        let key = expectation.key();
        let verdict = self.ledger.judge(expectation, began, value);
        match (self.target.is_linearizable(), verdict) {
            (_, Verdict::Fresh) => {}
            (_, Verdict::Foreign) => found.wrong(format!("a read of key {key} returned a value never written to it")),
            (true, Verdict::Stale { age }) => {
                found.wrong(format!(
                    "a read of key {key} that must be current was at least {:?} old",
                    Duration::from_nanos(age)
                ));
            }
            (true, Verdict::Missing) => {
                found.wrong(format!(
                    "a read of key {key} that must be current found nothing, though it had been written"
                ));
            }
            (false, stale) => {
                if let Verdict::Stale { age } = stale {
                    found.stale_ages.record(Duration::from_nanos(age));
                }
                let own = client.own.get(&key).map(|own| self.ledger.judge(*own, began, value));
                if matches!(own, Some(Verdict::Stale { .. } | Verdict::Missing)) {
                    found.wrong(format!("a session did not see its own write of key {key}"));
                }
            }
        }
    }
}

/// Writes every key once, so that reads find something.
///
/// # Errors
/// The first write that did not end in an acknowledgement.
pub async fn preload(ledger: &Rc<Ledger>, target: &Target, keys: u32, value_bytes: usize) -> Result<(), WriteError> {
    const AT_ONCE: usize = 256;
    let next = Rc::new(Cell::new(0));
    LocalSet::new()
        .run_until(async {
            let writers: Vec<_> = (0..AT_ONCE)
                .map(|writer| {
                    let (ledger, next) = (ledger.clone(), next.clone());
                    let store = target.leader[writer % target.leader.len()].clone();
                    let level = target.write_level;
                    tokio::task::spawn_local(async move {
                        while next.get() < keys {
                            let key = next.replace(next.get() + 1);
                            let Some((begun, value)) = ledger.begin(key, value_bytes) else { break };
                            store.write(WriteRequest::put(key_bytes(key), value).at(level)).await?;
                            ledger.acked(begun);
                        }
                        Ok::<(), WriteError>(())
                    })
                })
                .collect();
            for writer in writers {
                writer.await.expect("a writer reports its errors")?;
            }
            Ok(())
        })
        .await
}
