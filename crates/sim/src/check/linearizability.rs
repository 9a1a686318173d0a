//! Linearizability of whatever has a [`Model`]: by the log's own order where replies name it, by the zones of a register
//! where values are unique, and by search otherwise.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikit_core::{LogIndex, StreamId};

use super::history::{Ended, History, OperationId, Recorded, What};
use super::model::{Call, KeyValue, Model, Place};
use super::register::{NotLinearizable, check_key, is_of_register};
use super::search::{Found, search};
use super::witness::is_witness;

/// Work that suffices for nearly every history of a run, and ends within seconds.
pub const STEPS_MAX: u64 = 5_000_000;

/// How a history was proven linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linearized {
    /// Keys for which the log's order is a proof.
    pub by_witness: usize,
    /// Keys decided by the zones of their values.
    pub by_zones: usize,
    /// Keys for which an order was searched and found.
    pub by_search: usize,
    /// How often the model was asked in searches.
    pub steps: u64,
}

/// Why a history is not known to be linearizable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven<K: fmt::Debug> {
    /// It is not: a register's values contradict each other.
    #[error(transparent)]
    Register(#[from] NotLinearizable),
    /// It is not: no order of the key's operations respects real time and explains every answer.
    #[error("key {key:?}: {placed} operations can be put in order, but never operation {} with them", stuck.index())]
    NoOrder {
        /// Which key.
        key: K,
        /// Answered operations that could be put in order, at best.
        placed: usize,
        /// The operation that could not be, then.
        stuck: OperationId,
    },
    /// Not known: the search was not finished within the work allowed.
    #[error("key {key:?}: undecided after {steps_max} steps")]
    Undecided {
        /// Which key.
        key: K,
        /// The work allowed for the whole history.
        steps_max: u64,
    },
}

/// Checks operations against a model: each key by the log's order if every answer names its place, else by search.
///
/// `steps_max` bounds the work of all searches together; [`STEPS_MAX`] is a good choice. The operation named in an error
/// is the n-th of `calls`.
///
/// # Errors
/// [`Unproven`]. An undecided key is reported only if no other is known to be wrong.
pub fn check_calls<M: Model>(
    model: &M,
    calls: &[Call<'_, M::Operation>],
    steps_max: u64,
) -> Result<Linearized, Unproven<M::Key>> {
    let mut keys: BTreeMap<M::Key, Vec<usize>> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        keys.entry(model.key(call.operation)).or_default().push(at);
    }
    let mut tally = Tally::new(steps_max);
    for (key, own) in keys {
        let own_calls: Vec<_> = own.iter().map(|&at| calls[at]).collect();
        if is_witness(model, &key, &own_calls) {
            tally.linearized.by_witness += 1;
        } else {
            tally.search(model, key, &own_calls, |stuck| OperationId::new(own[stuck]))?;
        }
    }
    tally.end()
}

/// Checks every key of a history against [`KeyValue`]. A key begins absent. Acknowledgements below `Quorum` prove nothing,
/// and reads at other levels than `Linearizable` are left out.
///
/// # Errors
/// [`Unproven`]. An undecided key is reported only if no other is known to be wrong.
pub fn check_history(history: &History, steps_max: u64) -> Result<Linearized, Unproven<Bytes>> {
    let mut keys: BTreeMap<&Bytes, Vec<OperationId>> = BTreeMap::new();
    for (at, operation) in history.operations().iter().enumerate() {
        keys.entry(&operation.key).or_default().push(OperationId::new(at));
    }
    let mut tally = Tally::new(steps_max);
    for (key, ids) in keys {
        let operations: Vec<&Recorded> = ids.iter().map(|&id| history.operation(id)).collect();
        let one_stream = one_stream(&operations);
        let mut own = Vec::new();
        let mut calls: Vec<Call<'_, Recorded>> = Vec::new();
        for (&id, &operation) in ids.iter().zip(&operations) {
            if let Some(call) = call(operation, one_stream) {
                own.push(id);
                calls.push(call);
            }
        }
        // A weak acknowledgement's entry may have been replaced since, but mostly was not.
        let claimed: Vec<_> = calls
            .iter()
            .map(|call| Call { place: call.place.or_else(|| place(call.operation, one_stream)), ..*call })
            .collect();
        if one_stream && [&claimed, &calls].into_iter().any(|calls| is_witness(&KeyValue, key, calls)) {
            tally.linearized.by_witness += 1;
        } else if operations.iter().all(|operation| is_of_register(operation)) {
            check_key(key, &operations)?;
            tally.linearized.by_zones += 1;
        } else {
            drop_unseen(&mut calls, &mut own);
            tally.search(&KeyValue, key.clone(), &calls, |stuck| own[stuck])?;
        }
    }
    tally.end()
}

/// Positions in different streams have no order.
fn one_stream(operations: &[&Recorded]) -> bool {
    let mut streams = operations.iter().filter_map(|operation| operation.position).map(|position| position.stream);
    let first: Option<StreamId> = streams.next();
    first.is_some() && streams.all(|stream| Some(stream) == first)
}

/// The operation as linearizability has to see it; `None` if it has nothing to do with it.
fn call(operation: &Recorded, one_stream: bool) -> Option<Call<'_, Recorded>> {
    let strong = operation.is_strong();
    if operation.ended == Ended::Void || operation.is_read() && (!strong || operation.ended == Ended::Unknown) {
        return None;
    }
    let ended = operation.answered_at().filter(|_| strong);
    let sure = strong || operation.ended == Ended::Unknown;
    Some(Call { operation, began: operation.began, ended, place: place(operation, one_stream && sure) })
}

/// Where the log puts an operation, if positions can be compared.
fn place(operation: &Recorded, one_stream: bool) -> Option<Place> {
    let index: LogIndex = operation.position.filter(|_| one_stream)?.id.index;
    Some(if operation.is_read() { Place::After(index) } else { Place::At(index) })
}

/// Leaves out what is not known to have happened and what nobody has seen a trace of: if there is an order with it, there
/// is one without. Counters leave traces everywhere.
fn drop_unseen(calls: &mut Vec<Call<'_, Recorded>>, own: &mut Vec<OperationId>) {
    use replikit_core::WriteEffect;

    let mut seen: BTreeSet<&Bytes> = BTreeSet::new();
    for call in calls.iter() {
        match (&call.operation.what, &call.operation.ended) {
            (What::Add(_), _) => return,
            (_, Ended::Found { value: Some(value), .. }) => {
                seen.insert(value);
            }
            (_, Ended::Siblings { values, .. }) => seen.extend(values),
            (_, Ended::Applied { effect: WriteEffect::Mismatch { found: Some(found) }, .. }) => {
                seen.insert(found);
            }
            _ => {}
        }
        if let What::CompareAndSet { expected: Some(expected), .. } = &call.operation.what {
            seen.insert(expected);
        }
    }
    let unseen = |call: &Call<'_, Recorded>| {
        call.ended.is_none() && matches!(&call.operation.what, What::Write(value) if !seen.contains(value))
    };
    let keep: Vec<bool> = calls.iter().map(|call| !unseen(call)).collect();
    let mut at = keep.iter();
    calls.retain(|_| *at.next().expect("one for each call"));
    let mut at = keep.iter();
    own.retain(|_| *at.next().expect("one for each call"));
}

struct Tally<K> {
    linearized: Linearized,
    steps_max: u64,
    steps_left: u64,
    undecided: Option<K>,
}

impl<K: Clone + Ord + fmt::Debug> Tally<K> {
    fn new(steps_max: u64) -> Self {
        Self { linearized: Linearized::default(), steps_max, steps_left: steps_max, undecided: None }
    }

    fn search<M: Model<Key = K>>(
        &mut self,
        model: &M,
        key: K,
        calls: &[Call<'_, M::Operation>],
        id: impl Fn(usize) -> OperationId,
    ) -> Result<(), Unproven<K>> {
        match search(model, &key, calls, &mut self.steps_left) {
            Found::Order => self.linearized.by_search += 1,
            Found::Nothing { placed, stuck } => return Err(Unproven::NoOrder { key, placed, stuck: id(stuck) }),
            Found::Undecided => {
                self.undecided.get_or_insert(key);
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<Linearized, Unproven<K>> {
        self.linearized.steps = self.steps_max - self.steps_left;
        match self.undecided {
            None => Ok(self.linearized),
            Some(key) => Err(Unproven::Undecided { key, steps_max: self.steps_max }),
        }
    }
}
