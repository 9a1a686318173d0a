//! A node: one replica, its log, its listener and its links, on a thread of their own.
//!
//! Sockets and loop share one thread, so a message goes from the socket to the protocol without a hand-over; only the log
//! has another one, because it waits for the disk.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use replikit_core::{BATCH_BYTES_MAX, ClusterId, Input, NodeId, Replica};
use replikit_log::{Boots, FileDisk, FileName, Log, LogConfig, MemoryLog, RecoveryItem};
use replikit_sync::{Mailbox, mailbox};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::{LOG_RETAINED_BYTES, NodeConfig, SUBSCRIPTION_BYTES, strategy};
use crate::counters::Counters;
use crate::driver::{Driver, LeaderWatch};
use crate::error::OpenError;
use crate::handle::{Handle, Parcel, Port, Target};
use crate::link;
use crate::log_thread::LogThread;
use crate::net::Net;
use crate::server;
use crate::storage::Backend;

/// A running node of a cluster. Dropping it shuts it down cleanly and waits for that.
pub struct Node<M> {
    id: NodeId,
    address: SocketAddr,
    port: Arc<Port>,
    config: NodeConfig,
    thread: Option<JoinHandle<()>>,
    machine: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for Node<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

impl<M> Node<M> {
    /// Opens a node: listens, opens its log, builds the replica from what the log says of each group (or refuses to), pushes
    /// recovery into it, and then takes part. Blocks until recovery is complete.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left running and nothing was overwritten.
    pub fn open<R, F>(config: NodeConfig, build: F) -> Result<Self, OpenError>
    where
        R: Replica + 'static,
        F: FnOnce(&Boots) -> Result<R, OpenError> + Send + 'static,
    {
        check(&config)?;
        let listener = listen(&config.listen)?;
        let address = listener.local_addr().map_err(|source| OpenError::Threads { source })?;
        let (sender, parcels) = mailbox(config.limits.inbox_requests_max.max(1));
        let (leader_sender, leader) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let port = Arc::new(Port {
            sender,
            leader,
            counters: Arc::clone(&counters),
            promise: config.promise,
            nodes: vec![config.id],
            leader_time_max: Duration::ZERO,
            subscription_bytes_max: config.limits.subscription_bytes_max,
        });
        let (ready, opened) = mpsc::sync_channel(1);
        let start = Start { config: config.clone(), listener, address, parcels, leader: leader_sender, counters };
        let thread = std::thread::Builder::new()
            .name(format!("replikit-{}", config.id))
            .spawn(move || start.run(build, &ready))
            .map_err(|source| OpenError::Threads { source })?;
        let mut node = Self { id: config.id, address, port, config, thread: Some(thread), machine: PhantomData };
        let result = opened.recv().unwrap_or(Err(OpenError::Stopped));
        if result.is_err() {
            node.join();
        }
        result.map(|()| node)
    }

    /// Who it is.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The in-process way to its group.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        Handle::new(Arc::clone(&self.port), Target::Node(self.id), self.config.group)
    }

    /// Shuts down cleanly: requests under way are answered, the log is flushed and marked as closed cleanly. Blocks for at
    /// most about [`Timing::shutdown_time_max`](crate::Timing::shutdown_time_max), unless the disk hangs.
    pub fn shutdown(mut self) {
        self.stop();
    }

    /// Has the node shut down without waiting for it; [`Node::join`] waits.
    pub fn begin_shutdown(&self) {
        let _ = self.port.sender.try_push(Parcel::Shutdown);
    }

    /// Waits until the node has ended, for whatever reason.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(node = %self.id, "the node's thread has panicked");
        }
    }

    fn stop(&mut self) {
        self.begin_shutdown();
        self.join();
    }
}

impl<M> Drop for Node<M> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check(config: &NodeConfig) -> Result<(), OpenError> {
    let wrong = |what: String| Err(OpenError::Configuration { what });
    if config.cluster.is_empty() {
        return wrong("the cluster has no name".into());
    }
    if config.limits.peer_frame_bytes_max <= BATCH_BYTES_MAX {
        return wrong(format!("peer_frame_bytes_max must exceed the largest batch, {BATCH_BYTES_MAX} bytes"));
    }
    let retained = config.log_retained_bytes_max;
    if !LOG_RETAINED_BYTES.contains(&retained) {
        return wrong(format!("log_retained_bytes_max is {retained}, and at most {}", LOG_RETAINED_BYTES.end()));
    }
    let waiting = config.limits.subscription_bytes_max;
    if !SUBSCRIPTION_BYTES.contains(&waiting) {
        let (min, max) = (SUBSCRIPTION_BYTES.start(), SUBSCRIPTION_BYTES.end());
        return wrong(format!("subscription_bytes_max is {waiting}, which must be from {min} to {max}"));
    }
    let mut ids: Vec<NodeId> = config.peers.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return wrong(format!("two peers have the id {}", twice[0]));
    }
    Ok(())
}

fn listen(address: &str) -> Result<TcpListener, OpenError> {
    let owned = || address.to_owned();
    let addresses = address.to_socket_addrs().map_err(|source| OpenError::Address { address: owned(), source })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in addresses {
        match bind(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::AddrInUse {
        Err(OpenError::AddressInUse { address: owned() })
    } else {
        Err(OpenError::Listen { address: owned(), source: last })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    // Standard listeners reuse addresses in TIME_WAIT on Unix, so that a node can be restarted at once.
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Everything that the node's thread begins with.
struct Start {
    config: NodeConfig,
    listener: TcpListener,
    address: SocketAddr,
    parcels: Mailbox<Parcel>,
    leader: watch::Sender<Option<NodeId>>,
    counters: Arc<Counters>,
}

impl Start {
    fn run<R, F>(self, build: F, ready: &mpsc::SyncSender<Result<(), OpenError>>)
    where
        R: Replica + 'static,
        F: FnOnce(&Boots) -> Result<R, OpenError>,
    {
        let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(source) => return drop(ready.send(Err(OpenError::Threads { source }))),
        };
        runtime.block_on(async move {
            match self.open(build) {
                Ok(driver) => {
                    let _ = ready.send(Ok(()));
                    // A task like the sockets' own, so that waking it takes no system call.
                    if let Err(error) = tokio::task::spawn_local(driver.run()).await {
                        tracing::error!(%error, "the node's loop has ended");
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    }

    fn open<R, F>(self, build: F) -> Result<Driver<R>, OpenError>
    where
        R: Replica + 'static,
        F: FnOnce(&Boots) -> Result<R, OpenError>,
    {
        let config = self.config;
        let cluster = ClusterId::from_name(&config.cluster);
        let clock = Clock::new();
        let mut nodes = config.peers.clone();
        if nodes.iter().all(|(id, _)| *id != config.id) {
            nodes.push((config.id, self.address.to_string()));
        }
        nodes.sort();
        let (storage, replica) = match &config.dir {
            None => {
                let log = MemoryLog::new();
                let replica = recover(&clock, build(&log.boots())?, log.recovery().map(Ok));
                let replica = replica.expect("reading memory does not fail");
                (Backend::Memory(log), replica)
            }
            Some(dir) => open_disk(&config, cluster, dir, &clock, build, &self.counters)?,
        };
        let mut net = Net::new(config.id, cluster, nodes, config.limits, config.timing, self.counters);
        net.strategy = strategy(config.promise);
        net.founding = config.founding;
        net.gateway = config.gateway;
        let net = Rc::new(net);
        let listener = tokio::net::TcpListener::from_std(self.listener)
            .map_err(|source| OpenError::Listen { address: self.address.to_string(), source })?;
        tokio::task::spawn_local(server::accept::<R>(Rc::clone(&net), listener));
        for peer in net.peers.values() {
            tokio::task::spawn_local(link::keep(Rc::clone(&net), Rc::clone(peer)));
        }
        let leader = LeaderWatch::new(config.group, self.leader);
        Ok(Driver::new(replica, net, storage, self.parcels, clock, leader, config.events))
    }
}

fn open_disk<R, F>(
    config: &NodeConfig,
    cluster: ClusterId,
    dir: &Path,
    clock: &Clock,
    build: F,
    counters: &Arc<Counters>,
) -> Result<(Backend, R), OpenError>
where
    R: Replica,
    F: FnOnce(&Boots) -> Result<R, OpenError>,
{
    let failed = |source| OpenError::Log { dir: dir.display().to_string(), source };
    let mut disk = FileDisk::open(dir).map_err(|error| {
        failed(replikit_log::OpenError::Disk { operation: "open", file: FileName::new("directory"), error })
    })?;
    let settings =
        LogConfig { retained_bytes_max: config.log_retained_bytes_max, ..LogConfig::new(cluster, config.id) };
    let (log, found) = Log::open(settings, &mut disk).map_err(failed)?;
    for event in &found.events {
        tracing::warn!(node = %config.id, ?event, "log");
    }
    let replica = recover(clock, build(&found.boots)?, log.recovery(&mut disk)).map_err(failed)?;
    let (operations_max, slow_after) = (config.limits.storage_operations_max, config.timing.storage_slow_after);
    let thread = LogThread::start(log, disk, operations_max, slow_after, Arc::clone(counters))
        .map_err(|source| OpenError::Threads { source })?;
    Ok((Backend::Disk(thread), replica))
}

fn recover<R: Replica>(
    clock: &Clock,
    mut replica: R,
    items: impl Iterator<Item = Result<RecoveryItem, replikit_log::OpenError>>,
) -> Result<R, replikit_log::OpenError> {
    for item in items {
        replica.handle(clock.now(), item?.into_input());
    }
    replica.handle(clock.now(), Input::Recovered);
    Ok(replica)
}
