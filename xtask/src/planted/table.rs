//! The table of planted bugs, for the terminal and for `docs/planted.md`.
//!
//! Invariant: the page is a function of the bugs and of what hunts have found; a test holds the file against it.

use core::fmt::Write;
use std::path::PathBuf;

use super::bug::Bug;
use super::found::{Finding, Findings};
use crate::cargo;

/// The parts of the page: what the scenarios of each begin with, and its heading.
const PARTS: [(&str, &str); 5] = [
    ("raft", "Single-leader replication and the log"),
    ("multi-leader", "Multi-leader replication"),
    ("leaderless", "Leaderless replication"),
    ("partitioned", "Partitioning"),
    ("placed", "Leaderless and multi-leader groups that a map places"),
];

/// For the terminal: one line per bug.
pub(crate) fn terminal(findings: &[(&Bug, Option<Finding>)]) -> String {
    let mut text = format!("\n{:<8} {:>7} {:>7} {:>7}  {:<36} bug\n", "id", "found", "median", "most", "by");
    for (bug, finding) in findings {
        let found = finding.as_ref().map_or_else(|| "-".to_owned(), |it| format!("{}/{}", it.found, it.ranges));
        let median = number(finding.as_ref().and_then(|it| it.median));
        let most = number(finding.as_ref().and_then(|it| it.most));
        let by = finding.as_ref().and_then(|it| it.by.first()).map_or("-", |(check, _)| check);
        let _ = writeln!(text, "{:<8} {found:>7} {median:>7} {most:>7}  {by:<36} {}", bug.id, bug.title);
    }
    let missed = findings.iter().filter(|(_, finding)| !finding.as_ref().is_some_and(Finding::is_whole)).count();
    let _ = writeln!(text, "{} bugs, {missed} not found in every range", findings.len());
    text
}

/// For the documentation.
pub(crate) fn markdown(bugs: &[Bug], findings: &Findings) -> String {
    let mut text = "# Planted bugs\n\nWritten by `cargo xtask planted --write` from `crates/swarm/planted/found.jsonl`, which holds \
                    the newest hunt for each bug. A bug is planted in a copy of the sources and hunted in ranges of seeds, in each \
                    until the first violation; the sources without it pass the same seeds. The bugs are the files of \
                    `crates/swarm/planted`.\n"
        .to_owned();
    for (scenario, heading) in PARTS {
        let bugs: Vec<&Bug> = bugs.iter().filter(|bug| bug.strategy.starts_with(scenario)).collect();
        if bugs.is_empty() {
            continue;
        }
        let _ = write!(
            text,
            "\n{heading}:\n\n\
             | bug | what it does | taken from | scenario | ranges of seeds | found | seeds to detection: median, most | by |\n\
             |---|---|---|---|---|---|---|---|\n"
        );
        for bug in bugs {
            let _ = writeln!(text, "{}", row(bug, findings.get(bug)));
        }
    }
    text
}

fn row(bug: &Bug, finding: Option<&Finding>) -> String {
    let head = format!("| {} | {} | {} | {} ", bug.id, bug.title, bug.source, bug.strategy);
    let Some(finding) = finding else { return format!("{head}| - | not hunted yet | - | - |") };
    let mut by: Vec<String> = finding.by.iter().map(|(check, count)| format!("{check} ({count})")).collect();
    by.extend(finding.unclean.iter().map(|seed| format!("WITHOUT THE BUG seed {seed} fails too")));
    if finding.hung > 0 {
        by.push(format!("ranges that did not end: {}", finding.hung));
    }
    let Finding { ranges, seeds, found, .. } = finding;
    let older = if finding.text == bug.fingerprint() { "" } else { ", with an older text of the bug" };
    let (median, most) = (number(finding.median), number(finding.most));
    format!("{head}| {ranges} x {seeds} | {found}/{ranges}{older} | {median}, {most} | {} |", by.join(", "))
}

fn number(seeds: Option<u64>) -> String {
    seeds.map_or_else(|| "-".to_owned(), |seeds| seeds.to_string())
}

fn path() -> PathBuf {
    cargo::root().join("docs").join("planted.md")
}

/// Writes the page anew.
pub(crate) fn write(bugs: &[Bug], findings: &Findings) -> Result<(), String> {
    std::fs::write(path(), markdown(bugs, findings)).map_err(|error| format!("{}: {error}", path().display()))
}

#[cfg(test)]
mod tests {
    use super::super::bug;
    use super::super::hunt::{Catch, Range};
    use super::*;

    #[test]
    fn the_page_says_what_the_data_say() {
        let bugs = bug::read_all().expect("bugs are well formed");
        let findings = Findings::read().expect("the data are well formed");
        if std::env::var_os("UPDATE").is_some() {
            write(&bugs, &findings).expect("the page can be written");
        }
        let written = std::fs::read_to_string(path()).expect("the page is part of the docs");
        assert!(written == markdown(&bugs, &findings), "docs/planted.md is old: UPDATE=1 cargo test -p xtask");
    }

    #[test]
    fn every_bug_belongs_to_one_part_of_the_page() {
        for bug in bug::read_all().expect("bugs are well formed") {
            let parts = PARTS.iter().filter(|(scenario, _)| bug.strategy.starts_with(scenario)).count();
            assert_eq!(parts, 1, "{}: {}", bug.id, bug.strategy);
        }
    }

    #[test]
    fn a_row_says_whether_its_bug_was_hunted_and_with_which_text() {
        let mut bug = bug::tests::example();
        assert!(row(&bug, None).contains("not hunted yet"));
        let found = Range::Found { seeds: 3, by: "linearizable".to_owned() };
        let finding = Finding::new(&bug, &Catch::of(vec![found, Range::Unclean { seed: 8 }]), 500);
        let fresh = row(&bug, Some(&finding));
        assert!(
            fresh.contains("| 2 x 500 | 1/2 | 3, 3 | linearizable (1), WITHOUT THE BUG seed 8 fails too |"),
            "{fresh}"
        );
        bug.edit[0].put.push('!');
        let stale = row(&bug, Some(&finding));
        assert!(stale.contains("1/2, with an older text of the bug"), "{stale}");
    }
}
