//! Plays a trace on a running engine: every client does its operations one after the other, at the node that it lives beside.
//!
//! Invariants: what is asked for depends on the trace alone, never on the engine; every write has an identity, so that what
//! is missing afterwards is known by name; an operation that does not end by its deadline counts as not served, and whether
//! it took effect stays open.

pub mod command;
mod judge;
mod stage;
mod written;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::crdt::CrdtOp;
use replikit_core::{
    ReadLevel, ReadRequest, ScanRequest, SessionToken, Store, Time, WriteEffect, WriteError, WriteLevel, WriteRequest,
    Written,
};
use replikit_sim::check::{ClientId, Ended, History, Level, OperationId, What};
use tokio::task::LocalSet;

pub use self::judge::{Judged, judge};
pub use self::stage::{Staged, stage};
pub use self::written::{Updated, element_bytes, elements, identity};
use crate::ledger::{Ledger, Verdict};
use crate::load::Reads;
use crate::recorder::Latencies;
use crate::workload::key_bytes;
use crate::workload::mix::{Operation, Updates};
use crate::workload::trace::{Step, Trace};

/// Most operations that are kept for the checkers: whole keys are left out, evenly, where there are more.
pub const HISTORY_MAX: usize = 200_000;
/// A list of elements that is full is followed by a new one, so that values stay small.
const ELEMENTS_MAX: usize = 128;
/// How often a compare-and-set is tried.
const ATTEMPTS_MAX: u32 = 64;
/// After an operation that failed, so that a client which is refused at once does not spin.
const PAUSE: Duration = Duration::from_millis(2);
/// Records that are loaded at once.
const LOADING: usize = 128;

/// Keys of lists, of counters that merge, of sets that merge, of logs, and of keys that come and go.
pub const LISTS: &str = "list/";
/// See [`LISTS`].
pub const COUNTERS: &str = "count/";
/// See [`LISTS`].
pub const SETS: &str = "set/";
/// See [`LISTS`].
pub const LOGS: &str = "log/";
/// See [`LISTS`].
pub const CHURNED: &str = "churn/";

/// A node as seen by the clients that live beside it.
#[derive(Clone)]
pub struct Home {
    /// Takes their writes, and reads that must be current.
    pub writes: Arc<dyn Store>,
    /// Takes their other reads.
    pub reads: Arc<dyn Store>,
}

/// How a trace is played.
#[derive(Clone)]
pub struct Play {
    /// What.
    pub trace: Rc<Trace>,
    /// How increments and set-adds are made.
    pub updates: Updates,
    /// When a write counts as done.
    pub write_level: WriteLevel,
    /// How reads are done.
    pub reads: Reads,
    /// When it ends.
    pub until: Until,
    /// A client rests so long after each operation, and begins within that time.
    pub think: Duration,
    /// When an operation that has not ended counts as not served.
    pub deadline: Duration,
}

/// When a play ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After the last operation.
    TheEnd,
    /// After this time; the trace begins anew until then.
    Elapsed(Duration),
}

/// One operation, as it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began, since the beginning of the play.
    pub began: Duration,
    /// When it ended, by itself or by its deadline.
    pub ended: Duration,
    /// Whether it was served.
    pub served: bool,
    /// Beside which node its client lives, from 0.
    pub home: u32,
    /// What it was.
    pub operation: Operation,
}

/// What a play found.
#[derive(Debug, Default)]
pub struct Played {
    /// How long it took.
    pub elapsed: Duration,
    /// Every operation, by the time of its end.
    pub attempts: Vec<Attempt>,
    /// Latencies of those that were served.
    pub latencies: BTreeMap<Operation, Latencies>,
    /// Compare-and-sets that found another value and were made again.
    pub retries: u64,
    /// Why operations were not served, with how often.
    pub failures: BTreeMap<String, u64>,
    /// Reads that showed what must not be shown.
    pub wrong: u64,
    /// One of them, in words.
    pub wrong_told: Option<String>,
    /// What clients did and saw of some keys, for the checkers.
    pub history: History,
    /// What must be there afterwards.
    pub updated: Updated,
}

struct Shared {
    play: Play,
    ledger: Rc<Ledger>,
    homes: Vec<Home>,
    begun: Instant,
    over: Cell<bool>,
    /// One key in so many is recorded.
    stride: u32,
    found: RefCell<Played>,
}

/// One client's own memory.
struct Client {
    number: u32,
    home: usize,
    token: SessionToken,
    /// Churned keys that it has removed.
    removed: BTreeSet<u32>,
    appended: u32,
}

/// Why an operation was not served.
enum Unserved {
    /// It had no effect.
    Refused(String),
    /// It may have had one.
    Unknown(String),
}

impl From<WriteError> for Unserved {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Rejected(rejection) => Self::Refused(rejection.to_string()),
            WriteError::Refused { why } => Self::Refused(why),
            WriteError::Unreachable { .. } => Self::Refused("no node can be reached".to_owned()),
            WriteError::Indeterminate { .. } => Self::Unknown("outcome unknown".to_owned()),
            other => Self::Unknown(other.to_string()),
        }
    }
}

impl From<replikit_core::ReadError> for Unserved {
    fn from(error: replikit_core::ReadError) -> Self {
        match error {
            replikit_core::ReadError::Unreachable { .. } => Self::Refused("no node can be reached".to_owned()),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Loads what must be there before a trace begins: the records that it touches, and all of them if it scans.
///
/// # Errors
/// The first write that did not end in an acknowledgement.
pub async fn load(play: &Play, ledger: &Rc<Ledger>, home: &Home, history: &mut History) -> Result<(), WriteError> {
    let trace = &play.trace;
    let scans = trace.operations().contains(&Operation::Scan);
    let touches = |step: &Step| {
        matches!(step.operation, Operation::Read | Operation::Update | Operation::ReadModifyWrite)
            && step.key < trace.loaded()
    };
    let touched: BTreeSet<u32> = match scans {
        true => (0..trace.loaded()).collect(),
        false => trace.steps().iter().filter(|step| touches(step)).map(|step| step.key).collect(),
    };
    let bytes = trace.value_bytes_max() as usize;
    let stride = stride(trace);
    let keys: Vec<u32> = touched.into_iter().collect();
    for keys in keys.chunks(LOADING) {
        let mut writes = Vec::new();
        for &key in keys {
            let Some((begun, value)) = ledger.begin(key, bytes) else { return Ok(()) };
            let recorded = key
                .is_multiple_of(stride)
                .then(|| history.begin(Time(ledger.now()), key_bytes(key), What::Write(identity(&value))));
            let request = WriteRequest::put(key_bytes(key), value).at(play.write_level);
            let store = home.writes.clone();
            writes.push((begun, recorded, tokio::spawn(async move { store.write(request).await })));
        }
        for (begun, recorded, write) in writes {
            write.await.expect("a write reports its errors")?;
            ledger.acked(begun);
            if let Some(recorded) = recorded {
                history.end(recorded, Ended::Written { at: Time(ledger.now()) });
            }
        }
    }
    Ok(())
}

fn stride(trace: &Trace) -> u32 {
    (trace.steps().len() / HISTORY_MAX) as u32 + 1
}

/// Plays it, on a node of each client's own; `meanwhile` runs beside it and may take its time. Must run on a current-thread
/// runtime. `homes` has at least one.
///
/// # Errors
/// Those of `meanwhile`.
pub async fn play<T, E>(
    play: Play,
    ledger: Rc<Ledger>,
    homes: Vec<Home>,
    history: History,
    meanwhile: impl AsyncFnOnce(Instant) -> Result<T, E>,
) -> Result<(Played, T), E> {
    let begun = Instant::now();
    let stride = stride(&play.trace);
    let found = Played { history, ..Played::default() };
    let shared =
        Rc::new(Shared { play, ledger, homes, begun, over: Cell::new(false), stride, found: RefCell::new(found) });
    let done = LocalSet::new()
        .run_until(async {
            let clients: Vec<_> = shared
                .play
                .trace
                .by_client()
                .into_iter()
                .enumerate()
                .map(|(number, steps)| tokio::task::spawn_local(shared.clone().client(number as u32, steps)))
                .collect();
            let done = meanwhile(begun).await;
            if let Until::Elapsed(limit) = shared.play.until {
                tokio::time::sleep(limit.saturating_sub(begun.elapsed())).await;
                shared.over.set(true);
            }
            if done.is_err() {
                shared.over.set(true);
            }
            for client in clients {
                client.await.expect("a client reports its errors");
            }
            done
        })
        .await?;
    let mut played = shared.found.take();
    played.elapsed = begun.elapsed();
    Ok((played, done))
}

impl Shared {
    async fn client(self: Rc<Self>, number: u32, steps: Vec<Step>) {
        let home = number as usize % self.homes.len();
        let mut client = Client { number, home, token: SessionToken::new(), removed: BTreeSet::new(), appended: 0 };
        let replays = self.play.trace.steps().last().is_some_and(|step| step.at_us > 0);
        self.rest(self.play.think * number / self.play.trace.clients().max(1)).await;
        while !steps.is_empty() && !self.over.get() {
            for step in &steps {
                if self.over.get() {
                    return;
                }
                let due = self.begun + Duration::from_micros(step.at_us);
                if replays && self.play.until == Until::TheEnd {
                    tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
                }
                self.step(&mut client, step).await;
                self.rest(self.play.think).await;
            }
            if self.play.until == Until::TheEnd {
                return;
            }
        }
    }

    async fn rest(&self, time: Duration) {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    async fn step(&self, client: &mut Client, step: &Step) {
        let began = self.begun.elapsed();
        let performed = tokio::time::timeout(self.play.deadline, self.perform(client, step)).await;
        let ended = self.begun.elapsed();
        let failure = match performed {
            Ok(Ok(())) => None,
            Ok(Err(Unserved::Refused(why) | Unserved::Unknown(why))) => Some(why),
            Err(_) => Some(format!("no end within {:?}", self.play.deadline)),
        };
        let served = failure.is_none();
        {
            let mut found = self.found.borrow_mut();
            let (home, operation) = (client.home as u32, step.operation);
            found.attempts.push(Attempt { began, ended, served, home, operation });
            match failure {
                None => found.latencies.entry(operation).or_default().record(ended - began),
                Some(why) => *found.failures.entry(why).or_default() += 1,
            }
        }
        if !served {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn perform(&self, client: &mut Client, step: &Step) -> Result<(), Unserved> {
        match step.operation {
            Operation::Read => self.read(client, step.key).await.map(drop),
            Operation::Update | Operation::Insert => self.put(client, step).await,
            Operation::ReadModifyWrite => {
                self.read(client, step.key).await?;
                self.put(client, step).await
            }
            Operation::Scan => self.scan(client, step).await,
            Operation::Increment if self.play.updates == Updates::Merge => self.add(client, step.key).await,
            Operation::SetAdd if self.play.updates == Updates::Merge => self.insert(client, step.key).await,
            Operation::Increment | Operation::SetAdd => self.change_list(client, step.key).await,
            Operation::Append => self.append(client, step.size as usize).await,
            Operation::Churn => self.churn(client, step.key).await,
        }
    }

    fn now(&self) -> Time {
        Time(self.ledger.now())
    }

    fn level(&self, client: &Client) -> ReadLevel {
        match self.play.reads {
            Reads::Session => ReadLevel::Session(client.token.clone()),
            reads => reads.level(),
        }
    }

    fn reader(&self, client: &Client) -> &Arc<dyn Store> {
        let home = &self.homes[client.home];
        if self.play.reads == Reads::Linearizable { &home.writes } else { &home.reads }
    }

    fn begin(&self, client: &Client, number: u32, key: &Bytes, what: What) -> Option<OperationId> {
        if !number.is_multiple_of(self.stride) {
            return None;
        }
        let level = match what {
            What::Read => Level::Read(self.level(client)),
            _ => Level::Write(self.play.write_level),
        };
        let mut found = self.found.borrow_mut();
        Some(found.history.begin_as(ClientId(client.number), level, self.now(), key.clone(), what))
    }

    fn end(&self, operation: Option<OperationId>, ended: Ended) {
        if let Some(operation) = operation {
            self.found.borrow_mut().history.end(operation, ended);
        }
    }

    async fn get(&self, client: &mut Client, key: Bytes) -> Result<replikit_core::ReadResult, Unserved> {
        let read = ReadRequest::new(key).at(self.level(client));
        let answer = self.reader(client).read(read).await?;
        if let (Reads::Session, Some(seen)) = (self.play.reads, answer.seen) {
            client.token.observe(seen);
        }
        Ok(answer)
    }

    async fn send(&self, client: &mut Client, write: WriteRequest) -> Result<Written, Unserved> {
        let written = self.homes[client.home].writes.write(write.at(self.play.write_level)).await?;
        if self.play.reads == Reads::Session {
            client.token.observe(written.at);
        }
        if written.effect == Some(WriteEffect::Unsupported) {
            return Err(Unserved::Refused("this keyspace does not have the operation".to_owned()));
        }
        Ok(written)
    }

    async fn read(&self, client: &mut Client, number: u32) -> Result<(), Unserved> {
        let key = key_bytes(number);
        let operation = self.begin(client, number, &key, What::Read);
        let (expectation, began) = (self.ledger.expect(number), self.ledger.now());
        let answer = match self.get(client, key).await {
            Ok(answer) => answer,
            Err(unserved) => {
                self.end(operation, Ended::Void);
                return Err(unserved);
            }
        };
        let verdict = self.ledger.judge(expectation, began, answer.values.first().map(|value| &value[..]));
        let current = matches!(self.play.reads, Reads::Linearizable | Reads::Quorum)
            && matches!(self.play.write_level, WriteLevel::Quorum | WriteLevel::Applied(_));
        if verdict == Verdict::Foreign || current && verdict != Verdict::Fresh {
            let mut found = self.found.borrow_mut();
            found.wrong += 1;
            found.wrong_told.get_or_insert_with(|| format!("a read of key {number}: {verdict:?}"));
        }
        self.end(operation, Ended::Found { at: self.now(), value: answer.values.first().map(identity) });
        Ok(())
    }

    async fn put(&self, client: &mut Client, step: &Step) -> Result<(), Unserved> {
        let Some((begun, value)) = self.ledger.begin(step.key, step.size as usize) else {
            self.over.set(true);
            return Err(Unserved::Refused("the ledger is full".to_owned()));
        };
        let key = key_bytes(step.key);
        let operation = self.begin(client, step.key, &key, What::Write(identity(&value)));
        match self.send(client, WriteRequest::put(key, value)).await {
            Ok(_) => {
                self.ledger.acked(begun);
                self.end(operation, Ended::Written { at: self.now() });
                Ok(())
            }
            Err(unserved) => {
                if matches!(unserved, Unserved::Refused(_)) {
                    self.end(operation, Ended::Void);
                }
                Err(unserved)
            }
        }
    }

    async fn scan(&self, client: &mut Client, step: &Step) -> Result<(), Unserved> {
        let from = key_bytes(step.key);
        let scan = ScanRequest { from: from.clone(), to: None, limit: step.size.max(1), level: self.level(client) };
        let page = self.reader(client).scan(scan).await?;
        let ascends = page.items.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !ascends || page.items.first().is_some_and(|(key, _)| *key < from) {
            let mut found = self.found.borrow_mut();
            found.wrong += 1;
            found.wrong_told.get_or_insert_with(|| format!("a scan from key {} is not in order", step.key));
        }
        Ok(())
    }

    async fn add(&self, client: &mut Client, number: u32) -> Result<(), Unserved> {
        let key = Bytes::from(format!("{COUNTERS}{number}"));
        // What is not known by the deadline stays in doubt.
        self.found.borrow_mut().updated.adding(key.clone());
        let added = self.send(client, WriteRequest::add(key.clone(), 1)).await.map(drop);
        let updated = &mut self.found.borrow_mut().updated;
        match &added {
            Ok(()) => updated.added(&key),
            Err(Unserved::Refused(_)) => updated.not_added(&key),
            Err(Unserved::Unknown(_)) => {}
        }
        added
    }

    async fn insert(&self, client: &mut Client, number: u32) -> Result<(), Unserved> {
        let key = Bytes::from(format!("{SETS}{number}"));
        let element = self.found.borrow_mut().updated.next_element();
        let op = CrdtOp::Insert { element: element_bytes(element) };
        self.send(client, WriteRequest::crdt(key.clone(), op)).await?;
        self.found.borrow_mut().updated.element(key, element);
        Ok(())
    }

    /// Reads a list, adds an element that exists once, and puts it back.
    async fn change_list(&self, client: &mut Client, number: u32) -> Result<(), Unserved> {
        let element = self.found.borrow_mut().updated.next_element();
        for _ in 0..ATTEMPTS_MAX {
            let generation = self.found.borrow().updated.generation(number);
            let key = Bytes::from(format!("{LISTS}{number}-{generation}"));
            let answer = self.get(client, key.clone()).await?;
            let mut all = elements(&answer.values);
            if all.len() >= ELEMENTS_MAX {
                self.found.borrow_mut().updated.full(number, generation);
                continue;
            }
            all.insert(element);
            let value: Bytes = all.iter().flat_map(|element| element.to_le_bytes()).collect();
            let mut write = match self.play.updates {
                Updates::CompareAndSet => {
                    let expected = answer.values.into_iter().next();
                    WriteRequest::compare_and_set(key.clone(), expected, Some(value))
                }
                _ => WriteRequest::put(key.clone(), value),
            };
            write.context = answer.context;
            let written = self.send(client, write).await?;
            let mut found = self.found.borrow_mut();
            if matches!(written.effect, Some(WriteEffect::Mismatch { .. })) {
                found.retries += 1;
                continue;
            }
            found.updated.element(key, element);
            return Ok(());
        }
        Err(Unserved::Refused(format!("another value was there {ATTEMPTS_MAX} times")))
    }

    async fn append(&self, client: &mut Client, bytes: usize) -> Result<(), Unserved> {
        let key = Bytes::from(format!("{LOGS}{:04}-{:08}", client.number, client.appended));
        client.appended += 1;
        let element = self.found.borrow_mut().updated.next_element();
        let mut value = vec![0x5a; bytes.max(4)];
        value[..4].copy_from_slice(&element.to_le_bytes());
        self.send(client, WriteRequest::put(key.clone(), value)).await?;
        self.found.borrow_mut().updated.appended(key, element);
        Ok(())
    }

    /// Removes a key that is not removed, and creates it anew otherwise, as far as this client knows.
    async fn churn(&self, client: &mut Client, number: u32) -> Result<(), Unserved> {
        let key = Bytes::from(format!("{CHURNED}{number}"));
        let creates = client.removed.remove(&number) || !client.number.is_multiple_of(2);
        let (write, what) = if creates {
            let element = self.found.borrow_mut().updated.next_element();
            let value = element_bytes(element);
            (WriteRequest::put(key.clone(), value.clone()), What::Write(value))
        } else {
            client.removed.insert(number);
            (WriteRequest::delete(key.clone()), What::Delete)
        };
        let operation = self.begin(client, number, &key, what);
        if let Err(unserved) = self.send(client, write).await {
            if matches!(unserved, Unserved::Refused(_)) {
                self.end(operation, Ended::Void);
            }
            return Err(unserved);
        }
        self.end(operation, Ended::Applied { at: self.now(), effect: WriteEffect::Done });
        // What it sees at once: its own write, or a later one.
        let operation = self.begin(client, number, &key, What::Read);
        match self.get(client, key).await {
            Ok(answer) => {
                let value = answer.values.into_iter().next();
                self.end(operation, Ended::Found { at: self.now(), value });
                Ok(())
            }
            Err(unserved) => {
                self.end(operation, Ended::Void);
                Err(unserved)
            }
        }
    }
}
