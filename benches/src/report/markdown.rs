//! The block of the README: written between two markers, the rest of the file is left alone.

use std::fmt::Write;

use super::charts;
use super::findings;
use super::summary::{Row, Summary};
use super::terminal::{micros, range};
use crate::record::Kind;
use crate::suite::{OBJECTIVE, SWEEP_CLIENTS};
use crate::table::{count, latency};

/// Begins the block.
pub const BEGIN: &str = "<!-- bench -->";
/// Ends it.
pub const END: &str = "<!-- /bench -->";

/// A text as it may stand in a cell.
fn cell(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' => {
                escaped.push('\\');
                escaped.push(character);
            }
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

fn row_of(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// What `report --readme` writes between the markers. `plots` is the folder of the plots as the file names it.
#[must_use]
pub fn block(summary: &Summary<'_>, plots: &str) -> String {
    let header = &summary.run.header;
    let machine = &header.machine;
    let mut text = format!(
        "Made by `cargo xtask bench {}` on {}, {} cores, data on {}; median and range of {}; load generator and all nodes on the \
         same cores. [How it is measured](docs/benchmarks.md), [what the figures say](docs/benchmarks-comparison.md).\n\n",
        header.asked.replace(['`', '<'], "'"),
        cell(&machine.cpu),
        machine.cores,
        cell(&machine.file_system),
        if header.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", header.rounds) }
    );
    text.push_str(&table(summary));
    let shown = charts::charts(summary).into_iter().find(|chart| chart.id == "latency-throughput-p99");
    if shown.is_some_and(|chart| chart.svg.is_some()) {
        let _ = write!(text, "\n![p99 latency at a given rate]({plots}/latency-throughput-p99.svg)\n");
    }
    let faults: Vec<&Row> = summary.of_kind(Kind::Fault).collect();
    if !faults.is_empty() {
        text.push('\n');
    }
    for fault in faults {
        let of = |metric: &str| fault.median(metric).unwrap_or(0.0);
        let _ = writeln!(
            text,
            "- {}, {} clients: longest gap without an acknowledged write {:.0} ms; {} of {} acknowledged writes lost.",
            cell(&fault.name),
            fault.clients,
            of("longest gap without an acked write, during the fault"),
            count(of("acked writes lost")),
            count(of("acked writes"))
        );
    }
    for finding in findings::efficiency(summary) {
        let _ = writeln!(text, "- {}.", cell(&finding));
    }
    text
}

/// The strategies and baselines side by side, with what they promise.
#[must_use]
pub fn table(summary: &Summary<'_>) -> String {
    let head = [
        "engine, write level".to_owned(),
        "acknowledged =".to_owned(),
        "survives".to_owned(),
        "reads".to_owned(),
        format!("writes/s, {SWEEP_CLIENTS} clients"),
        "p50, 1 client".to_owned(),
        format!("p99, {SWEEP_CLIENTS}"),
        format!("writes/s at p99 ≤ {}", latency(OBJECTIVE)),
        "fsyncs/write/node".to_owned(),
        "conflicts/10⁶".to_owned(),
        "cores".to_owned(),
    ];
    let mut text = row_of(&head);
    text.push_str("|---|---|---|---|--:|--:|--:|--:|--:|--:|---|\n");
    for row in summary.headlines() {
        let of =
            |row: &Row, metric: &str, show: fn(f64) -> String| row.median(metric).map_or_else(|| "-".to_owned(), show);
        let one = single_client(summary, row);
        let throughput = row.metrics.get("throughput");
        let at_objective = summary.rate_at_objective(row.setting("load"));
        text.push_str(&row_of(&[
            cell(&row.subject()),
            cell(row.setting("acknowledged")),
            cell(row.setting("survives")),
            cell(row.setting("read guarantee")),
            throughput
                .map_or_else(|| "-".to_owned(), |spread| format!("{} ({})", count(spread.median()), range(spread))),
            one.map_or_else(|| "-".to_owned(), |one| of(one, "write latency p50", micros)),
            of(row, "write latency p99", micros),
            at_objective.map_or_else(|| "-".to_owned(), |rate| count(rate.median())),
            of(row, "fsyncs per write and node", |value| format!("{value:.3}")),
            of(row, "conflicts per 10^6 writes", count),
            cell(&row.cores),
        ]));
    }
    text
}

/// The row of the same engine and mode with one client.
#[must_use]
pub fn single_client<'a>(summary: &'a Summary<'_>, row: &Row) -> Option<&'a Row> {
    let mut rows = summary.of_kind(Kind::Case).filter(|one| one.is_plain_writes() && one.clients == 1);
    rows.find(|one| one.subject() == row.subject())
}

/// A file with what stands between its markers replaced. `None` when it has not one pair of them.
#[must_use]
pub fn between_markers(file: &str, block: &str) -> Option<String> {
    let (before, rest) = file.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    (!after.contains(BEGIN)).then(|| format!("{before}{BEGIN}\n{block}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let file = "a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n";
        assert_eq!(between_markers(file, "new\n").as_deref(), Some("a\n<!-- bench -->\nnew\n<!-- /bench -->\nb\n"));
        assert_eq!(between_markers("no markers", "new"), None);
        assert_eq!(between_markers("<!-- bench --> never ended", "new"), None);
    }

    #[test]
    fn a_cell_stays_one_cell() {
        assert_eq!(cell("a|b\nc*"), "a\\|b c\\*");
    }
}
