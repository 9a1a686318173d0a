//! What becomes of writes to one key that have not seen each other: policies as values, resolution as a pure function.
//!
//! Invariants: the outcome depends on the set of versions only, neither on their order nor on who resolves, nor on when they
//! arrived; a whole record wins or loses, never a mixture; every version that is neither shown nor contained in what is shown
//! is named as overwritten, for the audit log. Causal order has been settled before ([`Dvvs`](crate::Dvvs)): a policy never
//! decides between a write and one that its writer had seen.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::Stamp;
use crate::crdt::CrdtKind;

/// A user's merge of two values. Must be commutative, associative and idempotent: see
/// [`check_resolver`](crate::check_resolver).
pub type MergeFn = Arc<dyn Fn(&Bytes, &Bytes) -> Bytes + Send + Sync>;

/// What to do with concurrent values. Per keyspace.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum ConflictPolicy {
    /// The newest [`Stamp`] wins; the others are overwritten. The default, because it needs nothing of the application; the
    /// price is that an acknowledged write may lose, to the audit log.
    #[default]
    Lww,
    /// All stay, until a write whose context has seen them.
    Siblings,
    /// A function makes one of them.
    Merge(MergeFn),
    /// They are values of a type that merges without loss.
    Crdt(CrdtKind),
}

impl fmt::Debug for ConflictPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lww => f.write_str("Lww"),
            Self::Siblings => f.write_str("Siblings"),
            Self::Merge(_) => f.write_str("Merge(..)"),
            Self::Crdt(kind) => write!(f, "Crdt({kind:?})"),
        }
    }
}

/// What to do when a delete and a value have not seen each other. Per keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum DeletePolicy {
    /// The value stays. The default: a delete cannot take away what its client has not seen.
    #[default]
    AddWins,
    /// The delete takes all values away.
    DeleteWins,
    /// The delete takes the values away whose [`Stamp`] is older than its own.
    NewerWins,
}

/// One of several concurrent writes of a key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// When it was made, and its dot.
    pub stamp: Stamp,
    /// The value; `None` for a delete.
    pub value: Option<Bytes>,
}

/// What a key shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Live {
    /// Nothing: there are no versions.
    Absent,
    /// Nothing: this delete won.
    Deleted(Stamp),
    /// One value.
    One(Version),
    /// Several values, ascending by dot.
    Siblings(Vec<Version>),
    /// A value made from several.
    Merged {
        /// The value.
        value: Bytes,
        /// What it was made from, ascending by dot.
        from: Vec<Stamp>,
    },
}

/// Why a version is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Cause {
    /// A newer one won.
    Newer,
    /// A delete won over it.
    Deleted,
    /// It is a delete, and a value or a newer delete won over it.
    DeleteLost,
    /// A user's function made another value of it.
    Merged,
    /// It is no value of the keyspace's type.
    Malformed,
    /// A majority of the owners, which have applied the same writes, have something else: this copy is taken for damaged.
    Outvoted,
}

/// A version that was acknowledged and is not shown: one entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Overwritten {
    /// It.
    pub version: Version,
    /// The newest of those that won over it.
    pub by: Stamp,
    /// Why.
    pub cause: Cause,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// What the key shows.
    pub live: Live,
    /// What lost, ascending by dot.
    pub overwritten: Vec<Overwritten>,
}

/// Decides between concurrent versions of one key. Pure; the order of the versions and repetitions do not matter.
#[must_use]
pub fn resolve(policy: &ConflictPolicy, deletes: DeletePolicy, versions: &[Version]) -> Resolution {
    let mut versions = versions.to_vec();
    versions.sort_by_key(|version| version.stamp.dot);
    versions.dedup_by_key(|version| version.stamp.dot);
    let mut overwritten = Vec::new();

    let deleted = versions.iter().filter(|version| version.value.is_none()).map(|version| version.stamp).max();
    if let Some(delete) = deleted {
        let survives = |version: &Version| match deletes {
            DeletePolicy::AddWins => true,
            DeletePolicy::DeleteWins => false,
            DeletePolicy::NewerWins => version.stamp > delete,
        };
        let (survivors, lost): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|version| version.value.is_some() && survives(version));
        versions = survivors;
        let winner = newest(&versions);
        for version in lost {
            if winner.is_none() && version.stamp == delete {
                continue;
            }
            let (by, cause) = match version.value {
                Some(_) => (delete, Cause::Deleted),
                None => (winner.unwrap_or(delete), Cause::DeleteLost),
            };
            overwritten.push(Overwritten { version, by, cause });
        }
    }

    let live = match (versions.len(), newest(&versions), policy) {
        (_, None, _) => deleted.map_or(Live::Absent, Live::Deleted),
        (1, _, _) => Live::One(versions.remove(0)),
        (_, Some(winner), ConflictPolicy::Lww) => last_write(versions, winner, Cause::Newer, &mut overwritten),
        (_, Some(_), ConflictPolicy::Siblings) => Live::Siblings(versions),
        (_, Some(winner), ConflictPolicy::Merge(merge)) => merged(merge, versions, winner, &mut overwritten),
        (_, Some(winner), ConflictPolicy::Crdt(kind)) => joined(*kind, versions, winner, &mut overwritten),
    };
    overwritten.sort_by_key(|lost| lost.version.stamp.dot);
    Resolution { live, overwritten }
}

fn newest(versions: &[Version]) -> Option<Stamp> {
    versions.iter().map(|version| version.stamp).max()
}

fn last_write(versions: Vec<Version>, winner: Stamp, cause: Cause, overwritten: &mut Vec<Overwritten>) -> Live {
    let mut live = Live::Absent;
    for version in versions {
        if version.stamp == winner {
            live = Live::One(version);
        } else {
            overwritten.push(Overwritten { version, by: winner, cause });
        }
    }
    live
}

fn merged(merge: &MergeFn, versions: Vec<Version>, winner: Stamp, overwritten: &mut Vec<Overwritten>) -> Live {
    let from = versions.iter().map(|version| version.stamp).collect();
    let values = versions.iter().filter_map(|version| version.value.clone());
    let value = values.reduce(|left, right| merge(&left, &right)).unwrap_or_default();
    let lost = versions.into_iter().filter(|version| version.value.as_ref() != Some(&value));
    overwritten.extend(lost.map(|version| Overwritten { version, by: winner, cause: Cause::Merged }));
    Live::Merged { value, from }
}

fn joined(kind: CrdtKind, versions: Vec<Version>, winner: Stamp, overwritten: &mut Vec<Overwritten>) -> Live {
    let is_value = |version: &Version| version.value.as_ref().is_some_and(|value| kind.check(value).is_ok());
    let (mut valid, malformed): (Vec<_>, Vec<_>) = versions.into_iter().partition(is_value);
    let Some(best) = newest(&valid) else {
        return last_write(malformed, winner, Cause::Malformed, overwritten);
    };
    let lost = malformed.into_iter();
    overwritten.extend(lost.map(|version| Overwritten { version, by: best, cause: Cause::Malformed }));
    if valid.len() == 1 {
        return Live::One(valid.remove(0));
    }
    let from = valid.iter().map(|version| version.stamp).collect();
    let values = valid.into_iter().filter_map(|version| version.value);
    let join = |left: Bytes, right: Bytes| kind.join(&left, &right).expect("both were checked to be of the type");
    Live::Merged { value: values.reduce(join).unwrap_or_default(), from }
}
