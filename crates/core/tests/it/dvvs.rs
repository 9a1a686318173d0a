//! Dotted version vector sets against a model in which every version carries the full set of dots of its past.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use replikit_core::{CausalContext, Dot, Dvvs, OriginId, VersionVector};

type Dots = BTreeSet<Dot>;
type Live = BTreeMap<Dot, Dot>;

/// A key's versions as full histories: a version is live if it is known and in no known history. Values are the dots.
#[derive(Clone, Default, Debug)]
struct Naive {
    // Version, or a delete, with everything that its writer had seen.
    known: BTreeMap<Dot, (bool, Dots)>,
}

impl Naive {
    fn past(&self) -> Dots {
        self.known.iter().flat_map(|(&dot, (_, past))| past.iter().copied().chain([dot])).collect()
    }

    fn live(&self) -> Live {
        let overwritten: Dots = self.known.values().flat_map(|(_, past)| past.iter().copied()).collect();
        let live = |(dot, (is_value, _)): (&Dot, &(bool, Dots))| {
            (*is_value && !overwritten.contains(dot)).then_some((*dot, *dot))
        };
        self.known.iter().filter_map(live).collect()
    }
}

fn live(copy: &Dvvs<Dot>) -> Live {
    copy.versions().map(|(dot, value)| (dot, *value)).collect()
}

/// What happens to one key on a few replicas.
#[derive(Clone, Copy, Debug)]
enum Step {
    // A client reads at `read` (nothing when None) and writes at `write`.
    Put { read: Option<usize>, write: usize },
    Delete { read: usize, write: usize },
    // The whole key goes over.
    Sync { from: usize, to: usize },
    // Only the newest write of `from`'s own origin goes over, as from its log, whatever came before it.
    Ship { from: usize, to: usize },
}

#[derive(Clone)]
struct World {
    copies: Vec<(Dvvs<Dot>, Naive)>,
    logs: Vec<Vec<(Dot, CausalContext, bool, Dots)>>,
}

impl World {
    fn new(replicas: usize) -> Self {
        Self { copies: vec![Default::default(); replicas], logs: vec![Vec::new(); replicas] }
    }

    fn step(&mut self, step: Step) {
        let nothing = VersionVector::new();
        match step {
            Step::Put { read, write } => self.write(read, write, true),
            Step::Delete { read, write } => self.write(Some(read), write, false),
            Step::Sync { from, to } => {
                let (copy, naive) = self.copies[from].clone();
                let before = live(&self.copies[to].0);
                let replaced: Live = self.copies[to].0.join(&nothing, &copy, &nothing).into_iter().collect();
                self.copies[to].1.known.extend(naive.known);
                let gone = before.into_iter().filter(|(dot, _)| !live(&self.copies[to].0).contains_key(dot)).collect();
                assert_eq!(replaced, gone, "what was replaced is reported");
            }
            Step::Ship { from, to } => {
                if let Some(entry) = self.logs[from].last().cloned() {
                    self.take(to, entry);
                }
            }
        }
        for (replica, (copy, naive)) in self.copies.iter().enumerate() {
            assert_eq!(live(copy), naive.live(), "replica {replica} after {step:?}");
        }
    }

    fn write(&mut self, read: Option<usize>, write: usize, is_value: bool) {
        let nothing = VersionVector::new();
        let (context, past) = read.map_or_else(Default::default, |read| {
            let (copy, naive) = &self.copies[read];
            (copy.context(&nothing), naive.past())
        });
        let dot = Dot { origin: OriginId(write as u32 + 1), sequence: self.logs[write].len() as u64 + 1 };
        let entry = (dot, context, is_value, past);
        self.logs[write].push(entry.clone());
        self.take(write, entry);
    }

    fn take(&mut self, at: usize, (dot, context, is_value, past): (Dot, CausalContext, bool, Dots)) {
        let (copy, naive) = &mut self.copies[at];
        if is_value {
            copy.update(&VersionVector::new(), dot, &context, dot);
        } else {
            copy.discard(&context);
            copy.mark(dot);
        }
        naive.known.insert(dot, (is_value, past));
    }
}

fn steps(replicas: usize) -> Vec<Step> {
    let all = || 0..replicas;
    let pairs = || all().flat_map(move |from| all().filter(move |&to| to != from).map(move |to| (from, to)));
    let mut steps: Vec<Step> = all().map(|write| Step::Put { read: None, write }).collect();
    steps.extend(all().flat_map(|read| all().map(move |write| Step::Put { read: Some(read), write })));
    steps.extend(all().map(|at| Step::Delete { read: at, write: at }));
    steps.extend(pairs().map(|(from, to)| Step::Sync { from, to }));
    steps.extend(pairs().map(|(from, to)| Step::Ship { from, to }));
    steps
}

fn explore(world: &World, steps: &[Step], depth: usize) -> u64 {
    if depth == 0 {
        return 1;
    }
    let mut visited = 0;
    for &step in steps {
        let mut next = world.clone();
        next.step(step);
        visited += explore(&next, steps, depth - 1);
    }
    visited
}

#[test]
fn every_history_of_four_operations_on_two_replicas_has_exactly_the_right_siblings() {
    assert_eq!(explore(&World::new(2), &steps(2), 4), 12_u64.pow(4));
}

#[test]
fn every_history_of_four_operations_on_three_replicas_has_exactly_the_right_siblings() {
    assert_eq!(explore(&World::new(3), &steps(3), 4), 27_u64.pow(4));
}

/// One node with several keys, whose contexts are stripped to nothing but what lies above its base.
#[derive(Clone, Default)]
struct Node {
    base: VersionVector,
    keys: BTreeMap<u8, Dvvs<Dot>>,
    naive: BTreeMap<u8, Naive>,
}

#[derive(Clone, Debug)]
enum Act {
    Put { at: usize, key: u8, read: bool },
    Delete { at: usize, key: u8 },
    // Entry number `entry` of the log of `from` arrives at `to`: lost, late, repeated and out of order as it comes.
    Ship { from: usize, to: usize, entry: prop::sample::Index },
    // A whole key arrives with the sender's base.
    Key { from: usize, to: usize, key: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    let (at, key) = (0..3_usize, 0..3_u8);
    prop_oneof![
        3 => (at.clone(), key.clone(), any::<bool>()).prop_map(|(at, key, read)| Act::Put { at, key, read }),
        1 => (at.clone(), key.clone()).prop_map(|(at, key)| Act::Delete { at, key }),
        6 => (at.clone(), at.clone(), any::<prop::sample::Index>())
            .prop_map(|(from, to, entry)| Act::Ship { from, to, entry }),
        2 => (at.clone(), at, key).prop_map(|(from, to, key)| Act::Key { from, to, key }),
    ]
}

type Logged = (u8, Dot, CausalContext, bool, Dots);

fn apply(node: &mut Node, (key, dot, context, is_value, past): &Logged) {
    if node.base.contains(*dot) {
        return;
    }
    let copy = node.keys.entry(*key).or_default();
    if *is_value {
        copy.update(&node.base, *dot, context, *dot);
    } else {
        copy.discard(context);
        copy.mark(*dot);
    }
    assert!(node.base.add(*dot));
    copy.strip(&node.base);
    node.naive.entry(*key).or_default().known.insert(*dot, (*is_value, past.clone()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Trap: a key's context, compressed to a maximum per origin, drops siblings at a replica that holds the key's writes
    /// sparsely. A base vector and the exact rest never does.
    #[test]
    fn stripped_keys_of_sparse_receivers_have_exactly_the_right_siblings(acts in proptest::collection::vec(act(), 0..40)) {
        let mut nodes = vec![Node::default(); 3];
        let mut logs: Vec<Vec<Logged>> = vec![Vec::new(); 3];
        for act in acts {
            match act {
                Act::Put { at, key, .. } | Act::Delete { at, key } => {
                    let is_value = matches!(act, Act::Put { .. });
                    let node = &mut nodes[at];
                    let (mut context, mut past) = Default::default();
                    if !matches!(act, Act::Put { read: false, .. }) {
                        context = node.keys.entry(key).or_default().context(&node.base);
                        past = node.naive.entry(key).or_default().past();
                    }
                    let dot = Dot { origin: OriginId(at as u32 + 1), sequence: logs[at].len() as u64 + 1 };
                    logs[at].push((key, dot, context, is_value, past));
                    apply(node, logs[at].last().unwrap());
                }
                Act::Ship { from, to, entry } => {
                    if !logs[from].is_empty() {
                        let entry = &logs[from][entry.index(logs[from].len())];
                        apply(&mut nodes[to], entry);
                    }
                }
                Act::Key { from, to, key } => {
                    let sender = nodes[from].clone();
                    let receiver = &mut nodes[to];
                    let copy = sender.keys.get(&key).cloned().unwrap_or_default();
                    let mine = receiver.keys.entry(key).or_default();
                    mine.join(&receiver.base, &copy, &sender.base);
                    mine.strip(&receiver.base);
                    let known = sender.naive.get(&key).cloned().unwrap_or_default().known;
                    receiver.naive.entry(key).or_default().known.extend(known);
                }
            }
            for node in &nodes {
                for (key, naive) in &node.naive {
                    prop_assert_eq!(live(&node.keys[key]), naive.live());
                }
            }
        }
        // All logs arrive everywhere: the same everywhere, and nothing at rest but dots and values.
        for node in &mut nodes {
            logs.iter().flatten().for_each(|entry| apply(node, entry));
            for copy in node.keys.values_mut() {
                copy.strip(&node.base);
                prop_assert!(copy.above().is_empty());
                prop_assert_eq!(copy.is_void(), copy.is_empty());
            }
            node.keys.retain(|_, copy| !copy.is_void());
        }
        prop_assert_eq!(&nodes[0].keys, &nodes[1].keys);
        prop_assert_eq!(&nodes[1].keys, &nodes[2].keys);
        let bytes = nodes[0].keys.values().next().map(|copy| (copy.len(), postcard::to_stdvec(copy).unwrap().len()));
        if let Some((1, bytes)) = bytes {
            prop_assert!(bytes <= 2 + 2 * 3, "one pair of dot and value, nothing else: {} bytes", bytes);
        }
    }
}

#[test]
fn a_key_that_was_collected_and_written_again_keeps_the_new_write() {
    let (mut base, mut key) = (VersionVector::new(), Dvvs::new());
    let dot = |sequence| Dot { origin: OriginId(1), sequence };
    key.update(&base, dot(1), &CausalContext::new(), "old");
    base.add(dot(1));
    assert_eq!(key.discard(&key.context(&base)), [(dot(1), "old")]);
    key.mark(dot(2));
    base.add(dot(2));
    key.strip(&base);
    assert!(key.is_void(), "the delete leaves nothing behind");
    let mut again = Dvvs::new();
    again.update(&base, dot(3), &CausalContext::new(), "new");
    let mut late = Dvvs::new();
    late.update(&VersionVector::new(), dot(1), &CausalContext::new(), "old");
    again.join(&base, &late, &VersionVector::new());
    assert_eq!(again.versions().collect::<Vec<_>>(), [(dot(3), &"new")]);
}

#[test]
fn a_write_that_has_seen_all_siblings_replaces_them_and_reports_them() {
    let (nothing, mut key) = (VersionVector::new(), Dvvs::new());
    let dot = |origin| Dot { origin: OriginId(origin), sequence: 1 };
    key.update(&nothing, dot(1), &CausalContext::new(), 'a');
    key.update(&nothing, dot(2), &CausalContext::new(), 'b');
    assert_eq!(key.len(), 2);
    let seen = key.context(&nothing);
    assert_eq!(key.update(&nothing, dot(3), &seen, 'c'), [(dot(1), 'a'), (dot(2), 'b')]);
    assert_eq!(key.update(&nothing, dot(1), &CausalContext::new(), 'a'), [], "a late repetition changes nothing");
    assert_eq!(key.versions().collect::<Vec<_>>(), [(dot(3), &'c')]);
}
