//! The world: nodes, network, clocks, storages and faults in virtual time.
//!
//! Invariant: the order of events is decided by time and, for equal times, by the order in which they were planned; every
//! draw comes from one seed. So the same seed, settings and code give the same run, in any build.

use core::cmp::Ordering;
use core::time::Duration;
use std::collections::{BinaryHeap, VecDeque};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use replikit_core::{Action, ClusterId, Event, Input, Link, NodeId, Replica, StorageEvent, Time, WriteId};

use crate::clock::NodeClock;
use crate::fault::{Fault, FaultCounts};
use crate::frame;
use crate::network::Network;
use crate::settings::{Every, Settings, around};
use crate::storage::{Boots, RecoveryItem, SimStorage, StorageContext, StorageOutput};
use crate::subject::{Clients, Replicas, Subject};
use crate::trace::{Step, Trace};

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

#[derive(Debug)]
enum Planned<H> {
    Arrive { from: usize, to: usize, connection: u32, sender_life: u32, frame: Bytes },
    Request { to: usize, input: Input<H> },
    Peer { to: usize, of: usize, link: Link },
    Wake { node: usize, life: u32 },
    Timer { node: usize, life: u32 },
    Storage { node: usize, life: u32 },
    Crash { node: usize, life: u32 },
    Restart { node: usize, life: u32 },
    Recur(Recurring),
    Mend(Vec<(usize, usize)>),
    Alarm { client: u32 },
}

#[derive(Clone, Copy, Debug)]
enum Recurring {
    Netsplit,
    OneWay,
    Reset,
    Crash,
    CrashAll,
    Pause,
    Stall,
    ClockJump,
}

impl Recurring {
    const ALL: [Self; 8] = [
        Self::Netsplit,
        Self::OneWay,
        Self::Reset,
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::Stall,
        Self::ClockJump,
    ];

    const fn every(self, settings: &Settings) -> Option<Every> {
        match self {
            Self::Netsplit => settings.network.netsplit,
            Self::OneWay => settings.network.one_way,
            Self::Reset => settings.network.reset,
            Self::Crash => settings.process.crash,
            Self::CrashAll => settings.process.crash_all,
            Self::Pause => settings.process.pause,
            Self::Stall => settings.storage.stall,
            Self::ClockJump => settings.clock.jump,
        }
    }
}

#[derive(Debug)]
struct Entry<H> {
    at: Time,
    sequence: u64,
    planned: Planned<H>,
}

impl<H> PartialEq for Entry<H> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<H> Eq for Entry<H> {}

impl<H> PartialOrd for Entry<H> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<H> Ord for Entry<H> {
    // The heap gives the largest first; the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

struct Node<R: Replica, S> {
    id: NodeId,
    replica: Option<R>,
    // Grows with each crash: what was planned for a former life is void.
    life: u32,
    storage: S,
    clock: NodeClock,
    inbox: VecDeque<Input<R::Head>>,
    busy_until: Time,
    wake_at: Time,
    timer_at: Time,
    storage_at: Time,
    last_write: WriteId,
    late_timers: u32,
    // The process crashes before its n-th action from now.
    crash_after: Option<u32>,
}

/// A cluster of replicas in virtual time. See the [crate's documentation](crate) for an example.
pub struct World<R: Replica, S: SimStorage = crate::storage::ModelStorage> {
    seed: u64,
    settings: Settings,
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
    scratch: BytesMut,
    narrator: Option<Narrator>,
}

struct AllNodes<'a, R: Replica, S>(&'a [Node<R, S>]);

impl<R: Replica, S: SimStorage> Replicas<R> for AllNodes<'_, R, S> {
    fn replica(&self, node: NodeId) -> Option<&R> {
        self.0.get((node.0 as usize).checked_sub(1)?)?.replica.as_ref()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.0.iter().map(|node| node.id).collect()
    }
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
        let clients = Clients::new(Rng::with_seed(rng.u64(..)));
        let mut counts = FaultCounts::default();
        let mut storage = |id, rng: &mut Rng| {
            let settings = &settings.storage;
            S::new(cluster, id, &mut StorageContext { now: Time::ZERO, rng, settings, counts: &mut counts })
        };
        let nodes = (0..settings.nodes)
            .map(|at| Node {
                id: NodeId(at + 1),
                replica: None,
                life: 0,
                storage: storage(NodeId(at + 1), &mut rng),
                clock: NodeClock::draw(&mut rng, &settings.clock),
                inbox: VecDeque::new(),
                busy_until: Time::ZERO,
                wake_at: Time::NEVER,
                timer_at: Time::NEVER,
                storage_at: Time::NEVER,
                last_write: WriteId(0),
                late_timers: 0,
                crash_after: None,
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
            settings,
            clients,
            factory: Box::new(factory),
            faults: true,
            counts,
            trace: Trace::default(),
            events: 0,
            inputs: 0,
            scratch: BytesMut::new(),
            narrator: None,
        };
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

    /// True time.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Faults met so far.
    #[must_use]
    pub const fn counts(&self) -> &FaultCounts {
        &self.counts
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

    /// Ends a process now; it comes back after a while.
    pub fn crash(&mut self, node: NodeId, subject: &mut impl Subject<R>) {
        let at = node.0 as usize - 1;
        self.crash_node(at, Duration::from_millis(5), subject);
        self.carry_out_clients();
    }

    /// No new faults from now on; what is cut is mended, what is down comes back, what stalls goes on. Clocks keep their
    /// rates. From here on the cluster must get well by itself.
    pub fn heal(&mut self) {
        self.faults = false;
        let calm = Settings::calm(self.settings.nodes);
        self.settings.network = calm.network;
        self.settings.process = calm.process;
        self.settings.storage = calm.storage;
        self.network.mend_all();
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            node.busy_until = node.busy_until.min(self.now);
            node.crash_after = None;
            node.storage.resume(self.now);
            let (life, down) = (node.life, node.replica.is_none());
            if down {
                self.plan(Duration::from_millis(1), Planned::Restart { node: at, life });
            } else {
                self.wake(at);
                self.plan_storage(at);
            }
        }
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

    /// The next event. Does nothing when there is none.
    ///
    /// # Errors
    /// The [`Violation`] that was noticed after it.
    pub fn step(&mut self, subject: &mut impl Subject<R>) -> Result<(), Violation> {
        self.carry_out_clients();
        let Some(Entry { at, planned, .. }) = self.queue.pop() else { return Ok(()) };
        self.now = at;
        self.clients.now = at;
        self.events += 1;
        let node = match &planned {
            Planned::Arrive { to, .. } | Planned::Request { to, .. } | Planned::Peer { to, .. } => *to,
            Planned::Wake { node, .. }
            | Planned::Timer { node, .. }
            | Planned::Storage { node, .. }
            | Planned::Crash { node, .. }
            | Planned::Restart { node, .. } => *node,
            _ => 0,
        };
        if let Some(narrator) = &mut self.narrator {
            narrator(at, self.nodes[node].id, &planned);
        }
        let result = self.happen(planned, subject);
        self.carry_out_clients();
        result.map_err(|what| Violation { seed: self.seed, at, node: self.nodes[node].id, what })
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

    fn carry_out_clients(&mut self) {
        let alarms = core::mem::take(&mut self.clients.alarms);
        for (client, after) in alarms {
            self.plan(after, Planned::Alarm { client });
        }
        for (node, input) in core::mem::take(&mut self.clients.requests) {
            let after = Network::hint_delay(&mut self.rng, &self.settings.network);
            if let Some(to) = (node.0 as usize).checked_sub(1).filter(|&at| at < self.nodes.len()) {
                self.plan(after, Planned::Request { to, input });
            }
        }
    }

    fn happen(&mut self, planned: Planned<R::Head>, subject: &mut impl Subject<R>) -> Result<(), String> {
        match planned {
            Planned::Arrive { from, to, connection, sender_life, frame } => {
                self.arrive((from, to), connection, sender_life, frame, subject)
            }
            Planned::Request { to, input } => {
                self.trace.note(Step::Request, self.now, to, 0);
                self.deliver(to, input, subject)
            }
            Planned::Peer { to, of, link } => {
                self.trace.note(Step::Peer, self.now, to, (of as u64) << 2 | link as u64);
                let node = self.nodes[of].id;
                self.deliver(to, Input::Peer { node, link }, subject)
            }
            Planned::Wake { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].wake_at != self.now {
                    return Ok(());
                }
                self.nodes[node].wake_at = Time::NEVER;
                self.trace.note(Step::Wake, self.now, node, 0);
                self.attempt(node, subject)
            }
            Planned::Timer { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].timer_at != self.now {
                    return Ok(());
                }
                self.nodes[node].timer_at = Time::NEVER;
                self.trace.note(Step::Timer, self.now, node, 0);
                self.attempt(node, subject)
            }
            Planned::Storage { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].storage_at != self.now {
                    return Ok(());
                }
                self.nodes[node].storage_at = Time::NEVER;
                self.drain_storage(node, subject)
            }
            Planned::Crash { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].replica.is_some() {
                    self.crash_node(node, Duration::from_millis(20), subject);
                }
                Ok(())
            }
            Planned::Restart { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].replica.is_none() {
                    return self.start_node(node, subject);
                }
                Ok(())
            }
            Planned::Recur(kind) => {
                if self.faults {
                    self.strike(kind, subject);
                    self.recur(kind);
                }
                Ok(())
            }
            Planned::Mend(links) => {
                if self.faults {
                    self.trace.note(Step::Mend, self.now, 0, links.len() as u64);
                    self.network.mend(&links);
                    self.link_hints(&links, Link::Up);
                }
                Ok(())
            }
            Planned::Alarm { client } => {
                self.trace.note(Step::Alarm, self.now, 0, u64::from(client));
                subject.on_alarm(client, &mut self.clients);
                Ok(())
            }
        }
    }

    // ---- messages

    fn arrive(
        &mut self,
        (from, to): (usize, usize),
        connection: u32,
        sender_life: u32,
        frame: Bytes,
        subject: &mut impl Subject<R>,
    ) -> Result<(), String> {
        if self.nodes[to].replica.is_none() || !self.network.arrives(from, to, connection, &self.settings.network) {
            return Ok(());
        }
        if self.nodes[from].life != sender_life {
            self.counts[Fault::FormerIncarnation] += 1;
        }
        self.trace.note_bytes(Step::Arrive, self.now, to, &frame);
        match frame::decode(frame, self.cluster) {
            Ok(message) => {
                let from = self.nodes[from].id;
                self.deliver(to, Input::Message { from, message }, subject)
            }
            // A flipped bit: the transport closes the connection, as a real one does after a frame that it cannot read.
            Err(_) => {
                self.network.reset(from, to);
                Ok(())
            }
        }
    }

    fn send(&mut self, from: usize, to: NodeId, message: &replikit_core::Message<R::Head>) -> Result<(), String> {
        let Some(to) = (to.0 as usize).checked_sub(1).filter(|&at| at < self.nodes.len()) else {
            return Err(format!("a message to node {to}, which does not exist"));
        };
        if to == from {
            return Err("a message to itself".to_owned());
        }
        let mut frame = frame::encode(message, &mut self.scratch);
        self.trace.note_bytes(Step::Send, self.now, from, &frame);
        let (network, rng) = (&self.settings.network, &mut self.rng);
        let copies = if network.duplicate_per_mille > 0 && rng.u16(0..1000) < network.duplicate_per_mille {
            self.counts[Fault::Duplication] += 1;
            2
        } else {
            1
        };
        let batches_start = frame::batches_start(&frame);
        if batches_start < frame.len() && network.flip_per_mille > 0 && rng.u16(0..1000) < network.flip_per_mille {
            // Behind the length of the first batch: what is flipped is the batch's own bytes.
            let at = rng.usize(batches_start + 4..frame.len());
            let mut flipped = BytesMut::from(&frame[..]);
            flipped[at] ^= 1 << rng.u32(0..8);
            frame = flipped.freeze();
            self.counts[Fault::Flip] += 1;
        }
        let sender_life = self.nodes[from].life;
        for _ in 0..copies {
            let delivery =
                self.network.send((from, to), self.now, &mut self.rng, &self.settings.network, &mut self.counts);
            if let Some(delivery) = delivery {
                let (connection, frame) = (delivery.connection, frame.clone());
                self.plan_at(delivery.at, Planned::Arrive { from, to, connection, sender_life, frame });
            }
        }
        Ok(())
    }

    // ---- the driving loop of one node

    fn deliver(&mut self, at: usize, input: Input<R::Head>, subject: &mut impl Subject<R>) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        self.nodes[at].inbox.push_back(input);
        self.attempt(at, subject)
    }

    /// Runs a round now if the node is idle, or plans one for when it is.
    fn attempt(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        if self.nodes[at].busy_until > self.now {
            self.wake(at);
            return Ok(());
        }
        self.round(at, subject)
    }

    fn wake(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let wake_at = node.busy_until.max(self.now);
        if wake_at < node.wake_at {
            node.wake_at = wake_at;
            let life = node.life;
            self.plan_at(wake_at, Planned::Wake { node: at, life });
        }
    }

    fn round(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        let node = &mut self.nodes[at];
        let now = node.clock.read(self.now);
        let replica = node.replica.as_mut().expect("only live nodes run rounds");
        while let Some(input) = node.inbox.pop_front() {
            self.inputs += 1;
            replica.handle(now, input);
        }
        if replica.deadline().is_some_and(|deadline| deadline <= now.mono) {
            self.inputs += 1;
            node.late_timers += 1;
            if node.late_timers > LATE_TIMERS_MAX {
                return Err(format!("the deadline stays in the past after {LATE_TIMERS_MAX} timers"));
            }
            replica.handle(now, Input::Timer);
        } else {
            node.late_timers = 0;
        }
        self.drain(at, subject)?;
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        let busy = around(&mut self.rng, self.settings.process.round, false);
        self.nodes[at].busy_until = self.now + busy;
        self.after_round(at);
        subject.check(self.nodes[at].id, &AllNodes(&self.nodes))
    }

    /// Carries out all that the replica wants; the process may crash between two actions.
    fn drain(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        let mut actions = 0;
        loop {
            if let Some(left) = &mut self.nodes[at].crash_after {
                if *left == 0 {
                    self.counts[Fault::CrashAmidActions] += 1;
                    let lasts = self.settings.process.crash.map_or(Duration::from_millis(20), |every| every.lasts);
                    self.crash_node(at, lasts, subject);
                    return Ok(());
                }
                *left -= 1;
            }
            let replica = self.nodes[at].replica.as_mut().expect("only live nodes run rounds");
            let Some(action) = replica.poll() else { return Ok(()) };
            actions += 1;
            if actions > ACTIONS_PER_ROUND_MAX {
                return Err(format!("a round wanted more than {ACTIONS_PER_ROUND_MAX} actions"));
            }
            self.carry_out(at, action, subject)?;
        }
    }

    fn carry_out(&mut self, at: usize, action: Action<R::Head>, subject: &mut impl Subject<R>) -> Result<(), String> {
        let now = self.now;
        if let Some(narrator) = &mut self.narrator {
            narrator(now, self.nodes[at].id, &action);
        }
        match action {
            Action::Persist { id, op } => {
                let node = &mut self.nodes[at];
                if id != node.last_write.next() {
                    return Err(format!("storage action {id:?} follows {:?}", node.last_write));
                }
                node.last_write = id;
                self.trace.note(Step::Persist, now, at, id.0);
                node.storage.persist(id, op)
            }
            Action::Send { to, message } => self.send(at, to, &message),
            Action::ReadLog { ticket, stream, from, bytes_max } => {
                self.trace.note(Step::Read, now, at, from.0);
                let (storage, mut context) = self.storage(at);
                storage.read_log(ticket, stream, from, bytes_max, &mut context);
                Ok(())
            }
            Action::ReadSnapshot { ticket, group, at: position, offset, bytes_max } => {
                self.trace.note(Step::Read, now, at, offset);
                let (storage, mut context) = self.storage(at);
                storage.read_snapshot(ticket, group, position, offset, bytes_max, &mut context);
                Ok(())
            }
            Action::Done { token, outcome } => {
                self.trace.note(Step::Done, now, at, token.0);
                let id = self.nodes[at].id;
                subject.on_done(id, token, outcome, &mut self.clients)
            }
            Action::Event { group, event } => {
                self.trace.note(Step::Event, now, at, u64::from(group.0));
                if let Event::PeerMisbehaved { node, what } = &event {
                    return Err(format!("node {node} is accused, though all are honest: {what}"));
                }
                subject.on_event(self.nodes[at].id, group, &event)
            }
        }
    }

    fn storage(&mut self, at: usize) -> (&mut S, StorageContext<'_>) {
        let context = StorageContext {
            now: self.now,
            rng: &mut self.rng,
            settings: &self.settings.storage,
            counts: &mut self.counts,
        };
        (&mut self.nodes[at].storage, context)
    }

    /// Plans what the round has made due: the storage's next end and the replica's next timer.
    fn after_round(&mut self, at: usize) {
        let (storage, mut context) = self.storage(at);
        storage.pump(&mut context);
        self.plan_storage(at);
        let node = &mut self.nodes[at];
        let life = node.life;
        let Some(deadline) = node.replica.as_ref().and_then(R::deadline) else { return };
        let due = node.clock.when(deadline);
        if due < Time::NEVER && due < node.timer_at {
            // A timer that spins must still let time pass.
            let late = self.rng.u64(1..=self.settings.clock.timer_late_max.as_nanos().max(1) as u64);
            let timer_at = Time(due.max(self.now).0 + late);
            if timer_at < node.timer_at {
                node.timer_at = timer_at;
                self.plan_at(timer_at, Planned::Timer { node: at, life });
            }
        }
    }

    fn plan_storage(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(due) = node.storage.due() {
            let due = due.max(self.now);
            if due < node.storage_at {
                node.storage_at = due;
                let life = node.life;
                self.plan_at(due, Planned::Storage { node: at, life });
            }
        }
    }

    fn drain_storage(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        if self.nodes[at].replica.is_none() {
            return Ok(());
        }
        loop {
            let (storage, mut context) = self.storage(at);
            let Some(output) = storage.poll(&mut context) else { break };
            if let Some(narrator) = &mut self.narrator {
                narrator(self.now, self.nodes[at].id, &output);
            }
            let input = match output {
                StorageOutput::Durable(up_to) => {
                    self.trace.note(Step::Storage, self.now, at, up_to.0);
                    Input::Durable { up_to }
                }
                StorageOutput::LogRead { ticket, stream, answer } => Input::LogRead { ticket, stream, answer },
                StorageOutput::SnapshotRead { ticket, answer } => Input::SnapshotRead { ticket, answer },
                StorageOutput::Event(event) => {
                    if event == StorageEvent::Failed {
                        // The operator's part: a node whose disk fails is started anew.
                        let after = Duration::from_millis(self.rng.u64(1..500));
                        let life = self.nodes[at].life;
                        self.plan(after, Planned::Crash { node: at, life });
                    }
                    Input::Storage { event }
                }
            };
            self.nodes[at].inbox.push_back(input);
        }
        self.plan_storage(at);
        if self.nodes[at].inbox.is_empty() { Ok(()) } else { self.attempt(at, subject) }
    }

    // ---- processes

    fn start_node(&mut self, at: usize, subject: &mut impl Subject<R>) -> Result<(), String> {
        self.trace.note(Step::Restart, self.now, at, 0);
        let (storage, mut context) = self.storage(at);
        let recovery = storage.start(&mut context)?;
        let replica_seed = self.rng.u64(..);
        let node = &mut self.nodes[at];
        node.clock.boot(self.now, &mut self.rng);
        let mut replica = (self.factory)(node.id, &recovery.boots, replica_seed);
        let now = node.clock.read(self.now);
        for item in recovery.items {
            if let Some(narrator) = &mut self.narrator {
                narrator(self.now, node.id, &item);
            }
            let input = match item {
                RecoveryItem::SnapshotChunk { at, chunk, last } => Input::RecoverSnapshot { at, chunk, last },
                RecoveryItem::Batch(batch) => Input::Recover { batch },
            };
            replica.handle(now, input);
        }
        replica.handle(now, Input::Recovered);
        node.replica = Some(replica);
        node.busy_until = self.now;
        node.last_write = WriteId(0);
        node.late_timers = 0;
        if self.faults && self.settings.process.crash.is_some() && self.rng.u8(0..32) == 0 {
            self.counts[Fault::CrashAfterRecovery] += 1;
            self.nodes[at].crash_after = Some(self.rng.u32(0..4));
        }
        let others: Vec<usize> = (0..self.nodes.len()).filter(|&other| other != at).collect();
        for other in others {
            if self.nodes[other].replica.is_some() {
                self.link_hints(&[(at, other), (other, at)], Link::Up);
            }
        }
        self.round(at, subject)
    }

    fn crash_node(&mut self, at: usize, lasts: Duration, subject: &mut impl Subject<R>) {
        if self.nodes[at].replica.take().is_none() {
            return;
        }
        self.trace.note(Step::Crash, self.now, at, 0);
        let (storage, mut context) = self.storage(at);
        storage.crash(&mut context);
        let node = &mut self.nodes[at];
        node.life += 1;
        node.inbox.clear();
        (node.wake_at, node.timer_at, node.storage_at) = (Time::NEVER, Time::NEVER, Time::NEVER);
        node.crash_after = None;
        let (id, life) = (node.id, node.life);
        for other in (0..self.nodes.len()).filter(|&other| other != at) {
            self.network.reset(at, other);
            if self.rng.bool() {
                self.link_hints(&[(at, other)], Link::Reset);
            }
        }
        let instant = self.settings.process.instant_restart && self.rng.bool();
        let after = if instant {
            self.counts[Fault::InstantRestart] += 1;
            Duration::from_micros(self.rng.u64(0..200))
        } else {
            around(&mut self.rng, lasts, false)
        };
        self.plan(after, Planned::Restart { node: at, life });
        subject.on_crash(id, &mut self.clients);
    }

    /// Tells the receiving end of each link how the link is, if it can hear of it and then only sometimes: it is a hint.
    fn link_hints(&mut self, links: &[(usize, usize)], link: Link) {
        for &(from, to) in links {
            if self.network.is_cut(from, to) || self.nodes[to].replica.is_none() {
                continue;
            }
            let after = Network::hint_delay(&mut self.rng, &self.settings.network);
            self.plan(after, Planned::Peer { to, of: from, link });
        }
    }

    // ---- faults

    fn strike(&mut self, kind: Recurring, subject: &mut impl Subject<R>) {
        let Some(every) = kind.every(&self.settings) else { return };
        let nodes = self.nodes.len();
        let lasts = around(&mut self.rng, every.lasts, true);
        let victim = self.rng.usize(0..nodes);
        self.trace.note(Step::Fault, self.now, victim, kind as u64);
        match kind {
            Recurring::Netsplit if nodes > 1 => {
                let cut = self.network.split(&mut self.rng);
                self.counts[Fault::Netsplit] += 1;
                self.plan(lasts, Planned::Mend(cut));
            }
            Recurring::OneWay if nodes > 1 => {
                let other = (victim + self.rng.usize(1..nodes)) % nodes;
                self.network.cut(&[(victim, other)]);
                self.counts[Fault::OneWay] += 1;
                self.plan(lasts, Planned::Mend(vec![(victim, other)]));
            }
            Recurring::Reset if nodes > 1 => {
                let other = (victim + self.rng.usize(1..nodes)) % nodes;
                self.network.reset(victim, other);
                self.counts[Fault::Reset] += 1;
                let both = [(victim, other), (other, victim)];
                self.link_hints(&both, Link::Reset);
                let then = if self.rng.bool() { Link::Up } else { Link::Down };
                self.link_hints(&both, then);
            }
            Recurring::Netsplit | Recurring::OneWay | Recurring::Reset => {}
            Recurring::Crash => {
                if self.nodes[victim].replica.is_none() {
                    return;
                }
                if self.rng.bool() {
                    self.nodes[victim].crash_after = Some(self.rng.u32(0..12));
                } else {
                    self.counts[Fault::Crash] += 1;
                    self.crash_node(victim, lasts, subject);
                }
            }
            Recurring::CrashAll => {
                self.counts[Fault::CrashAll] += 1;
                for at in 0..nodes {
                    self.crash_node(at, lasts, subject);
                }
            }
            Recurring::Pause => {
                if self.nodes[victim].replica.is_some() {
                    self.counts[Fault::Pause] += 1;
                    self.nodes[victim].busy_until = self.now + lasts;
                }
            }
            Recurring::Stall => {
                self.counts[Fault::Stall] += 1;
                let until = self.now + lasts;
                self.nodes[victim].storage.stall(until);
            }
            Recurring::ClockJump => {
                self.counts[Fault::ClockJump] += 1;
                let back = self.rng.bool();
                self.nodes[victim].clock.jump(lasts, back);
            }
        }
    }
}
