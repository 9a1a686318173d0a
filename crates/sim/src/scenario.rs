//! A user's own state machine, replicated in virtual time under faults, and held to what replication asks of it.
//!
//! Invariant that is checked: a machine depends on nothing but its commands. Replicas that applied the same log hold the
//! same state, give the same replies and the same answers; so does a machine restored from a snapshot, and one that the
//! whole log is replayed to.

mod clients;
mod ledger;
mod watched;

use core::any::Any;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{Boot, ClusterId, GroupId, NodeId, Replica, StateMachine, Time};

use crate::fault::FaultCounts;
use crate::settings::Settings;
use crate::storage::{ModelStorage, SimStorage};
use crate::world::{Violation, World};
use clients::ScenarioClients;
use ledger::Ledger;
pub use watched::Watched;

const GROUP: GroupId = GroupId(1);
/// Queries that every state is asked.
const PROBES: usize = 4;

/// Makes commands or queries.
type Draw = Box<dyn Fn(&mut Rng) -> Bytes>;
/// Draws the faults of a run with so many nodes.
type DrawSettings = Box<dyn Fn(&mut Rng, u32) -> Settings>;
/// A user's sentence about every state.
type Invariant<M> = Arc<dyn Fn(&M) -> Result<(), String> + Send + Sync>;

/// What a replica of a scenario is built from, at each start of its node.
#[derive(Clone, Debug)]
pub struct ScenarioNode {
    /// The cluster, which seeds all checksums.
    pub cluster: ClusterId,
    /// The one group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// All nodes.
    pub members: Vec<NodeId>,
    /// What the node's disk says of the group.
    pub boot: Boot,
    /// For the replica's own timers: another one at each start.
    pub seed: u64,
    /// Equal for all starts of all nodes of a run, and another one in each run: draw knobs from it, such as limits and
    /// timeouts, so that they are tried small and large.
    pub run_seed: u64,
}

/// Replicates a state machine in the simulator, for many seeds.
///
/// The scenario knows replicas through core's traits only: whoever brings the machine says how a replica is built around
/// it. Each seed draws its own faults; clients issue commands at level `Quorum` and linearizable queries, one after the
/// other; then everything is mended, and the replicas must agree.
///
/// Two states count as equal if their snapshots are, byte for byte, so equal states must have equal snapshots: iterate
/// ordered collections when writing one.
///
/// # Example
///
/// ```
/// use replikit_core::Small;
/// use replikit_sim::Scenario;
/// use replikit_single_leader::{Config, Raft};
///
/// let sum = || Small::new(0_u64, |sum, command| { *sum += command.len() as u64; Vec::new() }, |sum, _| sum.to_le_bytes().to_vec());
/// let scenario = Scenario::new(sum, |node, machine| {
///     let config = Config::new(node.cluster, node.group, node.node, node.members, node.seed);
///     Raft::new(config, &node.boot, machine).expect("the defaults are in range")
/// });
/// let report = scenario.run(0..3)?;
/// assert!(report.acked > 0);
/// # Ok::<(), replikit_sim::Violation>(())
/// ```
pub struct Scenario<M, R> {
    machine: Arc<dyn Fn() -> M + Send + Sync>,
    replica: Arc<dyn Fn(ScenarioNode, Watched<M>) -> R>,
    invariant: Option<Invariant<M>>,
    commands: Draw,
    queries: Draw,
    settings: DrawSettings,
    nodes: u32,
    clients: u32,
    lasts: Duration,
    heals_within: Duration,
    compare_every: u64,
    marker: PhantomData<R>,
}

impl<M, R> fmt::Debug for Scenario<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("nodes", &self.nodes).field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// What a scenario has seen, over all seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScenarioReport {
    /// Runs.
    pub seeds: u64,
    /// Commands that were acknowledged.
    pub acked: u64,
    /// Queries that were answered.
    pub answered: u64,
    /// Commands that replicas applied, each replica counted; after a restart, again.
    pub applied: u64,
    /// Snapshots that replicas were restored from.
    pub restored: u64,
    /// Faults met.
    pub faults: FaultCounts,
}

impl<M: StateMachine, R: Replica + 'static> Scenario<M, R> {
    /// A scenario of three nodes. `machine` makes a machine in its first state, the same each time; `replica` builds a
    /// replica around it, which is called at each start of a node.
    pub fn new(
        machine: impl Fn() -> M + Send + Sync + 'static,
        replica: impl Fn(ScenarioNode, Watched<M>) -> R + 'static,
    ) -> Self {
        Self {
            machine: Arc::new(machine),
            replica: Arc::new(replica),
            invariant: None,
            commands: Box::new(|rng| (0..rng.usize(0..16)).map(|_| rng.u8(..)).collect()),
            queries: Box::new(|_| Bytes::new()),
            settings: Box::new(Settings::draw),
            nodes: 3,
            clients: 4,
            lasts: Duration::from_secs(2),
            heals_within: Duration::from_secs(20),
            compare_every: 1,
            marker: PhantomData,
        }
    }

    /// How commands are drawn. By default up to 15 random bytes.
    #[must_use]
    pub fn commands(mut self, draw: impl Fn(&mut Rng) -> Bytes + 'static) -> Self {
        self.commands = Box::new(draw);
        self
    }

    /// How queries are drawn. By default an empty one.
    #[must_use]
    pub fn queries(mut self, draw: impl Fn(&mut Rng) -> Bytes + 'static) -> Self {
        self.queries = Box::new(draw);
        self
    }

    /// A sentence that must hold of every state; the error says how it does not.
    #[must_use]
    pub fn invariant(mut self, holds: impl Fn(&M) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.invariant = Some(Arc::new(holds));
        self
    }

    /// Nodes, at least 1. Default 3.
    #[must_use]
    pub const fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// Clients, each with one request at a time. Default 4.
    #[must_use]
    pub const fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// Which faults a seed meets, from randomness of its own and the number of nodes. Default [`Settings::draw`].
    #[must_use]
    pub fn settings(mut self, draw: impl Fn(&mut Rng, u32) -> Settings + 'static) -> Self {
        self.settings = Box::new(draw);
        self
    }

    /// How long faults go on in each run, in virtual time. Default 2 s.
    #[must_use]
    pub const fn lasts(mut self, lasts: Duration) -> Self {
        self.lasts = lasts;
        self
    }

    /// How soon the replicas must agree once everything is mended, in virtual time. Default 20 s.
    #[must_use]
    pub const fn heals_within(mut self, within: Duration) -> Self {
        self.heals_within = within;
        self
    }

    /// States are compared at every n-th index, at least 1, since a comparison reads the whole state. Default 1.
    #[must_use]
    pub fn compare_every(mut self, entries: u64) -> Self {
        self.compare_every = entries.max(1);
        self
    }

    /// Runs these seeds, on the storage model.
    ///
    /// # Errors
    /// The first [`Violation`], with its seed: that seed alone shows it again, as far as the machine allows.
    pub fn run(&self, seeds: Range<u64>) -> Result<ScenarioReport, Violation> {
        self.run_on::<ModelStorage>(seeds)
    }

    /// Runs these seeds on another storage, such as the real log on a simulated disk ([`LogStorage`](crate::LogStorage)).
    ///
    /// # Errors
    /// As [`Scenario::run`].
    pub fn run_on<S: SimStorage + 'static>(&self, seeds: Range<u64>) -> Result<ScenarioReport, Violation> {
        let mut report = ScenarioReport::default();
        for seed in seeds {
            self.run_seed::<S>(seed, &mut report)?;
        }
        Ok(report)
    }

    fn run_seed<S: SimStorage + 'static>(&self, seed: u64, report: &mut ScenarioReport) -> Result<(), Violation> {
        let mut rng = Rng::with_seed(seed);
        let settings = (self.settings)(&mut rng, self.nodes);
        let run_seed = rng.u64(..);
        let probes = (0..PROBES).map(|_| (self.queries)(&mut rng)).collect();
        let ledger = Ledger::new(probes, self.compare_every);
        let cluster = ClusterId::from_name("scenario");
        let members: Vec<NodeId> = (1..=self.nodes).map(NodeId).collect();
        let (machine, replica, invariant) = (self.machine.clone(), self.replica.clone(), self.invariant.clone());
        let shared = ledger.clone();
        let mut world: World<R, S> = World::new(seed, settings, cluster, move |node, boots, seed| {
            let boot = boots.of(GROUP);
            let machine = Watched::new(node, machine.clone(), invariant.clone(), shared.clone());
            let members = members.clone();
            replica(ScenarioNode { cluster, group: GROUP, node, members, boot, seed, run_seed }, machine)
        });
        let mut clients = ScenarioClients::new(self, ledger.clone());
        let played = catch_unwind(AssertUnwindSafe(|| {
            self.play(&mut world, &mut clients)?;
            clients.check_end((self.machine)())
        }));
        let violation = |node: NodeId, what: String| Violation { seed, at: world.now(), node, what };
        match played {
            Ok(Ok(())) => {}
            Ok(Err(Ending::Violation(violation))) => return Err(violation),
            Ok(Err(Ending::AtEnd(what))) => return Err(violation(NodeId(0), what)),
            Err(panic) => {
                let (node, doing) = ledger.doing();
                return Err(violation(node, format!("panicked {doing}: {}", said(&*panic))));
            }
        }
        let (applied, restored) = ledger.counts();
        report.seeds += 1;
        report.acked += clients.acked();
        report.answered += clients.answered();
        report.applied += applied;
        report.restored += restored;
        report.faults.add(&world.counts());
        Ok(())
    }

    fn play<S: SimStorage>(&self, world: &mut World<R, S>, clients: &mut ScenarioClients<'_>) -> Result<(), Ending> {
        world.run_until(Time::ZERO + self.lasts, clients)?;
        world.heal(clients);
        let wanted = clients.acked() + 5;
        if !world.run_while(self.heals_within, clients, |_, clients| clients.acked() >= wanted)? {
            return Err(Ending::AtEnd(format!("no progress within {:?} after all was mended", self.heals_within)));
        }
        clients.stop();
        let nodes = self.nodes;
        if !world.run_while(self.heals_within, clients, |_, clients| clients.is_idle() && clients.all_applied(nodes))? {
            return Err(Ending::AtEnd(format!("the replicas do not catch up within {:?}", self.heals_within)));
        }
        Ok(())
    }
}

/// How a run ended badly.
#[derive(Debug)]
enum Ending {
    Violation(Violation),
    AtEnd(String),
}

impl From<Violation> for Ending {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
