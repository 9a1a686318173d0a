//! What clients did and saw, with true times.
//!
//! Invariant: values written to one key are unique, so that a read names the write that it saw. Counters have no such
//! values: keys with an [`What::Add`] are checked by the models that know them only.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{Position, ReadLevel, Time, WriteEffect, WriteLevel};

/// Who asked: a client that has one operation after the other, and so a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u32);

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Set the key to this value, unique for the key.
    Write(Bytes),
    /// Read the key.
    Read,
    /// Set the key to `new`, unique for the key, if it is `expected`; `None` stands for an absent key.
    CompareAndSet {
        /// What must be there.
        expected: Option<Bytes>,
        /// What shall be there.
        new: Option<Bytes>,
    },
    /// Add to a counter, a decimal integer of 64 bits; an absent key counts as 0.
    Add(i64),
    /// Remove the key.
    Delete,
}

/// What was promised to the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// When a write counts as done.
    Write(WriteLevel),
    /// How fresh a read must be. A session token in force is within.
    Read(ReadLevel),
}

/// How an operation ended, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not known: it may have taken effect, or may do so later.
    Unknown,
    /// It had no effect and never will.
    Void,
    /// A write was acknowledged, and its client does not know what it found.
    Written {
        /// When.
        at: Time,
    },
    /// A write was acknowledged together with what it found and did.
    Applied {
        /// When.
        at: Time,
        /// What it found and did.
        effect: WriteEffect,
    },
    /// A read was answered.
    Found {
        /// When.
        at: Time,
        /// What it saw.
        value: Option<Bytes>,
    },
    /// A read was answered by a family that keeps concurrent values.
    Siblings {
        /// When.
        at: Time,
        /// What it saw; none for an absent key.
        values: Vec<Bytes>,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Who asked, where it matters.
    pub client: Option<ClientId>,
    /// Which key.
    pub key: Bytes,
    /// What was asked for.
    pub what: What,
    /// What was promised.
    pub level: Level,
    /// When the client asked.
    pub began: Time,
    /// How it ended.
    pub ended: Ended,
    /// Of a write: where it stands. Of a read: what the answer has seen. As the reply claims, or as the log shows.
    pub position: Option<Position>,
    /// Upper bound of a read's age, as the reply claims.
    pub staleness: Option<Duration>,
}

impl Recorded {
    /// When it was acknowledged or answered; `None` for one that was not.
    #[must_use]
    pub const fn answered_at(&self) -> Option<Time> {
        match self.ended {
            Ended::Unknown | Ended::Void => None,
            Ended::Written { at }
            | Ended::Applied { at, .. }
            | Ended::Found { at, .. }
            | Ended::Siblings { at, .. } => Some(at),
        }
    }

    /// Whether it asks only.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.what, What::Read)
    }

    /// Whether an acknowledgement means that the write is never lost, or an answer that the read is linearizable.
    #[must_use]
    pub const fn is_strong(&self) -> bool {
        matches!(
            self.level,
            Level::Write(WriteLevel::Quorum | WriteLevel::Applied(_)) | Level::Read(ReadLevel::Linearizable)
        )
    }

    /// The value that the key has once this took effect: `None` for a read and for what is known to have changed nothing.
    /// The inner `None` stands for an absent key.
    #[must_use]
    pub fn writes(&self) -> Option<Option<&Bytes>> {
        if matches!(
            self.ended,
            Ended::Void
                | Ended::Applied {
                    effect: WriteEffect::Mismatch { .. } | WriteEffect::NotACounter | WriteEffect::Unsupported,
                    ..
                }
        ) {
            return None;
        }
        match &self.what {
            What::Write(value) => Some(Some(value)),
            What::CompareAndSet { new, .. } => Some(new.as_ref()),
            What::Delete => Some(None),
            What::Read | What::Add(_) => None,
        }
    }

    /// Whether it is known to have changed its key, if it took effect: a conditional write whose client was not told what it
    /// found may have changed nothing.
    #[must_use]
    pub fn surely_writes(&self) -> bool {
        let told = matches!(self.ended, Ended::Applied { effect: WriteEffect::Done, .. });
        self.writes().is_some() && (told || !matches!(self.what, What::CompareAndSet { .. }))
    }
}

/// An operation's place in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(usize);

impl OperationId {
    /// The n-th operation of [`History::operations`], from 0.
    #[must_use]
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    /// Where it stands in [`History::operations`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// All operations of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Vec<Recorded>);

impl History {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Some client asks, at the default level: `Quorum` or `Linearizable`.
    pub fn begin(&mut self, at: Time, key: Bytes, what: What) -> OperationId {
        let level = match what {
            What::Read => Level::Read(ReadLevel::Linearizable),
            _ => Level::Write(WriteLevel::Quorum),
        };
        self.0.push(Recorded {
            client: None,
            key,
            what,
            level,
            began: at,
            ended: Ended::Unknown,
            position: None,
            staleness: None,
        });
        OperationId(self.0.len() - 1)
    }

    /// This client asks, at this level.
    pub fn begin_as(&mut self, client: ClientId, level: Level, at: Time, key: Bytes, what: What) -> OperationId {
        let id = self.begin(at, key, what);
        let operation = &mut self.0[id.0];
        (operation.client, operation.level) = (Some(client), level);
        id
    }

    /// An operation ended. Only the first end counts.
    pub fn end(&mut self, id: OperationId, ended: Ended) {
        let operation = &mut self.0[id.0];
        if operation.ended == Ended::Unknown {
            operation.ended = ended;
        }
    }

    /// Where a write stands, or what a read has seen. It may be told of operations whose client never learned it, where the
    /// log shows it.
    pub fn locate(&mut self, id: OperationId, position: Position) {
        self.0[id.0].position = Some(position);
    }

    /// What became of a write that its client cannot be sure of, as the log shows once the run is over and all replicas
    /// agree: where it stands, or `None` if it is not there and so had no effect. Tells nothing new of reads and of writes
    /// that were acknowledged for good. Without it a search has to try every such write everywhere.
    pub fn settle(&mut self, id: OperationId, found: Option<Position>) {
        let operation = &mut self.0[id.0];
        if operation.is_read() || operation.answered_at().is_some() && operation.is_strong() {
            return;
        }
        operation.position = found;
        if found.is_none() {
            operation.ended = Ended::Void;
        }
    }

    /// How old a read's answer is at most, as it claims.
    pub fn bound(&mut self, id: OperationId, staleness: Duration) {
        self.0[id.0].staleness = Some(staleness);
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
        self.0.iter().filter(|op| op.answered_at().is_some()).count()
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

    /// The operations of each client that is known, in the order in which they began.
    #[must_use]
    pub fn by_client(&self) -> BTreeMap<ClientId, Vec<OperationId>> {
        let mut clients: BTreeMap<ClientId, Vec<OperationId>> = BTreeMap::new();
        for (at, operation) in self.0.iter().enumerate() {
            if let Some(client) = operation.client {
                clients.entry(client).or_default().push(OperationId(at));
            }
        }
        clients
    }
}
