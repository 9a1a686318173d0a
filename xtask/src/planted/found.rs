//! What hunts have found: `crates/swarm/planted/found.jsonl`, from which `docs/planted.md` is written.
//!
//! Invariant: one line per bug, in the order of their names, each of the newest hunt for that bug; the line names the text of
//! the bug that was hunted, so that a bug whose text is another since is seen to be hunted no more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::bug::Bug;
use super::hunt::{Catch, Range};
use crate::cargo;

/// What became of a bug in the newest hunt for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finding {
    pub(crate) bug: String,
    /// The scenario that hunted it.
    pub(crate) strategy: String,
    /// How many ranges of seeds, and how many seeds in each.
    pub(crate) ranges: usize,
    pub(crate) seeds: u64,
    /// In how many of these ranges it was found, and after how many seeds.
    pub(crate) found: usize,
    pub(crate) median: Option<u64>,
    pub(crate) most: Option<u64>,
    /// The checks that found it, the most frequent first, and how often each did.
    pub(crate) by: Vec<(String, usize)>,
    /// Seeds at which the sources without the bug failed too, so that their ranges do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unclean: Vec<u64>,
    /// Ranges that did not end.
    #[serde(default, skip_serializing_if = "is_none_at_all")]
    pub(crate) hung: usize,
    /// The fingerprint of the bug that was hunted.
    pub(crate) text: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
const fn is_none_at_all(count: &usize) -> bool {
    *count == 0
}

impl Finding {
    pub(crate) fn new(bug: &Bug, catch: &Catch, seeds: u64) -> Self {
        let found = catch.seeds();
        let unclean = catch.ranges().iter().filter_map(|range| match range {
            Range::Unclean { seed } => Some(*seed),
            _ => None,
        });
        Self {
            bug: bug.id.clone(),
            strategy: bug.strategy.clone(),
            ranges: catch.ranges().len(),
            seeds,
            found: found.len(),
            median: found.get(found.len() / 2).copied(),
            most: found.last().copied(),
            by: catch.checks(),
            unclean: unclean.collect(),
            hung: catch.ranges().iter().filter(|range| **range == Range::Hung).count(),
            text: bug.fingerprint(),
        }
    }

    /// Hunted at all, and found in every range.
    pub(crate) const fn is_whole(&self) -> bool {
        self.ranges > 0 && self.found == self.ranges
    }
}

/// The newest finding for each bug.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings(BTreeMap<String, Finding>);

impl Findings {
    pub(crate) fn get(&self, bug: &Bug) -> Option<&Finding> {
        self.0.get(&bug.id)
    }

    /// Takes the newest finding for a bug in the place of the one before.
    pub(crate) fn put(&mut self, finding: Finding) {
        self.0.insert(finding.bug.clone(), finding);
    }

    /// Findings for bugs that there are no more.
    pub(crate) fn forget_all_but(&mut self, bugs: &[Bug]) {
        self.0.retain(|id, _| bugs.iter().any(|bug| bug.id == *id));
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut findings = Self::default();
        for (at, line) in text.lines().enumerate() {
            let finding: Finding = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
            let id = finding.bug.clone();
            if findings.0.insert(id.clone(), finding).is_some() {
                return Err(format!("line {}: a second line of {id}", at + 1));
            }
        }
        Ok(findings)
    }

    pub(crate) fn text(&self) -> String {
        let line = |finding| serde_json::to_string(finding).expect("a finding has nothing that JSON has not") + "\n";
        self.0.values().map(line).collect()
    }

    fn path() -> PathBuf {
        cargo::root().join("crates").join("swarm").join("planted").join("found.jsonl")
    }

    pub(crate) fn read() -> Result<Self, String> {
        let path = Self::path();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn write(&self) -> Result<(), String> {
        let path = Self::path();
        std::fs::write(&path, self.text()).map_err(|error| format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::bug;
    use super::*;

    #[test]
    fn the_file_holds_a_line_per_bug_in_order_and_none_of_a_bug_that_is_gone() {
        let findings = Findings::read().expect("the data are part of the sources");
        let path = Findings::path();
        assert_eq!(std::fs::read_to_string(path).expect("it was read above"), findings.text());
        let mut known = findings.clone();
        known.forget_all_but(&bug::read_all().expect("bugs are well formed"));
        assert_eq!(known, findings, "a line of a bug that is no more");
    }

    #[test]
    fn a_line_says_all_that_a_hunt_has_found() {
        let found = |seeds, by: &str| Range::Found { seeds, by: by.to_owned() };
        let ranges = vec![found(7, "b"), Range::Hung, Range::Unclean { seed: 4 }, found(3, "a"), found(5, "b")];
        let bug = bug::tests::example();
        let finding = Finding::new(&bug, &Catch::of(ranges), 10);
        assert_eq!((finding.ranges, finding.found, finding.median, finding.most), (5, 3, Some(5), Some(7)));
        assert_eq!(finding.by, [("b".to_owned(), 2), ("a".to_owned(), 1)]);
        assert_eq!((finding.hung, &finding.unclean[..], finding.is_whole()), (1, &[4][..], false));
        let mut findings = Findings::default();
        findings.put(finding);
        assert_eq!(Findings::parse(&findings.text()), Ok(findings));
    }

    #[test]
    fn two_lines_of_one_bug_are_a_mistake() {
        let mut findings = Findings::default();
        findings.put(Finding::new(&bug::tests::example(), &Catch::default(), 10));
        let error = Findings::parse(&findings.text().repeat(2)).expect_err("which one counts?");
        assert!(error.starts_with("line 2: "), "{error}");
    }
}
