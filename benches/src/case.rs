//! What one case found, and the record that is written of it.

use replikit_core::{Guarantees, ReadGuarantee, WriteLevel};

use crate::engine::Counted;
use crate::figure::{Better, Figure, Subject};
use crate::load::{Measured, Pace, Reads};
use crate::record::{Curve, Kind, Record};
use crate::recorder::Latencies;
use crate::suite::Case;
use crate::table::{count, latency};
use crate::usage::Usage;
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
    /// The percentage of a sweep, if it is a part of one.
    pub share: Option<u32>,
    /// What each node counted meanwhile.
    pub counted: Vec<Counted>,
    /// What its processes used meanwhile, and the memory that they hold at the end.
    pub usage: Usage,
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
        self.counted.iter().map(|counted| counted.fsyncs as f64 / writes).collect()
    }

    fn conflicts_per_million(&self) -> Option<f64> {
        let conflicts = self.conflicts?;
        Some(conflicts.overwritten as f64 * 1e6 / self.measured.writes_ever.max(1) as f64)
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
            Pace::Closed { clients } => (clients, "closed loop".to_owned()),
            Pace::Open { rate } => match self.share {
                Some(share) => (0, format!("open loop at {share} %")),
                None => (0, format!("open loop at {rate}/s")),
            },
        };
        let durable = self.guarantees.survives != replikit_core::Survival::Nothing;
        let settings = [
            ("setup", self.case.engine.setup().to_owned()),
            ("write", self.case.mode()),
            ("reads", self.case.reads_shown().to_owned()),
            ("pace", pace),
            ("acknowledged", self.guarantees.acknowledged.clone()),
            ("survives", self.guarantees.survives.to_string()),
            ("read guarantee", self.reads_guarantee().to_string()),
            ("order", self.guarantees.ordering.clone()),
            ("needs", self.guarantees.needs.clone()),
            ("disk before the acknowledgement", if durable { "yes" } else { "no" }.to_owned()),
            ("kind", if self.case.engine.is_baseline() { "baseline" } else { "replicated" }.to_owned()),
            ("load", self.case.load()),
            ("keys", self.case.workload.keys.to_string()),
        ];
        let subject = Subject {
            engine: self.case.engine.name().to_owned(),
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            workload: self.case.workload_shown(),
            clients,
        };
        let measured = &self.measured;
        let seconds = measured.elapsed.as_secs_f64().max(1e-9);
        let mut figures = vec![
            subject.figure("throughput", measured.throughput(), "1/s", Better::Higher),
            subject.figure("writes", measured.writes.count() as f64 / seconds, "1/s", Better::Higher),
            subject.figure("reads", measured.reads.count() as f64 / seconds, "1/s", Better::Higher),
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
        if let Pace::Open { rate } = self.case.pace {
            figures.push(subject.figure("rate asked", f64::from(rate), "1/s", Better::Neither));
        }
        let requests = (measured.writes_ever + measured.reads_ever).max(1) as f64;
        if self.usage.memory_bytes > 0 {
            let cpu = self.usage.cpu.as_secs_f64() * 1e6 / requests;
            figures.push(subject.figure("processor time per request", cpu, "us", Better::Lower));
            let disk = self.usage.disk_bytes as f64 / requests;
            figures.push(subject.figure("bytes of pages to disk per request", disk, "B", Better::Lower));
            let memory = self.usage.memory_bytes as f64 / f64::from(1 << 20);
            figures.push(subject.figure("memory of all nodes", memory, "MiB", Better::Lower));
        }
        let sum = |of: fn(&Counted) -> Option<u64>| self.counted.iter().map(of).sum::<Option<u64>>();
        if let Some(bytes) = sum(|counted| counted.bytes_sent) {
            figures.push(subject.figure("bytes sent per request", bytes as f64 / requests, "B", Better::Lower));
        }
        if let Some(bytes) = sum(|counted| counted.disk_bytes) {
            let bytes = bytes as f64 / requests;
            figures.push(subject.figure("bytes written to disk per request", bytes, "B", Better::Lower));
        }
        if let Some(messages) = sum(|counted| counted.messages_sent) {
            let messages = messages as f64 / requests;
            figures.push(subject.figure("messages between nodes per request", messages, "1", Better::Lower));
        }
        let fsyncs = self.fsyncs_per_write();
        if measured.writes_ever > 0 && !fsyncs.is_empty() {
            let mean = fsyncs.iter().sum::<f64>() / fsyncs.len() as f64;
            figures.push(subject.figure("fsyncs per write and node", mean, "1", Better::Lower));
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

    /// The line that is written of it.
    #[must_use]
    pub fn record(&self) -> Record {
        let (kind, name) = match self.share {
            Some(share) => (Kind::Sweep, self.case.sweep_name(share)),
            None => (Kind::Case, self.case.to_string()),
        };
        let mut record = Record::of(kind, name, &self.figures()).expect("a case has figures");
        if self.measured.staleness.count() > 0 {
            record.curves.push(survival("staleness", &self.measured.staleness));
        }
        record.notes = self.notes();
        record.wrong = self.wrong();
        record
    }
}

/// Which share of what was measured took longer than each of some times.
#[must_use]
pub fn survival(name: &str, latencies: &Latencies) -> Curve {
    let (x_unit, y_unit) = ("us".to_owned(), "1".to_owned());
    Curve { name: name.to_owned(), x_unit, y_unit, points: latencies.survival() }
}
