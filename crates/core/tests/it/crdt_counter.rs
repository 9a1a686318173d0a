//! [`Counter`] against a reference that looks at every addition on every join, byte for byte.
//!
//! What a counter may not change is how it is written to logs and wires, nor what a join of anything with anything gives.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use replikit_core::crdt::{Causal, CausalError, Counter, CrdtKind, CrdtState, DotStore};
use replikit_core::{CausalContext, Dot, OriginId, Seen, VersionVector};
use serde::{Deserialize, Serialize};

const ORIGINS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Addition {
    sum: i128,
    /// The first sequence in it and the mark of all, where it is more than one.
    folded: Option<(u64, u64)>,
}

impl Addition {
    fn from(&self, dot: &Dot) -> u64 {
        self.folded.map_or(dot.sequence, |(from, _)| from)
    }

    fn mark(&self, dot: &Dot) -> u64 {
        let mark = |_| xxhash_rust::xxh3::xxh3_64_with_seed(&dot.sequence.to_le_bytes(), dot.origin.0.into());
        self.folded.map_or_else(|| mark(()), |(_, mark)| mark)
    }
}

/// The definitions, one after the other: no index, nothing kept beside the additions.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
struct Reference {
    additions: BTreeMap<Dot, Addition>,
    context: CausalContext,
}

impl Reference {
    fn of(counter: &Causal<Counter>) -> Self {
        postcard::from_bytes(&counter.to_bytes()).expect("the fields are those of a counter")
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("it encodes into memory")
    }

    fn counter(&self) -> Causal<Counter> {
        postcard::from_bytes(&self.bytes()).expect("the fields are those of a counter")
    }

    fn join_at(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) {
        let (seen, other_seen) =
            (Seen { base, above: &self.context }, Seen { base: other_base, above: &other.context });
        let mut joined = BTreeMap::new();
        for (dot, mine) in &self.additions {
            match other.additions.get(dot) {
                // Of two that were folded differently the one that holds more.
                Some(theirs) if theirs.from(dot) < mine.from(dot) => joined.insert(*dot, *theirs),
                Some(theirs) if theirs.from(dot) == mine.from(dot) => joined.insert(*dot, *mine.max(theirs)),
                Some(_) => joined.insert(*dot, *mine),
                None if other_seen.contains(*dot) => None,
                None => joined.insert(*dot, *mine),
            };
        }
        for (dot, theirs) in &other.additions {
            if !self.additions.contains_key(dot) && !seen.contains(*dot) {
                joined.insert(*dot, *theirs);
            }
        }
        self.additions = joined;
        self.context.join(&other.context);
        self.context.fill(other_base);
    }

    fn fold(&mut self, stable: &VersionVector) {
        for origin in (1..=ORIGINS).map(OriginId) {
            let is_stable = |dot: &Dot| dot.origin == origin && dot.sequence <= stable.base(origin);
            let folded: Vec<(Dot, Addition)> = self.additions.extract_if(.., |dot, _| is_stable(dot)).collect();
            if let (Some((first, earliest)), Some((last, only))) = (folded.first(), folded.last()) {
                let sum = folded.iter().fold(0_i128, |sum, (_, addition)| sum.wrapping_add(addition.sum));
                let mark = folded.iter().fold(0_u64, |mark, (dot, addition)| mark.wrapping_add(addition.mark(dot)));
                let run = (folded.len() > 1).then_some((earliest.from(first), mark));
                self.additions.insert(*last, Addition { sum, folded: run.or(only.folded) });
            }
        }
    }

    fn folds(&self, stable: &VersionVector) -> bool {
        let mut folded = self.clone();
        folded.fold(stable);
        folded.additions.len() < self.additions.len()
    }

    fn is_folded(&self) -> bool {
        let origins: std::collections::BTreeSet<OriginId> = self.additions.keys().map(|dot| dot.origin).collect();
        origins.len() == self.additions.len()
    }

    /// Whether each entry that was folded begins before its own dot.
    fn is_sound(&self) -> bool {
        self.additions
            .iter()
            .all(|(dot, addition)| addition.folded.is_none_or(|(from, _)| (1..dot.sequence).contains(&from)))
    }

    fn mark(&self) -> u64 {
        self.additions.iter().fold(0, |mark, (dot, addition)| mark.wrapping_add(addition.mark(dot)))
    }

    fn value(&self) -> i64 {
        let sum = self.additions.values().fold(0_i128, |sum, addition| sum.wrapping_add(addition.sum));
        sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    fn agrees_with(&self, counter: &Causal<Counter>) -> Result<(), TestCaseError> {
        let bytes = self.bytes();
        prop_assert_eq!(&counter.to_bytes()[..], &bytes[..]);
        prop_assert_eq!(&self.counter(), counter, "what is kept beside the additions follows from them");
        prop_assert_eq!(counter.store.value(), self.value());
        prop_assert_eq!(counter.store.entries(), self.additions.len());
        prop_assert_eq!(counter.store.mark(), self.mark());
        prop_assert_eq!(counter.store.is_folded(), self.is_folded());
        Ok(())
    }
}

fn any_dot() -> impl Strategy<Value = Dot> {
    (1..=ORIGINS, 1..12_u64).prop_map(|(origin, sequence)| Dot { origin: OriginId(origin), sequence })
}

/// A counter and the vector of the replica that has it; together they have seen its additions, and others.
fn any_value() -> impl Strategy<Value = (Reference, VersionVector)> {
    let sum = prop_oneof![-3..4_i128, Just(i128::MAX), Just(i128::MIN), Just(i128::from(i64::MAX))];
    let run = (any::<Index>(), any::<u64>());
    let additions = proptest::collection::vec((any_dot(), run, sum, any::<bool>()), 0..12);
    let seen = || proptest::collection::vec(any_dot(), 0..12);
    (additions, seen(), seen()).prop_map(|(drawn, above, base)| {
        let mut value = Reference { context: above.into_iter().collect(), ..Reference::default() };
        let mut base: VersionVector = base.into_iter().collect();
        for (dot, (from, mark), sum, in_base) in drawn {
            let from = 1 + from.index(dot.sequence as usize) as u64;
            let folded = (from < dot.sequence).then_some((from, mark));
            value.additions.insert(dot, Addition { sum, folded });
            if in_base {
                base.insert(dot);
            } else {
                value.context.insert(dot);
            }
        }
        (value, base)
    })
}

#[derive(Clone, Debug)]
enum Act {
    Add {
        at: usize,
        amount: i64,
    },
    Reset {
        at: usize,
    },
    /// Any delta ever made: late, again, before those that it follows.
    Delta {
        to: usize,
        which: Index,
    },
    State {
        to: usize,
        from: usize,
    },
    Fold {
        at: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let node = || 0..ORIGINS as usize;
    let amount = prop_oneof![9 => -5..6_i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    prop_oneof![
        6 => (node(), amount).prop_map(|(at, amount)| Act::Add { at, amount }),
        1 => node().prop_map(|at| Act::Reset { at }),
        8 => (node(), any::<Index>()).prop_map(|(to, which)| Act::Delta { to, which }),
        2 => (node(), node()).prop_map(|(to, from)| Act::State { to, from }),
        2 => node().prop_map(|at| Act::Fold { at }),
    ]
}

/// One replica: its counter, the same by reference, the same where nothing is ever folded, and what it holds.
#[derive(Clone, Default)]
struct Node {
    counter: Causal<Counter>,
    reference: Reference,
    plain: Causal<Counter>,
    held: VersionVector,
}

impl Node {
    fn take(&mut self, dot: Dot, delta: &Causal<Counter>) {
        self.counter.join(delta);
        self.reference.join_at(&VersionVector::new(), &Reference::of(delta), &VersionVector::new());
        self.plain.join(delta);
        self.held.insert(dot);
    }

    /// A copy from another replica; at rest and on the wire both are stripped of their replica's vector.
    fn take_state(&mut self, other: &Self) {
        self.counter.join_at(&self.held, &other.counter, &other.held);
        self.reference.join_at(&self.held, &other.reference, &other.held);
        self.plain.join_at(&self.held, &other.plain, &other.held);
        self.held.join(&other.held);
    }
}

fn run(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut nodes = vec![Node::default(); ORIGINS as usize];
    let mut sent: Vec<(Dot, Causal<Counter>)> = Vec::new();
    let mut written = [0; ORIGINS as usize];
    for act in acts {
        match act {
            Act::Add { at, .. } | Act::Reset { at } => {
                written[at] += 1;
                let dot = Dot { origin: OriginId(at as u32 + 1), sequence: written[at] };
                let store = &nodes[at].counter.store;
                let delta = if let Act::Add { amount, .. } = act { store.add(dot, amount) } else { store.reset(dot) };
                nodes[at].take(dot, &delta);
                sent.push((dot, delta));
            }
            Act::Delta { to, which } => {
                if !sent.is_empty() {
                    let (dot, delta) = &sent[which.index(sent.len())];
                    nodes[to].take(*dot, delta);
                }
            }
            Act::State { to, from } => {
                let from = nodes[from].clone();
                nodes[to].take_state(&from);
            }
            Act::Fold { at } => {
                let mine = &nodes[at].held;
                if nodes.iter().all(|node| mine.covers(&node.held)) {
                    let stable = nodes.iter().fold(mine.clone(), |stable, node| stable.meet(&node.held));
                    nodes[at].counter.store.fold(&stable);
                    nodes[at].reference.fold(&stable);
                }
            }
        }
        for node in &nodes {
            node.reference.agrees_with(&node.counter)?;
            prop_assert_eq!(node.counter.store.value(), node.plain.store.value());
            prop_assert_eq!(
                node.counter.store.mark(),
                node.plain.store.mark(),
                "the mark tells which additions are live"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_two_counters_join_as_the_definition_says(
        (mine, base) in any_value(),
        (theirs, other_base) in any_value(),
    ) {
        let (mut counter, mut reference) = (mine.counter(), mine);
        reference.agrees_with(&counter)?;
        counter.join_at(&base, &theirs.counter(), &other_base);
        reference.join_at(&base, &theirs, &other_base);
        reference.agrees_with(&counter)?;
        // What has been joined is known.
        counter.join_at(&base, &theirs.counter(), &other_base);
        reference.agrees_with(&counter)?;
    }

    #[test]
    fn any_counter_folds_as_the_definition_says((mine, stable) in any_value()) {
        let (mut counter, mut reference) = (mine.counter(), mine);
        prop_assert_eq!(counter.store.folds(&stable), reference.folds(&stable));
        let mark = counter.store.mark();
        counter.store.fold(&stable);
        reference.fold(&stable);
        prop_assert_eq!(counter.store.mark(), mark, "folding leaves the mark as it is");
        reference.agrees_with(&counter)?;
    }

    #[test]
    fn histories_leave_the_same_bytes_whatever_arrives_when(acts in proptest::collection::vec(act(), 0..60)) {
        run(acts)?;
    }

    #[test]
    fn the_same_bytes_are_counters_and_become_the_same_bytes(
        bytes in proptest::collection::vec(prop_oneof![3 => 0..4_u8, 1 => any::<u8>()], 0..40),
    ) {
        let read = CrdtState::decode(CrdtKind::Counter, &bytes);
        match postcard::take_from_bytes::<Reference>(&bytes) {
            Ok((reference, [])) if reference.is_sound() => {
                let CrdtState::Counter(counter) = read.expect("its fields are there") else { unreachable!() };
                reference.agrees_with(&counter)?;
            }
            _ => prop_assert_eq!(read, Err(CausalError::Malformed)),
        }
    }
}

/// Three additions of one origin in one entry, one of another beside it.
#[test]
fn a_counter_is_written_the_same_by_every_version() {
    let mut counter = Causal::<Counter>::new();
    let dot = |origin, sequence| Dot { origin: OriginId(origin), sequence };
    for sequence in 1..=3 {
        counter.mutate(|counter| counter.add(dot(1 << 20 | 1, sequence), 100));
    }
    counter.store.fold(&counter.context.vector().clone());
    counter.mutate(|counter| counter.add(dot(2 << 20 | 1, 2), -1));
    let bytes = [
        2, 1, 1, 3, 216, 4, 1, 1, 238, 184, 230, 164, 164, 157, 184, 226, 103, 2, 1, 2, 1, 0, 2, 1, 1, 3, 0, 2, 1, 0,
        1, 0, 0,
    ];
    assert_eq!(counter.to_bytes()[..], bytes);
    assert_eq!(Causal::<Counter>::from_bytes(&bytes), Ok(counter));
}
