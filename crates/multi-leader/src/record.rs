//! Writes as they stand in the log of their origin, and what the origin had seen when it made them.
//!
//! Invariant: the writes of one batch had all seen the same writes of others, namely everything that their origin had applied
//! when the batch was begun, and all earlier writes of their own origin. So causality is written once a batch, in front of its
//! first entry. Source: Dynamo-style contexts per key are the special case of [`Provenance::These`].

use bytes::Bytes;
use replikit_core::{Batch, BatchKind, Causality, Dot, HybridTimestamp, Origin, OriginId, Stamp, VersionVector};
use serde::{Deserialize, Serialize, Serializer};

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change<'a> {
    Put(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    Delete,
    /// The delta of a value that merges.
    Merge(#[serde(serialize_with = "as_bytes")] &'a [u8]),
}

/// In one piece: a slice would be encoded byte by byte, to the same bytes.
pub(crate) fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// Which versions of its key a write replaces: those that its writer had seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Provenance {
    /// All that its origin had applied.
    All,
    /// These, and every delete that its origin had applied: the writer had read some versions, and not others.
    These(Vec<Dot>),
    /// A write of an evicted incarnation of its node, made again. It has seen what its node has applied now; but it replaces
    /// only what it did then.
    Again {
        /// What its client was told.
        dot: Dot,
        /// When it was made first.
        time: HybridTimestamp,
        /// The versions that it replaces, of those that are there now. Nobody was told of that: they go to the audit.
        replaces: Vec<Dot>,
        /// Where the newest wins, the newest of those. What its node has applied and had lost to that has lost: some replicas
        /// have given it up already, and must show the same as those that have not.
        decided: Option<Stamp>,
    },
    /// As `All`; but its writer had read these only. The others are replaced without having been read: that is for the audit.
    Over(Vec<Dot>),
}

impl Provenance {
    /// Whether a write that was made again replaces a value.
    pub(crate) fn is_replaced_again(replaces: &[Dot], decided: Option<Stamp>, past: &Past<'_>, old: Stamp) -> bool {
        replaces.contains(&old.dot) || decided.is_some_and(|decided| old < decided && past.contains(old.dot))
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record<'a> {
    #[serde(serialize_with = "as_bytes")]
    pub(crate) key: &'a [u8],
    #[serde(borrow)]
    pub(crate) change: Change<'a>,
    pub(crate) provenance: Provenance,
}

impl<'a> Record<'a> {
    pub(crate) fn encode_into(&self, out: Vec<u8>) -> Vec<u8> {
        postcard::to_extend(self, out).expect("a record always encodes into memory")
    }

    /// Whether what is made again was made before, by an earlier incarnation of the same node.
    fn is_honest(&self, origin: OriginId, now: HybridTimestamp) -> bool {
        let Provenance::Again { dot, time, .. } = &self.provenance else { return true };
        let node = |origin| Origin::of(origin).map(|origin| origin.node);
        dot.origin < origin && node(dot.origin) == node(origin) && *time <= now
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        match postcard::take_from_bytes::<Self>(bytes) {
            Ok((record, [])) if !record.key.is_empty() => Some(record),
            _ => None,
        }
    }
}

/// What had been applied at the origin when it made a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past<'a> {
    pub(crate) others: &'a VersionVector,
    /// The write itself; its origin's earlier ones had been applied.
    pub(crate) dot: Dot,
}

impl Past<'_> {
    pub(crate) fn contains(&self, dot: Dot) -> bool {
        if dot.origin == self.dot.origin { dot.sequence < self.dot.sequence } else { self.others.contains(dot) }
    }
}

/// A batch of writes of one origin, checked.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    pub(crate) batch: Batch,
    /// When they were made.
    pub(crate) time: HybridTimestamp,
    /// What of other origins they had seen: no gaps.
    pub(crate) past: VersionVector,
    // Where the first record begins in its entry.
    skip: usize,
}

impl Writes {
    /// Checks a batch that came from a peer or a disk, and each of its records with `fits`; the error is the rule that it
    /// breaks.
    pub(crate) fn of(batch: Batch, fits: impl Fn(&Record<'_>) -> bool) -> Result<Self, &'static str> {
        let origin = batch.stream().origin;
        if Origin::of(origin).is_none() {
            return Err("a batch of writes belongs to an origin");
        }
        if batch.kind() != BatchKind::Commands || batch.last().index.0 > Dot::SEQUENCE_MAX {
            return Err("a batch of writes holds writes, with sequences in range");
        }
        let first = batch.entries().next().expect("a batch has an entry").payload;
        let dot = Dot { origin, sequence: batch.base().0 };
        let (causality, rest) =
            Causality::decode(dot, first).map_err(|_| "a batch of writes says what they had seen")?;
        let skip = first.len() - rest.len();
        let past = causality.context.vector();
        let own = past.held(origin).is_none_or(|held| held.is_contiguous() && held.base() < dot.sequence);
        if !past.is_contiguous() || !own || past.base(origin) + 1 != dot.sequence {
            return Err("writes have seen everything before some point of each origin, and their own origin");
        }
        if causality.time != batch.time() {
            return Err("a batch of writes says twice when they were made");
        }
        let mut past = past.clone();
        past.retire(origin);
        let writes = Self { time: batch.time(), past, skip, batch };
        for (_, record) in writes.records() {
            match record {
                None => return Err("an entry is no write"),
                Some(record) if !record.is_honest(origin, writes.time) => {
                    return Err("a write is made again that was not made before, by the same node");
                }
                Some(record) if !fits(&record) => return Err("a write that its keyspace does not have"),
                Some(_) => {}
            }
        }
        Ok(writes)
    }

    /// The writes with their dots. Records are `None` only for a batch that is being checked.
    fn records(&self) -> impl Iterator<Item = (Dot, Option<Record<'_>>)> {
        let origin = self.batch.stream().origin;
        let first = self.batch.base();
        self.batch.entries().map(move |entry| {
            let skip = if entry.index == first { self.skip } else { 0 };
            (Dot { origin, sequence: entry.index.0 }, Record::decode(&entry.payload[skip..]))
        })
    }

    /// The writes with their dots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Dot, Record<'_>)> {
        self.records().map(|(dot, record)| (dot, record.expect("checked when the batch came in")))
    }

    pub(crate) fn origin(&self) -> OriginId {
        self.batch.stream().origin
    }

    /// The first sequence.
    pub(crate) fn first(&self) -> u64 {
        self.batch.base().0
    }

    /// The last sequence.
    pub(crate) fn last(&self) -> u64 {
        self.batch.last().index.0
    }
}

/// One write of a batch, for whoever reads the log: tools and checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedWrite {
    /// Which write.
    pub dot: Dot,
    /// When it was made; of one that was made again, when it was first.
    pub time: HybridTimestamp,
    /// What of other origins its origin had applied.
    pub past: VersionVector,
    /// Its key.
    pub key: Bytes,
    /// The new value, `None` for a delete; of a value that merges, its delta.
    pub value: Option<Bytes>,
    /// Whether `value` is the delta of a value that merges.
    pub merges: bool,
    /// The versions that it replaces, when these are not all that had been applied.
    pub replaces: Option<Vec<Dot>>,
    /// Of one that was made again where the newest wins: what its origin had applied and is older than this is replaced, too.
    pub decided: Option<Stamp>,
    /// The dot that its client was told, when it is not this one.
    pub again: Option<Dot>,
    /// The versions that its client had read, when it said so and others are replaced as well; none, when it was made again.
    pub read: Option<Vec<Dot>>,
}

impl LoggedWrite {
    /// Reads a batch of writes.
    ///
    /// # Errors
    /// A sentence that says which rule the batch breaks.
    pub fn read(batch: &Batch) -> Result<Vec<Self>, &'static str> {
        let writes = Writes::of(batch.clone(), |_| true)?;
        let read = |(dot, record): (Dot, Record<'_>)| Self {
            dot,
            time: if let Provenance::Again { time, .. } = &record.provenance { *time } else { writes.time },
            past: writes.past.clone(),
            key: Bytes::copy_from_slice(record.key),
            value: match record.change {
                Change::Put(value) | Change::Merge(value) => Some(Bytes::copy_from_slice(value)),
                Change::Delete => None,
            },
            merges: matches!(record.change, Change::Merge(_)),
            again: if let Provenance::Again { dot, .. } = &record.provenance { Some(*dot) } else { None },
            read: match &record.provenance {
                Provenance::Over(dots) => Some(dots.clone()),
                Provenance::Again { .. } => Some(Vec::new()),
                _ => None,
            },
            decided: if let Provenance::Again { decided, .. } = &record.provenance { *decided } else { None },
            replaces: match record.provenance {
                Provenance::These(dots) | Provenance::Again { replaces: dots, .. } => Some(dots),
                _ => None,
            },
        };
        Ok(writes.iter().map(read).collect())
    }
}
