//! Many seeds on several threads, and what they met together.
//!
//! Invariant: which seeds are run, and what each of them does, does not depend on the number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replikit_sim::{Fault, FaultCounts};

use crate::plan::Plan;
use crate::probe::{Probe, Probes};
use crate::run::{Failure, Run, Telling};
use crate::{Scenario, play};

/// One seed in so many is run twice; the two must be the same.
pub const RECHECK_EVERY: u64 = 20;
/// From so many seeds on, a fault or a state that was never met fails the run.
pub const LONG_RUN: u64 = 2_000;

/// Which seeds, and how.
pub struct Many<'a> {
    /// What is run.
    pub scenario: Scenario,
    /// The first seed.
    pub first: u64,
    /// So many at most.
    pub seeds: u64,
    /// For so long at most.
    pub time_max: Option<Duration>,
    /// On so many threads.
    pub threads: usize,
    /// Makes a seed's plan.
    pub plan: &'a (dyn Fn(u64) -> Plan + Sync),
    /// Stops the run from outside.
    pub stop: &'a AtomicBool,
}

/// What many seeds did together.
#[derive(Debug, Default)]
pub struct Together {
    /// Seeds that ended clean.
    pub seeds: u64,
    /// Of them, those that were run twice.
    pub rechecked: u64,
    /// Faults, in total.
    pub total: FaultCounts,
    /// Seeds that met each fault.
    pub met: FaultCounts,
    /// Probes, in total.
    pub probes: Probes,
    /// Events of the worlds.
    pub events: u64,
    /// Inputs and actions of replicas.
    pub protocol_events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Real time.
    pub took: Duration,
    /// Time of all threads.
    pub busy: Duration,
    answered: Vec<usize>,
    /// The first failure.
    pub failure: Option<Box<Failure>>,
}

impl Together {
    fn add(&mut self, run: &Run, recheck: bool, busy: Duration) {
        self.seeds += 1;
        self.rechecked += u64::from(recheck);
        self.total.add(&run.counts);
        self.met.add_met(&run.counts);
        self.probes.add(&run.probes);
        self.events += run.events;
        self.protocol_events += run.protocol_events;
        self.simulated += Duration::from_nanos(run.simulated_ns);
        self.busy += busy;
        self.answered.push(run.answered);
    }

    /// Median of the operations that were acknowledged or answered in a seed.
    #[must_use]
    pub fn answered_median(&self) -> usize {
        let mut answered = self.answered.clone();
        answered.sort_unstable();
        answered.get(answered.len() / 2).copied().unwrap_or_default()
    }

    /// Faults that no seed met.
    #[must_use]
    pub fn unmet_faults(&self) -> Vec<Fault> {
        Fault::ALL.iter().copied().filter(|&fault| self.total[fault] == 0).collect()
    }

    /// States that no seed met.
    #[must_use]
    pub fn unmet_probes(&self) -> Vec<Probe> {
        Probe::ALL.iter().copied().filter(|&probe| self.probes.count(probe) == 0).collect()
    }
}

/// Runs the seeds until they are through, the time is over, one fails or somebody stops it; `progress` hears of each.
pub fn run(many: &Many<'_>, progress: &(dyn Fn(&Together) + Sync)) -> Together {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let together = Mutex::new(Together::default());
    std::thread::scope(|scope| {
        for _ in 0..many.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let over = many.time_max.is_some_and(|most| began.elapsed() >= most);
                    if at >= many.seeds || over || many.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let from = Instant::now();
                    let seed = many.first + at;
                    let recheck = at.is_multiple_of(RECHECK_EVERY);
                    let result = one(many.scenario, &(many.plan)(seed), recheck);
                    let mut together = together.lock().expect("a thread that panics ends the program");
                    match result {
                        Ok(run) => together.add(&run, recheck, from.elapsed()),
                        Err(failure) => {
                            // The lowest seed that failed, so that two runs report the same one more often.
                            if together.failure.as_ref().is_none_or(|other| failure.plan.seed < other.plan.seed) {
                                together.failure = Some(failure);
                            }
                            many.stop.store(true, Ordering::Relaxed);
                        }
                    }
                    together.took = began.elapsed();
                    progress(&together);
                }
            });
        }
    });
    let mut together = together.into_inner().expect("all threads have ended");
    together.took = began.elapsed();
    together
}

fn one(scenario: Scenario, plan: &Plan, recheck: bool) -> Result<Run, Box<Failure>> {
    let run = play(scenario, plan, Telling::Silent)?;
    if recheck && play(scenario, plan, Telling::Silent)? != run {
        let (invariant, what) = ("deterministic".to_owned(), "two runs differ".to_owned());
        return Err(Box::new(Failure { plan: plan.clone(), invariant, what, chronicle: None }));
    }
    Ok(run)
}
