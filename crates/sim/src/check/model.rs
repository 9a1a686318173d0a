//! What a single correct copy does: the specification that a history is held against.
//!
//! Invariant: operations of different keys do not touch each other, so each key is checked by itself (Herlihy and Wing 1990:
//! linearizability is local).

use core::fmt;
use core::hash::Hash;

use bytes::Bytes;
use replikit_core::{LogIndex, Time, WriteEffect};

use super::history::{Ended, Recorded, What};

/// A sequential specification.
pub trait Model {
    /// What is asked, with the answer that its client got, if it got one.
    type Operation;
    /// What operations are independent by.
    type Key: Clone + Ord + fmt::Debug;
    /// The state of one key.
    type State: Clone + Eq + Hash;

    /// Which key an operation is of.
    fn key(&self, operation: &Self::Operation) -> Self::Key;

    /// The state that a key begins with.
    fn initial(&self, key: &Self::Key) -> Self::State;

    /// The state after an operation; `None` when its client could not have got its answer in this state. An operation
    /// without an answer can happen in every state.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether the operation, given its answer, leaves every state as it is. Saying no is always right, and slower.
    fn is_read(&self, operation: &Self::Operation) -> bool {
        let _ = operation;
        false
    }
}

/// Where the log puts an operation, as its reply claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// It is this entry.
    At(LogIndex),
    /// It saw everything up to this entry, and nothing behind it.
    After(LogIndex),
}

impl Place {
    /// Operations in the order of the log: a read comes behind the entry that it saw.
    #[must_use]
    pub const fn order(self) -> (LogIndex, u8) {
        match self {
            Self::At(index) => (index, 0),
            Self::After(index) => (index, 1),
        }
    }
}

/// One operation to be put in order.
#[derive(Debug)]
pub struct Call<'a, O> {
    /// What was asked and answered.
    pub operation: &'a O,
    /// When the client asked.
    pub began: Time,
    /// When it had the answer. `None`: it may take effect at any time after it began, or never.
    pub ended: Option<Time>,
    /// Where the log puts it, if the reply says so.
    pub place: Option<Place>,
}

impl<O> Clone for Call<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Call<'_, O> {}

/// A key-value store with put, delete, compare-and-set and counters: the specification of [`Recorded`] operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyValue;

impl Model for KeyValue {
    type Operation = Recorded;
    type Key = Bytes;
    type State = Option<Bytes>;

    fn key(&self, operation: &Recorded) -> Bytes {
        operation.key.clone()
    }

    fn initial(&self, _: &Bytes) -> Option<Bytes> {
        None
    }

    fn step(&self, state: &Option<Bytes>, operation: &Recorded) -> Option<Option<Bytes>> {
        match &operation.ended {
            Ended::Found { value, .. } => (value == state).then(|| state.clone()),
            Ended::Siblings { values, .. } => match &values[..] {
                [] => state.is_none().then_some(None),
                [value] => (Some(value) == state.as_ref()).then(|| state.clone()),
                _ => None,
            },
            Ended::Applied { effect, .. } => {
                let (did, next) = apply(state, &operation.what);
                (did == *effect).then_some(next)
            }
            Ended::Written { .. } | Ended::Unknown => Some(apply(state, &operation.what).1),
            Ended::Void => Some(state.clone()),
        }
    }

    fn is_read(&self, operation: &Recorded) -> bool {
        operation.is_read()
            || matches!(
                operation.ended,
                Ended::Void
                    | Ended::Applied {
                        effect: WriteEffect::Mismatch { .. } | WriteEffect::NotACounter | WriteEffect::Unsupported,
                        ..
                    }
            )
    }
}

fn apply(state: &Option<Bytes>, what: &What) -> (WriteEffect, Option<Bytes>) {
    match what {
        What::Read => (WriteEffect::Done, state.clone()),
        What::Write(value) => (WriteEffect::Done, Some(value.clone())),
        What::Delete => (WriteEffect::Done, None),
        What::CompareAndSet { expected, new } if expected == state => (WriteEffect::Done, new.clone()),
        What::CompareAndSet { .. } => (WriteEffect::Mismatch { found: state.clone() }, state.clone()),
        What::Add(delta) => {
            let value = state.as_ref().map_or(Some(0), |value| core::str::from_utf8(value).ok()?.parse::<i64>().ok());
            match value.and_then(|value| value.checked_add(*delta)) {
                Some(value) => (WriteEffect::Counter { value }, Some(value.to_string().into())),
                None => (WriteEffect::NotACounter, state.clone()),
            }
        }
    }
}
