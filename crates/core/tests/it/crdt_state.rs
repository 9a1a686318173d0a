//! [`CrdtState`] against the types used directly, at three replicas that exchange deltas and states.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use replikit_core::crdt::{
    AddWinsSet, Causal, CausalError, Counter, CrdtKind, CrdtOp, CrdtOpError, CrdtState, DotStore, EnableWinsFlag,
    FieldView, LwwRegister, Map, MapView, MvRegister, Path,
};
use replikit_core::{CausalContext, Dot, HybridTimestamp, OriginId, Stamp, VersionVector};
use serde::Serialize;

const KINDS: [CrdtKind; 6] =
    [CrdtKind::Counter, CrdtKind::Lww, CrdtKind::MultiValue, CrdtKind::Set, CrdtKind::Flag, CrdtKind::Map];

/// A type used directly: the delta of an operation, and what a reader sees.
trait Direct: DotStore + Serialize + 'static {
    const KIND: CrdtKind;
    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self>;
    fn shown(&self) -> Vec<Bytes>;
}

impl Direct for Counter {
    const KIND: CrdtKind = CrdtKind::Counter;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        match op {
            CrdtOp::Add { amount } => self.add(stamp.dot, *amount),
            _ => self.reset(stamp.dot),
        }
    }

    fn shown(&self) -> Vec<Bytes> {
        vec![self.value().to_string().into()]
    }
}

impl Direct for LwwRegister<Bytes> {
    const KIND: CrdtKind = CrdtKind::Lww;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        let CrdtOp::Set { value } = op else { return self.clear(stamp.dot) };
        self.write(stamp, value.clone())
    }

    fn shown(&self) -> Vec<Bytes> {
        self.value().cloned().into_iter().collect()
    }
}

impl Direct for MvRegister<Bytes> {
    const KIND: CrdtKind = CrdtKind::MultiValue;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        let CrdtOp::Set { value } = op else { return self.clear(stamp.dot) };
        self.write(stamp.dot, value.clone())
    }

    fn shown(&self) -> Vec<Bytes> {
        self.values().map(|(_, value)| value.clone()).collect()
    }
}

impl Direct for AddWinsSet<Bytes> {
    const KIND: CrdtKind = CrdtKind::Set;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        match op {
            CrdtOp::Insert { element } => self.add(stamp.dot, element.clone()),
            CrdtOp::Remove { element } => self.remove(stamp.dot, element),
            _ => self.clear(stamp.dot),
        }
    }

    fn shown(&self) -> Vec<Bytes> {
        self.iter().cloned().collect()
    }
}

impl Direct for EnableWinsFlag {
    const KIND: CrdtKind = CrdtKind::Flag;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        if *op == CrdtOp::Enable { self.enable(stamp.dot) } else { self.disable(stamp.dot) }
    }

    fn shown(&self) -> Vec<Bytes> {
        vec![if self.is_enabled() { "true" } else { "false" }.into()]
    }
}

impl Direct for Map {
    const KIND: CrdtKind = CrdtKind::Map;

    fn carry_out(&self, stamp: Stamp, op: &CrdtOp) -> Causal<Self> {
        let (path, op) = match op {
            CrdtOp::At { path, op } => (path.clone(), &**op),
            CrdtOp::RemoveAt { path } => return self.remove(stamp.dot, path),
            _ => return self.remove(stamp.dot, &Path::new()),
        };
        match op {
            CrdtOp::Add { .. } | CrdtOp::Reset => self.update(path, |field: &Counter| field.carry_out(stamp, op)),
            CrdtOp::Set { .. } => self.update(path, |field: &LwwRegister<Bytes>| field.carry_out(stamp, op)),
            CrdtOp::Enable | CrdtOp::Disable => self.update(path, |field: &EnableWinsFlag| field.carry_out(stamp, op)),
            _ => self.update(path, |field: &AddWinsSet<Bytes>| field.carry_out(stamp, op)),
        }
    }

    fn shown(&self) -> Vec<Bytes> {
        // Field by field; the order of the whole is checked by a test of its own.
        let mut fields = Vec::new();
        let all = Path::new();
        fields
            .extend(self.below(&all).map(|(at, field): (_, &Counter)| (at.clone(), FieldView::Counter(field.value()))));
        fields.extend(
            self.below(&all)
                .map(|(at, field): (_, &LwwRegister<Bytes>)| (at.clone(), FieldView::Newest(field.shown().remove(0)))),
        );
        fields.extend(
            self.below(&all).map(|(at, field): (_, &AddWinsSet<Bytes>)| (at.clone(), FieldView::Set(field.shown()))),
        );
        fields.extend(
            self.below(&all).map(|(at, field): (_, &EnableWinsFlag)| (at.clone(), FieldView::Flag(field.is_enabled()))),
        );
        fields.sort();
        if fields.is_empty() { Vec::new() } else { vec![MapView { fields }.to_bytes()] }
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// `None` removes all.
    Write {
        at: usize,
        op: Option<CrdtOp>,
    },
    /// The next delta of an origin that the replica can take, or one that it has.
    Delta {
        to: usize,
        from: usize,
        again: Option<Index>,
    },
    State {
        to: usize,
        from: usize,
    },
    Fold {
        at: usize,
    },
}

fn field_op() -> impl Strategy<Value = CrdtOp> {
    let byte = || (0..3_u8).prop_map(|byte| Bytes::from(vec![byte]));
    prop_oneof![
        3 => (-5..6_i64).prop_map(|amount| CrdtOp::Add { amount }),
        1 => Just(CrdtOp::Reset),
        3 => byte().prop_map(|element| CrdtOp::Insert { element }),
        2 => byte().prop_map(|element| CrdtOp::Remove { element }),
        2 => Just(CrdtOp::Enable),
        1 => Just(CrdtOp::Disable),
        3 => byte().prop_map(|value| CrdtOp::Set { value }),
    ]
}

fn op(kind: CrdtKind) -> BoxedStrategy<CrdtOp> {
    let path = || (0..2_usize).prop_map(|depth| vec![Bytes::from("a"); depth + 1]);
    if kind == CrdtKind::Map {
        let at = (field_op(), path()).prop_map(|(op, path)| op.at(path));
        return prop_oneof![5 => at, 1 => path().prop_map(|path| CrdtOp::RemoveAt { path })].boxed();
    }
    let stamp = Stamp { time: HybridTimestamp(1), dot: Dot { origin: OriginId(1), sequence: 1 } };
    field_op().prop_filter("of the type", move |op| CrdtState::new(kind).delta(stamp, op).is_ok()).boxed()
}

fn acts(kind: CrdtKind) -> impl Strategy<Value = Vec<Act>> {
    let node = || 0..3_usize;
    let act = prop_oneof![
        6 => (node(), proptest::option::weighted(0.9, op(kind))).prop_map(|(at, op)| Act::Write { at, op }),
        8 => (node(), node(), proptest::option::weighted(0.2, any::<Index>()))
            .prop_map(|(to, from, again)| Act::Delta { to, from, again }),
        1 => (node(), node()).prop_map(|(to, from)| Act::State { to, from }),
        1 => node().prop_map(|at| Act::Fold { at }),
    ];
    proptest::collection::vec(act, 0..40)
}

struct Node<T> {
    state: CrdtState,
    base: VersionVector,
    direct: Causal<T>,
}

impl<T: Direct> Node<T> {
    fn take(&mut self, sent: &Sent<T>) {
        self.state.join_delta(&self.base, &sent.delta).expect("deltas of the own type");
        self.base.add(sent.dot);
        self.state.strip(&self.base);
        self.direct.join(&sent.direct);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.state.values(), self.direct.store.shown());
        prop_assert!(self.state.above().is_empty(), "nothing is above the vector at rest");
        let stripped = Causal { store: self.direct.store.clone(), context: CausalContext::new() };
        prop_assert_eq!(self.state.encode(), stripped.to_bytes());
        prop_assert_eq!(self.state.is_bottom(), self.direct.store.is_bottom());
        prop_assert_eq!(self.state.verify(&self.base), Ok(()));
        prop_assert_eq!(CrdtState::decode(T::KIND, &self.state.encode()), Ok(self.state.clone()));
        Ok(())
    }
}

struct Sent<T> {
    dot: Dot,
    /// What its maker held.
    past: VersionVector,
    delta: Bytes,
    direct: Causal<T>,
}

fn run<T: Direct>(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let node = || Node { state: CrdtState::new(T::KIND), base: VersionVector::new(), direct: Causal::<T>::new() };
    let mut nodes = [node(), node(), node()];
    let mut sent: [Vec<Sent<T>>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for (time, act) in acts.into_iter().enumerate() {
        match act {
            Act::Write { at, op } => {
                let (node, log) = (&mut nodes[at], &mut sent[at]);
                let dot = Dot { origin: OriginId(at as u32 + 1), sequence: log.len() as u64 + 1 };
                let stamp = Stamp { time: HybridTimestamp(time as u64 / 3), dot };
                let (delta, direct) = match &op {
                    Some(op) => {
                        let delta = node.state.delta(stamp, op);
                        (delta.expect("of the type"), node.direct.store.carry_out(stamp, op))
                    }
                    None => {
                        let mut context = CausalContext::from_iter([dot]);
                        node.direct.store.collect_into(&mut context);
                        (node.state.clear(dot), Causal { store: T::default(), context })
                    }
                };
                prop_assert_eq!(&delta, &direct.to_bytes());
                log.push(Sent { dot, past: node.base.clone(), delta, direct });
                node.take(&log[log.len() - 1]);
            }
            Act::Delta { to, from, again } => {
                let known = nodes[to].base.base(OriginId(from as u32 + 1)) as usize;
                let which = again.filter(|_| known > 0).map_or(known, |index| index.index(known));
                if let Some(sent) = sent[from].get(which).filter(|sent| nodes[to].base.covers(&sent.past)) {
                    nodes[to].take(sent);
                }
            }
            Act::State { to, from } => {
                let (state, base, direct) =
                    (nodes[from].state.clone(), nodes[from].base.clone(), nodes[from].direct.clone());
                let node = &mut nodes[to];
                prop_assert_eq!(node.state.join(&node.base, &state, &base), Ok(()));
                node.base.join(&base);
                node.state.strip(&node.base);
                node.direct.join(&direct);
            }
            Act::Fold { at } => {
                let stable = nodes.iter().fold(nodes[at].base.clone(), |stable, node| stable.meet(&node.base));
                let node = &mut nodes[at];
                if sent.iter().flatten().all(|sent| node.base.contains(sent.dot)) {
                    let before = node.state.values();
                    node.state.fold(&stable);
                    prop_assert_eq!(node.state.values(), before);
                    // The direct value is compared as bytes, so it is folded as well.
                    if let (CrdtState::Counter(folded), Some(direct)) = (&node.state, counter(&mut node.direct)) {
                        direct.fold(&stable);
                        prop_assert_eq!(&folded.store, &*direct);
                    }
                    if let (CrdtState::Map(folded), Some(direct)) = (&node.state, map(&mut node.direct)) {
                        direct.fold(&stable);
                        prop_assert_eq!(&folded.store, &*direct);
                    }
                }
            }
        }
        nodes.iter().try_for_each(Node::check)?;
    }
    // Until everybody has everything.
    for _ in 0..sent.iter().map(Vec::len).sum() {
        for node in &mut nodes {
            for log in &sent {
                let ready = |sent: &&Sent<T>| !node.base.contains(sent.dot) && node.base.covers(&sent.past);
                if let Some(sent) = log.iter().find(ready) {
                    node.take(sent);
                }
            }
        }
    }
    let whole = nodes[0].base.clone();
    for node in &mut nodes {
        node.check()?;
        prop_assert_eq!(&node.base, &whole);
        node.state.fold(&whole);
    }
    prop_assert_eq!(&nodes[0].state, &nodes[1].state);
    prop_assert_eq!(&nodes[1].state, &nodes[2].state);
    // The whole history without any fold, in one go.
    let mut plain = Causal::<T>::new();
    sent.iter().flatten().for_each(|sent| plain.join(&sent.direct));
    prop_assert_eq!(nodes[0].state.values(), plain.store.shown());
    Ok(())
}

fn counter<T: 'static>(value: &mut Causal<T>) -> Option<&mut Counter> {
    (&mut value.store as &mut dyn core::any::Any).downcast_mut()
}

fn map<T: 'static>(value: &mut Causal<T>) -> Option<&mut Map> {
    (&mut value.store as &mut dyn core::any::Any).downcast_mut()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn counters_converge_to_what_direct_use_gives(acts in acts(CrdtKind::Counter)) {
        run::<Counter>(acts)?;
    }

    #[test]
    fn newest_registers_converge_to_what_direct_use_gives(acts in acts(CrdtKind::Lww)) {
        run::<LwwRegister<Bytes>>(acts)?;
    }

    #[test]
    fn concurrent_registers_converge_to_what_direct_use_gives(acts in acts(CrdtKind::MultiValue)) {
        run::<MvRegister<Bytes>>(acts)?;
    }

    #[test]
    fn sets_converge_to_what_direct_use_gives(acts in acts(CrdtKind::Set)) {
        run::<AddWinsSet<Bytes>>(acts)?;
    }

    #[test]
    fn flags_converge_to_what_direct_use_gives(acts in acts(CrdtKind::Flag)) {
        run::<EnableWinsFlag>(acts)?;
    }

    #[test]
    fn maps_converge_to_what_direct_use_gives(acts in acts(CrdtKind::Map)) {
        run::<Map>(acts)?;
    }

    #[test]
    fn reading_any_delta_or_state_never_panics(
        bytes in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..60),
    ) {
        let base = VersionVector::new();
        for kind in KINDS {
            let mut state = CrdtState::new(kind);
            prop_assert_eq!(state.join_delta(&base, &bytes).is_ok(), kind.check(&bytes).is_ok());
            if let Ok(other) = CrdtState::decode(kind, &bytes) {
                let verified = other.verify(&base);
                prop_assert_eq!(CrdtState::new(kind).join(&base, &other, &base), verified);
                let _ = (other.values(), other.clear(Dot { origin: OriginId(1), sequence: 1 }));
            }
        }
        let _ = MapView::from_bytes(&bytes);
    }
}

fn stamp(sequence: u64) -> Stamp {
    Stamp { time: HybridTimestamp(sequence), dot: Dot { origin: OriginId(1), sequence } }
}

#[test]
fn an_operation_of_another_type_is_refused() {
    let value = || Bytes::from("x");
    let path = || vec![value()];
    let ops = [
        (CrdtOp::Add { amount: 1 }, vec![CrdtKind::Counter]),
        (CrdtOp::Reset, vec![CrdtKind::Counter]),
        (CrdtOp::Insert { element: value() }, vec![CrdtKind::Set]),
        (CrdtOp::Remove { element: value() }, vec![CrdtKind::Set]),
        (CrdtOp::Enable, vec![CrdtKind::Flag]),
        (CrdtOp::Disable, vec![CrdtKind::Flag]),
        (CrdtOp::Set { value: value() }, vec![CrdtKind::Lww, CrdtKind::MultiValue]),
        (CrdtOp::Enable.at(path()), vec![CrdtKind::Map]),
        (CrdtOp::RemoveAt { path: path() }, vec![CrdtKind::Map]),
    ];
    for (op, kinds) in &ops {
        for kind in KINDS {
            let delta = CrdtState::new(kind).delta(stamp(1), op).map(drop);
            let wrong = Err(CrdtOpError::WrongType { kind, op: op.name() });
            assert_eq!(delta, if kinds.contains(&kind) { Ok(()) } else { wrong });
        }
    }
    let nested = CrdtOp::Enable.at(path()).at(path());
    assert_eq!(CrdtState::new(CrdtKind::Map).delta(stamp(1), &nested), Err(CrdtOpError::Nested));
    let error = CrdtOpError::WrongType { kind: CrdtKind::Flag, op: "add" };
    assert_eq!(error.to_string(), "a value of type Flag has no operation `add`");
}

#[test]
fn states_of_different_types_do_not_join() {
    let base = VersionVector::new();
    for mine in KINDS {
        for theirs in KINDS {
            let joined = CrdtState::new(mine).join(&base, &CrdtState::new(theirs), &base);
            assert_eq!(joined, if mine == theirs { Ok(()) } else { Err(CausalError::Malformed) });
        }
    }
}

#[test]
fn a_delta_that_the_vector_already_says_is_known_brings_nothing_back() {
    let (mut flag, mut base) = (CrdtState::new(CrdtKind::Flag), VersionVector::new());
    let enable = flag.delta(stamp(1), &CrdtOp::Enable).unwrap();
    flag.join_delta(&base, &enable).unwrap();
    base.add(stamp(1).dot);
    let disable = flag.delta(stamp(2), &CrdtOp::Disable).unwrap();
    flag.join_delta(&base, &disable).unwrap();
    base.add(stamp(2).dot);
    flag.strip(&base);
    flag.join_delta(&base, &enable).unwrap();
    assert_eq!((flag.values(), flag.is_bottom()), (vec![Bytes::from("false")], true));
}

#[test]
fn a_reset_by_who_has_folded_takes_the_same_away_where_nobody_has() {
    let (mut here, mut there, mut base) =
        (CrdtState::new(CrdtKind::Counter), CrdtState::new(CrdtKind::Counter), VersionVector::new());
    for sequence in 1..=3 {
        let add = here.delta(stamp(sequence), &CrdtOp::Add { amount: 1 }).unwrap();
        here.join_delta(&base, &add).unwrap();
        there.join_delta(&base, &add).unwrap();
        base.add(stamp(sequence).dot);
    }
    here.fold(&base);
    for reset in [here.delta(stamp(4), &CrdtOp::Reset).unwrap(), here.clear(stamp(4).dot)] {
        let (mut here, mut there) = (here.clone(), there.clone());
        here.join_delta(&base, &reset).unwrap();
        there.join_delta(&base, &reset).unwrap();
        assert_eq!((here.values(), there.values()), (vec![Bytes::from("0")], vec![Bytes::from("0")]));
    }
}

#[test]
fn a_map_view_stands_in_the_order_of_paths_and_types() {
    let (mut map, mut base) = (CrdtState::new(CrdtKind::Map), VersionVector::new());
    let path = |name: &'static str| vec![Bytes::from(name)];
    let ops = [
        CrdtOp::Enable.at(path("b")),
        CrdtOp::Add { amount: 4 }.at(path("b")),
        CrdtOp::Set { value: "v".into() }.at(path("c")),
        CrdtOp::Insert { element: "e".into() }.at(path("a")),
    ];
    for (sequence, op) in (1..).zip(&ops) {
        let delta = map.delta(stamp(sequence), op).unwrap();
        map.join_delta(&base, &delta).unwrap();
        base.add(stamp(sequence).dot);
    }
    let values = map.values();
    assert_eq!(values.len(), 1);
    assert_eq!(
        MapView::from_bytes(&values[0]).unwrap().fields,
        [
            (path("a"), FieldView::Set(vec!["e".into()])),
            (path("b"), FieldView::Counter(4)),
            (path("b"), FieldView::Flag(true)),
            (path("c"), FieldView::Newest("v".into())),
        ]
    );
}
