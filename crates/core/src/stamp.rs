//! What stands beside a write: when it was made, and what its writer had seen.
//!
//! Invariant: [`Stamp`]s are totally ordered and never equal for two writes, so every replica picks the same winner. Causal
//! order comes first everywhere; stamps only decide between writes that have not seen each other.

use serde::{Deserialize, Serialize};

use crate::origin::{join_id, split_id};
use crate::{CausalContext, ContextError, Dot, HybridTimestamp, OriginId, SequenceSet, VersionVector};

/// When a write was made, for "the newer wins": by time, then by node, incarnation and sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The origin's hybrid clock. Never the time at which a replica applied the write: replicas would differ.
    pub time: HybridTimestamp,
    /// The write; the tie-break.
    pub dot: Dot,
}

/// What is recorded beside a write in the log of its origin.
///
/// The dot is not repeated: in a dotted stream the stream is the origin and the log index the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Causality {
    /// The origin's hybrid clock.
    pub time: HybridTimestamp,
    /// What the writer had seen, without the write itself.
    pub context: CausalContext,
}

// The header's low bits; above them stands the number of origins.
const OWN_LISTED: u64 = 1;
const GAPS: u64 = 2;
const COUNT_SHIFT: u32 = 2;

impl Causality {
    /// Appends the encoding: a header of usually one byte, eight bytes of time, and 3 to 7 bytes for each *other* origin that
    /// the writer has seen without gaps. That the writer had seen all earlier writes of its own origin is said by a bit. So
    /// three origins take at most 23 bytes as long as nodes and incarnations are below 128 and sequences below 2^35.
    pub fn encode(&self, dot: Dot, out: &mut Vec<u8>) {
        let vector = self.context.vector();
        let regular = |held: Option<&SequenceSet>| match held {
            Some(held) => held.is_contiguous() && held.base() == dot.sequence.wrapping_sub(1),
            None => dot.sequence == 1,
        };
        let implied = regular(vector.held(dot.origin));
        let listed = || vector.iter().filter(|(origin, _)| !implied || *origin != dot.origin);
        let gaps = !listed().all(|(_, held)| held.is_contiguous());
        let header = (listed().count() as u64) << COUNT_SHIFT
            | if gaps { GAPS } else { 0 }
            | if implied { 0 } else { OWN_LISTED };
        put(out, &header);
        out.extend_from_slice(&self.time.0.to_le_bytes());
        for (origin, held) in listed() {
            put(out, &split_id(origin));
            if gaps {
                put(out, held);
            } else {
                put(out, &held.base());
            }
        }
    }

    /// Reads what [`Causality::encode`] wrote for the same dot; returns what follows it.
    ///
    /// # Errors
    /// [`ContextError::Malformed`]: the bytes come from a peer and may be anything.
    pub fn decode(dot: Dot, bytes: &[u8]) -> Result<(Self, &[u8]), ContextError> {
        let (header, bytes) = take::<u64>(bytes)?;
        let (time, mut bytes) = bytes.split_first_chunk::<8>().ok_or(ContextError::Malformed)?;
        let mut vector = VersionVector::new();
        let mut last: Option<OriginId> = None;
        for _ in 0..header >> COUNT_SHIFT {
            let ((slot, incarnation), rest) = take::<(u32, u32)>(bytes)?;
            let origin = join_id(slot, incarnation).ok_or(ContextError::Malformed)?;
            let (held, rest) = if header & GAPS == 0 {
                let (base, rest) = take::<u64>(rest)?;
                (SequenceSet::up_to(base), rest)
            } else {
                take::<SequenceSet>(rest)?
            };
            let own_twice = header & OWN_LISTED == 0 && origin == dot.origin;
            if last.is_some_and(|last| last >= origin) || held.is_empty() || own_twice {
                return Err(ContextError::Malformed);
            }
            last = Some(origin);
            vector.insert_all(origin, &held);
            bytes = rest;
        }
        if header & OWN_LISTED == 0 {
            vector.insert_all(dot.origin, &SequenceSet::up_to(dot.sequence.saturating_sub(1)));
        }
        let time = HybridTimestamp(u64::from_le_bytes(*time));
        Ok((Self { time, context: vector.into() }, bytes))
    }
}

fn put(out: &mut Vec<u8>, value: &impl Serialize) {
    let encoded = postcard::to_stdvec(value).expect("integers and runs always encode into memory");
    out.extend_from_slice(&encoded);
}

fn take<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<(T, &'de [u8]), ContextError> {
    postcard::take_from_bytes(bytes).map_err(|_| ContextError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Incarnation, NodeId, Origin};

    fn origin(node: u32, incarnation: u32) -> OriginId {
        Origin { node: NodeId(node), incarnation: Incarnation(incarnation) }.id().unwrap()
    }

    fn causality(context: VersionVector) -> Causality {
        Causality { time: HybridTimestamp(1_763_769_600_000_000_000), context: context.into() }
    }

    #[test]
    fn a_write_of_three_origins_carries_at_most_24_bytes_of_causality() {
        let last = (1 << 35) - 1;
        let mut context = VersionVector::new();
        for node in [124, 125, 126] {
            context.insert_all(origin(node, 127), &SequenceSet::up_to(last - 1));
        }
        let dot = Dot { origin: origin(125, 127), sequence: last };
        let mut bytes = Vec::new();
        causality(context).encode(dot, &mut bytes);
        assert_eq!(bytes.len(), 23);
        let mut young = VersionVector::new();
        young.insert_all(origin(1, 1), &SequenceSet::up_to(100));
        let mut bytes = Vec::new();
        causality(young).encode(Dot { origin: origin(0, 1), sequence: 1 }, &mut bytes);
        assert_eq!(bytes.len(), 12);
    }

    #[test]
    fn an_own_origin_is_not_listed_twice() {
        let dot = Dot { origin: origin(1, 1), sequence: 3 };
        let mut bytes = vec![1 << COUNT_SHIFT];
        bytes.extend_from_slice(&[0; 8]);
        put(&mut bytes, &split_id(dot.origin));
        put(&mut bytes, &7_u64);
        assert_eq!(Causality::decode(dot, &bytes), Err(ContextError::Malformed));
    }

    proptest! {
        #[test]
        fn causality_survives_encoding(
            seen in proptest::collection::vec((0..3_u32, 1..12_u64), 0..40),
            writer in 0..3_u32,
            sequence in 1..12_u64,
            own in any::<bool>(),
        ) {
            let mut context: VersionVector =
                seen.iter().map(|&(node, sequence)| Dot { origin: origin(node, 1), sequence }).collect();
            if own {
                context.retire(origin(writer, 1));
                context.insert_all(origin(writer, 1), &SequenceSet::up_to(sequence - 1));
            }
            let dot = Dot { origin: origin(writer, 1), sequence };
            let (written, mut bytes) = (causality(context), Vec::new());
            written.encode(dot, &mut bytes);
            bytes.extend_from_slice(b"rest");
            prop_assert_eq!(Causality::decode(dot, &bytes), Ok((written, &b"rest"[..])));
        }

        #[test]
        fn decoding_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), sequence in any::<u64>()) {
            let dot = Dot { origin: OriginId(5), sequence };
            if let Ok((read, _)) = Causality::decode(dot, &bytes) {
                let mut again = Vec::new();
                read.encode(dot, &mut again);
                prop_assert_eq!(Causality::decode(dot, &again).map(|(read, _)| read), Ok(read));
            }
        }
    }
}
