//! Writes as they stand in the log of their coordinator, and what it had seen of their keys; and the records of a replica's own.
//!
//! Invariant: what a write had seen of its key is exact. What its coordinator had applied when the batch was begun is written
//! once a batch, in front of its first entry; each write says whether it replaces all of that, or only some versions, and which
//! writes it had seen beyond. Source: dotted version vectors, Almeida et al. 2014.

use bytes::Bytes;
use replikit_core::{
    Batch, BatchKind, BatchMeta, CausalContext, Causality, ClusterId, Dot, GroupId, HybridTimestamp, LogIndex, Origin,
    OriginId, StreamId, Term, VersionVector,
};
use serde::{Deserialize, Serialize};

use crate::cas;
use crate::content::KeyCopy;
use crate::epoch::Owning;

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change<'a> {
    Put(&'a [u8]),
    Delete,
    /// A value that merges, whole, as its coordinator has it now. A delta that takes something away would say too little: what it
    /// covers may cover something else that has not arrived where the delta has.
    Merge(&'a [u8]),
    /// What is added to a value that merges, and takes nothing away.
    Delta(&'a [u8]),
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record<'a> {
    pub(crate) key: &'a [u8],
    #[serde(borrow)]
    pub(crate) change: Change<'a>,
    /// Versions that its coordinator had and that it stands beside: all others that the coordinator had seen it replaces, those
    /// included that were replaced there already. (To list what it replaces would not be enough: what one of these had
    /// replaced may still stand where it has not arrived.)
    pub(crate) keeps: Vec<Dot>,
    /// Writes of the key that it had seen as well, above what its coordinator had applied, without those kept: usually none.
    pub(crate) beyond: Option<CausalContext>,
}

impl<'a> Record<'a> {
    pub(crate) fn encode_into(&self, out: Vec<u8>) -> Vec<u8> {
        postcard::to_extend(self, out).expect("a record always encodes into memory")
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        match postcard::take_from_bytes::<Self>(bytes) {
            Ok((record, [])) if !record.key.is_empty() => Some(record),
            _ => None,
        }
    }
}

/// What the writer of a version had seen of its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saw<'a> {
    /// What of other origins its coordinator had applied.
    pub(crate) past: &'a VersionVector,
    /// The write itself; its coordinator's earlier ones had been applied.
    pub(crate) dot: Dot,
    pub(crate) record: &'a Record<'a>,
}

impl Saw<'_> {
    pub(crate) fn contains(&self, dot: Dot) -> bool {
        let applied =
            if dot.origin == self.dot.origin { dot.sequence < self.dot.sequence } else { self.past.contains(dot) };
        let above = || self.record.beyond.as_ref().is_some_and(|beyond| beyond.contains(dot));
        (applied || above()) && !self.record.keeps.contains(&dot)
    }

    /// What its coordinator had applied, earlier writes of its own included.
    pub(crate) fn base(&self) -> VersionVector {
        let mut base = self.past.clone();
        base.insert_all(self.dot.origin, &replikit_core::SequenceSet::up_to(self.dot.sequence - 1));
        base
    }

    /// What of it a replica with this vector has to remember at the key.
    pub(crate) fn beyond(&self, base: &VersionVector) -> CausalContext {
        let mut more = CausalContext::new();
        if !base.covers(self.past) {
            more = without(&self.past.beyond(base).into(), &self.record.keeps);
        }
        if let Some(beyond) = &self.record.beyond {
            more.join(beyond);
            more.strip(base);
        }
        more
    }
}

/// A context without some dots.
pub(crate) fn without(context: &CausalContext, dots: &[Dot]) -> CausalContext {
    if dots.iter().all(|dot| !context.contains(*dot)) {
        return context.clone();
    }
    let dots: VersionVector = dots.iter().fold(VersionVector::new(), |mut set, dot| {
        set.insert(*dot);
        set
    });
    context.vector().beyond(&dots).into()
}

/// A batch of writes of one origin, checked.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    pub(crate) batch: Batch,
    /// When they were made.
    pub(crate) time: HybridTimestamp,
    /// What of other origins their coordinator had applied: no gaps.
    pub(crate) past: VersionVector,
    // Where the first record begins in its entry.
    skip: usize,
}

impl Writes {
    /// Checks a batch that came from a peer or a disk, and each of its records with `fits`; the error is the rule that it
    /// breaks.
    pub(crate) fn of(batch: Batch, fits: impl Fn(Dot, &Record<'_>) -> bool) -> Result<Self, &'static str> {
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
            Causality::decode(dot, first).map_err(|_| "a batch of writes says what its coordinator had applied")?;
        let skip = first.len() - rest.len();
        let past = causality.context.vector();
        if !past.is_contiguous() || past.base(origin) + 1 != dot.sequence {
            return Err("a coordinator has applied everything before some point of each origin, and all of its own");
        }
        if causality.time != batch.time() {
            return Err("a batch of writes says twice when they were made");
        }
        let mut past = past.clone();
        past.retire(origin);
        let writes = Self { time: batch.time(), past, skip, batch };
        for (dot, record) in writes.records() {
            match record {
                None => return Err("an entry is no write"),
                Some(record) if record.beyond.as_ref().is_some_and(|beyond| beyond.contains(dot)) => {
                    return Err("a write cannot have seen itself");
                }
                Some(record) if !fits(dot, &record) => return Err("a write that its keyspace does not have"),
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

    /// The last sequence.
    pub(crate) fn last(&self) -> u64 {
        self.batch.last().index.0
    }
}

/// The next batch of a node's own stream of a group, with these records: one at least. `end` is where that stream ends, and the
/// digest of its last batch; it moves on.
pub(crate) fn own_batch<'a>(
    cluster: ClusterId,
    group: GroupId,
    end: &mut (u64, u64),
    records: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
) -> Batch {
    let (last, prev_digest) = *end;
    let meta = BatchMeta {
        cluster,
        stream: StreamId { group, origin: OriginId::LOCAL },
        base: LogIndex(last + 1),
        term: Term(0),
        prev_digest,
        time: HybridTimestamp(0),
        kind: BatchKind::Control,
    };
    let count = records.len() as u64;
    let batch = Batch::build(&meta, records.map(|bytes| (bytes, None)));
    *end = (last + count, batch.digest());
    batch
}

/// What a replica keeps in its own log beside the writes: what has come to it in other ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Local {
    /// A key was repaired by a read.
    Repaired { key: Bytes, copy: KeyCopy },
    /// Of a key that is compared and set, or of who does that.
    Cas(cas::Record),
    /// Which epochs this replica counts in.
    Owning(Box<Owning>),
    /// A key with something that this replica had made before it was evicted, as it was then.
    Stashed { key: Bytes, copy: KeyCopy },
    /// A key of which a majority of the owners had something else, with the same writes applied: from here on it is theirs.
    Adopted { key: Bytes, copy: KeyCopy },
}

impl Local {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a record always encodes into memory")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((record, [])) => Some(record),
            _ => None,
        }
    }
}

/// How a value is merged with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merges {
    /// As all that its writer had, and had seen.
    Whole,
    /// As a delta, which has seen nothing but itself.
    Delta,
}

/// One write of a batch, for whoever reads the log: tools and checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedWrite {
    /// Which write.
    pub dot: Dot,
    /// When it was made.
    pub time: HybridTimestamp,
    /// What of other origins its coordinator had applied.
    pub past: VersionVector,
    /// Its key.
    pub key: Bytes,
    /// The new value, `None` for a delete; of a value that merges, all of it or a delta.
    pub value: Option<Bytes>,
    /// Whether `value` merges with others, and how.
    pub merges: Option<Merges>,
    /// The versions that its coordinator had and that it stands beside.
    pub keeps: Vec<Dot>,
    /// What it had seen of its key beyond what its coordinator had applied.
    pub beyond: CausalContext,
}

impl LoggedWrite {
    /// Reads a batch of writes.
    ///
    /// # Errors
    /// A sentence that says which rule the batch breaks.
    pub fn read(batch: &Batch) -> Result<Vec<Self>, &'static str> {
        let writes = Writes::of(batch.clone(), |_, _| true)?;
        let read = |(dot, record): (Dot, Record<'_>)| Self {
            dot,
            time: writes.time,
            past: writes.past.clone(),
            key: Bytes::copy_from_slice(record.key),
            value: match record.change {
                Change::Put(value) | Change::Merge(value) | Change::Delta(value) => Some(Bytes::copy_from_slice(value)),
                Change::Delete => None,
            },
            merges: match record.change {
                Change::Put(_) | Change::Delete => None,
                Change::Merge(_) => Some(Merges::Whole),
                Change::Delta(_) => Some(Merges::Delta),
            },
            keeps: record.keeps,
            beyond: record.beyond.unwrap_or_default(),
        };
        Ok(writes.iter().map(read).collect())
    }

    /// Whether its writer had seen another write of the same key, and replaced it.
    #[must_use]
    pub fn had_seen(&self, other: Dot) -> bool {
        let own = other.origin == self.dot.origin;
        let applied = if own { other.sequence < self.dot.sequence } else { self.past.contains(other) };
        (applied || self.beyond.contains(other)) && !self.keeps.contains(&other)
    }
}
