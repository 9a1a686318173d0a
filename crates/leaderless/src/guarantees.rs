//! What each write level and each read level promises, as values: printed beside every number, checked by the simulator.

use replikit_core::{Guarantees, ReadGuarantee, ReadLevel, Survival, WriteLevel};

/// What a leaderless group promises for writes at a level, with local reads.
#[must_use]
pub fn guarantees(level: WriteLevel) -> Guarantees {
    guarantees_with_reads(level, &ReadLevel::Local)
}

/// What it promises for writes at `write` with reads at `read`. A level that this strategy does not have reads like `Local`:
/// such reads are rejected.
#[must_use]
pub fn guarantees_with_reads(write: WriteLevel, read: &ReadLevel) -> Guarantees {
    let (acknowledged, survives, needs) = match write {
        WriteLevel::Memory => ("in this node's memory".to_owned(), Survival::Nothing, "this node"),
        WriteLevel::LeaderDisk => ("on this node's disk".to_owned(), Survival::PowerLoss, "this node"),
        // Nothing leaves a node before it is on its disk: what others have received is durable here.
        WriteLevel::Received(k) => (
            format!("on this node's disk, in the memory of {k} replicas"),
            Survival::PowerLoss,
            "this node and the replicas counted",
        ),
        WriteLevel::Durable(k) => {
            (format!("on the disks of {k} replicas"), Survival::PowerLoss, "this node and the replicas counted")
        }
        WriteLevel::Quorum | WriteLevel::Owners(_) => {
            ("on the disks of a majority".to_owned(), Survival::Minority, "a majority")
        }
        WriteLevel::Applied(k) => (
            format!("on this node's disk, visible at {k} replicas"),
            Survival::PowerLoss,
            "this node and the replicas counted",
        ),
    };
    let (reads, name, check) = match read {
        ReadLevel::Session(_) => (ReadGuarantee::Session, ", session reads", "sessions_do_not_go_back"),
        ReadLevel::BoundedStale(_) => (ReadGuarantee::BoundedStale, ", bounded-stale reads", "staleness_is_bounded"),
        _ => (ReadGuarantee::Stale, "", "reads_show_the_past"),
    };
    let mut checked_by = vec!["acked_is_there", "conserved"];
    if survives == Survival::Nothing {
        // What a crash takes from memory no disk remembers: a client learns of it by its token.
        checked_by = vec!["sessions_do_not_go_back"];
    }
    checked_by.extend(["applied_in_causal_order", check]);
    checked_by.dedup();
    Guarantees {
        strategy: "multi-leader".to_owned(),
        mode: format!("{write:?}{name}"),
        acknowledged,
        survives,
        reads,
        ordering: "causal; concurrent writes of a key by its policy, losers audited".to_owned(),
        needs: needs.to_owned(),
        checked_by: checked_by.into_iter().map(str::to_owned).collect(),
    }
}
