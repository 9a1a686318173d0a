//! The hunt for one planted bug: the simulator with the bug in it, over ranges of seeds, each until the first violation.
//!
//! Invariant: a seed counts as a catch only if the sources as they are pass every seed up to it.

use core::fmt;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use super::interrupt;

/// Seeds that one call of the simulator runs: between two calls, progress is shown and Ctrl-C is seen.
const PIECE_SEEDS: u64 = 32;
/// One piece takes at most this long, on a machine that has other work too: a bug may make a seed run for ever.
const PIECE_TIME_MAX: Duration = Duration::from_secs(900);
/// Distance between the first seeds of two ranges.
const RANGE_STEP: u64 = 1_000_000;

pub(crate) struct Hunt<'a> {
    pub(crate) planted: &'a Path,
    pub(crate) clean: &'a Clean,
    pub(crate) strategy: &'a str,
    pub(crate) seeds: u64,
}

/// The simulator of the sources as they are, and what it has passed: every bug of a scenario is hunted in the same ranges.
pub(crate) struct Clean {
    program: PathBuf,
    /// Seeds passed, by scenario and first seed of the range.
    passed: Mutex<BTreeMap<(String, u64), u64>>,
}

/// How far a hunt has come: on the terminal, and in the line that is printed when it has ended.
pub(crate) struct Pace {
    bar: ProgressBar,
    began: Instant,
    ranges: u64,
    /// Seeds run, with the bug and without.
    seeds: AtomicU64,
    ended: AtomicU64,
}

impl Pace {
    pub(crate) fn new(ranges: u64) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("    {elapsed_precise} {msg}").expect("a constant template"));
        Self { bar, began: Instant::now(), ranges, seeds: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    fn add(&self, seeds: u64) {
        self.seeds.fetch_add(seeds, Ordering::Relaxed);
        self.bar.set_message(self.to_string());
        self.bar.tick();
    }

    fn range_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.add(0);
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seeds, ended) = (self.seeds.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
        let took = self.began.elapsed().as_secs_f64().max(1e-9);
        write!(f, "{ended} of {} ranges, {seeds} seeds, {:.0} seeds/s", self.ranges, seeds as f64 / took)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Clean {
    pub(crate) const fn new(program: PathBuf) -> Self {
        Self { program, passed: Mutex::new(BTreeMap::new()) }
    }

    /// Whether it passes so many seeds of a range; those that it has passed before are not run again.
    fn passes(&self, strategy: &str, from: u64, seeds: u64, pace: &Pace) -> Result<Option<Summary>, String> {
        let range = (strategy.to_owned(), from);
        let before = self.passed.lock().expect("no worker panics").get(&range).copied().unwrap_or_default();
        if seeds <= before {
            return Ok(Some(Summary { failure: None }));
        }
        let summary = play(&self.program, strategy, from + before, seeds - before, pace)?;
        if let Some(Summary { failure: None }) = summary {
            self.passed.lock().expect("no worker panics").insert(range, seeds);
        }
        Ok(summary)
    }
}

/// What the simulator's program says of a run, as far as it matters here.
#[derive(Deserialize)]
struct Summary {
    failure: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    seed: u64,
    invariant: String,
}

/// What became of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// Found after so many seeds, by this check.
    Found {
        seeds: u64,
        by: String,
    },
    Missed,
    /// The sources without the bug fail too: at this seed.
    Unclean {
        seed: u64,
    },
    /// It did not end.
    Hung,
}

/// What became of a bug.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catch {
    ranges: Vec<Range>,
}

impl Catch {
    #[cfg(test)]
    pub(crate) const fn of(ranges: Vec<Range>) -> Self {
        Self { ranges }
    }

    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Seeds to detection, ascending.
    pub(crate) fn seeds(&self) -> Vec<u64> {
        let found = |range: &Range| match range {
            Range::Found { seeds, .. } => Some(*seeds),
            _ => None,
        };
        let mut seeds: Vec<u64> = self.ranges.iter().filter_map(found).collect();
        seeds.sort_unstable();
        seeds
    }

    /// The checks that found it, the most frequent first.
    pub(crate) fn checks(&self) -> Vec<(String, usize)> {
        let mut checks: Vec<(String, usize)> = Vec::new();
        for range in &self.ranges {
            if let Range::Found { by, .. } = range {
                match checks.iter_mut().find(|(known, _)| known == by) {
                    Some((_, count)) => *count += 1,
                    None => checks.push((by.clone(), 1)),
                }
            }
        }
        checks.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
        checks
    }
}

impl fmt::Display for Catch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.seeds();
        write!(f, "found in {} of {} ranges", seeds.len(), self.ranges.len())?;
        if let (Some(median), Some(most)) = (seeds.get(seeds.len() / 2), seeds.last()) {
            write!(f, "; seeds to detection: median {median}, most {most}")?;
        }
        for (check, count) in self.checks() {
            write!(f, "; {count} by {check}")?;
        }
        for range in &self.ranges {
            match range {
                Range::Unclean { seed } => write!(f, "; WITHOUT THE BUG seed {seed} fails too")?,
                Range::Hung => write!(f, "; a range did not end")?,
                Range::Found { .. } | Range::Missed => {}
            }
        }
        Ok(())
    }
}

impl Hunt<'_> {
    /// Hunts in so many ranges, on all cores.
    pub(crate) fn run(&self, bases: u64, pace: &Pace) -> Result<Catch, String> {
        let next = Mutex::new(0..bases);
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let Some(base) = next.lock().expect("no worker panics").next() else { return };
                        let range = self.range(base * RANGE_STEP, pace);
                        pace.range_ended();
                        results.lock().expect("no worker panics").push((base, range));
                    }
                });
            }
        });
        let mut results = results.into_inner().expect("no worker panics");
        results.sort_by_key(|(base, _)| *base);
        let ranges = results.into_iter().map(|(_, range)| range).collect::<Result<_, _>>()?;
        Ok(Catch { ranges })
    }

    fn range(&self, from: u64, pace: &Pace) -> Result<Range, String> {
        let Some(summary) = play(self.planted, self.strategy, from, self.seeds, pace)? else { return Ok(Range::Hung) };
        let Some(Failure { seed, invariant }) = summary.failure else { return Ok(Range::Missed) };
        let seeds = seed - from + 1;
        match self.clean.passes(self.strategy, from, seeds, pace)? {
            None => Ok(Range::Hung),
            Some(Summary { failure: Some(Failure { seed, .. }) }) => Ok(Range::Unclean { seed }),
            Some(Summary { failure: None }) => Ok(Range::Found { seeds, by: invariant }),
        }
    }
}

/// Runs seeds to the first violation; `None` when a piece of them did not end in time.
fn play(program: &Path, strategy: &str, from: u64, seeds: u64, pace: &Pace) -> Result<Option<Summary>, String> {
    let end = from + seeds;
    for first in (from..end).step_by(PIECE_SEEDS as usize) {
        let piece = PIECE_SEEDS.min(end - first);
        match play_piece(program, strategy, first, piece)? {
            Some(Summary { failure: None }) => pace.add(piece),
            Some(Summary { failure: Some(failure) }) => {
                pace.add(failure.seed - first + 1);
                return Ok(Some(Summary { failure: Some(failure) }));
            }
            None => return Ok(None),
        }
    }
    Ok(Some(Summary { failure: None }))
}

fn play_piece(program: &Path, strategy: &str, from: u64, seeds: u64) -> Result<Option<Summary>, String> {
    interrupt::check()?;
    let mut command = Command::new(program);
    command.args(["--json", "--no-shrink", "--threads", "1", "--strategy", strategy]);
    command.args(["--from", &from.to_string(), "--seeds", &seeds.to_string()]);
    let Some((status, output)) = hear(command, PIECE_TIME_MAX)? else { return Ok(None) };
    // Ctrl-C ends it too, in the middle of its seeds.
    interrupt::check()?;
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line)
        .map(Some)
        .map_err(|error| format!("{seeds} seeds from {from} of {strategy}: no summary ({error}; {status})"))
}

/// What a program prints until it ends; `None` when it does not in time. It is read all the while: what breaks an invariant may
/// be a long story, and a program whose pipe is full waits.
fn hear(mut command: Command, time_max: Duration) -> Result<Option<(ExitStatus, Vec<u8>)>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let mut pipe = child.stdout.take().expect("piped above");
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        pipe.read_to_end(&mut output).map(|_| output)
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| format!("{name}: {error}"))? {
            break status;
        }
        let interrupted = interrupt::check();
        if began.elapsed() >= time_max || interrupted.is_err() {
            // It may also just have ended; either way it is not waited for any longer.
            let _ = child.kill();
            let _ = child.wait();
            return interrupted.map(|()| None);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = reader.join().expect("reading does not panic").map_err(|error| format!("{name}: {error}"))?;
    Ok(Some((status, output)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_says_more_than_a_pipe_holds_is_heard_to_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "yes | head -c 300000; echo '}'"]);
        let (status, output) = hear(command, Duration::from_secs(60)).expect("it starts").expect("it ends");
        assert!(status.success() && output.len() == 300_002, "{status}, {} bytes", output.len());
        assert!(output.ends_with(b"}\n"));
    }

    #[test]
    fn a_catch_counts_only_where_the_bug_and_nothing_else_was_found() {
        let found = |seeds, by: &str| Range::Found { seeds, by: by.to_owned() };
        let catch = Catch { ranges: vec![found(7, "b"), found(3, "a"), found(5, "b")] };
        assert_eq!((catch.seeds(), catch.checks()), (vec![3, 5, 7], vec![("b".to_owned(), 2), ("a".to_owned(), 1)]));
        for bad in [Range::Missed, Range::Hung, Range::Unclean { seed: 9 }] {
            let catch = Catch { ranges: vec![found(1, "a"), bad] };
            assert_eq!((catch.seeds(), catch.checks()), (vec![1], vec![("a".to_owned(), 1)]));
        }
    }
}
