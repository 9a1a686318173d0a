//! Operations on mergeable values, as clients send them.
//!
//! Invariant: an operation on a field stands at most one level deep, for a path names the maps around a field; what is nested
//! deeper is refused when it is read, before anything recurses.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{CrdtKind, Path};

/// What to do to a mergeable value. The value's type is the keyspace's: see [`CrdtKind`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
#[non_exhaustive]
pub enum CrdtOp {
    /// Counter: add, each once.
    Add {
        /// How much; may be negative.
        amount: i64,
    },
    /// Counter: take away the additions that are known where the operation is carried out.
    Reset,
    /// Set: add an element.
    Insert {
        /// It.
        element: Bytes,
    },
    /// Set: remove an element, as far as its additions are known where the operation is carried out.
    Remove {
        /// It.
        element: Bytes,
    },
    /// Flag: switch on.
    Enable,
    /// Flag: switch off, as far as its enablings are known where the operation is carried out.
    Disable,
    /// Register of either kind: replace the values that are known where the operation is carried out. In a map: the field
    /// that shows the newest value.
    Set {
        /// The new value.
        value: Bytes,
    },
    /// Map: do something to one field, which is of the type that the operation is for.
    At {
        /// Which field; at least one name.
        path: Path,
        /// What to do to it: anything but `At` and `RemoveAt`.
        op: Box<Self>,
    },
    /// Map: remove everything at and below a path, of all types, as far as it is known where the operation is carried out.
    RemoveAt {
        /// Where; at least one name.
        path: Path,
    },
}

impl CrdtOp {
    /// The same operation on one field of a map.
    #[must_use]
    pub fn at(self, path: Path) -> Self {
        Self::At { path, op: Box::new(self) }
    }

    /// Checks what no value could carry out: an operation on a field of a field, or a path without a name.
    ///
    /// # Errors
    /// [`CrdtOpError::Nested`], [`CrdtOpError::EmptyPath`].
    pub fn check(&self) -> Result<(), CrdtOpError> {
        match self {
            Self::At { path, .. } | Self::RemoveAt { path } if path.is_empty() => Err(CrdtOpError::EmptyPath),
            Self::At { op, .. } if matches!(**op, Self::At { .. } | Self::RemoveAt { .. }) => Err(CrdtOpError::Nested),
            _ => Ok(()),
        }
    }

    /// Its name, for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Reset => "reset",
            Self::Insert { .. } => "insert",
            Self::Remove { .. } => "remove",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Set { .. } => "set",
            Self::At { .. } => "at",
            Self::RemoveAt { .. } => "remove-at",
        }
    }
}

/// Why a value cannot carry out an operation. Blame: the caller; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrdtOpError {
    /// The operation is for another type.
    #[error("a value of type {kind:?} has no operation `{op}`")]
    WrongType {
        /// The type of the value.
        kind: CrdtKind,
        /// The operation.
        op: &'static str,
    },
    /// An operation on a field of a field: its path is to name both.
    #[error("an operation on a field cannot be of another field")]
    Nested,
    /// A path has at least one name.
    #[error("a field's path has at least one name")]
    EmptyPath,
}

/// The encoding of [`CrdtOp`], which cannot nest. The order of the variants is that of [`CrdtOp`].
#[derive(Deserialize)]
enum Wire {
    Add { amount: i64 },
    Reset,
    Insert { element: Bytes },
    Remove { element: Bytes },
    Enable,
    Disable,
    Set { value: Bytes },
    At { path: Path, op: FieldWire },
    RemoveAt { path: Path },
}

/// The operations that a field can have, as [`Wire`] encodes them.
#[derive(Deserialize)]
enum FieldWire {
    Add { amount: i64 },
    Reset,
    Insert { element: Bytes },
    Remove { element: Bytes },
    Enable,
    Disable,
    Set { value: Bytes },
}

impl From<FieldWire> for CrdtOp {
    fn from(op: FieldWire) -> Self {
        match op {
            FieldWire::Add { amount } => Self::Add { amount },
            FieldWire::Reset => Self::Reset,
            FieldWire::Insert { element } => Self::Insert { element },
            FieldWire::Remove { element } => Self::Remove { element },
            FieldWire::Enable => Self::Enable,
            FieldWire::Disable => Self::Disable,
            FieldWire::Set { value } => Self::Set { value },
        }
    }
}

impl TryFrom<Wire> for CrdtOp {
    type Error = CrdtOpError;

    fn try_from(op: Wire) -> Result<Self, CrdtOpError> {
        let op = match op {
            Wire::Add { amount } => Self::Add { amount },
            Wire::Reset => Self::Reset,
            Wire::Insert { element } => Self::Insert { element },
            Wire::Remove { element } => Self::Remove { element },
            Wire::Enable => Self::Enable,
            Wire::Disable => Self::Disable,
            Wire::Set { value } => Self::Set { value },
            Wire::At { path, op } => Self::from(op).at(path),
            Wire::RemoveAt { path } => Self::RemoveAt { path },
        };
        op.check().map(|()| op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> Path {
        vec![Bytes::from("a"), Bytes::from("b")]
    }

    #[test]
    fn operations_survive_their_encoding() {
        let bytes = || Bytes::from("x");
        let flat = [
            CrdtOp::Add { amount: -3 },
            CrdtOp::Reset,
            CrdtOp::Insert { element: bytes() },
            CrdtOp::Remove { element: bytes() },
            CrdtOp::Enable,
            CrdtOp::Disable,
            CrdtOp::Set { value: bytes() },
        ];
        let fields = flat.iter().map(|op| op.clone().at(path()));
        for op in flat.iter().cloned().chain(fields).chain([CrdtOp::RemoveAt { path: path() }]) {
            let encoded = postcard::to_stdvec(&op).unwrap();
            assert_eq!(postcard::from_bytes(&encoded), Ok(op));
        }
    }

    #[test]
    fn nested_operations_are_refused_however_deep_they_are() {
        let mut nested = CrdtOp::Enable.at(path());
        for _ in 0..100 {
            nested = nested.at(path());
            assert_eq!(nested.check(), Err(CrdtOpError::Nested));
            assert!(postcard::from_bytes::<CrdtOp>(&postcard::to_stdvec(&nested).unwrap()).is_err());
        }
        // `At` with a path of one empty name, over and over: a reader that recursed would run out of stack.
        let hostile: Vec<u8> = [7, 1, 0].repeat(1_000_000);
        assert!(postcard::from_bytes::<CrdtOp>(&hostile).is_err());
        let removal = CrdtOp::RemoveAt { path: path() }.at(path());
        assert_eq!(removal.check(), Err(CrdtOpError::Nested));
        assert!(postcard::from_bytes::<CrdtOp>(&postcard::to_stdvec(&removal).unwrap()).is_err());
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        for op in [CrdtOp::Enable.at(Path::new()), CrdtOp::RemoveAt { path: Path::new() }] {
            assert_eq!(op.check(), Err(CrdtOpError::EmptyPath));
            assert!(postcard::from_bytes::<CrdtOp>(&postcard::to_stdvec(&op).unwrap()).is_err());
        }
    }
}
