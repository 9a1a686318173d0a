//! Whether advice holds between real processes: the choices play the workload on the network in turn, and stand in the order
//! of what was measured beside the order that was predicted.
//!
//! Invariant: two choices are told apart only where every round of one is below every round of the other, and by more than
//! would be a reason to choose; what is not told apart contradicts nothing.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::{Choice, Question, THINK};
use crate::error::BenchError;
use crate::figure::{Better, Figure, Subject};
use crate::place::Place;
use crate::play::command::deadline;
use crate::play::{Judged, Play, Played, Until, stage};
use crate::record::{Kind, Line, Record};
use crate::recorder::Latencies;
use crate::table::{Side, Table, latency};
use crate::workload::trace::Trace;

/// A smaller difference in the cost of an operation is no reason to choose.
const LEAST: f64 = 0.1;

/// What one run of one choice cost.
#[derive(Clone, Debug)]
struct Round {
    /// An operation, as it was predicted.
    cost: Duration,
    /// Lost updates for a million acknowledged ones.
    lost_per_million: f64,
    writes: Latencies,
    reads: Latencies,
    unserved: u64,
    /// A promise that was broken.
    broken: Option<String>,
}

/// What was predicted for a choice, and what was measured.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    predicted: Cost,
    rounds: Vec<Round>,
}

/// What choices are ranked by: lost updates, then the time of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    lost_per_million: u64,
    operation: Duration,
}

/// Choices, in the order that was predicted.
#[derive(Clone, Debug)]
pub(super) struct Confirmation {
    on: String,
    candidates: Vec<Candidate>,
}

/// Runs all choices, one after the other in each round.
///
/// # Errors
/// When an engine does not start, or cannot be read back.
pub(super) fn run(
    question: &Question,
    choices: &[Choice],
    rounds: u32,
    place: &Place,
) -> Result<Confirmation, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the clients"))?;
    let asked = format!("advise --confirm, {}, {}", question.mix, question.network);
    let mut results = place.results(question.seed, &asked, rounds)?;
    let trace = question.trace();
    let candidate = |choice: &Choice| Candidate {
        name: choice.setup.to_string(),
        predicted: Cost { lost_per_million: choice.calm.lost_per_million().round() as u64, operation: choice.cost },
        rounds: Vec::new(),
    };
    let mut candidates: Vec<Candidate> = choices.iter().map(candidate).collect();
    let folder = place.data.path().join("confirm");
    for number in 1..=rounds {
        for (choice, candidate) in choices.iter().zip(&mut candidates) {
            let round = runtime.block_on(question.play(choice, &trace, &folder))?;
            eprintln!("  round {number}: {}: {} an operation", candidate.name, latency(round.cost));
            let mut record = round.record(question, choice);
            record.round = number;
            results.write(Line::Measured(record)).map_err(BenchError::io("writing the results"))?;
            candidate.rounds.push(round);
            // What is left of it would be found by the next one.
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
    let on = format!(
        "{}, {}; {rounds} times {:?}, clients rest {THINK:?}",
        question.mix,
        question.network,
        question.lasts()
    );
    Ok(Confirmation { on, candidates })
}

impl Question {
    async fn play(&self, choice: &Choice, trace: &Rc<Trace>, folder: &Path) -> Result<Round, BenchError> {
        let setup = &choice.setup;
        let play = Play {
            trace: trace.clone(),
            updates: self.mix.updates,
            write_level: setup.write_level,
            reads: setup.reads(),
            until: Until::Elapsed(self.lasts()),
            think: THINK,
            deadline: deadline(&self.network),
        };
        let staged = stage(setup.strategy.engine(), &play, &self.network, folder).await?;
        Ok(self.round(&staged.played, &staged.judged))
    }

    fn round(&self, played: &Played, judged: &Judged) -> Round {
        let (mut writes, mut reads) = (Latencies::new(), Latencies::new());
        for (operation, latencies) in &played.latencies {
            if operation.writes() { &mut writes } else { &mut reads }.merge(latencies);
        }
        let lost = judged.lost_audited + judged.silent();
        Round {
            cost: self.cost(&writes, &reads),
            lost_per_million: lost as f64 * 1e6 / judged.updates.max(writes.count()).max(1) as f64,
            writes,
            reads,
            unserved: played.failures.values().sum(),
            broken: judged.broken.clone(),
        }
    }
}

impl Round {
    fn record(&self, question: &Question, choice: &Choice) -> Record {
        let settings = [("network", question.network.to_string()), ("setup", choice.setup.to_string())];
        let subject = Subject {
            engine: choice.setup.strategy.engine().name().to_owned(),
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            workload: question.mix.to_string(),
            clients: question.mix.clients,
        };
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let figures: [Figure; 4] = [
            subject.figure("cost of an operation", micros(self.cost), "us", Better::Lower),
            subject.figure("predicted cost of an operation", micros(choice.cost), "us", Better::Neither),
            subject.figure("lost updates per 10^6", self.lost_per_million, "1", Better::Lower),
            subject.figure("operations not served", self.unserved as f64, "1", Better::Lower),
        ];
        let name = format!("{}, {}: {}", choice.setup, question.network, question.mix);
        let mut record = Record::of(Kind::Case, name, &figures).expect("there are figures");
        record.wrong.extend(self.broken.clone());
        record
    }
}

impl Candidate {
    /// The values of all rounds, ascending.
    fn sorted<T: PartialOrd + Copy>(&self, value: impl Fn(&Round) -> T) -> Vec<T> {
        let mut values: Vec<T> = self.rounds.iter().map(value).collect();
        values.sort_by(|one, other| one.partial_cmp(other).expect("no measured value is no number"));
        values
    }

    /// The medians of what was measured.
    fn measured(&self) -> Cost {
        let (lost, costs) = (self.sorted(|round| round.lost_per_million), self.sorted(|round| round.cost));
        Cost { lost_per_million: lost[lost.len() / 2].round() as u64, operation: costs[costs.len() / 2] }
    }

    /// Whether it is measured to be better than another one.
    fn beats(&self, other: &Self) -> bool {
        let (mine, theirs) =
            (self.sorted(|round| round.lost_per_million), other.sorted(|round| round.lost_per_million));
        let below = |mine: &[f64], theirs: &[f64]| mine.last() < theirs.first();
        if below(&mine, &theirs) || below(&theirs, &mine) {
            return below(&mine, &theirs);
        }
        let (mine, theirs) = (self.sorted(|round| round.cost), other.sorted(|round| round.cost));
        let gain = 1.0 - self.measured().operation.as_secs_f64() / other.measured().operation.as_secs_f64();
        mine.last() < theirs.first() && gain > LEAST
    }
}

impl Confirmation {
    /// Whether nothing is measured to be better than the choice, and no promise was broken.
    pub(super) fn holds(&self) -> bool {
        let [choice, others @ ..] = self.candidates.as_slice() else { return true };
        !others.iter().any(|other| other.beats(choice)) && self.broken().next().is_none()
    }

    /// Those that were predicted to be better and are measured to be worse, with what is better than they are.
    fn differing(&self) -> Vec<(usize, usize)> {
        let mut differing = Vec::new();
        for (at, one) in self.candidates.iter().enumerate() {
            for (behind, other) in self.candidates.iter().enumerate().skip(at + 1) {
                if one.predicted < other.predicted && other.beats(one) {
                    differing.push((at, behind));
                }
            }
        }
        differing
    }

    fn broken(&self) -> impl Iterator<Item = (&str, &str)> {
        self.candidates.iter().flat_map(|candidate| {
            let broken = candidate.rounds.iter().filter_map(|round| round.broken.as_deref());
            broken.map(|what| (candidate.name.as_str(), what))
        })
    }

    /// For people.
    pub(super) fn render(&self) -> String {
        let mut table = Table::new(vec![
            ("predicted", Side::Right),
            ("measured", Side::Right),
            ("strategy", Side::Left),
            ("an operation, predicted", Side::Right),
            ("measured", Side::Right),
            ("from", Side::Right),
            ("to", Side::Right),
            ("write p50", Side::Right),
            ("read p50", Side::Right),
            ("lost/10^6", Side::Right),
            ("not served", Side::Right),
        ]);
        let mut order: Vec<Cost> = self.candidates.iter().map(Candidate::measured).collect();
        order.sort_unstable();
        for (place, candidate) in self.candidates.iter().enumerate() {
            let (measured, costs) = (candidate.measured(), candidate.sorted(|round| round.cost));
            let median = |of: fn(&Round) -> &Latencies| {
                let medians = candidate.sorted(|round| of(round).quantile(0.5));
                if medians.iter().all(Duration::is_zero) { "-".to_owned() } else { latency(medians[medians.len() / 2]) }
            };
            let rank = order.iter().position(|cost| *cost == measured).map_or(0, |rank| rank + 1);
            table.row(
                "",
                vec![
                    (place + 1).to_string(),
                    rank.to_string(),
                    candidate.name.clone(),
                    latency(candidate.predicted.operation),
                    latency(measured.operation),
                    latency(costs[0]),
                    latency(costs[costs.len() - 1]),
                    median(|round| &round.writes),
                    median(|round| &round.reads),
                    measured.lost_per_million.to_string(),
                    candidate.rounds.iter().map(|round| round.unserved).sum::<u64>().to_string(),
                ],
            );
        }
        let mut text = format!("between real processes: {}\n\n{}\n", self.on, table.render());
        for (strategy, what) in self.broken() {
            text.push_str(&format!("WRONG RESULT: {strategy}: {what}\n"));
        }
        for (worse, better) in self.differing() {
            let [worse, better] = [worse, better].map(|at| &self.candidates[at]);
            text.push_str(&format!(
                "the order differs: `{}` is measured to be better than `{}`, which was predicted to be: {} against {} an \
                 operation, {} against {} lost updates of a million\n",
                better.name,
                worse.name,
                latency(better.measured().operation),
                latency(worse.measured().operation),
                better.measured().lost_per_million,
                worse.measured().lost_per_million,
            ));
        }
        text.push_str(match self.holds() {
            true => "the choice is confirmed: nothing of these is measured to be better\n",
            false => "THE CHOICE IS NOT CONFIRMED\n",
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, predicted: u64, measured: &[u64], lost: f64) -> Candidate {
        let round = |cost: &u64| Round {
            cost: Duration::from_micros(*cost),
            lost_per_million: lost,
            writes: Latencies::new(),
            reads: Latencies::new(),
            unserved: 0,
            broken: None,
        };
        let predicted = Cost { lost_per_million: 0, operation: Duration::from_micros(predicted) };
        Candidate { name: name.to_owned(), predicted, rounds: measured.iter().map(round).collect() }
    }

    fn confirmation(candidates: Vec<Candidate>) -> Confirmation {
        Confirmation { on: "a network".to_owned(), candidates }
    }

    #[test]
    fn the_predicted_order_holds_where_it_is_measured_or_cannot_be_told() {
        let measured = confirmation(vec![
            candidate("a", 100, &[150, 160, 170], 0.0),
            candidate("b", 200, &[155, 140, 165], 0.0),
            candidate("c", 300, &[400, 410, 390], 0.0),
        ]);
        assert!(measured.holds() && measured.differing().is_empty());
        let shown = measured.render();
        assert!(shown.contains("confirmed") && !shown.contains("differs"), "{shown}");
        let ranks: Vec<&str> =
            shown.lines().skip(3).take(3).map(|row| row.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(ranks, ["2", "1", "3"], "the medians as they are, beside the verdict: {shown}");
    }

    #[test]
    fn a_choice_that_another_one_beats_in_every_round_is_not_confirmed() {
        let measured =
            confirmation(vec![candidate("a", 100, &[150, 160, 170], 0.0), candidate("b", 200, &[100, 110, 120], 0.0)]);
        assert!(!measured.holds());
        assert_eq!(measured.differing(), [(0, 1)]);
        assert!(measured.render().contains("NOT CONFIRMED"), "{}", measured.render());
        // Lower in every round, by too little to choose it for that.
        let alike = [candidate("a", 100, &[103, 104, 105], 0.0), candidate("b", 200, &[100, 101, 102], 0.0)];
        assert!(confirmation(alike.to_vec()).holds());
    }

    #[test]
    fn an_order_behind_the_choice_that_differs_is_told_and_the_choice_stands() {
        let measured = confirmation(vec![
            candidate("a", 100, &[100, 101, 102], 0.0),
            candidate("b", 200, &[400, 410, 420], 0.0),
            candidate("c", 300, &[300, 310, 320], 0.0),
        ]);
        assert!(measured.holds());
        assert_eq!(measured.differing(), [(1, 2)]);
        assert!(measured.render().contains("`c` is measured to be better than `b`"), "{}", measured.render());
        // Predicted to be equal, one stands before the other one by chance.
        let equal = [candidate("a", 100, &[400, 410, 420], 0.0), candidate("b", 100, &[300, 310, 320], 0.0)];
        assert!(confirmation(equal.to_vec()).differing().is_empty());
    }

    #[test]
    fn lost_updates_count_before_time_and_a_broken_promise_before_all() {
        let mut lossy = candidate("a", 100, &[100, 101, 102], 40.0);
        assert!(!confirmation(vec![lossy.clone(), candidate("b", 200, &[400, 410, 420], 0.0)]).holds());
        lossy = candidate("a", 100, &[100, 101, 102], 0.0);
        lossy.rounds[1].broken = Some("a stale read".to_owned());
        let broken = confirmation(vec![lossy]);
        assert!(!broken.holds() && broken.render().contains("WRONG RESULT: a: a stale read"), "{}", broken.render());
    }
}
