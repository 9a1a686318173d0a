//! What a run shows when it ends, or is cut short: the table with the guarantees beside the figures, and everything that was
//! wrong.

use replikit_core::{Guarantees, ReadGuarantee, WriteLevel};

use crate::figure::{Better, Figure, Subject};
use crate::load::{Measured, Reads};
use crate::recorder::Latencies;
use crate::suite::Case;
use crate::table::{Side, Table, count, latency};
use crate::verify::Verified;

/// Everything that one case found.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// What was run.
    pub case: Case,
    /// What it promises.
    pub guarantees: Guarantees,
    /// What the load found.
    pub measured: Measured,
    /// Calls of fsync and fdatasync on each node meanwhile.
    pub fsyncs: Vec<u64>,
    /// What was read back afterwards.
    pub verified: Verified,
    /// What writers that had not seen each other did; `None` where that does not happen.
    pub conflicts: Option<Conflicts>,
}

/// What writers that had not seen each other did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// Values that were overwritten by a write that had not seen them.
    pub overwritten: u64,
    /// Keys whose newest acknowledged value was among them, and is in the audit log.
    pub lost_audited: u64,
}

impl CaseReport {
    /// Whether acknowledged writes must be there as long as a majority of disks is.
    fn must_keep(&self) -> bool {
        // What another write won over is in the audit log, and was not counted as lost.
        self.conflicts.is_some()
            || self.guarantees.survives != replikit_core::Survival::Nothing
                && matches!(self.case.write_level, WriteLevel::Quorum | WriteLevel::Applied(_))
    }

    /// Wrong results, in words.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.measured.wrong > 0 {
            let told = self.measured.wrong_told.join("; ");
            wrong.push(format!("{}: {} wrong reads: {told}", self.case, self.measured.wrong));
        }
        if self.verified.foreign > 0 || (self.verified.lost > 0 && self.must_keep()) {
            let Verified { lost, foreign, told, .. } = &self.verified;
            wrong.push(format!(
                "{}: {lost} acked writes lost, {foreign} foreign values: {}",
                self.case,
                told.join("; ")
            ));
        }
        wrong
    }

    /// What is worth knowing beside the figures.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Measured { refused, failed, failure, .. } = &self.measured;
        if *refused + *failed > 0 {
            let example = failure.as_deref().unwrap_or("");
            notes.push(format!("{}: {refused} requests refused, {failed} failed (for example: {example})", self.case));
        }
        if self.verified.lost > 0 && !self.must_keep() {
            notes.push(format!("{}: {} acked writes lost, which this level permits", self.case, self.verified.lost));
        }
        if self.measured.staleness.count() > 0 {
            let staleness = &self.measured.staleness;
            notes.push(format!(
                "{}: staleness at the replicas p50 {}, p99 {}, max {}; {} of {} reads showed a superseded value",
                self.case,
                latency(staleness.quantile(0.5)),
                latency(staleness.quantile(0.99)),
                latency(staleness.max()),
                self.measured.stale_ages.count(),
                self.measured.reads_ever,
            ));
        }
        notes
    }

    /// Calls of fsync per write, per node.
    fn fsyncs_per_write(&self) -> Vec<f64> {
        let writes = self.measured.writes_ever.max(1) as f64;
        self.fsyncs.iter().map(|fsyncs| *fsyncs as f64 / writes).collect()
    }

    fn conflicts_per_million(&self) -> Option<f64> {
        let conflicts = self.conflicts?;
        Some(conflicts.overwritten as f64 * 1e6 / self.measured.writes_ever.max(1) as f64)
    }

    fn conflicts_shown(&self) -> String {
        self.conflicts_per_million().map_or_else(|| "-".to_owned(), count)
    }

    fn lost_shown(&self) -> String {
        format!("{}/{}", self.conflicts.map_or(0, |conflicts| conflicts.lost_audited), self.verified.lost)
    }

    fn reads_guarantee(&self) -> ReadGuarantee {
        match self.case.reads {
            Reads::Linearizable | Reads::Quorum | Reads::QuorumOfFewer => self.guarantees.reads,
            Reads::Session => ReadGuarantee::Session,
            Reads::Local => ReadGuarantee::Stale,
        }
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let (clients, pace) = match self.case.pace {
            crate::load::Pace::Closed { clients } => (clients, "closed loop".to_owned()),
            crate::load::Pace::Open { rate } => (0, format!("open loop at {rate}/s")),
        };
        let settings = [
            ("setup", self.case.engine.setup().to_owned()),
            ("write", self.case.mode()),
            ("reads", self.case.reads_shown().to_owned()),
            ("pace", pace),
            ("acknowledged", self.guarantees.acknowledged.clone()),
            ("survives", self.guarantees.survives.to_string()),
            ("read guarantee", self.reads_guarantee().to_string()),
        ];
        let subject = Subject {
            engine: self.case.engine.name().to_owned(),
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            workload: self.case.workload.to_string(),
            clients,
        };
        let measured = &self.measured;
        let mut figures = vec![
            subject.figure("throughput", measured.throughput(), "1/s", Better::Higher),
            subject.figure("requests refused", measured.refused as f64, "1", Better::Lower),
            subject.figure("requests failed", measured.failed as f64, "1", Better::Lower),
            subject.figure("wrong reads", measured.wrong as f64, "1", Better::Lower),
            subject.figure("acked writes lost", self.verified.lost as f64, "1", Better::Lower),
            subject.figure("keys read back", self.verified.keys as f64, "1", Better::Neither),
        ];
        let mut latencies = |name: &str, latencies: &Latencies| {
            if latencies.count() == 0 {
                return;
            }
            let quantiles = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
            let quantiles = quantiles.map(|(shown, share)| (shown, latencies.quantile(share)));
            for (shown, value) in quantiles.into_iter().chain([("max", latencies.max())]) {
                let micros = value.as_nanos() as f64 / 1e3;
                figures.push(subject.figure(&format!("{name} {shown}"), micros, "us", Better::Lower));
            }
        };
        latencies("write latency", &measured.writes);
        latencies("read latency", &measured.reads);
        latencies("send lag", &measured.send_lag);
        latencies("staleness", &measured.staleness);
        if measured.staleness.count() > 0 {
            let share = measured.stale_ages.count() as f64 / measured.reads_ever.max(1) as f64;
            figures.push(subject.figure("share of stale reads", share, "1", Better::Lower));
        }
        if let (Some(conflicts), Some(per_million)) = (self.conflicts, self.conflicts_per_million()) {
            figures.push(subject.figure("conflicts per 10^6 writes", per_million, "1", Better::Lower));
            let audited = conflicts.lost_audited as f64;
            figures.push(subject.figure("acked writes lost, audited", audited, "1", Better::Lower));
        }
        for (node, per_write) in self.fsyncs_per_write().into_iter().enumerate() {
            let metric = format!("fsyncs per write, node {}", node + 1);
            figures.push(subject.figure(&metric, per_write, "1", Better::Lower));
        }
        figures
    }

    /// One line for the progress.
    #[must_use]
    pub fn line(&self) -> String {
        let main = if self.measured.writes.count() >= self.measured.reads.count() {
            &self.measured.writes
        } else {
            &self.measured.reads
        };
        format!(
            "{} ops/s, p50 {}, p99 {}",
            count(self.measured.throughput()),
            latency(main.quantile(0.5)),
            latency(main.quantile(0.99))
        )
    }

    fn add_to(&self, table: &mut Table) {
        let heading = format!(
            "{}, {}: acked = {}; survives {}; reads {}",
            self.case.engine,
            self.case.mode(),
            self.guarantees.acknowledged,
            self.guarantees.survives,
            self.reads_guarantee(),
        );
        let fsyncs = self.fsyncs_per_write();
        let mean = fsyncs.iter().sum::<f64>() / fsyncs.len().max(1) as f64;
        let kinds = [("writes", &self.measured.writes), ("reads", &self.measured.reads)];
        let several = kinds.iter().filter(|(_, latencies)| latencies.count() > 0).count() > 1;
        for (kind, latencies) in kinds {
            if latencies.count() == 0 && (several || kind == "reads") {
                continue;
            }
            let name = if several { format!("{}, {kind}", self.case.workload) } else { self.case.workload.to_string() };
            table.row(
                &heading,
                vec![
                    name,
                    self.case.pace_shown(),
                    count(latencies.count() as f64 / self.measured.elapsed.as_secs_f64().max(1e-9)),
                    latency(latencies.quantile(0.5)),
                    latency(latencies.quantile(0.99)),
                    latency(latencies.quantile(0.999)),
                    latency(latencies.max()),
                    if kind == "writes" { format!("{mean:.3}") } else { "-".to_owned() },
                    if kind == "writes" { self.conflicts_shown() } else { "-".to_owned() },
                    if kind == "writes" { self.lost_shown() } else { "-".to_owned() },
                ],
            );
        }
    }
}

/// The table of all cases.
#[must_use]
pub fn table(reports: &[CaseReport]) -> String {
    let mut table = Table::new(vec![
        ("workload", Side::Left),
        ("clients", Side::Right),
        ("ops/s", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("p99.9", Side::Right),
        ("max", Side::Right),
        ("fsyncs/write/node", Side::Right),
        ("conflicts/10^6", Side::Right),
        ("lost: audited/silent", Side::Right),
    ]);
    for report in reports {
        report.add_to(&mut table);
    }
    table.render()
}
