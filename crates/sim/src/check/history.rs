//! What clients did and saw, with true times.
//!
//! Invariant: values written to one key are unique, so that a read names the write that it saw.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::Time;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Set the key to this value, unique for the key.
    Write(Bytes),
    /// Read the key.
    Read,
}

/// How an operation ended, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not known: it may have taken effect, or may do so later.
    Unknown,
    /// It had no effect and never will.
    Void,
    /// A write was acknowledged.
    Written {
        /// When.
        at: Time,
    },
    /// A read was answered.
    Found {
        /// When.
        at: Time,
        /// What it saw.
        value: Option<Bytes>,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which key.
    pub key: Bytes,
    /// What was asked for.
    pub what: What,
    /// When the client asked.
    pub began: Time,
    /// How it ended.
    pub ended: Ended,
}

/// An operation's place in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationId(usize);

/// All operations of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Vec<Recorded>);

impl History {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A client asks.
    pub fn begin(&mut self, at: Time, key: Bytes, what: What) -> OperationId {
        self.0.push(Recorded { key, what, began: at, ended: Ended::Unknown });
        OperationId(self.0.len() - 1)
    }

    /// An operation ended. Only the first end counts.
    pub fn end(&mut self, id: OperationId, ended: Ended) {
        let operation = &mut self.0[id.0];
        if operation.ended == Ended::Unknown {
            operation.ended = ended;
        }
    }

    /// The operation.
    #[must_use]
    pub fn operation(&self, id: OperationId) -> &Recorded {
        &self.0[id.0]
    }

    /// All operations in the order in which they began.
    #[must_use]
    pub fn operations(&self) -> &[Recorded] {
        &self.0
    }

    /// All operations, for tests that change them.
    pub const fn operations_mut(&mut self) -> &mut Vec<Recorded> {
        &mut self.0
    }

    /// Operations that were acknowledged or answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.0.iter().filter(|op| matches!(op.ended, Ended::Written { .. } | Ended::Found { .. })).count()
    }

    /// The operations of each key, keys ascending.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<&Bytes, Vec<&Recorded>> {
        let mut keys: BTreeMap<&Bytes, Vec<&Recorded>> = BTreeMap::new();
        for operation in &self.0 {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }
}
