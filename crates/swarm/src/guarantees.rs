//! What every strategy promises in every mode: the page `docs/guarantees.md`, written from the values that the bench prints.

use core::fmt::Write;
use core::time::Duration;

use replikit_core::{Guarantees, Owners, ReadLevel, SessionToken, WriteLevel};
use replikit_leaderless as leaderless;
use replikit_multi_leader as multi_leader;
use replikit_partitioning::store;
use replikit_single_leader as single_leader;

use crate::{leaderless as quorums, multi, partitioned, placed, raft};

/// What promises something, and how that is looked at.
struct Strategy {
    /// Its name in a row.
    name: &'static str,
    /// What the scenarios begin with that run it.
    scenario: &'static str,
    invariants: &'static [(&'static str, &'static str)],
}

const STRATEGIES: [Strategy; 6] = [
    Strategy { name: "single-leader", scenario: "raft", invariants: raft::INVARIANTS },
    Strategy { name: "multi-leader", scenario: "multi-leader", invariants: multi::INVARIANTS },
    Strategy { name: "leaderless", scenario: "leaderless", invariants: quorums::INVARIANTS },
    Strategy { name: store::STRATEGY, scenario: "partitioned", invariants: partitioned::INVARIANTS },
    Strategy { name: store::STRATEGY_LEADERLESS, scenario: "placed", invariants: placed::INVARIANTS },
    Strategy {
        name: store::STRATEGY_MULTI_LEADER,
        scenario: "placed-leaders",
        invariants: placed::INVARIANTS_OF_LEADERS,
    },
];

/// One row per strategy and mode.
fn rows() -> Vec<Guarantees> {
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
    let mut rows: Vec<Guarantees> = levels.into_iter().map(single_leader::guarantees).collect();
    rows.extend(reads.iter().map(|read| single_leader::guarantees_with_reads(WriteLevel::Quorum, read)));
    rows.extend(levels.into_iter().map(multi_leader::guarantees));
    // Local reads are what its writes are listed with.
    let told = reads.iter().filter(|read| !matches!(read, ReadLevel::Local));
    rows.extend(told.map(|read| multi_leader::guarantees_with_reads(WriteLevel::LeaderDisk, read)));
    rows.extend(levels.into_iter().map(leaderless::guarantees));
    let named = [Owners::One, Owners::LocalQuorum, Owners::EachQuorum, Owners::All];
    rows.extend(named.into_iter().map(|owners| leaderless::guarantees(WriteLevel::Owners(owners))));
    let one = ReadLevel::Owners(Owners::One);
    rows.extend(reads.iter().chain([&one]).map(|read| leaderless::guarantees_with_reads(WriteLevel::Quorum, read)));
    rows.push(leaderless::guarantees_of_cas());
    // Groups carry out no write of a partitioned store at less than this.
    rows.extend([WriteLevel::Quorum, WriteLevel::Applied(2)].map(store::guarantees));
    // What is checked while groups go from nodes to nodes.
    rows.push(store::guarantees_leaderless(WriteLevel::Quorum));
    rows.extend([WriteLevel::LeaderDisk, WriteLevel::Quorum].map(store::guarantees_multi_leader));
    rows
}

/// The page.
fn page() -> String {
    let mut page = "# Guarantees\n\nWritten from the values that `cargo xtask bench` prints beside every number \
                    (`UPDATE=1 cargo test -p replikit-swarm` writes it anew). Each check is an invariant of \
                    [the simulator](fault-coverage.md), and [planted bugs](planted.md) show that it finds things. A \
                    leaderless group is shown with majorities as quorums, with blocking read repair, and, unless the mode \
                    says otherwise, with quorum reads.\n\n\
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
    page.push_str("\n| strategy (scenario) | check | what it says |\n|---|---|---|\n");
    for strategy in &STRATEGIES {
        for (name, sentence) in strategy.invariants.iter().filter(|(name, _)| strategy.names(name)) {
            writeln!(page, "| {} (`{}`) | `{name}` | {sentence} |", strategy.name, strategy.scenario)
                .expect("writing to a string never fails");
        }
    }
    page
}

impl Strategy {
    /// Whether a row of it says that it is checked by this.
    fn names(&self, check: &str) -> bool {
        let mut mine = rows().into_iter().filter(|row| row.strategy == self.name);
        mine.any(|row| row.checked_by.iter().any(|known| known == check))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_exists_and_a_planted_bug_makes_it_fail() {
        let planted = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/planted.md"))
            .expect("the table of planted bugs is part of the docs");
        for row in rows() {
            let strategy = STRATEGIES.iter().find(|strategy| strategy.name == row.strategy).expect("a known strategy");
            let mode = format!("{}, {}", row.strategy, row.mode);
            assert!(!row.checked_by.is_empty(), "{mode} is checked by nothing");
            for check in &row.checked_by {
                assert!(strategy.invariants.iter().any(|(name, _)| name == check), "{mode}: {check} is no invariant");
                let scenario = format!("| {}", strategy.scenario);
                let fails = |bug: &str| bug.contains(&scenario) && bug.contains(&format!("{check} ("));
                assert!(planted.lines().any(fails), "{mode}: no planted bug makes {check} fail");
            }
        }
    }

    #[test]
    fn the_page_is_up_to_date() {
        crate::page::assert_up_to_date("guarantees.md", &page());
    }
}
