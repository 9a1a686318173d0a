//! The cheap proof of linearizability: the order of the log itself, in O(n log n).
//!
//! A history is linearizable if *some* order of its operations respects real time and is one that a single copy could have
//! gone through. Every reply says where in the log it stands; so that order is at hand, and only has to be checked. A valid
//! witness is a proof, whatever the replies claim; an invalid one proves nothing yet, for the claims may be wrong.

use replikit_core::Time;

use super::model::{Call, Model};

/// How often the model is asked in all about operations without an answer.
const TRIES_MAX: usize = 1 << 22;
/// How many of them are put in front of one answer at most.
const INSERTED_MAX: usize = 2;

/// Whether the log's order is a proof, for the calls of one key. Calls without an answer and without a place are put right
/// before the first answer that cannot be explained without them.
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
    // Those that began first are the least in the way.
    open.sort_by_key(|call| call.began);
    let mut insertion = Insertion { model, open, tries: TRIES_MAX };
    let mut state = model.initial(key);
    let mut latest_begin = Time::ZERO;
    for (_, call) in placed {
        let ended = call.ended.unwrap_or(Time::NEVER);
        let next = model.step(&state, call.operation).or_else(|| {
            let (next, began) = (1..=INSERTED_MAX).find_map(|depth| insertion.explain(&state, call, depth))?;
            latest_begin = latest_begin.max(began);
            Some(next)
        });
        // An operation that had ended before another began must not stand behind it.
        let Some(next) = next.filter(|_| ended >= latest_begin) else { return false };
        latest_begin = latest_begin.max(call.began);
        state = next;
    }
    true
}

struct Insertion<'c, 'o, M: Model> {
    model: &'c M,
    open: Vec<&'c Call<'o, M::Operation>>,
    tries: usize,
}

impl<M: Model> Insertion<'_, '_, M> {
    /// Puts so many open calls in front of one that cannot be explained without. Returns the state behind it, and the latest
    /// begin of what was put there.
    fn explain(&mut self, state: &M::State, call: &Call<'_, M::Operation>, depth: usize) -> Option<(M::State, Time)> {
        for at in 0..self.open.len() {
            let inserted = self.open[at];
            if call.ended.is_some_and(|ended| ended < inserted.began) || self.tries == 0 {
                return None;
            }
            self.tries -= 1;
            let Some(next) = self.model.step(state, inserted.operation) else { continue };
            if depth == 1 {
                if let Some(next) = self.model.step(&next, call.operation) {
                    self.open.remove(at);
                    return Some((next, inserted.began));
                }
                continue;
            }
            self.open.remove(at);
            if let Some((next, began)) = self.explain(&next, call, depth - 1) {
                return Some((next, began.max(inserted.began)));
            }
            self.open.insert(at, inserted);
        }
        None
    }
}
