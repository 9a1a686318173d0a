//! Figures and the file that holds them: JSON lines, the first one about the run, then one per figure.
//!
//! Invariant: every number that is shown anywhere is in the file; a field never changes its meaning without a new
//! [`SCHEMA_VERSION`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Versions};
use crate::recorder::Latencies;

/// Version of the lines' fields.
pub const SCHEMA_VERSION: u32 = 1;

/// The first line: what was measured where.
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
}

/// Which direction of a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It explains other figures and is itself neither good nor bad.
    Neither,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Which engine, or `machine` for probes.
    pub engine: String,
    /// How it was set up: what distinguishes it from the same engine in another row, guarantees included.
    pub settings: BTreeMap<String, String>,
    /// What was done.
    pub workload: String,
    /// How many clients at once; 0 where there is no client.
    pub clients: u32,
    /// What was measured.
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
}

/// What a set of figures has in common.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// See [`Figure::engine`].
    pub engine: String,
    /// See [`Figure::settings`].
    pub settings: BTreeMap<String, String>,
    /// See [`Figure::workload`].
    pub workload: String,
    /// See [`Figure::clients`].
    pub clients: u32,
}

impl Subject {
    /// A figure of this subject.
    #[must_use]
    pub fn figure(&self, metric: &str, value: f64, unit: &str, better: Better) -> Figure {
        Figure {
            engine: self.engine.clone(),
            settings: self.settings.clone(),
            workload: self.workload.clone(),
            clients: self.clients,
            metric: metric.to_owned(),
            value,
            unit: unit.to_owned(),
            better,
        }
    }
}

/// The open results file of a run, and the histograms beside it. Each line is on its way to the disk when it is written, so
/// that a run that is cut short keeps what it has.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    lines: BufWriter<File>,
    histograms: u32,
}

impl Results {
    /// Creates `results.jsonl` in `folder` and writes the header.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(folder: &Path, header: &Header) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let lines = BufWriter::new(File::create(folder.join("results.jsonl"))?);
        let mut results = Self { folder: folder.to_owned(), lines, histograms: 0 };
        results.line(header)?;
        Ok(results)
    }

    /// Where the results lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes one figure.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, figure: &Figure) -> io::Result<()> {
        self.line(figure)
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

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.lines, value)?;
        self.lines.write_all(b"\n")?;
        self.lines.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            schema: SCHEMA_VERSION,
            began: 1,
            machine: Machine::describe(Path::new(".")),
            versions: Versions { rustc: "1".to_owned(), replikit: "2".to_owned() },
            commit: "unknown".to_owned(),
            dirty: false,
            seed: u64::MAX,
        }
    }

    #[test]
    fn a_results_file_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut results = Results::create(folder.path(), &header()).expect("the file is created");
        let mut subject = Subject { engine: "single-leader".to_owned(), clients: 64, ..Subject::default() };
        subject.settings.insert("write".to_owned(), "Quorum".to_owned());
        let figure = subject.figure("latency p99", 123.456, "us", Better::Lower);
        results.write(&figure).expect("the line is written");
        let histogram = results.write_histogram("single-leader 50/50", &Latencies::new()).expect("it is written");
        assert!(folder.path().join(&histogram).exists(), "{histogram}");

        let text = std::fs::read_to_string(folder.path().join("results.jsonl")).expect("the file is there");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(serde_json::from_str::<Header>(lines[0]).expect("a header"), header());
        assert_eq!(serde_json::from_str::<Figure>(lines[1]).expect("a figure"), figure);
    }

    #[test]
    fn a_figure_has_exactly_the_documented_fields() {
        let figure = Subject::default().figure("throughput", 1.0, "1/s", Better::Higher);
        let value = serde_json::to_value(figure).expect("it encodes");
        let mut fields: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["better", "clients", "engine", "metric", "settings", "unit", "value", "workload"]);
        assert_eq!(value["better"], "higher");
    }
}
