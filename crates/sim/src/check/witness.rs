//! The cheap proof of linearizability: the order of the log itself, in O(n log n).
//!
//! A history is linearizable if *some* order of its operations respects real time and is one that a single copy could have
//! gone through. Every reply says where in the log it stands; so that order is at hand, and only has to be checked. A valid
//! witness is a proof, whatever the replies claim; an invalid one proves nothing yet, for the claims may be wrong.

use replikit_core::Time;

use super::model::{Call, Model};

/// How many operations without an answer are tried in all where an answer cannot be explained without one.
const TRIES_MAX: usize = 1 << 20;

/// Whether the log's order is a proof, for the calls of one key. A call without an answer and without a place is put right
/// before the first answer that needs it.
pub(super) fn is_witness<M: Model>(model: &M, key: &M::Key, calls: &[Call<'_, M::Operation>]) -> bool {
    let mut placed = Vec::with_capacity(calls.len());
    let mut open = Vec::new();
    for call in calls {
        match (call.place, call.ended) {
            (Some(place), _) => placed.push((place.order(), call)),
            (None, None) => open.push(call),
            (None, Some(_)) => return false,
        }
    }
    placed.sort_by_key(|(order, call)| (*order, call.began));
    let mut state = model.initial(key);
    let mut latest_begin = Time::ZERO;
    let mut tries = TRIES_MAX;
    for (_, call) in placed {
        let mut next = model.step(&state, call.operation);
        if next.is_none() {
            if tries < open.len() {
                return false;
            }
            tries -= open.len();
            let with =
                |needed: &Call<'_, M::Operation>| model.step(&model.step(&state, needed.operation)?, call.operation);
            if let Some(at) = open.iter().position(|needed| with(needed).is_some()) {
                let needed = open.swap_remove(at);
                next = with(needed);
                latest_begin = latest_begin.max(needed.began);
            }
        }
        // An operation that had ended before another began must not stand behind it.
        let Some(next) = next.filter(|_| call.ended.unwrap_or(Time::NEVER) >= latest_begin) else { return false };
        latest_begin = latest_begin.max(call.began);
        state = next;
    }
    true
}
