//! Which strategy for this workload on this network: what every candidate promises, held against what is needed, and what it
//! costs, from simulation.
//!
//! Invariant: whether a promise suffices is read from the [`Guarantees`] of the candidate, never from a table of our own;
//! every candidate is either ranked or excluded with the reason, and with a number where it is one.

mod confirm;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use replikit_core::{Guarantees, ReadGuarantee, Survival};

use crate::error::BenchError;
use crate::fault::{Fault, Plan};
use crate::network::Network;
use crate::place::Place;
use crate::play::command::{network_named, workload};
use crate::probe;
use crate::record;
use crate::recorder::Latencies;
use crate::simulated::{Budget, Setup, Simulated, Simulation, SimulationError};
use crate::table::{Side, Table, latency};
use crate::workload::mix::Mix;
use crate::workload::trace::Trace;

/// Operations that are drawn for a run.
const STEPS: usize = 8_000;
/// A client rests so long between operations: the question is what one operation costs, not how many fit in.
const THINK: Duration = Duration::from_millis(20);
const LASTS: Duration = Duration::from_secs(4);
/// A strategy that serves nothing for this share of the time that a fault lasts, on the side where nothing failed, does not
/// survive it.
const GAP_SHARE_MAX: f64 = 0.75;

/// How reads must relate to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Needs {
    /// Every read sees all that was acknowledged before.
    Linearizable,
    /// A client sees its own writes and never goes back.
    Session,
    /// Everything is seen some time.
    Eventual,
}

impl Needs {
    /// Whether a promise is enough.
    #[must_use]
    pub const fn met_by(self, reads: ReadGuarantee) -> bool {
        match self {
            Self::Linearizable => matches!(reads, ReadGuarantee::Linearizable),
            // Regular reads may go back while a write is under way.
            Self::Session => matches!(reads, ReadGuarantee::Linearizable | ReadGuarantee::Session),
            Self::Eventual => true,
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::Session => "session",
            Self::Eventual => "eventual",
        })
    }
}

/// What must not lose anything, nor stop the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Survive {
    /// The loss of any one node.
    #[value(name = "1-node")]
    OneNode,
    /// The loss of any one region.
    #[value(name = "1-region")]
    OneRegion,
}

impl fmt::Display for Survive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneNode => "1-node",
            Self::OneRegion => "1-region",
        })
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the clients do.
    pub mix: Mix,
    /// Between which nodes.
    pub network: Network,
    /// How reads must relate to writes.
    pub needs: Needs,
    /// What must be survived.
    pub survive: Survive,
    /// How long a sync of a node's disk takes.
    pub sync: Duration,
    /// What everything random comes from.
    pub seed: u64,
}

/// A candidate that meets the needs.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Which.
    pub setup: Setup,
    /// What it promises.
    pub guarantees: Guarantees,
    /// What it does while nothing fails.
    pub calm: Simulated,
    /// What it does while that happens which must be survived.
    pub struck: Simulated,
    /// Median time of an operation, by the shares of the workload.
    pub cost: Duration,
}

/// Why a candidate is no choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// It does not have an operation of the workload.
    Cannot(&'static str),
    /// Its reads promise less.
    Reads(ReadGuarantee),
    /// Acknowledged writes may go with a node.
    Survives(Survival),
    /// It does not go on serving: share that was served on the side where nothing failed, and the longest gap there.
    Away {
        /// 0 to 1.
        availability: f64,
        /// Of served operations.
        gap: Duration,
    },
    /// It did not do what it promises; so many acknowledged writes were lost, or a check failed.
    Broken {
        /// Lost records.
        lost: u64,
        /// What a check found.
        what: Option<String>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cannot(why) => f.write_str(why),
            Self::Reads(reads) => write!(f, "reads are {reads}"),
            Self::Survives(survival) => write!(f, "acknowledged writes survive {survival}"),
            Self::Away { availability, gap } => write!(
                f,
                "while it lasts, {:.0} % of the operations beside nodes that are well are served, with a gap of {}",
                availability * 100.0,
                latency(*gap)
            ),
            Self::Broken { lost, what } => {
                write!(f, "broke its promise: {lost} records lost; {}", what.as_deref().unwrap_or("no check failed"))
            }
        }
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Advice {
    /// What meets the needs, best first: fewest lost updates, then the cheapest operation.
    pub choices: Vec<Choice>,
    /// What does not, and why.
    pub excluded: Vec<(Setup, Reason)>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdviseError {
    /// No strategy can survive that on this network. Blame: who placed the nodes.
    #[error("nothing survives the loss of {what}: {away} of {nodes} nodes are no minority")]
    Placement {
        /// What is lost.
        what: String,
        /// How many nodes go with it.
        away: usize,
        /// Of how many.
        nodes: usize,
    },
    /// A simulated run has no result.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
}

impl Question {
    /// Answers it.
    ///
    /// # Errors
    /// [`AdviseError`].
    pub fn answer(&self) -> Result<Advice, AdviseError> {
        let fault = self.fault()?;
        let trace = self.trace();
        let mut advice = Advice { choices: Vec::new(), excluded: Vec::new() };
        for setup in Setup::candidates() {
            match self.weigh(&setup, fault, &trace)? {
                Ok(choice) => advice.choices.push(choice),
                Err(reason) => advice.excluded.push((setup, reason)),
            }
        }
        // A lost update per million is worth telling apart, a share of one is not.
        let rank = |choice: &Choice| (choice.calm.lost_per_million().round() as u64, choice.cost);
        advice.choices.sort_by_key(rank);
        Ok(advice)
    }

    /// What happens that must be survived, if anything can survive it.
    fn fault(&self) -> Result<Fault, AdviseError> {
        let nodes = self.network.nodes.len();
        let lost = match self.survive {
            Survive::OneNode => vec![("a node".to_owned(), 1)],
            Survive::OneRegion => {
                let regions = self.network.regions.iter().enumerate();
                regions.map(|(at, name)| (format!("region {name}"), self.network.of_region(at).len())).collect()
            }
        };
        match lost.into_iter().find(|(_, away)| 2 * away >= nodes) {
            Some((what, away)) => Err(AdviseError::Placement { what, away, nodes }),
            None if self.survive == Survive::OneNode => Ok(Fault::Crash),
            None => Ok(Fault::RegionCrash),
        }
    }

    /// What the clients do, drawn once for all candidates.
    fn trace(&self) -> Rc<Trace> {
        Rc::new(Trace::draw(&self.mix, self.seed, STEPS))
    }

    /// How long a run without a fault lasts.
    fn lasts(&self) -> Duration {
        LASTS.max(self.network.offline.map_or(LASTS, |offline| offline.from + offline.lasts * 2))
    }

    /// What an operation costs: its median time, by the shares of the workload.
    fn cost(&self, writes: &Latencies, reads: &Latencies) -> Duration {
        let share = self.mix.share_of_writes();
        writes.quantile(0.5).mul_f64(share) + reads.quantile(0.5).mul_f64(1.0 - share)
    }

    fn weigh(&self, setup: &Setup, fault: Fault, trace: &Rc<Trace>) -> Result<Result<Choice, Reason>, SimulationError> {
        let cannot = trace.operations().into_iter().find_map(|operation| setup.cannot(operation, self.mix.updates));
        if let Some(why) = cannot {
            return Ok(Err(Reason::Cannot(why)));
        }
        let guarantees = setup.guarantees(self.network.nodes.len() as u8);
        if !self.needs.met_by(guarantees.reads) {
            return Ok(Err(Reason::Reads(guarantees.reads)));
        }
        if guarantees.survives != Survival::Minority {
            return Ok(Err(Reason::Survives(guarantees.survives)));
        }
        let simulation = |fault, seed| Simulation {
            setup: setup.clone(),
            network: self.network.clone(),
            fault,
            trace: trace.clone(),
            updates: self.mix.updates,
            think: THINK,
            lasts: self.lasts(),
            budget: Budget { sync: self.sync, ..Budget::PROTOCOL },
            seed,
        };
        let calm = simulation(Fault::None, self.seed).run()?;
        let struck = simulation(fault, self.seed).run()?;
        for run in [&calm, &struck] {
            if run.records_lost > 0 || run.broken.is_some() {
                return Ok(Err(Reason::Broken { lost: run.records_lost, what: run.broken.clone() }));
            }
        }
        let plan = Plan::draw(fault, &self.network, self.seed);
        let gap = struck.gap_of_the_others();
        if gap.as_secs_f64() > (plan.undone - plan.at).as_secs_f64() * GAP_SHARE_MAX {
            return Ok(Err(Reason::Away { availability: struck.availability_of_the_others(), gap }));
        }
        let cost = self.cost(&calm.writes, &calm.reads);
        Ok(Ok(Choice { setup: setup.clone(), guarantees, calm, struck, cost }))
    }
}

impl Advice {
    /// For people.
    #[must_use]
    pub fn render(&self) -> String {
        let mut table = Table::new(vec![
            ("", Side::Right),
            ("strategy", Side::Left),
            ("write p50", Side::Right),
            ("p99", Side::Right),
            ("read p50", Side::Right),
            ("p99", Side::Right),
            ("stale reads", Side::Right),
            ("conflicts", Side::Right),
            ("lost/10^6: audited, silent", Side::Right),
            ("messages/op", Side::Right),
            ("served in the fault", Side::Right),
            ("gap", Side::Right),
        ]);
        for (place, choice) in self.choices.iter().enumerate() {
            let Choice { setup, guarantees, calm, struck, .. } = choice;
            let shown = |latencies: &Latencies, share| match latencies.count() {
                0 => "-".to_owned(),
                _ => latency(latencies.quantile(share)),
            };
            let million = |count: u64| count as f64 * 1e6 / calm.acked.max(1) as f64;
            table.row(
                "",
                vec![
                    (place + 1).to_string(),
                    format!("{setup}: reads {}, survives {}", guarantees.reads, guarantees.survives),
                    shown(&calm.writes, 0.5),
                    shown(&calm.writes, 0.99),
                    shown(&calm.reads, 0.5),
                    shown(&calm.reads, 0.99),
                    format!("{:.2} %", calm.stale_share() * 100.0),
                    calm.conflicts.map_or_else(|| "-".to_owned(), |conflicts| conflicts.to_string()),
                    format!("{:.0}, {:.0}", million(calm.lost_audited), million(calm.lost_silent)),
                    format!("{:.1}", calm.messages_per_operation),
                    format!("{:.1} %", struck.availability_of_the_others() * 100.0),
                    latency(struck.gap_of_the_others()),
                ],
            );
        }
        let mut text = match self.choices.first() {
            Some(best) => format!("choose: {}\n\n{}", best.setup, table.render()),
            None => "no strategy meets these needs\n".to_owned(),
        };
        text.push_str("\nexcluded:\n");
        for (setup, reason) in &self.excluded {
            text.push_str(&format!("  {setup}: {reason}\n"));
        }
        text
    }
}

/// Says which strategy meets needs on a network, from simulation.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What the clients do: a built-in workload, or a TOML file.
    #[arg(long, value_name = "NAME|FILE")]
    workload: String,
    /// Where the nodes are: a built-in network, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "lan")]
    network: String,
    /// How reads must relate to writes.
    #[arg(long, value_enum)]
    needs: Needs,
    /// What must lose nothing that was acknowledged, nor stop the service.
    #[arg(long, value_enum, default_value = "1-node")]
    survive: Survive,
    /// How long an fdatasync takes on the disks of the nodes, in microseconds: 100 unless said, and with --confirm what it takes
    /// on this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sync_us: Option<u32>,
    /// What everything random comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs the first so many as real processes over the same network as well, and tells both orders; exit code 1 when another
    /// one is measured to be better than the choice.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=15))]
    confirm: Option<u32>,
    /// How often each of them is run, in turn.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "confirm")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the results of real processes go, instead of a new folder below target/bench.
    #[arg(long, value_name = "DIR", requires = "confirm")]
    out: Option<PathBuf>,
}

/// Runs the task.
///
/// # Errors
/// When an argument means nothing, a simulated run has no result, or processes do not start.
pub fn run(arguments: &Arguments) -> Result<ExitCode, BenchError> {
    let (mix, network) = (workload(&arguments.workload)?, network_named(&arguments.network)?);
    let place = arguments.confirm.map(|_| Place::create(arguments.out.clone())).transpose()?;
    let question = Question {
        mix,
        network,
        needs: arguments.needs,
        survive: arguments.survive,
        sync: sync(arguments.sync_us, place.as_ref())?,
        seed: arguments.seed,
    };
    println!(
        "simulated: {}, {}, needs {}, survives {}; a disk syncs in {}, processors take no time worth telling, messages what \
         the network says; seed {}\n",
        question.mix,
        question.network,
        question.needs,
        question.survive,
        latency(question.sync),
        question.seed
    );
    let advice = question.answer().map_err(|error| BenchError::Usage(error.to_string()))?;
    print!("{}", advice.render());
    if advice.choices.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let (Some(first), Some(place)) = (arguments.confirm, place) else { return Ok(ExitCode::SUCCESS) };
    let choices = &advice.choices[..advice.choices.len().min(first as usize)];
    let confirmation = confirm::run(&question, choices, arguments.rounds, &place)?;
    println!("\n{}", confirmation.render());
    println!("results: {}", place.folder.join(record::FILE_NAME).display());
    Ok(if confirmation.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How long a sync takes: as said, or measured where processes are to run.
fn sync(said: Option<u32>, place: Option<&Place>) -> Result<Duration, BenchError> {
    Ok(match (said, place) {
        (Some(micros), _) => Duration::from_micros(u64::from(micros)),
        (None, Some(place)) => {
            let measured = probe::rested_sync(place.data.path(), Duration::from_secs(1));
            measured.map_err(BenchError::io("probing the disk"))?.quantile(0.5)
        }
        (None, None) => Budget::PROTOCOL.sync,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulated::{Freshness, Strategy};

    fn ask(workload: &str, network: &str, needs: Needs, survive: Survive) -> Question {
        let mut mix = Mix::built_in(workload).expect("it is built in");
        mix.clients = mix.clients.min(9);
        let network = Network::built_in(network).expect("it is built in");
        Question { mix, network, needs, survive, sync: Budget::PROTOCOL.sync, seed: 1 }
    }

    /// Measured between real processes with `--confirm`, where a model with faster disks had them the other way round.
    #[test]
    fn whose_writes_wait_for_two_syncs_falls_behind_where_syncs_take_longer_than_messages() {
        let places = |sync| {
            let question = Question { sync, ..ask("sensors", "lan", Needs::Session, Survive::OneNode) };
            let advice = question.answer().expect("it can be answered");
            let place = |strategy, freshness| {
                let is = |choice: &Choice| choice.setup.strategy == strategy && choice.setup.freshness == freshness;
                advice.choices.iter().position(is).expect("it meets the needs")
            };
            // A leader writes beside its followers; a node of many leaders tells the others what is on its own disk.
            (place(Strategy::MultiLeader, Freshness::Session), place(Strategy::SingleLeader, Freshness::Session))
        };
        let (many, one) = places(Duration::from_micros(100));
        assert!(many < one, "the way to the leader takes longer than a second sync");
        let (many, one) = places(Duration::from_micros(900));
        assert!(many > one, "it takes less");
    }

    /// Whatever is chosen promises what is needed, and whatever is not is told why by its own promise or by a number.
    fn is_implied_by_the_guarantees(question: &Question, advice: &Advice) {
        assert_eq!(advice.choices.len() + advice.excluded.len(), Setup::candidates().len());
        for choice in &advice.choices {
            assert!(question.needs.met_by(choice.guarantees.reads), "{}", choice.setup);
            assert_eq!(choice.guarantees.survives, Survival::Minority, "{}", choice.setup);
            assert_eq!((choice.calm.records_lost, choice.struck.records_lost), (0, 0), "{}", choice.setup);
        }
        for (setup, reason) in &advice.excluded {
            let promised = setup.guarantees(question.network.nodes.len() as u8);
            match reason {
                Reason::Reads(reads) => assert!(!question.needs.met_by(*reads) && *reads == promised.reads),
                Reason::Survives(survival) => assert_eq!(*survival, promised.survives),
                Reason::Cannot(_) | Reason::Away { .. } => {}
                Reason::Broken { .. } => panic!("{setup}: {reason}"),
            }
        }
    }

    #[test]
    fn accounts_need_one_order_of_writes_or_agreement_on_each_key() {
        let question = ask("bank", "lan", Needs::Linearizable, Survive::OneNode);
        let advice = question.answer().expect("it can be answered");
        is_implied_by_the_guarantees(&question, &advice);
        let strategies: Vec<Strategy> = advice.choices.iter().map(|choice| choice.setup.strategy).collect();
        assert!(strategies.contains(&Strategy::SingleLeader), "{}", advice.render());
        assert!(!strategies.contains(&Strategy::MultiLeader), "{}", advice.render());
        assert!(advice.choices.iter().all(|choice| choice.calm.lost_per_million() == 0.0), "{}", advice.render());
    }

    #[test]
    fn carts_across_regions_are_taken_without_waiting_for_a_leader() {
        let question = ask("carts", "three-regions", Needs::Eventual, Survive::OneRegion);
        let advice = question.answer().expect("it can be answered");
        is_implied_by_the_guarantees(&question, &advice);
        let best = advice.choices.first().expect("something meets them");
        assert_ne!(best.setup.strategy, Strategy::SingleLeader, "it has no sets that merge");
        assert_eq!(best.setup.freshness, Freshness::Session, "it promises more than local reads at the same price");
        assert!(best.calm.reads.quantile(0.5) < Duration::from_millis(5), "{}", advice.render());
        assert_eq!(best.calm.lost_silent, 0);
    }

    #[test]
    fn sessions_are_met_by_what_promises_them_and_by_what_promises_more() {
        let question = ask("sensors", "lan", Needs::Session, Survive::OneNode);
        let advice = question.answer().expect("it can be answered");
        is_implied_by_the_guarantees(&question, &advice);
        let freshness: Vec<Freshness> = advice.choices.iter().map(|choice| choice.setup.freshness).collect();
        assert!(freshness.contains(&Freshness::Session) && freshness.contains(&Freshness::Linearizable));
        assert!(!freshness.contains(&Freshness::Local) && !freshness.contains(&Freshness::Quorum));
    }

    #[test]
    fn nothing_survives_the_loss_of_everything() {
        let question = ask("bank", "lan", Needs::Eventual, Survive::OneRegion);
        let error = question.answer().expect_err("all nodes are in one region").to_string();
        assert_eq!(error, "nothing survives the loss of region here: 3 of 3 nodes are no minority");
    }
}
