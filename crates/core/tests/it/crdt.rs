//! Mergeable values against a model that keeps every operation with everything that it has seen.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use replikit_core::crdt::{
    AddWinsSet, Causal, CausalError, Counter, CrdtKind, DotStore, EnableWinsFlag, LwwRegister, Map, MvRegister, Path,
};
use replikit_core::{CausalContext, Dot, HybridTimestamp, OriginId, Stamp, VersionVector};

type Dots = BTreeSet<Dot>;

#[derive(Clone, Debug)]
enum Change {
    Add(i64),
    Reset,
    Newest(u64, u8),
    ClearNewest,
    Write(u8),
    ClearWrite,
    Insert(u8),
    Erase(u8),
    ClearSet,
    Enable,
    Disable,
    // Everything at and below the path.
    Remove,
}

/// One operation with all that its replica knew.
#[derive(Clone, Debug)]
struct Op {
    path: Path,
    change: Change,
    past: Dots,
    // Of the past, the operations that had an effect still and that this one ends.
    ends: Dots,
}

impl Op {
    /// Whether this operation ends an earlier one that it has seen.
    fn ends(&self, earlier: &Self) -> bool {
        let same = self.path == earlier.path;
        match (&self.change, &earlier.change) {
            (Change::Remove, _) => earlier.path.starts_with(&self.path),
            (Change::Reset, Change::Add(_)) | (Change::Disable | Change::Enable, Change::Enable) => same,
            (Change::Newest(..) | Change::ClearNewest, Change::Newest(..)) => same,
            (Change::Write(_) | Change::ClearWrite, Change::Write(_)) => same,
            (Change::Insert(mine) | Change::Erase(mine), Change::Insert(theirs)) => same && mine == theirs,
            (Change::ClearSet, Change::Insert(_)) => same,
            _ => false,
        }
    }
}

type Known = BTreeMap<Dot, Op>;

/// The operations that nobody known has ended.
fn in_effect(known: &Known) -> Known {
    let ended: Dots = known.values().flat_map(|op| op.ends.iter().copied()).collect();
    known.iter().filter(|(dot, _)| !ended.contains(dot)).map(|(dot, op)| (*dot, op.clone())).collect()
}

/// The same from full pasts; equal to [`in_effect`] where everything has arrived.
fn in_effect_by_past(known: &Known) -> Known {
    let ended = |dot: &Dot, op: &Op| known.values().any(|later| later.past.contains(dot) && later.ends(op));
    known.iter().filter(|(dot, op)| !ended(dot, op)).map(|(dot, op)| (*dot, op.clone())).collect()
}

type Shown = (i64, Option<u8>, Vec<u8>, Vec<u8>, bool);

fn shown_by_model(effective: &Known, path: &Path) -> Shown {
    let of = || effective.iter().filter(|(_, op)| op.path == *path).map(|(dot, op)| (*dot, &op.change));
    let newest = of().filter_map(|(dot, change)| match change {
        Change::Newest(time, value) => Some((*time, dot, *value)),
        _ => None,
    });
    (
        of().map(|(_, change)| if let Change::Add(amount) = change { *amount } else { 0 }).sum(),
        newest.max().map(|(_, _, value)| value),
        of().filter_map(|(_, change)| if let Change::Write(value) = change { Some(*value) } else { None }).collect(),
        of().filter_map(|(_, change)| if let Change::Insert(value) = change { Some(*value) } else { None })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        of().any(|(_, change)| matches!(change, Change::Enable)),
    )
}

fn shown(map: &Map, path: &Path) -> Shown {
    let bytes = |value: &Bytes| value[0];
    (
        map.get::<Counter>(path).map_or(0, Counter::value),
        map.get::<LwwRegister<Bytes>>(path).and_then(LwwRegister::value).map(bytes),
        map.get::<MvRegister<Bytes>>(path).into_iter().flat_map(MvRegister::values).map(|(_, at)| bytes(at)).collect(),
        map.get::<AddWinsSet<Bytes>>(path).into_iter().flat_map(AddWinsSet::iter).map(bytes).collect(),
        map.get::<EnableWinsFlag>(path).is_some_and(EnableWinsFlag::is_enabled),
    )
}

fn delta(map: &Map, dot: Dot, path: &Path, change: &Change) -> Causal<Map> {
    let bytes = |value: u8| Bytes::from(vec![value]);
    let path = path.clone();
    match *change {
        Change::Add(amount) => map.update(path, |field: &Counter| field.add(dot, amount)),
        Change::Reset => map.update(path, |field: &Counter| field.reset(dot)),
        Change::Newest(time, value) => map.update(path, |field: &LwwRegister<Bytes>| {
            field.write(Stamp { time: HybridTimestamp(time), dot }, bytes(value))
        }),
        Change::ClearNewest => map.update(path, |field: &LwwRegister<Bytes>| field.clear(dot)),
        Change::Write(value) => map.update(path, |field: &MvRegister<Bytes>| field.write(dot, bytes(value))),
        Change::ClearWrite => map.update(path, |field: &MvRegister<Bytes>| field.clear(dot)),
        Change::Insert(value) => map.update(path, |field: &AddWinsSet<Bytes>| field.add(dot, bytes(value))),
        Change::Erase(value) => map.update(path, |field: &AddWinsSet<Bytes>| field.remove(dot, &bytes(value))),
        Change::ClearSet => map.update(path, |field: &AddWinsSet<Bytes>| field.clear(dot)),
        Change::Enable => map.update(path, |field: &EnableWinsFlag| field.enable(dot)),
        Change::Disable => map.update(path, |field: &EnableWinsFlag| field.disable(dot)),
        Change::Remove => map.remove(dot, &path),
    }
}

fn paths() -> [Path; 4] {
    let path = |names: &[&'static str]| names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect();
    [path(&["a"]), path(&["a", "b"]), path(&["a", "b", "c"]), path(&["d"])]
}

#[derive(Clone, Debug)]
enum Act {
    Write { at: usize, path: usize, change: Change },
    // One delta of the past, of anybody: late, repeated, out of order.
    Delta { to: usize, which: prop::sample::Index },
    State { from: usize, to: usize },
    Fold { at: usize },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (-5..6_i64).prop_map(Change::Add),
        2 => Just(Change::Reset),
        2 => (0..3_u64, any::<u8>()).prop_map(|(time, value)| Change::Newest(time, value)),
        1 => Just(Change::ClearNewest),
        2 => any::<u8>().prop_map(Change::Write),
        1 => Just(Change::ClearWrite),
        3 => (0..3_u8).prop_map(Change::Insert),
        2 => (0..3_u8).prop_map(Change::Erase),
        1 => Just(Change::ClearSet),
        2 => Just(Change::Enable),
        1 => Just(Change::Disable),
        2 => Just(Change::Remove),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..3_usize, 0..4_usize, change()).prop_map(|(at, path, change)| Act::Write { at, path, change }),
        5 => (0..3_usize, any::<prop::sample::Index>()).prop_map(|(to, which)| Act::Delta { to, which }),
        2 => (0..3_usize, 0..3_usize).prop_map(|(from, to)| Act::State { from, to }),
        2 => (0..3_usize).prop_map(|at| Act::Fold { at }),
    ]
}

#[derive(Clone, Default)]
struct Node {
    map: Causal<Map>,
    known: Known,
}

impl Node {
    fn vector(&self) -> VersionVector {
        self.known.keys().copied().collect()
    }
}

/// What is stable at one node: in every vector, and everything in those vectors is known here.
fn stable(nodes: &[Node], at: usize) -> VersionVector {
    let mine = nodes[at].vector();
    if nodes.iter().any(|node| !mine.covers(&node.vector())) {
        return VersionVector::new();
    }
    nodes.iter().fold(mine, |stable, node| stable.meet(&node.vector()))
}

fn run(acts: Vec<Act>, folds: bool) -> Result<(), TestCaseError> {
    let mut nodes = vec![Node::default(); 3];
    let mut log: Vec<(Dot, Op, Causal<Map>)> = Vec::new();
    for act in acts {
        match act {
            Act::Write { at, path, change } => {
                let own = OriginId(at as u32 + 1);
                let sequence = log.iter().filter(|(dot, ..)| dot.origin == own).count() as u64 + 1;
                let (dot, path) = (Dot { origin: own, sequence }, paths()[path].clone());
                let node = &mut nodes[at];
                let mut op = Op { path, change, past: node.known.keys().copied().collect(), ends: Dots::new() };
                op.ends = in_effect(&node.known).iter().filter(|(_, old)| op.ends(old)).map(|(dot, _)| *dot).collect();
                let delta = node.map.mutate(|map| delta(map, dot, &op.path, &op.change));
                prop_assert_eq!(delta.verify(&VersionVector::new()), Ok(()));
                let read = Causal::<Map>::from_bytes(&delta.to_bytes());
                prop_assert_eq!(read.as_ref(), Ok(&delta));
                node.known.insert(dot, op.clone());
                log.push((dot, op, delta));
            }
            Act::Delta { to, which } => {
                if !log.is_empty() {
                    let (dot, op, delta) = &log[which.index(log.len())];
                    nodes[to].map.join(delta);
                    nodes[to].known.insert(*dot, op.clone());
                }
            }
            Act::State { from, to } => {
                let (sender, receiver) = (nodes[from].clone(), nodes[to].clone());
                // At rest and on the wire a context is stripped of the node's vector: that changes nothing.
                let (mut theirs, mut mine) = (sender.map.clone(), receiver.map);
                let (sender_base, base) = (sender.vector(), receiver.known.keys().copied().collect());
                theirs.context.strip(&sender_base);
                mine.context.strip(&base);
                mine.join_at(&base, &theirs, &sender_base);
                mine.context.fill(&base);
                nodes[to].map.join(&sender.map);
                nodes[to].known.extend(sender.known);
                prop_assert_eq!(&mine, &nodes[to].map);
            }
            Act::Fold { at } if folds => {
                let stable = stable(&nodes, at);
                nodes[at].map.store.fold(&stable);
            }
            Act::Fold { .. } => {}
        }
        for node in &nodes {
            let effective = in_effect(&node.known);
            for path in paths() {
                prop_assert_eq!(shown(&node.map.store, &path), shown_by_model(&effective, &path));
            }
        }
        for (left, right) in [(0, 1), (1, 2), (0, 2)] {
            if !folds && nodes[left].known.keys().eq(nodes[right].known.keys()) {
                prop_assert_eq!(&nodes[left].map, &nodes[right].map, "the same dots, the same state");
            }
        }
    }
    for node in &mut nodes {
        for (dot, op, delta) in log.iter().rev() {
            node.map.join(delta);
            node.known.insert(*dot, op.clone());
        }
        let effective = in_effect_by_past(&node.known);
        for path in paths() {
            prop_assert_eq!(shown(&node.map.store, &path), shown_by_model(&effective, &path));
        }
        node.map.store.fold(&node.known.keys().copied().collect());
        prop_assert!(node.map.store.below::<Counter>(&Path::new()).all(|(_, counter)| counter.entries() <= 3));
    }
    prop_assert_eq!(&nodes[0].map, &nodes[1].map);
    prop_assert_eq!(&nodes[1].map, &nodes[2].map);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn values_show_what_full_histories_say_and_the_same_dots_are_the_same_state(
        acts in proptest::collection::vec(act(), 0..40),
    ) {
        run(acts, false)?;
    }

    #[test]
    fn folding_what_is_stable_changes_no_value(acts in proptest::collection::vec(act(), 0..40)) {
        run(acts, true)?;
    }

    #[test]
    fn joins_are_commutative_associative_and_idempotent(acts in proptest::collection::vec(act(), 0..30)) {
        // States of replicas that share some of their past, and some deltas.
        let (mut maps, mut sent) = (vec![Causal::<Map>::new(); 3], Vec::new());
        let mut next = [0; 3];
        for act in acts {
            match act {
                Act::Write { at, path, change } => {
                    next[at] += 1;
                    let dot = Dot { origin: OriginId(at as u32 + 1), sequence: next[at] };
                    sent.push(maps[at].mutate(|map| delta(map, dot, &paths()[path], &change)));
                }
                Act::Delta { to, which } if !sent.is_empty() => maps[to].join(&sent[which.index(sent.len())]),
                Act::State { from, to } => {
                    let from = maps[from].clone();
                    maps[to].join(&from);
                }
                _ => {}
            }
        }
        let join = |left: &Causal<Map>, right: &Causal<Map>| {
            let mut joined = left.clone();
            joined.join(right);
            joined
        };
        maps.extend(sent.into_iter().take(3));
        for a in &maps {
            prop_assert_eq!(&join(a, a), a);
            for b in &maps {
                prop_assert_eq!(join(a, b), join(b, a));
                prop_assert_eq!(CrdtKind::Map.join(&a.to_bytes(), &b.to_bytes()).unwrap(), join(a, b).to_bytes());
                for c in &maps {
                    prop_assert_eq!(join(&join(a, b), c), join(a, &join(b, c)));
                }
            }
        }
    }

    #[test]
    fn decoding_and_joining_anything_never_panics(
        left in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..60),
        right in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..60),
    ) {
        let kinds = [CrdtKind::Counter, CrdtKind::Lww, CrdtKind::MultiValue, CrdtKind::Set, CrdtKind::Flag, CrdtKind::Map];
        for kind in kinds {
            let joined = kind.join(&left, &right);
            prop_assert_eq!(joined.is_ok(), kind.check(&left).is_ok() && kind.check(&right).is_ok());
            if let Ok(joined) = joined {
                prop_assert_eq!(kind.check(&joined), Ok(()));
            }
        }
    }
}

fn dot(origin: u32, sequence: u64) -> Dot {
    Dot { origin: OriginId(origin), sequence }
}

#[test]
fn an_addition_that_arrives_twice_counts_once() {
    let (mut here, mut there) = (Causal::<Counter>::new(), Causal::<Counter>::new());
    let delta = here.mutate(|counter| counter.add(dot(1, 1), 5));
    for _ in 0..3 {
        there.join(&delta);
    }
    assert_eq!(there.store.value(), 5);
}

#[test]
fn a_reset_takes_away_what_it_has_seen_and_nothing_else() {
    let (mut here, mut there) = (Causal::<Counter>::new(), Causal::<Counter>::new());
    there.join(&here.mutate(|counter| counter.add(dot(1, 1), 10)));
    let reset = there.mutate(|counter| counter.reset(dot(2, 1)));
    let concurrent = here.mutate(|counter| counter.add(dot(1, 2), 1));
    here.join(&reset);
    there.join(&concurrent);
    assert_eq!((here.store.value(), there.store.value()), (1, 1), "not 0, and not 11");
}

#[test]
fn a_reset_of_a_folded_counter_takes_away_all_that_was_folded_also_where_nobody_has_folded() {
    let path = vec![Bytes::from_static(b"n")];
    let (mut here, mut there, mut held) = (Causal::<Map>::new(), Causal::<Map>::new(), VersionVector::new());
    // Of another key is every second write, so that the entries have gaps between them.
    for sequence in 1..=6 {
        held.add(dot(1, sequence));
        if sequence % 2 == 0 {
            let add = |counter: &Counter| counter.add(dot(1, sequence), 1);
            there.join(&here.mutate(|map| map.update(path.clone(), add)));
        }
    }
    here.store.fold(&held);
    assert_eq!(here.store.get::<Counter>(&path).map(Counter::entries), Some(1));
    let reset = here.store.update(path.clone(), |counter: &Counter| counter.reset(dot(2, 1)));
    let removed = here.store.remove(dot(2, 1), &path);
    let mut all = CausalContext::from_iter([dot(2, 1)]);
    here.store.collect_into(&mut all);
    let cleared = Causal { store: Map::default(), context: all };
    for delta in [reset, removed, cleared] {
        let mut there = there.clone();
        there.join(&delta);
        assert!(there.store.is_empty());
    }
}

#[test]
fn what_lies_above_a_gap_is_not_folded() {
    let mut counter = Causal::<Counter>::new();
    for sequence in [1, 2, 4, 5] {
        counter.mutate(|counter| counter.add(dot(1, sequence), 1));
    }
    counter.store.fold(&[1, 2, 4, 5].map(|sequence| dot(1, sequence)).into_iter().collect());
    assert_eq!((counter.store.entries(), counter.store.value()), (3, 4));
}

#[test]
fn a_write_replaces_what_it_has_seen_even_if_its_clock_is_behind() {
    let mut register = Causal::<LwwRegister<char>>::new();
    let stamp = |time, origin, sequence| Stamp { time: HybridTimestamp(time), dot: dot(origin, sequence) };
    register.mutate(|register| register.write(stamp(9, 1, 1), 'a'));
    register.mutate(|register| register.write(stamp(3, 2, 1), 'b'));
    assert_eq!(register.store.value(), Some(&'b'));
    let concurrent = LwwRegister::default().write(stamp(3, 3, 1), 'c');
    register.join(&concurrent);
    assert_eq!(register.store.value(), Some(&'c'), "of equal times the larger node wins");
    assert_eq!(register.store.losers().collect::<Vec<_>>(), [(stamp(3, 2, 1), &'b')]);
}

#[test]
fn a_value_that_claims_an_unseen_write_is_refused() {
    let delta = EnableWinsFlag::default().enable(dot(1, 7));
    let forged = Causal { store: delta.store.clone(), context: CausalContext::new() };
    let unseen = Err(CausalError::Unseen { dot: dot(1, 7) });
    assert_eq!(forged.verify(&VersionVector::new()), unseen);
    assert_eq!(CrdtKind::Flag.join(&delta.to_bytes(), &forged.to_bytes()).map(drop), unseen);
    assert_eq!(CrdtKind::Flag.check(&[9, 9]), Err(CausalError::Malformed));
    assert!(!delta.store.is_bottom());
}

#[test]
fn a_million_stable_additions_take_one_entry() {
    let (mut counter, mut held) = (Causal::<Counter>::new(), VersionVector::new());
    for sequence in 1..=1_000_000 {
        counter.mutate(|counter| counter.add(dot(1, sequence), 1));
        held.add(dot(1, sequence));
        if sequence % 1_000 == 0 {
            counter.store.fold(&held);
        }
    }
    assert_eq!((counter.store.value(), counter.store.entries()), (1_000_000, 1));
    assert!(counter.to_bytes().len() < 32);
}
