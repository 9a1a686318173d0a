//! The results of a run as JSON lines: about the run, the engines, and one line for each thing that was measured. Every output
//! is made from them, so that a figure is shown nowhere that is not in the file.
//!
//! Invariants: the first line is [`Line::Run`]; a line never changes its meaning without a new [`SCHEMA_VERSION`]; each line is
//! on its way to the disk when it is written, and one that was cut off by a crash is dropped when the file is opened again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::figure::{Better, Figure};
use crate::machine::{Machine, Versions};
use crate::recorder::Latencies;
use crate::slow_down::PLANTED;

/// Version of the lines' fields.
pub const SCHEMA_VERSION: u32 = 2;
/// The file's name in a run's folder.
pub const FILE_NAME: &str = "results.jsonl";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// What was measured where. The first one.
    Run(Header),
    /// The run went on in a new process.
    Resumed(Resumed),
    /// How an engine was set up.
    Engine(EngineLine),
    /// Something that was measured.
    Measured(Record),
    /// What the nodes of an engine counted that only their strategy counts.
    Remark(Remark),
    /// Something that could not be measured.
    Failed(Failed),
}

/// What was measured where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// When the run began, in seconds since the Unix epoch, as the wall clock claims.
    pub began: u64,
    /// The machine.
    pub machine: Machine,
    /// Compiler and crates.
    pub versions: Versions,
    /// Commit of the sources; `unknown` outside a repository.
    pub commit: String,
    /// Whether the sources differ from that commit.
    pub dirty: bool,
    /// What all randomness of the run comes from.
    pub seed: u64,
    /// What was asked for: the command line's part that decides what is measured.
    pub asked: String,
    /// How often each case is measured, the others in between; 0 where that does not apply.
    pub rounds: u32,
}

impl Header {
    /// The machine and the sources in one line, for people.
    #[must_use]
    pub fn line(&self) -> String {
        let machine = &self.machine;
        format!(
            "{}, {} cores, {} MiB, {}, data on {}; {}; commit {}{}; seed {}",
            machine.cpu,
            machine.cores,
            machine.memory_mib,
            machine.kernel,
            machine.file_system,
            self.versions.rustc,
            self.commit,
            if self.dirty { " with changes" } else { "" },
            self.seed,
        )
    }
}

/// A run went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// Commit of the sources then.
    pub commit: String,
    /// Whether the sources differed from that commit.
    pub dirty: bool,
}

/// How an engine was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineLine {
    /// The engine and its setup, as in the headings of the tables.
    pub engine: String,
    /// Names and values: programs, arguments, versions, connections.
    pub configuration: BTreeMap<String, String>,
}

/// What the nodes of an engine counted that only their strategy counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// The engine and its setup.
    pub engine: String,
    /// In which round.
    pub round: u32,
    /// A line for each node.
    pub told: Vec<String>,
}

/// Something that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The machine alone.
    Probe,
    /// A load on an engine.
    Case,
    /// A rate of an open-loop sweep.
    Sweep,
    /// Writers that get in each other's way.
    Replication,
    /// A load around a fault.
    Fault,
    /// The protocol without sockets and disks.
    Protocol,
    /// The log alone.
    Log,
    /// Routes, plans, handoffs and groups of a partitioned store.
    Partitioning,
    /// A model that was calibrated by measurements; no measurement itself.
    Model,
    /// A load on one of ours or on another system, both in turn.
    Peer,
}

/// One thing that was measured once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// The same in each round and each run; different from that of everything else.
    pub name: String,
    /// Which engine, or `machine` for probes.
    pub engine: String,
    /// How it was set up: what distinguishes it from the same engine in another row, guarantees included.
    pub settings: BTreeMap<String, String>,
    /// What was done.
    pub workload: String,
    /// How many clients at once; 0 where there is no client, or no fixed number.
    pub clients: u32,
    /// Which repetition, from 1.
    pub round: u32,
    /// Which set of cases it was measured in: the probes of the same number were taken right before and after it. 0 for none.
    pub set: u32,
    /// The figures.
    pub figures: Vec<Value>,
    /// Figures over a quantity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<Curve>,
    /// What happened when, in seconds of the curve over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
    /// What is worth knowing beside the figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wrong results, in words; none in a good run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
    /// Files of the run's folder with more about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw: Vec<String>,
}

/// A figure of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// What was measured.
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
}

/// A figure over a quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What.
    pub name: String,
    /// Unit of the first coordinate.
    pub x_unit: String,
    /// Unit of the second coordinate.
    pub y_unit: String,
    /// The points, by ascending first coordinate.
    pub points: Vec<(f64, f64)>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When, in seconds.
    pub at: f64,
    /// What.
    pub what: String,
}

impl Record {
    /// The figures of one subject as a record. `None` where there is no figure.
    #[must_use]
    pub fn of(kind: Kind, name: impl Into<String>, figures: &[Figure]) -> Option<Self> {
        let first = figures.first()?;
        let values = figures.iter().map(|figure| Value {
            metric: figure.metric.clone(),
            value: figure.value,
            unit: figure.unit.clone(),
            better: figure.better,
        });
        Some(Self {
            kind,
            name: name.into(),
            engine: first.engine.clone(),
            settings: first.settings.clone(),
            workload: first.workload.clone(),
            clients: first.clients,
            round: 1,
            set: 0,
            figures: values.collect(),
            curves: Vec::new(),
            marks: Vec::new(),
            notes: Vec::new(),
            wrong: Vec::new(),
            raw: Vec::new(),
        })
    }

    /// The value of a metric.
    #[must_use]
    pub fn value(&self, metric: &str) -> Option<f64> {
        self.figures.iter().find(|value| value.metric == metric).map(|value| value.value)
    }

    /// A curve by its name.
    #[must_use]
    pub fn curve(&self, name: &str) -> Option<&Curve> {
        self.curves.iter().find(|curve| curve.name == name)
    }

    /// A setting, or nothing.
    #[must_use]
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }
}

/// Why a results file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read. Blame: the caller, or the file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line other than the last one is no line of a results file. Blame: whoever wrote it.
    #[error("{path}, line {line}: {why}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It was written with other fields. Blame: nobody; measure again.
    #[error("{path} has results of schema {found}, and this program reads schema {SCHEMA_VERSION}")]
    Schema {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Everything that a results file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// About the run.
    pub header: Header,
    /// When it went on.
    pub resumed: Vec<Resumed>,
    /// How the engines were set up, in the order in which they were started first.
    pub engines: Vec<EngineLine>,
    /// What was measured, in that order.
    pub records: Vec<Record>,
    /// What nodes counted that only their strategy counts.
    pub remarks: Vec<Remark>,
    /// What could not be measured.
    pub failures: Vec<Failed>,
}

impl Run {
    /// A run that has just begun.
    #[must_use]
    pub const fn new(header: Header) -> Self {
        Self {
            header,
            resumed: Vec::new(),
            engines: Vec::new(),
            records: Vec::new(),
            remarks: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Reads a results file, or the one in a folder. A last line without an end is left out.
    ///
    /// # Errors
    /// When it cannot be read, or is not of this schema.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
        let text = std::fs::read_to_string(&path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
        Self::parse(&path, &text)
    }

    /// The same for the file's text.
    ///
    /// # Errors
    /// When it is not of this schema.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ReadError> {
        let malformed = |line: usize, why: String| ReadError::Malformed { path: path.to_owned(), line, why };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let mut lines = whole.lines().enumerate();
        let (_, first) = lines.next().ok_or_else(|| malformed(1, "the file is empty".to_owned()))?;
        let plain: serde_json::Value = serde_json::from_str(first).map_err(|error| malformed(1, error.to_string()))?;
        let schema = plain.get("schema").and_then(serde_json::Value::as_u64);
        let schema = schema.ok_or_else(|| malformed(1, "no schema version".to_owned()))? as u32;
        if schema != SCHEMA_VERSION {
            return Err(ReadError::Schema { path: path.to_owned(), found: schema });
        }
        let Line::Run(header) = serde_json::from_str(first).map_err(|error| malformed(1, error.to_string()))? else {
            return Err(malformed(1, "the first line is not about the run".to_owned()));
        };
        let mut run = Self::new(header);
        for (at, line) in lines {
            run.add(serde_json::from_str(line).map_err(|error| malformed(at + 1, error.to_string()))?);
        }
        Ok(run)
    }

    /// Takes in a line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Run(header) => self.header = header,
            Line::Resumed(resumed) => self.resumed.push(resumed),
            Line::Engine(engine) => {
                if !self.engines.iter().any(|known| known.engine == engine.engine) {
                    self.engines.push(engine);
                }
            }
            Line::Measured(record) => self.records.push(record),
            Line::Remark(remark) => self.remarks.push(remark),
            Line::Failed(failed) => self.failures.push(failed),
        }
    }

    /// The records of a kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.kind == kind)
    }

    /// Whether this was measured in this round.
    #[must_use]
    pub fn has(&self, name: &str, round: u32) -> bool {
        self.records.iter().any(|record| record.name == name && record.round == round)
    }

    /// The slow-down that was planted in what was measured, in words: such a run is there to test comparisons, and says nothing
    /// about speed.
    #[must_use]
    pub fn planted(&self) -> Option<&str> {
        self.records.iter().find_map(|record| record.settings.get(PLANTED)).map(String::as_str)
    }

    /// Wrong results and failures, in words: none in a good run.
    #[must_use]
    pub fn faults_found(&self) -> Vec<String> {
        let wrong = self.records.iter().flat_map(|record| &record.wrong).map(|what| format!("WRONG RESULT: {what}"));
        let failed = self.failures.iter().map(|failed| format!("NOT MEASURED: {}: {}", failed.what, failed.why));
        wrong.chain(failed).collect()
    }
}

/// The open results file of a run, what it holds so far, and the histograms beside it.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    lines: BufWriter<File>,
    run: Run,
    histograms: u32,
}

impl Results {
    /// Creates the file in `folder` and writes the header.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(folder: &Path, header: Header) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let lines = BufWriter::new(File::create(folder.join(FILE_NAME))?);
        let mut results = Self { folder: folder.to_owned(), lines, run: Run::new(header.clone()), histograms: 0 };
        results.line(&Line::Run(header))?;
        Ok(results)
    }

    /// Opens the file of a run that was cut short, which reads as `run`, and drops a line that was cut off.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn go_on(folder: &Path, run: Run, resumed: Resumed) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        let text = std::fs::read(&path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let file = File::options().append(true).open(&path)?;
        file.set_len(whole as u64)?;
        let histograms = run.records.iter().map(|record| record.raw.len() as u32).sum();
        let mut results = Self { folder: folder.to_owned(), lines: BufWriter::new(file), run, histograms };
        results.write(Line::Resumed(resumed))?;
        Ok(results)
    }

    /// Where the results lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was written so far.
    #[must_use]
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, line: Line) -> io::Result<()> {
        self.line(&line)?;
        self.run.add(line);
        Ok(())
    }

    /// Writes a histogram into a file of its own; the file's name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_histogram(&mut self, name: &str, latencies: &Latencies) -> io::Result<String> {
        self.histograms += 1;
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let name = format!("{:03}-{plain}.hgrm", self.histograms);
        let mut file = BufWriter::new(File::create(self.folder.join(&name))?);
        latencies.write_percentiles(&mut file)?;
        file.flush()?;
        Ok(name)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.lines, line)?;
        self.lines.write_all(b"\n")?;
        self.lines.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Subject;

    fn header() -> Header {
        Header {
            schema: SCHEMA_VERSION,
            began: 1,
            machine: Machine::describe(Path::new(".")),
            versions: Versions { rustc: "1".to_owned(), replikit: "2".to_owned() },
            commit: "unknown".to_owned(),
            dirty: false,
            seed: u64::MAX,
            asked: "--suite smoke".to_owned(),
            rounds: 2,
        }
    }

    fn record() -> Record {
        let mut subject = Subject { engine: "single-leader".to_owned(), clients: 64, ..Subject::default() };
        subject.settings.insert("write".to_owned(), "Quorum".to_owned());
        let figure = subject.figure("latency p99", 123.456, "us", Better::Lower);
        let mut record = Record::of(Kind::Case, "single-leader: all", &[figure]).expect("there is a figure");
        record.curves.push(Curve {
            name: "staleness".to_owned(),
            x_unit: "us".to_owned(),
            y_unit: "1".to_owned(),
            points: vec![(0.0, 1.0), (2.5, 0.001)],
        });
        record
    }

    #[test]
    fn a_results_file_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut results = Results::create(folder.path(), header()).expect("the file is created");
        let configuration = [("program".to_owned(), "x".to_owned())].into();
        results
            .write(Line::Engine(EngineLine { engine: "single-leader".to_owned(), configuration }))
            .and_then(|()| results.write(Line::Measured(record())))
            .and_then(|()| results.write(Line::Failed(Failed { what: "b".to_owned(), why: "c".to_owned() })))
            .expect("the lines are written");
        let histogram = results.write_histogram("single-leader 50/50", &Latencies::new()).expect("it is written");
        assert!(folder.path().join(&histogram).exists(), "{histogram}");
        let read = Run::read(folder.path()).expect("it reads back");
        assert_eq!(&read, results.run());
        assert_eq!((read.engines.len(), read.records.len(), read.failures.len()), (1, 1, 1));
        assert!(read.has("single-leader: all", 1) && !read.has("single-leader: all", 2));
    }

    #[test]
    fn a_run_that_was_cut_off_in_a_line_goes_on_behind_the_last_whole_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut results = Results::create(folder.path(), header()).expect("the file is created");
        results.write(Line::Measured(record())).expect("it is written");
        drop(results);
        let path = folder.path().join(FILE_NAME);
        let mut torn = std::fs::read_to_string(&path).expect("it is there");
        torn.push_str("{\"line\":\"meas");
        std::fs::write(&path, torn).expect("it is written");
        let run = Run::read(folder.path()).expect("the torn line is left out");
        assert_eq!(run.records.len(), 1);
        let resumed = Resumed { at: 2, commit: "x".to_owned(), dirty: true };
        let mut results = Results::go_on(folder.path(), run, resumed).expect("it is opened");
        results.write(Line::Measured(Record { round: 2, ..record() })).expect("it is written");
        let run = Run::read(folder.path()).expect("it reads back");
        assert_eq!((run.records.len(), run.resumed.len()), (2, 1));
    }

    #[test]
    fn results_of_another_schema_are_refused_by_its_number() {
        let told = |text: &str| Run::parse(Path::new("x"), text).expect_err("it is refused").to_string();
        assert!(told("{\"schema\":1,\"began\":3}\n").contains("schema 1"), "older ones have no kind of line");
        assert!(told("{\"line\":\"run\",\"schema\":9}\n").contains("schema 9"));
        assert!(told("").contains("empty"));
        assert!(told("no json\n").contains("line 1"));
    }

    #[test]
    fn a_record_has_exactly_the_documented_fields() {
        let value = serde_json::to_value(Line::Measured(record())).expect("it encodes");
        let mut fields: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        let expected =
            ["clients", "curves", "engine", "figures", "kind", "line", "name", "round", "set", "settings", "workload"];
        assert_eq!(fields, expected, "lists that are empty are left out");
        assert_eq!(value["line"], "measured");
        assert_eq!(value["kind"], "case");
        assert_eq!(value["figures"][0]["better"], "lower");
    }
}
