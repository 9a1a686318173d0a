//! Which faults of the fault model the simulator plays, and why it does not play the others: the page
//! `docs/fault-coverage.md`, written from the kinds of faults that exist in the code.

use core::fmt::Write;

use replikit_sim::Fault;

use crate::probe::Probe;
use crate::{leaderless, multi, partitioned, placed, raft, sleep};

/// What somebody does to the store on purpose while faults are played: which scenarios do it, and what tells that it was met.
const OPERATIONS: &[(&str, &str, &[Probe])] = &[
    (
        "O1",
        "the epochs of `multi-leader`, `leaderless-owners` and `leaderless-hints`",
        &[Probe::EpochBegun, Probe::NodeBeganAnew],
    ),
    ("O2", "the epochs of `multi-leader`, `leaderless-owners` and `leaderless-hints`", &[Probe::NodeEvicted]),
    ("O3", "the epochs of `leaderless-owners` and `leaderless-hints`", &[Probe::EpochsJoint, Probe::EpochSettled]),
    (
        "O7",
        "the operators of `partitioned`, `placed` and `placed-leaders`",
        &[
            Probe::SplitFollowed,
            Probe::MergeFollowed,
            Probe::HandoffCommitted,
            Probe::HandoffAborted,
            Probe::StruckAtSeal,
            Probe::StruckAtDecision,
            Probe::PlacedElsewhere,
            Probe::PlacedHereAgain,
            Probe::PlacedAtRest,
        ],
    ),
];

/// Every kind of fault by its id. The last part says why it is not played; it counts only while no [`Fault`] begins with
/// the id, and nobody does it on purpose.
const KINDS: &[(&str, &str, &str)] = &[
    ("N1", "loss", ""),
    ("N2", "duplication", ""),
    ("N3", "heavy-tailed delay, reordering", ""),
    ("N4", "netsplit in two", ""),
    ("N5", "netsplit in three or more", ""),
    ("N6", "one-way cut", ""),
    ("N7", "bridge node", ""),
    ("N8", "ring of majorities", ""),
    ("N9", "chain", ""),
    ("N10", "hub: all see only one", ""),
    ("N11", "leader in the minority", ""),
    ("N12", "clog and swizzle-clog", ""),
    ("N13", "flapping link", ""),
    ("N14", "bandwidth cap", ""),
    ("N15", "reset, half-open connection", ""),
    ("N16", "bit flip, truncation, oversized length", ""),
    ("N17", "message of a former incarnation", ""),
    ("N18", "drop by kind of message", ""),
    ("N19", "wrong cluster, reused address", ""),
    ("P1", "crash", ""),
    ("P2", "crash at any point between two actions", ""),
    ("P3", "instant restart", ""),
    ("P4", "outage longer than the log's retention", ""),
    ("P5", "pause", ""),
    ("P6", "all nodes at once", ""),
    ("P7", "crash loop in recovery", ""),
    ("P8", "older or newer version", "there is one version so far"),
    (
        "P9",
        "empty disk under the same id",
        "such a node votes as if it had promised nothing: it needs membership change",
    ),
    (
        "P10",
        "disk rolled back to an old copy",
        "cannot be told from a disk that is merely behind; needs membership change",
    ),
    (
        "P11",
        "two processes under one id",
        "the lock of the data directory and the handshake forbid it on one machine only",
    ),
    ("S1", "unsynced writes lost", ""),
    ("S2", "any subset of unsynced writes kept", ""),
    ("S3", "torn write", ""),
    ("S4", "failing fsync", ""),
    ("S5", "lying fsync", ""),
    ("S6", "failing write", ""),
    ("S7", "no space", ""),
    ("S8", "short read or write", ""),
    ("S9", "latent sector error", ""),
    ("S10", "bit rot at rest", ""),
    ("S11", "misdirected write", ""),
    ("S12", "misdirected read", ""),
    ("S13", "stale read, lost write", ""),
    ("S14", "corrupt vote record", ""),
    ("S15", "corrupt snapshot", ""),
    ("S16", "rename or directory entry lost", ""),
    ("S17", "file missing or cut", ""),
    ("S18", "stall", ""),
    ("S19", "read-only remount", ""),
    ("S20", "corrupt tail against corrupt middle", ""),
    ("S21", "helical corruption on several replicas", ""),
    ("C1", "offset", ""),
    ("C2", "drift up to a tenth", ""),
    ("C3", "jump forward", ""),
    ("C4", "jump back", ""),
    ("C5", "frozen clock", ""),
    ("C6", "suspended monotonic clock", ""),
    ("C7", "error above the declared bound", "no bound is declared: nothing depends on one without leases"),
    ("R1", "slow processor", ""),
    ("R2", "slow disk of the leader", ""),
    ("R3", "bounded queue full", ""),
    ("R4", "no file descriptor, failing accept", "a replica does no I/O; the runtime's tests do"),
    ("R5", "one task starved", ""),
    ("R6", "memory limit", "a replica's memory is bounded by its limits, which are knobs of the swarm"),
    ("O1", "member added", ""),
    ("O2", "member removed", ""),
    ("O3", "member replaced", ""),
    ("O4", "learner, demotion", "no strategy has learners"),
    ("O5", "transfer to an unreachable node", "no transfer by hand yet; hand-overs happen when a disk is slow"),
    ("O6", "snapshot and release to the tip", ""),
    ("O7", "move or split under faults", ""),
    ("O8", "certificate rotated or revoked", "no TLS yet"),
    ("O9", "mixed versions", "there is one version so far"),
    ("O10", "configuration reloaded", "nothing is reloaded"),
    ("O11", "topology rewired", "not by hand; a multi-leader group lays links round silent members itself"),
    ("L1", "timeout and retry under the same id", ""),
    ("L2", "retry at another node", ""),
    ("L3", "duplicate in flight", ""),
    ("L4", "slow reader", "a replica answers at once; the runtime's tests do"),
    ("L5", "stale route", ""),
    ("L6", "hot key", ""),
    ("L7", "hostile frames and requests", ""),
];

fn played(id: &str) -> Vec<Fault> {
    let is_of = |fault: &Fault| fault.text().split_once(' ').is_some_and(|(of, _)| of.split('/').any(|of| of == id));
    Fault::ALL.iter().copied().filter(is_of).collect()
}

/// As what a kind is met, in words; empty if it is not.
fn met_as(id: &str) -> String {
    let played: Vec<String> = played(id).iter().map(|fault| format!("`{fault:?}`")).collect();
    let operation = OPERATIONS.iter().find(|(of, ..)| *of == id);
    let operation = operation.map(|(_, by, probes)| {
        let probes: Vec<String> = probes.iter().map(|probe| format!("`{}`", probe.name())).collect();
        format!("by {by}: {}", probes.join(", "))
    });
    played.into_iter().chain(operation).collect::<Vec<_>>().join(", ")
}

/// The page.
#[must_use]
pub fn page() -> String {
    let count = KINDS.iter().filter(|(id, ..)| !met_as(id).is_empty()).count();
    let mut page = format!(
        "# What the simulator covers\n\nWritten from the code (`UPDATE=1 cargo test -p replikit-swarm` writes it anew). \
         {count} of {} kinds of faults are played; a long run of a scenario that \
         plays one of them and never meets it fails.\n\n\
         | id | fault | played as, or why not |\n|---|---|---|\n",
        KINDS.len()
    );
    let mut line = |id: &str, what: &str, how: &str| {
        writeln!(page, "| {id} | {what} | {how} |").expect("writing to a string never fails");
    };
    for (id, what, why_not) in KINDS {
        match met_as(id) {
            met if met.is_empty() => line(id, what, &format!("not played: {why_not}")),
            met => line(id, what, &met),
        }
    }
    page += "\n## Invariants\n\nA violation names one of them.\n";
    for (of, invariants) in [
        ("Of a group with a single leader, and of every storage and every run", raft::INVARIANTS),
        ("Of several of them in one container, which sleep when nothing happens", sleep::INVARIANTS),
        ("Of a multi-leader group", multi::INVARIANTS),
        ("Of a leaderless group", leaderless::INVARIANTS),
        ("Of one with nodes that stand in for owners", leaderless::hints::INVARIANTS),
        ("Of one one of whose disks rots", leaderless::rot::INVARIANTS),
        ("Of a partitioned store, beside those of its groups", partitioned::INVARIANTS),
        ("Of one of leaderless groups", placed::INVARIANTS),
        ("Of one of multi-leader groups", placed::INVARIANTS_OF_LEADERS),
    ] {
        write!(page, "\n{of}:\n\n| invariant | |\n|---|---|\n").expect("writing to a string never fails");
        for (name, sentence) in invariants {
            writeln!(page, "| `{name}` | {sentence} |").expect("writing to a string never fails");
        }
    }
    page +=
        "\n## States\n\nObserved from outside, and likewise required of a long run of a scenario that can meet them: ";
    page += &Probe::ALL.iter().map(|probe| format!("`{}`", probe.name())).collect::<Vec<_>>().join(", ");
    page += ".\n";
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_kind_and_every_kind_is_played_or_says_why_not() {
        for fault in Fault::ALL {
            let known = KINDS.iter().any(|(id, ..)| played(id).contains(fault));
            assert!(known, "{} is no kind of the fault model", fault.text());
        }
        for (id, _, why_not) in KINDS {
            assert!(!met_as(id).is_empty() || !why_not.is_empty(), "{id} is neither played nor explained");
        }
        for (id, ..) in OPERATIONS {
            assert!(KINDS.iter().any(|(of, ..)| of == id), "{id} is no kind of the fault model");
        }
    }

    #[test]
    fn the_page_is_up_to_date() {
        crate::page::assert_up_to_date("fault-coverage.md", &page());
    }
}
