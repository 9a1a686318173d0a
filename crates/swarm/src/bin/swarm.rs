//! Runs many seeds of a subject and says what they met:
//! `cargo run --release --example sim -- [SUBJECT] [--seeds N] [--from S] [--seed S [--tell]]`.
//!
//! Every 20th seed is run twice; the fingerprints must match. Exits non-zero after the first violation.

use std::process::ExitCode;
use std::time::Instant;

use replikit_sim::FaultCounts;
use replikit_swarm::{Telling, scenario};

struct Arguments {
    subject: String,
    first: u64,
    seeds: u64,
    telling: Telling,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments { subject: "raft".to_owned(), first: 0, seeds: 1000, telling: Telling::Silent };
    let mut left = std::env::args().skip(1);
    while let Some(argument) = left.next() {
        let mut number = |name| -> Result<u64, String> {
            let value = left.next().ok_or(format!("{name} needs a number"))?;
            value.parse().map_err(|_| format!("{name}: {value} is not a number"))
        };
        match argument.as_str() {
            "--seeds" => arguments.seeds = number("--seeds")?,
            "--seed" => (arguments.first, arguments.seeds) = (number("--seed")?, 1),
            "--from" => arguments.first = number("--from")?,
            "--tell" => arguments.telling = Telling::Aloud,
            subject if !subject.starts_with('-') => subject.clone_into(&mut arguments.subject),
            other => return Err(format!("{other}: unknown; known are --seeds N, --from S, --seed S, --tell")),
        }
    }
    Ok(arguments)
}

fn play(arguments: &Arguments) -> Result<(), String> {
    let run = scenario(&arguments.subject)?;
    let (mut total, mut met) = (FaultCounts::default(), FaultCounts::default());
    let (mut answered, mut events, mut inputs) = (Vec::new(), 0, 0);
    let began = Instant::now();
    for seed in arguments.first..arguments.first + arguments.seeds {
        let one = run(seed, arguments.telling)?;
        if (seed.is_multiple_of(20) || arguments.seeds == 1) && run(seed, Telling::Silent)? != one {
            return Err(format!("seed {seed}: two runs differ"));
        }
        total.add(&one.counts);
        met.add_met(&one.counts);
        answered.push(one.answered);
        events += one.events;
        inputs += one.inputs;
    }
    let seconds = began.elapsed().as_secs_f64();
    answered.sort_unstable();
    println!("{} seeds of {}, {:.1} s", arguments.seeds, arguments.subject, seconds);
    println!("{:>12.1}  seeds/s", arguments.seeds as f64 / seconds);
    println!("{:>12.0}  events/s", events as f64 / seconds);
    println!("{:>12.0}  inputs/s", inputs as f64 / seconds);
    println!("{:>12}  operations answered, median of a seed", answered[answered.len() / 2]);
    println!("faults met:\n{total}");
    println!("seeds that met each:\n{met}");
    Ok(())
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| play(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
