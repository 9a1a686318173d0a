//! A trace: every operation of a run, drawn from a seed before the run begins, or recorded elsewhere. All engines play the
//! same one.
//!
//! Invariant: a trace is a value; equal mixes and seeds draw equal traces, on any machine.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::keys::KeyDraw;
use super::mix::{CLIENTS_MAX, KEYS_MAX, Mix, Operation};
use crate::workload::VALUE_BYTES_MIN;

/// Most steps of a trace.
pub const STEPS_MAX: usize = 20_000_000;
/// The first line of a recorded trace.
pub const CSV_HEADER: &str = "at_us,client,operation,key,size";

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it is due, in microseconds since the beginning; 0 throughout where clients do not wait.
    pub at_us: u64,
    /// Whose it is, from 0.
    pub client: u32,
    /// What.
    pub operation: Operation,
    /// Which key, from 0; nothing for appends, whose key follows from the client.
    pub key: u32,
    /// Bytes of the value; keys of a scan.
    pub size: u32,
}

/// All operations of a run, in the order in which they are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    steps: Vec<Step>,
    clients: u32,
    /// Records that are there before it begins.
    loaded: u32,
    /// The largest key is below.
    keys: u32,
    value_bytes_max: u32,
}

/// Why a recorded trace cannot be played. Blame: who recorded it.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The first line names other columns, or none.
    #[error("{}:1: the first line must be `{CSV_HEADER}`", file.display())]
    Header {
        /// Which file.
        file: PathBuf,
    },
    /// A line without a value, or with one that cannot be.
    #[error("{}:{line}: `{column}` must be {expected}", file.display())]
    Cell {
        /// Which file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column.
        column: &'static str,
        /// What it can be.
        expected: String,
    },
    /// No operation, or more than [`STEPS_MAX`].
    #[error("{}: a trace has 1 to {STEPS_MAX} operations", file.display())]
    Length {
        /// Which file.
        file: PathBuf,
    },
}

impl Trace {
    /// Draws so many operations of a mix.
    #[must_use]
    pub fn draw(mix: &Mix, seed: u64, steps: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut keys = KeyDraw::new(mix.spread, mix.keys);
        let total = mix.weight();
        let steps = (0..steps.min(STEPS_MAX))
            .map(|number| {
                let mut left = rng.u64(..total);
                let chosen = mix.weights.iter().find(|(_, weight)| {
                    let hit = left < u64::from(*weight);
                    left = left.saturating_sub(u64::from(*weight));
                    hit
                });
                let operation = chosen.map_or(mix.weights[0].0, |(operation, _)| *operation);
                let room = keys.present() < KEYS_MAX;
                let key = if operation == Operation::Insert && room { keys.insert() } else { keys.draw(&mut rng) };
                let size = match operation {
                    Operation::Scan => rng.u32(1..=mix.scan_keys),
                    _ => rng.u32(mix.value_bytes.0..=mix.value_bytes.1),
                };
                Step { at_us: 0, client: number as u32 % mix.clients, operation, key, size }
            })
            .collect();
        let (clients, keys, value_bytes_max) = (mix.clients, keys.present(), mix.value_bytes.1);
        Self { steps, clients, loaded: mix.keys, keys, value_bytes_max }
    }

    /// Reads a recorded trace: comma-separated values with the columns of [`CSV_HEADER`]. What it writes first by an insert is
    /// not there before it begins; all other keys are.
    ///
    /// # Errors
    /// [`TraceError`] with line and column.
    pub fn parse(file: &Path, text: &str) -> Result<Self, TraceError> {
        let named = || file.to_owned();
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, first)| first.trim() != CSV_HEADER) {
            return Err(TraceError::Header { file: named() });
        }
        let mut steps: Vec<Step> = Vec::new();
        for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let mut cells = line.split(',').map(str::trim);
            let number = |column, range: std::ops::RangeInclusive<u64>, text: Option<&str>| {
                let found = text.and_then(|text| text.parse::<u64>().ok()).filter(|found| range.contains(found));
                found.ok_or_else(|| TraceError::Cell {
                    file: named(),
                    line: at + 1,
                    column,
                    expected: format!("a whole number from {} to {}", range.start(), range.end()),
                })
            };
            let earlier = steps.last().map_or(0, |step| step.at_us);
            let at_us = number("at_us", earlier..=u64::MAX >> 10, cells.next())?;
            let client = number("client", 0..=u64::from(CLIENTS_MAX) - 1, cells.next())? as u32;
            let operation = cells.next().and_then(Operation::named).ok_or_else(|| {
                let names: Vec<&str> = Operation::ALL.iter().map(|operation| operation.name()).collect();
                let expected = format!("one of {}", names.join(", "));
                TraceError::Cell { file: named(), line: at + 1, column: "operation", expected }
            })?;
            let key = number("key", 0..=u64::from(KEYS_MAX) - 1, cells.next())? as u32;
            let size = number("size", 0..=1 << 20, cells.next())? as u32;
            if cells.next().is_some() {
                let expected = "the last column".to_owned();
                return Err(TraceError::Cell { file: named(), line: at + 1, column: "size", expected });
            }
            steps.push(Step { at_us, client, operation, key, size });
        }
        if steps.is_empty() || steps.len() > STEPS_MAX {
            return Err(TraceError::Length { file: named() });
        }
        let clients = steps.iter().map(|step| step.client + 1).max().unwrap_or(1);
        let keys = steps.iter().map(|step| step.key + 1).max().unwrap_or(1);
        let inserted = steps.iter().filter(|step| step.operation == Operation::Insert).map(|step| step.key).min();
        let sizes = steps.iter().filter(|step| step.operation != Operation::Scan).map(|step| step.size);
        let value_bytes_max = sizes.max().unwrap_or(0).max(VALUE_BYTES_MIN as u32);
        Ok(Self { steps, clients, loaded: inserted.unwrap_or(keys), keys, value_bytes_max })
    }

    /// Reads a recorded trace from a file.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn read(file: &Path) -> Result<Self, TraceError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| TraceError::Unreadable { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    /// The trace as comma-separated values, as [`Trace::parse`] reads them.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = format!("{CSV_HEADER}\n");
        for Step { at_us, client, operation, key, size } in &self.steps {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{at_us},{client},{operation},{key},{size}");
        }
        text
    }

    /// The operations.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The operations of each client, in their order.
    #[must_use]
    pub fn by_client(&self) -> Vec<Vec<Step>> {
        let mut clients = vec![Vec::new(); self.clients as usize];
        for step in &self.steps {
            clients[step.client as usize].push(*step);
        }
        clients
    }

    /// How many clients there are.
    #[must_use]
    pub const fn clients(&self) -> u32 {
        self.clients
    }

    /// How many records are there before it begins: those with smaller numbers.
    #[must_use]
    pub const fn loaded(&self) -> u32 {
        self.loaded
    }

    /// How many keys there are at its end.
    #[must_use]
    pub const fn keys(&self) -> u32 {
        self.keys
    }

    /// Size of the largest value.
    #[must_use]
    pub const fn value_bytes_max(&self) -> u32 {
        self.value_bytes_max
    }

    /// The operations that occur, each once.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        let occurs = |operation: &Operation| self.steps.iter().any(|step| step.operation == *operation);
        Operation::ALL.into_iter().filter(occurs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(name: &str) -> Mix {
        Mix::built_in(name).expect("it is built in")
    }

    #[test]
    fn the_same_seed_draws_the_same_trace() {
        let mix = mix("ycsb-a");
        assert_eq!(Trace::draw(&mix, 1, 500), Trace::draw(&mix, 1, 500));
        assert_ne!(Trace::draw(&mix, 1, 500), Trace::draw(&mix, 2, 500));
    }

    #[test]
    fn the_weights_are_kept() {
        let trace = Trace::draw(&mix("ycsb-d"), 7, 20_000);
        let inserts = trace.steps().iter().filter(|step| step.operation == Operation::Insert).count();
        assert!((900..1_100).contains(&inserts), "{inserts} of 20000 are to be 5 %");
        assert_eq!(trace.keys(), trace.loaded() + inserts as u32);
        assert_eq!(trace.operations(), [Operation::Read, Operation::Insert]);
        assert_eq!(trace.by_client().iter().map(Vec::len).sum::<usize>(), 20_000);
    }

    #[test]
    fn a_trace_survives_its_file() {
        let trace = Trace::draw(&mix("carts"), 3, 1_000);
        let read = Trace::parse(Path::new("recorded.csv"), &trace.csv()).expect("it is a trace");
        assert_eq!(read.steps(), trace.steps());
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_with_its_line() {
        let told = |rows: &str| {
            let text = format!("{CSV_HEADER}\n0,0,read,1,0\n{rows}\n");
            Trace::parse(Path::new("recorded.csv"), &text).expect_err("it is wrong").to_string()
        };
        assert!(told("0,0,reed,1,0").starts_with("recorded.csv:3: `operation` must be one of read, update"));
        assert_eq!(told("0,1024,read,1,0"), "recorded.csv:3: `client` must be a whole number from 0 to 1023");
        assert!(told("0,0,read,,0").starts_with("recorded.csv:3: `key` must be"));
        assert!(told("5,0,read,1,0\n4,0,read,1,0").starts_with("recorded.csv:4: `at_us` must be"), "time goes back");
        assert!(told("0,0,read,1,0,9").starts_with("recorded.csv:3: `size` must be the last"));
        let header = Trace::parse(Path::new("recorded.csv"), "a,b\n").expect_err("no header").to_string();
        assert!(header.contains(CSV_HEADER), "{header}");
        assert!(Trace::parse(Path::new("r.csv"), &format!("{CSV_HEADER}\n")).is_err(), "an empty trace");
    }
}
