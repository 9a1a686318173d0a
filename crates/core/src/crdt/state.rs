//! A mergeable value whose type is known at run time: what a replica keeps of a key in a keyspace of such values.
//!
//! Invariant: a state is a [`Causal`] value whose context is stripped of what its replica's vector says anyway; what leaves
//! the replica by itself, a delta, carries its own whole context. So a delta can be joined anywhere, in any order that keeps
//! the writes of an origin's past before it, and any number of times.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    AddWinsSet, Causal, CausalError, Counter, CrdtKind, CrdtOp, CrdtOpError, DotStore, EnableWinsFlag, LwwRegister,
    Map, MapView, MvRegister,
};
use crate::{CausalContext, Dot, Stamp, VersionVector};

/// A value of one of the types of [`CrdtKind`], as one replica keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrdtState {
    /// [`CrdtKind::Counter`].
    Counter(Causal<Counter>),
    /// [`CrdtKind::Lww`].
    Lww(Causal<LwwRegister<Bytes>>),
    /// [`CrdtKind::MultiValue`].
    MultiValue(Causal<MvRegister<Bytes>>),
    /// [`CrdtKind::Set`].
    Set(Causal<AddWinsSet<Bytes>>),
    /// [`CrdtKind::Flag`].
    Flag(Causal<EnableWinsFlag>),
    /// [`CrdtKind::Map`].
    Map(Causal<Map>),
}

/// The same for a value of any type.
macro_rules! each {
    ($state:expr, $value:ident => $do:expr) => {
        match $state {
            CrdtState::Counter($value) => $do,
            CrdtState::Lww($value) => $do,
            CrdtState::MultiValue($value) => $do,
            CrdtState::Set($value) => $do,
            CrdtState::Flag($value) => $do,
            CrdtState::Map($value) => $do,
        }
    };
}

impl CrdtState {
    /// A value that nobody has written.
    #[must_use]
    pub fn new(kind: CrdtKind) -> Self {
        match kind {
            CrdtKind::Counter => Self::Counter(Causal::new()),
            CrdtKind::Lww => Self::Lww(Causal::new()),
            CrdtKind::MultiValue => Self::MultiValue(Causal::new()),
            CrdtKind::Set => Self::Set(Causal::new()),
            CrdtKind::Flag => Self::Flag(Causal::new()),
            CrdtKind::Map => Self::Map(Causal::new()),
        }
    }

    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> CrdtKind {
        match self {
            Self::Counter(_) => CrdtKind::Counter,
            Self::Lww(_) => CrdtKind::Lww,
            Self::MultiValue(_) => CrdtKind::MultiValue,
            Self::Set(_) => CrdtKind::Set,
            Self::Flag(_) => CrdtKind::Flag,
            Self::Map(_) => CrdtKind::Map,
        }
    }

    /// The encoded delta of an operation on the value as it is here, for every replica, this one included. It carries its own
    /// whole context; the dot of the write is that of the stamp, whose time decides between concurrent values of a
    /// [`LwwRegister`] only. Nothing is changed before [`CrdtState::join_delta`].
    ///
    /// # Errors
    /// [`CrdtOpError`]: the operation is for another type.
    pub fn delta(&self, stamp: Stamp, op: &CrdtOp) -> Result<Bytes, CrdtOpError> {
        op.check()?;
        let dot = stamp.dot;
        Ok(match (self, op) {
            (Self::Counter(counter), CrdtOp::Add { amount }) => counter.store.add(dot, *amount).to_bytes(),
            (Self::Counter(counter), CrdtOp::Reset) => counter.store.reset(dot).to_bytes(),
            (Self::Lww(register), CrdtOp::Set { value }) => register.store.write(stamp, value.clone()).to_bytes(),
            (Self::MultiValue(register), CrdtOp::Set { value }) => register.store.write(dot, value.clone()).to_bytes(),
            (Self::Set(set), CrdtOp::Insert { element }) => set.store.add(dot, element.clone()).to_bytes(),
            (Self::Set(set), CrdtOp::Remove { element }) => set.store.remove(dot, element).to_bytes(),
            (Self::Flag(flag), CrdtOp::Enable) => flag.store.enable(dot).to_bytes(),
            (Self::Flag(flag), CrdtOp::Disable) => flag.store.disable(dot).to_bytes(),
            (Self::Map(map), CrdtOp::RemoveAt { path }) => map.store.remove(dot, path).to_bytes(),
            (Self::Map(map), CrdtOp::At { path, op }) => {
                let (map, path) = (&map.store, path.clone());
                let delta = match &**op {
                    CrdtOp::Add { amount } => map.update(path, |field: &Counter| field.add(dot, *amount)),
                    CrdtOp::Reset => map.update(path, |field: &Counter| field.reset(dot)),
                    CrdtOp::Insert { element } => {
                        map.update(path, |field: &AddWinsSet<Bytes>| field.add(dot, element.clone()))
                    }
                    CrdtOp::Remove { element } => {
                        map.update(path, |field: &AddWinsSet<Bytes>| field.remove(dot, element))
                    }
                    CrdtOp::Enable => map.update(path, |field: &EnableWinsFlag| field.enable(dot)),
                    CrdtOp::Disable => map.update(path, |field: &EnableWinsFlag| field.disable(dot)),
                    CrdtOp::Set { value } => {
                        map.update(path, |field: &LwwRegister<Bytes>| field.write(stamp, value.clone()))
                    }
                    CrdtOp::At { .. } | CrdtOp::RemoveAt { .. } => return Err(CrdtOpError::Nested),
                };
                delta.to_bytes()
            }
            _ => return Err(CrdtOpError::WrongType { kind: self.kind(), op: op.name() }),
        })
    }

    /// Whether a delta of the write `dot` takes nothing away wherever it is joined, for it has seen nothing but itself; false for
    /// bytes that are no delta of this type.
    #[must_use]
    pub fn only_adds(kind: CrdtKind, dot: Dot, delta: &[u8]) -> bool {
        let sees_itself = |delta: Self| *delta.above() == CausalContext::from_iter([dot]);
        Self::decode(kind, delta).is_ok_and(sees_itself)
    }

    /// The encoded delta that removes all that is known here: a delete. What is written concurrently survives.
    #[must_use]
    pub fn clear(&self, dot: Dot) -> Bytes {
        let mut context = CausalContext::from_iter([dot]);
        each!(self, value => {
            value.store.collect_into(&mut context);
            cleared(value, context)
        })
    }

    /// The whole state as one encoded delta, which carries its own context: what it has seen, and all of `base`, the vector of
    /// the replica that keeps it. Joined elsewhere it takes away what was removed here, and brings what only was here.
    #[must_use]
    pub fn to_delta(&self, base: &VersionVector) -> Bytes {
        each!(self, value => {
            let mut whole = value.clone();
            whole.context.fill(base);
            whole.to_bytes()
        })
    }

    /// Takes in a delta; one that has been taken in already changes nothing.
    ///
    /// `base` is the vector of this replica *before* the delta's dot is added to it, and says only what has been applied to
    /// the values: a base that has the dot says that the delta is known, and what it wrote is not taken in. Once the dot is
    /// added to the vector, [`CrdtState::strip`] drops it from the context.
    ///
    /// # Errors
    /// [`CausalError`]: the bytes are no delta of this type, or claim a write that they have not seen. Nothing was changed.
    pub fn join_delta(&mut self, base: &VersionVector, delta: &[u8]) -> Result<(), CausalError> {
        static NOTHING: VersionVector = VersionVector::new();
        each!(self, value => {
            value.join_at(base, &Causal::from_bytes(delta)?, &NOTHING);
            value.context.strip(base);
        });
        Ok(())
    }

    /// Takes in another replica's copy; each is stripped of its replica's vector. Commutative, associative, idempotent.
    /// Strip it again once this replica's vector has taken in the other one.
    ///
    /// # Errors
    /// [`CausalError::Malformed`]: the other is of another type. [`CausalError::Unseen`]: it claims a write that its replica
    /// has not seen. Nothing was changed.
    pub fn join(&mut self, base: &VersionVector, other: &Self, other_base: &VersionVector) -> Result<(), CausalError> {
        fn join<S: DotStore>(
            mine: &mut Causal<S>,
            base: &VersionVector,
            theirs: &Causal<S>,
            other_base: &VersionVector,
        ) -> Result<(), CausalError> {
            theirs.verify(other_base)?;
            mine.join_at(base, theirs, other_base);
            mine.context.strip(base);
            Ok(())
        }
        match (self, other) {
            (Self::Counter(mine), Self::Counter(theirs)) => join(mine, base, theirs, other_base),
            (Self::Lww(mine), Self::Lww(theirs)) => join(mine, base, theirs, other_base),
            (Self::MultiValue(mine), Self::MultiValue(theirs)) => join(mine, base, theirs, other_base),
            (Self::Set(mine), Self::Set(theirs)) => join(mine, base, theirs, other_base),
            (Self::Flag(mine), Self::Flag(theirs)) => join(mine, base, theirs, other_base),
            (Self::Map(mine), Self::Map(theirs)) => join(mine, base, theirs, other_base),
            _ => Err(CausalError::Malformed),
        }
    }

    /// Drops from the context what the replica's vector says anyway.
    pub fn strip(&mut self, base: &VersionVector) {
        each!(self, value => value.context.strip(base));
    }

    /// Folds the counters in it: see [`Counter::fold`] for what `stable` may hold.
    pub fn fold(&mut self, stable: &VersionVector) {
        match self {
            Self::Counter(counter) => counter.store.fold(stable),
            Self::Map(map) => map.store.fold(stable),
            Self::Lww(_) | Self::MultiValue(_) | Self::Set(_) | Self::Flag(_) => {}
        }
    }

    /// Whether [`fold`](Self::fold) would make it smaller.
    #[must_use]
    pub fn folds(&self, stable: &VersionVector) -> bool {
        match self {
            Self::Counter(counter) => counter.store.folds(stable),
            Self::Map(map) => map.store.folds(stable),
            Self::Lww(_) | Self::MultiValue(_) | Self::Set(_) | Self::Flag(_) => false,
        }
    }

    /// Whether nothing is left to fold in it, whatever is stable.
    #[must_use]
    pub fn is_folded(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.store.is_folded(),
            Self::Map(map) => map.store.is_folded(),
            Self::Lww(_) | Self::MultiValue(_) | Self::Set(_) | Self::Flag(_) => true,
        }
    }

    /// Equal at replicas of which the same writes are live, whatever each has folded; of a counter in constant time.
    #[must_use]
    pub fn mark(&self) -> u64 {
        each!(self, value => value.store.mark())
    }

    /// Whether no write of it is live: never written, or all removed.
    #[must_use]
    pub fn is_bottom(&self) -> bool {
        each!(self, value => value.store.is_bottom())
    }

    /// What it has seen above its replica's vector; empty at rest.
    #[must_use]
    pub const fn above(&self) -> &CausalContext {
        each!(self, value => &value.context)
    }

    /// Whether [`encode`](Self::encode) gives at most so many bytes.
    #[must_use]
    pub fn fits(&self, bytes_max: usize) -> bool {
        match self {
            // An empty context and the number of entries take a few bytes.
            Self::Counter(Causal { store, context })
                if context.is_empty() && store.entries() * Counter::ENTRY_BYTES_MAX + 16 <= bytes_max =>
            {
                true
            }
            _ => self.encode().len() <= bytes_max,
        }
    }

    /// What a reader sees: of a counter its decimal text, of a flag `true` or `false`, of a register its value or concurrent
    /// values (ascending by dot), of a set its elements, ascending, of a map that has fields one encoded [`MapView`].
    #[must_use]
    pub fn values(&self) -> Vec<Bytes> {
        match self {
            Self::Counter(counter) => vec![counter.store.value().to_string().into()],
            Self::Lww(register) => register.store.value().cloned().into_iter().collect(),
            Self::MultiValue(register) => register.store.values().map(|(_, value)| value.clone()).collect(),
            Self::Set(set) => set.store.iter().cloned().collect(),
            Self::Flag(flag) => vec![Bytes::from_static(if flag.store.is_enabled() { b"true" } else { b"false" })],
            Self::Map(map) if map.store.is_empty() => Vec::new(),
            Self::Map(map) => vec![MapView::of(&map.store).to_bytes()],
        }
    }

    /// The state as bytes, without its type: for a snapshot, and for a peer together with the replica's vector.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        each!(self, value => value.to_bytes())
    }

    /// The inverse of [`CrdtState::encode`]. Whether it claims a write that its replica has not seen is checked by
    /// [`CrdtState::verify`], for the vector that says so is not in the bytes.
    ///
    /// # Errors
    /// [`CausalError::Malformed`]: the bytes are no state of this type.
    pub fn decode(kind: CrdtKind, state: &[u8]) -> Result<Self, CausalError> {
        fn decode<S: DotStore + DeserializeOwned>(state: &[u8]) -> Result<Causal<S>, CausalError> {
            match postcard::take_from_bytes(state) {
                Ok((value, [])) => Ok(value),
                _ => Err(CausalError::Malformed),
            }
        }
        Ok(match kind {
            CrdtKind::Counter => Self::Counter(decode(state)?),
            CrdtKind::Lww => Self::Lww(decode(state)?),
            CrdtKind::MultiValue => Self::MultiValue(decode(state)?),
            CrdtKind::Set => Self::Set(decode(state)?),
            CrdtKind::Flag => Self::Flag(decode(state)?),
            CrdtKind::Map => Self::Map(decode(state)?),
        })
    }

    /// Checks that every live write has been seen, in the context or in the vector of the replica that the state is from.
    ///
    /// # Errors
    /// [`CausalError::Unseen`].
    pub fn verify(&self, base: &VersionVector) -> Result<(), CausalError> {
        each!(self, value => value.verify(base))
    }

    /// Calls `found` for every live dot, in any order.
    pub fn visit(&self, found: &mut dyn FnMut(Dot)) {
        each!(self, value => value.store.visit(found));
    }
}

fn cleared<S: DotStore + Serialize>(_: &Causal<S>, context: CausalContext) -> Bytes {
    Causal::<S> { store: S::default(), context }.to_bytes()
}
