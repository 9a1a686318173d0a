//! What each write level promises, as values: printed beside every number, checked by the simulator, rendered into docs.

use replikit_core::{Guarantees, ReadGuarantee, Survival, WriteLevel};

/// What a single-leader group promises for writes at a level, with linearizable reads.
#[must_use]
pub fn guarantees(level: WriteLevel) -> Guarantees {
    let (acknowledged, survives, needs, checked_by) = match level {
        WriteLevel::Memory => {
            ("in the leader's memory".to_owned(), Survival::Nothing, "the leader", vec!["lost_writes_are_reported"])
        }
        WriteLevel::LeaderDisk => {
            ("on the leader's disk".to_owned(), Survival::PowerLoss, "the leader", vec!["lost_writes_are_reported"])
        }
        WriteLevel::Received(k) => (
            format!("in the memory of {k} replicas"),
            Survival::Nothing,
            "the leader and the replicas counted",
            vec!["lost_writes_are_reported"],
        ),
        WriteLevel::Durable(k) => (
            format!("on the disks of {k} replicas"),
            Survival::PowerLoss,
            "the leader and the replicas counted",
            vec!["lost_writes_are_reported"],
        ),
        WriteLevel::Quorum => (
            "on the disks of a majority, never undone".to_owned(),
            Survival::Minority,
            "a majority",
            vec!["acked_is_never_lost", "linearizable"],
        ),
        WriteLevel::Applied(k) => (
            format!("on the disks of a majority, visible at {k} replicas"),
            Survival::Minority,
            "a majority, and the replicas counted",
            vec!["acked_is_never_lost", "linearizable"],
        ),
    };
    Guarantees {
        strategy: "single-leader".to_owned(),
        mode: format!("{level:?}"),
        acknowledged,
        survives,
        reads: ReadGuarantee::Linearizable,
        ordering: "one order of all writes".to_owned(),
        needs: needs.to_owned(),
        checked_by: checked_by.into_iter().map(str::to_owned).collect(),
    }
}
