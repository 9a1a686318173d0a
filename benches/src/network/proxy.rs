//! A TCP proxy between the nodes of a cluster: delay, jitter, loss, bandwidth and cuts on each link, without any right that a
//! user does not have.
//!
//! Every ordered pair of nodes has a listener: what the first sends to the second goes through it, and what comes back on the
//! same connection has the delay of the other direction. What TCP hides stays hidden: a lost packet is a stall of its
//! connection, and what a cut holds back arrives when it is mended, or never if the connection breaks meanwhile.
//!
//! Invariant: bytes of one direction of a connection stay in order; their delay counts from when they were read.
//!
//! Threads that block, not a runtime: the timers of one are a millisecond coarse, and a LAN takes a quarter of that.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use replikit_core::NodeId;
use replikit_runtime::greets_as_client;

use super::Network;

/// Read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks under way in one direction of a connection; more wait with their sender, as in a full window.
const CHUNKS_MAX: usize = 4_096;
/// Bytes of a packet: what is lost as a whole.
const PACKET_BYTES: usize = 1_460;
/// What a lost packet costs beside a round trip: Linux waits at least so long before it sends again.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// How soon threads notice that the proxy is gone.
const LOOK: Duration = Duration::from_millis(50);

/// One direction of a link.
#[derive(Clone, Copy, Debug)]
struct Direction {
    delay: Duration,
    /// Beside the network's own, while a replica is slow; not for clients.
    extra: Duration,
    jitter: Duration,
    round_trip: Duration,
    loss_per_mille: u16,
    bytes_per_second: u64,
    cut: bool,
    /// Grows with each reset: connections of an older one end.
    life: u32,
}

struct Shared {
    directions: Mutex<BTreeMap<(NodeId, NodeId), Direction>>,
    changed: Condvar,
    over: Mutex<bool>,
    sent: Mutex<BTreeMap<(NodeId, NodeId), u64>>,
}

/// A running proxy. Dropping it ends its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    addresses: BTreeMap<(NodeId, NodeId), SocketAddr>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done by a panic: each critical section writes one value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Begins to carry for the nodes of a network, which listen, or will, at `targets`; `ports` are free ones, one for each
    /// ordered pair of nodes. Losses and jitter come from the seed.
    ///
    /// # Errors
    /// When a port is not free.
    pub fn start(network: &Network, targets: &[SocketAddr], ports: &[u16], seed: u64) -> io::Result<Self> {
        let pairs = network.ids().flat_map(|from| network.ids().map(move |to| (from, to)));
        let pairs: Vec<(NodeId, NodeId)> = pairs.filter(|(from, to)| from != to).collect();
        let direction = |(from, to): (NodeId, NodeId)| Direction {
            delay: network.one_way(from, to),
            extra: Duration::ZERO,
            jitter: network.jitter,
            round_trip: network.one_way(from, to) * 2,
            loss_per_mille: network.loss_per_mille,
            bytes_per_second: network.bytes_per_second,
            cut: false,
            life: 0,
        };
        let shared = Arc::new(Shared {
            directions: Mutex::new(pairs.iter().map(|&pair| (pair, direction(pair))).collect()),
            changed: Condvar::new(),
            over: Mutex::new(false),
            sent: Mutex::default(),
        });
        let mut addresses = BTreeMap::new();
        for (number, (&(from, to), &port)) in pairs.iter().zip(ports).enumerate() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let listener = TcpListener::bind(address)?;
            addresses.insert((from, to), address);
            let (shared, target) = (shared.clone(), targets[to.0 as usize - 1]);
            let seed = seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            thread::spawn(move || accept(&listener, &shared, (from, to), target, seed));
        }
        Ok(Self { shared, addresses })
    }

    /// How many ports it takes for so many nodes.
    #[must_use]
    pub const fn ports(nodes: usize) -> usize {
        nodes * (nodes - 1)
    }

    /// Where the first node reaches the second.
    #[must_use]
    pub fn address(&self, from: NodeId, to: NodeId) -> SocketAddr {
        self.addresses[&(from, to)]
    }

    /// Nothing gets from the first to the second any more; what is sent waits.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.change((from, to), |direction| direction.cut = true);
    }

    /// What waits gets through again.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        self.change((from, to), |direction| direction.cut = false);
    }

    /// Messages of the node in this direction take so much longer; those of clients do not.
    pub fn slow(&self, from: NodeId, to: NodeId, extra: Duration) {
        self.change((from, to), |direction| direction.extra = extra);
    }

    /// Connections between the two break.
    pub fn reset(&self, one: NodeId, other: NodeId) {
        for pair in [(one, other), (other, one)] {
            self.change(pair, |direction| direction.life += 1);
        }
    }

    /// Bytes that were carried so far, all links together; those that a break caught in their last step are among them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        lock(&self.shared.sent).values().sum()
    }

    fn change(&self, pair: (NodeId, NodeId), change: impl FnOnce(&mut Direction)) {
        if let Some(direction) = lock(&self.shared.directions).get_mut(&pair) {
            change(direction);
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *lock(&self.shared.over) = true;
        self.shared.changed.notify_all();
        for address in self.addresses.values() {
            // Wakes its acceptor, which then sees that all is over; if that is gone already, all the better.
            let _ = TcpStream::connect(address);
        }
    }
}

impl Shared {
    fn direction(&self, pair: (NodeId, NodeId)) -> Direction {
        lock(&self.directions)[&pair]
    }

    fn is_over(&self) -> bool {
        *lock(&self.over)
    }

    /// Whether a connection of this life still stands.
    fn stands(&self, pair: (NodeId, NodeId), life: u32) -> bool {
        !self.is_over() && self.direction(pair).life == life
    }

    /// Waits while the direction is cut; whether the connection still stands then.
    fn wait_mended(&self, pair: (NodeId, NodeId), life: u32) -> bool {
        let mut directions = lock(&self.directions);
        while directions[&pair].cut && directions[&pair].life == life {
            if self.is_over() {
                return false;
            }
            let waited = self.changed.wait_timeout(directions, LOOK);
            directions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        directions[&pair].life == life
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, pair: (NodeId, NodeId), target: SocketAddr, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    loop {
        let Ok((near, _)) = listener.accept() else { return };
        if shared.is_over() {
            return;
        }
        let (shared, rng) = (shared.clone(), rng.fork());
        // Whoever cannot be reached is seen by who asked as a connection that ends.
        thread::spawn(move || connect(&shared, pair, near, target, rng));
    }
}

fn connect(shared: &Arc<Shared>, (from, to): (NodeId, NodeId), near: TcpStream, target: SocketAddr, mut rng: Rng) {
    let life = shared.direction((from, to)).life;
    // A handshake takes a round trip, and does not get through a cut in either direction.
    let round_trip = shared.direction((from, to)).round_trip;
    if !shared.wait_mended((from, to), life) || !shared.wait_mended((to, from), life) {
        return;
    }
    thread::sleep(round_trip);
    let Ok(far) = TcpStream::connect(target) else { return };
    let mut pipes = || -> io::Result<()> {
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK))?;
        }
        // What is first said on a connection tells who says it.
        let of_client = Arc::new(OnceLock::new());
        let there = Way { pair: (from, to), life, of_client: of_client.clone(), dials: true };
        let back = Way { pair: (to, from), life, of_client, dials: false };
        pipe(shared, there, near.try_clone()?, far.try_clone()?, rng.fork());
        pipe(shared, back, far.try_clone()?, near.try_clone()?, rng.fork());
        Ok(())
    };
    // A stream that cannot be cloned was broken by its other end.
    let _ = pipes();
}

/// Bytes, when they are due, and how many the link has carried with them.
type Chunk = (Instant, Vec<u8>);

/// One direction of one connection.
struct Way {
    pair: (NodeId, NodeId),
    life: u32,
    of_client: Arc<OnceLock<bool>>,
    /// Whether it is that of the side that dialled, and greets.
    dials: bool,
}

impl Way {
    /// Whether a client speaks here, or is spoken to.
    fn is_of_client(&self, bytes: &[u8]) -> bool {
        match self.dials {
            true => *self.of_client.get_or_init(|| greets_as_client(bytes)),
            false => self.of_client.get().copied().unwrap_or(false),
        }
    }
}

fn pipe(shared: &Arc<Shared>, way: Way, from: TcpStream, to: TcpStream, rng: Rng) {
    let (sender, receiver) = sync_channel(CHUNKS_MAX);
    let reading = shared.clone();
    let (pair, life) = (way.pair, way.life);
    thread::spawn(move || {
        read(&reading, &way, &from, &sender, rng);
        // The other direction of the same connection ends with this one, as with a reset.
        let _ = from.shutdown(Shutdown::Both);
    });
    let writing = shared.clone();
    thread::spawn(move || {
        write(&writing, pair, life, &to, &receiver);
        let _ = to.shutdown(Shutdown::Both);
    });
}

fn read(shared: &Shared, way: &Way, mut from: &TcpStream, sender: &SyncSender<Chunk>, mut rng: Rng) {
    let &Way { pair, life, .. } = way;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut free_at, mut last) = (Instant::now(), Instant::now());
    while shared.stands(pair, life) {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        let now = Instant::now();
        let direction = shared.direction(pair);
        let begins = free_at.max(now);
        let takes = (bytes as u64 * 1_000_000_000).checked_div(direction.bytes_per_second).unwrap_or(0);
        free_at = begins + Duration::from_nanos(takes);
        let extra = if way.is_of_client(&buffer[..bytes]) { Duration::ZERO } else { direction.extra };
        let mut due = free_at + direction.delay + extra;
        due += Duration::from_nanos(rng.u64(0..=direction.jitter.as_nanos() as u64));
        for _ in 0..bytes.div_ceil(PACKET_BYTES) {
            if rng.u16(0..1_000) < direction.loss_per_mille {
                due += RETRANSMISSION + direction.round_trip;
                break;
            }
        }
        last = last.max(due);
        if sender.send((last, buffer[..bytes].to_vec())).is_err() {
            return;
        }
    }
}

fn write(shared: &Shared, pair: (NodeId, NodeId), life: u32, mut to: &TcpStream, receiver: &Receiver<Chunk>) {
    while let Ok((due, bytes)) = receiver.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if !shared.wait_mended(pair, life) {
            return;
        }
        // Counted first: who has received bytes finds them counted.
        *lock(&shared.sent).entry(pair).or_default() += bytes.len() as u64;
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::free_ports;

    /// Two nodes, of which the second echoes, and a connection from the first to it.
    fn echo(round_trip_ms: f64, more: &str) -> (Proxy, TcpStream) {
        let text =
            format!("regions = [\"a\", \"b\"]\nround-trip-ms = [[0, {round_trip_ms}], [{round_trip_ms}, 0]]\n{more}");
        let network = Network::parse(std::path::Path::new("t.toml"), &text).expect("it is a network");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let target = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                thread::spawn(move || {
                    let mut buffer = [0; 1 << 16];
                    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..bytes]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let ports = free_ports(Proxy::ports(2)).expect("free ports");
        let proxy = Proxy::start(&network, &[target, target], &ports, 1).expect("the ports are free");
        let stream = TcpStream::connect(proxy.address(NodeId(1), NodeId(2))).expect("it listens");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
        (proxy, stream)
    }

    fn round_trip(stream: &mut TcpStream, byte: u8) -> io::Result<Duration> {
        let begun = Instant::now();
        stream.write_all(&[byte])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, [byte]);
        Ok(begun.elapsed())
    }

    #[test]
    fn a_round_trip_takes_what_the_network_says() {
        let (_proxy, mut stream) = echo(60.0, "");
        round_trip(&mut stream, 1).expect("the connection is made");
        let took = round_trip(&mut stream, 2).expect("it answers");
        assert!(took >= Duration::from_millis(60), "{took:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }

    #[test]
    fn a_cut_in_one_direction_holds_back_until_it_is_mended() {
        let (proxy, mut stream) = echo(0.0, "");
        round_trip(&mut stream, 1).expect("the connection is made");
        proxy.cut(NodeId(2), NodeId(1));
        let mending = thread::scope(|scope| {
            let waiting = scope.spawn(|| round_trip(&mut stream, 2));
            thread::sleep(Duration::from_millis(150));
            assert!(!waiting.is_finished(), "the answer does not come back");
            proxy.mend(NodeId(2), NodeId(1));
            waiting.join().expect("it reports its errors")
        });
        // The question may have been sent some time after the thread was begun.
        assert!(mending.expect("nothing is lost") >= Duration::from_millis(75));
    }

    #[test]
    fn a_reset_breaks_the_connection_and_the_next_one_works() {
        let (proxy, mut stream) = echo(0.0, "");
        round_trip(&mut stream, 1).expect("the connection is made");
        proxy.reset(NodeId(1), NodeId(2));
        let broken = (0..100).any(|byte| {
            thread::sleep(Duration::from_millis(10));
            round_trip(&mut stream, byte).is_err()
        });
        assert!(broken);
        let mut next = TcpStream::connect(proxy.address(NodeId(1), NodeId(2))).expect("it listens");
        round_trip(&mut next, 3).expect("a new connection is none of the old");
    }

    /// What a client says first.
    fn greeting() -> Vec<u8> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let config = replikit_runtime::ClientConfig::new("any", [address]);
                runtime.block_on(replikit_runtime::Client::connect(config)).expect_err("nobody welcomes it");
            });
            let (mut stream, _) = listener.accept().expect("it connects");
            let mut bytes = vec![0; 1 << 10];
            let read = stream.read(&mut bytes).expect("it greets");
            bytes.truncate(read);
            bytes
        })
    }

    #[test]
    fn a_slow_replica_is_slow_for_nodes_and_not_for_clients() {
        let (proxy, mut node) = echo(0.0, "");
        let mut client = TcpStream::connect(proxy.address(NodeId(1), NodeId(2))).expect("it listens");
        let greeting = greeting();
        client.write_all(&greeting).expect("it is read");
        client.read_exact(&mut vec![0; greeting.len()]).expect("it is echoed");
        round_trip(&mut node, 1).expect("the connection is made");
        for pair in [(NodeId(1), NodeId(2)), (NodeId(2), NodeId(1))] {
            proxy.slow(pair.0, pair.1, Duration::from_secs(1));
        }
        assert!(round_trip(&mut client, 2).expect("it answers") < Duration::from_millis(900));
        assert!(round_trip(&mut node, 3).expect("it answers") >= Duration::from_secs(2));
    }

    #[test]
    fn bandwidth_bounds_what_gets_through() {
        // 8 Mbit/s are a million bytes a second: a tenth of that takes a tenth of a second, in each direction.
        let (proxy, mut stream) = echo(0.0, "megabits-per-second = 8");
        round_trip(&mut stream, 1).expect("the connection is made");
        let begun = Instant::now();
        let sent = vec![7; 100_000];
        let mut answer = vec![0; sent.len()];
        let mut writing = stream.try_clone().expect("it clones");
        thread::scope(|scope| {
            scope.spawn(|| writing.write_all(&sent).expect("it is read"));
            stream.read_exact(&mut answer).expect("it is echoed");
        });
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
        assert_eq!(answer, sent);
        assert!(proxy.bytes() >= 200_000);
    }
}
