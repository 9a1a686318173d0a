//! What each write level and each read level promises, as values: printed beside every number, checked by the simulator.
//!
//! All follows from sizes: a read of R owners meets a write on W of them, if W + R > N.

use replikit_core::{Guarantees, Owners, ReadGuarantee, ReadLevel, Survival, WriteLevel, quorum};

use crate::config::Quorums;

/// What a group with majorities as quorums promises for writes at a level, with quorum reads and blocking repair.
#[must_use]
pub fn guarantees(level: WriteLevel) -> Guarantees {
    guarantees_with_reads(level, &ReadLevel::Owners(Owners::Quorum))
}

/// What a group with majorities as quorums, and blocking repair, promises for writes at `write` with reads at `read`. A level
/// that this strategy does not have reads like `Local`: such reads are rejected.
#[must_use]
pub fn guarantees_with_reads(write: WriteLevel, read: &ReadLevel) -> Guarantees {
    guarantees_of(3, Quorums::default(), write, read)
}

/// What a group of so many owners with these quorums, and blocking repair, promises for writes at `write` with reads at `read`.
/// `owners` is at least 1, and the quorums are possible.
#[must_use]
pub fn guarantees_of(owners: u8, quorums: Quorums, write: WriteLevel, read: &ReadLevel) -> Guarantees {
    let majority = quorum::majority(owners.into()) as u8;
    let (r, w, d) = (quorums.read.of(owners), quorums.write.of(owners), quorums.durable.of(owners));
    let named = |size: u8| match size {
        1 => "one owner".to_owned(),
        size if size == majority => "a majority".to_owned(),
        size if size == owners => "all owners".to_owned(),
        size => format!("{size} owners"),
    };
    let quorum_acked = match w == d {
        true if w == 1 => "applied by one owner, and on its disk".to_owned(),
        true => format!("applied by {}, and on their disks", named(w)),
        false => format!("applied by {}, and on the disks of {}", named(w), named(d)),
    };
    // What is acknowledged, what survives, what is needed, and how many owners certainly have it whatever crashes.
    let (acknowledged, survives, needs, copies) = match write {
        WriteLevel::Memory => ("in the memory of the node that was asked".to_owned(), Survival::Nothing, one(), 0),
        WriteLevel::Received(k) => (format!("in the memory of {k} owners"), Survival::Nothing, counted(), 0),
        WriteLevel::LeaderDisk => ("on the disk of the node that was asked".to_owned(), Survival::PowerLoss, one(), 0),
        WriteLevel::Durable(k) => (format!("on the disks of {k} owners"), Survival::PowerLoss, counted(), 0),
        WriteLevel::Quorum | WriteLevel::Owners(Owners::Quorum) => {
            (quorum_acked, survival(d, majority), named(w.max(d)), w.min(d))
        }
        WriteLevel::Applied(k) => (
            format!("{quorum_acked}, and at least {k}"),
            survival(d, majority),
            format!("{}, and the owners counted", named(w.max(d))),
            w.min(d),
        ),
        WriteLevel::Owners(Owners::All) => {
            ("on the disks of all owners".to_owned(), Survival::Minority, named(owners), owners)
        }
        WriteLevel::Owners(Owners::EachQuorum) => (
            "on the disks of a majority in every region".to_owned(),
            Survival::Minority,
            "a majority in every region".to_owned(),
            majority,
        ),
        WriteLevel::Owners(Owners::LocalQuorum) => (
            "on the disks of a majority in the region of the node that was asked".to_owned(),
            Survival::PowerLoss,
            "a majority in that region".to_owned(),
            0,
        ),
        WriteLevel::Owners(Owners::Two) => ("on the disks of 2 owners".to_owned(), Survival::PowerLoss, counted(), 0),
        WriteLevel::Owners(Owners::Three) => ("on the disks of 3 owners".to_owned(), Survival::PowerLoss, counted(), 0),
        WriteLevel::Owners(_) => ("on the disk of one owner".to_owned(), Survival::PowerLoss, one(), 0),
    };
    let met_by = match read {
        ReadLevel::Owners(Owners::Quorum) => r,
        ReadLevel::Owners(Owners::All) => owners,
        ReadLevel::Owners(Owners::EachQuorum) => majority,
        _ => 1,
    };
    let overlap = copies + met_by > owners;
    let mut checked_by = vec!["acked_is_there", "conserved"];
    if survives == Survival::Nothing {
        // What a crash takes from memory no disk remembers: a client learns of it by its token.
        checked_by = vec!["sessions_do_not_go_back"];
    }
    if copies > 0 {
        checked_by.push("strict_is_a_quorum");
    }
    let (reads, name) = match read {
        ReadLevel::Session(_) => (ReadGuarantee::Session, ", session reads".to_owned()),
        ReadLevel::BoundedStale(_) => (ReadGuarantee::BoundedStale, ", bounded-stale reads".to_owned()),
        ReadLevel::Owners(Owners::Quorum) if overlap => (ReadGuarantee::Regular, String::new()),
        ReadLevel::Owners(Owners::Quorum) => (ReadGuarantee::Stale, String::new()),
        ReadLevel::Owners(level) if overlap => (ReadGuarantee::Regular, format!(", reads at {level:?}")),
        ReadLevel::Owners(level) => (ReadGuarantee::Stale, format!(", reads at {level:?}")),
        _ => (if overlap { ReadGuarantee::Regular } else { ReadGuarantee::Stale }, ", local reads".to_owned()),
    };
    checked_by.push(match reads {
        ReadGuarantee::Session => "sessions_do_not_go_back",
        ReadGuarantee::BoundedStale => "staleness_is_bounded",
        ReadGuarantee::Regular => "quorums_overlap",
        _ => "reads_show_the_past",
    });
    let quorum_read = matches!(read, ReadLevel::Owners(Owners::Quorum));
    if reads == ReadGuarantee::Regular && quorum_read && 2 * met_by > owners {
        checked_by.push("reads_do_not_go_back");
    }
    let mut ordering = "each key by what its writers had seen; the others by its policy, losers audited".to_owned();
    if u16::from(copies) * 2 > owners.into() {
        ordering.push_str("; a write wins over those acknowledged before it began");
        checked_by.push("later_write_wins");
    }
    checked_by.dedup();
    Guarantees {
        strategy: "leaderless".to_owned(),
        mode: format!("{write:?}{name}"),
        acknowledged,
        survives,
        reads,
        ordering,
        needs,
        checked_by: checked_by.into_iter().map(str::to_owned).collect(),
    }
}

/// What a keyspace of the kind [`Kind::Cas`](crate::Kind::Cas) promises for changes at any level that it takes, and reads at any.
#[must_use]
pub fn guarantees_of_cas() -> Guarantees {
    Guarantees {
        strategy: "leaderless".to_owned(),
        mode: "keys that are compared and set".to_owned(),
        acknowledged: "agreed on by a majority, and on their disks".to_owned(),
        survives: Survival::Minority,
        reads: ReadGuarantee::Linearizable,
        ordering: "each key by itself, one line of changes".to_owned(),
        needs: "a majority".to_owned(),
        checked_by: vec!["linearizable".to_owned()],
    }
}

fn one() -> String {
    "the node that was asked".to_owned()
}

fn counted() -> String {
    "the node that was asked and the owners counted".to_owned()
}

const fn survival(disks: u8, majority: u8) -> Survival {
    if disks >= majority { Survival::Minority } else { Survival::PowerLoss }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    fn exactly(read: u8, write: u8) -> Quorums {
        let (read, write) = (Size::Exactly(read), Size::Exactly(write));
        Quorums { read, write, durable: write }
    }

    #[test]
    fn reads_are_current_exactly_where_quorums_meet() {
        let quorum = ReadLevel::Owners(Owners::Quorum);
        for (read, write) in [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (3, 1), (3, 3)] {
            let row = guarantees_of(3, exactly(read, write), WriteLevel::Quorum, &quorum);
            assert_eq!(row.reads == ReadGuarantee::Regular, read + write > 3, "R = {read}, W = {write}");
            let monotonic = row.checked_by.iter().any(|check| check == "reads_do_not_go_back");
            assert_eq!(monotonic, read + write > 3 && 2 * read > 3, "R = {read}, W = {write}");
        }
    }

    #[test]
    fn what_is_on_fewer_disks_than_owners_promises_no_more_than_its_disks_do() {
        let quorums = Quorums { durable: Size::Exactly(1), ..exactly(2, 2) };
        let row = guarantees_of(3, quorums, WriteLevel::Quorum, &ReadLevel::Owners(Owners::Quorum));
        assert_eq!((row.reads, row.survives), (ReadGuarantee::Stale, Survival::PowerLoss));
        assert_eq!(guarantees(WriteLevel::Memory).survives, Survival::Nothing);
        assert_eq!(guarantees(WriteLevel::Quorum).survives, Survival::Minority);
    }
}
