//! What a request does to the value of a key.
//!
//! Invariant: an operation is a pure function of the value: it may be applied several times, on different proposals, of
//! which at most one takes effect. The effects are those of core's keyspace.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;
use replikit_core::{VALUE_BYTES_MAX, WriteEffect, WriteOp};

/// A user's own change: from the value to the new one, `None` standing for an absent key.
pub type Update = Arc<dyn Fn(Option<&Bytes>) -> Option<Bytes> + Send + Sync>;

/// What to do to one key.
#[derive(Clone)]
pub enum CasOp {
    /// Nothing: tell the value.
    Read,
    /// Set the value.
    Put {
        /// The new value.
        value: Bytes,
    },
    /// Remove the key.
    Delete,
    /// Replace the value if it is the expected one; `None` stands for an absent key, on either side.
    CompareAndSet {
        /// What must be there.
        expected: Option<Bytes>,
        /// What shall be there.
        new: Option<Bytes>,
    },
    /// Add to a counter, a decimal integer of 64 bits; an absent key counts as 0.
    Add {
        /// How much.
        delta: i64,
    },
    /// Whatever a user's own function makes of the value. It must depend on nothing but the value, must not panic, and may be
    /// called more than once. What is larger than [`VALUE_BYTES_MAX`] changes nothing and ends as [`WriteEffect::Unsupported`].
    Update(Update),
}

impl CasOp {
    /// The same operation of the store; `None` for one that such keyspaces do not have.
    #[must_use]
    pub fn of(op: WriteOp) -> Option<Self> {
        Some(match op {
            WriteOp::Put { value } => Self::Put { value },
            WriteOp::Delete => Self::Delete,
            WriteOp::CompareAndSet { expected, new } => Self::CompareAndSet { expected, new },
            WriteOp::Add { delta } => Self::Add { delta },
            _ => return None,
        })
    }

    /// Whether it only asks.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self, Self::Read)
    }

    /// Bytes of the largest value in it.
    pub(super) fn value_bytes(&self) -> usize {
        let bytes = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        match self {
            Self::Put { value } => value.len(),
            Self::CompareAndSet { expected, new } => bytes(expected).max(bytes(new)),
            Self::Read | Self::Delete | Self::Add { .. } | Self::Update(_) => 0,
        }
    }

    /// Changes the value, and says what that did.
    pub(super) fn apply(&self, value: &mut Option<Bytes>) -> Effect {
        Effect::Wrote(match self {
            Self::Read => return Effect::Read(value.clone()),
            Self::Put { value: new } => {
                *value = Some(new.clone());
                WriteEffect::Done
            }
            Self::Delete => {
                *value = None;
                WriteEffect::Done
            }
            Self::CompareAndSet { expected, new } if expected == value => {
                value.clone_from(new);
                WriteEffect::Done
            }
            Self::CompareAndSet { .. } => WriteEffect::Mismatch { found: value.clone() },
            Self::Add { delta } => {
                let old = value.as_ref().map_or(Some(0), |value| core::str::from_utf8(value).ok()?.parse::<i64>().ok());
                match old.and_then(|old| old.checked_add(*delta)) {
                    Some(sum) => {
                        *value = Some(sum.to_string().into());
                        WriteEffect::Counter { value: sum }
                    }
                    None => WriteEffect::NotACounter,
                }
            }
            Self::Update(update) => {
                let new = update(value.as_ref());
                if new.as_ref().is_some_and(|new| new.len() > VALUE_BYTES_MAX) {
                    WriteEffect::Unsupported
                } else {
                    *value = new;
                    WriteEffect::Done
                }
            }
        })
    }
}

impl fmt::Debug for CasOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("Read"),
            Self::Put { value } => write!(f, "Put({value:?})"),
            Self::Delete => f.write_str("Delete"),
            Self::CompareAndSet { expected, new } => write!(f, "CompareAndSet({expected:?}, {new:?})"),
            Self::Add { delta } => write!(f, "Add({delta})"),
            Self::Update(_) => f.write_str("Update"),
        }
    }
}

/// What an operation found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only asked: the value, `None` for an absent key.
    Read(Option<Bytes>),
    /// It wrote, or tried to.
    Wrote(WriteEffect),
}

impl Effect {
    /// Whether it changed the value, or set it to what it was.
    #[must_use]
    pub const fn changed(&self) -> bool {
        matches!(self, Self::Wrote(WriteEffect::Done | WriteEffect::Counter { .. }))
    }
}
