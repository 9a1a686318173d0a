//! Fault runs: something happens to a cluster under load; how the clients on each side of it fared, and what became of every
//! write that was acknowledged.

pub mod plan;

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replikit_core::{NodeId, WriteLevel};

pub use self::plan::{Fault, Plan, Victims};
use crate::engine::{Engine, EngineKind, Placed};
use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::ledger::Ledger;
use crate::load::Reads;
use crate::network::Network;
use crate::play::{self, Attempt, Judged, Play, Until};
use crate::recorder::Latencies;
use crate::timeline::{Gap, Timeline};
use crate::workload::mix::{Mix, Updates};
use crate::workload::trace::Trace;

/// Operations that are drawn; they are done again from the first until the run ends.
const STEPS: usize = 60_000;
/// An operation that has not ended by then counts as not served; longer where messages are.
const DEADLINE: Duration = Duration::from_millis(500);
const EXTRA: Duration = Duration::from_millis(100);
/// How long a freshly started node is given before the next one of a rolling restart.
const SETTLED: Duration = Duration::from_millis(300);

/// One fault run.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRun {
    /// On what.
    pub engine: EngineKind,
    /// What happens.
    pub fault: Fault,
    /// Between which nodes.
    pub network: Network,
    /// When a write counts as done.
    pub write_level: WriteLevel,
    /// How reads are done.
    pub reads: Reads,
    /// What the clients do meanwhile.
    pub mix: Mix,
}

impl FaultRun {
    /// The usual one for an engine: its strongest levels, on loopback through the proxy.
    #[must_use]
    pub fn new(engine: EngineKind, fault: Fault) -> Self {
        let (write_level, reads) = match engine {
            EngineKind::SingleLeader | EngineKind::LeaderlessCas(_) | EngineKind::Partitioned(_) => {
                (WriteLevel::Quorum, Reads::Linearizable)
            }
            EngineKind::MultiLeader | EngineKind::Placed(Placed::MultiLeader, _) => {
                (WriteLevel::LeaderDisk, Reads::Local)
            }
            EngineKind::Leaderless(crate::engine::Sizes::One) => (WriteLevel::Quorum, Reads::QuorumOfFewer),
            EngineKind::Leaderless(_) | EngineKind::Placed(Placed::Leaderless, _) => {
                (WriteLevel::Quorum, Reads::Quorum)
            }
            EngineKind::Baseline(..) => (WriteLevel::LeaderDisk, Reads::Linearizable),
        };
        let mix = Mix::built_in("faults").expect("it is built in");
        Self { engine, fault, network: Network::loopback(), write_level, reads, mix }
    }

    /// Why it cannot be run; `None` when it can.
    #[must_use]
    pub fn cannot(&self) -> Option<&'static str> {
        let operations = self.mix.weights.iter().map(|(operation, _)| *operation);
        let fault = self.fault.cannot(self.engine, &self.network);
        fault.or_else(|| operations.into_iter().find_map(|operation| self.engine.cannot(operation, self.mix.updates)))
    }

    /// How long it takes, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        Plan::draw(self.fault, &self.network, 0).end + Duration::from_secs(4)
    }
}

impl std::fmt::Display for FaultRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {:?}, {}: {}", self.engine, self.write_level, self.network, self.fault)
    }
}

/// How the clients on one side fared while the fault lasted.
#[derive(Clone, Debug)]
pub struct Side {
    /// Who they are.
    pub name: String,
    /// Operations that began meanwhile.
    pub asked: u64,
    /// Those that were served by their deadline.
    pub served: u64,
    /// The longest time without a served operation that has a part in it.
    pub gap: Gap,
    /// How long those took that were served, of all that began before the fault.
    pub before: Latencies,
    /// The same of those that began while it lasted.
    pub meanwhile: Latencies,
}

impl Side {
    /// The share that was served, in percent.
    #[must_use]
    pub fn available_percent(&self) -> f64 {
        self.served as f64 * 100.0 / self.asked.max(1) as f64
    }
}

/// What a fault run found.
#[derive(Clone, Debug)]
pub struct FaultReport {
    /// Which.
    pub run: FaultRun,
    /// Acknowledged writes over time.
    pub timeline: Timeline,
    /// Each side.
    pub sides: Vec<Side>,
    /// The longest time without an acknowledged write on any side while the fault lasted.
    pub gap: Gap,
    /// Writes acknowledged, from the first to the last.
    pub acked: u64,
    /// Operations served, from the first to the last.
    pub served: u64,
    /// Reads that were sent to one more node during the fault, because who was asked first was late; `None` where that is not
    /// counted.
    pub hedged: Option<u64>,
    /// Why others were not, with how often.
    pub unserved: Vec<(String, u64)>,
    /// What was read back.
    pub judged: Judged,
}

impl FaultReport {
    /// Wrong results, in words; none in a good run.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.judged.silent() > 0 && self.must_keep() {
            wrong.push(format!("{}: {} acked writes lost", self.run, self.judged.silent()));
        }
        if self.judged.records.foreign > 0 {
            wrong.push(format!("{}: {} foreign values", self.run, self.judged.records.foreign));
        }
        wrong.extend(self.judged.broken.iter().map(|broken| format!("{}: {broken}", self.run)));
        wrong
    }

    /// Whether all that is acknowledged must be there afterwards: every disk is.
    fn must_keep(&self) -> bool {
        let weak = matches!(self.run.write_level, WriteLevel::Memory | WriteLevel::Received(_));
        // A leader's disk is not what counts once another one leads.
        let leader_disk = self.run.engine == EngineKind::SingleLeader && self.run.write_level == WriteLevel::LeaderDisk;
        !weak && !leader_disk
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut subject = Subject {
            engine: self.run.engine.name().to_owned(),
            workload: format!("fault: {}", self.run.fault),
            clients: self.run.mix.clients,
            ..Subject::default()
        };
        let settings = [
            ("load", self.run.mix.to_string()),
            ("network", self.run.network.to_string()),
            ("write", format!("{:?}", self.run.write_level)),
        ];
        subject.settings.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        let millis = |gap: Gap| gap.length.as_secs_f64() * 1e3;
        let mut figures = vec![
            subject.figure(
                "longest gap without an acked write, during the fault",
                millis(self.gap),
                "ms",
                Better::Lower,
            ),
            subject.figure(
                "longest gap without an acked write",
                millis(self.timeline.longest_gap()),
                "ms",
                Better::Lower,
            ),
            subject.figure("acked writes", self.acked as f64, "1", Better::Higher),
            subject.figure("operations served", self.served as f64, "1", Better::Higher),
            subject.figure("acked writes lost", self.judged.silent() as f64, "1", Better::Lower),
            subject.figure("acked writes lost, audited", self.judged.lost_audited as f64, "1", Better::Lower),
            subject.figure("operations checked", self.judged.checked as f64, "1", Better::Higher),
        ];
        for side in &self.sides {
            let (availability, gap) = (
                format!("operations served during the fault, {}", side.name),
                format!("longest gap without a served operation, {}", side.name),
            );
            figures.push(subject.figure(&availability, side.available_percent(), "%", Better::Higher));
            figures.push(subject.figure(&gap, millis(side.gap), "ms", Better::Lower));
            figures.extend(tails(&subject, &format!(", {}", side.name), &side.before, &side.meanwhile));
        }
        if self.sides.len() > 1 {
            let mut all = (Latencies::new(), Latencies::new());
            for side in &self.sides {
                all.0.merge(&side.before);
                all.1.merge(&side.meanwhile);
            }
            figures.extend(tails(&subject, "", &all.0, &all.1));
        }
        if let Some(hedged) = self.hedged {
            let meanwhile: u64 = self.sides.iter().map(|side| side.asked).sum();
            let share = hedged as f64 * 100.0 / meanwhile.max(1) as f64;
            figures.push(subject.figure("reads asked for again during the fault", share, "%", Better::Lower));
        }
        figures
    }
}

fn tails<'a>(
    subject: &'a Subject,
    whose: &'a str,
    before: &'a Latencies,
    meanwhile: &'a Latencies,
) -> impl Iterator<Item = Figure> + 'a {
    [("before", before), ("during", meanwhile)].into_iter().map(move |(when, latencies)| {
        let name = format!("operation latency p99.9, {when} the fault{whose}");
        subject.figure(&name, latencies.quantile(0.999).as_secs_f64() * 1e6, "us", Better::Lower)
    })
}

/// When what happened, counted from the beginning of the load.
#[derive(Clone, Debug, Default)]
struct Struck {
    at: Duration,
    undone: Duration,
    hedged: Option<u64>,
    marks: Vec<(Duration, String)>,
}

/// Runs one fault on a new cluster, with its data below `folder`. Must run on a current-thread runtime.
///
/// # Errors
/// When the cluster does not start, nobody leads who should, or it cannot be read back.
pub async fn run(run: &FaultRun, seed: u64, folder: &Path) -> Result<FaultReport, BenchError> {
    if let Some(reason) = run.cannot() {
        return Err(BenchError::Usage(format!("{run}: N/A: {reason}")));
    }
    let plan = Plan::draw(run.fault, &run.network, seed);
    let mut engine = run.engine.start_over(folder, Some(&run.network)).await?;
    let trace = Rc::new(Trace::draw(&run.mix, seed, STEPS));
    let played_as = Play {
        think: Duration::ZERO,
        trace: trace.clone(),
        updates: Updates::Put,
        write_level: run.write_level,
        reads: run.reads,
        until: Until::Elapsed(plan.end),
        deadline: DEADLINE.max(run.network.round_trip_max() * 4),
    };
    let ledger = Rc::new(Ledger::new(trace.keys(), trace.value_bytes_max() as usize));
    let homes = engine.homes();
    let mut history = Default::default();
    play::load(&played_as, &ledger, &homes[0], &mut history).await?;
    engine.settle().await?;
    // What was overwritten before is not this run's.
    engine.audited().await?;
    let (played, struck) = play::play(played_as.clone(), ledger.clone(), homes, history, async |begun| {
        strike(&plan, &mut *engine, begun).await
    })
    .await?;
    engine.check()?;
    engine.wait_ready().await?;
    engine.settle().await?;
    let audited = engine.audited().await?;
    let store = engine.target(run.write_level, run.reads).leader[0].clone();
    let judged = play::judge(&played_as, &played, &ledger, &*store, engine.scan_level(), audited).await?;
    engine.stop().await?;
    let mut attempts = played.attempts;
    attempts.sort_by_key(|attempt| attempt.ended);
    let writes: Vec<Attempt> = attempts.iter().copied().filter(|attempt| attempt.operation.writes()).collect();
    let timeline = timeline(&writes, &struck, plan.end);
    let sides = (0..plan.sides_count()).map(|side| {
        let own: Vec<Attempt> =
            attempts.iter().copied().filter(|attempt| plan.sides[attempt.home as usize] == side).collect();
        let meanwhile = own.iter().filter(|attempt| (struck.at..struck.undone).contains(&attempt.began));
        let mut side = Side {
            name: plan.side_shown(side),
            asked: meanwhile.clone().count() as u64,
            served: meanwhile.filter(|attempt| attempt.served).count() as u64,
            gap: self::timeline(&own, &struck, plan.end).longest_gap_between(struck.at, struck.undone),
            before: Latencies::new(),
            meanwhile: Latencies::new(),
        };
        for attempt in own.iter().filter(|attempt| attempt.served && attempt.began < struck.undone) {
            let latencies = if attempt.began < struck.at { &mut side.before } else { &mut side.meanwhile };
            latencies.record(attempt.ended - attempt.began);
        }
        side
    });
    Ok(FaultReport {
        run: run.clone(),
        gap: timeline.longest_gap_between(struck.at, struck.undone),
        sides: sides.collect(),
        hedged: struck.hedged,
        timeline,
        acked: writes.iter().filter(|attempt| attempt.served).count() as u64,
        served: attempts.iter().filter(|attempt| attempt.served).count() as u64,
        unserved: played.failures.into_iter().collect(),
        judged,
    })
}

/// The served ones, which are ordered by their end.
fn timeline(attempts: &[Attempt], struck: &Struck, end: Duration) -> Timeline {
    let mut timeline = Timeline::new();
    attempts.iter().filter(|attempt| attempt.served).for_each(|attempt| timeline.acked(attempt.ended));
    struck.marks.iter().for_each(|(at, what)| timeline.mark(*at, what.clone()));
    timeline.end(end);
    timeline
}

async fn strike(plan: &Plan, engine: &mut dyn Engine, begun: Instant) -> Result<Struck, BenchError> {
    tokio::time::sleep(plan.at.saturating_sub(begun.elapsed())).await;
    let mut struck = Struck { at: begun.elapsed(), ..Struck::default() };
    let victims = match &plan.victims {
        Victims::Nobody => Vec::new(),
        Victims::Nodes(nodes) => nodes.clone(),
        Victims::Leader => engine.leader().await?.into_iter().collect(),
    };
    let pause = plan.undone.saturating_sub(plan.at);
    // Nodes that are gone count nothing.
    let counted = plan.fault == Fault::SlowReplica;
    let hedged_before = if counted { hedged(engine).await? } else { None };
    if plan.fault == Fault::RollingRestart {
        for &node in &victims {
            struck.marks.push((begun.elapsed(), format!("node {node} shut down")));
            nodes_of(engine)?.quit(node)?;
            nodes_of(engine)?.restart(node)?;
            struck.marks.push((begun.elapsed(), format!("node {node} started anew")));
            tokio::time::sleep((pause / victims.len() as u32).max(SETTLED)).await;
        }
    } else if plan.fault == Fault::Migration {
        struck.marks.push((begun.elapsed(), "handoffs begin".to_owned()));
        let moved = engine.migrate(pause).await?;
        struck.marks.push((begun.elapsed(), format!("{moved} partitions handed over")));
    } else {
        if let Some(done) = inflict(plan, engine, &victims)? {
            struck.marks.push((begun.elapsed(), done));
        }
        tokio::time::sleep(pause).await;
        if let Some(undone) = undo(plan, engine, &victims)? {
            struck.marks.push((begun.elapsed(), undone));
        }
    }
    struck.undone = begun.elapsed();
    if let Some(before) = hedged_before {
        struck.hedged = hedged(engine).await?.map(|after| after - before);
    }
    Ok(struck)
}

/// How many reads the nodes have sent to one more node so far.
async fn hedged(engine: &dyn Engine) -> Result<Option<u64>, BenchError> {
    let statuses = engine.statuses().await?;
    let figures = statuses.iter().flat_map(|status| &status.replica.figures);
    let hedged: Vec<u64> = figures.filter(|figure| figure.of == "reads hedged").map(|figure| figure.count).collect();
    Ok((!hedged.is_empty()).then(|| hedged.iter().sum()))
}

fn nodes_of(engine: &mut dyn Engine) -> Result<&mut crate::engine::nodes::Nodes, BenchError> {
    let nothing = || BenchError::Usage("an engine without nodes cannot meet a fault of one".to_owned());
    engine.nodes_mut().ok_or_else(nothing)
}

fn named(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    format!("node{} {}", if nodes.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// What was done, in words.
fn inflict(plan: &Plan, engine: &mut dyn Engine, victims: &[NodeId]) -> Result<Option<String>, BenchError> {
    if plan.fault == Fault::None {
        return Ok(None);
    }
    let nodes = nodes_of(engine)?;
    let done = match plan.fault {
        Fault::LeaderPause => {
            victims.iter().try_for_each(|node| nodes.freeze(*node))?;
            "stopped"
        }
        Fault::Crash | Fault::LeaderCrash | Fault::RegionCrash => {
            victims.iter().try_for_each(|node| nodes.kill(*node))?;
            "killed"
        }
        _ => {
            let ids: Vec<NodeId> = nodes.ids().collect();
            let proxy = nodes.proxy().expect("a fault run has a network");
            plan.cuts.iter().for_each(|(from, to)| proxy.cut(*from, *to));
            if plan.fault == Fault::SlowReplica {
                for (one, other) in ids.iter().flat_map(|other| victims.iter().map(move |one| (*one, *other))) {
                    proxy.slow(one, other, EXTRA);
                    proxy.slow(other, one, EXTRA);
                }
                "slowed"
            } else {
                "cut off"
            }
        }
    };
    Ok(Some(match plan.fault {
        Fault::SplitEven => "nobody reaches a majority".to_owned(),
        _ => format!("{} {done}", named(victims)),
    }))
}

fn undo(plan: &Plan, engine: &mut dyn Engine, victims: &[NodeId]) -> Result<Option<String>, BenchError> {
    if plan.fault == Fault::None {
        return Ok(None);
    }
    let nodes = nodes_of(engine)?;
    Ok(Some(match plan.fault {
        Fault::LeaderPause => {
            victims.iter().try_for_each(|node| nodes.thaw(*node))?;
            format!("{} goes on", named(victims))
        }
        Fault::Crash | Fault::LeaderCrash | Fault::RegionCrash => {
            victims.iter().try_for_each(|node| nodes.restart(*node))?;
            format!("{} started anew", named(victims))
        }
        _ => {
            let ids: Vec<NodeId> = nodes.ids().collect();
            let proxy = nodes.proxy().expect("a fault run has a network");
            plan.cuts.iter().for_each(|(from, to)| proxy.mend(*from, *to));
            for (one, other) in ids.iter().flat_map(|other| victims.iter().map(move |one| (*one, *other))) {
                proxy.slow(one, other, Duration::ZERO);
                proxy.slow(other, one, Duration::ZERO);
            }
            "mended".to_owned()
        }
    }))
}
