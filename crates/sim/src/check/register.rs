//! Linearizability of registers whose writes are unique, in O(n log n) and without any help of the implementation.
//!
//! Each write and the reads that saw it form a cluster. Let f be the earliest end and s the latest beginning in a cluster:
//! its zone is the time between them, *forward* if f < s, else *backward*. A history is linearizable exactly if no read
//! ends before its write began, no two forward zones overlap, and no backward zone lies within a forward zone.
//! Source: Gibbons and Korach, *Testing Shared Memories*, SIAM J. Comput. 26(4), 1997, section 4 (read mapping known).

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::Time;

use super::history::{Ended, History, Recorded, What};

/// A history that no single copy could have produced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLinearizable {
    /// A read saw a value that nobody wrote, or one of a write that had no effect.
    #[error("key {key:?}: a read begun at {began:?} saw {value:?}, which nobody wrote")]
    Phantom {
        /// Which key.
        key: Bytes,
        /// When the read began.
        began: Time,
        /// What it saw.
        value: Option<Bytes>,
    },
    /// A read ended before the write that it saw began.
    #[error("key {key:?}: {value:?} was read before {ended:?}, but its write began only at {began:?}")]
    FromTheFuture {
        /// Which key.
        key: Bytes,
        /// What was read.
        value: Option<Bytes>,
        /// When the earliest read ended.
        ended: Time,
        /// When the write began.
        began: Time,
    },
    /// Two values were each in force before and after the other: one of them was lost or came back.
    #[error("key {key:?}: {one:?} was in force from {from:?} to {to:?}, yet {other:?} was in between")]
    Overlap {
        /// Which key.
        key: Bytes,
        /// One value.
        one: Option<Bytes>,
        /// The other value.
        other: Option<Bytes>,
        /// Begin of the first one's zone.
        from: Time,
        /// Its end.
        to: Time,
    },
    /// The key was asked for more than writes and reads of one value: [`check_history`](super::check_history) can tell.
    #[error("key {key:?} is more than a register")]
    NotARegister {
        /// Which key.
        key: Bytes,
    },
    /// Two writes of one key wrote the same value: the check cannot tell them apart.
    #[error("key {key:?}: two writes of {value:?}")]
    NotUnique {
        /// Which key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
}

#[derive(Clone, Copy, Debug)]
struct Cluster {
    write_began: Time,
    write_ended: Time,
    // Earliest end and latest beginning of all its operations.
    first_end: Time,
    last_begin: Time,
    read: bool,
    void: bool,
}

/// Checks every key of a history. A key begins absent. Acknowledgements below `Quorum` prove nothing, and reads at other
/// levels than `Linearizable` are left out.
///
/// # Errors
/// [`NotLinearizable`] with the first contradiction found.
pub fn check_linearizable(history: &History) -> Result<(), NotLinearizable> {
    history.by_key().into_iter().try_for_each(|(key, operations)| check_key(key, &operations))
}

/// Whether an operation is a write or a read of a register that holds one value.
pub(super) const fn is_of_register(operation: &Recorded) -> bool {
    use replikit_core::WriteEffect::Done;

    matches!(
        (&operation.what, &operation.ended),
        (What::Write(_) | What::Read, Ended::Unknown | Ended::Void)
            | (What::Write(_), Ended::Written { .. } | Ended::Applied { effect: Done, .. })
            | (What::Read, Ended::Found { .. })
    )
}

pub(super) fn check_key(key: &Bytes, operations: &[&Recorded]) -> Result<(), NotLinearizable> {
    let mut clusters: BTreeMap<Option<&Bytes>, Cluster> = BTreeMap::new();
    if !operations.iter().all(|operation| is_of_register(operation)) {
        return Err(NotLinearizable::NotARegister { key: key.clone() });
    }
    // The absent value was "written" before all time.
    let absent = Cluster {
        write_began: Time::ZERO,
        write_ended: Time::ZERO,
        first_end: Time::ZERO,
        last_begin: Time::ZERO,
        read: false,
        void: false,
    };
    clusters.insert(None, absent);
    for operation in operations {
        let What::Write(value) = &operation.what else { continue };
        let ended = operation.answered_at().filter(|_| operation.is_strong()).unwrap_or(Time::NEVER);
        let cluster = Cluster {
            write_began: operation.began,
            write_ended: ended,
            first_end: ended,
            last_begin: operation.began,
            read: false,
            void: operation.ended == Ended::Void,
        };
        if clusters.insert(Some(value), cluster).is_some() {
            return Err(NotLinearizable::NotUnique { key: key.clone(), value: value.clone() });
        }
    }
    for operation in operations {
        let Ended::Found { at, value } = &operation.ended else { continue };
        if !operation.is_strong() {
            continue;
        }
        let Some(cluster) = clusters.get_mut(&value.as_ref()).filter(|cluster| !cluster.void) else {
            let (key, began, value) = (key.clone(), operation.began, value.clone());
            return Err(NotLinearizable::Phantom { key, began, value });
        };
        cluster.read = true;
        cluster.first_end = cluster.first_end.min(*at);
        cluster.last_begin = cluster.last_begin.max(operation.began);
        if *at < cluster.write_began {
            let (key, value) = (key.clone(), value.clone());
            return Err(NotLinearizable::FromTheFuture { key, value, ended: *at, began: cluster.write_began });
        }
    }
    // A write that nobody saw and that was never acknowledged may never have taken effect.
    clusters.retain(|_, cluster| !cluster.void && (cluster.read || cluster.write_ended < Time::NEVER));

    let overlap = |one: Option<&Bytes>, other: Option<&Bytes>, zone: &Cluster| NotLinearizable::Overlap {
        key: key.clone(),
        one: one.cloned(),
        other: other.cloned(),
        from: zone.first_end,
        to: zone.last_begin,
    };
    let mut forward: Vec<(Option<&Bytes>, Cluster)> =
        clusters.iter().filter(|(_, c)| c.first_end < c.last_begin).map(|(value, c)| (*value, *c)).collect();
    forward.sort_unstable_by_key(|(_, c)| (c.first_end, c.last_begin));
    for pair in forward.windows(2) {
        if pair[1].1.first_end < pair[0].1.last_begin {
            return Err(overlap(pair[0].0, pair[1].0, &pair[0].1));
        }
    }
    for (value, backward) in clusters.iter().filter(|(_, c)| c.first_end >= c.last_begin) {
        // Forward zones do not overlap, so only the last one that begins before this zone can contain it.
        let after = forward.partition_point(|(_, c)| c.first_end < backward.last_begin);
        if let Some((outer, zone)) = after.checked_sub(1).map(|at| &forward[at])
            && backward.first_end < zone.last_begin
        {
            return Err(overlap(*outer, *value, zone));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    fn write(history: &mut History, value: u64, began: u64, ended: u64) {
        let id = history.begin(Time(began), "k".into(), What::Write(value.to_string().into()));
        if ended < u64::MAX {
            history.end(id, Ended::Written { at: Time(ended) });
        }
    }

    fn read(history: &mut History, value: u64, began: u64, ended: u64) {
        let id = history.begin(Time(began), "k".into(), What::Read);
        let value = (value > 0).then(|| value.to_string().into());
        history.end(id, Ended::Found { at: Time(ended), value });
    }

    /// A random history of a single true copy: each operation takes effect at one instant within its time.
    fn valid(rng: &mut Rng, operations: u64) -> History {
        let mut plan: Vec<(u64, u64, u64, bool)> = (0..operations)
            .map(|_| {
                let at = rng.u64(100..10_000);
                (at, at - rng.u64(0..100), at + rng.u64(1..200), rng.bool())
            })
            .collect();
        plan.sort_unstable();
        let (mut history, mut current, mut next) = (History::default(), 0, 1);
        for (_, began, ended, is_write) in plan {
            if is_write {
                current = next;
                next += 1;
                write(&mut history, current, began, if rng.u8(0..8) == 0 { u64::MAX } else { ended });
            } else {
                read(&mut history, current, began, ended);
            }
        }
        history
    }

    /// The definition: some order of the operations that respects real time is that of a single copy.
    fn brute_force(history: &History) -> bool {
        fn search(left: &mut Vec<&Recorded>, value: Option<&Bytes>) -> bool {
            let end = |op: &Recorded| op.answered_at().unwrap_or(Time::NEVER);
            if left.iter().all(|op| end(op) == Time::NEVER) {
                return true;
            }
            let first_end = left.iter().map(|op| end(op)).min().expect("not empty");
            for at in 0..left.len() {
                let op = left[at];
                if op.began > first_end {
                    continue;
                }
                let next = match (&op.what, &op.ended) {
                    (What::Write(written), _) => Some(written),
                    (What::Read, Ended::Found { value: found, .. }) if found.as_ref() == value => value,
                    _ => continue,
                };
                left.swap_remove(at);
                let found = search(left, next);
                left.push(op);
                let end = left.len() - 1;
                left.swap(at, end);
                if found {
                    return true;
                }
            }
            false
        }
        search(&mut history.operations().iter().collect(), None)
    }

    #[test]
    fn histories_of_a_single_copy_pass() {
        for seed in 0..300 {
            let history = valid(&mut Rng::with_seed(seed), 60);
            assert_eq!(check_linearizable(&history), Ok(()), "seed {seed}");
        }
    }

    #[test]
    fn the_check_agrees_with_the_definition_on_small_histories_at_random() {
        let (mut yes, mut no) = (0, 0);
        for seed in 0..20_000 {
            let mut rng = Rng::with_seed(seed);
            let mut history = History::default();
            let writes = rng.u64(1..4);
            // Distinct instants: at equal ones the order of "before" is a matter of taste.
            let mut instants: Vec<u64> = (1..40).collect();
            rng.shuffle(&mut instants);
            let mut span = |rng: &mut Rng| {
                let (a, b) = (instants.pop().expect("enough"), instants.pop().expect("enough"));
                let _ = rng;
                (a.min(b), a.max(b))
            };
            for value in 1..=writes {
                let (began, ended) = span(&mut rng);
                write(&mut history, value, began, if rng.u8(0..5) == 0 { u64::MAX } else { ended });
            }
            for _ in 0..rng.u64(1..5) {
                let (began, ended) = span(&mut rng);
                read(&mut history, rng.u64(0..=writes), began, ended);
            }
            let expected = brute_force(&history);
            assert_eq!(check_linearizable(&history).is_ok(), expected, "seed {seed}: {history:#?}");
            if expected { yes += 1 } else { no += 1 }
        }
        assert!(yes > 2_000 && no > 2_000, "{yes} and {no}: the histories are too much alike");
    }

    #[test]
    fn every_mutation_that_makes_a_history_wrong_is_rejected() {
        let mut stale = History::default();
        write(&mut stale, 1, 10, 20);
        write(&mut stale, 2, 30, 40);
        read(&mut stale, 1, 50, 60);
        assert!(matches!(check_linearizable(&stale), Err(NotLinearizable::Overlap { .. })));

        let mut lost = History::default();
        write(&mut lost, 1, 10, 20);
        read(&mut lost, 0, 30, 40);
        assert!(matches!(check_linearizable(&lost), Err(NotLinearizable::Overlap { .. })));

        let mut phantom = History::default();
        read(&mut phantom, 7, 30, 40);
        assert!(matches!(check_linearizable(&phantom), Err(NotLinearizable::Phantom { .. })));

        let mut future = History::default();
        read(&mut future, 1, 10, 20);
        write(&mut future, 1, 30, 40);
        assert!(matches!(check_linearizable(&future), Err(NotLinearizable::FromTheFuture { .. })));

        let mut flip_flop = History::default();
        write(&mut flip_flop, 1, 10, u64::MAX);
        write(&mut flip_flop, 2, 10, u64::MAX);
        for (at, value) in [1, 2, 1].into_iter().enumerate() {
            read(&mut flip_flop, value, 20 + 20 * at as u64, 30 + 20 * at as u64);
        }
        assert!(matches!(check_linearizable(&flip_flop), Err(NotLinearizable::Overlap { .. })));
    }
}
