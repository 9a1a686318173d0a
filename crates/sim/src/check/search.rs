//! The general check of linearizability: a search for an order, with a memory of what was tried.
//!
//! Sources: Wing and Gong, *Testing and Verifying Concurrent Objects*, 1993; Lowe, *Testing for Linearizability*, 2017, for
//! the memory of (operations placed, state); Horn and Kroening 2015 for the split by key. The problem is NP-complete, so
//! the work is bounded, and an unfinished search says so.
//!
//! Three things keep the search near-linear on real histories. An operation that only reads, and can be placed now, loses
//! nothing by being placed now, so it is no choice. An operation without an answer is placed only where no answered one
//! leads on. And the memory holds what differs from the fully placed past: a few words for the operations under way, however
//! long the history is.

use std::collections::HashSet;

use replikit_core::Time;

use super::model::{Call, Model};

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An order.
    Order,
    /// That there is none. At best so many answered operations could be placed, and then this one could not.
    Nothing { placed: usize, stuck: usize },
    /// Nothing yet, and the work allowed is done.
    Undecided,
}

const NONE: u32 = u32::MAX;

/// Begins and ends in the order of time, as a list from which those of placed operations are taken out.
struct Timeline {
    // Of each entry: the one before, the one behind. The last entry of all is the list's anchor.
    prev: Vec<u32>,
    next: Vec<u32>,
    // Which call, and whether it is its begin.
    of: Vec<(u32, bool)>,
    // Of each call: its entries.
    begins: Vec<u32>,
    ends: Vec<u32>,
}

impl Timeline {
    fn new<O>(calls: &[&Call<'_, O>]) -> Self {
        let mut times: Vec<(Time, bool, u32)> = Vec::with_capacity(calls.len() * 2);
        for (at, call) in calls.iter().enumerate() {
            // At the same instant begins come first: such operations are concurrent.
            times.push((call.began, false, at as u32));
            if let Some(ended) = call.ended {
                times.push((ended, true, at as u32));
            }
        }
        times.sort_unstable();
        let entries = times.len() as u32;
        let (mut begins, mut ends) = (vec![NONE; calls.len()], vec![NONE; calls.len()]);
        for (entry, &(_, is_end, call)) in times.iter().enumerate() {
            let of = if is_end { &mut ends } else { &mut begins };
            of[call as usize] = entry as u32;
        }
        Self {
            prev: (0..=entries).map(|entry| if entry == 0 { entries } else { entry - 1 }).collect(),
            next: (0..=entries).map(|entry| if entry == entries { 0 } else { entry + 1 }).collect(),
            of: times.into_iter().map(|(_, is_end, call)| (call, !is_end)).collect(),
            begins,
            ends,
        }
    }

    fn first(&self) -> u32 {
        self.next[self.of.len()]
    }

    fn cut(&mut self, entry: u32) {
        if entry != NONE {
            let (prev, next) = (self.prev[entry as usize], self.next[entry as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
    }

    fn mend(&mut self, entry: u32) {
        if entry != NONE {
            let (prev, next) = (self.prev[entry as usize], self.next[entry as usize]);
            self.next[prev as usize] = entry;
            self.prev[next as usize] = entry;
        }
    }

    fn take_out(&mut self, call: u32) {
        self.cut(self.begins[call as usize]);
        self.cut(self.ends[call as usize]);
    }

    fn put_back(&mut self, call: u32) {
        self.mend(self.ends[call as usize]);
        self.mend(self.begins[call as usize]);
    }
}

/// Which calls are placed. Everything below `full` words is; everything from `used` words on is not.
struct Placed {
    words: Vec<u64>,
    full: usize,
    used: usize,
}

impl Placed {
    fn new(calls: usize) -> Self {
        Self { words: vec![0; calls.div_ceil(64)], full: 0, used: 0 }
    }

    fn set(&mut self, call: usize) {
        let word = call / 64;
        self.words[word] |= 1 << (call % 64);
        self.used = self.used.max(word + 1);
        while self.words.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    fn clear(&mut self, call: usize) {
        let word = call / 64;
        self.words[word] &= !(1 << (call % 64));
        self.full = self.full.min(word);
        while self.used > 0 && self.words[self.used - 1] == 0 {
            self.used -= 1;
        }
    }

    fn window(&self) -> &[u64] {
        &self.words[self.full.min(self.used)..self.used]
    }
}

/// What is looked for in a state: the calls are gone through once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Reads,
    Answered,
    Open,
}

/// Searches an order for the calls of one key. `steps` is how often the model may still be asked.
pub(super) fn search<M: Model>(model: &M, key: &M::Key, calls: &[Call<'_, M::Operation>], steps: &mut u64) -> Found {
    // Answered ones by begin, so that those under way are neighbours; the others apart, for they may stay open for ever.
    let mut order: Vec<usize> = (0..calls.len()).collect();
    order.sort_by_key(|&at| (calls[at].ended.is_none(), calls[at].began));
    let sorted: Vec<_> = order.iter().map(|&at| &calls[at]).collect();
    let answered = sorted.partition_point(|call| call.ended.is_some());
    let mut timeline = Timeline::new(&sorted);
    let (mut placed, mut open) = (Placed::new(answered), Placed::new(sorted.len() - answered));
    let mut seen: HashSet<(Box<[u64]>, M::State)> = HashSet::new();
    let mut state = model.initial(key);
    // What was placed: the call, the state before it, and what it was found by.
    let mut stack: Vec<(u32, M::State, Look)> = Vec::new();
    let (mut left, mut best, mut stuck) = (answered, 0, 0);
    let mut entry = timeline.first();
    let mut look = Look::Reads;
    while left > 0 {
        let (call, is_begin) = timeline.of[entry as usize];
        let at = call as usize;
        if is_begin {
            let kind = match at < answered {
                true if model.is_read(sorted[at].operation) => Look::Reads,
                true => Look::Answered,
                false => Look::Open,
            };
            if kind == look {
                if *steps == 0 {
                    return Found::Undecided;
                }
                *steps -= 1;
                // What may never have happened, and would change nothing, need not happen.
                let next = model.step(&state, sorted[at].operation);
                if let Some(next) = next.filter(|next| kind != Look::Open || *next != state) {
                    let (set, bit) = if at < answered { (&mut placed, at) } else { (&mut open, at - answered) };
                    set.set(bit);
                    if kind == Look::Reads || seen.insert((mark(&placed, &open), next.clone())) {
                        stack.push((call, core::mem::replace(&mut state, next), kind));
                        timeline.take_out(call);
                        left -= usize::from(at < answered);
                        look = Look::Reads;
                        entry = timeline.first();
                        continue;
                    }
                    let (set, bit) = if at < answered { (&mut placed, at) } else { (&mut open, at - answered) };
                    set.clear(bit);
                }
            }
            entry = timeline.next[entry as usize];
            continue;
        }
        if look != Look::Open {
            look = if look == Look::Reads { Look::Answered } else { Look::Open };
            entry = timeline.first();
            continue;
        }
        // An operation has ended here that could not be placed: the last choice was wrong.
        if answered - left >= best {
            (best, stuck) = (answered - left, order[at]);
        }
        loop {
            let Some((call, before, kind)) = stack.pop() else {
                return Found::Nothing { placed: best, stuck };
            };
            let at = call as usize;
            if at < answered {
                placed.clear(at);
                left += 1;
            } else {
                open.clear(at - answered);
            }
            timeline.put_back(call);
            state = before;
            if kind != Look::Reads {
                look = kind;
                entry = timeline.next[timeline.begins[at] as usize];
                break;
            }
        }
    }
    Found::Order
}

fn mark(placed: &Placed, open: &Placed) -> Box<[u64]> {
    let (window, apart) = (placed.window(), open.window());
    let mut mark = Vec::with_capacity(3 + window.len() + apart.len());
    mark.extend([placed.full as u64, window.len() as u64, open.full as u64]);
    mark.extend(window);
    mark.extend(apart);
    mark.into_boxed_slice()
}
