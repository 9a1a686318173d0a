//! Rounds: in each of them every system of a contest is measured once, one after the other, each newly started on a data folder of its
//! own (A B A B); a machine that changes meanwhile changes for all.

use std::cell::RefCell;
use std::time::Duration;

use replikit_benches::error::BenchError;
use replikit_benches::load::Window;
use replikit_benches::place::Place;
use replikit_benches::probe;
use replikit_benches::record::{EngineLine, Failed, Kind, Line, Record, Results};
use replikit_benches::table::{count, latency};

use crate::contest::Contest;
use crate::outcome::Outcome;
use crate::sample::Sample;
use crate::system::System;

/// Time of each probe of the cores between contests.
const DISTANCE: Duration = Duration::from_millis(40);

/// What is run, and how.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// How often each system of a contest is measured.
    pub rounds: u32,
    /// For how long.
    pub window: Window,
    /// What all randomness of the run comes from.
    pub seed: u64,
}

/// Runs every contest; each sample is in the results, and in the outcome, as soon as it is taken. Must run on a
/// current-thread runtime; may be dropped at any time.
///
/// # Errors
/// When the machine refuses. Systems that fail are noted in the results, and the others go on.
pub async fn run(
    asked: Asked,
    place: &Place,
    results: &RefCell<Results>,
    outcome: &RefCell<Outcome>,
) -> Result<(), BenchError> {
    let contests = outcome.borrow().contests().to_vec();
    let mut set = 0;
    for (number, contest) in contests.iter().enumerate() {
        for round in 1..=asked.rounds {
            set += 1;
            distance(results, "before", set)?;
            for system in contest.systems() {
                if outcome.borrow().absent(system, contest.load).is_some() {
                    continue;
                }
                let folder = place.data.path().join(format!("set-{set}-{}", system.name().replace([' ', ','], "-")));
                let measured = system.measure(contest.load, &folder, asked.window, asked.seed).await;
                // A failed start may have come before the folder.
                if folder.exists() {
                    std::fs::remove_dir_all(&folder).map_err(BenchError::io("removing the data"))?;
                }
                match measured {
                    Ok(sample) => {
                        write_sample(results, contest, system, (round, set), &sample)?;
                        outcome.borrow_mut().add(number, round, system, sample);
                    }
                    Err(error) => {
                        let what = format!("{}: {}, round {round}", system.name(), contest.load);
                        eprintln!("  {what}: failed: {error}");
                        write(results, Line::Failed(Failed { what, why: error.to_string() }))?;
                    }
                }
            }
            distance(results, "after", set)?;
        }
    }
    Ok(())
}

fn write(results: &RefCell<Results>, line: Line) -> Result<(), BenchError> {
    results.borrow_mut().write(line).map_err(BenchError::io("writing the results"))
}

fn write_sample(
    results: &RefCell<Results>,
    contest: &Contest,
    system: System,
    (round, set): (u32, u32),
    sample: &Sample,
) -> Result<(), BenchError> {
    let (name, load) = (system.name(), contest.load);
    let p99 = latency(sample.latencies.quantile(0.99));
    eprintln!("  round {round}: {name}, {load}: {}/s, p99 {p99}", count(sample.rate));
    sample.notes.iter().for_each(|note| eprintln!("    {note}"));
    let mut configuration = sample.configuration.clone();
    configuration.extend(system.version().ok().map(|version| ("version".to_owned(), version)));
    write(results, Line::Engine(EngineLine { engine: name.to_owned(), configuration }))?;
    let figures = sample.figures(system, load);
    // The same system may be under the same load in two contests.
    let record = Record::of(Kind::Peer, format!("{contest}: {name}"), &figures).expect("a sample has figures");
    let (notes, wrong) = (sample.notes.clone(), sample.wrong.clone());
    write(results, Line::Measured(Record { round, set, notes, wrong, ..record }))
}

/// How far the cores are from each other now.
fn distance(results: &RefCell<Results>, when: &str, set: u32) -> Result<(), BenchError> {
    let figures = probe::distance_figures(probe::distance(DISTANCE), when);
    let name = format!("the cores, {when} set {set}");
    let record = Record::of(Kind::Probe, name, &figures).expect("there is a figure");
    write(results, Line::Measured(Record { set, ..record }))
}
