//! What every strategy promises in every mode: the page `docs/guarantees.md`, written from the values that the bench prints.

use core::fmt::Write;
use core::time::Duration;

use replikit_core::{Guarantees, ReadLevel, SessionToken, WriteLevel};
use replikit_single_leader::{guarantees, guarantees_with_reads};

use crate::raft::INVARIANTS;

/// One row per strategy and mode.
#[must_use]
pub fn rows() -> Vec<Guarantees> {
    let levels = [
        WriteLevel::Memory,
        WriteLevel::Received(2),
        WriteLevel::LeaderDisk,
        WriteLevel::Durable(2),
        WriteLevel::Quorum,
        WriteLevel::Applied(2),
    ];
    let reads = [
        ReadLevel::Session(SessionToken::default()),
        ReadLevel::BoundedStale(Duration::from_secs(1)),
        ReadLevel::Local,
    ];
    let writes = levels.into_iter().map(guarantees);
    writes.chain(reads.iter().map(|read| guarantees_with_reads(WriteLevel::Quorum, read))).collect()
}

/// The page.
#[must_use]
pub fn page() -> String {
    let mut page = "# Guarantees\n\nWritten from the values that `cargo xtask bench` prints beside every number \
                    (`UPDATE=1 cargo test -p replikit-swarm` writes it anew). Each check is an invariant of \
                    [the simulator](fault-coverage.md), and [planted bugs](planted.md) show that it finds things.\n\n\
                    | strategy | mode | acknowledged means | survives | reads are | ordering | needs | checked by |\n\
                    |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows() {
        let checks: Vec<String> = row.checked_by.iter().map(|check| format!("`{check}`")).collect();
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            row.strategy,
            row.mode,
            row.acknowledged,
            row.survives,
            row.reads,
            row.ordering,
            row.needs,
            checks.join(", ")
        )
        .expect("writing to a string never fails");
    }
    page.push_str("\n| check | what it says |\n|---|---|\n");
    for (name, sentence) in INVARIANTS.iter().filter(|(name, _)| is_named(name)) {
        writeln!(page, "| `{name}` | {sentence} |").expect("writing to a string never fails");
    }
    page
}

fn is_named(check: &str) -> bool {
    rows().iter().any(|row| row.checked_by.iter().any(|known| known == check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_exists_and_a_planted_bug_makes_it_fail() {
        let planted = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/planted.md"))
            .expect("the table of planted bugs is part of the docs");
        for row in rows() {
            assert!(!row.checked_by.is_empty(), "{} is checked by nothing", row.mode);
            for check in &row.checked_by {
                assert!(INVARIANTS.iter().any(|(name, _)| name == check), "{}: {check} is no invariant", row.mode);
                assert!(planted.contains(&format!("{check} (")), "{}: no planted bug makes {check} fail", row.mode);
            }
        }
    }

    #[test]
    fn the_page_is_up_to_date() {
        crate::page::assert_up_to_date("guarantees.md", &page());
    }
}
