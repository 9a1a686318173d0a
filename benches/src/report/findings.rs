//! What the figures of a run say about each other: how near they come to what the machine gives, and where we lose.

use super::summary::{Row, Summary};
use super::terminal::{micros, short};
use crate::record::Kind;

/// A row in which somebody else is better at no weaker promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// What was done.
    pub workload: String,
    /// How many clients.
    pub clients: u32,
    /// Ours.
    pub ours: String,
    /// Who is better.
    pub theirs: String,
    /// In what.
    pub metric: &'static str,
    /// Our figure.
    pub our_figure: String,
    /// Theirs.
    pub their_figure: String,
    /// How many times better theirs is.
    pub times: f64,
    /// What we promise that they do not.
    pub in_return: String,
}

/// One of our rows is better from here on only by chance: ranges of the machine are wider.
const TIMES_MIN: f64 = 1.05;

/// Where a plain machine or another system is faster than a strategy, for the same workload and with a disk at least as much
/// waited for; the largest factors first.
#[must_use]
pub fn losses(summary: &Summary<'_>) -> Vec<Loss> {
    let cases: Vec<&Row> = summary.of_kind(Kind::Case).collect();
    let mut found = Vec::new();
    for ours in cases.iter().filter(|row| row.setting("kind") == "replicated") {
        for theirs in cases.iter().filter(|row| row.setting("kind") != "replicated") {
            let disk = |row: &Row| row.setting("disk before the acknowledgement") == "yes";
            let same = ours.workload_base() == theirs.workload_base()
                && ours.clients == theirs.clients
                && ours.setting("pace") == theirs.setting("pace")
                && disk(ours) == disk(theirs);
            if !same {
                continue;
            }
            let loss = |metric, times: f64, our_figure, their_figure| Loss {
                workload: ours.workload.clone(),
                clients: ours.clients,
                ours: ours.subject(),
                theirs: theirs.subject(),
                metric,
                our_figure,
                their_figure,
                times,
                in_return: match ours.setting("survives") == theirs.setting("survives") {
                    true => "copies on three nodes".to_owned(),
                    false => format!("survives {}", ours.setting("survives")),
                },
            };
            if let (Some(own), Some(other)) = (ours.median("throughput"), theirs.median("throughput"))
                && other > own * TIMES_MIN
            {
                found.push(loss("requests/s", other / own, short(own), short(other)));
            }
            let p99 = |row: &Row| row.median("write latency p99").or_else(|| row.median("read latency p99"));
            if let (Some(own), Some(other)) = (p99(ours), p99(theirs))
                && own > other * TIMES_MIN
            {
                found.push(loss("p99", own / other, micros(own), micros(other)));
            }
        }
    }
    found.sort_by(|one, other| other.times.total_cmp(&one.times));
    found
}

/// How near the figures come to what the machine's disk and network allow, in sentences.
#[must_use]
pub fn efficiency(summary: &Summary<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mean = |metric: &str| {
        let values: Vec<f64> = summary.run.of(Kind::Probe).filter_map(|probe| probe.value(metric)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64 / 1e3)
    };
    let sync = mean("fdatasync 4 KiB overwrite, 3 writers, p50");
    let trip = mean("loopback TCP round trip 64 B, p50");
    let one = |engine: &str, write: &str| {
        let mut rows = summary.of_kind(Kind::Case).filter(|row| row.is_plain_writes() && row.clients == 1);
        rows.find(|row| row.engine == engine && row.setting("write") == write)
    };
    let p50 = |row: &Row| row.median("write latency p50");
    if let (Some(row), Some(sync), Some(trip)) = (one("single-leader", "Quorum"), sync, trip)
        && let Some(p50) = p50(row)
    {
        let times = p50 / (sync + 2.0 * trip);
        found.push(format!(
            "one client, single-leader, Quorum: p50 is {times:.2} x (fdatasync p50 with 3 writers + 2 loopback round trips)"
        ));
    }
    if let (Some(ours), Some(plain)) = (one("multi-leader", "LeaderDisk"), one("single-thread", "fdatasync"))
        && let (Some(own), Some(other)) = (p50(ours), p50(plain))
    {
        found.push(format!(
            "one client, multi-leader, LeaderDisk: p50 is {:.2} x that of single-thread with fdatasync",
            own / other
        ));
    }
    for row in summary.of_kind(Kind::Replication) {
        if let (Some(lag), Some(sync), Some(trip)) = (row.median("replication lag p99"), sync, trip) {
            found.push(format!(
                "replication lag at half load, multi-leader, {}: p99 is {:.2} x (half a loopback round trip + 2 fdatasync \
                 p50 with 3 writers)",
                row.setting("write"),
                lag / (trip / 2.0 + 2.0 * sync)
            ));
        }
    }
    found
}
