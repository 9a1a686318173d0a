//! The world: nodes, network, clocks, storages and faults in virtual time.
//!
//! Invariant: the order of events is decided by time and, for equal times, by the order in which they were planned; every
//! draw comes from one seed. So the same seed, settings and code give the same run, in any build.

mod by_hand;
mod echo;
mod happen;
mod message;
mod node;
mod plan;
mod process;
mod round;
mod shift;
mod strike;

use core::time::Duration;
use std::collections::BinaryHeap;

use fastrand::Rng;
use replikit_core::{ClusterId, NodeId, Replica, Time};

pub use self::by_hand::Traffic;
use self::echo::Echoes;
use self::node::{AllNodes, Node};
use self::plan::{Entry, Planned, Recurring};
use self::shift::Shift;
use crate::chronicle::Chronicle;
use crate::clock::NodeClock;
use crate::fault::{Fault, FaultCounts};
use crate::network::Network;
use crate::settings::{Settings, StorageSettings, around};
use crate::storage::{Boots, SimStorage, StorageContext};
use crate::subject::{Clients, Replicas, Subject};
use crate::trace::Trace;

/// Most actions that one round of a replica may want: more means that it never ends.
const ACTIONS_PER_ROUND_MAX: u32 = 1_000_000;
/// Most timers in a row that leave the deadline in the past: more means that the replica spins.
const LATE_TIMERS_MAX: u32 = 1_000;

/// Something that must never happen did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed} at {at:?}, node {node}: {what}")]
pub struct Violation {
    /// The run.
    pub seed: u64,
    /// True time of the event after which it was noticed.
    pub at: Time,
    /// The node that ran last.
    pub node: NodeId,
    /// Which guarantee, invariant or rule was broken, and how.
    pub what: String,
}

/// Hears what happens, for a human to read: [`World::narrate`].
type Narrator = Box<dyn FnMut(Time, NodeId, &dyn core::fmt::Debug)>;

/// Makes a node's replica at each start.
pub type Factory<R> = Box<dyn FnMut(NodeId, &Boots, u64) -> R>;

/// A cluster of replicas in virtual time. See the [crate's documentation](crate) for an example.
pub struct World<R: Replica, S: SimStorage = crate::storage::ModelStorage> {
    seed: u64,
    settings: Settings,
    bounded: bool,
    cluster: ClusterId,
    rng: Rng,
    now: Time,
    sequence: u64,
    queue: BinaryHeap<Entry<R::Head>>,
    nodes: Vec<Node<R, S>>,
    network: Network,
    clients: Clients<R::Head>,
    factory: Factory<R>,
    faults: bool,
    counts: FaultCounts,
    trace: Trace,
    events: u64,
    inputs: u64,
    actions: u64,
    scratch: Vec<u8>,
    // Settings of a disk that is slow, made anew at each use.
    slow_storage: StorageSettings,
    messages: u64,
    // Bytes of all messages that were sent.
    bytes: u64,
    // Kinds of messages that were ever sent, by the first byte of the head.
    kinds: [bool; 256],
    // The node that last became a leader.
    leader: Option<usize>,
    // The majority whose turn it is.
    shift: Option<Shift>,
    // Counts those turns.
    turns: u64,
    echoes: Echoes,
    narrator: Option<Narrator>,
    chronicle: Option<Chronicle>,
}

impl<R: Replica, S: SimStorage> World<R, S> {
    /// A cluster with nodes 1 to `settings.nodes`, which start within the first milliseconds.
    ///
    /// `factory` makes a node's replica at each start, from what its disk holds; the last argument is a seed for the
    /// replica's own timers. `cluster` is what batches are verified against.
    pub fn new(
        seed: u64,
        settings: Settings,
        cluster: ClusterId,
        factory: impl FnMut(NodeId, &Boots, u64) -> R + 'static,
    ) -> Self {
        let mut rng = Rng::with_seed(seed);
        let nodes_count = settings.nodes as usize;
        let clients = Clients::new(Rng::with_seed(rng.u64(..)));
        let mut counts = FaultCounts::default();
        let mut storage = |id, rng: &mut Rng| {
            let settings = &settings.storage;
            S::new(cluster, id, &mut StorageContext { now: Time::ZERO, rng, settings, counts: &mut counts })
        };
        let nodes = (0..settings.nodes)
            .map(|at| {
                let id = NodeId(at + 1);
                let storage = storage(id, &mut rng);
                Node::new(id, storage, NodeClock::draw(&mut rng, &settings.clock))
            })
            .collect();
        let mut world = Self {
            seed,
            cluster,
            rng,
            now: Time::ZERO,
            sequence: 0,
            queue: BinaryHeap::new(),
            nodes,
            network: Network::new(settings.nodes as usize),
            bounded: !S::HAS_DISK || settings.storage.bounded(),
            settings,
            clients,
            factory: Box::new(factory),
            faults: true,
            counts,
            trace: Trace::default(),
            events: 0,
            inputs: 0,
            actions: 0,
            scratch: Vec::new(),
            slow_storage: Settings::calm(1).storage,
            messages: 0,
            bytes: 0,
            kinds: [false; 256],
            leader: None,
            shift: None,
            turns: 0,
            echoes: Echoes::new(nodes_count),
            narrator: None,
            chronicle: None,
        };
        for at in 0..world.nodes.len() {
            let (offset, drift) = world.nodes[at].clock.errors();
            world.counts[Fault::ClockOffset] += u64::from(offset);
            world.counts[Fault::ClockDrift] += u64::from(drift);
        }
        for node in 0..world.nodes.len() {
            let after = Duration::from_micros(world.rng.u64(0..3000));
            world.plan(after, Planned::Restart { node, life: 0 });
        }
        for kind in Recurring::ALL {
            world.recur(kind);
        }
        world.plan(Duration::from_millis(5), Planned::Alarm { client: 0 });
        world
    }

    /// Tells every event and every action to `narrator` before it happens. It changes nothing of the run.
    pub fn narrate(&mut self, narrator: impl FnMut(Time, NodeId, &dyn core::fmt::Debug) + 'static) {
        self.narrator = Some(Box::new(narrator));
    }

    /// Keeps the newest lines of what happens, as plain data. It changes nothing of the run.
    pub fn record(&mut self, lines_max: usize) {
        self.chronicle = Some(Chronicle::new(lines_max));
    }

    /// What was recorded, if it was asked for.
    #[must_use]
    pub const fn chronicle(&self) -> Option<&Chronicle> {
        self.chronicle.as_ref()
    }

    /// True time.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Faults met so far, those of the clients included.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        let mut counts = self.counts.clone();
        counts.add(&self.clients.counts);
        counts
    }

    /// Actions of replicas, inputs that they handled and messages that came in: what a protocol costs.
    #[must_use]
    pub const fn protocol_events(&self) -> u64 {
        self.inputs + self.actions
    }

    /// The run's fingerprint so far.
    #[must_use]
    pub const fn trace(&self) -> Trace {
        self.trace
    }

    /// Events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Inputs that replicas have handled so far.
    #[must_use]
    pub const fn inputs(&self) -> u64 {
        self.inputs
    }

    /// The clients' hands, for requests from outside of a [`Subject`].
    pub const fn clients(&mut self) -> &mut Clients<R::Head> {
        &mut self.clients
    }

    /// The live replicas.
    pub fn replicas(&self) -> impl Replicas<R> + '_ {
        AllNodes(&self.nodes)
    }

    /// Whether a node is down for good because its log refused to open; see [`SimStorage::is_refused`].
    #[must_use]
    pub fn is_refused(&self, node: NodeId) -> bool {
        self.nodes[node.0 as usize - 1].storage.is_refused()
    }

    /// Whether the cluster must serve again once everything is mended: every disk keeps the bound, and no node is down for
    /// good, or a majority remembers all that it confirmed. Where neither holds, a node whose tail was cut may wait for ever
    /// for one that stays down.
    #[must_use]
    pub fn must_serve(&self) -> bool {
        let refused = self.nodes.iter().any(|node| node.storage.is_refused());
        let impaired = self.nodes.iter().filter(|node| node.storage.is_impaired()).count();
        self.bounded && (!refused || impaired * 2 < self.nodes.len())
    }

    /// Whether the promises to clients must hold: see [`StorageSettings::bounded`](crate::StorageSettings::bounded).
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        self.bounded
    }

    /// Ends a process now; it comes back after a while.
    pub fn crash(&mut self, node: NodeId, subject: &mut impl Subject<R>) {
        let at = node.0 as usize - 1;
        self.crash_node(at, Duration::from_millis(5), subject);
        self.carry_out_clients();
    }

    /// No new faults from now on; what is cut is mended, what is down comes back, what stalls goes on. Clocks keep their
    /// rates. From here on the cluster must get well by itself.
    pub fn heal(&mut self, subject: &mut impl Subject<R>) {
        self.heal_all_but(&[], subject);
    }

    /// Like [`World::heal`], but these nodes end now and never come back.
    pub fn heal_all_but(&mut self, dead: &[NodeId], subject: &mut impl Subject<R>) {
        self.faults = false;
        let calm = Settings::calm(self.settings.nodes);
        self.settings.network = calm.network;
        self.settings.process = calm.process;
        self.settings.storage = calm.storage;
        self.settings.leader = calm.leader;
        self.network.mend_all(self.now);
        self.shift = None;
        for at in 0..self.nodes.len() {
            if dead.contains(&self.nodes[at].id) {
                self.crash_node(at, Duration::ZERO, subject);
                self.nodes[at].dead = true;
                continue;
            }
            let node = &mut self.nodes[at];
            node.busy_until = node.busy_until.min(self.now);
            (node.slowness, node.slow_disk, node.starved_until) = (1, 1, Time::ZERO);
            node.clock.resume(self.now);
            node.clock.thaw();
            node.timer_at = Time::NEVER;
            node.crash_after = None;
            node.storage.resume(self.now);
            let (life, down) = (node.life, node.replica.is_none());
            if down {
                self.plan(Duration::from_millis(1), Planned::Restart { node: at, life });
            } else {
                self.nodes[at].wake_at = Time::NEVER;
                self.wake(at);
                self.plan_storage(at);
            }
        }
        self.carry_out_clients();
    }

    /// Runs until true time has reached `until`.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn run_until(&mut self, until: Time, subject: &mut impl Subject<R>) -> Result<(), Violation> {
        while self.queue.peek().is_some_and(|entry| entry.at <= until) {
            self.step(subject)?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    /// Runs until `done` says so, at most for the given time; returns whether it did.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn run_while<T: Subject<R>>(
        &mut self,
        at_most: Duration,
        subject: &mut T,
        mut done: impl FnMut(&Self, &T) -> bool,
    ) -> Result<bool, Violation> {
        let until = self.now + at_most;
        while !done(self, subject) {
            if self.queue.peek().is_none_or(|entry| entry.at > until) {
                return Ok(false);
            }
            self.step(subject)?;
        }
        Ok(true)
    }

    fn plan(&mut self, after: Duration, planned: Planned<R::Head>) {
        self.plan_at(self.now + after, planned);
    }

    fn plan_at(&mut self, at: Time, planned: Planned<R::Head>) {
        self.sequence += 1;
        self.queue.push(Entry { at: at.max(self.now), sequence: self.sequence, planned });
    }

    fn recur(&mut self, kind: Recurring) {
        if let Some(every) = kind.every(&self.settings) {
            let after = around(&mut self.rng, every.mean, false);
            self.plan(after.max(Duration::from_micros(1)), Planned::Recur(kind));
        }
    }
}
