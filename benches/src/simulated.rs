//! The strategies in virtual time: the same traces, networks and faults as between real processes, exactly, and in seconds.
//!
//! Invariant: what is measured is the code of the strategies themselves, driven by `replikit-sim`; only the network, the
//! disks and the processors are modelled. The same seed gives the same figures on any machine.

mod clients;
pub mod setup;

use std::rc::Rc;
use std::time::Duration;

use replikit_core::{ClusterId, GroupId, NodeId, Replica, Time};
use replikit_leaderless::Leaderless;
use replikit_multi_leader::MultiLeader;
use replikit_sim::check::{Losses, STEPS_MAX, Unproven, check_history, check_sessions, check_staleness};
use replikit_sim::{ModelStorage, Settings, World};
use replikit_single_leader::Raft;

use self::clients::Simulants;
pub use self::setup::{Freshness, Setup, Strategy};
use crate::fault::{Fault, Plan, Victims};
use crate::network::Network;
use crate::recorder::Latencies;
use crate::workload::mix::Updates;
use crate::workload::trace::Trace;

const GROUP: GroupId = GroupId(1);
/// A node that is slow: so much longer takes each of its messages.
const EXTRA: Duration = Duration::from_millis(100);
const DISK_TIMES: u32 = 50;
const AHEAD: Duration = Duration::from_secs(30);
/// How long the cluster may take to settle before what it holds is read back.
const SETTLE: Duration = Duration::from_secs(10);
/// How long reading back may take.
const READ_BACK_MAX: Duration = Duration::from_secs(600);

/// What the nodes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What a processor does for each input of a replica: a message, a request, an answer of the disk.
    pub per_input: Duration,
    /// What it does for each round of inputs.
    pub per_round: Duration,
    /// Mean time of a sync.
    pub sync: Duration,
}

impl Budget {
    /// A processor that takes no time, and a disk of 100 microseconds: what is left is the protocol and the network.
    pub const PROTOCOL: Self =
        Self { per_input: Duration::ZERO, per_round: Duration::ZERO, sync: Duration::from_micros(100) };
}

/// One simulated run.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// What is simulated.
    pub setup: Setup,
    /// Between which nodes.
    pub network: Network,
    /// What happens to them.
    pub fault: Fault,
    /// What the clients do; they begin anew until the load ends.
    pub trace: Rc<Trace>,
    /// How increments and set-adds are made.
    pub updates: Updates,
    /// A client rests so long after each operation.
    pub think: Duration,
    /// How long the load lasts; a fault has its own time.
    pub lasts: Duration,
    /// What the nodes are made of.
    pub budget: Budget,
    /// What everything random comes from.
    pub seed: u64,
}

/// How the clients on one side fared while a fault lasted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SimulatedSide {
    /// Operations that began meanwhile.
    pub asked: u64,
    /// Those that were served.
    pub served: u64,
    /// The longest time without a served operation that has a part in it.
    pub gap: Duration,
}

impl SimulatedSide {
    /// The share that was served, 0 to 1; 1 where nothing was asked for.
    #[must_use]
    pub fn availability(&self) -> f64 {
        if self.asked == 0 { 1.0 } else { self.served as f64 / self.asked as f64 }
    }
}

/// What a simulated run found.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    /// Latencies of served reads.
    pub reads: Latencies,
    /// Latencies of served writes, those that read first included.
    pub writes: Latencies,
    /// Operations that were served.
    pub served: u64,
    /// Operations that were not.
    pub unserved: u64,
    /// For how long the load was on.
    pub lasted: Duration,
    /// Each side, while the fault lasted; one side without a fault.
    pub sides: Vec<SimulatedSide>,
    /// Messages between nodes, for each served operation, those of time-outs included.
    pub messages_per_operation: f64,
    /// Their bytes.
    pub bytes_per_operation: f64,
    /// Reads that showed a value although a newer one had been acknowledged before they began, of all reads of records.
    pub stale_reads: u64,
    /// Reads of records.
    pub record_reads: u64,
    /// How old what they showed was, at least.
    pub stale_ages: Latencies,
    /// Values that were overwritten by a write that had not seen them; `None` where that does not happen.
    pub conflicts: Option<u64>,
    /// Acknowledged updates.
    pub acked: u64,
    /// Those that are not there in the end, and are in an audit log.
    pub lost_audited: u64,
    /// Those that are not there, and nobody can say what they were.
    pub lost_silent: u64,
    /// Acknowledged records whose newest value is not there, and in no audit log.
    pub records_lost: u64,
    /// What a checker found to be wrong.
    pub broken: Option<String>,
    /// Inputs that replicas handled, by the load alone.
    pub inputs: u64,
    /// Syncs of all disks, by the load alone.
    pub syncs: u64,
}

impl Simulated {
    /// Operations a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.served as f64 / self.lasted.as_secs_f64().max(1e-9)
    }

    /// Lost updates of both kinds per million acknowledged ones.
    #[must_use]
    pub fn lost_per_million(&self) -> f64 {
        (self.lost_audited + self.lost_silent + self.records_lost) as f64 * 1e6 / self.acked.max(1) as f64
    }

    /// The share of stale reads, 0 to 1.
    #[must_use]
    pub fn stale_share(&self) -> f64 {
        self.stale_reads as f64 / self.record_reads.max(1) as f64
    }

    /// The worst availability of any side, 0 to 1.
    #[must_use]
    pub fn availability(&self) -> f64 {
        self.sides.iter().map(SimulatedSide::availability).fold(1.0, f64::min)
    }

    /// The availability of the side on which nothing was struck, 0 to 1.
    #[must_use]
    pub fn availability_of_the_others(&self) -> f64 {
        self.sides.first().map_or(1.0, SimulatedSide::availability)
    }

    /// The longest gap of the side on which nothing was struck.
    #[must_use]
    pub fn gap_of_the_others(&self) -> Duration {
        self.sides.first().map_or(Duration::ZERO, |side| side.gap)
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The simulator found a promise of the driver or of the strategy broken. Blame: us.
    #[error(transparent)]
    Violation(#[from] replikit_sim::Violation),
    /// What was written could not be read back within the time. Blame: the strategy, or a network that is too slow for it.
    #[error("{setup}: what was written cannot be read back")]
    NotReadBack {
        /// Which.
        setup: String,
    },
}

fn settings(simulation: &Simulation) -> Settings {
    let network = &simulation.network;
    let mut settings = Settings::calm(network.nodes.len() as u32);
    settings.network.delay = Duration::ZERO;
    let row = |from| network.ids().map(|to| network.one_way(from, to)).collect();
    settings.network.links = network.ids().map(row).collect();
    settings.network.jitter = network.jitter;
    settings.network.loss_per_mille = network.loss_per_mille;
    settings.network.bytes_per_ms = (network.bytes_per_second / 1_000) as u32;
    settings.process.round = simulation.budget.per_round;
    settings.process.per_input = simulation.budget.per_input;
    settings.storage.sync = simulation.budget.sync;
    settings
}

impl Simulation {
    /// Runs it.
    ///
    /// # Errors
    /// [`SimulationError`].
    pub fn run(&self) -> Result<Simulated, SimulationError> {
        let cluster = ClusterId::from_name("simulated");
        let (network, setup) = (self.network.clone(), self.setup.clone());
        match self.setup.strategy {
            Strategy::SingleLeader => {
                let world = World::new(self.seed, settings(self), cluster, move |node, boots, seed| {
                    setup::raft(cluster, GROUP, node, &network, &boots.of(GROUP), seed)
                });
                self.play::<Raft<_>>(world)
            }
            Strategy::MultiLeader => {
                let world = World::new(self.seed, settings(self), cluster, move |node, boots, _| {
                    setup::multi_leader(cluster, GROUP, node, &network, &boots.of(GROUP))
                });
                self.play::<MultiLeader>(world)
            }
            Strategy::Leaderless(_) | Strategy::LeaderlessCas => {
                let world = World::new(self.seed, settings(self), cluster, move |node, boots, _| {
                    setup::leaderless(cluster, GROUP, node, &network, &boots.of(GROUP), setup.strategy)
                });
                self.play::<Leaderless>(world)
            }
        }
    }

    fn play<R: Replica>(&self, mut world: World<R, ModelStorage>) -> Result<Simulated, SimulationError> {
        let plan = Plan::draw(self.fault, &self.network, self.seed);
        let mut subject = Simulants::new(self, GROUP);
        // The clients begin when the nodes know each other.
        let begin = Time::ZERO + Duration::from_secs(1).max(self.network.election_timeout() * 8);
        world.run_until(begin, &mut subject)?;
        subject.begin(world.clients());
        subject.await_loaded(&mut world)?;
        let start = world.now();
        let (traffic, inputs, syncs) = (world.traffic(), world.inputs(), subject.syncs());
        subject.start(start, world.clients());
        let lasts = if self.fault == Fault::None { self.lasts } else { plan.end };
        let (at, undone) = (start + plan.at, start + plan.undone);
        if self.fault == Fault::None {
            self.offline(&mut world, &mut subject, start, lasts)?;
        } else {
            world.run_until(at, &mut subject)?;
            let victims = self.inflict(&plan, &mut world, &mut subject);
            if self.fault == Fault::RollingRestart {
                self.roll(&plan, &victims, &mut world, &mut subject)?;
            } else {
                world.run_until(undone, &mut subject)?;
                self.undo(&plan, &victims, &mut world, &mut subject);
            }
        }
        world.run_until(start + lasts, &mut subject)?;
        let (sent, handled, synced) = (world.traffic(), world.inputs() - inputs, subject.syncs() - syncs);
        subject.stop();
        world.heal(&mut subject);
        world.run_until(world.now() + SETTLE + self.network.round_trip_max() * 20, &mut subject)?;
        subject.read_back(world.clients());
        let read = world.run_while(READ_BACK_MAX, &mut subject, |_, subject| subject.is_read_back())?;
        if !read {
            return Err(SimulationError::NotReadBack { setup: self.setup.to_string() });
        }
        let mut found = subject.found(&plan, (at, undone), lasts);
        (found.lasted, found.inputs, found.syncs) = (lasts, handled, synced);
        let served = found.served.max(1) as f64;
        found.messages_per_operation = (sent.messages - traffic.messages) as f64 / served;
        found.bytes_per_operation = (sent.bytes - traffic.bytes) as f64 / served;
        found.broken = found.broken.take().or_else(|| self.check(&subject));
        Ok(found)
    }

    fn check(&self, subject: &Simulants) -> Option<String> {
        match self.setup.freshness {
            Freshness::Linearizable if self.setup.is_strong() => match check_history(subject.history(), STEPS_MAX) {
                Ok(_) | Err(Unproven::Undecided { .. }) => None,
                Err(unproven) => Some(unproven.to_string()),
            },
            Freshness::Session => {
                check_sessions(subject.history(), &Losses::new()).err().map(|broken| broken.to_string())
            }
            _ => check_staleness(subject.history(), Duration::ZERO).err().map(|broken| broken.to_string()),
        }
    }

    /// A region of the network is away for a while.
    fn offline<R: Replica>(
        &self,
        world: &mut World<R, ModelStorage>,
        subject: &mut Simulants,
        start: Time,
        lasts: Duration,
    ) -> Result<(), SimulationError> {
        let Some(offline) = self.network.offline.filter(|offline| offline.from < lasts) else { return Ok(()) };
        let away = self.network.of_region(offline.region);
        let others: Vec<NodeId> = self.network.ids().filter(|node| !away.contains(node)).collect();
        let links = away.iter().flat_map(|one| others.iter().flat_map(move |other| [(*one, *other), (*other, *one)]));
        let links: Vec<(NodeId, NodeId)> = links.collect();
        world.run_until(start + offline.from, subject)?;
        world.cut(&links);
        subject.cut(&links);
        world.run_until(start + lasts.min(offline.from + offline.lasts), subject)?;
        world.mend(&links);
        subject.mend();
        Ok(())
    }

    fn inflict<R: Replica>(
        &self,
        plan: &Plan,
        world: &mut World<R, ModelStorage>,
        subject: &mut Simulants,
    ) -> Vec<NodeId> {
        let victims = match &plan.victims {
            Victims::Nobody => Vec::new(),
            Victims::Nodes(nodes) => nodes.clone(),
            Victims::Leader => world.elected_last().into_iter().collect(),
        };
        world.cut(&plan.cuts);
        subject.cut(&plan.cuts);
        for &node in &victims {
            match plan.fault {
                Fault::Crash | Fault::LeaderCrash | Fault::RegionCrash => {
                    world.kill(node, subject);
                    subject.is_down(node);
                }
                Fault::LeaderPause => world.pause(node, plan.undone - plan.at),
                Fault::SlowReplica => self.lengthen(node, EXTRA, world),
                Fault::SlowDisk => world.slow_disk(node, DISK_TIMES),
                Fault::ClockSkew => world.set_ahead(node, AHEAD),
                _ => {}
            }
        }
        victims
    }

    fn undo<R: Replica>(
        &self,
        plan: &Plan,
        victims: &[NodeId],
        world: &mut World<R, ModelStorage>,
        subject: &mut Simulants,
    ) {
        world.mend(&plan.cuts);
        subject.mend();
        for &node in victims {
            match plan.fault {
                Fault::Crash | Fault::LeaderCrash | Fault::RegionCrash => {
                    world.restart(node);
                    subject.is_back(node);
                }
                Fault::SlowReplica => self.lengthen(node, Duration::ZERO, world),
                Fault::SlowDisk => world.slow_disk(node, 1),
                _ => {}
            }
        }
    }

    fn roll<R: Replica>(
        &self,
        plan: &Plan,
        victims: &[NodeId],
        world: &mut World<R, ModelStorage>,
        subject: &mut Simulants,
    ) -> Result<(), SimulationError> {
        let each = (plan.undone - plan.at) / victims.len().max(1) as u32;
        for &node in victims {
            world.kill(node, subject);
            subject.is_down(node);
            // As long as a process takes to end and to start.
            world.run_until(world.now() + Duration::from_millis(20), subject)?;
            world.restart(node);
            subject.is_back(node);
            world.run_until(world.now() + each, subject)?;
        }
        Ok(())
    }

    fn lengthen<R: Replica>(&self, node: NodeId, extra: Duration, world: &mut World<R, ModelStorage>) {
        for other in self.network.ids().filter(|other| *other != node) {
            for (from, to) in [(node, other), (other, node)] {
                world.set_delay(from, to, self.network.one_way(from, to) + extra);
            }
        }
    }
}
