//! The tables at the end of a run.

use std::fmt::Write;
use std::time::Duration;

use super::findings;
use super::summary::{Row, Spread, Summary};
use crate::record::Kind;
use crate::suite::OBJECTIVE;
use crate::table::{Side, Table, count, latency};
use crate::timeline::BUCKET;

/// Buckets of a time line in one printed line.
const BUCKETS_PER_LINE: usize = 10;

/// Everything, for people.
#[must_use]
pub fn render(summary: &Summary<'_>) -> String {
    let mut text = cases(summary);
    text.push_str(&replications(summary));
    for row in summary.of_kind(Kind::Partitioning).chain(summary.of_kind(Kind::Fault)) {
        text.push('\n');
        text.push_str(&timed(row));
    }
    for finding in findings::efficiency(summary) {
        let _ = write!(text, "\n{finding}\n");
    }
    if summary.cores_changed() {
        text.push_str(
            "\nthe cores' distance changed during the run (column `cores`): compare rows of the same distance only\n",
        );
    }
    text
}

/// The heading that a row stands under: what it promises.
#[must_use]
pub fn heading(row: &Row) -> String {
    format!(
        "{}, {}, {}: acked = {}; survives {}; reads {}",
        row.engine,
        row.setting("setup"),
        row.setting("write"),
        row.setting("acknowledged"),
        row.setting("survives"),
        row.setting("read guarantee")
    )
}

/// A duration in microseconds.
#[must_use]
pub fn micros(value: f64) -> String {
    latency(Duration::from_nanos((value * 1e3) as u64))
}

/// A count with its range, in few characters.
#[must_use]
pub fn range(spread: &Spread) -> String {
    match spread.rounds() {
        1 => "1 round".to_owned(),
        _ => format!("{}-{}", short(spread.least()), short(spread.most())),
    }
}

/// A count in at most five characters.
#[must_use]
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e5 => format!("{:.0}k", value / 1e3),
        v if v >= 1e3 => format!("{:.1}k", value / 1e3),
        v if v >= 10.0 || v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 0.1 => format!("{value:.2}"),
        v if v >= 1e-4 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// The table of all loads without faults.
#[must_use]
pub fn cases(summary: &Summary<'_>) -> String {
    let mut table = Table::new(vec![
        ("workload", Side::Left),
        ("clients", Side::Right),
        ("ops/s", Side::Right),
        ("range", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("p99.9", Side::Right),
        ("max", Side::Right),
        ("fsyncs/write/node", Side::Right),
        ("conflicts/10^6", Side::Right),
        ("lost: audited/silent", Side::Right),
        ("cores", Side::Left),
    ]);
    for row in summary.of_kind(Kind::Case) {
        for line in lines(row) {
            table.row(&heading(row), line);
        }
    }
    let mut text = if table.is_empty() { String::new() } else { table.render() };
    let mut loads: Vec<&Row> = Vec::new();
    for row in summary.of_kind(Kind::Sweep) {
        if !loads.iter().any(|known| known.setting("load") == row.setting("load")) {
            loads.push(row);
        }
    }
    if !loads.is_empty() {
        let _ = write!(text, "\nhighest rate of an open loop with p99 within {}:\n", latency(OBJECTIVE));
    }
    for row in loads {
        let load = row.setting("load");
        if let Some(rate) = summary.rate_at_objective(load) {
            let _ = writeln!(text, "  {load}: {}/s ({})", count(rate.median()), range(&rate));
        }
    }
    for note in summary.of_kind(Kind::Case).flat_map(|row| &row.notes) {
        let _ = writeln!(text, "note: {note}");
    }
    for remark in &summary.run.remarks {
        for told in &remark.told {
            let _ = writeln!(text, "note: {}, round {}: {told}", remark.engine, remark.round);
        }
    }
    text
}

/// The cells of a row: a line for writes and one for reads where there are both.
#[must_use]
pub fn lines(row: &Row) -> Vec<Vec<String>> {
    let kinds = [("write", "writes"), ("read", "reads")];
    let present: Vec<_> =
        kinds.into_iter().filter(|(one, _)| row.median(&format!("{one} latency p50")).is_some()).collect();
    let several = present.len() > 1;
    let of = |metric: &str, show: fn(f64) -> String| row.median(metric).map_or_else(|| "-".to_owned(), show);
    let line = |(one, many): (&str, &str)| {
        let quantile = |name: &str| of(&format!("{one} latency {name}"), micros);
        let writes = one == "write";
        let pace = match row.clients {
            0 => row.setting("pace").trim_start_matches("open loop at ").to_owned(),
            clients => clients.to_string(),
        };
        vec![
            if several { format!("{}, {many}", row.workload) } else { row.workload.clone() },
            pace,
            of(many, count),
            row.metrics.get(many).map_or_else(|| "-".to_owned(), range),
            quantile("p50"),
            quantile("p99"),
            quantile("p99.9"),
            quantile("max"),
            if writes { of("fsyncs per write and node", |value| format!("{value:.3}")) } else { "-".to_owned() },
            if writes { of("conflicts per 10^6 writes", count) } else { "-".to_owned() },
            if writes {
                let lost = |metric| row.metrics.get(metric).map_or(0.0, Spread::most);
                format!("{}/{}", lost("acked writes lost, audited"), lost("acked writes lost"))
            } else {
                "-".to_owned()
            },
            row.cores.clone(),
        ]
    };
    present.into_iter().map(line).collect()
}

/// The table of contending writers.
#[must_use]
pub fn replications(summary: &Summary<'_>) -> String {
    let mut table = Table::new(vec![
        ("all nodes written to", Side::Left),
        ("updates/s", Side::Right),
        ("conflicts/10^6", Side::Right),
        ("lost: audited/silent", Side::Right),
        ("convergence", Side::Right),
        ("lag p50", Side::Right),
        ("lag p99", Side::Right),
        ("acked while down", Side::Right),
    ]);
    for row in summary.of_kind(Kind::Replication) {
        let of = |metric: &str, show: fn(f64) -> String| row.median(metric).map_or_else(|| "-".to_owned(), show);
        let lost = |metric: &str| of(metric, |value| format!("{value:.0}"));
        table.row(
            "",
            vec![
                row.name.clone(),
                of("updates", count),
                of("conflicts per 10^6 writes", |value| count(value.round())),
                format!("{}/{}", lost("lost updates, audited"), lost("lost updates, silent")),
                of("convergence after the load", micros),
                of("replication lag p50", micros),
                of("replication lag p99", micros),
                of("updates acked while a node was down", count),
            ],
        );
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render()) }
}

/// What was done, the time line of what it was done to, and what it amounts to.
#[must_use]
pub fn timed(row: &Row) -> String {
    let mut text = match row.kind {
        Kind::Fault => {
            format!("{}, {}, {} clients, write level {}\n", row.engine, row.name, row.clients, row.setting("write"))
        }
        _ => format!("{}\n", row.name),
    };
    if let Some(curve) = row.curve("acked writes") {
        let _ = writeln!(text, "  acked writes/s, one column per {} ms", BUCKET.as_millis());
        for points in curve.points.chunks(BUCKETS_PER_LINE) {
            let (from, until) = (points[0].0, points[0].0 + BUCKET.as_secs_f64() * BUCKETS_PER_LINE as f64);
            let _ = write!(text, "  {from:>5.1} s ");
            for (_, per_second) in points {
                let _ = write!(text, "{:>8}", count(*per_second));
            }
            for mark in row.marks.iter().filter(|mark| (from..until).contains(&mark.at)) {
                let _ = write!(text, "   <- {:.2} s {}", mark.at, mark.what);
            }
            text.push('\n');
        }
    }
    for (metric, spread) in &row.metrics {
        let _ = writeln!(text, "  {metric}: {}", amount(spread));
    }
    text
}

/// A figure with its unit, times and small values as people read them.
#[must_use]
pub fn amount(spread: &Spread) -> String {
    let value = spread.median();
    match spread.unit.as_str() {
        "us" => micros(value),
        "1" if value.abs() >= 100.0 || value.fract() == 0.0 => count(value.round()),
        "1" => short(value),
        unit if value.abs() >= 100.0 => format!("{} {unit}", count(value.round())),
        unit => format!("{} {unit}", short(value)),
    }
}
