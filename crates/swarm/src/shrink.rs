//! Makes a failing plan smaller: first fewer kinds of faults, then fewer clients, then less time.
//!
//! Invariant: the plan that comes out breaks the same invariant as the one that went in.

use core::time::Duration;

use crate::plan::{Plan, SWITCHES};
use crate::run::{Failure, Telling};
use crate::{Scenario, play};

/// Most runs that shrinking may take.
const RUNS_MAX: u32 = 300;

struct Shrinking {
    scenario: Scenario,
    smallest: Box<Failure>,
    runs: u32,
}

impl Shrinking {
    /// Keeps a smaller plan if it still fails in the same way.
    fn attempt(&mut self, plan: &Plan) -> bool {
        if self.runs == RUNS_MAX || *plan == self.smallest.plan {
            return false;
        }
        self.runs += 1;
        match play(self.scenario, plan, Telling::Silent) {
            Err(failure) if failure.invariant == self.smallest.invariant => {
                self.smallest = failure;
                true
            }
            _ => false,
        }
    }
}

/// The smallest plan that was found to fail like this one, run once more and recorded; with the number of runs it took.
#[must_use]
pub fn shrink(scenario: Scenario, failure: Box<Failure>) -> (Box<Failure>, u32) {
    let mut shrinking = Shrinking { scenario, smallest: failure, runs: 0 };
    let mut less = true;
    while less {
        less = false;
        for (name, _) in SWITCHES {
            if shrinking.smallest.plan.without.contains(name) {
                continue;
            }
            let mut plan = shrinking.smallest.plan.clone();
            let before = plan.clone();
            plan.leave_out(name).expect("a switch of the list");
            // A kind that was off anyway is not worth a run, nor a word in the command that replays it.
            let same = Plan { without: before.without.clone(), ..plan.clone() } == before;
            less |= !same && shrinking.attempt(&plan);
        }
    }
    for clients in 1..shrinking.smallest.plan.workload.clients {
        let mut plan = shrinking.smallest.plan.clone();
        plan.workload.clients = clients;
        plan.workload.with_session = plan.workload.with_session.min(clients);
        if shrinking.attempt(&plan) {
            break;
        }
    }
    let mut step = shrinking.smallest.plan.lasts / 2;
    while step >= Duration::from_millis(10) {
        let mut plan = shrinking.smallest.plan.clone();
        plan.lasts = Duration::from_millis((plan.lasts - step).as_millis() as u64);
        if !shrinking.attempt(&plan) {
            step /= 2;
        }
        step = step.min(shrinking.smallest.plan.lasts / 2);
    }
    if let Err(recorded) = play(scenario, &shrinking.smallest.plan, Telling::Recorded) {
        shrinking.smallest = recorded;
    }
    (shrinking.smallest, shrinking.runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Run;

    /// Fails whenever processes crash and at least two clients are at work for a tenth of a second.
    fn fragile(plan: &Plan, _: Telling) -> Result<Run, Box<Failure>> {
        let fails = plan.settings.process.crash.is_some()
            && plan.workload.clients >= 2
            && plan.lasts >= Duration::from_millis(100);
        assert!(fails, "the plan fails no more");
        let invariant = "fragile".to_owned();
        Err(Box::new(Failure { plan: plan.clone(), invariant, what: "it broke".to_owned(), chronicle: None }))
    }

    #[test]
    fn what_a_failure_does_not_need_is_left_out() {
        let seed = (0..).find(|&seed| {
            let plan = Plan::draw(seed);
            plan.settings.process.crash.is_some() && plan.workload.clients > 4
        });
        let plan = Plan::draw(seed.expect("half of the seeds crash"));
        let failure = play(fragile, &plan, Telling::Silent).expect_err("the plan was chosen to fail");
        let (smallest, runs) = shrink(fragile, failure);
        let plan = &smallest.plan;
        assert_eq!((smallest.invariant.as_str(), plan.workload.clients), ("fragile", 2));
        assert!(plan.settings.process.crash.is_some() && plan.settings.network.netsplit.is_none());
        assert!((100..150).contains(&plan.lasts.as_millis()) && runs <= RUNS_MAX, "{:?}", plan.lasts);
        // The command that replays it says all that was taken away.
        let mut replayed = Plan::draw(plan.seed);
        plan.without.iter().for_each(|name| replayed.leave_out(name).expect("a known kind"));
        replayed.workload.clients = plan.workload.clients;
        replayed.workload.with_session = replayed.workload.with_session.min(plan.workload.clients);
        replayed.lasts = plan.lasts;
        assert_eq!(replayed, *plan);
    }
}
