//! What each write level and each read level promises, as values: printed beside every number, checked by the simulator,
//! rendered into docs/guarantees.md.

use replikit_core::{Guarantees, ReadGuarantee, ReadLevel, Survival, WriteLevel};

/// What a single-leader group promises for writes at a level, with linearizable reads.
#[must_use]
pub fn guarantees(level: WriteLevel) -> Guarantees {
    let (acknowledged, survives, needs) = match level {
        WriteLevel::Memory => ("in the leader's memory".to_owned(), Survival::Nothing, "the leader"),
        WriteLevel::LeaderDisk => ("on the leader's disk".to_owned(), Survival::PowerLoss, "the leader"),
        WriteLevel::Received(k) => {
            (format!("in the memory of {k} replicas"), Survival::Nothing, "the leader and the replicas counted")
        }
        WriteLevel::Durable(k) => {
            (format!("on the disks of {k} replicas"), Survival::PowerLoss, "the leader and the replicas counted")
        }
        WriteLevel::Quorum | WriteLevel::Owners(_) => {
            ("on the disks of a majority, never undone".to_owned(), Survival::Minority, "a majority")
        }
        WriteLevel::Applied(k) => (
            format!("on the disks of a majority, visible at {k} replicas"),
            Survival::Minority,
            "a majority, and the replicas counted",
        ),
    };
    let mut checked_by = match survives {
        Survival::Minority => vec!["committed_on_a_durable_quorum", "committed_is_immutable"],
        Survival::PowerLoss => vec!["weak_loss_is_reported", "promised_after_durable"],
        // What a crash takes from memory no disk remembers: a client learns of it by its token.
        Survival::Nothing => vec!["session_reads_do_not_go_back"],
    };
    checked_by.push("linearizable_read_is_current");
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

/// What it promises for writes at `write` with reads at `read`. A level that this strategy does not have reads like `Local`:
/// such reads are rejected.
#[must_use]
pub fn guarantees_with_reads(write: WriteLevel, read: &ReadLevel) -> Guarantees {
    let (reads, name, check) = match read {
        ReadLevel::Linearizable => return guarantees(write),
        ReadLevel::Session(_) => (ReadGuarantee::Session, "session reads", "session_reads_do_not_go_back"),
        ReadLevel::BoundedStale(_) => (ReadGuarantee::BoundedStale, "bounded-stale reads", "staleness_is_bounded"),
        ReadLevel::Local | ReadLevel::Replicas(_) | ReadLevel::Owners(_) => {
            (ReadGuarantee::Stale, "local reads", "reads_show_their_position")
        }
    };
    let mut guarantees = guarantees(write);
    guarantees.reads = reads;
    guarantees.mode = format!("{}, {name}", guarantees.mode);
    guarantees.checked_by.retain(|known| known != "linearizable_read_is_current" && known != check);
    guarantees.checked_by.push(check.to_owned());
    guarantees
}
