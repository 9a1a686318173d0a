//! What a reader sees of a map: plain values, no dots.
//!
//! Invariant: equal maps are equal views; fields ascend by path, those of one path stand in the order of [`FieldView`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{AddWinsSet, CausalError, Counter, EnableWinsFlag, LwwRegister, Map, MvRegister, Path};

/// The fields of a [`Map`], as a reader sees them.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MapView {
    /// Ascending by path. Fields of different types may share one.
    pub fields: Vec<(Path, FieldView)>,
}

/// One field, as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FieldView {
    /// A counter's sum.
    Counter(i64),
    /// The newest value of a register.
    Newest(Bytes),
    /// The concurrent values of a register, ascending by dot.
    Concurrent(Vec<Bytes>),
    /// A set's elements, ascending.
    Set(Vec<Bytes>),
    /// A flag.
    Flag(bool),
}

impl MapView {
    /// What a reader sees of this map.
    #[must_use]
    pub fn of(map: &Map) -> Self {
        let all = Path::new();
        let mut fields: Vec<(Path, FieldView)> = Vec::with_capacity(map.len());
        let mut add = |path: &Path, view| fields.push((path.clone(), view));
        map.below::<Counter>(&all).for_each(|(path, field)| add(path, FieldView::Counter(field.value())));
        for (path, field) in map.below::<LwwRegister<Bytes>>(&all) {
            add(path, FieldView::Newest(field.value().cloned().unwrap_or_default()));
        }
        for (path, field) in map.below::<MvRegister<Bytes>>(&all) {
            add(path, FieldView::Concurrent(field.values().map(|(_, value)| value.clone()).collect()));
        }
        for (path, field) in map.below::<AddWinsSet<Bytes>>(&all) {
            add(path, FieldView::Set(field.iter().cloned().collect()));
        }
        map.below::<EnableWinsFlag>(&all).for_each(|(path, field)| add(path, FieldView::Flag(field.is_enabled())));
        // Stable: of one path the types stay in the order of the variants.
        fields.sort_by(|(left, _), (right, _)| left.cmp(right));
        Self { fields }
    }

    /// The view as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a view always encodes into memory").into()
    }

    /// The inverse of [`MapView::to_bytes`].
    ///
    /// # Errors
    /// [`CausalError::Malformed`].
    pub fn from_bytes(view: &[u8]) -> Result<Self, CausalError> {
        match postcard::take_from_bytes(view) {
            Ok((view, [])) => Ok(view),
            _ => Err(CausalError::Malformed),
        }
    }
}
