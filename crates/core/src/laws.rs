//! The laws that make replicas converge, checked on a user's own merge function.
//!
//! Invariant: a function that passes gives one value for the samples in whatever order and grouping, and however often, they
//! arrive. Source: Shapiro et al. 2011, semilattices.

use core::fmt;

/// A law that a merge function breaks, with the values that show it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Counterexample<T: fmt::Debug> {
    /// The same call gave two answers: it depends on a clock, on chance, or on the order of a hash map.
    #[error("merging {left:?} with {right:?} gives {first:?} and then {second:?}")]
    NotDeterministic {
        /// The arguments.
        left: T,
        /// The arguments.
        right: T,
        /// The first answer.
        first: T,
        /// The second answer.
        second: T,
    },
    /// A value merged with itself is another value: a write that arrives twice would count twice.
    #[error("merging {value:?} with itself gives {merged:?}")]
    NotIdempotent {
        /// The argument.
        value: T,
        /// The answer.
        merged: T,
    },
    /// The order of two values matters: replicas that learn them in different order would differ for ever.
    #[error("merging {left:?} with {right:?} gives {forth:?}, the other way round {back:?}")]
    NotCommutative {
        /// One argument.
        left: T,
        /// The other.
        right: T,
        /// `left` merged with `right`.
        forth: T,
        /// `right` merged with `left`.
        back: T,
    },
    /// The grouping of three values matters: replicas that learn two of them merged would differ for ever.
    #[error(
        "merging {values:?} gives {left_first:?} or {right_first:?}, as the first or the last two are merged first"
    )]
    NotAssociative {
        /// The arguments.
        values: [T; 3],
        /// The first two merged first.
        left_first: T,
        /// The last two merged first.
        right_first: T,
    },
}

/// Checks the laws that make replicas converge on every pair and triple of the samples: put values into them that your
/// application really writes, with ties, and empty ones. n samples take about 4 n^3 merges.
///
/// # Errors
/// The first [`Counterexample`] found.
pub fn check_resolver<T: Clone + PartialEq + fmt::Debug>(
    merge: impl Fn(&T, &T) -> T,
    samples: &[T],
) -> Result<(), Counterexample<T>> {
    for left in samples {
        let merged = merge(left, left);
        if merged != *left {
            return Err(Counterexample::NotIdempotent { value: left.clone(), merged });
        }
        for right in samples {
            let (forth, again, back) = (merge(left, right), merge(left, right), merge(right, left));
            let (left, right) = (left.clone(), right.clone());
            if forth != again {
                return Err(Counterexample::NotDeterministic { left, right, first: forth, second: again });
            }
            if forth != back {
                return Err(Counterexample::NotCommutative { left, right, forth, back });
            }
            let twice = merge(&forth, &forth);
            if twice != forth {
                return Err(Counterexample::NotIdempotent { value: forth, merged: twice });
            }
        }
    }
    for first in samples {
        for second in samples {
            for third in samples {
                let left_first = merge(&merge(first, second), third);
                let right_first = merge(first, &merge(second, third));
                if left_first != right_first {
                    let values = [first.clone(), second.clone(), third.clone()];
                    return Err(Counterexample::NotAssociative { values, left_first, right_first });
                }
            }
        }
    }
    Ok(())
}
