//! A lock service on keys that are compared and set: leases that end by themselves, and a fencing token for each, so that who
//! was held up beyond its lease does no harm. One of three nodes is killed while its client holds the lock.
//!
//! A lease ends by the clocks of those who look at it, which may differ; the token does not depend on clocks. So what the lock
//! protects has to look at the token.
//!
//! `cargo run --example lock`

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_core::{NodeId, ReadLevel, ReadRequest, Store, WriteEffect, WriteError, WriteRequest, Written};
use replikit_leaderless::{Cluster, Keyspace, Keyspaces, KvHandle, Settings};

const LOCK: &str = "lock/printer";
const TOKENS: &str = "lock/printer/tokens";
const LEASE: Duration = Duration::from_millis(200);

type Failure = Box<dyn std::error::Error>;

/// Who holds the lock, under which token, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    owner: String,
    token: i64,
    until: Duration,
}

impl Lease {
    fn encode(&self) -> Bytes {
        format!("{} {} {}", self.owner, self.token, self.until.as_micros()).into()
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(value).ok()?;
        let [owner, token, until] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let until = Duration::from_micros(until.parse().ok()?);
        Some(Self { owner: owner.to_owned(), token: token.parse().ok()?, until })
    }
}

/// One client of the lock, at one node.
struct Client {
    name: &'static str,
    store: KvHandle,
    /// What all clients call time 0.
    start: Instant,
}

impl Client {
    async fn look(&self) -> Result<Option<Bytes>, Failure> {
        let found = self.store.read(ReadRequest::new(LOCK).at(ReadLevel::Linearizable)).await?;
        Ok(found.values.into_iter().next())
    }

    /// Takes the lock if nobody has it.
    async fn acquire(&self) -> Result<Option<Lease>, Failure> {
        let seen = self.look().await?;
        if seen.as_deref().and_then(Lease::decode).is_some_and(|held| self.start.elapsed() < held.until) {
            return Ok(None);
        }
        // Drawn after the look, it is larger than that of the lease before. One that is drawn and not used is skipped.
        let token = match self.store.write(WriteRequest::add(TOKENS, 1)).await {
            Ok(Written { effect: Some(WriteEffect::Counter { value }), .. }) => value,
            Err(WriteError::Indeterminate { .. }) => return Ok(None),
            other => return Err(format!("no token: {other:?}").into()),
        };
        let lease = Lease { owner: self.name.to_owned(), token, until: self.start.elapsed() + LEASE };
        let request = WriteRequest::compare_and_set(LOCK, seen, Some(lease.encode()));
        let taken = match self.store.write(request).await {
            Ok(written) => written.effect == Some(WriteEffect::Done),
            // The token exists once: if it is there, this took effect.
            Err(WriteError::Indeterminate { .. }) => self.look().await? == Some(lease.encode()),
            Err(error) => return Err(error.into()),
        };
        Ok(taken.then_some(lease))
    }

    /// Waits for the lock.
    async fn wait(&self) -> Result<Lease, Failure> {
        loop {
            if let Some(lease) = self.acquire().await? {
                return Ok(lease);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Gives the lock back, if it is still this lease's. The token stays: no value of the lock ever comes again, so who looked at
    /// it before and compares with it now takes nothing that others have had meanwhile.
    async fn release(&self, lease: &Lease) -> Result<(), Failure> {
        let over = Lease { until: Duration::ZERO, ..lease.clone() };
        let request = WriteRequest::compare_and_set(LOCK, Some(lease.encode()), Some(over.encode()));
        match self.store.write(request).await {
            // In doubt: the lease ends by itself.
            Ok(_) | Err(WriteError::Indeterminate { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the lock protects: it refuses tokens that are older than one that it has seen.
#[derive(Debug, Default)]
struct Printer {
    newest: i64,
    pages: Vec<i64>,
}

impl Printer {
    fn print(&mut self, token: i64) -> Result<(), String> {
        if token < self.newest {
            return Err(format!("token {token} is stale: {} was seen", self.newest));
        }
        self.newest = token;
        self.pages.push(token);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let cluster = Cluster::open(3, Settings::new(Keyspaces::default().with("lock/", Keyspace::cas())))?;
    let start = Instant::now();
    let client = |name, node| Client { name, store: cluster.handle_at(NodeId(node)), start };
    let [ada, bob, cyd] = [client("ada", 1), client("bob", 2), client("cyd", 3)];
    let mut printer = Printer::default();

    let first = ada.acquire().await?.ok_or("nobody else wants it")?;
    if bob.acquire().await?.is_some() {
        return Err("two clients hold the lock".into());
    }
    println!("ada has the lock with token {}; bob has to wait", first.token);
    cluster.stop(NodeId(1)).await;
    let second = bob.wait().await?;
    if start.elapsed() < first.until {
        return Err("bob has the lock before ada's lease was over".into());
    }
    println!("ada's node was killed; her lease has run out, and bob has token {}", second.token);
    printer.print(second.token)?;
    match printer.print(first.token) {
        Err(refused) => println!("ada, who does not know, is refused: {refused}"),
        Ok(()) => return Err("a stale token was taken".into()),
    }
    bob.release(&second).await?;

    // All three in turn, as fast as they can: node 1 is back.
    cluster.start(NodeId(1)).await;
    let (held, printer) = (RefCell::new(Vec::new()), RefCell::new(printer));
    let work = async |client: &Client| -> Result<(), Failure> {
        for _ in 0..10 {
            let lease = client.wait().await?;
            let from = start.elapsed();
            printer.borrow_mut().print(lease.token)?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            held.borrow_mut().push((from, start.elapsed().min(lease.until), lease.token));
            client.release(&lease).await?;
        }
        Ok(())
    };
    let (one, two, three) = tokio::join!(work(&ada), work(&bob), work(&cyd));
    one.and(two).and(three)?;
    let mut held = held.into_inner();
    held.sort_unstable();
    if held.windows(2).any(|pair| pair[1].0 < pair[0].1 || pair[1].2 <= pair[0].2) {
        return Err(format!("two clients held the lock at the same time: {held:?}").into());
    }
    println!("{} leases after it, none beside another one, each with a larger token", held.len());
    if printer.into_inner().pages.len() != 1 + held.len() {
        return Err("a page is missing".into());
    }
    Ok(())
}
