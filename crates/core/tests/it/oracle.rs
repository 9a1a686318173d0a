//! Differential tests against the crate `crdts` 7.3, where it is right: its counter, its set and its register, under merges
//! of whole states.
//!
//! Not compared: its map (registers in maps are known to be wrong: rust-crdt#10 and #159, both open), its last-write-wins
//! register (no tie-break: two values under one marker are an error, and it has no causal order), deltas (it has none) and
//! resets of counters (likewise).

use std::collections::BTreeSet;

use crdts::{CmRDT, CvRDT, MVReg, Orswot, PNCounter};
use proptest::prelude::*;
use replikit_core::crdt::{AddWinsSet, Causal, Counter, MvRegister};
use replikit_core::{Dot, OriginId};

#[derive(Clone, Debug)]
enum Act {
    Add(usize, u8),
    Remove(usize, u8),
    Merge(usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0..3_usize, 0..4_u8).prop_map(|(at, value)| Act::Add(at, value)),
        2 => (0..3_usize, 0..4_u8).prop_map(|(at, value)| Act::Remove(at, value)),
        4 => (0..3_usize, 0..3_usize).prop_map(|(from, to)| Act::Merge(from, to)),
    ];
    proptest::collection::vec(act, 0..50)
}

#[derive(Default)]
struct Dots([u64; 3]);

impl Dots {
    fn next(&mut self, at: usize) -> Dot {
        self.0[at] += 1;
        Dot { origin: OriginId(at as u32 + 1), sequence: self.0[at] }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_set_is_that_of_crdts(acts in acts()) {
        let (mut dots, mut ours) = (Dots::default(), vec![Causal::<AddWinsSet<u8>>::new(); 3]);
        let mut theirs: Vec<Orswot<u8, usize>> = vec![Orswot::new(); 3];
        for act in acts {
            match act {
                Act::Add(at, value) => {
                    let dot = dots.next(at);
                    ours[at].mutate(|set| set.add(dot, value));
                    let op = theirs[at].add(value, theirs[at].read_ctx().derive_add_ctx(at));
                    theirs[at].apply(op);
                }
                Act::Remove(at, value) => {
                    let dot = dots.next(at);
                    ours[at].mutate(|set| set.remove(dot, &value));
                    let op = theirs[at].rm(value, theirs[at].contains(&value).derive_rm_ctx());
                    theirs[at].apply(op);
                }
                Act::Merge(from, to) => {
                    let (state, other) = (ours[from].clone(), theirs[from].clone());
                    ours[to].join(&state);
                    theirs[to].merge(other);
                }
            }
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let theirs: BTreeSet<u8> = theirs.read().val.into_iter().collect();
                prop_assert_eq!(ours.store.iter().copied().collect::<BTreeSet<_>>(), theirs);
            }
        }
    }

    #[test]
    fn the_counter_is_that_of_crdts(acts in acts()) {
        let (mut dots, mut ours) = (Dots::default(), vec![Causal::<Counter>::new(); 3]);
        let mut theirs: Vec<PNCounter<usize>> = vec![PNCounter::new(); 3];
        for act in acts {
            match act {
                Act::Add(at, value) => {
                    let dot = dots.next(at);
                    ours[at].mutate(|counter| counter.add(dot, value.into()));
                    let op = theirs[at].inc_many(at, value.into());
                    theirs[at].apply(op);
                }
                Act::Remove(at, value) => {
                    let dot = dots.next(at);
                    ours[at].mutate(|counter| counter.add(dot, -i64::from(value)));
                    let op = theirs[at].dec_many(at, value.into());
                    theirs[at].apply(op);
                }
                Act::Merge(from, to) => {
                    let (state, other) = (ours[from].clone(), theirs[from].clone());
                    ours[to].join(&state);
                    theirs[to].merge(other);
                }
            }
            for (ours, theirs) in ours.iter().zip(&theirs) {
                prop_assert_eq!(ours.store.value().to_string(), theirs.read().to_string());
            }
        }
    }

    #[test]
    fn the_register_is_that_of_crdts(acts in acts()) {
        let (mut dots, mut ours) = (Dots::default(), vec![Causal::<MvRegister<u8>>::new(); 3]);
        let mut theirs: Vec<MVReg<u8, usize>> = vec![MVReg::new(); 3];
        for act in acts {
            match act {
                Act::Add(at, value) | Act::Remove(at, value) => {
                    let dot = dots.next(at);
                    ours[at].mutate(|register| register.write(dot, value));
                    let op = theirs[at].write(value, theirs[at].read_ctx().derive_add_ctx(at));
                    theirs[at].apply(op);
                }
                Act::Merge(from, to) => {
                    let (state, other) = (ours[from].clone(), theirs[from].clone());
                    ours[to].join(&state);
                    theirs[to].merge(other);
                }
            }
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let mut mine: Vec<u8> = ours.store.values().map(|(_, value)| *value).collect();
                let mut read = theirs.read().val;
                mine.sort_unstable();
                read.sort_unstable();
                prop_assert_eq!(mine, read);
            }
        }
    }
}
